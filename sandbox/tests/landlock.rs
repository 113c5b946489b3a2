//! The fence behind mounts and modes: what is not named cannot be opened, whoever may.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use std::path::Path;

use common::text;
use sandbox::{Builder, Feature, Instance, Landlock, Mode};

#[test]
fn payload() {
    common::acts::run(&[]);
}

/// What every shell needs.
fn usual() -> Landlock {
    ["/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache", "/proc"]
        .into_iter()
        .filter(|path| Path::new(path).exists())
        .fold(Landlock::new(), Landlock::read)
        .write("/dev")
}

/// Each command, with `+` where it succeeded and `-` where it did not.
fn tries(instance: &Instance, commands: &[&str]) -> String {
    let script = commands.iter().map(|one| format!("({one}) >/dev/null 2>&1 && echo -n + || echo -n -;"));
    let script: String = script.collect();
    let output = instance.command("/bin/bash").args(["-c", &script]).output().unwrap();
    assert!(output.outcome.success(), "{output:?} {}", String::from_utf8_lossy(&output.stderr));
    text(&output)
}

fn start(change: impl FnOnce(&mut Builder)) -> Instance {
    common::sandbox(change).start().unwrap()
}

const FILES: [&str; 8] = [
    "cat /usr/bin/env",
    "cat /etc/passwd",
    "echo x > /in/file && mv /in/file /in/other && rm /in/other",
    "echo x > /out/file",
    "mkdir /out/directory",
    "ls /out",
    "cp /bin/true /in/true && /in/true",
    "cp /bin/true /out/true && /out/true",
];

#[test]
fn files_that_are_not_named_cannot_be_opened() {
    let scratch = |b: &mut Builder| {
        b.tmpfs("/in", Some(1 << 20)).tmpfs("/out", Some(1 << 20));
    };
    assert_eq!(tries(&start(scratch), &FILES), "++++++++", "all of it works without the fence");
    let sandbox = sandbox_or_skip!("files_that_are_not_named_cannot_be_opened", "Landlock of Linux 6.2", |b| {
        scratch(b);
        b.landlock(usual().write("/in"));
    });
    let entry = sandbox.plan().feature(Feature::Landlock).unwrap();
    assert!(entry.enforced >= Some(3) && entry.mode == Mode::Require && entry.why_not.is_none(), "{entry}");
    let instance = sandbox.start().unwrap();
    for _ in 0..2 {
        assert_eq!(tries(&instance, &FILES), "+-+---+-", "also for programs that come later");
    }
    let outcome = sandbox.command("/bin/true").status().unwrap();
    let entry = outcome.enforcement.iter().find(|entry| entry.feature == Feature::Landlock).unwrap();
    assert!(outcome.success() && entry.by.as_ref().unwrap().starts_with("Landlock ABI "), "{entry}");
}

#[test]
fn what_a_program_may_execute_is_named_too() {
    let sandbox = sandbox_or_skip!("what_a_program_may_execute_is_named_too", "Landlock of Linux 6.2", |b| {
        b.landlock(Landlock::new().read("/etc"));
    });
    let error = sandbox.command("/bin/true").status().unwrap_err();
    assert_eq!(error.errno(), Some(libc::EACCES), "{error}");
}

#[test]
fn ports_that_are_not_named_cannot_be_used() {
    let sandbox = sandbox_or_skip!("ports_that_are_not_named_cannot_be_used", "Landlock of Linux 6.7", |b| {
        b.landlock(Landlock::new().connect_tcp([4001]).bind_tcp([]));
    });
    let script =
        "for port in 4001 4002; do (: </dev/tcp/127.0.0.1/$port) 2>&1 | grep -o 'refused\\|denied' | head -n 1; done";
    let output = sandbox.command("/bin/bash").args(["-c", script]).output().unwrap();
    assert_eq!(text(&output), "refused\ndenied", "nobody listens, which only the first gets to know");
}

#[test]
fn a_path_that_is_not_there_is_named() {
    for started in [false, true] {
        let sandbox = sandbox_or_skip!("a_path_that_is_not_there_is_named", "Landlock of Linux 6.2", |b| {
            b.landlock(usual().write("/nowhere/to/go"));
        });
        let error = match started {
            false => sandbox.command("/bin/true").status().unwrap_err(),
            true => sandbox.start().unwrap_err(),
        };
        assert_eq!((error.errno(), error.path()), (Some(libc::ENOENT), Some(Path::new("/nowhere/to/go"))), "{error}");
    }
}

#[test]
fn preferred_it_says_what_there_is() {
    let sandbox = common::sandbox(|b| {
        b.landlock(usual().no_abstract_sockets()).prefer(Feature::Landlock);
    });
    let entry = sandbox.plan().feature(Feature::Landlock).unwrap();
    let whole = entry.enforced >= Some(6);
    assert_eq!(entry.why_not.is_none(), whole, "{entry}");
    let passwd = sandbox.command("/bin/cat").arg("/etc/passwd").output().unwrap();
    assert_eq!(passwd.outcome.success(), entry.enforced.is_none(), "{entry}");
}
