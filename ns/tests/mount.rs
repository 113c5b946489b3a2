//! Mounts made and entered in clone children. Each test does all of it in mount namespaces of its own.

#![allow(clippy::unwrap_used, reason = "tests may panic: that is how they fail")]

mod common;

use std::ffi::{CStr, CString};
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{in_child, uid, without};
use ns::mount::{self, Attributes, Filesystem, Overlay, Proc, Tmpfs};
use ns::path::{self, Open};
use ns::{Clone, Errno, Kind, Namespace, Namespaces, Program};
use rustix::fs::CWD;

const MIB: u64 = 1 << 20;
const RESTRICTED: Attributes = Attributes::READ_ONLY.union(Attributes::NO_SUID).union(Attributes::NO_DEV);

/// Root makes its namespaces as it is; others with a user namespace, in which they map themselves to root.
fn mounts() -> Clone<'static> {
    let user = if uid() == 0 { Namespaces::empty() } else { Namespaces::USER };
    Clone::new(Namespaces::MOUNT | Namespaces::PID | Namespaces::IPC | user)
}

fn in_mounts(mut job: impl FnMut()) -> Result<(), String> {
    let (user, group) = (uid(), rustix::process::getegid().as_raw());
    in_child(&mounts(), || {
        if user != 0 {
            become_root(user, group);
        }
        job();
    })
}

/// In a new user namespace: who has no ids there can create no files.
fn become_root(user: u32, group: u32) {
    fs::write("/proc/self/setgroups", "deny").unwrap();
    fs::write("/proc/self/uid_map", format!("0 {user} 1")).unwrap();
    fs::write("/proc/self/gid_map", format!("0 {group} 1")).unwrap();
}

/// Whether mount namespaces can be had at all; else the reason.
fn possible() -> Result<(), String> {
    in_mounts(|| mount::make_private().unwrap())
}

fn tmpfs() -> OwnedFd {
    mount::tmpfs(&Tmpfs { size: Some(MIB), mode: Some(0o755), ..Tmpfs::default() }, Attributes::NO_SUID).unwrap()
}

/// A place of the host.
fn host(path: &CStr) -> OwnedFd {
    rustix::fs::open(path, rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC, 0.into()).unwrap()
}

/// A new tmpfs over `/`, not yet entered.
fn new_root() -> OwnedFd {
    let root = tmpfs();
    mount::attach_root(root.as_fd()).unwrap();
    root
}

fn put(root: &OwnedFd, place: &CStr, tree: &OwnedFd) {
    let target = path::create_dir_in_root(root.as_fd(), place, 0o755).unwrap();
    mount::attach(tree.as_fd(), target.as_fd()).unwrap();
}

fn errno(result: Result<(), std::io::Error>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

#[test]
fn enter_root_leaves_nothing_of_the_old_one() {
    let able = possible();
    require!("enter_root_leaves_nothing_of_the_old_one", able.is_ok(), "mount namespaces", able.unwrap_err());
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
    in_mounts(|| {
        let root = new_root();
        put(&root, c"usr", &mount::clone_tree(CWD, c"/usr", true).unwrap());
        put(&root, c"proc", &mount::proc(Proc::default(), Attributes::empty()).unwrap());
        mount::pivot(root.as_fd()).unwrap();
        assert_eq!(std::env::current_dir().unwrap(), Path::new("/"));
        let mut names: Vec<_> = fs::read_dir("/").unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["proc", "usr"]);
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mut points: Vec<_> = mountinfo.lines().map(|line| line.split(' ').nth(4).unwrap()).collect();
        points.sort_unstable();
        points.retain(|point| !point.starts_with("/usr/"));
        assert_eq!(points, ["/", "/proc", "/usr"], "{mountinfo}");
        assert_eq!(fs::read_link("/proc/self").unwrap(), Path::new("1"));
        let top = fs::metadata("/").unwrap();
        for way in ["/..", "/../../..", "/proc/self/root", "/proc/1/cwd", "/proc/1/root/.."] {
            let there = fs::metadata(way).unwrap();
            assert_eq!((there.dev(), there.ino()), (top.dev(), top.ino()), "{way}");
        }
    })
    .unwrap();
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
}

