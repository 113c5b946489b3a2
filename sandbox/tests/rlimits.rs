//! Each resource limit that Linux enforces, crossed inside a sandbox, and stayed just below; and who gets which limits.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use std::fs;
use std::io::Write as _;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Scratch, act, acts, ask, has_lease, is_root, sh, text};
use sandbox::{Builder, End, Error, ErrorKind, Feature, Instance, Limit, LimitKind, Outcome, Resource, Sandbox};

#[test]
fn payload() {
    acts::run(&[
        ("files", files),
        ("write", write),
        ("map", map),
        ("lock", lock),
        ("queues", queues),
        ("signals", signals),
        ("scheduler", scheduler),
        ("deep", deep),
    ]);
}

/// `files N`: opens so many, and says how many are open then, and why no more.
fn files(words: &[&str]) {
    let most: usize = words[0].parse().unwrap();
    let own = (0..most).filter(|fd| Path::new(&format!("/proc/self/fd/{fd}")).exists()).count();
    let mut kept = Vec::new();
    let mut answer = 0;
    while own + kept.len() < most && answer == 0 {
        match fs::File::open("/dev/null") {
            Ok(file) => kept.push(file),
            Err(error) => answer = error.raw_os_error().unwrap_or(-1),
        }
    }
    acts::say("files", format!("{} {answer}", own + kept.len()));
}

/// `write BYTES`: into a new file, until it is done or fails.
fn write(words: &[&str]) {
    let mut file = fs::File::create("/tmp/written").unwrap();
    let written = file.write_all(&vec![1; words[0].parse().unwrap()]);
    let answer = written.err().map_or(0, |error| error.raw_os_error().unwrap_or(-1));
    acts::say("write", format!("{} {answer}", file.metadata().unwrap().len()));
}

/// Private memory that nobody has touched; negative for an errno.
fn mapped(bytes: i64) -> i64 {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    acts::answer([libc::SYS_mmap, 0, bytes, (libc::PROT_READ | libc::PROT_WRITE).into(), flags.into(), -1, 0])
}

/// `map MIB`: says 0 or the errno.
fn map(words: &[&str]) {
    let mebibytes: i64 = words[0].parse().unwrap();
    acts::say("map", mapped(mebibytes << 20).min(0));
}

/// `lock BYTES`: mlock(2).
fn lock(words: &[&str]) {
    let bytes = words[0].parse().unwrap();
    let place = mapped(bytes);
    assert!(place > 0, "{place}");
    acts::say("lock", acts::answer([libc::SYS_mlock, place, bytes, 0, 0, 0, 0]));
}

fn address<T>(of: &T) -> i64 {
    i64::try_from(std::ptr::from_ref(of).addr()).unwrap()
}

/// `queues N`: message queues of the default size.
fn queues(words: &[&str]) {
    let how = i64::from(libc::O_CREAT | libc::O_EXCL | libc::O_RDWR);
    for number in 0..words[0].parse().unwrap() {
        let name = [b'q', b'0' + number, 0];
        let answer = acts::answer([libc::SYS_mq_open, address(&name), how, 0o600, 0, 0, 0]);
        if answer < 0 {
            return acts::say("queues", format!("{number} {answer}"));
        }
    }
    acts::say("queues", format!("{} 0", words[0]));
}

/// `signals N`: queued to this thread, which does not take them.
fn signals(words: &[&str]) {
    const SIGNAL: i32 = 40;
    let set = 1u64 << (SIGNAL - 1);
    let size = i64::try_from(size_of_val(&set)).unwrap();
    let how = libc::SIG_BLOCK.into();
    assert_eq!(acts::answer([libc::SYS_rt_sigprocmask, how, address(&set), 0, size, 0, 0]), 0);
    // A siginfo_t: number, errno, code.
    let mut information = [0i32; 32];
    (information[0], information[2]) = (SIGNAL, libc::SI_QUEUE);
    let [process, thread] = [libc::SYS_getpid, libc::SYS_gettid].map(|call| acts::answer([call, 0, 0, 0, 0, 0, 0]));
    let queue = [libc::SYS_rt_tgsigqueueinfo, process, thread, SIGNAL.into(), address(&information), 0, 0];
    let answers: Vec<i64> = (0..words[0].parse().unwrap()).map(|_: u32| acts::answer(queue)).collect();
    acts::say("signals", format!("{answers:?}"));
}

