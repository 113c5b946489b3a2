//! An overlay as the root directory: a read-only directory below, and a layer above that takes all changes.

use std::fs::{DirBuilder, Metadata};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ns::PidFd;
use rustix::fs::{AtFlags, FlockOperation, MemfdFlags, Mode as Bits, OFlags, XattrFlags};
use rustix::io::Errno;

use crate::builder::{DiskImage, Upper};
use crate::disk::Disk;
use crate::error::Refusal;
use crate::host::Privilege;
use crate::identity::{Identity, Ids};
use crate::image::Images;
use crate::plan::Plan;
use crate::rootfs;
use crate::spawn;
use crate::step::{Context, Handed, Step, UPPER, WORK};
use crate::{Enforcement, Error, Feature};

/// The layer in memory, where nobody says how large.
const MEMORY_SIZE: u64 = 64 << 20;
/// How long a start waits for the instance before it to leave the upper directory.
const HANDOVER: Duration = Duration::from_secs(5);
/// How long the lock of an upper directory that was given up may stay with a child that is being made, or being killed.
const INHERITED: Duration = Duration::from_millis(250);
/// The limits of a layer in memory.
type Memory = Option<[(Feature, u64); 2]>;

/// The two directories, looked at.
#[derive(Debug)]
pub(crate) struct Overlay {
    lower: PathBuf,
    /// Who owns `lower`, and its permission bits: those of the root directory inside.
    owner: (u32, u32),
    mode: u32,
    /// `None`: in memory.
    layer: Option<Layer>,
    /// Not in memory but on the instance's image.
    image: Option<DiskImage>,
    privilege: Privilege,
    /// Whether files show under the ids of the instance.
    mapped: bool,
}

/// An upper directory of the host. Nobody else's while this lives.
#[derive(Debug)]
struct Layer {
    path: PathBuf,
    /// Holds the lock.
    directory: OwnedFd,
    /// Init of the last instance that used it.
    last: Mutex<Option<Arc<PidFd>>>,
}

/// The turn of one instance to use the upper directory.
pub(crate) struct Turn<'a>(MutexGuard<'a, Option<Arc<PidFd>>>);

impl Turn<'_> {
    /// It has started.
    pub(crate) fn give_to(mut self, init: &Arc<PidFd>) {
        *self.0 = Some(Arc::clone(init));
    }
}

impl Overlay {
    /// Looks at the directories that the plan names, and takes the upper one.
    pub(crate) fn open(plan: &Plan, privilege: Privilege) -> Result<Option<Self>, Error> {
        let Some((lower, upper)) = &plan.overlay else { return Ok(None) };
        let at = |error| Error::setup_at("use as lower layer", lower, error);
        let lower = lower.canonicalize().map_err(at)?;
        let metadata = lower.metadata().map_err(at)?;
        if !metadata.is_dir() {
            return Err(at(io::Error::from_raw_os_error(libc::ENOTDIR)));
        }
        let layer = match upper {
            Upper::Tmpfs | Upper::DiskImage(_) => None,
            Upper::Dir(path) => Some(Layer::open(path, &lower)?),
        };
        let owner = (metadata.uid(), metadata.gid());
        Ok(Some(Self {
            lower,
            owner,
            mode: metadata.mode() & 0o7777,
            layer,
            image: plan.disk_image(),
            privilege,
            mapped: false,
        }))
    }

    /// The upper directory, if it is one of the host.
    pub(crate) fn directory(&self) -> Option<&Path> {
        self.layer.as_ref().map(|layer| layer.path.as_path())
    }

