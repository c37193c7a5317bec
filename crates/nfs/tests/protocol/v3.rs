//! Version 3 and its MOUNT protocol (RFC 1813).

use crate::Site;
use crate::client::{Credential, Peer, Results, Xdr};
use crate::codes::*;
use crate::memory::{BIG_LEN, MANY, big_byte};

const MOUNT: u32 = 100_005;
/// Procedures.
const P_GETATTR: u32 = 1;
const P_LOOKUP: u32 = 3;
const P_ACCESS: u32 = 4;
const P_READLINK: u32 = 5;
const P_READ: u32 = 6;
const P_READDIR: u32 = 16;
const P_READDIRPLUS: u32 = 17;
const P_FSSTAT: u32 = 18;
const P_FSINFO: u32 = 19;
const P_PATHCONF: u32 = 20;

const STRANGER: Credential = Credential::Sys { uid: 7, gid: 7 };

/// What an fattr3 says.
#[derive(Debug, PartialEq, Eq)]
struct Fattr {
    kind: u32,
    mode: u32,
    nlink: u32,
    owner: (u32, u32),
    size: u64,
    rdev: (u32, u32),
    fsid: u64,
    fileid: u64,
    mtime: (u32, u32),
}

fn fattr(results: &mut Results) -> Fattr {
    let (kind, mode, nlink) = (results.u32(), results.u32(), results.u32());
    let owner = (results.u32(), results.u32());
    let (size, _used) = (results.u64(), results.u64());
    let rdev = (results.u32(), results.u32());
    let (fsid, fileid) = (results.u64(), results.u64());
    let _atime = results.u64();
    let mtime = (results.u32(), results.u32());
    let _ctime = results.u64();
    Fattr {
        kind,
        mode,
        nlink,
        owner,
        size,
        rdev,
        fsid,
        fileid,
        mtime,
    }
}

/// A post_op_attr.
fn after(results: &mut Results) -> Option<Fattr> {
    results.bool().then(|| fattr(results))
}

/// Calls a procedure that RPC accepts: its status and results.
fn call(peer: &mut Peer, target: [u32; 3], args: &[u8]) -> (u32, Results) {
    let mut reply = peer.call(target, args);
    assert_eq!(reply.fixed(16), [0; 16], "accepted, without a verifier");
    (reply.u32(), reply)
}

fn nfs(peer: &mut Peer, procedure: u32, write: impl FnOnce(&mut Xdr)) -> (u32, Results) {
    let mut args = Xdr::default();
    write(&mut args);
    call(peer, [NFS, 3, procedure], &args.0)
}

fn try_mount(peer: &mut Peer, path: &[u8]) -> Result<Vec<u8>, u32> {
    let mut args = Xdr::default();
    args.opaque(path);
    let (status, mut results) = call(peer, [MOUNT, 3, 1], &args.0);
    if status != OK {
        assert_eq!(results.len(), 0);
        return Err(status);
    }
    let handle = results.opaque();
    let flavors: Vec<u32> = (0..results.u32()).map(|_| results.u32()).collect();
    assert_eq!((flavors, results.len()), (vec![1, 0], 0));
    Ok(handle)
}

/// A handle of a path below the export, by LOOKUPs.
fn handle(peer: &mut Peer, path: &str) -> Vec<u8> {
    let root = try_mount(peer, b"/image").expect("a mount");
    let names = path.split('/').filter(|name| !name.is_empty());
    names.fold(root, |dir, name| {
        let (status, mut results) = nfs(peer, P_LOOKUP, |args| {
            args.opaque(&dir).opaque(name.as_bytes());
        });
        assert_eq!(status, OK, "{name}");
        let found = results.opaque();
        assert!(after(&mut results).is_some() && after(&mut results).is_some());
        assert_eq!(results.len(), 0);
        found
    })
}

fn attributes(peer: &mut Peer, handle: &[u8]) -> Fattr {
    let (status, mut results) = nfs(peer, P_GETATTR, |args| {
        args.opaque(handle);
    });
    assert_eq!(status, OK);
    let attr = fattr(&mut results);
    assert_eq!(results.len(), 0);
    attr
}

