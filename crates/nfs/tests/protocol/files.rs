//! Names, attributes and contents.

use std::io::Write;

use crate::Site;
use crate::client::{
    Client, Credential, LINUX, Ops, ROOT, Results, call_body, compound_args, record, walk,
};
use crate::codes::*;
use crate::memory::{BIG_LEN, MANY, SPARSE_LEN, big_byte};

#[test]
fn names_lead_to_files_or_say_why_not() {
    let site = Site::new();
    let mut client = site.client();
    let root = client.handle("");
    let file = client.handle("hello");
    let link = client.handle("link");
    let long = [b'x'; 256];
    for (dir, name, expected) in [
        (&root, &b"hello"[..], OK),
        (&root, b"nothing", NOENT),
        (&root, b"", INVAL),
        (&root, b".", BADNAME),
        (&root, b"..", BADNAME),
        (&root, b"many/entry-001", BADCHAR),
        (&root, b"hello\0", BADCHAR),
        (&root, &long, NAMETOOLONG),
        (&root, &[0xff, 0xfe], NOENT),
        (&file, b"x", NOTDIR),
        (&link, b"x", SYMLINK),
    ] {
        assert_eq!(
            client.on(dir, Ops::new().lookup(name)).0,
            expected,
            "{name:?}"
        );
    }
}

#[test]
fn the_way_up_ends_at_the_server_s_root() {
    let site = Site::new();
    let mut client = site.client();
    let [root, many, hello] = ["", "many", "hello"].map(|path| client.handle(path));
    let up = |ops: Ops| ops.plain(LOOKUPP, &[]);
    let (_, mut results) = client.on(&many, up(Ops::new()).get_handle());
    results.ok(LOOKUPP);
    assert_eq!(results.ok(GETFH).opaque(), root);
    // Above the export is the server's own root, and nothing above that.
    assert_eq!(client.on(&root, up(Ops::new())).0, OK);
    assert_eq!(client.on(&root, up(up(Ops::new()))).0, NOENT);
    assert_eq!(client.on(&hello, up(Ops::new())).0, NOTDIR);
}

#[test]
fn a_handle_is_the_same_however_a_file_is_reached() {
    let site = Site::new();
    let mut client = site.client();
    let direct = client.handle("many/entry-042");
    let many = client.handle("many");
    let listed = list(&mut client, &many, 4096);
    let entry = listed.iter().find(|entry| entry.name == b"entry-042");
    assert_eq!(entry.unwrap().handle, direct);
}

#[test]
fn attributes_are_the_tree_s() {
    let site = Site::new();
    let mut client = site.client();
    let handle = client.handle("private");
    let (_, mut results) = client.on(
        &handle,
        Ops::new().attributes(&[TYPE, SIZE, FSID, FILEID, MODE, NUMLINKS, OWNER, OWNER_GROUP]),
    );
    let results = results.ok(GETATTR);
    assert_eq!(
        results.bits(),
        [TYPE, SIZE, FSID, FILEID, MODE, NUMLINKS, OWNER, OWNER_GROUP]
    );
    let mut values = Results::new(&results.opaque());
    assert_eq!((values.u32(), values.u64()), (1, 4));
    let (_fsid, fileid) = (values.fixed(16), values.u64());
    assert!(fileid > 0 && fileid < 1 << 32);
    assert_eq!((values.u32(), values.u32()), (0o4600, 1));
    // Numbers, not names: a client with names asks for attributes all the time.
    assert_eq!(
        (values.opaque(), values.opaque()),
        (b"1000".to_vec(), b"100".to_vec())
    );
    assert_eq!(values.len(), 0);
    let tty = client.handle("tty");
    let (_, mut results) = client.on(&tty, Ops::new().attributes(&[TYPE, RAWDEV, TIME_MODIFY]));
    let results = results.ok(GETATTR);
    assert_eq!(results.bits(), [TYPE, RAWDEV, TIME_MODIFY]);
    let mut values = Results::new(&results.opaque());
    assert_eq!([values.u32(), values.u32(), values.u32()], [4, 5, 1]);
    assert_eq!(values.u64(), 1_700_000_000);
    assert!(values.u32() < 1_000_000_000);
}

