//! What is missing is named: file systems made and mounted in every way that is not fit, and some that are.
#![allow(clippy::unwrap_used, reason = "tests fail by panic")]

mod common;

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Command;

use common::{Image, act, filesystem_type, in_thread, loop_devices, project_quota_kernel, root, run, sys, tool};
use quota::{Check, Directory, Filesystem, Kind, Limits, Problem, States};
use rustix::thread::CapabilitySet;

/// `check` in another process, whose credentials the wrapper made.
#[test]
fn role() {
    let Some((_, arguments)) = common::played() else { return };
    let problems = Filesystem::open(&arguments[0]).unwrap().check(&Check::default()).unwrap();
    let text: Vec<String> = problems.iter().map(|problem| format!("{problem:?}")).collect();
    common::tell(text.join("; "));
}

const XFS: &str = "mkfs.xfs -q";
const XFS_V4: &str = "mkfs.xfs -q -m crc=0";
const EXT4: &str = "mkfs.ext4 -q -F -O quota,project -E quotatype=usrquota:grpquota:prjquota";
const F2FS: &str = "mkfs.f2fs -q -O extra_attr,project_quota,quota";

fn flags(states: States) -> u16 {
    let bits = [
        (states.user.accounting, 1),
        (states.user.enforcement, 2),
        (states.group.accounting, 4),
        (states.group.enforcement, 8),
        (states.project.accounting, 0x10),
        (states.project.enforcement, 0x20),
    ];
    bits.iter().filter(|(on, _)| *on).map(|(_, bit)| bit).sum()
}

/// In a mount namespace of its own: the states of a fresh file system mounted so.
fn states(mkfs: &str, kind: &str, options: &str) -> u16 {
    with_mount(mkfs, kind, options, |image| flags(image.open().states().unwrap()))
}

fn with_mount<T: Send>(mkfs: &str, kind: &str, options: &str, look: impl FnOnce(&Image) -> T + Send) -> T {
    in_thread(|| {
        sys::private_mounts().unwrap();
        let image = Image::new(mkfs);
        image.mount(kind, options).unwrap();
        look(&image)
    })
}

fn problems(image: &Image, check: &Check) -> Vec<Problem> {
    image.open().check(check).unwrap()
}

#[test]
fn golden_detect_xfs() {
    require!(root(), loop_devices(), tool("mkfs.xfs"), filesystem_type("xfs"), project_quota_kernel());
    for (options, expected) in [
        ("pquota", 0x30),
        ("prjquota", 0x30),
        ("pqnoenforce", 0x10),
        ("", 0),
        ("noquota", 0),
        ("pquota,noquota", 0),
        ("quota", 0x03),
        ("uquota,pquota", 0x33),
        ("uqnoenforce,pquota", 0x31),
        ("gquota,pquota", 0x3c),
        ("uquota,gquota,pquota", 0x3f),
    ] {
        assert_eq!(states(XFS, "xfs", options), expected, "xfs -o {options}");
    }
}

#[test]
fn golden_detect_a_remount_adds_nothing_on_xfs() {
    require!(root(), loop_devices(), tool("mkfs.xfs"), filesystem_type("xfs"), project_quota_kernel());
    with_mount(XFS, "xfs", "", |image| {
        image.remount("pquota").unwrap();
        assert_eq!(flags(image.open().states().unwrap()), 0);
        let error = image.open().set_enforcement(true).unwrap_err();
        assert!(error.hint().is_some_and(|hint| hint.contains("mount")), "{error}");
    });
}

#[test]
fn golden_detect_xfs_v4() {
    require!(root(), loop_devices(), tool("mkfs.xfs"), filesystem_type("xfs"), project_quota_kernel());
    require!(v4());
    assert_eq!(states(XFS_V4, "xfs", "uquota,pquota"), 0x33);
    in_thread(|| {
        sys::private_mounts().unwrap();
        let image = Image::new(XFS_V4);
        assert!(image.mount("xfs", "gquota,pquota").is_err(), "the old format has one file for both");
    });
}

