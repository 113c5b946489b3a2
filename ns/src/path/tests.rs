//! The kernel's way and ours must agree, and neither may leave the root.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

/// `outer/canary` and `outer/root`, the root of the tests, with a canary's name inside, too.
fn jail() -> (TempDir, File) {
    let outer = tempfile::tempdir().unwrap();
    fs::write(outer.path().join("canary"), "outside").unwrap();
    fs::create_dir(outer.path().join("root")).unwrap();
    let root = File::open(outer.path().join("root")).unwrap();
    (outer, root)
}

fn c(path: impl AsRef<Path>) -> CString {
    CString::new(path.as_ref().as_os_str().as_bytes()).unwrap()
}

type Found = Result<(u64, u64), i32>;

fn found(result: Result<OwnedFd, Errno>) -> Found {
    let meta = File::from(result.map_err(Errno::raw)?).metadata().unwrap();
    Ok((meta.dev(), meta.ino()))
}

fn both(root: &File, path: &CStr, how: Open) -> (Found, Found) {
    let ours = walk(root.as_fd(), path, how, Create::Nothing).map(Fd::into_owned);
    // Any rename or mount on the machine makes the kernel doubt a `..`.
    let kernel = (0..1000).map(|_| found(openat2(root.as_fd(), path, how))).find(|found| *found != Err(libc::EAGAIN));
    (kernel.unwrap(), found(ours))
}

#[test]
fn hostile_links_stay_inside() {
    let (outer, root) = jail();
    let top = outer.path().join("root");
    for (name, target) in [
        ("a", "../../..".into()),
        ("absolute", "/".into()),
        ("canary-by-name", outer.path().join("canary")),
        ("canary-above", "../canary".into()),
        ("fifty", format!("{}canary", "../".repeat(50)).into()),
        ("loop", "loop".into()),
        ("ping", "pong".into()),
        ("pong", "ping".into()),
        ("slash", "dir/".into()),
        ("file-slash", "file/".into()),
        ("twice", "dir/../twice-more".into()),
        ("twice-more", "/dir/file".into()),
    ] {
        symlink::<std::path::PathBuf, _>(target, top.join(name)).unwrap();
    }
    fs::create_dir(top.join("dir")).unwrap();
    fs::write(top.join("dir/file"), "inside").unwrap();
    fs::write(top.join("file"), "inside").unwrap();
    let at = |path: &str| {
        let meta = fs::metadata(top.join(path)).unwrap();
        Ok((meta.dev(), meta.ino()))
    };
    let fifty = format!("{}file", "../".repeat(50));
    let long = "x".repeat(256);
    let whole = format!("{}file", "./".repeat(2100));
    for (path, how, expected) in [
        ("a", Open::PATH, at("")),
        ("a/file", Open::empty(), at("file")),
        ("a/a/a/../dir/../../../dir/file", Open::empty(), at("dir/file")),
        ("absolute/dir", Open::PATH | Open::DIRECTORY, at("dir")),
        ("/", Open::PATH, at("")),
        ("/dir/.", Open::DIRECTORY, at("dir")),
        ("..", Open::empty(), at("")),
        (&fifty, Open::empty(), at("file")),
        ("canary-by-name", Open::empty(), Err(libc::ENOENT)),
        ("canary-above", Open::empty(), Err(libc::ENOENT)),
        ("fifty", Open::PATH, Err(libc::ENOENT)),
        ("loop", Open::PATH, Err(libc::ELOOP)),
        ("ping/x", Open::PATH, Err(libc::ELOOP)),
        ("slash", Open::PATH, at("dir")),
        ("slash/file", Open::PATH, at("dir/file")),
        ("file-slash", Open::PATH, Err(libc::ENOTDIR)),
        ("file/", Open::PATH, Err(libc::ENOTDIR)),
        ("file/x", Open::PATH, Err(libc::ENOTDIR)),
        ("file/..", Open::PATH, Err(libc::ENOTDIR)),
        ("twice", Open::WRITE, at("dir/file")),
        ("twice", Open::NO_FOLLOW, Err(libc::ELOOP)),
        ("dir/../twice", Open::NO_SYMLINKS, Err(libc::ELOOP)),
        ("dir/file", Open::NO_SYMLINKS, at("dir/file")),
        ("dir", Open::WRITE, Err(libc::EISDIR)),
        ("dir/file", Open::DIRECTORY, Err(libc::ENOTDIR)),
        ("no", Open::PATH, Err(libc::ENOENT)),
        ("no/..", Open::PATH, Err(libc::ENOENT)),
        ("", Open::PATH, Err(libc::ENOENT)),
        (&long, Open::PATH, Err(libc::ENAMETOOLONG)),
        (&whole, Open::PATH, Err(libc::ENAMETOOLONG)),
    ] {
        assert_eq!(both(&root, &c(path), how), (expected, expected), "{path} {how:?}");
    }
    let link = found(openat2(root.as_fd(), c"a", Open::PATH | Open::NO_FOLLOW)).unwrap();
    assert_eq!(both(&root, c"a", Open::PATH | Open::NO_FOLLOW).1, Ok(link));
    assert_eq!(link.1, fs::symlink_metadata(top.join("a")).unwrap().ino());
}

