//! What the guest's init is told, and what it answers. Compiled into both programs.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The whole order for one boot; lies in the initramfs as [`JOB`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    /// The host's tree, mounted read-only.
    pub(crate) host: Share,
    /// The one directory that both sides write: mounted at `/run/guest`.
    pub(crate) run: Share,
    /// Where the programs' output goes.
    pub(crate) output: Output,
    pub(crate) hostname: String,
    /// The kernel's own modules: a directory with `lib/modules/RELEASE`, in the host's tree.
    pub(crate) modules: PathBuf,
    pub(crate) cgroup: Layout,
    /// Who runs the programs; also the owner of the delegated cgroup.
    pub(crate) uid: u32,
    /// Mounted at `/mnt/quota`.
    pub(crate) disk: Option<Disk>,
    /// A device that holds a swap signature.
    pub(crate) swap: Option<String>,
    /// Directories to keep visible although something is mounted above them (`/tmp` is the guest's own).
    pub(crate) visible: Vec<PathBuf>,
    pub(crate) programs: Vec<Program>,
}

/// A file system that comes from the host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Share {
    pub(crate) source: String,
    pub(crate) kind: String,
    pub(crate) options: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Output {
    /// A serial line of User-Mode Linux.
    Serial(PathBuf),
    /// QEMU's virtio port, the only one that there is.
    VirtioPort,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Disk {
    pub(crate) device: String,
    pub(crate) kind: String,
    pub(crate) options: String,
}

/// How the cgroup hierarchies are mounted below `/sys/fs/cgroup`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Layout {
    /// Only v1 hierarchies, as systemd's legacy mode mounts them.
    V1,
    /// The same, and v2 at `unified` with the controllers that v1 leaves.
    Hybrid,
    /// Only v2.
    V2,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Program {
    pub(crate) name: String,
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) directory: PathBuf,
    /// In seconds; then everything in the guest is killed and the next program starts.
    pub(crate) limit: u64,
}

/// One line of JSON in [`RESULTS`] for each program that ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ProgramResult {
    /// As a shell would say it: 128 + N for signal N, 127 not found, 124 over its limit.
    pub(crate) status: u8,
    pub(crate) seconds: f64,
}

/// The line in the output before a program's own, when there are several.
pub(crate) fn heading(name: &str) -> String {
    format!("== {name}")
}

/// In the initramfs.
pub(crate) const JOB: &str = "job.json";
/// In the run directory.
pub(crate) const RESULTS: &str = "results";
/// In the initramfs: modules to load, in the order of their names.
pub(crate) const BOOT_MODULES: &str = "boot-modules";