    /// Makes the layer's directories, mounts the overlay on trial, and tells the plan how it came out: `None` where it is
    /// only preferred and cannot be had.
    pub(crate) fn try_out(
        mut self,
        plan: &mut Plan,
        identity: &Identity,
        disk: Option<&Disk>,
        images: Option<&Images>,
    ) -> Result<Option<Self>, Error> {
        let entry = Enforcement::wanted(Feature::Overlay, plan.mode(Feature::Overlay), None);
        let memory = match self.find_out(plan, identity, disk, images)? {
            Ok(memory) => memory,
            Err((why, fix)) => {
                plan.set(entry.not(why, fix).check()?);
                plan.rootfs = Some(self.lower);
                plan.overlay = None;
                return Ok(None);
            }
        };
        for (feature, enforced) in memory.into_iter().flatten() {
            // With the reason, if it is in memory for want of an image.
            if let Some(entry) = plan.feature(feature).filter(|entry| entry.requested.is_some()).cloned() {
                plan.set(entry.by(enforced, "the size of the overlay's tmpfs"));
            }
        }
        let by = match (&self.layer, self.image) {
            (Some(_), _) => "overlayfs with an upper directory".to_owned(),
            (None, Some(filesystem)) => format!("overlayfs with an {filesystem} image"),
            (None, None) => "overlayfs with a tmpfs".to_owned(),
        };
        let mut entry = entry.by(1, by);
        if let Some((why, fix)) = self.weakness(identity) {
            plan.warnings.push(format!("overlay: {why}"));
            entry = entry.not(why, fix);
        }
        plan.set(entry);
        Ok(Some(self))
    }

    /// Whether it can be mounted, and the limits of a layer in memory as the kernel took them; else why not, and the fix.
    fn find_out(
        &mut self,
        plan: &Plan,
        identity: &Identity,
        disk: Option<&Disk>,
        images: Option<&Images>,
    ) -> Result<Result<Memory, Refusal>, Error> {
        if let Some(layer) = &self.layer {
            if let Err(refused) = layer.keeps_attributes(self.privilege) {
                return Ok(Err(refused));
            }
            layer.make(self.owner, self.mode, self.privilege)?;
        }
        let ids = identity.take("trial of an overlay")?;
        self.mapped = self.privilege == Privilege::Root && !self.is_host();
        let mut tried = self.with_room(disk, || self.mount(plan, identity, &ids, images));
        if self.mapped && tried.is_err() {
            self.mapped = false;
            tried = self.with_room(disk, || self.mount(plan, identity, &ids, images));
        }
        Ok(tried.map_err(|error| {
            let fix = fix(error.errno(), self.privilege).to_owned();
            let cause = match &error {
                Error::Setup { step, error, .. } => format!("cannot {step}: {error}"),
                other => other.to_string(),
            };
            (cause, fix)
        }))
    }

    /// Starts something with it. Where its project is full there is no place for what the kernel makes in a layer when it is
    /// mounted, so the limit is raised a little until that is done. The caller has its turn, so no program runs meanwhile.
    pub(crate) fn with_room<T>(
        &self,
        disk: Option<&Disk>,
        mut start: impl FnMut() -> Result<T, Error>,
    ) -> Result<T, Error> {
        match (start(), disk) {
            (Err(error), Some(disk)) if matches!(error.errno(), Some(libc::ENOSPC | libc::EDQUOT | libc::EROFS)) => {
                disk.with_room(start)
            }
            (started, _) => started,
        }
    }

    /// Mounts it in a child, with which it goes.
    fn mount(&self, plan: &Plan, identity: &Identity, ids: &Ids, images: Option<&Images>) -> Result<Memory, Error> {
        let image = images.map(Images::make).transpose()?;
        let steps = self.steps(plan.tmp_size, plan.tmp_inodes)?;
        let (ours, theirs) = spawn::channel()?;
        let upper_ids = self.upper_ids(ids)?;
        let fds = Handed {
            channel: Some(theirs.as_fd()),
            user_namespace: Some(ids.namespace.as_fd()),
            upper_ids: upper_ids.as_ref().map(AsFd::as_fd),
            image: image.as_ref().map(AsFd::as_fd),
            ..Handed::default()
        };
        let mut context = Context::new(&[], fds);
        context.upper_owner = self.upper_owner(identity, ids);
        let within = (self.privilege == Privilege::User).then(|| ids.namespace.as_fd());
        spawn::in_mount_namespace(&steps, context, within)?;
        if self.layer.is_some() || image.is_some() {
            return Ok(None);
        }
        let tmpfs = crate::sys::receive_fd(ours.as_fd())?;
        let has = rustix::fs::fstatvfs(&tmpfs).map_err(|error| Error::setup("read the limits of a tmpfs", error))?;
        Ok(Some([(Feature::DiskMax, has.f_blocks * has.f_frsize), (Feature::InodesMax, has.f_files)]))
    }

