//! Starting and stopping: opens what is needed in the order in which it can fail, then lets the
//! threads run.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::thread;

use engine::{
    DhcpMode, Engine, ImageRef, Input, Interface, InterfaceId, NfsActivity, UnknownPolicy,
};
use image::Store;
use image::initramfs::Profile;
use nfs::Activity;
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::content::Contents;
use crate::control::{Status, server as control};
use crate::exports::Follower;
use crate::hub::{Hub, Inbox, Message, QUEUE_MAX, now};
use crate::identity::Identities;
use crate::journal::Journal;
use crate::keys::{Keys, random};
use crate::net::tls::Certificate;
use crate::net::watch::Watch;
use crate::net::{beacon, bind_failed, bind_udp, dhcp, http, interface, ndp, tftp, tls};
use crate::prepare::Preparer;
use crate::state::State;
use crate::unwritten::Unwritten;
use crate::uploads::Uploads;
use crate::{Drivers, Error, Listening, Notice, Options, listeners, power};

/// Runs the daemon until it is told to stop, by SIGINT, SIGTERM or the control socket.
///
/// Blocks the calling thread and starts its own others. Returns `Ok` after an orderly stop.
pub fn run(options: Options) -> Result<(), Error> {
    raise_descriptor_limit();
    let daemon = Daemon::start(options)?;
    daemon.wait();
    Ok(())
}

/// Every node takes several descriptors, and a shell's programs get 1024 unless they ask for more.
fn raise_descriptor_limit() {
    const DESCRIPTORS: u64 = 65_536;
    let mut limit = getrlimit(Resource::Nofile);
    let wanted = limit
        .maximum
        .map_or(DESCRIPTORS, |most| most.min(DESCRIPTORS));
    if limit.current.is_none_or(|current| current >= wanted) {
        return;
    }
    limit.current = Some(wanted);
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files could not be raised");
    }
}

/// A running daemon.
struct Daemon {
    control: Arc<control::Server>,
    hub: Inbox,
    hub_thread: thread::JoinHandle<()>,
    stopped: Receiver<()>,
    notices: Option<Sender<Notice>>,
    run_dir: PathBuf,
    // Kept for as long as the daemon runs.
    _nfs: Arc<nfs::Server>,
    _runtime: tokio::runtime::Runtime,
}

/// Sockets, all open before anything is promised.
struct Sockets {
    /// Those of the interfaces, and behind them those of relays.
    networks: Vec<Interface>,
    dhcp: Vec<(Interface, Option<dhcp::Port>)>,
    /// Where there is IPv6.
    routers: HashMap<InterfaceId, ndp::Port>,
    tftp: Vec<std::net::UdpSocket>,
    beacons: Vec<std::net::UdpSocket>,
    http: Vec<TcpListener>,
    https: Vec<TcpListener>,
    nfs: Vec<TcpListener>,
    nfs_port: u16,
}

impl Sockets {
    fn open(options: &Options) -> Result<Sockets, Error> {
        let networks = networks(options)?;
        let interfaces: Vec<_> = networks.iter().zip(&options.interfaces).collect();
        let addresses = || interfaces.iter().map(|(interface, _)| interface.address);
        let udp = |port, purpose| -> Result<Vec<_>, Error> {
            addresses()
                .map(|it| bind_udp(SocketAddrV4::new(it, port), purpose))
                .collect()
        };
        let (nfs, nfs_port) = nfs_listeners(options, addresses)?;
        Ok(Sockets {
            tftp: udp(options.ports.tftp, "TFTP")?,
            beacons: udp(options.ports.http, "boot beacons")?,
            http: bind_tcp(addresses(), options.ports.http, "HTTP")?,
            https: match options.ports.https {
                Some(port) => bind_tcp(addresses(), port, "HTTPS")?,
                None => Vec::new(),
            },
            nfs,
            nfs_port,
            dhcp: interfaces
                .iter()
                .map(|(interface, name)| {
                    let port = dhcp::Port::open(name, options.dhcp)?;
                    Ok(((*interface).clone(), port))
                })
                .collect::<Result<_, Error>>()?,
            routers: match options.dhcp {
                // Whose firmware is iPXE is not heard.
                DhcpMode::Off => HashMap::new(),
                _ => interfaces.iter().filter_map(solicited_on).collect(),
            },
            networks,
        })
    }
}

