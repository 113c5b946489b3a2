//! Placeholder of the rlimit crate.
