//! Limits of a group: set as one change that holds whole or not at all, and read back.

use std::borrow::Cow;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::convert;
use crate::group::{Cgroup, Part};
use crate::hierarchy::{Controller, Version};
use crate::knob::Knob;
use crate::limit::{CpuList, CpuMax, Device, Limit};
use crate::{Error, Result, stat};

/// Limits to set, or as they are. `None` and empty lists mean "leave it" for [`Cgroup::set`], and "this group or this
/// kernel has no such thing" from [`Cgroup::limits`].
///
/// ```
/// use cgroup::{CpuMax, Limit, Limits};
/// let mut limits = Limits::default();
/// limits.memory_max = Some(Limit::Value(64 << 20));
/// limits.memory_swap_max = Some(Limit::Value(0));
/// limits.pids_max = Some(Limit::Value(32));
/// limits.cpu_max = Some(CpuMax::from_millicpus(500));
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Memory of all processes together, in **bytes**, page cache and kernel memory included; rounded down to a page.
    ///
    /// At the limit the kernel reclaims, then swaps, and when that is not enough kills a process of the group. Alone it
    /// is no bound on what can be allocated where the host has swap: set [`memory_swap_max`](Self::memory_swap_max) too.
    /// Huge pages (hugetlbfs) are not counted. Less than a page is refused.
    ///
    /// Lowered below the usage: v1 answers `EBUSY` when it cannot reclaim that much and changes nothing; v2 always takes
    /// it, and kills until it holds. The write returns only then: an old kernel (5.10 was seen) on a single CPU without
    /// preemption never lets the victim run, and hangs.
    ///
    /// v2 `memory.max`, v1 `memory.limit_in_bytes`. Kernel: 4.5.
    pub memory_max: Option<Limit>,
    /// Swap of all processes together, in **bytes**, without the memory in [`memory_max`](Self::memory_max); 0 is none.
    ///
    /// At the limit nothing more is swapped out, so that `memory_max` is reached sooner. v1 can only limit the sum of
    /// both, so there it needs `memory_max`, which the sum is computed from. Where the kernel has no swap accounting and
    /// the host no swap, 0 is taken as fulfilled, and [`Setting::by`] says so.
    ///
    /// v2 `memory.swap.max`, v1 `memory.memsw.limit_in_bytes`. Kernel: 4.5.
    pub memory_swap_max: Option<Limit>,
    /// Memory in **bytes** beyond which the group's processes are slowed down and reclaimed from. Kills nobody. v2 only.
    pub memory_high: Option<Limit>,
    /// Memory in **bytes** that is reclaimed only when nothing unprotected is left. On v1 (`memory.soft_limit_in_bytes`)
    /// it is weaker: groups above theirs are reclaimed from first.
    pub memory_low: Option<Limit>,
    /// Memory in **bytes** that is never reclaimed, and others are killed for. v2 only. Kernel: 4.18.
    pub memory_min: Option<Limit>,
    /// Whether running out of memory kills all processes of the group instead of the biggest. v2 only. Kernel: 4.19.
    pub memory_oom_group: Option<bool>,
    /// Processes *and threads* of the group and all below it, zombies included; at most 4194304.
    ///
    /// At the limit fork and clone fail with `EAGAIN`. Moving into the group is never refused, so the count can exceed the
    /// limit. With 0 a process can be moved in and exec, and never fork.
    ///
    /// `pids.max`, the same on both versions. Kernel: 4.3.
    pub pids_max: Option<Limit>,
    /// CPU time per period, over all CPUs. At the limit the group waits for the next period.
    ///
    /// v2 `cpu.max`, v1 `cpu.cfs_quota_us` and `cpu.cfs_period_us`. On v1 the share may not exceed the parent's
    /// (`EINVAL`); on v2 it may, and the smaller one acts.
    pub cpu_max: Option<CpuMax>,
    /// CPU time that may be saved from quiet periods and used at once later; at most the quota. Kernel: 5.14.
    pub cpu_burst: Option<Duration>,
    /// Share of CPU time against sibling groups when the CPUs are busy: 1 to 10000, the default is 100.
    ///
    /// v2 `cpu.weight`; on v1 `cpu.shares`, converted so that 1, 100 and 10000 meet 2, 1024 and 262144. Not together with
    /// [`cpu_idle`](Self::cpu_idle).
    pub cpu_weight: Option<u32>,
    /// Whether the group runs only when nothing else wants the CPU. Kernel: 5.15.
    pub cpu_idle: Option<bool>,
    /// CPUs that the group may run on; empty: those of the parent. Setting it resets the affinities of its processes.
    /// CPUs that are offline, or that a group above does not have, are refused on both versions.
    pub cpuset_cpus: Option<CpuList>,
    /// Memory nodes that the group may allocate from; empty: those of the parent.
    pub cpuset_mems: Option<CpuList>,
    /// Rates per block device. v1 does not slow down buffered writes.
    pub io_max: Vec<IoMax>,
    /// Share of block devices against sibling groups: 1 to 10000, the default is 100. Acts only where the bfq scheduler
    /// or (v2) the io.cost model is in use. bfq knows weights to 1000; larger ones are scaled.
    pub io_weight: Option<u32>,
    /// Huge pages. [`HugetlbMax::reserved`] is the one to use: see there.
    pub hugetlb_max: Vec<HugetlbMax>,
    /// Scalar resources by the kernel's name (`sev`). Kernel: 5.13.
    pub misc_max: Vec<(String, Limit)>,
    /// Groups below this one, at every depth. More: `mkdir` fails with `EAGAIN`. v2 only. Kernel: 4.15.
    pub descendants_max: Option<Limit>,
    /// Levels of groups below this one. More: `mkdir` fails with `EAGAIN`. v2 only. Kernel: 4.15.
    pub depth_max: Option<Limit>,
}

