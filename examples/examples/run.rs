//! Runs one program in a sandbox: the main job of the family, from the command line.
//!
//! `cargo run --release --example run -- --memory 64M --pids 32 --wall 5s -- /bin/sh -c 'id -u; hostname'`

use std::error::Error;
use std::ffi::OsString;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use clap::Parser;
use nix::sys::signal::{SigSet, Signal as NixSignal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use sandbox::cgroup::CpuList;
use sandbox::{
    Builder, DiskImage, End, Feature, IoRates, Landlock, Limit, Network, Outcome, Resource, Sandbox, Signal, Stdio,
};
use sandbox_examples::json;
use sandbox_examples::parse::{bytes, cpus, rates, time};

/// Exit statuses of our own, beside the program's and 128 + signal.
const NOT_SET_UP: u8 = 125;
const WALL_TIME: u8 = 124;
const CPU_TIME: u8 = 152;
const OUTPUT: u8 = 153;
const SECCOMP: u8 = 159;
const KILLED: u8 = 137;

/// Runs PROGRAM in a fresh sandbox. What is named here is required; defaults are preferred.
#[derive(Parser)]
#[command(name = "run")]
struct Arguments {
    /// Memory of all processes together: bytes, or with K, M, G
    #[arg(long, value_parser = bytes)]
    memory: Option<u64>,
    /// Swap of all processes together (default 0 with --memory)
    #[arg(long, value_parser = bytes)]
    swap: Option<u64>,
    /// Processes and threads
    #[arg(long)]
    pids: Option<u64>,
    /// CPUs: 0.5 is half of one
    #[arg(long, value_parser = millicpus)]
    cpu: Option<u64>,
    /// CPUs to run on: 0-3,8
    #[arg(long, value_name = "LIST", value_parser = cpus)]
    cpuset: Option<CpuList>,
    /// What may be transferred in a second: /dev/sda:read=10M,write=5M,read-ops=100
    #[arg(long, value_name = "DEVICE:NAME=RATE,…", value_parser = rates)]
    io_max: Vec<(String, IoRates)>,
    /// CPU time of all processes together: 2s, 500ms
    #[arg(long, value_parser = time)]
    cpu_time: Option<Duration>,
    /// Time from the start
    #[arg(long, value_parser = time)]
    wall: Option<Duration>,
    /// Bytes on disk
    #[arg(long, value_parser = bytes)]
    disk: Option<u64>,
    /// Files on disk
    #[arg(long)]
    inodes: Option<u64>,
    /// What is in /tmp lies on a disk image of `--disk` bytes: ext4 or xfs (root)
    #[arg(long, value_name = "FILE SYSTEM")]
    disk_image: Option<DiskImage>,
    /// Bytes of standard output and standard error together
    #[arg(long, value_parser = bytes)]
    output: Option<u64>,
    /// A resource limit: nofile=64 or nofile=64:128
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    rlimit: Vec<String>,
    /// Resource limits of a user, from limits.conf
    #[arg(long, value_name = "USER")]
    limits_conf: Option<String>,
    /// Root directory, read-only (default: the host's programs)
    #[arg(long, value_name = "DIR")]
    rootfs: Option<PathBuf>,
    /// Show SRC of the host at DST, writable
    #[arg(long, value_name = "SRC[:DST]")]
    bind: Vec<OsString>,
    /// The same, read-only
    #[arg(long, value_name = "SRC[:DST]")]
    bind_ro: Vec<OsString>,
    /// The same, writable, the owner shown as the program's user
    #[arg(long, value_name = "SRC[:DST]")]
    bind_owned: Vec<OsString>,
    /// An empty file system in memory
    #[arg(long, value_name = "DIR[:SIZE]")]
    tmpfs: Vec<String>,
    /// A path inside that can be read and executed, and nothing that is not named so (Landlock)
    #[arg(long, value_name = "PATH")]
    landlock_read: Vec<PathBuf>,
    /// The same, and written
    #[arg(long, value_name = "PATH")]
    landlock_write: Vec<PathBuf>,
    /// Network: none or host
    #[arg(long, default_value = "none", value_parser = ["none", "host"])]
    net: String,
    /// User id inside
    #[arg(long)]
    uid: Option<u32>,
    /// Group id inside
    #[arg(long)]
    gid: Option<u32>,
    /// Host name inside
    #[arg(long)]
    hostname: Option<OsString>,
    /// A variable of the environment
    #[arg(long, value_name = "K=V")]
    env: Vec<String>,
    /// Working directory inside
    #[arg(long, value_name = "DIR")]
    cwd: Option<PathBuf>,
    /// Enforce this feature only where the host can
    #[arg(long, value_name = "FEATURE")]
    prefer: Vec<Feature>,
    /// Do not touch this feature
    #[arg(long, value_name = "FEATURE")]
    off: Vec<Feature>,
    /// Print what would be enforced and by which mechanism, and run nothing
    #[arg(long)]
    plan: bool,
    /// No report on standard error
    #[arg(long)]
    quiet: bool,
    /// Write the outcome as JSON
    #[arg(long, value_name = "FILE")]
    outcome: Option<PathBuf>,
    /// The program and its arguments
    #[arg(last = true, required = true)]
    program: Vec<OsString>,
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(NOT_SET_UP) } else { ExitCode::SUCCESS };
        }
    };
    // Before there is any thread: what is blocked here is blocked in all of them, and read below.
    let signals = [NixSignal::SIGINT, NixSignal::SIGTERM, NixSignal::SIGHUP].into_iter().collect::<SigSet>();
    let _ = signals.thread_block();
    let result = run(&arguments, &signals);
    if let Some(path) = &arguments.outcome {
        let document = match &result {
            Ok(None) => None,
            Ok(Some(outcome)) => Some(json::outcome(outcome)),
            Err(error) => Some(json::error(error.as_ref())),
        };
        if let Some(Err(error)) = document.map(|document| write_by_rename(path, &document.to_string())) {
            eprintln!("run: cannot write {}: {error}", path.display());
            return ExitCode::from(NOT_SET_UP);
        }
    }
    match result {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(outcome)) => ExitCode::from(status(&outcome)),
        Err(error) => {
            eprintln!("run: {error}");
            ExitCode::from(NOT_SET_UP)
        }
    }
}

