//! How an instance is born: prepare, clone, the child's half, init.
//!
//! The parent prepares every string and descriptor; one vfork-like clone3(2) makes the process in its namespaces; the
//! child runs the sandbox's [`Step`]s and executes init. Nothing is ever forked, so that a program with gigabytes of
//! memory starts a sandbox as fast as a small one.
//!
//! # Safety
//! The child shares our memory and runs while the calling thread sleeps. It touches its [`Birth`] alone and makes system
//! calls; see [`ns::Clone`] for what it must not do.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr;

use ns::{Born, Errno, Namespaces, Stack};
use userns::{IdMap, Setgroups};

use crate::Error;
use crate::low::Numbers;
use crate::step::{Bind, Context, Handed, Step};

/// Enough for the steps, and for the second child of an ordinary user.
const STACK_SIZE: usize = 64 << 10;

thread_local! {
    static STACKS: RefCell<Vec<Stack>> = const { RefCell::new(Vec::new()) };
}

/// A stack of this thread, or a new one.
fn take_stack() -> Result<Stack, Error> {
    match STACKS.with(|stacks| stacks.borrow_mut().pop()) {
        Some(stack) => Ok(stack),
        None => Ok(Stack::new(STACK_SIZE)?),
    }
}

/// Keeps a stack for the next child of this thread.
fn keep_stack(stack: Stack) {
    // While the thread ends its list may be gone: then the stack goes, too.
    let _ = STACKS.try_with(|stacks| stacks.borrow_mut().push(stack));
}

/// Lends a stack of this thread.
fn with_stack<T>(work: impl FnOnce(&mut Stack) -> Result<T, Error>) -> Result<T, Error> {
    let mut stack = take_stack()?;
    let result = work(&mut stack);
    keep_stack(stack);
    result
}

/// What the child works through, and where it says how far it came.
struct Birth<'a> {
    steps: &'a [Step],
    context: Context<'a>,
    /// The descriptor table is the parent's: only a copy of it below this number is to be the child's.
    shared_from: Option<i32>,
    /// The step that is being run; `None` before the first.
    progress: Option<usize>,
    failure: Option<Errno>,
}

impl Birth<'_> {
    /// The error in words, if a step failed.
    fn check(&self, binds: &[Bind]) -> Result<(), Error> {
        let Some(errno) = self.failure else { return Ok(()) };
        let step = self.progress.and_then(|progress| self.steps.get(progress));
        let (words, path) = step.map_or(("take a descriptor table of its own", None), |step| step.describe(binds));
        Err(Error::Setup { step: words.to_owned(), path, error: errno.into() })
    }

    /// The child's half of a start. Returns at the end of a list without an execve, and on failure.
    fn live(&mut self) -> Result<(), Errno> {
        if let Some(end) = self.shared_from {
            // SAFETY: the table is the parent's, who was made to share it, and all that the steps use lies below.
            unsafe { ns::keep_descriptors_below(end) }?;
        }
        rustix::process::umask(rustix::fs::Mode::empty());
        for (index, step) in self.steps.iter().enumerate() {
            self.progress = Some(index);
            step.run(&mut self.context)?;
        }
        Ok(())
    }
}

