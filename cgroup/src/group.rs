//! A group: the same name in several hierarchies, held by directory descriptors.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::deadline::Deadline;
use crate::dir::Dir;
use crate::hierarchy::{Controller, Controllers, Version};
use crate::parent::Parent;
use crate::{Error, Result};

/// A group's directory in one hierarchy.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) version: Version,
    pub(crate) controllers: Controllers,
    pub(crate) dir: Arc<Dir>,
    /// v1: `tasks`, open for writing, for the clone child that writes itself into it.
    tasks: Option<OwnedFd>,
    parent: Option<(Arc<Dir>, String)>,
}

impl Part {
    fn new(version: Version, controllers: Controllers, dir: Dir, parent: Option<(Arc<Dir>, String)>) -> Result<Self> {
        let tasks = match version {
            Version::V1 => Some(dir.open_file("tasks", OFlags::WRONLY)?),
            Version::V2 => None,
        };
        Ok(Self { version, controllers, dir: Arc::new(dir), tasks, parent })
    }

    pub(crate) fn below(v: Version, c: Controllers, dir: Dir, parent: Arc<Dir>, name: &str) -> Result<Self> {
        Self::new(v, c, dir, Some((parent, name.to_owned())))
    }

    /// Opened by path: the parent is known only when the name is.
    pub(crate) fn open(version: Version, controllers: Controllers, dir: Dir) -> Result<Self> {
        let name = dir.path().file_name().and_then(|name| name.to_str()).map(str::to_owned);
        let parent = match (name, dir.above()) {
            (Some(name), Ok(above)) if dir.is_still(&above, &name) => Some((Arc::new(above), name)),
            _ => None,
        };
        // Reading is all that an unprivileged caller may do with most groups: no write descriptor then.
        let tasks = match version {
            Version::V1 => dir.open_file("tasks", OFlags::WRONLY).ok(),
            Version::V2 => None,
        };
        Ok(Self { version, controllers, dir: Arc::new(dir), tasks, parent })
    }

    /// One `rmdir`, if the name still means this directory.
    pub(crate) fn remove_now(&self) -> Result<(), Errno> {
        match &self.parent {
            Some((parent, name)) if self.dir.is_still(parent, name) => parent.remove(name),
            Some(_) => Ok(()),
            None => Err(Errno::PERM),
        }
    }
}

/// A group of processes that are counted, limited, frozen and killed together.
///
/// On v2 it is one directory, on v1 one per controller, on a hybrid machine both: the controllers' directories on v1 and
/// one in the v2 tree for what that can do without controllers. All of them are held by descriptors; paths are for
/// messages only.
///
/// Dropping it closes the descriptors and leaves the group alone: [`remove`](Self::remove) ends it.
#[derive(Debug)]
pub struct Cgroup {
    parts: Vec<Part>,
    /// The device program that this handle has attached to the v2 part.
    device_program: Mutex<Option<OwnedFd>>,
}

impl Cgroup {
    pub(crate) fn from_parts(parts: Vec<Part>) -> Self {
        Self { parts, device_program: Mutex::new(None) }
    }

    pub(crate) fn device_program(&self) -> MutexGuard<'_, Option<OwnedFd>> {
        self.device_program.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The part that holds `controller`.
    pub(crate) fn part(&self, controller: Controller) -> Option<&Part> {
        self.parts.iter().find(|part| part.controllers.contains(controller))
    }

    pub(crate) fn v2(&self) -> Option<&Part> {
        self.parts.iter().find(|part| part.version == Version::V2)
    }

    /// Which version of the interface `controller` has in this group; `None` when the group was made without it.
    #[must_use]
    pub fn version_of(&self, controller: Controller) -> Option<Version> {
        match self.part(controller) {
            Some(part) => Some(part.version),
            None => {
                let core = matches!(controller, Controller::Freezer | Controller::Cpuacct | Controller::Devices);
                (core && self.v2().is_some()).then_some(Version::V2)
            }
        }
    }

