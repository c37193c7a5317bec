//! User-Mode Linux nodes: the kernel's real NFS client at native speed, several at once, without
//! firmware. Their initramfs and command lines come from the command, as a firmware's would.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lab::{Hardware, MacAddress, Machine, Tool, Uml};

use crate::harness::{
    PATIENCE, Site, address, assert_different, assert_root, assert_running, guest, impossible,
    log_in, tells_of_a_stall, text,
};

pub(crate) const TOOLS: [Tool; 3] = [Tool::UserModeLinux, Tool::Iproute, Tool::Mmdebstrap];
const MEMORY_MIB: u32 = 320;
/// Asked of the daemon, in seconds: a node renews after half of it.
pub(crate) const LEASE_S: u64 = 60;

#[test]
#[ignore = "boots machines: cargo xtask test"]
fn four_nodes_of_one_image_are_four_and_renew_their_leases() {
    if impossible(&TOOLS) {
        return;
    }
    let lease = LEASE_S.to_string();
    let site = Site::new("debian12", &["--node-lease", &lease]);
    let initrd = initrd(&site);
    let begun = Instant::now();
    let machines: Vec<Machine> = (1..=4)
        .map(|index| power_on(&site, &initrd, index))
        .collect();
    let ups: Vec<_> = machines
        .iter()
        .map(|it| site.wait_up(it.mac(), 1))
        .collect();
    println!("four nodes are up {:.1?} after power-on", begun.elapsed());
    for machine in &machines {
        let console = machine.console();
        log_in(console);
        assert_running(console);
        assert_root(console, &site);
    }
    assert_different(&machines);
    for (machine, up) in machines.iter().zip(&ups) {
        renews(&site, machine, up["at_ms"].as_u64().expect("a time"));
    }
    site.slate(&["node", "forget", "node3", &machines[3].mac().to_string()]);
    let left = site.slate_json(&["node", "list", "--json"]);
    assert_eq!(left.as_array().map(Vec::len), Some(2), "{left}");
}

/// The node's own network manager asks for its lease again before that ends, and keeps the address.
fn renews(site: &Site, machine: &Machine, up_ms: u64) {
    let end = Instant::now() + PATIENCE;
    loop {
        let acks = site.events(machine.mac(), "ack");
        let times: Vec<u64> = acks.iter().filter_map(|it| it["at_ms"].as_u64()).collect();
        // An acknowledgement half a lease after the one before it; that leaves room for jitter.
        let renewal = times
            .windows(2)
            .find(|pair| pair[1] > up_ms && pair[1] - pair[0] > LEASE_S * 1000 / 3);
        if let Some(&[before, at]) = renewal {
            println!(
                "{} renewed {:.1} s after its last lease, {:.1} s after it was up",
                machine.name(),
                (at - before) as f64 / 1000.0,
                (at - up_ms) as f64 / 1000.0
            );
            break;
        }
        assert!(
            Instant::now() < end,
            "{} does not renew: {acks:?}",
            machine.name()
        );
        std::thread::sleep(Duration::from_secs(1));
    }
    let own = guest(machine.console(), "ip -4 -o address show scope global");
    let expected = format!(" {}/", address(site, machine.mac()));
    assert!(own.contains(&expected), "{own}");
}

#[test]
#[ignore = "boots machines: cargo xtask test"]
fn a_node_powers_off_while_its_server_is_alive() {
    ends("systemctl poweroff", |_| ());
}

#[test]
#[ignore = "boots machines: cargo xtask test"]
fn a_node_powers_off_while_its_server_is_dead() {
    ends("systemctl poweroff", Site::kill_daemon);
}

#[test]
#[ignore = "boots machines: cargo xtask test"]
fn a_node_reboots_while_its_server_is_out_of_reach() {
    ends("systemctl reboot", Site::isolate_nodes);
}

