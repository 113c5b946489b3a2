//! What has happened in a group: counters, and waiting for them to move.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, epoll, eventfd};
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::deadline::Deadline;
use crate::dir::{Dir, read_whole};
use crate::group::{Cgroup, walk};
use crate::hierarchy::{Controller, Version};
use crate::{Error, Result, stat};

/// What has happened in a group so far. `None`: this kernel or version does not count it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Events {
    /// Reclaimed from in spite of `memory_low`. v2.
    pub memory_low: Option<u64>,
    /// Slowed down at `memory_high`. v2.
    pub memory_high: Option<u64>,
    /// Reached `memory_max`. On v1 the failed charges, swap included; see
    /// [`Usage::memory_max_events`](crate::Usage::memory_max_events).
    pub memory_max: Option<u64>,
    /// Ran out of memory at the limit of this group or one below: counted where the *limit* is, also when nobody was
    /// killed. Never a count of kills. v2; on v1 only what a [`Watch`] has seen.
    pub oom: Option<u64>,
    /// Processes killed for lack of memory, in this group and below. The kernel counts where the *victim* is.
    pub oom_kill: Option<u64>,
    /// How often the group was killed as a whole. v2, Linux 5.17.
    pub oom_group_kill: Option<u64>,
    /// Refused forks and clones in this group and below.
    ///
    /// Since Linux 6.11 on v2 the kernel counts where the *limit* is. Before, and always on v1, it counts where the
    /// *caller* is, so that refusals by a limit further up are in it as well; the groups below are added up here.
    pub pids_max: Option<u64>,
    /// Whether a living process is in the group or below. v2 part.
    pub populated: Option<bool>,
    /// Whether the group is frozen, by itself or from above. v2 part, or the v1 freezer.
    pub frozen: Option<bool>,
}

impl Events {
    fn memory(&mut self, text: &[u8]) {
        for (key, value) in stat::flat(text) {
            let field = match key {
                b"low" => &mut self.memory_low,
                b"high" => &mut self.memory_high,
                b"max" => &mut self.memory_max,
                b"oom" => &mut self.oom,
                b"oom_kill" => &mut self.oom_kill,
                b"oom_group_kill" => &mut self.oom_group_kill,
                _ => continue,
            };
            *field = stat::number(value);
        }
    }
}

impl Cgroup {
    /// Reads the counters of the group with those of all groups below it.
    ///
    /// # Errors
    /// [`Error::File`] when one that exists cannot be read.
    pub fn events(&self) -> Result<Events> {
        self.read_events(false)
    }

    /// Reads the counters of this group alone. `memory_*` and `oom*` need Linux 5.2 on v2, `pids_max` 6.11; `None` else.
    ///
    /// # Errors
    /// As [`events`](Self::events).
    pub fn events_local(&self) -> Result<Events> {
        self.read_events(true)
    }

    fn read_events(&self, local: bool) -> Result<Events> {
        let mut events = Events::default();
        if let Some(part) = self.part(Controller::Memory) {
            match part.version {
                Version::V2 => {
                    let file = if local { "memory.events.local" } else { "memory.events" };
                    events.memory(part.dir.read_optional(file)?.unwrap_or_default().as_bytes());
                }
                Version::V1 => {
                    events.oom_kill = sum(&part.dir, "memory.oom_control", b"oom_kill", local)?;
                    let hits = |file| {
                        Ok::<_, Error>(part.dir.read_optional(file)?.and_then(|text| stat::number(text.as_bytes())))
                    };
                    let hits =
                        hits("memory.failcnt")?.unwrap_or(0).saturating_add(hits("memory.memsw.failcnt")?.unwrap_or(0));
                    // Recent kernels have the files and no longer count on v1, so 0 says nothing.
                    events.memory_max = Some(hits).filter(|&hits| hits > 0);
                }
            }
        }
        if let Some(part) = self.part(Controller::Pids) {
            let by_limit = part.version == Version::V2 && part.dir.has("pids.events.local");
            events.pids_max = match (by_limit, local) {
                (true, true) => sum(&part.dir, "pids.events.local", b"max", true)?,
                (true, false) => sum(&part.dir, "pids.events", b"max", true)?,
                (false, _) => sum(&part.dir, "pids.events", b"max", local)?,
            };
        }
        if let Some(part) = self.v2() {
            // The root of the tree has none.
            let text = part.dir.read_optional("cgroup.events")?.unwrap_or_default();
            events.populated = stat::value(text.as_bytes(), b"populated").map(|n| n == 1);
            events.frozen = stat::value(text.as_bytes(), b"frozen").map(|n| n == 1);
        }
        if events.frozen.is_none() {
            if let Some(part) = self.part(Controller::Freezer).filter(|part| part.version == Version::V1) {
                events.frozen = part.dir.read_optional("freezer.state")?.map(|state| state.trim() == "FROZEN");
            }
        }
        Ok(events)
    }

