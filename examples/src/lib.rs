//! What the examples share.

pub mod json;
