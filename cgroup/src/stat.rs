//! Parsers of the kernel's statistics: bytes in, numbers out. They skip what they do not know, as new kernels add keys,
//! take no memory, and answer `None` for what does not parse.

use std::time::Duration;

/// The `key value` pairs of a flat-keyed file. Lines without a space are skipped.
pub(crate) fn flat(text: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    lines(text).filter_map(|line| {
        let at = line.iter().position(|&b| b == b' ')?;
        Some((line.get(..at)?, line.get(at + 1..)?))
    })
}

pub(crate) fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|&b| b == b'\n').filter(|line| !line.is_empty())
}

/// A decimal number that fits; spaces and newlines around it are the kernel's.
pub(crate) fn number(text: &[u8]) -> Option<u64> {
    let text = text.trim_ascii();
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |n, &b| {
        let digit = b.is_ascii_digit().then(|| u64::from(b - b'0'))?;
        n.checked_mul(10)?.checked_add(digit)
    })
}

/// The number of one key of a flat-keyed file.
pub(crate) fn value(text: &[u8], key: &[u8]) -> Option<u64> {
    flat(text).find(|(k, _)| *k == key).and_then(|(_, v)| number(v))
}

pub(crate) fn micros(text: &[u8], key: &[u8]) -> Option<Duration> {
    value(text, key).map(Duration::from_micros)
}

/// A key and its value.
type Pair<'a> = (&'a [u8], &'a [u8]);

/// One line of a nested-keyed file: `8:0 rbytes=1 wbytes=2`. The first word and the pairs.
pub(crate) fn nested(line: &[u8]) -> Option<(&[u8], impl Iterator<Item = Pair<'_>>)> {
    let mut words = line.split(|&b| b == b' ').filter(|word| !word.is_empty());
    let first = words.next()?;
    let pairs = words.filter_map(|word| {
        let at = word.iter().position(|&b| b == b'=')?;
        Some((word.get(..at)?, word.get(at + 1..)?))
    });
    Some((first, pairs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flat_keyed() {
        let text = b"low 0\nhigh 51\nmax 35\n\nodd\noom_kill 2\n";
        assert_eq!(value(text, b"oom_kill"), Some(2));
        assert_eq!(value(text, b"odd"), None);
        assert_eq!(value(text, b"oom_group_kill"), None);
        assert_eq!(flat(text).count(), 4);
    }

    #[test]
    fn numbers() {
        assert_eq!(number(b"18446744073709551615\n"), Some(u64::MAX));
        for text in [&b""[..], b"\n", b"-1", b"18446744073709551616", b"1 2", b"max"] {
            assert_eq!(number(text), None, "{text:?}");
        }
    }

    #[test]
    fn nested_keyed() {
        let (first, pairs) = nested(b"8:16 rbytes=1 wbytes=22 odd rios=x").unwrap();
        assert_eq!(first, b"8:16");
        assert_eq!(pairs.collect::<Vec<_>>(), [(&b"rbytes"[..], &b"1"[..]), (b"wbytes", b"22"), (b"rios", b"x")]);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes(text: Vec<u8>, key: Vec<u8>) {
            let _ = (value(&text, &key), number(&text), flat(&text).count());
            for line in lines(&text) {
                let _ = nested(line).map(|(_, pairs)| pairs.count());
            }
        }

        #[test]
        fn numbers_come_back(n: u64) {
            proptest::prop_assert_eq!(number(n.to_string().as_bytes()), Some(n));
        }
    }
}
