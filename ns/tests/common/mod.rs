//! What the kernel tests share: saying what a test needs, and running a closure in a clone child.
#![allow(dead_code, reason = "each test binary uses a part")]
#![allow(unsafe_code, reason = "the tests make children as a caller of the crate would")]

use std::ffi::c_void;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};

use ns::{Clone, Stack};

/// Skips the test, with a line on stderr, unless the condition holds; fails instead when `SANDBOX_TEST_REQUIRE_ALL=1`.
#[macro_export]
macro_rules! require {
    ($name:expr, $holds:expr, $needs:expr, $found:expr) => {
        if !$holds {
            $crate::common::skip($name, &$needs.to_string(), &$found.to_string());
            return;
        }
    };
}

pub(crate) fn skip(name: &str, needs: &str, found: &str) {
    assert!(
        std::env::var_os("SANDBOX_TEST_REQUIRE_ALL").is_none_or(|value| value != "1"),
        "{name}: needs {needs}; found {found}"
    );
    // The handle, not `eprintln!`, which libtest captures.
    // One write: lines of other threads must not come in between.
    let _ = std::io::stderr().write_all(format!("SKIP {name}: needs {needs}; found {found}\n").as_bytes());
}

pub(crate) fn uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

struct Job<'a> {
    run: &'a mut dyn FnMut(),
    panic: Option<String>,
}

/// Runs `job` in a child of `clone` on shared memory while the calling thread sleeps, and says what went wrong in it.
///
/// The child may even allocate and panic: it has the sleeping thread's TLS to itself and glibc's locks are in the
/// shared memory. That is good enough for tests, and for nothing else.
pub(crate) fn in_child(clone: &Clone<'_>, mut job: impl FnMut()) -> Result<(), String> {
    unsafe extern "C" fn entry(argument: *mut c_void) -> ! {
        // SAFETY: `argument` is the `Job` below, which nobody else touches while the parent sleeps.
        let job = unsafe { &mut *argument.cast::<Job<'_>>() };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (job.run)())) {
            let text = panic.downcast_ref::<String>().cloned();
            job.panic =
                Some(text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.into())).unwrap_or_default());
        }
        ns::exit(0)
    }
    let mut stack = Stack::new(1 << 20).map_err(|error| error.to_string())?;
    let mut job = Job { run: &mut job, panic: None };
    // SAFETY: see above; `job` lives until `spawn` returns.
    let born = unsafe { clone.spawn(&mut stack, entry, (&raw mut job).cast()) }.map_err(|error| error.to_string())?;
    let status = born.pidfd.reap().map_err(|error| error.to_string())?;
    match (job.panic, status) {
        (Some(text), _) => Err(text),
        (None, Some(status)) if !status.success() => Err(status.to_string()),
        _ => Ok(()),
    }
}

/// Runs `job` on a thread of its own where these system calls fail with `errno`, as under a container's filter.
pub(crate) fn without(calls: &[libc::c_long], errno: i32, job: impl FnOnce() + Send) {
    let load = |offset| libc::sock_filter { code: 0x20, jt: 0, jf: 0, k: offset };
    let answer = |action| libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: action };
    let mut program = vec![load(0)];
    for call in calls {
        let number = u32::try_from(*call).unwrap_or(u32::MAX);
        program.push(libc::sock_filter { code: 0x15, jt: 0, jf: 1, k: number });
        program.push(answer(libc::SECCOMP_RET_ERRNO | errno.unsigned_abs()));
    }
    program.push(answer(libc::SECCOMP_RET_ALLOW));
    let length = u16::try_from(program.len()).unwrap_or(u16::MAX);
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let filter = libc::sock_fprog { len: length, filter: program.as_mut_ptr() };
            // SAFETY: no pointers.
            let privileges = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
            // SAFETY: a whole program, copied by the kernel during the call; it binds this thread only.
            let installed = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) };
            assert_eq!((privileges, installed), (0, 0), "{}", std::io::Error::last_os_error());
            job();
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}
