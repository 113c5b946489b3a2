//! One instance, many programs: the first and those that come later are treated alike.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt;

use common::{SOON, acting, lives, said, text};
use sandbox::{Child, End, Instance, Limit, LimitKind, Output, Resource, Stdio};

#[test]
fn payload() {
    common::acts::run(&[]);
}

fn sh(instance: &Instance, script: &str) -> Output {
    instance.command("/bin/sh").args(["-c", script]).output().unwrap()
}

fn sleeper(instance: &Instance) -> Child {
    instance.command("sleep").arg("1000").stdout(Stdio::null()).spawn().unwrap()
}

#[test]
fn programs_share_the_instance() {
    let sandbox = common::sandbox(|_| {});
    let instance = sandbox.start().unwrap();
    let background = "echo word > /tmp/word; sleep 1000 >/dev/null 2>&1 & \
                      until grep -q sleep /proc/$!/comm; do sleep 0.01; done";
    assert!(sh(&instance, background).outcome.success());
    assert_eq!(text(&sh(&instance, "cat /tmp/word; cat /proc/[0-9]*/comm | grep -c sleep")), "word\n1", "it lives on");
    let other = sandbox.start().unwrap();
    assert_eq!(text(&sh(&other, "ls -A /tmp; cat /proc/[0-9]*/comm | grep -c sleep")), "0");
}

#[test]
fn later_programs_are_treated_as_the_first() {
    let sandbox = common::sandbox(|b| {
        b.user(1000).group(1000).rlimit(Resource::Nofile, Limit::Value(77), Limit::Value(99));
    });
    let instance = sandbox.start().unwrap();
    let namespaces = "for n in user pid mnt net ipc uts cgroup; do readlink /proc/self/ns/$n; done";
    let script = format!(
        "{namespaces}; ulimit -Sn; ulimit -Hn; id; umask; env; cat /proc/self/cgroup; \
         grep -E '^(Cap|NoNew|Seccomp|Sig(Blk|Ign))' /proc/self/status"
    );
    let first = text(&sh(&instance, &script));
    let background = sleeper(&instance);
    assert_eq!(text(&sh(&instance, &script)), first);
    assert!(first.contains("\n77\n99\nuid=1000"), "{first}");
    let cgroup = |pid: u32| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let (one, two) = (sleeper(&instance), background);
    assert_eq!(cgroup(one.id().unwrap()), cgroup(two.id().unwrap()));
}

#[test]
fn an_outcome_is_the_programs_own() {
    let sandbox = common::sandbox(|_| {});
    let instance = sandbox.start().unwrap();
    let background = sleeper(&instance);
    let outcome = sh(&instance, "exit 5").outcome;
    assert_eq!((outcome.end, outcome.status.code(), outcome.usage.of_instance), (End::Exited, Some(5), true));
    let outcome = sh(&instance, "kill -USR1 $$").outcome;
    assert_eq!((outcome.end, outcome.status.signal()), (End::Signaled, Some(libc::SIGUSR1)));
    assert!(lives(background.id().unwrap()));
}

#[test]
fn killing_one_leaves_the_others() {
    let sandbox = common::sandbox(|_| {});
    let instance = sandbox.start().unwrap();
    let (mut one, two) = (sleeper(&instance), sleeper(&instance));
    assert!(one.kill(SOON).unwrap().stuck.is_empty());
    assert_eq!(one.wait().unwrap().end, End::Killed);
    assert!(lives(two.id().unwrap()));
    let id = two.id().unwrap();
    drop(two);
    common::eventually("a dropped one is killed", || !lives(id));
    assert!(sh(&instance, "true").outcome.success());
}

#[test]
fn its_processes_are_listed_frozen_and_killed() {
    let sandbox = common::sandbox(|_| {});
    let instance = sandbox.start().unwrap();
    let (one, two) = (sleeper(&instance), sleeper(&instance));
    let ids = BTreeSet::from([one.id().unwrap(), two.id().unwrap()]);
    let listed = instance.pids();
    require!("its_processes_are_listed_frozen_and_killed", listed.is_ok(), "a cgroup", listed.unwrap_err());
    assert_eq!(listed.unwrap().into_iter().collect::<BTreeSet<_>>(), ids);
    assert!(instance.usage().unwrap().of_instance);

    let mut counter = instance.command("/bin/sh");
    counter.args(["-c", "while :; do :; done"]);
    let counter = counter.spawn().unwrap();
    instance.freeze().unwrap();
    // User and system time, fields 14 and 15 of proc_pid_stat(5); the name of the program holds no space.
    let cpu = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", counter.id().unwrap())).unwrap();
        stat.split(' ').skip(13).take(2).map(str::to_owned).collect::<Vec<_>>()
    };
    let before = cpu();
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert_eq!(cpu(), before, "it stands still");
    instance.thaw().unwrap();
    assert!(sh(&instance, "true").outcome.success());

    let killed = instance.kill(SOON).unwrap();
    assert!(killed.stuck.is_empty(), "{killed:?}");
    assert!(ids.is_subset(&killed.died.iter().copied().collect()), "{killed:?} {ids:?}");
    assert!(ids.iter().all(|id| !lives(*id)));
}

#[test]
fn a_frozen_instance_can_be_killed() {
    let sandbox = common::sandbox(|_| {});
    let instance = sandbox.start().unwrap();
    let child = sleeper(&instance);
    let frozen = instance.freeze();
    require!("a_frozen_instance_can_be_killed", frozen.is_ok(), "a freezer", frozen.unwrap_err());
    let id = child.id().unwrap();
    let killed = instance.kill(SOON).unwrap();
    assert!(killed.stuck.is_empty() && !lives(id), "{killed:?}");
    drop(child);
    assert_eq!(sandbox.close(), []);
}

#[test]
fn limits_hold_for_the_whole_instance() {
    let sandbox = sandbox_or_skip!("limits_hold_for_the_whole_instance", "a pids cgroup", |b| _ = b.pids_max(20));
    let instance = sandbox.start().unwrap();
    let act = |what| acting(instance.command("/payload"), what);
    let forks = act("fork 10").output().unwrap();
    assert_eq!(said(&forks.stdout, "forked"), "10 0");
    let more = act("fork 50").output().unwrap();
    // The first program has gone, its children are there.
    let there = said(&more.stdout, "forked");
    assert!([11, 12].iter().any(|count| there == format!("{count} {}", libc::EAGAIN)), "{there}");
    assert!(more.outcome.hit(LimitKind::Pids) >= Some(1), "{:#?}", more.outcome);
}

#[test]
fn many_programs_from_many_threads() {
    let sandbox = common::sandbox(|b| _ = b.pids_max(200).prefer(sandbox::Feature::PidsMax));
    let instance = sandbox.start().unwrap();
    let one = &instance;
    std::thread::scope(|scope| {
        for thread in 0..8 {
            scope.spawn(move || {
                for round in 0..10 {
                    let code = thread * 10 + round;
                    let output = sh(one, &format!("echo {code}; exit {code}"));
                    assert_eq!(text(&output), code.to_string());
                    assert_eq!(output.outcome.status.code(), Some(code));
                }
            });
        }
    });
}

#[test]
fn an_ended_instance_says_so() {
    let sandbox = common::sandbox(|_| {});
    let instance = sandbox.start().unwrap();
    let mut command = instance.command("true");
    let child = sleeper(&instance);
    assert!(instance.kill(SOON).unwrap().stuck.is_empty());
    let error = command.status().unwrap_err();
    assert_eq!(error.kind(), sandbox::ErrorKind::Ended, "{error}");
    drop(child);
}
