//! Beside another DHCP server: that one gives the addresses, we tell the firmware of nodes what to
//! boot (proxyDHCP: PXE 2.1, section 2.2), and learn from both sides who has which address.
//!
//! Nothing here gives or refuses an address, and no machine that is not a node gets an answer;
//! those become nodes by asking only where that was said ([`UnknownPolicy::Auto`]).

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use wire::dhcp4::{Message, MessageType, Op, option};
use wire::mac::Mac;
use wire::stage::Stage;

use crate::config::{DhcpMode, InterfaceId, UnknownPolicy};
use crate::dhcp::{Dialect, Request, destination, reply_to};
use crate::event::EventKind;
use crate::io::{DhcpDestination, Output};
use crate::learned::Evidence;
use crate::time::Timestamp;
use crate::view::SeenView;
use crate::{Engine, Turn};

/// Firmware that asks again so soon, and fetched nothing meanwhile, did not understand the offer:
/// EDK2 asks for 60 s in all before it begins anew.
const RETRY_MS: u64 = 120_000;
/// Machines remembered that asked to boot and are no nodes.
const MAX_SEEN: usize = 1024;
/// A machine that has not asked for longer may be forgotten for another one.
const SEEN_MS: u64 = 3_600_000;
/// How long a full table of them is not searched again.
const FULL_FOR: Duration = Duration::from_secs(1);
/// How often the doctor's machine is told of: anybody can send as that.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// Other servers remembered, so that each is told of now and then only.
const MAX_ROGUES: usize = 64;
/// How often each is told of.
const ROGUE_EVERY: Duration = Duration::from_secs(60);

/// The last offer to a node's firmware.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LastOffer {
    dialect: Dialect,
    at: Timestamp,
    /// Whether a file was fetched since.
    led_on: bool,
}

/// Machines that asked to boot and are no nodes.
#[derive(Clone, Debug, Default)]
pub(crate) struct SeenMachines {
    by_mac: BTreeMap<Mac, SeenView>,
    /// Until then it is not searched again for one that may be forgotten: a flood would cost a
    /// search for each.
    full_until: Timestamp,
    /// When the doctor's machine was told of last.
    probed: Option<Timestamp>,
}

impl SeenMachines {
    /// Whether the machine is a new one.
    fn note(&mut self, mac: Mac, client: &str, now: Timestamp) -> bool {
        if mac == Mac::PROBE {
            return self.note_probe(now);
        }
        if let Some(known) = self.by_mac.get_mut(&mac) {
            known.last = now;
            return false;
        }
        if self.by_mac.len() >= MAX_SEEN && now >= self.full_until {
            self.full_until = now + FULL_FOR;
            self.by_mac
                .retain(|_, it| now.millis_since(it.last) < SEEN_MS);
        }
        if self.by_mac.len() >= MAX_SEEN {
            return false;
        }
        let seen = SeenView {
            mac,
            client: client.to_owned(),
            first: now,
            last: now,
        };
        self.by_mac.insert(mac, seen);
        true
    }

    /// The doctor's machine does not ask to become a node; it wants to know that it was heard.
    fn note_probe(&mut self, now: Timestamp) -> bool {
        let due = self.probed.is_none_or(|at| now >= at + PROBE_EVERY);
        if due {
            self.probed = Some(now);
        }
        due
    }

    pub(crate) fn remove(&mut self, mac: Mac) {
        self.by_mac.remove(&mac);
    }
}

impl Engine {
    /// Machines that asked to boot and are no nodes, where that takes somebody's word.
    pub fn seen(&self) -> Vec<SeenView> {
        self.seen.by_mac.values().cloned().collect()
    }

    /// A client's message on a network where another server gives the addresses.
    pub(crate) fn proxy(&mut self, turn: &mut Turn, request: &Request, from_port: u16) {
        // What comes from any other port may be an ordinary user's work, on a node even.
        if !request.is_from_dhcp(from_port) {
            return;
        }
        self.overhear(turn, request);
        let discovers = request.message.message_type() == Some(MessageType::Discover);
        let answers = request.interface.dhcp == DhcpMode::Proxy;
        if answers && discovers && request.client.is_firmware() {
            self.offer_boot(turn, request);
        }
        if answers {
            self.note_ipxe(turn, request);
        }
    }

