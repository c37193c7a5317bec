//! What kinds of firmware there are, and the first file of the chain of loaders that each takes.

use wire::dhcp4::{Message, option};
use wire::digest::Digest;
use wire::mac::Mac;
use wire::reader::Reader;
use wire::stage::Stage;

use crate::Engine;
use crate::config::UefiLoader;
use crate::image::BootFile;

/// What asks for an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Client {
    /// UEFI that boots over TFTP.
    Uefi(Machine),
    /// UEFI that boots over HTTP.
    UefiHttp(Machine),
    /// A legacy BIOS with PXE.
    Bios,
    /// iPXE, whatever started it: as a loader or as a network card's ROM.
    Ipxe {
        /// Whether it fetches over HTTP; over TFTP it always does.
        speaks_http: bool,
    },
    /// BOOTP, from before there was DHCP (RFC 951).
    Bootp,
    /// Firmware that nothing is served for, by its architecture (RFC 4578, 2.1).
    OtherFirmware(u16),
    /// Everything else: /init, an operating system.
    System,
}

/// The processors that loaders are served for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Machine {
    X64,
    Arm64,
}

/// The user class of iPXE (RFC 3004), as it has always sent it: without a length.
const IPXE_USER_CLASS: &[u8] = b"iPXE";
/// iPXE's own options, a list of features among them.
pub(crate) const IPXE_OPTIONS: u8 = 175;
/// Of these: whether HTTP is compiled in.
const IPXE_HTTP: u8 = 0x13;

/// The first file of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum First {
    /// A loader of the node's image.
    Loader(BootFile),
    /// The node's script: iPXE is there already.
    Script,
}

impl First {
    pub(crate) fn name(self) -> &'static str {
        match self {
            First::Loader(file) => file.name(),
            First::Script => IPXE_SCRIPT,
        }
    }
}

/// iPXE's script: newer versions look for this name by themselves, beside what they were loaded as.
pub(crate) const IPXE_SCRIPT: &str = "autoexec.ipxe";

impl Client {
    /// Option 93 (RFC 4578, 2.1, and IANA's list of processor architectures) and the classes tell.
    pub(crate) fn of(request: &Message) -> Client {
        if request.is_bootp() {
            return Client::Bootp;
        }
        let class = request.option(option::CLASS).unwrap_or_default();
        let http = class.starts_with(b"HTTPClient");
        if !http && !class.starts_with(b"PXEClient") {
            return Client::System;
        }
        if let Some(ipxe) = ipxe(request) {
            return ipxe;
        }
        match (architecture(request), http) {
            (0, false) => Client::Bios,
            (7 | 9, false) => Client::Uefi(Machine::X64),
            (11, false) => Client::Uefi(Machine::Arm64),
            (16, true) => Client::UefiHttp(Machine::X64),
            (19, true) => Client::UefiHttp(Machine::Arm64),
            (other, _) => Client::OtherFirmware(other),
        }
    }

    pub(crate) fn is_firmware(self) -> bool {
        !matches!(self, Client::System | Client::Bootp)
    }

    /// Whether it may understand the dialect of PXE that ours is not, and asks boot servers.
    pub(crate) fn asks_boot_servers(self) -> bool {
        matches!(self, Client::Uefi(_) | Client::Bios)
    }

    /// Whether it fetches its first file over HTTP.
    pub(crate) fn fetches_over_http(self) -> bool {
        matches!(
            self,
            Client::UefiHttp(_) | Client::Ipxe { speaks_http: true }
        )
    }

    /// The last stage of a boot that its asking for an address belongs to: iPXE asks again after it
    /// was loaded.
    pub(crate) fn asks_up_to(self) -> Stage {
        match self {
            Client::Ipxe { .. } => Stage::Loader,
            _ => Stage::Address,
        }
    }

