use std::fmt;
use std::time::{Duration, SystemTime};

use crate::Error;
use crate::sys::{self, FsDiskQuota};

/// The unit of the kernel's block fields, whatever the file system's block size (linux/dqblk_xfs.h).
const BASIC_BLOCK: u64 = 512;

/// Larger values overflow somewhere on the way to the disk: XFS then silently sets no limit at all.
const LARGEST: u64 = 1 << 62;

/// One limit of a project.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Limit {
    /// No limit of the project's own. The kernel writes it as 0. On XFS the file system's default limit then holds
    /// ([`Filesystem::default_limits`](crate::Filesystem::default_limits)).
    #[default]
    Unlimited,
    /// At most this many.
    Value(u64),
}

impl Limit {
    /// The number, `None` if there is no limit.
    #[must_use]
    pub const fn value(self) -> Option<u64> {
        match self {
            Self::Unlimited => None,
            Self::Value(value) => Some(value),
        }
    }

    fn from_kernel(value: u64) -> Self {
        if value == 0 { Self::Unlimited } else { Self::Value(value) }
    }

    fn to_kernel(self) -> u64 {
        self.value().unwrap_or(0)
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unlimited => f.write_str("unlimited"),
            Self::Value(value) => value.fmt(f),
        }
    }
}

/// The limits of one project, for all its files together, whoever owns them.
///
/// The hard limit acts at once: the next allocation beyond it fails, with `ENOSPC` on XFS and `EDQUOT` on ext4 and
/// f2fs. The soft limit acts when it was exceeded for the grace time ([`Grace`]); until then it is only a mark.
/// [`bytes`](Self::bytes) and [`inodes`](Self::inodes) set both to the same value, so that grace never matters.
///
/// ```
/// use quota::{Limit, Limits};
/// let limits = Limits::unlimited().bytes(50 << 20).inodes(10_000);
/// assert_eq!(limits.bytes_hard, Limit::Value(50 << 20));
/// assert_eq!(limits.bytes_soft, limits.bytes_hard);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Disk space in bytes. Default: unlimited. The file system rounds up to its block size (usually 4 KiB). Counted
    /// are whole blocks of data, of extended attributes and, on ext4, of directories.
    pub bytes_hard: Limit,
    /// Disk space in bytes that may be exceeded for the grace time. Default: unlimited.
    pub bytes_soft: Limit,
    /// Files, directories, symbolic links and special files; a further hard link is free. Default: unlimited. The
    /// directory that carries the limit is itself counted.
    pub inodes_hard: Limit,
    /// Inodes that may be exceeded for the grace time. Default: unlimited.
    pub inodes_soft: Limit,
}

impl Limits {
    /// No limits: the project is only counted.
    #[must_use]
    pub const fn unlimited() -> Self {
        Self {
            bytes_hard: Limit::Unlimited,
            bytes_soft: Limit::Unlimited,
            inodes_hard: Limit::Unlimited,
            inodes_soft: Limit::Unlimited,
        }
    }

    /// Limits disk space to `bytes`, hard and soft. Default: unlimited.
    #[must_use]
    pub const fn bytes(mut self, bytes: u64) -> Self {
        self.bytes_hard = Limit::Value(bytes);
        self.bytes_soft = Limit::Value(bytes);
        self
    }

    /// Limits the number of inodes, hard and soft. Default: unlimited.
    #[must_use]
    pub const fn inodes(mut self, inodes: u64) -> Self {
        self.inodes_hard = Limit::Value(inodes);
        self.inodes_soft = Limit::Value(inodes);
        self
    }

    /// Sets the soft limit of disk space alone. Default: the hard one, if set by [`bytes`](Self::bytes).
    #[must_use]
    pub const fn soft_bytes(mut self, bytes: u64) -> Self {
        self.bytes_soft = Limit::Value(bytes);
        self
    }

    /// Sets the soft limit of inodes alone. Default: the hard one, if set by [`inodes`](Self::inodes).
    #[must_use]
    pub const fn soft_inodes(mut self, inodes: u64) -> Self {
        self.inodes_soft = Limit::Value(inodes);
        self
    }

