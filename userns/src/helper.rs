//! The programs of shadow: `newuidmap` and `newgidmap`, which may write maps that we may not, and `getsubids`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{FileType, StatVfsMountFlags, getxattr, stat, statvfs};
use rustix::process::{getgid, getuid};
use rustix::thread::no_new_privs;

use crate::write::Kind;
use crate::{Error, Extent, Grant, HelperFailure, IdMap, Range, SubordinateIds, subid};

/// Where the programs are looked for: never in the caller's PATH. The last is NixOS's place for set-user-id programs.
const DIRECTORIES: &[&str] = &["/usr/bin", "/bin", "/usr/local/bin", "/usr/sbin", "/sbin", "/run/wrappers/bin"];

impl Kind {
    /// The program that writes the map.
    const fn writer(self) -> &'static str {
        match self {
            Self::Uid => "newuidmap",
            Self::Gid => "newgidmap",
        }
    }
}

/// Lets `newuidmap` or `newgidmap` write the map of process `pid`. What it did must be read back.
pub(crate) fn write_map(kind: Kind, pid: u32, map: &IdMap) -> Result<(), Error> {
    let program = kind.writer();
    let failed = |failure| Error::Helper { program, failure };
    if no_new_privs().unwrap_or(false) {
        return Err(failed(HelperFailure::NoNewPrivileges));
    }
    let path = find(program, DIRECTORIES).map_err(failed)?;
    privileged(&path).map_err(failed)?;
    granted(kind, map)?;
    let mut command = Command::new(&path);
    command.arg(pid.to_string());
    for Extent { inside, outside, count } in map.extents() {
        command.args([inside, outside, count].map(ToString::to_string));
    }
    run(&mut command, &path).map_err(failed).map(drop)
}

/// What `getsubids` says of a user.
pub(crate) fn getsubids(kind: Kind, user: &OsStr) -> Result<Vec<Grant>, Error> {
    const PROGRAM: &str = "getsubids";
    let failed = |failure| Error::Helper { program: PROGRAM, failure };
    let path = find(PROGRAM, DIRECTORIES).map_err(failed)?;
    let mut command = Command::new(&path);
    if kind == Kind::Gid {
        command.arg("-g");
    }
    let said = match run(command.arg(user), &path) {
        Ok(said) => said,
        // It says this, and fails, when there are none.
        Err(HelperFailure::Refused { stderr }) if stderr.contains("Error fetching ranges") => return Ok(Vec::new()),
        Err(failure) => return Err(failed(failure)),
    };
    subid::parse_listing(&said).ok_or_else(|| Error::Parse {
        path,
        line: 1,
        expected: "lines `INDEX: OWNER START COUNT`",
        found: crate::text::shorten(&String::from_utf8_lossy(&said)),
    })
}

fn find(program: &'static str, directories: &[&str]) -> Result<PathBuf, HelperFailure> {
    let found = directories
        .iter()
        .map(|directory| Path::new(directory).join(program))
        .find(|path| stat(path).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile));
    found.ok_or_else(|| HelperFailure::Missing { searched: directories.join(":") })
}

/// Whether running it gives it the privilege that it needs.
fn privileged(path: &Path) -> Result<(), HelperFailure> {
    const SET_USER_ID: u32 = 0o4000;
    let path_of = || path.to_owned();
    let unknown =
        |e: rustix::io::Errno| HelperFailure::NotStarted { path: path_of(), why: std::io::Error::from(e).to_string() };
    let found = stat(path).map_err(unknown)?;
    let set_user_id = found.st_mode & SET_USER_ID != 0 && found.st_uid == 0;
    let mut value = [0_u8; 64];
    if !set_user_id && getxattr(path, "security.capability", &mut value).is_err() {
        return Err(HelperFailure::NotPrivileged { path: path_of() });
    }
    if statvfs(path).map_err(unknown)?.f_flag.contains(StatVfsMountFlags::NOSUID) {
        return Err(HelperFailure::NoSuid { path: path_of() });
    }
    Ok(())
}

