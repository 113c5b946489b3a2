//! Deadlines by the clock, and CPU time of all processes together.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::{act, is_guest, sh};
use sandbox::{Child, End, Feature, Limit, LimitKind, Outcome, Resource, Sandbox, Stdio};

/// Tests that measure do it one after the other.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn cpu(outcome: &Outcome) -> Duration {
    outcome.usage.cpu_user + outcome.usage.cpu_system
}

#[test]
fn payload() {
    common::acts::run(&[]);
}

#[test]
fn the_wall_deadline_is_kept() {
    let _alone = alone();
    let sandbox = common::sandbox(|b| _ = b.wall_time_max(ms(1000)));
    // A busy machine may be late once, not three times.
    let tries = (0..3).map(|_| {
        let started = Instant::now();
        let outcome = sandbox.command("sleep").arg("60").status().unwrap();
        assert_eq!(outcome.end, End::WallTime, "{outcome:#?}");
        assert_eq!(outcome.hit(LimitKind::WallTime), Some(1));
        assert!(outcome.usage.wall >= ms(1000), "{:?}", outcome.usage);
        started.elapsed()
    });
    let times: Vec<_> = tries.take_while(|took| *took > ms(1200)).collect();
    assert!(is_guest() || times.len() < 3, "{times:?}");
}

#[test]
fn the_wall_deadline_is_kept_though_nobody_waits() {
    let sandbox = common::sandbox(|b| _ = b.wall_time_max(ms(300)));
    let child = sandbox.command("sleep").arg("60").spawn().unwrap();
    let pid = child.id().unwrap();
    common::eventually("the deadline has passed", || !common::lives(pid));
}

#[test]
fn a_deadline_before_the_program_is_known_to_run_is_an_outcome() {
    for microseconds in [1, 100, 1000, 2000, 3000, 5000, 10_000] {
        let sandbox = common::sandbox(|b| _ = b.wall_time_max(Duration::from_micros(microseconds)));
        for _ in 0..3 {
            assert_eq!(sandbox.command("sleep").arg("60").output().unwrap().outcome.end, End::WallTime);
            assert_eq!(sandbox.command("sleep").arg("60").status().unwrap().end, End::WallTime);
        }
    }
}

#[test]
fn just_below_the_wall_deadline_all_is_well() {
    let sandbox = common::sandbox(|b| _ = b.wall_time_max(Duration::from_secs(20)));
    let outcome = sandbox.command("sleep").arg("0.3").status().unwrap();
    assert!(outcome.success() && outcome.limits_hit.is_empty(), "{outcome:#?}");
    assert!(outcome.usage.wall >= ms(300));
}

#[test]
fn case_67_what_ignores_signals_or_stops_itself_meets_the_deadline() {
    let sandbox = common::sandbox(|b| _ = b.wall_time_max(ms(500)));
    let outcome = sh(&sandbox, "trap '' TERM XCPU INT; while :; do sleep 1; done").outcome;
    assert_eq!(outcome.end, End::WallTime, "{outcome:#?}");
    let outcome = act(&sandbox, "blocked").output().unwrap().outcome;
    assert_eq!(outcome.end, End::WallTime, "{outcome:#?}");
}

#[test]
fn a_fifth_of_a_cpu_is_a_fifth_of_a_cpu() {
    let _alone = alone();
    let limited = sandbox_or_skip!("a_fifth_of_a_cpu_is_a_fifth_of_a_cpu", "a cpu cgroup", |b| {
        b.cpu_max(ms(20), ms(100));
    });
    let report = limited.plan().feature(Feature::CpuMax).unwrap();
    assert_eq!((report.requested, report.enforced), (Some(20_000_000), Some(20_000_000)), "{report}");
    let used = |sandbox: &Sandbox| cpu(&act(sandbox, "spin 1000").output().unwrap().outcome);
    let (capped, free) = (used(&limited), used(&common::sandbox(|_| {})));
    assert!(is_guest() || capped <= ms(250), "{capped:?}");
    // A machine that has no time for the other one has none for this one either.
    assert!(is_guest() || capped >= ms(200).min(free) * 3 / 4, "{capped:?} of {free:?}");
}