#[test]
fn magic_links_are_refused() {
    let root = File::open("/").unwrap();
    for path in [
        format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&root)),
        "/proc/self/root".into(),
        "/proc/self/cwd/x".into(),
        "/proc/self/exe".into(),
        "/proc/self/ns/mnt".into(),
        "/proc/../proc/self/task/../root/etc".into(),
    ] {
        assert_eq!(both(&root, &c(&path), Open::PATH), (Err(libc::ELOOP), Err(libc::ELOOP)), "{path}");
    }
    // Its ordinary links are links.
    let (kernel, ours) = both(&root, c"/proc/mounts", Open::empty());
    assert!(kernel.is_ok() && kernel == ours, "{kernel:?} {ours:?}");
}

#[test]
fn creating_stays_inside() {
    let (outer, root) = jail();
    let top = outer.path().join("root");
    fs::create_dir_all(top.join("etc")).unwrap();
    symlink("../run/resolv.conf", top.join("etc/resolv.conf")).unwrap();
    symlink("../../../../escaped", top.join("up")).unwrap();
    symlink(outer.path().join("canary"), top.join("canary")).unwrap();
    symlink(outer.path().join("new"), top.join("new")).unwrap();
    let create_file = |path: &str| found(create_file_in_root(root.as_fd(), &c(path), 0o600));
    let create_dir = |path: &str| found(create_dir_in_root(root.as_fd(), &c(path), 0o700));
    create_file("/etc/resolv.conf").unwrap();
    assert!(top.join("run/resolv.conf").is_file());
    create_dir("up/a/b/../c").unwrap();
    assert!(top.join("escaped/a/c").is_dir() && top.join("escaped/a/b").is_dir());
    create_file("canary").unwrap();
    create_file("new/file").unwrap();
    let below = outer.path().strip_prefix("/").unwrap();
    assert!(top.join(below).join("canary").is_file() && top.join(below).join("new/file").is_file());
    // What is there stays as it is.
    fs::write(top.join("run/resolv.conf"), "kept").unwrap();
    let first = create_file("etc/resolv.conf").unwrap();
    assert_eq!(create_file("etc/resolv.conf"), Ok(first));
    assert_eq!(fs::read_to_string(top.join("run/resolv.conf")).unwrap(), "kept");
    assert_eq!(create_dir("etc/resolv.conf"), Err(libc::ENOTDIR));
    assert_eq!(create_dir("etc/resolv.conf/x"), Err(libc::ENOTDIR));
    assert_eq!(create_dir(""), Err(libc::ENOENT));
    let mut names: Vec<_> = fs::read_dir(outer.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["canary", "root"]);
    assert_eq!(fs::read_to_string(outer.path().join("canary")).unwrap(), "outside");
}

#[test]
fn links_cannot_keep_it_busy() {
    let (outer, root) = jail();
    let top = outer.path().join("root");
    // 40 links, each of which goes down and up hundreds of times.
    let deep = vec!["d"; 200].join("/");
    fs::create_dir_all(top.join(&deep)).unwrap();
    for number in 0..40 {
        let text = format!("{deep}/{}l{}", "../".repeat(200), number + 1);
        symlink(text, top.join(format!("l{number}"))).unwrap();
    }
    let clock = std::time::Instant::now();
    assert_eq!(found(walk(root.as_fd(), c"l0", Open::PATH, Create::Nothing).map(Fd::into_owned)), Err(libc::ELOOP));
    assert!(clock.elapsed().as_secs() < 20, "{:?}", clock.elapsed());
}

