use std::fmt;
use std::path::{Path, PathBuf};

use rustix::thread::{CapabilitySet, capabilities};

use crate::{Access, Error, Filesystem, Kernel, KernelCheck, Kind, Limits};

/// The inode of the initial user namespace, fixed in the kernel (`PROC_USER_INIT_INO`).
const INITIAL_USER_NAMESPACE: u64 = 0xefff_fffd;

/// What the limit is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Purpose {
    /// A plain directory.
    #[default]
    Directory,
    /// The upper and work directories of an overlay, which needs file types in directory entries, too.
    Overlay,
}

/// Something that project quota needs and that is missing, or that a user should know.
///
/// `Display` says what is wrong, [`fix`](Self::fix) the way out.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// The file system has no project quota.
    WrongFilesystem {
        /// Its name.
        kind: String,
    },
    /// The directory lies on an overlay; what counts is the file system of its upper directory.
    Overlay {
        /// The overlay's upper directory, where it is known.
        upper: Option<PathBuf>,
    },
    /// The directory lies on a tmpfs.
    Tmpfs,
    /// The kernel was built without it.
    KernelLacks {
        /// The missing configuration option.
        option: &'static str,
    },
    /// The running kernel is older than the caller's minimum.
    KernelTooOld {
        /// The running one.
        found: Option<Kernel>,
        /// The minimum.
        needs: Kernel,
        /// Whether this is a refusal or a warning.
        refused: bool,
    },
    /// The file system was not mounted with project quota.
    NotMountedWithQuota {
        /// The kind of file system.
        kind: Kind,
        /// Where it is mounted.
        mount_point: PathBuf,
        /// Its device.
        device: PathBuf,
        /// Another type of quota is on.
        others: bool,
    },
    /// An XFS of the old format (V4, `crc=0`) is mounted with group quota, which excludes project quota there.
    GroupQuotaInstead {
        /// Where it is mounted.
        mount_point: PathBuf,
        /// Its device.
        device: PathBuf,
    },
    /// The superblock lacks a feature.
    MissingFeature {
        /// The kind of file system.
        kind: Kind,
        /// The feature's name.
        feature: &'static str,
        /// Its device.
        device: PathBuf,
    },
    /// Usage is counted, limits are not enforced.
    NotEnforced {
        /// The kind of file system.
        kind: Kind,
        /// Where it is mounted.
        mount_point: PathBuf,
    },
    /// The mount is read-only.
    ReadOnly {
        /// Where it is mounted.
        mount_point: PathBuf,
    },
    /// The caller is in a user namespace: the kernel asks for capabilities in the initial one.
    UserNamespace,
    /// The caller lacks CAP_SYS_ADMIN.
    NoCapability,
    /// Kernels before 5.14 need a device node, and none could be had.
    NoDeviceNode,
    /// Directory entries carry no file type (`ftype=0`), so the kernel's overlayfs does not work well on it.
    NoFileTypes,
    /// Project ids stop at 65535 (`projid32bit=0`). A warning.
    NarrowIds,
    /// Default limits are set: they hold for each project without limits of its own. A warning.
    DefaultLimits {
        /// The defaults.
        limits: Limits,
    },
    /// On this file system CAP_SYS_RESOURCE in the initial user namespace goes beyond limits. A warning.
    PrivilegedAreExempt {
        /// The kind of file system.
        kind: Kind,
    },
}

