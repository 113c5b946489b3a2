//! [`Stack`], what a child runs on.
//!
//! # Safety
//! One promise about threads; the mapping itself is `sys.rs`'s.
#![allow(unsafe_code)]

use std::ffi::c_void;

use crate::error::Error;
use crate::sys;

/// A stack for a child, with an inaccessible guard below: running over it ends the child, not the memory beside.
///
/// Make one per thread that spawns and use it again and again. Only touched pages cost memory.
#[derive(Debug)]
pub struct Stack {
    base: *mut c_void,
    size: usize,
    guard: usize,
}

/// The guard's size: more than the largest frame of this crate's child-side functions, so that none steps over it.
const GUARD: usize = 64 << 10;
/// What sizes are rounded up to.
const STEP: usize = 64 << 10;

impl Stack {
    /// Maps a stack of at least `bytes` usable bytes (rounded up to 64 KiB, which is also the smallest).
    ///
    /// 64 KiB are enough for every function of this crate.
    ///
    /// # Errors
    /// [`Error::Invalid`] above 1 GiB, [`Error::Syscall`] when memory or mappings run out.
    pub fn new(bytes: usize) -> Result<Self, Error> {
        if bytes > 1 << 30 {
            return Err(Error::invalid("stack size", format!("{bytes} bytes are more than 1 GiB")));
        }
        let size = bytes.max(1).next_multiple_of(STEP) + GUARD;
        let base = sys::map_stack(size, GUARD)
            .map_err(|errno| Error::call("mmap", format!("(a stack of {size} bytes)"), errno))?;
        Ok(Self { base, size, guard: GUARD })
    }

    /// The lowest usable address, for the kernel.
    pub(crate) fn bottom(&self) -> u64 {
        self.base as u64 + self.guard as u64
    }

    /// Usable bytes.
    pub const fn size(&self) -> usize {
        self.size - self.guard
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        sys::unmap(self.base, self.size);
    }
}

// SAFETY: plain memory without ties to the thread that mapped it; it is lent to one child at a time by `&mut`.
unsafe impl Send for Stack {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stack_sizes() {
        assert_eq!(Stack::new(0).map(|stack| stack.size()).ok(), Some(64 << 10));
        assert_eq!(Stack::new(65 << 10).map(|stack| stack.size()).ok(), Some(128 << 10));
        assert!(Stack::new(usize::MAX).is_err());
    }
}
