//! Each chain of loaders that firmware can take, to multi-user.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use lab::{Console, MacAddress, Machine, Process, Qemu, Tool, UefiNetwork};

use crate::firmware::{KERNEL_ARGS, MEMORY_MIB, arrives, enforces, power_on_hardware, uefi};
use crate::harness::{PATIENCE, Site, impossible, text};

const TOOLS: [Tool; 6] = [
    Tool::Qemu,
    Tool::Firmware,
    Tool::IpxeRoms,
    Tool::Iproute,
    Tool::Mmdebstrap,
    Tool::Tcpdump,
];
/// Loaders of this machine's packages, which images may do without.
const IPXE: &str = "/usr/lib/ipxe";
const PXELINUX: [&str; 2] = [
    "/usr/lib/PXELINUX/pxelinux.0",
    "/usr/lib/syslinux/modules/bios/ldlinux.c32",
];

/// Whether a loader is there; else it says why the test is skipped.
fn has(path: &str, package: &str) -> bool {
    let there = Path::new(path).exists();
    if !there {
        println!("skipped: no {path} (package {package})");
    }
    there
}

/// Lays a loader where the daemon takes those from that the image lacks.
fn lay(site: &Site, path: &str) {
    let folder = site.path("state/loaders");
    std::fs::create_dir_all(&folder).expect("a folder");
    let name = Path::new(path).file_name().expect("a file's name");
    std::fs::copy(path, folder.join(name)).expect("a copy");
}

/// What was fetched, in order, each once.
fn fetched(site: &Site, mac: MacAddress) -> Vec<String> {
    let mut paths: Vec<String> = Vec::new();
    for event in site.events(mac, "sent") {
        let path = format!(
            "{} {}",
            text(&event["detail"], "service"),
            text(&event["detail"], "path").trim_start_matches('/')
        );
        let path = path.replace(&site.digest, "DIGEST");
        // Where PXELINUX asks again: the initramfs was not ready.
        if !paths.contains(&path) && path != "tftp pxelinux.cfg/default" {
            paths.push(path);
        }
    }
    paths
}

/// It came up in one boot, by these files and no others.
fn took(site: &Site, machine: &Machine, expected: &[&str]) {
    arrives(site, machine, 1);
    assert_eq!(fetched(site, machine.mac()), expected);
    assert_eq!(site.events(machine.mac(), "boot-started").len(), 1);
    assert!(site.events(machine.mac(), "failed").is_empty());
}

#[test]
#[ignore = "boots machines: cargo xtask test --full"]
fn full_uefi_http_boot_runs_shim_and_grub_over_http() {
    http_boot_runs_shim_and_grub("debian13", false);
}

#[test]
#[ignore = "boots machines: cargo xtask test --full"]
fn full_uefi_http_boot_of_debian_12_runs_a_newer_shim_and_grub_by_secure_boot() {
    if let Some(site) = http_boot_runs_shim_and_grub("debian12", true) {
        let plan = site.slate(&["plan", "52:77:00:00:00:01", "--firmware", "uefi-http"]);
        let shown = site.slate_json(&["image", "show", "debian12", "--json"]);
        for (loader, package) in [("shim", "shim-signed"), ("grub", "grub-efi-amd64-signed")] {
            let origin = &shown[loader]["origin"];
            assert_eq!(text(origin, "release"), "trixie");
            assert_eq!(text(origin, "package"), package);
            let told = format!("{package} {} of trixie", text(origin, "version"));
            assert!(plan.contains(&told), "{plan}");
        }
    }
}

/// The site, unless this cannot run here. With `secure`, Secure Boot is on.
fn http_boot_runs_shim_and_grub(image: &str, secure: bool) -> Option<Site> {
    if impossible(&TOOLS) {
        return None;
    }
    let site = Site::new(image, &KERNEL_ARGS);
    let machine = power_on_hardware(&site, 1, uefi(secure).with_network(UefiNetwork::Http));
    took(
        &site,
        &machine,
        &[
            "http shimx64.efi",
            "http grubx64.efi",
            "http grub/grub.cfg",
            "http boot/DIGEST/vmlinuz",
            "http boot/DIGEST/initrd",
        ],
    );
    assert_eq!(enforces(machine.console()), secure);
    Some(site)
}

