//! Every knob of a sandbox, documented. No system call is made here.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use cgroup::CpuList;
use ns::Namespaces;
use rlimit::{Limit, Limits, Resource};
use userns::{IdMap, Pool, PoolConfig};

use crate::{Capability, Error, Feature, Landlock, Mode, Sandbox};

/// What a sandbox is to be. Made by [`Sandbox::builder`], checked and built by [`build`](Self::build).
///
/// Everything that is named here is *required*: a host that cannot enforce it makes `build` or the start fail, before
/// anything runs. [`prefer`](Self::prefer) and [`off`](Self::off) change that for one feature. The defaults that nobody
/// named are *preferred*; [`Sandbox::plan`] shows both.
#[derive(Clone, Debug)]
pub struct Builder {
    pub(crate) options: Options,
}

/// The plain data of a [`Builder`].
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) rootfs: Option<PathBuf>,
    pub(crate) rootfs_writable: bool,
    pub(crate) overlay: Option<(PathBuf, Upper)>,
    pub(crate) mounts: Vec<MountOption>,
    pub(crate) proc: bool,
    pub(crate) dev: bool,
    pub(crate) hostname: OsString,
    pub(crate) network: Network,
    pub(crate) shared: Namespaces,
    pub(crate) user: User,
    pub(crate) group: User,
    pub(crate) id_maps: Option<(IdMap, IdMap)>,
    pub(crate) id_pool: Option<IdPool>,
    pub(crate) rlimits: BTreeMap<Resource, Limits>,
    pub(crate) memory_max: Option<u64>,
    pub(crate) memory_swap_max: Option<u64>,
    pub(crate) pids_max: Option<u64>,
    pub(crate) cpu_max: Option<(Duration, Duration)>,
    pub(crate) cpu_weight: Option<u16>,
    pub(crate) cpuset: Option<CpuList>,
    pub(crate) cpuset_mems: Option<CpuList>,
    pub(crate) io_max: BTreeMap<PathBuf, IoRates>,
    pub(crate) landlock: Option<Landlock>,
    pub(crate) capabilities: BTreeSet<Capability>,
    pub(crate) seccomp: Seccomp,
    pub(crate) wall_time_max: Option<Duration>,
    pub(crate) cpu_time_max: Option<Duration>,
    pub(crate) output_max: Option<u64>,
    pub(crate) disk_max: Option<u64>,
    pub(crate) inodes_max: Option<u64>,
    pub(crate) env: BTreeMap<OsString, OsString>,
    pub(crate) modes: Vec<(Feature, Mode)>,
    pub(crate) named: Vec<Feature>,
    pub(crate) prepared: usize,
    pub(crate) limits_conf: Option<String>,
    pub(crate) state_dir: Option<PathBuf>,
}

/// Something to be seen at `target` inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MountOption {
    pub(crate) target: PathBuf,
    pub(crate) kind: MountKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum MountKind {
    Bind {
        source: PathBuf,
        access: Access,
    },
    Tmpfs {
        size: Option<u64>,
    },
    Image(DiskImage),
    /// In memory instead of on an image, which was only preferred.
    Memory {
        size: u64,
        inodes: Option<u64>,
    },
}

impl MountOption {
    /// Whether programs may write to a disk of the host here.
    pub(crate) fn is_writable_on_disk(&self) -> bool {
        matches!(self.kind, MountKind::Bind { access: Access::Writable | Access::Owned, .. })
    }
}

/// What a program may do with a bind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    ReadOnly,
    /// As far as the program's host id may.
    Writable,
    /// As the owner of the source may.
    Owned,
}

/// What may be transferred from and to one block device in a **second**; `None` is no cap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoRates {
    /// Bytes read.
    pub read_bytes: Option<u64>,
    /// Bytes written.
    pub write_bytes: Option<u64>,
    /// Read operations.
    pub read_ops: Option<u64>,
    /// Write operations.
    pub write_ops: Option<u64>,
}

impl IoRates {
    pub(crate) const fn all(&self) -> [Option<u64>; 4] {
        [self.read_bytes, self.write_bytes, self.read_ops, self.write_ops]
    }
}

/// A list of refused system calls, for [`Builder::seccomp`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Seccomp {
    /// What widens the kernel's attack surface or reaches out of the sandbox; ordinary programs do not notice.
    #[default]
    Usual,
    /// Also locks, leases and notifications of files, by which two sandboxes can signal to each other through a file that
    /// both can only read. Databases and build tools need them; programs to be judged do not.
    Strict,
}

