//! Lists in replies that have a limit.

use std::ops::ControlFlow;

use crate::status::{Result, Status};
use crate::xdr::Writer;

/// A list that ends before it gets longer than its limit.
pub(crate) struct Page {
    /// Where in the reply it has to end.
    limit: usize,
    /// An entry did not fit.
    pub(crate) full: bool,
    pub(crate) failed: Option<Status>,
}

impl Page {
    /// An empty list that has to end at `limit` in the reply.
    pub(crate) fn new(limit: usize) -> Page {
        Page {
            limit,
            full: false,
            failed: None,
        }
    }

    /// Writes an entry, or takes it back if it does not fit.
    pub(crate) fn entry(
        &mut self,
        reply: &mut Writer,
        write: impl FnOnce(&mut Writer) -> Result,
    ) -> ControlFlow<()> {
        let before = reply.len();
        self.failed = write(reply).err();
        self.full = reply.len() > self.limit;
        if self.full || self.failed.is_some() {
            reply.truncate(before);
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }
}
