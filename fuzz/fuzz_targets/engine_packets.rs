//! The engine against any sequence of packets from anybody: it never panics, its replies are
//! messages, and what it must persist comes before the reply that promises it.
#![no_main]

use std::net::{Ipv4Addr, SocketAddrV4};

use engine::{
    BootFile, Config, Digest, Engine, HttpRequest, ImageInfo, Input, Interface, InterfaceId,
    Output, Record, Timestamp,
};
use libfuzzer_sys::fuzz_target;
use wire::dhcp4::Message;

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const INTERFACE: InterfaceId = InterfaceId(1);

fuzz_target!(|packets: Vec<(u8, u32, Vec<u8>)>| {
    let mut engine = engine();
    let mut now = 0;
    for (kind, after_ms, bytes) in packets {
        now += u64::from(after_ms);
        let outputs = engine.handle(Timestamp(now), input(kind, bytes));
        outputs
            .iter()
            .enumerate()
            .for_each(|(at, output)| check(&outputs[..at], output));
        let _ = engine.next_deadline();
    }
    let _ = engine.nodes();
});

fn engine() -> Engine {
    let interface = Interface::new(INTERFACE, SERVER, 24);
    let mut engine = Engine::new(Config::new(vec![interface]), [1; 32], Vec::new());
    let image = ImageInfo {
        name: "debian".into(),
        tag: "latest".into(),
        digest: Digest([7; 32]),
        files: BootFile::ALL.map(|file| (file, Ok(()))).into(),
    };
    let _ = engine.handle(Timestamp(0), Input::Images(vec![image]));
    engine
}

fn input(kind: u8, bytes: Vec<u8>) -> Input {
    let host = Ipv4Addr::new(10, 77, 0, kind);
    let peer = SocketAddrV4::new(host, 1024);
    match kind % 5 {
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
        _ => Input::Tick,
    }
}

fn check(before: &[Output], output: &Output) {
    let Output::Dhcp { packet, .. } = output else {
        return;
    };
    let reply = Message::decode(packet).expect("our own reply");
    let other = before.iter().any(|it| match it {
        Output::Persist(Record::Lease(lease)) => {
            lease.mac == Some(reply.mac) && lease.address != reply.yiaddr
        }
        _ => false,
    });
    assert!(!other, "a lease for one address, a reply with another");
}
