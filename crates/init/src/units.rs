//! What systemd says of its units and of the time that they took.

use std::process::Command;

/// The units that failed, each with the last words of its own processes.
pub fn failed() -> Vec<String> {
    let text = systemctl(&["list-units", "--failed", "--plain"]);
    let names = text
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    names
        .map(|name| match last_words(name) {
            words if words.is_empty() => name.to_owned(),
            words => format!("{name}: {words}"),
        })
        .collect()
}

/// The last line that a unit's processes wrote in this boot.
fn last_words(unit: &str) -> String {
    let of_unit = format!("_SYSTEMD_UNIT={unit}");
    let arguments = ["-b", "-q", "-o", "cat", "-n", "1", &of_unit];
    output(Command::new("journalctl").args(arguments))
        .trim()
        .to_owned()
}

/// Microseconds from the kernel's start to when systemd had done all that the boot asked for;
/// `None` until then.
pub fn finished_us() -> Option<u64> {
    let text = systemctl(&["show", "-p", "FinishTimestampMonotonic", "--value"]);
    text.trim().parse().ok().filter(|at| *at > 0)
}

/// How long each part of the boot took, by when `/init` began and when it handed over, both in
/// microseconds since the kernel's start.
pub fn times(init_us: u64, switch_us: u64, finished_us: u64) -> String {
    let seconds = |us: u64| format!("{}.{:02} s", us / 1_000_000, us % 1_000_000 / 10_000);
    format!(
        "started in {}: kernel {}, initramfs {}, system {}",
        seconds(finished_us),
        seconds(init_us),
        seconds(switch_us.saturating_sub(init_us)),
        seconds(finished_us.saturating_sub(switch_us)),
    )
}

fn systemctl(arguments: &[&str]) -> String {
    let mut command = Command::new("systemctl");
    command.args(arguments).args(["--no-legend", "--no-pager"]);
    output(&mut command)
}

fn output(command: &mut Command) -> String {
    command.output().map_or(String::new(), |it| {
        String::from_utf8_lossy(&it.stdout).into_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_boot_add_up() {
        assert_eq!(
            times(1_234_567, 3_000_000, 12_345_678),
            "started in 12.34 s: kernel 1.23 s, initramfs 1.76 s, system 9.34 s"
        );
    }
}