/// Where routers are asked for on an interface. Without it iPXE waits for one that never answers, as
/// long as it always did.
fn solicited_on((interface, name): &(&Interface, &String)) -> Option<(InterfaceId, ndp::Port)> {
    match ndp::Port::open(name, interface.id) {
        Ok(port) => Some((interface.id, port)),
        Err(error) => {
            tracing::debug!(%error, interface = name, "IPv6 routers are not denied to iPXE");
            None
        }
    }
}

/// The networks served: those of the interfaces in order, then those behind relays.
fn networks(options: &Options) -> Result<Vec<Interface>, Error> {
    let mut networks: Vec<Interface> = Vec::new();
    for name in &options.interfaces {
        let mut found = interface::find(name)?;
        found.dhcp = options.dhcp;
        let same =
            |other: &Interface| other.contains(found.address) || found.contains(other.address);
        if let Some(at) = networks.iter().position(same) {
            return Err(Error::NetworkTwice {
                first: options.interfaces[at].clone(),
                second: name.clone(),
                network: networks[at].cidr(),
            });
        }
        networks.push(found);
    }
    let local = networks.clone();
    for (router, prefix) in &options.relayed {
        // A relay speaks to the address that leads to it; machines behind it boot from there.
        let own = interface::towards(*router);
        let through = local.iter().find(|it| Some(it.address) == own);
        let through = through.or(local.first());
        networks.extend(through.map(|it| it.behind(*router, *prefix)));
    }
    give_pools(&mut networks, &options.ranges)?;
    Ok(networks)
}

/// Each range belongs to the network that it lies in.
fn give_pools(networks: &mut [Interface], ranges: &[(Ipv4Addr, Ipv4Addr)]) -> Result<(), Error> {
    for (first, last) in ranges {
        let holds = |it: &&mut Interface| it.contains(*first) && it.contains(*last);
        match networks.iter_mut().find(holds) {
            Some(network) if network.pool.is_none() => network.pool = Some((*first, *last)),
            _ => {
                return Err(Error::RangeOutside {
                    range: format!("{first}-{last}"),
                    networks: networks.iter().map(Interface::cidr).collect(),
                });
            }
        }
    }
    Ok(())
}

fn bind_tcp(
    addresses: impl Iterator<Item = Ipv4Addr>,
    port: u16,
    purpose: &'static str,
) -> Result<Vec<TcpListener>, Error> {
    let bind = |address| {
        TcpListener::bind((address, port)).map_err(|error| bind_failed(error, port, "tcp", purpose))
    };
    addresses.map(bind).collect()
}

/// Those that an earlier daemon left with the service manager come first, if they are what is asked
/// for now. Else NFS takes the next free port where the usual one is taken: every boot plan says
/// which.
fn nfs_listeners<I: Iterator<Item = Ipv4Addr>>(
    options: &Options,
    addresses: impl Fn() -> I,
) -> Result<(Vec<TcpListener>, u16), Error> {
    let failed = |error| Error::io("taking over the NFS socket", error);
    let kept = listeners::nfs().map_err(failed)?;
    if let Some(port) =
        common_port(&kept, addresses(), options.ports.nfs_candidates()).map_err(failed)?
    {
        return Ok((kept, port));
    }
    if !kept.is_empty() {
        listeners::forget_nfs().map_err(failed)?;
        drop(kept);
    }
    let mut taken = None;
    for port in options.ports.nfs_candidates() {
        match bind_tcp(addresses(), port, "NFS") {
            Ok(listeners) => return Ok((listeners, port)),
            Err(error @ Error::PortTaken { .. }) => taken = taken.or(Some(error)),
            Err(error) => return Err(error),
        }
    }
    Err(taken.unwrap_or_else(|| Error::io("serving NFS", io::ErrorKind::AddrInUse.into())))
}

/// The one port, of those wanted, on which `listeners` are exactly those of all `addresses`.
fn common_port(
    listeners: &[TcpListener],
    addresses: impl Iterator<Item = Ipv4Addr>,
    wanted: RangeInclusive<u16>,
) -> io::Result<Option<u16>> {
    let local: Vec<SocketAddr> = listeners
        .iter()
        .map(TcpListener::local_addr)
        .collect::<io::Result<_>>()?;
    let Some(port) = local.first().map(SocketAddr::port) else {
        return Ok(None);
    };
    let there: BTreeSet<SocketAddr> = local.into_iter().collect();
    let asked: BTreeSet<SocketAddr> = addresses.map(|it| (it, port).into()).collect();
    Ok(Some(port).filter(|port| wanted.contains(port) && there == asked))
}

