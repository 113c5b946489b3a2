//! Disk limits by an image of the sandbox's own: how much fits, who sees it, and that nothing of it is left.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use common::acts::disk::{hits, result};
use common::acts::{self, Act};
use common::{Scratch, act, build_overlay, is_root, said, sh, text};
use sandbox::{Builder, DiskImage, End, Error, ErrorKind, Feature, Output, Sandbox, Upper};

const MIB: u64 = 1 << 20;
const LIMIT: u64 = 8 * MIB;

#[test]
fn payload() {
    acts::run(ACTS);
}

const ACTS: &[Act] = &[
    ("fill", acts::disk::fill),
    ("files", acts::disk::files),
    ("df", acts::disk::df),
    ("bypass", acts::disk::bypass),
    ("own", own),
    ("refused", refused),
];

/// `refused STATE`: says why there is no image here.
fn refused(words: &[&str]) {
    let error = Sandbox::builder().disk_image("/data", DiskImage::Ext4).disk_max(LIMIT).state_dir(words[0]).build();
    acts::say("refused", error.map_or_else(|error| error.to_string(), |_| "no".to_owned()));
}

/// `own STATE`: a host program that holds images, until it is killed.
fn own(words: &[&str]) {
    let sandbox = image(Path::new(words[0]), DiskImage::Ext4, LIMIT, |b| _ = b.prepared(1)).unwrap();
    let _child = common::sleeper(&sandbox);
    acts::say("ready", "yes");
    common::eventually("killed", || false);
}

/// Where images can be: the usual place may lie on a guest's read-only root.
fn state(name: &str) -> Scratch {
    match common::test_disk() {
        disk if is_root() && disk.is_dir() => Scratch::on(&disk, name),
        _ => Scratch::new(name),
    }
}

/// A sandbox with an image at `/data`.
fn image(state: &Path, filesystem: DiskImage, bytes: u64, change: impl FnOnce(&mut Builder)) -> Result<Sandbox, Error> {
    common::build(|b| {
        b.disk_image("/data", filesystem).disk_max(bytes).state_dir(state);
        change(b);
    })
}

macro_rules! image_or_skip {
    ($name:literal, $state:expr, $filesystem:expr, $bytes:expr, $change:expr) => {
        match image(&$state.0, $filesystem, $bytes, $change) {
            Err(error @ Error::Unsupported { .. }) => {
                return common::skip($name, "images on loop devices", &error.to_string());
            }
            built => built.unwrap(),
        }
    };
}

fn did(sandbox: &Sandbox, what: &str) -> Output {
    act(sandbox, what).output().unwrap()
}

/// The limit that was asked for, or up to 4 % more.
fn about(bytes: u64, limit: u64) -> bool {
    (limit..=limit + limit / 25).contains(&bytes)
}

/// The files behind loop devices, of those that lie below `directory`.
fn loops(directory: &Path) -> Vec<PathBuf> {
    let devices = fs::read_dir("/sys/block").unwrap().flatten();
    let files = devices.filter_map(|device| fs::read_to_string(device.path().join("loop/backing_file")).ok());
    files.map(|file| PathBuf::from(file.trim_end())).filter(|file| file.starts_with(directory)).collect()
}

fn nothing_is_left(state: &Path) {
    common::eventually("the loop devices are free", || loops(state).is_empty());
    assert_eq!(fs::read_dir(state.join("images")).unwrap().count(), 0);
}

