//! Neighbor Discovery (RFC 4861), as far as it ends a machine's wait for IPv6 routers: what it asks, and
//! the answer that there is none here.
//!
//! Checksums are the kernel's, which checks and fills them in on a socket for ICMPv6 (RFC 3542, 3.1); the
//! hop limit stands in the IPv6 header, and whoever has the socket looks at it.

use std::net::Ipv6Addr;

use crate::mac::Mac;
use crate::reader::Reader;

/// ICMPv6's type of a router solicitation (RFC 4861, 4.1).
pub const ROUTER_SOLICITATION: u8 = 133;
/// All routers of a link (RFC 4291, 2.7.1), whom solicitations are sent to.
pub const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
/// The hop limit of all such messages: no router has handed them on (RFC 4861, 6.1.1).
pub const HOP_LIMIT: u8 = 255;
/// Longest message taken in: a solicitation is 16 bytes, and what it may have besides is no longer.
pub const MAX_SOLICITATION_BYTES: usize = 256;

/// The advertisement of a machine that is no router, and knows nothing of prefixes, addresses or further
/// settings (RFC 4861, 4.2 and 6.2.3): type 134; no hop limit, no flags, a router lifetime of 0, no
/// reachable time and no retransmission timer, which all mean that nothing is said of it; no options.
pub const NO_ROUTER: [u8; 16] = [134, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Source link-layer address (RFC 4861, 4.6.1), whose length counts 8 bytes: of Ethernet (RFC 2464, 6).
const SOURCE_ADDRESS: u8 = 1;
const ETHERNET_UNITS: u8 = 1;
/// Type, code, checksum, and what is reserved.
const HEADER_BYTES: usize = 8;

/// A machine asks for routers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouterSolicitation {
    /// Its address on the link.
    pub source: Ipv6Addr,
    /// The Ethernet address that it says it has.
    pub mac: Mac,
}

/// Why a packet is no router solicitation that can be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SolicitationError {
    /// It is none.
    #[error("expected a router solicitation: type 133, code 0, 8 bytes or more")]
    Other,
    /// Nobody could be answered there.
    #[error("expected a link-local source address")]
    Source,
    /// Its options are not whole.
    #[error("expected whole options")]
    Options,
    /// It names none, several, or one that no machine has.
    #[error("expected one Ethernet address of a machine as the source link-layer address")]
    Mac,
}

impl RouterSolicitation {
    /// Reads an ICMPv6 message whose checksum and hop limit are right ([`HOP_LIMIT`]; RFC 4861,
    /// 6.1.1). One without the sender's Ethernet address is valid, but is of nobody, and refused.
    pub fn decode(
        source: Ipv6Addr,
        message: &[u8],
    ) -> Result<RouterSolicitation, SolicitationError> {
        if !message.starts_with(&[ROUTER_SOLICITATION, 0]) {
            return Err(SolicitationError::Other);
        }
        if !source.is_unicast_link_local() {
            return Err(SolicitationError::Source);
        }
        let options = message.get(HEADER_BYTES..);
        let mac = source_address(options.ok_or(SolicitationError::Other)?)?;
        Ok(RouterSolicitation { source, mac })
    }
}

/// The one Ethernet address among options; others than it mean nothing here (RFC 4861, 4.6).
fn source_address(options: &[u8]) -> Result<Mac, SolicitationError> {
    let mut reader = Reader::new(options);
    let mut found = None;
    while !reader.is_empty() {
        let (kind, units, value) = option(&mut reader).ok_or(SolicitationError::Options)?;
        if kind != SOURCE_ADDRESS {
            continue;
        }
        let octets = value.try_into().ok().filter(|_| units == ETHERNET_UNITS);
        let mac = octets.map(Mac).filter(|mac| mac.is_unicast());
        if found.replace(mac.ok_or(SolicitationError::Mac)?).is_some() {
            return Err(SolicitationError::Mac);
        }
    }
    found.ok_or(SolicitationError::Mac)
}

