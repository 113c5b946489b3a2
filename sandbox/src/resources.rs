//! The cgroup side of a sandbox: where its groups go, which limits they get, and what their counters say.

use std::fmt::Write as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cgroup::{
    Cgroup, Controller, Controllers, CpuMax, Device, IoMax, Knob, Layout, Limit, Limits, Meter, Needs, Parent, Setting,
    Value,
};
use rlimit::{Limit as Bound, Limits as Bounds, Resource};

use crate::error::{Refusal, cause_and_hint};
use crate::plan::{Plan, nanoseconds};
use crate::{Enforcement, Error, Feature, IoRates, LiveLimits, Mode};

/// Features that live in a cgroup, the controller and the knob of each.
const FEATURES: [(Feature, Option<Controller>, Option<Knob>); 8] = [
    (Feature::MemoryMax, Some(Controller::Memory), Some(Knob::MemoryMax)),
    (Feature::MemorySwapMax, Some(Controller::Memory), Some(Knob::MemorySwapMax)),
    (Feature::PidsMax, Some(Controller::Pids), Some(Knob::PidsMax)),
    (Feature::CpuMax, Some(Controller::Cpu), Some(Knob::CpuMax)),
    (Feature::CpuWeight, Some(Controller::Cpu), Some(Knob::CpuWeight)),
    (Feature::Cpuset, Some(Controller::Cpuset), Some(Knob::CpusetCpus)),
    (Feature::IoMax, Some(Controller::Io), Some(Knob::IoMax)),
    (Feature::CpuTimeMax, None, None),
];
/// What init adds to the processes of the programs.
const INIT_PROCESSES: u64 = 1;
const FIX: &str =
    "run as root, delegate a cgroup subtree to the caller (systemd: Delegate=yes), or `prefer` the feature";

/// Where the groups of a sandbox go, and what is written into them.
#[derive(Debug)]
pub(crate) struct Resources {
    parent: Parent,
    limits: Limits,
    /// What a group on trial read back; each start must read back the same, or says otherwise.
    on_trial: cgroup::Applied,
}

/// The group of one instance. Removed again unless the start succeeds.
#[derive(Debug)]
pub(crate) struct Group {
    cgroup: Option<Cgroup>,
    /// What this group read back, if it is not what the one on trial did.
    pub(crate) differs: Option<cgroup::Applied>,
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(cgroup) = self.cgroup.take() {
            // Nothing but a child that failed to become init was ever in it, and that is reaped.
            let _ = cgroup.remove(Duration::from_secs(1));
        }
    }
}

impl Group {
    pub(crate) fn cgroup(&self) -> Option<&Cgroup> {
        self.cgroup.as_ref()
    }

    /// The counters' files, opened and read once: the first reading, for which the kernel makes buffers, is the slow one.
    /// What cannot be had now is tried again when it is needed.
    pub(crate) fn warm_meter(&self) -> Option<Meter> {
        let mut meter = self.cgroup()?.final_meter().ok()?;
        meter.read().ok()?;
        Some(meter)
    }

    pub(crate) fn into_cgroup(mut self) -> Option<Cgroup> {
        self.cgroup.take()
    }
}

impl Resources {
    /// Finds a place for groups and tries the limits on one. `None` when no cgroup feature is wanted, or when those that
    /// are only preferred cannot be had.
    pub(crate) fn new(plan: &mut Plan, name: &str) -> Result<Option<Self>, Error> {
        let (mut required, mut preferred, mut first_required) = (Controllers::NONE, Controllers::NONE, None);
        let mut wanted = false;
        for (feature, controller, _) in FEATURES {
            let mode = plan.mode(feature);
            let controllers = if mode == Mode::Require { &mut required } else { &mut preferred };
            if mode != Mode::Off {
                wanted = true;
                *controllers = controller.map_or(*controllers, |controller| controllers.with(controller));
            }
            if mode == Mode::Require {
                first_required.get_or_insert(feature);
            }
        }
        if !wanted {
            return Ok(None);
        }
        let needs = Needs::new(required).prefer(preferred);
        let group = Layout::detect().and_then(|layout| layout.parent(&needs)).and_then(|parent| {
            let group = parent.create(name)?;
            Ok((parent, group))
        });
        let (parent, cgroup) = match (group, first_required) {
            (Ok(found), _) => found,
            (Err(error), Some(feature)) => {
                let (why, fix) = explain(&error);
                return Err(Error::unsupported(feature, why, fix));
            }
            (Err(error), None) => {
                without_groups(plan, &explain(&error))?;
                return Ok(None);
            }
        };
        let group = Group { cgroup: Some(cgroup), differs: None };
        let (limits, on_trial) = try_limits(plan, &group)?;
        Ok(Some(Self { parent, limits, on_trial }))
    }

