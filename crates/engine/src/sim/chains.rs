//! Each kind of firmware takes its own chain of loaders, and is told of nothing else.

use wire::dhcp4::{MAX_BUDGET_BYTES, option};
use wire::stage::Stage;

use super::machine::Chain;
use super::*;
use crate::command::NodeChange;
use crate::config::UefiLoader;
use crate::io::DhcpDestination;

const MINUTE: Duration = Duration::from_secs(60);

/// A world whose image has these loaders only.
fn world(seed: u8, network: Network, loaders: &[BootFile]) -> World {
    let mut world = World::new(seed, network, config());
    for file in BootFile::ALL.into_iter().filter(|it| it.is_loader()) {
        if !loaders.contains(&file) {
            let cause = format!("no {}: install it", file.name());
            world.images[0].files.insert(file, Err(cause));
        }
    }
    world.show_images();
    world
}

fn power_on(world: &mut World, chain: Chain) {
    world.power_on(1);
    world.machines.last_mut().expect("a machine").chain = chain;
}

const CHAINS: [(Chain, &[BootFile]); 3] = [
    (Chain::Uefi, &[BootFile::Shim, BootFile::Grub]),
    (
        Chain::BiosPxelinux,
        &[BootFile::Pxelinux, BootFile::Ldlinux],
    ),
    (Chain::BiosIpxe, &[BootFile::IpxeBios, BootFile::Pxelinux]),
];

#[test]
fn each_chain_is_one_boot_with_every_stage() {
    for (chain, loaders) in CHAINS {
        let mut world = world(1, GOOD, loaders);
        power_on(&mut world, chain);
        world.boot_all(2 * MINUTE);
        let view = world.engine.node(&mac(0)).expect("a node");
        assert_eq!(view.former_boots.len(), 0, "{chain:?}\n{}", world.story());
        let boot = view.boot.expect("a boot");
        let stages: Vec<_> = boot.timeline.iter().map(|it| it.stage).collect();
        let mut expected = Stage::ALL.to_vec();
        if chain != Chain::Uefi {
            expected.retain(|it| *it != Stage::Grub);
        }
        assert_eq!(stages, expected, "{chain:?}");
        let warns = |it: &EventKind| it.severity() == crate::Severity::Warning;
        assert_eq!(world.count(warns), 0, "{}", world.story());
    }
}

#[test]
fn each_chain_boots_on_a_bad_network_and_beside_another_server() {
    for (chain, loaders) in CHAINS {
        for seed in 0..4 {
            let mut world = world(seed, BAD, loaders);
            power_on(&mut world, chain);
            power_on(&mut world, chain);
            world.boot_all(30 * MINUTE);
        }
        let mut world = world(9, GOOD, loaders);
        world.config.interfaces[0].dhcp = DhcpMode::Proxy;
        world.other = Some(OtherServer::default());
        world.restart();
        let node = mac(0).to_string();
        let change = NodeChange {
            name: Some("pc".into()),
            ..NodeChange::default()
        };
        let set = Command::NodeSet { node, change };
        world.command(set).expect("a node");
        power_on(&mut world, chain);
        world.boot_all(5 * MINUTE);
        assert_eq!(world.engine.node(&mac(0)).unwrap().former_boots.len(), 0);
    }
}

#[test]
fn a_loader_waits_for_its_initramfs_in_every_language() {
    for (chain, loaders) in CHAINS {
        let mut world = world(2, GOOD, loaders);
        power_on(&mut world, chain);
        world.boot_all(2 * MINUTE);
        assert_eq!(world.count(|it| matches!(it, EventKind::Waits { .. })), 1);
        assert_eq!(world.count(|it| matches!(it, EventKind::Up { .. })), 1);
    }
}

/// Options by code.
type Options = &'static [(u8, &'static [u8])];

/// A DISCOVER of a machine with this vendor class, architecture and more.
fn asks(index: usize, class: &[u8], architecture: u16, more: &[(u8, &[u8])]) -> Message {
    let mut message = Message::request(mac(index), 7);
    message.push(option::MESSAGE_TYPE, [MessageType::Discover.code()]);
    message.push(option::CLASS, class);
    message.push(option::ARCHITECTURE, architecture.to_be_bytes());
    for (code, value) in more {
        message.push(*code, *value);
    }
    message
}

