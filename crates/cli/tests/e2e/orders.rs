//! What running nodes are told to do.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use lab::Machine;

use crate::harness::{PATIENCE, Site, guest, impossible, log_in, text};
use crate::native::{self, initrd, power_on};

#[test]
#[ignore = "boots machines: cargo xtask test"]
fn running_nodes_run_commands_tell_what_they_changed_and_reboot_once_into_another_image() {
    if impossible(&native::TOOLS) {
        return;
    }
    let mut site = Site::new("debian12", &[]);
    site.give_own_store();
    site.update("debian12", "echo new > /etc/new");
    let old = site.digest.clone();
    site.slate(&["image", "tag", &old[..12], "other"]);
    let new = text(
        &site.slate_json(&["image", "show", "debian12", "--json"]),
        "digest",
    );
    let initrd = initrd(&site);
    let mut machine = power_on(&site, &initrd, 1);
    site.wait_up(machine.mac(), 1);
    wait_connected(&site, "node1");

    let ran = site.slate(&[
        "node",
        "run",
        "node1",
        "id -un; cat /etc/new; seq 300000 | tail -n 1",
    ]);
    assert_eq!(ran, "root\nnew\n300000\n");
    let several = site.slate(&["node", "run", "@all", "--", "echo", "it's", "$HOME"]);
    assert_eq!(several, "it's $HOME\n");
    let long = site.slate(&["node", "run", "node1", "seq 300000"]);
    assert!(long.ends_with(" more\n"), "{}", &long[long.len() - 60..]);
    assert!(long.starts_with("1\n2\n3\n"));
    for (command, expected) in [
        (&["node1", "exit 7"][..], "node1: status 7"),
        (
            &["--timeout", "1s", "node1", "sleep 600"],
            "node1: status 137",
        ),
        (&["nobody", "true"], "no node is called"),
    ] {
        let failed = fails(&site, &[&["node", "run"][..], command].concat());
        assert!(failed.contains(expected), "{failed}");
    }

    // What the system and its users change, and nothing of what was delivered.
    site.slate(&["node", "run", "node1", CHANGE]);
    let changes = site.slate_json(&["node", "diff", "node1", "--json"]);
    let changes = changes.as_array().expect("a list");
    let change_of = |path: &str| {
        let mut of = changes.iter().filter(|it| it["path"] == path);
        of.next().map(|it| text(it, "change"))
    };
    assert_eq!(change_of("/root/added").as_deref(), Some("added"));
    assert_eq!(change_of("/etc/issue").as_deref(), Some("changed"));
    assert_eq!(change_of("/etc/new").as_deref(), Some("removed"));
    for delivered in [
        "/etc/hostname",
        "/etc/machine-id",
        "/etc/ssh/ssh_host_ed25519_key",
        "/run",
    ] {
        assert_eq!(change_of(delivered), None, "{changes:?}");
    }

    // A daemon that is started anew is found again.
    site.kill_daemon();
    site.start_daemon();
    wait_connected(&site, "node1");
    assert_eq!(site.slate(&["node", "run", "node1", "echo back"]), "back\n");

    // Somebody is logged in on the console.
    let console = machine.console().clone();
    log_in(&console);
    guest(&console, "true");
    let refused = fails(&site, &["node", "reboot", "node1", "--once", "other"]);
    assert!(refused.contains("node1 not rebooted"), "{refused}");
    assert_eq!(next(&site), new);
    let failed = fails(
        &site,
        &["node", "reboot", "node1", "--force", "--before", "exit 3"],
    );
    assert!(failed.contains("node1 not rebooted"), "{failed}");
    let before = "echo x > /run/before";
    let reboot = [
        "node", "reboot", "node1", "--force", "--once", "other", "--before", before,
    ];
    assert_eq!(site.slate(&reboot), "node1 reboots\n");
    let line = |line: &str| line.contains("reboot: Restarting system");
    let last = console.wait_line("the kernel's last line", PATIENCE, line);
    last.unwrap_or_else(|error| panic!("{error}\n{}", console.last_lines(100)));
    drop(machine);
    assert_eq!(next(&site), old);
    machine = power_on(&site, &initrd, 1);
    site.wait_up(machine.mac(), 2);
    wait_connected(&site, "node1");
    assert_eq!(runs(&site, &machine), old);
    assert_eq!(next(&site), new);
    let away = fails(&site, &["node", "run", "node1", "cat /etc/new"]);
    assert!(away.contains("status 1"), "{away}");
}

