//! posix_spawn(3) as the yardstick, and poll(2).
//!
//! # Safety
//! Each function hands the C library pointers to objects that live across the call.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::ptr;
use std::time::Duration;

/// A program, prepared so that each spawn is one posix_spawn(3) and one waitpid(2) and nothing else: the least that
/// running it can cost with the C library's means.
pub struct Spawner {
    program: CString,
    args: Vec<CString>,
    actions: libc::posix_spawn_file_actions_t,
    // What `actions` name.
    _null: File,
}

impl std::fmt::Debug for Spawner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spawner").field("program", &self.program).finish_non_exhaustive()
    }
}

impl Spawner {
    /// `program` is a path; `args` begin with its name. Its three streams are `/dev/null`, its environment is empty.
    ///
    /// # Errors
    /// When `/dev/null` cannot be opened or memory is short.
    pub fn new(program: CString, args: Vec<CString>) -> io::Result<Self> {
        let null = File::options().read(true).write(true).open("/dev/null")?;
        let mut actions = MaybeUninit::uninit();
        // SAFETY: it initialises what the pointer leads to.
        check(unsafe { libc::posix_spawn_file_actions_init(actions.as_mut_ptr()) })?;
        // SAFETY: the call above has succeeded.
        let mut actions = unsafe { actions.assume_init() };
        for number in 0..3 {
            // SAFETY: `actions` are initialised; the descriptor stays open as long as they live.
            check(unsafe {
                libc::posix_spawn_file_actions_adddup2(&raw mut actions, null.as_fd().as_raw_fd(), number)
            })?;
        }
        Ok(Self { program, args, actions, _null: null })
    }

    /// Runs it and waits for its end.
    ///
    /// # Errors
    /// When it cannot be executed.
    pub fn run(&self) -> io::Result<ExitStatus> {
        let argv: Vec<*mut c_char> =
            self.args.iter().map(|arg| CStr::as_ptr(arg).cast_mut()).chain([ptr::null_mut()]).collect();
        let environment: [*mut c_char; 1] = [ptr::null_mut()];
        let mut pid = 0;
        // SAFETY: NUL-terminated strings, NULL-terminated arrays and initialised actions, all alive across the call.
        check(unsafe {
            libc::posix_spawn(
                &raw mut pid,
                self.program.as_ptr(),
                &raw const self.actions,
                ptr::null(),
                argv.as_ptr(),
                environment.as_ptr(),
            )
        })?;
        let mut status = 0;
        loop {
            // SAFETY: `status` is a whole int; the pid is a child of ours that nobody else waits for.
            if unsafe { libc::waitpid(pid, &raw mut status, 0) } == pid {
                return Ok(ExitStatus::from_raw(status));
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}

impl Drop for Spawner {
    fn drop(&mut self) {
        // SAFETY: initialised once, destroyed once.
        let _ = unsafe { libc::posix_spawn_file_actions_destroy(&raw mut self.actions) };
    }
}

fn check(errno: i32) -> io::Result<()> {
    if errno == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(errno)) }
}

/// Waits until `fd` can be read, or its other end is closed; false when `timeout` comes first.
///
/// # Errors
/// When the kernel refuses.
pub fn readable(fd: BorrowedFd<'_>, timeout: Duration) -> io::Result<bool> {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let timeout = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: one pollfd that lives across the call.
    match unsafe { libc::poll(&raw mut poll, 1, timeout) } {
        -1 => Err(io::Error::last_os_error()),
        ready => Ok(ready > 0),
    }
}
