//! Being born: what the child starts with, what the calling program keeps, and what errors say.

#![allow(unsafe_code, reason = "the tests make children as a caller of the crate would")]
#![allow(clippy::unwrap_used, reason = "tests may panic: that is how they fail")]

mod common;

use std::ffi::c_void;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use common::{in_child, uid};
use ns::{Born, Clone, Errno, Kind, Namespace, Namespaces, PidFd, Program, Stack};

fn plain() -> Clone<'static> {
    Clone::new(Namespaces::empty())
}

unsafe extern "C" fn exit_with(status: *mut c_void) -> ! {
    ns::exit(i32::try_from(status as usize).unwrap_or(-1))
}

fn spawn_exit(clone: &Clone<'_>, stack: &mut Stack, status: usize) -> Result<Born, ns::Error> {
    // SAFETY: `exit_with` takes a number and exits.
    unsafe { clone.spawn(stack, exit_with, status as *mut c_void) }
}

#[test]
fn exit_status_comes_back() {
    let mut stack = Stack::new(0).unwrap();
    for status in [0, 1, 42, 255] {
        let born = spawn_exit(&plain(), &mut stack, status).unwrap();
        assert_eq!(born.pidfd.pid().unwrap(), Some(born.pid));
        assert!(born.pidfd.wait(None).unwrap() && born.pidfd.is_dead().unwrap());
        assert_eq!(born.pidfd.reap().unwrap().and_then(|status| status.code()), i32::try_from(status).ok());
        assert_eq!(born.pidfd.pid().unwrap(), None, "reaped");
        assert_eq!(born.pidfd.reap().unwrap(), None, "a second time");
        assert_eq!(born.pidfd.send_signal(0).unwrap_err().errno(), Some(libc::ESRCH));
        born.pidfd.kill().unwrap();
    }
}

#[test]
fn child_starts_clean() {
    // A handler and a blocked signal of ours are not the child's.
    in_child(&plain(), || {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = |key: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim();
            u64::from_str_radix(value, 16).unwrap()
        };
        let unblockable = 1 << (libc::SIGKILL - 1) | 1 << (libc::SIGSTOP - 1);
        assert_eq!(line("SigBlk:"), !unblockable, "all blocked");
        assert_eq!(line("SigCgt:"), 0, "no handlers");
        assert_eq!(ns::set_signal_mask(0).unwrap(), !unblockable);
    })
    .unwrap();
}

#[test]
fn first_process_of_a_pid_namespace_is_1() {
    require!("first_process_of_a_pid_namespace_is_1", uid() == 0, "root", uid());
    let pid = AtomicU32::new(0);
    in_child(&Clone::new(Namespaces::PID), || pid.store(std::process::id(), Ordering::Relaxed)).unwrap();
    assert_eq!(pid.into_inner(), 1);
}

#[test]
fn errno_of_the_program_is_not_written() {
    // A failing call of the child through rustix and one through our own: glibc's errno is the sleeping thread's.
    // SAFETY: the address of this thread's errno.
    let errno = || unsafe { libc::__errno_location() };
    // SAFETY: as above.
    unsafe { *errno() = 1234 };
    in_child(&plain(), || {
        assert!(ns::path::open_in_root(rustix::fs::CWD, c"no such file", ns::path::Open::PATH).is_err());
        assert!(ns::mount::attach(rustix::fs::CWD, rustix::fs::CWD).is_err());
        assert!(
            ns::mount::set_attributes(
                rustix::fs::CWD,
                ns::mount::Attributes::empty(),
                ns::mount::Attributes::NO_DEV,
                false
            )
            .is_err()
        );
        // SAFETY: as above.
        assert_eq!(unsafe { *errno() }, 1234);
    })
    .unwrap();
    // SAFETY: as above.
    assert_eq!(unsafe { *errno() }, 1234);
}

#[test]
fn held_child_runs_beside() {
    static GO: AtomicI32 = AtomicI32::new(0);
    unsafe extern "C" fn held(_: *mut c_void) -> ! {
        GO.store(1, Ordering::Release);
        while GO.load(Ordering::Acquire) != 2 {
            rustix::thread::sched_yield();
        }
        ns::exit(9)
    }
    let mut stack = Stack::new(0).unwrap();
    // SAFETY: `held` touches only an atomic; `stack` lives until the child has been reaped.
    let born = unsafe { plain().spawn_held(&mut stack, held, std::ptr::null_mut()) }.unwrap();
    assert!(!born.pidfd.is_dead().unwrap());
    assert!(!born.pidfd.wait(Some(Duration::from_millis(20))).unwrap());
    while GO.load(Ordering::Acquire) != 1 {
        thread::yield_now();
    }
    GO.store(2, Ordering::Release);
    assert_eq!(born.pidfd.reap().unwrap().and_then(|status| status.code()), Some(9));
}

