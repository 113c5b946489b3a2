//! A program that records who it is before it does anything else: no loader, no library, no start-up code.

use std::error::Error;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;

use rustix::fd::OwnedFd;
use rustix::fs::{MemfdFlags, memfd_create};

/// getresuid, getresgid, write 24 bytes to standard output, exit.
const CODE: &[u8] = &[
    0x48, 0x83, 0xec, 0x20, // sub rsp, 32
    0x48, 0x89, 0xe7, // mov rdi, rsp
    0x48, 0x8d, 0x77, 0x04, // lea rsi, [rdi+4]
    0x48, 0x8d, 0x57, 0x08, // lea rdx, [rdi+8]
    0xb8, 118, 0, 0, 0, // mov eax, 118
    0x0f, 0x05, // syscall
    0x48, 0x8d, 0x7c, 0x24, 0x0c, // lea rdi, [rsp+12]
    0x48, 0x8d, 0x77, 0x04, // lea rsi, [rdi+4]
    0x48, 0x8d, 0x57, 0x08, // lea rdx, [rdi+8]
    0xb8, 120, 0, 0, 0, // mov eax, 120
    0x0f, 0x05, // syscall
    0xbf, 1, 0, 0, 0, // mov edi, 1
    0x48, 0x89, 0xe6, // mov rsi, rsp
    0xba, 24, 0, 0, 0, // mov edx, 24
    0xb8, 1, 0, 0, 0, // mov eax, 1
    0x0f, 0x05, // syscall
    0x31, 0xff, // xor edi, edi
    0xb8, 60, 0, 0, 0, // mov eax, 60
    0x0f, 0x05, // syscall
];

/// Where the program is loaded, and the size of the two headers before its code.
const BASE: u64 = 0x40_0000;
const HEADERS: u64 = 64 + 56;

/// The program, in memory.
pub struct Program(OwnedFd);

impl Program {
    /// A path that can be executed by this process's children.
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }
}

/// Makes the program: one loadable segment, entered right behind the headers.
pub fn program() -> Result<Program, Box<dyn Error>> {
    // Not close-on-exec: unshare(1) must still have it.
    let memory = memfd_create("recorder", MemfdFlags::empty())?;
    let size = HEADERS + CODE.len() as u64;
    let mut file = Vec::new();
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]); // executable, x86-64, version 1
    for word in [BASE + HEADERS, 64, 0] {
        file.extend(word.to_le_bytes()); // entry, program headers, section headers
    }
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]); // flags and sizes: one program header
    file.extend([1, 0, 0, 0, 5, 0, 0, 0]); // load, readable and executable
    for word in [0, BASE, BASE, size, size, 4096] {
        file.extend(word.to_le_bytes());
    }
    file.extend(CODE);
    rustix::io::write(&memory, &file)?;
    Ok(Program(memory))
}
