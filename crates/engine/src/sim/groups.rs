//! Groups, secrets and lists of nodes.

use std::collections::BTreeMap;
use std::time::Duration;

use wire::dhcp4::{MAX_BUDGET_BYTES, Message, MessageType, decode_search, option};
use wire::identity::File;

use super::{NEXT, START, World, dhcp, image, mac};
use crate::apply::{Inventory, NodeEntry};
use crate::command::{CommandError, CommandReply};
use crate::event::EventKind;
use crate::group::{Disk, FileEntry, Group, Mount, NetworkSettings, Wipe};
use crate::io::Output;
use crate::record::Secret;
use crate::{Command, Firmware, NodeChange, UefiLoader};

fn entry(index: usize, name: &str, groups: &[&str]) -> NodeEntry {
    NodeEntry {
        groups: groups.iter().map(|it| (*it).into()).collect(),
        ..NodeEntry::new(mac(index), name)
    }
}

fn apply(world: &mut World, inventory: Inventory) -> Result<(), CommandError> {
    let command = Command::Apply {
        inventory,
        prune: true,
        dry_run: false,
        may_run: true,
    };
    world.command(command).map(drop)
}

fn groups<const N: usize>(groups: [(&str, Group); N]) -> BTreeMap<String, Group> {
    groups.map(|(name, group)| (name.into(), group)).into()
}

fn content(text: &str) -> FileEntry {
    FileEntry {
        content: Some(text.into()),
        ..FileEntry::default()
    }
}

/// The files of a node, by path.
fn files(world: &World, name: &str) -> BTreeMap<String, File> {
    let node = world.engine.nodes.values().find(|it| it.name == name);
    let (files, omitted) = world.engine.files_for(node.expect("a node"));
    assert_eq!(omitted, []);
    files.into_iter().map(|it| (it.path.clone(), it)).collect()
}

fn says(files: &BTreeMap<String, File>, path: &str) -> String {
    let file = files.get(path).unwrap_or_else(|| panic!("no {path}"));
    String::from_utf8(file.content.clone()).unwrap()
}

#[test]
fn the_first_group_that_says_something_counts_and_all_comes_last() {
    let mut world = World::with_next(1);
    let all = Group {
        kernel_args: "all".into(),
        upper_size: Some("25%".into()),
        files: [
            ("/etc/a".into(), content("all")),
            ("/etc/b".into(), content("all")),
        ]
        .into(),
        ..Group::default()
    };
    let gpu = Group {
        image: Some("next".parse().unwrap()),
        kernel_args: "gpu".into(),
        files: [("/etc/b".into(), content("gpu"))].into(),
        ..Group::default()
    };
    let rack = Group {
        kernel_args: "rack".into(),
        upper_size: Some("8G".into()),
        files: [("/etc/b".into(), content("rack"))].into(),
        ..Group::default()
    };
    let mut own = entry(2, "c", &["gpu"]);
    own.image = Some(image().name);
    own.kernel_args = "own".into();
    let inventory = Inventory {
        nodes: vec![entry(0, "a", &["gpu", "rack"]), entry(1, "b", &[]), own],
        groups: groups([("all", all), ("gpu", gpu), ("rack", rack)]),
        ..Inventory::default()
    };
    apply(&mut world, inventory.clone()).unwrap();
    world.restart();
    assert_eq!(world.engine.inventory(), inventory);

    let plan = |world: &mut World, node: &str| {
        let node = node.to_owned();
        match world.command(Command::Plan { node }) {
            Ok(CommandReply::Plan(plan)) => *plan,
            other => panic!("{other:?}"),
        }
    };
    let a = plan(&mut world, "a");
    assert_eq!(a.digest, NEXT);
    assert!(
        a.command_line.ends_with(" slate.upper=8G all rack gpu"),
        "{}",
        a.command_line
    );
    let b = plan(&mut world, "b");
    assert_eq!(b.digest, image().digest);
    assert!(
        b.command_line.ends_with(" slate.upper=25% all"),
        "{}",
        b.command_line
    );
    let c = plan(&mut world, "c");
    assert_eq!(c.digest, image().digest);
    assert!(
        c.command_line.ends_with(" all gpu own"),
        "{}",
        c.command_line
    );

    let a = files(&world, "a");
    assert_eq!(
        (says(&a, "/etc/a"), says(&a, "/etc/b")),
        ("all".into(), "gpu".into())
    );
    assert_eq!(says(&files(&world, "b"), "/etc/b"), "all");
}

