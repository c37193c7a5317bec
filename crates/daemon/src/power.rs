//! Switches machines on and off: magic packets, and commands that root has named.

use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use engine::{Input, Mac, POWER_TIME, PowerTask};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::hub::{Inbox, Message};

/// An order and what it is.
pub type Job = (u64, PowerTask);

/// How many are carried out at once.
const WORKERS: usize = 16;
/// Most bytes of what a command prints that are kept.
const OUTPUT_MAX: u64 = 64 << 10;
/// How often it is looked whether a command has ended.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The port that magic packets go to: discard, as everybody has it. The network card looks at the
/// content alone.
const WAKE_PORT: u16 = 9;
/// How often a magic packet is sent: datagrams get lost.
const WAKE_TIMES: usize = 3;
const NOT_STARTED: i32 = -1;
/// Where programs are looked for.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Starts the threads that do it.
pub fn start(hub: &Inbox) -> Sender<Job> {
    let (sender, jobs) = channel();
    let jobs = Arc::new(Mutex::new(jobs));
    for _ in 0..WORKERS {
        let (jobs, hub) = (Arc::clone(&jobs), hub.clone());
        std::thread::spawn(move || work(&jobs, &hub));
    }
    sender
}

fn work(jobs: &Mutex<Receiver<Job>>, hub: &Inbox) {
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((order, task)) = job else {
            return;
        };
        let (status, output) = match carry_out(&task) {
            Ok(done) => done,
            Err(error) => (NOT_STARTED, format!("{error}\n").into_bytes()),
        };
        let ended = Input::PowerEnded {
            order,
            status,
            output,
        };
        if hub.send(Message::Input(ended)).is_err() {
            return;
        }
    }
}

/// Its exit status and what it printed.
fn carry_out(task: &PowerTask) -> io::Result<(i32, Vec<u8>)> {
    match task {
        PowerTask::Wake { mac, broadcasts } => {
            for broadcast in broadcasts {
                wake(*mac, *broadcast)?;
            }
            Ok((0, Vec::new()))
        }
        PowerTask::Run { words } => run(words, POWER_TIME),
    }
}

/// What wakes a machine: six bytes of ones, then its MAC sixteen times (AMD, "Magic Packet Technology",
/// publication 20213).
fn magic_packet(mac: Mac) -> Vec<u8> {
    [&[0xff; 6][..], &mac.0.repeat(16)].concat()
}

fn wake(mac: Mac, broadcast: Ipv4Addr) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_broadcast(true)?;
    for _ in 0..WAKE_TIMES {
        socket.send_to(&magic_packet(mac), (broadcast, WAKE_PORT))?;
    }
    Ok(())
}

/// Runs a program without a shell, for so long at most.
fn run(words: &[String], time: Duration) -> io::Result<(i32, Vec<u8>)> {
    let (program, arguments) = words.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut output = output_file()?;
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output.try_clone()?)
        .process_group(0)
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("{program}: {error}")))?;
    let end = Instant::now() + time;
    let mut late = false;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= end {
            late = true;
            break end_group(&mut child)?;
        }
        std::thread::sleep(LOOK_EVERY);
    };
    let mut text = Vec::new();
    output.rewind()?;
    output.take(OUTPUT_MAX).read_to_end(&mut text)?;
    if late {
        let said = format!("it was ended after {} s\n", time.as_secs());
        text.extend_from_slice(said.as_bytes());
    }
    let code = status.code().or(status.signal().map(|it| 128 + it));
    Ok((code.unwrap_or(NOT_STARTED), text))
}

/// What a command prints goes to memory: whoever stays behind with it keeps nobody waiting.
fn output_file() -> io::Result<File> {
    use rustix::fs::{MemfdFlags, memfd_create};
    Ok(File::from(memfd_create("power", MemfdFlags::CLOEXEC)?))
}

fn end_group(child: &mut Child) -> io::Result<ExitStatus> {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let _ = kill_process_group(group, Signal::KILL);
    }
    child.wait()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|it| (*it).to_owned()).collect()
    }

    #[test]
    fn commands_are_run_without_a_shell_and_ended() {
        let limit = Duration::from_secs(60);
        let printed = run(&words(&["printf", "%s|", "a b", "$HOME"]), limit).unwrap();
        assert_eq!(printed, (0, b"a b|$HOME|".to_vec()));
        let failed = run(&words(&["ls", "/nowhere"]), limit).unwrap();
        assert_eq!(failed.0, 2);
        assert!(!failed.1.is_empty());
        assert!(run(&words(&["/nowhere/program"]), limit).is_err());
        let (status, text) = run(&words(&["sleep", "600"]), Duration::from_secs(1)).unwrap();
        assert_eq!(status, 128 + 9);
        assert_eq!(text, b"it was ended after 1 s\n");
    }

    #[test]
    fn a_magic_packet_wakes_one_machine() {
        let mac: Mac = "52:54:00:12:34:56".parse().unwrap();
        let packet = magic_packet(mac);
        assert_eq!(packet.len(), 102);
        assert_eq!(packet[..6], [0xff; 6]);
        assert!(packet[6..].chunks(6).all(|it| it == mac.0));
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(wake(mac, Ipv4Addr::LOCALHOST).is_ok());
        drop(socket);
    }
}
