//! The documents of measurements: what each says of the machine, and where it goes.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Serialize;

use crate::resident::Failure;

/// The machine of one measuring, and how busy it was.
#[derive(Debug, Serialize)]
pub struct Machine {
    kernel: String,
    cpus: usize,
    load_before: String,
    load_after: String,
    unix_time: u64,
}

impl Machine {
    /// As it is before the measuring.
    pub fn before() -> Self {
        Self {
            kernel: read("/proc/sys/kernel/osrelease"),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            load_before: load(),
            load_after: String::new(),
            unix_time: 0,
        }
    }

    /// The same with what is only known after it.
    ///
    /// # Errors
    /// When the clock stands before 1970.
    pub fn after(self) -> Result<Self, Failure> {
        let unix_time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
        Ok(Self { load_after: load(), unix_time, ..self })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kernel, cpus, load_before, load_after, .. } = self;
        write!(f, "kernel {kernel}, {cpus} CPUs, load {load_before} before, {load_after} after")
    }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn load() -> String {
    read("/proc/loadavg")
}

/// Writes `STEM.json` into the directory, by default the workspace's `docs/spawn-latency`; where that is.
///
/// # Errors
/// When it cannot be made or written.
pub fn keep(report: &impl Serialize, directory: Option<&Path>, stem: &str) -> Result<PathBuf, Failure> {
    let usual = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/spawn-latency");
    let directory = directory.map_or_else(usual, Path::to_owned);
    std::fs::create_dir_all(&directory)?;
    let mut json = serde_json::to_vec_pretty(report)?;
    json.push(b'\n');
    std::fs::write(directory.join(format!("{stem}.json")), json)?;
    Ok(directory)
}
