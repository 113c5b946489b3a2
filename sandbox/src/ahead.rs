//! The parts of the next start, made while nobody waits for them.
//!
//! Ids, a cgroup with its limits, a socket and a network namespace are the same for every start of a sandbox, so when an
//! instance has been buried, a thread makes one set of them for the next. Each set is used once, or taken down after a quiet
//! time. A start that finds none makes its own, on its way: slower, but the same.

use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::time::{Duration, Instant};

use cgroup::Meter;
use ns::{Kind, Namespace, Namespaces};

use crate::identity::Ids;
use crate::image::Image;
use crate::resources::Group;
use crate::sandbox::Inner;
use crate::{Error, keeper};

/// What nobody has taken for so long is taken down again.
const QUIET: Duration = Duration::from_secs(30);

/// What a start needs besides its process.
#[derive(Debug)]
pub(crate) struct Provisions {
    pub(crate) ids: Ids,
    /// User namespaces for the owners of binds.
    pub(crate) owners: Vec<OwnedFd>,
    pub(crate) group: Option<Group>,
    pub(crate) image: Option<Image>,
    /// The counters' files, if they have been opened already.
    pub(crate) meter: Option<Meter>,
    pub(crate) ours: OwnedFd,
    pub(crate) theirs: OwnedFd,
    /// With its loopback device up. Without one the process is born in a new one.
    pub(crate) network: Option<Namespace>,
}

/// The one set that a sandbox has ready.
#[derive(Debug)]
pub(crate) struct Ahead {
    state: Mutex<State>,
    pid: u32,
}

#[derive(Debug, Default)]
struct State {
    ready: Option<Provisions>,
    /// The sandbox is gone; nothing more is to be made.
    closed: bool,
}

impl Ahead {
    pub(crate) fn new() -> Self {
        Self { state: Mutex::default(), pid: std::process::id() }
    }

    /// The set that is ready. One that is being made is not waited for.
    pub(crate) fn take(&self) -> Option<Provisions> {
        match self.state.try_lock() {
            Ok(mut state) => state.ready.take(),
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner().ready.take(),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Takes down what is ready, and makes nothing more.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.ready = None;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a set, unless there is one.
    fn fill(&self, inner: &Inner, host_network: Option<&Namespace>) {
        let mut state = self.lock();
        if !state.closed && state.ready.is_none() {
            // The next start makes its own and gets the error itself.
            state.ready = inner.provide().ok().map(|provisions| settle(provisions, inner, host_network));
        }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        // In a fork of the host program these are copies; the originals are not its to take down.
        if std::process::id() != self.pid {
            std::mem::forget(self.lock().ready.take());
        }
    }
}

/// What there is time for when nobody waits.
fn settle(mut provisions: Provisions, inner: &Inner, host_network: Option<&Namespace>) -> Provisions {
    provisions.ids.namespace.settle();
    provisions.meter = provisions.group.as_ref().and_then(Group::warm_meter);
    provisions.network = host_network.filter(|_| inner.may_enter_network()).and_then(network);
    provisions
}

/// A new network namespace, made by the calling thread, which returns to its own.
fn network(own: &Namespace) -> Option<Namespace> {
    ns::unshare(Namespaces::NETWORK).ok()?;
    let made = ns::net::loopback_up().ok().and_then(|()| Namespace::current(Kind::Network).ok());
    // Host root may always go back; without that, all that this thread makes later would be in the wrong place.
    own.enter().ok().and(made)
}

/// Tells the thread, which is made at the first need, that a sandbox could do with a set.
#[derive(Debug)]
pub(crate) struct Wish(Weak<Inner>);

struct Maker {
    wishes: Sender<Weak<Inner>>,
    /// A forked copy of this process has no such thread.
    pid: u32,
}

static MAKER: Mutex<Option<Maker>> = Mutex::new(None);

impl Wish {
    pub(crate) const fn new(inner: Weak<Inner>) -> Self {
        Self(inner)
    }

    pub(crate) fn ask(&self) {
        let mut maker = MAKER.lock().unwrap_or_else(PoisonError::into_inner);
        if maker.as_ref().is_none_or(|maker| maker.pid != std::process::id()) {
            *maker = Maker::start().ok();
        }
        if let Some(maker) = &*maker {
            // The thread never ends.
            let _ = maker.wishes.send(Weak::clone(&self.0));
        }
    }
}

impl Maker {
    fn start() -> Result<Self, Error> {
        let (wishes, wished) = channel();
        std::thread::Builder::new()
            .name("sandbox-ahead".to_owned())
            .spawn(move || make(&wished))
            .map_err(|error| Error::setup("start the thread that makes parts ahead", error))?;
        Ok(Self { wishes, pid: std::process::id() })
    }
}

fn make(wished: &Receiver<Weak<Inner>>) {
    keeper::keep_signals_out();
    let host_network = Namespace::current(Kind::Network).ok();
    let mut made: Vec<(Instant, Weak<Inner>)> = Vec::new();
    loop {
        let first = made.iter().map(|(at, _)| *at).min();
        let wish = match first {
            Some(at) => wished.recv_timeout((at + QUIET).saturating_duration_since(Instant::now())),
            None => wished.recv().map_err(RecvTimeoutError::from),
        };
        match wish {
            Ok(wish) => {
                if let Some(inner) = wish.upgrade() {
                    inner.ahead.iter().for_each(|ahead| ahead.fill(&inner, host_network.as_ref()));
                }
                made.retain(|(_, other)| !other.ptr_eq(&wish));
                made.push((Instant::now(), wish));
            }
            Err(RecvTimeoutError::Timeout) => made.retain(|(at, unused)| {
                let keep = at.elapsed() < QUIET;
                if let Some(inner) = unused.upgrade().filter(|_| !keep) {
                    inner.ahead.iter().for_each(|ahead| drop(ahead.take()));
                }
                keep
            }),
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}
