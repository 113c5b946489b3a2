//! The disk limit of a sandbox: a project quota on the directories that its programs may write to, the size of an overlay's
//! layer in memory or of a disk image (`image.rs`), or, if that may be weaker, the size of the memory file system at `/tmp`.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use quota::{Allocator, Check, Directory, Filesystem, Lease, Limit, Limits, Released};

use crate::builder::{Access, MountKind};
use crate::error::{Refusal, cause_and_hint};
use crate::image::Image;
use crate::outcome::Leftover;
use crate::overlay::Overlay;
use crate::plan::Plan;
use crate::{Enforcement, Error, Feature, Mode, host};

pub(crate) const FEATURES: [Feature; 2] = [Feature::DiskMax, Feature::InodesMax];
pub(crate) const FIX: &str = "bind a writable directory of a file system with project quota (XFS or ext4 mounted with \
    prjquota), or `prefer` the feature, so that the size of /tmp in memory is the limit, or give an overlay a layer in memory, \
    or as root use a disk_image";

/// What the kernel and the mount points of a start need in a full layer.
const ROOM_BYTES: u64 = 1 << 20;
const ROOM_INODES: u64 = 64;

/// A project that the writable directories of a sandbox belong to.
#[derive(Debug)]
pub(crate) struct Disk {
    lease: Mutex<Option<Lease>>,
    /// They leave the project with the sandbox.
    binds: Vec<Directory>,
    /// An overlay's upper directory stays in it, with all that was changed.
    layered: bool,
    project: quota::Project,
}

/// What the kernel has counted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DiskUsage {
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
    pub(crate) bytes_exhausted: bool,
    pub(crate) inodes_exhausted: bool,
}

/// A file system of an instance's own, whose size is a disk limit.
#[derive(Debug)]
pub(crate) enum Volume {
    Memory(OwnedFd),
    Image(Image),
}

impl Volume {
    /// Memory is freed at once, or by the kernel with the instance.
    pub(crate) fn into_image(self) -> Option<Image> {
        match self {
            Self::Memory(_) => None,
            Self::Image(image) => Some(image),
        }
    }

    /// What is in it.
    pub(crate) fn usage(&self) -> Result<DiskUsage, Error> {
        let tmpfs = match self {
            Self::Memory(tmpfs) => tmpfs,
            Self::Image(image) => return image.usage(),
        };
        let has = rustix::fs::fstatvfs(tmpfs).map_err(|error| Error::setup("read what is used in memory", error))?;
        Ok(DiskUsage {
            bytes: has.f_blocks.saturating_sub(has.f_bfree) * has.f_frsize,
            inodes: has.f_files.saturating_sub(has.f_ffree),
            bytes_exhausted: has.f_blocks > 0 && has.f_bfree == 0,
            inodes_exhausted: has.f_files > 0 && has.f_ffree == 0,
        })
    }
}

fn explain(error: quota::Error) -> Refusal {
    let (cause, hint) = cause_and_hint(error.to_string(), error.hint());
    (cause, hint.unwrap_or_else(|| "see the error".to_owned()))
}