#[test]
fn enter_root_takes_a_detached_tree_whole() {
    let able = possible();
    require!("enter_root_takes_a_detached_tree_whole", able.is_ok(), "mount namespaces", able.unwrap_err());
    in_mounts(|| {
        let usr = mount::clone_tree(CWD, c"/usr", true).unwrap();
        mount::enter_root(usr.as_fd()).unwrap();
        assert!(Path::new("/bin").is_dir() && !Path::new("/usr/bin").exists());
    })
    .unwrap();
}

#[test]
fn nothing_propagates() {
    require!("nothing_propagates", uid() == 0, "root", uid());
    in_mounts(|| {
        // A host whose mounts are shared, as systemd makes them.
        let shared = rustix::mount::MountPropagationFlags::SHARED | rustix::mount::MountPropagationFlags::REC;
        mount::make_private().unwrap();
        rustix::mount::mount_change("/", shared).unwrap();
        let list = || {
            let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
            assert!(text.contains("shared:"));
            text
        };
        let before = list();
        in_child(&Clone::new(Namespaces::MOUNT), || {
            let root = new_root();
            put(&root, c"tmp", &tmpfs());
            mount::pivot(root.as_fd()).unwrap();
        })
        .unwrap();
        assert_eq!(list(), before);
        // A tree copied while it was shared, and the same where the kernel has no call for it.
        let copied = || {
            in_child(&Clone::new(Namespaces::MOUNT), || {
                let tree = mount::clone_tree(CWD, c"/", true).unwrap();
                let root = new_root();
                put(&root, c"x", &tree);
                put(&root, c"x/usr", &tmpfs());
                mount::pivot(root.as_fd()).unwrap();
                let mountinfo = fs::read_to_string("/x/proc/self/mountinfo").unwrap();
                assert!(!mountinfo.contains("shared:") && !mountinfo.contains("master:"), "{mountinfo}");
            })
            .unwrap();
        };
        copied();
        without(&[libc::SYS_mount_setattr], libc::ENOSYS, copied);
        assert_eq!(list(), before);
    })
    .unwrap();
}

#[test]
fn chroot_is_refused_by_name() {
    require!("chroot_is_refused_by_name", uid() == 0, "root", uid());
    in_mounts(|| {
        rustix::process::chroot("/usr").unwrap();
        assert_eq!(mount::enter_root(tmpfs().as_fd()), Err(Errno::from_raw(libc::EINVAL)));
    })
    .unwrap();
}

/// A tree with mounts below, one of which has blanks and a backslash in its name and one lies in another.
fn nested(root: &OwnedFd) -> OwnedFd {
    put(root, c"from", &tmpfs());
    put(root, c"from/a b\\c", &tmpfs());
    put(root, c"from/d", &tmpfs());
    put(root, c"from/d/e", &tmpfs());
    mount::clone_tree(root.as_fd(), c"from", true).unwrap()
}

/// `EROFS` everywhere below `to`, and nothing changed below `from`.
fn check_read_only(to: &str) {
    for place in ["", "/a b\\c", "/d", "/d/e"] {
        assert_eq!(errno(fs::write(format!("{to}{place}/x"), "")), Some(libc::EROFS), "{to}{place}");
        fs::write(format!("/from{place}/x"), "").unwrap();
    }
}

#[test]
fn attributes_of_a_whole_tree() {
    let able = possible();
    require!("attributes_of_a_whole_tree", able.is_ok(), "mount namespaces", able.unwrap_err());
    in_mounts(|| {
        let root = new_root();
        let tree = nested(&root);
        put(&root, c"to", &tree);
        mount::set_attributes(tree.as_fd(), RESTRICTED, Attributes::empty(), true).unwrap();
        put(&root, c"proc", &mount::proc(Proc::default(), Attributes::empty()).unwrap());
        mount::pivot(root.as_fd()).unwrap();
        check_read_only("/to");
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let lines: Vec<_> = mountinfo.lines().filter(|line| line.contains(" /to")).collect();
        assert_eq!(lines.len(), 4);
        assert!(lines.iter().all(|line| line.contains(" ro,nosuid,nodev,relatime")), "{mountinfo}");
    })
    .unwrap();
}

