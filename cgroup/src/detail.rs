//! Statistics beyond [`Usage`](crate::Usage), for looking closer: what the memory is, which device, how many groups.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::dir::{Dir, read_whole};
use crate::group::Cgroup;
use crate::hierarchy::{Controller, Version};
use crate::knob::Knob;
use crate::limit::Device;
use crate::usage::IoUsage;
use crate::{Error, Result, stat};

/// What the memory of a group is used for, in bytes, groups below included. `None`: not told by this kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryStat {
    /// Memory of programs: heap, stacks, copied pages.
    pub anon: Option<u64>,
    /// Page cache, files in a tmpfs and shared memory included.
    pub file: Option<u64>,
    /// Files in a tmpfs and shared memory. They outlive the processes.
    pub shmem: Option<u64>,
    /// The kernel's own memory for the group. v2, Linux 5.18.
    pub kernel: Option<u64>,
    /// Memory that cannot be reclaimed, locked memory among it.
    pub unevictable: Option<u64>,
    /// Page faults.
    pub faults: Option<u64>,
    /// Page faults that had to read from a device.
    pub major_faults: Option<u64>,
    /// Every line of the kernel's, by the kernel's names, which differ between the versions.
    pub all: BTreeMap<String, u64>,
}

/// The groups below a group, as the kernel counts them. v2 part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Descendants {
    /// Those that exist.
    pub visible: u64,
    /// Those that were removed and that something is still charged to: page cache, a file in a tmpfs.
    pub dying: u64,
}

/// Huge pages of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct HugetlbUsage {
    /// Their size in bytes.
    pub page_size: u64,
    /// Bytes in use.
    pub used: u64,
    /// Bytes reserved. Linux 5.7.
    pub reserved: Option<u64>,
    /// How often the limit was hit.
    pub max_events: Option<u64>,
}

impl Cgroup {
    /// What the memory is used for; `None` for a group without the memory controller.
    ///
    /// # Errors
    /// [`Error::File`] when the file cannot be read.
    pub fn memory_stat(&self) -> Result<Option<MemoryStat>> {
        let Some(part) = self.part(Controller::Memory) else { return Ok(None) };
        let text = part.dir.read("memory.stat")?;
        Ok(Some(memory_stat(text.as_bytes(), part.version)))
    }

    /// Transfers per block device; empty for a group without the io controller.
    ///
    /// # Errors
    /// [`Error::File`] when a file cannot be read.
    pub fn io_stat(&self) -> Result<BTreeMap<Device, IoUsage>> {
        let mut devices = BTreeMap::new();
        let Some(part) = self.part(Controller::Io) else { return Ok(devices) };
        match part.version {
            Version::V2 => io_stat_v2(part.dir.read_optional("io.stat")?.unwrap_or_default().as_bytes(), &mut devices),
            Version::V1 => {
                for (file, bytes) in [
                    ("blkio.throttle.io_service_bytes_recursive", true),
                    ("blkio.throttle.io_serviced_recursive", false),
                ] {
                    io_stat_v1(part.dir.read_optional(file)?.unwrap_or_default().as_bytes(), bytes, &mut devices);
                }
            }
        }
        Ok(devices)
    }

    /// Huge pages per size; empty for a group without the hugetlb controller.
    ///
    /// # Errors
    /// [`Error::File`] when a file cannot be read.
    pub fn hugetlb_usage(&self) -> Result<Vec<HugetlbUsage>> {
        let mut out = Vec::new();
        let Some(part) = self.part(Controller::Hugetlb) else { return Ok(out) };
        for max in self.limits()?.hugetlb_max {
            let label = max.label();
            let (used, reserved, events) = match part.version {
                Version::V2 => ("current", "rsvd.current", "events"),
                Version::V1 => ("usage_in_bytes", "rsvd.usage_in_bytes", "failcnt"),
            };
            let read = |file: &str| part.dir.read_optional(&format!("hugetlb.{label}.{file}"));
            let number = |text: Option<String>| text.and_then(|text| stat::number(text.as_bytes()));
            let events = read(events)?;
            let max_events = match part.version {
                Version::V2 => events.and_then(|text| stat::value(text.as_bytes(), b"max")),
                Version::V1 => number(events),
            };
            let Some(used) = number(read(used)?) else { continue };
            out.push(HugetlbUsage { page_size: max.page_size, used, reserved: number(read(reserved)?), max_events });
        }
        Ok(out)
    }

    /// Scalar resources in use, by the kernel's names; empty for a group without the misc controller.
    ///
    /// # Errors
    /// [`Error::File`] when the file cannot be read.
    pub fn misc_usage(&self) -> Result<BTreeMap<String, u64>> {
        let Some(part) = self.part(Controller::Misc) else { return Ok(BTreeMap::new()) };
        Ok(map(part.dir.read_optional("misc.current")?.unwrap_or_default().as_bytes()))
    }