#[test]
fn only_supported_attributes_are_given_and_they_are_those_that_are_announced() {
    let site = Site::new();
    for minor in [1, 2] {
        let mut client = site.client();
        client.peer.minor = minor;
        let every: Vec<u32> = (0..96).collect();
        let (_, mut results) = client.run(walk("hello").attributes(&every));
        results.ok(PUTROOTFH);
        results.ok(LOOKUP);
        results.ok(LOOKUP);
        let results = results.ok(GETATTR);
        let given = results.bits();
        let mut values = Results::new(&results.opaque());
        assert_eq!(values.bits(), given, "4.{minor}");
        // No ACL and no layout type: Linux would use them.
        assert!(!given.iter().any(|bit| [12, 13, 62].contains(bit)));
        // Extended attributes (82) and OPEN's arguments (86) are of minor version 2.
        assert_eq!(given.contains(&82) && given.contains(&86), minor == 2);
        assert_eq!(given.contains(&82) || given.contains(&86), minor == 2);
    }
}

#[test]
fn the_root_of_an_export_has_a_file_system_of_its_own() {
    let site = Site::new();
    let mut client = site.client();
    let wanted = [FSID, FILEID, MOUNTED_ON_FILEID];
    let read = |results: &mut Results| {
        let body = results.ok(GETATTR);
        assert_eq!(body.bits(), wanted);
        let mut values = Results::new(&body.opaque());
        (values.array::<16>(), values.u64(), values.u64())
    };
    let ops = Ops::new().put_root().attributes(&wanted).lookup(b"image");
    let (_, mut results) = client.run(ops.attributes(&wanted));
    results.ok(PUTROOTFH);
    let above = read(&mut results);
    results.ok(LOOKUP);
    let export = read(&mut results);
    assert_ne!(above.0, export.0);
    assert_ne!(export.1, export.2, "it covers a directory of the server");
}

struct Entry {
    name: Vec<u8>,
    cookie: u64,
    kind: u32,
    handle: Vec<u8>,
}

/// Lists a directory in pages of at most `max` bytes.
fn list(client: &mut Client, dir: &[u8], max: u32) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    loop {
        let cookie = entries.last().map_or(0, |entry| entry.cookie);
        let ops = Ops::new().read_directory(cookie, max, &[TYPE, FILEHANDLE]);
        let (status, mut results) = client.on(dir, ops);
        assert_eq!(status, OK, "{max}");
        let results = results.ok(READDIR);
        assert!(results.len() <= max as usize, "{max}: {}", results.len());
        let _verifier = results.u64();
        let before = entries.len();
        while results.bool() {
            let (cookie, name) = (results.u64(), results.opaque());
            assert_eq!(results.bits(), [TYPE, FILEHANDLE]);
            let mut values = Results::new(&results.opaque());
            entries.push(Entry {
                name,
                cookie,
                kind: values.u32(),
                handle: values.opaque(),
            });
        }
        if results.bool() {
            return entries;
        }
        assert!(entries.len() > before, "an empty page that is not the last");
    }
}

#[test]
fn a_directory_is_listed_once_whatever_the_page() {
    let site = Site::new();
    let mut client = site.client();
    let many = client.handle("many");
    for max in [100, 104, 200, 333, 4096, 1 << 20, u32::MAX] {
        let entries = list(&mut client, &many, max);
        let names: Vec<&[u8]> = entries.iter().map(|entry| &entry.name[..]).collect();
        assert_eq!(names.len(), MANY, "{max}");
        for (index, name) in names.iter().enumerate() {
            assert_eq!(*name, format!("entry-{index:03}").as_bytes());
        }
        assert!(entries.iter().all(|entry| entry.kind == 1));
        // Cookies 1 and 2 are reserved.
        assert!(entries.iter().all(|entry| entry.cookie > 2));
    }
    let empty = client.handle("empty.d");
    assert_eq!(list(&mut client, &empty, 16).len(), 0);
    let root = client.handle("");
    let kinds: Vec<u32> = list(&mut client, &root, 512)
        .iter()
        .map(|entry| entry.kind)
        .collect();
    assert!(kinds.contains(&2) && kinds.contains(&4) && kinds.contains(&5) && kinds.contains(&7));
}

