//! Fetches the node's identity from the daemon: HTTP POST /identity.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use rustix::rand::{GetRandomFlags, getrandom};
use wire::cmdline::SlateArgs;
use wire::identity::{Document, MAX_REPLY_BYTES, Request, open};
use wire::mac::Mac;
use wire::stage::Stage;

use crate::backoff::Backoff;
use crate::failure::{Failure, Remedy};
use crate::report::Reporter;

const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);

/// Asks until the daemon answers. A refusal is final. The key stays the same over all attempts, so
/// that the daemon knows a repeated request from a stranger's.
pub fn fetch(slate: &SlateArgs, mac: Mac, report: &Reporter) -> Result<Document, Failure> {
    let mut secret = [0; 32];
    getrandom(&mut secret[..], GetRandomFlags::empty()).map_err(|error| {
        Failure::lasting(
            Stage::Mount,
            format!("getrandom: {error}"),
            "the kernel gives no keys",
        )
    })?;
    let request = Request::new(slate.boot, mac, &secret);
    let mut waits = Backoff::new(
        Duration::from_millis(500),
        Duration::from_secs(30),
        u64::from(secret[0]),
    );
    loop {
        let failure = match attempt(slate, &request, &secret) {
            Ok(document) => return Ok(document),
            Err(failure) if failure.remedy == Remedy::Reboot => return Err(failure),
            Err(failure) => failure,
        };
        report.failure(Stage::Mount, &failure.to_string());
        std::thread::sleep(waits.wait());
    }
}

fn attempt(slate: &SlateArgs, request: &Request, secret: &[u8; 32]) -> Result<Document, Failure> {
    let away = |error: &dyn std::fmt::Display| {
        let cause = format!("identity from {}: {error}", slate.server);
        Failure::passing(
            Stage::Mount,
            cause,
            "is the slate daemon running and reachable?",
        )
    };
    let reply = post(slate, &request.encode(&slate.token)).map_err(|error| away(&error))?;
    let (status, body) = split_reply(&reply).ok_or_else(|| away(&"no HTTP reply"))?;
    match status {
        200 => open(request, &slate.token, secret, body).map_err(|error| {
            let cause = format!("identity from {}: {error}", slate.server);
            Failure::lasting(Stage::Mount, cause, "do daemon and initramfs fit together?")
        }),
        400..=499 => {
            let text: String = String::from_utf8_lossy(body).chars().take(80).collect();
            let cause = format!("the daemon refused the identity: {status} {text}");
            Err(Failure::lasting(
                Stage::Mount,
                cause,
                "see the daemon's events",
            ))
        }
        status => Err(away(&format!("HTTP status {status}"))),
    }
}

fn post(slate: &SlateArgs, body: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&slate.server.into(), ATTEMPT_TIMEOUT)?;
    stream.set_read_timeout(Some(ATTEMPT_TIMEOUT))?;
    stream.set_write_timeout(Some(ATTEMPT_TIMEOUT))?;
    let head = format!(
        "POST /identity HTTP/1.1\r\nHost: {}\r\nContent-Type: application/octet-stream\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        slate.server,
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat())?;
    let mut reply = Vec::new();
    let limit = MAX_REPLY_BYTES as u64 + 8192;
    stream.take(limit).read_to_end(&mut reply)?;
    Ok(reply)
}

/// Status and body of an HTTP/1 reply with a Content-Length; nothing where it was cut short.
fn split_reply(reply: &[u8]) -> Option<(u16, &[u8])> {
    let end = reply.windows(4).position(|it| it == b"\r\n\r\n")?;
    let head = str::from_utf8(&reply[..end]).ok()?;
    let body = &reply[end + 4..];
    let mut lines = head.split("\r\n");
    let status = lines.next()?.strip_prefix("HTTP/1.")?.split(' ').nth(1)?;
    let mut fields = lines.filter_map(|line| line.split_once(':'));
    let length = fields.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length = length?.1.trim().parse().ok()?;
    Some((status.parse().ok()?, body.get(..length)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_split() {
        let reply = b"HTTP/1.1 200 OK\r\nX: y\r\ncontent-length: 3\r\n\r\nabcd";
        assert_eq!(split_reply(reply), Some((200, &b"abc"[..])));
        for length in 0..reply.len() - 1 {
            assert_eq!(split_reply(&reply[..length]), None);
        }
        assert_eq!(split_reply(b"SSH-2.0-x\r\n\r\n"), None);
    }
}
