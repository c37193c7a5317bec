//! What a load costs: processor time of both sides, and time.

use std::time::Instant;

use anyhow::{Context, ensure};

/// Measures from when it is made.
pub struct Meter {
    server: String,
    server_ns: u64,
    own_ns: u64,
    begun: Instant,
}

/// What a load cost, in nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// Processor time of the server's process.
    pub server_ns: u64,
    /// Processor time of this process.
    pub own_ns: u64,
    /// Time on the clock.
    pub wall_ns: u64,
}

impl Meter {
    /// Begins to measure a server's process.
    pub fn start(process: u32) -> anyhow::Result<Self> {
        let server = process.to_string();
        Ok(Self {
            server_ns: processor_ns(&server)?,
            own_ns: processor_ns("self")?,
            server,
            begun: Instant::now(),
        })
    }

    /// The cost since it was started.
    pub fn stop(&self) -> anyhow::Result<Cost> {
        let wall_ns = self.begun.elapsed().as_nanos() as u64;
        Ok(Cost {
            server_ns: processor_ns(&self.server)?.saturating_sub(self.server_ns),
            own_ns: processor_ns("self")?.saturating_sub(self.own_ns),
            wall_ns,
        })
    }
}

/// Processor time of all threads of a process so far, in nanoseconds.
fn processor_ns(process: &str) -> anyhow::Result<u64> {
    let folder = format!("/proc/{process}/task");
    let threads = std::fs::read_dir(&folder).with_context(|| format!("listing {folder}"))?;
    let mut sum = 0;
    for thread in threads.flatten() {
        // A thread may end while it is looked at.
        let text = std::fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
        sum += first_number(&text).unwrap_or(0);
    }
    ensure!(sum > 0, "{folder}: the kernel keeps no schedstat");
    Ok(sum)
}

/// The memory of a process that is neither shared nor a file's, in bytes.
pub fn memory_bytes(process: u32) -> anyhow::Result<u64> {
    let path = format!("/proc/{process}/smaps_rollup");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let mut lines = text.lines();
    let line = lines.find_map(|line| line.strip_prefix("Private_Dirty:"));
    let kib = line.and_then(first_number);
    Ok(kib.with_context(|| format!("{path}: no Private_Dirty"))? << 10)
}

fn first_number(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn working_costs_processor_time() {
        let meter = Meter::start(std::process::id()).unwrap();
        let begun = Instant::now();
        while begun.elapsed().as_millis() < 20 {}
        let cost = meter.stop().unwrap();
        assert!(cost.own_ns > 0 && cost.server_ns > 0, "{cost:?}");
        assert!(memory_bytes(std::process::id()).unwrap() > 0);
    }
}
