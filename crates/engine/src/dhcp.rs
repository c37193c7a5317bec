//! The DHCP server (RFC 2131), authoritative: leases by MAC, never by client identifier, because
//! firmware, loaders, /init and the running system each send another one. What is done beside
//! another server is in [`crate::proxy`].

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use wire::dhcp4::{
    BOOTP_BYTES, CLIENT_PORT, Message, MessageType, Op, SERVER_PORT, encode_search, option,
};
use wire::mac::Mac;
use wire::stage::Stage;

use crate::config::{DhcpMode, Interface, InterfaceId, UnknownPolicy};
use crate::event::EventKind;
use crate::firmware::{Client, First, IPXE_OPTIONS, sub_options};
use crate::image::BootFile;
use crate::io::{DhcpDestination, Output};
use crate::leases::is_live;
use crate::record::{Lease, Record};
use crate::{Engine, Turn};

/// How long an offered address is kept for its machine.
const OFFER_SECONDS: u64 = 60;
/// How long an address that somebody else answers on is left alone.
const DECLINE_SECONDS: u64 = 600;
/// How long a pool without a free address is not searched again.
const FULL_FOR: Duration = Duration::from_secs(1);
/// How long a node's address is kept from strangers after its lease has ended.
const NODE_KEEPS_FOR: Duration = Duration::from_secs(7 * 24 * 3600);
/// RFC 1542, 4.1.1.
const MAX_HOPS: u8 = 16;
/// Option 43 that makes firmware boot from `file` without asking a boot server on port 4011:
/// PXE_DISCOVERY_CONTROL with bit 3 (PXE 2.1, table 2-1).
const PXE_BOOT_FROM_FILE: [u8; 4] = [6, 1, 8, 255];
/// Of iPXE's own options: do not wait for a second server that says what to boot.
const IPXE_NO_PROXY: [u8; 3] = [0xb0, 1, 1];
/// PXELINUX's options (RFC 5071): their mark, its configuration, where paths begin, and after how
/// many seconds it tries again.
const PXELINUX_MARK: u8 = 208;
const PXELINUX_CONFIG: u8 = 209;
const PXELINUX_PREFIX: u8 = 210;
const PXELINUX_REBOOT: u8 = 211;
const PXELINUX_MAGIC: [u8; 4] = [0xf1, 0, 0x74, 0x7e];
const PXELINUX_REBOOT_SECONDS: u32 = 60;
/// RFC 3011: the network that a client wants an address of.
const SUBNET_SELECTION: u8 = 118;
/// Seconds that mean for ever (RFC 2131, 3.3).
const FOREVER: u32 = u32::MAX;

/// How firmware is told what to boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// All in one message.
    Whole,
    /// It asks a boot server once more: ours, on port 4011.
    BootServer,
}

impl Dialect {
    pub(crate) fn other(self) -> Dialect {
        match self {
            Dialect::Whole => Dialect::BootServer,
            Dialect::BootServer => Dialect::Whole,
        }
    }
}

/// A request on a network that we serve.
pub(crate) struct Request {
    pub(crate) message: Message,
    pub(crate) client: Client,
    pub(crate) interface: Interface,
    /// Where the reply goes out.
    pub(crate) out: InterfaceId,
}

impl Request {
    /// Whether it comes from a port of DHCP, which ordinary users cannot send from.
    pub(crate) fn is_from_dhcp(&self, from_port: u16) -> bool {
        let is_relayed = !self.message.giaddr.is_unspecified();
        from_port == CLIENT_PORT || (is_relayed && from_port == SERVER_PORT)
    }
}