/// The reply to a message, as bytes.
fn reply_to(world: &mut World, message: &Message) -> Message {
    let outputs = world
        .engine
        .handle(world.now, dhcp(message.encode(MAX_BUDGET_BYTES)));
    let mut replies = outputs.into_iter().filter_map(|output| match output {
        Output::Dhcp {
            destination: DhcpDestination::Broadcast,
            packet,
            ..
        } => Some(packet),
        _ => None,
    });
    Message::decode(&replies.next().expect("a reply")).expect("a message")
}

const PXE: &[u8] = b"PXEClient:Arch:00007:UNDI:003001";
const HTTP: &[u8] = b"HTTPClient:Arch:00016:UNDI:003001";
/// iPXE with HTTP.
const IPXE: Options = &[(77, b"iPXE"), (175, &[0x13, 1, 1])];

#[test]
fn firmware_is_told_the_first_file_of_its_chain() {
    let script = "http://10.77.0.1/autoexec.ipxe";
    let cases: [(&[u8], u16, Options, &str); 11] = [
        (PXE, 0, &[], "undionly.kpxe"),
        (PXE, 7, &[], "shimx64.efi"),
        (PXE, 9, &[], "shimx64.efi"),
        (PXE, 11, &[], "shimaa64.efi"),
        (HTTP, 16, &[], "http://10.77.0.1/shimx64.efi"),
        (HTTP, 19, &[], "http://10.77.0.1/shimaa64.efi"),
        (PXE, 0, IPXE, script),
        (PXE, 7, IPXE, script),
        (
            PXE,
            0,
            &[(77, b"iPXE"), (175, &[0x18, 1, 1])],
            "autoexec.ipxe",
        ),
        // Of these nothing is known.
        (PXE, 6, &[], ""),
        (HTTP, 7, &[], ""),
    ];
    for (class, architecture, more, file) in cases {
        let mut world = world(1, GOOD, &BootFile::ALL);
        let reply = reply_to(&mut world, &asks(0, class, architecture, more));
        assert_eq!(String::from_utf8_lossy(&reply.file), file);
        let by_option = reply.option(option::BOOT_FILE).unwrap_or_default();
        let by_option = String::from_utf8_lossy(by_option);
        assert_eq!(by_option.trim_end_matches('\0'), file);
        let is_ipxe = !more.is_empty();
        let class = match (class, file, is_ipxe) {
            (_, "", _) | (_, _, true) => None,
            (PXE, ..) => Some(&b"PXEClient"[..]),
            _ => Some(&b"HTTPClient"[..]),
        };
        assert_eq!(reply.option(option::CLASS), class, "{file}");
        assert_eq!(reply.option(175).is_some(), is_ipxe, "{file}");
    }
}

/// A class, an architecture and an image's loaders, and what is told or why nothing.
type Case = (
    &'static [u8],
    u16,
    &'static [BootFile],
    Result<&'static str, &'static str>,
);

#[test]
fn what_the_image_has_decides_and_what_it_lacks_is_told() {
    use BootFile::{Grub, IpxeBios, IpxeUefi, Ldlinux, Pxelinux, Shim};
    let cases: [Case; 9] = [
        (PXE, 0, &[IpxeBios, Pxelinux, Ldlinux], Ok("undionly.kpxe")),
        (PXE, 0, &[Pxelinux, Ldlinux], Ok("pxelinux.0")),
        (
            PXE,
            0,
            &[Pxelinux],
            Err("no undionly.kpxe: install it; and no ldlinux.c32"),
        ),
        (PXE, 7, &[Shim, Grub, IpxeUefi], Ok("shimx64.efi")),
        (PXE, 7, &[Shim, IpxeUefi], Ok("snponly.efi")),
        (
            PXE,
            7,
            &[Shim],
            Err("no grubx64.efi: install it; and no snponly.efi"),
        ),
        (PXE, 11, &[Shim, Grub], Err("no shimaa64.efi: install it")),
        (HTTP, 16, &[IpxeUefi], Ok("http://10.77.0.1/snponly.efi")),
        (
            PXE,
            6,
            &[Shim],
            Err("got 6; switch the machine to another kind"),
        ),
    ];
    for (class, architecture, loaders, expected) in cases {
        let mut world = world(1, GOOD, loaders);
        let reply = reply_to(&mut world, &asks(0, class, architecture, &[]));
        assert_eq!(reply.file, expected.unwrap_or_default().as_bytes());
        let Err(cause) = expected else { continue };
        let mut takes = asks(0, class, architecture, &[]);
        takes.options[0].value = vec![MessageType::Request.code()];
        takes.push(option::REQUESTED_ADDRESS, reply.yiaddr.octets());
        takes.push(option::SERVER_ID, SERVER.octets());
        world.input(dhcp(takes.encode(MAX_BUDGET_BYTES)));
        let boot = world.engine.node(&mac(0)).and_then(|it| it.boot);
        let failure = boot.and_then(|it| it.failure).expect("a failure");
        assert!(failure.cause.contains(cause), "{}", failure.cause);
    }
}

