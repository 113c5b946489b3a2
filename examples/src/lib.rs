//! What the examples share.

pub mod held;
pub mod json;
pub mod parse;
pub mod worker;