/// What the child of a start runs.
unsafe extern "C" fn child(argument: *mut c_void) -> ! {
    // SAFETY: the parent passed a `Birth` that outlives us, and sleeps.
    let birth = unsafe { &mut *argument.cast::<Birth<'_>>() };
    match birth.live() {
        Ok(()) => ns::exit(0),
        Err(errno) => {
            birth.failure = Some(errno);
            ns::exit(127)
        }
    }
}

/// A child that makes another one from within a user namespace, for callers that are not root.
struct Between<'a, 'b> {
    user_namespace: BorrowedFd<'a>,
    clone: ns::Clone<'a>,
    stack: &'a mut Stack,
    birth: &'a mut Birth<'b>,
    born: Option<Result<Born, Errno>>,
    failure: Option<Errno>,
}

/// Enters the user namespace and makes the real child there, as a child of our parent.
unsafe extern "C" fn between(argument: *mut c_void) -> ! {
    // SAFETY: as in `child`.
    let this = unsafe { &mut *argument.cast::<Between<'_, '_>>() };
    if let Err(errno) = crate::sys::enter_user_namespace(this.user_namespace) {
        this.failure = Some(errno);
        ns::exit(127);
    }
    let argument = ptr::from_mut(this.birth).cast();
    // SAFETY: `child` keeps to the rules, and the birth outlives it. We hold the caller's descriptor table, so the pidfd
    // is the caller's.
    this.born = Some(unsafe { this.clone.spawn_from_child(this.stack, child, argument) });
    ns::exit(0)
}

/// How the process that becomes init is made.
pub(crate) struct Start<'a> {
    pub(crate) namespaces: Namespaces,
    pub(crate) steps: &'a [Step],
    pub(crate) binds: &'a [Bind],
    pub(crate) context: Context<'a>,
    pub(crate) into_cgroup: Option<BorrowedFd<'a>>,
    /// Enter this user namespace first, so that the others belong to it.
    pub(crate) within: Option<BorrowedFd<'a>>,
    /// Spares the child the descriptors of this process, if nobody else starts at this moment.
    pub(crate) low: Option<&'a Numbers>,
}

/// What preferred steps were refused.
#[derive(Debug, Default)]
pub(crate) struct Refused {
    pub(crate) keyring: Option<Errno>,
    pub(crate) cgroup_namespace: Option<Errno>,
}

/// Makes the process and waits until it has executed init or failed.
pub(crate) fn start(start: Start<'_>) -> Result<(Born, Refused), Error> {
    let mut context = start.context;
    let mut loan = start.low.and_then(Numbers::lend);
    let mut shared_from = None;
    if let Some(loan) = &mut loan {
        let end = loan.end();
        if let Some(lowered) = loan.lower(&context.fds)? {
            context.fds = lowered;
            shared_from = Some(end);
        }
    }
    let mut clone = ns::Clone::new(start.namespaces).files(shared_from.is_some());
    if let Some(cgroup) = start.into_cgroup {
        clone = clone.into_cgroup(cgroup);
    }
    let mut birth = Birth { steps: start.steps, context, shared_from, progress: None, failure: None };
    let born = match start.within {
        None => with_stack(|stack| {
            let argument = ptr::from_mut(&mut birth).cast();
            // SAFETY: `child` keeps to the rules, and the birth lives until it has gone.
            Ok(unsafe { clone.spawn(stack, child, argument) }?)
        })?,
        Some(user_namespace) => start_within(user_namespace, clone, &mut birth)?,
    };
    if let Err(error) = birth.check(start.binds) {
        let _ = born.pidfd.reap();
        return Err(error);
    }
    let refused =
        Refused { keyring: birth.context.refused_keyring, cgroup_namespace: birth.context.refused_cgroup_namespace };
    Ok((born, refused))
}

fn start_within(user_namespace: BorrowedFd<'_>, clone: ns::Clone<'_>, birth: &mut Birth<'_>) -> Result<Born, Error> {
    with_stack(|outer| {
        with_stack(|inner| {
            let clone = clone.parent(true);
            let mut between_data = Between { user_namespace, clone, stack: inner, birth, born: None, failure: None };
            let argument = ptr::from_mut(&mut between_data).cast();
            // SAFETY: `between` keeps to the rules. It shares our descriptor table, and opens nothing in it but the
            // pidfd of the child, which is ours.
            let helper = unsafe {
                ns::Clone::new(Namespaces::empty()).files(true).exit_signal(false).spawn(outer, between, argument)
            }?;
            let _ = helper.pidfd.reap();
            if let Some(errno) = between_data.failure {
                return Err(Error::setup("enter the user namespace", io::Error::from(errno)));
            }
            match between_data.born {
                Some(Ok(born)) => Ok(born),
                Some(Err(errno)) => Err(Error::setup("make a process in the user namespace", io::Error::from(errno))),
                None => Err(Error::Ended { during: "a process was to be made" }),
            }
        })
    })
}

