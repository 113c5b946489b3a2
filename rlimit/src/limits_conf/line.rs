//! One line of limits.conf: words, domain, item, value. Nothing here knows a user.

use std::fmt;

use super::{Flavor, IgnoredWhy};
use crate::Resource;

/// How strong a line is, by its domain; the strongest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Level {
    /// The user by name, or a range of uids.
    User,
    /// `@group`, or a range of gids.
    Group,
    /// `%group`: only for `maxlogins`.
    AllGroup,
    /// `%`: only for `maxlogins`.
    All,
    /// `*`.
    Default,
    /// Not a line: the limits of process 1.
    Init,
    /// Not a line: inherited.
    None,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::User => "user",
            Self::Group => "group",
            Self::AllGroup => "%group",
            Self::All => "%",
            Self::Default => "*",
            Self::Init => "process 1",
            Self::None => "inherited",
        })
    }
}

/// What a line says.
#[derive(Clone, Debug)]
pub(super) enum Statement {
    /// Four fields.
    Entry { domain: Domain, kind: Kind, item: Item, value: Value },
    /// `alice -`: no limits for whom it matches.
    NoLimits { domain: Domain },
    /// Nothing that the module acts on.
    Broken(IgnoredWhy),
}

/// The first word, with the numbers that it may hold.
#[derive(Clone, Debug)]
pub(super) struct Domain {
    pub(super) text: Box<[u8]>,
    pub(super) range: Range,
}

/// The numbers after `@` or `%`, or at the start of the domain. Truncated to 32 bits, as by the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Range {
    /// No `:` in it: a name.
    Name,
    /// `:id`.
    One(u32),
    /// `least:`.
    From(u32),
    /// `least:most`.
    Between(u32, u32),
}

/// The second word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Soft,
    Hard,
    Both,
    /// None of the three: the items that have no soft and hard do not mind.
    Other,
}

/// The third word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Item {
    Resource(Resource),
    MaxLogins,
    MaxSysLogins,
    Priority,
    NoNewPrivs,
    /// Debian only.
    Chroot,
    Unknown,
}

/// The fourth word, or the rest of the line; lower-cased.
pub(super) type Value = Box<[u8]>;

/// C's `isspace` in the C locale.
const fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | 0x0b | 0x0c | b'\r')
}

/// The pieces that the module takes for lines, with the number of the line in the file.
///
/// Each ends before its newline; 1.5.2 reads at most 1023 bytes at once.
pub(super) fn pieces(bytes: &[u8], flavor: Flavor) -> impl Iterator<Item = (usize, &[u8])> {
    let most = if flavor == Flavor::LinuxPam17 { usize::MAX } else { 1023 };
    let mut rest = bytes;
    let mut number = 1;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let newline = rest.iter().take(most).position(|byte| *byte == b'\n');
        let (piece, here) = match newline {
            Some(end) => {
                let (piece, tail) = rest.split_at(end);
                rest = tail.get(1..).unwrap_or_default();
                number += 1;
                (piece, number - 1)
            }
            None => {
                let (piece, tail) = rest.split_at(rest.len().min(most));
                rest = tail;
                (piece, number)
            }
        };
        Some((here, piece))
    })
}

/// What the piece says; `None` when it is blank or a comment.
pub(super) fn parse(piece: &[u8], flavor: Flavor) -> Option<Statement> {
    let until = |bytes: &'_ [u8], stop: u8| bytes.iter().position(|byte| *byte == stop).unwrap_or(bytes.len());
    let piece = &piece[..until(piece, 0)];
    let start = piece.iter().position(|byte| !is_space(*byte))?;
    let line = &piece[start..];
    let line = &line[..until(line, b'#')];
    if line.is_empty() {
        return None;
    }
    let (count, [domain, kind, item, value]) =
        if flavor == Flavor::LinuxPam17 { words_and_rest(line) } else { words(line) };
    let Some(range) = range(domain) else { return Some(Statement::Broken(IgnoredWhy::BadRange)) };
    let domain = Domain { text: domain.into(), range };
    let kind = kind.to_ascii_lowercase();
    Some(match count {
        4 => Statement::Entry {
            domain,
            kind: match kind.as_slice() {
                b"soft" => Kind::Soft,
                b"hard" => Kind::Hard,
                b"-" => Kind::Both,
                _ => Kind::Other,
            },
            item: item_named(&item.to_ascii_lowercase(), flavor),
            value: value.to_ascii_lowercase().into(),
        },
        2 if kind.first() == Some(&b'-') => Statement::NoLimits { domain },
        _ => Statement::Broken(IgnoredWhy::NotFourFields),
    })
}

