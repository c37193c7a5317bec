//! The operations: numbers, names, and what a server that never writes makes of them.

/// Operation numbers below this are counted.
pub(crate) const OPERATIONS: usize = NAMES.len();

macro_rules! operations {
    ($($name:ident = $number:literal),* $(,)?) => {
        $(#[allow(dead_code)] pub(crate) const $name: u32 = $number;)*

        /// Names by number, for the counters.
        const NAMES: [&str; 76] = {
            let mut names = ["?"; 76];
            $(names[$number] = stringify!($name);)*
            names
        };
    };
}

operations! {
    ACCESS = 3, CLOSE = 4, COMMIT = 5, CREATE = 6, DELEGPURGE = 7, DELEGRETURN = 8, GETATTR = 9,
    GETFH = 10, LINK = 11, LOCK = 12, LOCKT = 13, LOCKU = 14, LOOKUP = 15, LOOKUPP = 16,
    NVERIFY = 17, OPEN = 18, OPENATTR = 19, OPEN_CONFIRM = 20, OPEN_DOWNGRADE = 21, PUTFH = 22,
    PUTPUBFH = 23, PUTROOTFH = 24, READ = 25, READDIR = 26, READLINK = 27, REMOVE = 28,
    RENAME = 29, RENEW = 30, RESTOREFH = 31, SAVEFH = 32, SECINFO = 33, SETATTR = 34,
    SETCLIENTID = 35, SETCLIENTID_CONFIRM = 36, VERIFY = 37, WRITE = 38, RELEASE_LOCKOWNER = 39,
    BACKCHANNEL_CTL = 40, BIND_CONN_TO_SESSION = 41, EXCHANGE_ID = 42, CREATE_SESSION = 43,
    DESTROY_SESSION = 44, FREE_STATEID = 45, GET_DIR_DELEGATION = 46, GETDEVICEINFO = 47,
    GETDEVICELIST = 48, LAYOUTCOMMIT = 49, LAYOUTGET = 50, LAYOUTRETURN = 51,
    SECINFO_NO_NAME = 52, SEQUENCE = 53, SET_SSV = 54, TEST_STATEID = 55, WANT_DELEGATION = 56,
    DESTROY_CLIENTID = 57, RECLAIM_COMPLETE = 58, ALLOCATE = 59, COPY = 60, COPY_NOTIFY = 61,
    DEALLOCATE = 62, IO_ADVISE = 63, LAYOUTERROR = 64, LAYOUTSTATS = 65, OFFLOAD_CANCEL = 66,
    OFFLOAD_STATUS = 67, READ_PLUS = 68, SEEK = 69, WRITE_SAME = 70, CLONE = 71, GETXATTR = 72,
    SETXATTR = 73, LISTXATTRS = 74, REMOVEXATTR = 75,
}

/// The number that stands for every number without a meaning.
pub(crate) const ILLEGAL: u32 = 10044;

/// The name of an operation.
pub(crate) fn operation_name(operation: u32) -> &'static str {
    NAMES.get(operation as usize).copied().unwrap_or("ILLEGAL")
}

/// Whether the minor version defines the operation, be it served or not.
pub(crate) fn is_defined(operation: u32, minor: u32) -> bool {
    let last = if minor >= 2 {
        REMOVEXATTR
    } else {
        RECLAIM_COMPLETE
    };
    (ACCESS..=last).contains(&operation)
}

/// Whether the operation would change something.
pub(crate) fn is_mutating(operation: u32) -> bool {
    matches!(
        operation,
        COMMIT
            | CREATE
            | LINK
            | REMOVE
            | RENAME
            | SETATTR
            | WRITE
            | ALLOCATE
            | COPY
            | DEALLOCATE
            | WRITE_SAME
            | CLONE
            | SETXATTR
            | REMOVEXATTR
    )
}
