//! Paths that stay inside a root directory, whatever symbolic links lie in it and whoever renames things meanwhile.
//!
//! Each function takes the root as a descriptor and a path as the *program inside* would see it: a leading `/` and
//! `..` stop at the root, symbolic links are followed and mean what they mean inside (an absolute one starts at the
//! root). A link like `etc/resolv.conf -> ../run/resolv.conf` so works, and `dev -> /host/dir` leads to `host/dir`
//! below the root or to `ENOENT`, never to the host's directory. Magic links (`/proc/PID/fd/N`, `exe`, `root`) are
//! refused with `ELOOP`.
//!
//! The kernel does it, by `openat2(RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)` (Linux 5.6). Where an outer seccomp filter
//! forbids that, and for creating, the path is walked here component by component through `O_PATH | O_NOFOLLOW`
//! descriptors: only names without `/` that are not `..` are ever passed to the kernel, so that no race leads out. `..`
//! is the walk so far without its last name, done again from the root.
//!
//! What no path resolution can prevent: a *directory* inside the root that someone with access to both moves out of it
//! while it is being used. For clone children: no function allocates, and the smallest
//! [`Stack`](crate::Stack) is enough.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};

use crate::error::Errno;
use crate::sys::Fd;
use crate::text::Text;

bitflags::bitflags! {
    /// How [`open_in_root`] opens. Empty: a file for reading. Always close-on-exec, never the controlling terminal.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Open: u32 {
        /// For writing only.
        const WRITE = 0o1;
        /// For reading and writing.
        const READ_WRITE = 0o2;
        /// Never waits, for pipes and devices (`O_NONBLOCK`).
        const NON_BLOCKING = 0o4000;
        /// Only if it is a directory.
        const DIRECTORY = 0o200_000;
        /// Not if the last component is a symbolic link (`ELOOP`); with [`PATH`](Self::PATH) the link itself.
        const NO_FOLLOW = 0o400_000;
        /// Only as a place (`O_PATH`): neither read nor written, no side effects of opening.
        const PATH = 0o10_000_000;
        /// No symbolic link anywhere in the path (`ELOOP`).
        const NO_SYMLINKS = 0x8000_0000;
    }
}

impl Open {
    fn flags(self) -> OFlags {
        let flags = OFlags::from_bits_retain(self.difference(Self::NO_SYMLINKS).bits()) | OFlags::CLOEXEC;
        // openat2 refuses what means nothing with O_PATH.
        if self.contains(Self::PATH) { flags } else { flags | OFlags::NOCTTY }
    }
}

/// Opens `path` inside `root`.
///
/// # Errors
/// As open(2): `ENOENT`, `ENOTDIR`, `EACCES`, …; `ELOOP` for more than 40 symbolic links, a magic link or a link that
/// `how` forbids; `EAGAIN` when somebody renames directories of the path all the time.
pub fn open_in_root(root: BorrowedFd<'_>, path: &CStr, how: Open) -> Result<OwnedFd, Errno> {
    match openat2(root, path, how) {
        // ENOSYS, EPERM: a seccomp filter (EPERM may also be real, then the walk meets it too). EAGAIN: races.
        Err(errno) if matches!(errno.raw(), libc::ENOSYS | libc::EPERM | libc::EAGAIN) => {
            Ok(walk(root, path, how, Create::Nothing)?.into_owned())
        }
        result => result,
    }
}

/// Opens the directory `path` inside `root` as a place (`O_PATH`), creating what is missing of it, each with `mode`
/// (less the umask). The target of a dangling symbolic link is created inside the root.
///
/// # Errors
/// As [`open_in_root`], and as mkdir(2); `ENOTDIR` when something else is there.
pub fn create_dir_in_root(root: BorrowedFd<'_>, path: &CStr, mode: u32) -> Result<OwnedFd, Errno> {
    Ok(walk(root, path, Open::PATH | Open::DIRECTORY, Create::Directory(mode))?.into_owned())
}

/// Opens `path` inside `root` as a place (`O_PATH`), creating an empty regular file when nothing is there, with
/// `mode` (less the umask), and missing directories with 755. What exists is left alone, whatever it is: look before
/// you use it.
///
/// # Errors
/// As [`open_in_root`], and as open(2) with `O_CREAT`.
pub fn create_file_in_root(root: BorrowedFd<'_>, path: &CStr, mode: u32) -> Result<OwnedFd, Errno> {
    Ok(walk(root, path, Open::PATH, Create::File(mode))?.into_owned())
}