impl Problem {
    /// Whether limits cannot be set or would not hold, as opposed to something that one should know.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        match self {
            Self::KernelTooOld { refused, .. } => *refused,
            Self::NarrowIds | Self::DefaultLimits { .. } | Self::PrivilegedAreExempt { .. } => false,
            _ => true,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn fix(&self) -> String {
        match self {
            Self::WrongFilesystem { .. } => "use a directory on XFS, ext4 or f2fs, or a tmpfs with size= and \
                nr_inodes=, or an XFS image on a loop device mounted with -o prjquota"
                .to_owned(),
            Self::Overlay { upper: Some(upper) } => {
                format!("give the directory behind it: {}", upper.display())
            }
            Self::Overlay { upper: None } => "give the directory behind it, that of the upper layer".to_owned(),
            Self::Tmpfs => "a tmpfs limits itself: mount one with -o size=BYTES,nr_inodes=N".to_owned(),
            Self::KernelLacks { option } => format!("use a kernel built with {option}=y"),
            Self::KernelTooOld { needs, .. } => {
                format!("use Linux {needs} or later, or make the kernel check a warning")
            }
            Self::NotMountedWithQuota { kind, mount_point, device, .. } => mount_fix(kind, mount_point, device),
            Self::GroupQuotaInstead { mount_point, device } => format!(
                "on this format choose one: umount {0} && mount -o uquota,prjquota {1} {0}; or mkfs.xfs -m crc=1 (new)",
                mount_point.display(),
                device.display()
            ),
            Self::MissingFeature { kind: Kind::F2fs, device, .. } => format!(
                "make it anew (no tool adds it later): mkfs.f2fs -O extra_attr,project_quota,quota {}, \
                 mount -o prjquota",
                device.display()
            ),
            Self::MissingFeature { device, .. } => {
                format!("umount, tune2fs -O project,quota -Q prjquota {}, mount -o prjquota", device.display())
            }
            Self::NotEnforced { kind: Kind::Xfs, mount_point } => format!(
                "xfs_quota -x -c 'enable -p' {0}; for the next mount: prjquota instead of pqnoenforce",
                mount_point.display()
            ),
            Self::NotEnforced { mount_point, .. } => format!(
                "quotaon -P {0} (a remount does not do it); for the next mount: -o prjquota",
                mount_point.display()
            ),
            Self::ReadOnly { mount_point } => format!("mount -o remount,rw {}", mount_point.display()),
            Self::UserNamespace => "set the limit from the initial user namespace (as root outside), then run the \
                program inside"
                .to_owned(),
            Self::NoCapability => "run as root, with CAP_SYS_ADMIN".to_owned(),
            Self::NoDeviceNode => "use Linux 5.14 or later, or run with CAP_MKNOD".to_owned(),
            Self::NoFileTypes => "make the file system anew with mkfs.xfs -n ftype=1".to_owned(),
            Self::NarrowIds => "give the allocator a range below 65536".to_owned(),
            Self::DefaultLimits { .. } => {
                "remove them unless they are meant: xfs_quota -x -c 'limit -p -d bhard=0 bsoft=0 ihard=0 isoft=0'"
                    .to_owned()
            }
            Self::PrivilegedAreExempt { .. } => {
                "write as another user, in a user namespace, or through an overlay".to_owned()
            }
        }
    }
}

