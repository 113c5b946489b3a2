//! Limits of the calling process and of others.

use std::fs;
use std::io;
use std::path::Path;

use rustix::io::Errno;
use rustix::process::{Pid, getrlimit, prlimit, setrlimit};
use rustix::thread::CapabilitySet;

use crate::error::Rule;
use crate::{Error, Limit, Limits, Resource, Table, Usage};

/// The limits of one resource for the calling process.
///
/// `getrlimit(2)`; cannot fail, all resources exist since Linux 2.6.25.
pub fn get(resource: Resource) -> Limits {
    Limits::from_rustix(getrlimit(resource.to_rustix()))
}

/// Sets both limits of one resource for the calling process: for all its threads, and for children born after.
///
/// # Errors
/// [`Error::Invalid`] when soft is above hard (nothing is changed). [`Error::Syscall`] with EPERM when hard would be
/// raised without CAP_SYS_RESOURCE in the initial user namespace, or `nofile` put above `fs.nr_open`; see [`Rule`].
///
/// `setrlimit(2)`.
pub fn set(resource: Resource, limits: Limits) -> Result<(), Error> {
    limits.check(resource)?;
    setrlimit(resource.to_rustix(), limits.to_rustix()).map_err(|errno| Error::Syscall {
        call: "setrlimit",
        detail: format!("{resource}={limits}"),
        rule: (errno == Errno::PERM).then(|| rule(resource, limits, Some(get(resource)), false)).flatten(),
        error: errno.into(),
    })
}

/// Sets the soft limit of the calling process, leaving the hard limit.
///
/// # Errors
/// As [`set`]: a soft limit above the present hard limit is [`Error::Invalid`].
pub fn set_soft(resource: Resource, soft: Limit) -> Result<(), Error> {
    set(resource, Limits { soft, ..get(resource) })
}

/// Sets the hard limit of the calling process, **taking the soft limit down with it** where that would be above.
///
/// Lowering cannot be taken back without CAP_SYS_RESOURCE in the initial user namespace.
///
/// # Errors
/// As [`set`].
pub fn set_hard(resource: Resource, hard: Limit) -> Result<(), Error> {
    let soft = get(resource).soft.min(hard);
    set(resource, Limits { soft, hard })
}

/// Raises the soft limit of the calling process to its hard limit, which every process may do, and returns the limits
/// that then hold.
///
/// # Errors
/// As [`set`]. (For `nofile`, when `fs.nr_open` was lowered below the hard limit since.)
pub fn raise_soft(resource: Resource) -> Result<Limits, Error> {
    let limits = Limits::both(get(resource).hard);
    set(resource, limits)?;
    Ok(limits)
}

/// All limits of a process, from `/proc/PID/limits`, which every user may read.
///
/// The number may belong to another process by the time of the call, as with all calls that take a pid: hold a pidfd,
/// and check after the call that the process still lives.
///
/// # Errors
/// [`Error::File`] when there is no such process (ENOENT, ESRCH) or no `/proc`; [`Error::Parse`] when the table has no
/// known row.
pub fn of(pid: u32) -> Result<Table, Error> {
    let path = format!("/proc/{pid}/limits");
    let text = read(Path::new(&path))?;
    Table::parse(&text).ok_or_else(|| Error::Parse {
        path: path.into(),
        line: 0,
        expected: "the kernel's table of limits",
        found: text.lines().next().unwrap_or_default().chars().take(40).collect(),
    })
}

/// Sets both limits of one resource for another process, while it runs, and returns those that held before.
///
/// Acts at once and on all threads of that process; not on children it already has. What it holds beyond a lowered
/// limit it keeps: only the next request is refused.
///
/// # Errors
/// [`Error::Invalid`] when soft is above hard or the pid is 0 or too large. [`Error::Syscall`] with ESRCH when there is
/// no such process, with EPERM as [`set`], and when the process belongs to another user: see [`Rule::OtherOwner`].
///
/// `prlimit(2)`, since Linux 2.6.36.
pub fn set_of(pid: u32, resource: Resource, limits: Limits) -> Result<Limits, Error> {
    limits.check(resource)?;
    let target = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(|| Error::Invalid {
        what: format!("process id {pid}"),
        why: "not between 1 and 2147483647".to_owned(),
    })?;
    match prlimit(Some(target), resource.to_rustix(), limits.to_rustix()) {
        Ok(before) => Ok(Limits::from_rustix(before)),
        Err(errno) => {
            let present = || of(pid).ok().and_then(|table| table.get(resource));
            let rule = (errno == Errno::PERM).then(|| rule(resource, limits, present(), foreign(pid))).flatten();
            Err(Error::Syscall {
                call: "prlimit",
                detail: format!("{resource}={limits} of process {pid}"),
                rule,
                error: errno.into(),
            })
        }
    }
}

/// What a process uses of what its limits bound, where the kernel tells.
///
/// A snapshot: each figure is read at its own instant.
///
/// # Errors
/// [`Error::File`] when there is no such process or no `/proc`. Figures that this caller may not see, or this kernel
/// does not show, are `None`, not errors.
pub fn usage_of(pid: u32) -> Result<Usage, Error> {
    Usage::read(pid)
}

/// Which rule explains an EPERM.
fn rule(resource: Resource, wanted: Limits, present: Option<Limits>, foreign: bool) -> Option<Rule> {
    if foreign {
        return Some(Rule::OtherOwner);
    }
    if resource == Resource::Nofile && nr_open().is_some_and(|most| wanted.hard > Limit::Value(most)) {
        return Some(Rule::AboveNrOpen);
    }
    present.filter(|present| wanted.hard > present.hard).map(|_| Rule::RaiseHard)
}

/// Whether the process is another user's and this one lacks CAP_SYS_RESOURCE, as far as it can be seen.
fn foreign(pid: u32) -> bool {
    if rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_RESOURCE)) {
        return false;
    }
    let Ok(status) = read(Path::new(&format!("/proc/{pid}/status"))) else { return false };
    let ids = |key: &str| -> Option<Vec<u32>> {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        // Real, effective, saved; the fourth, for file systems, does not count.
        line.split_ascii_whitespace().take(3).map(|id| id.parse().ok()).collect()
    };
    let (own_uid, own_gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let same = |own: u32, ids: Option<Vec<u32>>| ids.is_none_or(|ids| ids.iter().all(|id| *id == own));
    !(same(own_uid, ids("Uid:")) && same(own_gid, ids("Gid:")))
}

/// The sysctl `fs.nr_open`.
pub(crate) fn nr_open() -> Option<u64> {
    fs::read_to_string("/proc/sys/fs/nr_open").ok()?.trim().parse().ok()
}

pub(crate) fn read(path: &Path) -> Result<String, Error> {
    // The name of a process (in `status`) may hold any byte.
    match fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) => Err(file(path, error)),
    }
}

fn file(path: &Path, error: io::Error) -> Error {
    Error::File { op: "read", path: path.to_owned(), error }
}