/// Rates on one block device; what is `None` stays as it is. 0 is refused: stop a group with
/// [`freeze`](Cgroup::freeze).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct IoMax {
    /// The device: a whole disk.
    pub device: Device,
    /// Bytes per second read.
    pub read_bytes: Option<Limit>,
    /// Bytes per second written.
    pub write_bytes: Option<Limit>,
    /// Operations per second read.
    pub read_ops: Option<Limit>,
    /// Operations per second written.
    pub write_ops: Option<Limit>,
}

impl IoMax {
    /// No change yet on `device`.
    #[must_use]
    pub const fn new(device: Device) -> Self {
        Self { device, read_bytes: None, write_bytes: None, read_ops: None, write_ops: None }
    }

    /// Each rate with the name of v2 and the file of v1.
    fn rates(&mut self) -> [(&'static str, &'static str, &mut Option<Limit>); 4] {
        [
            ("rbps", "blkio.throttle.read_bps_device", &mut self.read_bytes),
            ("wbps", "blkio.throttle.write_bps_device", &mut self.write_bytes),
            ("riops", "blkio.throttle.read_iops_device", &mut self.read_ops),
            ("wiops", "blkio.throttle.write_iops_device", &mut self.write_ops),
        ]
    }
}

/// Huge pages of one size, in bytes; a multiple of the size, else rounded down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct HugetlbMax {
    /// The size of the pages: 2 MiB, 1 GiB, …
    pub page_size: u64,
    /// Bytes in use. At the limit the *touch* of a page that `mmap` had granted ends the process by `SIGBUS`.
    pub used: Option<Limit>,
    /// Bytes reserved. At the limit `mmap` fails with `ENOMEM`. Kernel: 5.7.
    pub reserved: Option<Limit>,
}

impl HugetlbMax {
    /// No change yet for pages of that size.
    #[must_use]
    pub const fn new(page_size: u64) -> Self {
        Self { page_size, used: None, reserved: None }
    }

    pub(crate) fn label(self) -> String {
        match self.page_size {
            size if size >= 1 << 30 => format!("{}GB", size >> 30),
            size if size >= 1 << 20 => format!("{}MB", size >> 20),
            size => format!("{}KB", size >> 10),
        }
    }
}

/// The value of a knob, typed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Value {
    /// A number in the knob's unit, or none.
    Limit(Limit),
    /// A CPU quota.
    CpuMax(CpuMax),
    /// A time.
    Time(Duration),
    /// A weight.
    Weight(u32),
    /// On or off.
    Flag(bool),
    /// CPUs or memory nodes.
    List(CpuList),
    /// Rates of a device.
    Io(IoMax),
    /// Bytes of huge pages.
    Hugetlb {
        /// Their size.
        page_size: u64,
        /// How much.
        limit: Limit,
    },
    /// A scalar resource.
    Misc {
        /// The kernel's name for it.
        resource: String,
        /// How much.
        limit: Limit,
    },
}

/// One knob that was set.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Setting {
    /// Which.
    pub knob: Knob,
    /// What was asked for.
    pub requested: Value,
    /// What the kernel answered when it was read back: the same, but for rounding to pages.
    pub enforced: Value,
    /// The mechanism in words: `cgroup v2 memory.max`.
    pub by: &'static str,
}

/// What [`Cgroup::set`] has done: every knob with the value that was read back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Applied {
    /// In the order in which they were written.
    pub settings: Vec<Setting>,
}

impl Applied {
    /// The setting of one knob; the first, for those that there can be several of.
    #[must_use]
    pub fn get(&self, knob: Knob) -> Option<&Setting> {
        self.settings.iter().find(|setting| setting.knob == knob)
    }
}

/// Whether swap can be limited in a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SwapControl {
    /// The kernel counts and limits it.
    Accounted,
    /// The kernel does not count it, and the host has none at present: a limit of 0 holds by itself.
    NoneOnHost,
    /// The kernel does not count it, and the host has some: it cannot be limited.
    Unaccounted,
}

const NO_SWAP: &str = "the host has no swap";
/// The most tasks that `pids.max` takes.
const PIDS_MOST: u64 = 4_194_304;

impl Limits {
    /// Looks for values that cannot work, before anything is written. The answers are the same on both versions.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the knob's name and the reason.
    pub fn check(&self) -> Result<()> {
        let page = convert::page_size();
        let bytes = |knob: Knob, limit: Option<Limit>, least: u64| match limit {
            Some(Limit::Value(bytes)) if bytes < least => Err(Error::invalid(
                knob.name(),
                format!("{bytes} is less than a page of {page} bytes, which rounds down to 0"),
            )),
            Some(Limit::Value(bytes)) if bytes > convert::most_bytes() => {
                Err(Error::invalid(knob.name(), format!("{bytes} is more than the kernel can count; use Limit::Max")))
            }
            _ => Ok(()),
        };
        bytes(Knob::MemoryMax, self.memory_max, page)?;
        bytes(Knob::MemorySwapMax, self.memory_swap_max, 0)?;
        bytes(Knob::MemoryHigh, self.memory_high, 0)?;
        bytes(Knob::MemoryLow, self.memory_low, 0)?;
        bytes(Knob::MemoryMin, self.memory_min, 0)?;
        if let Some(Limit::Value(pids)) = self.pids_max {
            if pids > PIDS_MOST {
                return Err(Error::invalid(
                    Knob::PidsMax.name(),
                    format!("{pids} is more than {PIDS_MOST}; use Limit::Max"),
                ));
            }
        }
        if let Some(cpu) = self.cpu_max {
            cpu.check()?;
        }
        if let Some(burst) = self.cpu_burst {
            if burst.subsec_nanos() % 1_000 != 0 || burst.as_micros() >= 1 << 44 {
                return Err(Error::invalid(
                    Knob::CpuBurst.name(),
                    format!("{burst:?} is not a number of whole µs below 2^44"),
                ));
            }
            if let Some(CpuMax { quota: Limit::Value(quota), .. }) = self.cpu_max {
                if burst.as_micros() > u128::from(quota) {
                    return Err(Error::invalid(
                        Knob::CpuBurst.name(),
                        format!("{burst:?} is more than the quota, {quota} µs"),
                    ));
                }
            }
        }
        for (knob, weight) in [(Knob::CpuWeight, self.cpu_weight), (Knob::IoWeight, self.io_weight)] {
            if let Some(weight) = weight.filter(|weight| !(1..=10_000).contains(weight)) {
                return Err(Error::invalid(knob.name(), format!("{weight} is not between 1 and 10000")));
            }
        }
        if self.cpu_idle == Some(true) && self.cpu_weight.is_some() {
            return Err(Error::invalid(Knob::CpuWeight.name(), "an idle group has no weight"));
        }
        for io in &self.io_max {
            let mut io = *io;
            for (name, _, limit) in io.rates() {
                let most = if name.ends_with("iops") { u64::from(u32::MAX) } else { u64::MAX - 1 };
                match *limit {
                    Some(Limit::Value(0)) => {
                        return Err(Error::invalid(Knob::IoMax.name(), "a rate of 0; freeze the group instead"));
                    }
                    Some(Limit::Value(rate)) if rate >= most => {
                        return Err(Error::invalid(
                            Knob::IoMax.name(),
                            format!("{rate} is not less than {most}; use Limit::Max"),
                        ));
                    }
                    _ => {}
                }
            }
        }
        for huge in &self.hugetlb_max {
            if !huge.page_size.is_power_of_two() || huge.page_size <= page {
                return Err(Error::invalid(
                    Knob::HugetlbMax.name(),
                    format!("{} is no size of a huge page", huge.page_size),
                ));
            }
            bytes(Knob::HugetlbMax, huge.used, 0)?;
            bytes(Knob::HugetlbReservedMax, huge.reserved, 0)?;
        }
        for (resource, _) in &self.misc_max {
            if resource.is_empty() || !resource.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                return Err(Error::invalid(Knob::MiscMax.name(), format!("{resource:?} is no name of a resource")));
            }
        }
        Ok(())
    }
}

