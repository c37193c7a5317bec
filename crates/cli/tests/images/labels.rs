//! SELinux labels: kept by imports and exports, restored by the image's own policy after a change.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::disk::{Disk, Kind};
use crate::rig::{Slate, busybox_root, impossible, write};

const LABEL: &str = "security.selinux";
const PROGRAMS: [&str; 3] = ["/bin/busybox", "/usr/sbin/setfiles", "/usr/sbin/mkfs.ext4"];

fn label(path: &Path) -> Option<String> {
    let mut value = [0; 256];
    let len = rustix::fs::lgetxattr(path, LABEL, &mut value).ok()?;
    let text = String::from_utf8_lossy(&value[..len]);
    Some(text.trim_end_matches('\0').to_owned())
}

fn set(path: &Path, label: &str) {
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::lsetxattr(path, LABEL, label.as_bytes(), flags).expect("a label");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// Puts a program of this machine into an image, with its libraries.
fn install(program: &str, root: &Path) {
    let output = Command::new("ldd")
        .arg(program)
        .output()
        .expect("ldd starts");
    let listed = String::from_utf8_lossy(&output.stdout).into_owned();
    let libraries = listed.split_whitespace().filter(|it| it.starts_with('/'));
    for path in libraries.chain([program]) {
        let target = root.join(path.trim_start_matches('/'));
        fs::create_dir_all(target.parent().expect("a parent")).expect("a directory");
        fs::copy(path, target).expect("a file");
    }
}

#[test]
#[ignore = "changes images as root: cargo xtask test"]
fn what_changed_has_the_labels_of_the_images_policy() {
    if impossible(&PROGRAMS) {
        return;
    }
    // Labels can be kept there whatever this machine's own disk can.
    let disk = Disk::new(Kind::Ext4, 200);
    let slate = Slate::on(&disk);
    let (root, seen) = (disk.path().join("root"), disk.seen().join("root"));
    busybox_root(&seen);
    install("/usr/sbin/setfiles", &seen);
    let policy = "/.* system_u:object_r:default_t:s0\n/etc(/.*)? system_u:object_r:etc_t:s0\n\
                  /etc/motd -- system_u:object_r:motd_t:s0\n/srv/\\[x\\]\\* -- system_u:object_r:odd_t:s0\n";
    write(
        &seen.join("etc/selinux/config"),
        "SELINUX=enforcing\nSELINUXTYPE=test\n",
    );
    write(
        &seen.join("etc/selinux/test/contexts/files/file_contexts"),
        policy,
    );
    for (name, own) in [("same", "same_t"), ("replaced", "etc_t")] {
        write(&seen.join("etc").join(name), "content");
        set(
            &seen.join("etc").join(name),
            &format!("system_u:object_r:{own}:s0"),
        );
    }
    slate.run(&["image", "import", "bare", text(&root)]);
    // An image counts as labelled by these.
    for directory in [&seen, &seen.join("usr")] {
        set(directory, "system_u:object_r:default_t:s0");
    }
    slate.run(&["image", "import", "x", text(&root)]);
    let script = "echo hello > /etc/motd; mkdir /etc/new; echo x > /etc/new/file; \
                  echo other > /etc/draft; mv /etc/draft /etc/replaced; mkdir /srv; echo x > '/srv/[x]*'";
    slate.run(&[
        "image",
        "run",
        "x",
        "--network",
        "off",
        "--",
        "sh",
        "-c",
        script,
    ]);
    slate.run(&["image", "export", "x:next", text(&disk.path().join("out"))]);
    let out = disk.seen().join("out");
    let expected = [
        // Nobody touched it: it keeps what it came with, which the policy does not have.
        ("etc/same", "same_t"),
        ("etc/motd", "motd_t"),
        ("etc/new", "etc_t"),
        ("etc/new/file", "etc_t"),
        ("etc/replaced", "etc_t"),
        ("srv", "default_t"),
        ("srv/[x]*", "odd_t"),
    ];
    for (path, kind) in expected {
        let wanted = format!("system_u:object_r:{kind}:s0");
        assert_eq!(label(&out.join(path)), Some(wanted), "{path}");
    }
    assert_eq!(
        label(&out.join("bin/busybox")),
        None,
        "it was not labelled before"
    );

    all_of_an_image_without_labels_gets_them(&slate, &disk);

    // An image with a policy that nothing can apply says so.
    slate.run(&[
        "image",
        "run",
        "x:next",
        "--",
        "sh",
        "-c",
        "rm /usr/sbin/setfiles",
    ]);
    let change = [
        "image",
        "run",
        "x:next",
        "--replace",
        "--",
        "sh",
        "-c",
        "echo > /etc/more",
    ];
    let output = slate.output(&change);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success() && said.contains("install policycoreutils"),
        "{said}"
    );
}

/// What nobody touched too, and the directories that are mounted over while programs run.
fn all_of_an_image_without_labels_gets_them(slate: &Slate, disk: &Disk) {
    slate.run(&["image", "run", "bare", "--network", "off", "--", "true"]);
    let bare = disk.path().join("bare");
    slate.run(&["image", "export", "bare:next", text(&bare)]);
    let out = disk.seen().join("bare");
    for (path, kind) in [
        ("", "default_t"),
        ("bin/busybox", "default_t"),
        ("dev", "default_t"),
        ("tmp", "default_t"),
        ("etc/same", "etc_t"),
        ("usr/sbin/setfiles", "default_t"),
    ] {
        let wanted = format!("system_u:object_r:{kind}:s0");
        assert_eq!(label(&out.join(path)), Some(wanted), "{path}");
    }
    let again = slate.output(&[
        "image",
        "run",
        "bare:next",
        "--network",
        "off",
        "--",
        "true",
    ]);
    let said = String::from_utf8_lossy(&again.stdout).into_owned();
    assert!(said.contains("Nothing changed"), "{said}");
}

#[test]
#[ignore = "changes images as root: cargo xtask test --full"]
fn full_debians_own_policy_labels_what_changed() {
    if impossible(&["/usr/bin/mmdebstrap", "/usr/sbin/mkfs.ext4"]) {
        return;
    }
    let disk = Disk::new(Kind::Ext4, 8000);
    let slate = Slate::on(&disk);
    slate.run(&["image", "build", "x", "--from", "debian:bookworm"]);
    let install = "apt-get -qq update && apt-get -qq install --yes --no-install-recommends \
                   selinux-policy-default policycoreutils && apt-get clean";
    slate.run(&["image", "run", "x", "--", "sh", "-c", install]);
    let change = "useradd --create-home somebody; cp /bin/true /usr/bin/new-program; \
                  echo 'x 1' > /etc/new.conf; mkdir -p /var/log/new; echo x > /var/log/new/log";
    slate.run(&["image", "run", "x:next", "--", "sh", "-c", change]);
    slate.run(&["image", "export", "x:next", text(&disk.path().join("out"))]);
    let expected = [
        ("etc/selinux/config", "selinux_config_t"),
        ("etc/shadow", "shadow_t"),
        ("usr/bin/new-program", "bin_t"),
        ("etc/new.conf", "etc_t"),
        ("var/log/new/log", "var_log_t"),
        ("usr/sbin/setfiles", "setfiles_exec_t"),
    ];
    let out = disk.seen().join("out");
    for (path, kind) in expected {
        let label = label(&out.join(path)).unwrap_or_default();
        assert!(label.contains(&format!(":{kind}:")), "{path}: {label}");
    }
}
