//! What a slot's file says: who has it, since when, and whether its last owner is known to have ended.

use std::fmt::Write as _;

use crate::Range;

/// A slot's file always has this many bytes, so that a new record covers the old one in one write.
pub(super) const LENGTH: usize = 512;

/// The longest name of an owner that is kept, in bytes.
const NAME: usize = 200;

const HEADER: &str = "sandbox lease 1";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Somebody leased it. While the lock is held it is in use; when it is not, the owner ended without a word.
    Held,
    /// It was given back by an owner who knew that all its processes had ended.
    Released,
    /// Files with these ids remain somewhere: not leased again, but to whoever may have these files, until that ends. While
    /// the lock is not held, the owner ended without a word.
    Registered,
    /// The same, given back by an owner who knew that all its processes had ended.
    Kept,
}

impl State {
    const ALL: [Self; 4] = [Self::Held, Self::Released, Self::Registered, Self::Kept];

    const fn word(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Released => "released",
            Self::Registered => "registered",
            Self::Kept => "kept",
        }
    }

    /// Whether the last owner said that its processes had ended.
    pub(super) const fn is_given_back(self) -> bool {
        matches!(self, Self::Released | Self::Kept)
    }

    /// Whether files with the ids remain.
    pub(super) const fn has_files(self) -> bool {
        matches!(self, Self::Registered | Self::Kept)
    }
}

/// What the last holder of the slot's lock wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) state: State,
    pub(super) pid: u32,
    /// The boot during which it was written: no process outlives it.
    pub(super) boot: String,
    pub(super) uids: Range,
    pub(super) gids: Range,
    pub(super) name: String,
}

impl Record {
    /// The file's bytes. A name is cut at 200 bytes, and control characters in it become `?`.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut text = String::with_capacity(LENGTH);
        let (state, pid, boot) = (self.state.word(), self.pid, &self.boot);
        let (uids, gids) = (self.uids, self.gids);
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "{HEADER}\nstate {state}\npid {pid}\nboot {boot}\nuids {} {}\ngids {} {}\nname ",
            uids.base(),
            uids.count(),
            gids.base(),
            gids.count()
        );
        let end = text.len() + NAME;
        for c in self.name.chars() {
            if text.len() + c.len_utf8() > end {
                break;
            }
            text.push(if c.is_control() { '?' } else { c });
        }
        let sum = checksum(text.as_bytes());
        let _ = write!(text, "\nsum {sum:016x}\n");
        let mut bytes = text.into_bytes();
        bytes.resize(LENGTH, b'\n');
        bytes
    }

    /// Reads a file's bytes; `None` for anything but a whole record: an empty file, one that was cut, garbage.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes.get(..LENGTH)?).ok()?;
        let (body, sum) = text.rsplit_once("\nsum ")?;
        if u64::from_str_radix(sum.trim_end_matches('\n'), 16).ok()? != checksum(body.as_bytes()) {
            return None;
        }
        let mut lines = body.split('\n');
        if lines.next()? != HEADER {
            return None;
        }
        let mut field = |key: &str| lines.next()?.strip_prefix(key)?.strip_prefix(' ');
        let state = field("state")?;
        let state = State::ALL.into_iter().find(|known| known.word() == state)?;
        let pid = field("pid")?.parse().ok()?;
        let boot = field("boot")?.to_owned();
        let uids = range(field("uids")?)?;
        let gids = range(field("gids")?)?;
        let name = field("name")?.to_owned();
        Some(Self { state, pid, boot, uids, gids, name })
    }
}

/// `BASE COUNT`
pub(super) fn range(text: &str) -> Option<Range> {
    let (base, count) = text.split_once(' ')?;
    Range::new(base.parse().ok()?, count.parse().ok()?).ok()
}

/// FNV-1a: tells a record that was cut or half overwritten, not one that somebody forged (who can, owns the directory).
pub(super) fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, &byte| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str) -> Record {
        let uids = Range::new(2_013_265_920, 65536).unwrap();
        let boot = "1c3c8b2e-6f0e-4b1e-9f55-0d9c9a2c7d10".into();
        Record { state: State::Held, pid: u32::MAX, boot, uids, gids: uids, name: name.into() }
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        for state in State::ALL {
            let record = Record { state, ..record("judge 7") };
            assert_eq!(Record::decode(&record.encode()), Some(record));
        }
    }

    #[test]
    fn any_name_fits_and_cannot_forge_a_line() {
        for name in ["", "a\nsum 0\nstate released", &"é".repeat(500), "\0"] {
            let bytes = record(name).encode();
            assert_eq!(bytes.len(), LENGTH);
            let read = Record::decode(&bytes).unwrap();
            assert_eq!(read.state, State::Held);
            assert!(read.name.len() <= NAME && !read.name.contains('\n'));
        }
    }

    #[test]
    fn a_damaged_record_is_none() {
        let whole = record("x").encode();
        assert_eq!(Record::decode(&[]), None);
        assert_eq!(Record::decode(&whole[..LENGTH - 1]), None);
        for at in 0..250 {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            assert_ne!(Record::decode(&bytes), Some(record("x")), "byte {at}");
        }
    }
}