#[test]
#[ignore = "boots machines: cargo xtask test --full"]
fn full_http_boot_of_a_grub_without_http_is_refused_and_ipxe_boots_it() {
    if impossible(&TOOLS) || !has(IPXE, "ipxe") {
        return;
    }
    let mut site = Site::new("debian12", &KERNEL_ARGS);
    // As an image is that was not built here.
    site.give_own_store();
    site.update("debian12", "rm -r /usr/lib/slate/loaders");
    let shown = site.slate_json(&["image", "show", "debian12", "--json"]);
    site.digest = text(&shown, "digest");
    let machine = power_on_hardware(&site, 1, uefi(false).with_network(UefiNetwork::Http));
    let end = std::time::Instant::now() + PATIENCE;
    let failed = loop {
        if let Some(failed) = site.events(machine.mac(), "failed").into_iter().next() {
            break failed;
        }
        assert!(std::time::Instant::now() < end, "{}", site.said());
        std::thread::sleep(Duration::from_millis(500));
    };
    let cause = text(&failed["detail"], "cause");
    assert!(cause.contains("GRUB has no HTTP"), "{cause}");
    drop(machine);
    // A second machine, with what the first was told to take.
    lay(&site, &format!("{IPXE}/snponly.efi"));
    std::thread::sleep(Duration::from_secs(3));
    let machine = power_on_hardware(&site, 2, uefi(false).with_network(UefiNetwork::Http));
    took(
        &site,
        &machine,
        &[
            "http snponly.efi",
            "http autoexec.ipxe",
            "http boot/DIGEST/vmlinuz",
            "http boot/DIGEST/initrd",
        ],
    );
}

#[test]
#[ignore = "boots machines: cargo xtask test --full"]
fn full_uefi_pxe_loads_ipxe_which_boots_over_http() {
    if impossible(&TOOLS) || !has(IPXE, "ipxe") {
        return;
    }
    let site = Site::new(
        "debian13",
        &[&["--loader", "ipxe"], &KERNEL_ARGS[..]].concat(),
    );
    lay(&site, &format!("{IPXE}/snponly.efi"));
    let seen = site.path("routers");
    let mut tcpdump = routers_and_http(&site, &seen);
    std::thread::sleep(Duration::from_secs(3));
    let machine = power_on_hardware(&site, 1, uefi(false));
    took(
        &site,
        &machine,
        &[
            "tftp snponly.efi",
            "http autoexec.ipxe",
            "http boot/DIGEST/vmlinuz",
            "http boot/DIGEST/initrd",
        ],
    );
    tcpdump.kill().expect("tcpdump can be ended");
    assert_no_wait_for_routers(&std::fs::read_to_string(seen).expect("what tcpdump saw"));
    assert_eq!(site.events(machine.mac(), "routers-denied").len(), 1);
}

/// Writes, a line for each, what asks for IPv6 routers, what answers, and what begins to fetch over HTTP.
fn routers_and_http(site: &Site, seen: &Path) -> Process {
    let mut command = Command::new("tcpdump");
    command
        .args(["-n", "-l", "-i", site.network.interface()])
        .arg("(icmp6 and (ip6[40] == 133 or ip6[40] == 134)) or (tcp[tcpflags] == tcp-syn and dst port 80)")
        .stdout(std::fs::File::create(seen).expect("a file"))
        .stderr(Stdio::null());
    site.network.spawn(command).expect("tcpdump starts")
}

/// iPXE solicits a few times, is answered, and then asks no more and fetches; what runs after it asks as
/// well and is answered nothing.
fn assert_no_wait_for_routers(seen: &str) {
    /// By the machine's Ethernet address (RFC 4862, 5.3): the server's own bridge asks too.
    const ASKED: &str = "IP6 fe80::5077:ff:fe00:1 > ff02::2: ICMP6, router solicitation";
    const TOLD: &str = "> fe80::5077:ff:fe00:1: ICMP6, router advertisement";
    let lines: Vec<&str> = seen.lines().collect();
    let http = lines.iter().position(|it| it.contains("Flags [S]"));
    let (ipxe, later) = lines.split_at(http.expect("a connection"));
    let places = |lines: &[&str], what: &str| -> Vec<usize> {
        let found = lines.iter().enumerate();
        let found = found.filter(|(_, line)| line.contains(what));
        found.map(|(at, _)| at).collect()
    };
    // The first may come before its first message to DHCP servers, and is then nobody's.
    let (asked, told) = (places(ipxe, ASKED), places(ipxe, TOLD));
    let last = asked.last().expect("a solicitation");
    assert!(asked.len() <= 3 && told.len() <= asked.len(), "{seen}");
    assert!(told.iter().any(|it| it > last), "{seen}");
    assert!(!places(later, ASKED).is_empty(), "{seen}");
    let all = seen.matches("router advertisement").count();
    assert_eq!(all, told.len(), "{seen}");
}

