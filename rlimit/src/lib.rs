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
//!
//! # Does
//! - **Limits** of the calling process ([`get`], [`set`], [`set_soft`], [`set_hard`], [`raise_soft`]) and of any other, while
//!   it runs ([`of`], [`set_of`]); what a process uses of them ([`usage_of`]). All sixteen [`Resource`]s, each with its unit,
//!   whom it counts, and what happens at it.
//! - **limits.conf** ([`limits_conf`]): what a login would give a user, decided exactly as one of three builds of the
//!   `pam_limits` module decides it, and *why*: the deciding line of soft and of hard, every line that lost and to what,
//!   every line that is ignored and for what reason.
//! - **Refusals in words**: an EPERM names the rule that refused ([`Rule`]) and what it would take.
//!
//! # Does not
//! - Limit a group of processes. Most limits hold for *each* process: 64 MiB of [`Resource::As`] with ten children are
//!   640 MiB. What must bound a whole sandbox belongs in a cgroup: `memory.max` for memory, `pids.max` for processes.
//! - Make [`Resource::Nproc`] a limit of one container. It counts the processes **and threads** of a *real uid*: on the
//!   whole host before Linux 5.14, in one user namespace since. Two containers that run the same host uid share it, and one
//!   cannot start its program because the other runs many. Cure: a uid range of its own for each, or a pids cgroup.
//! - Set limits in a child between clone and exec, where nothing may allocate. [`Resource::number`] and [`Limits::to_raw`] give
//!   the numbers for a raw `prlimit64` call there. Set [`Resource::Nproc`] before the ids change: who is over the limit may
//!   change its uid, but the next `execve` fails with EAGAIN.
//! - Report that a limit *was* hit. The kernel counts none of this: what is refused (EMFILE, EAGAIN, ENOMEM, EFBIG) is known
//!   to the program alone, and a program killed by SIGXCPU, SIGXFSZ or, at the hard CPU limit, SIGKILL may as well have been
//!   sent that signal.
//!
//! # Terminology
//! - The **soft** limit is the one that acts. A process may move it up to the **hard** limit, lower its hard limit, and
//!   never raise that again without CAP_SYS_RESOURCE in the *initial* user namespace; root of a container lacks it.
//! - Limits belong to the **process**, are the same for all its threads, and are inherited by fork and kept by exec, a change
//!   of ids and a change of namespaces.
//! - **Unlimited** is the kernel's `RLIM_INFINITY`, [`Limit::Unlimited`]; never 0, and never a large number here.
//! - Numbers are in **kernel units** everywhere but in limits.conf: bytes, seconds, a count. A [`Resource::Nice`] of n
//!   allows nice values down to 20 − n.
//!
//! # Caveats
//! - A high soft [`Resource::Nofile`] costs programs that close all *possible* descriptors before they start another (a
//!   loop up to the limit): 1024 is what the world expects, and `close_range(2)` is what such a program should use.
//!   Descriptors above a lowered limit stay open, and such a loop misses them.
//! - A pid may be another process by the time a call takes it; hold a pidfd and check that the process still lives.
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
