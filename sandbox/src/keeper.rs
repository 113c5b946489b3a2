//! What must happen although nobody waits: deadlines, output caps, burials.
//!
//! One thread for each process, made at the first need. It sleeps in poll(2) on all that it looks after.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread::{JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use cgroup::{Cgroup, Meter};
use ns::PidFd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime};
use userns::Lease;

use crate::ahead::Wish;
use crate::child::{Child, Watch};
use crate::image::Image;
use crate::init::Handle;
use crate::outcome::Leftover;
use crate::pool::Bell;
use crate::relay::Relay;
use crate::{Error, relay};

/// The ended are left alone for so long. What takes them down would compete with the next start for the kernel's locks and
/// a CPU; and who starts one after another rings the bell once for all of them. Longer than a tick (CONFIG_HZ from 250), so that
/// the caller need not program the CPU's timer anew.
const REST: Duration = Duration::from_millis(8);
/// They rest on while a pool serves its callers, but no longer than this.
const REST_MAX: Duration = Duration::from_millis(100);
/// How long a burial is retried before it is reported; it goes on after that.
const PATIENCE: Duration = Duration::from_secs(5);
const RETRY_FIRST: Duration = Duration::from_millis(1);
const RETRY_LAST: Duration = Duration::from_secs(1);

/// Who makes supplies for the next starts.
#[derive(Debug)]
pub(crate) enum Refill {
    Pool(Bell),
    Ahead(Wish),
}

/// The burials of one sandbox, for those who wait for the last.
#[derive(Debug, Default)]
pub(crate) struct Burials {
    state: Mutex<BurialState>,
    done: Condvar,
    /// What is to be made again when an instance has gone.
    pub(crate) refill: OnceLock<Refill>,
    /// Somebody waits for the last: no more rest.
    hurry: AtomicBool,
}

#[derive(Debug, Default)]
struct BurialState {
    pending: usize,
    leftovers: Vec<Leftover>,
}

impl Burials {
    fn lock(&self) -> MutexGuard<'_, BurialState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the ended should rest on, and until when, for the sake of those who are being served from the pool.
    fn rests_until(&self) -> Option<Instant> {
        match self.refill.get()? {
            Refill::Pool(bell) => bell.rests_until(self.lock().pending),
            Refill::Ahead(_) => None,
        }
    }

    fn begin(&self) {
        self.lock().pending += 1;
    }

    fn end(&self) {
        let mut state = self.lock();
        state.pending = state.pending.saturating_sub(1);
        drop(state);
        self.done.notify_all();
        if let Some(refill) = self.refill.get() {
            match refill {
                Refill::Pool(bell) => bell.ring(),
                Refill::Ahead(wish) => wish.ask(),
            }
        }
    }

    /// Waits, at most `timeout`, until nothing is left to be buried; what could not be.
    pub(crate) fn wait(&self, timeout: Duration) -> Vec<Leftover> {
        let deadline = Instant::now() + timeout;
        self.hurry.store(true, Ordering::Release);
        let mut state = self.lock();
        if state.pending > 0 {
            look_now();
        }
        while state.pending > 0 {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                let why = format!("still being taken down after {timeout:?}");
                let mut leftovers = state.leftovers.clone();
                leftovers.push(Leftover { what: format!("{} instances", state.pending), why });
                return leftovers;
            };
            state = self.done.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        std::mem::take(&mut state.leftovers)
    }
}

/// What is left of an instance that has ended or is to end.
#[derive(Debug)]
pub(crate) struct Grave {
    pub(crate) init: Arc<PidFd>,
    pub(crate) cgroup: Option<Cgroup>,
    pub(crate) lease: Option<Lease>,
    pub(crate) image: Option<Image>,
    pub(crate) burials: Arc<Burials>,
    /// Descriptors that are closed with it and no earlier: at the end of the socket init would end at once, on the CPU of
    /// the caller, who waits for its outcome.
    pub(crate) _descriptors: (Arc<Handle>, Option<Meter>),
}

/// A grave that is being dug.
#[derive(Debug)]
struct Burial {
    grave: Grave,
    since: Instant,
    next: Instant,
    pause: Duration,
    phase: Phase,
    /// Its image is being unmounted, which writes back all that is in it.
    unmounting: Option<JoinHandle<()>>,
    reported: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Told to end, and not looked at yet.
    Resting,
    /// Looked at, and not dead yet: its pidfd will tell.
    Dying,
    /// Dead and reaped; what is left are its things.
    Dead,
}

impl Burial {
    fn new(grave: Grave) -> Self {
        let now = Instant::now();
        Self {
            grave,
            since: now,
            next: now + REST,
            pause: RETRY_FIRST,
            phase: Phase::Resting,
            unmounting: None,
            reported: false,
        }
    }

    fn is_due(&mut self) -> bool {
        let burials = &self.grave.burials;
        let resting = self.phase == Phase::Resting;
        if resting && burials.hurry.load(Ordering::Acquire) {
            return true;
        }
        if self.next > Instant::now() {
            return false;
        }
        match burials.rests_until().filter(|_| resting && self.since.elapsed() < REST_MAX) {
            Some(until) => {
                self.next = until.min(self.since + REST_MAX);
                false
            }
            None => true,
        }
    }

