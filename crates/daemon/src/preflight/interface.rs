//! The interface that nodes are on: present, up, with an address.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::process::Command;

use super::finding::Finding;

/// The interface's first IPv4 address, or what is wrong with the interface.
pub fn check(name: &str) -> Result<Ipv4Addr, Finding> {
    let present = names().unwrap_or_default();
    if !present.iter().any(|other| other == name) {
        return Err(Finding::InterfaceMissing {
            name: name.to_owned(),
            present: present.into_iter().filter(|name| name != "lo").collect(),
        });
    }
    if !is_up(name) {
        return Err(Finding::InterfaceDown {
            name: name.to_owned(),
        });
    }
    let unknown = |cause: String| Finding::InterfaceUnknown {
        name: name.to_owned(),
        cause,
    };
    let output = Command::new("ip")
        .args(["-4", "-json", "address", "show", "dev", name])
        .output()
        .map_err(|error| unknown(format!("starting ip: {error}")))?;
    if !output.status.success() {
        return Err(unknown(
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        ));
    }
    first_address(&output.stdout).ok_or_else(|| Finding::InterfaceWithoutAddress {
        name: name.to_owned(),
    })
}

/// All interfaces by name, sorted.
fn names() -> io::Result<Vec<String>> {
    let mut names: Vec<String> = fs::read_dir("/sys/class/net")?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    Ok(names)
}

/// Whether `IFF_UP` is set; a cable may still be missing, which nodes will show soon enough.
fn is_up(name: &str) -> bool {
    let flags = fs::read_to_string(format!("/sys/class/net/{name}/flags")).unwrap_or_default();
    let flags = flags.trim().trim_start_matches("0x");
    u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & 1 != 0)
}

/// The first global address in the output of `ip -4 -json address`.
fn first_address(json: &[u8]) -> Option<Ipv4Addr> {
    let links: serde_json::Value = serde_json::from_slice(json).ok()?;
    links
        .as_array()?
        .iter()
        .filter_map(|link| link.get("addr_info")?.as_array())
        .flatten()
        .find(|address| address["scope"] == "global")
        .and_then(|address| address["local"].as_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_global_address_counts() {
        let json = br#"[{"ifname":"br0","flags":["UP"],"addr_info":[
            {"family":"inet","local":"169.254.3.4","prefixlen":16,"scope":"link"},
            {"family":"inet","local":"10.77.0.1","prefixlen":24,"scope":"global"}]}]"#;
        assert_eq!(first_address(json), Some(Ipv4Addr::new(10, 77, 0, 1)));
        assert_eq!(first_address(br#"[{"addr_info":[]}]"#), None);
        assert_eq!(first_address(b"[{}]"), None);
    }

    #[test]
    fn loopback_is_not_offered() {
        let Err(Finding::InterfaceMissing { present, .. }) = check("no-such-interface") else {
            panic!("expected a missing interface");
        };
        assert!(!present.contains(&"lo".to_owned()));
    }
}
