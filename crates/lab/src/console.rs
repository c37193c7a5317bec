//! A machine's serial line: captured, split into lines with times, typed on.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{ChildStdin, ChildStdout};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, mpsc};
use std::time::{Duration, Instant};

use crate::process::Process;

/// What goes wrong on a console.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// The text did not appear in time.
    #[error("waited {waited:.1?} for {expected:?} on the console; its last lines:\n{last}")]
    TimedOut {
        /// The text waited for.
        expected: String,
        /// How long.
        waited: Duration,
        /// The last lines that the machine printed.
        last: String,
    },
    /// The machine went off while something was awaited.
    #[error("the machine went off before it printed {expected:?}; its last lines:\n{last}")]
    Off {
        /// The text waited for.
        expected: String,
        /// The last lines that the machine printed.
        last: String,
    },
    /// The line cannot be typed on.
    #[error("typing on the console: {0}")]
    Typing(#[from] io::Error),
}

/// A line that a machine printed, without control sequences.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// When its first character came, counted from power-on.
    pub at: Duration,
    /// The text, without its end of line.
    pub text: String,
}

/// What a command typed on a console printed, and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandOutput {
    /// The exit status as the shell reports it.
    pub status: i32,
    /// Standard output and standard error.
    pub text: String,
}

/// A serial console. Clones share it.
#[derive(Clone, Debug)]
pub struct Console {
    shared: Arc<Shared>,
    keyboard: Arc<Mutex<ChildStdin>>,
    markers: Arc<AtomicU32>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    powered_on: Instant,
}

#[derive(Debug, Default)]
struct State {
    /// Everything printed, without control sequences.
    text: String,
    /// Where in `text` the next expectation begins.
    cursor: usize,
    lines: Vec<Line>,
    /// Where in `text` the unfinished line begins, and when.
    line_start: usize,
    line_time: Option<Duration>,
    filter: ControlFilter,
    followers: Vec<mpsc::Sender<Vec<u8>>>,
    off: bool,
}

