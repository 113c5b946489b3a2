//! Ranges whose files outlive their sandbox: remembered on disk until somebody says that the files are gone.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::record;
use super::state::{self, Directory};
use crate::{Error, Range};

const HEADER: &str = "sandbox range 1";

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
    /// The tree with the files.
    pub tree: PathBuf,
}

impl Registered {
    fn encode(&self) -> Vec<u8> {
        let Self { uids, gids, name, tree } = self;
        let name: String = name.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        let head = format!(
            "{HEADER}\nuids {} {}\ngids {} {}\nname {name}\ntree ",
            uids.base(),
            uids.count(),
            gids.base(),
            gids.count()
        );
        // A path may hold anything but NUL, so it is the last field and ends with one.
        [head.as_bytes(), tree.as_os_str().as_bytes(), b"\0\n"].concat()
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
        let tree = lines.next()?.strip_prefix(b"tree ")?.strip_suffix(b"\0\n")?;
        Some(Self { uids, gids, name, tree: OsStr::from_bytes(tree).into() })
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
        match self.open(true)? {
            Some(directory) => directory.replace_file(&Registered::file_name(range.uids), &range.encode()),
            None => Err(Error::Unsupported {
                feature: "registering ids",
                needs: "a directory that outlives a reboot (`PoolConfig::registered_in`)".into(),
            }),
        }
    }

    /// Forgets it.
    pub(super) fn remove(&self, uids: Range) -> Result<(), Error> {
        match self.open(false)? {
            Some(directory) => directory.remove_file(&Registered::file_name(uids)),
            None => Ok(()),
        }
    }

    /// All of them. A file that cannot be understood is an error: it may say anything.
    pub(super) fn list(&self) -> Result<Vec<Registered>, Error> {
        let Some(directory) = self.open(false)? else { return Ok(Vec::new()) };
        let mut all = Vec::new();
        for name in directory.names()?.iter().filter(|name| !name.starts_with(".new-")) {
            let fd = directory.open_file("open", name, false)?;
            let path: &Path = &directory.path().join(name);
            let bytes = state::read_bytes(&fd).map_err(|e| Error::file("read", path, e))?;
            let found = Registered::decode(&bytes).ok_or_else(|| Error::Parse {
                path: path.to_owned(),
                line: 1,
                expected: "a registered id range; remove the file if no file with these ids remains",
                found: crate::text::shorten(&String::from_utf8_lossy(&bytes)),
            })?;
            all.push(found);
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_path_is_read_as_it_was_written() {
        let uids = Range::new(100_000, 65536).unwrap();
        for tree in [&b"/srv/work"[..], b"/a\nb\nuids 0 1", b"/\xff\xfe"] {
            let tree = OsStr::from_bytes(tree).into();
            let range = Registered { uids, gids: uids, name: "judge".into(), tree };
            assert_eq!(Registered::decode(&range.encode()), Some(range));
        }
        assert_eq!(Registered::decode(b""), None);
    }
}