/// `scheduler PRIORITY MS`: asks for SCHED_FIFO, says the answer, and is busy for a while when it was given.
fn scheduler(words: &[&str]) {
    let priority: i32 = words[0].parse().unwrap();
    let fifo = i64::from(libc::SCHED_FIFO);
    let answer = acts::answer([libc::SYS_sched_setscheduler, 0, fifo, address(&priority), 0, 0, 0]);
    acts::say("scheduler", answer);
    let end = std::time::Instant::now() + std::time::Duration::from_millis(words[1].parse().unwrap());
    while answer == 0 && std::time::Instant::now() < end {
        std::hint::black_box(0);
    }
}

/// `deep BYTES`: touches the main thread's stack so far from its beginning.
#[allow(unsafe_code, reason = "the kernel answers no call with what it does to a program that goes too deep")]
fn deep(words: &[&str]) {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let range = maps.lines().find(|line| line.ends_with("[stack]")).unwrap().split(' ').next().unwrap();
    let end = usize::from_str_radix(range.split_once('-').unwrap().1, 16).unwrap();
    let place = std::ptr::with_exposed_provenance::<u8>(end - words[0].parse::<usize>().unwrap());
    // SAFETY: reads a byte of the stack's own address range, which the kernel makes at that moment, or ends the process.
    acts::say("deep", unsafe { place.read_volatile() });
}

const MIB: u64 = 1 << 20;

fn both(builder: &mut Builder, resource: Resource, value: u64) {
    builder.rlimit(resource, Limit::Value(value), Limit::Value(value));
}

fn limited(resource: Resource, value: u64) -> Sandbox {
    common::sandbox(|b| both(b, resource, value))
}

/// The program's own limits, as the kernel prints them.
const LIMITS: &str = "cat /proc/self/limits";

/// Soft and hard limit of one resource.
fn row(table: &str, resource: Resource) -> (String, String) {
    let name = format!("Max {}", resource.proc_name());
    let line = table.lines().find_map(|line| line.strip_prefix(&name)?.strip_prefix(' '));
    let mut words = line.unwrap_or_else(|| panic!("no {name} in:\n{table}")).split_whitespace().map(str::to_owned);
    (words.next().unwrap(), words.next().unwrap())
}

fn pair(soft: &str, hard: &str) -> (String, String) {
    (soft.to_owned(), hard.to_owned())
}

fn ended_by(outcome: &Outcome, signal: i32) {
    assert_eq!((outcome.end, outcome.status.signal()), (End::Signaled, Some(signal)), "{outcome:#?}");
}

#[test]
fn nofile() {
    let sandbox = limited(Resource::Nofile, 20);
    assert_eq!(ask(&sandbox, "files 20", "files"), "20 0");
    assert_eq!(ask(&sandbox, "files 21", "files"), format!("20 {}", libc::EMFILE));
    assert_eq!(ask(&common::sandbox(|_| {}), "files 1025", "files"), format!("1024 {}", libc::EMFILE), "by default");
}

#[test]
fn nproc() {
    let sandbox = limited(Resource::Nproc, 8);
    require!("nproc", has_lease(&sandbox), "ids of the sandbox's own", "an id that others share");
    assert_eq!(ask(&sandbox, "fork 8", "forked"), "8 0");
    assert_eq!(ask(&sandbox, "fork 9", "forked"), format!("8 {}", libc::EAGAIN));
    let output = act(&sandbox, "threads 9").output().unwrap();
    assert_eq!(common::said(&output.stdout, "threads"), format!("8 {}", libc::EAGAIN));
    assert!(output.outcome.limits_hit.is_empty(), "nobody but the program knows: {:?}", output.outcome.limits_hit);
}

#[test]
fn each_instance_has_its_own_count_of_processes() {
    let sandbox = limited(Resource::Nproc, 8);
    require!(
        "each_instance_has_its_own_count_of_processes",
        has_lease(&sandbox),
        "ids of the sandbox's own",
        "an id that others share"
    );
    let other = act(&sandbox, "fork 8").stdout(sandbox::Stdio::piped()).spawn().unwrap();
    assert_eq!(ask(&sandbox, "fork 8", "forked"), "8 0");
    drop(other);
}