/// What has been written so far, to be taken back when a later write fails.
#[derive(Default)]
struct Change<'a> {
    undo: Vec<(&'a Part, Cow<'static, str>, String)>,
    done: Vec<Setting>,
}

impl<'a> Change<'a> {
    /// Writes a value and returns what the file holds then. `undo` makes of the old content what brings it back.
    fn write(
        &mut self,
        part: &'a Part,
        file: impl Into<Cow<'static, str>>,
        value: &str,
        undo: impl FnOnce(&str) -> String,
    ) -> Result<String> {
        let file = file.into();
        let fd = part.dir.open_file(&file, OFlags::RDWR).map_err(|error| without_file(part, &file, error))?;
        let mut buffer = Vec::with_capacity(64);
        let mut read = || {
            crate::dir::read_once(fd.as_fd(), &mut buffer).map_err(|error| part.dir.error("read", &file, error))?;
            Ok::<_, Error>(String::from_utf8_lossy(&buffer).trim_end().to_owned())
        };
        let old = read()?;
        if old == value {
            return Ok(old);
        }
        part.dir.write_to(fd.as_fd(), &file, value)?;
        let new = read();
        self.undo.push((part, file, undo(&old)));
        new
    }

    /// The same, for files whose content can be written back as it is.
    fn put(&mut self, part: &'a Part, file: impl Into<Cow<'static, str>>, value: &str) -> Result<String> {
        // A write of nothing is no write; an empty line is one.
        self.write(part, file, value, |old| if old.is_empty() { "\n".to_owned() } else { old.to_owned() })
    }

    fn record(&mut self, knob: Knob, requested: Value, enforced: Value, by: &'static str, fits: bool) -> Result<()> {
        if !fits {
            return Err(Error::unsupported(
                format!("{} {requested:?}", knob.name()),
                format!("a kernel that keeps the value; {by} reads back {enforced:?}"),
            ));
        }
        self.done.push(Setting { knob, requested, enforced, by });
        Ok(())
    }

    fn roll_back(self, cause: Error) -> Error {
        let mut failed = Vec::new();
        for (part, file, old) in self.undo.into_iter().rev() {
            match part.dir.write(&file, &old) {
                Err(error) if error.is(Errno::NODEV) || error.is(Errno::NOENT) => {}
                Err(error) => failed.push(error),
                Ok(()) => {}
            }
        }
        if failed.is_empty() { cause } else { Error::RollBack { cause: Box::new(cause), failed } }
    }
}

fn parse<T>(part: &Part, file: &str, text: &str, expected: &'static str, value: Option<T>) -> Result<T> {
    value.ok_or_else(|| Error::Parse { path: part.dir.path().join(file), line: 1, expected, found: text.to_owned() })
}

const NUMBER: &str = "a number or `max`";

/// A byte limit of either version.
fn bytes_limit(part: &Part, file: &str, text: &str) -> Result<Limit> {
    let value = match part.version {
        Version::V1 => stat::number(text.as_bytes()).map(convert::from_v1_bytes),
        Version::V2 => text.trim().parse().ok(),
    };
    parse(part, file, text, NUMBER, value)
}

/// Whether a byte limit is what was asked for, rounded down to `unit`.
fn rounded(requested: Limit, enforced: Limit, unit: u64) -> bool {
    match (requested, enforced) {
        (Limit::Max, Limit::Max) => true,
        (Limit::Value(asked), Limit::Value(got)) => got <= asked && asked - got < unit,
        _ => false,
    }
}

impl Cgroup {
    /// Sets limits, all of them or none: when one is refused, those before it are put back.
    ///
    /// Values are checked first, written through the held directory, and read back; what the kernel keeps may differ from
    /// what was asked for by rounding down to a page, and by nothing else. The group may be running.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a value that cannot work; [`Error::Unsupported`] when the group was made without the
    /// controller or the kernel lacks the knob; [`Error::File`] when the kernel refuses; [`Error::RollBack`] when putting
    /// back fails too.
    pub fn set(&self, limits: &Limits) -> Result<Applied> {
        limits.check()?;
        let mut change = Change::default();
        match self.write_limits(limits, &mut change) {
            Ok(()) => Ok(Applied { settings: change.done }),
            Err(cause) => Err(change.roll_back(cause)),
        }
    }