    pub(crate) fn name(self) -> String {
        match self {
            Client::Uefi(Machine::X64) => "uefi-x64".into(),
            Client::Uefi(Machine::Arm64) => "uefi-arm64".into(),
            Client::UefiHttp(Machine::X64) => "uefi-x64-http".into(),
            Client::UefiHttp(Machine::Arm64) => "uefi-arm64-http".into(),
            Client::Bios => "bios".into(),
            Client::Bootp => "bootp".into(),
            Client::Ipxe { .. } => "ipxe".into(),
            Client::OtherFirmware(other) => format!("firmware of architecture {other}"),
            Client::System => "system".into(),
        }
    }
}

impl Engine {
    /// What a machine's firmware is to fetch first; the cause where there is nothing that it could
    /// boot. `None`: it is no firmware.
    pub(crate) fn first_file(&self, mac: Mac, client: Client) -> Option<Result<First, String>> {
        use BootFile::{Grub, GrubArm64, IpxeBios, IpxeUefi, Ldlinux, Pxelinux, Shim, ShimArm64};
        let chains: &[&[BootFile]] = match (client, self.loader_of(self.nodes.get(&mac))) {
            (Client::System, _) => return None,
            (Client::Ipxe { .. }, _) => return Some(Ok(First::Script)),
            (Client::OtherFirmware(architecture), _) => return Some(Err(unknown(architecture))),
            (Client::Bios | Client::Bootp, _) => &[&[IpxeBios], &[Pxelinux, Ldlinux]],
            (Client::Uefi(Machine::X64) | Client::UefiHttp(Machine::X64), UefiLoader::Shim) => {
                &[&[Shim, Grub], &[IpxeUefi]]
            }
            (Client::Uefi(Machine::X64) | Client::UefiHttp(Machine::X64), UefiLoader::Ipxe) => {
                &[&[IpxeUefi], &[Shim, Grub]]
            }
            (Client::Uefi(Machine::Arm64) | Client::UefiHttp(Machine::Arm64), _) => {
                &[&[ShimArm64, GrubArm64]]
            }
        };
        let version = match self.version_of(self.nodes.get(&mac)) {
            Ok(version) => version,
            Err(cause) => return Some(Err(cause)),
        };
        Some(self.first_whole(version, chains, client.fetches_over_http()))
    }

    /// The first file of the first chain that a version has all of; else what each lacks.
    fn first_whole(
        &self,
        version: Digest,
        chains: &[&[BootFile]],
        over_http: bool,
    ) -> Result<First, String> {
        let mut causes = Vec::new();
        for chain in chains {
            match self.lacks(version, chain, over_http) {
                None => return Ok(First::Loader(chain[0])),
                Some(cause) => causes.push(cause),
            }
        }
        Err(format!("nothing to boot it by: {}", causes.join("; and ")))
    }

    fn lacks(&self, version: Digest, chain: &[BootFile], over_http: bool) -> Option<String> {
        let no_http = self.tagged(version).map(|image| &image.no_http);
        chain.iter().find_map(|file| {
            let cause = self.has_file(version, *file).err();
            let slow = || no_http.filter(|_| over_http)?.get(file).cloned();
            cause.or_else(slow)
        })
    }
}

fn unknown(architecture: u16) -> String {
    format!(
        "its firmware boots nothing that is served: expected a BIOS (architecture 0), UEFI x86-64 (7, 9, 16) or UEFI arm64 (11, 19), got {architecture}; switch the machine to another kind of network boot"
    )
}

/// iPXE says so twice: in its user class, which a user may change, and by options of its own.
fn ipxe(request: &Message) -> Option<Client> {
    let class = request.option(option::USER_CLASS).unwrap_or_default();
    let own = request.option(IPXE_OPTIONS);
    let named = class == IPXE_USER_CLASS || class.strip_prefix(&[4]) == Some(IPXE_USER_CLASS);
    if !named && own.is_none() {
        return None;
    }
    // One that lists no features at all is taken for a whole one.
    let features = sub_options(own.unwrap_or_default());
    let speaks_http = features.is_empty()
        || features
            .iter()
            .any(|(code, value)| *code == IPXE_HTTP && *value != [0]);
    Some(Client::Ipxe { speaks_http })
}

