//! What Linux clients sent, recorded by the example `record` (see `fuzz/seeds/nfs_rpc/README.md`):
//! it is the fuzz target's first input, and is answered.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use crate::client::Results;
use crate::{Site, fuzz};

fn seeds() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/nfs_rpc");
    let entries = folder.read_dir().expect("the recorded input");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let mut seeds: Vec<PathBuf> = paths
        .filter(|path| path.extension().is_none_or(|it| it != "md"))
        .collect();
    seeds.sort();
    seeds
}

/// The records of a recording, with their marks.
fn records(seed: &Path) -> Vec<Vec<u8>> {
    let bytes = std::fs::read(seed).expect("a file");
    let mut rest = &bytes[3..];
    let mut records = Vec::new();
    while let Some(mark) = rest.first_chunk::<4>() {
        let len = 4 + (u32::from_be_bytes(*mark) & 0x7fff_ffff) as usize;
        let (record, after) = rest.split_at(len);
        records.push(record.to_vec());
        rest = after;
    }
    records
}

#[test]
fn the_fuzz_target_takes_what_was_recorded_whole_and_call_by_call() {
    let seeds = seeds();
    assert!(seeds.len() >= 3, "{seeds:?}");
    for seed in seeds {
        fuzz::run(&std::fs::read(&seed).expect("a file"));
        for record in records(&seed) {
            fuzz::run(&[&[0; 3], &record[..]].concat());
            // Its arguments behind other headers: of COMPOUND, version 3, MOUNT, after a look-up.
            for (mode, minor) in [(16, 0), (24, 1), (24, 215), (24, 231), (32, 1)] {
                for len in [0, 4, record.len() / 2, record.len()] {
                    fuzz::run(&[&[mode, minor, 2], &record[..len]].concat());
                }
            }
        }
    }
}

/// A client's calls of the sample tree succeed again: under the same key, another server takes the
/// handles, the sessions and the states that the recorded one gave.
#[test]
fn what_a_client_did_on_one_server_is_answered_by_another() {
    let mut walks = 0;
    for seed in seeds() {
        let name = seed.file_name().expect("a name").to_string_lossy();
        if !name.starts_with("walk-") {
            continue;
        }
        walks += 1;
        let (mut count, mut refused) = (0, Vec::new());
        for record in records(&seed) {
            // To every call its own server, as if the one before had been killed.
            let site = Site::new();
            let mut wire = site.server.direct(IpAddr::V4(Ipv4Addr::LOCALHOST));
            let mut reply = Results::new(wire.exchange(&record).expect("a reply"));
            let _mark_and_xid = reply.fixed(8);
            assert_eq!((reply.u32(), reply.fixed(12)), (1, vec![0; 12]), "accepted");
            count += 1;
            // Linux looks for ACLs once, which are a program of their own.
            let acl = record[16..20] == 100_227_u32.to_be_bytes();
            assert_eq!(reply.u32(), u32::from(acl), "call {count}");
            if acl {
                continue;
            }
            // NULL has no status.
            let status = if reply.len() >= 4 { reply.u32() } else { 0 };
            if status != 0 {
                refused.push(status);
            }
        }
        println!("{name}: {count} calls, refused: {refused:?}");
        assert!(count > 30, "{name}");
        // What Linux tries and can do without, and what it looks for in vain.
        let expected = [
            crate::codes::NOENT,
            crate::codes::NOXATTR,
            crate::codes::ROFS,
        ];
        refused.retain(|status| !expected.contains(status));
        assert_eq!(refused, [], "{name}");
    }
    assert_eq!(walks, 3);
}