    fn write_limits<'a>(&'a self, limits: &Limits, change: &mut Change<'a>) -> Result<()> {
        if [limits.memory_max, limits.memory_swap_max].iter().any(Option::is_some) {
            let part = self.needs(Knob::MemoryMax)?;
            match part.version {
                Version::V1 => memory_v1(part, limits, change)?,
                Version::V2 => memory_v2(part, limits, change)?,
            }
        }
        for (knob, limit) in [
            (Knob::MemoryHigh, limits.memory_high),
            (Knob::MemoryLow, limits.memory_low),
            (Knob::MemoryMin, limits.memory_min),
        ] {
            if let Some(limit) = limit {
                let part = self.needs(knob)?;
                let (file, by) = has(part, knob)?;
                put_bytes(part, knob, file, by, limit, change)?;
            }
        }
        if let Some(flag) = limits.memory_oom_group {
            self.flag(Knob::MemoryOomGroup, flag, change)?;
        }
        if let Some(limit) = limits.pids_max {
            self.number(Knob::PidsMax, limit, change)?;
        }
        for (knob, limit) in [(Knob::DescendantsMax, limits.descendants_max), (Knob::DepthMax, limits.depth_max)] {
            if let Some(limit) = limit {
                self.number(knob, limit, change)?;
            }
        }
        self.cpu(limits, change)?;
        for (knob, list) in [(Knob::CpusetCpus, &limits.cpuset_cpus), (Knob::CpusetMems, &limits.cpuset_mems)] {
            if let Some(list) = list {
                let part = self.needs(knob)?;
                let (file, by) = has(part, knob)?;
                let text = if list.is_empty() { "\n".to_owned() } else { list.to_string() };
                let mut read = change.put(part, file, &text)?;
                // v2 keeps any list, and runs the group on what the groups above leave of it.
                if let (Version::V2, false) = (part.version, list.is_empty()) {
                    read = part.dir.read(&format!("{file}.effective"))?;
                }
                let enforced: CpuList = parse(part, file, &read, "a list of numbers", read.parse().ok())?;
                if enforced != *list {
                    let needs =
                        format!("numbers that are online and that no group above lacks; here that is {enforced}");
                    return Err(Error::unsupported(format!("{} {list}", knob.name()), needs));
                }
                change.record(knob, Value::List(list.clone()), Value::List(enforced), by, true)?;
            }
        }
        for io in &limits.io_max {
            self.io(io, change)?;
        }
        if let Some(weight) = limits.io_weight {
            self.io_weight(weight, change)?;
        }
        for huge in &limits.hugetlb_max {
            self.hugetlb(*huge, change)?;
        }
        for (resource, limit) in &limits.misc_max {
            let part = self.needs(Knob::MiscMax)?;
            let (file, by) = has(part, Knob::MiscMax)?;
            let read = change.write(part, file, &format!("{resource} {limit}"), |old| {
                let before = misc_of(old, resource).unwrap_or(Limit::Max);
                format!("{resource} {before}")
            })?;
            let got = parse(part, file, &read, "RESOURCE LIMIT", misc_of(&read, resource))?;
            let value = |limit| Value::Misc { resource: resource.clone(), limit };
            change.record(Knob::MiscMax, value(*limit), value(got), by, got == *limit)?;
        }
        Ok(())
    }

    /// The directory that has the knob.
    fn needs(&self, knob: Knob) -> Result<&Part> {
        let part = match knob.controller() {
            Some(controller) => self.part(controller),
            None => self.v2(),
        };
        part.ok_or_else(|| {
            let controller = knob.controller().map_or("v2 part", |controller| controller.name(Version::V2));
            Error::unsupported(knob.name(), format!("a group that was made with the {controller} controller"))
        })
    }

    fn flag<'a>(&'a self, knob: Knob, flag: bool, change: &mut Change<'a>) -> Result<()> {
        let part = self.needs(knob)?;
        let (file, by) = has(part, knob)?;
        let read = change.put(part, file, if flag { "1" } else { "0" })?;
        let got = parse(part, file, &read, "0 or 1", stat::number(read.as_bytes()))? == 1;
        change.record(knob, Value::Flag(flag), Value::Flag(got), by, got == flag)
    }

    fn number<'a>(&'a self, knob: Knob, limit: Limit, change: &mut Change<'a>) -> Result<()> {
        let part = self.needs(knob)?;
        let (file, by) = has(part, knob)?;
        let read = change.put(part, file, &limit.to_string())?;
        let got: Limit = parse(part, file, &read, NUMBER, read.parse().ok())?;
        change.record(knob, Value::Limit(limit), Value::Limit(got), by, got == limit)
    }

    fn cpu<'a>(&'a self, limits: &Limits, change: &mut Change<'a>) -> Result<()> {
        // A weight cannot be written while the group is idle, nor a burst above the quota.
        if let Some(flag) = limits.cpu_idle {
            self.flag(Knob::CpuIdle, flag, change)?;
        }
        if let Some(weight) = limits.cpu_weight {
            let part = self.needs(Knob::CpuWeight)?;
            let (file, by) = has(part, Knob::CpuWeight)?;
            let text = match part.version {
                Version::V1 => convert::shares_from_weight(weight).to_string(),
                Version::V2 => weight.to_string(),
            };
            let read = change.put(part, file, &text)?;
            let got = parse(part, file, &read, "a number", weight_of(part.version, &read))?;
            // Below 10 several weights share a number of shares.
            let fits = got == weight || (part.version == Version::V1 && got.abs_diff(weight) <= 1);
            change.record(Knob::CpuWeight, Value::Weight(weight), Value::Weight(got), by, fits)?;
        }
        if let Some(max) = limits.cpu_max {
            let part = self.needs(Knob::CpuMax)?;
            let (_, by) = has(part, Knob::CpuMax)?;
            let got = match part.version {
                Version::V2 => {
                    let read = change.put(part, "cpu.max", &format!("{} {}", max.quota, max.period.as_micros()))?;
                    parse(part, "cpu.max", &read, "QUOTA PERIOD", cpu_max_v2(&read))?
                }
                Version::V1 => cpu_max_v1(part, max, change)?,
            };
            change.record(Knob::CpuMax, Value::CpuMax(max), Value::CpuMax(got), by, got == max)?;
        }
        if let Some(burst) = limits.cpu_burst {
            let part = self.needs(Knob::CpuBurst)?;
            let (file, by) = has(part, Knob::CpuBurst)?;
            let read = change.put(part, file, &burst.as_micros().to_string())?;
            let micros = parse(part, file, &read, "a number of µs", stat::number(read.as_bytes()))?;
            let got = Duration::from_micros(micros);
            change.record(Knob::CpuBurst, Value::Time(burst), Value::Time(got), by, got == burst)?;
        }
        Ok(())
    }

    fn io<'a>(&'a self, io: &IoMax, change: &mut Change<'a>) -> Result<()> {
        let part = self.needs(Knob::IoMax)?;
        let by = Knob::IoMax.mechanism(part.version).unwrap_or_default();
        let (device, mut asked, mut got) = (io.device, *io, IoMax::new(io.device));
        match part.version {
            Version::V2 => {
                has(part, Knob::IoMax)?;
                let mut text = device.to_string();
                for (name, _, limit) in asked.rates() {
                    if let Some(limit) = limit {
                        text.push_str(&format!(" {name}={limit}"));
                    }
                }
                let read = change.write(part, "io.max", &text, |old| {
                    let mut undo = device.to_string();
                    for (name, _, limit) in io_max_v2(old, device).rates() {
                        undo.push_str(&format!(" {name}={}", limit.unwrap_or(Limit::Max)));
                    }
                    undo
                })?;
                got = io_max_v2(&read, device);
            }
            Version::V1 => {
                for ((_, file, asked), (_, _, got)) in asked.rates().into_iter().zip(got.rates()) {
                    let Some(limit) = *asked else { continue };
                    if !part.dir.has(file) {
                        return Err(lacking(part, Knob::IoMax));
                    }
                    let rate = limit.value().unwrap_or(0);
                    let read = change.write(part, file, &format!("{device} {rate}"), |old| {
                        format!("{device} {}", io_rate_v1(old, device).value().unwrap_or(0))
                    })?;
                    *got = Some(io_rate_v1(&read, device));
                }
            }
        }
        let fits = asked
            .rates()
            .iter()
            .zip(got.rates())
            .all(|((_, _, asked), (_, _, got))| asked.is_none() || **asked == *got);
        change.record(Knob::IoMax, Value::Io(*io), Value::Io(got), by, fits)
    }

    fn io_weight<'a>(&'a self, weight: u32, change: &mut Change<'a>) -> Result<()> {
        let part = self.needs(Knob::IoWeight)?;
        let (file, bfq, by) = io_weight_file(part).ok_or_else(|| {
            Error::unsupported(
                Knob::IoWeight.name(),
                "the bfq scheduler, or on cgroup v2 the io.cost model, in the kernel",
            )
        })?;
        let text = if bfq { bfq_from_weight(weight) } else { weight };
        let read = change.write(part, file, &text.to_string(), |old| io_weight_of(old).unwrap_or(100).to_string())?;
        let kept = parse(part, file, &read, "a weight", io_weight_of(&read))?;
        let got = if bfq { weight_from_bfq(kept) } else { kept };
        change.record(Knob::IoWeight, Value::Weight(weight), Value::Weight(got), by, kept == text)
    }

    fn hugetlb<'a>(&'a self, huge: HugetlbMax, change: &mut Change<'a>) -> Result<()> {
        for (knob, limit, v2) in
            [(Knob::HugetlbMax, huge.used, "max"), (Knob::HugetlbReservedMax, huge.reserved, "rsvd.max")]
        {
            let Some(limit) = limit else { continue };
            let part = self.needs(knob)?;
            let by = knob.mechanism(part.version).unwrap_or_default();
            let file = hugetlb_file(part, huge, v2);
            if !part.dir.has(&file) {
                return Err(Error::unsupported(
                    format!("{} of {} pages", knob.name(), huge.label()),
                    format!("huge pages of that size, and Linux {}", knob.since()),
                ));
            }
            let read = change.put(part, file.clone(), &bytes_text(part, limit))?;
            let got = huge_limit(part, &file, &read, huge.page_size)?;
            let value = |limit| Value::Hugetlb { page_size: huge.page_size, limit };
            change.record(knob, value(limit), value(got), by, rounded(limit, got, huge.page_size))?;
        }
        Ok(())
    }

    /// Whether swap can be limited in this group; `None` when it was made without the memory controller.
    ///
    /// # Errors
    /// [`Error::File`] when `/proc/swaps` cannot be read.
    pub fn swap_control(&self) -> Result<Option<SwapControl>> {
        let Some(part) = self.part(Controller::Memory) else { return Ok(None) };
        let file = match part.version {
            Version::V1 => "memory.memsw.limit_in_bytes",
            Version::V2 => "memory.swap.max",
        };
        Ok(Some(match part.dir.has(file) {
            true => SwapControl::Accounted,
            false if host_has_swap()? => SwapControl::Unaccounted,
            false => SwapControl::NoneOnHost,
        }))
    }

    /// The limits as the kernel has them now, of this group alone: an ancestor's may be lower, and acts.
    ///
    /// # Errors
    /// [`Error::File`] when a file cannot be read, [`Error::Parse`] when it holds something unknown.
    pub fn limits(&self) -> Result<Limits> {
        let mut limits = Limits::default();
        let text = |knob: Knob| -> Result<Option<(&Part, &'static str, String)>> {
            let Ok(part) = self.needs(knob) else { return Ok(None) };
            let Some(file) = knob.file(part.version) else { return Ok(None) };
            Ok(part.dir.read_optional(file)?.map(|text| (part, file, text.trim_end().to_owned())))
        };
        let bytes = |knob: Knob| match text(knob)? {
            Some((part, file, text)) => bytes_limit(part, file, &text).map(Some),
            None => Ok(None),
        };
        limits.memory_max = bytes(Knob::MemoryMax)?;
        limits.memory_swap_max = match (bytes(Knob::MemorySwapMax)?, self.part(Controller::Memory), limits.memory_max) {
            (Some(sum), Some(part), Some(memory)) if part.version == Version::V1 => {
                Some(convert::swap_from_v1(memory, sum))
            }
            (other, ..) => other,
        };
        limits.memory_high = bytes(Knob::MemoryHigh)?;
        limits.memory_low = bytes(Knob::MemoryLow)?;
        limits.memory_min = bytes(Knob::MemoryMin)?;
        let number = |knob: Knob| match text(knob)? {
            Some((part, file, text)) => parse(part, file, &text, NUMBER, text.parse::<Limit>().ok()).map(Some),
            None => Ok(None),
        };
        limits.pids_max = number(Knob::PidsMax)?;
        limits.descendants_max = number(Knob::DescendantsMax)?;
        limits.depth_max = number(Knob::DepthMax)?;
        let flag = |knob: Knob| match text(knob)? {
            Some((part, file, text)) => {
                parse(part, file, &text, "0 or 1", stat::number(text.as_bytes())).map(|n| Some(n == 1))
            }
            None => Ok(None),
        };
        limits.memory_oom_group = flag(Knob::MemoryOomGroup)?;
        limits.cpu_idle = flag(Knob::CpuIdle)?;
        if let Some((part, file, text)) = text(Knob::CpuMax)? {
            limits.cpu_max = Some(match part.version {
                Version::V2 => parse(part, file, &text, "QUOTA PERIOD", cpu_max_v2(&text))?,
                Version::V1 => read_cpu_max_v1(part, &text)?,
            });
        }
        if let Some((part, file, text)) = text(Knob::CpuBurst)? {
            let micros = parse(part, file, &text, "a number of µs", stat::number(text.as_bytes()))?;
            limits.cpu_burst = Some(Duration::from_micros(micros));
        }
        if let Some((part, file, text)) = text(Knob::CpuWeight)? {
            limits.cpu_weight = Some(parse(part, file, &text, "a number", weight_of(part.version, &text))?);
        }
        let list = |knob: Knob| match text(knob)? {
            Some((part, file, text)) => {
                parse(part, file, &text, "a list of numbers", text.parse::<CpuList>().ok()).map(Some)
            }
            None => Ok(None),
        };
        limits.cpuset_cpus = list(Knob::CpusetCpus)?;
        limits.cpuset_mems = list(Knob::CpusetMems)?;
        if let Some(part) = self.part(Controller::Io) {
            limits.io_max = read_io_max(part)?;
            if let Some((file, bfq, _)) = io_weight_file(part) {
                let text = part.dir.read(file)?;
                let kept = parse(part, file, &text, "a weight", io_weight_of(&text))?;
                limits.io_weight = Some(if bfq { weight_from_bfq(kept) } else { kept });
            }
        }
        if let Some(part) = self.part(Controller::Hugetlb) {
            limits.hugetlb_max = read_hugetlb(part)?;
        }
        if let Some((_, _, text)) = text(Knob::MiscMax)? {
            let pair = |line: &str| {
                let (resource, limit) = line.split_once(' ')?;
                Some((resource.to_owned(), limit.parse().ok()?))
            };
            limits.misc_max = text.lines().filter_map(pair).collect();
        }
        Ok(limits)
    }
}

