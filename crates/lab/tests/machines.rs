//! The lab itself, on real namespaces and machines. Needs root: `cargo xtask test` runs these.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lab::{Firmware, Hardware, MacAddress, Machine, Network, Qemu, Uml};

const PATIENCE: Duration = Duration::from_secs(300);

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]).stdin(Stdio::null());
    command
}

fn stdout(network: &Network, script: &str) -> String {
    let output = network.run(shell(script)).expect("sh starts");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A machine whose root is this computer's file system, read-only, and whose only program is a shell.
fn shell_machine(network: &Network) -> Machine {
    let uml = Uml {
        initrd: None,
        command_line: "root=none rootfstype=hostfs rootflags=/ ro init=/bin/sh".to_owned(),
        memory_mib: 128,
    };
    Machine::power_on(
        network,
        "shell",
        MacAddress::nth(1),
        Hardware::Uml(uml),
        None,
    )
    .expect("powers on")
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_network_has_its_bridge_and_nothing_of_ours() {
    let network = Network::new().expect("a namespace");
    network.add_tap().expect("a tap");
    assert_eq!(stdout(&network, "ls /sys/class/net | xargs"), "br0 lo tap0");
    assert_eq!(stdout(&network, "ip route | grep default | wc -l"), "0");
    assert!(stdout(&network, "ip -4 address show br0").contains("10.77.0.1/24"));
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn children_of_a_network_die_with_it() {
    let network = Network::new().expect("a namespace");
    // The shell becomes it: what a killed shell started would go on.
    let child = network.spawn(shell("exec sleep 1000")).expect("starts");
    let entry = format!("/proc/{}", child.id());
    assert!(std::path::Path::new(&entry).exists());
    drop(child);
    assert!(!std::path::Path::new(&entry).exists());
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_shell_answers_on_the_console_of_user_mode_linux() {
    let network = Network::new().expect("a namespace");
    let mut machine = shell_machine(&network);
    let console = machine.console().clone();
    console.expect("# ", PATIENCE).expect("a prompt");
    let output = console
        .run("echo one; echo two >&2; (exit 7)", PATIENCE)
        .expect("runs");
    assert_eq!((output.text.as_str(), output.status), ("one\ntwo\n", 7));
    assert_eq!(
        console.run("uname -m", PATIENCE).expect("runs").text.trim(),
        "x86_64"
    );
    machine.power_off().expect("powers off");
    // The kernel ends what is in a process namespace a moment after its first process.
    let end = Instant::now() + PATIENCE;
    while console.run("true", PATIENCE).is_ok() {
        assert!(Instant::now() < end, "the machine answers without power");
    }
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn machines_reach_the_bridge() {
    let network = Network::new().expect("a namespace");
    let machine = shell_machine(&network);
    let console = machine.console();
    console.expect("# ", PATIENCE).expect("a prompt");
    let script = "ip address add 10.77.0.2/24 dev vec0 && ip link set vec0 up && ip neigh replace 10.77.0.1 \
                  lladdr 02:77:00:00:00:01 dev vec0 && cat /sys/class/net/vec0/address";
    let output = console
        .run(
            &format!("mount -t sysfs sys /sys; mount -t proc proc /proc; {script}"),
            PATIENCE,
        )
        .expect("runs");
    assert!(
        output.text.contains(&machine.mac().to_string()),
        "{}",
        output.text
    );
    // A refusal proves that the machine answered.
    let call = || stdout(&network, "bash -c 'exec 3<>/dev/tcp/10.77.0.2/9' 2>&1");
    let end = Instant::now() + PATIENCE;
    let mut answer = call();
    while !answer.contains("Connection refused") {
        // A machine that was not given the time to answer ARP.
        assert!(
            answer.contains("No route to host") && Instant::now() < end,
            "{answer}"
        );
        answer = call();
    }
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn firmware_tries_to_boot_from_the_network() {
    let network = Network::new().expect("a namespace");
    let firmware = Firmware::find(false).expect("OVMF is installed");
    let qemu = Qemu::new(firmware, 256).expect("a variable store");
    let mut machine = Machine::power_on(
        &network,
        "pc",
        MacAddress::nth(2),
        Hardware::Qemu(qemu),
        None,
    )
    .expect("powers on");
    machine
        .console()
        .expect("Start PXE over IPv4", PATIENCE)
        .expect("PXE starts");
    machine.power_cycle().expect("powers on again");
    machine
        .console()
        .expect("Start PXE over IPv4", PATIENCE)
        .expect("PXE starts again");
}

const VICTIM: &str = "LAB_TEST_VICTIM";

/// Not a test by itself: the process that the next test kills.
#[test]
#[ignore = "needs root: cargo xtask test"]
fn victim() {
    if std::env::var_os(VICTIM).is_none() {
        return;
    }
    let network = Network::new().expect("a namespace");
    let machine = shell_machine(&network);
    machine.console().expect("# ", PATIENCE).expect("a prompt");
    println!("the machine is up");
    std::thread::sleep(PATIENCE);
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn nothing_survives_a_kill() {
    let mut victim = Command::new(std::env::current_exe().expect("this test's program"))
        .args(["--ignored", "--exact", "victim", "--nocapture"])
        .env(VICTIM, "1")
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let screen = BufReader::new(victim.stdout.take().expect("a pipe"));
    screen
        .lines()
        .map_while(Result::ok)
        .find(|line| line.contains("is up"))
        .expect("the machine comes up");
    let family = descendants(victim.id());
    assert!(
        family.len() >= 4,
        "unshare, sh, the kernel and its processes: {family:?}"
    );
    victim.kill().expect("is killed");
    victim.wait().expect("is reaped");
    let end = Instant::now() + PATIENCE;
    while family.iter().any(|id| is_alive(*id)) {
        assert!(Instant::now() < end, "still alive: {family:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn descendants(root: u32) -> Vec<u32> {
    let mut found = vec![root];
    let mut next = 0;
    while let Some(&id) = found.get(next) {
        next += 1;
        let tasks = std::fs::read_dir(format!("/proc/{id}/task"))
            .into_iter()
            .flatten()
            .flatten();
        let children =
            tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
        let children: Vec<String> = children.collect();
        found.extend(
            children
                .iter()
                .flat_map(|text| text.split(' '))
                .filter_map(|id| id.parse::<u32>().ok()),
        );
    }
    found.split_off(1)
}

/// Whether the process runs (a zombie that init has not reaped does not).
fn is_alive(id: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{id}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}
