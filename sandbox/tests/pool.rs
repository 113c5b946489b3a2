//! Instances that wait: how many, until when, and for whom.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use std::fs;
use std::sync::{Barrier, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::acts::Act;
use common::{eventually, sh, text};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use sandbox::rlimit::Limit;
use sandbox::{PoolStats, Resource, Sandbox};

const ACTS: &[Act] = &[("quiet", |_| quiet())];

#[test]
fn payload() {
    common::acts::run(ACTS);
}

/// What is counted is counted of the whole process, so one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn pool(instances: usize) -> Sandbox {
    common::sandbox(|b| _ = b.prepared(instances))
}

/// Waits until so many are ready and no more are wanted.
fn full(sandbox: &Sandbox, instances: usize) {
    eventually(&format!("{instances} are ready"), || {
        let PoolStats { ready, target, .. } = sandbox.pool_stats();
        (ready, target) == (instances, instances)
    });
}

/// Children of this process, but the one that is the other half of a test.
fn inits() -> Vec<String> {
    let other = format!("({})", fs::read_to_string("/proc/self/comm").unwrap().trim());
    common::children().into_iter().filter(|child| !child.contains(&other)).collect()
}

fn threads(name: &str) -> usize {
    let names = fs::read_dir("/proc/self/task").unwrap().flatten();
    names.filter(|task| fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim() == name)).count()
}

fn run(sandbox: &Sandbox) {
    assert!(sandbox.command("/bin/true").status().unwrap().success());
}

#[test]
fn without_a_need_nothing_is_made() {
    let _alone = alone();
    eventually("no other pool is left", || threads("sandbox-pool") == 0);
    let sandbox = pool(0);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!((threads("sandbox-pool"), inits()), (0, vec![]));
    assert!(common::cgroups_of(std::process::id()).is_empty());
    run(&sandbox);
    assert_eq!((threads("sandbox-pool"), sandbox.pool_stats()), (0, PoolStats::default()));
    assert_eq!(sandbox.close(), []);
}

#[test]
fn threads_of_its_own_fill_it_and_each_instance_is_used_once() {
    let _alone = alone();
    eventually("no other pool is left", || threads("sandbox-pool") == 0);
    let sandbox = pool(4);
    full(&sandbox, 4);
    let cpus = std::thread::available_parallelism().unwrap().get();
    assert_eq!(threads("sandbox-pool"), (cpus - 1).clamp(1, 4), "one CPU is left to the callers");
    for _ in 0..6 {
        full(&sandbox, 4);
        // The first program after init, and no file of another.
        let output = sh(&sandbox, "echo $$; ls -A /tmp /dev/shm | grep mark; touch /tmp/mark /dev/shm/mark");
        assert_eq!(text(&output), "2", "{output:?}");
    }
    let PoolStats { hits, misses, stale, .. } = sandbox.pool_stats();
    assert_eq!((hits, misses, stale), (6, 0, 0));
    assert_eq!(sandbox.close(), []);
    eventually("its threads end with it", || threads("sandbox-pool") == 0);
    common::nothing_is_left_of(std::process::id());
}

#[test]
fn a_burst_is_served_before_anything_is_made_or_buried() {
    let _alone = alone();
    let sandbox = pool(12);
    // On a busy machine a run alone can take longer than the pause that the pool waits for.
    let undisturbed = (0..10).any(|_| {
        full(&sandbox, 12);
        for _ in 0..8 {
            run(&sandbox);
            // All together are longer than what has ended is left alone anyway.
            std::thread::sleep(Duration::from_millis(2));
        }
        (sandbox.pool_stats().ready, inits().len()) == (4, 12)
    });
    assert!(undisturbed || common::is_guest());
    full(&sandbox, 12);
    eventually("the ended have been buried", || inits().len() == 12);
    assert_eq!(sandbox.close(), []);
}

