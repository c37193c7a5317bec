//! The interface that nodes are on: its index, address and prefix.

use std::net::Ipv4Addr;
use std::process::Command;

use engine::{Interface, InterfaceId};

use crate::Error;

/// What the engine needs to know of an interface.
pub fn find(name: &str) -> Result<Interface, Error> {
    let index = std::fs::read_to_string(format!("/sys/class/net/{name}/ifindex"));
    let index = index.ok().and_then(|text| text.trim().parse().ok());
    let index = index.ok_or_else(|| Error::InterfaceMissing {
        name: name.to_owned(),
        present: names(),
    })?;
    let output = Command::new("ip")
        .args(["-4", "-json", "address", "show", "dev", name])
        .output()
        .map_err(|error| Error::io("starting ip (package iproute2)", error))?;
    let without = || Error::InterfaceAddress {
        name: name.to_owned(),
    };
    let (address, prefix) = first_address(&output.stdout).ok_or_else(without)?;
    Ok(Interface::new(InterfaceId(index), address, prefix))
}

fn names() -> Vec<String> {
    let entries = std::fs::read_dir("/sys/class/net").into_iter().flatten();
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| name != "lo").collect()
}

/// The first global address in the output of `ip -4 -json address`, with its prefix length.
fn first_address(json: &[u8]) -> Option<(Ipv4Addr, u8)> {
    let links: serde_json::Value = serde_json::from_slice(json).ok()?;
    let addresses = links
        .as_array()?
        .iter()
        .filter_map(|link| link.get("addr_info")?.as_array());
    let address = addresses
        .flatten()
        .find(|address| address["scope"] == "global")?;
    let prefix = u8::try_from(address["prefixlen"].as_u64()?).ok()?;
    Some((address["local"].as_str()?.parse().ok()?, prefix))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_address_in_what_ip_prints() {
        let json = br#"[{},{"ifindex":2,"addr_info":[{"family":"inet","local":"10.77.0.1","prefixlen":24,"scope":"global"}]}]"#;
        assert_eq!(
            super::first_address(json),
            Some(([10, 77, 0, 1].into(), 24))
        );
        assert_eq!(super::first_address(b"[]"), None);
    }
}