#[test]
fn racing_exchange_never_leads_out() {
    let (outer, root) = jail();
    let top = outer.path().join("root");
    let out = outer.path().join("out");
    fs::create_dir(&out).unwrap();
    fs::create_dir_all(top.join("a/b")).unwrap();
    symlink(&out, top.join("link")).unwrap();
    symlink("../../out", top.join("up")).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let exchange = |from: &str, to: &str| {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(&root, from, &root, to, flags).unwrap();
            };
            while !stop.load(Ordering::Relaxed) {
                exchange("a", "link");
                std::thread::yield_now();
                exchange("a", "up");
                exchange("a", "link");
            }
        });
        for round in 0..500 {
            let results = [
                found(create_file_in_root(root.as_fd(), &c(format!("a/f{round}")), 0o600)),
                found(create_dir_in_root(root.as_fd(), &c(format!("a/b/../d{round}/e")), 0o700)),
                found(open_in_root(root.as_fd(), c"a/../a/../a/b", Open::PATH)),
                found(walk(root.as_fd(), c"a/../a/../a/b", Open::PATH, Create::Nothing).map(Fd::into_owned)),
            ];
            for error in results.into_iter().filter_map(Result::err) {
                let expected = [libc::ENOENT, libc::EAGAIN, libc::ENOTDIR, libc::ELOOP, libc::EEXIST];
                assert!(expected.contains(&error), "{}", Errno::from_raw(error));
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(fs::read_dir(&out).unwrap().count(), 0);
    assert_eq!(fs::read_dir(outer.path()).unwrap().count(), 3);
}

/// Paths of few names, so that they often meet.
fn some_path() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec!["a", "b", "c", "..", ".", "", "a", "b"]);
    (prop::collection::vec(part, 1..6), any::<bool>())
        .prop_map(|(parts, absolute)| format!("{}{}", if absolute { "/" } else { "" }, parts.join("/")))
}

fn some_entry() -> impl Strategy<Value = (String, Option<String>)> {
    (some_path(), prop::option::weighted(0.6, some_path()))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn both_ways_agree(
        entries in prop::collection::vec(some_entry(), 1..12),
        paths in prop::collection::vec(some_path(), 1..12),
        how in prop::sample::select(vec![
            Open::empty(),
            Open::WRITE,
            Open::PATH,
            Open::PATH | Open::NO_FOLLOW,
            Open::PATH | Open::DIRECTORY,
            Open::PATH | Open::NO_SYMLINKS,
            Open::DIRECTORY | Open::NO_FOLLOW,
            Open::NO_FOLLOW,
        ]),
    ) {
        let (outer, root) = jail();
        for (path, link) in entries {
            // The kernel finds the parent, inside: links of the tree would lead std out of it.
            let (parent, name) = path.rsplit_once('/').unwrap_or(("", &path));
            let parent = c(if parent.is_empty() { "/" } else { parent });
            let Ok(parent) = openat2(root.as_fd(), &parent, Open::PATH | Open::DIRECTORY) else { continue };
            if name.is_empty() || name.starts_with('.') {
                continue;
            }
            let exclusive = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
            let _ = match link {
                Some(target) => rustix::fs::symlinkat(if target.is_empty() { "." } else { &target }, parent, name),
                None if name == "c" => rustix::fs::openat(parent, name, exclusive, 0o600.into()).map(drop),
                None => rustix::fs::mkdirat(parent, name, 0o700.into()),
            };
        }
        for path in &paths {
            let (kernel, ours) = both(&root, &c(path), how);
            prop_assert_eq!(kernel, ours, "{} {:?}", path, how);
        }
        for path in &paths {
            // Creating ends inside or not at all, and opening finds what it made.
            let made = found(create_dir_in_root(root.as_fd(), &c(path), 0o700));
            if made.is_ok() {
                prop_assert_eq!(both(&root, &c(path), Open::PATH), (made, made), "{}", path);
            }
        }
        prop_assert_eq!(fs::read_dir(outer.path()).unwrap().count(), 2);
    }
}
