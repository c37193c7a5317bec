//! Takes a terminal back from a shell that it was lent to.
#![allow(unsafe_code)]

use std::io::{self, IsTerminal as _};

use rustix::process::getpgrp;
use rustix::termios::tcsetpgrp;

/// Has the terminal on standard input, if it is one, listen to this process's group again. A shell with
/// job control takes it for a group of its own; in a process namespace of its own it cannot see to
/// whom to give it back, and whoever reads from it then gets an I/O error or is stopped.
pub fn take_back() {
    if !io::stdin().is_terminal() {
        return;
    }
    // Who is in the background is stopped by this signal for asking, unless it is ignored: tcsetpgrp(3).
    // SAFETY: ignoring a signal runs no code of ours.
    let former = unsafe { libc::signal(libc::SIGTTOU, libc::SIG_IGN) };
    // Where it fails, reading says so.
    let _ = tcsetpgrp(io::stdin(), getpgrp());
    // SAFETY: what it was before.
    unsafe { libc::signal(libc::SIGTTOU, former) };
}
