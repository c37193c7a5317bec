//! The identity exchange: how a node receives its name and keys over a network it cannot trust.
//!
//! `/init` makes an X25519 key and sends a [`Request`], authenticated by the token from its kernel
//! command line. The reply is a [`Document`], sealed to that key with ChaCha20-Poly1305: later
//! readers of the wire see nothing. It does not stop an attacker who is first on the wire, since
//! the token itself travels in the boot configuration.
//!
//! Request: magic `SLQ1`, boot id (8), MAC (6), X25519 public key (32), HMAC-SHA256 by the token
//! (32). Reply: magic `SLA1`, the server's ephemeral X25519 public key (32), ciphertext and tag of
//! the document. The key is HKDF-SHA256 of shared secret and token, salted with both public keys;
//! it seals one message only, so the nonce is zero. The request is the associated data.
//!
//! A document is a list of `tag u16, length u32, value` (big endian); unknown tags are skipped.
//! Randomness is handed in. Decoding never panics.

use std::net::Ipv4Addr;
use std::str::FromStr;

use chacha20poly1305::aead::{Aead, KeyInit as _, Payload};
use chacha20poly1305::{ChaCha20Poly1305, Key, Nonce};
use hkdf::Hkdf;
use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use thiserror::Error;

use crate::mac::Mac;
use crate::order::ControlKey;
use crate::reader::Reader;

/// The first bytes of every request.
pub const REQUEST_MAGIC: [u8; 4] = *b"SLQ1";
/// The first bytes of every reply.
pub const REPLY_MAGIC: [u8; 4] = *b"SLA1";
/// The length of every request, in bytes.
pub const REQUEST_BYTES: usize = SIGNED_BYTES + 32;
/// The longest reply that is accepted, in bytes.
pub const MAX_REPLY_BYTES: usize = 1 << 20;

const SIGNED_BYTES: usize = 4 + 8 + 6 + 32;
const REPLY_HEAD_BYTES: usize = 4 + 32;

/// Names one boot of one node; 16 hex digits on the command line (`slate.boot=`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootId(pub [u8; 8]);

/// The secret of one boot; 32 hex digits on the command line (`slate.token=`).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(pub [u8; 16]);

/// Text that is no boot id or token.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("expected {expected} hexadecimal digits, got {got} characters")]
pub struct ParseHexError {
    /// Digits that the value has.
    pub expected: usize,
    /// Characters that the text had.
    pub got: usize,
}

/// What a node asks with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The boot that the daemon's plan named.
    pub boot: BootId,
    /// The node.
    pub mac: Mac,
    /// The node's X25519 public key for this boot.
    pub public_key: [u8; 32],
}

/// All that makes a node itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Document {
    /// The node's host name.
    pub hostname: String,
    /// `/etc/machine-id`, the same in every boot of the node.
    pub machine_id: [u8; 16],
    /// Lines for root's `authorized_keys`.
    pub authorized_keys: Vec<String>,
    /// The SSH host key, an OpenSSH private key in PEM.
    pub ssh_host_key: Option<String>,
    /// The public line that belongs to `ssh_host_key`.
    pub ssh_host_pub: Option<String>,
    /// Whether root is logged in on the console without a password.
    pub console_login: bool,
    /// The server's time in milliseconds since 1970; 0: it does not know.
    pub unix_time_ms: u64,
    /// Entropy for the kernel's random number generator.
    pub random_seed: [u8; 32],
    /// Addresses and names of all nodes, for the hosts file.
    pub hosts: Vec<(Ipv4Addr, String)>,
    /// More files for the node's own layer.
    pub files: Vec<File>,
    /// The secret of this boot's orders.
    pub control_key: Option<ControlKey>,
    /// Files of the image with capabilities, which NFS does not carry.
    pub capabilities: Vec<Capable>,
}

/// A file and its extended attribute `security.capability`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capable {
    /// Absolute path in the node's root.
    pub path: String,
    /// The attribute's value.
    pub value: Vec<u8>,
}

