//! Ids without collisions: many processes at once, owners killed at any instant, other programs in the range, and
//! file systems that are unmounted in between.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panic")]

mod common;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{
    Image, Place, Running, act, disk, eventually, fill, in_thread, loop_devices, ordinary, project_of, root, sys, tool,
};
use quota::{Allocator, Directory, Error, Filesystem, Limit, Limits, Released};

#[test]
fn role() {
    let Some((name, arguments)) = common::played() else { return };
    let filesystem = Filesystem::open(&arguments[0]).unwrap();
    let ids = ids(&filesystem, &arguments[2]);
    let allocator = Allocator::open(&filesystem, &arguments[1], ids).unwrap();
    match name.as_str() {
        // 25 leases at once, told, held until all others have theirs, too.
        "lease" => {
            let limits = Limits::unlimited().bytes(1 << 20);
            let leases: Vec<_> = (0..25).map(|_| allocator.lease("many", &limits).unwrap()).collect();
            common::tell(leases.iter().map(|lease| lease.id().to_string()).collect::<Vec<_>>().join(" "));
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).unwrap();
            for lease in leases {
                assert_eq!(lease.release().unwrap(), Released::Freed);
            }
        }
        // The whole life of a lease, under the eyes of the parent.
        "life" => {
            sys::let_parent_trace().unwrap();
            let lease = allocator.lease("life", &Limits::unlimited().bytes(1 << 20).inodes(50)).unwrap();
            let path = arguments[0].join("life");
            fs::create_dir(&path).unwrap();
            lease.assign(&Directory::open(&path).unwrap()).unwrap();
            fs::write(path.join("f"), [1; 8192]).unwrap();
            lease.set_limits(&Limits::unlimited().bytes(2 << 20)).unwrap();
            fs::remove_dir_all(&path).unwrap();
            assert_eq!(lease.release().unwrap(), Released::Freed);
        }
        // The same with a tree that is there before and after it.
        "visit" => {
            let tree = Directory::open(arguments[0].join("life")).unwrap();
            sys::let_parent_trace().unwrap();
            let lease = allocator.lease("life", &Limits::unlimited().bytes(1 << 20)).unwrap();
            lease.remember(&tree).unwrap();
            assert_eq!(tree.assign_existing(lease.project()).unwrap().left, []);
            assert_eq!(tree.clear().unwrap().left, []);
            assert_eq!(lease.release().unwrap(), Released::Freed);
        }
        _ => panic!("{name}"),
    }
}

/// Each test has a range of its own; a role is told the first id.
fn ids(_: &Filesystem, first: &Path) -> RangeInclusive<u32> {
    let first: u32 = first.to_str().unwrap().parse().unwrap();
    first..=first + 999
}

fn fresh_range(place: &mut Place) -> RangeInclusive<u32> {
    let first = 1_500_000_000 + place.project().id() % 100_000 * 1000;
    first..=first + 999
}

/// Nothing in the range has limits or usage any more.
fn assert_clean(filesystem: &Filesystem, range: &RangeInclusive<u32>) {
    eventually("nothing is left in the range", || {
        let rows = filesystem.report().unwrap();
        rows.iter()
            .all(|row| !range.contains(&row.project) || (row.limits == Limits::unlimited() && row.usage.inodes == 0))
    });
}

#[test]
fn a_lease_from_beginning_to_end() {
    require!(disk());
    let mut place = Place::new();
    let range = fresh_range(&mut place);
    let state = tempfile::tempdir().unwrap();
    let allocator = Allocator::open(&place.filesystem, state.path(), range.clone()).unwrap();
    let limits = Limits::unlimited().bytes(1 << 20).inodes(20);
    let lease = allocator.lease("one", &limits).unwrap();
    assert_eq!(lease.id(), *range.start());
    assert_eq!(lease.project().limits().unwrap(), limits);
    let dir = place.directory("box");
    lease.assign(&Directory::open(&dir).unwrap()).unwrap();
    assert_eq!(project_of(&dir), lease.id());
    assert_eq!(ordinary(|| fill(&dir.join("f"), 2 << 20)).1, place.full());
    lease.set_limits(&limits.bytes(4 << 20)).unwrap();
    // A second one, beside it.
    let second = allocator.lease("two", &limits).unwrap();
    assert_ne!(second.id(), lease.id());
    fs::remove_dir_all(&dir).unwrap();
    let id = lease.id();
    assert_eq!(lease.release().unwrap(), Released::Freed);
    assert_eq!(place.filesystem.project(id).unwrap().limits().unwrap(), Limits::unlimited());
    drop(second);
    assert_clean(&place.filesystem, &range);
    assert_eq!(allocator.lease("again", &limits).unwrap().id(), id, "free again");
}

