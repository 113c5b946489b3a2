//! Mounts by descriptor, for clone children: make a tree, set its attributes, attach it, enter it.
//!
//! A *tree* is a mount (or several) held by a descriptor: [`tmpfs`], [`proc`], … make one, [`clone_tree`] copies a
//! part of the caller's view (a bind mount). At first it is *detached*, seen by nobody, and vanishes with its
//! descriptor; [`attach`] puts it onto a directory or file that was resolved before, so that no path is looked up
//! twice.
//!
//! | kernel | difference |
//! |---|---|
//! | 5.10, 5.11 | no `mount_setattr`: attributes only of attached trees ([`set_attributes`]), no [`set_idmap`] |
//! | before 6.15 | [`attach`] onto a detached tree is `EINVAL`: [`attach_root`] first, then attach below it; nor can a detached tree be copied by [`clone_tree`] |
//!
//! No function here allocates, locks, panics or touches `errno`; the smallest [`Stack`](crate::Stack) is enough.

mod attributes;
mod filesystem;
mod submounts;
mod tree;

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{CWD, Mode, OFlags};

use crate::error::Errno;
use crate::sys::Fd;
use crate::text;

pub use attributes::{Attributes, set_attributes, set_idmap};
pub use filesystem::{Filesystem, Overlay, Proc, Tmpfs, devpts, mqueue, overlay, proc, tmpfs};
pub use tree::{attach, attach_new, attach_root, clone_tree, enter_root, make_private, pivot};

/// Gives `act` a path to the top of a tree, for the calls that take no descriptor: `/proc/self/fd/N`, or `.` for a
/// moment where `/proc` is not the caller's.
fn with_path(tree: BorrowedFd<'_>, act: impl FnOnce(&CStr) -> rustix::io::Result<()>) -> Result<(), Errno> {
    if let Ok(path) = text::descriptor_path(tree) {
        return act(path.as_c_str()).map_err(Errno::of);
    }
    let back = rustix::fs::openat(CWD, c".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(Errno::of)?;
    let back = Fd::from(back);
    rustix::process::fchdir(tree).map_err(Errno::of)?;
    let done = act(c".");
    rustix::process::fchdir(back.as_fd()).map_err(Errno::of)?;
    done.map_err(Errno::of)
}