impl Console {
    /// Takes over a child's standard input and output, which must be pipes.
    pub(crate) fn attach(
        process: &mut Process,
        powered_on: Instant,
        capture: Option<&Path>,
    ) -> io::Result<Self> {
        let (Some(keyboard), Some(screen)) = (process.take_stdin(), process.take_stdout()) else {
            return Err(io::Error::other(
                "a machine's standard input and output must be pipes",
            ));
        };
        let capture = capture
            .map(|path| File::options().create(true).append(true).open(path))
            .transpose()?;
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            powered_on,
        });
        let reader = shared.clone();
        std::thread::Builder::new()
            .name("lab-console".into())
            .spawn(move || reader.read(screen, capture))?;
        Ok(Self {
            shared,
            keyboard: Arc::new(Mutex::new(keyboard)),
            markers: Arc::default(),
        })
    }

    /// Types bytes.
    pub fn send(&self, bytes: &[u8]) -> Result<(), ConsoleError> {
        let mut keyboard = self
            .keyboard
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        keyboard.write_all(bytes)?;
        keyboard.flush()?;
        Ok(())
    }

    /// Types a line and the return key.
    pub fn send_line(&self, line: &str) -> Result<(), ConsoleError> {
        self.send(format!("{line}\n").as_bytes())
    }

    /// Waits for `text` in what was printed since the last expectation; returns what came before it.
    pub fn expect(&self, text: &str, timeout: Duration) -> Result<String, ConsoleError> {
        self.expect_any(&[text], timeout).map(|(_, before)| before)
    }

    /// Waits for any of `texts` since the last expectation: the index of the earliest, and what
    /// came before it.
    pub fn expect_any(
        &self,
        texts: &[&str],
        timeout: Duration,
    ) -> Result<(usize, String), ConsoleError> {
        self.await_state(&texts.join(" or "), timeout, |state| {
            let unread = &state.text[state.cursor..];
            let (at, index) = texts
                .iter()
                .enumerate()
                .filter_map(|(index, text)| unread.find(text).map(|at| (at, index)))
                .min()?;
            let before = unread[..at].to_owned();
            state.cursor += at + texts[index].len();
            Some((index, before))
        })
    }

    /// Waits for a whole line, past or future, that `wanted` accepts. Leaves expectations alone.
    pub fn wait_line(
        &self,
        description: &str,
        timeout: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Line, ConsoleError> {
        let mut seen = 0;
        self.await_state(description, timeout, |state| {
            let found = state.lines[seen..]
                .iter()
                .find(|line| wanted(&line.text))
                .cloned();
            seen = state.lines.len();
            found
        })
    }

    /// The whole lines printed so far.
    pub fn lines(&self) -> Vec<Line> {
        self.shared.lock().lines.clone()
    }

    /// The last `count` lines, joined, for messages.
    pub fn last_lines(&self, count: usize) -> String {
        self.shared.lock().last_lines(count)
    }

    /// Everything that the machine prints from now on, as it comes; ends when the machine goes off.
    pub fn follow(&self) -> mpsc::Receiver<Vec<u8>> {
        let (sender, receiver) = mpsc::channel();
        let mut state = self.shared.lock();
        if !state.off {
            state.followers.push(sender);
        }
        receiver
    }

    /// Gets a root shell: logs in as root without a password, or finds the shell that an automatic
    /// login left. Silences kernel messages and the echo so that [`Console::run`] reads cleanly.
    pub fn login(&self, timeout: Duration) -> Result<(), ConsoleError> {
        let end = Instant::now() + timeout;
        let left = || end.saturating_duration_since(Instant::now());
        self.expect_any(&["login: "], left())?;
        let automatic = self
            .expect("(automatic login)", Duration::from_secs(2).min(left()))
            .is_ok();
        if !automatic {
            self.send_line("root")?;
        }
        self.expect_any(&["# ", "$ "], left())?;
        self.send_line("stty -echo cols 4000; dmesg -n 1; export PAGER=cat TERM=dumb; PS1= PS2=")?;
        let marker = self.next_marker();
        self.send_line(&format!("printf '%s-%s\\n' {marker} ready"))?;
        self.expect(&format!("{marker}-ready"), left())?;
        Ok(())
    }

    /// Runs a shell command after [`Console::login`]; waits for its end.
    pub fn run(&self, command: &str, timeout: Duration) -> Result<CommandOutput, ConsoleError> {
        let marker = self.next_marker();
        // The markers are put together by printf, so an echo of this line cannot look like one.
        self.send_line(&format!(
            "printf '%s-begin\\n' {marker}; {{ {command}\n}} 2>&1 </dev/null; printf '%s-%s-end %d;\\n' '' {marker} $?"
        ))?;
        let end = Instant::now() + timeout;
        self.expect(&format!("{marker}-begin\n"), timeout)?;
        let text = self.expect(
            &format!("-{marker}-end "),
            end.saturating_duration_since(Instant::now()),
        )?;
        let status = self.expect(";", Duration::from_secs(10))?;
        Ok(CommandOutput {
            status: status.trim().parse().unwrap_or(-1),
            text,
        })
    }

    fn next_marker(&self) -> String {
        format!("lab{}", self.markers.fetch_add(1, Ordering::Relaxed))
    }

    fn await_state<T>(
        &self,
        expected: &str,
        timeout: Duration,
        mut ready: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<T, ConsoleError> {
        let begun = Instant::now();
        let mut state = self.shared.lock();
        loop {
            if let Some(value) = ready(&mut state) {
                return Ok(value);
            }
            let expected = || expected.to_owned();
            let waited = begun.elapsed();
            if state.off {
                return Err(ConsoleError::Off {
                    expected: expected(),
                    last: state.last_lines(20),
                });
            }
            if waited >= timeout {
                return Err(ConsoleError::TimedOut {
                    expected: expected(),
                    waited,
                    last: state.last_lines(20),
                });
            }
            let guard = self.shared.changed.wait_timeout(state, timeout - waited);
            state = guard.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn read(&self, mut screen: ChildStdout, mut capture: Option<File>) {
        let mut buffer = [0; 4096];
        while let Ok(count) = screen.read(&mut buffer) {
            if count == 0 {
                break;
            }
            let bytes = &buffer[..count];
            if let Some(file) = &mut capture {
                let _ = file.write_all(bytes);
            }
            self.lock().take(bytes, self.powered_on.elapsed());
            self.changed.notify_all();
        }
        self.lock().finish();
        self.changed.notify_all();
    }
}

impl State {
    fn take(&mut self, bytes: &[u8], at: Duration) {
        self.followers
            .retain(|follower| follower.send(bytes.to_vec()).is_ok());
        for &byte in bytes {
            let Some(character) = self.filter.next(byte) else {
                continue;
            };
            if character == '\n' {
                self.end_line(at);
            } else {
                self.line_time.get_or_insert(at);
            }
            self.text.push(character);
            if character == '\n' {
                self.line_start = self.text.len();
            }
        }
    }

    fn end_line(&mut self, at: Duration) {
        let text = self.text[self.line_start..].to_owned();
        self.lines.push(Line {
            at: self.line_time.take().unwrap_or(at),
            text,
        });
    }

    fn finish(&mut self) {
        if let Some(at) = self.line_time {
            self.end_line(at);
            self.line_start = self.text.len();
        }
        self.off = true;
        self.followers.clear();
    }

    fn last_lines(&self, count: usize) -> String {
        let first = self.lines.len().saturating_sub(count);
        let mut texts: Vec<&str> = self.lines[first..]
            .iter()
            .map(|line| line.text.as_str())
            .collect();
        texts.push(&self.text[self.line_start..]);
        texts.join("\n")
    }
}

/// Drops carriage returns, other control characters and terminal control sequences (ECMA-48), and
/// decodes UTF-8 loosely.
#[derive(Debug, Default)]
enum ControlFilter {
    #[default]
    Text,
    Utf8 {
        bytes: Vec<u8>,
        wanted: usize,
    },
    Escape,
    /// After `ESC [`: until a final byte.
    Sequence,
    /// After `ESC ]`: until BEL or `ESC \`.
    OperatingSystemCommand,
}

impl ControlFilter {
    fn next(&mut self, byte: u8) -> Option<char> {
        match self {
            Self::Text => return self.text(byte),
            Self::Utf8 { bytes, wanted } => {
                bytes.push(byte);
                if byte & 0xc0 == 0x80 && bytes.len() < *wanted {
                    return None;
                }
                let decoded = std::str::from_utf8(bytes)
                    .ok()
                    .and_then(|text| text.chars().next());
                *self = Self::Text;
                return Some(decoded.unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            Self::Escape => {
                *self = match byte {
                    b'[' => Self::Sequence,
                    b']' | b'P' => Self::OperatingSystemCommand,
                    _ => Self::Text,
                };
            }
            Self::Sequence if (0x40..=0x7e).contains(&byte) => *self = Self::Text,
            Self::OperatingSystemCommand if byte == 0x07 => *self = Self::Text,
            Self::OperatingSystemCommand if byte == 0x1b => *self = Self::Escape,
            Self::Sequence | Self::OperatingSystemCommand => {}
        }
        None
    }

    fn text(&mut self, byte: u8) -> Option<char> {
        match byte {
            b'\n' | b'\t' | b' '..=b'~' => return Some(char::from(byte)),
            0x1b => *self = Self::Escape,
            0xc2..=0xdf => {
                *self = Self::Utf8 {
                    bytes: vec![byte],
                    wanted: 2,
                }
            }
            0xe0..=0xef => {
                *self = Self::Utf8 {
                    bytes: vec![byte],
                    wanted: 3,
                }
            }
            0xf0..=0xf4 => {
                *self = Self::Utf8 {
                    bytes: vec![byte],
                    wanted: 4,
                }
            }
            0x80.. => return Some(char::REPLACEMENT_CHARACTER),
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(bytes: &[u8]) -> State {
        let mut state = State::default();
        state.take(bytes, Duration::from_secs(1));
        state
    }

    #[test]
    fn control_sequences_do_not_reach_the_text() {
        let state = printed(
            b"\x1b[0;32m  OK  \x1b[0m] Reached \x1b]0;title\x07target\r\nM\xc3\xbcll \xff\n",
        );
        assert_eq!(state.text, "  OK  ] Reached target\nMüll \u{fffd}\n");
    }

    #[test]
    fn a_line_has_the_time_of_its_first_character() {
        let mut state = State::default();
        state.take(b"boot", Duration::from_secs(1));
        state.take(b"ing\nnext", Duration::from_secs(2));
        state.finish();
        let expected = [(1, "booting"), (2, "next")].map(|(second, text)| Line {
            at: Duration::from_secs(second),
            text: text.to_owned(),
        });
        assert_eq!(state.lines, expected);
    }

    #[test]
    fn last_lines_include_the_unfinished_one() {
        assert_eq!(printed(b"a\nb\nlogin: ").last_lines(1), "b\nlogin: ");
    }
}
