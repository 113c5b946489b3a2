//! Signals reach whom they should, and nobody outside.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::Command as HostCommand;
use std::time::{Duration, Instant};

use common::{SOON, act, lives, said, sh, sleeper, text};
use sandbox::{End, Signal, Stdio};

#[test]
fn payload() {
    common::acts::run(&[]);
}

/// Waits without making a process: some guests' kernel does not survive a fork that a signal interrupts.
const WAIT: &str = "sleep 1000 >/dev/null & echo ready; while :; do wait; done";

/// Starts a script and waits for its first line.
fn started(sandbox: &sandbox::Sandbox, script: &str) -> sandbox::Child {
    let mut child = sandbox.command("/bin/sh").args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    child
}

#[test]
fn a_signal_is_handled_or_ends_the_program() {
    let sandbox = common::sandbox(|_| {});
    let wait = WAIT;
    let mut child = started(&sandbox, &format!("trap 'exit 7' TERM; {wait}"));
    child.signal(Signal::TERM).unwrap();
    let outcome = child.wait().unwrap();
    assert_eq!((outcome.end, outcome.status.code()), (End::Exited, Some(7)));
    for signal in [Signal::TERM, Signal::USR1, Signal::KILL] {
        let mut child = started(&sandbox, wait);
        child.signal(signal).unwrap();
        let outcome = child.wait().unwrap();
        assert_eq!((outcome.end, outcome.status.signal()), (End::Signaled, Some(signal.as_raw())));
        child.signal(signal).unwrap();
    }
}

#[test]
fn stopping_asks_first_and_kills_then() {
    let sandbox = common::sandbox(|_| {});
    let wait = WAIT;
    let polite = started(&sandbox, &format!("trap 'exit 3' TERM; {wait}")).stop(SOON).unwrap();
    assert_eq!((polite.end, polite.status.code()), (End::Exited, Some(3)));
    let mut deaf = started(&sandbox, &format!("trap '' TERM; {wait}"));
    let outcome = deaf.stop(Duration::from_millis(200)).unwrap();
    assert_eq!((outcome.end, outcome.status.signal()), (End::Killed, Some(9)), "{outcome:#?}");
}

#[test]
fn case_56_killing_takes_less_than_a_second() {
    let sandbox = common::sandbox(|_| {});
    let mut child = act(&sandbox, "blocked").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "blocked all"));
    let (id, since) = (child.id().unwrap(), Instant::now());
    let killed = child.kill(SOON).unwrap();
    let took = since.elapsed();
    assert!(killed.stuck.is_empty() && !lives(id), "{killed:?}");
    assert!(common::is_guest() || took < Duration::from_secs(1), "{took:?}");
    let outcome = child.wait().unwrap();
    assert_eq!((outcome.end, outcome.status.signal()), (End::Killed, Some(9)), "{outcome:#?}");
}

#[test]
fn case_55_signals_to_all_to_init_and_to_the_host_reach_nothing_outside() {
    let sandbox = common::sandbox(|_| {});
    let other = sleeper(&sandbox);
    let mut canary = HostCommand::new("sleep").arg("1000").spawn().unwrap();
    let host = std::process::id();
    let numbers = format!("{host} {} {}", canary.id(), other.id().unwrap());
    let script = format!(
        "kill -9 1; kill -STOP 1; kill -TERM 1; for p in {numbers}; do kill -9 $p 2>/dev/null && echo hit $p; done; \
         trap '' TERM HUP INT; kill -TERM -1; kill -STOP -1; kill -9 -1; echo alive"
    );
    let output = sh(&sandbox, &script);
    assert_eq!(text(&output), "alive", "{output:?}");
    assert!(output.outcome.success(), "{:#?}", output.outcome);
    assert!(canary.try_wait().unwrap().is_none(), "the canary lives");
    assert!(lives(other.id().unwrap()), "the other sandbox lives");
    canary.kill().unwrap();
    canary.wait().unwrap();
}

#[test]
fn case_54_a_sibling_is_a_child_of_init_and_nobody_elses() {
    let sandbox = common::sandbox(|_| {});
    let output = act(&sandbox, "parent_child").output().unwrap();
    // A child of the caller's own parent, which is init: reaped there, and not taken for the program.
    assert_eq!(said(&output.stdout, "clone"), "made");
    assert_eq!((output.outcome.end, output.outcome.status.code()), (End::Exited, Some(0)));
}

#[test]
fn a_killed_child_says_killed_twice() {
    let sandbox = common::sandbox(|_| {});
    let mut child = sleeper(&sandbox);
    let id = child.id().unwrap();
    let killed = child.kill(SOON).unwrap();
    assert!(killed.stuck.is_empty() && (killed.died.is_empty() || killed.died.contains(&id)), "{killed:?}");
    let (first, second) = (child.wait().unwrap(), child.wait().unwrap());
    assert_eq!((first.end, second.end), (End::Killed, End::Killed));
    assert!(child.kill(SOON).unwrap().stuck.is_empty());
}
