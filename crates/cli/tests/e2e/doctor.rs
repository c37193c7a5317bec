//! `slate doctor` and `slate plan` beside a daemon that serves a real image.

use lab::{Network, Tool};
use serde_json::Value;

use crate::harness::{Site, impossible, text};

/// Runs `slate` on the daemon's network: its exit code and the JSON document that it prints.
fn ask(site: &Site, arguments: &[&str]) -> (Option<i32>, Value) {
    let mut command = site.slate_command();
    command.args(arguments);
    let output = site.network.run(command).expect("slate starts");
    let printed = String::from_utf8_lossy(&output.stdout);
    let document = serde_json::from_str(&printed);
    let document = document.unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output.status.code(), document)
}

/// The checks that ended otherwise than `ok` and `skipped`.
fn findings(report: &Value) -> Vec<&Value> {
    let checks = report["checks"].as_array().expect("a list").iter();
    let is_well = |check: &&Value| matches!(check["outcome"].as_str(), Some("ok" | "skipped"));
    // How much room this machine has is not the test's matter.
    let is_disk = |check: &&Value| check["check"] == "disk";
    checks.filter(|it| !is_well(it) && !is_disk(it)).collect()
}

#[test]
#[ignore = "needs root and an image: cargo xtask test"]
fn a_healthy_site_gets_a_clean_bill() {
    if impossible(&[Tool::Iproute, Tool::Mmdebstrap]) {
        return;
    }
    let site = Site::new("debian13", &[]);
    // As a site without nodes, and as one with a node.
    for _ in 0..2 {
        let (_, report) = ask(&site, &["doctor", "--json"]);
        assert_eq!(findings(&report), Vec::<&Value>::new());
        let checks = report["checks"].as_array().expect("a list");
        let well = |name: &str| {
            let check = checks.iter().find(|it| it["check"] == name);
            check.unwrap_or_else(|| panic!("no {name} in {report}"))["outcome"] == "ok"
        };
        for name in [
            "dhcp uefi-x64",
            "config uefi-x64",
            "tftp initrd of debian13:latest",
            "http shimx64.efi of debian13:latest",
            "nfs debian13:latest",
        ] {
            assert!(well(name), "{name}");
        }
        let node = ["node", "set", "52:54:00:00:00:77", "--name", "pc1"];
        site.slate(&node);
    }
    let nodes = site.slate_json(&["node", "list", "--json"]);
    assert_eq!(nodes.as_array().map(Vec::len), Some(1));

    let events = site.slate(&["events", "--json"]).lines().count();
    let plan = site.slate_json(&["plan", "pc1", "--json"]);
    assert_eq!(text(&plan, "firmware"), "uefi-x64");
    let files = plan["files"].as_array().expect("a list");
    let config = files.iter().find(|it| it["path"] == "grub/grub.cfg");
    let config = text(config.expect("a configuration"), "text");
    let parts = [
        "linux /boot/",
        "initrd /boot/",
        "slate.token=TOKEN",
        &site.digest,
    ];
    for part in parts {
        assert!(config.contains(part), "{config}");
    }
    // It left no trace.
    assert_eq!(site.slate(&["events", "--json"]).lines().count(), events);
}

#[test]
#[ignore = "needs root and an image: cargo xtask test"]
fn beside_another_server_the_doctor_is_heard() {
    if impossible(&[Tool::Iproute, Tool::Mmdebstrap]) {
        return;
    }
    let network = Network::new().expect("a network namespace");
    let site = Site::on(network, "debian13", &["--dhcp", "proxy"]);
    let node = ["node", "set", "52:54:00:00:00:77", "--name", "pc1"];
    site.slate(&node);
    let (code, report) = ask(&site, &["doctor", "--json"]);
    let findings = findings(&report);
    let checks: Vec<String> = findings.iter().map(|it| text(it, "check")).collect();
    // There is none: that is worth a warning, and the only thing that is wrong.
    assert_eq!(checks, ["other dhcp servers"], "{report}");
    assert_eq!(code, Some(5));
    let list = site.slate(&["node", "list"]);
    assert!(!list.contains("These asked to boot"), "{list}");
}
