//! A request, laid out so that init can call execve(2) with it the moment it arrives.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{MemfdFlags, SealFlags};

use super::protocol::{self, Descriptor, Request as Head, Rlimit};
use crate::Error;

/// What a program is to be started with.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    pub(crate) serial: u32,
    pub(crate) notify_started: bool,
    pub(crate) uid: u32,
    pub(crate) capabilities: u64,
    pub(crate) program: &'a OsStr,
    pub(crate) args: &'a [OsString],
    pub(crate) env: Environment<'a>,
    pub(crate) directory: &'a OsStr,
    pub(crate) rlimits: &'a [Rlimit],
    /// How many descriptors come along.
    pub(crate) passed: usize,
    /// In rising order of their numbers.
    pub(crate) places: &'a [Descriptor],
}

/// Variables of the sandbox, and those of the command, which win.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Environment<'a> {
    pub(crate) base: Option<&'a BTreeMap<OsString, OsString>>,
    pub(crate) own: &'a BTreeMap<OsString, OsString>,
}

impl<'a> Environment<'a> {
    fn get(&self, name: &str) -> Option<&'a OsStr> {
        let name = OsStr::new(name);
        self.own.get(name).or_else(|| self.base?.get(name)).map(OsString::as_os_str)
    }

    fn iter(self) -> impl Iterator<Item = (&'a OsString, &'a OsString)> {
        let base = self.base.into_iter().flatten();
        base.filter(move |(name, _)| !self.own.contains_key(*name)).chain(self.own)
    }
}

/// The bytes of a request: for the message itself, or behind it in a memfd. Behind the head come the program's possible
/// files, its name and its working directory, for whoever has to say why it was not started.
#[derive(Debug)]
pub(crate) struct Layout {
    bytes: Vec<u8>,
    /// Of the strings since the last array.
    addresses: Vec<u64>,
    /// Where the name, the directory and what follows it begin.
    name: usize,
    directory: usize,
    rest: usize,
}

const HEAD: usize = size_of::<Head>();

