//! How a program ended, what it used and which limits it met on the way.

use std::fmt;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use crate::disk::DiskUsage;
use crate::{Enforcement, Feature};

/// Why a program's run was over.
///
/// The reason comes from the kernel's counters and from our own deadlines, never from a signal alone: a program that
/// sends itself SIGKILL is [`Signaled`](Self::Signaled), one that exits with 137 is [`Exited`](Self::Exited).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum End {
    /// It exited; the code is in [`Outcome::status`].
    Exited,
    /// A signal ended it.
    Signaled,
    /// It reached [`wall_time_max`](crate::Builder::wall_time_max).
    WallTime,
    /// The processes together reached [`cpu_time_max`](crate::Builder::cpu_time_max), or it reached the resource limit
    /// `cpu`.
    CpuTime,
    /// The kernel killed it for want of memory below [`memory_max`](crate::Builder::memory_max).
    Memory,
    /// It wrote more than [`output_max`](crate::Builder::output_max).
    Output,
    /// SIGSYS while a filter that kills was installed. A program can send itself SIGSYS and so fake this.
    Seccomp,
    /// [`kill`](crate::Child::kill), [`stop`](crate::Child::stop) or a dropped handle ended it.
    Killed,
}

impl End {
    /// The name in JSON documents.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exited => "exited",
            Self::Signaled => "signaled",
            Self::WallTime => "wall_time",
            Self::CpuTime => "cpu_time",
            Self::Memory => "memory",
            Self::Output => "output",
            Self::Seccomp => "seccomp",
            Self::Killed => "killed",
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A limit that can be met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum LimitKind {
    /// Processes were killed for want of memory. Evidence: `oom_kill` of the cgroup.
    Memory,
    /// fork(2) or clone(2) was refused. Evidence: `pids.events` of the cgroup.
    Pids,
    /// Disk space ran out. Evidence: the counters of the quota, or of the memory file system or
    /// [disk image](crate::Builder::disk_image), at the end. With a quota on XFS it ran out for new files below 256 KiB.
    Disk,
    /// Files on disk ran out. Evidence: likewise.
    Inodes,
    /// SIGXFSZ ended the program. A write that failed with `EFBIG` because the signal was ignored is not seen.
    FileSize,
    /// More output than allowed was written. Evidence: our own count.
    Output,
    /// CPU time of the cgroup, or SIGXCPU ended the program.
    CpuTime,
    /// The deadline passed. Evidence: our own clock.
    WallTime,
}

impl LimitKind {
    /// The name in JSON documents.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Disk => "disk",
            Self::Inodes => "inodes",
            Self::FileSize => "file_size",
            Self::Output => "output",
            Self::CpuTime => "cpu_time",
            Self::WallTime => "wall_time",
        }
    }
}

impl fmt::Display for LimitKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A limit that was met, and how often.
///
/// What cannot be known is not here: `EMFILE` past `nofile`, `ENOMEM` past `as` or `memlock` are seen by the program
/// alone, the kernel counts none of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct LimitHit {
    /// Which.
    pub limit: LimitKind,
    /// How often: killed processes, refused forks; 1 where once is all there is.
    pub count: u64,
}

/// What was used. `None` where the kernel does not tell.
///
/// Of a one-shot sandbox this is the program and all it started. Of a program in a running
/// [`Instance`](crate::Instance), `wall`, `cpu_user` and `cpu_system` are the program's own (with the children it waited
/// for); the rest is counted by the kernel for the whole instance only, as [`of_instance`](Self::of_instance) says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// From the request to the end of the program.
    pub wall: Duration,
    /// CPU time in user mode. Of one process it is its own; where there were more, or with
    /// [`cpu_time_max`](crate::Builder::cpu_time_max), the cgroup's, in which init's start counts (a fraction of a millisecond).
    pub cpu_user: Duration,
    /// CPU time in the kernel.
    pub cpu_system: Duration,
    /// Most memory charged at one time, in bytes, init's (about 100 KiB) included. Page cache and tmpfs files count.
    /// `None` without a memory cgroup, and on cgroup v2 before Linux 5.19.
    pub memory_peak: Option<u64>,
    /// Most processes and threads at one time, init not counted. `None` without a pids cgroup, and before Linux 6.1.
    pub pids_peak: Option<u64>,
    /// Processes killed for want of memory.
    pub oom_kills: Option<u64>,
    /// Bytes read from and written to block devices.
    pub io: Option<Io>,
    /// Bytes that the quota charges, or that a limited memory file system or disk image holds: see
    /// [`disk_max`](crate::Builder::disk_max). `None` where nothing counts.
    pub disk_bytes: Option<u64>,
    /// Files and directories there.
    pub inodes: Option<u64>,
    /// The counters other than `wall` and CPU time are those of the whole instance, other programs included.
    pub of_instance: bool,
}

impl Usage {
    pub(crate) fn set_disk(&mut self, disk: Option<DiskUsage>) {
        self.disk_bytes = disk.map(|disk| disk.bytes);
        self.inodes = disk.map(|disk| disk.inodes);
    }
}

/// Block device traffic, in bytes. Buffered writes count when they are written back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Io {
    /// Read from devices.
    pub read_bytes: u64,
    /// Written to devices.
    pub written_bytes: u64,
}

/// Something that a sandbox made and that could not be taken away.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Leftover {
    /// What it is, in words.
    pub what: String,
    /// Why it is still there.
    pub why: String,
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.why)
    }
}

/// How a program's run went. Asked twice, it is the same.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Outcome {
    /// The program's wait status. Signal 9 where the end of the sandbox took it along.
    pub status: ExitStatus,
    /// Why it was over.
    pub end: End,
    /// Every limit that was met, the one that ended the run included.
    pub limits_hit: Vec<LimitHit>,
    /// What was used, read before anything was removed.
    pub usage: Usage,
    /// What was enforced and by what; see [`Child::enforcement`](crate::Child::enforcement).
    pub enforcement: Arc<[Enforcement]>,
    /// What is known to be left behind. [`Sandbox::close`](crate::Sandbox::close) tells what is left in the end.
    pub leftovers: Vec<Leftover>,
}

impl Outcome {
    /// It exited with 0.
    pub fn success(&self) -> bool {
        self.end == End::Exited && self.status.success()
    }

    /// Whether `limit` was met, and how often.
    pub fn hit(&self, limit: LimitKind) -> Option<u64> {
        self.limits_hit.iter().find(|hit| hit.limit == limit).map(|hit| hit.count)
    }

    /// What became of one feature.
    pub fn enforced(&self, feature: Feature) -> Option<&Enforcement> {
        self.enforcement.iter().find(|entry| entry.feature == feature)
    }
}

/// What [`Command::output`](crate::Command::output) gives.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Output {
    /// How the run went.
    pub outcome: Outcome,
    /// What the program wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: Vec<u8>,
    /// Bytes were cut off at [`output_max`](crate::Builder::output_max).
    pub truncated: bool,
}
