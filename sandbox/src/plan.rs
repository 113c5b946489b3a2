//! The checked, complete description of a sandbox. Pure: made from the builder's data alone, testable without privilege.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use cgroup::CpuList;
use ns::Namespaces;
use rlimit::{Limit, Limits, Resource};
use userns::IdMap;

use crate::builder::{DiskImage, IdPool, IoRates, MountKind, MountOption, Network, Options, Seccomp, Upper, User};
use crate::{Capability, Enforcement, Error, Feature, Landlock, Mode};

/// The namespaces that a sandbox may share with its caller.
pub(crate) const SHAREABLE: [(Namespaces, Feature); 4] = [
    (Namespaces::IPC, Feature::IpcNamespace),
    (Namespaces::UTS, Feature::UtsNamespace),
    (Namespaces::CGROUP, Feature::CgroupNamespace),
    (Namespaces::NETWORK, Feature::NetworkNamespace),
];

/// What a sandbox stands on: without these it is none.
const FOUNDATION: [Feature; 4] =
    [Feature::UserNamespace, Feature::PidNamespace, Feature::MountNamespace, Feature::Rootfs];

/// Processes and threads of the programs, where nobody says otherwise.
const DEFAULT_PIDS: u64 = 256;
/// Resource limits where nobody says otherwise.
const DEFAULT_RLIMITS: [(Resource, u64); 3] =
    [(Resource::Nofile, 1024), (Resource::Core, 0), (Resource::Memlock, 64 << 10)];
/// Longest host name (`__NEW_UTS_LEN`).
const HOSTNAME_MAX: usize = 64;
/// More instances in waiting would mostly hold memory (about 300 KiB each).
const PREPARED_MAX: usize = 4096;
/// Smaller images hold little but the file system's own; larger ones no kernel has a file for.
const IMAGE_MIN: u64 = 1 << 20;
const IMAGE_MAX: u64 = 1 << 60;
/// The kernel's bounds of a bandwidth period.
const PERIOD_MIN: Duration = Duration::from_millis(1);
const PERIOD_MAX: Duration = Duration::from_secs(1);

/// What a sandbox will be: every feature with its mode, every value checked.
///
/// [`Sandbox::plan`](crate::Sandbox::plan) shows it with the mechanisms that this host offers; `Display` prints a line
/// for each feature.
#[derive(Clone, Debug)]
pub struct Plan {
    pub(crate) features: Vec<Enforcement>,
    pub(crate) namespaces: Namespaces,
    pub(crate) rootfs: Option<PathBuf>,
    pub(crate) rootfs_writable: bool,
    /// The lower directory and what is above it. Without it, where it was only preferred, the lower one is `rootfs`.
    pub(crate) overlay: Option<(PathBuf, Upper)>,
    pub(crate) mounts: Vec<MountOption>,
    pub(crate) proc: bool,
    pub(crate) dev: bool,
    pub(crate) hostname: OsString,
    pub(crate) user: User,
    pub(crate) group: User,
    pub(crate) id_maps: Option<(IdMap, IdMap)>,
    pub(crate) id_pool: IdPool,
    pub(crate) rlimits: BTreeMap<Resource, Limits>,
    pub(crate) cpu_max: Option<(Duration, Duration)>,
    pub(crate) cpuset: Option<CpuList>,
    pub(crate) cpuset_mems: Option<CpuList>,
    pub(crate) io_max: BTreeMap<PathBuf, IoRates>,
    pub(crate) capabilities: BTreeSet<Capability>,
    pub(crate) seccomp: Seccomp,
    pub(crate) landlock: Option<Landlock>,
    pub(crate) wall_time_max: Option<Duration>,
    pub(crate) cpu_time_max: Option<Duration>,
    pub(crate) output_max: Option<u64>,
    pub(crate) env: BTreeMap<OsString, OsString>,
    pub(crate) state_dir: Option<PathBuf>,
    pub(crate) prepared: usize,
    pub(crate) limits_conf: Option<String>,
    /// What a disk limit makes of the memory file system at `/tmp`, or of an overlay's.
    pub(crate) tmp_size: Option<u64>,
    pub(crate) tmp_inodes: Option<u64>,
    pub(crate) warnings: Vec<String>,
}