/// Whether the host has any swap space at present.
///
/// # Errors
/// [`Error::File`] when `/proc/swaps` cannot be read; a kernel without swap has no such file, which is no error.
pub fn host_has_swap() -> Result<bool> {
    match std::fs::read_to_string("/proc/swaps") {
        Ok(text) => Ok(text.lines().count() > 1),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::file("read", "/proc/swaps".into(), error)),
    }
}

/// The file and the mechanism, if this version has them; whether this kernel does shows when the file is opened.
fn has(part: &Part, knob: Knob) -> Result<(&'static str, &'static str)> {
    match (knob.file(part.version), knob.mechanism(part.version)) {
        (Some(file), Some(by)) => Ok((file, by)),
        _ => Err(lacking(part, knob)),
    }
}

/// A file that is missing from a group that is there means a kernel without the knob.
fn without_file(part: &Part, file: &str, error: Error) -> Error {
    match Knob::ALL.iter().find(|knob| knob.file(part.version) == Some(file)) {
        Some(&knob) if error.is(Errno::NOENT) && part.dir.has("cgroup.procs") => lacking(part, knob),
        _ => error,
    }
}

fn lacking(part: &Part, knob: Knob) -> Error {
    let needs = match (part.version, knob.mechanism(Version::V1)) {
        (Version::V1, None) => format!("cgroup v2 (Linux {})", knob.since()),
        _ => format!("a kernel that is built with it, Linux {} or newer", knob.since()),
    };
    Error::unsupported(format!("{} on {}", knob.name(), part.version), needs)
}

