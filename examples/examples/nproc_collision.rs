//! Why one container cannot start its database because *other* containers run many processes, and both cures.
//!
//! No arguments; needs root. `RLIMIT_NPROC` counts all processes of a real uid on the whole host (since Linux 5.14: per
//! user namespace and uid). Images that share a uid for "mysql" share its count. The cures are shown by themselves, and
//! then as the `sandbox` crate has them.

use std::error::Error;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitCode, Stdio};

use rustix::process::{Resource, Rlimit, setrlimit};
use sandbox::{Builder, Sandbox};
use sandbox_examples::held::{self, Identity};
use userns::{Lease, Pool, Setgroups};

/// The limit of processes, the first included.
const LIMIT: u64 = 10;
/// "mysql" of every image.
const MYSQL: u32 = 999;

const CONTAINER: &str = "--container";
const CHILD: &str = "--child";
const NO_RLIMIT: &str = "no-rlimit";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => run(),
        [CONTAINER, limit] => container(limit != NO_RLIMIT),
        // A process of the container: there until its input ends.
        [CHILD] => std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).map(drop).map_err(Into::into),
        _ => Err("nproc_collision takes no arguments".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error}");
            ExitCode::from(if error.to_string().starts_with("SKIP") { 77 } else { 1 })
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    if !rustix::process::geteuid().is_root() {
        return Err("SKIP needs root, to run containers as other users".into());
    }
    let pool = Pool::default_for_caller()?;
    let (one, two) = (pool.lease("nproc_collision 1")?, pool.lease("nproc_collision 2")?);
    println!("each container starts processes until it may not; its limit is {LIMIT}, itself included\n");

    println!("the same host uid, as when containers share a map, or have none:");
    let counts = pair([as_user(&one)?, as_user(&one)?])?;
    // Together they are 10: two first processes, and what the first container started.
    expect("the second cannot start one process because of the first", counts == [LIMIT - 2, 0])?;

    println!("\nthe same host uid, each in a user namespace of its own that root made:");
    let counts = pair([in_namespace(&one)?, in_namespace(&one)?])?;
    match counts[..] {
        [first, 0] if first == LIMIT - 2 => {
            println!("  this kernel counts per host uid, whatever the namespace (before Linux 5.14): no cure");
        }
        [first, second] if first == LIMIT - 1 && second == first => {
            println!("  this kernel counts per user namespace and host uid (since Linux 5.14): they do not meet,");
            println!("  but files, signals and all else of the one are the other's");
        }
        _ => return Err("differs: neither the old nor the new way to count".into()),
    }

    println!("\ncure 1: a range of its own for each:");
    let counts = pair([in_namespace(&one)?, in_namespace(&two)?])?;
    expect("both start all their processes", counts == [LIMIT - 1; 2])?;

    println!("\ncure 2: the same host uid, no RLIMIT_NPROC, a limit of the pids cgroup for each:");
    match cured_by_cgroup(&one)? {
        Ok(counts) => expect("both start all their processes, and no more", counts == [LIMIT - 1; 2])?,
        Err(why) => println!("  not shown: {why}"),
    }
    one.release()?;
    two.release()?;

    println!("\nthe sandbox crate, with both by default: each instance of \"mysql\" has a range of its own,");
    let counts = in_sandboxes(|builder| {
        builder.rlimit(rlimit::Resource::Nproc, rlimit::Limit::Value(LIMIT), rlimit::Limit::Value(LIMIT));
    })?;
    expect("with RLIMIT_NPROC both start all their processes", counts == [LIMIT - 1; 2])?;
    println!("and a limit of the pids cgroup, where this host has that:");
    let limited = |builder: &mut Builder| _ = builder.pids_max(LIMIT);
    match in_sandboxes(limited) {
        Ok(counts) => expect("with pids_max both start all their processes, and no more", counts == [LIMIT - 1; 2])?,
        Err(error) if error.is::<Unsupported>() => println!("  not shown: {error}"),
        Err(error) => return Err(error),
    }
    println!("ok");
    Ok(())
}

/// Both at the same time: how many processes each could start.
fn pair(containers: [Child; 2]) -> Result<Vec<u64>, Box<dyn Error>> {
    let mut counts = Vec::new();
    // The first keeps its processes while the second tries.
    let mut running = Vec::new();
    for (name, mut container) in ["first", "second"].into_iter().zip(containers) {
        let mut input = container.stdin.take().ok_or("no input")?;
        counts.push(answer(name, &mut input, container.stdout.take().ok_or("no output")?)?);
        running.push((container, input));
    }
    for (mut container, input) in running {
        drop(input);
        container.wait()?;
    }
    Ok(counts)
}

/// Lets a container go on, and hears how many processes it could start.
fn answer(name: &str, input: &mut impl std::io::Write, output: impl std::io::Read) -> Result<u64, Box<dyn Error>> {
    input.write_all(b"go\n")?;
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line)?;
    let (count, answer) = line.trim_end().split_once(' ').ok_or_else(|| format!("the {name} said {line:?}"))?;
    println!("  the {name} starts {count} more, then {answer}");
    Ok(count.parse()?)
}

