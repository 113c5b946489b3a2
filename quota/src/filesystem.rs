use std::ffi::CString;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, fstatfs, mknodat, open, openat};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use crate::limits::Steps;
use crate::mount::Mount;
use crate::sys::{self, FsDiskQuota, Target};
use crate::{Error, Grace, Limits, Project, Report};

/// What kind of file system it is, as far as quota is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// XFS. Limits hold for everybody, root included; at the limit the errno is `ENOSPC`.
    Xfs,
    /// ext4. A process with CAP_SYS_RESOURCE in the initial user namespace is exempt, unless it writes through an
    /// overlay; at the limit the errno is `EDQUOT`.
    Ext4,
    /// f2fs, which behaves as ext4 does.
    F2fs,
    /// overlayfs has no quota of its own; its upper directory lies on a file system that may have.
    Overlay,
    /// tmpfs limits itself by its mount options `size` and `nr_inodes`.
    Tmpfs,
    /// Any other, by the name that mountinfo shows, or else its magic number.
    Other(String),
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Xfs => "xfs",
            Self::Ext4 => "ext4",
            Self::F2fs => "f2fs",
            Self::Overlay => "overlay",
            Self::Tmpfs => "tmpfs",
            Self::Other(name) => name,
        })
    }
}

/// How the quota calls name the file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// By a descriptor: quotactl_fd(2), Linux 5.14.
    Descriptor,
    /// By a block device node, quotactl(2): the one that mountinfo names, or a private one that no path leads to.
    DeviceNode,
    /// Not at all: there is no block device behind it, or no node could be made for it (that needs CAP_MKNOD).
    None,
}

/// Accounting and enforcement of one type of quota, as the kernel reports them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Usage is counted.
    pub accounting: bool,
    /// Limits are enforced. Without it they can be set and read, and do nothing.
    pub enforcement: bool,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.accounting, self.enforcement) {
            (true, true) => "enforced",
            (true, false) => "accounted, not enforced",
            (false, _) => "off",
        })
    }
}

/// The states of the three types of quota on a file system.
///
/// They come from the kernel's flags (`Q_XGETQSTATV`). Mount options lie: a remount that "adds" project quota succeeds
/// and changes nothing on XFS, and changes the options alone on ext4.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct States {
    /// Quota per user id.
    pub user: State,
    /// Quota per group id.
    pub group: State,
    /// Quota per project id: the one this crate is about.
    pub project: State,
}

impl States {
    fn from_flags(flags: u16) -> Self {
        let state = |accounting, enforcement| State {
            accounting: flags & accounting != 0,
            enforcement: flags & enforcement != 0,
        };
        Self {
            user: state(sys::FS_QUOTA_UDQ_ACCT, sys::FS_QUOTA_UDQ_ENFD),
            group: state(sys::FS_QUOTA_GDQ_ACCT, sys::FS_QUOTA_GDQ_ENFD),
            project: state(sys::FS_QUOTA_PDQ_ACCT, sys::FS_QUOTA_PDQ_ENFD),
        }
    }
}

/// What the superblock of a file system offers. `None`: it does not say, or only to root.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Features {
    /// Directory entries carry the file type (XFS `ftype=1`): overlayfs needs it.
    pub file_types: Option<bool>,
    /// Project ids above 65535 (XFS `projid32bit=1`).
    pub wide_project_ids: Option<bool>,
    /// Metadata checksums, the V5 format (XFS `crc=1`). Without it project and group quota exclude each other.
    pub checksums: Option<bool>,
    /// Inodes can store a project id (ext4 `project`, f2fs `projquota`).
    pub project: Option<bool>,
    /// Quota files are part of the file system (ext4 `quota`, f2fs `quota_ino`).
    pub quota: Option<bool>,
}

/// A file system, held by a descriptor of a directory on it. Cloning makes another handle of the same one.
#[derive(Clone)]
pub struct Filesystem {
    inner: Arc<Inner>,
}

struct Inner {
    directory: OwnedFd,
    path: PathBuf,
    kind: Kind,
    mount: Option<Mount>,
    block_size: u64,
    device: (u32, u32),
    target: Addressing,
}