impl Daemon {
    fn start(options: Options) -> Result<Daemon, Error> {
        let state_dir = options.state_dir.clone();
        let cache = state_dir.join("cache");
        std::fs::create_dir_all(&cache)
            .map_err(|error| Error::io(format!("making {}", cache.display()), error))?;
        let keys = Keys::open(&state_dir)?;
        let state = State::open(&state_dir)?;
        let store = open_store(&options)?;
        let default_image = default_image(&options, &store)?;
        let control_socket = control::listen(&options.run_dir)?;
        let sockets = Sockets::open(&options)?;

        let uploads = Uploads::open(&state_dir)
            .map_err(|error| Error::io("making a place for uploads", error))?;
        let uploads = Arc::new(uploads);

        let (hub, messages) = sync_channel(QUEUE_MAX);
        let journal = Arc::new(Journal::new(state.events()?));
        let nfs = Arc::new(start_nfs(&keys, &hub)?);
        let contents = Contents::new(
            open_store(&options)?,
            cache,
            state_dir.join("loaders"),
            options.inits.clone(),
            profile(options.drivers),
        );
        let contents = Arc::new(contents.with_shell(options.debug_shell));
        let images = Arc::default();
        let (refresh, asked) = channel();
        let mut follower = Follower {
            store,
            exports: nfs.exports().clone(),
            contents: Arc::clone(&contents),
            hub: hub.clone(),
            images: Arc::clone(&images),
            exported: HashMap::new(),
            no_selinux: HashMap::new(),
            seen: None,
            asked,
        };
        // Every version is served before anybody can connect: a node that comes back after a
        // restart must not see a stale handle.
        follower.refresh();
        for listener in &sockets.nfs {
            let listener = listener
                .try_clone()
                .map_err(|error| Error::io("serving NFS", error))?;
            nfs.serve(listener)
                .map_err(|error| Error::io("serving NFS", error))?;
        }
        // Without them the next daemon makes its own, and nodes try again.
        if let Err(error) = listeners::keep_nfs(&sockets.nfs) {
            tracing::warn!(%error, "leaving the NFS socket with the service manager");
        }
        let engine = Engine::new(
            config(&options, &sockets, default_image.clone()),
            random(),
            state.records()?,
        );
        let listening = listening(&options, &sockets, engine.unknown_policy(options.dhcp));
        let (stop, stopped) = channel();
        let control = Arc::new(control::Server {
            hub: hub.clone(),
            journal: Arc::clone(&journal),
            keys: keys.clone(),
            nfs: {
                let nfs = Arc::clone(&nfs);
                Arc::new(move || nfs.stats())
            },
            status: status(&options, &listening, default_image.as_ref()),
            images,
            refresh,
            contents: Arc::clone(&contents),
            stop: stop.clone(),
        });
        let certificate = options.certificate.clone().map(Certificate::open);
        let certificate = certificate.transpose()?.map(Arc::new);
        let identities = Identities { keys };
        let server = http::Server::new(Arc::clone(&contents), identities, hub.clone(), uploads);
        let runtime = start_http(&sockets, certificate.as_ref(), &Arc::new(server), stop)?;
        let (prepare, orders) = channel();
        let preparer = Preparer {
            contents: Arc::clone(&contents),
            hub: hub.clone(),
            notices: options.notices.clone(),
        };
        thread::spawn(move || preparer.run(&orders));
        let hub_thread = {
            let starter = tftp::Starter {
                contents,
                hub: hub.clone(),
                addresses: sockets
                    .dhcp
                    .iter()
                    .map(|(it, _)| (it.address, it.prefix))
                    .collect(),
                running: Arc::default(),
            };
            let ports = sockets
                .dhcp
                .iter()
                .filter_map(|(it, port)| Some((it.id, port.clone()?)))
                .collect();
            let mut receivers: Vec<_> = sockets
                .dhcp
                .iter()
                .flat_map(|(it, port)| port.iter().flat_map(|port| port.receivers(it.id)))
                .collect();
            for (index, receiver) in receivers.iter_mut().enumerate() {
                receiver.watch(index, &hub);
            }
            let hub = Hub {
                engine,
                unwritten: Unwritten::new(state),
                journal,
                notices: options.notices.clone(),
                dhcp: ports,
                routers: sockets.routers.clone(),
                receivers,
                tftp: starter,
                prepare,
                power: power::start(&hub),
                held: HashMap::new(),
            };
            thread::spawn(move || hub.run(&messages))
        };
        start_receivers(sockets, &hub);
        thread::spawn(move || follower.run());
        {
            let control = Arc::clone(&control);
            thread::spawn(move || control::serve(&control_socket, &control));
        }
        if let Some(notices) = &options.notices {
            let _ = notices.send(Notice::Ready(listening));
        }
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        Ok(Daemon {
            control,
            hub,
            hub_thread,
            stopped,
            notices: options.notices,
            run_dir: options.run_dir,
            _nfs: nfs,
            _runtime: runtime,
        })
    }

