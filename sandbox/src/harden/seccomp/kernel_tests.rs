//! The default deny-list in the kernel: installed in a throw-away child, which is this test binary again and makes the
//! calls itself. Each call has arguments with which it does nothing, should it get through.
//!
//! # Safety
//! Raw system calls of tests. Each block says what holds.
#![allow(unsafe_code)]

use std::io::{self, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, ExitStatus, Stdio};
use std::{env, fs, thread};

use super::super::syscalls::arch;
use super::{Options, Program, deny_list};

/// Set in the child: which part of [`inside`] to run.
const PART: &str = "SANDBOX_TEST_SECCOMP_PART";

/// Whether this kernel has seccomp filters; says so when not.
fn seccomp_available(test: &str) -> bool {
    let actions = "/proc/sys/kernel/seccomp/actions_avail";
    let found = match fs::read_to_string(actions) {
        Ok(text) if text.contains("kill_process") => return true,
        Ok(text) => text,
        Err(error) => error.to_string(),
    };
    skip(test, &format!("seccomp with kill_process; found {actions}: {}", found.trim()))
}

fn skip(test: &str, needs: &str) -> bool {
    assert!(env::var_os("SANDBOX_TEST_REQUIRE_ALL").is_none_or(|all| all != "1"), "{test}: needs {needs}");
    // The handle: libtest shows it, which it does not do with what `eprintln!` prints.
    io::stderr().write_all(format!("SKIP {test}: needs {needs}\n").as_bytes()).unwrap();
    false
}

/// Runs a part of [`inside`] in a child, under the filter if there is one.
fn child(part: &str, filter: Option<Program>) -> (ExitStatus, String) {
    let inside = concat!(module_path!(), "::inside").split_once("::").unwrap().1;
    let mut command = Command::new(env::current_exe().unwrap());
    command.args([inside, "--exact", "--nocapture", "--test-threads=1"]).env(PART, part);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // SAFETY: between fork and exec `install` makes three system calls and nothing else: no heap, no locks.
    unsafe { command.pre_exec(move || filter.as_ref().map_or(Ok(()), install)) };
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    (output.status, text)
}

fn install(filter: &Program) -> io::Result<()> {
    let done = |ret: libc::c_long| if ret == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
    let no_core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: reads a whole `rlimit` that lives across the call.
    done(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const no_core) }.into())?;
    // SAFETY: numbers only.
    done(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }.into())?;
    let program = libc::sock_fprog { len: filter.len(), filter: filter.as_bytes().as_ptr().cast_mut().cast() };
    // SAFETY: the kernel copies `len` instructions of eight bytes, which is what `as_bytes` holds, and keeps no pointer.
    done(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) })
}

/// A system call past libc; what it returns, or its errno.
fn call(nr: libc::c_long, args: [u64; 4]) -> Result<libc::c_long, i32> {
    let [a, b, c, d] = args;
    // SAFETY: the callers below pass no valid pointers but those that the call named beside them only reads.
    let ret = unsafe { libc::syscall(nr, a, b, c, d, 0_u64, 0_u64) };
    if ret == 0 && nr == libc::SYS_clone {
        // SAFETY: a child that should not be ends at once.
        unsafe { libc::_exit(0) };
    }
    if ret == -1 { Err(io::Error::last_os_error().raw_os_error().unwrap()) } else { Ok(ret) }
}

/// The child's side: does nothing unless [`child`] started it.
#[test]
fn inside() {
    match env::var(PART).as_deref() {
        Ok("calls") => refused_calls(),
        Ok("life") => ordinary_life(),
        Ok("int80") => int80(),
        Ok("x32") => drop(call(i64::from(*arch::X32.start()) | libc::SYS_getpid, [0; 4])),
        Ok(part) => panic!("no part {part}"),
        Err(_) => return,
    }
    println!("part done");
}

fn int80() {
    let mut eax = 20_u32; // getpid of i386
    // SAFETY: getpid takes no arguments, and the gate keeps all registers but eax and r8 to r11.
    unsafe {
        std::arch::asm!("int 0x80", inout("eax") eax, out("r8") _, out("r9") _, out("r10") _, out("r11") _);
    }
    assert_eq!(eax, std::process::id(), "20 is not getpid here");
}

/// A pointer that is never valid, descriptors and commands that do not exist.
const BAD: u64 = 1;
const NONE: u64 = u64::MAX;

