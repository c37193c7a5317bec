//! What can be typed: the one definition that parsing, `--help`, man pages and completions share.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use wire::cmdline::Break;
use wire::mac::Mac;

use crate::commands::initrd::InitrdCommand;

/// Boots diskless Linux nodes from one shared, read-only image
///
/// Whatever a node writes lives in its memory: a clean slate is just a reboot away.
#[derive(Parser, Debug)]
#[command(
    name = "slate",
    version,
    arg_required_else_help = true,
    after_help = EXIT_CODES,
    infer_subcommands = false
)]
pub struct Cli {
    #[command(flatten)]
    pub dirs: DirArgs,
    #[command(subcommand)]
    pub command: Command,
}

/// The meaning of the exit codes, as every help page and the manual end with.
const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed
  2  wrong usage
  3  this machine is not ready (not root, a port is taken, a program is missing): nothing was started
  4  no daemon answers
  5  slate doctor: nodes boot, but something should be looked at";

/// Where the state lives; every command takes them.
#[derive(Args, Debug, Clone)]
pub struct DirArgs {
    /// Images, leases and keys
    #[arg(
        long,
        value_name = "DIR",
        global = true,
        env = "SLATE_STATE_DIR",
        default_value = "/var/lib/slate",
        value_hint = ValueHint::DirPath,
        help_heading = "Places"
    )]
    pub state_dir: PathBuf,
    /// The daemon's control socket
    #[arg(
        long,
        value_name = "DIR",
        global = true,
        env = "SLATE_RUN_DIR",
        default_value = "/run/slate",
        value_hint = ValueHint::DirPath,
        help_heading = "Places"
    )]
    pub run_dir: PathBuf,
}