    /// Something to wait on until a counter moves: out of memory, a refused fork, the last process gone, frozen.
    ///
    /// The kernel announces all of them, but on v1 two: refused forks since Linux 6.11, and the *kill* that follows when
    /// memory has run out (which is announced, by an eventfd, and counted in [`Events::oom`] from then on). Then
    /// [`Watch::wait`] looks ten times a second; the descriptor alone does not wake for these.
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::Syscall`] when a descriptor cannot be had.
    pub fn watch(&self) -> Result<Watch> {
        let poll =
            epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|error| Error::syscall("epoll_create1", "", error))?;
        let pids_v1 = self.part(Controller::Pids).is_some_and(|part| part.version == Version::V1);
        let mut watch = Watch {
            poll,
            files: Vec::new(),
            seen: Events::default(),
            pids_v1,
            oom_v1: 0,
            look_until: Deadline::over(),
        };
        if let Some(part) = self.part(Controller::Memory) {
            match part.version {
                Version::V2 => watch.add(&part.dir, Kind::Memory)?,
                Version::V1 => watch.add_oom_v1(&part.dir)?,
            }
        }
        if let Some(part) = self.part(Controller::Pids) {
            watch.add(&part.dir, Kind::Pids)?;
        }
        if let Some(part) = self.v2() {
            watch.add(&part.dir, Kind::Core)?;
        }
        watch.seen = watch.read()?;
        Ok(watch)
    }
}

/// A key's number in a group's file, with those of the groups below added unless only this one is meant.
fn sum(dir: &Arc<Dir>, file: &str, key: &[u8], local: bool) -> Result<Option<u64>> {
    let of = |dir: &Dir| Ok::<_, Error>(dir.read_optional(file)?.and_then(|text| stat::value(text.as_bytes(), key)));
    let mut total = of(dir)?;
    if !local {
        walk(dir, &mut |below| {
            if let (Some(total), Some(more)) = (&mut total, of(below)?) {
                *total = total.saturating_add(more);
            }
            Ok(())
        })?;
    }
    Ok(total)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Memory,
    OomV1,
    Pids,
    Core,
}

impl Kind {
    const fn file(self) -> &'static str {
        match self {
            Self::Memory => "memory.events",
            Self::OomV1 => "memory.oom_control",
            Self::Pids => "pids.events",
            Self::Core => "cgroup.events",
        }
    }
}

#[derive(Debug)]
struct Watched {
    kind: Kind,
    fd: OwnedFd,
    /// v1: what the kernel signals instead of the file itself.
    signal: Option<OwnedFd>,
    dir: Arc<Dir>,
}

/// Waits for the events of one group; see [`Cgroup::watch`].
///
/// It is itself a pollable descriptor ([`AsFd`]), readable when something has happened: hand it to your own event loop and
/// call [`read`](Self::read) when it wakes. Events that come in between are never lost, several may come as one.
#[derive(Debug)]
pub struct Watch {
    poll: OwnedFd,
    files: Vec<Watched>,
    seen: Events,
    /// Refused forks may go unannounced.
    pids_v1: bool,
    /// v1: how often memory ran out, as the eventfd has told.
    oom_v1: u64,
    /// Something more is to be expected that nothing announces.
    look_until: Deadline,
}

/// How often to look where the kernel does not tell.
const LOOK: Duration = Duration::from_millis(100);
/// How long after running out of memory a victim may be counted.
const VICTIM: Duration = Duration::from_secs(5);

impl Watch {
    fn add(&mut self, dir: &Arc<Dir>, kind: Kind) -> Result<()> {
        let fd = match dir.open_file(kind.file(), OFlags::RDONLY) {
            Err(error) if error.is(Errno::NOENT) => return Ok(()),
            other => other?,
        };
        self.register(&fd, epoll::EventFlags::PRI)?;
        self.files.push(Watched { kind, fd, signal: None, dir: Arc::clone(dir) });
        Ok(())
    }

    /// cgroup-v1/memory.rst: the numbers of an eventfd and of the file, written to `cgroup.event_control`.
    fn add_oom_v1(&mut self, dir: &Arc<Dir>) -> Result<()> {
        use std::os::fd::AsRawFd as _;
        let kind = Kind::OomV1;
        let fd = dir.open_file(kind.file(), OFlags::RDONLY)?;
        let signal = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| Error::syscall("eventfd", "", error))?;
        dir.write("cgroup.event_control", &format!("{} {}", signal.as_raw_fd(), fd.as_raw_fd()))?;
        self.register(&signal, epoll::EventFlags::IN)?;
        self.files.push(Watched { kind, fd, signal: Some(signal), dir: Arc::clone(dir) });
        Ok(())
    }

    fn register(&self, fd: &OwnedFd, flags: epoll::EventFlags) -> Result<()> {
        epoll::add(&self.poll, fd, epoll::EventData::new_u64(0), flags)
            .map_err(|error| Error::syscall("epoll_ctl", "", error))
    }

    /// The counters now, without waiting. What has happened up to here does not wake the descriptor again.
    ///
    /// Here the counters are those that the kernel announces: on v1, and for `pids_max` before Linux 6.11, of this group
    /// without those below it.
    ///
    /// # Errors
    /// [`Error::File`] with `ENODEV` when the group has been removed.
    pub fn read(&mut self) -> Result<Events> {
        let mut events = Events::default();
        let mut buffer = Vec::with_capacity(256);
        for watched in &self.files {
            if let Some(signal) = &watched.signal {
                let mut count = [0; 8];
                if rustix::io::read(signal, &mut count) == Ok(8) {
                    self.oom_v1 = self.oom_v1.saturating_add(u64::from_ne_bytes(count));
                    // The kernel tells of the shortage first, then looks for a victim, and then counts it.
                    self.look_until = Deadline::after(VICTIM);
                }
                events.oom = Some(self.oom_v1);
            }
            read_whole(watched.fd.as_fd(), &mut buffer)
                .map_err(|error| watched.dir.error("read", watched.kind.file(), error))?;
            match watched.kind {
                Kind::Memory => events.memory(&buffer),
                Kind::OomV1 => events.oom_kill = stat::value(&buffer, b"oom_kill"),
                Kind::Pids => events.pids_max = stat::value(&buffer, b"max"),
                Kind::Core => {
                    events.populated = stat::value(&buffer, b"populated").map(|n| n == 1);
                    events.frozen = stat::value(&buffer, b"frozen").map(|n| n == 1);
                }
            }
        }
        Ok(events)
    }

    /// Waits until a counter differs from what this watch has returned before, or was when it was made; `None` when
    /// `timeout` is over first.
    ///
    /// # Errors
    /// [`Error::File`] with `ENODEV` when the group has been removed.
    pub fn wait(&mut self, timeout: Duration) -> Result<Option<Events>> {
        let deadline = Deadline::after(timeout);
        loop {
            let now = self.read()?;
            if now != self.seen {
                self.seen = now;
                return Ok(Some(now));
            }
            let most = if self.pids_v1 || !self.look_until.is_over() { LOOK } else { Duration::MAX };
            let mut fds = [PollFd::new(&self.poll, PollFlags::IN)];
            match deadline.poll_at_most(&mut fds, most) {
                Ok(false) if deadline.is_over() => return Ok(None),
                Ok(_) => {}
                Err(error) => return Err(Error::syscall("poll", "events of a cgroup", error)),
            }
        }
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.poll.as_fd()
    }
}
