//! A reading of the counters takes no memory, and one system call for each file: this binary counts both.
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

/// How many reads the kernel has counted for this thread, this one left out: it is one `pread`.
fn reads() -> Option<u64> {
    use std::os::unix::fs::FileExt as _;
    let mut text = [0; 512];
    let length = std::fs::File::open("/proc/thread-self/io").ok()?.read_at(&mut text, 0).ok()?;
    let text = std::str::from_utf8(text.get(..length)?).ok()?;
    text.lines().find_map(|line| line.strip_prefix("syscr: "))?.parse().ok()
}

/// The open files of this process in a directory of the group.
fn open_files(group: &cgroup::Cgroup) -> u64 {
    let links =
        std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok());
    links.filter(|file| group.paths().any(|directory| file.parent() == Some(directory))).count() as u64
}

#[test]
fn a_reading_is_one_pread_for_each_file_and_opens_none() {
    let group = group("preads", USUAL);
    require!(group.is_ok(), "memory, pids and cpu", group.err().unwrap());
    require!(reads().is_some(), "a kernel that counts the reads of a thread", "no /proc/thread-self/io");
    let group = group.unwrap();
    let closed = open_files(&group);
    let mut meter = group.meter().unwrap();
    let files = open_files(&group) - closed;
    assert!(files >= 5, "memory, its events, processes, CPU time: {files}");
    for _ in 0..3 {
        let (first, second) = (reads().unwrap(), reads().unwrap());
        meter.read().unwrap();
        let third = reads().unwrap();
        assert_eq!((third - second) - (second - first), files);
        assert_eq!(open_files(&group) - closed, files);
    }
}

#[test]
fn cpu_time_is_read_of_more_tasks_than_were_told() {
    let group = group("beyond", USUAL);
    require!(group.is_ok(), "memory, pids and cpu", group.err().unwrap());
    let group = group.unwrap();
    let mut meter = group.meter().unwrap();
    let all = meter.read().unwrap();
    let lone = meter.read_with_cpu_beyond(0).unwrap();
    if all.pids_peak.is_none() {
        return assert!(lone.cpu.is_some(), "before Linux 6.1 nobody knows how many there were");
    }
    assert_eq!((lone.cpu, lone.pids_peak, lone.oom_kills), (None, Some(0), all.oom_kills));
    let _helper = common::Helper::in_group(&group, "wait");
    let peak = meter.read().unwrap().pids_peak.unwrap();
    assert!(peak > 0 && meter.read_with_cpu_beyond(peak - 1).unwrap().cpu.is_some(), "{peak}");
    assert_eq!(meter.read_with_cpu_beyond(peak).unwrap().cpu, None);
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