impl Request<'_> {
    /// Lays it out for [`protocol::REQUEST_BASE`].
    pub(crate) fn layout(&self) -> Result<Layout, Error> {
        let mut layout = Layout::new();
        layout.candidates(self.program, self.env.get("PATH").unwrap_or(OsStr::new(crate::DEFAULT_PATH)))?;
        layout.name = layout.bytes.len();
        let name = layout.string("program", &[self.program.as_bytes()])?;
        layout.directory = layout.bytes.len();
        if self.directory.is_empty() {
            return Err(Error::invalid("current_dir", "an empty path"));
        }
        let directory = layout.string("current_dir", &[self.directory.as_bytes()])?;
        layout.rest = layout.bytes.len();
        let paths = layout.addresses();
        layout.addresses.push(name);
        for arg in self.args {
            layout.add_string("arg", &[arg.as_bytes()])?;
        }
        let argv = layout.addresses();
        for (name, value) in self.env.iter() {
            if name.is_empty() || name.as_bytes().contains(&b'=') {
                return Err(Error::invalid("env", format!("{name:?} is no name of a variable")));
            }
            layout.add_string("env", &[name.as_bytes(), b"=", value.as_bytes()])?;
        }
        let envp = layout.addresses();
        let places = layout.array(self.places.iter().map(place_words));
        let rlimits = layout.array(self.rlimits.iter().map(rlimit_words));
        let length = layout.bytes.len();
        let too_long = length > protocol::INLINE_MAX;
        let flags = if self.notify_started { protocol::NOTIFY_STARTED } else { 0 }
            | if too_long { protocol::IN_MEMFD } else { 0 };
        let head = Head {
            length: length as u64,
            serial: self.serial,
            flags,
            uid: self.uid,
            fd_count: count(self.passed),
            place_count: count(self.places.len()),
            rlimit_count: count(self.rlimits.len()),
            capabilities: self.capabilities,
            paths,
            argv,
            envp,
            directory: if self.directory == "/" { 0 } else { directory },
            places,
            rlimits,
        };
        if let Some(start) = layout.bytes.get_mut(..HEAD) {
            start.copy_from_slice(crate::sys::bytes_of_request(&head));
        }
        Ok(layout)
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

fn place_words(place: &Descriptor) -> [u64; 1] {
    let ([a, b, c, d], [e, f, g, h]) = (place.number.to_ne_bytes(), place.passed.to_ne_bytes());
    [u64::from_ne_bytes([a, b, c, d, e, f, g, h])]
}

fn rlimit_words(limit: &Rlimit) -> [u64; 3] {
    [u64::from(limit.resource), limit.soft, limit.hard]
}

impl Layout {
    fn new() -> Self {
        let mut bytes = Vec::with_capacity(1024);
        bytes.resize(HEAD, 0);
        Self { bytes, addresses: Vec::with_capacity(16), name: 0, directory: 0, rest: 0 }
    }

    /// Where init will see the next byte.
    fn address(&self) -> u64 {
        protocol::REQUEST_BASE + self.bytes.len() as u64
    }

    /// Adds a string of these parts; its address.
    fn string(&mut self, what: &str, parts: &[&[u8]]) -> Result<u64, Error> {
        let address = self.address();
        for part in parts {
            if part.contains(&0) {
                return Err(Error::invalid(what, "it holds a NUL byte"));
            }
            self.bytes.extend_from_slice(part);
        }
        self.bytes.push(0);
        Ok(address)
    }

    /// The same, and for the next array.
    fn add_string(&mut self, what: &str, parts: &[&[u8]]) -> Result<(), Error> {
        let address = self.string(what, parts)?;
        self.addresses.push(address);
        Ok(())
    }

    /// The files that a program's name can mean, as execvp(3) tries them.
    fn candidates(&mut self, program: &OsStr, search: &OsStr) -> Result<(), Error> {
        let name = program.as_bytes();
        if name.is_empty() {
            return Err(Error::invalid("program", "an empty name"));
        }
        if name.contains(&b'/') {
            return self.add_string("program", &[name]);
        }
        for directory in search.as_bytes().split(|byte| *byte == b':') {
            // An empty entry means the working directory.
            let directory = if directory.is_empty() { b".".as_slice() } else { directory };
            self.add_string("program", &[directory, b"/", name])?;
        }
        Ok(())
    }

    /// Elements of so many 8-byte words each.
    fn array<const WORDS: usize>(&mut self, elements: impl IntoIterator<Item = [u64; WORDS]>) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        let address = self.address();
        for word in elements.into_iter().flatten() {
            self.bytes.extend_from_slice(&word.to_ne_bytes());
        }
        address
    }

    /// The array, ended by 0, of the addresses that were gathered since the last.
    fn addresses(&mut self) -> u64 {
        let mut addresses = std::mem::take(&mut self.addresses);
        addresses.push(0);
        let array = self.array(addresses.iter().map(|address| [*address]));
        addresses.clear();
        self.addresses = addresses;
        array
    }

    /// Forgets what is not needed once it is sent.
    pub(crate) fn shorten(&mut self) {
        self.bytes.truncate(self.rest);
        if self.bytes.capacity() > protocol::INLINE_MAX {
            self.bytes.shrink_to_fit();
        }
    }

    /// The file that init tried as that number, from 1; without a number the program as it was named.
    pub(crate) fn path(&self, number: usize) -> &OsStr {
        let paths = self.bytes.get(HEAD..self.name).unwrap_or_default();
        let tried = number.checked_sub(1).and_then(|index| paths.split(|byte| *byte == 0).nth(index));
        tried.map_or_else(|| self.kept(self.name..self.directory), OsStr::from_bytes)
    }

    pub(crate) fn directory(&self) -> &OsStr {
        self.kept(self.directory..self.rest)
    }

    fn kept(&self, range: Range<usize>) -> &OsStr {
        let string = self.bytes.get(range).unwrap_or_default();
        OsStr::from_bytes(string.strip_suffix(b"\0").unwrap_or(string))
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
        Ok((self.bytes.get(..HEAD).unwrap_or_default(), Some(file.into())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks at a request with these strings.
    fn with_layout<T>(
        program: &str,
        args: &[&str],
        env: &[(&str, &str)],
        look: impl FnOnce(Result<Layout, Error>) -> T,
    ) -> T {
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        let own = env.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))).collect();
        let base = BTreeMap::from([("PATH".into(), "/usr/bin:".into()), ("HOME".into(), "/".into())]);
        let request = Request {
            serial: 7,
            notify_started: true,
            uid: 0,
            capabilities: 0,
            program: OsStr::new(program),
            args: &args,
            env: Environment { base: Some(&base), own: &own },
            directory: OsStr::new("/tmp"),
            rlimits: &[Rlimit { resource: 7, reserved: 0, soft: 10, hard: 20 }],
            passed: 1,
            places: &[Descriptor { number: 0, passed: 0 }, Descriptor { number: 1, passed: 0 }],
        };
        look(request.layout())
    }

    fn word(layout: &Layout, at: usize) -> u64 {
        u64::from_ne_bytes(layout.bytes[at..at + 8].try_into().unwrap())
    }

    fn at(layout: &Layout, field: usize) -> usize {
        usize::try_from(word(layout, field) - protocol::REQUEST_BASE).unwrap()
    }

    /// The strings that an array of the head leads to.
    fn strings(layout: &Layout, field: usize) -> Vec<String> {
        let array = at(layout, field);
        let fields = (0..).map(|index| array + 8 * index).take_while(|field| word(layout, *field) != 0);
        let string = |field| layout.bytes[at(layout, field)..].split(|byte| *byte == 0).next().unwrap();
        fields.map(|field| String::from_utf8_lossy(string(field)).into_owned()).collect()
    }

    #[test]
    fn pointers_lead_to_the_strings() {
        with_layout("/bin/echo", &["hello", ""], &[("HOME", "/tmp"), ("A", "")], |layout| {
            let layout = layout.unwrap();
            assert_eq!(strings(&layout, std::mem::offset_of!(Head, paths)), ["/bin/echo"]);
            assert_eq!(strings(&layout, std::mem::offset_of!(Head, argv)), ["/bin/echo", "hello", ""]);
            assert_eq!(strings(&layout, std::mem::offset_of!(Head, envp)), ["PATH=/usr/bin:", "A=", "HOME=/tmp"]);
            let rlimits = at(&layout, std::mem::offset_of!(Head, rlimits));
            assert_eq!([0, 8, 16].map(|field| word(&layout, rlimits + field)), [7, 10, 20]);
            assert!(layout.message().unwrap().1.is_none());
        });
    }

    #[test]
    fn bare_names_are_looked_for() {
        for (program, env, files) in [
            ("sh", ("PATH", "/usr/bin:/bin"), ["/usr/bin/sh", "/bin/sh"].as_slice()),
            ("./sh", ("PATH", "/bin"), &["./sh"]),
            ("sh", ("PATH", ":/bin"), &["./sh", "/bin/sh"]),
            ("sh", ("A", ""), &["/usr/bin/sh", "./sh"]),
        ] {
            with_layout(program, &[], &[env], |layout| {
                let mut layout = layout.unwrap();
                assert_eq!(strings(&layout, std::mem::offset_of!(Head, paths)), files);
                layout.shorten();
                assert_eq!(files.iter().enumerate().find(|(index, file)| layout.path(index + 1) != **file), None);
                assert_eq!((layout.path(0), layout.directory()), (OsStr::new(program), OsStr::new("/tmp")));
            });
        }
    }

    #[test]
    fn what_execve_cannot_take_is_refused() {
        for (program, arg, env) in [
            ("", "", ("A", "")),
            ("a\0b", "", ("A", "")),
            ("a", "\0", ("A", "")),
            ("a", "", ("", "")),
            ("a", "", ("A=", "")),
        ] {
            with_layout(program, &[arg], &[env], |layout| assert!(layout.is_err(), "{program:?} {arg:?} {env:?}"));
        }
    }

    #[test]
    fn a_long_request_travels_in_a_memfd() {
        with_layout("/bin/echo", &[&"x".repeat(1 << 20)], &[], |layout| {
            let mut layout = layout.unwrap();
            let (message, memfd) = layout.message().unwrap();
            assert_eq!(message.len(), HEAD);
            let size = rustix::fs::fstat(memfd.unwrap()).unwrap().st_size;
            assert_eq!(usize::try_from(size).unwrap(), layout.bytes.len());
            layout.shorten();
            assert!(layout.bytes.capacity() < 1024);
        });
    }
}