/// Boots a node, logs in, does `before` to the server, and ends the node in order, by `command`,
/// while a session has its history to write and programs read from the root.
fn ends(command: &str, before: impl FnOnce(&mut Site)) {
    if impossible(&TOOLS) {
        return;
    }
    let mut site = Site::new("debian12", &[]);
    let mut machine = power_on(&site, &initrd(&site), 1);
    site.wait_up(machine.mac(), 1);
    let console = machine.console().clone();
    log_in(&console);
    assert_running(&console);
    // The agent takes a moment to keep what a shutdown needs; it says so when it has.
    wait_kept(&site, machine.mac());
    guest(&console, BUSY);
    before(&mut site);
    let begun = Instant::now();
    console.send_line(command).expect("typing");
    if command.ends_with("reboot") {
        let line = |line: &str| line.contains("reboot: Restarting system");
        let last = console.wait_line("the kernel's last line", SHUTDOWN, line);
        last.unwrap_or_else(|error| panic!("{error}\n{}", console.last_lines(100)));
    } else {
        let off = machine.wait_off(SHUTDOWN).expect("waiting");
        assert!(off.is_some(), "no power-off: {}", console.last_lines(100));
    }
    println!("{command}: done {:.1?} after it", begun.elapsed());
    let lines = console.lines();
    let wrong = |text: &str| text.contains("FAILED") || tells_of_a_stall(text);
    let line = lines.iter().find(|line| wrong(&line.text));
    assert!(line.is_none(), "{line:?}\n{}", console.last_lines(100));
    let kept = lines
        .iter()
        .find(|line| line.text.contains("kept for shutdown"));
    println!("{}", kept.map_or("", |line| &line.text));
}

/// A bound on the stall that a dead server may cause: less than systemd grants any single unit.
pub(crate) const SHUTDOWN: Duration = Duration::from_secs(85);

/// A history to write, and two programs that read files which nobody else needs.
const BUSY: &str = "set -o history; \
    (find /usr/share -type f -exec cat {} + > /dev/null) & \
    (while :; do grep -r nothing /usr/lib/python3 /usr/share > /dev/null 2>&1; done) & \
    sleep 1";

pub(crate) fn wait_kept(site: &Site, mac: MacAddress) {
    let end = Instant::now() + PATIENCE;
    let kept = || {
        let infos = site.events(mac, "info");
        infos
            .iter()
            .any(|event| text(event, "text").contains("kept for shutdown"))
    };
    while !kept() {
        assert!(
            Instant::now() < end,
            "{mac}: its agent does not say what it keeps"
        );
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// The initramfs of User-Mode Linux nodes.
pub(crate) fn initrd(site: &Site) -> PathBuf {
    initrd_with(site, &[])
}

/// The same with further options.
pub(crate) fn initrd_with(site: &Site, options: &[&str]) -> PathBuf {
    let modules = Uml::modules().expect("its modules are installed");
    let initrd = site.path("initrd");
    let place = |path: &PathBuf| path.to_str().expect("a path in UTF-8").to_owned();
    let (modules, output) = (place(&modules), place(&initrd));
    let build = ["initrd", "build", &modules, "--profile", "virtual"];
    site.slate(&[&build[..], &["--output", &output], options].concat());
    initrd
}

/// Plans a start and makes it.
pub(crate) fn power_on(site: &Site, initrd: &Path, index: u16) -> Machine {
    power_on_sized(site, initrd, index, MEMORY_MIB)
}

/// The kernel command line of a node's next start.
fn planned(site: &Site, index: u16) -> String {
    let mac = MacAddress::nth(index).to_string();
    let plan = site.slate_json(&["node", "plan", &mac, "--json"]);
    text(&plan, "cmdline")
}

/// Starts with any kernel command line.
pub(crate) fn power_on_with(site: &Site, initrd: &Path, index: u16, command_line: &str) -> Machine {
    let hardware = Uml {
        initrd: Some(initrd.to_path_buf()),
        command_line: command_line.to_owned(),
        memory_mib: MEMORY_MIB,
    };
    start(site, index, hardware)
}

/// Plans a start and makes it, with as much memory as is said.
pub(crate) fn power_on_sized(site: &Site, initrd: &Path, index: u16, memory_mib: u32) -> Machine {
    let hardware = Uml {
        initrd: Some(initrd.to_path_buf()),
        command_line: planned(site, index),
        memory_mib,
    };
    start(site, index, hardware)
}

fn start(site: &Site, index: u16, hardware: Uml) -> Machine {
    let capture = site.path(&format!("console{index}.log"));
    Machine::power_on(
        &site.network,
        &format!("node{index}"),
        MacAddress::nth(index),
        Hardware::Uml(hardware),
        Some(capture),
    )
    .expect("a User-Mode Linux machine")
}
