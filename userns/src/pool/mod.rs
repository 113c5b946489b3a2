//! A pool of id ranges, and leases that are unique across threads, processes and crashes.

mod record;
mod scan;
mod state;

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{FlockOperation, flock};
use rustix::io::{Errno, pread};
use rustix::process::geteuid;

use self::record::{LENGTH, Record, State};
use self::scan::Snapshot;
use self::state::{Directory, Held, retry};
use crate::{Error, Extent, IdMap, Range};

/// The ids of root's pool when nothing is configured: 2013265920 to 2147352575, room for 2046 sandboxes of 65536 ids.
///
/// They lie above what the usual tools hand out (`useradd`'s subordinate ids end at 600100000, systemd-nspawn's containers
/// at 1879048191, SSSD's and FreeIPA's domain accounts at 2000200000) and below what they keep for other ends (systemd's
/// foreign ids from 2147352576, Podman's customary `containers` user from 2147483647, and all numbers with the sign bit).
pub const DEFAULT_RANGE: (u32, u32) = (2_013_265_920, 134_086_656);

/// The size of a slot of root's pool: every id that programs expect to exist, 65534 included.
pub const ROOT_SLOT: u32 = 65536;

/// The size of a slot of a user's own pool: the usual 65536 subordinate ids make 64 of them.
pub const USER_SLOT: u32 = 1024;

/// The inside uid and gid that [`Lease::uid_map`] and [`Lease::gid_map`] keep for the sandbox's init, whatever the slot's
/// size. Programs are not meant to run with it.
pub const INIT_ID: u32 = 65533;

/// The inside id of "nobody".
const NOBODY: u32 = 65534;

/// The smallest slot: inside ids 0 and up, and those of init and nobody.
const MIN_SLOT: u32 = 3;

/// The most slots of a pool.
const MAX_SLOTS: usize = 1 << 16;

/// Which ids a pool has, and in pieces of which size it lends them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolConfig {
    uids: Vec<Range>,
    gids: Vec<Range>,
    slot: u32,
}

impl PoolConfig {
    /// A pool of the uids and gids of `range`, lent `slot` at a time. What is left over at the end is not used.
    #[must_use]
    pub fn new(range: Range, slot: u32) -> Self {
        Self::with_ranges(vec![range], vec![range], slot)
    }

    /// A pool of several ranges, uids and gids apart: as many slots as both have room for.
    #[must_use]
    pub fn with_ranges(uids: Vec<Range>, gids: Vec<Range>, slot: u32) -> Self {
        Self { uids, gids, slot }
    }

    /// Uid and gid ranges of each slot.
    fn slots(&self) -> Result<Vec<(Range, Range)>, Error> {
        let slot = self.slot;
        let what = || format!("a pool of slots of {slot} ids");
        if slot < MIN_SLOT {
            return Err(Error::invalid(what(), format!("a slot has at least {MIN_SLOT} ids: root, init and nobody")));
        }
        let cut = |ranges: &[Range]| -> Vec<Range> {
            let whole = ranges.iter().flat_map(|range| {
                (0..range.count() / slot).filter_map(|n| Range::new(range.base() + n * slot, slot).ok())
            });
            whole.take(MAX_SLOTS + 1).collect()
        };
        for ranges in [&self.uids, &self.gids] {
            for (n, range) in ranges.iter().enumerate() {
                if let Some(other) = ranges[..n].iter().find(|other| other.overlaps(*range)) {
                    return Err(Error::invalid(what(), format!("its ranges {other} and {range} overlap")));
                }
            }
        }
        let slots: Vec<_> = cut(&self.uids).into_iter().zip(cut(&self.gids)).collect();
        match slots.len() {
            0 => Err(Error::invalid(what(), "its uids or gids have no room for one")),
            n if n > MAX_SLOTS => Err(Error::invalid(what(), format!("it has more than {MAX_SLOTS}"))),
            _ => Ok(slots),
        }
    }

