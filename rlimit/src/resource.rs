//! The sixteen resources that Linux limits.

use std::fmt;
use std::str::FromStr;

use crate::Error;

/// What a limit counts in.
///
/// The words are those of the last column of `/proc/PID/limits`, where the two priorities have an empty one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Whole seconds of CPU time.
    Seconds,
    /// Microseconds.
    Microseconds,
    /// Open files: one more than the highest descriptor number that may be had.
    Files,
    /// Processes and threads.
    Processes,
    /// File locks.
    Locks,
    /// Queued signals.
    Signals,
    /// A priority: no quantity, only an order.
    Priority,
}

impl Unit {
    /// The kernel's word for the unit; empty for [`Unit::Priority`], as in `/proc/PID/limits`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Seconds => "seconds",
            Self::Microseconds => "us",
            Self::Files => "files",
            Self::Processes => "processes",
            Self::Locks => "locks",
            Self::Signals => "signals",
            Self::Priority => "",
        }
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Whom the kernel counts together under one limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Scope {
    /// Each process by itself, its threads together.
    Process,
    /// All processes of one real uid in one user namespace together (before Linux 5.14: of one real uid on the whole
    /// host, whatever the namespace).
    User,
}

/// A resource that `setrlimit(2)` and `prlimit(2)` limit.
///
/// The names are the kernel's without `RLIMIT_`; [`Display`](fmt::Display) and [`FromStr`] use the spelling of
/// limits.conf (`nofile`). Limits are kept by fork, exec and by a change of ids. Each variant says what happens at the
/// limit; [`at_limit`](Self::at_limit) says the same in one line for people.
///
/// `getrlimit(2)`; all since Linux 2.6.25 (`Rttime` is the newest).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Resource {
    /// CPU time of the process (its threads summed, not its children), in **seconds**. At the soft limit SIGXCPU, again
    /// after each further second; at the hard limit SIGKILL. The kernel raises the soft limit by one second with each
    /// SIGXCPU, so a limit read back later is larger than the one set. 0 is reached at the next
    /// tick of the clock.
    Cpu,
    /// Size of a file that the process writes, in **bytes**. A write is cut short at the limit; the next fails with
    /// EFBIG and sends SIGXFSZ, which kills unless handled or ignored. Pipes and sockets are not affected.
    Fsize,
    /// Data segment: heap and, since Linux 4.7, private writable mappings, in **bytes**. `brk` and `mmap` fail with ENOMEM.
    Data,
    /// Stack of the main thread, in **bytes**; also the default of new threads' stacks, and a quarter of it bounds the
    /// arguments and environment of `execve` (E2BIG). Growing past it is SIGSEGV.
    Stack,
    /// Size of a core dump, in **bytes**. A longer dump is cut; 0 means none, except when the dump goes to a pipe handler.
    Core,
    /// Resident set, in **bytes**. Linux has not enforced it since 2.4.30: use a memory cgroup.
    Rss,
    /// Processes **and threads** of the real uid (see [`Scope::User`]), a count. `fork` fails with EAGAIN, and so does
    /// `execve` after a change to a uid that is over its limit (the change itself succeeds). Never binds the host's uid
    /// 0, nor who has CAP_SYS_ADMIN or CAP_SYS_RESOURCE in the initial user namespace. To limit one sandbox use a pids
    /// cgroup, or a uid range of its own.
    Nproc,
    /// One more than the highest file descriptor **number**, per process. `open` fails with EMFILE, `dup2` with EBADF,
    /// `fcntl(F_DUPFD)` with EINVAL. Descriptors above a lowered limit stay open and usable. May never exceed
    /// `fs.nr_open`.
    Nofile,
    /// Memory locked by `mlock`, in **bytes**. Over it ENOMEM; with 0 and no CAP_IPC_LOCK, EPERM; a mapping made after
    /// `mlockall(MCL_FUTURE)`, EAGAIN. CAP_IPC_LOCK in the initial user namespace lifts it.
    Memlock,
    /// Address space, in **bytes**. `mmap`, `brk` and `mremap` fail with ENOMEM.
    As,
    /// File locks, a count. Linux has not enforced it since 2.4.25.
    Locks,
    /// Signals queued to the real uid, a count. `sigqueue` fails with EAGAIN; `kill` is not affected.
    Sigpending,
    /// POSIX message queues of the real uid, in **bytes**. `mq_open` fails with EMFILE.
    Msgqueue,
    /// Ceiling of the nice value: a limit of n allows nice down to 20 − n. `setpriority` and `nice` fail with EPERM (or EACCES).
    Nice,
    /// Ceiling of the real-time priority. `sched_setscheduler` fails with EPERM.
    Rtprio,
    /// CPU time under a real-time policy without a blocking call, in **microseconds**. At the soft limit SIGXCPU, at the
    /// hard limit SIGKILL.
    Rttime,
}

impl Resource {
    /// All resources, in the kernel's order of numbers.
    pub const ALL: [Self; 16] = [
        Self::Cpu,
        Self::Fsize,
        Self::Data,
        Self::Stack,
        Self::Core,
        Self::Rss,
        Self::Nproc,
        Self::Nofile,
        Self::Memlock,
        Self::As,
        Self::Locks,
        Self::Sigpending,
        Self::Msgqueue,
        Self::Nice,
        Self::Rtprio,
        Self::Rttime,
    ];

    /// The kernel's number (`RLIMIT_*`), as the raw `prlimit64` call takes it.
    ///
    /// For code that may not use a library at that moment, such as a child between clone and exec.
    pub const fn number(self) -> u32 {
        self.to_rustix() as u32
    }

