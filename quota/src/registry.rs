//! The registry on disk: `STATE/KEY/lock` and one slot file per lent id, `STATE/KEY/ID`.
//!
//! Slot files are made and removed only under the registry's lock, and removed only under their own lock, too: so a
//! locked slot file is always the one that its name leads to.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FlockOperation, Mode, OFlags, flock, fstat, fsync, mkdirat, openat, unlinkat};
use rustix::io::Errno;

use crate::Error;
use crate::record::{KEPT, Known, Record};

/// The first line of the lock file. A later layout changes the number.
const STAMP: &str = "sandbox-quota 1\n";

#[derive(Debug)]
pub(crate) struct Registry {
    directory: OwnedFd,
    path: PathBuf,
}

impl Registry {
    pub(crate) fn open(state_dir: &Path, key: &str) -> Result<Self, Error> {
        let state = open_private(CWD, state_dir, state_dir)?;
        let path = state_dir.join(key);
        let directory = open_private(state.as_fd(), Path::new(key), &path)?;
        let registry = Self { directory, path };
        registry.lock()?.check_stamp()?;
        Ok(registry)
    }

    /// Waits for the registry's lock; each call opens the file anew, so threads exclude each other, too.
    pub(crate) fn lock(&self) -> Result<Locked<'_>, Error> {
        let path = self.path.join("lock");
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(&self.directory, "lock", flags, private()).map_err(Error::file("open", &path))?;
        loop {
            match flock(&fd, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(Locked { registry: self, lock: File::from(fd) }),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(Error::file("lock", path)(errno)),
            }
        }
    }
}

/// The registry while its lock is held.
#[derive(Debug)]
pub(crate) struct Locked<'a> {
    registry: &'a Registry,
    lock: File,
}

impl Locked<'_> {
    fn check_stamp(&mut self) -> Result<(), Error> {
        let path = self.registry.path.join("lock");
        let mut stamp = String::new();
        self.lock.read_to_string(&mut stamp).map_err(Error::io("read", &path))?;
        if STAMP.starts_with(&stamp) && stamp != STAMP {
            // New, or its maker was killed here.
            self.lock.rewind().map_err(Error::io("write", &path))?;
            return self.lock.write_all(STAMP.as_bytes()).map_err(Error::io("write", &path));
        }
        if stamp == STAMP {
            return Ok(());
        }
        let found = stamp.lines().next().unwrap_or_default().to_owned();
        Err(Error::Parse { path, line: 1, expected: "sandbox-quota 1", found })
    }

    /// All registered ids, increasing.
    pub(crate) fn ids(&self) -> Result<Vec<u32>, Error> {
        let error = |errno| Error::file("list", &self.registry.path)(errno);
        let mut ids = Vec::new();
        for entry in Dir::read_from(&self.registry.directory).map_err(error)? {
            let entry = entry.map_err(error)?;
            let id = entry.file_name().to_str().ok().and_then(|name| name.parse::<u32>().ok());
            ids.extend(id.filter(|id| (1..u32::MAX).contains(id)));
        }
        ids.sort_unstable();
        Ok(ids)
    }

    /// Registers an id, locked. On disk when this returns: limits set afterwards always have an owner.
    pub(crate) fn create(&self, id: u32, record: &Record) -> Result<Slot, Error> {
        let slot = self.open_slot(id, OFlags::CREATE | OFlags::EXCL).map_err(Error::file("make", self.path(id)))?;
        let written = slot
            .try_lock()
            .and_then(|_| slot.append(&record.to_bytes()))
            .and_then(|()| fsync(&self.registry.directory).map_err(Error::file("sync", &self.registry.path)));
        if let Err(error) = written {
            let _ = self.remove(&slot);
            return Err(error);
        }
        Ok(slot)
    }

    /// The slot of an id, not locked yet; `None` if it is not registered.
    pub(crate) fn open(&self, id: u32) -> Result<Option<Slot>, Error> {
        match self.open_slot(id, OFlags::empty()) {
            Ok(slot) => Ok(Some(slot)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(Error::file("open", self.path(id))(errno)),
        }
    }

    /// Ends the registration. The caller holds the slot's lock.
    pub(crate) fn remove(&self, slot: &Slot) -> Result<(), Error> {
        unlinkat(&self.registry.directory, slot.id.to_string(), AtFlags::empty())
            .map_err(Error::file("remove", &slot.path))
    }

    fn open_slot(&self, id: u32, flags: OFlags) -> Result<Slot, Errno> {
        let flags = flags | OFlags::RDWR | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(&self.registry.directory, id.to_string(), flags, private())?;
        Ok(Slot { file: File::from(fd), path: self.path(id), id })
    }

    fn path(&self, id: u32) -> PathBuf {
        self.registry.path.join(id.to_string())
    }
}

/// The file of one registered id. Who holds its lock, or a descriptor inherited from who does, has the lease.
#[derive(Debug)]
pub(crate) struct Slot {
    file: File,
    path: PathBuf,
    id: u32,
}

impl Slot {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// `false`: a living process has it.
    pub(crate) fn try_lock(&self) -> Result<bool, Error> {
        loop {
            match flock(&self.file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(true),
                Err(Errno::WOULDBLOCK) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(Error::file("lock", &self.path)(errno)),
            }
        }
    }