    /// What a client says to the other server tells which address it has.
    fn overhear(&mut self, turn: &mut Turn, request: &Request) {
        let message = &request.message;
        let mac = message.mac;
        let wanted = message.address_option(option::REQUESTED_ADDRESS);
        match message.message_type() {
            Some(MessageType::Request) => {}
            Some(MessageType::Decline) => return self.unlearn(turn, mac),
            _ => return,
        }
        // RFC 2131, 4.3.2: with a server's name it takes an offer, with its own address it uses
        // that, and else it would like to have it again.
        let (address, by) = match wanted {
            Some(address) if message.option(option::SERVER_ID).is_some() => {
                (address, Evidence::Proof)
            }
            Some(address) => (address, Evidence::Claim),
            None => (message.ciaddr, Evidence::Proof),
        };
        self.learn(turn, mac, address, by);
        if request.client.is_firmware() && self.nodes.contains_key(&mac) {
            self.note_firmware(mac, request.client);
            self.begin_boot(turn, mac, request.client.asks_up_to());
            self.reach(turn, mac, Stage::Address, &address.to_string());
            if let Some(Err(cause)) = self.first_file(mac, request.client) {
                self.fail(turn, mac, Stage::Address, cause);
            }
        }
    }

    /// A server's message to a client, heard on the wire.
    pub(crate) fn overheard(
        &mut self,
        turn: &mut Turn,
        id: InterfaceId,
        source: Ipv4Addr,
        packet: &[u8],
    ) {
        let Ok(message) = Message::decode(packet) else {
            return;
        };
        let server = message.address_option(option::SERVER_ID).unwrap_or(source);
        let Some(mode) = self.interface(id).map(|it| it.dhcp) else {
            return;
        };
        if message.op != Op::Reply || self.is_own(server) || self.is_own(source) {
            return;
        }
        // Without an address it is a boot server's word, or an answer to INFORM.
        let gives = !message.yiaddr.is_unspecified();
        let kind = message.message_type();
        match mode {
            DhcpMode::Authoritative if gives || kind == Some(MessageType::Nak) => {
                self.suspect(turn, server);
            }
            DhcpMode::Proxy | DhcpMode::Off if gives && kind == Some(MessageType::Ack) => {
                self.learn(turn, message.mac, message.yiaddr, Evidence::Proof);
            }
            _ => {}
        }
    }

    /// There is another server where we should be the only one.
    pub(crate) fn suspect(&mut self, turn: &mut Turn, server: Ipv4Addr) {
        let now = turn.now;
        let recent = |at: &Timestamp| now < *at + ROGUE_EVERY;
        if self.is_own(server) || self.rogues.get(&server).is_some_and(recent) {
            return;
        }
        self.rogues.retain(|_, at| recent(at));
        if self.rogues.len() < MAX_ROGUES {
            self.rogues.insert(server, now);
            self.tell(turn, None, EventKind::RogueServer { server });
        }
    }

    fn offer_boot(&mut self, turn: &mut Turn, request: &Request) {
        let mac = request.message.mac;
        let client = request.client.name();
        if !self.nodes.contains_key(&mac) && !self.admit(turn, request) {
            return;
        }
        self.note_firmware(mac, request.client);
        self.tell(turn, Some(mac), EventKind::Discover { client });
        self.begin_boot(turn, mac, request.client.asks_up_to());
        self.reach(turn, mac, Stage::Firmware, "");
        if let Some(Err(cause)) = self.first_file(mac, request.client) {
            return self.fail(turn, mac, Stage::Firmware, cause);
        }
        let dialect = self.choose_dialect(turn.now, request);
        self.tell(
            turn,
            Some(mac),
            EventKind::BootOffered {
                again_on_4011: dialect == Dialect::BootServer,
            },
        );
        let packet = self.boot_reply(request, MessageType::Offer, dialect);
        turn.out.push(Output::Dhcp {
            interface: request.out,
            destination: destination(&request.message, MessageType::Offer, None),
            packet,
        });
    }