    /// A group for one more instance, limited and read back.
    pub(crate) fn group(&self, name: &str) -> Result<Group, Error> {
        let mut group = Group { cgroup: Some(self.parent.create(name)?), differs: None };
        if let Some(cgroup) = group.cgroup() {
            let applied = cgroup.set(&self.limits)?;
            group.differs = (applied != self.on_trial).then_some(applied);
        }
        Ok(group)
    }
}

/// The cause and the fix of a refusal, apart.
fn explain(error: &cgroup::Error) -> Refusal {
    let (cause, hint) = cause_and_hint(error.to_string(), error.hint());
    (cause, hint.map_or_else(|| FIX.to_owned(), |hint| format!("{hint}; or `prefer` the feature")))
}

/// No group can be made, and nobody insisted: what remains of each feature.
fn without_groups(plan: &mut Plan, (why, fix): &Refusal) -> Result<(), Error> {
    for (feature, ..) in FEATURES {
        let mode = plan.mode(feature);
        if mode != Mode::Off {
            let entry = Enforcement::wanted(feature, mode, plan.requested(feature)).not(why.clone(), fix.clone());
            let entry = weaker(plan, entry).check()?;
            plan.set(entry);
        }
    }
    Ok(())
}

/// CPU time without a cgroup: each process by itself, by its resource limit.
fn weaker(plan: &mut Plan, entry: Enforcement) -> Enforcement {
    let Some(time) = plan.cpu_time_max.filter(|_| entry.feature == Feature::CpuTimeMax) else { return entry };
    let seconds = time.as_secs() + u64::from(time.subsec_nanos() > 0);
    plan.rlimits
        .entry(Resource::Cpu)
        .or_insert(Bounds { soft: Bound::Value(seconds), hard: Bound::Value(seconds + 1) });
    plan.cpu_time_max = None;
    let entry = entry.by(nanoseconds(Duration::from_secs(seconds)), "RLIMIT_CPU");
    Enforcement { why_not: Some("weaker: it bounds each process by itself, in whole seconds".into()), ..entry }
}

/// Sets each wanted limit on a group, so that what this host refuses is known before anything starts.
fn try_limits(plan: &mut Plan, group: &Group) -> Result<(Limits, cgroup::Applied), Error> {
    let Some(cgroup) = group.cgroup() else { return Ok(Default::default()) };
    let mut limits = Limits::default();
    for (feature, controller, _) in FEATURES {
        let (mode, requested) = (plan.mode(feature), plan.requested(feature));
        let Some(value) = requested.filter(|_| mode != Mode::Off) else { continue };
        let entry = Enforcement::wanted(feature, mode, requested);
        let refused = if feature == Feature::CpuTimeMax {
            match cgroup.usage()?.cpu {
                Some(_) => {
                    let by = if cgroup.unified().is_some() { "cgroup v2 cpu.stat" } else { "cgroup v1 cpuacct.usage" };
                    plan.set(entry.by(value, by));
                    continue;
                }
                None => ("no cgroup here counts CPU time".to_owned(), FIX.to_owned()),
            }
        } else if controller.is_some_and(|controller| cgroup.version_of(controller).is_none()) {
            ("the controller is not available here".to_owned(), FIX.to_owned())
        } else {
            let mut more = limits.clone();
            match put(&mut more, plan, feature, value).map(|()| cgroup.set(&more)) {
                Ok(Ok(_)) => {
                    limits = more;
                    continue;
                }
                Ok(Err(error)) => explain(&error),
                Err(error) if mode == Mode::Require => return Err(error),
                Err(error) => (error.to_string(), "name what there is".to_owned()),
            }
        };
        let entry = weaker(plan, entry.not(refused.0, refused.1)).check()?;
        plan.set(entry);
    }
    let applied = cgroup.set(&limits)?;
    for entry in entries(plan, &applied) {
        plan.set(entry);
    }
    Ok((limits, applied))
}

