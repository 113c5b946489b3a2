use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::fstatvfs;

use crate::record::{Known, Record};
use crate::registry::{Locked, Registry, Slot};
use crate::{Directory, Error, Filesystem, Kind, Limits, Names, Project, Report, Usage, sys};

/// How long a lock may stay with a child between fork and exec, on a busy machine.
const INHERITED: Duration = Duration::from_millis(250);

/// Lends project ids of one file system, each to one user at a time, also across processes and crashes.
///
/// An id is free when **both** the registry and the kernel say so: the registry is a directory with one file per id,
/// locked (flock(2)) while the lease lives; the kernel must show neither usage nor limits for it, so that ids which
/// other programs took from the same range (Docker counts up from its home's id, containers-storage derives a block
/// from an inode number, Incus adds 10000 to a volume's number, the kubelet starts at 1048577) are passed over. Ids in
/// `/etc/projid` and `/etc/projects` are passed over, too. The reverse cannot be had: those programs do not ask the
/// kernel, so give the allocator a range that nothing else uses.
///
/// All allocators of a file system must use the same state directory. Put it on a disk rather than on a tmpfs: limits
/// survive a reboot, and so should the memory of whose they were.
#[derive(Clone, Debug)]
pub struct Allocator {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    filesystem: Filesystem,
    registry: Registry,
    ids: RangeInclusive<u32>,
}

impl Allocator {
    /// The usual range: far from the ids that people and programs count up to, and below 2^31 for tools that read
    /// numbers as signed.
    pub const IDS: RangeInclusive<u32> = 2_000_000_000..=2_000_999_999;

    /// Opens the registry of the file system below `state_dir`, which is made if it is missing (mode 0700; its parent
    /// must exist). It must belong to the caller and be writable by nobody else.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a range with 0 or 4294967295 in it, one beyond 65535 on an XFS with narrow ids, and an
    /// unsafe state directory; [`Error::File`]; [`Error::Parse`] if a later version of this crate wrote the registry.
    pub fn open(filesystem: &Filesystem, state_dir: &Path, ids: RangeInclusive<u32>) -> Result<Self, Error> {
        let (first, last) = (*ids.start(), *ids.end());
        let why = if first == 0 || last == u32::MAX {
            Some("0 means no project, and the kernel reserves 4294967295")
        } else if first > last {
            Some("it is empty")
        } else if last > u32::from(u16::MAX) && filesystem.features().wide_project_ids == Some(false) {
            Some("this file system was made with 16-bit project ids")
        } else {
            None
        };
        if let Some(why) = why {
            return Err(Error::Invalid { what: format!("range of project ids {first}..={last}"), why });
        }
        let registry = Registry::open(state_dir, &key(filesystem)?)?;
        Ok(Self { inner: Arc::new(Inner { filesystem: filesystem.clone(), registry, ids }) })
    }

    /// The file system.
    #[must_use]
    pub fn filesystem(&self) -> &Filesystem {
        &self.inner.filesystem
    }

    /// Lends a free id and sets its limits, read back. Nothing bears the id yet: see [`Lease::assign`].
    ///
    /// `owner` says in one line who it is for; [`recover`](Self::recover) shows it when the owner is gone.
    ///
    /// # Errors
    /// [`Error::Exhausted`]; [`Error::Invalid`] for limits as of [`Limits::validate`] and for an owner of several
    /// lines; [`Error::File`] and [`Error::Syscall`]. On an error no id stays taken.
    pub fn lease(&self, owner: &str, limits: &Limits) -> Result<Lease, Error> {
        limits.validate()?;
        let record = Record::new(owner)?;
        let (id, slot) = {
            let locked = self.inner.registry.lock()?;
            let mut taken: BTreeSet<u32> = locked.ids()?.into_iter().collect();
            taken.extend(Names::system()?.ids());
            let id = self.first_free(&taken)?;
            (id, locked.create(id, &record)?)
        };
        let lease = Lease { allocator: self.clone(), project: self.inner.filesystem.project(id)?, slot: Some(slot) };
        // On an error the drop gives the id back.
        lease.set_limits(limits)?;
        Ok(lease)
    }

    fn first_free(&self, taken: &BTreeSet<u32>) -> Result<u32, Error> {
        for id in self.inner.ids.clone() {
            if !taken.contains(&id) && self.inner.filesystem.read(id)?.is_blank() {
                return Ok(id);
            }
        }
        Err(Error::Exhausted { first: *self.inner.ids.start(), last: *self.inner.ids.end() })
    }

    /// Takes over a registered lease that no living process holds: one that was [kept](Lease::keep), or whose owner
    /// died. `None` if the id is not registered.
    ///
    /// # Errors
    /// [`Error::File`] with `EWOULDBLOCK` if a living process holds it.
    pub fn take(&self, id: u32) -> Result<Option<Lease>, Error> {
        let project = self.inner.filesystem.project(id)?;
        let locked = self.inner.registry.lock()?;
        let Some(slot) = locked.open(id)? else { return Ok(None) };
        if !lock_soon(&slot)? {
            return Err(Error::io("lock", slot.path())(std::io::Error::from_raw_os_error(libc::EWOULDBLOCK)));
        }
        Ok(Some(Lease { allocator: self.clone(), project, slot: Some(slot) }))
    }