impl Plan {
    /// Checks the builder's data.
    pub(crate) fn new(options: &Options) -> Result<Self, Error> {
        let modes = Modes::new(options)?;
        let mut plan = Self {
            features: Vec::new(),
            namespaces: Namespaces::USER | Namespaces::PID | Namespaces::MOUNT,
            rootfs: options.rootfs.clone(),
            rootfs_writable: options.rootfs_writable,
            overlay: options.overlay.clone(),
            mounts: options.mounts.clone(),
            proc: options.proc,
            dev: options.dev,
            hostname: check_hostname(&options.hostname)?,
            user: options.user.clone(),
            group: options.group.clone(),
            id_maps: options.id_maps.clone(),
            id_pool: options.id_pool.clone().unwrap_or_default(),
            rlimits: BTreeMap::new(),
            cpu_max: options.cpu_max,
            cpuset: options.cpuset.clone(),
            cpuset_mems: options.cpuset_mems.clone(),
            io_max: options.io_max.clone(),
            capabilities: options.capabilities.clone(),
            seccomp: options.seccomp,
            landlock: options.landlock.clone(),
            wall_time_max: options.wall_time_max,
            cpu_time_max: options.cpu_time_max,
            output_max: options.output_max,
            env: options.env.clone(),
            state_dir: options.state_dir.clone(),
            prepared: options.prepared,
            limits_conf: options.limits_conf.clone(),
            tmp_size: None,
            tmp_inodes: None,
            warnings: Vec::new(),
        };
        if options.prepared > PREPARED_MAX {
            return Err(Error::invalid("prepared", format!("at most {PREPARED_MAX}")));
        }
        plan.check_mounts(options)?;
        plan.overlay(options, &modes)?;
        plan.check_image(options, &modes)?;
        check_environment(&options.env)?;
        for feature in FOUNDATION {
            plan.want(feature, modes.of(feature, Mode::Require), None);
        }
        plan.namespaces(options, &modes)?;
        plan.ids(options, &modes)?;
        plan.hardening(options, &modes)?;
        plan.resources(options, &modes)?;
        plan.rlimits(options, &modes)?;
        Ok(plan)
    }

    fn want(&mut self, feature: Feature, mode: Mode, requested: Option<u64>) {
        self.features.push(Enforcement::wanted(feature, mode, requested));
    }

    fn overlay(&mut self, options: &Options, modes: &Modes) -> Result<(), Error> {
        let Some((lower, upper)) = &options.overlay else { return Ok(()) };
        check_path("overlay", lower)?;
        if options.rootfs.is_some() {
            return Err(Error::invalid("overlay", "the root directory is set by rootfs already"));
        }
        let mode = modes.of(Feature::Overlay, Mode::Require);
        self.want(Feature::Overlay, mode, None);
        if mode == Mode::Off {
            self.rootfs = self.overlay.take().map(|(lower, _)| lower);
            return Ok(());
        }
        match upper {
            Upper::Dir(path) => {
                check_path("overlay", path)?;
                if options.prepared > 0 {
                    let why = "instances in waiting would hold the upper directory, which one at a time may use";
                    return Err(Error::invalid("prepared", why));
                }
            }
            Upper::Tmpfs if options.disk_max.or(options.inodes_max).is_some() => {
                if let Some(bind) = options.mounts.iter().find(|mount| mount.is_writable_on_disk()) {
                    let target = bind.target.display();
                    let why = format!("the overlay's layer in memory and {target} on disk are not counted together");
                    return Err(Error::invalid("disk_max", why));
                }
            }
            Upper::Tmpfs | Upper::DiskImage(_) => {}
        }
        Ok(())
    }

    /// An image is what a disk limit is made of, so it has a size and is the only place that is limited.
    fn check_image(&self, options: &Options, modes: &Modes) -> Result<(), Error> {
        let Some(filesystem) = self.disk_image() else { return Ok(()) };
        let refused = |why: String| Err(Error::invalid("disk_image", why));
        let mounts = || options.mounts.iter();
        let images = mounts().filter(|mount| matches!(mount.kind, MountKind::Image(_))).count();
        if images > 1 || (images == 1 && self.overlay.is_some()) {
            return refused("one for each sandbox; of an overlay it is the layer (Upper::DiskImage)".to_owned());
        }
        match options.disk_max {
            Some(bytes) if modes.of(Feature::DiskMax, Mode::Require) != Mode::Off => {
                if !(IMAGE_MIN..=IMAGE_MAX).contains(&bytes) {
                    return refused(format!("an image has a disk_max of {IMAGE_MIN} to {IMAGE_MAX} bytes"));
                }
            }
            _ => return refused("its size is the limit: say disk_max".to_owned()),
        }
        if filesystem == DiskImage::Xfs && options.inodes_max.is_some() {
            return refused("XFS does not count files, so inodes_max needs ext4".to_owned());
        }
        let written = mounts().find(|mount| mount.is_writable_on_disk()).map(|mount| mount.target.as_path());
        let written = written.or(options.rootfs_writable.then_some(Path::new("/")));
        match written {
            Some(place) => refused(format!("it and {} on disk are not counted together", place.display())),
            None => Ok(()),
        }
    }

