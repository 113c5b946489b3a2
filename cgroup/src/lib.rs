//! Placeholder of the cgroup crate.
