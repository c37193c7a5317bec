//! Whole initramfs from small made-up kernels, and from a real one where the machine has it.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::module::tests::elf_with;
use super::*;
use crate::files::HostDir;

const KERNEL: &str = "6.1.0-1-test";

/// A usr-merged image with a kernel in it.
fn image(config: &str) -> tempfile::TempDir {
    let top = tempfile::tempdir().unwrap();
    let put = |path: &str, bytes: &[u8]| {
        let path = top.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    let xz = |bytes: Vec<u8>| {
        let mut out = Vec::new();
        lzma_rs::xz_compress(&mut bytes.as_slice(), &mut out).unwrap();
        out
    };
    let modules = format!("usr/lib/modules/{KERNEL}");
    put(
        &format!("{modules}/modules.dep"),
        b"kernel/nfs.ko: kernel/sunrpc.ko.xz\n\
          kernel/nfsv4.ko: kernel/nfs.ko kernel/sunrpc.ko.xz\n\
          kernel/sunrpc.ko.xz:\n\
          kernel/tg3.ko.zst:\n\
          kernel/broadcom.ko:\n\
          kernel/unwanted.ko:\n\
          kernel/virtio_net.ko:\n",
    );
    put(
        &format!("{modules}/modules.builtin"),
        b"kernel/fs/overlayfs/overlay.ko\n",
    );
    put(
        &format!("{modules}/modules.alias"),
        b"alias pci:v000014E4d* tg3\nalias virtio:d00000001v* virtio_net\nalias fs-nfs nfs\n",
    );
    for name in ["nfs", "nfsv4", "broadcom", "virtio_net"] {
        put(
            &format!("{modules}/kernel/{name}.ko"),
            &elf_with(name.as_bytes()),
        );
    }
    put(
        &format!("{modules}/kernel/sunrpc.ko.xz"),
        &xz(elf_with(b"sunrpc")),
    );
    let tg3 = elf_with(
        b"firmware=tigon/tg3.bin\0firmware=tigon/none.bin\0firmware=../../../etc/shadow\0",
    );
    put(
        &format!("{modules}/kernel/tg3.ko.zst"),
        &zstd::bulk::compress(&tg3, 3).unwrap(),
    );
    put(
        "usr/lib/firmware/tigon/tg3.bin.xz",
        &xz(b"firmware".to_vec()),
    );
    put("etc/shadow", b"root:*:1::::::\n");
    put(&format!("boot/config-{KERNEL}"), config.as_bytes());
    std::os::unix::fs::symlink("usr/lib", top.path().join("lib")).unwrap();
    top
}

fn inits() -> Inits {
    Arc::<[u8]>::from(&b"#!init"[..]).into()
}

fn built(top: &Path, profile: &Profile) -> Result<Initramfs, Error> {
    build(
        &ModuleSource::in_image(&HostDir::new(top), KERNEL),
        &Wanted::by(profile),
        &inits(),
    )
}

fn archive(initramfs: &Initramfs) -> Vec<u8> {
    let bytes = &initramfs.bytes[initramfs.microcode_bytes..];
    match initramfs.compression {
        Compression::Zstd => zstd::decode_all(bytes).unwrap(),
        Compression::Gzip => {
            let mut archive = Vec::new();
            io::Read::read_to_end(&mut flate2::read::GzDecoder::new(bytes), &mut archive).unwrap();
            archive
        }
        Compression::None => bytes.to_vec(),
    }
}

/// What is in it, modules unfolded as /init does it.
fn members(initramfs: &Initramfs) -> Vec<(String, u32, Vec<u8>)> {
    cpio::Reader::new(&archive(initramfs))
        .map(Result::unwrap)
        .map(|member| {
            let path = String::from_utf8(member.name.to_vec()).unwrap();
            let mut data = member.data.to_vec();
            if path.ends_with(".ko") {
                wire::fold::unfold(&mut data).unwrap();
            }
            (path, member.mode, data)
        })
        .collect()
}

fn table(initramfs: &Initramfs) -> Table {
    let members = members(initramfs);
    Table::parse(
        &members
            .iter()
            .find(|(path, ..)| path == "modules/table")
            .unwrap()
            .2,
    )
    .unwrap()
}

#[test]
fn holds_init_and_chosen_modules_and_their_firmware() {
    let image = image("CONFIG_RD_ZSTD=y\n");
    let initramfs = built(image.path(), &Profile::Server).unwrap();
    assert_eq!(initramfs.compression, Compression::Zstd);
    assert_eq!(
        initramfs.modules,
        ["broadcom", "nfs", "nfsv4", "sunrpc", "tg3", "virtio_net"]
    );
    assert_eq!(initramfs.firmware, ["tigon/tg3.bin"]);
    let members = members(&initramfs);
    let paths: Vec<_> = members.iter().map(|(path, ..)| path.as_str()).collect();
    assert_eq!(
        paths,
        [
            "dev",
            "dev/console",
            "init",
            "lib",
            "lib/firmware",
            "lib/firmware/tigon",
            "lib/firmware/tigon/tg3.bin",
            "modules",
            "modules/broadcom.ko",
            "modules/nfs.ko",
            "modules/nfsv4.ko",
            "modules/sunrpc.ko",
            "modules/table",
            "modules/tg3.ko",
            "modules/virtio_net.ko",
            "proc",
            "run",
            "sys",
            "sysroot",
        ]
    );
    let content = |path: &str| &members.iter().find(|(at, ..)| at == path).unwrap().2;
    assert_eq!(content("init"), b"#!init");
    assert_eq!(content("lib/firmware/tigon/tg3.bin"), b"firmware");
    assert_eq!(content("modules/sunrpc.ko"), &elf_with(b"sunrpc"));
}

#[test]
fn modules_are_folded_where_the_whole_is_compressed() {
    let image = image("CONFIG_RD_ZSTD=y\nCONFIG_RD_GZIP=y\n");
    let holds_plain_module = |compression| {
        let initramfs = built_with(image.path(), |it| it.compression = Some(compression));
        let module = elf_with(b"nfs");
        let archive = archive(&initramfs.unwrap());
        archive.windows(module.len()).any(|it| it == module)
    };
    assert!(holds_plain_module(Compression::None));
    assert!(!holds_plain_module(Compression::Zstd));
    assert!(!holds_plain_module(Compression::Gzip));
}

#[test]
fn table_tells_how_to_load_them() {
    let image = image("CONFIG_RD_ZSTD=y\n");
    let table = table(&built(image.path(), &Profile::Server).unwrap());
    assert_eq!(table.core, ["nfs", "nfsv4"], "overlay is built in");
    let needs = |name| {
        table
            .module(name)
            .unwrap()
            .needs
            .iter()
            .map(|need| (need.name.as_str(), need.optional))
    };
    assert_eq!(
        needs("nfsv4").collect::<Vec<_>>(),
        [("sunrpc", false), ("nfs", false)]
    );
    assert_eq!(needs("tg3").collect::<Vec<_>>(), [("broadcom", true)]);
    assert_eq!(
        table
            .for_modalias("virtio:d00000001v00001AF4")
            .collect::<Vec<_>>(),
        ["virtio_net"]
    );
    assert_eq!(table.for_modalias("fs-nfs").count(), 0);
}

#[test]
fn the_images_modprobe_configuration_is_obeyed() {
    let image = image("CONFIG_RD_ZSTD=y\n");
    let folder = image.path().join("etc/modprobe.d");
    fs::create_dir_all(&folder).unwrap();
    let conf =
        "options virtio_net napi_tx=0\nblacklist tg3\nblacklist sunrpc\noptions unwanted x=1\n";
    fs::write(folder.join("site.conf"), conf).unwrap();
    let initramfs = built(image.path(), &Profile::Server).unwrap();
    assert_eq!(initramfs.modules, ["nfs", "nfsv4", "sunrpc", "virtio_net"]);
    let table = table(&initramfs);
    assert_eq!(table.module("virtio_net").unwrap().options, "napi_tx=0");
    assert_eq!(table.for_modalias("pci:v000014E4d1").count(), 0);
    // By name everything can be had, as with modprobe.
    let tg3 = ["tg3".to_owned()];
    let asked = built_with(image.path(), |it| it.modules = &tg3).unwrap();
    assert_eq!(self::table(&asked).core, ["nfs", "nfsv4", "tg3"]);
}

#[test]
fn modules_lie_wherever_modules_dep_says() {
    let image = image("CONFIG_RD_ZSTD=y\n");
    let modules = image.path().join("usr/lib/modules").join(KERNEL);
    let put = |path: &Path, bytes: &[u8]| {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    // DKMS, a vendor's package, and one that an older kernel's package brought.
    let updated = zstd::bulk::compress(&elf_with(b"updated"), 3).unwrap();
    put(&modules.join("updates/dkms/virtio_net.ko.zst"), &updated);
    put(&modules.join("extra/helper.ko"), &elf_with(b"helper"));
    let other = image.path().join("usr/lib/modules/5.14.0-1");
    put(
        &other.join("extra/igb.ko"),
        &elf_with(b"igb of another kernel"),
    );
    fs::create_dir(modules.join("weak-updates")).unwrap();
    let link = modules.join("weak-updates/igb.ko");
    std::os::unix::fs::symlink("/lib/modules/5.14.0-1/extra/igb.ko", link).unwrap();
    let dep = fs::read_to_string(modules.join("modules.dep")).unwrap();
    let dep = dep.replace("kernel/virtio_net.ko:", "updates/dkms/virtio_net.ko.zst:")
        + "extra/helper.ko:\nweak-updates/igb.ko:\n";
    fs::write(modules.join("modules.dep"), dep).unwrap();
    let soft = "softdep igb pre: helper\nsoftdep virtio_net post: helper\n";
    fs::write(modules.join("modules.softdep"), soft).unwrap();

    let initramfs = built(image.path(), &Profile::Server).unwrap();
    let members = members(&initramfs);
    let content = |name: &str| &members.iter().find(|(at, ..)| at == name).unwrap().2;
    assert_eq!(content("modules/virtio_net.ko"), &elf_with(b"updated"));
    assert_eq!(
        content("modules/igb.ko"),
        &elf_with(b"igb of another kernel")
    );
    assert_eq!(content("modules/helper.ko"), &elf_with(b"helper"));
    let table = table(&initramfs);
    let needs = &table.module("igb").unwrap().needs;
    assert!(needs[0].name == "helper" && needs[0].optional);
    let needs = &table.module("virtio_net").unwrap().needs;
    assert!(needs.is_empty(), "what follows it helps nobody before");
}

#[test]
fn microcode_stands_first_where_its_processors_want_it() {
    let image = image("CONFIG_RD_ZSTD=y\n");
    let put = |name: &str, bytes: &[u8]| {
        let path = image.path().join("usr/lib/firmware").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    let without = built(image.path(), &Profile::Server).unwrap();
    assert_eq!(without.microcode_bytes, 0);
    put("intel-ucode/06-55-04", &[1; 1024]);
    let packed = zstd::bulk::compress(&[2; 2048], 3).unwrap();
    put("intel-ucode/06-3f-02.zst", &packed);
    put("intel-ucode/list", b"no microcode");
    put("amd-ucode/microcode_amd.bin", &[3; 100]);
    put("amd-ucode/microcode_amd.bin.asc", b"no microcode");
    let initramfs = built(image.path(), &Profile::Server).unwrap();
    let microcode = &initramfs.bytes[..initramfs.microcode_bytes];
    let files: Vec<_> = cpio::Reader::new(microcode)
        .map(Result::unwrap)
        .filter(|member| member.mode & cpio::S_IFMT == cpio::S_IFREG)
        .collect();
    let intel = [vec![2; 2048], vec![1; 1024]].concat();
    let expected = [
        ("kernel/x86/microcode/GenuineIntel.bin", intel.clone()),
        ("kernel/x86/microcode/AuthenticAMD.bin", vec![3; 100]),
    ];
    for (file, (path, bytes)) in files.iter().zip(&expected) {
        assert_eq!((file.name, file.data), (path.as_bytes(), &bytes[..]));
    }
    assert_eq!(files.len(), expected.len());
    // Also behind the trace of an earlier boot.
    for whole in [
        initramfs.bytes.clone(),
        with_trace(&initramfs.bytes, b"trace"),
    ] {
        let at = whole.windows(intel.len()).position(|part| part == intel);
        assert_eq!(at.map(|at| at % 16), Some(0));
        assert_eq!(inspect(&whole).unwrap(), Encoding::Zstd);
    }
    assert_eq!(members(&initramfs), members(&without));
    let guest = built(image.path(), &Profile::Virtual).unwrap();
    assert_eq!(guest.microcode_bytes, 0, "the host has it");
}

#[test]
fn same_inputs_give_same_bytes_and_key() {
    let image = image("CONFIG_RD_GZIP=y\n");
    let once = built(image.path(), &Profile::Virtual).unwrap();
    assert_eq!(once.compression, Compression::Gzip);
    assert_eq!(
        once.bytes,
        built(image.path(), &Profile::Virtual).unwrap().bytes
    );
    let key_of = |wanted: &Wanted<'_>, init: &[u8]| {
        cache_key(
            &Digest([7; 32]),
            KERNEL,
            wanted,
            &Arc::<[u8]>::from(init).into(),
        )
    };
    let key = |profile: &Profile, init: &[u8]| key_of(&Wanted::by(profile), init);
    let inventory = |aliases: [&str; 2]| Profile::Inventory(aliases.map(str::to_owned).to_vec());
    assert_eq!(
        key(&inventory(["a", "b"]), b"i"),
        key(&inventory(["b", "a"]), b"i")
    );
    assert_ne!(key(&Profile::Virtual, b"i"), key(&Profile::Server, b"i"));
    assert_ne!(key(&Profile::Virtual, b"i"), key(&Profile::Virtual, b"j"));
    let files = [ExtraFile {
        path: "/bin/busybox".into(),
        mode: 0o755,
        bytes: b"x".to_vec(),
    }];
    let with_files = Wanted {
        files: &files,
        ..Wanted::by(&Profile::Virtual)
    };
    assert_ne!(key_of(&with_files, b"i"), key(&Profile::Virtual, b"i"));
}

#[test]
fn the_kernel_s_processor_decides_which_init_goes_in() {
    let image = image("CONFIG_RD_ZSTD=y\n");
    let files = HostDir::new(image.path());
    let source = ModuleSource::in_image(&files, KERNEL);
    let wanted = Wanted::by(&Profile::Virtual);
    let is_for = |machine: u16| {
        for name in ["nfs", "nfsv4", "virtio_net"] {
            let path = format!("usr/lib/modules/{KERNEL}/kernel/{name}.ko");
            let mut module = elf_with(name.as_bytes());
            module[0x12..0x14].copy_from_slice(&machine.to_le_bytes());
            fs::write(image.path().join(path), module).unwrap();
        }
        // The one that is compressed.
        let mut module = elf_with(b"sunrpc");
        module[0x12..0x14].copy_from_slice(&machine.to_le_bytes());
        let mut packed = Vec::new();
        lzma_rs::xz_compress(&mut module.as_slice(), &mut packed).unwrap();
        let path = format!("usr/lib/modules/{KERNEL}/kernel/sunrpc.ko.xz");
        fs::write(image.path().join(path), packed).unwrap();
    };
    let both = Inits {
        aarch64: Some(Arc::from(&b"#!arm"[..])),
        ..inits()
    };
    let init_of = |inits: &Inits| {
        let initramfs = build(&source, &wanted, inits)?;
        let mut members = members(&initramfs).into_iter();
        let init = members.find(|it| it.0 == "init").unwrap().2;
        assert_eq!(initramfs.init_bytes, init.len());
        Ok::<_, Error>(init)
    };
    is_for(62);
    assert_eq!(init_of(&both).unwrap(), b"#!init");
    is_for(183);
    assert_eq!(init_of(&both).unwrap(), b"#!arm");
    let refused = init_of(&inits()).unwrap_err().to_string();
    let expected = format!(
        "kernel {KERNEL} is for 64-bit ARM, and this build of slate has no /init for that: it has one for 64-bit x86"
    );
    assert_eq!(refused, expected);
    is_for(243);
    let refused = init_of(&both).unwrap_err().to_string();
    assert!(
        refused.contains("RISC-V") && refused.ends_with("64-bit x86 and one for 64-bit ARM"),
        "{refused}"
    );
}

fn built_with<'a>(top: &Path, change: impl FnOnce(&mut Wanted<'a>)) -> Result<Initramfs, Error> {
    let mut wanted = Wanted::by(&Profile::Virtual);
    change(&mut wanted);
    build(
        &ModuleSource::in_image(&HostDir::new(top), KERNEL),
        &wanted,
        &inits(),
    )
}

