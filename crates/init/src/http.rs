//! As much of an HTTP client as a node needs: POST, one exchange for each connection.

use std::io::{self, Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::time::Duration;

/// How long a server may take to let a client connect, and to take a request.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_HEAD_BYTES: usize = 8192;

/// Sends `body`; status and body of the answer, which may be at most `max_bytes` long and take
/// `patience`.
pub fn post(
    server: SocketAddrV4,
    path: &str,
    body: &[u8],
    patience: Duration,
    max_bytes: usize,
) -> io::Result<(u16, Vec<u8>)> {
    let mut stream = TcpStream::connect_timeout(&server.into(), CONNECT_TIMEOUT)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(CONNECT_TIMEOUT))?;
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: {server}\r\nContent-Type: application/octet-stream\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat())?;
    let mut reply = Vec::new();
    let limit = (max_bytes + MAX_HEAD_BYTES) as u64;
    stream.take(limit).read_to_end(&mut reply)?;
    let (status, body) = split_reply(&reply).ok_or_else(|| io::Error::other("no HTTP reply"))?;
    Ok((status, body.to_vec()))
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
