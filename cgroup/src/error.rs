//! The one error type of the crate, and the hints that go with it.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use crate::kill::Stuck;

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, by what the caller can do about it.
///
/// A message is one line with the path, the value and the kernel's answer, and a hint where the cause is known.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused an operation on a file or directory of a cgroup, or of `/proc`.
    #[error("cannot {op}{} {}: {error}{}", with_value(.op, .value.as_deref()), .path.display(), show(hint_for(.op, .path, .error)))]
    #[non_exhaustive]
    File {
        /// What was tried: `open`, `read`, `write`, `mkdir`, `rmdir`, `list`.
        op: &'static str,
        /// What was to be written, for `write`.
        value: Option<String>,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        error: io::Error,
    },

    /// A system call that names no file failed.
    #[error("{call} failed{}: {error}", show_detail(.detail))]
    #[non_exhaustive]
    Syscall {
        /// The call.
        call: &'static str,
        /// Its arguments, in words.
        detail: String,
        /// The kernel's answer.
        error: io::Error,
    },

    /// A file of the kernel holds something that this crate does not understand.
    #[error("{}:{line}: expected {expected}, found {found:?}", .path.display())]
    #[non_exhaustive]
    Parse {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What the format allows there.
        expected: &'static str,
        /// What was there.
        found: String,
    },

    /// An argument that cannot work, found before anything was written.
    #[error("invalid {what}: {why}")]
    #[non_exhaustive]
    Invalid {
        /// Which argument.
        what: &'static str,
        /// Why it cannot work.
        why: String,
    },

    /// This kernel, this cgroup version or this machine's set-up lacks what was asked for.
    #[error("{feature} is not available here: needs {needs}")]
    #[non_exhaustive]
    Unsupported {
        /// What was asked for.
        feature: String,
        /// What it needs.
        needs: String,
    },

    /// The caller may not make groups anywhere from its own cgroup up to the root.
    #[error("no writable cgroup with {wanted} from {} upwards: {error} (hint: {})", .path.display(), DELEGATION_FIXES.join("; or "))]
    #[non_exhaustive]
    NotDelegated {
        /// The caller's own cgroup.
        path: PathBuf,
        /// The controllers that were wanted.
        wanted: String,
        /// The first refusal met on the way up.
        error: io::Error,
    },

    /// A hierarchy exists, but the caller's own group is not to be seen through any of its mounts.
    #[error("the caller's own cgroup {group} of {hierarchy} is not reachable: {why}")]
    #[non_exhaustive]
    NotReachable {
        /// Which hierarchy: its controllers, or `cgroup2`.
        hierarchy: String,
        /// The group as `/proc/self/cgroup` names it.
        group: String,
        /// What hides it.
        why: String,
    },

    /// Processes of the group outlived the deadline. Nothing was lost: the same call can be made again.
    #[error("{} still holds {} after the deadline{}", .path.display(), count(.stuck.len()), describe(.stuck))]
    #[non_exhaustive]
    StillPopulated {
        /// The group.
        path: PathBuf,
        /// Who is left, and why.
        stuck: Vec<Stuck>,
    },

    /// A change was refused, and undoing its first half failed too: the limits are now mixed.
    #[error("{cause}; and {} could not be put back: {}", .failed.len(), .failed.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    #[non_exhaustive]
    RollBack {
        /// Why the change was refused.
        #[source]
        cause: Box<Error>,
        /// What could not be undone.
        failed: Vec<Error>,
    },
}

/// The three ways to give an ordinary user a subtree, as [`Error::NotDelegated`] tells them.
pub const DELEGATION_FIXES: [&str; 3] = [
    "run below systemd with delegation: `systemd-run --user --scope -p Delegate=yes PROGRAM`, or Delegate=yes in the service",
    "as root make a directory above the program's cgroup and chown it with its cgroup.procs, cgroup.threads and cgroup.subtree_control to the user",
    "run as root",
];

