//! Processes and threads of the programs stay below the limit, nothing outside feels it, and init reaps.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use std::time::{Duration, Instant};

use common::{act, said, sh, text};
use sandbox::{End, Feature, Limit, LimitKind, Resource, Sandbox, Stdio};

#[test]
fn payload() {
    common::acts::run(&[]);
}

#[test]
fn forks_past_the_limit_are_refused_and_counted() {
    let sandbox = sandbox_or_skip!("forks_past_the_limit_are_refused_and_counted", "a pids cgroup", |b| {
        b.pids_max(32);
    });
    let output = act(&sandbox, "fork 100").output().unwrap();
    assert_eq!(said(&output.stdout, "forked"), format!("32 {}", libc::EAGAIN));
    assert_eq!(output.outcome.end, End::Exited);
    assert!(output.outcome.hit(LimitKind::Pids) >= Some(1), "{:#?}", output.outcome);
    assert!(output.outcome.usage.pids_peak.is_none_or(|peak| peak == 32), "{:?}", output.outcome.usage);
    assert_eq!(output.outcome.enforced(Feature::PidsMax).unwrap().enforced, Some(32), "init is not counted");
}

#[test]
fn just_below_the_limit_all_forks_work() {
    let sandbox = sandbox_or_skip!("just_below_the_limit_all_forks_work", "a pids cgroup", |b| _ = b.pids_max(32));
    let output = act(&sandbox, "fork 32").output().unwrap();
    assert_eq!(said(&output.stdout, "forked"), "32 0");
    assert_eq!(output.outcome.hit(LimitKind::Pids), None, "{:#?}", output.outcome);
}

#[test]
fn threads_count() {
    let sandbox = sandbox_or_skip!("threads_count", "a pids cgroup", |b| _ = b.pids_max(16));
    let output = act(&sandbox, "threads 40").output().unwrap();
    assert_eq!(said(&output.stdout, "threads"), format!("16 {}", libc::EAGAIN));
    assert!(output.outcome.hit(LimitKind::Pids) >= Some(1), "{:#?}", output.outcome);
    let output = act(&sandbox, "threads 16").output().unwrap();
    assert_eq!(said(&output.stdout, "threads"), "16 0");
    assert_eq!(output.outcome.hit(LimitKind::Pids), None);
}

#[test]
fn one_means_no_fork() {
    let sandbox = sandbox_or_skip!("one_means_no_fork", "a pids cgroup", |b| _ = b.pids_max(1));
    let output = act(&sandbox, "fork 2").output().unwrap();
    assert_eq!(said(&output.stdout, "forked"), format!("1 {}", libc::EAGAIN));
}

#[test]
fn no_limit_named_is_a_limit_of_256() {
    let sandbox = common::sandbox(|_| {});
    let found = sandbox.plan().feature(Feature::PidsMax).unwrap();
    require!("no_limit_named_is_a_limit_of_256", found.enforced.is_some(), "a pids cgroup", format!("{found}"));
    let output = act(&sandbox, "fork 300").output().unwrap();
    assert_eq!(said(&output.stdout, "forked"), format!("256 {}", libc::EAGAIN));
}

#[test]
fn case_59_a_fork_bomb_stays_inside_and_is_gone_soon_after_the_deadline() {
    let survives = common::survives_refused_forks();
    require!(
        "case_59_a_fork_bomb_stays_inside_and_is_gone_soon_after_the_deadline",
        survives,
        "a kernel that survives failing forks",
        "User-Mode Linux 6.12"
    );
    let wall = Duration::from_secs(2);
    let sandbox = sandbox_or_skip!(
        "case_59_a_fork_bomb_stays_inside_and_is_gone_soon_after_the_deadline",
        "a pids cgroup",
        |b| {
            // The second brake is per user and far above the first.
            b.pids_max(32).wall_time_max(wall).rlimit(Resource::Nproc, Limit::Value(400), Limit::Value(400));
        }
    );
    assert_eq!(sandbox.plan().feature(Feature::PidsMax).unwrap().enforced, Some(32), "or no bomb is started");
    // On a busy machine the dying wait for a processor, too: one try of three must be in time, none in a guest.
    let tries = if common::is_guest() { 1 } else { 3 };
    let took = (0..tries).map(|_| end_a_bomb(&sandbox, wall)).find(|took| *took < wall + Duration::from_secs(1));
    assert_eq!(sandbox.close(), []);
    common::nothing_is_left_of(std::process::id());
    assert!(common::is_guest() || took.is_some(), "not gone a second after the deadline, three times");
}

