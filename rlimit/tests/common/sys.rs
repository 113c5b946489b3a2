//! Calls that no safe library offers.
//!
//! # Safety
//! Each call reads at most the memory of its arguments, and keeps no pointer.
#![allow(unsafe_code, unreachable_pub)]

use std::ffi::CStr;
use std::io;
use std::ptr;
use std::time::Duration;

fn answer(returned: i32) -> io::Result<()> {
    if returned == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The CPU time that this process has used. (rustix asks the vDSO alone, and not every kernel of today has the clocks there.)
pub fn cpu_time() -> io::Result<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes the structure that it is given.
    answer(unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) })?;
    let (seconds, nanoseconds) = (u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec));
    Ok(Duration::new(seconds.map_err(io::Error::other)?, nanoseconds.map_err(io::Error::other)?))
}

/// mlock(2) of the pages of a slice, for as long as they are mapped.
pub fn lock(bytes: &[u8]) -> io::Result<()> {
    // SAFETY: the range is that of the slice; locking changes nothing that Rust can see.
    answer(unsafe { libc::mlock(bytes.as_ptr().cast(), bytes.len()) })
}

/// Blocks a signal in the calling thread.
pub fn block(signal: i32) -> io::Result<()> {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: writes a whole set.
    answer(unsafe { libc::sigemptyset(set.as_mut_ptr()) })?;
    // SAFETY: the set was made by the call before.
    answer(unsafe { libc::sigaddset(set.as_mut_ptr(), signal) })?;
    // SAFETY: reads the set; the old one is not asked for.
    answer(unsafe { libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), ptr::null_mut()) })
}

/// The first real-time signal.
pub fn first_realtime() -> i32 {
    libc::SIGRTMIN()
}

/// pthread_sigqueue(3) to the calling thread.
pub fn queue(signal: i32) -> io::Result<()> {
    let value = libc::sigval { sival_ptr: ptr::null_mut() };
    // SAFETY: asks for a number.
    let own = unsafe { libc::pthread_self() };
    // SAFETY: the thread lives, it is the calling one; the pointer of the value is null and never followed.
    match unsafe { libc::pthread_sigqueue(own, signal, value) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// mq_open(3) of a new queue with the system's default size; it is unlinked at once, and closed with the process.
pub fn message_queue(name: &CStr) -> io::Result<()> {
    let no_attributes = ptr::null_mut::<libc::mq_attr>();
    // SAFETY: the name ends with NUL; null attributes mean the defaults.
    answer(unsafe { libc::mq_open(name.as_ptr(), libc::O_CREAT | libc::O_EXCL | libc::O_RDWR, 0o600, no_attributes) })?;
    // SAFETY: the name ends with NUL.
    answer(unsafe { libc::mq_unlink(name.as_ptr()) })
}
