//! [`Capability`]: the few that a program of a sandbox may keep.

use std::fmt;

/// A capability for [`Builder::capabilities`](crate::Builder::capabilities).
///
/// It reaches as far as the sandbox: the files and processes that belong to its ids. Those that are missing here would reach
/// farther (into init, into the kernel), or nowhere, since the other namespaces belong to the host. capabilities(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
#[repr(u8)]
pub enum Capability {
    /// `CAP_CHOWN`: give files to other ids of the sandbox.
    Chown = 0,
    /// `CAP_DAC_OVERRIDE`: read, write and execute files whatever their mode.
    DacOverride = 1,
    /// `CAP_DAC_READ_SEARCH`: read files and search directories whatever their mode.
    DacReadSearch = 2,
    /// `CAP_FOWNER`: do what only the owner of a file may.
    Fowner = 3,
    /// `CAP_FSETID`: keep set-ID bits when a file changes.
    Fsetid = 4,
    /// `CAP_KILL`: signal processes of other ids of the sandbox; init is out of reach of signals.
    Kill = 5,
    /// `CAP_SETGID`: take on any group of the sandbox.
    Setgid = 6,
    /// `CAP_SETUID`: take on any user of the sandbox.
    Setuid = 7,
}

impl Capability {
    /// The bit of a kernel set.
    pub(crate) const fn bit(self) -> u64 {
        1 << self as u8
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Chown => "CAP_CHOWN",
            Self::DacOverride => "CAP_DAC_OVERRIDE",
            Self::DacReadSearch => "CAP_DAC_READ_SEARCH",
            Self::Fowner => "CAP_FOWNER",
            Self::Fsetid => "CAP_FSETID",
            Self::Kill => "CAP_KILL",
            Self::Setgid => "CAP_SETGID",
            Self::Setuid => "CAP_SETUID",
        }
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
