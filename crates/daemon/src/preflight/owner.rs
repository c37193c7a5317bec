//! Who holds a port: from the socket's inode to a process, and on to its systemd unit.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use super::ports::{Port, Protocol};

/// Who holds a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// A process.
    Process(Process),
    /// The kernel's NFS server: sockets without a process.
    KernelNfs,
    /// A socket that no visible process holds.
    Unknown,
}

/// A process that holds a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// The program's name.
    pub name: String,
    /// The systemd unit that it runs in, if any.
    pub unit: Option<String>,
}

impl Owner {
    /// Whether it is who asks.
    pub fn is_this_process(&self) -> bool {
        matches!(self, Self::Process(process) if process.pid == std::process::id())
    }

    /// Whether it is another daemon of ours.
    pub fn is_slate(&self) -> bool {
        matches!(self, Self::Process(process) if process.name == "slate")
    }

    /// How to free the port.
    pub fn hint(&self, port: Port) -> String {
        match self {
            Self::Process(Process {
                unit: Some(unit), ..
            }) => format!("if nothing needs it here: systemctl disable --now {unit}"),
            Self::Process(Process { name, pid, .. }) if name == "slate" => {
                format!("slate serves here already; to start it anew, stop it: kill {pid}")
            }
            Self::Process(process) => {
                format!("if nothing needs it here, stop it: kill {}", process.pid)
            }
            Self::KernelNfs => {
                "if nothing needs it here: systemctl disable --now nfs-server.service".into()
            }
            Self::Unknown => {
                let kind = match port.protocol {
                    Protocol::Udp => 'u',
                    Protocol::Tcp => 't',
                };
                format!("see who it is: ss -l{kind}np 'sport = :{}'", port.number)
            }
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(Process {
                pid,
                name,
                unit: Some(unit),
            }) => write!(f, "{name} ({unit}, process {pid})"),
            Self::Process(Process { pid, name, .. }) => write!(f, "{name} (process {pid})"),
            Self::KernelNfs => f.write_str("the kernel's NFS server (nfs-server.service)"),
            Self::Unknown => f.write_str("a process that this machine does not show"),
        }
    }
}

/// Finds the owner of `port` under `proc` (`/proc`).
pub fn find(proc: &Path, port: Port) -> Owner {
    let name = port.protocol.name();
    let inodes: Vec<u64> = [name.to_owned(), format!("{name}6")]
        .iter()
        .filter_map(|table| fs::read_to_string(proc.join("net").join(table)).ok())
        .flat_map(|table| inodes(&table, port))
        .collect();
    if let Some(process) = holder(proc, &inodes) {
        return Owner::Process(process);
    }
    match port.protocol {
        Protocol::Tcp if nfsd_serves(proc, port.number) => Owner::KernelNfs,
        _ => Owner::Unknown,
    }
}

/// Inodes of the sockets in a `/proc/net/{tcp,udp}` table that are bound to the port; of TCP
/// sockets only listeners (state 0A).
fn inodes(table: &str, port: Port) -> Vec<u64> {
    const LISTEN: &str = "0A";
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (_, number) = fields.get(1)?.rsplit_once(':')?;
            let bound = u16::from_str_radix(number, 16).ok()? == port.number;
            let listens = port.protocol == Protocol::Udp || *fields.get(3)? == LISTEN;
            let inode = fields.get(9)?.parse().ok()?;
            (bound && listens).then_some(inode)
        })
        .collect()
}

/// The first process, other than systemd holding a socket for one, with one of these sockets open.
fn holder(proc: &Path, inodes: &[u64]) -> Option<Process> {
    let wanted: Vec<PathBuf> = inodes
        .iter()
        .map(|inode| PathBuf::from(format!("socket:[{inode}]")))
        .collect();
    let mut pids: Vec<u32> = fs::read_dir(proc)
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    // Process 1 also holds the sockets that it passed on: name it only if nobody else has them.
    pids.sort_by_key(|pid| (*pid == 1, *pid));
    let pid = pids.into_iter().find(|pid| holds(proc, *pid, &wanted))?;
    let dir = proc.join(pid.to_string());
    let name = fs::read_to_string(dir.join("comm")).unwrap_or_default();
    let cgroup = fs::read_to_string(dir.join("cgroup")).unwrap_or_default();
    Some(Process {
        pid,
        name: name.trim().to_owned(),
        unit: unit(&cgroup),
    })
}

