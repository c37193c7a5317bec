//! Becomes the initramfs's own /init, and leaves a process beside it that writes to the kernel's log
//! whenever less memory is available than ever before, in kB. A program of its own, compiled by the
//! benchmark and started by `rdinit=/lowest`.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

/// A process whose name begins like this is left alone by systemd when it changes the root.
const WATCHER: &str = "@lowest";
/// Smaller changes are noise, and each line costs a write to a serial console.
const STEP_KB: u64 = 256;

fn main() {
    if std::env::args().next().as_deref() == Some(WATCHER) {
        watch();
    }
    // Without a watcher there is no line, and the benchmark says so.
    let _ = Command::new("/lowest").arg0(WATCHER).spawn();
    let error = Command::new("/init").args(std::env::args().skip(1)).exec();
    panic!("/init: {error}");
}

fn watch() -> ! {
    let mut lowest = u64::MAX;
    loop {
        // Not there before /init has mounted its file systems.
        if let Some(now) = available_kb()
            && now + STEP_KB <= lowest
            && std::fs::write("/dev/kmsg", format!("<5>lowest: {now} kB\n")).is_ok()
        {
            lowest = now;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn available_kb() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse().ok()
}
