//! The results of operations, as far as a replay has to understand them.

use anyhow::{bail, ensure};

use super::client::{State, op};
use super::xdr::Reader;

/// What an operation that succeeded came to.
#[derive(Debug, PartialEq)]
pub enum Outcome<'a> {
    /// Nothing that matters here.
    Done,
    /// GETFH.
    Handle(&'a [u8]),
    /// OPEN.
    Opened(State),
    /// READ: whether the file ends, and the content.
    Content(bool, &'a [u8]),
    /// READDIR.
    Listing(Listing<'a>),
}

/// A page of a directory.
#[derive(Debug, PartialEq)]
pub struct Listing<'a> {
    /// What the next page has to be asked for with, besides the last cookie.
    pub verifier: [u8; 8],
    /// The entries.
    pub entries: Vec<Listed<'a>>,
    /// There is no next page.
    pub is_last: bool,
}

/// An entry of a directory.
#[derive(Debug, PartialEq)]
pub struct Listed<'a> {
    /// What the entries after it are asked for with.
    pub cookie: u64,
    /// Its name.
    pub name: &'a [u8],
    /// Its handle, if that was asked for.
    pub handle: Option<&'a [u8]>,
}

/// Reads the body of a result of operation `number` that succeeded.
pub fn read<'a>(number: u32, reader: &mut Reader<'a>) -> anyhow::Result<Outcome<'a>> {
    match number {
        op::PUTFH
        | op::PUTROOTFH
        | op::LOOKUP
        | op::LOOKUPP
        | op::SAVEFH
        | op::RESTOREFH
        | op::DELEGRETURN
        | op::RECLAIM_COMPLETE => {}
        op::SEQUENCE => drop(reader.take(36)?),
        op::CLOSE => drop(reader.take(16)?),
        op::ACCESS => drop(reader.u64()?),
        op::GETATTR => drop((reader.bitmap()?, reader.opaque()?)),
        op::READLINK => drop(reader.opaque()?),
        op::GETFH => return Ok(Outcome::Handle(reader.opaque()?)),
        op::OPEN => return opened(reader).map(Outcome::Opened),
        op::READ => return Ok(Outcome::Content(reader.u32()? != 0, reader.opaque()?)),
        op::READDIR => return listing(reader).map(Outcome::Listing),
        _ => bail!("the result of operation {number} is not known"),
    }
    Ok(Outcome::Done)
}

fn opened(reader: &mut Reader<'_>) -> anyhow::Result<State> {
    const NONE: u32 = 0;
    const READ: u32 = 1;
    const NONE_FOR_A_REASON: u32 = 3;
    // With sequence 0 it means the newest state of the file, as Linux has it (RFC 8881, 8.2.2):
    // a second open of it, through another name, would make an older one stale.
    let _sequence = reader.u32()?;
    let mut state = State::default();
    state[4..].copy_from_slice(reader.take(12)?);
    let _change_and_flags = reader.take(24)?;
    let _attributes = reader.bitmap()?;
    match reader.u32()? {
        NONE => {}
        READ => {
            let _state_and_recall = reader.take(20)?;
            let _permission = (reader.take(12)?, reader.opaque()?);
        }
        NONE_FOR_A_REASON => {
            const CONTENTION: u32 = 1;
            const RESOURCE: u32 = 2;
            if let CONTENTION | RESOURCE = reader.u32()? {
                reader.u32()?;
            }
        }
        other => bail!("expected no delegation or one to read, got {other}"),
    }
    Ok(state)
}

fn listing<'a>(reader: &mut Reader<'a>) -> anyhow::Result<Listing<'a>> {
    let verifier = reader.array()?;
    let mut entries = Vec::new();
    while reader.u32()? == 1 {
        let (cookie, name) = (reader.u64()?, reader.opaque()?);
        let given = reader.bitmap()?;
        let handle = handle(given, reader.opaque()?)?;
        entries.push(Listed {
            cookie,
            name,
            handle,
        });
    }
    Ok(Listing {
        verifier,
        entries,
        is_last: reader.u32()? != 0,
    })
}

/// The handle among the values of attributes.
fn handle(given: [u32; 3], values: &[u8]) -> anyhow::Result<Option<&[u8]>> {
    const FILEHANDLE: u32 = 19;
    /// Type, change, size, file system, error, with the lengths of their values.
    const BEFORE: [(u32, usize); 5] = [(1, 4), (3, 8), (4, 8), (8, 16), (11, 4)];
    let mut left = given[0] & ((1 << FILEHANDLE) - 1);
    let mut reader = Reader::new(values);
    for (bit, len) in BEFORE {
        if left & 1 << bit != 0 {
            left &= !(1 << bit);
            reader.take(len)?;
        }
    }
    if given[0] & 1 << FILEHANDLE == 0 {
        return Ok(None);
    }
    ensure!(
        left == 0,
        "attributes {left:#x} before a handle are not known"
    );
    reader.opaque().map(Some)
}

#[cfg(test)]
mod tests {
    use super::super::xdr::Writer;
    use super::*;

    #[test]
    fn handles_are_found_in_listings() {
        let mut values = Writer::default();
        values.u32(1);
        values.u64(5);
        values.opaque(b"handle");
        values.u64(77);
        let mut out = Writer::default();
        out.fixed(&[3; 8]);
        out.u32(1);
        out.u64(12);
        out.opaque(b"name");
        out.bitmap(&[1 << 1 | 1 << 3 | 1 << 19 | 1 << 20]);
        out.opaque(&values.0);
        out.u32(0);
        out.u32(1);
        let mut reader = Reader::new(&out.0);
        let Outcome::Listing(listing) = read(op::READDIR, &mut reader).unwrap() else {
            panic!("expected a listing");
        };
        let entry = &listing.entries[0];
        assert_eq!((entry.cookie, entry.name), (12, &b"name"[..]));
        assert_eq!(entry.handle, Some(&b"handle"[..]));
        assert!(listing.is_last && reader.rest().is_empty());
        assert!(handle([1 << 2 | 1 << 19, 0, 0], &values.0).is_err());
        assert_eq!(handle([1 << 1, 0, 0], &values.0).unwrap(), None);
    }

    #[test]
    fn opens_with_and_without_delegations() {
        let head = |delegation: &[u32]| {
            let mut out = Writer::default();
            out.fixed(&[4; 16]);
            [0; 6].into_iter().for_each(|word| out.u32(word));
            out.bitmap(&[]);
            delegation.iter().for_each(|word| out.u32(*word));
            out.0
        };
        let read_delegation = [1, 9, 9, 9, 9, 0, 0, 0, 0, 0];
        for delegation in [&[0][..], &[3, 0], &[3, 2, 0], &read_delegation] {
            let bytes = head(delegation);
            let mut reader = Reader::new(&bytes);
            let outcome = read(op::OPEN, &mut reader).unwrap();
            let state = [0, 0, 0, 0, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4];
            assert_eq!(outcome, Outcome::Opened(state));
            assert!(reader.rest().is_empty(), "{delegation:?}");
        }
        assert!(read(op::OPEN, &mut Reader::new(&head(&[2]))).is_err());
    }
}