    /// Waits for a reason to stop, names the nodes that still run on us, and stops.
    fn wait(self) {
        let _ = self.stopped.recv();
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        let live = self.control.live();
        if !live.is_empty() {
            tracing::warn!(
                nodes = live.join(", "),
                "these nodes wait until the daemon is back"
            );
        }
        if let Some(notices) = &self.notices {
            let _ = notices.send(Notice::Stopping { live });
        }
        let _ = self.hub.send(Message::Stop);
        let _ = self.hub_thread.join();
        control::remove(&self.run_dir);
    }
}

fn open_store(options: &Options) -> Result<Store, Error> {
    let path = options.state_dir.join("store");
    Store::open(&path).map_err(|error| Error::Store {
        path,
        message: error.to_string(),
    })
}

/// The image of nodes that have none set, checked to exist.
fn default_image(options: &Options, store: &Store) -> Result<Option<ImageRef>, Error> {
    let Some(name) = &options.image else {
        return Ok(None);
    };
    let tags = store.tags().unwrap_or_default();
    let found = name.parse::<ImageRef>().ok();
    let found = found.filter(|image| {
        tags.iter()
            .any(|tag| tag.name == image.name && tag.tag == image.tag)
    });
    let present = || {
        tags.iter()
            .map(|tag| format!("{}:{}", tag.name, tag.tag))
            .collect()
    };
    match found {
        Some(image) => Ok(Some(image)),
        None => Err(Error::NoSuchImage {
            name: name.clone(),
            present: present(),
        }),
    }
}

fn profile(drivers: Drivers) -> Profile {
    match drivers {
        Drivers::Virtual => Profile::Virtual,
        Drivers::AllNetwork => Profile::AllNic,
    }
}

fn config(options: &Options, sockets: &Sockets, default_image: Option<ImageRef>) -> engine::Config {
    let seconds = |seconds: u32| std::time::Duration::from_secs(seconds.into());
    engine::Config {
        lease: seconds(options.lease_seconds),
        node_lease: options.node_lease_seconds.map(seconds),
        http_port: options.ports.http,
        nfs_port: sockets.nfs_port,
        default_image,
        kernel_args: options.extra_kernel_args.clone(),
        console_login: options.console_login,
        authorized_keys: options.authorized_keys.clone(),
        uefi_loader: options.uefi_loader,
        unknown: options.unknown,
        https_boot_port: options.ports.https.filter(|_| options.https_boot),
        ..engine::Config::new(sockets.networks.clone())
    }
}

fn listening(options: &Options, sockets: &Sockets, unknown: UnknownPolicy) -> Listening {
    let addresses = sockets.dhcp.iter().map(|(interface, _)| interface.address);
    Listening {
        interfaces: options.interfaces.iter().cloned().zip(addresses).collect(),
        dhcp: options.dhcp,
        unknown,
        tftp_port: options.ports.tftp,
        http_port: options.ports.http,
        https_port: options.ports.https,
        nfs_port: sockets.nfs_port,
        nfs_port_taken: (sockets.nfs_port != options.ports.nfs).then_some(options.ports.nfs),
    }
}

fn status(options: &Options, listening: &Listening, image: Option<&ImageRef>) -> Status {
    Status {
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        started_ms: now().0,
        interfaces: listening.interfaces.clone(),
        tftp_port: options.ports.tftp,
        http_port: options.ports.http,
        nfs_port: listening.nfs_port,
        image: image.map(ToString::to_string),
        nodes: 0,
        live: Vec::new(),
        images: Vec::new(),
    }
}

/// Tells the hub what NFS clients do.
struct Observer {
    hub: Inbox,
}

impl nfs::Observer for Observer {
    fn observe(&self, activity: Activity) {
        let (address, activity) = match activity {
            Activity::Mounted { address, .. } => (address, NfsActivity::Mounted),
            Activity::Gone { address } => (address, NfsActivity::Gone),
            Activity::Damaged { address, id } => (address, NfsActivity::Damaged(id)),
            Activity::Stale { address, id } => (address, NfsActivity::Stale(id)),
            Activity::Collision { address, owner } => {
                let owner = String::from_utf8_lossy(&owner).into_owned();
                (address, NfsActivity::Collision(owner))
            }
            other @ Activity::Connected { .. } => return tracing::debug!(?other, "NFS"),
        };
        let std::net::IpAddr::V4(address) = address else {
            return;
        };
        let _ = self
            .hub
            .send(Message::Input(Input::Nfs { address, activity }));
    }
}

