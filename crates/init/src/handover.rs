//! Texts of the files by which the running system takes over what `/init` began. Pure.

use std::net::Ipv4Addr;

use wire::mac::Mac;

use crate::dhcp::{Lease, is_name};
use crate::network::Configured;

/// A file to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// Absolute path.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// Content.
    pub content: String,
}

/// The agent reports multi-user and stays. The beginning of a shutdown ends its main process, which
/// tells the guard; `KillMode=` and the `@` save the guard from the signals of a shutdown, as the
/// `@` does for daemons that serve the root file system. A soft reboot is none of the targets: the
/// system goes on after it, and so must the waiting for its server. To name the targets also has
/// process 1 load them, and the units that they need, while there is a server to read from.
pub const AGENT_UNIT: &str = "[Unit]
Description=Cleanslate node agent
DefaultDependencies=no
After=multi-user.target
Conflicts=poweroff.target reboot.target halt.target kexec.target
Before=poweroff.target reboot.target halt.target kexec.target
IgnoreOnIsolate=yes
RefuseManualStop=yes

[Service]
ExecStart=@/run/slate/agent @slate-agent report
Type=exec
KillMode=process
OOMScoreAdjust=-900
";

/// The end of [`AGENT_UNIT`] under SELinux. systemd labels all of `/run` as data, and policies let it
/// start no services from there: so the agent becomes a program as others are.
pub const AGENT_LABEL: &str = "\
ExecStartPre=-/usr/bin/chcon --reference=/usr/bin/env /run/slate/agent
";

/// A drop-in for the managers of logged-in users: they load what ends them when they start, not when
/// they are to end. [`AGENT_UNIT`] does the same for process 1.
pub const USER_DROP_IN: &str = "[Unit]
Before=exit.target
";

/// Makes SSH host keys where neither the image nor an identity brings any. It has to precede
/// sockets, so it cannot wait for the whole of sysinit.target.
pub const HOST_KEYS_UNIT: &str = "[Unit]
Description=SSH host keys of this boot
DefaultDependencies=no
After=local-fs.target
Before=ssh.service sshd.service ssh.socket sshd.socket shutdown.target
Conflicts=shutdown.target

