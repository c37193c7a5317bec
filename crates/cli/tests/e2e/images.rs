//! Images that change while nodes run them: new versions, rollbacks, and what is removed in the end.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use lab::{Console, MacAddress, Machine, Tool};

use crate::harness::{PATIENCE, Site, guest, impossible, log_in, text};
use crate::native::{self, initrd, power_on};

/// Reads all of /usr again and again; what fails is written down.
const READ_LOAD: &str = "(while :; do find /usr /etc -xdev -type f -exec cat {} + \
    2>> /run/read-errors > /dev/null; echo 2 > /proc/sys/vm/drop_caches; \
    echo pass >> /run/read-passes; done) < /dev/null &";

#[test]
#[ignore = "boots machines: cargo xtask test"]
fn nodes_run_on_while_versions_come_and_go() {
    if impossible(&native::TOOLS) {
        return;
    }
    let mut site = Site::new("debian12", &[]);
    site.give_own_store();
    let initrd = initrd(&site);
    let boot = |site: &Site, index| power_on(site, &initrd, index);
    let mut machines: Vec<Machine> = (1..=3).map(|index| boot(&site, index)).collect();
    for machine in &machines {
        site.wait_up(machine.mac(), 1);
        log_in(machine.console());
        guest(machine.console(), READ_LOAD);
    }
    let one = digest(&site, "debian12");

    let run = |site: &Site, base: &str, mark: &str| {
        let command = format!("echo {mark} > /etc/mark");
        site.slate(&["image", "run", base, "--", "sh", "-c", &command]);
        digest(site, "debian12:next")
    };
    let two = run(&site, "debian12", "two");
    assert_eq!(digest(&site, "debian12"), one, "a commit moves only :next");
    site.slate(&["image", "tag", "debian12:next", "debian12"]);
    let stale = site.slate(&["node", "stale"]);
    assert!(
        stale.contains("Kernel") && stale.contains("1 added"),
        "{stale}"
    );
    reboot(&site, &mut machines, 1, 2, &boot);
    assert_eq!(guest(machines[0].console(), "cat /etc/mark"), "two");
    assert_eq!(runs(&site, 1), two);
    site.slate(&["image", "rollback", "debian12"]);
    reboot(&site, &mut machines, 1, 3, &boot);
    guest(machines[0].console(), "test ! -e /etc/mark");
    assert_eq!(runs(&site, 1), one);

    // The first version loses every name, while nodes 2 and 3 read it without end.
    let three = run(&site, "debian12:next", "three");
    for version in [&two, &three] {
        site.slate(&["image", "tag", version, "debian12"]);
    }
    let collected = site.slate_json(&["image", "gc", "--json"]);
    assert_eq!(collected["versions"].as_array().map(Vec::len), Some(0));
    for machine in &machines[1..] {
        let console = machine.console();
        wait_passes(console, passes(console) + 1);
        assert_eq!(guest(console, "cat /run/read-errors"), "");
        assert!(site.events(machine.mac(), "nfs-stale").is_empty());
        assert!(site.events(machine.mac(), "nfs-damaged").is_empty());
    }

    reboot(&site, &mut machines, 1, 4, &boot);
    reboot(&site, &mut machines, 2, 2, &boot);
    reboot(&site, &mut machines, 3, 2, &boot);
    for machine in &machines {
        assert_eq!(guest(machine.console(), "cat /etc/mark"), "three");
    }
    // The server learns by and by that the connections of machines without power are gone.
    let end = Instant::now() + PATIENCE;
    let collected = loop {
        let collected = site.slate_json(&["image", "gc", "--json"]);
        if collected["versions"] != serde_json::json!([]) || Instant::now() > end {
            break collected;
        }
        std::thread::sleep(Duration::from_secs(2));
    };
    assert_eq!(collected["versions"], serde_json::json!([one]));
    let verified = site.slate_json(&["image", "verify", "--json"]);
    assert_eq!(verified["versions"], 2, "{verified}");
}

