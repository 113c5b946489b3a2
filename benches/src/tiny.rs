//! The tiny target: a static ELF file that only exits.
//!
//! Most of what `posix_spawn("/bin/true")` takes is the dynamic loader and the C library, which hides what the sandbox
//! costs. This file has one page and one system call, so nothing hides behind it.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

const BASE: u64 = 0x40_0000;
const ELF_HEADER: u64 = 64;
const PROGRAM_HEADER: u64 = 56;

/// `exit_group(0)`.
#[cfg(target_arch = "x86_64")]
const CODE: &[u8] = &[
    0x31, 0xff, // xor edi, edi
    0xb8, 0xe7, 0, 0, 0, // mov eax, 231
    0x0f, 0x05, // syscall
];
#[cfg(target_arch = "x86_64")]
const MACHINE: u16 = 62;

/// The bytes of the file: ELF header, one loadable segment, the code.
#[must_use]
pub fn elf() -> Vec<u8> {
    let start = ELF_HEADER + PROGRAM_HEADER;
    let size = start + CODE.len() as u64;
    let mut file = Vec::with_capacity(256);
    let mut put = |bytes: &[u8]| file.extend_from_slice(bytes);
    put(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0"); // 64 bits, little-endian, version 1
    put(&2u16.to_le_bytes()); // an executable with fixed addresses
    put(&MACHINE.to_le_bytes());
    put(&1u32.to_le_bytes());
    put(&(BASE + start).to_le_bytes()); // entry point
    put(&ELF_HEADER.to_le_bytes()); // program headers
    put(&0u64.to_le_bytes()); // no section headers
    put(&0u32.to_le_bytes()); // flags
    for half in [64u16, 56, 1, 64, 0, 0] {
        put(&half.to_le_bytes()); // sizes and numbers of the headers
    }
    put(&1u32.to_le_bytes()); // PT_LOAD
    put(&5u32.to_le_bytes()); // readable and executable
    for word in [0, BASE, BASE, size, size, 0x1000] {
        put(&word.to_le_bytes()); // offset, addresses, sizes, alignment
    }
    put(CODE);
    file
}

/// The file in a directory of its own, which goes with this value.
#[derive(Debug)]
pub struct Tiny {
    // Field order: the file is deleted with the directory.
    path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Tiny {
    /// Writes it into a new directory below `parent`.
    ///
    /// # Errors
    /// When nothing can be written there.
    pub fn write(parent: &Path) -> io::Result<Self> {
        let directory = tempfile::Builder::new().prefix("sandbox-benches-").tempdir_in(parent)?;
        // Programs with ids of their own must get at it.
        std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755))?;
        let path = directory.path().join("tiny");
        std::fs::write(&path, elf())?;
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755))?;
        Ok(Self { path, _directory: directory })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The directory that a sandbox must show so that `target` is there; `None` when the usual ones hold it.
#[must_use]
pub fn directory_to_show(target: &Path) -> Option<&Path> {
    let usual = ["/usr", "/bin", "/sbin", "/lib", "/lib64"].iter().any(|directory| target.starts_with(directory));
    if usual { None } else { target.parent() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_runs_and_exits_with_zero() {
        let tiny = Tiny::write(&std::env::temp_dir()).unwrap();
        assert!(std::process::Command::new(tiny.path()).status().unwrap().success());
        assert_eq!(elf().len(), 129);
    }

    #[test]
    fn only_unusual_directories_are_shown() {
        assert_eq!(directory_to_show(Path::new("/usr/bin/true")), None);
        assert_eq!(directory_to_show(Path::new("/srv/x/tiny")), Some(Path::new("/srv/x")));
    }
}