#[test]
fn an_image_is_full_at_the_limit_and_fresh_each_time() {
    let state = state("full");
    let sandbox =
        image_or_skip!("an_image_is_full_at_the_limit_and_fresh_each_time", state, DiskImage::Ext4, LIMIT, |_| {});
    let entry = sandbox.plan().feature(Feature::DiskMax).unwrap();
    assert!(about(entry.enforced.unwrap(), LIMIT), "{entry:?}");
    assert!(entry.by.as_deref().unwrap().contains("ext4 image"), "{entry:?}");

    let below = did(&sandbox, "fill /data/f 6291456");
    assert_eq!(result(&below), (6 * MIB, 0));
    assert_eq!(hits(&below.outcome), (None, None));
    let used = below.outcome.usage.disk_bytes.unwrap();
    assert!((6 * MIB..6 * MIB + 65536).contains(&used), "{used}");
    assert_eq!(below.outcome.usage.inodes, Some(1));

    let over = did(&sandbox, "fill /data/f 33554432");
    let (written, errno) = result(&over);
    assert_eq!(errno, libc::ENOSPC);
    assert!(about(written, LIMIT), "{written}");
    assert_eq!(hits(&over.outcome), (Some(1), None));

    let df = said(&did(&sandbox, "df /data").stdout, "df");
    let size: u64 = df.split_once(' ').unwrap().0.parse().unwrap();
    assert!((LIMIT..=LIMIT + LIMIT / 12).contains(&size), "df shows about the limit: {df}");
    let seen = text(&sh(&sandbox, "ls -A /data; ls -d /dev/loop*; grep /data /proc/self/mounts"));
    let [mount] = seen.lines().collect::<Vec<_>>()[..] else { panic!("no file, no device: {seen}") };
    assert!(mount.contains("nosuid") && mount.contains("nodev"), "{mount}");
    assert_eq!(sandbox.close(), []);
    nothing_is_left(&state.0);
}

#[test]
fn xfs_is_full_at_the_limit() {
    let state = state("xfs");
    let limit = 280 * MIB;
    let sandbox = image_or_skip!("xfs_is_full_at_the_limit", state, DiskImage::Xfs, limit, |_| {});
    let below = did(&sandbox, "fill /data/f 8388608");
    assert_eq!(result(&below), (8 * MIB, 0));
    assert_eq!(hits(&below.outcome), (None, None));
    let used = below.outcome.usage.disk_bytes.unwrap();
    assert!((8 * MIB..9 * MIB).contains(&used), "{used}");
    let df = said(&did(&sandbox, "df /data").stdout, "df");
    let size: u64 = df.split_once(' ').unwrap().0.parse().unwrap();
    assert!((limit..limit + limit / 8).contains(&size), "df shows about the limit: {df}");
    // A guest may have no room for all of it.
    if !common::is_guest() {
        let over = did(&sandbox, &format!("fill /data/f {}", 2 * limit));
        let (written, errno) = result(&over);
        assert_eq!(errno, libc::ENOSPC);
        assert!(about(written, limit), "{written}");
        assert_eq!(hits(&over.outcome), (Some(1), None));
    }
    let small = image(&state.0, DiskImage::Xfs, 16 * MIB, |_| {}).unwrap_err();
    assert_eq!(small.kind(), ErrorKind::Unsupported);
    assert!(small.to_string().contains("smallest image"), "{small}");
    assert_eq!(sandbox.close(), []);
    nothing_is_left(&state.0);
}

#[test]
fn case_65_a_bomb_of_files_stays_on_its_image() {
    let state = state("bomb");
    let sandbox = image_or_skip!("case_65_a_bomb_of_files_stays_on_its_image", state, DiskImage::Ext4, LIMIT, |b| _ =
        b.inodes_max(200));
    let entry = sandbox.plan().feature(Feature::InodesMax).unwrap();
    assert!((200..=216).contains(&entry.enforced.unwrap()), "{entry:?}");
    for kind in ["file", "directory", "link"] {
        let below = did(&sandbox, &format!("files /data/{kind}s {kind} 190"));
        assert_eq!(result(&below), (190, 0), "{kind}");
        assert_eq!(hits(&below.outcome), (None, None));
        let output = did(&sandbox, &format!("files /data/{kind}s {kind} 1000"));
        let (made, errno) = result(&output);
        assert_eq!(errno, libc::ENOSPC, "{kind}");
        assert!((199..216).contains(&made), "{kind}: {made}");
        assert_eq!(hits(&output.outcome), (None, Some(1)), "{kind}");
        assert_eq!(output.outcome.usage.inodes, Some(made + 1), "{kind}");
    }
    // 16 files in each 128 MiB are the least.
    let many = image(&state.0, DiskImage::Ext4, 2 << 30, |b| _ = b.inodes_max(20)).unwrap_err();
    assert_eq!(many.kind(), ErrorKind::Unsupported);
    assert!(many.to_string().contains("room for"), "{many}");
}

