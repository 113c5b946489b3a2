//! The kernel calls that rustix lacks or marks unsafe, one per function.
//!
//! # Safety
//! Each block makes one call with pointers to memory that the function itself borrows for the length of the call. None
//! of them allocates, locks, panics or touches `errno` or TLS, so that a clone child may use them all.
#![allow(unsafe_code)]
#![allow(
    clippy::cast_sign_loss,
    clippy::cast_possible_truncation,
    reason = "system call arguments are registers, of which the kernel takes the low bits back"
)]

use std::ffi::{CStr, c_char, c_void};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};
use rustix::thread::UnshareFlags;

use crate::arch;
use crate::error::Errno;

/// A descriptor that is closed by a bare system call: std's `OwnedFd` goes through libc, which a held child must not.
#[derive(Debug)]
pub(crate) struct Fd(RawFd);

impl Fd {
    pub(crate) fn into_owned(self) -> OwnedFd {
        let raw = self.0;
        std::mem::forget(self);
        // SAFETY: `raw` was ours alone and `self` is forgotten, so that nobody else closes it.
        unsafe { OwnedFd::from_raw_fd(raw) }
    }
}

impl From<OwnedFd> for Fd {
    fn from(fd: OwnedFd) -> Self {
        Self(fd.into_raw_fd())
    }
}

impl AsFd for Fd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: open as long as `self`, by construction.
        unsafe { BorrowedFd::borrow_raw(self.0) }
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        // SAFETY: `self.0` is open and ours; after this nobody can name it any more.
        unsafe { rustix::io::close(self.0) }
    }
}

/// A pointer as the kernel's register argument.
fn pointer<T>(pointer: *const T) -> usize {
    pointer as usize
}

/// A descriptor as the kernel's register argument: only the low 32 bits count.
fn descriptor(fd: BorrowedFd<'_>) -> usize {
    fd.as_raw_fd() as usize
}

/// The kernel's `-errno` convention as a `Result`.
pub(crate) fn result(returned: isize) -> Result<usize, Errno> {
    match i32::try_from(returned) {
        Ok(errno @ -4095..=-1) => Err(Errno::from_raw(-errno)),
        _ => Ok(returned as usize),
    }
}

/// Sets the calling thread's signal mask, glibc's internal signals included; returns the one before.
pub(crate) fn set_signal_mask(set: u64) -> Result<u64, Errno> {
    let mut old = 0_u64;
    let arguments =
        [libc::SIG_SETMASK as usize, pointer(&raw const set), pointer(&raw mut old), size_of::<u64>(), 0, 0];
    // SAFETY: reads `set` and writes `old`, both of the 8 bytes that the fourth argument says, alive across the call.
    result(unsafe { arch::syscall(libc::SYS_rt_sigprocmask as isize, arguments) })?;
    Ok(old)
}

/// `exit_group`: ends the calling process without destructors or `atexit`.
pub(crate) fn exit(status: i32) -> ! {
    loop {
        // SAFETY: ends the process; the loop is for the type only.
        unsafe { arch::syscall(libc::SYS_exit_group as isize, [status as usize, 0, 0, 0, 0, 0]) };
    }
}

/// A mapping for a stack: inaccessible guard of `guard` bytes below `size - guard` usable ones.
pub(crate) fn map_stack(size: usize, guard: usize) -> Result<*mut c_void, Errno> {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::STACK;
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a fresh anonymous mapping where the kernel likes, so no memory in use is touched.
    let base = unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), size, protection, flags) }.map_err(Errno::of)?;
    // SAFETY: the first `guard` bytes of the mapping just made, which nobody uses yet.
    if let Err(error) = unsafe { rustix::mm::mprotect(base, guard, MprotectFlags::empty()) } {
        unmap(base, size);
        return Err(Errno::of(error));
    }
    Ok(base)
}

/// Unmaps what [`map_stack`] mapped.
pub(crate) fn unmap(base: *mut c_void, size: usize) {
    // SAFETY: callers pass a whole mapping of `map_stack` that they own and that nobody runs on any more.
    let _ = unsafe { rustix::mm::munmap(base, size) };
}

/// `unshare` of namespaces only.
pub(crate) fn unshare(flags: u64) -> Result<(), Errno> {
    let flags = UnshareFlags::from_bits_retain(u32::try_from(flags).map_err(|_| Errno::from_raw(libc::EINVAL))?);
    // SAFETY: unsafe for CLONE_FILES alone, which `Namespaces` cannot hold.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(Errno::of)
}

/// `close_range(end, ~0, CLOSE_RANGE_UNSHARE)`. Linux 5.9.
///
/// # Safety
/// The descriptor table is shared with another process, and the caller uses none of those from `end` on.
pub(crate) unsafe fn unshare_descriptors(end: i32) -> Result<(), Errno> {
    const UNSHARE: usize = 2;
    let first = u32::try_from(end).map_err(|_| Errno::from_raw(libc::EINVAL))?;
    let arguments = [first as usize, u32::MAX as usize, UNSHARE, 0, 0, 0];
    // SAFETY: numbers only. The caller's promise: what closes is in a new table, and nobody's there.
    result(unsafe { arch::syscall(libc::SYS_close_range as isize, arguments) }).map(drop)
}

