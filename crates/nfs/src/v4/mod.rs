//! NFS version 4, minor versions 1 and 2 (RFC 8881, RFC 7862).

pub(crate) mod attr;
pub(crate) mod compound;
mod dir;
mod file;
pub(crate) mod ops;
mod session;
pub(crate) mod state;

/// Seconds after which a client without calls would lose its state, if state could be lost here. It
/// also bounds how long a Linux client waits between attempts to reconnect (half of it), so it is
/// short; but not shorter, since every third of it the client gives up the delegations that it did
/// not use (`nfs_expire_unreferenced_delegations` in fs/nfs/delegation.c), in the middle of a boot
/// too.
pub(crate) const LEASE_SECONDS: u32 = 60;
