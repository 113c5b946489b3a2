//! Landlock: the fence that the kernel checks when a file is opened or a port is taken, whatever mounts and modes allow.
//!
//! Init makes the rules and restricts itself before its first request, so every program is restricted, the first and
//! those that come later. Paths are of the sandbox and do not exist before its mounts do: init opens them itself.
//!
//! landlock(7), Documentation/userspace-api/landlock.rst.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::init::protocol;

/// Rights on files, as the first ABI numbers them: execute, write_file, read_file, read_dir, …
const READ: u64 = 1 | 1 << 2 | 1 << 3;
const FILES_FIRST: u64 = (1 << 13) - 1;
const REFER: u64 = 1 << 13;
const TRUNCATE: u64 = 1 << 14;
const IOCTL_DEV: u64 = 1 << 15;
const BIND_TCP: u64 = 1;
const CONNECT_TCP: u64 = 1 << 1;
const ABSTRACT_SOCKETS: u64 = 1;
/// The ABI from which on no way around a rule is left: for files truncate(2) was one before.
const ABI_FILES: u32 = 3;
const ABI_TCP: u32 = 4;
const ABI_ABSTRACT_SOCKETS: u32 = 6;
const PATHS_MAX: usize = 256;

/// What programs may still do, for [`Builder::landlock`](crate::Builder::landlock). What is not named is not restricted
/// as long as nothing of its kind is named.
///
/// ```
/// use sandbox::Landlock;
/// Landlock::new().read("/usr").read("/lib64").read("/etc").write("/tmp").write("/dev").bind_tcp([]).connect_tcp([443]);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Landlock {
    paths: Vec<(PathBuf, bool)>,
    bind_tcp: Option<Vec<u16>>,
    connect_tcp: Option<Vec<u16>>,
    abstract_sockets: bool,
}

impl Landlock {
    /// No restriction yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets programs read, list and execute `path` **inside** and everything below it. With the first path, all other
    /// files can no longer be opened, executed or changed; they can still be seen by stat(2), and be the working directory.
    ///
    /// The program itself, its interpreter and its libraries must lie below such a path. Descriptors that a program is
    /// born with are not touched.
    #[must_use]
    pub fn read(mut self, path: impl Into<PathBuf>) -> Self {
        self.paths.push((path.into(), false));
        self
    }

    /// As [`read`](Self::read), and lets them write, make, move and remove there too, as far as mounts and modes allow.
    #[must_use]
    pub fn write(mut self, path: impl Into<PathBuf>) -> Self {
        self.paths.push((path.into(), true));
        self
    }

    /// Lets TCP sockets be bound to these ports alone; an empty list allows none. Kernel: 6.7. UDP is not restricted.
    #[must_use]
    pub fn bind_tcp(mut self, ports: impl IntoIterator<Item = u16>) -> Self {
        self.bind_tcp.get_or_insert_default().extend(ports);
        self
    }

    /// Lets TCP sockets connect to these ports alone, at any address; an empty list allows none. Kernel: 6.7.
    #[must_use]
    pub fn connect_tcp(mut self, ports: impl IntoIterator<Item = u16>) -> Self {
        self.connect_tcp.get_or_insert_default().extend(ports);
        self
    }

    /// Keeps programs from abstract Unix sockets that were made outside: for [`Network::Host`](crate::Network::Host).
    /// Kernel: 6.12.
    #[must_use]
    pub fn no_abstract_sockets(mut self) -> Self {
        self.abstract_sockets = true;
        self
    }

    /// What is wrong with it, if anything.
    pub(crate) fn check(&self) -> Result<(), String> {
        if *self == Self::default() {
            return Err("it restricts nothing: name what is allowed".to_owned());
        }
        if self.paths.len() > PATHS_MAX {
            return Err(format!("more than {PATHS_MAX} paths"));
        }
        match self.paths.iter().find(|(path, _)| !path.is_absolute() || path.as_os_str().as_bytes().contains(&0)) {
            Some((path, _)) => Err(format!("{} is no absolute path", path.display())),
            None => Ok(()),
        }
    }

    /// The path that a rule of that number is about.
    pub(crate) fn path(&self, number: usize) -> Option<&Path> {
        self.paths.get(number).map(|(path, _)| path.as_path())
    }

