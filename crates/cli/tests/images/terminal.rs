//! `slate image edit` on a terminal: its shell, what it asks, and what becomes of the answer.

use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::rig::{Slate, busybox_root, impossible};

const PATIENCE: Duration = Duration::from_secs(120);
/// How busybox's shell asks root for a line, at the image's top.
const PROMPT: &str = "/ # ";
const QUESTION: &str = "Publish it as base:next? [Y/n]";

/// A command on a pseudo terminal of its own.
struct Terminal {
    master: std::fs::File,
    printed: Receiver<Vec<u8>>,
    /// What was printed and not waited for yet.
    text: String,
    child: Child,
}

impl Terminal {
    fn run(slate: &Slate<'_>, words: &[&str]) -> Terminal {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pseudo terminal");
        grantpt(&master).expect("its owner");
        unlockpt(&master).expect("its lock");
        let name = ptsname(&master, Vec::new()).expect("its name");
        let name = name.to_str().expect("a path").to_owned();
        let open = || -> Stdio {
            let mut options = std::fs::File::options();
            let slave = options.read(true).write(true).open(&name);
            OwnedFd::from(slave.expect("the terminal")).into()
        };
        let mut command = slate.command(words);
        // Without colours, which a dumb terminal gets too where `CI` is set.
        command.env("TERM", "dumb").env("NO_COLOR", "1");
        // A session whose terminal this is, as login(1) makes it.
        let mut session = Command::new("setsid");
        session
            .args(["--ctty", "--wait"])
            .arg(command.get_program())
            .args(command.get_args());
        session.envs(
            command
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
        session.stdin(open()).stdout(open()).stderr(open());
        let child = session.spawn().expect("setsid starts");
        let master = std::fs::File::from(master);
        let mut reader = master.try_clone().expect("the terminal's other end");
        let (sender, printed) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // EIO: nobody has the terminal any more.
            while let Ok(read @ 1..) = reader.read(&mut buffer) {
                if sender.send(buffer[..read].to_vec()).is_err() {
                    return;
                }
            }
        });
        Terminal {
            master,
            printed,
            text: String::new(),
            child,
        }
    }

    /// Waits until something is printed; what was printed up to its end.
    fn wait(&mut self, expected: &str) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.text.find(expected) {
                let rest = self.text.split_off(at + expected.len());
                return std::mem::replace(&mut self.text, rest);
            }
            let left = end.saturating_duration_since(Instant::now());
            match self.printed.recv_timeout(left) {
                Ok(bytes) => self.text += &String::from_utf8_lossy(&bytes),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    panic!("no {expected:?} in {:?}", self.text)
                }
            }
        }
    }

    fn type_line(&mut self, line: &str) {
        writeln!(self.master, "{line}").expect("typing");
    }

    /// Waits for its end; the rest of what it printed.
    fn end(mut self) -> String {
        let status = self.child.wait().expect("waiting");
        assert!(status.success(), "{status}: {}", self.text);
        while let Ok(bytes) = self.printed.recv_timeout(Duration::from_secs(5)) {
            self.text += &String::from_utf8_lossy(&bytes);
        }
        self.text
    }
}

#[test]
#[ignore = "changes images as root: cargo xtask test"]
fn a_shell_on_a_terminal_asks_before_it_publishes() {
    if impossible(&["/bin/busybox", "/usr/bin/setsid"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let slate = Slate::at(&directory.path().join("state"));
    let root = directory.path().join("root");
    busybox_root(&root);
    slate.run(&[
        "image",
        "import",
        "base",
        root.to_str().expect("a path in UTF-8"),
    ]);
    let old = slate.digest("base");
    let edit = ["image", "edit", "base"];
    let next = || {
        slate
            .output(&["image", "show", "base:next"])
            .status
            .success()
    };

    // Nothing was changed: nothing is asked.
    let mut terminal = Terminal::run(&slate, &edit);
    let greeting = terminal.wait(PROMPT);
    assert!(
        greeting.contains("becomes base:next. Leave it with exit."),
        "{greeting}"
    );
    terminal.type_line("exit");
    let said = terminal.end();
    assert!(
        said.contains("Nothing changed: nothing to publish."),
        "{said}"
    );

    // A change that is not wanted, an answer that is none, and a command that failed last.
    for answer in ["n", "\u{4}"] {
        let mut terminal = Terminal::run(&slate, &edit);
        terminal.wait(PROMPT);
        terminal.type_line("echo edited > /etc/edited; false");
        terminal.wait(PROMPT);
        terminal.type_line("exit");
        let summary = terminal.wait(QUESTION);
        assert!(summary.contains("1 added, "), "{summary}");
        write!(terminal.master, "{answer}").expect("typing");
        if answer == "n" {
            terminal.type_line("");
        }
        let said = terminal.end();
        assert!(said.contains("Discarded."), "{said}");
        assert!(!next());
    }

    // One that is; Ctrl-C ends what runs in the shell, and neither the shell nor the edit.
    let mut terminal = Terminal::run(&slate, &edit);
    terminal.wait(PROMPT);
    // What it prints is not what was typed: the line is echoed.
    terminal.type_line(
        "echo edited > /etc/edited; sh -c 'echo run\"n\"ing; exec /bin/busybox sleep 600'",
    );
    terminal.wait("running\r\n");
    write!(terminal.master, "\u{3}").expect("typing");
    terminal.wait(PROMPT);
    terminal.type_line("exit");
    terminal.wait(QUESTION);
    terminal.type_line("");
    let said = terminal.end();
    assert!(said.contains("base:next is now "), "{said}");
    assert_eq!(slate.digest("base"), old);
    assert_ne!(slate.digest("base:next"), old);
    let out = directory.path().join("out");
    slate.run(&[
        "image",
        "export",
        "base:next",
        out.to_str().expect("a path in UTF-8"),
    ]);
    let edited = std::fs::read_to_string(out.join("etc/edited"));
    assert_eq!(edited.expect("the change"), "edited\n");
}
