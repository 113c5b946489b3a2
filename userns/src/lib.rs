//! User namespaces: who is who inside and outside, and ids that no two sandboxes share.
//!
//! ```no_run
//! use userns::{Pool, Setgroups, owner_of, write_maps};
//!
//! # fn clone_a_child_that_waits() -> u32 { 0 }
//! # fn main() -> Result<(), userns::Error> {
//! // Ids of its own for one sandbox, from a pool that needs no configuration.
//! let pool = Pool::default_for_caller()?;
//! let lease = pool.lease("judge 17")?;
//!
//! // A child cloned with CLONE_NEWUSER, held in code of ours: it runs nobody's program yet.
//! let child: u32 = clone_a_child_that_waits();
//! write_maps(child, &lease.uid_map(), &lease.gid_map(), Setgroups::Allow)?;
//! // Now it may set its groups, gid and uid, and execute the program: uid 0 inside is lease.range().base() outside.
//!
//! // The way back, in any process: whose is this uid, and who is that inside?
//! let owner = owner_of(&userns::default_state_dir()?, lease.range().base() + 33)?;
//! assert!(owner.is_some_and(|owner| owner.name == "judge 17" && owner.inside == Some(33)));
//!
//! lease.release()
//! # }
//! ```
//!
//! # Inside and outside
//!
//! A user namespace has a *map*: lines of (inside id, outside id, count). A process in it with the inside uid 0 is root
//! towards the namespace and what the namespace owns, and an ordinary user with the outside uid towards everything else:
//! files that it makes belong to the outside uid. The map is the namespace's, not the process's: children, and children
//! forked before the map was written, have it; a process cloned from outside has not. Uids and gids have a map each.
//!
//! A program that starts before the map is written runs with a wrong identity (65534, and without the capabilities that it
//! should have). So start in two steps: hold the child in code of your own, write the maps, let it set its ids, then
//! execute. A uid needs no line in `/etc/passwd`, and which uid the program gets inside has nothing to do with the map.
//!
//! # Why ranges must differ
//!
//! With one map for all sandboxes, their users named "mysql" are one user to the kernel: it may send signals to the other
//! one's processes where it sees them, read its files, and share its `RLIMIT_NPROC`. Container engines leave that to
//! the administrator. Here a [`Pool`] gives each sandbox a range of its own, and a [`Lease`] is safe across threads,
//! processes, and crashes: the range is somebody's exactly as long as a process has the lock, and the sandbox's own init
//! can have it.
//!
//! # Does, does not
//!
//! Does:
//! - maps: the kernel's rules checked before it is asked ([`IdMap`]), written directly or by `newuidmap` and `newgidmap`,
//!   and read back ([`write_maps`]);
//! - `/etc/subuid` and `/etc/subgid` as shadow reads them, with what is wrong in them ([`SubordinateIds`]);
//! - unique ranges, registered ranges for files that stay, whose an id is, and cleaning up ([`Pool`], [`owner_of`]);
//! - why user namespaces do not work here ([`support`]).
//!
//! Does not:
//! - make namespaces or processes, change ids, or change files' owners;
//! - keep other software from using the ids of a pool. It looks at the accounts and grants of the system, at living
//!   namespaces and processes, and refuses what it finds there; a program that takes ids without a look stays possible.
//!   One line for the user `sandbox` in each of `/etc/subuid` and `/etc/subgid` tells those that look.
//! - see threads that changed their ids alone by raw system calls, processes hidden by `hidepid`, or accounts that are in
//!   no file (LDAP).
//!
//! # Terms
//!
//! - *inside*, *outside*: in the namespace; in the one that looks at it, usually its parent.
//! - *extent*: one line of a map. *range*: consecutive ids.
//! - *subordinate ids*: ids that a user may map besides its own, by a *grant*: a line of `/etc/subuid` or `/etc/subgid`.
//! - *pool*: ranges cut into *slots* of equal size. *lease*: the right to a slot. *registered*: kept although nobody lives
//!   in it, because files with its ids remain.
//!
//! # Kernels
//!
//! | what | since Linux | where it is missing |
//! |---|---|---|
//! | user namespaces | 3.8 | [`support::obstacles`] says why |
//! | maps of up to 340 extents | 4.15 | older ones take 5, and answer `EINVAL` |
//! | mapping the outside uid 0 needs CAP_SETFCAP | 5.12 and its backports | not needed |
//! | processes counted for `RLIMIT_NPROC` per user namespace | 5.14 | per outside uid, whatever the namespace |
//!
//! Manual pages: user_namespaces(7), subuid(5), newuidmap(1), flock(2).

#![forbid(unsafe_code)]

mod accounts;
mod error;
mod helper;
mod idmap;
mod pool;
mod subid;
pub mod support;
mod text;
mod write;

pub use accounts::Accounts;
pub use error::{Error, HelperFailure};
pub use idmap::{Extent, IdMap, MAX_EXTENTS, Range};
pub use pool::{
    DEDICATED_USER, DEFAULT_RANGE, INIT_ID, Lease, Owner, OwnerState, Pool, PoolConfig, ROOT_SLOT, Recovered,
    Registered, USER_SLOT, default_state_dir, owner_of, pools,
};
pub use subid::{Grant, Overlap, OverlapWith, Problem, SubidFile, SubordinateIds};
pub use write::{Setgroups, write_maps};
