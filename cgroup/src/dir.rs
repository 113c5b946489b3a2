//! A held directory of a cgroup file system, and the files below it. Everything goes through its descriptor, so a group
//! stays reachable when mounts change and is never confused with a later one of the same name.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, Mode, OFlags, accessat, mkdirat, openat, unlinkat};
use rustix::io::Errno;

use crate::{Error, Result};

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

#[derive(Debug)]
pub(crate) struct Dir {
    fd: OwnedFd,
    /// Where it was when it was opened: for messages only.
    path: PathBuf,
}

impl Dir {
    pub(crate) fn open(path: PathBuf) -> Result<Self> {
        match openat(rustix::fs::CWD, &path, DIRECTORY, Mode::empty()) {
            Ok(fd) => Ok(Self { fd, path }),
            Err(error) => Err(Error::file("open", path, error)),
        }
    }

    pub(crate) fn child(&self, name: &str) -> Result<Self> {
        match openat(&self.fd, name, DIRECTORY, Mode::empty()) {
            Ok(fd) => Ok(Self { fd, path: self.path.join(name) }),
            Err(error) => Err(self.error("open", name, error)),
        }
    }

    /// The directory above, whatever it is called by now.
    pub(crate) fn above(&self) -> Result<Self> {
        match openat(&self.fd, "..", DIRECTORY, Mode::empty()) {
            Ok(fd) => Ok(Self { fd, path: self.path.parent().unwrap_or(Path::new("/")).to_owned() }),
            Err(error) => Err(self.error("open", "..", error)),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn make(&self, name: &str) -> Result<()> {
        mkdirat(&self.fd, name, Mode::from_raw_mode(0o755)).map_err(|error| self.error("mkdir", name, error))
    }

    /// Removes the child `name`; that it is gone already is success.
    pub(crate) fn remove(&self, name: &str) -> Result<(), Errno> {
        match unlinkat(&self.fd, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOENT | Errno::NODEV) => Ok(()),
            other => other,
        }
    }

    pub(crate) fn error(&self, op: &'static str, file: &str, error: Errno) -> Error {
        Error::file(op, self.path.join(file), error)
    }

    pub(crate) fn open_file(&self, file: &str, flags: OFlags) -> Result<OwnedFd> {
        openat(&self.fd, file, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())
            .map_err(|error| self.error("open", file, error))
    }

    /// Whether this group has the file, which is how a kernel says that it has the feature.
    pub(crate) fn has(&self, file: &str) -> bool {
        accessat(&self.fd, file, Access::EXISTS, AtFlags::empty()).is_ok()
    }

    /// Whether the effective user may write the file or, for `.`, make directories here.
    pub(crate) fn may_write(&self, file: &str) -> Result<()> {
        let access = if file == "." { Access::WRITE_OK | Access::EXEC_OK } else { Access::WRITE_OK };
        accessat(&self.fd, file, access, AtFlags::EACCESS).map_err(|error| self.error("write", file, error))
    }

    pub(crate) fn read(&self, file: &str) -> Result<String> {
        let fd = self.open_file(file, OFlags::RDONLY)?;
        let mut buffer = Vec::new();
        read_whole(fd.as_fd(), &mut buffer).map_err(|error| self.error("read", file, error))?;
        Ok(match String::from_utf8(buffer) {
            Ok(text) => text,
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
        })
    }

    /// [`read`](Self::read), with `None` where this kernel or this group has no such file.
    pub(crate) fn read_optional(&self, file: &str) -> Result<Option<String>> {
        match self.read(file) {
            Ok(text) => Ok(Some(text)),
            // EOPNOTSUPP: the file is there, what it shows was switched off (`psi=0`).
            Err(error) if error.is(Errno::NOENT) || error.is(Errno::OPNOTSUPP) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The kernel takes a value in one write or not at all.
    pub(crate) fn write(&self, file: &str, value: &str) -> Result<()> {
        let fd = self.open_file(file, OFlags::WRONLY)?;
        self.write_to(fd.as_fd(), file, value)
    }

    pub(crate) fn write_to(&self, fd: BorrowedFd<'_>, file: &str, value: &str) -> Result<()> {
        match rustix::io::retry_on_intr(|| rustix::io::write(fd, value.as_bytes())) {
            Ok(_) => Ok(()),
            Err(error) => Err(Error::write(value, self.path.join(file), error)),
        }
    }

    /// The names of the groups below this one; none when it has been removed.
    pub(crate) fn children(&self) -> Result<Vec<String>> {
        // The kernel counts two links and one for each child: most groups have none, and need not be listed.
        if rustix::fs::fstat(&self.fd).is_ok_and(|stat| stat.st_nlink == 2) {
            return Ok(Vec::new());
        }
        match self.list() {
            Err(Errno::NOENT | Errno::NODEV) => Ok(Vec::new()),
            other => other.map_err(|error| self.error("list", "", error)),
        }
    }

    fn list(&self) -> Result<Vec<String>, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut out = Vec::new();
        for entry in rustix::fs::Dir::new(openat(&self.fd, ".", flags, Mode::empty())?)? {
            let entry = entry?;
            // A name that is not UTF-8 is none of ours, and a directory that holds it cannot be removed by us.
            let Ok(name) = entry.file_name().to_str() else { continue };
            if entry.file_type() == rustix::fs::FileType::Directory && name != "." && name != ".." {
                out.push(name.to_owned());
            }
        }
        Ok(out)
    }

    /// The same directory, by number: told apart from another that took its name later.
    pub(crate) fn is_still(&self, parent: &Self, name: &str) -> bool {
        let held = rustix::fs::fstat(&self.fd);
        let named = rustix::fs::statat(&parent.fd, name, AtFlags::SYMLINK_NOFOLLOW);
        matches!((held, named), (Ok(a), Ok(b)) if a.st_ino == b.st_ino && a.st_dev == b.st_dev)
    }

    pub(crate) fn device(&self) -> Option<(u32, u32)> {
        let stat = rustix::fs::fstat(&self.fd).ok()?;
        Some((rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev)))
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Reads from the start to the end with `pread`, so that one descriptor serves again and again.
pub(crate) fn read_whole(fd: BorrowedFd<'_>, buffer: &mut Vec<u8>) -> Result<(), Errno> {
    buffer.clear();
    loop {
        buffer.reserve(4096);
        let at = buffer.len() as u64;
        let got = rustix::io::retry_on_intr(|| rustix::io::pread(fd, rustix::buffer::spare_capacity(buffer), at))?;
        if got == 0 {
            return Ok(());
        }
    }
}

/// The same in one `pread`, for files that the kernel writes as one piece (all but lists of ids): a second one is needed
/// only when the content fills the buffer, which then grows for good.
pub(crate) fn read_once(fd: BorrowedFd<'_>, buffer: &mut Vec<u8>) -> Result<(), Errno> {
    buffer.clear();
    buffer.reserve(64);
    loop {
        let at = buffer.len() as u64;
        rustix::io::retry_on_intr(|| rustix::io::pread(fd, rustix::buffer::spare_capacity(buffer), at))?;
        if buffer.len() < buffer.capacity() {
            return Ok(());
        }
        buffer.reserve(buffer.capacity());
    }
}