#[test]
fn killed_child_says_so() {
    unsafe extern "C" fn forever(_: *mut c_void) -> ! {
        loop {
            rustix::thread::sched_yield();
        }
    }
    let mut stack = Stack::new(0).unwrap();
    // SAFETY: `forever` touches nothing; `stack` lives until the child has been reaped.
    let born = unsafe { plain().spawn_held(&mut stack, forever, std::ptr::null_mut()) }.unwrap();
    born.pidfd.kill().unwrap();
    let status = born.pidfd.reap().unwrap().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGKILL));
}

#[test]
fn overflow_of_the_stack_ends_the_child_only() {
    unsafe extern "C" fn deep(_: *mut c_void) -> ! {
        #[allow(unconditional_recursion)]
        fn down(bytes: &mut [u8; 1024]) -> u8 {
            let mut next = [bytes[0]; 1024];
            down(std::hint::black_box(&mut next)) ^ next[1]
        }
        ns::exit(i32::from(down(&mut [1; 1024])))
    }
    // Before Linux 5.16 a core dump takes along all that share memory, so none is to be made.
    in_child(&plain(), || {
        // The limits are the middle child's own.
        let none = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
        rustix::process::setrlimit(rustix::process::Resource::Core, none).unwrap();
    })
    .unwrap();
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let old =
        release.starts_with("5.") && !["5.16.", "5.17.", "5.18.", "5.19."].iter().any(|new| release.starts_with(new));
    require!("overflow_of_the_stack_ends_the_child_only", !old, "Linux 5.16", release);
    let mut stack = Stack::new(0).unwrap();
    // SAFETY: `deep` touches its own stack and the guard below.
    let born = unsafe { plain().spawn(&mut stack, deep, std::ptr::null_mut()) }.unwrap();
    let status = born.pidfd.reap().unwrap().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGSEGV));
}

#[test]
fn files_are_shared_only_when_asked() {
    for (shared, expected) in [(false, false), (true, true)] {
        let made = AtomicI32::new(-1);
        in_child(&plain().files(shared), || {
            let fd = rustix::fs::open("/", rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC, 0.into()).unwrap();
            made.store(std::os::fd::IntoRawFd::into_raw_fd(fd), Ordering::Relaxed);
        })
        .unwrap();
        let link = format!("/proc/self/fd/{}", made.into_inner());
        let here = fs::read_link(&link).is_ok_and(|target| target == std::path::Path::new("/"));
        assert_eq!(here, expected);
        if here {
            let raw: i32 = link.rsplit('/').next().unwrap().parse().unwrap();
            // SAFETY: opened by the child into our own table, and nobody else knows it.
            drop(unsafe { <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(raw) });
        }
    }
}

#[test]
fn a_sharing_child_takes_the_low_end_of_the_table_for_itself() {
    let open = || fs::File::open("/dev/null").unwrap();
    let (low, high) = (open(), rustix::io::fcntl_dupfd_cloexec(open(), 300).unwrap());
    let is_open = |fd: BorrowedFd<'_>| rustix::io::fcntl_getfd(fd).is_ok();
    in_child(&plain().files(true), || {
        assert!(is_open(high.as_fd()), "shared");
        // SAFETY: the table is the parent's, and what is closed in the copy is not used here.
        unsafe { ns::keep_descriptors_below(high.as_raw_fd()) }.unwrap();
        assert!(is_open(low.as_fd()) && !is_open(high.as_fd()));
        let mine = rustix::io::fcntl_dupfd_cloexec(&low, high.as_raw_fd()).unwrap();
        rustix::io::fcntl_setfd(&low, rustix::io::FdFlags::empty()).unwrap();
        assert_eq!(mine.as_raw_fd(), high.as_raw_fd(), "nobody's number here");
        std::mem::forget(mine);
    })
    .unwrap();
    assert!(is_open(low.as_fd()) && is_open(high.as_fd()), "closed for the child alone");
    assert_eq!(rustix::io::fcntl_getfd(&low).unwrap(), rustix::io::FdFlags::CLOEXEC, "changed for the child alone");
    // SAFETY: refused before it does anything.
    assert_eq!(unsafe { ns::keep_descriptors_below(-1) }.unwrap_err().raw(), libc::EINVAL);
}

