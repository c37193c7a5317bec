//! Firmware of a thousand machines that is switched on within one second.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::json;

use super::super::nfs::percentile::Latencies;

const MACHINES: u32 = 1000;
const WITHIN: Duration = Duration::from_secs(1);
/// After the last question.
const PATIENCE: Duration = Duration::from_secs(3);
/// An offer (RFC 2131), as it is laid out behind the header and the cookie.
const OPTIONS_AT: usize = 240;
const MESSAGE_TYPE: u8 = 53;
const OFFER: u8 = 2;

/// Asks, and prints how many were answered and how fast.
pub fn run() -> anyhow::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:68").context("binding the client port")?;
    socket.set_broadcast(true)?;
    socket.set_read_timeout(Some(Duration::from_millis(1)))?;
    let mut asked = vec![None; MACHINES as usize];
    let mut latencies = Latencies::default();
    let begun = Instant::now();
    let mut next = 0;
    let mut buffer = [0; 2048];
    while latencies.0.len() < MACHINES as usize && begun.elapsed() < WITHIN + PATIENCE {
        while next < MACHINES && begun.elapsed() >= WITHIN * next / MACHINES {
            socket.send_to(&discover(next), "255.255.255.255:67")?;
            asked[next as usize] = Some(Instant::now());
            next += 1;
        }
        let Ok(length) = socket.recv(&mut buffer) else {
            continue;
        };
        let answered = offered(&buffer[..length]).and_then(|it| asked.get_mut(it as usize));
        if let Some(at) = answered.and_then(Option::take) {
            latencies.0.push(at.elapsed().as_nanos() as u64);
        }
    }
    let unanswered = MACHINES as usize - latencies.0.len();
    let p99_ms = latencies.percentile(0.99) as f64 / 1e6;
    println!("{}", json!({ "p99_ms": p99_ms, "unanswered": unanswered }));
    Ok(())
}

/// EDK2's DISCOVER of the `index`th machine, whose transaction has that number.
fn discover(index: u32) -> Vec<u8> {
    let mut message = vec![0; OPTIONS_AT];
    message[..4].copy_from_slice(&[1, 1, 6, 0]);
    message[4..8].copy_from_slice(&index.to_be_bytes());
    // The broadcast flag.
    message[10] = 0x80;
    message[28..30].copy_from_slice(&[0x52, 0x54]);
    message[30..34].copy_from_slice(&index.to_be_bytes());
    message[236..240].copy_from_slice(&[99, 130, 83, 99]);
    message.extend_from_slice(&[MESSAGE_TYPE, 1, 1, 57, 2, 5, 0xb8]);
    message.extend_from_slice(&[60, 32]);
    message.extend_from_slice(b"PXEClient:Arch:00007:UNDI:003001");
    message.extend_from_slice(&[93, 2, 0, 7, 94, 3, 1, 3, 0, 255]);
    message
}

/// Whom a reply offers an address.
fn offered(reply: &[u8]) -> Option<u32> {
    let is_offer = reply.get(OPTIONS_AT..OPTIONS_AT + 3)? == [MESSAGE_TYPE, 1, OFFER];
    let index = reply[4..8].try_into().ok()?;
    is_offer.then(|| u32::from_be_bytes(index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offer_is_known_by_its_first_option() {
        let mut reply = discover(258);
        assert_eq!(offered(&reply), None);
        reply[OPTIONS_AT + 2] = OFFER;
        assert_eq!(offered(&reply), Some(258));
        assert_eq!(offered(&reply[..OPTIONS_AT]), None);
    }
}