/// Where the changes to an overlay's lower directory go: see [`Builder::overlay`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Upper {
    /// Into memory, fresh for each start and gone with the instance: at most [`disk_max`](Builder::disk_max) bytes
    /// (default: 64 MiB) and [`inodes_max`](Builder::inodes_max) files, charged to the sandbox's memory limit.
    Tmpfs,
    /// Into this directory of the host, where they stay: what a later start with it sees again.
    ///
    /// It is made if it is missing, and belongs to the sandbox alone: mode 0700, with a directory `upper` for the changes and
    /// one `work` for the kernel. One instance at a time uses it.
    Dir(PathBuf),
    /// Onto a [disk image](Builder::disk_image) with this file system, fresh for each start and gone with the instance.
    DiskImage(DiskImage),
}

/// The file system of a [disk image](Builder::disk_image).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DiskImage {
    /// ext4 without a journal, by `mkfs.ext4` of e2fsprogs: 1 MiB or more. It has room for as many files as blocks of 4 KiB, or
    /// for [`inodes_max`](Builder::inodes_max), rounded up to 16 for each 128 MiB.
    Ext4,
    /// XFS, by `mkfs.xfs` of xfsprogs: about 230 MiB or more. It cannot count files.
    Xfs,
}

impl fmt::Display for DiskImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        })
    }
}

impl FromStr for DiskImage {
    type Err = Error;

    /// By its name: `ext4` or `xfs`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "ext4" => Ok(Self::Ext4),
            "xfs" => Ok(Self::Xfs),
            _ => Err(Error::invalid("disk_image", format!("no file system of an image is called `{text}`"))),
        }
    }
}

/// The network that a program sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Network {
    /// Its own, with nothing but a loopback interface that is up.
    #[default]
    None,
    /// The caller's. Abstract Unix sockets and services on the host's loopback are within reach.
    Host,
}

/// A user or group, by name or by number.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum User {
    /// The id inside the sandbox. It need not exist in any passwd(5) file.
    Id(u32),
    /// A name of the host's user or group database.
    Name(String),
}

impl From<u32> for User {
    fn from(id: u32) -> Self {
        Self::Id(id)
    }
}

impl From<&str> for User {
    fn from(name: &str) -> Self {
        Self::Name(name.to_owned())
    }
}

/// Whose host ids instances lease, each a range that no other sandbox has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum IdPool {
    /// [`userns::PoolConfig::default_for_caller`]: for root the ids that `/etc/subuid` and `/etc/subgid` grant to the user
    /// `sandbox`, else 2013265920 to 2147352575; for others their own subordinate ids.
    #[default]
    Auto,
    /// The ids that `/etc/subuid` and `/etc/subgid` grant to this user, by name or number: 65536 at a time for root, else
    /// 1024.
    OfUser(OsString),
    /// These.
    Given(PoolConfig),
}

impl From<PoolConfig> for IdPool {
    fn from(config: PoolConfig) -> Self {
        Self::Given(config)
    }
}

impl IdPool {
    /// The pool itself, as sandboxes of this caller with this [`state_dir`](Builder::state_dir) use it: to look at its
    /// registered ranges, or to [give back](userns::Pool::forget_tree) those of a tree that is gone.
    ///
    /// # Errors
    /// [`Error::Ids`] when there are no ids to lend, when they are somebody else's, too, or when the directory is not the
    /// caller's.
    pub fn open(&self, state_dir: Option<&Path>) -> Result<Pool, Error> {
        let config = match self {
            Self::Auto => PoolConfig::default_for_caller()?,
            Self::OfUser(user) => {
                let slot = if rustix::process::geteuid().is_root() { userns::ROOT_SLOT } else { userns::USER_SLOT };
                PoolConfig::of_user(&userns::SubordinateIds::read()?, user, slot)?
            }
            Self::Given(config) => config.clone(),
        };
        Ok(Pool::open(&crate::recover::directory(state_dir)?, &config)?)
    }
}

impl Default for Builder {
    fn default() -> Self {
        Self::new()
    }
}

