//! Linux namespaces, `clone3`, pidfds and mounts by descriptor, as small checked pieces.
//!
//! ```
//! use ns::{Clone, Kind, Namespaces, Program};
//! use ns::support::{State, Support};
//!
//! # fn main() -> Result<(), ns::Error> {
//! // A program as PID 1 of its own PID namespace, with a host name and message queues of its own.
//! let support = Support::probe()?;
//! let mut namespaces = Namespaces::PID | Namespaces::UTS | Namespaces::IPC;
//! match support.of(Kind::Pid) {
//!     State::Available => {}
//!     State::WithUser => namespaces |= Namespaces::USER, // not root: a user namespace gives the right
//!     missing => {
//!         println!("no PID namespaces here: {missing}");
//!         return Ok(());
//!     }
//! }
//! let born = Program::new("/bin/sh")?.arg("-c")?.arg("exit $$")?.spawn(&Clone::new(namespaces))?;
//! assert_eq!(born.pidfd.reap()?.and_then(|status| status.code()), Some(1));
//! # Ok(())
//! # }
//! ```
//!
//! # Does
//! - [`Clone`](struct@Clone) makes a process in new namespaces by one `clone3`, on shared memory as `vfork` does:
//!   nothing of the calling program is copied or changed, whatever its size and its threads. [`Program`] is the safe
//!   way to use it.
//! - [`PidFd`] signals, waits for and reaps exactly that process.
//! - [`mount`] and [`path`] build a root directory from descriptors and never follow a link out of it.
//! - [`net::loopback_up`], [`Namespace`], [`subreaper`] and [`support`] are what is left of a sandbox's start.
//!
//! # Does not
//! - It writes no id maps and knows no subordinate ids (see `userns`), no cgroups but the one to be born in, no limits.
//! - It has no policy: which namespaces, which mounts and in which order is the caller's plan (see `sandbox`).
//! - It calls neither `fork`, nor `kill` with a number, nor `unshare` or `setns` on a thread of the calling program.
//!
//! # Two kinds of function
//! Those that return [`Error`] are for the program: they allocate, and explain. Those that return [`Errno`] may also
//! be called in the child of [`Clone::spawn`]: they make raw system calls and nothing else, so no allocation, lock,
//! panic, `errno` or thread-local storage. This rests on rustix making its calls itself, as it does on Linux unless a
//! program turns on its feature `use-libc`: leave that off.
//!
//! # Terminology
//! *Init* is the first process of a PID namespace, its PID 1: it adopts the orphans, gets only signals that it handles,
//! and takes the whole namespace along when it ends. *Held* is a child that runs beside its parent on shared memory,
//! until it is let go. A *tree* is a mount and what is mounted below it. *Detached* is a tree that is mounted nowhere.
//!
//! # Kernel
//! Linux 5.10 or later, x86-64. What a kernel lacks is said where it matters, and fails rather than being weaker.

mod arch;
mod child;
mod error;
mod exec;
mod flags;
pub mod mount;
mod namespace;
pub mod net;
pub mod path;
mod pidfd;
mod process;
mod stack;
pub mod subreaper;
pub mod support;
mod sys;
mod text;

pub use child::{close, exit, set_signal_mask, unshare};
pub use error::{Errno, Error};
pub use exec::Program;
pub use flags::{Kind, Namespaces};
pub use namespace::{Namespace, enter_all};
pub use pidfd::{Pid, PidFd};
pub use process::{Born, Clone, Entry, keep_descriptors_below};
pub use stack::Stack;
