//! Brings up the interface that the node boots from: the one that `BOOTIF=` names, else the first
//! on which anybody answers.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::sockopt::set_socket_broadcast;
use rustix::time::Timespec;
use wire::cmdline::{BootArgs, Ip, StaticIp};
use wire::dhcp4::{CLIENT_PORT, SERVER_PORT};
use wire::stage::Stage;

use crate::dhcp::{Answer, Client, Lease};
use crate::failure::Failure;
use crate::report::{Reporter, monotonic_us};
use crate::rtnl::{self, Link, Message, Socket};
use crate::stacks::Stacks;
use crate::sys;

/// After this long without the interface that `BOOTIF=` names, any other will do.
const BOOTIF_PATIENCE: Duration = Duration::from_secs(20);
/// How often silence is reported.
const REPORT_EVERY: Duration = Duration::from_secs(15);

/// The node's network as it was configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configured {
    /// The interface.
    pub link: Link,
    /// Its address and what came with it.
    pub lease: Lease,
    /// Whether the address came by DHCP and has to be renewed by somebody.
    pub dhcp: bool,
    /// Whether it is a VLAN or a bond, made over others that have its MAC as well.
    pub stacked: bool,
    /// When it was, in microseconds since the kernel's start.
    pub since_us: u64,
}

/// Configures one interface; tries for ever.
pub fn bring_up(args: &BootArgs, report: &Reporter, random: u64) -> Result<Configured, Failure> {
    let socket = Socket::open(true).map_err(|error| no_netlink(&error))?;
    socket.request_links().map_err(|error| no_netlink(&error))?;
    let mut race = Race {
        args,
        report,
        random,
        started: Instant::now(),
        reported: Instant::now(),
        links: BTreeMap::new(),
        runners: BTreeMap::new(),
        stacks: Stacks::new(args, report),
    };
    let configured = race.run(&socket).map_err(|error| no_netlink(&error))?;
    apply(&configured, args).map_err(|error| {
        let cause = format!("configuring {}: {error}", configured.link.name);
        Failure::passing(
            Stage::Network,
            cause,
            "check the address that DHCP or ip= gives",
        )
    })?;
    for link in race.links.values() {
        // What the others stand on carries the root.
        if link.index != configured.link.index && !race.stacks.is_part(&link.name) {
            let _ = request(&rtnl::set_link(link.index, false, None));
        }
    }
    Ok(configured)
}

fn no_netlink(error: &std::io::Error) -> Failure {
    let hint = "the kernel must have networking (CONFIG_INET)";
    Failure::passing(Stage::Network, format!("netlink: {error}"), hint)
}

struct Race<'a> {
    args: &'a BootArgs,
    report: &'a Reporter,
    random: u64,
    started: Instant,
    reported: Instant,
    links: BTreeMap<u32, Link>,
    runners: BTreeMap<u32, Runner>,
    stacks: Stacks<'a>,
}

struct Runner {
    client: Client,
    socket: UdpSocket,
    due: Instant,
}

