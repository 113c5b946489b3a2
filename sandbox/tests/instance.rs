//! One instance, many programs: the first and those that come later are treated alike.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

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
fn a_program_leads_its_group_and_has_no_terminal() {
    let instance = common::sandbox(|_| {}).start().unwrap();
    for _ in 0..2 {
        // proc_pid_stat(5): process, group, session, terminal. The session is init's, and so has nobody else's terminal.
        let output = instance.command("cut").args(["-d", " ", "-f", "1,5,6,7", "/proc/self/stat"]).output().unwrap();
        let stat = text(&output);
        let pid = stat.split(' ').next().unwrap();
        assert_eq!(stat, format!("{pid} {pid} 1 0"));
    }
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

#[test]
fn a_deadline_before_a_program_is_known_to_run_is_its_own() {
    for microseconds in [1, 100, 500, 1000, 2000, 5000] {
        let sandbox = common::sandbox(|b| _ = b.wall_time_max(Duration::from_micros(microseconds)));
        let instance = sandbox.start().unwrap();
        let mut command = instance.command("sleep");
        command.arg("60").stdout(Stdio::null());
        for _ in 0..5 {
            // An instance that had ended with the first would be an error of the second.
            assert_eq!(command.status().unwrap().end, End::WallTime);
            assert_eq!(command.spawn().unwrap().wait().unwrap().end, End::WallTime);
            assert_eq!(command.output().unwrap().outcome.end, End::WallTime);
        }
        if let Ok(pids) = instance.pids() {
            assert_eq!(pids, [0; 0], "all are killed");
        }
    }
}

#[test]
fn a_deadline_thaws() {
    // Long enough that it is still to come when all is frozen.
    let wall = Duration::from_millis(if common::is_guest() { 10_000 } else { 700 });
    let sandbox = common::sandbox(|b| _ = b.wall_time_max(wall));
    let instance = sandbox.start().unwrap();
    let mut child = sleeper(&instance);
    let frozen = instance.freeze();
    require!("a_deadline_thaws", frozen.is_ok(), "a freezer", frozen.unwrap_err());
    assert_eq!(child.wait().unwrap().end, End::WallTime);
    assert_eq!(sh(&instance, "echo again").outcome.end, End::Exited);
}

#[test]
fn what_is_killed_is_thawed() {
    let sandbox = common::sandbox(|_| {});
    let instance = sandbox.start().unwrap();
    let (mut one, two) = (sleeper(&instance), sleeper(&instance));
    let frozen = instance.freeze();
    require!("what_is_killed_is_thawed", frozen.is_ok(), "a freezer", frozen.unwrap_err());
    assert!(one.kill(SOON).unwrap().stuck.is_empty());
    assert_eq!(one.wait().unwrap().end, End::Killed);
    instance.freeze().unwrap();
    let id = two.id().unwrap();
    drop(two);
    common::eventually("a dropped one is killed", || !lives(id));
    assert!(sh(&instance, "true").outcome.success());
}

#[test]
fn a_frozen_instance_starts_nothing_and_says_so() {
    let sandbox = common::sandbox(|_| {});
    let instance = sandbox.start().unwrap();
    let frozen = instance.freeze();
    require!("a_frozen_instance_starts_nothing_and_says_so", frozen.is_ok(), "a freezer", frozen.unwrap_err());
    let mut command = instance.command("true");
    for error in [command.spawn().unwrap_err(), command.status().unwrap_err(), command.output().unwrap_err()] {
        assert!(error.kind() == sandbox::ErrorKind::Invalid && error.to_string().contains("thaw it first"), "{error}");
    }
    instance.thaw().unwrap();
    assert!(command.status().unwrap().success());
}

/// The directory of the pids cgroup that a process is in, and what it counts.
fn pids_cgroup(pid: u32) -> Option<PathBuf> {
    let holds = |group: &PathBuf| {
        let members = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        group.join("pids.current").exists() && members.lines().any(|member| member == pid.to_string())
    };
    common::cgroups_of(std::process::id()).into_iter().find(holds)
}

#[test]
fn a_hundred_programs_sixteen_at_once_leave_init_alone() {
    let sandbox = common::sandbox(|_| {});
    let instance = sandbox.start().unwrap();
    let first = sleeper(&instance);
    let group = pids_cgroup(first.id().unwrap());
    drop(first);
    let left = AtomicUsize::new(100);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                while let Ok(left) = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
                {
                    let mut command = instance.command("/bin/sh");
                    command.args(["-c", "sleep 0.05; exit 7"]).stdout(Stdio::null()).stderr(Stdio::null());
                    let mut child = command.spawn().unwrap();
                    if left % 2 == 0 {
                        std::thread::sleep(Duration::from_millis(20));
                        assert!(child.kill(SOON).unwrap().stuck.is_empty());
                    }
                    let outcome = child.wait().unwrap();
                    let ended_first = (outcome.end, outcome.status.code()) == (End::Exited, Some(7));
                    assert!(ended_first || (left % 2 == 0 && outcome.end == End::Killed), "{outcome:#?}");
                }
            });
        }
    });
    if let Some(group) = group {
        // What a killed shell left, init has reaped as soon as it ended by itself; a zombie would count.
        let current = || fs::read_to_string(group.join("pids.current")).unwrap();
        common::eventually("only init is left", || current() == "1\n");
        assert_eq!(instance.pids().unwrap(), [0; 0]);
    }
    assert!(sh(&instance, "true").outcome.success());
}

