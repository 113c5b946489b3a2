//! Two sandboxes one after the other, on every path to one: nothing of the first is seen by the second, and a program cannot
//! tell on which path it was started.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]
#![allow(unsafe_code, reason = "programs that leave what they can, by raw system calls")]

mod common;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;

use common::acts::{Act, answer, say};
use common::{acting, eventually, said};
use sandbox::{Command, Instance, Sandbox, Stdio};

const ACTS: &[Act] =
    &[("leave", |_| leave()), ("look", |_| look()), ("probe", |_| probe()), ("keys", |words| keys(words))];

/// Names and numbers that only these tests use.
const KEY: i64 = 0x5eed_0006;
const SOCKET: &str = "sandbox-test-leaks";
const PORT: u16 = 47_661;
const KEY_NAME: &std::ffi::CStr = c"sandbox-test-leaks";

#[test]
fn payload() {
    common::acts::run(ACTS);
}

/// How a program gets its sandbox.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// A fresh instance, started when it is wanted.
    OneShot,
    /// A fresh instance that was ready.
    Prepared,
    /// An instance of its own that somebody started.
    Started,
}

const WAYS: [Way; 3] = [Way::OneShot, Way::Prepared, Way::Started];

fn built(way: Way) -> Sandbox {
    let sandbox = common::sandbox(|b| _ = b.prepared(if matches!(way, Way::Prepared) { 2 } else { 0 }));
    full(&sandbox);
    sandbox
}

/// Waits until the pool is as full as it gets.
fn full(sandbox: &Sandbox) {
    eventually("the pool is full", || sandbox.pool_stats().ready == sandbox.pool_stats().target);
}

/// A program on its way, and what it must not outlive.
fn command(sandbox: &Sandbox, way: Way) -> (Command, Option<Instance>) {
    match way {
        Way::OneShot | Way::Prepared => (sandbox.command("/payload"), None),
        Way::Started => {
            let instance = sandbox.start().unwrap();
            (instance.command("/payload"), Some(instance))
        }
    }
}

fn run(sandbox: &Sandbox, way: Way, act: &str) -> Vec<u8> {
    full(sandbox);
    let (command, _instance) = command(sandbox, way);
    let output = acting(command, act).output().unwrap();
    assert!(output.outcome.success(), "{way:?} {act}: {output:?} {}", String::from_utf8_lossy(&output.stderr));
    if matches!(way, Way::Prepared) {
        assert_eq!(sandbox.pool_stats().misses, 0, "it was ready");
    }
    output.stdout
}

fn put_key(keyring: i64) -> i64 {
    // SAFETY: strings are NUL-terminated, three bytes are read.
    let key = unsafe {
        libc::syscall(libc::SYS_add_key, c"user".as_ptr(), KEY_NAME.as_ptr(), c"key".as_ptr(), 3usize, keyring)
    };
    if key < 0 { -i64::from(common::acts::errno()) } else { key }
}

fn socket_address() -> SocketAddr {
    SocketAddr::from_abstract_name(SOCKET).unwrap()
}

/// Leaves whatever it may leave, stays for it, and is killed or ends with it.
fn leave() {
    let create = 0o1666;
    say("shm", answer([libc::SYS_shmget, KEY, 4096, create, 0, 0, 0]));
    say("sem", answer([libc::SYS_semget, KEY, 1, create, 0, 0, 0]));
    say("msg", answer([libc::SYS_msgget, KEY, create, 0, 0, 0, 0]));
    // SAFETY: a NUL-terminated name; default attributes.
    let queue = unsafe { libc::mq_open(c"/sandbox-test-leaks".as_ptr(), libc::O_CREAT | libc::O_RDWR, 0o666, 0usize) };
    say("mq", if queue < 0 { -common::acts::errno() } else { 0 });
    for keyring in [-3, -4, -5] {
        say("key", put_key(keyring));
    }
    for directory in ["/tmp", "/dev/shm"] {
        fs::write(Path::new(directory).join("left"), "left").unwrap();
    }
    say("host", fs::write("/proc/sys/kernel/hostname", "left").is_ok());
    // SAFETY: four bytes of a name.
    say("name", unsafe { libc::sethostname(c"left".as_ptr(), 4) });
    let lower = libc::rlimit { rlim_cur: 17, rlim_max: 17 };
    // SAFETY: a whole struct rlimit.
    say("limit", unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const lower) });
    let _listener = UnixListener::bind_addr(&socket_address()).unwrap();
    let _port = TcpListener::bind(("127.0.0.1", PORT)).unwrap();
    // The second looks for them while the first, or a process that it left, still holds them.
    if common::acts::raw_fork() == 0 {
        let _ = std::io::stdout().flush();
        std::thread::sleep(std::time::Duration::from_secs(1000));
    }
}