fn mount_fix(kind: &Kind, mount_point: &Path, device: &Path) -> String {
    let (point, device) = (mount_point.display(), device.display());
    match (kind, mount_point == Path::new("/")) {
        (Kind::Xfs, true) => {
            "add rootflags=prjquota to the kernel command line and reboot (fstab is too late for /)".to_owned()
        }
        (Kind::Xfs | Kind::F2fs, false) => format!(
            "umount {point} && mount -o prjquota {device} {point} (a remount cannot add it), and prjquota in fstab"
        ),
        (_, true) => format!(
            "boot from another system, tune2fs -O project,quota -Q prjquota {device}, then \
            rootflags=prjquota on the kernel command line"
        ),
        (_, false) => format!(
            "umount {point}, tune2fs -O project,quota -Q prjquota {device} unless it has them, \
             mount -o prjquota {device} {point}"
        ),
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WrongFilesystem { kind } => write!(f, "{kind} has no project quota"),
            Self::Overlay { .. } => f.write_str("an overlay has no quota of its own"),
            Self::Tmpfs => f.write_str("tmpfs has no project quota"),
            Self::KernelLacks { option } => write!(f, "this kernel was built without {option}"),
            Self::KernelTooOld { found: Some(found), needs, .. } => {
                write!(f, "the kernel is {found}, older than {needs}")
            }
            Self::KernelTooOld { found: None, needs, .. } => {
                write!(f, "the kernel's version cannot be read, {needs} is needed")
            }
            Self::NotMountedWithQuota { kind, mount_point, others, .. } => {
                let others = if *others { " (only user or group quota is on)" } else { "" };
                write!(f, "the {kind} on {} was mounted without project quota{others}", mount_point.display())
            }
            Self::GroupQuotaInstead { mount_point, .. } => write!(
                f,
                "the XFS on {} has the old format (V4) and is mounted with group quota, which excludes project quota",
                mount_point.display()
            ),
            Self::MissingFeature { kind, feature, device } => {
                write!(f, "the {kind} on {} lacks the feature {feature}", device.display())
            }
            Self::NotEnforced { kind, mount_point } => {
                write!(f, "project quota of the {kind} on {} is accounted but not enforced", mount_point.display())
            }
            Self::ReadOnly { mount_point } => write!(f, "{} is mounted read-only", mount_point.display()),
            Self::UserNamespace => f.write_str("in a user namespace the kernel gives no access to quota"),
            Self::NoCapability => f.write_str("the caller lacks CAP_SYS_ADMIN"),
            Self::NoDeviceNode => f.write_str("this kernel needs a device node for quota calls, and none can be had"),
            Self::NoFileTypes => f.write_str("directory entries carry no file type (ftype=0), which overlay needs"),
            Self::NarrowIds => f.write_str("project ids stop at 65535 here (projid32bit=0)"),
            Self::DefaultLimits { limits } => {
                write!(f, "default limits hold for each project without its own: {limits}")
            }
            Self::PrivilegedAreExempt { kind } => {
                write!(f, "on {kind} a process with CAP_SYS_RESOURCE in the initial user namespace passes any limit")
            }
        }
    }
}

/// What is looked at by [`Filesystem::check`]. `Check::default()`: a plain directory, and kernels before
/// [`Kernel::OLDEST_TESTED`] are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Check {
    /// What the limit is for. Default: a plain directory.
    pub purpose: Purpose,
    /// What an older kernel means. Default: refuse.
    pub kernel: KernelCheck,
    /// The oldest kernel that is not older. Default: 5.10.
    pub minimum: Kernel,
}

impl Default for Check {
    fn default() -> Self {
        Self { purpose: Purpose::Directory, kernel: KernelCheck::Refuse, minimum: Kernel::OLDEST_TESTED }
    }
}

impl Check {
    /// The check for an overlay's upper and work directories.
    #[must_use]
    pub fn overlay() -> Self {
        Self { purpose: Purpose::Overlay, ..Self::default() }
    }
}

impl Filesystem {
    /// Everything that is in the way of a limit here, and what one should know; the fatal ones first. Empty: all well.
    ///
    /// Only looks: nothing is written or created, and only `Q_XGETQSTATV`, the superblock and /proc are read.
    ///
    /// # Errors
    /// [`Error::Syscall`] if the kernel does not answer at all.
    pub fn check(&self, check: &Check) -> Result<Vec<Problem>, Error> {
        let mut problems = Vec::new();
        if check.kernel != KernelCheck::Off {
            let found = Kernel::running();
            if found.is_none_or(|found| found < check.minimum) {
                let refused = check.kernel == KernelCheck::Refuse;
                problems.push(Problem::KernelTooOld { found, needs: check.minimum, refused });
            }
        }
        if let Some(problem) = self.unfit()? {
            problems.push(problem);
        } else if check.purpose == Purpose::Overlay && self.features().file_types == Some(false) {
            problems.push(Problem::NoFileTypes);
        }
        if !matches!(self.kind(), Kind::Xfs | Kind::Ext4 | Kind::F2fs) {
            return Ok(problems);
        }
        if self.mount().is_some_and(|mount| mount.has_option("ro")) {
            problems.push(Problem::ReadOnly { mount_point: self.shown_mount_point() });
        }
        let capabilities = capabilities(None).map(|sets| sets.effective).unwrap_or(CapabilitySet::empty());
        if in_user_namespace() {
            problems.push(Problem::UserNamespace);
        } else if !capabilities.contains(CapabilitySet::SYS_ADMIN) {
            problems.push(Problem::NoCapability);
        } else if problems.is_empty() {
            match self.default_limits()? {
                limits if limits == Limits::unlimited() => {}
                limits => problems.push(Problem::DefaultLimits { limits }),
            }
        }
        if self.features().wide_project_ids == Some(false) {
            problems.push(Problem::NarrowIds);
        }
        if *self.kind() != Kind::Xfs {
            problems.push(Problem::PrivilegedAreExempt { kind: self.kind().clone() });
        }
        problems.sort_by_key(|problem| !problem.is_fatal());
        Ok(problems)
    }