    fn namespaces(&mut self, options: &Options, modes: &Modes) -> Result<(), Error> {
        let shareable = SHAREABLE.iter().fold(Namespaces::empty(), |all, (flag, _)| all | *flag);
        let wrong = options.shared - shareable;
        if !wrong.is_empty() {
            return Err(Error::invalid("share", format!("a sandbox cannot share its {wrong} namespace")));
        }
        let mut shared = options.shared;
        if options.network == Network::Host {
            shared |= Namespaces::NETWORK;
        }
        for (flag, feature) in SHAREABLE {
            // A cgroup namespace only hides a path; the others are walls.
            let usual = if flag == Namespaces::CGROUP { Mode::Prefer } else { Mode::Require };
            let mode = if shared.contains(flag) { Mode::Off } else { modes.of(feature, usual) };
            if mode != Mode::Off {
                self.namespaces |= flag;
            }
            self.want(feature, mode, None);
        }
        if !self.namespaces.contains(Namespaces::UTS) && options.hostname != "sandbox" {
            return Err(Error::invalid("hostname", "a shared UTS namespace has the host's name"));
        }
        Ok(())
    }

    fn hardening(&mut self, options: &Options, modes: &Modes) -> Result<(), Error> {
        for feature in [Feature::NoNewPrivs, Feature::Capabilities, Feature::Seccomp] {
            self.want(feature, modes.of(feature, Mode::Require), None);
        }
        if self.mode(Feature::Capabilities) == Mode::Off && !options.capabilities.is_empty() {
            return Err(Error::invalid("off(capabilities)", "with it nothing is dropped, so nothing can be kept"));
        }
        if self.mode(Feature::Seccomp) == Mode::Off && options.seccomp != Seccomp::default() {
            return Err(Error::invalid("off(seccomp)", "a profile was named"));
        }
        self.want(Feature::SessionKeyring, modes.of(Feature::SessionKeyring, Mode::Prefer), None);
        if self.mode(Feature::NoNewPrivs) == Mode::Off && self.mode(Feature::Seccomp) != Mode::Off {
            return Err(Error::invalid("off(no_new_privs)", "the seccomp filter needs it; turn seccomp off as well"));
        }
        if let Some(why) = options.landlock.as_ref().and_then(|rules| rules.check().err()) {
            return Err(Error::invalid("landlock", why));
        }
        let mode = options.landlock.as_ref().map_or(Mode::Off, |_| modes.of(Feature::Landlock, Mode::Require));
        self.want(Feature::Landlock, mode, None);
        if self.mode(Feature::NoNewPrivs) == Mode::Off && mode != Mode::Off {
            return Err(Error::invalid("off(no_new_privs)", "landlock needs it"));
        }
        Ok(())
    }

    fn ids(&mut self, options: &Options, modes: &Modes) -> Result<(), Error> {
        let Some((uids, gids)) = &options.id_maps else {
            self.want(Feature::IdLease, modes.of(Feature::IdLease, Mode::Prefer), None);
            return Ok(());
        };
        if options.id_pool.is_some() {
            return Err(Error::invalid(
                "id_maps",
                "the ids are to be leased (subordinate_ids), so they cannot be given",
            ));
        }
        if uids.to_inside(0).is_some() || gids.to_inside(0).is_some() {
            return Err(Error::invalid(
                "id_maps",
                "the host id 0 is root, or its group, for every file that it may reach",
            ));
        }
        self.want(Feature::IdLease, Mode::Off, None);
        Ok(())
    }