#[test]
fn a_node_s_loader_and_consoles_are_its_own_else_its_groups_() {
    let mut world = World::with_next(9);
    let group = |loader, console: &[&str]| Group {
        loader,
        console: console.iter().map(|it| (*it).into()).collect(),
        kernel_args: "quiet".into(),
        ..Group::default()
    };
    let mut own = entry(0, "own", &["rack"]);
    own.loader = Some(UefiLoader::Shim);
    own.console = vec!["hvc0".into()];
    let inventory = Inventory {
        nodes: vec![own, entry(1, "plain", &[]), entry(2, "rack1", &["rack"])],
        groups: groups([
            (
                "rack",
                group(Some(UefiLoader::Ipxe), &["tty0", "ttyS1,115200"]),
            ),
            ("all", group(None, &["tty1"])),
        ]),
        ..Inventory::default()
    };
    apply(&mut world, inventory.clone()).unwrap();
    world.restart();
    assert_eq!(world.engine.inventory(), inventory);

    for (node, loader, console) in [
        ("own", "shimx64.efi", "console=hvc0 quiet"),
        (
            "rack1",
            "snponly.efi",
            "console=tty0 console=ttyS1,115200 quiet",
        ),
        ("plain", "shimx64.efi", "console=tty1 quiet"),
    ] {
        let copy = world.engine.clone();
        let preview = copy
            .preview(world.now, node, Some(Firmware::UefiX64))
            .unwrap();
        assert_eq!(preview.files[0].path, loader, "{node}");
        let command = Command::Plan { node: node.into() };
        let Ok(CommandReply::Plan(plan)) = world.command(command) else {
            panic!("no plan of {node}");
        };
        assert!(plan.command_line.contains(console), "{}", plan.command_line);
    }
    let bad = Inventory {
        groups: groups([("rack", group(None, &["ttyS0 init=/bin/sh"]))]),
        ..inventory
    };
    let Err(CommandError::Invalid { problems }) = apply(&mut world, bad) else {
        panic!("a console with a blank was accepted");
    };
    assert_eq!(problems[0].0, "group rack");
    assert!(problems[0].1.contains("ttyS0,115200"), "{problems:?}");
}

#[test]
fn settings_reach_a_node_as_files_of_its_system() {
    let mut world = World::with_next(2);
    let mount = Mount {
        source: "10.0.0.1:/export/ho me%".into(),
        kind: "nfs".into(),
        options: "rw,hard".into(),
    };
    let disk = |wipe| Disk {
        device: "/dev/disk/by-id/nvme-one".into(),
        kind: "xfs".into(),
        options: "noatime".into(),
        wipe,
    };
    let group = Group {
        journal_size: Some("64M".into()),
        network: NetworkSettings {
            time: vec![[10, 0, 0, 1].into()],
            ..NetworkSettings::default()
        },
        mounts: [("/home".into(), mount)].into(),
        disks: [
            ("/mnt/scratch-1".into(), disk(Wipe::IfBlank)),
            ("swap".into(), disk(Wipe::Never)),
        ]
        .into(),
        ..Group::default()
    };
    let awake = Group {
        masked_units: Some(Vec::new()),
        ..Group::default()
    };
    let inventory = Inventory {
        nodes: vec![entry(0, "a", &["group"]), entry(1, "b", &["awake"])],
        groups: groups([("group", group), ("awake", awake)]),
        ..Inventory::default()
    };
    apply(&mut world, inventory).unwrap();
    let a = files(&world, "a");
    let unit = |name: &str| says(&a, &format!("/run/systemd/system/{name}"));
    assert_eq!(unit("sleep.target"), "");
    let home = unit("home.mount");
    assert!(
        home.contains("What=10.0.0.1:/export/ho me%%\nWhere=/home\nType=nfs\n"),
        "{home}"
    );
    assert_eq!(
        unit("remote-fs.target.d/50-slate.conf"),
        "[Unit]\nWants=home.mount\n"
    );
    let scratch = unit("mnt-scratch\\x2d1.mount");
    let service = "slate-disk-mnt-scratch\\x2d1.service";
    assert!(
        scratch.contains(&format!("Requires={service}\nAfter={service}\n")),
        "{scratch}"
    );
    let prepare = unit(service);
    let command = "/run/slate/prepare-disk /dev/disk/by-id/nvme-one xfs if-blank\n";
    assert!(prepare.contains(command), "{prepare}");
    let swap = unit("slate-disk-swap.service");
    assert!(
        swap.contains("/dev/disk/by-id/nvme-one swap never\n"),
        "{swap}"
    );
    assert!(unit("swap.target.d/50-slate.conf").contains("dev-disk-by\\x2did-nvme\\x2done.swap"));
    assert_eq!(a["/run/slate/prepare-disk"].mode, 0o755);
    assert!(says(&a, "/run/systemd/journald.conf.d/50-slate.conf").contains("RuntimeMaxUse=64M"));
    assert_eq!(
        says(&a, "/run/chrony-dhcp/slate.sources"),
        "server 10.0.0.1 iburst\n"
    );
    assert!(says(&a, "/run/systemd/timesyncd.conf.d/50-slate.conf").contains("NTP=10.0.0.1\n"));
    assert_eq!(files(&world, "b"), BTreeMap::new());
}