fn run(arguments: &Arguments, signals: &SigSet) -> Result<Option<Outcome>, Box<dyn Error>> {
    let sandbox = describe(arguments)?.build()?;
    if arguments.plan {
        print!("{}", sandbox.plan());
        return Ok(None);
    }
    let [program, args @ ..] = arguments.program.as_slice() else { return Err("no program".into()) };
    let mut command = sandbox.command(program);
    command.args(args).stdin(Stdio::inherit());
    if let Some(directory) = &arguments.cwd {
        command.current_dir(directory);
    }
    let counted = arguments.output.is_some();
    if counted {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
    }
    let mut child = command.spawn()?;
    let mut copies: Vec<JoinHandle<()>> = Vec::new();
    copies.extend(child.stdout.take().map(|from| copy(from.into(), Box::new(io::stdout()))));
    copies.extend(child.stderr.take().map(|from| copy(from.into(), Box::new(io::stderr()))));
    let program = child.pidfd().map(|fd| fd.try_clone_to_owned()).transpose()?;
    forward(signals, program)?;
    let mut outcome = child.wait()?;
    drop(child);
    for copy in copies {
        let _ = copy.join();
    }
    drop(command);
    let leftovers = sandbox.close();
    if !arguments.quiet {
        report(&outcome);
        leftovers.iter().for_each(|leftover| eprintln!("run: left behind: {leftover}"));
    }
    outcome.leftovers.extend(leftovers);
    Ok(Some(outcome))
}

/// The command line in the words of the builder.
fn describe(arguments: &Arguments) -> Result<Builder, Box<dyn Error>> {
    let mut builder = Sandbox::builder();
    arguments.memory.map(|bytes| builder.memory_max(bytes));
    arguments.swap.map(|bytes| builder.memory_swap_max(bytes));
    arguments.pids.map(|pids| builder.pids_max(pids));
    if let Some(millicpus) = arguments.cpu {
        builder.cpu_max(Duration::from_micros(millicpus * 100), Duration::from_millis(100));
    }
    if let Some(list) = &arguments.cpuset {
        builder.cpuset(list.ranges().iter().flat_map(|&(first, last)| first..=last));
    }
    for (device, rates) in &arguments.io_max {
        builder.io_max(device, *rates);
    }
    arguments.cpu_time.map(|time| builder.cpu_time_max(time));
    arguments.wall.map(|time| builder.wall_time_max(time));
    arguments.output.map(|bytes| builder.output_max(bytes));
    arguments.disk.map(|bytes| builder.disk_max(bytes));
    arguments.inodes.map(|inodes| builder.inodes_max(inodes));
    arguments.disk_image.map(|filesystem| builder.disk_image("/tmp", filesystem));
    for limit in &arguments.rlimit {
        let (resource, soft, hard) = resource_limit(limit)?;
        builder.rlimit(resource, soft, hard);
    }
    arguments.limits_conf.as_ref().map(|user| builder.limits_conf(user));
    arguments.rootfs.as_ref().map(|directory| builder.rootfs(directory));
    for bind in &arguments.bind {
        let (source, target) = bind_paths(bind);
        builder.bind(source, target);
    }
    for bind in &arguments.bind_owned {
        let (source, target) = bind_paths(bind);
        builder.bind_owned(source, target);
    }
    for bind in &arguments.bind_ro {
        let (source, target) = bind_paths(bind);
        builder.bind_read_only(source, target);
    }
    for tmpfs in &arguments.tmpfs {
        match tmpfs.rsplit_once(':') {
            Some((directory, size)) => builder.tmpfs(directory, Some(bytes(size)?)),
            None => builder.tmpfs(tmpfs, None),
        };
    }
    if !arguments.landlock_read.is_empty() || !arguments.landlock_write.is_empty() {
        let rules = arguments.landlock_read.iter().fold(Landlock::new(), Landlock::read);
        builder.landlock(arguments.landlock_write.iter().fold(rules, Landlock::write));
    }
    if arguments.net == "host" {
        builder.network(Network::Host);
    }
    arguments.uid.map(|uid| builder.user(uid));
    arguments.gid.map(|gid| builder.group(gid));
    arguments.hostname.as_ref().map(|name| builder.hostname(name));
    for variable in &arguments.env {
        let (key, value) = variable.split_once('=').ok_or_else(|| format!("--env {variable}: expected K=V"))?;
        builder.env(key, value);
    }
    arguments.prefer.iter().for_each(|feature| _ = builder.prefer(*feature));
    arguments.off.iter().for_each(|feature| _ = builder.off(*feature));
    Ok(builder)
}

