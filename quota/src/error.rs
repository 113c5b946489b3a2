use std::io;
use std::path::PathBuf;

use crate::{Limits, Problem};

/// Why a quota operation failed.
///
/// Messages are one line and name the object; where the cause is known they end in a hint with the way out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file operation failed.
    #[error("cannot {op} {}: {error}{}", .path.display(), hint_suffix(.op, .error))]
    #[non_exhaustive]
    File {
        /// What was tried: `open`, `tag`, `lock` …
        op: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// The kernel's answer.
        error: io::Error,
    },
    /// A quota call failed.
    #[error("{call} of {detail}: {error}{}", hint_suffix(.call, .error))]
    #[non_exhaustive]
    Syscall {
        /// The command, as in quotactl(2).
        call: &'static str,
        /// On what: the project and the file system.
        detail: String,
        /// The kernel's answer.
        error: io::Error,
    },
    /// A file of the registry does not have the expected form.
    #[error("{}:{line}: expected {expected}, found {found:?}", .path.display())]
    #[non_exhaustive]
    Parse {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// What should stand there.
        expected: &'static str,
        /// What stands there.
        found: String,
    },
    /// The caller's value cannot be meant; nothing was done.
    #[error("{what} is not valid: {why}")]
    #[non_exhaustive]
    Invalid {
        /// The value.
        what: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The file system, kernel or caller lacks something that project quota needs.
    #[error("no project quota on {}: {problem} (hint: {fix})", .path.display())]
    #[non_exhaustive]
    Unsupported {
        /// The directory.
        path: PathBuf,
        /// What is missing.
        problem: Box<Problem>,
        /// How to get it: [`Problem::fix`].
        fix: String,
    },
    /// The kernel took new limits without an error and then showed others.
    #[error("project {project}: asked for {asked}, the kernel shows {found}")]
    #[non_exhaustive]
    NotApplied {
        /// The project.
        project: u32,
        /// What was asked for.
        asked: Box<Limits>,
        /// What was read back.
        found: Box<Limits>,
    },
    /// Every project id of the allocator's range is taken.
    #[error("no free project id in {first}..={last} (hint: run recover, or give the allocator a wider range)")]
    #[non_exhaustive]
    Exhausted {
        /// First id of the range.
        first: u32,
        /// Last id of the range.
        last: u32,
    },
}

impl Error {
    pub(crate) fn file(op: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |errno| Self::File { op, path: path.into(), error: errno.into() }
    }

    pub(crate) fn io(op: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::File { op, path: path.into(), error }
    }

    pub(crate) fn unsupported(path: impl Into<PathBuf>, problem: Problem) -> Self {
        let fix = problem.fix();
        Self::Unsupported { path: path.into(), problem: Box::new(problem), fix }
    }

    /// The kernel's error number, where the kernel answered with one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::File { error, .. } | Self::Syscall { error, .. } => error.raw_os_error(),
            _ => None,
        }
    }

    /// The way out, where the cause is known. The message ends with it, too.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::File { op, error, .. } => hint(op, error),
            Self::Syscall { call, error, .. } => hint(call, error),
            Self::Unsupported { fix, .. } => Some(fix),
            Self::Exhausted { .. } => Some("run recover, or give the allocator a wider range"),
            _ => None,
        }
    }
}

fn hint_suffix(op: &str, error: &io::Error) -> String {
    hint(op, error).map(|hint| format!(" (hint: {hint})")).unwrap_or_default()
}

fn hint(op: &str, error: &io::Error) -> Option<&'static str> {
    Some(match (op, error.raw_os_error()?) {
        ("open", libc::ENOTDIR) => "give a directory; quota counts trees",
        ("open", libc::ENOENT) => "make the directory first; a limit is one of a directory that exists",
        ("open", libc::EACCES) => "the caller must be allowed to read the directory",
        ("Q_XGETQUOTA" | "Q_XGETNEXTQUOTA" | "Q_XSETQLIM" | "Q_XQUOTAON" | "Q_XQUOTAOFF", libc::EPERM) => {
            "limits and usage of projects need CAP_SYS_ADMIN in the initial user namespace"
        }
        ("Q_XGETQUOTA" | "Q_XGETNEXTQUOTA" | "Q_XSETQLIM", libc::ENOSYS | libc::ESRCH) => {
            "the file system is mounted without project quota; Filesystem::check names the cause"
        }
        ("Q_XQUOTAON", libc::ENOSYS) => "accounting starts only at mount: mount with -o prjquota",
        ("tag", libc::EINVAL) => "in a user namespace nobody may change a project id; do it in the initial one",
        ("tag", libc::EPERM | libc::EACCES) => {
            "only the owner or CAP_FOWNER may change a project id, and not on an immutable file"
        }
        ("tag", libc::EOPNOTSUPP | libc::ENOTTY) => {
            "this file system cannot store project ids (ext4 needs the feature: tune2fs -O project)"
        }
        ("tag", libc::EROFS) => "the mount is read-only",
        ("lock", libc::EWOULDBLOCK) => "a living process holds this lease",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_hint_has_its_cause() {
        for (op, errno, words) in [
            ("open", libc::ENOTDIR, "give a directory"),
            ("open", libc::ENOENT, "make the directory"),
            ("open", libc::EACCES, "allowed to read"),
            ("Q_XGETQUOTA", libc::EPERM, "CAP_SYS_ADMIN"),
            ("Q_XSETQLIM", libc::ENOSYS, "without project quota"),
            ("Q_XQUOTAON", libc::ENOSYS, "only at mount"),
            ("tag", libc::EINVAL, "user namespace"),
            ("tag", libc::EPERM, "owner"),
            ("tag", libc::EOPNOTSUPP, "tune2fs"),
            ("tag", libc::EROFS, "read-only"),
            ("lock", libc::EWOULDBLOCK, "living process"),
        ] {
            let error = Error::File { op, path: "/x".into(), error: io::Error::from_raw_os_error(errno) };
            assert!(error.hint().is_some_and(|hint| hint.contains(words)), "{op} {errno}: {error}");
            assert!(error.to_string().contains(words) && !error.to_string().contains('\n'));
            assert_eq!(error.errno(), Some(errno));
        }
        assert_eq!(hint("open", &io::Error::from_raw_os_error(libc::EIO)), None);
    }

    #[test]
    fn messages_are_one_line_and_name_the_object() {
        let error = Error::NotApplied {
            project: 7,
            asked: Box::new(Limits::unlimited().bytes(4096)),
            found: Box::new(Limits::unlimited()),
        };
        assert_eq!(
            error.to_string(),
            "project 7: asked for 4096 bytes (soft 4096), unlimited inodes, the kernel shows unlimited bytes, \
             unlimited inodes"
        );
        let error = Error::unsupported("/d", Problem::Tmpfs);
        assert!(error.to_string().starts_with("no project quota on /d: "), "{error}");
        assert!(error.hint().is_some_and(|hint| error.to_string().contains(hint)));
    }
}
