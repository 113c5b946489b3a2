//! Mounts by descriptor, for clone children: make a tree, set its attributes, attach it, enter it.
//!
//! A *tree* is a mount (or several) held by a descriptor: [`tmpfs`], [`proc`], … make one, [`clone_tree`] copies a part of
//! the caller's view (a bind mount). At first it is *detached*, seen by nobody, and vanishes with its descriptor;
//! [`attach`] puts it onto a directory or file that was resolved before, so that no path is looked up twice.
//!
//! | kernel | difference |
//! |---|---|
//! | 5.10, 5.11 | no `mount_setattr`: attributes only of attached trees ([`set_attributes`]), no [`set_idmap`] |
//! | before 6.15 | [`attach`] onto a detached tree is `EINVAL`: [`attach_root`] first, then attach below it |
//!
//! No function here allocates, locks, panics or touches `errno`; the deepest needs 16 KiB of stack.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};

use crate::error::Errno;
use crate::sys::{self, Fd, MountAttr};
use crate::text::{self, Text};

bitflags::bitflags! {
    /// What a mount forbids; the bits are the kernel's `MOUNT_ATTR_*`.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Attributes: u64 {
        /// No writing through this mount (`ro`).
        const READ_ONLY = 0x1;
        /// Set-user-id, set-group-id bits and file capabilities do nothing (`nosuid`).
        const NO_SUID = 0x2;
        /// Device files do not open (`nodev`).
        const NO_DEV = 0x4;
        /// Nothing is executed from it (`noexec`).
        const NO_EXEC = 0x8;
        /// Symbolic links on it are not followed (`nosymfollow`). Linux 5.14 by this interface.
        const NO_SYMLINK_FOLLOW = 0x20_0000;
    }
}

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

    /// Sets an option that takes a path to what `fd` refers to, spelled `/proc/self/fd/N`: no look-up of names, nothing to
    /// escape, no length limit. Needs the caller's genuine `/proc` in its place.
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
        let flags = MountAttrFlags::from_bits_retain(narrow(attributes.bits())?);
        rustix::mount::fsmount(self.0.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, flags).map_err(Errno::of)
    }
}

