//! What a mount forbids and how ids show through it.

use std::os::fd::BorrowedFd;

use super::submounts;
use crate::error::Errno;
use crate::sys::{self, MountAttr};
use crate::text;

bitflags::bitflags! {
    /// What a mount forbids; the bits are the kernel's `MOUNT_ATTR_*`.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Attributes: u32 {
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

/// Sets and clears attributes of a tree's top mount, and of all mounts below when `recursive`.
///
/// Without `mount_setattr` (Linux before 5.12, or forbidden by a seccomp filter) the mounts of an *attached* tree are
/// remounted one by one instead; that cannot clear anything. The mounts below are those that
/// `/proc/self/mountinfo` lists, so the mount namespace must be the caller's alone meanwhile.
///
/// # Errors
/// `EPERM` for clearing what an owning user namespace has locked, or without CAP_SYS_ADMIN. Without `mount_setattr`:
/// `ENOSYS` (`EPERM` under some filters) when `clear` is not empty, `EINVAL` for a detached tree, and when `recursive`,
/// `EBUSY` for a mount that another one hides and `ENOSPC` for more than 512 mounts. After an error the attributes of
/// some mounts may be set: do not use the tree.
pub fn set_attributes(tree: BorrowedFd<'_>, set: Attributes, clear: Attributes, recursive: bool) -> Result<(), Errno> {
    let attr = MountAttr { set: set.bits().into(), clear: clear.bits().into(), ..MountAttr::default() };
    match sys::mount_setattr(tree, recursive, &attr) {
        Err(errno) if !matches!(errno.raw(), libc::ENOSYS | libc::EPERM) || !clear.is_empty() => Err(errno),
        // A real EPERM is one for the remount, too.
        Err(_) if recursive => submounts::for_each(tree, |mount| remount(mount, set)),
        Err(_) => remount(tree, set),
        Ok(()) => Ok(()),
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
    super::with_path(tree, |path| rustix::mount::mount_remount(path, flags, c""))
}

/// Shows the files of a detached tree under other ids: as `user_namespace` (a descriptor of one with maps) maps them.
///
/// A file of id *inside* on disk appears as *outside*, and files created through the tree the other way round.
///
/// # Errors
/// `ENOSYS` before Linux 5.12, `EINVAL` when the file system cannot (tmpfs before 6.3, overlay before 6.7) or the tree
/// is attached, `EPERM` when already idmapped or without CAP_SYS_ADMIN over the file system.
pub fn set_idmap(tree: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>, recursive: bool) -> Result<(), Errno> {
    const IDMAP: u64 = 0x10_0000;
    let user_namespace = text::number(user_namespace);
    sys::mount_setattr(tree, recursive, &MountAttr { set: IDMAP, user_namespace, ..MountAttr::default() })
}
