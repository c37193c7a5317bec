//! Which packages a version has installed, by its own package manager's records.

pub mod rpm;

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::tree::StoredTree;

/// Where dpkg keeps its records.
const DPKG: &str = "var/lib/dpkg/status";

/// A package's name, with the architecture where it is told, and its version.
pub type Packages = BTreeMap<String, String>;

/// The packages that dpkg and rpm have installed; none where neither ever ran.
pub fn packages(tree: &StoredTree) -> Result<Packages> {
    let mut packages = match tree.read_file(DPKG) {
        Ok(status) => parse(&String::from_utf8_lossy(&status)),
        Err(Error::NoSuchFile { .. } | Error::NotADirectory { .. }) => Packages::new(),
        Err(error) => return Err(error),
    };
    rpm::add(tree, &mut packages)?;
    Ok(packages)
}

/// The paragraphs of dpkg's status file (deb822(5)) that are of installed packages.
fn parse(status: &str) -> Packages {
    let field = |paragraph: &str, name: &str| {
        paragraph.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name)
                .then(|| value.trim().to_owned())
        })
    };
    let package = |paragraph: &str| {
        let installed = field(paragraph, "Status")?.ends_with(" installed");
        let name = field(paragraph, "Package")?;
        let architecture = field(paragraph, "Architecture").unwrap_or_default();
        let version = field(paragraph, "Version")?;
        installed.then(|| (format!("{name}:{architecture}"), version))
    };
    status.split("\n\n").filter_map(package).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn installed_packages_are_read_and_others_are_not() {
        let status = "Package: bash\nStatus: install ok installed\nArchitecture: amd64\nVersion: 5.2-1\nDescription: shell\n Version: not a field\n\n\
            Package: gone\nStatus: deinstall ok config-files\nArchitecture: all\nVersion: 1\n\n\
            Package: bash\nStatus: install ok installed\nArchitecture: i386\nVersion: 5.2-2\n\n";
        let found = parse(status);
        let found: Vec<_> = found
            .iter()
            .map(|(a, b)| (a.as_str(), b.as_str()))
            .collect();
        assert_eq!(found, [("bash:amd64", "5.2-1"), ("bash:i386", "5.2-2")]);
    }
}