    fn resources(&mut self, options: &Options, modes: &Modes) -> Result<(), Error> {
        let named = |feature, value: Option<u64>| match value {
            Some(value) => (modes.of(feature, Mode::Require), Some(value)),
            None => (Mode::Off, None),
        };
        if options.memory_max.is_some_and(|bytes| bytes < 64 << 10) {
            return Err(Error::invalid("memory_max", "less than 64 KiB hold no process"));
        }
        let (mode, memory) = named(Feature::MemoryMax, options.memory_max);
        self.want(Feature::MemoryMax, mode, memory);
        // Memory without swap would only move to swap, so the one implies the other.
        let swap = options.memory_swap_max.or(memory.filter(|_| mode != Mode::Off).map(|_| 0));
        let swap_mode = match (options.memory_swap_max, swap) {
            (None, Some(_)) => modes.given(Feature::MemorySwapMax).unwrap_or(mode),
            _ => named(Feature::MemorySwapMax, swap).0,
        };
        if options.memory_swap_max.is_some() && options.memory_max.is_none() {
            return Err(Error::invalid("memory_swap_max", "swap is bounded only together with memory_max"));
        }
        self.want(Feature::MemorySwapMax, swap_mode, swap);

        let pids = options.pids_max.unwrap_or(DEFAULT_PIDS);
        if pids == 0 || pids >= 4 << 20 {
            return Err(Error::invalid("pids_max", "between 1 (no fork) and 4194303"));
        }
        let usual = if options.pids_max.is_some() { Mode::Require } else { Mode::Prefer };
        self.want(Feature::PidsMax, modes.of(Feature::PidsMax, usual), Some(pids));

        if let Some((quota, period)) = options.cpu_max {
            if period < PERIOD_MIN || period > PERIOD_MAX || quota < PERIOD_MIN {
                return Err(Error::invalid("cpu_max", "a quota of at least 1 ms in a period of 1 ms to 1 s"));
            }
        }
        let (mode, quota) = named(Feature::CpuMax, options.cpu_max.map(|(quota, _)| nanoseconds(quota)));
        self.want(Feature::CpuMax, mode, quota);
        if options.cpu_weight.is_some_and(|weight| weight == 0 || weight > 10_000) {
            return Err(Error::invalid("cpu_weight", "between 1 and 10000"));
        }
        let (mode, weight) = named(Feature::CpuWeight, options.cpu_weight.map(u64::from));
        self.want(Feature::CpuWeight, mode, weight);

        for (what, list) in [("cpuset", &options.cpuset), ("cpuset_mems", &options.cpuset_mems)] {
            if list.as_ref().is_some_and(CpuList::is_empty) {
                return Err(Error::invalid(what, "an empty list; leave it out for all that there are"));
            }
        }
        let list = options.cpuset.as_ref().or(options.cpuset_mems.as_ref());
        let (mode, places) = named(Feature::Cpuset, list.map(CpuList::len));
        self.want(Feature::Cpuset, mode, places);

        let mut rates = 0;
        for (device, caps) in &options.io_max {
            check_path("io_max", device)?;
            let caps = caps.all().into_iter().flatten();
            rates += caps.clone().count() as u64;
            if caps.clone().count() == 0 || caps.clone().any(|cap| cap == 0) {
                let why = format!(
                    "{}: at least one rate, and none of 0, which would be no transfer at all",
                    device.display()
                );
                return Err(Error::invalid("io_max", why));
            }
        }
        let (mode, rates) = named(Feature::IoMax, Some(rates).filter(|rates| *rates > 0));
        self.want(Feature::IoMax, mode, rates);

        for (feature, value) in [(Feature::DiskMax, options.disk_max), (Feature::InodesMax, options.inodes_max)] {
            if value == Some(0) {
                return Err(Error::invalid(feature.to_string(), "0 means no limit to the kernel"));
            }
            let (mode, value) = named(feature, value);
            self.want(feature, mode, value);
        }
        for (feature, time) in
            [(Feature::CpuTimeMax, options.cpu_time_max), (Feature::WallTimeMax, options.wall_time_max)]
        {
            if time == Some(Duration::ZERO) {
                return Err(Error::invalid(feature.to_string(), "0 would end the program before it starts"));
            }
            let (mode, time) = named(feature, time.map(nanoseconds));
            self.want(feature, mode, time);
        }
        let (mode, output) = named(Feature::OutputMax, options.output_max);
        self.want(Feature::OutputMax, mode, output);
        for feature in [Feature::WallTimeMax, Feature::OutputMax] {
            if self.mode(feature) == Mode::Off {
                match feature {
                    Feature::WallTimeMax => self.wall_time_max = None,
                    _ => self.output_max = None,
                }
            }
        }
        if self.mode(Feature::CpuTimeMax) == Mode::Off {
            self.cpu_time_max = None;
        }
        Ok(())
    }