    /// Whether the kernel would take these limits at their word. What it would ignore or bend in silence is refused:
    /// 0 (its word for "unlimited"), a soft limit above the hard one, and numbers that overflow (above 2^62).
    ///
    /// # Errors
    /// [`Error::Invalid`] names the limit and what is wrong with it.
    pub fn validate(&self) -> Result<(), Error> {
        for (name, soft, hard) in
            [("bytes", self.bytes_soft, self.bytes_hard), ("inodes", self.inodes_soft, self.inodes_hard)]
        {
            for (which, limit) in [("soft", soft), ("hard", hard)] {
                let why = match limit {
                    Limit::Value(0) => "0 means unlimited to the kernel; say Limit::Unlimited",
                    Limit::Value(value) if value > LARGEST => "numbers above 2^62 overflow to no limit",
                    _ => continue,
                };
                return Err(Error::Invalid { what: format!("{which} limit of {limit} {name}"), why });
            }
            if let (Limit::Value(soft), Limit::Value(hard)) = (soft, hard) {
                if soft > hard {
                    let what = format!("soft limit of {soft} {name} above the hard limit of {hard}");
                    return Err(Error::Invalid { what, why: "XFS would ignore both in silence" });
                }
            }
        }
        Ok(())
    }

    pub(crate) fn from_kernel(quota: &FsDiskQuota) -> Self {
        let bytes = |blocks: u64| Limit::from_kernel(blocks.saturating_mul(BASIC_BLOCK));
        Self {
            bytes_hard: bytes(quota.blk_hardlimit),
            bytes_soft: bytes(quota.blk_softlimit),
            inodes_hard: Limit::from_kernel(quota.ino_hardlimit),
            inodes_soft: Limit::from_kernel(quota.ino_softlimit),
        }
    }

    /// All four at once: XFS ignores, without an error, a new soft limit above the old hard one and the reverse.
    pub(crate) fn to_kernel(self) -> FsDiskQuota {
        let blocks = |limit: Limit| limit.to_kernel().div_ceil(BASIC_BLOCK);
        FsDiskQuota {
            version: 1,
            fieldmask: sys::FS_DQ_BHARD | sys::FS_DQ_BSOFT | sys::FS_DQ_IHARD | sys::FS_DQ_ISOFT,
            blk_hardlimit: blocks(self.bytes_hard),
            blk_softlimit: blocks(self.bytes_soft),
            ino_hardlimit: self.inodes_hard.to_kernel(),
            ino_softlimit: self.inodes_soft.to_kernel(),
            ..FsDiskQuota::default()
        }
    }

    /// Whether `found`, read back from the kernel, is what was asked for: byte limits rounded up to less than a block.
    pub(crate) fn is_applied_by(&self, found: &Self, block_size: u64) -> bool {
        let rounded = |asked: Limit, found: Limit| match (asked, found) {
            (Limit::Value(asked), Limit::Value(found)) => found >= asked && found - asked < block_size,
            (asked, found) => asked == found,
        };
        rounded(self.bytes_hard, found.bytes_hard)
            && rounded(self.bytes_soft, found.bytes_soft)
            && self.inodes_hard == found.inodes_hard
            && self.inodes_soft == found.inodes_soft
    }
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, soft, hard, end) in
            [("bytes", self.bytes_soft, self.bytes_hard, ", "), ("inodes", self.inodes_soft, self.inodes_hard, "")]
        {
            write!(f, "{hard} {name}")?;
            if soft != Limit::Unlimited {
                write!(f, " (soft {soft})")?;
            }
            f.write_str(end)?;
        }
        Ok(())
    }
}

/// What a project uses now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Disk space in bytes: whole blocks, space preallocated by XFS for growing files, and deleted files that are
    /// still open included. After an unlink XFS may need a moment to count down (Linux 5.14 and later).
    pub bytes: u64,
    /// Files, directories, symbolic links and special files.
    pub inodes: u64,
    /// When the soft byte limit begins to act; `None` while it is not exceeded.
    pub bytes_grace_ends: Option<SystemTime>,
    /// When the soft inode limit begins to act; `None` while it is not exceeded.
    pub inodes_grace_ends: Option<SystemTime>,
}

/// The limits and the usage of one project, read together from the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// The project id. 0 is what belongs to no project; its "limits" are the defaults of all others on XFS.
    pub project: u32,
    /// Its limits.
    pub limits: Limits,
    /// Its usage.
    pub usage: Usage,
    steps: Steps,
}

/// What must be free for the smallest steps there are, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Steps {
    /// To write on.
    pub(crate) block: u64,
    /// To make a file.
    pub(crate) file: u64,
}

