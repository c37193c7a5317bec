//! The server's restarts as real clients see them: over every version of NFS, nothing that a
//! program has open, has locked, reads or lists is lost or wrong, whatever ends the server.
//!
//! A program in the node works on a mount without a pause and compares every byte and every name.
//! It notes when one operation took long to end after the one before: those are the stalls, printed
//! for each way to restart.

use std::time::{Duration, Instant};

use lab::{Console, Machine, Tool};

use crate::firmware;
use crate::harness::{
    Site, address, copy_version_3, guest, impossible, load_version_3, log_in, mount, script, text,
};
use crate::native::{self, initrd, power_on};

/// How a server ends and how the next one comes.
#[derive(Clone, Copy, Debug)]
enum Restart {
    /// SIGKILL, and the same server again.
    Kill,
    /// SIGKILL, and the same server again, for the first time as a service.
    IntoService,
    /// SIGTERM, and the same server again, with the listening socket that the service manager kept.
    Orderly,
    /// SIGKILL as a service: the service manager has kept the listening socket.
    KillOfService,
    /// SIGKILL, and another server with copies of the key and the images, at the same address.
    Failover,
}

#[test]
#[ignore = "boots machines: cargo xtask test"]
fn restarts_are_invisible_to_clients_of_every_version() {
    if impossible(&native::TOOLS) {
        return;
    }
    of_user_mode_linux(&[
        (Restart::Kill, 1),
        (Restart::IntoService, 1),
        (Restart::Orderly, 1),
        (Restart::Failover, 1),
    ]);
}

#[test]
#[ignore = "boots machines: cargo xtask test --full"]
fn full_fifty_restarts_are_invisible_to_clients_of_every_version() {
    if impossible(&native::TOOLS) {
        return;
    }
    of_user_mode_linux(&[
        (Restart::Kill, 50),
        (Restart::IntoService, 1),
        (Restart::Orderly, 50),
        (Restart::KillOfService, 10),
        (Restart::Failover, 5),
    ]);
}

#[test]
#[ignore = "boots machines: cargo xtask test --full"]
fn full_restarts_are_invisible_to_linux_6_12() {
    if impossible(&[Tool::Qemu, Tool::Firmware, Tool::Iproute, Tool::Mmdebstrap]) {
        return;
    }
    let site = Site::new("debian13", &firmware::KERNEL_ARGS);
    let (site, sums) = with_load_image(site);
    let machine = firmware::power_on(&site, 1, false);
    let restarts = [
        (Restart::Kill, 4),
        (Restart::IntoService, 1),
        (Restart::Orderly, 4),
    ];
    restart_under_load(site, &machine, &sums, &["4.2"], &restarts);
}

fn of_user_mode_linux(restarts: &[(Restart, usize)]) {
    let (site, sums) = with_load_image(Site::new("debian12", &[]));
    let machine = power_on(&site, &initrd(&site), 1);
    restart_under_load(site, &machine, &sums, &["4.2", "4.1", "3"], restarts);
}

/// Adds the image `load`; with what [`SUMS`] says of it.
fn with_load_image(mut site: Site) -> (Site, String) {
    let source = site.import_made("load", |source| {
        script(MAKE, source);
        copy_version_3(source);
    });
    let sums = script(SUMS, &source);
    (site, sums)
}

fn restart_under_load(
    mut site: Site,
    machine: &Machine,
    sums: &str,
    versions: &[&str],
    restarts: &[(Restart, usize)],
) {
    site.wait_up(machine.mac(), 1);
    let console = machine.console();
    log_in(console);
    start_load(&site, machine, sums, versions);
    let mounts = guest(console, "cat /proc/self/mountinfo");
    for &(restart, count) in restarts {
        for index in 0..count {
            wait_for_progress(console, versions);
            // At another moment of the program's round each time.
            std::thread::sleep(Duration::from_millis(index as u64 * 383 % 1000));
            mark(console, &format!("{restart:?}"));
            let begun = Instant::now();
            restart_once(&mut site, restart, index);
            if index == 0 {
                let took = begun.elapsed();
                println!("{restart:?}: another daemon serves after {took:.2?}");
            }
        }
        wait_for_progress(console, versions);
        if !matches!(restart, Restart::Failover) {
            assert_served(&site, machine);
        }
    }
    mark(console, "End");
    end_load(console, sums, versions);
    print_stalls(console, versions);
    let complaints = "dmesg | grep -iE 'nfs.*(stale|lost|reclaim|not responding|error|fail)' || :";
    assert_eq!(guest(console, complaints), "", "the kernel complains");
    let after = guest(console, "cat /proc/self/mountinfo");
    assert_eq!(after, mounts, "something was mounted anew");
}

