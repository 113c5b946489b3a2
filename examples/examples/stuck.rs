//! Not every process in uninterruptible sleep is unkillable: a kill says who died, who was in a killable wait, and who is
//! truly stuck, where and why. It ends at its deadline, and can be tried again.
//!
//! Three processes that all show the state `D`: one that stands in vfork, which dies at once; one that a v1 freezer holds,
//! which dies when it is thawed; and one that writes to a frozen file system, which nothing ends before that is thawed.
//! The latter two are made only where they can be made without touching anything of the machine's.
//!
//! Ends with `ok`, or says what differs (exit 1), or `SKIP reason` (exit 77).

use std::error::Error;
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use cgroup::{Cgroup, Controller, Killed, Layout, Needs, Reason, Version};
use nix::fcntl::OFlag;
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, posix_spawn};
use nix::sys::stat::Mode;
use sandbox_examples::worker::{Worker, serve};

const PATIENCE: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(500);

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// How it ended: well, or not at all.
enum Ended {
    Ok,
    Skipped(String),
}

fn main() -> ExitCode {
    serve(worker);
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
            eprintln!("stuck: {error}");
            ExitCode::FAILURE
        }
    }
}

/// `vfork FIFO`: starts a child that must open a pipe before its exec, which nobody writes to; the parent waits with it.
fn worker(order: &str) -> String {
    let vfork = |fifo: &str| {
        let mut actions = PosixSpawnFileActions::init()?;
        actions.add_open(9, fifo, OFlag::O_RDONLY, Mode::empty())?;
        posix_spawn(c"/bin/true", &actions, &PosixSpawnAttr::init()?, &[c"true"], &[c""])
    };
    match order.strip_prefix("vfork ") {
        Some(fifo) => format!("{:?}", vfork(fifo)),
        None => "ready".to_owned(),
    }
}

/// A group that goes with the value.
struct Group(Cgroup);

impl Drop for Group {
    fn drop(&mut self) {
        if let Err(error) = self.0.remove(PATIENCE) {
            eprintln!("stuck: {error}");
        }
    }
}

/// A directory that goes with the value.
struct Home(PathBuf);

impl Drop for Home {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn run() -> Result<Ended> {
    let layout = match Layout::detect() {
        Ok(layout) => layout,
        Err(error) => return Ok(Ended::Skipped(error.to_string())),
    };
    let group = match layout.create(&name("members"), &Needs::new([])) {
        Ok(group) => Group(group),
        Err(error) => return Ok(Ended::Skipped(error.to_string())),
    };
    println!("{}", layout.describe());
    let home = Home(std::env::temp_dir().join(name("home")));
    fs::create_dir_all(&home.0)?;