/// Finds nothing of that.
fn look() {
    for (name, call) in [("shm", libc::SYS_shmget), ("sem", libc::SYS_semget), ("msg", libc::SYS_msgget)] {
        say(name, answer([call, KEY, 0, 0, 0, 0, 0]));
    }
    // SAFETY: a NUL-terminated name; no creation.
    let queue = unsafe { libc::mq_open(c"/sandbox-test-leaks".as_ptr(), libc::O_RDONLY) };
    say("mq", if queue < 0 { -common::acts::errno() } else { 0 });
    say("keys", fs::read_to_string("/proc/keys").unwrap_or_default().matches("sandbox-test-leaks").count());
    let names = |directory: &str| fs::read_dir(directory).map_or(0, Iterator::count);
    say("files", format!("{} {}", names("/tmp"), names("/dev/shm")));
    say("host", fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim_end());
    say("limit", common::field_of_limits("Max open files"));
    say("socket", UnixStream::connect_addr(&socket_address()).is_ok());
    say("port", TcpStream::connect(("127.0.0.1", PORT)).is_ok());
    let unix = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    say("listed", unix.matches(SOCKET).count());
    say("processes", fs::read_dir("/proc").unwrap().flatten().filter(is_process).count());
}

fn is_process(entry: &fs::DirEntry) -> bool {
    entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit())
}

#[test]
fn the_second_finds_nothing_of_the_first() {
    for way in WAYS {
        let sandbox = built(way);
        let before = String::from_utf8(run(&sandbox, way, "look")).unwrap();
        for key in ["shm", "sem", "msg", "mq"] {
            let missing = said(before.as_bytes(), key);
            assert!(
                [libc::ENOENT, libc::ENOSYS].iter().any(|errno| missing == (-errno).to_string()),
                "{key}: {missing}"
            );
        }
        // One that is over, and one that still runs, with all that it holds.
        let first = run(&sandbox, way, "leave");
        assert!(said(&first, "shm").parse::<i64>().unwrap() >= 0, "an object of its own could be made");
        full(&sandbox);
        let (command, instance) = command(&sandbox, way);
        let mut second = acting(command, "leave");
        let held = second.stdout(Stdio::null()).spawn().unwrap();
        let after = String::from_utf8(run(&sandbox, way, "look")).unwrap();
        assert_eq!(after, before, "{way:?}");
        drop((held, second, instance));
        assert_eq!(String::from_utf8(run(&sandbox, way, "look")).unwrap(), before, "{way:?}");
        assert_eq!(sandbox.close(), []);
    }
}

/// `keys KEY`: tries to read, search and list what the caller has, in each of its keyrings.
fn keys(words: &[&str]) {
    let key: i64 = words[0].parse().unwrap();
    const READ: i64 = 11;
    const DESCRIBE: i64 = 6;
    say("read", answer([libc::SYS_keyctl, READ, key, 0, 0, 0, 0]));
    say("describe", answer([libc::SYS_keyctl, DESCRIBE, key, 0, 0, 0, 0]));
    // SAFETY: NUL-terminated strings.
    let asked = unsafe { libc::syscall(libc::SYS_request_key, c"user".as_ptr(), KEY_NAME.as_ptr(), 0usize, 0) };
    say("request", if asked < 0 { -i64::from(common::acts::errno()) } else { asked });
    say("keys", fs::read_to_string("/proc/keys").unwrap_or_default().matches("sandbox-test-leaks").count());
}

#[test]
fn keys_of_the_caller_are_out_of_reach_on_every_path() {
    // The user's keyring and the user's session keyring.
    for keyring in [-4, -5] {
        let key = put_key(keyring);
        require!("keys_of_the_caller_are_out_of_reach_on_every_path", key > 0, "keyrings", key);
        for way in WAYS {
            let sandbox = built(way);
            let found = run(&sandbox, way, &format!("keys {key}"));
            for call in ["read", "describe", "request"] {
                assert!(said(&found, call).starts_with('-'), "{way:?} {call}: {}", String::from_utf8_lossy(&found));
            }
            assert_eq!(said(&found, "keys"), "0", "{way:?}");
        }
        const UNLINK: i64 = 9;
        assert_eq!(answer([libc::SYS_keyctl, UNLINK, key, keyring, 0, 0, 0]), 0);
    }
}