#[test]
fn attributes_without_mount_setattr() {
    let able = possible();
    require!("attributes_without_mount_setattr", able.is_ok(), "mount namespaces", able.unwrap_err());
    for denied in [libc::ENOSYS, libc::EPERM] {
        without(&[libc::SYS_mount_setattr, libc::SYS_openat2], denied, || {
            in_mounts(|| {
                let root = new_root();
                let tree = nested(&root);
                let set = |recursive| mount::set_attributes(tree.as_fd(), RESTRICTED, Attributes::empty(), recursive);
                assert_eq!(set(false), Err(Errno::from_raw(libc::EINVAL)), "still detached");
                assert_eq!(set(true), Err(Errno::from_raw(libc::EINVAL)), "still detached");
                put(&root, c"to", &tree);
                set(true).unwrap();
                // And from inside, where paths begin at the new root. Both keep what the mount had.
                let again = mount::clone_tree(root.as_fd(), c"from", true).unwrap();
                put(&root, c"again", &again);
                put(&root, c"proc", &mount::proc(Proc::default(), Attributes::empty()).unwrap());
                mount::pivot(root.as_fd()).unwrap();
                mount::set_attributes(again.as_fd(), Attributes::READ_ONLY, Attributes::empty(), true).unwrap();
                for to in ["/to", "/again"] {
                    check_read_only(to);
                }
                let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap();
                let count = |options: &str| mountinfo.lines().filter(|line| line.contains(options)).count();
                assert_eq!((count(" ro,nosuid,nodev,relatime"), count(" ro,nosuid,relatime")), (4, 4), "{mountinfo}");
                let clear = mount::set_attributes(again.as_fd(), Attributes::empty(), Attributes::NO_DEV, false);
                assert_eq!(clear, Err(Errno::from_raw(denied)));
            })
            .unwrap();
        });
    }
}

#[test]
fn a_hidden_submount_is_an_error_without_mount_setattr() {
    let able = possible();
    require!(
        "a_hidden_submount_is_an_error_without_mount_setattr",
        able.is_ok(),
        "mount namespaces",
        able.unwrap_err()
    );
    without(&[libc::SYS_mount_setattr], libc::ENOSYS, || {
        in_mounts(|| {
            let root = new_root();
            put(&root, c"to", &tmpfs());
            put(&root, c"to/d", &tmpfs());
            put(&root, c"to/d", &tmpfs());
            let tree = path::open_in_root(root.as_fd(), c"to", Open::PATH).unwrap();
            let set = mount::set_attributes(tree.as_fd(), RESTRICTED, Attributes::empty(), true);
            assert_eq!(set, Err(Errno::from_raw(libc::EBUSY)));
        })
        .unwrap();
    });
}

#[test]
fn locked_attributes_are_kept_in_a_user_namespace() {
    let inner = Clone::new(Namespaces::USER | Namespaces::MOUNT);
    let able = in_child(&inner, || mount::make_private().unwrap());
    require!("locked_attributes_are_kept_in_a_user_namespace", able.is_ok(), "user namespaces", able.unwrap_err());
    in_mounts(|| {
        mount::make_private().unwrap();
        let locked = Attributes::NO_SUID | Attributes::NO_DEV | Attributes::NO_EXEC;
        let tree = mount::tmpfs(&Tmpfs::default(), locked).unwrap();
        let target = host(c"/usr");
        mount::attach(tree.as_fd(), target.as_fd()).unwrap();
        let job = || {
            become_root(0, 0);
            let copy = mount::clone_tree(CWD, c"/usr", true).unwrap();
            let root = new_root();
            put(&root, c"x", &copy);
            mount::set_attributes(copy.as_fd(), Attributes::READ_ONLY, Attributes::empty(), false).unwrap();
            let flags = rustix::fs::fstatvfs(&copy).unwrap().f_flag;
            let kept = rustix::fs::StatVfsMountFlags::NOSUID | rustix::fs::StatVfsMountFlags::NODEV;
            assert!(flags.contains(kept | rustix::fs::StatVfsMountFlags::RDONLY), "{flags:?}");
        };
        in_child(&inner, job).unwrap();
        without(&[libc::SYS_mount_setattr], libc::ENOSYS, || in_child(&inner, job).unwrap());
    })
    .unwrap();
}

