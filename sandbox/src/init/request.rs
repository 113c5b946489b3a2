//! A request, laid out so that init can call execve(2) with it the moment it arrives.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{MemfdFlags, SealFlags};

use super::protocol::{self, Request as Head, Rlimit};
use crate::Error;

/// What a program is to be started with.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    pub(crate) serial: u32,
    pub(crate) notify_started: bool,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: &'a [u32],
    pub(crate) capabilities: u64,
    /// Tried in their order.
    pub(crate) paths: &'a [CString],
    pub(crate) argv: &'a [CString],
    pub(crate) envp: &'a [CString],
    pub(crate) directory: &'a OsStr,
    pub(crate) rlimits: &'a [Rlimit],
    /// In rising order of their numbers.
    pub(crate) targets: &'a [i32],
}

/// The bytes of a request: for the message itself, or behind it in a memfd.
#[derive(Debug)]
pub(crate) struct Layout {
    bytes: Vec<u8>,
}

impl Request<'_> {
    /// Lays it out for [`protocol::REQUEST_BASE`].
    pub(crate) fn layout(&self) -> Layout {
        let mut layout = Layout { bytes: Vec::with_capacity(1024) };
        layout.bytes.resize(size_of::<Head>(), 0);
        let paths = layout.strings(self.paths);
        let argv = layout.strings(self.argv);
        let envp = layout.strings(self.envp);
        let groups = layout.array(self.groups.iter().flat_map(|group| group.to_ne_bytes()));
        let targets = layout.array(self.targets.iter().flat_map(|target| target.to_ne_bytes()));
        let rlimits = layout.array(self.rlimits.iter().flat_map(rlimit_bytes));
        let directory = layout.address();
        layout.bytes.extend_from_slice(self.directory.as_bytes());
        layout.bytes.push(0);
        let length = layout.bytes.len();
        let too_long = length > protocol::INLINE_MAX;
        let flags = if self.notify_started { protocol::NOTIFY_STARTED } else { 0 }
            | if too_long { protocol::IN_MEMFD } else { 0 };
        let head = Head {
            length: length as u64,
            serial: self.serial,
            flags,
            uid: self.uid,
            gid: self.gid,
            umask: 0o022,
            group_count: count(self.groups.len()),
            fd_count: count(self.targets.len()),
            rlimit_count: count(self.rlimits.len()),
            capabilities: self.capabilities,
            paths,
            argv,
            envp,
            directory,
            groups,
            targets,
            rlimits,
        };
        let bytes = crate::sys::bytes_of_request(&head);
        if let Some(start) = layout.bytes.get_mut(..bytes.len()) {
            start.copy_from_slice(bytes);
        }
        layout
    }
}

/// The message by which init kills the program that request `serial` started as `uid`.
pub(crate) fn kill_message(serial: u32, uid: u32) -> Vec<u8> {
    let length = size_of::<Head>() as u64;
    let head = Head { length, serial, flags: protocol::KILL, uid, ..Head::default() };
    crate::sys::bytes_of_request(&head).to_vec()
}

fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

fn rlimit_bytes(limit: &Rlimit) -> impl Iterator<Item = u8> + use<> {
    let words = [u64::from(limit.resource).to_ne_bytes(), limit.soft.to_ne_bytes(), limit.hard.to_ne_bytes()];
    words.into_iter().flatten()
}

impl Layout {
    /// Where init will see the next byte.
    fn address(&self) -> u64 {
        protocol::REQUEST_BASE + self.bytes.len() as u64
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
    }

    fn array(&mut self, bytes: impl Iterator<Item = u8>) -> u64 {
        self.align();
        let address = self.address();
        self.bytes.extend(bytes);
        address
    }

    /// Strings, then the array of their addresses that ends with 0; the array's address.
    fn strings(&mut self, strings: &[CString]) -> u64 {
        let mut addresses = Vec::with_capacity(strings.len() + 1);
        for string in strings {
            addresses.push(self.address());
            self.bytes.extend_from_slice(string.as_bytes_with_nul());
        }
        addresses.push(0);
        self.array(addresses.into_iter().flat_map(u64::to_ne_bytes))
    }

    /// What goes into the message, and the memfd that holds the rest of a long request.
    pub(crate) fn message(&self) -> Result<(&[u8], Option<OwnedFd>), Error> {
        if self.bytes.len() <= protocol::INLINE_MAX {
            return Ok((&self.bytes, None));
        }
        let step = |error: io::Error| Error::setup("put the arguments into a memfd", error);
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let memfd = rustix::fs::memfd_create(c"sandbox-request", flags).map_err(|error| step(error.into()))?;
        let mut file = std::fs::File::from(memfd);
        io::Write::write_all(&mut file, &self.bytes).map_err(step)?;
        let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&file, seals).map_err(|error| step(error.into()))?;
        Ok((self.bytes.get(..size_of::<Head>()).unwrap_or_default(), Some(file.into())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(layout: &Layout, address: u64) -> usize {
        usize::try_from(address - protocol::REQUEST_BASE).unwrap_or(layout.bytes.len())
    }

    fn word(layout: &Layout, at: usize) -> u64 {
        u64::from_ne_bytes(layout.bytes[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn pointers_lead_to_the_strings() {
        let argv = [c"/bin/echo".to_owned(), c"hello".to_owned()];
        let request = Request {
            serial: 7,
            notify_started: true,
            uid: 0,
            gid: 0,
            groups: &[5],
            capabilities: 0,
            paths: &argv[..1],
            argv: &argv,
            envp: &[],
            directory: OsStr::new("/"),
            rlimits: &[Rlimit { resource: 7, reserved: 0, soft: 10, hard: 20 }],
            targets: &[0, 1, 2],
        };
        let layout = request.layout();
        let offset = |name: usize| word(&layout, name);
        let (argv_at, envp_at) = (
            at(&layout, offset(std::mem::offset_of!(Head, argv))),
            at(&layout, offset(std::mem::offset_of!(Head, envp))),
        );
        let first = at(&layout, word(&layout, argv_at));
        assert_eq!(&layout.bytes[first..first + 10], b"/bin/echo\0");
        let second = at(&layout, word(&layout, argv_at + 8));
        assert_eq!(&layout.bytes[second..second + 6], b"hello\0");
        assert_eq!(word(&layout, argv_at + 16), 0);
        assert_eq!(word(&layout, envp_at), 0);
        let rlimits = at(&layout, offset(std::mem::offset_of!(Head, rlimits)));
        assert_eq!([word(&layout, rlimits), word(&layout, rlimits + 8), word(&layout, rlimits + 16)], [7, 10, 20]);
        assert!(layout.message().unwrap().1.is_none());
    }

    #[test]
    fn a_long_request_travels_in_a_memfd() {
        let long = [CString::new(vec![b'x'; 1 << 20]).unwrap()];
        let request = Request {
            serial: 1,
            notify_started: false,
            uid: 0,
            gid: 0,
            groups: &[],
            capabilities: 0,
            paths: &long,
            argv: &long,
            envp: &[],
            directory: OsStr::new("/"),
            rlimits: &[],
            targets: &[],
        };
        let layout = request.layout();
        let (message, memfd) = layout.message().unwrap();
        assert_eq!(message.len(), size_of::<Head>());
        let size = rustix::fs::fstat(memfd.unwrap()).unwrap().st_size;
        assert_eq!(usize::try_from(size).unwrap(), layout.bytes.len());
    }
}
