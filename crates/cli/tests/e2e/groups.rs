//! What the nodes of a group are given, on nodes.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lab::Machine;

use crate::harness::{PATIENCE, Site, guest, impossible, log_in, script};
use crate::native::{self, initrd, power_on_with};

/// Settings of every kind. The disks: a blank one, one that holds something else, none at all.
const INVENTORY: &str = r#"
[networks."10.77.0.0/24"]
routers = ["10.77.0.1"]

[groups.all.network]
dns = ["10.77.0.1"]
search = ["lab.example.org", "example.org"]
time = ["10.77.0.1"]

[groups.all.files."/etc/list"]
template = true
content = """
{% for node in nodes %}
{{ node.name }} is in {{ node.groups|join(" and ") }}.
{% endfor %}
This is {{ name }}.
"""

[groups.gpu]
upper_size = "40M"
journal_size = "8M"
kernel_args = "slate.note=gpu"

[groups.gpu.mounts."/mnt/the image"]
source = "10.77.0.1:/images/DIGEST"
options = "ro,vers=4.2,addr=10.77.0.1,clientaddr=10.77.0.9"

[groups.gpu.disks."/scratch"]
device = "/dev/ubda"

[groups.gpu.disks."/foreign"]
device = "/dev/ubdb"

[groups.gpu.disks."/var/lib/docker"]
device = "/dev/none"

[groups.gpu.disks.swap]
device = "/dev/ubdc"

[groups.gpu.files."/etc/munge/munge.key"]
secret = "munge"
owner = "mail:www-data"
mode = "0440"

[nodes.gpu1]
mac = "52:77:00:00:00:01"
address = "10.77.0.9"
groups = ["gpu"]
"#;

/// Two blank disks, and one that holds swap space, with a mark behind its signature.
const MAKE_DISKS: &str = "cd \"$1\" && truncate -s 64M scratch swap foreign && \
    mkswap -q foreign && echo mine | dd of=foreign bs=1M seek=8 conv=notrunc status=none";

