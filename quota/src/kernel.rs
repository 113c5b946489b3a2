use std::fmt;

use rustix::system::uname;

/// A kernel release, `major.minor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kernel {
    /// `6` of `6.12.9-cloud`.
    pub major: u32,
    /// `12` of `6.12.9-cloud`.
    pub minor: u32,
}

impl Kernel {
    /// The oldest kernel on which this crate is tested.
    pub const OLDEST_TESTED: Self = Self { major: 5, minor: 10 };

    /// The running kernel, from uname(2). `None` if its release is not of the usual form.
    ///
    /// Features are never decided by this number, distributions port them back; only [`KernelCheck`] looks at it.
    #[must_use]
    pub fn running() -> Option<Self> {
        parse(uname().release().to_str().ok()?)
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

fn parse(release: &str) -> Option<Kernel> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some(Kernel { major: numbers.next()?.parse().ok()?, minor: numbers.next()?.parse().ok()? })
}

/// What an older kernel than the minimum means: the policy is the caller's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KernelCheck {
    /// A reason to refuse.
    #[default]
    Refuse,
    /// A warning; the caller goes on at its own risk.
    Warn,
    /// Nothing: the version is not looked at.
    Off,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases() {
        assert_eq!(parse("6.12.9-cloud"), Some(Kernel { major: 6, minor: 12 }));
        assert_eq!(parse("7.2"), Some(Kernel { major: 7, minor: 2 }));
        assert_eq!(parse("3.10.0-1160.el7.x86_64"), Some(Kernel { major: 3, minor: 10 }));
        assert_eq!(parse("next"), None);
        assert_eq!(parse(""), None);
        assert!(Kernel { major: 4, minor: 20 } < Kernel::OLDEST_TESTED);
        assert!(Kernel::running().is_some());
    }
}
