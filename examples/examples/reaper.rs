//! Who adopts orphans in a PID namespace, that no zombies stay, and that the namespace dies with its init.
//!
//! No arguments. Prints what it does and what the kernel answers, and ends with `ok`, or says what differs (exit 1), or
//! `SKIP reason` (exit 77).
//!
//! The program starts itself again for each part that is to be played; the variable below says which one.

use std::error::Error;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, ExitCode, id};
use std::thread::sleep;
use std::time::{Duration, Instant};

use ns::support::{State, Support};
use ns::{Clone, Kind, Namespaces, Program, subreaper};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{WaitOptions, getppid, wait};

const PART: &str = "REAPER_PART";
/// What a part may need: the file to lock, or the pid of the parent that is about to leave.
const DETAIL: &str = "REAPER_DETAIL";
const ORPHANS: u32 = 20;
const PATIENCE: Duration = Duration::from_secs(60);

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    match std::env::var(PART) {
        Ok(part) => ExitCode::from(play(&part)),
        Err(_) => match direct() {
            Ok(None) => {
                println!("ok");
                ExitCode::SUCCESS
            }
            Ok(Some(reason)) => {
                println!("SKIP {reason}");
                ExitCode::from(77)
            }
            Err(error) => {
                println!("{error}");
                ExitCode::FAILURE
            }
        },
    }
}

/// The host's side; gives a reason when this host cannot.
fn direct() -> Result<Option<String>> {
    let mut namespaces = Namespaces::PID;
    match Support::probe()?.of(Kind::Pid) {
        State::Available => {}
        State::WithUser => namespaces |= Namespaces::USER,
        missing => return Ok(Some(format!("PID namespaces are {missing}"))),
    }
    let clone = Clone::new(namespaces);

    println!("a process in new namespaces ({namespaces}):");
    let init = program("init", "")?.spawn(&clone)?;
    if !init.pidfd.wait(Some(PATIENCE))? {
        init.pidfd.kill()?;
        return Err("the init has not ended by itself".into());
    }
    let status = init.pidfd.reap()?;
    expect("its exit status", Some(0), status.and_then(|status| status.code()))?;

    println!("\nanother one, with a child that holds a lock:");
    let path = std::env::temp_dir().join(format!("sandbox-reaper-{}", id()));
    let answer = death_of_init(&clone, &path);
    let _ = fs::remove_file(&path);
    answer.map(|()| None)
}

fn death_of_init(clone: &Clone<'_>, path: &Path) -> Result<()> {
    let lock = File::create(path)?;
    let taken = || flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err();
    let init = program("lasting init", &path.display().to_string())?.spawn(clone)?;
    let held = until(|| taken() || flock(&lock, FlockOperation::Unlock).is_err());
    println!("  the child holds its lock: {held}");
    init.pidfd.kill()?;
    let status = init.pidfd.reap()?.ok_or("somebody else has reaped the init")?;
    println!("  the init is killed: {status}");
    if !held {
        return Err("the child never took its lock".into());
    }
    // The kernel ends all the others before it lets anybody see that the init has ended.
    expect("the lock is still held, so the child lives", false, taken())
}

/// Plays a part and gives its exit code.
fn play(part: &str) -> u8 {
    let detail = std::env::var(DETAIL).unwrap_or_default();
    let played = match part {
        "init" => init(),
        "lasting init" => start("sleeper", &detail).map(|_| sleep(PATIENCE)),
        "sleeper" => File::open(&detail).map_err(Into::into).and_then(|file| hold(&file)),
        "subreaper" => adopt_by_subreaper(),
        "leaving parent" => (0..ORPHANS).try_for_each(|_| start("orphan", &id().to_string()).map(drop)),
        "orphan" => return orphan(&detail),
        other => Err(format!("there is no part `{other}`").into()),
    };
    played.map_or_else(
        |error| {
            println!("  {part}: {error}");
            1
        },
        |()| 0,
    )
}

