//! The calling program after many spawns. One test per binary: it counts what belongs to the whole process.

#![allow(unsafe_code, reason = "the tests make children as a caller of the crate would")]
#![allow(clippy::unwrap_used, reason = "tests may panic: that is how they fail")]

mod common;

use std::ffi::c_void;
use std::fs;
use std::thread;

use common::{in_child, uid};
use ns::{Born, Clone, Kind, Namespace, Namespaces, Stack};

unsafe extern "C" fn exit_with(status: *mut c_void) -> ! {
    ns::exit(i32::try_from(status as usize).unwrap_or(-1))
}

fn spawn_exit(clone: &Clone<'_>, stack: &mut Stack, status: usize) -> Result<Born, ns::Error> {
    // SAFETY: `exit_with` takes a number and exits.
    unsafe { clone.spawn(stack, exit_with, status as *mut c_void) }
}

/// The lines of `/proc/thread-self/status` that tell of signals, and the process's other state that a spawn could
/// touch.
fn own_state() -> (Vec<String>, usize, i32, String) {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    let keep = ["SigBlk", "SigIgn", "SigCgt", "Uid", "Gid", "Cap", "NoNewPrivs", "Seccomp", "Umask"];
    let signals =
        status.lines().filter(|line| keep.iter().any(|key| line.starts_with(key))).map(str::to_owned).collect();
    let namespaces: Vec<_> =
        Kind::ALL.into_iter().map(|kind| Namespace::current(kind).and_then(|own| own.identity()).ok()).collect();
    // SAFETY: no pointers.
    let dumpable = unsafe { libc::prctl(libc::PR_GET_DUMPABLE) };
    let fds = fs::read_dir("/proc/self/fd").unwrap().count();
    (signals, fds, dumpable, format!("{namespaces:?} {:?}", std::env::current_dir().unwrap()))
}

#[test]
fn host_is_untouched_by_many_threads() {
    let namespaces = if uid() == 0 { Namespaces::PID | Namespaces::MOUNT } else { Namespaces::USER };
    let failing = Clone::new(Namespaces::empty()).raw_flags(1 << 45);
    let round = |stack: &mut Stack, status: usize| {
        let born = spawn_exit(&Clone::new(namespaces), stack, status).unwrap();
        assert_eq!(born.pidfd.reap().unwrap().and_then(|status| status.code()), i32::try_from(status).ok());
        assert_eq!(spawn_exit(&failing, stack, 0).unwrap_err().errno(), Some(libc::EINVAL));
    };
    round(&mut Stack::new(0).unwrap(), 3);
    let handlers = own_state();
    let fds = thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|number| {
                scope.spawn(move || {
                    // A mask of its own, to be found again.
                    ns::set_signal_mask(1 << (9 + number)).unwrap();
                    let before = own_state();
                    let mut stack = Stack::new(0).unwrap();
                    for status in 0..100 {
                        round(&mut stack, status);
                    }
                    let after = own_state();
                    assert_eq!((before.0, before.2, before.3), (after.0, after.2, after.3));
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        fs::read_dir("/proc/self/fd").unwrap().count()
    });
    assert_eq!(fds, handlers.1);
    assert_eq!(own_state(), handlers);
    // Nor by children in user namespaces, where a change of ids would show as a program that cannot be dumped.
    in_child(&Clone::new(Namespaces::USER), || {}).unwrap();
    in_child(&Clone::new(Namespaces::empty()), || ns::unshare(Namespaces::USER).unwrap()).unwrap();
    assert_eq!(own_state(), handlers);
}
