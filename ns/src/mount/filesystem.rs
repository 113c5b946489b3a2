//! New file systems as detached trees.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use super::Attributes;
use crate::error::Errno;
use crate::sys::Fd;
use crate::text::{self, Text};

/// A file system being configured: [`open`](Self::open), options one by one, [`mount`](Self::mount).
///
/// Options are passed as separate values, not in one string, so that a `,` in a value is never another option. The
/// kernel takes values of at most 255 bytes (`EINVAL`).
#[derive(Debug)]
pub struct Filesystem(Fd);

impl Filesystem {
    /// Starts with the type's name (`tmpfs`, `overlay`, …).
    ///
    /// # Errors
    /// `ENODEV` when the kernel has no such type, `EPERM` without CAP_SYS_ADMIN. Linux 5.2; man page: fsopen(2).
    pub fn open(name: &CStr) -> Result<Self, Errno> {
        let fd = rustix::mount::fsopen(name, FsOpenFlags::FSOPEN_CLOEXEC).map_err(Errno::of)?;
        Ok(Self(fd.into()))
    }

    /// Sets an option without value.
    ///
    /// # Errors
    /// `EINVAL` when the type does not know it.
    pub fn flag(&self, key: &CStr) -> Result<(), Errno> {
        rustix::mount::fsconfig_set_flag(self.0.as_fd(), key).map_err(Errno::of)
    }

    /// Sets an option to a text.
    ///
    /// # Errors
    /// `EINVAL` when the type does not know it or not the value.
    pub fn string(&self, key: &CStr, value: &CStr) -> Result<(), Errno> {
        rustix::mount::fsconfig_set_string(self.0.as_fd(), key, value).map_err(Errno::of)
    }

    /// Sets an option to a number, in decimal.
    ///
    /// # Errors
    /// As [`string`](Self::string).
    pub fn number(&self, key: &CStr, value: u64) -> Result<(), Errno> {
        self.string(key, text::decimal(value).as_c_str())
    }

    /// Sets an option to permission bits, in octal.
    ///
    /// # Errors
    /// As [`string`](Self::string).
    pub fn mode(&self, key: &CStr, value: u32) -> Result<(), Errno> {
        self.string(key, text::octal(value).as_c_str())
    }

    /// Sets an option that takes a path to what `fd` refers to, spelled `/proc/self/fd/N`: no look-up of names,
    /// nothing to escape, no length limit. Needs the caller's genuine `/proc` in its place.
    ///
    /// # Errors
    /// As [`string`](Self::string); `ENOENT` or `ENODEV` without `/proc`.
    pub fn descriptor(&self, key: &CStr, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        self.string(key, text::descriptor_path(fd)?.as_c_str())
    }

    /// Creates the file system and a detached mount of it.
    ///
    /// # Errors
    /// What the type says: `EINVAL` for options that do not fit, `EPERM`, `EBUSY`, `ENODEV`, …
    pub fn mount(self, attributes: Attributes) -> Result<OwnedFd, Errno> {
        rustix::mount::fsconfig_create(self.0.as_fd()).map_err(Errno::of)?;
        let flags = MountAttrFlags::from_bits_retain(attributes.bits());
        rustix::mount::fsmount(self.0.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, flags).map_err(Errno::of)
    }
}

/// Options of [`tmpfs`]. `Default` is the kernel's: half of the memory, as many inodes as half the pages, mode 1777.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tmpfs {
    /// Most bytes of file contents, rounded up to a page; then writing says `ENOSPC`. `None`: half of the machine's
    /// memory.
    pub size: Option<u64>,
    /// Most inodes; then creating says `ENOSPC`. `None`: half of the machine's pages.
    pub inodes: Option<u64>,
    /// Permission bits of the top directory; `None`: 1777.
    pub mode: Option<u32>,
    /// Owner and group of the top directory, as ids of the caller's user namespace; `None`: the caller's.
    pub owner: Option<(u32, u32)>,
}

/// A new, empty tmpfs, detached.
///
/// # Errors
/// `EINVAL` for a size or inode count of 0, which the kernel would take for "no limit"; `EPERM`.
pub fn tmpfs(options: &Tmpfs, attributes: Attributes) -> Result<OwnedFd, Errno> {
    if options.size == Some(0) || options.inodes == Some(0) {
        return Err(Errno::from_raw(libc::EINVAL));
    }
    let tmpfs = Filesystem::open(c"tmpfs")?;
    if let Some(size) = options.size {
        tmpfs.number(c"size", size)?;
    }
    if let Some(inodes) = options.inodes {
        tmpfs.number(c"nr_inodes", inodes)?;
    }
    if let Some(mode) = options.mode {
        tmpfs.mode(c"mode", mode)?;
    }
    if let Some((user, group)) = options.owner {
        tmpfs.number(c"uid", user.into())?;
        tmpfs.number(c"gid", group.into())?;
    }
    tmpfs.mount(attributes)
}

