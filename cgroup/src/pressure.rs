//! Pressure stall information: how long the tasks of a group waited for a resource that they could not have.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::deadline::Deadline;
use crate::group::{Cgroup, Part};
use crate::{Error, Result, stat};

/// What tasks wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Resource {
    /// A CPU to run on.
    Cpu,
    /// Memory: reclaim, swapping in, refaults.
    Memory,
    /// Block devices.
    Io,
    /// CPU time taken by interrupts. Linux 6.1, where the kernel accounts them.
    Irq,
}

impl Resource {
    const fn file(self) -> &'static str {
        match self {
            Self::Cpu => "cpu.pressure",
            Self::Memory => "memory.pressure",
            Self::Io => "io.pressure",
            Self::Irq => "irq.pressure",
        }
    }
}

/// Who waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Share {
    /// At least one task.
    Some,
    /// All tasks that had something to do.
    Full,
}

/// How much of the time was lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stall {
    /// Over the last 10 seconds, in hundredths of a percent: 10000 is all of the time.
    pub last_10s: u32,
    /// Over the last minute, likewise.
    pub last_60s: u32,
    /// Over the last 5 minutes, likewise.
    pub last_300s: u32,
    /// Since the group was made.
    pub total: Duration,
}

/// The pressure on one resource.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pressure {
    /// Time in which some task waited. `None` for [`Resource::Irq`].
    pub some: Option<Stall>,
    /// Time in which nobody got on. `None` for [`Resource::Cpu`] before Linux 5.13.
    pub full: Option<Stall>,
}

impl Cgroup {
    /// How long the group's tasks have waited for a resource; `None` where the kernel does not measure it: a group
    /// without a v2 part, `psi=0`, or `cgroup.pressure` switched off. No controller is needed.
    ///
    /// # Errors
    /// [`Error::File`] when the file is there and cannot be read, [`Error::Parse`] when it holds something else.
    ///
    /// Kernel: 4.20; accounting/psi.rst.
    pub fn pressure(&self, resource: Resource) -> Result<Option<Pressure>> {
        let Some(part) = self.v2() else { return Ok(None) };
        let Some(text) = part.dir.read_optional(resource.file())? else { return Ok(None) };
        match parse(text.as_bytes()) {
            Some(pressure) => Ok(Some(pressure)),
            None => Err(Error::Parse {
                path: part.dir.path().join(resource.file()),
                line: 1,
                expected: "some avg10= avg60= avg300= total=",
                found: text,
            }),
        }
    }

    /// Asks the kernel to say when tasks have lost `stall` within any `window`.
    ///
    /// `window` is 500 ms to 10 s. Without `CAP_SYS_RESOURCE` it must be a multiple of 2 s (Linux 6.5; before that the
    /// capability is needed). The trigger lives as long as what is returned.
    ///
    /// # Errors
    /// [`Error::Invalid`] for impossible times; [`Error::Unsupported`] where there is no pressure information;
    /// [`Error::File`] when the kernel refuses (`EPERM`, `EINVAL`).
    ///
    /// Kernel: 5.2; accounting/psi.rst.
    pub fn pressure_trigger(
        &self,
        resource: Resource,
        share: Share,
        stall: Duration,
        window: Duration,
    ) -> Result<PressureTrigger> {
        let whole = |time: Duration| time.subsec_nanos() % 1_000 == 0;
        if !(Duration::from_millis(500)..=Duration::from_secs(10)).contains(&window) || !whole(window) {
            return Err(Error::invalid("window", format!("{window:?} is not 500 ms to 10 s in whole µs")));
        }
        if stall.is_zero() || stall > window || !whole(stall) {
            return Err(Error::invalid("stall", format!("{stall:?} is not a part of {window:?} in whole µs")));
        }
        let lacking = || {
            Error::unsupported("pressure of a group", "cgroup v2 (Linux 5.2) with pressure stall information (psi=1)")
        };
        let part = self.v2().ok_or_else(lacking)?;
        let file = resource.file();
        let fd = match part.dir.open_file(file, OFlags::RDWR | OFlags::NONBLOCK) {
            Err(error) if error.is(Errno::NOENT) || error.is(Errno::OPNOTSUPP) => return Err(lacking()),
            other => other?,
        };
        let share = match share {
            Share::Some => "some",
            Share::Full => "full",
        };
        match part.dir.write_to(fd.as_fd(), file, &format!("{share} {} {}\0", stall.as_micros(), window.as_micros())) {
            Err(error) if error.is(Errno::OPNOTSUPP) => return Err(lacking()),
            other => other?,
        }
        Ok(PressureTrigger { fd })
    }

