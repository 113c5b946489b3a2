//! What a program can no longer do once it runs: the second lock behind the namespaces.

pub(crate) mod capability;
pub(crate) mod landlock;
pub(crate) mod seccomp;
mod syscalls;