#[test]
fn modules_asked_for_by_name_are_in_it_and_get_loaded() {
    let image = image("CONFIG_RD_ZSTD=y\n");
    let names = ["tg3", "unwanted", "overlay"].map(str::to_owned);
    let modules = image.path().join("usr/lib/modules").join(KERNEL);
    fs::write(modules.join("kernel/unwanted.ko"), elf_with(b"unwanted")).unwrap();
    let initramfs = built_with(image.path(), |it| it.modules = &names).unwrap();
    let table = table(&initramfs);
    assert_eq!(
        table.for_modalias("pci:v000014E4d1").collect::<Vec<_>>(),
        ["tg3"]
    );
    assert_eq!(
        table.core,
        ["nfs", "nfsv4", "unwanted"],
        "no device would ask for it"
    );
    assert!(initramfs.modules.contains(&"broadcom".to_owned()));
    let unknown = ["nonsense".to_owned()];
    let error = built_with(image.path(), |it| it.modules = &unknown).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("no module nonsense in kernel 6.1.0-1-test"),
        "{error}"
    );
}

#[test]
fn added_files_take_nobodys_place() {
    let image = image("CONFIG_RD_ZSTD=y\n");
    let add = |path: &str| {
        let files = [ExtraFile {
            path: path.into(),
            mode: 0o600,
            bytes: b"x".to_vec(),
        }];
        built_with(image.path(), |it| {
            it.files = &files;
            it.compression = Some(Compression::None);
        })
    };
    let initramfs = add("/etc/site/conf").unwrap();
    let added = (
        "etc/site/conf".to_owned(),
        cpio::S_IFREG | 0o600,
        b"x".to_vec(),
    );
    assert!(members(&initramfs).contains(&added));
    for path in [
        "/init",
        "/init/x",
        "/dev",
        "/dev/console/x",
        "/a/../b",
        "",
        "/",
    ] {
        assert!(matches!(add(path), Err(Error::BadPath { .. })), "{path}");
    }
}

