//! Plans: what they say is what a machine then gets, and making them leaves no trace.

use std::net::SocketAddrV4;

use wire::dhcp4::{MAX_BUDGET_BYTES, option};
use wire::tftp::{Mode, Options, Packet as Tftp, Request};

use super::*;
use crate::command::{NodeChange, Setting};
use crate::preview::{Firmware, PlannedContent, Preview};

/// Where a reply has the client's transaction id (RFC 2131, 2).
const XID: std::ops::Range<usize> = 4..8;

fn in_mode(dhcp: DhcpMode) -> World {
    let mut config = config();
    config.interfaces[0].dhcp = dhcp;
    let mut world = World::new(3, GOOD, config);
    for (index, name, address) in [
        (0, "fixed", Some(Setting::To([10, 77, 0, 200].into()))),
        (1, "free", None),
    ] {
        let change = NodeChange {
            name: Some(name.into()),
            address,
            ..NodeChange::default()
        };
        let node = mac(index).to_string();
        let made = world.command(Command::NodeSet { node, change });
        assert!(made.is_ok(), "{made:?}");
    }
    world.run_until(Duration::from_secs(60), |world| {
        world.made.contains(&DIGEST)
    });
    world
}

fn preview(world: &World, node: &str, firmware: Firmware) -> Preview {
    let copy = world.engine.clone();
    let preview = copy.preview(world.now, node, Some(firmware));
    preview.expect("a plan")
}

/// What the engine itself answers on the DHCP port.
fn said(world: &mut World, packet: Vec<u8>) -> Option<Vec<u8>> {
    let outputs = world.engine.handle(world.now, dhcp(packet));
    let reply = outputs.iter().find_map(|output| match output {
        Output::Dhcp { packet, .. } => Some(packet.clone()),
        _ => None,
    });
    world.carry_out(outputs);
    reply
}

/// The content of a file that a machine at `address` asks for over TFTP.
fn read(world: &mut World, address: Ipv4Addr, path: &str) -> Content {
    let request = Tftp::Read(Request {
        filename: path.into(),
        mode: Mode::Octet,
        options: Options::default(),
    });
    let peer = SocketAddrV4::new(address, 2000);
    let packet = request.encode();
    let outputs = world.engine.handle(world.now, Input::Tftp { peer, packet });
    let mut answers = outputs.iter().filter_map(|output| match output {
        Output::Tftp {
            answer: TftpAnswer::Transfer { content, .. },
            ..
        } => Some(content.clone()),
        _ => None,
    });
    answers.next().expect("a file")
}

#[test]
fn the_replies_of_a_plan_are_byte_for_byte_those_that_firmware_then_gets() {
    let mut replies = 0;
    for dhcp in [DhcpMode::Authoritative, DhcpMode::Proxy, DhcpMode::Off] {
        for firmware in Firmware::all() {
            for machine in 0..3 {
                let mut world = in_mode(dhcp);
                let of = mac(machine);
                let plan = preview(&world, &of.to_string(), firmware);
                for exchange in &plan.exchanges {
                    let mut asked = Message::decode(&exchange.request).expect("a request");
                    asked.xid = 0x1234_5678;
                    let real = said(&mut world, asked.encode(MAX_BUDGET_BYTES));
                    let planned = exchange.reply.clone().map(|mut reply| {
                        reply[XID].copy_from_slice(&asked.xid.to_be_bytes());
                        reply
                    });
                    assert_eq!(planned, real, "{dhcp:?} {firmware:?} {machine}");
                    replies += usize::from(real.is_some());
                }
                let is_node = world.engine.node(&of).map(|it| it.name);
                assert_eq!(plan.node, is_node, "{dhcp:?} {firmware:?} {machine}");
            }
        }
    }
    assert!(replies > 30, "{replies}");
}