#[test]
fn a_listing_that_cannot_be_says_why() {
    let site = Site::new();
    let mut client = site.client();
    let (many, hello) = (client.handle("many"), client.handle("hello"));
    for (handle, cookie, max, expected) in [
        (&many, 0, 0, TOOSMALL),
        (&many, 0, 40, TOOSMALL),
        (&many, 1, 4096, BAD_COOKIE),
        (&many, 2, 4096, BAD_COOKIE),
        (&hello, 0, 4096, NOTDIR),
    ] {
        let ops = Ops::new().read_directory(cookie, max, &[TYPE, FILEHANDLE]);
        assert_eq!(client.on(handle, ops).0, expected, "{cookie} {max}");
    }
    // Past the end is the end.
    let (_, mut results) = client.on(&many, Ops::new().read_directory(u64::MAX, 4096, &[]));
    let results = results.ok(READDIR);
    assert_eq!(
        (results.u64(), results.bool(), results.bool()),
        (0, false, true)
    );
}

/// Data and end flag of a read.
fn read(
    client: &mut Client,
    operation: u32,
    file: &[u8],
    offset: u64,
    count: u32,
) -> (Vec<u8>, bool) {
    let ops = Ops::new().read_by(operation, &ANONYMOUS, offset, count);
    let (status, mut results) = client.on(file, ops);
    assert_eq!(status, OK);
    let results = results.ok(operation);
    let eof = results.bool();
    if operation == READ {
        return (results.opaque(), eof);
    }
    let mut data = Vec::new();
    for _ in 0..results.u32() {
        assert_eq!(results.u32(), 0, "a segment of data");
        assert_eq!(results.u64(), offset + data.len() as u64);
        data.extend(results.opaque());
    }
    (data, eof)
}

#[test]
fn reads_give_the_bytes_and_say_where_the_file_ends() {
    let site = Site::new();
    let mut client = site.client();
    let (hello, none) = (client.handle("hello"), client.handle("none"));
    let sparse = client.handle("sparse");
    for operation in [READ, READ_PLUS] {
        for (file, offset, count, expected, eof) in [
            (&hello, 0, 100, &b"hello, world\n"[..], true),
            (&hello, 0, 13, b"hello, world\n", true),
            (&hello, 0, 12, b"hello, world", false),
            (&hello, 7, 3, b"wor", false),
            (&hello, 13, 1, b"", true),
            (&hello, 5000, 10, b"", true),
            (&hello, u64::MAX, u32::MAX, b"", true),
            (&hello, 0, 0, b"", false),
            (&none, 0, 10, b"", true),
            (&sparse, 4095, 2, b"s\0", false),
            (&sparse, SPARSE_LEN - 2, 10, b"\0\0", true),
        ] {
            assert_eq!(
                read(&mut client, operation, file, offset, count),
                (expected.to_vec(), eof),
                "operation {operation}, {count} at {offset}"
            );
        }
    }
}

#[test]
fn a_large_file_is_read_whole() {
    let site = Site::new();
    let mut client = site.client();
    let big = client.handle("big");
    for operation in [READ, READ_PLUS] {
        let mut content = Vec::new();
        loop {
            let (data, eof) = read(&mut client, operation, &big, content.len() as u64, 1 << 20);
            assert!(!data.is_empty());
            content.extend(data);
            if eof {
                break;
            }
        }
        let expected: Vec<u8> = (0..BIG_LEN).map(big_byte).collect();
        assert!(content == expected);
    }
    // Linux asks for 1 MiB and gets it in one piece.
    assert_eq!(read(&mut client, READ, &big, 0, 1 << 20).0.len(), 1 << 20);
}

#[test]
fn only_files_are_read() {
    let site = Site::new();
    let mut client = site.client();
    for (path, expected) in [
        ("many", ISDIR),
        ("link", SYMLINK),
        ("tty", WRONG_TYPE),
        ("pipe", WRONG_TYPE),
    ] {
        let handle = client.handle(path);
        assert_eq!(
            client.on(&handle, Ops::new().read(&ANONYMOUS, 0, 1)).0,
            expected
        );
        assert_eq!(
            client.on(&handle, Ops::new().open_here(SHARE_READ)).0,
            expected
        );
        assert_eq!(client.on(&handle, Ops::new().seek(0, 0)).0, expected);
    }
}