    /// The same as an error: the first fatal problem, if there is one. The warnings otherwise.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with the problem and its fix.
    pub fn require(&self, check: &Check) -> Result<Vec<Problem>, Error> {
        let problems = self.check(check)?;
        match problems.first() {
            Some(problem) if problem.is_fatal() => Err(Error::unsupported(self.path(), problem.clone())),
            _ => Ok(problems),
        }
    }

    /// Why the file system itself, as it is mounted, does not limit projects.
    fn unfit(&self) -> Result<Option<Problem>, Error> {
        let kind = self.kind().clone();
        match &kind {
            Kind::Xfs | Kind::Ext4 | Kind::F2fs => {}
            Kind::Overlay => {
                let upper = self.mount().and_then(|mount| mount.super_option("upperdir")).map(PathBuf::from);
                return Ok(Some(Problem::Overlay { upper }));
            }
            Kind::Tmpfs => return Ok(Some(Problem::Tmpfs)),
            Kind::Other(name) => return Ok(Some(Problem::WrongFilesystem { kind: name.clone() })),
        }
        // XFS shows statistics in /proc/fs/xfs, and those of quota if it was built with it.
        let statistics = Path::new("/proc/fs/xfs");
        if kind == Kind::Xfs && statistics.join("stat").exists() && !statistics.join("xqmstat").exists() {
            return Ok(Some(Problem::KernelLacks { option: "CONFIG_XFS_QUOTA" }));
        }
        if !crate::sys::has_quotactl() {
            return Ok(Some(Problem::KernelLacks { option: "CONFIG_QUOTA" }));
        }
        if self.access() == Access::None {
            return Ok(Some(Problem::NoDeviceNode));
        }
        let states = self.states()?;
        if states.project.accounting && states.project.enforcement {
            return Ok(None);
        }
        let mount_point = self.shown_mount_point();
        if states.project.accounting {
            return Ok(Some(Problem::NotEnforced { kind, mount_point }));
        }
        let features = self.features();
        let device = self.source().unwrap_or(Path::new("DEVICE")).to_owned();
        let feature = |feature| Some(Problem::MissingFeature { kind: kind.clone(), feature, device: device.clone() });
        let others = states.user.accounting || states.group.accounting;
        Ok(if features.project == Some(false) {
            feature(if kind == Kind::F2fs { "project_quota" } else { "project" })
        } else if features.quota == Some(false) {
            feature("quota")
        } else if features.checksums == Some(false) && states.group.accounting {
            Some(Problem::GroupQuotaInstead { mount_point, device })
        } else {
            Some(Problem::NotMountedWithQuota { kind, mount_point, device, others })
        })
    }

    fn shown_mount_point(&self) -> PathBuf {
        self.mount_point().unwrap_or(self.path()).to_owned()
    }
}

