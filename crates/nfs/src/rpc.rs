//! ONC RPC version 2 over a stream (RFC 5531): record marks, call headers, reply headers.
//!
//! Nothing here panics, whatever the input.

use crate::xdr::{Malformed, Reader, Writer, length};

/// Program number of NFS (RFC 1813, section 2.1; RFC 8881, section 3.2).
pub(crate) const NFS: u32 = 100_003;
/// Program number of MOUNT (RFC 1813, section 5.1).
pub(crate) const MOUNT: u32 = 100_005;
/// Longest record that is taken. Requests of a read-only server are short.
pub(crate) const MAX_RECORD: usize = 128 << 10;
const LAST_FRAGMENT: u32 = 1 << 31;

/// Who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Credential {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    gids: [u32; 16],
    gid_count: usize,
}

impl Credential {
    const NOBODY: Credential = Credential {
        uid: 65534,
        gid: 65534,
        gids: [0; 16],
        gid_count: 0,
    };

    pub(crate) fn in_group(&self, gid: u32) -> bool {
        self.gid == gid
            || self
                .gids
                .iter()
                .take(self.gid_count)
                .any(|other| *other == gid)
    }
}

/// The header of a call; its arguments follow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) xid: u32,
    pub(crate) program: u32,
    pub(crate) version: u32,
    pub(crate) procedure: u32,
    /// `None` for a flavour other than AUTH_NONE and AUTH_SYS.
    pub(crate) credential: Option<Credential>,
}

/// What a record is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Message {
    Call(Call),
    /// A call of another version of RPC.
    WrongVersion {
        xid: u32,
    },
    /// A reply, such as to a call on a backchannel.
    Reply,
}

/// Reads the header of a record (RFC 5531, section 9).
pub(crate) fn message(reader: &mut Reader<'_>) -> Result<Message, Malformed> {
    let xid = reader.u32()?;
    match reader.u32()? {
        0 => {}
        1 => return Ok(Message::Reply),
        _ => return Err(Malformed),
    }
    if reader.u32()? != 2 {
        return Ok(Message::WrongVersion { xid });
    }
    let (program, version, procedure) = (reader.u32()?, reader.u32()?, reader.u32()?);
    let flavor = reader.u32()?;
    let body = reader.opaque(400)?;
    let _verifier = (reader.u32()?, reader.opaque(400)?);
    let credential = match flavor {
        0 => Some(Credential::NOBODY),
        1 => Some(auth_sys(&mut Reader::new(body))?),
        _ => None,
    };
    Ok(Message::Call(Call {
        xid,
        program,
        version,
        procedure,
        credential,
    }))
}

/// The body of an AUTH_SYS credential (RFC 5531, appendix A).
pub(crate) fn auth_sys(reader: &mut Reader<'_>) -> Result<Credential, Malformed> {
    let _stamp = reader.u32()?;
    let _machine = reader.opaque(255)?;
    let (uid, gid) = (reader.u32()?, reader.u32()?);
    let mut credential = Credential {
        uid,
        gid,
        gids: [0; 16],
        gid_count: reader.count(16)?,
    };
    for slot in credential.gids.iter_mut().take(credential.gid_count) {
        *slot = reader.u32()?;
    }
    Ok(credential)
}

/// How a call ends that its program does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    ProgramUnavailable,
    /// With the lowest and highest version that are served.
    ProgramMismatch(u32, u32),
    ProcedureUnavailable,
    GarbageArguments,
    RpcMismatch,
    AuthTooWeak,
}

/// Begins a reply that the program answers: its results follow.
pub(crate) fn accept(xid: u32, reply: &mut Writer) {
    // REPLY, MSG_ACCEPTED, an empty AUTH_NONE verifier, SUCCESS.
    for word in [xid, 1, 0, 0, 0, 0] {
        reply.u32(word);
    }
}

/// A whole reply that refuses the call.
pub(crate) fn refuse(xid: u32, refusal: Refusal, reply: &mut Writer) {
    let words: &[u32] = match refusal {
        Refusal::ProgramUnavailable => &[0, 0, 0, 1],
        Refusal::ProgramMismatch(low, high) => &[0, 0, 0, 2, low, high],
        Refusal::ProcedureUnavailable => &[0, 0, 0, 3],
        Refusal::GarbageArguments => &[0, 0, 0, 4],
        Refusal::RpcMismatch => &[1, 0, 2, 2],
        Refusal::AuthTooWeak => &[1, 1, 5],
    };
    for word in [xid, 1].iter().chain(words) {
        reply.u32(*word);
    }
}

/// Leaves room for the record mark of a reply; returns where it is.
pub(crate) fn begin_record(reply: &mut Writer) -> usize {
    let mark = reply.len();
    reply.u32(0);
    mark
}

/// Writes the record mark at `mark`, or takes the record back if it is empty.
pub(crate) fn end_record(mark: usize, reply: &mut Writer) {
    let len = reply.len() - mark - 4;
    if len == 0 {
        reply.truncate(mark);
    } else {
        reply.set_u32(mark, length(len) | LAST_FRAGMENT);
    }
}

/// What is at the start of received bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Framed<'a> {
    /// A fragment, whether it is the record's last, and the bytes after it.
    Fragment {
        body: &'a [u8],
        last: bool,
        rest: &'a [u8],
    },
    /// More bytes are needed.
    Partial,
    /// A record above [`MAX_RECORD`]: the connection cannot go on.
    TooLong,
}

/// Splits the first fragment off received bytes (RFC 5531, section 11).
pub(crate) fn split_fragment(bytes: &[u8]) -> Framed<'_> {
    let Some((mark, rest)) = bytes.split_first_chunk::<4>() else {
        return Framed::Partial;
    };
    let mark = u32::from_be_bytes(*mark);
    let len = (mark & !LAST_FRAGMENT) as usize;
    if len > MAX_RECORD {
        return Framed::TooLong;
    }
    match rest.split_at_checked(len) {
        Some((body, rest)) => Framed::Fragment {
            body,
            last: mark & LAST_FRAGMENT != 0,
            rest,
        },
        None => Framed::Partial,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_fragments() {
        let bytes = [0x80, 0, 0, 2, 7, 8, 9];
        let expected = Framed::Fragment {
            body: &[7, 8],
            last: true,
            rest: &[9],
        };
        assert_eq!(split_fragment(&bytes), expected);
        assert_eq!(split_fragment(&bytes[..5]), Framed::Partial);
        assert_eq!(split_fragment(&bytes[..3]), Framed::Partial);
        assert_eq!(split_fragment(&[0x84, 0, 0, 0]), Framed::TooLong);
    }

    #[test]
    fn reads_a_call_of_auth_sys() {
        let mut call = Writer::default();
        for word in [
            9, 0, 2, 100_003, 4, 1, 1, 32, 0, 0, 1000, 100, 2, 4, 5, 0, 0, 0,
        ] {
            call.u32(word);
        }
        call.set_u32(28, 28);
        call.truncate(68);
        let Ok(Message::Call(call)) = message(&mut Reader::new(call.bytes_from(0).unwrap())) else {
            panic!("expected a call");
        };
        let credential = call.credential.unwrap();
        assert_eq!((call.xid, credential.uid, credential.gid), (9, 1000, 100));
        assert!(credential.in_group(5) && credential.in_group(100) && !credential.in_group(0));
    }

    #[test]
    fn short_headers_are_malformed() {
        assert!(message(&mut Reader::new(&[0; 7])).is_err());
        assert!(message(&mut Reader::new(&[0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0, 0])).is_err());
    }
}
