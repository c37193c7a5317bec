//! `slate try`, as somebody at a terminal uses it.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use lab::Tool;

use crate::harness::{PATIENCE, Site, impossible};

/// A program whose output is waited for.
struct Followed {
    child: Child,
    output: Receiver<Vec<u8>>,
    /// What it printed since the last thing that was waited for.
    text: String,
}

impl Followed {
    fn start(command: &mut Command) -> Followed {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut printed = child.stdout.take().expect("its output is a pipe");
        let (sender, output) = mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = printed.read(&mut buffer) {
                let _ = sender.send(buffer[..length].to_vec());
            }
        });
        Followed {
            child,
            output,
            text: String::new(),
        }
    }

    fn expect(&mut self, wanted: &str, patience: Duration) {
        let end = Instant::now() + patience;
        loop {
            if let Some(at) = self.text.find(wanted) {
                self.text.drain(..at + wanted.len());
                return;
            }
            let left = end.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left) {
                Ok(bytes) => self.text.push_str(&String::from_utf8_lossy(&bytes)),
                Err(error) => panic!("no {wanted:?} ({error}) in:\n{}", self.text),
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        let input = self.child.stdin.as_mut().expect("its input is a pipe");
        input.write_all(bytes).expect("it takes input");
        input.flush().expect("it takes input");
    }

    /// Asserts that it ends by itself, and well.
    fn ends(mut self) {
        let end = Instant::now() + Duration::from_secs(60);
        let status = loop {
            match self.child.try_wait().expect("waiting") {
                Some(status) => break status,
                None => assert!(Instant::now() < end, "it does not end:\n{}", self.text),
            }
            std::thread::sleep(Duration::from_millis(100));
        };
        assert!(status.success(), "{status}:\n{}", self.text);
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "boots machines: cargo xtask test --full"]
fn full_try_breaks_where_it_is_told_and_goes_on_after_exit() {
    let tools = [
        Tool::Qemu,
        Tool::Firmware,
        Tool::Iproute,
        Tool::Mmdebstrap,
        Tool::Busybox,
    ];
    if impossible(&tools) {
        return;
    }
    // For the image; what is tried brings its own network and daemon.
    let site = Site::new("debian12", &[]);
    let cache = site.path("cache");
    std::fs::create_dir(&cache).expect("a folder");
    let store = std::fs::canonicalize(site.path("state/store")).expect("a store");
    std::os::unix::fs::symlink(store, cache.join("store")).expect("a link");
    let slate = env!("CARGO_BIN_EXE_slate");
    let mut tried = Command::new(slate);
    tried.env("SLATE_CACHE_DIR", &cache).args([
        "try",
        "--image",
        "debian12",
        "--break",
        "pre-mount",
    ]);
    let mut tried = Followed::start(&mut tried);
    tried.expect("At network a shell opens on the console", PATIENCE);
    tried.expect("slate try console node1", PATIENCE);

    // script(1) gives it a terminal of its own.
    let attach = format!("{slate} try console node1");
    let mut terminal = Command::new("script");
    let mut terminal = Followed::start(terminal.args(["-qfec", &attach, "/dev/null"]));
    terminal.expect("Ctrl-] leaves", PATIENCE);
    terminal.expect("rd.break: a shell", PATIENCE * 2);
    // What the shell prints is not what was typed: the line is echoed.
    terminal.send(b"echo at $(ls /sysroot | wc -l) $((6 * 7))\r");
    terminal.expect("at 0 42", PATIENCE);
    terminal.send(b"exit\r");
    tried.expect("is up", PATIENCE * 2);
    tried.expect("Log in:", PATIENCE);
    terminal.send(&[0x1d]);
    terminal.ends();

    let interrupted = Command::new("kill")
        .args(["-INT", &tried.child.id().to_string()])
        .status();
    assert!(interrupted.expect("kill starts").success());
    tried.ends();
}
