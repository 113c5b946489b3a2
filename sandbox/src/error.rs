//! The one error of the facade, and the words for what a host refuses.

use std::io;
use std::path::{Path, PathBuf};

/// Why a sandbox was not planned, not built or not started, or why one could not be asked.
///
/// How a *program* ended is never an error: see [`Outcome`](crate::Outcome). Whenever one of these comes back from
/// [`spawn`](crate::Command::spawn), [`status`](crate::Command::status) or [`output`](crate::Command::output), no
/// program ran.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The builder holds a value or a combination that no host could serve.
    #[error("invalid {what}: {why}")]
    #[non_exhaustive]
    Invalid {
        /// The builder method or argument.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// A required feature cannot be enforced here. Nothing was started.
    #[error("cannot enforce {feature}: {why} (hint: {fix})")]
    #[non_exhaustive]
    Unsupported {
        /// Name of the [`Feature`](crate::Feature).
        feature: String,
        /// What was found.
        why: String,
        /// What would help.
        fix: String,
    },
    /// A step of the set-up failed; the words of the step follow "cannot".
    #[error("cannot {step}{}: {error}{}", show(.path.as_deref()), hint_text(.step, .error))]
    #[non_exhaustive]
    Setup {
        /// What was being done.
        step: String,
        /// What it was done to.
        path: Option<PathBuf>,
        /// The kernel's answer.
        error: io::Error,
    },
    /// The sandbox stood, but the program could not be executed in it.
    #[error("cannot execute {}: {}", .path.display(), .cause.words())]
    #[non_exhaustive]
    Program {
        /// The program as it was named or as it was found in the sandbox's `PATH`.
        path: PathBuf,
        /// Which of the ways in which execve(2) refuses.
        cause: ProgramCause,
        /// The kernel's answer.
        error: io::Error,
    },
    /// The instance ended while it was asked for something.
    #[error("the sandbox ended while {during}")]
    #[non_exhaustive]
    Ended {
        /// What it was asked for.
        during: &'static str,
    },
    /// From the cgroup crate.
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
    /// From the namespace crate.
    #[error(transparent)]
    Namespace(#[from] ns::Error),
    /// From the id crate.
    #[error(transparent)]
    Ids(#[from] userns::Error),
    /// From the resource limit crate.
    #[error(transparent)]
    Rlimit(#[from] rlimit::Error),
    /// From the quota crate.
    #[error(transparent)]
    Quota(#[from] quota::Error),
}

/// Why a program could not be executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ProgramCause {
    /// No such file in the sandbox (`ENOENT`).
    NotFound,
    /// The file is there; the interpreter of its `#!` line, or its dynamic loader, is not (`ENOENT`).
    InterpreterNotFound,
    /// It is a directory (`EACCES`).
    IsADirectory,
    /// It has no execute permission for the program's user, or lies on a `noexec` mount (`EACCES`).
    NotExecutable,
    /// Arguments and environment together are too long (`E2BIG`).
    ArgumentsTooLong,
    /// It is neither an ELF file for this machine nor a script with a `#!` line (`ENOEXEC`).
    UnknownFormat,
    /// Anything else; see [`Error::errno`].
    Other,
}

impl ProgramCause {
    pub(crate) const fn words(self) -> &'static str {
        match self {
            Self::NotFound => "no such file in the sandbox",
            Self::InterpreterNotFound => "its interpreter or dynamic loader is not in the sandbox",
            Self::IsADirectory => "it is a directory",
            Self::NotExecutable => "it is not executable for the user inside (mode, owner or a noexec mount)",
            Self::ArgumentsTooLong => "arguments and environment are too long",
            Self::UnknownFormat => "neither an ELF file for this machine nor a script with a #! line",
            Self::Other => "the kernel refused",
        }
    }

    const fn kind(self) -> ErrorKind {
        match self {
            Self::NotFound => ErrorKind::ProgramNotFound,
            Self::InterpreterNotFound => ErrorKind::InterpreterNotFound,
            Self::IsADirectory => ErrorKind::ProgramIsADirectory,
            Self::NotExecutable => ErrorKind::ProgramNotExecutable,
            Self::ArgumentsTooLong => ErrorKind::ArgumentsTooLong,
            Self::UnknownFormat => ErrorKind::UnknownFormat,
            Self::Other => ErrorKind::Program,
        }
    }
}

/// What an [`Error`] is about, for a `match` that wants no details.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// [`Error::Invalid`]: change the call.
    Invalid,
    /// [`Error::Unsupported`]: change the host, or [`prefer`](crate::Builder::prefer) the feature.
    Unsupported,
    /// A step of the set-up failed.
    Setup,
    /// [`ProgramCause::NotFound`].
    ProgramNotFound,
    /// [`ProgramCause::InterpreterNotFound`].
    InterpreterNotFound,
    /// [`ProgramCause::IsADirectory`].
    ProgramIsADirectory,
    /// [`ProgramCause::NotExecutable`].
    ProgramNotExecutable,
    /// [`ProgramCause::ArgumentsTooLong`].
    ArgumentsTooLong,
    /// [`ProgramCause::UnknownFormat`].
    UnknownFormat,
    /// Execution was refused for another reason.
    Program,
    /// [`Error::Ended`].
    Ended,
}

impl ErrorKind {
    /// The name in JSON documents.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Unsupported => "unsupported",
            Self::Setup => "setup",
            Self::ProgramNotFound => "program_not_found",
            Self::InterpreterNotFound => "interpreter_not_found",
            Self::ProgramIsADirectory => "program_is_a_directory",
            Self::ProgramNotExecutable => "program_not_executable",
            Self::ArgumentsTooLong => "arguments_too_long",
            Self::UnknownFormat => "unknown_format",
            Self::Program => "program",
            Self::Ended => "ended",
        }
    }
}

