//! The boot files of a version, fetched over TFTP as firmware does and over HTTP.

use std::collections::BTreeSet;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use wire::tftp::{Mode, Options, Packet, Request};

use super::Report;
use crate::preflight::dhcp::is_timeout;

/// What EDK2 asks for.
const OPTIONS: Options = Options {
    blksize: Some(1468),
    timeout: None,
    tsize: Some(0),
    windowsize: Some(4),
};
/// How long one answer is waited for.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often it is waited for.
const TRIES: u32 = 3;
/// How long a whole file may take.
const DEADLINE: Duration = Duration::from_secs(60);
/// Longest line of an HTTP answer's head, and most of them.
const HEAD_LINE_BYTES: u64 = 4096;
const HEAD_LINES: usize = 64;

/// A version, and where its files are.
pub struct Target<'a> {
    /// The server.
    pub server: Ipv4Addr,
    /// Its port for TFTP.
    pub tftp_port: u16,
    /// Its port for HTTP.
    pub http_port: u16,
    /// What the version is called.
    pub image: &'a str,
    /// The version.
    pub digest: &'a str,
    /// The names of its boot files that are looked at.
    pub files: &'a BTreeSet<String>,
}

impl Target<'_> {
    /// Fetches all of them, both ways.
    pub fn examine(&self, report: &mut Report) {
        for file in self.files {
            let path = format!("boot/{}/{file}", self.digest);
            let check = |service: &str| format!("{service} {file} of {}", self.image);
            let tftp = self.tftp(&path);
            judge(
                check("tftp"),
                &tftp,
                "is UDP 69 open, and the daemon well? slate events",
                report,
            );
            let http = self.http(&path);
            judge(
                check("http"),
                &http,
                "is the HTTP port open, and the daemon well? slate events",
                report,
            );
            if let (Ok(tftp), Ok(http)) = (tftp, http)
                && tftp != http
            {
                let found = format!("{tftp} bytes over TFTP, {http} over HTTP");
                report.error(
                    check("size"),
                    found,
                    "restart the daemon, and look at its log",
                );
            }
        }
    }

    /// The length of a file.
    fn tftp(&self, path: &str) -> io::Result<u64> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        let request = Packet::Read(Request {
            filename: path.as_bytes().to_vec(),
            mode: Mode::Octet,
            options: OPTIONS,
        });
        let server = SocketAddrV4::new(self.server, self.tftp_port);
        Transfer::new(socket, server.into(), request.encode()).receive()
    }

    fn http(&self, path: &str) -> io::Result<u64> {
        let server = SocketAddr::from((self.server, self.http_port));
        let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let request =
            format!("GET /{path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        http_length(BufReader::new(stream))
    }
}

fn judge(check: String, fetched: &io::Result<u64>, hint: &str, report: &mut Report) {
    match fetched {
        Ok(0) => report.error(
            check,
            "it is empty",
            "slate image verify, and import it again",
        ),
        Ok(length) => report.ok(check, format!("{length} bytes")),
        Err(error) => report.error(check, error.to_string(), hint),
    }
}

/// A file on its way over TFTP (RFC 1350, 2347, 7440).
struct Transfer {
    socket: UdpSocket,
    server: SocketAddr,
    /// The last packet that was sent, for when no answer comes.
    last: Vec<u8>,
    /// Who sends the file: the first who answered.
    peer: Option<SocketAddr>,
    expected: u16,
    block_bytes: usize,
    window: u16,
    in_window: u16,
    length: u64,
}

impl Transfer {
    fn new(socket: UdpSocket, server: SocketAddr, request: Vec<u8>) -> Transfer {
        Transfer {
            socket,
            server,
            last: request,
            peer: None,
            expected: 1,
            block_bytes: 512,
            window: 1,
            in_window: 0,
            length: 0,
        }
    }

