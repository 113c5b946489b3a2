//! Users and groups: from the system's name service, or from passwd and group below a root.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::files::{Kept, Root};
use crate::Error;

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";
const NSSWITCH: &str = "/etc/nsswitch.conf";
/// A passwd of 200,000 users fits.
const MOST: u64 = 16 << 20;
/// How long an answer of the name service counts at most: it may come from a directory on another host.
const KEEP: Duration = Duration::from_secs(60);

/// A group of a user.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group {
    /// Its name; empty when a lookup of the name finds another group, so that it matches by number alone.
    pub name: String,
    /// Its number.
    pub gid: u32,
}

/// An account, as far as limits.conf looks at it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct User {
    /// The login name.
    pub name: String,
    /// The uid.
    pub uid: u32,
    /// The primary gid: ranges of gids (`@min:max`) look at this one alone.
    pub gid: u32,
    /// All groups that it belongs to and that exist in the database, the primary one included.
    pub groups: Vec<Group>,
}

impl User {
    /// An account without groups.
    pub fn new(name: impl Into<String>, uid: u32, gid: u32) -> Self {
        Self { name: name.into(), uid, gid, groups: Vec::new() }
    }

    /// Adds a group; the primary one must be added too when it has a name.
    pub fn group(mut self, name: impl Into<String>, gid: u32) -> Self {
        self.groups.push(Group { name: name.into(), gid });
        self
    }

    pub(super) fn is_in(&self, name: &[u8]) -> bool {
        !name.is_empty() && self.groups.iter().any(|group| group.name.as_bytes() == name)
    }

    pub(super) fn is_in_gid(&self, gid: u32) -> bool {
        self.groups.iter().any(|group| group.gid == gid)
    }
}

#[derive(Debug, Default)]
pub(super) struct Cache {
    passwd: Option<Kept<Vec<u8>>>,
    group: Option<Kept<Vec<u8>>>,
    /// Of the system: three stamps, and what was answered while they stood.
    stamps: [Option<Kept<Instant>>; 3],
    answered: Option<Instant>,
    users: Vec<(String, User)>,
    named: Vec<(String, Option<nix::unistd::Group>)>,
}

impl Cache {
    pub(super) fn user(&mut self, root: &Root, name: &str) -> Result<User, Error> {
        if !root.is_system() {
            let (passwd, group) = self.files(root)?;
            return in_files(passwd, group, name).ok_or_else(|| unknown(name, "the passwd file of the root"));
        }
        self.expire(root)?;
        if let Some((_, user)) = self.users.iter().find(|(asked, _)| asked == name) {
            return Ok(user.clone());
        }
        let user = in_system(name)?.ok_or_else(|| unknown(name, "the system's user database"))?;
        self.users.push((name.to_owned(), user.clone()));
        Ok(user)
    }

    /// The user with those groups added that have another name for one of its gids, or name it as a member.
    ///
    /// Below a root all names are known already.
    pub(super) fn with_groups<'a>(
        &mut self,
        root: &Root,
        user: &User,
        names: impl Iterator<Item = &'a str>,
    ) -> Result<User, Error> {
        let mut user = user.clone();
        if !root.is_system() {
            return Ok(user);
        }
        for name in names.collect::<BTreeSet<_>>() {
            if user.is_in(name.as_bytes()) {
                continue;
            }
            let found = match self.named.iter().find(|(asked, _)| asked == name) {
                Some((_, found)) => found.clone(),
                None => {
                    let found = nix::unistd::Group::from_name(name).map_err(|errno| lookup("group", name, errno))?;
                    self.named.push((name.to_owned(), found.clone()));
                    found
                }
            };
            let Some(group) = found else { continue };
            if user.is_in_gid(group.gid.as_raw()) || group.mem.contains(&user.name) {
                user.groups.push(Group { name: name.to_owned(), gid: group.gid.as_raw() });
            }
        }
        Ok(user)
    }

    fn files(&mut self, root: &Root) -> Result<(&[u8], &[u8]), Error> {
        let (passwd, group) = (Path::new(PASSWD), Path::new(GROUP));
        let read = |path| move |_| root.read(path, MOST);
        let passwd = Kept::refresh(&mut self.passwd, root, passwd, read(passwd))?;
        let empty = |stamp: Option<_>| if stamp.is_none() { Ok(Vec::new()) } else { root.read(group, MOST) };
        Ok((passwd, Kept::refresh(&mut self.group, root, group, empty)?))
    }

    /// Forgets the system's answers when a file changed or they grew old.
    fn expire(&mut self, root: &Root) -> Result<(), Error> {
        let mut fresh = self.answered.is_some_and(|then| then.elapsed() < KEEP);
        let now = Instant::now();
        for (slot, path) in self.stamps.iter_mut().zip([PASSWD, GROUP, NSSWITCH]) {
            // Read anew means: the stamp is another one than when the answers came.
            let since = *Kept::refresh(slot, root, Path::new(path), |_| Ok(now))?;
            fresh &= self.answered.is_some_and(|then| since <= then);
        }
        if !fresh {
            self.users.clear();
            self.named.clear();
            self.answered = Some(now);
        }
        Ok(())
    }
}

fn unknown(name: &str, place: &str) -> Error {
    Error::Invalid { what: format!("user `{name}`"), why: format!("there is none in {place}") }
}

