//! What an image's configuration says of modules: modprobe.d(5), as far as an initramfs heeds it.
//!
//! `options`, `blacklist` and `softdep` are obeyed, and `install NAME /bin/false` (or `/bin/true`), by
//! which people forbid a module. Other commands need a shell, or name what no device asks for.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use wire::modtable::{canonical, is_name, is_options};

use super::Error;
use crate::files::Root;

/// Most bytes of one file.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Where the files lie: of two with one name the first counts.
const FOLDERS: [&str; 4] = [
    "etc/modprobe.d",
    "usr/local/lib/modprobe.d",
    "usr/lib/modprobe.d",
    "lib/modprobe.d",
];

/// The configuration.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Modprobe {
    /// Parameters by module.
    pub(super) options: BTreeMap<String, String>,
    /// Modules that are not loaded because a device is there.
    pub(super) blacklisted: BTreeSet<String>,
    /// Lines for [`super::index::Texts`].
    pub(super) softdep: String,
}

impl Modprobe {
    /// Reads an image's files, in the order of their names.
    pub(super) fn read(root: &Root<'_>) -> Result<Self, Error> {
        let mut files: BTreeMap<String, PathBuf> = BTreeMap::new();
        for folder in FOLDERS {
            let names = root
                .names(folder)
                .map_err(Error::reading(folder.as_ref()))?;
            for name in names.into_iter().filter_map(|name| name.into_string().ok()) {
                if name.ends_with(".conf") {
                    let path = PathBuf::from(folder).join(&name);
                    files.entry(name).or_insert(path);
                }
            }
        }
        let mut read = Self::default();
        for path in files.values() {
            let text = root
                .text(path, FILE_BYTES_MAX)
                .map_err(Error::reading(path))?;
            read.take(&text.unwrap_or_default());
        }
        Ok(read)
    }

    /// One file. A backslash at the end of a line joins it with the next.
    fn take(&mut self, text: &str) {
        for line in text.replace("\\\n", " ").lines() {
            self.line(line.trim());
        }
    }

    fn line(&mut self, line: &str) {
        let mut words = line.splitn(3, char::is_whitespace);
        let (Some(command), Some(name)) = (words.next(), words.next()) else {
            return;
        };
        let (name, rest) = (canonical(name), words.next().unwrap_or_default().trim());
        if !is_name(&name) {
            return;
        }
        match (command, rest) {
            ("options", text) if is_options(text) => {
                let options = self.options.entry(name).or_default();
                let joined = format!("{options} {text}");
                if is_options(joined.trim()) {
                    *options = joined.trim().to_owned();
                }
            }
            ("blacklist", _) | ("install", "/bin/false" | "/bin/true") => {
                self.blacklisted.insert(name);
            }
            ("softdep", _) => self.softdep += &format!("{line}\n"),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::HostDir;

    #[test]
    fn files_are_read_as_modprobe_reads_them() {
        let top = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = top.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        put(
            "etc/modprobe.d/site.conf",
            "# options igb x=1\noptions e1000e\tInterruptThrottleRate=3 \\\n  debug=2\n\
             blacklist be2net\ninstall bnx2 /bin/false\ninstall tg3 /sbin/modprobe -i tg3\n\
             options virtio-net napi_tx=0\nsoftdep igb pre: dca\noptions\noptions ../x y=1\n",
        );
        put("etc/modprobe.d/zz.conf", "options virtio_net csum=0\n");
        put("etc/modprobe.d/README", "blacklist igb\n");
        put("usr/lib/modprobe.d/site.conf", "blacklist e1000e\n");
        put("usr/lib/modprobe.d/other.conf", "blacklist r8169\n");
        let read = Modprobe::read(&Root::new(&HostDir::new(top.path()))).unwrap();
        let options = [
            ("e1000e", "InterruptThrottleRate=3    debug=2"),
            ("virtio_net", "napi_tx=0 csum=0"),
        ];
        let options = options.map(|(name, text)| (name.to_owned(), text.to_owned()));
        assert_eq!(read.options, options.into());
        let blacklisted = ["be2net", "bnx2", "r8169"].map(str::to_owned);
        assert_eq!(
            read.blacklisted,
            blacklisted.into(),
            "the first site.conf counts"
        );
        assert_eq!(read.softdep, "softdep igb pre: dca\n");
    }
}
