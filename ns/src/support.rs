//! Which namespaces this host gives this user, found out by trying: kernel versions, capabilities, sysctls, LSMs and
//! outer seccomp filters all have a say, and only the kernel knows the sum.
//!
//! # Safety
//! The child here follows one pointer, to memory that outlives it.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::fmt;

use crate::child::{exit, unshare};
use crate::error::{Errno, Error};
use crate::flags::{Kind, Namespaces};
use crate::process::Clone;
use crate::stack::Stack;

/// What one kind of namespace needs from this user on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum State {
    /// It can be made as it is.
    Available,
    /// It can be made together with a user namespace, which gives the capability for it.
    WithUser,
    /// It cannot be made, not even with a user namespace; the kernel's answer: `EINVAL` when it is built without,
    /// `EPERM` when forbidden, `ENOSPC` or `EUSERS` at a limit.
    Missing(Errno),
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Available => f.write_str("available"),
            Self::WithUser => f.write_str("available with a user namespace"),
            Self::Missing(errno) => write!(f, "missing: {errno}"),
        }
    }
}

/// The [`State`] of every kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Support([State; Kind::ALL.len()]);

impl Support {
    /// Tries each kind in a child that makes the namespace and ends. The calling program is not touched; takes about a
    /// millisecond, most of it for the network namespace.
    ///
    /// # Errors
    /// [`Error::Syscall`] when no child can be made at all.
    pub fn probe() -> Result<Self, Error> {
        let mut states = [State::Available; Kind::ALL.len()];
        let mut stack = Stack::new(0)?;
        for (state, kind) in states.iter_mut().zip(Kind::ALL) {
            let alone = attempt(&mut stack, &[kind.flag()])?;
            *state = match alone {
                Ok(()) => State::Available,
                // Only the lack of a capability is cured by a user namespace.
                Err(errno) if kind == Kind::User || errno.raw() != libc::EPERM => State::Missing(errno),
                Err(_) => match attempt(&mut stack, &[Namespaces::USER, kind.flag()])? {
                    Ok(()) => State::WithUser,
                    Err(errno) => State::Missing(errno),
                },
            };
        }
        Ok(Self(states))
    }

    /// The state of one kind.
    pub fn of(&self, kind: Kind) -> State {
        Kind::ALL
            .into_iter()
            .zip(self.0)
            .find_map(|(other, state)| (other == kind).then_some(state))
            .unwrap_or(State::Missing(Errno::from_raw(libc::EINVAL)))
    }

    /// Every kind with its state, in the order of [`Kind::ALL`].
    pub fn iter(&self) -> impl Iterator<Item = (Kind, State)> {
        Kind::ALL.into_iter().zip(self.0)
    }
}

struct Attempt<'a> {
    steps: &'a [Namespaces],
    answer: Result<(), Errno>,
}

/// Makes namespaces one after the other in a child. By `unshare`, for a time namespace cannot be cloned on shared
/// memory.
fn attempt(stack: &mut Stack, steps: &[Namespaces]) -> Result<Result<(), Errno>, Error> {
    let mut attempt = Attempt { steps, answer: Err(Errno::from_raw(libc::EIO)) };
    let argument: *mut c_void = (&raw mut attempt).cast();
    // SAFETY: `child` takes an `Attempt`, makes raw system calls only and exits; `attempt` lives until `spawn` returns.
    let born = unsafe { Clone::new(Namespaces::empty()).exit_signal(false).spawn(stack, child, argument) }?;
    born.pidfd.reap()?;
    Ok(attempt.answer)
}

unsafe extern "C" fn child(argument: *mut c_void) -> ! {
    // SAFETY: `attempt` above passes its own, which nobody else uses while the parent sleeps.
    let attempt = unsafe { &mut *argument.cast::<Attempt<'_>>() };
    attempt.answer = attempt.steps.iter().try_for_each(|&step| unshare(step));
    exit(0)
}
