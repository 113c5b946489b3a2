//! [`Sandbox`]: what is paid once, and the start of its instances.

use std::ffi::OsStr;
use std::fmt;
use std::ops::Deref;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ns::Namespaces;
use userns::{IdMap, Setgroups};

use crate::ahead::{Ahead, Provisions, Wish};
use crate::builder::{Access, MountKind, Options, Seccomp};
use crate::disk::{Disk, Volume};
use crate::harden::seccomp;
use crate::host::{self, Privilege};
use crate::identity::Identity;
use crate::image::Images;
use crate::init::{Handle, protocol};
use crate::instance::{Instance, Parts, Running};
use crate::keeper::{self, Burials, Refill};
use crate::limits::ProcessLimits;
use crate::low::Numbers;
use crate::outcome::Leftover;
use crate::overlay::Overlay;
use crate::plan::Plan;
use crate::pool::{Pool, PoolStats};
use crate::resources::{self, Group, Resources};
use crate::rootfs::{self, Mapping, Rootfs};
use crate::spawn::{self, Refused, Start};
use crate::step::{Bind, Context, Handed, Step};
use crate::{Builder, Capability, Command, Enforcement, Error, Feature, Mode};

/// How long dropping the last handle waits for what is being taken down.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A sandbox, built: start programs in it as often as you like, from as many threads as you like.
///
/// Every [`command`](Self::command) runs in a **fresh** instance, with ids, namespaces and counters of its own; two
/// programs of one `Sandbox` share nothing that they could write to. Clones are handles of the same sandbox.
///
/// Dropping the last handle waits, at most five seconds, until all that was made is taken away;
/// [`close`](Self::close) tells what could not be.
#[derive(Clone)]
pub struct Sandbox {
    pub(crate) inner: Arc<Handles>,
}

/// The last of the handles takes the sandbox down. Threads of the pool hold [`Inner`] alone, so none of them is ever last.
pub(crate) struct Handles(Arc<Inner>);

impl Deref for Handles {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Drop for Handles {
    fn drop(&mut self) {
        // A copy in a fork of the host program takes nothing down; the keeper must not wait for itself.
        if std::process::id() == self.pid {
            self.close_supplies();
            if !keeper::is_current_thread() {
                drop(self.burials.wait(CLOSE_TIMEOUT));
            }
            drop(self.disk.as_ref().map(Disk::release));
        }
    }
}

/// What all handles share.
pub(crate) struct Inner {
    pub(crate) plan: Plan,
    pub(crate) identity: Identity,
    pub(crate) resources: Option<Resources>,
    /// From clone to init.
    steps: Vec<Step>,
    binds: Vec<Bind>,
    owners: Vec<(u32, u32)>,
    template: Option<OwnedFd>,
    namespaces: Namespaces,
    /// The message that init hardens itself by.
    config: Vec<u8>,
    /// The same, and to say so.
    config_ready: Vec<u8>,
    init: OwnedFd,
    pub(crate) null: OwnedFd,
    own_pidfd: OwnedFd,
    /// Held while the sandbox is there; `None` where so many descriptors cannot be had.
    low: Option<Arc<Numbers>>,
    pub(crate) process_limits: ProcessLimits,
    pub(crate) burials: Arc<Burials>,
    /// The process that built it; a fork of that one must not use it.
    pub(crate) pid: u32,
    /// How the names of its instances begin.
    name: String,
    /// What every start enforces, unless it says otherwise.
    report: Arc<[Enforcement]>,
    pool: Option<Pool>,
    /// Not with a pool, which does better, nor where ids belong to a tree of files: others may wait for them.
    pub(crate) ahead: Option<Ahead>,
    pub(crate) disk: Option<Disk>,
    pub(crate) overlay: Option<Overlay>,
    images: Option<Images>,
    /// The child hands over a descriptor of the memory file system that a disk limit is made of.
    counts_memory: bool,
    privilege: Privilege,
}

/// Tells the instances of this process apart.
fn next_instance() -> u64 {
    static INSTANCES: AtomicU64 = AtomicU64::new(0);
    INSTANCES.fetch_add(1, Ordering::Relaxed)
}

impl fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sandbox").field("plan", &self.inner.plan).finish_non_exhaustive()
    }
}

