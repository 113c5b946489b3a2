//! Instances started ahead, each used once.
//!
//! A start costs hundreds of microseconds; a program in an instance that waits costs little more than posix_spawn(3).
//! Threads of the pool start instances in the background; a taker gets one that nobody used, or, when there is none, starts
//! its own: slower, but the same.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use crate::instance::Parts;
use crate::sandbox::Inner;
use crate::{Error, keeper};

/// After so long without a taker the pool shrinks to its low water mark.
const QUIET: Duration = Duration::from_secs(30);
/// Nobody comes for so long: time to make and to bury instances.
const PAUSE: Duration = Duration::from_millis(20);
/// A start that fails is tried again after this, twice as late each time.
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_LAST: Duration = Duration::from_secs(10);
/// Threads that start instances: more only wait for each other in the kernel.
const THREADS_MAX: usize = 4;

/// Clocks that drift apart by less than this are no sleep of the machine.
const SLEEP_MIN: Duration = Duration::from_secs(1);

/// How a pool has served so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolStats {
    /// Instances that wait at this moment.
    pub ready: usize,
    /// How many the pool is filling up to.
    pub target: usize,
    /// Takers that got an instance at once.
    pub hits: u64,
    /// Takers that had to start their own.
    pub misses: u64,
    /// Instances that were found dead when they were to be taken, or had been started before the machine slept.
    pub stale: u64,
}

/// Asks a pool to fill itself up.
#[derive(Debug)]
pub(crate) struct Bell {
    shared: Weak<Shared>,
    /// The ended may keep what they have for a while.
    patient: bool,
}

impl Bell {
    pub(crate) fn ring(&self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.changed.notify_all();
        }
    }

    /// Until when so many that have ended should wait, for the sake of those who take; `None` when they should not. No more
    /// do than the pool is to hold, as each has ids, descriptors and a cgroup.
    pub(crate) fn rests_until(&self, ended: usize) -> Option<Instant> {
        let shared = self.shared.upgrade().filter(|_| self.patient)?;
        let state = shared.lock();
        state.busy_until().filter(|_| ended <= state.target)
    }
}

/// The instances of one sandbox that wait for a program.
#[derive(Debug)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// High water mark: what the caller asked for.
    size: usize,
    hits: AtomicU64,
    misses: AtomicU64,
    stale: AtomicU64,
}

/// An instance that waits.
#[derive(Debug)]
struct Waiting {
    parts: Parts,
    since: (Instant, SystemTime),
}

impl Waiting {
    fn new(parts: Parts) -> Self {
        Self { parts, since: (Instant::now(), SystemTime::now()) }
    }

    /// Whether it is as good as a new one. What was started before the machine slept is not: nobody watched it meanwhile.
    fn is_fresh(&self) -> bool {
        was_awake(self.since.0.elapsed(), self.since.1.elapsed().ok()) && self.parts.is_alive()
    }
}

/// By the two clocks' answers to how long ago something was. The first stands still while the machine sleeps; the second
/// may also have been set, which makes no difference here.
fn was_awake(awake: Duration, wall: Option<Duration>) -> bool {
    wall.is_some_and(|wall| wall.abs_diff(awake) < SLEEP_MIN)
}

#[derive(Debug)]
struct State {
    ready: VecDeque<Waiting>,
    /// Being started.
    coming: usize,
    target: usize,
    last_taken: Instant,
    /// The sandbox is gone; nothing more is to be started.
    closed: bool,
}

impl State {
    /// A quarter is left for those who come while more are being started.
    fn is_low(&self) -> bool {
        self.ready.len() <= (self.target / 4).max(1)
    }