    fn rlimits(&mut self, options: &Options, modes: &Modes) -> Result<(), Error> {
        for (resource, value) in DEFAULT_RLIMITS {
            let feature = Feature::Rlimit(resource);
            if !options.rlimits.contains_key(&resource) {
                self.add_rlimit(feature, resource, Limits::both(Limit::Value(value)), modes.of(feature, Mode::Prefer));
            }
        }
        for (&resource, &limits) in &options.rlimits {
            if limits.soft.to_raw() > limits.hard.to_raw() {
                let why = format!("the soft limit {} is above the hard limit {}", limits.soft, limits.hard);
                return Err(Error::invalid(format!("rlimit {resource}"), why));
            }
            let feature = Feature::Rlimit(resource);
            self.add_rlimit(feature, resource, limits, modes.of(feature, Mode::Require));
        }
        Ok(())
    }

    fn add_rlimit(&mut self, feature: Feature, resource: Resource, limits: Limits, mode: Mode) {
        if mode != Mode::Off {
            self.rlimits.insert(resource, limits);
        }
        self.want(feature, mode, limits.soft.value());
    }

    fn check_mounts(&self, options: &Options) -> Result<(), Error> {
        if let Some(rootfs) = &options.rootfs {
            check_path("rootfs", rootfs)?;
        }
        let mut targets = Vec::new();
        for mount in &options.mounts {
            check_path("mount target", &mount.target)?;
            if !mount.target.is_absolute() || mount.target.components().any(|part| part == Component::ParentDir) {
                return Err(Error::invalid("mount target", format!("{} is not absolute", mount.target.display())));
            }
            let normal: PathBuf = mount.target.components().collect();
            if normal == Path::new("/") {
                return Err(Error::invalid("mount target", "the root directory is set by rootfs"));
            }
            let below = |top: &str, used: bool| used && normal.starts_with(top);
            if below("/proc", options.proc) || (options.dev && normal == Path::new("/dev")) {
                return Err(Error::invalid("mount target", format!("{} is the sandbox's own", normal.display())));
            }
            if let MountKind::Bind { source, .. } = &mount.kind {
                check_path("bind source", source)?;
            }
            if matches!(mount.kind, MountKind::Tmpfs { size: Some(0) }) {
                return Err(Error::invalid("tmpfs", "a size of 0 means no limit to the kernel; say None for that"));
            }
            if targets.contains(&normal) {
                return Err(Error::invalid("mount target", format!("{} is used twice", normal.display())));
            }
            targets.push(normal);
        }
        Ok(())
    }

    /// The file system of the image that programs write to.
    pub(crate) fn disk_image(&self) -> Option<DiskImage> {
        let layer = match &self.overlay {
            Some((_, Upper::DiskImage(filesystem))) => Some(*filesystem),
            _ => None,
        };
        let mut mounts = self.mounts.iter().filter_map(|mount| match mount.kind {
            MountKind::Image(filesystem) => Some(filesystem),
            _ => None,
        });
        layer.or_else(|| mounts.next())
    }

    /// Whether the disk limit is the size of an image, or of what is mounted instead of one.
    pub(crate) fn has_volume(&self) -> bool {
        self.disk_image().is_some() || self.mounts.iter().any(|mount| matches!(mount.kind, MountKind::Memory { .. }))
    }

    /// Memory of the same size, where an image is only preferred and cannot be had.
    pub(crate) fn replace_image_by_memory(&mut self) {
        if let Some((_, upper @ Upper::DiskImage(_))) = &mut self.overlay {
            *upper = Upper::Tmpfs;
        }
        let (size, inodes) = (self.requested(Feature::DiskMax).unwrap_or_default(), self.requested(Feature::InodesMax));
        for mount in self.mounts.iter_mut().filter(|mount| matches!(mount.kind, MountKind::Image(_))) {
            mount.kind = MountKind::Memory { size, inodes };
        }
    }

    /// Puts in what was found out about a feature on this host.
    pub(crate) fn set(&mut self, entry: Enforcement) {
        match self.features.iter_mut().find(|old| old.feature == entry.feature) {
            Some(old) => *old = entry,
            None => self.features.push(entry),
        }
    }

