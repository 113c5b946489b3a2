//! Who programs are: which user namespace an instance gets, and which ids are in it.

use std::path::Path;

use nix::unistd;
use userns::{Extent, INIT_ID, IdMap, Lease, Pool, PoolConfig, Setgroups};

use crate::builder::User;
use crate::host::Privilege;
use crate::plan::Plan;
use crate::spawn::{self, UserNamespace};
use crate::{Enforcement, Error, Feature, Mode};

/// Where an instance's ids come from.
#[derive(Debug)]
enum Source {
    /// Each instance leases a range of its own.
    Pool(Pool),
    /// The caller's own id is all there is: one id inside.
    Single { uids: IdMap, gids: IdMap },
}

/// The ids of a sandbox.
#[derive(Debug)]
pub(crate) struct Identity {
    source: Source,
    /// Inside ids of programs.
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The caller is not root, so init gets the caller's own id.
    own_init: Option<(u32, u32)>,
}

/// The ids of one instance.
#[derive(Debug)]
pub(crate) struct Ids {
    pub(crate) namespace: UserNamespace,
    /// What the program's user and group are on the host.
    pub(crate) outside: (u32, u32),
    pub(crate) lease: Option<Lease>,
}

impl Identity {
    pub(crate) fn new(plan: &mut Plan, privilege: Privilege) -> Result<Self, Error> {
        let (uid, own_gid) = resolve_user(&plan.user)?;
        let gid = resolve_group(&plan.group, own_gid)?;
        if uid == INIT_ID || gid == INIT_ID {
            return Err(Error::invalid("user", format!("{INIT_ID} inside is init's own id")));
        }
        let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let mode = plan.mode(Feature::IdLease);
        let single = || -> Result<Source, Error> {
            Ok(Source::Single { uids: IdMap::single(uid, own.0)?, gids: IdMap::single(gid, own.1)? })
        };
        let refused = |entry: Enforcement, why: String| {
            entry.not(why, "give the caller subordinate ids in /etc/subuid and /etc/subgid, and install uidmap")
        };
        let (source, entry) = match (privilege, mode) {
            (Privilege::Root, Mode::Off) => {
                return Err(Error::invalid(
                    "off(id_lease)",
                    "without ids of its own a sandbox of root would be host root",
                ));
            }
            (Privilege::Root, _) => {
                let pool = pool(plan.state_dir.as_deref())?;
                (Source::Pool(pool), Enforcement::wanted(Feature::IdLease, mode, None).by(1, "a range of root's pool"))
            }
            (Privilege::User, Mode::Off) => (single()?, Enforcement::wanted(Feature::IdLease, mode, None)),
            (Privilege::User, _) => match pool(plan.state_dir.as_deref()) {
                Ok(pool) => {
                    let by = "a slot of the caller's subordinate ids";
                    (Source::Pool(pool), Enforcement::wanted(Feature::IdLease, mode, None).by(1, by))
                }
                Err(error) => {
                    let entry = refused(Enforcement::wanted(Feature::IdLease, mode, None), error.to_string());
                    (single()?, entry.check()?)
                }
            },
        };
        plan.set(entry);
        let own_init = (privilege == Privilege::User).then_some(own);
        let this = Self { source, uid, gid, own_init };
        if let Source::Single { .. } = this.source {
            if plan.rlimits.contains_key(&rlimit::Resource::Nproc) {
                plan.warnings.push(format!(
                    "nproc counts all processes of host uid {} together, those outside the sandbox too; pids_max does not",
                    own.0
                ));
            }
            if plan.mode(Feature::Seccomp) == Mode::Off {
                let why = "with a single id init and programs share it, and only the filter keeps them apart";
                return Err(Error::invalid("off(seccomp)", why));
            }
        }
        Ok(this)
    }

    /// Whether programs have the id of init itself.
    pub(crate) fn is_single(&self) -> bool {
        matches!(self.source, Source::Single { .. })
    }