fn put(limits: &mut Limits, plan: &Plan, feature: Feature, value: u64) -> Result<(), Error> {
    match feature {
        Feature::MemoryMax => limits.memory_max = Some(Limit::Value(value)),
        Feature::MemorySwapMax => limits.memory_swap_max = Some(Limit::Value(value)),
        Feature::PidsMax => limits.pids_max = Some(Limit::Value(with_init(value))),
        Feature::CpuMax => limits.cpu_max = plan.cpu_max.map(cpu_max),
        Feature::CpuWeight => limits.cpu_weight = u32::try_from(value).ok(),
        Feature::Cpuset => (limits.cpuset_cpus, limits.cpuset_mems) = (plan.cpuset.clone(), plan.cpuset_mems.clone()),
        Feature::IoMax => {
            limits.io_max = plan.io_max.iter().map(|(device, rates)| io_max(device, rates)).collect::<Result<_, _>>()?
        }
        _ => {}
    }
    Ok(())
}

fn io_max(path: &Path, rates: &IoRates) -> Result<IoMax, Error> {
    let mut io = IoMax::new(device(path)?);
    [io.read_bytes, io.write_bytes, io.read_ops, io.write_ops] = rates.all().map(|rate| rate.map(Limit::Value));
    Ok(io)
}

/// A disk by its node or its numbers.
fn device(path: &Path) -> Result<Device, Error> {
    let numbers = path.to_str().and_then(|text| text.parse::<Device>().ok());
    let device = match numbers {
        Some(device) => device,
        None => {
            let refused = |error| Error::setup_at("limit the rates of", path, error);
            let node = std::fs::metadata(path).map_err(refused)?;
            if !node.file_type().is_block_device() {
                return Err(refused(rustix::io::Errno::NOTBLK.into()));
            }
            Device { major: rustix::fs::major(node.rdev()), minor: rustix::fs::minor(node.rdev()) }
        }
    };
    let entry = PathBuf::from(format!("/sys/dev/block/{device}"));
    if entry.join("partition").exists() {
        let disk =
            entry.canonicalize().ok().and_then(|entry| Some(Path::new("/dev").join(entry.parent()?.file_name()?)));
        let disk = disk.map_or_else(|| "its disk".to_owned(), |disk| disk.display().to_string());
        let why = format!("{} is a partition, and the kernel counts whole disks: name {disk}", path.display());
        return Err(Error::invalid("io_max", why));
    }
    Ok(device)
}

fn cpu_max((quota, period): (Duration, Duration)) -> CpuMax {
    let quota = u64::try_from(quota.as_micros()).unwrap_or(u64::MAX);
    CpuMax::new(Limit::Value(quota)).with_period(period)
}

/// Limits for a group that lives.
pub(crate) fn live(limits: &LiveLimits) -> Result<Limits, Error> {
    let mut group = Limits::default();
    group.memory_max = limits.memory_max.map(Limit::Value);
    group.memory_swap_max = limits.memory_swap_max.map(Limit::Value);
    group.pids_max = limits.pids_max.map(|pids| Limit::Value(with_init(pids)));
    group.cpu_max = limits.cpu_max.map(cpu_max);
    group.cpu_weight = limits.cpu_weight.map(u32::from);
    group.cpuset_cpus = limits.cpuset.as_ref().map(|cpus| cpus.iter().copied().collect());
    group.io_max = limits.io_max.iter().map(|(device, rates)| io_max(device, rates)).collect::<Result<_, _>>()?;
    Ok(group)
}