/// PID 1 of the new namespace.
fn init() -> Result<()> {
    expect("its pid", 1, id())?;
    println!("  a child starts {ORPHANS} children and leaves them:");
    adopt(1)?;
    println!("  the same below a child subreaper:");
    let subreaper = start("subreaper", "")?;
    let (pid, status) = reap()?.ok_or("the subreaper has vanished")?;
    expect("reaped by the init: only the subreaper", (subreaper, Some(0)), (pid, status))?;
    expect("what else the init has to reap", None, reap()?)
}

fn adopt_by_subreaper() -> Result<()> {
    expect("PR_GET_CHILD_SUBREAPER before", false, subreaper::get()?)?;
    subreaper::set(true)?;
    expect("PR_GET_CHILD_SUBREAPER after", true, subreaper::get()?)?;
    adopt(id())
}

/// Orphans are made below this process; each is expected to become a child of `adopter`, this process, and is reaped.
fn adopt(adopter: u32) -> Result<()> {
    let parent = start("leaving parent", "")?;
    let mut reaped = 0;
    let mut left = false;
    while let Some((pid, status)) = reap()? {
        if pid == parent {
            left = true;
        } else if status == i32::try_from(adopter).ok() {
            reaped += 1;
        } else {
            return Err(format!("orphan {pid} says that its new parent is {status:?}, expected {adopter}").into());
        }
    }
    expect("the parent has left", true, left)?;
    expect(&format!("orphans whose parent is now {adopter}, all reaped"), ORPHANS, reaped)?;
    expect("what else there is to reap, children or zombies (None: ECHILD)", None, reap()?)
}

/// Waits until its parent has left, and says by its exit code who is the new one. Pids are small in a new namespace.
fn orphan(parent: &str) -> u8 {
    let parent_now = || getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    until(|| parent_now().to_string() != parent);
    u8::try_from(parent_now()).unwrap_or(u8::MAX)
}

fn hold(file: &File) -> Result<()> {
    flock(file, FlockOperation::LockExclusive)?;
    sleep(PATIENCE);
    Ok(())
}

/// Waits for any child; `None` when the kernel says that there is none (`ECHILD`).
fn reap() -> Result<Option<(u32, Option<i32>)>> {
    match wait(WaitOptions::empty()) {
        Ok(Some((pid, status))) => Ok(Some((u32::try_from(pid.as_raw_nonzero().get())?, status.exit_status()))),
        Ok(None) => Err("wait returned without a child".into()),
        Err(rustix::io::Errno::CHILD) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// This program again, to be born in new namespaces.
fn program(part: &str, detail: &str) -> Result<Program> {
    let mut program = Program::new("/proc/self/exe")?.env(PART, part)?.env(DETAIL, detail)?;
    for argument in ARGUMENTS {
        program = program.arg(argument)?;
    }
    Ok(program)
}

/// This program again, as an ordinary child; gives its pid.
fn start(part: &str, detail: &str) -> Result<u32> {
    let child = Command::new("/proc/self/exe").args(ARGUMENTS).env(PART, part).env(DETAIL, detail).spawn()?;
    Ok(child.id())
}

fn until(mut holds: impl FnMut() -> bool) -> bool {
    let clock = Instant::now();
    while clock.elapsed() < PATIENCE {
        if holds() {
            return true;
        }
        sleep(Duration::from_millis(5));
    }
    false
}

fn expect<T: PartialEq + std::fmt::Debug>(what: &str, expected: T, found: T) -> Result<()> {
    println!("  {what}: {found:?}");
    if found == expected { Ok(()) } else { Err(format!("{what}: expected {expected:?}, found {found:?}").into()) }
}

#[cfg(not(test))]
const ARGUMENTS: [&str; 0] = [];
/// In a test, `/proc/self/exe` is the test program: it plays its part in one of its tests.
#[cfg(test)]
const ARGUMENTS: [&str; 3] = ["--exact", "tests::part", "--nocapture"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn main_works() {
        direct().expect("ok, or skipped");
    }

    #[test]
    fn part() {
        if let Ok(part) = std::env::var(PART) {
            std::process::exit(play(&part).into());
        }
    }
}