impl Report {
    pub(crate) fn from_kernel(project: u32, quota: &FsDiskQuota, steps: Steps) -> Self {
        let big = quota.fieldmask & sys::FS_DQ_BIGTIME != 0;
        let time = |low: u32, high: u8| {
            let high = if big { u64::from(high) << 32 } else { 0 };
            match high | u64::from(low) {
                0 => None,
                seconds => SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)),
            }
        };
        let (bytes_grace_ends, inodes_grace_ends) = if project == 0 {
            (None, None) // Here the fields hold the grace times of the file system.
        } else {
            (time(quota.btimer, quota.btimer_hi), time(quota.itimer, quota.itimer_hi))
        };
        Self {
            project,
            limits: Limits::from_kernel(quota),
            usage: Usage {
                bytes: quota.bcount.saturating_mul(BASIC_BLOCK),
                inodes: quota.icount,
                bytes_grace_ends,
                inodes_grace_ends,
            },
            steps,
        }
    }

    /// How many bytes are left below the hard limit; `None` if there is none.
    #[must_use]
    pub fn bytes_left(&self) -> Option<u64> {
        self.limits.bytes_hard.value().map(|hard| hard.saturating_sub(self.usage.bytes))
    }

    /// Whether not even one further block can be allocated: the hard limit is reached, or the soft one was exceeded
    /// for the grace time. This, and not the errno, tells a full project from a full file system.
    ///
    /// A request for many blocks at once can fail earlier: fallocate(2), and on f2fs any large write. Compare with
    /// [`bytes_left`](Self::bytes_left).
    #[must_use]
    pub fn bytes_exhausted(&self) -> bool {
        exhausted(self.limits.bytes_hard, self.usage.bytes, self.steps.block, self.usage.bytes_grace_ends)
    }

    /// Whether a new file, directory or link may be refused for want of bytes, be it empty. On XFS that is so before
    /// [`bytes_exhausted`](Self::bytes_exhausted): it refuses what might not fit in the worst case, for which 47 blocks
    /// must be left (188 KiB; measured with the usual formats), and says it here below 64. Elsewhere it is the same.
    #[must_use]
    pub fn new_files_refused(&self) -> bool {
        exhausted(self.limits.bytes_hard, self.usage.bytes, self.steps.file, self.usage.bytes_grace_ends)
    }

    /// Whether not even one further file can be made.
    #[must_use]
    pub fn inodes_exhausted(&self) -> bool {
        exhausted(self.limits.inodes_hard, self.usage.inodes, 1, self.usage.inodes_grace_ends)
    }

    /// Nothing uses or limits this project: XFS keeps no record of such a one, ext4 keeps a record of zeroes.
    pub(crate) fn is_blank(&self) -> bool {
        self.limits == Limits::unlimited() && self.is_unused()
    }

    pub(crate) fn is_unused(&self) -> bool {
        self.usage.bytes == 0 && self.usage.inodes == 0
    }
}

fn exhausted(hard: Limit, used: u64, step: u64, grace_ends: Option<SystemTime>) -> bool {
    let at_hard = hard.value().is_some_and(|hard| used.saturating_add(step) > hard);
    at_hard || grace_ends.is_some_and(|end| end <= SystemTime::now())
}

/// For how long the soft limits may be exceeded, for all projects of a file system (default of the kernel: 7 days).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grace {
    /// For disk space. Whole seconds.
    pub bytes: Duration,
    /// For inodes. Whole seconds.
    pub inodes: Duration,
}

