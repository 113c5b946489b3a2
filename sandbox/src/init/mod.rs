//! Our end of the conversation with init.

mod handle;
#[allow(dead_code, reason = "one half of the numbers is for init's eyes only")]
pub(crate) mod protocol;
mod request;

pub(crate) use handle::{Answer, Handle, Waited, send};
pub(crate) use request::{Environment, Layout, Request, kill_message};
