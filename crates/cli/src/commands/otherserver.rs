//! What another DHCP server has to be told, in its own language: which file firmware of each kind
//! boots from here, and the nodes.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use daemon::control::{BootServiceView, FirmwareView, NodeEntry};
use serde_json::{Value, json};

use crate::args::OtherServer;

/// The configuration.
pub fn text(server: OtherServer, service: &BootServiceView, nodes: &[NodeEntry]) -> String {
    match server {
        OtherServer::Dhcpd => dhcpd(service, nodes),
        OtherServer::Dnsmasq => dnsmasq(service, nodes),
        OtherServer::Kea => kea(service, nodes),
    }
}

/// A group: what it says is said to its hosts only.
fn dhcpd(service: &BootServiceView, nodes: &[NodeEntry]) -> String {
    let mut out = String::from(
        "# For dhcpd.conf, behind the subnet of the nodes; made by: slate plan --as dhcpd\n\
         # Leave this line out where the option is defined already.\n\
         option architecture-type code 93 = unsigned integer 16;\n\
         group {\n",
    );
    let _ = writeln!(out, "  next-server {};", service.server);
    let mut word = "if";
    for firmware in &service.firmware {
        let _ = writeln!(out, "  {word} {} {{", dhcpd_test(firmware));
        if firmware.http {
            out.push_str("    option vendor-class-identifier \"HTTPClient\";\n");
        }
        let _ = writeln!(out, "    filename \"{}\";\n  }}", firmware.file);
        word = "elsif";
    }
    for node in nodes {
        let _ = writeln!(out, "  host {} {{", node.name);
        let _ = writeln!(out, "    hardware ethernet {};", node.mac);
        if let Some(address) = node.address {
            let _ = writeln!(out, "    fixed-address {address};");
        }
        let _ = writeln!(out, "    option host-name \"{}\";\n  }}", node.name);
    }
    out.push_str("}\n");
    out
}

fn dhcpd_test(firmware: &FirmwareView) -> String {
    let is = |architecture: &u16| {
        let [high, low] = architecture.to_be_bytes();
        format!("option architecture-type = {high:02x}:{low:02x}")
    };
    let any = firmware.architectures.iter().map(is).collect::<Vec<_>>();
    let any = any.join(" or ");
    match &firmware.user_class {
        Some(class) => format!("option user-class = \"{class}\" and ({any})"),
        None => any,
    }
}

fn dnsmasq(service: &BootServiceView, nodes: &[NodeEntry]) -> String {
    let mut out = String::from("# For dnsmasq.conf; made by: slate plan --as dnsmasq\n");
    let classes = || service.firmware.iter().filter(|it| it.user_class.is_some());
    for firmware in &service.firmware {
        let tag = tag(firmware);
        if let Some(class) = &firmware.user_class {
            let _ = writeln!(out, "dhcp-userclass=set:{tag},{class}");
        }
        let arch = arch_tag(firmware);
        for architecture in &firmware.architectures {
            let _ = writeln!(
                out,
                "dhcp-match=set:{arch},option:client-arch,{architecture}"
            );
        }
        let others = if firmware.user_class.is_some() {
            format!(",tag:{tag}")
        } else {
            classes()
                .map(|it| format!(",tag:!{}", self::tag(it)))
                .collect()
        };
        let tags = format!("tag:slate-node,tag:{arch}{others}");
        let _ = writeln!(
            out,
            "dhcp-boot={tags},{},,{}",
            firmware.file, service.server
        );
        if firmware.http {
            let _ = writeln!(out, "dhcp-option-force={tags},60,HTTPClient");
        }
    }
    for node in nodes {
        let address = node.address.map(|it| format!(",{it}")).unwrap_or_default();
        let _ = writeln!(
            out,
            "dhcp-host={},set:slate-node{address},{}",
            node.mac, node.name
        );
    }
    out
}

fn tag(firmware: &FirmwareView) -> String {
    format!("slate-{}", firmware.name)
}

fn arch_tag(firmware: &FirmwareView) -> String {
    match firmware.user_class {
        Some(_) => format!("{}-arch", tag(firmware)),
        None => tag(firmware),
    }
}

/// One document, which can be checked as it is and merged by its keys.
fn kea(service: &BootServiceView, nodes: &[NodeEntry]) -> String {
    let classes: Vec<&str> = service
        .firmware
        .iter()
        .filter_map(|it| it.user_class.as_deref())
        .collect();
    let class = |firmware: &FirmwareView| {
        let mut class = json!({
            "name": tag(firmware),
            "test": kea_test(firmware, &classes),
            "next-server": service.server,
            "boot-file-name": firmware.file,
        });
        if firmware.http {
            class["option-data"] = json!([{
                "name": "vendor-class-identifier",
                "data": "HTTPClient",
                "always-send": true,
            }]);
        }
        class
    };
    let subnet = json!({
        "id": 1,
        "subnet": format!("{}/{}", service.network, service.prefix),
        "reservations": nodes.iter().map(kea_reservation).collect::<Vec<Value>>(),
    });
    let document = json!({
        "Dhcp4": {
            "client-classes": service.firmware.iter().map(class).collect::<Vec<Value>>(),
            "subnet4": [subnet],
        }
    });
    // Values of strings and lists can always be written.
    let mut text = serde_json::to_string_pretty(&document).unwrap_or_default();
    text.push('\n');
    text
}