/// `struct mount_attr` of `mount_setattr(2)`.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct MountAttr {
    pub(crate) set: u64,
    pub(crate) clear: u64,
    pub(crate) propagation: u64,
    pub(crate) user_namespace: u64,
}

/// `mount_setattr(fd, "", AT_EMPTY_PATH [| AT_RECURSIVE], attr)`. Linux 5.12.
pub(crate) fn mount_setattr(fd: BorrowedFd<'_>, recursive: bool, attr: &MountAttr) -> Result<(), Errno> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    let empty = c"";
    let arguments = [
        descriptor(fd),
        pointer(empty.as_ptr()),
        flags as usize,
        pointer(ptr::from_ref(attr)),
        size_of::<MountAttr>(),
        0,
    ];
    // SAFETY: `empty` is NUL-terminated, `attr` a whole `struct mount_attr`; both are only read, during the call.
    result(unsafe { arch::syscall(libc::SYS_mount_setattr as isize, arguments) })?;
    Ok(())
}

/// `pidfd_send_signal(fd, signal, NULL, 0)`.
pub(crate) fn pidfd_send_signal(fd: BorrowedFd<'_>, signal: i32) -> Result<(), Errno> {
    let arguments = [descriptor(fd), signal as usize, 0, 0, 0, 0];
    // SAFETY: no pointers; a signal sent by the caller's wish.
    result(unsafe { arch::syscall(libc::SYS_pidfd_send_signal as isize, arguments) })?;
    Ok(())
}

/// `ioctl(fd, request)` for requests that take no argument and return a number or a new descriptor.
pub(crate) fn ioctl(fd: BorrowedFd<'_>, request: u32) -> Result<usize, Errno> {
    let arguments = [descriptor(fd), request as usize, 0, 0, 0, 0];
    // SAFETY: the requests of this crate (NS_GET_*, PIDFD_GET_*_NAMESPACE) take no pointer.
    result(unsafe { arch::syscall(libc::SYS_ioctl as isize, arguments) })
}

/// Takes ownership of a descriptor number that the kernel has just returned.
pub(crate) fn adopt(raw: usize) -> Result<OwnedFd, Errno> {
    let raw = RawFd::try_from(raw).map_err(|_| Errno::from_raw(libc::EBADF))?;
    // SAFETY: callers pass a descriptor that the kernel made for them in the call before.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// `struct ifreq` as far as interface flags go.
#[repr(C)]
struct InterfaceFlags {
    name: [u8; libc::IFNAMSIZ],
    flags: u16,
    rest: [u8; 22],
}

/// `ioctl(socket, SIOCSIFFLAGS)` of `lo`, to `IFF_UP`.
pub(crate) fn loopback_up(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    // A new one has no other flag that this call could change, so nothing needs to be asked first.
    let mut request = InterfaceFlags { name: [0; libc::IFNAMSIZ], flags: libc::IFF_UP as u16, rest: [0; 22] };
    request.name[..2].copy_from_slice(b"lo");
    let arguments = [descriptor(socket), libc::SIOCSIFFLAGS as usize, pointer(&raw mut request), 0, 0, 0];
    // SAFETY: `request` has the size and layout of `struct ifreq`, is borrowed mutably for the call, and its name is
    // NUL-terminated.
    result(unsafe { arch::syscall(libc::SYS_ioctl as isize, arguments) }).map(drop)
}

/// `execve`; returns only on failure.
///
/// # Safety
/// `argv` and `envp` are arrays of pointers to NUL-terminated strings, each ended by a null pointer.
pub(crate) unsafe fn execve(path: &CStr, argv: *const *const c_char, envp: *const *const c_char) -> Errno {
    let arguments = [pointer(path.as_ptr()), pointer(argv), pointer(envp), 0, 0, 0];
    // SAFETY: the caller's promise on both arrays; `path` is NUL-terminated.
    match result(unsafe { arch::syscall(libc::SYS_execve as isize, arguments) }) {
        Err(errno) => errno,
        Ok(_) => Errno::from_raw(libc::EIO),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_the_kernels() {
        assert_eq!(size_of::<InterfaceFlags>(), size_of::<libc::ifreq>());
        assert_eq!(size_of::<MountAttr>(), size_of::<libc::mount_attr>());
    }

    #[test]
    fn result_is_the_kernels_convention() {
        assert_eq!(result(-1), Err(Errno::from_raw(1)));
        assert_eq!(result(-4095), Err(Errno::from_raw(4095)));
        assert_eq!(result(0), Ok(0));
        assert_eq!(result(isize::MIN), Ok(isize::MIN as usize));
    }
}