#[test]
fn mount_leads_from_paths_to_handles() {
    let site = Site::new();
    let peer = &mut site.connect();
    let root = try_mount(peer, b"/image").expect("a mount");
    assert_eq!(attributes(peer, &root).kind, 2);
    // Below an export and above it too, with or without a last slash.
    assert_eq!(try_mount(peer, b"/image/"), Ok(root.clone()));
    let many = handle(peer, "many");
    assert_eq!(try_mount(peer, b"/image/many"), Ok(many));
    let top = try_mount(peer, b"/").expect("a mount");
    let (status, mut results) = nfs(peer, P_LOOKUP, |args| {
        args.opaque(&top).opaque(b"image");
    });
    assert_eq!((status, results.opaque()), (OK, root));
    for (path, expected) in [
        (&b"/nothing"[..], NOENT),
        (b"/image/hello", NOTDIR),
        (b"/image/link", NOTDIR),
        (b"/image/hello/x", NOTDIR),
        (b"image", DENIED),
        (b"/image/..", DENIED),
        (&[b"/", &[b'x'; 300][..]].concat(), NAMETOOLONG),
        (&[b'/'; 1025], NAMETOOLONG),
    ] {
        assert_eq!(try_mount(peer, path), Err(expected), "{path:?}");
    }
}

#[test]
fn mount_lists_exports_and_forgets_clients() {
    let site = Site::new();
    let peer = &mut site.connect();
    let mut reply = peer.call([MOUNT, 3, 5], &[]);
    reply.fixed(16);
    assert!(reply.bool());
    assert_eq!(reply.opaque(), b"/image");
    assert_eq!((reply.bool(), reply.bool(), reply.len()), (false, false, 0));
    let mut reply = peer.call([MOUNT, 3, 2], &[]);
    assert_eq!((reply.fixed(20), reply.len()), (vec![0; 20], 0));
    let mut path = Xdr::default();
    path.opaque(b"/image");
    for (procedure, args) in [(0, &[][..]), (3, &path.0), (4, &[])] {
        let mut reply = peer.call([MOUNT, 3, procedure], args);
        assert_eq!((reply.fixed(16), reply.len()), (vec![0; 16], 0));
    }
}

#[test]
fn calls_out_of_reach_are_refused_by_rpc() {
    let site = Site::new();
    let peer = &mut site.connect();
    let refusal = |peer: &mut Peer, target, args: &[u8]| {
        let mut reply = peer.call(target, args);
        assert_eq!(reply.fixed(12), [0; 12]);
        reply
    };
    for target in [[NFS, 3, 22], [MOUNT, 3, 6]] {
        assert_eq!(refusal(peer, target, &[]).u32(), 3, "{target:?}");
    }
    let mut reply = refusal(peer, [MOUNT, 1, 1], &[]);
    assert_eq!((reply.u32(), reply.u32(), reply.u32()), (2, 3, 3));
    let mut reply = refusal(peer, [NFS, 2, 1], &[]);
    assert_eq!((reply.u32(), reply.u32(), reply.u32()), (2, 3, 4));
    // Arguments that end early, or a handle that is too long.
    let mut long = Xdr::default();
    long.opaque(&[0; 65]);
    for args in [&[0, 0, 0, 29, 1][..], &long.0] {
        assert_eq!(refusal(peer, [NFS, 3, P_GETATTR], args).u32(), 4);
    }
    peer.credential = Credential::Gss;
    assert_eq!(peer.call([NFS, 3, P_GETATTR], &[]).u32(), 1, "denied");
}