/// By fallocate, files without a name, holes of a mapping, attributes, and files that were deleted but are open.
#[test]
fn case_49_no_other_way_of_storing_goes_past_the_image() {
    let state = state("ways");
    let sandbox =
        image_or_skip!("case_49_no_other_way_of_storing_goes_past_the_image", state, DiskImage::Ext4, LIMIT, |_| {});
    for way in ["fallocate", "nameless", "mapping", "attributes", "deleted"] {
        let output = did(&sandbox, &format!("bypass {way} /data"));
        if way == "mapping" {
            assert_eq!(output.outcome.status.signal(), Some(libc::SIGBUS), "{output:?}");
        } else {
            let (made, errno) = result(&output);
            assert_eq!(errno, libc::ENOSPC, "{way}");
            assert!(made <= LIMIT + LIMIT / 25, "{way}: {made}");
        }
        let used = output.outcome.usage.disk_bytes.unwrap();
        assert!(used <= LIMIT + LIMIT / 12, "{way}: {used}");
    }
}

#[test]
fn an_overlay_keeps_its_changes_on_an_image() {
    let state = state("layer");
    let lower = state.dir("image", 0o755);
    fs::write(lower.join("big"), vec![1; 12 << 20]).unwrap();
    state.file("image/small", "small\n", 0o666);
    let built = build_overlay(&lower, Upper::DiskImage(DiskImage::Ext4), |b| {
        b.disk_max(LIMIT).inodes_max(200).state_dir(&state.0);
    });
    let sandbox = match built {
        Err(error @ Error::Unsupported { .. }) => {
            let name = "an_overlay_keeps_its_changes_on_an_image";
            return common::skip(name, "images on loop devices", &error.to_string());
        }
        built => built.unwrap(),
    };
    let entry = sandbox.plan().feature(Feature::Overlay).unwrap();
    assert!(entry.by.as_deref().unwrap().contains("image"), "{entry:?}");
    assert!(sandbox.plan().feature(Feature::DiskMax).unwrap().by.as_deref().unwrap().contains("image"));

    let changed = sh(&sandbox, "echo more >> /small; cat /small; rm /big && ls /big; mkdir /made; stat -c %u:%g /made");
    assert_eq!(text(&changed), "small\nmore\n0:0", "{changed:?}");
    assert!(changed.outcome.usage.disk_bytes.unwrap() < MIB, "the image below is free: {:?}", changed.outcome.usage);
    assert_eq!(text(&sh(&sandbox, "cat /small; ls /big")), "small\n/big", "each start has a fresh layer");

    let over = did(&sandbox, "fill /f 33554432");
    let (written, errno) = result(&over);
    assert_eq!(errno, libc::ENOSPC);
    assert!(about(written, LIMIT), "{written}");
    assert_eq!(hits(&over.outcome), (Some(1), None));
    let (made, errno) = result(&did(&sandbox, "files /more file 1000"));
    assert_eq!(errno, libc::ENOSPC);
    assert!((180..216).contains(&made), "{made}");
    assert_eq!(fs::read(lower.join("small")).unwrap(), b"small\n");
    assert_eq!(sandbox.close(), []);
    nothing_is_left(&state.0);
}