enum Addressing {
    Descriptor,
    /// An `O_PATH` descriptor of the block device's node, and the path by which it is reached.
    Node(#[allow(dead_code, reason = "keeps the path valid")] OwnedFd, CString),
    None,
}

impl Filesystem {
    /// Opens the file system on which the directory lies. Nothing is changed, and nothing is required of it yet:
    /// [`check`](Self::check) tells whether it can limit projects.
    ///
    /// # Errors
    /// [`Error::File`] if the directory cannot be opened for reading.
    pub fn open(directory: impl AsRef<Path>) -> Result<Self, Error> {
        let path = directory.as_ref();
        let fd = open(path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(Error::file("open", path))?;
        Self::from_fd(fd, path)
    }

    /// The same by a descriptor of a directory, which must be open for reading (not `O_PATH`). `path` is only
    /// for messages.
    ///
    /// # Errors
    /// [`Error::File`] if the descriptor does not tell its file system.
    pub fn from_fd(directory: OwnedFd, path: impl Into<PathBuf>) -> Result<Self, Error> {
        let path = path.into();
        let statfs = fstatfs(&directory).map_err(Error::file("statfs", &path))?;
        let stat = fstat(&directory).map_err(Error::file("stat", &path))?;
        let mount = Mount::of(directory.as_fd());
        // Truncated to the 32 bits that every magic number has.
        let magic = u64::try_from(statfs.f_type).unwrap_or_default() & 0xffff_ffff;
        let kind = match (magic, mount.as_ref().map(|mount| mount.kind.as_str())) {
            (0x5846_5342, _) => Kind::Xfs,
            (0xef53, None | Some("ext4")) => Kind::Ext4,
            (0xf2f5_2010, _) => Kind::F2fs,
            (0x794c_7630, _) => Kind::Overlay,
            (0x0102_1994, None | Some("tmpfs")) => Kind::Tmpfs,
            (_, Some(name)) => Kind::Other(name.to_owned()),
            (magic, None) => Kind::Other(format!("{magic:#x}")),
        };
        let device = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
        let target = if sys::has_quotactl_fd() {
            Addressing::Descriptor
        } else if matches!(kind, Kind::Xfs | Kind::Ext4 | Kind::F2fs) {
            device_node(device, mount.as_ref()).unwrap_or(Addressing::None)
        } else {
            Addressing::None
        };
        let block_size = u64::try_from(statfs.f_bsize).unwrap_or(4096);
        Ok(Self { inner: Arc::new(Inner { directory, path, kind, mount, block_size, device, target }) })
    }

    /// What kind of file system it is.
    #[must_use]
    pub fn kind(&self) -> &Kind {
        &self.inner.kind
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Where it is mounted, as mountinfo shows it; `None` if it does not.
    #[must_use]
    pub fn mount_point(&self) -> Option<&Path> {
        self.inner.mount.as_ref().map(|mount| mount.point.as_path())
    }

    /// What is mounted there (a device's path, as a rule); `None` if mountinfo does not show it.
    #[must_use]
    pub fn source(&self) -> Option<&Path> {
        self.inner.mount.as_ref().map(|mount| mount.source.as_path())
    }

    /// The size of a block in bytes: limits are rounded up to it.
    #[must_use]
    pub fn block_size(&self) -> u64 {
        self.inner.block_size
    }

    /// How the quota calls reach it.
    #[must_use]
    pub fn access(&self) -> Access {
        match self.inner.target {
            Addressing::Descriptor => Access::Descriptor,
            Addressing::Node(..) => Access::DeviceNode,
            Addressing::None => Access::None,
        }
    }

    /// What the superblock offers. The features of ext4 need read access to its device.
    #[must_use]
    pub fn features(&self) -> Features {
        match self.inner.kind {
            Kind::Xfs => match sys::xfs_geometry(self.fd()) {
                Ok(geometry) => {
                    let has = |flag| Some(geometry.flags & flag != 0);
                    Features {
                        file_types: has(sys::XFS_GEOMETRY_FTYPE),
                        wide_project_ids: has(sys::XFS_GEOMETRY_PROJID32),
                        checksums: has(sys::XFS_GEOMETRY_V5SB),
                        project: Some(true),
                        quota: Some(true),
                    }
                }
                Err(_) => Features::default(),
            },
            Kind::Ext4 => self.ext4_features().unwrap_or_default(),
            Kind::F2fs => self.f2fs_features().unwrap_or_default(),
            _ => Features::default(),
        }
    }

    /// The superblock as the device shows it (Documentation/filesystems/ext4, "Super Block").
    fn ext4_features(&self) -> Option<Features> {
        use std::os::unix::fs::FileExt;
        let device = std::fs::File::open(&self.inner.mount.as_ref()?.source).ok()?;
        let stat = fstat(&device).ok()?;
        let rdev = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        if !FileType::from_raw_mode(stat.st_mode).is_block_device() || rdev != self.inner.device {
            return None;
        }
        let mut superblock = [0u8; 0x68];
        device.read_exact_at(&mut superblock, 1024).ok()?;
        if superblock.get(0x38..0x3a)? != [0x53, 0xef] {
            return None;
        }
        let ro_compat = u32::from_le_bytes(superblock.get(0x64..0x68)?.try_into().ok()?);
        let has = |bit| Some(ro_compat & bit != 0);
        Some(Features { project: has(0x2000), quota: has(0x100), ..Features::default() })
    }

    fn f2fs_features(&self) -> Option<Features> {
        let source = std::fs::canonicalize(&self.inner.mount.as_ref()?.source).ok()?;
        let file = Path::new("/sys/fs/f2fs").join(source.file_name()?).join("features");
        let text = std::fs::read_to_string(file).ok()?;
        let has = |name| Some(text.split([',', ' ', '\n']).any(|feature| feature == name));
        Some(Features { project: has("projquota"), quota: has("quota_ino"), ..Features::default() })
    }

    /// Which quotas are accounted and enforced now. Needs no privilege. Off is what a file system without quota says.
    ///
    /// # Errors
    /// [`Error::Syscall`] if the kernel refuses to tell, also when no device node could be made (kernels before 5.14).
    /// Kernel: 3.15 (quotactl(2), `Q_XGETQSTATV`; ext4 and f2fs: 4.6).
    pub fn states(&self) -> Result<States, Error> {
        let result = match self.target() {
            Some(target) => sys::quota_state(target),
            // Without a block device there is no quota; with one that cannot be named nobody knows.
            None if matches!(self.inner.kind, Kind::Xfs | Kind::Ext4 | Kind::F2fs) && sys::has_quotactl() => {
                return Err(self.error("Q_XGETQSTATV", None, no_node()));
            }
            None => return Ok(States::default()),
        };
        match result {
            Ok(state) => Ok(States::from_flags(state.flags)),
            // No quota operations at all; none active; no such quota format; not a block device's file system.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ENOSYS | libc::ESRCH | libc::EINVAL | libc::ENODEV | libc::ENOTBLK)
                ) =>
            {
                Ok(States::default())
            }
            Err(error) => Err(self.error("Q_XGETQSTATV", None, error)),
        }
    }

    /// Turns enforcement of project limits on or off, as `xfs_quota -c 'enable -p'` and `quotaon -P` do, until the
    /// next mount. Accounting must be on.
    ///
    /// # Errors
    /// [`Error::Syscall`]: `ENOSYS` without accounting (it starts only at mount), `EPERM` without CAP_SYS_ADMIN.
    pub fn set_enforcement(&self, on: bool) -> Result<(), Error> {
        let call = if on { "Q_XQUOTAON" } else { "Q_XQUOTAOFF" };
        match self.call(call, None, |target| sys::set_enforcement(target, on)) {
            // Already so: EEXIST for on. XFS answers off twice with EEXIST, too.
            Err(error) if error.errno() == Some(libc::EEXIST) => Ok(()),
            result => result,
        }
    }

    /// A project of this file system, by its id. That nothing bears the id yet is no error.
    ///
    /// # Errors
    /// [`Error::Invalid`] for 0 (it means "no project") and 4294967295 (the kernel reserves it).
    pub fn project(&self, id: u32) -> Result<Project, Error> {
        Project::new(self.clone(), id)
    }

    /// Limits and usage of all projects that have either, by increasing id, as `xfs_quota -x -c 'report -p'` lists
    /// them. Id 0 is what belongs to no project.
    ///
    /// # Errors
    /// [`Error::Syscall`]: `EPERM` without CAP_SYS_ADMIN, `ENOSYS` or `ESRCH` without project quota.
    /// Kernel: 4.6 (`Q_XGETNEXTQUOTA`).
    pub fn report(&self) -> Result<Vec<Report>, Error> {
        self.report_from(0).collect()
    }

    /// The same from id `first` on, one at a time.
    pub(crate) fn report_from(&self, first: u32) -> impl Iterator<Item = Result<Report, Error>> + '_ {
        let mut next = Some(first);
        std::iter::from_fn(move || {
            let id = next?;
            let result = self.call("Q_XGETNEXTQUOTA", Some(id), |target| sys::get_next_quota(target, id));
            match result {
                Ok(quota) => {
                    next = quota.id.checked_add(1).filter(|next| *next != u32::MAX);
                    Some(Ok(Report::from_kernel(quota.id, &quota, self.steps())))
                }
                Err(error) => {
                    next = None;
                    (error.errno() != Some(libc::ENOENT)).then_some(Err(error))
                }
            }
        })
    }

