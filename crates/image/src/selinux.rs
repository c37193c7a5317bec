//! What an image brings for SELinux: its policy, and labels on its files.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use crate::files::{Files, Root};

/// The extended attribute that holds a file's label.
pub const LABEL: &str = "security.selinux";
/// Where the policy is chosen (selinux_config(5)).
const CONFIGURATION: &str = "/etc/selinux/config";
/// The longest configuration that is read, in bytes.
const CONFIGURATION_MAX: u64 = 64 << 10;

/// Why nodes cannot run an image with SELinux.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Lack {
    /// There is no policy.
    #[error("the image has no SELinux policy")]
    Policy,
    /// There may be one, and the configuration switches it off.
    #[error("the image's /etc/selinux/config says SELINUX=disabled")]
    Will,
    /// There is a policy, and files are not labelled for it.
    #[error("the image has a SELinux policy, and its files have no labels")]
    Labels,
}

/// What an image lacks to run with SELinux.
pub fn lack(files: &dyn Files) -> io::Result<Option<Lack>> {
    let root = Root::new(files);
    let directory = match policy(root)? {
        Ok(directory) => directory,
        Err(lack) => return Ok(Some(lack)),
    };
    let versions = root.names(format!("{directory}/policy"))?;
    let has_version = |name: &std::ffi::OsString| name.to_string_lossy().starts_with("policy.");
    if !versions.iter().any(has_version) {
        return Ok(Some(Lack::Policy));
    }
    Ok((!is_labelled(files)?).then_some(Lack::Labels))
}

/// The file contexts of the image's own policy, where it has one that is not switched off.
pub fn contexts(files: &dyn Files) -> io::Result<Option<String>> {
    let root = Root::new(files);
    let Ok(directory) = policy(root)? else {
        return Ok(None);
    };
    let contexts = format!("{directory}/contexts/files/file_contexts");
    Ok(root.is_file(&contexts)?.then_some(contexts))
}

/// Whether the image's files have labels, by directories that no change makes anew: its top, and
/// `/usr`. An archive may lack an entry for the top.
pub fn is_labelled(files: &dyn Files) -> io::Result<bool> {
    for path in ["", "usr"].map(Path::new) {
        if files.info(path)?.is_none() || files.xattr(path, LABEL)?.is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The directory of the policy that the image's configuration chooses.
fn policy(root: Root<'_>) -> io::Result<Result<String, Lack>> {
    let Some((path, _)) = root.resolve(CONFIGURATION)? else {
        return Ok(Err(Lack::Policy));
    };
    let Ok(text) = root.files().read_up_to(&path, CONFIGURATION_MAX) else {
        return Ok(Err(Lack::Policy));
    };
    let text = String::from_utf8_lossy(&text);
    let lines = text.lines().filter_map(|line| line.trim().split_once('='));
    let values: BTreeMap<&str, &str> = lines
        .map(|(key, value)| (key.trim(), value.trim()))
        .collect();
    if values.get("SELINUX") == Some(&"disabled") {
        return Ok(Err(Lack::Will));
    }
    let kind = values
        .get("SELINUXTYPE")
        .filter(|it| !it.is_empty() && !it.contains('/') && **it != "..");
    Ok(kind
        .map(|kind| format!("/etc/selinux/{kind}"))
        .ok_or(Lack::Policy))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::files::HostDir;

    fn write(top: &Path, path: &str, text: &str) {
        let path = top.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn a_policy_that_is_there_and_not_off_is_found() {
        let top = tempfile::tempdir().unwrap();
        let files = HostDir::new(top.path());
        let seen = || (lack(&files).unwrap(), contexts(&files).unwrap());
        assert_eq!(seen(), (Some(Lack::Policy), None));
        let configuration = "etc/selinux/config";
        write(
            top.path(),
            configuration,
            "# x\nSELINUX=permissive\nSELINUXTYPE=default\n",
        );
        assert_eq!(seen(), (Some(Lack::Policy), None));
        write(
            top.path(),
            "etc/selinux/default/contexts/files/file_contexts",
            "",
        );
        let found = Some("/etc/selinux/default/contexts/files/file_contexts".to_owned());
        assert_eq!(seen(), (Some(Lack::Policy), found.clone()));
        write(top.path(), "etc/selinux/default/policy/policy.33", "");
        // Nobody has labelled this directory.
        assert_eq!(seen(), (Some(Lack::Labels), found));
        write(
            top.path(),
            configuration,
            "SELINUX=disabled\nSELINUXTYPE=default\n",
        );
        assert_eq!(seen(), (Some(Lack::Will), None));
        for kind in ["../../x", "..", ""] {
            let text = format!("SELINUXTYPE={kind}\n");
            write(top.path(), configuration, &text);
            assert_eq!(seen(), (Some(Lack::Policy), None), "{kind:?}");
        }
    }
}