impl Builder {
    /// The defaults: see each method.
    pub fn new() -> Self {
        let env = [("PATH", crate::DEFAULT_PATH), ("HOME", "/"), ("LANG", "C.UTF-8")];
        Self {
            options: Options {
                rootfs: None,
                rootfs_writable: false,
                overlay: None,
                mounts: Vec::new(),
                proc: true,
                dev: true,
                hostname: "sandbox".into(),
                network: Network::None,
                shared: Namespaces::empty(),
                user: User::Id(0),
                group: User::Id(0),
                id_maps: None,
                id_pool: None,
                rlimits: BTreeMap::new(),
                memory_max: None,
                memory_swap_max: None,
                pids_max: None,
                cpu_max: None,
                cpu_weight: None,
                cpuset: None,
                cpuset_mems: None,
                io_max: BTreeMap::new(),
                landlock: None,
                capabilities: BTreeSet::new(),
                seccomp: Seccomp::default(),
                wall_time_max: None,
                cpu_time_max: None,
                output_max: None,
                disk_max: None,
                inodes_max: None,
                env: env.map(|(key, value)| (key.into(), value.into())).into(),
                modes: Vec::new(),
                named: Vec::new(),
                prepared: 0,
                limits_conf: None,
                state_dir: None,
            },
        }
    }

    fn name(&mut self, feature: Feature) -> &mut Self {
        self.options.named.push(feature);
        self
    }

    /// Makes `directory` the root directory inside, **read-only** (default: a small tmpfs with the host's `/usr`,
    /// `/bin`, `/sbin`, `/lib*` and a few files of `/etc`, all read-only, and a private `/tmp` of 64 MiB).
    ///
    /// `/proc`, `/dev` and the targets of binds are mounted over it; a target that does not exist is made in
    /// `directory`, as an empty directory or file. What lies in `directory` is not trusted: every target is resolved
    /// inside it. Its set-user-ID bits and device files have no effect.
    ///
    /// For host root the files belong inside to the numbers that they belong to on disk, as in an image that was unpacked
    /// there: by an idmapped mount, which needs Linux 5.12 and a file system that can be mapped (mount_setattr(2)). Where
    /// that cannot be had, [a warning](crate::Plan::warnings) says so, and their owner is nobody. The root directory of the
    /// host itself is never mapped: what is root's alone in it would be open to the program.
    pub fn rootfs(&mut self, directory: impl Into<PathBuf>) -> &mut Self {
        self.options.rootfs = Some(directory.into());
        self.name(Feature::Rootfs)
    }

    /// Lets the program write to the directory given to [`rootfs`](Self::rootfs).
    ///
    /// Below a directory of the caller's with mode 0700 (its parent, say), files belong inside and on disk to the same
    /// numbers, root's included. Elsewhere a program could leave a set-user-ID file of root for others to run, so owners
    /// are not mapped: it may write as far as its host id may, and its files belong to that id, as in a [`bind`](Self::bind).
    pub fn rootfs_writable(&mut self, writable: bool) -> &mut Self {
        self.options.rootfs_writable = writable;
        self
    }

    /// Makes an overlay the root directory inside: `lower` **read-only**, and above it a layer that takes all changes. The
    /// program writes as if to `lower`, which stays as it is.
    ///
    /// Mount points, set-user-ID bits and device files: as for [`rootfs`](Self::rootfs), which it excludes. `/tmp` is a
    /// directory of the overlay. With [`disk_max`](Self::disk_max) the changes are limited; `lower` is not counted.
    ///
    /// # Owners
    /// | caller | a file of `lower` with owner *n* belongs inside to | what the program makes belongs on disk to |
    /// |---|---|---|
    /// | root, Linux 5.19 | *n*: owner 0 is the program's default user | the same id, so later starts see it as theirs |
    /// | root before that, or where the file system of `lower` cannot be mapped | nobody (65534) | ids of a range that is kept for it |
    /// | others with their own id alone ([`off`](Self::off) `IdLease`) | the program, if it is the caller's | the caller |
    /// | others with subordinate ids | nobody | ids of a range that is kept for it |
    ///
    /// The root directory itself is always the program's where files cannot be mapped. Files of nobody are read as others
    /// may, and not changed; the root directory of the host itself is never mapped. [`Plan::warnings`](crate::Plan::warnings)
    /// tells when files are nobody's, and [`forget_tree`](crate::forget_tree) gives a kept range back.
    ///
    /// # Errors
    /// [`build`](Self::build) mounts it on trial. [`Error::Invalid`]: one directory lies in the other, or the upper one is
    /// open to others or used by another sandbox; [`Error::Unsupported`]: the kernel refuses (for others than root before
    /// 5.11), or the file system of the upper directory keeps no extended attributes. While an instance uses an upper
    /// directory, the next start with it waits, at most five seconds, then fails with `EBUSY`. [Preferred](Self::prefer), it is
    /// `lower` alone, read-only, where it cannot be had.
    pub fn overlay(&mut self, lower: impl Into<PathBuf>, upper: Upper) -> &mut Self {
        self.options.overlay = Some((lower.into(), upper));
        self.name(Feature::Overlay)
    }