/// Its pages are written and go: the device must not keep copies of them at the program's cost.
#[test]
fn more_can_be_stored_than_memory_holds() {
    let state = state("memory");
    let change = |b: &mut Builder| _ = b.memory_max(48 * MIB).prefer(Feature::MemoryMax);
    let name = "more_can_be_stored_than_memory_holds";
    let sandbox = image_or_skip!("more_can_be_stored_than_memory_holds", state, DiskImage::Ext4, 160 * MIB, change);
    if sandbox.plan().feature(Feature::MemoryMax).is_none_or(|entry| entry.enforced.is_none()) {
        return common::skip(name, "a memory cgroup", "none");
    }
    let output = did(&sandbox, "fill /data/f 150000000");
    assert_eq!(output.outcome.end, End::Exited, "{output:?}");
    assert!(result(&output).0 >= 150_000_000, "{output:?}");
}

#[test]
fn programs_of_an_instance_share_its_image() {
    let state = state("instance");
    let sandbox =
        image_or_skip!("programs_of_an_instance_share_its_image", state, DiskImage::Ext4, LIMIT, |b| _ = b.prepared(0));
    let instance = sandbox.start().unwrap();
    let other = sandbox.start().unwrap();
    let fill = |bytes: u64| common::acting(instance.command("/payload"), &format!("fill /data/f {bytes}"));
    assert_eq!(result(&fill(6 * MIB).output().unwrap()), (6 * MIB, 0));
    assert!(instance.usage().unwrap().disk_bytes.unwrap() >= 6 * MIB);
    let over = fill(6 * MIB).output().unwrap();
    assert_eq!(result(&over).1, libc::ENOSPC, "what the first program wrote is still there");
    assert_eq!(hits(&over.outcome), (Some(1), None));
    assert_eq!(other.usage().unwrap().disk_bytes, Some(0), "another instance has another image");
    assert_eq!(loops(&state.0).len(), 2);
    drop((instance, other));
    assert_eq!(sandbox.close(), []);
    nothing_is_left(&state.0);
}

#[test]
fn twenty_in_a_row_and_a_pool_leave_no_device() {
    let state = state("row");
    let sandbox = image_or_skip!("twenty_in_a_row_and_a_pool_leave_no_device", state, DiskImage::Ext4, LIMIT, |_| {});
    for _ in 0..20 {
        assert_eq!(text(&sh(&sandbox, "ls -A /data; echo x > /data/x; cat /data/x")), "x");
    }
    assert!(loops(&state.0).len() < 10, "they go as fast as they come: {:?}", loops(&state.0));
    assert_eq!(sandbox.close(), []);
    nothing_is_left(&state.0);

    let pool = image(&state.0, DiskImage::Ext4, LIMIT, |b| _ = b.prepared(3)).unwrap();
    common::eventually("three wait", || pool.pool_stats().ready == 3);
    assert_eq!(loops(&state.0).len(), 3, "each that waits has one");
    for _ in 0..5 {
        assert_eq!(text(&sh(&pool, "ls -A /data; echo x > /data/x; cat /data/x")), "x");
    }
    assert_eq!(pool.close(), []);
    nothing_is_left(&state.0);
}

#[test]
fn a_killed_host_leaves_no_device_and_no_file() {
    use std::io::{BufRead, BufReader};
    let state = state("killed");
    drop(image_or_skip!("a_killed_host_leaves_no_device_and_no_file", state, DiskImage::Ext4, LIMIT, |_| {}));
    let host = || common::unprotected(&format!("own {}", state.0.display())).stdout(Stdio::piped()).spawn().unwrap();
    let mut ready = host();
    let mut lines = BufReader::new(ready.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "ready yes"));
    assert!(!loops(&state.0).is_empty());
    ready.kill().unwrap();
    ready.wait().unwrap();
    nothing_is_left(&state.0);
    // At any other moment, that of mkfs included.
    for turn in 0..if common::is_guest() { 3 } else { 10 } {
        let mut early = host();
        std::thread::sleep(Duration::from_millis(4 + turn * 7));
        early.kill().unwrap();
        early.wait().unwrap();
        nothing_is_left(&state.0);
    }
}

