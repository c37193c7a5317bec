//! Beside another DHCP server: who gets an answer, how addresses are learned, what is forgotten.

use std::collections::BTreeSet;

use wire::dhcp4::{MAX_BUDGET_BYTES, Op, option};
use wire::stage::Stage;

use super::*;
use crate::apply::{Inventory, NodeEntry};
use crate::command::NodeChange;

const MINUTE: Duration = Duration::from_secs(60);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);

/// A server that knows nothing of booting, unless it names us.
#[derive(Clone, Debug, Default)]
pub(super) struct OtherServer {
    /// The only machines that it answers.
    only: Option<BTreeSet<Mac>>,
    /// Whether it tells firmware to boot from us.
    names_us: bool,
    /// Added to every address: as if it had forgotten which it gave before.
    shift: u8,
}

impl OtherServer {
    /// One that tells firmware to boot from us.
    pub(super) fn naming_us() -> OtherServer {
        OtherServer {
            names_us: true,
            ..OtherServer::default()
        }
    }

    pub(super) fn answer(&self, packet: &[u8]) -> Option<Vec<u8>> {
        let request = Message::decode(packet).expect("a request");
        if self
            .only
            .as_ref()
            .is_some_and(|it| !it.contains(&request.mac))
        {
            return None;
        }
        let kind = match request.message_type()? {
            MessageType::Discover => MessageType::Offer,
            MessageType::Request => MessageType::Ack,
            _ => return None,
        };
        let server = request.address_option(option::SERVER_ID);
        if server.is_some_and(|it| it != OTHER) {
            return None;
        }
        let mut reply = Message::request(request.mac, request.xid);
        reply.op = Op::Reply;
        reply.yiaddr = self.address(request.mac);
        if self.names_us && request.option(option::CLASS).is_some() {
            (reply.siaddr, reply.file) = (SERVER, b"shimx64.efi".to_vec());
        }
        reply.push(option::MESSAGE_TYPE, [kind.code()]);
        reply.push(option::SERVER_ID, OTHER.octets());
        reply.push(option::LEASE_TIME, 3600_u32.to_be_bytes());
        Some(reply.encode(MAX_BUDGET_BYTES))
    }

    fn address(&self, mac: Mac) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, 50 + mac.0[5] + self.shift)
    }
}

fn world(seed: u8, network: Network, dhcp: DhcpMode) -> World {
    let mut config = config();
    config.interfaces[0].dhcp = dhcp;
    let mut world = World::new(seed, network, config);
    world.other = Some(OtherServer::default());
    world
}

/// Somebody says that the machine is a node.
fn approve(world: &mut World, index: usize) {
    let node = mac(index).to_string();
    let change = NodeChange {
        name: Some(format!("pc{index}")),
        ..NodeChange::default()
    };
    world
        .command(Command::NodeSet { node, change })
        .expect("a node");
}

/// A world with nodes that are switched on.
fn nodes(seed: u8, network: Network, count: usize) -> World {
    let mut world = world(seed, network, DhcpMode::Proxy);
    (0..count).for_each(|index| approve(&mut world, index));
    world.power_on(count);
    world
}

fn address(index: usize) -> Ipv4Addr {
    OtherServer::default().address(mac(index))
}

fn shown(world: &World, index: usize) -> Option<Ipv4Addr> {
    world.engine.node(&mac(index)).and_then(|it| it.address)
}

#[test]
fn a_node_boots_with_the_other_server_s_address() {
    let mut world = nodes(1, GOOD, 1);
    world.boot_all(2 * MINUTE);
    let view = world.engine.node(&mac(0)).expect("a node");
    let boot = view.boot.expect("a boot");
    let stages: Vec<_> = boot.timeline.iter().map(|it| it.stage).collect();
    assert_eq!(stages, Stage::ALL);
    assert_eq!(view.address, Some(address(0)));
    assert!(!view.address_is_fixed && view.nfs_alive && boot.failure.is_none());
    let at = Some(address(0));
    assert_eq!(
        world.count(|it| matches!(it, EventKind::Up { address, .. } if *address == at)),
        1
    );
    let warns = |it: &EventKind| it.severity() == crate::Severity::Warning;
    assert_eq!(world.count(warns), 0, "{}", world.story());
    let lease = |record: &Record| matches!(record, Record::Lease(_));
    assert!(!world.records.values().any(lease));
}