#[test]
#[ignore = "boots machines: cargo xtask test"]
fn a_version_that_never_comes_up_makes_way_for_the_one_before() {
    if impossible(&native::TOOLS) {
        return;
    }
    let mut site = Site::new("debian12", &[]);
    site.give_own_store();
    let initrd = initrd(&site);
    let boot = |site: &Site, index| power_on(site, &initrd, index);
    let mut machines = vec![boot(&site, 1)];
    let mac = machines[0].mac();
    site.wait_up(mac, 1);
    let good = digest(&site, "debian12");

    site.update("debian12", "cp /bin/false /usr/lib/systemd/systemd");
    let bad = digest(&site, "debian12");
    for count in 2..=3 {
        machines[0]
            .power_off()
            .expect("a machine that can be cut off");
        machines[0] = boot(&site, 1);
        wait_handed_over(&site, mac, count);
        assert_eq!(runs(&site, 1), bad);
    }
    reboot(&site, &mut machines, 1, 2, &boot);
    assert_eq!(runs(&site, 1), good);
    let told = site.events(mac, "fell-back");
    assert_eq!(told.len(), 1);
    assert_eq!(told[0]["detail"]["failed"], bad.as_str());

    let log = site.slate_json(&["node", "log", "node1", "--json"]);
    let boots: Vec<_> = log.as_array().expect("a list").iter().collect();
    let field = |name: &str| -> Vec<String> { boots.iter().map(|it| text(it, name)).collect() };
    assert_eq!(
        field("digest"),
        [&good, &bad, &bad, &good].map(String::clone)
    );
    assert_eq!(
        field("reached"),
        ["multi-user", "switch-root", "switch-root", "multi-user"]
    );
    let shown = site.slate(&["node", "log", "node1"]);
    assert!(shown.contains("multi-user"), "{shown}");
}

/// Waits until a node's `/init` has handed over to the image for the `count`th time.
fn wait_handed_over(site: &Site, mac: MacAddress, count: usize) {
    let handed_over = || {
        let stages = site.events(mac, "stage");
        let is_last = |event: &&serde_json::Value| event["detail"]["stage"] == "switch-root";
        stages.iter().filter(is_last).count()
    };
    let end = Instant::now() + PATIENCE;
    while handed_over() < count {
        assert!(Instant::now() < end, "/init does not come to its end");
        std::thread::sleep(Duration::from_millis(500));
    }
}

fn digest(site: &Site, image: &str) -> String {
    text(
        &site.slate_json(&["image", "show", image, "--json"]),
        "digest",
    )
}

/// The version that the daemon says a node runs.
fn runs(site: &Site, index: u16) -> String {
    let mac = MacAddress::nth(index).to_string();
    text(
        &site.slate_json(&["node", "show", &mac, "--json"]),
        "digest",
    )
}

/// Cuts the power of a node, boots it again by a new plan, and logs in; its `count`th boot.
fn reboot(
    site: &Site,
    machines: &mut [Machine],
    index: u16,
    count: usize,
    boot: &dyn Fn(&Site, u16) -> Machine,
) {
    let machine = &mut machines[usize::from(index) - 1];
    machine.power_off().expect("a machine that can be cut off");
    *machine = boot(site, index);
    site.wait_up(machine.mac(), count);
    log_in(machine.console());
}

fn passes(console: &Console) -> usize {
    let count = guest(console, "cat /run/read-passes 2> /dev/null | wc -l");
    count.parse().expect("a number")
}

/// All of an image is read, by several nodes at once.
fn wait_passes(console: &Console, wanted: usize) {
    let end = Instant::now() + 3 * PATIENCE;
    while passes(console) < wanted {
        assert!(Instant::now() < end, "the reads do not come to an end");
        std::thread::sleep(Duration::from_millis(500));
    }
}