/// The commands, one per thing that a user wants.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Serve nodes on a network: DHCP, TFTP, HTTP and NFS in one process
    Up(UpArgs),
    /// Boot virtual nodes on a private network: all of it, without hardware
    Try(TryArgs),
    /// Import, build and look at images
    #[command(subcommand)]
    Image(ImageCommand),
    /// Build an initramfs as a file, or boot a version with one of your own
    #[command(subcommand)]
    Initrd(InitrdCommand),
    /// Look at nodes and name them
    #[command(subcommand)]
    Node(NodeCommand),
    /// Show what a machine would get if it booted now, without booting it
    ///
    /// The DHCP replies with all their options, the files, and the loader's configuration are those
    /// that its firmware would get. Nothing is kept, and nothing is told of it: BOOT and TOKEN stand
    /// for the id and the secret that a real boot gets. With --as it prints what another DHCP server
    /// has to be told, for `slate up --dhcp off`.
    Plan(PlanArgs),
    /// Make the nodes what a file says: all of it, or nothing where something is wrong
    ///
    /// The file has a table for each node: [nodes.NAME] with mac, and if wanted address, image,
    /// groups and kernel_args. [groups.NAME] says what the nodes of a group are given, with
    /// [groups.all] for every node; [networks."ADDRESS/PREFIX"] what DHCP tells there. What is left
    /// out is the default. What the file does not name stays.
    Apply(ApplyArgs),
    /// Print the nodes, groups and networks as a file for `slate apply`
    Export {
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Bring a new version to nodes a few at a time, and take it back where it does not hold
    ///
    /// One node is tried first, then a batch at a time: rebooted into the version, and asked by a
    /// command whether it holds. Where any fails, every node goes back to what it had. Until it is
    /// over no node boots the version but to try it, whatever is switched off meanwhile.
    Rollout(RolloutArgs),
    /// Keep what only nodes may know, for files that name it
    #[command(subcommand)]
    Secret(SecretCommand),
    /// Bring the nodes of another system
    #[command(subcommand)]
    Config(ConfigCommand),
    /// What happened, from a node's first packet to its login prompt
    Events(EventsArgs),
    /// Find out what would keep nodes from booting, and say what to do about it
    ///
    /// Asks the running daemon as nodes would, on each interface: DHCP as firmware of each kind, boot
    /// files over TFTP and HTTP, a file over NFS. Looks at interfaces, ports, firewall, other DHCP
    /// servers, disk and clock. It changes nothing: the address that it is offered is given back, and no
    /// boot begins.
    ///
    /// Exit codes: 0 nothing is wrong, 1 something keeps nodes from booting, 4 no daemon answers, 5
    /// nodes boot but something should be looked at.
    Doctor {
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Run `slate up` at boot, under systemd
    #[command(subcommand)]
    Service(ServiceCommand),
    /// Print a completion script for a shell
    #[command(hide = true)]
    Completions { shell: clap_complete::Shell },
    /// Write the manual pages into a directory
    #[command(hide = true)]
    Man {
        #[arg(value_hint = ValueHint::DirPath)]
        dir: PathBuf,
    },
}

/// `slate up`, and what `slate service install` puts into the unit.
#[derive(Args, Debug, Clone)]
pub struct UpArgs {
    /// The interface that the nodes are on; again for each further one, or with commas
    #[arg(
        long = "interface",
        short,
        value_name = "IF",
        required = true,
        value_delimiter = ','
    )]
    pub interfaces: Vec<String>,
    /// How to answer DHCP
    #[arg(long, value_name = "MODE", value_enum, default_value = "auto")]
    pub dhcp: DhcpMode,
    /// What becomes of machines that are no nodes and ask to boot; `unknown` in slate.toml counts
    /// before this [default: auto, with --dhcp proxy|off approve]
    #[arg(long, value_name = "POLICY", value_enum)]
    pub unknown: Option<Unknown>,
    /// The image that nodes boot unless `slate node set` says otherwise
    #[arg(long, value_name = "NAME[:TAG]")]
    pub image: Option<String>,
    /// Public keys that may log in as root [default: those of the user who calls sudo]
    #[arg(long = "ssh-key", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub ssh_keys: Vec<PathBuf>,
    /// Addresses for machines without a fixed one, once for each network [default: all that are free]
    #[arg(long = "range", value_name = "FIRST-LAST")]
    pub ranges: Vec<AddressRange>,
    /// A network behind a DHCP relay, by its router: 10.88.0.1/24; again for each further one
    #[arg(long, value_name = "ROUTER/BITS")]
    pub relayed: Vec<RelayedNetwork>,
    /// How long an address is lent to a machine that is no node
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(60..))]
    pub lease: Option<u32>,
    /// How long an address is lent to a node [default: for ever]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(60..))]
    pub node_lease: Option<u32>,
    /// Appended to every node's kernel command line
    #[arg(long, value_name = "ARGS", allow_hyphen_values = true)]
    pub kernel_args: Option<String>,
    /// Log root in on the nodes' consoles
    #[arg(long)]
    pub console_login: bool,
    /// Which network drivers the nodes' initramfs carries
    #[arg(long, value_name = "SET", value_enum, default_value = "all")]
    pub drivers: Drivers,
    /// Put a shell (busybox) into the nodes' initramfs, for rd.break among kernel arguments
    #[arg(long)]
    pub debug_shell: bool,
    /// What UEFI machines load first, where it is there
    #[arg(long, value_name = "LOADER", value_enum, default_value = "shim")]
    pub loader: UefiLoader,
    /// The TCP port that kernels and initrds are fetched from
    #[arg(long, value_name = "PORT", default_value_t = 80, value_parser = clap::value_parser!(u16).range(1..))]
    pub http_port: u16,
    /// Serve boot files over HTTPS too, with this certificate (PEM, with its chain)
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// The private key of --tls-cert (PEM, without a password)
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// The TCP port of HTTPS [default: 443]
    #[arg(long, value_name = "PORT", requires = "tls_cert", value_parser = clap::value_parser!(u16).range(1..))]
    pub https_port: Option<u16>,
    /// Tell firmware that boots over HTTP to do it by HTTPS: it must know the certificate's authority
    #[arg(long, requires = "tls_cert")]
    pub https_boot: bool,
    /// The TCP port that roots are mounted from [default: 2049, another one where that is taken]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub nfs_port: Option<u16>,
    /// Open the firewall for the nodes where it stands in the way
    #[arg(long)]
    pub open_firewall: bool,
    /// Print events as JSON, one object per line
    #[arg(long)]
    pub json: bool,
}

/// Which network drivers an initramfs carries.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drivers {
    /// Every Ethernet driver of the image's kernel
    All,
    /// Virtual machines' cards only: a smaller, faster initramfs
    Virtual,
}

/// What UEFI machines load first.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum UefiLoader {
    /// The distribution's signed shim and GRUB: Secure Boot may stay on
    Shim,
    /// iPXE, which fetches kernel and initramfs over HTTP: Secure Boot must be off
    Ipxe,
}

