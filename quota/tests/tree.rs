//! How a project spreads: inheritance, rename, link, and trees that exist already.
#![allow(clippy::unwrap_used, reason = "tests fail by panic")]

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use common::sys::{PROJINHERIT, file_setattr, get_project, set_project};
use common::{Place, disk, errno, in_thread, kernel, project_of, run, sys};
use quota::{Directory, Error, Kernel, Limits, Tag};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, linkat, mknodat, openat, renameat_with};

/// The three directories of the golden table: two projects and none.
struct Three {
    place: Place,
    p: std::path::PathBuf,
    q: std::path::PathBuf,
    n: std::path::PathBuf,
    id: u32,
}

fn three() -> Three {
    let mut place = Place::new();
    let (p, project) = place.limited("p", &Limits::unlimited());
    let (q, _) = place.limited("q", &Limits::unlimited());
    let n = place.directory("n");
    Three { place, p, q, n, id: project.id() }
}

fn fifo(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

fn file(path: &Path) {
    fs::write(path, "x").unwrap();
}

#[test]
fn golden_tree_everything_made_inside_inherits() {
    require!(disk());
    let Three { place, p, id, .. } = three();
    let project = place.filesystem.project(id).unwrap();
    assert_eq!(project.usage().unwrap().inodes, 1, "the directory counts");
    fs::create_dir(p.join("dir")).unwrap();
    assert_eq!(Directory::open(p.join("dir")).unwrap().tag().unwrap(), Tag { project: id, inherit: true });
    file(&p.join("dir/file"));
    let (own, flags) = get_project(&p.join("dir/file")).unwrap();
    assert_eq!((own, flags & PROJINHERIT), (id, 0), "a file has nothing to pass on");
    symlink("x", p.join("symlink")).unwrap();
    fifo(&p.join("fifo"));
    // What cannot be opened is told by the count.
    assert_eq!(project.usage().unwrap().inodes, 5);
    fs::hard_link(p.join("dir/file"), p.join("link")).unwrap();
    assert_eq!(project.usage().unwrap().inodes, 5, "a further link is free");
}

#[test]
fn golden_tree_nothing_is_renamed_or_linked_in() {
    require!(disk());
    let Three { place: _place, p, q, n, .. } = three();
    file(&n.join("f"));
    file(&n.join("e"));
    fs::create_dir(n.join("dir")).unwrap();
    file(&p.join("f"));
    file(&p.join("g"));
    assert_eq!(errno(fs::rename(n.join("f"), p.join("f2"))), libc::EXDEV);
    assert_eq!(errno(fs::rename(n.join("dir"), p.join("dir"))), libc::EXDEV);
    assert_eq!(errno(fs::rename(p.join("f"), q.join("f"))), libc::EXDEV);
    assert_eq!(errno(fs::hard_link(n.join("f"), p.join("l"))), libc::EXDEV);
    assert_eq!(errno(fs::hard_link(p.join("f"), q.join("l"))), libc::EXDEV);
    let exchange = renameat_with(CWD, n.join("e"), CWD, p.join("g"), RenameFlags::EXCHANGE);
    assert_eq!(errno(exchange.map_err(Into::into)), libc::EXDEV);
    let flags = OFlags::TMPFILE | OFlags::RDWR;
    let unnamed = openat(CWD, &n, flags, Mode::RUSR | Mode::WUSR).unwrap();
    let path = format!("/proc/thread-self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&unnamed));
    let linked = linkat(CWD, path, CWD, p.join("unnamed"), AtFlags::SYMLINK_FOLLOW);
    assert_eq!(errno(linked.map_err(Into::into)), libc::EXDEV);
    // mv falls back to a copy, which is charged.
    run(Command::new("mv").arg(n.join("f")).arg(p.join("moved"))).unwrap();
    assert_eq!(project_of(&p.join("moved")), project_of(&p));
}

#[test]
fn golden_tree_what_leaves_stays_charged() {
    require!(disk());
    let Three { place, p, n, id, .. } = three();
    let project = place.filesystem.project(id).unwrap();
    file(&p.join("f"));
    file(&p.join("g"));
    fs::create_dir(p.join("dir")).unwrap();
    let before = project.usage().unwrap().inodes;
    fs::rename(p.join("f"), n.join("f")).unwrap();
    fs::hard_link(p.join("g"), n.join("g")).unwrap();
    fs::rename(p.join("dir"), n.join("dir")).unwrap();
    file(&n.join("dir/child"));
    assert_eq!((project_of(&n.join("f")), project_of(&n.join("dir/child"))), (id, id));
    assert_eq!(project.usage().unwrap().inodes, before + 1);
    fs::rename(n.join("f"), p.join("f")).unwrap();
}

#[test]
fn golden_tree_special_files_across_projects() {
    require!(disk());
    let Three { place, p, n, .. } = three();
    fifo(&n.join("fifo"));
    let newest = place.is_xfs() && Kernel::running().unwrap() >= (Kernel { major: 6, minor: 17 });
    let renamed = errno(fs::rename(n.join("fifo"), p.join("fifo")));
    let set = errno(set_project(&if newest { p.join("fifo") } else { n.join("fifo") }, 77, |flags| flags));
    if newest {
        assert_eq!((renamed, set), (0, 0));
    } else {
        assert_eq!(renamed, libc::EXDEV);
        assert!(set == libc::ENOTTY || (set == 0 && kernel(6, 17).is_ok()), "{set}");
    }
}

#[test]
fn golden_tree_file_setattr_reaches_links_and_special_files() {
    require!(disk(), kernel(6, 17));
    let Three { place, n, .. } = three();
    symlink("x", n.join("symlink")).unwrap();
    fifo(&n.join("fifo"));
    let expected = if place.is_xfs() { 0 } else { libc::EOPNOTSUPP };
    assert_eq!(errno(file_setattr(&n.join("symlink"), 77)), expected);
    assert_eq!(errno(file_setattr(&n.join("fifo"), 77)), expected);
}

#[test]
fn golden_tree_an_id_set_on_a_full_directory_counts_nothing() {
    require!(disk());
    let mut place = Place::new();
    let project = place.project();
    let dir = place.directory("old");
    file(&dir.join("f"));
    set_project(&dir, project.id(), |flags| flags | PROJINHERIT).unwrap();
    assert_eq!(project_of(&dir.join("f")), 0);
    assert_eq!(project.usage().unwrap().inodes, 1);
    assert_eq!(errno(fs::rename(dir.join("f"), dir.join("g"))), libc::EXDEV, "even within the directory");
    // Therefore ours refuses.
    let other = place.directory("other");
    file(&other.join("f"));
    let directory = Directory::open(&other).unwrap();
    let error = directory.assign(&project).unwrap_err();
    assert!(error.to_string().contains("not empty"), "{error}");
    assert_eq!(directory.tag().unwrap(), Tag::default());
}

#[test]
fn an_existing_tree_is_taken_whole() {
    require!(disk());
    let mut place = Place::new();
    let project = place.project();
    let root = place.directory("root");
    let mut deep = root.clone();
    for depth in 0..20 {
        deep = deep.join(format!("d{depth}"));
        fs::create_dir(&deep).unwrap();
        fs::write(deep.join("file"), vec![1; 8192]).unwrap();
    }
    fs::write(place.path.join("outside"), "x").unwrap();
    fs::hard_link(place.path.join("outside"), root.join("shared")).unwrap();
    symlink("/etc", root.join("symlink")).unwrap();
    fifo(&root.join("fifo"));
    let mut inner = Place::on(&place.path);
    let (theirs, other) = inner.limited("theirs", &Limits::unlimited());
    // Set beforehand, renamed with its project: an inner project is somebody's.
    let theirs_inside = root.join("theirs");
    fs::rename(&theirs, &theirs_inside).unwrap();
    let directory = Directory::open(&root).unwrap();
    let result = directory.assign_existing(&project).unwrap();
    let left: Vec<_> = result.left.iter().map(|left| left.path.to_str().unwrap()).collect();
    // Of the file systems only XFS lets file_setattr(2) change links and special files.
    let special = if place.is_xfs() && kernel(6, 17).is_ok() { 2 } else { 0 };
    assert_eq!(result.done, 42 + special, "{result:?}");
    assert_eq!(left.len() as u64, 3 - special, "{result:?}");
    assert!(left.contains(&"theirs"), "{result:?}");
    assert!(result.left.iter().all(|left| left.special == (left.path != Path::new("theirs"))), "{result:?}");
    assert_eq!(result.shared, [Path::new("shared")]);
    assert_eq!(project_of(&theirs_inside), other.id());
    assert_eq!(project_of(&deep.join("file")), project.id());
    assert_eq!(project_of(&place.path.join("outside")), project.id());
    assert_eq!(get_project(Path::new("/etc")).map_or(0, |(project, _)| project), 0, "links are not followed");
    let usage = project.usage().unwrap();
    assert_eq!(usage.inodes, 42 + special);
    assert!(usage.bytes >= 20 * 8192, "{usage:?}");
    fs::rename(deep.join("file"), root.join("moved")).unwrap();
    // And back.
    let result = directory.clear().unwrap();
    assert_eq!(result.done, 42 + special, "{result:?}");
    assert_eq!(project_of(&root.join("moved")), 0);
    assert_eq!(directory.tag().unwrap(), Tag::default());
    assert_eq!(project_of(&theirs_inside), other.id());
    common::eventually("usage", || project.usage().unwrap().inodes == 0);
}

#[test]
fn what_is_mounted_inside_is_named_and_left() {
    require!(disk());
    in_thread(|| {
        sys::private_mounts().unwrap();
        let mut place = Place::new();
        let project = place.project();
        let root = place.directory("root");
        fs::create_dir(root.join("mount")).unwrap();
        run(Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(root.join("mount"))).unwrap();
        file(&root.join("mount/f"));
        let result = Directory::open(&root).unwrap().assign_existing(&project).unwrap();
        run(Command::new("umount").arg(root.join("mount"))).unwrap();
        assert_eq!(result.done, 1);
        assert_eq!(result.left[0].path, Path::new("mount"));
        assert!(result.left[0].why.contains("mounted there"), "{result:?}");
        // A directory of the same file system, shown here by a bind mount, is somebody else's all the same.
        let elsewhere = place.directory("elsewhere");
        file(&elsewhere.join("f"));
        run(Command::new("mount").arg("--bind").arg(&elsewhere).arg(root.join("mount"))).unwrap();
        let result = Directory::open(&root).unwrap().assign_existing(&project).unwrap();
        run(Command::new("umount").arg(root.join("mount"))).unwrap();
        assert_eq!((project_of(&elsewhere), project_of(&elsewhere.join("f"))), (0, 0));
        assert!(result.left[0].why.contains("mounted there"), "{result:?}");
    });
}

#[test]
fn wrong_directories_are_refused() {
    require!(disk());
    let mut place = Place::new();
    let (root, _) = place.limited("root", &Limits::unlimited());
    let project = place.project();
    let refused = |path: &Path| match Directory::open(path).unwrap().assign(&project) {
        Err(Error::Invalid { why, .. }) => why,
        other => panic!("{other:?}"),
    };
    assert!(refused(&root).contains("another project"));
    let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
    assert!(refused(elsewhere.path()).contains("another file system"));
    symlink(&root, place.path.join("symlink")).unwrap();
    assert_eq!(Directory::open(place.path.join("symlink")).unwrap_err().errno(), Some(libc::ENOTDIR));
}

#[test]
fn assigning_twice_is_the_same_as_once() {
    require!(disk());
    let mut place = Place::new();
    let (root, project) = place.limited("root", &Limits::unlimited().inodes(10));
    Directory::open(&root).unwrap().assign(&project).unwrap();
    assert_eq!(project.usage().unwrap().inodes, 1);
}