/// Option 93; firmware without it is a legacy BIOS.
fn architecture(request: &Message) -> u16 {
    match request.option(option::ARCHITECTURE) {
        Some(&[high, low, ..]) => u16::from_be_bytes([high, low]),
        _ => 0,
    }
}

/// The sub-options of an option that consists of such, as far as they are whole.
pub(crate) fn sub_options(value: &[u8]) -> Vec<(u8, &[u8])> {
    let mut reader = Reader::new(value);
    let mut next = || {
        let (code, length) = (reader.u8()?, reader.u8()?);
        Some((code, reader.take(length.into())?))
    };
    std::iter::from_fn(&mut next).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Options by code.
    type Options<'a> = &'a [(u8, &'a [u8])];

    /// A vendor class and an architecture, and what they tell.
    type Case<'a> = (&'a [u8], Option<&'a [u8]>, Client);

    fn client(class: &[u8], architecture: Option<&[u8]>, more: Options<'_>) -> Client {
        let mut message = Message::request(Mac([2, 0, 0, 0, 0, 1]), 1);
        message.push(option::MESSAGE_TYPE, [1]);
        message.push(option::CLASS, class);
        if let Some(value) = architecture {
            message.push(option::ARCHITECTURE, value);
        }
        for (code, value) in more {
            message.push(*code, *value);
        }
        Client::of(&message)
    }

    #[test]
    fn firmware_is_known_by_its_class_and_architecture() {
        let pxe = b"PXEClient:Arch:00000:UNDI:002001";
        let http = b"HTTPClient:Arch:00016:UNDI:003001";
        let cases: [Case<'_>; 13] = [
            (pxe, None, Client::Bios),
            (pxe, Some(&[0, 0]), Client::Bios),
            (pxe, Some(&[7]), Client::Bios),
            (pxe, Some(&[0, 7]), Client::Uefi(Machine::X64)),
            (pxe, Some(&[0, 9]), Client::Uefi(Machine::X64)),
            (pxe, Some(&[0, 7, 0, 0]), Client::Uefi(Machine::X64)),
            (pxe, Some(&[0, 11]), Client::Uefi(Machine::Arm64)),
            (pxe, Some(&[0, 6]), Client::OtherFirmware(6)),
            (http, Some(&[0, 16]), Client::UefiHttp(Machine::X64)),
            (http, Some(&[0, 19]), Client::UefiHttp(Machine::Arm64)),
            (http, Some(&[0, 7]), Client::OtherFirmware(7)),
            (http, None, Client::OtherFirmware(0)),
            (b"systemd-networkd", Some(&[0, 7]), Client::System),
        ];
        for (class, architecture, expected) in cases {
            assert_eq!(
                client(class, architecture, &[]),
                expected,
                "{architecture:?}"
            );
        }
    }

    #[test]
    fn ipxe_is_known_by_its_user_class_or_its_own_options() {
        let whole: &[u8] = &[0x13, 1, 1, 0x18, 1, 1, 0xeb, 3, 1, 0, 0];
        let without_http: &[u8] = &[0x18, 1, 1];
        let cases: [(Options<'_>, Option<bool>); 7] = [
            (&[(77, b"iPXE"), (175, whole)], Some(true)),
            (&[(77, b"\x04iPXE")], Some(true)),
            (&[(77, b"other"), (175, whole)], Some(true)),
            (&[(77, b"iPXE"), (175, without_http)], Some(false)),
            (&[(175, &[0x13, 1, 0])], Some(false)),
            (&[(77, b"iPXE"), (175, &[0x13, 200, 1])], Some(true)),
            (&[(77, b"iPXEx")], None),
        ];
        for (options, speaks_http) in cases {
            let expected =
                speaks_http.map_or(Client::Bios, |speaks_http| Client::Ipxe { speaks_http });
            assert_eq!(client(b"PXEClient", None, options), expected, "{options:?}");
        }
    }
}
