//! Placeholder of the quota crate.
