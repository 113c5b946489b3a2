//! Init: PID 1 of every sandbox.
//!
//! A freestanding program, started from a sealed memfd, that holds nothing of the host program's memory. It hardens
//! itself once, so that every program started by it inherits all of that, then starts programs on request and reports
//! how they ended. One thread, no heap, no locks; every system call is raw. The messages are in `protocol.rs`.
//!
//! It lives until the socket closes or the host program ends, whichever is first; the kernel then ends every process of
//! the namespace with it.
#![no_std]
#![no_main]

mod arch;
mod exec;
mod landlock;
#[path = "../src/init/protocol.rs"]
mod protocol;
mod reap;

use arch::{nr, syscall};
use protocol::{Config, Reply, step};

const SECBITS: usize = 0x2f; // NOROOT and NO_SETUID_FIXUP with their locks, KEEP_CAPS_LOCKED (capabilities(7))
const SECBITS_NO_AMBIENT: usize = 0xc0; // NO_CAP_AMBIENT_RAISE and its lock
const CAP_SETUID: u64 = 1 << 7;
const PR_SET_DUMPABLE: usize = 4;
const PR_CAPBSET_DROP: usize = 24;
const PR_SET_SECUREBITS: usize = 28;
const PR_SET_NO_NEW_PRIVS: usize = 38;
const PR_CAP_AMBIENT: usize = 47;
const PR_CAP_AMBIENT_CLEAR_ALL: usize = 4;
const SECCOMP_SET_MODE_FILTER: usize = 1;
const SIGCHLD: usize = 17;
const SIGNALS: usize = 64;
const SIG_SETMASK: usize = 2;
const SFD_CLOEXEC: usize = 0x80000;
const POLLIN: i16 = 1;
const EINTR: isize = -4;
const EINVAL: i32 = 22;

/// All of init's memory but its own stack. In this order: the upper end of the child's stack and what every request needs lie
/// on one page. Aligned, as a segment without a file that begins within a page cannot be loaded before Linux 6.6.
#[repr(C, align(4096))]
pub(crate) struct Init {
    pub(crate) stack: OneThread<exec::Stack>,
    pub(crate) config: Config,
    pub(crate) programs: reap::Programs,
}

/// A static that only init's one thread touches. Its zeros cost no memory until they are used.
pub(crate) struct OneThread<T>(core::cell::UnsafeCell<T>);

// SAFETY: init never makes a second thread; its vfork-like children run while it sleeps.
unsafe impl<T> Sync for OneThread<T> {}

impl<T> OneThread<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(core::cell::UnsafeCell::new(value))
    }

    pub(crate) const fn get(&self) -> *mut T {
        self.0.get()
    }
}

static INIT: OneThread<Init> = OneThread::new(Init {
    stack: OneThread::new(exec::Stack::new()),
    config: EMPTY_CONFIG,
    programs: reap::Programs::new(),
});

#[repr(C)]
struct Pollfd {
    fd: i32,
    events: i16,
    revents: i16,
}

/// Where `_start` jumps to.
pub(crate) extern "C" fn main() -> ! {
    // SAFETY: the only reference, taken once, on the one thread.
    let init = unsafe { &mut *INIT.get() };
    let signals = match set_up(init) {
        Ok(signals) => signals,
        Err(Broken { step, errno, detail }) => {
            reap::answer(&Reply { kind: protocol::BROKEN, step, errno, detail, ..Reply::default() }, None);
            exit(1);
        }
    };
    if init.config.flags & protocol::NOTIFY_READY != 0 {
        reap::answer(&Reply { kind: protocol::READY, ..Reply::default() }, None);
    }
    let mut fds = [
        Pollfd { fd: protocol::SOCKET_FD, events: POLLIN, revents: 0 },
        Pollfd { fd: protocol::HOST_FD, events: POLLIN, revents: 0 },
        Pollfd { fd: signals, events: POLLIN, revents: 0 },
    ];
    loop {
        // SAFETY: `fds` is an array of three; no timeout, no mask.
        let ready = unsafe { syscall(nr::PPOLL, [fds.as_mut_ptr() as usize, 3, 0, 0, 0, 0]) };
        if ready == EINTR {
            continue;
        }
        if ready < 0 || fds[1].revents != 0 {
            exit(0);
        }
        if fds[2].revents != 0 {
            // First of all the answer that somebody waits for; whoever ends before the signal is taken back is reaped next.
            init.programs.reap();
            let mut info = [0u8; 128];
            // SAFETY: one signalfd_siginfo is 128 bytes.
            unsafe { syscall(nr::READ, [signals as usize, info.as_mut_ptr() as usize, info.len(), 0, 0, 0]) };
            init.programs.reap();
        }
        if fds[0].revents != 0 && !exec::serve(init) {
            exit(0);
        }
    }
}

