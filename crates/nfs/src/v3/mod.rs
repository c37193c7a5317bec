//! NFS version 3 (RFC 1813) and MOUNT version 3, its appendix I.
//!
//! No state at all: a handle is the same sealed one as in version 4. There is no NLM: clients mount
//! with `nolock`, as locks in an immutable tree have nothing to keep apart.

mod attr;
mod dir;
mod file;
pub(crate) mod mount;

use crate::connection::{Connection, Core};
use crate::exports::{Place, Table};
use crate::rpc::{Credential, Refusal};
use crate::status::{Result, Status};
use crate::v4::ops;
use crate::xdr::{Reader, Writer};

/// Longest handle (RFC 1813, NFS3_FHSIZE).
const MAX_HANDLE: usize = 64;
/// Longest name that is read before it is found to be too long.
const MAX_NAME: usize = 4096;

/// A call while it is answered.
struct Procedure<'a> {
    core: &'a Core,
    table: &'a Table,
    connection: &'a mut Connection,
    credential: Credential,
    args: Reader<'a>,
    reply: &'a mut Writer,
    /// The inode that the call is about, for the attributes that go with its result.
    subject: Option<Place<'a>>,
}

/// Answers one of the procedures 1 to 21 whose arguments are `args`. `reply` already holds the RPC
/// header.
pub(crate) fn run(
    core: &Core,
    table: &Table,
    connection: &mut Connection,
    credential: Credential,
    number: u32,
    args: Reader<'_>,
    reply: &mut Writer,
) -> std::result::Result<(), Refusal> {
    let procedure = Procedure {
        core,
        table,
        connection,
        credential,
        args,
        reply,
        subject: None,
    };
    procedure.run(number)
}

impl<'a> Procedure<'a> {
    fn run(mut self, number: u32) -> std::result::Result<(), Refusal> {
        self.connection.client.tally.operation(name(number));
        let start = self.reply.len();
        self.reply.u32(0);
        match self.execute(number) {
            Ok(()) => {}
            Err(Status::BADXDR) => return Err(Refusal::GarbageArguments),
            Err(status) => {
                self.reply.truncate(start);
                self.reply.u32(status.v3());
                self.fail(number);
            }
        }
        Ok(())
    }

    fn execute(&mut self, number: u32) -> Result {
        match number {
            1 => self.get_attributes(),
            3 => self.lookup(),
            4 => self.access(),
            5 => self.read_link(),
            6 => self.read(),
            16 => self.read_directory(),
            17 => self.read_directory_plus(),
            18 => self.usage(),
            19 => self.limits(),
            20 => self.path_limits(),
            // The rest would write.
            _ => self.handle().and(Err(Status::ROFS)),
        }
    }

    /// Writes what follows the status of a failure: of everything that would be told of an inode
    /// before and after the call, that it is not told; attributes where they are known.
    fn fail(&mut self, number: u32) {
        match number {
            // GETATTR has nothing else.
            1 => {}
            // SETATTR, WRITE, CREATE, MKDIR, SYMLINK, MKNOD, REMOVE, RMDIR, COMMIT: before, after.
            2 | 7..=13 | 21 => self.unknown(2),
            // RENAME: of two directories. LINK: after of the file, both of the directory.
            14 => self.unknown(4),
            15 => self.unknown(3),
            _ => self.attributes_after(self.subject),
        }
    }

    fn unknown(&mut self, count: usize) {
        for _ in 0..count {
            self.reply.bool(false);
        }
    }

    /// Reads a handle.
    fn handle(&mut self) -> Result<Place<'a>> {
        let handle = self.args.opaque(MAX_HANDLE)?;
        let place = self.connection.open_handle(self.core, self.table, handle)?;
        self.subject = Some(place);
        Ok(place)
    }

    /// Writes a post_op_attr.
    fn attributes_after(&mut self, place: Option<Place<'_>>) {
        attr::write_after(place, self.reply);
    }
}

/// The operation of version 4 as which a procedure is counted.
fn name(procedure: u32) -> u32 {
    match procedure {
        1 => ops::GETATTR,
        2 => ops::SETATTR,
        3 => ops::LOOKUP,
        4 => ops::ACCESS,
        5 => ops::READLINK,
        6 => ops::READ,
        7 => ops::WRITE,
        8..=11 => ops::CREATE,
        12 | 13 => ops::REMOVE,
        14 => ops::RENAME,
        15 => ops::LINK,
        16 | 17 => ops::READDIR,
        21 => ops::COMMIT,
        _ => ops::GETATTR,
    }
}
