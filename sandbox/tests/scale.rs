//! Many sandboxes at the same time, and many one after another.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::{cgroups_of, children, eventually, is_guest};
use sandbox::{Child, Command, Feature, Resource, Sandbox, Stdio};

/// What is counted is counted of the whole process, so one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Nothing is left to be taken down.
fn is_clean() -> bool {
    // Asking is work, too: not as often as can be.
    std::thread::sleep(Duration::from_millis(200));
    children().is_empty()
}

#[test]
fn payload() {
    common::acts::run(&[]);
}

fn fds() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// As many descriptors as this process may have.
fn raise_nofile() -> u64 {
    let hard = sandbox::rlimit::get(Resource::Nofile).hard.value();
    let limits = rustix::process::Rlimit { current: hard, maximum: hard };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limits).unwrap();
    hard.unwrap_or(u64::MAX)
}

fn silent(mut command: Command) -> Command {
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// With every kind of limit, which is what descriptors are held for.
fn limited() -> Sandbox {
    common::sandbox(|b| {
        b.prepared(0).memory_max(64 << 20).pids_max(16).cpu_max(Duration::from_millis(50), Duration::from_millis(100));
        for feature in [Feature::MemoryMax, Feature::MemorySwapMax, Feature::PidsMax, Feature::CpuMax] {
            b.prefer(feature);
        }
    })
}

fn sleeper(sandbox: &Sandbox) -> Child {
    let mut command = silent(sandbox.command("/bin/sleep"));
    command.arg("1000").spawn().unwrap()
}

/// The median of how long a start takes; each is dropped again.
fn start_time(sandbox: &Sandbox) -> Duration {
    let mut times: Vec<_> = (0..21)
        .map(|_| {
            let started = Instant::now();
            drop(sleeper(sandbox));
            let took = started.elapsed();
            std::thread::sleep(Duration::from_millis(5));
            took
        })
        .collect();
    times.sort();
    times[times.len() / 2]
}

/// `SANDBOX_TEST_LONG=1`: minutes, and a machine that does nothing else, for measuring what lasts.
fn is_long() -> bool {
    std::env::var("SANDBOX_TEST_LONG").as_deref() == Ok("1")
}

/// 200; a thousand in the long run, which also asks what a start costs beside them.
#[test]
fn many_at_the_same_time() {
    let _alone = alone();
    let live = match (is_long(), is_guest()) {
        (true, _) => 1000,
        (false, false) => 200,
        (false, true) => 40,
    };
    let most_fds = 12;
    let room = raise_nofile();
    require!(
        "many_at_the_same_time",
        room > live * most_fds + 1000,
        "a hard limit with room for all their descriptors",
        room
    );
    let sandbox = limited();
    let first = start_time(&sandbox);
    eventually("the first are taken down", is_clean);
    let before = fds();
    let held: Vec<_> = (0..live).map(|_| sleeper(&sandbox)).collect();
    let each = (fds() - before).div_ceil(held.len());
    // A busy machine may be slow for a while, not each time.
    let mut last = start_time(&sandbox);
    for _ in 0..3 {
        if last * 2 > first * 3 {
            last = last.min(start_time(&sandbox));
        }
    }
    assert!(u64::try_from(each).unwrap() <= most_fds, "{each} descriptors each");
    drop(held);
    eventually("all are taken down", is_clean);
    // The machine may have become slower meanwhile by what others do.
    let again = start_time(&sandbox);
    println!(
        "{live} live: {each} descriptors each; a start takes {first:?}, beside them {last:?}, afterwards {again:?}"
    );
    assert!(!is_long() || last * 2 <= first.max(again) * 3, "{first:?} and {again:?}, beside {live} {last:?}");
    assert_eq!(sandbox.close(), []);
}

/// What could grow.
#[derive(Debug)]
struct Footprint {
    resident: u64,
    fds: usize,
    mounts: usize,
    cgroups: usize,
    /// Of the whole machine.
    slab: u64,
}

/// A line of `/proc/FILE` in kB, in bytes.
fn bytes(file: &str, key: &str) -> u64 {
    let text = fs::read_to_string(file).unwrap();
    common::field(&text, key).trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

fn footprint() -> Footprint {
    Footprint {
        resident: bytes("/proc/self/status", "VmRSS"),
        fds: fds(),
        mounts: fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count(),
        cgroups: cgroups_of(std::process::id()).len(),
        slab: bytes("/proc/meminfo", "Slab"),
    }
}

/// 500; 10,000 in the long run, which also asks for the slab.
#[test]
fn hundreds_one_after_another_leave_the_host_as_it_was() {
    const MIB: u64 = 1 << 20;
    let _alone = alone();
    let long = is_long();
    let times = if long {
        10_000
    } else if is_guest() {
        50
    } else {
        500
    };
    let run = |sandbox: &Sandbox| assert!(silent(sandbox.command("/bin/true")).status().unwrap().success());
    let first = limited();
    (0..50).for_each(|_| run(&first));
    assert_eq!(first.close(), []);
    let before = footprint();
    let sandbox = limited();
    let started = Instant::now();
    (0..times).for_each(|_| run(&sandbox));
    let took = started.elapsed();
    assert_eq!(sandbox.close(), []);
    let ended = Instant::now();
    let back = |now: &Footprint| {
        let same = (now.fds, now.mounts, now.cgroups) == (before.fds, before.mounts, before.cgroups);
        // Others work on this machine, too, so its slab is asked for only by the long run.
        same && now.resident <= before.resident + MIB && (!long || now.slab <= before.slab + 16 * MIB)
    };
    let mut after = footprint();
    while !back(&after) && (is_guest() || ended.elapsed() < Duration::from_secs(5)) {
        assert!(ended.elapsed() < common::SOON, "{before:?} {after:?}");
        std::thread::sleep(Duration::from_millis(100));
        after = footprint();
    }
    println!("{times} in {took:?}: {before:?}, {:?} later {after:?}", ended.elapsed());
    assert!(back(&after), "{before:?} {after:?}");
}
