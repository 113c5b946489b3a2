//! Placeholder of the userns crate.
