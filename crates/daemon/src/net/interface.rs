//! The interface that nodes are on: its index, address and prefix.

use std::io;
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
    let found = address(name).map_err(|cause| {
        Error::io(
            "asking for the interface's address",
            io::Error::other(cause),
        )
    })?;
    let (address, prefix) = found.ok_or_else(|| Error::InterfaceAddress {
        name: name.to_owned(),
    })?;
    Ok(Interface::new(InterfaceId(index), address, prefix))
}

/// This machine's own address on the way to another one; `None` = there is no way.
pub fn towards(address: Ipv4Addr) -> Option<Ipv4Addr> {
    // Nothing is sent: the kernel only looks the route up.
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((address, wire::dhcp4::SERVER_PORT)).ok()?;
    match socket.local_addr().ok()?.ip() {
        std::net::IpAddr::V4(own) => Some(own),
        std::net::IpAddr::V6(_) => None,
    }
}

/// The interface's first global address with its prefix length, or why it cannot be known.
pub fn address(name: &str) -> Result<Option<(Ipv4Addr, u8)>, String> {
    let output = Command::new("ip")
        .args(["-4", "-json", "address", "show", "dev", name])
        .output()
        .map_err(|error| format!("starting ip (package iproute2): {error}"))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        return Err(message.trim().to_owned());
    }
    Ok(first_address(&output.stdout))
}

/// All interfaces by name but the loopback, sorted.
pub fn names() -> Vec<String> {
    let entries = std::fs::read_dir("/sys/class/net").into_iter().flatten();
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| name != "lo").collect();
    names.sort();
    names
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
        let json = br#"[{},{"ifindex":2,"addr_info":[
            {"family":"inet","local":"169.254.3.4","prefixlen":16,"scope":"link"},
            {"family":"inet","local":"10.77.0.1","prefixlen":24,"scope":"global"}]}]"#;
        assert_eq!(
            super::first_address(json),
            Some(([10, 77, 0, 1].into(), 24))
        );
        for none in [&b"[]"[..], br#"[{"addr_info":[]}]"#, b"[{}]", b""] {
            assert_eq!(super::first_address(none), None);
        }
    }
}
