//! scratch
use image::*;
use std::time::Instant;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let s = Store::open(&a[2]).unwrap();
    let t = Instant::now();
    match a[1].as_str() {
        "dir" => {
            let g = s.stage_dir(a[4].as_ref(), &mut |_| ()).unwrap();
            report(&s, g, &a[3]);
        }
        "tar" => {
            let g = s
                .stage_tar(std::fs::File::open(&a[4]).unwrap(), &mut |_| ())
                .unwrap();
            report(&s, g, &a[3]);
        }
        "verify" => println!(
            "{:?}",
            s.verify(s.resolve(&a[3]).unwrap(), &mut |_| ()).unwrap()
        ),
        "list" => println!("{:#?}", s.list().unwrap()),
        "gc" => println!("{:?}", s.gc(&[]).unwrap()),
        "dump" => {
            let tr = s.open_tree(s.resolve(&a[3]).unwrap()).unwrap();
            let r = tr.root();
            dump(&tr, r, &mut b"".to_vec(), &mut Default::default());
        }
        _ => panic!(),
    }
    eprintln!("{:?}", t.elapsed());
}
fn report(s: &Store, g: Staged, n: &str) {
    eprintln!(
        "skipped {}: {:?}",
        g.skipped().len(),
        &g.skipped()[..g.skipped().len().min(5)]
    );
    println!(
        "{:?}",
        s.publish(g, Publish::Import { name: n }, |_| Ok(()))
            .unwrap()
    );
}
fn esc(b: &[u8]) -> String {
    b.iter()
        .map(|c| {
            if (0x21..0x7f).contains(c) && *c != b'\\' && *c != b'=' {
                (*c as char).to_string()
            } else {
                format!("\\x{c:02x}")
            }
        })
        .collect()
}
// composefs-dump(5) text
fn dump(
    t: &StoredTree,
    nid: Nid,
    path: &mut Vec<u8>,
    seen: &mut std::collections::HashMap<Nid, Vec<u8>>,
) {
    // breadth-first, so that the first name of a hard link is the writer's
    let mut q = std::collections::VecDeque::from([(nid, path.clone())]);
    let mut first: Vec<(Nid, Vec<u8>, bool)> = vec![];
    while let Some((n, p)) = q.pop_front() {
        let at = t.attr(n).unwrap();
        let link = at.kind != Kind::Directory && seen.contains_key(&n);
        if !link {
            seen.insert(n, p.clone());
        }
        first.push((n, p.clone(), link));
        if at.kind == Kind::Directory {
            for e in t.readdir(n, 0).unwrap() {
                let e = e.unwrap();
                q.push_back((e.nid, [&p[..], b"/", e.name].concat()));
            }
        }
    }
    for (n, p, link) in first {
        let at = t.attr(n).unwrap();
        let ty = match at.kind {
            Kind::File => 0o100000,
            Kind::Directory => 0o40000,
            Kind::Symlink => 0o120000,
            Kind::Character => 0o20000,
            Kind::Block => 0o60000,
            Kind::Fifo => 0o10000,
            Kind::Socket => 0o140000,
        };
        let shown = if p.is_empty() { "/".into() } else { esc(&p) };
        if link {
            println!(
                "{shown} 0 @{:o} 1 0 0 0 0.0 {} - -",
                ty | u32::from(at.mode),
                esc(&seen[&n])
            );
            continue;
        }
        let (mut payload, mut content, mut digest) =
            ("-".to_string(), "-".to_string(), "-".to_string());
        match at.kind {
            Kind::Symlink => payload = esc(&t.readlink(n).unwrap()),
            Kind::File if at.size > 4096 => {
                if let Extent::File { file, .. } = &t.read(n, 0, 1).unwrap()[0] {
                    use std::os::fd::AsRawFd;
                    let l =
                        std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
                    let l = l.to_str().unwrap();
                    payload = l[l.len() - 65..].to_string();
                    digest = payload.replace('/', "");
                }
            }
            Kind::File if at.size > 0 => content = esc(&t.read_inode(n).unwrap()),
            _ => {}
        }
        let rdev = u64::from(at.rdev.minor & 0xff)
            | u64::from(at.rdev.major) << 8
            | u64::from(at.rdev.minor & !0xff) << 12;
        let size = if at.kind == Kind::Directory {
            0
        } else {
            at.size
        };
        let mut line = format!(
            "{shown} {} {:o} {} {} {} {} {}.{:09} {payload} {content} {digest}",
            size,
            ty | u32::from(at.mode),
            at.nlink,
            at.uid,
            at.gid,
            rdev,
            at.mtime.seconds,
            at.mtime.nanoseconds
        );
        for (k, v) in t.xattrs(n).unwrap() {
            line += &format!(" {}={}", esc(&k), esc(&v));
        }
        println!("{line}");
    }
}
