//! A limit's value, the soft and hard pair, and `name=soft:hard`.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Resource};

/// The value of a soft or of a hard limit, in the unit of its [`Resource`].
///
/// Ordered as the kernel compares: [`Unlimited`](Self::Unlimited) is greater than any value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Limit {
    /// No limit: the kernel's `RLIM_INFINITY`, spelt `unlimited`.
    Unlimited,
    /// At most so much. `Value(u64::MAX)` is the same to the kernel as `Unlimited`; [`from_raw`](Self::from_raw) never makes it.
    Value(u64),
}

impl Limit {
    /// From the number in the kernel's `struct rlimit64`, where all ones mean no limit.
    pub const fn from_raw(raw: u64) -> Self {
        match raw {
            u64::MAX => Self::Unlimited,
            value => Self::Value(value),
        }
    }

    /// The number for the kernel's `struct rlimit64`.
    pub const fn to_raw(self) -> u64 {
        match self {
            Self::Unlimited => u64::MAX,
            Self::Value(value) => value,
        }
    }

    /// The value, or `None` when there is no limit.
    pub const fn value(self) -> Option<u64> {
        match self {
            Self::Unlimited => None,
            Self::Value(value) => Some(value),
        }
    }

    pub(crate) const fn from_option(value: Option<u64>) -> Self {
        match value {
            None => Self::Unlimited,
            Some(value) => Self::from_raw(value),
        }
    }
}

impl Ord for Limit {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        // `Unlimited` and the value of all ones are one to the kernel, but two to `Eq`: keep the orders consistent.
        self.to_raw().cmp(&other.to_raw()).then(matches!(self, Self::Unlimited).cmp(&matches!(other, Self::Unlimited)))
    }
}

impl PartialOrd for Limit {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl From<u64> for Limit {
    /// [`Limit::from_raw`].
    fn from(raw: u64) -> Self {
        Self::from_raw(raw)
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unlimited => f.pad("unlimited"),
            Self::Value(value) => f.pad(&value.to_string()),
        }
    }
}

impl FromStr for Limit {
    type Err = Error;

    /// Reads `unlimited` or a decimal number without sign, in the unit of the resource.
    ///
    /// Stricter than limits.conf on purpose: `10k` is an error here, not 10.
    ///
    /// # Errors
    /// [`Error::Invalid`] for anything else, and for numbers of 2^64 − 1 and above, which would mean no limit.
    fn from_str(text: &str) -> Result<Self, Error> {
        if text == "unlimited" {
            return Ok(Self::Unlimited);
        }
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        match text.parse() {
            Ok(value) if digits && value != u64::MAX => Ok(Self::Value(value)),
            _ => Err(Error::Invalid {
                what: format!("limit `{text}`"),
                why: "expected `unlimited` or a whole number below 2^64 - 1".to_owned(),
            }),
        }
    }
}

/// The two limits of one resource: `soft` is what acts, `hard` is how far the process itself may raise `soft`.
///
/// A process may lower either at any time (soft ≤ hard must hold); raising `hard` needs CAP_SYS_RESOURCE in the initial
/// user namespace, which the root of a container does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Limits {
    /// The limit that acts.
    pub soft: Limit,
    /// The ceiling of `soft`.
    pub hard: Limit,
}

impl Limits {
    /// No limit at all.
    pub const UNLIMITED: Self = Self { soft: Limit::Unlimited, hard: Limit::Unlimited };

    /// Both limits at the same value.
    pub const fn both(limit: Limit) -> Self {
        Self { soft: limit, hard: limit }
    }

    /// The two numbers for the kernel's `struct rlimit64`, soft first.
    pub const fn to_raw(self) -> [u64; 2] {
        [self.soft.to_raw(), self.hard.to_raw()]
    }

    pub(crate) fn from_rustix(limits: rustix::process::Rlimit) -> Self {
        Self { soft: Limit::from_option(limits.current), hard: Limit::from_option(limits.maximum) }
    }

    pub(crate) const fn to_rustix(self) -> rustix::process::Rlimit {
        rustix::process::Rlimit { current: self.soft.value(), maximum: self.hard.value() }
    }

