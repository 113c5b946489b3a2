//! An instance: fresh namespaces, ids, cgroup and limits, with init waiting in them.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use cgroup::{Cgroup, Meter};
use ns::PidFd;
use userns::Lease;

use crate::disk::{DiskUsage, Volume};
use crate::init::{Handle, Waited, protocol};
use crate::keeper::{self, Burials, Grave};
use crate::outcome::{End, Usage};
use crate::resources::{self, Counters};
use crate::{Command, Enforcement, Error, IoRates, Plan, Sandbox};

/// How long init may take to get ready, on the slowest of machines.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// How often a stopping instance is looked at.
const STOP_POLL: Duration = Duration::from_millis(10);
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// Limits for [`Instance::set_limits`]. `None` leaves a limit as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LiveLimits {
    /// As [`Builder::memory_max`](crate::Builder::memory_max), in bytes.
    pub memory_max: Option<u64>,
    /// As [`Builder::memory_swap_max`](crate::Builder::memory_swap_max), in bytes.
    pub memory_swap_max: Option<u64>,
    /// As [`Builder::pids_max`](crate::Builder::pids_max).
    pub pids_max: Option<u64>,
    /// As [`Builder::cpu_max`](crate::Builder::cpu_max): quota and period.
    pub cpu_max: Option<(Duration, Duration)>,
    /// As [`Builder::cpu_weight`](crate::Builder::cpu_weight).
    pub cpu_weight: Option<u16>,
    /// As [`Builder::cpuset`](crate::Builder::cpuset). Affinities that programs chose for themselves are forgotten.
    pub cpuset: Option<Vec<u32>>,
    /// As [`Builder::io_max`](crate::Builder::io_max). Rates and devices that are not named stay as they are.
    pub io_max: Vec<(PathBuf, IoRates)>,
}

/// A running sandbox: programs are started in it one after another or side by side.
///
/// All of them have the same limits, ids, cgroup and hardening, the first and those that come later, because all are
/// children of the same init. Dropping the instance ends everything in it.
pub struct Instance {
    running: Arc<Running>,
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Instance").field("init", &self.running.init_pid).finish_non_exhaustive()
    }
}

impl Instance {
    pub(crate) fn new(running: Arc<Running>) -> Self {
        Self { running }
    }

    /// A command that runs in this instance; background children that it leaves live on until the instance ends.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        Command::in_instance(&self.running, program.as_ref())
    }

    /// The processes in it, as numbered on the host, init left out. Old by the time you read it.
    ///
    /// # Errors
    /// [`Error::Unsupported`] without a cgroup.
    pub fn pids(&self) -> Result<Vec<u32>, Error> {
        let mut pids = self.running.cgroup("pids")?.pids()?;
        pids.retain(|pid| *pid != self.running.init_pid);
        Ok(pids)
    }

    /// What everything in it has used until now. `wall` is the time since its start.
    ///
    /// # Errors
    /// [`Error::Unsupported`] without a cgroup.
    pub fn usage(&self) -> Result<Usage, Error> {
        let counters = self.running.counters_or_refuse()?;
        let mut usage = self.running.usage_of(&counters);
        usage.wall = self.running.since.elapsed();
        usage.set_disk(self.running.disk_usage()?);
        Ok(usage)
    }

    /// Stops every process in it where it is, init included, until [`thaw`](Self::thaw).
    ///
    /// Until then no program can be started: [`Error::Invalid`]; one that is just being started waits. Deadlines go on: what
    /// is killed, by one of them or by the caller, cannot end frozen, so the whole instance is thawed first.
    ///
    /// # Errors
    /// [`Error::Cgroup`] when not all had stopped within five seconds; [`Error::Unsupported`] without a cgroup.
    pub fn freeze(&self) -> Result<(), Error> {
        let cgroup = self.running.cgroup("freeze")?;
        let mut frozen = self.running.frozen();
        // Also when it fails: some may have stopped.
        *frozen = true;
        Ok(cgroup.freeze(Duration::from_secs(5))?)
    }

    /// Lets the processes go on.
    ///
    /// # Errors
    /// As [`freeze`](Self::freeze).
    pub fn thaw(&self) -> Result<(), Error> {
        self.running.cgroup("thaw")?;
        self.running.thaw()
    }

    /// Kills everything in it and waits, at most `timeout`, until it is gone.
    ///
    /// # Errors
    /// [`Error::Namespace`] when the kernel refuses. That processes do not die is told by the result.
    pub fn kill(self, timeout: Duration) -> Result<Killed, Error> {
        self.running.kill_all(End::Killed, timeout)
    }

    /// Asks the programs to end (SIGTERM to each), gives them `grace`, then kills what is left.
    ///
    /// # Errors
    /// As [`kill`](Self::kill); [`Error::Unsupported`] without a cgroup, which tells who is in it.
    pub fn stop(self, grace: Duration) -> Result<Killed, Error> {
        let deadline = Instant::now().checked_add(grace);
        for pid in self.pids()? {
            // Opened, then checked to be still in here: the number cannot mean another process after that.
            let Some(process) = ns::Pid::new(pid).and_then(|pid| PidFd::open(pid).ok()) else { continue };
            if self.pids()?.contains(&pid) {
                let _ = process.send_signal(crate::Signal::TERM.as_raw());
            }
        }
        while !self.pids()?.is_empty() {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                break;
            }
            std::thread::sleep(left.map_or(STOP_POLL, |left| left.min(STOP_POLL)));
        }
        self.kill(KILL_TIMEOUT)
    }

    /// Changes limits while programs run: memory, swap, processes, CPU, devices. All of them or none.
    ///
    /// Lowering memory below what is in use makes the kernel reclaim, and on cgroup v2 kill. Returns what the kernel read
    /// back; `pids_max` counts the programs' processes, as everywhere.
    ///
    /// # Errors
    /// [`Error::Cgroup`] when a limit cannot be set; then none has changed. [`Error::Unsupported`] without a cgroup.
    pub fn set_limits(&self, limits: &LiveLimits) -> Result<Vec<Enforcement>, Error> {
        let cgroup = self.running.cgroup("set_limits")?;
        let applied = cgroup.set(&resources::live(limits)?)?;
        Ok(resources::entries(&self.running.sandbox.inner.plan, &applied).collect())
    }

    /// What is enforced, read back from the kernel.
    #[must_use = "it tells what holds"]
    pub fn enforcement(&self) -> &[Enforcement] {
        &self.running.enforcement
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // Children and commands hold the instance, too; it ends all the same. A copy in a fork of the host ends nothing.
        if std::process::id() == self.running.sandbox.inner.pid {
            // When the kernel refuses, the burial tries again.
            let _ = self.running.kill(End::Killed);
        }
    }
}

