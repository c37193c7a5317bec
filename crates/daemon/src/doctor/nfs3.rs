//! A file of a version, read over NFS 3 (RFC 1813): mount, list, read. Nodes use version 4.2 on the
//! same port; version 3 needs no session, so nothing stays behind.
//!
//! Panic contract: replies are read by a bounded reader; none makes this panic.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use wire::reader::Reader;

use super::Report;

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest reply that is taken.
const REPLY_BYTES: usize = 1 << 20;
/// Directories looked into for a file.
const DIRECTORIES_MAX: usize = 64;
/// Bytes of names asked for at a time.
const NAMES_BYTES: u32 = 8192;
/// How much of the file is read.
const READ_BYTES: u32 = 4096;
/// Longest file handle (RFC 1813, 2.4).
const HANDLE_BYTES: usize = 64;

const MOUNT: (u32, u32) = (100_005, 3);
const NFS: (u32, u32) = (100_003, 3);
const PROC_MNT: u32 = 1;
const PROC_READ: u32 = 6;
const PROC_READDIRPLUS: u32 = 17;
const REGULAR: u32 = 1;
const DIRECTORY: u32 = 2;

/// Reads a file of a version.
pub fn examine(server: Ipv4Addr, port: u16, name: &str, digest: &str, report: &mut Report) {
    let check = format!("nfs {name}");
    let hint = "is the NFS port open, and the daemon well? slate events; slate image verify";
    match read_some((server, port).into(), &format!("/images/{digest}")) {
        Ok((file, length)) => report.ok(check, format!("read {length} bytes of {file}")),
        Err(error) => report.error(check, error.to_string(), hint),
    }
}

/// Reads the first file that is found in an export; its name, and how many bytes came.
fn read_some(server: SocketAddr, export: &str) -> io::Result<(String, usize)> {
    let mut client = Client::connect(server)?;
    let root = client.mount(export)?;
    let mut open = vec![(String::new(), root)];
    for _ in 0..DIRECTORIES_MAX {
        let Some((path, directory)) = open.pop() else {
            break;
        };
        for entry in client.list(&directory)? {
            let path = format!("{path}/{}", entry.name);
            match entry.kind {
                REGULAR if entry.size > 0 => {
                    let length = client.read(&entry.handle)?;
                    let wanted = entry.size.min(READ_BYTES.into());
                    if length as u64 != wanted {
                        return Err(wrong(&format!(
                            "expected {wanted} bytes of {path}, got {length}"
                        )));
                    }
                    return Ok((path, length));
                }
                DIRECTORY if !matches!(entry.name.as_str(), "." | "..") => {
                    open.push((path, entry.handle));
                }
                _ => {}
            }
        }
    }
    Err(wrong("no file was found in it"))
}

fn wrong(cause: &str) -> io::Error {
    io::Error::other(cause.to_owned())
}

/// A name in a directory, and what is behind it.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    name: String,
    kind: u32,
    size: u64,
    handle: Vec<u8>,
}

struct Client {
    stream: TcpStream,
    xid: u32,
}

impl Client {
    fn connect(server: SocketAddr) -> io::Result<Client> {
        let stream = TcpStream::connect_timeout(&server, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Client { stream, xid: 1 })
    }

    /// The handle of an export's root.
    fn mount(&mut self, export: &str) -> io::Result<Vec<u8>> {
        let mut arguments = Vec::new();
        put_opaque(export.as_bytes(), &mut arguments);
        let reply = self.call(MOUNT, PROC_MNT, &arguments)?;
        let mut reader = Reader::new(&reply);
        succeeded(&mut reader, "mounting it")?;
        opaque(&mut reader, HANDLE_BYTES)
            .map(<[u8]>::to_vec)
            .ok_or_else(short)
    }

