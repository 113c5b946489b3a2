//! What a process uses of what its limits bound.

use std::fs;
use std::path::Path;

use crate::{Error, Resource, process};

/// What a process uses, beside its limits; from [`usage_of`](crate::usage_of).
///
/// `None` is "not known": the kernel does not show it, or not to this caller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// `VmLck` of `/proc/PID/status`: memory locked by `mlock`, in bytes. Bounded by [`Resource::Memlock`].
    pub locked: Option<u64>,
    /// Open file descriptors. [`Resource::Nofile`] bounds not their count but the highest number. Shown to everybody since
    /// Linux 6.2; before, only to the same uid or with CAP_SYS_PTRACE.
    pub open_files: Option<u64>,
    /// Threads of this one process. [`Resource::Nproc`] bounds those of all processes of the uid together, a sum that the
    /// kernel does not show.
    pub threads: Option<u64>,
    /// `VmSize`: address space, in bytes. Bounded by [`Resource::As`].
    pub address_space: Option<u64>,
    /// `VmData`: private writable mappings, in bytes. Bounded by [`Resource::Data`].
    pub data: Option<u64>,
    /// `VmStk`: stack of the main thread, in bytes. Bounded by [`Resource::Stack`].
    pub stack: Option<u64>,
    /// `VmRSS`: resident set, in bytes. [`Resource::Rss`] bounds nothing on Linux.
    pub resident: Option<u64>,
    /// `SigQ`: signals queued to the real uid of the process. Bounded by [`Resource::Sigpending`].
    pub pending_signals: Option<u64>,
}

impl Usage {
    pub(crate) fn read(pid: u32) -> Result<Self, Error> {
        let status = process::read(Path::new(&format!("/proc/{pid}/status")))?;
        Ok(Self { open_files: open_files(pid), ..Self::parse(&status) })
    }

    /// Reads the text of `/proc/PID/status`; [`open_files`](Self::open_files) does not stand there and is `None`.
    pub fn parse(status: &str) -> Self {
        let mut usage = Self::default();
        for line in status.lines() {
            let Some((key, value)) = line.split_once(':') else { continue };
            let number = value.split([' ', '\t', '/']).find(|word| !word.is_empty()).and_then(|word| word.parse().ok());
            let bytes = number.and_then(|kib: u64| kib.checked_mul(1024));
            match key {
                "VmLck" => usage.locked = bytes,
                "Threads" => usage.threads = number,
                "VmSize" => usage.address_space = bytes,
                "VmData" => usage.data = bytes,
                "VmStk" => usage.stack = bytes,
                "VmRSS" => usage.resident = bytes,
                "SigQ" => usage.pending_signals = number,
                _ => {}
            }
        }
        usage
    }

    /// The figure that the limit of that resource bounds, in the unit of the resource; `None` when it is not known or
    /// the kernel counts something wider than this process ([`Resource::Nproc`]).
    pub fn of(&self, resource: Resource) -> Option<u64> {
        match resource {
            Resource::Memlock => self.locked,
            Resource::Nofile => self.open_files,
            Resource::As => self.address_space,
            Resource::Data => self.data,
            Resource::Stack => self.stack,
            Resource::Rss => self.resident,
            Resource::Sigpending => self.pending_signals,
            _ => None,
        }
    }
}

fn open_files(pid: u32) -> Option<u64> {
    let path = format!("/proc/{pid}/fd");
    // Since Linux 6.2 the directory's size is the count; before, it is 0.
    let size = fs::metadata(&path).ok()?.len();
    let counted = || Some(u64::try_from(fs::read_dir(&path).ok()?.count()).unwrap_or(u64::MAX));
    if size > 0 { Some(size) } else { counted() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_is_read() {
        let text = "Name:\tx: VmLck\nVmPeak:\t   9 kB\nVmSize:\t    2564 kB\nVmLck:\t      64 kB\nVmRSS:\t  940 kB\n\
                    VmData:\t 360 kB\nVmStk:\t 132 kB\nThreads:\t3\nSigQ:\t5/96365\n";
        let usage = Usage::parse(text);
        assert_eq!(usage.locked, Some(64 << 10));
        assert_eq!(usage.threads, Some(3));
        assert_eq!(usage.pending_signals, Some(5));
        assert_eq!(usage.of(Resource::As), Some(2564 << 10));
        assert_eq!(usage.of(Resource::Nproc), None);
        assert_eq!(Usage::parse("VmLck:\n:\nThreads: -1\nSigQ:/\n"), Usage::default());
    }
}
