//! Programs that use the library in every state: with signals ignored, waits stolen, streams closed, and killed.
//!
//! Each is this test binary again, so that the state is its own.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]
#![allow(unsafe_code, reason = "brings a process of its own into unusual states")]

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio as HostStdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::acts::Act;
use common::acts::{raw_fork, say};
use common::{act, eventually, lives, said, sh, sleeper, text, unprotected};
use sandbox::{End, Resource, Stdio};

const ACTS: &[Act] = &[
    ("ignore_sigchld", |_| ignore_sigchld()),
    ("wait_thief", |_| wait_thief()),
    ("closed_streams", |_| closed_streams()),
    ("dirty", |_| dirty()),
    ("hold", |_| hold()),
    ("fork_and_drop", |_| fork_and_drop()),
    ("few_fds", |_| few_fds()),
    ("few_fds_in_an_instance", |_| few_fds_in_an_instance()),
    ("refill", |_| refill()),
    ("secret", |words| secret(words)),
    ("scan", |_| scan()),
    ("keyring", |_| keyring()),
    ("interrupted", |_| interrupted()),
    ("no_clone", |_| no_clone()),
    ("terminal", |_| terminal()),
    ("inject", |_| inject()),
];

#[test]
fn payload() {
    common::acts::run(ACTS);
}

/// Runs an act as a host program and checks that it went well.
fn host(act: &str) -> Vec<u8> {
    checked(unprotected(act))
}

fn checked(mut command: Command) -> Vec<u8> {
    let output = command.stdin(HostStdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    output.stdout
}

fn exit_codes_arrive(sandbox: &sandbox::Sandbox, times: i32) {
    for code in 0..times {
        let outcome = sh(sandbox, &format!("exit {code}")).outcome;
        assert_eq!((outcome.end, outcome.status.code()), (End::Exited, Some(code)));
        let outcome = sh(sandbox, "kill -TERM $$").outcome;
        assert_eq!(outcome.status.signal(), Some(libc::SIGTERM));
    }
}

#[test]
fn case_25_sigchld_may_be_ignored() {
    host("ignore_sigchld");
}

fn ignore_sigchld() {
    // SAFETY: a disposition of this process of our own.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    let sandbox = common::sandbox(|_| {});
    exit_codes_arrive(&sandbox, 20);
    let error = sandbox.command("/no/such").status().unwrap_err();
    assert_eq!(error.kind(), sandbox::ErrorKind::ProgramNotFound);
    let mut child = sleeper(&sandbox);
    assert!(child.kill(common::SOON).unwrap().stuck.is_empty());
    assert_eq!(child.wait().unwrap().end, End::Killed);
    drop(child);
    assert_eq!(sandbox.close(), []);
    common::nothing_is_left_of(std::process::id());
}

#[test]
fn case_26_waits_may_be_stolen() {
    host("wait_thief");
}

fn wait_thief() {
    static STOP: AtomicBool = AtomicBool::new(false);
    let thief = std::thread::spawn(|| {
        let mut stolen = 0;
        while !STOP.load(Ordering::Relaxed) {
            // SAFETY: no status is asked for.
            let waited = unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::__WALL) };
            if waited > 0 {
                stolen += 1;
            } else {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        stolen
    });
    let sandbox = common::sandbox(|_| {});
    exit_codes_arrive(&sandbox, 40);
    let mut child = sleeper(&sandbox);
    assert!(child.kill(common::SOON).unwrap().stuck.is_empty());
    assert_eq!(child.wait().unwrap().end, End::Killed);
    drop(child);
    assert_eq!(sandbox.close(), []);
    STOP.store(true, Ordering::Relaxed);
    say("stolen", thief.join().unwrap());
    common::nothing_is_left_of(std::process::id());
}

#[test]
fn case_22_streams_may_be_closed() {
    let scratch = common::Scratch::new("closed");
    let result = scratch.file("result", "", 0o666);
    let shell = format!("exec 0<&- 1>&- 2>&-; exec {} {} ", common::payload().display(), common::ARGS.join(" "));
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &shell]).env("SANDBOX_PAYLOAD", "closed_streams").env("RESULT", &result);
    command.output().unwrap();
    assert_eq!(fs::read_to_string(result).unwrap(), "out|err");
}

