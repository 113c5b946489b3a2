//! Disk limits: what an overlay's layer, a bind or memory may hold, and who cannot get past it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use common::acts::disk::{hits, result};
use common::acts::{self, Act};
use common::{Scratch, build_overlay, is_root, said, text};
use sandbox::quota::{Allocator, Check, Directory, Filesystem, Kernel, Kind, Limits, Usage};
use sandbox::{Builder, ErrorKind, Feature, Output, Sandbox, Upper};

const MIB: u64 = 1 << 20;
const LIMIT: u64 = 4 * MIB;

#[test]
fn payload() {
    acts::run(ACTS);
}

const ACTS: &[Act] = &[
    ("fill", acts::disk::fill),
    ("files", acts::disk::files),
    ("df", acts::disk::df),
    ("escape", acts::disk::escape),
    ("bypass", acts::disk::bypass),
    ("own", own),
];

/// `own DIRECTORY STATE`: builds sandboxes with a limit on the directory, one after another, until it is killed.
fn own(words: &[&str]) {
    loop {
        let sandbox = Sandbox::builder().bind(words[0], "/place").disk_max(LIMIT).state_dir(words[1]).build();
        let sandbox = sandbox.unwrap();
        common::sh(&sandbox, "echo x > /place/x");
    }
}

macro_rules! overlay_or_skip {
    ($name:literal, $lower:expr, $upper:expr, $change:expr) => {
        match build_overlay($lower, $upper, $change) {
            Err(error) if error.kind() == ErrorKind::Unsupported && error.step() == Some("overlay") => {
                return common::skip($name, "overlay for this caller", &error.to_string());
            }
            built => built.unwrap(),
        }
    };
}

fn act(sandbox: &Sandbox, what: &str) -> Output {
    common::act(sandbox, what).output().unwrap()
}

/// A directory of its own on the disk under test. One test at a time has it.
struct Disk {
    scratch: Scratch,
    filesystem: Filesystem,
    _turn: MutexGuard<'static, ()>,
}

static TURN: Mutex<()> = Mutex::new(());

impl Disk {
    fn new(name: &str) -> Option<Self> {
        let disk = common::test_disk();
        let needs = "project quota at /mnt/quota";
        let checked = Filesystem::open(&disk).and_then(|disk| disk.require(&Check::overlay()).map(|_| disk));
        match checked {
            Ok(filesystem) => Some(Self {
                scratch: Scratch::on(&disk, name),
                filesystem,
                _turn: TURN.lock().unwrap_or_else(PoisonError::into_inner),
            }),
            Err(error) => {
                common::skip(name, needs, &error.to_string());
                None
            }
        }
    }

    /// The errno at a limit.
    fn full(&self) -> i32 {
        if *self.filesystem.kind() == Kind::Xfs { libc::ENOSPC } else { libc::EDQUOT }
    }

    fn layer(&self) -> PathBuf {
        self.scratch.0.join("layer")
    }

    /// On the disk, as the usual one may lie on a guest's read-only root.
    fn state(&self) -> PathBuf {
        self.scratch.dir("state", 0o700)
    }

    /// An overlay of the image with a layer here.
    fn overlay(&self, change: impl FnOnce(&mut Builder)) -> Sandbox {
        build_overlay(&self.image(), Upper::Dir(self.layer()), |b| {
            b.state_dir(self.state());
            change(b);
        })
        .unwrap()
    }

    /// A lower directory of 6 MiB in one file, more than any limit here.
    fn image(&self) -> PathBuf {
        let image = self.scratch.dir("image", 0o755);
        if !image.join("big").exists() {
            fs::write(image.join("big"), vec![1; 6 << 20]).unwrap();
            self.scratch.file("image/small", "small\n", 0o644);
        }
        image
    }

    fn free(&self) -> u64 {
        let has = rustix::fs::statvfs(&self.scratch.0).unwrap();
        has.f_bfree * has.f_frsize
    }

    /// Removes the layer of a sandbox that is gone, and takes its project back.
    fn remove_layer(&self) {
        fs::remove_dir_all(self.layer()).unwrap();
        common::eventually("the project is free again", || {
            sandbox::recover(Some(&self.state())).unwrap();
            self.projects().is_empty()
        });
    }