#[test]
fn twenty_nodes_on_a_bad_network() {
    for seed in 0..4 {
        let mut world = nodes(seed, BAD, 20);
        world.boot_all(60 * MINUTE);
        for index in 0..20 {
            assert_eq!(shown(&world, index), Some(address(index)));
        }
    }
}

#[test]
fn a_machine_that_nobody_approved_gets_nothing_until_somebody_does() {
    let mut world = world(2, GOOD, DhcpMode::Proxy);
    world.power_on(1);
    assert!(!world.run_until(10 * MINUTE, World::all_up));
    let seen = |it: &EventKind| matches!(it, EventKind::MachineSeen { .. });
    assert_eq!((world.count(seen), world.engine.nodes().len()), (1, 0));
    let machines = world.engine.seen();
    assert_eq!((machines.len(), machines[0].mac), (1, mac(0)));
    assert_eq!(machines[0].client, "uefi-x64");
    assert!(machines[0].first < machines[0].last);
    approve(&mut world, 0);
    world.boot_all(5 * MINUTE);
    assert!(world.engine.seen().is_empty());
}

#[test]
fn a_server_that_knows_its_hosts_and_a_stranger_hear_nothing() {
    let mut world = world(3, GOOD, DhcpMode::Proxy);
    world.other = Some(OtherServer {
        only: Some([mac(0)].into()),
        ..OtherServer::default()
    });
    approve(&mut world, 0);
    world.power_on(2);
    let first_up = |world: &World| world.machines[0].step == Step::Up;
    assert!(world.run_until(2 * MINUTE, first_up), "{}", world.story());
    world.run_until(10 * MINUTE, |_| false);
    assert_eq!(world.machines[1].held.map(|it| it.address), None);
    assert_eq!(world.engine.nodes().len(), 1);
}

#[test]
fn firmware_that_knows_one_dialect_only_boots_in_either() {
    for whole in [true, false] {
        let mut world = nodes(4, GOOD, 1);
        world.machines[0].understands = Some(whole);
        world.boot_all(5 * MINUTE);
        let asked = world.count(|it| matches!(it, EventKind::BootServerAsked));
        assert_eq!(asked, usize::from(!whole), "{}", world.story());
        // What led on is what it hears first at the next boot.
        let offers = |world: &World| world.count(|it| matches!(it, EventKind::BootOffered { .. }));
        let before = offers(&world);
        let now = world.now + Duration::from_secs(3600);
        world.machines[0].power_cycle(now);
        world.boot_all(120 * MINUTE);
        assert_eq!(offers(&world), before + 1);
    }
}

#[test]
fn the_daemon_may_die_between_any_two_outputs() {
    let mut undisturbed = nodes(5, GOOD, 2);
    undisturbed.boot_all(20 * MINUTE);
    for killed_before in 0..undisturbed.outputs {
        let mut world = nodes(5, GOOD, 0);
        (0..2).for_each(|index| approve(&mut world, index));
        world.killed_before = Some(world.outputs + killed_before);
        world.power_on(2);
        world.boot_all(20 * MINUTE);
        for index in 0..2 {
            assert_eq!(
                shown(&world, index),
                Some(address(index)),
                "{}",
                world.story()
            );
        }
    }
}

