//! [`PidFd`], a process that cannot be mistaken for another one, and [`Pid`], its number, which can.

use std::fmt;
use std::fs;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{PidfdFlags, WaitId, WaitIdOptions, WaitIdStatus};

use crate::error::{Errno, Error};
use crate::sys;

/// A handle on one process, whatever becomes of its number. Close-on-exec.
///
/// Its number can be given to another process as soon as it is reaped; this handle then says `ESRCH`. This crate sends
/// signals in no other way. Linux 5.3 (waiting 5.4); man page: pidfd_open(2).
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// Opens the process with this number in the caller's PID namespace.
    ///
    /// Between learning a number and opening it the process may have been replaced, unless it is the caller's own
    /// unreaped child: then check something of it *after* opening. [`Born`](crate::Born) already has its handle.
    ///
    /// # Errors
    /// [`Error::Syscall`]: `ESRCH` when there is none, `EINVAL` when the number is a thread's.
    pub fn open(pid: Pid) -> Result<Self, Error> {
        let raw = i32::try_from(pid.get()).ok().and_then(rustix::process::Pid::from_raw);
        let raw = raw.ok_or_else(|| Error::invalid("pid", format!("{pid} is not a process number")))?;
        rustix::process::pidfd_open(raw, PidfdFlags::empty())
            .map(Self)
            .map_err(|error| Error::call("pidfd_open", pid.to_string(), Errno::of(error)))
    }

    /// The process's number in the PID namespace of the mounted `/proc`; `None` when it has been reaped, or is not
    /// visible there.
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::Parse`] when `/proc/self/fdinfo` cannot be read.
    pub fn pid(&self) -> Result<Option<Pid>, Error> {
        let path = format!("/proc/self/fdinfo/{}", self.0.as_raw_fd());
        let text = fs::read_to_string(&path).map_err(|error| Error::file("read", &path, error))?;
        let parse = |line, found: &str| Error::Parse {
            path: path.clone().into(),
            line,
            expected: "a line `Pid:` with a number",
            found: found.to_owned(),
        };
        let (index, value) = text
            .lines()
            .enumerate()
            .find_map(|(index, line)| Some((index, line.strip_prefix("Pid:")?.trim())))
            .ok_or_else(|| parse(0, text.trim_end()))?;
        let pid: i64 = value.parse().map_err(|_| parse(index + 1, value))?;
        Ok(u32::try_from(pid).ok().and_then(Pid::new)) // −1: reaped; 0: not visible here
    }

    /// Sends signal number `signal`; 0 only checks that it could be sent. A zombie takes signals too.
    ///
    /// # Errors
    /// [`Error::Syscall`]: `ESRCH` when the process has been reaped, `EPERM` when the caller may not, `EINVAL` for no
    /// such signal.
    pub fn send_signal(&self, signal: i32) -> Result<(), Error> {
        sys::pidfd_send_signal(self.as_fd(), signal)
            .map_err(|errno| Error::call("pidfd_send_signal", signal.to_string(), errno))
    }

    /// Kills the process (SIGKILL); one that has ended already is no error.
    ///
    /// The init of a PID namespace takes all its processes along. Does not wait.
    ///
    /// # Errors
    /// [`Error::Syscall`]: `EPERM`.
    pub fn kill(&self) -> Result<(), Error> {
        match self.send_signal(libc::SIGKILL) {
            Err(error) if error.errno() == Some(libc::ESRCH) => Ok(()),
            result => result,
        }
    }

    /// Whether the process has ended (zombie or reaped). Works for processes that are not the caller's children.
    ///
    /// # Errors
    /// [`Error::Syscall`] when `ppoll` fails.
    pub fn is_dead(&self) -> Result<bool, Error> {
        self.wait(Some(Duration::ZERO))
    }

    /// Waits until the process has ended, at most `timeout` (`None`: as long as it takes); says whether it has. Leaves
    /// the exit status for [`reap`](Self::reap).
    ///
    /// # Errors
    /// [`Error::Syscall`] when `ppoll` fails. Interruptions by signals are no error, the wait goes on.
    pub fn wait(&self, timeout: Option<Duration>) -> Result<bool, Error> {
        // A deadline too far away to be represented is none.
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let timespec = left.and_then(|left| Timespec::try_from(left).ok());
            let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
            match rustix::event::poll(&mut fds, timespec.as_ref()) {
                Ok(0) if left.is_some_and(|left| !left.is_zero()) => {} // woke early: look again
                Ok(ready) => return Ok(ready > 0),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(Error::call("ppoll", "(pidfd)", Errno::of(error))),
            }
        }
    }

    /// Waits for the caller's child to end and takes its exit status, so that no zombie stays. Works with any exit
    /// signal.
    ///
    /// `None`: somebody else has taken the status, be it other code of the program by `waitpid(-1)`, or the kernel
    /// because the program ignores SIGCHLD. The process has ended then, too.
    ///
    /// # Errors
    /// [`Error::Syscall`] when `waitid` fails otherwise.
    pub fn reap(&self) -> Result<Option<ExitStatus>, Error> {
        loop {
            match self.waitid(WaitIdOptions::empty()) {
                Ok(Some(status)) => return Ok(Some(status)),
                Ok(None) | Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::CHILD) => {
                    // ECHILD also comes for a living process that is no child of ours: wait for its end all the same.
                    self.wait(None)?;
                    return Ok(None);
                }
                Err(error) => return Err(Error::call("waitid", "P_PIDFD", Errno::of(error))),
            }
        }
    }

    fn waitid(&self, options: WaitIdOptions) -> rustix::io::Result<Option<ExitStatus>> {
        // Also children that send another signal than SIGCHLD, or none.
        const WALL: u32 = 0x4000_0000;
        let all = WaitIdOptions::from_bits_retain(WALL);
        let status = rustix::process::waitid(WaitId::PidFd(self.as_fd()), options | WaitIdOptions::EXITED | all)?;
        Ok(status.as_ref().and_then(exit_status))
    }
}

fn exit_status(status: &WaitIdStatus) -> Option<ExitStatus> {
    let core = if status.dumped() { 0x80 } else { 0 };
    let raw = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => (code & 0xff) << 8,
        (_, Some(signal)) => signal | core,
        _ => return None,
    };
    Some(ExitStatus::from_raw(raw))
}

impl From<OwnedFd> for PidFd {
    /// Takes a descriptor that is known to be a pidfd; with another one the methods fail.
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl From<PidFd> for OwnedFd {
    fn from(pidfd: PidFd) -> Self {
        pidfd.0
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A process number: never 0 or negative, which system calls take for "myself", "my group" and "everybody".
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pid(NonZeroU32);

impl Pid {
    /// `None` for 0 and for what does not fit the kernel's positive `pid_t`.
    pub const fn new(pid: u32) -> Option<Self> {
        match NonZeroU32::new(pid) {
            Some(pid) if pid.get() <= i32::MAX as u32 => Some(Self(pid)),
            _ => None,
        }
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Debug for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pid({})", self.0)
    }
}

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<Pid> for u32 {
    fn from(pid: Pid) -> Self {
        pid.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pid_is_positive() {
        assert_eq!(Pid::new(0), None);
        assert_eq!(Pid::new(1 << 31), None);
        assert_eq!(Pid::new(u32::MAX), None);
        assert_eq!(Pid::new(7).map(Pid::get), Some(7));
    }
}
