//! Starts from parts that were made ahead are as any other.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use common::{cgroups_of, eventually, sh, text};
use sandbox::Sandbox;

/// The parts of all sandboxes of this process are looked at.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn payload() {
    common::acts::run(&[]);
}

/// The groups of this process, when nothing runs in them.
fn idle_groups() -> Vec<PathBuf> {
    let is_empty = |group: &PathBuf| fs::read_to_string(group.join("cgroup.procs")).is_ok_and(|pids| pids.is_empty());
    cgroups_of(std::process::id()).into_iter().filter(is_empty).collect()
}

/// Waits until there are parts for the next start; their groups.
fn made_ahead(sandbox: &Sandbox) -> Vec<PathBuf> {
    assert!(sandbox.command("/bin/true").status().unwrap().success());
    let mut groups = Vec::new();
    eventually("parts are made ahead", || {
        let now = idle_groups();
        let at_rest = !now.is_empty() && common::children().is_empty() && now == groups;
        groups = now;
        std::thread::sleep(Duration::from_millis(50));
        at_rest
    });
    groups
}

#[test]
fn each_start_has_parts_of_its_own() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let sandbox = sandbox_or_skip!("each_start_has_parts_of_its_own", "cgroups", |b| _ = b.prepared(0).pids_max(20));
    let script = "for kind in user net ipc uts mnt; do readlink /proc/self/ns/$kind; done; echo $(cat /proc/self/uid_map); \
                  grep -c '^ *lo:' /proc/net/dev; cat /proc/net/fib_trie 2>/dev/null | grep -c 127.0.0.1";
    for _ in 0..5 {
        // The first has the parts that were made ahead, the others are too early for more.
        let instances = [(); 3].map(|()| sandbox.start().unwrap());
        let mut seen = BTreeSet::new();
        for instance in &instances {
            let said = text(&instance.command("/bin/sh").args(["-c", script]).output().unwrap());
            let lines: Vec<&str> = said.lines().collect();
            assert!(lines[..6].iter().all(|own| seen.insert((*own).to_owned())), "{said} is not its own: {seen:?}");
            assert_eq!(lines[6], "1", "the loopback device");
            assert_ne!(lines.get(7), Some(&"0"), "its address");
        }
        drop(instances);
        made_ahead(&sandbox);
    }
    assert_eq!(sandbox.close(), []);
    common::nothing_is_left_of(std::process::id());
}

#[test]
fn spoilt_parts_are_not_used() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let sandbox = sandbox_or_skip!("spoilt_parts_are_not_used", "cgroups", |b| _ = b.prepared(0).pids_max(20));
    for group in made_ahead(&sandbox) {
        fs::remove_dir(&group).unwrap();
    }
    let output = sh(&sandbox, "ulimit -u; echo here");
    assert!(text(&output).ends_with("here"), "{output:?}");
    assert!(output.outcome.usage.pids_peak.is_none_or(|peak| peak <= 20), "{output:?}");
    assert_eq!(sandbox.close(), []);
    common::nothing_is_left_of(std::process::id());
}

#[test]
fn the_thread_that_makes_them_is_back_in_its_own_network() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let sandbox = sandbox_or_skip!("the_thread_that_makes_them_is_back_in_its_own_network", "cgroups", |b| _ =
        b.prepared(0).pids_max(20));
    made_ahead(&sandbox);
    let own = fs::read_link("/proc/self/ns/net").unwrap();
    for task in fs::read_dir("/proc/self/task").unwrap().flatten() {
        assert_eq!(fs::read_link(task.path().join("ns/net")).unwrap(), own, "{task:?}");
    }
    drop(sandbox);
    common::nothing_is_left_of(std::process::id());
}
