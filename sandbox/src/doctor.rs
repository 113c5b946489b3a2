//! What this host can do, feature by feature, with the fix for what it cannot.

use std::fmt;

use crate::{DiskImage, Error, Feature, Mode, Sandbox, Upper};

/// How well a feature is supported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum State {
    /// It works.
    Available,
    /// It works in a weaker form.
    Degraded,
    /// It does not work.
    Missing,
}

impl State {
    /// The name in JSON documents.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Available => "available",
            Self::Degraded => "degraded",
            Self::Missing => "missing",
        }
    }
}

/// What was found out about one feature.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Finding {
    /// Which.
    pub feature: Feature,
    /// How well it works.
    pub state: State,
    /// The mechanism, or what is wrong.
    pub detail: String,
    /// What would help; empty when nothing is wrong.
    pub fix: String,
}

/// What a host supports.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Support {
    /// Every feature, in the order of the list.
    pub findings: Vec<Finding>,
    /// Whether a sandbox with every default starts and runs a program, and if not, why.
    pub runs: Result<(), String>,
}

impl fmt::Display for Support {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            writeln!(f, "{:<18} {:<10} {}", finding.feature, finding.state.name(), finding.detail)?;
            if !finding.fix.is_empty() {
                writeln!(f, "{:<30}fix: {}", "", finding.fix)?;
            }
        }
        match &self.runs {
            Ok(()) => writeln!(f, "a default sandbox runs here"),
            Err(why) => writeln!(f, "a default sandbox does not run here: {why}"),
        }
    }
}

impl Sandbox {
    /// Finds out what this host can do, by doing it: a sandbox with every limit preferred is built, and one with every
    /// default runs `/bin/true`.
    pub fn probe() -> Support {
        use std::time::Duration;
        let mut builder = Self::builder();
        builder
            .memory_max(64 << 20)
            .pids_max(32)
            .cpu_max(Duration::from_millis(50), Duration::from_millis(100))
            .cpu_weight(100)
            .cpu_time_max(Duration::from_secs(10))
            .wall_time_max(Duration::from_secs(10))
            .output_max(1 << 20);
        builder.landlock(crate::Landlock::new().write("/").bind_tcp([]));
        if let Some(cpu) = own_cpu() {
            builder.cpuset([cpu]);
        }
        if let Some(disk) = a_disk() {
            builder.io_max(disk, crate::IoRates { read_bytes: Some(1 << 30), ..Default::default() });
        }
        for feature in Feature::all() {
            // The foundations cannot be preferred, which is not this probe's business.
            if builder.clone().prefer(feature).plan().is_ok() {
                builder.prefer(feature);
            }
        }
        let probed = builder.build();
        let findings = Feature::all()
            .map(|feature| match &probed {
                _ if feature == Feature::Overlay => overlay(),
                Ok(_) if [Feature::DiskMax, Feature::InodesMax].contains(&feature) => disk(feature),
                Ok(sandbox) => finding(sandbox, feature),
                Err(error) => refused(error, feature),
            })
            .collect();
        let runs = Self::builder()
            .build()
            .and_then(|sandbox| {
                sandbox.command("/bin/true").stdout(crate::Stdio::null()).stderr(crate::Stdio::null()).status()
            })
            .map_err(|error| error.to_string())
            .and_then(
                |outcome| if outcome.success() { Ok(()) } else { Err(format!("/bin/true ended {}", outcome.end)) },
            );
        Support { findings, runs }
    }
}

/// One CPU that the caller may run on.
fn own_cpu() -> Option<u32> {
    let cpus = rustix::thread::sched_getaffinity(None).ok()?;
    (0..rustix::thread::CpuSet::MAX_CPU).find(|cpu| cpus.is_set(*cpu)).and_then(|cpu| u32::try_from(cpu).ok())
}

/// Any disk, by its numbers.
fn a_disk() -> Option<String> {
    std::fs::read_dir("/sys/block").ok()?.flatten().find_map(|disk| {
        let numbers = std::fs::read_to_string(disk.path().join("dev")).ok()?;
        Some(numbers.trim().to_owned())
    })
}

/// An overlay with a layer in memory, mounted on trial.
fn overlay() -> Finding {
    match Sandbox::builder().overlay("/usr", Upper::Tmpfs).prefer(Feature::Overlay).build() {
        Ok(sandbox) => finding(&sandbox, Feature::Overlay),
        Err(error) => refused(&error, Feature::Overlay),
    }
}

fn refused(error: &Error, feature: Feature) -> Finding {
    let fix = error.hint().unwrap_or_default();
    Finding { feature, state: State::Missing, detail: error.to_string(), fix }
}

/// Where directories can be limited; memory can be everywhere.
fn disk(feature: Feature) -> Finding {
    let image = match image(feature) {
        Ok(filesystem) => format!("on request an {filesystem} image"),
        Err(why) => format!("no disk image: {why}"),
    };
    let places: Vec<_> = crate::recover::filesystems_with_quota()
        .unwrap_or_default()
        .iter()
        .map(|filesystem| format!("{} on {}", filesystem.kind(), filesystem.path().display()))
        .collect();
    if places.is_empty() {
        let detail = format!("in memory; {image}; no file system that is mounted here limits projects for this caller");
        return Finding { feature, state: State::Degraded, detail, fix: crate::disk::FIX.to_owned() };
    }
    let detail = format!("project quota of {}; {image}", places.join(", "));
    Finding { feature, state: State::Available, detail, fix: String::new() }
}

/// An image that was made and mounted, or why not.
fn image(feature: Feature) -> Result<DiskImage, String> {
    let mut builder = Sandbox::builder();
    builder.disk_image("/tmp", DiskImage::Ext4).disk_max(1 << 20).inodes_max(64);
    builder.prefer(Feature::DiskMax).prefer(Feature::InodesMax);
    let sandbox = builder.build().map_err(|error| error.to_string())?;
    let why_not = sandbox.plan().feature(feature).and_then(|entry| entry.why_not.as_deref());
    sandbox.plan().disk_image().ok_or_else(|| why_not.unwrap_or("unknown").to_owned())
}

fn finding(sandbox: &Sandbox, feature: Feature) -> Finding {
    let found = sandbox.plan().feature(feature);
    let words = |text: &Option<std::borrow::Cow<'static, str>>| text.as_deref().unwrap_or_default().to_owned();
    match found {
        Some(entry) if entry.enforced.is_some() && entry.why_not.is_some() => {
            let detail = format!("{}: {}", words(&entry.by), words(&entry.why_not));
            Finding { feature, state: State::Degraded, detail, fix: words(&entry.fix) }
        }
        Some(entry) if entry.enforced.is_some() => {
            Finding { feature, state: State::Available, detail: words(&entry.by), fix: String::new() }
        }
        Some(entry) if entry.mode != Mode::Off => {
            Finding { feature, state: State::Missing, detail: words(&entry.why_not), fix: words(&entry.fix) }
        }
        _ => Finding {
            feature,
            state: State::Missing,
            detail: "nothing was there to try it on".to_owned(),
            fix: "build a sandbox with it: its error tells what is missing".to_owned(),
        },
    }
}
