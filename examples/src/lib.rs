//! What the examples share.

pub mod json;
pub mod worker;
