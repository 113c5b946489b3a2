//! User namespaces: who is who inside and outside, and ids that no two sandboxes share.

#![forbid(unsafe_code)]

mod error;
mod idmap;
mod pool;
mod text;
mod write;

pub use error::{Error, HelperFailure};
pub use idmap::{Extent, IdMap, MAX_EXTENTS, Range};
pub use pool::{DEFAULT_RANGE, INIT_ID, Lease, Pool, PoolConfig, ROOT_SLOT, USER_SLOT};
pub use write::{Setgroups, write_maps};