#[test]
fn a_grub_without_http_is_not_started_over_http() {
    let cause = "the image's GRUB has no HTTP".to_owned();
    let mut world = world(1, GOOD, &[BootFile::Shim, BootFile::Grub]);
    let no_http = &mut world.images[0].no_http;
    no_http.insert(BootFile::Grub, cause.clone());
    world.show_images();
    let reply = reply_to(&mut world, &asks(0, HTTP, 16, &[]));
    assert_eq!(reply.file, b"");
    let told = world.engine.first_file(
        mac(0),
        crate::firmware::Client::UefiHttp(crate::firmware::Machine::X64),
    );
    assert_eq!(
        told,
        Some(Err(format!(
            "nothing to boot it by: {cause}; and no snponly.efi: install it"
        )))
    );
    // Over TFTP it is what it always was.
    let reply = reply_to(&mut world, &asks(0, PXE, 7, &[]));
    assert_eq!(reply.file, b"shimx64.efi");
    // iPXE does it in its place.
    world.images[0].files.insert(BootFile::IpxeUefi, Ok(()));
    world.show_images();
    let reply = reply_to(&mut world, &asks(0, HTTP, 16, &[]));
    assert_eq!(reply.file, b"http://10.77.0.1/snponly.efi");
}

#[test]
fn ipxe_comes_first_where_that_is_wanted() {
    let mut world = world(1, GOOD, &BootFile::ALL);
    world.config.uefi_loader = UefiLoader::Ipxe;
    world.restart();
    let reply = reply_to(&mut world, &asks(0, PXE, 7, &[]));
    assert_eq!(reply.file, b"snponly.efi");
    // Once it runs it gets its script, and not itself again.
    let reply = reply_to(&mut world, &asks(0, PXE, 7, IPXE));
    assert_eq!(reply.file, b"http://10.77.0.1/autoexec.ipxe");
    assert_eq!(reply.option(option::VENDOR), None);
}

#[test]
fn bootp_is_answered_for_nodes_and_for_ever() {
    let mut world = world(1, GOOD, &[BootFile::Pxelinux, BootFile::Ldlinux]);
    world.config.lease = MINUTE;
    world.config.node_lease = Some(MINUTE);
    world.restart();
    let mut message = Message::request(mac(0), 7);
    let mut asked = message.encode(300);
    // Neither cookie nor options (RFC 951, 3).
    asked[236..].fill(0);
    let answers = |world: &mut World, asked: &[u8]| {
        let outputs = world.engine.handle(world.now, dhcp(asked.to_vec()));
        let packets = outputs.iter().filter_map(|output| match output {
            Output::Dhcp { packet, .. } => Some(packet.clone()),
            _ => None,
        });
        let packets: Vec<_> = packets.collect();
        world.carry_out(outputs);
        packets
    };
    assert_eq!(answers(&mut world, &asked), Vec::<Vec<u8>>::new());
    let change = NodeChange {
        name: Some("old".into()),
        ..NodeChange::default()
    };
    let node = mac(0).to_string();
    world
        .command(Command::NodeSet { node, change })
        .expect("a node");
    let reply = answers(&mut world, &asked).pop().expect("a reply");
    assert_eq!(reply.len(), 300);
    let reply = Message::decode(&reply).expect("a message");
    assert!(reply.is_bootp() && reply.option(option::LEASE_TIME).is_none());
    assert_eq!(reply.file, b"pxelinux.0");
    assert_eq!(reply.siaddr, SERVER);
    let mask = reply.option(option::SUBNET_MASK);
    assert_eq!(mask, Some(&[255, 255, 255, 0][..]));
    // The same for ever, also after a restart.
    world.restart();
    world.now = world.now + 1000 * MINUTE;
    let again = answers(&mut world, &asked).pop().expect("a reply");
    let again = Message::decode(&again).expect("a message");
    assert_eq!(again.yiaddr, reply.yiaddr);
    let Some(Record::Lease(lease)) = world.records.get(&format!("lease/{}", reply.yiaddr)) else {
        panic!("no lease");
    };
    assert_eq!((lease.mac, lease.expires), (Some(mac(0)), None));
    // For the server that it names, and no other.
    message.sname = b"other".to_vec();
    assert!(answers(&mut world, &message.encode(300)).is_empty());
    message.sname = SERVER.to_string().into();
    assert_eq!(answers(&mut world, &message.encode(300)).len(), 1);
    // Beside another server the address is not ours to give.
    world.config.interfaces[0].dhcp = DhcpMode::Proxy;
    world.restart();
    assert!(answers(&mut world, &asked).is_empty());
}

