//! [`Namespaces`], a set of kinds of namespace, and [`Kind`], one of them.

use std::fmt;

bitflags::bitflags! {
    /// A set of kinds of namespace; the bits are the kernel's `CLONE_NEW*`.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Namespaces: u64 {
        /// Boot-time and monotonic clock offsets. Since Linux 5.6; see [`crate::Clone`] for its oddities.
        const TIME = 0x0000_0080;
        /// Mount points. Since Linux 2.4.19.
        const MOUNT = 0x0002_0000;
        /// The root directory that `/proc/PID/cgroup` and cgroup mounts show. Since Linux 4.6.
        const CGROUP = 0x0200_0000;
        /// Host name and NIS domain name. Since Linux 2.6.19.
        const UTS = 0x0400_0000;
        /// System V IPC and POSIX message queues. Since Linux 2.6.19 (queues 2.6.30).
        const IPC = 0x0800_0000;
        /// User and group ids, capabilities and keyrings. Since Linux 3.8.
        const USER = 0x1000_0000;
        /// Process ids; the first process inside is its init. Since Linux 2.6.24.
        const PID = 0x2000_0000;
        /// Network devices, addresses, routes, ports, abstract sockets. Since Linux 2.6.29.
        const NETWORK = 0x4000_0000;
    }
}

impl Namespaces {
    /// The kinds in this set, in the order of [`Kind::ALL`].
    pub fn kinds(self) -> impl Iterator<Item = Kind> {
        Kind::ALL.into_iter().filter(move |kind| self.contains(kind.flag()))
    }
}

impl fmt::Display for Namespaces {
    /// The kinds' names joined by `,`, or `none`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        for (index, kind) in self.kinds().enumerate() {
            write!(f, "{}{kind}", if index == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl From<Kind> for Namespaces {
    fn from(kind: Kind) -> Self {
        kind.flag()
    }
}

impl FromIterator<Kind> for Namespaces {
    fn from_iter<I: IntoIterator<Item = Kind>>(kinds: I) -> Self {
        kinds.into_iter().fold(Self::empty(), |all, kind| all | kind.flag())
    }
}

/// One kind of namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Kind {
    /// See [`Namespaces::USER`].
    User,
    /// See [`Namespaces::MOUNT`].
    Mount,
    /// See [`Namespaces::PID`].
    Pid,
    /// See [`Namespaces::IPC`].
    Ipc,
    /// See [`Namespaces::UTS`].
    Uts,
    /// See [`Namespaces::NETWORK`].
    Network,
    /// See [`Namespaces::CGROUP`].
    Cgroup,
    /// See [`Namespaces::TIME`].
    Time,
}

impl Kind {
    /// All kinds that this crate knows, the user namespace first: it owns those made with it.
    pub const ALL: [Self; 8] =
        [Self::User, Self::Mount, Self::Pid, Self::Ipc, Self::Uts, Self::Network, Self::Cgroup, Self::Time];

    /// The set with just this kind.
    pub const fn flag(self) -> Namespaces {
        match self {
            Self::User => Namespaces::USER,
            Self::Mount => Namespaces::MOUNT,
            Self::Pid => Namespaces::PID,
            Self::Ipc => Namespaces::IPC,
            Self::Uts => Namespaces::UTS,
            Self::Network => Namespaces::NETWORK,
            Self::Cgroup => Namespaces::CGROUP,
            Self::Time => Namespaces::TIME,
        }
    }

    /// The name of its file in `/proc/PID/ns` (`mnt`, `net`, …).
    pub const fn file_name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Mount => "mnt",
            Self::Pid => "pid",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::Network => "net",
            Self::Cgroup => "cgroup",
            Self::Time => "time",
        }
    }

    /// The kind with this `CLONE_NEW*` bit, as `ioctl(NS_GET_NSTYPE)` returns it.
    pub fn from_bits(bits: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.flag().bits() == bits)
    }
}

impl fmt::Display for Kind {
    /// The field's word: `user`, `mount`, `pid`, `ipc`, `uts`, `network`, `cgroup`, `time`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mount => "mount",
            Self::Network => "network",
            kind => kind.file_name(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bits_are_the_kernels() {
        for (kind, bits) in [
            (Kind::User, libc::CLONE_NEWUSER),
            (Kind::Mount, libc::CLONE_NEWNS),
            (Kind::Pid, libc::CLONE_NEWPID),
            (Kind::Ipc, libc::CLONE_NEWIPC),
            (Kind::Uts, libc::CLONE_NEWUTS),
            (Kind::Network, libc::CLONE_NEWNET),
            (Kind::Cgroup, libc::CLONE_NEWCGROUP),
            (Kind::Time, libc::CLONE_NEWTIME),
        ] {
            assert_eq!(u64::try_from(bits).ok(), Some(kind.flag().bits()), "{kind}");
        }
        assert_eq!(Namespaces::all().kinds().count(), Kind::ALL.len());
    }

    #[test]
    fn display() {
        assert_eq!(Namespaces::empty().to_string(), "none");
        assert_eq!((Namespaces::MOUNT | Namespaces::USER).to_string(), "user,mount");
        assert_eq!(Namespaces::NETWORK.to_string(), "network");
    }

    proptest! {
        #[test]
        fn a_set_is_its_kinds(bits: u64) {
            let set = Namespaces::from_bits_truncate(bits);
            prop_assert_eq!(set.kinds().collect::<Namespaces>(), set);
            prop_assert_eq!(set.bits() & !Namespaces::all().bits(), 0);
            for kind in set.kinds() {
                prop_assert_eq!(Kind::from_bits(kind.flag().bits()), Some(kind));
            }
        }

        #[test]
        fn no_kind_for_other_bits(bits: u64) {
            prop_assume!(!bits.is_power_of_two());
            prop_assert_eq!(Kind::from_bits(bits), None);
        }
    }
}