/// Without /proc nobody knows; the kernel then answers `EPERM` itself.
fn in_user_namespace() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/thread-self/ns/user").is_ok_and(|namespace| namespace.ino() != INITIAL_USER_NAMESPACE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_problem_says_what_and_how() {
        let (point, device) = (PathBuf::from("/mnt/d"), PathBuf::from("/dev/vdb"));
        let not_mounted = |kind, point: &str| Problem::NotMountedWithQuota {
            kind,
            mount_point: point.into(),
            device: device.clone(),
            others: false,
        };
        let needs = Kernel { major: 5, minor: 14 };
        for (problem, what, fix) in [
            (Problem::WrongFilesystem { kind: "proc".into() }, "proc has no project quota", "XFS, ext4 or f2fs"),
            (Problem::Overlay { upper: Some("/u".into()) }, "overlay", "behind it: /u"),
            (Problem::Overlay { upper: None }, "overlay", "upper layer"),
            (Problem::Tmpfs, "tmpfs", "size=BYTES"),
            (Problem::KernelLacks { option: "CONFIG_XFS_QUOTA" }, "without CONFIG_XFS_QUOTA", "CONFIG_XFS_QUOTA=y"),
            (
                Problem::KernelTooOld { found: Some(Kernel { major: 4, minor: 4 }), needs, refused: true },
                "4.4, older than 5.14",
                "5.14 or later",
            ),
            (Problem::KernelTooOld { found: None, needs, refused: false }, "cannot be read", "warning"),
            (not_mounted(Kind::Xfs, "/mnt/d"), "mounted without project quota", "umount /mnt/d && mount -o prjquota"),
            (not_mounted(Kind::Xfs, "/"), "mounted without project quota", "rootflags=prjquota"),
            (not_mounted(Kind::Ext4, "/mnt/d"), "mounted without project quota", "tune2fs"),
            (not_mounted(Kind::Ext4, "/"), "mounted without project quota", "rootflags=prjquota"),
            (
                Problem::GroupQuotaInstead { mount_point: point.clone(), device: device.clone() },
                "group quota, which excludes",
                "uquota,prjquota",
            ),
            (
                Problem::MissingFeature { kind: Kind::Ext4, feature: "quota", device: device.clone() },
                "lacks the feature quota",
                "tune2fs -O project,quota",
            ),
            (
                Problem::MissingFeature { kind: Kind::F2fs, feature: "project_quota", device: device.clone() },
                "lacks the feature project_quota",
                "mkfs.f2fs -O extra_attr,project_quota,quota /dev/vdb",
            ),
            (
                Problem::NotEnforced { kind: Kind::Xfs, mount_point: point.clone() },
                "accounted but not enforced",
                "xfs_quota -x -c 'enable -p'",
            ),
            (
                Problem::NotEnforced { kind: Kind::Ext4, mount_point: point.clone() },
                "accounted but not enforced",
                "quotaon -P",
            ),
            (Problem::ReadOnly { mount_point: point }, "read-only", "remount,rw"),
            (Problem::UserNamespace, "user namespace", "initial"),
            (Problem::NoCapability, "CAP_SYS_ADMIN", "root"),
            (Problem::NoDeviceNode, "device node", "5.14"),
            (Problem::NoFileTypes, "ftype=0", "ftype=1"),
            (Problem::NarrowIds, "65535", "65536"),
            (Problem::DefaultLimits { limits: Limits::unlimited().bytes(4096) }, "4096 bytes", "limit -p -d"),
            (Problem::PrivilegedAreExempt { kind: Kind::Ext4 }, "CAP_SYS_RESOURCE", "overlay"),
        ] {
            let (text, way) = (problem.to_string(), problem.fix());
            assert!(text.contains(what), "{text}");
            assert!(way.contains(fix), "{way}");
            assert!(!text.contains("  ") && !way.contains("  ") && !text.contains('\n'), "{text} / {way}");
        }
    }

    #[test]
    fn the_kernel_check_is_policy() {
        let filesystem = Filesystem::open("/proc").unwrap();
        let old = |kernel| {
            let check = Check { kernel, minimum: Kernel { major: 999, minor: 0 }, ..Check::default() };
            let problems = filesystem.check(&check).unwrap();
            problems.iter().find(|p| matches!(p, Problem::KernelTooOld { .. })).map(Problem::is_fatal)
        };
        assert_eq!(old(KernelCheck::Refuse), Some(true));
        assert_eq!(old(KernelCheck::Warn), Some(false));
        assert_eq!(old(KernelCheck::Off), None);
    }

    #[test]
    fn what_is_not_a_disk_is_refused_with_a_fix() {
        let error = Filesystem::open("/proc").unwrap().require(&Check::default()).unwrap_err();
        assert_eq!(
            error.to_string().split(" (hint").next(),
            Some("no project quota on /proc: proc has no project quota")
        );
    }
}