#[test]
fn a_compression_that_the_kernel_lacks_is_refused() {
    let image = image("CONFIG_RD_GZIP=y\n");
    let asked = |compression| built_with(image.path(), |it| it.compression = Some(compression));
    let error = asked(Compression::Zstd).unwrap_err().to_string();
    assert!(error.contains("cannot undo zstd: choose gzip"), "{error}");
    assert_eq!(
        asked(Compression::Gzip).unwrap().compression,
        Compression::Gzip
    );
}

#[test]
fn what_is_missing_is_named() {
    let image = image("");
    let modules = image.path().join("usr/lib/modules").join(KERNEL);
    let error = || {
        built(image.path(), &Profile::Virtual)
            .unwrap_err()
            .to_string()
    };
    fs::write(modules.join("kernel/nfs.ko"), "text").unwrap();
    assert!(
        error().contains("kernel/nfs.ko: expected a 64-bit ELF module"),
        "{}",
        error()
    );
    fs::remove_file(modules.join("kernel/nfs.ko")).unwrap();
    assert!(
        error().contains("kernel/nfs.ko is in modules.dep of kernel 6.1.0-1-test and not on disk"),
        "{}",
        error()
    );
    fs::remove_file(modules.join("modules.builtin")).unwrap();
    assert!(
        error().starts_with("no overlay module in kernel 6.1.0-1-test"),
        "{}",
        error()
    );
    fs::remove_file(modules.join("modules.dep")).unwrap();
    assert!(
        error().contains("looked for lib/modules/6.1.0-1-test/modules.dep; install"),
        "{}",
        error()
    );
}