fn closed_streams() {
    // std opens /dev/null in their places; close those, too.
    for fd in 0..3 {
        // SAFETY: closes streams that nothing uses.
        unsafe { libc::close(fd) };
    }
    let sandbox = common::sandbox(|_| {});
    let output = sh(&sandbox, "printf out; printf err >&2; cat");
    let status = sandbox.command("/bin/sh").args(["-c", "echo lost; echo lost >&2; read x; exit 6"]).status().unwrap();
    assert_eq!(status.status.code(), Some(6));
    let both = [&output.stdout[..], b"|", &output.stderr].concat();
    fs::write(std::env::var("RESULT").unwrap(), both).unwrap();
}

#[test]
fn case_21_23_24_27_31_nothing_of_a_dirty_parent_is_inherited() {
    let mut command = unprotected("dirty");
    command
        .env("SECRET", "of-the-host")
        .env("LD_LIBRARY_PATH", "/tmp")
        .env("GCONV_PATH", "/tmp")
        .env("MALLOC_ARENA_MAX", "1");
    checked(command);
}

fn dirty() {
    use rustix::fs::Mode;
    // Descriptors that survive an exec, among them the root directory.
    let file = fs::File::open("/").unwrap();
    for number in (3..9).chain([700, 1000]) {
        // SAFETY: numbers below 20 may be in use by nobody but us in this process of one thread.
        unsafe { libc::dup2(file.as_raw_fd(), number) };
    }
    for signal in [libc::SIGPIPE, libc::SIGINT, libc::SIGHUP, libc::SIGUSR1, 40] {
        // SAFETY: dispositions of this process of our own.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    // SAFETY: zeroed is a signal set, filled by the next call.
    let mut all: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: a whole set.
    unsafe { libc::sigfillset(&raw mut all) };
    // SAFETY: reads a whole set.
    unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut()) };
    rustix::process::umask(Mode::empty());
    // SAFETY: numbers only; ours alone is made nicer.
    unsafe { libc::nice(5) };
    if common::is_root() {
        let mut sets = rustix::thread::capabilities(None).unwrap();
        sets.inheritable = sets.permitted;
        rustix::thread::set_capabilities(None, sets).unwrap();
        for capability in [rustix::thread::CapabilitySet::NET_RAW, rustix::thread::CapabilitySet::CHOWN] {
            rustix::thread::configure_capability_in_ambient_set(capability, true).unwrap();
        }
    }
    let sandbox = common::sandbox(|_| {});
    let fds = act(&sandbox, "fds").output().unwrap();
    assert_eq!(said(&fds.stdout, "fds"), "0,1,2");
    let status = text(&sh(&sandbox, "cat /proc/self/status"));
    for key in ["SigBlk", "SigIgn", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(common::field(&status, key), "0000000000000000", "{key}");
    }
    assert_eq!(common::field(&status, "Umask"), "0022");
    let env = text(&sh(&sandbox, "env; cat /proc/1/environ 2>/dev/null"));
    for word in ["SECRET", "LD_LIBRARY_PATH", "GCONV_PATH", "MALLOC", "CARGO"] {
        assert!(!env.contains(word), "{env}");
    }
    // The same in an instance, later.
    let instance = sandbox.start().unwrap();
    let fds = common::acting(instance.command("/payload"), "fds").output().unwrap();
    assert_eq!(said(&fds.stdout, "fds"), "0,1,2");
}