#[test]
fn sibling_by_clone_parent_is_our_child() {
    let sibling = std::sync::Mutex::new(None);
    in_child(&plain().files(true), || {
        let mut stack = Stack::new(0).unwrap();
        // SAFETY: `exit_with` takes a number and exits.
        let born =
            unsafe { plain().parent(true).files(true).spawn_from_child(&mut stack, exit_with, 5 as *mut c_void) };
        *sibling.lock().unwrap() = Some(born.unwrap());
    })
    .unwrap();
    let born = sibling.into_inner().unwrap().unwrap();
    assert_eq!(born.pidfd.reap().unwrap().and_then(|status| status.code()), Some(5), "ours to reap");
}

#[test]
fn cgroup_descriptor_that_is_none_is_an_error() {
    let root = fs::File::open("/").unwrap();
    let error = spawn_exit(&plain().into_cgroup(root.as_fd()), &mut Stack::new(0).unwrap(), 0).unwrap_err();
    assert_eq!(error.errno(), Some(libc::EBADF), "{error}");
    assert_eq!(error.to_string(), "clone3 (namespaces none, into a cgroup): Bad file descriptor (os error 9)");
}

struct Nest {
    outside: (u32, u32),
    depth: u32,
    error: Option<ns::Error>,
}

/// Makes a user namespace in a user namespace in …, until the kernel has enough.
fn nest(state: &mut Nest) {
    unsafe extern "C" fn deeper(argument: *mut c_void) -> ! {
        // SAFETY: the `Nest` of the sleeping parents.
        let state = unsafe { &mut *argument.cast::<Nest>() };
        // Who has no ids here may not make the next one.
        let (user, group) = state.outside;
        fs::write("/proc/self/setgroups", "deny").unwrap();
        fs::write("/proc/self/uid_map", format!("0 {user} 1")).unwrap();
        fs::write("/proc/self/gid_map", format!("0 {group} 1")).unwrap();
        state.outside = (0, 0);
        state.depth += 1;
        nest(state);
        ns::exit(0)
    }
    let mut stack = Stack::new(1 << 20).unwrap();
    // SAFETY: `state` outlives the child, and the caller sleeps.
    match unsafe { Clone::new(Namespaces::USER).spawn(&mut stack, deeper, (&raw mut *state).cast()) } {
        Ok(born) => drop(born.pidfd.reap()),
        Err(error) => state.error = Some(error),
    }
}

#[test]
fn too_deep_is_said() {
    let outside = (uid(), rustix::process::getegid().as_raw());
    let mut state = Nest { outside, depth: 0, error: None };
    nest(&mut state);
    let error = state.error.unwrap();
    require!("too_deep_is_said", state.depth > 0, "user namespaces", error);
    assert!((30..=33).contains(&state.depth), "{}", state.depth);
    assert!(matches!(error.errno(), Some(libc::ENOSPC | libc::EUSERS)), "{error}");
    assert!(error.hint().unwrap().contains("nested"), "{error}");
}

#[test]
fn program_runs_and_its_absence_is_an_error() {
    let born = Program::new("/bin/sh").unwrap().arg("-c").unwrap().arg("exit 3").unwrap().spawn(&plain()).unwrap();
    assert_eq!(born.pidfd.reap().unwrap().and_then(|status| status.code()), Some(3));
    let error = Program::new("/no/such/program").unwrap().spawn(&plain()).unwrap_err();
    assert_eq!(error.to_string(), "execve /no/such/program: No such file or directory (os error 2)");
    assert!(Program::new("a\0b").is_err());
    assert!(Program::new("a").unwrap().env("a=b", "").is_err());
    let sh = Program::new("/bin/sh").unwrap().env("A", "b=c").unwrap().arg("-c").unwrap();
    let born = sh.arg("test \"$A\" = b=c && ! env | grep -q ^HOME=").unwrap().spawn(&plain()).unwrap();
    assert!(born.pidfd.reap().unwrap().unwrap().success());
}

#[test]
fn program_gets_no_signal_blocked() {
    let script = "grep -q '^SigBlk:.*0000000000000000$' /proc/self/status";
    let born = Program::new("/bin/sh").unwrap().arg("-c").unwrap().arg(script).unwrap().spawn(&plain()).unwrap();
    assert!(born.pidfd.reap().unwrap().unwrap().success());
}

