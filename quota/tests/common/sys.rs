//! Calls that the tests make themselves, so as to look at the kernel past the crate.
//!
//! # Safety
//! Descriptors are borrowed for the call, paths NUL-terminated, and pointers lead to whole values of plain integers.

#![allow(
    unsafe_code,
    unreachable_pub,
    missing_docs,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss
)]

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Command};

pub(crate) const QUOTACTL_FD: i64 = 443;
pub(crate) const PRJQUOTA: u32 = 2;
pub(crate) const PROJINHERIT: u32 = 0x200;
const FSGETXATTR: u32 = 0x801c_581f;
const FSSETXATTR: u32 = 0x401c_5820;

pub(crate) const XQUOTAON: u32 = 0x5801;
pub(crate) const XQUOTAOFF: u32 = 0x5802;
pub(crate) const XGETQUOTA: u32 = 0x5803;
pub(crate) const XSETQLIM: u32 = 0x5804;
pub(crate) const XGETQSTATV: u32 = 0x5808;
pub(crate) const XGETNEXTQUOTA: u32 = 0x5809;

/// `fs_disk_quota` as 14 words: fieldmask and id in the first, then bhard, bsoft, ihard, isoft, bcount, icount, …
pub(crate) type Dquot = [u64; 14];

pub(crate) fn command(subcommand: u32) -> u32 {
    subcommand << 8 | PRJQUOTA
}

fn result(ret: i64) -> io::Result<()> {
    if ret == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

pub(crate) fn quotactl_fd(fd: BorrowedFd<'_>, subcommand: u32, id: u32, data: &mut Dquot) -> io::Result<()> {
    let data = data.as_mut_ptr();
    // SAFETY: the payloads of the commands above fit into `data`.
    result(unsafe { libc::syscall(QUOTACTL_FD, fd.as_raw_fd(), command(subcommand), id, data) })
}

pub(crate) fn quotactl_path(path: &Path, subcommand: u32, id: u32, data: &mut [u64; 32]) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let data = data.as_mut_ptr();
    // SAFETY: as above; `path` is NUL-terminated.
    result(unsafe { libc::syscall(libc::SYS_quotactl, command(subcommand), path.as_ptr(), id, data) })
}

/// The project and the flags of what can be opened.
pub(crate) fn get_project(path: &Path) -> io::Result<(u32, u32)> {
    let file = open(path)?;
    let mut attributes = [0u32; 7];
    // SAFETY: the ioctl writes 28 bytes.
    result(unsafe { libc::ioctl(file.as_raw_fd(), FSGETXATTR as _, attributes.as_mut_ptr()) }.into())?;
    Ok((attributes[3], attributes[0]))
}

/// Sets the project, and the flags by a function of the old ones.
pub(crate) fn set_project(path: &Path, project: u32, flags: impl FnOnce(u32) -> u32) -> io::Result<()> {
    let file = open(path)?;
    let mut attributes = [0u32; 7];
    // SAFETY: the ioctl writes 28 bytes.
    result(unsafe { libc::ioctl(file.as_raw_fd(), FSGETXATTR as _, attributes.as_mut_ptr()) }.into())?;
    attributes[3] = project;
    attributes[0] = flags(attributes[0]);
    // SAFETY: the ioctl reads 28 bytes.
    result(unsafe { libc::ioctl(file.as_raw_fd(), FSSETXATTR as _, attributes.as_ptr()) }.into())
}

fn open(path: &Path) -> io::Result<File> {
    fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW).open(path)
}

/// file_setattr(2): project alone, flags 0, not following links.
pub(crate) fn file_setattr(path: &Path, project: u32) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attributes: [u32; 6] = [0, 0, 0, 0, project, 0];
    let data = attributes.as_ptr();
    // SAFETY: `path` is NUL-terminated and the call reads 24 bytes.
    result(unsafe { libc::syscall(469, libc::AT_FDCWD, path.as_ptr(), data, 24usize, libc::AT_SYMLINK_NOFOLLOW) })
}

/// Denies this thread the two ways of changing a project, as a sandbox's filter does.
pub(crate) fn deny_project_changes() -> io::Result<()> {
    let load = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    let equal = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let give = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let deny = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    let mut steps = [
        step(load, 0, 0, 0),                       // the number of the call
        step(equal, 4, 0, 469),                    // file_setattr: deny
        step(equal, 0, 2, libc::SYS_ioctl as u32), // not ioctl: allow
        step(load, 0, 0, 24),                      // low half of its second argument
        step(equal, 1, 0, FSSETXATTR),             // the change: deny
        step(give, 0, 0, libc::SECCOMP_RET_ALLOW),
        step(give, 0, 0, deny),
    ];
    filter(&mut steps)
}

