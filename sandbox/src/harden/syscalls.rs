//! The default deny-list as data: which system calls a sandboxed program is refused, and with what answer.
//!
//! The answers are chosen for how programs react. `ENOSYS` sends them to an older call (glibc goes from `clone3` to
//! `clone`, whose flags can be looked at; `EPERM` there would break every thread). `EPERM` is what an unprivileged
//! caller hears anyway. Everything not listed is allowed: the list closes what widens the attack surface of the
//! kernel or reaches another sandbox, and leaves what a program may use to lock itself in further (`seccomp`,
//! `landlock_*`).
//!
//! Numbers and constants of the processor architecture are in [`arch`], everything else is the same everywhere.

use super::seccomp::{Action, Argument, Decision, Rule, Table, Test, Word};

/// What differs between processor architectures. Only x86-64 so far.
pub(super) mod arch {
    use std::ops::RangeInclusive;

    /// `AUDIT_ARCH_X86_64`: what `seccomp_data.arch` holds for a native call. `int 0x80` arrives as `AUDIT_ARCH_I386`.
    pub(crate) const AUDIT_ARCH: u32 = 0xc000_003e;
    /// The highest number of Linux 6.18 (`file_setattr`). What comes after it is unknown to this table.
    pub(crate) const LAST_KNOWN: u32 = 469;
    /// Numbers which no call has: 335 and 336 are the kernel's own uprobe trampolines, the common table goes on at 424.
    pub(crate) const UNASSIGNED: RangeInclusive<u32> = 337..=423;
    /// Calls of the x32 ABI: the same `arch`, bit 30 set in the number.
    pub(crate) const X32: RangeInclusive<u32> = 0x4000_0000..=0x7fff_ffff;

    // Spelled out where the libc crate lacks them.
    pub(crate) const SYS_CREATE_MODULE: libc::c_long = 174;
    pub(crate) const SYS_GET_KERNEL_SYMS: libc::c_long = 177;
    pub(crate) const SYS_QUERY_MODULE: libc::c_long = 178;
    pub(crate) const SYS_OPEN_TREE_ATTR: libc::c_long = 467;
    pub(crate) const SYS_FILE_SETATTR: libc::c_long = 469;
}

/// What the deny-list depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// The programs run under the same host id as the sandbox's init (a map with a single id): `prlimit64` is then
    /// allowed for the caller itself only (pid 0), since it could otherwise lower init's limits.
    pub(crate) single_id: bool,
    /// Also closes what two sandboxes can signal to each other with through a file that both can only read: locks,
    /// leases and notifications. A judge wants that; databases and build tools need the locks.
    pub(crate) strict: bool,
}

/// Not there, as on an older kernel: programs fall back to a call which can be looked at, or do without.
const MISSING: &[libc::c_long] = &[
    // Its flags lie in memory, out of a filter's reach.
    libc::SYS_clone3,
    // Runs other calls past the filter.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    // Keyrings are not namespaced.
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_open_tree,
    arch::SYS_OPEN_TREE_ATTR,
    libc::SYS_move_mount,
    libc::SYS_mount_setattr,
    // Moves a file out of its project quota, as FS_IOC_FSSETXATTR does.
    arch::SYS_FILE_SETATTR,
];

/// For the administrator of the machine only.
const FORBIDDEN: &[libc::c_long] = &[
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_setns,
    libc::SYS_ptrace,
    libc::SYS_kcmp,
    libc::SYS_pidfd_getfd,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_fanotify_init,
    libc::SYS_open_by_handle_at,
    libc::SYS_lookup_dcookie,
    libc::SYS_nfsservctl,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    // Linux 2.6 dropped the other three; they close the gaps between their neighbours' numbers.
    arch::SYS_CREATE_MODULE,
    arch::SYS_GET_KERNEL_SYMS,
    arch::SYS_QUERY_MODULE,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_reboot,
    libc::SYS_syslog,
    libc::SYS_acct,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_vhangup,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_mbind,
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
];

/// Every `CLONE_NEW*` which clone(2) knows (NEWTIME's bit belongs to the exit signal there).
const CLONE_NEW: u32 = bits(
    libc::CLONE_NEWNS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET,
);

/// What unshare(2) may still undo: sharing with other threads. An allow-list, because later kernels give bits that
/// mean nothing here to new kinds of namespaces.
const UNSHARE_HARMLESS: u32 = bits(
    libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SYSVSEM
        | libc::CLONE_VM
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD,
);

/// Commands of ioctl(2) which reach out of the sandbox through a descriptor that it rightly holds.
const IOCTL_FORBIDDEN: &[u32] = &[
    0x5412,      // TIOCSTI: types into the terminal
    0x541c,      // TIOCLINUX: the same on a virtual console, by selecting and pasting
    0x541d,      // TIOCCONS: takes the console's output
    0x401c_5820, // FS_IOC_FSSETXATTR: another project id, another quota
    // FS_IOC_SETFLAGS: new files no longer inherit the project id, so no quota holds for them. Later kernels refuse it
    // outside the initial user namespace; ext4 of Linux 5.10 does not, there this line alone keeps the limit.
    0x4008_6602,
];

/// Commands of fcntl(2) with which a reader of a file is noticed by another: F_SETLK, F_SETLKW, F_OFD_SETLK,
/// F_OFD_SETLKW, F_SETLEASE, F_NOTIFY, F_SETDELEG.
const FCNTL_CHANNELS: &[u32] = &[6, 7, 37, 38, 1024, 1026, 1040];

