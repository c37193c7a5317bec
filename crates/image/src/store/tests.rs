//! The store as a whole: what goes in comes out, digests stay, and no crash loses a version.

use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::*;
use crate::tree::{Extent, Kind, Mtime, Seek};

type Archive = tar::Builder<Vec<u8>>;

/// Adds an entry with everything that its digest depends on.
struct Item<'a> {
    path: &'a [u8],
    kind: tar::EntryType,
    mode: u32,
    owner: (u64, u64),
    mtime: &'a str,
    target: Option<&'a [u8]>,
    device: (u32, u32),
    xattrs: &'a [(&'a str, &'a [u8])],
    content: &'a [u8],
}

const ITEM: Item<'_> = Item {
    path: b"",
    kind: tar::EntryType::Regular,
    mode: 0o644,
    owner: (0, 0),
    mtime: "1700000000.5",
    target: None,
    device: (0, 0),
    xattrs: &[],
    content: b"",
};

fn add(archive: &mut Archive, item: &Item<'_>) {
    let xattrs: Vec<_> = item
        .xattrs
        .iter()
        .map(|(name, value)| (format!("SCHILY.xattr.{name}"), *value))
        .collect();
    let mut pax = vec![("mtime", item.mtime.as_bytes()), ("path", item.path)];
    pax.extend(item.target.map(|target| ("linkpath", target)));
    pax.extend(xattrs.iter().map(|(name, value)| (name.as_str(), *value)));
    archive.append_pax_extensions(pax).expect("pax header");
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(item.kind);
    header.set_mode(item.mode);
    header.set_uid(item.owner.0);
    header.set_gid(item.owner.1);
    header.set_size(item.content.len() as u64);
    header.set_device_major(item.device.0).expect("a major");
    header.set_device_minor(item.device.1).expect("a minor");
    header.set_cksum();
    archive.append(&header, item.content).expect("an entry");
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * i / 7 % 251) as u8).collect()
}

/// Whether owners can be set: `/proc/self` belongs to who runs this.
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

/// One of everything, at the sizes where the format changes shape.
pub(crate) fn everything() -> Vec<u8> {
    everything_with(true)
}

/// That of it which the file system of a directory can hold: XFS takes links of 1,024 bytes.
pub(crate) fn everything_for(directory: &Path) -> Vec<u8> {
    let probe = directory.join("probe");
    let long_links = std::os::unix::fs::symlink("y".repeat(4095), &probe).is_ok();
    let _ = fs::remove_file(probe);
    everything_with(long_links)
}

fn everything_with(long_links: bool) -> Vec<u8> {
    use tar::EntryType as Type;
    let mut archive = Archive::new(Vec::new());
    add(
        &mut archive,
        &Item {
            path: b"./",
            kind: Type::Directory,
            mode: 0o755,
            ..ITEM
        },
    );
    add(
        &mut archive,
        &Item {
            path: b"sizes",
            kind: Type::Directory,
            mode: 0o2775,
            owner: (70_000, 8),
            ..ITEM
        },
    );
    for size in [0, 1, 2047, 2048, 2049, 4095, 4096, 4097, 8192, 1_500_000] {
        let path = format!("sizes/{size}");
        add(
            &mut archive,
            &Item {
                path: path.as_bytes(),
                content: &pattern(size),
                ..ITEM
            },
        );
    }
    let mut holes = vec![0; 3 << 20];
    holes[70_000..70_010].fill(1);
    add(
        &mut archive,
        &Item {
            path: b"holes",
            content: &holes,
            ..ITEM
        },
    );
    add(
        &mut archive,
        &Item {
            path: b"zeros",
            content: &vec![0; 100_000],
            ..ITEM
        },
    );
    let caps: &[(&str, &[u8])] = &[
        (
            "security.capability",
            b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        ),
        ("user.note", b"kept"),
        ("security.selinux", b"system_u:object_r:bin_t:s0\0"),
        ("trusted.secret", b"dropped"),
    ];
    let label = &caps[2..3];
    add(
        &mut archive,
        &Item {
            path: b"bin/ping",
            mode: 0o4755,
            xattrs: caps,
            content: b"\x7fELF",
            ..ITEM
        },
    );
    add(
        &mut archive,
        &Item {
            path: b"bin/label",
            xattrs: label,
            content: &pattern(5000),
            ..ITEM
        },
    );
    add(
        &mut archive,
        &Item {
            path: b"a/hard",
            kind: Type::Link,
            target: Some(b"bin/ping"),
            ..ITEM
        },
    );
    add(
        &mut archive,
        &Item {
            path: b"lib",
            kind: Type::Symlink,
            target: Some(b"/a/../bin"),
            ..ITEM
        },
    );
    let long: [(&[u8], &[u8]); 2] = [(b"long", &[b'x'; 4000]), (b"longest", &[b'y'; 4095])];
    for (path, target) in long.into_iter().filter(|_| long_links) {
        let (kind, target) = (Type::Symlink, Some(target));
        add(
            &mut archive,
            &Item {
                path,
                kind,
                target,
                ..ITEM
            },
        );
    }
    add(
        &mut archive,
        &Item {
            path: b"loop",
            kind: Type::Symlink,
            target: Some(b"loop"),
            ..ITEM
        },
    );
    let device = Item {
        kind: Type::Char,
        mode: 0o666,
        ..ITEM
    };
    add(
        &mut archive,
        &Item {
            path: b"dev/null",
            device: (1, 3),
            ..device
        },
    );
    add(
        &mut archive,
        &Item {
            path: b"dev/big",
            kind: Type::Block,
            device: (259, 70_000),
            ..device
        },
    );
    add(
        &mut archive,
        &Item {
            path: b"dev/zero",
            device: (0, 0),
            ..device
        },
    );
    add(
        &mut archive,
        &Item {
            path: b"dev/pipe",
            kind: Type::Fifo,
            ..ITEM
        },
    );
    add(
        &mut archive,
        &Item {
            path: b"old",
            mtime: "-5.25",
            content: b"x",
            ..ITEM
        },
    );
    add(
        &mut archive,
        &Item {
            path: b"4e",
            kind: Type::Directory,
            mode: 0o755,
            ..ITEM
        },
    );
    add(
        &mut archive,
        &Item {
            path: b"name \xff\xfe\n",
            content: b"bytes",
            ..ITEM
        },
    );
    add(
        &mut archive,
        &Item {
            path: &[b'n'; 255],
            content: b"longest",
            ..ITEM
        },
    );
    for index in 0..700 {
        let path = format!("many/entry-{index:04}");
        add(
            &mut archive,
            &Item {
                path: path.as_bytes(),
                content: path.as_bytes(),
                ..ITEM
            },
        );
    }
    archive.into_inner().expect("an archive")
}

