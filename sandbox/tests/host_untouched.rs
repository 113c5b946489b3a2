//! The program that uses the library is left as it was: 1,000 sandboxes from eight threads change nothing of it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]
#![allow(unsafe_code, reason = "one allocator that counts, and two questions to the kernel")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::children;
use sandbox::Stdio;

/// Tests that look at the whole process do it one after the other.
static ALONE: Mutex<()> = Mutex::new(());

/// Counts what is allocated or freed by another process in this memory: a child between clone and exec.
struct Tripwire;

static OWNER: AtomicU32 = AtomicU32::new(0);
static TRIPPED: AtomicUsize = AtomicUsize::new(0);

fn trip() {
    let owner = OWNER.load(Ordering::Relaxed);
    if owner != 0 && owner != std::process::id() {
        TRIPPED.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: hands everything through to the system's allocator.
unsafe impl GlobalAlloc for Tripwire {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        trip();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        trip();
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Tripwire = Tripwire;

#[test]
fn payload() {
    common::acts::run(&[]);
}

/// All that a sandbox could leave changed in this process or in the calling thread.
fn snapshot() -> BTreeMap<&'static str, String> {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    let keys = [
        "Uid",
        "Gid",
        "Groups",
        "Umask",
        "NoNewPrivs",
        "Seccomp",
        "CapInh",
        "CapPrm",
        "CapEff",
        "CapBnd",
        "CapAmb",
        "SigBlk",
        "SigIgn",
        "SigCgt",
        "Cpus_allowed_list",
    ];
    let mut found: BTreeMap<_, _> = keys.into_iter().map(|key| (key, common::field(&status, key))).collect();
    let namespaces = ["user", "pid", "pid_for_children", "mnt", "net", "ipc", "uts", "cgroup"];
    for name in namespaces {
        let link = fs::read_link(format!("/proc/thread-self/ns/{name}")).unwrap_or_default();
        found.insert(name, link.display().to_string());
    }
    let read = |name: &str| fs::read_to_string(format!("/proc/thread-self/{name}")).unwrap_or_default();
    found.insert("cwd", std::env::current_dir().unwrap().display().to_string());
    found.insert("root", fs::read_link("/proc/thread-self/root").unwrap().display().to_string());
    found.insert("limits", read("limits"));
    found.insert("personality", read("personality"));
    found.insert("cgroups", read("cgroup"));
    found.insert("mounts", read("mountinfo"));
    found.insert("environment", format!("{:?}", std::env::vars_os().collect::<Vec<_>>()));
    // SAFETY: asks only.
    found.insert("dumpable", unsafe { libc::prctl(libc::PR_GET_DUMPABLE) }.to_string());
    // SAFETY: asks for the session keyring's number (KEYCTL_GET_KEYRING_ID), makes none.
    found.insert("keyring", unsafe { libc::syscall(libc::SYS_keyctl, 0, -3, 0) }.to_string());
    found
}

/// Their targets; those of epoll, pipes and the like by kind, those of waiting instances without the numbers in names.
fn fds() -> Vec<String> {
    let entries = fs::read_dir("/proc/self/fd").unwrap().flatten();
    let target = |entry: fs::DirEntry| fs::read_link(entry.path()).ok().map(|to| to.display().to_string());
    let kind = |to: String| to.chars().filter(|letter| !letter.is_ascii_digit()).collect();
    let mut found: Vec<_> = entries.filter_map(target).map(kind).filter(|to: &String| !to.contains("/proc/")).collect();
    found.sort();
    found
}

/// The same, when what was begun in the background is done: a burial, and parts for the next start.
fn fds_at_rest() -> Vec<String> {
    let mut last = fds();
    loop {
        std::thread::sleep(Duration::from_millis(200));
        let now = fds();
        if now == last {
            return now;
        }
        last = now;
    }
}

#[test]
fn case_70_a_thousand_sandboxes_from_eight_threads_change_nothing() {
    let _alone = ALONE.lock().unwrap();
    let sandbox = common::sandbox(|_| {});
    let run = |sandbox: &sandbox::Sandbox| {
        let mut command = sandbox.command("/bin/true");
        command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap()
    };
    assert!(run(&sandbox).success());
    let settled = || {
        let pool = sandbox.pool_stats();
        pool.ready == pool.target && children().len() == pool.ready
    };
    common::eventually("the first is taken down", settled);
    let (before, fds_before) = (snapshot(), fds_at_rest());

    // As many as the machine does in a minute, but not less than a hundred; a tenth of it in a guest.
    let part = if common::is_guest() { 10 } else { 1 };
    let (least, until) = (100 / part, Instant::now() + Duration::from_secs(60) / u32::try_from(part).unwrap());
    let left = AtomicUsize::new(1000 / part);
    let done = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mine = snapshot();
                while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                    assert!(run(&sandbox).success());
                    let done = done.fetch_add(1, Ordering::Relaxed);
                    if done >= least && Instant::now() > until {
                        break;
                    }
                }
                assert_eq!(snapshot(), mine, "a thread that started sandboxes");
            });
        }
    });
    let done = done.into_inner();
    assert!(done >= least && (common::is_guest() || done >= 1000 || Instant::now() >= until), "{done}");
    common::eventually("all are taken down", settled);
    assert_eq!(snapshot(), before);
    assert_eq!(fds_at_rest(), fds_before, "as many after call {done} as after call 1");
    assert_eq!(sandbox.close(), []);
    assert_eq!(rustix::process::wait(rustix::process::WaitOptions::NOHANG).unwrap_err(), rustix::io::Errno::CHILD);
    common::nothing_is_left_of(std::process::id());
}

#[test]
fn case_71_nothing_is_allocated_between_clone_and_exec() {
    let _alone = ALONE.lock().unwrap();
    let sandbox = common::sandbox(|b| _ = b.bind_read_only("/usr", "/tmp/usr"));
    OWNER.store(std::process::id(), Ordering::Relaxed);
    for _ in 0..20 {
        assert!(sandbox.command("/bin/true").status().unwrap().success());
        sandbox.command("/no/such/program").status().unwrap_err();
    }
    let rebuilt = common::sandbox(|_| {});
    assert!(rebuilt.command("/bin/true").status().unwrap().success());
    OWNER.store(0, Ordering::Relaxed);
    assert_eq!(TRIPPED.load(Ordering::Relaxed), 0);
}

#[test]
fn case_72_other_threads_may_hold_any_lock() {
    let _alone = ALONE.lock().unwrap();
    let sandbox = common::sandbox(|_| {});
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let lines: Vec<String> = (0..100).map(|n| format!("{n}")).collect();
                    std::hint::black_box(lines);
                    std::hint::black_box(std::env::var("PATH").ok());
                    drop(std::io::stdout().lock());
                    std::thread::yield_now();
                }
            });
        }
        for _ in 0..50 {
            assert!(sandbox.command("/bin/true").status().unwrap().success());
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_child_killed_in_its_set_up_is_an_error_in_time() {
    let _alone = ALONE.lock().unwrap();
    // Memory so small that neither the set-up nor init survives in it.
    let built = common::build(|b| _ = b.memory_max(64 << 10));
    let Ok(sandbox) = built else { return };
    let started = Instant::now();
    let result = sandbox.command("/bin/true").status();
    assert!(started.elapsed() < common::SOON, "{result:?}");
    if let Ok(outcome) = result {
        assert_eq!(outcome.end, sandbox::End::Memory, "{outcome:#?}");
    }
    assert_eq!(sandbox.close(), []);
    common::nothing_is_left_of(std::process::id());
}
