//! What the registry remembers of a lease: a few lines of text, appended to, so that a crash loses at most the last.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::Error;

/// A lease as its slot file describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) owner: String,
    pub(crate) directories: Vec<Known>,
    /// It shall outlive its process.
    pub(crate) kept: bool,
}

/// A directory that was made a root: its path, and which one it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) path: PathBuf,
    pub(crate) identity: (u64, u64),
}

pub(crate) const KEPT: &[u8] = b"kept\n";

impl Record {
    pub(crate) fn new(owner: &str) -> Result<Self, Error> {
        if owner.len() > 255 || owner.contains(|c: char| c.is_control()) {
            let what = format!("owner {owner:?}");
            return Err(Error::Invalid { what, why: "it must be one line of at most 255 bytes" });
        }
        Ok(Self { owner: owner.to_owned(), ..Self::default() })
    }

    /// The first lines of a slot file.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        format!("owner {}\npid {}\n", self.owner, std::process::id()).into_bytes()
    }

    /// Lines without their end are torn by a crash; words that we do not know are skipped.
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let mut record = Self::default();
        let mut lines: Vec<&[u8]> = bytes.split(|&byte| byte == b'\n').collect();
        lines.pop();
        for line in lines {
            let mut words = line.splitn(2, |&byte| byte == b' ');
            match (words.next(), words.next()) {
                (Some(b"owner"), Some(owner)) => record.owner = String::from_utf8_lossy(owner).into_owned(),
                (Some(b"directory"), Some(rest)) => record.directories.extend(Known::parse(rest)),
                (Some(b"kept"), _) => record.kept = true,
                _ => {}
            }
        }
        record
    }
}

impl Known {
    /// One line; an absolute path without a newline, so that it stays one.
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        let path = self.path.as_os_str().as_bytes();
        if !self.path.is_absolute() || path.contains(&b'\n') {
            let what = format!("directory {:?}", self.path);
            return Err(Error::Invalid { what, why: "the registry needs an absolute path on one line" });
        }
        let mut line = format!("directory {} {} ", self.identity.0, self.identity.1).into_bytes();
        line.extend_from_slice(path);
        line.push(b'\n');
        Ok(line)
    }

    fn parse(rest: &[u8]) -> Option<Self> {
        let mut words = rest.splitn(3, |&byte| byte == b' ');
        let mut number = || std::str::from_utf8(words.next()?).ok()?.parse().ok();
        let identity = (number()?, number()?);
        Some(Self { path: Path::new(OsStr::from_bytes(words.next()?)).to_owned(), identity })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_record_comes_back() {
        let mut record = Record::new("judge run 7").unwrap();
        let known = Known { path: "/srv/a b".into(), identity: (5, 77) };
        let mut bytes = record.to_bytes();
        bytes.extend(known.to_bytes().unwrap());
        record.directories.push(known);
        assert_eq!(Record::parse(&bytes), record);
        bytes.extend(KEPT);
        record.kept = true;
        assert_eq!(Record::parse(&bytes), record);
        bytes.extend(b"directory 1 2 /torn by a cra");
        assert_eq!(Record::parse(&bytes), record, "a torn line does not count");
        assert_eq!(Record::parse(b""), Record::default(), "killed before the first line");
    }

    #[test]
    fn what_would_break_the_lines_is_refused() {
        assert!(Record::new("two\nlines").is_err());
        assert!(Record::new(&"x".repeat(256)).is_err());
        assert!(Known { path: "relative".into(), identity: (0, 0) }.to_bytes().is_err());
        assert!(Known { path: "/a\nkept".into(), identity: (0, 0) }.to_bytes().is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_parse(bytes: Vec<u8>) {
            let _ = Record::parse(&bytes);
        }
    }
}
