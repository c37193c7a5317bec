//! Beside another DHCP server, which is dnsmasq on a host of its own and knows nothing of booting.

use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lab::{Host, MacAddress, Machine, Network, Process, Tool};
use wire::dhcp4::{MAX_BUDGET_BYTES, Message, MessageType, option};

use crate::firmware::{KERNEL_ARGS, arrives, power_on};
use crate::harness::{PATIENCE, Site, address, guest, impossible, text};

const TOOLS: [Tool; 5] = [
    Tool::Qemu,
    Tool::Firmware,
    Tool::Iproute,
    Tool::Mmdebstrap,
    Tool::Dnsmasq,
];

/// Another host with a DHCP server that gives addresses, and nothing but what `more` says.
fn other_server(network: &Network, directory: &Path, more: &[&str]) -> (Host, Process) {
    let host = network
        .add_host([10, 77, 0, 2].into())
        .expect("another host");
    let leases = directory.join("leases");
    let mut command = Command::new("dnsmasq");
    command
        .args([
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--pid-file=",
            "--user=root",
            "--port=0",
            "--bind-interfaces",
            "--dhcp-range=10.77.0.100,10.77.0.150,1h",
        ])
        .args(more)
        .arg(format!("--interface={}", host.interface()))
        .arg(format!("--dhcp-leasefile={}", leases.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let process = host.spawn(command).expect("dnsmasq starts");
    wait_for("dnsmasq", || process.has_udp_port(67));
    (host, process)
}

/// Serves debian13, in this mode.
fn serve(network: Network, mode: &str) -> Site {
    serve_image(network, "debian13", mode)
}

fn serve_image(network: Network, image: &str, mode: &str) -> Site {
    Site::on(
        network,
        image,
        &[&["--dhcp", mode], &KERNEL_ARGS[..]].concat(),
    )
}

/// The first machine comes up as the node that it is; its address.
fn boots(site: &Site) -> (Machine, Ipv4Addr) {
    let machine = power_on(site, 1, false);
    arrives(site, &machine, 1);
    let held = address(site, machine.mac());
    assert!((100..=150).contains(&held.octets()[3]), "{held}");
    (machine, held)
}

fn wait_for(what: &str, is_there: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_there() {
        assert!(Instant::now() < end, "waited for {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
#[ignore = "boots machines: cargo xtask test"]
fn a_node_boots_beside_another_dhcp_server_and_a_stranger_does_not() {
    if impossible(&TOOLS) {
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let network = Network::new().expect("a network namespace");
    let (_host, _server) = other_server(&network, directory.path(), &[]);
    let site = serve(network, "auto");
    let log = site.log();
    assert!(
        log.contains("10.77.0.2 answers there: --dhcp proxy"),
        "{log}"
    );

    let node = MacAddress::nth(1);
    site.slate(&["node", "set", &node.to_string(), "--name", "pc1"]);
    let stranger = power_on(&site, 2, false);
    let of = |kind: &str| site.events(stranger.mac(), kind);
    wait_for("a stranger", || of("machine-seen").len() == 1);
    let (machine, held) = boots(&site);
    let console = machine.console();
    let own = guest(console, "hostname; ip -4 -o address show scope global");
    assert!(
        own.starts_with("pc1\n") && own.contains(&held.to_string()),
        "{own}"
    );
    let seen = site.events(node, "address-seen");
    assert_eq!(text(&seen[0]["detail"], "address"), held.to_string());

    // The stranger asked and was not answered.
    assert_eq!(of("machine-seen").len(), 1);
    for kind in [
        "offer",
        "boot-offered",
        "boot-server-asked",
        "ack",
        "requested",
    ] {
        assert!(of(kind).is_empty(), "{kind}");
    }
    let list = site.slate(&["node", "list"]);
    assert!(
        list.contains("These asked to boot and are no nodes"),
        "{list}"
    );
    assert!(list.contains(&stranger.mac().to_string()), "{list}");
}

#[test]
#[ignore = "boots machines: cargo xtask test --full"]
fn full_debian_12_boots_beside_another_dhcp_server_by_a_newer_shim_and_grub() {
    if impossible(&TOOLS) {
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let network = Network::new().expect("a network namespace");
    let (_host, _server) = other_server(&network, directory.path(), &["--no-ping"]);
    let site = serve_image(network, "debian12", "proxy");
    let node = MacAddress::nth(1);
    site.slate(&["node", "set", &node.to_string(), "--name", "pc1"]);
    let (machine, held) = boots(&site);
    let own = guest(
        machine.console(),
        "hostname; uname -r; cat /etc/debian_version",
    );
    assert!(
        own.starts_with("pc1\n6.1.") && own.contains("\n12."),
        "{own}"
    );
    // GRUB found out by the other server's answer and ours which machine it runs on.
    let served = site.events(node, "config-served");
    assert_eq!(served.len(), 1, "{served:?}");
    assert_eq!(held, address(&site, node));
}

/// The variable that names the machine that [`asker`] is.
const ASK: &str = "SLATE_TEST_ASK";

/// No test: a machine's firmware that asks once, on another host.
#[test]
#[ignore = "a helper of other tests"]
fn asker() {
    let Ok(machine) = std::env::var(ASK) else {
        return;
    };
    let socket = UdpSocket::bind("0.0.0.0:68").expect("the client port");
    socket.set_broadcast(true).expect("broadcasts");
    let mut message = Message::request(machine.parse().expect("an address"), 7);
    message.push(option::MESSAGE_TYPE, [MessageType::Discover.code()]);
    message.push(option::CLASS, *b"PXEClient:Arch:00007:UNDI:003001");
    message.push(option::ARCHITECTURE, [0, 7]);
    let asked = message.encode(MAX_BUDGET_BYTES);
    socket
        .send_to(&asked, "255.255.255.255:67")
        .expect("sending");
}

#[test]
#[ignore = "boots machines: cargo xtask test --full"]
fn full_firmware_that_asks_again_is_told_on_port_4011() {
    if impossible(&TOOLS) {
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let network = Network::new().expect("a network namespace");
    let (host, _server) = other_server(&network, directory.path(), &["--no-ping"]);
    let site = serve(network, "proxy");
    let node = MacAddress::nth(1);
    site.slate(&["node", "set", &node.to_string(), "--name", "pc1"]);
    // As if it had asked before, and made nothing of the answer.
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command
        .args(["--ignored", "--exact", "proxy::asker", "--nocapture"])
        .env(ASK, node.to_string())
        .stdin(Stdio::null());
    let output = host.run(command).expect("the command starts");
    assert!(output.status.success(), "{output:?}");
    wait_for("the first offer", || {
        site.events(node, "boot-offered").len() == 1
    });
    let (_machine, held) = boots(&site);
    let offers = site.events(node, "boot-offered");
    assert_eq!(offers[1]["detail"]["again_on_4011"], true);
    assert!(!site.events(node, "boot-server-asked").is_empty());
    assert_eq!(held, address(&site, node));
}

#[test]
#[ignore = "boots machines: cargo xtask test --full"]
fn full_a_node_boots_where_another_server_names_this_one() {
    if impossible(&TOOLS) {
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let network = Network::new().expect("a network namespace");
    let names_us = [
        "--no-ping",
        "--dhcp-match=set:uefi,option:client-arch,7",
        "--dhcp-boot=tag:uefi,shimx64.efi,,10.77.0.1",
    ];
    let (_host, _server) = other_server(&network, directory.path(), &names_us);
    let site = serve(network, "off");
    let node = MacAddress::nth(1);
    site.slate(&["node", "set", &node.to_string(), "--name", "pc1"]);
    let (_machine, held) = boots(&site);
    // GRUB said which machine it runs on.
    let served = site.events(node, "config-served");
    let path = format!("/grub/{node}.cfg");
    assert_eq!(text(&served[0]["detail"], "path"), path);
    let seen = site.events(node, "address-seen");
    assert_eq!(text(&seen[0]["detail"], "address"), held.to_string());
}

/// ISC's DHCP server, on another host, with what `slate plan` printed for it.
fn isc_dhcpd(network: &Network, directory: &Path, lines: &str) -> (Host, Process) {
    let host = network
        .add_host([10, 77, 0, 2].into())
        .expect("another host");
    let subnet = "authoritative;\nping-check false;\n\
        subnet 10.77.0.0 netmask 255.255.255.0 { range 10.77.0.100 10.77.0.120; }\n";
    let (config, leases) = (directory.join("dhcpd.conf"), directory.join("leases"));
    std::fs::write(&config, format!("{subnet}{lines}")).expect("a file");
    std::fs::write(&leases, "").expect("a file");
    let log = std::fs::File::create(directory.join("dhcpd.log")).expect("a log");
    let mut command = Command::new("/usr/sbin/dhcpd");
    command
        .args(["-4", "-f", "-d", "--no-pid", "-cf"])
        .arg(&config)
        .arg("-lf")
        .arg(&leases)
        .arg(host.interface())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    let process = host.spawn(command).expect("dhcpd starts");
    let log = directory.join("dhcpd.log");
    wait_for("dhcpd", || {
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        said.contains("Server starting service")
    });
    (host, process)
}

#[test]
#[ignore = "boots machines: cargo xtask test --full"]
fn full_a_node_boots_beside_isc_dhcpd_with_the_printed_lines() {
    if impossible(&TOOLS) {
        return;
    }
    if !Path::new("/usr/sbin/dhcpd").exists() {
        println!("skipped: isc-dhcp-server is not installed");
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let network = Network::new().expect("a network namespace");
    let site = serve(network, "off");
    let node = MacAddress::nth(1);
    let fixed = "10.77.0.130";
    site.slate(&[
        "node",
        "set",
        &node.to_string(),
        "--name",
        "pc1",
        "--address",
        fixed,
    ]);
    let lines = site.slate(&["plan", "--as", "dhcpd"]);
    let (_host, _server) = isc_dhcpd(&site.network, directory.path(), &lines);
    let (machine, held) = boots(&site);
    assert_eq!(held.to_string(), fixed);
    assert_eq!(guest(machine.console(), "hostname"), "pc1");
}
