//! A pool of id ranges, and leases that are unique across threads, processes and crashes.

mod config;
mod record;
mod registry;
mod scan;
mod state;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{FlockOperation, flock};
use rustix::io::{Errno, pread};

pub use self::config::{DEDICATED_USER, DEFAULT_RANGE, PoolConfig, ROOT_SLOT, USER_SLOT, default_state_dir};
pub use self::registry::Registered;

use self::config::Slot;
use self::record::{LENGTH, Record, State};
use self::registry::Registry;
use self::scan::Snapshot;
use self::state::{Directory, Held, retry};
use crate::write::Kind;
use crate::{Error, Extent, IdMap, Range, SubordinateIds};

/// The inside uid and gid that [`Lease::uid_map`] and [`Lease::gid_map`] keep for the sandbox's init, whatever the slot's
/// size. Programs are not meant to run with it.
pub const INIT_ID: u32 = 65533;

/// The inside id of "nobody".
const NOBODY: u32 = 65534;

/// So many slots are checked together against the accounts and grants of others.
const BLOCK: usize = 32;

/// For so long slots are waited for that nobody leased and whose lock is held all the same: by one who only looks, or by a
/// child of some thread between fork and exec, which has copies of all our descriptors.
const PATIENCE: Duration = Duration::from_secs(1);

/// For so long a check of a block holds: others seldom get ids, and never by our doing.
const CHECK_HOLDS: Duration = Duration::from_secs(60);

/// Lends ranges of ids, each to one sandbox at a time, on this whole machine.
///
/// A slot is a file below the state directory; who holds its lock (flock(2)) has the ids. The lock belongs to the open
/// file, so whoever inherits [`Lease::lock_fd`] keeps it: the ids stay taken while a sandbox lives, even when the program
/// that started it was killed, and are free when the last holder is gone. Cheap to clone; usable from many threads.
///
/// A slot is not lent when one of its ids is granted to another user in `/etc/subuid` or `/etc/subgid`, or is an account's
/// in `/etc/passwd` or `/etc/group` (looked at once a minute for 32 slots together); nor, on its first use and after an
/// owner that ended without [`Lease::release`], when a process runs with one or lives in a namespace that maps one.
#[derive(Debug, Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: PoolConfig,
    directory: Directory,
    registry: Registry,
    slots: Vec<Slot>,
    boot: String,
    /// Slots that this process gave back, the latest last: their files are warm, and surely ours.
    recent: Mutex<Vec<usize>>,
    /// Where the search for a slot begins.
    cursor: AtomicUsize,
    /// By number of block: what was found.
    checks: Mutex<HashMap<usize, Arc<Check>>>,
}

/// What stands against the slots of a block.
#[derive(Debug)]
struct Check {
    at: Instant,
    unusable: HashMap<usize, Obstacle>,
}

/// Why a slot cannot be had.
#[derive(Debug, Clone)]
enum Obstacle {
    /// A living sandbox has it.
    Held,
    /// Nobody leased it, but its lock is held: for a moment.
    Busy,
    /// Files with its ids remain.
    Registered,
    /// In words.
    Other(String),
}