    /// The inside ids of init; `None` when it keeps the one it has.
    pub(crate) fn init_ids(&self) -> Option<(u32, u32)> {
        (!self.is_single()).then_some((INIT_ID, INIT_ID))
    }

    /// Ids for one more instance, in a user namespace that has them.
    pub(crate) fn take(&self, name: &str) -> Result<Ids, Error> {
        match &self.source {
            Source::Single { uids, gids } => {
                let outside = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
                Ok(Ids { namespace: spawn::user_namespace(uids, gids, Setgroups::Deny)?, outside, lease: None })
            }
            Source::Pool(pool) => {
                let lease = pool.lease(name)?;
                let (mut uids, mut gids) = (lease.uid_map(), lease.gid_map());
                if let Some((uid, gid)) = self.own_init {
                    (uids, gids) = (with_init(&uids, uid)?, with_init(&gids, gid)?);
                }
                let outside = |what: &str, map: &IdMap, id| {
                    let missing = || Error::invalid(what, format!("{id} is not among the ids of a sandbox"));
                    map.to_outside(id).ok_or_else(missing)
                };
                let outside = (outside("user", &uids, self.uid)?, outside("group", &gids, self.gid)?);
                let namespace = spawn::user_namespace(&uids, &gids, Setgroups::Allow)?;
                Ok(Ids { namespace, outside, lease: Some(lease) })
            }
        }
    }

    /// In words, for the plan.
    pub(crate) fn describe(&self) -> &'static str {
        match self.source {
            Source::Pool(_) => "a user namespace with a leased range",
            Source::Single { .. } => "a user namespace with the caller's own id alone",
        }
    }
}

/// Init's inside id leads to `outside` instead: the process that makes the namespaces must be mapped in its own.
fn with_init(map: &IdMap, outside: u32) -> Result<IdMap, Error> {
    let mut extents: Vec<Extent> = map.extents().iter().filter(|extent| extent.inside != INIT_ID).copied().collect();
    extents.push(Extent { inside: INIT_ID, outside, count: 1 });
    Ok(IdMap::new(extents)?)
}

/// The ids that the caller has to lend, with their locks below `state_dir`.
fn pool(state_dir: Option<&Path>) -> Result<Pool, Error> {
    let directory = match state_dir {
        Some(directory) => directory.to_owned(),
        None => userns::default_state_dir()?,
    };
    Ok(Pool::open(&directory, &PoolConfig::default_for_caller()?)?)
}

/// The id of a user, and its group where it was named.
fn resolve_user(user: &User) -> Result<(u32, Option<u32>), Error> {
    match user {
        User::Id(id) => check_id("user", *id).map(|id| (id, None)),
        User::Name(name) => match unistd::User::from_name(name) {
            Ok(Some(found)) => Ok((found.uid.as_raw(), Some(found.gid.as_raw()))),
            Ok(None) => Err(Error::invalid("user", format!("the host knows no user `{name}`"))),
            Err(errno) => Err(Error::setup(format!("look up the user {name}"), std::io::Error::from(errno))),
        },
    }
}

fn resolve_group(group: &User, of_user: Option<u32>) -> Result<u32, Error> {
    match group {
        User::Id(0) => Ok(of_user.unwrap_or(0)),
        User::Id(id) => check_id("group", *id),
        User::Name(name) => match unistd::Group::from_name(name) {
            Ok(Some(found)) => Ok(found.gid.as_raw()),
            Ok(None) => Err(Error::invalid("group", format!("the host knows no group `{name}`"))),
            Err(errno) => Err(Error::setup(format!("look up the group {name}"), std::io::Error::from(errno))),
        },
    }
}

fn check_id(what: &str, id: u32) -> Result<u32, Error> {
    if id == u32::MAX {
        return Err(Error::invalid(what, "4294967295 is no id to the kernel"));
    }
    Ok(id)
}
