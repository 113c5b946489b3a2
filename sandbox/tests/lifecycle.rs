//! What a caller may do to a sandbox besides waiting for it: ask for what is not there, drop it, freeze it, forget it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use std::fs::File;
use std::time::{Duration, Instant};

use common::{SOON, eventually, lives};
use sandbox::{Command, End, Instance, Sandbox, Stdio};

#[test]
fn payload() {
    common::acts::run(&[]);
}

fn plain() -> Sandbox {
    common::sandbox(|_| {})
}

fn shell(instance: &Instance, script: &str) -> Command {
    let mut command = instance.command("/bin/sh");
    command.args(["-c", script]);
    command
}

#[test]
fn a_program_that_is_not_there_does_not_end_the_instance() {
    let sandbox = plain();
    let instance = sandbox.start().unwrap();
    instance.command("/no/such/program").spawn().unwrap_err();
    instance.command("/no/such/program").output().unwrap_err();
    assert!(shell(&instance, "exit 0").status().unwrap().success());
}

#[test]
fn high_descriptors_do_not_pile_up_in_init() {
    let sandbox = plain();
    let instance = sandbox.start().unwrap();
    for _ in 0..3 {
        let mut command = shell(&instance, "echo x");
        command.fd(File::open("/dev/null").unwrap(), 100).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        child.wait().unwrap();
        // Nobody else may hold the pipe: its end comes.
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut text = Vec::new();
            std::io::Read::read_to_end(&mut stdout, &mut text).unwrap();
            sender.send(text).unwrap();
        });
        assert_eq!(receiver.recv_timeout(Duration::from_secs(10)).expect("the pipe stays open"), b"x\n");
    }
}

#[test]
fn a_dropped_instance_ends_its_programs() {
    let sandbox = plain();
    let instance = sandbox.start().unwrap();
    let mut child = shell(&instance, "sleep 1000").spawn().unwrap();
    let id = child.id().unwrap();
    drop(instance);
    eventually("the program ends with its instance", || !lives(id));
    assert_eq!(child.wait().unwrap().end, End::Killed);
}

#[test]
fn no_time_is_too_long() {
    let sandbox = common::sandbox(|builder| {
        builder.wall_time_max(Duration::MAX);
    });
    assert!(common::sh(&sandbox, "exit 0").outcome.success());
    let mut child = common::sleeper(&sandbox);
    child.kill(Duration::MAX).unwrap();
    let instance = sandbox.start().unwrap();
    instance.stop(Duration::MAX).unwrap();
    sandbox.start().unwrap().kill(Duration::MAX).unwrap();
}

#[test]
fn a_flood_does_not_put_off_the_deadline() {
    let sandbox = common::sandbox(|builder| {
        builder.wall_time_max(Duration::from_millis(500));
    });
    let before = Instant::now();
    let output = common::sh(&sandbox, "exec head -c 1G /dev/zero");
    assert_eq!(output.outcome.end, End::WallTime);
    assert!(before.elapsed() < SOON);
}

#[test]
fn frozen_and_dropped() {
    let sandbox = plain();
    let instance = sandbox.start().unwrap();
    if let Err(error) = instance.freeze() {
        common::skip("frozen_and_dropped", "a freezer", &error.to_string());
        return;
    }
    drop(instance);
    assert_eq!(sandbox.close(), []);
}

#[test]
fn a_host_that_runs_before_others_hands_nothing_down() {
    // Of this thread alone, and it is gone with it.
    if let Err(error) = rustix::process::setpriority_process(None, -5) {
        common::skip("a_host_that_runs_before_others_hands_nothing_down", "CAP_SYS_NICE", &error.to_string());
        return;
    }
    assert_eq!(common::text(&common::sh(&plain(), "nice")), "0");
}
