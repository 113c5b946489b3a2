//! What the limit on processes and threads does, and what it does not.
//!
//! Moving into a group is never refused, so more can be in it than the limit allows; fork and clone inside are, with
//! `EAGAIN`. Threads count, and so does everything in groups below. "No limit" is the word `max`, not 0 and not -1.
//!
//! Ends with `ok`, or says what differs (exit 1), or `SKIP reason` (exit 77).

use std::error::Error;
use std::process::{Child, Command, ExitCode};
use std::time::Duration;

use cgroup::{Cgroup, Controller, Layout, Limit, Limits, Needs};
use sandbox_examples::worker::{Worker, serve};

const EAGAIN: &str = "refused: errno 11";
const PATIENCE: Duration = Duration::from_secs(30);

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// How it ended: well, or not at all.
enum Ended {
    Ok,
    Skipped(String),
}

fn main() -> ExitCode {
    serve(worker());
    match run() {
        Ok(Ended::Ok) => {
            println!("ok");
            ExitCode::SUCCESS
        }
        Ok(Ended::Skipped(reason)) => {
            println!("SKIP {reason}");
            ExitCode::from(77)
        }
        Err(error) => {
            eprintln!("pids_limit: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Starts things: `process`, `thread`.
fn worker() -> impl FnMut(&str) -> String {
    let mut children: Vec<Child> = Vec::new();
    let answer = |error: std::io::Error| format!("refused: errno {}", error.raw_os_error().unwrap_or(0));
    move |order| match order {
        "process" => match Command::new("/bin/sleep").arg("1000").spawn() {
            Ok(child) => {
                children.push(child);
                "started".to_owned()
            }
            Err(error) => answer(error),
        },
        _ => {
            let forever = || {
                loop {
                    std::thread::park();
                }
            };
            std::thread::Builder::new().spawn(forever).map_or_else(answer, |_| "started".to_owned())
        }
    }
}

/// A group that goes with the value.
struct Group(Cgroup);

impl Drop for Group {
    fn drop(&mut self) {
        if let Err(error) = self.0.remove(PATIENCE) {
            eprintln!("pids_limit: {error}");
        }
    }
}

fn run() -> Result<Ended> {
    let name = format!("sandbox-pids-limit-{}", std::process::id());
    let made = Layout::detect().and_then(|layout| Ok((layout.create(&name, &Needs::new([Controller::Pids]))?, layout)));
    let (group, layout) = match made {
        Ok((group, layout)) => (Group(group), layout),
        Err(error) => return Ok(Ended::Skipped(error.to_string())),
    };
    let group = &group.0;
    let version = group.version_of(Controller::Pids).ok_or("no pids controller")?;
    println!("{}; processes are counted by {version}", layout.describe());
    let set = |limit: Limit| {
        let mut limits = Limits::default();
        limits.pids_max = Some(limit);
        group.set(&limits).map(|_| ())
    };
    let now = || -> Result<u64> { Ok(group.usage()?.pids_current.ok_or("the kernel does not count")?) };

    println!("\n1. moving in is never refused");
    set(Limit::Value(2))?;
    let mut crowd = Vec::new();
    for _ in 0..6 {
        let worker = Worker::start()?;
        group.attach(worker.id())?;
        crowd.push(worker);
    }
    let current = now()?;
    println!("   limit 2, moved in 6 processes: current {current}");
    expect("more than the limit", current >= 6)?;

    println!("2. fork and clone inside are");
    let refused_before = group.events()?.pids_max.unwrap_or(0);
    for what in ["process", "thread"] {
        let answer = crowd[0].order(what)?;
        println!("   a new {what}: {answer}");
        expect("EAGAIN", answer == EAGAIN)?;
    }
    let refused = group.events()?.pids_max.unwrap_or(0) - refused_before;
    println!("   the kernel counted {refused} refusals");
    expect("at least two refusals", refused >= 2)?;

    println!("3. threads count, and so do groups below");
    // On v2 a group with groups below that count holds no processes of its own.
    drop(crowd);
    let (mut one, mut two) = (Worker::start()?, Worker::start()?);
    for (name, worker) in [("one", &one), ("two", &two)] {
        group.child(name, [Controller::Pids])?.attach(worker.id())?;
    }
    let base = now()?;
    println!("   a process in each of two groups below: {base}");
    set(Limit::Value(base + 2))?;
    let answers = [one.order("thread")?, two.order("process")?, one.order("thread")?];
    let current = now()?;
    println!(
        "   limit {}: in one a thread {}, in the other a process {}, one more thread {}; current {current}",
        base + 2,
        answers[0],
        answers[1],
        answers[2]
    );
    expect("two more and then EAGAIN", answers[0] == "started" && answers[1] == "started" && answers[2] == EAGAIN)?;
    expect("all of them counted", current == base + 2)?;

    println!("4. no limit is a word");
    set(Limit::Max)?;
    let raw = group.raw(Controller::Pids)?;
    let text = raw.read("pids.max")?.trim().to_owned();
    println!("   no limit reads back as {text:?}");
    expect("the word `max`", text == "max" && group.limits()?.pids_max == Some(Limit::Max))?;
    let answer = raw.write("pids.max", "-1").err().and_then(|error| error.errno());
    println!("   -1: the kernel answers errno {answer:?}, this library {:?}", "-1".parse::<Limit>().err());
    expect("EINVAL", answer == Some(22) && "-1".parse::<Limit>().is_err())?;
    set(Limit::Value(0))?;
    let answer = two.order("process")?;
    println!("   0 is a limit like any other; a new process: {answer}");
    expect("EAGAIN", answer == EAGAIN)?;
    Ok(Ended::Ok)
}

fn expect(what: &str, holds: bool) -> Result<()> {
    if holds { Ok(()) } else { Err(format!("expected {what}").into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worker_entry() {
        serve(worker());
    }

    #[test]
    fn main_works() {
        if let Err(error) = run() {
            panic!("{error}");
        }
    }
}