    /// One attempt; true when nothing is left.
    fn dig(&mut self) -> bool {
        match self.try_dig() {
            Ok(()) => {
                if let Some(lease) = self.grave.lease.take() {
                    if let Err(error) = lease.release() {
                        self.report("an id lease", error.to_string());
                    }
                }
                return true;
            }
            Err(why) if self.since.elapsed() > PATIENCE && !self.reported => {
                self.reported = true;
                let what = if self.grave.cgroup.is_none() && self.unmounting.is_some() {
                    "a disk image"
                } else {
                    "a cgroup or its processes"
                };
                self.report(what, why);
            }
            Err(_) => {}
        }
        self.next = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(RETRY_LAST);
        false
    }

    fn try_dig(&mut self) -> Result<(), String> {
        let init = &self.grave.init;
        if self.phase != Phase::Dead {
            self.phase = Phase::Dying;
            init.kill().map_err(|error| error.to_string())?;
            if !init.is_dead().map_err(|error| error.to_string())? {
                // On cgroup v1 nobody dies frozen. What it cannot be, it need not be thawed from.
                let _ = self.grave.cgroup.as_ref().map(Cgroup::thaw);
                return Err("its processes have been killed and are still there".to_owned());
            }
            init.reap().map_err(|error| error.to_string())?;
            self.phase = Phase::Dead;
            if let Some(image) = self.grave.image.take() {
                // Without a thread it is dropped here.
                let builder = std::thread::Builder::new().name("sandbox-unmount".to_owned());
                self.unmounting = builder.spawn(move || drop(image)).ok();
            }
        }
        if let Some(cgroup) = &self.grave.cgroup {
            cgroup.remove(Duration::ZERO).map_err(|error| error.to_string())?;
            self.grave.cgroup = None;
        }
        if self.unmounting.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return Err("it is still being unmounted".to_owned());
        }
        Ok(())
    }

    fn report(&self, what: &str, why: String) {
        self.grave.burials.lock().leftovers.push(Leftover { what: what.to_owned(), why });
    }
}

/// What the thread looks after.
#[derive(Debug, Default)]
struct Work {
    watched: Vec<Weak<Watch>>,
    burials: Vec<Burial>,
    relays: Vec<Relay>,
    detached: Vec<Child>,
}

#[derive(Debug, Default)]
struct Shared {
    new: Work,
    /// When the thread will look again by itself; `None`: not before it is told.
    wakes_at: Option<Instant>,
    asleep: bool,
    /// It was told to look since it last did.
    again: bool,
}

#[derive(Debug)]
struct Keeper {
    shared: Mutex<Shared>,
    /// A timer: work that can wait is announced without waking the thread before it is due.
    bell: OwnedFd,
    thread: OnceLock<ThreadId>,
    /// A forked copy of this process has no such thread.
    pid: u32,
}

static KEEPER: Mutex<Option<Arc<Keeper>>> = Mutex::new(None);

/// The keeper of this process, made on first use.
fn keeper() -> Result<Arc<Keeper>, Error> {
    let mut slot = KEEPER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(keeper) = slot.as_ref().filter(|keeper| keeper.pid == std::process::id()) {
        return Ok(Arc::clone(keeper));
    }
    let bell = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)
        .map_err(|error| Error::setup("make the keeper's bell", error))?;
    let shared = Mutex::new(Shared::default());
    let keeper = Arc::new(Keeper { shared, bell, thread: OnceLock::new(), pid: std::process::id() });
    let for_thread = Arc::clone(&keeper);
    std::thread::Builder::new()
        .name("sandbox-keeper".to_owned())
        .spawn(move || for_thread.run())
        .map_err(|error| Error::setup("start the keeper thread", error))?;
    *slot = Some(Arc::clone(&keeper));
    Ok(keeper)
}

/// Blocks every signal in the calling thread, one of ours: the host program's handlers run on its own threads, and a
/// relay whose reader has gone gets `EPIPE` without a SIGPIPE that would end the host.
pub(crate) fn keep_signals_out() {
    // Cannot fail: the mask is valid memory.
    let _ = ns::set_signal_mask(!0);
}

/// Makes sure that there is a keeper, so that nothing that ends later can fail for want of one.
pub(crate) fn prepare() -> Result<(), Error> {
    keeper().map(drop)
}

/// Whether the calling thread is the keeper, which must not wait for itself.
pub(crate) fn is_current_thread() -> bool {
    let slot = KEEPER.lock().unwrap_or_else(PoisonError::into_inner);
    slot.as_ref().is_some_and(|keeper| keeper.thread.get() == Some(&std::thread::current().id()))
}

/// Takes care of a deadline even if nobody waits.
pub(crate) fn watch(watch: &Arc<Watch>) -> Result<(), Error> {
    let at = watch.next_check();
    keeper()?.add(at, |work| work.watched.push(Arc::downgrade(watch)));
    Ok(())
}

/// Carries output from a program to its reader.
pub(crate) fn relay(relay: Relay) -> Result<(), Error> {
    keeper()?.add(Some(Instant::now()), |work| work.relays.push(relay));
    Ok(())
}