#[test]
#[ignore = "boots machines: cargo xtask test"]
fn a_group_s_mounts_disks_files_and_secrets_reach_its_nodes() {
    if impossible(&native::TOOLS) {
        return;
    }
    let site = Site::new("debian12", &[]);
    let file = |name: &str, content: &[u8]| {
        let path = site.path(name);
        std::fs::write(&path, content).expect("a file");
        path.to_str().expect("a path in UTF-8").to_owned()
    };
    let secret = file("secret", b"\xff\x00key");
    site.slate(&["secret", "set", "munge", &secret]);
    let inventory = INVENTORY.replace("DIGEST", &site.digest);
    let applied = site.slate(&["apply", &file("slate.toml", inventory.as_bytes())]);
    assert!(
        applied.contains("1 network, 2 groups, 1 node changed."),
        "{applied}"
    );
    let exported = site.slate(&["export"]);
    let again = site.slate(&["apply", "--prune", &file("again.toml", exported.as_bytes())]);
    assert_eq!(again, "Nothing to change.\n");

    let disks = site.path("disks");
    std::fs::create_dir(&disks).expect("a directory");
    script(MAKE_DISKS, &disks);
    let foreign = std::fs::read(disks.join("foreign")).expect("a disk");
    let initrd = initrd(&site);
    let machine = power_on(&site, &initrd, &disks);
    site.wait_up(machine.mac(), 1);
    let console = machine.console();
    log_in(console);

    assert_eq!(
        guest(console, "cat /etc/list"),
        "gpu1 is in gpu.\nThis is gpu1."
    );
    assert_eq!(
        guest(console, "od -An -c /etc/munge/munge.key"),
        "377  \\0   k   e   y"
    );
    let owner = guest(console, "stat -c '%U:%G %a' /etc/munge/munge.key");
    assert_eq!(owner, "mail:www-data 440");
    assert_eq!(
        guest(
            console,
            "readlink -f /sbin/init; cat '/mnt/the image/etc/debian_version'"
        ),
        guest(console, "readlink -f /sbin/init; cat /etc/debian_version")
    );
    let mounted = guest(
        console,
        "findmnt -no FSTYPE,SOURCE /scratch; findmnt -no FSTYPE '/mnt/the image'",
    );
    let mounted: Vec<&str> = mounted.split_whitespace().collect();
    assert_eq!(mounted, ["ext4", "/dev/ubda", "nfs4"]);
    assert_eq!(
        guest(console, "swapon --show=NAME --noheadings"),
        "/dev/ubdc"
    );
    let size = guest(console, "df --output=size -k / | tail -n 1");
    assert_eq!(size.trim(), "40960");
    let masked = guest(
        console,
        "systemctl is-enabled sleep.target suspend.target || true",
    );
    assert_eq!(
        masked.split_whitespace().collect::<Vec<_>>(),
        ["masked-runtime"; 2]
    );
    let resolver = guest(console, "cat /etc/resolv.conf");
    assert!(resolver.contains("nameserver 10.77.0.1"), "{resolver}");
    assert!(
        resolver.contains("search lab.example.org example.org"),
        "{resolver}"
    );
    assert!(guest(console, "ip route").contains("default via 10.77.0.1"));
    assert!(guest(console, "cat /proc/cmdline").contains("slate.note=gpu"));
    // What it wrote is in root's reach, and nobody else's.
    assert_eq!(
        guest(console, "cat /run/slate/upper/data/etc/hostname"),
        "gpu1"
    );
    guest(
        console,
        "! setpriv --reuid=1000 --clear-groups ls /run/slate/upper",
    );

    // Nothing stood in the way of the boot, and what went wrong is known here.
    wait_failed(
        &site,
        &machine,
        "/dev/ubdb: it holds swap, so it is left alone",
    );
    wait_failed(&site, &machine, "/dev/none: no such disk after 20 s");
    let times = |event: &serde_json::Value| {
        let text = event["text"].as_str().unwrap_or_default();
        text.contains("started in ") && text.contains(", initramfs ")
    };
    let end = Instant::now() + PATIENCE;
    while !site.events(machine.mac(), "info").iter().any(times) {
        assert!(Instant::now() < end, "no times of the boot");
        std::thread::sleep(Duration::from_millis(500));
    }

    // A disk outlives what is written to the root.
    guest(
        console,
        "echo kept > /scratch/file; echo lost > /root/file; sync",
    );
    drop(machine);
    let machine = power_on(&site, &initrd, &disks);
    site.wait_up(machine.mac(), 2);
    let console = machine.console();
    log_in(console);
    assert_eq!(guest(console, "cat /scratch/file; ls /root"), "kept");
    assert!(std::fs::read(disks.join("foreign")).expect("a disk") == foreign);
}

fn power_on(site: &Site, initrd: &Path, disks: &Path) -> Machine {
    let plan = site.slate_json(&["node", "plan", "gpu1", "--json"]);
    let plan = plan["cmdline"].as_str().expect("a command line");
    let disk = |name: &str| disks.join(name);
    let named: [(char, PathBuf); 3] = [
        ('a', disk("scratch")),
        ('b', disk("foreign")),
        ('c', disk("swap")),
    ];
    let options: String = named
        .iter()
        .map(|(letter, path)| format!(" ubd{letter}={}", path.display()))
        .collect();
    power_on_with(site, initrd, 1, &format!("{plan}{options}"))
}

/// Waits until a node has told of a failure in these words.
fn wait_failed(site: &Site, machine: &Machine, wanted: &str) {
    let end = Instant::now() + PATIENCE;
    loop {
        let failed = site.events(machine.mac(), "failed");
        let tells = |event: &serde_json::Value| {
            event["text"].as_str().is_some_and(|it| it.contains(wanted))
        };
        if failed.iter().any(tells) {
            return;
        }
        assert!(Instant::now() < end, "{wanted} not in {failed:?}");
        std::thread::sleep(Duration::from_millis(500));
    }
}
