//! An overlay as root directory: who owns what, where changes go, and what is not followed.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Instant;

use common::{Scratch, build_overlay, is_root, sh, text};
use rustix::fs::XattrFlags;
use sandbox::{Error, ErrorKind, Feature, Sandbox, Upper};

#[test]
fn payload() {
    common::acts::run(&[]);
}

/// The sandbox, unless this kernel mounts no overlay for this caller, or does not map the owners of files.
fn with_owners(name: &str, lower: &Path, upper: Upper) -> Option<Sandbox> {
    let sandbox = match build_overlay(lower, upper, |_| {}) {
        Err(error @ Error::Unsupported { .. }) => {
            common::skip(name, "overlay for this caller", &error.to_string());
            return None;
        }
        built => built.unwrap(),
    };
    if let Some(why) = sandbox.plan().warnings().iter().find(|why| why.contains("belong to nobody")) {
        common::skip(name, "an overlay whose files belong to somebody", why);
        return None;
    }
    Some(sandbox)
}

macro_rules! with_owners {
    ($name:literal, $lower:expr, $upper:expr) => {
        match with_owners($name, $lower, $upper) {
            Some(sandbox) => sandbox,
            None => return,
        }
    };
}

/// On a disk where there is one for tests: the memory of `/tmp` in guests cannot be mapped before Linux 6.3.
fn scratch(name: &str) -> Scratch {
    match common::test_disk() {
        disk if is_root() && disk.is_dir() => Scratch::on(&disk, name),
        _ => Scratch::new(name),
    }
}

/// A lower directory: a word, a tree to be removed, a place.
fn image(scratch: &Scratch) -> PathBuf {
    let lower = scratch.dir("image", 0o755);
    scratch.file("image/word", "old\n", 0o644);
    scratch.dir("image/tree", 0o755);
    scratch.file("image/tree/leaf", "leaf\n", 0o600);
    lower
}

fn on_disk(scratch: &Scratch) -> (PathBuf, Upper) {
    let layer = scratch.0.join("layer");
    (layer.clone(), Upper::Dir(layer))
}

const CHANGE: &str = "set -e; echo new > /word; rm /tree/leaf; rmdir /tree; mkdir /made; echo x > /made/file; ln -s word /link; \
                      stat -c '%n %u %g %a' / /word /made /made/file; cat /word";
const CHANGED: &str = "/ 0 0 755\n/word 0 0 644\n/made 0 0 755\n/made/file 0 0 644\nnew";

#[test]
fn changes_go_to_memory_and_the_lower_directory_stays() {
    let scratch = scratch("memory");
    let lower = image(&scratch);
    let name = "changes_go_to_memory_and_the_lower_directory_stays";
    let Some(sandbox) = with_owners(name, &lower, Upper::Tmpfs) else { return };
    if let Some(why) = sandbox.plan().warnings().iter().find(|why| why.contains("no user attributes")) {
        common::skip(name, "an overlay of which every directory can be removed", why);
        return;
    }
    let output = sh(&sandbox, CHANGE);
    assert_eq!(text(&output), CHANGED, "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(
        text(&sh(&sandbox, "cat /word /tree/leaf; ls /made 2>&1 | wc -l")),
        "old\nleaf\n1",
        "fresh for each start"
    );
    assert_eq!(fs::read_to_string(lower.join("word")).unwrap(), "old\n");
    let mut names: Vec<_> = fs::read_dir(&lower).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["tree", "word"], "no mount point is made below");
}

#[test]
fn changes_go_to_the_upper_directory_and_stay() {
    let scratch = scratch("layer");
    let lower = image(&scratch);
    let (layer, upper) = on_disk(&scratch);
    let sandbox = with_owners!("changes_go_to_the_upper_directory_and_stay", &lower, upper.clone());
    assert_eq!(layer.metadata().unwrap().mode() & 0o7777, 0o700);
    let output = sh(&sandbox, CHANGE);
    assert_eq!(text(&output), CHANGED, "{}", String::from_utf8_lossy(&output.stderr));
    // The ids of the next one are others: those of the last one are taken meanwhile.
    let others: Vec<_> = (0..2).map(|_| common::sandbox(|_| {}).start().unwrap()).collect();
    let again =
        "set -e; cat /word; echo more >> /made/file; mkdir /tree; stat -c '%n %u' /made/file /tree; ls -A /tree";
    assert_eq!(text(&sh(&sandbox, again)), "new\n/made/file 0\n/tree 0");
    drop(others);
    assert_eq!(sandbox.close(), []);
    let file = layer.join("upper/made/file");
    assert_eq!(fs::read_to_string(&file).unwrap(), "x\nmore\n");
    let own = rustix::process::geteuid().as_raw();
    assert_eq!(file.metadata().unwrap().uid(), own, "owner n inside is owner n on disk, or the caller's own");
    assert_eq!(fs::read_to_string(lower.join("word")).unwrap(), "old\n");
    let sandbox = build_overlay(&lower, upper, |_| {}).unwrap();
    assert_eq!(text(&sh(&sandbox, "cat /word /made/file; ls /tree | wc -l")), "new\nx\nmore\n0", "seen again");
}