impl Sandbox {
    /// A description to fill in.
    pub fn builder() -> Builder {
        Builder::new()
    }

    pub(crate) fn build(options: &Options) -> Result<Self, Error> {
        let mut plan = Plan::new(options)?;
        let privilege = Privilege::of_caller()?;
        let mut identity = Identity::new(&mut plan, privilege)?;
        // The caller's own files belong to the program's id anyway, where that is the caller's.
        if privilege == Privilege::User && !identity.is_caller() {
            refuse_owned(&plan)?;
        }
        let name = crate::recover::name_prefix()?;
        let mut images = Images::new(&mut plan, privilege)?;
        let mut overlay = Overlay::open(&plan, privilege)?;
        // Before the overlay's directories are made, so that they belong to the project.
        let mut disk = Disk::new(&mut plan, overlay.as_ref(), &name)?;
        if let Some(untried) = overlay.take() {
            overlay = untried.try_out(&mut plan, &identity, disk.as_ref(), images.as_ref())?;
            if overlay.is_none() && disk.is_none() {
                images = None;
                disk = Disk::new(&mut plan, None, &name)?;
            }
        }
        let map_root = rootfs::map_root(&mut plan, privilege)?;
        let how = Mapping { owners: privilege == Privilege::Root, root: map_root, hide_keys: !identity.is_leased() };
        let Rootfs { base, copies, enter, private, binds, owners, kept, .. } =
            Rootfs::new(&plan, overlay.as_ref(), &host::mount_points()?, how)?;
        identity.keep_for(kept, &mut plan)?;
        warn_of_binds(&mut plan);
        let pid = std::process::id();
        let resources = Resources::new(&mut plan, &format!("{name}{}", next_instance()))?;
        let mut process_limits = ProcessLimits::new(&mut plan)?;
        let raises = std::mem::take(&mut process_limits.raises);
        note_mechanisms(&mut plan, &identity, map_root);
        let landlock = landlock(&mut plan)?;
        let mut steps = first_steps(&plan, resources.is_some())?;
        // Namespaces that the child takes by itself, or that come with the template.
        let mut namespaces = plan.namespaces - (Namespaces::USER | Namespaces::CGROUP);
        let template = match privilege {
            // The ids of an overlay's files are those of the instance, so its root is made for each.
            Privilege::Root if overlay.is_none() => {
                let mut made = base;
                made.extend([Step::SendMountNamespace, Step::Pivot]);
                let template = spawn::mount_namespace(&made, &binds)?;
                steps.extend(copies);
                steps.push(Step::EnterTemplate);
                steps.extend(enter);
                steps.extend(private);
                namespaces -= Namespaces::MOUNT;
                steps.push(Step::RaiseLimits(raises));
                Some(template)
            }
            _ => {
                steps.extend(base);
                steps.extend(copies);
                steps.extend(private);
                steps.push(Step::Pivot);
                steps.push(Step::RaiseLimits(raises));
                None
            }
        };
        if privilege == Privilege::Root {
            steps.push(Step::EnterUserNamespace);
        }
        steps.push(Step::KeepCapabilities { programs: plan.kept_capabilities() });
        steps.push(Step::ExecuteInit);
        let counts_memory = steps.iter().any(Step::sends_memory);
        keeper::prepare()?;
        let config = init_config(&plan, &identity, &landlock, 0)?;
        let config_ready = init_config(&plan, &identity, &landlock, protocol::NOTIFY_READY)?;
        let pool = (plan.prepared > 0).then(|| Pool::new(plan.prepared));
        let ahead = (pool.is_none() && !identity.keeps_ids()).then(Ahead::new);
        let report = plan.features.as_slice().into();
        let sandbox = Self {
            inner: Arc::new(Handles(Arc::new(Inner {
                plan,
                identity,
                resources,
                steps,
                binds,
                owners,
                template,
                namespaces,
                config,
                config_ready,
                init: host::init_memfd()?,
                null: host::null()?,
                own_pidfd: host::own_pidfd()?,
                low: Numbers::of_this_process(),
                process_limits,
                burials: Arc::new(Burials::default()),
                pid,
                name,
                report,
                pool,
                ahead,
                overlay,
                disk,
                images,
                counts_memory,
                privilege,
            }))),
        };
        let inner = &sandbox.inner;
        if let Some(pool) = &inner.pool {
            let _ = inner.burials.refill.set(Refill::Pool(pool.bell(!inner.identity.keeps_ids())));
            pool.fill(&inner.0)?;
        } else if inner.ahead.is_some() {
            let _ = inner.burials.refill.set(Refill::Ahead(Wish::new(Arc::downgrade(&inner.0))));
        }
        Ok(sandbox)
    }

