//! The crate's one error, and the one table of hints.

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

/// Why something about user namespaces could not be done, sorted by what the caller can do about it.
///
/// Each message is one line and ends with a hint where the cause is known.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read, written, opened or locked.
    #[error("cannot {op} {}: {error}{}", .path.display(), shown(self))]
    #[non_exhaustive]
    File {
        /// What was tried, as a verb: `open`, `read`, `write`, `create`, `lock`.
        op: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        error: io::Error,
    },
    /// A system call without a file of its own failed.
    #[error("{call}({detail}): {error}{}", shown(self))]
    #[non_exhaustive]
    Syscall {
        /// The call's name.
        call: &'static str,
        /// What it was about.
        detail: String,
        /// The kernel's answer.
        error: io::Error,
    },
    /// A file's text is not what its format asks for.
    #[error("{}:{line}: expected {expected}, found {found:?}", .path.display())]
    #[non_exhaustive]
    Parse {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What the format asks for.
        expected: &'static str,
        /// What stands there, shortened.
        found: String,
    },
    /// What the caller asked for contradicts itself or a rule of the kernel; nothing was done.
    #[error("{what}: {why}")]
    #[non_exhaustive]
    Invalid {
        /// The thing that was asked for.
        what: String,
        /// The rule that it breaks.
        why: String,
    },
    /// This host, or this caller on this host, cannot do it.
    #[error("{feature} is not available: {needs}")]
    #[non_exhaustive]
    Unsupported {
        /// What was wanted.
        feature: &'static str,
        /// What is missing, and the fix.
        needs: String,
    },
    /// Ids that were asked for belong to somebody else.
    #[error("ids {range} are taken: {by}")]
    #[non_exhaustive]
    Conflict {
        /// The ids that were asked for.
        range: crate::Range,
        /// Who has them: file and line, account, or process.
        by: String,
    },
    /// The pool has no free slot left.
    #[error(
        "no free id range in the pool {}: {held} of {slots} slots are held, {registered} registered, {unusable} unusable{}",
        .pool.display(), .first.as_deref().map(|why| format!(" (first: {why})")).unwrap_or_default()
    )]
    #[non_exhaustive]
    Exhausted {
        /// The pool's directory.
        pool: PathBuf,
        /// Slots of the pool.
        slots: usize,
        /// Slots that a living sandbox holds.
        held: usize,
        /// Slots kept because files of theirs remain.
        registered: usize,
        /// Slots whose ids somebody else has, or whose lock file is damaged.
        unusable: usize,
        /// The first reason why a slot is unusable.
        first: Option<String>,
    },
    /// `newuidmap`, `newgidmap` or `getsubids` could not do its work.
    #[error("{program}: {failure}{}", shown(self))]
    #[non_exhaustive]
    Helper {
        /// `newuidmap`, `newgidmap` or `getsubids`.
        program: &'static str,
        /// What is wrong with it.
        failure: HelperFailure,
    },
}

/// What kept a set-user-id helper of shadow from doing its work: each cause has a fix of its own.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HelperFailure {
    /// No such program in the directories that are searched.
    #[error("not found in {searched}")]
    #[non_exhaustive]
    Missing {
        /// The directories, separated by `:`.
        searched: String,
    },
    /// The program has neither the set-user-id bit of root nor file capabilities.
    #[error("{} is neither set-user-id root nor has it file capabilities", .path.display())]
    #[non_exhaustive]
    NotPrivileged {
        /// The program's path.
        path: PathBuf,
    },
    /// The program lies on a file system mounted `nosuid`, where neither counts.
    #[error("{} lies on a file system mounted nosuid", .path.display())]
    #[non_exhaustive]
    NoSuid {
        /// The program's path.
        path: PathBuf,
    },
    /// The caller has set `no_new_privs`, under which no program gains privilege.
    #[error("the caller runs with no_new_privs, under which no program gains privilege")]
    NoNewPrivileges,
    /// The caller's uid has no line in the password file; the helpers refuse such callers.
    #[error("uid {uid} has no entry in the password file")]
    #[non_exhaustive]
    NoAccount {
        /// The caller's uid.
        uid: u32,
    },
    /// The subordinate id file does not give the caller these ids.
    #[error("{} gives {owner} no {range}", .file.display())]
    #[non_exhaustive]
    NoRange {
        /// `/etc/subuid` or `/etc/subgid`.
        file: PathBuf,
        /// The caller's name or uid.
        owner: String,
        /// The ids that are not given.
        range: crate::Range,
    },
    /// The program could not be started.
    #[error("cannot run {}: {why}", .path.display())]
    #[non_exhaustive]
    NotStarted {
        /// The program's path.
        path: PathBuf,
        /// The system's answer.
        why: String,
    },
    /// The program ran and refused.
    #[error("refused: {stderr}")]
    #[non_exhaustive]
    Refused {
        /// What it said, on one line.
        stderr: String,
    },
}