#[test]
fn holes_are_found() {
    let site = Site::new();
    let mut client = site.client();
    let sparse = client.handle("sparse");
    for (offset, what, eof, found) in [
        (0, 0, false, 0),
        (10, 1, false, 4096),
        (5000, 0, false, 65536),
        (5000, 1, false, 5000),
        (69_632, 1, false, 69_632),
        (70_000, 0, true, SPARSE_LEN),
    ] {
        let (status, mut results) = client.on(&sparse, Ops::new().seek(offset, what));
        assert_eq!(status, OK);
        let results = results.ok(SEEK);
        assert_eq!(
            (results.bool(), results.u64()),
            (eof, found),
            "{what} from {offset}"
        );
    }
    for (offset, what, expected) in [
        (SPARSE_LEN, 0, NXIO),
        (u64::MAX, 1, NXIO),
        (0, 7, UNION_NOTSUPP),
    ] {
        assert_eq!(
            client.on(&sparse, Ops::new().seek(offset, what)).0,
            expected
        );
    }
    let hello = client.handle("hello");
    let (_, mut results) = client.on(&hello, Ops::new().seek(3, 1));
    let results = results.ok(SEEK);
    assert_eq!(
        (results.bool(), results.u64()),
        (true, 13),
        "the end is a hole"
    );
}

#[test]
fn links_are_read() {
    let site = Site::new();
    let mut client = site.client();
    let (link, hello) = (client.handle("link"), client.handle("hello"));
    let (_, mut results) = client.on(&link, Ops::new().plain(READLINK, &[]));
    assert_eq!(results.ok(READLINK).opaque(), b"many/entry-007");
    assert_eq!(
        client.on(&hello, Ops::new().plain(READLINK, &[])).0,
        WRONG_TYPE
    );
}

#[test]
fn access_follows_owner_group_and_mode() {
    const READ_BIT: u32 = 1;
    const LOOKUP_BIT: u32 = 2;
    const WRITE_BITS: u32 = 4 | 8 | 16;
    const EXECUTE_BIT: u32 = 32;
    let site = Site::new();
    let mut client = site.client();
    let [private, program, hello, many] =
        ["private", "program", "hello", "many"].map(|path| client.handle(path));
    for (uid, gid, handle, expected) in [
        (0, 0, &private, READ_BIT),
        (1000, 1, &private, READ_BIT),
        (1001, 100, &private, 0),
        (0, 0, &program, READ_BIT | EXECUTE_BIT),
        (1001, 1, &program, EXECUTE_BIT),
        (1001, 1, &hello, READ_BIT),
        (1001, 1, &many, READ_BIT | LOOKUP_BIT),
    ] {
        client.peer.credential = Credential::Sys { uid, gid };
        let (_, mut results) = client.on(handle, Ops::new().access(0x3f));
        let results = results.ok(ACCESS);
        let (known, granted) = (results.u32(), results.u32());
        assert_eq!(known, 0x3f);
        assert_eq!(granted & WRITE_BITS, 0, "nobody may write");
        assert_eq!(granted, expected, "{uid}:{gid}");
    }
    // What a program needs to be run is reading.
    client.peer.credential = Credential::Sys { uid: 1001, gid: 1 };
    let open = Ops::new().open_here(SHARE_READ);
    assert_eq!(client.on(&program, open.clone()).0, OK);
    assert_eq!(client.on(&private, open).0, DENIED);
}

#[test]
fn attributes_are_compared() {
    let site = Site::new();
    let mut client = site.client();
    let hello = client.handle("hello");
    let size = |operation, size: u64| {
        Ops::new().op(operation, |args| {
            args.bits(&[SIZE]).u32(8).u64(size);
        })
    };
    for (operation, value, expected) in [
        (VERIFY, 13, OK),
        (VERIFY, 14, NOT_SAME),
        (NVERIFY, 13, SAME),
        (NVERIFY, 14, OK),
    ] {
        assert_eq!(client.on(&hello, size(operation, value)).0, expected);
    }
}