#[test]
fn past_its_share_a_program_is_held_back_and_below_it_is_not() {
    let _alone = alone();
    for (quota, held_back) in [(20, true), (150, false)] {
        let sandbox =
            sandbox_or_skip!("past_its_share_a_program_is_held_back_and_below_it_is_not", "a cpu cgroup", |b| {
                b.cpu_max(ms(quota), ms(100));
            });
        let mut child = act(&sandbox, "spin 1500").stdout(Stdio::null()).spawn().unwrap();
        let mut times = 0;
        while child.try_wait().unwrap().is_none() {
            times = times.max(throttled(&child));
            std::thread::sleep(ms(20));
        }
        assert!(if held_back { times > 3 } else { times == 0 }, "{quota} ms of 100: {times} times");
    }
}

/// How often the kernel has held the child's group back, which it counts right on the slowest machine, too.
fn throttled(child: &Child) -> u64 {
    let pid = child.id().unwrap_or_default();
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let own = common::cgroups_of(std::process::id()).into_iter();
    let own = own.filter(|group| group.file_name().is_some_and(|name| groups.contains(&*name.to_string_lossy())));
    let count = |group: PathBuf| {
        let text = fs::read_to_string(group.join("cpu.stat")).ok()?;
        text.lines().find_map(|line| line.strip_prefix("nr_throttled "))?.parse().ok()
    };
    own.filter_map(count).max().unwrap_or(0)
}

#[test]
fn cpu_time_counts_children_that_nobody_waits_for() {
    let _alone = alone();
    let sandbox = sandbox_or_skip!("cpu_time_counts_children_that_nobody_waits_for", "a cgroup that counts CPU", |b| {
        b.cpu_time_max(ms(1000)).wall_time_max(Duration::from_secs(120));
    });
    let outcome = act(&sandbox, "spin_children 3 100000").output().unwrap().outcome;
    assert_eq!(outcome.end, End::CpuTime, "{outcome:#?}");
    assert_eq!(outcome.hit(LimitKind::CpuTime), Some(1));
    let cpus = u32::try_from(std::thread::available_parallelism().unwrap().get()).unwrap();
    let (used, most) = (cpu(&outcome), ms(1000) + ms(50) * cpus);
    assert!(used >= ms(1000) && (is_guest() || used <= most + ms(50)), "{used:?}, at most {most:?}");
}

#[test]
fn cpu_time_is_told_of_one_process_and_of_children_that_nobody_reaps() {
    const LOOP: &str = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done";
    let _alone = alone();
    let sandbox = sandbox_or_skip!(
        "cpu_time_is_told_of_one_process_and_of_children_that_nobody_reaps",
        "a cgroup that counts processes",
        |b| _ = b.pids_max(8)
    );
    let instance = sandbox.start().unwrap();
    for fresh in [true, false] {
        let run = |script: &str| {
            let mut shell = if fresh { sandbox.command("/bin/sh") } else { instance.command("/bin/sh") };
            shell.args(["-c", script]).output().unwrap().outcome
        };
        let (nothing, one) = (run(":"), run(LOOP));
        // A guest counts in ticks.
        let exact = cpu(&one) > cpu(&nothing) * 5 && cpu(&one) <= one.usage.wall + ms(10);
        assert!(exact || is_guest(), "{nothing:?} {one:?}");
    }
    let unreaped = act(&sandbox, "spin_unreaped 300").output().unwrap().outcome;
    assert!(cpu(&unreaped) > ms(if is_guest() { 50 } else { 150 }), "{unreaped:?}");
}