#[test]
fn files_that_are_left_quarantine_the_id() {
    require!(disk());
    let mut place = Place::new();
    let range = fresh_range(&mut place);
    let state = tempfile::tempdir().unwrap();
    let allocator = Allocator::open(&place.filesystem, state.path(), range.clone()).unwrap();
    let limits = Limits::unlimited().bytes(1 << 20);
    let lease = allocator.lease("leaver", &limits).unwrap();
    let dir = place.directory("box");
    lease.assign(&Directory::open(&dir).unwrap()).unwrap();
    fs::write(dir.join("f"), "x").unwrap();
    let outside = place.path.join("moved");
    fs::rename(dir.join("f"), &outside).unwrap();
    fs::remove_dir_all(&dir).unwrap();
    let id = lease.id();
    assert!(matches!(lease.release().unwrap(), Released::Quarantined(usage) if usage.inodes == 1));
    let found = allocator.recover().unwrap();
    assert_eq!(found.quarantined.len(), 1);
    assert_eq!((found.quarantined[0].project, found.quarantined[0].owner.as_str()), (id, "leaver"));
    assert_eq!(place.filesystem.project(id).unwrap().limits().unwrap(), limits, "still limited");
    assert_ne!(allocator.lease("next", &limits).unwrap().id(), id);
    fs::remove_file(outside).unwrap();
    eventually("recovered", || allocator.recover().unwrap().freed.contains(&id));
    assert_clean(&place.filesystem, &range);
}

#[test]
fn an_empty_root_is_taken_out_of_the_project() {
    require!(disk());
    let mut place = Place::new();
    let range = fresh_range(&mut place);
    let state = tempfile::tempdir().unwrap();
    let allocator = Allocator::open(&place.filesystem, state.path(), range).unwrap();
    let lease = allocator.lease("empty", &Limits::unlimited().bytes(1 << 20)).unwrap();
    let dir = place.directory("box");
    lease.assign(&Directory::open(&dir).unwrap()).unwrap();
    assert_eq!(lease.release().unwrap(), Released::Freed);
    assert_eq!(project_of(&dir), 0);
}

#[test]
fn what_others_use_or_limit_is_never_lent() {
    require!(disk());
    let mut place = Place::new();
    let range = fresh_range(&mut place);
    let first = *range.start();
    let state = tempfile::tempdir().unwrap();
    let allocator = Allocator::open(&place.filesystem, state.path(), range).unwrap();
    // One with limits only, one with a directory only: as Docker or an administrator make them.
    let limited = place.filesystem.project(first).unwrap();
    limited.set_limits(&Limits::unlimited().bytes(1 << 20)).unwrap();
    let dir = place.directory("docker");
    sys::set_project(&dir, first + 1, |flags| flags | sys::PROJINHERIT).unwrap();
    let lease = allocator.lease("ours", &Limits::unlimited().bytes(4096)).unwrap();
    assert_eq!(lease.id(), first + 2);
    let found = allocator.recover().unwrap();
    assert_eq!(found.unregistered.iter().map(|row| row.project).collect::<Vec<_>>(), [first, first + 1]);
    assert_eq!(found.live, [first + 2]);
    assert_eq!(limited.limits().unwrap().bytes_hard, Limit::Value(1 << 20), "untouched");
    limited.clear().unwrap();
    fs::remove_dir(dir).unwrap();
}