    /// Shows `source` of the host at `target` inside, **writable** as far as the program's host id may write there.
    ///
    /// With all that is mounted below it (but not what is mounted later); set-user-ID bits and device files have no
    /// effect. The source is resolved when the sandbox is built; a later exchange of it makes starts fail. At most 1024 binds,
    /// those of the default root directory included.
    ///
    /// Files that the program makes belong to its host id. When the directory is gone, say so by
    /// [`forget_tree`](crate::forget_tree): until then these ids are kept for it, and root's pool has 2046 ranges (64 for a caller
    /// with the usual 65536 subordinate ids).
    pub fn bind(&mut self, source: impl Into<PathBuf>, target: impl Into<PathBuf>) -> &mut Self {
        let kind = MountKind::Bind { source: source.into(), access: Access::Writable };
        self.options.mounts.push(MountOption { target: target.into(), kind });
        self
    }

    /// As [`bind`](Self::bind), but read-only, all mounts below the source included.
    pub fn bind_read_only(&mut self, source: impl Into<PathBuf>, target: impl Into<PathBuf>) -> &mut Self {
        let kind = MountKind::Bind { source: source.into(), access: Access::ReadOnly };
        self.options.mounts.push(MountOption { target: target.into(), kind });
        self
    }

    /// As [`bind`](Self::bind), but the owner of `source` is the program's user inside, by an idmapped mount: what belongs
    /// to the owner belongs to the program, and files that it makes belong to the owner outside.
    ///
    /// The owner and its group must not be 0, unless the source lies below a directory of the caller's with mode 0700: a
    /// program could leave a set-user-ID file of root for others to run. For an ordinary
    /// caller without subordinate ids its own files are shown so anyway; other callers than host root cannot map files.
    /// Kernel: 5.12, and a file system that can be mapped (mount_setattr(2)).
    pub fn bind_owned(&mut self, source: impl Into<PathBuf>, target: impl Into<PathBuf>) -> &mut Self {
        let kind = MountKind::Bind { source: source.into(), access: Access::Owned };
        self.options.mounts.push(MountOption { target: target.into(), kind });
        self
    }

    /// Mounts an empty file system in memory at `target`, at most `size` **bytes** of it (default: half of the
    /// machine's memory; charged to the sandbox's memory limit), and at most one file for every 4 KiB of `size`, but 1024 in any
    /// case. Fresh for each start. Everyone inside may write.
    pub fn tmpfs(&mut self, target: impl Into<PathBuf>, size: Option<u64>) -> &mut Self {
        self.options.mounts.push(MountOption { target: target.into(), kind: MountKind::Tmpfs { size } });
        self
    }

    /// Mounts an empty file system of [`disk_max`](Self::disk_max) bytes at `target`, on a file of this host: a disk limit
    /// where no file system has project quota. Fresh for each start and gone with the instance. Everyone inside may write.
    /// One for each sandbox; of an overlay it is the layer, by [`Upper::DiskImage`].
    ///
    /// [`build`](Self::build) makes an image by mkfs(8), so large that at least `disk_max` bytes can be stored in a few files,
    /// and about 3 % more at most (1 MiB: 7 %); what the file system needs for itself is added. Each start copies what mkfs
    /// wrote into a sparse file without a name in [`state_dir`](Self::state_dir)`/images` (default:
    /// `/var/lib/sandbox/images`), where nobody else may write, and mounts that by a loop device. So nothing is left behind,
    /// whoever dies first. That takes 2.5 ms with ext4 and 10 ms with XFS, and is done ahead when there is time between two
    /// starts; each of the [`prepared`](Self::prepared) instances has its own.
    ///
    /// ```no_run
    /// use sandbox::{DiskImage, Sandbox};
    /// # fn main() -> Result<(), sandbox::Error> {
    /// let sandbox = Sandbox::builder().disk_image("/work", DiskImage::Ext4).disk_max(1 << 30).inodes_max(10_000).build()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # At the limit
    /// Writing fails with `ENOSPC`; a large write may fail while less than it asks for is left. `df` inside shows the size,
    /// with ext4 up to 2 % (16 MiB) more than can be stored. The outcome has [`LimitKind::Disk`](crate::LimitKind::Disk) if
    /// less than 1/64 and less than 4 MiB is left at the end, and [`LimitKind::Inodes`](crate::LimitKind::Inodes) if ext4 has
    /// no file left; what was refused before and has room again the kernel does not tell.
    ///
    /// # Caveats
    /// The file takes blocks of this host as it is written to, and none is reserved: where the host's disk is full meanwhile,
    /// programs lose what they wrote, and fsync(2) says `ENOSPC` or `EIO`. [A warning](crate::Plan::warnings) tells when there
    /// is too little room from the beginning. What was freed inside is given back with the instance. When that ends, what the
    /// page cache still holds is written before it is thrown away, in the background; [`close`](Sandbox::close) waits for it.
    /// On a file system without direct I/O (tmpfs before Linux 6.6) what is written is cached twice, and on cgroup v2 a
    /// program that writes more than its [`memory_max`](Self::memory_max) may be killed for it.
    ///
    /// # Errors
    /// [`Error::Invalid`] without `disk_max`, beside anything writable on disk, and for [`inodes_max`](Self::inodes_max) with
    /// XFS. [`Error::Unsupported`] names what is missing: host root, mkfs, loop devices, the file system in the kernel, or a
    /// limit that such a file system can have. [Preferred](Self::prefer) (`Feature::DiskMax`), memory of the same size stands
    /// in for an image that cannot be had. Kernel: built with `BLK_DEV_LOOP` (loop(4)).
    pub fn disk_image(&mut self, target: impl Into<PathBuf>, filesystem: DiskImage) -> &mut Self {
        self.options.mounts.push(MountOption { target: target.into(), kind: MountKind::Image(filesystem) });
        self
    }