#[test]
fn only_named_descriptors_are_passed() {
    let scratch = common::Scratch::new("fd");
    let file = scratch.file("word", "word", 0o644);
    let sandbox = common::sandbox(|_| {});
    let mut command = act(&sandbox, "fds");
    command.fd(fs::File::open(&file).unwrap(), 5).fd(fs::File::open(&file).unwrap(), 9);
    assert_eq!(said(&command.output().unwrap().stdout, "fds"), "0,1,2,5,9");
    let mut command = sandbox.command("/bin/sh");
    command.args(["-c", "cat <&7"]).fd(fs::File::open(&file).unwrap(), 7);
    assert_eq!(text(&command.output().unwrap()), "word");
    let mut command = sandbox.command("true");
    command.fd(fs::File::open(&file).unwrap(), 2);
    assert_eq!(command.spawn().unwrap_err().kind(), sandbox::ErrorKind::Invalid);
}

/// Starts programs and waits to be killed.
fn hold() {
    let sandbox = common::sandbox(|_| {});
    let children: Vec<_> = (0..5).map(|_| sleeper(&sandbox)).collect();
    let instance = sandbox.start().unwrap();
    let mut background = instance.command("sleep");
    let inside = background.arg("1000").stdout(Stdio::null()).spawn().unwrap();
    std::mem::forget(sleeper(&sandbox));
    // A plain fork keeps copies of every descriptor of ours open.
    let copy = raw_fork();
    if copy == 0 {
        std::thread::sleep(Duration::from_secs(20));
        std::process::exit(0);
    }
    let ids: Vec<_> = children.iter().chain([&inside]).map(|child| child.id().unwrap().to_string()).collect();
    say("ids", ids.join(","));
    std::thread::sleep(Duration::from_secs(1000));
}

