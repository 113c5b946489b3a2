//! `cargo xtask enosys` on the kernel: what is named fails as asked, the rest does not, and children inherit it.
#![expect(clippy::unwrap_used, reason = "tests fail by panicking, their helpers too")]

use std::process::Command;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::process::{PidfdFlags, getpid, pidfd_open};

const ASKED: &str = "SANDBOX_ENOSYS_TEST";

/// Run by the other test below a filter: prints what two system calls answer.
#[test]
fn answers() {
    if std::env::var_os(ASKED).is_some() {
        let name =
            |result: rustix::io::Result<_>| result.err().map_or(0, |error: rustix::io::Errno| error.raw_os_error());
        let opened = openat2(CWD, "/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::empty());
        println!("answers {} {}", name(opened), name(pidfd_open(getpid(), PidfdFlags::empty())));
    }
}

fn under(calls: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    // A shell in between: the filter passes on.
    let test = std::env::current_exe().unwrap();
    command
        .args(["enosys", calls, "--", "sh", "-c", "\"$0\" --exact answers --nocapture; exit 3"])
        .arg(test)
        .env(ASKED, "1");
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let at = text.find("answers ").unwrap();
    text[at..].lines().next().unwrap().to_owned()
}

#[test]
fn named_calls_fail_as_asked_and_no_other() {
    assert_eq!(under("swapoff"), "answers 0 0");
    assert_eq!(under("openat2"), "answers 38 0");
    assert_eq!(under("openat2=EPERM,pidfd_open"), "answers 1 38");
}

#[test]
fn a_name_that_no_kernel_has_is_refused() {
    let output = Command::new(env!("CARGO_BIN_EXE_xtask")).args(["enosys", "clone4", "--", "true"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("clone4"));
}