/// Mounts the image `load` over each version and starts the program on each mount.
fn start_load(site: &Site, machine: &Machine, sums: &str, versions: &[&str]) {
    let console = machine.console();
    let shown = site.slate_json(&["image", "show", "load", "--json"]);
    let digest = text(&shown, "digest");
    let own = address(site, machine.mac()).to_string();
    for (name, text) in [("sums", SUMS), ("program", LOAD)] {
        let write = format!("mkdir -p /run/load && cat > /run/load/{name} <<'end'\n{text}end");
        guest(console, &write);
    }
    for version in versions {
        if *version == "3" {
            load_version_3(console, &place("4.2"));
        }
        mount(console, &own, version, &digest, &place(version));
        assert_sums(console, version, sums);
    }
    for version in versions {
        let place = place(version);
        let start =
            format!("(setsid perl /run/load/program {place} 2> {place}.errors > /dev/null &)");
        guest(console, &start);
    }
}

/// Ends the program, which must have found nothing wrong.
fn end_load(console: &Console, sums: &str, versions: &[&str]) {
    guest(console, "touch /run/load/enough");
    for version in versions {
        let place = place(version);
        let wait =
            format!("until test -e {place}.ended || test -s {place}.errors; do sleep 0.2; done");
        guest(console, &wait);
        assert_no_errors(console, version);
        let did = guest(console, &format!("cat {place}.ended"));
        println!("over {version}: {did}");
        guest(console, "echo 3 > /proc/sys/vm/drop_caches");
        assert_sums(console, version, sums);
    }
}

fn assert_no_errors(console: &Console, version: &str) {
    let errors = guest(console, &format!("cat {}.errors", place(version)));
    assert_eq!(errors, "", "over {version}");
}

/// Notes in the node what happens next.
fn mark(console: &Console, what: &str) {
    let note = format!("read up idle < /proc/uptime && echo {what} $up >> /run/load/marks");
    guest(console, &note);
}

/// The daemon that runs has sent file contents: they did not come out of the node's memory.
fn assert_served(site: &Site, machine: &Machine) {
    let node = site.slate_json(&["node", "show", &machine.mac().to_string(), "--json"]);
    let bytes = node["nfs"]["bytes"].as_u64().expect("a number");
    assert!(bytes > 10_000_000, "{bytes} bytes from the last daemon");
}

fn place(version: &str) -> String {
    format!("/run/load/{version}")
}

fn restart_once(site: &mut Site, restart: Restart, index: usize) {
    match restart {
        Restart::Kill | Restart::KillOfService => site.kill_daemon(),
        Restart::Failover => {
            // The copies are made while the first server still serves.
            site.prepare_other_server(&format!("server{index}"));
            site.kill_daemon();
        }
        Restart::IntoService => {
            site.kill_daemon();
            site.keep_socket();
        }
        Restart::Orderly => site.stop_daemon(),
    }
    site.start_daemon();
}

/// What is read over a mount is what was imported.
fn assert_sums(console: &Console, version: &str, sums: &str) {
    let read = guest(console, &format!("sh -e /run/load/sums {}", place(version)));
    assert_eq!(read, sums.trim(), "over {version}");
}

/// Waits until the program has done everything once more over each version.
fn wait_for_progress(console: &Console, versions: &[&str]) {
    for version in versions {
        let place = place(version);
        let wait = format!(
            "r=0; read r < {place}.rounds; n=$r; \
             until test $n -gt $((r + 1)) || test -s {place}.errors; \
             do sleep 0.1; read n < {place}.rounds; done 2> /dev/null; true"
        );
        guest(console, &wait);
        assert_no_errors(console, version);
    }
}

/// Prints the longest stall after each restart: the usual and the worst one, by version and kind.
fn print_stalls(console: &Console, versions: &[&str]) {
    let marks = guest(console, "cat /run/load/marks");
    let marks: Vec<(&str, f64)> = marks
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(kind, at)| (kind, at.parse().expect("seconds")))
        .collect();
    for version in versions {
        let gaps = guest(console, &format!("cat {}.gaps", place(version)));
        let gaps: Vec<(f64, f64)> = gaps
            .lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(start, end)| (start.parse().expect("s"), end.parse().expect("s")))
            .collect();
        let mut kinds: Vec<&str> = marks.iter().map(|(kind, _)| *kind).collect();
        kinds.dedup();
        for kind in kinds.into_iter().filter(|kind| *kind != "End") {
            let mut stalls: Vec<f64> = marks
                .windows(2)
                .filter(|pair| pair[0].0 == kind)
                .map(|pair| longest(&gaps, pair[0].1, pair[1].1))
                .collect();
            stalls.sort_by(f64::total_cmp);
            println!(
                "over {version}, {kind}: {} restarts, stalls p50 {:.2} s, p100 {:.2} s",
                stalls.len(),
                stalls[stalls.len() / 2],
                stalls[stalls.len() - 1]
            );
        }
    }
}

/// The longest of the gaps that ended between two moments.
fn longest(gaps: &[(f64, f64)], from: f64, to: f64) -> f64 {
    let between = gaps.iter().filter(|(_, end)| *end > from && *end <= to);
    between.map(|(start, end)| end - start).fold(0.0, f64::max)
}

