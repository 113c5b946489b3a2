//! A pipe in between, so that output can be counted: at most so many bytes go through, of both streams together.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, splice};

use crate::child::Watch;
use crate::outcome::End;

/// Most bytes of one splice(2).
const CHUNK: u64 = 1 << 20;

/// A program's output allowance, shared by its streams.
#[derive(Debug)]
pub(crate) struct Allowance {
    max: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    used: u64,
    over: bool,
    /// The program's pipes, our ends.
    streams: Vec<Arc<OwnedFd>>,
}

impl Allowance {
    pub(crate) fn new(max: u64) -> Self {
        Self { max, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether more was written than may be delivered. What still lies in the pipes counts too, so after the program's
    /// end this is final, read or not.
    pub(crate) fn is_over(&self) -> bool {
        let state = self.lock();
        let queued: u64 =
            state.streams.iter().filter_map(|stream| rustix::io::ioctl_fionread(stream.as_fd()).ok()).sum();
        state.over || state.used + queued > self.max
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    Open,
    Closed,
}

/// One stream on its way from the program to its reader.
#[derive(Debug)]
pub(crate) struct Relay {
    from: Arc<OwnedFd>,
    to: OwnedFd,
    allowance: Arc<Allowance>,
    watch: Weak<Watch>,
    /// The reader's pipe is full.
    blocked: bool,
}

impl Relay {
    pub(crate) fn new(from: OwnedFd, to: OwnedFd, allowance: &Arc<Allowance>, watch: &Arc<Watch>) -> Self {
        let from = Arc::new(from);
        allowance.lock().streams.push(Arc::clone(&from));
        Self { from, to, allowance: Arc::clone(allowance), watch: Arc::downgrade(watch), blocked: false }
    }

    /// What to wait for before the next [`advance`](Self::advance).
    pub(crate) fn interest(&self) -> PollFd<'_> {
        if self.blocked {
            PollFd::from_borrowed_fd(self.to.as_fd(), PollFlags::OUT)
        } else {
            PollFd::from_borrowed_fd(self.from.as_fd(), PollFlags::IN)
        }
    }

    /// Moves what can be moved without waiting. Closed means: the program's end is closed, the reader has gone, or the
    /// allowance is used up. The relay is then dropped, so the reader sees the end of the stream.
    pub(crate) fn advance(&mut self) -> Progress {
        loop {
            let mut state = self.allowance.lock();
            let left = self.allowance.max.saturating_sub(state.used).min(CHUNK);
            if left == 0 {
                let (progress, over) = at_the_end(&self.from);
                state.over |= over;
                drop(state);
                self.blocked = false;
                if over {
                    self.end_program();
                }
                return progress;
            }
            let length = usize::try_from(left).unwrap_or(usize::MAX);
            match splice(&*self.from, None, &self.to, None, length, SpliceFlags::NONBLOCK) {
                Ok(0) => return Progress::Closed,
                Ok(moved) => {
                    state.used += moved as u64;
                    self.blocked = false;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    // Empty on one side or full on the other: with something to read, it is the reader's side.
                    self.blocked = rustix::io::ioctl_fionread(&*self.from).is_ok_and(|queued| queued > 0);
                    return Progress::Open;
                }
                Err(_) => return Progress::Closed,
            }
        }
    }

    fn end_program(&self) {
        if let Some(watch) = self.watch.upgrade() {
            watch.end(End::Output);
        }
    }
}

/// The allowance is used up: one more byte is too many, the end of the stream is not.
fn at_the_end(from: &OwnedFd) -> (Progress, bool) {
    let mut fds = [PollFd::from_borrowed_fd(from.as_fd(), PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    if !matches!(poll(&mut fds, Some(&now)), Ok(1)) {
        return (Progress::Open, false);
    }
    let queued = rustix::io::ioctl_fionread(from).unwrap_or(0);
    (Progress::Closed, queued > 0)
}