fn small(text: &str) -> Vec<u8> {
    with_large(text, 1)
}

/// A few files, and more large ones than one if asked for.
fn with_large(text: &str, count: usize) -> Vec<u8> {
    let mut archive = Archive::new(Vec::new());
    for index in 1..count {
        add(
            &mut archive,
            &Item {
                path: format!("large{index}").as_bytes(),
                content: format!("{text}{index}").repeat(3000).as_bytes(),
                ..ITEM
            },
        );
    }
    add(
        &mut archive,
        &Item {
            path: b"same",
            content: &pattern(9000),
            ..ITEM
        },
    );
    add(
        &mut archive,
        &Item {
            path: b"text",
            content: text.as_bytes(),
            ..ITEM
        },
    );
    add(
        &mut archive,
        &Item {
            path: b"large",
            content: text.repeat(3000).as_bytes(),
            ..ITEM
        },
    );
    archive.into_inner().expect("an archive")
}

pub(crate) fn import(store: &Store, archive: &[u8], to: Publish<'_>) -> Result<Digest> {
    let staged = store.stage_tar(archive, &mut |_| ())?;
    let digest = staged.digest();
    store.publish(staged, to, |_| Ok(()))?;
    Ok(digest)
}

pub(crate) fn new_store() -> (TempDir, Store) {
    let dir = TempDir::new().expect("a directory");
    let store = Store::open(dir.path().join("store")).expect("a store");
    (dir, store)
}

