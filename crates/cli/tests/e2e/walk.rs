//! A whole tree as the kernel's own client sees it, over every served minor version, against the
//! directory that it was imported from. Both sides are listed by the same script, which knows
//! nothing of this project.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Instant;

use lab::Console;

use crate::harness::{
    Site, address, copy_version_3, guest, impossible, load_version_3, log_in, mount, script, text,
};
use crate::native::{TOOLS, initrd, power_on};

#[test]
#[ignore = "boots machines: cargo xtask test"]
fn a_tree_looks_the_same_over_nfs_as_at_its_source() {
    if impossible(&TOOLS) {
        return;
    }
    let mut site = Site::new("debian12", &[]);
    let source = site.import_made("walk", |source| {
        script(MAKE, source);
        copy_version_3(source);
    });
    let expected = script(LIST, &source);
    assert!(expected.lines().count() > 4000, "{expected}");
    let machine = power_on(&site, &initrd(&site), 1);
    site.wait_up(machine.mac(), 1);
    let console = machine.console();
    log_in(console);
    let shown = site.slate_json(&["image", "show", "walk", "--json"]);
    let walk = text(&shown, "digest");
    let own = address(&site, machine.mac()).to_string();
    for version in ["4.2", "4.1", "3"] {
        let begun = Instant::now();
        if version == "3" {
            mount(console, &own, "4.1", &walk, "/run/walk");
            load_version_3(console, "/run/walk");
            unmount(console);
        }
        mount(console, &own, version, &walk, "/run/walk");
        guest(console, &format!("cat > /run/list <<'end'\n{LIST}\nend"));
        guest(console, "sh /run/list /run/walk > /run/listed");
        let expected = expected_over(version, &expected);
        let expected = expected.lines().collect();
        assert_listed(console, version, &expected);
        unmount(console);
        println!("walked over {version} in {:.1?}", begun.elapsed());
    }
    let begun = Instant::now();
    mount(console, &own, "4.1", &site.digest, "/run/walk");
    println!("{}", guest(console, AS_PACKAGED));
    unmount(console);
    println!("read in {:.1?}", begun.elapsed());
}

/// What is expected of a version of NFS: user attributes cross in 4.2 only, and seconds in version 3
/// are unsigned in 32 bits, where times outside of them become the nearest.
fn expected_over(version: &str, expected: &str) -> String {
    let lines = expected
        .lines()
        .filter(|line| version == "4.2" || !line.contains("\txattr\t"));
    let mut text: String = lines.flat_map(|line| [line, "\n"]).collect();
    if version == "3" {
        for (exact, nearest) in [
            ("\t-2.2500000000", "\t0.0000000000"),
            ("\t4294967297.0000000010", "\t4294967295.0000000000"),
        ] {
            assert!(text.contains(exact), "the tree has no time {exact}");
            text = text.replace(exact, nearest);
        }
    }
    text
}

fn unmount(console: &Console) {
    guest(console, "umount /run/walk");
}

/// The guest's list is the expected one; says where not.
fn assert_listed(console: &Console, version: &str, expected: &BTreeSet<&str>) {
    let lines: Vec<&str> = expected.iter().copied().collect();
    let wanted = format!("{}\n", lines.join("\n"));
    let sums = guest(console, "LC_ALL=C sort -u /run/listed | sha256sum");
    let own = sha256(&wanted);
    if sums.split(' ').next() == Some(own.as_str()) {
        println!("{} lines are the same over {version}", lines.len());
        return;
    }
    let listed = guest(console, "cat /run/listed");
    let listed: BTreeSet<&str> = listed.lines().collect();
    let missing: Vec<_> = expected.difference(&listed).take(20).collect();
    let surplus: Vec<_> = listed.difference(expected).take(20).collect();
    panic!("over {version}, not there: {missing:#?}, instead: {surplus:#?}");
}

fn sha256(text: &str) -> String {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), text).expect("writing");
    let output = Command::new("sha256sum").arg(file.path()).output();
    let printed = String::from_utf8(output.expect("sha256sum starts").stdout).expect("hex");
    printed.split(' ').next().expect("a digest").to_owned()
}