    /// How many groups are below this one; `None` without a v2 part.
    ///
    /// # Errors
    /// [`Error::File`] when the file cannot be read.
    pub fn descendants(&self) -> Result<Option<Descendants>> {
        let Some(part) = self.v2() else { return Ok(None) };
        let text = part.dir.read("cgroup.stat")?;
        let of = |key| stat::value(text.as_bytes(), key).unwrap_or(0);
        Ok(Some(Descendants { visible: of(b"nr_descendants"), dying: of(b"nr_dying_descendants") }))
    }

    /// Asks the kernel to take so many **bytes** of memory from the group: cache is dropped, the rest swapped out.
    ///
    /// Returns whether it found that much. On v1 everything is taken that can be, whatever `bytes` says.
    ///
    /// # Errors
    /// [`Error::Unsupported`] on v2 before Linux 5.19.
    pub fn reclaim(&self, bytes: u64) -> Result<bool> {
        let lacking = || Error::unsupported("reclaiming from a group", "the memory controller, and on v2 Linux 5.19");
        let part = self.part(Controller::Memory).ok_or_else(lacking)?;
        let written = match part.version {
            Version::V2 => part.dir.write("memory.reclaim", &bytes.to_string()),
            Version::V1 => part.dir.write("memory.force_empty", "0"),
        };
        match written {
            Ok(()) => Ok(true),
            Err(error) if error.is(Errno::AGAIN) || error.is(Errno::BUSY) => Ok(false),
            Err(error) if error.is(Errno::NOENT) => Err(lacking()),
            Err(error) => Err(error),
        }
    }

    /// A memory peak of one's own: [`PeakMeter::reset`] sets it back for this meter, and on v2 for no other reader.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a group without the memory controller, and before Linux 5.19 on v2.
    pub fn memory_peak_meter(&self) -> Result<PeakMeter> {
        let lacking =
            || Error::unsupported("the peak of a group's memory", "the memory controller, and on v2 Linux 5.19");
        let part = self.part(Controller::Memory).ok_or_else(lacking)?;
        let file = match part.version {
            Version::V2 => "memory.peak",
            Version::V1 => "memory.max_usage_in_bytes",
        };
        let open = match part.dir.open_file(file, OFlags::RDWR) {
            // Up to Linux 6.11 it can only be read.
            Err(error) if error.is(Errno::ACCESS) => part.dir.open_file(file, OFlags::RDONLY),
            other => other,
        };
        match open {
            Ok(fd) => Ok(PeakMeter { fd, dir: Arc::clone(&part.dir), file, version: part.version }),
            Err(error) if error.is(Errno::NOENT) => Err(lacking()),
            Err(error) => Err(error),
        }
    }

    /// The knobs that can be set on this group, with the mechanism of each: what the table in the crate's documentation
    /// comes to on this machine.
    pub fn knobs(&self) -> impl Iterator<Item = (Knob, &'static str)> {
        Knob::ALL.iter().filter_map(|&knob| {
            let part = match knob.controller() {
                Some(controller) => self.part(controller)?,
                None => self.v2()?,
            };
            let by = knob.mechanism(part.version)?;
            let there = match knob {
                Knob::IoMax if part.version == Version::V1 => part.dir.has("blkio.throttle.read_bps_device"),
                Knob::IoWeight => {
                    ["io.weight", "io.bfq.weight", "blkio.bfq.weight", "blkio.weight"].iter().any(|f| part.dir.has(f))
                }
                Knob::HugetlbMax | Knob::HugetlbReservedMax => true,
                other => other.file(part.version).is_some_and(|file| part.dir.has(file)),
            };
            there.then_some((knob, by))
        })
    }
}

/// The peak of a group's memory since a moment of one's choice; see [`Cgroup::memory_peak_meter`].
#[derive(Debug)]
pub struct PeakMeter {
    fd: OwnedFd,
    dir: Arc<Dir>,
    file: &'static str,
    version: Version,
}

impl PeakMeter {
    /// The most bytes since the last [`reset`](Self::reset), or since the group was made.
    ///
    /// # Errors
    /// [`Error::File`], `ENODEV` when the group has been removed.
    pub fn read(&self) -> Result<Option<u64>> {
        let mut buffer = Vec::with_capacity(32);
        read_whole(self.fd.as_fd(), &mut buffer).map_err(|error| self.dir.error("read", self.file, error))?;
        Ok(stat::number(&buffer))
    }