#[test]
fn templates_and_secrets_are_filled_in_for_each_node() {
    let mut world = World::with_next(3);
    let key = "munge".to_owned();
    let secret = FileEntry {
        secret: Some(key.clone()),
        owner: Some("munge".into()),
        ..FileEntry::default()
    };
    let template = FileEntry {
        template: true,
        ..content(
            "{% for it in nodes %}{{ it.name }} {% endfor %}= {{ name }}, {{ groups|join(\"+\") }}",
        )
    };
    let files_of = |template| Group {
        files: [
            ("/etc/key".into(), secret.clone()),
            ("/etc/list".into(), template),
        ]
        .into(),
        ..Group::default()
    };
    let inventory = |template| Inventory {
        nodes: vec![entry(0, "a", &["x", "y"]), entry(1, "b", &["x"])],
        groups: groups([("x", files_of(template)), ("y", Group::default())]),
        ..Inventory::default()
    };
    let Err(CommandError::Invalid { problems }) = apply(&mut world, inventory(template.clone()))
    else {
        panic!("a secret that is none was accepted");
    };
    assert!(
        problems[0].1.contains("no secret is called"),
        "{problems:?}"
    );
    let set = |content: &[u8]| Command::SetSecret {
        name: key.clone(),
        content: Some(Secret(content.into())),
    };
    let forget = || Command::SetSecret {
        name: key.clone(),
        content: None,
    };
    world.command(set(b"\xff1")).unwrap();
    apply(&mut world, inventory(template)).unwrap();
    assert!(matches!(
        world.command(forget()),
        Err(CommandError::SecretInUse { .. })
    ));
    world.command(set(b"\xff2")).unwrap();
    world.restart();
    let a = files(&world, "a");
    assert_eq!(a["/etc/key"].content, b"\xff2");
    assert_eq!(
        (a["/etc/key"].mode, a["/etc/key"].owner.as_str()),
        (0o600, "munge")
    );
    assert_eq!(says(&a, "/etc/list"), "a b = a, x+y");
    assert_eq!(says(&files(&world, "b"), "/etc/list"), "a b = b, x");
    // It is shown nowhere.
    let shown = format!("{:?} {:?}", world.records, world.events);
    assert!(
        !shown.contains("255, 50") && !shown.contains("ff32"),
        "{shown}"
    );

    // What fails when it is filled in is left out, and told.
    let broken = FileEntry {
        template: true,
        ..content("{{ nobody }}")
    };
    apply(&mut world, inventory(broken)).unwrap();
    let node = world.engine.nodes[&mac(0)].clone();
    let (_, omitted) = world.engine.files_for(&node);
    assert_eq!(omitted.len(), 1);
    world.power_on(1);
    world.boot_all(Duration::from_secs(300));
    let told =
        |it: &EventKind| matches!(it, EventKind::FileOmitted { path, .. } if path == "/etc/list");
    assert_eq!(world.count(told), 1);
    apply(&mut world, Inventory::default()).unwrap();
    world.command(forget()).unwrap();
    assert!(matches!(
        world.command(forget()),
        Err(CommandError::UnknownSecret { .. })
    ));
}

