//! Boots a kernel on a read-only view of this machine, runs programs in it, and reports how they ended.
//!
//! Three processes take part. The *command* (this process) says what to do and passes output on. Its *keeper*, in new
//! mount, pid, network, IPC and UTS namespaces, builds the view: all of the machine read-only, a `/dev` of five nodes,
//! an empty `/sys`; images are files without a name. The keeper's child is the first process of the pid namespace; below
//! it, with nearly no capabilities, runs User-Mode Linux or QEMU. The keeper ends the namespace, through its pidfd, when
//! the time is over or when the command is gone (the pipe between them closes); if the keeper itself is killed, the
//! kernel does it. So nothing can be left behind: no process, no mount, no image.

mod apt;
mod cpio;
mod disk;
pub(crate) mod job;
mod keeper;
pub(crate) mod kernel;
mod machine;

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

pub(crate) use disk::DiskKind;
use job::{Job, Layout, Program, ProgramResult};
pub(crate) use keeper::{first_process, keep};
use kernel::Kernel;

use crate::cargo;
use crate::error::{Context, Error, Result};

/// A guest's memory in MiB: programs, files written, and swap's other side share it.
pub(crate) const MEMORY: u32 = 1024;

/// One guest as it was asked for.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// How the cgroup hierarchies are mounted.
    #[arg(long, value_enum, default_value = "v2")]
    pub(crate) cgroup: Layout,
    /// Who runs the command.
    #[arg(long, value_enum, default_value = "root")]
    pub(crate) user: User,
    /// What is mounted at /mnt/quota.
    #[arg(long, value_enum, default_value = "none")]
    pub(crate) disk: DiskKind,
    /// Swap space, e.g. `64M` (plain numbers are MiB).
    #[arg(long, value_parser = parse_size, value_name = "SIZE")]
    pub(crate) swap: Option<u64>,
    /// CPUs; User-Mode Linux always has one.
    #[arg(long, default_value_t = 2)]
    pub(crate) smp: u32,
    /// The guest's memory in MiB.
    #[arg(long, default_value_t = MEMORY)]
    pub(crate) mem: u32,
    /// Seconds until the guest is ended.
    #[arg(long, default_value_t = 300)]
    pub(crate) timeout: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, clap::ValueEnum)]
pub(crate) enum User {
    Root,
    /// An ordinary user with 65536 subordinate ids and a delegated cgroup.
    #[value(name = "1000")]
    Ordinary,
}

impl User {
    fn uid(self) -> u32 {
        match self {
            Self::Root => 0,
            Self::Ordinary => 1000,
        }
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Root => "root",
            Self::Ordinary => "1000",
        })
    }
}

impl fmt::Display for DiskKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(clap::ValueEnum::to_possible_value(self).as_ref().map_or("", |value| value.get_name()))
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::V1 => "v1",
            Self::Hybrid => "hybrid",
            Self::V2 => "v2",
        })
    }
}

/// How a guest ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// One for each program, in order; fewer when the guest ended before.
    pub(crate) results: Vec<ProgramResult>,
    /// Ended by us because its time was over.
    pub(crate) timed_out: bool,
    /// The last lines of the guest's console and of what ran it.
    pub(crate) console: String,
}

/// Boots `kernel` and runs `programs` in it one after the other, their output into `output` as it comes.
pub(crate) fn run(
    kernel: Kernel,
    options: &Options,
    mut programs: Vec<Program>,
    mut output: impl Write + Send,
) -> Result<Outcome> {
    let installed = kernel.install()?;
    let cache = kernel::cache();
    // What the guest is, for programs that want to know.
    let place = place(kernel, options.cgroup, options.user);
    for program in &mut programs {
        program.environment.push(("SANDBOX_GUEST".into(), place.clone()));
    }
    let order = keeper::Order {
        disk: options.disk.template(&cache)?,
        swap: options.swap.map(|size| disk::swap_template(&cache, size)).transpose()?,
        init: guest_init()?,
        timeout: options.timeout,
        memory: options.mem,
        machine: machine::Machine::new(kernel, &installed, options),
        job: Job {
            hostname: format!("guest-{kernel}"),
            modules: installed.directory,
            cgroup: options.cgroup,
            uid: options.user.uid(),
            visible: visible(&programs),
            programs,
            ..machine::job_defaults(kernel, options)
        },
    };
    let order = serde_json::to_string(&order).context(|| "cannot write the order".into())?;

    // A process group of its own: an interrupt from the terminal ends us, and thereby the keeper in its own order.
    let mut command = Command::new("/proc/self/exe");
    command.arg("keep-guest").process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut keeper = command.spawn().context(|| "cannot start the guest's keeper".into())?;
    let (Some(mut lifeline), Some(mut stream), Some(mut answer)) =
        (keeper.stdin.take(), keeper.stdout.take(), keeper.stderr.take())
    else {
        return Err(Error::new("the guest's keeper has no pipes"));
    };
    writeln!(lifeline, "{order}").context(|| "cannot hand over the order".into())?;
    let mut text = String::new();
    let copied = std::thread::scope(|scope| {
        let copier = scope.spawn(move || copy(&mut stream, &mut output));
        let read = answer.read_to_string(&mut text);
        let copied = copier.join().unwrap_or_else(|_| Err(io::Error::other("the copier panicked")));
        read.and(copied)
    });
    let status = keeper.wait().context(|| "cannot wait for the guest's keeper".into())?;
    drop(lifeline);
    copied.context(|| "cannot pass the guest's output on".into())?;
    let answer: keeper::Answer = serde_json::from_str(&text)
        .map_err(|_| Error::new(format!("the guest's keeper ended ({status}) and said: {}", text.trim())))?;
    let results = answer.results.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    Ok(Outcome { results, timed_out: answer.timed_out, console: answer.console })
}