fn bytes_text(part: &Part, limit: Limit) -> String {
    match part.version {
        Version::V1 => convert::to_v1_bytes(limit),
        Version::V2 => limit.to_string(),
    }
}

fn put_bytes<'a>(
    part: &'a Part,
    knob: Knob,
    file: &'static str,
    by: &'static str,
    limit: Limit,
    change: &mut Change<'a>,
) -> Result<()> {
    let read = change.put(part, file, &bytes_text(part, limit))?;
    let got = bytes_limit(part, file, &read)?;
    change.record(knob, Value::Limit(limit), Value::Limit(got), by, rounded(limit, got, convert::page_size()))
}

/// Swap that the kernel does not count: fine when none is wanted and none is there.
fn unaccounted_swap(swap: Limit, change: &mut Change<'_>) -> Result<()> {
    let value = Value::Limit(swap);
    match swap {
        Limit::Max => change.record(Knob::MemorySwapMax, value.clone(), value, "no swap accounting", true),
        Limit::Value(0) if !host_has_swap()? => change.record(Knob::MemorySwapMax, value.clone(), value, NO_SWAP, true),
        Limit::Value(_) => Err(Error::unsupported(
            Knob::MemorySwapMax.name(),
            "swap accounting (CONFIG_SWAP; boot option swapaccount=1 on old kernels)",
        )),
    }
}

