//! Names of systemd units (systemd.unit(5)).

/// What stands in the place of a mount point for swap space.
pub(crate) const SWAP: &str = "swap";
/// Longest name of a unit (UNIT_NAME_MAX of systemd).
const MAX_NAME_BYTES: usize = 255;
/// Kinds of units.
const KINDS: [&str; 10] = [
    "service",
    "socket",
    "target",
    "timer",
    "mount",
    "automount",
    "swap",
    "path",
    "slice",
    "device",
];

/// Whether a text names a unit.
pub(crate) fn is_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte);
    let kind = text.rsplit_once('.');
    text.len() <= MAX_NAME_BYTES
        && text.bytes().all(plain)
        && kind.is_some_and(|(name, kind)| !name.is_empty() && KINDS.contains(&kind))
}

/// A path as units are named by it: `systemd-escape --path`.
pub(crate) fn escape(path: &str) -> String {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    if parts.is_empty() {
        return "-".into();
    }
    let mut out = String::new();
    for byte in parts.join("/").bytes() {
        match byte {
            b'/' => out.push('-'),
            b'.' if out.is_empty() => out.push_str("\\x2e"),
            b':' | b'_' | b'.' => out.push(byte.into()),
            _ if byte.is_ascii_alphanumeric() => out.push(byte.into()),
            _ => out.push_str(&format!("\\x{byte:02x}")),
        }
    }
    out
}

/// A text as a unit's setting has it: without specifiers.
pub(crate) fn literal(text: &str) -> String {
    text.replace('%', "%%")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_escaped_as_systemd_does() {
        // By systemd-escape --path of systemd 252.
        for (path, name) in [
            ("/", "-"),
            ("/home", "home"),
            ("/var//lib/docker/", "var-lib-docker"),
            ("/mnt/a-b", "mnt-a\\x2db"),
            ("/.hidden", "\\x2ehidden"),
            ("/a b/é", "a\\x20b-\\xc3\\xa9"),
            ("/a:b_c.d", "a:b_c.d"),
        ] {
            assert_eq!(escape(path), name);
        }
    }

    #[test]
    fn units_have_a_kind() {
        for name in ["sleep.target", "getty@tty1.service", "mnt-a\\x2db.mount"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["sleep", ".target", "a/b.target", "x.conf", "a b.service"] {
            assert!(!is_name(name), "{name}");
        }
    }
}