#[test]
fn just_below_the_cpu_time_all_is_well() {
    let sandbox = sandbox_or_skip!("just_below_the_cpu_time_all_is_well", "a cgroup that counts CPU", |b| {
        b.cpu_time_max(ms(1500));
    });
    let outcome = act(&sandbox, "spin 500").output().unwrap().outcome;
    assert!(outcome.success() && outcome.limits_hit.is_empty(), "{outcome:#?}");
}

#[test]
fn cpu_time_that_was_reached_between_two_looks_is_told() {
    let max = ms(2);
    let name = "cpu_time_that_was_reached_between_two_looks_is_told";
    let built = common::build(|b| _ = b.cpu_time_max(max));
    if let Err(error @ sandbox::Error::Unsupported { .. }) = &built {
        return common::skip(name, "a cgroup that counts CPU", &error.to_string());
    }
    let sandbox = built.unwrap();
    let instance = sandbox.start().unwrap();
    let mut exited = 0;
    for loops in (1..40).map(|step| step * 250) {
        let script = format!("i=0; while [ $i -lt {loops} ]; do i=$((i+1)); done");
        for mut command in [sandbox.command("/bin/sh"), instance.command("/bin/sh")] {
            let outcome = command.args(["-c", &script]).output().unwrap().outcome;
            let hit = outcome.hit(LimitKind::CpuTime).is_some();
            assert!(hit || outcome.end == End::Exited, "{outcome:#?}");
            // Of an instance, the usage told is the program's own, which is a little less than what was counted.
            assert!(hit == (cpu(&outcome) >= max) || outcome.usage.of_instance, "{outcome:#?}");
            exited += u32::from(hit && outcome.end == End::Exited);
        }
    }
    assert!(is_guest() || exited > 0, "none ended by itself behind the limit");
}

#[test]
fn cpu_time_without_a_cgroup_is_a_resource_limit_and_said_to_be_weaker() {
    let sandbox = common::sandbox(|b| {
        b.cpu_time_max(ms(800)).prefer(Feature::CpuTimeMax);
        for feature in [Feature::PidsMax, Feature::MemoryMax, Feature::CpuMax] {
            b.off(feature);
        }
    });
    let entry = sandbox.plan().feature(Feature::CpuTimeMax).unwrap();
    if entry.by.as_ref().is_some_and(|by| by.contains("cgroup")) {
        return; // this host has one; the tests above are about that
    }
    assert!(entry.why_not.as_ref().is_some_and(|why| why.contains("weaker")), "{entry}");
    let outcome = act(&sandbox, "spin 60000").output().unwrap().outcome;
    assert_eq!(outcome.end, End::CpuTime, "{outcome:#?}");
}

#[test]
fn the_resource_limit_cpu_ends_one_process() {
    let sandbox = common::sandbox(|b| _ = b.rlimit(Resource::Cpu, Limit::Value(1), Limit::Value(2)));
    let outcome = act(&sandbox, "spin 100000").output().unwrap().outcome;
    assert_eq!(outcome.end, End::CpuTime, "{outcome:#?}");
    assert!(act(&sandbox, "spin 300").output().unwrap().outcome.success());
}

#[test]
fn waiting_is_bounded_and_can_be_repeated() {
    let sandbox = common::sandbox(|_| {});
    let mut child = sandbox.command("sleep").arg("0.4").stdout(Stdio::null()).spawn().unwrap();
    assert!(child.try_wait().unwrap().is_none());
    assert!(child.wait_timeout(ms(1)).unwrap().is_none());
    let first = child.wait().unwrap();
    let again = child.wait().unwrap();
    assert_eq!((first.status, first.end, first.usage), (again.status, again.end, again.usage));
    assert!(child.try_wait().unwrap().is_some());
    let mut child = sandbox.command("/bin/true").spawn().unwrap();
    common::eventually("it has ended, and asking is enough to know", || child.try_wait().unwrap().is_some());
}