/// All that a program can read of how it was started.
fn probe() {
    // libtest has begun the line.
    let mut out = String::from("\n");
    for file in [
        "status",
        "limits",
        "mountinfo",
        "cgroup",
        "uid_map",
        "gid_map",
        "setgroups",
        "oom_score_adj",
        "personality",
        "attr/current",
        "timens_offsets",
        "loginuid",
        "sessionid",
        "stat",
        "autogroup",
        "cpuset",
    ] {
        let text = fs::read_to_string(format!("/proc/self/{file}")).unwrap_or_else(|error| error.to_string());
        let _ = writeln!(out, "== {file}\n{text}");
    }
    // Our first thread, whose file that was, may be making another one at this moment: glibc blocks all signals for that.
    let own = fs::read_to_string("/proc/thread-self/status").unwrap();
    let _ = writeln!(out, "== blocked {:?}", own.lines().find(|line| line.starts_with("SigBlk")));
    for file in [
        "net/dev",
        "net/route",
        "net/unix",
        "net/tcp",
        "sys/kernel/hostname",
        "sys/net/core/somaxconn",
        "sysvipc/shm",
        "keys",
        "key-users",
        "mounts",
        "1/stat",
        "1/status",
        "1/limits",
        "1/cgroup",
    ] {
        let text = fs::read_to_string(format!("/proc/{file}")).unwrap_or_else(|error| error.to_string());
        let _ = writeln!(out, "== /proc/{file}\n{text}");
    }
    for name in ["user", "pid", "mnt", "net", "ipc", "uts", "cgroup", "time"] {
        let link = |process: &str| fs::read_link(format!("/proc/{process}/ns/{name}"));
        let _ = writeln!(
            out,
            "== ns/{name}: {:?}",
            link("1").map(|one| Some(one) == link("self").ok()).map_err(|e| e.kind())
        );
    }
    let _ = writeln!(out, "== environment\n{:?}", std::env::vars_os().collect::<BTreeMap<_, _>>());
    let fds: BTreeMap<_, _> = (0..64)
        .filter_map(|fd| Some((fd, fs::read_link(format!("/proc/self/fd/{fd}")).ok()?)))
        .filter(|(_, to)| !to.to_string_lossy().starts_with("pipe:"))
        .collect();
    let _ = writeln!(out, "== descriptors\n{fds:?}");
    let _ = writeln!(
        out,
        "== directory {:?}, processes {}",
        std::env::current_dir(),
        fs::read_dir("/proc").unwrap().flatten().filter(is_process).count()
    );
    for directory in ["/", "/tmp", "/dev", "/dev/shm", "/dev/pts", "/run", "/etc"] {
        let mut names: Vec<_> =
            fs::read_dir(directory).into_iter().flatten().flatten().map(|e| e.file_name()).collect();
        names.sort();
        let _ = writeln!(out, "== {directory}: {names:?}");
    }
    for option in [
        libc::PR_GET_DUMPABLE,
        libc::PR_GET_SECUREBITS,
        libc::PR_GET_KEEPCAPS,
        libc::PR_GET_TIMERSLACK,
        libc::PR_GET_CHILD_SUBREAPER,
        libc::PR_GET_NO_NEW_PRIVS,
        libc::PR_GET_PDEATHSIG,
    ] {
        let _ = writeln!(out, "== prctl {option}: {}", answer([libc::SYS_prctl, option.into(), 0, 0, 0, 0, 0]));
    }
    let _ = std::io::stdout().write_all(out.as_bytes());
}

/// What is unique by nature: host ids, numbers of mounts and devices, names of cgroups, addresses, times and counters. A
/// number is replaced by its digits' number where it is one of those, so what remains are words and small values.
fn normalised(text: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(text).into_owned();
    let unique = [
        "VmPeak",
        "VmSize",
        "VmHWM",
        "VmRSS",
        "VmData",
        "VmStk",
        "VmExe",
        "VmLib",
        "VmPTE",
        "Rss",
        "voluntary",
        "nonvoluntary",
        "THP_enabled",
        "Cpus_allowed",
        "Mems_allowed",
        "SigQ",
        "State:",
        "x86_Thread",
    ];
    let mut section = "";
    let mut lines = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("== ") {
            section = name;
        }
        if unique.iter().any(|key| line.starts_with(key)) || (section == "status" && line.starts_with("SigBlk")) {
            continue;
        }
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let kept = match section {
            // Mount, parent and device numbers, and peer groups.
            "mountinfo" if words.len() > 3 => words[3..].iter().filter(|word| !word.contains(':')).cloned().collect(),
            // Inside and count stay; the middle is the host's.
            "uid_map" | "gid_map" if words.len() == 3 => vec![words[0].clone(), words[2].clone()],
            // Number, name, state, which changes, parent, group, session, terminal, flags; then times and addresses.
            "stat" | "/proc/1/stat" if words.len() > 8 => [&words[..2], &words[3..8]].concat(),
            "cgroup" | "/proc/1/cgroup" | "autogroup" => {
                vec![words.concat().chars().filter(|letter| !letter.is_ascii_digit()).collect()]
            }
            // Usage counts, addresses, and the number of the user.
            "/proc/keys" | "/proc/key-users" | "/proc/net/unix" if !line.starts_with("==") => {
                vec![words.len().to_string()]
            }
            _ => words,
        };
        lines.push(kept.join(" "));
    }
    lines
}

#[test]
fn a_program_cannot_tell_on_which_path_it_was_started() {
    let probes: Vec<_> = WAYS
        .into_iter()
        .map(|way| {
            let sandbox = built(way);
            let found = normalised(&run(&sandbox, way, "probe"));
            assert!(found.len() > 150, "{found:#?}");
            (way, found)
        })
        .collect();
    let (_, one_shot) = &probes[0];
    for (way, found) in &probes[1..] {
        let differs = one_shot.iter().zip(found).find(|(one, other)| one != other);
        assert_eq!(differs, None, "{way:?}");
        assert_eq!(one_shot.len(), found.len(), "{way:?}");
    }
}