impl Error {
    /// The error number behind the failure, when the kernel gave one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::File { error, .. } | Self::Syscall { error, .. } => error.raw_os_error(),
            _ => None,
        }
    }

    /// What to do about it, when the cause is known.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::File { op, error, .. } => hint(op, error),
            Self::Syscall { call, error, .. } => hint(call, error),
            Self::Helper { program, failure } => helper_hint(program, failure),
            _ => None,
        }
    }

    pub(crate) fn file(op: &'static str, path: impl Into<PathBuf>, error: impl Into<io::Error>) -> Self {
        Self::File { op, path: path.into(), error: error.into() }
    }

    pub(crate) fn invalid(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Invalid { what: what.into(), why: why.into() }
    }
}

/// The hint as the message ends with it.
fn shown(error: &Error) -> String {
    error.hint().map(|hint| format!(" (hint: {hint})")).unwrap_or_default()
}

fn hint(op: &str, error: &io::Error) -> Option<&'static str> {
    let errno = Errno::from_raw_os_error(error.raw_os_error()?);
    Some(match (op, errno) {
        ("write map", Errno::PERM) => {
            "a map is written once, by the namespace itself or its parent; ids of others need CAP_SETUID and CAP_SETGID there"
        }
        ("write map", Errno::INVAL) => "the kernel refused the map's text",
        ("open map", Errno::ACCESS) => {
            "the files belong to root while the process is not dumpable, as after a change of its ids"
        }
        ("open map", Errno::NOENT) => "the process has ended",
        ("write setgroups", Errno::PERM) => {
            "`setgroups` can only be denied before gid_map is written, and never be allowed again"
        }
        ("lease" | "create" | "write", Errno::NOSPC | Errno::DQUOT) => {
            "the state directory's file system is full; nothing was leased"
        }
        ("lease" | "create" | "write", Errno::ROFS) => {
            "the state directory's file system is read-only; choose another state directory"
        }
        ("lease" | "open" | "create", Errno::LOOP) => {
            "a symbolic link stands there, which is never followed; remove it"
        }
        ("open", Errno::ACCESS) => "only root and the user whose it is may look into a state directory",
        (_, Errno::MFILE) => "this process has no file descriptors left; raise RLIMIT_NOFILE",
        ("lease" | "create", Errno::NOENT) => "the state directory was removed; open the pool again",
        _ => return None,
    })
}