/// What gc removes, or says it would, once that is so many versions. One that somebody has open stays,
/// and a child that another test starts has what is open here until it runs its program.
pub(crate) fn collect(
    store: &Store,
    in_use: &[Digest],
    dry_run: bool,
    count: usize,
) -> Result<Collected> {
    let end = Instant::now() + Duration::from_secs(60);
    let mut all = Collected::default();
    loop {
        let mut more = store.gc(in_use, dry_run)?;
        if !dry_run {
            more.versions.splice(..0, all.versions);
            more.objects += all.objects;
            more.bytes += all.bytes;
        }
        all = more;
        if all.versions.len() >= count || Instant::now() > end {
            return Ok(all);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn names(tree: &StoredTree, dir: u32) -> Vec<Vec<u8>> {
    tree.readdir(dir, 0)
        .expect("a directory")
        .map(|entry| entry.expect("an entry").name.to_vec())
        .collect()
}

/// The digest must never change: it names versions in stores that exist. The image's bytes were
/// compared with what `mkcomposefs --min-version=1` writes for the same tree.
#[test]
fn golden_digest() -> Result<()> {
    let (_dir, store) = new_store();
    let digest = import(&store, &everything(), Publish::Import { name: "all" })?;
    assert_eq!(digest.to_string(), GOLDEN);
    Ok(())
}

const GOLDEN: &str = "fc7813978f5511cf7d7409dc17117617ce3209a67185b5a8e79e060b3198e64c";

#[test]
fn everything_reads_back() -> Result<()> {
    let (_dir, store) = new_store();
    let digest = import(&store, &everything(), Publish::Import { name: "all" })?;
    let tree = store.open_tree(digest)?;
    for size in [0, 1, 2047, 2048, 2049, 4095, 4096, 4097, 8192, 1_500_000] {
        assert_eq!(
            tree.read_file(format!("sizes/{size}"))?,
            pattern(size),
            "{size} bytes"
        );
    }
    let ping = tree.walk_path("lib/ping")?;
    assert_eq!(tree.walk_path("/a/hard")?, ping);
    let attr = tree.attr(ping)?;
    assert_eq!((attr.mode, attr.nlink, attr.kind), (0o4755, 2, Kind::File));
    assert_eq!(
        attr.mtime,
        Mtime {
            seconds: 1_700_000_000,
            nanoseconds: 500_000_000
        }
    );
    let xattrs: Vec<_> = tree
        .xattrs(ping)?
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(
        xattrs,
        [
            b"security.capability".to_vec(),
            b"security.selinux".into(),
            b"user.note".into()
        ]
    );
    let sizes = tree.attr(tree.walk_path("sizes")?)?;
    assert_eq!(
        (sizes.mode, sizes.uid, sizes.gid, sizes.nlink),
        (0o2775, 70_000, 8, 2)
    );
    assert_eq!(
        tree.attr(tree.walk_path("old")?)?.mtime,
        Mtime {
            seconds: -6,
            nanoseconds: 750_000_000
        }
    );
    for (path, kind, device) in [
        ("dev/null", Kind::Character, (1, 3)),
        ("dev/big", Kind::Block, (259, 70_000)),
        ("dev/zero", Kind::Character, (0, 0)),
        ("dev/pipe", Kind::Fifo, (0, 0)),
    ] {
        let attr = tree.attr(tree.walk_path(path)?)?;
        assert_eq!(
            (attr.kind, attr.rdev.major, attr.rdev.minor),
            (kind, device.0, device.1),
            "{path}"
        );
        assert!(tree.xattrs(attr.nid)?.is_empty(), "{path}");
    }
    let long = tree.lookup(tree.root(), b"long")?.expect("the link");
    assert_eq!(*tree.readlink(long)?, [b'x'; 4000]);
    let longest = tree.lookup(tree.root(), b"longest")?.expect("the link");
    assert_eq!(*tree.readlink(longest)?, [b'y'; 4095]);
    assert!(matches!(
        tree.walk_path("loop/x"),
        Err(Error::TooManyLinks { .. })
    ));
    assert!(matches!(
        tree.walk_path("bin/none"),
        Err(Error::NoSuchFile { .. })
    ));
    assert!(matches!(
        tree.walk_path("old/x"),
        Err(Error::NotADirectory { .. })
    ));
    assert_eq!(tree.walk_path("../../.././")?, tree.root());
    assert_eq!(tree.read_file(b"name \xff\xfe\n")?, b"bytes");
    assert_eq!(tree.read_file([b'n'; 255])?, b"longest");
    assert_eq!(tree.totals()?.files, 732);
    assert_eq!(
        store
            .verify(digest, &mut Verified::default(), &mut |_| ())?
            .len(),
        0
    );
    Ok(())
}

#[test]
fn directories_resume_at_every_cookie() -> Result<()> {
    let (_dir, store) = new_store();
    let tree = store.open_tree(import(&store, &everything(), Publish::Untagged)?)?;
    let root = names(&tree, tree.root());
    assert!(root.is_sorted() && root.contains(&b"4e".to_vec()) && !root.contains(&b"4f".to_vec()));
    assert_eq!(
        tree.lookup(tree.root(), b"4f")?,
        None,
        "a whiteout is no file"
    );
    let many = tree.walk_path("many")?;
    assert_eq!(tree.parent(many)?, tree.root());
    assert_eq!(tree.parent(tree.root())?, tree.root());
    let all = names(&tree, many);
    assert_eq!(all.len(), 700);
    let (mut cookie, mut seen) = (0, Vec::new());
    while let Some(entry) = tree.readdir(many, cookie)?.next() {
        let entry = entry?;
        assert!(entry.cookie > 2 && entry.cookie > cookie);
        assert_eq!(tree.lookup(many, entry.name)?, Some(entry.nid));
        seen.push(entry.name.to_vec());
        cookie = entry.cookie;
    }
    assert_eq!(seen, all);
    assert_eq!(tree.readdir(many, u64::MAX)?.count(), 0);
    Ok(())
}

#[test]
fn parts_and_holes() -> Result<()> {
    let (_dir, store) = new_store();
    let tree = store.open_tree(import(&store, &everything(), Publish::Untagged)?)?;
    let inline = tree.walk_path("sizes/2048")?;
    let parts = tree.read(inline, 2000, 1 << 40)?;
    assert!(matches!(&parts[..], [Extent::Bytes(bytes)] if **bytes == pattern(2048)[2000..]));
    assert!(tree.read(inline, 2048, 1)?.is_empty());
    assert!(tree.map(inline)?.is_none());
    let holes = tree.walk_path("holes")?;
    let mapped = tree.map(holes)?.expect("content");
    assert_eq!(mapped.len() as u64, tree.attr(holes)?.size);
    assert_eq!(mapped[70_009..70_011], [1, 0]);
    let extents = tree.read(holes, 70_000, 20)?;
    let [
        Extent::File {
            file,
            offset: 70_000,
            len: 20,
        },
    ] = &extents[..]
    else {
        panic!("{extents:?}")
    };
    let mut bytes = [9; 20];
    file.read_exact_at(&mut bytes, 70_000).expect("content");
    assert_eq!(bytes[9..11], [1, 0]);
    if file.metadata().expect("attributes").blocks() < 100 {
        let data = tree.seek(holes, 0, Seek::Data)?.expect("data");
        assert!((1..=70_000).contains(&data), "{data}");
        assert_eq!(tree.seek(holes, 1 << 20, Seek::Data)?, None);
    }
    assert!(tree.seek(holes, 0, Seek::Hole)?.is_some());
    assert_eq!(tree.seek(holes, 3 << 20, Seek::Hole)?, None);
    assert_eq!(tree.seek(inline, 5, Seek::Data)?, Some(5));
    assert_eq!(tree.seek(inline, 5, Seek::Hole)?, Some(2048));
    Ok(())
}

/// Makes a directory and the archive of it.
fn twins(dir: &Path) -> Vec<u8> {
    use tar::EntryType as Type;
    fs::create_dir_all(dir.join("sub")).expect("a directory");
    fs::write(dir.join("sub/small"), b"small").expect("a file");
    fs::write(dir.join("sub/large"), pattern(2_000_000)).expect("a file");
    fs::hard_link(dir.join("sub/large"), dir.join("linked")).expect("a link");
    std::os::unix::fs::symlink("sub/small", dir.join("soft")).expect("a link");
    let mut sparse = File::create(dir.join("sparse")).expect("a file");
    sparse.set_len(5 << 20).expect("a hole");
    sparse.write_all_at(b"data", 1 << 20).expect("data");
    sparse.flush().expect("data");
    fs::set_permissions(dir.join("sub/small"), fs::Permissions::from_mode(0o600)).expect("a mode");
    let mut archive = Archive::new(Vec::new());
    for path in [
        "",
        "sub",
        "sub/large",
        "sub/small",
        "linked",
        "soft",
        "sparse",
    ] {
        let full = dir.join(path);
        let meta = full.symlink_metadata().expect("attributes");
        let target = full.read_link().ok();
        let target = target.as_ref().map(|target| target.as_os_str().as_bytes());
        let mtime = format!("{}.{:09}", meta.mtime(), meta.mtime_nsec());
        let content = if meta.is_file() {
            fs::read(&full).expect("content")
        } else {
            Vec::new()
        };
        let item = Item {
            path: if path.is_empty() {
                b"./"
            } else {
                path.as_bytes()
            },
            mode: meta.mode() & 0o7777,
            owner: (meta.uid().into(), meta.gid().into()),
            mtime: &mtime,
            ..ITEM
        };
        add(
            &mut archive,
            &match path {
                "" | "sub" => Item {
                    kind: Type::Directory,
                    ..item
                },
                "linked" => Item {
                    kind: Type::Link,
                    target: Some(b"sub/large"),
                    ..item
                },
                "soft" => Item {
                    kind: Type::Symlink,
                    target,
                    ..item
                },
                _ => Item {
                    content: &content,
                    ..item
                },
            },
        );
    }
    archive.into_inner().expect("an archive")
}

#[test]
fn one_tree_has_one_digest_through_every_source() -> Result<()> {
    let (dir, store) = new_store();
    let source = dir.path().join("source");
    let archive = twins(&source);
    let _socket = std::os::unix::net::UnixListener::bind(source.join("socket"));
    let from_tar = store.stage_tar(&archive[..], &mut |_| ())?;
    let root = from_tar.tree().attr(from_tar.tree().root())?;
    // The socket changed the directory's time: it gets the archive's back.
    let time =
        std::time::UNIX_EPOCH + Duration::new(root.mtime.seconds as u64, root.mtime.nanoseconds);
    File::open(&source)
        .and_then(|dir| dir.set_modified(time))
        .expect("a time");
    let from_dir = store.stage_dir(&source, &mut |_| ())?;
    assert_eq!(from_dir.digest(), from_tar.digest());
    assert_eq!(
        from_dir.skipped(),
        [Skipped {
            path: b"socket".into(),
            why: import::SkipReason::Socket
        }]
    );
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&archive).expect("compressing");
    let zstd = zstd::encode_all(&archive[..], 1).expect("compressing");
    let mut xz = Vec::new();
    lzma_rs::xz_compress(&mut &archive[..], &mut xz).expect("compressing");
    for packed in [gzip.finish().expect("compressing"), zstd, xz] {
        assert_eq!(
            store.stage_tar(&packed[..], &mut |_| ())?.digest(),
            from_tar.digest()
        );
    }
    Ok(())
}

#[test]
fn imports_move_next_and_never_what_nodes_follow() -> Result<()> {
    let (_dir, store) = new_store();
    let generation = store.generation()?;
    let first = import(&store, &small("one"), Publish::Import { name: "debian" })?;
    assert_ne!(store.generation()?, generation);
    let second = import(&store, &small("two"), Publish::Import { name: "debian" })?;
    assert_eq!(store.resolve("debian")?, first);
    assert_eq!(store.resolve("debian:next")?, second);
    assert_eq!(store.resolve(&second.to_string())?, second);
    assert_eq!(store.resolve(&second.to_string()[..6])?, second);
    assert!(store.resolve(&second.to_string()[..5]).is_err());
    let generation = store.generation()?;
    store.tag("debian", "latest", second)?;
    assert_ne!(store.generation()?, generation);
    assert_eq!(store.resolve("debian:latest")?, second);
    let third = import(
        &store,
        &small("three"),
        Publish::Tag {
            name: "debian",
            tag: "latest",
        },
    )?;
    assert_eq!(store.resolve("debian")?, third);
    assert!(matches!(
        store.resolve("rocky"),
        Err(Error::NoSuchTag { .. })
    ));
    assert!(matches!(
        store.tag("debian", "x", Digest([7; 32])),
        Err(Error::NoSuchVersion { .. })
    ));
    for wrong in [
        "",
        ".",
        "..",
        "a/b",
        "-x",
        "a b",
        &"0".repeat(64),
        &"a".repeat(200),
    ] {
        assert!(store.tag(wrong, "latest", first).is_err(), "{wrong}");
        assert!(store.tag("debian", wrong, first).is_err(), "{wrong}");
    }
    let list = store.list()?;
    assert_eq!(
        list.iter()
            .map(|version| version.digest)
            .collect::<Vec<_>>(),
        [third, second, first]
    );
    assert_eq!(list[0].tags, ["debian:latest"]);
    assert_eq!((list[0].files, list[0].bytes), (4, 9000 + 5 + 15_000));
    Ok(())
}

#[test]
fn a_tag_that_moved_meanwhile_stays_where_it_is() -> Result<()> {
    let (_dir, store) = new_store();
    let to = |was| Publish::TagIf {
        name: "a",
        tag: "next",
        was,
    };
    let first = import(&store, &small("first"), to(None))?;
    let moved = import(&store, &small("second"), to(None));
    assert!(matches!(moved, Err(Error::TagMoved { now, .. }) if now == Some(first)));
    assert_eq!(store.resolve("a:next")?, first);
    // Nothing of the work is lost: the version is there, without a name.
    assert_eq!(store.versions()?.len(), 2);
    let second = import(&store, &small("second"), to(Some(first)))?;
    assert_eq!(store.resolve("a:next")?, second);
    Ok(())
}

#[test]
fn what_the_judge_refuses_is_not_published() -> Result<()> {
    let (_dir, store) = new_store();
    let staged = store.stage_tar(&small("key")[..], &mut |_| ())?;
    let digest = staged.digest();
    let refused = store.publish(staged, Publish::Import { name: "x" }, |tree| {
        assert_eq!(tree.read_file("text")?, b"key");
        assert_eq!(tree.read_file("same")?, pattern(9000));
        Err(Error::Refused {
            reasons: vec!["a private key".into()],
        })
    });
    assert!(matches!(refused, Err(Error::Refused { .. })));
    assert!(store.tags()?.is_empty() && store.open_tree(digest).is_err());
    assert_eq!(
        fs::read_dir(store.path().join("objects"))
            .expect("objects")
            .count(),
        0
    );
    Ok(())
}

#[test]
fn gc_keeps_what_is_named_open_or_wanted() -> Result<()> {
    let (_dir, store) = new_store();
    let named = import(&store, &small("named"), Publish::Import { name: "a" })?;
    let open = import(&store, &small("open"), Publish::Untagged)?;
    let wanted = import(&store, &small("wanted"), Publish::Untagged)?;
    let gone = import(&store, &small("gone"), Publish::Untagged)?;
    let tree = store.open_tree(open)?;
    let collected = collect(&store, &[wanted], false, 1)?;
    assert_eq!((collected.versions, collected.objects), (vec![gone], 2));
    for digest in [named, open, wanted] {
        assert_eq!(
            store
                .verify(digest, &mut Verified::default(), &mut |_| ())?
                .len(),
            0
        );
    }
    drop(tree);
    store.remove_tag("a", "latest")?;
    assert!(matches!(
        store.remove_tag("a", "latest"),
        Err(Error::NoSuchTag { .. })
    ));
    assert_eq!(collect(&store, &[], false, 3)?.versions.len(), 3);
    assert!(store.list()?.is_empty() && store.gc(&[], false)? == Collected::default());
    Ok(())
}

#[test]
fn damage_is_found_and_healed_by_importing_again() -> Result<()> {
    let (_dir, store) = new_store();
    let digest = import(&store, &small("text"), Publish::Import { name: "a" })?;
    let object = object_path(store.path(), crate::verity::digest_of(&pattern(9000)));
    File::options()
        .write(true)
        .open(&object)
        .and_then(|file| file.set_len(10))
        .expect("cutting");
    let fresh = || Store::open(store.path()).expect("the store");
    let damage = || fresh().verify(digest, &mut Verified::default(), &mut |_| ());
    let again = || import(&store, &small("text"), Publish::Import { name: "a" });
    let found = damage()?;
    assert!(matches!(
        found[0].error,
        Error::DamagedObject { got: 10, .. }
    ));
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].paths, ["/same"]);
    let tree = fresh().open_tree(digest)?;
    assert!(matches!(
        tree.read_file("same"),
        Err(Error::DamagedObject {
            expected: 9000,
            got: 10,
            ..
        })
    ));
    again()?;
    assert!(damage()?.is_empty());
    assert_eq!(tree.read_file("same")?, pattern(9000));
    fs::remove_file(&object).expect("removing");
    assert!(matches!(
        damage()?[0].error,
        Error::DamagedObject { got: 0, .. }
    ));
    again()?;
    flip(&object, 5000);
    let found = damage()?;
    assert!(matches!(found[0].error, Error::WrongContent { .. }));
    store.discard(&[found[0].object])?;
    again()?;
    assert!(damage()?.is_empty());
    Ok(())
}