/// Starts `hold`, waits for its word, and kills it: the ids of its programs, and how it ended.
fn held_and_killed() -> (u32, Vec<u32>, ExitStatus) {
    let mut host = unprotected("hold").stdout(HostStdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(host.stdout.take().unwrap()).lines().map_while(Result::ok);
    let ids = lines.find_map(|line| Some(line.strip_prefix("ids ")?.to_owned())).unwrap();
    let ids: Vec<u32> = ids.split(',').map(|id| id.parse().unwrap()).collect();
    assert!(ids.iter().all(|id| lives(*id)), "{ids:?}");
    host.kill().unwrap();
    (host.id(), ids, host.wait().unwrap())
}

#[test]
fn case_80_a_killed_host_program_takes_everything_with_it() {
    let (pid, ids, status) = held_and_killed();
    assert_eq!(status.signal(), Some(libc::SIGKILL));
    let since = std::time::Instant::now();
    eventually("all programs are gone", || !ids.iter().any(|id| lives(*id)));
    let took = since.elapsed();
    assert!(common::is_guest() || took < Duration::from_secs(1), "{took:?}");
    // Its empty cgroups stay: nobody is left to remove them but us.
    eventually("its cgroups can be removed", || {
        common::cgroups_of(pid).iter().filter(|cgroup| fs::remove_dir(cgroup).is_err()).count() == 0
    });
}

#[test]
fn case_76_a_fork_that_drops_its_copies_ends_nothing() {
    host("fork_and_drop");
}

fn fork_and_drop() {
    let sandbox = common::sandbox(|_| {});
    let instance = sandbox.start().unwrap();
    let mut child = sleeper(&sandbox);
    let copy = raw_fork();
    if copy == 0 {
        let error = sandbox.command("true").status().unwrap_err();
        assert_eq!(error.kind(), sandbox::ErrorKind::Invalid, "{error}");
        drop((child, instance, sandbox));
        std::process::exit(0);
    }
    let mut status = 0;
    // SAFETY: waits for the child made above.
    unsafe { libc::waitpid(i32::try_from(copy).unwrap(), &raw mut status, 0) };
    assert_eq!(status, 0);
    assert!(child.try_wait().unwrap().is_none(), "still running");
    assert!(instance.command("true").status().unwrap().success());
    assert_eq!(child.kill(common::SOON).unwrap().stuck.len(), 0);
}

#[test]
fn too_few_descriptors_are_an_error_with_a_hint() {
    let said_by = host("few_fds");
    assert!(said(&said_by, "error").contains("RLIMIT_NOFILE"), "{}", String::from_utf8_lossy(&said_by));
}

fn few_fds() {
    let sandbox = common::sandbox(|_| {});
    assert!(sandbox.command("/bin/true").status().unwrap().success());
    let open = fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    let hard = sandbox::rlimit::get(Resource::Nofile).hard;
    let limits = |soft| rustix::process::setrlimit(rustix::process::Resource::Nofile, soft).unwrap();
    let mut seen = 0;
    for room in 0..40 {
        let (current, maximum) = (Some(open + room), hard.value());
        limits(rustix::process::Rlimit { current, maximum });
        match sandbox.command("/bin/true").status() {
            Ok(outcome) => assert!(outcome.success()),
            Err(error) => {
                // newuidmap, where it is needed, has no room either, and says it in its own words.
                let by_helper = error.errno().is_none() && !common::is_root();
                assert!(error.errno() == Some(libc::EMFILE) || by_helper, "with room for {room}: {error}");
                assert!(error.hint().is_some_and(|hint| hint.contains("RLIMIT_NOFILE")) || by_helper, "{error}");
                seen += 1;
                say("error", &error);
            }
        }
    }
    assert!(seen > 0, "no start failed");
    limits(rustix::process::Rlimit { current: hard.value(), maximum: hard.value() });
    assert!(sandbox.command("/bin/true").status().unwrap().success(), "and all is well afterwards");
    assert_eq!(sandbox.close(), []);
    common::nothing_is_left_of(std::process::id());
}

#[test]
fn a_program_whose_descriptor_has_no_room_is_an_error_and_its_instance_goes_on() {
    let said_by = host("few_fds_in_an_instance");
    assert!(said(&said_by, "error").contains("RLIMIT_NOFILE"), "{}", String::from_utf8_lossy(&said_by));
}

fn few_fds_in_an_instance() {
    let sandbox = common::sandbox(|b| _ = b.prepared(0));
    let instance = sandbox.start().unwrap();
    let start = || instance.command("sleep").arg("1000").stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let mut witness = start().unwrap();
    let next = u64::try_from(fs::File::open("/dev/null").unwrap().as_raw_fd()).unwrap();
    let maximum = sandbox::rlimit::get(Resource::Nofile).hard.value();
    let limit = |current| {
        rustix::process::setrlimit(rustix::process::Resource::Nofile, rustix::process::Rlimit { current, maximum })
            .unwrap();
    };
    for room in 0..3 {
        limit(Some(next + room));
        let started = start();
        limit(maximum);
        match started {
            Ok(mut child) => assert!(child.kill(common::SOON).unwrap().stuck.is_empty()),
            Err(error) => {
                assert_eq!(error.errno(), Some(libc::EMFILE), "with room for {room}: {error}");
                say("error", &error);
            }
        }
        assert!(witness.try_wait().unwrap().is_none(), "with room for {room}");
        if instance.pids().is_ok() {
            eventually("what was not told of is killed", || instance.pids().unwrap() == [witness.id().unwrap()]);
        }
    }
    assert!(instance.command("true").status().unwrap().success());
}

/// A pool that is never full for long.
fn refill() {
    let sandbox = common::sandbox(|b| _ = b.prepared(8));
    say("filling", 8);
    loop {
        let _ = sandbox.command("/bin/true").status();
    }
}

/// Processes of a group, ended ones that nobody has reaped left out.
fn group_members(group: u32) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((head, tail)) = stat.rsplit_once(") ") else { continue };
        let mut fields = tail.split(' ');
        let state = fields.next().unwrap();
        if fields.nth(1) == Some(&group.to_string()) && !["Z", "X"].contains(&state) {
            found.push(format!("{head}) {state}"));
        }
    }
    found
}