    pub(crate) fn read(&self) -> Result<Record, Error> {
        let mut bytes = Vec::new();
        let mut file = &self.file;
        let read = file.rewind().and_then(|()| file.read_to_end(&mut bytes));
        read.map_err(Error::io("read", &self.path))?;
        Ok(Record::parse(&bytes))
    }

    pub(crate) fn add_directory(&self, path: &Path, identity: (u64, u64)) -> Result<(), Error> {
        self.append(&Known { path: path.to_owned(), identity }.to_bytes()?)
    }

    pub(crate) fn mark_kept(&self) -> Result<(), Error> {
        self.append(KEPT)
    }

    /// One write, then on disk.
    fn append(&self, bytes: &[u8]) -> Result<(), Error> {
        let mut file = &self.file;
        file.write_all(bytes).and_then(|()| self.file.sync_data()).map_err(Error::io("write", &self.path))
    }
}

impl AsFd for Slot {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn private() -> Mode {
    Mode::RUSR | Mode::WUSR
}

/// Opens a directory of ours, making it if it is missing, and refuses one that somebody else may write to.
fn open_private(parent: BorrowedFd<'_>, name: &Path, path: &Path) -> Result<OwnedFd, Error> {
    match mkdirat(parent, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(Error::file("make", path)(errno)),
    }
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = openat(parent, name, flags, Mode::empty()).map_err(Error::file("open", path))?;
    let stat = fstat(&fd).map_err(Error::file("stat", path))?;
    let invalid = |why| Err(Error::Invalid { what: format!("state directory {}", path.display()), why });
    if stat.st_uid != rustix::process::geteuid().as_raw() {
        return invalid("it belongs to another user");
    }
    if Mode::from_raw_mode(stat.st_mode).intersects(Mode::WGRP | Mode::WOTH) {
        return invalid("others may write to it");
    }
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn slots_are_registered_locked_and_removed() {
        let state = tempfile::tempdir().unwrap();
        let registry = Registry::open(state.path(), "xfs-1").unwrap();
        let locked = registry.lock().unwrap();
        let slot = locked.create(7, &Record::new("me").unwrap()).unwrap();
        assert!(locked.create(7, &Record::new("you").unwrap()).is_err());
        assert_eq!(locked.ids().unwrap(), [7]);
        assert!(!locked.open(7).unwrap().unwrap().try_lock().unwrap(), "the maker has it");
        slot.add_directory(Path::new("/d"), (1, 2)).unwrap();
        let inherited = slot.as_fd().try_clone_to_owned().unwrap();
        drop(slot);
        assert!(!locked.open(7).unwrap().unwrap().try_lock().unwrap(), "who inherited it has it");
        drop(inherited);
        let slot = locked.open(7).unwrap().unwrap();
        assert!(slot.try_lock().unwrap());
        let record = slot.read().unwrap();
        assert_eq!((record.owner.as_str(), record.directories.len(), record.kept), ("me", 1, false));
        locked.remove(&slot).unwrap();
        assert!(locked.open(7).unwrap().is_none());
        assert_eq!(locked.ids().unwrap(), [0; 0]);
    }

    #[test]
    fn one_at_a_time() {
        let state = tempfile::tempdir().unwrap();
        let registry = Registry::open(state.path(), "k").unwrap();
        let locked = registry.lock().unwrap();
        std::thread::scope(|scope| {
            let second = scope.spawn(|| drop(registry.lock().unwrap()));
            std::thread::sleep(std::time::Duration::from_millis(50));
            assert!(!second.is_finished(), "it waits");
            drop(locked);
            second.join().unwrap();
        });
    }

    #[test]
    fn unsafe_state_directories_are_refused() {
        let state = tempfile::tempdir().unwrap();
        let open = |name: &str| Registry::open(&state.path().join(name), "k").map(drop);
        open("new").unwrap();
        assert_eq!(fs::metadata(state.path().join("new/k")).unwrap().permissions().mode() & 0o777, 0o700);
        symlink("new", state.path().join("link")).unwrap();
        assert_eq!(open("link").unwrap_err().errno(), Some(libc::ENOTDIR));
        fs::set_permissions(state.path().join("new"), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(open("new").unwrap_err().to_string().contains("others may write"));
        assert_eq!(open("a/b").unwrap_err().errno(), Some(libc::ENOENT));
    }

    #[test]
    fn another_layout_is_refused_and_a_torn_stamp_mended() {
        let state = tempfile::tempdir().unwrap();
        drop(Registry::open(state.path(), "k").unwrap());
        let lock = state.path().join("k/lock");
        fs::write(&lock, "sandbox-qu").unwrap();
        drop(Registry::open(state.path(), "k").unwrap());
        assert_eq!(fs::read_to_string(&lock).unwrap(), STAMP);
        fs::write(&lock, "sandbox-quota 2\n").unwrap();
        let error = Registry::open(state.path(), "k").unwrap_err();
        assert!(error.to_string().ends_with("expected sandbox-quota 1, found \"sandbox-quota 2\""), "{error}");
    }
}