#[test]
fn attributes_are_those_of_the_inode() {
    let site = Site::new();
    let peer = &mut site.connect();
    let private = handle(peer, "private");
    let attr = attributes(peer, &private);
    assert_eq!((attr.kind, attr.mode, attr.nlink), (1, 0o4600, 1));
    assert_eq!((attr.owner, attr.size), ((1000, 100), 4));
    assert_eq!(attr.mtime, (1_700_000_000, attr.fileid as u32));
    assert_eq!(attr.fsid, u64::from_be_bytes([1; 8]));
    let tty = handle(peer, "tty");
    let attr = attributes(peer, &tty);
    assert_eq!((attr.kind, attr.rdev), (4, (5, 1)));
    for (handle, expected) in [
        (vec![1; 29], BADHANDLE),
        (vec![], BADHANDLE),
        (foreign_handle(), STALE),
    ] {
        let (status, results) = nfs(peer, P_GETATTR, |args| {
            args.opaque(&handle);
        });
        assert_eq!((status, results.len()), (expected, 0));
    }
}

/// A handle of the same key of a tree that is not exported.
fn foreign_handle() -> Vec<u8> {
    let site = Site::new();
    let exports = site.server.exports();
    let tree = std::sync::Arc::new(crate::memory::Memory::sample());
    exports.add("/other", [9; 16], tree).expect("an export");
    try_mount(&mut site.connect(), b"/other").expect("a mount")
}

#[test]
fn names_lead_down_up_and_nowhere() {
    let site = Site::new();
    let peer = &mut site.connect();
    let (root, many) = (handle(peer, ""), handle(peer, "many"));
    let look = |peer: &mut Peer, dir: &[u8], name: &[u8]| {
        let (status, mut results) = nfs(peer, P_LOOKUP, |args| {
            args.opaque(dir).opaque(name);
        });
        if status == OK {
            return Ok(results.opaque());
        }
        // The directory's attributes go with a failure.
        assert!(after(&mut results).is_some());
        assert_eq!(results.len(), 0);
        Err(status)
    };
    assert_eq!(look(peer, &many, b".."), Ok(root.clone()));
    assert_eq!(look(peer, &many, b"."), Ok(many.clone()));
    assert_eq!(look(peer, &root, b".."), Ok(root.clone()));
    let hello = handle(peer, "hello");
    for (dir, name, expected) in [
        (&many, &b"nothing"[..], NOENT),
        (&hello, b"x", NOTDIR),
        (&hello, b"..", NOTDIR),
        (&root, b"", INVAL),
        (&root, b"a/b", DENIED),
        (&root, &[b'x'; 256], NAMETOOLONG),
    ] {
        assert_eq!(look(peer, dir, name), Err(expected), "{name:?}");
    }
}

#[test]
fn access_is_what_the_mode_says() {
    let site = Site::new();
    let peer = &mut site.connect();
    let (private, program) = (handle(peer, "private"), handle(peer, "program"));
    let access = |peer: &mut Peer, handle: &[u8]| {
        let (status, mut results) = nfs(peer, P_ACCESS, |args| {
            args.opaque(handle).u32(0x3f);
        });
        assert_eq!(status, OK);
        assert!(after(&mut results).is_some());
        (results.u32(), results.len())
    };
    assert_eq!(access(peer, &private), (0x01, 0));
    assert_eq!(access(peer, &program), (0x21, 0));
    peer.credential = STRANGER;
    assert_eq!(access(peer, &private), (0, 0));
    assert_eq!(access(peer, &program), (0x20, 0));
}

#[test]
fn reads_hold_the_bytes_and_the_end() {
    let site = Site::new();
    let peer = &mut site.connect();
    let big = handle(peer, "big");
    let read = |peer: &mut Peer, handle: &[u8], offset: u64, count: u32| {
        let (status, mut results) = nfs(peer, P_READ, |args| {
            args.opaque(handle).u64(offset).u32(count);
        });
        assert_eq!(status, OK);
        assert!(after(&mut results).is_some());
        let (count, end) = (results.u32(), results.bool());
        let bytes = results.opaque();
        assert_eq!((bytes.len(), results.len()), (count as usize, 0));
        (bytes, end)
    };
    let (bytes, end) = read(peer, &big, 4097, 4 << 20);
    assert_eq!((bytes.len(), end), (1 << 20, false));
    assert!((4097..).zip(&bytes).all(|(at, byte)| big_byte(at) == *byte));
    let (bytes, end) = read(peer, &big, BIG_LEN as u64 - 5, 5);
    assert_eq!((bytes.len(), end), (5, true));
    assert!(!read(peer, &big, BIG_LEN as u64 - 5, 4).1);
    assert_eq!(read(peer, &big, BIG_LEN as u64, 10), (vec![], true));
    assert_eq!(read(peer, &big, u64::MAX, 10), (vec![], true));
    let none = handle(peer, "none");
    assert_eq!(read(peer, &none, 0, 10), (vec![], true));
    let fails = |peer: &mut Peer, path: &str, credential| {
        peer.credential = crate::client::ROOT;
        let handle = handle(peer, path);
        peer.credential = credential;
        let (status, mut results) = nfs(peer, P_READ, |args| {
            args.opaque(&handle).u64(0).u32(10);
        });
        assert!(after(&mut results).is_some());
        assert_eq!(results.len(), 0);
        status
    };
    assert_eq!(fails(peer, "many", crate::client::ROOT), INVAL);
    assert_eq!(fails(peer, "private", STRANGER), DENIED);
}

