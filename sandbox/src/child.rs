//! [`Child`]: a program that runs, until its [`Outcome`].

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{ChildStderr, ChildStdin, ChildStdout, ExitStatus};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use ns::PidFd;

use crate::command::{Asked, expect_answer};
use crate::init::protocol::{self, Reply};
use crate::init::{Waited, kill_message};
use crate::instance::{Killed, Running, Stuck};
use crate::outcome::{End, LimitHit, LimitKind, Outcome, Usage};
use crate::plan::nanoseconds;
use crate::relay::Allowance;
use crate::resources::Counters;
use crate::{Enforcement, Error, Feature, Mode, keeper};

/// How long the rest of an instance may take to die when its program has ended, before that is reported.
const REST_TIMEOUT: Duration = Duration::from_secs(5);
/// CPU time is looked at no more often than this.
const CPU_CHECK_MIN: Duration = Duration::from_millis(5);
const CPU_CHECK_MAX: Duration = Duration::from_millis(500);

/// The kernel looks at the CPU limit from tick to tick, and counts more coarsely than it reports.
const CPU_LIMIT_SLACK: Duration = Duration::from_millis(100);

/// A signal, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Signal(i32);

impl Signal {
    /// Terminal closed.
    pub const HUP: Self = Self(libc::SIGHUP);
    /// Interrupt from the keyboard.
    pub const INT: Self = Self(libc::SIGINT);
    /// Quit from the keyboard.
    pub const QUIT: Self = Self(libc::SIGQUIT);
    /// Ends at once, cannot be handled.
    pub const KILL: Self = Self(libc::SIGKILL);
    /// Please end.
    pub const TERM: Self = Self(libc::SIGTERM);
    /// Free for use.
    pub const USR1: Self = Self(libc::SIGUSR1);
    /// Free for use.
    pub const USR2: Self = Self(libc::SIGUSR2);
    /// Stop where you are, cannot be handled.
    pub const STOP: Self = Self(libc::SIGSTOP);
    /// Go on.
    pub const CONT: Self = Self(libc::SIGCONT);

    /// Any other, by its number on this machine.
    pub const fn from_raw(number: i32) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn as_raw(self) -> i32 {
        self.0
    }
}

/// The caller's ends of a program's standard streams.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
}

/// The deadlines of one program, watched by whoever waits for it, and by the keeper.
#[derive(Debug)]
pub(crate) struct Watch {
    running: Arc<Running>,
    pub(crate) serial: u32,
    /// The instance is this program's own, and ends with it.
    fresh: bool,
    started: Instant,
    wall: Option<Instant>,
    cpu: Option<Duration>,
    /// When to look at the CPU time again, in nanoseconds after the start.
    cpu_check: AtomicU64,
    /// Why we ended it, if we did. The first cause stays.
    cause: OnceLock<End>,
    ended: AtomicBool,
    pidfd: OnceLock<PidFd>,
    baseline: Counters,
}

impl Watch {
    pub(crate) fn new(running: &Arc<Running>, fresh: bool, started: Instant) -> Self {
        let serial = running.next_serial();
        let plan = &running.sandbox.inner.plan;
        let baseline = match plan.cpu_time_max {
            _ if fresh => Counters::default(),
            Some(_) => running.counters().ok().flatten().unwrap_or_default(),
            // What was counted since then belongs to nobody else: reports of an instance say that they are of all of it.
            None => running.last_counters(),
        };
        let cpu = plan.cpu_time_max;
        let watch = Self {
            running: Arc::clone(running),
            serial,
            fresh,
            started,
            wall: plan.wall_time_max.and_then(|time| started.checked_add(time)),
            cpu,
            cpu_check: AtomicU64::new(0),
            cause: OnceLock::new(),
            ended: AtomicBool::new(false),
            pidfd: OnceLock::new(),
            baseline,
        };
        watch.plan_cpu_check(Duration::ZERO);
        watch
    }

    /// With all CPUs busy the allowance is used up no sooner than this.
    fn plan_cpu_check(&self, used: Duration) {
        let Some(max) = self.cpu else { return };
        let cpus = std::thread::available_parallelism().map_or(1, |cpus| u32::try_from(cpus.get()).unwrap_or(1));
        let soonest = (max.saturating_sub(used) / cpus).clamp(CPU_CHECK_MIN, CPU_CHECK_MAX);
        self.cpu_check.store(nanoseconds(self.started.elapsed() + soonest), Ordering::Release);
    }

