//! A program that ignores SIGCHLD. One test per binary: dispositions belong to the whole process.

#![allow(unsafe_code, reason = "std has no way to ignore a signal")]
#![allow(clippy::unwrap_used, reason = "tests may panic: that is how they fail")]

use std::ffi::c_void;

use ns::{Clone, Namespaces, Program, Stack};

#[test]
fn ignored_sigchld_loses_no_process() {
    unsafe extern "C" fn seven(_: *mut c_void) -> ! {
        ns::exit(7)
    }
    // SAFETY: no handler, only a disposition.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    let plain = Clone::new(Namespaces::empty());
    let mut stack = Stack::new(0).unwrap();
    // Without an exit signal and without exec the status is kept even so.
    // SAFETY: `seven` exits.
    let born = unsafe { plain.clone().exit_signal(false).spawn(&mut stack, seven, std::ptr::null_mut()) }.unwrap();
    assert_eq!(born.pidfd.reap().unwrap().and_then(|status| status.code()), Some(7));
    // With one the kernel reaps by itself: the end is seen, the status is gone.
    // SAFETY: as above.
    let born = unsafe { plain.spawn(&mut stack, seven, std::ptr::null_mut()) }.unwrap();
    assert_eq!(born.pidfd.reap().unwrap(), None);
    // exec sets the signal again, and waiting still lasts until the end.
    let clock = std::time::Instant::now();
    let born =
        Program::new("/bin/sleep").unwrap().arg("0.2").unwrap().spawn(&plain.clone().exit_signal(false)).unwrap();
    assert_eq!(born.pidfd.reap().unwrap(), None);
    assert!(clock.elapsed().as_millis() >= 200);
}