#[test]
#[ignore = "boots machines: cargo xtask test --full"]
fn full_ipxe_as_a_card_s_rom_boots_over_http() {
    if impossible(&TOOLS) {
        return;
    }
    let site = Site::new("debian13", &KERNEL_ARGS);
    for (index, hardware) in [
        (1, Qemu::bios(MEMORY_MIB)),
        (2, uefi(false).with_network(UefiNetwork::IpxeRom)),
    ] {
        let machine = power_on_hardware(&site, index, hardware);
        took(
            &site,
            &machine,
            &[
                "http autoexec.ipxe",
                "http boot/DIGEST/vmlinuz",
                "http boot/DIGEST/initrd",
            ],
        );
    }
}

/// A BIOS whose ROM loads `loader` as any other ROM would. The only free ROM is iPXE, which needs to
/// be told to: it would fetch its script.
fn loads(site: &Site, index: u16, loader: &str) -> Machine {
    let machine = power_on_hardware(site, index, Qemu::bios(MEMORY_MIB));
    let console = machine.console();
    console
        .expect("Press Ctrl-B", PATIENCE)
        .expect("the ROM's banner");
    console.send(b"\x02").expect("typing");
    console.expect("iPXE>", PATIENCE).expect("a prompt");
    typed(console, "dhcp");
    console.expect("ok", PATIENCE).expect("an address");
    console.expect("iPXE>", PATIENCE).expect("a prompt");
    // What it says of itself to what it loads is that it boots over HTTP, unless told otherwise.
    for line in [
        "set 210:string tftp://SERVER/",
        "chain tftp://SERVER/LOADER",
    ] {
        let line = line.replace("SERVER", &lab::GATEWAY.to_string());
        typed(console, &line.replace("LOADER", loader));
        console.expect("tftp://", PATIENCE).expect("an echo");
    }
    machine
}

/// A BIOS reads its serial line now and then, and what comes faster is lost.
fn typed(console: &Console, line: &str) {
    for byte in line.bytes().chain([b'\r']) {
        console.send(&[byte]).expect("typing");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
#[ignore = "boots machines: cargo xtask test --full"]
fn full_a_bios_loads_ipxe_which_boots_over_http() {
    if impossible(&TOOLS) || !has(IPXE, "ipxe") {
        return;
    }
    let site = Site::new("debian13", &KERNEL_ARGS);
    lay(&site, &format!("{IPXE}/undionly.kpxe"));
    std::thread::sleep(Duration::from_secs(3));
    let machine = loads(&site, 1, "undionly.kpxe");
    took(
        &site,
        &machine,
        &[
            "tftp undionly.kpxe",
            "http autoexec.ipxe",
            "http boot/DIGEST/vmlinuz",
            "http boot/DIGEST/initrd",
        ],
    );
}

#[test]
#[ignore = "boots machines: cargo xtask test --full"]
fn full_a_bios_boots_by_pxelinux() {
    if impossible(&TOOLS)
        || !PXELINUX
            .iter()
            .all(|it| has(it, "pxelinux, syslinux-common"))
    {
        return;
    }
    let site = Site::new("debian13", &KERNEL_ARGS);
    PXELINUX.iter().for_each(|it| lay(&site, it));
    std::thread::sleep(Duration::from_secs(3));
    let machine = loads(&site, 1, "pxelinux.0");
    took(
        &site,
        &machine,
        &[
            "tftp pxelinux.0",
            "tftp ldlinux.c32",
            "tftp pxelinux.cfg/01-52-77-00-00-00-01",
            "tftp boot/DIGEST/vmlinuz",
            "tftp boot/DIGEST/initrd",
        ],
    );
}
