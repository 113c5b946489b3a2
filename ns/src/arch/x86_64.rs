//! x86-64: number in `rax`, arguments in `rdi rsi rdx r10 r8 r9`, result in `rax`; `rcx` and `r11` are lost.
//!
//! # Safety
//! The two functions are the processor's own contract and check nothing: what a call does to memory is the caller's
//! promise, made one kernel call at a time in `sys.rs` and `process.rs`.
#![allow(unsafe_code)]

use std::arch::asm;
use std::ffi::c_void;

/// Makes system call `number`; the result is the kernel's, errors as `-errno`. Touches neither `errno` nor TLS.
///
/// # Safety
/// The kernel may read and write whatever `number` and `arguments` tell it to.
pub(crate) unsafe fn syscall(number: isize, arguments: [usize; 6]) -> isize {
    let [a, b, c, d, e, f] = arguments;
    let result;
    // SAFETY: the kernel keeps every register but rax, rcx and r11, which are named; memory is the caller's promise.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// Makes `clone3(arguments, size)`: returns in the parent, calls `entry(argument)` in the child, on the child's stack.
///
/// Assembly, because the child must not return through a frame that belongs to the parent. The kernel starts the child
/// with every register of the parent but `rsp`, which is the top of its new stack, and `rax`, which is 0.
///
/// # Safety
/// `arguments` points to `size` bytes of a `struct clone_args` with `CLONE_VM` and a stack, 16-byte aligned at its top,
/// that nobody else uses until the child has gone or called exec; `entry` may be called with `argument` there.
pub(crate) unsafe fn clone3(
    arguments: *const c_void,
    size: usize,
    entry: unsafe extern "C" fn(*mut c_void) -> !,
    argument: *mut c_void,
) -> isize {
    const CLONE3: i32 = 435;
    let result;
    // SAFETY: in the parent this is a system call as above. In the child nothing of this frame is touched: entry and
    // argument are in registers, and the stack is as after a call (16 n + 8) from address 0, where unwinders stop.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "push 0",
            "mov rdi, r13",
            "jmp r12",
            "2:",
            inlateout("rax") CLONE3 as isize => result,
            in("rdi") arguments, in("rsi") size, in("r12") entry, in("r13") argument,
            lateout("rcx") _, lateout("r11") _,
        );
    }
    result
}
