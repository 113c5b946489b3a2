//! What a payload can do.
//!
//! # Safety
//! Raw system calls of a program that does nothing else; each block says what holds.
#![allow(unsafe_code, reason = "the payload speaks to the kernel without a library that would stop it")]

pub mod disk;

use std::fs;
use std::io::Write as _;
use std::time::{Duration, Instant};

/// A name, and what is done with the words behind it.
pub type Act = (&'static str, fn(&[&str]));

/// Call it from a test named `payload`: does nothing unless an act is named.
pub fn run(own: &[Act]) {
    let Ok(named) = std::env::var(super::ACT) else { return };
    let words: Vec<&str> = named.split(' ').collect();
    let (name, arguments) = words.split_first().unwrap();
    let found = own.iter().chain(ACTS).find(|(known, _)| known == name);
    found.unwrap_or_else(|| panic!("no such act: {name}")).1(arguments);
    std::process::exit(0);
}

const ACTS: &[Act] = &[
    ("memory", memory),
    ("spin", spin),
    ("spin_children", spin_children),
    ("spin_unreaped", spin_unreaped),
    ("fork", fork),
    ("fork_bomb", fork_bomb),
    ("orphans", orphans),
    ("threads", threads),
    ("fds", fds),
    ("ids", ids),
    ("open", open),
    ("call", call),
    ("blocked", blocked),
    ("parent_child", parent_child),
];

pub fn say(key: &str, value: impl std::fmt::Display) {
    let mut out = std::io::stdout();
    let _ = writeln!(out, "\n{key} {value}");
    let _ = out.flush();
}

fn number(words: &[&str], at: usize) -> u64 {
    words[at].parse().unwrap()
}

/// `memory MIB [MS]`: touches that much, says so, and keeps it for a while.
fn memory(words: &[&str]) {
    let mut block = vec![0u8; usize::try_from(number(words, 0)).unwrap() << 20];
    block.chunks_mut(4096).for_each(|page| page[0] = 1);
    std::hint::black_box(&block);
    say("touched", words[0]);
    if words.len() > 1 {
        std::thread::sleep(Duration::from_millis(number(words, 1)));
    }
}

fn burn(until: impl Fn() -> bool) {
    let mut x = 0u64;
    while !until() {
        for _ in 0..10_000 {
            x = std::hint::black_box(x.wrapping_mul(31).wrapping_add(7));
        }
    }
}

/// `spin MS`: keeps a CPU busy for so much wall time.
fn spin(words: &[&str]) {
    let end = Instant::now() + Duration::from_millis(number(words, 0));
    burn(|| Instant::now() >= end);
}

/// `spin_children N MS`: children keep CPUs busy, and nobody waits for them in time.
fn spin_children(words: &[&str]) {
    let end = Instant::now() + Duration::from_millis(number(words, 1));
    for _ in 0..number(words, 0) {
        if raw_fork() == 0 {
            burn(|| Instant::now() >= end);
            std::process::exit(0);
        }
    }
    std::thread::sleep(end.saturating_duration_since(Instant::now()));
}

/// `spin_unreaped MS`: a child keeps a CPU busy, and the kernel reaps it and tells nobody what it has used.
fn spin_unreaped(words: &[&str]) {
    let end = Instant::now() + Duration::from_millis(number(words, 0));
    // SAFETY: a signal that is ignored runs no code.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    if raw_fork() == 0 {
        burn(|| Instant::now() >= end);
        std::process::exit(0);
    }
    // SAFETY: no status is asked for; returns when no child is left.
    unsafe { libc::wait(std::ptr::null_mut()) };
}

/// A child of this payload, which has one thread.
pub fn raw_fork() -> i64 {
    // SAFETY: numbers only; with one thread every lock is free in the child, too.
    unsafe { libc::fork() }.into()
}

/// Makes this process one of the user and group `id`, with another real group.
pub fn become_user(id: u32, real_group: u32) {
    // SAFETY: an empty list needs no memory.
    let none = unsafe { libc::setgroups(0, std::ptr::null()) };
    // SAFETY: numbers only.
    let group = unsafe { libc::setresgid(real_group, id, id) };
    // SAFETY: numbers only.
    let user = unsafe { libc::setresuid(id, id, id) };
    // SAFETY: numbers only. Its own files in /proc are root's otherwise.
    let dumpable = unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1) };
    assert_eq!([none, group, user, dumpable], [0; 4]);
}

pub fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// How many this process has; the test harness may have one of its own.
fn own_threads() -> u64 {
    super::field(&fs::read_to_string("/proc/self/status").unwrap(), "Threads").parse().unwrap()
}

/// `fork N`: children that stay, until there are N processes and threads.
fn fork(words: &[&str]) {
    let (mut made, mut answer) = (own_threads(), 0);
    while made < number(words, 0) {
        match std::process::Command::new("/bin/sleep").arg("1000").spawn() {
            Ok(_) => made += 1,
            Err(error) => {
                answer = error.raw_os_error().unwrap_or(-1);
                break;
            }
        }
    }
    say("forked", format!("{made} {answer}"));
}