/// A file that a node gets in its own layer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct File {
    /// Absolute path in the node's root.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// Whose it is, `USER[:GROUP]` by the image's own names; empty: root's.
    pub owner: String,
    /// Content.
    pub content: Vec<u8>,
}

/// Why a request or reply is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IdentityError {
    /// A request of another length.
    #[error("expected a request of {REQUEST_BYTES} bytes, got {0}")]
    RequestLength(usize),
    /// A reply that is too short or too long.
    #[error("expected a reply of {min} to {MAX_REPLY_BYTES} bytes, got {0}", min = REPLY_HEAD_BYTES + 16)]
    ReplyLength(usize),
    /// Neither a request nor a reply of this version.
    #[error("expected the magic {expected:02x?}, got {got:02x?}")]
    BadMagic {
        /// The magic of this version.
        expected: [u8; 4],
        /// What was there.
        got: [u8; 4],
    },
    /// The request's tag does not fit the token.
    #[error("the request's authentication tag does not match its boot's token")]
    Forged,
    /// The other side's public key is one of X25519's weak points.
    #[error("the other side's public key is degenerate")]
    WeakKey,
    /// The reply was not sealed for this request.
    #[error("the reply was not sealed for this request")]
    NotSealedForUs,
    /// The document's fields do not add up.
    #[error("the document is malformed: expected {expected} bytes for {field}, got {got}")]
    BadField {
        /// The field's name.
        field: &'static str,
        /// Bytes that it needs.
        expected: usize,
        /// Bytes that it has.
        got: usize,
    },
    /// A text field is not UTF-8.
    #[error("the document's {0} is not UTF-8")]
    BadText(&'static str),
}

impl Request {
    /// The request of the node whose X25519 secret for this boot is `secret` (32 random bytes).
    pub fn new(boot: BootId, mac: Mac, secret: &[u8; 32]) -> Request {
        Request {
            boot,
            mac,
            public_key: public_key(secret),
        }
    }

    fn signed(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(REQUEST_BYTES);
        out.extend_from_slice(&REQUEST_MAGIC);
        out.extend_from_slice(&self.boot.0);
        out.extend_from_slice(&self.mac.0);
        out.extend_from_slice(&self.public_key);
        out
    }

    /// The request's bytes, authenticated by `token`.
    pub fn encode(&self, token: &Token) -> Vec<u8> {
        let mut out = self.signed();
        let tag = sign(token, &out).finalize().into_bytes();
        out.extend_from_slice(&tag);
        out
    }

    /// What these bytes claim: enough to look up the token, proven by nothing yet.
    pub fn peek(bytes: &[u8]) -> Result<Request, IdentityError> {
        if bytes.len() != REQUEST_BYTES {
            return Err(IdentityError::RequestLength(bytes.len()));
        }
        let mut reader = Reader::new(bytes);
        check_magic(read(&mut reader, "magic")?, REQUEST_MAGIC)?;
        Ok(Request {
            boot: BootId(read(&mut reader, "boot id")?),
            mac: Mac(read(&mut reader, "MAC")?),
            public_key: read(&mut reader, "public key")?,
        })
    }

    /// Decodes a request and checks that its sender knows `token`.
    pub fn decode(bytes: &[u8], token: &Token) -> Result<Request, IdentityError> {
        let request = Request::peek(bytes)?;
        let (signed, tag) = bytes.split_at(SIGNED_BYTES);
        let genuine = sign(token, signed).verify_slice(tag);
        genuine.map_err(|_| IdentityError::Forged)?;
        Ok(request)
    }
}

/// The X25519 public key of `secret`.
pub fn public_key(secret: &[u8; 32]) -> [u8; 32] {
    x25519_dalek::x25519(*secret, x25519_dalek::X25519_BASEPOINT_BYTES)
}

