//! Makes the shared image this node's own: name, keys, network hand-over, agent. Runs inside the
//! new root, so that the image's symbolic links mean what they say; all of it lands in the tmpfs.

use std::ffi::CStr;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{XattrFlags, lsetxattr};
use rustix::time::{ClockId, Timespec, clock_settime};
use wire::identity::{Capable, Document, File as DocumentFile};
use wire::stage::Stage;

use crate::containers;
use crate::dhcp::is_name;
use crate::handover;
use crate::network::Configured;
use crate::orders;
use crate::owners;
use crate::renew::{Held, LEASE_PATH};
use crate::report::Reporter;
use crate::selinux;
use crate::sys;

const DHCPCD: &str = "/etc/dhcpcd.conf";
const RESOLVED: &str = "/usr/lib/systemd/systemd-resolved";
/// How far the clock may be off before it is set, in milliseconds.
const CLOCK_TOLERANCE_MS: u64 = 30_000;

/// Writes everything that the node needs. What cannot be written is reported and left.
pub fn adopt(network: &Configured, document: Option<&Document>, report: &Reporter) {
    let note = |what: &str, result: io::Result<()>| {
        if let Err(error) = result {
            report.info(Stage::SwitchRoot, &format!("{what}: {error}"));
        }
    };
    note("network hand-over", hand_over(network));
    note("resolv.conf", resolv_conf(network));
    note("fstab", fstab());
    match document {
        Some(document) => {
            // First, so that what is written from now on is not younger than the beacon, by which
            // `slate node diff` tells it from what the system writes.
            note("clock", set_clock(document.unix_time_ms));
            note("identity", identity(document));
            note("hosts", hosts(&document.hosts));
            note("random seed", credit(&document.random_seed));
            note("agent", agent_unit());
            if let Some(key) = &document.control_key {
                note("control key", write(orders::KEY_PATH, 0o600, &key.0));
            }
            for file in &document.files {
                note(&file.path, deliver(file));
            }
            for capable in &document.capabilities {
                note(&capable.path, give(capable));
            }
        }
        None => note("hostname", dhcp_hostname(network)),
    }
    note("ssh host keys", host_keys_unit());
    match containers::mount_stores() {
        Ok(kept) => kept.iter().for_each(|store| {
            let text = format!("{store} holds files of the image, so no overlay can be made in it");
            report.info(Stage::SwitchRoot, &text);
        }),
        error => note("container stores", error.map(drop)),
    }
    note("SELinux labels", selinux::order());
}

fn hand_over(network: &Configured) -> io::Result<()> {
    for file in handover::files(network) {
        write(&file.path, file.mode, file.content.as_bytes())?;
    }
    if let Some(held) = Held::of(network) {
        write(LEASE_PATH, 0o644, held.line().as_bytes())?;
    }
    leave_alone(&network.link.name)
}

/// Keeps network managers away that cannot take over an interface as it is.
fn leave_alone(interface: &str) -> io::Result<()> {
    if Path::new("/sbin/ifup").exists() {
        let defaults = fs::read_to_string("/etc/default/networking").unwrap_or_default();
        for file in handover::ifupdown(interface, &defaults) {
            write(&file.path, file.mode, file.content.as_bytes())?;
        }
        // Started when the interface appears, whatever `networking.service` is told.
        let unit = format!("/run/systemd/system/ifup@{interface}.service");
        symlink("/dev/null", unit)?;
    }
    match fs::read_to_string(DHCPCD) {
        Ok(text) => write(DHCPCD, 0o644, handover::dhcpcd(interface, &text).as_bytes()),
        Err(_) => Ok(()),
    }
}

