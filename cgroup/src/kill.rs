//! Ending every process of a group, and saying who would not end and where it hangs.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use procfs::process::Process;
use rustix::event::{PollFd, PollFlags};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::deadline::Deadline;
use crate::group::{Cgroup, Part, collect};
use crate::hierarchy::{Controller, Version, group_of};
use crate::{Error, Result};

/// How long to wait for a freeze before signalling: a task in uninterruptible sleep never gets there.
const FREEZE: Duration = Duration::from_millis(100);
/// How long to wait for the dead before looking for newcomers.
const ROUND: Duration = Duration::from_millis(100);
/// How long somebody who has been woken for nothing is given to sleep again.
const MOMENT: Duration = Duration::from_millis(20);

/// What [`Cgroup::kill`] did.
///
/// The state letter of a process does not tell whether `SIGKILL` can end it: `D` is shown both for waits that a fatal
/// signal ends (`TASK_KILLABLE`) and for those that nothing ends. So the kernel is asked by doing: the signal is sent,
/// and who is gone at the deadline was killable.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Killed {
    /// Processes that were seen in the group and have ended. Those that came and went unseen (fork bombs) are not listed.
    pub died: Vec<u32>,
    /// Those of [`died`](Self::died) that were in uninterruptible sleep (`D`) when the signal was sent and ended all the
    /// same: their wait was a killable one. State and location are from before.
    pub killable_wait: Vec<Stuck>,
    /// Processes that are still there: the group cannot be removed yet. Ask again later, or see to what they wait for.
    pub stuck: Vec<Stuck>,
}

impl Killed {
    /// Whether nobody is left.
    #[must_use]
    pub fn all_gone(&self) -> bool {
        self.stuck.is_empty()
    }
}

/// A process in a wait, and what it waits for as far as the kernel tells.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stuck {
    /// The process, as numbered in the caller's pid namespace.
    pub pid: u32,
    /// The kernel's letter for its state, or that of its thread that is worst off: `R` running, `S` sleeping, `D` uninterruptible, `T` stopped, `Z` zombie;
    /// `?` when it could not be read.
    pub state: char,
    /// The kernel function that it waits in, or its system call, where the kernel tells.
    pub location: Option<String>,
    /// Why `SIGKILL` has not ended it.
    pub reason: Reason,
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {} ({}", self.pid, self.state)?;
        if let Some(location) = &self.location {
            write!(f, " in {location}")?;
        }
        write!(f, "): {}", self.reason)
    }
}

/// Why a process is still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// It was in uninterruptible sleep and the signal ended it: see [`Killed::killable_wait`].
    Killable,
    /// It is frozen by a v1 freezer: the signal waits until that is thawed.
    Frozen,
    /// The signal is pending and the process sleeps uninterruptibly: on a device, a frozen file system, a FUSE daemon.
    Uninterruptible,
    /// It is the init of a pid namespace that waits for its last member: look at the others, and at processes that were
    /// entered into the namespace from outside and are not reaped yet.
    NamespaceMembers,
    /// It is dying, and the kernel has not finished with it.
    Exiting,
    /// It belongs to the calling process, which this crate never signals.
    OwnTask,
    /// It has not acted on the signal yet.
    Pending,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Killable => "was in a killable wait",
            Self::Frozen => "frozen by a v1 freezer, dies when thawed",
            Self::Uninterruptible => "in uninterruptible sleep, the kill is pending",
            Self::NamespaceMembers => "init of a pid namespace, waits for its last member",
            Self::Exiting => "is dying",
            Self::OwnTask => "belongs to the calling process",
            Self::Pending => "has not acted on the kill yet",
        })
    }
}

/// A process that was a member *after* its descriptor was opened: the number cannot mean another one.
struct Member {
    pid: u32,
    pidfd: OwnedFd,
}