impl Pool {
    /// Opens the pool with this configuration below `state_dir`, making what is missing.
    ///
    /// `state_dir` itself is made if need be (mode 0700), its parent is not. It must belong to the caller and be
    /// writable by nobody else; the last component may not be a symbolic link. Pools of different configuration can share
    /// it as long as their ids do not overlap.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a configuration without a whole slot, with root's id, with ids that are not mapped in the
    /// caller's user namespace; [`Error::File`] and [`Error::Invalid`] for a directory that is not as said;
    /// [`Error::Unsupported`] when another version of this crate made it; [`Error::Conflict`] when another pool there has
    /// some of the ids, or a line of `/etc/subuid` or `/etc/subgid` grants some to a user that is not an
    /// [`owner`](PoolConfig::owner) of the pool.
    pub fn open(state_dir: &Path, config: &PoolConfig) -> Result<Self, Error> {
        let slots = config.slots()?;
        config.check_registry()?;
        config.mapped()?;
        let ids = Directory::open_or_create_trusted(state_dir)?.subdirectory("ids")?;
        let _lock = ids.lock()?;
        ids.stamp()?;
        let name = format!("pool-{:016x}", record::checksum(config.text().as_bytes()));
        for other in ids.names()?.iter().filter(|other| is_pool(other) && **other != name) {
            let Some(theirs) = read_config(&ids.subdirectory(other)?)? else { continue };
            if let Some(range) = config.common(&theirs) {
                let by = format!(
                    "the pool {} lends some of them in other pieces, or remembers them elsewhere",
                    ids.path().join(other).display()
                );
                return Err(Error::Conflict { range, by });
            }
        }
        let grants = SubordinateIds::read_root(&config.root)?;
        for (kind, ranges) in [(Kind::Uid, config.uids()), (Kind::Gid, config.gids())] {
            for range in ranges {
                if let Some(by) = grants.claimed_by_other(kind, *range, &config.owners) {
                    return Err(Error::Conflict { range: *range, by });
                }
            }
        }
        let directory = ids.subdirectory(&name)?;
        match read_config(&directory)? {
            Some(found) if found.same_ids(config) => {}
            Some(_) => return Err(Error::invalid(directory.path().display().to_string(), "it describes another pool")),
            None => {
                let fd = directory.open_file("create", "pool", true)?;
                state::write_whole(&fd, config.text().as_bytes())
                    .map_err(|e| Error::file("write", directory.path().join("pool"), e))?;
            }
        }
        Self::with(directory, config.clone(), slots)
    }

    fn with(directory: Directory, config: PoolConfig, slots: Vec<Slot>) -> Result<Self, Error> {
        // Processes begin their search at different places, so that they seldom meet.
        let start = usize::try_from(std::process::id()).unwrap_or(0).wrapping_mul(97) % slots.len().max(1);
        let registry = Registry::new(config.registry());
        let (recent, checks, cursor) = (Mutex::default(), Mutex::default(), AtomicUsize::new(start));
        let inner = Inner { config, directory, registry, slots, boot: boot_id()?, recent, cursor, checks };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The pool that a caller has without saying anything: [`PoolConfig::default_for_caller`] in [`default_state_dir`].
    ///
    /// # Errors
    /// Those of these two, and of [`open`](Self::open).
    pub fn default_for_caller() -> Result<Self, Error> {
        Self::open(&default_state_dir()?, &PoolConfig::default_for_caller()?)
    }

    /// How many sandboxes the pool has room for, before anything that stands against a slot.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.inner.slots.len()
    }