    fn receive(mut self) -> io::Result<u64> {
        let end = Instant::now() + DEADLINE;
        self.socket.set_read_timeout(Some(PATIENCE))?;
        self.send()?;
        let mut tries = 0;
        loop {
            if Instant::now() > end {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "it takes more than a minute",
                ));
            }
            let mut buffer = [0; 4096];
            let (length, from) = match self.socket.recv_from(&mut buffer) {
                Ok(received) => received,
                Err(error) if is_timeout(&error) && tries + 1 < TRIES => {
                    tries += 1;
                    self.send()?;
                    continue;
                }
                Err(error) if is_timeout(&error) => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer"));
                }
                Err(error) => return Err(error),
            };
            if *self.peer.get_or_insert(from) != from {
                continue;
            }
            tries = 0;
            if let Some(length) = self.take(&buffer[..length])? {
                return Ok(length);
            }
        }
    }

    fn send(&self) -> io::Result<()> {
        let to = self.peer.unwrap_or(self.server);
        self.socket.send_to(&self.last, to).map(drop)
    }

    fn acknowledge(&mut self, block: u16) -> io::Result<()> {
        self.last = Packet::Ack { block }.encode();
        self.in_window = 0;
        self.send()
    }

    /// One packet; the file's length where it was the last.
    fn take(&mut self, packet: &[u8]) -> io::Result<Option<u64>> {
        match Packet::decode(packet).map_err(io::Error::other)? {
            Packet::OptionAck(options) => {
                self.block_bytes = options.blksize.map_or(512, usize::from);
                self.window = options.windowsize.unwrap_or(1).max(1);
                self.acknowledge(0)?;
            }
            Packet::Data { block, data } if block == self.expected => {
                self.length += data.len() as u64;
                self.expected = self.expected.wrapping_add(1);
                self.in_window += 1;
                let is_last = data.len() < self.block_bytes;
                if is_last || self.in_window >= self.window {
                    self.acknowledge(block)?;
                }
                if is_last {
                    return Ok(Some(self.length));
                }
            }
            // Lost or repeated: from the last good one on again (RFC 7440, 4).
            Packet::Data { .. } => self.acknowledge(self.expected.wrapping_sub(1))?,
            Packet::Error { message, .. } => {
                let message: String = String::from_utf8_lossy(&message)
                    .chars()
                    .take(200)
                    .collect();
                return Err(io::Error::other(message));
            }
            _ => {}
        }
        Ok(None)
    }
}

/// The length of the body of an HTTP/1.1 answer that is a success, all of which has come.
fn http_length(mut answer: impl io::BufRead) -> io::Result<u64> {
    let mut line = || -> io::Result<String> {
        let mut line = String::new();
        (&mut answer).take(HEAD_LINE_BYTES).read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    };
    let status = line()?;
    let code = status.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut length: Option<u64> = None;
    for _ in 0..HEAD_LINES {
        let header = line()?;
        let Some((name, value)) = header.split_once(':') else {
            break;
        };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().ok();
        }
    }
    if code != "200" {
        let mut text = String::new();
        answer.take(200).read_to_string(&mut text)?;
        let text = text.lines().next().unwrap_or_default().to_owned();
        return Err(io::Error::other(format!("{status}: {text}")));
    }
    let got = io::copy(&mut answer.take(u64::MAX), &mut io::sink())?;
    match length {
        Some(length) if length == got => Ok(got),
        Some(length) => Err(io::Error::other(format!(
            "expected {length} bytes, got {got}"
        ))),
        None => Err(io::Error::other("expected a Content-Length, got none")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_http_answer_has_all_that_it_promises() {
        let length = |text: &str| http_length(text.as_bytes()).map_err(|error| error.to_string());
        assert_eq!(
            length("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"),
            Ok(3)
        );
        for (text, expected) in [
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nabc",
                "expected 4 bytes, got 3",
            ),
            ("HTTP/1.1 200 OK\r\n\r\nabc", "Content-Length"),
            (
                "HTTP/1.1 404 Not Found\r\nContent-Length: 8\r\n\r\nno such\n",
                "404 Not Found: no such",
            ),
            ("", ": "),
        ] {
            let error = length(text).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    /// A server that sends `blocks`, each as often as it says, and takes what acknowledges them.
    fn serve(blocks: &'static [(u16, usize)]) -> io::Result<u64> {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = client.local_addr().unwrap();
        let sender = std::thread::spawn(move || {
            let _ = server.recv(&mut [0; 512]);
            for (block, length) in blocks {
                let data = vec![7; *length];
                let packet = Packet::Data {
                    block: *block,
                    data,
                };
                server.send_to(&packet.encode(), to).unwrap();
            }
            server
        });
        let result = Transfer::new(client, address, vec![0, 1]).receive();
        drop(sender.join().unwrap());
        result
    }

    #[test]
    fn a_file_ends_with_a_short_block_and_repeated_ones_do_not_count() {
        let blocks = &[(1, 512), (1, 512), (2, 512), (4, 512), (3, 100)];
        assert_eq!(serve(blocks).unwrap(), 1124);
        assert_eq!(serve(&[(1, 0)]).unwrap(), 0);
    }
}