impl Error {
    pub(crate) fn invalid(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Invalid { what: what.into(), why: why.into() }
    }

    pub(crate) fn unsupported(feature: impl ToString, why: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::Unsupported { feature: feature.to_string(), why: why.into(), fix: fix.into() }
    }

    pub(crate) fn setup(step: impl Into<String>, error: impl Into<io::Error>) -> Self {
        Self::Setup { step: step.into(), path: None, error: error.into() }
    }

    pub(crate) fn setup_at(step: impl Into<String>, path: impl Into<PathBuf>, error: impl Into<io::Error>) -> Self {
        Self::Setup { step: step.into(), path: Some(path.into()), error: error.into() }
    }

    /// What this is about.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Invalid { .. } => ErrorKind::Invalid,
            Self::Unsupported { .. } => ErrorKind::Unsupported,
            Self::Program { cause, .. } => cause.kind(),
            Self::Ended { .. } => ErrorKind::Ended,
            Self::Setup { .. }
            | Self::Cgroup(_)
            | Self::Namespace(_)
            | Self::Ids(_)
            | Self::Rlimit(_)
            | Self::Quota(_) => ErrorKind::Setup,
        }
    }

    /// The kernel's error number, where one was the cause.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Setup { error, .. } | Self::Program { error, .. } => error.raw_os_error(),
            Self::Cgroup(error) => error.errno(),
            Self::Namespace(error) => error.errno(),
            Self::Ids(error) => error.errno(),
            Self::Rlimit(error) => error.errno(),
            Self::Quota(error) => error.errno(),
            Self::Invalid { .. } | Self::Unsupported { .. } | Self::Ended { .. } => None,
        }
    }

    /// Which step failed, in words that follow "cannot".
    pub fn step(&self) -> Option<&str> {
        match self {
            Self::Setup { step, .. } => Some(step),
            Self::Program { .. } => Some("execute"),
            Self::Invalid { what, .. } => Some(what),
            Self::Unsupported { feature, .. } => Some(feature),
            Self::Ended { during } => Some(during),
            _ => None,
        }
    }

    /// The file that it was about.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Setup { path, .. } => path.as_deref(),
            Self::Program { path, .. } => Some(path),
            _ => None,
        }
    }

    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unsupported { fix, .. } => Some(fix.clone()),
            Self::Setup { step, error, .. } => hint(step, error).map(str::to_owned),
            Self::Program { cause: ProgramCause::InterpreterNotFound, .. } => {
                Some("bind the interpreter or loader that the file names into the sandbox".to_owned())
            }
            Self::Cgroup(error) => error.hint().map(str::to_owned),
            Self::Namespace(error) => error.hint().map(str::to_owned),
            Self::Ids(error) => error.hint().map(str::to_owned),
            Self::Rlimit(error) => error.hint().map(str::to_owned),
            Self::Quota(error) => error.hint().map(str::to_owned),
            _ => None,
        }
    }
}

fn show(path: Option<&Path>) -> String {
    path.map_or_else(String::new, |path| format!(" {}", path.display()))
}

fn hint_text(step: &str, error: &io::Error) -> String {
    hint(step, error).map_or_else(String::new, |hint| format!(" (hint: {hint})"))
}