/// The next option: its type, its length in units of 8 bytes, which is never 0, and its value.
fn option<'a>(reader: &mut Reader<'a>) -> Option<(u8, u8, &'a [u8])> {
    let (kind, units) = (reader.u8()?, reader.u8()?);
    let value = (usize::from(units) * 8).checked_sub(2)?;
    Some((kind, units, reader.take(value)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x5054, 0xff, 0xfe00, 1);
    /// As iPXE sends it, with a checksum.
    const ASKS: [u8; 16] = [133, 0, 0x4a, 0x11, 0, 0, 0, 0, 1, 1, 0x52, 0x54, 0, 0, 0, 1];

    fn decode(message: &[u8]) -> Result<Mac, SolicitationError> {
        RouterSolicitation::decode(SOURCE, message).map(|it| it.mac)
    }

    /// With these options instead.
    fn with(options: &[u8]) -> Vec<u8> {
        [&ASKS[..HEADER_BYTES], options].concat()
    }

    #[test]
    fn a_solicitation_says_who_asks() {
        let mac = Mac([0x52, 0x54, 0, 0, 0, 1]);
        let asked = RouterSolicitation::decode(SOURCE, &ASKS);
        assert_eq!(
            asked,
            Ok(RouterSolicitation {
                source: SOURCE,
                mac
            })
        );
        // Options that nobody here knows, such as a nonce (RFC 3971), before and after it.
        let nonce = [14, 1, 1, 2, 3, 4, 5, 6];
        let options = [&nonce[..], &ASKS[HEADER_BYTES..], &nonce].concat();
        assert_eq!(decode(&with(&options)), Ok(mac));
    }

    #[test]
    fn only_the_link_s_own_machines_are_heard() {
        for source in ["::", "::1", "2001:db8::1", "ff02::1", "fec0::1", "fc00::1"] {
            let asked = RouterSolicitation::decode(source.parse().unwrap(), &ASKS);
            assert_eq!(asked, Err(SolicitationError::Source), "{source}");
        }
    }

    #[test]
    fn what_is_not_whole_is_refused() {
        for length in 0..HEADER_BYTES {
            assert_eq!(decode(&ASKS[..length]), Err(SolicitationError::Other));
        }
        for length in HEADER_BYTES + 1..ASKS.len() {
            assert_eq!(decode(&ASKS[..length]), Err(SolicitationError::Options));
        }
        for (at, value) in [(0, 134), (0, 135), (1, 1)] {
            let mut other = ASKS;
            other[at] = value;
            assert_eq!(decode(&other), Err(SolicitationError::Other), "{other:?}");
        }
        // Of no length, and longer than what is there.
        for units in [0, 2, 255] {
            let options = [14, units, 0, 0, 0, 0, 0, 0];
            assert_eq!(decode(&with(&options)), Err(SolicitationError::Options));
        }
    }

    #[test]
    fn who_asks_must_be_one_machine() {
        let own = &ASKS[HEADER_BYTES..];
        let group: &[u8] = &[1, 1, 0x53, 0x54, 0, 0, 0, 1];
        let nobody: &[u8] = &[1, 1, 0, 0, 0, 0, 0, 0];
        // InfiniBand's addresses have 20 bytes (RFC 4391, 9.3).
        let long: &[u8] = &[
            1, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ];
        let target: &[u8] = &[2, 1, 0x52, 0x54, 0, 0, 0, 1];
        for options in [
            &[][..],
            group,
            nobody,
            long,
            target,
            &[own, own].concat(),
            &[group, own].concat(),
        ] {
            assert_eq!(decode(&with(options)), Err(SolicitationError::Mac));
        }
    }

    #[test]
    fn the_answer_announces_nothing() {
        // RFC 4861, 4.2: type, code, checksum, hop limit, flags, lifetime, reachable, retransmission.
        let mut reader = Reader::new(&NO_ROUTER);
        assert_eq!((reader.u8(), reader.u8()), (Some(134), Some(0)));
        assert!(reader.rest().iter().all(|byte| *byte == 0));
        assert_eq!(reader.rest().len(), 2 + 1 + 1 + 2 + 4 + 4);
    }
}
