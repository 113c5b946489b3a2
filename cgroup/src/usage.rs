//! What a group uses and has used, read on held descriptors.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::dir::read_once;
use crate::group::{Cgroup, Part};
use crate::hierarchy::{Controller, Version};
use crate::{Error, Result, stat};

/// What a group and all groups below it use. `None`: this kernel, or this group's controllers, do not count it.
///
/// The counters belong to the group, not to the processes that are in it now. Memory is charged to the group of the task
/// that touched it first and stays there: a process that moves in brings nothing along, one that moves out takes nothing
/// away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// Memory now, in bytes: of the processes, the page cache that they caused, tmpfs files, and the kernel's for them.
    /// Counted in batches per CPU: up to 256 KiB per CPU off.
    pub memory_current: Option<u64>,
    /// The most that `memory_current` has been. v2 since Linux 5.19; v1 always.
    pub memory_peak: Option<u64>,
    /// Swap now, in bytes, without the memory. On v1 the difference of two counters that are read one after the other.
    pub memory_swap_current: Option<u64>,
    /// The most that `memory_swap_current` has been. v2 since Linux 6.5; not on v1.
    pub memory_swap_peak: Option<u64>,
    /// Processes killed because memory ran out. On v1 those of this group alone, not of groups below it.
    pub oom_kills: Option<u64>,
    /// How often the whole group was killed for it. v2 since Linux 5.17.
    pub oom_group_kills: Option<u64>,
    /// How often the memory limit was reached. Reclaim often helps: this is no count of failures. On v1 with swap, and
    /// `None` for never, as recent kernels (6.18 was seen) do not count it there any more.
    pub memory_max_events: Option<u64>,
    /// Processes and threads now, zombies included.
    pub pids_current: Option<u64>,
    /// The most that `pids_current` has been. Linux 6.1.
    pub pids_peak: Option<u64>,
    /// How often fork or clone was refused. Up to Linux 6.10, and always on v1, it is counted where the *caller* is, and
    /// not in the groups above: read [`Cgroup::events`] of the groups below as well.
    pub pids_max_events: Option<u64>,
    /// CPU time, of processes that have ended too.
    pub cpu: Option<CpuUsage>,
    /// How [`cpu_max`](crate::Limits::cpu_max) has acted.
    pub throttled: Option<Throttled>,
    /// Transfers from and to block devices, summed.
    pub io: Option<IoUsage>,
}

/// CPU time used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CpuUsage {
    /// All of it.
    pub total: Duration,
    /// In user mode. On v1 in ticks of 10 ms, and sampled.
    pub user: Option<Duration>,
    /// In the kernel. As `user`.
    pub system: Option<Duration>,
}

/// What a CPU quota has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Throttled {
    /// Periods in which the group wanted to run.
    pub periods: u64,
    /// Those in which it used up its quota.
    pub throttled: u64,
    /// How long its tasks had to wait, summed over CPUs.
    pub time: Duration,
    /// Periods in which saved-up time was used. Linux 5.14.
    pub bursts: Option<u64>,
    /// How much of it. Linux 5.14.
    pub burst_time: Option<Duration>,
}

/// Transfers from and to block devices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct IoUsage {
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Read operations.
    pub reads: u64,
    /// Write operations.
    pub writes: u64,
}

/// The files of a group that [`Usage`] is read from, held open.
///
/// A reading costs one `pread` per file into one buffer: no paths, no opening, no memory. It stays right when the group
/// is renamed or its mount goes; after the group is removed, readings fail.
#[derive(Debug)]
pub struct Meter {
    files: Vec<(Source, OwnedFd)>,
    buffer: Vec<u8>,
    path: std::path::PathBuf,
    ticks: u64,
}

