//! What dead owners left, and who owns a host id.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cgroup::{Controller, Controllers, Layout, Needs};
use quota::{Allocator, Check, Directory, Filesystem, Released};
use userns::Owner;

use crate::outcome::Leftover;
use crate::{CGROUP_PREFIX, Error, IdPool};

/// How long a forgotten group may take to go.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Who made something: written into names, so that others can tell whether it still lives.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Maker {
    /// The first part of the boot id.
    boot: String,
    /// The PID namespace in which `pid` counts.
    namespace: u64,
    pid: u32,
    /// When the process started, in ticks after boot: a later process of the same number has another.
    started: u64,
}

impl Maker {
    fn this() -> Result<Self, Error> {
        use std::os::unix::fs::MetadataExt;
        let path = "/proc/sys/kernel/random/boot_id";
        let boot = std::fs::read_to_string(path).map_err(|error| Error::setup_at("read", path, error))?;
        let path = "/proc/self/ns/pid";
        let namespace = std::fs::metadata(path).map_err(|error| Error::setup_at("look at", path, error))?.ino();
        let pid = std::process::id();
        let started = start_time(pid).ok_or(Error::Ended { during: "its start time was to be read" })?;
        Ok(Self { boot: boot.chars().take(8).collect(), namespace, pid, started })
    }

    /// The name's part between our prefix and the running number.
    fn name(&self) -> String {
        format!("{}-{:x}-{}-{}", self.boot, self.namespace, self.pid, self.started)
    }

    fn parse(name: &str) -> Option<Self> {
        let mut parts = name.strip_prefix(CGROUP_PREFIX)?.split('-');
        let maker = Self {
            boot: parts.next()?.to_owned(),
            namespace: u64::from_str_radix(parts.next()?, 16).ok()?,
            pid: parts.next()?.parse().ok()?,
            started: parts.next()?.parse().ok()?,
        };
        parts.next()?.parse::<u64>().ok()?;
        parts.next().is_none().then_some(maker)
    }

    /// Whether the process is gone for certain, as seen by `this`: only processes of one PID namespace can tell.
    fn is_dead(&self, this: &Self) -> bool {
        self.boot != this.boot || (self.namespace == this.namespace && start_time(self.pid) != Some(self.started))
    }
}

fn start_time(pid: u32) -> Option<u64> {
    let pid = i32::try_from(pid).ok()?;
    procfs::process::Process::new(pid).and_then(|process| process.stat()).ok().map(|stat| stat.starttime)
}

/// How the names of this process's cgroups begin; a running number follows.
pub(crate) fn name_prefix() -> Result<String, Error> {
    Ok(format!("{CGROUP_PREFIX}{}-", Maker::this()?.name()))
}

/// What [`recover`] took away.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Recovered {
    /// Names of the cgroups that were removed.
    pub cgroups: Vec<String>,
    /// What was found out about id ranges.
    pub ids: Option<userns::Recovered>,
    /// Project ids, of any file system, that are free again.
    pub projects: Vec<u32>,
    /// What could not be taken away.
    pub leftovers: Vec<Leftover>,
}

/// Takes away what sandboxes of dead processes have left: cgroups, records of id ranges, and project ids with their limits.
/// What lives is not touched.
///
/// A killed host program leaves little: its instances end with it, mounts go with their namespaces, and the locks of id
/// ranges with their holders. Empty cgroups stay, and are removed here. Directories that were bound with a disk limit leave
/// their project; an overlay's upper directory keeps it, limits included, until the directory is removed. `state_dir` is the builder's
/// [`state_dir`](crate::Builder::state_dir), `None` the default one.
///
/// # Errors
/// [`Error::Ids`] and [`Error::Setup`] when the state directory or `/proc` cannot be read. Cgroups that cannot be removed
/// are leftovers, not errors.
pub fn recover(state_dir: Option<&Path>) -> Result<Recovered, Error> {
    let mut recovered = Recovered::default();
    let this = Maker::this()?;
    // Where our groups would go is where theirs are. Without a place there is nothing to find.
    let needs = Needs::new(Controllers::NONE).prefer([Controller::Memory, Controller::Pids, Controller::Cpu]);
    if let Ok(parent) = Layout::detect().and_then(|layout| layout.parent(&needs)) {
        for name in parent.names()? {
            if !Maker::parse(&name).is_some_and(|maker| maker.is_dead(&this)) {
                continue;
            }
            match parent.open(&name).and_then(|group| group.remove(REMOVE_TIMEOUT)) {
                Ok(()) => recovered.cgroups.push(name),
                Err(error) => recovered.leftovers.push(Leftover { what: name, why: error.to_string() }),
            }
        }
    }
    for pool in userns::pools(&directory(state_dir)?)? {
        let found = pool.recover()?;
        let ids = recovered.ids.get_or_insert_default();
        ids.freed.extend(found.freed);
        ids.left.extend(found.left);
    }
    let projects = projects_directory(state_dir);
    if projects.exists() {
        for filesystem in filesystems_with_quota()? {
            if let Err(error) = recover_projects(&filesystem, &projects, &mut recovered) {
                let what = format!("projects of {}", filesystem.path().display());
                recovered.leftovers.push(Leftover { what, why: error.to_string() });
            }
        }
    }
    Ok(recovered)
}

