//! The few system calls that need `unsafe`; everything else goes through rustix or std.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Binds a socket to one interface, so that it sends and receives there even without an address.
pub fn bind_to_device(socket: impl AsFd, interface: &str) -> io::Result<()> {
    let length = libc::socklen_t::try_from(interface.len()).map_err(io::Error::other)?;
    // SAFETY: the kernel reads `length` bytes from the name, which lives longer than the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_BINDTODEVICE,
            interface.as_ptr().cast(),
            length,
        )
    };
    check(result)
}

/// Credits 32 random bytes to the kernel's generator.
pub fn credit_entropy(random: &File, seed: &[u8; 32]) -> io::Result<()> {
    /// `struct rand_pool_info` of random(4).
    #[repr(C)]
    struct Pool {
        entropy_bits: i32,
        buffer_bytes: i32,
        buffer: [u8; 32],
    }
    /// `_IOW('R', 3, int[2])` of linux/random.h; libc lacks it for musl.
    const RNDADDENTROPY: u32 = 0x4008_5203;
    let pool = Pool {
        entropy_bits: 256,
        buffer_bytes: 32,
        buffer: *seed,
    };
    // SAFETY: RNDADDENTROPY reads a rand_pool_info with `buffer_bytes` bytes behind it.
    let result = unsafe { libc::ioctl(random.as_raw_fd(), RNDADDENTROPY as _, &raw const pool) };
    check(result)
}

/// Locks pages of a file into memory, those for which `wanted` is true, and holds the file open, for
/// as long as this process lives. Answers how many pages it locked.
pub fn lock_file(file: &File, wanted: &[bool]) -> io::Result<usize> {
    let page = rustix::param::page_size();
    let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    let wanted = &wanted[..wanted.len().min(length.div_ceil(page))];
    if wanted.is_empty() {
        return Ok(0);
    }
    // SAFETY: a fresh shared read-only mapping that nobody in this program ever reads through;
    // it is never unmapped.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let (mut at, mut locked) = (0, 0);
    for run in wanted.chunk_by(|one, other| one == other) {
        if run[0] {
            // SAFETY: `wanted` has no more pages than the mapping just made.
            check(unsafe { libc::mlock(start.byte_add(at * page), run.len() * page) })?;
            locked += run.len();
        }
        at += run.len();
    }
    Ok(locked)
}

/// Gives this process, which must have one thread, mounts of its own: a copy of all that it has.
pub fn own_mounts() -> io::Result<()> {
    // SAFETY: CLONE_NEWNS touches no memory and no descriptors.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) })
}

/// Forks this process, which must have one thread. Answers true in the child.
pub fn fork() -> io::Result<bool> {
    // SAFETY: the caller has one thread, so the child finds no lock held that nobody releases.
    let pid = unsafe { libc::fork() };
    check(pid.min(0))?;
    Ok(pid == 0)
}

/// SIGTERM no longer ends this process; it waits for [`sigterm_within`].
pub fn hold_sigterm() -> io::Result<()> {
    // SAFETY: the set is written by sigemptyset before anybody reads it, and outlives all calls.
    let error = unsafe {
        let set = sigterm();
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut())
    };
    if error == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(error))
    }
}

/// Waits for a SIGTERM that was held; who sent it, if one came within `patience`.
pub fn sigterm_within(patience: std::time::Duration) -> Option<libc::pid_t> {
    let time = libc::timespec {
        tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: libc::c_long::from(patience.subsec_nanos() as i32),
    };
    // SAFETY: siginfo_t is plain data for which zeroes are valid; set, info and time outlive the
    // call; a signal that kill(2) or a process sent has a si_pid.
    unsafe {
        let set = sigterm();
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let signal = libc::sigtimedwait(&raw const set, &raw mut info, &raw const time);
        (signal == libc::SIGTERM).then(|| info.si_pid())
    }
}

/// The set of SIGTERM alone.
fn sigterm() -> libc::sigset_t {
    // SAFETY: sigemptyset initializes the set that sigaddset then changes.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGTERM);
        set
    }
}

/// Sends process 1 the signal that is `above` SIGRTMIN by that much.
pub fn ask_process_1(above: i32) -> io::Result<()> {
    // SIGRTMIN of the C library that systemd uses; musl's is another.
    const SIGRTMIN: i32 = 34;
    // SAFETY: kill touches no memory.
    check(unsafe { libc::kill(1, SIGRTMIN + above) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
