//! The disk limit of a sandbox: a project quota on the directories that its programs may write to, or, if that may be
//! weaker, the size of the memory file system at `/tmp`.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use quota::{Allocator, Check, Directory, Filesystem, Lease, Limit, Limits, Released};

use crate::builder::{Access, MountKind};
use crate::error::cause_and_hint;
use crate::outcome::Leftover;
use crate::plan::Plan;
use crate::{Enforcement, Error, Feature, Mode};

const FEATURES: [Feature; 2] = [Feature::DiskMax, Feature::InodesMax];
const FIX: &str = "bind a writable directory of a file system with project quota (XFS or ext4 mounted with prjquota), or \
    `prefer` the feature, so that the size of /tmp in memory is the limit";

/// A project that the writable directories of a sandbox belong to.
#[derive(Debug)]
pub(crate) struct Disk {
    lease: Mutex<Option<Lease>>,
    directories: Vec<Directory>,
    project: quota::Project,
}

/// What the quota's counters say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DiskUsage {
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
    pub(crate) bytes_exhausted: bool,
    pub(crate) inodes_exhausted: bool,
}

impl Disk {
    /// Sets the limit up, if the plan has one. Where it is only preferred and cannot be had on disk, `/tmp` gets it.
    pub(crate) fn new(plan: &mut Plan, owner: &str) -> Result<Option<Self>, Error> {
        let wanted = |feature| plan.requested(feature).map(Limit::Value);
        let (bytes, inodes) = (wanted(Feature::DiskMax), wanted(Feature::InodesMax));
        if bytes.is_none() && inodes.is_none() {
            return Ok(None);
        }
        if plan.mode(Feature::Seccomp) == Mode::Off {
            let why = "without the filter a program can take its files out of the quota";
            return Err(Error::invalid("off(seccomp)", format!("{why}, so that disk_max would be no boundary")));
        }
        let mut limits = Limits::unlimited();
        limits.bytes_hard = bytes.unwrap_or(Limit::Unlimited);
        limits.inodes_hard = inodes.unwrap_or(Limit::Unlimited);
        let directories = writable_directories(plan);
        match Self::on_disk(plan, &directories, &limits, owner) {
            Ok(disk) => {
                let project = &disk.project;
                let device = project.filesystem().source().unwrap_or(Path::new("its device")).display();
                let by = format!("{} project {} on {device}", project.filesystem().kind(), project.id());
                let read_back = project.limits()?;
                for (feature, limit) in FEATURES.into_iter().zip([read_back.bytes_hard, read_back.inodes_hard]) {
                    if let (Some(requested), Limit::Value(enforced)) = (plan.requested(feature), limit) {
                        let entry = Enforcement::wanted(feature, plan.mode(feature), Some(requested));
                        plan.set(entry.by(enforced, by.clone()));
                    }
                }
                Ok(Some(disk))
            }
            Err((why, fix)) => {
                for feature in FEATURES {
                    let Some(requested) = plan.requested(feature) else { continue };
                    let entry = Enforcement::wanted(feature, plan.mode(feature), Some(requested));
                    let entry = entry.not(why.clone(), format!("{fix}; or {FIX}")).check()?;
                    // What lies on a disk cannot be bounded by memory.
                    let bounded = directories.is_empty();
                    plan.set(if bounded { entry.by(requested, "the size of the tmpfs at /tmp") } else { entry });
                    match feature {
                        Feature::DiskMax if bounded => plan.tmp_size = Some(requested),
                        Feature::InodesMax if bounded => plan.tmp_inodes = Some(requested),
                        _ => {}
                    }
                }
                Ok(None)
            }
        }
    }

    /// The project on disk, or why not and the fix.
    fn on_disk(plan: &Plan, paths: &[PathBuf], limits: &Limits, owner: &str) -> Result<Self, (String, String)> {
        let [first, ..] = paths else {
            return Err((
                "nothing that a program may write to lies on a disk".to_owned(),
                "name one with bind".to_owned(),
            ));
        };
        let explain = |error: quota::Error| {
            let (cause, hint) = cause_and_hint(error.to_string(), error.hint());
            (cause, hint.unwrap_or_else(|| "see the error".to_owned()))
        };
        let filesystem = Filesystem::open(first).map_err(explain)?;
        filesystem.require(&Check::default()).map_err(explain)?;
        let state_dir = crate::recover::directory(plan.state_dir.as_deref())
            .map_err(|error| (error.to_string(), "name a state_dir".to_owned()))?;
        let allocator = Allocator::open(&filesystem, &state_dir.join("projects"), Allocator::IDS).map_err(explain)?;
        let lease = allocator.lease(owner, limits).map_err(explain)?;
        let mut directories = Vec::new();
        for path in paths {
            let directory = Directory::open(path).map_err(explain)?;
            lease.remember(&directory).map_err(explain)?;
            let tagged = directory.assign_existing(lease.project()).map_err(explain)?;
            if let Some(left) = tagged.left.first() {
                let why = format!("{} would not be counted: {}", left.path.display(), left.why);
                return Err((why, "start from a directory of plain files".to_owned()));
            }
            directories.push(directory);
        }
        let project = lease.project().clone();
        Ok(Self { lease: Mutex::new(Some(lease)), directories, project })
    }

    pub(crate) fn usage(&self) -> Result<DiskUsage, Error> {
        let report = self.project.report()?;
        Ok(DiskUsage {
            bytes: report.usage.bytes,
            inodes: report.usage.inodes,
            bytes_exhausted: report.bytes_exhausted(),
            inodes_exhausted: report.inodes_exhausted(),
        })
    }

    /// Takes the directories out of the project again and gives its id back.
    pub(crate) fn release(&self) -> Vec<Leftover> {
        let mut leftovers = Vec::new();
        let what = || format!("project {}", self.project.id());
        let Some(lease) = self.lease.lock().unwrap_or_else(PoisonError::into_inner).take() else { return leftovers };
        for directory in &self.directories {
            if let Err(error) = directory.clear() {
                leftovers.push(Leftover { what: what(), why: error.to_string() });
            }
        }
        match lease.release() {
            Ok(Released::Freed) => {}
            Ok(_) => leftovers.push(Leftover { what: what(), why: "files still bear it".to_owned() }),
            Err(error) => leftovers.push(Leftover { what: what(), why: error.to_string() }),
        }
        leftovers
    }
}

/// The directories of the host that a program may write to.
fn writable_directories(plan: &Plan) -> Vec<PathBuf> {
    let binds = plan.mounts.iter().filter_map(|mount| match &mount.kind {
        MountKind::Bind { source, access: Access::Writable | Access::Owned } => Some(source.clone()),
        _ => None,
    });
    let root = plan.rootfs.clone().filter(|_| plan.rootfs_writable);
    binds.chain(root).filter(|path| path.is_dir()).collect()
}
