//! Ways to store as much as one can.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use sandbox::{LimitKind, Outcome, Output};

use super::super::said;
use super::{number, say};

/// `FS_IOC_FSGETXATTR`, `FS_IOC_FSSETXATTR` and the flag of directories that hand their project on.
const GET: u64 = 0x801c_581f;
const SET: u64 = 0x401c_5820;
const INHERIT: u32 = 0x200;
const FILE_SETATTR: i64 = 469;

fn say_made(count: u64, errno: i32) {
    say("made", format!("{count} {errno}"));
}

/// What `fill` and `files` say: how much, and the errno or 0.
pub fn result(output: &Output) -> (u64, i32) {
    assert!(output.outcome.success(), "{output:?} {}", String::from_utf8_lossy(&output.stderr));
    let words = said(&output.stdout, "made");
    let (count, errno) = words.split_once(' ').unwrap();
    (count.parse().unwrap(), errno.parse().unwrap())
}

/// How often the limits of bytes and of files were met.
pub fn hits(outcome: &Outcome) -> (Option<u64>, Option<u64>) {
    (outcome.hit(LimitKind::Disk), outcome.hit(LimitKind::Inodes))
}

fn errno_of(error: &std::io::Error) -> i32 {
    error.raw_os_error().unwrap_or(-1)
}

/// Writes up to `most` bytes: by 64 KiB, and when that fails by 4 KiB, as f2fs refuses a write whole that fits in part.
fn store(mut file: &File, most: u64) -> (u64, i32) {
    let block = [0x5a; 65536];
    let (mut size, mut written) = (block.len(), 0);
    while written < most {
        match file.write(&block[..size.min(usize::try_from(most - written).unwrap())]) {
            Ok(count) => written += count as u64,
            Err(_) if size > 4096 => size = 4096,
            Err(error) => return (written, errno_of(&error)),
        }
    }
    (written, file.sync_all().map_or_else(|error| errno_of(&error), |()| 0))
}

/// `fill FILE BYTES`: says how many were written, and the errno.
pub fn fill(words: &[&str]) {
    match OpenOptions::new().create(true).append(true).open(words[0]) {
        Ok(file) => {
            let (written, errno) = store(&file, number(words, 1));
            say_made(written, errno);
        }
        Err(error) => say_made(0, errno_of(&error)),
    }
}

/// `files DIRECTORY file|directory|link N`: makes so many, in a directory that is made if it is missing.
pub fn files(words: &[&str]) {
    let directory = Path::new(words[0]);
    let _ = fs::create_dir(directory);
    let mut made = 0;
    while made < number(words, 2) {
        let path = directory.join(format!("{}{made}", words[1]));
        let result = match words[1] {
            "directory" => fs::create_dir(path),
            "link" => std::os::unix::fs::symlink("nowhere", path),
            _ => File::create_new(path).map(drop),
        };
        if let Err(error) = result {
            return say_made(made, errno_of(&error));
        }
        made += 1;
    }
    say_made(made, 0);
}

/// `df DIRECTORY`: its size in bytes and in inodes.
pub fn df(words: &[&str]) {
    let has = rustix::fs::statvfs(words[0]).unwrap();
    say("df", format!("{} {}", has.f_blocks * has.f_frsize, has.f_files));
}

fn change(file: &File, request: u64, attributes: &mut [u32; 7]) -> i32 {
    // SAFETY: both requests read or write one struct fsxattr, which is 28 bytes.
    let answer = unsafe { libc::ioctl(file.as_raw_fd(), request, attributes.as_mut_ptr()) };
    if answer == 0 { 0 } else { super::errno() }
}