    /// Takes back what dead owners left: ids that nothing bears any more are freed and their limits removed. Run it at
    /// the start of a program and after removing the directories that it names. Whatever a living process holds, and
    /// every id that is not registered, is left alone.
    ///
    /// # Errors
    /// [`Error::File`] and [`Error::Syscall`]; what was recovered until then stays recovered.
    pub fn recover(&self) -> Result<Recovered, Error> {
        let mut result = Recovered::default();
        let locked = self.inner.registry.lock()?;
        let registered = locked.ids()?;
        for &id in &registered {
            let Some(slot) = locked.open(id)? else { continue };
            if !slot.try_lock()? {
                result.live.push(id);
                continue;
            }
            let record = slot.read()?;
            if record.kept && record.directories.iter().any(|known| root(id, known).is_some()) {
                result.kept.push(id);
                continue;
            }
            match self.settle(&locked, &slot, id, &record)? {
                None => result.freed.push(id),
                // Its directories were renamed, or others bear the id.
                Some(_) if record.kept => result.kept.push(id),
                Some(usage) => {
                    let directories = record.directories.into_iter().map(|directory| directory.path).collect();
                    result.quarantined.push(Quarantined { project: id, owner: record.owner, directories, usage });
                }
            }
        }
        for report in self.inner.filesystem.report_from(*self.inner.ids.start()) {
            let report = report?;
            if report.project > *self.inner.ids.end() {
                break;
            }
            if !registered.contains(&report.project) && !report.is_blank() {
                result.unregistered.push(report);
            }
        }
        Ok(result)
    }

    /// Frees the id if nothing bears it: empty directories that the lease made roots are taken out of the project, then
    /// usage must be 0, then the limits go, then the slot. `Some(usage)`: something does, and nothing was changed; its
    /// limits stay, so that whoever still writes there stays limited.
    ///
    /// The caller holds the lock of the slot.
    fn settle(&self, locked: &Locked<'_>, slot: &Slot, id: u32, record: &Record) -> Result<Option<Usage>, Error> {
        let project = self.inner.filesystem.project(id)?;
        for known in &record.directories {
            leave_if_empty(id, known);
        }
        self.inner.filesystem.count_down(id);
        let report = project.report()?;
        if !report.is_unused() {
            return Ok(Some(report.usage));
        }
        project.clear()?;
        let after = project.report()?;
        if !after.is_unused() {
            // Somebody renamed or tagged something into it between the two looks.
            project.set_limits(&report.limits)?;
            return Ok(Some(after.usage));
        }
        locked.remove(slot)?;
        Ok(None)
    }
}

/// Locks the slot unless somebody holds it for longer than a moment: while another thread starts a program, its child
/// has a copy of every descriptor until it executes.
fn lock_soon(slot: &Slot) -> Result<bool, Error> {
    let deadline = Instant::now() + INHERITED;
    loop {
        if slot.try_lock()? {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The directory, if it is still there, is the same one, and bears the id: inherited or no longer, as while it is cleared.
fn root(id: u32, known: &Known) -> Option<Directory> {
    let directory = Directory::open(&known.path).ok()?;
    let same = directory.identity().is_ok_and(|identity| identity == known.identity);
    let tagged = directory.tag().is_ok_and(|tag| tag.project == id);
    (same && tagged).then_some(directory)
}

/// Takes an empty root out of the project.
fn leave_if_empty(id: u32, known: &Known) {
    if let Some(directory) = root(id, known) {
        if directory.is_empty().unwrap_or(false) {
            // Else it shows in the usage.
            let _ = directory.untag();
        }
    }
}

/// One registry per file system, whatever its mount point and device number are today.
fn key(filesystem: &Filesystem) -> Result<String, Error> {
    if *filesystem.kind() == Kind::Xfs {
        let geometry = sys::xfs_geometry(filesystem.as_fd()).map_err(Error::io("identify", filesystem.path()))?;
        let hex: String = geometry.uuid.iter().map(|byte| format!("{byte:02x}")).collect();
        return Ok(format!("xfs-{hex}"));
    }
    // ext4: its UUID, folded. f2fs: the device number on older kernels.
    let statvfs = fstatvfs(filesystem.as_fd()).map_err(Error::file("identify", filesystem.path()))?;
    Ok(format!("{}-{:016x}", filesystem.kind().to_string().replace('/', "_"), statvfs.f_fsid))
}

/// What [`Allocator::recover`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recovered {
    /// Ids of dead owners that are free again, their limits removed.
    pub freed: Vec<u32>,
    /// Ids that living processes hold. Untouched.
    pub live: Vec<u32>,
    /// Ids that were [kept](Lease::keep) on purpose and are still in use. Untouched.
    pub kept: Vec<u32>,
    /// Ids of dead owners that files still bear. Their limits stay; they are lent to nobody until the files are gone.
    pub quarantined: Vec<Quarantined>,
    /// Ids in the range that other programs use or limit. Untouched, never lent.
    pub unregistered: Vec<Report>,
}

/// An id whose owner is gone while files still bear it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Quarantined {
    /// The id.
    pub project: u32,
    /// Who it was lent to.
    pub owner: String,
    /// The directories that were made its roots: remove them and recover again.
    pub directories: Vec<PathBuf>,
    /// What files still use. Files moved out of the directories count, too.
    pub usage: Usage,
}

/// What became of an id at its release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Released {
    /// Its limits are removed and it may be lent again.
    Freed,
    /// Files still bear it: limits stay, and it is lent to nobody until they are gone ([`Allocator::recover`]).
    Quarantined(Usage),
    /// Another process inherited the lock and lives: nothing was done.
    Held,
}

