//! However a sandbox ends, nothing of it is left.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use common::{cgroups_of, children, eventually, lives, nothing_is_left_of, sh, sleeper, text};
use sandbox::{End, Stdio};

/// What is left is asked of the whole process, so one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn nothing_is_left() {
    nothing_is_left_of(std::process::id());
    assert_eq!(children(), [""; 0]);
}

#[test]
fn payload() {
    common::acts::run(&[]);
}

#[test]
fn after_an_ordinary_end() {
    let _alone = alone();
    let sandbox = common::sandbox(|_| {});
    for _ in 0..20 {
        assert!(sandbox.command("/bin/true").status().unwrap().success());
    }
    assert_eq!(sandbox.close(), []);
    nothing_is_left();
}

#[test]
fn case_75_dropping_kills() {
    let _alone = alone();
    let sandbox = common::sandbox(|_| {});
    let child = sleeper(&sandbox);
    let id = child.id().unwrap();
    assert!(lives(id));
    drop(child);
    eventually("the program is gone", || !lives(id));
    let instance = sandbox.start().unwrap();
    let mut inside = instance.command("sleep").arg("1000").stdout(Stdio::null()).spawn().unwrap();
    let id = inside.id().unwrap();
    drop(instance);
    eventually("the program is gone, though its child is held", || !lives(id));
    assert_eq!(inside.wait().unwrap().end, End::Killed);
    drop(inside);
    assert_eq!(sandbox.close(), []);
    nothing_is_left();
}

#[test]
fn what_the_program_left_running_ends_with_it() {
    let _alone = alone();
    let sandbox = common::sandbox(|_| {});
    let script = "for i in 1 2 3; do setsid sleep 1000 >/dev/null 2>&1 & done; echo ok";
    let outcome = sh(&sandbox, script).outcome;
    assert_eq!((outcome.end, outcome.leftovers.len()), (End::Exited, 0));
    assert_eq!(sandbox.close(), []);
    nothing_is_left();
}

#[test]
fn after_errors() {
    let _alone = alone();
    let sandbox = common::sandbox(|_| {});
    for _ in 0..10 {
        sandbox.command("/no/such/program").status().unwrap_err();
        sandbox.command("/no/such/program").spawn().unwrap_err();
        sandbox.command("/bin/true").current_dir("/no/such/place").output().unwrap_err();
        sandbox.command("").spawn().unwrap_err();
        sandbox.command("true").arg("a\0b").spawn().unwrap_err();
    }
    assert_eq!(sandbox.close(), []);
    nothing_is_left();
}

#[test]
fn closing_waits_for_what_is_being_taken_down() {
    let _alone = alone();
    let sandbox = common::sandbox(|_| {});
    for _ in 0..5 {
        drop(sleeper(&sandbox));
    }
    assert_eq!(sandbox.close(), []);
    assert!(cgroups_of(std::process::id()).is_empty());
    assert_eq!(children(), [""; 0]);
}

#[test]
fn dropping_the_last_handle_waits_too() {
    let _alone = alone();
    let sandbox = common::sandbox(|_| {});
    let clone = sandbox.clone();
    drop(sandbox);
    drop(sleeper(&clone));
    drop(clone);
    assert!(cgroups_of(std::process::id()).is_empty());
    assert_eq!(children(), [""; 0]);
}

#[test]
fn a_detached_program_lives_on_within_its_limits() {
    let _alone = alone();
    let sandbox = common::sandbox(|b| _ = b.wall_time_max(Duration::from_millis(800)));
    let child = sleeper(&sandbox);
    let id = child.id().unwrap();
    child.detach().unwrap();
    assert!(lives(id));
    eventually("its deadline has passed", || !lives(id));
    assert_eq!(sandbox.close(), []);
    nothing_is_left();
}

#[test]
fn case_74_the_thread_that_started_it_may_end() {
    let _alone = alone();
    let sandbox = common::sandbox(|_| {});
    let starter = sandbox.clone();
    let mut child = std::thread::spawn(move || {
        let mut command = starter.command("/bin/sh");
        command.args(["-c", "sleep 0.5; exit 4"]).spawn().unwrap()
    })
    .join()
    .unwrap();
    let outcome = child.wait().unwrap();
    assert_eq!((outcome.end, outcome.status.code()), (End::Exited, Some(4)));
    drop(child);
    assert_eq!(sandbox.close(), []);
    nothing_is_left();
}

#[test]
fn many_at_the_same_time() {
    let _alone = alone();
    let sandbox = common::sandbox(|_| {});
    let (one, two) = (&sandbox, "echo $$");
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..16).map(|_| scope.spawn(move || (0..3).all(|_| text(&sh(one, two)) == "2"))).collect();
        assert!(threads.into_iter().all(|thread| thread.join().unwrap()), "each is the second process of its own");
    });
    assert_eq!(sandbox.close(), []);
    nothing_is_left();
}
