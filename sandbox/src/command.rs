//! [`Command`]: one program, in a fresh instance or in a running one. The names are those of [`std::process::Command`].

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use rlimit::{Limit, Limits, Resource};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::child::{Child, Streams, Watch};
use crate::init::protocol::Descriptor;
use crate::init::{Answer, Environment, Layout, Request, Waited, protocol};
use crate::instance::{Running, broken};
use crate::outcome::{Outcome, Output};
use crate::relay::{Allowance, Relay};
use crate::stdio::{self, Kind, ProgramEnd, Stdio};
use crate::{Error, Plan, ProgramCause, Sandbox, keeper};

/// A program to be run, and with what.
///
/// Can be used several times; each [`spawn`](Self::spawn) of a command of a [`Sandbox`] gets a fresh instance.
#[derive(Debug)]
pub struct Command {
    place: Place,
    program: OsString,
    args: Vec<OsString>,
    env_clear: bool,
    env: BTreeMap<OsString, OsString>,
    directory: OsString,
    stdin: Option<Kind>,
    stdout: Option<Kind>,
    stderr: Option<Kind>,
    fds: BTreeMap<i32, OwnedFd>,
    rlimits: BTreeMap<Resource, Limits>,
}

/// Where the program runs.
#[derive(Debug)]
enum Place {
    Fresh(Sandbox),
    Running(Arc<Running>),
}

impl Command {
    fn new(place: Place, program: &OsStr) -> Self {
        Self {
            place,
            program: program.to_owned(),
            args: Vec::new(),
            env_clear: false,
            env: BTreeMap::new(),
            directory: "/".into(),
            stdin: None,
            stdout: None,
            stderr: None,
            fds: BTreeMap::new(),
            rlimits: BTreeMap::new(),
        }
    }

    pub(crate) fn in_sandbox(sandbox: &Sandbox, program: &OsStr) -> Self {
        Self::new(Place::Fresh(sandbox.clone()), program)
    }

    pub(crate) fn in_instance(running: &Arc<Running>, program: &OsStr) -> Self {
        Self::new(Place::Running(Arc::clone(running)), program)
    }

