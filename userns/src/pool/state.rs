//! The state directory: where leases stand, and why nobody else can have put them there.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{
    Access, AtFlags, CWD, FileType, FlockOperation, Mode, OFlags, Stat, accessat, flock, fstat, mkdirat, openat, statat,
};
use rustix::io::{Errno, pread, pwrite};
use rustix::process::geteuid;

use crate::Error;

/// The format of everything below the directory `ids`. Another number there is refused, not guessed at.
const VERSION: &str = "sandbox ids 1\n";

/// A directory of ours, held open, that was checked when it was opened.
#[derive(Debug)]
pub(super) struct Directory {
    fd: OwnedFd,
    path: PathBuf,
    identity: (u64, u64),
}

impl Directory {
    /// Opens `path`, whose parent is trusted, making it with mode 0700 when it is missing.
    pub(super) fn open_or_create(path: &Path) -> Result<Self, Error> {
        match mkdirat(CWD, path, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(Error::file("create", path, e)),
        }
        Self::open(path)
    }

    /// The same, with a check of the parent: nobody but the caller and root may be able to rename `path` away.
    pub(super) fn open_or_create_trusted(path: &Path) -> Result<Self, Error> {
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => return Err(Error::invalid(path.display().to_string(), "a state directory has a parent directory")),
        };
        let stat = statat(CWD, parent, AtFlags::empty()).map_err(|e| Error::file("open", parent, e))?;
        let trusted_owner = stat.st_uid == 0 || stat.st_uid == geteuid().as_raw();
        let mode = Mode::from_raw_mode(stat.st_mode);
        if !trusted_owner || (mode.intersects(Mode::WGRP | Mode::WOTH) && !mode.contains(Mode::SVTX)) {
            let why = "others could replace what is in it: it must belong to the caller or root, and be sticky if others may write";
            return Err(Error::invalid(parent.display().to_string(), why));
        }
        Self::open_or_create(path)
    }

    /// Opens `path` if it is a directory of the caller's that nobody else may write to.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let fd = openat(CWD, path, DIRECTORY, Mode::empty()).map_err(|e| Error::file("open", path, e))?;
        Self::checked(fd, path.to_owned())
    }

    /// The directory `name` in this one, made with mode 0700 when it is missing.
    pub(super) fn subdirectory(&self, name: &str) -> Result<Self, Error> {
        let path = self.path.join(name);
        match mkdirat(&self.fd, name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(Error::file("create", path, e)),
        }
        let fd =
            openat(&self.fd, name, DIRECTORY, Mode::empty()).map_err(|e| Error::file("open", path.as_path(), e))?;
        Self::checked(fd, path)
    }

    /// The directory `name` in this one, if there is one.
    pub(super) fn existing(&self, name: &str) -> Result<Option<Self>, Error> {
        match openat(&self.fd, name, DIRECTORY, Mode::empty()) {
            Ok(fd) => Self::checked(fd, self.path.join(name)).map(Some),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(Error::file("open", self.path.join(name), e)),
        }
    }

    fn checked(fd: OwnedFd, path: PathBuf) -> Result<Self, Error> {
        let stat = fstat(&fd).map_err(|e| Error::file("open", path.as_path(), e))?;
        ours(&stat).map_err(|why| Error::invalid(path.display().to_string(), why))?;
        Ok(Self { fd, path, identity: identity(&stat) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the path still leads to this directory.
    pub(super) fn in_place(&self) -> bool {
        statat(CWD, &self.path, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| identity(&stat) == self.identity)
    }

    /// The names in it.
    pub(super) fn names(&self) -> Result<Vec<String>, Error> {
        let failed = |e| Error::file("read", self.path.as_path(), e);
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.fd).map_err(failed)? {
            if let Ok(name) = entry.map_err(failed)?.file_name().to_str() {
                if name != "." && name != ".." {
                    names.push(name.to_owned());
                }
            }
        }
        Ok(names)
    }

    /// Whether files can be made in it.
    pub(super) fn check_writable(&self) -> Result<(), Error> {
        accessat(&self.fd, ".", Access::WRITE_OK, AtFlags::empty())
            .map_err(|e| Error::file("create a file in", self.path.as_path(), e))
    }

    /// Opens the file `name` for reading and writing; makes it, mode 0600, when it is missing.
    pub(super) fn open_file(&self, op: &'static str, name: &str, create: bool) -> Result<OwnedFd, Error> {
        let flags = if create { FILE | OFlags::CREATE } else { FILE };
        openat(&self.fd, name, flags, Mode::RUSR | Mode::WUSR).map_err(|e| Error::file(op, self.path.join(name), e))
    }

    /// Opens the file `name` for reading alone, as a read-only file system lets; `None` when there is none.
    pub(super) fn open_to_read(&self, name: &str) -> Result<Option<OwnedFd>, Error> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        match openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(Error::file("open", self.path.join(name), e)),
        }
    }

    /// Makes the file `name`; `None` when there is one already.
    pub(super) fn new_file(&self, name: &str) -> Result<Option<OwnedFd>, Error> {
        match openat(&self.fd, name, FILE | OFlags::CREATE | OFlags::EXCL, Mode::RUSR | Mode::WUSR) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::EXIST) => Ok(None),
            Err(e) => Err(Error::file("create", self.path.join(name), e)),
        }
    }

    /// Replaces the file `name` at once and for good: on disk when this returns.
    pub(super) fn replace_file(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let new = format!(".new-{name}");
        let failed = |op, e: io::Error| Error::file(op, self.path.join(name), e);
        let fd = self.open_file("create", &new, true)?;
        rustix::fs::ftruncate(&fd, 0).map_err(|e| failed("write", e.into()))?;
        write_whole(&fd, bytes).map_err(|e| failed("write", e))?;
        rustix::fs::fsync(&fd).map_err(|e| failed("write", e.into()))?;
        rustix::fs::renameat(&self.fd, &new, &self.fd, name).map_err(|e| failed("create", e.into()))?;
        self.sync()
    }

    /// Removes the file `name`, on disk too; a missing one is fine.
    pub(super) fn remove_file(&self, name: &str) -> Result<(), Error> {
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => self.sync(),
            Err(e) => Err(Error::file("remove", self.path.join(name), e)),
        }
    }

    fn sync(&self) -> Result<(), Error> {
        rustix::fs::fsync(&self.fd).map_err(|e| Error::file("write", self.path.as_path(), e))
    }

    /// Whether `fd` is still the file that `name` leads to, and a file of ours.
    pub(super) fn holds(&self, name: &str, fd: &OwnedFd) -> Result<Held, Error> {
        let failed = |e| Error::file("open", self.path.join(name), e);
        let opened = fstat(fd).map_err(failed)?;
        let linked = match statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(Held::Replaced),
            Err(e) => return Err(failed(e)),
        };
        if identity(&opened) != identity(&linked) {
            return Ok(Held::Replaced);
        }
        Ok(match ours(&opened) {
            Ok(()) if FileType::from_raw_mode(opened.st_mode) == FileType::RegularFile => Held::Ours,
            Ok(()) => Held::Foreign("it is not a regular file".into()),
            Err(why) => Held::Foreign(why),
        })
    }

    /// Waits for the exclusive lock of the file `lock` in it; released when the answer is dropped.
    pub(super) fn lock(&self) -> Result<OwnedFd, Error> {
        loop {
            let fd = self.open_file("create", "lock", true)?;
            retry(|| flock(&fd, FlockOperation::LockExclusive))
                .map_err(|e| Error::file("lock", self.path.join("lock"), e))?;
            match self.holds("lock", &fd)? {
                Held::Ours => return Ok(fd),
                Held::Replaced => {}
                Held::Foreign(why) => return Err(Error::invalid(self.path.join("lock").display().to_string(), why)),
            }
        }
    }

    /// Checks the version stamp, or writes it into a directory that has none. Called under [`lock`](Self::lock).
    pub(super) fn stamp(&self) -> Result<(), Error> {
        let fd = self.open_file("create", "version", true)?;
        let path = || self.path.join("version");
        let found = read_text(&fd).map_err(|e| Error::file("read", path(), e))?;
        if found == VERSION {
            return Ok(());
        }
        if !found.is_empty() {
            let needs = format!(
                "{} to say {:?}, it says {:?}",
                path().display(),
                VERSION.trim_end(),
                crate::text::shorten(&found)
            );
            return Err(Error::Unsupported { feature: "this state directory", needs });
        }
        write_whole(&fd, VERSION.as_bytes()).map_err(|e| Error::file("write", path(), e))
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> rustix::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What [`Directory::holds`] found.
pub(super) enum Held {
    /// The name leads to the open file, and it is ours.
    Ours,
    /// The name leads elsewhere, or nowhere: the file was removed meanwhile.
    Replaced,
    /// The file could be another user's work.
    Foreign(String),
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const FILE: OFlags = OFlags::RDWR.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::NOCTTY);

fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

/// Whether only the caller can have written there.
fn ours(stat: &Stat) -> Result<(), String> {
    let own = geteuid().as_raw();
    if stat.st_uid != own {
        return Err(format!("it belongs to uid {}, not to {own}", stat.st_uid));
    }
    if Mode::from_raw_mode(stat.st_mode).intersects(Mode::WGRP | Mode::WOTH) {
        return Err(format!("others may write to it (mode {:04o})", stat.st_mode & 0o7777));
    }
    Ok(())
}

/// Our files are smaller.
pub(super) const READ_MAX: usize = 1 << 16;

/// The first [`READ_MAX`] bytes of a file.
pub(super) fn read_bytes(fd: impl AsFd) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; READ_MAX];
    let mut filled = 0;
    while filled < bytes.len() {
        match retry(|| pread(&fd, &mut bytes[filled..], filled as u64))? {
            0 => break,
            read => filled += read,
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// The same as text.
pub(super) fn read_text(fd: impl AsFd) -> io::Result<String> {
    Ok(String::from_utf8_lossy(&read_bytes(fd)?).into_owned())
}

/// Writes `bytes` to the beginning of the file, all of them or an error.
pub(super) fn write_whole(fd: impl AsFd, bytes: &[u8]) -> io::Result<()> {
    let mut written = 0;
    while written < bytes.len() {
        match retry(|| pwrite(&fd, &bytes[written..], written as u64))? {
            0 => return Err(Errno::NOSPC.into()),
            n => written += n,
        }
    }
    Ok(())
}

/// Again after a signal.
pub(super) fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    rustix::io::retry_on_intr(&mut call)
}