/// Seals `document` for the node that sent `request`. `server_secret`: 32 fresh random bytes for
/// every call, never used twice.
pub fn seal(
    request: &Request,
    token: &Token,
    server_secret: &[u8; 32],
    document: &Document,
) -> Result<Vec<u8>, IdentityError> {
    let server_public = public_key(server_secret);
    let cipher = cipher(
        request,
        token,
        server_secret,
        &request.public_key,
        &server_public,
    )?;
    let plain = document.encode();
    let too_long = IdentityError::ReplyLength(plain.len());
    let aad = request.signed();
    let payload = Payload {
        msg: &plain,
        aad: &aad,
    };
    let sealed = cipher
        .encrypt(&Nonce::default(), payload)
        .map_err(|_| too_long)?;
    let mut out = Vec::with_capacity(REPLY_HEAD_BYTES + sealed.len());
    out.extend_from_slice(&REPLY_MAGIC);
    out.extend_from_slice(&server_public);
    out.extend_from_slice(&sealed);
    match out.len() {
        0..=MAX_REPLY_BYTES => Ok(out),
        length => Err(IdentityError::ReplyLength(length)),
    }
}

/// Opens a reply to `request`, which was made with the X25519 secret `secret`.
pub fn open(
    request: &Request,
    token: &Token,
    secret: &[u8; 32],
    reply: &[u8],
) -> Result<Document, IdentityError> {
    if !(REPLY_HEAD_BYTES + 16..=MAX_REPLY_BYTES).contains(&reply.len()) {
        return Err(IdentityError::ReplyLength(reply.len()));
    }
    let mut reader = Reader::new(reply);
    check_magic(read(&mut reader, "magic")?, REPLY_MAGIC)?;
    let server_public = read(&mut reader, "public key")?;
    let cipher = cipher(request, token, secret, &server_public, &server_public)?;
    let aad = request.signed();
    let payload = Payload {
        msg: reader.rest(),
        aad: &aad,
    };
    let plain = cipher
        .decrypt(&Nonce::default(), payload)
        .map_err(|_| IdentityError::NotSealedForUs)?;
    Document::decode(&plain)
}

/// The cipher of one reply. `ours` and `theirs` are the two halves of the key agreement as this
/// side sees them.
fn cipher(
    request: &Request,
    token: &Token,
    ours: &[u8; 32],
    theirs: &[u8; 32],
    server_public: &[u8; 32],
) -> Result<ChaCha20Poly1305, IdentityError> {
    let shared = x25519_dalek::x25519(*ours, *theirs);
    if shared == [0; 32] {
        // RFC 7748 section 6.1: both sides refuse the all-zero result.
        return Err(IdentityError::WeakKey);
    }
    let salt = [request.public_key, *server_public].concat();
    let secret = [&shared[..], &token.0].concat();
    let mut key = Key::default();
    Hkdf::<Sha256>::new(Some(&salt), &secret)
        .expand(b"slate identity 1", &mut key)
        .expect("32 bytes are within HKDF's limit");
    Ok(ChaCha20Poly1305::new(&key))
}

fn sign(token: &Token, bytes: &[u8]) -> Hmac<Sha256> {
    let mut hmac =
        Hmac::<Sha256>::new_from_slice(&token.0).expect("HMAC takes keys of every length");
    hmac.update(bytes);
    hmac
}

fn check_magic(got: [u8; 4], expected: [u8; 4]) -> Result<(), IdentityError> {
    if got == expected {
        Ok(())
    } else {
        Err(IdentityError::BadMagic { expected, got })
    }
}

const TAG_HOSTNAME: u16 = 1;
const TAG_MACHINE_ID: u16 = 2;
const TAG_AUTHORIZED_KEY: u16 = 3;
const TAG_SSH_HOST_KEY: u16 = 4;
const TAG_SSH_HOST_PUB: u16 = 5;
const TAG_CONSOLE_LOGIN: u16 = 6;
const TAG_UNIX_TIME: u16 = 7;
const TAG_RANDOM_SEED: u16 = 8;
const TAG_FILE: u16 = 9;
const TAG_HOST: u16 = 10;
const TAG_CONTROL_KEY: u16 = 11;
const TAG_CAPABILITY: u16 = 12;