    /// A command that runs in a fresh instance of its own, which ends with it.
    ///
    /// `program` is looked for inside: a bare name in the `PATH` of the sandbox's environment, a path from its root.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        Command::in_sandbox(self, program.as_ref())
    }

    /// Starts an instance in which programs run one after another or side by side, until it is stopped or dropped.
    ///
    /// # Errors
    /// [`Error::Setup`] names the step, the path and the errno; nothing is left behind then.
    pub fn start(&self) -> Result<Instance, Error> {
        Ok(Instance::new(self.running(true)?))
    }

    /// What was asked for, and by which mechanisms it will be enforced.
    pub fn plan(&self) -> &Plan {
        &self.inner.plan
    }

    /// How the pool of prepared instances has served; all zero without one.
    pub fn pool_stats(&self) -> PoolStats {
        self.inner.pool.as_ref().map(Pool::stats).unwrap_or_default()
    }

    /// Waits, at most five seconds, until everything that ended instances held is taken away. What could not be: cgroups
    /// with processes that do not die, leases that could not be released.
    ///
    /// Instances and children that are still held by somebody go on.
    #[must_use = "it tells what is left behind"]
    pub fn close(self) -> Vec<Leftover> {
        self.inner.close_supplies();
        let mut leftovers = self.inner.burials.wait(CLOSE_TIMEOUT);
        leftovers.extend(self.inner.disk.as_ref().map(Disk::release).unwrap_or_default());
        leftovers
    }

    /// An instance for one user: from the pool if one is ready there, else started now.
    pub(crate) fn running(&self, wait_ready: bool) -> Result<Arc<Running>, Error> {
        let parts = match self.inner.pool.as_ref().and_then(Pool::take) {
            Some(parts) => parts,
            None if wait_ready => self.inner.make(true)?.wait_ready(&self.inner.plan)?,
            None => self.inner.make(false)?,
        };
        Ok(Arc::new(Running::new(self, parts)))
    }
}

impl Inner {
    /// Takes down what was made for starts to come.
    fn close_supplies(&self) {
        if let Some(pool) = &self.pool {
            pool.close(CLOSE_TIMEOUT);
        }
        if let Some(ahead) = &self.ahead {
            ahead.close();
        }
    }

    /// Starts an instance: ids, cgroup, limits read back, then the process. With `notify_ready` init will say when it is
    /// hardened; else the answer to the first request tells.
    pub(crate) fn make(&self, notify_ready: bool) -> Result<Parts, Error> {
        let Some(overlay) = &self.overlay else { return self.make_now(notify_ready) };
        let turn = overlay.turn()?;
        let parts = overlay.with_room(self.disk.as_ref(), || self.make_now(notify_ready))?;
        if let Some(turn) = turn {
            turn.give_to(&parts.init);
        }
        Ok(parts)
    }

    fn make_now(&self, notify_ready: bool) -> Result<Parts, Error> {
        if std::process::id() != self.pid {
            return Err(Error::invalid("sandbox", "a forked process must build its own"));
        }
        if let Some(provisions) = self.ahead.as_ref().and_then(Ahead::take) {
            // Somebody may have spoilt them since; then the second attempt says what is wrong.
            if let Ok(parts) = self.start(provisions, notify_ready) {
                return Ok(parts);
            }
        }
        self.start(self.provide()?, notify_ready)
    }