impl Cgroup {
    /// Kills every process of the group and of the groups below it, and waits until they are gone.
    ///
    /// By `cgroup.kill` where the kernel has it (5.14), else by freezing the group, sending `SIGKILL` through a pidfd to
    /// each member, and thawing. A v1 freezer *of this group* is thawed afterwards, as frozen v1 processes do not die.
    /// Pid numbers are never signalled, and tasks of the calling process never at all. Killing is not sticky: what joins
    /// later lives.
    ///
    /// All are signalled before any is waited for, so a FUSE daemon and its stuck client in one group both end.
    /// With `timeout` zero the signals are sent and the state is reported as it is.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the calling process itself is in the v2 group. That processes are stuck is no error here:
    /// see [`Killed::stuck`]; the call can be repeated.
    pub fn kill(&self, timeout: Duration) -> Result<Killed> {
        let deadline = Deadline::after(timeout);
        if self.is_empty()? {
            return Ok(Killed::default());
        }
        let before = self.members()?;
        let waiting: Vec<Stuck> = before
            .iter()
            .filter(|&&pid| !is_own(pid))
            .filter_map(|&pid| inspect(pid))
            .filter(|one| one.state == 'D')
            .collect();
        self.kill_now()?;
        loop {
            if self.await_end(deadline)? || deadline.is_over() {
                break;
            }
            self.kill_now()?;
        }
        let look = || -> Result<Vec<Stuck>> {
            Ok(self.members()?.into_iter().filter_map(inspect).filter(|one| one.state != 'Z').collect())
        };
        let mut stuck = look()?;
        // Thawing wakes whoever sleeps, even uninterruptibly, for a moment (Linux before 5.14, where kills need it).
        let moment = Deadline::after(if timeout.is_zero() { timeout } else { MOMENT });
        while stuck.iter().any(|one| one.reason == Reason::Pending) && moment.pause() {
            stuck = look()?;
        }
        // Deeper first: an init waits for its members.
        stuck.sort_by_key(|one| (one.reason == Reason::NamespaceMembers, one.pid));
        let gone = |pid: &u32| !stuck.iter().any(|one| one.pid == *pid);
        let died = before.iter().copied().filter(gone).collect();
        let killable_wait = waiting
            .into_iter()
            .filter(|one| gone(&one.pid))
            .map(|one| Stuck { reason: Reason::Killable, ..one })
            .collect();
        Ok(Killed { died, killable_wait, stuck })
    }

    /// Sends the `SIGKILL`s of [`kill`](Self::kill) and does not wait: on v2 since 5.14 one write.
    ///
    /// # Errors
    /// As [`kill`](Self::kill); [`Error::Syscall`] when a member may not be signalled.
    pub fn kill_now(&self) -> Result<()> {
        let mut done = false;
        if let Some(part) = self.v2() {
            self.refuse_own("kill")?;
            match part.dir.write("cgroup.kill", "1") {
                Ok(()) => done = true,
                Err(error) if error.is(Errno::NODEV) => done = true,
                // Before 5.14, or a threaded group: by hand.
                Err(error) if error.is(Errno::NOENT) || error.is(Errno::OPNOTSUPP) => {}
                Err(error) => return Err(error),
            }
        }
        let v1_freezer = self.part(Controller::Freezer).filter(|part| part.version == Version::V1);
        let frozen = if done { None } else { self.freeze_to_kill(v1_freezer)? };
        let mut sent = Ok(());
        for part in self.parts() {
            if part.version == Version::V2 && done {
                continue;
            }
            for member in verified_members(part)? {
                match pidfd_send_signal(&member.pidfd, Signal::KILL) {
                    Ok(()) | Err(Errno::SRCH) => {}
                    Err(error) => sent = Err(Error::syscall("pidfd_send_signal", format!("pid {}", member.pid), error)),
                }
            }
        }
        if let Some((part, was)) = frozen {
            match part.version {
                Version::V2 => part.dir.write("cgroup.freeze", &was)?,
                Version::V1 => {}
            }
        }
        // Also when somebody else froze it: on v1 nobody dies frozen.
        if let Some(part) = v1_freezer {
            match part.dir.write("freezer.state", "THAWED") {
                Err(error) if error.is(Errno::NODEV) || error.is(Errno::NOENT) => {}
                other => other?,
            }
        }
        sent
    }