#[test]
fn what_the_administrators_tables_name_is_never_lent() {
    require!(disk());
    let mut place = Place::new();
    let range = fresh_range(&mut place);
    let first = *range.start();
    in_thread(|| {
        sys::private_mounts().unwrap();
        let state = tempfile::tempdir().unwrap();
        let allocator = Allocator::open(&place.filesystem, state.path(), range).unwrap();
        common::run(Command::new("mount").args(["-t", "tmpfs", "tmpfs", "/etc"])).unwrap();
        fs::write("/etc/projid", format!("web:{first}\n")).unwrap();
        fs::write("/etc/projects", format!("{}:/srv/logs\n", first + 1)).unwrap();
        let lease = allocator.lease("ours", &Limits::unlimited().bytes(4096)).unwrap();
        assert_eq!(lease.id(), first + 2);
    });
}

#[test]
fn a_range_that_is_used_up_is_an_error() {
    require!(disk());
    let mut place = Place::new();
    let first = *fresh_range(&mut place).start();
    let state = tempfile::tempdir().unwrap();
    let allocator = Allocator::open(&place.filesystem, state.path(), first..=first + 1).unwrap();
    let limits = Limits::unlimited().bytes(4096);
    let _a = allocator.lease("a", &limits).unwrap();
    let _b = allocator.lease("b", &limits).unwrap();
    assert!(matches!(allocator.lease("c", &limits), Err(Error::Exhausted { .. })));
    for wrong in [0..=5, 5..=u32::MAX, RangeInclusive::new(5, 4)] {
        assert!(matches!(Allocator::open(&place.filesystem, state.path(), wrong), Err(Error::Invalid { .. })));
    }
}

#[test]
fn an_inherited_lock_holds_the_lease() {
    require!(disk(), tool("sleep"));
    let mut place = Place::new();
    let range = fresh_range(&mut place);
    let state = tempfile::tempdir().unwrap();
    let allocator = Allocator::open(&place.filesystem, state.path(), range).unwrap();
    let lease = allocator.lease("parent", &Limits::unlimited().bytes(1 << 20)).unwrap();
    let id = lease.id();
    let lock: OwnedFd = lease.duplicate_lock().unwrap().unwrap();
    // As its standard input: the duplicate lives as long as the process.
    let child = Running(Command::new("sleep").arg("600").stdin(Stdio::from(lock)).spawn().unwrap());
    assert_eq!(lease.release().unwrap(), Released::Held);
    assert_eq!(allocator.recover().unwrap().live, [id]);
    assert!(matches!(allocator.take(id), Err(error) if error.errno() == Some(libc::EWOULDBLOCK)));
    drop(child);
    assert_eq!(allocator.recover().unwrap().freed, [id]);
}

#[test]
fn a_kept_lease_outlives_its_program() {
    require!(disk());
    let mut place = Place::new();
    let range = fresh_range(&mut place);
    let state = tempfile::tempdir().unwrap();
    let allocator = Allocator::open(&place.filesystem, state.path(), range.clone()).unwrap();
    let limits = Limits::unlimited().bytes(1 << 20);
    let lease = allocator.lease("volume", &limits).unwrap();
    let dir = place.directory("volume");
    lease.assign(&Directory::open(&dir).unwrap()).unwrap();
    let id = lease.keep().unwrap();
    assert_eq!(allocator.recover().unwrap().kept, [id], "empty, and kept all the same");
    assert_eq!(project_of(&dir), id);
    fs::write(dir.join("data"), "x").unwrap();
    assert_eq!(allocator.recover().unwrap().kept, [id]);
    assert_eq!(place.filesystem.project(id).unwrap().limits().unwrap(), limits);
    let lease = allocator.take(id).unwrap().unwrap();
    Directory::open(&dir).unwrap().clear().unwrap();
    assert_eq!(lease.release().unwrap(), Released::Freed);
    assert!(allocator.take(id).unwrap().is_none());
    // One whose tree is gone is no longer in use.
    let lease = allocator.lease("volume", &limits).unwrap();
    let id = lease.keep().unwrap();
    assert_eq!(allocator.recover().unwrap().freed, [id]);
    assert_clean(&place.filesystem, &range);
}