/// What killing came to.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Killed {
    /// Processes that died, as numbered on the host. Empty without a cgroup, which would tell.
    pub died: Vec<u32>,
    /// Those that died out of a killable wait (state `D`).
    pub killable_wait: Vec<Stuck>,
    /// Those that are still there.
    pub stuck: Vec<Stuck>,
}

/// A process in a wait.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Stuck {
    /// Its number on the host.
    pub pid: u32,
    /// The kernel's state letter.
    pub state: char,
    /// Where in the kernel it waits, if that is told.
    pub location: Option<String>,
    /// Why SIGKILL does not end it.
    pub reason: String,
}

impl From<cgroup::Stuck> for Stuck {
    fn from(stuck: cgroup::Stuck) -> Self {
        let reason = stuck.reason.to_string();
        Self { pid: stuck.pid, state: stuck.state, location: stuck.location, reason }
    }
}

/// An instance that was started and that nobody uses yet.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) handle: Arc<Handle>,
    pub(crate) init: Arc<PidFd>,
    pub(crate) init_pid: u32,
    pub(crate) cgroup: Option<Cgroup>,
    /// The counters' files, opened ahead.
    pub(crate) meter: Option<Meter>,
    pub(crate) lease: Option<Lease>,
    /// What a disk limit is the size of.
    pub(crate) volume: Option<Volume>,
    pub(crate) enforcement: Arc<[Enforcement]>,
    pub(crate) burials: Arc<Burials>,
}

impl Parts {
    /// Waits for init's word that it is hardened; takes it down if that does not come.
    pub(crate) fn wait_ready(self, plan: &Plan) -> Result<Self, Error> {
        let error = match self.handle.wait(0, Some(Instant::now() + READY_TIMEOUT)) {
            Ok(Waited::Answer(answer)) if answer.reply.kind == protocol::READY => return Ok(self),
            Ok(Waited::Answer(answer)) => broken(&answer.reply, plan),
            Ok(Waited::TimedOut | Waited::Ended) => Error::Ended { during: "it was being started" },
            Err(error) => error,
        };
        keeper::bury(self.into_grave());
        Err(error)
    }

    pub(crate) fn is_alive(&self) -> bool {
        !self.init.is_dead().unwrap_or(true)
    }