    /// Starts anew from what is used now. On v2 for this meter alone; on v1 the group's one peak is set back, for everybody.
    ///
    /// # Errors
    /// [`Error::Unsupported`] on v2 before Linux 6.12.
    pub fn reset(&self) -> Result<()> {
        let value = match self.version {
            Version::V1 => "0",
            Version::V2 => "reset",
        };
        match self.dir.write_to(self.fd.as_fd(), self.file, value) {
            Err(error) if error.is(Errno::INVAL) || error.is(Errno::BADF) => Err(Error::unsupported(
                "resetting the peak of a group's memory",
                "Linux 6.12; make a new group instead",
            )),
            other => other,
        }
    }
}

fn map(text: &[u8]) -> BTreeMap<String, u64> {
    stat::flat(text)
        .filter_map(|(key, value)| Some((String::from_utf8_lossy(key).into_owned(), stat::number(value)?)))
        .collect()
}

fn memory_stat(text: &[u8], version: Version) -> MemoryStat {
    let all = map(text);
    // v1 counts the group alone under the plain names, and with those below under `total_`.
    let of = |v2: &str, v1: &str| all.get(if version == Version::V1 { v1 } else { v2 }).copied();
    MemoryStat {
        anon: of("anon", "total_rss"),
        file: of("file", "total_cache"),
        shmem: of("shmem", "total_shmem"),
        kernel: of("kernel", ""),
        unevictable: of("unevictable", "total_unevictable"),
        faults: of("pgfault", "total_pgfault"),
        major_faults: of("pgmajfault", "total_pgmajfault"),
        all,
    }
}

fn device(text: &[u8]) -> Option<Device> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn io_stat_v2(text: &[u8], out: &mut BTreeMap<Device, IoUsage>) {
    for (first, pairs) in stat::lines(text).filter_map(stat::nested) {
        let Some(device) = device(first) else { continue };
        let io = out.entry(device).or_default();
        for (key, value) in pairs {
            let field = match key {
                b"rbytes" => &mut io.read_bytes,
                b"wbytes" => &mut io.write_bytes,
                b"rios" => &mut io.reads,
                b"wios" => &mut io.writes,
                _ => continue,
            };
            *field = stat::number(value).unwrap_or(0);
        }
    }
}

/// `8:0 Read 4096`; the last line, `Total 4096`, names no device.
fn io_stat_v1(text: &[u8], bytes: bool, out: &mut BTreeMap<Device, IoUsage>) {
    for (first, rest) in stat::flat(text) {
        let Some(device) = device(first) else { continue };
        let Some((kind, number)) = rest.iter().position(|&b| b == b' ').map(|at| rest.split_at(at)) else { continue };
        let io = out.entry(device).or_default();
        let field = match (kind, bytes) {
            (b"Read", true) => &mut io.read_bytes,
            (b"Write", true) => &mut io.write_bytes,
            (b"Read", false) => &mut io.reads,
            (b"Write", false) => &mut io.writes,
            _ => continue,
        };
        *field = stat::number(number).unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_by_use_on_both_versions() {
        let stat = memory_stat(b"anon 1\nfile 2\nkernel 3\nshmem 4\npgfault 5\n", Version::V2);
        assert_eq!(
            (stat.anon, stat.file, stat.kernel, stat.shmem, stat.faults),
            (Some(1), Some(2), Some(3), Some(4), Some(5))
        );
        let stat = memory_stat(b"cache 9\nrss 9\ntotal_cache 2\ntotal_rss 1\n", Version::V1);
        assert_eq!((stat.anon, stat.file, stat.kernel), (Some(1), Some(2), None));
    }

    #[test]
    fn io_per_device_on_both_versions() {
        let mut v2 = BTreeMap::new();
        io_stat_v2(b"8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n253:1 rbytes=x\nodd\n", &mut v2);
        let disk = v2[&Device { major: 8, minor: 0 }];
        assert_eq!((disk.read_bytes, disk.write_bytes, disk.reads, disk.writes), (1, 2, 3, 4));
        let mut v1 = BTreeMap::new();
        io_stat_v1(b"8:0 Read 1\n8:0 Write 2\n8:0 Total 3\nTotal 3\n", true, &mut v1);
        io_stat_v1(b"8:0 Read 3\n8:0 Write 4\nTotal 7\n", false, &mut v1);
        assert_eq!(v1[&Device { major: 8, minor: 0 }], disk);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes(text: Vec<u8>) {
            let mut out = BTreeMap::new();
            io_stat_v2(&text, &mut out);
            io_stat_v1(&text, true, &mut out);
            let _ = (memory_stat(&text, Version::V1), memory_stat(&text, Version::V2));
        }
    }
}
