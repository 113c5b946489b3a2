//! The few calls that a clone child needs besides mounts, paths and namespaces.

use std::os::fd::OwnedFd;

use crate::error::Errno;
use crate::flags::Namespaces;
use crate::sys;

/// Ends the calling process at once with `status` (its low 8 bits): no destructors, no `atexit`. For clone children.
pub fn exit(status: i32) -> ! {
    sys::exit(status)
}

/// Sets the calling thread's signal mask (bit n − 1 is signal n) and returns the one before. For clone children, which
/// start with all blocked: `set_signal_mask(0)` before exec.
///
/// # Errors
/// None that a caller can cause.
pub fn set_signal_mask(mask: u64) -> Result<u64, Errno> {
    sys::set_signal_mask(mask)
}

/// Moves the calling process into new namespaces of these kinds (`PID` and `TIME`: only its children). For clone
/// children; in a program with threads it would move one thread and confuse the rest.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN and without [`Namespaces::USER`] among them, `EINVAL` for kinds that this kernel
/// lacks or `USER` in a process with threads, `ENOSPC` at a limit. Man page: unshare(2).
pub fn unshare(namespaces: Namespaces) -> Result<(), Errno> {
    sys::unshare(namespaces.bits())
}

/// Closes a descriptor by a bare system call. std's drop goes through libc, which a child of
/// [`Clone::spawn_held`](crate::Clone::spawn_held) must not.
pub fn close(fd: OwnedFd) {
    drop(sys::Fd::from(fd));
}
