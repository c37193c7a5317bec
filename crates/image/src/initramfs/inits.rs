//! The /init programs that there are, one for each kind of processor.

use std::sync::Arc;

use super::Error;
use crate::check::{AARCH64, X86_64, machine_name};

/// Static builds of /init.
#[derive(Debug, Clone)]
pub struct Inits {
    /// For 64-bit x86.
    pub x86_64: Arc<[u8]>,
    /// For 64-bit ARM, where there is one.
    pub aarch64: Option<Arc<[u8]>>,
}

impl From<Arc<[u8]>> for Inits {
    /// One for 64-bit x86.
    fn from(x86_64: Arc<[u8]>) -> Self {
        Self {
            x86_64,
            aarch64: None,
        }
    }
}

impl Inits {
    /// The one for a kernel whose modules are for a processor; the one for 64-bit x86 where it has
    /// none that tell.
    pub(super) fn for_kernel(&self, kernel: &str, machine: Option<u16>) -> Result<&[u8], Error> {
        let found = match machine {
            None | Some(X86_64) => Some(&self.x86_64),
            Some(AARCH64) => self.aarch64.as_ref(),
            Some(_) => None,
        };
        let arm = self.aarch64.as_ref().map(|_| AARCH64);
        found.map(|it| &**it).ok_or_else(|| Error::NoInit {
            kernel: kernel.to_owned(),
            machine: machine.map_or("", machine_name),
            there_are: [X86_64].into_iter().chain(arm).map(machine_name).collect(),
        })
    }

    /// All of them.
    pub(super) fn all(&self) -> impl Iterator<Item = &[u8]> {
        [&self.x86_64]
            .into_iter()
            .chain(&self.aarch64)
            .map(|it| &**it)
    }
}