fn openat2(root: BorrowedFd<'_>, path: &CStr, how: Open) -> Result<OwnedFd, Errno> {
    let mut resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    resolve.set(ResolveFlags::NO_SYMLINKS, how.contains(Open::NO_SYMLINKS));
    let mut tries = 0;
    loop {
        match rustix::fs::openat2(root, path, how.flags(), Mode::empty(), resolve) {
            // Something was renamed during a `..`: the kernel could not prove that it stayed inside.
            Err(rustix::io::Errno::AGAIN) if tries < 8 => tries += 1,
            result => return result.map_err(Errno::of),
        }
    }
}

#[derive(Clone, Copy)]
enum Create {
    Nothing,
    Directory(u32),
    File(u32),
}

/// As the kernel: so many symbolic links in one path.
const MAX_LINKS: u32 = 40;
/// So many components opened in one walk, `..` included: no path that links can build keeps a child busy for long.
const MAX_STEPS: u32 = 20_000;

fn error<T>(errno: i32) -> Result<T, Errno> {
    Err(Errno::from_raw(errno))
}

/// Resolves by hand; the state is in [`Walk`].
fn walk(root: BorrowedFd<'_>, path: &CStr, how: Open, create: Create) -> Result<Fd, Errno> {
    if path.is_empty() {
        return error(libc::ENOENT);
    }
    let mut walk = Walk { root, at: None, names: Text::new(), rest: Rest::new(), links: 0, steps: 0 };
    walk.rest.prepend(path.to_bytes())?;
    // A path that ends in `/` names a directory, and follows a link there.
    let directory = path.to_bytes().ends_with(b"/") || how.contains(Open::DIRECTORY);
    let follow_last = path.to_bytes().ends_with(b"/") || !how.contains(Open::NO_FOLLOW);
    while let Some(name) = walk.rest.next()? {
        if name.as_bytes() == b".." {
            walk.up()?;
            continue;
        }
        let last = walk.rest.is_done();
        let found = match walk.step(name.as_c_str()) {
            Err(errno) if errno.raw() == libc::ENOENT => {
                walk.create(name.as_c_str(), last, create)?;
                walk.step(name.as_c_str())?
            }
            found => found?,
        };
        match kind(&found)? {
            FileType::Symlink if last && !follow_last => {
                return match (directory, how.contains(Open::PATH)) {
                    (true, _) => error(libc::ENOTDIR),
                    (false, true) => Ok(found),
                    (false, false) => error(libc::ELOOP),
                };
            }
            FileType::Symlink if how.contains(Open::NO_SYMLINKS) => return error(libc::ELOOP),
            FileType::Symlink => walk.follow(&found)?,
            FileType::Directory => walk.down(&name, found)?,
            _ if !last || directory || walk.rest.ends_in_slash => return error(libc::ENOTDIR),
            _ if how.contains(Open::PATH) => return Ok(found),
            // Opened by name, not through the descriptor: a link put there meanwhile is refused, anything else lies
            // inside.
            _ => return open(walk.here(), name.as_c_str(), how.flags() | OFlags::NOFOLLOW),
        }
    }
    match walk.at {
        Some(directory) if how.contains(Open::PATH) => Ok(directory),
        _ => open(walk.here(), c".", how.flags()),
    }
}

fn open(directory: BorrowedFd<'_>, name: &CStr, flags: OFlags) -> Result<Fd, Errno> {
    rustix::fs::openat(directory, name, flags, Mode::empty()).map(Fd::from).map_err(Errno::of)
}

fn kind(fd: &Fd) -> Result<FileType, Errno> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(fd.as_fd()).map_err(Errno::of)?.st_mode))
}

struct Walk<'root> {
    root: BorrowedFd<'root>,
    /// The directory reached; `None` is the root.
    at: Option<Fd>,
    /// The names that lead to it from the root, each followed by `/`; none is a symbolic link or `..`.
    names: Text<4096>,
    rest: Rest,
    links: u32,
    steps: u32,
}