impl Race<'_> {
    fn run(&mut self, netlink: &Socket) -> std::io::Result<Configured> {
        loop {
            if let Some(configured) = self.start_runners() {
                return Ok(configured);
            }
            self.send_due();
            self.report_silence();
            let wait = self.next_due().saturating_duration_since(Instant::now());
            let (events, ready) = self.wait(netlink, wait)?;
            for index in ready {
                if let Some(configured) = self.receive(index) {
                    return Ok(configured);
                }
            }
            if events {
                netlink
                    .receive()?
                    .into_iter()
                    .for_each(|it| self.link_event(it));
            }
        }
    }

    fn wait(&self, netlink: &Socket, wait: Duration) -> std::io::Result<(bool, Vec<u32>)> {
        let mut fds = vec![PollFd::from_borrowed_fd(netlink.as_fd(), PollFlags::IN)];
        for runner in self.runners.values() {
            fds.push(PollFd::from_borrowed_fd(
                runner.socket.as_fd(),
                PollFlags::IN,
            ));
        }
        let timeout = Timespec {
            tv_sec: wait.as_secs() as i64,
            tv_nsec: i64::from(wait.subsec_nanos()),
        };
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let events = !fds[0].revents().is_empty();
        let ready = self.runners.keys().zip(&fds[1..]);
        let ready = ready.filter(|(_, fd)| !fd.revents().is_empty());
        Ok((events, ready.map(|(index, _)| *index).collect()))
    }

    fn link_event(&mut self, message: Message) {
        match message {
            Message::Link(link) => {
                let known = self.links.insert(link.index, link.clone());
                self.stacks.seen(&link);
                let sets_up = !self.stacks.is_member(&link.name);
                if sets_up && !link.up && known.is_none_or(|known| known.up) {
                    let _ = request(&rtnl::set_link(link.index, true, None));
                }
                if !link.carrier {
                    self.runners.remove(&link.index);
                }
            }
            Message::Gone(index) => {
                self.links.remove(&index);
                self.runners.remove(&index);
            }
            Message::Ack(_) | Message::Other => {}
        }
    }

    /// Starts DHCP wherever a carrier has come; a fixed address is done at once.
    fn start_runners(&mut self) -> Option<Configured> {
        let links: Vec<Link> = self
            .links
            .values()
            .filter(|it| it.carrier)
            .cloned()
            .collect();
        for link in links {
            if self.runners.contains_key(&link.index) || !self.is_wanted(&link) {
                continue;
            }
            match plan(self.args, &link.name) {
                Plan::Leave => {}
                Plan::Static(_) | Plan::Dhcp if self.stacks.leaves_alone(&link.name) => {}
                Plan::Static(fixed) => {
                    return Some(Configured {
                        lease: static_lease(fixed, self.args),
                        stacked: self.stacks.is_made(&link.name),
                        link,
                        dhcp: false,
                        since_us: monotonic_us(),
                    });
                }
                Plan::Dhcp => self.start_dhcp(&link),
            }
        }
        None
    }

    fn start_dhcp(&mut self, link: &Link) {
        match dhcp_socket(&link.name) {
            Ok(socket) => {
                let random =
                    self.random ^ u64::from(link.index).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let runner = Runner {
                    client: Client::new(link.mac, random),
                    socket,
                    due: Instant::now(),
                };
                self.runners.insert(link.index, runner);
            }
            Err(error) => self
                .report
                .log(&format!("{}: DHCP socket: {error}", link.name)),
        }
    }

    fn is_wanted(&self, link: &Link) -> bool {
        match self.args.bootif {
            // A bond has the address of any of its members.
            Some(_) if self.stacks.is_made(&link.name) => true,
            Some(mac) => mac == link.mac || self.started.elapsed() > BOOTIF_PATIENCE,
            None => true,
        }
    }

    fn send_due(&mut self) {
        let now = Instant::now();
        for runner in self.runners.values_mut().filter(|runner| runner.due <= now) {
            let (message, wait) = runner.client.poll();
            // What cannot be sent now is sent again later, as if it had been lost.
            let _ = runner
                .socket
                .send_to(&message, (Ipv4Addr::BROADCAST, SERVER_PORT));
            runner.due = now + wait;
        }
    }

    fn next_due(&self) -> Instant {
        let reports = self.reported + REPORT_EVERY;
        let patience = self.started + BOOTIF_PATIENCE + Duration::from_millis(1);
        let patience = Some(patience).filter(|it| *it > Instant::now());
        let dues = self.runners.values().map(|runner| runner.due);
        dues.chain(patience)
            .chain([reports])
            .min()
            .unwrap_or(reports)
    }

    fn receive(&mut self, index: u32) -> Option<Configured> {
        let runner = self.runners.get_mut(&index)?;
        let mut buffer = [0; 2048];
        let length = runner.socket.recv(&mut buffer).ok()?;
        match runner.client.receive(&buffer[..length]) {
            Answer::None => None,
            Answer::SendNow => {
                runner.due = Instant::now();
                None
            }
            Answer::Lease(lease) => Some(Configured {
                stacked: self.stacks.is_made(&self.links.get(&index)?.name),
                link: self.links.get(&index)?.clone(),
                lease,
                dhcp: true,
                since_us: monotonic_us(),
            }),
        }
    }

    fn report_silence(&mut self) {
        if self.reported.elapsed() < REPORT_EVERY {
            return;
        }
        self.reported = Instant::now();
        let names = |want: bool| {
            let links = self.links.values().filter(|link| link.carrier == want);
            links
                .map(|link| link.name.as_str())
                .collect::<Vec<_>>()
                .join(" ")
        };
        let text = match (self.links.is_empty(), self.runners.is_empty()) {
            (true, _) => "no Ethernet interface: is its driver in the initramfs?".to_owned(),
            (_, true) => format!("no usable carrier; without carrier: {}", names(false)),
            (_, false) => format!("no answer to DHCP on {}", names(true)),
        };
        self.report.failure(Stage::Network, &text);
    }
}

