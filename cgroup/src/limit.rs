//! The values that limits take: numbers that may be "no limit", CPU quotas, lists of CPUs, and device numbers.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::{Error, Result};

/// A limit: a number, or the kernel's word `max` for "no limit".
///
/// "No limit" is never 0, -1 or a huge number. The unit is the knob's: bytes, tasks, operations per second.
///
/// ```
/// use cgroup::Limit;
/// assert_eq!("max".parse(), Ok(Limit::Max));
/// assert_eq!("64".parse(), Ok(Limit::Value(64)));
/// assert!("-1".parse::<Limit>().is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Limit {
    /// No limit.
    Max,
    /// At most so much.
    Value(u64),
}

impl Limit {
    /// The number, or `None` for [`Limit::Max`].
    #[must_use]
    pub fn value(self) -> Option<u64> {
        match self {
            Self::Max => None,
            Self::Value(value) => Some(value),
        }
    }
}

impl From<u64> for Limit {
    fn from(value: u64) -> Self {
        Self::Value(value)
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Max => f.write_str("max"),
            Self::Value(value) => write!(f, "{value}"),
        }
    }
}

/// A text is neither a decimal number that fits 64 bits nor `max`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected a decimal number below 2^64 or `max`")]
#[non_exhaustive]
pub struct ParseLimitError;

impl FromStr for Limit {
    type Err = ParseLimitError;

    /// Digits only: no sign, no suffix, no spaces. The kernel's own parsers take `-1`, `4K` or a wrapped-around number
    /// on some versions and files and not on others; here the answer is the same everywhere.
    fn from_str(text: &str) -> Result<Self, ParseLimitError> {
        if text == "max" {
            return Ok(Self::Max);
        }
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(ParseLimitError);
        }
        text.parse().map(Self::Value).map_err(|_| ParseLimitError)
    }
}

/// How much CPU time a group may use: `quota` in every `period`.
///
/// The quota is of CPU time summed over all CPUs, so 50 ms in each 100 ms is half a CPU and 200 ms is two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct CpuMax {
    /// Microseconds of CPU time per period, at least 1000, or no limit.
    pub quota: Limit,
    /// Length of the period: 1 ms to 1 s, in whole microseconds. The kernel's default is 100 ms.
    pub period: Duration,
}

impl CpuMax {
    /// The kernel's default period.
    pub const PERIOD: Duration = Duration::from_millis(100);

    /// `quota` microseconds of CPU time in every 100 ms.
    #[must_use]
    pub const fn new(quota: Limit) -> Self {
        Self { quota, period: Self::PERIOD }
    }

    /// The same with another period.
    #[must_use]
    pub const fn with_period(mut self, period: Duration) -> Self {
        self.period = period;
        self
    }

    /// So many thousandths of one CPU: 500 is half a CPU, 2000 two.
    #[must_use]
    pub const fn from_millicpus(millicpus: u64) -> Self {
        Self::new(Limit::Value(millicpus.saturating_mul(100)))
    }

    pub(crate) fn check(self) -> Result<Self> {
        let micros = self.period.as_micros();
        if !(1_000..=1_000_000).contains(&micros) || self.period.subsec_nanos() % 1_000 != 0 {
            return Err(Error::invalid("cpu_max", format!("period {:?} is not 1 ms to 1 s in whole µs", self.period)));
        }
        match self.quota {
            Limit::Value(quota) if quota < 1_000 => {
                Err(Error::invalid("cpu_max", format!("quota {quota} µs is below the kernel's least, 1000 µs")))
            }
            // The scheduler counts in nanoseconds and caps at 2^44 µs; nobody has that many CPUs.
            Limit::Value(quota) if quota >= 1 << 44 => Err(Error::invalid(
                "cpu_max",
                format!("quota {quota} µs is more than the kernel takes; use Limit::Max"),
            )),
            _ => Ok(self),
        }
    }
}

/// A list of CPUs or memory nodes, as in `0-3,8`. Empty means "the same as the parent".
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct CpuList(Vec<(u32, u32)>);

impl CpuList {
    /// The list as inclusive ranges, ascending, neither touching nor overlapping.
    #[must_use]
    pub fn ranges(&self) -> &[(u32, u32)] {
        &self.0
    }

    /// How many numbers the list holds.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.0.iter().map(|(first, last)| u64::from(last - first) + 1).sum()
    }

    /// Whether it holds none, which means "the same as the parent".
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `number` is in the list.
    #[must_use]
    pub fn contains(&self, number: u32) -> bool {
        self.0.iter().any(|&(first, last)| (first..=last).contains(&number))
    }
}