impl Walk<'_> {
    fn here(&self) -> BorrowedFd<'_> {
        self.at.as_ref().map_or(self.root, |fd| fd.as_fd())
    }

    /// Opens one name here as a place, without following it.
    fn step(&mut self, name: &CStr) -> Result<Fd, Errno> {
        self.count()?;
        open(self.here(), name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC)
    }

    fn count(&mut self) -> Result<(), Errno> {
        self.steps += 1;
        if self.steps > MAX_STEPS { error(libc::ELOOP) } else { Ok(()) }
    }

    fn down(&mut self, name: &Text<256>, directory: Fd) -> Result<(), Errno> {
        self.names.push(name.as_bytes())?;
        self.names.push(b"/")?;
        self.at = Some(directory);
        Ok(())
    }

    /// `..`: the same names without the last, from the root again. The kernel's own `..` would follow a directory that
    /// has been moved out of the root.
    fn up(&mut self) -> Result<(), Errno> {
        let names = self.names.as_bytes();
        let parent =
            names[..names.len().saturating_sub(1)].iter().rposition(|&byte| byte == b'/').map_or(0, |at| at + 1);
        self.names.truncate(parent);
        self.at = None;
        let mut start = 0;
        while let Some(length) = self.names.as_bytes()[start..].iter().position(|&byte| byte == b'/') {
            let mut name = Text::<256>::new();
            name.push(&self.names.as_bytes()[start..start + length])?;
            let next = self.step(name.as_c_str())?;
            if kind(&next)? != FileType::Directory {
                return error(libc::EAGAIN); // replaced meanwhile
            }
            self.at = Some(next);
            start += length + 1;
        }
        Ok(())
    }

    /// Puts a symbolic link's text in front of what is left of the path.
    fn follow(&mut self, link: &Fd) -> Result<(), Errno> {
        self.links += 1;
        if self.links > MAX_LINKS {
            return error(libc::ELOOP);
        }
        let mut buffer = [0_u8; 4096];
        let length = rustix::fs::readlinkat_raw(link.as_fd(), c"", &mut buffer).map_err(Errno::of)?;
        let text = &buffer[..length];
        match text {
            [] => return error(libc::ENOENT),
            _ if text.len() >= 4095 => return error(libc::ENAMETOOLONG),
            _ if is_magic(link, text)? => return error(libc::ELOOP),
            _ => {}
        }
        if text.starts_with(b"/") {
            self.at = None;
            self.names.truncate(0);
        }
        self.rest.prepend(text)
    }

    fn create(&mut self, name: &CStr, last: bool, create: Create) -> Result<(), Errno> {
        let directory_mode = match create {
            Create::Nothing => return error(libc::ENOENT),
            Create::Directory(mode) => Some(mode),
            Create::File(mode) if last && !self.rest.ends_in_slash => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let made = rustix::fs::openat(self.here(), name, flags, Mode::from_raw_mode(mode & 0o7777));
                return exists_is_fine(made.map(|fd| drop(Fd::from(fd))));
            }
            Create::File(_) => None,
        };
        let mode = Mode::from_raw_mode(directory_mode.unwrap_or(0o755) & 0o7777);
        exists_is_fine(rustix::fs::mkdirat(self.here(), name, mode))
    }
}

/// Somebody else made it in between: what it is, the next step finds out.
fn exists_is_fine(made: rustix::io::Result<()>) -> Result<(), Errno> {
    match made {
        Err(rustix::io::Errno::EXIST) => Ok(()),
        result => result.map_err(Errno::of),
    }
}

/// Whether a link jumps instead of being read. On proc those show an absolute path or `type:[inode]`, while its
/// ordinary links (`self`, `mounts`, …) are relative.
fn is_magic(link: &Fd, text: &[u8]) -> Result<bool, Errno> {
    if !text.starts_with(b"/") && !text.contains(&b':') {
        return Ok(false);
    }
    let file_system = rustix::fs::fstatfs(link.as_fd()).map_err(Errno::of)?.f_type;
    Ok(file_system == rustix::fs::PROC_SUPER_MAGIC)
}

/// What is left of the path, kept at the end of a buffer so that a link's text fits in front.
struct Rest {
    buffer: [u8; 4096],
    start: usize,
    ends_in_slash: bool,
}

impl Rest {
    fn new() -> Self {
        Self { buffer: [0; 4096], start: 4096, ends_in_slash: false }
    }

    fn left(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    /// Whether no component is left.
    fn is_done(&self) -> bool {
        self.left().iter().all(|&byte| byte == b'/')
    }

    fn prepend(&mut self, text: &[u8]) -> Result<(), Errno> {
        // A link at the very end decides itself whether a directory is meant: `last -> dir/`.
        if self.left().is_empty() {
            self.ends_in_slash = text.ends_with(b"/");
        }
        let begin = self.start.checked_sub(text.len() + 1).ok_or(Errno::from_raw(libc::ENAMETOOLONG))?;
        if self.start < self.buffer.len() {
            self.buffer[self.start - 1] = b'/';
            self.buffer[begin..self.start - 1].copy_from_slice(text);
            self.start = begin;
        } else {
            self.buffer[begin + 1..].copy_from_slice(text);
            self.start = begin + 1;
        }
        Ok(())
    }

    /// Takes the next component that is not `.`; `None` at the end.
    fn next(&mut self) -> Result<Option<Text<256>>, Errno> {
        loop {
            while self.left().first() == Some(&b'/') {
                self.start += 1;
            }
            let left = self.left();
            let length = left.iter().position(|&byte| byte == b'/').unwrap_or(left.len());
            let mut name = Text::new();
            name.push(&left[..length])?;
            self.start += length;
            match name.as_bytes() {
                b"" => return Ok(None),
                b"." => {}
                _ => return Ok(Some(name)),
            }
        }
    }
}

#[cfg(test)]
mod tests;
