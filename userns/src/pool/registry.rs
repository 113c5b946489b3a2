//! Ranges whose files outlive their sandbox: remembered on disk until somebody says that the files are gone.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::record;
use super::state::{self, Directory};
use crate::{Error, Range};

const HEADER: &str = "sandbox range 1";

/// No file may be longer: more is not read.
const LENGTH_MAX: usize = state::READ_MAX - 1;

/// A range that no new sandbox gets, because files with its ids remain.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Registered {
    /// The uids.
    pub uids: Range,
    /// The gids.
    pub gids: Range,
    /// Whose it was when it was registered.
    pub name: String,
    /// The trees with the files, in order.
    pub trees: Vec<PathBuf>,
}

impl Registered {
    fn encode(&self) -> Vec<u8> {
        let Self { uids, gids, name, trees } = self;
        let name: String = name.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        let head = format!(
            "{HEADER}\nuids {} {}\ngids {} {}\nname {name}\n",
            uids.base(),
            uids.count(),
            gids.base(),
            gids.count()
        );
        let mut bytes = head.into_bytes();
        for tree in trees {
            // A path may hold anything but NUL, so it ends with one.
            bytes.extend([b"tree ", tree.as_os_str().as_bytes(), b"\0\n"].concat());
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut lines = bytes.splitn(5, |&b| b == b'\n');
        if lines.next()? != HEADER.as_bytes() {
            return None;
        }
        let mut field = |key: &str| std::str::from_utf8(lines.next()?).ok()?.strip_prefix(key)?.strip_prefix(' ');
        let uids = record::range(field("uids")?)?;
        let gids = record::range(field("gids")?)?;
        let name = field("name")?.to_owned();
        let (mut rest, mut trees) = (lines.next()?, Vec::new());
        while !rest.is_empty() {
            let end = rest.iter().position(|&b| b == 0)?;
            trees.push(OsStr::from_bytes(rest.get(..end)?.strip_prefix(b"tree ")?).into());
            rest = rest.get(end + 1..)?.strip_prefix(b"\n")?;
        }
        // Of one that was cut nothing is known.
        (!trees.is_empty()).then_some(Self { uids, gids, name, trees })
    }

    fn file_name(uids: Range) -> String {
        format!("{}-{}", uids.base(), uids.count())
    }
}

/// The directory with a file for each registered range.
#[derive(Debug)]
pub(super) struct Registry {
    /// `None` when none is configured: then nothing can be registered.
    directory: Option<PathBuf>,
}

impl Registry {
    pub(super) fn new(directory: Option<PathBuf>) -> Self {
        Self { directory }
    }

    fn open(&self, create: bool) -> Result<Option<Directory>, Error> {
        let Some(path) = &self.directory else { return Ok(None) };
        if create {
            // The usual places are fixed, but not always there yet.
            if let Some(parent) = path.parent() {
                let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(parent);
                made.map_err(|e| Error::file("create", parent, e))?;
            }
            return Directory::open_or_create_trusted(path)?.subdirectory("ids").map(Some);
        }
        match Directory::open(path) {
            Ok(directory) => directory.existing("ids"),
            Err(e) if e.errno() == Some(rustix::io::Errno::NOENT.raw_os_error()) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Remembers a range: on disk when this returns.
    pub(super) fn add(&self, range: &Registered) -> Result<(), Error> {
        let bytes = range.encode();
        if bytes.len() > LENGTH_MAX {
            return Err(Error::invalid("registered trees", "their paths together are too long to be remembered"));
        }
        self.made()?.replace_file(&Registered::file_name(range.uids), &bytes)
    }

    /// Makes the directory where it is missing, and looks whether files can be made in it.
    pub(super) fn check(&self) -> Result<(), Error> {
        self.made()?.check_writable()
    }

    fn made(&self) -> Result<Directory, Error> {
        self.open(true)?.ok_or_else(|| Error::Unsupported {
            feature: "registering ids",
            needs: "a directory that outlives a reboot (`PoolConfig::registered_in`)".into(),
        })
    }

    /// Forgets it.
    pub(super) fn remove(&self, uids: Range) -> Result<(), Error> {
        match self.open(false)? {
            Some(directory) => directory.remove_file(&Registered::file_name(uids)),
            None => Ok(()),
        }
    }

    /// All of them, by their uids. A file that cannot be understood is an error: it may say anything.
    pub(super) fn list(&self) -> Result<Vec<Registered>, Error> {
        let Some(directory) = self.open(false)? else { return Ok(Vec::new()) };
        let mut all = Vec::new();
        for name in directory.names()?.iter().filter(|name| !name.starts_with(".new-")) {
            // Another process may forget one meanwhile.
            all.extend(read(&directory, name)?);
        }
        all.sort_by_key(|range: &Registered| range.uids);
        Ok(all)
    }

    /// The one of these uids.
    pub(super) fn find(&self, uids: Range) -> Result<Option<Registered>, Error> {
        match self.open(false)? {
            Some(directory) => read(&directory, &Registered::file_name(uids)),
            None => Ok(None),
        }
    }
}

fn read(directory: &Directory, name: &str) -> Result<Option<Registered>, Error> {
    let Some(fd) = directory.open_to_read(name)? else { return Ok(None) };
    let path: &Path = &directory.path().join(name);
    let bytes = state::read_bytes(&fd).map_err(|e| Error::file("read", path, e))?;
    let found = Registered::decode(&bytes).ok_or_else(|| Error::Parse {
        path: path.to_owned(),
        line: 1,
        expected: "a registered id range; remove the file if no file with these ids remains",
        found: crate::text::shorten(&String::from_utf8_lossy(&bytes)),
    })?;
    Ok(Some(found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_path_is_read_as_it_was_written() {
        let uids = Range::new(100_000, 65536).unwrap();
        let trees = [&b"/srv/work"[..], b"/a\nb\nuids 0 1", b"/\xff\xfe", b"/\ntree /"]
            .map(|tree| OsStr::from_bytes(tree).into());
        for count in 1..=trees.len() {
            let range = Registered { uids, gids: uids, name: "judge".into(), trees: trees[..count].to_vec() };
            let bytes = range.encode();
            assert_eq!(Registered::decode(&bytes), Some(range));
            for cut in 0..bytes.len() {
                let found = Registered::decode(&bytes[..cut]);
                assert!(
                    found.is_none_or(|range| range.trees == trees[..range.trees.len()] && range.trees.len() < count)
                );
            }
        }
        let none = Registered { uids, gids: uids, name: "judge".into(), trees: Vec::new() };
        assert_eq!(Registered::decode(&none.encode()), None);
        assert_eq!(Registered::decode(b""), None);
    }
}