/// Support of the old format is an option of the kernel.
fn v4() -> common::Need {
    in_thread(|| {
        sys::private_mounts().unwrap();
        let mounted = Image::new(XFS_V4).mount("xfs", "");
        mounted.map_err(|error| ("a kernel that mounts XFS V4".to_owned(), error.to_string()))
    })
}

#[test]
fn golden_detect_ext4() {
    require!(root(), loop_devices(), tool("mkfs.ext4"), filesystem_type("ext4"), project_quota_kernel());
    assert_eq!(states(EXT4, "ext4", "prjquota"), 0x35);
    with_mount(EXT4, "ext4", "", |image| {
        assert_eq!(flags(image.open().states().unwrap()), 0x15);
        image.remount("prjquota").unwrap();
        let filesystem = image.open();
        assert_eq!(flags(filesystem.states().unwrap()), 0x15, "the options say prjquota, the kernel does not");
        let mounts = fs::read_to_string("/proc/thread-self/mounts").unwrap();
        let point = image.point().display().to_string();
        assert!(mounts.lines().any(|line| line.contains(&point) && line.contains("prjquota")), "{mounts}");
        assert!(matches!(problems(image, &Check::default())[0], Problem::NotEnforced { kind: Kind::Ext4, .. }));
        filesystem.set_enforcement(true).unwrap();
        assert_eq!(flags(filesystem.states().unwrap()), 0x35);
        filesystem.set_enforcement(true).unwrap();
        filesystem.set_enforcement(false).unwrap();
        assert_eq!(flags(filesystem.states().unwrap()), 0x15);
    });
    in_thread(|| {
        sys::private_mounts().unwrap();
        assert!(Image::new("mkfs.ext4 -q -F").mount("ext4", "prjquota").is_err());
    });
    with_mount("mkfs.ext4 -q -F", "ext4", "", |image| {
        assert_eq!(flags(image.open().states().unwrap()), 0);
        assert_eq!(common::errno(sys::set_project(&image.point(), 42, |f| f)), libc::EOPNOTSUPP);
    });
    assert_eq!(states("mkfs.ext4 -q -F -O project,^quota", "ext4", "prjquota"), 0);
}

/// Limits that are not enforced show in the figures of a directory's project, and not in its size.
#[test]
fn golden_statfs_without_enforcement_shows_the_whole_disk() {
    require!(root(), loop_devices(), tool("mkfs.xfs"), filesystem_type("xfs"), project_quota_kernel());
    with_mount(XFS, "xfs", "pqnoenforce", |image| {
        let filesystem = image.open();
        let dir = image.point().join("box");
        fs::create_dir(&dir).unwrap();
        let project = filesystem.project(7).unwrap();
        project.set_limits(&Limits::unlimited().bytes(1 << 20)).unwrap();
        Directory::open(&dir).unwrap().assign(&project).unwrap();
        let size = |path: &Path| rustix::fs::statvfs(path).map(|has| has.f_blocks * has.f_frsize).unwrap();
        let whole = size(&image.point());
        assert_eq!(size(&dir), whole);
        assert_eq!(common::fill(&dir.join("f"), 2 << 20), (2 << 20, 0));
        fs::File::open(dir.join("f")).unwrap().sync_all().unwrap();
        assert!(project.usage().unwrap().bytes >= 2 << 20, "counted");
        filesystem.set_enforcement(true).unwrap();
        assert_eq!(size(&dir), 1 << 20);
        filesystem.set_enforcement(false).unwrap();
        assert_eq!(size(&dir), whole);
    });
}

#[test]
fn golden_detect_f2fs() {
    require!(root(), loop_devices(), tool("mkfs.f2fs"), filesystem_type("f2fs"));
    assert_eq!(states(F2FS, "f2fs", "prjquota"), 0x35);
}