/// `KERNEL.CGROUP.USER`: how lists and logs name a guest.
pub(crate) fn place(kernel: Kernel, cgroup: Layout, user: User) -> String {
    format!("{kernel}.{cgroup}.{user}")
}

/// Like `io::copy`, but without waiting for a full buffer, and going on when nobody reads any more.
fn copy(stream: &mut impl Read, output: &mut impl Write) -> io::Result<()> {
    let mut buffer = [0; 16 << 10];
    let mut lost = None;
    loop {
        match stream.read(&mut buffer)? {
            0 => return lost.map_or(Ok(()), Err),
            n if lost.is_none() => lost = output.write_all(&buffer[..n]).and_then(|()| output.flush()).err(),
            _ => {}
        }
    }
}

/// A program as the command line gives it: in the same directory.
pub(crate) fn program(arguments: Vec<String>) -> Result<Program> {
    let directory = std::env::current_dir().context(|| "cannot find the current directory".into())?;
    Ok(Program {
        name: arguments.first().cloned().unwrap_or_default(),
        arguments,
        environment: environment(),
        directory,
        limit: 24 * 3600,
    })
}

/// The variables that builds and tests use. (`HOME` and the like are the guest's own for its user.)
pub(crate) fn environment() -> Vec<(String, String)> {
    let passes = |name: &str| {
        ["PATH", "HOME", "TERM", "LANG", "CARGO_HOME", "CARGO_TARGET_DIR"].contains(&name)
            || ["RUST_", "SANDBOX_"].iter().any(|start| name.starts_with(start))
    };
    std::env::vars().filter(|(name, _)| passes(name)).collect()
}

/// Directories that the programs need and that may lie where the guest mounts something of its own.
fn visible(programs: &[Program]) -> Vec<PathBuf> {
    let of = |program: &Program| {
        let executable =
            program.arguments.first().map(Path::new).and_then(Path::parent).filter(|path| path.is_absolute());
        [Some(program.directory.clone()), executable.map(Path::to_path_buf)]
    };
    let mut directories: Vec<_> = programs.iter().flat_map(of).flatten().collect();
    directories.sort();
    directories.dedup();
    directories
}

/// The guest's init, built once per run of ours: static, so that it needs nothing of the tree that it is to build.
fn guest_init() -> Result<PathBuf> {
    static BUILT: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let build = cargo::build_static_bin("guest-init");
        build.map_err(|error| error.to_string())
    });
    built.clone().map_err(Error::new)
}

/// `64M`, `1G`, `4096K`, and plain numbers as MiB.
fn parse_size(text: &str) -> std::result::Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "K" | "k" => 10,
        "" | "M" | "m" => 20,
        "G" | "g" => 30,
        unit => return Err(format!("unknown unit {unit:?}: K, M or G")),
    };
    let number: u64 = digits.parse().map_err(|error| format!("{error}"))?;
    number.checked_mul(1 << shift).ok_or_else(|| "too big".into())
}

/// One line for each kernel: whether it can run here, and why not.
pub(crate) fn list(out: &mut impl Write) -> io::Result<()> {
    for kernel in kernel::ALL {
        let state = match kernel.installed() {
            _ if !rustix::process::geteuid().is_root() => "missing    guests need root".into(),
            Some(installed) => format!("ready      {}", installed.release),
            None if crate::packages::can_install() => "available  downloaded at its first use".into(),
            None => "missing    only root on Debian can download it".into(),
        };
        writeln!(out, "{kernel:<10} {state}")?;
    }
    Ok(())
}

/// Reads one line, leaving what follows.
fn read_line(from: impl Read) -> io::Result<String> {
    let mut line = String::new();
    BufReader::with_capacity(1 << 16, from).read_line(&mut line)?;
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("64M"), Ok(64 << 20));
        assert_eq!(parse_size("64"), Ok(64 << 20));
        assert_eq!(parse_size("4096k"), Ok(4 << 20));
        assert!(parse_size("64X").unwrap_err().contains("unknown unit"));
        assert!(parse_size("").is_err());
        assert!(parse_size("99999999999999999G").is_err());
    }

    #[test]
    fn programs_and_their_directories_stay_visible() {
        let program = |argument: &str, directory: &str| Program {
            name: String::new(),
            arguments: vec![argument.into()],
            environment: Vec::new(),
            directory: directory.into(),
            limit: 1,
        };
        let programs = [program("/tmp/target/deps/memory-1", "/usr/src/cgroup"), program("true", "/usr/src/cgroup")];
        assert_eq!(visible(&programs), [Path::new("/tmp/target/deps"), Path::new("/usr/src/cgroup")]);
    }

    #[test]
    fn a_reader_that_goes_away_does_not_stop_the_guest() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let text = vec![b'x'; 100_000];
        let mut stream = text.as_slice();
        assert!(copy(&mut stream, &mut Closed).is_err());
        assert!(stream.is_empty());
    }
}
