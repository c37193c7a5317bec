//! Nodes that all give the NFS server the same name, as every node with a stock initramfs does.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use lab::{MacAddress, Machine, Tool};
use serde_json::Value;

use crate::harness::{Site, assert_root, assert_running, guest, impossible, log_in};
use crate::native::{self, initrd, power_on};

/// What a dracut initramfs sends: no unique identity, and the host name that every one of them has.
const SAME_NAME: &str = "hostname=localhost nfs.nfs4_unique_id=";
const NODES: u16 = 4;

#[test]
#[ignore = "boots machines: cargo xtask test"]
fn nodes_that_all_call_themselves_localhost_are_told_apart() {
    if impossible(&[&native::TOOLS[..], &[Tool::Tcpdump]].concat()) {
        return;
    }
    let site = Site::new("debian12", &[]);
    let initrd = initrd(&site);
    let named = boot_together(&site, &initrd, 1, None);
    let identical = boot_together(&site, &initrd, 1 + NODES, Some(SAME_NAME));
    println!("with names of their own: {:?} s", named.up_after_s);
    println!("all of one name:         {:?} s", identical.up_after_s);

    let names = |group: &Group| -> BTreeSet<String> {
        assert_eq!(group.owners.len(), usize::from(NODES), "{:?}", group.owners);
        group.owners.values().cloned().collect()
    };
    assert_eq!(names(&named).len(), usize::from(NODES));
    let one: Vec<String> = names(&identical).into_iter().collect();
    assert_eq!(one, ["Linux NFSv4.2 localhost"]);

    // Nodes that steal each other's state recover it again and again.
    let usual = named.nfs.iter().map(|it| it.rpcs).max().expect("nodes");
    let usual = usual as f64 * (identical.slowness() / named.slowness()).max(1.0);
    for (named, identical) in named.nfs.iter().zip(&identical.nfs) {
        println!("calls: {} named, {} identical", named.rpcs, identical.rpcs);
        assert!(
            (identical.rpcs as f64) < usual * 1.5,
            "{} calls",
            identical.rpcs
        );
        for operation in ["EXCHANGE_ID", "CREATE_SESSION", "DESTROY_SESSION"] {
            let count = |nfs: &Calls| nfs.by_op[operation].as_u64().unwrap_or(0);
            assert_eq!(count(identical), count(named), "{operation}");
        }
    }
    assert!(!site.log().contains("NFS"), "{}", site.log());
    for (name, group) in [("named", &named), ("identical", &identical)] {
        assert_within_budget(name, group);
    }
}

/// Operations that a node may ask for until somebody has logged in: what was seen on a busy machine,
/// where boots are slow and delegations are given back meanwhile, and about a third more. Where boots
/// take longer than [`USUAL_S`], it is for each such time. The last line is for those that are not
/// listed.
#[rustfmt::skip]
const BUDGET: [(&str, u64); 16] = [
    ("SEQUENCE", 3600), ("PUTFH", 3600), ("GETATTR", 1500), ("READ", 1000), ("LOOKUP", 830),
    ("ACCESS", 760), ("OPEN", 550), ("GETFH", 480), ("CLOSE", 450), ("DELEGRETURN", 250),
    ("READLINK", 210), ("READDIR", 100), ("TEST_STATEID", 80), ("LISTXATTRS", 30),
    ("FREE_STATEID", 80), ("others", 8),
];

/// Longest time in seconds, from power-on, in which a boot needs no more than [`BUDGET`]. What nodes
/// have learned grows old: attributes are asked for anew, delegations are given back and taken again.
const USUAL_S: f64 = 60.0;

/// No node of a group asked for more than it may; prints what the busiest asked for.
fn assert_within_budget(name: &str, group: &Group) {
    let mut most: BTreeMap<String, u64> = BTreeMap::new();
    for calls in &group.nfs {
        for (operation, count) in calls.by_op.as_object().expect("counts") {
            let count = count.as_u64().expect("a number");
            let entry = most.entry(operation.clone()).or_default();
            *entry = count.max(*entry);
        }
    }
    println!("{name}: {most:?}");
    for (operation, count) in most {
        let line = BUDGET.iter().find(|(name, _)| *name == operation);
        let budget = line.unwrap_or(&BUDGET[BUDGET.len() - 1]).1;
        let budget = (budget as f64 * group.slowness()) as u64;
        assert!(
            count <= budget,
            "{name}: {count} of {operation}, more than {budget}"
        );
    }
}