/// Lets a program live without its handle.
pub(crate) fn adopt(child: Child) -> Result<(), Error> {
    keeper()?.add(Some(Instant::now()), |work| work.detached.push(child));
    Ok(())
}

/// Has the thread look at all that rests.
fn look_now() {
    if let Ok(keeper) = keeper() {
        keeper.add(Some(Instant::now()), |_| {});
    }
}

/// Takes an instance down.
pub(crate) fn bury(grave: Grave) {
    grave.burials.begin();
    let mut burial = Burial::new(grave);
    // The thread was made when the sandbox was built; without one (after a fork of the host) do it here and now.
    match keeper() {
        Ok(keeper) => keeper.add(Some(burial.next), |work| work.burials.push(burial)),
        Err(_) => {
            let mut buried = burial.dig();
            while !buried && !burial.reported {
                let _ = burial.grave.init.wait(Some(burial.pause));
                buried = burial.dig();
            }
            let burials = Arc::clone(&burial.grave.burials);
            drop(burial);
            if buried {
                burials.end();
            }
        }
    }
}

impl Keeper {
    /// Hands work over; rings only if the thread would otherwise look too late.
    fn add(&self, wanted_at: Option<Instant>, add: impl FnOnce(&mut Work)) {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        add(&mut shared.new);
        shared.again = true;
        let Some(wanted) = wanted_at else { return };
        let in_time = shared.wakes_at.is_some_and(|wakes| wakes <= wanted);
        if shared.asleep && !in_time {
            shared.wakes_at = Some(wanted);
            self.ring(wanted);
        }
    }

    fn ring(&self, at: Instant) {
        let now = Timespec { tv_sec: 0, tv_nsec: 1 }; // zero would stop the timer
        let left = Timespec::try_from(at.saturating_duration_since(Instant::now())).unwrap_or(now);
        let it_value = if left == Timespec::default() { now } else { left };
        let value = Itimerspec { it_interval: Timespec::default(), it_value };
        let _ = timerfd_settime(&self.bell, TimerfdTimerFlags::empty(), &value);
    }

    fn run(&self) {
        keep_signals_out();
        let _ = self.thread.set(std::thread::current().id());
        let mut work = Work::default();
        loop {
            work.dig();
            work.relays.retain_mut(|relay| relay.advance() == relay::Progress::Open);
            work.detached.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
            work.watched.retain(|watch| watch.upgrade().is_some_and(|watch| watch.check()));
            let wakes_at = work.next();
            {
                let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
                work.take(std::mem::take(&mut shared.new));
                if std::mem::take(&mut shared.again) {
                    continue;
                }
                shared.wakes_at = wakes_at;
                shared.asleep = true;
            }
            self.sleep(&mut work, wakes_at);
            let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
            shared.asleep = false;
        }
    }

    fn sleep(&self, work: &mut Work, wakes_at: Option<Instant>) {
        let mut fds = vec![PollFd::from_borrowed_fd(self.bell.as_fd(), PollFlags::IN)];
        // The pidfd of a dead one would wake us at once, again and again.
        let dying = work.burials.iter().filter(|burial| burial.phase == Phase::Dying);
        fds.extend(dying.map(|burial| PollFd::from_borrowed_fd(burial.grave.init.as_fd(), PollFlags::IN)));
        fds.extend(work.relays.iter().map(Relay::interest));
        fds.extend(work.detached.iter().map(|child| PollFd::from_borrowed_fd(child.socket(), PollFlags::IN)));
        let timeout = wakes_at.and_then(|at| Timespec::try_from(at.saturating_duration_since(Instant::now())).ok());
        let _ = poll(&mut fds, timeout.as_ref());
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        if ready.first().is_some_and(|rung| *rung) {
            let mut count = [0; 8];
            let _ = rustix::io::read(&self.bell, &mut count);
        }
        let dying = work.burials.iter_mut().filter(|burial| burial.phase == Phase::Dying);
        for (burial, _) in dying.zip(ready.iter().skip(1)).filter(|(_, died)| **died) {
            burial.next = Instant::now();
        }
    }
}

impl Work {
    /// Digs what is due. Whoever waits for a burial hears of it when its descriptors are closed, too.
    fn dig(&mut self) {
        let mut buried = Vec::new();
        self.burials.retain_mut(|burial| {
            let done = burial.is_due() && burial.dig();
            if done {
                buried.push(Arc::clone(&burial.grave.burials));
            }
            !done
        });
        buried.iter().for_each(|burials| burials.end());
    }

    fn next(&self) -> Option<Instant> {
        let burials = self.burials.iter().map(|burial| burial.next);
        let watched = self.watched.iter().filter_map(Weak::upgrade).filter_map(|watch| watch.next_check());
        burials.chain(watched).min()
    }

    /// Takes new work in.
    fn take(&mut self, mut new: Self) {
        self.burials.append(&mut new.burials);
        self.relays.append(&mut new.relays);
        self.detached.append(&mut new.detached);
        self.watched.append(&mut new.watched);
    }
}
