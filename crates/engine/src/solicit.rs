//! Ends iPXE's wait for IPv6 routers: it configures IPv4 and IPv6 at once, and where no router answers
//! its solicitations it fetches nothing for a quarter of a minute. So a node whose firmware is iPXE just
//! now is told that there is none, and nobody else is told anything.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::time::Duration;

use wire::mac::Mac;
use wire::stage::Stage;

use crate::boots::reached;
use crate::config::InterfaceId;
use crate::dhcp::Request;
use crate::event::EventKind;
use crate::firmware::Client;
use crate::io::Output;
use crate::time::Timestamp;
use crate::{Engine, Turn};

/// How long after a message to DHCP servers iPXE may still wait: it gives up after 16 s by its own clock,
/// which runs slow in an emulated machine.
const WAITS_FOR: Duration = Duration::from_secs(60);
/// Answers to a machine between two of its messages to DHCP servers: iPXE solicits six times.
const MAX_ANSWERS: u8 = 6;

/// The nodes whose firmware is iPXE, as far as is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Soliciting {
    by_mac: BTreeMap<Mac, Ipxe>,
}

/// An iPXE that configures its network card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ipxe {
    /// Where it asked DHCP servers.
    interface: InterfaceId,
    /// When it did last.
    asked: Timestamp,
    /// How often it was told since.
    answers: u8,
}

impl Soliciting {
    pub(crate) fn remove(&mut self, mac: Mac) {
        self.by_mac.remove(&mac);
    }
}

impl Engine {
    /// A node's message to DHCP servers tells whether its firmware is iPXE now.
    pub(crate) fn note_ipxe(&mut self, turn: &Turn, request: &Request) {
        let mac = request.message.mac;
        // Behind a relay it is on another link.
        let is_here = request.message.giaddr.is_unspecified() && self.nodes.contains_key(&mac);
        if !is_here || !matches!(request.client, Client::Ipxe { .. }) {
            return self.soliciting.remove(mac);
        }
        let ipxe = Ipxe {
            interface: request.out,
            asked: turn.now,
            answers: 0,
        };
        self.soliciting.by_mac.insert(mac, ipxe);
    }

    /// A machine asks for IPv6 routers.
    pub(crate) fn solicited(
        &mut self,
        turn: &mut Turn,
        interface: InterfaceId,
        source: Ipv6Addr,
        mac: Mac,
    ) {
        // What runs once the kernel was fetched may have IPv6 of its own.
        let boot = self.boots.current(mac);
        if boot.and_then(reached) >= Some(Stage::Kernel) {
            return;
        }
        let Some(ipxe) = self.soliciting.by_mac.get_mut(&mac) else {
            return;
        };
        let waits = turn.now < ipxe.asked + WAITS_FOR && ipxe.answers < MAX_ANSWERS;
        if !waits || ipxe.interface != interface {
            return;
        }
        ipxe.answers += 1;
        if ipxe.answers == 1 {
            self.tell(turn, Some(mac), EventKind::RoutersDenied);
        }
        turn.out.push(Output::NoRouter {
            interface,
            destination: source,
        });
    }
}