#[test]
fn extended_attributes_of_users_are_seen_and_no_others() {
    let site = Site::new();
    let mut client = site.client();
    let (noted, hello) = (client.handle("noted"), client.handle("hello"));
    let get = |name: &[u8]| {
        Ops::new().op(GETXATTR, |args| {
            args.opaque(name);
        })
    };
    let (_, mut results) = client.on(&noted, get(b"note"));
    assert_eq!(results.ok(GETXATTR).opaque(), [0, 1, 255]);
    assert_eq!(client.on(&noted, get(b"capability")).0, NOXATTR);
    assert_eq!(client.on(&hello, get(b"note")).0, NOXATTR);
    let names = |client: &mut Client, handle: &[u8], cookie: u64, max: u32| {
        let ops = Ops::new().op(LISTXATTRS, |args| {
            args.u64(cookie).u32(max);
        });
        let (status, mut results) = client.on(handle, ops);
        if status != OK {
            return Err(status);
        }
        let results = results.ok(LISTXATTRS);
        assert!(results.len() <= max as usize);
        let (cookie, count) = (results.u64(), results.u32());
        let names: Vec<Vec<u8>> = (0..count).map(|_| results.opaque()).collect();
        Ok((cookie, names, results.bool()))
    };
    let all = names(&mut client, &noted, 0, 4096).unwrap();
    assert_eq!(all.1, [b"mime_type".to_vec(), b"note".to_vec()]);
    assert!(all.2);
    let first = names(&mut client, &noted, 0, 36).unwrap();
    assert_eq!((first.1.len(), first.2), (1, false));
    let second = names(&mut client, &noted, first.0, 36).unwrap();
    assert_eq!((second.1, second.2), (vec![b"note".to_vec()], true));
    assert_eq!(names(&mut client, &noted, 0, 20), Err(TOOSMALL));
    assert_eq!(names(&mut client, &hello, 0, 64).unwrap().1.len(), 0);
}

#[test]
fn whoever_asks_for_the_security_of_a_file_loses_the_handle() {
    let site = Site::new();
    let mut client = site.client();
    let ops = walk("").op(SECINFO, |args| {
        args.opaque(b"hello");
    });
    let (_, mut results) = client.run(ops.clone());
    results.ok(PUTROOTFH);
    results.ok(LOOKUP);
    let results = results.ok(SECINFO);
    let flavors: Vec<u32> = (0..results.u32()).map(|_| results.u32()).collect();
    assert!(flavors.contains(&1), "AUTH_SYS");
    assert_eq!(client.status(ops.get_handle()), NOFILEHANDLE);
    let own = walk("").plain(SECINFO_NO_NAME, &[0]).get_handle();
    assert_eq!(client.status(own), NOFILEHANDLE);
}

#[test]
fn what_would_change_something_is_refused_as_read_only() {
    // COMMIT, CREATE, LINK, REMOVE, SETATTR, WRITE; of minor version 2 ALLOCATE, COPY, DEALLOCATE,
    // WRITE_SAME, CLONE, SETXATTR, REMOVEXATTR.
    const MUTATING: [u32; 6] = [5, 6, 11, 28, 34, 38];
    const MUTATING_2: [u32; 7] = [59, 60, 62, 70, 71, 73, 75];
    let site = Site::new();
    let mut client = site.client();
    let hello = client.handle("hello");
    for operation in MUTATING.into_iter().chain(MUTATING_2) {
        let ops = Ops::new().plain(operation, &[0; 16]);
        let (status, mut results) = client.on(&hello, ops.clone());
        assert_eq!(status, ROFS, "operation {operation}");
        assert_eq!(results.status(operation), ROFS);
        // SETATTR says which attributes it set, even then.
        let body = if operation == SETATTR { 4 } else { 0 };
        assert_eq!(results.len(), body, "operation {operation}");
        assert_eq!(client.status(ops), NOFILEHANDLE, "operation {operation}");
    }
    client.peer.minor = 1;
    for operation in MUTATING_2 {
        let (status, mut results) = client.on(&hello, Ops::new().plain(operation, &[0; 16]));
        assert_eq!(status, OP_ILLEGAL, "operation {operation}");
        assert_eq!(results.status(ILLEGAL), OP_ILLEGAL);
    }
}

#[test]
fn a_rename_that_could_not_be_elsewhere_says_so() {
    let site = Site::new();
    let mut client = site.client();
    let [root, hello, link] = ["", "hello", "link"].map(|path| client.handle(path));
    let rename = |old: &[u8], new: &[u8]| {
        Ops::new().op(RENAME, |args| {
            args.opaque(old).opaque(new);
        })
    };
    for (from, to, old, new, expected) in [
        (&root, &root, &b"hello"[..], &b"new"[..], ROFS),
        (&hello, &root, b"x", b"new", NOTDIR),
        (&link, &root, b"x", b"new", SYMLINK),
        (&root, &hello, b"hello", b"new", NOTDIR),
        (&root, &root, b"", b"new", INVAL),
        (&root, &root, b"hello", b"", INVAL),
        (&root, &root, b"..", b"new", BADNAME),
    ] {
        let ops = Ops::new().put(from).plain(SAVEFH, &[]).put(to);
        assert_eq!(client.status(ops.then(rename(old, new))), expected);
    }
    let without_source = Ops::new().put(&root).then(rename(b"hello", b"new"));
    assert_eq!(client.status(without_source), NOFILEHANDLE);
}

