//! Where modules, firmware and the kernel's configuration are read.

use std::io;
use std::path::{Path, PathBuf};

use super::index::{Index, Texts};
use super::modprobe::Modprobe;
use super::module::{self, FILE_BYTES_MAX};
use super::{Compression, Encoding, Error};
use crate::files::{Files, Root};

/// Most bytes of one of depmod's files or of a kernel's configuration.
const TEXT_BYTES_MAX: u64 = 64 << 20;

/// The modules of one kernel, in an image or in a directory.
#[derive(Clone)]
pub struct ModuleSource<'a> {
    root: Root<'a>,
    kernel: String,
    modules: PathBuf,
    firmware: Option<PathBuf>,
    configs: Vec<PathBuf>,
}

impl<'a> ModuleSource<'a> {
    /// A kernel of an image: /lib/modules, /lib/firmware and /boot as a node sees them.
    pub fn in_image(files: &'a dyn Files, kernel: &str) -> Self {
        let modules = PathBuf::from("lib/modules").join(kernel);
        Self {
            root: Root::new(files),
            kernel: kernel.to_owned(),
            configs: vec![
                PathBuf::from(format!("boot/config-{kernel}")),
                modules.join("config"),
            ],
            modules,
            firmware: Some("lib/firmware".into()),
        }
    }

    /// A directory that holds modules.dep and the modules of one kernel, without firmware.
    pub fn in_directory(files: &'a dyn Files, kernel: &str) -> Self {
        Self {
            root: Root::new(files),
            kernel: kernel.to_owned(),
            modules: PathBuf::new(),
            firmware: None,
            configs: vec!["config".into()],
        }
    }

    /// The kernel's release.
    pub fn kernel(&self) -> &str {
        &self.kernel
    }

    /// What the image's configuration says of modules; nothing where there is only a directory of them.
    pub(super) fn modprobe(&self) -> Result<Modprobe, Error> {
        match self.firmware {
            Some(_) => Modprobe::read(&self.root),
            None => Ok(Modprobe::default()),
        }
    }

    /// What depmod knows, and which modules go before others by the configuration.
    pub(super) fn index(&self, modprobe: &Modprobe) -> Result<Index, Error> {
        let dep = self
            .depmod("modules.dep")?
            .ok_or_else(|| Error::NoModules {
                kernel: self.kernel.clone(),
                looked_for: self.modules.join("modules.dep"),
            })?;
        let optional = |name| Ok::<_, Error>(self.depmod(name)?.unwrap_or_default());
        Ok(Index::parse(&Texts {
            dep,
            alias: optional("modules.alias")?,
            softdep: optional("modules.softdep")? + &modprobe.softdep,
            builtin: optional("modules.builtin")?,
        }))
    }

    /// A module's content, decompressed.
    pub(super) fn module(&self, relative: &Path) -> Result<Vec<u8>, Error> {
        let path = self.modules.join(relative);
        let missing = || Error::MissingModule {
            kernel: self.kernel.clone(),
            path: path.clone(),
        };
        let bytes = self.file(&path)?.ok_or_else(missing)?;
        let bytes = module::decompress(&path, bytes).map_err(Error::reading(&path))?;
        if module::is_module(&bytes) {
            Ok(bytes)
        } else {
            Err(Error::NotAModule { path })
        }
    }

    /// Where firmware lies, if the source has any.
    pub(super) fn firmware_root(&self) -> Option<(&Root<'a>, &Path)> {
        let top = self.firmware.as_deref()?;
        Some((&self.root, top))
    }

    /// A firmware file, decompressed; `None` if the image has none of that name. Searched as the kernel does it
    /// (Documentation/driver-api/firmware/fw_search_path.rst).
    pub(super) fn firmware(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        let Some(top) = &self.firmware else {
            return Ok(None);
        };
        let release = Path::new(&self.kernel);
        for directory in [
            &Path::new("updates").join(release),
            Path::new("updates"),
            release,
            Path::new(""),
        ] {
            for extension in ["", ".zst", ".xz"] {
                let path = top.join(directory).join(format!("{name}{extension}"));
                if let Some(bytes) = self.file(&path)? {
                    return module::decompress(&path, bytes)
                        .map_err(Error::reading(&path))
                        .map(Some);
                }
            }
        }
        Ok(None)
    }

