//! Values of the command line.

use std::time::Duration;

/// A number of bytes: `4096`, `64K`, `100M`, `2G`.
///
/// # Errors
/// What was found and what was expected.
pub fn bytes(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number: u64 = digits.parse().map_err(|_| format!("`{text}`: expected bytes, or a number with K, M or G"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("`{text}` is too large"))
}

/// A time: `2s`, `1.5s`, `500ms`, `2m`; a bare number is seconds.
///
/// # Errors
/// What was found and what was expected.
pub fn time(text: &str) -> Result<Duration, String> {
    let expected = || format!("`{text}`: expected a time such as 2s, 1.5s, 500ms or 2m");
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().map_err(|_| expected())?;
    let seconds = match unit {
        "" | "s" => number,
        "ms" => number / 1e3,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        _ => return Err(expected()),
    };
    Duration::try_from_secs_f64(seconds).map_err(|_| expected())
}
