//! The service on a machine with systemd: a node is one, with a network of its own to serve.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lab::{Console, Network, Tool, Uml};

use crate::harness::{PATIENCE, Site, address, assert_running, guest, impossible, log_in};
use crate::native::{self, initrd, power_on_sized};

/// The node holds copies of a binary that was built for debugging.
const MEMORY_MIB: u32 = 640;

#[test]
#[ignore = "boots machines: cargo xtask test"]
fn the_service_is_installed_survives_its_daemon_and_leaves_nothing() {
    if impossible(&[&native::TOOLS[..], &[Tool::SshClient]].concat()) {
        return;
    }
    let keys = tempfile::tempdir().expect("a temporary directory");
    let key = ssh_key(keys.path());
    let public = key.with_extension("pub");
    let site = Site::new(
        "debian12",
        &["--ssh-key", public.to_str().expect("a path in UTF-8")],
    );
    let machine = power_on_sized(&site, &initrd(&site), 1, MEMORY_MIB);
    site.wait_up(machine.mac(), 1);
    let console = machine.console();
    log_in(console);
    let copy = |from: &Path, to: &str| {
        let mut ssh = Network::ssh(address(&site, machine.mac()), &key, &format!("cat > {to}"));
        ssh.stdin(Stdio::from(File::open(from).expect("a file to copy")));
        let done = site.network.run(ssh).expect("ssh starts");
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "copying {to}: {said}");
    };
    copy(Path::new(env!("CARGO_BIN_EXE_slate")), "/root/slate");
    for module in MODULES {
        let modules = Uml::modules().expect("its modules are installed");
        let name = module.rsplit('/').next().unwrap_or_default();
        copy(
            &modules.join(format!("kernel/{module}.ko")),
            &format!("/root/{name}.ko"),
        );
    }
    let version = console.run("chmod +x /root/slate && /root/slate --version", PATIENCE);
    let version = version.expect("an answer");
    if version.text.contains("GLIBC") {
        println!("skipped: the guest's C library is older than this machine's");
        return;
    }
    assert_eq!(version.status, 0, "{}", version.text);
    guest(console, &lines(NETWORK));

    installs(console);
    survives_a_kill(console);
    takes_other_options(console);
    uninstalls(console);
    assert_running(console);
    gives_way_to_the_kernel_s_nfs_server(console);
}

pub(crate) fn ssh_key(folder: &Path) -> PathBuf {
    let key = folder.join("key");
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(&key)
        .status();
    assert!(made.expect("ssh-keygen starts").success());
    key
}

/// The driver of a pair of interfaces that are each other's far end, and the kernel's NFS server
/// with what it needs, in the order in which they can be loaded.
const MODULES: [&str; 5] = [
    "drivers/net/veth",
    "lib/oid_registry",
    "net/sunrpc/auth_gss/auth_rpcgss",
    "fs/nfs_common/nfs_acl",
    "fs/nfsd/nfsd",
];

const NETWORK: &str = "insmod /root/veth.ko
    ip link add serve type veth peer name far
    ip address add 10.99.0.1/24 dev serve
    ip link set serve up
    ip link set far up";

/// A script as one line for the console.
fn lines(script: &str) -> String {
    let lines: Vec<&str> = script.lines().map(str::trim).collect();
    lines.join(" && ")
}

fn installs(console: &Console) {
    let install = "/root/slate service install --interface serve --dhcp authoritative";
    let nobody = "cp /root/slate /tmp && cd / && setpriv --reuid=65534 --clear-groups";
    let nobody = format!("{nobody} {}", install.replace("/root", "/tmp"));
    let as_nobody = console.run(&nobody, PATIENCE).expect("an answer");
    assert_eq!(as_nobody.status, 3, "{}", as_nobody.text);
    assert!(
        as_nobody.text.contains("run it as root"),
        "{}",
        as_nobody.text
    );
    guest(console, "rm /tmp/slate");
    let without_image = console.run(install, PATIENCE).expect("an answer");
    assert_eq!(without_image.status, 3, "{}", without_image.text);
    assert!(
        without_image.text.contains("slate image build"),
        "{}",
        without_image.text
    );
    assert_eq!(
        guest(console, "ls /etc/systemd/system | grep slate || :"),
        ""
    );

    guest(
        console,
        "mkdir -p /root/empty/etc && /root/slate image import tiny /root/empty",
    );
    println!("{}", guest(console, install));
    assert_eq!(guest(console, "systemctl is-active slate"), "active");
    assert_eq!(guest(console, "systemctl is-enabled slate"), "enabled");
    let shown = guest(
        console,
        "systemctl show slate --property=Type,Restart,NFileDescriptorStore --value",
    );
    let mut shown: Vec<&str> = shown.lines().collect();
    shown.sort_unstable();
    assert_eq!(shown, ["1", "always", "notify"]);
    let nodes = guest(console, "/usr/local/bin/slate node list");
    assert!(nodes.starts_with("No node was seen yet"), "{nodes}");
}