/// A project id that is the caller's alone until it is released.
///
/// # Caveats
/// The lease lives as long as any process has its lock open: pass [`lock`](Self::lock) on to a process that uses the
/// directory, and the id stays reserved even if this program is killed. Dropping a lease releases it as
/// [`release`](Self::release) does, without telling the result.
pub struct Lease {
    allocator: Allocator,
    project: Project,
    slot: Option<Slot>,
}

impl Lease {
    /// The lent id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.project.id()
    }

    /// Its project: usage, limits, grace.
    #[must_use]
    pub fn project(&self) -> &Project {
        &self.project
    }

    /// Changes the limits: [`Project::set_limits`].
    ///
    /// # Errors
    /// As there.
    pub fn set_limits(&self, limits: &Limits) -> Result<Limits, Error> {
        self.project.set_limits(limits)
    }

    /// Makes an **empty** directory the root of the lease's tree: [`Directory::assign`], and remembers it, so that
    /// [`Allocator::recover`] can name it if this program dies. Several directories may share one lease: of an overlay
    /// assign the one that holds upper *and* work.
    ///
    /// # Errors
    /// As there, and [`Error::File`] if it cannot be remembered.
    pub fn assign(&self, directory: &Directory) -> Result<(), Error> {
        self.remember(directory)?;
        directory.assign(&self.project)
    }

    /// Remembers a directory that is made its root in another way ([`Directory::assign_existing`]).
    ///
    /// # Errors
    /// [`Error::File`]; [`Error::Invalid`] if its path is not absolute.
    pub fn remember(&self, directory: &Directory) -> Result<(), Error> {
        match &self.slot {
            Some(slot) => slot.add_directory(directory.path(), directory.identity()?),
            None => Ok(()),
        }
    }

    /// The lock that keeps the id reserved; close-on-exec. A process that inherits a duplicate holds the lease, too.
    #[must_use]
    pub fn lock(&self) -> Option<BorrowedFd<'_>> {
        self.slot.as_ref().map(|slot| slot.as_fd())
    }

    /// The same as an owned duplicate, to be given to somebody.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn duplicate_lock(&self) -> Result<Option<OwnedFd>, Error> {
        let Some(slot) = &self.slot else { return Ok(None) };
        slot.as_fd().try_clone_to_owned().map(Some).map_err(Error::io("duplicate the lock of", slot.path()))
    }

    /// Ends the lease's bond to processes, not the lease: the id stays registered and its limits stay, across programs
    /// and reboots, until it is [taken](Allocator::take) and released, or until nothing bears it any more.
    ///
    /// # Errors
    /// [`Error::File`]; the lease is then released.
    pub fn keep(mut self) -> Result<u32, Error> {
        self.mark_kept()?;
        self.slot = None;
        Ok(self.id())
    }

    /// The same from now on, should this program die: until then the lease goes on. [`release`](Self::release) still
    /// gives the id back.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn mark_kept(&self) -> Result<(), Error> {
        self.slot.as_ref().map_or(Ok(()), Slot::mark_kept)
    }

    /// Gives the id back. Remove the tree first: an id that files still bear is quarantined instead, deleted files that
    /// somebody has open among them. A root that is empty is taken out of the project.
    ///
    /// # Errors
    /// [`Error::File`] and [`Error::Syscall`]; the id then stays registered for [`Allocator::recover`].
    pub fn release(mut self) -> Result<Released, Error> {
        self.release_now()
    }

    fn release_now(&mut self) -> Result<Released, Error> {
        let Some(own) = self.slot.take() else { return Ok(Released::Held) };
        let locked = self.allocator.inner.registry.lock()?;
        // Only a lock of our own shows whether somebody inherited the old one. The registry's lock keeps others out.
        drop(own);
        let Some(slot) = locked.open(self.id())? else { return Ok(Released::Freed) };
        if !lock_soon(&slot)? {
            return Ok(Released::Held);
        }
        let record = slot.read()?;
        Ok(match self.allocator.settle(&locked, &slot, self.id(), &record)? {
            None => Released::Freed,
            Some(usage) => Released::Quarantined(usage),
        })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let _ = self.release_now();
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("project", &self.project).finish_non_exhaustive()
    }
}
