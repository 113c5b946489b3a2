//! [`struct@Clone`], the one way in which this crate makes a process, and what its child may call besides.
//!
//! # Safety
//! The child of [`Clone::spawn`] shares the caller's memory. Everything that makes this sound is here: all signals
//! blocked, a stack of its own, the parent asleep, an entry that never returns. What the entry may do is its author's
//! promise, see [`struct@Clone`].
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::os::fd::BorrowedFd;

use crate::error::{Errno, Error};
use crate::flags::Namespaces;
use crate::pidfd::{Pid, PidFd};
use crate::stack::Stack;
use crate::{arch, sys, text};

const CLONE_VM: u64 = 0x100;
const CLONE_FILES: u64 = 0x400;
const CLONE_PIDFD: u64 = 0x1000;
const CLONE_VFORK: u64 = 0x4000;
const CLONE_PARENT: u64 = 0x8000;
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
/// Spelled out: a 64-bit flag that C headers cut to 0 where an `int` is expected.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
const SIGCHLD: u64 = 17;
/// What [`Clone::raw_flags`] refuses: all that would change what parent and child share, or where the kernel writes.
const NOT_RAW: u64 = 0x0000_00ff // the old exit signal; CLONE_NEWTIME (0x80) has its name
    | CLONE_VM | 0x200 | CLONE_FILES | 0x800 | CLONE_PIDFD | 0x2000 | CLONE_VFORK | CLONE_PARENT
    | 0x1_0000 | 0x4_0000 | 0x8_0000 | 0x10_0000 | 0x20_0000 | 0x40_0000 | 0x80_0000 | 0x100_0000 | 0x8000_0000
    | CLONE_CLEAR_SIGHAND | CLONE_INTO_CGROUP;

/// What the child starts with: the code to run, which must never return.
pub type Entry = unsafe extern "C" fn(*mut c_void) -> !;

/// How a process is to be born: by one `clone3`, in new namespaces, sharing the caller's memory until it calls exec.
///
/// Nothing is copied, so that it costs the same from a small program and from one with gigabytes; nothing of the
/// calling program changes, neither its namespaces nor its ids, signal handlers or descriptors.
///
/// # What the child may do
/// It runs on the caller's memory beside (or, by [`spawn`](Self::spawn), instead of) the calling thread, with that
/// thread's thread-local storage. So it may only make raw system calls: no allocation, no lock, no panic, nothing that
/// touches `errno`. All functions of this crate that return [`Errno`] keep to that. It must not change its user or
/// group ids (`setresuid` makes the *calling program* non-dumpable; take ids after exec), and should not stay: call
/// exec or [`exit`](crate::exit). It starts with every signal blocked and each handler reset to the default, while
/// ignored signals stay ignored; [unblock](crate::set_signal_mask) before exec, for exec keeps the mask. Descriptors
/// are copies unless [`files`](Self::files).
///
/// # Kernel
/// Linux 5.7 ([`into_cgroup`](Self::into_cgroup); without it 5.5). On shared memory a [`Namespaces::TIME`] is entered
/// only at exec, or refused (`EINVAL`); to have it for the child's own children everywhere,
/// [`unshare`](crate::unshare) it there. Man page: clone(2).
#[derive(Clone, Debug)]
#[must_use = "describes a process; `spawn` makes it"]
pub struct Clone<'fd> {
    namespaces: Namespaces,
    raw_flags: u64,
    into_cgroup: Option<BorrowedFd<'fd>>,
    parent: bool,
    files: bool,
    exit_signal: bool,
}

impl<'fd> Clone<'fd> {
    /// A child in new namespaces of these kinds, and in the caller's of the other kinds.
    pub const fn new(namespaces: Namespaces) -> Self {
        Self { namespaces, raw_flags: 0, into_cgroup: None, parent: false, files: false, exit_signal: true }
    }

    /// Lets the child be born in this cgroup (`CLONE_INTO_CGROUP`): `directory` is one of cgroup v2, also of the
    /// unified tree beside v1. Default: the caller's cgroup.
    ///
    /// All that it allocates counts there from the start, and nothing is moved, which would cost milliseconds after a
    /// quiet spell. Errors of this are `EBUSY`, `EACCES`, `ENODEV`, `EOPNOTSUPP`, and `EAGAIN` at its `pids.max`.
    pub const fn into_cgroup(mut self, directory: BorrowedFd<'fd>) -> Self {
        self.into_cgroup = Some(directory);
        self
    }

    /// Makes the child a sibling of the caller, a child of the caller's parent (`CLONE_PARENT`). Default: no.
    ///
    /// The kernel refuses this to the init of a PID namespace (`EINVAL`). The exit signal is then the caller's own.
    pub const fn parent(mut self, sibling: bool) -> Self {
        self.parent = sibling;
        self
    }