    /// The steps that make it the root.
    pub(crate) fn steps(&self, size: Option<u64>, inodes: Option<u64>) -> Result<Vec<Step>, Error> {
        let (lower, _) = rootfs::source(&self.lower, &[])?;
        let upper = match &self.layer {
            None if self.image.is_some() => Step::UpperOnImage { mode: self.mode },
            None => Step::UpperInMemory { size: size.unwrap_or(MEMORY_SIZE), inodes, mode: self.mode },
            Some(layer) => Step::UpperOnDisk { source: rootfs::source(&layer.path, &[])?.0, map: self.mapped },
        };
        let user_xattr = self.privilege == Privilege::User;
        Ok(vec![Step::LowerLayer { source: lower, map: self.mapped }, upper, Step::OverlayRoot { user_xattr }])
    }

    /// What maps the upper directory's owners for an instance with `ids`.
    pub(crate) fn upper_ids(&self, ids: &Ids) -> Result<Option<OwnedFd>, Error> {
        let needed = self.mapped && self.layer.is_some();
        needed.then(|| Identity::layer_namespace(ids)).transpose()
    }

    /// Who must own the top of the upper layer, in the child's ids; `None` where it does already.
    pub(crate) fn upper_owner(&self, identity: &Identity, ids: &Ids) -> Option<(u32, u32)> {
        match (self.privilege, self.mapped) {
            (Privilege::User, _) => Some((identity.uid, identity.gid)),
            (Privilege::Root, false) => Some(ids.outside),
            (Privilege::Root, true) if self.layer.is_some() => None,
            (Privilege::Root, true) => ids.to_outside(self.owner),
        }
    }

    /// Waits for the turn to use an upper directory of the host.
    pub(crate) fn turn(&self) -> Result<Option<Turn<'_>>, Error> {
        let Some(layer) = &self.layer else { return Ok(None) };
        let last = layer.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(init) = &*last {
            if !init.wait(Some(HANDOVER))? {
                return Err(Error::setup_at("use as upper layer", &layer.path, Errno::BUSY));
            }
        }
        Ok(Some(Turn(last)))
    }

    /// Whether the lower directory is the host's root: what is root's alone there would be the program's.
    fn is_host(&self) -> bool {
        rootfs::is_host_root(&self.lower).unwrap_or(true)
    }

    /// The upper directory, if files in it bear the ids of the instances that made them.
    pub(crate) fn kept(&self) -> Option<PathBuf> {
        self.directory().filter(|_| !self.mapped).map(Path::to_owned)
    }

    /// What it does not do as well as it could: why, and the fix.
    fn weakness(&self, identity: &Identity) -> Option<(String, &'static str)> {
        let lower = self.lower.display();
        match self.privilege {
            Privilege::Root if self.is_host() => Some((
                format!(
                    "the files of {lower} belong to nobody inside: what is root's alone on this host would be the program's"
                ),
                "an image of a root directory, unpacked somewhere else",
            )),
            Privilege::Root if !self.mapped => Some((
                format!("the owners of {lower} cannot be mapped: its files belong to nobody inside"),
                "Linux 5.19, and directories of XFS, ext4, btrfs or (Linux 6.3) tmpfs",
            )),
            Privilege::User if self.layer.is_none() && !tmpfs_has_user_attributes() => Some((
                "a directory of the lower layer cannot be removed once something in it was changed (EIO): this kernel's \
                 tmpfs keeps no user attributes"
                    .to_owned(),
                "Linux 6.6, or an upper directory on a disk",
            )),
            Privilege::User if !identity.is_caller() => Some((
                format!("the owners of {lower} cannot be mapped by an ordinary user: its files belong to nobody inside"),
                "turn id_lease off, so that the caller's files are the program's",
            )),
            _ => None,
        }
    }
}

impl Layer {
    fn open(path: &Path, lower: &Path) -> Result<Self, Error> {
        let at = |error: io::Error| Error::setup_at("use as upper layer", path, error);
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(at(error)),
            _ => {}
        }
        let path = path.canonicalize().map_err(at)?;
        if path.starts_with(lower) || lower.starts_with(&path) {
            let why = format!("of {} and {} one lies in the other", lower.display(), path.display());
            return Err(Error::invalid("overlay", why));
        }
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(&path, flags, Bits::empty()).map_err(|error| at(error.into()))?;
        let metadata = path.metadata().map_err(at)?;
        if let Some(why) = unsafe_directory(&metadata) {
            return Err(Error::invalid("overlay", format!("{} {why}", path.display())));
        }
        let deadline = Instant::now() + INHERITED;
        while let Err(error) = rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            if error != Errno::WOULDBLOCK {
                return Err(at(error.into()));
            }
            if Instant::now() >= deadline {
                return Err(Error::invalid("overlay", format!("{} is used by another sandbox", path.display())));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(Self { path, directory, last: Mutex::new(None) })
    }