#[test]
fn golden_detect_an_overlay_has_no_quota() {
    require!(root(), loop_devices(), tool("mkfs.xfs"), filesystem_type("xfs"), project_quota_kernel());
    with_mount(XFS, "xfs", "prjquota", |image| {
        let point = image.point();
        for name in ["lower", "upper", "work", "merged"] {
            fs::create_dir(point.join(name)).unwrap();
        }
        let options = format!("lowerdir={0}/lower,upperdir={0}/upper,workdir={0}/work", point.display());
        let merged = point.join("merged");
        run(Command::new("mount").args(["-t", "overlay", "-o", &options, "overlay"]).arg(&merged)).unwrap();
        let overlay = Filesystem::open(&merged).unwrap();
        let mut data = [0; 14];
        assert_eq!(
            common::errno(sys::quotactl_fd(std::os::fd::AsFd::as_fd(&overlay), sys::XGETQUOTA, 1, &mut data)),
            libc::ENOSYS
        );
        assert_eq!(overlay.states().unwrap(), States::default());
        let problems = overlay.check(&Check::overlay()).unwrap();
        assert_eq!(problems, [Problem::Overlay { upper: Some(point.join("upper")) }]);
        assert_eq!(problems[0].fix(), format!("give the directory behind it: {}/upper", point.display()));
        drop(overlay);
        run(Command::new("umount").arg(&merged)).unwrap();
    });
}

/// One unfit directory after the other: the reason and its fix.
#[test]
fn each_unfit_xfs_is_named() {
    require!(root(), loop_devices(), tool("mkfs.xfs"), filesystem_type("xfs"), project_quota_kernel());
    let check = Check::default();
    with_mount(XFS, "xfs", "", |image| {
        let found = problems(image, &check);
        assert!(
            matches!(&found[..], [Problem::NotMountedWithQuota { kind: Kind::Xfs, others: false, .. }]),
            "{found:?}"
        );
        let fix = found[0].fix();
        assert!(
            fix.contains("mount -o prjquota /dev/loop") && fix.contains(&image.point().display().to_string()),
            "{fix}"
        );
    });
    with_mount(XFS, "xfs", "uquota", |image| {
        let found = problems(image, &check);
        assert!(matches!(&found[..], [Problem::NotMountedWithQuota { others: true, .. }]), "{found:?}");
    });
    with_mount(XFS, "xfs", "pqnoenforce", |image| {
        let found = problems(image, &check);
        assert!(matches!(&found[..], [Problem::NotEnforced { kind: Kind::Xfs, .. }]), "{found:?}");
        image.open().set_enforcement(true).unwrap();
        assert_eq!(problems(image, &check), []);
    });
    with_mount(XFS, "xfs", "prjquota", |image| {
        image.remount("ro").unwrap();
        let found = problems(image, &check);
        assert!(found.iter().any(|p| matches!(p, Problem::ReadOnly { .. })), "{found:?}");
    });
    with_mount(XFS, "xfs", "prjquota", |image| {
        assert_eq!(problems(image, &Check::overlay()), []);
        let features = image.open().features();
        assert_eq!(
            (features.file_types, features.checksums, features.wide_project_ids),
            (Some(true), Some(true), Some(true))
        );
        image.open().set_default_limits(&Limits::unlimited().bytes(1 << 20)).unwrap();
        let found = problems(image, &check);
        assert!(matches!(&found[..], [Problem::DefaultLimits { .. }]) && !found[0].is_fatal(), "{found:?}");
        image.open().require(&check).unwrap();
    });
}