    /// Shares the descriptor table with the caller (`CLONE_FILES`): what the child opens stays open here. Default: no.
    ///
    /// A sharing child must not change descriptors that others use, so no `dup2` onto them and no `close_range`, until
    /// it has [taken a table of its own](crate::keep_descriptors_below).
    pub const fn files(mut self, shared: bool) -> Self {
        self.files = shared;
        self
    }

    /// Whether the child's end sends SIGCHLD to the parent. Default: yes.
    ///
    /// Without, the child is hidden from `waitpid(-1)` of other code in the program and its status survives an ignored
    /// SIGCHLD, **until it calls exec**, which sets the signal to SIGCHLD again. [`PidFd::reap`] works either way.
    pub const fn exit_signal(mut self, sends: bool) -> Self {
        self.exit_signal = sends;
        self
    }

    /// Adds `CLONE_*` bits that this crate has no name for, such as a kind of namespace newer than it. Default: 0.
    ///
    /// Bits that it has names for, and those that change what parent and child share, are refused by `spawn`.
    pub const fn raw_flags(mut self, bits: u64) -> Self {
        self.raw_flags = bits;
        self
    }

    /// Makes the process; returns when it has called exec or begun to end, for until then it uses the caller's memory
    /// (`CLONE_VFORK`).
    ///
    /// The calling thread sleeps meanwhile and can only be killed; other threads run on. Signals to it stay pending.
    ///
    /// # Errors
    /// [`Error::Syscall`] with `clone3`'s errno and a hint; [`Error::Invalid`] for refused flags. Then no process was
    /// made. The signal mask is as before in every case.
    ///
    /// # Safety
    /// `entry` may be called with `argument` and keeps to what [the child may do](struct@Clone#what-the-child-may-do);
    /// all that it reaches through `argument` lives until `spawn` returns.
    pub unsafe fn spawn(&self, stack: &mut Stack, entry: Entry, argument: *mut c_void) -> Result<Born, Error> {
        // SAFETY: the caller's promise.
        unsafe { self.spawn_from_child(stack, entry, argument) }.map_err(|errno| self.error(errno))
    }

    /// [`spawn`](Self::spawn) for a caller that is a clone child itself: the error is a bare number, so that nothing is
    /// allocated. Together with [`parent`](Self::parent) the new process is its sibling; with [`files`](Self::files)
    /// on the caller the pidfd is good in the program, too. Close what is dropped by [`close`](crate::close).
    ///
    /// # Errors
    /// `clone3`'s; `EINVAL` also for refused raw flags.
    ///
    /// # Safety
    /// As [`spawn`](Self::spawn).
    pub unsafe fn spawn_from_child(
        &self,
        stack: &mut Stack,
        entry: Entry,
        argument: *mut c_void,
    ) -> Result<Born, Errno> {
        // SAFETY: the caller's promise; CLONE_VFORK keeps `stack` borrowed until the child has left it.
        unsafe { self.clone3(CLONE_VFORK, stack, entry, argument) }
    }

    /// The same without waiting: the child runs on, on its own stack, beside the caller. For a child that is held until
    /// its id maps are written, or that keeps a namespace open.
    ///
    /// Do not let such a child be born in a cgroup with a memory limit: the OOM killer ends everything that shares
    /// memory with its victim, so also the calling program (it spares only children of [`spawn`](Self::spawn)).
    ///
    /// # Errors
    /// As [`spawn`](Self::spawn).
    ///
    /// # Safety
    /// As [`spawn`](Self::spawn), and `stack` and all that `entry` reaches must live, untouched by others, until the
    /// child has ended or called exec, which the [pidfd](Born::pidfd) tells. As it shares the calling thread's TLS with
    /// a *running* thread, even reading `errno` is a data race.
    pub unsafe fn spawn_held(&self, stack: &mut Stack, entry: Entry, argument: *mut c_void) -> Result<Born, Error> {
        // SAFETY: the caller's promise.
        unsafe { self.clone3(0, stack, entry, argument) }.map_err(|errno| self.error(errno))
    }

    fn refused(&self) -> u64 {
        self.raw_flags & (NOT_RAW | Namespaces::all().bits())
    }

    fn flags(&self) -> u64 {
        self.namespaces.bits()
            | self.raw_flags
            | CLONE_VM
            | CLONE_PIDFD
            | CLONE_CLEAR_SIGHAND
            | if self.into_cgroup.is_some() { CLONE_INTO_CGROUP } else { 0 }
            | if self.parent { CLONE_PARENT } else { 0 }
            | if self.files { CLONE_FILES } else { 0 }
    }

