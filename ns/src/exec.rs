//! [`Program`], what a process of [`struct@Clone`] becomes, without any unsafe code of the caller's.
//!
//! # Safety
//! The child's few lines are here, next to the only pointers that it follows.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, OsStr, c_char, c_void};
use std::os::unix::ffi::OsStrExt;
use std::ptr;

use crate::child::{exit, set_signal_mask};
use crate::error::{Errno, Error};
use crate::process::{Born, Clone};
use crate::stack::Stack;
use crate::sys;

/// A program with its arguments and environment, ready for execve(2).
///
/// It inherits what exec lets through: descriptors that are not close-on-exec, the working directory, ids, limits. For
/// all that a sandbox needs besides see the `sandbox` crate.
#[derive(Clone, Debug)]
pub struct Program {
    path: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

impl Program {
    /// The program at `path` (no search in `PATH`), called by that name, with an empty environment.
    ///
    /// # Errors
    /// [`Error::Invalid`] when there is a NUL byte in it.
    pub fn new(path: impl AsRef<OsStr>) -> Result<Self, Error> {
        let path = c_string("program", path.as_ref().as_bytes())?;
        Ok(Self { arguments: vec![path.clone()], path, environment: Vec::new() })
    }

    /// Adds an argument.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Result<Self, Error> {
        self.arguments.push(c_string("argument", argument.as_ref().as_bytes())?);
        Ok(self)
    }

    /// Adds a variable to the environment.
    ///
    /// # Errors
    /// As [`new`](Self::new); also for a name that is empty or contains `=`.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Result<Self, Error> {
        let name = name.as_ref().as_bytes();
        if name.is_empty() || name.contains(&b'=') {
            return Err(Error::invalid("environment variable", "its name is empty or contains `=`"));
        }
        let variable = [name, b"=", value.as_ref().as_bytes()].concat();
        self.environment.push(c_string("environment variable", &variable)?);
        Ok(self)
    }

    /// Starts it as a process of `clone`, with no signal blocked and all handlers at their defaults (ignored ones stay
    /// ignored); returns when it runs.
    ///
    /// # Errors
    /// As [`Clone::spawn`]; [`Error::Syscall`] with `execve`'s errno when the program cannot be executed: then the
    /// process has ended and been reaped.
    pub fn spawn(&self, clone: &Clone<'_>) -> Result<Born, Error> {
        let mut stack = Stack::new(0)?;
        let arguments = pointers(&self.arguments);
        let environment = pointers(&self.environment);
        let mut job =
            Job { path: &self.path, arguments: arguments.as_ptr(), environment: environment.as_ptr(), failed: None };
        let argument: *mut c_void = (&raw mut job).cast();
        // SAFETY: `child` takes a `Job`, makes raw system calls only and ends in exec or exit; `job` and what it
        // points to live until `spawn` returns.
        let born = unsafe { clone.spawn(&mut stack, child, argument) }?;
        match job.failed {
            None => Ok(born),
            Some(errno) => {
                born.pidfd.reap()?;
                Err(Error::call("execve", self.path.to_string_lossy(), errno))
            }
        }
    }
}

struct Job<'a> {
    path: &'a CStr,
    arguments: *const *const c_char,
    environment: *const *const c_char,
    /// Written by the child into our memory; the parent sleeps until then.
    failed: Option<Errno>,
}

unsafe extern "C" fn child(argument: *mut c_void) -> ! {
    // SAFETY: `spawn` above passes its `Job`, which nobody else uses while the parent sleeps.
    let job = unsafe { &mut *argument.cast::<Job<'_>>() };
    let failed = match set_signal_mask(0) {
        // SAFETY: both arrays end in a null pointer and live as long as `job`.
        Ok(_) => unsafe { sys::execve(job.path, job.arguments, job.environment) },
        Err(errno) => errno,
    };
    job.failed = Some(failed);
    exit(127)
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

fn c_string(what: &'static str, bytes: &[u8]) -> Result<CString, Error> {
    CString::new(bytes).map_err(|_| Error::invalid(what, format!("NUL byte in `{}`", String::from_utf8_lossy(bytes))))
}
