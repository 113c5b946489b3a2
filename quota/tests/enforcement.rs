//! At the limit: one block below passes, one block more fails, by every way of taking space and inodes. Cases 49 and
//! 65 of the hostile list.
#![allow(clippy::unwrap_used, reason = "tests fail by panic")]

mod common;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;

use common::{Place, act, allocated, disk, errno, eventually, fill, ordinary, sys, tool};
use quota::{Limits, Project};
use rustix::fs::{CWD, FallocateFlags, Mode, OFlags, XattrFlags, fallocate, fsetxattr, openat, statvfs};
use rustix::thread::CapabilitySet;

const LIMIT: u64 = 4 << 20;
/// A block of the file systems of the tests.
const BLOCK: u64 = 4096;

#[test]
fn role() {
    let Some((name, arguments)) = common::played() else { return };
    let path = &arguments[0];
    match name.as_str() {
        "store" => common::tell(errno(sys::store_into_hole(path, usize::try_from(LIMIT).unwrap() * 2))),
        "fill" => common::tell(format!("{:?}", fill(path, 2 * LIMIT))),
        _ => panic!("{name}"),
    }
}

fn limited(place: &mut Place) -> (std::path::PathBuf, Project) {
    place.limited("box", &Limits::unlimited().bytes(LIMIT))
}

/// The limit is reached to the block, and never passed.
fn assert_to_the_block(project: &Project, limit: u64) {
    let used = project.usage().unwrap().bytes;
    assert!((limit - BLOCK + 1..=limit).contains(&used), "{used} of {limit}");
}

/// The same. Of the file it may miss what the file system needs for itself
/// (ext4: the directory's own block, and blocks that index the file).
fn assert_full(project: &Project, written: u64) {
    assert_to_the_block(project, LIMIT);
    assert!((LIMIT - 4 * BLOCK..=LIMIT).contains(&written), "{written}");
}

#[test]
fn golden_enforce_write() {
    require!(disk());
    let mut place = Place::new();
    let (dir, project) = limited(&mut place);
    let (below, error) = ordinary(|| fill(&dir.join("f"), LIMIT - 65536));
    assert_eq!((below, error), (LIMIT - 65536, 0), "below the limit all is well");
    let (more, error) = ordinary(|| fill(&dir.join("f"), LIMIT));
    assert_eq!(error, place.full());
    assert_full(&project, below + more);
    if place.is_xfs() {
        assert_eq!(below + more, LIMIT, "to the byte");
    }
    assert!(project.report().unwrap().bytes_exhausted());
    assert!(!project.report().unwrap().inodes_exhausted());
}

#[test]
fn golden_enforce_everybody_on_xfs_and_the_privileged_not_on_others() {
    require!(disk());
    let mut place = Place::new();
    let full = place.full();
    let is_xfs = place.is_xfs();
    let mut refused = |who: &str, run: &mut (dyn FnMut(&Path) -> (u64, i32) + Send)| {
        let (dir, _) = place.limited(who, &Limits::unlimited().bytes(LIMIT));
        run(&dir.join("f")).1
    };
    let root = refused("root", &mut |path| fill(path, 2 * LIMIT));
    let exempt = rustix::thread::capabilities(None).unwrap().effective.contains(CapabilitySet::SYS_RESOURCE);
    assert_eq!(root, if is_xfs || !exempt { full } else { 0 });
    let user = refused("user", &mut |path| common::as_user(1000, || fill(path, 2 * LIMIT)));
    assert_eq!(user, full);
    let without = refused("without", &mut |path| ordinary(|| fill(path, 2 * LIMIT)));
    assert_eq!(without, full);
}

#[test]
fn golden_enforce_root_of_a_user_namespace() {
    require!(disk(), tool("unshare"));
    let mut place = Place::new();
    let (dir, project) = limited(&mut place);
    let file = dir.join("f");
    let output =
        act(&["unshare", "--user", "--map-root-user"], "fill", &[file.as_os_str() as &OsStr]).output().unwrap();
    let answer = common::answer(&output);
    assert!(answer.ends_with(&format!(", {})", place.full())), "{answer}");
    assert!(project.report().unwrap().usage.bytes <= LIMIT);
}

