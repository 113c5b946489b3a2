//! A run and a start make as few system calls as is documented, in all processes and threads together.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::process::Command as HostCommand;

use common::acts::Act;
use sandbox::{Command, Stdio};

const ACTS: &[Act] = &[("runs", |words| runs(words)), ("starts", |words| starts(words))];

/// Caller, init, the program's child until it executes it, and keeper.
const RUN_MAX: f64 = 40.0;
/// The same, the child that becomes init, and what makes parts ahead and takes down.
const START_MAX: f64 = 440.0;

#[test]
fn payload() {
    common::acts::run(ACTS);
}

fn times(words: &[&str], mut command: impl FnMut() -> Command) {
    for _ in 0..words[0].parse().unwrap() {
        let mut command = command();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        assert!(command.status().unwrap().success());
    }
}

fn runs(words: &[&str]) {
    let instance = common::sandbox(|b| _ = b.prepared(0)).start().unwrap();
    times(words, || instance.command("/bin/true"));
}

fn starts(words: &[&str]) {
    let sandbox = common::sandbox(|b| _ = b.prepared(0));
    times(words, || sandbox.command("/bin/true"));
    assert_eq!(sandbox.close(), []);
}

/// How often each call was made by a command and all that it started.
fn counted(name: &str, command: &HostCommand) -> BTreeMap<String, f64> {
    let scratch = common::Scratch::new(name);
    let table = scratch.0.join("table");
    let mut strace = HostCommand::new("strace");
    strace.args(["-f", "-c", "-o"]).arg(&table).arg(command.get_program()).args(command.get_args());
    strace.envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))));
    // Cargo's, in which the loader looks for libraries.
    let output = strace.env_remove("LD_LIBRARY_PATH").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = fs::read_to_string(table).unwrap();
    let rows = text.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let call = words.last().filter(|call| **call != "total")?;
        Some(((*call).to_owned(), words.get(3)?.parse().ok()?))
    });
    rows.collect()
}

/// Of one time, without what the program does itself. What the acting process needs for itself is in both of its counts.
fn of_one(act: &str) -> BTreeMap<String, f64> {
    let acted = |times: u32| counted(&format!("{act}-{times}"), &common::unprotected(&format!("{act} {times}")));
    let (few, many) = (acted(10), acted(110));
    let mut own = counted(act, &HostCommand::new("/bin/true"));
    own.remove("execve");
    let count = |of: &BTreeMap<String, f64>, call: &str| of.get(call).copied().unwrap_or(0.0);
    let calls =
        many.keys().map(|call| (call.clone(), (count(&many, call) - count(&few, call)) / 100.0 - count(&own, call)));
    calls.filter(|(_, count)| *count > 0.05).collect()
}

#[test]
fn a_run_and_a_start_make_as_few_system_calls_as_is_documented() {
    require!(
        "a_run_and_a_start_make_as_few_system_calls_as_is_documented",
        !common::is_guest() && HostCommand::new("strace").arg("-V").output().is_ok(),
        "a host with strace",
        "none"
    );
    for (act, most) in [("runs", RUN_MAX), ("starts", START_MAX)] {
        let sum = |each: &BTreeMap<String, f64>| each.values().sum::<f64>();
        let mut each = of_one(act);
        // A lease of a range that somebody died with looks through /proc first.
        for _ in 0..3 {
            if sum(&each) > most {
                each = of_one(act);
            }
        }
        let sum = sum(&each);
        let table: Vec<String> = each.iter().map(|(call, count)| format!("{call} {count:.1}")).collect();
        println!("{act}: {sum:.1}: {}", table.join(", "));
        for copying in ["fork", "vfork"] {
            assert!(!each.contains_key(copying), "{act}: {table:?}");
        }
        assert!(!common::is_root() || sum <= most, "{act}: {sum} {table:?}");
    }
}
