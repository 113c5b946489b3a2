//! Who may leave a project: case 48 of the hostile list. The escape is shown to work unprotected, and to fail inside a
//! user namespace and under the seccomp rule.
#![allow(clippy::unwrap_used, reason = "tests fail by panic")]

mod common;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use common::sys::{PROJINHERIT, file_setattr, get_project, set_project};
use common::{Place, act, as_user, disk, errno, fill, kernel, sys, tool};
use quota::Limits;

/// In a user namespace: the results of changing the project, and of writing on.
#[test]
fn role() {
    let Some((_, arguments)) = common::played() else { return };
    let dir = &arguments[0];
    let own = get_project(dir).unwrap();
    let answers = [
        errno(set_project(dir, 0, |flags| flags)),
        errno(set_project(dir, own.0, |flags| flags & !PROJINHERIT)),
        errno(set_project(dir, own.0, |flags| flags)),
        errno(file_setattr(dir, 0)),
        fill(&dir.join("inside"), 4 << 20).1,
    ];
    common::tell(format!("{answers:?}"));
}

const LIMIT: u64 = 1 << 20;

fn owned_by_user(place: &mut Place) -> PathBuf {
    let (path, _) = place.limited("box", &Limits::unlimited().bytes(LIMIT));
    std::os::unix::fs::chown(&path, Some(1000), Some(1000)).unwrap();
    path
}

/// The whole escape: full, then out, then more than the limit.
fn escapes(dir: &Path, change: impl Fn(&Path) -> i32) -> (i32, u64) {
    let (written, _) = fill(&dir.join("full"), 4 * LIMIT);
    assert!(written <= LIMIT);
    fs::remove_file(dir.join("full")).unwrap();
    let out = dir.join("out");
    let mut made = fs::create_dir(&out);
    for _ in 0..100 {
        if made.is_ok() {
            break;
        }
        // The space of the removed file may come back later.
        std::thread::sleep(std::time::Duration::from_millis(50));
        made = fs::create_dir(&out);
    }
    made.unwrap();
    let changed = change(&out);
    (changed, fill(&out.join("more"), 4 * LIMIT).0)
}

#[test]
fn golden_permission_an_owner_leaves_the_project() {
    require!(disk());
    let mut place = Place::new();
    let dir = owned_by_user(&mut place);
    let (changed, written) = as_user(1000, || escapes(&dir, |out| errno(set_project(out, 0, |f| f & !PROJINHERIT))));
    assert_eq!((changed, written), (0, 4 * LIMIT), "unprotected, the limit is no boundary");
}

#[test]
fn golden_permission_an_owner_leaves_the_project_by_file_setattr() {
    require!(disk(), kernel(6, 17));
    let mut place = Place::new();
    let dir = owned_by_user(&mut place);
    let (changed, written) = as_user(1000, || escapes(&dir, |out| errno(file_setattr(out, 0))));
    assert_eq!((changed, written), (0, 4 * LIMIT));
}

#[test]
fn golden_permission_others_may_not() {
    require!(disk());
    let mut place = Place::new();
    let (dir, _) = place.limited("box", &Limits::unlimited().bytes(LIMIT));
    // ext4 had a check of its own before the common one.
    let early = !place.is_xfs() && kernel(5, 14).is_err();
    let expected = if early { libc::EACCES } else { libc::EPERM };
    assert_eq!(as_user(1000, || errno(set_project(&dir, 0, |f| f))), expected);
}

#[test]
fn golden_permission_a_user_namespace_keeps_it_in() {
    require!(disk(), tool("unshare"), tool("setpriv"));
    let mut place = Place::new();
    let dir = owned_by_user(&mut place);
    let inside: &[&str] = &[
        "setpriv",
        "--reuid=1000",
        "--regid=1000",
        "--clear-groups",
        "--inh-caps=-all",
        "unshare",
        "--user",
        "--map-root-user",
    ];
    let output = act(inside, "box", &[dir.as_os_str() as &OsStr]).output().unwrap();
    let by_name = if kernel(6, 17).is_ok() { libc::EINVAL } else { libc::ENOSYS };
    // Change refused, flag refused, the same value allowed, by name refused, and still limited.
    let expected = [libc::EINVAL, libc::EINVAL, 0, by_name, place.full()];
    assert_eq!(common::answer(&output), format!("{expected:?}"), "{output:?}");
}

#[test]
fn case_48_a_seccomp_rule_keeps_it_in() {
    require!(disk());
    let mut place = Place::new();
    let dir = owned_by_user(&mut place);
    as_user(1000, || {
        sys::deny_project_changes().unwrap();
        let (changed, written) = escapes(&dir, |out| errno(set_project(out, 0, |f| f & !PROJINHERIT)));
        assert_eq!(changed, libc::EPERM);
        assert!(written <= LIMIT, "{written}");
        assert_eq!(errno(file_setattr(&dir, 0)), libc::EPERM);
        get_project(&dir).unwrap();
    });
}

#[test]
fn case_48_what_is_moved_out_is_still_charged_and_nothing_big_moves_in() {
    require!(disk());
    let mut place = Place::new();
    let (dir, project) = place.limited("box", &Limits::unlimited().bytes(LIMIT));
    let outside = place.directory("outside");
    common::ordinary(|| {
        fill(&dir.join("f"), LIMIT / 2);
        fs::rename(dir.join("f"), outside.join("f")).unwrap();
        assert!(fill(&dir.join("g"), LIMIT).0 <= LIMIT / 2);
        assert!(fill(&outside.join("f"), LIMIT).0 < LIMIT / 2, "appending to it elsewhere is limited, too");
        fill(&outside.join("big"), 4 * LIMIT);
        assert_eq!(errno(fs::rename(outside.join("big"), dir.join("big"))), libc::EXDEV);
        assert_eq!(errno(fs::hard_link(outside.join("big"), dir.join("big"))), libc::EXDEV);
    });
    assert!(project.usage().unwrap().bytes <= LIMIT);
}
