//! Waiting with an end.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, Timespec, poll};
use rustix::io::Errno;

/// A point in time on the monotonic clock; one too far away to be expressed is never.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline(Option<Instant>);

impl Deadline {
    pub(crate) fn after(timeout: Duration) -> Self {
        Self(Instant::now().checked_add(timeout))
    }

    /// One that has passed.
    pub(crate) fn over() -> Self {
        Self(Some(Instant::now()))
    }

    pub(crate) fn left(self) -> Option<Duration> {
        self.0.map(|at| at.saturating_duration_since(Instant::now()))
    }

    pub(crate) fn is_over(self) -> bool {
        self.left().is_some_and(|left| left.is_zero())
    }

    /// Waits for one of the descriptors; `false` when the deadline came first.
    pub(crate) fn poll(self, fds: &mut [PollFd<'_>]) -> Result<bool, Errno> {
        self.poll_at_most(fds, Duration::MAX)
    }

    pub(crate) fn poll_at_most(self, fds: &mut [PollFd<'_>], most: Duration) -> Result<bool, Errno> {
        loop {
            let wait = self.left().unwrap_or(Duration::MAX).min(most);
            let wait = Timespec::try_from(wait).ok();
            match poll(fds, wait.as_ref()) {
                Ok(0) => return Ok(false),
                Ok(_) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// A moment of rest where the kernel has no event to wait for; `false` when the deadline is over.
    pub(crate) fn pause(self) -> bool {
        if self.is_over() {
            return false;
        }
        let _ = self.poll_at_most(&mut [], Duration::from_micros(200));
        true
    }
}