#[test]
fn a_host_program_killed_while_it_fills_a_pool_leaves_what_recover_takes() {
    use std::os::unix::process::CommandExt;
    require!(
        "a_host_program_killed_while_it_fills_a_pool_leaves_what_recover_takes",
        common::survives_refused_forks(),
        "a kernel that survives failing forks",
        "User-Mode Linux 6.12"
    );
    let mut late = Vec::new();
    let rounds = if common::is_guest() { 4 } else { 30 };
    for round in 0..rounds {
        // A process group of its own, by which everything that it started is found.
        let mut host = unprotected("refill").stdout(HostStdio::piped()).process_group(0).spawn().unwrap();
        let mut lines = BufReader::new(host.stdout.take().unwrap()).lines().map_while(Result::ok);
        assert!(lines.any(|line| line.starts_with("filling")));
        // Steps that are prime to each other: over the rounds they fall everywhere into the first fill and the refills.
        std::thread::sleep(Duration::from_micros(round * 7919 % 60_000));
        host.kill().unwrap();
        host.wait().unwrap();
        let since = std::time::Instant::now();
        eventually("all its processes are gone", || group_members(host.id()).is_empty());
        if since.elapsed() > Duration::from_secs(1) {
            late.push(since.elapsed());
        }
        sandbox::recover(None).unwrap();
        common::nothing_is_left_of(host.id());
    }
    // A busy machine may be late now and then.
    assert!(common::is_guest() || late.len() < 3, "{late:?}");
}

const CANARY: [&str; 2] = ["heap-canary-of", "-the-host-program"];

#[test]
fn case_33_init_holds_nothing_of_the_host_program_and_cannot_be_looked_into() {
    host("secret");
}

/// Has a secret, and lets a program look for it.
fn secret(_: &[&str]) {
    let canary = CANARY.concat();
    std::hint::black_box(&canary);
    let sandbox = common::sandbox(|_| {});
    let output = act(&sandbox, "scan").output().unwrap();
    assert!(output.outcome.success(), "{output:?}");
    let answers = String::from_utf8_lossy(&output.stdout).into_owned();
    for key in ["mem", "exe", "environ", "fd", "maps", "root"] {
        let answer = said(&output.stdout, key);
        assert!(answer == libc::EACCES.to_string() || answer == libc::ENOENT.to_string(), "{key}: {answers}");
    }
    for key in ["ptrace", "process_vm_readv", "pidfd_getfd", "kcmp"] {
        let answer = said(&output.stdout, key);
        assert!([libc::ENOSYS, libc::EPERM].iter().any(|errno| answer == (-errno).to_string()), "{key}: {answers}");
    }
    assert_eq!(said(&output.stdout, "canary"), "0");
    drop(canary);
}

/// Tries every way into PID 1, and looks for the canary in all memory that it can read.
fn scan() {
    let number = |result: std::io::Result<()>| result.map_or_else(|error| error.raw_os_error().unwrap_or(-1), |()| 0);
    for file in ["mem", "environ", "maps"] {
        let read = || {
            let mut byte = [0; 1];
            std::io::Read::read(&mut fs::File::open(format!("/proc/1/{file}"))?, &mut byte).map(drop)
        };
        say(file, number(read()));
    }
    say("exe", number(fs::OpenOptions::new().write(true).open("/proc/1/exe").map(drop)));
    say("fd", number(fs::read_dir("/proc/1/fd").map(drop)));
    say("root", number(fs::read_dir("/proc/1/root/").map(drop)));
    for (name, numbers) in [
        ("ptrace", [libc::SYS_ptrace, 16, 1, 0, 0, 0, 0]),
        ("process_vm_readv", [libc::SYS_process_vm_readv, 1, 0, 0, 0, 0, 0]),
        ("pidfd_getfd", [libc::SYS_pidfd_getfd, 0, 3, 0, 0, 0, 0]),
        ("kcmp", [libc::SYS_kcmp, 1, 1, 0, 0, 0, 0]),
    ] {
        say(name, common::acts::answer(numbers));
    }
    let mut found = 0;
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let of_us = entry.file_name().to_string_lossy() == std::process::id().to_string();
        let Ok(maps) = fs::read_to_string(entry.path().join("maps")) else { continue };
        let Ok(memory) = fs::File::open(entry.path().join("mem")) else { continue };
        for line in maps.lines().filter(|line| line.contains("rw-p") && !of_us) {
            let Some((from, to)) = line.split(' ').next().and_then(|range| range.split_once('-')) else { continue };
            let (from, to) = (u64::from_str_radix(from, 16).unwrap(), u64::from_str_radix(to, 16).unwrap());
            let mut bytes = vec![0; usize::try_from(to - from).unwrap()];
            let Ok(read) = std::os::unix::fs::FileExt::read_at(&memory, &mut bytes, from) else { continue };
            let canary = CANARY.concat();
            found += bytes[..read].windows(canary.len()).filter(|window| *window == canary.as_bytes()).count();
        }
    }
    say("canary", found);
}

