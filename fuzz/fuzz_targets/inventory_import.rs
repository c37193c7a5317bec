//! Inventories of other systems: whatever the text, what comes out keeps its promises.
#![no_main]

use std::collections::BTreeSet;

use inventory::{Fate, Kind};
use libfuzzer_sys::fuzz_target;

const KINDS: [Kind; 4] = [Kind::Dhcpd, Kind::Dnsmasq, Kind::Warewulf, Kind::Xcat];

fuzz_target!(|input: (u8, &str)| {
    let (choice, text) = input;
    let _ = inventory::guess(text);
    let kind = KINDS[usize::from(choice) % KINDS.len()];
    let lines = text.lines().count().max(1);
    let imported = match inventory::import(kind, text) {
        Ok(imported) => imported,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let mut names = BTreeSet::new();
    let mut macs = BTreeSet::new();
    let mut addresses = BTreeSet::new();
    for node in &imported.nodes {
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        assert!((1..=63).contains(&node.name.len()) && node.name.bytes().all(is_name));
        assert!(!node.name.starts_with('-') && !node.name.ends_with('-'));
        assert!(names.insert(node.name.to_ascii_lowercase()));
        assert!(node.mac.is_unicast() && macs.insert(node.mac));
        assert!(node.address.is_none_or(|it| addresses.insert(it)));
    }
    for network in &imported.networks {
        assert!(network.range.is_none_or(|(first, last)| first <= last));
    }
    for entry in &imported.entries {
        assert!((1..=lines).contains(&entry.line), "{entry:?}");
        assert!(!entry.what.chars().any(char::is_control));
        let (Fate::Became(said) | Fate::LeftOut(said)) = &entry.fate;
        assert!(!said.is_empty());
    }
});
