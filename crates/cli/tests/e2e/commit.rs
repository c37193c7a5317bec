//! What a running node has written becomes a version of its image.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use crate::harness::{Site, impossible, text};
use crate::native::{self, initrd, power_on};
use crate::orders::{fails, wait_connected};

/// What versions have of all kinds, and what no version may have of a node.
const CHANGE: &str = r#"
    set -e
    echo added > /etc/added
    rm /etc/issue.net
    rm -r /usr/share/debianutils; mkdir /usr/share/debianutils; echo anew > /usr/share/debianutils/anew
    mkdir /opt/tool; cp /bin/true /opt/tool/tool; ln /opt/tool/tool /opt/tool/second
    setcap cap_net_raw+ep /opt/tool/tool; chown 1234:60000 /opt/tool
    truncate -s 1G /opt/tool/sparse; echo end >> /opt/tool/sparse
    head -c 3000000 /dev/urandom > /opt/tool/random; sha256sum < /opt/tool/random
    touch "/opt/tool/$(printf '%0255d' 7)"
    mkdir -p /home/user /mnt/other; echo x > /home/user/file; echo x > /var/log/own; echo x > /tmp/own
    mount -t tmpfs tmpfs /mnt/other; echo x > /mnt/other/file
    echo x >> /etc/hostname
"#;

#[test]
#[ignore = "boots machines: cargo xtask test"]
fn what_a_node_has_written_becomes_the_next_version() {
    if impossible(&native::TOOLS) {
        return;
    }
    let mut site = Site::new("debian12", &[]);
    site.give_own_store();
    let old = site.digest.clone();
    let initrd = initrd(&site);
    let machine = power_on(&site, &initrd, 1);
    site.wait_up(machine.mac(), 1);
    wait_connected(&site, "node1");
    let sum = site.slate(&["node", "run", "node1", CHANGE]);

    // What a directory that was made anew hides is listed, too.
    let changes = site.slate_json(&["node", "diff", "node1", "--json"]);
    let changes = changes.as_array().expect("a list");
    let change_of = |path: &str| {
        let mut of = changes.iter().filter(|it| it["path"] == path);
        of.next().map(|it| text(it, "change"))
    };
    let removed = |path: &str| change_of(path).as_deref() == Some("removed");
    assert!(removed("/usr/share/debianutils/shells"), "{changes:?}");
    assert!(removed("/etc/issue.net"), "{changes:?}");
    assert_eq!(
        change_of("/usr/share/debianutils/anew").as_deref(),
        Some("added")
    );

    let commit = ["image", "commit", "debian12", "--from", "node1"];
    let key = "printf -- '-----BEGIN OPENSSH PRIVATE KEY-----\n' > /opt/tool/key";
    site.slate(&["node", "run", "node1", key]);
    let refused = fails(&site, &commit);
    assert!(refused.contains("/opt/tool/key"), "{refused}");
    assert!(refused.contains("private key"), "{refused}");
    site.slate(&["node", "run", "node1", "rm /opt/tool/key"]);

    let made = site.slate_json(&[&commit[..], &["--json"]].concat());
    assert_eq!(text(&made, "tag"), "next");
    assert_eq!(text(&made, "base"), old);
    let kept = site.slate_json(&["image", "show", "debian12", "--json"]);
    assert_eq!(text(&kept, "digest"), old, "only :next moves");
    let out = site.path("out");
    let place = out.to_str().expect("a path in UTF-8");
    site.slate(&["image", "export", "debian12:next", place]);
    check(&out, &sum);
    let left = std::fs::read_dir(site.path("state/uploads")).expect("a directory");
    assert_eq!(left.count(), 0, "uploads are removed");

    // What is there by now is not replaced unawares, and a part can be taken alone.
    let refused = fails(&site, &commit);
    assert!(refused.contains("--replace"), "{refused}");
    let part = site.slate_json(&[&commit[..], &["/etc/added", "--replace", "--json"]].concat());
    assert_eq!(part["added"], 1, "{part}");
    assert_eq!(part["removed"], 0, "{part}");
    let whole = fails(&site, &[&commit[..], &["/etc/machine-id"]].concat());
    assert!(whole.contains("belongs to one node"), "{whole}");
}

/// Looks at the new version, as a directory.
fn check(out: &Path, sum: &str) {
    let there = |path: &str| out.join(path).symlink_metadata().is_ok();
    for (path, expected) in [
        ("etc/added", true),
        ("etc/issue.net", false),
        ("usr/share/debianutils/anew", true),
        ("usr/share/debianutils/shells", false),
        ("usr/share/base-files/motd", true),
        ("home/user", false),
        ("var/log/own", false),
        ("tmp/own", false),
        ("mnt/other", false),
        ("etc/ssh/ssh_host_ed25519_key", false),
    ] {
        assert_eq!(there(path), expected, "{path}");
    }
    assert!(there(&format!("opt/tool/{}", "0".repeat(254) + "7")));
    let meta = |path: &str| std::fs::metadata(out.join(path)).expect(path);
    let (tool, second) = (meta("opt/tool/tool"), meta("opt/tool/second"));
    assert_eq!((tool.ino(), tool.nlink()), (second.ino(), 2));
    let folder = meta("opt/tool");
    assert_eq!((folder.uid(), folder.gid()), (1234, 60000));
    let sparse = meta("opt/tool/sparse");
    assert_eq!(sparse.len(), (1 << 30) + 4);
    assert!(sparse.blocks() < 1000, "{} blocks", sparse.blocks());
    let run = |program: &str, file: &str| {
        let output = Command::new(program).arg(out.join(file)).output();
        let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let capabilities = run("/usr/sbin/getcap", "opt/tool/tool");
    assert!(capabilities.contains("cap_net_raw=ep"), "{capabilities}");
    let got = run("sha256sum", "opt/tool/random");
    assert_eq!(got.split(' ').next(), sum.split(' ').next());
}
