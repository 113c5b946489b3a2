//! The one system call that rustix does not have: bpf(2), for device rules on v2.
//!
//! # Safety
//! Every block is one call. The kernel reads the attributes and what they point to before it returns, and keeps neither.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

/// A BPF instruction: operation, registers, jump offset, constant.
pub(crate) type Instruction = u64;

const PROG_LOAD: libc::c_long = 5;
const PROG_ATTACH: libc::c_long = 8;
const PROG_DETACH: libc::c_long = 9;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_TYPE_CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;
const REPLACE: u32 = 4;

/// `union bpf_attr` for `BPF_PROG_LOAD`, as far as Linux 5.10 knows it and this crate needs it (linux/bpf.h).
#[repr(C)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

/// `union bpf_attr` for `BPF_PROG_ATTACH` and `BPF_PROG_DETACH`.
#[repr(C)]
struct Attach {
    target_fd: RawFd,
    attach_bpf_fd: RawFd,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: RawFd,
}

fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<libc::c_long> {
    // SAFETY: `attributes` is a whole `repr(C)` struct without padding, alive across the call, and its size is passed
    // along. What it points to (instructions, licence) is borrowed by the callers below for just as long. These three
    // commands write nothing back.
    let ret = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(ret) }
}

/// Loads a program that decides about device accesses.
pub(crate) fn load_device_program(program: &[Instruction]) -> io::Result<OwnedFd> {
    let attributes = Load {
        prog_type: PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(program.len()).map_err(io::Error::other)?,
        insns: program.as_ptr().expose_provenance() as u64,
        license: c"MIT".as_ptr().expose_provenance() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
        prog_name: *b"sandbox_devices\0",
        prog_ifindex: 0,
        expected_attach_type: ATTACH_TYPE_CGROUP_DEVICE,
    };
    let fd = bpf(PROG_LOAD, &attributes)?;
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just returned this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches a program to a group, in one step with taking off `old`.
pub(crate) fn attach_device_program(
    group: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    old: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let attributes = Attach {
        target_fd: group.as_raw_fd(),
        attach_bpf_fd: program.as_raw_fd(),
        attach_type: ATTACH_TYPE_CGROUP_DEVICE,
        attach_flags: ALLOW_MULTI | if old.is_some() { REPLACE } else { 0 },
        replace_bpf_fd: old.map_or(0, |old| old.as_raw_fd()),
    };
    bpf(PROG_ATTACH, &attributes).map(drop)
}

/// Takes a program off a group.
pub(crate) fn detach_device_program(group: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = Attach {
        target_fd: group.as_raw_fd(),
        attach_bpf_fd: program.as_raw_fd(),
        attach_type: ATTACH_TYPE_CGROUP_DEVICE,
        attach_flags: 0,
        replace_bpf_fd: 0,
    };
    bpf(PROG_DETACH, &attributes).map(drop)
}