#[test]
fn nproc_of_a_shared_id_is_warned_of() {
    let name = "nproc_of_a_shared_id_is_warned_of";
    let warned =
        |sandbox: &Sandbox| sandbox.plan().warnings().iter().any(|warning| warning.contains("nproc counts all"));
    if is_root() {
        // Root always has ids of its own; somebody else is asked below.
        assert!(!warned(&limited(Resource::Nproc, 400)));
        let mut again = Command::new(common::payload());
        again.args(["--exact", name, "--test-threads=1", "--nocapture"]).current_dir("/").uid(65_534).gid(65_534);
        let output = again.output();
        let ran =
            output.as_ref().is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("running 1 test"));
        require!(
            "nproc_of_a_shared_id_is_warned_of",
            ran,
            "a test program that others may execute",
            format!("{output:?}")
        );
        let output = output.unwrap();
        assert!(output.status.success(), "{output:?}");
        std::io::stderr().write_all(&output.stderr).unwrap();
        return;
    }
    let shared = common::build(|b| {
        both(b, Resource::Nproc, 400);
        b.off(Feature::IdLease);
    });
    require!(
        "nproc_of_a_shared_id_is_warned_of",
        shared.is_ok(),
        "a sandbox of an ordinary user",
        format!("{shared:?}")
    );
    let shared = shared.unwrap();
    assert!(warned(&shared), "{:?}", shared.plan().warnings());
    assert!(shared.plan().to_string().contains("warning: nproc counts all"), "{}", shared.plan());
    assert!(!warned(&common::sandbox(|b| _ = b.off(Feature::IdLease))), "only where it is set");
}

#[test]
fn fsize() {
    let sandbox = limited(Resource::Fsize, 4096);
    assert_eq!(ask(&sandbox, "write 4096", "write"), "4096 0");
    let outcome = act(&sandbox, "write 4097").output().unwrap().outcome;
    ended_by(&outcome, libc::SIGXFSZ);
    assert_eq!(outcome.hit(LimitKind::FileSize), Some(1), "{outcome:#?}");
    let ignored = format!("trap '' XFSZ; {}", common::act_by_shell("write 4097"));
    let output = sh(&sandbox, &ignored);
    assert_eq!(common::said(&output.stdout, "write"), format!("4096 {}", libc::EFBIG));
    assert_eq!(output.outcome.hit(LimitKind::FileSize), None, "{:#?}", output.outcome);
}

#[test]
fn cpu() {
    let sandbox = common::sandbox(|b| _ = b.rlimit(Resource::Cpu, Limit::Value(1), Limit::Value(20)));
    let outcome = act(&sandbox, "spin 300").output().unwrap().outcome;
    assert!(outcome.success() && outcome.limits_hit.is_empty(), "{outcome:#?}");
    let outcome = act(&sandbox, "spin 100000").output().unwrap().outcome;
    assert_eq!((outcome.end, outcome.status.signal()), (End::CpuTime, Some(libc::SIGXCPU)), "{outcome:#?}");
    assert_eq!(outcome.hit(LimitKind::CpuTime), Some(1), "{outcome:#?}");
    // The kernel looks at the hard limit first.
    let outcome = act(&limited(Resource::Cpu, 1), "spin 100000").output().unwrap().outcome;
    assert_eq!(outcome.status.signal(), Some(libc::SIGKILL), "{outcome:#?}");
}

#[test]
fn address_space_and_data() {
    for resource in [Resource::As, Resource::Data] {
        let sandbox = limited(resource, 1024 * MIB);
        assert_eq!(ask(&sandbox, "map 800", "map"), "0", "{resource}");
        assert_eq!(ask(&sandbox, "map 1024", "map"), (-libc::ENOMEM).to_string(), "{resource}");
    }
}

#[test]
fn stack() {
    let sandbox = limited(Resource::Stack, MIB);
    assert_eq!(ask(&sandbox, "deep 1048576", "deep"), "0");
    ended_by(&act(&sandbox, "deep 1048577").output().unwrap().outcome, libc::SIGSEGV);
    // A quarter of it is what arguments and environment may have.
    let word = "x".repeat(100_000);
    assert!(sandbox.command("/bin/true").args([&word; 2]).status().unwrap().success());
    let error = sandbox.command("/bin/true").args([&word; 3]).status().unwrap_err();
    assert_eq!((error.kind(), error.errno()), (ErrorKind::ArgumentsTooLong, Some(libc::E2BIG)), "{error}");
}

