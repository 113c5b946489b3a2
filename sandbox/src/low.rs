//! A few low descriptor numbers of this process, kept for starts.
//!
//! A child that is made without sharing has a copy of the caller's descriptor table, and closes all of it at execve: half a
//! microsecond for each, milliseconds in a program that holds a thousand sandboxes. So it shares the table at first, and then
//! takes a copy of its lower end alone, which has what it needs: the parent puts that here for as long as the start takes.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::{DupFlags, Errno};

use crate::Error;
use crate::step::Handed;

/// What a start with every controller of cgroup v1 needs, and one or two more.
const COUNT: usize = 18;

/// The numbers, each held by a descriptor of `/dev/null` while it is not used.
#[derive(Debug)]
pub(crate) struct Numbers {
    null: OwnedFd,
    places: Mutex<Vec<OwnedFd>>,
    /// One above the highest.
    end: i32,
    /// The process that they are of: in a fork of it they may have been closed, and be somebody else's.
    pid: u32,
}

static NUMBERS: Mutex<Weak<Numbers>> = Mutex::new(Weak::new());

impl Numbers {
    /// Those of this process, as long as any sandbox is there: the lowest that were free when the first was built. `None`
    /// when so many cannot be had; starts are slower then.
    pub(crate) fn of_this_process() -> Option<Arc<Self>> {
        let mut numbers = NUMBERS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(numbers) = numbers.upgrade().filter(|numbers| numbers.pid == std::process::id()) {
            return Some(numbers);
        }
        let made = Arc::new(Self::reserve().ok()?);
        *numbers = Arc::downgrade(&made);
        Some(made)
    }

    fn reserve() -> Result<Self, Errno> {
        let null = rustix::fs::openat(CWD, c"/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        let places: Vec<_> = (0..COUNT).map(|_| rustix::io::fcntl_dupfd_cloexec(&null, 3)).collect::<Result<_, _>>()?;
        let end = places.iter().map(AsRawFd::as_raw_fd).max().unwrap_or(0) + 1;
        Ok(Self { null, places: Mutex::new(places), end, pid: std::process::id() })
    }

    /// Lends them to one start; not while another has them, which is not waited for.
    pub(crate) fn lend(&self) -> Option<Loan<'_>> {
        let places = match self.places.try_lock() {
            Ok(places) => places,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        Some(Loan { numbers: self, places, used: 0 })
    }
}

/// The numbers, for one start.
#[derive(Debug)]
pub(crate) struct Loan<'a> {
    numbers: &'a Numbers,
    places: MutexGuard<'a, Vec<OwnedFd>>,
    used: usize,
}

impl Loan<'_> {
    /// One above the highest number.
    pub(crate) fn end(&self) -> i32 {
        self.numbers.end
    }

    /// The same descriptors by these numbers; nothing when they are too many.
    pub(crate) fn lower(&mut self, fds: &Handed<'_>) -> Result<Option<Handed<'_>>, Error> {
        if fds.count() > self.places.len() {
            return Ok(None);
        }
        self.used = fds.count();
        let mut places = self.places.iter_mut();
        let lowered = fds.by(|fd| {
            let place = places.next().ok_or(Errno::MFILE)?;
            rustix::io::dup3(fd, place, DupFlags::CLOEXEC)?;
            let place: &OwnedFd = place;
            Ok(place.as_fd())
        });
        lowered.map(Some).map_err(|error: Errno| Error::setup("duplicate a descriptor", error))
    }
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        for place in self.places.iter_mut().take(self.used) {
            // Cannot fail: both are open, and the number is in use.
            let _ = rustix::io::dup3(&self.numbers.null, place, DupFlags::CLOEXEC);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::BorrowedFd;

    use super::*;

    fn inode(fd: impl AsFd) -> (u64, u64) {
        let found = rustix::fs::fstat(fd).unwrap();
        (found.st_dev, found.st_ino)
    }

    #[test]
    fn what_is_lent_comes_back() {
        let numbers = Numbers::reserve().unwrap();
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        let (fds, channel) = (vec![file.as_fd(); COUNT - 1], Some(file.as_fd()));
        for _ in 0..2 {
            let mut loan = numbers.lend().unwrap();
            assert!(numbers.lend().is_none(), "to one start at a time");
            let end = loan.end();
            let lowered = loan.lower(&Handed { owners: fds.clone(), channel, ..Handed::default() }).unwrap().unwrap();
            let mut all: Vec<BorrowedFd<'_>> = lowered.owners;
            all.extend(lowered.channel);
            for fd in &all {
                assert!(fd.as_raw_fd() < end);
                assert_eq!(inode(fd), inode(&file));
                assert_eq!(rustix::io::fcntl_getfd(fd).unwrap(), rustix::io::FdFlags::CLOEXEC);
            }
            all.sort_by_key(AsRawFd::as_raw_fd);
            all.dedup_by_key(|fd| fd.as_raw_fd());
            assert_eq!(all.len(), COUNT);
            drop(loan);
            let places = numbers.places.lock().unwrap();
            assert!(places.iter().all(|place| inode(place) == inode(&numbers.null)));
        }
    }

    #[test]
    fn more_than_there_are_is_none() {
        let numbers = Numbers::reserve().unwrap();
        let owners = vec![numbers.null.as_fd(); COUNT + 1];
        assert!(numbers.lend().unwrap().lower(&Handed { owners, ..Handed::default() }).unwrap().is_none());
        assert!(numbers.lend().is_some());
    }
}
