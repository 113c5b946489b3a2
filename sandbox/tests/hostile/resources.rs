//! Limits of a single process, and what it may not do about them.

use libc::{EACCES, EMFILE, ENOMEM, EPERM};
use sandbox::{End, Limit, LimitKind, Resource};

use crate::common::acts::{answer, errno, say};
use crate::common::{act, ask, said, sh, text};

#[test]
fn case_53_limits_and_priorities_cannot_be_raised() {
    let sandbox = crate::common::sandbox(|b| _ = b.rlimit(Resource::Nofile, Limit::Value(64), Limit::Value(128)));
    // A refusal may end the shell: one question at a time.
    assert_eq!(text(&sh(&sandbox, "ulimit -Sn; ulimit -Hn; ulimit -Sn 128 && ulimit -Sn")), "64\n128\n128");
    assert!(!sh(&sandbox, "ulimit -Hn 4096").outcome.success());
    assert!(!sh(&sandbox, "echo -1000 > /proc/self/oom_score_adj").outcome.success());
    let nice = ask(&sandbox, &format!("call answer {} 0 0 -5", libc::SYS_setpriority), "answer");
    assert!([EACCES, EPERM].iter().any(|errno| nice == (-errno).to_string()), "{nice}");
}

#[test]
fn case_53_locked_memory_is_bounded() {
    let sandbox = crate::common::sandbox(|_| {});
    assert_eq!(ask(&sandbox, "locked 32", "locked"), "0");
    let over = ask(&sandbox, "locked 256", "locked");
    assert!([ENOMEM, EPERM].iter().any(|errno| over == errno.to_string()), "{over}");
}

/// `locked KIB`: locks that much, says the errno.
pub(crate) fn locked(words: &[&str]) {
    let size = words[0].parse::<usize>().unwrap() << 10;
    let block = vec![1u8; size + 4096];
    let at = i64::try_from(block.as_ptr().align_offset(4096) + block.as_ptr() as usize).unwrap();
    let result = answer([libc::SYS_mlock, at, i64::try_from(size).unwrap(), 0, 0, 0, 0]);
    say("locked", if result < 0 { errno() } else { 0 });
}

#[test]
fn case_64_descriptors_end_at_the_limit() {
    let sandbox = crate::common::sandbox(|b| _ = b.rlimit(Resource::Nofile, Limit::Value(100), Limit::Value(100)));
    let output = act(&sandbox, "files").output().unwrap();
    assert_eq!(said(&output.stdout, "files"), format!("97 {EMFILE}"));
}

/// Opens until it is refused.
pub(crate) fn files() {
    let mut open = Vec::new();
    loop {
        match std::fs::File::open("/dev/null") {
            Ok(file) => open.push(file),
            Err(error) => {
                say("files", format!("{} {}", open.len(), error.raw_os_error().unwrap_or(0)));
                return;
            }
        }
    }
}

#[test]
fn a_file_past_its_limit_ends_the_program_and_is_told() {
    let sandbox = crate::common::sandbox(|b| _ = b.rlimit(Resource::Fsize, Limit::Value(4096), Limit::Value(4096)));
    assert!(sh(&sandbox, "head -c 4096 /dev/zero > /tmp/below").outcome.success());
    let outcome =
        sandbox.command("dd").args(["if=/dev/zero", "of=/tmp/over", "bs=8192", "count=2"]).output().unwrap().outcome;
    assert_eq!((outcome.end, outcome.hit(LimitKind::FileSize)), (End::Signaled, Some(1)), "{outcome:#?}");
}

#[test]
fn limits_of_one_program_lie_over_those_of_the_sandbox() {
    let sandbox = crate::common::sandbox(|_| {});
    let mut command = sandbox.command("/bin/sh");
    command.args(["-c", "ulimit -Sn; ulimit -Hn"]).rlimit(Resource::Nofile, Limit::Value(20), Limit::Value(30));
    assert_eq!(text(&command.output().unwrap()), "20\n30");
}
