//! The engine against any sequence of packets from anybody: it never panics, its replies are
//! messages, and what it must persist comes before the reply that promises it.
#![no_main]

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};

use engine::{
    BootFile, Command, Config, Content, DhcpMode, Digest, Engine, HttpBody, HttpRequest, ImageInfo,
    Input, Interface, InterfaceId, Mac, Output, Record, TftpAnswer, Timestamp,
};
use libfuzzer_sys::fuzz_target;
use wire::dhcp4::{MAX_BUDGET_BYTES, Message, MessageType, option};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// Of a DHCP message, with the cookie.
const HEADER_BYTES: usize = 240;
const INTERFACE: InterfaceId = InterfaceId(1);
const MACHINE: Mac = Mac([0x52, 0x54, 0, 0, 0, 1]);

fuzz_target!(|script: (bool, Vec<(u8, u32, Vec<u8>)>)| {
    let (beside, packets) = script;
    let mut engine = engine(beside);
    let mut now = 0;
    for (kind, after_ms, bytes) in packets {
        now += u64::from(after_ms);
        let outputs = engine.handle(Timestamp(now), input(kind, bytes));
        outputs
            .iter()
            .enumerate()
            .for_each(|(at, output)| check(beside, &outputs[..at], output));
        let _ = engine.next_deadline();
    }
    let _ = engine.nodes();
});

/// Alone on its network, or beside another DHCP server and with a node.
fn engine(beside: bool) -> Engine {
    let mut interface = Interface::new(INTERFACE, SERVER, 24);
    if beside {
        interface.dhcp = DhcpMode::Proxy;
    }
    let relayed = interface.behind(Ipv4Addr::new(10, 88, 0, 1), 24);
    let mut config = Config::new(vec![interface, relayed]);
    config.default_image = Some("debian".parse().expect("an image's name"));
    let mut engine = Engine::new(config, [1; 32], Vec::new());
    let image = ImageInfo {
        name: "debian".into(),
        tag: "latest".into(),
        digest: Digest([7; 32]),
        files: BootFile::ALL.map(|file| (file, Ok(()))).into(),
        no_http: Default::default(),
        origins: Default::default(),
        foreign_initrd: false,
    };
    let _ = engine.handle(
        Timestamp(0),
        Input::Images {
            versions: [image.digest].into(),
            no_selinux: Default::default(),
            images: vec![image],
        },
    );
    if beside {
        let node = "52:54:00:00:00:01".into();
        let _ = engine.handle(Timestamp(0), Input::Command(Command::Plan { node }));
    }
    engine
}

fn input(kind: u8, bytes: Vec<u8>) -> Input {
    let host = Ipv4Addr::new(10, 77, 0, kind);
    let peer = SocketAddrV4::new(host, 1024);
    match kind % 8 {
        6 if kind & 8 == 0 => Input::RouterSolicitation {
            interface: INTERFACE,
            source: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1),
            mac: MACHINE,
        },
        7 => Input::Dhcp {
            interface: INTERFACE,
            source: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68),
            packet: firmware(kind, &bytes),
        },
        0 => Input::Dhcp {
            interface: INTERFACE,
            source: peer,
            packet: bytes,
        },
        1 => Input::Tftp {
            peer,
            packet: bytes,
        },
        2 => Input::Beacon {
            peer,
            datagram: bytes,
        },
        3 => Input::Http {
            peer,
            request: HttpRequest {
                method: if kind & 8 == 0 { "GET" } else { "POST" }.into(),
                target: if kind & 8 == 0 {
                    String::from_utf8_lossy(&bytes).into_owned()
                } else {
                    "/identity".into()
                },
                body: bytes,
            },
        },
        4 => Input::BootServer {
            interface: INTERFACE,
            source: peer,
            packet: bytes,
        },
        5 => Input::Overheard {
            interface: INTERFACE,
            source: host,
            packet: bytes,
        },
        _ => Input::Tick,
    }
}

/// A message whose header is whole, as firmware or a relay sends it: what varies are the options.
fn firmware(kind: u8, options: &[u8]) -> Vec<u8> {
    let mut message = Message::request(MACHINE, 7);
    if kind & 8 != 0 {
        message.giaddr = Ipv4Addr::new(10, 88, 0, 1);
    }
    message.push(
        option::CLASS,
        if kind & 16 == 0 {
            *b"PXEClient:"
        } else {
            *b"HTTPClient"
        },
    );
    let mut packet = message.encode(MAX_BUDGET_BYTES);
    packet.truncate(HEADER_BYTES + 12);
    packet.extend_from_slice(options);
    packet
}

/// A configuration is lines of printable text, whatever was asked.
fn check_text(output: &Output) {
    let content = match output {
        Output::Http(answer) => match &answer.body {
            HttpBody::Content(content) => content,
            HttpBody::Identity(_) => return,
        },
        Output::Tftp {
            answer: TftpAnswer::Transfer { content, .. },
            ..
        } => content,
        _ => return,
    };
    if let Content::Bytes(bytes) = content {
        let plain = |it: &u8| *it == b'\n' || (b' '..=b'~').contains(it);
        let config = bytes.starts_with(b"#!ipxe") || bytes.starts_with(b"SAY ");
        assert!(!config || bytes.iter().all(plain), "{bytes:?}");
    }
}

fn check(beside: bool, before: &[Output], output: &Output) {
    check_text(output);
    let Output::Dhcp { packet, .. } = output else {
        return;
    };
    let reply = Message::decode(packet).expect("our own reply");
    let gives = !reply.yiaddr.is_unspecified() || reply.message_type() == Some(MessageType::Nak);
    assert!(!(beside && gives), "an address beside another server");
    let other = before.iter().any(|it| match it {
        Output::Persist(Record::Lease(lease)) => {
            lease.mac == Some(reply.mac) && lease.address != reply.yiaddr
        }
        _ => false,
    });
    assert!(!other, "a lease for one address, a reply with another");
}
