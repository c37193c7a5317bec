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

/// Maps a file for reading and locks all of it into memory for as long as this process lives.
/// Answers its length in bytes.
pub fn lock_file(file: &File) -> io::Result<usize> {
    let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    if length == 0 {
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
    // SAFETY: the range is the mapping just made.
    check(unsafe { libc::mlock(start, length) })?;
    Ok(length)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
