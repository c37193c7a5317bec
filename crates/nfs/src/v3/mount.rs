//! MOUNT version 3 (RFC 1813, section 5): from a path to a handle.
//!
//! Nothing is remembered of who has mounted what, so DUMP is empty and UMNT is only polite.

use super::MAX_NAME;
use crate::connection::{Connection, Core};
use crate::exports::{Place, Table, check_name};
use crate::rpc::Refusal;
use crate::status::{Result, Status};
use crate::tree::FileKind;
use crate::xdr::{Reader, Writer};

/// Longest path (RFC 1813, MNTPATHLEN).
const MAX_PATH: usize = 1024;
/// AUTH_SYS and AUTH_NONE.
const FLAVORS: [u32; 2] = [1, 0];
/// Exports that are listed: a reply is bounded, whatever is exported.
const MAX_LISTED: usize = 4096;

/// Answers one of the procedures 1 to 5.
pub(crate) fn run(
    core: &Core,
    table: &Table,
    connection: &mut Connection,
    procedure: u32,
    mut args: Reader<'_>,
    reply: &mut Writer,
) -> std::result::Result<(), Refusal> {
    let garbage = |_| Refusal::GarbageArguments;
    match procedure {
        1 => {
            let path = args.opaque(MAX_NAME).map_err(garbage)?;
            match find(table, path) {
                Ok(place) => {
                    connection.note_use(core, place.export);
                    reply.u32(0);
                    reply.opaque(&core.keys.handle(&place.export.id, place.ino));
                    reply.u32(FLAVORS.len() as u32);
                    for flavor in FLAVORS {
                        reply.u32(flavor);
                    }
                }
                Err(status) => reply.u32(status.v3()),
            }
        }
        // DUMP.
        2 => reply.bool(false),
        // UMNT.
        3 => {
            args.opaque(MAX_NAME).map_err(garbage)?;
        }
        // EXPORT: each path, open to everyone.
        5 => {
            for (path, _) in table.paths().take(MAX_LISTED) {
                reply.bool(true);
                reply.opaque(path.as_bytes());
                reply.bool(false);
            }
            reply.bool(false);
        }
        // UMNTALL.
        _ => {}
    }
    Ok(())
}

/// The directory at a path below the root of all exports. Symbolic links are not followed.
fn find<'t>(table: &'t Table, path: &[u8]) -> Result<Place<'t>> {
    if path.len() > MAX_PATH {
        return Err(Status::NAMETOOLONG);
    }
    let names = path.strip_prefix(b"/").ok_or(Status::ACCESS)?;
    let mut place = table.root().ok_or(Status::STALE)?;
    for name in names.split(|byte| *byte == b'/') {
        if !name.is_empty() {
            place = table.lookup(place, check_name(name)?)?;
        }
    }
    match place.attr()?.kind {
        FileKind::Directory => Ok(place),
        _ => Err(Status::NOTDIR),
    }
}
