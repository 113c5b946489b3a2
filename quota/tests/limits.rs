//! Setting limits and reading them back: what the kernel takes, bends, and ignores.
#![allow(clippy::unwrap_used, reason = "tests fail by panic")]

mod common;

use std::ffi::OsStr;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use common::sys::{self, Dquot};
use common::{Image, Place, act, disk, disk_kind, errno, in_thread, kernel, loop_devices, root, run, tool};
use quota::{Access, Error, Filesystem, Grace, Kernel, Kind, Limit, Limits};
use rustix::thread::CapabilitySet;

/// Root of a user namespace: the answers of the calls about a directory's file system and a project.
#[test]
fn role() {
    let Some((_, arguments)) = common::played() else { return };
    common::tell(format!("{:?}", permissions(&arguments[0], arguments[1].to_str().unwrap().parse().unwrap())));
}

const BHARD: u16 = 8;
const BSOFT: u16 = 4;
const BCOUNT: u16 = 4096;

fn raw(place: &Place, subcommand: u32, id: u32, data: &mut Dquot) -> i32 {
    if place.filesystem.access() == Access::Descriptor {
        return errno(sys::quotactl_fd(place.filesystem.as_fd(), subcommand, id, data));
    }
    let mut long = [0; 32];
    long[..14].copy_from_slice(data);
    let code = errno(sys::quotactl_path(place.filesystem.source().unwrap(), subcommand, id, &mut long));
    data.copy_from_slice(&long[..14]);
    code
}

/// `Q_XSETQLIM` with these fields of the first words: hard and soft blocks.
fn set(place: &Place, id: u32, mask: u16, bhard: u64, bsoft: u64) -> i32 {
    let mut data: Dquot = [0; 14];
    data[0] = 1 | u64::from(mask) << 16;
    data[1] = bhard;
    data[2] = bsoft;
    raw(place, sys::XSETQLIM, id, &mut data)
}

fn get(place: &Place, id: u32) -> Result<(u64, u64), i32> {
    let mut data: Dquot = [0; 14];
    match raw(place, sys::XGETQUOTA, id, &mut data) {
        0 => Ok((data[1], data[2])),
        errno => Err(errno),
    }
}

#[test]
fn golden_set_never_used_ids() {
    require!(disk());
    let mut place = Place::new();
    let project = place.project();
    let expected = if place.is_xfs() { Err(libc::ENOENT) } else { Ok((0, 0)) };
    assert_eq!(get(&place, project.id()), expected);
    // The same answer of ours for both.
    assert_eq!(project.limits().unwrap(), Limits::unlimited());
    project.set_limits(&Limits::unlimited().bytes(1 << 20)).unwrap();
    project.clear().unwrap();
    assert_eq!(get(&place, project.id()), expected, "cleared is as never used");
}

#[test]
fn golden_set_what_xfs_ignores_in_silence() {
    require!(disk(), disk_kind(Kind::Xfs));
    let mut place = Place::new();
    let project = place.project();
    let id = project.id();
    assert_eq!(set(&place, id, BHARD | BSOFT, 2048, 1024), 0);
    assert_eq!(set(&place, id, BHARD | BSOFT, 2048, 4096), 0);
    assert_eq!(get(&place, id), Ok((2048, 1024)), "soft above hard changes nothing");
    assert_eq!(set(&place, id, BHARD, 512, 0), 0);
    assert_eq!(get(&place, id), Ok((2048, 1024)), "hard below the old soft changes nothing");
    // Ours sets both at once, and refuses the first.
    project.set_limits(&Limits::unlimited().bytes(4096)).unwrap();
    assert_eq!(get(&place, id), Ok((8, 8)));
    assert!(matches!(
        project.set_limits(&Limits::unlimited().bytes(4096).soft_bytes(8192)),
        Err(Error::Invalid { .. })
    ));
    assert_eq!(set(&place, id, BHARD, 1 << 63, 0), 0);
    assert_eq!(get(&place, id).map(|(hard, _)| hard), Ok(0), "2^63 blocks are no limit");
    assert!(project.set_limits(&Limits::unlimited().bytes(1 << 63)).is_err());
    assert_eq!(set(&place, id, BCOUNT, 0, 0), libc::EINVAL, "usage cannot be set");
}

