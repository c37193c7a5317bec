//! Archives that the kernel unpacks before an initramfs (newc, Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeSet;

/// An archive of files by path, in the folders that they need.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    folders: BTreeSet<String>,
    count: u32,
}

impl Archive {
    /// Adds a file that everybody may read.
    pub fn file(&mut self, path: &str, content: &[u8]) {
        let folders = path.match_indices('/').map(|(end, _)| &path[..end]);
        for folder in folders {
            if self.folders.insert(folder.to_owned()) {
                self.entry(folder, 0o040_755, &[]);
            }
        }
        self.entry(path, 0o100_644, content);
    }

    /// The whole archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.count += 1;
        let (size, name_len) = (content.len() as u32, path.len() as u32 + 1);
        // Number, mode, owner, group, links, time, size, two devices, length of the name, check.
        let fields = [self.count, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_len, 0];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_come_once_and_before_their_files() {
        let mut archive = Archive::default();
        archive.file("a/b/one", b"1");
        archive.file("a/b/two", b"22");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        let places: Vec<usize> = ["a\0", "a/b\0", "a/b/one\0", "a/b/two\0", "TRAILER!!!\0"]
            .iter()
            .map(|name| text.find(name).unwrap())
            .collect();
        assert!(places.is_sorted());
        assert_eq!(text.matches("a/b\0").count(), 1);
        assert_eq!(text.matches("070701").count(), 5);
    }
}