fn flip(object: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(object);
    let file = file.expect("the object");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("a byte");
    file.write_all_at(&[byte[0] ^ 4], at)
        .expect("a flipped bit");
}

#[test]
fn a_version_without_its_metadata_is_told_of_and_stands_in_nobodys_way() -> Result<()> {
    let (_dir, store) = new_store();
    let whole = import(&store, &small("whole"), Publish::Import { name: "a" })?;
    let broken = import(&store, &small("broken"), Publish::Import { name: "b" })?;
    let gone = import(&store, &small("gone"), Publish::Untagged)?;
    let image = object_path(store.path(), broken);
    let damage = || store.verify(broken, &mut Verified::default(), &mut |_| ());
    for cut in [true, false] {
        if cut {
            flip(&image, 1);
        } else {
            fs::remove_file(&image).expect("removing");
        }
        let found = damage()?;
        assert_eq!((found.len(), found[0].object), (1, broken));
        assert!(found[0].paths.is_empty());
    }
    let list = store.list()?;
    let told: Vec<_> = list.iter().map(|it| it.damage.is_some()).collect();
    assert_eq!((list.len(), told), (3, vec![false, true, false]));
    // Which objects the broken one needs is not known: all stay, and an import heals it.
    let collected = collect(&store, &[], false, 1)?;
    assert_eq!(
        (collected.versions, collected.objects, collected.unreadable),
        (vec![gone], 0, vec![broken])
    );
    import(&store, &small("broken"), Publish::Import { name: "b" })?;
    assert!(damage()?.is_empty());
    assert_eq!(store.gc(&[], false)?.objects, 2);
    assert!(
        store
            .verify(whole, &mut Verified::default(), &mut |_| ())?
            .is_empty()
    );
    Ok(())
}