#[test]
fn a_scripted_machine_s_own_discover_is_answered_as_planned() {
    let mut world = in_mode(DhcpMode::Authoritative);
    let plan = preview(&world, "fixed", Firmware::UefiX64);
    let planned = plan.exchanges[0].reply.clone().expect("an offer");
    world.power_on(1);
    let mut replies = Vec::new();
    world.wake_machines();
    while let Some((_, packet)) = world.queue.pop_first() {
        if let Packet::Dhcp(packet) = packet {
            let xid = packet[XID].to_vec();
            let mut planned = planned.clone();
            planned[XID].copy_from_slice(&xid);
            replies.push((planned, said(&mut world, packet)));
        }
        world.queue.clear();
    }
    let [(planned, Some(real))] = &replies[..] else {
        panic!("expected one reply, got {replies:?}");
    };
    assert_eq!(planned, real);
}

#[test]
fn the_configuration_of_a_plan_is_the_one_that_grub_then_gets() {
    let mut world = in_mode(DhcpMode::Authoritative);
    let plan = preview(&world, "fixed", Firmware::UefiX64);
    let paths: Vec<&str> = plan.files.iter().map(|it| it.path.as_str()).collect();
    let boot = |file: &str| format!("boot/{DIGEST}/{file}");
    assert_eq!(
        paths,
        [
            "shimx64.efi",
            "grubx64.efi",
            "grub/grub.cfg",
            &boot("vmlinuz"),
            &boot("initrd")
        ]
    );
    let Ok(PlannedContent::Text(planned)) = plan.files[2].content.clone() else {
        panic!("expected a configuration, got {:?}", plan.files[2]);
    };
    for exchange in plan.exchanges {
        assert!(said(&mut world, exchange.request).is_some());
    }
    let Content::Bytes(real) = read(&mut world, [10, 77, 0, 200].into(), "grub/grub.cfg") else {
        panic!("expected a text");
    };
    let real = String::from_utf8(real).expect("a text");
    let secrets: Vec<String> = world
        .records
        .values()
        .filter_map(|record| match record {
            Record::Boot(boot) => Some([boot.token.to_hex(), boot.id.to_string()]),
            _ => None,
        })
        .flatten()
        .collect();
    let [token, id] = &secrets[..] else {
        panic!("expected one boot, got {secrets:?}");
    };
    assert!(real.contains(token) && real.contains(id), "{real}");
    assert_eq!(planned, real.replace(token, "TOKEN").replace(id, "BOOT"));
}

#[test]
fn a_plan_changes_nothing_and_says_no_secret() {
    let mut world = in_mode(DhcpMode::Authoritative);
    let discover = Firmware::UefiX64.message(mac(1), 1, MessageType::Discover);
    let offer = said(&mut world, discover.encode(MAX_BUDGET_BYTES)).expect("an offer");
    let offer = Message::decode(&offer).expect("an offer");
    let mut request = Firmware::UefiX64.message(mac(1), 1, MessageType::Request);
    request.push(option::REQUESTED_ADDRESS, offer.yiaddr.octets());
    assert!(said(&mut world, request.encode(MAX_BUDGET_BYTES)).is_some());
    // Now a boot of the node is under way.
    let before = (world.records.clone(), world.events.len());
    let state = format!("{:?}", world.engine);
    let plans: Vec<Preview> = ["fixed", "free", "52:54:00:00:00:99"]
        .into_iter()
        .flat_map(|node| Firmware::all().map(move |firmware| (node, firmware)))
        .map(|(node, firmware)| preview(&world, node, firmware))
        .collect();
    assert_eq!(format!("{:?}", world.engine), state);
    assert_eq!((world.records.clone(), world.events.len()), before);
    let boots = world.records.values().filter_map(|record| match record {
        Record::Boot(boot) => Some(boot.clone()),
        _ => None,
    });
    let said = format!("{plans:?}");
    assert!(said.contains("slate.token=TOKEN"), "{said}");
    for boot in boots {
        assert!(!said.contains(&boot.token.to_hex()));
    }
    // The next boot's token is not the one that a plan drew.
    world.power_on(1);
    world.boot_all(Duration::from_secs(300));
    for record in world.records.values() {
        if let Record::Boot(boot) = record {
            assert!(!said.contains(&boot.token.to_hex()));
        }
    }
}