fn refused_calls() {
    let (eperm, enosys, eafnosupport) = (libc::EPERM, libc::ENOSYS, libc::EAFNOSUPPORT);
    // Stops here if nothing is installed.
    assert_eq!(call(libc::SYS_unshare, [0x1000_0000, 0, 0, 0]), Err(eperm));
    let calls = [
        (libc::SYS_unshare, [0x0002_0000, 0, 0, 0], eperm),
        (libc::SYS_unshare, [0x0000_0080, 0, 0, 0], eperm),
        (libc::SYS_unshare, [0x4000_0000, 0, 0, 0], eperm),
        (libc::SYS_unshare, [1 << 32, 0, 0, 0], eperm),
        (libc::SYS_clone, [0x1000_0011, 0, 0, 0], eperm),
        (libc::SYS_clone, [0x0002_0011, 0, 0, 0], eperm),
        (libc::SYS_clone, [0x4000_0011, 0, 0, 0], eperm),
        (libc::SYS_clone3, [BAD, 64, 0, 0], enosys),
        (libc::SYS_setns, [NONE, 0, 0, 0], eperm),
        (libc::SYS_mount, [BAD, BAD, BAD, 0], eperm),
        (libc::SYS_umount2, [BAD, 0, 0, 0], eperm),
        (libc::SYS_pivot_root, [BAD, BAD, 0, 0], eperm),
        (libc::SYS_chroot, [BAD, 0, 0, 0], eperm),
        (libc::SYS_fsopen, [BAD, 0, 0, 0], enosys),
        (libc::SYS_fsconfig, [NONE, NONE, 0, 0], enosys),
        (libc::SYS_fsmount, [NONE, 0, 0, 0], enosys),
        (libc::SYS_fspick, [NONE, BAD, 0, 0], enosys),
        (libc::SYS_open_tree, [NONE, BAD, 0, 0], enosys),
        (arch::SYS_OPEN_TREE_ATTR, [NONE, BAD, 0, 0], enosys),
        (libc::SYS_move_mount, [NONE, BAD, NONE, BAD], enosys),
        (libc::SYS_mount_setattr, [NONE, BAD, 0, 0], enosys),
        (arch::SYS_FILE_SETATTR, [NONE, BAD, BAD, 0], enosys),
        (libc::SYS_keyctl, [0, 0, 0, 0], enosys),
        (libc::SYS_add_key, [BAD, BAD, 0, 0], enosys),
        (libc::SYS_request_key, [BAD, BAD, 0, 0], enosys),
        (libc::SYS_io_uring_setup, [1, BAD, 0, 0], enosys),
        (libc::SYS_process_vm_readv, [1, 0, 0, 0], enosys),
        (libc::SYS_ptrace, [2, NONE, 0, 0], eperm),
        (libc::SYS_kcmp, [1, 1, 99, 0], eperm),
        (libc::SYS_pidfd_getfd, [NONE, 0, 0, 0], eperm),
        (libc::SYS_bpf, [999, 0, 0, 0], eperm),
        (libc::SYS_perf_event_open, [BAD, 0, 0, NONE], eperm),
        (libc::SYS_userfaultfd, [NONE, 0, 0, 0], eperm),
        (libc::SYS_fanotify_init, [NONE, NONE, 0, 0], eperm),
        (libc::SYS_open_by_handle_at, [NONE, BAD, 0, 0], eperm),
        (libc::SYS_quotactl, [NONE, BAD, 0, BAD], eperm),
        (libc::SYS_quotactl_fd, [NONE, NONE, 0, BAD], eperm),
        (libc::SYS_init_module, [BAD, 0, BAD, 0], eperm),
        (libc::SYS_finit_module, [NONE, BAD, 0, 0], eperm),
        (libc::SYS_delete_module, [BAD, 0, 0, 0], eperm),
        (libc::SYS_kexec_load, [0, 0, 0, NONE], eperm),
        (libc::SYS_swapon, [BAD, 0, 0, 0], eperm),
        (libc::SYS_reboot, [0, 0, 0, 0], eperm),
        (libc::SYS_syslog, [999, 0, 0, 0], eperm),
        (libc::SYS_acct, [BAD, 0, 0, 0], eperm),
        (libc::SYS_settimeofday, [BAD, BAD, 0, 0], eperm),
        (libc::SYS_clock_settime, [99, BAD, 0, 0], eperm),
        (libc::SYS_sethostname, [BAD, 1, 0, 0], eperm),
        (libc::SYS_iopl, [99, 0, 0, 0], eperm),
        (libc::SYS_modify_ldt, [99, 0, 0, 0], eperm),
        (libc::SYS_personality, [0x0040_0000, 0, 0, 0], eperm),
        (libc::SYS_ioctl, [0, 0x5412, BAD, 0], eperm),
        (libc::SYS_ioctl, [0, 1 << 32 | 0x5412, BAD, 0], eperm),
        (libc::SYS_ioctl, [NONE, 0xffff_ffff_0000_541c, BAD, 0], eperm),
        (libc::SYS_ioctl, [NONE, 0x401c_5820, BAD, 0], eperm),
        (libc::SYS_ioctl, [NONE, 0x4008_6602, BAD, 0], eperm),
        (libc::SYS_fcntl, [NONE, 1024, 0, 0], eperm),
        (libc::SYS_flock, [NONE, 2, 0, 0], enosys),
        (libc::SYS_socket, [40, 1, 0, 0], eafnosupport), // vsock
        (libc::SYS_socket, [1 << 32 | 40, 1, 0, 0], eafnosupport),
        (libc::SYS_socket, [17, 3, 0, 0], eafnosupport),       // packet
        (libc::SYS_socket, [38, 5, 0, 0], eafnosupport),       // alg
        (libc::SYS_socket, [16, 3, 9, 0], eafnosupport),       // netlink: audit
        (libc::SYS_socket, [2, 5, 132, 0], eafnosupport),      // sctp
        (libc::SYS_socketpair, [30, 1, 0, BAD], eafnosupport), // tipc
        (libc::SYS_prlimit64, [1, 7, 0, 0], eperm),
        (400, [0; 4], enosys),
        (1000, [0; 4], enosys),
        (-1, [0; 4], enosys),
    ];
    let wrong: Vec<_> = calls
        .iter()
        .map(|&(nr, args, errno)| (nr, args, call(nr, args), errno))
        .filter(|(_, _, found, errno)| *found != Err(*errno))
        .collect();
    assert!(wrong.is_empty(), "(number, arguments, found, expected errno): {wrong:x?}");
}