    /// What a start needs besides its process: ids, a cgroup whose limits were read back, a socket.
    pub(crate) fn provide(&self) -> Result<Provisions, Error> {
        let name = format!("{}{}", self.name, next_instance());
        let ids = self.identity.take(&name)?;
        let owners =
            self.owners.iter().map(|owner| owner_namespace(*owner, ids.outside)).collect::<Result<Vec<_>, _>>()?;
        let group = self.resources.as_ref().map(|resources| resources.group(&name)).transpose()?;
        let image = self.images.as_ref().map(Images::make).transpose()?;
        let (ours, theirs) = spawn::channel()?;
        Ok(Provisions { ids, owners, group, image, meter: None, ours, theirs, network: None })
    }

    /// Whether a start can move into a network namespace that was made by this process before.
    pub(crate) fn may_enter_network(&self) -> bool {
        self.privilege == Privilege::Root && self.namespaces.contains(Namespaces::NETWORK)
    }

    /// Starts the process.
    fn start(&self, provisions: Provisions, notify_ready: bool) -> Result<Parts, Error> {
        let Provisions { ids, owners, group, image, meter, ours, theirs, network } = provisions;
        let config = if notify_ready { &self.config_ready } else { &self.config };
        crate::init::send(ours.as_fd(), config, &[])
            .map_err(|error| Error::setup("send init its configuration", error))?;
        let cgroup = group.as_ref().and_then(Group::cgroup);
        let upper_ids = self.overlay.as_ref().map(|overlay| overlay.upper_ids(&ids)).transpose()?.flatten();
        let memory = self.counts_memory.then(spawn::channel).transpose()?;
        let fds = Handed {
            owners: owners.iter().map(AsFd::as_fd).collect(),
            join: cgroup.map(|cgroup| cgroup.join_fds().collect()).unwrap_or_default(),
            template: self.template.as_ref().map(AsFd::as_fd),
            network: network.as_ref().map(AsFd::as_fd),
            user_namespace: Some(ids.namespace.as_fd()),
            channel: memory.as_ref().map(|(_, theirs)| theirs.as_fd()),
            upper_ids: upper_ids.as_ref().map(AsFd::as_fd),
            image: image.as_ref().map(AsFd::as_fd),
            init: Some(crate::sys::InitFds {
                program: self.init.as_fd(),
                null: self.null.as_fd(),
                socket: theirs.as_fd(),
                host: self.own_pidfd.as_fd(),
                lease: ids.lease.as_ref().map(userns::Lease::lock_fd),
            }),
        };
        let mut context = Context::new(&self.binds, fds);
        context.upper_owner = self.overlay.as_ref().and_then(|overlay| overlay.upper_owner(&self.identity, &ids));
        let within = (self.privilege == Privilege::User).then(|| ids.namespace.as_fd());
        let (born, refused) = spawn::start(Start {
            namespaces: if network.is_some() { self.namespaces - Namespaces::NETWORK } else { self.namespaces },
            steps: &self.steps,
            binds: &self.binds,
            context,
            into_cgroup: cgroup.and_then(cgroup::Cgroup::unified),
            within,
            low: self.low.as_deref(),
        })?;
        let memory = memory.map(|(ours, _)| crate::sys::receive_fd(ours.as_fd())).transpose()?;
        let volume = image.map(Volume::Image).or(memory.map(Volume::Memory));
        let enforcement = self.report(group.as_ref().and_then(|group| group.differs.as_ref()), &refused);
        // Off the path of whoever will use it.
        let meter = meter.or_else(|| group.as_ref().filter(|_| notify_ready).and_then(Group::warm_meter));
        Ok(Parts {
            handle: Arc::new(Handle::new(ours)),
            init_pid: born.pid.get(),
            init: Arc::new(born.pidfd),
            cgroup: group.and_then(Group::into_cgroup),
            meter,
            lease: ids.lease,
            volume,
            enforcement,
            burials: Arc::clone(&self.burials),
        })
    }