#[test]
fn golden_set_rounds_up_to_blocks() {
    require!(disk());
    let mut place = Place::new();
    let project = place.project();
    let (one, nine) = match place.filesystem.kind() {
        Kind::Xfs => (8, 16),
        _ => (1, 9),
    };
    assert_eq!(set(&place, project.id(), BHARD | BSOFT, 1, 1), 0);
    assert_eq!(get(&place, project.id()), Ok((one, one)));
    assert_eq!(set(&place, project.id(), BHARD | BSOFT, 9, 9), 0);
    assert_eq!(get(&place, project.id()), Ok((nine, nine)));
    let applied = project.set_limits(&Limits::unlimited().bytes(9 * 512).inodes(3)).unwrap();
    assert_eq!(applied, Limits::unlimited().bytes(nine * 512).inodes(3));
    assert_eq!(project.limits().unwrap(), applied);
}

#[test]
fn golden_set_the_last_ids() {
    require!(disk());
    let mut place = Place::new();
    place.project();
    assert_eq!(get(&place, u32::MAX), Err(libc::EINVAL));
    assert_eq!(set(&place, u32::MAX, BHARD, 8, 0), libc::EINVAL);
    let last = place.filesystem.project(u32::MAX - 1).unwrap();
    let limits = Limits::unlimited().bytes(1 << 20);
    assert_eq!(last.set_limits(&limits).unwrap(), limits);
    let report = place.filesystem.report().unwrap();
    assert_eq!(report.last().map(|report| report.project), Some(u32::MAX - 1));
    let mut data: Dquot = [0; 14];
    assert_eq!(raw(&place, sys::XGETNEXTQUOTA, u32::MAX, &mut data), libc::EINVAL);
    last.clear().unwrap();
    if place.is_xfs() {
        assert_eq!(raw(&place, sys::XGETNEXTQUOTA, u32::MAX - 1, &mut data), libc::ENOENT, "past the last");
    }
}

#[test]
fn the_report_lists_every_project_in_order() {
    require!(disk());
    let mut place = Place::new();
    let mut expected = Vec::new();
    for n in 1..=20u64 {
        let project = place.project();
        let limits = Limits::unlimited().bytes(n << 20).inodes(n * 10);
        project.set_limits(&limits).unwrap();
        expected.push((project.id(), limits));
    }
    let report = place.filesystem.report().unwrap();
    assert!(report.windows(2).all(|pair| pair[0].project < pair[1].project));
    for (id, limits) in expected {
        let row = report.iter().find(|row| row.project == id).unwrap();
        assert_eq!((row.limits, row.usage.bytes, row.usage.inodes), (limits, 0, 0));
    }
}

/// On XFS a limit of id 0 limits whoever has none. Alone on a file system of its own, it concerns everybody.
#[test]
fn golden_set_the_limit_of_id_0_is_everybodys_default() {
    require!(root(), loop_devices(), tool("mkfs.xfs"), common::project_quota_kernel());
    in_thread(|| {
        sys::private_mounts().unwrap();
        let image = Image::new("mkfs.xfs -q");
        image.mount("xfs", "prjquota").unwrap();
        let mut place = Place::on(&image.point());
        let default = Limits::unlimited().bytes(1 << 20);
        place.filesystem.set_default_limits(&default).unwrap();
        assert_eq!(place.filesystem.default_limits().unwrap(), default);
        let (path, project) = place.limited("fresh", &Limits::unlimited());
        assert_eq!(common::fill(&path.join("f"), 2 << 20), (1 << 20, libc::ENOSPC));
        assert_eq!(project.limits().unwrap().bytes_hard, Limit::Value(1 << 20));
        // A large limit of its own wins.
        project.set_limits(&Limits::unlimited().bytes(8 << 20)).unwrap();
        assert_eq!(common::fill(&path.join("f"), 2 << 20), (2 << 20, 0));
        // Id 0 itself is not limited.
        let free = place.directory("free");
        assert_eq!(common::fill(&free.join("f"), 3 << 20), (3 << 20, 0));
        place.filesystem.set_default_limits(&Limits::unlimited()).unwrap();
        drop((project, place));
        image.unmount();
    });
}