/// Options of [`tmpfs`]. `Default` is the kernel's: half of the memory, as many inodes as half the pages, mode 1777.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tmpfs {
    /// Most bytes of file contents, rounded up to a page; then writing says `ENOSPC`. `None`: half of the machine's memory.
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
/// `EPERM` in a user namespace that does not own the PID namespace, or in whose mount namespace no proc is fully visible.
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
/// `EINVAL` without lower directories, or with more than about ten (their descriptors must fit the 255 bytes of one
/// option); the kernel's: `EPERM` in a user namespace before Linux 5.11, `EBUSY` for an upper directory in use, `EINVAL`
/// for file systems that cannot be one.
pub fn overlay(lower: &[BorrowedFd<'_>], options: &Overlay<'_>, attributes: Attributes) -> Result<OwnedFd, Errno> {
    let overlay = Filesystem::open(c"overlay")?;
    let mut joined = Text::<256>::new();
    for (index, fd) in lower.iter().enumerate() {
        if index > 0 {
            joined.push(b":")?;
        }
        joined.push(text::descriptor_path(*fd)?.as_c_str().to_bytes())?;
    }
    overlay.string(c"lowerdir", joined.as_c_str())?;
    if let Some((upper, work)) = options.upper_and_work {
        overlay.descriptor(c"upperdir", upper)?;
        overlay.descriptor(c"workdir", work)?;
    }
    if options.user_xattr {
        overlay.flag(c"userxattr")?;
    }
    if options.volatile {
        overlay.flag(c"volatile")?;
    }
    overlay.mount(attributes)
}

/// A detached copy of what is mounted at `path` below `directory` (a bind mount), with everything mounted below when
/// `recursive`. An empty `path` means `directory` itself, which may then also be a file.
///
/// The copy has the flags of the original: [`set_attributes`] before [`attach`]. It propagates nothing once
/// [`enter_root`] or [`make_private`] has been called in the mount namespace where it is attached.
///
/// # Errors
/// `EINVAL` for a mount of another mount namespace, or when not recursive and mounts below are locked; `EPERM`. Linux 5.2;
/// man page: open_tree(2).
pub fn clone_tree(directory: BorrowedFd<'_>, path: &CStr, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_EMPTY_PATH, path.is_empty());
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    rustix::mount::open_tree(directory, path, flags).map_err(Errno::of)
}

/// Sets and clears attributes of a tree's top mount, and of all mounts below when `recursive`.
///
/// Without `mount_setattr` (Linux before 5.12, or forbidden by a seccomp filter) an *attached* tree is remounted through
/// `/proc/self/fd` instead, when nothing is to be cleared.
///
/// # Errors
/// `EPERM` for clearing what an owning user namespace has locked. Without `mount_setattr`: `ENOSYS` when `clear` is not
/// empty or `recursive` is asked for, `EINVAL` for a detached tree. Nothing is ever left half restricted unnoticed.
pub fn set_attributes(tree: BorrowedFd<'_>, set: Attributes, clear: Attributes, recursive: bool) -> Result<(), Errno> {
    let attr = MountAttr { set: set.bits(), clear: clear.bits(), ..MountAttr::default() };
    match sys::mount_setattr(tree, recursive, &attr) {
        Err(errno) if errno.raw() == libc::ENOSYS && clear.is_empty() && !recursive => remount(tree, set),
        result => result,
    }
}

/// Sets attributes by `mount(MS_REMOUNT | MS_BIND)`, keeping those that the mount has.
fn remount(tree: BorrowedFd<'_>, set: Attributes) -> Result<(), Errno> {
    use rustix::mount::MountFlags;
    let has = rustix::fs::fstatvfs(tree).map_err(Errno::of)?.f_flag.bits();
    let mut flags = MountFlags::BIND;
    for (attribute, statvfs, flag) in [
        (Attributes::READ_ONLY, libc::ST_RDONLY, MountFlags::RDONLY),
        (Attributes::NO_SUID, libc::ST_NOSUID, MountFlags::NOSUID),
        (Attributes::NO_DEV, libc::ST_NODEV, MountFlags::NODEV),
        (Attributes::NO_EXEC, libc::ST_NOEXEC, MountFlags::NOEXEC),
        (Attributes::NO_SYMLINK_FOLLOW, 0x2000, MountFlags::NOSYMFOLLOW),
    ] {
        flags.set(flag, set.contains(attribute) || has & statvfs != 0);
    }
    rustix::mount::mount_remount(text::descriptor_path(tree)?.as_c_str(), flags, c"").map_err(Errno::of)
}

/// Shows the files of a detached tree under other ids: as `user_namespace` (a descriptor of one with maps) maps them.
///
/// A file of id *inside* on disk appears as *outside*, and files created through the tree the other way round.
///
/// # Errors
/// `ENOSYS` before Linux 5.12, `EINVAL` when the file system cannot (tmpfs before 6.3, overlay before 6.7) or the tree is
/// attached, `EPERM` when already idmapped or without CAP_SYS_ADMIN over the file system.
pub fn set_idmap(tree: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>, recursive: bool) -> Result<(), Errno> {
    const IDMAP: u64 = 0x10_0000;
    let user_namespace = text::number(user_namespace);
    sys::mount_setattr(tree, recursive, &MountAttr { set: IDMAP, user_namespace, ..MountAttr::default() })
}

/// Attaches a tree to `target`, which was opened before (`O_PATH`) and is a directory if the tree's top is one, else a file.
///
/// # Errors
/// `ENOTDIR` when one is a directory and the other is not; `EINVAL` when `target` is not in the caller's mount namespace
/// (detached trees only since Linux 6.15); `EPERM`. Linux 5.2; man page: move_mount(2).
pub fn attach(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(tree, c"", target, c"", flags).map_err(Errno::of)
}

/// Stops propagation between the caller's mount namespace and others, in both directions, for all mounts.
///
/// The first thing to do in a new mount namespace: else what is mounted there may appear outside, and the other way.
///
/// # Errors
/// `EINVAL` when the caller's root directory is no mount point (a chroot).
pub fn make_private() -> Result<(), Errno> {
    let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change(c"/", flags).map_err(Errno::of)
}

/// [Makes all mounts private](make_private) and attaches `tree` over the root directory. Paths still begin at the old root;
/// the tree is reached by its descriptor, and more can be attached below it until [`pivot`].
///
/// # Errors
/// As [`make_private`] and [`attach`].
pub fn attach_root(tree: BorrowedFd<'_>) -> Result<(), Errno> {
    make_private()?;
    rustix::mount::move_mount(tree, c"", CWD, c"/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(Errno::of)
}

/// Makes an attached `tree` the root directory and the current directory, and detaches the old root with all below it:
/// no path, `..` or mount leads back; descriptors opened before still do.
///
/// # Errors
/// `EINVAL` when the tree is not attached, or the caller's root is no mount point (a chroot) or is the kernel's initial
/// ramfs; `EPERM`. Man page: pivot_root(2).
pub fn pivot(tree: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::process::fchdir(tree).map_err(Errno::of)?;
    // Both in the same place: the old root lies on top of the new one for a moment, so that no directory is needed for it.
    rustix::process::pivot_root(c".", c".").map_err(Errno::of)?;
    rustix::mount::unmount(c".", UnmountFlags::DETACH).map_err(Errno::of)?;
    rustix::process::chdir(c"/").map_err(Errno::of)
}

/// [`attach_root`], then [`pivot`]: `tree` becomes the whole world of paths.
///
/// # Errors
/// As those two.
pub fn enter_root(tree: BorrowedFd<'_>) -> Result<(), Errno> {
    attach_root(tree)?;
    pivot(tree)
}

fn narrow(bits: u64) -> Result<u32, Errno> {
    u32::try_from(bits).map_err(|_| Errno::from_raw(libc::EINVAL))
}