    /// What programs keep, as a set of the kernel's.
    pub(crate) fn kept_capabilities(&self) -> u64 {
        self.capabilities.iter().fold(0, |set, capability| set | capability.bit())
    }

    /// How much a feature is wanted; off where the plan does not hold it.
    pub(crate) fn mode(&self, feature: Feature) -> Mode {
        self.feature(feature).map_or(Mode::Off, |entry| entry.mode)
    }

    /// Whether `/tmp` has to keep a disk limit.
    pub(crate) fn tmp_limited(&self) -> bool {
        self.overlay.is_none() && (self.tmp_size.is_some() || self.tmp_inodes.is_some())
    }

    /// Whether programs are watched while they run.
    pub(crate) fn has_deadline(&self) -> bool {
        self.wall_time_max.is_some() || self.cpu_time_max.is_some() || self.output_max.is_some()
    }

    /// The value that was asked for, if the feature is not off.
    pub(crate) fn requested(&self, feature: Feature) -> Option<u64> {
        self.feature(feature).filter(|entry| entry.mode != Mode::Off).and_then(|entry| entry.requested)
    }

    /// One feature with its mode and, once built, its mechanism.
    pub fn feature(&self, feature: Feature) -> Option<&Enforcement> {
        self.features.iter().find(|entry| entry.feature == feature)
    }

    /// Every feature with its mode and, once built, its mechanism.
    pub fn features(&self) -> &[Enforcement] {
        &self.features
    }

    /// What works but is likely not what was meant.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for entry in &self.features {
            let unlimited = [Feature::MemoryMax, Feature::WallTimeMax].contains(&entry.feature);
            if entry.mode != Mode::Off || entry.requested.is_some() {
                writeln!(f, "{entry}")?;
            } else if unlimited {
                writeln!(f, "{:<18} {:<8} unlimited", entry.feature, entry.mode)?;
            }
        }
        for warning in &self.warnings {
            writeln!(f, "warning: {warning}")?;
        }
        Ok(())
    }
}

/// What `prefer` and `off` said; the last word on a feature counts.
struct Modes<'a>(&'a Options);

impl<'a> Modes<'a> {
    fn new(options: &'a Options) -> Result<Self, Error> {
        for (feature, mode) in &options.modes {
            if FOUNDATION.contains(feature) {
                return Err(Error::invalid(
                    format!("{mode}({feature})"),
                    "a sandbox stands on it and has no weaker form",
                ));
            }
        }
        Ok(Self(options))
    }

    fn given(&self, feature: Feature) -> Option<Mode> {
        self.0.modes.iter().rev().find(|(of, _)| *of == feature).map(|(_, mode)| *mode)
    }

    fn of(&self, feature: Feature, usual: Mode) -> Mode {
        let named = if self.0.named.contains(&feature) { Mode::Require } else { usual };
        self.given(feature).unwrap_or(named)
    }
}

pub(crate) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn check_hostname(name: &OsString) -> Result<OsString, Error> {
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes.len() > HOSTNAME_MAX || bytes.contains(&0) {
        return Err(Error::invalid("hostname", "1 to 64 bytes, none of them NUL"));
    }
    Ok(name.clone())
}

fn check_path(what: &str, path: &Path) -> Result<(), Error> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.is_empty() || bytes.contains(&0) {
        return Err(Error::invalid(what, "an empty path, or one with a NUL byte"));
    }
    Ok(())
}