impl Document {
    /// The document's bytes, before sealing.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put(&mut out, TAG_HOSTNAME, self.hostname.as_bytes());
        put(&mut out, TAG_MACHINE_ID, &self.machine_id);
        for key in &self.authorized_keys {
            put(&mut out, TAG_AUTHORIZED_KEY, key.as_bytes());
        }
        if let Some(key) = &self.ssh_host_key {
            put(&mut out, TAG_SSH_HOST_KEY, key.as_bytes());
        }
        if let Some(key) = &self.ssh_host_pub {
            put(&mut out, TAG_SSH_HOST_PUB, key.as_bytes());
        }
        put(&mut out, TAG_CONSOLE_LOGIN, &[self.console_login.into()]);
        put(&mut out, TAG_UNIX_TIME, &self.unix_time_ms.to_be_bytes());
        put(&mut out, TAG_RANDOM_SEED, &self.random_seed);
        for (address, name) in &self.hosts {
            let value = [&address.octets(), name.as_bytes()].concat();
            put(&mut out, TAG_HOST, &value);
        }
        for file in &self.files {
            put(&mut out, TAG_FILE, &file.encode());
        }
        if let Some(key) = &self.control_key {
            put(&mut out, TAG_CONTROL_KEY, &key.0);
        }
        for capable in &self.capabilities {
            let mut value = Vec::new();
            put_short(&mut value, &capable.path);
            value.extend_from_slice(&capable.value);
            put(&mut out, TAG_CAPABILITY, &value);
        }
        out
    }

    /// Decodes what [`Document::encode`] wrote; fields that are missing stay empty.
    pub fn decode(bytes: &[u8]) -> Result<Document, IdentityError> {
        let mut document = Document::default();
        let mut reader = Reader::new(bytes);
        while !reader.is_empty() {
            let tag = u16::from_be_bytes(read(&mut reader, "tag")?);
            let length = u32::from_be_bytes(read(&mut reader, "length")?);
            document.set(tag, take(&mut reader, length as usize, "value")?)?;
        }
        Ok(document)
    }

    fn set(&mut self, tag: u16, value: &[u8]) -> Result<(), IdentityError> {
        match tag {
            TAG_HOSTNAME => self.hostname = text(value, "hostname")?,
            TAG_MACHINE_ID => self.machine_id = exact(value, "machine-id")?,
            TAG_AUTHORIZED_KEY => self.authorized_keys.push(text(value, "authorized key")?),
            TAG_SSH_HOST_KEY => self.ssh_host_key = Some(text(value, "SSH host key")?),
            TAG_SSH_HOST_PUB => self.ssh_host_pub = Some(text(value, "public SSH host key")?),
            TAG_CONSOLE_LOGIN => self.console_login = exact(value, "console login")? != [0],
            TAG_UNIX_TIME => self.unix_time_ms = u64::from_be_bytes(exact(value, "time")?),
            TAG_RANDOM_SEED => self.random_seed = exact(value, "random seed")?,
            TAG_HOST => self.hosts.push(host(value)?),
            TAG_CONTROL_KEY => self.control_key = Some(ControlKey(exact(value, "control key")?)),
            TAG_FILE => self.files.push(File::decode(value)?),
            TAG_CAPABILITY => self.capabilities.push(capable(value)?),
            _ => {}
        }
        Ok(())
    }
}

/// A host's value: `address (4), name`.
fn host(value: &[u8]) -> Result<(Ipv4Addr, String), IdentityError> {
    let mut reader = Reader::new(value);
    let address: [u8; 4] = read(&mut reader, "host address")?;
    Ok((address.into(), text(reader.rest(), "host name")?))
}