/// What a relay makes of a message.
fn relayed(mut message: Message, relay: [u8; 4], options: &[(u8, &[u8])]) -> Message {
    message.giaddr = relay.into();
    message.hops = 1;
    for (code, value) in options {
        message.push(*code, *value);
    }
    message
}

#[test]
fn relays_get_addresses_of_the_network_that_they_speak_for() {
    let mut world = world(1, GOOD, &BootFile::ALL);
    let own = world.config.interfaces[0].clone();
    for third in [88, 99] {
        let router = Ipv4Addr::new(10, third, 0, 1);
        world.config.interfaces.push(own.behind(router, 24));
    }
    world.restart();
    const CIRCUIT: &[u8] = &[1, 3, b'b', b'r', b'0'];
    const LINK: &[u8] = &[1, 1, 7, 5, 4, 10, 99, 0, 0];
    // The relay, its options, and the network that is meant (RFC 3046, RFC 3527, RFC 3011).
    let cases: [([u8; 4], Options, Option<u8>); 6] = [
        ([10, 88, 0, 1], &[], Some(88)),
        ([10, 88, 0, 1], &[(82, CIRCUIT)], Some(88)),
        ([10, 88, 0, 1], &[(82, LINK)], Some(99)),
        ([192, 168, 0, 1], &[(118, &[10, 99, 0, 0])], Some(99)),
        ([10, 77, 0, 9], &[], Some(77)),
        ([192, 168, 0, 1], &[(82, CIRCUIT)], None),
    ];
    for (index, (relay, options, network)) in cases.into_iter().enumerate() {
        let message = relayed(asks(index, PXE, 7, &[]), relay, options);
        let outputs = world
            .engine
            .handle(world.now, dhcp(message.encode(MAX_BUDGET_BYTES)));
        let sent = outputs.iter().find_map(|output| match output {
            Output::Dhcp {
                destination,
                packet,
                ..
            } => Some((*destination, packet.clone())),
            _ => None,
        });
        let Some(network) = network else {
            assert_eq!(sent, None);
            continue;
        };
        let (destination, packet) = sent.expect("a reply");
        assert_eq!(destination, DhcpDestination::Relay(relay.into()));
        let reply = Message::decode(&packet).expect("a message");
        assert_eq!(reply.yiaddr.octets()[..3], [10, network, 0], "{relay:?}");
        assert_eq!(reply.giaddr.octets(), relay);
        // The server is where it is, and behind a router.
        assert_eq!(reply.siaddr, SERVER);
        let router = (network != 77).then_some([10, network, 0, 1]);
        let told = reply.option(option::ROUTER);
        assert_eq!(told, router.as_ref().map(|it| &it[..]));
        // Echoed last and whole (RFC 3046, 2.2).
        let agent = options.iter().find(|(code, _)| *code == 82);
        let echoed = reply.options.last().filter(|it| it.code == 82);
        assert_eq!(
            echoed.map(|it| &it.value[..]),
            agent.map(|(_, value)| *value)
        );
    }
}