    in_vfork(&group.0, &home.0)?;
    frozen_process(&layout, &group.0)?;
    frozen_file_system(&group.0, &home.0)?;
    Ok(Ended::Ok)
}

fn in_vfork(group: &Cgroup, home: &Path) -> Result<()> {
    println!("\n1. a process that stands in vfork");
    let fifo = home.join("never");
    make_fifo(&fifo)?;
    let mut worker = Worker::start()?;
    worker.order("hello")?;
    group.attach(worker.id())?;
    worker.tell(&format!("vfork {}", fifo.display()))?;
    asleep(worker.id())?;
    let killed = kill(group, PATIENCE)?;
    let waited = killed.killable_wait.iter().any(|one| one.pid == worker.id() && one.reason == Reason::Killable);
    expect("it died, and was in a killable wait", waited && killed.stuck.is_empty())
}

fn frozen_process(layout: &Layout, group: &Cgroup) -> Result<()> {
    println!("\n2. a process that a v1 freezer holds");
    if layout.version_of(Controller::Freezer) != Some(Version::V1) {
        println!("   there is no v1 freezer here; on v2 the frozen die like all others:");
        let mut worker = Worker::start()?;
        worker.order("hello")?;
        group.attach(worker.id())?;
        group.freeze(PATIENCE)?;
        let killed = kill(group, PATIENCE)?;
        group.thaw()?;
        return expect("it died frozen", killed.died.contains(&worker.id()) && killed.stuck.is_empty());
    }
    // A group of its own, which `group` knows nothing of.
    let ice = Group(layout.create(&name("ice"), &Needs::new([Controller::Freezer]).controllers_only())?);
    let mut worker = Worker::start()?;
    worker.order("hello")?;
    let members = Group(layout.create(&name("frozen"), &Needs::new([]))?);
    if members.0.unified().is_none() {
        println!("   (the freezer is the only core of groups on this machine; it thaws what it kills)");
        return Ok(());
    }
    members.0.attach(worker.id())?;
    ice.0.attach(worker.id())?;
    ice.0.freeze(PATIENCE)?;
    let killed = kill(&members.0, SHORT)?;
    expect("it is stuck, because frozen", killed.stuck.iter().any(|one| one.reason == Reason::Frozen))?;
    println!("   thawed:");
    ice.0.thaw()?;
    expect("then it is gone", kill(&members.0, PATIENCE)?.stuck.is_empty())
}

fn frozen_file_system(group: &Cgroup, home: &Path) -> Result<()> {
    println!("\n3. a process that writes to a frozen file system");
    let (mut shell, writer) = match frozen_writer(group, home)? {
        Ok(made) => made,
        Err(why) => {
            println!("   cannot be made here: {why}");
            return Ok(());
        }
    };
    let begin = Instant::now();
    let killed = kill(group, SHORT)?;
    let took = begin.elapsed();
    let right = killed.stuck.iter().any(|one| one.pid == writer && one.reason == Reason::Uninterruptible);
    let again = group.remove(SHORT).err().map(|error| error.to_string());
    println!("   removing the group: {}", again.as_deref().unwrap_or("worked"));
    println!("   thawed:");
    drop(shell.stdin.take());
    shell.wait()?;
    let after = kill(group, PATIENCE)?;
    expect("it was stuck in uninterruptible sleep", right && again.is_some())?;
    expect("the kill came back at its deadline", took < SHORT * 10)?;
    expect("then it is gone", after.stuck.is_empty())
}

/// An ext4 on a loop device, mounted and frozen in a mount namespace of its own, and a process of the group that writes
/// to it. It is thawed when the shell's input ends.
fn frozen_writer(group: &Cgroup, home: &Path) -> Result<std::result::Result<(Child, u32), String>> {
    const SCRIPT: &str =
        "truncate -s 16M image && mkfs.ext4 -q image && mkdir at && mount -o loop image at && fsfreeze -f at || exit 1
        sh -c 'read go; echo x >at/file' <go & echo $!
        read end; fsfreeze -u at; wait; umount at";
    make_fifo(&home.join("go"))?;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", SCRIPT]).current_dir(home);
    let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut shell = match spawned {
        Ok(shell) => shell,
        Err(error) => return Ok(Err(format!("unshare: {error}"))),
    };
    // Opened for both, so that neither side waits for the other.
    let mut go = OpenOptions::new().read(true).write(true).open(home.join("go"))?;
    let (Some(out), Some(mut errors)) = (shell.stdout.take(), shell.stderr.take()) else {
        return Err("no pipes to the shell".into());
    };
    let mut line = String::new();
    BufReader::new(out).read_line(&mut line)?;
    let Ok(writer) = line.trim().parse::<u32>() else {
        let mut why = String::new();
        errors.read_to_string(&mut why)?;
        shell.wait()?;
        return Ok(Err(why.trim().to_owned()));
    };
    group.attach(writer)?;
    go.write_all(b"go\n")?;
    asleep(writer)?;
    Ok(Ok((shell, writer)))
}

/// Waits until a process is in uninterruptible sleep to stay.
fn asleep(pid: u32) -> Result<()> {
    let begin = Instant::now();
    let mut times = 0;
    while times < 20 {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        times = if stat.contains(") D ") { times + 1 } else { 0 };
        if begin.elapsed() > PATIENCE {
            return Err(format!("process {pid} does not sleep: {stat}").into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    println!("   process {pid} shows the state D");
    Ok(())
}

fn kill(group: &Cgroup, timeout: Duration) -> Result<Killed> {
    let killed = group.kill(timeout)?;
    println!("   kill({timeout:?}): died {:?}", killed.died);
    for one in killed.killable_wait.iter().chain(&killed.stuck) {
        println!("      {one}");
    }
    Ok(killed)
}

fn make_fifo(path: &Path) -> Result<()> {
    Ok(nix::unistd::mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR)?)
}

fn name(what: &str) -> String {
    format!("sandbox-stuck-{}-{what}", std::process::id())
}

fn expect(what: &str, holds: bool) -> Result<()> {
    if holds { Ok(()) } else { Err(format!("expected: {what}").into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worker_entry() {
        serve(worker);
    }

    #[test]
    fn main_works() {
        if let Err(error) = run() {
            panic!("{error}");
        }
    }
}
