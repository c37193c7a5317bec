//! The boot as a straight list of steps.

use std::convert::Infallible;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use rustix::mount::{MountFlags, mount};
use rustix::rand::{GetRandomFlags, getrandom};
use rustix::system::{RebootCommand, reboot, sethostname};
use wire::cmdline::{BootArgs, Break, NfsRoot};
use wire::identity::Document;
use wire::stage::Stage;
use wire::trace::TRACE_PATH;

use crate::adopt::{self, adopt};
use crate::backoff::Backoff;
use crate::failure::{Failure, Remedy};
use crate::modules::Modules;
use crate::network::{self, Configured};
use crate::report::{BEACON_PATH, Reporter, monotonic_us};
use crate::stops::Stops;
use crate::{exchange, mount as root_mount, netconsole, switch, uevent, warm};

/// How long a node shows what is wrong with its configuration before it tries another boot.
const REBOOT_AFTER: Duration = Duration::from_secs(60);
/// Where this program stays after the boot.
pub const AGENT_PATH: &str = "/run/slate/agent";

/// Boots. Never returns: the root's init takes this process over, or the machine reboots.
pub fn main() -> ! {
    let mounted = mount_api();
    let report: &Reporter = Box::leak(Box::new(Reporter::new()));
    if let Err(error) = mounted {
        give_up(
            report,
            &Failure::lasting(Stage::Init, error, "is this process 1 of an initramfs?"),
        );
    }
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let (args, errors) = BootArgs::parse(line.trim_end());
    let args: &BootArgs = Box::leak(Box::new(args));
    report.set_slate(args.slate);
    report.progress(
        Stage::Init,
        &format!("slate init {}", env!("CARGO_PKG_VERSION")),
    );
    for error in errors {
        report.failure(Stage::Init, &error.to_string());
    }
    match boot(args, report) {
        Ok(never) => match never {},
        Err(failure) => give_up(report, &failure),
    }
}

fn boot(args: &'static BootArgs, report: &'static Reporter) -> Result<Infallible, Failure> {
    let root = args.root.as_ref().ok_or_else(|| {
        let hint = "write root=nfs:SERVER:/PATH on the kernel command line";
        Failure::lasting(Stage::Mount, "no usable root=", hint)
    })?;
    let mut stops = Stops::wanted(args, report);
    stops.at(Break::Init);
    let modules: &Modules<'_> = Box::leak(Box::new(Modules::open(args, report)));
    warn_of_other_kernel(modules, report);
    let core = thread::spawn(move || modules.load_core());
    uevent::watch(modules);
    thread::spawn(move || modules.coldplug());
    network::loopback();
    if !args.vlans.is_empty() {
        modules.load("8021q");
    }
    if !args.bonds.is_empty() {
        modules.load("bonding");
    }
    let network = bring_up(args, report)?;
    report.online(network.link.mac);
    let text = format!("{} {}", network.link.name, network.lease.address);
    report.progress(Stage::Network, &text);
    report.drivers(&modules.drivers());
    stops.at(Break::Network);
    let identity = args.slate.map(|slate| {
        let mac = network.link.mac;
        thread::spawn(move || exchange::fetch(&slate, mac, report))
    });
    let _ = core.join();
    name_client(args, &network);
    mount_root(root, args, &network, report)?;
    // The mount has resolved the server's address, and the network is busy with the identity only.
    netconsole::start(args, &network, modules, report);
    let document = identity
        .map(|it| it.join().unwrap_or_else(|_| Err(panicked())))
        .transpose()?;
    leave_agent(report);
    stops.at(Break::Mount);
    enter(args, &network, document.as_ref(), &mut stops)
}

fn panicked() -> Failure {
    Failure::lasting(
        Stage::Mount,
        "the identity exchange panicked",
        "please report this",
    )
}

/// The file systems that the kernel's interfaces live in.
fn mount_api() -> std::io::Result<()> {
    let quiet = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
    let mounts = [
        ("/dev", "devtmpfs", MountFlags::NOSUID, c"mode=0755"),
        ("/proc", "proc", quiet, c""),
        ("/sys", "sysfs", quiet, c""),
        (
            "/run",
            "tmpfs",
            MountFlags::NOSUID | MountFlags::NODEV,
            c"mode=0755,size=20%",
        ),
    ];
    for (path, kind, flags, data) in mounts {
        fs::create_dir_all(path)?;
        match mount(kind, path, kind, flags, data) {
            // A kernel with CONFIG_DEVTMPFS_MOUNT has been here.
            Ok(()) | Err(rustix::io::Errno::BUSY) => {}
            Err(error) => return Err(std::io::Error::other(format!("mounting {path}: {error}"))),
        }
    }
    fs::create_dir_all("/run/slate")
}