    /// Takes a range that nobody else has. `owner` names the sandbox for [`owner_of`] and for people: at most 200 bytes
    /// are kept, control characters become `?`.
    ///
    /// # Errors
    /// [`Error::Exhausted`] says how many slots are held and why others are unusable; [`Error::File`] when the state
    /// directory cannot be used: read-only, full, removed. Nothing is leased then.
    pub fn lease(&self, owner: &str) -> Result<Lease, Error> {
        let inner = &self.inner;
        if !inner.directory.in_place() {
            return Err(Error::file("lease", inner.directory.path(), Errno::NOENT));
        }
        loop {
            let recent = lock(&inner.recent).pop();
            let Some(slot) = recent else { break };
            if let Ok(lease) = self.try_slot(slot, owner, false)? {
                return Ok(lease);
            }
        }
        let slots = inner.slots.len();
        let started = Instant::now();
        let (held, registered, unusable, first) = loop {
            let (mut held, mut busy, mut registered, mut unusable, mut first) = (0, 0, 0, 0, None);
            let from = inner.cursor.load(Ordering::Relaxed);
            for slot in (0..slots).map(|n| (from + n) % slots) {
                match self.try_slot(slot, owner, false)? {
                    Ok(lease) => {
                        inner.cursor.store((slot + 1) % slots, Ordering::Relaxed);
                        return Ok(lease);
                    }
                    Err(Obstacle::Held) => held += 1,
                    Err(Obstacle::Busy) => busy += 1,
                    Err(Obstacle::Registered) => registered += 1,
                    Err(Obstacle::Other(why)) => {
                        unusable += 1;
                        first.get_or_insert(why);
                    }
                }
            }
            if busy == 0 || started.elapsed() > PATIENCE {
                break (held + busy, registered, unusable, first);
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        let pool = inner.directory.path().to_owned();
        Err(Error::Exhausted { pool, slots, held, registered, unusable, first })
    }

    /// Takes a registered range again, for another sandbox over the same trees.
    ///
    /// # Errors
    /// [`Error::Invalid`] when `uids` is not a registered range of this pool; [`Error::Conflict`] when a sandbox has it now,
    /// or something else uses its ids.
    pub fn lease_registered(&self, uids: Range, owner: &str) -> Result<Lease, Error> {
        let started = Instant::now();
        loop {
            let by = match self.try_registered(uids, owner)? {
                Ok(lease) => return Ok(lease),
                Err(Obstacle::Busy) if started.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                }
                Err(Obstacle::Held | Obstacle::Busy) => "a living sandbox has them".into(),
                Err(Obstacle::Registered) => {
                    return Err(Error::invalid(format!("the ids {uids}"), "no such range is registered in this pool"));
                }
                Err(Obstacle::Other(why)) => why,
            };
            return Err(Error::Conflict { range: uids, by });
        }
    }

    /// Takes a range for a sandbox that writes to these trees under its own ids: one that is registered for exactly these
    /// and that nobody has now (the lowest, so that one sandbox after another finds its own files), or a new one, which
    /// is [registered](Lease::register) before this returns. So no sandbox of other trees ever has ids that own files there,
    /// and as many ranges stay as ever worked on the trees at the same time: until [`forget_tree`](Self::forget_tree).
    ///
    /// # Errors
    /// Those of [`lease`](Self::lease) and [`Lease::register`].
    pub fn lease_for_trees(&self, trees: &[PathBuf], owner: &str) -> Result<Lease, Error> {
        let trees = sorted(trees)?;
        let started = Instant::now();
        loop {
            let mut busy = false;
            for range in self.registered()?.into_iter().filter(|range| range.trees == trees) {
                match self.try_registered(range.uids, owner)? {
                    Ok(lease) => return Ok(lease),
                    Err(obstacle) => busy |= matches!(obstacle, Obstacle::Busy),
                }
            }
            if !busy || started.elapsed() > PATIENCE {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut lease = self.lease(owner)?;
        lease.register(&trees)?;
        Ok(lease)
    }

    /// Looks whether ranges can be registered, which [`lease_for_trees`](Self::lease_for_trees) does: makes the directory
    /// for them where it is missing, and nothing else.
    ///
    /// # Errors
    /// Those of [`Lease::register`], but for a full disk.
    pub fn check_registry(&self) -> Result<(), Error> {
        self.inner.registry.check()
    }

    /// A registered slot; [`Obstacle::Registered`] when it is not registered (any more).
    fn try_registered(&self, uids: Range, owner: &str) -> Result<Result<Lease, Obstacle>, Error> {
        match self.inner.slots.iter().position(|slot| slot.uids == uids) {
            Some(slot) => self.try_slot(slot, owner, true),
            None => Ok(Err(Obstacle::Registered)),
        }
    }

    /// The registered ranges of this pool.
    ///
    /// # Errors
    /// [`Error::File`] and [`Error::Parse`] for what cannot be read.
    pub fn registered(&self) -> Result<Vec<Registered>, Error> {
        let ours = |range: &Registered| self.inner.slots.iter().any(|slot| slot.uids == range.uids);
        Ok(self.inner.registry.list()?.into_iter().filter(ours).collect())
    }

    /// Gives back the ranges that were registered for `tree` or for trees below it, saying that no file with their ids is
    /// left: neither there, nor anywhere that it was moved or linked to. Answers with their uids; a range that is also
    /// registered for a tree elsewhere stays.
    ///
    /// # Errors
    /// As [`forget`](Self::forget); ranges before the one that failed are given back.
    pub fn forget_tree(&self, tree: &Path) -> Result<Vec<Range>, Error> {
        let gone = real_path(tree);
        let mut forgotten = Vec::new();
        for range in self.registered()? {
            if range.trees.iter().all(|tree| tree.starts_with(&gone)) {
                self.forget(range.uids)?;
                forgotten.push(range.uids);
            }
        }
        Ok(forgotten)
    }

    /// Gives a registered range back, saying that no file has its ids any more.
    ///
    /// # Errors
    /// [`Error::Invalid`] while one of its trees still exists, and when it is not registered; [`Error::Conflict`] while a
    /// sandbox has it.
    pub fn forget(&self, uids: Range) -> Result<(), Error> {
        let range = self.registered()?.into_iter().find(|range| range.uids == uids);
        let range = range
            .ok_or_else(|| Error::invalid(format!("the ids {uids}"), "no such range is registered in this pool"))?;
        if let Some(tree) = range.trees.iter().find(|tree| tree.symlink_metadata().is_ok()) {
            let why = format!("{} still exists: files with these ids may be left in it", tree.display());
            return Err(Error::invalid(format!("the ids {uids}"), why));
        }
        let lease = self.lease_registered(uids, &range.name)?;
        self.inner.registry.remove(uids)?;
        lock(&self.inner.checks).clear();
        Lease { registered: false, ..lease }.release()
    }

    /// Frees the slots whose owners ended without a word, and says which of them cannot be freed and why. Living ones are
    /// not touched, nor are registered ones. Leasing does the same to each slot that it meets, so this is for people.
    ///
    /// # Errors
    /// [`Error::File`] for a state directory that cannot be read.
    pub fn recover(&self) -> Result<Recovered, Error> {
        let mut recovered = Recovered::default();
        let all: Vec<(usize, Slot)> = self.inner.slots.iter().copied().enumerate().collect();
        for some in all.chunks(BLOCK) {
            self.recover_some(some, &mut recovered)?;
        }
        Ok(recovered)
    }

    fn recover_some(&self, slots: &[(usize, Slot)], recovered: &mut Recovered) -> Result<(), Error> {
        let inner = &self.inner;
        let registered = inner.registry.list()?;
        let mut dead = Vec::new();
        for &(index, slot) in slots {
            let name = slot.name();
            let fd = match inner.directory.open_file("open", &name, false) {
                Ok(fd) => fd,
                Err(e) if e.errno() == Some(Errno::NOENT.raw_os_error()) => continue,
                Err(e) => {
                    recovered.left.push((slot.uids, e.to_string()));
                    continue;
                }
            };
            if retry(|| flock(&fd, FlockOperation::NonBlockingLockExclusive)).is_err() {
                continue;
            }
            match inner.directory.holds(&name, &fd)? {
                Held::Ours => {}
                Held::Replaced => continue,
                Held::Foreign(why) => {
                    recovered.left.push((slot.uids, why));
                    continue;
                }
            }
            let last = inner.read_record(&fd, &name)?;
            let done = match last.as_ref().map(|last| last.state) {
                Some(State::Released) => true,
                // A record without an entry is what is left of one that was being forgotten.
                _ => registered.iter().any(|range| range.uids.overlaps(slot.uids)),
            };
            if !done {
                dead.push((index, slot, fd, last.map(|last| last.name).unwrap_or_default()));
            }
        }
        if dead.is_empty() {
            return Ok(());
        }
        // After all locks were taken: whoever uses the ids now is in it, and nobody new can come.
        let snapshot = Snapshot::take()?;
        for (index, slot, fd, owner) in dead {
            match snapshot.user_of(slot.uids, slot.gids, !inner.config.share_live_maps) {
                Some(by) => recovered.left.push((slot.uids, by)),
                None => {
                    self.leased(index, slot, fd, owner, false).release()?;
                    recovered.freed.push(slot.uids);
                }
            }
        }
        Ok(())
    }

    /// Takes one slot, or says why not. `registered` is for who may have a registered one, and only such.
    fn try_slot(&self, index: usize, owner: &str, registered: bool) -> Result<Result<Lease, Obstacle>, Error> {
        let inner = &*self.inner;
        let Some(&slot) = inner.slots.get(index) else { return Ok(Err(Obstacle::Other("no such slot".into()))) };
        match inner.check(index)? {
            None => {}
            Some(Obstacle::Registered) if registered => {}
            Some(obstacle) => return Ok(Err(obstacle)),
        }
        let name = slot.name();
        let fd = match inner.lock_slot(&name)? {
            Ok(fd) => fd,
            Err(obstacle) => return Ok(Err(obstacle)),
        };
        let last = inner.read_record(&fd, &name)?;
        let clean = match &last {
            Some(last) if last.state.has_files() && !registered => return Ok(Err(Obstacle::Registered)),
            Some(last) => last.state.is_given_back() && last.boot == self.inner.boot,
            None => false,
        };
        // With the lock, so that nobody forgets it from here on.
        if registered && inner.registry.find(slot.uids)?.is_none() {
            return Ok(Err(Obstacle::Registered));
        }
        // A new file, another boot, or an owner that ended without a word: whatever it started may still run, and it may
        // have ended in the middle of registering.
        if !clean {
            if !registered && inner.registry.list()?.iter().any(|range| range.uids.overlaps(slot.uids)) {
                return Ok(Err(Obstacle::Registered));
            }
            if let Some(by) = Snapshot::take()?.user_of(slot.uids, slot.gids, !inner.config.share_live_maps) {
                return Ok(Err(Obstacle::Other(by)));
            }
        }
        let lease = self.leased(index, slot, fd, owner.to_owned(), registered);
        lease.write(if registered { State::Registered } else { State::Held })?;
        Ok(Ok(lease))
    }

    fn leased(&self, index: usize, slot: Slot, fd: OwnedFd, owner: String, registered: bool) -> Lease {
        Lease { pool: Arc::clone(&self.inner), index, slot, fd, owner, registered }
    }
}

impl Slot {
    /// The name of the slot's file.
    fn name(self) -> String {
        self.uids.base().to_string()
    }
}

impl Inner {
    /// Opens and locks the slot's file, making it if need be.
    fn lock_slot(&self, name: &str) -> Result<Result<OwnedFd, Obstacle>, Error> {
        loop {
            let fd = match self.directory.open_file("lease", name, true) {
                Ok(fd) => fd,
                Err(e) if is_odd(&e) => return Ok(Err(Obstacle::Other(e.to_string()))),
                Err(e) => return Err(e),
            };
            match retry(|| flock(&fd, FlockOperation::NonBlockingLockExclusive)) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => {
                    let free = self.read_record(&fd, name)?.is_some_and(|record| record.state.is_given_back());
                    return Ok(Err(if free { Obstacle::Busy } else { Obstacle::Held }));
                }
                Err(e) => return Err(Error::file("lock", self.directory.path().join(name), e)),
            }
            // Who locks a file that was removed meanwhile has nothing.
            match self.directory.holds(name, &fd)? {
                Held::Ours => return Ok(Ok(fd)),
                Held::Replaced => {}
                Held::Foreign(why) => {
                    let path = self.directory.path().join(name);
                    return Ok(Err(Obstacle::Other(format!("{}: {why}", path.display()))));
                }
            }
        }
    }

    fn read_record(&self, fd: &OwnedFd, name: &str) -> Result<Option<Record>, Error> {
        let mut bytes = [0; LENGTH];
        let read =
            retry(|| pread(fd, &mut bytes, 0)).map_err(|e| Error::file("read", self.directory.path().join(name), e))?;
        Ok(bytes.get(..read).and_then(Record::decode))
    }

    /// What stands against this slot, by a check of its block that is not too old.
    fn check(&self, index: usize) -> Result<Option<Obstacle>, Error> {
        let block = index / BLOCK;
        let known = lock(&self.checks).get(&block).cloned();
        let check = match known {
            Some(check) if check.at.elapsed() < CHECK_HOLDS => check,
            _ => {
                let check = Arc::new(self.check_block(block)?);
                lock(&self.checks).insert(block, Arc::clone(&check));
                check
            }
        };
        Ok(check.unusable.get(&index).cloned())
    }

    fn check_block(&self, block: usize) -> Result<Check, Error> {
        // While new slots are looked at, their locks are held: nobody else may take that for leases.
        let _lock = self.directory.lock()?;
        let at = Instant::now();
        let grants = SubordinateIds::read_root(&self.config.root)?;
        let registered = self.registry.list()?;
        let mut unusable = HashMap::new();
        let slots = self.slots.iter().copied().enumerate().skip(block * BLOCK).take(BLOCK);
        for (index, slot) in slots.clone() {
            let kinds = [(Kind::Uid, slot.uids), (Kind::Gid, slot.gids)];
            let claimed = kinds.iter().find_map(|&(kind, range)| {
                grants.claimed_by_other(kind, range, &self.config.owners).or_else(|| grants.account_in(kind, range))
            });
            if let Some(by) = claimed {
                unusable.insert(index, Obstacle::Other(by));
            } else if registered.iter().any(|range| range.uids.overlaps(slot.uids) || range.gids.overlaps(slot.gids)) {
                unusable.insert(index, Obstacle::Registered);
            }
        }
        self.prepare(slots.filter(|(index, _)| !unusable.contains_key(index)).map(|(_, slot)| slot))?;
        Ok(Check { at, unusable })
    }

    /// Makes the files of slots that were never used, and marks those free whose ids nobody uses: one look at all
    /// processes instead of one for each slot's first lease.
    fn prepare(&self, slots: impl Iterator<Item = Slot>) -> Result<(), Error> {
        let mut made = Vec::new();
        for slot in slots {
            let Some(fd) = self.directory.new_file(&slot.name())? else { continue };
            if flock(&fd, FlockOperation::NonBlockingLockExclusive).is_ok() {
                made.push((slot, fd));
            }
        }
        if made.is_empty() {
            return Ok(());
        }
        let snapshot = Snapshot::take()?;
        for (slot, fd) in made {
            if snapshot.user_of(slot.uids, slot.gids, !self.config.share_live_maps).is_none() {
                self.write_record(&fd, slot, State::Released, "")?;
            }
        }
        Ok(())
    }

    fn write_record(&self, fd: &OwnedFd, slot: Slot, state: State, name: &str) -> Result<(), Error> {
        let Slot { uids, gids } = slot;
        let record =
            Record { state, pid: std::process::id(), boot: self.boot.clone(), uids, gids, name: name.to_owned() };
        state::write_whole(fd, &record.encode())
            .map_err(|e| Error::file("lease", self.directory.path().join(slot.name()), e))
    }
}

/// A lock file that somebody put something else in place of: not an error of the whole pool.
fn is_odd(error: &Error) -> bool {
    [Errno::LOOP, Errno::ISDIR, Errno::NXIO, Errno::ACCESS].map(|e| Some(e.raw_os_error())).contains(&error.errno())
}

/// A range of ids that is nobody else's while this, or a copy of its [`lock_fd`](Self::lock_fd) anywhere, is open.
///
/// Dropping it closes our descriptor and no more: a sandbox that inherited the lock keeps the ids. The next taker of the
/// slot then looks at all processes of the machine first; [`release`](Self::release) spares it that.
#[derive(Debug)]
#[must_use = "dropping a lease gives the ids away"]
pub struct Lease {
    pool: Arc<Inner>,
    index: usize,
    slot: Slot,
    fd: OwnedFd,
    owner: String,
    registered: bool,
}

impl Lease {
    /// The host uids.
    #[must_use]
    pub fn range(&self) -> Range {
        self.slot.uids
    }

    /// The host gids: as many as uids, and the same numbers unless the pool was configured otherwise.
    #[must_use]
    pub fn gid_range(&self) -> Range {
        self.slot.gids
    }

    /// Inside ids from 0 on, with [`INIT_ID`] and 65534 ("nobody") mapped even in a small slot.
    #[must_use]
    pub fn uid_map(&self) -> IdMap {
        map_of(self.slot.uids)
    }

    /// The same for groups.
    #[must_use]
    pub fn gid_map(&self) -> IdMap {
        map_of(self.slot.gids)
    }

    /// The descriptor that holds the lock (close-on-exec). Whoever has a copy of it, made by fork, dup or over a socket,
    /// keeps the ids: give one to the sandbox's init. An explicit unlock (`LOCK_UN`) on any copy would free them for all.
    #[must_use]
    pub fn lock_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Whether the slot's file is still the one that is locked. When somebody removed it, another process may think that
    /// the ids are free: a sandbox that has not started yet had better not.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is another file, or the state directory was moved away; [`Error::File`] when that cannot
    /// be seen.
    pub fn verify(&self) -> Result<(), Error> {
        let name = self.slot.name();
        let why = match self.pool.directory.holds(&name, &self.fd)? {
            Held::Ours if self.pool.directory.in_place() => return Ok(()),
            Held::Ours => "its directory was moved or removed".into(),
            Held::Replaced => "it was removed or replaced while the lease was held".into(),
            Held::Foreign(why) => why,
        };
        Err(Error::invalid(self.pool.directory.path().join(name).display().to_string(), why))
    }

    /// Keeps the ids beyond the sandbox's end and beyond a reboot, because files below `trees` have them: no other sandbox
    /// gets them until [`Pool::forget`]. On disk when this returns; do it before the first file is made.
    ///
    /// # Errors
    /// [`Error::Unsupported`] without a directory to remember it in; [`Error::Invalid`] for no tree and for a relative
    /// path; [`Error::File`] when it cannot be written. The range is not registered then.
    pub fn register(&mut self, trees: &[PathBuf]) -> Result<(), Error> {
        let trees = sorted(trees)?;
        let Slot { uids, gids } = self.slot;
        self.pool.registry.add(&Registered { uids, gids, name: self.owner.clone(), trees })?;
        self.write(State::Registered)?;
        self.registered = true;
        Ok(())
    }

    /// Gives the ids back, saying that every process that ran with them has ended: the slot can be lent at once. A
    /// [registered](Self::register) one stays registered.
    ///
    /// # Errors
    /// [`Error::File`] when that cannot be written; the lock is given up all the same, as by dropping.
    pub fn release(self) -> Result<(), Error> {
        if self.registered {
            return self.write(State::Kept);
        }
        self.write(State::Released)?;
        lock(&self.pool.recent).push(self.index);
        Ok(())
    }

    fn write(&self, state: State) -> Result<(), Error> {
        self.pool.write_record(&self.fd, self.slot, state, &self.owner)
    }
}

/// What [`Pool::recover`] did.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
#[non_exhaustive]
#[must_use]
pub struct Recovered {
    /// The uids of the slots that are free again.
    pub freed: Vec<Range>,
    /// The uids of the slots that are not, and why.
    pub left: Vec<(Range, String)>,
}

/// Whose an id is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Owner {
    /// The name given to [`Pool::lease`].
    pub name: String,
    /// The process that leased it, by its number in its own PID namespace. It may have ended: see `state`.
    pub pid: u32,
    /// The uids of the lease.
    pub uids: Range,
    /// Its gids.
    pub gids: Range,
    /// The uid inside, by [`Lease::uid_map`].
    pub inside: Option<u32>,
    /// Whether it still lives.
    pub state: OwnerState,
}

/// Whether a lease is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum OwnerState {
    /// Somebody holds the lock.
    Living,
    /// Nobody does, and it was never given back: the last owner was killed.
    Ended,
    /// Nobody does; files with the ids remain.
    Registered,
}