#[test]
fn real_kernel_modules_make_an_initramfs() {
    let top = Path::new("/usr/lib/uml/modules");
    let Some(entry) = fs::read_dir(top)
        .ok()
        .and_then(|mut entries| entries.next()?.ok())
    else {
        println!(
            "skipped: no modules in {} (package user-mode-linux)",
            top.display()
        );
        return;
    };
    let kernel = entry.file_name().into_string().unwrap();
    let files = HostDir::new(entry.path());
    let initramfs = build(
        &ModuleSource::in_directory(&files, &kernel),
        &Wanted::by(&Profile::Virtual),
        &inits(),
    )
    .unwrap();
    let table = table(&initramfs);
    assert!(table.core.contains(&"overlay".to_owned()));
    let nfsv4 = table.module("nfsv4").unwrap();
    assert!(
        nfsv4
            .needs
            .iter()
            .any(|need| need.name == "sunrpc" && !need.optional)
    );
    for module in &table.modules {
        let position = |name: &str| module.needs.iter().position(|need| need.name == name);
        for (at, need) in module.needs.iter().enumerate() {
            let of_need = &table.module(&need.name).unwrap().needs;
            assert!(
                of_need
                    .iter()
                    .all(|deep| position(&deep.name).is_some_and(|deep| deep < at)),
                "{}",
                module.name
            );
        }
    }
}