#[test]
fn two_hundred_leases_of_eight_processes_are_two_hundred_ids() {
    require!(disk());
    let mut place = Place::new();
    let range = fresh_range(&mut place);
    // On the disk under test, where a sync sleeps and lets others run.
    let state = tempfile::tempdir_in(&place.path).unwrap();
    let first = range.start().to_string();
    let arguments = [place.path.as_os_str(), state.path().as_os_str(), OsStr::new(&first)];
    let mut children: Vec<_> = (0..8)
        .map(|_| {
            act(&[], "lease", &arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map(Running).unwrap()
        })
        .collect();
    let mut ids = Vec::new();
    for Running(child) in &mut children {
        use std::io::BufRead;
        let lines = std::io::BufReader::new(child.stdout.as_mut().unwrap()).lines();
        let told = lines.map_while(Result::ok).find_map(|line| line.strip_prefix("=> ").map(str::to_owned)).unwrap();
        ids.extend(told.split(' ').map(|id| id.parse::<u32>().unwrap()));
    }
    assert_eq!(ids.len(), 200);
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), 200, "no id twice");
    for id in &ids {
        let limits = place.filesystem.project(*id).unwrap().limits().unwrap();
        assert_eq!(limits.bytes_hard, Limit::Value(1 << 20));
    }
    for Running(child) in &mut children {
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
    }
    assert_clean(&place.filesystem, &range);
    let allocator = Allocator::open(&place.filesystem, state.path(), range).unwrap();
    assert_eq!(allocator.recover().unwrap(), quota::Recovered::default());
}

/// Killed before each system call of a role in turn: between two of them nothing happens that others could see. A living
/// neighbour is never touched. `tidy` does what has to be done to the tree before the id can be free again.
///
/// How often nothing was left, an id that was free at once, and one in quarantine.
fn killed_at_each_call(role: &str, prepare: impl Fn(&Path), tidy: impl Fn(&Path)) -> (u32, u32, u32) {
    let mut place = Place::new();
    let range = fresh_range(&mut place);
    let state = tempfile::tempdir().unwrap();
    let allocator = Allocator::open(&place.filesystem, state.path(), range.clone()).unwrap();
    let limits = Limits::unlimited().bytes(1 << 20);
    let neighbour = allocator.lease("neighbour", &limits).unwrap();
    let home = place.directory("neighbour");
    neighbour.assign(&Directory::open(&home).unwrap()).unwrap();
    fs::write(home.join("f"), "x").unwrap();
    let first = range.start().to_string();
    let arguments = [place.path.as_os_str(), state.path().as_os_str(), OsStr::new(&first)];
    let life = place.path.join("life");
    let (mut nothing, mut freed, mut quarantined) = (0, 0, 0);
    for call in 1.. {
        prepare(&life);
        let mut owner = act(&[], role, &arguments);
        let owner = sys::Traced::start(owner.stdout(Stdio::null()).stderr(Stdio::null())).unwrap();
        let lived = owner.run_to_call(call).unwrap();
        drop(owner);
        // First with the tree still there, then without it.
        let found = allocator.recover().unwrap();
        assert_eq!(found.live, [neighbour.id()], "call {call}: {found:?}");
        assert!(found.unregistered.is_empty() && found.kept.is_empty(), "call {call}: {found:?}");
        match (&found.freed[..], &found.quarantined[..]) {
            ([], []) => nothing += 1,
            ([_], []) => freed += 1,
            ([], [one]) => {
                assert_eq!((one.owner.as_str(), &one.directories[..]), ("life", &[life.clone()][..]), "call {call}");
                quarantined += 1;
            }
            _ => panic!("call {call}: {found:?}"),
        }
        tidy(&life);
        eventually("recovered", || allocator.recover().unwrap().quarantined.is_empty());
        let mut rows = place.filesystem.report().unwrap();
        rows.retain(|row| range.contains(&row.project) && row.project != neighbour.id());
        rows.retain(|row| row.limits != Limits::unlimited() || row.usage.inodes > 0);
        assert!(rows.is_empty(), "call {call}: {rows:?}");
        if lived {
            assert_eq!((&found.freed[..], &found.quarantined[..]), (&[][..], &[][..]), "it gave its id back itself");
            break;
        }
    }
    assert_eq!(neighbour.project().limits().unwrap(), limits);
    assert_eq!(fs::read(home.join("f")).unwrap(), b"x");
    fs::remove_dir_all(home).unwrap();
    assert_eq!(neighbour.release().unwrap(), Released::Freed);
    (nothing, freed, quarantined)
}

