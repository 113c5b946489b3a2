//! The one line of mountinfo that describes the mount on which a descriptor lies.
//!
//! Read as bytes and searched by mount id: a path elsewhere in the table that is not UTF-8 must not matter here.

use std::ffi::OsString;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use rustix::fs::{AtFlags, StatxFlags, statx};

/// What messages and fixes say about a mount. Decisions are made from what the kernel answers, not from this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) point: PathBuf,
    pub(crate) options: String,
    pub(crate) kind: String,
    pub(crate) source: PathBuf,
    pub(crate) super_options: String,
}

impl Mount {
    /// `None` where /proc is not mounted or does not show the mount (a detached one, another root).
    pub(crate) fn of(fd: BorrowedFd<'_>) -> Option<Self> {
        let id = statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).ok()?.stx_mnt_id;
        parse(&std::fs::read("/proc/thread-self/mountinfo").ok()?, id)
    }

    pub(crate) fn has_option(&self, name: &str) -> bool {
        [&self.options, &self.super_options].into_iter().any(|options| options.split(',').any(|option| option == name))
    }

    pub(crate) fn super_option(&self, key: &str) -> Option<&str> {
        self.super_options.split(',').find_map(|option| option.strip_prefix(key)?.strip_prefix('='))
    }
}

/// `36 35 98:0 /root /point options [optional…] - kind source super_options`, proc_pid_mountinfo(5).
fn parse(text: &[u8], id: u64) -> Option<Mount> {
    text.split(|&byte| byte == b'\n').find_map(|line| {
        let mut fields = line.split(|&byte| byte == b' ');
        if std::str::from_utf8(fields.next()?).ok()?.parse() != Ok(id) {
            return None;
        }
        let point = path(fields.nth(3)?);
        let options = text_of(fields.next()?);
        fields.find(|field| *field == b"-")?;
        let kind = text_of(fields.next()?);
        let source = path(fields.next()?);
        let super_options = text_of(fields.next()?);
        Some(Mount { point, options, kind, source, super_options })
    })
}

fn text_of(field: &[u8]) -> String {
    String::from_utf8_lossy(field).into_owned()
}

fn path(field: &[u8]) -> PathBuf {
    OsString::from_vec(unescape(field)).into()
}

/// The kernel writes blank, tab, newline and backslash as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let digits = if byte == b'\\' { after.get(..3) } else { None };
        let value = digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        (rest, _) = match value {
            Some(value) => (after.get(3..).unwrap_or_default(), bytes.push(value)),
            None => (after, bytes.push(byte)),
        };
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn a_line_is_found_by_its_mount_id() {
        let text = include_bytes!("../testdata/mountinfo");
        let root = parse(text, 21).unwrap();
        assert_eq!((root.point.to_str(), root.kind.as_str()), (Some("/"), "ext4"));
        let xfs = parse(text, 64).unwrap();
        assert_eq!(xfs.point, PathBuf::from("/mnt/with blank"));
        assert_eq!(xfs.source, PathBuf::from("/dev/vdb"));
        assert!(xfs.has_option("prjquota") && xfs.has_option("nodev") && !xfs.has_option("quota"));
        let overlay = parse(text, 70).unwrap();
        assert_eq!(overlay.super_option("upperdir"), Some("/mnt/upper"));
        assert_eq!(parse(text, 71).unwrap().point.as_os_str(), OsStr::from_bytes(b"/mnt/\xff"));
        assert_eq!(parse(text, 6), None);
        assert_eq!(parse(b"", 1), None);
        assert_eq!(parse(b"1 2 3", 1), None);
    }

    #[test]
    fn escapes() {
        assert_eq!(unescape(b"a\\040b\\134\\9\\"), b"a b\\\\9\\");
    }
}