    /// Mounts a new `/proc` (default: yes) in which processes of other users are hidden (`hidepid=2`).
    pub fn proc(&mut self, mount: bool) -> &mut Self {
        self.options.proc = mount;
        self
    }

    /// Mounts a small `/dev` (default: yes): null, zero, full, random, urandom, tty, its own shm and pts.
    pub fn dev(&mut self, mount: bool) -> &mut Self {
        self.options.dev = mount;
        self
    }

    /// The host name inside (default: `sandbox`), at most 64 bytes.
    pub fn hostname(&mut self, name: impl Into<OsString>) -> &mut Self {
        self.options.hostname = name.into();
        self.name(Feature::UtsNamespace)
    }

    /// The network inside (default: [`Network::None`]).
    pub fn network(&mut self, network: Network) -> &mut Self {
        self.options.network = network;
        if network == Network::None { self.name(Feature::NetworkNamespace) } else { self }
    }

    /// Shares namespaces of the caller with the sandbox: `IPC`, `UTS`, `CGROUP` or `NETWORK`.
    ///
    /// The user, PID and mount namespaces are what a sandbox is made of and cannot be shared.
    pub fn share(&mut self, namespaces: Namespaces) -> &mut Self {
        self.options.shared |= namespaces;
        self
    }

    /// Takes back [`share`](Self::share): the sandbox gets its own, and that is required.
    pub fn unshare(&mut self, namespaces: Namespaces) -> &mut Self {
        self.options.shared -= namespaces;
        for (flag, feature) in crate::plan::SHAREABLE {
            if namespaces.contains(flag) {
                self.name(feature);
            }
        }
        self
    }

    /// The user inside that runs programs (default: 0, which is an ordinary host id outside).
    ///
    /// A number need not be in any passwd(5); a name is looked up in the **host's** user database when the sandbox is
    /// built. The group becomes the user's group unless [`group`](Self::group) says otherwise.
    pub fn user(&mut self, user: impl Into<User>) -> &mut Self {
        self.options.user = user.into();
        self
    }

    /// The group inside that programs run with (default: 0).
    pub fn group(&mut self, group: impl Into<User>) -> &mut Self {
        self.options.group = group.into();
        self
    }

    /// Where the host ids come from (default: [`IdPool::Auto`], preferred): each instance gets a range that no other
    /// sandbox on this machine has while it lives, across processes and crashes.
    ///
    /// An instance that may write to a directory of the host ([`bind`](Self::bind), [`rootfs_writable`](Self::rootfs_writable))
    /// leaves files with its ids there. Its range is then kept for sandboxes of the same directories, on disk, until
    /// [`forget_tree`](crate::forget_tree) says that they are gone: nobody inherits the files of another. A range that
    /// cannot be kept makes `build` fail when this method was called, else it is a [warning](crate::Plan::warnings).
    pub fn subordinate_ids(&mut self, from: impl Into<IdPool>) -> &mut Self {
        self.options.id_pool = Some(from.into());
        self.name(Feature::IdLease)
    }