impl Engine {
    /// A datagram on the server's port.
    pub(crate) fn dhcp(
        &mut self,
        turn: &mut Turn,
        id: InterfaceId,
        source: SocketAddrV4,
        packet: &[u8],
    ) {
        let Some(request) = self.accept(id, packet) else {
            return;
        };
        if request.interface.dhcp != DhcpMode::Authoritative {
            return self.proxy(turn, &request, source.port());
        }
        let mac = request.message.mac;
        if !self.is_answered(turn, &request) {
            return;
        }
        let known = self.nodes.contains_key(&mac) || self.leases.address_of(mac).is_some();
        if !known && !self.strangers.take(turn.now) {
            return;
        }
        if let Some(dropped) = self.strangers.take_dropped() {
            self.tell(turn, None, EventKind::RateLimited { dropped });
        }
        if request.client.is_firmware() {
            self.note_firmware(mac, request.client);
        }
        match request.message.message_type() {
            Some(MessageType::Discover) => self.discover(turn, &request),
            Some(MessageType::Request) => self.request(turn, &request),
            // Else any user of any machine could take a node's address away.
            Some(MessageType::Decline | MessageType::Release)
                if !request.is_from_dhcp(source.port()) =>
            {
                self.ignore(
                    turn,
                    mac,
                    "it gives an address up, but not from a DHCP client's port",
                );
            }
            Some(MessageType::Decline) => self.decline(turn, &request),
            Some(MessageType::Release) => self.release(turn, &request),
            Some(MessageType::Inform) => self.inform(turn, &request),
            None if request.message.is_bootp() => self.bootp(turn, &request),
            _ => self.ignore(turn, mac, "neither a DHCP message nor one for a server"),
        }
        // It may be a node by now.
        self.note_ipxe(turn, &request);
    }

    /// Whether a machine is answered, by what is said of those that are no nodes.
    fn is_answered(&mut self, turn: &mut Turn, request: &Request) -> bool {
        let mac = request.message.mac;
        let policy = self.unknown_policy(request.interface.dhcp);
        if policy == UnknownPolicy::Auto || self.nodes.contains_key(&mac) {
            return true;
        }
        if request.client.is_firmware() {
            self.see(turn, mac, &request.client.name(), policy);
            return false;
        }
        policy == UnknownPolicy::Approve
    }

    /// Decodes, and finds the network that the machine is on.
    pub(crate) fn accept(&self, id: InterfaceId, packet: &[u8]) -> Option<Request> {
        let message = Message::decode(packet).ok()?;
        if message.op != Op::Request || message.hops > MAX_HOPS || !message.mac.is_unicast() {
            return None;
        }
        let interface = match link(&message) {
            None => self.interface(id)?,
            Some(link) => self.config.interfaces.iter().find(|it| it.contains(link))?,
        };
        let interface = interface.clone();
        Some(Request {
            client: Client::of(&message),
            message,
            interface,
            out: id,
        })
    }

    pub(crate) fn note_firmware(&mut self, mac: Mac, client: Client) {
        // Bounded by what else is known of a machine: strangers are noted when they become nodes.
        if self.nodes.contains_key(&mac) {
            self.firmware.insert(mac, client.name());
        }
    }

    fn ignore(&self, turn: &mut Turn, mac: Mac, cause: &str) {
        if self.nodes.contains_key(&mac) {
            let cause = cause.to_owned();
            self.tell(turn, Some(mac), EventKind::DhcpIgnored { cause });
        }
    }

    /// RFC 2131, 4.3.1.
    fn discover(&mut self, turn: &mut Turn, request: &Request) {
        let mac = request.message.mac;
        if self.is_worth_telling(request) {
            let client = request.client.name();
            self.tell(turn, Some(mac), EventKind::Discover { client });
        }
        if request.client.is_firmware() {
            if self.nodes.contains_key(&mac) {
                self.begin_boot(turn, mac, request.client.asks_up_to());
                self.reach(turn, mac, Stage::Firmware, "");
            } else {
                self.boots.saw_firmware(mac, turn.now);
            }
            // It may not go on without a file to boot from, so that this is the only chance to tell.
            if let Some(Err(cause)) = self.first_file(mac, request.client) {
                self.fail(turn, mac, Stage::Firmware, cause);
            }
        }
        let wanted = request.message.address_option(option::REQUESTED_ADDRESS);
        let address = self.choose(turn, request, wanted);
        let Some(address) = address.or_else(|| self.search(turn, request)) else {
            return;
        };
        self.keep_for_offer(turn, mac, address);
        if self.is_worth_telling(request) {
            self.tell(turn, Some(mac), EventKind::Offer { address });
        }
        self.reply(turn, request, MessageType::Offer, Some(address));
    }