fn identity(document: &Document) -> io::Result<()> {
    if is_name(&document.hostname) {
        write(
            "/etc/hostname",
            0o644,
            format!("{}\n", document.hostname).as_bytes(),
        )?;
        rustix::system::sethostname(document.hostname.as_bytes())?;
    }
    if document.machine_id != [0; 16] {
        let hex = wire::hex::hexadecimal(&document.machine_id);
        write("/etc/machine-id", 0o444, format!("{hex}\n").as_bytes())?;
    }
    if let Some(key) = &document.ssh_host_key {
        write("/etc/ssh/ssh_host_ed25519_key", 0o600, key.as_bytes())?;
    }
    if let Some(key) = &document.ssh_host_pub {
        let line = format!("{}\n", key.trim_end());
        write("/etc/ssh/ssh_host_ed25519_key.pub", 0o644, line.as_bytes())?;
    }
    authorized_keys(&document.authorized_keys)?;
    if document.console_login {
        console_login()?;
    }
    Ok(())
}

/// A file's capabilities, in the node's own layer. A link that took the file's place gets none.
fn give(capable: &Capable) -> io::Result<()> {
    const NAME: &CStr = c"security.capability";
    Ok(lsetxattr(
        &capable.path,
        NAME,
        &capable.value,
        XattrFlags::empty(),
    )?)
}

/// A file of the server's, nobody else's for a moment.
fn deliver(file: &DocumentFile) -> io::Result<()> {
    let mode = file.mode & 0o7777;
    if file.owner.is_empty() {
        return write(&file.path, mode, &file.content);
    }
    let (user, group) = owners::find(&file.owner)?;
    write(&file.path, 0o600, &file.content)?;
    chown(&file.path, Some(user), Some(group))?;
    fs::set_permissions(&file.path, Permissions::from_mode(mode))
}

/// Every node by its name. What the image says comes first, so it counts where both know a name.
fn hosts(nodes: &[(Ipv4Addr, String)]) -> io::Result<()> {
    const PATH: &str = "/etc/hosts";
    if nodes.is_empty() {
        return Ok(());
    }
    let text = fs::read_to_string(PATH).unwrap_or_else(|_| "127.0.0.1 localhost\n".to_owned());
    write(PATH, 0o644, handover::hosts(&text, nodes).as_bytes())
}

fn authorized_keys(keys: &[String]) -> io::Result<()> {
    const PATH: &str = "/root/.ssh/authorized_keys";
    if keys.is_empty() {
        return Ok(());
    }
    let mut lines = fs::read_to_string(PATH).unwrap_or_default();
    if !lines.is_empty() && !lines.ends_with('\n') {
        lines.push('\n');
    }
    for key in keys.iter().filter(|key| !key.contains(['\n', '\r'])) {
        lines.push_str(key);
        lines.push('\n');
    }
    write(PATH, 0o600, lines.as_bytes())?;
    fs::set_permissions("/root/.ssh", Permissions::from_mode(0o700))
}

fn console_login() -> io::Result<()> {
    for unit in ["getty@", "serial-getty@", "console-getty"] {
        let line = match unit {
            "getty@" => "--noclear %I $TERM",
            "serial-getty@" => "--keep-baud 115200,57600,38400,9600 %I $TERM",
            _ => "--noclear --keep-baud console 115200,38400,9600 $TERM",
        };
        let text =
            format!("[Service]\nExecStart=\nExecStart=-/sbin/agetty --autologin root {line}\n");
        let path = format!("/run/systemd/system/{unit}.service.d/50-slate.conf");
        write(&path, 0o644, text.as_bytes())?;
    }
    Ok(())
}

/// Without an identity the image's own name stays, unless it has none and DHCP knows one.
fn dhcp_hostname(network: &Configured) -> io::Result<()> {
    let image = fs::read_to_string("/etc/hostname").unwrap_or_default();
    match &network.lease.hostname {
        Some(name) if matches!(image.trim(), "" | "localhost" | "localhost.localdomain") => {
            write("/etc/hostname", 0o644, format!("{name}\n").as_bytes())
        }
        _ => Ok(()),
    }
}