    /// The pool's file: its geometry, which all who share the pool must agree on.
    fn text(&self) -> String {
        let mut text = format!("slot {}\n", self.slot);
        for (key, ranges) in [("uids", &self.uids), ("gids", &self.gids)] {
            for range in ranges {
                let _ = writeln!(text, "{key} {} {}", range.base(), range.count());
            }
        }
        text
    }

    fn parse(text: &str) -> Option<Self> {
        let mut config = Self { uids: Vec::new(), gids: Vec::new(), slot: 0 };
        for line in text.lines() {
            match line.split_once(' ')? {
                ("slot", slot) => config.slot = slot.parse().ok()?,
                ("uids", range) => config.uids.push(record::range(range)?),
                ("gids", range) => config.gids.push(record::range(range)?),
                _ => return None,
            }
        }
        Some(config)
    }

    fn overlaps(&self, other: &Self) -> bool {
        let meet = |a: &[Range], b: &[Range]| a.iter().any(|a| b.iter().any(|b| a.overlaps(*b)));
        meet(&self.uids, &other.uids) || meet(&self.gids, &other.gids)
    }
}

/// Lends ranges of ids, each to one sandbox at a time, on this whole machine.
///
/// A slot is a file below the state directory; who holds its lock (flock(2)) has the ids. The lock belongs to the open
/// file, so whoever inherits [`Lease::lock_fd`] keeps it: the ids stay taken while a sandbox lives, even when the program
/// that started it was killed, and are free when the last holder is gone. Cheap to clone; usable from many threads.
#[derive(Debug, Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    directory: Directory,
    slots: Vec<(Range, Range)>,
    boot: String,
    /// Slots that this process gave back, the latest last: their files are warm, and surely ours.
    recent: Mutex<Vec<usize>>,
    /// Where the search for a slot begins.
    cursor: AtomicUsize,
}

impl Pool {
    /// Opens the pool with this configuration below `state_dir`, making what is missing.
    ///
    /// `state_dir` itself is made if need be (mode 0700), its parent is not. It must belong to the caller and be
    /// writable by nobody else; the last component may not be a symbolic link. Pools of different configuration can share
    /// it as long as their ids do not overlap.
    ///
    /// # Errors
    /// [`Error::File`] and [`Error::Invalid`] for a directory that is not as said, [`Error::Unsupported`] when another
    /// version of this crate made it, [`Error::Conflict`] when another pool there has some of the ids.
    pub fn open(state_dir: &Path, config: &PoolConfig) -> Result<Self, Error> {
        let slots = config.slots()?;
        let ids = Directory::open_or_create(state_dir)?.subdirectory("ids")?;
        let _lock = ids.lock()?;
        ids.stamp()?;
        let name = format!("pool-{:016x}", record::checksum(config.text().as_bytes()));
        for other in ids.names()?.iter().filter(|other| other.starts_with("pool-") && **other != name) {
            let Some(theirs) = read_config(&ids.subdirectory(other)?)? else { continue };
            if theirs.overlaps(config) {
                let range = *config.uids.first().ok_or_else(|| Error::invalid("pool", "no range"))?;
                let by = format!("the pool {} lends some of them in other pieces", ids.path().join(other).display());
                return Err(Error::Conflict { range, by });
            }
        }
        let directory = ids.subdirectory(&name)?;
        match read_config(&directory)? {
            Some(found) if found == *config => {}
            Some(_) => return Err(Error::invalid(directory.path().display().to_string(), "it describes another pool")),
            None => {
                let fd = directory.open_file("create", "pool", true)?;
                state::write_whole(&fd, config.text().as_bytes())
                    .map_err(|e| Error::file("write", directory.path().join("pool"), e))?;
            }
        }
        let boot = boot_id()?;
        // Processes begin their search at different places, so that they seldom meet.
        let cursor = usize::try_from(std::process::id()).unwrap_or(0).wrapping_mul(97) % slots.len();
        let inner = Inner { directory, slots, boot, recent: Mutex::default(), cursor: AtomicUsize::new(cursor) };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The pool that a caller has without saying anything.
    ///
    /// Root: [`DEFAULT_RANGE`] in slots of [`ROOT_SLOT`], below `/run/sandbox`.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub fn default_for_caller() -> Result<Self, Error> {
        if geteuid().is_root() {
            let (base, count) = DEFAULT_RANGE;
            return Self::open(Path::new("/run/sandbox"), &PoolConfig::new(Range::new(base, count)?, ROOT_SLOT));
        }
        Err(Error::Unsupported { feature: "a default id pool for users", needs: "a configured pool".into() })
    }