#[test]
fn case_32_a_key_of_the_callers_is_out_of_reach() {
    let output = unprotected("keyring").output().unwrap();
    let found = String::from_utf8_lossy(&output.stdout).into_owned();
    require!("case_32_a_key_of_the_callers_is_out_of_reach", !found.contains("no_keys"), "keyrings", found.trim());
    assert!(output.status.success(), "{output:?}");
}

fn keyring() {
    // SAFETY: joins a new session keyring; the name is null.
    let joined = unsafe { libc::syscall(libc::SYS_keyctl, 1, 0) };
    // SAFETY: strings are NUL-terminated, five bytes are read.
    let key = unsafe {
        libc::syscall(libc::SYS_add_key, c"user".as_ptr(), c"sandbox-test".as_ptr(), c"canary".as_ptr(), 5, -3)
    };
    if joined < 0 || key < 0 {
        say("no_keys", std::io::Error::last_os_error());
        std::process::exit(1);
    }
    let listed = fs::read_to_string("/proc/keys").unwrap_or_default();
    assert!(listed.contains("sandbox-test"), "an ordinary program sees it: {listed}");
    let sandbox = common::sandbox(|_| {});
    let said_by = act(&sandbox, &format!("call read {} 11 {key} 0 0", libc::SYS_keyctl)).output().unwrap();
    assert_eq!(said(&said_by.stdout, "read"), (-libc::ENOSYS).to_string());
    let inside = text(&sh(&sandbox, "cat /proc/keys 2>/dev/null; exit 0"));
    assert!(!inside.contains("sandbox-test"), "{inside}");
}

#[test]
fn interrupted_calls_are_taken_up_again() {
    host("interrupted");
}

/// A timer interrupts every call each millisecond, and restarts none.
fn interrupted() {
    extern "C" fn nothing(_: i32) {}
    // SAFETY: zeroed is an empty mask and no flags: no SA_RESTART.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = nothing as extern "C" fn(i32) as usize;
    // SAFETY: a whole action; the handler does nothing.
    unsafe { libc::sigaction(libc::SIGALRM, &raw const action, std::ptr::null_mut()) };
    let time = libc::timeval { tv_sec: 0, tv_usec: 1000 };
    let timer = libc::itimerval { it_interval: time, it_value: time };
    // SAFETY: a whole timer value.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) };
    let sandbox = common::sandbox(|b| _ = b.wall_time_max(Duration::from_secs(60)));
    exit_codes_arrive(&sandbox, 10);
    let output = sh(&sandbox, "head -c 200000 /dev/zero; exit 3");
    assert_eq!((output.stdout.len(), output.outcome.status.code()), (200_000, Some(3)));
    assert_eq!(sandbox.close(), []);
}