const EMPTY_CONFIG: Config =
    Config { version: 0, flags: 0, uid: 0, gid: 0, capabilities: 0, filter_length: 0, landlock_length: 0 };

/// Why init cannot be: in which step, the kernel's answer, and the step's index.
pub(crate) struct Broken {
    pub(crate) step: u32,
    pub(crate) errno: i32,
    pub(crate) detail: u32,
}

impl From<(u32, i32)> for Broken {
    fn from((step, errno): (u32, i32)) -> Self {
        Self { step, errno, detail: 0 }
    }
}

/// Hardens init itself, so that programs inherit all of it but the ids; the descriptor that tells of ended children.
fn set_up(init: &mut Init) -> Result<i32, Broken> {
    let config_error = |errno| (step::READ_CONFIG, errno);
    exec::map_inline().map_err(config_error)?;
    let at = protocol::REQUEST_BASE as usize;
    // Who has too little memory for this page is killed here, by its own fault and not in the middle of a system call, which
    // User-Mode Linux (7.2) does not survive.
    // SAFETY: the address is mapped, and nothing lies there yet.
    unsafe { (at as *mut u8).write_volatile(0) };
    // SAFETY: the address is mapped for INLINE_MAX bytes.
    let read = unsafe { syscall(nr::READ, [protocol::SOCKET_FD as usize, at, protocol::INLINE_MAX, 0, 0, 0]) };
    let header = size_of::<Config>() as isize;
    check(read).map_err(config_error)?;
    if read < header {
        return Err(config_error(EINVAL).into());
    }
    // SAFETY: at least a whole header of plain data was received.
    let config = unsafe { *(at as *const Config) };
    let filter_end = header + config.filter_length as isize * 8;
    if config.version != protocol::VERSION || read != filter_end + config.landlock_length as isize {
        return Err(config_error(EINVAL).into());
    }
    init.config = config;
    let rules = match config.landlock_length {
        0 => None,
        _ => Some(landlock::rules(at + filter_end as usize)?),
    };
    // Not readable through /proc, not traceable: said again after the change of ids, which resets it.
    prctl(PR_SET_DUMPABLE, 0, 0).map_err(|errno| (step::TAKE_IDS, errno))?;
    if config.flags & protocol::DROP_CAPABILITIES != 0 {
        let no_ambient = if config.capabilities == 0 { SECBITS_NO_AMBIENT } else { 0 };
        prctl(PR_SET_SECUREBITS, SECBITS | no_ambient, 0).map_err(|errno| (step::LOCK_SECUREBITS, errno))?;
    }
    take_group(&config).map_err(|errno| (step::TAKE_IDS, errno))?;
    if config.flags & protocol::TAKE_IDS != 0 {
        take_ids(&config).map_err(|errno| (step::TAKE_IDS, errno))?;
    }
    if config.flags & protocol::DROP_CAPABILITIES != 0 {
        drop_bounding(config.capabilities).map_err(|errno| (step::DROP_BOUNDING, errno))?;
        let own = CAP_SETUID | config.capabilities;
        set_capabilities(own, config.capabilities).map_err(|errno| (step::LIMIT_CAPABILITIES, errno))?;
        prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0).map_err(|errno| (step::LIMIT_CAPABILITIES, errno))?;
    }
    prctl(PR_SET_DUMPABLE, 0, 0).map_err(|errno| (step::TAKE_IDS, errno))?;
    if config.flags & protocol::NO_NEW_PRIVS != 0 {
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0).map_err(|errno| (step::NO_NEW_PRIVS, errno))?;
    }
    if let Some(rules) = rules {
        landlock::restrict(rules).map_err(|errno| (step::LANDLOCK, errno))?;
    }
    default_signals();
    no_precedence();
    if config.filter_length != 0 {
        install_filter(config.filter_length, at + header as usize).map_err(|errno| (step::SECCOMP, errno))?;
    }
    // What programs inherit. The mask for new files takes what others may write.
    // SAFETY: a number.
    unsafe { syscall(nr::UMASK, [0o022, 0, 0, 0, 0, 0]) };
    // A session without a terminal, for all programs: one of its own for each would cost it microseconds (autogroups).
    // SAFETY: takes nothing. It cannot fail, as a new process leads no group.
    unsafe { syscall(nr::SETSID, [0; 6]) };
    Ok(watch_children().map_err(|errno| (step::WATCH_CHILDREN, errno))?)
}

/// Real, effective and saved: the caller's real group can be another than the one that is mapped.
fn take_group(config: &Config) -> Result<(), i32> {
    let gid = config.gid as usize;
    // SAFETY: numbers only.
    check(unsafe { syscall(nr::SETRESGID, [gid, gid, gid, 0, 0, 0]) })
}