/// Numbers that look random, the same in each run.
fn next_delay(within: Duration) -> Duration {
    static STATE: AtomicU64 = AtomicU64::new(1);
    let step = |state: u64| Some(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407));
    let state = STATE.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step).unwrap();
    within.mul_f64(f64::from(u32::try_from(state >> 32).unwrap()) / f64::from(u32::MAX))
}

#[test]
fn an_instance_killed_while_programs_start_is_an_error_in_time() {
    require!(
        "an_instance_killed_while_programs_start_is_an_error_in_time",
        common::survives_refused_forks(),
        "a kernel that survives failing forks",
        "User-Mode Linux 6.12"
    );
    let sandbox = common::sandbox(|_| {});
    for _ in 0..if common::is_guest() { 3 } else { 30 } {
        let instance = sandbox.start().unwrap();
        let mut commands: Vec<_> = (0..4).map(|_| instance.command("/bin/true")).collect();
        let started = Instant::now();
        std::thread::scope(|scope| {
            for command in &mut commands {
                command.stdout(Stdio::null()).stderr(Stdio::null());
                scope.spawn(move || {
                    // Until the error; an outcome may say that it was killed.
                    let last = loop {
                        match command.spawn().and_then(|mut child| child.wait()) {
                            Ok(outcome) => assert!([End::Exited, End::Killed].contains(&outcome.end), "{outcome:#?}"),
                            Err(error) => break error,
                        }
                    };
                    assert_eq!(last.kind(), sandbox::ErrorKind::Ended, "{last}");
                });
            }
            std::thread::sleep(next_delay(Duration::from_millis(5)));
            assert!(instance.kill(SOON).unwrap().stuck.is_empty());
        });
        assert!(started.elapsed() < SOON);
    }
    assert_eq!(sandbox.close(), []);
}

#[test]
fn a_mebibyte_of_arguments_arrives() {
    let sandbox = common::sandbox(|_| {});
    let instance = sandbox.start().unwrap();
    // One string may have 128 KiB with its end, all of them a quarter of the stack.
    let arguments = vec!["x".repeat((128 << 10) - 1); 8];
    for mut command in [instance.command("/bin/sh"), sandbox.command("/bin/sh")] {
        command.args(["-c", "n=0; for word; do n=$((n + ${#word})); done; echo $# $n", "sh"]).args(&arguments);
        assert_eq!(text(&command.output().unwrap()), format!("8 {}", 8 * ((128 << 10) - 1)));
        // The place of a long request is free again for a short one.
        assert!(sh(&instance, "true").outcome.success());
    }
    let mut command = instance.command("/bin/true");
    command.args(vec!["x".repeat((128 << 10) - 1); 17]);
    assert_eq!(command.status().unwrap_err().kind(), sandbox::ErrorKind::ArgumentsTooLong);
    assert!(sh(&instance, "true").outcome.success());
}