/// A capability's value: `path length u16, path, attribute`.
fn capable(value: &[u8]) -> Result<Capable, IdentityError> {
    let mut reader = Reader::new(value);
    Ok(Capable {
        path: take_short(&mut reader, "path of a file with capabilities")?,
        value: reader.rest().to_vec(),
    })
}

/// A file's value: `path length u16, path, mode u32, owner length u16, owner, content`.
impl File {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_short(&mut out, &self.path);
        out.extend_from_slice(&self.mode.to_be_bytes());
        put_short(&mut out, &self.owner);
        out.extend_from_slice(&self.content);
        out
    }

    fn decode(value: &[u8]) -> Result<File, IdentityError> {
        let mut reader = Reader::new(value);
        Ok(File {
            path: take_short(&mut reader, "path")?,
            mode: u32::from_be_bytes(read(&mut reader, "mode")?),
            owner: take_short(&mut reader, "owner")?,
            content: reader.rest().to_vec(),
        })
    }
}

/// A text with its length as u16; what is too long for that is cut.
fn put_short(out: &mut Vec<u8>, text: &str) {
    let bytes = &text.as_bytes()[..text.floor_char_boundary(usize::from(u16::MAX))];
    out.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
    out.extend_from_slice(bytes);
}

fn take_short(reader: &mut Reader<'_>, field: &'static str) -> Result<String, IdentityError> {
    let length = u16::from_be_bytes(read(reader, field)?);
    text(take(reader, length.into(), field)?, field)
}

fn put(out: &mut Vec<u8>, tag: u16, value: &[u8]) {
    out.extend_from_slice(&tag.to_be_bytes());
    out.extend_from_slice(&(value.len() as u32).to_be_bytes());
    out.extend_from_slice(value);
}

fn take<'a>(
    reader: &mut Reader<'a>,
    expected: usize,
    field: &'static str,
) -> Result<&'a [u8], IdentityError> {
    let got = reader.rest().len();
    reader.take(expected).ok_or(IdentityError::BadField {
        field,
        expected,
        got,
    })
}

fn read<const N: usize>(
    reader: &mut Reader<'_>,
    field: &'static str,
) -> Result<[u8; N], IdentityError> {
    let bytes = take(reader, N, field)?;
    exact(bytes, field)
}

fn exact<const N: usize>(value: &[u8], field: &'static str) -> Result<[u8; N], IdentityError> {
    value.try_into().map_err(|_| IdentityError::BadField {
        field,
        expected: N,
        got: value.len(),
    })
}

fn text(value: &[u8], field: &'static str) -> Result<String, IdentityError> {
    let text = str::from_utf8(value).map_err(|_| IdentityError::BadText(field))?;
    Ok(text.to_owned())
}

impl std::fmt::Display for BootId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write_hex(f, &self.0)
    }
}

impl FromStr for BootId {
    type Err = ParseHexError;

    fn from_str(text: &str) -> Result<BootId, ParseHexError> {
        parse_hex(text).map(BootId)
    }
}

/// Only the kernel command line needs a token in the clear.
impl Token {
    /// The token's 32 hexadecimal digits.
    pub fn to_hex(&self) -> String {
        crate::hex::hexadecimal(&self.0)
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(secret)")
    }
}

impl FromStr for Token {
    type Err = ParseHexError;

    fn from_str(text: &str) -> Result<Token, ParseHexError> {
        parse_hex(text).map(Token)
    }
}

