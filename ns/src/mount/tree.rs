//! Copying, attaching and entering trees.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::CWD;
use rustix::mount::{MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};

use crate::error::Errno;
use crate::sys::{self, Fd, MountAttr};

/// A detached copy of what is mounted at `path` below `directory` (a bind mount), with everything mounted below when
/// `recursive`. An empty `path` means `directory` itself, which may then also be a file.
///
/// The copy has the flags of the original ([`set_attributes`](super::set_attributes)) but not its propagation: it is
/// private, so what is mounted here or there later stays there.
///
/// # Errors
/// `EINVAL` for a mount of another mount namespace, or when not recursive and mounts below are locked; `EPERM`. Linux
/// 5.2; man page: open_tree(2).
pub fn clone_tree(directory: BorrowedFd<'_>, path: &CStr, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_EMPTY_PATH, path.is_empty());
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    let tree = Fd::from(rustix::mount::open_tree(directory, path, flags).map_err(Errno::of)?);
    match set_private(tree.as_fd()) {
        // Without the call `attach` does it, in another way.
        Err(errno) if !is_missing(errno) => Err(errno),
        _ => Ok(tree.into_owned()),
    }
}

/// `mount_setattr`: no propagation from or to the mounts of a tree, attached or not.
fn set_private(tree: BorrowedFd<'_>) -> Result<(), Errno> {
    let propagation = MountPropagationFlags::PRIVATE.bits().into();
    sys::mount_setattr(tree, true, &MountAttr { propagation, ..MountAttr::default() })
}

/// No such call in this kernel, or none that a seccomp filter lets through.
fn is_missing(errno: Errno) -> bool {
    matches!(errno.raw(), libc::ENOSYS | libc::EPERM)
}

/// Attaches a tree, made private, to `target`, which was opened before (`O_PATH`) and is a directory if the tree's top
/// is one, else a file.
///
/// # Errors
/// `EINVAL` when one is a directory and the other is not, or when `target` is not in the caller's mount namespace (a
/// detached one only since Linux 6.15); `EPERM`. Linux 5.2; man page: move_mount(2).
pub fn attach(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
    move_mount(tree, target, c"", MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH)
}

/// The same for a tree that is private already, as a new file system and (since Linux 5.12) a [copy](clone_tree) are: one
/// system call.
///
/// # Errors
/// As [`attach`].
pub fn attach_new(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(tree, c"", target, c"", flags).map_err(Errno::of)
}

fn move_mount(tree: BorrowedFd<'_>, target: BorrowedFd<'_>, path: &CStr, flags: MoveMountFlags) -> Result<(), Errno> {
    let private = set_private(tree);
    let flags = flags | MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(tree, c"", target, path, flags).map_err(Errno::of)?;
    match private {
        // Once attached, the old way works too.
        Err(errno) if is_missing(errno) => super::with_path(tree, |path| rustix::mount::mount_change(path, PRIVATE)),
        result => result,
    }
}

const PRIVATE: MountPropagationFlags = MountPropagationFlags::PRIVATE.union(MountPropagationFlags::REC);

/// Stops propagation between the caller's mount namespace and others, in both directions, for all mounts.
///
/// The first thing to do in a new mount namespace: else what is mounted there may appear outside, and the other way.
///
/// # Errors
/// `EINVAL` when the caller's root directory is no mount point (a chroot).
pub fn make_private() -> Result<(), Errno> {
    rustix::mount::mount_change(c"/", PRIVATE).map_err(Errno::of)
}

/// [Makes all mounts private](make_private) and attaches `tree` over the root directory. Paths still begin at the old
/// root; the tree is reached by its descriptor, and more can be attached below it until [`pivot`].
///
/// # Errors
/// As [`make_private`] and [`attach`].
pub fn attach_root(tree: BorrowedFd<'_>) -> Result<(), Errno> {
    make_private()?;
    move_mount(tree, CWD, c"/", MoveMountFlags::empty())
}

/// Makes an attached `tree` the root directory and the current directory, and detaches the old root with all below it:
/// no path, `..` or mount leads back; descriptors opened before still do.
///
/// # Errors
/// `EINVAL` when the tree is not attached, or the caller's root is no mount point (a chroot) or is the kernel's initial
/// ramfs; `EPERM`. Man page: pivot_root(2).
pub fn pivot(tree: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::process::fchdir(tree).map_err(Errno::of)?;
    // Both in the same place: the old root lies on top of the new one for a moment, so that no directory is needed for
    // it.
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