#[test]
fn what_an_image_lacks_is_named() {
    let state = state("lacks");
    drop(image_or_skip!("what_an_image_lacks_is_named", state, DiskImage::Ext4, LIMIT, |_| {}));
    let act = common::unprotected(&format!("refused {}", state.0.display()));
    for (hide, words) in [
        ("/dev", ["/dev/loop-control: No such file", "modprobe loop"]),
        ("/usr/sbin /sbin", ["mkfs.ext4: No such file", "e2fsprogs"]),
        (&*state.0.join("images").to_string_lossy(), ["No space left", "images lie in"]),
    ] {
        let script =
            format!("for place in {hide}; do mount -t tmpfs -o size=4k,mode=755 none $place; done; \"$0\" \"$@\"");
        let mut command = std::process::Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script]).arg(act.get_program()).args(act.get_args());
        command.envs(act.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let output = command.output().unwrap();
        let why = said(&output.stdout, "refused");
        assert!(words.iter().all(|word| why.contains(word)), "{hide}: {why}");
    }
    nothing_is_left(&state.0);
}

/// Whoever writes where images lie could put a file system of their own making there.
#[test]
fn images_lie_where_nobody_else_writes() {
    let state = state("shared");
    drop(image_or_skip!("images_lie_where_nobody_else_writes", state, DiskImage::Ext4, LIMIT, |_| {}));
    let images = state.0.join("images");
    let mode = |mode| fs::set_permissions(&images, fs::Permissions::from_mode(mode)).unwrap();
    assert_eq!(fs::metadata(&images).unwrap().permissions().mode() & 0o777, 0o700);
    mode(0o770);
    let refused = image(&state.0, DiskImage::Ext4, LIMIT, |_| {}).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    assert!(refused.to_string().contains("mode 770, so others may write there"), "{refused}");
    mode(0o755);
    std::os::unix::fs::chown(&images, Some(1), None).unwrap();
    let refused = image(&state.0, DiskImage::Ext4, LIMIT, |_| {}).unwrap_err();
    assert!(refused.to_string().contains("is of user 1"), "{refused}");
    // What was opened before is used on, whatever is there by then.
    std::os::unix::fs::chown(&images, Some(0), None).unwrap();
    let sandbox = image(&state.0, DiskImage::Ext4, LIMIT, |b| _ = b.prepared(0)).unwrap();
    fs::rename(&images, state.0.join("moved")).unwrap();
    std::os::unix::fs::symlink("/proc", &images).unwrap();
    assert_eq!(text(&sh(&sandbox, "echo x > /data/x; cat /data/x")), "x");
}

#[test]
fn who_cannot_have_an_image_hears_why() {
    let state = state("refused");
    if !is_root() {
        let error = image(&state.0, DiskImage::Ext4, LIMIT, |_| {}).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        let words = error.to_string();
        for word in ["disk_max", "host root", "run as root", "project quota"] {
            assert!(words.contains(word), "{words}");
        }
    }
    // Preferred, memory of the same size stands in; so small an XFS nobody can make.
    let sandbox = image(&state.0, DiskImage::Xfs, LIMIT, |b| _ = b.prefer(Feature::DiskMax)).unwrap();
    let entry = sandbox.plan().feature(Feature::DiskMax).unwrap();
    assert_eq!(entry.enforced, Some(LIMIT));
    assert!(entry.by.as_deref().unwrap().contains("tmpfs") && entry.why_not.is_some(), "{entry:?}");
    let over = did(&sandbox, "fill /data/f 33554432");
    assert_eq!(result(&over), (LIMIT, libc::ENOSPC));
    assert_eq!(hits(&over.outcome), (Some(1), None));
    assert_eq!(over.outcome.usage.disk_bytes, Some(LIMIT));
}
