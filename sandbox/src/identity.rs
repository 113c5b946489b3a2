//! Who programs are: which user namespace an instance gets, and which ids are in it.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use nix::unistd;
use userns::{Extent, INIT_ID, IdMap, Lease, Pool, Setgroups};

use crate::builder::{IdPool, User};
use crate::host::Privilege;
use crate::plan::Plan;
use crate::spawn::{self, UserNamespace};
use crate::{Enforcement, Error, Feature, Mode};

/// Where an instance's ids come from.
#[derive(Debug)]
enum Source {
    /// Each instance leases a range of its own; one that is kept for these trees, if there are any.
    Pool { pool: Pool, trees: Vec<PathBuf> },
    /// Every instance has the same: those that the caller named, or the caller's own id alone.
    Fixed { uids: IdMap, gids: IdMap, setgroups: Setgroups, outside: (u32, u32) },
}

/// The ids of a sandbox.
#[derive(Debug)]
pub(crate) struct Identity {
    source: Source,
    /// Inside ids of programs.
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Inside user id that init takes; `None` when it keeps the one it has. Its group is the programs': a group gives no power
    /// over a process, and so none of them has to change it.
    init: Option<u32>,
    /// The caller is not host root, so init gets the caller's own id.
    own_init: Option<(u32, u32)>,
}

/// The ids of one instance.
#[derive(Debug)]
pub(crate) struct Ids {
    pub(crate) namespace: UserNamespace,
    /// What the program's user and group are on the host.
    pub(crate) outside: (u32, u32),
    uids: IdMap,
    gids: IdMap,
    pub(crate) lease: Option<Lease>,
}

impl Ids {
    /// The host ids of an inside user and group; `None` if they are not mapped.
    pub(crate) fn to_outside(&self, (user, group): (u32, u32)) -> Option<(u32, u32)> {
        Some((self.uids.to_outside(user)?, self.gids.to_outside(group)?))
    }
}

impl Identity {
    pub(crate) fn new(plan: &mut Plan, privilege: Privilege) -> Result<Self, Error> {
        let (uid, own_gid) = resolve_user(&plan.user)?;
        let gid = resolve_group(&plan.group, own_gid)?;
        if uid == INIT_ID || gid == INIT_ID {
            return Err(Error::invalid("user", format!("{INIT_ID} inside is init's own id")));
        }
        let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let own_init = (privilege == Privilege::User).then_some(own);
        let this = |source, init| Self { source, uid, gid, init, own_init };
        let this = match plan.id_maps.clone() {
            Some((uids, gids)) => {
                let (source, init) = fixed(uids, gids, (uid, gid), own_init)?;
                plan.warnings.push(
                    "all instances have the ids of id_maps: to the kernel their programs, and whoever else has these ids \
                     on the host, are one user"
                        .to_owned(),
                );
                this(source, init)
            }
            None => match pool(plan, privilege)? {
                Some(pool) => this(Source::Pool { pool, trees: Vec::new() }, Some(INIT_ID)),
                None => {
                    let (uids, gids) = (IdMap::single(uid, own.0)?, IdMap::single(gid, own.1)?);
                    this(Source::Fixed { uids, gids, setgroups: Setgroups::Deny, outside: own }, None)
                }
            },
        };
        if let Source::Fixed { outside, .. } = this.source {
            if plan.rlimits.contains_key(&rlimit::Resource::Nproc) {
                let old = if privilege == Privilege::Root { "before Linux 5.14 " } else { "" };
                plan.warnings.push(format!(
                    "{old}nproc counts all processes of host uid {} together, those outside the sandbox too; pids_max \
                     does not",
                    outside.0
                ));
            }
        }
        if this.shares_init() && plan.mode(Feature::Seccomp) == Mode::Off {
            let why = "init and programs share an id, and only the filter keeps them apart";
            return Err(Error::invalid("off(seccomp)", why));
        }
        Ok(this)
    }

    /// Whether each instance has ids that nobody else has.
    pub(crate) fn is_leased(&self) -> bool {
        matches!(self.source, Source::Pool { .. })
    }

    /// Whether programs have the id of init itself.
    pub(crate) fn shares_init(&self) -> bool {
        match self.init {
            Some(uid) => uid == self.uid,
            None => true,
        }
    }

    /// Whether programs have the caller's own uid.
    pub(crate) fn is_caller(&self) -> bool {
        matches!((&self.source, self.own_init), (Source::Fixed { outside, .. }, Some(own)) if outside.0 == own.0)
    }

    /// The inside user id of init; `None` when it keeps the one it has.
    pub(crate) fn init_uid(&self) -> Option<u32> {
        self.init
    }