/// Four words apart by any white space; what follows is ignored.
fn words(line: &[u8]) -> (usize, [&[u8]; 4]) {
    let mut words = [&line[..0]; 4];
    let mut count = 0;
    for (slot, word) in words.iter_mut().zip(line.split(|byte| is_space(*byte)).filter(|word| !word.is_empty())) {
        *slot = word;
        count += 1;
    }
    (count, words)
}

/// Three words apart by blanks and tabs, and the rest without those around it.
fn words_and_rest(line: &[u8]) -> (usize, [&[u8]; 4]) {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let mut words = [&line[..0]; 4];
    let mut rest = line;
    for (count, slot) in words.iter_mut().enumerate() {
        let Some(start) = rest.iter().position(|byte| !blank(byte)) else { return (count, words) };
        rest = &rest[start..];
        if count == 3 {
            let end = rest.iter().rposition(|byte| !blank(byte)).map_or(0, |last| last + 1);
            *slot = &rest[..end];
        } else {
            let end = rest.iter().position(blank).unwrap_or(rest.len());
            (*slot, rest) = rest.split_at(end);
        }
    }
    (4, words)
}

/// The numbers of a domain with a colon; `None` when they are none.
fn range(domain: &[u8]) -> Option<Range> {
    let Some(colon) = domain.iter().position(|byte| *byte == b':') else { return Some(Range::Name) };
    let least = match domain.first() {
        Some(b'@' | b'%') => &domain[1..colon.max(1)],
        _ => &domain[..colon],
    };
    let most = &domain[colon + 1..];
    match (least, most) {
        ([], []) => None,
        ([], most) => Some(Range::One(id(most)?)),
        (least, []) => Some(Range::From(id(least)?)),
        (least, most) => Some(Range::Between(id(least)?, id(most)?)),
    }
}

/// C's `strtoul` of the whole text, its result cut to 32 bits as by the module. `None` where it reports an error.
fn id(text: &[u8]) -> Option<u32> {
    let number = unsigned(text)?;
    let exact = number.end == text.len() && !number.overflow;
    // The cut is what the module does: 4294968296 is uid 1000.
    #[allow(clippy::cast_possible_truncation)]
    exact.then_some(number.value as u32)
}

/// The outcome of C's `strtoull` in base 10.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unsigned {
    pub(super) value: u64,
    pub(super) end: usize,
    pub(super) overflow: bool,
}

/// C's `strtoull` in base 10: blanks, a sign (minus wraps), digits, any tail. `None` when there is no digit.
pub(super) fn unsigned(text: &[u8]) -> Option<Unsigned> {
    let (negative, digits) = sign(text);
    let tail = &text[digits..];
    let length = tail.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if length == 0 {
        return None;
    }
    let value = tail[..length]
        .iter()
        .try_fold(0_u64, |value, digit| value.checked_mul(10)?.checked_add(u64::from(digit - b'0')));
    let (value, overflow) = match value {
        None => (u64::MAX, true),
        Some(value) if negative => (value.wrapping_neg(), false),
        Some(value) => (value, false),
    };
    Some(Unsigned { value, end: digits + length, overflow })
}

