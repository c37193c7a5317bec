//! The control socket's server: a thread for each connection, one request a line.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, BufRead as _, BufReader, BufWriter, Read as _};
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use engine::{
    BootFile, Command, CommandReply, Engine, Firmware, ImageInfo, Input, NfsActivity, NfsCounters,
    Setting, UefiLoader,
};
use serde::Serialize;
use wire::hex::hexadecimal;

use super::{
    Hello, ImageView, MAX_LINE_BYTES, NodeChange, NodeView, Request, Response, SOCKET_NAME,
    SeenView, Status, VERSION, peer,
};
use crate::content::Contents;
use crate::hub::{self, CommandResult, Inbox, Message};
use crate::journal::Journal;
use crate::keys::Keys;
use crate::{Error, views};

/// Most connections at once.
const CONNECTIONS_MAX: usize = 128;

/// What every connection needs.
pub struct Server {
    /// Decides.
    pub hub: Inbox,
    /// Events.
    pub journal: Arc<Journal>,
    /// For nodes' host keys.
    pub keys: Keys,
    /// The NFS server's counters.
    pub nfs: Arc<dyn Fn() -> nfs::Stats + Send + Sync>,
    /// What does not change while the daemon runs; `nodes`, `live` and `images` are filled in.
    pub status: Status,
    /// The images that the engine plans with.
    pub images: Arc<Mutex<Vec<ImageInfo>>>,
    /// Asks for a look at the image store.
    pub refresh: Sender<Sender<()>>,
    /// Boot files.
    pub contents: Arc<Contents>,
    /// Asks the daemon to stop.
    pub stop: Sender<()>,
}

/// Opens the socket, for the daemon's user and the group `slate` only.
pub fn listen(run_dir: &Path) -> Result<UnixListener, Error> {
    let path = run_dir.join(SOCKET_NAME);
    let failed = |error| {
        Error::io(
            format!("opening the control socket {}", path.display()),
            error,
        )
    };
    fs::create_dir_all(run_dir).map_err(failed)?;
    if UnixStream::connect(&path).is_ok() {
        return Err(Error::AlreadyRunning { path });
    }
    bind(run_dir, &path).map_err(failed)
}

/// Removes what [`listen`] made.
pub fn remove(run_dir: &Path) {
    let _ = fs::remove_file(run_dir.join(SOCKET_NAME));
}

/// Made in a directory that only this user can enter, and moved when its mode is right.
fn bind(run_dir: &Path, path: &Path) -> io::Result<UnixListener> {
    let private = run_dir.join(".control");
    let _ = fs::remove_dir_all(&private);
    fs::DirBuilder::new().mode(0o700).create(&private)?;
    let made = private.join(SOCKET_NAME);
    let listener = UnixListener::bind(&made)?;
    fs::set_permissions(&made, fs::Permissions::from_mode(0o660))?;
    if let Some(group) = peer::group_id() {
        std::os::unix::fs::chown(&made, None, Some(group))?;
    }
    fs::rename(&made, path)?;
    fs::remove_dir(&private)?;
    Ok(listener)
}

