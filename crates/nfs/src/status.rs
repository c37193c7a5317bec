//! Status codes: of version 4 (RFC 8881, section 15.1), and those of version 3 and of MOUNT, which
//! are a part of them (RFC 1813, sections 2.6 and 5.1.5).

use crate::tree::TreeError;
use crate::xdr::Malformed;

/// Why an operation failed: an nfsstat4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Status(pub(crate) u32);

/// A result of an operation.
pub(crate) type Result<T = ()> = std::result::Result<T, Status>;

#[rustfmt::skip]
impl Status {
    pub(crate) const NOENT: Status = Status(2);
    pub(crate) const IO: Status = Status(5);
    pub(crate) const NXIO: Status = Status(6);
    pub(crate) const ACCESS: Status = Status(13);
    pub(crate) const EXIST: Status = Status(17);
    pub(crate) const NOTDIR: Status = Status(20);
    pub(crate) const ISDIR: Status = Status(21);
    pub(crate) const INVAL: Status = Status(22);
    pub(crate) const ROFS: Status = Status(30);
    pub(crate) const NAMETOOLONG: Status = Status(63);
    pub(crate) const STALE: Status = Status(70);
    pub(crate) const BADHANDLE: Status = Status(10001);
    pub(crate) const BAD_COOKIE: Status = Status(10003);
    pub(crate) const NOTSUPP: Status = Status(10004);
    pub(crate) const TOOSMALL: Status = Status(10005);
    pub(crate) const NOT_SAME: Status = Status(10027);
    pub(crate) const SAME: Status = Status(10009);
    pub(crate) const NOFILEHANDLE: Status = Status(10020);
    pub(crate) const MINOR_VERS_MISMATCH: Status = Status(10021);
    pub(crate) const STALE_CLIENTID: Status = Status(10022);
    pub(crate) const BAD_STATEID: Status = Status(10025);
    pub(crate) const SYMLINK: Status = Status(10029);
    pub(crate) const RESTOREFH: Status = Status(10030);
    pub(crate) const ATTRNOTSUPP: Status = Status(10032);
    pub(crate) const BADXDR: Status = Status(10036);
    pub(crate) const OPENMODE: Status = Status(10038);
    pub(crate) const BADCHAR: Status = Status(10040);
    pub(crate) const BADNAME: Status = Status(10041);
    pub(crate) const OP_ILLEGAL: Status = Status(10044);
    pub(crate) const BADSESSION: Status = Status(10052);
    pub(crate) const BADSLOT: Status = Status(10053);
    pub(crate) const COMPLETE_ALREADY: Status = Status(10054);
    pub(crate) const SEQ_MISORDERED: Status = Status(10063);
    pub(crate) const SEQUENCE_POS: Status = Status(10064);
    pub(crate) const REQ_TOO_BIG: Status = Status(10065);
    pub(crate) const REP_TOO_BIG: Status = Status(10066);
    pub(crate) const TOO_MANY_OPS: Status = Status(10070);
    pub(crate) const OP_NOT_IN_SESSION: Status = Status(10071);
    pub(crate) const CLIENTID_BUSY: Status = Status(10074);
    pub(crate) const ENCR_ALG_UNSUPP: Status = Status(10079);
    pub(crate) const NOT_ONLY_OP: Status = Status(10081);
    pub(crate) const WRONG_TYPE: Status = Status(10083);
    pub(crate) const UNION_NOTSUPP: Status = Status(10090);
    pub(crate) const NOXATTR: Status = Status(10095);
}

impl Status {
    /// What version 3 calls this.
    pub(crate) fn v3(self) -> u32 {
        const LAST_V3: u32 = 10_008;
        match self {
            Status::BADNAME | Status::BADCHAR => Status::ACCESS.0,
            Status(number) if number <= LAST_V3 => number,
            _ => Status::INVAL.0,
        }
    }
}

impl From<Malformed> for Status {
    fn from(_: Malformed) -> Status {
        Status::BADXDR
    }
}

impl From<TreeError> for Status {
    fn from(error: TreeError) -> Status {
        match error {
            TreeError::Stale => Status::STALE,
            TreeError::NotFound => Status::NOENT,
            TreeError::NotDirectory => Status::NOTDIR,
            TreeError::WrongKind => Status::INVAL,
            TreeError::Io => Status::IO,
        }
    }
}