#[test]
fn racing_exchange_moves_no_mount_outside() {
    let able = possible();
    require!("racing_exchange_moves_no_mount_outside", able.is_ok(), "mount namespaces", able.unwrap_err());
    let outer = tempfile::tempdir().unwrap();
    let inside = outer.path().join("root");
    fs::create_dir_all(outer.path().join("out/b")).unwrap();
    fs::create_dir_all(inside.join("a/b")).unwrap();
    std::os::unix::fs::symlink("../out", inside.join("link")).unwrap();
    let (root, stop) = (host(&CString::new(inside.as_os_str().as_bytes()).unwrap()), AtomicBool::new(false));
    let (mut attached, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(&root, "a", &root, "link", flags).unwrap();
                std::thread::yield_now();
            }
        });
        let result = in_mounts(|| {
            mount::make_private().unwrap();
            // In this mount namespace the directory is another place than in the one where it was opened.
            let root = host(&CString::new(inside.as_os_str().as_bytes()).unwrap());
            for _ in 0..300 {
                let Ok(target) = path::create_dir_in_root(root.as_fd(), c"a/../a/b", 0o755) else {
                    refused += 1;
                    continue;
                };
                let tree = tmpfs();
                mount::attach(tree.as_fd(), target.as_fd()).unwrap();
                attached += 1;
                let place = fs::read_link(format!("/proc/self/fd/{}", tree.as_raw_fd())).unwrap();
                assert!(place.starts_with(&inside), "{}", place.display());
                rustix::mount::unmount(&place, rustix::mount::UnmountFlags::DETACH).unwrap_or_default();
            }
            let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap();
            assert!(!mountinfo.contains(outer.path().join("out").to_str().unwrap()), "{mountinfo}");
        });
        stop.store(true, Ordering::Relaxed);
        result.unwrap();
    });
    assert!(attached > 0, "{attached} {refused}");
}

#[test]
fn tmpfs_is_bounded() {
    let able = possible();
    require!("tmpfs_is_bounded", able.is_ok(), "mount namespaces", able.unwrap_err());
    in_mounts(|| {
        let root = new_root();
        let options = Tmpfs { size: Some(64 << 10), inodes: Some(10), mode: Some(0o1751), owner: None };
        put(&root, c"small", &mount::tmpfs(&options, Attributes::empty()).unwrap());
        mount::pivot(root.as_fd()).unwrap();
        assert_eq!(fs::metadata("/small").unwrap().mode() & 0o7777, 0o1751);
        fs::write("/small/x", vec![0; 64 << 10]).unwrap();
        assert_eq!(errno(fs::write("/small/y", vec![0; 4096])), Some(libc::ENOSPC));
        fs::remove_file("/small/x").unwrap();
        let made = (0..20).take_while(|number| fs::write(format!("/small/{number}"), "").is_ok()).count();
        assert!((7..10).contains(&made), "{made}");
        for zero in [Tmpfs { size: Some(0), ..options }, Tmpfs { inodes: Some(0), ..options }] {
            assert_eq!(mount::tmpfs(&zero, RESTRICTED).unwrap_err(), Errno::from_raw(libc::EINVAL));
        }
    })
    .unwrap();
}