impl Disk {
    /// Sets the limit up, if the plan has one. Where it is only preferred and cannot be had on disk, `/tmp` gets it.
    ///
    /// An overlay's upper directory on a disk that counts is counted in any case.
    pub(crate) fn new(plan: &mut Plan, overlay: Option<&Overlay>, owner: &str) -> Result<Option<Self>, Error> {
        if plan.has_volume() {
            return Ok(None);
        }
        let layer = overlay.and_then(Overlay::directory);
        let wanted = |feature| plan.requested(feature).map(Limit::Value);
        let (bytes, inodes) = (wanted(Feature::DiskMax), wanted(Feature::InodesMax));
        let limited = bytes.is_some() || inodes.is_some();
        if overlay.is_some() && layer.is_none() {
            // The layer is made with this size; what the kernel makes of it is read on trial.
            plan.tmp_size = plan.requested(Feature::DiskMax);
            plan.tmp_inodes = plan.requested(Feature::InodesMax);
            return Ok(None);
        }
        if limited && plan.mode(Feature::Seccomp) == Mode::Off {
            let why = "without the filter a program can take its files out of the quota";
            return Err(Error::invalid("off(seccomp)", format!("{why}, so that disk_max would be no boundary")));
        }
        let mut limits = Limits::unlimited();
        limits.bytes_hard = bytes.unwrap_or(Limit::Unlimited);
        limits.inodes_hard = inodes.unwrap_or(Limit::Unlimited);
        if !limited {
            // Nobody asked, so nothing is lost where it cannot be had.
            return Ok(layer.and_then(|layer| Self::on_disk(plan, Some(layer), Vec::new(), &limits, owner).ok()));
        }
        let binds = writable_directories(plan);
        let none_on_disk = binds.is_empty() && layer.is_none();
        match Self::on_disk(plan, layer, binds, &limits, owner) {
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
                    plan.set(if none_on_disk { entry.by(requested, "the size of the tmpfs at /tmp") } else { entry });
                    match feature {
                        Feature::DiskMax if none_on_disk => plan.tmp_size = Some(requested),
                        Feature::InodesMax if none_on_disk => plan.tmp_inodes = Some(requested),
                        _ => {}
                    }
                }
                Ok(None)
            }
        }
    }

    /// The project on disk, or why not and the fix.
    fn on_disk(
        plan: &Plan,
        layer: Option<&Path>,
        binds: Vec<PathBuf>,
        limits: &Limits,
        owner: &str,
    ) -> Result<Self, Refusal> {
        let Some(first) = layer.or(binds.first().map(PathBuf::as_path)) else {
            return Err((
                "nothing that a program may write to lies on a disk".to_owned(),
                "name one with bind or overlay".to_owned(),
            ));
        };
        let filesystem = Filesystem::open(first).map_err(explain)?;
        let check = if layer.is_some() { Check::overlay() } else { Check::default() };
        filesystem.require(&check).map_err(explain)?;
        let projects = crate::recover::projects_directory(plan.state_dir.as_deref());
        if let Some(Err(error)) = projects.parent().map(host::make_state_directory) {
            return Err((format!("cannot make {}: {error}", projects.display()), "name a state_dir".to_owned()));
        }
        let allocator = Allocator::open(&filesystem, &projects, Allocator::IDS).map_err(explain)?;
        let lease = match layer {
            Some(layer) => lease_of_layer(&allocator, layer, limits, owner)?,
            None => allocator.lease(owner, limits).map_err(explain)?,
        };
        let mut disk = Self {
            project: lease.project().clone(),
            lease: Mutex::new(None),
            binds: Vec::new(),
            layered: layer.is_some(),
        };
        for path in binds {
            let directory = Directory::open(&path).map_err(explain)?;
            assign(&allocator, &lease, &directory)?;
            disk.binds.push(directory);
        }
        *disk.lease.get_mut().unwrap_or_else(PoisonError::into_inner) = Some(lease);
        Ok(disk)
    }

    pub(crate) fn usage(&self) -> Result<DiskUsage, Error> {
        let report = self.project.report()?;
        Ok(DiskUsage {
            bytes: report.usage.bytes,
            inodes: report.usage.inodes,
            bytes_exhausted: report.new_files_refused(),
            inodes_exhausted: report.inodes_exhausted(),
        })
    }

    /// Does something with a few files and blocks more than the limit. No program may run meanwhile.
    pub(crate) fn with_room<T>(&self, act: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        let limits = self.project.limits()?;
        let more = |limit, room| match limit {
            Limit::Value(value) => Limit::Value(value.saturating_add(room)),
            Limit::Unlimited => Limit::Unlimited,
        };
        let mut raised = limits;
        raised.bytes_hard = more(limits.bytes_hard, ROOM_BYTES);
        raised.inodes_hard = more(limits.inodes_hard, ROOM_INODES);
        self.project.set_limits(&raised)?;
        let done = act();
        self.project.set_limits(&limits)?;
        done
    }

    /// Takes the binds out of the project again and gives its id back, unless an overlay's upper directory keeps it.
    pub(crate) fn release(&self) -> Vec<Leftover> {
        let mut leftovers = Vec::new();
        let mut left = |why: String| leftovers.push(Leftover { what: format!("project {}", self.project.id()), why });
        let Some(lease) = self.lease.lock().unwrap_or_else(PoisonError::into_inner).take() else { return leftovers };
        let mut unchanged = None;
        for directory in &self.binds {
            match leave(directory) {
                Ok(first) => unchanged = unchanged.or(first),
                Err(error) => left(error.to_string()),
            }
        }
        if self.layered {
            if let Err(error) = lease.keep() {
                left(error.to_string());
            }
            return leftovers;
        }
        match lease.release() {
            Ok(Released::Freed) => {}
            Ok(released) => left(why_not_free(released, unchanged.as_deref())),
            Err(error) => left(error.to_string()),
        }
        leftovers
    }
}