#[test]
fn links_are_read() {
    let site = Site::new();
    let peer = &mut site.connect();
    for (path, expected) in [("link", OK), ("hello", INVAL)] {
        let handle = handle(peer, path);
        let (status, mut results) = nfs(peer, P_READLINK, |args| {
            args.opaque(&handle);
        });
        assert_eq!(status, expected);
        assert!(after(&mut results).is_some());
        if expected == OK {
            assert_eq!(results.opaque(), b"many/entry-007");
        }
        assert_eq!(results.len(), 0);
    }
}

/// Names and inode numbers of a directory, page by page, with the pages' count.
fn list(peer: &mut Peer, dir: &[u8], procedure: u32, max: u32) -> (Vec<(String, u64)>, usize) {
    let (mut entries, mut cookie, mut pages) = (Vec::new(), 0, 0);
    loop {
        pages += 1;
        let (status, mut results) = nfs(peer, procedure, |args| {
            args.opaque(dir).u64(cookie).u64(0);
            if procedure == P_READDIRPLUS {
                args.u32(max);
            }
            args.u32(max);
        });
        assert_eq!(status, OK);
        assert!(results.len() <= max as usize, "{} bytes", results.len());
        assert!(after(&mut results).is_some());
        results.u64();
        while results.bool() {
            let fileid = results.u64();
            let name = String::from_utf8(results.opaque()).expect("a name");
            cookie = results.u64();
            if procedure == P_READDIRPLUS {
                let attr = after(&mut results).expect("attributes");
                assert!(results.bool(), "a handle");
                let handle = results.opaque();
                assert_eq!(attr, attributes(peer, &handle), "{name}");
                assert_eq!(attr.fileid, fileid, "{name}");
            }
            entries.push((name, fileid));
        }
        if results.bool() {
            assert_eq!(results.len(), 0);
            return (entries, pages);
        }
    }
}

#[test]
fn directories_are_listed_once_whatever_the_page() {
    let site = Site::new();
    let peer = &mut site.connect();
    let many = handle(peer, "many");
    let (whole, pages) = list(peer, &many, P_READDIR, 32768);
    assert_eq!((whole.len(), pages), (MANY + 2, 1));
    assert_eq!((whole[0].0.as_str(), whole[1].0.as_str()), (".", ".."));
    assert_eq!(whole[0].1, attributes(peer, &many).fileid);
    let root = handle(peer, "");
    assert_eq!(whole[1].1, attributes(peer, &root).fileid);
    for (procedure, max) in [
        (P_READDIR, 160),
        (P_READDIR, 2048),
        (P_READDIRPLUS, 300),
        (P_READDIRPLUS, 32768),
    ] {
        let (listed, pages) = list(peer, &many, procedure, max);
        assert_eq!(listed, whole, "{procedure} {max}");
        assert_eq!(pages > 1, max < 10000, "{procedure} {max}");
    }
    let empty = handle(peer, "empty.d");
    assert_eq!(list(peer, &empty, P_READDIRPLUS, 4096).0.len(), 2);
}

