//! A node whose image has a SELinux policy and labels runs with the policy enforced. User-Mode
//! Linux has SELinux, and has it on unless told otherwise; Debian's own kernel has to be told.

use std::path::PathBuf;
use std::time::Duration;

use lab::{MacAddress, Machine, Network, Tool};
use tempfile::TempDir;

use crate::firmware::{self, KERNEL_ARGS};
use crate::harness::{PATIENCE, Site, address, impossible, log_in};
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
/// Programs that run, by their process's number, and the domain that they have to be in.
const DOMAINS: [(&str, &str); 3] = [
    ("1", "init_t"),
    ("$(systemctl show -P MainPID ssh)", "sshd_t"),
    ("$(systemctl show -P MainPID slate-agent)", "initrc_t"),
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
    let labelled = Labelled::new(&[]);
    let machine = power_on_sized(&labelled.site, &initrd(&labelled.site), 1, MEMORY_MIB);
    labelled.site.wait_up(machine.mac(), 1);
    log_in(machine.console());
    labelled.is_enforced(&machine);
    labelled.ends_without_server(machine, native::SHUTDOWN);
}

#[test]
#[ignore = "boots machines: cargo xtask test --full"]
fn full_debians_own_kernel_enforces_a_policy() {
    let tools = [
        Tool::Qemu,
        Tool::Firmware,
        Tool::Iproute,
        Tool::Mmdebstrap,
        Tool::SshClient,
    ];
    if impossible(&tools) {
        return;
    }
    let arguments = format!("{} security=selinux", KERNEL_ARGS[1]);
    let labelled = Labelled::new(&[KERNEL_ARGS[0], &arguments]);
    let machine = firmware::power_on(&labelled.site, 1, false);
    labelled
        .site
        .wait_up_within(machine.mac(), 1, firmware::ARRIVAL);
    let release = labelled.ask(&machine, "uname -r");
    assert!(release.starts_with("6.1.0-"), "{release}");
    labelled.is_enforced(&machine);
    // An emulated processor takes its time.
    labelled.ends_without_server(machine, PATIENCE);
}

/// A site whose one image has Debian's policy, and labels by it.
struct Labelled {
    site: Site,
    /// By which root may log in.
    key: PathBuf,
    _keys: TempDir,
}

impl Labelled {
    /// `options` are added to `slate up`.
    fn new(options: &[&str]) -> Self {
        let keys = tempfile::tempdir().expect("a temporary directory");
        let key = ssh_key(keys.path());
        let public = key.with_extension("pub");
        let public = public.to_str().expect("a path in UTF-8");
        let mut site = Site::new("debian12", &[&["--ssh-key", public], options].concat());
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
        Self {
            site,
            key,
            _keys: keys,
        }
    }

    /// Of a node that is up, asked over the network as root, where the policy has a say as well.
    fn is_enforced(&self, machine: &Machine) {
        let ask = |command: &str| self.ask(machine, command);
        assert_eq!(ask("getenforce"), "Enforcing");
        assert_eq!(ask("systemctl is-system-running --wait"), "running");
        let has_type = |path: &str, kind: &str| {
            let label = ask(&format!("stat -c %C {path}"));
            assert!(label.contains(&format!(":{kind}:")), "{path}: {label}");
        };
        for (path, kind) in TYPES {
            has_type(path, kind);
        }
        // What is written from now on takes after its directory.
        ask("echo made > /etc/made");
        has_type("/etc/made", "etc_t");
        for (process, domain) in DOMAINS {
            let context = ask(&format!("tr -d '\\0' < /proc/{process}/attr/current"));
            assert!(
                context.contains(&format!(":{domain}:")),
                "{process}: {context}"
            );
        }
        // Nothing that was written before systemd began has another label than the policy's.
        assert_eq!(ask(MISLABELLED), "");
        let denied = ask(DENIED);
        println!("{denied}");
        let ours = denied.lines().find(|line| line.contains("slate"));
        assert_eq!(ours, None);
    }

    /// Runs a command that must succeed; what it printed, trimmed.
    fn ask(&self, machine: &Machine, command: &str) -> String {
        let address = address(&self.site, machine.mac());
        let ssh = Network::ssh(address, &self.key, command);
        let done = self.site.network.run(ssh).expect("ssh starts");
        assert!(done.status.success(), "{command}: {done:?}");
        String::from_utf8_lossy(&done.stdout).trim().to_owned()
    }

    /// The agent stands in the place of the command and of the shutdown's last stage, as a program
    /// that the policy has never heard of.
    fn ends_without_server(mut self, mut machine: Machine, within: Duration) {
        native::wait_kept(&self.site, machine.mac());
        let address = address(&self.site, machine.mac());
        self.site.kill_daemon();
        let ssh = Network::ssh(address, &self.key, "poweroff");
        self.site.network.run(ssh).expect("ssh starts");
        let off = machine.wait_off(within).expect("waiting");
        let console = machine.console();
        assert!(off.is_some(), "no power-off: {}", console.last_lines(100));
    }
}
