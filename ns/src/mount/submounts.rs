//! All mounts of an attached tree, found without allocating: for kernels that cannot change a tree in one call.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};

use crate::error::Errno;
use crate::path::{self, Open};
use crate::sys::Fd;
use crate::text::Text;

/// Most mounts of one tree.
const MOST: usize = 512;

/// Calls `act` with a descriptor of the top mount and of every mount below.
///
/// # Errors
/// Those of `act`; `ENOSPC` for more mounts than 512, `EBUSY` for one that cannot be reached because another one hides
/// it, `EINVAL` when the tree is not attached below the caller's root.
pub(super) fn for_each(
    tree: BorrowedFd<'_>,
    mut act: impl FnMut(BorrowedFd<'_>) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let mut known = [0_u64; MOST];
    known[0] = mount_id(tree)?;
    let mut count = 1;
    let mut top = Text::<4096>::new();
    let mut found_top = false;
    read_mountinfo(|line| {
        if line.id == known[0] {
            found_top = true;
            top.push(line.point.as_bytes().strip_suffix(b"/").unwrap_or(line.point.as_bytes()))?;
        }
        Ok(())
    })?;
    if !found_top {
        return Err(Errno::from_raw(libc::EINVAL));
    }
    act(tree)?;
    // A mount may be listed before its parent: look again until nothing new is found.
    loop {
        let before = count;
        read_mountinfo(|line| {
            let below = known[..count].contains(&line.parent) && !known[..count].contains(&line.id);
            if !below {
                return Ok(());
            }
            *known.get_mut(count).ok_or(Errno::from_raw(libc::ENOSPC))? = line.id;
            count += 1;
            let relative = line.point.as_bytes().strip_prefix(top.as_bytes()).ok_or(Errno::from_raw(libc::EBUSY))?;
            let mut path = Text::<4096>::new();
            path.push(b".")?;
            path.push(relative)?;
            let mount = Fd::from(path::open_in_root(tree, path.as_c_str(), Open::PATH | Open::NO_SYMLINKS)?);
            if mount_id(mount.as_fd())? != line.id {
                return Err(Errno::from_raw(libc::EBUSY));
            }
            act(mount.as_fd())
        })?;
        if count == before {
            return Ok(());
        }
    }
}

/// The number under which mountinfo lists the mount that `fd` lies on.
fn mount_id(fd: BorrowedFd<'_>) -> Result<u64, Errno> {
    let stat = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).map_err(Errno::of)?;
    if stat.stx_mask & StatxFlags::MNT_ID.bits() == 0 {
        return Err(Errno::from_raw(libc::ENOSYS));
    }
    Ok(stat.stx_mnt_id)
}

/// A line of mountinfo, as far as it matters here.
struct Line {
    id: u64,
    parent: u64,
    /// The mount point, seen from the caller's root, unescaped.
    point: Text<4096>,
}

fn read_mountinfo(mut each: impl FnMut(&Line) -> Result<(), Errno>) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(CWD, c"/proc/self/mountinfo", flags, Mode::empty()).map_err(Errno::of)?;
    let file = Fd::from(file);
    let mut parser = Parser::new();
    let mut buffer = [0_u8; 4096];
    loop {
        match rustix::io::read(file.as_fd(), &mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => {
                for &byte in buffer.get(..length).unwrap_or_default() {
                    if parser.push(byte)? {
                        each(&parser.line)?;
                        parser = Parser::new();
                    }
                }
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Errno::of(error)),
        }
    }
}

/// Takes mountinfo byte by byte: `ID PARENT MAJOR:MINOR ROOT POINT …`, with blanks and the like in names as `\040`.
struct Parser {
    line: Line,
    field: usize,
    /// Digits of an escape still to come, and its value so far.
    escape: Option<(u8, u32)>,
}

impl Parser {
    const fn new() -> Self {
        Self { line: Line { id: 0, parent: 0, point: Text::new() }, field: 0, escape: None }
    }

    /// Says whether the line is complete. `EIO` for what is no mountinfo.
    fn push(&mut self, byte: u8) -> Result<bool, Errno> {
        const BAD: Errno = Errno::from_raw(libc::EIO);
        match (self.field, byte) {
            (0..=4, b'\n') => return Err(BAD),
            (_, b'\n') => return Ok(true),
            (_, b' ') if self.escape.is_none() => self.field += 1,
            (0 | 1, b'0'..=b'9') => {
                let number = if self.field == 0 { &mut self.line.id } else { &mut self.line.parent };
                let digit = u64::from(byte - b'0');
                *number = number.checked_mul(10).and_then(|tens| tens.checked_add(digit)).ok_or(BAD)?;
            }
            (0 | 1, _) => return Err(BAD),
            (4, b'\\') if self.escape.is_none() => self.escape = Some((3, 0)),
            (4, _) => match (self.escape, byte) {
                (None, _) => self.line.point.push(&[byte])?,
                (Some((left, value)), b'0'..=b'7') => {
                    let value = value * 8 + u32::from(byte - b'0');
                    self.escape = Some((left - 1, value));
                    if left == 1 {
                        self.line.point.push(&[u8::try_from(value).map_err(|_| BAD)?])?;
                        self.escape = None;
                    }
                }
                _ => return Err(BAD),
            },
            _ => {}
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &[u8]) -> Result<Vec<(u64, u64, Vec<u8>)>, Errno> {
        let mut lines = Vec::new();
        let mut parser = Parser::new();
        for &byte in text {
            if parser.push(byte)? {
                lines.push((parser.line.id, parser.line.parent, parser.line.point.as_bytes().to_vec()));
                parser = Parser::new();
            }
        }
        Ok(lines)
    }

    #[test]
    fn lines_with_escapes() {
        let lines = parse(include_bytes!("../../testdata/mountinfo-escapes")).unwrap();
        assert_eq!(lines.len(), 4);
        assert_eq!(lines[0], (22, 1, b"/".to_vec()));
        assert_eq!(lines[3], (77, 22, b"/mnt/a b\\c\n".to_vec()));
    }

    #[test]
    fn what_is_no_mountinfo() {
        for text in [
            "\n",
            "1 2\n",
            "x 1 0:1 / / rw\n",
            "1 2 0:1 / /a\\04 rw\n",
            "1 2 0:1 / /a\\777 rw\n",
            "99999999999999999999 1",
        ] {
            assert_eq!(parse(text.as_bytes()).map_err(Errno::raw), Err(libc::EIO), "{text}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text: Vec<u8>) {
            let _ = parse(&text);
        }
    }
}
