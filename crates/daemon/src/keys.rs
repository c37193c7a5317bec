//! The one key file, and everything derived from it. A copy of it and of the images is all that a
//! second server needs to stand in for the first.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use ssh_key::private::{Ed25519Keypair, KeypairData};
use ssh_key::{LineEnding, PrivateKey};
use wire::mac::Mac;

use crate::Error;

/// Bytes of the key.
const KEY_BYTES: usize = 32;

/// The server's secret.
#[derive(Clone)]
pub struct Keys {
    root: [u8; KEY_BYTES],
}

/// A node's SSH host key.
pub struct HostKey {
    /// OpenSSH's private key format, PEM.
    pub private: String,
    /// The public line, `ssh-ed25519 AAAA…`.
    pub public: String,
}

impl Keys {
    /// Reads `keys/server.key` below the state directory; makes it at the first start.
    pub fn open(state_dir: &Path) -> Result<Keys, Error> {
        let folder = state_dir.join("keys");
        fs::create_dir_all(&folder)
            .map_err(|error| Error::io(format!("making {}", folder.display()), error))?;
        let path = folder.join("server.key");
        match fs::metadata(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => make(&folder, &path)?,
            Err(error) => return Err(Error::io(format!("reading {}", path.display()), error)),
            Ok(meta) if meta.mode() & 0o077 != 0 => {
                let got = format!("mode {:03o}", meta.mode() & 0o777);
                return Err(Error::KeyFile {
                    path,
                    expected: "mode 600".into(),
                    got,
                });
            }
            Ok(_) => {}
        }
        read(path)
    }

    /// 32 bytes for one purpose and one machine.
    fn derive(&self, purpose: &str, about: &[u8]) -> [u8; 32] {
        let mut hmac =
            Hmac::<Sha256>::new_from_slice(&self.root).expect("HMAC takes keys of every length");
        hmac.update(purpose.as_bytes());
        hmac.update(&[0]);
        hmac.update(about);
        hmac.finalize().into_bytes().into()
    }

    /// Seals what NFS clients hold.
    pub fn nfs(&self) -> [u8; 32] {
        self.derive("nfs", &[])
    }

    /// A node's machine-id, shaped as a random UUID like systemd's own (machine-id(5)).
    pub fn machine_id(&self, mac: Mac) -> [u8; 16] {
        let derived = self.derive("machine-id", &mac.0);
        let mut id: [u8; 16] = derived[..16].try_into().expect("16 of 32 bytes");
        id[6] = id[6] & 0x0f | 0x40;
        id[8] = id[8] & 0x3f | 0x80;
        id
    }

    /// A node's SSH host key, the same in every boot.
    pub fn host_key(&self, mac: Mac, hostname: &str) -> HostKey {
        let pair = Ed25519Keypair::from_seed(&self.derive("ssh-host-key", &mac.0));
        let key = PrivateKey::new(KeypairData::Ed25519(pair), hostname)
            .expect("an unencrypted key is complete");
        HostKey {
            private: key
                .to_openssh(LineEnding::LF)
                .expect("an Ed25519 key can be written")
                .to_string(),
            public: key
                .public_key()
                .to_openssh()
                .expect("an Ed25519 key can be written"),
        }
    }
}

/// Random bytes from the kernel.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the kernel gives random bytes");
    bytes
}

/// Written aside and renamed: a power cut leaves a whole key or none.
fn make(folder: &Path, path: &Path) -> Result<(), Error> {
    let aside = folder.join("server.key.new");
    let write = || -> std::io::Result<()> {
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&aside)?;
        file.write_all(&random::<KEY_BYTES>())?;
        file.sync_all()?;
        fs::rename(&aside, path)?;
        fs::File::open(folder)?.sync_all()
    };
    write().map_err(|error| Error::io(format!("writing {}", path.display()), error))
}

fn read(path: PathBuf) -> Result<Keys, Error> {
    let mut bytes = Vec::new();
    fs::File::open(&path)
        .and_then(|file| file.take(KEY_BYTES as u64 + 1).read_to_end(&mut bytes))
        .map_err(|error| Error::io(format!("reading {}", path.display()), error))?;
    let got = format!("{} bytes", bytes.len());
    let expected = format!("{KEY_BYTES} bytes");
    let root = bytes.try_into().map_err(|_| Error::KeyFile {
        path,
        expected,
        got,
    })?;
    Ok(Keys { root })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn keys_last_and_differ_by_machine() {
        let dir = tempfile::tempdir().unwrap();
        let (first, again) = (
            Keys::open(dir.path()).unwrap(),
            Keys::open(dir.path()).unwrap(),
        );
        let (a, b) = (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]));
        assert_eq!(first.machine_id(a), again.machine_id(a));
        assert_ne!(first.machine_id(a), first.machine_id(b));
        assert_eq!(first.host_key(a, "n").public, again.host_key(a, "n").public);
        assert_ne!(first.host_key(a, "n").public, first.host_key(b, "n").public);
        let parsed = PrivateKey::from_openssh(first.host_key(a, "n").private).unwrap();
        assert!(
            first
                .host_key(a, "n")
                .public
                .starts_with(&parsed.public_key().to_openssh().unwrap())
        );
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        Keys::open(dir.path()).unwrap();
        let path = dir.path().join("keys/server.key");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(Keys::open(dir.path()), Err(Error::KeyFile { .. })));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, b"short").unwrap();
        assert!(matches!(Keys::open(dir.path()), Err(Error::KeyFile { .. })));
    }
}
