//! READ (RFC 1813, section 3.3.6).

use super::Procedure;
use crate::access;
use crate::content::MAX_READ;
use crate::status::{Result, Status};
use crate::tree::FileKind;

impl Procedure<'_> {
    pub(super) fn read(&mut self) -> Result {
        let here = self.handle()?;
        let (offset, count) = (self.args.u64()?, self.args.u32()?);
        let attr = here.attr()?;
        if attr.kind != FileKind::Regular {
            return Err(Status::INVAL);
        }
        if !access::may_read(&self.credential, &attr) {
            return Err(Status::ACCESS);
        }
        let left = attr.size.saturating_sub(offset);
        let len = left.min(count.min(MAX_READ).into()) as u32;
        self.attributes_after(Some(here));
        self.reply.u32(len);
        self.reply.bool(u64::from(len) == left);
        self.reply.u32(len);
        self.connection
            .append_content(self.core, here, (offset, len), self.reply)
    }
}
