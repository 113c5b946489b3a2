//! Linux namespaces, `clone3`, pidfds and mounts by descriptor, as small checked pieces.

mod arch;
mod error;
mod flags;
pub mod mount;
pub mod net;
pub mod path;
mod pidfd;
mod process;
pub mod subreaper;
mod sys;
mod text;

pub use error::{Errno, Error};
pub use flags::{Kind, Namespaces};
pub use pidfd::PidFd;
pub use process::{Born, Clone, Entry, Pid, Stack, close, exit, set_signal_mask, unshare};
