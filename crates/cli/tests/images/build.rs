//! `slate image build`: from recipes, with mirrors and packages that are not there, and from rpm
//! packages of a repository that the test makes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::rig::{Slate, impossible, write};

const DEBIAN: [&str; 1] = ["/usr/bin/mmdebstrap"];
const ROCKY: [&str; 5] = [
    "/usr/bin/dnf",
    "/usr/bin/rpmbuild",
    "/usr/bin/rpmsign",
    "/usr/bin/createrepo_c",
    "/usr/bin/gpg",
];

/// A state directory whose archives are kept between runs, as those of all end-to-end tests.
fn slate(directory: &Path) -> Slate<'static> {
    Slate::at(&directory.join("state"))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

#[test]
#[ignore = "builds images as root: cargo xtask test"]
fn a_recipe_adds_files_and_scripts_to_a_distribution() {
    if impossible(&DEBIAN) {
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let slate = slate(directory.path());
    let recipe = directory.path().join("recipe/node.toml");
    let lines = "name = \"node\"\nfrom = \"debian:bookworm\"\nscripts = [\"setup.sh\"]\n\
                 [files]\n\"/etc/motd\" = \"motd\"\n\"/opt/tools\" = \"tools\"\n";
    write(&recipe, lines);
    write(&directory.path().join("recipe/motd"), "from a recipe\n");
    write(&directory.path().join("recipe/tools/a/b"), "tool\n");
    let script =
        "#!/bin/sh -e\nuname -r > /etc/kernel-of-image\ncat /etc/motd\nuseradd -m somebody\n";
    let place = directory.path().join("recipe/setup.sh");
    write(&place, script);
    let build = ["image", "build", "--file", text(&recipe)];

    // A script that fails publishes nothing and is told of, with where all that it said is.
    write(&place, "#!/bin/sh\necho to be seen\nexit 7\n");
    let log = slate.state().join("log/build-node.log");
    let said = slate.fails(
        &build,
        1,
        &["setup.sh", "exit status: 7", "to be seen", text(&log)],
    );
    assert!(said.contains("nothing was published"), "{said}");
    assert!(
        fs::read_to_string(&log)
            .expect("a log")
            .contains("to be seen")
    );
    let list = slate.json(&["image", "list", "--json"]);
    assert_eq!(list, serde_json::json!([]), "something is left behind");
    let left = fs::read_dir(slate.state().join("edit")).expect("a directory");
    assert_eq!(left.count(), 0, "something is left behind");

    write(&place, script);
    slate.run(&build);
    let shown = slate.json(&["image", "show", "node", "--json"]);
    let kernel = shown["kernel"]["version"].as_str().expect("a kernel");
    let out = directory.path().join("out");
    slate.run(&["image", "export", "node", text(&out)]);
    let read = |path: &str| fs::read_to_string(out.join(path)).expect("a file");
    assert_eq!(read("etc/motd"), "from a recipe\n");
    assert_eq!(read("opt/tools/a/b"), "tool\n");
    assert_eq!(read("etc/kernel-of-image").trim(), kernel);
    assert!(read("etc/passwd").contains("somebody"));
    assert!(!out.join("usr/sbin/policy-rc.d").exists());
}

#[test]
#[ignore = "builds images as root: cargo xtask test"]
fn what_a_recipe_asks_for_in_vain_is_named() {
    if impossible(&DEBIAN) {
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let slate = slate(directory.path());
    let recipe = directory.path().join("bad.toml");
    write(
        &recipe,
        "name = \"x\"\nfrom = \"debian:trixie\"\npackges = [\"vim\"]\n",
    );
    let build = ["image", "build", "-f", text(&recipe)];
    slate.fails(&build, 1, &["packges", "bad.toml", "packages = "]);
    write(
        &recipe,
        "name = \"x\"\nfrom = \"debian:trixie\"\nscripts = [\"none.sh\"]\n",
    );
    slate.fails(&build, 1, &["none.sh", "No such file"]);
    let build = ["image", "build", "x", "--from", "debian:sid"];
    slate.fails(&build, 2, &["debian:trixie", "rocky:9", "debian:sid"]);
    slate.fails(
        &["image", "build", "-f", "x", "--from", "debian:trixie"],
        2,
        &["--from"],
    );

    // Nobody listens there.
    let mirror = "http://127.0.0.1:9/debian";
    let build = [
        "image",
        "build",
        "x",
        "--from",
        "debian:trixie",
        "--mirror",
        mirror,
    ];
    let cache = directory.path().join("cache");
    let output = slate
        .command(&build)
        .env("SLATE_CACHE_DIR", &cache)
        .output();
    let output = output.expect("slate starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    let log = slate.state().join("log/build-x.log");
    for part in ["127.0.0.1:9", "reaches the mirror", text(&log)] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(
        fs::read_to_string(&log)
            .expect("a log")
            .contains("127.0.0.1")
    );
    assert_eq!(names(&cache), ["build.lock"], "rests of an archive");
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("a directory").flatten();
    let mut names: Vec<_> = entries
        .map(|it| it.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
#[ignore = "builds images as root: cargo xtask test --full"]
fn full_a_package_that_debian_has_not_is_named() {
    if impossible(&DEBIAN) {
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let slate = slate(directory.path());
    let build = ["image", "build", "x", "--from", "debian:bookworm"];
    let build = [&build[..], &["--packages", "tree,slate-no-such-package"]].concat();
    let cache = directory.path().join("cache");
    let output = slate
        .command(&build)
        .env("SLATE_CACHE_DIR", &cache)
        .output();
    let output = output.expect("slate starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("no package slate-no-such-package"), "{said}");
    assert_eq!(names(&cache), ["build.lock"], "rests of an archive");
}

/// A repository with as much as an image needs, its packages empty but for a kernel and systemd, in
/// the shape of Rocky's: `$1` is where, signed by a key of its own.
const REPOSITORY: &str = r#"
set -e
cd "$1"
export HOME=$1 GNUPGHOME=$1/gnupg
mkdir -m 700 gnupg
mkdir specs
gpg --batch --quiet --passphrase '' --quick-generate-key 'Test of packages <test@example.invalid>' rsa3072
cat > .rpmmacros <<END
%_gpg_name test@example.invalid
%_topdir $1/rpmbuild
%__gpg /usr/bin/gpg
END
gpg --export --armor > RPM-GPG-KEY-Rocky-9
{
    cat <<END
Name: slate-test
Version: 1
Release: 1
Summary: Packages of a test
License: MIT
BuildArch: x86_64
%global debug_package %{nil}
%global __os_install_post %{nil}
%description
Packages of a test.
%install
mkdir -p %{buildroot}/usr/lib/systemd %{buildroot}/usr/lib/modules/5.14.0-1.el9.x86_64 %{buildroot}/usr/sbin
mkdir -p %{buildroot}/usr/share/filelist %{buildroot}/var/lib %{buildroot}/run %{buildroot}/tmp %{buildroot}/usr/bin
echo systemd > %{buildroot}/usr/lib/systemd/systemd
chmod 755 %{buildroot}/usr/lib/systemd/systemd
ln -s ../lib/systemd/systemd %{buildroot}/usr/sbin/init
echo kernel > %{buildroot}/usr/lib/modules/5.14.0-1.el9.x86_64/vmlinuz
printf 'kernel/nfsv4.ko:\nkernel/overlay.ko:\n' > %{buildroot}/usr/lib/modules/5.14.0-1.el9.x86_64/modules.dep
echo capable > %{buildroot}/usr/bin/capable
chmod 755 %{buildroot}/usr/bin/capable
for part in bin sbin lib; do ln -s usr/\$part %{buildroot}/\$part; done
END
    for name in basesystem rocky-release systemd-udev dbus-broker NetworkManager chrony iproute kmod \
        util-linux shadow-utils passwd procps-ng less ca-certificates openssh-server kernel-modules \
        shim-x64 grub2-efi-x64 lldpd; do
        printf '%%package -n %s\nSummary: Test\n%%description -n %s\nTest.\n%%files -n %s\n' $name $name $name
    done
    cat <<END
%package -n systemd
Summary: Test
%description -n systemd
Test.
%files -n systemd
/usr/lib/systemd
/usr/sbin/init
/bin
/sbin
/lib
/run
/tmp
%package -n iputils
Summary: Test
%description -n iputils
Test.
%files -n iputils
%caps(cap_net_raw=p) /usr/bin/capable
%package -n kernel-core
Summary: Test
Requires: kernel-modules
%description -n kernel-core
Test.
%files -n kernel-core
/usr/lib/modules
END
} > specs/test.spec
rpmbuild --quiet -bb specs/test.spec
for name in BaseOS AppStream; do
    mkdir -p 9/$name/x86_64/os
done
find rpmbuild/RPMS -name '*.rpm' -exec mv {} 9/BaseOS/x86_64/os/ \;
mv 9/BaseOS/x86_64/os/lldpd-*.rpm 9/AppStream/x86_64/os/
find 9 -name '*.rpm' -exec rpmsign --addsign {} + > /dev/null
for name in BaseOS AppStream; do
    createrepo_c --quiet 9/$name/x86_64/os
done
"#;

/// The mirror's directory.
fn repository(directory: &Path) -> PathBuf {
    let mirror = directory.join("mirror");
    fs::create_dir(&mirror).expect("a directory");
    let output = Command::new("sh")
        .args(["-c", REPOSITORY, "sh"])
        .arg(&mirror)
        .output();
    let output = output.expect("sh starts");
    assert!(output.status.success(), "{output:?}");
    mirror
}

#[test]
#[ignore = "builds images as root: cargo xtask test"]
fn rpm_packages_become_an_image() {
    if impossible(&ROCKY) {
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let slate = slate(directory.path());
    let mirror = repository(directory.path());
    let url = format!("file://{}", mirror.display());
    let cache = directory.path().join("cache");
    let build = |name: &str, packages: &str| {
        let words = [
            "image", "build", name, "--from", "rocky:9", "--mirror", &url,
        ];
        let mut command = slate.command(&words);
        command.env("SLATE_CACHE_DIR", &cache);
        if !packages.is_empty() {
            command.args(["--packages", packages]);
        }
        let output = command.output().expect("slate starts");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), said)
    };
    let (code, said) = build("rocky9", "lldpd");
    assert_eq!(code, Some(0), "{said}");
    let shown = slate.json(&["image", "show", "rocky9", "--json"]);
    assert_eq!(shown["kernel"]["version"], "5.14.0-1.el9.x86_64");
    let out = directory.path().join("out");
    slate.run(&["image", "export", "rocky9", text(&out)]);
    for path in [
        "var/lib/rpm/rpmdb.sqlite",
        "usr/sbin/init",
        "etc/machine-id",
    ] {
        assert!(out.join(path).symlink_metadata().is_ok(), "{path}");
    }
    for path in [
        "dev/null",
        "etc/kernel/install.d/50-dracut.install",
        "var/cache/dnf",
    ] {
        assert!(out.join(path).symlink_metadata().is_err(), "{path}");
    }
    let mut value = [0; 64];
    let capable = rustix::fs::lgetxattr(
        out.join("usr/bin/capable"),
        "security.capability",
        &mut value,
    );
    assert!(
        capable.is_ok(),
        "a file's capabilities are lost: {capable:?}"
    );

    // The package manager of this machine takes one package out, and its records are read.
    let remove = "HOME=$1 rpm --root \"$2\" --erase lldpd";
    let mut erase = Command::new("sh");
    erase.args(["-c", remove, "sh"]).args([&mirror, &out]);
    fs::write(mirror.join(".rpmmacros"), "%_dbpath /var/lib/rpm\n").expect("a file");
    let erased = erase.output().expect("sh starts");
    assert!(erased.status.success(), "{erased:?}");
    slate.run(&["image", "import", "rocky9:next", text(&out)]);
    let diff = slate.json(&["image", "diff", "rocky9", "rocky9:next", "--json"]);
    let expected = serde_json::json!([{ "name": "lldpd.x86_64", "before": "1-1", "after": null }]);
    assert_eq!(diff["packages"], expected);
    let shown = slate.run(&["image", "diff", "rocky9", "rocky9:next"]);
    for part in [
        "5.14.0-1.el9.x86_64 in both",
        "Size ",
        "1 removed",
        "lldpd.x86_64  1-1",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }

    let (code, said) = build("other", "slate-no-such-package");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("no package slate-no-such-package"), "{said}");
    assert!(said.contains("log/build-other.log"), "{said}");

    // A package that was changed after it was signed.
    let packages = mirror.join("9/AppStream/x86_64/os");
    let mut entries = fs::read_dir(&packages).expect("a directory").flatten();
    let package = entries.find(|it| it.file_name().to_string_lossy().ends_with(".rpm"));
    let package = package.expect("a package").path();
    let sign =
        "HOME=$1; export HOME; rpmsign --delsign \"$2\" > /dev/null && createrepo_c --quiet \"$3\"";
    let mut unsign = Command::new("sh");
    unsign
        .args(["-c", sign, "sh"])
        .args([&mirror, &package, &packages]);
    assert!(unsign.status().expect("sh starts").success());
    fs::remove_dir_all(&cache).expect("the cache goes");
    let (code, said) = build("other", "lldpd");
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("not signed") || said.contains("GPG"),
        "{said}"
    );
    let left: Vec<String> = names(&cache).into_iter().filter(|it| it != "log").collect();
    assert_eq!(left, ["build.lock"], "rests of a build");
    let list = slate.json(&["image", "list", "--json"]);
    assert_eq!(list.as_array().map(Vec::len), Some(2), "{list}");
}