#[test]
fn grub_says_who_it_is_where_firmware_was_not_heard() {
    // The other server names us: nothing of DHCP reaches us.
    let mut world = world(6, GOOD, DhcpMode::Off);
    world.other = Some(OtherServer {
        names_us: true,
        ..OtherServer::default()
    });
    approve(&mut world, 0);
    world.deaf = true;
    world.power_on(2);
    let first_up = |world: &World| world.machines[0].step == Step::Up;
    assert!(world.run_until(5 * MINUTE, first_up), "{}", world.story());
    assert_eq!(shown(&world, 0), Some(address(0)));
    world.run_until(5 * MINUTE, |_| false);
    // The other one got as far as a message on its screen.
    assert_eq!(world.engine.nodes().len(), 1);
    assert_eq!(world.engine.seen().len(), 1);
}

/// What a path over TFTP holds for somebody.
fn fetched(world: &mut World, from: Ipv4Addr, path: &str) -> Result<String, String> {
    let request = HttpRequest {
        method: "GET".into(),
        target: path.into(),
        body: Vec::new(),
    };
    let peer = SocketAddrV4::new(from, 1);
    let answer = world.ask(Input::Http { peer, request }).expect("an answer");
    let HttpBody::Content(Content::Bytes(bytes)) = answer.body else {
        panic!("expected bytes");
    };
    let text = String::from_utf8(bytes).expect("text");
    if answer.status == 200 {
        Ok(text)
    } else {
        Err(text)
    }
}

#[test]
fn who_says_that_it_is_another_node_gets_no_token() {
    let mut world = nodes(7, GOOD, 2);
    world.boot_all(5 * MINUTE);
    // As an ordinary user can: the node does not seem to boot by that.
    let boots = asks(
        MessageType::Discover,
        b"PXEClient:Arch:00007:UNDI:003001",
        7,
    );
    for port in [1024, 40_000] {
        let source = SocketAddrV4::new([10, 77, 0, 9].into(), port);
        let packet = boots.encode(MAX_BUDGET_BYTES);
        let (interface, again) = (INTERFACE, packet.clone());
        world.input(Input::Dhcp {
            interface,
            source,
            packet,
        });
        world.input(Input::BootServer {
            interface,
            source,
            packet: again,
        });
    }
    let of = |index: usize| format!("/grub/{}.cfg", mac(index));
    // A node that runs, from an unknown address and from another node's.
    let unknown = Ipv4Addr::new(10, 77, 0, 9);
    assert!(fetched(&mut world, unknown, &of(0)).is_err());
    assert!(fetched(&mut world, address(1), &of(0)).is_err());
    assert_eq!(shown(&world, 0), Some(address(0)));
    // What is no address goes nowhere, and a machine that is no node is told so.
    for path in ["/grub/$(reboot).cfg", "/grub/52:54.cfg", "/grub/.cfg"] {
        assert!(fetched(&mut world, unknown, path).is_err());
    }
    let message = fetched(&mut world, unknown, "/grub/02:00:00:00:00:09.cfg").expect("a message");
    assert!(message.contains("slate node approve 02:00:00:00:00:09") && !message.contains("linux"));
    let stub = fetched(&mut world, unknown, "/grub/grub.cfg").expect("a configuration");
    assert!(stub.contains("${net_default_mac}") && !stub.contains("linux"));
    // Where addresses are ours to give, they alone tell machines apart.
    let mut ours = World::new(7, GOOD, config());
    approve(&mut ours, 0);
    assert!(fetched(&mut ours, unknown, &of(0)).is_err());
}

/// Of firmware of another kind.
fn asks(kind: MessageType, class: &[u8], architecture: u16) -> Message {
    let mut message = Message::request(mac(0), 9);
    message.push(option::MESSAGE_TYPE, [kind.code()]);
    message.push(option::CLASS, class);
    message.push(option::ARCHITECTURE, architecture.to_be_bytes());
    message
}

/// What it is told, if it is answered.
fn told(world: &mut World, class: &[u8], architecture: u16) -> Option<Message> {
    world.queue.clear();
    let message = asks(MessageType::Discover, class, architecture);
    world.input(dhcp(message.encode(MAX_BUDGET_BYTES)));
    let reply = world.queue.pop_first()?.1;
    let Packet::DhcpReply(reply) = reply else {
        panic!("expected a reply, got {reply:?}");
    };
    Some(Message::decode(&reply).expect("a reply"))
}