/// Which sandbox the host uid `uid` belongs to, as the pools below `state_dir` know; `None` when it is no lease's.
///
/// Works from any process that may read the state directory: root, or the user whose it is. Nothing is made there.
///
/// # Errors
/// [`Error::File`] and [`Error::Invalid`] for a state directory that cannot be read or is not the caller's.
pub fn owner_of(state_dir: &Path, uid: u32) -> Result<Option<Owner>, Error> {
    for pool in pools(state_dir)? {
        let inner = &pool.inner;
        let Some(slot) = inner.slots.iter().find(|slot| slot.uids.contains(uid)) else { continue };
        let name = slot.name();
        let fd = match inner.directory.open_file("open", &name, false) {
            Ok(fd) => fd,
            Err(e) if e.errno() == Some(Errno::NOENT.raw_os_error()) => continue,
            Err(e) => return Err(e),
        };
        let Some(record) = inner.read_record(&fd, &name)? else { continue };
        // Whoever leases at this very moment tries again.
        let living = retry(|| flock(&fd, FlockOperation::NonBlockingLockShared)) == Err(Errno::WOULDBLOCK);
        let state = match record.state {
            _ if living => OwnerState::Living,
            State::Held => OwnerState::Ended,
            State::Registered | State::Kept => OwnerState::Registered,
            State::Released => continue,
        };
        let inside = map_of(record.uids).to_inside(uid);
        let Record { name, pid, uids, gids, .. } = record;
        return Ok(Some(Owner { name, pid, uids, gids, inside, state }));
    }
    Ok(None)
}