#[test]
fn what_cannot_be_mapped_is_said() {
    let scratch = scratch("said");
    let lower = image(&scratch);
    let sandbox = sandbox_or_skip!("what_cannot_be_mapped_is_said", "overlay for this caller", |b| {
        b.overlay(&lower, Upper::Tmpfs);
    });
    let entry = sandbox.plan().feature(Feature::Overlay).unwrap();
    assert_eq!(entry.enforced, Some(1));
    assert_eq!(entry.why_not.is_some(), sandbox.plan().warnings().iter().any(|why| why.starts_with("overlay: ")));
    assert_eq!(entry.why_not.is_some(), entry.fix.is_some());
    // The root directory is the program's own in any case.
    let sandbox = build_overlay(&lower, Upper::Tmpfs, |b| _ = b.prefer(Feature::IdLease)).unwrap();
    assert_eq!(text(&sh(&sandbox, "mkdir /mine && echo x > /mine/file && cat /word /mine/file")), "old\nx");
}

#[test]
fn the_upper_directory_is_one_users_at_a_time() {
    let scratch = scratch("turns");
    let lower = image(&scratch);
    let (_, upper) = on_disk(&scratch);
    let sandbox = with_owners!("the_upper_directory_is_one_users_at_a_time", &lower, upper.clone());
    let error = build_overlay(&lower, upper.clone(), |_| {}).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("used by another sandbox"), "{error}");
    // A program that has ended holds nothing, even if somebody holds on to it.
    let mut child = sandbox.command("/bin/true").spawn().unwrap();
    child.wait().unwrap();
    assert_eq!(text(&sh(&sandbox, "echo two")), "two");
    drop(child);
    let instance = sandbox.start().unwrap();
    let before = Instant::now();
    let error = sandbox.start().unwrap_err();
    assert_eq!(error.errno(), Some(libc::EBUSY), "{error}");
    assert!(error.hint().unwrap().contains("one at a time"), "{error}");
    assert!(before.elapsed().as_secs() < 30);
    drop(instance);
    drop(sandbox.start().unwrap());
    drop(sandbox);
    build_overlay(&lower, upper, |_| {}).unwrap();
}

#[test]
fn unfit_directories_are_refused_in_words() {
    let scratch = scratch("unfit");
    let lower = image(&scratch);
    let refused = |lower: &Path, upper: &Path| build_overlay(lower, Upper::Dir(upper.to_owned()), |_| {}).unwrap_err();
    for upper in [lower.join("above"), lower.clone(), scratch.0.clone()] {
        let error = refused(&lower, &upper);
        assert!(error.to_string().contains("one lies in the other"), "{error}");
    }
    let _ = fs::remove_dir(lower.join("above"));
    let open = scratch.dir("open", 0o755);
    assert!(refused(&lower, &open).to_string().contains("chmod 0700"));
    symlink(lower.join("tree"), scratch.0.join("link")).unwrap();
    assert!(refused(&lower, &scratch.0.join("link")).to_string().contains("one lies in the other"));
    let missing = refused(&scratch.0.join("missing"), &open);
    assert_eq!((missing.errno(), missing.kind()), (Some(libc::ENOENT), ErrorKind::Setup), "{missing}");
    assert!(missing.to_string().contains("lower layer"), "{missing}");
    assert_eq!(refused(&lower.join("word"), &open).errno(), Some(libc::ENOTDIR));
    assert_eq!(refused(&lower, &scratch.0.join("a/b")).errno(), Some(libc::ENOENT));
    if is_root() {
        let foreign = scratch.dir("foreign", 0o700);
        std::os::unix::fs::chown(&foreign, Some(1000), Some(1000)).unwrap();
        assert!(refused(&lower, &foreign).to_string().contains("belongs to user 1000"));
    }
}

#[test]
fn a_file_system_without_attributes_is_refused_and_preferred_it_is_read_only() {
    let name = "a_file_system_without_attributes_is_refused_and_preferred_it_is_read_only";
    if !is_root() {
        return common::skip(name, "root", "another user");
    }
    let scratch = scratch("ramfs");
    let lower = image(&scratch);
    let place = scratch.dir("ramfs", 0o700);
    let run = || {
        sandbox::ns::unshare(sandbox::Namespaces::MOUNT).unwrap();
        let private = rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private).unwrap();
        rustix::mount::mount("ramfs", &place, "ramfs", rustix::mount::MountFlags::empty(), None).unwrap();
        let upper = Upper::Dir(place.join("layer"));
        let error = build_overlay(&lower, upper.clone(), |_| {}).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("no extended attributes"), "{error}");
        let sandbox = build_overlay(&lower, upper, |b| {
            b.prefer(Feature::Overlay);
            for place in ["/proc", "/dev", "/payload", "/usr", "/bin", "/lib", "/lib64"] {
                let _ = fs::create_dir(lower.join(place.trim_start_matches('/')));
            }
            let _ = fs::remove_dir(lower.join("payload"));
        })
        .unwrap();
        let entry = sandbox.plan().feature(Feature::Overlay).unwrap();
        assert!(entry.enforced.is_none() && entry.fix.is_some(), "{entry:?}");
        assert_eq!(text(&sh(&sandbox, "cat /word; { echo new > /word; } 2>/dev/null || echo refused")), "old\nrefused");
    };
    std::thread::scope(|scope| scope.spawn(run).join()).unwrap();
}