    /// Stops the group so that nothing can fork away from under the signals. What it was before is returned.
    fn freeze_to_kill<'a>(&'a self, v1: Option<&'a Part>) -> Result<Option<(&'a Part, String)>> {
        let deadline = Deadline::after(FREEZE);
        if let Some(part) = self.v2() {
            let Some(was) = part.dir.read_optional("cgroup.freeze")? else { return Ok(None) };
            let events = part.dir.open_file("cgroup.events", OFlags::RDONLY)?;
            part.dir.write("cgroup.freeze", "1")?;
            self.wait_events(part, &events, "frozen", "1", deadline)?;
            return Ok(Some((part, was.trim().to_owned())));
        }
        let Some(part) = v1 else { return Ok(None) };
        // Our own thread in there would freeze with the rest and never get to thaw it.
        let mut processes = Vec::new();
        collect(&part.dir, "cgroup.procs", &mut processes)?;
        if processes.iter().any(|&pid| is_own(pid)) {
            return Ok(None);
        }
        let was = part.dir.read("freezer.state")?.trim().to_owned();
        part.dir.write("freezer.state", "FROZEN")?;
        while part.dir.read("freezer.state")?.trim() != "FROZEN" && deadline.pause() {}
        Ok(Some((part, was)))
    }

    /// Waits until all is empty, a round at most; `true` when it is.
    fn await_end(&self, deadline: Deadline) -> Result<bool> {
        // Where nothing could be frozen, newcomers are looked for more often than a fork bomb can make use of.
        let freezable = self.v2().is_some() || self.part(Controller::Freezer).is_some();
        let most = if freezable { ROUND } else { ROUND / 20 };
        let round = Deadline::after(deadline.left().unwrap_or(most).min(most));
        if let Some(part) = self.v2() {
            match part.dir.open_file("cgroup.events", OFlags::RDONLY) {
                Ok(events) => {
                    if !self.wait_events(part, &events, "populated", "0", round)? {
                        return Ok(false);
                    }
                }
                Err(error) if error.is(Errno::NOENT) || error.is(Errno::NODEV) => {}
                Err(error) => return Err(error),
            }
        }
        for part in self.parts().iter().filter(|part| part.version == Version::V1) {
            loop {
                let members = verified_members(part)?;
                if members.is_empty() {
                    break;
                }
                let mut fds: Vec<PollFd<'_>> = members.iter().map(|m| PollFd::new(&m.pidfd, PollFlags::IN)).collect();
                round.poll(&mut fds).map_err(|error| Error::syscall("poll", "pidfd", error))?;
                // Dead, but perhaps not off the list yet.
                if !round.pause() {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// The processes in any part of the group.
    fn members(&self) -> Result<Vec<u32>> {
        let mut pids = Vec::new();
        for part in self.parts() {
            collect(&part.dir, "cgroup.procs", &mut pids)?;
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// The error for a group that has not stopped or emptied in time.
    pub(crate) fn left(&self, part: &Part) -> Result<Error> {
        Ok(Error::StillPopulated { path: part.dir.path().to_owned(), stuck: self.leftover_in(part)? })
    }

    pub(crate) fn leftover_in(&self, part: &Part) -> Result<Vec<Stuck>> {
        let mut pids = Vec::new();
        collect(&part.dir, "cgroup.procs", &mut pids)?;
        pids.sort_unstable();
        pids.dedup();
        Ok(pids.into_iter().filter_map(inspect).collect())
    }
}

fn is_own(pid: u32) -> bool {
    pid == std::process::id()
}

/// The members of a part, each by a descriptor, without the calling process.
///
/// A list is read, descriptors opened, and the list read again: who is in both, is the process that the descriptor means.
/// On v1 `cgroup.procs` names the process of every single *thread* in the group, also when its other threads are
/// elsewhere; a thread of ours may be parked there, and is left out.
fn verified_members(part: &Part) -> Result<Vec<Member>> {
    let list = || {
        let mut pids = Vec::new();
        collect(&part.dir, "cgroup.procs", &mut pids)?;
        Ok::<_, Error>(pids)
    };
    let mut members = Vec::new();
    for pid in list()? {
        let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw).filter(|_| !is_own(pid)) else { continue };
        match pidfd_open(number, PidfdFlags::empty()) {
            Ok(pidfd) => members.push(Member { pid, pidfd }),
            // Reaped meanwhile; or its first thread has ended and the number is no process's any more.
            Err(Errno::SRCH | Errno::INVAL | Errno::NOENT) => {}
            Err(error) => return Err(Error::syscall("pidfd_open", format!("pid {pid}"), error)),
        }
    }
    if members.is_empty() {
        return Ok(members);
    }
    let still = list()?;
    members.retain(|member| still.contains(&member.pid));
    Ok(members)
}

/// `PF_EXITING` in the flags of `/proc/PID/stat`.
const EXITING: u32 = 0x4;
const SIGKILL_BIT: u64 = 1 << 8;

/// What the kernel tells about a process; `None` when it is gone. Of several threads the one speaks that sleeps
/// uninterruptibly, else one that lives: the first may be a zombie while others hang.
fn inspect(pid: u32) -> Option<Stuck> {
    let unknown = Stuck { pid, state: '?', location: None, reason: Reason::Pending };
    let process = match i32::try_from(pid).ok().map(Process::new) {
        Some(Ok(process)) => process,
        Some(Err(procfs::ProcError::NotFound(_))) => return None,
        _ => return Some(unknown),
    };
    let leader = match process.stat() {
        Ok(stat) => stat,
        Err(procfs::ProcError::NotFound(_)) => return None,
        Err(_) => return Some(unknown),
    };
    let rank = |state: char| match state {
        'D' => 0,
        'Z' | 'X' => 2,
        _ => 1,
    };
    let mut tid = leader.pid;
    let (mut state, mut flags) = (leader.state, leader.flags);
    if leader.num_threads > 1 || rank(state) == 2 {
        let threads = process.tasks().into_iter().flatten().flatten().filter_map(|task| task.stat().ok());
        if let Some(worst) = threads.min_by_key(|stat| rank(stat.state)).filter(|stat| rank(stat.state) < rank(state)) {
            (tid, state, flags) = (worst.pid, worst.state, worst.flags);
        }
    }
    let thread = PathBuf::from(format!("/proc/{pid}/task/{tid}"));
    let status = std::fs::read_to_string(thread.join("status")).unwrap_or_default();
    let pending = ["SigPnd:", "ShdPnd:"].iter().any(|key| {
        let mask = status.lines().find_map(|line| line.strip_prefix(key));
        mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & SIGKILL_BIT != 0)
    });
    let location = location(&thread);
    let reason = if is_own(pid) {
        Reason::OwnTask
    } else if location.as_deref() == Some("zap_pid_ns_processes") {
        Reason::NamespaceMembers
    } else if is_frozen_v1(pid) {
        Reason::Frozen
    } else if flags & EXITING != 0 {
        Reason::Exiting
    } else if state == 'D' && pending {
        Reason::Uninterruptible
    } else {
        Reason::Pending
    };
    Some(Stuck { pid, state, location, reason })
}

/// The kernel function, from `wchan` or the top of the stack, else the system call.
fn location(thread: &Path) -> Option<String> {
    let read = |file: &str| std::fs::read_to_string(thread.join(file)).ok();
    if let Some(wchan) = read("wchan").filter(|wchan| !wchan.is_empty() && wchan != "0") {
        return Some(wchan);
    }
    // "[<0>] percpu_rwsem_wait+0x10f/0x130"
    let top = read("stack").and_then(|text| {
        let name = text.lines().next()?.split_whitespace().nth(1)?.split('+').next()?;
        Some(name.to_owned())
    });
    top.or_else(|| {
        let text = read("syscall")?;
        let number = text.split_whitespace().next()?;
        number.parse::<u32>().ok().map(|number| format!("system call {number}"))
    })
}

fn is_frozen_v1(pid: u32) -> bool {
    group_of(pid, Controller::Freezer)
        .and_then(|dir| dir.read_optional("freezer.state").ok().flatten())
        .is_some_and(|state| state.trim() != "THAWED")
}