/// What becomes of machines that are no nodes.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// They become nodes, and boot the default image
    Auto,
    /// They are listed below the nodes, and boot after `slate node approve MAC`
    Approve,
    /// They get no answer at all, not even an address
    Ignore,
}

/// How the daemon answers DHCP.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum DhcpMode {
    /// Looks for another DHCP server first: `proxy` beside one, `authoritative` without
    Auto,
    /// Gives every machine an address: this is the only DHCP server on the network
    Authoritative,
    /// Gives none, and tells nodes what to boot: another server gives the addresses
    ///
    /// Machines that are no nodes get no answer, until `slate node approve MAC` (see --unknown).
    Proxy,
    /// Answers no DHCP: another server gives the addresses and names this machine to firmware
    Off,
}

/// An inclusive range of addresses, `FIRST-LAST`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRange {
    pub first: Ipv4Addr,
    pub last: Ipv4Addr,
}

impl FromStr for AddressRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("expected FIRST-LAST such as 10.0.0.100-10.0.0.200, got {text}");
        let (first, last) = text.split_once('-').ok_or_else(expected)?;
        let first: Ipv4Addr = first.trim().parse().map_err(|_| expected())?;
        let last: Ipv4Addr = last.trim().parse().map_err(|_| expected())?;
        if first > last {
            return Err(format!("{first} comes after {last}"));
        }
        Ok(Self { first, last })
    }
}

/// A network by its router's address and the length of its prefix, `ROUTER/BITS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelayedNetwork {
    pub router: Ipv4Addr,
    pub prefix: u8,
}

impl FromStr for RelayedNetwork {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected =
            || format!("expected ROUTER/BITS such as 10.88.0.1/24, with 8 to 30 bits, got {text}");
        let (router, prefix) = text.split_once('/').ok_or_else(expected)?;
        let router: Ipv4Addr = router.parse().map_err(|_| expected())?;
        let prefix: u8 = prefix.parse().map_err(|_| expected())?;
        let hosts = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
        let host = u32::from(router) & hosts;
        if !(8..=30).contains(&prefix) || host == 0 || host == hosts {
            return Err(expected());
        }
        Ok(Self { router, prefix })
    }
}

impl fmt::Display for RelayedNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.router, self.prefix)
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// `slate try`.
#[derive(Args, Debug, Clone)]
#[command(args_conflicts_with_subcommands = true)]
pub struct TryArgs {
    #[command(subcommand)]
    pub command: Option<TryCommand>,
    /// An image of this machine's store, or `debian12` or `debian13`, which is built when needed
    #[arg(long, value_name = "NAME[:TAG]", default_value = "debian13")]
    pub image: String,
    /// How many machines to power on
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=32))]
    pub nodes: u8,
    /// Stop when every node is up; fails if one does not come up
    #[arg(long)]
    pub once: bool,
    /// Print one JSON document at the end instead of the live view
    #[arg(long)]
    pub json: bool,
    /// Open a shell on the consoles when a boot comes to this stage: init, network, mount or
    /// switch-root, or by a name of dracut's rd.break
    #[arg(long = "break", value_name = "STAGE", conflicts_with = "once", value_parser = break_at)]
    pub break_at: Option<Break>,
}

impl TryArgs {
    /// One machine, until it is up.
    pub fn once(image: &str) -> TryArgs {
        TryArgs {
            command: None,
            image: image.to_owned(),
            nodes: 1,
            once: true,
            json: false,
            break_at: None,
        }
    }
}

fn break_at(name: &str) -> Result<Break, String> {
    let place = Break::named(name).filter(|_| !name.is_empty());
    place.ok_or_else(|| format!("expected {}", Break::EXPECTED))
}

/// What can be done beside a running `slate try`.
#[derive(Subcommand, Debug, Clone)]
pub enum TryCommand {
    /// Attach to a virtual node's console (leave with Ctrl-])
    Console {
        /// The node's name, such as node1
        node: String,
    },
}