#[test]
fn an_owner_killed_at_any_instant_is_recovered() {
    require!(disk());
    let tidy = |life: &Path| {
        // The directory may not have been made yet.
        let _ = fs::remove_dir_all(life);
    };
    let (nothing, freed, quarantined) = killed_at_each_call("life", |_| {}, tidy);
    // Before it was registered and after its end, without files of its own, and with them.
    assert!(nothing > 5 && freed > 20 && quarantined > 5, "{nothing} {freed} {quarantined}");
}

/// The tree stays: whenever its owner died, clearing it finds everything that bears the id.
#[test]
fn an_owner_killed_at_any_instant_leaves_a_tree_that_can_be_cleared() {
    require!(disk());
    let prepare = |tree: &Path| {
        let _ = fs::create_dir_all(tree.join("deep/deeper"));
        for file in ["one", "deep/two", "deep/deeper/three"] {
            fs::write(tree.join(file), "x").unwrap();
        }
    };
    let tidy = |tree: &Path| {
        Directory::open(tree).unwrap().clear().unwrap();
        for path in ["", "one", "deep", "deep/two", "deep/deeper", "deep/deeper/three"] {
            assert_eq!(project_of(&tree.join(path)), 0, "{path}");
        }
    };
    let (nothing, freed, quarantined) = killed_at_each_call("visit", prepare, tidy);
    assert!(nothing > 5 && freed > 20 && quarantined > 20, "{nothing} {freed} {quarantined}");
}

#[test]
fn limits_and_leases_survive_an_unmount_and_a_mount_without_quota() {
    require!(root(), loop_devices(), tool("mkfs.xfs"), common::project_quota_kernel());
    survive("mkfs.xfs -q", "xfs");
}

#[test]
fn limits_and_leases_survive_on_ext4() {
    require!(root(), loop_devices(), tool("mkfs.ext4"), common::project_quota_kernel());
    survive("mkfs.ext4 -q -F -O quota,project -E quotatype=usrquota:grpquota:prjquota", "ext4");
}

fn survive(mkfs: &str, kind: &str) {
    in_thread(|| {
        sys::private_mounts().unwrap();
        let image = Image::new(mkfs);
        let state = tempfile::tempdir().unwrap();
        let limits = Limits::unlimited().bytes(1 << 20).inodes(100);
        image.mount(kind, "prjquota").unwrap();
        let allocator = Allocator::open(&image.open(), state.path(), 500..=600).unwrap();
        let lease = allocator.lease("volume", &limits).unwrap();
        let dir = image.point().join("volume");
        fs::create_dir(&dir).unwrap();
        lease.assign(&Directory::open(&dir).unwrap()).unwrap();
        fs::write(dir.join("f"), [1; 65536]).unwrap();
        let id = lease.keep().unwrap();
        drop(allocator);
        image.remount("ro").unwrap();
        image.remount("rw").unwrap();
        assert_eq!(image.open().project(id).unwrap().limits().unwrap(), limits);
        image.unmount();
        // Written while XFS does not count, and ext4 does not enforce.
        image.mount(kind, "").unwrap();
        fs::write(dir.join("g"), vec![1; 128 << 10]).unwrap();
        assert!(image.open().require(&quota::Check::default()).is_err());
        image.unmount();
        // Counted anew by the mount, where need be.
        image.mount(kind, "prjquota").unwrap();
        let filesystem = image.open();
        let report = filesystem.project(id).unwrap().report().unwrap();
        assert_eq!((report.limits, report.usage.inodes), (limits, 3));
        assert!((192 << 10..=200 << 10).contains(&report.usage.bytes), "{report:?}");
        let (written, error) = ordinary(|| fill(&dir.join("h"), 2 << 20));
        assert_eq!(error, if kind == "xfs" { libc::ENOSPC } else { libc::EDQUOT });
        assert!(written <= (1 << 20) - report.usage.bytes, "{written}");
        // The registry knows the file system again, by whatever device.
        let allocator = Allocator::open(&filesystem, state.path(), 500..=600).unwrap();
        assert_eq!(allocator.recover().unwrap().kept, [id]);
        let lease = allocator.take(id).unwrap().unwrap();
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(lease.release().unwrap(), Released::Freed);
        drop((allocator, filesystem));
        image.unmount();
    });
}