#[test]
fn case_49_fallocate() {
    require!(disk());
    let mut place = Place::new();
    let (dir, project) = limited(&mut place);
    let (full, is_xfs) = (place.full(), place.is_xfs());
    ordinary(|| {
        let file = File::create(dir.join("f")).unwrap();
        File::create(dir.join("rest")).unwrap();
        let most = LIMIT - 4 * BLOCK;
        fallocate(&file, FallocateFlags::empty(), 0, most).unwrap();
        let more = fallocate(&file, FallocateFlags::KEEP_SIZE, most, 16 * BLOCK);
        assert_eq!(errno(more.map_err(Into::into)), full);
        let last = (most..most + 16 * BLOCK)
            .step_by(usize::try_from(BLOCK).unwrap())
            .find_map(|at| fallocate(&file, FallocateFlags::KEEP_SIZE, at, BLOCK).err());
        assert_eq!(last.map(|error| error.raw_os_error()), Some(full));
        if is_xfs {
            // The blocks of the file's map must fit, too.
            assert!(project.usage().unwrap().bytes >= LIMIT - 8 * BLOCK);
            fill(&dir.join("rest"), LIMIT);
        }
        assert_to_the_block(&project, LIMIT);
        let _ = fs::remove_file(dir.join("rest"));
        // Punched holes give space back, which then can be used again, and no more than that.
        fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, LIMIT / 2).unwrap();
        file.sync_all().unwrap();
        assert!(project.usage().unwrap().bytes <= LIMIT / 2 + 8 * BLOCK);
        let (written, error) = fill(&dir.join("g"), LIMIT);
        assert_eq!(error, full);
        assert!((LIMIT / 2 - 4 * BLOCK..=LIMIT / 2 + 4 * BLOCK).contains(&written), "{written}");
    });
    assert!(project.usage().unwrap().bytes <= LIMIT);
}

#[test]
fn golden_enforce_a_store_into_a_hole() {
    require!(disk(), tool("setpriv"));
    let mut place = Place::new();
    let (dir, project) = limited(&mut place);
    let file = dir.join("f");
    let wrapper = ["setpriv", "--bounding-set=-sys_resource", "--inh-caps=-sys_resource"];
    let output = act(&wrapper, "store", &[file.as_os_str() as &OsStr]).output().unwrap();
    assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{output:?}");
    assert_to_the_block(&project, LIMIT);
    assert!(allocated(&file) >= LIMIT - 8 * BLOCK);
}

#[test]
fn case_49_files_without_a_name() {
    require!(disk());
    let mut place = Place::new();
    let (dir, project) = limited(&mut place);
    let full = place.full();
    ordinary(|| {
        let flags = OFlags::TMPFILE | OFlags::RDWR;
        let unnamed = File::from(openat(CWD, &dir, flags, Mode::RUSR | Mode::WUSR).unwrap());
        let (written, error) = fill(Path::new(&format!("/proc/self/fd/{}", unnamed.as_raw_fd())), 2 * LIMIT);
        assert_eq!(error, full);
        assert_full(&project, written);
        // Deleted and open: still charged, until it is closed.
        drop(unnamed);
        eventually("closed", || project.usage().unwrap().bytes <= BLOCK);
        let (written, _) = fill(&dir.join("f"), LIMIT / 2);
        let open = File::open(dir.join("f")).unwrap();
        fs::remove_file(dir.join("f")).unwrap();
        assert!(fill(&dir.join("g"), LIMIT).0 <= LIMIT - written);
        assert_to_the_block(&project, LIMIT);
        drop(open);
        fs::remove_file(dir.join("g")).unwrap();
        eventually("unlinked", || project.usage().unwrap().bytes <= BLOCK);
    });
}

