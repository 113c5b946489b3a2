//! A group from its making to its removal, on whatever this machine has.

mod common;

use std::time::Duration;

use cgroup::{Controller, CpuMax, Error, Knob, Layout, Limit, Limits, Needs, Value};
use common::{Helper, SOON, USUAL, group, name};

#[test]
fn helper() {
    common::act();
}

#[test]
fn make_limit_join_freeze_kill_remove() {
    let group = group("life", USUAL);
    require!(group.is_ok(), "memory, pids and cpu", group.err().unwrap());
    let group = group.unwrap();

    let mut limits = Limits::default();
    limits.memory_max = Some(Limit::Value((64 << 20) + 5));
    limits.memory_swap_max = Some(Limit::Value(0));
    limits.pids_max = Some(Limit::Value(8));
    limits.cpu_max = Some(CpuMax::from_millicpus(500));
    limits.cpu_weight = Some(200);
    let applied = group.set(&limits).unwrap();
    assert_eq!(
        applied.get(Knob::MemoryMax).unwrap().enforced,
        Value::Limit(Limit::Value(64 << 20)),
        "rounded to a page"
    );
    assert!(applied.settings.iter().all(|s| s.knob == Knob::MemoryMax || s.enforced == s.requested), "{applied:?}");
    let read = group.limits().unwrap();
    assert_eq!((read.memory_max, read.pids_max), (Some(Limit::Value(64 << 20)), limits.pids_max));
    assert_eq!((read.cpu_max, read.cpu_weight), (limits.cpu_max, limits.cpu_weight));

    let mut sleeper = Helper::in_group(&group, "sleep");
    sleeper.go();
    sleeper.says("sleeping");
    assert_eq!(group.pids().unwrap(), [sleeper.pid()]);
    assert!(!group.is_empty().unwrap());
    let usage = group.usage().unwrap();
    assert!(usage.pids_current.unwrap() >= 1 && usage.memory_current.is_some() && usage.cpu.is_some(), "{usage:?}");

    group.freeze(SOON).unwrap();
    assert_eq!(group.events().unwrap().frozen, Some(true));
    group.thaw().unwrap();

    let killed = group.kill(SOON).unwrap();
    assert_eq!((killed.died.as_slice(), killed.stuck.as_slice()), (&[sleeper.pid()][..], &[][..]));
    assert!(group.is_empty().unwrap());
    group.remove(SOON).unwrap();
    for path in group.paths() {
        assert!(!path.exists(), "{}", path.display());
    }
    group.remove(SOON).unwrap();
}

#[test]
fn a_group_that_exists_is_not_made_twice_nor_left_half_made() {
    let group = group("twice", USUAL);
    require!(group.is_ok(), "memory, pids and cpu", group.err().unwrap());
    let group = group.unwrap();
    let name = group.paths().next().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
    let parent = Layout::detect().unwrap().parent(&Needs::new(USUAL)).unwrap();
    assert_eq!(parent.create(&name).unwrap_err().errno(), Some(17), "EEXIST");
    assert!(group.paths().all(std::path::Path::exists));
    assert!(parent.names().unwrap().contains(&name));
    assert!(parent.open(&name).unwrap().is_empty().unwrap());
}

#[test]
fn a_change_that_is_refused_leaves_everything_as_it_was() {
    let group = group("rollback", USUAL);
    require!(group.is_ok(), "memory, pids and cpu", group.err().unwrap());
    let group = group.unwrap();
    let mut first = Limits::default();
    first.memory_max = Some(Limit::Value(32 << 20));
    first.pids_max = Some(Limit::Value(5));
    group.set(&first).unwrap();
    let before = group.limits().unwrap();

    let mut second = Limits::default();
    second.memory_max = Some(Limit::Value(64 << 20));
    second.pids_max = Some(Limit::Value(50));
    // No machine has such a CPU, so this one is refused by the kernel, last.
    second.misc_max = vec![("nothing_of_that_name".to_owned(), Limit::Value(1))];
    let error = group.set(&second).unwrap_err();
    assert!(!matches!(error, Error::RollBack { .. }), "{error}");
    assert_eq!(group.limits().unwrap(), before);
}

#[test]
fn a_group_goes_away_with_the_groups_below_it() {
    let group = group("nested", [Controller::Pids]);
    require!(group.is_ok(), "pids", group.err().unwrap());
    let group = group.unwrap();
    let child = group.child("inner", [Controller::Pids]).unwrap();
    let leaf = child.child("leaf", [Controller::Pids]).unwrap();
    let mut sleeper = Helper::in_group(&leaf, "sleep");
    sleeper.go();
    sleeper.says("sleeping");
    assert_eq!(group.pids().unwrap(), [sleeper.pid()]);
    group.remove(SOON).unwrap();
    assert!(child.paths().all(|path| !path.exists()));
    assert!(leaf.is_empty().unwrap());
}

#[test]
fn an_unused_group_is_removed_at_once_even_without_time() {
    let group = group("unused", USUAL);
    require!(group.is_ok(), "memory, pids and cpu", group.err().unwrap());
    group.unwrap().remove(Duration::ZERO).unwrap();
    let _ = name("");
}

#[test]
fn removed_groups_are_forgotten_though_their_files_were_open() {
    let groups = 30;
    // Names of files that the kernel keeps in memory, of the whole machine.
    let cached = || -> i64 {
        let text = std::fs::read_to_string("/proc/sys/fs/dentry-state").unwrap();
        text.split_whitespace().next().unwrap().parse().unwrap()
    };
    let probe = group("cached", USUAL);
    require!(probe.is_ok(), "memory, pids and cpu", probe.err().unwrap());
    let layout = Layout::detect().unwrap();
    // Others work on this machine, too: the least of some tries.
    let grown = (0..10).map(|_| {
        let before = cached();
        for _ in 0..groups {
            let group = layout.create(&name("cached"), &Needs::new(USUAL)).unwrap();
            let _open = group.meter().unwrap();
            group.remove(SOON).unwrap();
        }
        cached() - before
    });
    let least = grown.min().unwrap();
    assert!(least < groups, "{least} more names after {groups} groups");
}