enum Plan<'a> {
    Dhcp,
    Static(&'a StaticIp),
    Leave,
}

/// What `ip=` says about an interface; a word that names it goes before one that names none.
fn plan<'a>(args: &'a BootArgs, name: &str) -> Plan<'a> {
    fn interface(ip: &Ip) -> Option<&str> {
        match ip {
            Ip::Dhcp { interface, .. } | Ip::Off { interface } => interface.as_deref(),
            Ip::Static(fixed) => fixed.interface.as_deref(),
        }
    }
    let named = args.ip.iter().find(|ip| interface(ip) == Some(name));
    match named.or_else(|| args.ip.iter().find(|ip| interface(ip).is_none())) {
        Some(Ip::Static(fixed)) => Plan::Static(fixed),
        Some(Ip::Dhcp { .. }) => Plan::Dhcp,
        Some(Ip::Off { .. }) => Plan::Leave,
        None if args.ip.is_empty() => Plan::Dhcp,
        None => Plan::Leave,
    }
}

fn static_lease(fixed: &StaticIp, args: &BootArgs) -> Lease {
    Lease {
        address: fixed.address,
        prefix: fixed.prefix,
        gateway: fixed.gateway,
        dns: fixed.dns.iter().chain(&args.nameservers).copied().collect(),
        hostname: fixed.hostname.clone(),
        domains: Vec::new(),
        next_server: fixed.server,
        mtu: fixed.mtu,
        server: None,
        seconds: None,
    }
}

fn mtu(args: &BootArgs, name: &str) -> Option<u16> {
    args.ip.iter().find_map(|ip| match ip {
        Ip::Dhcp { interface, mtu } if interface.as_deref().is_none_or(|it| it == name) => *mtu,
        _ => None,
    })
}

fn dhcp_socket(interface: &str) -> std::io::Result<UdpSocket> {
    use rustix::net::{AddressFamily, SocketType, bind, socket, sockopt};
    let fd = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    sockopt::set_socket_reuseaddr(&fd, true)?;
    set_socket_broadcast(&fd, true)?;
    sys::bind_to_device(&fd, interface)?;
    bind(&fd, &SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, CLIENT_PORT))?;
    Ok(UdpSocket::from(fd))
}

fn apply(configured: &Configured, args: &BootArgs) -> std::io::Result<()> {
    let Configured { link, lease, .. } = configured;
    let mtu = mtu(args, &link.name).or(lease.mtu);
    if mtu.is_some() {
        request(&rtnl::set_link(link.index, true, mtu))?;
    }
    request(&rtnl::add_address(link.index, lease.address, lease.prefix))?;
    if let Some(gateway) = lease.gateway {
        request(&rtnl::add_default_route(link.index, gateway))?;
    }
    Ok(())
}

pub(crate) fn request(message: &[u8]) -> std::io::Result<()> {
    Socket::open(false)?.call(message)
}

/// Sets up the loopback interface, which a few programs expect early.
pub fn loopback() {
    let _ = request(&rtnl::set_link(1, true, None));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_interface_goes_first() {
        let (args, _) = BootArgs::parse("ip=10.0.0.5:::24::eth1:none ip=eth2:off ip=dhcp");
        assert!(matches!(plan(&args, "eth0"), Plan::Dhcp));
        assert!(matches!(plan(&args, "eth1"), Plan::Static(_)));
        assert!(matches!(plan(&args, "eth2"), Plan::Leave));
        let (args, _) = BootArgs::parse("ip=eth1:dhcp");
        assert!(matches!(plan(&args, "eth0"), Plan::Leave));
        assert!(matches!(plan(&BootArgs::default(), "eth0"), Plan::Dhcp));
    }
}