    /// Makes `upper`, which looks like the lower directory's top, and `work`.
    fn make(&self, (user, group): (u32, u32), mode: u32, privilege: Privilege) -> Result<(), Error> {
        let at = |name: &std::ffi::CStr, error: Errno| {
            Error::setup_at("make", self.path.join(name.to_string_lossy().as_ref()), error)
        };
        for name in [UPPER, WORK] {
            match rustix::fs::mkdirat(&self.directory, name, Bits::RWXU) {
                Err(Errno::EXIST) => continue,
                result => result.map_err(|error| at(name, error))?,
            }
            if name == UPPER {
                let (user, group) = (rustix::fs::Uid::from_raw(user), rustix::fs::Gid::from_raw(group));
                if privilege == Privilege::Root {
                    rustix::fs::chownat(&self.directory, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)
                        .map_err(|error| at(name, error))?;
                }
                rustix::fs::chmodat(&self.directory, name, Bits::from_raw_mode(mode), AtFlags::empty())
                    .map_err(|error| at(name, error))?;
            }
        }
        Ok(())
    }

    /// Whether the kernel could keep its marks here; without them it mounts an overlay that is half broken.
    fn keeps_attributes(&self, privilege: Privilege) -> Result<(), Refusal> {
        let path = self.path.display();
        if let Ok(disk) = quota::Filesystem::open(&self.path) {
            if disk.features().file_types == Some(false) {
                let why = format!("the XFS of {path} keeps no file types in directories (ftype=0)");
                return Err((why, "make the file system anew with mkfs.xfs -n ftype=1".to_owned()));
            }
        }
        let name = match privilege {
            Privilege::Root => c"trusted.sandbox.probe",
            Privilege::User => c"user.sandbox.probe",
        };
        let set = rustix::fs::fsetxattr(&self.directory, name, b"1", XattrFlags::empty())
            .and_then(|()| rustix::fs::fremovexattr(&self.directory, name));
        set.map_err(|error| {
            let error = io::Error::from(error);
            (format!("{path} keeps no extended attributes: {error}"), UNFIT.to_owned())
        })
    }
}

const UNFIT: &str =
    "an upper directory on XFS, ext4, btrfs or f2fs, not on another overlay, NFS or FAT; or one in memory";

/// What the kernel's refusal asks for.
fn fix(errno: Option<i32>, privilege: Privilege) -> &'static str {
    match (errno, privilege) {
        (Some(libc::ENODEV), _) => "a kernel with overlayfs (CONFIG_OVERLAY_FS)",
        (Some(libc::EPERM), Privilege::User) => "Linux 5.11, where others than root may mount it, or root",
        (Some(libc::ENOSPC | libc::EDQUOT), _) => {
            "room in the upper directory or its project: raise the limit, or remove files"
        }
        (Some(libc::EROFS), _) => {
            "an upper directory that has room and is on a file system that is mounted for writing"
        }
        (Some(libc::EINVAL), _) => UNFIT,
        _ => "see the error number; or rootfs, without a layer for changes",
    }
}

/// Why a directory is none that only we can reach into.
fn unsafe_directory(metadata: &Metadata) -> Option<String> {
    let (owner, own) = (metadata.uid(), rustix::process::geteuid().as_raw());
    if owner != own {
        return Some(format!("belongs to user {owner}, not to {own}"));
    }
    // A set-user-ID file that a program leaves there must be out of everybody's reach.
    let mode = metadata.mode() & 0o777;
    (mode & 0o077 != 0).then(|| format!("is open to others (mode {mode:o}); close it with chmod 0700"))
}

/// tmpfs keeps `user.*` attributes since Linux 6.6; a memfd is a file of one.
fn tmpfs_has_user_attributes() -> bool {
    let set = rustix::fs::memfd_create(c"sandbox-probe", MemfdFlags::CLOEXEC)
        .and_then(|memfd| rustix::fs::fsetxattr(&memfd, c"user.sandbox.probe", b"1", XattrFlags::empty()));
    set.is_ok()
}
