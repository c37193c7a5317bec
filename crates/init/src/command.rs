//! `systemctl`, `poweroff`, `reboot` and `halt`, as root finds them first on its `PATH`.
//!
//! To ask for a shutdown is the one thing that must be possible on a node whose server is dead, and
//! nobody is told of a shutdown before it is asked for. The distribution's command lies on the
//! server, with 13 MB of libraries. So this program stands before it: with a server that answers, and
//! for all other purposes, it only hands on.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::boot::AGENT_PATH;
use crate::last;
use crate::sys;

/// Before the distribution's own on the `PATH` of root and of sudo(8).
const PLACE: &str = "/usr/local/sbin";
/// The distribution's own; the others are links to it.
const SYSTEMCTL: &str = "/usr/bin/systemctl";
const NAMES: [&str; 4] = ["systemctl", "poweroff", "reboot", "halt"];

/// Puts this program before the distribution's. Answers the paths at which it stands.
pub fn install() -> io::Result<Vec<String>> {
    fs::create_dir_all(PLACE)?;
    let paths = NAMES.map(|name| format!("{PLACE}/{name}")).to_vec();
    for path in &paths {
        match symlink(AGENT_PATH, path) {
            // Somebody's own.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => result?,
        }
    }
    Ok(paths)
}

/// The command that this program was called as, if it is one of them.
pub fn called() -> Option<&'static str> {
    let name = std::env::args_os().next().unwrap_or_default();
    let name = Path::new(&name).file_name()?.to_owned();
    NAMES.into_iter().find(|it| name == **it)
}

/// Hands on to the distribution's command, or asks process 1 for a shutdown.
pub fn main(name: &'static str) -> ! {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let words: Vec<_> = arguments.iter().map(|it| it.to_string_lossy()).collect();
    let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
    if let Some(signal) = wanted(name, &words)
        && !last::server_answers()
    {
        eprintln!("{name}: the boot server does not answer; asking process 1 directly");
        let asked = sys::ask_process_1(signal);
        if let Err(error) = &asked {
            eprintln!("{name}: {error}");
        }
        std::process::exit(i32::from(asked.is_err()));
    }
    let error = Command::new(SYSTEMCTL).arg0(name).args(arguments).exec();
    eprintln!("{SYSTEMCTL}: {error}");
    std::process::exit(127)
}

/// Which of its signals tells process 1 the same (systemd(1)): its number above SIGRTMIN.
fn wanted(name: &str, words: &[&str]) -> Option<i32> {
    let verb = match (name, words) {
        ("systemctl", [verb]) => *verb,
        ("systemctl", _) => return None,
        (verb, []) => verb,
        _ => return None,
    };
    match verb {
        "halt" => Some(3),
        "poweroff" => Some(4),
        "reboot" => Some(5),
        "kexec" => Some(6),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_shutdowns_are_ours() {
        assert_eq!(wanted("systemctl", &["poweroff"]), Some(4));
        assert_eq!(wanted("reboot", &[]), Some(5));
        assert_eq!(wanted("systemctl", &["status"]), None);
        assert_eq!(wanted("systemctl", &["start", "reboot"]), None);
        assert_eq!(wanted("systemctl", &[]), None);
        assert_eq!(wanted("reboot", &["--help"]), None);
    }
}