/// Fills the directory `$1`: sizes around every boundary, holes, names of any bytes, a directory of
/// many pages, links, devices, owners, modes, times before 1970 and after 2038, user attributes.
const MAKE: &str = r#"
cd "$1"
umask 022
for size in 0 1 4095 4096 4097 8193 65536 1048575 1048576 1048577 5242883; do
    head -c $size /dev/urandom > size-$size
done
truncate -s 8M sparse
head -c 70000 /dev/urandom | dd of=sparse bs=4096 seek=700 conv=notrunc status=none
truncate -s 1M hole
mkdir sticky group closed
chmod 1777 sticky; chmod 2775 group; chmod 0700 closed
cp size-4095 setuid; chown 1234:4321 setuid; chmod 4751 setuid
cp size-1 far; chown 3000000000:65534 far; chmod 0000 far
ln size-65536 closed/second; ln size-65536 closed/third
mknod console c 5 1; mknod disk b 259 70000; mkfifo -m 0620 pipe
ln -s size-1 relative; ln -s /nowhere/at/all dangling
touch -h -d '2001-02-03 04:05:06.789012345Z' relative
touch -d '1969-12-31 23:59:58.25Z' size-0
touch -d '2038-01-19 03:14:09.999999999Z' size-1
touch -d '2106-02-07 06:28:17.000000001Z' group
perl -e '
    sub file { open(my $file, ">", $_[0]) or die "$_[0]: $!"; print $file $_[1]; }
    file($_, "odd") for "a\nb", " x ", "-dash", "back\\slash", "\xff\xfe", "q\x27\"`\$q", "\xc3\xa9",
        "n" x 255, ".hidden", "*", "\x01\x7f";
    symlink("odd \xff" . "/x" x 2000, "long") or die;
    mkdir("many"); file(sprintf("many/%04d-%s", $_, "x" x ($_ % 200)), $_) for 0..2999;
    my $path = "deep"; for (1..60) { mkdir($path) or die; file("$path/f", $_); $path .= "/d"; }
    sub note {
        my ($path, $name, $value) = @_;
        syscall(188, $path, $name, $value, length($value), 0) == 0 or die "$path $name: $!";
    }
    note("size-1", "user.note", "text"); note("size-1", "user.empty", "");
    note("size-1", "user.bytes", join "", map { chr } 0..255); note("many", "user.of-directory", "1");
    note("size-4096", "user.long", "y" x 3000);
    note("size-4097", "user.$_", "$_") for 1..40;
'
"#;

/// Lists the directory `$1`: for each inode its attributes, target, device numbers, content's
/// SHA-256 and user attributes, a line each, in the order of bytes.
const LIST: &str = r#"
cd "$1"
export LC_ALL=C
{
    find . -type d -printf '%p\t%y\t%m\t%U\t%G\t%T@\0'
    find . ! -type d -printf '%p\t%y\t%m\t%U\t%G\t%n\t%s\t%T@\t%l\0'
    find . \( -type b -o -type c \) -exec stat --printf '%n\tdevice\t%t\t%T\0' {} +
    find . -type f -exec sha256sum -z {} +
    find . ! -type l -print0 | perl -0ne '
        chomp(my $path = $_);
        my $names = "\0" x 65536;
        my $len = syscall(195, $path, $names, length $names);
        die "$path: $!" if $len < 0;
        for my $name (sort split /\0/, substr($names, 0, $len)) {
            next unless $name =~ /^user\./;
            my $value = "\0" x 65536;
            my $len = syscall(192, $path, $name, $value, length $value);
            print "$path\txattr\t$name\t", $len < 0 ? "$!" : unpack("H*", substr($value, 0, $len)), "\0";
        }'
} | tr '\n\0' '\001\n' | cat -v | sort
"#;

/// Compares the files of the mounted image with what their packages say, without the kernel's
/// modules: those are half of the bytes.
const AS_PACKAGED: &str = "(cd /run/walk && \
    cat var/lib/dpkg/info/*.md5sums | grep -v ' lib/modules/' > /run/sums && \
    md5sum --check --quiet --ignore-missing /run/sums && \
    echo \"$(wc -l < /run/sums) files of packages, those that are there are as packaged\")";