    /// Of others, telephones say, only what they are given is told: their chatter would drive what
    /// nodes did out of the events that are kept, and costs more than the answers.
    fn is_worth_telling(&self, request: &Request) -> bool {
        let mac = request.message.mac;
        request.client.is_firmware() || mac == Mac::PROBE || self.nodes.contains_key(&mac)
    }

    /// An address of the pool that nobody has. A full pool is searched once a second only: else
    /// a flood of strangers would cost a search for each.
    fn search(&mut self, turn: &mut Turn, request: &Request) -> Option<Ipv4Addr> {
        let (mac, network) = (request.message.mac, request.interface.network());
        let is_full = self
            .full_until
            .get(&network)
            .is_some_and(|it| turn.now < *it);
        if is_full && !self.nodes.contains_key(&mac) {
            return None;
        }
        let reserved = |address| self.is_kept_from(turn, address, mac);
        let found = self
            .leases
            .find_free(&request.interface, mac, turn.now, reserved);
        if found.is_none() {
            let (first, last) = crate::leases::pool(&request.interface);
            let size = last.saturating_sub(first) + 1;
            self.full_until.insert(network, turn.now + FULL_FOR);
            self.tell(turn, Some(mac), EventKind::PoolExhausted { network, size });
        }
        found
    }

    /// The address that belongs to a machine: fixed, else the one it has, else the one it wants.
    fn choose(&self, turn: &Turn, request: &Request, wanted: Option<Ipv4Addr>) -> Option<Ipv4Addr> {
        let mac = request.message.mac;
        let interface = &request.interface;
        if let Some(fixed) = self.nodes.get(&mac).and_then(|node| node.address)
            && interface.contains(fixed)
            && !self.leases.is_taken(fixed, mac, turn.now)
        {
            return Some(fixed);
        }
        let free = |address: &Ipv4Addr| {
            interface.is_assignable(*address)
                && !self.is_kept_from(turn, *address, mac)
                && !self.leases.is_taken(*address, mac, turn.now)
        };
        let own = self.leases.address_of(mac);
        let in_pool = |address: &Ipv4Addr| {
            let (first, last) = crate::leases::pool(interface);
            (first..=last).contains(&u32::from(*address))
        };
        own.filter(|address| free(address))
            .or_else(|| wanted.filter(|address| in_pool(address) && free(address)))
    }

    fn is_kept_from(&self, turn: &Turn, address: Ipv4Addr, mac: Mac) -> bool {
        self.is_reserved(address, mac) || self.is_kept_from_strangers(turn, address, mac)
    }

    /// A router's, fixed for another machine, or alive on NFS under another one: never given away.
    fn is_reserved(&self, address: Ipv4Addr, mac: Mac) -> bool {
        if self.is_router(address) {
            return true;
        }
        let fixed = self.nodes.fixed_at(address).any(|owner| owner != mac);
        let alive = self.nfs.get(&address).is_some_and(|client| client.alive);
        fixed || (alive && self.leases.owner(address) != Some(mac))
    }

    /// Whoever floods the network with addresses must not get those of nodes that are switched off.
    fn is_kept_from_strangers(&self, turn: &Turn, address: Ipv4Addr, mac: Mac) -> bool {
        let kept = |lease: &Lease| {
            let of_node = lease.mac.is_some_and(|mac| self.nodes.contains_key(&mac));
            let until = lease.expires.map(|it| it + NODE_KEEPS_FOR);
            of_node && lease.mac != Some(mac) && until.is_none_or(|until| turn.now < until)
        };
        !self.nodes.contains_key(&mac) && self.leases.get(address).is_some_and(kept)
    }