#[test]
fn each_unfit_xfs_v4_is_named() {
    require!(root(), loop_devices(), tool("mkfs.xfs"), filesystem_type("xfs"), project_quota_kernel());
    require!(v4());
    with_mount(XFS_V4, "xfs", "gquota", |image| {
        let found = problems(image, &Check::default());
        assert!(matches!(&found[..], [Problem::GroupQuotaInstead { .. }]), "{found:?}");
    });
    with_mount("mkfs.xfs -q -m crc=0 -n ftype=0", "xfs", "prjquota", |image| {
        assert_eq!(problems(image, &Check::default()), []);
        let found = problems(image, &Check::overlay());
        assert!(matches!(&found[..], [Problem::NoFileTypes]), "{found:?}");
    });
    with_mount("mkfs.xfs -q -m crc=0 -i projid32bit=0", "xfs", "prjquota", |image| {
        let found = problems(image, &Check::default());
        assert_eq!(found, [Problem::NarrowIds]);
        let state = tempfile::tempdir().unwrap();
        let open = |ids| quota::Allocator::open(&image.open(), state.path(), ids);
        assert!(open(quota::Allocator::IDS).unwrap_err().to_string().contains("16-bit"));
        let lease = open(60000..=60001).unwrap().lease("narrow", &Limits::unlimited().bytes(1 << 20)).unwrap();
        assert_eq!(lease.id(), 60000);
        // What the kernel says to a wide id there.
        assert_eq!(common::errno(sys::set_project(&image.point(), 65536, |f| f)), libc::EINVAL);
    });
}

#[test]
fn each_unfit_ext4_is_named() {
    require!(root(), loop_devices(), tool("mkfs.ext4"), filesystem_type("ext4"));
    let missing = |mkfs, options, name: &str| {
        with_mount(mkfs, "ext4", options, |image| {
            let found = problems(image, &Check::default());
            assert!(matches!(&found[0], Problem::MissingFeature { feature, .. } if *feature == name), "{found:?}");
            assert!(found[0].fix().contains("tune2fs -O project,quota -Q prjquota /dev/loop"), "{}", found[0].fix());
        });
    };
    missing("mkfs.ext4 -q -F", "", "project");
    require!(project_quota_kernel());
    missing("mkfs.ext4 -q -F -O project,^quota", "prjquota", "quota");
    with_mount(EXT4, "ext4", "", |image| {
        let found = problems(image, &Check::default());
        assert!(matches!(&found[0], Problem::NotEnforced { kind: Kind::Ext4, .. }), "{found:?}");
        assert!(found[0].fix().starts_with("quotaon -P "));
    });
    with_mount(EXT4, "ext4", "prjquota", |image| {
        let found = problems(image, &Check::default());
        assert_eq!(found, [Problem::PrivilegedAreExempt { kind: Kind::Ext4 }]);
    });
}

#[test]
fn an_unfit_f2fs_is_named() {
    require!(root(), loop_devices(), tool("mkfs.f2fs"), filesystem_type("f2fs"));
    with_mount("mkfs.f2fs -q", "f2fs", "", |image| {
        let found = problems(image, &Check::default());
        assert!(matches!(&found[0], Problem::MissingFeature { kind: Kind::F2fs, .. }), "{found:?}");
    });
    with_mount(F2FS, "f2fs", "", |image| {
        let found = problems(image, &Check::default());
        assert!(found[0].is_fatal() && found[0].fix().contains("prjquota"), "{found:?}");
        image.unmount();
        image.mount("f2fs", "prjquota").unwrap();
        assert!(!problems(image, &Check::default())[0].is_fatal());
    });
    with_mount(F2FS, "f2fs", "prjquota", |image| {
        let found = problems(image, &Check::default());
        assert_eq!(found, [Problem::PrivilegedAreExempt { kind: Kind::F2fs }]);
    });
}