/// What was seen of nodes that were powered on together, in the order of their numbers.
struct Group {
    up_after_s: Vec<f64>,
    nfs: Vec<Calls>,
    /// The client owner of EXCHANGE_ID that came from each address.
    owners: BTreeMap<Ipv4Addr, String>,
}

impl Group {
    /// How many times the usual its slowest boot took, once or more.
    fn slowness(&self) -> f64 {
        let slowest = self.up_after_s.iter().copied().fold(0.0, f64::max);
        (slowest / USUAL_S).max(1.0)
    }
}

struct Calls {
    rpcs: u64,
    by_op: Value,
}

/// Powers on four nodes, waits until all of them run, and switches them off again.
fn boot_together(site: &Site, initrd: &Path, first: u16, kernel_args: Option<&str>) -> Group {
    let capture = site.path(&format!("nfs{first}.pcap"));
    let mut tcpdump = site
        .network
        .spawn(tcpdump(site, &capture))
        .expect("tcpdump starts");
    let listens = || capture.metadata().is_ok_and(|file| file.len() > 0);
    while !listens() {
        let ended = tcpdump.try_wait().expect("waiting");
        assert!(ended.is_none(), "tcpdump: {ended:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    let numbers = first..first + NODES;
    for mac in numbers.clone().map(MacAddress::nth) {
        let Some(args) = kernel_args else { continue };
        site.slate(&["node", "set", &mac.to_string(), "--kernel-args", args]);
    }
    let begun = Instant::now();
    let machines: Vec<Machine> = numbers.map(|it| power_on(site, initrd, it)).collect();
    let mut group = Group {
        up_after_s: Vec::new(),
        nfs: Vec::new(),
        owners: BTreeMap::new(),
    };
    for machine in &machines {
        site.wait_up(machine.mac(), 1);
        group.up_after_s.push(begun.elapsed().as_secs_f64());
    }
    for machine in &machines {
        let console = machine.console();
        log_in(console);
        assert_running(console);
        assert_root(console, site);
        let complaints = guest(console, "dmesg | grep -iE 'nfs.*(error|fail|expired)' || :");
        assert_eq!(complaints, "");
        let mac = machine.mac().to_string();
        let node = site.slate_json(&["node", "show", &mac, "--json"]);
        group.nfs.push(Calls {
            rpcs: node["nfs"]["rpcs"].as_u64().expect("a number"),
            by_op: node["nfs"]["by_op"].clone(),
        });
    }
    drop(machines);
    tcpdump.kill().expect("tcpdump can be ended");
    group.owners = owners(&std::fs::read(capture).expect("what was captured"));
    group
}

/// Writes what NFS clients send, as it comes.
fn tcpdump(site: &Site, capture: &Path) -> Command {
    let mut command = Command::new("tcpdump");
    command
        .args(["--interface", site.network.interface(), "-U", "-Z", "root"])
        .args(["--snapshot-length", "1500", "-w"])
        .arg(capture)
        .args(["tcp", "dst", "port", "2049"]);
    command
}

/// The names by which NFS clients introduced themselves, by address, from a capture file
/// (pcap-savefile(5)). Linux begins all of them alike.
fn owners(capture: &[u8]) -> BTreeMap<Ipv4Addr, String> {
    const FILE_HEADER: usize = 24;
    const PACKET_HEADER: usize = 16;
    /// Ethernet's header, and the source address in that of IPv4.
    const SOURCE: usize = 14 + 12;
    const BEGIN: &[u8] = b"Linux NFSv4.";
    let word = |bytes: &[u8]| <[u8; 4]>::try_from(&bytes[..4]).expect("four bytes");
    let mut owners = BTreeMap::new();
    let mut rest = &capture[FILE_HEADER..];
    while let Some(header) = rest.get(..PACKET_HEADER) {
        let length = u32::from_ne_bytes(word(&header[8..])) as usize;
        let Some(packet) = rest.get(PACKET_HEADER..PACKET_HEADER + length) else {
            break;
        };
        rest = &rest[PACKET_HEADER + length..];
        let Some(at) = packet.windows(BEGIN.len()).position(|it| it == BEGIN) else {
            continue;
        };
        // An opaque of XDR: its length stands before it (RFC 4506, section 4.10).
        let length = u32::from_be_bytes(word(&packet[at - 4..])) as usize;
        let owner = String::from_utf8_lossy(&packet[at..at + length]).into_owned();
        let address = Ipv4Addr::from(word(&packet[SOURCE..]));
        let before = owners.insert(address, owner.clone());
        assert!(
            before.is_none_or(|before| before == owner),
            "{address} has two names"
        );
    }
    owners
}
