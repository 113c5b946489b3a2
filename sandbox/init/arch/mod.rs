//! What depends on the processor: raw system calls, the entry point and the vfork-like clone.

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::*;

#[cfg(not(target_arch = "x86_64"))]
compile_error!("init is written for x86-64 so far");
