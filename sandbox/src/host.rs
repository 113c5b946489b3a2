//! What this process may do on this host, found out once for each sandbox.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::thread::CapabilitySet;

use crate::Error;

/// The code of init, compiled by the build script.
static INIT: &[u8] = include_bytes!(env!("SANDBOX_INIT_ELF"));

/// How far a caller's power reaches: which of the ways to a user namespace is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Privilege {
    /// Root of the initial user namespace: the namespaces belong to the host, only ids are mapped.
    Root,
    /// Everybody else, root of a container included: all namespaces belong to the sandbox's user namespace.
    User,
}

impl Privilege {
    pub(crate) fn of_caller() -> Result<Self, Error> {
        let needed = CapabilitySet::SYS_ADMIN
            | CapabilitySet::SETUID
            | CapabilitySet::SETGID
            | CapabilitySet::SETPCAP
            | CapabilitySet::NET_ADMIN;
        let sets = rustix::thread::capabilities(None).map_err(|error| Error::setup("read capabilities", error))?;
        if !sets.effective.contains(needed) {
            return Ok(Self::User);
        }
        let path = "/proc/self/uid_map";
        let map = std::fs::read_to_string(path).map_err(|error| Error::setup_at("read", path, error))?;
        let initial = map.split_whitespace().eq(["0", "0", "4294967295"]);
        Ok(if initial { Self::Root } else { Self::User })
    }
}

/// Init's code in a sealed memfd, opened for reading only: execve refuses a file that is open for writing.
///
/// Nobody can change it, and it is no file of the host, so a program that reaches it through `/proc` reaches nothing.
pub(crate) fn init_memfd() -> Result<OwnedFd, Error> {
    const EXEC: u32 = 0x10;
    let step = |error| Error::setup("put init into a memfd", error);
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Since 6.3 the kernel wants to be told that it is to be executed; older ones do not know the flag.
    let executable = flags | MemfdFlags::from_bits_retain(EXEC);
    let memfd = rustix::fs::memfd_create(c"sandbox-init", executable)
        .or_else(|_| rustix::fs::memfd_create(c"sandbox-init", flags))
        .map_err(|error| step(error.into()))?;
    let mut file = File::from(memfd);
    std::io::Write::write_all(&mut file, INIT).map_err(step)?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(0o555)).map_err(|error| step(error.into()))?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals).map_err(|error| step(error.into()))?;
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|error| step(error.into()))
}

/// Where root keeps what outlives a sandbox.
pub(crate) fn state_directory(named: Option<&Path>) -> &Path {
    named.unwrap_or(Path::new("/var/lib/sandbox"))
}

/// Makes a directory for what outlives a sandbox, and those that lead to it, where they are missing: closed to others,
/// whatever the caller's umask.
pub(crate) fn make_state_directory(path: &Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// `/dev/null`, for reading and writing.
pub(crate) fn null() -> Result<OwnedFd, Error> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY;
    rustix::fs::open("/dev/null", flags, Mode::empty()).map_err(|error| Error::setup_at("open", "/dev/null", error))
}

/// A pidfd of this process: init watches it, since a plain fork of this program would keep our socket open.
pub(crate) fn own_pidfd() -> Result<OwnedFd, Error> {
    rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty())
        .map_err(|error| Error::setup("open a pidfd of the calling program", error))
}

/// Where the caller's mounts are. Only kernels without `mount_setattr` (before 5.12) need it.
pub(crate) fn mount_points() -> Result<Vec<PathBuf>, Error> {
    static HAS_MOUNT_SETATTR: OnceLock<bool> = OnceLock::new();
    if *HAS_MOUNT_SETATTR.get_or_init(crate::sys::has_mount_setattr) {
        return Ok(Vec::new());
    }
    let mounts = procfs::process::Process::myself()
        .and_then(|process| process.mountinfo())
        .map_err(|error| Error::setup_at("read", "/proc/self/mountinfo", std::io::Error::other(error)))?;
    Ok(mounts.into_iter().map(|mount| mount.mount_point).collect())
}

/// Whether this process is protected from the OOM killer, which its programs must not be.
pub(crate) fn is_spared_by_oom_killer() -> bool {
    let read = std::fs::read_to_string("/proc/self/oom_score_adj");
    read.is_ok_and(|text| text.trim_start().starts_with('-'))
}