/// What a file holds, and how it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    MemoryCurrent,
    MemoryPeak,
    SwapCurrent,
    /// v1: memory and swap together.
    SumCurrent,
    SwapPeak,
    /// v2 `memory.events`.
    MemoryEvents,
    /// v1 `memory.oom_control`.
    OomControl,
    /// v1 `memory.failcnt`.
    FailCount,
    /// v1: the same for memory and swap together, which is what is hit first when no swap is allowed.
    SumFailCount,
    PidsCurrent,
    PidsPeak,
    PidsEvents,
    /// v2 `cpu.stat`: usage, and throttling where there is the controller.
    CpuStat,
    /// v1 `cpu.stat`: throttling, in nanoseconds.
    CpuStatV1,
    CpuacctUsage,
    CpuacctStat,
    IoStat,
    IoBytesV1,
    IoOpsV1,
}

impl Source {
    const fn file(self) -> &'static str {
        match self {
            Self::MemoryCurrent => "memory.current",
            Self::MemoryPeak => "memory.peak",
            Self::SwapCurrent => "memory.swap.current",
            Self::SumCurrent => "memory.memsw.usage_in_bytes",
            Self::SwapPeak => "memory.swap.peak",
            Self::MemoryEvents => "memory.events",
            Self::OomControl => "memory.oom_control",
            Self::FailCount => "memory.failcnt",
            Self::SumFailCount => "memory.memsw.failcnt",
            Self::PidsCurrent => "pids.current",
            Self::PidsPeak => "pids.peak",
            Self::PidsEvents => "pids.events",
            Self::CpuStat | Self::CpuStatV1 => "cpu.stat",
            Self::CpuacctUsage => "cpuacct.usage",
            Self::CpuacctStat => "cpuacct.stat",
            Self::IoStat => "io.stat",
            Self::IoBytesV1 => "blkio.throttle.io_service_bytes_recursive",
            Self::IoOpsV1 => "blkio.throttle.io_serviced_recursive",
        }
    }

    /// v1 has other names for some.
    const fn file_in(self, version: Version) -> &'static str {
        match (self, version) {
            (Self::MemoryCurrent, Version::V1) => "memory.usage_in_bytes",
            (Self::MemoryPeak, Version::V1) => "memory.max_usage_in_bytes",
            (other, _) => other.file(),
        }
    }
}

impl Cgroup {
    /// Opens the files that [`Meter::read`] reads. What this kernel does not have is left out.
    ///
    /// # Errors
    /// [`Error::File`] when one that exists cannot be opened.
    pub fn meter(&self) -> Result<Meter> {
        self.meter_of(|_| true)
    }

    /// A [`meter`](Self::meter) of what lasts alone: peaks, kills, refused forks and CPU time. Half the files, and what is
    /// asked of a group when its work is done; the rest of the [`Usage`] is `None`.
    ///
    /// # Errors
    /// As [`meter`](Self::meter).
    pub fn final_meter(&self) -> Result<Meter> {
        self.meter_of(|source| {
            matches!(
                source,
                Source::MemoryPeak
                    | Source::MemoryEvents
                    | Source::OomControl
                    | Source::PidsPeak
                    | Source::PidsEvents
                    | Source::CpuStat
                    | Source::CpuacctUsage
                    | Source::CpuacctStat
            )
        })
    }