/// Options of [`proc`]. `Default` shows everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Proc {
    /// Hides other users' processes altogether (`hidepid=2`). Since Linux 5.8 per mount.
    pub hide_others: bool,
    /// Shows processes only: no `/proc/sys`, `/proc/kcore`, … (`subset=pid`). Linux 5.8.
    pub only_processes: bool,
}

/// A new proc of the caller's PID namespace, detached; always without set-user-id, devices and execution.
///
/// # Errors
/// `EPERM` in a user namespace that does not own the PID namespace, or in whose mount namespace no proc is fully
/// visible.
pub fn proc(options: Proc, attributes: Attributes) -> Result<OwnedFd, Errno> {
    let proc = Filesystem::open(c"proc")?;
    if options.hide_others {
        proc.string(c"hidepid", c"2")?;
    }
    if options.only_processes {
        proc.string(c"subset", c"pid")?;
    }
    proc.mount(attributes | Attributes::NO_SUID | Attributes::NO_DEV | Attributes::NO_EXEC)
}

/// The POSIX message queues of the caller's IPC namespace, detached; always without set-user-id, devices and execution.
///
/// # Errors
/// `EPERM` in a user namespace that does not own the IPC namespace.
pub fn mqueue(attributes: Attributes) -> Result<OwnedFd, Errno> {
    Filesystem::open(c"mqueue")?.mount(attributes | Attributes::NO_SUID | Attributes::NO_DEV | Attributes::NO_EXEC)
}

/// A new devpts with terminals of its own, detached: `ptmx` usable by all (mode 666), at most `max` terminals.
///
/// # Errors
/// `EINVAL` when `max` is 0; `EPERM`.
pub fn devpts(max: u32, attributes: Attributes) -> Result<OwnedFd, Errno> {
    if max == 0 {
        return Err(Errno::from_raw(libc::EINVAL));
    }
    let devpts = Filesystem::open(c"devpts")?;
    devpts.flag(c"newinstance")?; // each is one since Linux 4.7; said for the reader
    devpts.mode(c"ptmxmode", 0o666)?;
    devpts.mode(c"mode", 0o620)?;
    devpts.number(c"max", max.into())?;
    devpts.mount(attributes | Attributes::NO_SUID | Attributes::NO_EXEC)
}

/// Options of [`overlay`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Overlay<'fd> {
    /// Where changes go, and a work directory for the kernel beside it on the same file system. `None`: read-only.
    pub upper_and_work: Option<(BorrowedFd<'fd>, BorrowedFd<'fd>)>,
    /// Keeps its marks in `user.*` attributes, as a user namespace needs it (`userxattr`). Linux 5.11.
    pub user_xattr: bool,
    /// Never syncs to disk (`volatile`): faster, and the upper directory cannot be mounted again after a crash.
    /// Linux 5.10.
    pub volatile: bool,
}

/// An overlay of directories, the topmost of `lower` first, detached. Needs the caller's genuine `/proc`.
///
/// # Errors
/// `EINVAL` without lower directories, or before Linux 6.5 with more than about a dozen (which do not fit the 255 bytes
/// of one option); the kernel's: `EPERM` in a user namespace before Linux 5.11, `EBUSY` for an upper directory in use,
/// `EINVAL` for file systems that cannot be one.
pub fn overlay(lower: &[BorrowedFd<'_>], options: &Overlay<'_>, attributes: Attributes) -> Result<OwnedFd, Errno> {
    let overlay = Filesystem::open(c"overlay")?;
    match joined(lower) {
        Ok(joined) => overlay.string(c"lowerdir", joined.as_c_str())?,
        Err(errno) if errno.raw() == libc::ENAMETOOLONG => {
            for directory in lower {
                overlay.descriptor(c"lowerdir+", *directory)?; // Linux 6.5
            }
        }
        Err(errno) => return Err(errno),
    }
    if let Some((upper, work)) = options.upper_and_work {
        overlay.descriptor(c"upperdir", upper)?;
        overlay.descriptor(c"workdir", work)?;
    }
    // What the layers' files may carry of redirections and foreign metadata is neither followed nor written.
    overlay.string(c"redirect_dir", c"nofollow")?;
    overlay.string(c"metacopy", c"off")?;
    if options.user_xattr {
        overlay.flag(c"userxattr")?;
    }
    if options.volatile {
        overlay.flag(c"volatile")?;
    }
    overlay.mount(attributes)
}

/// Paths to the directories in one option, as every kernel takes them.
fn joined(directories: &[BorrowedFd<'_>]) -> Result<Text<256>, Errno> {
    let mut joined = Text::new();
    for (index, directory) in directories.iter().enumerate() {
        if index > 0 {
            joined.push(b":")?;
        }
        joined.push(text::descriptor_path(*directory)?.as_bytes())?;
    }
    Ok(joined)
}
