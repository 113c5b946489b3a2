//! What can go wrong: [`Errno`] where a clone child may say only a number, [`Error`] where words can be allocated.

use std::path::PathBuf;
use std::{fmt, io};

/// An error number of the kernel, as the child-side functions return it: one `i32`, no heap, no thread-local.
///
/// Turn it into words on the parent's side with [`words`](Self::words), `Display` or `io::Error::from`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(i32);

impl Errno {
    /// Wraps an error number as `errno(3)` lists them (positive).
    pub const fn from_raw(errno: i32) -> Self {
        Self(errno)
    }

    /// The number.
    pub const fn raw(self) -> i32 {
        self.0
    }

    /// The meaning in a few English words, without allocating; `"unknown error"` for numbers that the calls of this
    /// crate do not return.
    pub const fn words(self) -> &'static str {
        match self.0 {
            libc::EPERM => "operation not permitted",
            libc::ENOENT => "no such file or directory",
            libc::ESRCH => "no such process",
            libc::EINTR => "interrupted system call",
            libc::EIO => "input/output error",
            libc::E2BIG => "argument list too long",
            libc::ENOEXEC => "exec format error",
            libc::EBADF => "bad file descriptor",
            libc::ECHILD => "no child processes",
            libc::EAGAIN => "resource temporarily unavailable",
            libc::ENOMEM => "cannot allocate memory",
            libc::EACCES => "permission denied",
            libc::EFAULT => "bad address",
            libc::EBUSY => "device or resource busy",
            libc::EEXIST => "file exists",
            libc::EXDEV => "invalid cross-device link",
            libc::ENODEV => "no such device",
            libc::ENOTDIR => "not a directory",
            libc::EISDIR => "is a directory",
            libc::EINVAL => "invalid argument",
            libc::ENFILE => "too many open files in system",
            libc::EMFILE => "too many open files",
            libc::ENOTTY => "inappropriate ioctl for device",
            libc::EFBIG => "file too large",
            libc::ENOSPC => "no space left on device",
            libc::EROFS => "read-only file system",
            libc::EMLINK => "too many links",
            libc::ERANGE => "numerical result out of range",
            libc::EDEADLK => "resource deadlock avoided",
            libc::ENAMETOOLONG => "file name too long",
            libc::ENOSYS => "function not implemented",
            libc::ENOTEMPTY => "directory not empty",
            libc::ELOOP => "too many levels of symbolic links",
            libc::EOVERFLOW => "value too large for defined data type",
            libc::EUSERS => "too many users",
            libc::EOPNOTSUPP => "operation not supported",
            libc::EAFNOSUPPORT => "address family not supported by protocol",
            libc::ENETUNREACH => "network is unreachable",
            libc::ECONNREFUSED => "connection refused",
            libc::ESTALE => "stale file handle",
            libc::EDQUOT => "disk quota exceeded",
            _ => "unknown error",
        }
    }

    pub(crate) fn of(error: rustix::io::Errno) -> Self {
        Self(error.raw_os_error())
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Errno({}: {})", self.0, self.words())
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (os error {})", self.words(), self.0)
    }
}

impl std::error::Error for Errno {}

impl From<Errno> for io::Error {
    fn from(errno: Errno) -> Self {
        Self::from_raw_os_error(errno.0)
    }
}

/// An error of the parent's side, one line, with the hint where the cause is known.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call failed.
    #[error("{call}{}{detail}: {error}{}", sep(.detail), hinted(.call, .error))]
    #[non_exhaustive]
    Syscall {
        /// The call's name as strace prints it.
        call: &'static str,
        /// What it was to do; may be empty.
        detail: String,
        /// The kernel's answer.
        error: io::Error,
    },
    /// A file could not be used.
    #[error("cannot {op} {}: {error}{}", .path.display(), hinted(.op, .error))]
    #[non_exhaustive]
    File {
        /// `open`, `read`, …
        op: &'static str,
        /// Which file.
        path: PathBuf,
        /// The kernel's answer.
        error: io::Error,
    },
    /// A kernel file held something else than its documentation says.
    #[error("{}:{line}: expected {expected}, found `{found}`", .path.display())]
    #[non_exhaustive]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Line, counted from 1.
        line: usize,
        /// What belongs there.
        expected: &'static str,
        /// What stood there.
        found: String,
    },
    /// The caller asked for something that cannot be.
    #[error("{what}: {why}")]
    #[non_exhaustive]
    Invalid {
        /// Which argument.
        what: &'static str,
        /// Why it cannot be.
        why: String,
    },
    /// This kernel or host lacks something.
    #[error("{feature} is not supported here: needs {needs}")]
    #[non_exhaustive]
    Unsupported {
        /// What was asked for.
        feature: &'static str,
        /// What it needs.
        needs: &'static str,
    },
}

impl Error {
    /// The kernel's error number, when a system call or file access failed.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Syscall { error, .. } | Self::File { error, .. } => error.raw_os_error(),
            _ => None,
        }
    }

    /// What usually causes this and what helps, when that is known. The error's text ends with it too.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Syscall { call: what, error, .. } | Self::File { op: what, error, .. } => hint(what, error),
            _ => None,
        }
    }

    pub(crate) fn call(call: &'static str, detail: impl Into<String>, errno: Errno) -> Self {
        Self::Syscall { call, detail: detail.into(), error: errno.into() }
    }

    pub(crate) fn file(op: &'static str, path: impl Into<PathBuf>, error: io::Error) -> Self {
        Self::File { op, path: path.into(), error }
    }

    pub(crate) fn invalid(what: &'static str, why: impl Into<String>) -> Self {
        Self::Invalid { what, why: why.into() }
    }
}

