//! Each limit crossed, and stayed just below: what the kernel does is what the docs of `Resource` say.
//!
//! Each case is a process of its own: this test program, told by an environment variable what to do.
#![allow(clippy::unwrap_used, clippy::panic)] // Helpers of a test panic as the test does.

mod common;
#[path = "common/sys.rs"]
mod sys;

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use rlimit::{Limit, Limits, Resource};
use rustix::io::Errno;
use rustix::thread::CapabilitySet;

const ACT: &str = "SANDBOX_RLIMIT_ACT";
const SIGKILL: i32 = 9;
const SIGXCPU: i32 = 24;
const SIGXFSZ: i32 = 25;

/// What a child does; nothing when it is not asked. Leaves with 0, or with the error number.
#[test]
fn act() {
    let Some(act) = std::env::var_os(ACT) else { return };
    let result = perform(act.to_str().unwrap());
    let code = result.err().map_or(0, |error| error.raw_os_error().unwrap_or(255));
    std::process::exit(code);
}

fn perform(act: &str) -> io::Result<()> {
    let (name, amount) = act.split_once(' ').unwrap();
    let amount: u64 = amount.parse().unwrap();
    let size = usize::try_from(amount).unwrap();
    let usage = rlimit::usage_of(std::process::id()).unwrap();
    let room = |used: Option<u64>| Limits::both(Limit::Value(used.unwrap() + (8 << 20)));
    let set = |resource, limits| rlimit::set(resource, limits).unwrap();
    let allocate = || Vec::<u8>::new().try_reserve_exact(size).map_err(|_| io::Error::from(Errno::NOMEM));
    match name {
        "cpu" => {
            set(Resource::Cpu, Limits { soft: Limit::Value(1), hard: Limit::Value(5) });
            burn(Duration::from_millis(amount));
        }
        "cpu-hard" => {
            set(Resource::Cpu, Limits::both(Limit::Value(1)));
            burn(Duration::from_millis(amount));
        }
        "fsize" => {
            set(Resource::Fsize, Limits::both(Limit::Value(4096)));
            let mut file = File::create("file")?;
            // One byte more than fits is cut off; the next write is the crossing.
            let written = file.write(&vec![1; size])?;
            file.write_all(&vec![1; size - written])?;
        }
        "data" => {
            set(Resource::Data, room(usage.data));
            allocate()?;
        }
        "as" => {
            set(Resource::As, room(usage.address_space));
            allocate()?;
        }
        "stack" => {
            rlimit::set_soft(Resource::Stack, Limit::Value(1 << 20)).unwrap();
            let word = "x".repeat(100_000);
            Command::new("true").env_clear().args(vec![word; size]).status()?;
        }
        "core" => {
            set(Resource::Core, Limits { soft: Limit::Value(amount), hard: Limit::Unlimited });
            std::process::abort();
        }
        "nofile" => {
            set(Resource::Nofile, Limits::both(Limit::Value(20)));
            // Numbers are given out from below: all up to 19 are to be had.
            let mut files = vec![File::open("/dev/null")?];
            while files.last().is_some_and(|file| file.as_raw_fd() < 19) {
                files.push(File::open("/dev/null")?);
            }
            for _ in 0..amount {
                File::open("/dev/null")?;
            }
        }
        "nproc" => {
            let threads = usage.threads.unwrap();
            set(Resource::Nproc, Limits::both(Limit::Value(threads + 1)));
            let sleep = || std::thread::sleep(Duration::from_secs(1));
            for _ in 0..amount {
                std::thread::Builder::new().spawn(sleep)?;
            }
        }
        "memlock" => {
            set(Resource::Memlock, Limits::both(Limit::Value(64 << 10)));
            sys::lock(&vec![1; size])?;
        }
        "memlock-none" => {
            set(Resource::Memlock, Limits::both(Limit::Value(0)));
            sys::lock(&vec![1; size])?;
        }
        "sigpending" => {
            let signal = sys::first_realtime();
            sys::block(signal)?;
            set(Resource::Sigpending, Limits::both(Limit::Value(2)));
            for _ in 0..amount {
                sys::queue(signal)?;
            }
        }
        "msgqueue" => {
            set(Resource::Msgqueue, Limits::both(Limit::Value(amount)));
            let name = format!("/sandbox-rlimit-{}\0", std::process::id());
            sys::message_queue(std::ffi::CStr::from_bytes_with_nul(name.as_bytes()).unwrap())?;
        }
        "nice" => {
            let nice = i32::try_from(amount).unwrap();
            rustix::process::setpriority_process(None, -nice)?;
        }
        "rttime" => burn(Duration::from_millis(amount)),
        other => panic!("{other}?"),
    }
    Ok(())
}

/// Longer than any crossing takes. The kernel counts what these limits bound by clock ticks, of which a busy virtual
/// machine loses some, so that the process's own clock may be far ahead of it: only the signal ends what shall cross.
const UNTIL_KILLED: &str = "60000";