    /// The report of one start: the plan's, unless something came out differently.
    fn report(&self, differs: Option<&cgroup::Applied>, refused: &Refused) -> Arc<[Enforcement]> {
        let refused =
            [(Feature::SessionKeyring, refused.keyring), (Feature::CgroupNamespace, refused.cgroup_namespace)]
                .into_iter()
                .filter_map(|(feature, errno)| {
                    let entry = Enforcement::wanted(feature, self.plan.mode(feature), None);
                    Some(entry.not(errno?.to_string(), "see the error number; `off` silences this"))
                });
        let limits = differs.into_iter().flat_map(|applied| resources::entries(&self.plan, applied));
        let mut changed = limits.chain(refused).peekable();
        if changed.peek().is_none() {
            return Arc::clone(&self.report);
        }
        resources::with_entries(&self.report, changed)
    }
}

/// What the child does before it turns to its root directory.
fn first_steps(plan: &Plan, in_cgroups: bool) -> Result<Vec<Step>, Error> {
    let mut steps = vec![];
    if host::is_spared_by_oom_killer() {
        steps.push(Step::ResetOomScore);
    }
    if in_cgroups {
        steps.push(Step::JoinCgroups);
    }
    if plan.namespaces.contains(Namespaces::CGROUP) {
        steps.push(Step::UnshareCgroup { required: plan.mode(Feature::CgroupNamespace) == Mode::Require });
    }
    if plan.mode(Feature::SessionKeyring) != Mode::Off {
        steps.push(Step::NewKeyring { required: plan.mode(Feature::SessionKeyring) == Mode::Require });
    }
    if plan.namespaces.contains(Namespaces::UTS) {
        steps.push(Step::Hostname(rootfs::c_string(&plan.hostname)?));
    }
    if plan.namespaces.contains(Namespaces::NETWORK) {
        steps.push(Step::Network);
    }
    Ok(steps)
}

/// What init and the steps enforce, by mechanism.
fn note_mechanisms(plan: &mut Plan, identity: &Identity, map_root: bool) {
    let rootfs = match (&plan.overlay, &plan.rootfs, map_root) {
        (Some(_), ..) => "an overlay of the given directory",
        (None, None, _) => "a tmpfs with the host's programs",
        (None, Some(_), false) => "the given directory",
        (None, Some(_), true) => "the given directory, idmapped",
    };
    let capabilities = if plan.capabilities.is_empty() {
        "all sets and the bounding set are empty"
    } else {
        "all sets and the bounding set hold what was named"
    };
    let seccomp = match plan.seccomp {
        Seccomp::Usual => "a deny-list, installed once by init",
        Seccomp::Strict => "the strict deny-list, installed once by init",
    };
    for (feature, by) in [
        (Feature::UserNamespace, identity.describe()),
        (Feature::PidNamespace, "clone3(2), init is PID 1"),
        (Feature::MountNamespace, "a copy of the prepared mount namespace"),
        (Feature::NetworkNamespace, "loopback only"),
        (Feature::IpcNamespace, "clone3(2)"),
        (Feature::UtsNamespace, "clone3(2)"),
        (Feature::CgroupNamespace, "unshare(2)"),
        (Feature::Rootfs, rootfs),
        (Feature::NoNewPrivs, "prctl(2), set once by init"),
        (Feature::Capabilities, capabilities),
        (Feature::Seccomp, seccomp),
        (Feature::SessionKeyring, "keyctl(2)"),
        (Feature::WallTimeMax, "CLOCK_MONOTONIC and pidfd_send_signal(2)"),
        (Feature::OutputMax, "a pipe in between"),
    ] {
        let mode = plan.mode(feature);
        if mode != Mode::Off {
            let requested = plan.requested(feature);
            plan.set(Enforcement::wanted(feature, mode, requested).by(requested.unwrap_or(1), by));
        }
    }
}

/// A user namespace whose only use is to show files of `owner` as those of `outside`.
fn owner_namespace(owner: (u32, u32), outside: (u32, u32)) -> Result<OwnedFd, Error> {
    let (uids, gids) = (IdMap::single(owner.0, outside.0)?, IdMap::single(owner.1, outside.1)?);
    Ok(spawn::user_namespace(&uids, &gids, Setgroups::Deny)?.into_fd())
}

