//! A reading of the counters takes no memory: this binary counts its allocations.
#![allow(unsafe_code, clippy::unwrap_used, reason = "an allocator is unsafe by nature; tests fail by panicking")]

mod common;

use std::alloc::{GlobalAlloc, Layout as Size, System};
use std::cell::Cell;

use common::{USUAL, group};

thread_local! {
    static TAKEN: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, counting per thread.
struct Counting;

// SAFETY: every call is passed on unchanged to the system's allocator, which keeps the promises.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, size: Size) -> *mut u8 {
        let _ = TAKEN.try_with(|taken| taken.set(taken.get() + 1));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, size: Size) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(block, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn helper() {
    common::act();
}

#[test]
fn a_reading_takes_no_memory() {
    let group = group("meter", USUAL);
    require!(group.is_ok(), "memory, pids and cpu", group.err().unwrap());
    let group = group.unwrap();
    let mut meter = group.meter().unwrap();
    let first = meter.read().unwrap();
    let before = TAKEN.with(Cell::get);
    let second = meter.read().unwrap();
    assert_eq!(TAKEN.with(Cell::get), before);
    assert_eq!(first.pids_current, second.pids_current);
    let filled = format!("{second:?}");
    assert!(TAKEN.with(Cell::get) > before, "the counter counts");
    assert!(second.memory_current.is_some() && second.oom_kills.is_some() && second.cpu.is_some(), "{filled}");
}