    /// Lets instances have ids that are kept for `trees`, where they leave files of these ids behind.
    pub(crate) fn keep_for(&mut self, kept: Vec<PathBuf>, plan: &mut Plan) -> Result<(), Error> {
        let Source::Pool { pool, trees } = &mut self.source else { return Ok(()) };
        if kept.is_empty() {
            return Ok(());
        }
        let mode = plan.mode(Feature::IdLease);
        match pool.check_registry() {
            Ok(()) => *trees = kept,
            Err(error) if mode == Mode::Require => return Err(error.into()),
            Err(error) => {
                let trees: Vec<_> = kept.iter().map(|tree| tree.display().to_string()).collect();
                plan.warnings.push(format!(
                    "files made in {} belong to ids that a later sandbox can get, which could not be kept for them: {error}",
                    trees.join(", ")
                ));
            }
        }
        Ok(())
    }

    /// Whether instances have ids that are kept for a tree of files.
    pub(crate) fn keeps_ids(&self) -> bool {
        matches!(&self.source, Source::Pool { trees, .. } if !trees.is_empty())
    }

    /// Ids for one more instance, in a user namespace that has them.
    pub(crate) fn take(&self, name: &str) -> Result<Ids, Error> {
        match &self.source {
            Source::Fixed { uids, gids, setgroups, outside } => {
                let namespace = spawn::user_namespace(uids, gids, *setgroups)?;
                Ok(Ids { namespace, outside: *outside, uids: uids.clone(), gids: gids.clone(), lease: None })
            }
            Source::Pool { pool, trees } => {
                let lease = if trees.is_empty() { pool.lease(name) } else { pool.lease_for_trees(trees, name) }?;
                let (mut uids, mut gids) = (lease.uid_map(), lease.gid_map());
                if let Some((uid, gid)) = self.own_init {
                    (uids, gids) = (with_init(&uids, uid)?, with_init(&gids, gid)?);
                }
                let outside = outside(&uids, &gids, (self.uid, self.gid))?;
                let namespace = spawn::user_namespace(&uids, &gids, Setgroups::Allow)?;
                Ok(Ids { namespace, outside, uids, gids, lease: Some(lease) })
            }
        }
    }

    /// A user namespace whose only use is to show files under the ids of an instance of root's: owner *n* on disk is *n*
    /// inside. Host root has init's id there, so that the kernel may make files in its name.
    pub(crate) fn layer_namespace(ids: &Ids) -> Result<OwnedFd, Error> {
        let (uids, gids) = (with_init(&ids.uids, 0)?, with_init(&ids.gids, 0)?);
        Ok(spawn::user_namespace(&uids, &gids, Setgroups::Deny)?.into_fd())
    }

    /// In words, for the plan.
    pub(crate) fn describe(&self) -> &'static str {
        match (&self.source, self.init) {
            (Source::Pool { .. }, _) => "a user namespace with a leased range",
            (Source::Fixed { .. }, Some(_)) => "a user namespace with the ids of id_maps",
            (Source::Fixed { .. }, None) => "a user namespace with the caller's own id alone",
        }
    }
}

/// The ids that the builder named, and the user that init becomes.
fn fixed(
    mut uids: IdMap,
    mut gids: IdMap,
    program: (u32, u32),
    own: Option<(u32, u32)>,
) -> Result<(Source, Option<u32>), Error> {
    let mut setgroups = Setgroups::Allow;
    let init = match own {
        // Host root can be anybody: init is its own if there is an id for it, else the program's.
        None if uids.to_outside(INIT_ID).is_some() && gids.to_outside(INIT_ID).is_some() => Some(INIT_ID),
        None => Some(program.0),
        // Others keep their id, which must have a name inside.
        Some(own) => {
            let inside = |map: &mut IdMap, id| match map.to_inside(id) {
                Some(inside) => Ok(inside),
                None if map.to_outside(INIT_ID).is_some() => {
                    let why = format!("{INIT_ID} inside is init's own id, which must be the caller's, {id}");
                    Err(Error::invalid("id_maps", why))
                }
                None => with_init(map, id).map(|with| *map = with).map(|()| INIT_ID),
            };
            let init = inside(&mut uids, own.0)?;
            inside(&mut gids, own.1)?;
            // Who may map its own group alone must give up the right to drop groups.
            if matches!(gids.extents(), [Extent { count: 1, .. }]) {
                setgroups = Setgroups::Deny;
            }
            (setgroups == Setgroups::Allow).then_some(init)
        }
    };
    let outside = outside(&uids, &gids, program)?;
    Ok((Source::Fixed { uids, gids, setgroups, outside }, init))
}

/// What the program's ids are on the host.
fn outside(uids: &IdMap, gids: &IdMap, (uid, gid): (u32, u32)) -> Result<(u32, u32), Error> {
    let of = |what: &str, map: &IdMap, id| {
        let missing = || Error::invalid(what, format!("{id} is not among the ids of the sandbox"));
        map.to_outside(id).ok_or_else(missing)
    };
    Ok((of("user", uids, uid)?, of("group", gids, gid)?))
}

