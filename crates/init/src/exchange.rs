//! Fetches the node's identity from the daemon: HTTP POST /identity.

use std::time::Duration;

use rustix::rand::{GetRandomFlags, getrandom};
use wire::cmdline::SlateArgs;
use wire::identity::{Document, MAX_REPLY_BYTES, Request, open};
use wire::mac::Mac;
use wire::stage::Stage;

use crate::backoff::Backoff;
use crate::failure::{Failure, Remedy};
use crate::http;
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
    let body = request.encode(&slate.token);
    let reply = http::post(
        slate.server,
        "/identity",
        &body,
        ATTEMPT_TIMEOUT,
        MAX_REPLY_BYTES,
    );
    let (status, body) = reply.map_err(|error| away(&error))?;
    match status {
        200 => open(request, &slate.token, secret, &body).map_err(|error| {
            let cause = format!("identity from {}: {error}", slate.server);
            Failure::lasting(Stage::Mount, cause, "do daemon and initramfs fit together?")
        }),
        400..=499 => {
            let text: String = String::from_utf8_lossy(&body).chars().take(80).collect();
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