fn ordinary_life() {
    let threads: Vec<_> = (0..50).map(|n| thread::spawn(move || n)).collect();
    let sum: i32 = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
    assert_eq!(sum, 49 * 50 / 2);

    // By posix_spawn, and by fork and exec.
    assert!(Command::new("/bin/true").status().unwrap().success());
    let mut forked = Command::new("/bin/sh");
    // SAFETY: does nothing between fork and exec.
    unsafe { forked.args(["-c", "(exit 3) | (exit 4)"]).pre_exec(|| Ok(())) };
    assert_eq!(forked.status().unwrap().code(), Some(4));

    assert!(call(libc::SYS_personality, [0xffff_ffff, 0, 0, 0]).is_ok());
    assert!(call(libc::SYS_unshare, [0x0000_0200, 0, 0, 0]).is_ok());
    assert!(call(libc::SYS_prlimit64, [0, 7, 0, 0]).is_ok());
    for socket in [[1, 1, 0, 0], [2, 1, 0, 0], [2, 2, 17, 0], [16, 3, 0, 0]] {
        assert!(call(libc::SYS_socket, socket).is_ok(), "{socket:?}");
    }
    // A program may tighten itself: what the kernel has of this answers.
    let landlock = call(libc::SYS_landlock_create_ruleset, [0, 0, 1, 0]);
    assert!(!matches!(landlock, Err(libc::EPERM)), "{landlock:?}");
    install(&deny_list(Options::default()).unwrap()).unwrap();
    assert!(Command::new("/bin/true").status().unwrap().success());
}

fn filter() -> Program {
    deny_list(Options { single_id: true, strict: true }).unwrap()
}

#[test]
fn kernel_refuses_what_the_table_says() {
    if !seccomp_available("kernel_refuses_what_the_table_says") {
        return;
    }
    let (status, text) = child("calls", Some(filter()));
    assert!(status.success() && text.contains("part done"), "{status}: {text}");
}

#[test]
fn kernel_lets_threads_programs_and_sockets_through() {
    if !seccomp_available("kernel_lets_threads_programs_and_sockets_through") {
        return;
    }
    let (status, text) = child("life", Some(filter()));
    assert!(status.success() && text.contains("part done"), "{status}: {text}");
}

#[test]
fn kernel_kills_on_x32() {
    if !seccomp_available("kernel_kills_on_x32") {
        return;
    }
    let (status, text) = child("x32", Some(filter()));
    assert_eq!(status.signal(), Some(libc::SIGSYS), "{status}: {text}");
}

#[test]
fn kernel_kills_on_int80() {
    if !seccomp_available("kernel_kills_on_int80") {
        return;
    }
    // User-mode Linux takes it for a native call, with the native numbers, and so does the filter there.
    let (without, _) = child("int80", None);
    if !without.success() {
        skip("kernel_kills_on_int80", &format!("IA32 emulation; found int 0x80 unfiltered: {without}"));
        return;
    }
    let (status, text) = child("int80", Some(filter()));
    assert_eq!(status.signal(), Some(libc::SIGSYS), "{status}: {text}");
}