/// A child that only is, until it is killed. Its argument is the address that our process id would have.
unsafe extern "C" fn held(parent: *mut c_void) -> ! {
    // It has our memory and descriptors, so it must not outlive us. The thread that made it waits until it is dead; when
    // that thread died before this call, the parent is another already.
    let tied = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    let ours = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get().unsigned_abs() as usize);
    if tied.is_err() || ours != Some(parent.addr()) {
        ns::exit(127);
    }
    loop {
        rustix::event::pause();
    }
}

/// A user namespace, and the killed child that it was made with.
///
/// The end of that child is not waited for before this is dropped: by then it has long gone, and nobody sleeps for it.
#[derive(Debug)]
pub(crate) struct UserNamespace {
    namespace: OwnedFd,
    holder: Option<Holder>,
}

impl UserNamespace {
    /// Waits for the end of the child, which otherwise is a zombie meanwhile.
    pub(crate) fn settle(&mut self) {
        self.holder = None;
    }

    /// The namespace alone.
    pub(crate) fn into_fd(self) -> OwnedFd {
        self.namespace
    }
}

impl AsFd for UserNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}

/// The child that holds a namespace, on a stack that is nobody else's until it has gone.
#[derive(Debug)]
struct Holder {
    born: Born,
    stack: Option<Stack>,
}

impl Drop for Holder {
    fn drop(&mut self) {
        let pidfd = &self.born.pidfd;
        let gone = pidfd.kill().is_ok() && pidfd.wait(None).is_ok() && pidfd.reap().is_ok();
        match self.stack.take() {
            Some(stack) if gone => keep_stack(stack),
            // It may still stand on it.
            stack => std::mem::forget(stack),
        }
    }
}

/// Makes a user namespace with these maps.
pub(crate) fn user_namespace(uids: &IdMap, gids: &IdMap, setgroups: Setgroups) -> Result<UserNamespace, Error> {
    let mut stack = take_stack()?;
    let us = ptr::without_provenance_mut(std::process::id() as usize);
    // It opens and closes nothing, so it can share our descriptors: to copy ten thousand and close them takes milliseconds.
    let clone = ns::Clone::new(Namespaces::USER).files(true).exit_signal(false);
    // SAFETY: `held` makes system calls only, on a stack that its `Holder` keeps until it has gone.
    let born = unsafe { clone.spawn_held(&mut stack, held, us) }?;
    let holder = Holder { born, stack: Some(stack) };
    let pid = holder.born.pid.get();
    userns::write_maps(pid, uids, gids, setgroups)?;
    let path = format!("/proc/{pid}/ns/user");
    let namespace = File::open(&path).map_err(|error| Error::setup_at("open", path, error))?.into();
    holder.born.pidfd.kill()?;
    Ok(UserNamespace { namespace, holder: Some(holder) })
}

/// A socket with two ends, which keeps the bounds of messages.
pub(crate) fn channel() -> Result<(OwnedFd, OwnedFd), Error> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map_err(|error| Error::setup("make a socket", error))
}

/// Makes the template mount namespace by `steps`, which end by sending it.
pub(crate) fn mount_namespace(steps: &[Step], binds: &[Bind]) -> Result<OwnedFd, Error> {
    let (ours, theirs) = channel()?;
    let context = Context::new(binds, Handed { channel: Some(theirs.as_fd()), ..Handed::default() });
    in_mount_namespace(steps, context, None)?;
    crate::sys::receive_fd(ours.as_fd())
}

/// Runs steps in a child with a mount namespace, with which they go unless something of it is handed over.
pub(crate) fn in_mount_namespace(
    steps: &[Step],
    context: Context<'_>,
    within: Option<BorrowedFd<'_>>,
) -> Result<(), Error> {
    let binds = context.binds;
    let namespaces = Namespaces::MOUNT;
    let (born, _) = start(Start { namespaces, steps, binds, context, into_cgroup: None, within, low: None })?;
    born.pidfd.wait(None)?;
    Ok(born.pidfd.reap().map(drop)?)
}