fn start_nfs(keys: &Keys, hub: &Inbox) -> Result<nfs::Server, Error> {
    let observer = Observer { hub: hub.clone() };
    let config = nfs::Config {
        observer: Some(Arc::new(observer)),
        ..nfs::Config::new(keys.nfs())
    };
    nfs::Server::new(config).map_err(|error| Error::io("starting the NFS server", error))
}

/// HTTP and signals live on a small async runtime.
fn start_http(
    sockets: &Sockets,
    certificate: Option<&Arc<Certificate>>,
    server: &Arc<http::Server>,
    stop: Sender<()>,
) -> Result<tokio::runtime::Runtime, Error> {
    let failed = |error| Error::io("starting the HTTP server", error);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(failed)?;
    let listen = |listener: &TcpListener| {
        let listener = listener.try_clone()?;
        listener.set_nonblocking(true)?;
        let _entered = runtime.enter();
        tokio::net::TcpListener::from_std(listener)
    };
    for listener in &sockets.http {
        let listener = listen(listener).map_err(failed)?;
        runtime.spawn(http::serve(listener, Arc::clone(server)));
    }
    if let Some(certificate) = certificate {
        for listener in &sockets.https {
            let listener = listen(listener).map_err(failed)?;
            let (certificate, server) = (Arc::clone(certificate), Arc::clone(server));
            runtime.spawn(tls::serve(listener, certificate, server));
        }
    }
    // Caught from here on: whoever is told that this daemon serves may stop it at once.
    let mut signals = {
        let _entered = runtime.enter();
        Signals::catch().map_err(|error| Error::io("catching signals", error))?
    };
    runtime.spawn(async move {
        signals.next().await;
        let _ = stop.send(());
        // A second signal means now.
        signals.next().await;
        std::process::exit(130);
    });
    Ok(runtime)
}

/// SIGINT and SIGTERM.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn catch() -> io::Result<Signals> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Waits for either.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Other DHCP servers are heard, where this process may listen to what is not meant for it.
fn watch(interface: InterfaceId, hub: &Inbox) {
    match Watch::open(interface) {
        Ok(watch) => {
            let hub = hub.clone();
            thread::spawn(move || watch.receive(interface, &hub));
        }
        Err(error) => tracing::warn!(%error, "other DHCP servers will not be noticed"),
    }
}

/// A thread for each socket that datagrams come in on.
fn start_receivers(sockets: Sockets, hub: &Inbox) {
    for (interface, port) in sockets.dhcp {
        if port.is_some() {
            watch(interface.id, hub);
        }
    }
    for port in sockets.routers.into_values() {
        let hub = hub.clone();
        thread::spawn(move || port.receive(&hub));
    }
    for socket in sockets.tftp {
        let hub = hub.clone();
        thread::spawn(move || tftp::receive(&socket, &hub));
    }
    for socket in sockets.beacons {
        let hub = hub.clone();
        thread::spawn(move || beacon::receive(&socket, &hub));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_range_goes_to_the_network_that_it_lies_in() {
        let first = Interface::new(InterfaceId(1), [10, 77, 0, 1].into(), 24);
        let second = Interface::new(InterfaceId(2), [10, 78, 0, 1].into(), 24);
        let behind = second.behind([10, 88, 0, 1].into(), 24);
        let networks = [first, second, behind];
        let range = |net: u8, first: u8, last: u8| {
            (
                Ipv4Addr::new(10, net, 0, first),
                Ipv4Addr::new(10, net, 0, last),
            )
        };
        let mut served = networks.clone();
        give_pools(&mut served, &[range(88, 5, 9), range(77, 50, 60)]).unwrap();
        let pools: Vec<_> = served.iter().map(|it| it.pool).collect();
        assert_eq!(
            pools,
            [Some(range(77, 50, 60)), None, Some(range(88, 5, 9))]
        );
        let across = (Ipv4Addr::new(10, 77, 0, 9), Ipv4Addr::new(10, 78, 0, 9));
        for bad in [
            &[range(79, 1, 2)][..],
            &[range(77, 1, 2), range(77, 5, 6)],
            &[across],
        ] {
            let error = give_pools(&mut networks.clone(), bad)
                .unwrap_err()
                .to_string();
            assert!(error.contains("10.77.0.0/24 and 10.78.0.0/24"), "{error}");
        }
    }
}