    /// Keeps an address that is offered from others for a while. An offer promises nothing: a
    /// restart may forget it, and the request that follows is decided anew. So it is written down
    /// only where it takes the place of something that is: else a restart would bring that back
    /// beside what has followed.
    fn keep_for_offer(&mut self, turn: &mut Turn, mac: Mac, address: Ipv4Addr) {
        let held = self.leases.lease_of(mac);
        if held.is_some_and(|lease| lease.address == address && is_live(lease, turn.now)) {
            return;
        }
        let takes_a_place = match self.leases.get(address) {
            Some(former) => former.mac != Some(mac),
            None => held.is_some(),
        };
        let lease = Lease {
            address,
            mac: Some(mac),
            expires: Some(turn.now + Duration::from_secs(OFFER_SECONDS)),
        };
        if takes_a_place {
            self.promise(turn, lease);
        } else {
            self.leases.put(lease);
        }
    }

    fn promise(&mut self, turn: &mut Turn, lease: Lease) {
        if let Some(former) = lease.mac.and_then(|mac| self.leases.address_of(mac))
            && former != lease.address
        {
            turn.persist(Record::Removed {
                key: format!("lease/{former}"),
            });
        }
        turn.persist(Record::Lease(lease.clone()));
        self.leases.put(lease);
    }

    /// RFC 2131, 4.3.2: after an offer, after a restart of the machine, renewing, rebinding.
    fn request(&mut self, turn: &mut Turn, request: &Request) {
        let message = &request.message;
        let ours = request.interface.address;
        if let Some(server) = message
            .address_option(option::SERVER_ID)
            .filter(|server| *server != ours)
        {
            let cause = format!("it took the offer of another DHCP server, {server}");
            self.ignore(turn, message.mac, &cause);
            return self.suspect(turn, server);
        }
        let wanted = match message.address_option(option::REQUESTED_ADDRESS) {
            Some(address) => address,
            None if !message.ciaddr.is_unspecified() => message.ciaddr,
            None => return self.ignore(turn, message.mac, "it asks for no address"),
        };
        // A running node whose address was changed keeps the one its root hangs on until it boots.
        if message.ciaddr == wanted && self.may_keep(turn, request, wanted) {
            return self.confirm(turn, request, wanted);
        }
        match self.choose(turn, request, Some(wanted)) {
            Some(address) if address == wanted => self.confirm(turn, request, address),
            Some(other) => self.refuse(turn, request, wanted, format!("its address is {other}")),
            None => self.refuse(turn, request, wanted, "it is not free".into()),
        }
    }

    fn may_keep(&self, turn: &Turn, request: &Request, address: Ipv4Addr) -> bool {
        let held = self.leases.lease_of(request.message.mac);
        held.is_some_and(|lease| lease.address == address && is_live(lease, turn.now))
            && request.interface.is_assignable(address)
            && !self.is_reserved(address, request.message.mac)
    }

    fn confirm(&mut self, turn: &mut Turn, request: &Request, address: Ipv4Addr) {
        let mac = request.message.mac;
        // Who only tries out what it gets does not become a node.
        let may_be_node = request.client.is_firmware() && mac != Mac::PROBE;
        let boots = may_be_node && self.ensure_node(turn, mac).is_some();
        let lease_for = self.lease_duration(mac);
        let expires = lease_for.map(|duration| turn.now + duration);
        self.promise(
            turn,
            Lease {
                address,
                mac: Some(mac),
                expires,
            },
        );
        if boots {
            self.note_firmware(mac, request.client);
            self.begin_boot(turn, mac, request.client.asks_up_to());
            self.reach(turn, mac, Stage::Address, &address.to_string());
        }
        if let Some(Err(cause)) = self.first_file(mac, request.client) {
            self.fail(turn, mac, Stage::Address, cause);
        }
        let lease_seconds = lease_for.map(|duration| duration.as_secs() as u32);
        self.tell(
            turn,
            Some(mac),
            EventKind::Ack {
                address,
                lease_seconds,
            },
        );
        self.reply(turn, request, MessageType::Ack, Some(address));
    }

