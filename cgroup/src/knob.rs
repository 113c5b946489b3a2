//! What can be set on a group, one word for both versions, and the file behind each word.

use crate::hierarchy::{Controller, Version};

/// Something that can be set on a group. The table in the crate's documentation says what each means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Knob {
    /// Memory, in bytes.
    MemoryMax,
    /// Swap, in bytes.
    MemorySwapMax,
    /// Memory beyond which the group is slowed down, in bytes.
    MemoryHigh,
    /// Memory that is reclaimed last, in bytes.
    MemoryLow,
    /// Memory that is never reclaimed, in bytes.
    MemoryMin,
    /// Whether running out of memory kills the whole group.
    MemoryOomGroup,
    /// Processes and threads.
    PidsMax,
    /// CPU time per period.
    CpuMax,
    /// CPU time that may be saved up.
    CpuBurst,
    /// Share of CPU time against other groups.
    CpuWeight,
    /// Whether the group runs only when nothing else wants to.
    CpuIdle,
    /// CPUs.
    CpusetCpus,
    /// Memory nodes.
    CpusetMems,
    /// Bytes and operations per second on a block device.
    IoMax,
    /// Share of a block device against other groups.
    IoWeight,
    /// Huge pages in use, in bytes.
    HugetlbMax,
    /// Huge pages reserved, in bytes.
    HugetlbReservedMax,
    /// A scalar resource.
    MiscMax,
    /// Groups below this one.
    DescendantsMax,
    /// Levels of groups below this one.
    DepthMax,
}

impl Knob {
    /// All of them.
    pub const ALL: &'static [Self] = &[
        Self::MemoryMax,
        Self::MemorySwapMax,
        Self::MemoryHigh,
        Self::MemoryLow,
        Self::MemoryMin,
        Self::MemoryOomGroup,
        Self::PidsMax,
        Self::CpuMax,
        Self::CpuBurst,
        Self::CpuWeight,
        Self::CpuIdle,
        Self::CpusetCpus,
        Self::CpusetMems,
        Self::IoMax,
        Self::IoWeight,
        Self::HugetlbMax,
        Self::HugetlbReservedMax,
        Self::MiscMax,
        Self::DescendantsMax,
        Self::DepthMax,
    ];

    /// The controller it belongs to; `None` for what every v2 group can do.
    #[must_use]
    pub const fn controller(self) -> Option<Controller> {
        Some(match self {
            Self::MemoryMax
            | Self::MemorySwapMax
            | Self::MemoryHigh
            | Self::MemoryLow
            | Self::MemoryMin
            | Self::MemoryOomGroup => Controller::Memory,
            Self::PidsMax => Controller::Pids,
            Self::CpuMax | Self::CpuBurst | Self::CpuWeight | Self::CpuIdle => Controller::Cpu,
            Self::CpusetCpus | Self::CpusetMems => Controller::Cpuset,
            Self::IoMax | Self::IoWeight => Controller::Io,
            Self::HugetlbMax | Self::HugetlbReservedMax => Controller::Hugetlb,
            Self::MiscMax => Controller::Misc,
            Self::DescendantsMax | Self::DepthMax => return None,
        })
    }

    /// The mechanism in words for reports, `cgroup v2 memory.max`; `None` where a version has none.
    #[must_use]
    pub const fn mechanism(self, version: Version) -> Option<&'static str> {
        macro_rules! both {
            ($v1:literal, $v2:literal) => {
                match version {
                    Version::V1 => Some(concat!("cgroup v1 ", $v1)),
                    Version::V2 => Some(concat!("cgroup v2 ", $v2)),
                }
            };
            ($v2:literal) => {
                match version {
                    Version::V1 => None,
                    Version::V2 => Some(concat!("cgroup v2 ", $v2)),
                }
            };
        }
        match self {
            Self::MemoryMax => both!("memory.limit_in_bytes", "memory.max"),
            Self::MemorySwapMax => both!("memory.memsw.limit_in_bytes", "memory.swap.max"),
            Self::MemoryHigh => both!("memory.high"),
            Self::MemoryLow => both!("memory.soft_limit_in_bytes", "memory.low"),
            Self::MemoryMin => both!("memory.min"),
            Self::MemoryOomGroup => both!("memory.oom.group"),
            Self::PidsMax => both!("pids.max", "pids.max"),
            Self::CpuMax => both!("cpu.cfs_quota_us", "cpu.max"),
            Self::CpuBurst => both!("cpu.cfs_burst_us", "cpu.max.burst"),
            Self::CpuWeight => both!("cpu.shares", "cpu.weight"),
            Self::CpuIdle => both!("cpu.idle", "cpu.idle"),
            Self::CpusetCpus => both!("cpuset.cpus", "cpuset.cpus"),
            Self::CpusetMems => both!("cpuset.mems", "cpuset.mems"),
            Self::IoMax => both!("blkio.throttle", "io.max"),
            Self::IoWeight => both!("blkio.bfq.weight", "io.weight"),
            Self::HugetlbMax => both!("hugetlb.limit_in_bytes", "hugetlb.max"),
            Self::HugetlbReservedMax => both!("hugetlb.rsvd.limit_in_bytes", "hugetlb.rsvd.max"),
            Self::MiscMax => both!("misc.max", "misc.max"),
            Self::DescendantsMax => both!("cgroup.max.descendants"),
            Self::DepthMax => both!("cgroup.max.depth"),
        }
    }

    /// The file, where it is one of a fixed name.
    pub(crate) fn file(self, version: Version) -> Option<&'static str> {
        self.mechanism(version).and_then(|words| words.get("cgroup v2 ".len()..))
    }

    /// The oldest kernel that has it on v2, for messages.
    #[must_use]
    pub const fn since(self) -> &'static str {
        match self {
            Self::MemoryOomGroup => "4.19",
            Self::MemoryMin => "4.18",
            Self::CpuMax | Self::CpuWeight | Self::DescendantsMax | Self::DepthMax => "4.15",
            Self::CpusetCpus | Self::CpusetMems => "5.0",
            Self::CpuBurst => "5.14",
            Self::CpuIdle => "5.15",
            Self::HugetlbMax => "5.6",
            Self::HugetlbReservedMax => "5.7",
            Self::MiscMax => "5.13",
            _ => "4.5",
        }
    }

    /// The word for it in this crate: the name of the field of [`Limits`](crate::Limits).
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::MemoryMax => "memory_max",
            Self::MemorySwapMax => "memory_swap_max",
            Self::MemoryHigh => "memory_high",
            Self::MemoryLow => "memory_low",
            Self::MemoryMin => "memory_min",
            Self::MemoryOomGroup => "memory_oom_group",
            Self::PidsMax => "pids_max",
            Self::CpuMax => "cpu_max",
            Self::CpuBurst => "cpu_burst",
            Self::CpuWeight => "cpu_weight",
            Self::CpuIdle => "cpu_idle",
            Self::CpusetCpus => "cpuset_cpus",
            Self::CpusetMems => "cpuset_mems",
            Self::IoMax => "io_max",
            Self::IoWeight => "io_weight",
            Self::HugetlbMax => "hugetlb_max",
            Self::HugetlbReservedMax => "hugetlb_reserved_max",
            Self::MiscMax => "misc_max",
            Self::DescendantsMax => "descendants_max",
            Self::DepthMax => "depth_max",
        }
    }
}