#[test]
fn any_path_will_do() {
    let scratch = scratch("paths");
    let lower = scratch.dir("a:b,upperdir=x\\:c\nd", 0o755);
    fs::write(lower.join("word"), "old\n").unwrap();
    let upper = scratch.0.join("up:per,lowerdir=etc");
    let sandbox = with_owners!("any_path_will_do", &lower, Upper::Dir(upper.clone()));
    assert_eq!(text(&sh(&sandbox, "cat /word; echo new > /word; ls /etc 2>&1 | wc -l")), "old\n1");
    drop(sandbox);
    assert_eq!(fs::read_to_string(upper.join("upper/word")).unwrap(), "new\n");
}

/// What a layer that somebody else wrote may carry: a set-user-ID file, redirections and foreign metadata.
#[test]
fn case_93_planted_attributes_lead_nowhere() {
    let scratch = scratch("planted");
    let lower = image(&scratch);
    scratch.dir("image/secret", 0o755);
    scratch.file("image/secret/data", "secret\n", 0o644);
    scratch.program("image/id", &fs::read("/usr/bin/id").unwrap(), 0o6755);
    scratch.dir("layer", 0o700);
    scratch.dir("layer/upper", 0o755);
    scratch.dir("layer/work", 0o700);
    scratch.dir("layer/upper/redirected", 0o755);
    scratch.file("layer/upper/copied", "", 0o644);
    let space = if is_root() { "trusted" } else { "user" };
    let plant = |place: &str, name: &str, value: &[u8]| {
        let path = scratch.0.join("layer/upper").join(place);
        rustix::fs::lsetxattr(&path, format!("{space}.overlay.{name}"), value, XattrFlags::empty())
    };
    if let Err(error) = plant("redirected", "redirect", b"/secret") {
        return common::skip("case_93_planted_attributes_lead_nowhere", "extended attributes", &error.to_string());
    }
    plant("redirected", "origin", b"x").unwrap();
    plant("copied", "metacopy", b"").unwrap();
    plant("copied", "redirect", b"/secret/data").unwrap();
    let sandbox = with_owners!("case_93_planted_attributes_lead_nowhere", &lower, Upper::Dir(scratch.0.join("layer")));
    let output = sh(
        &sandbox,
        "cat /copied /redirected/data 2>&1 | grep -c secret$; ls -A /redirected; /id -u; grep ' / / ' /proc/self/mountinfo",
    );
    let said = text(&output);
    let mut lines = said.lines();
    assert_eq!((lines.next(), lines.next()), (Some("0"), Some("0")), "{said}");
    let mount = lines.next().unwrap();
    assert!(mount.contains("nosuid,nodev") && mount.contains(" overlay "), "{mount}");
    let followed = ["redirect_dir=on", "redirect_dir=follow", "metacopy=on"];
    assert!(followed.iter().all(|option| !mount.contains(option)), "{mount}");
}

#[test]
fn the_host_sees_no_layer() {
    let scratch = scratch("unseen");
    let lower = image(&scratch);
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
    for upper in [Upper::Tmpfs, on_disk(&scratch).1] {
        let Some(sandbox) = with_owners("the_host_sees_no_layer", &lower, upper) else { return };
        let child = common::sleeper(&sandbox);
        assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
        drop(child);
        drop(sandbox);
        assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
    }
}

#[test]
fn mount_points_inside_an_overlay_are_made() {
    let scratch = scratch("points");
    let (lower, word) = (image(&scratch), scratch.file("word", "bound\n", 0o644));
    let _ = with_owners!("mount_points_inside_an_overlay_are_made", &lower, Upper::Tmpfs);
    let sandbox = build_overlay(&lower, Upper::Tmpfs, |b| {
        b.bind_read_only(&word, "/deep/er/word").tmpfs("/tree", Some(1 << 20));
    })
    .unwrap();
    assert_eq!(
        text(&sh(&sandbox, "cat /deep/er/word; ls -A /tree; echo x > /tree/x; cat /tree/x; ls /dev/null")),
        "bound\nx\n/dev/null"
    );
}
