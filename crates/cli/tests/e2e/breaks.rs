//! `rd.break`: shells on the console between the stages of a boot.

use lab::{Console, MacAddress, Tool};

use crate::harness::{PATIENCE, Site, assert_running, impossible, log_in, text};
use crate::native::{self, initrd, initrd_with, power_on_with};

/// The kernel command line of a node's next boot, with more words.
fn line(site: &Site, index: u16, more: &str) -> String {
    let mac = MacAddress::nth(index).to_string();
    let plan = site.slate_json(&["node", "plan", &mac, "--json"]);
    format!("{} {more}", text(&plan, "cmdline"))
}

/// Types into the shell at a stage and waits for what comes of it.
fn type_at(console: &Console, stage: &str, command: &str, expected: &str) {
    let opened = format!("{stage}: rd.break: a shell");
    console
        .expect(&opened, PATIENCE)
        .unwrap_or_else(|error| panic!("{stage}: {error}\n{}", console.last_lines(30)));
    console.send_line(command).expect("typing");
    console
        .expect(expected, PATIENCE)
        .unwrap_or_else(|error| panic!("{stage}: {error}\n{}", console.last_lines(30)));
    console.send_line("exit").expect("typing");
}

#[test]
#[ignore = "boots machines: cargo xtask test"]
fn shells_open_where_rd_break_says() {
    if impossible(&[&native::TOOLS[..], &[Tool::Busybox]].concat()) {
        return;
    }
    let site = Site::new("debian12", &[]);
    let with_shell = initrd_with(&site, &["--debug-shell"]);
    let breaks = "rd.break=cmdline rd.break=pre-mount rd.break=pre-pivot rd.break";
    let machine = power_on_with(&site, &with_shell, 1, &line(&site, 1, breaks));
    let console = machine.console();
    // What each says is not what was typed: the line is echoed.
    type_at(
        console,
        "init",
        "echo $(ls /modules/table) $(grep -c nfs /proc/filesystems)",
        "/modules/table 0",
    );
    type_at(
        console,
        "network",
        "ip -4 -o address show dev vec0 | grep -c inet; echo at $(ls /sysroot | wc -l)",
        "at 0",
    );
    type_at(
        console,
        "mount",
        "echo $(grep -c ' /sysroot overlay' /proc/mounts) $(basename /sysroot/etc/os-release)",
        "1 os-release",
    );
    type_at(console, "switch-root", "echo $(stat -f -c %T /)", "overlay");
    site.wait_up(machine.mac(), 1);
    log_in(console);
    assert_running(console);

    // Without a shell of its own it says so, and takes the image's as soon as it can.
    let plain = initrd(&site);
    let breaks = "rd.break=pre-mount rd.break=pre-pivot rd.break=nonsense";
    let machine = power_on_with(&site, &plain, 2, &line(&site, 2, breaks));
    let console = machine.console();
    let line = |text: &'static str| {
        let found = console.wait_line(text, PATIENCE, |line| line.contains(text));
        found.expect(text);
    };
    line("rd.break: expected init, network, mount or switch-root");
    line("rd.break=network: expected a shell at /bin/busybox");
    type_at(console, "switch-root", "echo $(stat -f -c %T /)", "overlay");
    site.wait_up(machine.mac(), 1);
}