#[test]
fn every_problem_of_a_group_is_named_and_nothing_changes() {
    let mut world = World::with_next(4);
    let kept = Inventory {
        nodes: vec![entry(0, "a", &["kept"])],
        groups: groups([("kept", Group::default())]),
        ..Inventory::default()
    };
    apply(&mut world, kept.clone()).unwrap();
    let with_file = |path: &str, file: FileEntry| Group {
        files: [(path.into(), file)].into(),
        ..Group::default()
    };
    let with_size = |size: &str| Group {
        upper_size: Some(size.into()),
        ..Group::default()
    };
    let device = |device: &str| Group {
        disks: [(
            "/x".into(),
            Disk {
                device: device.into(),
                kind: "ext4".into(),
                options: "defaults".into(),
                wipe: Wipe::IfBlank,
            },
        )]
        .into(),
        ..Group::default()
    };
    let bad = [
        ("no name", Group::default()),
        (
            "args",
            Group {
                kernel_args: "a\nb".into(),
                ..Group::default()
            },
        ),
        (
            "image",
            Group {
                image: Some("fedora".parse().unwrap()),
                ..Group::default()
            },
        ),
        ("size", with_size("0")),
        ("share", with_size("101%")),
        (
            "units",
            Group {
                masked_units: Some(vec!["../x.service".into()]),
                ..Group::default()
            },
        ),
        ("path", with_file("/etc/../x", content(""))),
        ("relative", with_file("etc/x", content(""))),
        (
            "both",
            with_file(
                "/x",
                FileEntry {
                    secret: Some("s".into()),
                    ..content("")
                },
            ),
        ),
        (
            "mode",
            with_file(
                "/x",
                FileEntry {
                    mode: Some("0999".into()),
                    ..content("")
                },
            ),
        ),
        (
            "owner",
            with_file(
                "/x",
                FileEntry {
                    owner: Some("a b".into()),
                    ..content("")
                },
            ),
        ),
        (
            "template",
            with_file(
                "/x",
                FileEntry {
                    template: true,
                    ..content("{{")
                },
            ),
        ),
        ("long", with_file("/x", content(&"x".repeat(200_000)))),
        ("device", device("nvme0n1")),
        ("quoted", device("/dev/a$b")),
    ];
    let names: Vec<&str> = bad.iter().map(|(name, _)| *name).collect();
    let inventory = Inventory {
        nodes: vec![entry(0, "a", &["all"]), entry(1, "b", &["none"])],
        groups: groups(bad.clone()),
        networks: [("10.99.0.0/24".into(), NetworkSettings::default())].into(),
        ..Inventory::default()
    };
    let Err(CommandError::Invalid { problems }) = apply(&mut world, inventory) else {
        panic!("accepted");
    };
    let of: Vec<&str> = problems.iter().map(|(of, _)| of.as_str()).collect();
    for name in names {
        assert!(
            of.contains(&format!("group {name}").as_str()),
            "{name}: {problems:?}"
        );
    }
    for name in ["a", "b", "network 10.99.0.0/24"] {
        assert!(of.contains(&name), "{name}: {problems:?}");
    }
    assert_eq!(world.engine.inventory(), kept);
    // A group goes only when no node is in it any more.
    let pruned = Inventory {
        groups: BTreeMap::new(),
        ..kept
    };
    assert!(apply(&mut world, pruned).is_err());
}

