//! The mechanisms by name, and how much each is wanted.

use std::fmt;
use std::str::FromStr;

use rlimit::Resource;

/// One mechanism of a sandbox, for [`Builder::prefer`](crate::Builder::prefer), [`Builder::off`](crate::Builder::off)
/// and the report of what was enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Feature {
    /// A user namespace of its own, so that no id inside is host root.
    UserNamespace,
    /// Its processes see and reach no others (pid_namespaces(7)).
    PidNamespace,
    /// Its own mounts (mount_namespaces(7)).
    MountNamespace,
    /// Its own network, loopback only (network_namespaces(7)).
    NetworkNamespace,
    /// Its own System V and POSIX message objects (ipc_namespaces(7)).
    IpcNamespace,
    /// Its own host name (uts_namespaces(7)).
    UtsNamespace,
    /// Its cgroup looks like the root (cgroup_namespaces(7)).
    CgroupNamespace,
    /// A range of host ids that no other sandbox has at the same time.
    IdLease,
    /// A root file system of its own.
    Rootfs,
    /// A writable layer over a read-only directory.
    Overlay,
    /// Memory of all processes together.
    MemoryMax,
    /// Swap of all processes together.
    MemorySwapMax,
    /// Processes and threads.
    PidsMax,
    /// CPU bandwidth.
    CpuMax,
    /// CPU share under contention.
    CpuWeight,
    /// CPU time of all processes together.
    CpuTimeMax,
    /// Time from the program's start.
    WallTimeMax,
    /// Bandwidth of block devices.
    IoMax,
    /// CPUs and memory nodes.
    Cpuset,
    /// Bytes on disk.
    DiskMax,
    /// Files on disk.
    InodesMax,
    /// Bytes of standard output and standard error together.
    OutputMax,
    /// One resource limit (getrlimit(2)).
    Rlimit(Resource),
    /// No privilege by execve(2) (`PR_SET_NO_NEW_PRIVS`).
    NoNewPrivs,
    /// No capabilities, not even in the bounding set (capabilities(7)).
    Capabilities,
    /// The deny-list of system calls (seccomp(2)).
    Seccomp,
    /// The second fence around files and network (landlock(7)).
    Landlock,
    /// A session keyring of its own (session-keyring(7)).
    SessionKeyring,
}

const PLAIN: [(Feature, &str); 27] = [
    (Feature::UserNamespace, "user_namespace"),
    (Feature::PidNamespace, "pid_namespace"),
    (Feature::MountNamespace, "mount_namespace"),
    (Feature::NetworkNamespace, "network_namespace"),
    (Feature::IpcNamespace, "ipc_namespace"),
    (Feature::UtsNamespace, "uts_namespace"),
    (Feature::CgroupNamespace, "cgroup_namespace"),
    (Feature::IdLease, "id_lease"),
    (Feature::Rootfs, "rootfs"),
    (Feature::Overlay, "overlay"),
    (Feature::MemoryMax, "memory_max"),
    (Feature::MemorySwapMax, "memory_swap_max"),
    (Feature::PidsMax, "pids_max"),
    (Feature::CpuMax, "cpu_max"),
    (Feature::CpuWeight, "cpu_weight"),
    (Feature::CpuTimeMax, "cpu_time_max"),
    (Feature::WallTimeMax, "wall_time_max"),
    (Feature::IoMax, "io_max"),
    (Feature::Cpuset, "cpuset"),
    (Feature::DiskMax, "disk_max"),
    (Feature::InodesMax, "inodes_max"),
    (Feature::OutputMax, "output_max"),
    (Feature::NoNewPrivs, "no_new_privs"),
    (Feature::Capabilities, "capabilities"),
    (Feature::Seccomp, "seccomp"),
    (Feature::Landlock, "landlock"),
    (Feature::SessionKeyring, "session_keyring"),
];

impl Feature {
    /// Every feature that is not a resource limit.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        PLAIN.iter().map(|(feature, _)| *feature)
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Self::Rlimit(resource) = self {
            return f.pad(&format!("rlimit.{resource}"));
        }
        f.pad(PLAIN.iter().find(|(feature, _)| feature == self).map_or("unknown", |(_, name)| name))
    }
}

impl FromStr for Feature {
    type Err = crate::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || crate::Error::invalid("feature", format!("no feature is called `{text}`"));
        if let Some(resource) = text.strip_prefix("rlimit.") {
            return resource.parse().map(Self::Rlimit).map_err(|_| unknown());
        }
        PLAIN.iter().find(|(_, name)| *name == text).map(|(feature, _)| *feature).ok_or_else(unknown)
    }
}

/// How much a feature is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Enforced, or nothing starts. What the caller names is required.
    Require,
    /// Enforced where the host can; the report says where it could not and why. The defaults are preferred.
    Prefer,
    /// Not touched.
    Off,
}

impl Mode {
    /// The name in JSON documents.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Require => "require",
            Self::Prefer => "prefer",
            Self::Off => "off",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back() {
        for feature in Feature::all().chain([Feature::Rlimit(Resource::Nofile)]) {
            assert_eq!(feature.to_string().parse::<Feature>().unwrap(), feature);
        }
        assert!("rlimit.nonsense".parse::<Feature>().is_err());
        assert!("memory".parse::<Feature>().is_err());
    }
}