#[test]
fn what_is_defined_but_not_served_is_told_from_what_is_not_defined() {
    // DELEGPURGE, OPENATTR, what minor version 0 had, pNFS, SET_SSV, WANT_DELEGATION.
    const NOT_SERVED: [u32; 13] = [7, 19, 20, 30, 35, 36, 39, 47, 48, 49, 50, 54, 56];
    // COPY_NOTIFY, IO_ADVISE, LAYOUTERROR, LAYOUTSTATS, OFFLOAD_CANCEL, OFFLOAD_STATUS.
    const NOT_SERVED_2: [u32; 6] = [61, 63, 64, 65, 66, 67];
    let site = Site::new();
    let mut client = site.client();
    let hello = client.handle("hello");
    for (minor, operations, expected) in [
        (1, &NOT_SERVED[..], NOTSUPP),
        (2, &NOT_SERVED, NOTSUPP),
        (2, &NOT_SERVED_2, NOTSUPP),
        (
            1,
            &[0, 1, 2, 59, 68, 69, 72, 76, 10044, u32::MAX],
            OP_ILLEGAL,
        ),
        (2, &[0, 1, 2, 76, 10044, u32::MAX], OP_ILLEGAL),
    ] {
        client.peer.minor = minor;
        for operation in operations {
            let (status, mut results) = client.on(&hello, Ops::new().plain(*operation, &[0; 16]));
            assert_eq!(status, expected, "operation {operation} of 4.{minor}");
            let number = if expected == OP_ILLEGAL {
                ILLEGAL
            } else {
                *operation
            };
            assert_eq!(results.status(number), expected);
        }
    }
    // A client of 6.19 asks for directory delegations: there are none, which is no error.
    client.peer.minor = 2;
    let (status, _) = client.on(&hello, Ops::new().plain(GET_DIR_DELEGATION, &[0; 12]));
    assert_eq!(status, OK);
}

#[test]
fn handles_are_this_server_s_own() {
    let site = Site::new();
    let mut client = site.client();
    let hello = client.handle("hello");
    for at in 0..hello.len() {
        let mut forged = hello.clone();
        forged[at] ^= 0x40;
        assert_eq!(
            client.status(Ops::new().put(&forged)),
            BADHANDLE,
            "byte {at}"
        );
    }
    for foreign in [
        &b""[..],
        b"x",
        &[0; 64],
        &[0; 128],
        &hello[..hello.len() - 1],
    ] {
        assert_eq!(client.status(Ops::new().put(foreign)), BADHANDLE);
    }
    assert_eq!(client.status(Ops::new().put(&[0; 129])), BADXDR);
    assert!(site.server.exports().remove("/image"));
    assert_eq!(client.status(Ops::new().put(&hello)), STALE);
}

/// More than one visit to a connection may send, on a server of one thread.
#[test]
fn many_large_reads_at_once_are_all_answered_and_let_others_in_between() {
    const READS: u32 = 24;
    let site = Site::with(|config| config.threads = 1);
    let mut client = site.client();
    let big = client.handle("big");
    let mut calls = Vec::new();
    for slot in 1..=READS {
        let ops = Ops::new().sequence(&client.session, 1, slot).put(&big);
        let ops = ops.read(&ANONYMOUS, slot.into(), 1 << 20);
        let body = call_body(slot, [NFS, 4, 1], ROOT, &compound_args(2, &ops));
        calls.extend(record(&body));
    }
    client.peer.stream.write_all(&calls).unwrap();
    let mut other = site.connect().mount(b"other", 1, LINUX);
    assert_eq!(other.status(Ops::new().put_root().attributes(&[TYPE])), OK);
    for slot in 1..=READS {
        let reply = client.peer.receive().expect("a reply");
        assert_eq!(reply[..4], slot.to_be_bytes());
        let mut results = Results::new(&reply);
        // Header, status, tag and count; then three results.
        results.fixed(24 + 4 + 8 + 4);
        results.ok(SEQUENCE).fixed(36);
        results.ok(PUTFH);
        let read = results.ok(READ);
        let _is_last = read.bool();
        let content = read.opaque();
        let start = slot as usize;
        assert_eq!(content.len(), (BIG_LEN - start).min(1 << 20));
        assert!(
            (start..)
                .zip(content)
                .all(|(at, byte)| byte == big_byte(at))
        );
    }
}