#[test]
fn a_stranger_is_told_of_by_the_rules_of_its_network() {
    let stranger = "52:54:00:00:00:99";
    let alone = in_mode(DhcpMode::Authoritative);
    let plan = preview(&alone, stranger, Firmware::UefiX64);
    assert_eq!((plan.is_node, plan.node.as_deref()), (false, Some("node1")));
    assert!(plan.notes.iter().any(|it| it.contains("becomes node1")));
    assert_eq!(plan.files.len(), 5);

    let beside = in_mode(DhcpMode::Proxy);
    let plan = preview(&beside, stranger, Firmware::UefiX64);
    assert_eq!((plan.node, plan.exchanges.len()), (None, 1));
    assert_eq!(plan.exchanges[0].reply, None);
    assert!(plan.files.is_empty());
    assert!(
        plan.notes
            .iter()
            .any(|it| it.contains("slate node approve"))
    );

    // Each chain leads to the initramfs.
    for world in [&alone, &in_mode(DhcpMode::Off)] {
        for firmware in Firmware::all() {
            let plan = preview(world, "free", firmware);
            let last = plan.files.last().map(|it| it.path.clone());
            let ends = last.is_some_and(|it| it.ends_with("/initrd"));
            assert!(ends, "{firmware:?}: {:?}", plan.files);
        }
    }
    // Where another server names us, GRUB asks by its own address.
    let off = in_mode(DhcpMode::Off);
    let plan = preview(&off, "free", Firmware::UefiX64);
    let paths: Vec<&str> = plan.files.iter().map(|it| it.path.as_str()).collect();
    let own = format!("grub/{}.cfg", mac(1));
    assert!(paths.contains(&own.as_str()), "{paths:?}");
    assert!(paths.iter().any(|it| it.ends_with("/initrd")), "{paths:?}");
}

#[test]
fn firmware_that_nothing_is_served_for_is_told_why() {
    let world = in_mode(DhcpMode::Authoritative);
    for firmware in Firmware::all() {
        let plan = preview(&world, "fixed", firmware);
        let served = world
            .engine
            .boot_file_on(&world.engine.config().interfaces[0], firmware)
            .is_some();
        assert_eq!(plan.files.is_empty(), !served, "{firmware:?}");
        assert_eq!(
            plan.notes.iter().any(|it| it.contains("boots nothing")),
            !served,
            "{:?}",
            plan.notes
        );
    }
}

#[test]
fn the_doctor_s_machine_is_marked_and_becomes_no_node() {
    let mut world = in_mode(DhcpMode::Authoritative);
    let message = |kind| Firmware::UefiX64.message(Mac::PROBE, 1, kind);
    let discover = message(MessageType::Discover);
    let offer = said(&mut world, discover.encode(MAX_BUDGET_BYTES)).expect("an offer");
    let offer = Message::decode(&offer).expect("an offer");
    let owner = |world: &World| world.engine.leases.owner(offer.yiaddr);
    assert_eq!(owner(&world), Some(Mac::PROBE));
    let mut release = message(MessageType::Release);
    release.ciaddr = offer.yiaddr;
    assert_eq!(said(&mut world, release.encode(MAX_BUDGET_BYTES)), None);
    assert_eq!(owner(&world), None);
    // Not even where it takes what it is offered, as somebody else with its address might.
    let mut request = message(MessageType::Request);
    request.push(option::REQUESTED_ADDRESS, offer.yiaddr.octets());
    assert!(said(&mut world, request.encode(MAX_BUDGET_BYTES)).is_some());
    assert_eq!(world.engine.node(&Mac::PROBE), None);
    let of_probe = |it: &&Event| it.mac == Some(Mac::PROBE);
    let events: Vec<&Event> = world.events.iter().filter(of_probe).collect();
    assert!(events.len() >= 4, "{}", world.story());
    assert!(
        events
            .iter()
            .all(|it| it.node.as_deref() == Some("(probe)"))
    );

    let mut beside = in_mode(DhcpMode::Proxy);
    for _ in 0..3 {
        assert_eq!(said(&mut beside, discover.encode(MAX_BUDGET_BYTES)), None);
    }
    let heard = beside.count(|it| matches!(it, EventKind::MachineSeen { .. }));
    assert_eq!((heard, beside.engine.seen().len()), (1, 0));
    beside.now = beside.now + Duration::from_secs(1);
    assert_eq!(said(&mut beside, discover.encode(MAX_BUDGET_BYTES)), None);
    assert_eq!(
        beside.count(|it| matches!(it, EventKind::MachineSeen { .. })),
        2
    );
}