fn program(limit: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.args([CONTAINER, limit]).stdin(Stdio::piped()).stdout(Stdio::piped());
    command
}

/// "mysql" of the lease, without a namespace.
fn as_user(lease: &Lease) -> Result<Child, Box<dyn Error>> {
    let (uid, gid) = (lease.range().base() + MYSQL, lease.gid_range().base() + MYSQL);
    Ok(program("rlimit").uid(uid).gid(gid).spawn()?)
}

/// "mysql" in a namespace of its own.
fn in_namespace(lease: &Lease) -> Result<Child, Box<dyn Error>> {
    let inside = Some((MYSQL, MYSQL));
    let identity = Identity { uids: lease.uid_map(), gids: lease.gid_map(), setgroups: Setgroups::Allow, inside };
    held::spawn(program("rlimit"), &identity)
}

fn cured_by_cgroup(lease: &Lease) -> Result<Result<Vec<u64>, String>, Box<dyn Error>> {
    use cgroup::{Controller, Layout, Limit, Limits, Needs};
    let needs = Needs::new([Controller::Pids]);
    let layout = Layout::detect()?;
    let name = |n: u32| format!("sandbox-nproc-collision-{}-{n}", std::process::id());
    let groups = match (layout.create(&name(1), &needs), layout.create(&name(2), &needs)) {
        (Ok(one), Ok(two)) => [one, two],
        (Err(error), other) | (other, Err(error)) => {
            if let Ok(group) = other {
                group.remove(std::time::Duration::from_secs(1))?;
            }
            return Ok(Err(error.to_string()));
        }
    };
    let mut limits = Limits::default();
    limits.pids_max = Some(Limit::Value(LIMIT));
    let mut containers = Vec::new();
    for group in &groups {
        drop(group.set(&limits)?);
        let (uid, gid) = (lease.range().base() + MYSQL, lease.gid_range().base() + MYSQL);
        let child = program(NO_RLIMIT).uid(uid).gid(gid).spawn()?;
        // It waits for its word, so that nothing was started outside.
        group.attach(child.id())?;
        containers.push(child);
    }
    let containers: [Child; 2] = containers.try_into().map_err(|_| "two containers")?;
    let counts = pair(containers);
    for group in &groups {
        group.remove(std::time::Duration::from_secs(5))?;
    }
    Ok(Ok(counts?))
}

/// Two instances of one sandbox, at the same time.
fn in_sandboxes(limit: impl FnOnce(&mut Builder)) -> Result<Vec<u64>, Box<dyn Error>> {
    let mut builder = Sandbox::builder();
    builder.user(MYSQL).group(MYSQL).bind_read_only(std::env::current_exe()?, "/container");
    limit(&mut builder);
    let sandbox = match builder.build() {
        Err(error) if error.kind() == sandbox::ErrorKind::Unsupported => return Err(Unsupported(error).into()),
        built => built?,
    };
    let mut counts = Vec::new();
    let mut running = Vec::new();
    for name in ["first", "second"] {
        let mut command = sandbox.command("/container");
        let mut child = command
            .args([CONTAINER, NO_RLIMIT])
            .stdin(sandbox::Stdio::piped())
            .stdout(sandbox::Stdio::piped())
            .spawn()?;
        let mut input = child.stdin.take().ok_or("no input")?;
        counts.push(answer(name, &mut input, child.stdout.take().ok_or("no output")?)?);
        running.push((child, input));
    }
    for (mut child, input) in running {
        drop(input);
        child.wait()?;
    }
    Ok(counts)
}

/// This host has no such limit.
#[derive(Debug)]
struct Unsupported(sandbox::Error);

impl std::fmt::Display for Unsupported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for Unsupported {}

/// In the container: one process after the other until the kernel says no.
fn container(limited: bool) -> Result<(), Box<dyn Error>> {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    if limited {
        setrlimit(Resource::Nproc, Rlimit { current: Some(LIMIT), maximum: Some(LIMIT) })?;
    }
    let mut children = Vec::new();
    // More than any limit here, so that a limit that does not hold is seen.
    let answer = loop {
        if children.len() as u64 > 3 * LIMIT {
            break "there is no limit".into();
        }
        match Command::new("/proc/self/exe").arg(CHILD).stdin(Stdio::piped()).stdout(Stdio::null()).spawn() {
            Ok(child) => children.push(child),
            Err(error) => break error.to_string(),
        }
    };
    println!("{} {answer}", children.len());
    std::io::stdin().read_line(&mut line)?;
    for mut child in children {
        drop(child.stdin.take());
        child.wait()?;
    }
    Ok(())
}

fn expect(what: &str, holds: bool) -> Result<(), Box<dyn Error>> {
    if holds {
        println!("  as expected: {what}");
        return Ok(());
    }
    Err(format!("differs: expected that {what}").into())
}
