//! Placeholder of the ns crate.