fn write_hex(f: &mut std::fmt::Formatter<'_>, bytes: &[u8]) -> std::fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

fn parse_hex<const N: usize>(text: &str) -> Result<[u8; N], ParseHexError> {
    let bytes = crate::hex::from_hexadecimal(text).and_then(|it| it.try_into().ok());
    bytes.ok_or_else(|| ParseHexError {
        expected: 2 * N,
        got: text.chars().count(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: Token = Token([3; 16]);
    const SECRET: [u8; 32] = [4; 32];

    fn request() -> Request {
        Request::new(BootId([1; 8]), Mac([2, 0, 0, 0, 0, 1]), &SECRET)
    }

    fn document() -> Document {
        Document {
            hostname: "node1".into(),
            machine_id: [9; 16],
            authorized_keys: vec!["ssh-ed25519 AAAA one".into(), "ssh-ed25519 BBBB two".into()],
            ssh_host_key: Some("-----BEGIN OPENSSH PRIVATE KEY-----\n".into()),
            ssh_host_pub: None,
            console_login: true,
            unix_time_ms: 1_700_000_000_000,
            random_seed: [8; 32],
            hosts: vec![
                ([10, 77, 0, 5].into(), "node1".into()),
                ([10, 77, 0, 6].into(), "node2".into()),
            ],
            files: vec![File {
                path: "/etc/motd".into(),
                mode: 0o644,
                owner: "daemon:mail".into(),
                content: vec![0, 255],
            }],
            control_key: Some(ControlKey([6; 32])),
            capabilities: vec![Capable {
                path: "/usr/bin/ping".into(),
                value: vec![1, 0, 0, 2],
            }],
        }
    }

    #[test]
    fn exchange() {
        let bytes = request().encode(&TOKEN);
        assert_eq!(bytes.len(), REQUEST_BYTES);
        let received = Request::decode(&bytes, &TOKEN).unwrap();
        assert_eq!(received, request());
        let reply = seal(&received, &TOKEN, &[5; 32], &document()).unwrap();
        assert_eq!(open(&request(), &TOKEN, &SECRET, &reply), Ok(document()));
    }

    #[test]
    fn a_request_without_the_token_is_forged() {
        let bytes = request().encode(&TOKEN);
        let other = Request::decode(&bytes, &Token([4; 16]));
        assert_eq!(other, Err(IdentityError::Forged));
    }

    #[test]
    fn only_the_asking_node_can_open_the_reply() {
        let reply = seal(&request(), &TOKEN, &[5; 32], &document()).unwrap();
        let stranger = open(&request(), &TOKEN, &[6; 32], &reply);
        assert_eq!(stranger, Err(IdentityError::NotSealedForUs));
        let other_token = open(&request(), &Token([0; 16]), &SECRET, &reply);
        assert_eq!(other_token, Err(IdentityError::NotSealedForUs));
        for at in [4, 36, reply.len() - 1] {
            let mut broken = reply.clone();
            broken[at] ^= 1;
            assert!(open(&request(), &TOKEN, &SECRET, &broken).is_err());
        }
    }

    #[test]
    fn a_degenerate_key_is_refused() {
        let weak = Request {
            public_key: [0; 32],
            ..request()
        };
        let refused = seal(&weak, &TOKEN, &[5; 32], &document());
        assert_eq!(refused, Err(IdentityError::WeakKey));
    }

    #[test]
    fn unknown_fields_are_skipped_and_truncation_is_an_error() {
        let mut bytes = document().encode();
        put(&mut bytes, 999, b"from the future");
        assert_eq!(Document::decode(&bytes), Ok(document()));
        bytes.pop();
        assert!(Document::decode(&bytes).is_err());
        assert_eq!(Document::decode(&[]), Ok(Document::default()));
    }

    #[test]
    fn ids_and_tokens_in_hex() {
        let id: BootId = "0123456789abcdef".parse().unwrap();
        assert_eq!(id.to_string(), "0123456789abcdef");
        let token: Token = "000102030405060708090a0b0c0d0e0f".parse().unwrap();
        assert_eq!(token.to_hex().parse(), Ok(token));
        assert!("0123456789abcde".parse::<BootId>().is_err());
        assert!("0123456789abcdé".parse::<BootId>().is_err());
        assert!("+123456789abcdef".parse::<BootId>().is_err());
        assert_eq!(format!("{token:?}"), "Token(secret)");
    }
}