/// personality(2): the usual one, the usual one without address randomisation (debuggers), and the question for it.
const PERSONALITIES: &[u32] = &[0, 0x0004_0000, 0xffff_ffff];

const AF_UNIX: u32 = 1;
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
const AF_NETLINK: u32 = 16;
const NETLINK_ROUTE: u32 = 0;
const IPPROTO_SCTP: u32 = 132;

/// The default deny-list.
pub(super) fn deny_list(options: Options) -> Table {
    let enosys = Decision::Final(Action::Errno(libc::ENOSYS));
    let eperm = Decision::Final(Action::Errno(libc::EPERM));
    let mut rules: Vec<Rule> = Vec::new();
    rules.extend(MISSING.iter().map(|&call| rule(call, enosys.clone())));
    rules.extend(FORBIDDEN.iter().map(|&call| rule(call, eperm.clone())));
    rules.extend([
        rule(libc::SYS_clone, refuse_if(Word::Low(Argument::First), [Test::HasAny(CLONE_NEW)])),
        // The register is 64 bits wide and a later kernel might use them all.
        rule(
            libc::SYS_unshare,
            Decision::Inspect {
                word: Word::Low(Argument::First),
                cases: vec![(Test::HasAny(!UNSHARE_HARMLESS), eperm.clone())],
                otherwise: Box::new(refuse_if(Word::High(Argument::First), [Test::HasAny(u32::MAX)])),
            },
        ),
        // The kernel takes the command from the lower half of the register and ignores the upper.
        rule(
            libc::SYS_ioctl,
            refuse_if(Word::Low(Argument::Second), IOCTL_FORBIDDEN.iter().map(|&command| Test::Is(command))),
        ),
        rule(
            libc::SYS_personality,
            refuse_unless(Word::Low(Argument::First), PERSONALITIES.iter().map(|&persona| Test::Is(persona))),
        ),
        rule(libc::SYS_socket, socket()),
        rule(libc::SYS_socketpair, socket()),
    ]);
    if options.strict {
        let commands = FCNTL_CHANNELS.iter().map(|&command| Test::Is(command));
        rules.push(rule(libc::SYS_fcntl, refuse_if(Word::Low(Argument::Second), commands)));
        rules.push(rule(libc::SYS_flock, enosys.clone()));
    }
    if options.single_id {
        rules.push(rule(libc::SYS_prlimit64, refuse_unless(Word::Low(Argument::First), [Test::Is(0)])));
    }
    rules.extend([
        Rule { numbers: arch::X32, decision: Decision::Final(Action::KillProcess) },
        Rule { numbers: arch::UNASSIGNED, decision: enosys.clone() },
        Rule { numbers: arch::LAST_KNOWN + 1..=u32::MAX, decision: enosys },
    ]);
    Table { audit_arch: arch::AUDIT_ARCH, rules, otherwise: Decision::Final(Action::Allow) }
}

/// Address families whose sockets belong to a network namespace or to a path, with the protocols that every machine
/// has in use. Of the others vsock reaches the hypervisor from any namespace, and most make the kernel load a module.
fn socket() -> Decision {
    let allow = Decision::Final(Action::Allow);
    let refuse = Decision::Final(Action::Errno(libc::EAFNOSUPPORT));
    let protocol = |cases, otherwise: &Decision| Decision::Inspect {
        word: Word::Low(Argument::Third),
        cases,
        otherwise: Box::new(otherwise.clone()),
    };
    let inet = protocol(vec![(Test::Is(IPPROTO_SCTP), refuse.clone())], &allow);
    let netlink = protocol(vec![(Test::Is(NETLINK_ROUTE), allow.clone())], &refuse);
    Decision::Inspect {
        word: Word::Low(Argument::First),
        cases: vec![
            (Test::Is(AF_UNIX), allow),
            (Test::Is(AF_INET), inet.clone()),
            (Test::Is(AF_INET6), inet),
            (Test::Is(AF_NETLINK), netlink),
        ],
        otherwise: Box::new(refuse),
    }
}

fn refuse_if(word: Word, tests: impl IntoIterator<Item = Test>) -> Decision {
    inspect(word, tests, Action::Errno(libc::EPERM), Action::Allow)
}

fn refuse_unless(word: Word, tests: impl IntoIterator<Item = Test>) -> Decision {
    inspect(word, tests, Action::Allow, Action::Errno(libc::EPERM))
}

fn inspect(word: Word, tests: impl IntoIterator<Item = Test>, on_match: Action, otherwise: Action) -> Decision {
    Decision::Inspect {
        word,
        cases: tests.into_iter().map(|test| (test, Decision::Final(on_match))).collect(),
        otherwise: Box::new(Decision::Final(otherwise)),
    }
}

fn rule(call: libc::c_long, decision: Decision) -> Rule {
    Rule { numbers: number(call)..=number(call), decision }
}

/// The kernel compares numbers as 32 bits without a sign; libc has them as `long`.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the numbers of the table are below 500")]
pub(super) const fn number(call: libc::c_long) -> u32 {
    call as u32
}

#[allow(clippy::cast_sign_loss, reason = "the bits are meant, not the number")]
const fn bits(flags: libc::c_int) -> u32 {
    flags as u32
}
