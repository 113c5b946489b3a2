//! Names and numbers of users and groups.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;

use crate::Error;

/// Where the names of users and groups are looked up.
///
/// [`system`](Self::system) asks the C library, and so LDAP and the like where they are configured, as shadow's tools do;
/// the others read two files only. The set of *all* ids is always that of the files.
#[derive(Debug, Clone, Default)]
pub struct Accounts {
    users: Table,
    groups: Table,
    ask_system: bool,
}

#[derive(Debug, Clone, Default)]
struct Table {
    by_name: HashMap<OsString, u32>,
    /// The first name of each number.
    by_id: HashMap<u32, OsString>,
}

impl Accounts {
    /// The accounts of this system.
    ///
    /// # Errors
    /// [`Error::File`] when `/etc/passwd` or `/etc/group` exists and cannot be read.
    pub fn system() -> Result<Self, Error> {
        Ok(Self { ask_system: true, ..Self::read_root(Path::new("/"))? })
    }

    /// Those of `etc/passwd` and `etc/group` below `root`; a missing file has none.
    ///
    /// # Errors
    /// [`Error::File`] when one exists and cannot be read.
    pub fn read_root(root: &Path) -> Result<Self, Error> {
        let read = |name: &str| {
            let path = root.join(name);
            match fs::read(&path) {
                Ok(bytes) => Ok(bytes),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
                Err(e) => Err(Error::file("read", path, e)),
            }
        };
        Ok(Self::parse(&read("etc/passwd")?, &read("etc/group")?))
    }

    /// Those of these texts of `passwd` and `group`. Lines without a name and a decimal number are skipped.
    #[must_use]
    pub fn parse(passwd: &[u8], group: &[u8]) -> Self {
        Self { users: Table::parse(passwd), groups: Table::parse(group), ask_system: false }
    }

    /// The uid of a user name. Digits are a name like any other.
    #[must_use]
    pub fn uid_of(&self, name: &OsStr) -> Option<u32> {
        let found = self.users.by_name.get(name).copied();
        found.or_else(|| {
            let name = self.ask_system.then(|| name.to_str()).flatten()?;
            Some(nix::unistd::User::from_name(name).ok()??.uid.as_raw())
        })
    }

    /// The gid of a group name.
    #[must_use]
    pub fn gid_of(&self, name: &OsStr) -> Option<u32> {
        let found = self.groups.by_name.get(name).copied();
        found.or_else(|| {
            let name = self.ask_system.then(|| name.to_str()).flatten()?;
            Some(nix::unistd::Group::from_name(name).ok()??.gid.as_raw())
        })
    }

    /// The first user name with this uid.
    #[must_use]
    pub fn user_name(&self, uid: u32) -> Option<OsString> {
        let found = self.users.by_id.get(&uid).cloned();
        found.or_else(|| {
            let uid = self.ask_system.then_some(nix::unistd::Uid::from_raw(uid))?;
            Some(nix::unistd::User::from_uid(uid).ok()??.name.into())
        })
    }

    /// Every uid of the file, with a name.
    pub fn users(&self) -> impl Iterator<Item = (u32, &OsStr)> {
        self.users.by_id.iter().map(|(&id, name)| (id, name.as_os_str()))
    }

    /// Every gid of the file, with a name.
    pub fn groups(&self) -> impl Iterator<Item = (u32, &OsStr)> {
        self.groups.by_id.iter().map(|(&id, name)| (id, name.as_os_str()))
    }
}

impl Table {
    /// `name:…:number:…`
    fn parse(text: &[u8]) -> Self {
        let mut table = Self::default();
        let mut seen = HashSet::new();
        for line in text.split(|&b| b == b'\n') {
            let mut fields = line.split(|&b| b == b':');
            let (Some(name), Some(_), Some(id)) = (fields.next(), fields.next(), fields.next()) else { continue };
            let Some(id) = std::str::from_utf8(id).ok().and_then(|id| id.parse::<u32>().ok()) else { continue };
            if name.is_empty() {
                continue;
            }
            // The first line of a name, and of a number, is the one that counts.
            if seen.insert(name) {
                table.by_name.insert(OsStr::from_bytes(name).to_owned(), id);
            }
            table.by_id.entry(id).or_insert_with(|| OsString::from_vec(name.to_vec()));
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_of_a_name_and_of_a_number_counts() {
        let accounts = Accounts::parse(b"a:x:1:\nb:x:1:\na:x:2:\nbroken\n:x:3:\nn:x:x:\nc:x:5", b"g:x:7:a\n");
        assert_eq!(accounts.uid_of("a".as_ref()), Some(1));
        assert_eq!(accounts.uid_of("b".as_ref()), Some(1));
        assert_eq!(accounts.user_name(1), Some("a".into()));
        assert_eq!(accounts.uid_of("c".as_ref()), Some(5));
        assert_eq!(accounts.uid_of("n".as_ref()), None);
        assert_eq!(accounts.user_name(3), None);
        assert_eq!(accounts.gid_of("g".as_ref()), Some(7));
    }
}