/// Says that the directory `tree`, which was shown to sandboxes writable, is gone, with all the files that they made:
/// the host ids that were kept for it can be leased to other sandboxes. Answers how many ranges were given back, those of
/// directories below it included; a range that is also kept for a directory elsewhere stays.
///
/// For sandboxes with [`IdPool::Auto`]; [`IdPool::open`] gives access to any pool. `state_dir` is the builder's
/// [`state_dir`](crate::Builder::state_dir), `None` the default one.
///
/// # Errors
/// [`Error::Ids`] while the directory still exists, while a sandbox still has such ids, and when the records cannot be read
/// or written.
pub fn forget_tree(tree: &Path, state_dir: Option<&Path>) -> Result<usize, Error> {
    Ok(IdPool::Auto.open(state_dir)?.forget_tree(tree)?.len())
}

/// One mount of each file system that limits projects and lets us see them.
pub(crate) fn filesystems_with_quota() -> Result<Vec<Filesystem>, Error> {
    let path = "/proc/self/mountinfo";
    let mounts = procfs::process::Process::myself()
        .and_then(|process| process.mountinfo())
        .map_err(|error| Error::setup_at("read", path, std::io::Error::other(error)))?;
    let mut seen = BTreeSet::new();
    let mounts = mounts.into_iter().filter(|mount| ["xfs", "ext4", "f2fs"].contains(&mount.fs_type.as_str()));
    let mounts = mounts.filter(|mount| seen.insert(mount.majmin.clone()));
    let filesystems = mounts.filter_map(|mount| Filesystem::open(mount.mount_point).ok());
    Ok(filesystems.filter(|filesystem| filesystem.require(&Check::default()).is_ok()).collect())
}

fn recover_projects(filesystem: &Filesystem, registry: &Path, recovered: &mut Recovered) -> Result<(), quota::Error> {
    let allocator = Allocator::open(filesystem, registry, Allocator::IDS)?;
    let found = allocator.recover()?;
    recovered.projects.extend(found.freed);
    for project in found.quarantined {
        // The lock is ours from here on; it may be somebody's who was faster.
        let Ok(Some(lease)) = allocator.take(project.project) else { continue };
        let mut unchanged = None;
        for directory in &project.directories {
            unchanged = unchanged.or(leave_project(directory, project.project));
        }
        match lease.release()? {
            Released::Freed => recovered.projects.push(project.project),
            released => {
                let why = crate::disk::why_not_free(released, unchanged.as_deref());
                recovered.leftovers.push(Leftover { what: format!("project {}", project.project), why });
            }
        }
    }
    Ok(())
}

/// Takes a directory out of a project, if it is its root. Something in it that cannot be changed.
fn leave_project(path: &Path, project: u32) -> Option<String> {
    let directory = Directory::open(path).ok()?;
    let own = directory.tag().is_ok_and(|tag| tag.project == project);
    own.then(|| crate::disk::leave(&directory).unwrap_or_else(|error| Some(error.to_string()))).flatten()
}

/// Whose sandbox a host uid belongs to, and which uid it is inside. `None`: no sandbox has it.
///
/// # Errors
/// [`Error::Ids`] when the state directory cannot be read.
pub fn owner_of(uid: u32) -> Result<Option<Owner>, Error> {
    let directory = directory(None)?;
    if !directory.exists() {
        return Ok(None);
    }
    Ok(userns::owner_of(&directory, uid)?)
}

pub(crate) fn directory(state_dir: Option<&Path>) -> Result<PathBuf, Error> {
    match state_dir {
        Some(directory) => Ok(directory.to_owned()),
        None => Ok(userns::default_state_dir()?),
    }
}

/// Where the registries of project ids lie. Limits on a disk outlive a reboot, and so must the memory of whose they are.
pub(crate) fn projects_directory(state_dir: Option<&Path>) -> PathBuf {
    crate::host::state_directory(state_dir).join("projects")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_their_maker() {
        let this = Maker::this().unwrap();
        let name = format!("{}17", name_prefix().unwrap());
        assert_eq!(Maker::parse(&name), Some(this.clone()));
        assert!(!this.is_dead(&this));
        let reused = Maker { started: this.started + 1, ..this.clone() };
        assert!(reused.is_dead(&this));
        let elsewhere = Maker { namespace: this.namespace + 1, pid: 1, ..this.clone() };
        assert!(!elsewhere.is_dead(&this), "another PID namespace's processes cannot be judged");
        for wrong in ["sandbox-", "sandbox-1-2-3-4", "sandbox-a-b-c-d-e", "other-0-1-2-3-4", &format!("{name}-1")] {
            assert_eq!(Maker::parse(wrong), None, "{wrong}");
        }
    }
}