#[test]
fn a_tag_remembers_what_it_named_and_goes_back() -> Result<()> {
    let (_dir, store) = new_store();
    let to = Publish::Tag {
        name: "a",
        tag: "latest",
    };
    let digests = |log: Vec<Move>| log.iter().map(|it| it.digest).collect::<Vec<_>>();
    let one = import(&store, &small("one"), to)?;
    assert!(matches!(
        store.rollback("a", "latest"),
        Err(Error::NoEarlierVersion { .. })
    ));
    let two = import(&store, &small("two"), to)?;
    let three = import(&store, &small("three"), to)?;
    import(&store, &small("three"), to)?;
    assert_eq!(digests(store.log("a", "latest")?), [three, two, one]);
    assert_eq!(store.rollback("a", "latest")?, (two, three));
    assert_eq!(store.resolve("a")?, two);
    assert_eq!(digests(store.log("a", "latest")?), [two, three, two, one]);
    // What a rollback would return to is kept, and what is pinned; what came before is not.
    store.pin(one)?;
    assert_eq!(store.pins()?, [one]);
    assert!(matches!(
        store.pin(Digest([7; 32])),
        Err(Error::NoSuchVersion { .. })
    ));
    let foresight = store.gc(&[], true)?;
    assert!(foresight.versions.is_empty() && store.versions()?.len() == 3);
    assert!(store.unpin(one)? && !store.unpin(one)?);
    let foresight = collect(&store, &[], true, 1)?;
    assert_eq!(foresight, collect(&store, &[], false, 1)?);
    assert_eq!((foresight.versions, foresight.objects), (vec![one], 2));
    let log = store.log("a", "latest")?;
    let present: Vec<bool> = log.iter().map(|it| it.present).collect();
    assert_eq!(present, [true, true, true, false]);
    assert_eq!(store.tags()?.len(), 1);
    store.remove_tag("a", "latest")?;
    import(&store, &small("four"), to)?;
    assert_eq!(store.log("a", "latest")?.len(), 1);
    Ok(())
}