/// Uses so much CPU time, by the process's own clock.
fn burn(time: Duration) {
    while sys::cpu_time().unwrap() < time {}
}

/// This program again, about to act in a directory of its own, as nobody's uid when asked.
fn child(act: &str, uid: Option<u32>) -> ExitStatus {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "act", "--test-threads=1", "--nocapture"]).env(ACT, act).current_dir(&dir);
    if let Some(uid) = uid {
        command.uid(uid).gid(uid).current_dir("/");
    }
    command.output().unwrap().status
}

/// A uid that nobody has, different for each case: some limits count all processes of a uid.
fn nobody(case: u32) -> u32 {
    70_000 + (std::process::id() % 10_000) * 8 + case
}

fn may_change_uid(name: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    let mut command = Command::new(std::env::current_exe().unwrap());
    let fit =
        root && command.arg("--list").uid(nobody(7)).gid(nobody(7)).output().is_ok_and(|out| out.status.success());
    if !fit {
        common::skip(name, "root, and a test program that other users may execute", "neither or one of them");
    }
    fit
}

#[track_caller]
fn passes(status: ExitStatus) {
    assert_eq!(status.code(), Some(0), "{status}");
}

#[track_caller]
fn fails(status: ExitStatus, errno: Errno) {
    assert_eq!(status.code(), Some(errno.raw_os_error()), "{status}");
}

#[test]
fn cpu() {
    passes(child("cpu 500", None));
    assert_eq!(child(&format!("cpu {UNTIL_KILLED}"), None).signal(), Some(SIGXCPU));
    assert_eq!(child(&format!("cpu-hard {UNTIL_KILLED}"), None).signal(), Some(SIGKILL));
}

#[test]
fn fsize() {
    passes(child("fsize 4096", None));
    assert_eq!(child("fsize 4097", None).signal(), Some(SIGXFSZ));
}

#[test]
fn data_and_address_space() {
    for name in ["data", "as"] {
        passes(child(&format!("{name} {}", 4 << 20), None));
        // More than the allocator may have reserved before.
        fails(child(&format!("{name} {}", 100 << 20), None), Errno::NOMEM);
    }
}

#[test]
fn stack_bounds_arguments() {
    passes(child("stack 2", None));
    fails(child("stack 3", None), Errno::TOOBIG);
}

#[test]
fn core() {
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    require!("core", !pattern.starts_with(['|', '/']), "core dumps written to the current directory", pattern);
    assert!(child("core 100000000", None).core_dumped());
    assert!(!child("core 0", None).core_dumped());
}

#[test]
fn nofile() {
    passes(child("nofile 0", None));
    fails(child("nofile 1", None), Errno::MFILE);
}

#[test]
fn nproc() {
    if may_change_uid("nproc") {
        passes(child("nproc 1", Some(nobody(0))));
        fails(child("nproc 2", Some(nobody(1))), Errno::AGAIN);
    }
}

#[test]
fn memlock() {
    if may_change_uid("memlock") {
        passes(child("memlock 40000", Some(nobody(2))));
        fails(child("memlock 80000", Some(nobody(2))), Errno::NOMEM);
        fails(child("memlock-none 1", Some(nobody(2))), Errno::PERM);
    }
}

#[test]
fn sigpending() {
    if may_change_uid("sigpending") {
        passes(child("sigpending 2", Some(nobody(3))));
        fails(child("sigpending 3", Some(nobody(3))), Errno::AGAIN);
    }
}

#[test]
fn msgqueue() {
    let mounted = fs::read_to_string("/proc/filesystems").unwrap().contains("mqueue");
    require!("msgqueue", mounted, "a kernel with POSIX message queues", "none");
    if may_change_uid("msgqueue") {
        passes(child("msgqueue 819200", Some(nobody(4))));
        fails(child("msgqueue 4096", Some(nobody(5))), Errno::MFILE);
    }
}

#[test]
fn nice() {
    if may_change_uid("nice") {
        passes(child("nice 0", Some(nobody(6))));
        let errno = if rlimit::get(Resource::Nice).hard < Limit::Value(21) { Errno::ACCESS } else { return };
        fails(child("nice 1", Some(nobody(6))), errno);
    }
}

#[test]
fn rttime() {
    let capable = rustix::thread::capabilities(None).unwrap().effective.contains(CapabilitySet::SYS_NICE);
    require!("rttime", capable, "CAP_SYS_NICE", "none");
    let limited = |act: &str| {
        let mut command = Command::new("prlimit");
        command.args(["--rttime=200000:10000000", "chrt", "--fifo", "1"]);
        command.arg(std::env::current_exe().unwrap()).args(["--exact", "act", "--test-threads=1", "--nocapture"]);
        command.env(ACT, act).output().map(|output| output.status)
    };
    let below = limited("rttime 20");
    require!("rttime", below.as_ref().is_ok_and(|s| s.success()), "prlimit, chrt and SCHED_FIFO", format!("{below:?}"));
    assert_eq!(limited(&format!("rttime {UNTIL_KILLED}")).unwrap().signal(), Some(SIGXCPU));
}
