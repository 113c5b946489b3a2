//! Placeholder of the facade.

#[allow(dead_code)]
mod harden;