    /// The resource with that number, or `None` when there is none.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|resource| resource.number() == number)
    }

    /// The spelling of limits.conf: `nofile`, `as`, ….
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Fsize => "fsize",
            Self::Data => "data",
            Self::Stack => "stack",
            Self::Core => "core",
            Self::Rss => "rss",
            Self::Nproc => "nproc",
            Self::Nofile => "nofile",
            Self::Memlock => "memlock",
            Self::As => "as",
            Self::Locks => "locks",
            Self::Sigpending => "sigpending",
            Self::Msgqueue => "msgqueue",
            Self::Nice => "nice",
            Self::Rtprio => "rtprio",
            Self::Rttime => "rttime",
        }
    }

    /// The name of the resource's row in `/proc/PID/limits`, without the leading `Max `.
    pub const fn proc_name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu time",
            Self::Fsize => "file size",
            Self::Data => "data size",
            Self::Stack => "stack size",
            Self::Core => "core file size",
            Self::Rss => "resident set",
            Self::Nproc => "processes",
            Self::Nofile => "open files",
            Self::Memlock => "locked memory",
            Self::As => "address space",
            Self::Locks => "file locks",
            Self::Sigpending => "pending signals",
            Self::Msgqueue => "msgqueue size",
            Self::Nice => "nice priority",
            Self::Rtprio => "realtime priority",
            Self::Rttime => "realtime timeout",
        }
    }

    /// What the numbers of this limit count. (limits.conf has units of its own for some: KiB for sizes, minutes for `cpu`.)
    pub const fn unit(self) -> Unit {
        match self {
            Self::Cpu => Unit::Seconds,
            Self::Fsize
            | Self::Data
            | Self::Stack
            | Self::Core
            | Self::Rss
            | Self::Memlock
            | Self::As
            | Self::Msgqueue => Unit::Bytes,
            Self::Nproc => Unit::Processes,
            Self::Nofile => Unit::Files,
            Self::Locks => Unit::Locks,
            Self::Sigpending => Unit::Signals,
            Self::Nice | Self::Rtprio => Unit::Priority,
            Self::Rttime => Unit::Microseconds,
        }
    }

    /// Whom the kernel counts together: each process, or all of a user.
    pub const fn scope(self) -> Scope {
        match self {
            Self::Nproc | Self::Sigpending | Self::Msgqueue => Scope::User,
            _ => Scope::Process,
        }
    }

    /// What a program meets at the limit, in one line.
    pub const fn at_limit(self) -> &'static str {
        match self {
            Self::Cpu => "SIGXCPU at the soft limit and each second after, SIGKILL at the hard limit",
            Self::Fsize => "writes are cut short, then EFBIG with SIGXFSZ (kills unless handled)",
            Self::Data => "brk and mmap fail with ENOMEM",
            Self::Stack => "growing the stack is SIGSEGV; execve with arguments over a quarter of it fails with E2BIG",
            Self::Core => "the core dump is cut; 0 means none",
            Self::Rss => "nothing: Linux does not enforce it",
            Self::Nproc => "fork fails with EAGAIN, and execve after changing to a uid over its limit",
            Self::Nofile => "open fails with EMFILE, dup2 with EBADF",
            Self::Memlock => "mlock fails with ENOMEM (EPERM when the limit is 0), mmap after mlockall with EAGAIN",
            Self::As => "mmap, brk and mremap fail with ENOMEM",
            Self::Locks => "nothing: Linux does not enforce it",
            Self::Sigpending => "sigqueue fails with EAGAIN",
            Self::Msgqueue => "mq_open fails with EMFILE",
            Self::Nice => "setpriority and nice fail with EPERM or EACCES",
            Self::Rtprio => "sched_setscheduler fails with EPERM",
            Self::Rttime => "SIGXCPU at the soft limit, SIGKILL at the hard limit",
        }
    }

    pub(crate) const fn to_rustix(self) -> rustix::process::Resource {
        use rustix::process::Resource as R;
        match self {
            Self::Cpu => R::Cpu,
            Self::Fsize => R::Fsize,
            Self::Data => R::Data,
            Self::Stack => R::Stack,
            Self::Core => R::Core,
            Self::Rss => R::Rss,
            Self::Nproc => R::Nproc,
            Self::Nofile => R::Nofile,
            Self::Memlock => R::Memlock,
            Self::As => R::As,
            Self::Locks => R::Locks,
            Self::Sigpending => R::Sigpending,
            Self::Msgqueue => R::Msgqueue,
            Self::Nice => R::Nice,
            Self::Rtprio => R::Rtprio,
            Self::Rttime => R::Rttime,
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Resource {
    type Err = Error;

    /// Reads the spelling of limits.conf. Case and everything else must match.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is none of the sixteen names.
    fn from_str(text: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|resource| resource.as_str() == text).ok_or_else(|| Error::Invalid {
            what: format!("resource `{text}`"),
            why: format!("it is none of {}", Self::ALL.map(Self::as_str).join(", ")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_go_both_ways() {
        for (number, resource) in (0..).zip(Resource::ALL) {
            assert_eq!(resource.number(), number);
            assert_eq!(Resource::from_number(number), Some(resource));
            assert_eq!(resource.to_string().parse::<Resource>().unwrap(), resource);
        }
        assert_eq!(Resource::from_number(16), None);
        for wrong in ["", "NOFILE", "nofile ", "RLIMIT_NOFILE", "maxlogins"] {
            assert!(wrong.parse::<Resource>().is_err(), "{wrong:?}");
        }
    }
}