/// Lets these calls answer ENOSYS to this thread, as a kernel without them does.
pub(crate) fn without_calls(calls: &[i64]) -> io::Result<()> {
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut steps = vec![step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0)];
    for &call in calls {
        steps.push(step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, call as u32));
        steps.push(step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32));
    }
    steps.push(step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW));
    filter(&mut steps)
}

fn filter(steps: &mut [libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    // SAFETY: no pointers.
    result(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }.into())?;
    // SAFETY: `program` and the steps that it points to are alive across the call.
    result(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) })
}

/// Stores a byte into each page of a hole of the file, mapped shared. At the limit the kernel ends this with SIGBUS.
pub(crate) fn store_into_hole(path: &Path, bytes: usize) -> io::Result<()> {
    let file = fs::OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
    file.set_len(bytes as u64)?;
    let (protection, fd) = (libc::PROT_READ | libc::PROT_WRITE, file.as_raw_fd());
    // SAFETY: a fresh mapping of an open file, at an address of the kernel's choice.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, libc::MAP_SHARED, fd, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    for offset in (0..bytes).step_by(4096) {
        // SAFETY: `offset` lies in the mapping, which nobody else knows.
        let page = unsafe { start.cast::<u8>().add(offset) };
        // SAFETY: as above; volatile, so that it is done.
        unsafe { page.write_volatile(1) };
    }
    Ok(())
}

/// A mount namespace for this thread alone, from which nothing spreads.
pub(crate) fn private_mounts() -> io::Result<()> {
    // SAFETY: it takes no pointers, and only this thread's view of mounts changes.
    result(unsafe { libc::unshare(libc::CLONE_NEWNS | libc::CLONE_FS) }.into())?;
    let flags = libc::MS_REC | libc::MS_PRIVATE;
    let (none, root) = (std::ptr::null(), c"/".as_ptr());
    // SAFETY: `root` is NUL-terminated; the other pointers may be null for this request.
    result(unsafe { libc::mount(none, root, none, flags, none.cast()) }.into())
}

pub(crate) fn open_to_all(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
}

/// Lets the thread that started this process stop this one at its system calls. Stops at once.
pub(crate) fn let_parent_trace() -> io::Result<()> {
    let none = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: the request uses no pointer.
    result(unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, none, none) })?;
    // SAFETY: no pointers; the signal goes to the calling thread, whose tracer it wakes.
    result(unsafe { libc::raise(libc::SIGSTOP) }.into())
}

/// A child with a thread that called [`let_parent_trace`]. It dies with this value. To be used in the thread that made it,
/// which has no other children.
#[derive(Debug)]
pub(crate) struct Traced {
    child: Child,
    thread: libc::pid_t,
}

impl Traced {
    /// Starts it and waits for the thread.
    pub(crate) fn start(command: &mut Command) -> io::Result<Self> {
        let mut traced = Self { child: command.spawn()?, thread: 0 };
        let (thread, status) = wait_any()?;
        if !libc::WIFSTOPPED(status) {
            return Err(io::Error::other(format!("it ended: {status:#x}")));
        }
        traced.thread = thread;
        let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_EXITKILL;
        let (none, options) = (std::ptr::null_mut::<libc::c_void>(), options as *mut libc::c_void);
        // SAFETY: a stopped thread of ours; the request takes a number for a pointer.
        result(unsafe { libc::ptrace(libc::PTRACE_SETOPTIONS, thread, none, options) })?;
        Ok(traced)
    }

    /// Lets it run until it is about to make its `number`th system call, from 1, or until it is over: `true`.
    pub(crate) fn run_to_call(&self, number: u64) -> io::Result<bool> {
        let none = std::ptr::null_mut::<libc::c_void>();
        // It stops before each call and after it.
        for _ in 0..2 * number - 1 {
            // SAFETY: a stopped thread of ours; without pointers and without a signal.
            result(unsafe { libc::ptrace(libc::PTRACE_SYSCALL, self.thread, none, none) })?;
            let (_, status) = wait_any()?;
            if !libc::WIFSTOPPED(status) {
                return Ok(true);
            }
            assert_eq!(libc::WSTOPSIG(status), libc::SIGTRAP | 0x80, "a signal");
        }
        Ok(false)
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        let _ = self.child.kill();
        // The traced thread first: until it is waited for, the process does not end.
        while wait_any().is_ok() {}
        let _ = self.child.wait();
    }
}

/// Children of this thread alone, and their threads that it traces.
fn wait_any() -> io::Result<(libc::pid_t, libc::c_int)> {
    let mut status = 0;
    // SAFETY: `status` is an integer of ours.
    match unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL | libc::__WNOTHREAD) } {
        -1 => Err(io::Error::last_os_error()),
        thread => Ok((thread, status)),
    }
}