    pub(crate) fn check(self, resource: Resource) -> Result<Self, Error> {
        if self.soft <= self.hard {
            return Ok(self);
        }
        Err(Error::Invalid {
            what: format!("{resource}={self}"),
            why: "the soft limit is above the hard limit".to_owned(),
        })
    }
}

impl fmt::Display for Limits {
    /// `soft:hard`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.soft, self.hard)
    }
}

impl FromStr for Limits {
    type Err = Error;

    /// Reads `soft:hard`, or one value for both.
    ///
    /// # Errors
    /// [`Error::Invalid`] when a part is no [`Limit`], or soft is above hard.
    fn from_str(text: &str) -> Result<Self, Error> {
        let limits = match text.split_once(':') {
            Some((soft, hard)) => Self { soft: soft.parse()?, hard: hard.parse()? },
            None => Self::both(text.parse()?),
        };
        if limits.soft > limits.hard {
            return Err(Error::Invalid {
                what: format!("limits `{text}`"),
                why: "the soft limit is above the hard limit".to_owned(),
            });
        }
        Ok(limits)
    }
}

/// A resource and its limits, as people write them: `nofile=64:128`, `core=0`, `memlock=unlimited`.
///
/// Numbers are in the kernel's units ([`Resource::unit`]), not in those of limits.conf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Setting {
    /// What is limited.
    pub resource: Resource,
    /// How far.
    pub limits: Limits,
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.resource, self.limits)
    }
}

impl FromStr for Setting {
    type Err = Error;

    /// Reads `name=soft:hard`, or `name=value` for both.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the name is no [`Resource`], a value no [`Limit`], or soft is above hard.
    fn from_str(text: &str) -> Result<Self, Error> {
        let (name, limits) = text.split_once('=').ok_or_else(|| Error::Invalid {
            what: format!("limit `{text}`"),
            why: "expected NAME=SOFT[:HARD]".to_owned(),
        })?;
        Ok(Self { resource: name.parse()?, limits: limits.parse()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_values_go_both_ways() {
        assert_eq!(Limit::from_raw(u64::MAX), Limit::Unlimited);
        assert_eq!(Limit::Unlimited.to_raw(), u64::MAX);
        assert_eq!(Limit::from_raw(7), Limit::Value(7));
        assert!(Limit::Value(u64::MAX - 1) < Limit::Unlimited);
        assert!(Limit::Value(u64::MAX) < Limit::Unlimited);
        assert!(Limit::Value(1) < Limit::Value(2));
    }

    #[test]
    fn settings_are_read_and_printed() {
        let setting: Setting = "nofile=64:128".parse().unwrap();
        assert_eq!(setting.resource, Resource::Nofile);
        assert_eq!(setting.limits, Limits { soft: Limit::Value(64), hard: Limit::Value(128) });
        assert_eq!(setting.to_string(), "nofile=64:128");
        assert_eq!("core=0".parse::<Setting>().unwrap().limits, Limits::both(Limit::Value(0)));
        assert_eq!("as=unlimited".parse::<Setting>().unwrap().limits, Limits::UNLIMITED);
        assert_eq!("as=5:unlimited".parse::<Setting>().unwrap().limits.hard, Limit::Unlimited);
    }

    #[test]
    fn wrong_settings_are_refused_in_words() {
        for (text, word) in [
            ("nofile", "NAME=SOFT[:HARD]"),
            ("nofile=", "limit ``"),
            ("nofile=128:64", "soft limit is above"),
            ("nofile=unlimited:64", "soft limit is above"),
            ("nofile=+1", "limit `+1`"),
            ("nofile=-1", "limit `-1`"),
            ("nofile=1:2:3", "limit `2:3`"),
            ("nofile=10k", "limit `10k`"),
            ("files=1", "resource `files`"),
            ("nofile=18446744073709551615", "2^64 - 1"),
            ("nofile=99999999999999999999", "2^64 - 1"),
        ] {
            let error = text.parse::<Setting>().unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
