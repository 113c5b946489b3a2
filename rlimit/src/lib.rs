//! Resource limits of any process, and limits.conf exactly as `pam_limits` reads it, explained.
//!
//! ```
//! use rlimit::{Limit, Limits, Resource};
//!
//! // Room for as many files as this process may give itself.
//! let limits = rlimit::raise_soft(Resource::Nofile)?;
//! assert_eq!(limits.soft, limits.hard);
//!
//! // Any process's limits can be read by everyone; changed, by its owner.
//! let table = rlimit::of(std::process::id())?;
//! assert_eq!(table.get(Resource::Nofile), Some(limits));
//!
//! // No core dumps for this process and its children.
//! rlimit::set(Resource::Core, Limits::both(Limit::Value(0)))?;
//! # Ok::<(), rlimit::Error>(())
//! ```
#![forbid(unsafe_code)]

mod error;
mod limit;
pub mod limits_conf;
mod process;
mod resource;
mod table;
mod usage;

pub use error::{Error, Rule};
pub use limit::{Limit, Limits, Setting};
pub use process::{get, of, raise_soft, set, set_hard, set_of, set_soft, usage_of};
pub use resource::{Resource, Scope, Unit};
pub use table::Table;
pub use usage::Usage;