#[test]
fn each_kind_of_firmware_is_told_what_it_can_boot() {
    let mut world = nodes(12, GOOD, 0);
    approve(&mut world, 0);
    // Also when it asks again: there is one way only.
    for _ in 0..2 {
        let http = told(&mut world, b"HTTPClient:Arch:00016:UNDI:003001", 16).expect("an offer");
        assert_eq!(http.option(option::CLASS), Some(&b"HTTPClient"[..]));
        let url = http.option(option::BOOT_FILE);
        assert_eq!(url, Some(&b"http://10.77.0.1/shimx64.efi"[..]));
        assert_eq!(http.option(option::VENDOR), None);
    }
    // Nothing that it could boot: its owner is told instead.
    let other = b"PXEClient:Arch:00006:UNDI:002001";
    assert_eq!(told(&mut world, other, 6), None);
    let mut takes = asks(MessageType::Request, other, 6);
    takes.push(option::REQUESTED_ADDRESS, address(0).octets());
    takes.push(option::SERVER_ID, OTHER.octets());
    world.input(dhcp(takes.encode(MAX_BUDGET_BYTES)));
    let boot = world.engine.node(&mac(0)).and_then(|it| it.boot);
    let failure = boot.and_then(|it| it.failure).expect("a failure");
    assert!(failure.cause.contains("UEFI"), "{}", failure.cause);
    // No firmware, no answer.
    assert_eq!(told(&mut world, b"systemd-networkd", 7), None);
}

/// A client's message to the other server.
fn said(mac: Mac, kind: MessageType, options: &[(u8, [u8; 4])]) -> Vec<u8> {
    let mut message = Message::request(mac, 7);
    message.push(option::MESSAGE_TYPE, [kind.code()]);
    for (code, value) in options {
        message.push(*code, *value);
    }
    message.encode(MAX_BUDGET_BYTES)
}

#[test]
fn addresses_follow_what_the_other_server_gives() {
    let mut world = nodes(8, GOOD, 1);
    world.boot_all(5 * MINUTE);
    approve(&mut world, 1);
    let first = address(0).octets();
    let server = (option::SERVER_ID, OTHER.octets());
    // A wish alone moves nothing.
    let wish = said(
        mac(1),
        MessageType::Request,
        &[(option::REQUESTED_ADDRESS, first)],
    );
    world.input(dhcp(wish));
    assert_eq!(shown(&world, 0), Some(address(0)));
    // Nor do addresses that no machine has.
    for bad in [
        [0; 4],
        [255; 4],
        [127, 0, 0, 1],
        [224, 0, 0, 1],
        SERVER.octets(),
    ] {
        let said = said(
            mac(0),
            MessageType::Request,
            &[(option::REQUESTED_ADDRESS, bad), server],
        );
        world.input(dhcp(said));
        assert_eq!(shown(&world, 0), Some(address(0)));
    }
    // Nor does what an ordinary user of a node can send.
    let forged = said(
        mac(1),
        MessageType::Request,
        &[(option::REQUESTED_ADDRESS, first), server],
    );
    world.input(Input::Dhcp {
        interface: INTERFACE,
        source: SocketAddrV4::new(address(0), 40_000),
        packet: forged,
    });
    assert_eq!(shown(&world, 0), Some(address(0)));
    // What the server gives a stranger, a node has no more; other networks are no matter.
    let stranger = Mac([2, 0, 0, 0, 0, 9]);
    let given = [(option::REQUESTED_ADDRESS, first), server];
    world.input(dhcp(said(stranger, MessageType::Request, &given)));
    assert_eq!(shown(&world, 0), None);
    let far = [(option::REQUESTED_ADDRESS, [192, 0, 2, 7]), server];
    world.input(dhcp(said(mac(0), MessageType::Request, &far)));
    assert_eq!(shown(&world, 0), Some([192, 0, 2, 7].into()));
    let node = "pc0".to_owned();
    assert!(world.command(Command::Plan { node }).is_ok());
    // As does its answer, heard on the wire.
    let mut ack = Message::request(mac(0), 7);
    (ack.op, ack.yiaddr) = (Op::Reply, [10, 77, 0, 200].into());
    ack.push(option::MESSAGE_TYPE, [MessageType::Ack.code()]);
    ack.push(option::SERVER_ID, OTHER.octets());
    world.input(heard(&ack));
    assert_eq!(shown(&world, 0), Some([10, 77, 0, 200].into()));
    world.restart();
    assert_eq!(shown(&world, 0), Some([10, 77, 0, 200].into()));
    // Forgotten with the node, and after a long silence.
    world
        .command(Command::NodeForget { node: "pc0".into() })
        .expect("forgotten");
    let learned = |world: &World| {
        let is_learned = |it: &&Record| matches!(it, Record::Learned(_));
        world.records.values().filter(is_learned).count()
    };
    assert_eq!(learned(&world), 0);
    world.input(dhcp(said(mac(1), MessageType::Request, &far)));
    assert_eq!(learned(&world), 1);
    world.now = world.now + Duration::from_secs(25 * 3600);
    world.input(Input::Tick);
    assert_eq!((learned(&world), shown(&world, 1)), (0, None));
}