#[test]
fn tmpfs_has_the_owner_that_is_asked_for() {
    require!("tmpfs_has_the_owner_that_is_asked_for", uid() == 0, "root", uid());
    in_mounts(|| {
        let options = Tmpfs { owner: Some((12, 34)), ..Tmpfs::default() };
        let stat = rustix::fs::fstat(mount::tmpfs(&options, RESTRICTED).unwrap()).unwrap();
        assert_eq!((stat.st_uid, stat.st_gid, stat.st_mode & 0o7777), (12, 34, 0o1777));
    })
    .unwrap();
}

#[test]
fn proc_shows_the_new_pid_namespace_only() {
    let able = possible();
    require!("proc_shows_the_new_pid_namespace_only", able.is_ok(), "mount namespaces", able.unwrap_err());
    in_mounts(|| {
        let root = new_root();
        let bare = Proc { hide_others: true, only_processes: true };
        let proc = [mount::proc(Proc::default(), Attributes::empty()), mount::proc(bare, Attributes::READ_ONLY)];
        let [full, bare] = proc.map(Result::unwrap);
        put(&root, c"full", &full);
        put(&root, c"bare", &bare);
        mount::pivot(root.as_fd()).unwrap();
        for (place, system) in [("/full", true), ("/bare", false)] {
            let pids =
                fs::read_dir(place).unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
            assert_eq!(pids.collect::<Vec<u32>>(), [1], "{place}");
            assert_eq!(Path::new(place).join("sys").exists(), system, "{place}");
        }
    })
    .unwrap();
}

#[test]
fn message_queues_and_terminals() {
    let able = possible();
    require!("message_queues_and_terminals", able.is_ok(), "mount namespaces", able.unwrap_err());
    in_mounts(|| {
        let root = new_root();
        let queues = mount::mqueue(Attributes::empty());
        let terminals = mount::devpts(1, Attributes::empty()).unwrap();
        put(&root, c"pts", &terminals);
        match queues {
            Ok(queues) => put(&root, c"mqueue", &queues),
            // Kernels can be built without.
            Err(errno) => assert_eq!(errno.raw(), libc::ENODEV),
        }
        mount::pivot(root.as_fd()).unwrap();
        let open = || fs::OpenOptions::new().read(true).write(true).open("/pts/ptmx");
        let first = open().unwrap();
        assert_eq!(errno(open().map(drop)), Some(libc::ENOSPC), "one terminal at most");
        assert!(Path::new("/pts/0").exists());
        drop(first);
        assert_eq!(mount::devpts(0, Attributes::empty()).unwrap_err(), Errno::from_raw(libc::EINVAL));
    })
    .unwrap();
}

#[test]
fn a_file_is_attached_to_a_file() {
    let able = possible();
    require!("a_file_is_attached_to_a_file", able.is_ok(), "mount namespaces", able.unwrap_err());
    in_mounts(|| {
        let root = new_root();
        let null = host(c"/dev/null");
        let null = mount::clone_tree(null.as_fd(), c"", false).unwrap();
        let directory = path::create_dir_in_root(root.as_fd(), c"dev", 0o755).unwrap();
        assert_eq!(mount::attach(null.as_fd(), directory.as_fd()), Err(Errno::from_raw(libc::EINVAL)));
        let target = path::create_file_in_root(root.as_fd(), c"dev/null", 0o644).unwrap();
        mount::attach(null.as_fd(), target.as_fd()).unwrap();
        mount::pivot(root.as_fd()).unwrap();
        fs::write("/dev/null", "gone").unwrap();
        assert_eq!(fs::read("/dev/null").unwrap(), b"");
    })
    .unwrap();
}