/// `escape DIRECTORY`: takes a new directory in it out of its project by every call there is, and then fills it.
pub fn escape(words: &[&str]) {
    let out = PathBuf::from(words[0]).join("out");
    fs::create_dir(&out).unwrap();
    let directory = File::open(&out).unwrap();
    let mut attributes = [0u32; 7];
    assert_eq!(change(&directory, GET, &mut attributes), 0);
    let [flags, extent, extents, _, hint, ..] = attributes;
    let path = CString::new(out.to_str().unwrap()).unwrap();
    // struct file_attr: flags as 64 bits, extent size, extents, project, hint.
    let by_name = [flags & !INHERIT, 0, extent, extents, 0, hint];
    // SAFETY: a path, a whole struct file_attr of 24 bytes, and its size.
    let answer = unsafe {
        libc::syscall(FILE_SETATTR, libc::AT_FDCWD, path.as_ptr(), by_name.as_ptr(), size_of_val(&by_name), 0)
    };
    say("by_name", if answer == 0 { 0 } else { super::errno() });
    say("flag", change(&directory, SET, &mut [flags & !INHERIT, extent, extents, attributes[3], hint, 0, 0]));
    say("ioctl", change(&directory, SET, &mut [flags & !INHERIT, extent, extents, 0, hint, 0, 0]));
    let file = File::create(out.join("file")).unwrap();
    let (written, errno) = store(&file, 8 << 20);
    say_made(written, errno);
}

/// `bypass WAY DIRECTORY`: stores by something other than writing to a named file, until it is refused.
pub fn bypass(words: &[&str]) {
    let directory = Path::new(words[1]);
    match words[0] {
        "fallocate" => {
            let (mut made, file) = (0, File::create(directory.join("f")).unwrap());
            let errno = loop {
                match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::KEEP_SIZE, made, 65536) {
                    Ok(()) => made += 65536,
                    Err(error) => break error.raw_os_error(),
                }
                assert!(made < 64 << 20, "no end");
            };
            say_made(made, errno);
        }
        "nameless" => {
            let flags = rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::WRONLY;
            let file = File::from(rustix::fs::open(directory, flags, 0o600.into()).unwrap());
            let (written, errno) = store(&file, 64 << 20);
            say_made(written, errno);
        }
        "mapping" => {
            let file = OpenOptions::new().read(true).write(true).create_new(true).open(directory.join("f")).unwrap();
            file.set_len(64 << 20).unwrap();
            let (read_write, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
            // SAFETY: a new mapping of the whole file, of which nothing else knows.
            let start = unsafe { libc::mmap(std::ptr::null_mut(), 64 << 20, read_write, shared, file.as_raw_fd(), 0) };
            assert!(start != libc::MAP_FAILED);
            for page in 0..(64 << 20) / 4096 {
                // SAFETY: within the mapping. That the kernel refuses it at some time is what this is for.
                unsafe { start.cast::<u8>().wrapping_add(page * 4096).write_volatile(1) };
            }
            say_made(64 << 20, 0);
        }
        "attributes" => {
            let mut made = 0;
            let errno = loop {
                let path = directory.join(format!("a{made}"));
                let result = File::create(&path).and_then(|file| {
                    let flags = rustix::fs::XattrFlags::empty();
                    rustix::fs::fsetxattr(&file, "user.large", &[7; 3000], flags).map_err(Into::into)
                });
                if let Err(error) = result {
                    break errno_of(&error);
                }
                made += 1;
                assert!(made < 20_000, "no end");
            };
            say_made(made * 3000, errno);
        }
        "deleted" => {
            let (mut held, mut total) = (Vec::new(), 0);
            let errno = loop {
                let path = directory.join("f");
                let file = match File::create(&path) {
                    Ok(file) => file,
                    Err(error) => break errno_of(&error),
                };
                fs::remove_file(&path).unwrap();
                let (written, errno) = store(&file, 256 << 10);
                held.push(file);
                total += written;
                if errno != 0 {
                    break errno;
                }
                assert!(total < 64 << 20, "no end");
            };
            say_made(total, errno);
        }
        way => panic!("no such way: {way}"),
    }
}
