//! x86-64: system call numbers, the `syscall` instruction, `_start`, and the memory functions that the compiler calls.

use core::arch::{asm, global_asm};

/// System call numbers (arch/x86/entry/syscalls/syscall_64.tbl).
pub(crate) mod nr {
    pub(crate) const READ: usize = 0;
    pub(crate) const CLOSE: usize = 3;
    pub(crate) const MMAP: usize = 9;
    pub(crate) const RT_SIGACTION: usize = 13;
    pub(crate) const RT_SIGPROCMASK: usize = 14;
    pub(crate) const SENDMSG: usize = 46;
    pub(crate) const RECVMSG: usize = 47;
    pub(crate) const CLONE: usize = 56;
    pub(crate) const EXECVE: usize = 59;
    pub(crate) const WAIT4: usize = 61;
    pub(crate) const KILL: usize = 62;
    pub(crate) const FCNTL: usize = 72;
    pub(crate) const CHDIR: usize = 80;
    pub(crate) const UMASK: usize = 95;
    pub(crate) const GETUID: usize = 102;
    pub(crate) const SETPGID: usize = 109;
    pub(crate) const SETSID: usize = 112;
    pub(crate) const SETGROUPS: usize = 116;
    pub(crate) const SETRESUID: usize = 117;
    pub(crate) const SETRESGID: usize = 119;
    pub(crate) const CAPSET: usize = 126;
    pub(crate) const PERSONALITY: usize = 135;
    pub(crate) const GETPRIORITY: usize = 140;
    pub(crate) const SETPRIORITY: usize = 141;
    pub(crate) const SCHED_SETSCHEDULER: usize = 144;
    pub(crate) const SCHED_GETSCHEDULER: usize = 145;
    pub(crate) const PRCTL: usize = 157;
    pub(crate) const EXIT_GROUP: usize = 231;
    pub(crate) const IOPRIO_SET: usize = 251;
    pub(crate) const OPENAT: usize = 257;
    pub(crate) const PPOLL: usize = 271;
    pub(crate) const SIGNALFD4: usize = 289;
    pub(crate) const DUP3: usize = 292;
    pub(crate) const PRLIMIT64: usize = 302;
    pub(crate) const SECCOMP: usize = 317;
    pub(crate) const CLOSE_RANGE: usize = 436;
    pub(crate) const LANDLOCK_CREATE_RULESET: usize = 444;
    pub(crate) const LANDLOCK_ADD_RULE: usize = 445;
    pub(crate) const LANDLOCK_RESTRICT_SELF: usize = 446;
}

/// One system call: the kernel's answer, a negative errno on failure.
///
/// # Safety
/// The arguments must be what the system call `number` expects; pointers must stay valid for what the kernel does.
pub(crate) unsafe fn syscall(number: usize, args: [usize; 6]) -> isize {
    let answer;
    // SAFETY: the instruction clobbers rcx and r11 only, and the caller answers for the arguments.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number.cast_signed() => answer,
            in("rdi") args[0], in("rsi") args[1], in("rdx") args[2], in("r10") args[3], in("r8") args[4], in("r9") args[5],
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    answer
}

/// clone(2) with `flags`; the child runs `entry(argument)` on the stack that ends at `stack_top`, in our memory.
///
/// # Safety
/// `flags` must hold `CLONE_VM | CLONE_VFORK`; `stack_top` must be the 16-aligned end of memory that nothing else uses;
/// `pidfd` must be writable when `flags` hold `CLONE_PIDFD`; `entry` must never return.
pub(crate) unsafe fn clone(
    flags: usize,
    stack_top: usize,
    pidfd: *mut i32,
    entry: unsafe extern "C" fn(usize) -> !,
    argument: usize,
) -> isize {
    let answer;
    // SAFETY: the parent falls through with its own stack untouched (the child has another); the child never comes
    // back from the call. r12 and r13 survive the system call in both.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r13",
            "call r12",
            "ud2",
            "2:",
            inlateout("rax") nr::CLONE as isize => answer,
            in("rdi") flags, in("rsi") stack_top, in("rdx") pidfd, in("r10") 0, in("r8") 0,
            in("r12") entry, in("r13") argument,
            lateout("rcx") _, lateout("r11") _,
        );
    }
    answer
}

global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "and rsp, -16",
    "call {main}",
    "ud2",
    main = sym crate::main,
);

global_asm!(
    // The compiler may turn loops and struct copies into calls of these.
    ".globl memcpy", ".globl memmove", ".globl memset", ".globl memcmp",
    "memcpy:", "mov rax, rdi", "mov rcx, rdx", "rep movsb", "ret",
    "memset:", "mov r8, rdi", "mov eax, esi", "mov rcx, rdx", "rep stosb", "mov rax, r8", "ret",
    // Init never moves overlapping memory upwards; stop rather than copy wrongly.
    "memmove:", "mov rax, rdi", "sub rax, rsi", "cmp rax, rdx", "jb 2f", "mov rax, rdi", "mov rcx, rdx", "rep movsb", "ret", "2: ud2",
    "memcmp:", "xor eax, eax", "mov rcx, rdx", "repe cmpsb", "je 3f", "movzx eax, byte ptr [rdi - 1]",
    "movzx ecx, byte ptr [rsi - 1]", "sub eax, ecx", "3: ret",
);