    /// Gives the user namespace exactly these maps, instead of a range of each instance's own.
    ///
    /// **All** instances, and whatever else has these ids on the host, are then one user to the kernel. Neither map may
    /// lead to the host id 0. [`user`](Self::user) and [`group`](Self::group) must be mapped; where 65533 is mapped too, it
    /// is init's, else programs share init's id and the seccomp filter is required. A caller that is not root can map
    /// its own id and its subordinate ids; its own is init's.
    pub fn id_maps(&mut self, uids: IdMap, gids: IdMap) -> &mut Self {
        self.options.id_maps = Some((uids, gids));
        self
    }

    /// Sets one resource limit of each program of the sandbox (defaults: `nofile` 1024, `core` 0, `memlock` 64 KiB; the
    /// rest as the caller's own).
    ///
    /// Units and scope are those of [`Resource`]; most limit a single process. Programs entered later get the same.
    pub fn rlimit(&mut self, resource: Resource, soft: Limit, hard: Limit) -> &mut Self {
        self.options.rlimits.insert(resource, Limits { soft, hard });
        self.name(Feature::Rlimit(resource))
    }

    /// Gives each program the resource limits that `/etc/security/limits.conf` and `limits.d` give `user` at login, read as
    /// the host's pam_limits reads them, and read again for each program (default: none).
    ///
    /// What [`rlimit`](Self::rlimit) names stands above it. A start fails when a limit is above the caller's own and the
    /// caller has no CAP_SYS_RESOURCE, or when the files deny the user a session. The report names the deciding line.
    pub fn limits_conf(&mut self, user: impl Into<String>) -> &mut Self {
        self.options.limits_conf = Some(user.into());
        self
    }

    /// Caps the memory of all processes together, in **bytes** (default: no cap).
    ///
    /// Page cache, tmpfs files and kernel memory of the sandbox count; memory of the caller does not. If the kernel
    /// cannot reclaim below it, it kills a process: see [`End::Memory`](crate::End::Memory) and
    /// [`Usage::oom_kills`](crate::Usage::oom_kills). Swap is capped at 0 with it, or at
    /// [`memory_swap_max`](Self::memory_swap_max).
    ///
    /// Writes `memory.max` (v1: `memory.limit_in_bytes`), rounded down to a page. Kernel: cgroup v2 since 4.5
    /// (cgroup-v2.rst, "Memory Interface Files").
    pub fn memory_max(&mut self, bytes: u64) -> &mut Self {
        self.options.memory_max = Some(bytes);
        self.name(Feature::MemoryMax)
    }

    /// Caps the swap of all processes together, in **bytes** (default: 0 when [`memory_max`](Self::memory_max) is set,
    /// else no cap). Writes `memory.swap.max` (v1: the difference of `memory.memsw.limit_in_bytes` and the memory cap).
    pub fn memory_swap_max(&mut self, bytes: u64) -> &mut Self {
        self.options.memory_swap_max = Some(bytes);
        self.name(Feature::MemorySwapMax)
    }

    /// Caps processes **and threads** of the programs together (default: 256, preferred). 1 means no fork; 0 is
    /// refused. Past it fork(2) and clone(2) fail with `EAGAIN`.
    ///
    /// Writes `pids.max`, one more for init. Kernel: 4.3 (cgroup-v2.rst, "PID").
    pub fn pids_max(&mut self, processes: u64) -> &mut Self {
        self.options.pids_max = Some(processes);
        self.name(Feature::PidsMax)
    }

    /// Caps CPU time of all processes together to `quota` in each `period` (default: no cap); two whole CPUs are
    /// `quota` = 2 × `period`. Past it they wait for the next period.
    ///
    /// Both in whole **microseconds**; `quota` at least 1 ms, `period` 1 ms to 1 s (the kernel's own bounds). Writes
    /// `cpu.max` (v1: `cpu.cfs_quota_us`, `cpu.cfs_period_us`).
    pub fn cpu_max(&mut self, quota: Duration, period: Duration) -> &mut Self {
        self.options.cpu_max = Some((quota, period));
        self.name(Feature::CpuMax)
    }

    /// Share of CPU time under contention, 1 to 10000 (default: the kernel's 100). Writes `cpu.weight` (v1:
    /// `cpu.shares`, converted).
    pub fn cpu_weight(&mut self, weight: u16) -> &mut Self {
        self.options.cpu_weight = Some(weight);
        self.name(Feature::CpuWeight)
    }

