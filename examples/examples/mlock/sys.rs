//! Memory that can be locked.
//!
//! # Safety
//! A [`Region`] owns a private anonymous mapping, whole pages, from `mmap` until it is dropped; nothing else knows its
//! address.
#![allow(unsafe_code)]

use std::io;
use std::ptr::{self, NonNull};
use std::slice;

/// Some pages of its own.
pub(crate) struct Region {
    start: NonNull<u8>,
    length: usize,
}

impl Region {
    pub(crate) fn new(length: usize) -> io::Result<Self> {
        // SAFETY: a new private mapping at an address that the kernel chooses touches no memory in use.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Self { start, length })
    }

    pub(crate) fn address(&self) -> usize {
        self.start.as_ptr().addr()
    }

    pub(crate) fn length(&self) -> usize {
        self.length
    }

    /// mlock(2): brings the pages in and keeps them.
    pub(crate) fn lock(&self) -> io::Result<()> {
        // SAFETY: the range is exactly our mapping; locking changes nothing that Rust can see.
        answer(unsafe { libc::mlock(self.start.as_ptr().cast(), self.length) })
    }

    /// madvise(MADV_PAGEOUT), Linux 5.4: out to swap, now.
    pub(crate) fn page_out(&self) -> io::Result<()> {
        // SAFETY: the range is exactly our mapping; the contents stay the same, wherever they lie.
        answer(unsafe { libc::madvise(self.start.as_ptr().cast(), self.length, libc::MADV_PAGEOUT) })
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: mapped readable and writable for `length` bytes, zeroed by the kernel, ours alone while `self` is
        // borrowed.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        for byte in self.bytes_mut() {
            // SAFETY: a reference to a byte of our mapping. Volatile: the compiler may not drop a last write.
            unsafe { ptr::write_volatile(byte, 0) };
        }
        // SAFETY: the range is exactly our mapping, and no borrow outlives `self`. Unmapping unlocks.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

/// Maps so many bytes while every new mapping of the process is locked (mlockall(MCL_FUTURE)), then unlocks everything.
pub(crate) fn map_locked(length: usize) -> io::Result<Region> {
    // SAFETY: locks mappings yet to be made; no memory that Rust knows is changed.
    answer(unsafe { libc::mlockall(libc::MCL_FUTURE) })?;
    let region = Region::new(length);
    // SAFETY: unlocking changes no contents.
    answer(unsafe { libc::munlockall() })?;
    region
}

fn answer(returned: libc::c_int) -> io::Result<()> {
    if returned == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
