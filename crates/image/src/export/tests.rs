//! What is exported and imported again has the digest that it had.

use std::path::Path;
use std::process::Command;

use super::*;
use crate::store::tests::{everything, everything_for, is_root, new_store};

#[test]
fn a_tar_comes_back_as_the_same_version() -> Result<()> {
    let (_dir, store) = new_store();
    let staged = store.stage_tar(&everything()[..], &mut |_| ())?;
    let write = || {
        let mut archive = Vec::new();
        write_tar(
            staged.tree(),
            Form::Root,
            &mut archive,
            Path::new("-"),
            &mut |_| (),
        )
        .map(|_| archive)
    };
    let archive = write()?;
    assert!(archive == write()?, "one version has one archive");
    let again = store.stage_tar(&archive[..], &mut |_| ())?;
    assert_eq!(again.digest(), staged.digest());
    assert!(again.skipped().is_empty());
    Ok(())
}

#[test]
fn archives_are_compressed_as_their_names_say_and_left_whole_or_not_at_all() -> Result<()> {
    let (dir, store) = new_store();
    let staged = store.stage_tar(&everything()[..], &mut |_| ())?;
    let folder = dir.path().join("archives");
    std::fs::create_dir(&folder).expect("a directory");
    let starts: [(&str, &[u8]); 4] = [
        ("a.tar", b""),
        ("a.tar.gz", b"\x1f\x8b"),
        ("a.tgz", b"\x1f\x8b"),
        ("a.tar.zst", b"\x28\xb5\x2f\xfd"),
    ];
    for (name, start) in starts {
        let path = folder.join(name);
        write_archive(staged.tree(), Form::Root, &path, &mut |_| ())?;
        let archive = std::fs::read(&path).expect("an archive");
        assert!(archive.starts_with(start), "{name}");
        let again = store.stage_tar(&archive[..], &mut |_| ())?;
        assert_eq!(again.digest(), staged.digest(), "{name}");
    }
    for name in ["a", "a.zip", ".tar"] {
        let refused = write_archive(staged.tree(), Form::Root, &folder.join(name), &mut |_| ());
        assert!(matches!(refused, Err(Error::BadTarget { .. })), "{name}");
    }
    let count = std::fs::read_dir(&folder).expect("a directory").count();
    assert_eq!(count, starts.len());
    Ok(())
}

#[test]
fn gnu_tar_reads_what_is_written() -> Result<()> {
    let (dir, store) = new_store();
    let staged = store.stage_tar(&everything()[..], &mut |_| ())?;
    let path = dir.path().join("out.tar");
    let mut file = File::create(&path).expect("a file");
    write_tar(staged.tree(), Form::Root, &mut file, &path, &mut |_| ())?;
    let Ok(listed) = Command::new("tar").arg("-tvf").arg(&path).output() else {
        println!("skipped: no tar here");
        return Ok(());
    };
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.status.success(), "{listed:?}");
    assert!(text.contains("link to a/hard"), "{text}");
    assert!(
        text.contains("3145728 "),
        "the size of a sparse file: {text}"
    );
    Ok(())
}

#[test]
fn a_directory_comes_back_as_the_same_version() -> Result<()> {
    if !is_root() {
        println!("skipped: not root");
        return Ok(());
    }
    let (dir, store) = new_store();
    let staged = store.stage_tar(&everything_for(dir.path())[..], &mut |_| ())?;
    let target = dir.path().join("out");
    write_dir(staged.tree(), Form::Root, &target, &mut |_| ())?;
    let again = store.stage_dir(&target, &mut |_| ())?;
    assert_eq!(again.skipped(), []);
    assert_eq!(again.digest(), staged.digest());
    let full = write_dir(staged.tree(), Form::Root, &target, &mut |_| ());
    assert!(matches!(full, Err(Error::BadTarget { .. })));
    let left: Vec<_> = dir.path().read_dir().expect("a directory").collect();
    assert_eq!(left.len(), 2, "the store and the export: {left:?}");
    Ok(())
}

#[test]
fn a_container_image_comes_back_as_the_same_version() -> Result<()> {
    let (dir, store) = new_store();
    let staged = store.stage_tar(&everything()[..], &mut |_| ())?;
    let write = || {
        let mut archive = Vec::new();
        let path = Path::new("-");
        write_tar(staged.tree(), Form::Oci, &mut archive, path, &mut |_| ()).map(|_| archive)
    };
    let archive = write()?;
    assert!(archive == write()?, "one version has one container image");
    assert_eq!(
        store.stage_tar(&archive[..], &mut |_| ())?.digest(),
        staged.digest()
    );
    let layout = dir.path().join("layout");
    write_dir(staged.tree(), Form::Oci, &layout, &mut |_| ())?;
    assert_eq!(
        store.stage_layout(&layout, &mut |_| ())?.digest(),
        staged.digest()
    );
    let packed = dir.path().join("packed.tar.zst");
    write_archive(staged.tree(), Form::Oci, &packed, &mut |_| ())?;
    let file = File::open(&packed).expect("an archive");
    assert_eq!(
        store.stage_file(file, &mut |_| ())?.digest(),
        staged.digest()
    );
    let full = write_dir(staged.tree(), Form::Oci, &layout, &mut |_| ());
    assert!(matches!(full, Err(Error::BadTarget { .. })));
    Ok(())
}

#[test]
fn a_name_that_a_layer_cannot_have_is_told_of() -> Result<()> {
    let (dir, store) = new_store();
    let source = dir.path().join("source");
    std::fs::create_dir_all(source.join("a")).expect("a directory");
    std::fs::write(source.join("a/.wh.b"), "").expect("a file");
    let staged = store.stage_dir(&source, &mut |_| ())?;
    let mut archive = Vec::new();
    let refused = write_tar(
        staged.tree(),
        Form::Oci,
        &mut archive,
        Path::new("-"),
        &mut |_| (),
    );
    assert!(matches!(refused, Err(Error::BadSource { path, .. }) if path == "a/.wh.b"));
    assert!(archive.is_empty());
    // A plain archive can have it, and an import of one takes nothing away.
    write_tar(
        staged.tree(),
        Form::Root,
        &mut archive,
        Path::new("-"),
        &mut |_| (),
    )?;
    let again = store.stage_tar(&archive[..], &mut |_| ())?;
    assert_eq!(again.digest(), staged.digest());
    Ok(())
}