/// `slate image …`.
#[derive(Subcommand, Debug)]
pub enum ImageCommand {
    /// Turn a directory, a tar archive or a container image into an image
    ///
    /// A container image is an OCI image layout (a directory, or a tar archive of one), what `docker
    /// save` writes, or one in a registry. Files are recognised by what is in them; layers are
    /// flattened, and of several platforms linux/amd64 is taken.
    ///
    /// A new NAME becomes what nodes boot. A NAME that exists keeps its tag: the import is NAME:next,
    /// until `slate image tag NAME:next NAME`. NAME:TAG moves that tag.
    Import {
        /// What to call it
        #[arg(value_name = "NAME[:TAG]")]
        name: String,
        /// A directory, a tar archive (plain, gzip, zstd or xz; - reads one from standard input), or
        /// docker://REGISTRY/REPOSITORY:TAG
        #[arg(value_name = "DIR|TAR|URL", value_hint = ValueHint::AnyPath)]
        source: PathBuf,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Build an image from a distribution's packages
    ///
    /// `debian12`, `debian13` and `rocky9` are built from the distribution of that name; others say
    /// --from, or have a recipe.
    Build {
        #[command(flatten)]
        build: BuildArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// List the images
    List {
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Show one image: its kernel, its loaders and what would keep it from booting
    Show {
        /// The image
        #[arg(value_name = "NAME[:TAG]|DIGEST")]
        image: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Move a tag: nodes that follow it boot the version at their next start
    Tag {
        /// The version
        #[arg(value_name = "NAME[:TAG]|DIGEST")]
        source: String,
        /// The tag to move
        #[arg(value_name = "NAME[:TAG]")]
        target: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Change an image in a shell: what you leave behind becomes NAME:next
    ///
    /// The shell runs in a private copy. Nothing that runs from the image or follows its tag is
    /// touched.
    Edit(ChangeArgs),
    /// Change an image by a command: what it leaves behind becomes NAME:next, if it succeeds
    ///
    /// It runs in a private copy, in namespaces of its own; `uname -r` there names the image's
    /// kernel, and nothing that it starts outlives it.
    Run {
        #[command(flatten)]
        change: ChangeArgs,
        /// The command and its arguments
        #[arg(last = true, required = true, value_name = "COMMAND")]
        command: Vec<String>,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Make a version of what a running node has changed: it becomes NAME:next
    ///
    /// What the node has written is laid over the version that it runs; logs, caches, /home, /tmp,
    /// other file systems and what makes the node itself are left out, and private keys are refused.
    Commit {
        #[command(flatten)]
        commit: CommitArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Make a layer: what a script, a command or a shell adds to an image
    ///
    /// Base and layer become an image of the layer's name. When the base has a new version,
    /// `slate image compose` lays the layer over that one.
    Layer {
        #[command(flatten)]
        layer: LayerArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// List the layers
    Layers {
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Make an image anew of the present version of its base and its layers
    Compose {
        #[command(flatten)]
        compose: ComposeArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Compare two versions: kernel, size, packages (of dpkg and rpm) and files
    Diff {
        /// The earlier version
        #[arg(value_name = "NAME[:TAG]|DIGEST")]
        before: String,
        /// The later version
        #[arg(value_name = "NAME[:TAG]|DIGEST")]
        after: String,
        /// Show every path, those too where only a time differs
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Write a version out: as a tar archive, a directory for another NFS server, or a container image
    Export {
        /// The version
        #[arg(value_name = "NAME[:TAG]|DIGEST")]
        image: String,
        /// FILE.tar, FILE.tar.gz or FILE.tar.zst; - for standard output; else a new directory
        #[arg(value_name = "FILE|DIR", value_hint = ValueHint::AnyPath)]
        target: PathBuf,
        /// What the archive or the directory holds
        #[arg(long, value_enum, default_value = "root")]
        format: Format,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Show which versions a tag names and named, the present one first
    Log {
        /// The tag
        #[arg(value_name = "NAME[:TAG]")]
        image: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Move a tag back to the version that it named before; once more takes that back
    Rollback {
        /// The tag
        #[arg(value_name = "NAME[:TAG]")]
        image: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Keep a version whatever happens to its tags
    Pin {
        /// The version
        #[arg(value_name = "NAME[:TAG]|DIGEST")]
        image: String,
        /// Take the pin back
        #[arg(long)]
        remove: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Remove a tag; the version stays until `slate image gc`
    Rm {
        /// The tag
        #[arg(value_name = "NAME[:TAG]")]
        image: String,
        /// Also if nodes follow it: they will not boot until told of another one
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Remove every version that nothing needs, and the content that is in no other
    ///
    /// Kept is what a tag names or named just before (for `slate image rollback`), what is pinned,
    /// what a node runs or may run, and what is open.
    Gc {
        /// Only say what would be removed
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Read versions again, all of their content, and compare it with its digests
    Verify {
        /// The version [default: all]
        #[arg(value_name = "NAME[:TAG]|DIGEST")]
        image: Option<String>,
        /// Take damaged content out of the store, so that an import of the same source puts it back
        #[arg(long)]
        discard: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
}

/// How an image is changed.
#[derive(Args, Debug, Clone)]
pub struct ChangeArgs {
    /// The version to begin with
    #[arg(value_name = "NAME[:TAG]")]
    pub image: String,
    /// Whether programs in it see this machine's network
    #[arg(long, value_enum, default_value = "on")]
    pub network: Switch,
    /// Only say what would change
    #[arg(long)]
    pub discard: bool,
    /// Take the place of a NAME:next that was made meanwhile
    #[arg(long)]
    pub replace: bool,
}

/// What of a node becomes a version.
#[derive(Args, Debug, Clone)]
pub struct CommitArgs {
    /// The image that has it as its next version
    #[arg(value_name = "NAME")]
    pub name: String,
    /// The node: its name, MAC or address
    #[arg(long, value_name = "NODE")]
    pub from: String,
    /// Only these paths, and what is below them
    #[arg(value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// Only say what would change
    #[arg(long)]
    pub discard: bool,
    /// Take the place of a NAME:next that was made meanwhile
    #[arg(long)]
    pub replace: bool,
    /// How long the node may take to send it
    #[arg(long, value_name = "DURATION", default_value = "30m", value_parser = duration)]
    pub timeout: Duration,
}

/// How a layer is made.
#[derive(Args, Debug, Clone)]
pub struct LayerArgs {
    /// What to call it, and the image that it makes of its base
    pub name: String,
    /// The image that it is made on
    #[arg(long, value_name = "NAME[:TAG]", required_unless_present = "remove")]
    pub on: Option<String>,
    /// A program of this machine to run in the image; without it and --run, a shell
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "run")]
    pub script: Option<PathBuf>,
    /// A command line for the image's shell
    #[arg(long, value_name = "COMMAND")]
    pub run: Option<String>,
    /// Whether programs in it see this machine's network
    #[arg(long, value_enum, default_value = "on")]
    pub network: Switch,
    /// Forget the layer
    #[arg(long, conflicts_with_all = ["on", "script", "run"])]
    pub remove: bool,
}

/// What an image is composed of.
#[derive(Args, Debug, Clone)]
pub struct ComposeArgs {
    /// The image
    pub name: String,
    /// Its base, from now on
    #[arg(long, value_name = "NAME[:TAG]", requires = "layers")]
    pub on: Option<String>,
    /// A layer, the lowest first; may be given again
    #[arg(long = "layer", value_name = "LAYER", requires = "on")]
    pub layers: Vec<String>,
    /// Take the place of a NAME:next that was changed by hand
    #[arg(long)]
    pub replace: bool,
}

/// On or off.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    /// Yes
    On,
    /// No
    Off,
}

/// `slate plan`.
#[derive(Args, Debug, Clone)]
pub struct PlanArgs {
    /// The machine, also one that is no node [default with --as: all nodes]
    #[arg(value_name = "MAC|NODE", required_unless_present = "server")]
    pub node: Option<String>,
    /// As what it asks: uefi-x64, uefi-http, bios, ipxe, arm64 or arm64-http [default: as it did last]
    #[arg(long, value_name = "KIND", conflicts_with = "server")]
    pub firmware: Option<String>,
    /// Print the lines for the configuration of another DHCP server
    #[arg(
        long = "as",
        value_name = "SERVER",
        value_enum,
        conflicts_with = "json"
    )]
    pub server: Option<OtherServer>,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// DHCP servers that a plan can be written for.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtherServer {
    /// ISC DHCP: lines for dhcpd.conf
    Dhcpd,
    /// dnsmasq: lines for dnsmasq.conf
    Dnsmasq,
    /// Kea: a kea-dhcp4.conf to merge
    Kea,
}

/// `slate apply`.
#[derive(Args, Debug, Clone)]
pub struct ApplyArgs {
    /// The file; - for standard input
    #[arg(value_name = "FILE", default_value = "slate.toml", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Only say what would change
    #[arg(long)]
    pub dry_run: bool,
    /// Forget the nodes that the file does not name
    #[arg(long)]
    pub prune: bool,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `slate config …`.
#[derive(Subcommand, Debug)]
pub enum ConfigCommand {
    /// Turn the configuration of another system into a file for `slate apply`
    ///
    /// It prints the nodes, and on standard error for each statement what it became, or that it was
    /// left out and why; and the `slate up` that serves the same network. Nothing is changed unless
    /// --apply says so.
    Import(ImportArgs),
}

/// `slate config import`.
#[derive(Args, Debug, Clone)]
pub struct ImportArgs {
    /// dhcpd.conf, dnsmasq.conf, Warewulf's nodes.conf, or what xCAT's lsdef -z or tabdump print; -
    /// for standard input
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// What the file is [default: by what is in it]
    #[arg(long, value_name = "SYSTEM", value_enum)]
    pub from: Option<ImportedKind>,
    /// Write the nodes into a new file instead of standard output
    #[arg(long, short, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with_all = ["apply", "dry_run"])]
    pub output: Option<PathBuf>,
    /// Make them nodes at once, as `slate apply` does
    #[arg(long)]
    pub apply: bool,
    /// Only say what would become of it; with --apply, what would change
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON: nodes, networks and statements
    #[arg(long, conflicts_with_all = ["apply", "output"])]
    pub json: bool,
}

/// What can be imported.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImportedKind {
    /// ISC DHCP
    Dhcpd,
    /// dnsmasq
    Dnsmasq,
    /// Warewulf 4
    Warewulf,
    /// xCAT
    Xcat,
}

/// What a version is exported as.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The root file system
    Root,
    /// A container image of one layer: an OCI image layout
    Oci,
}

/// How a command that reads prints.
#[derive(Args, Debug, Clone, Copy)]
pub struct OutputArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What an image is built of.
#[derive(Args, Debug, Clone, Default)]
pub struct BuildArgs {
    /// What to call it
    #[arg(value_name = "NAME[:TAG]", required_unless_present = "file")]
    pub name: Option<String>,
    /// The recipe: name, from, packages, scripts, files, mirrors
    #[arg(long, short, value_name = "RECIPE.toml", value_hint = ValueHint::FilePath)]
    #[arg(conflicts_with_all = ["from", "packages", "scripts", "mirrors"])]
    pub file: Option<PathBuf>,
    /// The distribution: debian:trixie, debian:bookworm or rocky:9
    #[arg(long, value_name = "DISTRIBUTION")]
    pub from: Option<String>,
    /// Packages besides those that every image has
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    pub packages: Vec<String>,
    /// A program to run in the image when the packages are there; may be given again
    #[arg(long = "script", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub scripts: Vec<PathBuf>,
    /// Where packages come from instead of the distribution's own servers
    #[arg(long = "mirror", value_name = "URL")]
    pub mirrors: Vec<String>,
    /// What to call it, where NAME says the distribution
    #[arg(long = "name", value_name = "NAME[:TAG]")]
    pub rename: Option<String>,
}

/// `slate node …`.
#[derive(Subcommand, Debug)]
pub enum NodeCommand {
    /// List the nodes and how far each has come
    List {
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Show one node: its last boot, its addresses, its NFS calls
    Show {
        /// The node
        #[arg(value_name = "MAC|NAME")]
        node: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Show the last boots of one node side by side: when each came to which stage, and why one failed
    Log {
        /// The node
        #[arg(value_name = "MAC|NAME")]
        node: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Name the nodes that would boot another version than they run, and what differs
    Stale {
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Plan a start without firmware: the kernel command line that a machine needs
    ///
    /// The plan is good for one start: it carries the secret by which that start is known.
    #[command(hide = true)]
    Plan {
        /// The node; one that was not seen yet is named by its MAC
        #[arg(value_name = "MAC|NAME")]
        node: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Let machines boot that are no nodes yet: each becomes one, with the next free name
    Approve {
        /// Their Ethernet addresses
        #[arg(value_name = "MAC", required_unless_present = "seen")]
        macs: Vec<Mac>,
        /// All that have asked: those below the nodes in `slate node list`
        #[arg(long)]
        seen: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Take a node out of the inventory, with its address; it is a new one when it boots again
    Forget {
        /// The nodes: names, MACs, n[001-600], @group
        #[arg(value_name = "NODES", required = true)]
        nodes: Vec<String>,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Run a command on running nodes, as root, and print what it prints
    Run(RunArgs),
    /// Reboot nodes, unless somebody is logged in there or holds an inhibitor lock
    Reboot(RebootArgs),
    /// Switch machines on or off, by the `power` of their nodes or groups in slate.toml
    Power(PowerArgs),
    /// What a running node has changed since its boot: added, changed, removed
    Diff(DiffArgs),
    /// Name a node, fix its address, choose its image and groups
    Set {
        /// The node, one that was not seen yet by its MAC; for image, groups and kernel arguments
        /// also several: n[001-600], @group
        #[arg(value_name = "NODES")]
        node: String,
        #[command(flatten)]
        change: NodeChange,
        #[command(flatten)]
        output: OutputArgs,
    },
}

/// `slate node run`.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// The nodes: names, MACs, n[001-600], @group
    #[arg(value_name = "NODES")]
    pub nodes: String,
    /// After so long it is ended
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = duration)]
    pub timeout: Duration,
    /// A command line for the shell, or a program and its arguments
    #[arg(
        value_name = "COMMAND",
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub command: Vec<String>,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `slate node power`.
#[derive(Args, Debug)]
pub struct PowerArgs {
    /// What becomes of them
    #[arg(value_enum)]
    pub action: PowerArg,
    /// The nodes: names, MACs, n[001-600], @group
    #[arg(value_name = "NODES")]
    pub nodes: String,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// What becomes of a machine's power.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerArg {
    /// Switch them on
    On,
    /// Cut them off, whatever they do
    Off,
    /// Cut them off and switch them on
    Cycle,
}

/// `slate node reboot`.
#[derive(Args, Debug)]
pub struct RebootArgs {
    /// The nodes: names, MACs, n[001-600], @group
    #[arg(value_name = "NODES")]
    pub nodes: String,
    /// Boot this image, and their own again after that
    #[arg(long, value_name = "NAME[:TAG]")]
    pub once: Option<String>,
    /// Run this on each node before; where it fails the node does not reboot
    #[arg(long, value_name = "COMMAND")]
    pub before: Option<String>,
    /// Whoever is there; a node that does not answer has its power switched, where that can be done
    #[arg(long)]
    pub force: bool,
    /// Until they are up again
    #[arg(long)]
    pub wait: bool,
    /// How long --before may take, and how long --wait waits
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = duration)]
    pub timeout: Duration,
}

/// `slate rollout`.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct RolloutArgs {
    #[command(subcommand)]
    pub command: Option<RolloutCommand>,
    /// The image; its version of now is brought to the nodes
    #[arg(value_name = "NAME[:TAG]", required = true)]
    pub image: Option<String>,
    /// The nodes: names, MACs, n[001-600], @group
    #[arg(long, value_name = "NODES", required = true)]
    pub to: Option<String>,
    /// How many nodes are tried before all others
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    pub canary: u32,
    /// How many nodes are tried at once after that: a number, or a share of all
    #[arg(long, value_name = "COUNT|PERCENT", default_value = "10%")]
    pub batch: BatchSize,
    /// Must succeed on each node once it is up
    #[arg(long, value_name = "COMMAND")]
    pub gate: Option<String>,
    /// Run this on each node before it reboots; where it fails the rollout does
    #[arg(long, value_name = "COMMAND")]
    pub before: Option<String>,
    /// Reboot nodes whoever is there
    #[arg(long, conflicts_with = "on_next_boot")]
    pub force: bool,
    /// Reboot nobody: nodes are tried when somebody else reboots them
    #[arg(long, conflicts_with = "before")]
    pub on_next_boot: bool,
    /// Boot the version in a virtual machine first, and begin only if it comes up there
    #[arg(long = "try")]
    pub try_first: bool,
    /// How long each node may take to begin to boot, and from there to the end of the gate
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = duration)]
    pub timeout: Duration,
    /// Do not wait for its end
    #[arg(long)]
    pub no_wait: bool,
}

/// `slate rollout …`.
#[derive(Subcommand, Debug)]
pub enum RolloutCommand {
    /// Show the rollouts, and how far each node is
    Status {
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Stop a rollout: its nodes go back to what they had
    Stop {
        /// Its number; without one, that of the only rollout that goes on
        #[arg(value_name = "NUMBER")]
        id: Option<u64>,
    },
}

/// A number of nodes, or a share of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchSize {
    Nodes(u32),
    Percent(u8),
}

impl FromStr for BatchSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected =
            || format!("expected a number of nodes such as 5 or a share such as 10%, got {text}");
        let size = match text.strip_suffix('%') {
            Some(percent) => percent
                .parse()
                .ok()
                .filter(|it| (1..=100).contains(it))
                .map(Self::Percent),
            None => text.parse().ok().filter(|it| *it > 0).map(Self::Nodes),
        };
        size.ok_or_else(expected)
    }
}

impl fmt::Display for BatchSize {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nodes(count) => write!(out, "{count}"),
            Self::Percent(percent) => write!(out, "{percent}%"),
        }
    }
}

/// `slate node diff`.
#[derive(Args, Debug)]
pub struct DiffArgs {
    /// The node
    #[arg(value_name = "MAC|NAME")]
    pub node: String,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `90`, `90s`, `10m` or `2h`.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|it: char| it.is_ascii_alphabetic());
    let seconds = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => 0,
    };
    let count: u64 = digits.parse().unwrap_or(0);
    match count.saturating_mul(seconds) {
        0 => Err(format!(
            "expected a duration such as 90s, 10m or 2h, got {text}"
        )),
        1..=86_400 => Ok(Duration::from_secs(count * seconds)),
        _ => Err(format!("expected a day at most, got {text}")),
    }
}

/// `slate secret …`.
#[derive(Subcommand, Debug)]
pub enum SecretCommand {
    /// Keep a file's content under a name, in place of what was there
    Set {
        /// The name by which files of groups take it
        #[arg(value_name = "NAME")]
        name: String,
        /// The file; `-`: standard input
        #[arg(value_name = "FILE", default_value = "-", value_hint = ValueHint::FilePath)]
        file: PathBuf,
    },
    /// List the secrets and the groups that are given them
    List {
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Remove a secret that no group names
    Rm {
        /// The secret
        #[arg(value_name = "NAME")]
        name: String,
    },
}

/// What `slate node set` changes.
#[derive(Args, Debug, Clone)]
#[group(required = true, multiple = true)]
pub struct NodeChange {
    /// Its host name
    #[arg(long)]
    pub name: Option<String>,
    /// Its address from now on; `none`: whatever is free
    #[arg(long, value_name = "ADDRESS", value_parser = address_or_none)]
    pub address: Option<String>,
    /// The image that it boots; `none`: as every other node
    #[arg(long, value_name = "NAME[:TAG]", value_parser = text_or_none)]
    pub image: Option<String>,
    /// Appended to its kernel command line; `none`: nothing
    #[arg(long, value_name = "ARGS", allow_hyphen_values = true, value_parser = text_or_none)]
    pub kernel_args: Option<String>,
    /// What it loads first where it is UEFI: shim or ipxe; `none`: as its groups say
    #[arg(long, value_name = "LOADER", value_parser = text_or_none)]
    pub loader: Option<String>,
    /// Its consoles, that of the system last: "tty0 ttyS0,115200"; `none`: as its groups say
    #[arg(long, value_name = "NAME …", value_parser = text_or_none)]
    pub console: Option<String>,
    /// The image of its next boot only; `none`: its own
    #[arg(long, value_name = "NAME[:TAG]", value_parser = text_or_none)]
    pub once: Option<String>,
    /// Its groups, those that count first first; `none`: only `all`
    #[arg(long, value_name = "NAME,…", value_parser = text_or_none)]
    pub groups: Option<String>,
}

/// The control protocol takes a setting away by an empty string; people write `none`.
fn text_or_none(text: &str) -> Result<String, String> {
    Ok(if text == "none" {
        String::new()
    } else {
        text.to_owned()
    })
}

fn address_or_none(text: &str) -> Result<String, String> {
    let text = text_or_none(text)?;
    match text.parse::<Ipv4Addr>() {
        _ if text.is_empty() => Ok(text),
        Ok(address) => Ok(address.to_string()),
        Err(_) => Err("expected an IPv4 address or none".to_owned()),
    }
}

/// `slate events`.
#[derive(Args, Debug, Clone)]
pub struct EventsArgs {
    /// Keep printing events as they happen
    #[arg(long, short)]
    pub follow: bool,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `slate service …`.
#[derive(Subcommand, Debug)]
pub enum ServiceCommand {
    /// Install the binary and its systemd units, and start them
    Install(Box<UpArgs>),
    /// Stop the service and remove what install wrote
    Uninstall {
        /// Remove images, leases and keys too
        #[arg(long)]
        purge: bool,
    },
}