/// Passes INT, TERM and HUP on to the program for as long as this process lives.
fn forward(signals: &SigSet, program: Option<OwnedFd>) -> Result<(), Box<dyn Error>> {
    let Some(program) = program else { return Ok(()) };
    let source = SignalFd::with_flags(signals, SfdFlags::SFD_CLOEXEC)?;
    let program = Arc::new(sandbox::ns::PidFd::from(program));
    thread::spawn(move || {
        while let Ok(Some(signal)) = source.read_signal() {
            let number = i32::try_from(signal.ssi_signo).unwrap_or(Signal::TERM.as_raw());
            let _ = program.send_signal(number);
        }
    });
    Ok(())
}

fn copy(from: OwnedFd, mut to: Box<dyn Write + Send>) -> JoinHandle<()> {
    thread::spawn(move || {
        let _ = io::copy(&mut std::fs::File::from(from), &mut to);
        let _ = to.flush();
    })
}

/// A few lines for people.
fn report(outcome: &Outcome) {
    let usage = &outcome.usage;
    let or_unknown = |value: Option<u64>| value.map_or_else(|| "unknown".to_owned(), |value| value.to_string());
    eprintln!(
        "run: {} ({}), wall {:.3} s, cpu {:.3} s, memory peak {}, processes peak {}",
        outcome.end,
        outcome.status,
        usage.wall.as_secs_f64(),
        (usage.cpu_user + usage.cpu_system).as_secs_f64(),
        or_unknown(usage.memory_peak),
        or_unknown(usage.pids_peak),
    );
    for hit in &outcome.limits_hit {
        eprintln!("run: limit reached: {} ({} times)", hit.limit, hit.count);
    }
    for entry in outcome.enforcement.iter() {
        if let Some(why) = &entry.why_not {
            let fix = entry.fix.as_deref().map_or_else(String::new, |fix| format!(" (fix: {fix})"));
            eprintln!("run: {}: {why}{fix}", entry.feature);
        }
    }
}

fn status(outcome: &Outcome) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    match outcome.end {
        End::WallTime => WALL_TIME,
        End::CpuTime => CPU_TIME,
        End::Output => OUTPUT,
        End::Seccomp => SECCOMP,
        End::Memory | End::Killed => KILLED,
        _ => {
            let status = outcome.status;
            let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
            code.and_then(|code| u8::try_from(code).ok()).unwrap_or(NOT_SET_UP)
        }
    }
}

fn write_by_rename(path: &Path, text: &str) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", std::process::id()));
    std::fs::write(&temporary, format!("{text}\n"))?;
    std::fs::rename(&temporary, path)
}

fn millicpus(text: &str) -> Result<u64, String> {
    let expected = || format!("`{text}`: expected CPUs, such as 0.5 or 2");
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if fraction.len() > 3 || text.starts_with('.') {
        return Err(expected());
    }
    let number = format!("{whole}{fraction:0<3}").parse().map_err(|_| expected())?;
    if number == 0 { Err(expected()) } else { Ok(number) }
}

fn resource_limit(text: &str) -> Result<(Resource, Limit, Limit), Box<dyn Error>> {
    let setting: sandbox::rlimit::Setting = text.parse().map_err(|error| format!("--rlimit {text}: {error}"))?;
    Ok((setting.resource, setting.limits.soft, setting.limits.hard))
}

fn bind_paths(text: &OsString) -> (PathBuf, PathBuf) {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let bytes = text.as_bytes();
    match bytes.iter().rposition(|byte| *byte == b':') {
        Some(at) => {
            let part = |bytes: &[u8]| PathBuf::from(OsString::from_vec(bytes.to_vec()));
            (part(&bytes[..at]), part(&bytes[at + 1..]))
        }
        None => (text.into(), text.into()),
    }
}

#[test]
fn main_works() {
    assert_eq!(bytes("64M"), Ok(64 << 20));
    assert!(bytes("64X").is_err());
    assert_eq!(time("1.5s"), Ok(Duration::from_millis(1500)));
    assert_eq!(millicpus("0.25"), Ok(250));
    assert_eq!(bind_paths(&"/a:/b".into()), ("/a".into(), "/b".into()));
}
