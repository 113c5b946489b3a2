//! A child that is born in a group: clone3(2) by hand, as a sandbox would do it.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use cgroup::Cgroup;

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct clone_args` as of Linux 5.7.
#[repr(C)]
#[derive(Default)]
struct Arguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// A child in the group that ends when the returned descriptor is closed.
pub fn in_group(group: &Cgroup) -> io::Result<(u32, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let (joined, said) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let mut arguments = Arguments { exit_signal: 17, ..Arguments::default() };
    if let Some(unified) = group.unified() {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = u64::try_from(unified.as_raw_fd()).unwrap();
    }
    let join: Vec<i32> = group.join_fds().map(|fd| fd.as_raw_fd()).collect();
    let (close, gate, say) = (write.as_raw_fd(), read.as_raw_fd(), said.as_raw_fd());
    // SAFETY: without CLONE_VM this is fork(2): the child has a copy of everything, and calls only system calls (no
    // memory, no locks) until it leaves. The arguments are whole and as long as is said.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<Arguments>()) };
    if pid == 0 {
        for fd in join {
            // SAFETY: writes one byte from a literal.
            unsafe { libc::write(fd, c"0".as_ptr().cast(), 1) };
        }
        // SAFETY: closes our own copy of the other end, or reading below would never end.
        unsafe { libc::close(close) };
        // SAFETY: writes one byte from a literal.
        unsafe { libc::write(say, c"j".as_ptr().cast(), 1) };
        let mut byte = 0u8;
        // SAFETY: reads one byte into a variable.
        unsafe { libc::read(gate, (&raw mut byte).cast(), 1) };
        // SAFETY: ends this process.
        unsafe { libc::_exit(0) };
    }
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    drop((read, said));
    rustix::io::read(&joined, &mut [0])?;
    Ok((u32::try_from(pid).unwrap(), write))
}

/// Waits for the child.
pub fn reap(pid: u32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()).unwrap();
}