fn lookup(kind: &str, name: &str, errno: nix::errno::Errno) -> Error {
    Error::Syscall {
        call: "look up",
        detail: format!("{kind} `{name}`"),
        rule: None,
        error: io::Error::from_raw_os_error(errno as i32),
    }
}

fn in_system(name: &str) -> Result<Option<User>, Error> {
    use nix::unistd::{Gid, Group as System, Uid, User as Account, getgrouplist};
    let mut account = Account::from_name(name).map_err(|errno| lookup("user", name, errno))?;
    if let (None, Some(uid)) = (&account, uid(name)) {
        account = Account::from_uid(Uid::from_raw(uid)).map_err(|errno| lookup("user", name, errno))?;
    }
    let Some(account) = account else { return Ok(None) };
    let mut user = User::new(account.name, account.uid.as_raw(), account.gid.as_raw());
    // A name that the database gave has no NUL.
    let Ok(login) = CString::new(user.name.as_bytes()) else { return Ok(None) };
    let mut gids =
        getgrouplist(&login, Gid::from_raw(user.gid)).map_err(|errno| lookup("groups of user", name, errno))?;
    gids.sort_unstable_by_key(|gid| gid.as_raw());
    gids.dedup();
    for gid in gids {
        let Some(group) = System::from_gid(gid).map_err(|errno| lookup("group", &gid.to_string(), errno))? else {
            continue;
        };
        let named = System::from_name(&group.name).map_err(|errno| lookup("group", &group.name, errno))?;
        let name = if named.is_some_and(|named| named.gid == gid) { group.name } else { String::new() };
        user.groups.push(Group { name, gid: gid.as_raw() });
    }
    Ok(Some(user))
}

fn uid(name: &str) -> Option<u32> {
    name.bytes().all(|byte| byte.is_ascii_digit()).then(|| name.parse().ok())?
}

/// The account in the text of passwd, and its groups in that of group. Lines that are none are skipped.
fn in_files(passwd: &[u8], group: &[u8], name: &str) -> Option<User> {
    let accounts = || passwd.split(|byte| *byte == b'\n').filter_map(account);
    let by_uid = || uid(name).and_then(|uid| accounts().find(|user| user.uid == uid));
    let mut user = accounts().find(|user| user.name == name).or_else(by_uid)?;

    let entries = || group.split(|byte| *byte == b'\n').filter_map(entry);
    let mut gids: BTreeSet<u32> =
        entries().filter(|(_, members)| member(members, &user.name)).map(|(g, _)| g.gid).collect();
    gids.insert(user.gid);
    let mut seen = BTreeSet::new();
    for (mut group, _) in entries() {
        // Of several lines with one name the first counts.
        let first = seen.insert(group.name.clone());
        if gids.contains(&group.gid) {
            group.name = if first { group.name } else { String::new() };
            user.groups.push(group);
        }
    }
    Some(user)
}

fn account(line: &[u8]) -> Option<User> {
    let mut fields = line.split(|byte| *byte == b':');
    let name = text(fields.next()?)?;
    let _password = fields.next()?;
    let (uid, gid) = (number(fields.next()?)?, number(fields.next()?)?);
    Some(User::new(name, uid, gid))
}

fn entry(line: &[u8]) -> Option<(Group, &[u8])> {
    let mut fields = line.split(|byte| *byte == b':');
    let name = text(fields.next()?)?;
    let _password = fields.next()?;
    let gid = number(fields.next()?)?;
    Some((Group { name: name.to_owned(), gid }, fields.next().unwrap_or_default()))
}

fn member(members: &[u8], name: &str) -> bool {
    members.split(|byte| *byte == b',').any(|member| member == name.as_bytes())
}

/// A name: text, not empty, none of the signs that NIS gives a meaning to, no comment.
fn text(field: &[u8]) -> Option<&str> {
    let name = std::str::from_utf8(field).ok()?;
    (!name.is_empty() && !name.starts_with(['+', '-', '#']) && !name.contains('\0')).then_some(name)
}

fn number(field: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(field).ok()?;
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_found_in_files() {
        let passwd =
            b"+::::\n#c:x:9:9\nshort:x:1\nalice:x:1000:100:A:/:/bin/sh\nbob:x:x:1:\nalice:x:7:7::\n1000:x:5:5::\n";
        let group = b"users:x:100:\nwheel:x:10:root,alice\nalias:x:10:\nother:x:11:alice2\nwheel:x:12:alice\n\xff:x:100:\nlate:x:12\n";
        let alice = in_files(passwd, group, "alice").unwrap();
        assert_eq!((alice.uid, alice.gid), (1000, 100));
        let names: Vec<_> = alice.groups.iter().map(|group| (group.name.as_str(), group.gid)).collect();
        assert_eq!(names, [("users", 100), ("wheel", 10), ("alias", 10), ("", 12), ("late", 12)]);
        assert_eq!(in_files(passwd, group, "1000").unwrap().uid, 5, "a name goes before a number");
        assert_eq!(in_files(passwd, group, "5").unwrap().name, "1000");
        for none in ["bob", "short", "+", "", "#c", "nobody"] {
            assert_eq!(in_files(passwd, group, none), None, "{none:?}");
        }
    }
}
