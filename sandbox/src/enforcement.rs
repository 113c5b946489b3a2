//! What was asked for, what the kernel says it enforces, and why the rest is not.

use std::borrow::Cow;
use std::fmt;

use crate::{Feature, Mode};

/// One feature of one sandbox: wanted how, enforced how.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Enforcement {
    /// Which.
    pub feature: Feature,
    /// How much it was wanted.
    pub mode: Mode,
    /// The value asked for: bytes, processes, nanoseconds; how many CPUs; how many rates. `None` for features without a
    /// value, and for "no limit".
    pub requested: Option<u64>,
    /// The value **read back from the kernel**; for features without a value 1, for Landlock its ABI.
    /// `None`: not enforced.
    pub enforced: Option<u64>,
    /// The mechanism: "cgroup v2 memory.max".
    pub by: Option<Cow<'static, str>>,
    /// Why it is not enforced, or why it is weaker than asked for.
    pub why_not: Option<Cow<'static, str>>,
    /// What would help.
    pub fix: Option<Cow<'static, str>>,
}

impl Enforcement {
    /// A feature that is not enforced (yet).
    pub(crate) const fn wanted(feature: Feature, mode: Mode, requested: Option<u64>) -> Self {
        Self { feature, mode, requested, enforced: None, by: None, why_not: None, fix: None }
    }

    pub(crate) fn by(mut self, enforced: u64, by: impl Into<Cow<'static, str>>) -> Self {
        self.enforced = Some(enforced);
        self.by = Some(by.into());
        self
    }

    pub(crate) fn not(mut self, why: impl Into<Cow<'static, str>>, fix: impl Into<Cow<'static, str>>) -> Self {
        self.why_not = Some(why.into());
        self.fix = Some(fix.into());
        self
    }

    /// An error if it is required and not enforced.
    pub(crate) fn check(self) -> Result<Self, crate::Error> {
        if self.mode == Mode::Require && self.enforced.is_none() {
            let words = |text: Option<Cow<'static, str>>| text.map_or_else(|| "unknown".to_owned(), Cow::into_owned);
            return Err(crate::Error::unsupported(self.feature, words(self.why_not), words(self.fix)));
        }
        Ok(self)
    }
}

impl fmt::Display for Enforcement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<18} {:<8} ", self.feature, self.mode)?;
        match (&self.by, &self.why_not) {
            (Some(by), why) => {
                if let Some(value) = self.requested.and(self.enforced) {
                    write!(f, "{value} ")?;
                }
                write!(f, "by {by}")?;
                why.as_ref().map_or(Ok(()), |why| write!(f, " ({why})"))
            }
            (None, Some(why)) => write!(f, "not enforced: {why}"),
            (None, None) => f.write_str("not wanted"),
        }
    }
}