/// A leaf's message without its hint, and the hint: reports have a field for each.
pub(crate) fn cause_and_hint(text: String, hint: Option<&str>) -> (String, Option<String>) {
    let Some(hint) = hint else { return (text, None) };
    let cause = text.strip_suffix(&format!(" (hint: {hint})")).unwrap_or(&text).to_owned();
    (cause, Some(hint.to_owned()))
}

/// Why something cannot be had, and the fix.
pub(crate) type Refusal = (String, String);

/// The causes that are known for certain.
fn hint(step: &str, error: &io::Error) -> Option<&'static str> {
    Some(match (step, error.raw_os_error()?) {
        (_, libc::EMFILE) => "this process has no file descriptors left; raise RLIMIT_NOFILE",
        ("mount the program's /proc", libc::EPERM) => {
            "an outer container covers parts of /proc, so the kernel refuses a new one in a user namespace"
        }
        ("make a file system by", libc::ENOENT) => {
            "install it, for ext4 from e2fsprogs, for XFS from xfsprogs, into /usr/sbin, /sbin or /usr/bin"
        }
        ("make a disk image in", libc::EOPNOTSUPP | libc::EISDIR) => {
            "name a state_dir on a file system with O_TMPFILE: XFS, ext4, btrfs or tmpfs"
        }
        ("make a disk image in" | "copy a disk image in", libc::ENOSPC | libc::EDQUOT | libc::EROFS) => {
            "name a state_dir on a file system that has room and is mounted for writing"
        }
        ("open the loop device", libc::ENOENT | libc::ENXIO | libc::ENODEV) => {
            "a kernel with loop devices (CONFIG_BLK_DEV_LOOP; modprobe loop), and their nodes in /dev"
        }
        ("open the loop device", libc::EPERM | libc::EACCES) => {
            "a container must be given /dev/loop-control and the loop devices (devices cgroup)"
        }
        ("mount a disk image", libc::ENODEV) => "a kernel with that file system: modprobe ext4, or modprobe xfs",
        ("bind", libc::ENOENT) => "the source or a directory on the way to it does not exist",
        ("mount the overlay", libc::ENOSPC | libc::EDQUOT | libc::EROFS) => {
            "the upper directory or its project is full, and the kernel needs a directory there: raise the limit, or remove files"
        }
        ("use as upper layer", libc::EBUSY) => "another instance uses it: an upper directory serves one at a time",
        ("use as upper layer", libc::ENOENT) => {
            "it is made if it is missing, the directory that it is to lie in is not"
        }
        ("bind" | "use as lower layer" | "use as upper layer", libc::ESTALE) => {
            "the source was exchanged since the sandbox was built; build it again"
        }
        ("bind and map the owner of", libc::ENOSYS | libc::EINVAL) => {
            "an idmapped mount needs Linux 5.12 and a file system that can be mapped (tmpfs: 6.3)"
        }
        ("raise a hard resource limit", libc::EPERM) => "raising a hard limit needs CAP_SYS_RESOURCE on the host",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_hint_is_given() {
        let hints = [
            ("anything", libc::EMFILE, "RLIMIT_NOFILE"),
            ("mount the program's /proc", libc::EPERM, "outer container"),
            ("make a file system by", libc::ENOENT, "e2fsprogs"),
            ("make a disk image in", libc::EOPNOTSUPP, "O_TMPFILE"),
            ("copy a disk image in", libc::ENOSPC, "has room"),
            ("open the loop device", libc::ENOENT, "modprobe loop"),
            ("open the loop device", libc::EPERM, "container"),
            ("mount a disk image", libc::ENODEV, "modprobe ext4"),
            ("bind", libc::ENOENT, "does not exist"),
            ("bind", libc::ESTALE, "exchanged"),
            ("use as lower layer", libc::ESTALE, "exchanged"),
            ("mount the overlay", libc::EDQUOT, "raise the limit"),
            ("use as upper layer", libc::EBUSY, "one at a time"),
            ("use as upper layer", libc::ENOENT, "made if it is missing"),
            ("bind and map the owner of", libc::ENOSYS, "5.12"),
            ("raise a hard resource limit", libc::EPERM, "CAP_SYS_RESOURCE"),
        ];
        for (step, errno, words) in hints {
            let error = Error::setup_at(step, "/some/where", io::Error::from_raw_os_error(errno));
            assert!(error.to_string().contains(words), "{error}");
            assert!(error.to_string().contains("/some/where"), "{error}");
            assert_eq!(error.errno(), Some(errno));
        }
        assert_eq!(Error::setup("bind", io::Error::from_raw_os_error(libc::EIO)).hint(), None);
    }
}