    /// When [`check`](Self::check) should be called next.
    pub(crate) fn next_check(&self) -> Option<Instant> {
        let cpu = self.cpu.map(|_| self.started + Duration::from_nanos(self.cpu_check.load(Ordering::Acquire)));
        self.wall.into_iter().chain(cpu).min()
    }

    /// Ends the program if it is over a limit; whether it is still to be watched.
    pub(crate) fn check(&self) -> bool {
        if self.ended.load(Ordering::Acquire) || self.cause().is_some() {
            return false;
        }
        if self.wall.is_some_and(|deadline| Instant::now() >= deadline) {
            self.end(End::WallTime);
            return false;
        }
        if let Some(max) = self.cpu {
            if self.next_cpu_check() <= Instant::now() {
                let used = self.cpu_used();
                if used >= max {
                    self.end(End::CpuTime);
                    return false;
                }
                self.plan_cpu_check(used);
            }
        }
        true
    }

    fn next_cpu_check(&self) -> Instant {
        self.started + Duration::from_nanos(self.cpu_check.load(Ordering::Acquire))
    }

    /// CPU time since the program's start; of the whole instance, if that is not the program's own.
    fn cpu_used(&self) -> Duration {
        let counters = self.running.counters().ok().flatten();
        counters.and_then(|counters| self.cpu_since_start(&counters)).unwrap_or(Duration::ZERO)
    }

    fn cpu_since_start(&self, counters: &Counters) -> Option<Duration> {
        let before = self.baseline.usage.cpu.map_or(Duration::ZERO, |cpu| cpu.total);
        counters.usage.cpu.map(|cpu| cpu.total.saturating_sub(before))
    }

    /// Ends the program: with its instance if that is its own, else alone. A frozen instance is thawed, or nobody would
    /// hear of the end.
    pub(crate) fn end(&self, cause: End) {
        let _ = self.cause.set(cause);
        // A refusal shows as a program that did not end; there is nobody to tell here.
        let _ = match self.pidfd.get() {
            _ if self.fresh => self.running.kill(cause),
            Some(pidfd) => pidfd.kill().map_err(Error::from).and_then(|()| self.running.thaw()),
            None => self.running.thaw().and_then(|()| self.kill_by_init()),
        };
    }

    /// Requests are served in their order, so the program is there by then, or it never will be.
    fn kill_by_init(&self) -> Result<(), Error> {
        let message = kill_message(self.serial, self.running.sandbox.inner.identity.uid);
        self.running.handle.send(&message, &[])
    }

    fn cause(&self) -> Option<End> {
        self.cause.get().copied().or_else(|| self.running.cause())
    }
}

/// A program that was started.
///
/// Dropping it kills the program and takes its instance away, if that is its own; [`detach`](Self::detach) lets it live.
#[derive(Debug)]
pub struct Child {
    watch: Arc<Watch>,
    id: Option<u32>,
    allowance: Option<Arc<Allowance>>,
    asked: Asked,
    enforcement: Arc<[Enforcement]>,
    outcome: Option<Outcome>,
    /// The write end of the program's standard input, if that is piped.
    pub stdin: Option<ChildStdin>,
    /// The read end of its standard output, if that is piped.
    pub stdout: Option<ChildStdout>,
    /// The read end of its standard error, if that is piped.
    pub stderr: Option<ChildStderr>,
}

impl Child {
    pub(crate) fn new(
        watch: Arc<Watch>,
        streams: Streams,
        allowance: Option<Arc<Allowance>>,
        asked: Asked,
        enforcement: Arc<[Enforcement]>,
    ) -> Self {
        Self {
            enforcement,
            watch,
            id: None,
            allowance,
            asked,
            outcome: None,
            stdin: streams.stdin.map(ChildStdin::from),
            stdout: streams.stdout.map(ChildStdout::from),
            stderr: streams.stderr.map(ChildStderr::from),
        }
    }

