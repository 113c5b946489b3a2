//! Output is bounded, counted for both streams together, and never makes anybody wait for ever.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use std::io::Read;
use std::time::{Duration, Instant};

use common::{sh, text};
use sandbox::{End, ErrorKind, LimitKind, Stdio};

const CAP: u64 = 64 << 10;

#[test]
fn payload() {
    common::acts::run(&[]);
}

#[test]
fn case_66_a_flood_is_cut_at_the_cap() {
    let sandbox = common::sandbox(|b| _ = b.output_max(CAP).wall_time_max(Duration::from_secs(60)));
    let output = sh(&sandbox, "yes & yes >&2");
    assert_eq!(output.outcome.end, End::Output, "{:#?}", output.outcome);
    assert_eq!(output.outcome.hit(LimitKind::Output), Some(1));
    assert_eq!((output.stdout.len() + output.stderr.len()) as u64, CAP);
    assert!(output.truncated);
}

#[test]
fn exactly_the_cap_is_not_too_much() {
    let sandbox = common::sandbox(|b| _ = b.output_max(CAP));
    let output = sh(&sandbox, "head -c 40000 /dev/zero; head -c 25536 /dev/zero >&2");
    assert!(output.outcome.success() && output.outcome.limits_hit.is_empty(), "{:#?}", output.outcome);
    assert_eq!((output.stdout.len(), output.stderr.len(), output.truncated), (40000, 25536, false));
}

#[test]
fn one_byte_more_is_too_much() {
    let sandbox = common::sandbox(|b| _ = b.output_max(CAP));
    let output = sh(&sandbox, "head -c 40000 /dev/zero; head -c 25537 /dev/zero >&2; sleep 0.1");
    assert_eq!(output.outcome.end, End::Output, "{:#?}", output.outcome);
    assert_eq!((output.stdout.len() + output.stderr.len()) as u64, CAP);
    assert!(output.truncated);
}

#[test]
fn case_66_a_reader_that_never_reads_is_not_waited_for() {
    let sandbox = common::sandbox(|b| _ = b.wall_time_max(Duration::from_millis(700)));
    let mut child = sandbox.command("yes").stdout(Stdio::piped()).spawn().unwrap();
    let outcome = child.wait().unwrap();
    assert_eq!(outcome.end, End::WallTime, "{outcome:#?}");
    let counted = common::sandbox(|b| _ = b.output_max(1 << 30).wall_time_max(Duration::from_millis(700)));
    let mut child = counted.command("yes").stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    assert_eq!(child.wait().unwrap().end, End::WallTime);
}

#[test]
fn case_66_a_grandchild_that_keeps_the_pipe_is_not_waited_for() {
    let sandbox = common::sandbox(|_| {});
    let started = Instant::now();
    let output = sh(&sandbox, "sleep 1000 & echo done");
    assert_eq!((text(&output).as_str(), output.outcome.end), ("done", End::Exited));
    assert!(started.elapsed() < Duration::from_secs(100));
}

#[test]
fn what_cannot_be_counted_is_refused() {
    let sandbox = common::sandbox(|b| _ = b.output_max(CAP));
    let error = sandbox.command("/bin/true").stdout(Stdio::inherit()).status().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    let null = sandbox.command("/bin/true").stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    assert!(null.success());
}

#[test]
fn streams_go_where_they_are_sent() {
    let sandbox = common::sandbox(|_| {});
    let mut child = sandbox
        .command("/bin/sh")
        .args(["-c", "read line; echo out $line; echo err >&2"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"word\n").unwrap();
    let (mut out, mut err) = (String::new(), String::new());
    child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!((out.as_str(), err.as_str()), ("out word\n", "err\n"));
    assert!(child.wait().unwrap().success());
    assert_eq!(text(&sh(&sandbox, "cat; echo end")), "end", "nothing to read where nobody said otherwise");
}

#[test]
fn a_megabyte_comes_whole() {
    let sandbox = common::sandbox(|_| {});
    let output = sh(&sandbox, "head -c 3000000 /dev/zero");
    assert_eq!(output.stdout.len(), 3_000_000);
    let counted = common::sandbox(|b| _ = b.output_max(4 << 20));
    assert_eq!(sh(&counted, "head -c 3000000 /dev/zero").stdout.len(), 3_000_000);
}