/// Serves what connects, for ever.
pub fn serve(listener: &UnixListener, server: &Arc<Server>) {
    let open = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming().filter_map(Result::ok) {
        if open.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
            open.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let (server, open) = (Arc::clone(server), Arc::clone(&open));
        std::thread::spawn(move || {
            if let Err(error) = server.converse(stream) {
                tracing::debug!(%error, "a control connection ended");
            }
            open.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

impl Server {
    fn converse(&self, stream: UnixStream) -> io::Result<()> {
        let mut out = BufWriter::new(stream.try_clone()?);
        if !peer::may(&stream) {
            let hint = "Use sudo, or join the group slate.";
            return write(
                &mut out,
                &refusal("this user may not use the daemon".into(), hint),
            );
        }
        let hello = Hello {
            slate_control: VERSION,
            server: env!("CARGO_PKG_VERSION").into(),
        };
        write(&mut out, &hello)?;
        let is_root = peer::is_root(&stream);
        let mut input = BufReader::new(stream);
        loop {
            let mut line = String::new();
            let read = (&mut input)
                .take(MAX_LINE_BYTES as u64)
                .read_line(&mut line)?;
            if read == 0 {
                return Ok(());
            }
            match serde_json::from_str(&line) {
                Ok(Request::Events { since, follow }) => self.events(&mut out, since, follow)?,
                Ok(request) => write(&mut out, &self.answer(request, is_root))?,
                Err(error) => write(
                    &mut out,
                    &refusal(format!("expected a request: {error}"), ""),
                )?,
            }
        }
    }

    fn events(&self, out: &mut impl io::Write, since: u64, follow: bool) -> io::Result<()> {
        let (old, new) = self.journal.read(since, follow);
        for event in old.into_iter().chain(new.into_iter().flatten()) {
            write(out, &Response::Event(event.record()))?;
        }
        write(out, &Response::Done)
    }

    fn answer(&self, request: Request, is_root: bool) -> Response {
        match request {
            Request::Status => self.status(),
            Request::Nodes => Response::Nodes {
                nodes: self.nodes(),
                seen: self.seen(),
            },
            Request::Node { node } => self.with_node(&node, |view| {
                Response::Node(Box::new(views::node(view, &self.keys)))
            }),
            Request::Boots { node } => self.with_node(&node, |view| views::boots(&view)),
            Request::SetNode { node, change } => match change_of(change) {
                Ok(change) => self.command(Command::NodeSet { node, change }),
                Err(refused) => *refused,
            },
            Request::ForgetNode { node } => self.command(Command::NodeForget { node }),
            Request::Plan { node } => self.command(Command::Plan { node }),
            Request::Preview { node, firmware } => self.preview(&node, firmware.as_deref()),
            Request::BootService { server } => {
                match self.ask(move |engine| views::boot_service(engine, server)) {
                    Some(Some(service)) => Response::BootService(service),
                    _ => refusal("the daemon serves no such network".into(), "Start it anew."),
                }
            }
            Request::Apply {
                inventory,
                prune,
                dry_run,
            } => self.command(Command::Apply {
                inventory,
                prune,
                dry_run,
                may_run: is_root,
            }),
            Request::Inventory => self.command(Command::Inventory),
            Request::Select { nodes } => self.command(Command::Select { nodes }),
            Request::SetSecret { name, content } => {
                self.command(Command::SetSecret { name, content })
            }
            Request::Order {
                nodes,
                script,
                seconds,
                upload_bytes,
            } => self.command(Command::Order {
                nodes,
                script,
                seconds,
                upload_bytes,
            }),
            Request::Power { nodes, action } => self.command(Command::Power { nodes, action }),
            Request::OrderNow { id } => self.command(Command::Orders { ids: vec![id] }),
            Request::RollOut { plan } => self.command(Command::RollOut(plan)),
            Request::StopRollout { id } => self.command(Command::StopRollout { id }),
            Request::Rollouts => self.command(Command::Rollouts),
            Request::Secrets => self.command(Command::Secrets),
            Request::Refresh => self.refreshed(),
            Request::VersionsInUse => self.versions_in_use(),
            Request::Shutdown => {
                let _ = self.stop.send(());
                Response::Done
            }
            Request::Events { .. } => Response::Done,
        }
    }

    fn send(&self, message: Message) {
        let _ = self.hub.send(message);
    }

    fn command(&self, command: Command) -> Response {
        let (sender, receiver) = channel::<CommandResult>();
        self.send(Message::Command(command, sender));
        match receiver.recv() {
            Ok(Ok(CommandReply::Done)) => Response::Done,
            Ok(Ok(CommandReply::Node(view))) => {
                Response::Node(Box::new(views::node(*view, &self.keys)))
            }
            Ok(Ok(CommandReply::Plan(plan))) => {
                Response::Plan(views::plan(*plan, self.status.http_port))
            }
            Ok(Ok(CommandReply::Applied(changes))) => Response::Applied(changes),
            Ok(Ok(CommandReply::Inventory(inventory))) => Response::Inventory(inventory),
            Ok(Ok(CommandReply::Selected(nodes))) => Response::Nodes {
                nodes: nodes
                    .into_iter()
                    .map(|view| views::node(view, &self.keys))
                    .collect(),
                seen: Vec::new(),
            },
            Ok(Ok(CommandReply::Rollouts(rollouts))) => Response::Rollouts { rollouts },
            Ok(Ok(CommandReply::Orders(orders))) => Response::Orders { orders },
            Ok(Ok(CommandReply::Secrets(secrets))) => Response::Secrets { secrets },
            Ok(Err(error)) => refusal(error.to_string(), error.hint()),
            Err(_) => refusal(
                "the change could not be written to disk yet".into(),
                "Free some disk space and try again; the daemon's log says what is wrong.",
            ),
        }
    }

    fn preview(&self, node: &str, firmware: Option<&str>) -> Response {
        let firmware = match firmware.map(|name| Firmware::from_name(name).ok_or(name)) {
            None => None,
            Some(Ok(firmware)) => Some(firmware),
            Some(Err(got)) => {
                let known: Vec<&str> = Firmware::all().map(Firmware::name).collect();
                let known = known.join(", ");
                let message = format!("expected a kind of firmware ({known}), got {got:?}");
                return refusal(message, "");
            }
        };
        // Only the copy is made where packets wait for their answers.
        let Some(engine) = self.ask(Engine::clone) else {
            return refusal("the daemon is stopping".into(), "Try again.");
        };
        match engine.preview(hub::now(), node, firmware) {
            Ok(preview) => Response::Preview(Box::new(views::preview(&preview))),
            Err(error) => refusal(error.to_string(), error.hint()),
        }
    }

    fn nodes(&self) -> Vec<NodeView> {
        let nodes = self.inventory().into_iter();
        nodes.map(|view| views::node(view, &self.keys)).collect()
    }

    /// Every node, with fresh NFS counters.
    fn inventory(&self) -> Vec<engine::NodeView> {
        for client in (self.nfs)().clients {
            let std::net::IpAddr::V4(address) = client.address else {
                continue;
            };
            let counters = counters(&client.counters);
            self.send(Message::Input(Input::Nfs {
                address,
                activity: NfsActivity::Counters(counters),
            }));
        }
        self.ask(Engine::nodes).unwrap_or_default()
    }

    /// What the engine answers to a question; `None` = the daemon is stopping.
    fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Engine) -> T + Send + 'static,
    ) -> Option<T> {
        let (sender, receiver) = channel();
        self.send(Message::Ask(Box::new(move |engine| {
            drop(sender.send(question(engine)));
        })));
        receiver.recv().ok()
    }

    fn seen(&self) -> Vec<SeenView> {
        let seen = self.ask(Engine::seen).unwrap_or_default();
        seen.into_iter().map(views::seen).collect()
    }

    /// Answers of the node that is meant by name, MAC or address.
    fn with_node(
        &self,
        wanted: &str,
        answer: impl FnOnce(engine::NodeView) -> Response,
    ) -> Response {
        let address: Option<Ipv4Addr> = wanted.parse().ok();
        let mac: Option<engine::Mac> = wanted.parse().ok();
        let is_meant = |node: &engine::NodeView| {
            node.name == wanted
                || mac == Some(node.mac)
                || (address.is_some() && node.address == address)
        };
        match self.inventory().into_iter().find(is_meant) {
            Some(node) => answer(node),
            None => {
                let unknown = engine::CommandError::UnknownNode {
                    got: wanted.to_owned(),
                };
                refusal(unknown.to_string(), unknown.hint())
            }
        }
    }

    fn refreshed(&self) -> Response {
        let (done, wait) = channel();
        // What the store has goes to the engine before this is answered, and ahead of what comes
        // after the answer.
        let asked = self.refresh.send(done).is_ok();
        if asked && wait.recv().is_ok() {
            Response::Done
        } else {
            refusal("the daemon is stopping".into(), "Try again.")
        }
    }

    fn versions_in_use(&self) -> Response {
        let Some(versions) = self.ask(Engine::versions_in_use) else {
            return refusal("the daemon is stopping".into(), "Try again.");
        };
        let nodes = versions.into_iter().map(engine::Digest::image_id);
        let clients = (self.nfs)().clients.into_iter().flat_map(|it| it.trees);
        let all: BTreeSet<[u8; 16]> = nodes.chain(clients).collect();
        Response::VersionsInUse {
            versions: all.iter().map(|id| hexadecimal(id)).collect(),
        }
    }

    fn status(&self) -> Response {
        let nodes = self.nodes();
        let live = nodes
            .iter()
            .filter(|node| node.mounted)
            .map(|node| node.name.clone())
            .collect();
        Response::Status(Status {
            nodes: nodes.len(),
            live,
            images: self.images(),
            ..self.status.clone()
        })
    }

    fn images(&self) -> Vec<ImageView> {
        let images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        let view = |image: &ImageInfo| ImageView {
            name: format!("{}:{}", image.name, image.tag),
            digest: image.digest.to_string(),
            boot: match image.files.get(&BootFile::Kernel) {
                Some(Err(cause)) => cause.clone(),
                _ => self.contents.progress(image.digest).to_owned(),
            },
        };
        images.iter().map(view).collect()
    }

    /// Names of the nodes whose root is mounted from here.
    pub fn live(&self) -> Vec<String> {
        self.nodes()
            .into_iter()
            .filter(|node| node.mounted)
            .map(|node| node.name)
            .collect()
    }
}

fn counters(counters: &nfs::Counters) -> NfsCounters {
    NfsCounters {
        rpcs: counters.rpcs,
        bytes: counters.read_bytes,
        by_op: counters
            .operations
            .iter()
            .map(|(name, count)| ((*name).to_owned(), *count))
            .collect(),
    }
}

/// An empty text takes a setting away.
fn change_of(change: NodeChange) -> Result<engine::NodeChange, Box<Response>> {
    let setting = |text: String| {
        if text.is_empty() {
            Setting::Default
        } else {
            Setting::To(text)
        }
    };
    let address = match change.address.map(setting) {
        None => None,
        Some(Setting::Default) => Some(Setting::Default),
        Some(Setting::To(text)) => match text.parse() {
            Ok(address) => Some(Setting::To(address)),
            Err(_) => {
                let message = format!("expected an IPv4 address, got {text:?}");
                return Err(Box::new(refusal(message, "Write it as 192.168.2.5.")));
            }
        },
    };
    let loader = match change.loader.map(setting) {
        None => None,
        Some(Setting::Default) => Some(Setting::Default),
        Some(Setting::To(text)) => match UefiLoader::from_name(&text) {
            Some(loader) => Some(Setting::To(loader)),
            None => {
                let message = format!("expected the loader shim or ipxe, got {text:?}");
                return Err(Box::new(refusal(
                    message,
                    "docs/boot.md says what each needs.",
                )));
            }
        },
    };
    let console = change.console.map(|console| {
        let names = console.split_whitespace();
        names.map(str::to_owned).collect()
    });
    Ok(engine::NodeChange {
        loader,
        console,
        name: change.name,
        address,
        image: change.image.map(setting),
        once: change.once.map(setting),
        kernel_args: change.kernel_args,
        groups: change.groups.map(|groups| {
            let names = groups.split(',').map(str::trim);
            names
                .filter(|name| !name.is_empty())
                .map(str::to_owned)
                .collect()
        }),
    })
}

fn refusal(message: String, hint: &str) -> Response {
    Response::Error {
        message,
        hint: hint.to_owned(),
    }
}

fn write(out: &mut impl io::Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    out.write_all(b"\n")?;
    out.flush()
}