    fn refuse(&mut self, turn: &mut Turn, request: &Request, address: Ipv4Addr, cause: String) {
        self.tell(
            turn,
            Some(request.message.mac),
            EventKind::Nak { address, cause },
        );
        self.reply(turn, request, MessageType::Nak, None);
    }

    /// `None` = for ever: what a node's root hangs on does not end because a renewal fails.
    fn lease_duration(&self, mac: Mac) -> Option<Duration> {
        if self.nodes.contains_key(&mac) {
            self.config.node_lease
        } else {
            Some(self.config.lease)
        }
    }

    /// RFC 2131, 4.3.3: somebody else answers on the address.
    fn decline(&mut self, turn: &mut Turn, request: &Request) {
        let mac = request.message.mac;
        let Some(address) = request.message.address_option(option::REQUESTED_ADDRESS) else {
            return;
        };
        if self.leases.owner(address) != Some(mac) {
            return;
        }
        self.tell(turn, Some(mac), EventKind::Decline { address });
        let expires = turn.now + Duration::from_secs(DECLINE_SECONDS);
        self.promise(
            turn,
            Lease {
                address,
                mac: None,
                expires: Some(expires),
            },
        );
    }

    /// RFC 2131, 4.3.4: only its owner can give an address back.
    fn release(&mut self, turn: &mut Turn, request: &Request) {
        let (mac, address) = (request.message.mac, request.message.ciaddr);
        if self.leases.owner(address) != Some(mac) {
            return;
        }
        self.leases.remove(address);
        turn.persist(Record::Removed {
            key: format!("lease/{address}"),
        });
        self.tell(turn, Some(mac), EventKind::Release { address });
    }

    /// RFC 2131, 4.3.5: it has an address of its own and wants the rest.
    fn inform(&mut self, turn: &mut Turn, request: &Request) {
        if request.interface.contains(request.message.ciaddr) {
            self.reply(turn, request, MessageType::Ack, None);
        }
    }

    /// BOOTP (RFC 951, RFC 1534): one question and one answer, and the address is for ever. So only
    /// nodes get one: nothing else would ever give it back.
    fn bootp(&mut self, turn: &mut Turn, request: &Request) {
        let mac = request.message.mac;
        if !self.nodes.contains_key(&mac) {
            return;
        }
        let ours = request.interface.address.to_string();
        if !request.message.sname.is_empty() && request.message.sname != ours.as_bytes() {
            return self.ignore(turn, mac, "BOOTP for another server, which it names");
        }
        let client = request.client.name();
        self.tell(turn, Some(mac), EventKind::Discover { client });
        let address = self.choose(turn, request, None);
        let Some(address) = address.or_else(|| self.search(turn, request)) else {
            return;
        };
        self.promise(
            turn,
            Lease {
                address,
                mac: Some(mac),
                expires: None,
            },
        );
        let lease_seconds = None;
        self.tell(
            turn,
            Some(mac),
            EventKind::Ack {
                address,
                lease_seconds,
            },
        );
        let mut reply = reply_to(&request.message);
        reply.yiaddr = address;
        self.push_network(&mut reply, request);
        self.push_boot(&mut reply, request, Dialect::Whole);
        if let Some(value) = request.message.option(option::RELAY) {
            reply.push(option::RELAY, value);
        }
        turn.out.push(Output::Dhcp {
            interface: request.out,
            destination: destination(&request.message, MessageType::Ack, Some(address)),
            packet: reply.encode(BOOTP_BYTES),
        });
    }

