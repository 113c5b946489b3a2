//! All that depends on the processor: one raw system call, and the way into a child that runs on a stack of its own.

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::{clone3, syscall};

#[cfg(not(target_arch = "x86_64"))]
compile_error!("sandbox-ns knows x86-64 only so far: add src/arch/ARCH.rs with `syscall` and `clone3`");
