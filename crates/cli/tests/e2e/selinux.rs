//! A node whose image has a SELinux policy and labels runs with the policy enforced. User-Mode
//! Linux has SELinux, and has it on unless told otherwise.

use std::path::Path;

use lab::{MacAddress, Machine, Network, Tool};

use crate::harness::{PATIENCE, Site, address, assert_running, guest, impossible};
use crate::native::{self, initrd, power_on_sized};
use crate::service::ssh_key;

/// Debian's policy, and what looks at it.
const INSTALL: &str = "apt-get -qq update && apt-get -qq install --yes --no-install-recommends \
    selinux-policy-default selinux-utils policycoreutils > /dev/null && apt-get clean && \
    sed -i s/^SELINUX=.*/SELINUX=enforcing/ /etc/selinux/config";
/// With room for the policy.
const MEMORY_MIB: u32 = 512;
/// What /init or the agent makes or changes, and the type that it has to have.
const TYPES: [(&str, &str); 15] = [
    ("/", "root_t"),
    ("/etc", "etc_t"),
    ("/etc/hostname", "net_conf_t"),
    ("/etc/machine-id", "etc_t"),
    ("/etc/hosts", "net_conf_t"),
    ("/etc/ssh/ssh_host_ed25519_key", "sshd_key_t"),
    ("/etc/motd", "etc_t"),
    ("/opt/site", "usr_t"),
    ("/opt/site/tools/file", "usr_t"),
    ("/root/.ssh", "ssh_home_t"),
    ("/root/.ssh/authorized_keys", "ssh_home_t"),
    ("/run", "var_run_t"),
    ("/run/slate", "var_run_t"),
    ("/run/slate/agent", "bin_t"),
    ("/dev/null", "null_device_t"),
];
/// A file in the place of one of the image's, and one in directories that the image has not.
const INVENTORY: &str = r#"
[groups.all.files."/etc/motd"]
content = "a node\n"

[groups.all.files."/opt/site/tools/file"]
content = "new\n"
"#;
/// Of what was written before systemd began, all whose label is not the policy's.
const MISLABELLED: &str = "matchpathcon -V / /run /run/systemd/system/* \
    /etc/hostname /etc/machine-id /etc/hosts /etc/ssh/* /etc/motd /etc/fstab \
    /root/.ssh /root/.ssh/authorized_keys /opt/site /opt/site/tools /opt/site/tools/file \
    | grep -v ' verified.$' || true";
/// What the policy denied, since the kernel's start. Programs of the node are named by their own names.
const DENIED: &str =
    "journalctl -b -q --no-pager _TRANSPORT=audit _TRANSPORT=kernel | grep 'avc:  denied' || true";

#[test]
#[ignore = "boots machines: cargo xtask test --full"]
fn full_a_policy_and_labels_of_the_image_are_enforced() {
    if impossible(&[&native::TOOLS[..], &[Tool::SshClient]].concat()) {
        return;
    }
    let keys = tempfile::tempdir().expect("a temporary directory");
    let key = ssh_key(keys.path());
    let public = key.with_extension("pub");
    let public = public.to_str().expect("a path in UTF-8");
    let mut site = Site::new("debian12", &["--ssh-key", public]);
    site.give_own_store();
    let mac = MacAddress::nth(1).to_string();
    site.slate(&["node", "set", &mac, "--name", "node1"]);
    let plan = || site.slate(&["plan", "node1"]);
    let off = "the image has no SELinux policy: selinux=0 is added";
    assert!(plan().contains(off), "{}", plan());
    // The whole image is labelled, since it has had no labels.
    site.update("debian12", INSTALL);
    let planned = plan();
    assert!(!planned.contains("selinux="), "{planned}");

    let inventory = site.path("slate.toml");
    std::fs::write(&inventory, INVENTORY).expect("a file");
    site.slate(&["apply", inventory.to_str().expect("a path in UTF-8")]);

    let machine = power_on_sized(&site, &initrd(&site), 1, MEMORY_MIB);
    site.wait_up(machine.mac(), 1);
    let console = machine.console();
    console.login(PATIENCE).expect("a shell");
    assert_eq!(guest(console, "getenforce"), "Enforcing");
    assert_running(console);
    for (path, kind) in TYPES {
        let label = guest(console, &format!("stat -c %C {path}"));
        assert!(label.contains(&format!(":{kind}:")), "{path}: {label}");
    }
    // Nothing that was written before systemd began has another label than the policy's.
    let wrong = guest(console, MISLABELLED);
    assert_eq!(wrong, "");
    let denied = guest(console, DENIED);
    println!("{denied}");
    let ours = denied.lines().find(|line| line.contains("slate"));
    assert_eq!(ours, None);
    logs_in(&site, &machine, &key);
    ends_without_server(site, machine);
}

/// As root over the network, where the policy has a say as well.
fn logs_in(site: &Site, machine: &Machine, key: &Path) {
    let ssh = Network::ssh(address(site, machine.mac()), key, "getenforce");
    let done = site.network.run(ssh).expect("ssh starts");
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert_eq!(said.trim(), "Enforcing", "{done:?}");
}

/// The agent stands in the place of the command and of the shutdown's last stage, as a program that
/// the policy has never heard of.
fn ends_without_server(mut site: Site, mut machine: Machine) {
    native::wait_kept(&site, machine.mac());
    site.kill_daemon();
    let console = machine.console().clone();
    console.send_line("poweroff").expect("typing");
    let off = machine.wait_off(native::SHUTDOWN).expect("waiting");
    assert!(off.is_some(), "no power-off: {}", console.last_lines(100));
}