impl Grace {
    pub(crate) fn to_kernel(self) -> Result<FsDiskQuota, Error> {
        let seconds = |time: Duration| match u32::try_from(time.as_secs()) {
            Ok(seconds @ 1..=0x7fff_ffff) => Ok(seconds),
            _ => Err(Error::Invalid {
                what: format!("grace time of {} s", time.as_secs()),
                why: "the kernel takes 1 to 2147483647 seconds",
            }),
        };
        Ok(FsDiskQuota {
            version: 1,
            fieldmask: sys::FS_DQ_BTIMER | sys::FS_DQ_ITIMER,
            btimer: seconds(self.bytes)?,
            itimer: seconds(self.inodes)?,
            ..FsDiskQuota::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STEPS: Steps = Steps { block: 4096, file: 64 * 4096 };

    #[test]
    fn what_the_kernel_would_bend_in_silence_is_refused() {
        for (limits, words) in [
            (Limits::unlimited().bytes(0), "0 means unlimited"),
            (Limits::unlimited().inodes(0), "0 means unlimited"),
            (Limits::unlimited().bytes(1 << 63), "overflow"),
            (Limits::unlimited().inodes(u64::MAX), "overflow"),
            (Limits::unlimited().bytes(1 << 20).soft_bytes(2 << 20), "soft limit of 2097152 bytes above"),
            (Limits::unlimited().inodes(5).soft_inodes(6), "soft limit of 6 inodes above"),
        ] {
            let error = limits.validate().unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
        }
        Limits::unlimited().validate().unwrap();
        Limits::unlimited().bytes(1 << 62).inodes(1).soft_bytes(1).validate().unwrap();
        Limits { bytes_soft: Limit::Value(5), ..Limits::unlimited() }.validate().unwrap();
    }

    #[test]
    fn bytes_round_up_to_basic_blocks() {
        let quota = Limits::unlimited().bytes(513).inodes(7).to_kernel();
        assert_eq!((quota.blk_hardlimit, quota.blk_softlimit, quota.ino_hardlimit), (2, 2, 7));
        assert_eq!(Limits::from_kernel(&quota).bytes_hard, Limit::Value(1024));
    }

    #[test]
    fn applied_means_equal_or_rounded_up_within_a_block() {
        let asked = Limits::unlimited().bytes(512).inodes(3);
        assert!(asked.is_applied_by(&Limits::unlimited().bytes(4096).inodes(3), 4096));
        assert!(!asked.is_applied_by(&Limits::unlimited().bytes(4096 + 512).inodes(3), 4096));
        assert!(!asked.is_applied_by(&Limits::unlimited().inodes(3), 4096));
        assert!(!asked.is_applied_by(&Limits::unlimited().bytes(512).inodes(4), 4096));
        assert!(!Limits::unlimited().is_applied_by(&asked, 4096));
    }

    #[test]
    fn exhausted_is_told_from_counters_and_grace() {
        let report = |bytes, hard: u64, timer| {
            let quota = FsDiskQuota { bcount: bytes, blk_hardlimit: hard, btimer: timer, ..FsDiskQuota::default() };
            Report::from_kernel(1, &quota, STEPS).bytes_exhausted()
        };
        assert!(report(16, 16, 0));
        assert!(report(9, 16, 0), "less than a block is left");
        assert!(!report(8, 16, 0));
        assert!(!report(1 << 40, 0, 0));
        assert!(report(8, 16, 1), "grace ended in 1970");
        assert!(!report(8, 16, 0x7fff_ffff), "grace ends in 2038");
    }

    #[test]
    fn what_is_left() {
        let quota = FsDiskQuota { bcount: 9, blk_hardlimit: 16, ..FsDiskQuota::default() };
        assert_eq!(Report::from_kernel(1, &quota, STEPS).bytes_left(), Some(7 * 512));
        assert_eq!(Report::from_kernel(1, &FsDiskQuota { bcount: 20, ..quota }, STEPS).bytes_left(), Some(0));
        assert_eq!(Report::from_kernel(1, &FsDiskQuota::default(), STEPS).bytes_left(), None);
    }

    #[test]
    fn timers_have_forty_bits_with_bigtime() {
        let quota = FsDiskQuota { btimer: 5, btimer_hi: 1, ..FsDiskQuota::default() };
        let end = |quota: &FsDiskQuota| {
            let end = Report::from_kernel(1, quota, STEPS).usage.bytes_grace_ends;
            end.unwrap().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
        };
        assert_eq!(end(&quota), 5);
        assert_eq!(end(&FsDiskQuota { fieldmask: sys::FS_DQ_BIGTIME, ..quota }), (1 << 32) + 5);
        assert_eq!(end(&FsDiskQuota { btimer: u32::MAX, ..quota }), u64::from(u32::MAX));
    }

    #[test]
    fn grace_is_at_least_a_second() {
        let grace = |s| Grace { bytes: Duration::from_secs(s), inodes: Duration::from_secs(1) }.to_kernel();
        assert!(grace(0).is_err());
        assert!(grace(1 << 31).is_err());
        assert_eq!(grace(60).unwrap().btimer, 60);
    }

    proptest! {
        #[test]
        fn valid_limits_survive_the_kernels_units(bytes in 1..=LARGEST, inodes in 1..=LARGEST) {
            let asked = Limits::unlimited().bytes(bytes).inodes(inodes);
            asked.validate().unwrap();
            let found = Limits::from_kernel(&asked.to_kernel());
            prop_assert!(asked.is_applied_by(&found, 512));
        }
    }
}
