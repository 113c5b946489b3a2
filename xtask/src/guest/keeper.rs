//! The process beside each guest: makes the confinement, watches, and clears up.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read as _, Write as _};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change, mount_remount};
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, Signal, pidfd_open, pidfd_send_signal};
use rustix::thread::{CapabilitySet, UnshareFlags};
use serde::{Deserialize, Serialize};

use super::cpio::Archive;
use super::job::{BOOT_MODULES, JOB, Job, RESULTS};
use super::machine::{MEMORY, Machine, RUN};
use super::{disk, read_line};
use crate::error::{Context, Error, Result};
use crate::sys;

/// What the command asks the keeper for: one line on its standard input, which then stays open as the lifeline.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) machine: Machine,
    pub(super) job: Job,
    pub(super) init: PathBuf,
    pub(super) disk: Option<PathBuf>,
    pub(super) swap: Option<PathBuf>,
    /// In MiB.
    pub(super) memory: u32,
    /// In seconds.
    pub(super) timeout: u64,
}

/// What the keeper says at the end, on its standard error. Its standard output carries that of the programs.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Answer {
    pub(super) results: String,
    pub(super) timed_out: bool,
    pub(super) console: String,
}

/// The whole life of a keeper.
pub(crate) fn keep() -> ExitCode {
    let answer = read_line(io::stdin())
        .context(|| "no order".into())
        .and_then(|line| serde_json::from_str(&line).context(|| "cannot read the order".into()))
        .and_then(|order| guest(&order));
    match answer.and_then(|answer| serde_json::to_string(&answer).context(|| "cannot answer".into())) {
        Ok(text) => {
            eprint!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprint!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn guest(order: &Order) -> Result<Answer> {
    // Before the namespaces: through these descriptors the images stay writable.
    let images: Vec<OwnedFd> =
        [&order.disk, &order.swap].into_iter().flatten().map(|path| disk::copy(path)).collect::<Result<_>>()?;
    confine(order.memory)?;
    let initrd = Path::new(RUN).join("initrd");
    write_initrd(order, &initrd).context(|| format!("cannot write {}", initrd.display()))?;

    // The programs' output: inherited, then ours no more, so that its end is the guest's end.
    let output = rustix::io::dup(rustix::stdio::stdout()).context(|| "cannot duplicate the output".into())?;
    let null = File::options().write(true).open("/dev/null").context(|| "cannot open /dev/null".into())?;
    rustix::stdio::dup2_stdout(&null).context(|| "cannot close the output".into())?;
    for fd in images.iter().chain([&output]) {
        fcntl_setfd(fd, FdFlags::empty()).context(|| "cannot let a descriptor be inherited".into())?;
    }
    let numbers: Vec<_> = images.iter().map(AsRawFd::as_raw_fd).collect();
    let argv = order.machine.command(&initrd, output.as_raw_fd(), &numbers);

    let console = Path::new(RUN).join("console");
    let log =
        File::options().create(true).append(true).open(&console).context(|| "cannot make the console's file".into())?;
    let errors = log.try_clone().context(|| "cannot duplicate the console's file".into())?;
    let mut command = Command::new("/proc/self/exe");
    command.arg("first-process").args(argv).current_dir(&order.machine.directory);
    command.stdin(Stdio::piped()).stdout(log).stderr(errors);
    let mut first = command.spawn().context(|| "cannot start the first process".into())?;
    drop((command, output, images));
    let pidfd =
        pidfd_open(Pid::from_child(&first), PidfdFlags::empty()).context(|| "cannot watch the first process".into())?;
    // Its sign that we are there, after it asked to be told of our end.
    if let Some(mut go) = first.stdin.take() {
        go.write_all(b"!").context(|| "cannot start the guest".into())?;
    }
    let end = watch(&pidfd, Duration::from_secs(order.timeout));
    if !matches!(end, Ok(End::Ended)) {
        pidfd_send_signal(&pidfd, Signal::KILL).context(|| "cannot end the guest".into())?;
    }
    first.wait().context(|| "cannot wait for the first process".into())?;
    let timed_out = matches!(end.context(|| "cannot watch the guest".into())?, End::TimedOut);
    // The run directory lives in our mount namespace, so it is still here, and goes with us.
    Ok(Answer {
        results: fs::read_to_string(Path::new(RUN).join(RESULTS)).unwrap_or_default(),
        timed_out,
        console: tail(&console, 40),
    })
}

enum End {
    Ended,
    TimedOut,
    /// The command is gone: the lifeline closed.
    Abandoned,
}

fn watch(pidfd: &OwnedFd, limit: Duration) -> io::Result<End> {
    let deadline = Instant::now() + limit;
    let lifeline = rustix::stdio::stdin();
    loop {
        let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now())).map_err(io::Error::other)?;
        let mut fds = [PollFd::new(pidfd, PollFlags::IN), PollFd::from_borrowed_fd(lifeline, PollFlags::IN)];
        match poll(&mut fds, Some(&left)) {
            Ok(0) => return Ok(End::TimedOut),
            Ok(_) if !fds[0].revents().is_empty() => return Ok(End::Ended),
            Ok(_) => return Ok(End::Abandoned),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Leaves the host: a guest's root can mount hostfs again, writable and whole, and then has what its process has.
///
/// So nothing that the process reaches may be writable or speak to the host's kernel.
fn confine(memory: u32) -> Result<()> {
    let namespaces =
        UnshareFlags::NEWNS | UnshareFlags::NEWPID | UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    sys::unshare(namespaces).context(|| "cannot make namespaces (guests need root)".into())?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).context(|| "cannot make the mounts private".into())?;
    sys::set_read_only_recursive(c"/")
        .context(|| "cannot make the machine's files read-only (needs Linux 5.12)".into())?;
    // Over what was there. Nobody inside may unmount.
    tmpfs("/sys", MountFlags::RDONLY, "mode=555")?;
    tmpfs("/dev", MountFlags::NOEXEC, "mode=755")?;
    for (name, minor) in [("null", 3), ("zero", 5), ("full", 7), ("random", 8), ("urandom", 9)] {
        let node = Path::new("/dev").join(name);
        mknodat(CWD, &node, FileType::CharacterDevice, Mode::from_raw_mode(0o666), makedev(1, minor))
            .context(|| format!("cannot make {}", node.display()))?;
    }
    std::os::unix::fs::symlink("/proc/self/fd", "/dev/fd").context(|| "cannot make /dev/fd".into())?;
    for directory in [RUN, MEMORY] {
        fs::create_dir(directory).context(|| format!("cannot make {directory}"))?;
    }
    mount_remount("/dev", MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOEXEC, "")
        .context(|| "cannot close /dev".into())?;
    let plain = MountFlags::NODEV | MountFlags::NOSUID;
    tmpfs(RUN, plain | MountFlags::NOEXEC, "mode=711,size=256m")?;
    tmpfs(MEMORY, plain, &format!("mode=1777,size={}m", memory + 64))
}

fn tmpfs(target: &str, flags: MountFlags, options: &str) -> Result<()> {
    let data = std::ffi::CString::new(options).context(|| format!("bad options {options}"))?;
    mount("tmpfs", target, "tmpfs", flags, data.as_c_str()).context(|| format!("cannot mount {target}"))
}

/// The first process of the guest's pid namespace: mounts its `/proc`, gives capabilities up, runs the machine.
pub(crate) fn first_process(argv: &[String]) -> ExitCode {
    let run = || -> Result<ExitCode> {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
            .context(|| "cannot bind to the keeper".into())?;
        // The keeper may have died before that: then there is no byte.
        io::stdin().read_exact(&mut [0]).context(|| "the keeper is gone".into())?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("proc", "/proc", "proc", flags | MountFlags::RDONLY, None).context(|| "cannot mount /proc".into())?;
        give_up_capabilities().context(|| "cannot give capabilities up".into())?;
        let [program, arguments @ ..] = argv else { return Err(Error::new("no machine to run")) };
        let status = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .status()
            .context(|| format!("cannot run {program}"))?;
        Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    };
    run().unwrap_or_else(|error| {
        eprintln!("{error}");
        ExitCode::FAILURE
    })
}

/// What programs that we start may still do as root: read every file of the (read-only) machine.
fn give_up_capabilities() -> io::Result<()> {
    let kept =
        CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH | CapabilitySet::CHOWN | CapabilitySet::FOWNER;
    for capability in CapabilitySet::all().difference(kept).iter() {
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) | Err(rustix::io::Errno::INVAL) => {} // INVAL: newer than this kernel
            Err(error) => return Err(error.into()),
        }
    }
    rustix::thread::set_no_new_privs(true)?;
    rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    Ok(())
}

fn write_initrd(order: &Order, path: &Path) -> io::Result<()> {
    let mut archive = Archive::new(BufWriter::new(File::create(path)?));
    for directory in ["dev", "proc", "sys", BOOT_MODULES] {
        archive.directory(directory)?;
    }
    // Without these two the guest's init starts without any open file, and ends there.
    archive.character_device("dev/console", 5, 1)?;
    archive.character_device("dev/null", 1, 3)?;
    for entry in fs::read_dir(order.machine.directory.join(BOOT_MODULES))? {
        let entry = entry?;
        archive.file(&format!("{BOOT_MODULES}/{}", entry.file_name().to_string_lossy()), &fs::read(entry.path())?)?;
    }
    archive.file("init", &fs::read(&order.init)?)?;
    archive.file(JOB, &serde_json::to_vec(&order.job)?)?;
    archive.finish()
}

/// The last lines of a text file.
fn tail(path: &Path, lines: usize) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<_> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