/// Power fails before every single change that an import makes; each time the store opens, the
/// tag names one of the two versions, whole, and the import can be done again.
#[test]
fn a_power_cut_at_any_step_loses_nothing() -> Result<()> {
    // Few objects are made durable in another way than many.
    [1, 9].into_iter().try_for_each(power_cuts)
}

fn power_cuts(objects: usize) -> Result<()> {
    let new_archive = with_large("new", objects);
    for step in 0.. {
        let (_dir, store) = new_store();
        let old = import(
            &store,
            &small("old"),
            Publish::Tag {
                name: "a",
                tag: "latest",
            },
        )?;
        let disk = Disk::default();
        let cut = Store::open_on(store.path(), disk.clone())?;
        disk.faults.cut_at(step);
        let outcome = import(
            &cut,
            &new_archive,
            Publish::Tag {
                name: "a",
                tag: "latest",
            },
        );
        let power_failed = disk.faults.is_cut();
        disk.faults.lose_volatile();
        let store = Store::open(store.path())?;
        let now = store.resolve("a")?;
        assert!(
            now == old || store.open_tree(now)?.read_file("text")? == b"new",
            "step {step}"
        );
        let log = store.log("a", "latest")?;
        assert!(log.len() <= 2 && log.iter().any(|it| it.digest == old));
        for version in store.list()? {
            assert_eq!(
                store
                    .verify(version.digest, &mut Verified::default(), &mut |_| ())?
                    .len(),
                0,
                "step {step}"
            );
        }
        if outcome.is_ok() {
            assert_ne!(now, old, "step {step}");
        }
        let new = import(
            &store,
            &new_archive,
            Publish::Tag {
                name: "a",
                tag: "latest",
            },
        )?;
        assert_eq!(
            store
                .verify(new, &mut Verified::default(), &mut |_| ())?
                .len(),
            0,
            "step {step}"
        );
        assert_eq!(store.resolve("a")?, new);
        store.gc(&[], false)?;
        assert_eq!(
            fs::read_dir(store.path().join("tmp")).expect("tmp").count(),
            0,
            "step {step}"
        );
        if !power_failed {
            assert!(step > 10, "the import makes more changes than that");
            return Ok(());
        }
    }
    Ok(())
}