    /// The directory of the group in the v2 tree: what `clone3` wants with `CLONE_INTO_CGROUP`. `None` on pure v1.
    ///
    /// It is opened with `O_PATH`. Kernel: 5.7.
    #[must_use]
    pub fn unified(&self) -> Option<BorrowedFd<'_>> {
        self.v2().map(|part| part.dir.as_fd())
    }

    /// `tasks` of each v1 directory of the group, open for writing: a child that was just cloned joins by writing `0` into
    /// each (one plain `write`, no memory, no locks). Empty on pure v2.
    ///
    /// A thread that moves itself alone needs no lock against its siblings, and so does not wait for an RCU grace period as
    /// [`attach`](Self::attach) does: 20 µs instead of 7 to 11 ms after a quiet spell (Linux 5.7; before it waits, too).
    pub fn join_fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.parts.iter().filter_map(|part| part.tasks.as_ref().map(AsFd::as_fd))
    }

    /// The directories, for messages and reports.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.parts.iter().map(|part| part.dir.path())
    }

    /// The directory that stands for the whole group.
    pub(crate) fn path(&self) -> &Path {
        self.parts.first().map_or(Path::new(""), |part| part.dir.path())
    }

    /// Moves a running process, with all its threads, into the group.
    ///
    /// Moving is seldom what you want; children that are *born* in the group are counted from their first byte on.
    /// - Memory that the process was charged for stays charged to the group that it came from: neither usage nor peak of
    ///   this group counts it, and nothing comes back when the process leaves again. (v1 before Linux 6.13 can be told
    ///   otherwise by `memory.move_charge_at_immigrate` of the target, which is 0 unless somebody wrote it.)
    /// - `pids_max` never refuses a move, so `pids_current` may exceed it; only fork and clone *inside* are refused then.
    /// - After a quiet spell the first move on a machine waits for an RCU grace period, 7 to 11 ms.
    ///
    /// # Errors
    /// [`Error::Invalid`] for pid 0; [`Error::File`] for the kernel's refusal, after which the process may be in some of
    /// the v1 hierarchies already; [`Error::Unsupported`] for a realtime process and a v1 group without realtime share.
    pub fn attach(&self, pid: u32) -> Result<()> {
        if pid == 0 || i32::try_from(pid).is_err() {
            return Err(Error::invalid("pid", format!("{pid} is no process id")));
        }
        self.join(&pid.to_string())
    }

    /// Moves the calling process, with all its threads, into the group: for daemons that give themselves a leaf. See
    /// [`attach`](Self::attach) for what a move means.
    ///
    /// # Errors
    /// As [`attach`](Self::attach).
    pub fn attach_self(&self) -> Result<()> {
        self.join("0")
    }

    fn join(&self, pid: &str) -> Result<()> {
        for part in &self.parts {
            part.dir.write("cgroup.procs", pid).map_err(|error| no_realtime_share(part, error))?;
        }
        Ok(())
    }

    /// Makes a group below this one, with those of this group's controllers that are in `controllers`.
    ///
    /// On v2 this group must offer them to its children, and is made to; one with processes in it cannot offer `memory`,
    /// `io` or `hugetlb`.
    ///
    /// # Errors
    /// As [`Parent::create`]; [`Error::File`] with `EBUSY` for a v2 group that holds processes.
    pub fn child(&self, name: &str, controllers: impl Into<Controllers>) -> Result<Self> {
        self.as_parent(controllers)?.create(name)
    }

    /// This group as the place for many new ones: see [`child`](Self::child).
    ///
    /// # Errors
    /// [`Error::File`] when the group cannot offer the controllers.
    pub fn as_parent(&self, controllers: impl Into<Controllers>) -> Result<Parent> {
        Parent::from_group(&self.parts, controllers.into())
    }

    /// The processes of the group and of all groups below it, each once, in no order. It may be old by the time you
    /// read it: never send a signal to these numbers, use [`kill`](Self::kill).
    ///
    /// # Errors
    /// [`Error::File`] when a list cannot be read.
    pub fn pids(&self) -> Result<Vec<u32>> {
        let mut pids = Vec::new();
        if let Some(part) = self.v2().or(self.parts.first()) {
            collect(&part.dir, "cgroup.procs", &mut pids)?;
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Stops every process of the group and of the groups below it, and waits until all have stopped.
    ///
    /// On v2 frozen processes can still be killed; on v1 (`freezer`) a `SIGKILL` stays pending until they are thawed.
    /// A process in uninterruptible sleep is not frozen before it wakes.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the group has neither a v2 part nor the v1 `freezer`; [`Error::StillPopulated`] when
    /// not all had stopped in time: they will when they can, and the group stays told to freeze.
    ///
    /// Kernel: v2 5.2; cgroup-v2.rst, cgroup-v1/freezer-subsystem.rst.
    pub fn freeze(&self, timeout: Duration) -> Result<()> {
        self.refuse_own("freeze")?;
        let deadline = Deadline::after(timeout);
        let part = self.freezer()?;
        match part.version {
            Version::V2 => {
                let events = part.dir.open_file("cgroup.events", OFlags::RDONLY)?;
                part.dir.write("cgroup.freeze", "1")?;
                if !self.wait_events(part, &events, "frozen", "1", deadline)? {
                    return Err(self.left(part)?);
                }
            }
            Version::V1 => {
                let mut pids = Vec::new();
                collect(&part.dir, "cgroup.procs", &mut pids)?;
                if pids.contains(&std::process::id()) {
                    return Err(Error::invalid(
                        "freeze",
                        format!("the calling process is in {}", part.dir.path().display()),
                    ));
                }
                part.dir.write("freezer.state", "FROZEN")?;
                // No event tells; the state is brought up to date by reading it.
                while part.dir.read("freezer.state")?.trim() != "FROZEN" {
                    if !deadline.pause() {
                        return Err(self.left(part)?);
                    }
                }
            }
        }
        Ok(())
    }

    /// Lets the processes of the group run again. Groups below that were frozen on their own stay so.
    ///
    /// # Errors
    /// [`Error::Unsupported`] as [`freeze`](Self::freeze).
    pub fn thaw(&self) -> Result<()> {
        let part = self.freezer()?;
        match part.version {
            Version::V2 => part.dir.write("cgroup.freeze", "0"),
            Version::V1 => part.dir.write("freezer.state", "THAWED"),
        }
    }

    fn freezer(&self) -> Result<&Part> {
        match self.v2() {
            Some(part) if part.dir.has("cgroup.freeze") => Ok(part),
            _ => self
                .part(Controller::Freezer)
                .ok_or_else(|| Error::unsupported("freezing a group", "cgroup v2 (Linux 5.2), or the v1 freezer")),
        }
    }

    /// Waits until a key of `cgroup.events` has a value; `false` when the deadline comes first.
    pub(crate) fn wait_events(
        &self,
        part: &Part,
        fd: &OwnedFd,
        key: &str,
        value: &str,
        until: Deadline,
    ) -> Result<bool> {
        let mut buffer = Vec::new();
        loop {
            match crate::dir::read_whole(fd.as_fd(), &mut buffer) {
                // Somebody removed the group: nothing is in it.
                Err(Errno::NODEV) => return Ok(true),
                Err(error) => return Err(part.dir.error("read", "cgroup.events", error)),
                Ok(()) => {}
            }
            if crate::stat::flat(&buffer).any(|(k, v)| k == key.as_bytes() && v == value.as_bytes()) {
                return Ok(true);
            }
            // The read has taken note of the present state: from here on a change wakes the poll.
            let mut fds = [PollFd::new(fd, PollFlags::PRI)];
            match until.poll(&mut fds) {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(error) => return Err(Error::syscall("poll", "cgroup.events", error)),
            }
        }
    }

    /// Whether no living process is in the group or below it. Zombies do not count.
    ///
    /// # Errors
    /// [`Error::File`] when the kernel's answer cannot be read.
    pub fn is_empty(&self) -> Result<bool> {
        for part in &self.parts {
            if part.version == Version::V2 {
                let text = match part.dir.read("cgroup.events") {
                    Err(error) if error.is(Errno::NODEV) || error.is(Errno::NOENT) => continue,
                    other => other?,
                };
                if crate::stat::flat(text.as_bytes()).any(|(key, value)| key == b"populated" && value == b"1") {
                    return Ok(false);
                }
            } else {
                let mut tasks = Vec::new();
                collect(&part.dir, "tasks", &mut tasks)?;
                if !tasks.is_empty() {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Removes the group and all groups below it, after killing what is in them.
    ///
    /// Waits for the last process by events, not by sleeping. Memory that the group is still charged for (page cache,
    /// files in a tmpfs) does not hold it up. That the group is gone already is success.
    ///
    /// # Errors
    /// [`Error::StillPopulated`] when processes outlive `timeout`: the same call can be made again later. Nothing else is
    /// lost by it.
    pub fn remove(&self, timeout: Duration) -> Result<()> {
        self.remove_parts(timeout)?;
        self.forget_files();
        Ok(())
    }

    fn remove_parts(&self, timeout: Duration) -> Result<()> {
        let deadline = Deadline::after(timeout);
        // A group that was never used, or whose processes have ended, goes at once.
        let busy = self.parts.iter().filter(|part| part.remove_now().is_err()).count();
        if busy == 0 {
            return Ok(());
        }
        self.refuse_own("remove")?;
        let killed = self.kill(timeout)?;
        for part in &self.parts {
            while let Err(error) = remove_tree(part) {
                if !error.is(Errno::BUSY) {
                    return Err(error);
                }
                // The last task has left the lists and not yet the group, or a new one came in: both pass.
                if !deadline.pause() {
                    let stuck = if killed.stuck.is_empty() { self.leftover_in(part)? } else { killed.stuck.clone() };
                    return Err(Error::StillPopulated { path: part.dir.path().to_owned(), stuck });
                }
                self.kill_now()?;
            }
        }
        Ok(())
    }

    /// Whatever the caller does to its own group it does to itself.
    pub(crate) fn refuse_own(&self, what: &'static str) -> Result<()> {
        if self.parts.iter().any(|part| part.parent.is_none()) {
            return Err(Error::invalid(what, format!("{} is the root of its tree", self.path().display())));
        }
        let Some(part) = self.v2() else { return Ok(()) };
        let mut pids = Vec::new();
        collect(&part.dir, "cgroup.procs", &mut pids)?;
        if pids.contains(&std::process::id()) {
            return Err(Error::invalid(what, format!("the calling process is in {}", part.dir.path().display())));
        }
        Ok(())
    }
}

/// The EINVAL of a v1 `cpu` group with realtime group scheduling and no share for it, in words.
fn no_realtime_share(part: &Part, error: Error) -> Error {
    let without = || part.dir.read_optional("cpu.rt_runtime_us").ok().flatten().is_some_and(|text| text.trim() == "0");
    if part.version == Version::V1 && error.is(Errno::INVAL) && without() {
        return Error::unsupported(
            "moving a realtime process into a v1 cpu group",
            "a realtime share: write cpu.rt_runtime_us of the group and its ancestors (raw), or make the process SCHED_OTHER",
        );
    }
    error
}

/// The ids in `file` of a group and of all groups below it.
pub(crate) fn collect(dir: &Dir, file: &str, out: &mut Vec<u32>) -> Result<()> {
    let mut list = |dir: &Dir| {
        match dir.read(file) {
            Ok(text) => out.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()).filter(|&pid| pid != 0)),
            // Removed meanwhile, or threaded: then its domain lists the processes.
            Err(error) if is_gone(&error) || error.is(Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    };
    list(dir)?;
    walk(dir, &mut list)
}

fn is_gone(error: &Error) -> bool {
    error.is(Errno::NODEV) || error.is(Errno::NOENT)
}

/// Visits all groups below one, the upper before the lower; those that vanish meanwhile are passed over.
pub(crate) fn walk(dir: &Dir, visit: &mut dyn FnMut(&Dir) -> Result<()>) -> Result<()> {
    for name in dir.children()? {
        match dir.child(&name) {
            Ok(child) => {
                visit(&child)?;
                walk(&child, visit)?;
            }
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Removes a part and what is below it, deepest first.
fn remove_tree(part: &Part) -> Result<()> {
    fn below(dir: &Dir) -> Result<()> {
        for name in dir.children()? {
            match dir.child(&name) {
                Ok(child) => below(&child)?,
                Err(error) if is_gone(&error) => continue,
                Err(error) => return Err(error),
            }
            dir.remove(&name).map_err(|error| dir.error("rmdir", &name, error))?;
        }
        Ok(())
    }
    match part.remove_now() {
        Err(Errno::BUSY) => {}
        other => return other.map_err(|error| part.dir.error("rmdir", "", error)),
    }
    below(&part.dir)?;
    part.remove_now().map_err(|error| part.dir.error("rmdir", "", error))
}