/// A client that comes while the daemon is dead waits and is served by the next one.
fn survives_a_kill(console: &Console) {
    let listening = inode(console, 2049);
    guest(console, &lines(LATER));
    guest(console, &format!("cat > /root/call <<'end'\n{CALL}\nend"));
    let called = guest(console, "bash /root/call");
    let expected = format!("activating\n{REPLY}");
    assert_eq!(called, expected, "what became of the call");
    assert_eq!(guest(console, "systemctl is-active slate"), "active");
    assert_eq!(inode(console, 2049), listening, "another socket listens");
    assert_ne!(
        guest(console, "systemctl show slate --property=NRestarts"),
        "NRestarts=0"
    );
    let said = guest(console, "journalctl --unit slate --output cat --no-pager");
    assert!(!said.contains("is taken"), "{said}");
    guest(console, "/usr/local/bin/slate node list");
    guest(
        console,
        "rm -r /run/systemd/system/slate.service.d && systemctl daemon-reload",
    );
}

/// Lets the next daemon be late, so that the call comes before it on any machine.
const LATER: &str = "mkdir -p /run/systemd/system/slate.service.d
    printf '[Service]\\nRestartSec=10\\n' > /run/systemd/system/slate.service.d/later.conf
    systemctl daemon-reload";

/// Kills the daemon, calls the NFS server's NULL procedure over a new connection before there is
/// another daemon, and prints the reply (RFC 5531, section 9).
const CALL: &str = r#"pid=$(systemctl show slate --property=MainPID --value)
kill -KILL $pid
while kill -0 $pid 2> /dev/null; do :; done
exec 3<> /dev/tcp/10.99.0.1/2049 || exit
systemctl is-active slate
printf '\x80\0\0\x28seed\0\0\0\0\0\0\0\2\0\1\x86\xa3\0\0\0\4\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0' >&3
head -c 28 <&3 | od -A n -t x1 -v | tr -d ' \n'"#;

/// A fragment of 24 bytes, the call's id, a reply, accepted, no verifier, success.
const REPLY: &str = "80000018736565640000000100000000000000000000000000000000";

/// The one listening socket on a port.
fn inode(console: &Console, port: u16) -> String {
    let listeners =
        format!("awk '$4 == \"0A\" && $2 ~ /:{port:04X}$/ {{ print $10 }}' /proc/net/tcp");
    let found = guest(console, &listeners);
    assert_eq!(found.lines().count(), 1, "listeners on {port}: {found}");
    found
}

/// What was kept for one set of options does not stand in the way of another.
fn takes_other_options(console: &Console) {
    let install = "/usr/local/bin/slate service install --interface serve --dhcp authoritative";
    let same = guest(console, install);
    assert!(same.contains("runs already as asked"), "{same}");
    guest(console, &format!("{install} --nfs-port 2055"));
    inode(console, 2055);
    let gone = guest(console, "grep -c ':0801 .* 0A ' /proc/net/tcp || :");
    assert_eq!(gone, "0", "nobody asked for port 2049");
}

fn uninstalls(console: &Console) {
    const TRACES: &str = "ls -d /usr/local/bin/slate /etc/systemd/system/slate.service \
        /etc/systemd/system/multi-user.target.wants/slate.service /etc/slate /run/slate/control \
        2> /dev/null || :; awk '$4 == \"0A\" && $2 ~ /^0100630A:/' /proc/net/tcp";
    println!(
        "{}",
        guest(console, "/usr/local/bin/slate service uninstall")
    );
    assert_eq!(guest(console, TRACES), "");
    let state = guest(console, "systemctl is-active slate || :");
    assert_eq!(state, "inactive");
    let kept = guest(console, "ls /var/lib/slate");
    for file in ["keys", "state.db", "store"] {
        assert!(
            kept.split_whitespace().any(|it| it == file),
            "{file} not in {kept}"
        );
    }
    println!(
        "{}",
        guest(console, "/root/slate service uninstall --purge")
    );
    assert_eq!(
        guest(
            console,
            "ls -d /var/lib/slate 2>&1 | grep -v 'No such' || :"
        ),
        ""
    );
    assert_eq!(guest(console, TRACES), "");
}

/// Port 2049 has an owner without a process.
fn gives_way_to_the_kernel_s_nfs_server(console: &Console) {
    guest(console, &lines(KERNEL_NFS));
    guest(console, "/root/slate image import tiny /root/empty");
    let up = "timeout 240 /root/slate up --interface serve --dhcp authoritative";
    let refused = console.run(&format!("{up} --nfs-port 2049"), PATIENCE);
    let refused = refused.expect("an answer");
    assert_eq!(refused.status, 3, "{}", refused.text);
    let owner = "taken by the kernel's NFS server (nfs-server.service)";
    assert!(refused.text.contains(owner), "{}", refused.text);
    guest(console, &format!("cat > /root/serve <<'end'\n{SERVE}\nend"));
    let served = guest(console, &format!("sh /root/serve {up}"));
    assert!(served.contains(owner), "{served}");
    assert!(served.contains("nodes are told to use 2050"), "{served}");
}

/// Runs a daemon until it serves, or ends; what it said.
const SERVE: &str = r#""$@" > /run/said 2>&1 &
until grep -qs Ctrl-C /run/said || ! kill -0 $!; do sleep 0.2; done
kill $!
wait $!
cat /run/said"#;

const KERNEL_NFS: &str = "insmod /root/oid_registry.ko
    insmod /root/auth_rpcgss.ko
    insmod /root/nfs_acl.ko
    insmod /root/nfsd.ko
    mount -t nfsd nfsd /proc/fs/nfsd
    echo '-3 +4' > /proc/fs/nfsd/versions
    echo 'tcp 2049' > /proc/fs/nfsd/portlist
    echo 1 > /proc/fs/nfsd/threads";