fn sep(detail: &str) -> &'static str {
    if detail.is_empty() { "" } else { " " }
}

fn hinted(call: &str, error: &io::Error) -> String {
    hint(call, error).map_or_else(String::new, |hint| format!(" (hint: {hint})"))
}

/// The one table of hints: `(call or op, errno)` to the usual cause and what helps.
fn hint(call: &str, error: &io::Error) -> Option<&'static str> {
    Some(match (call, error.raw_os_error()?) {
        ("clone3", libc::ENOSYS) => "Linux before 5.3, or a seccomp filter of an outer container hides clone3",
        ("clone3", libc::EPERM) => {
            "new namespaces need CAP_SYS_ADMIN, or a user namespace beside them; user namespaces may be forbidden by \
             user.max_user_namespaces, kernel.unprivileged_userns_clone, AppArmor, a chroot or an outer seccomp filter"
        }
        ("clone3", libc::EINVAL) => {
            "this kernel lacks one of the namespaces; or CLONE_PARENT was asked for by an init; or a time namespace, \
             which older kernels refuse together with CLONE_VM"
        }
        ("clone3", libc::EAGAIN) => {
            "a process limit is reached: RLIMIT_NPROC of this uid, pids.max of the cgroup, or kernel.pid_max"
        }
        ("clone3", libc::ENOSPC) => {
            "a namespace limit is reached: 32 nested PID or user namespaces, or a user.max_*_namespaces sysctl"
        }
        ("clone3", libc::EUSERS) => "user namespaces are nested too deep, or user.max_user_namespaces is reached",
        ("clone3", libc::ENOMEM) => {
            "out of kernel memory, or the init of the PID namespace for new children is already dead"
        }
        ("clone3", libc::EBUSY) => "a cgroup with controllers enabled for its children holds no processes; use a leaf",
        ("clone3", libc::EACCES) => "no write permission on cgroup.procs of the cgroup or of its common ancestor",
        ("clone3", libc::ENODEV) => "the cgroup to be born in has been removed",
        ("clone3", libc::EOPNOTSUPP) => "the cgroup to be born in is in an invalid domain state (cgroup.type)",
        ("setns" | "pidfd_open" | "pidfd_send_signal", libc::ESRCH) => "the process has ended",
        (_, libc::EMFILE) => "this process has no file descriptors left; raise RLIMIT_NOFILE",
        ("pidfd_open", libc::EINVAL) => "the pid is a thread's, not a process's",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_hint_is_reached_and_says_something() {
        for (call, errno, word) in [
            ("clone3", libc::ENOSYS, "seccomp"),
            ("clone3", libc::EPERM, "CAP_SYS_ADMIN"),
            ("clone3", libc::EINVAL, "CLONE_PARENT"),
            ("clone3", libc::EAGAIN, "RLIMIT_NPROC"),
            ("clone3", libc::ENOSPC, "32 nested"),
            ("clone3", libc::EUSERS, "nested too deep"),
            ("clone3", libc::ENOMEM, "init"),
            ("clone3", libc::EBUSY, "leaf"),
            ("clone3", libc::EACCES, "cgroup.procs"),
            ("clone3", libc::ENODEV, "removed"),
            ("clone3", libc::EOPNOTSUPP, "cgroup.type"),
            ("setns", libc::ESRCH, "ended"),
            ("pidfd_open", libc::ESRCH, "ended"),
            ("pidfd_send_signal", libc::ESRCH, "ended"),
            ("pidfd_open", libc::EINVAL, "thread"),
            ("pidfd_open", libc::EMFILE, "RLIMIT_NOFILE"),
        ] {
            let error = Error::call(call, "", Errno::from_raw(errno));
            assert!(error.hint().is_some_and(|hint| hint.contains(word)), "{call} {errno}");
            assert!(error.to_string().ends_with(')') && error.to_string().contains(word), "{error}");
            assert_eq!(error.errno(), Some(errno));
        }
        let error = Error::file("read", "/proc/self/fdinfo/3", io::Error::from_raw_os_error(libc::EMFILE));
        assert!(error.to_string().contains("RLIMIT_NOFILE"), "{error}");
        assert_eq!(Error::call("mmap", "", Errno::from_raw(libc::ENOMEM)).hint(), None);
    }

    #[test]
    fn text_is_one_line_without_double_blanks() {
        let error = Error::call("clone3", "flags 0x100", Errno::from_raw(libc::EIO));
        assert_eq!(error.to_string(), "clone3 flags 0x100: Input/output error (os error 5)");
        let error = Error::invalid("stack size", "0 bytes");
        assert_eq!((error.to_string().as_str(), error.errno()), ("stack size: 0 bytes", None));
    }

    #[test]
    fn errno_words() {
        let loops = Errno::from_raw(libc::ELOOP);
        assert_eq!(loops.to_string(), "too many levels of symbolic links (os error 40)");
        assert_eq!(io::Error::from(loops).raw_os_error(), Some(40));
        assert_eq!(Errno::from_raw(99_999).words(), "unknown error");
    }
}
