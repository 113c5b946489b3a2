//! A program entered later has the same limits, cgroup, ids and hardening as the first: both are children of one init.
//!
//! `cargo run --release --example exec_into` prints what each sees of itself, and `ok` when it is equal.

use std::error::Error;
use std::process::ExitCode;

use sandbox::{ErrorKind, Instance, Limit, Resource, Sandbox};

const SKIP: u8 = 77;
/// What a program sees of itself, without what differs by nature: its numbers, times and memory.
const LOOK: &str = "cat /proc/self/limits /proc/self/cgroup /proc/self/uid_map /proc/self/gid_map; \
    grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp|Sig(Blk|Ign)|Umask|Cpus_allowed|Mems_allowed)' /proc/self/status; \
    for n in cgroup ipc mnt net pid user uts; do readlink /proc/self/ns/$n; done; pwd; env";

fn main() -> ExitCode {
    match compare() {
        Ok(true) => {
            println!("ok");
            ExitCode::SUCCESS
        }
        Ok(false) => ExitCode::FAILURE,
        Err(error)
            if error.downcast_ref().is_some_and(|error: &sandbox::Error| error.kind() == ErrorKind::Unsupported) =>
        {
            println!("SKIP {error}");
            ExitCode::from(SKIP)
        }
        Err(error) => {
            println!("failed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn compare() -> Result<bool, Box<dyn Error>> {
    let mut builder = Sandbox::builder();
    builder.rlimit(Resource::Nofile, Limit::Value(64), Limit::Value(128));
    builder.rlimit(Resource::Fsize, Limit::Value(1 << 20), Limit::Value(1 << 20));
    let instance = builder.build()?.start()?;
    println!("a program starts in a new instance and stays there");
    let mut first = instance.command("sleep").arg("30").spawn()?;
    let first_look = look(&instance)?;
    println!("{first_look}");
    println!("a second one is entered beside it, and a third after the first has ended");
    let second = look(&instance)?;
    first.kill(std::time::Duration::from_secs(5))?;
    let third = look(&instance)?;
    for (name, seen) in [("second", &second), ("third", &third)] {
        for (expected, found) in first_look.lines().zip(seen.lines()).filter(|(a, b)| a != b) {
            println!("the {name} differs: {found:?} instead of {expected:?}");
        }
    }
    Ok(first_look == second && second == third)
}

fn look(instance: &Instance) -> Result<String, Box<dyn Error>> {
    let output = instance.command("sh").args(["-c", LOOK]).output()?;
    if !output.outcome.success() {
        return Err(
            format!("the program ended {}: {}", output.outcome.end, String::from_utf8_lossy(&output.stderr)).into()
        );
    }
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
fn main_works() {
    assert!(
        [ExitCode::SUCCESS, ExitCode::from(SKIP)].map(|code| format!("{code:?}")).contains(&format!("{:?}", main()))
    );
}
