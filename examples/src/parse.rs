//! Values of the command line.

use std::time::Duration;

use sandbox::IoRates;
use sandbox::cgroup::CpuList;

/// More CPUs than Linux can be built for.
const CPUS_MOST: u64 = 8192;

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

/// A list of CPUs: `0-3,8`.
///
/// # Errors
/// What was found and what was expected.
pub fn cpus(text: &str) -> Result<CpuList, String> {
    let list: CpuList = text.parse().map_err(|error| format!("`{text}`: {error}"))?;
    if list.len() > CPUS_MOST { Err(format!("`{text}`: more than {CPUS_MOST} CPUs")) } else { Ok(list) }
}

/// Rates of a disk: `/dev/sda:read=10M,write-ops=100`. The device may be numbers, as `8:0`.
///
/// # Errors
/// What was found and what was expected.
pub fn rates(text: &str) -> Result<(String, IoRates), String> {
    let expected = || format!("`{text}`: expected DEVICE:NAME=RATE,… of the names read, write, read-ops and write-ops");
    let (device, list) = text.rsplit_once(':').ok_or_else(expected)?;
    let mut rates = IoRates::default();
    for rate in list.split(',') {
        let (name, number) = rate.split_once('=').ok_or_else(expected)?;
        let rate = match name {
            "read" => &mut rates.read_bytes,
            "write" => &mut rates.write_bytes,
            "read-ops" => &mut rates.read_ops,
            "write-ops" => &mut rates.write_ops,
            _ => return Err(expected()),
        };
        *rate = Some(bytes(number)?);
    }
    Ok((device.to_owned(), rates))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus() {
        assert_eq!(cpus("0-2,8").unwrap().len(), 4);
        assert!(cpus("0-4294967295").is_err() && cpus("a").is_err());
    }

    #[test]
    fn rates_of_a_disk() {
        let (device, both) = rates("8:0:read=10M,write-ops=100").unwrap();
        let expected = IoRates { read_bytes: Some(10 << 20), write_ops: Some(100), ..Default::default() };
        assert_eq!((device.as_str(), both), ("8:0", expected));
        for text in ["", "/dev/sda", "/dev/sda:", "/dev/sda:read", "/dev/sda:speed=1", "/dev/sda:read=x"] {
            assert!(rates(text).is_err(), "{text}");
        }
    }
}