    fn reply(
        &self,
        turn: &mut Turn,
        request: &Request,
        kind: MessageType,
        address: Option<Ipv4Addr>,
    ) {
        let mut reply = reply_to(&request.message);
        reply.push(option::MESSAGE_TYPE, [kind.code()]);
        reply.push(option::SERVER_ID, request.interface.address.octets());
        reply.yiaddr = address.unwrap_or(Ipv4Addr::UNSPECIFIED);
        if kind != MessageType::Nak {
            if address.is_some() {
                self.push_lease(&mut reply, request.message.mac);
            }
            self.push_network(&mut reply, request);
            self.push_boot(&mut reply, request, Dialect::Whole);
        }
        for echoed in [option::CLIENT_ID, option::RELAY] {
            if let Some(value) = request.message.option(echoed) {
                reply.push(echoed, value);
            }
        }
        turn.out.push(Output::Dhcp {
            interface: request.out,
            destination: destination(&request.message, kind, address),
            packet: reply.encode(request.message.budget()),
        });
    }

    fn push_lease(&self, reply: &mut Message, mac: Mac) {
        let Some(duration) = self.lease_duration(mac) else {
            return reply.push(option::LEASE_TIME, FOREVER.to_be_bytes());
        };
        let seconds = u32::try_from(duration.as_secs()).unwrap_or(FOREVER - 1);
        reply.push(option::LEASE_TIME, seconds.to_be_bytes());
        reply.push(option::RENEWAL_TIME, (seconds / 2).to_be_bytes());
        reply.push(option::REBINDING_TIME, (seconds / 8 * 7).to_be_bytes());
    }

    fn push_network(&self, reply: &mut Message, request: &Request) {
        let interface = &request.interface;
        let node = self.nodes.get(&request.message.mac);
        let settings = self.network_settings(node, interface);
        reply.push(option::SUBNET_MASK, interface.mask().octets());
        push_addresses(reply, option::ROUTER, &settings.routers);
        push_addresses(reply, option::DNS, &settings.dns);
        if let Some(node) = node {
            reply.push(option::HOST_NAME, node.name.as_bytes());
        }
        if let Some(domain) = &settings.domain {
            reply.push(option::DOMAIN, domain.as_bytes());
        }
        push_addresses(reply, option::TIME_SERVERS, &settings.time);
        let search = encode_search(settings.search.iter().map(String::as_str));
        if !search.is_empty() {
            reply.push(option::DOMAIN_SEARCH, search);
        }
    }

    /// What firmware boots. shim reads the header's fields only, other firmware the options, so
    /// both are filled. Where there is nothing for it, nothing is said.
    pub(crate) fn push_boot(&self, reply: &mut Message, request: &Request, dialect: Dialect) {
        let server = request.interface.address;
        reply.siaddr = server;
        let mac = request.message.mac;
        let Some(Ok(first)) = self.first_file(mac, request.client) else {
            return;
        };
        let file = if request.client.fetches_over_http() {
            self.url(server, request.client, first.name())
        } else {
            first.name().to_owned()
        };
        reply.file = file.clone().into_bytes();
        if request.client == Client::Bootp {
            return;
        }
        self.push_class(reply, request, dialect);
        match request.client {
            Client::UefiHttp(_) => reply.push(option::BOOT_FILE, file),
            _ => {
                reply.push(option::TFTP_SERVER, server.to_string());
                reply.push(option::BOOT_FILE, format!("{file}\0"));
            }
        }
        if first == First::Script {
            reply.push(IPXE_OPTIONS, IPXE_NO_PROXY);
        }
        if first == First::Loader(BootFile::Pxelinux) {
            push_pxelinux(reply, mac);
        }
    }