fn helper_hint(program: &str, failure: &HelperFailure) -> Option<&'static str> {
    Some(match (program, failure) {
        (_, HelperFailure::Missing { .. }) => "install the package `uidmap` (Debian) or `shadow-utils` (Fedora)",
        ("newuidmap", HelperFailure::NotPrivileged { .. }) => {
            "`chmod u+s` it, or `setcap cap_setuid=ep` on it, as root; or install it anew"
        }
        ("newgidmap", HelperFailure::NotPrivileged { .. }) => {
            "`chmod u+s` it, or `setcap cap_setgid=ep` on it, as root; or install it anew"
        }
        (_, HelperFailure::NoSuid { .. }) => "remount that file system without nosuid, or run where it is not",
        (_, HelperFailure::NoNewPrivileges) => {
            "start the caller without no_new_privs (systemd: NoNewPrivileges=no; containers: allow privilege escalation)"
        }
        (_, HelperFailure::NoAccount { .. }) => "give the uid an account, or run under one",
        ("newuidmap", HelperFailure::NoRange { .. }) => "as root: `usermod --add-subuids FIRST-LAST USER`",
        ("newgidmap", HelperFailure::NoRange { .. }) => "as root: `usermod --add-subgids FIRST-LAST USER`",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(op: &'static str, errno: Errno) -> String {
        Error::file(op, "/proc/7/uid_map", errno).to_string()
    }

    #[test]
    fn a_message_is_one_line_with_the_errno_and_a_hint() {
        let error = Error::file("open map", "/proc/7/uid_map", Errno::NOENT);
        let text =
            "cannot open map /proc/7/uid_map: No such file or directory (os error 2) (hint: the process has ended)";
        assert_eq!(error.to_string(), text);
        assert_eq!((error.errno(), error.hint()), (Some(2), Some("the process has ended")));
        assert_eq!(file("read", Errno::IO), "cannot read /proc/7/uid_map: Input/output error (os error 5)");
    }

    #[test]
    fn each_known_cause_has_its_hint() {
        for (op, errno, hint) in [
            ("write map", Errno::PERM, "written once"),
            ("write map", Errno::INVAL, "refused the map's text"),
            ("open map", Errno::ACCESS, "not dumpable"),
            ("open map", Errno::NOENT, "has ended"),
            ("write setgroups", Errno::PERM, "before gid_map"),
            ("lease", Errno::NOSPC, "is full"),
            ("create", Errno::DQUOT, "is full"),
            ("write", Errno::ROFS, "read-only"),
            ("open", Errno::LOOP, "symbolic link"),
            ("open", Errno::ACCESS, "may look into"),
            ("open", Errno::MFILE, "RLIMIT_NOFILE"),
            ("lease", Errno::NOENT, "open the pool again"),
        ] {
            assert!(file(op, errno).contains(hint), "{}", file(op, errno));
        }
    }

    #[test]
    fn each_failure_of_a_helper_has_its_fix() {
        let range = crate::Range::new(100_000, 65536).unwrap();
        let file = || PathBuf::from("/etc/subuid");
        let path = || PathBuf::from("/usr/bin/newuidmap");
        for (failure, found, fix) in [
            (HelperFailure::Missing { searched: "/usr/bin".into() }, "not found in /usr/bin", "install"),
            (HelperFailure::NotPrivileged { path: path() }, "neither set-user-id", "chmod u+s"),
            (HelperFailure::NoSuid { path: path() }, "mounted nosuid", "remount"),
            (HelperFailure::NoNewPrivileges, "no_new_privs", "NoNewPrivileges=no"),
            (HelperFailure::NoAccount { uid: 7 }, "uid 7 has no entry", "account"),
            (
                HelperFailure::NoRange { file: file(), owner: "alice".into(), range },
                "/etc/subuid gives alice no 100000..=165535",
                "usermod --add-subuids",
            ),
        ] {
            let text = Error::Helper { program: "newuidmap", failure }.to_string();
            assert!(text.contains(found) && text.contains("(hint: ") && text.contains(fix), "{text}");
        }
        let gid = HelperFailure::NotPrivileged { path: path() };
        assert!(Error::Helper { program: "newgidmap", failure: gid }.to_string().contains("cap_setgid"));
        let gid = HelperFailure::NoRange { file: file(), owner: "alice".into(), range };
        assert!(Error::Helper { program: "newgidmap", failure: gid }.to_string().contains("--add-subgids"));
        let refused = HelperFailure::Refused { stderr: "no".into() };
        assert_eq!(Error::Helper { program: "newuidmap", failure: refused }.to_string(), "newuidmap: refused: no");
    }
}