    fn projects(&self) -> Vec<u32> {
        let mut reports = self.filesystem.report().unwrap();
        // ext4 remembers ids that nothing bears any more.
        reports.retain(|report| report.limits != Limits::unlimited() || report.usage != Usage::default());
        let ours = |id: &u32| Allocator::IDS.contains(id);
        reports.into_iter().map(|report| report.project).filter(ours).collect()
    }
}

macro_rules! disk {
    ($name:literal) => {
        match Disk::new($name) {
            Some(disk) => disk,
            None => return,
        }
    };
}

#[test]
fn a_layer_in_memory_is_full_at_the_limit() {
    let scratch = Scratch::new("memory");
    let lower = scratch.dir("image", 0o755);
    let sandbox = overlay_or_skip!("a_layer_in_memory_is_full_at_the_limit", &lower, Upper::Tmpfs, |b| {
        b.disk_max(LIMIT).inodes_max(50);
    });
    let entry = sandbox.plan().feature(Feature::DiskMax).unwrap();
    assert_eq!((entry.requested, entry.enforced), (Some(LIMIT), Some(LIMIT)), "{entry:?}");
    assert!(entry.by.as_deref().unwrap().contains("tmpfs"), "{entry:?}");

    let below = act(&sandbox, "fill /f 3145728");
    assert_eq!(result(&below), (3 * MIB, 0));
    assert_eq!(hits(&below.outcome), (None, None));
    let used = below.outcome.usage.disk_bytes.unwrap();
    assert!((3 * MIB..3 * MIB + 65536).contains(&used), "{used}");
    assert!((5..20).contains(&below.outcome.usage.inodes.unwrap()), "{:?}", below.outcome.usage);

    let over = act(&sandbox, "fill /f 8388608");
    let (written, errno) = result(&over);
    assert_eq!(errno, libc::ENOSPC);
    assert!((LIMIT - 65536..=LIMIT).contains(&written), "{written}");
    assert_eq!(hits(&over.outcome), (Some(1), None));
    assert_eq!(said(&act(&sandbox, "df /").stdout, "df"), format!("{LIMIT} 50"));
}

#[test]
fn case_65_a_bomb_of_files_stays_in_memory() {
    let scratch = Scratch::new("bomb");
    let lower = scratch.dir("image", 0o777);
    let sandbox = overlay_or_skip!("case_65_a_bomb_of_files_stays_in_memory", &lower, Upper::Tmpfs, |b| {
        b.inodes_max(200);
    });
    let before = rustix::fs::statvfs(&lower).unwrap();
    for kind in ["file", "directory", "link"] {
        let output = act(&sandbox, &format!("files / {kind} 1000"));
        let (made, errno) = result(&output);
        assert_eq!(errno, libc::ENOSPC, "{kind}");
        assert!((150..200).contains(&made), "{kind}: {made}");
        assert_eq!(hits(&output.outcome), (None, Some(1)), "{kind}");
    }
    let after = rustix::fs::statvfs(&lower).unwrap();
    assert!(before.f_ffree.saturating_sub(after.f_ffree) < 100, "the host's disk has its files still");
    assert_eq!(fs::read_dir(&lower).unwrap().count(), 0);
}