    /// iPXE trusts authorities of its own, so that only firmware is told of HTTPS.
    fn url(&self, server: Ipv4Addr, client: Client, name: &str) -> String {
        let https = self.config.https_boot_port;
        match https.filter(|_| matches!(client, Client::UefiHttp(_))) {
            Some(443) => format!("https://{server}/{name}"),
            Some(port) => format!("https://{server}:{port}/{name}"),
            None => match self.config.http_port {
                80 => format!("http://{server}/{name}"),
                port => format!("http://{server}:{port}/{name}"),
            },
        }
    }

    /// What tells firmware that the reply is for it.
    fn push_class(&self, reply: &mut Message, request: &Request, dialect: Dialect) {
        match request.client {
            Client::UefiHttp(_) => reply.push(option::CLASS, *b"HTTPClient"),
            // With an address from us it needs no more; it would look for a boot server.
            Client::Ipxe { .. } if request.interface.dhcp == DhcpMode::Authoritative => {}
            _ => {
                reply.push(option::CLASS, *b"PXEClient");
                if dialect == Dialect::Whole {
                    reply.push(option::VENDOR, PXE_BOOT_FROM_FILE);
                }
            }
        }
    }
}

fn push_addresses(reply: &mut Message, code: u8, addresses: &[Ipv4Addr]) {
    if !addresses.is_empty() {
        let octets: Vec<u8> = addresses.iter().flat_map(Ipv4Addr::octets).collect();
        reply.push(code, octets);
    }
}

/// RFC 5071. Firmware hands the whole reply on to PXELINUX, so it need not have asked for them.
fn push_pxelinux(reply: &mut Message, mac: Mac) {
    reply.push(PXELINUX_MARK, PXELINUX_MAGIC);
    reply.push(PXELINUX_CONFIG, format!("pxelinux.cfg/{}", mac.bootif()));
    reply.push(PXELINUX_PREFIX, *b"/");
    let seconds = PXELINUX_REBOOT_SECONDS.to_be_bytes();
    reply.push(PXELINUX_REBOOT, seconds);
}

/// A reply with what must be copied from the request (RFC 2131, table 3).
pub(crate) fn reply_to(request: &Message) -> Message {
    Message {
        op: Op::Reply,
        hops: 0,
        xid: request.xid,
        secs: 0,
        broadcast: request.broadcast,
        ciaddr: request.ciaddr,
        yiaddr: Ipv4Addr::UNSPECIFIED,
        siaddr: Ipv4Addr::UNSPECIFIED,
        giaddr: request.giaddr,
        mac: request.mac,
        sname: Vec::new(),
        file: Vec::new(),
        options: Vec::new(),
    }
}

/// The network that a relay speaks for: link selection (RFC 3527, 82.5), subnet selection (RFC
/// 3011, 118), else its own address.
fn link(message: &Message) -> Option<Ipv4Addr> {
    if message.giaddr.is_unspecified() {
        return None;
    }
    let relay = message.option(option::RELAY).unwrap_or_default();
    let selected = sub_options(relay).into_iter().find(|(sub, _)| *sub == 5);
    let octets = selected.and_then(|(_, value)| <[u8; 4]>::try_from(value).ok());
    octets
        .map(Ipv4Addr::from)
        .or_else(|| message.address_option(SUBNET_SELECTION))
        .or(Some(message.giaddr))
}

/// RFC 2131, 4.1.
pub(crate) fn destination(
    request: &Message,
    kind: MessageType,
    address: Option<Ipv4Addr>,
) -> DhcpDestination {
    if !request.giaddr.is_unspecified() {
        return DhcpDestination::Relay(request.giaddr);
    }
    match address {
        _ if kind == MessageType::Nak => DhcpDestination::Broadcast,
        _ if !request.ciaddr.is_unspecified() => DhcpDestination::Unicast(request.ciaddr),
        Some(address) if !request.broadcast => DhcpDestination::Hardware {
            mac: request.mac,
            address,
        },
        _ => DhcpDestination::Broadcast,
    }
}