#[test]
fn an_initramfs_is_kept_as_long_as_its_version() -> Result<()> {
    let (_dir, store) = new_store();
    let to = Publish::Import { name: "a" };
    let (one, two) = (
        import(&store, &small("one"), to)?,
        import(&store, &small("two"), to)?,
    );
    assert_eq!(store.initrd(one)?, None);
    assert!(!store.reset_initrd(one)?);
    let generation = store.generation()?;
    store.use_initrd(one, b"first")?;
    store.use_initrd(two, b"second")?;
    assert_ne!(store.generation()?, generation, "the daemon must notice");
    let before = store.initrd(one)?;
    store.use_initrd(one, b"other")?;
    assert_ne!(store.initrd(one)?, before, "same size, other content");
    assert_eq!(store.read_initrd(one)?, b"other");
    assert_eq!(store.gc(&[], true)?.bytes, 0);
    store.remove_tag("a", "next")?;
    let foresight = collect(&store, &[], true, 1)?;
    assert_eq!(store.read_initrd(two)?, b"second", "only said");
    assert_eq!(foresight, collect(&store, &[], false, 1)?);
    assert!(foresight.bytes > b"second".len() as u64);
    assert_eq!(
        (store.initrd(two)?, store.read_initrd(one)?.len()),
        (None, 5)
    );
    assert!(matches!(
        store.use_initrd(two, b"x"),
        Err(Error::NoSuchVersion { .. })
    ));
    assert!(store.reset_initrd(one)? && store.initrd(one)?.is_none());
    Ok(())
}