fn warn_of_other_kernel(modules: &Modules<'_>, report: &Reporter) {
    let running = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    if !modules.kernel().is_empty() && modules.kernel() != running {
        let text = format!(
            "modules are for {}, the kernel is {running}",
            modules.kernel()
        );
        report.failure(Stage::Init, &text);
    }
}

/// A seed for jitter and transaction ids: nothing secret, so it need not wait for entropy.
pub fn random() -> u64 {
    let mut bytes = [0; 8];
    match getrandom(&mut bytes[..], GetRandomFlags::INSECURE) {
        Ok(_) => u64::from_ne_bytes(bytes),
        Err(_) => monotonic_us(),
    }
}

fn bring_up(args: &BootArgs, report: &Reporter) -> Result<Configured, Failure> {
    let attempt = || network::bring_up(args, report, random());
    until_done(report, attempt)
}

fn mount_root(
    root: &NfsRoot,
    args: &BootArgs,
    network: &Configured,
    report: &Reporter,
) -> Result<(), Failure> {
    let lease = &network.lease;
    let upper_size = args.param("slate.upper").unwrap_or("50%");
    let mounted = until_done(report, || {
        root_mount::root(root, lease.next_server, lease.address, upper_size)
    })?;
    report.progress(Stage::Mount, &mounted);
    Ok(())
}

fn until_done<T>(
    report: &Reporter,
    mut attempt: impl FnMut() -> Result<T, Failure>,
) -> Result<T, Failure> {
    let mut waits = Backoff::new(
        Duration::from_millis(500),
        Duration::from_secs(30),
        random(),
    );
    loop {
        match attempt() {
            Err(failure) if failure.remedy == Remedy::Retry => {
                report.failure(failure.stage, &failure.to_string());
                thread::sleep(waits.wait());
            }
            result => return result,
        }
    }
}

/// NFS servers tell clients apart by these names: nodes that all call themselves `(none)` steal
/// each other's state. Who names them on the command line (`hostname=`, which kernels since 6.0 heed
/// by themselves, and `nfs.nfs4_unique_id=`) is obeyed.
fn name_client(args: &BootArgs, network: &Configured) {
    let unique = format!("slate-{}", network.link.mac.plain());
    let name = args
        .param("hostname")
        .or(network.lease.hostname.as_deref())
        .unwrap_or(&unique);
    let _ = sethostname(name.as_bytes());
    if args.nfs_unique_id.is_none() {
        let _ = fs::write("/sys/module/nfs/parameters/nfs4_unique_id", &unique);
    }
}

/// The agent is this program once more, outside the root.
fn leave_agent(report: &Reporter) {
    if let Err(error) = fs::copy("/init", AGENT_PATH) {
        report.info(Stage::SwitchRoot, &format!("{AGENT_PATH}: {error}"));
    }
    // Not there before a version's first boot is over.
    let _ = fs::copy(TRACE_PATH, warm::TRACE);
}

fn enter(
    args: &BootArgs,
    network: &Configured,
    document: Option<&Document>,
    stops: &mut Stops<'_>,
) -> Result<Infallible, Failure> {
    let report = stops.report;
    let hint = "does the image hold a complete system?";
    switch::switch_root().map_err(|error| {
        Failure::lasting(Stage::SwitchRoot, format!("switch_root: {error}"), hint)
    })?;
    adopt(network, document, report);
    let init = args.init.as_deref().unwrap_or("/sbin/init");
    report.progress(Stage::SwitchRoot, init);
    stops.at(Break::SwitchRoot);
    if Path::new(warm::TRACE).exists()
        && let Err(error) = Command::new(AGENT_PATH)
            .arg0("@slate-warm")
            .arg("warm")
            .spawn()
    {
        report.info(Stage::SwitchRoot, &format!("reading ahead: {error}"));
    }
    // Last: the agent goes on counting from it, and what has a number twice is heard once.
    if let Some(datagram) = report.datagram() {
        let _ = adopt::write(BEACON_PATH, 0o600, &datagram);
    }
    let error = Command::new(init).args(&args.init_args).exec();
    let cause = format!("starting {init}: {error}");
    Err(Failure::lasting(Stage::SwitchRoot, cause, hint))
}

/// Says what is wrong, long enough to be read, then reboots into what may be a better plan.
fn give_up(report: &Reporter, failure: &Failure) -> ! {
    report.failure(failure.stage, &failure.to_string());
    report.log(&format!("rebooting in {} s", REBOOT_AFTER.as_secs()));
    for _ in 0..6 {
        thread::sleep(REBOOT_AFTER / 6);
        report.repeat();
    }
    let _ = reboot(RebootCommand::Restart);
    // Process 1 must not end, or the kernel panics.
    loop {
        thread::park();
    }
}