fn check_environment(env: &BTreeMap<OsString, OsString>) -> Result<(), Error> {
    for (key, value) in env {
        let key_bytes = key.as_bytes();
        if key_bytes.is_empty() || key_bytes.contains(&b'=') || key_bytes.contains(&0) {
            return Err(Error::invalid("env", format!("{key:?} is no name of a variable")));
        }
        if value.as_bytes().contains(&0) {
            return Err(Error::invalid("env", format!("the value of {key:?} holds a NUL byte")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Builder;

    fn plan(change: impl Fn(&mut Builder) -> &mut Builder) -> Result<Plan, Error> {
        let mut builder = Builder::new();
        change(&mut builder);
        Plan::new(&builder.options)
    }

    fn refused(change: impl Fn(&mut Builder) -> &mut Builder) -> String {
        plan(change).unwrap_err().to_string()
    }

    #[test]
    fn named_is_required_and_default_is_preferred() {
        let by_default = plan(|b| b).unwrap();
        assert_eq!(by_default.mode(Feature::PidsMax), Mode::Prefer);
        assert_eq!(by_default.requested(Feature::PidsMax), Some(256));
        assert_eq!(by_default.mode(Feature::Rlimit(Resource::Nofile)), Mode::Prefer);
        assert_eq!(by_default.mode(Feature::MemoryMax), Mode::Off);
        let named = plan(|b| b.pids_max(7).rlimit(Resource::Nofile, Limit::Value(10), Limit::Value(20))).unwrap();
        assert_eq!(named.mode(Feature::PidsMax), Mode::Require);
        assert_eq!(named.mode(Feature::Rlimit(Resource::Nofile)), Mode::Require);
        let preferred = plan(|b| b.pids_max(7).prefer(Feature::PidsMax)).unwrap();
        assert_eq!(preferred.mode(Feature::PidsMax), Mode::Prefer);
    }

    #[test]
    fn memory_implies_swap() {
        let plan_with = plan(|b| b.memory_max(64 << 20)).unwrap();
        assert_eq!(plan_with.requested(Feature::MemorySwapMax), Some(0));
        assert_eq!(plan_with.mode(Feature::MemorySwapMax), Mode::Require);
        let preferred = plan(|b| b.memory_max(64 << 20).prefer(Feature::MemoryMax)).unwrap();
        assert_eq!(preferred.mode(Feature::MemorySwapMax), Mode::Prefer);
        assert!(refused(|b| b.memory_swap_max(1 << 20)).contains("memory_max"));
    }

    #[test]
    fn cpus_and_rates_are_counted() {
        let plan = plan(|b| {
            b.cpuset([3, 0, 1]);
            b.io_max("8:0", IoRates { read_bytes: Some(1), write_ops: Some(2), ..Default::default() });
            b.io_max("8:16", IoRates { read_bytes: Some(1), ..Default::default() })
        });
        let plan = plan.unwrap();
        assert_eq!((plan.requested(Feature::Cpuset), plan.mode(Feature::Cpuset)), (Some(3), Mode::Require));
        assert_eq!((plan.requested(Feature::IoMax), plan.mode(Feature::IoMax)), (Some(3), Mode::Require));
    }

    #[test]
    fn contradictions_are_refused_in_words() {
        assert!(refused(|b| b.pids_max(0)).contains("pids_max"));
        assert!(refused(|b| b.off(Feature::PidNamespace)).contains("stands on it"));
        assert!(refused(|b| b.share(Namespaces::USER)).contains("user"));
        assert!(refused(|b| b.off(Feature::NoNewPrivs)).contains("seccomp"));
        let rules = || Landlock::new().read("/usr");
        assert!(
            refused(|b| b.landlock(rules()).off(Feature::NoNewPrivs).off(Feature::Seccomp)).contains("landlock needs")
        );
        assert!(refused(|b| b.landlock(Landlock::new())).contains("restricts nothing"));
        assert!(refused(|b| b.bind("/a", "/proc/self")).contains("sandbox's own"));
        assert!(refused(|b| b.bind("/a", "/x").tmpfs("/x", None)).contains("twice"));
        assert!(refused(|b| b.bind("/a", "/x/../../y")).contains("absolute"));
        assert!(refused(|b| b.hostname("")).contains("hostname"));
        assert!(refused(|b| b.env("A=B", "c")).contains("A=B"));
        assert!(refused(|b| b.tmpfs("/x", Some(0))).contains("0 means"));
        assert!(refused(|b| b.rlimit(Resource::Nofile, Limit::Value(2), Limit::Value(1))).contains("soft limit 2"));
        assert!(refused(|b| b.wall_time_max(Duration::ZERO)).contains("wall_time_max"));
        assert!(refused(|b| b.cpu_max(Duration::ZERO, Duration::from_millis(100))).contains("cpu_max"));
        assert!(refused(|b| b.cpuset([])).contains("cpuset"));
        assert!(refused(|b| b.cpuset([0]).cpuset_mems([])).contains("cpuset_mems"));
        assert!(refused(|b| b.io_max("/dev/sda", IoRates::default())).contains("at least one rate"));
        assert!(
            refused(|b| b.io_max("8:0", IoRates { read_ops: Some(0), ..Default::default() })).contains("none of 0")
        );
    }

    #[test]
    fn ids_are_leased_or_given() {
        let map = |outside| IdMap::single(0, outside).unwrap();
        assert_eq!(plan(|b| b.id_maps(map(7), map(7))).unwrap().mode(Feature::IdLease), Mode::Off);
        assert_eq!(plan(|b| b.subordinate_ids(IdPool::Auto)).unwrap().mode(Feature::IdLease), Mode::Require);
        assert!(refused(|b| b.id_maps(map(7), map(7)).subordinate_ids(IdPool::Auto)).contains("leased"));
        assert!(refused(|b| b.id_maps(map(0), map(7))).contains("host id 0"));
        assert!(refused(|b| b.id_maps(map(7), map(0))).contains("host id 0"));
    }

    #[test]
    fn an_overlay_is_planned_alone() {
        let tmpfs = plan(|b| b.overlay("/image", Upper::Tmpfs)).unwrap();
        assert_eq!(tmpfs.mode(Feature::Overlay), Mode::Require);
        assert_eq!(plan(|b| b).unwrap().mode(Feature::Overlay), Mode::Off);
        let off = plan(|b| b.overlay("/image", Upper::Tmpfs).off(Feature::Overlay)).unwrap();
        assert_eq!((off.overlay, off.rootfs.as_deref()), (None, Some(Path::new("/image"))));
        let on_disk = || Upper::Dir("/layer".into());
        assert!(refused(|b| b.rootfs("/image").overlay("/image", Upper::Tmpfs)).contains("rootfs"));
        assert!(refused(|b| b.overlay("", Upper::Tmpfs)).contains("empty path"));
        assert!(refused(|b| b.overlay("/image", Upper::Dir("".into()))).contains("empty path"));
        assert!(refused(|b| b.overlay("/image", on_disk()).prepared(1)).contains("one at a time"));
        let with_bind = refused(|b| b.overlay("/image", Upper::Tmpfs).bind("/a", "/data").disk_max(1 << 20));
        assert!(with_bind.contains("/data on disk"), "{with_bind}");
        plan(|b| b.overlay("/image", on_disk()).bind("/a", "/data").disk_max(1 << 20)).unwrap();
    }

    #[test]
    fn an_image_is_the_one_place_that_is_limited() {
        let image = |b: &mut Builder| _ = b.disk_image("/data", DiskImage::Ext4);
        let planned = plan(|b| {
            image(b);
            b.disk_max(1 << 20).inodes_max(100)
        });
        assert_eq!(planned.unwrap().disk_image(), Some(DiskImage::Ext4));
        let layer = || Upper::DiskImage(DiskImage::Xfs);
        assert_eq!(
            plan(|b| b.overlay("/image", layer()).disk_max(1 << 30)).unwrap().disk_image(),
            Some(DiskImage::Xfs)
        );
        assert!(refused(|b| b.overlay("/image", layer())).contains("say disk_max"));
        assert!(refused(|b| b.overlay("/image", layer()).disk_max(1 << 30).inodes_max(9)).contains("needs ext4"));
        for (words, change) in [
            ("say disk_max", (|b| b) as fn(&mut Builder) -> &mut Builder),
            ("say disk_max", |b| b.disk_max(1 << 20).off(Feature::DiskMax)),
            ("1048576 to", |b| b.disk_max(1 << 19)),
            ("1048576 to", |b| b.disk_max(u64::MAX)),
            ("/place on disk", |b| b.disk_max(1 << 20).bind("/a", "/place")),
            ("/ on disk", |b| b.disk_max(1 << 20).rootfs("/a").rootfs_writable(true)),
            ("one for each", |b| b.disk_max(1 << 20).disk_image("/more", DiskImage::Ext4)),
            ("one for each", |b| b.disk_max(1 << 20).overlay("/image", Upper::Tmpfs)),
            ("twice", |b| b.disk_max(1 << 20).tmpfs("/data", None)),
        ] {
            let why = refused(|b| {
                image(b);
                change(b)
            });
            assert!(why.contains(words), "{words}: {why}");
        }
    }

    #[test]
    fn unlimited_is_said() {
        let text = plan(|b| b).unwrap().to_string();
        assert!(text.contains("memory_max         off      unlimited"), "{text}");
        assert!(text.contains("pids_max           prefer"), "{text}");
    }
}
