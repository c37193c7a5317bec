//! IPv6's router solicitations: one ICMPv6 socket for each interface. It hears what is sent to all
//! routers, and sends to single machines, so that nothing of a site's IPv6 changes.

use std::io::{self, Read as _};
use std::net::{Ipv6Addr, SocketAddrV6};
use std::sync::Arc;
use std::time::Duration;

use engine::{Input, InterfaceId};
use rustix::net::{RecvFlags, recvfrom};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use wire::ndp::{
    ALL_ROUTERS, HOP_LIMIT, MAX_SOLICITATION_BYTES, NO_ROUTER, ROUTER_SOLICITATION,
    RouterSolicitation,
};

use crate::hub::{Inbox, offer};

/// How long a socket with an error is left alone.
const ERROR_PAUSE: Duration = Duration::from_millis(100);

/// The socket of one interface.
#[derive(Clone)]
pub struct Port {
    interface: InterfaceId,
    socket: Arc<Socket>,
}

impl Port {
    /// Opens the socket of an interface. Needs CAP_NET_RAW, and IPv6 on the interface.
    pub fn open(name: &str, interface: InterfaceId) -> io::Result<Port> {
        let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
        socket.attach_filter(&solicitations())?;
        socket.bind_device(Some(name.as_bytes()))?;
        socket.join_multicast_v6(&ALL_ROUTERS, interface.0)?;
        socket.set_unicast_hops_v6(HOP_LIMIT.into())?;
        forget_unfiltered(&socket)?;
        let socket = Arc::new(socket);
        Ok(Port { interface, socket })
    }

    /// Tells a machine that this one is no router.
    pub fn deny(&self, machine: Ipv6Addr) {
        let to = SocketAddrV6::new(machine, 0, 0, self.interface.0);
        if let Err(error) = self.socket.send_to(&NO_ROUTER, &to.into()) {
            tracing::debug!(%error, %machine, "a router advertisement could not be sent");
        }
    }

    /// Hands every solicitation to the hub until that is gone.
    pub fn receive(&self, hub: &Inbox) {
        loop {
            match self.next() {
                Ok(Some(RouterSolicitation { source, mac })) => {
                    let interface = self.interface;
                    let asked = Input::RouterSolicitation {
                        interface,
                        source,
                        mac,
                    };
                    if !offer(hub, asked) {
                        return;
                    }
                }
                Ok(None) => {}
                // An interface that is down for a while.
                Err(error) => {
                    tracing::debug!(%error, "listening to router solicitations");
                    std::thread::sleep(ERROR_PAUSE);
                }
            }
        }
    }

    /// The next solicitation; `None` where a packet was none that is answered.
    fn next(&self) -> io::Result<Option<RouterSolicitation>> {
        // One byte more, so that a message which is too long shows itself.
        let mut buffer = [0; MAX_SOLICITATION_BYTES + 1];
        let (length, _, source) = recvfrom(&self.socket, &mut buffer, RecvFlags::empty())?;
        let source = source.and_then(|it| SocketAddrV6::try_from(it).ok());
        let asked = source.map(|it| RouterSolicitation::decode(*it.ip(), &buffer[..length]));
        Ok(asked.and_then(Result::ok))
    }
}

/// Drops what came in before the filter was there, and on other interfaces.
fn forget_unfiltered(socket: &Socket) -> io::Result<()> {
    let mut socket: &Socket = socket;
    socket.set_nonblocking(true)?;
    while socket.read(&mut [0; 1]).is_ok() {}
    socket.set_nonblocking(false)
}