    /// Waits until execve(2) has succeeded in the sandbox.
    pub(crate) fn wait_started(&mut self) -> Result<(), Error> {
        let answer = loop {
            let check = self.watch.next_check().filter(|_| self.watch.cause().is_none());
            match self.watch.running.handle.wait(self.watch.serial, check)? {
                Waited::TimedOut => drop(self.watch.check()),
                // Over a limit before init could say that it runs: its outcome tells.
                Waited::Ended if self.watch.cause().is_some() => return Ok(()),
                waited => break expect_answer(waited, "a program was being started")?,
            }
        };
        if answer.reply.kind != protocol::STARTED {
            self.watch.ended.store(true, Ordering::Release); // nothing to be killed when we are dropped
            return Err(self.asked.not_started(&answer, &self.watch.running.sandbox.inner.plan));
        }
        let Some(fd) = answer.fd else {
            // The kernel drops a descriptor for which this process has no room. Dropping us ends the program.
            let error = std::io::Error::from_raw_os_error(libc::EMFILE);
            return Err(Error::setup("take the descriptor of a program", error));
        };
        self.id = self.watch.pidfd.get_or_init(|| PidFd::from(fd)).pid()?.map(ns::Pid::get);
        Ok(())
    }

    /// The program's process id, as numbered on the host. Good for `/proc`; never send signals to it.
    pub fn id(&self) -> Option<u32> {
        self.id
    }

