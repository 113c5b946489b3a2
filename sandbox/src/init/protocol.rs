//! The words between the host program and init: fixed-layout messages on a `SOCK_SEQPACKET` socket.
//!
//! This file is compiled twice, into the library and into the freestanding init, so it holds only plain data.
//! A conversation is: one [`Config`] (with the seccomp program behind it), then any number of requests, each answered
//! by [`Reply`] messages that carry the request's serial number. End of file on the socket ends init, and with it
//! every process of the instance.

/// Changed whenever a layout below changes; init refuses a [`Config`] of another version.
pub(crate) const VERSION: u32 = 4;

/// File descriptors that init is born with, besides `/dev/null` on 0, 1 and 2.
pub(crate) const SOCKET_FD: i32 = 3;
/// A pidfd of the host program: readable when that ended, whoever else holds our socket.
pub(crate) const HOST_FD: i32 = 4;
/// The lock of the leased id range; held, never used. `/dev/null` where nothing is leased.
pub(crate) const LEASE_FD: i32 = 5;
/// The first number that init does not keep.
pub(crate) const FIRST_FREE_FD: i32 = 6;

/// Where a request lies in init's memory. The host program writes pointers for this address, so that `argv` and `envp`
/// are ready for execve(2) the moment the bytes arrive.
pub(crate) const REQUEST_BASE: u64 = 0x10_0000_0000;
/// The largest request that travels inside the message; a larger one travels as a sealed memfd, mapped at the same
/// address.
pub(crate) const INLINE_MAX: usize = 64 << 10;
/// Most file descriptors of one message (`SCM_MAX_FD` of the kernel).
pub(crate) const FDS_MAX: usize = 253;
/// Most programs that run in one instance at the same time.
pub(crate) const PROGRAMS_MAX: usize = 1024;

/// How init hardens itself before its first request.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Config {
    pub(crate) version: u32,
    pub(crate) flags: u32,
    /// Inside id that init takes with [`TAKE_IDS`].
    pub(crate) uid: u32,
    /// Inside group of init and of programs.
    pub(crate) gid: u32,
    /// Capabilities that programs may be given; all others leave the bounding set.
    pub(crate) capabilities: u64,
    /// Instructions (8 bytes each) of the seccomp program that follow this header.
    pub(crate) filter_length: u32,
    /// Bytes of the Landlock rules that follow the seccomp program; 0 for none. See [`LandlockHead`].
    pub(crate) landlock_length: u32,
}

/// Landlock rules: this head, then `ports` of the kernel's `landlock_net_port_attr`, then `paths` of [`LandlockPath`].
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(dead_code, reason = "the library writes it word by word")]
pub(crate) struct LandlockHead {
    /// The kernel's `landlock_ruleset_attr`: rights on files, rights on the network, scopes.
    pub(crate) handled: [u64; 3],
    pub(crate) ports: u64,
    pub(crate) paths: u64,
}

/// What is allowed below one path.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(dead_code, reason = "the library writes it word by word")]
pub(crate) struct LandlockPath {
    pub(crate) access: u64,
    /// Bytes of the path that follows: with one NUL or more, to a multiple of [`LANDLOCK_ALIGN`].
    pub(crate) length: u64,
}

/// Rules begin at multiples of this.
#[allow(dead_code, reason = "only the library writes rules")]
pub(crate) const LANDLOCK_ALIGN: usize = 8;

/// [`Config::flags`]: answer [`READY`] when hardened.
pub(crate) const NOTIFY_READY: u32 = 1;
/// [`Config::flags`]: set no_new_privs.
pub(crate) const NO_NEW_PRIVS: u32 = 4;
/// [`Config::flags`]: drop capabilities (bounding set, and all sets of programs).
pub(crate) const DROP_CAPABILITIES: u32 = 8;
/// [`Config::flags`]: take `uid`, and drop all supplementary groups.
pub(crate) const TAKE_IDS: u32 = 16;

/// The head of each message to init.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Request {
    /// Bytes of the whole request, this header included.
    pub(crate) length: u64,
    /// Repeated in the replies.
    pub(crate) serial: u32,
    pub(crate) flags: u32,
    pub(crate) uid: u32,
    /// Descriptors that come along, without that of [`IN_MEMFD`].
    pub(crate) fd_count: u32,
    pub(crate) place_count: u32,
    pub(crate) rlimit_count: u32,
    /// Capabilities that the program keeps (permitted, effective, inheritable, ambient).
    pub(crate) capabilities: u64,
    /// Addresses, all behind [`REQUEST_BASE`]: NUL-terminated strings, and arrays of such addresses that end with 0.
    pub(crate) paths: u64,
    pub(crate) argv: u64,
    pub(crate) envp: u64,
    /// 0 for the root, where init is.
    pub(crate) directory: u64,
    /// [`Descriptor`]s in rising order of their numbers, `place_count` of them.
    pub(crate) places: u64,
    /// [`Rlimit`]s, `rlimit_count` of them.
    pub(crate) rlimits: u64,
}