/// What a machine gets under a name, or why not.
fn fetches(world: &mut World, from: Ipv4Addr, path: &str) -> Result<Content, String> {
    let request = HttpRequest {
        method: "GET".into(),
        target: path.into(),
        body: Vec::new(),
    };
    let peer = SocketAddrV4::new(from, 3000);
    let answer = world.ask(Input::Http { peer, request }).expect("an answer");
    match (answer.status, answer.body) {
        (200, HttpBody::Content(content)) => Ok(content),
        (_, HttpBody::Content(content)) => {
            Err(String::from_utf8(bytes_of(&content)).expect("text"))
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_name_is_what_its_loader_means_by_it() {
    let mut world = world(1, GOOD, &BootFile::ALL);
    power_on(&mut world, Chain::Uefi);
    world.boot_all(2 * MINUTE);
    let own = world.machines[0].address(world.now).expect("an address");
    let loaders = BootFile::ALL.into_iter().filter(|it| it.is_loader());
    for file in loaders {
        let digest = DIGEST;
        for path in [format!("/{}", file.name()), format!("//{}", file.name())] {
            let got = fetches(&mut world, own, &path);
            assert_eq!(got, Ok(Content::File { digest, file }), "{path}");
        }
    }
    let of = mac(0);
    let cases = [
        ("/grub/arm64-efi/grub.cfg".to_owned(), "set timeout=0"),
        (format!("/grub/{of}.cfg"), "set timeout=0"),
        ("/autoexec.ipxe".to_owned(), "#!ipxe"),
        (format!("/ipxe/{}.ipxe", &of.bootif()[3..]), "#!ipxe"),
        (format!("/pxelinux.cfg/{}", of.bootif()), "SAY "),
        ("/pxelinux.cfg/0A4D0005".to_owned(), "SAY "),
        ("/pxelinux.cfg/default".to_owned(), "SAY "),
    ];
    for (path, begins) in cases {
        let config = fetches(&mut world, own, &path).expect("a configuration");
        let config = String::from_utf8(bytes_of(&config)).expect("text");
        assert!(config.starts_with(begins), "{path}: {config}");
        let kernel = format!("boot/{DIGEST}/vmlinuz");
        assert!(config.contains(&kernel), "{path}: {config}");
    }
    let other = mac(1);
    for path in [
        format!("/grub/{other}.cfg"),
        format!("/pxelinux.cfg/{}", other.bootif()),
        "/pxelinux.cfg/../autoexec.ipxe".to_owned(),
        "/pxelinux.cfg/0A4D00".to_owned(),
        "/vmlinuz".to_owned(),
    ] {
        assert!(fetches(&mut world, own, &path).is_err(), "{path}");
    }
    // Who is no node gets no loader and no token.
    let stranger = Ipv4Addr::new(10, 77, 0, 250);
    assert!(fetches(&mut world, stranger, "/undionly.kpxe").is_err());
    let config = fetches(&mut world, stranger, "/autoexec.ipxe").expect("a message");
    let config = String::from_utf8(bytes_of(&config)).expect("text");
    assert!(config.contains("is no node's address"), "{config}");
}

#[test]
fn pxelinux_gets_its_options() {
    let mut world = world(1, GOOD, &[BootFile::Pxelinux, BootFile::Ldlinux]);
    let reply = reply_to(&mut world, &asks(0, PXE, 0, &[]));
    // RFC 5071, 3 to 6.
    assert_eq!(reply.option(208), Some(&[0xf1, 0, 0x74, 0x7e][..]));
    let config = "pxelinux.cfg/01-52-54-00-01-00-00";
    assert_eq!(reply.option(209), Some(config.as_bytes()));
    assert_eq!(reply.option(210), Some(&b"/"[..]));
    assert_eq!(reply.number_option(211), Some(60));
    // A UEFI machine of the same image has no use for them.
    let reply = reply_to(&mut world, &asks(1, PXE, 7, &[]));
    assert!((208..=211).all(|code| reply.option(code).is_none()));
}

#[test]
fn only_firmware_is_told_of_https_and_only_where_that_was_said() {
    for (port, expected) in [
        (None, "http://10.77.0.1/shimx64.efi"),
        (Some(443), "https://10.77.0.1/shimx64.efi"),
        (Some(8443), "https://10.77.0.1:8443/shimx64.efi"),
    ] {
        let mut config = config();
        config.https_boot_port = port;
        let world = World::new(1, GOOD, config);
        let file = |firmware| {
            world
                .engine
                .boot_file_on(&world.engine.config().interfaces[0], firmware)
        };
        assert_eq!(file(crate::Firmware::UefiHttp).as_deref(), Some(expected));
        assert_eq!(
            file(crate::Firmware::Ipxe).as_deref(),
            Some("http://10.77.0.1/autoexec.ipxe")
        );
        assert_eq!(
            file(crate::Firmware::UefiX64).as_deref(),
            Some("shimx64.efi")
        );
    }
}