#[test]
fn overlay_of_directories_with_any_name() {
    require!("overlay_of_directories_with_any_name", uid() == 0, "root", uid());
    in_mounts(|| {
        let root = new_root();
        let make = |name: &str| {
            let name = CString::new(name).unwrap();
            path::create_dir_in_root(root.as_fd(), &name, 0o755).unwrap()
        };
        let hostile = [",upperdir=x", "a:b\\:c", "two words\nand a line", &"n".repeat(255)];
        let lower: Vec<_> = hostile.into_iter().map(make).collect();
        let lower: Vec<_> = lower.iter().map(AsFd::as_fd).collect();
        let (upper, work) = (make("upper,lowerdir=/"), make("work:x"));
        let create = |directory: &OwnedFd, name: &CStr| path::create_file_in_root(directory.as_fd(), name, 0o644);
        create(&path::open_in_root(lower[0], c".", Open::PATH).unwrap(), c"top").unwrap();
        create(&path::open_in_root(lower[3], c".", Open::PATH).unwrap(), c"bottom").unwrap();
        let options = Overlay { upper_and_work: Some((upper.as_fd(), work.as_fd())), ..Overlay::default() };
        let writable = match mount::overlay(&lower, &options, Attributes::empty()) {
            Err(errno) if errno.raw() == libc::ENODEV => return, // no overlay in this kernel
            made => made.unwrap(),
        };
        let read_only = mount::overlay(&lower, &Overlay::default(), Attributes::empty()).unwrap();
        put(&root, c"merged", &writable);
        put(&root, c"fixed", &read_only);
        assert_eq!(mount::overlay(&[], &Overlay::default(), RESTRICTED).unwrap_err(), Errno::from_raw(libc::EINVAL));
        mount::pivot(root.as_fd()).unwrap();
        assert!(Path::new("/merged/top").exists() && Path::new("/fixed/bottom").exists());
        fs::write("/merged/new", "x").unwrap();
        assert!(Path::new("/upper,lowerdir=/new").exists());
        assert_eq!(errno(fs::write("/fixed/new", "x")), Some(libc::EROFS));
    })
    .unwrap();
}

#[test]
fn overlay_of_many_layers() {
    require!("overlay_of_many_layers", uid() == 0, "root", uid());
    let mut answer = Ok(());
    in_mounts(|| {
        let root = new_root();
        let layers: Vec<_> = (0..40)
            .map(|number| {
                let place = CString::new(format!("layer{number}/file{number}")).unwrap();
                path::create_dir_in_root(root.as_fd(), &place, 0o755).unwrap();
                let place = CString::new(format!("layer{number}")).unwrap();
                path::open_in_root(root.as_fd(), &place, Open::PATH).unwrap()
            })
            .collect();
        let layers: Vec<_> = layers.iter().map(AsFd::as_fd).collect();
        match mount::overlay(&layers, &Overlay::default(), RESTRICTED) {
            Ok(tree) => put(&root, c"merged", &tree),
            Err(errno) => return answer = Err(errno),
        }
        mount::pivot(root.as_fd()).unwrap();
        assert_eq!(fs::read_dir("/merged").unwrap().count(), 40);
    })
    .unwrap();
    require!("overlay_of_many_layers", answer.is_ok(), "overlay, Linux 6.5", answer.unwrap_err());
}

#[test]
fn overlay_in_a_user_namespace() {
    let inner = Clone::new(Namespaces::USER | Namespaces::MOUNT);
    let able = in_child(&inner, || mount::make_private().unwrap());
    require!("overlay_in_a_user_namespace", able.is_ok(), "user namespaces", able.unwrap_err());
    let (user, group) = (uid(), rustix::process::getegid().as_raw());
    let mut answer = Ok(());
    in_child(&inner, || {
        become_root(user, group);
        let root = new_root();
        let [lower, upper, work] =
            [c"lower", c"upper", c"work"].map(|place| path::create_dir_in_root(root.as_fd(), place, 0o755).unwrap());
        path::create_file_in_root(lower.as_fd(), c"file", 0o644).unwrap();
        let upper_and_work = Some((upper.as_fd(), work.as_fd()));
        let options = Overlay { upper_and_work, user_xattr: true, ..Overlay::default() };
        match mount::overlay(&[lower.as_fd()], &options, Attributes::NO_DEV) {
            Ok(tree) => put(&root, c"merged", &tree),
            Err(errno) => return answer = Err(errno),
        }
        mount::pivot(root.as_fd()).unwrap();
        fs::remove_file("/merged/file").unwrap();
        fs::write("/merged/new", "").unwrap();
        assert!(Path::new("/lower/file").exists() && Path::new("/upper/new").exists());
    })
    .unwrap();
    require!("overlay_in_a_user_namespace", answer.is_ok(), "overlay, Linux 5.11", answer.unwrap_err());
}