/// An initramfs that half a power cut left would boot no node.
#[test]
fn a_power_cut_while_an_initramfs_is_replaced() -> Result<()> {
    for step in 0.. {
        let (_dir, store) = new_store();
        let version = import(&store, &small("x"), Publish::Import { name: "x" })?;
        store.use_initrd(version, b"old")?;
        let disk = Disk::default();
        let cut = Store::open_on(store.path(), disk.clone())?;
        disk.faults.cut_at(step);
        let outcome = cut.use_initrd(version, b"newer");
        let power_failed = disk.faults.is_cut();
        disk.faults.lose_volatile();
        let content = store.read_initrd(version)?;
        assert!(
            [&b"old"[..], b"newer"].contains(&&content[..]),
            "step {step}"
        );
        assert!(outcome.is_err() || content == b"newer", "step {step}");
        store.use_initrd(version, b"newest")?;
        assert_eq!(store.read_initrd(version)?, b"newest");
        if !power_failed {
            assert!(step > 3, "it makes more changes than that");
            return Ok(());
        }
    }
    Ok(())
}

#[test]
fn a_power_cut_while_a_store_is_made() -> Result<()> {
    for step in 0.. {
        let dir = TempDir::new().expect("a directory");
        let disk = Disk::default();
        disk.faults.cut_at(step);
        let made = Store::open_on(dir.path(), disk.clone()).is_ok();
        disk.faults.lose_volatile();
        import(
            &Store::open(dir.path())?,
            &small("x"),
            Publish::Import { name: "x" },
        )?;
        if made {
            return Ok(());
        }
    }
    Ok(())
}

#[test]
fn other_directories_are_not_taken_for_stores() {
    let dir = TempDir::new().expect("a directory");
    fs::write(dir.path().join("precious"), b"data").expect("a file");
    assert!(matches!(
        Store::open(dir.path()),
        Err(Error::NotAStore { .. })
    ));
    fs::write(dir.path().join("meta.json"), br#"{"version":2}"#).expect("a file");
    assert!(matches!(
        Store::open(dir.path()),
        Err(Error::NotAStore { .. })
    ));
}

/// Reads all that a tree has, as a client might.
fn read_all(tree: &StoredTree) -> Result<()> {
    tree.totals()?;
    let mut ahead = vec![tree.root()];
    let mut steps = 0;
    while let Some(nid) = ahead.pop() {
        steps += 1;
        if steps > 5000 {
            return Ok(());
        }
        let attr = tree.attr(nid)?;
        let _ = tree.xattrs(nid);
        match attr.kind {
            Kind::Directory => {
                for entry in tree.readdir(nid, 0)? {
                    let entry = entry?;
                    let _ = tree.lookup(nid, entry.name);
                    ahead.push(entry.nid);
                }
            }
            Kind::Symlink => _ = tree.readlink(nid),
            Kind::File if attr.size < 1 << 20 => _ = tree.read_inode(nid),
            _ => _ = tree.read(nid, 5, 100),
        }
    }
    Ok(())
}

#[test]
fn no_damage_makes_the_reader_panic() -> Result<()> {
    let (dir, store) = new_store();
    let digest = import(&store, &small("fuzz"), Publish::Untagged)?;
    let image = fs::read(object_path(store.path(), digest)).expect("the image");
    let lock = || File::open(dir.path()).expect("a directory");
    let try_read = |image: Vec<u8>| {
        let objects = Arc::clone(&store.objects);
        let _ =
            StoredTree::new(digest, image.into(), objects, lock()).and_then(|tree| read_all(&tree));
    };
    for at in (1024..1152).chain(9200..image.len().min(12_000)) {
        for flip in [0x01, 0x80, 0xff] {
            let mut damaged = image.clone();
            damaged[at] ^= flip;
            try_read(damaged);
        }
    }
    for len in (0..image.len()).step_by(37) {
        try_read(image[..len].to_vec());
    }
    Ok(())
}

#[test]
fn hostile_archives_are_refused() {
    use tar::EntryType as Type;
    let (_dir, store) = new_store();
    let refuses = |item: &Item<'_>| {
        let mut archive = Archive::new(Vec::new());
        add(&mut archive, item);
        let archive = archive.into_inner().expect("an archive");
        assert!(
            store.stage_tar(&archive[..], &mut |_| ()).is_err(),
            "{}",
            item.path.escape_ascii()
        );
    };
    refuses(&Item {
        path: b"../escape",
        ..ITEM
    });
    refuses(&Item {
        path: b"a/../../escape",
        ..ITEM
    });
    refuses(&Item {
        path: &[b'n'; 256],
        ..ITEM
    });
    refuses(&Item {
        path: b"link",
        kind: Type::Link,
        target: Some(b"missing"),
        ..ITEM
    });
    refuses(&Item {
        path: b"dev",
        kind: Type::Char,
        device: (5000, 0),
        ..ITEM
    });
    refuses(&Item {
        path: b"strange",
        kind: Type::new(b'Q'),
        ..ITEM
    });
    assert!(store.stage_tar(&b""[..], &mut |_| ()).is_err(), "nothing");
    assert!(
        store
            .stage_tar(&everything()[..70_000], &mut |_| ())
            .is_err(),
        "cut off"
    );
}