/// Only host root can map files of other users.
fn refuse_owned(plan: &Plan) -> Result<(), Error> {
    let owned = |kind: &MountKind| matches!(kind, MountKind::Bind { access: Access::Owned, .. });
    if plan.mounts.iter().any(|mount| owned(&mount.kind)) {
        let why = "the caller has subordinate ids, and only host root can map the owner of files to one of them";
        return Err(Error::unsupported(
            "bind_owned",
            why,
            "turn id_lease off, so that programs have the caller's own id",
        ));
    }
    Ok(())
}

fn warn_of_binds(plan: &mut Plan) {
    for mount in &plan.mounts {
        if let MountKind::Bind { source, access: Access::Writable } = &mount.kind {
            if !rootfs::is_writable_for_all(source) {
                let source = source.display();
                plan.warnings.push(format!("{source} is bound writable, but its mode lets only its owner write"));
            }
        }
    }
}

/// The rules for init, as this kernel knows them; empty for none.
fn landlock(plan: &mut Plan) -> Result<Vec<u8>, Error> {
    let mode = plan.mode(Feature::Landlock);
    let Some(rules) = plan.landlock.as_ref().filter(|_| mode != Mode::Off) else { return Ok(Vec::new()) };
    let entry = Enforcement::wanted(Feature::Landlock, mode, None);
    let abi = crate::sys::landlock_abi();
    let (gap, encoded) = (rules.gap(abi.unwrap_or(0)), rules.encode(abi.unwrap_or(0)));
    let fix = "a newer kernel, built with Landlock and booted with it in `lsm=`";
    let (entry, rules) = match (abi, encoded) {
        (Some(abi), Some(encoded)) => {
            let entry = entry.by(u64::from(abi), format!("Landlock ABI {abi}, by init on itself"));
            match gap {
                // As good as nothing to somebody who knows the gap.
                Some(gap) if mode == Mode::Require => {
                    return Err(Error::unsupported(Feature::Landlock, format!("ABI {abi}, and {gap}"), fix));
                }
                Some(gap) => (entry.not(format!("weaker: {gap}"), fix), encoded),
                None => (entry, encoded),
            }
        }
        (Some(abi), None) => (entry.not(format!("ABI {abi}, and {}", gap.unwrap_or("no rule")), fix), Vec::new()),
        (None, _) => (entry.not("the kernel has no Landlock, or it was not switched on at boot", fix), Vec::new()),
    };
    plan.set(entry.check()?);
    Ok(rules)
}

/// The message by which init hardens itself.
fn init_config(plan: &Plan, identity: &Identity, landlock: &[u8], notify_ready: u32) -> Result<Vec<u8>, Error> {
    let wanted = |feature, flag| if plan.mode(feature) == Mode::Off { 0 } else { flag };
    let filter = match plan.mode(Feature::Seccomp) {
        Mode::Off => None,
        _ => {
            let options = seccomp::Options {
                // A program that may change its id can have init's.
                single_id: identity.shares_init() || plan.capabilities.contains(&Capability::Setuid),
                strict: plan.seccomp == Seccomp::Strict,
            };
            let compiled = seccomp::deny_list(options);
            Some(compiled.map_err(|error| Error::invalid("seccomp", error.to_string()))?)
        }
    };
    let config = protocol::Config {
        version: protocol::VERSION,
        flags: notify_ready
            | wanted(Feature::NoNewPrivs, protocol::NO_NEW_PRIVS)
            | wanted(Feature::Capabilities, protocol::DROP_CAPABILITIES)
            | identity.init_uid().map_or(0, |_| protocol::TAKE_IDS),
        uid: identity.init_uid().unwrap_or_default(),
        gid: identity.gid,
        capabilities: plan.kept_capabilities(),
        filter_length: filter.as_ref().map_or(0, |filter| u32::from(filter.len())),
        landlock_length: u32::try_from(landlock.len()).unwrap_or(u32::MAX),
    };
    let mut message = crate::sys::bytes_of_config(&config).to_vec();
    message.extend_from_slice(filter.as_ref().map_or(&[], |filter| filter.as_bytes()));
    message.extend_from_slice(landlock);
    if message.len() > protocol::INLINE_MAX {
        return Err(Error::invalid("landlock", "paths of more than 50 KiB together"));
    }
    Ok(message)
}
