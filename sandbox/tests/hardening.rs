//! Capabilities that are kept, and the profiles of the seccomp filter.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use common::{is_root, sh, text};
use sandbox::{Capability, Error, Feature, Seccomp};

#[test]
fn payload() {
    common::acts::run(&[]);
}

const SETS: &str = "grep -E '^Cap(Inh|Prm|Eff|Bnd|Amb)' /proc/self/status | cut -f2 | sort -u";

#[test]
fn no_capability_is_kept_unless_named() {
    let sandbox = common::sandbox(|_| {});
    assert_eq!(text(&sh(&sandbox, SETS)), "0000000000000000");
    let output = sh(&sandbox, "touch /tmp/file && chmod 000 /tmp/file && ! cat /tmp/file && ! chown 5:5 /tmp/file");
    assert!(output.outcome.success(), "{output:?}");
}

#[test]
fn what_is_named_is_in_every_set_and_reaches_the_own_ids() {
    require!("what_is_named_is_in_every_set_and_reaches_the_own_ids", is_root(), "root", "an ordinary user");
    let kept = [Capability::Chown, Capability::DacOverride, Capability::Setuid, Capability::Kill];
    let sandbox = common::sandbox(|b| _ = b.capabilities(kept));
    let instance = sandbox.start().unwrap();
    for turn in 0..2 {
        let mut command = instance.command("/bin/sh");
        let output = command.args(["-c", SETS]).output().unwrap();
        assert_eq!(text(&output), "00000000000000a3", "program {turn}");
    }
    let script = "touch /tmp/file && chmod 000 /tmp/file && cat /tmp/file && chown 5 /tmp/file && stat -c %u /tmp/file";
    let output = instance.command("/bin/sh").args(["-c", script]).output().unwrap();
    assert_eq!(text(&output), "5", "{output:?}");
    // Not even with them does anything reach init or the host's files.
    let script = "kill -9 1; kill -STOP 1; ls /proc/1/fd && exit 1; cat /proc/1/environ && exit 2; \
                  echo x >> /etc/passwd && exit 3; chown 5 /usr && exit 4; echo held";
    let output = instance.command("/bin/sh").args(["-c", script]).output().unwrap();
    assert_eq!(text(&output), "held", "{output:?}");
}

#[test]
fn kept_and_not_dropped_contradict_each_other() {
    let error = common::build(|b| _ = b.capabilities([Capability::Chown]).off(Feature::Capabilities)).unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }), "{error}");
    let error = common::build(|b| _ = b.seccomp(Seccomp::Strict).off(Feature::Seccomp)).unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }), "{error}");
}

#[test]
fn the_strict_profile_refuses_locks() {
    let lock = "flock /tmp/lock -c 'echo locked' 2>&1";
    assert_eq!(text(&sh(&common::sandbox(|_| {}), lock)), "locked");
    let output = sh(&common::sandbox(|b| _ = b.seccomp(Seccomp::Strict)), lock);
    assert!(text(&output).contains("Function not implemented") && !output.outcome.success(), "{output:?}");
}