fn take_ids(config: &Config) -> Result<(), i32> {
    let uid = config.uid as usize;
    // SAFETY: an empty list needs no memory.
    check(unsafe { syscall(nr::SETGROUPS, [0; 6]) })?;
    // SAFETY: numbers only.
    check(unsafe { syscall(nr::SETRESUID, [uid, uid, uid, 0, 0, 0]) })
}

/// Drops every capability that the running kernel knows from the bounding set, but `keep`.
fn drop_bounding(keep: u64) -> Result<(), i32> {
    for capability in 0..64 {
        if keep & (1 << capability) == 0 {
            match prctl(PR_CAPBSET_DROP, capability, 0) {
                Ok(()) => {}
                Err(EINVAL) => return Ok(()), // past the last one
                Err(errno) => return Err(errno),
            }
        }
    }
    Ok(())
}

/// Sets the permitted and effective sets to `own`, the inheritable set to `inheritable`.
pub(crate) fn set_capabilities(own: u64, inheritable: u64) -> Result<(), i32> {
    let header = [0x2008_0522u32, 0]; // _LINUX_CAPABILITY_VERSION_3, ourselves
    let halves = |set: u64| [set as u32, (set >> 32) as u32];
    let ([low, high], [inherit_low, inherit_high]) = (halves(own), halves(inheritable));
    let data = [low, low, inherit_low, high, high, inherit_high];
    // SAFETY: version 3 reads one header and two sets of three words.
    check(unsafe { syscall(nr::CAPSET, [header.as_ptr() as usize, data.as_ptr() as usize, 0, 0, 0, 0]) })
}

fn install_filter(length: u32, instructions: usize) -> Result<(), i32> {
    #[repr(C)]
    struct Program {
        length: u16,
        instructions: usize,
    }
    let program = Program { length: length as u16, instructions };
    // SAFETY: `length` instructions were received at that address; the kernel copies them.
    check(unsafe { syscall(nr::SECCOMP, [SECCOMP_SET_MODE_FILTER, 0, &raw const program as usize, 0, 0, 0]) })
}

/// Signals that the host program ignores stay ignored by clone and execve: programs must not inherit that.
fn default_signals() {
    let default = [0usize; 4]; // handler SIG_DFL, no flags, no restorer, empty mask
    for signal in 1..=SIGNALS {
        // SAFETY: a whole kernel sigaction; SIGKILL and SIGSTOP are refused, which is right.
        unsafe { syscall(nr::RT_SIGACTION, [signal, default.as_ptr() as usize, 0, 8, 0, 0]) };
    }
}

/// Takes back what a host program that runs before others would hand down: real-time scheduling, a negative nice value, an
/// I/O class; also a personality, which can make data executable. What is behind others stays so. Every process may.
fn no_precedence() {
    const SCHED_RR: isize = 2; // 1 is SCHED_FIFO
    const NICE_0: isize = 20; // as the system call counts: 20 less the nice value
    let priority = 0i32;
    // SAFETY: numbers, and of SCHED_SETSCHEDULER a struct sched_param, which is one integer.
    let call = |number, args| unsafe { syscall(number, args) };
    if matches!(call(nr::SCHED_GETSCHEDULER, [0; 6]), 1..=SCHED_RR) {
        call(nr::SCHED_SETSCHEDULER, [0, 0, &raw const priority as usize, 0, 0, 0]);
    }
    if call(nr::GETPRIORITY, [0; 6]) > NICE_0 {
        call(nr::SETPRIORITY, [0; 6]);
    }
    call(nr::IOPRIO_SET, [1, 0, 0, 0, 0, 0]);
    call(nr::PERSONALITY, [0; 6]);
}

/// Blocks SIGCHLD and opens the descriptor that tells of it.
fn watch_children() -> Result<i32, i32> {
    let mask = 1u64 << (SIGCHLD - 1);
    // SAFETY: `mask` is the 8 bytes of a signal set.
    check(unsafe { syscall(nr::RT_SIGPROCMASK, [SIG_SETMASK, &raw const mask as usize, 0, 8, 0, 0]) })?;
    // SAFETY: as above.
    let fd = unsafe { syscall(nr::SIGNALFD4, [usize::MAX, &raw const mask as usize, 8, SFD_CLOEXEC, 0, 0]) };
    if fd < 0 { Err(-(fd as i32)) } else { Ok(fd as i32) }
}

pub(crate) fn prctl(option: usize, two: usize, three: usize) -> Result<(), i32> {
    // SAFETY: the options used here take numbers only.
    check(unsafe { syscall(nr::PRCTL, [option, two, three, 0, 0, 0]) })
}

pub(crate) fn check(answer: isize) -> Result<(), i32> {
    if answer < 0 { Err(-(answer as i32)) } else { Ok(()) }
}

pub(crate) fn exit(status: usize) -> ! {
    loop {
        // SAFETY: does not return.
        unsafe { syscall(nr::EXIT_GROUP, [status, 0, 0, 0, 0, 0]) };
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    exit(101)
}