    /// Making and burying instances takes the CPUs and the kernel's locks that a run needs. So while somebody takes one
    /// after another, and enough are left, both wait for a pause.
    fn busy_until(&self) -> Option<Instant> {
        let until = self.last_taken + PAUSE;
        (!self.is_low() && !self.closed && until > Instant::now()).then_some(until)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    pub(crate) fn new(size: usize) -> Self {
        let state =
            State { ready: VecDeque::new(), coming: 0, target: size, last_taken: Instant::now(), closed: false };
        let shared = Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
            size,
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            stale: AtomicU64::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Starts the threads that fill it. They hold the sandbox only while they start an instance.
    pub(crate) fn fill(&self, sandbox: &Arc<Inner>) -> Result<(), Error> {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        // One CPU is left to those who take: a run wakes several threads one after another, and each would wait for a refill.
        for _ in 0..cpus.saturating_sub(1).clamp(1, THREADS_MAX).min(self.shared.size) {
            let (shared, sandbox) = (Arc::clone(&self.shared), Arc::downgrade(sandbox));
            std::thread::Builder::new()
                .name("sandbox-pool".to_owned())
                .spawn(move || refill(&shared, &sandbox))
                .map_err(|error| Error::setup("start a thread of the pool", error))?;
        }
        Ok(())
    }

    /// What asks it to fill itself up. `patient`: what has ended may rest while the pool is busy.
    pub(crate) fn bell(&self, patient: bool) -> Bell {
        Bell { shared: Arc::downgrade(&self.shared), patient }
    }

    /// An instance that nobody used, if one is ready.
    pub(crate) fn take(&self) -> Option<Parts> {
        let shared = &self.shared;
        let mut state = shared.lock();
        state.last_taken = Instant::now();
        let grown = state.target < shared.size;
        state.target = shared.size;
        loop {
            let Some(waiting) = state.ready.pop_front() else {
                drop(state);
                shared.misses.fetch_add(1, Ordering::Relaxed);
                shared.changed.notify_all();
                return None;
            };
            if waiting.is_fresh() {
                // A refill at this moment would compete with the program that is about to start. The end of an instance
                // asks for one, too, so only many at once, or programs that stay, take the pool down to so few.
                let few = state.ready.len() <= state.target / 8;
                drop(state);
                shared.hits.fetch_add(1, Ordering::Relaxed);
                if grown || few {
                    shared.changed.notify_all()
                }
                return Some(waiting.parts);
            }
            shared.stale.fetch_add(1, Ordering::Relaxed);
            keeper::bury(waiting.parts.into_grave());
        }
    }

    pub(crate) fn stats(&self) -> PoolStats {
        let state = self.shared.lock();
        PoolStats {
            ready: state.ready.len(),
            target: state.target,
            hits: self.shared.hits.load(Ordering::Relaxed),
            misses: self.shared.misses.load(Ordering::Relaxed),
            stale: self.shared.stale.load(Ordering::Relaxed),
        }
    }

    /// Starts nothing more, takes down what waits, and waits itself, at most `timeout`, for what is being started.
    pub(crate) fn close(&self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        let mut state = self.shared.lock();
        state.closed = true;
        let waiting = std::mem::take(&mut state.ready);
        drop(state);
        self.shared.changed.notify_all();
        waiting.into_iter().for_each(|waiting| keeper::bury(waiting.parts.into_grave()));
        let mut state = self.shared.lock();
        while state.coming > 0 {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return };
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// One thread of a pool, until the sandbox is gone.
fn refill(shared: &Shared, sandbox: &Weak<Inner>) {
    keeper::keep_signals_out();
    let mut backoff = BACKOFF_FIRST;
    while wait_for_demand(shared) {
        let made = match sandbox.upgrade() {
            Some(inner) => inner.make(true).and_then(|parts| parts.wait_ready(&inner.plan)),
            None => Err(Error::Ended { during: "an instance was being prepared" }),
        };
        let mut state = shared.lock();
        match made {
            Ok(parts) if state.closed => {
                keeper::bury(parts.into_grave());
                state.coming -= 1;
                shared.changed.notify_all();
            }
            Ok(parts) => {
                backoff = BACKOFF_FIRST;
                state.coming -= 1;
                state.ready.push_back(Waiting::new(parts));
            }
            Err(_) => {
                // A taker starts its own meanwhile and gets the error itself.
                state.coming -= 1;
                shared.changed.notify_all();
                let pause = backoff;
                backoff = (backoff * 2).min(BACKOFF_LAST);
                let until = Instant::now() + pause;
                while !state.closed && Instant::now() < until {
                    let left = until.saturating_duration_since(Instant::now());
                    state = shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }
}

/// Waits until one more instance is wanted; false when the sandbox is gone. Shrinks the pool after a quiet time.
fn wait_for_demand(shared: &Shared) -> bool {
    let mut state = shared.lock();
    loop {
        if state.closed {
            return false;
        }
        let quiet_for = state.last_taken.elapsed();
        let low = (shared.size / 4).max(1);
        if quiet_for >= QUIET && state.target > low {
            state.target = low;
            let surplus = state.ready.len().saturating_sub(low);
            let ended: Vec<Waiting> = state.ready.drain(..surplus).collect();
            drop(state);
            ended.into_iter().for_each(|waiting| keeper::bury(waiting.parts.into_grave()));
            state = shared.lock();
            continue;
        }
        if state.ready.len() + state.coming < state.target {
            let Some(until) = state.busy_until() else {
                state.coming += 1;
                return true;
            };
            let left = until.saturating_duration_since(Instant::now());
            state = shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            continue;
        }
        state = if state.target > low {
            let left = QUIET.saturating_sub(quiet_for);
            shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
        } else {
            shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_that_disagree_have_seen_the_machine_asleep() {
        let [hour, night] = [3600, 8 * 3600].map(Duration::from_secs);
        assert!(was_awake(hour, Some(hour + Duration::from_millis(20))));
        assert!(was_awake(hour, Some(hour - Duration::from_millis(20))));
        assert!(!was_awake(hour, Some(hour + night)));
        assert!(!was_awake(hour, None), "before it was started");
    }
}
