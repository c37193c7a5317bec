//! Serves a directory read-only: `serve_dir DIR [ADDRESS:PORT] [EXPORT-PATH]`.
//!
//! The tree is scanned once, at the start, and must not change after that. Inode numbers are the
//! order of the scan, so a restart over the same directory keeps its clients' handles.

use std::collections::HashMap;
use std::error::Error;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io;
use std::net::TcpListener;
use std::ops::ControlFlow;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use nfs::{Activity, Attr, DirEntry, Extent, FileKind, Observer, Time, Tree, TreeError, Usage};

/// Files that are kept open.
const MAX_OPEN: usize = 512;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args_os().skip(1);
    let dir = args.next().ok_or("expected a directory")?;
    let address = args
        .next()
        .unwrap_or_else(|| "127.0.0.1:20490".into())
        .into_string();
    let path = args.next().unwrap_or_else(|| "/image".into()).into_string();
    let (address, path) = (
        address.map_err(|_| "bad address")?,
        path.map_err(|_| "bad path")?,
    );
    let listener = TcpListener::bind(&address)?;
    let tree = Directory::scan(Path::new(&dir))?;
    println!("serving {} inodes at {address}:{path}", tree.nodes.len());
    let mut config = nfs::Config::new([7; 32]);
    config.observer = Some(Arc::new(Print));
    let server = nfs::Server::new(config)?.export(&path, [1; 16], Arc::new(tree))?;
    server.serve(listener)?;
    for _ in io::stdin().lines() {
        println!("{:#?}", server.stats());
    }
    loop {
        std::thread::park();
    }
}

struct Print;

impl Observer for Print {
    fn observe(&self, activity: Activity) {
        println!("{activity:?}");
    }
}

/// A scanned directory. Inode `n` is `nodes[n - 1]`.
struct Directory {
    nodes: Vec<Node>,
    open: Mutex<HashMap<u32, Arc<File>>>,
}

struct Node {
    path: PathBuf,
    attr: Attr,
    parent: u32,
    /// Sorted by name.
    children: Vec<(Vec<u8>, u32)>,
}

impl Directory {
    fn scan(root: &Path) -> io::Result<Directory> {
        let mut tree = Directory {
            nodes: Vec::new(),
            open: Mutex::default(),
        };
        let mut seen = HashMap::new();
        tree.add(root, 1, &mut seen)?;
        Ok(tree)
    }

    fn add(&mut self, path: &Path, parent: u32, seen: &mut HashMap<u64, u32>) -> io::Result<u32> {
        let meta = fs::symlink_metadata(path)?;
        if let Some(ino) = seen.get(&meta.ino()).filter(|_| !meta.is_dir()) {
            return Ok(*ino);
        }
        let node = Node {
            path: path.into(),
            attr: attr(&meta),
            parent,
            children: Vec::new(),
        };
        self.nodes.push(node);
        let ino = self.nodes.len() as u32;
        seen.insert(meta.ino(), ino);
        if meta.is_dir() {
            let names = fs::read_dir(path)?.map(|entry| Ok(entry?.file_name().into_vec()));
            let mut names = names.collect::<io::Result<Vec<_>>>()?;
            names.sort();
            for name in names {
                let child = self.add(&path.join(OsStr::from_bytes(&name)), ino, seen)?;
                self.nodes[ino as usize - 1].children.push((name, child));
            }
        }
        Ok(ino)
    }

    fn node(&self, ino: u32) -> Result<&Node, TreeError> {
        self.nodes
            .get((ino as usize).wrapping_sub(1))
            .ok_or(TreeError::Stale)
    }

    fn directory(&self, ino: u32) -> Result<&Node, TreeError> {
        let node = self.node(ino)?;
        if node.attr.kind == FileKind::Directory {
            Ok(node)
        } else {
            Err(TreeError::NotDirectory)
        }
    }

    fn file(&self, ino: u32) -> Result<Arc<File>, TreeError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = open.get(&ino) {
            return Ok(Arc::clone(file));
        }
        if open.len() >= MAX_OPEN {
            open.clear();
        }
        let file = Arc::new(File::open(&self.node(ino)?.path).map_err(|_| TreeError::Io)?);
        open.insert(ino, Arc::clone(&file));
        Ok(file)
    }
}

impl Tree for Directory {
    fn root(&self) -> u32 {
        1
    }

    fn attr(&self, ino: u32) -> Result<Attr, TreeError> {
        Ok(self.node(ino)?.attr)
    }

    fn lookup(&self, dir: u32, name: &[u8]) -> Result<u32, TreeError> {
        let children = &self.directory(dir)?.children;
        let found = children.binary_search_by(|(other, _)| other.as_slice().cmp(name));
        found
            .map(|at| children[at].1)
            .map_err(|_| TreeError::NotFound)
    }

    fn parent(&self, dir: u32) -> Result<u32, TreeError> {
        self.directory(dir).map(|node| node.parent)
    }

    fn readdir(
        &self,
        dir: u32,
        cookie: u64,
        each: &mut dyn FnMut(DirEntry<'_>) -> ControlFlow<()>,
    ) -> Result<(), TreeError> {
        let children = self.directory(dir)?.children.iter().zip(1..);
        for ((name, ino), cookie) in children.skip(cookie as usize) {
            if each(DirEntry {
                name,
                ino: *ino,
                cookie,
            })
            .is_break()
            {
                break;
            }
        }
        Ok(())
    }

    fn readlink(&self, ino: u32, target: &mut Vec<u8>) -> Result<(), TreeError> {
        let path = fs::read_link(&self.node(ino)?.path).map_err(|_| TreeError::Io)?;
        target.extend_from_slice(path.as_os_str().as_bytes());
        Ok(())
    }

    fn read(
        &self,
        ino: u32,
        offset: u64,
        len: u32,
        each: &mut dyn FnMut(Extent<'_>),
    ) -> Result<(), TreeError> {
        each(Extent::File {
            file: &self.file(ino)?,
            offset,
            len,
        });
        Ok(())
    }

    fn usage(&self) -> Usage {
        let bytes = self.nodes.iter().map(|node| node.attr.used).sum();
        Usage {
            bytes,
            inodes: self.nodes.len() as u64,
        }
    }
}

fn attr(meta: &Metadata) -> Attr {
    let kind = match meta.file_type() {
        kind if kind.is_dir() => FileKind::Directory,
        kind if kind.is_symlink() => FileKind::Symlink,
        kind if kind.is_block_device() => FileKind::BlockDevice,
        kind if kind.is_char_device() => FileKind::CharDevice,
        kind if kind.is_fifo() => FileKind::Fifo,
        kind if kind.is_socket() => FileKind::Socket,
        _ => FileKind::Regular,
    };
    let time = |seconds, nanos| Time {
        seconds,
        nanos: nanos as u32,
    };
    Attr {
        kind,
        mode: meta.mode() & 0o7777,
        nlink: meta.nlink() as u32,
        uid: meta.uid(),
        gid: meta.gid(),
        size: meta.size(),
        used: meta.blocks() * 512,
        rdev: (
            rustix::fs::major(meta.rdev()),
            rustix::fs::minor(meta.rdev()),
        ),
        mtime: time(meta.mtime(), meta.mtime_nsec()),
        ctime: time(meta.ctime(), meta.ctime_nsec()),
    }
}