#[test]
fn case_49_extended_attributes() {
    require!(disk());
    let mut place = Place::new();
    let (dir, project) = place.limited("box", &Limits::unlimited().bytes(256 << 10));
    let full = place.full();
    // Too large for the inode: a block each, or several on XFS. f2fs has room for less.
    let size = if *place.filesystem.kind() == quota::Kind::F2fs { 3000 } else { 3500 };
    let error = ordinary(|| {
        (0..1000).find_map(|n| {
            let set = File::create(dir.join(n.to_string())).map_err(|error| error.raw_os_error()).and_then(|file| {
                fsetxattr(&file, "user.fill", &vec![b'x'; size], XattrFlags::empty())
                    .map_err(|errno| Some(errno.raw_os_error()))
            });
            set.err()
        })
    });
    assert_eq!(error, Some(Some(full)));
    if place.is_xfs() {
        // A new file must fit in its worst case.
        assert!(project.report().unwrap().new_files_refused() && !project.report().unwrap().bytes_exhausted());
        ordinary(|| fill(&dir.join("0"), 256 << 10));
    }
    assert_to_the_block(&project, 256 << 10);
}

#[test]
fn golden_enforce_what_a_full_project_allows() {
    require!(disk());
    let mut place = Place::new();
    let (dir, _) = limited(&mut place);
    let full = place.full();
    let is_xfs = place.is_xfs();
    ordinary(|| {
        fill(&dir.join("f"), 2 * LIMIT);
        // The last blocks, too.
        for n in 0..64 {
            if fs::write(dir.join(format!("rest{n}")), [1; 4096]).is_err() {
                break;
            }
        }
        let mut file = fs::OpenOptions::new().write(true).open(dir.join("f")).unwrap();
        file.write_all(&[9; 65536]).unwrap();
        file.sync_all().unwrap();
        file.seek(SeekFrom::End(0)).unwrap();
        let length = file.metadata().unwrap().len();
        file.set_len(length + (1 << 20)).unwrap();
        fs::hard_link(dir.join("f"), dir.join("link")).unwrap();
        let preallocated = fallocate(&file, FallocateFlags::empty(), length, 1 << 20);
        assert_eq!(errno(preallocated.map_err(Into::into)), full);
        if is_xfs {
            assert_eq!(errno(File::create(dir.join("new"))), full);
            assert_eq!(errno(fs::create_dir(dir.join("newdir"))), full);
        }
    });
}

/// Where a new file is refused before the last block is taken, the report says so: many small files meet the limit, too.
#[test]
fn new_files_are_refused_where_the_report_says_so() {
    require!(disk());
    let mut place = Place::new();
    let (dir, project) = limited(&mut place);
    let full = place.full();
    let (made, error) = ordinary(|| {
        (0..5000)
            .find_map(|n| fs::write(dir.join(n.to_string()), [1; 4096]).err().map(|error| (n, error.raw_os_error())))
    })
    .unwrap();
    assert_eq!(error, Some(full));
    let report = project.report().unwrap();
    assert!(report.new_files_refused() && !report.inodes_exhausted(), "{report:?}");
    assert!(made > 900 && report.usage.bytes <= LIMIT, "{made} {report:?}");
    fs::remove_file(dir.join("0")).unwrap();
    for n in 1..100 {
        fs::remove_file(dir.join(n.to_string())).unwrap();
    }
    eventually("room", || !project.report().unwrap().new_files_refused());
    ordinary(|| fs::write(dir.join("again"), "x")).unwrap();
}

#[test]
fn golden_enforce_inodes() {
    require!(disk());
    let mut place = Place::new();
    let (dir, project) = place.limited("box", &Limits::unlimited().inodes(5));
    let full = place.full();
    let made = ordinary(|| (0..10).map(|n| errno(File::create(dir.join(n.to_string())))).collect::<Vec<_>>());
    assert_eq!(made[..4], [0; 4], "the directory itself is the fifth");
    assert_eq!(made[4..], [full; 6]);
    let report = project.report().unwrap();
    assert!(report.inodes_exhausted() && !report.bytes_exhausted(), "{report:?}");
    ordinary(|| fs::hard_link(dir.join("0"), dir.join("link"))).unwrap();
}