#[test]
fn a_page_too_small_for_an_entry_and_no_directory_are_errors() {
    let site = Site::new();
    let peer = &mut site.connect();
    let (many, hello) = (handle(peer, "many"), handle(peer, "hello"));
    for (handle, max, expected) in [(&many, 60, TOOSMALL), (&hello, 4096, NOTDIR)] {
        let (status, mut results) = nfs(peer, P_READDIR, |args| {
            args.opaque(handle).u64(0).u64(0).u32(max);
        });
        assert_eq!(status, expected);
        assert!(after(&mut results).is_some());
        assert_eq!(results.len(), 0);
    }
    // A cookie that was never given is the end, or goes on: it is no crash.
    let (status, _) = nfs(peer, P_READDIR, |args| {
        args.opaque(&many).u64(u64::MAX).u64(0).u32(4096);
    });
    assert_eq!(status, OK);
}

#[test]
fn the_file_system_tells_its_limits() {
    let site = Site::new();
    let peer = &mut site.connect();
    let root = handle(peer, "");
    let ask = |peer: &mut Peer, procedure| {
        let (status, mut results) = nfs(peer, procedure, |args| {
            args.opaque(&root);
        });
        assert_eq!(status, OK);
        assert!(after(&mut results).is_some());
        results
    };
    let mut stat = ask(peer, P_FSSTAT);
    let (bytes, free, available) = (stat.u64(), stat.u64(), stat.u64());
    assert!(bytes > BIG_LEN as u64);
    assert_eq!((free, available), (0, 0));
    assert!(stat.u64() > MANY as u64);
    assert_eq!((stat.u64(), stat.u64(), stat.fixed(4).len()), (0, 0, 4));
    assert_eq!(stat.len(), 0);
    let mut info = ask(peer, P_FSINFO);
    assert_eq!((info.u32(), info.u32()), (1 << 20, 1 << 20));
    info.fixed(4 * 5);
    assert_eq!(info.u64(), i64::MAX as u64);
    assert_eq!((info.u64(), info.u32(), info.len()), (1, 0x1b, 0));
    let mut conf = ask(peer, P_PATHCONF);
    let words: Vec<u32> = (0..6).map(|_| conf.u32()).collect();
    assert_eq!((words, conf.len()), (vec![u32::MAX, 255, 1, 1, 0, 1], 0));
}

#[test]
fn whatever_would_write_finds_a_read_only_file_system() {
    let site = Site::new();
    let peer = &mut site.connect();
    let root = handle(peer, "");
    // The words of a failure: for each inode concerned, nothing before and nothing after.
    for (procedure, words) in [
        (2, 2),
        (7, 2),
        (8, 2),
        (9, 2),
        (10, 2),
        (11, 2),
        (12, 2),
        (13, 2),
        (14, 4),
        (15, 3),
        (21, 2),
    ] {
        let (status, mut results) = nfs(peer, procedure, |args| {
            args.opaque(&root);
        });
        assert_eq!(status, ROFS, "{procedure}");
        assert_eq!(results.fixed(words * 4), vec![0; words * 4]);
        assert_eq!(results.len(), 0, "{procedure}");
        let (status, _) = nfs(peer, procedure, |args| {
            args.opaque(b"no handle");
        });
        assert_eq!(status, BADHANDLE, "{procedure}");
    }
}

#[test]
fn handles_go_on_after_a_restart_and_are_those_of_version_4() {
    let first = Site::new();
    let peer = &mut first.connect();
    let hello = handle(peer, "hello");
    assert_eq!(first.client().handle("hello"), hello);
    let before = attributes(peer, &hello);
    drop(first);
    let second = Site::new();
    assert_eq!(attributes(&mut second.connect(), &hello), before);
}

#[test]
fn strangers_do_not_push_out_a_mount() {
    let site = Site::with(|config| {
        config.threads = 1;
        config.max_connections = 4;
    });
    let mut mounted = site.connect();
    let root = handle(&mut mounted, "");
    let _strangers: Vec<Peer> = (0..8).map(|_| site.connect()).collect();
    assert_eq!(attributes(&mut mounted, &root).kind, 2);
}