/// [`Request::flags`]: the request is not in the message but in the memfd that is the last passed descriptor.
pub(crate) const IN_MEMFD: u32 = 1;
/// [`Request::flags`]: answer [`STARTED`], with a pidfd, when the program runs.
pub(crate) const NOTIFY_STARTED: u32 = 2;
/// [`Request::flags`]: start nothing, kill the program that the request of this serial number started. Of the rest only
/// `uid` is looked at. For those whose pidfd the host program does not have (yet).
pub(crate) const KILL: u32 = 4;

/// A descriptor of the program: its number there, and which of the passed ones it is. One can have several numbers.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) number: i32,
    pub(crate) passed: u32,
}

/// One prlimit64(2).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rlimit {
    pub(crate) resource: u32,
    pub(crate) reserved: u32,
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

/// Each message from init.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Reply {
    pub(crate) kind: u32,
    pub(crate) serial: u32,
    /// [`FAILED`], [`BROKEN`]: which step, of the `STEP_` numbers.
    pub(crate) step: u32,
    /// [`FAILED`], [`BROKEN`]: why.
    pub(crate) errno: i32,
    /// [`STARTED`]: the process id inside. [`FAILED`], [`BROKEN`] in a step with an index: that index.
    pub(crate) detail: u32,
    /// [`EXITED`]: the wait status.
    pub(crate) status: i32,
    /// [`EXITED`]: no other process is left in the instance.
    pub(crate) alone: u32,
    pub(crate) reserved: u32,
    /// [`EXITED`]: microseconds of CPU of the program and of what it waited for.
    pub(crate) user: u64,
    pub(crate) system: u64,
    /// [`EXITED`]: microseconds of CPU of everything that init has reaped so far.
    pub(crate) all_user: u64,
    pub(crate) all_system: u64,
}

/// Init is hardened and waits.
pub(crate) const READY: u32 = 1;
/// The program's execve(2) succeeded. A pidfd of it comes along.
pub(crate) const STARTED: u32 = 2;
/// The program was not started.
pub(crate) const FAILED: u32 = 3;
/// [`Reply::detail`] of a failed [`step::EXECUTE`]: the number of the path, from 1, and this bit when the file is there
/// but its interpreter (`#!` line or ELF `PT_INTERP`) is not.
pub(crate) const INTERPRETER_MISSING: u32 = 1 << 31;
/// The program ended.
pub(crate) const EXITED: u32 = 4;
/// Init could not set itself up, and has ended.
pub(crate) const BROKEN: u32 = 5;

/// The steps of init's own set-up and of a program's start, by number.
pub(crate) mod step {
    macro_rules! steps {
        ($($name:ident = $number:literal: $words:literal;)*) => {
            $(pub(crate) const $name: u32 = $number;)*
            /// What the step does, in words that follow "cannot".
            #[allow(dead_code, reason = "init reports numbers; only the library says the words")]
            pub(crate) const fn words(step: u32) -> &'static str {
                match step { $($number => $words,)* _ => "do an unknown step of init" }
            }
        };
    }
    steps! {
        READ_CONFIG = 1: "read init's configuration";
        LOCK_SECUREBITS = 2: "lock the securebits";
        TAKE_IDS = 3: "take init's ids";
        DROP_BOUNDING = 4: "drop the capability bounding set";
        LIMIT_CAPABILITIES = 5: "limit init's capabilities";
        NO_NEW_PRIVS = 6: "set no_new_privs";
        SECCOMP = 7: "install the seccomp filter";
        WATCH_CHILDREN = 8: "watch for ended children";
        MAP_REQUEST = 9: "map the request";
        TOO_MANY = 10: "start one more program in this instance";
        CLONE = 11: "make a process";
        PLACE_FD = 12: "place a file descriptor";
        SET_LIMIT = 13: "set a resource limit";
        SET_UID = 14: "set the user id";
        SET_CAPABILITIES = 15: "set the capabilities";
        DIRECTORY = 16: "change to the working directory";
        EXECUTE = 17: "execute";
        PASS_FDS = 18: "receive the passed file descriptors";
        LANDLOCK = 19: "restrict init by Landlock";
        LANDLOCK_PATH = 20: "allow by Landlock";
    }
}