#[test]
fn case_81_96_a_host_that_may_not_clone_gets_an_error_and_nobody_is_hit() {
    let mut canary = Command::new("sleep").arg("1000").spawn().unwrap();
    let said_by = host("no_clone");
    assert!(said(&said_by, "error").contains("clone"), "{}", String::from_utf8_lossy(&said_by));
    assert!(canary.try_wait().unwrap().is_none(), "the canary lives");
    canary.kill().unwrap();
    canary.wait().unwrap();
}

/// clone3 and clone fail here with EAGAIN, by a filter of our own.
fn no_clone() {
    // Threads of a pool would go on without the filter.
    let sandbox = common::sandbox(|b| _ = b.prepared(0));
    assert!(sandbox.command("/bin/true").status().unwrap().success());
    common::eventually("it is taken down", || common::children().is_empty());
    let number = |call: libc::c_long| u32::try_from(call).unwrap();
    let jump = |k, jt| libc::sock_filter { code: 0x15, jt, jf: 0, k };
    let program = [
        libc::sock_filter { code: 0x20, jt: 0, jf: 0, k: 0 },
        jump(number(libc::SYS_clone3), 2),
        jump(number(libc::SYS_clone), 1),
        libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW },
        libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: libc::SECCOMP_RET_ERRNO | 11 },
    ];
    let filter = libc::sock_fprog { len: 5, filter: program.as_ptr().cast_mut() };
    // SAFETY: numbers only.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    // SAFETY: five instructions; on this thread alone, which is the one that starts.
    assert_eq!(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const filter) }, 0);
    let error = sandbox.command("/bin/true").status().unwrap_err();
    assert_eq!(error.errno(), Some(libc::EAGAIN), "{error}");
    say("error", &error);
    let error = sandbox.command("/bin/true").spawn().unwrap_err();
    assert_eq!(error.errno(), Some(libc::EAGAIN), "{error}");
    assert_eq!(sandbox.close(), []);
    common::nothing_is_left_of(std::process::id());
}

#[test]
fn case_29_30_nothing_is_typed_into_the_callers_terminal() {
    let said_by = host("terminal");
    for key in ["TIOCSTI", "TIOCSTI_high", "TIOCLINUX"] {
        let answer = said(&said_by, key);
        assert!([libc::EPERM, libc::ENOTTY].iter().any(|errno| answer == (-errno).to_string()), "{key}: {answer}");
    }
    assert_eq!(said(&said_by, "typed"), "0", "nothing arrived");
}

/// Has a terminal of its own, and gives it to a program as its standard input.
fn terminal() {
    use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
    let main = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&main).unwrap();
    unlockpt(&main).unwrap();
    let _ = rustix::process::setsid();
    // The end of a session's leader is told to itself, too.
    // SAFETY: a disposition of this process of our own.
    unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
    let peer = ioctl_tiocgptpeer(&main, OpenptFlags::RDWR | OpenptFlags::CLOEXEC).unwrap();
    rustix::process::ioctl_tiocsctty(&peer).unwrap();
    let sandbox = common::sandbox(|_| {});
    let mut command = act(&sandbox, "inject");
    let copy = rustix::io::fcntl_dupfd_cloexec(&peer, 3).unwrap();
    let output = command.stdin(copy).output().unwrap();
    assert!(output.outcome.success(), "{output:?}");
    print!("{}", String::from_utf8_lossy(&output.stdout));
    let waiting = rustix::io::ioctl_fionread(&peer).unwrap();
    say("typed", waiting);
}

/// A NUL byte, by each way.
fn inject() {
    let byte = [0u8; 2];
    let at = i64::try_from(byte.as_ptr() as usize).unwrap();
    for (name, command) in [("TIOCSTI", 0x5412), ("TIOCSTI_high", 0x5412 | 1 << 32), ("TIOCLINUX", 0x541c)] {
        say(name, common::acts::answer([libc::SYS_ioctl, 0, command, at, 0, 0, 0]));
    }
}