    fn meter_of(&self, wanted: impl Fn(Source) -> bool) -> Result<Meter> {
        let mut files = Vec::with_capacity(12);
        for (part, sources) in self.sources() {
            for &source in sources.iter().filter(|source| wanted(**source)) {
                match part.dir.open_file(source.file_in(part.version), OFlags::RDONLY) {
                    Ok(fd) => files.push((source, fd)),
                    Err(error) if error.is(Errno::NOENT) || error.is(Errno::OPNOTSUPP) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(Meter {
            files,
            buffer: Vec::with_capacity(4096),
            path: self.path().to_owned(),
            ticks: rustix::param::clock_ticks_per_second().max(1),
        })
    }

    /// What counts, and where. Processes come before CPU time, which is not always read.
    fn sources(&self) -> impl Iterator<Item = (&Part, &'static [Source])> {
        let part_of = |controller, version| self.part(controller).filter(|part| part.version == version);
        let table: [(Option<&Part>, &[Source]); 9] = [
            (self.part(Controller::Memory), &[Source::MemoryCurrent, Source::MemoryPeak]),
            (part_of(Controller::Memory, Version::V2), &[Source::SwapCurrent, Source::SwapPeak, Source::MemoryEvents]),
            (
                part_of(Controller::Memory, Version::V1),
                &[Source::SumCurrent, Source::OomControl, Source::FailCount, Source::SumFailCount],
            ),
            (self.part(Controller::Pids), &[Source::PidsCurrent, Source::PidsPeak, Source::PidsEvents]),
            (self.v2(), &[Source::CpuStat]),
            (part_of(Controller::Cpu, Version::V1), &[Source::CpuStatV1]),
            (
                self.part(Controller::Cpuacct).filter(|_| self.v2().is_none()),
                &[Source::CpuacctUsage, Source::CpuacctStat],
            ),
            (part_of(Controller::Io, Version::V2), &[Source::IoStat]),
            (part_of(Controller::Io, Version::V1), &[Source::IoBytesV1, Source::IoOpsV1]),
        ];
        table.into_iter().filter_map(|(part, sources)| Some((part?, sources)))
    }

    /// Has the kernel forget the files of a group that has been removed.
    ///
    /// One that was open meanwhile, here or in a child that has copies of our descriptors, stays in the kernel's caches with
    /// its directory, until somebody looks for it and finds that it is gone.
    pub(crate) fn forget_files(&self) {
        for part in self.parts() {
            let counted = self.sources().filter(|(other, _)| std::ptr::eq(*other, part));
            let counted = counted.flat_map(|(part, sources)| sources.iter().map(|source| source.file_in(part.version)));
            counted.chain(["tasks"]).for_each(|file| _ = part.dir.has(file));
        }
    }

    /// [`meter`](Self::meter) and one reading. For more than one keep the meter.
    ///
    /// # Errors
    /// Those of both.
    pub fn usage(&self) -> Result<Usage> {
        self.meter()?.read()
    }
}

impl Meter {
    /// Reads all counters: one `pread` for each file, no allocation.
    ///
    /// # Errors
    /// [`Error::File`], `ENODEV` when the group has been removed. A number that does not parse is `None`.
    pub fn read(&mut self) -> Result<Usage> {
        self.read_where(|_, _| true)
    }

    /// [`read`](Self::read), but CPU time (on v2 with throttling) is not read, and `None`, when `pids_peak` says that never more than `tasks` were in the
    /// group at the same time. For those whom wait4(2) has told the CPU time of so few: the kernel sums it up over all CPUs
    /// when it is read, which costs as much as all other files together.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_with_cpu_beyond(&mut self, tasks: u64) -> Result<Usage> {
        self.read_where(|source, usage| {
            !matches!(source, Source::CpuStat | Source::CpuacctUsage | Source::CpuacctStat)
                || usage.pids_peak.is_none_or(|peak| peak > tasks)
        })
    }

    /// Reads the files that are `wanted` by what those before them said.
    fn read_where(&mut self, wanted: impl Fn(Source, &Usage) -> bool) -> Result<Usage> {
        let mut usage = Usage::default();
        let mut together = None;
        for (source, fd) in &self.files {
            if !wanted(*source, &usage) {
                continue;
            }
            read_once(fd.as_fd(), &mut self.buffer)
                .map_err(|error| Error::file("read", self.path.join(source.file()), error))?;
            fill(*source, &self.buffer, self.ticks, &mut usage, &mut together);
        }
        if let (Some(sum), Some(memory)) = (together, usage.memory_current) {
            usage.memory_swap_current = Some(u64::saturating_sub(sum, memory));
        }
        Ok(usage)
    }
}

fn fill(source: Source, text: &[u8], ticks: u64, usage: &mut Usage, together: &mut Option<u64>) {
    match source {
        Source::MemoryCurrent => usage.memory_current = stat::number(text),
        Source::MemoryPeak => usage.memory_peak = stat::number(text),
        Source::SwapCurrent => usage.memory_swap_current = stat::number(text),
        Source::SumCurrent => *together = stat::number(text),
        Source::SwapPeak => usage.memory_swap_peak = stat::number(text),
        Source::MemoryEvents => {
            for (key, value) in stat::flat(text) {
                match key {
                    b"oom_kill" => usage.oom_kills = stat::number(value),
                    b"oom_group_kill" => usage.oom_group_kills = stat::number(value),
                    b"max" => usage.memory_max_events = stat::number(value),
                    _ => {}
                }
            }
        }
        Source::OomControl => usage.oom_kills = stat::value(text, b"oom_kill"),
        // Recent kernels have the files and no longer count on v1, so 0 says nothing.
        Source::FailCount | Source::SumFailCount => {
            if let Some(hits) = stat::number(text).filter(|&hits| hits > 0) {
                usage.memory_max_events = Some(hits.saturating_add(usage.memory_max_events.unwrap_or(0)));
            }
        }
        Source::PidsCurrent => usage.pids_current = stat::number(text),
        Source::PidsPeak => usage.pids_peak = stat::number(text),
        Source::PidsEvents => usage.pids_max_events = stat::value(text, b"max"),
        Source::CpuStat => {
            if let Some(total) = stat::micros(text, b"usage_usec") {
                let (user, system) = (stat::micros(text, b"user_usec"), stat::micros(text, b"system_usec"));
                usage.cpu = Some(CpuUsage { total, user, system });
            }
            if let (Some(periods), Some(throttled)) =
                (stat::value(text, b"nr_periods"), stat::value(text, b"nr_throttled"))
            {
                usage.throttled = Some(Throttled {
                    periods,
                    throttled,
                    time: stat::micros(text, b"throttled_usec").unwrap_or_default(),
                    bursts: stat::value(text, b"nr_bursts"),
                    burst_time: stat::micros(text, b"burst_usec"),
                });
            }
        }
        Source::CpuStatV1 => {
            if let (Some(periods), Some(throttled)) =
                (stat::value(text, b"nr_periods"), stat::value(text, b"nr_throttled"))
            {
                usage.throttled = Some(Throttled {
                    periods,
                    throttled,
                    time: Duration::from_nanos(stat::value(text, b"throttled_time").unwrap_or(0)),
                    bursts: stat::value(text, b"nr_bursts"),
                    burst_time: stat::value(text, b"burst_time").map(Duration::from_nanos),
                });
            }
        }
        Source::CpuacctUsage => {
            if let Some(nanos) = stat::number(text) {
                usage.cpu.get_or_insert_default().total = Duration::from_nanos(nanos);
            }
        }
        Source::CpuacctStat => {
            let time = |key| stat::value(text, key).map(|n| Duration::from_millis(n.saturating_mul(1000) / ticks));
            if let Some(cpu) = &mut usage.cpu {
                (cpu.user, cpu.system) = (time(b"user"), time(b"system"));
            }
        }
        Source::IoStat => {
            let io = usage.io.get_or_insert_default();
            for (_, pairs) in stat::lines(text).filter_map(stat::nested) {
                for (key, value) in pairs {
                    let n = stat::number(value).unwrap_or(0);
                    match key {
                        b"rbytes" => io.read_bytes = io.read_bytes.saturating_add(n),
                        b"wbytes" => io.write_bytes = io.write_bytes.saturating_add(n),
                        b"rios" => io.reads = io.reads.saturating_add(n),
                        b"wios" => io.writes = io.writes.saturating_add(n),
                        _ => {}
                    }
                }
            }
        }
        Source::IoBytesV1 => {
            let io = usage.io.get_or_insert_default();
            (io.read_bytes, io.write_bytes) = sum_v1(text);
        }
        Source::IoOpsV1 => {
            let io = usage.io.get_or_insert_default();
            (io.reads, io.writes) = sum_v1(text);
        }
    }
}

/// `8:0 Read 4096` and `8:0 Write 0`, summed over devices.
fn sum_v1(text: &[u8]) -> (u64, u64) {
    let (mut read, mut write) = (0u64, 0u64);
    for (_, rest) in stat::flat(text) {
        let Some(at) = rest.iter().position(|&b| b == b' ') else { continue };
        let (kind, number) = rest.split_at(at);
        let n = stat::number(number).unwrap_or(0);
        match kind {
            b"Read" => read = read.saturating_add(n),
            b"Write" => write = write.saturating_add(n),
            _ => {}
        }
    }
    (read, write)
}