#[test]
fn defaults_exist_on_xfs_only() {
    require!(disk());
    let place = Place::new();
    if !place.is_xfs() {
        assert_eq!(place.filesystem.default_limits().unwrap(), Limits::unlimited());
        assert!(place.filesystem.set_default_limits(&Limits::unlimited().bytes(1 << 20)).is_err());
    }
}

#[test]
fn grace_times_are_set_and_read() {
    require!(disk());
    let mut place = Place::new();
    let old = place.filesystem.grace().unwrap();
    assert_eq!(old.bytes, Duration::from_secs(604_800), "the kernel's default");
    let new = Grace { bytes: Duration::from_secs(3600), inodes: Duration::from_secs(7200) };
    place.filesystem.set_grace(new).unwrap();
    assert_eq!(place.filesystem.grace().unwrap(), new);
    // A project over its soft limit gets an end, which can be moved.
    let (path, project) = place.limited("soft", &Limits::unlimited().bytes(4 << 20).soft_bytes(64 << 10));
    common::fill(&path.join("f"), 256 << 10);
    fs::File::open(path.join("f")).unwrap().sync_all().unwrap();
    let end = project.usage().unwrap().bytes_grace_ends.unwrap();
    let left = end.duration_since(SystemTime::now()).unwrap().as_secs();
    assert!((3500..=3600).contains(&left), "{left}");
    assert!(!project.report().unwrap().bytes_exhausted());
    let later = SystemTime::now() + Duration::from_secs(86_400);
    project.set_grace_end(Some(later), None).unwrap();
    let moved = project.usage().unwrap().bytes_grace_ends.unwrap();
    assert_eq!(
        moved.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs(),
        later.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
    );
    project.set_grace_end(Some(SystemTime::now() - Duration::from_secs(60)), None).unwrap();
    assert!(project.report().unwrap().bytes_exhausted(), "grace is over");
    assert_eq!(common::ordinary(|| common::fill(&path.join("g"), 64 << 10)).1, place.full());
    fs::remove_file(path.join("f")).unwrap();
    common::eventually("grace ends below the soft limit", || project.usage().unwrap().bytes_grace_ends.is_none());
    place.filesystem.set_grace(old).unwrap();
}

#[test]
fn golden_address() {
    require!(disk());
    let place = Place::new();
    let mut data = [0; 32];
    let mut ask = |path: &Path| errno(sys::quotactl_path(path, sys::XGETQUOTA, 0, &mut data));
    fs::write(place.path.join("file"), "").unwrap();
    assert_eq!(ask(&place.path.join("file")), libc::ENOTBLK);
    assert_eq!(ask(&place.path), libc::ENOTBLK);
    assert_eq!(ask(&place.path.join("missing")), libc::ENOENT);
    let device = fs::metadata(&place.path).unwrap().dev();
    let node = place.path.join("node");
    rustix::fs::mknodat(rustix::fs::CWD, &node, rustix::fs::FileType::BlockDevice, rustix::fs::Mode::RUSR, device)
        .unwrap();
    assert_eq!(ask(&node), 0);
    in_thread(|| {
        sys::private_mounts().unwrap();
        let dir = tempfile::tempdir().unwrap();
        run(Command::new("mount").args(["-t", "tmpfs", "-o", "nodev", "tmpfs"]).arg(dir.path())).unwrap();
        run(Command::new("cp").arg("-a").arg(&node).arg(dir.path().join("node"))).unwrap();
        let mut data = [0; 32];
        assert_eq!(errno(sys::quotactl_path(&dir.path().join("node"), sys::XGETQUOTA, 0, &mut data)), libc::EACCES);
        run(Command::new("umount").arg(dir.path())).unwrap();
    });
}

