//! A kernel's last words reach the server.

use std::path::Path;
use std::time::{Duration, Instant};

use lab::{Console, MacAddress, Tool};

use crate::firmware::{self, KERNEL_ARGS};
use crate::harness::{PATIENCE, Site, guest, impossible, log_in, text};
use crate::native::{self, initrd, power_on};

#[test]
#[ignore = "boots machines: cargo xtask test"]
fn a_panic_is_told_by_the_node_that_has_it() {
    if impossible(&native::TOOLS) {
        return;
    }
    let site = Site::new("debian12", &[]);
    let machine = power_on(&site, &initrd(&site), 1);
    site.wait_up(machine.mac(), 1);
    log_in(machine.console());
    panics(&site, machine.mac(), machine.console());
}

#[test]
#[ignore = "boots machines: cargo xtask test --full"]
fn full_a_panic_of_a_distributions_kernel_is_told_with_its_trace() {
    let tools = [Tool::Qemu, Tool::Firmware, Tool::Iproute, Tool::Mmdebstrap];
    if impossible(&tools) {
        return;
    }
    // As quiet as distributions have it: a panic is not.
    let quiet = format!("quiet {}", KERNEL_ARGS[1]);
    let site = Site::new("debian12", &[KERNEL_ARGS[0], &quiet]);
    let machine = firmware::power_on(&site, 1, false);
    firmware::arrives(&site, &machine, 1);
    panics(&site, machine.mac(), machine.console());
    wait_for("a trace", || log(&site).contains("Call Trace:"));
}

/// Has the node panic, by the shell on its console, and waits for what the server tells of it.
fn panics(site: &Site, mac: MacAddress, console: &Console) {
    let parameters = Path::new("/sys/module/netconsole");
    guest(console, &format!("test -d {}", parameters.display()));
    console
        .send_line("echo c > /proc/sysrq-trigger")
        .expect("typing");
    wait_for("a panic", || !site.events(mac, "panicked").is_empty());
    let told = site.events(mac, "panicked");
    assert_eq!(told.len(), 1, "{told:?}");
    let told = text(&told[0], "text");
    assert!(told.contains("panicked: sysrq triggered crash"), "{told}");
    let last = "Kernel panic - not syncing: sysrq triggered crash";
    wait_for("its words", || log(site).contains(last));
    println!("{}", log(site));
}

fn log(site: &Site) -> String {
    site.slate(&["node", "log", "node1"])
}

fn wait_for(what: &str, mut is_there: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_there() {
        assert!(Instant::now() < end, "{what} is not told");
        std::thread::sleep(Duration::from_millis(500));
    }
}