#[test]
#[ignore = "boots machines: cargo xtask test"]
fn a_rollout_takes_itself_back_where_its_gate_fails_and_comes_to_every_node_where_it_holds() {
    if impossible(&native::TOOLS) {
        return;
    }
    let mut site = Site::new("debian12", &[]);
    site.give_own_store();
    let old = site.digest.clone();
    site.change("debian12", "echo new > /etc/new");
    let initrd = initrd(&site);
    let mut machines: Vec<Machine> = (1..=2).map(|it| power_on(&site, &initrd, it)).collect();
    for (machine, name) in machines.iter().zip(["node1", "node2"]) {
        site.wait_up(machine.mac(), 1);
        // A rollout begins with those in reach.
        wait_connected(&site, name);
    }
    let versions = |site: &Site| -> Vec<String> {
        let nodes = site.slate_json(&["node", "list", "--json"]);
        let nodes = nodes.as_array().expect("a list");
        nodes.iter().map(|it| text(it, "digest")).collect()
    };
    let shown = site.slate_json(&["image", "show", "debian12:next", "--json"]);
    let new = text(&shown, "digest");
    let begin = [
        "rollout",
        "debian12:next",
        "--to",
        "@all",
        "--force",
        "--timeout",
        "15m",
    ];
    let with_gate = |gate: &'static str| [&begin[..], &["--gate", gate]].concat();

    let failed = attend(
        &site,
        &initrd,
        &mut machines,
        &with_gate("test -e /etc/older"),
    );
    assert!(
        failed.contains("taken back: node1: the gate fails: status 1"),
        "{failed}"
    );
    let end = Instant::now() + PATIENCE;
    while versions(&site) != [&*old, &*old] || site.events(machines[0].mac(), "up").len() < 3 {
        assert!(Instant::now() < end, "{:?} is not {old}", versions(&site));
        revive(&site, &initrd, &mut machines);
        std::thread::sleep(Duration::from_millis(500));
    }
    assert_eq!(
        site.events(machines[1].mac(), "up").len(),
        1,
        "it was never tried there"
    );
    wait_connected(&site, "node1");

    let done = attend(
        &site,
        &initrd,
        &mut machines,
        &with_gate("test -e /etc/new"),
    );
    assert!(done.contains("It holds on every node."), "{done}");
    assert_eq!(versions(&site), [&*new, &*new]);
    // Until everybody follows, they stay with what was brought to them, over a restart of the daemon.
    site.kill_daemon();
    site.start_daemon();
    let pinned = |site: &Site| {
        let node = site.slate_json(&["node", "show", "node2", "--json"]);
        (
            text(&node, "next_digest"),
            node["pinned_digest"].is_string(),
        )
    };
    assert_eq!(pinned(&site), (new.clone(), true));
    site.slate(&["image", "tag", "debian12:next", "debian12"]);
    let end = Instant::now() + PATIENCE;
    while pinned(&site) != (new.clone(), false) {
        assert!(Instant::now() < end, "{:?}", pinned(&site));
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Runs a command while machines that restart are started, as their firmware would; what it said.
fn attend(site: &Site, initrd: &Path, machines: &mut [Machine], arguments: &[&str]) -> String {
    let mut command = site.slate_command();
    command
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut running = command.spawn().expect("slate starts");
    let end = Instant::now() + 4 * PATIENCE;
    while running.try_wait().expect("waiting").is_none() {
        assert!(Instant::now() < end, "{arguments:?} does not end");
        revive(site, initrd, machines);
        std::thread::sleep(Duration::from_millis(500));
    }
    let output = running.wait_with_output().expect("its output");
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

/// User-Mode Linux starts itself anew with its old command line: a firmware asks for a new one.
pub(crate) fn revive(site: &Site, initrd: &Path, machines: &mut [Machine]) {
    for (index, machine) in (1..).zip(machines) {
        let lines = machine.console().lines();
        let restarts = |line: &lab::Line| line.text.contains("reboot: Restarting system");
        if lines.iter().any(restarts) {
            machine.power_off().expect("it can be switched off");
            *machine = power_on(site, initrd, index);
        }
    }
}

/// Adds, changes and removes a file, and a directory of the image's changes in what it holds only.
const CHANGE: &str = "echo added > /root/added; echo changed >> /etc/issue; rm /etc/new; \
    mkdir -p /usr/share/dict; touch /usr/share/doc";

pub(crate) fn fails(site: &Site, arguments: &[&str]) -> String {
    let output = site.slate_command().args(arguments).output();
    let output = output.expect("slate starts");
    assert!(!output.status.success(), "{arguments:?}");
    let (out, errors) = (&output.stdout, &output.stderr);
    String::from_utf8_lossy(&[&out[..], errors].concat()).into_owned()
}

/// Waits until a node's agent asks for orders.
pub(crate) fn wait_connected(site: &Site, name: &str) {
    let end = Instant::now() + PATIENCE;
    let asked = || site.slate_json(&["node", "show", name, "--json"])["polled_ms"].is_u64();
    while !asked() {
        assert!(Instant::now() < end, "{name}'s agent asks for no orders");
        std::thread::sleep(Duration::from_millis(500));
    }
}

fn next(site: &Site) -> String {
    text(
        &site.slate_json(&["node", "show", "node1", "--json"]),
        "next_digest",
    )
}

fn runs(site: &Site, machine: &Machine) -> String {
    let node = site.slate_json(&["node", "show", &machine.mac().to_string(), "--json"]);
    text(&node, "digest")
}