    /// The program itself: readable when it has ended.
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.watch.pidfd.get().map(AsFd::as_fd)
    }

    /// What is enforced, with the values that the kernel read back.
    #[must_use = "it tells what holds"]
    pub fn enforcement(&self) -> &[Enforcement] {
        &self.enforcement
    }

    /// What has been used until now.
    ///
    /// # Errors
    /// [`Error::Unsupported`] without a cgroup.
    pub fn usage(&self) -> Result<Usage, Error> {
        if let Some(outcome) = &self.outcome {
            return Ok(outcome.usage.clone());
        }
        let counters = self.watch.running.counters_or_refuse()?;
        let mut usage = self.watch.running.usage_of(&counters);
        usage.wall = self.watch.started.elapsed();
        usage.of_instance = !self.watch.fresh;
        usage.set_disk(self.watch.running.disk_usage()?);
        Ok(usage)
    }

    /// Sends a signal to the program alone. Once it has ended, this does nothing.
    ///
    /// # Errors
    /// [`Error::Namespace`] for a signal that does not exist.
    pub fn signal(&self, signal: Signal) -> Result<(), Error> {
        match self.watch.pidfd.get() {
            Some(pidfd) if self.outcome.is_none() => match pidfd.send_signal(signal.0) {
                Err(error) if error.errno() == Some(libc::ESRCH) => Ok(()),
                sent => Ok(sent?),
            },
            _ => Ok(()),
        }
    }

    /// Kills the program, in its own instance with all it started, and waits, at most `timeout`, until that is gone.
    ///
    /// # Errors
    /// [`Error::Namespace`] when the kernel refuses. What does not die is in the result; ask again later.
    pub fn kill(&mut self, timeout: Duration) -> Result<Killed, Error> {
        if self.outcome.is_some() {
            return Ok(Killed::default());
        }
        let _ = self.watch.cause.set(End::Killed);
        if self.watch.fresh {
            return self.watch.running.kill_all(End::Killed, timeout);
        }
        self.watch.end(End::Killed);
        let gone = match self.watch.pidfd.get() {
            Some(pidfd) => pidfd.wait(Some(timeout))?,
            None => true,
        };
        let id = self.id.unwrap_or(0);
        Ok(if gone {
            Killed { died: vec![id], ..Killed::default() }
        } else {
            let reason = "killed, and not gone yet".to_owned();
            Killed { stuck: vec![Stuck { pid: id, state: '?', location: None, reason }], ..Killed::default() }
        })
    }

    /// Asks the program to end (SIGTERM), and kills it if it has not after `grace`.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn stop(&mut self, grace: Duration) -> Result<Outcome, Error> {
        self.signal(Signal::TERM)?;
        if let Some(outcome) = self.wait_timeout(grace)? {
            return Ok(outcome);
        }
        self.watch.end(End::Killed);
        self.wait()
    }

    /// Waits for the end. Asked again, it gives the same.
    ///
    /// # Errors
    /// [`Error::Program`] or [`Error::Setup`] if the program was never started; [`Error::Cgroup`] if the counters cannot
    /// be read.
    pub fn wait(&mut self) -> Result<Outcome, Error> {
        loop {
            if let Some(outcome) = self.wait_until(None)? {
                return Ok(outcome);
            }
        }
    }

    /// The outcome, if the program has ended.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn try_wait(&mut self) -> Result<Option<Outcome>, Error> {
        self.wait_until(Some(Instant::now()))
    }

    /// Waits at most `timeout`.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn wait_timeout(&mut self, timeout: Duration) -> Result<Option<Outcome>, Error> {
        self.wait_until(Instant::now().checked_add(timeout))
    }

    fn wait_until(&mut self, limit: Option<Instant>) -> Result<Option<Outcome>, Error> {
        if let Some(outcome) = &self.outcome {
            return Ok(Some(outcome.clone()));
        }
        drop(self.stdin.take()); // a program that reads to the end must see it
        loop {
            let check = self.watch.next_check().filter(|_| self.watch.cause().is_none());
            let until = limit.into_iter().chain(check).min();
            match self.watch.running.handle.wait(self.watch.serial, until)? {
                Waited::Answer(answer) if answer.reply.kind == protocol::EXITED => {
                    return self.finish(Some(answer.reply)).map(Some);
                }
                Waited::Answer(answer) if answer.reply.kind == protocol::STARTED => {}
                Waited::Answer(answer) => {
                    self.watch.ended.store(true, Ordering::Release);
                    return Err(self.asked.not_started(&answer, &self.watch.running.sandbox.inner.plan));
                }
                Waited::Ended => return self.finish(None).map(Some),
                Waited::TimedOut => {
                    self.watch.check();
                    if limit.is_some_and(|limit| Instant::now() >= limit) {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Lets the program live on without this handle, until it ends by itself or the host program ends. Its limits,
    /// deadlines and output caps stay in force.
    ///
    /// # Errors
    /// [`Error::Setup`] when there is no thread to look after it; it is killed then.
    pub fn detach(mut self) -> Result<(), Error> {
        drop((self.stdin.take(), self.stdout.take(), self.stderr.take()));
        keeper::adopt(self)
    }

    pub(crate) fn watch_by_keeper(&self) -> Result<(), Error> {
        if self.watch.next_check().is_some() { keeper::watch(&self.watch) } else { Ok(()) }
    }

    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.watch.running.handle.socket()
    }

    pub(crate) fn next_check(&self) -> Option<Instant> {
        self.watch.next_check()
    }

    pub(crate) fn check(&self) {
        self.watch.check();
    }

    /// Whether the program has ended, waited for or not.
    pub(crate) fn has_ended(&self) -> bool {
        self.watch.pidfd.get().is_some_and(|pidfd| pidfd.is_dead().unwrap_or(true))
    }

    pub(crate) fn is_alone(&self) -> bool {
        self.watch.fresh
    }

    pub(crate) fn is_over(&self) -> bool {
        self.allowance.as_ref().is_some_and(|allowance| allowance.is_over())
    }

    /// Kills what is left, then reads the counters, then says how it was.
    fn finish(&mut self, reply: Option<Reply>) -> Result<Outcome, Error> {
        let wall = self.watch.started.elapsed();
        self.watch.ended.store(true, Ordering::Release);
        let running = &self.watch.running;
        let mut leftovers = Vec::new();
        let alone = reply.is_some_and(|reply| reply.alone != 0);
        // Who holds this child holds an instance without a program, and the next one may need its upper directory.
        let waited_for = running.sandbox.inner.overlay.as_ref().is_some_and(|overlay| overlay.directory().is_some());
        if self.watch.fresh && (!alone || waited_for) {
            running.init.kill()?;
            if !running.init.wait(Some(REST_TIMEOUT))? {
                let why = format!("killed, and not gone after {REST_TIMEOUT:?}");
                leftovers.push(crate::Leftover { what: "processes of the sandbox".to_owned(), why });
            }
        }
        let counters = match self.tasks_told(reply.as_ref()) {
            Some(told) => running.final_counters(told),
            None => running.counters(),
        }?;
        let mut usage = self.final_usage(wall, reply.as_ref(), counters.as_ref());
        let disk = running.disk_usage()?;
        usage.set_disk(disk);
        let status = ExitStatus::from_raw(reply.map_or(libc::SIGKILL, |reply| reply.status));
        let counters = counters.unwrap_or_default();
        let oom_kills = counters.oom_kills().saturating_sub(self.watch.baseline.oom_kills());
        let refused_forks = counters.refused_forks().saturating_sub(self.watch.baseline.refused_forks());
        let over = self.is_over();
        let end = self.end_of(status, reply.as_ref(), oom_kills, over);
        let cpu = self.watch.cpu_since_start(&counters).unwrap_or(usage.cpu_user + usage.cpu_system);
        // It may have reached the limit and ended between two looks.
        let cpu_reached = end == End::CpuTime || self.watch.cpu.is_some_and(|max| cpu >= max);
        let mut hits = Vec::new();
        let mut hit = |limit, count| {
            if count > 0 {
                hits.push(LimitHit { limit, count });
            }
        };
        hit(LimitKind::Memory, oom_kills);
        hit(LimitKind::Pids, refused_forks);
        hit(LimitKind::Disk, u64::from(disk.is_some_and(|disk| disk.bytes_exhausted)));
        hit(LimitKind::Inodes, u64::from(disk.is_some_and(|disk| disk.inodes_exhausted)));
        hit(LimitKind::FileSize, u64::from(status.signal() == Some(libc::SIGXFSZ)));
        hit(LimitKind::Output, u64::from(over));
        hit(LimitKind::CpuTime, u64::from(cpu_reached));
        hit(LimitKind::WallTime, u64::from(end == End::WallTime));
        let enforcement = Arc::clone(&self.enforcement);
        let outcome = Outcome { status, end, limits_hit: hits, usage, enforcement, leftovers };
        self.outcome = Some(outcome.clone());
        Ok(outcome)
    }

    /// Of how many processes and threads init's answer has the CPU time that is reported; `None` when the cgroup has it.
    fn tasks_told(&self, reply: Option<&Reply>) -> Option<u64> {
        // What the limit counts is what is to be reported.
        let reply = reply.filter(|_| self.watch.cpu.is_none())?;
        match self.watch.fresh {
            // Who was never beside another has started nobody who could have ended unseen by init.
            true => (reply.alone != 0).then_some(1),
            // The program's own, whatever else was there.
            false => Some(u64::MAX),
        }
    }

    fn final_usage(&self, wall: Duration, reply: Option<&Reply>, counters: Option<&Counters>) -> Usage {
        let mut usage = counters.map(|counters| self.watch.running.usage_of(counters)).unwrap_or_default();
        usage.wall = wall;
        usage.of_instance = !self.watch.fresh;
        let counted = counters.is_some_and(|counters| counters.usage.cpu.is_some());
        if let Some(reply) = reply.filter(|_| !self.watch.fresh || !counted) {
            // Its own, or without a cgroup all that init has reaped.
            let (user, system) =
                if self.watch.fresh { (reply.all_user, reply.all_system) } else { (reply.user, reply.system) };
            usage.cpu_user = Duration::from_micros(user);
            usage.cpu_system = Duration::from_micros(system);
        }
        usage
    }

    /// Whether the program has used the CPU time of its hard resource limit.
    fn used_up_cpu_limit(&self, reply: &Reply) -> bool {
        let limit = self.watch.running.sandbox.inner.plan.rlimits.get(&rlimit::Resource::Cpu);
        let seconds = limit.and_then(|limits| limits.hard.value());
        let used = Duration::from_micros(reply.user + reply.system) + CPU_LIMIT_SLACK;
        seconds.is_some_and(|seconds| used >= Duration::from_secs(seconds))
    }

    fn end_of(&self, status: ExitStatus, reply: Option<&Reply>, oom_kills: u64, over: bool) -> End {
        let cause = self.watch.cause();
        if status.code().is_some() {
            return if over { End::Output } else { End::Exited };
        }
        let seccomp = self.watch.running.sandbox.inner.plan.mode(Feature::Seccomp) != Mode::Off;
        match (status.signal(), cause) {
            (Some(libc::SIGKILL), Some(cause)) => cause,
            _ if over => End::Output,
            (Some(libc::SIGKILL), None) if oom_kills > 0 => End::Memory,
            (Some(libc::SIGXCPU), _) => End::CpuTime,
            (Some(libc::SIGSYS), _) if seccomp => End::Seccomp,
            // Past the hard limit the kernel kills without a word.
            (Some(libc::SIGKILL), None) if reply.is_some_and(|reply| self.used_up_cpu_limit(reply)) => End::CpuTime,
            _ if reply.is_none() => End::Killed,
            _ => End::Signaled,
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // A copy in a fork of the host program ends nothing.
        let same = std::process::id() == self.watch.running.sandbox.inner.pid;
        if same && self.outcome.is_none() && !self.watch.ended.load(Ordering::Acquire) {
            self.watch.end(End::Killed);
            self.watch.ended.store(true, Ordering::Release);
            self.watch.running.handle.abandon(self.watch.serial);
        }
    }
}