/// A filter for solicitations that no router has handed on, in the kernel's language
/// (linux/filter.h); offset 0 is the ICMPv6 header.
fn solicitations() -> [SockFilter; 6] {
    const LOAD_BYTE: u16 = 0x30;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const IPV6_HEADER: u32 = 0xfff0_0000;
    const HOP_LIMIT_AT: u32 = 7;
    [
        SockFilter::new(LOAD_BYTE, 0, 0, IPV6_HEADER + HOP_LIMIT_AT),
        SockFilter::new(JUMP_IF_EQUAL, 0, 3, HOP_LIMIT.into()),
        SockFilter::new(LOAD_BYTE, 0, 0, 0),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, ROUTER_SOLICITATION.into()),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::mpsc::sync_channel;

    use wire::mac::Mac;

    use super::*;
    use crate::hub::Message;

    const MACHINE: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
    const MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
    const PATIENCE: Duration = Duration::from_secs(10);

    /// The test that needs a network of its own, and its mark that it ran.
    const INSIDE: &str = "net::ndp::tests::inside_a_network_of_its_own";
    const RAN: &str = "solicited and answered";
    /// Set where the network is the test's own.
    const OWN_NETWORK: &str = "SLATE_TEST_OWN_NETWORK";

    #[test]
    fn a_machine_of_the_link_is_heard_and_answered() {
        let output = Command::new("unshare")
            .args(["--user", "--map-root-user", "--net", "--"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", INSIDE, "--ignored", "--nocapture"])
            .env(OWN_NETWORK, "1")
            .output()
            .expect("unshare (util-linux)");
        let said = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        if errors.starts_with("unshare: ") || said.contains("skipped: ") {
            println!("skipped: no network of its own with IPv6: {errors}{said}");
            return;
        }
        assert!(
            output.status.success() && said.contains(RAN),
            "{said}{errors}"
        );
    }

    fn ip(arguments: &str) {
        let output = Command::new("ip").args(arguments.split(' ')).output();
        let output = output.expect("ip (iproute2)");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments}: {errors}");
    }

    fn index_of(name: &str) -> u32 {
        let path = format!("/sys/class/net/{name}/ifindex");
        let text = std::fs::read_to_string(&path).or_else(|_| {
            // /sys shows the network that it was mounted in.
            let output = Command::new("ip")
                .args(["-o", "link", "show", name])
                .output()?;
            Ok::<_, io::Error>(String::from_utf8_lossy(&output.stdout).into_owned())
        });
        let text = text.unwrap();
        let number = text.split(':').next().unwrap_or_default().trim();
        number.parse().expect("an index")
    }

    /// A machine's end of the link.
    fn machine(name: &str, hop_limit: u32) -> Socket {
        let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6)).unwrap();
        socket.bind_device(Some(name.as_bytes())).unwrap();
        socket.set_multicast_hops_v6(hop_limit).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    #[test]
    #[ignore = "run by another test, in a network of its own"]
    fn inside_a_network_of_its_own() {
        if std::env::var_os(OWN_NETWORK).is_none() {
            println!("skipped: it makes links, and this may be the machine's network");
            return;
        }
        if !std::path::Path::new("/proc/sys/net/ipv6").exists() {
            println!("skipped: this kernel has no IPv6");
            return;
        }
        ip("link add server type veth peer name machine");
        for (name, address) in [("server", "fe80::1/64"), ("machine", "fe80::2/64")] {
            ip(&format!("link set {name} addrgenmode none up"));
            ip(&format!("address add {address} dev {name} nodad"));
        }
        let interface = InterfaceId(index_of("server"));
        let port = Port::open("server", interface).unwrap();
        let (hub, messages) = sync_channel(16);
        let receiver = port.clone();
        std::thread::spawn(move || receiver.receive(&hub));

        let link = index_of("machine");
        let to = SocketAddrV6::new(ALL_ROUTERS, 0, 0, link);
        let asks = |kind: u8, last: u8| {
            let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0, 1, 1];
            message.extend(&MAC[..5]);
            message.push(last);
            message
        };
        // Handed on by a router; something else; too long; and what is heard.
        let far = machine("machine", 64);
        far.send_to(&asks(ROUTER_SOLICITATION, 7), &to.into())
            .unwrap();
        let near = machine("machine", HOP_LIMIT.into());
        near.send_to(&asks(134, 8), &to.into()).unwrap();
        let long = asks(ROUTER_SOLICITATION, 9).repeat(20);
        near.send_to(&long, &to.into()).unwrap();
        near.send_to(&asks(ROUTER_SOLICITATION, 1), &to.into())
            .unwrap();
        let Ok(Message::Input(Input::RouterSolicitation {
            interface: heard_on,
            source,
            mac,
        })) = messages.recv_timeout(PATIENCE)
        else {
            panic!("expected a solicitation");
        };
        assert_eq!((heard_on, source, mac), (interface, MACHINE, Mac(MAC)));

        port.deny(source);
        loop {
            let mut buffer = [0; 64];
            let flags = RecvFlags::empty();
            let (length, _, _) = recvfrom(&near, &mut buffer, flags).expect("an advertisement");
            // Its neighbours ask for its address before.
            if buffer[0] == NO_ROUTER[0] {
                assert_eq!(buffer[..2], NO_ROUTER[..2]);
                assert_eq!(buffer[4..length], NO_ROUTER[4..]);
                break;
            }
        }
        println!("{RAN}");
    }
}