    /// The default limits: they hold for each project that has none of its own. XFS only; elsewhere unlimited.
    ///
    /// # Errors
    /// [`Error::Syscall`], as for [`report`](Self::report).
    pub fn default_limits(&self) -> Result<Limits, Error> {
        if self.inner.kind != Kind::Xfs {
            return Ok(Limits::unlimited());
        }
        self.read(0).map(|report| report.limits)
    }

    /// Sets the limits of **every** project of the file system that has none of its own (on XFS they are the limits
    /// of id 0). Not for one directory: that is [`Project::set_limits`].
    ///
    /// # Errors
    /// [`Error::Invalid`] as of [`Limits::validate`], and on other file systems than XFS, which have no such default;
    /// [`Error::NotApplied`] if the kernel shows something else afterwards; [`Error::Syscall`].
    pub fn set_default_limits(&self, limits: &Limits) -> Result<Limits, Error> {
        if self.inner.kind != Kind::Xfs {
            let what = format!("default project limits on {}", self.inner.kind);
            return Err(Error::Invalid {
                what,
                why: "only XFS has defaults; there they would limit what has no project",
            });
        }
        self.write_limits(0, limits)
    }

    /// For how long soft limits of projects may be exceeded.
    ///
    /// # Errors
    /// [`Error::Syscall`] if there is no quota.
    pub fn grace(&self) -> Result<Grace, Error> {
        let state = self.call("Q_XGETQSTATV", None, sys::quota_state)?;
        let time = |seconds: i32| Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
        Ok(Grace { bytes: time(state.btimelimit), inodes: time(state.itimelimit) })
    }

