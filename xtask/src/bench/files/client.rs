//! Clients as plain as firmware: TFTP with its options (RFC 2347, 2348, 7440), and HTTP/1.1.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::net::{AddressFamily, SocketType, bind, connect, socket};

/// How long an answer may take before the last datagram is sent again, and how often that is done.
const WAIT: Duration = Duration::from_secs(1);
const TRIES: usize = 20;
/// For the largest block.
const DATAGRAM_BYTES: usize = 2048;

/// How a file is asked for.
#[derive(Clone, Copy)]
pub struct Blocks {
    /// Bytes in each.
    pub bytes: usize,
    /// How many are sent for one acknowledgement.
    pub window: u16,
}

/// Fetches a file over TFTP, from an address of its own, and compares every byte.
pub fn tftp(
    server: Ipv4Addr,
    own: Ipv4Addr,
    path: &str,
    blocks: Blocks,
    expected: &[u8],
) -> anyhow::Result<()> {
    let socket = UdpSocket::bind((own, 0)).context("binding a client's port")?;
    socket.set_read_timeout(Some(WAIT))?;
    let mut buffer = [0; DATAGRAM_BYTES];
    let ask = request(path, blocks);
    let (length, from) = first_answer(&socket, server, &ask, &mut buffer)?;
    socket.connect(from)?;
    let window = granted_window(&buffer[..length], blocks)?;
    Receiver {
        socket,
        block_bytes: blocks.bytes,
        window,
        expected,
        done: 0,
    }
    .run(&mut buffer)
}

fn request(path: &str, blocks: Blocks) -> Vec<u8> {
    let mut ask = vec![0, 1];
    let (bytes, window) = (blocks.bytes.to_string(), blocks.window.to_string());
    let mut words = vec![path, "octet", "blksize", &bytes, "tsize", "0"];
    if blocks.window > 1 {
        words.extend(["windowsize", &window]);
    }
    for word in words {
        ask.extend_from_slice(word.as_bytes());
        ask.push(0);
    }
    ask
}

fn first_answer(
    socket: &UdpSocket,
    server: Ipv4Addr,
    ask: &[u8],
    buffer: &mut [u8],
) -> anyhow::Result<(usize, SocketAddr)> {
    for _ in 0..TRIES {
        socket.send_to(ask, (server, 69))?;
        if let Ok(answer) = socket.recv_from(buffer) {
            return Ok(answer);
        }
    }
    bail!("no answer to a request")
}

/// What the option acknowledgement grants; a server may know no windows.
fn granted_window(answer: &[u8], blocks: Blocks) -> anyhow::Result<u16> {
    ensure!(
        answer.starts_with(&[0, 6]),
        "expected an option acknowledgement, got {:?}",
        String::from_utf8_lossy(answer)
    );
    let words: Vec<&[u8]> = answer[2..].split(|byte| *byte == 0).collect();
    let find = |name: &str| {
        let mut pairs = words.chunks_exact(2);
        let pair = pairs.find(|pair| pair[0].eq_ignore_ascii_case(name.as_bytes()))?;
        std::str::from_utf8(pair[1]).ok()?.parse::<u16>().ok()
    };
    let bytes = find("blksize").context("no blksize is granted")?;
    ensure!(
        usize::from(bytes) == blocks.bytes,
        "blksize {bytes} is granted"
    );
    Ok(find("windowsize").unwrap_or(1))
}

struct Receiver<'a> {
    socket: UdpSocket,
    block_bytes: usize,
    window: u16,
    expected: &'a [u8],
    /// Blocks that have come.
    done: usize,
}

impl Receiver<'_> {
    fn run(mut self, buffer: &mut [u8]) -> anyhow::Result<()> {
        let blocks = self.expected.len() / self.block_bytes + 1;
        let (mut in_window, mut tries) = (0, 0);
        self.acknowledge()?;
        while self.done < blocks {
            let Ok(length) = self.socket.recv(buffer) else {
                tries += 1;
                ensure!(tries < TRIES, "the server no longer answers");
                in_window = 0;
                self.acknowledge()?;
                continue;
            };
            let next = ((self.done + 1) as u16).to_be_bytes();
            let datagram = &buffer[..length];
            // The first acknowledgement was lost, or is late.
            if datagram.starts_with(&[0, 6]) && self.done == 0 {
                self.acknowledge()?;
                continue;
            }
            ensure!(datagram.starts_with(&[0, 3]), "expected DATA");
            if datagram[2..4] != next {
                // Something was lost: ask for what follows, once in a window.
                if in_window > 0 {
                    in_window = 0;
                    self.acknowledge()?;
                }
                continue;
            }
            let start = self.done * self.block_bytes;
            let end = self.expected.len().min(start + self.block_bytes);
            ensure!(datagram[4..] == self.expected[start..end], "wrong content");
            self.done += 1;
            (in_window, tries) = (in_window + 1, 0);
            if in_window == self.window || self.done == blocks {
                in_window = 0;
                self.acknowledge()?;
            }
        }
        Ok(())
    }

    fn acknowledge(&self) -> std::io::Result<usize> {
        let [high, low] = (self.done as u16).to_be_bytes();
        self.socket.send(&[0, 4, high, low])
    }
}

/// Fetches a file over HTTP so many times on one connection, and compares every byte.
pub fn http(
    server: Ipv4Addr,
    own: Ipv4Addr,
    path: &str,
    times: usize,
    expected: &[u8],
) -> anyhow::Result<()> {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
    bind(&socket, &SocketAddr::from((own, 0)))?;
    connect(&socket, &SocketAddr::from((server, 80))).context("connecting")?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut reader = BufReader::with_capacity(256 << 10, stream.try_clone()?);
    let mut buffer = vec![0; 256 << 10];
    for _ in 0..times {
        write!(&stream, "GET /{path} HTTP/1.1\r\nHost: {server}\r\n\r\n")?;
        let length = head(&mut reader)?;
        ensure!(length == expected.len(), "{length} bytes are announced");
        let mut done = 0;
        while done < length {
            let wanted = buffer.len().min(length - done);
            let got = reader.read(&mut buffer[..wanted])?;
            ensure!(got > 0, "the connection ended after {done} bytes");
            ensure!(buffer[..got] == expected[done..done + got], "wrong content");
            done += got;
        }
    }
    Ok(())
}

/// The length that an answer announces.
fn head(reader: &mut BufReader<TcpStream>) -> anyhow::Result<usize> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    ensure!(line.starts_with("HTTP/1.1 200 "), "got {line:?}");
    let mut length = None;
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            return length.context("no Content-Length");
        };
        if name.eq_ignore_ascii_case("content-length") {
            length = Some(value.trim().parse()?);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_their_answers() {
        let blocks = Blocks {
            bytes: 1428,
            window: 4,
        };
        let ask = request("a/b", blocks);
        assert_eq!(
            ask,
            b"\0\x01a/b\0octet\0blksize\x001428\0tsize\x000\0windowsize\x004\0"
        );
        let granted = b"\0\x06blksize\x001428\0windowsize\x002\0";
        assert_eq!(granted_window(granted, blocks).unwrap(), 2);
        assert_eq!(
            granted_window(b"\0\x06BLKSIZE\x001428\0", blocks).unwrap(),
            1
        );
        assert!(granted_window(b"\0\x06blksize\x00512\0", blocks).is_err());
        assert!(granted_window(b"\0\x05\0\x01no\0", blocks).is_err());
    }
}