    /// Takes a range that nobody else has. `owner` names the sandbox for [`owner_of`](Self::owner_of) and for people: at
    /// most 200 bytes are kept.
    ///
    /// # Errors
    /// [`Error::Exhausted`] says how many slots are held and why others are unusable; [`Error::File`] when the state
    /// directory cannot be used: read-only, full, removed. Nothing is leased then.
    pub fn lease(&self, owner: &str) -> Result<Lease, Error> {
        let inner = &self.inner;
        if !inner.directory.in_place() {
            return Err(Error::file("lease", inner.directory.path(), Errno::NOENT));
        }
        let mut seen = Seen::default();
        while let Some(slot) = inner.recent.lock().unwrap_or_else(PoisonError::into_inner).pop() {
            if let Some(lease) = self.try_slot(slot, owner, &mut seen)? {
                return Ok(lease);
            }
        }
        seen = Seen::default();
        let slots = inner.slots.len();
        let from = inner.cursor.load(Ordering::Relaxed);
        for slot in (0..slots).map(|n| (from + n) % slots) {
            if let Some(lease) = self.try_slot(slot, owner, &mut seen)? {
                inner.cursor.store((slot + 1) % slots, Ordering::Relaxed);
                return Ok(lease);
            }
        }
        let Seen { held, registered, mut unusable } = seen;
        let pool = inner.directory.path().to_owned();
        Err(Error::Exhausted { pool, slots, held, registered, unusable: unusable.len(), first: unusable.pop_front() })
    }

    fn try_slot(&self, slot: usize, owner: &str, seen: &mut Seen) -> Result<Option<Lease>, Error> {
        let Inner { directory, slots, boot, .. } = &*self.inner;
        let Some(&(uids, gids)) = slots.get(slot) else { return Ok(None) };
        let name = uids.base().to_string();
        let fd = loop {
            let fd = match directory.open_file("lease", &name, true) {
                Ok(fd) => fd,
                Err(e) if e.errno() == Some(Errno::LOOP.raw_os_error()) => {
                    seen.unusable.push_back(e.to_string());
                    return Ok(None);
                }
                Err(e) => return Err(e),
            };
            match retry(|| flock(&fd, FlockOperation::NonBlockingLockExclusive)) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => {
                    seen.held += 1;
                    return Ok(None);
                }
                Err(e) => return Err(Error::file("lock", directory.path().join(name), e)),
            }
            match directory.holds(&name, &fd)? {
                Held::Ours => break fd,
                Held::Replaced => {}
                Held::Foreign(why) => {
                    seen.unusable.push_back(format!("{}: {why}", directory.path().join(name).display()));
                    return Ok(None);
                }
            }
        };
        let mut bytes = [0; LENGTH];
        let read =
            retry(|| pread(&fd, &mut bytes, 0)).map_err(|e| Error::file("read", directory.path().join(&name), e))?;
        match bytes.get(..read).and_then(Record::decode) {
            Some(Record { state: State::Registered, .. }) => {
                seen.registered += 1;
                return Ok(None);
            }
            Some(last) if last.state == State::Released && last.boot == *boot => {}
            // A new file, or an owner that ended without a word: whatever it started may still run.
            _ => {
                if let Some(by) = Snapshot::take()?.user_of(uids, gids, true) {
                    seen.unusable.push_back(by);
                    return Ok(None);
                }
            }
        }
        let lease = Lease { pool: Arc::clone(&self.inner), slot, fd, uids, gids, owner: owner.to_owned() };
        lease.write(State::Held)?;
        Ok(Some(lease))
    }
}

