//! Digests of blobs: `ALGORITHM:HEX` (OCI image specification, descriptor.md, "Digests").

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256, Sha512};
use wire::hex::hexadecimal;

/// The digest of a blob. Only the two registered algorithms, with their lengths, in lower case: so
/// it can be part of a path.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct BlobDigest {
    algorithm: Algorithm,
    hex: String,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Algorithm {
    Sha256,
    Sha512,
}

/// Text that is no digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected a digest, sha256: and 64 or sha512: and 128 lower-case hexadecimal digits, got {got:?}"
)]
pub struct ParseBlobDigestError {
    /// The text that was refused, cut to 150 characters.
    pub got: String,
}

impl Algorithm {
    const ALL: [Algorithm; 2] = [Algorithm::Sha256, Algorithm::Sha512];

    fn name(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    fn digits(self) -> usize {
        match self {
            Algorithm::Sha256 => 64,
            Algorithm::Sha512 => 128,
        }
    }
}

impl BlobDigest {
    /// The SHA-256 that these digits write.
    pub fn sha256(hex: &str) -> Result<BlobDigest, ParseBlobDigestError> {
        format!("sha256:{hex}").parse()
    }

    /// The SHA-256 of these bytes.
    pub fn of(bytes: &[u8]) -> BlobDigest {
        BlobDigest {
            algorithm: Algorithm::Sha256,
            hex: hexadecimal(&Sha256::digest(bytes)),
        }
    }

    /// Whether it is that of these bytes.
    pub fn is_of(&self, bytes: &[u8]) -> bool {
        let hex = match self.algorithm {
            Algorithm::Sha256 => hexadecimal(&Sha256::digest(bytes)),
            Algorithm::Sha512 => hexadecimal(&Sha512::digest(bytes)),
        };
        hex == self.hex
    }

    /// Where an image layout has the blob (image-layout.md, "Blobs").
    pub fn path(&self) -> String {
        format!("blobs/{}/{}", self.algorithm.name(), self.hex)
    }
}

impl fmt::Display for BlobDigest {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}", self.algorithm.name(), self.hex)
    }
}

impl fmt::Debug for BlobDigest {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

impl From<BlobDigest> for String {
    fn from(digest: BlobDigest) -> String {
        digest.to_string()
    }
}

impl TryFrom<String> for BlobDigest {
    type Error = ParseBlobDigestError;

    fn try_from(text: String) -> Result<BlobDigest, ParseBlobDigestError> {
        text.parse()
    }
}

impl FromStr for BlobDigest {
    type Err = ParseBlobDigestError;

    fn from_str(text: &str) -> Result<BlobDigest, ParseBlobDigestError> {
        let parsed = text.split_once(':').and_then(|(name, hex)| {
            let algorithm = Algorithm::ALL.into_iter().find(|it| it.name() == name)?;
            let is_digit = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f');
            let fine = hex.len() == algorithm.digits() && hex.bytes().all(is_digit);
            fine.then(|| BlobDigest {
                algorithm,
                hex: hex.to_owned(),
            })
        });
        parsed.ok_or_else(|| ParseBlobDigestError {
            got: text.chars().take(150).collect(),
        })
    }
}

/// Hashes what is read or written through it.
pub struct Hashed<T> {
    inner: T,
    hasher: Hasher,
    bytes: u64,
}

enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl<T> Hashed<T> {
    /// By the algorithm of the digest that is expected.
    pub fn like(expected: &BlobDigest, inner: T) -> Hashed<T> {
        let hasher = match expected.algorithm {
            Algorithm::Sha256 => Hasher::Sha256(Sha256::new()),
            Algorithm::Sha512 => Hasher::Sha512(Sha512::new()),
        };
        Hashed {
            inner,
            hasher,
            bytes: 0,
        }
    }

    /// By SHA-256.
    pub fn sha256(inner: T) -> Hashed<T> {
        Hashed {
            inner,
            hasher: Hasher::Sha256(Sha256::new()),
            bytes: 0,
        }
    }

    /// The digest of all that passed, and its length.
    pub fn finish(self) -> (BlobDigest, u64) {
        let (algorithm, hex) = match self.hasher {
            Hasher::Sha256(hasher) => (Algorithm::Sha256, hexadecimal(&hasher.finalize())),
            Hasher::Sha512(hasher) => (Algorithm::Sha512, hexadecimal(&hasher.finalize())),
        };
        (BlobDigest { algorithm, hex }, self.bytes)
    }

    fn passed(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        match &mut self.hasher {
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::Sha512(hasher) => hasher.update(bytes),
        }
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.passed(&buffer[..read]);
        Ok(read)
    }
}

impl<W: io::Write> io::Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.passed(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_digests_become_paths() {
        let hex = "0123456789abcdef".repeat(4);
        let digest = BlobDigest::sha256(&hex).expect("a digest");
        assert_eq!(digest.path(), format!("blobs/sha256/{hex}"));
        assert_eq!(digest.to_string().parse(), Ok(digest));
        let long: BlobDigest = format!("sha512:{hex}{hex}").parse().expect("a digest");
        assert_eq!(long.path(), format!("blobs/sha512/{hex}{hex}"));
        for wrong in [
            String::new(),
            hex.clone(),
            format!("sha256:{}", &hex[1..]),
            format!("sha256:{hex}0"),
            format!("sha512:{hex}"),
            format!("md5:{}", &hex[..32]),
            format!("sha256:{}", hex.to_uppercase()),
            format!("sha256:../../{}", &hex[6..]),
            format!("sha256:{}/", &hex[1..]),
        ] {
            assert!(wrong.parse::<BlobDigest>().is_err(), "{wrong}");
        }
    }

    /// Of NIST's examples for SHA-256 and SHA-512: the message "abc".
    #[test]
    fn both_algorithms_hash_what_passes() {
        let known = [
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            concat!(
                "sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a",
                "2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f"
            ),
        ];
        for known in known {
            let expected: BlobDigest = known.parse().expect("a digest");
            let mut hashed = Hashed::like(&expected, &b"abc"[..]);
            io::copy(&mut hashed, &mut io::sink()).expect("reading");
            assert_eq!(hashed.finish(), (expected, 3));
        }
    }
}