#[test]
fn pidfd_of_a_living_process() {
    let own = PidFd::open(ns::Pid::new(std::process::id()).unwrap()).unwrap();
    assert_eq!(own.pid().unwrap().map(ns::Pid::get), Some(std::process::id()));
    assert!(!own.is_dead().unwrap());
    own.send_signal(0).unwrap();
    assert_eq!(own.send_signal(1000).unwrap_err().errno(), Some(libc::EINVAL));
    let largest = ns::Pid::new(i32::MAX.unsigned_abs()).unwrap();
    assert_eq!(PidFd::open(largest).unwrap_err().errno(), Some(libc::ESRCH));
}

#[test]
fn namespaces_by_process_are_the_same_by_every_way() {
    let born = Program::new("/bin/sleep").unwrap().arg("30").unwrap().spawn(&Clone::new(Namespaces::USER)).unwrap();
    for kind in Kind::ALL {
        let Ok(own) = Namespace::current(kind) else { continue };
        let by_pidfd = Namespace::of_pidfd(&born.pidfd, kind).unwrap();
        let by_pid = Namespace::of_pid(born.pid, kind).unwrap();
        assert_eq!((by_pidfd.kind(), by_pid.kind()), (kind, kind));
        assert_eq!(by_pidfd.identity().unwrap(), by_pid.identity().unwrap());
        assert_eq!(by_pidfd.identity().unwrap() == own.identity().unwrap(), kind != Kind::User, "{kind}");
    }
    let user = Namespace::of_pidfd(&born.pidfd, Kind::User).unwrap();
    born.pidfd.kill().unwrap();
    born.pidfd.reap().unwrap();
    assert_eq!(Namespace::of_pidfd(&born.pidfd, Kind::User).unwrap_err().errno(), Some(libc::ESRCH));
    // Held by its descriptor it outlives its processes.
    in_child(&plain(), || assert_eq!(user.enter(), Ok(()))).unwrap();
    assert!(Namespace::open("/dev/null").is_err() && Namespace::open("/no/such/file").is_err());
}

#[test]
fn entering_several_at_once() {
    require!("entering_several_at_once", uid() == 0, "root", uid());
    let wanted = Namespaces::UTS | Namespaces::IPC;
    let born = Program::new("/bin/sleep").unwrap().arg("30").unwrap().spawn(&Clone::new(wanted)).unwrap();
    let theirs = Namespace::of_pidfd(&born.pidfd, Kind::Uts).unwrap().identity().unwrap();
    in_child(&plain(), || {
        assert_eq!(ns::enter_all(born.pidfd.as_fd(), wanted), Ok(()));
        assert_eq!(Namespace::current(Kind::Uts).unwrap().identity().unwrap(), theirs);
    })
    .unwrap();
    born.pidfd.kill().unwrap();
    born.pidfd.reap().unwrap();
    let gone = ns::enter_all(born.pidfd.as_fd(), wanted);
    assert_eq!(gone, Err(Errno::from_raw(libc::ESRCH)));
}

/// A directory of ours in a cgroup v2 hierarchy, beside our own cgroup or at its top.
fn own_cgroup(name: &str) -> Result<std::path::PathBuf, String> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").map_err(|error| error.to_string())?;
    let mount = mountinfo.lines().find(|line| line.contains(" - cgroup2 ")).ok_or("no cgroup2 mount")?;
    let top = std::path::PathBuf::from(mount.split(' ').nth(4).unwrap_or_default());
    let own = fs::read_to_string("/proc/self/cgroup").map_err(|error| error.to_string())?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let directory = top.join(own).join(format!("sandbox-ns-{name}-{}", std::process::id()));
    fs::create_dir(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    Ok(directory)
}

#[test]
fn born_in_a_cgroup() {
    let directory = own_cgroup("born");
    require!("born_in_a_cgroup", directory.is_ok(), "a writable cgroup v2 directory", directory.unwrap_err());
    let directory = directory.unwrap();
    let fd = fs::File::open(&directory).unwrap();
    let mut own = String::new();
    let born = in_child(&plain().into_cgroup(fd.as_fd()), || own = fs::read_to_string("/proc/self/cgroup").unwrap());
    let removed = fs::remove_dir(&directory);
    let gone = spawn_exit(&plain().into_cgroup(fd.as_fd()), &mut Stack::new(0).unwrap(), 0);
    let name = directory.file_name().unwrap().to_str().unwrap();
    let denied = born.as_ref().is_err_and(|error| error.contains("Permission denied"));
    require!("born_in_a_cgroup", !denied, "write access to the common ancestor's cgroup.procs", born.unwrap_err());
    assert_eq!(born, Ok(()));
    assert!(own.lines().any(|line| line.starts_with("0::") && line.ends_with(name)), "{own}");
    removed.unwrap();
    let gone = gone.unwrap_err();
    assert!(matches!(gone.errno(), Some(libc::ENODEV | libc::ENOENT)), "{gone}");
}