impl Error {
    /// The kernel's error number, where there is one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::File { error, .. } | Self::Syscall { error, .. } | Self::NotDelegated { error, .. } => {
                error.raw_os_error()
            }
            Self::RollBack { cause, .. } => cause.errno(),
            _ => None,
        }
    }

    /// What to do about it, where the cause is known.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::File { op, path, error, .. } => hint_for(op, path, error),
            Self::NotDelegated { .. } => Some(DELEGATION_FIXES[0]),
            Self::RollBack { cause, .. } => cause.hint(),
            _ => None,
        }
    }

    pub(crate) fn file(op: &'static str, path: PathBuf, error: impl Into<io::Error>) -> Self {
        Self::File { op, value: None, path, error: error.into() }
    }

    pub(crate) fn write(value: &str, path: PathBuf, error: impl Into<io::Error>) -> Self {
        Self::File { op: "write", value: Some(value.to_owned()), path, error: error.into() }
    }

    pub(crate) fn syscall(call: &'static str, detail: impl Into<String>, error: impl Into<io::Error>) -> Self {
        Self::Syscall { call, detail: detail.into(), error: error.into() }
    }

    pub(crate) fn invalid(what: &'static str, why: impl Into<String>) -> Self {
        Self::Invalid { what, why: why.into() }
    }

    pub(crate) fn unsupported(feature: impl Into<String>, needs: impl Into<String>) -> Self {
        Self::Unsupported { feature: feature.into(), needs: needs.into() }
    }

    pub(crate) fn is(&self, errno: rustix::io::Errno) -> bool {
        self.errno() == Some(errno.raw_os_error())
    }
}

fn with_value(op: &str, value: Option<&str>) -> String {
    match value {
        Some(value) if op == "write" => format!(" {value:?} to"),
        _ => String::new(),
    }
}

fn show(hint: Option<&str>) -> String {
    hint.map_or_else(String::new, |hint| format!(" (hint: {hint})"))
}

fn show_detail(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(" ({detail})") }
}

fn count(n: usize) -> String {
    match n {
        0 => "processes".to_owned(),
        1 => "1 process".to_owned(),
        n => format!("{n} processes"),
    }
}

fn describe(stuck: &[Stuck]) -> String {
    let mut out = String::new();
    for (at, one) in stuck.iter().take(4).enumerate() {
        out.push_str(if at == 0 { ": " } else { ", " });
        let _ = write!(out, "{one}");
    }
    if stuck.len() > 4 {
        out.push_str(", …");
    }
    out
}