    /// Adds one argument.
    pub fn arg(&mut self, arg: impl AsRef<OsStr>) -> &mut Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds several arguments. Together with the environment they may have 2 MiB.
    pub fn args<T: AsRef<OsStr>>(&mut self, args: impl IntoIterator<Item = T>) -> &mut Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets a variable, over the sandbox's own of that name.
    pub fn env(&mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> &mut Self {
        self.env.insert(key.as_ref().to_owned(), value.as_ref().to_owned());
        self
    }

    /// Starts from an empty environment, not from the sandbox's; also forgets what [`env`](Self::env) has set.
    pub fn env_clear(&mut self) -> &mut Self {
        self.env_clear = true;
        self.env.clear();
        self
    }

    /// The working directory inside (default: `/`). It is entered with the program's own rights.
    pub fn current_dir(&mut self, directory: impl AsRef<OsStr>) -> &mut Self {
        self.directory = directory.as_ref().to_owned();
        self
    }

    /// Standard input (default: [`Stdio::null`]).
    pub fn stdin(&mut self, stdio: impl Into<Stdio>) -> &mut Self {
        self.stdin = Some(stdio.into().0);
        self
    }

    /// Standard output (default: [`Stdio::inherit`]; with [`output`](Self::output) a pipe).
    pub fn stdout(&mut self, stdio: impl Into<Stdio>) -> &mut Self {
        self.stdout = Some(stdio.into().0);
        self
    }

    /// Standard error (default: as standard output).
    pub fn stderr(&mut self, stdio: impl Into<Stdio>) -> &mut Self {
        self.stderr = Some(stdio.into().0);
        self
    }

    /// Gives the program `fd` as its descriptor `number`, 3 or above; no other descriptor is passed on.
    ///
    /// A directory descriptor lets the program leave its root directory: pass files, pipes and sockets.
    pub fn fd(&mut self, fd: impl Into<OwnedFd>, number: i32) -> &mut Self {
        self.fds.insert(number, fd.into());
        self
    }

    /// Sets one resource limit of this program, over the sandbox's own. Hard limits can only be lowered here: a start with
    /// one above the sandbox's is [`Error::Invalid`].
    pub fn rlimit(&mut self, resource: Resource, soft: Limit, hard: Limit) -> &mut Self {
        self.rlimits.insert(resource, Limits { soft, hard });
        self
    }

    /// Starts the program; returns when its execve(2) has succeeded.
    ///
    /// # Errors
    /// [`Error::Program`] says why it could not be executed, [`Error::Setup`] which step failed. No program runs then, and
    /// nothing is left behind.
    pub fn spawn(&mut self) -> Result<Child, Error> {
        let child = self.launch(Kind::Inherit, true)?;
        child.watch_by_keeper()?;
        Ok(child)
    }

    /// Runs the program and waits for its end.
    ///
    /// # Errors
    /// As [`spawn`](Self::spawn).
    pub fn status(&mut self) -> Result<Outcome, Error> {
        let watched = self.running_options().is_some_and(|running| running.sandbox.inner.plan.has_deadline());
        self.launch(Kind::Inherit, watched)?.wait()
    }

    /// Runs the program, waits for its end, and gives what it wrote.
    ///
    /// What the program leaves running ends with it in a fresh instance, so this never waits for a background process
    /// that holds the pipe. The output is held in memory: bound it with [`output_max`](crate::Builder::output_max).
    ///
    /// # Errors
    /// As [`spawn`](Self::spawn).
    pub fn output(&mut self) -> Result<Output, Error> {
        let mut child = self.launch(Kind::Piped, true)?;
        let (stdout, stderr) = (child.stdout.take().map(OwnedFd::from), child.stderr.take().map(OwnedFd::from));
        drop(child.stdin.take());
        let mut sinks = [Sink::new(stdout), Sink::new(stderr)];
        while !sinks.iter().all(Sink::is_closed) {
            if child.has_ended() {
                break;
            }
            let next = child.next_check();
            Sink::wait(&sinks, child.pidfd(), next)?;
            sinks.iter_mut().try_for_each(Sink::read)?;
            child.check();
        }
        let outcome = child.wait()?;
        let last = Instant::now();
        // In a fresh instance everybody who could write is dead, so the end of the pipes is near.
        while child.is_alone() && !sinks.iter().all(Sink::is_closed) && last.elapsed().as_secs() < 5 {
            Sink::wait(&sinks, None, Some(last + std::time::Duration::from_secs(5)))?;
            sinks.iter_mut().try_for_each(Sink::read)?;
        }
        sinks.iter_mut().try_for_each(Sink::read)?;
        let truncated = child.is_over();
        let [stdout, stderr] = sinks.map(|sink| sink.bytes);
        Ok(Output { outcome, stdout, stderr, truncated })
    }

    fn running_options(&self) -> Option<&Running> {
        match &self.place {
            Place::Fresh(_) => None,
            Place::Running(running) => Some(running),
        }
    }

    fn launch(&mut self, usual: Kind, notify_started: bool) -> Result<Child, Error> {
        let (running, fresh) = match &self.place {
            Place::Fresh(sandbox) => (sandbox.running(false)?, true),
            Place::Running(running) if running.is_frozen() => {
                return Err(Error::invalid("the instance", "it is frozen, and starts nothing; thaw it first"));
            }
            Place::Running(running) => (Arc::clone(running), false),
        };
        let inner = &running.sandbox.inner;
        let started = Instant::now();
        let watch = Arc::new(Watch::new(&running, fresh, started));
        let allowance = inner.plan.output_max.map(|max| Arc::new(Allowance::new(max)));
        let ends = self.streams(usual, inner.null.as_fd(), allowance.as_ref(), &watch)?;
        let standard = (0..).zip(ends.program.iter().map(AsFd::as_fd));
        let own = self.fds.iter().map(|(number, fd)| (*number, fd.as_fd()));
        let (mut fds, places) = passed(standard.chain(own));
        if places.len() >= protocol::FDS_MAX || places.get(3).is_some_and(|first| first.number < 3) {
            return Err(Error::invalid("fd", "at most 249 descriptors, numbered from 3 on"));
        }
        let (mut rlimits, report) = inner.process_limits.current(&inner.plan, &running.enforcement)?;
        for (name, limits) in &self.rlimits {
            let resource = name.number();
            let (soft, hard) = (limits.soft.to_raw(), limits.hard.to_raw());
            if let Some(own) = rlimits.iter().find(|own| own.resource == resource && hard > own.hard) {
                let why = format!("the sandbox's hard limit is {}, and can only be lowered", Limit::from_raw(own.hard));
                return Err(Error::invalid(format!("rlimit {name}"), why));
            }
            rlimits.retain(|limit| limit.resource != resource);
            rlimits.push(protocol::Rlimit { resource, reserved: 0, soft, hard });
        }
        let mut layout = Request {
            serial: watch.serial,
            notify_started,
            uid: inner.identity.uid,
            capabilities: inner.plan.kept_capabilities(),
            program: &self.program,
            args: &self.args,
            env: Environment { base: (!self.env_clear).then_some(&inner.plan.env), own: &self.env },
            directory: &self.directory,
            rlimits: &rlimits,
            passed: fds.len(),
            places: &places,
        }
        .layout()?;
        let (message, memfd) = layout.message()?;
        if let Some(memfd) = &memfd {
            fds.push(memfd.as_fd());
        }
        if let Err(error) = running.handle.send(message, &fds) {
            // When init could not harden itself, it has said so before it ended.
            return Err(match running.handle.wait(0, Some(Instant::now())) {
                Ok(Waited::Answer(answer)) if answer.reply.kind == protocol::BROKEN => {
                    broken(&answer.reply, &running.sandbox.inner.plan)
                }
                _ => error,
            });
        }
        drop(fds);
        drop(ends.program);
        layout.shorten();
        let mut child = Child::new(watch, ends.caller, allowance, Asked(layout), report);
        if notify_started {
            child.wait_started()?;
        }
        Ok(child)
    }

    /// Opens the three streams; counted output goes through a relay.
    fn streams<'a>(
        &'a self,
        usual: Kind,
        null: BorrowedFd<'a>,
        allowance: Option<&Arc<Allowance>>,
        watch: &Arc<Watch>,
    ) -> Result<Opened<'a>, Error> {
        // A constant of each kind to borrow from; descriptors of the caller's are never the default.
        const NULL: Kind = Kind::Null;
        const INHERIT: Kind = Kind::Inherit;
        const PIPED: Kind = Kind::Piped;
        let usual: &'static Kind = if matches!(usual, Kind::Piped) { &PIPED } else { &INHERIT };
        let stdin = self.stdin.as_ref().unwrap_or(&NULL).open(0, null)?;
        let mut opened = Opened { program: vec![stdin.program], caller: Streams::default() };
        opened.caller.stdin = stdin.caller;
        for (number, kind) in [(1, &self.stdout), (2, &self.stderr)] {
            let kind = kind.as_ref().unwrap_or(usual);
            let mut ends = kind.open(number, null)?;
            if let Some(allowance) = allowance {
                match kind {
                    Kind::Null => {}
                    Kind::Piped => {
                        let (to_caller, from_relay) = stdio::pipe()?;
                        if let Some(from) = ends.caller.replace(to_caller) {
                            keeper::relay(Relay::new(from, from_relay, allowance, watch))?;
                        }
                    }
                    Kind::Inherit | Kind::Fd(_) => {
                        let why = "only pipes can be counted; use Stdio::piped or Stdio::null, or no output_max";
                        return Err(Error::invalid(if number == 1 { "stdout" } else { "stderr" }, why));
                    }
                }
            }
            opened.program.push(ends.program);
            match number {
                1 => opened.caller.stdout = ends.caller,
                _ => opened.caller.stderr = ends.caller,
            }
        }
        Ok(opened)
    }
}