    /// The first names of a directory.
    fn list(&mut self, directory: &[u8]) -> io::Result<Vec<Entry>> {
        let mut arguments = Vec::new();
        put_opaque(directory, &mut arguments);
        // From the start: cookie and verifier are zero.
        arguments.extend([0; 16]);
        arguments.extend(NAMES_BYTES.to_be_bytes());
        arguments.extend((NAMES_BYTES * 4).to_be_bytes());
        let reply = self.call(NFS, PROC_READDIRPLUS, &arguments)?;
        let mut reader = Reader::new(&reply);
        succeeded(&mut reader, "listing a directory")?;
        entries(&mut reader).ok_or_else(short)
    }

    /// How many bytes the start of a file has.
    fn read(&mut self, file: &[u8]) -> io::Result<usize> {
        let mut arguments = Vec::new();
        put_opaque(file, &mut arguments);
        arguments.extend(0_u64.to_be_bytes());
        arguments.extend(READ_BYTES.to_be_bytes());
        let reply = self.call(NFS, PROC_READ, &arguments)?;
        let mut reader = Reader::new(&reply);
        succeeded(&mut reader, "reading a file")?;
        content(&mut reader).map(<[u8]>::len).ok_or_else(short)
    }

    /// A call (RFC 5531, 9), as root: the results.
    fn call(
        &mut self,
        program: (u32, u32),
        procedure: u32,
        arguments: &[u8],
    ) -> io::Result<Vec<u8>> {
        self.xid += 1;
        let (number, version) = program;
        // Call, RPC version 2; then the credentials: AUTH_SYS of nobody in particular.
        let head = [self.xid, 0, 2, number, version, procedure];
        let credentials = [1, 20, 0, 0, 0, 0, 0, 0, 0];
        let words = head.into_iter().chain(credentials);
        let mut message: Vec<u8> = words.flat_map(u32::to_be_bytes).collect();
        message.extend(arguments);
        let mark = 1 << 31 | message.len() as u32;
        self.stream
            .write_all(&[&mark.to_be_bytes(), &message[..]].concat())?;
        let reply = self.reply()?;
        let mut reader = Reader::new(&reply);
        results(&mut reader, self.xid).ok_or_else(|| wrong("the server refused the call"))?;
        Ok(reader.rest().to_vec())
    }

    /// A record, which may come in fragments (RFC 5531, 11).
    fn reply(&mut self) -> io::Result<Vec<u8>> {
        let mut reply = Vec::new();
        loop {
            let mut mark = [0; 4];
            self.stream.read_exact(&mut mark)?;
            let mark = u32::from_be_bytes(mark);
            let length = (mark & !(1 << 31)) as usize;
            if reply.len() + length > REPLY_BYTES {
                return Err(wrong("its reply is too long"));
            }
            let start = reply.len();
            reply.resize(start + length, 0);
            self.stream.read_exact(&mut reply[start..])?;
            if mark >> 31 == 1 {
                return Ok(reply);
            }
        }
    }
}

fn short() -> io::Error {
    wrong("its reply ends early")
}

/// Skips the head of a reply that is accepted and a success.
fn results(reader: &mut Reader<'_>, xid: u32) -> Option<()> {
    let head = (reader.u32()?, reader.u32()?, reader.u32()?);
    let _flavor = reader.u32()?;
    opaque(reader, 400)?;
    let is_success = reader.u32()? == 0;
    (head == (xid, 1, 0) && is_success).then_some(())
}

fn succeeded(reader: &mut Reader<'_>, doing: &str) -> io::Result<()> {
    match reader.u32().ok_or_else(short)? {
        0 => Ok(()),
        status => Err(wrong(&format!("{doing}: NFS status {status}"))),
    }
}

/// What READDIRPLUS lists (RFC 1813, 3.3.17), without names that have neither kind nor handle.
fn entries(reader: &mut Reader<'_>) -> Option<Vec<Entry>> {
    attributes(reader)?;
    reader.take(8)?;
    let mut entries = Vec::new();
    while reader.u32()? == 1 {
        reader.u64()?;
        let name = String::from_utf8_lossy(opaque(reader, 255)?).into_owned();
        reader.u64()?;
        let attributes = attributes(reader)?;
        let handle = match reader.u32()? {
            0 => None,
            _ => Some(opaque(reader, HANDLE_BYTES)?.to_vec()),
        };
        if let (Some((kind, size)), Some(handle)) = (attributes, handle) {
            entries.push(Entry {
                name,
                kind,
                size,
                handle,
            });
        }
    }
    Some(entries)
}

