//! `agent send COMMAND`, for orders: uploads what a command writes to its standard output, in sealed
//! pieces, and fails where that cannot be. `agent opaque`: which directories of an upper layer hide
//! what is below them.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::rand::{GetRandomFlags, getrandom};
use wire::cmdline::{BootArgs, SlateArgs};
use wire::order::{ControlKey, NONCE_BYTES};
use wire::upload::{Claim, MAX_PIECE_BYTES, Piece};

use crate::backoff::Backoff;
use crate::boot::random;
use crate::http;
use crate::orders::{KEY_PATH, ORDER};

/// How long a server that is away is waited for, for each piece.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long it may take for one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(90);
/// Most bytes of an answer: a line of text.
const MAX_ANSWER_BYTES: usize = 4096;

/// Runs the command and uploads what it writes; exits as it does.
pub fn main() -> ! {
    let command = std::env::args_os().nth(2).unwrap_or_default();
    let status = match send(&command) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("sending to the server: {error}");
            1
        }
    };
    std::process::exit(status)
}

/// Reads paths of directories, each ended by a NUL, and writes those back that are opaque.
pub fn list_opaque() {
    let mut list = Vec::new();
    let read = io::stdin().read_to_end(&mut list);
    let mut found = Vec::new();
    for path in list.split(|it| *it == 0).filter(|it| !it.is_empty()) {
        let mut value = [0];
        let path = OsStr::from_bytes(path);
        let marked = rustix::fs::lgetxattr(path, c"trusted.overlay.opaque", &mut value[..]);
        if marked == Ok(1) && value == *b"y" {
            found.extend_from_slice(path.as_bytes());
            found.push(0);
        }
    }
    if let Err(error) = read.and_then(|_| io::stdout().write_all(&found)) {
        eprintln!("looking for opaque directories: {error}");
        std::process::exit(1);
    }
}

fn send(command: &OsStr) -> io::Result<i32> {
    let upload = Upload::of_this_order()?;
    let mut child = Command::new("/bin/sh")
        .arg("-c")
        .arg(command)
        .stdout(Stdio::piped())
        .spawn()?;
    let sent = upload.all(&mut child);
    // A command that nobody reads from any more ends by that.
    drop(child.stdout.take());
    let status = child.wait()?.code().unwrap_or(1);
    sent.map(|()| status)
}

struct Upload {
    slate: SlateArgs,
    key: ControlKey,
    order: u64,
}

impl Upload {
    fn of_this_order() -> io::Result<Upload> {
        let missing = |what: &str| io::Error::other(format!("there is no {what}"));
        let line = fs::read_to_string("/proc/cmdline")?;
        let (args, _) = BootArgs::parse(line.trim_end());
        let key = fs::read(KEY_PATH)?;
        let key = key.try_into().map_err(|_| missing("key"))?;
        let order = std::env::var(ORDER).ok().and_then(|it| it.parse().ok());
        Ok(Upload {
            slate: args.slate.ok_or_else(|| missing("server"))?,
            key: ControlKey(key),
            order: order.ok_or_else(|| missing("order"))?,
        })
    }

    /// Sends what a command writes. The last piece is sent only if the command ends well: nothing
    /// else makes an upload whole.
    fn all(&self, child: &mut Child) -> io::Result<()> {
        let mut offset = 0;
        loop {
            let mut bytes = Vec::with_capacity(MAX_PIECE_BYTES);
            if let Some(output) = &mut child.stdout {
                let mut piece = output.take(MAX_PIECE_BYTES as u64);
                piece.read_to_end(&mut bytes)?;
            }
            let is_last = bytes.len() < MAX_PIECE_BYTES;
            if is_last && !child.wait()?.success() {
                return Ok(());
            }
            let piece = Piece {
                offset,
                is_last,
                bytes,
            };
            self.piece(&piece)?;
            if is_last {
                return Ok(());
            }
            offset += piece.bytes.len() as u64;
        }
    }

    /// Sends one piece, again and again while the server is away.
    fn piece(&self, piece: &Piece) -> io::Result<()> {
        let claim = Claim {
            boot: self.slate.boot,
            order: self.order,
        };
        let mut waits = Backoff::new(
            Duration::from_millis(200),
            Duration::from_secs(10),
            random(),
        );
        let end = Instant::now() + PATIENCE;
        loop {
            let mut nonce = [0; NONCE_BYTES];
            getrandom(&mut nonce[..], GetRandomFlags::empty())?;
            let body = piece.seal(claim, &self.key, nonce);
            let server = self.slate.server;
            let answer = http::post(server, "/upload", &body, ANSWER_TIMEOUT, MAX_ANSWER_BYTES);
            let error = match answer {
                Ok((200, _)) => return Ok(()),
                Ok((503, text)) => io::Error::other(shown(&text)),
                Ok((_, text)) => return Err(io::Error::other(shown(&text))),
                Err(error) => error,
            };
            if Instant::now() >= end {
                return Err(error);
            }
            thread::sleep(waits.wait());
        }
    }
}

fn shown(text: &[u8]) -> String {
    String::from_utf8_lossy(text).trim_end().to_owned()
}