/// Only machines with a reservation are told: others are no nodes.
fn kea_test(firmware: &FirmwareView, classes: &[&str]) -> String {
    let is = |architecture: &u16| format!("option[93].hex == 0x{architecture:04x}");
    let any = firmware.architectures.iter().map(is).collect::<Vec<_>>();
    let mut test = format!("member('KNOWN') and ({})", any.join(" or "));
    match &firmware.user_class {
        Some(class) => {
            let _ = write!(test, " and option[77].hex == '{class}'");
        }
        None => {
            for class in classes {
                let _ = write!(test, " and not (option[77].hex == '{class}')");
            }
        }
    }
    test
}

fn kea_reservation(node: &NodeEntry) -> Value {
    let mut reservation = json!({
        "hw-address": node.mac.to_string(),
        "hostname": node.name,
    });
    if let Some(address) = node.address {
        let address: Ipv4Addr = address;
        reservation["ip-address"] = json!(address);
    }
    reservation
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use wire::mac::Mac;

    use super::*;

    fn firmware(
        name: &str,
        architectures: &[u16],
        class: Option<&str>,
        http: bool,
    ) -> FirmwareView {
        FirmwareView {
            name: name.into(),
            architectures: architectures.to_vec(),
            user_class: class.map(str::to_owned),
            http,
            file: match http {
                true => "http://10.77.0.1:8080/shimx64.efi".into(),
                false => format!("{name}.efi"),
            },
        }
    }

    /// Every form that a kind of firmware can have.
    fn service() -> BootServiceView {
        BootServiceView {
            server: [10, 77, 0, 1].into(),
            network: [10, 77, 0, 0].into(),
            prefix: 24,
            unknown: "approve".into(),
            dhcp: "off".into(),
            firmware: vec![
                firmware("ipxe", &[0, 7], Some("iPXE"), false),
                firmware("uefi-x64", &[7, 9], None, false),
                firmware("uefi-http", &[16], None, true),
                firmware("bios", &[0], None, false),
            ],
        }
    }

    fn nodes() -> Vec<NodeEntry> {
        let node = |last: u8, address: Option<[u8; 4]>| NodeEntry {
            address: address.map(Ipv4Addr::from),
            ..NodeEntry::new(Mac([0x52, 0x54, 0, 0, 0, last]), format!("node{last}"))
        };
        vec![node(1, Some([10, 77, 0, 201])), node(2, None)]
    }

    const ADDRESS: (&str, &str) = ("10.77.0.201", "10.77.0.301");

    /// The server's own check takes a configuration, and refuses one with a wrong line; skipped
    /// where it is not installed.
    fn accepts(program: &str, arguments: &[&str], config: &str, (good, bad): (&str, &str)) {
        let Some(path) = found(program) else {
            println!("skipped: {program} is not installed");
            return;
        };
        let check = |config: &str| {
            let directory = tempfile::tempdir().unwrap();
            let file = directory.path().join("config");
            std::fs::write(&file, config).unwrap();
            let file = file.display().to_string();
            let arguments = arguments.iter().map(|it| it.replace("FILE", &file));
            let output = Command::new(&path).args(arguments).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned()
                + &String::from_utf8_lossy(&output.stdout);
            (output.status.success(), said)
        };
        let (accepted, said) = check(config);
        assert!(accepted, "{said}\n{config}");
        let (accepted, _) = check(&config.replace(good, bad));
        assert!(!accepted, "{program} takes everything");
    }

    fn found(program: &str) -> Option<PathBuf> {
        let places = ["/usr/sbin", "/usr/bin", "/usr/local/sbin"];
        let paths = places.map(|place| Path::new(place).join(program));
        paths.into_iter().find(|path| path.exists())
    }

    #[test]
    fn isc_dhcpd_accepts_its_lines() {
        let lines = text(OtherServer::Dhcpd, &service(), &nodes());
        let subnet = "subnet 10.77.0.0 netmask 255.255.255.0 { range 10.77.0.100 10.77.0.150; }\n";
        let config = format!("{subnet}{lines}");
        accepts("dhcpd", &["-4", "-t", "-cf", "FILE"], &config, ADDRESS);
        for line in [
            "  elsif option architecture-type = 00:07 or option architecture-type = 00:09 {\n",
            "    option vendor-class-identifier \"HTTPClient\";\n",
            "    fixed-address 10.77.0.201;\n",
        ] {
            assert!(lines.contains(line), "{lines}");
        }
    }

    #[test]
    fn dnsmasq_accepts_its_lines() {
        let lines = text(OtherServer::Dnsmasq, &service(), &nodes());
        let wrong = ("client-arch", "client-arc");
        accepts("dnsmasq", &["--test", "--conf-file=FILE"], &lines, wrong);
        for line in [
            "dhcp-host=52:54:00:00:00:01,set:slate-node,10.77.0.201,node1\n",
            "dhcp-host=52:54:00:00:00:02,set:slate-node,node2\n",
            "dhcp-match=set:slate-uefi-x64,option:client-arch,9\n",
            "dhcp-boot=tag:slate-node,tag:slate-bios,tag:!slate-ipxe,bios.efi,,10.77.0.1\n",
        ] {
            assert!(lines.contains(line), "{lines}");
        }
    }

    #[test]
    fn kea_accepts_its_document() {
        let document = text(OtherServer::Kea, &service(), &nodes());
        accepts("kea-dhcp4", &["-t", "FILE"], &document, ADDRESS);
        let parsed: Value = serde_json::from_str(&document).unwrap();
        let dhcp = &parsed["Dhcp4"];
        let reservation = &dhcp["subnet4"][0]["reservations"][0];
        assert_eq!(reservation["ip-address"], "10.77.0.201");
        assert_eq!(
            dhcp["client-classes"][1]["test"],
            "member('KNOWN') and (option[93].hex == 0x0007 or option[93].hex == 0x0009) and not (option[77].hex == 'iPXE')"
        );
    }
}