#[test]
fn case_65_inode_bombs_and_the_disk_around_them() {
    require!(disk());
    let mut place = Place::new();
    let full = place.full();
    let before = statvfs(&place.path).unwrap().f_ffree;
    for (kind, make) in [
        ("files", &(|path: &Path| File::create(path).map(drop)) as &(dyn Fn(&Path) -> std::io::Result<()> + Sync)),
        ("directories", &|path: &Path| fs::create_dir(path)),
        ("symlinks", &|path: &Path| std::os::unix::fs::symlink("x", path)),
    ] {
        let (dir, project) = place.limited(kind, &Limits::unlimited().bytes(LIMIT).inodes(200));
        let (made, error) = ordinary(|| {
            (0..5000).find_map(|n| match errno(make(&dir.join(n.to_string()))) {
                0 => None,
                error => Some((n, error)),
            })
        })
        .unwrap();
        assert_eq!((made, error), (199, full), "{kind}");
        assert_eq!(project.usage().unwrap().inodes, 200);
        // The limit of the tree, not of the disk.
        assert!(project.report().unwrap().inodes_exhausted());
        let other = place.directory(&format!("beside-{kind}"));
        fs::write(other.join("f"), "x").unwrap();
    }
    let after = statvfs(&place.path).unwrap().f_ffree;
    assert!(before.saturating_sub(after) < 2000, "{before} {after}");
}

#[test]
fn case_65_a_filled_project_leaves_the_disk_free() {
    require!(disk());
    let mut place = Place::new();
    let before = statvfs(&place.path).unwrap();
    let (dir, _) = limited(&mut place);
    ordinary(|| fill(&dir.join("f"), 64 << 20));
    let after = statvfs(&place.path).unwrap();
    let lost = (before.f_bfree.saturating_sub(after.f_bfree)) * before.f_frsize;
    assert!(lost < 64 << 20, "{lost}");
    assert_eq!(fill(&place.directory("beside").join("f"), 8 << 20), (8 << 20, 0));
}

#[test]
fn golden_statfs_shows_the_limit() {
    require!(disk());
    let mut place = Place::new();
    let hard = Limits::unlimited().bytes(LIMIT).inodes(100);
    let (dir, project) = place.limited("box", &hard);
    let bytes = |path: &Path| statvfs(path).map(|s| s.f_blocks * s.f_frsize).unwrap();
    let whole = bytes(&place.path);
    assert_eq!(bytes(&dir), LIMIT);
    let inodes = statvfs(&dir).unwrap();
    assert_eq!((inodes.f_files, inodes.f_ffree), (100, 99));
    fs::create_dir(dir.join("deep")).unwrap();
    assert_eq!(bytes(&dir.join("deep")), LIMIT);
    fs::write(dir.join("file"), "x").unwrap();
    assert_eq!(bytes(&dir.join("file")), whole, "a file has no inherited project");
    project.set_limits(&hard.soft_bytes(LIMIT / 2)).unwrap();
    assert_eq!(bytes(&dir), LIMIT / 2, "the soft limit, if there is one");
    ordinary(|| fill(&dir.join("f"), 2 * LIMIT));
    assert_eq!(statvfs(&dir).unwrap().f_bavail, 0);
}

#[test]
fn a_limit_below_the_usage_is_taken() {
    require!(disk());
    let mut place = Place::new();
    let (dir, project) = limited(&mut place);
    ordinary(|| {
        fill(&dir.join("f"), 2 << 20);
        File::open(dir.join("f")).unwrap().sync_all().unwrap();
        project.set_limits(&Limits::unlimited().bytes(1 << 20)).unwrap();
        assert!(project.report().unwrap().bytes_exhausted());
        assert_eq!(fill(&dir.join("g"), 65536), (0, place.full()));
    });
    project.set_limits(&Limits::unlimited()).unwrap();
    assert_eq!(ordinary(|| fill(&dir.join("g"), 8 << 20)), (8 << 20, 0));
}