/// A server's message, heard on the wire.
fn heard(message: &Message) -> Input {
    Input::Overheard {
        interface: INTERFACE,
        source: message.address_option(option::SERVER_ID).unwrap_or(OTHER),
        packet: message.encode(MAX_BUDGET_BYTES),
    }
}

#[test]
fn a_node_that_runs_keeps_its_address_however_long_it_is_silent() {
    let mut world = nodes(9, GOOD, 1);
    world.boot_all(5 * MINUTE);
    // Renewals go to the other server alone.
    world.machines[0].deadline = None;
    world.machines[0].held.as_mut().expect("an address").until = None;
    for _ in 0..5 {
        world.now = world.now + Duration::from_secs(20 * 3600);
        world.input(Input::Tick);
    }
    assert_eq!(shown(&world, 0), Some(address(0)));
    let view = world.engine.node(&mac(0)).expect("a node");
    assert!(view.nfs_alive);
}

#[test]
fn where_a_boot_stops_beside_another_server_is_told_with_what_to_look_at() {
    // Firmware that does nothing with the offer, and GRUB that finds no server.
    for (file, stage, hint) in [
        ("shimx64.efi", Stage::Address, "--dhcp authoritative"),
        ("grub/grub.cfg", Stage::Grub, "GRUB 2.12"),
    ] {
        let mut world = nodes(13, GOOD, 1);
        world.machines[0].hangs_before = Some(file);
        world.run_until(10 * MINUTE, |_| false);
        let stuck = world.events.iter().find_map(|event| match &event.kind {
            EventKind::Stuck { stage, cause, .. } => Some((*stage, cause.contains(hint))),
            _ => None,
        });
        assert_eq!(stuck, Some((stage, true)), "{}", world.story());
    }
}

#[test]
fn strangers_fill_no_table() {
    let mut world = nodes(10, GOOD, 0);
    let records = world.records.len();
    for number in 0..20_000_u32 {
        let [a, b, c, d] = number.to_be_bytes();
        let stranger = Mac([2, 0xff, a, b, c, d]);
        let mut message = Message::request(stranger, number);
        message.push(option::MESSAGE_TYPE, [MessageType::Discover.code()]);
        message.push(option::CLASS, *b"PXEClient:Arch:00007:UNDI:003001");
        message.push(option::ARCHITECTURE, [0, 7]);
        world.input(dhcp(message.encode(MAX_BUDGET_BYTES)));
        let given = [
            (option::REQUESTED_ADDRESS, [10, 78, c, d]),
            (option::SERVER_ID, OTHER.octets()),
        ];
        world.input(dhcp(said(stranger, MessageType::Request, &given)));
        let bytes = asks_boot_server(stranger);
        world.input(Input::BootServer {
            interface: INTERFACE,
            source: SocketAddrV4::new([10, 78, c, d].into(), 4011),
            packet: bytes,
        });
    }
    assert!(world.is_silent(), "a stranger was answered");
    assert_eq!(world.engine.seen().len(), 1024);
    assert_eq!(world.events.len(), 1024);
    assert_eq!(world.records.len(), records);
}