    /// What a kernel of this ABI leaves open, in words; `None` when nothing.
    pub(crate) fn gap(&self, abi: u32) -> Option<&'static str> {
        if !self.paths.is_empty() && abi < ABI_FILES {
            Some("truncate(2) is held back since Linux 6.2 only")
        } else if (self.bind_tcp.is_some() || self.connect_tcp.is_some()) && abi < ABI_TCP {
            Some("TCP ports are held back since Linux 6.7 only")
        } else if self.abstract_sockets && abi < ABI_ABSTRACT_SOCKETS {
            Some("abstract sockets are held back since Linux 6.12 only")
        } else {
            None
        }
    }

    /// The rules for init, as far as a kernel of this ABI knows them; `None` when that is nothing.
    pub(crate) fn encode(&self, abi: u32) -> Option<Vec<u8>> {
        let files = match abi {
            _ if self.paths.is_empty() => 0,
            0 => 0,
            1 => FILES_FIRST,
            2 => FILES_FIRST | REFER,
            3 | 4 => FILES_FIRST | REFER | TRUNCATE,
            _ => FILES_FIRST | REFER | TRUNCATE | IOCTL_DEV,
        };
        let tcp = |right, ports: &Option<Vec<u16>>| if ports.is_some() && abi >= ABI_TCP { right } else { 0 };
        let (bind, connect) = (tcp(BIND_TCP, &self.bind_tcp), tcp(CONNECT_TCP, &self.connect_tcp));
        let scoped = if self.abstract_sockets && abi >= ABI_ABSTRACT_SOCKETS { ABSTRACT_SOCKETS } else { 0 };
        if files | bind | connect | scoped == 0 {
            return None;
        }
        let ports: Vec<(u64, u16)> = [(bind, &self.bind_tcp), (connect, &self.connect_tcp)]
            .into_iter()
            .filter(|(right, _)| *right != 0)
            .flat_map(|(right, ports)| ports.iter().flatten().map(move |port| (right, *port)))
            .collect();
        let paths = if files == 0 { &[][..] } else { &self.paths };
        let mut words = vec![files, bind | connect, scoped, ports.len() as u64, paths.len() as u64];
        words.extend(ports.iter().flat_map(|(right, port)| [*right, u64::from(*port)]));
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        for (path, write) in paths {
            let name = path.as_os_str().as_bytes();
            let length = (name.len() + 1).next_multiple_of(protocol::LANDLOCK_ALIGN);
            let right = if *write { files } else { READ };
            bytes.extend_from_slice(&right.to_ne_bytes());
            bytes.extend_from_slice(&(length as u64).to_ne_bytes());
            bytes.extend_from_slice(name);
            bytes.resize(bytes.len() + length - name.len(), 0);
        }
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(bytes: &[u8]) -> Vec<u64> {
        bytes.chunks(8).map(|word| u64::from_ne_bytes(word.try_into().unwrap())).collect()
    }

    #[test]
    fn rules_are_what_the_kernel_knows() {
        let rules = Landlock::new().read("/usr").write("/tmp/x").connect_tcp([443]).bind_tcp([]);
        let bytes = rules.encode(7).unwrap();
        assert_eq!(words(&bytes)[..7], [0xffff, 3, 0, 1, 2, 2, 443]);
        assert_eq!(words(&bytes)[7..9], [READ, 8]);
        assert_eq!(&bytes[72..80], b"/usr\0\0\0\0");
        assert_eq!(words(&bytes)[10..12], [0xffff, 8]);
        assert_eq!(&bytes[96..], b"/tmp/x\0\0");
        assert_eq!(words(&rules.encode(3).unwrap())[..5], [0x7fff, 0, 0, 0, 2]);
        assert_eq!(words(&rules.encode(1).unwrap())[0], 0x1fff);
        assert!(rules.encode(0).is_none());
        // A name that fills its words still ends with a NUL.
        assert_eq!(words(&Landlock::new().read("/1234567").encode(1).unwrap())[6], 16);
    }

    #[test]
    fn what_a_kernel_leaves_open_is_said() {
        let files = Landlock::new().read("/usr");
        assert!(files.gap(2).unwrap().contains("truncate"));
        assert_eq!(files.gap(3), None);
        let tcp = Landlock::new().connect_tcp([]);
        assert!(tcp.gap(3).unwrap().contains("TCP") && tcp.encode(3).is_none());
        let sockets = Landlock::new().no_abstract_sockets();
        assert!(sockets.gap(5).unwrap().contains("abstract") && sockets.gap(6).is_none());
    }

    #[test]
    fn odd_rules_are_refused() {
        assert!(Landlock::new().check().unwrap_err().contains("nothing"));
        assert!(Landlock::new().read("usr").check().unwrap_err().contains("absolute"));
        let many = (0..300).fold(Landlock::new(), |rules, n| rules.read(format!("/{n}")));
        assert!(many.check().unwrap_err().contains("256"));
    }
}
