//! User namespaces: who is who inside and outside, and ids that no two sandboxes share.

#![forbid(unsafe_code)]

mod accounts;
mod error;
mod helper;
mod idmap;
mod pool;
mod subid;
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