/// The pool that instances lease from; `None` where there is none and that is no more than preferred.
fn pool(plan: &mut Plan, privilege: Privilege) -> Result<Option<Pool>, Error> {
    let mode = plan.mode(Feature::IdLease);
    let entry = Enforcement::wanted(Feature::IdLease, mode, None);
    if mode == Mode::Off {
        if privilege == Privilege::Root {
            let why = "without ids of its own a sandbox of root would be host root";
            return Err(Error::invalid("off(id_lease)", why));
        }
        return Ok(None);
    }
    match plan.id_pool.open(plan.state_dir.as_deref()) {
        Ok(pool) => {
            let by = match (&plan.id_pool, privilege) {
                (IdPool::Auto, Privilege::Root) => "a range of root's pool".to_owned(),
                (IdPool::Auto, Privilege::User) => "a slot of the caller's subordinate ids".to_owned(),
                (IdPool::OfUser(user), _) => format!("a slot of the subordinate ids of {}", user.to_string_lossy()),
                (IdPool::Given(_), _) => "a slot of the given pool".to_owned(),
            };
            plan.set(entry.by(1, by));
            Ok(Some(pool))
        }
        Err(error) if privilege == Privilege::Root => Err(error),
        Err(error) => {
            let fix = "give the caller subordinate ids in /etc/subuid and /etc/subgid, and install uidmap";
            plan.set(entry.not(error.to_string(), fix).check()?);
            Ok(None)
        }
    }
}

/// Init's inside id leads to `outside` instead: the process that makes the namespaces must be mapped in its own.
fn with_init(map: &IdMap, outside: u32) -> Result<IdMap, Error> {
    let mut extents = vec![Extent { inside: INIT_ID, outside, count: 1 }];
    for &extent in map.extents() {
        let end = extent.inside + extent.count;
        if !(extent.inside..end).contains(&INIT_ID) {
            extents.push(extent);
            continue;
        }
        let before = INIT_ID - extent.inside;
        let after = Extent { inside: INIT_ID + 1, outside: extent.outside + before + 1, count: end - INIT_ID - 1 };
        extents.extend([Extent { count: before, ..extent }, after].into_iter().filter(|extent| extent.count > 0));
    }
    Ok(IdMap::new(extents)?)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn map(extents: &[(u32, u32, u32)]) -> IdMap {
        let extents = extents.iter().map(|&(inside, outside, count)| Extent { inside, outside, count });
        IdMap::new(extents.collect()).unwrap()
    }

    #[test]
    fn init_is_the_caller_and_nobody_else_is() {
        let with = with_init(&map(&[(0, 100_000, 65536)]), 1000).unwrap();
        assert_eq!(with.to_outside(INIT_ID), Some(1000));
        assert_eq!(with.to_inside(100_000 + INIT_ID), None);
        assert_eq!((with.to_outside(0), with.to_outside(65532)), (Some(100_000), Some(165_532)));
        assert_eq!((with.to_outside(65534), with.to_outside(65535)), (Some(165_534), Some(165_535)));
        let small = with_init(&map(&[(0, 100_000, 1022), (INIT_ID, 101_022, 1), (65534, 101_023, 1)]), 1000).unwrap();
        assert_eq!((small.to_outside(INIT_ID), small.extents().len()), (Some(1000), 3));
    }

    #[test]
    fn init_of_given_maps_is_apart_where_it_can_be() {
        let fixed_for = |uids: &IdMap, gids: &IdMap, own| fixed(uids.clone(), gids.clone(), (0, 0), own);
        let init = |map: &IdMap, own| fixed_for(map, map, own).unwrap().1;
        let (whole, one) = (map(&[(0, 100_000, 65536)]), map(&[(0, 1000, 1)]));
        // Host root.
        assert_eq!(init(&whole, None), Some(INIT_ID));
        assert_eq!(init(&one, None), Some(0));
        // Others keep their own id, by the name that the maps give it or by init's.
        let own = Some((1000, 1000));
        assert_eq!(init(&map(&[(5, 1000, 1), (0, 100_000, 5)]), own), Some(5));
        assert_eq!(init(&map(&[(0, 100_000, 5)]), own), Some(INIT_ID));
        assert_eq!(init(&one, own), None);
        let error = fixed_for(&whole, &whole, own).unwrap_err().to_string();
        assert!(error.contains("must be the caller's, 1000"), "{error}");
        // A program has an id that is mapped.
        let error = fixed(one.clone(), one, (1, 0), None).unwrap_err().to_string();
        assert!(error.contains("1 is not among the ids"), "{error}");
    }
}