/// All pools below a state directory, for inspection and [`Pool::recover`]; none when there is no such directory.
///
/// # Errors
/// As [`owner_of`].
pub fn pools(state_dir: &Path) -> Result<Vec<Pool>, Error> {
    let root = match Directory::open(state_dir) {
        Ok(root) => root,
        Err(e) if e.errno() == Some(Errno::NOENT.raw_os_error()) => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let Some(ids) = root.existing("ids")? else { return Ok(Vec::new()) };
    let mut pools = Vec::new();
    for name in ids.names()?.iter().filter(|name| is_pool(name)) {
        let Some(directory) = ids.existing(name)? else { continue };
        let Some(config) = read_config(&directory)? else { continue };
        let slots = config.slots()?;
        pools.push(Pool::with(directory, config, slots)?);
    }
    Ok(pools)
}

/// The trees of a registered range, each once and in order.
fn sorted(trees: &[PathBuf]) -> Result<Vec<PathBuf>, Error> {
    if trees.is_empty() {
        return Err(Error::invalid("registered trees", "there is none"));
    }
    if let Some(tree) = trees.iter().find(|tree| !tree.is_absolute()) {
        return Err(Error::invalid(tree.display().to_string(), "a registered tree has an absolute path"));
    }
    let mut trees: Vec<PathBuf> = trees.iter().map(|tree| real_path(tree)).collect();
    trees.sort();
    trees.dedup();
    Ok(trees)
}

/// The path without symbolic links, as far as it exists.
fn real_path(path: &Path) -> PathBuf {
    let mut above = path.ancestors();
    let real = above.find_map(|above| Some((above.canonicalize().ok()?, path.strip_prefix(above).ok()?)));
    match real {
        Some((real, rest)) if rest.as_os_str().is_empty() => real,
        Some((real, rest)) => real.join(rest),
        None => path.to_owned(),
    }
}

fn map_of(range: Range) -> IdMap {
    if range.count() > NOBODY {
        return IdMap::of_range(range);
    }
    // The slot's last two ids are those of init and nobody, each an extent that a caller can leave out.
    let low = range.count() - 2;
    IdMap::of_extents(vec![
        Extent { inside: 0, outside: range.base(), count: low },
        Extent { inside: INIT_ID, outside: range.base() + low, count: 1 },
        Extent { inside: NOBODY, outside: range.base() + low + 1, count: 1 },
    ])
}

fn is_pool(name: &str) -> bool {
    name.starts_with("pool-")
}

fn read_config(directory: &Directory) -> Result<Option<PoolConfig>, Error> {
    let fd = match directory.open_file("open", "pool", false) {
        Ok(fd) => fd,
        Err(e) if e.errno() == Some(Errno::NOENT.raw_os_error()) => return Ok(None),
        Err(e) => return Err(e),
    };
    let path: PathBuf = directory.path().join("pool");
    let text = state::read_text(&fd).map_err(|e| Error::file("read", path.as_path(), e))?;
    // Empty, or cut: whoever made it was stopped before it could lease anything.
    Ok(PoolConfig::parse(&text))
}

fn boot_id() -> Result<String, Error> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    let text = std::fs::read_to_string(PATH).map_err(|e| Error::file("read", PATH, e))?;
    Ok(text.trim_end().to_owned())
}

/// A thread that panicked left nothing half done here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