    /// # Safety
    /// As `spawn_held`.
    unsafe fn clone3(&self, vfork: u64, stack: &mut Stack, entry: Entry, argument: *mut c_void) -> Result<Born, Errno> {
        if self.refused() != 0 {
            return Err(Errno::from_raw(libc::EINVAL));
        }
        let mut pidfd: i32 = -1;
        let arguments = CloneArgs {
            flags: self.flags() | vfork,
            pidfd: &raw mut pidfd as u64,
            // With CLONE_PARENT the kernel insists on 0 and takes the caller's own.
            exit_signal: if self.exit_signal && !self.parent { SIGCHLD } else { 0 },
            stack: stack.bottom(),
            stack_size: stack.size() as u64,
            cgroup: self.into_cgroup.map_or(0, text::number),
            ..CloneArgs::default()
        };
        let returned = {
            let _blocked = BlockedSignals::block();
            // SAFETY: `arguments` is a whole `struct clone_args` with CLONE_VM and `stack`, page-aligned and lent to
            // the child; `entry` and `argument` are the caller's promise. No handler can run on shared memory: all
            // signals are blocked here and in the child.
            unsafe { arch::clone3((&raw const arguments).cast(), size_of::<CloneArgs>(), entry, argument) }
        };
        let pid = sys::result(returned)?;
        // After a success the kernel has written both; were they nonsense, the errors below would still be honest.
        let pidfd = sys::adopt(usize::try_from(pidfd).map_err(|_| Errno::from_raw(libc::EBADF))?)?;
        let pid = u32::try_from(pid).ok().and_then(Pid::new).ok_or(Errno::from_raw(libc::ESRCH))?;
        Ok(Born { pid, pidfd: PidFd::from(pidfd) })
    }

    fn error(&self, errno: Errno) -> Error {
        match self.refused() {
            0 => Error::call("clone3", format!("({})", self.describe()), errno),
            bits => {
                let why = format!("{bits:#x} is named by this crate or changes what parent and child share");
                Error::invalid("raw clone flags", why)
            }
        }
    }

    fn describe(&self) -> String {
        let mut words = format!("namespaces {}", self.namespaces);
        for (asked, word) in [
            (self.into_cgroup.is_some(), ", into a cgroup"),
            (self.parent, ", as a sibling"),
            (self.files, ", sharing descriptors"),
        ] {
            if asked {
                words.push_str(word);
            }
        }
        if self.raw_flags != 0 {
            words.push_str(&format!(", raw flags {:#x}", self.raw_flags));
        }
        words
    }
}

/// `struct clone_args`, version 2 (Linux 5.7).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// All signals blocked in the calling thread while this lives, also those that glibc keeps for itself.
struct BlockedSignals(Option<u64>);

impl BlockedSignals {
    fn block() -> Self {
        Self(sys::set_signal_mask(!0).ok())
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        if let Some(before) = self.0 {
            // Cannot fail: the same call has just succeeded, and the pointers are as valid as then.
            let _ = sys::set_signal_mask(before);
        }
    }
}

/// Gives the calling process a descriptor table of its own, with copies of those below `end`: what is above is neither
/// copied nor closed, however much it is. For clone children that [share](Clone::files) the table of a program with many
/// descriptors.
///
/// # Errors
/// `ENOMEM`; `ENOSYS` before Linux 5.9; `EINVAL` for a negative number. Man page: close_range(2).
///
/// # Safety
/// The table is shared: in one that is the caller's alone already, whatever is open from `end` on is closed, whoever owns
/// it. And the caller uses no descriptor from `end` on that was opened before.
pub unsafe fn keep_descriptors_below(end: i32) -> Result<(), Errno> {
    // SAFETY: the caller's promise.
    unsafe { sys::unshare_descriptors(end) }
}

/// A process that has just been made.
#[derive(Debug)]
#[must_use = "an unreaped child stays a zombie: `pidfd.reap()`"]
pub struct Born {
    /// Its number in the caller's PID namespace. Good for `/proc` until it is reaped, never for signals.
    pub pid: Pid,
    /// The process itself: signal, wait and reap through it.
    pub pidfd: PidFd,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_the_kernels() {
        assert_eq!(size_of::<CloneArgs>(), size_of::<libc::clone_args>());
        for (ours, kernels) in [
            (CLONE_VM, libc::CLONE_VM),
            (CLONE_FILES, libc::CLONE_FILES),
            (CLONE_PIDFD, libc::CLONE_PIDFD),
            (CLONE_VFORK, libc::CLONE_VFORK),
            (CLONE_PARENT, libc::CLONE_PARENT),
        ] {
            assert_eq!(u64::try_from(kernels).ok(), Some(ours));
        }
        // 64-bit flags, checked by value: their place in <linux/sched.h>.
        assert_eq!((CLONE_CLEAR_SIGHAND, CLONE_INTO_CGROUP), (1 << 32, 2 << 32));
    }

    #[test]
    fn raw_flags_that_share_are_refused() {
        let clone = Clone::new(Namespaces::empty());
        for bit in 0..34 {
            assert_ne!(clone.clone().raw_flags(1 << bit).refused(), 0, "{bit}");
        }
        assert_eq!(clone.raw_flags(1 << 40).refused(), 0);
    }
}
