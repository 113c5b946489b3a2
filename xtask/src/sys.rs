//! The kernel calls that no safe wrapper has.
//!
//! # Safety
//!
//! One call a block; each says why it is sound.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::ptr;

use rustix::thread::UnshareFlags;
use seccompiler::sock_filter;

/// New namespaces for this process (a new pid namespace: for its children).
pub(crate) fn unshare(flags: UnshareFlags) -> io::Result<()> {
    if flags.contains(UnshareFlags::FILES) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: unsafe only for FILES, which would take descriptors from under other threads; refused above.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(Into::into)
}

/// Makes the mount at `path` and all below it read-only. Linux 5.12, mount_setattr(2).
pub(crate) fn set_read_only_recursive(path: &CStr) -> io::Result<()> {
    let attributes = libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: `path` is NUL-terminated and `attributes` is a whole `mount_attr` whose size is passed; the kernel only
    // reads both, and only during the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Installs a seccomp filter for this thread and what it starts. seccomp(2), `SECCOMP_SET_MODE_FILTER`.
pub(crate) fn install_filter(filter: &[sock_filter]) -> io::Result<()> {
    let len = u16::try_from(filter.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // The kernel's type and the compiler's have the same four fields in the same order (linux/filter.h).
    let program = libc::sock_fprog { len, filter: ptr::from_ref(filter).cast_mut().cast() };
    // SAFETY: `program` names `len` instructions that outlive the call; the kernel copies and checks them before use.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