fn holds(proc: &Path, pid: u32, wanted: &[PathBuf]) -> bool {
    let Ok(descriptors) = fs::read_dir(proc.join(pid.to_string()).join("fd")) else {
        return false;
    };
    descriptors
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .any(|target| wanted.contains(&target))
}

/// The innermost service in a `/proc/PID/cgroup`. Scopes are sessions, nothing to stop by name.
fn unit(cgroup: &str) -> Option<String> {
    cgroup
        .lines()
        .filter_map(|line| line.splitn(3, ':').nth(2))
        .flat_map(|path| path.rsplit('/'))
        .find(|part| part.ends_with(".service") && !part.starts_with("user@"))
        .map(str::to_owned)
}

/// Whether the kernel's NFS server runs and listens on `port`.
fn nfsd_serves(proc: &Path, port: u16) -> bool {
    let read = |file: &str| fs::read_to_string(proc.join("fs/nfsd").join(file));
    match read("portlist") {
        Ok(list) => list
            .lines()
            .any(|line| line.split_whitespace().eq(["tcp", &port.to_string()])),
        // Not mounted, or from within a container: its usual port says enough.
        Err(_) => port == 2049,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const TCP: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:0801 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 639 1 0000000094788dd1 100 0 0 10 0
   1: 0100007F:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000    33        0 701 1 0000000094788dd2 100 0 0 10 0
   2: 0100007F:0050 0100007F:C350 01 00000000:00000000 00:00000000 00000000    33        0 702 1 0000000094788dd3 20 4 30 10 -1
";
    const UDP: &str = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  404: 00000000:0043 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 9912 2 0000000012345678 0
";

    /// A `/proc` with the given process, which holds one socket.
    fn proc(pid: u32, socket: u64, comm: &str, cgroup: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let process = dir.path().join(pid.to_string());
        fs::create_dir_all(process.join("fd")).unwrap();
        fs::create_dir_all(dir.path().join("net")).unwrap();
        fs::write(dir.path().join("net/tcp"), TCP).unwrap();
        fs::write(dir.path().join("net/udp"), UDP).unwrap();
        fs::write(process.join("comm"), format!("{comm}\n")).unwrap();
        fs::write(process.join("cgroup"), cgroup).unwrap();
        symlink(format!("socket:[{socket}]"), process.join("fd/7")).unwrap();
        dir
    }

    #[test]
    fn a_service_is_named_with_its_unit() {
        let proc = proc(812, 9912, "dnsmasq", "0::/system.slice/dnsmasq.service\n");
        let port = Port::udp(67, "DHCP");
        let owner = find(proc.path(), port);
        assert_eq!(owner.to_string(), "dnsmasq (dnsmasq.service, process 812)");
        assert_eq!(
            owner.hint(port),
            "if nothing needs it here: systemctl disable --now dnsmasq.service"
        );
    }

    #[test]
    fn a_program_in_a_session_is_named_by_its_process() {
        let proc = proc(
            4242,
            701,
            "python3",
            "0::/user.slice/user-1000.slice/user@1000.service/session-3.scope\n",
        );
        let owner = find(proc.path(), Port::tcp(80, "HTTP"));
        assert_eq!(owner.to_string(), "python3 (process 4242)");
    }

    #[test]
    fn connections_are_not_listeners() {
        let port = Port::tcp(80, "HTTP");
        assert_eq!(inodes(TCP, port), [701]);
        assert!(inodes(TCP, Port::tcp(50_000, "x")).is_empty());
    }

    #[test]
    fn a_listener_without_a_process_on_2049_is_the_kernel() {
        let proc = proc(1, 9912, "systemd", "0::/init.scope\n");
        assert_eq!(find(proc.path(), Port::tcp(2049, "NFS")), Owner::KernelNfs);
        fs::create_dir_all(proc.path().join("fs/nfsd")).unwrap();
        fs::write(proc.path().join("fs/nfsd/portlist"), "tcp 2050\n").unwrap();
        assert_eq!(find(proc.path(), Port::tcp(2049, "NFS")), Owner::Unknown);
    }
}