    /// The best compression that the kernel undoes: by its configuration, else by its age.
    pub(super) fn compression(&self) -> Result<Compression, Error> {
        for best in [Compression::Zstd, Compression::Gzip] {
            if self.undoes(best)? {
                return Ok(best);
            }
        }
        Ok(Compression::None)
    }

    /// Whether the kernel undoes a compression, by its configuration, else by its age.
    pub(super) fn undoes(&self, compression: Compression) -> Result<bool, Error> {
        let encoding = match compression {
            Compression::Zstd if self.config()?.is_none() => return Ok(has_zstd(&self.kernel)),
            Compression::Zstd => Encoding::Zstd,
            Compression::Gzip => Encoding::Gzip,
            Compression::None => return Ok(true),
        };
        self.unpacks(encoding)
    }

    /// Whether the kernel unpacks an initramfs of this encoding, as far as its configuration tells.
    pub fn unpacks(&self, encoding: Encoding) -> Result<bool, Error> {
        let (Some(option), Some(config)) = (encoding.option(), self.config()?) else {
            return Ok(true);
        };
        let wanted = format!("{option}=y");
        Ok(config.lines().any(|line| line == wanted))
    }

    /// The kernel's configuration, where the source has it.
    fn config(&self) -> Result<Option<String>, Error> {
        for path in &self.configs {
            let config = self.root.text(path, TEXT_BYTES_MAX);
            if let Some(config) = config.map_err(Error::reading(path))? {
                return Ok(Some(config));
            }
        }
        Ok(None)
    }

    fn depmod(&self, name: &str) -> Result<Option<String>, Error> {
        let path = self.modules.join(name);
        self.root
            .text(&path, TEXT_BYTES_MAX)
            .map_err(Error::reading(&path))
    }

    fn file(&self, path: &Path) -> Result<Option<Vec<u8>>, Error> {
        self.root
            .read(path, FILE_BYTES_MAX)
            .map_err(Error::reading(path))
    }
}

impl Error {
    pub(super) fn reading(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Read {
            path: path.to_owned(),
            source,
        }
    }
}

/// Distributions turned zstd on when Linux 5.9 brought it.
fn has_zstd(release: &str) -> bool {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    version >= (5, 9)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::HostDir;

    #[test]
    fn compression_follows_configuration_and_age() {
        let best = |release: &str, config: Option<&str>| {
            let top = tempfile::tempdir().unwrap();
            if let Some(config) = config {
                std::fs::write(top.path().join("config"), config).unwrap();
            }
            let files = HostDir::new(top.path());
            ModuleSource::in_directory(&files, release)
                .compression()
                .unwrap()
        };
        for (config, expected) in [
            ("CONFIG_RD_GZIP=y\nCONFIG_RD_ZSTD=y\n", Compression::Zstd),
            (
                "CONFIG_RD_GZIP=y\n# CONFIG_RD_ZSTD is not set\n",
                Compression::Gzip,
            ),
            // An archive as it is, is what every kernel takes.
            ("CONFIG_RD_XZ=y\n", Compression::None),
        ] {
            assert_eq!(best("6.1.0", Some(config)), expected, "{config}");
        }
        for (release, expected) in [
            ("6.1.0-18-amd64", Compression::Zstd),
            ("5.9.0", Compression::Zstd),
            ("5.8.19", Compression::Gzip),
            ("4.18.0-553.el8.x86_64", Compression::Gzip),
            ("", Compression::Gzip),
        ] {
            assert_eq!(best(release, None), expected, "{release}");
        }
    }
}
