//! The one error type of the crate, and its hints.

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

/// Why something could not be done.
///
/// One line each, lower case; [`hint`](Self::hint) is part of the message and also to be had by itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be opened or read.
    #[error("cannot {op} {}: {error}{}", .path.display(), hint_text(self.hint()))]
    #[non_exhaustive]
    File {
        /// What was tried: `read`, `list`.
        op: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel answered.
        error: io::Error,
    },
    /// A system call was refused.
    #[error("cannot {call} {detail}: {error}{}", hint_text(self.hint()))]
    #[non_exhaustive]
    Syscall {
        /// The call: `prlimit`, `setrlimit`.
        call: &'static str,
        /// On what, with which values.
        detail: String,
        /// Which rule of the kernel refused it, where that could be found out.
        rule: Option<Rule>,
        /// What the kernel answered.
        error: io::Error,
    },
    /// A file does not have the form it should.
    #[error("{}:{line}: expected {expected}, found `{found}`", .path.display())]
    #[non_exhaustive]
    Parse {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1; 0 when it is about the whole file.
        line: usize,
        /// What should stand there.
        expected: &'static str,
        /// What stands there, shortened.
        found: String,
    },
    /// Something given by the caller makes no sense.
    #[error("{what}: {why}")]
    #[non_exhaustive]
    Invalid {
        /// What was given.
        what: String,
        /// Why it cannot be used.
        why: String,
    },
}

/// A rule by which the kernel refuses to change a limit; `prlimit(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rule {
    /// Raising a hard limit needs CAP_SYS_RESOURCE in the **initial** user namespace; root of a container lacks it.
    RaiseHard,
    /// `nofile` may not exceed the sysctl `fs.nr_open`, whoever asks.
    AboveNrOpen,
    /// Another process's limits: the caller's real uid and gid must be the real, effective and saved ids of the target,
    /// or the caller must hold CAP_SYS_RESOURCE in the user namespace of the target.
    OtherOwner,
}

impl Error {
    /// The error number of the kernel, where there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::File { error, .. } | Self::Syscall { error, .. } => error.raw_os_error(),
            Self::Parse { .. } | Self::Invalid { .. } => None,
        }
    }

    /// What to do about it, when the cause is known.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::File { op, error, .. } => hint(op, None, error),
            Self::Syscall { call, rule, error, .. } => hint(call, *rule, error),
            Self::Parse { .. } | Self::Invalid { .. } => None,
        }
    }
}

fn hint(op: &str, rule: Option<Rule>, error: &io::Error) -> Option<&'static str> {
    let errno = error.raw_os_error().filter(|number| (1..4096).contains(number)).map(Errno::from_raw_os_error)?;
    match (op, rule, errno) {
        ("setrlimit" | "prlimit", Some(Rule::RaiseHard), Errno::PERM) => Some(
            "raising a hard limit needs CAP_SYS_RESOURCE in the initial user namespace, which root of a container or \
             user namespace does not have; stay at or below the present hard limit",
        ),
        ("setrlimit" | "prlimit", Some(Rule::AboveNrOpen), Errno::PERM) => {
            Some("nofile may not exceed the sysctl fs.nr_open; raise that first or ask for less")
        }
        ("prlimit", Some(Rule::OtherOwner), Errno::PERM) => Some(
            "the process belongs to another user: needs CAP_SYS_RESOURCE in the user namespace of the process, or a \
             real uid and gid equal to its real, effective and saved ids",
        ),
        ("setrlimit" | "prlimit", _, Errno::PERM) => Some(
            "needs CAP_SYS_RESOURCE: in the initial user namespace to raise a hard limit, in that of the process to \
             change the limits of another user's process",
        ),
        ("prlimit", _, Errno::SRCH) => Some("there is no process with that id"),
        ("open", _, Errno::LOOP | Errno::XDEV) => {
            Some("a symbolic link below the given root leads outside or in a circle")
        }
        _ => None,
    }
}

fn hint_text(hint: Option<&str>) -> String {
    hint.map(|hint| format!(" (hint: {hint})")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn syscall(call: &'static str, rule: Option<Rule>, errno: Errno) -> Error {
        Error::Syscall { call, detail: "nofile=1:2 of process 7".to_owned(), rule, error: errno.into() }
    }

    #[test]
    fn each_hint_names_its_cause() {
        for (error, words) in [
            (syscall("setrlimit", Some(Rule::RaiseHard), Errno::PERM), "initial user namespace, which root"),
            (syscall("prlimit", Some(Rule::AboveNrOpen), Errno::PERM), "fs.nr_open"),
            (syscall("prlimit", Some(Rule::OtherOwner), Errno::PERM), "another user"),
            (syscall("prlimit", None, Errno::PERM), "in that of the process"),
            (syscall("prlimit", None, Errno::SRCH), "no process with that id"),
            (Error::File { op: "open", path: "/r/a".into(), error: Errno::LOOP.into() }, "symbolic link"),
        ] {
            let line = error.to_string();
            assert!(line.contains(words) && line.contains("(hint: ") && !line.contains('\n'), "{line}");
            assert!(error.errno().is_some());
        }
        assert_eq!(syscall("prlimit", None, Errno::INVAL).hint(), None);
        for number in [i32::MIN, -1, 0, 4096, i32::MAX] {
            let error = io::Error::from_raw_os_error(number);
            assert_eq!(Error::File { op: "read", path: "/x".into(), error }.hint(), None);
        }
    }

    #[test]
    fn messages_say_what_and_where() {
        let error = Error::Parse { path: "/x".into(), line: 3, expected: "a number", found: "y".into() };
        assert_eq!(error.to_string(), "/x:3: expected a number, found `y`");
        assert_eq!((error.errno(), error.hint()), (None, None));
    }
}