    /// Whether the kernel measures the pressure on this group; switching it off saves a little for groups that nobody
    /// looks at. The groups below are not touched.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where it cannot be switched.
    ///
    /// Kernel: 6.1.
    pub fn set_pressure_accounting(&self, on: bool) -> Result<()> {
        let part: Option<&Part> = self.v2().filter(|part| part.dir.has("cgroup.pressure"));
        match part {
            Some(part) => part.dir.write("cgroup.pressure", if on { "1" } else { "0" }),
            None => Err(Error::unsupported("switching pressure accounting", "cgroup v2 of Linux 6.1 with psi=1")),
        }
    }
}

/// A request to be told about pressure; see [`Cgroup::pressure_trigger`]. Pollable: `POLLPRI` when it fires.
#[derive(Debug)]
pub struct PressureTrigger {
    fd: OwnedFd,
}

impl PressureTrigger {
    /// Waits until the trigger fires, which it does once per window at most; `false` when `timeout` is over first.
    ///
    /// # Errors
    /// [`Error::Syscall`] with `ENODEV` when the group has been removed.
    pub fn wait(&self, timeout: Duration) -> Result<bool> {
        let mut fds = [PollFd::new(&self.fd, PollFlags::PRI)];
        let fired =
            Deadline::after(timeout).poll(&mut fds).map_err(|error| Error::syscall("poll", "pressure", error))?;
        if fired && fds.iter().any(|fd| fd.revents().contains(PollFlags::ERR)) {
            return Err(Error::syscall("poll", "pressure: the cgroup has been removed", Errno::NODEV));
        }
        Ok(fired)
    }
}

impl AsFd for PressureTrigger {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn parse(text: &[u8]) -> Option<Pressure> {
    let mut pressure = Pressure::default();
    for line in stat::lines(text) {
        let (name, pairs) = stat::nested(line)?;
        let mut stall = Stall::default();
        for (key, value) in pairs {
            match key {
                b"avg10" => stall.last_10s = hundredths(value)?,
                b"avg60" => stall.last_60s = hundredths(value)?,
                b"avg300" => stall.last_300s = hundredths(value)?,
                b"total" => stall.total = Duration::from_micros(stat::number(value)?),
                _ => {}
            }
        }
        match name {
            b"some" => pressure.some = Some(stall),
            b"full" => pressure.full = Some(stall),
            _ => {}
        }
    }
    (pressure != Pressure::default()).then_some(pressure)
}

/// `12.34` as 1234.
fn hundredths(text: &[u8]) -> Option<u32> {
    let at = text.iter().position(|&b| b == b'.')?;
    let (whole, part) = (text.get(..at)?, text.get(at + 1..)?);
    let part = stat::number(part).filter(|_| part.len() == 2)?;
    u32::try_from(stat::number(whole)?.checked_mul(100)?.checked_add(part)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pressure_file() {
        let text =
            b"some avg10=1.50 avg60=0.00 avg300=100.00 total=77\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5\n";
        let pressure = parse(text).unwrap();
        let some = pressure.some.unwrap();
        assert_eq!((some.last_10s, some.last_300s, some.total), (150, 10_000, Duration::from_micros(77)));
        assert_eq!(pressure.full.unwrap().total, Duration::from_micros(5));
        for bad in [&b""[..], b"some avg10=x", b"some avg10=1.5", b"rubbish\n"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes(text: Vec<u8>) {
            let _ = parse(&text);
        }
    }
}