    pub(crate) fn into_grave(self) -> Grave {
        Grave {
            init: self.init,
            cgroup: self.cgroup,
            lease: self.lease,
            image: self.volume.and_then(Volume::into_image),
            burials: self.burials,
            _descriptors: (self.handle, self.meter),
        }
    }
}

/// The counters of a cgroup, on held descriptors.
#[derive(Debug)]
struct Gauge {
    meter: Option<Meter>,
    last: Counters,
}

/// What an instance holds. When the last handle goes, it goes.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) sandbox: Sandbox,
    pub(crate) handle: Arc<Handle>,
    pub(crate) init: Arc<PidFd>,
    pub(crate) init_pid: u32,
    cgroup: Option<Cgroup>,
    counters: Mutex<Gauge>,
    lease: Option<Lease>,
    volume: Option<Volume>,
    pub(crate) enforcement: Arc<[Enforcement]>,
    pub(crate) since: Instant,
    serial: AtomicU32,
    /// Why it was killed, if it was. The first cause stays.
    cause: OnceLock<End>,
    /// It is frozen, by us: init starts nothing so and says nothing, and cgroup v1 lets nobody die.
    frozen: Mutex<bool>,
}

impl Running {
    pub(crate) fn new(sandbox: &Sandbox, parts: Parts) -> Self {
        Self {
            sandbox: sandbox.clone(),
            handle: parts.handle,
            init: parts.init,
            init_pid: parts.init_pid,
            cgroup: parts.cgroup,
            counters: Mutex::new(Gauge { meter: parts.meter, last: Counters::default() }),
            lease: parts.lease,
            volume: parts.volume,
            enforcement: parts.enforcement,
            since: Instant::now(),
            serial: AtomicU32::new(1),
            cause: OnceLock::new(),
            frozen: Mutex::new(false),
        }
    }

    pub(crate) fn next_serial(&self) -> u32 {
        self.serial.fetch_add(1, Ordering::Relaxed)
    }

    /// What the cgroup has counted until now; nothing without one.
    pub(crate) fn counters(&self) -> Result<Option<Counters>, Error> {
        self.counted(Meter::read)
    }

    /// The same at the end of a program whose CPU time init has told: with that of the cgroup only where more than `told`
    /// processes and threads were in it at the same time.
    pub(crate) fn final_counters(&self, told: u64) -> Result<Option<Counters>, Error> {
        self.counted(|meter| meter.read_with_cpu_beyond(resources::with_init(told)))
    }

    fn counted(
        &self,
        read: impl FnOnce(&mut Meter) -> cgroup::Result<cgroup::Usage>,
    ) -> Result<Option<Counters>, Error> {
        let Some(cgroup) = &self.cgroup else { return Ok(None) };
        let mut gauge = self.gauge();
        let mut meter = match gauge.meter.take() {
            Some(meter) => meter,
            None => cgroup.final_meter()?,
        };
        let usage = read(&mut meter);
        gauge.meter = Some(meter);
        gauge.last = Counters { usage: usage? };
        Ok(Some(gauge.last))
    }

    /// What is stored: on disk in the sandbox's project, or in a file system of the instance's own.
    pub(crate) fn disk_usage(&self) -> Result<Option<DiskUsage>, Error> {
        match (&self.sandbox.inner.disk, &self.volume) {
            (Some(disk), _) => disk.usage().map(Some),
            (None, Some(volume)) => volume.usage().map(Some),
            (None, None) => Ok(None),
        }
    }

    pub(crate) fn counters_or_refuse(&self) -> Result<Counters, Error> {
        self.cgroup("usage")?;
        Ok(self.counters()?.unwrap_or_default())
    }

    /// What they were when somebody last looked.
    pub(crate) fn last_counters(&self) -> Counters {
        self.gauge().last
    }

    fn gauge(&self) -> MutexGuard<'_, Gauge> {
        self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn cgroup(&self, what: &'static str) -> Result<&Cgroup, Error> {
        let why = "the sandbox has no cgroup";
        self.cgroup.as_ref().ok_or_else(|| Error::unsupported(what, why, "do not turn every cgroup feature off"))
    }

    /// Counters in the form of the report; wall and CPU time of one program come from elsewhere.
    pub(crate) fn usage_of(&self, counters: &Counters) -> Usage {
        let usage = &counters.usage;
        let cpu = usage.cpu.unwrap_or_default();
        let (user, system) = split_cpu(cpu.total, cpu.user, cpu.system);
        Usage {
            cpu_user: user,
            cpu_system: system,
            memory_peak: usage.memory_peak,
            pids_peak: counters.pids_peak(),
            oom_kills: usage.oom_kills,
            io: None,
            of_instance: true,
            ..Usage::default()
        }
    }