#[test]
fn a_machine_that_a_file_names_is_no_stranger_any_more() {
    let mut world = nodes(12, GOOD, 0);
    let mut message = Message::request(mac(0), 1);
    message.push(option::MESSAGE_TYPE, [MessageType::Discover.code()]);
    message.push(option::CLASS, *b"PXEClient:Arch:00007:UNDI:003001");
    message.push(option::ARCHITECTURE, [0, 7]);
    world.input(dhcp(message.encode(MAX_BUDGET_BYTES)));
    assert_eq!(world.engine.seen().len(), 1);
    let command = Command::Apply {
        inventory: Inventory {
            nodes: vec![NodeEntry::new(mac(0), "pc1")],
            ..Inventory::default()
        },
        prune: false,
        dry_run: false,
        may_run: true,
    };
    world.command(command).expect("applied");
    assert!(world.engine.seen().is_empty());
    assert_eq!(world.engine.nodes().len(), 1);
}

/// What firmware asks on port 4011.
fn asks_boot_server(mac: Mac) -> Vec<u8> {
    let mut message = Message::request(mac, 1);
    message.push(option::MESSAGE_TYPE, [MessageType::Request.code()]);
    message.push(option::CLASS, *b"PXEClient:Arch:00007:UNDI:003001");
    message.push(option::ARCHITECTURE, [0, 7]);
    message.encode(MAX_BUDGET_BYTES)
}

#[test]
fn the_only_server_tells_of_another_one_but_not_all_the_time() {
    let mut world = World::new(11, GOOD, config());
    let rogue = |it: &EventKind| matches!(it, EventKind::RogueServer { .. });
    let mut reply = Message::request(mac(0), 7);
    (reply.op, reply.yiaddr) = (Op::Reply, [10, 77, 0, 99].into());
    let with = |reply: &Message, kind: MessageType, server: Ipv4Addr| {
        let mut reply = reply.clone();
        reply.push(option::MESSAGE_TYPE, [kind.code()]);
        reply.push(option::SERVER_ID, server.octets());
        reply
    };
    // Our own words come back to us, and boot servers give no addresses.
    world.input(heard(&with(&reply, MessageType::Offer, SERVER)));
    let mut boots = with(&reply, MessageType::Offer, OTHER);
    boots.yiaddr = Ipv4Addr::UNSPECIFIED;
    world.input(heard(&boots));
    assert_eq!(world.count(rogue), 0);
    for _ in 0..100 {
        world.input(heard(&with(&reply, MessageType::Offer, OTHER)));
    }
    assert_eq!(world.count(rogue), 1);
    world.now = world.now + MINUTE;
    let mut refusal = with(&reply, MessageType::Nak, OTHER);
    refusal.yiaddr = Ipv4Addr::UNSPECIFIED;
    world.input(heard(&refusal));
    assert_eq!(world.count(rogue), 2);
    // Whom a client takes an offer of is another server as well; not too many of them.
    for last in 3..=255 {
        let server = [10, 77, 0, last];
        let taken = [
            (option::REQUESTED_ADDRESS, [10, 77, 0, 9]),
            (option::SERVER_ID, server),
        ];
        world.input(dhcp(said(mac(1), MessageType::Request, &taken)));
    }
    assert_eq!(world.count(rogue), 2 + 63);
    assert!(world.is_silent(), "it fights");
}