#[test]
fn hidden_clone3_is_named() {
    for (denied, word) in [(libc::ENOSYS, "seccomp"), (libc::EPERM, "seccomp")] {
        common::without(&[libc::SYS_clone3], denied, || {
            let mask = ns::set_signal_mask(1 << 9).unwrap();
            let error = spawn_exit(&plain(), &mut Stack::new(0).unwrap(), 0).unwrap_err();
            assert_eq!(error.errno(), Some(denied));
            assert!(error.hint().unwrap().contains(word), "{error}");
            assert_eq!(ns::set_signal_mask(mask).unwrap(), 1 << 9, "restored after an error, too");
        });
    }
}

#[test]
fn process_limit_is_named() {
    require!("process_limit_is_named", uid() != 0, "a uid that limits count for", uid());
    // Of a child with a limit of its own: ours is the whole program's.
    in_child(&plain(), || {
        let one = rustix::process::Rlimit { current: Some(1), maximum: Some(1) };
        rustix::process::setrlimit(rustix::process::Resource::Nproc, one).unwrap();
        let error = spawn_exit(&plain(), &mut Stack::new(0).unwrap(), 0).unwrap_err();
        assert_eq!(error.errno(), Some(libc::EAGAIN));
        assert!(error.hint().unwrap().contains("RLIMIT_NPROC"), "{error}");
    })
    .unwrap();
}

#[test]
fn child_side_functions_fit_the_smallest_stack() {
    struct Job {
        answers: [Option<Errno>; 4],
    }
    unsafe extern "C" fn child(argument: *mut c_void) -> ! {
        use ns::mount::{Attributes, set_attributes};
        use ns::path::{Open, create_dir_in_root, create_file_in_root, open_in_root};
        // SAFETY: the `Job` of the sleeping parent.
        let job = unsafe { &mut *argument.cast::<Job>() };
        let path = c"usr/../usr/bin/../../proc/self/../1/../../no such/../file";
        job.answers = [
            open_in_root(rustix::fs::CWD, path, Open::PATH).err(),
            create_dir_in_root(rustix::fs::CWD, c"proc/1/no/../such", 0o755).err(),
            create_file_in_root(rustix::fs::CWD, c"proc/no such file", 0o644).err(),
            // Of the whole mount tree, without the right to: it is listed and refused.
            set_attributes(rustix::fs::CWD, Attributes::empty(), Attributes::empty(), true).err(),
        ];
        ns::exit(0)
    }
    common::without(&[libc::SYS_openat2, libc::SYS_mount_setattr], libc::ENOSYS, || {
        in_child(&plain(), || {
            std::env::set_current_dir("/").unwrap();
            let mut job = Job { answers: [None; 4] };
            let mut stack = Stack::new(0).unwrap();
            let clone = Clone::new(if uid() == 0 { Namespaces::MOUNT } else { Namespaces::empty() });
            // SAFETY: `job` lives until `spawn` returns.
            let born = unsafe { clone.spawn(&mut stack, child, (&raw mut job).cast()) }.unwrap();
            let status = born.pidfd.reap().unwrap().unwrap();
            assert!(status.success(), "{status}");
            assert_eq!(job.answers[0], Some(Errno::from_raw(libc::ENOENT)));
            assert!(job.answers[1].is_some() && job.answers[2].is_some(), "proc creates nothing");
        })
        .unwrap();
    });
}

#[test]
fn dead_pid_namespace_is_named() {
    require!("dead_pid_namespace_is_named", uid() == 0, "root", uid());
    let born = Program::new("/bin/sleep").unwrap().arg("30").unwrap().spawn(&Clone::new(Namespaces::PID)).unwrap();
    let dead = Namespace::of_pidfd(&born.pidfd, Kind::Pid).unwrap();
    born.pidfd.kill().unwrap();
    born.pidfd.reap().unwrap();
    in_child(&plain(), || {
        assert_eq!(dead.enter(), Ok(()), "a descriptor keeps it");
        let error = spawn_exit(&plain(), &mut Stack::new(0).unwrap(), 0).unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENOMEM));
        assert!(error.hint().unwrap().contains("init of the PID namespace"), "{error}");
    })
    .unwrap();
}