/// The hint table. A hint is given only where the kernel has one reason for this answer on this file.
fn hint_for(op: &str, path: &Path, error: &io::Error) -> Option<&'static str> {
    use rustix::io::Errno;
    let errno = Errno::from_raw_os_error(error.raw_os_error()?);
    let file = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    Some(match (op, errno, file) {
        ("write", Errno::BUSY, "cgroup.subtree_control") => {
            "a cgroup that holds processes cannot offer memory, io or hugetlb to children; move the processes to a leaf first"
        }
        ("write", Errno::NOENT, "cgroup.subtree_control") => "the parent does not offer this controller",
        ("write", Errno::BUSY, "cgroup.procs" | "cgroup.threads") => {
            "a cgroup that offers controllers to its children holds no processes; use a leaf"
        }
        ("write", Errno::OPNOTSUPP, "cgroup.procs") => {
            "the cgroup is threaded, or its parent holds processes and offers controllers (`domain invalid`)"
        }
        ("write", Errno::NOSPC, "cgroup.procs" | "tasks") => "cpuset.cpus and cpuset.mems of the cgroup are empty",
        ("write", Errno::NODEV, "cgroup.procs" | "tasks" | "cgroup.threads") => "the cgroup has been removed",
        ("write", Errno::NOENT, "cgroup.procs" | "cgroup.threads") => {
            "the cgroup, or the process's present one, lies outside this cgroup namespace"
        }
        ("write", Errno::ACCESS, "cgroup.procs" | "cgroup.threads") => {
            "the process comes from outside the subtree that is delegated to this user"
        }
        ("write", Errno::SRCH, "cgroup.procs" | "tasks" | "cgroup.threads") => "no such process in this pid namespace",
        ("write", Errno::BUSY, "memory.limit_in_bytes" | "memory.memsw.limit_in_bytes") => {
            "the group uses more than that and it cannot be reclaimed; the limit is unchanged"
        }
        ("write", Errno::INVAL, "cpu.cfs_quota_us" | "cpu.cfs_period_us") => {
            "on cgroup v1 a group may not have a larger share of CPU time than its parent"
        }
        ("write", Errno::INVAL | Errno::PERM, "cpu.pressure" | "memory.pressure" | "io.pressure" | "irq.pressure") => {
            "without CAP_SYS_RESOURCE the window must be a multiple of 2 s, and before Linux 6.5 there is no way"
        }
        ("write", Errno::NODEV, "io.max" | "io.weight") => "no such block device, or it is a partition",
        ("write", Errno::PERM, "devices.allow" | "devices.deny") => "device lists of cgroup v1 need CAP_SYS_ADMIN",
        ("write", Errno::PERM, file) if !file.starts_with("devices.") => {
            "limits of the root of a cgroup namespace can be changed only from outside (nsdelegate)"
        }
        ("open", Errno::ACCESS, _) => "the cgroup is not delegated to this user",
        ("open" | "read", Errno::NODEV, _) => "the cgroup has been removed",
        ("mkdir", Errno::AGAIN, _) => "cgroup.max.depth or cgroup.max.descendants of an ancestor is reached",
        ("mkdir", Errno::ROFS, _) => "the cgroup file system is mounted read-only",
        ("mkdir", Errno::ACCESS, _) => "the parent is not delegated to this user",
        (_, Errno::MFILE, _) => "this process has no file descriptors left; raise RLIMIT_NOFILE",
        ("rmdir", Errno::BUSY, _) => "the cgroup still holds processes or child cgroups",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    #[test]
    fn every_hint_is_reached_by_its_cause_and_by_no_other() {
        let cases = [
            ("write", Errno::BUSY, "cgroup.subtree_control", "leaf first"),
            ("write", Errno::NOENT, "cgroup.subtree_control", "does not offer"),
            ("write", Errno::BUSY, "cgroup.procs", "use a leaf"),
            ("write", Errno::BUSY, "cgroup.threads", "use a leaf"),
            ("write", Errno::OPNOTSUPP, "cgroup.procs", "threaded"),
            ("write", Errno::NOSPC, "tasks", "cpuset"),
            ("write", Errno::NODEV, "cgroup.procs", "removed"),
            ("write", Errno::NOENT, "cgroup.procs", "namespace"),
            ("write", Errno::ACCESS, "cgroup.procs", "delegated"),
            ("write", Errno::SRCH, "cgroup.procs", "no such process"),
            ("write", Errno::BUSY, "memory.limit_in_bytes", "unchanged"),
            ("write", Errno::INVAL, "cpu.cfs_quota_us", "parent"),
            ("write", Errno::NODEV, "io.max", "partition"),
            ("write", Errno::INVAL, "cpu.pressure", "CAP_SYS_RESOURCE"),
            ("write", Errno::PERM, "memory.max", "nsdelegate"),
            ("write", Errno::PERM, "devices.deny", "CAP_SYS_ADMIN"),
            ("open", Errno::ACCESS, "pids.max", "delegated"),
            ("read", Errno::NODEV, "cgroup.events", "removed"),
            ("mkdir", Errno::AGAIN, "x", "max.depth"),
            ("mkdir", Errno::ROFS, "x", "read-only"),
            ("mkdir", Errno::ACCESS, "x", "delegated"),
            ("open", Errno::MFILE, "x", "RLIMIT_NOFILE"),
            ("rmdir", Errno::BUSY, "x", "child cgroups"),
        ];
        for (op, errno, file, words) in cases {
            let error = Error::file(op, Path::new("/cg").join(file), errno);
            let hint = error.hint().unwrap_or_default();
            assert!(hint.contains(words), "{op} {errno} {file}: {hint:?}");
            assert!(error.to_string().contains(words), "{error}");
            assert_eq!(error.errno(), Some(errno.raw_os_error()));
        }
        assert_eq!(Error::file("write", "/cg/pids.max".into(), Errno::INVAL).hint(), None);
    }

    #[test]
    fn messages_are_one_line_and_say_what_was_written_where() {
        let error = Error::write("67108864", "/sys/fs/cgroup/box/memory.max".into(), Errno::INVAL);
        assert_eq!(
            error.to_string(),
            "cannot write \"67108864\" to /sys/fs/cgroup/box/memory.max: Invalid argument (os error 22)"
        );
        let error = Error::NotDelegated { path: "/x".into(), wanted: "memory".into(), error: Errno::ACCESS.into() };
        for fix in DELEGATION_FIXES {
            assert!(error.to_string().contains(fix), "{error}");
        }
        assert_eq!(error.errno(), Some(13));
        assert!(!error.to_string().contains('\n'));
    }
}
