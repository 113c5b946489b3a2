//! Reading and changing limits, of this process and of others, and what is said when that is refused.
#![allow(clippy::unwrap_used)] // Helpers of a test panic as the test does.

mod common;

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use rlimit::{Error, Limit, Limits, Resource, Rule, Table};
use rustix::thread::CapabilitySet;

const ALONE: &str = "SANDBOX_RLIMIT_ALONE";

/// Runs the test as a process of its own, as that uid: what it changes concerns nobody else. `true` in that process.
fn alone(name: &str, uid: Option<u32>) -> bool {
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture"]).env(ALONE, "1").current_dir("/");
    if let Some(uid) = uid {
        command.uid(uid).gid(uid);
    }
    match command.output() {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => common::skip(name, "a test program that other users may execute", &error.to_string()),
    }
    false
}

/// A process that waits until it is dropped.
struct Waiting(Child);

impl Waiting {
    fn new(uid: Option<u32>) -> Self {
        let mut command = Command::new("cat");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        if let Some(uid) = uid {
            command.uid(uid).gid(uid);
        }
        let mut child = command.spawn().unwrap();
        // Its first answer: the loader is through, and opens nothing more.
        child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        Self(child)
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

fn root() -> bool {
    rustix::process::geteuid().is_root()
}

fn may_raise() -> bool {
    rustix::thread::capabilities(None).unwrap().effective.contains(CapabilitySet::SYS_RESOURCE)
}

fn both(value: u64) -> Limits {
    Limits::both(Limit::Value(value))
}

#[test]
fn own_limits_and_the_table_agree() {
    // Others in this program may change theirs meanwhile.
    if alone("own_limits_and_the_table_agree", None) {
        assert_eq!(rlimit::of(std::process::id()).unwrap(), Table::own());
    }
}

#[test]
fn soft_and_hard_move_as_they_may() {
    if !alone("soft_and_hard_move_as_they_may", None) {
        return;
    }
    let limits = |soft, hard| Limits { soft: Limit::Value(soft), hard: Limit::Value(hard) };
    rlimit::set(Resource::Core, limits(100, 1000)).unwrap();
    assert_eq!(rlimit::get(Resource::Core), limits(100, 1000));
    rlimit::set_soft(Resource::Core, Limit::Value(50)).unwrap();
    assert_eq!(rlimit::get(Resource::Core), limits(50, 1000));
    assert_eq!(rlimit::raise_soft(Resource::Core).unwrap(), both(1000));
    rlimit::set_hard(Resource::Core, Limit::Value(2000)).map_or_else(
        |error| assert!(!may_raise(), "{error}"),
        |()| assert_eq!(rlimit::get(Resource::Core), limits(1000, 2000)),
    );
    rlimit::set_hard(Resource::Core, Limit::Value(10)).unwrap();
    assert_eq!(rlimit::get(Resource::Core), both(10));

    let error = rlimit::set_soft(Resource::Core, Limit::Value(11)).unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }), "{error}");
    assert_eq!(error.to_string(), "core=11:10: the soft limit is above the hard limit");
}

#[test]
fn raising_a_hard_limit_is_refused_in_the_words_of_the_rule() {
    if !alone("raising_a_hard_limit_is_refused_in_the_words_of_the_rule", root().then_some(65_533)) {
        return;
    }
    rlimit::set(Resource::Core, both(10)).unwrap();
    for error in [
        rlimit::set(Resource::Core, both(11)).unwrap_err(),
        rlimit::set_of(std::process::id(), Resource::Core, both(11)).unwrap_err(),
    ] {
        assert!(matches!(error, Error::Syscall { rule: Some(Rule::RaiseHard), .. }), "{error:?}");
        assert!(error.to_string().contains("CAP_SYS_RESOURCE in the initial user namespace"), "{error}");
        assert!(error.to_string().contains("core=11:11"), "{error}");
    }
}

#[test]
fn nofile_stops_at_nr_open_for_everyone() {
    if !alone("nofile_stops_at_nr_open_for_everyone", None) {
        return;
    }
    let most: u64 = std::fs::read_to_string("/proc/sys/fs/nr_open").unwrap().trim().parse().unwrap();
    let error = rlimit::set(Resource::Nofile, both(most + 1)).unwrap_err();
    assert!(matches!(error, Error::Syscall { rule: Some(Rule::AboveNrOpen), .. }), "{error:?}");
    assert!(error.hint().unwrap().contains("fs.nr_open"));
}

#[test]
fn another_process_is_changed_while_it_runs() {
    let other = Waiting::new(None);
    let before = rlimit::of(other.pid()).unwrap().get(Resource::Nofile).unwrap();
    let limits = Limits { soft: Limit::Value(64), hard: Limit::Value(128) };
    assert_eq!(rlimit::set_of(other.pid(), Resource::Nofile, limits).unwrap(), before);
    assert_eq!(rlimit::of(other.pid()).unwrap().get(Resource::Nofile), Some(limits));
    // Below what it has open already: it keeps that.
    rlimit::set_of(other.pid(), Resource::Nofile, both(0)).unwrap();
    let usage = rlimit::usage_of(other.pid()).unwrap();
    assert!(usage.open_files >= Some(3), "{usage:?}");
    assert_eq!((usage.threads, usage.locked), (Some(1), Some(0)));
}

#[test]
fn another_users_process_is_refused_in_the_words_of_the_rule() {
    let name = "another_users_process_is_refused_in_the_words_of_the_rule";
    require!(name, root() || std::env::var_os(ALONE).is_some(), "root", "another user");
    if !alone(name, Some(65_533)) {
        // Without CAP_SYS_RESOURCE not even root may: the rule of equal ids holds.
        let other = Waiting::new(Some(65_532));
        let result = rlimit::set_of(other.pid(), Resource::Core, both(0));
        if may_raise() {
            result.unwrap();
        } else {
            assert!(matches!(result, Err(Error::Syscall { rule: Some(Rule::OtherOwner), .. })), "{result:?}");
        }
        return;
    }
    // The parent, which is root's. Reading is for everyone.
    let parent = rustix::process::getppid().unwrap().as_raw_pid().try_into().unwrap();
    rlimit::of(parent).unwrap();
    assert!(rlimit::usage_of(parent).unwrap().threads.is_some());
    let error = rlimit::set_of(parent, Resource::Core, both(0)).unwrap_err();
    assert!(matches!(error, Error::Syscall { rule: Some(Rule::OtherOwner), .. }), "{error:?}");
    assert!(error.to_string().contains("CAP_SYS_RESOURCE in the user namespace of the process"), "{error}");
    assert_eq!(error.errno(), Some(1));
}

#[test]
fn who_is_not_there_is_said() {
    let gone = {
        let mut child = Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        child.id()
    };
    assert_eq!(rlimit::of(gone).unwrap_err().errno(), Some(2));
    assert_eq!(rlimit::usage_of(gone).unwrap_err().errno(), Some(2));
    let error = rlimit::set_of(gone, Resource::Core, both(0)).unwrap_err();
    assert_eq!(error.errno(), Some(3));
    assert!(error.to_string().ends_with("(hint: there is no process with that id)"), "{error}");
    for pid in [0, 1 << 31, u32::MAX] {
        assert!(matches!(rlimit::set_of(pid, Resource::Core, both(0)), Err(Error::Invalid { .. })), "{pid}");
    }
}