fn memory_v2<'a>(part: &'a Part, limits: &Limits, change: &mut Change<'a>) -> Result<()> {
    // Swap first: a lower memory limit must not push into swap what may not be there.
    if let Some(swap) = limits.memory_swap_max {
        let (file, by) = has(part, Knob::MemorySwapMax)?;
        if part.dir.has(file) {
            put_bytes(part, Knob::MemorySwapMax, file, by, swap, change)?;
        } else {
            unaccounted_swap(swap, change)?;
        }
    }
    if let Some(memory) = limits.memory_max {
        let (file, by) = has(part, Knob::MemoryMax)?;
        put_bytes(part, Knob::MemoryMax, file, by, memory, change)?;
    }
    Ok(())
}

/// v1 holds `limit_in_bytes ≤ memsw.limit_in_bytes` at every moment, so the order of the two writes depends on the way.
fn memory_v1<'a>(part: &'a Part, limits: &Limits, change: &mut Change<'a>) -> Result<()> {
    const MEMORY: &str = "memory.limit_in_bytes";
    const SUM: &str = "memory.memsw.limit_in_bytes";
    let page = convert::page_size();
    let by = |knob: Knob| knob.mechanism(Version::V1).unwrap_or_default();
    let old_memory = bytes_limit(part, MEMORY, &part.dir.read(MEMORY)?)?;
    let memory = limits.memory_max.unwrap_or(old_memory);
    let old_sum = match part.dir.read_optional(SUM)? {
        Some(text) => bytes_limit(part, SUM, &text)?,
        None => {
            if let Some(swap) = limits.memory_swap_max {
                unaccounted_swap(swap, change)?;
            }
            if let Some(memory) = limits.memory_max {
                put_bytes(part, Knob::MemoryMax, MEMORY, by(Knob::MemoryMax), memory, change)?;
            }
            return Ok(());
        }
    };
    // Without a new swap limit the old one stays what it was.
    let swap = limits.memory_swap_max.unwrap_or_else(|| convert::swap_from_v1(old_memory, old_sum));
    let floor = |limit| match limit {
        Limit::Value(bytes) => Limit::Value(bytes / page * page),
        Limit::Max => Limit::Max,
    };
    let sum = convert::together_for_v1(floor(memory), swap).ok_or_else(|| {
        Error::invalid(
            Knob::MemorySwapMax.name(),
            "cgroup v1 limits memory and swap together: memory_max must be limited too",
        )
    })?;
    let above = |a: Limit, b: Limit| match (a, b) {
        (_, Limit::Max) => false,
        (Limit::Max, Limit::Value(_)) => true,
        (Limit::Value(a), Limit::Value(b)) => a > b,
    };
    let mut got = (old_memory, old_sum);
    for sum_now in if above(memory, old_sum) { [true, false] } else { [false, true] } {
        if sum_now {
            let read = change.put(part, SUM, &convert::to_v1_bytes(sum))?;
            got.1 = bytes_limit(part, SUM, &read)?;
        } else if limits.memory_max.is_some() {
            let read = change.put(part, MEMORY, &convert::to_v1_bytes(memory))?;
            got.0 = bytes_limit(part, MEMORY, &read)?;
        }
    }
    if let Some(asked) = limits.memory_swap_max {
        let swap = convert::swap_from_v1(got.0, got.1);
        change.record(
            Knob::MemorySwapMax,
            Value::Limit(asked),
            Value::Limit(swap),
            by(Knob::MemorySwapMax),
            rounded(asked, swap, page),
        )?;
    }
    if let Some(asked) = limits.memory_max {
        change.record(
            Knob::MemoryMax,
            Value::Limit(asked),
            Value::Limit(got.0),
            by(Knob::MemoryMax),
            rounded(asked, got.0, page),
        )?;
    }
    Ok(())
}

fn cpu_max_v2(text: &str) -> Option<CpuMax> {
    let (quota, period) = text.trim().split_once(' ')?;
    Some(CpuMax::new(quota.parse().ok()?).with_period(Duration::from_micros(period.parse().ok()?)))
}

const QUOTA: &str = "cpu.cfs_quota_us";
const PERIOD: &str = "cpu.cfs_period_us";

fn quota_v1(text: &str) -> Option<Limit> {
    match text.trim() {
        "-1" => Some(Limit::Max),
        text => stat::number(text.as_bytes()).map(Limit::Value),
    }
}

fn read_cpu_max_v1(part: &Part, quota: &str) -> Result<CpuMax> {
    let period = part.dir.read(PERIOD)?;
    let quota = parse(part, QUOTA, quota, "a number of µs or -1", quota_v1(quota))?;
    let micros = parse(part, PERIOD, &period, "a number of µs", stat::number(period.as_bytes()))?;
    Ok(CpuMax::new(quota).with_period(Duration::from_micros(micros)))
}

/// Quota and period are two files, and the share that they make must not exceed the parent's in between: a longer period
/// comes first, a shorter one last.
fn cpu_max_v1<'a>(part: &'a Part, max: CpuMax, change: &mut Change<'a>) -> Result<CpuMax> {
    let missing = |error: Error| if error.is(Errno::NOENT) { lacking(part, Knob::CpuMax) } else { error };
    let period = part.dir.read(PERIOD).map_err(missing)?;
    let old = parse(part, PERIOD, &period, "a number of µs", stat::number(period.as_bytes()))?;
    let wanted = max.period.as_micros();
    let (mut quota_text, mut micros) = (String::new(), old);
    for period_now in if wanted > u128::from(old) { [true, false] } else { [false, true] } {
        if !period_now {
            let text = max.quota.value().map_or_else(|| "-1".to_owned(), |quota| quota.to_string());
            quota_text = change.put(part, QUOTA, &text)?;
        } else if wanted != u128::from(old) {
            let read = change.put(part, PERIOD, &wanted.to_string())?;
            micros = parse(part, PERIOD, &read, "a number of µs", stat::number(read.as_bytes()))?;
        }
    }
    let quota = parse(part, QUOTA, &quota_text, "a number of µs or -1", quota_v1(&quota_text))?;
    Ok(CpuMax::new(quota).with_period(Duration::from_micros(micros)))
}