    /// The CPUs that programs may run on, by number (default: all that the caller's cgroup has).
    ///
    /// They cannot leave them: sched_setaffinity(2) chooses among these. A CPU that is offline, or that a cgroup above does
    /// not have, is refused. Writes `cpuset.cpus`. Kernel: cgroup v2 since 5.0 (cgroup-v2.rst, "Cpuset Interface Files").
    ///
    /// ```
    /// sandbox::Sandbox::builder().cpuset([0, 1]).cpuset_mems([0]);
    /// ```
    pub fn cpuset(&mut self, cpus: impl IntoIterator<Item = u32>) -> &mut Self {
        self.options.cpuset = Some(cpus.into_iter().collect());
        self.name(Feature::Cpuset)
    }

    /// The memory nodes that programs may allocate from, by number (default: all that the caller's cgroup has). Writes
    /// `cpuset.mems`; otherwise as [`cpuset`](Self::cpuset).
    pub fn cpuset_mems(&mut self, nodes: impl IntoIterator<Item = u32>) -> &mut Self {
        self.options.cpuset_mems = Some(nodes.into_iter().collect());
        self.name(Feature::Cpuset)
    }

    /// Caps what all processes together transfer from and to `device` in a second (default: no cap). Past it they wait.
    /// Once for each device; said again for one, the last holds.
    ///
    /// `device` is a block device by its node (`/dev/sda`) or its numbers (`8:0`); a whole disk, as the kernel counts no
    /// partitions. Transfers count when they reach the device: what is answered by the page cache is free, and buffered
    /// writes are paid for when they are written back, on cgroup v1 by nobody. With direct I/O both versions hold.
    ///
    /// Writes `io.max` (v1: `blkio.throttle.*_device`). Kernel: built with `BLK_DEV_THROTTLING`; cgroup v2 since 4.5
    /// (cgroup-v2.rst, "IO Interface Files").
    pub fn io_max(&mut self, device: impl Into<PathBuf>, rates: IoRates) -> &mut Self {
        self.options.io_max.insert(device.into(), rates);
        self.name(Feature::IoMax)
    }

    /// Ends a program this long after its start (default: never), by `CLOCK_MONOTONIC`: see
    /// [`End::WallTime`](crate::End::WallTime). With it ends everything that it started.
    pub fn wall_time_max(&mut self, time: Duration) -> &mut Self {
        self.options.wall_time_max = Some(time);
        self.name(Feature::WallTimeMax)
    }

    /// Ends a program when all processes of its sandbox together have used this much CPU time (default: never), at most
    /// 50 ms × CPUs late: see [`End::CpuTime`](crate::End::CpuTime). Counted by the cgroup, children included, waited
    /// for or not.
    pub fn cpu_time_max(&mut self, time: Duration) -> &mut Self {
        self.options.cpu_time_max = Some(time);
        self.name(Feature::CpuTimeMax)
    }

    /// Caps what programs may store, in **bytes** (default: no cap): in the upper directory of an [`overlay`](Self::overlay)
    /// and in the directories that are bound writable, together. What is in them counts, an overlay's lower directory does not.
    ///
    /// By a project quota; they must lie on one XFS, ext4 or f2fs mounted with `prjquota`. Past it writing fails with `ENOSPC`
    /// (XFS) or `EDQUOT`, `df` inside shows the cap, and the outcome has [`LimitKind::Disk`](crate::LimitKind::Disk). With the
    /// last handle binds leave the project; an upper directory keeps it. In a full one files of the lower directory cannot be
    /// removed: what hides them takes a file, too.
    ///
    /// Before Linux 6.17, and on ext4 and f2fs, the kernel never changes the project of a link, FIFO or socket. Those that
    /// were in a bind before are not counted, and cannot be renamed or linked in it (`EXDEV`); those that a program leaves
    /// keep the project, which is then a [leftover](crate::Leftover), and [`recover`](crate::recover()) frees it when they are gone.
    ///
    /// Of an overlay with [`Upper::Tmpfs`] it is the size of its layer, and of a [disk image](Self::disk_image) what fits into
    /// it. [Preferred](Self::prefer), and with nothing writable on disk, it is the size of `/tmp` in memory instead. In memory
    /// there is a file for each 4 KiB at most (1024 or more); extended attributes (Linux 6.6) have the room of files, 1 KiB each.
    pub fn disk_max(&mut self, bytes: u64) -> &mut Self {
        self.options.disk_max = Some(bytes);
        self.name(Feature::DiskMax)
    }

    /// Caps the number of files and directories there, as [`disk_max`](Self::disk_max) caps the bytes (default: no cap).
    pub fn inodes_max(&mut self, inodes: u64) -> &mut Self {
        self.options.inodes_max = Some(inodes);
        self.name(Feature::InodesMax)
    }

