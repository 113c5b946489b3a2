//! Run a program that you do not trust, or do not want to suffer from.
//!
//! ```no_run
//! use std::time::Duration;
//! use sandbox::{End, Sandbox};
//!
//! let sandbox = Sandbox::builder()
//!     .memory_max(64 << 20)
//!     .pids_max(32)
//!     .wall_time_max(Duration::from_secs(5))
//!     .build()?;
//! let output = sandbox.command("sh").args(["-c", "id -u; hostname"]).output()?;
//! assert_eq!(output.stdout, b"0\nsandbox\n");
//! assert_eq!(output.outcome.end, End::Exited);
//! # Ok::<(), sandbox::Error>(())
//! ```
//!
//! # What it does
//! - The program gets its own user, PID, mount, network, IPC, UTS and cgroup namespaces, its own range of host ids, a
//!   read-only view of the host's programs (or a root directory of yours), no capabilities, no way to new privileges, and
//!   a deny-list of system calls.
//! - Memory, processes, CPU, CPU time, wall time and output are bounded together for all that it starts.
//! - Everything that is asked for is enforced or the start is an error; [`Child::enforcement`] tells what holds, with the
//!   values that the kernel read back, and [`Outcome`] tells why the program ended and which limits it met.
//! - When the program ends, everything that it started ends, and nothing is left behind.
//!
//! # What it does not do
//! - It does not protect from bugs of the kernel, from side channels of the processor, or from what you bind into it.
//! - It changes nothing of the calling program: no fork, no namespace, id, signal handler, working directory or umask of
//!   yours is touched. It owns a thread, the *keeper*, which takes care of deadlines and of taking things down, and one that
//!   makes the parts of starts to come; with [`prepared`](Builder::prepared) up to four start instances instead, and each
//!   [disk image](Builder::disk_image) is unmounted by a thread of its own. All signals are blocked in them. While there is a
//!   sandbox, 19 descriptors are kept, of the lowest that were free.
//! - How a program ended is never an [`Error`]; an error means that no program ran.
//!
//! # Terminology
//! - A **sandbox** ([`Sandbox`]) is a description, checked and prepared. An **instance** ([`Instance`]) is a running one:
//!   namespaces, ids and cgroup with our **init** as PID 1. A **program** ([`Child`]) runs in an instance.
//! - **Inside** and **outside**: as seen from the program, and from the host.
//! - A feature is **required**, **preferred** or **off** ([`Mode`]).
//!
//! # Caveats
//! - Init and the programs are descendants of the calling process: its SIGCHLD handler runs when an instance ends. It may
//!   ignore SIGCHLD or call `waitpid(-1)`; results do not travel that way.
//! - Dropping a [`Child`] or an [`Instance`] kills. A copy of a handle in a forked process does nothing.
//! - All programs of an instance are in the session of its init, which has no terminal; each leads a process group of its own,
//!   in which it can be stopped (`SIGTSTP`) as in any other.
//! - Programs inherit the caller's CPU affinity, timer slack and a nice value that lets others go first. What lets them go
//!   before others (a negative nice value, real-time scheduling, an I/O class) and a protection from the OOM killer (a
//!   negative `oom_score_adj`) are taken back.
//! - On cgroup v1 each start moves init into its groups. Before Linux 5.7 that waits 7 to 11 ms when no such move happened
//!   for a while; since then it costs some 20 µs.

mod ahead;
mod builder;
mod child;
mod command;
mod disk;
mod doctor;
mod enforcement;
mod error;
mod feature;
mod harden;
mod host;
mod identity;
mod image;
mod init;
mod instance;
mod keeper;
mod limits;
mod low;
mod outcome;
mod overlay;
mod plan;
mod pool;
mod recover;
mod relay;
mod resources;
mod rootfs;
mod sandbox;
mod spawn;
mod stdio;
mod step;
mod sys;

pub use builder::{Builder, DiskImage, IdPool, IoRates, Network, Seccomp, Upper, User};
pub use child::{Child, Signal};
pub use command::Command;
pub use doctor::{Finding, State, Support};
pub use enforcement::Enforcement;
pub use error::{Error, ErrorKind, ProgramCause};
pub use feature::{Feature, Mode};
pub use harden::capability::Capability;
pub use harden::landlock::Landlock;
pub use instance::{Instance, Killed, LiveLimits, Stuck};
pub use ns::Namespaces;
pub use outcome::{End, Io, Leftover, LimitHit, LimitKind, Outcome, Output, Usage};
pub use plan::Plan;
pub use pool::PoolStats;
pub use recover::{Recovered, forget_tree, owner_of, recover};
pub use rlimit::{Limit, Resource};
pub use sandbox::Sandbox;
pub use stdio::Stdio;

pub use {cgroup, ns, quota, rlimit, userns};

/// Where programs are looked for when nobody says otherwise.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How the names of our cgroups begin.
pub const CGROUP_PREFIX: &str = "sandbox-";
