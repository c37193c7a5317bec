//! Opens a version and lists its root: `open STORE NAME[:TAG]` prints how long that took, in
//! microseconds, and the memory that the process has then, in bytes.

use std::path::PathBuf;
use std::time::Instant;

use image::Store;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(store), Some(image)) = (arguments.next(), arguments.next()) else {
        return Err("expected STORE NAME[:TAG]".into());
    };
    let store = Store::open(PathBuf::from(store))?;
    let digest = store.resolve(&image.to_string_lossy())?;
    let begun = Instant::now();
    let tree = store.open_tree(digest)?;
    let names = tree.readdir(tree.root(), 0)?.count();
    let us = begun.elapsed().as_micros();
    let status = std::fs::read_to_string("/proc/self/status")?;
    let resident = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|text| text.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    let bytes = resident.ok_or("/proc/self/status names no VmRSS")? * 1024;
    println!(r#"{{"names": {names}, "us": {us}, "bytes": {bytes}}}"#);
    Ok(())
}