/// Fills the directory `$1`: files of several lengths, a link, a directory of many pages.
const MAKE: &str = r#"
cd "$1"
umask 022
head -c 5242883 /dev/urandom > big
head -c 1048577 /dev/urandom > middle
head -c 4097 /dev/urandom > small
head -c 700001 /dev/urandom > held
head -c 10 /dev/urandom > locked
ln -s small link
mkdir many
perl -e 'for (0..9999) {
    my $name = sprintf("many/%05d-%s", $_, "x" x ($_ % 90));
    link("small", $name) or die "$name: $!";
}'
"#;

/// What is in the directory `$1`.
const SUMS: &str = r#"cd "$1"
export LC_ALL=C
sha256sum big middle small held locked
ls -f many | sort | sha256sum
readlink link
"#;

/// Works on the directory ARGV[0] until /run/load/enough exists, and dies at the first thing that is
/// not as it was at the start. One process lists the large directory slowly, so that a restart
/// always comes in the middle of it; the other reads all files anew in each round, with a file open
/// and two locks held all the time.
const LOAD: &str = r#"
use strict;
use warnings;
use Fcntl qw(:flock F_SETLK F_RDLCK F_UNLCK);

my ($dir) = @ARGV;
my ($operations, $bytes, $rounds, $listings, $last) = (0, 0, 0, 0);
my $file_lock = "s s x4 q q l x4";

# CLOCK_MONOTONIC, in seconds.
sub now {
    my $time = "\0" x 16;
    syscall(228, 1, $time) == 0 or die "clock: $!";
    my ($seconds, $nanos) = unpack("qq", $time);
    return $seconds + $nanos / 1e9;
}

open(my $gaps, ">", "$dir.gaps") or die;
select((select($gaps), $| = 1)[0]);

sub ended_one {
    my $now = now();
    printf $gaps "%.3f %.3f\n", $last, $now if $now - $last > 0.1;
    $last = $now;
    $operations += 1;
}

sub content {
    my ($file, $name) = @_;
    my ($content, $count) = ("");
    while ($count = sysread($file, $content, 65536, length $content)) { ended_one(); $bytes += $count; }
    defined $count or die "reading $name: $!";
    return $content;
}

sub whole {
    my ($name) = @_;
    open(my $file, "<", "$dir/$name") or die "opening $name: $!";
    my $content = content($file, $name);
    close($file) or die "closing $name: $!";
    ended_one();
    return $content;
}

sub names {
    my ($pause_s) = @_;
    my @names;
    opendir(my $many, "$dir/many") or die "opening many: $!";
    $! = 0;
    while (defined(my $name = readdir($many))) {
        push @names, $name;
        next if @names % 100;
        $pause_s ? select(undef, undef, undef, $pause_s) : ended_one();
        $! = 0;
    }
    $! and die "listing many: $!";
    closedir($many) or die "closing many: $!";
    return join("/", sort @names);
}

sub forget_caches {
    open(my $caches, ">", "/proc/sys/vm/drop_caches") or die;
    print $caches "3\n";
    close($caches) or die;
}

sub note {
    my ($name, $text) = @_;
    open(my $note, ">", "$dir.new") or die;
    print $note "$text\n";
    close($note) or die;
    rename("$dir.new", "$dir.$name") or die;
}

$last = now();
my $listed = names(0);
my $lister = fork() // die;
if (!$lister) {
    until (-e "/run/load/enough") {
        names(0.02) eq $listed or die "other names";
        $listings += 1;
    }
    open(my $note, ">", "$dir.listings") or die;
    print $note $listings;
    close($note);
    exit;
}

my %known = map { ($_, whole($_)) } qw(big middle small held);
open(my $held, "<", "$dir/held") or die "opening held: $!";
open(my $locked, "<", "$dir/locked") or die "opening locked: $!";
flock($held, LOCK_SH | LOCK_NB) or die "flock: $!";
fcntl($locked, F_SETLK, pack($file_lock, F_RDLCK, 0, 0, 5, 0)) or die "locking: $!";

until (-e "/run/load/enough") {
    forget_caches();
    whole($_) eq $known{$_} or die "other content of $_" for qw(big middle small);
    sysseek($held, 0, 0) // die;
    content($held, "held") eq $known{held} or die "other content of held";
    for (1..20) {
        my $name = sprintf("many/%05d-", my $number = int rand 10000);
        my @attributes = lstat($dir . "/" . $name . "x" x ($number % 90)) or die "$name: $!";
        $attributes[7] == 4097 or die "size of $name: $attributes[7]";
        ended_one();
    }
    readlink("$dir/link") eq "small" or die "link: $!";
    !-e "$dir/nothing" or die;
    $rounds += 1;
    note("rounds", $rounds);
}

fcntl($locked, F_SETLK, pack($file_lock, F_UNLCK, 0, 0, 0, 0)) or die "unlocking: $!";
flock($held, LOCK_UN) or die "unlocking: $!";
close($_) or die "closing: $!" for $held, $locked;
waitpid($lister, 0) == $lister && $? == 0 or die "listing ended with $?";
open(my $note, "<", "$dir.listings") or die;
$listings = <$note>;
my $mb = int($bytes / 1e6);
note("ended", "$rounds rounds, $operations operations, $mb MB, $listings slow listings");
"#;