/// C's `strtol` in base 10, cut to the range of an `int`, as the module does. `None` when there is no digit.
pub(super) fn signed(text: &[u8]) -> Option<i32> {
    let (negative, digits) = sign(text);
    let tail = &text[digits..];
    let length = tail.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if length == 0 {
        return None;
    }
    Some(tail[..length].iter().fold(0_i32, |value, digit| {
        let digit = i32::from(digit - b'0');
        value.saturating_mul(10).saturating_add(if negative { -digit } else { digit })
    }))
}

/// Whether a minus stands before the digits, and where these begin.
fn sign(text: &[u8]) -> (bool, usize) {
    let blanks = text.iter().take_while(|byte| is_space(**byte)).count();
    match text.get(blanks) {
        Some(b'-') => (true, blanks + 1),
        Some(b'+') => (false, blanks + 1),
        _ => (false, blanks),
    }
}

fn item_named(name: &[u8], flavor: Flavor) -> Item {
    match name {
        b"maxlogins" => Item::MaxLogins,
        b"maxsyslogins" => Item::MaxSysLogins,
        b"priority" => Item::Priority,
        b"nonewprivs" => Item::NoNewPrivs,
        b"chroot" if flavor == Flavor::Debian12 => Item::Chroot,
        b"rttime" if flavor != Flavor::LinuxPam17 => Item::Unknown,
        name => Resource::ALL
            .into_iter()
            .find(|resource| resource.as_str().as_bytes() == name)
            .map_or(Item::Unknown, Item::Resource),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_c_reads_them() {
        let value = |text: &str| unsigned(text.as_bytes()).map(|number| number.value);
        assert_eq!(value("12abc"), Some(12));
        assert_eq!(value("0x100"), Some(0));
        assert_eq!(value("+7"), Some(7));
        assert_eq!(value("\x0b 010"), Some(10));
        assert_eq!(value("-5"), Some(u64::MAX - 4));
        assert_eq!(value("18446744073709551615"), Some(u64::MAX));
        assert_eq!(value("99999999999999999999"), Some(u64::MAX));
        assert_eq!(value("-99999999999999999999"), Some(u64::MAX));
        for none in ["", "-", "+", "k", "--1", "- 1"] {
            assert_eq!(value(none), None, "{none}");
        }
        assert_eq!(signed(b"-20x"), Some(-20));
        assert_eq!(signed(b"99999999999"), Some(i32::MAX));
        assert_eq!(signed(b"-99999999999"), Some(i32::MIN));
        assert_eq!(signed(b"-2147483648"), Some(i32::MIN));
        assert_eq!(signed(b"unlimited"), None);
    }

    #[test]
    fn ranges() {
        for (text, expected) in [
            ("alice", Some(Range::Name)),
            ("@", Some(Range::Name)),
            ("1000:", Some(Range::From(1000))),
            (":1000", Some(Range::One(1000))),
            ("@:1000", Some(Range::One(1000))),
            ("%:5", Some(Range::One(5))),
            ("1:2", Some(Range::Between(1, 2))),
            ("@1:2", Some(Range::Between(1, 2))),
            (":4294968296", Some(Range::One(1000))),
            ("-1:2", Some(Range::Between(u32::MAX, 2))),
            (":", None),
            ("@:", None),
            ("abc:", None),
            ("1000:x", None),
            ("10:20:30", None),
            ("0x3e8:", None),
            (":99999999999999999999", None),
            ("@@1:2", None),
        ] {
            assert_eq!(range(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn a_long_line_is_split_by_the_old_module() {
        let text = format!("#{}\nb\n\nc", "x".repeat(1100));
        let numbers =
            |flavor| pieces(text.as_bytes(), flavor).map(|(number, piece)| (number, piece.len())).collect::<Vec<_>>();
        assert_eq!(numbers(Flavor::LinuxPam17), [(1, 1101), (2, 1), (3, 0), (4, 1)]);
        assert_eq!(numbers(Flavor::Debian12), [(1, 1023), (1, 78), (2, 1), (3, 0), (4, 1)]);
    }
}