#[test]
fn without_labels_selinux_is_off_and_the_plan_says_so() {
    let mut world = in_mode(DhcpMode::Authoritative);
    let line = |plan: &Preview| -> String {
        let texts = plan.files.iter().filter_map(|file| match &file.content {
            Ok(PlannedContent::Text(text)) => Some(text.as_str()),
            _ => None,
        });
        texts.collect()
    };
    let is_off = |plan: &Preview| line(plan).contains("selinux=0");
    let says_so = |plan: &Preview| plan.notes.iter().any(|it| it.contains("selinux=0"));
    // With a policy and labels.
    for firmware in Firmware::all() {
        let plan = preview(&world, "free", firmware);
        assert!(!is_off(&plan) && !says_so(&plan), "{plan:?}");
    }
    let cause = "the image has no SELinux policy";
    world.no_selinux.insert(DIGEST, cause.into());
    world.show_images();
    for firmware in Firmware::all() {
        let plan = preview(&world, "free", firmware);
        let is_served = !plan.files.is_empty();
        assert_eq!((is_off(&plan), says_so(&plan)), (is_served, is_served));
        let note = format!("{cause}: selinux=0 is added");
        assert!(!is_served || plan.notes.contains(&note), "{plan:?}");
    }
    // Another version has both.
    let boot = |world: &mut World, image: &str, args: &str| {
        let change = NodeChange {
            image: Some(Setting::To(image.parse().expect("an image"))),
            kernel_args: Some(args.into()),
            ..NodeChange::default()
        };
        let node = mac(1).to_string();
        let made = world.command(Command::NodeSet { node, change });
        assert!(made.is_ok(), "{made:?}");
        preview(world, "free", Firmware::UefiX64)
    };
    world.add_next();
    let plan = boot(&mut world, "next", "");
    assert!(!is_off(&plan) && !says_so(&plan), "{plan:?}");
    // What users say counts, and so does a root of theirs.
    for args in ["selinux=1", "root=nfs:10.0.0.9:/other"] {
        let plan = boot(&mut world, "debian", args);
        assert!(line(&plan).contains(args) && !is_off(&plan) && !says_so(&plan));
    }
    let plan = boot(&mut world, "debian", "quiet");
    assert!(line(&plan).contains("quiet") && is_off(&plan) && says_so(&plan));
}

#[test]
fn a_loader_that_is_not_of_the_image_s_packages_says_what_it_is_of() {
    let mut world = in_mode(DhcpMode::Authoritative);
    let origin = "grub-efi-amd64-signed 1+2.12 of trixie".to_owned();
    world.images[0].origins = [(BootFile::Grub, origin.clone())].into();
    world.show_images();
    let plan = preview(&world, "free", Firmware::UefiHttp);
    let origin_of = |name: &str| {
        let file = plan.files.iter().find(|it| it.path == name);
        match &file.expect("a file").content {
            Ok(PlannedContent::File { origin, .. }) => origin.clone(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(origin_of("grubx64.efi"), Some(origin));
    assert_eq!(origin_of("shimx64.efi"), None);
}
