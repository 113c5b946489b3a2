//! Memory of all processes together stays below the limit, and what the limit did is told.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use std::os::unix::process::ExitStatusExt;

use common::{act, act_by_shell, said, sh, text};
use sandbox::{End, Feature, LimitKind};

const LIMIT: u64 = 64 << 20;

#[test]
fn payload() {
    common::acts::run(&[]);
}

#[test]
fn the_limit_is_read_back() {
    let sandbox = sandbox_or_skip!("the_limit_is_read_back", "a memory cgroup", |b| _ = b.memory_max(LIMIT + 1));
    let outcome = sandbox.command("/bin/true").status().unwrap();
    let memory = outcome.enforced(Feature::MemoryMax).unwrap();
    assert_eq!((memory.requested, memory.enforced), (Some(LIMIT + 1), Some(LIMIT)), "rounded down to a page");
    assert!(memory.by.as_ref().unwrap().contains("memory"), "{memory}");
    let swap = outcome.enforced(Feature::MemorySwapMax).unwrap();
    assert_eq!((swap.requested, swap.enforced), (Some(0), Some(0)), "{swap}");
}

#[test]
fn a_hog_is_killed_and_told() {
    let sandbox = sandbox_or_skip!("a_hog_is_killed_and_told", "a memory cgroup", |b| _ = b.memory_max(LIMIT));
    let outcome = act(&sandbox, "memory 300").output().unwrap().outcome;
    assert_eq!(outcome.end, End::Memory, "{outcome:#?}");
    assert_eq!(outcome.status.signal(), Some(libc::SIGKILL));
    assert!(outcome.hit(LimitKind::Memory) >= Some(1), "{outcome:#?}");
    assert!(outcome.usage.oom_kills >= Some(1), "{:?}", outcome.usage);
    // Older kernels let a dying process have a few pages more.
    let most = LIMIT + if common::is_guest() { 64 << 10 } else { 0 };
    assert!(outcome.usage.memory_peak.is_none_or(|peak| peak <= most && peak > LIMIT / 2), "{:?}", outcome.usage);
    assert_eq!(sandbox.close(), []);
}

#[test]
fn just_below_the_limit_all_is_well() {
    let sandbox = sandbox_or_skip!("just_below_the_limit_all_is_well", "a memory cgroup", |b| _ = b.memory_max(LIMIT));
    let output = act(&sandbox, "memory 48").output().unwrap();
    assert_eq!(said(&output.stdout, "touched"), "48");
    assert!(output.outcome.success(), "{:#?}", output.outcome);
    assert!(output.outcome.limits_hit.is_empty(), "{:#?}", output.outcome);
    assert!(output.outcome.usage.memory_peak.is_none_or(|peak| peak > 48 << 20), "{:?}", output.outcome.usage);
}

#[test]
fn swap_is_room_beside_memory_up_to_its_own_limit() {
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    require!("swap_is_room_beside_memory_up_to_its_own_limit", swaps.lines().count() > 1, "swap", "none");
    let sandbox = sandbox_or_skip!("swap_is_room_beside_memory_up_to_its_own_limit", "swap accounting", |b| {
        b.memory_max(LIMIT / 2).memory_swap_max(LIMIT / 2);
    });
    let below = act(&sandbox, "memory 48").output().unwrap();
    assert!(below.outcome.success() && below.outcome.limits_hit.is_empty(), "{:#?}", below.outcome);
    let above = act(&sandbox, "memory 96").output().unwrap();
    assert_eq!(above.outcome.end, End::Memory, "{:#?}", above.outcome);
}

#[test]
fn children_count_together() {
    let sandbox = sandbox_or_skip!("children_count_together", "a memory cgroup", |b| _ = b.memory_max(LIMIT));
    let one = act_by_shell("memory 30 3000");
    let output = sh(&sandbox, &format!("{one} & {one} & {one} & wait; exit 0"));
    assert_eq!(output.outcome.end, End::Exited, "{output:?}");
    assert!(output.outcome.hit(LimitKind::Memory) >= Some(1), "{:#?}", output.outcome);
}

#[test]
fn a_killed_child_of_a_surviving_shell_is_a_limit_hit_and_not_the_end() {
    let sandbox = sandbox_or_skip!(
        "a_killed_child_of_a_surviving_shell_is_a_limit_hit_and_not_the_end",
        "a memory cgroup",
        |b| _ = b.memory_max(LIMIT)
    );
    let output = sh(&sandbox, &format!("{} >/dev/null; echo status $?", act_by_shell("memory 300")));
    assert_eq!(text(&output), "status 137");
    assert_eq!((output.outcome.end, output.outcome.status.code()), (End::Exited, Some(0)));
    assert!(output.outcome.hit(LimitKind::Memory) >= Some(1), "{:#?}", output.outcome);
}

#[test]
fn case_58_an_exit_with_137_or_a_kill_of_itself_is_not_memory() {
    let sandbox = common::sandbox(|b| _ = b.pids_max(32).prefer(Feature::PidsMax));
    for code in [124, 125, 126, 127, 137, 152, 153, 159] {
        let outcome = sh(&sandbox, &format!("exit {code}")).outcome;
        assert_eq!((outcome.end, outcome.status.code()), (End::Exited, Some(code)));
        assert!(outcome.limits_hit.is_empty(), "{outcome:#?}");
    }
    let outcome = sh(&sandbox, "kill -9 $$").outcome;
    assert_eq!((outcome.end, outcome.status.signal()), (End::Signaled, Some(9)), "{outcome:#?}");
    assert!(outcome.limits_hit.is_empty(), "{outcome:#?}");
}

#[test]
fn case_61_files_in_memory_count() {
    let sandbox = sandbox_or_skip!("case_61_files_in_memory_count", "a memory cgroup", |b| {
        b.memory_max(LIMIT).tmpfs("/big", Some(1 << 30));
    });
    let output = sh(&sandbox, "head -c 32M /dev/zero > /big/a && echo below; head -c 200M /dev/zero > /big/b; exit 0");
    assert_eq!(text(&output), "below");
    assert!(output.outcome.hit(LimitKind::Memory) >= Some(1), "{:#?}", output.outcome);
}

#[test]
fn case_62_a_limit_does_not_outlive_its_sandbox() {
    let limited = sandbox_or_skip!("case_62_a_limit_does_not_outlive_its_sandbox", "a memory cgroup", |b| {
        b.memory_max(32 << 20);
    });
    assert_eq!(act(&limited, "memory 100").output().unwrap().outcome.end, End::Memory);
    assert!(act(&common::sandbox(|_| {}), "memory 100").output().unwrap().outcome.success());
}

#[test]
fn a_host_that_cannot_says_so_before_anything_runs() {
    let refused = common::build(|b| _ = b.memory_max(LIMIT));
    let error = match refused {
        Err(error) => error,
        Ok(_) => return, // this host can; the tests above are about that
    };
    assert_eq!(error.kind(), sandbox::ErrorKind::Unsupported, "{error}");
    assert_eq!(error.step(), Some("memory_max"), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("delegate") || hint.contains("prefer")), "{error}");
    let preferred = common::sandbox(|b| _ = b.memory_max(LIMIT).prefer(Feature::MemoryMax));
    let outcome = preferred.command("/bin/true").status().unwrap();
    let memory = outcome.enforced(Feature::MemoryMax).unwrap();
    assert!(memory.enforced.is_none() && memory.why_not.is_some() && memory.fix.is_some(), "{memory:?}");
}