#[test]
fn core() {
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    require!("core", !pattern.starts_with(['|', '/']), "core dumps written to the working directory", pattern);
    let dumped = |sandbox: &Sandbox| {
        let mut command = sandbox.command("/bin/sh");
        let outcome = command.args(["-c", "kill -ABRT $$"]).current_dir("/tmp").output().unwrap().outcome;
        ended_by(&outcome, libc::SIGABRT);
        outcome.status.core_dumped()
    };
    assert!(!dumped(&common::sandbox(|_| {})), "0 is the default");
    let sandbox = sandbox_or_skip!("core", "a hard limit for core dumps", |b| both(b, Resource::Core, 100 * MIB));
    assert!(dumped(&sandbox));
}

#[test]
fn memlock() {
    let sandbox = limited(Resource::Memlock, 64 << 10);
    assert_eq!(ask(&sandbox, "lock 65536", "lock"), "0");
    assert_eq!(ask(&sandbox, "lock 65537", "lock"), (-libc::ENOMEM).to_string());
    assert_eq!(ask(&limited(Resource::Memlock, 0), "lock 1", "lock"), (-libc::EPERM).to_string());
    assert_eq!(ask(&common::sandbox(|_| {}), "lock 65537", "lock"), (-libc::ENOMEM).to_string(), "by default");
}

#[test]
fn msgqueue() {
    let known = fs::read_to_string("/proc/filesystems").unwrap().contains("mqueue");
    require!("msgqueue", known, "a kernel with POSIX message queues", "none");
    // A queue of the default size is charged a little more than 80 KiB.
    let sandbox = limited(Resource::Msgqueue, 100_000);
    assert_eq!(ask(&sandbox, "queues 1", "queues"), "1 0");
    assert_eq!(ask(&sandbox, "queues 2", "queues"), format!("1 {}", -libc::EMFILE));
}

#[test]
fn sigpending() {
    let sandbox = limited(Resource::Sigpending, 2);
    require!("sigpending", has_lease(&sandbox), "ids of the sandbox's own", "an id that others share");
    assert_eq!(ask(&sandbox, "signals 2", "signals"), "[0, 0]");
    assert_eq!(ask(&sandbox, "signals 3", "signals"), format!("[0, 0, {}]", -libc::EAGAIN));
}

#[test]
fn nice() {
    let to = |nice: i32| format!("call nice {} 0 0 {nice}", libc::SYS_setpriority);
    let refused = (-libc::EACCES).to_string();
    assert_eq!(ask(&limited(Resource::Nice, 0), &to(-1), "nice"), refused);
    let sandbox = sandbox_or_skip!("nice", "a hard limit of 21 for nice", |b| both(b, Resource::Nice, 21));
    assert_eq!(ask(&sandbox, &to(-1), "nice"), "0");
    assert_eq!(ask(&sandbox, &to(-2), "nice"), refused);
}

#[test]
fn real_time_priority_and_time() {
    let refused = (-libc::EPERM).to_string();
    assert_eq!(ask(&limited(Resource::Rtprio, 0), "scheduler 1 0", "scheduler"), refused);
    let sandbox = sandbox_or_skip!("real_time_priority_and_time", "a hard limit of 2 for rtprio", |b| {
        both(b, Resource::Rtprio, 2);
        b.rlimit(Resource::Rttime, Limit::Value(200_000), Limit::Value(20_000_000));
    });
    assert_eq!(ask(&sandbox, "scheduler 3 0", "scheduler"), refused);
    let given = ask(&sandbox, "scheduler 2 20", "scheduler");
    require!("real_time_priority_and_time", given == "0", "real-time scheduling in a cgroup", given);
    let outcome = act(&sandbox, "scheduler 2 60000").output().unwrap().outcome;
    assert_eq!((outcome.end, outcome.status.signal()), (End::CpuTime, Some(libc::SIGXCPU)), "{outcome:#?}");
}