/// What a group read back, as entries of the report.
pub(crate) fn entries<'a>(plan: &'a Plan, applied: &'a cgroup::Applied) -> impl Iterator<Item = Enforcement> + use<> {
    let found: Vec<_> = FEATURES
        .iter()
        .filter_map(|(feature, _, knob)| {
            let entry = Enforcement::wanted(*feature, plan.mode(*feature), plan.requested(*feature));
            match feature {
                Feature::Cpuset => return cpuset_entry(entry, applied),
                Feature::IoMax => return io_entry(entry, applied),
                _ => {}
            }
            let setting = applied.get((*knob)?)?;
            let enforced = match &setting.enforced {
                Value::Limit(limit) => limit.value()?,
                Value::CpuMax(CpuMax { quota, .. }) => quota.value()?.saturating_mul(1000),
                Value::Weight(weight) => u64::from(*weight),
                _ => return None,
            };
            let enforced =
                if *feature == Feature::PidsMax { enforced.saturating_sub(INIT_PROCESSES) } else { enforced };
            Some(entry.by(enforced, setting.by))
        })
        .collect();
    found.into_iter()
}

/// How many there are, and which.
fn cpuset_entry(entry: Enforcement, applied: &cgroup::Applied) -> Option<Enforcement> {
    let mut lists = [Knob::CpusetCpus, Knob::CpusetMems].into_iter().filter_map(|knob| {
        let Setting { enforced: Value::List(list), by, .. } = applied.get(knob)? else { return None };
        Some((list.len(), format!("{by} {list}")))
    });
    let (count, first) = lists.next()?;
    let words = lists.fold(first, |words, (_, next)| words + ", " + &next);
    Some(entry.by(count, words))
}

/// How many rates there are, and which.
fn io_entry(entry: Enforcement, applied: &cgroup::Applied) -> Option<Enforcement> {
    let (mut count, mut words) = (0, String::new());
    for setting in applied.settings.iter().filter(|setting| setting.knob == Knob::IoMax) {
        let Value::Io(io) = &setting.enforced else { continue };
        if words.is_empty() {
            words.push_str(setting.by);
        }
        let _ = write!(words, " {}", io.device);
        for (name, rate) in
            [("read", io.read_bytes), ("write", io.write_bytes), ("read ops", io.read_ops), ("write ops", io.write_ops)]
        {
            if let Some(rate) = rate.and_then(Limit::value) {
                count += 1;
                let _ = write!(words, " {name} {rate}/s");
            }
        }
    }
    (count > 0).then(|| entry.by(count, words))
}

/// So many tasks of programs, as the cgroup counts them.
pub(crate) fn with_init(tasks: u64) -> u64 {
    tasks.saturating_add(INIT_PROCESSES)
}

/// What a group's counters say at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counters {
    pub(crate) usage: cgroup::Usage,
}

impl Counters {
    /// Processes and threads at one time, without init.
    pub(crate) fn pids_peak(&self) -> Option<u64> {
        self.usage.pids_peak.map(|peak| peak.saturating_sub(INIT_PROCESSES))
    }

    pub(crate) fn oom_kills(&self) -> u64 {
        self.usage.oom_kills.unwrap_or(0)
    }

    pub(crate) fn refused_forks(&self) -> u64 {
        self.usage.pids_max_events.unwrap_or(0)
    }
}

/// Shared report, with the entries that differ put in.
pub(crate) fn with_entries(report: &[Enforcement], changed: impl Iterator<Item = Enforcement>) -> Arc<[Enforcement]> {
    let mut report = report.to_vec();
    for entry in changed {
        match report.iter_mut().find(|old| old.feature == entry.feature) {
            Some(old) => *old = entry,
            None => report.push(entry),
        }
    }
    report.into()
}