fn weight_of(version: Version, text: &str) -> Option<u32> {
    let number = stat::number(text.as_bytes())?;
    match version {
        Version::V1 => Some(convert::weight_from_shares(number)),
        Version::V2 => u32::try_from(number).ok(),
    }
}

/// The rates of one device in `io.max`; a device without a line has none.
fn io_max_v2(text: &str, device: Device) -> IoMax {
    let mut io = IoMax::new(device);
    for (.., limit) in io.rates() {
        *limit = Some(Limit::Max);
    }
    for line in stat::lines(text.as_bytes()) {
        let Some((first, pairs)) = stat::nested(line) else { continue };
        if std::str::from_utf8(first).ok().and_then(|first| first.parse().ok()) != Some(device) {
            continue;
        }
        for (key, value) in pairs {
            for (name, _, limit) in io.rates() {
                if name.as_bytes() == key {
                    *limit = std::str::from_utf8(value).ok().and_then(|value| value.parse().ok());
                }
            }
        }
    }
    io
}

/// The rate of one device in a `blkio.throttle.*_device` file.
fn io_rate_v1(text: &str, device: Device) -> Limit {
    let rate = text.lines().find_map(|line| {
        let (first, rate) = line.split_once(' ')?;
        (first.parse() == Ok(device)).then(|| stat::number(rate.as_bytes()))?
    });
    rate.map_or(Limit::Max, Limit::Value)
}

fn read_io_max(part: &Part) -> Result<Vec<IoMax>> {
    let mut devices: Vec<Device> = Vec::new();
    let first_words = |text: &str, devices: &mut Vec<Device>| {
        devices.extend(text.lines().filter_map(|line| line.split(' ').next()?.parse::<Device>().ok()));
    };
    if part.version == Version::V2 {
        let text = part.dir.read_optional("io.max")?.unwrap_or_default();
        first_words(&text, &mut devices);
        return Ok(devices.into_iter().map(|device| io_max_v2(&text, device)).collect());
    }
    let mut texts = Vec::new();
    for (_, file, _) in IoMax::new(Device { major: 0, minor: 0 }).rates() {
        let text = part.dir.read_optional(file)?.unwrap_or_default();
        first_words(&text, &mut devices);
        texts.push(text);
    }
    devices.sort_unstable();
    devices.dedup();
    let read = |device| {
        let mut io = IoMax::new(device);
        for ((.., limit), text) in io.rates().into_iter().zip(&texts) {
            *limit = Some(io_rate_v1(text, device));
        }
        io
    };
    Ok(devices.into_iter().map(read).collect())
}

/// The file of the weight, whether it speaks bfq's scale, and its name for reports.
fn io_weight_file(part: &Part) -> Option<(&'static str, bool, &'static str)> {
    let files: [(&str, bool, &str); 2] = match part.version {
        Version::V2 => {
            [("io.weight", false, "cgroup v2 io.weight"), ("io.bfq.weight", true, "cgroup v2 io.bfq.weight")]
        }
        Version::V1 => {
            [("blkio.bfq.weight", true, "cgroup v1 blkio.bfq.weight"), ("blkio.weight", true, "cgroup v1 blkio.weight")]
        }
    };
    files.into_iter().find(|(file, ..)| part.dir.has(file))
}

/// `default 100`, or the number alone, in the first line.
fn io_weight_of(text: &str) -> Option<u32> {
    text.lines().next()?.split(' ').next_back()?.parse().ok()
}

/// bfq's weights go to 1000 only: up to the default they are the same, above it they are scaled.
fn bfq_from_weight(weight: u32) -> u32 {
    if weight <= 100 { weight } else { 100 + (weight - 100) * 900 / 9_900 }
}

fn weight_from_bfq(weight: u32) -> u32 {
    if weight <= 100 { weight } else { 100 + (weight.min(1_000) - 100) * 9_900 / 900 }
}

fn hugetlb_file(part: &Part, huge: HugetlbMax, v2: &str) -> String {
    match part.version {
        Version::V2 => format!("hugetlb.{}.{v2}", huge.label()),
        Version::V1 => format!("hugetlb.{}.{}", huge.label(), v2.replace("max", "limit_in_bytes")),
    }
}

/// v1 shows "no limit" as a number of *huge* pages in bytes.
fn huge_limit(part: &Part, file: &str, text: &str, page: u64) -> Result<Limit> {
    Ok(match bytes_limit(part, file, text)? {
        Limit::Value(bytes) if bytes > convert::most_bytes().saturating_sub(page) => Limit::Max,
        other => other,
    })
}

fn read_hugetlb(part: &Part) -> Result<Vec<HugetlbMax>> {
    let mut out = Vec::new();
    // Sizes that any architecture has, 64 KiB to 16 GiB.
    for shift in 16..=34 {
        let mut huge = HugetlbMax::new(1 << shift);
        for (v2, limit) in [("max", &mut huge.used), ("rsvd.max", &mut huge.reserved)] {
            let file = hugetlb_file(part, HugetlbMax::new(1 << shift), v2);
            if let Some(text) = part.dir.read_optional(&file)? {
                *limit = Some(huge_limit(part, &file, text.trim_end(), 1 << shift)?);
            }
        }
        if huge.used.is_some() {
            out.push(huge);
        }
    }
    Ok(out)
}

fn misc_of(text: &str, resource: &str) -> Option<Limit> {
    text.lines().find_map(|line| line.split_once(' ').filter(|(name, _)| *name == resource)?.1.trim().parse().ok())
}
