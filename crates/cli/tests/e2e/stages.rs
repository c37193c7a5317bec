//! Nodes that do not come up: the server says at which stage they stopped, why, and what to do.

use std::time::{Duration, Instant};

use lab::{MacAddress, Machine};
use serde_json::Value;

use crate::harness::{PATIENCE, Site, impossible, text};
use crate::native::{self, initrd, power_on};

/// What is wrong with a node's command line, the stage that it does not reach, and what is said.
const FAULTS: [(&str, &str, [&str; 2]); 6] = [
    (
        "root=nfs:10.77.0.1:/images/none",
        "mount",
        [
            "mounting 10.77.0.1:/images/none: No such file",
            "the server has no such export: correct root=",
        ],
    ),
    (
        "root=nfs:10.77.0.1:/images/none:vers=4.2,port=9",
        "mount",
        [
            "Connection refused",
            "is the NFS server running and reachable?",
        ],
    ),
    (
        "root=nfs:10.77.0.1:/images/none:vers=3,nolock",
        "mount",
        [
            "Protocol not supported",
            "the server lacks this NFS version: change vers=",
        ],
    ),
    (
        "rd.driver.blacklist=nfs",
        "mount",
        [
            "No such device",
            "the initramfs needs the modules nfs and nfsv4",
        ],
    ),
    (
        "rd.driver.blacklist=overlay",
        "mount",
        [
            "mounting the overlay: No such device",
            "the initramfs needs the module overlay",
        ],
    ),
    (
        "init=/none",
        "switch-root",
        [
            "starting /none: No such file",
            "does the image hold a complete system?",
        ],
    ),
];

#[test]
#[ignore = "boots machines: cargo xtask test"]
fn nodes_that_stop_say_where_and_why() {
    if impossible(&native::TOOLS) {
        return;
    }
    let site = Site::new("debian12", &[]);
    let initrd = initrd(&site);
    let power_on = |(index, (args, ..)): (u16, &(&str, _, _))| {
        let mac = MacAddress::nth(index).to_string();
        site.slate(&["node", "set", &mac, "--kernel-args", args]);
        power_on(&site, &initrd, index)
    };
    let machines: Vec<Machine> = (1..).zip(&FAULTS).map(power_on).collect();
    let end = Instant::now() + PATIENCE;
    for (machine, (args, stage, parts)) in machines.iter().zip(FAULTS) {
        // Others may come before: six machines at once wait long for an address.
        let is_told = |event: &&Value| {
            let said = text(event, "text");
            event["detail"]["stage"] == stage && parts.iter().all(|it| said.contains(it))
        };
        let failed = loop {
            let failures = site.events(machine.mac(), "failed");
            if let Some(event) = failures.iter().find(is_told) {
                break event.clone();
            }
            let last = machine.console().last_lines(10);
            assert!(Instant::now() < end, "{args}: {failures:?}, {last}");
            std::thread::sleep(Duration::from_millis(500));
        };
        println!("{}", text(&failed, "text"));
        let node = site.slate_json(&["node", "show", &machine.mac().to_string(), "--json"]);
        assert_eq!(text(&node["failure"], "stage"), stage, "{node}");
    }
    let list = site.slate(&["node", "list"]);
    assert_eq!(list.matches("failed at").count(), FAULTS.len(), "{list}");
}