/// What READ brings (RFC 1813, 3.3.6).
fn content<'a>(reader: &mut Reader<'a>) -> Option<&'a [u8]> {
    attributes(reader)?;
    let (_count, _is_end) = (reader.u32()?, reader.u32()?);
    opaque(reader, REPLY_BYTES)
}

/// Kind and size, where attributes come along (RFC 1813, 2.6).
fn attributes(reader: &mut Reader<'_>) -> Option<Option<(u32, u64)>> {
    const BYTES: usize = 84;
    if reader.u32()? == 0 {
        return Some(None);
    }
    let mut all = reader.sub(BYTES)?;
    let kind = all.u32()?;
    all.take(16)?;
    Some(Some((kind, all.u64()?)))
}

/// Bytes with their length before them and padding behind (RFC 4506, 4.10).
fn opaque<'a>(reader: &mut Reader<'a>, most: usize) -> Option<&'a [u8]> {
    let length = reader.u32()? as usize;
    if length > most {
        return None;
    }
    let bytes = reader.take(length)?;
    reader.take(length.next_multiple_of(4) - length)?;
    Some(bytes)
}

fn put_opaque(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend((bytes.len() as u32).to_be_bytes());
    out.extend(bytes);
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes_of(kind: u32, size: u64) -> Vec<u8> {
        let mut out = vec![0, 0, 0, 1];
        out.extend(kind.to_be_bytes());
        out.extend([0; 16]);
        out.extend(size.to_be_bytes());
        out.resize(4 + 84, 0);
        out
    }

    fn listing() -> Vec<u8> {
        let mut out = attributes_of(DIRECTORY, 100);
        out.extend([9; 8]);
        for (name, kind) in [("a", REGULAR), ("bin", DIRECTORY)] {
            out.extend([0, 0, 0, 1]);
            out.extend([0; 8]);
            put_opaque(name.as_bytes(), &mut out);
            out.extend([0; 8]);
            out.extend(attributes_of(kind, 7));
            out.extend([0, 0, 0, 1]);
            put_opaque(b"handle", &mut out);
        }
        out.extend([0; 8]);
        out
    }

    #[test]
    fn a_listing_has_names_kinds_and_handles() {
        let found = entries(&mut Reader::new(&listing())).unwrap();
        let entry = |name: &str, kind| Entry {
            name: name.into(),
            kind,
            size: 7,
            handle: b"handle".to_vec(),
        };
        assert_eq!(found, [entry("a", REGULAR), entry("bin", DIRECTORY)]);
    }

    #[test]
    fn a_reply_that_ends_early_is_none_and_nothing_panics() {
        let listing = listing();
        for length in 0..listing.len() - 4 {
            assert_eq!(
                entries(&mut Reader::new(&listing[..length])),
                None,
                "{length}"
            );
        }
        // Every byte in turn is as large as can be.
        for at in 0..listing.len() {
            let mut bytes = listing.clone();
            bytes[at] = 255;
            let _ = entries(&mut Reader::new(&bytes));
            let _ = content(&mut Reader::new(&bytes));
            let _ = results(&mut Reader::new(&bytes), 1);
        }
    }

    #[test]
    fn a_call_that_is_refused_has_no_results() {
        let reply =
            |words: &[u32]| -> Vec<u8> { words.iter().flat_map(|it| it.to_be_bytes()).collect() };
        let accepted = |bytes: &[u8]| results(&mut Reader::new(bytes), 5).is_some();
        assert!(accepted(&reply(&[5, 1, 0, 0, 0, 0])));
        for words in [
            [6, 1, 0, 0, 0, 0],
            [5, 1, 1, 0, 0, 0],
            [5, 1, 0, 0, 0, 2],
            [5, 0, 0, 0, 0, 0],
        ] {
            assert!(!accepted(&reply(&words)), "{words:?}");
        }
    }
}
