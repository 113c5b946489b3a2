//! Child subreaper: who adopts orphans instead of init.
//!
//! When a process ends, its children get a new parent: the nearest living *child subreaper* among their ancestors in
//! the same PID namespace, else the init (PID 1) of that namespace. The new parent must wait for them, or they stay
//! zombies. The setting belongs to the whole process, stays across exec and is not inherited by children. It cannot
//! reach into another PID namespace: orphans in a new one go to its own init, however many subreapers stand outside.
//! Since Linux 3.4; man page: PR_SET_CHILD_SUBREAPER(2const).

use rustix::process::Pid;

use crate::error::{Errno, Error};

/// Makes the calling process adopt its orphaned descendants, or stop doing so. Those adopted before stay.
///
/// # Errors
/// [`Error::Syscall`] when `prctl` fails (a kernel before 3.4, or a seccomp filter).
pub fn set(adopt: bool) -> Result<(), Error> {
    rustix::process::set_child_subreaper(adopt.then_some(Pid::INIT)) // any pid means yes
        .map_err(|error| Error::call("prctl", "PR_SET_CHILD_SUBREAPER", Errno::of(error)))
}

/// Whether the calling process is a child subreaper. An init is none; it adopts anyway.
///
/// # Errors
/// [`Error::Syscall`] when `prctl` fails.
pub fn get() -> Result<bool, Error> {
    rustix::process::child_subreaper()
        .map(|pid| pid.is_some())
        .map_err(|error| Error::call("prctl", "PR_GET_CHILD_SUBREAPER", Errno::of(error)))
}