#[test]
fn resident_set_and_locks_are_limits_in_name_only() {
    let sandbox = common::sandbox(|b| [Resource::Rss, Resource::Locks].into_iter().for_each(|r| both(b, r, 0)));
    assert_eq!(ask(&sandbox, "memory 8", "touched"), "8");
    let shared = libc::LOCK_SH | libc::LOCK_NB;
    // The filter lets nobody lock who may lock what others have open.
    require!("resident_set_and_locks_are_limits_in_name_only", has_lease(&sandbox), "ids of its own", "a shared id");
    assert_eq!(ask(&sandbox, &format!("call flock {} 0 {shared}", libc::SYS_flock), "flock"), "0");
}

#[test]
fn programs_entered_later_have_the_same_limits() {
    let sandbox = common::sandbox(|b| {
        for resource in Resource::ALL {
            let hard = rlimit_of_this_process(resource);
            let soft = hard.value().map_or(Limit::Value(1 << 30), |value| Limit::Value(value / 2));
            b.rlimit(resource, soft, hard);
        }
    });
    let show = |instance: &Instance| text(&instance.command("/bin/sh").args(["-c", LIMITS]).output().unwrap());
    let instance = sandbox.start().unwrap();
    let first = show(&instance);
    let mut lower = instance.command("/bin/sh");
    lower.args(["-c", LIMITS]).rlimit(Resource::Nofile, Limit::Value(7), Limit::Value(9));
    assert_eq!(row(&text(&lower.output().unwrap()), Resource::Nofile), pair("7", "9"));
    assert_eq!(show(&instance), first, "what one program got is its own");
    assert_eq!(text(&sh(&sandbox, LIMITS)), first, "and a fresh instance is the same");
    for resource in Resource::ALL {
        let hard = rlimit_of_this_process(resource);
        let soft = hard.value().map_or(1 << 30, |value| value / 2);
        assert_eq!(row(&first, resource), (soft.to_string(), hard.to_string()), "{resource}");
    }
}

fn rlimit_of_this_process(resource: Resource) -> Limit {
    sandbox::rlimit::get(resource).hard
}

#[test]
fn a_command_lowers_only() {
    let sandbox = limited(Resource::Nofile, 64);
    let with = |soft, hard| {
        let mut command = sandbox.command("/bin/sh");
        command.args(["-c", LIMITS]).rlimit(Resource::Nofile, Limit::Value(soft), Limit::Value(hard));
        command.output().map(|output| row(&text(&output), Resource::Nofile))
    };
    assert_eq!(with(10, 64).unwrap(), pair("10", "64"));
    assert_eq!(with(10, 20).unwrap(), pair("10", "20"));
    let error = with(10, 65).unwrap_err();
    assert!(error.to_string().contains("nofile"), "{error}");
    assert!(with(21, 20).is_err(), "soft above hard");
}

/// Set in a process whose `/etc/security` is a directory of the test's.
const OWN_SECURITY: &str = "SANDBOX_TEST_SECURITY";

/// Runs the test `name` again with an `/etc/security` of its own, in a mount namespace of its own. In that run: the directory.
fn own_security(name: &'static str) -> Option<PathBuf> {
    if let Some(directory) = std::env::var_os(OWN_SECURITY) {
        return Some(directory.into());
    }
    let fit = is_root() && Path::new("/etc/security").is_dir();
    let unshare = || Command::new("unshare").args(["--mount", "true"]).status().is_ok_and(|status| status.success());
    if !fit || !unshare() {
        common::skip(name, "root, /etc/security and unshare(1)", "not all of them");
        return None;
    }
    let scratch = Scratch::new(name);
    let security = scratch.dir("security", 0o755);
    scratch.dir("security/limits.d", 0o755);
    scratch.file("security/limits.conf", "", 0o644);
    let script = "mount --bind \"$1\" /etc/security && exec \"$2\" --exact \"$3\" --test-threads=1 --nocapture";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(&security).arg(common::payload()).arg(name);
    let output = command.env(OWN_SECURITY, &security).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "{output:?}");
    // What that run has skipped is this run's to tell.
    std::io::stderr().write_all(&output.stderr).unwrap();
    None
}

/// A user that every host has; Debian's pam_limits lets only its own name speak for it.
const USER: &str = "root";

fn conf_sandbox(change: impl FnOnce(&mut Builder)) -> Sandbox {
    common::sandbox(|b| {
        b.limits_conf(USER);
        change(b);
    })
}

