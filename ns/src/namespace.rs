//! [`Namespace`], one namespace held by a descriptor.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::thread::{LinkNameSpaceType, ThreadNameSpaceType};

use crate::error::{Errno, Error};
use crate::flags::{Kind, Namespaces};
use crate::pidfd::{Pid, PidFd};
use crate::sys;

/// A descriptor of a namespace, which stays alive as long as this does, also without processes. Close-on-exec.
///
/// Man page: namespaces(7), ioctl_ns(2).
#[derive(Debug)]
pub struct Namespace {
    fd: OwnedFd,
    kind: Kind,
}

impl Namespace {
    /// The calling *thread's* namespace of this kind.
    ///
    /// # Errors
    /// [`Error::File`]: without `/proc`, or on a kernel without this kind (`ENOENT`).
    pub fn current(kind: Kind) -> Result<Self, Error> {
        Self::open(Path::new("/proc/thread-self/ns").join(kind.file_name()))
    }

    /// The namespace of process `pid`: only of a process that the caller has not reaped, else of one that took its
    /// number.
    ///
    /// # Errors
    /// [`Error::File`]: `ENOENT` when there is no such process, `EACCES` when the caller may not look at it (ptrace
    /// access).
    pub fn of_pid(pid: Pid, kind: Kind) -> Result<Self, Error> {
        Self::open(format!("/proc/{pid}/ns/{}", kind.file_name()))
    }

    /// The namespace of exactly the process behind `pidfd`.
    ///
    /// # Errors
    /// [`Error::Syscall`] with `ESRCH` when it has been reaped; else as [`of_pid`](Self::of_pid), before Linux 6.11.
    pub fn of_pidfd(pidfd: &PidFd, kind: Kind) -> Result<Self, Error> {
        // PIDFD_GET_*_NAMESPACE, Linux 6.11: no number, no race, no /proc.
        if let Ok(raw) = sys::ioctl(pidfd.as_fd(), 0xff00 | pidfd_request(kind)) {
            let fd = sys::adopt(raw).map_err(|errno| Error::call("ioctl", "PIDFD_GET_NAMESPACE", errno))?;
            return Ok(Self { fd, kind });
        }
        let gone = || Error::call("setns", format!("({kind} namespace of a process)"), Errno::from_raw(libc::ESRCH));
        let namespace = Self::of_pid(pidfd.pid()?.ok_or_else(gone)?, kind)?;
        // Still unreaped now, so the number was its own while we looked.
        if pidfd.pid()?.is_none() { Err(gone()) } else { Ok(namespace) }
    }

    /// What lies at `path`: a file of `/proc/PID/ns`, or one that a namespace has been bind mounted onto.
    ///
    /// # Errors
    /// [`Error::File`] when it cannot be opened, [`Error::Invalid`] when it is no namespace.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        // Read-only and non-blocking: opening whatever else lies there has no effect on it.
        let file = File::from(
            rustix::fs::open(
                path,
                rustix::fs::OFlags::CLOEXEC | rustix::fs::OFlags::NONBLOCK,
                rustix::fs::Mode::empty(),
            )
            .map_err(|error| Error::file("open", path, io::Error::from(error)))?,
        );
        Self::from_fd(file.into()).map_err(|_| Error::invalid("namespace", format!("{} is none", path.display())))
    }

    /// Takes a descriptor and asks the kernel what it is.
    ///
    /// # Errors
    /// [`Error::Syscall`] (`ENOTTY`) when it is no namespace, [`Error::Unsupported`] for a kind newer than this crate.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, Error> {
        let bits =
            sys::ioctl(fd.as_fd(), NS_GET_NSTYPE).map_err(|errno| Error::call("ioctl", "NS_GET_NSTYPE", errno))?;
        let kind = Kind::from_bits(bits as u64)
            .ok_or(Error::Unsupported { feature: "this kind of namespace", needs: "a newer version of this crate" })?;
        Ok(Self { fd, kind })
    }

    /// Its kind.
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// Device and inode number, the identity of a namespace: equal exactly when it is the same one, as long as it
    /// lives.
    ///
    /// # Errors
    /// [`Error::Syscall`] when `fstat` fails.
    pub fn identity(&self) -> Result<(u64, u64), Error> {
        let stat =
            rustix::fs::fstat(&self.fd).map_err(|error| Error::call("fstat", "(namespace)", Errno::of(error)))?;
        Ok((stat.st_dev, stat.st_ino))
    }

    /// Moves the calling thread into it (for `PID` and `TIME`, only its later children). For clone children: allocates
    /// nothing. In a program's own threads it would split the program in two.
    ///
    /// # Errors
    /// `EPERM` without CAP_SYS_ADMIN over it (and, for a mount namespace, CAP_SYS_CHROOT); `EINVAL` for a user
    /// namespace that the thread is already in, or in a process with threads. Man page: setns(2).
    pub fn enter(&self) -> Result<(), Errno> {
        let kind = match self.kind {
            Kind::User => LinkNameSpaceType::User,
            Kind::Mount => LinkNameSpaceType::Mount,
            Kind::Pid => LinkNameSpaceType::ProcessID,
            Kind::Ipc => LinkNameSpaceType::InterProcessCommunication,
            Kind::Uts => LinkNameSpaceType::HostNameAndNISDomainName,
            Kind::Network => LinkNameSpaceType::Network,
            Kind::Cgroup => LinkNameSpaceType::ControlGroup,
            Kind::Time => LinkNameSpaceType::Time,
        };
        rustix::thread::move_into_link_name_space(self.fd.as_fd(), Some(kind)).map_err(Errno::of)
    }
}

/// Moves the calling thread into several namespaces of one process, all or none. For clone children, as
/// [`Namespace::enter`].
///
/// # Errors
/// `EINVAL` before Linux 5.8, `ESRCH` when the process has ended, else as [`Namespace::enter`].
pub fn enter_all(pidfd: BorrowedFd<'_>, namespaces: Namespaces) -> Result<(), Errno> {
    let bits = u32::try_from(namespaces.bits()).map_err(|_| Errno::from_raw(libc::EINVAL))?;
    rustix::thread::move_into_thread_name_spaces(pidfd, ThreadNameSpaceType::from_bits_retain(bits)).map_err(Errno::of)
}

/// `_IO(0xb7, 3)` of <linux/nsfs.h>.
const NS_GET_NSTYPE: u32 = 0xb703;

/// The number of `PIDFD_GET_*_NAMESPACE` in <linux/pidfd.h>.
const fn pidfd_request(kind: Kind) -> u32 {
    match kind {
        Kind::Cgroup => 1,
        Kind::Ipc => 2,
        Kind::Mount => 3,
        Kind::Network => 4,
        Kind::Pid => 5,
        Kind::Time => 7,
        Kind::User => 9,
        Kind::Uts => 10,
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Namespace> for OwnedFd {
    fn from(namespace: Namespace) -> Self {
        namespace.fd
    }
}
