//! What a start and a run allocate: the numbers that docs/performance.md names.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]
#![allow(unsafe_code, reason = "an allocator that counts")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use sandbox::{Command, Stdio};

/// Counts what each thread allocates, growing included.
struct Counting;

thread_local! {
    static ALLOCATED: Cell<usize> = const { Cell::new(0) };
}

fn count() {
    // While a thread ends there is nothing left to count in.
    let _ = ALLOCATED.try_with(|allocated| allocated.set(allocated.get() + 1));
}

// SAFETY: hands everything through to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn payload() {
    common::acts::run(&[]);
}

/// The least of ten that one call of `status` allocates on the calling thread, after a first that may fill caches: on a
/// busy machine one start of some dozens allocates many times more.
fn least(command: &mut Command) -> usize {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    assert!(command.status().unwrap().success());
    let once = |command: &mut Command| {
        let before = ALLOCATED.get();
        assert!(command.status().unwrap().success());
        ALLOCATED.get() - before
    };
    (0..10).map(|_| once(command)).min().unwrap()
}

#[test]
fn a_run_and_a_start_allocate_as_little_as_is_documented() {
    let sandbox = common::sandbox(|b| _ = b.prepared(0));
    let instance = sandbox.start().unwrap();
    let run = least(&mut instance.command("/bin/true"));
    let start = least(&mut sandbox.command("/bin/true"));
    println!("allocations: run {run}, start and run {start}");
    assert!(run <= RUN_MAX, "{run} allocations of a run");
    // Others than root run newuidmap and newgidmap; where everything takes long, each start looks at the host anew.
    assert!(!common::is_root() || common::is_guest() || start <= START_MAX, "{start} allocations of a start and a run");
}

/// The request's message, the child, its outcome.
const RUN_MAX: usize = 10;
/// The cgroup's and the lease's paths and descriptors, the steps' descriptors, and a run: nothing was made ahead.
const START_MAX: usize = 110;