    /// Sets the grace times, for all projects of the file system. A soft limit that is exceeded already keeps its end.
    ///
    /// # Errors
    /// [`Error::Invalid`] outside of 1 to 2^31 − 1 seconds; [`Error::Syscall`].
    pub fn set_grace(&self, grace: Grace) -> Result<(), Error> {
        let quota = grace.to_kernel()?;
        self.call("Q_XSETQLIM", Some(0), |target| sys::set_quota(target, 0, quota))
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.inner.directory.as_fd()
    }

    pub(crate) fn mount(&self) -> Option<&Mount> {
        self.inner.mount.as_ref()
    }

    pub(crate) fn device(&self) -> (u32, u32) {
        self.inner.device
    }

    fn target(&self) -> Option<Target<'_>> {
        match &self.inner.target {
            Addressing::Descriptor => Some(Target::Descriptor(self.fd())),
            Addressing::Node(_, path) => Some(Target::Node(path)),
            Addressing::None => None,
        }
    }

    fn call<T>(
        &self,
        call: &'static str,
        project: Option<u32>,
        run: impl FnOnce(Target<'_>) -> io::Result<T>,
    ) -> Result<T, Error> {
        let result = match self.target() {
            Some(target) => run(target),
            None => Err(no_node()),
        };
        result.map_err(|error| self.error(call, project, error))
    }

    fn error(&self, call: &'static str, project: Option<u32>, error: io::Error) -> Error {
        let place = self.inner.path.display();
        let detail = match project {
            Some(id) => format!("project {id} on {place}"),
            None => place.to_string(),
        };
        Error::Syscall { call, detail, error }
    }

    /// An id that nothing uses or limits has no record on XFS: all zero is what ext4 says then, and what it means.
    pub(crate) fn read(&self, project: u32) -> Result<Report, Error> {
        match self.call("Q_XGETQUOTA", Some(project), |target| sys::get_quota(target, project)) {
            Ok(quota) => Ok(Report::from_kernel(project, &quota, self.steps())),
            Err(error) if error.errno() == Some(libc::ENOENT) => {
                Ok(Report::from_kernel(project, &FsDiskQuota::default(), self.steps()))
            }
            Err(error) => Err(error),
        }
    }

    fn steps(&self) -> Steps {
        let block = self.inner.block_size;
        // XFS reserves for an inode's chunk and for every level of the trees of inodes and of the directory.
        let file = if self.inner.kind == Kind::Xfs { 64 * block } else { block };
        Steps { block, file }
    }

    /// Makes usage exact: XFS counts down what was deleted in the background since Linux 5.14, and counts what it has
    /// preallocated for files that grow. The others do it at once.
    pub(crate) fn count_down(&self, project: u32) {
        if self.inner.kind == Kind::Xfs {
            // Refused, it only stays behind for a moment.
            let _ = sys::xfs_free(self.fd(), project);
        }
    }

    pub(crate) fn write_limits(&self, project: u32, limits: &Limits) -> Result<Limits, Error> {
        limits.validate()?;
        let quota = limits.to_kernel();
        self.call("Q_XSETQLIM", Some(project), |target| sys::set_quota(target, project, quota))?;
        let found = self.read(project)?.limits;
        if limits.is_applied_by(&found, self.inner.block_size) {
            Ok(found)
        } else {
            Err(Error::NotApplied { project, asked: Box::new(*limits), found: Box::new(found) })
        }
    }

    pub(crate) fn write_raw(&self, project: u32, quota: FsDiskQuota) -> Result<(), Error> {
        self.call("Q_XSETQLIM", Some(project), |target| sys::set_quota(target, project, quota))
    }
}

impl AsFd for Filesystem {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd()
    }
}