#[test]
fn idmapped_tree_shows_other_owners() {
    require!("idmapped_tree_shows_other_owners", uid() == 0, "root", uid());
    let born = Program::new("/bin/sleep").unwrap().arg("60").unwrap().spawn(&Clone::new(Namespaces::USER)).unwrap();
    for file in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{}/{file}", born.pid), "0 70000 1000").unwrap();
    }
    let user = Namespace::of_pidfd(&born.pidfd, Kind::User).unwrap();
    born.pidfd.kill().unwrap();
    born.pidfd.reap().unwrap();
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("file"), "").unwrap();
    let source = CString::new(directory.path().as_os_str().as_bytes()).unwrap();
    let mut answer = Ok(());
    in_mounts(|| {
        let tree = mount::clone_tree(CWD, &source, false).unwrap();
        answer = mount::set_idmap(tree.as_fd(), user.as_fd(), false);
        if answer.is_ok() {
            let file = path::open_in_root(tree.as_fd(), c"file", Open::PATH).unwrap();
            let stat = rustix::fs::fstat(file).unwrap();
            assert_eq!((stat.st_uid, stat.st_gid), (70000, 70000));
        }
    })
    .unwrap();
    require!(
        "idmapped_tree_shows_other_owners",
        answer.is_ok(),
        "Linux 5.12 and a file system with idmaps",
        answer.unwrap_err()
    );
    assert_eq!(fs::metadata(directory.path().join("file")).unwrap().uid(), 0);
}

#[test]
fn options_are_not_one_string() {
    let able = possible();
    require!("options_are_not_one_string", able.is_ok(), "mount namespaces", able.unwrap_err());
    in_mounts(|| {
        assert_eq!(Filesystem::open(c"no such type").unwrap_err(), Errno::from_raw(libc::ENODEV));
        let tmpfs = Filesystem::open(c"tmpfs").unwrap();
        assert_eq!(tmpfs.string(c"size", c"4096,nr_inodes=0"), Err(Errno::from_raw(libc::EINVAL)));
        assert_eq!(tmpfs.flag(c"no such option"), Err(Errno::from_raw(libc::EINVAL)));
        let long = CString::new("1".repeat(256)).unwrap();
        assert_eq!(tmpfs.string(c"size", &long), Err(Errno::from_raw(libc::EINVAL)));
    })
    .unwrap();
}

#[test]
fn a_false_proc_is_not_used() {
    let able = possible();
    require!("a_false_proc_is_not_used", able.is_ok(), "mount namespaces", able.unwrap_err());
    in_mounts(|| {
        mount::make_private().unwrap();
        let over = host(c"/proc");
        let false_proc = tmpfs();
        for place in [c"self/fd", c"self/fdinfo"] {
            path::create_dir_in_root(false_proc.as_fd(), place, 0o755).unwrap();
        }
        mount::attach(false_proc.as_fd(), over.as_fd()).unwrap();
        let overlay = Filesystem::open(c"tmpfs").unwrap();
        assert_eq!(overlay.descriptor(c"size", false_proc.as_fd()), Err(Errno::from_raw(libc::ENODEV)));
        // What must work all the same, also where paths are needed.
        without(&[libc::SYS_mount_setattr], libc::ENOSYS, || {
            in_child(&Clone::new(Namespaces::MOUNT), || {
                let here = std::env::current_dir().unwrap();
                let root = new_root();
                let tree = tmpfs();
                put(&root, c"x", &tree);
                mount::set_attributes(tree.as_fd(), Attributes::READ_ONLY, Attributes::empty(), false).unwrap();
                assert_eq!(std::env::current_dir().unwrap(), here);
                mount::pivot(root.as_fd()).unwrap();
                assert_eq!(errno(fs::write("/x/y", "")), Some(libc::EROFS));
            })
            .unwrap();
        });
    })
    .unwrap();
}