#[test]
fn dhcp_tells_what_group_and_network_say_and_gives_no_router_s_address_away() {
    let mut world = World::with_next(5);
    let router = [10, 77, 0, 2];
    let of_network = NetworkSettings {
        routers: vec![router.into()],
        dns: vec![[10, 77, 0, 3].into()],
        domain: Some("lab.example.org".into()),
        ..NetworkSettings::default()
    };
    let of_group = NetworkSettings {
        dns: vec![[10, 77, 0, 4].into()],
        search: vec!["a.example.org".into(), "b.example.org".into()],
        time: vec![[10, 77, 0, 5].into(), [10, 77, 0, 6].into()],
        // Not on this network.
        routers: vec![[10, 78, 0, 1].into()],
        ..NetworkSettings::default()
    };
    let group = Group {
        network: of_group,
        ..Group::default()
    };
    let inventory = Inventory {
        nodes: vec![entry(0, "a", &["g"])],
        groups: groups([("g", group)]),
        networks: [("10.77.0.0/24".into(), of_network)].into(),
        ..Inventory::default()
    };
    apply(&mut world, inventory).unwrap();
    let mut offer = |index: usize, wanted: [u8; 4]| {
        let mut message = Message::request(mac(index), 1);
        message.push(option::MESSAGE_TYPE, [MessageType::Discover.code()]);
        message.push(option::REQUESTED_ADDRESS, wanted);
        let outputs = world
            .engine
            .handle(START, dhcp(message.encode(MAX_BUDGET_BYTES)));
        let reply = outputs.into_iter().find_map(|output| match output {
            Output::Dhcp { packet, .. } => Some(Message::decode(&packet).unwrap()),
            _ => None,
        });
        reply.expect("an offer")
    };
    let node = offer(0, router);
    assert_ne!(node.yiaddr.octets(), router);
    assert_eq!(node.option(option::ROUTER), None);
    assert_eq!(node.option(option::DNS), Some(&[10, 77, 0, 4][..]));
    assert_eq!(node.option(option::DOMAIN), Some(&b"lab.example.org"[..]));
    let search = decode_search(node.option(option::DOMAIN_SEARCH).unwrap());
    assert_eq!(search, ["a.example.org", "b.example.org"]);
    let time = Some(&[10, 77, 0, 5, 10, 77, 0, 6][..]);
    assert_eq!(node.option(option::TIME_SERVERS), time);
    let stranger = offer(1, router);
    assert_ne!(stranger.yiaddr.octets(), router);
    assert_eq!(stranger.option(option::ROUTER), Some(&router[..]));
    assert_eq!(stranger.option(option::DNS), Some(&[10, 77, 0, 3][..]));
    assert_eq!(stranger.option(option::TIME_SERVERS), None);
    assert_eq!(stranger.option(option::DOMAIN_SEARCH), None);
}

#[test]
fn nodes_are_meant_by_lists() {
    let mut world = World::with_next(6);
    let inventory = Inventory {
        nodes: vec![
            entry(0, "n1", &["gpu"]),
            entry(1, "n2", &[]),
            entry(2, "n10", &["gpu"]),
        ],
        groups: groups([("gpu", Group::default()), ("none", Group::default())]),
        ..Inventory::default()
    };
    apply(&mut world, inventory).unwrap();
    let mut select = |nodes: &str| {
        let nodes = nodes.to_owned();
        match world.command(Command::Select { nodes }) {
            Ok(CommandReply::Selected(nodes)) => {
                Ok(nodes.into_iter().map(|it| it.name).collect::<Vec<_>>())
            }
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.to_string()),
        }
    };
    assert_eq!(select("@all").unwrap(), ["n1", "n2", "n10"]);
    assert_eq!(select("@gpu").unwrap(), ["n1", "n10"]);
    assert_eq!(select("@none").unwrap(), [""; 0]);
    assert_eq!(select("n[1-2],@gpu").unwrap(), ["n1", "n2", "n10"]);
    assert_eq!(select(&mac(1).to_string()).unwrap(), ["n2"]);
    for (list, expected) in [
        ("n[1-3]", "no node is called \"n3\""),
        ("@gpus", "no group is called \"gpus\""),
        ("n[1-", "without its ]"),
        ("52:54:00:ff:ff:ff", "no node is called"),
    ] {
        let error = select(list).unwrap_err();
        assert!(error.contains(expected), "{list}: {error}");
    }
    let change = NodeChange {
        groups: Some(vec!["nobody".into()]),
        ..NodeChange::default()
    };
    let node = "n1".to_owned();
    let refused = world.command(Command::NodeSet { node, change });
    assert!(matches!(refused, Err(CommandError::UnknownGroup { .. })));
}