/// `fork_bomb`: children of children, for as long as it is let.
fn fork_bomb(_: &[&str]) {
    let mut told = false;
    loop {
        if raw_fork() == -1 {
            if !told {
                say("refused", errno());
                told = true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// `orphans N`: so many grandchildren whose parents are gone before them.
fn orphans(words: &[&str]) {
    let (mut made, mut refused) = (0, 0);
    while made < number(words, 0) {
        match raw_fork() {
            0 => {
                let grandchild = raw_fork();
                std::process::exit(i32::from(grandchild == -1));
            }
            -1 => refused += 1,
            child => {
                let mut status = 0;
                // SAFETY: the status is a whole int.
                unsafe { libc::waitpid(i32::try_from(child).unwrap(), &raw mut status, 0) };
                if status == 0 { made += 1 } else { refused += 1 }
            }
        }
    }
    say("orphans", format!("{made} {refused}"));
    // All that were orphaned are reaped by now or soon; then there is room again.
    let last = (0..200).find(|_| {
        std::thread::sleep(Duration::from_millis(20));
        match raw_fork() {
            0 => std::process::exit(0),
            child => child > 0,
        }
    });
    say("room", last.is_some());
}

/// `threads N`: threads that stay, until there are N.
fn threads(words: &[&str]) {
    let (mut made, mut answer) = (own_threads(), 0);
    while made < number(words, 0) {
        let stay = || {
            loop {
                std::thread::sleep(Duration::from_secs(1000));
            }
        };
        match std::thread::Builder::new().stack_size(64 << 10).spawn(stay) {
            Ok(_) => made += 1,
            Err(error) => {
                answer = error.raw_os_error().unwrap_or(-1);
                break;
            }
        }
    }
    say("threads", format!("{made} {answer}"));
}

/// `fds`: the numbers that are open.
fn fds(_: &[&str]) {
    let open = |fd: &i32| {
        // SAFETY: a number; asks only.
        let flags = unsafe { libc::fcntl(*fd, libc::F_GETFD) };
        flags != -1
    };
    let numbers: Vec<String> = (0..4096).filter(open).map(|fd| fd.to_string()).collect();
    say("fds", numbers.join(","));
}

/// `ids`: real and effective ones.
fn ids(_: &[&str]) {
    let effective = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let real = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    say("ids", format!("{} {} {} {}", real.0, effective.0, real.1, effective.1));
    for key in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"] {
        say(key, super::field(&status, key));
    }
}

/// `open PATH…`: for writing, and nothing is written.
fn open(words: &[&str]) {
    for path in words {
        let answer = match fs::OpenOptions::new().write(true).open(path) {
            Ok(_) => "opened".to_owned(),
            Err(error) => error.raw_os_error().unwrap_or(-1).to_string(),
        };
        say(path, answer);
    }
}

/// `call NAME NUMBER ARG…`: one system call; says its answer, negative for an errno.
fn call(words: &[&str]) {
    let parse = |word: &&str| match word.strip_prefix("0x") {
        Some(hex) => i64::from_str_radix(hex, 16).unwrap(),
        None => word.parse().unwrap(),
    };
    let mut numbers = [0i64; 7];
    for (slot, word) in numbers.iter_mut().zip(words.get(1..).unwrap()) {
        *slot = parse(word);
    }
    say(words[0], answer(numbers));
}

/// One system call: number and arguments.
pub fn answer([call, a, b, c, d, e, f]: [i64; 7]) -> i64 {
    // SAFETY: the arguments are numbers; null where a pointer is wanted, which the kernel refuses.
    let answer = unsafe { libc::syscall(call, a, b, c, d, e, f) };
    if answer == -1 { -i64::from(errno()) } else { answer }
}

/// `blocked`: hears no signal that can be unheard, stops, and would go on for ever.
fn blocked(_: &[&str]) {
    // SAFETY: all bits set is a signal set.
    let all: libc::sigset_t = unsafe { std::mem::transmute([u8::MAX; size_of::<libc::sigset_t>()]) };
    // SAFETY: reads a whole set; the old one is not asked for.
    unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut()) };
    say("blocked", "all");
    if raw_fork() == 0 {
        // SAFETY: a signal to this very process.
        unsafe { libc::raise(libc::SIGSTOP) };
    }
    // SAFETY: as above.
    unsafe { libc::raise(libc::SIGSTOP) };
    loop {
        std::thread::sleep(Duration::from_secs(1000));
    }
}

/// `parent_child`: a child that is a sibling (CLONE_PARENT).
fn parent_child(_: &[&str]) {
    let flags = i64::from(libc::CLONE_PARENT | libc::SIGCHLD);
    let child = answer([libc::SYS_clone, flags, 0, 0, 0, 0, 0]);
    if child == 0 {
        std::thread::sleep(Duration::from_millis(50));
        std::process::exit(9);
    }
    say("clone", if child > 0 { "made".to_owned() } else { child.to_string() });
}