#[test]
fn whom_no_instance_waits_for_starts_its_own_and_the_pool_fills_up_again() {
    let _alone = alone();
    let sandbox = pool(1);
    full(&sandbox, 1);
    let barrier = Barrier::new(8);
    let held: Vec<_> = std::thread::scope(|scope| {
        let start = || {
            barrier.wait();
            common::sleeper(&sandbox)
        };
        let starts: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
        starts.into_iter().map(|start| start.join().unwrap()).collect()
    });
    let PoolStats { hits, misses, .. } = sandbox.pool_stats();
    assert_eq!(hits + misses, 8);
    assert!(hits >= 1 && misses >= 1, "{hits} {misses}");
    full(&sandbox, 1);
    drop(held);
    run(&sandbox);
    assert_eq!(sandbox.pool_stats().hits, hits + 1);
    assert_eq!(sandbox.close(), []);
}

/// In a process of its own, beside which the other tests can run: it takes half a minute of doing nothing.
#[test]
fn after_a_quiet_time_it_shrinks_and_grows_with_the_next_need() {
    assert!(common::unprotected("quiet").status().unwrap().success());
}

fn quiet() {
    let sandbox = pool(8);
    full(&sandbox, 8);
    run(&sandbox);
    full(&sandbox, 8);
    std::thread::sleep(Duration::from_secs(30));
    full(&sandbox, 2);
    eventually("the others have ended", || inits().len() == 2);
    run(&sandbox);
    full(&sandbox, 8);
    assert_eq!((sandbox.pool_stats().hits, sandbox.pool_stats().misses), (2, 0));
    assert_eq!(sandbox.close(), []);
}

#[test]
fn what_has_died_is_noticed_when_it_is_to_be_taken() {
    let _alone = alone();
    let sandbox = pool(3);
    full(&sandbox, 3);
    for child in inits() {
        let pid = child.split(' ').next().and_then(|pid| Pid::from_raw(pid.parse().unwrap())).unwrap();
        pidfd_send_signal(pidfd_open(pid, PidfdFlags::empty()).unwrap(), Signal::KILL).unwrap();
    }
    eventually("they are dead", || inits().iter().all(|child| child.contains(") Z ")));
    assert_eq!(text(&sh(&sandbox, "echo alive")), "alive");
    let PoolStats { stale, hits, misses, .. } = sandbox.pool_stats();
    assert_eq!((stale, hits, misses), (3, 0, 1));
    full(&sandbox, 3);
    run(&sandbox);
    assert_eq!(sandbox.pool_stats().hits, 1);
    assert_eq!(sandbox.close(), []);
    common::nothing_is_left_of(std::process::id());
}

#[test]
fn limits_that_change_on_the_builder_meet_no_older_instance() {
    let _alone = alone();
    let mut builder = Sandbox::builder();
    builder.prepared(2);
    let sandboxes = [64, 128, 96].map(|number| {
        let limit = Limit::Value(number);
        let named = builder.rlimit(Resource::Nofile, limit, limit).hostname(format!("host-{number}"));
        let sandbox = named.build().unwrap();
        full(&sandbox, 2);
        (number, sandbox)
    });
    for (limit, sandbox) in sandboxes {
        let output = sh(&sandbox, "ulimit -n; hostname");
        assert_eq!(text(&output), format!("{limit}\nhost-{limit}"), "{output:?}");
        assert_eq!(sandbox.pool_stats().hits, 1);
        assert_eq!(sandbox.close(), []);
    }
}

#[test]
fn closing_is_bounded_whatever_the_pool_is_about() {
    let _alone = alone();
    // From the first instant of the fill to a full pool.
    for pause in [0, 1, 3, 10, 30, 100] {
        let sandbox = pool(16);
        std::thread::sleep(Duration::from_millis(pause));
        let since = Instant::now();
        assert_eq!(sandbox.close(), [], "after {pause} ms");
        assert!(since.elapsed() < Duration::from_secs(5) || common::is_guest(), "{:?}", since.elapsed());
        eventually("its instances and threads have ended", || inits().is_empty() && threads("sandbox-pool") == 0);
    }
    common::nothing_is_left_of(std::process::id());
}
