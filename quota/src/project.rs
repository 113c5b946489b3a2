use std::time::SystemTime;

use crate::sys::{self, FsDiskQuota};
use crate::{Error, Filesystem, Limits, Report, Usage};

/// One project of a file system: an id that files bear, with limits for all of them together.
///
/// It exists when something bears its id or limits are set for it; nothing has to be created. Removing the files does
/// not remove the limits: [`clear`](Self::clear) does.
#[derive(Clone, Debug)]
pub struct Project {
    filesystem: Filesystem,
    id: u32,
}

impl Project {
    pub(crate) fn new(filesystem: Filesystem, id: u32) -> Result<Self, Error> {
        let why = match id {
            0 => "0 means no project, and its limits are the defaults of all others",
            u32::MAX => "the kernel reserves it",
            _ => return Ok(Self { filesystem, id }),
        };
        Err(Error::Invalid { what: format!("project id {id}"), why })
    }

    /// The id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The file system it belongs to.
    #[must_use]
    pub fn filesystem(&self) -> &Filesystem {
        &self.filesystem
    }

    /// Limits and usage, read together. A project that nobody uses or limits is unlimited and uses nothing.
    ///
    /// # Errors
    /// [`Error::Syscall`]: `EPERM` without CAP_SYS_ADMIN in the initial user namespace, `ENOSYS` or `ESRCH` without
    /// project quota. Kernel: 4.1 (quotactl(2), `Q_XGETQUOTA`).
    pub fn report(&self) -> Result<Report, Error> {
        self.filesystem.read(self.id)
    }

    /// The limits, as [`report`](Self::report).
    ///
    /// # Errors
    /// As [`report`](Self::report).
    pub fn limits(&self) -> Result<Limits, Error> {
        self.report().map(|report| report.limits)
    }

    /// The usage, as [`report`](Self::report).
    ///
    /// # Errors
    /// As [`report`](Self::report).
    pub fn usage(&self) -> Result<Usage, Error> {
        self.report().map(|report| report.usage)
    }

    /// Sets all four limits in one call, reads them back, and returns what was read: byte limits are rounded up to the
    /// file system's block size.
    ///
    /// A hard limit below the present usage is taken; the next allocation then fails.
    ///
    /// # Errors
    /// [`Error::Invalid`] as of [`Limits::validate`], before anything is done; [`Error::NotApplied`] if the kernel
    /// shows something else afterwards; [`Error::Syscall`] as [`report`](Self::report).
    pub fn set_limits(&self, limits: &Limits) -> Result<Limits, Error> {
        self.filesystem.write_limits(self.id, limits)
    }

    /// Removes all limits. Files keep the id and are still counted.
    ///
    /// # Errors
    /// As [`set_limits`](Self::set_limits).
    pub fn clear(&self) -> Result<(), Error> {
        self.set_limits(&Limits::unlimited()).map(drop)
    }

    /// Moves the time at which an exceeded soft limit begins to act, for this project alone: of bytes, of inodes, or
    /// both. `None` leaves it. The kernel forgets it when usage falls below the soft limit.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a time before 1970 or after 2106; [`Error::Syscall`].
    pub fn set_grace_end(&self, bytes: Option<SystemTime>, inodes: Option<SystemTime>) -> Result<(), Error> {
        let mut quota = FsDiskQuota { version: 1, ..FsDiskQuota::default() };
        if let Some(time) = bytes {
            (quota.btimer, quota.fieldmask) = (timer(time)?, quota.fieldmask | sys::FS_DQ_BTIMER | sys::FS_DQ_BIGTIME);
        }
        if let Some(time) = inodes {
            (quota.itimer, quota.fieldmask) = (timer(time)?, quota.fieldmask | sys::FS_DQ_ITIMER | sys::FS_DQ_BIGTIME);
        }
        self.filesystem.write_raw(self.id, quota)
    }
}

/// The low 32 bits of a timer; the high ones stay 0.
fn timer(time: SystemTime) -> Result<u32, Error> {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).ok().and_then(|time| u32::try_from(time.as_secs()).ok());
    let invalid = || Error::Invalid { what: format!("end of grace {time:?}"), why: "it must lie in 1970 to 2106" };
    seconds.ok_or_else(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn reserved_ids_are_refused() {
        let filesystem = Filesystem::open("/proc").unwrap();
        assert!(filesystem.project(0).unwrap_err().to_string().contains("no project"));
        assert!(filesystem.project(u32::MAX).is_err());
        assert_eq!(filesystem.project(u32::MAX - 1).unwrap().id(), 4_294_967_294);
    }

    #[test]
    fn timers_reach_to_2106() {
        let at = |seconds| timer(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(5).unwrap(), 5);
        assert_eq!(at(u64::from(u32::MAX)).unwrap(), u32::MAX);
        assert!(at(1 << 32).is_err());
        assert!(timer(SystemTime::UNIX_EPOCH - Duration::from_secs(1)).is_err());
    }
}