impl FromIterator<u32> for CpuList {
    fn from_iter<I: IntoIterator<Item = u32>>(numbers: I) -> Self {
        Self(merge(numbers.into_iter().map(|n| (n, n)).collect()))
    }
}

fn merge(mut ranges: Vec<(u32, u32)>) -> Vec<(u32, u32)> {
    ranges.sort_unstable();
    let mut out: Vec<(u32, u32)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match out.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => out.push((first, last)),
        }
    }
    out
}

impl fmt::Display for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (first, last)) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str(",")?;
            }
            if first == last { write!(f, "{first}")? } else { write!(f, "{first}-{last}")? }
        }
        Ok(())
    }
}

/// A text is not a list like `0-3,8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected numbers and ranges like `0-3,8`")]
#[non_exhaustive]
pub struct ParseCpuListError;

impl FromStr for CpuList {
    type Err = ParseCpuListError;

    fn from_str(text: &str) -> Result<Self, ParseCpuListError> {
        let number = |text: &str| text.parse::<u32>().map_err(|_| ParseCpuListError);
        let mut ranges = Vec::new();
        for item in text.trim().split(',').filter(|item| !item.is_empty()) {
            let (first, last) = match item.split_once('-') {
                Some((first, last)) => (number(first)?, number(last)?),
                None => (number(item)?, number(item)?),
            };
            if first > last {
                return Err(ParseCpuListError);
            }
            ranges.push((first, last));
        }
        Ok(Self(merge(ranges)))
    }
}

/// A block device by its numbers, as `8:0`. Limits apply to whole disks, not to partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Device {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// A text is not a device number like `8:0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected MAJOR:MINOR")]
#[non_exhaustive]
pub struct ParseDeviceError;

impl FromStr for Device {
    type Err = ParseDeviceError;

    fn from_str(text: &str) -> Result<Self, ParseDeviceError> {
        let (major, minor) = text.split_once(':').ok_or(ParseDeviceError)?;
        let number = |text: &str| text.parse().map_err(|_| ParseDeviceError);
        Ok(Self { major: number(major)?, minor: number(minor)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_digits_or_max() {
        assert_eq!("max".parse(), Ok(Limit::Max));
        assert_eq!("0".parse(), Ok(Limit::Value(0)));
        assert_eq!("18446744073709551615".parse(), Ok(Limit::Value(u64::MAX)));
        for text in ["", "-1", "+1", "MAX", " 1", "1 ", "0x10", "4K", "99999999999999999999", "1.5"] {
            assert_eq!(text.parse::<Limit>(), Err(ParseLimitError), "{text:?}");
        }
    }

    #[test]
    fn cpu_lists_are_sorted_and_merged() {
        let list: CpuList = "8,0-2,3\n".parse().unwrap();
        assert_eq!((list.to_string().as_str(), list.len()), ("0-3,8", 5));
        assert!(list.contains(3) && !list.contains(4));
        assert_eq!([3, 1, 2, 9].into_iter().collect::<CpuList>().to_string(), "1-3,9");
        assert!("\n".parse::<CpuList>().unwrap().is_empty());
        for text in ["a", "3-1", "1-", "-1", "4294967296"] {
            assert!(text.parse::<CpuList>().is_err(), "{text}");
        }
        assert_eq!("0-4294967295".parse::<CpuList>().unwrap().len(), 1 << 32);
    }

    #[test]
    fn cpu_max_is_checked_as_the_kernel_does() {
        assert!(CpuMax::from_millicpus(10).check().is_ok());
        assert!(CpuMax::new(Limit::Value(999)).check().is_err());
        assert!(CpuMax::new(Limit::Value(1 << 44)).check().is_err());
        assert!(CpuMax::new(Limit::Max).check().is_ok());
        for period in [Duration::from_micros(999), Duration::from_micros(1_000_001), Duration::from_nanos(2_000_001)] {
            assert!(CpuMax::new(Limit::Max).with_period(period).check().is_err(), "{period:?}");
        }
    }

    #[test]
    fn devices() {
        assert_eq!("8:16".parse(), Ok(Device { major: 8, minor: 16 }));
        assert!("8".parse::<Device>().is_err() && "8:x".parse::<Device>().is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_text(text: String) {
            let _ = (text.parse::<Limit>(), text.parse::<CpuList>(), text.parse::<Device>());
        }

        #[test]
        fn what_is_printed_is_read(n: u64, numbers: Vec<u32>) {
            proptest::prop_assert_eq!(Limit::Value(n).to_string().parse(), Ok(Limit::Value(n)));
            let list: CpuList = numbers.into_iter().collect();
            proptest::prop_assert_eq!(list.to_string().parse(), Ok(list));
        }
    }
}
