//! Consoles of virtual nodes: a unix socket for each beside a running `slate try`, and the command
//! that attaches to one.

use std::fs;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;

use lab::Console;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::failure::{Failure, Outcome};

/// Leaves a console: Ctrl-].
const LEAVE: u8 = 0x1d;
/// Folder of the sockets, below that of one `slate try`.
const FOLDER: &str = "consoles";

/// Offers a node's console under its name.
pub fn offer(scratch: &Path, node: &str, console: &Console) -> io::Result<()> {
    let folder = scratch.join(FOLDER);
    fs::create_dir_all(&folder)?;
    let listener = UnixListener::bind(folder.join(node))?;
    let console = console.clone();
    thread::spawn(move || {
        for stream in listener.incoming().filter_map(Result::ok) {
            let console = console.clone();
            thread::spawn(move || {
                // Either side may leave at any time.
                let _ = serve(stream, &console);
            });
        }
    });
    Ok(())
}

fn serve(mut stream: UnixStream, console: &Console) -> io::Result<()> {
    let mut out = stream.try_clone()?;
    let printed = console.follow();
    thread::spawn(move || {
        for bytes in printed {
            if out.write_all(&bytes).is_err() {
                return;
            }
        }
    });
    let mut buffer = [0; 1024];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 || console.send(&buffer[..length]).is_err() {
            return Ok(());
        }
    }
}

/// Attaches this terminal to a node's console until Ctrl-].
pub fn attach(node: &str) -> Outcome {
    let stream = find(node).ok_or_else(|| {
        Failure::new(format!("no virtual node is called {node}"))
            .hint("Start one in another terminal: slate try. Its output names the nodes.")
    })?;
    eprintln!("console of {node}; Ctrl-] leaves");
    let raw = RawTerminal::enter();
    let result = relay(stream);
    drop(raw);
    eprintln!();
    result.map_err(|error| Failure::because("the console ended", &error))
}

fn find(node: &str) -> Option<UnixStream> {
    let plain = !node.is_empty() && !node.contains(['/', '.']);
    let folders = plain.then(super::lab::scratch_folders)?;
    let sockets = folders
        .iter()
        .map(|folder: &PathBuf| folder.join(FOLDER).join(node));
    sockets
        .filter_map(|socket| UnixStream::connect(socket).ok())
        .next()
}

fn relay(stream: UnixStream) -> io::Result<()> {
    let mut printed = stream.try_clone()?;
    thread::spawn(move || io::copy(&mut printed, &mut io::stdout()));
    let mut typed = stream;
    // A first return shows the prompt.
    typed.write_all(b"\r")?;
    let mut buffer = [0; 1024];
    loop {
        let length = io::stdin().read(&mut buffer)?;
        let end = buffer[..length].iter().position(|byte| *byte == LEAVE);
        typed.write_all(&buffer[..end.unwrap_or(length)])?;
        if length == 0 || end.is_some() {
            return Ok(());
        }
    }
}

/// Hands every key on as it is typed; gives the terminal back when dropped.
struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    fn enter() -> Option<RawTerminal> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return None;
        }
        let before = tcgetattr(&stdin).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw).ok()?;
        Some(RawTerminal { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // Nothing can be done where the terminal is gone.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}