impl fmt::Debug for Filesystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filesystem")
            .field("path", &self.inner.path)
            .field("kind", &self.inner.kind)
            .field("source", &self.source())
            .field("access", &self.access())
            .finish_non_exhaustive()
    }
}

fn no_node() -> io::Error {
    io::Error::other("no device node can be had for it (kernels before 5.14 need one, and CAP_MKNOD to make it)")
}

/// The block device's node for kernels without quotactl_fd: mountinfo's, if it is the right device on a mount that
/// allows devices, else one made in a tmpfs that is mounted nowhere, so that it leaves no trace.
fn device_node(device: (u32, u32), mount: Option<&Mount>) -> Option<Addressing> {
    let usable = |fd: OwnedFd| {
        let stat = fstat(&fd).ok()?;
        let right = FileType::from_raw_mode(stat.st_mode).is_block_device()
            && (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)) == device;
        let path = CString::new(format!("/proc/thread-self/fd/{}", fd.as_raw_fd())).ok()?;
        // EACCES: the node lies on a nodev mount.
        let answers = |path: &CString| {
            let answer = sys::quota_state(Target::Node(path));
            answer.err().and_then(|error| error.raw_os_error()) != Some(libc::EACCES)
        };
        (right && answers(&path)).then_some(Addressing::Node(fd, path))
    };
    let named = mount
        .and_then(|mount| openat(CWD, &mount.source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok())
        .and_then(usable);
    named.or_else(|| usable(private_node(device).ok()?))
}

fn private_node(device: (u32, u32)) -> Result<OwnedFd, Errno> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(context.as_fd())?;
    let tmpfs = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    let mode = Mode::RUSR | Mode::WUSR;
    mknodat(&tmpfs, "device", FileType::BlockDevice, mode, rustix::fs::makedev(device.0, device.1))?;
    openat(&tmpfs, "device", OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_become_states() {
        let states = States::from_flags(0x13);
        assert_eq!(states.user, State { accounting: true, enforcement: true });
        assert_eq!(states.group, State::default());
        assert_eq!(states.project.to_string(), "accounted, not enforced");
        assert_eq!(States::from_flags(0x3f).project.to_string(), "enforced");
        assert_eq!(States::from_flags(0).user.to_string(), "off");
    }

    #[test]
    fn any_directory_opens_and_tells_its_kind() {
        let proc = Filesystem::open("/proc").unwrap();
        assert_eq!(proc.kind(), &Kind::Other("proc".to_owned()));
        assert_eq!(proc.states().unwrap(), States::default());
        assert_eq!(proc.features(), Features::default());
        assert_eq!(Filesystem::open("/proc/self/no").unwrap_err().errno(), Some(libc::ENOENT));
        let error = Filesystem::open("/proc/self/stat").unwrap_err();
        assert!(error.hint().is_some_and(|hint| hint.contains("give a directory")), "{error}");
    }
}