    /// Makes a node of a machine that is none, if that is to become of such.
    fn admit(&mut self, turn: &mut Turn, request: &Request) -> bool {
        let mac = request.message.mac;
        let policy = self.unknown_policy(request.interface.dhcp);
        if policy != UnknownPolicy::Auto || mac == Mac::PROBE {
            self.see(turn, mac, &request.client.name(), policy);
            return false;
        }
        self.strangers.take(turn.now) && self.ensure_node(turn, mac).is_some()
    }

    /// The dialect that led on last, the other one where the last did not.
    fn choose_dialect(&mut self, now: Timestamp, request: &Request) -> Dialect {
        let mac = request.message.mac;
        let dialect = match self.last_offers.get(&mac) {
            _ if !request.client.asks_boot_servers() => Dialect::Whole,
            None => Dialect::Whole,
            Some(last) if !last.led_on && now.millis_since(last.at) < RETRY_MS => {
                last.dialect.other()
            }
            Some(last) => last.dialect,
        };
        let last = LastOffer {
            dialect,
            at: now,
            led_on: false,
        };
        self.last_offers.insert(mac, last);
        dialect
    }

    /// A node fetches a file: it understood its offer.
    pub(crate) fn led_on(&mut self, mac: Mac) {
        if let Some(last) = self.last_offers.get_mut(&mac) {
            last.led_on = true;
        }
    }

    /// Firmware asks the boot server that an offer announced (PXE 2.1, 2.2.5), on port 4011. Nothing
    /// is learned from that, nor does a boot begin: any user of any machine can send it.
    pub(crate) fn boot_server(
        &mut self,
        turn: &mut Turn,
        id: InterfaceId,
        source: SocketAddrV4,
        packet: &[u8],
    ) {
        let Some(request) = self.accept(id, packet) else {
            return;
        };
        let message = &request.message;
        let asks = matches!(
            message.message_type(),
            Some(MessageType::Request | MessageType::Discover | MessageType::Inform)
        );
        let server = message.address_option(option::SERVER_ID);
        let is_ours = server.is_none_or(|server| self.is_own(server));
        let mac = message.mac;
        if request.interface.dhcp != DhcpMode::Proxy
            || !request.client.asks_boot_servers()
            || !(asks && is_ours && self.nodes.contains_key(&mac))
        {
            return;
        }
        self.tell(turn, Some(mac), EventKind::BootServerAsked);
        let packet = self.boot_reply(&request, MessageType::Ack, Dialect::Whole);
        turn.out.push(Output::Dhcp {
            interface: id,
            destination: DhcpDestination::Asker(source),
            packet,
        });
    }

    /// What to boot, and no address.
    fn boot_reply(&self, request: &Request, kind: MessageType, dialect: Dialect) -> Vec<u8> {
        let mut reply = reply_to(&request.message);
        reply.push(option::MESSAGE_TYPE, [kind.code()]);
        reply.push(option::SERVER_ID, request.interface.address.octets());
        self.push_boot(&mut reply, request, dialect);
        for echoed in [option::CLIENT_ID, option::MACHINE_UUID, option::RELAY] {
            if let Some(value) = request.message.option(echoed) {
                reply.push(echoed, value);
            }
        }
        reply.encode(request.message.budget())
    }

    /// A machine that is no node asks to boot. Where such are ignored only the doctor's is told of.
    pub(crate) fn see(&mut self, turn: &mut Turn, mac: Mac, client: &str, policy: UnknownPolicy) {
        if policy == UnknownPolicy::Ignore && mac != Mac::PROBE {
            return;
        }
        if self.seen.note(mac, client, turn.now) {
            let client = client.to_owned();
            self.tell(turn, Some(mac), EventKind::MachineSeen { client });
        }
    }
}