#[test]
fn limits_conf_is_looked_at_for_each_program() {
    let Some(security) = own_security("limits_conf_is_looked_at_for_each_program") else { return };
    let conf = |text: &str| fs::write(security.join("limits.conf"), text).unwrap();
    let nofile = |output: &sandbox::Output| row(&text(output), Resource::Nofile);
    let sandbox = conf_sandbox(|b| both(b, Resource::Msgqueue, 1000));
    let instance = sandbox.start().unwrap();
    let entered = || instance.command("/bin/sh").args(["-c", LIMITS]).output().unwrap();
    assert_eq!(nofile(&sh(&sandbox, LIMITS)), pair("1024", "1024"), "the default, as the files say nothing");

    conf("root soft nofile 111\nroot hard nofile 222\nroot - msgqueue 5\n");
    let output = sh(&sandbox, LIMITS);
    assert_eq!(nofile(&output), pair("111", "222"));
    assert_eq!(row(&text(&output), Resource::Msgqueue), pair("1000", "1000"), "what is named stands above the files");
    let report = output.outcome.enforced(Feature::Rlimit(Resource::Nofile)).unwrap();
    assert!(report.by.as_ref().is_some_and(|by| by.contains("limits.conf:1")), "{report}");
    assert_eq!(nofile(&entered()), pair("111", "222"), "the next program of an instance, too");

    // limits.d is read after limits.conf.
    fs::write(security.join("limits.d/91-nofile.conf"), "root - nofile 333\n").unwrap();
    assert_eq!(nofile(&sh(&sandbox, LIMITS)), pair("333", "333"));
    assert_eq!(nofile(&entered()), pair("333", "333"));
    fs::remove_file(security.join("limits.d/91-nofile.conf")).unwrap();
    assert_eq!(nofile(&sh(&sandbox, LIMITS)), pair("111", "222"));

    conf("");
    assert_eq!(nofile(&entered()), pair("1024", "1024"), "and back");
}

#[test]
fn whom_limits_conf_denies_a_session_runs_nothing() {
    let Some(security) = own_security("whom_limits_conf_denies_a_session_runs_nothing") else { return };
    let sandbox = common::sandbox(|b| _ = b.limits_conf("daemon"));
    assert!(sandbox.command("/bin/true").status().unwrap().success());
    fs::write(security.join("limits.conf"), "daemon - maxlogins 0\n").unwrap();
    let error = sandbox.command("/bin/true").status().unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }) && error.to_string().contains("session"), "{error}");
}

#[test]
fn limits_conf_leaves_what_it_does_not_name() {
    let Some(security) = own_security("limits_conf_leaves_what_it_does_not_name") else { return };
    fs::write(security.join("limits.conf"), "root - stack 4096\n").unwrap();
    let (plain, with) = (text(&sh(&common::sandbox(|_| {}), LIMITS)), text(&sh(&conf_sandbox(|_| {}), LIMITS)));
    for resource in Resource::ALL.into_iter().filter(|resource| *resource != Resource::Stack) {
        assert_eq!(row(&with, resource), row(&plain, resource), "{resource}");
    }
    assert_eq!(row(&with, Resource::Stack), pair("4194304", "4194304"), "KiB there, bytes here");
}

#[test]
fn the_example_takes_a_user_of_limits_conf() {
    let name = "the_example_takes_a_user_of_limits_conf";
    let example = common::payload().parent().unwrap().parent().unwrap().join("examples/run");
    let built = example.exists();
    require!("the_example_takes_a_user_of_limits_conf", built, "the example `run`, built", "none");
    let Some(security) = own_security(name) else { return };
    fs::write(security.join("limits.conf"), "root soft nofile 44\nroot hard nofile 55\n").unwrap();
    let run = |flags: &[&str]| {
        let program = ["--quiet", "--", "/bin/sh", "-c", LIMITS];
        let output = Command::new(&example).args(flags).args(program).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        row(&String::from_utf8_lossy(&output.stdout), Resource::Nofile)
    };
    assert_eq!(run(&["--limits-conf", USER]), pair("44", "55"));
    assert_eq!(run(&["--limits-conf", USER, "--rlimit", "nofile=66:77"]), pair("66", "77"));
    assert_eq!(run(&[]), pair("1024", "1024"));
}
