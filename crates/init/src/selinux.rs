//! SELinux, where the kernel has it on and the image has a policy.
//!
//! The policy is loaded before the root is mounted for good, although systemd loads it too: older
//! kernels, 6.1 among them, take the labels of an NFS mount only if they had a policy when it was made,
//! and the upper layer's directories need labels that the kernel knows. The rest is systemd's: it loads the
//! policy again, says whether it is enforced, and labels `/dev`, `/run` and what is listed for it
//! (`/run/systemd/relabel-extra.d`, since version 245).

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{XattrFlags, getxattr, setxattr};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use crate::adopt;

/// The kernel's own place for it, which is not there where SELinux is off.
const FILE_SYSTEM: &str = "/sys/fs/selinux";
/// Where the policy is chosen (selinux_config(5)).
const CONFIGURATION: &str = "etc/selinux/config";
const LABEL: &str = "security.selinux";
/// What systemd is to label.
const LIST: &str = "/run/systemd/relabel-extra.d/slate.relabel";

static LOADED: AtomicBool = AtomicBool::new(false);
static FRESH: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Whether a policy was loaded.
pub fn is_on() -> bool {
    LOADED.load(Ordering::Relaxed)
}

/// Loads the policy of the image in `root`; answers which, if the kernel and the image want any.
pub fn load(root: &str) -> io::Result<Option<PathBuf>> {
    if !Path::new(FILE_SYSTEM).is_dir() {
        return Ok(None);
    }
    let configuration = fs::read_to_string(format!("{root}/{CONFIGURATION}")).unwrap_or_default();
    let Some(kind) = kind(&configuration) else {
        return Ok(None);
    };
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    match mount("selinuxfs", FILE_SYSTEM, "selinuxfs", flags, c"") {
        // An attempt to mount the root that failed has been here.
        Ok(()) | Err(Errno::BUSY) => {}
        Err(error) => return Err(error.into()),
    }
    let newest = fs::read_to_string(format!("{FILE_SYSTEM}/policyvers"))?;
    let newest = newest.trim().parse().map_err(io::Error::other)?;
    let directory = format!("{root}/etc/selinux/{kind}/policy");
    let names = fs::read_dir(&directory)?.filter_map(|it| it.ok()?.file_name().into_string().ok());
    let Some(version) = best(names, newest) else {
        let text = format!("{directory} has none of a version up to {newest}");
        return Err(io::Error::other(text));
    };
    let path = PathBuf::from(format!("{directory}/policy.{version}"));
    let policy = fs::read(&path)?;
    let mut load = File::options()
        .write(true)
        .open(format!("{FILE_SYSTEM}/load"))?;
    // The kernel takes it in one piece or not at all.
    if load.write(&policy)? != policy.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    LOADED.store(true, Ordering::Relaxed);
    Ok(Some(path))
}

/// The policy that a configuration chooses, unless it switches SELinux off.
fn kind(configuration: &str) -> Option<&str> {
    let value = |wanted: &str| {
        let lines = configuration.lines();
        let pairs = lines.filter_map(|line| line.trim().split_once('='));
        pairs
            .filter(|(key, _)| key.trim() == wanted)
            .map(|(_, value)| value.trim())
            .next_back()
    };
    let kind = value("SELINUXTYPE").filter(|it| !it.is_empty() && !it.contains('/'))?;
    (value("SELINUX") != Some("disabled")).then_some(kind)
}

/// The newest version that the kernel reads, of files called `policy.VERSION`.
fn best(names: impl Iterator<Item = String>, newest: u32) -> Option<u32> {
    names
        .filter_map(|name| name.strip_prefix("policy.")?.parse().ok())
        .filter(|version| *version <= newest)
        .max()
}

/// Has this process, which must have one thread, be what systemd is going to be under the policy. An
/// overlay opens its layers' files as whoever mounted it, and a policy lets programs use what systemd
/// has opened, as much of their own code as they map, but nothing that the kernel's domain has.
pub fn become_init(systemd: &str) -> io::Result<()> {
    const OWN: &str = "/proc/self/attr/current";
    let mut label = [0; 4096];
    let length = getxattr(systemd, LABEL, &mut label)?;
    let label = String::from_utf8_lossy(&label[..length]).into_owned();
    let own = fs::read_to_string(OWN)?;
    let class = fs::read_to_string(format!("{FILE_SYSTEM}/class/process/index"))?;
    let plain = |text: &str| text.trim_end_matches(['\0', '\n']).to_owned();
    let question = format!("{} {} {}", plain(&own), plain(&label), plain(&class));
    // A question is one write; the answer is read from where it was asked.
    let mut create = File::options()
        .read(true)
        .write(true)
        .open(format!("{FILE_SYSTEM}/create"))?;
    create.write_all(question.as_bytes())?;
    let mut answer = String::new();
    create.read_to_string(&mut answer)?;
    fs::write(OWN, plain(&answer))
}

/// Gives a file of the upper layer the label of the one that it stands before.
pub fn copy_label(from: &str, to: &str) {
    let mut label = [0; 4096];
    // Without labels there is nothing to copy.
    if let Ok(length) = getxattr(from, LABEL, &mut label) {
        let _ = setxattr(to, LABEL, &label[..length], XattrFlags::empty());
    }
}

/// Gives `/run`, and what is in it already, the label of the image's own: what is made there from
/// now on inherits it. systemd adds those that the policy names.
pub fn label_run(root: &str) {
    for place in ["/run", "/run/slate", "/run/slate/lower"] {
        copy_label(&format!("{root}/run"), place);
    }
}

/// Notes a path that is going to be written. With directories that are missing, their uppermost.
pub fn note(path: &Path) {
    // systemd labels all of /run.
    if !is_on() || path.starts_with("/run") {
        return;
    }
    let missing = path.ancestors().take_while(|it| !it.exists()).last();
    let mut fresh = FRESH.lock().unwrap_or_else(|broken| broken.into_inner());
    fresh.push(missing.unwrap_or(path).to_owned());
}

/// Has systemd label what was noted.
pub fn order() -> io::Result<()> {
    if !is_on() {
        return Ok(());
    }
    let fresh = FRESH.lock().unwrap_or_else(|broken| broken.into_inner());
    let lines = fresh.iter().filter_map(|path| path.to_str());
    let text: String = lines
        .filter(|line| !line.contains('\n'))
        .map(|line| format!("{line}\n"))
        .collect();
    adopt::write(LIST, 0o644, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_is_the_configuration_s() {
        let text = "# SELINUXTYPE=other\nSELINUX=enforcing\n SELINUXTYPE = targeted\n";
        assert_eq!(kind(text), Some("targeted"));
        for text in [
            "",
            "SELINUX=enforcing\n",
            "SELINUX=disabled\nSELINUXTYPE=targeted\n",
            "SELINUXTYPE=../x\n",
            "SELINUXTYPE=\n",
        ] {
            assert_eq!(kind(text), None, "{text:?}");
        }
    }

    #[test]
    fn the_newest_version_that_the_kernel_reads_is_loaded() {
        let best = |newest| {
            let names = ["policy.31", "policy.33", "policy.34.bak", "x.40", "policy."];
            best(names.map(str::to_owned).into_iter(), newest)
        };
        assert_eq!(best(33), Some(33));
        assert_eq!(best(32), Some(31));
        assert_eq!(best(30), None);
    }
}