    /// Ends a program that writes more than this many **bytes** to standard output and standard error together
    /// (default: never). At most so many are delivered: see [`End::Output`](crate::End::Output).
    ///
    /// Only what goes through our pipes can be counted: [`Stdio::inherit`](crate::Stdio::inherit) and descriptors of
    /// the caller's are refused at the start.
    pub fn output_max(&mut self, bytes: u64) -> &mut Self {
        self.options.output_max = Some(bytes);
        self.name(Feature::OutputMax)
    }

    /// Sets one variable of the programs' environment (default: `PATH`, `HOME=/` and `LANG=C.UTF-8`; nothing of the
    /// caller's).
    pub fn env(&mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> &mut Self {
        self.options.env.insert(key.into(), value.into());
        self
    }

    /// Empties the environment, the defaults included.
    pub fn env_clear(&mut self) -> &mut Self {
        self.options.env.clear();
        self
    }

    /// Restricts what programs may open, by path **inside**, and which TCP ports they may use (default: no such fence,
    /// mounts and modes alone decide). Init restricts itself, so programs that are entered later are bound as well.
    ///
    /// Required, it needs a kernel that holds back all that is named: files 6.2, TCP ports 6.7, abstract sockets 6.12;
    /// [preferred](Self::prefer), what there is from 5.13 on is used, and the report tells the ABI and what stays open. A
    /// start fails when a path does not exist inside.
    pub fn landlock(&mut self, rules: Landlock) -> &mut Self {
        self.options.landlock = Some(rules);
        self.name(Feature::Landlock)
    }

    /// Lets programs keep these capabilities over what belongs to the sandbox's ids (default: none; the bounding set holds no
    /// other). They are in all five sets, so that programs which are executed later have them as well.
    ///
    /// # Errors
    /// [`build`](Self::build) refuses them together with `off(Feature::Capabilities)`, which leaves all sets alone.
    pub fn capabilities(&mut self, kept: impl IntoIterator<Item = Capability>) -> &mut Self {
        self.options.capabilities.extend(kept);
        self.name(Feature::Capabilities)
    }

    /// Which system calls programs are refused (default: [`Seccomp::Usual`]).
    pub fn seccomp(&mut self, profile: Seccomp) -> &mut Self {
        self.options.seccomp = profile;
        self.name(Feature::Seccomp)
    }

    /// Enforces `feature` only where the host can. [`Child::enforcement`](crate::Child::enforcement) tells.
    pub fn prefer(&mut self, feature: Feature) -> &mut Self {
        self.options.modes.push((feature, Mode::Prefer));
        self
    }

    /// Does not touch `feature`. With every cgroup feature off, no cgroup file system is looked at.
    pub fn off(&mut self, feature: Feature) -> &mut Self {
        self.options.modes.push((feature, Mode::Off));
        self
    }

    /// Keeps `instances` started and unused in the background (default: none), each to be used **once**.
    ///
    /// A start then costs little more than posix_spawn(3), limits and hardening included. The place of one that
    /// has ended is filled in the first pause of 20 ms, or soon when a quarter is left, those of programs that stay when an
    /// eighth is left; when callers are faster than the refills, they start their own, as without a pool. After 30 seconds without a start the pool shrinks to a quarter,
    /// and grows again with the next. Each waiting instance holds about 300 KiB of kernel memory, most of it for the
    /// network namespace, and up to 12 file descriptors. [`Sandbox::pool_stats`] tells hits and misses.
    pub fn prepared(&mut self, instances: usize) -> &mut Self {
        self.options.prepared = instances;
        self
    }

    /// Where locks, records and disk images of running sandboxes lie (default: `/run/sandbox` of root,
    /// `$XDG_RUNTIME_DIR/sandbox` of others; images in `/var/lib/sandbox`). Sandboxes that must not share ids must share this
    /// directory.
    pub fn state_dir(&mut self, directory: impl Into<PathBuf>) -> &mut Self {
        self.options.state_dir = Some(directory.into());
        self
    }

    /// The checked plan alone, without a look at the host: which features are wanted how much, not yet by which mechanism.
    ///
    /// # Errors
    /// [`Error::Invalid`] for contradictions.
    pub fn plan(&self) -> Result<crate::Plan, Error> {
        crate::Plan::new(&self.options)
    }

    /// Checks the plan, looks at the host, and prepares all that can be prepared once.
    ///
    /// # Errors
    /// [`Error::Invalid`] for contradictions, [`Error::Unsupported`] for a required feature that this host cannot
    /// enforce, [`Error::Setup`] when a source of a bind or the root directory cannot be used.
    pub fn build(&self) -> Result<Sandbox, Error> {
        Sandbox::build(&self.options)
    }
}