    /// Ends every process, for `cause` unless it is being ended for another already. Does not wait.
    pub(crate) fn kill(&self, cause: End) -> Result<(), Error> {
        let _ = self.cause.set(cause);
        // The end of init is the end of the namespace: the kernel kills all that is in it.
        self.init.kill()?;
        // When the kernel refuses, the burial tries again.
        let _ = self.thaw();
        Ok(())
    }

    pub(crate) fn is_frozen(&self) -> bool {
        *self.frozen()
    }

    /// Held while it is being frozen or thawed, so that a deadline that comes meanwhile has the last word.
    fn frozen(&self) -> MutexGuard<'_, bool> {
        self.frozen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does nothing to what is not frozen.
    pub(crate) fn thaw(&self) -> Result<(), Error> {
        let mut frozen = self.frozen();
        if let Some(cgroup) = self.cgroup.as_ref().filter(|_| *frozen) {
            cgroup.thaw()?;
            *frozen = false;
        }
        Ok(())
    }

    /// The same, and waits.
    pub(crate) fn kill_all(&self, cause: End, timeout: Duration) -> Result<Killed, Error> {
        let deadline = Instant::now().checked_add(timeout);
        let before = self.cgroup.as_ref().and_then(|cgroup| cgroup.pids().ok()).unwrap_or_default();
        self.kill(cause)?;
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if self.init.wait(left)? {
            let died = before.into_iter().filter(|pid| *pid != self.init_pid).collect();
            return Ok(Killed { died, ..Killed::default() });
        }
        match &self.cgroup {
            None => {
                let reason = "killed, and not gone yet".to_owned();
                let stuck = vec![Stuck { pid: self.init_pid, state: '?', location: None, reason }];
                Ok(Killed { stuck, ..Killed::default() })
            }
            Some(cgroup) => {
                let killed = cgroup.kill(Duration::ZERO)?;
                Ok(Killed {
                    died: killed.died,
                    killable_wait: killed.killable_wait.into_iter().map(Stuck::from).collect(),
                    stuck: killed.stuck.into_iter().map(Stuck::from).collect(),
                })
            }
        }
    }

    /// Why we killed it, if we did.
    pub(crate) fn cause(&self) -> Option<End> {
        self.cause.get().copied()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // In a fork of the host program these are copies; the originals are not its to end.
        if std::process::id() != self.sandbox.inner.pid {
            return;
        }
        let gauge = self.counters.get_mut().unwrap_or_else(PoisonError::into_inner);
        keeper::bury(Grave {
            init: Arc::clone(&self.init),
            cgroup: self.cgroup.take(),
            lease: self.lease.take(),
            image: self.volume.take().and_then(Volume::into_image),
            burials: Arc::clone(&self.sandbox.inner.burials),
            _descriptors: (Arc::clone(&self.handle), gauge.meter.take()),
        });
    }
}

/// What init says before it ends.
pub(crate) fn broken(reply: &protocol::Reply, plan: &Plan) -> Error {
    let (step, error) = (protocol::step::words(reply.step), std::io::Error::from_raw_os_error(reply.errno));
    let number = usize::try_from(reply.detail).unwrap_or(usize::MAX);
    let path = plan.landlock.as_ref().filter(|_| reply.step == protocol::step::LANDLOCK_PATH);
    match path.and_then(|rules| rules.path(number)) {
        Some(path) => Error::setup_at(step, path, error),
        None => Error::setup(step, error),
    }
}

/// The cgroup's total is exact, its split may be sampled or missing: the parts are made to add up to the total.
fn split_cpu(total: Duration, user: Option<Duration>, system: Option<Duration>) -> (Duration, Duration) {
    match (user, system) {
        (Some(user), _) if user <= total => (user, total - user),
        (None, Some(system)) if system <= total => (total - system, system),
        _ => (total, Duration::ZERO),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_add_up() {
        let ms = Duration::from_millis;
        assert_eq!(split_cpu(ms(10), Some(ms(4)), Some(ms(5))), (ms(4), ms(6)));
        assert_eq!(split_cpu(ms(10), None, Some(ms(5))), (ms(5), ms(5)));
        assert_eq!(split_cpu(ms(10), Some(ms(20)), None), (ms(10), ms(0)));
        assert_eq!(split_cpu(ms(10), None, None), (ms(10), ms(0)));
    }
}