/// Starts a bomb and waits for its end, which is when nothing of it is left.
fn end_a_bomb(sandbox: &Sandbox, wall: Duration) -> Duration {
    let started = Instant::now();
    let mut bomb = act(sandbox, "fork_bomb").stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut seen = 0;
    while started.elapsed() < wall / 2 {
        seen = seen.max(bomb.usage().unwrap().pids_peak.unwrap_or(0));
        assert!(std::process::Command::new("/bin/true").status().unwrap().success(), "the host can fork");
        std::thread::sleep(Duration::from_millis(50));
    }
    let outcome = bomb.wait().unwrap();
    let mut out = String::new();
    std::io::Read::read_to_string(&mut bomb.stdout.take().unwrap(), &mut out).unwrap();
    assert_eq!(said(out.as_bytes(), "refused"), libc::EAGAIN.to_string());
    assert_eq!(outcome.end, End::WallTime, "{outcome:#?}");
    assert!(outcome.hit(LimitKind::Pids) >= Some(1), "{outcome:#?}");
    assert!(outcome.usage.pids_peak.is_none_or(|peak| peak == 32), "{:?}", outcome.usage);
    started.elapsed()
}

#[test]
fn a_thousand_short_children_one_after_the_other() {
    let sandbox = sandbox_or_skip!("a_thousand_short_children_one_after_the_other", "a pids cgroup", |b| {
        b.pids_max(8);
    });
    let children = if common::is_guest() { 100 } else { 1000 };
    let script = format!("i=0; while [ $i -lt {children} ]; do /bin/true || exit 9; i=$((i+1)); done; echo $i");
    let output = sh(&sandbox, &script);
    assert_eq!(text(&output), children.to_string(), "{output:?}");
    assert_eq!(output.outcome.hit(LimitKind::Pids), None, "{:#?}", output.outcome);
}

#[test]
fn case_63_a_storm_of_orphans_is_reaped() {
    let survives = common::survives_refused_forks();
    require!(
        "case_63_a_storm_of_orphans_is_reaped",
        survives,
        "a kernel that survives failing forks",
        "User-Mode Linux 6.12"
    );
    let sandbox = sandbox_or_skip!("case_63_a_storm_of_orphans_is_reaped", "a pids cgroup", |b| _ = b.pids_max(16));
    let orphans = if common::is_guest() { 200 } else { 2000 };
    let output = act(&sandbox, &format!("orphans {orphans}")).output().unwrap();
    assert!(said(&output.stdout, "orphans").starts_with(&format!("{orphans} ")), "{output:?}");
    assert_eq!(said(&output.stdout, "room"), "true", "{output:?}");
    assert_eq!(output.outcome.end, End::Exited);
}

#[test]
fn limits_of_two_sandboxes_are_apart() {
    let sandbox = sandbox_or_skip!("limits_of_two_sandboxes_are_apart", "a pids cgroup", |b| _ = b.pids_max(20));
    let mut children: Vec<_> =
        (0..3).map(|_| act(&sandbox, "fork 20").stdout(Stdio::piped()).spawn().unwrap()).collect();
    for child in &mut children {
        let outcome = child.wait().unwrap();
        assert!(outcome.success() && outcome.limits_hit.is_empty(), "{outcome:#?}");
    }
}
