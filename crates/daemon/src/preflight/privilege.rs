//! Root, or the capabilities that stand in for it.

use std::fs;

use super::finding::Finding;

/// Capability numbers (linux/capability.h) that opening the sockets takes.
const NEEDED: [(u32, &str); 3] = [
    (10, "CAP_NET_BIND_SERVICE"),
    (12, "CAP_NET_ADMIN"),
    (13, "CAP_NET_RAW"),
];

/// A finding where this process may not open what the daemon opens.
pub fn check() -> Vec<Finding> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let missing = missing(&status);
    match missing.is_empty() {
        true => Vec::new(),
        false => vec![Finding::NotPrivileged { missing }],
    }
}

/// Which capabilities the `CapEff` line of a `/proc/PID/status` lacks.
fn missing(status: &str) -> Vec<&'static str> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    let lacks = |bit: u32| effective & (1 << bit) == 0;
    NEEDED
        .iter()
        .filter(|(bit, _)| lacks(*bit))
        .map(|(_, name)| *name)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_lacks_nothing_and_users_everything() {
        assert!(missing("Name:\tx\nCapEff:\t000001ffffffffff\n").is_empty());
        assert_eq!(missing("CapEff:\t0000000000000000\n").len(), 3);
        assert_eq!(missing("CapEff:\t0000000000002400\n"), ["CAP_NET_ADMIN"]);
    }
}
