//! DHCP as firmware of each kind speaks it, up to the offer, which is not taken.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use engine::Firmware;
use wire::dhcp4::{MAX_BUDGET_BYTES, Message, MessageType, Op, SERVER_PORT, option};
use wire::mac::Mac;

use super::{Report, given};
use crate::control::{BootServiceView, Client, ClientError, EventRecord, FirmwareView};
use crate::preflight::dhcp;

/// How long one answer is waited for.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often a question is asked.
const TRIES: u32 = 3;

/// Beside another server: how often it is asked, and how long until that is an event.
const HEARD_TRIES: u32 = 15;
const HEARD_AFTER: Duration = Duration::from_millis(400);

/// Asks on an interface as firmware of each kind.
pub fn examine(interface: &str, run_dir: &Path, service: &BootServiceView, report: &mut Report) {
    if service.dhcp == "off" {
        return report.skip("dhcp", "another server answers (--dhcp off)");
    }
    let probe = match Probe::open(interface, service.server) {
        Ok(probe) => probe,
        Err(error) => {
            let why = format!("this machine's own DHCP client has port 68: {error}");
            return report.skip("dhcp", why);
        }
    };
    for firmware in Firmware::all() {
        let check = format!("dhcp {}", firmware.name());
        let wanted = service
            .firmware
            .iter()
            .find(|it| it.name == firmware.name());
        let Some(wanted) = wanted else {
            report.skip(check, "nothing is served for it");
            continue;
        };
        if service.dhcp == "proxy" || service.unknown != "auto" {
            heard(&probe, run_dir, firmware, check, report);
        } else {
            offered(&probe, firmware, wanted, check, report);
        }
    }
}

/// The server offers an address and names the file.
fn offered(
    probe: &Probe,
    firmware: Firmware,
    wanted: &FirmwareView,
    check: String,
    report: &mut Report,
) {
    let offer = match probe.discover(firmware) {
        Ok(Some(offer)) => offer,
        Ok(None) => {
            let hint =
                "is UDP 67 open, and an address of the pool free? slate events says what was heard";
            return report.error(check, "no offer within seconds", hint);
        }
        Err(error) => return report.skip(check, error.to_string()),
    };
    let address = offer.yiaddr;
    // Else it stays promised for a minute.
    probe.release(address);
    let file = String::from_utf8_lossy(&offer.file).into_owned();
    match given(offer.siaddr) {
        Some(server) if file == wanted.file => {
            report.ok(check, format!("{address} and {file} from {server}"));
        }
        _ => {
            let found = format!("expected the file {}, got {file:?}", wanted.file);
            report.error(check, found, "restart the daemon: it is of another version");
        }
    }
}

/// Beside another server, and where only nodes boot, strangers get no answer; that it was heard is an
/// event.
fn heard(probe: &Probe, run_dir: &Path, firmware: Firmware, check: String, report: &mut Report) {
    let Ok(before) = events(run_dir, 0).map(|all| all.last().map_or(0, |it| it.id)) else {
        return report.skip(check, "the daemon's events cannot be read");
    };
    let mac = Mac::PROBE.to_string();
    let is_probe = |it: &EventRecord| it.kind == "machine-seen" && it.mac.as_ref() == Some(&mac);
    // It is told of once a second.
    for _ in 0..HEARD_TRIES {
        if let Err(error) = probe.send(firmware, MessageType::Discover) {
            return report.skip(check, error.to_string());
        }
        std::thread::sleep(HEARD_AFTER);
        if events(run_dir, before).is_ok_and(|it| it.iter().any(is_probe)) {
            return report.ok(check, "heard; nodes are told what to boot");
        }
    }
    report.error(check, "its question was not heard", "is UDP 67 open?");
}

/// What the daemon told since an event.
fn events(run_dir: &Path, since: u64) -> Result<Vec<EventRecord>, ClientError> {
    Client::connect(run_dir)?.events(since, false)?.collect()
}

/// A client that has no address and takes none.
struct Probe {
    socket: UdpSocket,
    server: Ipv4Addr,
}

impl Probe {
    fn open(interface: &str, server: Ipv4Addr) -> io::Result<Probe> {
        let socket = dhcp::client(interface)?;
        if socket.local_addr()?.port() != wire::dhcp4::CLIENT_PORT {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        Ok(Probe { socket, server })
    }

    fn send(&self, firmware: Firmware, kind: MessageType) -> io::Result<u32> {
        let mut random = [0; 4];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let xid = u32::from_ne_bytes(random);
        let message = firmware.message(Mac::PROBE, xid, kind);
        let to = SocketAddrV4::new(Ipv4Addr::BROADCAST, SERVER_PORT);
        self.socket.send_to(&message.encode(MAX_BUDGET_BYTES), to)?;
        Ok(xid)
    }

    /// The offer of this machine's server.
    fn discover(&self, firmware: Firmware) -> io::Result<Option<Message>> {
        for _ in 0..TRIES {
            let xid = self.send(firmware, MessageType::Discover)?;
            let end = Instant::now() + PATIENCE;
            while let Some(left) = end.checked_duration_since(Instant::now()) {
                self.socket
                    .set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
                let mut buffer = [0; 2048];
                let length = match self.socket.recv(&mut buffer) {
                    Ok(length) => length,
                    Err(error) if dhcp::is_timeout(&error) => continue,
                    Err(error) => return Err(error),
                };
                if let Ok(message) = Message::decode(&buffer[..length])
                    && self.is_answer(&message, xid)
                {
                    return Ok(Some(message));
                }
            }
        }
        Ok(None)
    }

    fn is_answer(&self, message: &Message, xid: u32) -> bool {
        message.op == Op::Reply
            && (message.xid, message.mac) == (xid, Mac::PROBE)
            && message.message_type() == Some(MessageType::Offer)
            && message.address_option(option::SERVER_ID) == Some(self.server)
    }

    /// Gives the offered address back (RFC 2131, 4.4.6). No answer comes.
    fn release(&self, address: Ipv4Addr) {
        let mut message = Message::request(Mac::PROBE, 0);
        message.ciaddr = address;
        message.push(option::MESSAGE_TYPE, [MessageType::Release.code()]);
        message.push(option::SERVER_ID, self.server.octets());
        let to = SocketAddrV4::new(Ipv4Addr::BROADCAST, SERVER_PORT);
        let _ = self.socket.send_to(&message.encode(MAX_BUDGET_BYTES), to);
    }
}