#[test]
fn without_a_disk_that_counts_the_ways_out_are_named() {
    let error = common::build(|b| _ = b.disk_max(50 * MIB)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let words = error.to_string();
    for word in ["disk_max", "lies on a disk", "prjquota", "prefer", "overlay"] {
        assert!(words.contains(word), "{words}");
    }
}

#[test]
fn preferred_it_is_the_size_of_tmp() {
    for named in [None, Some(64 * MIB)] {
        let sandbox = common::sandbox(|b| {
            b.disk_max(LIMIT).inodes_max(60).prefer(Feature::DiskMax).prefer(Feature::InodesMax);
            if named.is_some() {
                b.tmpfs("/tmp", named);
            }
        });
        let over = act(&sandbox, "fill /tmp/f 8388608");
        assert_eq!(result(&over), (LIMIT, libc::ENOSPC));
        assert_eq!(hits(&over.outcome), (Some(1), None));
        let (made, errno) = result(&act(&sandbox, "files /tmp file 100"));
        assert_eq!(errno, libc::ENOSPC);
        assert!((50..60).contains(&made), "{made}");
        let entry = over.outcome.enforced(Feature::DiskMax).unwrap();
        assert_eq!(entry.enforced, Some(LIMIT));
        assert!(entry.by.as_deref().unwrap().contains("/tmp") && entry.why_not.is_some(), "{entry:?}");
    }
}

/// Since Linux 6.6 a memory file system keeps attributes. They are no bytes of it, but its files and they share the memory
/// of a number of files, 1 KiB each.
#[test]
fn case_49_attributes_in_memory_have_the_room_of_files() {
    for (inodes, room) in [(Some(60), 60 << 10), (None, LIMIT / 4)] {
        let sandbox = common::sandbox(|b| {
            b.disk_max(LIMIT).prefer(Feature::DiskMax).prefer(Feature::InodesMax);
            inodes.map(|inodes| b.inodes_max(inodes));
        });
        let (stored, errno) = result(&act(&sandbox, "bypass attributes /tmp"));
        assert!([libc::EOPNOTSUPP, libc::ENOSPC].contains(&errno), "{errno}");
        assert!(if errno == libc::ENOSPC { (1..=room).contains(&stored) } else { stored == 0 }, "{stored} of {room}");
    }
}

/// Without a limit of its own the number of files has one by the size: they take memory that the size does not count.
#[test]
fn case_65_a_layer_in_memory_has_a_file_for_each_page_at_most() {
    let scratch = Scratch::new("pages");
    let lower = scratch.dir("image", 0o777);
    let sandbox =
        overlay_or_skip!("case_65_a_layer_in_memory_has_a_file_for_each_page_at_most", &lower, Upper::Tmpfs, |b| {
            b.disk_max(LIMIT);
        });
    let output = act(&sandbox, "files / file 5000");
    let (made, errno) = result(&output);
    assert_eq!(errno, libc::ENOSPC);
    assert!((900..=LIMIT / 4096).contains(&made), "{made}");
    assert_eq!(hits(&output.outcome), (None, Some(1)));
}

#[test]
fn an_overlay_on_a_disk_counts_changes_alone() {
    let disk = disk!("an_overlay_on_a_disk_counts_changes_alone");
    let sandbox = disk.overlay(|b| _ = b.disk_max(LIMIT));
    let entry = sandbox.plan().feature(Feature::DiskMax).unwrap();
    assert_eq!(entry.enforced, Some(LIMIT));
    assert!(entry.by.as_deref().unwrap().contains("project"), "{entry:?}");

    let read = act(&sandbox, "df /");
    assert_eq!(said(&read.stdout, "df").split_once(' ').unwrap().0, LIMIT.to_string(), "df shows the limit");
    assert!(read.outcome.usage.disk_bytes.unwrap() < 256 << 10, "the image is free: {:?}", read.outcome.usage);
    assert_eq!(hits(&read.outcome), (None, None));

    let below = act(&sandbox, "fill /f 3145728");
    assert_eq!(result(&below), (3 * MIB, 0));
    assert_eq!(hits(&below.outcome), (None, None));
    assert!(below.outcome.usage.disk_bytes.unwrap() >= 3 * MIB);

    let over = act(&sandbox, "fill /g 8388608");
    let (written, errno) = result(&over);
    assert_eq!(errno, disk.full());
    assert!((512 << 10..=MIB).contains(&written), "{written}: what is there counts");
    assert_eq!(hits(&over.outcome), (Some(1), None));
    // A full layer is mounted for writing again: what is in it can be removed.
    assert_eq!(text(&common::sh(&sandbox, "echo x >> /g; rm /g && echo removed")), "removed");
    let refilled = act(&sandbox, "fill /g 8388608");
    assert!(refilled.outcome.usage.disk_bytes.unwrap() <= LIMIT, "the limit is the same: {:?}", refilled.outcome.usage);
    let used = over.outcome.usage.disk_bytes.unwrap();
    assert!((LIMIT - 65536..=LIMIT).contains(&used), "{used}");
    assert_eq!(sandbox.close(), []);

    // The layer and its project are found again, with another limit or none.
    let projects = disk.projects();
    assert_eq!(projects.len(), 1, "{projects:?}");
    let larger = disk.overlay(|b| _ = b.disk_max(2 * LIMIT));
    assert_eq!(result(&act(&larger, "fill /h 2097152")), (2 * MIB, 0));
    drop(larger);
    let unlimited = disk.overlay(|_| {});
    let output = act(&unlimited, "fill /i 8388608");
    assert_eq!(result(&output), (8 * MIB, 0));
    assert!(output.outcome.usage.disk_bytes.unwrap() >= 13 * MIB, "counted without a limit, too");
    drop(unlimited);
    assert_eq!(disk.projects(), projects);
    disk.remove_layer();
    assert_eq!(disk.projects(), []);
}

#[test]
fn an_overlay_on_a_disk_counts_files_and_whiteouts() {
    let disk = disk!("an_overlay_on_a_disk_counts_files_and_whiteouts");
    let change = |b: &mut Builder| _ = b.inodes_max(100);
    for kind in ["file", "directory", "link"] {
        let sandbox = disk.overlay(change);
        let below = act(&sandbox, &format!("files / {kind} 50"));
        assert_eq!(result(&below), (50, 0));
        assert_eq!(hits(&below.outcome), (None, None));
        let over = act(&sandbox, &format!("files /more {kind} 100"));
        let (made, errno) = result(&over);
        assert_eq!(errno, disk.full(), "{kind}");
        assert!((15..50).contains(&made), "{kind}: {made}");
        assert_eq!(hits(&over.outcome), (None, Some(1)), "{kind}");
        assert_eq!(over.outcome.usage.inodes, Some(100));
        // A whiteout is a file, too: in a full project nothing of the lower directory can be removed.
        let removed = common::sh(&sandbox, "rm /small; ls /small");
        assert!(text(&removed).contains("/small"), "{removed:?}");
        drop(sandbox);
        disk.remove_layer();
    }
}

/// A bind that everybody may write to.
fn bound(disk: &Disk, change: impl FnOnce(&mut Builder)) -> (PathBuf, Sandbox) {
    let place = disk.scratch.dir("place", 0o777);
    let sandbox = common::sandbox(|b| {
        b.bind(&place, "/place").disk_max(LIMIT).state_dir(disk.state());
        change(b);
    });
    (place, sandbox)
}

#[test]
fn a_bind_is_full_at_the_limit_and_free_again() {
    let disk = disk!("a_bind_is_full_at_the_limit_and_free_again");
    let (place, sandbox) = bound(&disk, |b| _ = b.inodes_max(30));
    let below = act(&sandbox, "fill /place/f 3145728");
    assert_eq!(result(&below), (3 * MIB, 0));
    assert_eq!(hits(&below.outcome), (None, None));
    let over = act(&sandbox, "fill /place/g 8388608");
    assert_eq!(result(&over).1, disk.full());
    assert_eq!(hits(&over.outcome), (Some(1), None));
    assert_eq!(said(&act(&sandbox, "df /place").stdout, "df"), format!("{LIMIT} 30"));
    fs::remove_file(place.join("f")).unwrap();
    assert_eq!(result(&act(&sandbox, "files /place file 100")).1, disk.full());
    assert_eq!(disk.projects().len(), 1);
    assert_eq!(sandbox.close(), []);
    assert_eq!(disk.projects(), []);
    assert_eq!(Directory::open(&place).unwrap().tag().unwrap().project, 0);
    fs::write(place.join("more"), vec![0; 8 << 20]).unwrap();
}

/// Before Linux 6.17, and on ext4 and f2fs, the kernel never changes the project of a link, FIFO or socket: it stays with
/// them, and is named and lent to nobody, until they are gone.
#[test]
fn links_and_special_files_are_named_and_keep_their_project_until_they_are_gone() {
    let disk = disk!("links_and_special_files_are_named_and_keep_their_project_until_they_are_gone");
    let script = "cd /place && ln -s nowhere link && mkdir d && mkfifo d/fifo && echo x > d/file";
    let (place, sandbox) = bound(&disk, |_| {});
    let output = common::sh(&sandbox, script);
    assert!(output.outcome.success(), "{output:?}");
    let left = sandbox.close();
    let projects = disk.projects();
    assert_eq!(Directory::open(&place).unwrap().tag().unwrap().project, 0);
    assert_eq!(Directory::open(place.join("d")).unwrap().tag().unwrap().project, 0);
    fs::write(place.join("d/file"), vec![0; 8 << 20]).unwrap();
    fs::remove_file(place.join("d/file")).unwrap();
    if *disk.filesystem.kind() == Kind::Xfs && Kernel::running() >= Some(Kernel { major: 6, minor: 17 }) {
        assert!(left.is_empty() && projects.is_empty(), "{left:?} {projects:?}");
        return;
    }
    let named = |left: &[sandbox::Leftover]| {
        let [left] = left else { panic!("{left:?}") };
        assert_eq!(left.what, format!("project {}", projects[0]));
        assert!(left.why.starts_with("2 files of 0 bytes still bear it"), "{left}");
        left.why.clone()
    };
    assert_eq!(projects.len(), 1);
    let why = named(&left);
    assert!(why.contains("place/link: ") || why.contains("place/d/fifo: "), "{why}");
    let recovered = sandbox::recover(Some(&disk.state())).unwrap();
    assert_eq!(recovered.projects, []);
    named(&recovered.leftovers);

    // Another sandbox there is limited as the first was.
    let (_, next) = bound(&disk, |_| {});
    let (written, errno) = result(&act(&next, "fill /place/f 8388608"));
    assert_eq!(errno, disk.full());
    assert!((LIMIT - 65536..=LIMIT).contains(&written), "{written}");
    let rest = next.close();
    assert!(rest.is_empty(), "{rest:?}");
    assert_eq!(disk.projects(), projects);

    for path in ["link", "d/fifo"] {
        fs::remove_file(place.join(path)).unwrap();
    }
    let recovered = sandbox::recover(Some(&disk.state())).unwrap();
    assert_eq!((recovered.projects, recovered.leftovers), (projects, vec![]));
    assert_eq!(disk.projects(), []);
}

/// On XFS a new file is refused before the last block is taken. That is the limit, too.
#[test]
fn many_small_files_meet_the_limit() {
    let disk = disk!("many_small_files_meet_the_limit");
    let (_, sandbox) = bound(&disk, |_| {});
    let output = common::sh(&sandbox, "i=0; while printf %04096d 0 > /place/$i; do i=$((i+1)); done; echo $i");
    let made: u64 = text(&output).parse().unwrap();
    assert!((900..=LIMIT / 4096).contains(&made), "{made}");
    assert_eq!(hits(&output.outcome), (Some(1), None), "{:?}", output.outcome.usage);
}

/// Unprotected, the owner of a file takes it out of its project; inside a sandbox nobody does.
#[test]
fn case_48_a_program_cannot_leave_its_project() {
    let disk = disk!("case_48_a_program_cannot_leave_its_project");
    if !is_root() {
        return common::skip("case_48_a_program_cannot_leave_its_project", "root", "another user");
    }
    let (place, sandbox) = bound(&disk, |_| {});
    let own = place.join("own");
    fs::create_dir(&own).unwrap();
    std::os::unix::fs::chown(&own, Some(1000), Some(1000)).unwrap();
    let mut outside = common::unprotected(&format!("escape {}", own.display()));
    std::os::unix::process::CommandExt::uid(&mut outside, 1000);
    let output = outside.output().unwrap();
    assert_eq!(said(&output.stdout, "ioctl"), "0", "{output:?}");
    assert_eq!(said(&output.stdout, "made"), format!("{} 0", 8 * MIB), "unprotected, the limit is no boundary");
    fs::remove_dir_all(&own).unwrap();

    common::mode(&place, 0o777);
    let output = act(&sandbox, "escape /place");
    for key in ["ioctl", "flag", "by_name"] {
        let errno: i32 = said(&output.stdout, key).parse().unwrap();
        assert!([libc::EPERM, libc::EINVAL, libc::ENOSYS].contains(&errno), "{key}: {errno}");
    }
    let (written, errno) = result(&output);
    assert_eq!(errno, disk.full());
    assert!(written <= LIMIT, "{written}");
    // What is brought in counts, and what is moved about inside stays counted.
    fs::create_dir(disk.scratch.0.join("outside")).unwrap();
    fs::write(disk.scratch.0.join("outside/big"), vec![0; 8 << 20]).unwrap();
    let moved = fs::rename(disk.scratch.0.join("outside/big"), place.join("big")).unwrap_err();
    assert_eq!(moved.raw_os_error(), Some(libc::EXDEV));
    assert!(output.outcome.usage.disk_bytes.unwrap() <= LIMIT);
}

/// By fallocate, files without a name, holes of a mapping, attributes, and files that were deleted but are open.
#[test]
fn case_49_no_other_way_of_storing_goes_past_the_limit() {
    let disk = disk!("case_49_no_other_way_of_storing_goes_past_the_limit");
    let before = disk.free();
    for way in ["fallocate", "nameless", "mapping", "attributes", "deleted"] {
        let (place, sandbox) = bound(&disk, |_| {});
        let output = act(&sandbox, &format!("bypass {way} /place"));
        let used = output.outcome.usage.disk_bytes.unwrap();
        assert!(used <= LIMIT, "{way}: {used}");
        if way != "mapping" {
            let (made, errno) = result(&output);
            assert!([libc::ENOSPC, libc::EDQUOT].contains(&errno), "{way}: {errno}");
            assert!(made <= LIMIT, "{way}: {made}");
        } else {
            use std::os::unix::process::ExitStatusExt;
            assert_eq!(output.outcome.status.signal(), Some(libc::SIGBUS), "{output:?}");
        }
        drop(sandbox);
        fs::remove_dir_all(&place).unwrap();
    }
    common::eventually("the space is there again", || disk.free() + 2 * MIB > before);
}

/// Overlay and bind have one limit together.
#[test]
fn a_layer_and_a_bind_share_one_limit() {
    let disk = disk!("a_layer_and_a_bind_share_one_limit");
    let place = disk.scratch.dir("place", 0o777);
    let sandbox = disk.overlay(|b| _ = b.bind(&place, "/place").disk_max(LIMIT));
    assert_eq!(result(&act(&sandbox, "fill /place/f 3145728")), (3 * MIB, 0));
    let (written, errno) = result(&act(&sandbox, "fill /f 8388608"));
    assert_eq!(errno, disk.full());
    assert!(written <= MIB, "{written}");
    assert_eq!(sandbox.close(), []);
    assert_eq!(Directory::open(&place).unwrap().tag().unwrap().project, 0, "the bind has left");
    assert_ne!(Directory::open(disk.layer()).unwrap().tag().unwrap().project, 0, "the layer stays");
    disk.remove_layer();
}

/// A host program that is killed leaves its project to be recovered; what lives is not touched.
#[test]
fn a_killed_owner_is_recovered_from() {
    let disk = disk!("a_killed_owner_is_recovered_from");
    let (live, sandbox) = bound(&disk, |_| {});
    let place = disk.scratch.dir("dead", 0o777);
    let turns: u64 = if common::is_guest() { 3 } else { 10 };
    for turn in 0..turns {
        let mut owner = common::unprotected(&format!("own {} {}", place.display(), disk.state().display()));
        let mut owner = owner.stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(20 + turn * 70));
        owner.kill().unwrap();
        owner.wait().unwrap();
        common::eventually("the dead owner's project is free", || {
            sandbox::recover(Some(&disk.state())).unwrap();
            Directory::open(&place).unwrap().tag().unwrap().project == 0 && disk.projects().len() == 1
        });
    }
    assert_eq!(result(&act(&sandbox, "fill /place/f 8388608")).1, disk.full(), "the living is limited still");
    assert_ne!(Directory::open(&live).unwrap().tag().unwrap().project, 0);
    assert_eq!(sandbox.close(), []);
    assert_eq!(disk.projects(), []);
}