/// Each descriptor once, and which of them the program's are.
fn passed<'a>(wanted: impl Iterator<Item = (i32, BorrowedFd<'a>)>) -> (Vec<BorrowedFd<'a>>, Vec<Descriptor>) {
    let (mut fds, mut places) = (Vec::<BorrowedFd<'a>>::with_capacity(4), Vec::with_capacity(3));
    for (number, fd) in wanted {
        let known = fds.iter().position(|known| known.as_raw_fd() == fd.as_raw_fd());
        let passed = known.unwrap_or_else(|| {
            fds.push(fd);
            fds.len() - 1
        });
        places.push(Descriptor { number, passed: u32::try_from(passed).unwrap_or(u32::MAX) });
    }
    (fds, places)
}

struct Opened<'a> {
    program: Vec<ProgramEnd<'a>>,
    caller: Streams,
}

/// What a program was to be, for the error when it was not started.
#[derive(Debug)]
pub(crate) struct Asked(Layout);

impl Asked {
    /// The error of a program that was not started.
    pub(crate) fn not_started(&self, answer: &Answer, plan: &Plan) -> Error {
        let reply = &answer.reply;
        let error = std::io::Error::from_raw_os_error(reply.errno);
        if reply.kind == protocol::BROKEN {
            return broken(reply, plan);
        }
        match reply.step {
            protocol::step::EXECUTE => {}
            protocol::step::DIRECTORY => {
                return Error::setup_at(protocol::step::words(reply.step), self.0.directory(), error);
            }
            step => return Error::setup(protocol::step::words(step), error),
        }
        let no_interpreter = reply.detail & protocol::INTERPRETER_MISSING != 0;
        let number = usize::try_from(reply.detail & !protocol::INTERPRETER_MISSING).unwrap_or(0);
        let cause = match reply.errno {
            libc::ENOENT if no_interpreter => ProgramCause::InterpreterNotFound,
            libc::ENOENT | libc::ENOTDIR => ProgramCause::NotFound,
            libc::EISDIR => ProgramCause::IsADirectory,
            libc::EACCES => ProgramCause::NotExecutable,
            libc::E2BIG => ProgramCause::ArgumentsTooLong,
            libc::ENOEXEC => ProgramCause::UnknownFormat,
            _ => ProgramCause::Other,
        };
        Error::Program { path: PathBuf::from(self.0.path(number)), cause, error }
    }
}