/// Takes a directory out of its project. Something in it that the kernel did not change, and why.
pub(crate) fn leave(directory: &Directory) -> Result<Option<String>, quota::Error> {
    let first = directory.clear()?.left.into_iter().next();
    Ok(first.map(|left| format!("{}: {}", directory.path().join(left.path).display(), left.why)))
}

/// Why a project is not free, and when it will be.
pub(crate) fn why_not_free(released: Released, unchanged: Option<&str>) -> String {
    let Released::Quarantined(usage) = released else { return "another process holds its lock".to_owned() };
    let unchanged = unchanged.map(|first| format!(" ({first})")).unwrap_or_default();
    let (inodes, bytes) = (usage.inodes, usage.bytes);
    format!("{inodes} files of {bytes} bytes still bear it{unchanged}; when they are gone, recover makes it free")
}

/// The project of an overlay's upper directory: the one that it was left in by an earlier sandbox, or a new one.
fn lease_of_layer(allocator: &Allocator, layer: &Path, limits: &Limits, owner: &str) -> Result<Lease, Refusal> {
    let directory = Directory::open(layer).map_err(explain)?;
    let tag = directory.tag().map_err(explain)?;
    if tag.inherit && Allocator::IDS.contains(&tag.project) {
        if let Some(lease) = allocator.take(tag.project).map_err(explain)? {
            lease.set_limits(limits).map_err(explain)?;
            return Ok(lease);
        }
    }
    let lease = allocator.lease(owner, limits).map_err(explain)?;
    // From now on, so that it is not taken from the directory if this program dies.
    lease.mark_kept().map_err(explain)?;
    assign(allocator, &lease, &directory)?;
    Ok(lease)
}

/// Makes a directory and all that is in it the lease's. A project that a dead owner left there is taken back first.
fn assign(allocator: &Allocator, lease: &Lease, directory: &Directory) -> Result<(), Refusal> {
    let old = directory.tag().map_err(explain)?.project;
    if old != lease.id() && Allocator::IDS.contains(&old) {
        if let Some(left) = allocator.take(old).map_err(explain)? {
            directory.clear().map_err(explain)?;
            left.release().map_err(explain)?;
        }
    }
    lease.remember(directory).map_err(explain)?;
    let tagged = directory.assign_existing(lease.project()).map_err(explain)?;
    // What holds nothing, such as a link that an earlier program made, may stay as it is.
    match tagged.left.iter().find(|left| !left.special) {
        None => Ok(()),
        Some(left) => {
            let why = format!("{} would not be counted: {}", left.path.display(), left.why);
            Err((why, "start from a directory that is nobody else's project".to_owned()))
        }
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
