//! Power: machines that are switched on and off, by the daemon and by rollouts.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lab::{MacAddress, Tool};

use crate::harness::{PATIENCE, Site, impossible, text};
use crate::native::{self, initrd, power_on};
use crate::orders::{fails, revive, wait_connected};

#[test]
#[ignore = "needs a network: cargo xtask test"]
fn machines_are_switched_by_magic_packets_and_by_commands() {
    if impossible(&[Tool::Iproute, Tool::Tcpdump]) {
        return;
    }
    let site = Site::new("debian12", &[]);
    let (one, two) = (
        MacAddress::nth(1).to_string(),
        MacAddress::nth(2).to_string(),
    );
    site.slate(&["node", "set", &one, "--name", "one"]);
    site.slate(&["node", "set", &two, "--name", "two"]);
    let refused = fails(&site, &["node", "power", "on", "@all"]);
    assert!(refused.contains("power ="), "{refused}");
    let script = script(
        &site,
        "echo \"$@\" >> \"$(dirname \"$0\")/switched\"; test \"$1\" != off",
    );
    apply(
        &site,
        &format!(
            "[groups.all]\npower = \"wol\"\n[nodes.two]\nmac = \"{two}\"\npower = \"{} {{action}} {{name}} {{mac}}\"\n",
            script.display()
        ),
    );

    // What another host on the wire sees of it.
    let host = site
        .network
        .add_host([10, 77, 0, 200].into())
        .expect("a host");
    let mut tcpdump = Command::new("tcpdump");
    tcpdump
        .args([
            "-i",
            host.interface(),
            "-c",
            "1",
            "-l",
            "-n",
            "-x",
            "udp port 9",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let capture = site.path("wake.txt");
    tcpdump.stdout(std::fs::File::create(&capture).expect("a file"));
    let mut listening = host.spawn(tcpdump).expect("tcpdump starts");
    let end = Instant::now() + PATIENCE;
    while listening.try_wait().expect("waiting").is_none() {
        assert!(Instant::now() < end, "no magic packet");
        assert_eq!(site.slate(&["node", "power", "on", "one"]), "one done\n");
        std::thread::sleep(Duration::from_millis(200));
    }
    let seen = std::fs::read_to_string(&capture).expect("what tcpdump saw");
    assert!(seen.contains(" > 10.77.0.255.9: "), "{seen}");
    let hex: String = seen
        .lines()
        .filter_map(|line| {
            line.trim()
                .strip_prefix("0x")
                .and_then(|it| it.split_once(':'))
        })
        .map(|(_, bytes)| bytes.replace(' ', ""))
        .collect();
    let expected = "f".repeat(12) + &one.replace(':', "").repeat(16);
    assert!(hex.contains(&expected), "{hex}");
    let off = fails(&site, &["node", "power", "off", "one"]);
    assert!(off.contains("can only switch machines on"), "{off}");

    site.slate(&["node", "power", "cycle", "two"]);
    let failed = fails(&site, &["node", "power", "off", "two"]);
    assert!(failed.contains("two: status 1"), "{failed}");
    let switched = std::fs::read_to_string(site.path("switched")).expect("what was switched");
    assert_eq!(switched, format!("cycle two {two}\noff two {two}\n"));
    // A node that does not answer is switched, where whoever asks does not mind.
    let silent = fails(&site, &["node", "reboot", "two"]);
    assert!(silent.contains("not connected"), "{silent}");
    assert_eq!(
        site.slate(&["node", "reboot", "two", "--force"]),
        "two reboots\n"
    );
    let switched = std::fs::read_to_string(site.path("switched")).expect("what was switched");
    assert!(
        switched.ends_with(&format!("cycle two {two}\n")),
        "{switched}"
    );
}

#[test]
#[ignore = "needs a network: cargo xtask test"]
fn a_version_that_cannot_be_tried_first_is_not_rolled_out() {
    if impossible(&[Tool::Iproute]) {
        return;
    }
    let site = Site::new("debian12", &[]);
    site.slate(&[
        "node",
        "set",
        &MacAddress::nth(1).to_string(),
        "--name",
        "one",
    ]);
    let rollout = ["rollout", "debian12", "--to", "@all", "--try"];
    let output = site
        .slate_command()
        .args(rollout)
        .env("PATH", "/nowhere")
        .output();
    let output = output.expect("slate starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("--try: ") && said.contains("qemu"), "{said}");
    assert_eq!(
        site.slate_json(&["rollout", "status", "--json"]),
        serde_json::json!([])
    );
}

#[test]
#[ignore = "boots machines: cargo xtask test"]
fn full_a_rollout_begins_once_its_version_has_come_up_in_a_virtual_machine() {
    if impossible(&[Tool::Iproute, Tool::Qemu, Tool::Firmware]) {
        return;
    }
    let mut site = Site::new("debian12", &[]);
    site.give_own_store();
    site.slate(&[
        "node",
        "set",
        &MacAddress::nth(1).to_string(),
        "--name",
        "one",
    ]);
    let rollout = [
        "rollout",
        "debian12:next",
        "--to",
        "@all",
        "--try",
        "--no-wait",
    ];
    let change = |command: &str| {
        let change = [
            "image",
            "run",
            "debian12",
            "--replace",
            "--",
            "sh",
            "-c",
            command,
        ];
        site.slate(&change);
    };
    change("cp /bin/false /usr/lib/systemd/systemd");
    let refused = fails(&site, &rollout);
    assert!(refused.contains("did not come up"), "{refused}");
    assert_eq!(
        site.slate_json(&["rollout", "status", "--json"]),
        serde_json::json!([])
    );
    change("echo new > /etc/new");
    let said = site.slate(&rollout);
    assert!(
        said.contains("debian12:next comes up in a virtual machine"),
        "{said}"
    );
    let begun = site.slate_json(&["rollout", "status", "--json"]);
    let new = site.slate_json(&["image", "show", "debian12:next", "--json"]);
    assert_eq!(text(&begun[0], "version"), text(&new, "digest"));
}

/// Makes a program of a shell script.
fn script(site: &Site, text: &str) -> PathBuf {
    let path = site.path("switch");
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("a script");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("a mode");
    path
}

fn apply(site: &Site, inventory: &str) {
    let path = site.path("slate.toml");
    std::fs::write(&path, inventory).expect("an inventory");
    site.slate(&["apply", path.to_str().expect("a path in UTF-8")]);
}

#[test]
#[ignore = "boots machines: cargo xtask test"]
fn full_a_rollout_switches_on_what_is_off_and_waits_for_nobody_who_stays_off() {
    if impossible(&native::TOOLS) {
        return;
    }
    let mut site = Site::new("debian12", &[]);
    site.give_own_store();
    let old = site.digest.clone();
    site.change("debian12", "echo new > /etc/new");
    let new = site.slate_json(&["image", "show", "debian12:next", "--json"]);
    let new = text(&new, "digest");
    let initrd = initrd(&site);
    let mut machines = vec![power_on(&site, &initrd, 1)];
    site.wait_up(machines[0].mac(), 1);
    wait_connected(&site, "node1");
    for (index, name) in [(2, "two"), (3, "three")] {
        let mac = MacAddress::nth(index).to_string();
        site.slate(&["node", "set", &mac, "--name", name]);
    }
    let script = script(&site, "echo \"$@\" >> \"$(dirname \"$0\")/switched\"");
    let two = MacAddress::nth(2);
    apply(
        &site,
        &format!(
            "[nodes.two]\nmac = \"{two}\"\npower = \"{} {{action}} {{name}}\"\n",
            script.display()
        ),
    );
    let mut command = site.slate_command();
    command
        .args([
            "rollout",
            "debian12:next",
            "--to",
            "@all",
            "--batch",
            "2",
            "--force",
        ])
        .args(["--gate", "test -e /etc/new", "--timeout", "5m"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut running = command.spawn().expect("slate starts");
    let end = Instant::now() + 2 * PATIENCE;
    while running.try_wait().expect("waiting").is_none() {
        assert!(Instant::now() < end, "it does not end");
        revive(&site, &initrd, &mut machines);
        let switched = std::fs::read_to_string(site.path("switched")).unwrap_or_default();
        if machines.len() == 1 && !switched.is_empty() {
            assert_eq!(switched, "on two\n");
            machines.push(power_on(&site, &initrd, 2));
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    let output = running.wait_with_output().expect("its output");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("three is off"), "{said}");
    let runs = |index: u16| {
        let mac = MacAddress::nth(index).to_string();
        let node = site.slate_json(&["node", "show", &mac, "--json"]);
        node["digest"].as_str().map(str::to_owned)
    };
    assert_eq!(
        (runs(1), runs(2), runs(3)),
        (Some(new.clone()), Some(new.clone()), None)
    );
    assert_ne!(old, new);
    // It takes the version when somebody switches it on, and that ends the rollout.
    machines.push(power_on(&site, &initrd, 3));
    let end = Instant::now() + PATIENCE;
    let state = || {
        let rollouts = site.slate_json(&["rollout", "status", "--json"]);
        text(&rollouts[0], "state")
    };
    while state() != "done" {
        assert!(Instant::now() < end, "it is {}", state());
        std::thread::sleep(Duration::from_millis(500));
    }
    assert_eq!(runs(3), Some(new));
}