/// What collects one stream.
struct Sink {
    from: Option<File>,
    bytes: Vec<u8>,
}

impl Sink {
    fn new(from: Option<OwnedFd>) -> Self {
        if let Some(fd) = &from {
            // Nobody else has this end; not waiting is what the loop needs.
            let _ = rustix::io::ioctl_fionbio(fd, true);
        }
        Self { from: from.map(File::from), bytes: Vec::new() }
    }

    fn is_closed(&self) -> bool {
        self.from.is_none()
    }

    /// Waits for something to read, for the program's end, or until `until`.
    fn wait(sinks: &[Self], ended: Option<BorrowedFd<'_>>, until: Option<Instant>) -> Result<(), Error> {
        let open = sinks.iter().filter_map(|sink| sink.from.as_ref()).map(AsFd::as_fd);
        let mut fds: Vec<_> = open.chain(ended).map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        let timeout = until.and_then(|at| Timespec::try_from(at.saturating_duration_since(Instant::now())).ok());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(Error::setup("wait for output", error)),
        }
    }

    /// Reads what is there, but no more than the largest pipe holds: a writer that never pauses must not keep us from
    /// looking at the clock.
    fn read(&mut self) -> Result<(), Error> {
        const MOST: u64 = 1 << 20;
        let Some(from) = &mut self.from else { return Ok(()) };
        match from.take(MOST).read_to_end(&mut self.bytes) {
            Ok(read) if read as u64 == MOST => {}
            Ok(_) => self.from = None,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(Error::setup("read output", error)),
        }
        Ok(())
    }
}

/// Waits for a reply and says what it was when it was none.
pub(crate) fn expect_answer(waited: Waited, during: &'static str) -> Result<Answer, Error> {
    match waited {
        Waited::Answer(answer) => Ok(answer),
        Waited::TimedOut | Waited::Ended => Err(Error::Ended { during }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_with_several_numbers_is_passed_once() {
        let (null, zero) = (File::open("/dev/null").unwrap(), File::open("/dev/zero").unwrap());
        let wanted = [(0, &null), (1, &zero), (2, &null), (7, &null)];
        let (fds, places) = passed(wanted.into_iter().map(|(number, file)| (number, file.as_fd())));
        assert_eq!(fds.iter().map(AsRawFd::as_raw_fd).collect::<Vec<_>>(), [null.as_raw_fd(), zero.as_raw_fd()]);
        let places: Vec<_> = places.iter().map(|place| (place.number, place.passed)).collect();
        assert_eq!(places, [(0, 0), (1, 1), (2, 0), (7, 0)]);
    }
}