[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -A
";

/// An image's hosts file with the nodes added.
pub fn hosts(image: &str, nodes: &[(Ipv4Addr, String)]) -> String {
    let mut out = image.trim_end().to_owned();
    out.push_str("\n\n# The nodes when this one booted\n");
    for (address, name) in nodes.iter().filter(|(_, name)| is_name(name)) {
        out.push_str(&format!("{address} {name}\n"));
    }
    out
}

/// All files for systemd-networkd, udev and NetworkManager; who is not installed reads none.
pub fn files(network: &Configured) -> Vec<Text> {
    let mac = network.link.mac;
    let uuid = uuid(mac);
    let text = |path: String, mode, content| Text {
        path,
        mode,
        content,
    };
    let mut files = vec![
        text(
            "/run/systemd/network/05-slate.network".into(),
            0o644,
            networkd(network),
        ),
        text(
            "/run/systemd/network/05-slate.link".into(),
            0o644,
            link(mac),
        ),
    ];
    if network.stacked {
        // Both would take the interfaces below for their own to configure, networkd because of `ip=`
        // on the command line (systemd-network-generator(8)).
        files.push(text(
            "/run/systemd/network/06-slate-below.network".into(),
            0o644,
            format!("[Match]\nMACAddress={mac}\nType=ether\n\n[Link]\nUnmanaged=yes\n"),
        ));
        files.push(text(
            "/run/NetworkManager/conf.d/slate.conf".into(),
            0o644,
            format!("[keyfile]\nunmanaged-devices=mac:{mac}\n"),
        ));
        return files;
    }
    files.extend([
        text(
            "/run/NetworkManager/system-connections/slate.nmconnection".into(),
            0o600,
            network_manager(network, &uuid),
        ),
        text(
            format!("/run/NetworkManager/devices/{}", network.link.index),
            0o644,
            format!("[device]\nmanaged=1\nconnection-uuid={uuid}\n"),
        ),
    ]);
    files
}

/// Files by which ifupdown leaves the interface alone: it would ask for a lease of its own when it
/// starts and take the interface down, root and all, when it stops. `defaults` is the image's
/// `/etc/default/networking`. The agent renews the lease.
pub fn ifupdown(interface: &str, defaults: &str) -> Vec<Text> {
    let excluded = defaults.lines().rev().find_map(|line| {
        let value = line.trim().strip_prefix("EXCLUDE_INTERFACES=")?;
        Some(value.trim_matches(['"', '\'']))
    });
    let text = |path: &str, content: String| Text {
        path: path.to_owned(),
        mode: 0o644,
        content,
    };
    let excluded = [excluded.unwrap_or_default(), interface].join(" ");
    vec![
        text("/run/network/ifstate", format!("{interface}={interface}\n")),
        text(
            EXCLUDES_PATH,
            format!("EXCLUDE_INTERFACES=\"{}\"\n", excluded.trim()),
        ),
        text(
            "/run/systemd/system/networking.service.d/50-slate.conf",
            format!("[Service]\nEnvironmentFile=-{EXCLUDES_PATH}\n"),
        ),
    ]
}

/// What ifupdown is told by its environment.
const EXCLUDES_PATH: &str = "/run/slate/ifupdown";

/// dhcpcd's configuration without the interface, which it would take the address from when it stops.
pub fn dhcpcd(interface: &str, image: &str) -> String {
    let image = image.trim_end();
    // The words after `interface NAME` are about that interface only, and this is for all.
    format!("denyinterfaces {interface}\n{image}\n")
}

/// The root lies behind this interface: its address stays, whatever happens to lease or daemon.
/// VLANs and bridges over it have the same address but another type; a VLAN or a bond of the command
/// line keeps its name.
fn networkd(network: &Configured) -> String {
    let this = if network.stacked {
        format!("Name={}\n", network.link.name)
    } else {
        format!("MACAddress={}\nType=ether\n", network.link.mac)
    };
    let mut out = format!("[Match]\n{this}\n[Network]\nKeepConfiguration=yes\n");
    if network.dhcp {
        out.push_str(
            "DHCP=ipv4\n\n[DHCPv4]\nClientIdentifier=mac\nSendRelease=no\nUseHostname=no\nUseDomains=yes\n",
        );
        return out;
    }
    let lease = &network.lease;
    out.push_str(&format!("Address={}/{}\n", lease.address, lease.prefix));
    for server in &lease.dns {
        out.push_str(&format!("DNS={server}\n"));
    }
    if let Some(gateway) = lease.gateway {
        out.push_str(&format!(
            "\n[Route]\nGateway={gateway}\nGatewayOnLink=yes\n"
        ));
    }
    out
}

/// Without a name policy udev keeps the name. Kernels before 6.2 refuse to rename an interface that
/// is up, later ones do it: the name must not depend on that.
fn link(mac: Mac) -> String {
    format!("[Match]\nMACAddress={mac}\nType=ether\n\n[Link]\nDescription=Boot interface\n")
}

/// The address of a lease is a fixed one for NetworkManager: one that it asked for itself would have
/// its lease's end in the kernel, which takes it away then, root and all, where NetworkManager does
/// not run or no server answers. The agent renews the lease.
fn network_manager(network: &Configured, uuid: &str) -> String {
    let lease = &network.lease;
    let mac = network.link.mac;
    let gateway = lease.gateway.map_or(String::new(), |it| format!(",{it}"));
    let dns: String = lease.dns.iter().map(|it| format!("{it};")).collect();
    let domains: String = lease.domains.iter().map(|it| format!("{it};")).collect();
    format!(
        "[connection]\nid=slate\nuuid={uuid}\ntype=ethernet\nautoconnect-priority=100\n\n\
         [ethernet]\nmac-address={mac}\n\n\
         [ipv4]\nmethod=manual\naddress1={}/{}{gateway}\ndns={dns}\ndns-search={domains}\n\n\
         [ipv6]\nmethod=auto\nmay-fail=true\n",
        lease.address, lease.prefix
    )
}

/// A UUID that is the same in every boot of the node (RFC 9562 version 8).
fn uuid(mac: Mac) -> String {
    format!("736c6174-6500-8000-8000-{}", mac.plain())
}

/// `/etc/resolv.conf` of a lease.
pub fn resolv_conf(lease: &Lease) -> String {
    let search = match lease.domains.join(" ") {
        none if none.is_empty() => none,
        domains => format!("search {domains}\n"),
    };
    let servers = lease.dns.iter().map(|it| format!("nameserver {it}\n"));
    std::iter::once(search).chain(servers).collect()
}

/// An fstab without its line for `/`; nothing where it has none.
pub fn fstab_without_root(text: &str) -> Option<String> {
    let names_root = |line: &str| {
        let mut fields = line.split_whitespace();
        let device = fields.next().unwrap_or("#");
        !device.starts_with('#') && fields.next() == Some("/")
    };
    if !text.lines().any(names_root) {
        return None;
    }
    let lines = text.lines().map(|line| {
        let mark = if names_root(line) {
            "# mounted by slate: "
        } else {
            ""
        };
        format!("{mark}{line}\n")
    });
    Some(lines.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rtnl::Link;

    fn network(dhcp: bool) -> Configured {
        Configured {
            link: Link {
                index: 2,
                name: "eth0".into(),
                mac: Mac([2, 0, 0, 0, 0, 1]),
                up: true,
                carrier: true,
            },
            lease: Lease {
                address: [10, 0, 0, 5].into(),
                prefix: 24,
                gateway: Some([10, 0, 0, 1].into()),
                dns: vec![[10, 0, 0, 2].into()],
                hostname: None,
                domains: vec!["lab".into(), "example.org".into()],
                next_server: None,
                mtu: None,
                server: None,
                seconds: None,
            },
            dhcp,
            stacked: false,
            since_us: 0,
        }
    }

    #[test]
    fn a_vlan_keeps_its_name_and_what_is_below_is_left_alone() {
        let mut vlan = network(true);
        vlan.link.name = "vlan5".into();
        vlan.stacked = true;
        let files = files(&vlan);
        assert!(
            files[0]
                .content
                .starts_with("[Match]\nName=vlan5\n\n[Network]\n")
        );
        let paths: Vec<_> = files.iter().map(|it| it.path.as_str()).collect();
        assert_eq!(paths[3..], ["/run/NetworkManager/conf.d/slate.conf"]);
        assert!(files[2].content.ends_with("[Link]\nUnmanaged=yes\n"));
        assert!(files[3].content.ends_with("=mac:02:00:00:00:00:01\n"));
    }

    #[test]
    fn hosts_come_after_those_of_the_image() {
        let nodes = [
            ([10, 0, 0, 5].into(), "node1".to_owned()),
            ([10, 0, 0, 6].into(), "no name".to_owned()),
        ];
        assert_eq!(
            hosts("127.0.0.1 localhost\n", &nodes),
            "127.0.0.1 localhost\n\n# The nodes when this one booted\n10.0.0.5 node1\n"
        );
    }

    #[test]
    fn networkd_keeps_and_renews_the_lease() {
        let text = &files(&network(true))[0].content;
        assert!(text.starts_with("[Match]\nMACAddress=02:00:00:00:00:01\nType=ether\n"));
        assert!(text.contains("KeepConfiguration=yes\nDHCP=ipv4\n"));
        assert!(text.contains("ClientIdentifier=mac"));
        let fixed = &files(&network(false))[0].content;
        assert!(fixed.contains("Address=10.0.0.5/24\nDNS=10.0.0.2\n") && !fixed.contains("DHCP"));
    }

    #[test]
    fn network_manager_assumes_the_connection() {
        let files = files(&network(true));
        assert_eq!(files[2].mode, 0o600);
        assert!(
            files[2]
                .content
                .contains("uuid=736c6174-6500-8000-8000-020000000001\n")
        );
        // What would be renewed would end in the kernel as well.
        let ipv4 = "[ipv4]\nmethod=manual\naddress1=10.0.0.5/24,10.0.0.1\ndns=10.0.0.2;\n\
                    dns-search=lab;example.org;\n";
        assert!(files[2].content.contains(ipv4), "{}", files[2].content);
        assert_eq!(files[3].path, "/run/NetworkManager/devices/2");
        assert!(files[3].content.contains("connection-uuid=736c6174-"));
    }

    #[test]
    fn ifupdown_leaves_the_interface_alone_and_others_that_it_was_told() {
        let environment = |defaults| {
            let files = ifupdown("eth0", defaults);
            let path = |it: &&Text| it.path == EXCLUDES_PATH;
            files.iter().find(path).unwrap().content.clone()
        };
        assert_eq!(environment(""), "EXCLUDE_INTERFACES=\"eth0\"\n");
        assert_eq!(
            environment("#EXCLUDE_INTERFACES=\nEXCLUDE_INTERFACES=\"wlan0 usb*\"\n"),
            "EXCLUDE_INTERFACES=\"wlan0 usb* eth0\"\n"
        );
    }

    #[test]
    fn what_is_denied_to_dhcpcd_stands_before_what_is_for_one_interface() {
        let text = dhcpcd("eth0", "persistent\ninterface eth1\nstatic routers=\n");
        assert_eq!(
            text,
            "denyinterfaces eth0\npersistent\ninterface eth1\nstatic routers=\n"
        );
    }

    #[test]
    fn resolv_conf_of_a_lease() {
        assert_eq!(
            resolv_conf(&network(true).lease),
            "search lab example.org\nnameserver 10.0.0.2\n"
        );
    }

    #[test]
    fn only_root_leaves_fstab() {
        let text = "# / is\nUUID=1 / ext4 defaults 0 1\nUUID=2 /home ext4 defaults 0 2\n";
        let changed = "# / is\n# mounted by slate: UUID=1 / ext4 defaults 0 1\n\
                       UUID=2 /home ext4 defaults 0 2\n";
        assert_eq!(fstab_without_root(text).as_deref(), Some(changed));
        assert_eq!(fstab_without_root("tmpfs /tmp tmpfs\n"), None);
    }
}