#[test]
#[ignore = "changes an image as root: cargo xtask test"]
fn an_image_is_changed_in_a_place_of_its_own() {
    if impossible(&[Tool::Iproute, Tool::Mmdebstrap]) {
        return;
    }
    let mut site = Site::new("debian12", &[]);
    site.give_own_store();
    let shown = site.slate_json(&["image", "show", "debian12", "--json"]);
    let kernel = text(&shown["kernel"], "version");

    // What a command does not change stays as it is, to the last time and link.
    let printed = change(&site, "debian12", &[], "true");
    assert!(
        succeeded(&printed).contains("Nothing changed"),
        "{printed:?}"
    );
    let looked = change(
        &site,
        "debian12",
        &["--network", "off"],
        "uname -r; hostname; echo devices $(tail -n +3 /proc/net/dev | cut -d: -f1); echo process $$; sleep 1000 &",
    );
    let looked = succeeded(&looked);
    assert!(
        looked.starts_with(&format!("{kernel}\ndebian12\n")),
        "{looked}"
    );
    assert!(looked.contains("\ndevices lo\nprocess 1\n"), "{looked}");

    let failed = change(&site, "debian12", &[], "echo x > /etc/lost; exit 7");
    assert_eq!(failed.status.code(), Some(1));
    let said = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(said.contains("exit status: 7") && said.contains("nothing was published"));
    let tags = |site: &Site| -> Vec<String> {
        let list = site.slate_json(&["image", "list", "--json"]);
        let versions = list.as_array().expect("a list").iter();
        let tags = versions.flat_map(|it| it["tags"].as_array().expect("tags").clone());
        tags.map(|it| it.as_str().expect("a tag").to_owned())
            .collect()
    };
    assert_eq!(tags(&site), ["debian12:latest"]);

    // Two at once: the later one keeps its work under a name of its own, and is told.
    let waiting =
        "echo mine > /etc/both; touch /etc/waiting; until [ -e /etc/go ]; do sleep .1; done";
    let slow = change_command(&site, "debian12", &[], waiting)
        .spawn()
        .expect("slate starts");
    let root = wait_root(&site);
    succeeded(&change(&site, "debian12", &[], "echo theirs > /etc/both"));
    let theirs = digest(&site, "debian12:next");
    std::fs::write(root.join("etc/go"), "").expect("a file in the copy");
    let slow = slow.wait_with_output().expect("the slow change ends");
    let said = String::from_utf8_lossy(&slow.stderr).into_owned();
    assert_eq!(slow.status.code(), Some(1), "{said}");
    for part in [
        "moved while",
        "debian12:conflict-",
        "both changed /etc/both",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!(digest(&site, "debian12:next"), theirs);
    let all = tags(&site);
    let conflict = all.iter().find(|it| it.starts_with("debian12:conflict-"));
    let conflict = conflict.expect("a tag for the later one");
    let diff = site.slate_json(&["image", "diff", "debian12:next", conflict, "--json"]);
    let paths: Vec<String> = diff["files"]
        .as_array()
        .expect("files")
        .iter()
        .map(|it| text(it, "path"))
        .collect();
    for path in ["/etc/both", "/etc/go", "/etc/waiting"] {
        assert!(paths.iter().any(|it| it == path), "{path}: {paths:?}");
    }

    // A :next that the base has not is not thrown away unasked.
    let refused = change(&site, "debian12", &[], "true");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        said.contains("--replace") && said.contains("slate image edit debian12:next"),
        "{said}"
    );
    let left = std::fs::read_dir(site.path("state/edit")).expect("a directory");
    assert_eq!(left.count(), 0, "nothing stays behind");
}

fn change_command(site: &Site, image: &str, options: &[&str], script: &str) -> Command {
    let mut command = site.slate_command();
    command.args(["image", "run", image]).args(options);
    command.args(["--", "sh", "-c", script]);
    command.stdout(std::process::Stdio::piped());
    command.stderr(std::process::Stdio::piped());
    command
}

fn change(site: &Site, image: &str, options: &[&str], script: &str) -> Output {
    let mut command = change_command(site, image, options, script);
    command.output().expect("slate starts")
}

fn succeeded(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The copy in which a command says that it waits.
fn wait_root(site: &Site) -> PathBuf {
    let end = Instant::now() + PATIENCE;
    loop {
        let copies = std::fs::read_dir(site.path("state/edit")).expect("a directory");
        let roots = copies.flatten().map(|entry| entry.path().join("root"));
        if let Some(root) = roots.filter(|it| it.join("etc/waiting").exists()).last() {
            return root;
        }
        assert!(Instant::now() < end, "the command does not come to wait");
        std::thread::sleep(Duration::from_millis(50));
    }
}