fn resolv_conf(network: &Configured) -> io::Result<()> {
    const PATH: &str = "/etc/resolv.conf";
    let link = fs::read_link(PATH).ok();
    let managed = match &link {
        Some(target) if target.to_string_lossy().contains("systemd/resolve") => {
            Path::new(RESOLVED).exists()
        }
        Some(target) => target.to_string_lossy().contains("NetworkManager"),
        None => false,
    };
    let text = fs::read_to_string(PATH).unwrap_or_default();
    let configured = text
        .lines()
        .any(|line| line.trim_start().starts_with("nameserver"));
    let wanted = !network.lease.dns.is_empty() || dhcpcd_lacks(PATH);
    if managed || configured || !wanted {
        return Ok(());
    }
    write(
        PATH,
        0o644,
        handover::resolv_conf(&network.lease).as_bytes(),
    )
}

/// Whether that file is missing to dhcpcd, whose unit on Debian does not start without it. An empty
/// one is as good as none to all others (resolv.conf(5)) but systemd-resolved, which would make a link.
fn dhcpcd_lacks(path: &str) -> bool {
    let is_there = fs::symlink_metadata(path).is_ok();
    !is_there && Path::new(DHCPCD).exists() && !Path::new(RESOLVED).exists()
}

/// The root is mounted already, whatever the image's fstab says of it.
fn fstab() -> io::Result<()> {
    let text = fs::read_to_string("/etc/fstab").unwrap_or_default();
    match handover::fstab_without_root(&text) {
        Some(changed) => write("/etc/fstab", 0o644, changed.as_bytes()),
        None => Ok(()),
    }
}

fn agent_unit() -> io::Result<()> {
    write(
        "/run/systemd/user/default.target.d/50-slate.conf",
        0o644,
        handover::USER_DROP_IN.as_bytes(),
    )?;
    let mut text = handover::AGENT_UNIT.to_owned();
    if selinux::is_on() {
        text += handover::AGENT_LABEL;
    }
    enable("slate-agent.service", &text)
}

/// An image has no host keys, and without an identity nobody else brings them.
fn host_keys_unit() -> io::Result<()> {
    let entries = fs::read_dir("/etc/ssh");
    let has_key = entries.into_iter().flatten().flatten().any(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with("ssh_host_") && name.ends_with("_key")
    });
    if has_key || !Path::new("/usr/bin/ssh-keygen").exists() {
        return Ok(());
    }
    enable("slate-host-keys.service", handover::HOST_KEYS_UNIT)
}

fn enable(name: &str, text: &str) -> io::Result<()> {
    let path = format!("/run/systemd/system/{name}");
    write(&path, 0o644, text.as_bytes())?;
    let wants = "/run/systemd/system/multi-user.target.wants";
    fs::create_dir_all(wants)?;
    symlink(path, format!("{wants}/{name}"))
}

fn credit(seed: &[u8; 32]) -> io::Result<()> {
    if *seed == [0; 32] {
        return Ok(());
    }
    let random = File::options().write(true).open("/dev/urandom")?;
    sys::credit_entropy(&random, seed)
}

fn set_clock(unix_time_ms: u64) -> io::Result<()> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let now_ms = u64::try_from(now.as_millis()).unwrap_or(0);
    if unix_time_ms == 0 || now_ms.abs_diff(unix_time_ms) < CLOCK_TOLERANCE_MS {
        return Ok(());
    }
    let time = Timespec {
        tv_sec: i64::try_from(unix_time_ms / 1000).map_err(io::Error::other)?,
        tv_nsec: i64::try_from(unix_time_ms % 1000 * 1_000_000).map_err(io::Error::other)?,
    };
    Ok(clock_settime(ClockId::Realtime, time)?)
}

/// Writes a file with exactly this mode, never readable wider than that, and its directories. It
/// takes the place of what was there: a symbolic link's target stays as it is.
pub fn write(path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
    let path = Path::new(path);
    selinux::note(path);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(content)
}