/// What a search found on its way.
#[derive(Debug, Default)]
struct Seen {
    held: usize,
    registered: usize,
    unusable: VecDeque<String>,
}

/// A range of ids that is nobody else's while this, or a copy of its [`lock_fd`](Self::lock_fd) anywhere, is open.
///
/// Dropping it closes our descriptor and no more: a sandbox that inherited the lock keeps the ids. The next taker of the
/// slot then looks at all processes of the machine first; [`release`](Self::release) spares it that.
#[derive(Debug)]
#[must_use = "dropping a lease gives the ids away"]
pub struct Lease {
    pool: Arc<Inner>,
    slot: usize,
    fd: OwnedFd,
    uids: Range,
    gids: Range,
    owner: String,
}

impl Lease {
    /// The host uids.
    #[must_use]
    pub fn range(&self) -> Range {
        self.uids
    }

    /// The host gids: as many as uids, and the same numbers unless the pool was configured otherwise.
    #[must_use]
    pub fn gid_range(&self) -> Range {
        self.gids
    }

    /// Inside ids from 0 on, with [`INIT_ID`] and 65534 ("nobody") mapped even in a small slot.
    #[must_use]
    pub fn uid_map(&self) -> IdMap {
        map_of(self.uids)
    }

    /// The same for groups.
    #[must_use]
    pub fn gid_map(&self) -> IdMap {
        map_of(self.gids)
    }

    /// The descriptor that holds the lock (close-on-exec). Whoever has a copy of it, made by fork, dup or over a socket,
    /// keeps the ids: give one to the sandbox's init.
    #[must_use]
    pub fn lock_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Gives the ids back, saying that every process that ran with them has ended: the slot can be lent at once.
    ///
    /// # Errors
    /// [`Error::File`] when that cannot be written; the lock is given up all the same, as by dropping.
    pub fn release(self) -> Result<(), Error> {
        self.write(State::Released)?;
        self.pool.recent.lock().unwrap_or_else(PoisonError::into_inner).push(self.slot);
        Ok(())
    }

    fn write(&self, state: State) -> Result<(), Error> {
        let (pid, boot, name) = (std::process::id(), self.pool.boot.clone(), self.owner.clone());
        let record = Record { state, pid, boot, uids: self.uids, gids: self.gids, name };
        state::write_whole(&self.fd, &record.encode())
            .map_err(|e| Error::file("lease", self.pool.directory.path().join(self.uids.base().to_string()), e))
    }
}

fn map_of(range: Range) -> IdMap {
    if range.count() > NOBODY {
        return IdMap::of_range(range);
    }
    // The slot's last two ids are those of init and nobody.
    let low = range.count() - 2;
    IdMap::of_extents(vec![
        Extent { inside: 0, outside: range.base(), count: low },
        Extent { inside: INIT_ID, outside: range.base() + low, count: 2 },
    ])
}

fn read_config(directory: &Directory) -> Result<Option<PoolConfig>, Error> {
    let fd = match directory.open_file("open", "pool", false) {
        Ok(fd) => fd,
        Err(e) if e.errno() == Some(Errno::NOENT.raw_os_error()) => return Ok(None),
        Err(e) => return Err(e),
    };
    let path: PathBuf = directory.path().join("pool");
    let text = state::read_text(&fd).map_err(|e| Error::file("read", path.as_path(), e))?;
    // Empty: whoever made it was stopped before it could write.
    Ok(PoolConfig::parse(&text).filter(|config| config.slot > 0))
}

fn boot_id() -> Result<String, Error> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    let text = std::fs::read_to_string(PATH).map_err(|e| Error::file("read", PATH, e))?;
    Ok(text.trim_end().to_owned())
}
