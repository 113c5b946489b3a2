//! Texts of bounded length on the stack, for children that must not allocate.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::error::Errno;

/// At most `N - 1` bytes and a NUL.
#[derive(Clone)]
pub(crate) struct Text<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Text<N> {
    pub(crate) const fn new() -> Self {
        Self { bytes: [0; N], len: 0 }
    }

    /// Adds to the end; `ENAMETOOLONG` when it does not fit, `EINVAL` for a NUL.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        if bytes.contains(&0) {
            return Err(Errno::from_raw(libc::EINVAL));
        }
        let end = self.len.saturating_add(bytes.len());
        let place = self.bytes[..N - 1].get_mut(self.len..end).ok_or(Errno::from_raw(libc::ENAMETOOLONG))?;
        place.copy_from_slice(bytes);
        self.len = end;
        Ok(())
    }

    /// Cuts to the first `len` bytes.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        self.bytes[self.len..].fill(0);
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    pub(crate) fn as_c_str(&self) -> &CStr {
        // Always found: the last byte stays 0.
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or(c"")
    }
}

fn digits(mut value: u64, base: u64) -> Text<24> {
    let mut reversed = [0_u8; 24];
    let mut count = 0;
    loop {
        // At most 22 digits (octal), each below 10.
        reversed[count] = b'0' + u8::try_from(value % base).unwrap_or(0);
        count += 1;
        value /= base;
        if value == 0 {
            break;
        }
    }
    let mut text = Text::new();
    reversed[..count].reverse();
    let _ = text.push(&reversed[..count]);
    text
}

pub(crate) fn decimal(value: u64) -> Text<24> {
    digits(value, 10)
}

pub(crate) fn octal(value: u32) -> Text<24> {
    digits(value.into(), 8)
}

/// `/proc/self/fd/N`; `ENODEV` when what is mounted at `/proc` is no proc.
pub(crate) fn descriptor_path(fd: BorrowedFd<'_>) -> Result<Text<40>, Errno> {
    let mut text = Text::new();
    text.push(b"/proc/self/fd")?;
    let kind = rustix::fs::statfs(text.as_c_str()).map_err(Errno::of)?.f_type;
    if kind != rustix::fs::PROC_SUPER_MAGIC {
        return Err(Errno::from_raw(libc::ENODEV));
    }
    text.push(b"/")?;
    text.push(decimal(number(fd)).as_bytes())?;
    Ok(text)
}

/// A descriptor's number, never negative.
pub(crate) fn number(fd: BorrowedFd<'_>) -> u64 {
    u64::try_from(fd.as_raw_fd()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bounds() {
        let mut text = Text::<4>::new();
        assert_eq!(text.push(b"abcd").map_err(Errno::raw), Err(libc::ENAMETOOLONG));
        assert_eq!(text.push(b"a\0").map_err(Errno::raw), Err(libc::EINVAL));
        assert!(text.push(b"abc").is_ok() && text.push(b"").is_ok() && text.push(b"d").is_err());
        assert_eq!(text.as_c_str(), c"abc");
        text.truncate(1);
        assert_eq!((text.as_c_str(), text.as_bytes()), (c"a", &b"a"[..]));
    }

    proptest! {
        #[test]
        fn numbers(value: u64, small: u32) {
            let decimal = decimal(value);
            prop_assert_eq!(decimal.as_c_str().to_str().unwrap(), value.to_string());
            let octal = octal(small);
            prop_assert_eq!(octal.as_c_str().to_str().unwrap(), format!("{small:o}"));
        }
    }

    #[test]
    fn largest() {
        assert_eq!(decimal(u64::MAX).as_bytes().len(), 20);
        assert_eq!(octal(u32::MAX).as_bytes(), b"37777777777");
    }
}