#[test]
fn golden_address_a_device_that_is_not_mounted() {
    require!(root(), disk(), loop_devices());
    let file = tempfile::NamedTempFile::new_in("/tmp").unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let output = Command::new("losetup").args(["--find", "--show"]).arg(file.path()).output().unwrap();
    let device = String::from_utf8(output.stdout).unwrap();
    let mut data = [0; 32];
    let answer = errno(sys::quotactl_path(Path::new(device.trim()), sys::XGETQUOTA, 0, &mut data));
    run(Command::new("losetup").args(["-d", device.trim()])).unwrap();
    assert_eq!(answer, libc::ENODEV);
}

#[test]
fn golden_address_any_descriptor() {
    require!(disk());
    let place = Place::new();
    let mut data: Dquot = [0; 14];
    let mut ask = |fd: &dyn AsFd| errno(sys::quotactl_fd(fd.as_fd(), sys::XGETNEXTQUOTA, 0, &mut data));
    let file = fs::File::create(place.path.join("file")).unwrap();
    let o_path = rustix::fs::open(&place.path, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    let expected = if Kernel::running().unwrap() < (Kernel { major: 5, minor: 14 }) { libc::ENOSYS } else { 0 };
    assert_eq!(ask(&file), expected);
    assert_eq!(ask(&o_path), expected);
    assert_eq!(ask(&place.filesystem), expected);
    let access = if expected == 0 { Access::Descriptor } else { Access::DeviceNode };
    assert_eq!(place.filesystem.access(), access);
}

/// Without the node that mountinfo names, an older kernel is reached by a private one, of which no trace stays.
#[test]
fn an_older_kernel_needs_no_node_in_dev() {
    require!(disk());
    require!(match kernel(5, 14) {
        Ok(()) => Err(("a kernel before 5.14".to_owned(), "a later one".to_owned())),
        Err(_) => Ok(()),
    });
    in_thread(|| {
        sys::private_mounts().unwrap();
        run(Command::new("mount").args(["-t", "tmpfs", "-o", "nodev", "tmpfs", "/dev"])).unwrap();
        let before = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let mut place = Place::new();
        assert_eq!(place.filesystem.access(), Access::DeviceNode);
        let project = place.project();
        project.set_limits(&Limits::unlimited().bytes(1 << 20)).unwrap();
        assert_eq!(fs::read_to_string("/proc/thread-self/mountinfo").unwrap(), before);
    });
}

/// The errnos of looking at a project, limiting it, listing all, and asking what is enforced.
fn permissions(path: &Path, id: u32) -> [Option<i32>; 4] {
    let filesystem = Filesystem::open(path).unwrap();
    let project = filesystem.project(id).unwrap();
    [
        project.report().err().and_then(|error| error.errno()),
        project.set_limits(&Limits::unlimited().bytes(1 << 20)).err().and_then(|error| error.errno()),
        filesystem.report().err().and_then(|error| error.errno()),
        filesystem.states().err().and_then(|error| error.errno()),
    ]
}

#[test]
fn golden_address_permission() {
    require!(disk(), tool("unshare"));
    let mut place = Place::new();
    let project = place.project();
    let expected = [Some(libc::EPERM), Some(libc::EPERM), Some(libc::EPERM), None];
    let ask = || permissions(&place.path, project.id());
    assert_eq!(common::without(CapabilitySet::SYS_ADMIN, ask), expected);
    // Before Linux 5.14 there is no node for these.
    if place.filesystem.access() == Access::Descriptor {
        assert_eq!(common::as_user(1000, ask), expected);
        let id = project.id().to_string();
        let arguments: [&OsStr; 2] = [place.path.as_os_str(), id.as_ref()];
        let output = act(&["unshare", "--user", "--map-root-user"], "permissions", &arguments).output().unwrap();
        assert_eq!(common::answer(&output), format!("{expected:?}"));
    }
    assert_eq!(project.limits().unwrap(), Limits::unlimited());
}