/// Whether the program will find the caller and its ids; it says less about it.
fn granted(kind: Kind, map: &IdMap) -> Result<(), Error> {
    let program = kind.writer();
    let ids = SubordinateIds::read()?;
    let uid = getuid().as_raw();
    let Some(user) = ids.accounts().user_name(uid) else {
        return Err(Error::Helper { program, failure: HelperFailure::NoAccount { uid } });
    };
    let own = match kind {
        Kind::Uid => uid,
        Kind::Gid => getgid().as_raw(),
    };
    for extent in map.extents() {
        let is_own = extent.count == 1 && extent.outside == own;
        if !is_own && !ids.allows(kind, &user, extent.outside, extent.count)? {
            let file = ids.file(kind).path().to_owned();
            let (owner, range) = (user.to_string_lossy().into_owned(), Range::new(extent.outside, extent.count)?);
            return Err(Error::Helper { program, failure: HelperFailure::NoRange { file, owner, range } });
        }
    }
    Ok(())
}

/// Runs a program with an empty environment and gives what it wrote.
///
/// Its exit status decides nothing by itself: a host that ignores SIGCHLD or waits for every child takes it away from us.
fn run(command: &mut Command, path: &Path) -> Result<Vec<u8>, HelperFailure> {
    use std::io::Read as _;
    let not_started = |why: std::io::Error| HelperFailure::NotStarted { path: path.to_owned(), why: why.to_string() };
    let mut child = command
        .env_clear()
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(not_started)?;
    // What they write fits into the pipes, so one can be read after the other.
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let read_out = child.stdout.take().map_or(Ok(0), |mut pipe| pipe.read_to_end(&mut out));
    let read_err = child.stderr.take().map_or(Ok(0), |mut pipe| pipe.read_to_end(&mut err));
    let status = child.wait();
    read_out.and(read_err).map_err(not_started)?;
    match status {
        Ok(status) if !status.success() => {
            let said = String::from_utf8_lossy(err.trim_ascii()).replace('\n', "; ");
            let stderr = if said.is_empty() { status.to_string() } else { said };
            Err(HelperFailure::Refused { stderr: crate::text::shorten_to(&stderr, 300) })
        }
        Ok(_) | Err(_) => Ok(out),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn program(directory: &Path, mode: u32) -> PathBuf {
        let path = directory.join("newuidmap");
        fs::write(&path, "#!/bin/sh\necho \"$@\"; echo sorry >&2; echo twice >&2; exit 3\n").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn a_missing_program_says_where_it_was_looked_for() {
        let failure = find("newuidmap", &["/nonexistent/a", "/nonexistent/b"]).unwrap_err();
        let error = Error::Helper { program: "newuidmap", failure };
        let text = "newuidmap: not found in /nonexistent/a:/nonexistent/b (hint: install the package `uidmap` (Debian) or `shadow-utils` (Fedora))";
        assert_eq!(error.to_string(), text);
    }

    #[test]
    fn a_program_without_privilege_is_told_before_it_runs() {
        let dir = tempfile::tempdir().unwrap();
        let path = program(dir.path(), 0o755);
        assert_eq!(find("newuidmap", &[dir.path().to_str().unwrap()]), Ok(path.clone()));
        assert_eq!(privileged(&path), Err(HelperFailure::NotPrivileged { path }));
    }

    #[test]
    fn a_refusal_is_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = program(dir.path(), 0o755);
        assert_eq!(run(&mut Command::new(&path), &path), Err(HelperFailure::Refused { stderr: "sorry; twice".into() }));
    }

    #[test]
    fn a_program_that_cannot_run_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("newuidmap");
        fs::write(&path, "#!/nonexistent/sh\n").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(run(&mut Command::new(&path), &path), Err(HelperFailure::NotStarted { .. })));
    }
}