/// What the fixes tell to do, done.
#[test]
fn the_fixes_work() {
    require!(root(), loop_devices(), tool("mkfs.xfs"), tool("xfs_quota"), tool("mkfs.ext4"), tool("quotaon"));
    require!(filesystem_type("xfs"), filesystem_type("ext4"), project_quota_kernel());
    let fit = |image: &Image| problems(image, &Check::default()).iter().all(|problem| !problem.is_fatal());
    with_mount(XFS, "xfs", "", |image| {
        assert!(!fit(image));
        image.unmount();
        image.mount("xfs", "prjquota").unwrap();
        assert!(fit(image));
        run(Command::new("xfs_quota").args(["-x", "-c", "limit -p -d bhard=1m"]).arg(image.point())).unwrap();
        assert!(matches!(problems(image, &Check::default())[..], [Problem::DefaultLimits { .. }]));
        let none = "limit -p -d bhard=0 bsoft=0 ihard=0 isoft=0";
        run(Command::new("xfs_quota").args(["-x", "-c", none]).arg(image.point())).unwrap();
        assert_eq!(problems(image, &Check::default()), []);
    });
    with_mount(XFS, "xfs", "pqnoenforce", |image| {
        run(Command::new("xfs_quota").args(["-x", "-c", "enable -p"]).arg(image.point())).unwrap();
        assert!(fit(image));
    });
    for mkfs in ["mkfs.ext4 -q -F", "mkfs.ext4 -q -F -O project,^quota"] {
        with_mount(mkfs, "ext4", "", |image| {
            assert!(!fit(image));
            image.unmount();
            run(Command::new("tune2fs").args(["-O", "project,quota", "-Q", "prjquota"]).arg(image.file())).unwrap();
            image.mount("ext4", "prjquota").unwrap();
            assert!(fit(image));
        });
    }
    with_mount(EXT4, "ext4", "", |image| {
        run(Command::new("quotaon").arg("-P").arg(image.point())).unwrap();
        assert!(fit(image));
    });
}

#[test]
fn a_tmpfs_and_what_is_no_disk_are_named() {
    require!(root());
    in_thread(|| {
        sys::private_mounts().unwrap();
        let dir = tempfile::tempdir().unwrap();
        run(Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(dir.path())).unwrap();
        let found = Filesystem::open(dir.path()).unwrap().check(&Check::default()).unwrap();
        assert_eq!(found, [Problem::Tmpfs]);
        run(Command::new("umount").arg(dir.path())).unwrap();
    });
    let found = Filesystem::open("/proc").unwrap().check(&Check::default()).unwrap();
    assert_eq!(found, [Problem::WrongFilesystem { kind: "proc".to_owned() }]);
}

#[test]
fn a_kernel_without_xfs_quota_is_named() {
    require!(root(), loop_devices(), tool("mkfs.xfs"), filesystem_type("xfs"));
    require!(match project_quota_kernel() {
        Ok(()) => Err(("a kernel without CONFIG_XFS_QUOTA".to_owned(), "one with".to_owned())),
        Err(_) => Ok(()),
    });
    with_mount(XFS, "xfs", "", |image| {
        let found = problems(image, &Check::default());
        assert_eq!(found[0], Problem::KernelLacks { option: "CONFIG_XFS_QUOTA" });
    });
}

#[test]
fn a_kernel_without_the_calls_is_named() {
    require!(root(), common::disk());
    let place = common::Place::new();
    let first = |calls: &[i64]| {
        sys::without_calls(calls).unwrap();
        let filesystem = Filesystem::open(&place.path).unwrap();
        filesystem.check(&Check::default()).unwrap().into_iter().next().unwrap()
    };
    let found = in_thread(|| first(&[libc::SYS_quotactl, sys::QUOTACTL_FD]));
    assert_eq!(found, Problem::KernelLacks { option: "CONFIG_QUOTA" });
    // As before Linux 5.14, and where no node can be had.
    let found = common::without(CapabilitySet::MKNOD, || {
        sys::private_mounts().unwrap();
        run(Command::new("mount").args(["-t", "tmpfs", "-o", "nodev", "tmpfs", "/dev"])).unwrap();
        first(&[sys::QUOTACTL_FD])
    });
    assert_eq!(found, Problem::NoDeviceNode);
}

#[test]
fn who_may_not_set_limits_is_told_why() {
    require!(root(), common::disk(), tool("unshare"), tool("setpriv"));
    let place = common::Place::new();
    let ask = |wrapper: &[&str]| {
        let output = act(wrapper, "check", &[place.path.as_os_str() as &OsStr]).output().unwrap();
        common::answer(&output)
    };
    let inside = ask(&["unshare", "--user", "--map-root-user"]);
    assert!(inside.starts_with("UserNamespace"), "{inside}");
    let user = ask(&["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "--inh-caps=-all"]);
    assert!(user.starts_with("NoCapability"), "{user}");
    let root = ask(&["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]);
    assert!(root.starts_with("NoCapability"), "{root}");
}
