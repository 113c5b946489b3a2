//! `/etc/subuid` and `/etc/subgid`: which ids a user may use besides its own.
//!
//! The files are read exactly as shadow 4.13 reads them (Debian 12, RHEL 9 and about), oddities included, for `newuidmap`
//! decides by that reading. Newer versions are stricter: what they refuse is among [`SubidFile::problems`].

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::helper;
use crate::write::Kind;
use crate::{Accounts, Error, Range};

/// Longer lines are ignored.
const LONGEST_LINE: usize = 1023;

/// One line of `/etc/subuid` or `/etc/subgid`: `count` ids from `start` on may be used by `owner`.
///
/// The numbers are as they stand: shadow 4.13 takes 64 bits and does not check that they are ids; see
/// [`range`](Self::range).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Grant {
    /// A user name, or a uid as text. Blanks around it belong to it.
    pub owner: OsString,
    /// The first id.
    pub start: u64,
    /// How many; 0 grants nothing.
    pub count: u64,
    /// The line, from 1; 0 when a program told.
    pub line: usize,
}

impl Grant {
    /// The ids; `None` when there are none, or when some lie beyond the last possible id 4294967294.
    #[must_use]
    pub fn range(&self) -> Option<Range> {
        Range::new(self.start.try_into().ok()?, self.count.try_into().ok()?).ok()
    }

    /// The last id as the tools compute it, wrapping at 64 bits.
    fn last(&self) -> u64 {
        self.start.wrapping_add(self.count).wrapping_sub(1)
    }
}

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Problem {
    /// The line, from 1.
    pub line: usize,
    /// The line's text, shortened.
    pub text: String,
    /// What should stand there.
    pub expected: &'static str,
    /// Whether the line has no effect; otherwise it has one that hardly anybody means.
    pub ignored: bool,
}

/// One of the two files.
#[derive(Debug, Clone)]
pub struct SubidFile {
    path: PathBuf,
    grants: Vec<Grant>,
    problems: Vec<Problem>,
}

impl SubidFile {
    /// Reads a file. A symbolic link is refused, as shadow refuses it; a missing file has no lines.
    ///
    /// # Errors
    /// [`Error::File`], and what [`parse`](Self::parse) says.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let flags = OFlags::RDONLY | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let bytes = match openat(CWD, path, flags, Mode::empty()) {
            Ok(fd) => {
                let mut bytes = Vec::new();
                std::io::Read::read_to_end(&mut std::fs::File::from(fd), &mut bytes)
                    .map_err(|e| Error::file("read", path, e))?;
                bytes
            }
            Err(rustix::io::Errno::NOENT) => Vec::new(),
            Err(e) => return Err(Error::file("open", path, e)),
        };
        Self::parse(path, &bytes)
    }

    /// Reads a file's text; `path` is for messages. Lines that are no grants are skipped, one by one, and listed in
    /// [`problems`](Self::problems).
    ///
    /// # Errors
    /// [`Error::Parse`] where shadow gives up on the whole file: a NUL byte in the last line.
    pub fn parse(path: &Path, text: &[u8]) -> Result<Self, Error> {
        let mut file = Self { path: path.to_owned(), grants: Vec::new(), problems: Vec::new() };
        let mut lines = Lines { text, at: 0, line: 0, buffer: BUFFER };
        while let Some(line) = lines.next() {
            let Some((number, line)) = line else {
                let found =
                    String::from_utf8_lossy(text.rsplit(|&b| b == b'\n').next().unwrap_or_default()).into_owned();
                let expected = "no NUL byte in the last line, for which shadow refuses the whole file";
                return Err(Error::Parse {
                    path: path.to_owned(),
                    line: lines.line,
                    expected,
                    found: crate::text::shorten(&found),
                });
            };
            let problem = |expected, ignored| {
                let text = crate::text::shorten(&String::from_utf8_lossy(&line));
                Problem { line: number, text, expected, ignored }
            };
            match parse_line(&line) {
                Ok((owner, start, count, odd)) => {
                    let grant = Grant { owner: OsString::from_vec(owner.to_vec()), start, count, line: number };
                    let wrong = if count == 0 {
                        Some("a count above 0")
                    } else if grant.range().is_none() {
                        Some("ids up to 4294967294 (newer versions ignore the line)")
                    } else if start == 0 {
                        Some("a start above 0 (this grants root's id)")
                    } else {
                        odd
                    };
                    file.problems.extend(wrong.map(|expected| problem(expected, false)));
                    file.grants.push(grant);
                }
                Err(_) if line.is_empty() => {}
                Err(expected) => file.problems.push(problem(expected, true)),
            }
        }
        Ok(file)
    }

    /// Where it was read from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its lines that count, in order.
    #[must_use]
    pub fn grants(&self) -> &[Grant] {
        &self.grants
    }

    /// Its lines that have no effect, or not the one that they seem to have.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Strict reading: the file, unless it has a problem.
    ///
    /// # Errors
    /// [`Error::Parse`] for the first of [`problems`](Self::problems).
    pub fn strict(self) -> Result<Self, Error> {
        match self.problems.into_iter().next() {
            None => Ok(Self { problems: Vec::new(), ..self }),
            Some(Problem { line, text, expected, .. }) => {
                Err(Error::Parse { path: self.path, line, expected, found: text })
            }
        }
    }

    /// What `getsubids` prints for `owner`, in order, doubled lines included: the lines of that very name, and those of the
    /// number that it has.
    fn listed(&self, owner: &OsStr, id: Option<u32>) -> Vec<Grant> {
        let id = id.map(|id| OsString::from(id.to_string()));
        let mut listed = Vec::new();
        for grant in &self.grants {
            // A name that is its own number counts twice there too.
            let times = usize::from(grant.owner == owner) + usize::from(Some(&grant.owner) == id.as_ref());
            listed.extend(std::iter::repeat_n(grant.clone(), times));
        }
        listed
    }

    /// Whether `newuidmap` lets `user` have these ids: walks from line to line of that user without a gap.
    fn allows(&self, user: &OsStr, accounts: &Accounts, start: u64, count: u64) -> bool {
        let Some(end) = count.checked_sub(1).and_then(|more| start.checked_add(more)) else { return false };
        let uid = accounts.uid_of(user);
        let text = uid.map(|uid| OsString::from(uid.to_string()));
        let mut known: HashMap<&OsStr, bool> = HashMap::new();
        let mut same_user = |owner| {
            *known
                .entry(owner)
                .or_insert_with(|| text.as_deref() == Some(owner) || (uid.is_some() && accounts.uid_of(owner) == uid))
        };
        let mut next = start;
        loop {
            let has = |grant: &&Grant| grant.count > 0 && grant.start <= next && next <= grant.last();
            let found = self.grants.iter().filter(has).find(|grant| grant.owner == user);
            let found = found.or_else(|| self.grants.iter().filter(has).find(|grant| same_user(&grant.owner)));
            match found.map(Grant::last) {
                None => return false,
                Some(last) if last >= end => return true,
                Some(last) => next = last + 1,
            }
        }
    }
}

/// shadow's first buffer, and by how much it grows.
const BUFFER: usize = 4096;

/// Lines as the C library's fgets(3) cuts them, with shadow's way of joining pieces: what follows a NUL byte is lost, the
/// next line included into this one.
struct Lines<'a> {
    text: &'a [u8],
    at: usize,
    line: usize,
    /// It grows and is not made smaller again.
    buffer: usize,
}

impl<'a> Lines<'a> {
    /// One fgets(3) into `room` bytes: the piece, and whether the end of the file was met.
    fn piece(&mut self, room: usize) -> Option<(&'a [u8], bool)> {
        let rest = self.text.get(self.at..)?;
        if rest.is_empty() {
            return None;
        }
        let most = rest.len().min(room.saturating_sub(1));
        let newline = rest.iter().take(most).position(|&b| b == b'\n');
        let length = newline.map_or(most, |at| at + 1);
        self.at += length;
        let end = newline.is_none() && length == rest.len() && length < room.saturating_sub(1);
        Some((&rest[..length], end))
    }

    /// The next line with its number; `Some(None)` where shadow gives up.
    fn next(&mut self) -> Option<Option<(usize, Vec<u8>)>> {
        let (piece, mut end) = self.piece(self.buffer)?;
        self.line += 1;
        let number = self.line;
        let mut ended = piece.ends_with(b"\n");
        let mut line = until_nul(piece).to_vec();
        while !line.ends_with(b"\n") && !end {
            self.buffer += BUFFER;
            let Some((piece, at_end)) = self.piece(self.buffer - line.len()) else { return Some(None) };
            self.line += usize::from(ended);
            ended = piece.ends_with(b"\n");
            end = at_end;
            line.extend_from_slice(until_nul(piece));
        }
        if line.ends_with(b"\n") {
            line.pop();
        }
        Some(Some((number, line)))
    }
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|&b| b == 0).next().unwrap_or_default()
}

/// Owner, start, count, and what is odd about a line that counts all the same.
type Line<'a> = (&'a [u8], u64, u64, Option<&'static str>);

fn parse_line(line: &[u8]) -> Result<Line<'_>, &'static str> {
    if line.starts_with(b"+") || line.starts_with(b"-") {
        return Err("an owner without a leading + or -");
    }
    if line.len() > LONGEST_LINE {
        return Err("at most 1023 bytes");
    }
    let mut fields = line.split(|&b| b == b':');
    let (Some(owner), Some(start), Some(count)) = (fields.next(), fields.next(), fields.next()) else {
        return Err("OWNER:START:COUNT");
    };
    if owner.is_empty() || start.is_empty() || count.is_empty() {
        return Err("no empty field");
    }
    let odd = if fields.next().is_some() {
        Some("three fields (newer versions ignore the line)")
    } else if owner.first().is_some_and(u8::is_ascii_whitespace) || owner.last().is_some_and(u8::is_ascii_whitespace) {
        Some("no blanks around the owner (they belong to its name)")
    } else if owner.starts_with(b"#") {
        Some("no comment (`#` belongs to the owner's name)")
    } else if ![start, count].iter().all(|n| n.iter().all(u8::is_ascii_digit) && (n.len() == 1 || !n.starts_with(b"0")))
    {
        Some("decimal numbers")
    } else {
        None
    };
    let start = number(start).ok_or("a number as start")?;
    let count = number(count).ok_or("a number as count")?;
    Ok((owner, start, count, odd))
}

/// strtoul(3) with base 0, of the whole text: leading blanks and a sign, `0x` hexadecimal, `0` octal. A minus wraps.
pub(crate) fn number(text: &[u8]) -> Option<u64> {
    let start = text.iter().position(|b| !matches!(b, b' ' | b'\t'..=b'\r'))?;
    let text = &text[start..];
    let (negative, text) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, text),
    };
    let (base, digits) = match text {
        [b'0', b'x' | b'X', rest @ ..] => (16, rest),
        [b'0', _, ..] => (8, text),
        _ => (10, text),
    };
    if digits.is_empty() {
        return None;
    }
    let mut value: u64 = 0;
    for &digit in digits {
        let digit = char::from(digit).to_digit(base)?;
        value = value.checked_mul(base.into())?.checked_add(digit.into())?;
    }
    Some(if negative { value.wrapping_neg() } else { value })
}

/// The subordinate user and group ids of all users of a system.
#[derive(Debug, Clone)]
pub struct SubordinateIds {
    uids: SubidFile,
    gids: SubidFile,
    accounts: Accounts,
    /// `nsswitch.conf` names another source than the files, and so `getsubids` must be asked.
    source: Option<String>,
}

impl SubordinateIds {
    /// Those of this system: `/etc/subuid`, `/etc/subgid` and the accounts.
    ///
    /// When `/etc/nsswitch.conf` has a line `subid:` with another source than `files`, the grants of a user come from that
    /// source alone, by the program `getsubids`; [`overlaps`](Self::overlaps) knows only the files.
    ///
    /// # Errors
    /// [`Error::File`] for a file that exists and cannot be read; [`Error::Parse`] for one that shadow refuses.
    pub fn read() -> Result<Self, Error> {
        let source = nss_source(&std::fs::read("/etc/nsswitch.conf").unwrap_or_default());
        Ok(Self { accounts: Accounts::system()?, source, ..Self::read_root(Path::new("/"))? })
    }

    /// Those of the files below another root directory, for inspection: `etc/subuid`, `etc/subgid`, `etc/passwd`, `etc/group`.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_root(root: &Path) -> Result<Self, Error> {
        let file = |name: &str| SubidFile::read(&root.join(name));
        Ok(Self::new(file("etc/subuid")?, file("etc/subgid")?, Accounts::read_root(root)?))
    }

    /// Those of files that were read before.
    #[must_use]
    pub fn new(uids: SubidFile, gids: SubidFile, accounts: Accounts) -> Self {
        Self { uids, gids, accounts, source: None }
    }

    /// `/etc/subuid`.
    #[must_use]
    pub fn uids(&self) -> &SubidFile {
        &self.uids
    }

    /// `/etc/subgid`.
    #[must_use]
    pub fn gids(&self) -> &SubidFile {
        &self.gids
    }

    /// The accounts that owners are looked up in.
    #[must_use]
    pub fn accounts(&self) -> &Accounts {
        &self.accounts
    }

    /// The subordinate uids of a user, as `getsubids USER` lists them: its lines in order, and those of its uid.
    ///
    /// # Errors
    /// [`Error::Helper`] when another source is configured and `getsubids` fails.
    pub fn uids_of(&self, user: &OsStr) -> Result<Vec<Grant>, Error> {
        match &self.source {
            Some(_) => helper::getsubids(Kind::Uid, user),
            None => Ok(self.uids.listed(user, self.accounts.uid_of(user))),
        }
    }

    /// The subordinate gids of a user, as `getsubids -g USER` lists them: its lines in order, and those of the *group* of
    /// the same name, by number.
    ///
    /// # Errors
    /// As [`uids_of`](Self::uids_of).
    pub fn gids_of(&self, user: &OsStr) -> Result<Vec<Grant>, Error> {
        match &self.source {
            Some(_) => helper::getsubids(Kind::Gid, user),
            None => Ok(self.gids.listed(user, self.accounts.gid_of(user))),
        }
    }

    /// Whether `newuidmap` lets the user map these `count` uids from `start` on (its own uid, always allowed by itself, is
    /// not looked at here). Besides the lines of its name those of its uid and of other names with that uid count, and
    /// lines may continue each other. None of them has to have been checked for overlap: nobody does.
    ///
    /// # Errors
    /// As [`uids_of`](Self::uids_of).
    pub fn allows_uids(&self, user: &OsStr, start: u32, count: u32) -> Result<bool, Error> {
        self.allows(Kind::Uid, user, start, count)
    }

    /// The same for `newgidmap`; it looks owners up as users too.
    ///
    /// # Errors
    /// As [`uids_of`](Self::uids_of).
    pub fn allows_gids(&self, user: &OsStr, start: u32, count: u32) -> Result<bool, Error> {
        self.allows(Kind::Gid, user, start, count)
    }

    pub(crate) fn allows(&self, kind: Kind, user: &OsStr, start: u32, count: u32) -> Result<bool, Error> {
        let (start, count) = (start.into(), count.into());
        if self.source.is_none() {
            let file = self.file(kind);
            return Ok(file.allows(user, &self.accounts, start, count));
        }
        let grants = helper::getsubids(kind, user)?;
        let file = SubidFile { path: "getsubids".into(), grants, problems: Vec::new() };
        Ok(file.allows(user, &Accounts::default(), start, count))
    }

    /// The ids that a user may lend to sandboxes: its grants as `newuidmap` counts them (also those of other names with its
    /// uid), sorted, those joined that overlap or continue each other, without what is no id.
    pub(crate) fn ranges_of(&self, kind: Kind, user: &OsStr) -> Result<Vec<Range>, Error> {
        let grants = match &self.source {
            Some(_) => helper::getsubids(kind, user)?,
            None => {
                let user = self.identity(user);
                let all = self.file(kind).grants.iter();
                all.filter(|grant| self.identity(&grant.owner) == user).cloned().collect()
            }
        };
        let mut ranges: Vec<Range> = grants.iter().filter_map(Grant::range).collect();
        ranges.sort_unstable();
        let mut joined: Vec<Range> = Vec::new();
        for range in ranges {
            match joined.last_mut() {
                Some(last) if range.base() <= last.last() + 1 => {
                    let end = last.last().max(range.last());
                    *last = Range::new(last.base(), end - last.base() + 1)?;
                }
                _ => joined.push(range),
            }
        }
        Ok(joined)
    }

    pub(crate) fn file(&self, kind: Kind) -> &SubidFile {
        match kind {
            Kind::Uid => &self.uids,
            Kind::Gid => &self.gids,
        }
    }

    /// Grants of one user that share ids with another user's, or with an account. Nothing else looks for them, and both
    /// users are let in. Each line is named once or more, and no line's overlap stays unnamed.
    #[must_use]
    pub fn overlaps(&self) -> Vec<Overlap> {
        let mut overlaps = self.overlaps_in(Kind::Uid);
        overlaps.extend(self.overlaps_in(Kind::Gid));
        overlaps
    }

    fn overlaps_in(&self, kind: Kind) -> Vec<Overlap> {
        let file = self.file(kind);
        let mut accounts: Vec<(u32, &OsStr)> = match kind {
            Kind::Uid => self.accounts.users().collect(),
            Kind::Gid => self.accounts.groups().collect(),
        };
        accounts.sort_unstable();
        let mut sorted: Vec<&Grant> = file.grants.iter().filter(|grant| grant.count > 0).collect();
        sorted.sort_by_key(|grant| (grant.start, grant.line));
        let mut known = HashMap::new();
        let mut identity = |owner| known.entry(owner).or_insert_with(|| self.identity(owner)).clone();
        let mut overlaps = Vec::new();
        // Of what came before, the grant that reaches furthest, and the furthest of somebody else than that one's owner:
        // an overlap with anything before is an overlap with one of the two.
        let mut furthest: [Option<(&Grant, Identity)>; 2] = [None, None];
        for grant in sorted {
            let owner = identity(&grant.owner);
            for (before, _) in furthest.iter().flatten().filter(|(_, other)| *other != owner) {
                if before.last() >= grant.start {
                    let last = before.last().min(grant.last());
                    let with = OverlapWith::Grant((*before).clone());
                    overlaps.push(Overlap {
                        file: file.path.clone(),
                        grant: grant.clone(),
                        first: grant.start,
                        last,
                        with,
                    });
                }
            }
            let [first, second] = &mut furthest;
            match first {
                Some((before, other)) if *other == owner => {
                    if before.last() < grant.last() {
                        *before = grant;
                    }
                }
                Some((before, _)) if before.last() >= grant.last() => {
                    if second.as_ref().is_none_or(|(before, _)| before.last() < grant.last()) {
                        *second = Some((grant, owner));
                    }
                }
                _ => {
                    *second = first.take();
                    *first = Some((grant, owner));
                }
            }
            let from = accounts.partition_point(|&(id, _)| u64::from(id) < grant.start);
            if let Some(&(id, name)) = accounts.get(from).filter(|(id, _)| u64::from(*id) <= grant.last()) {
                let with = OverlapWith::Account { id, name: name.to_owned() };
                let (first, last) = (id.into(), id.into());
                overlaps.push(Overlap { file: file.path.clone(), grant: grant.clone(), first, last, with });
            }
        }
        overlaps
    }

    /// Two owners are the same when they are the same uid.
    fn identity(&self, owner: &OsStr) -> Identity {
        match self.accounts.uid_of(owner).or_else(|| owner.to_str()?.parse().ok()) {
            Some(uid) => Identity::Uid(uid),
            None => Identity::Name(owner.to_owned()),
        }
    }

    /// The first line of somebody other than `owners` that grants an id of `range`.
    pub(crate) fn claimed_by_other(&self, kind: Kind, range: Range, owners: &[OsString]) -> Option<String> {
        let file = self.file(kind);
        let owners: Vec<Identity> = owners.iter().map(|owner| self.identity(owner)).collect();
        let (first, last) = (u64::from(range.base()), u64::from(range.last()));
        let overlap = |grant: &&Grant| grant.count > 0 && grant.start <= last && first <= grant.last();
        let grant = file.grants.iter().filter(overlap).find(|grant| !owners.contains(&self.identity(&grant.owner)))?;
        Some(format!(
            "{}:{} grants {}..={} to {}",
            file.path.display(),
            grant.line,
            grant.start,
            grant.last(),
            grant.owner.to_string_lossy()
        ))
    }

    /// The account that has an id of `range`.
    pub(crate) fn account_in(&self, kind: Kind, range: Range) -> Option<String> {
        let named = |(id, name): (u32, &OsStr), what: &str| {
            range.contains(id).then(|| format!("{what} {} has the id {id}", name.to_string_lossy()))
        };
        match kind {
            Kind::Uid => self.accounts.users().find_map(|account| named(account, "the user")),
            Kind::Gid => self.accounts.groups().find_map(|account| named(account, "the group")),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Identity {
    Uid(u32),
    Name(OsString),
}

/// Ids that two have.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Overlap {
    /// The file of the grant.
    pub file: PathBuf,
    /// One of the two.
    pub grant: Grant,
    /// The first shared id.
    pub first: u64,
    /// The last shared id.
    pub last: u64,
    /// The other.
    pub with: OverlapWith,
}

/// Who else has the ids of a grant.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum OverlapWith {
    /// Another line of the same file.
    Grant(Grant),
    /// A user or group of the password or group file.
    #[non_exhaustive]
    Account {
        /// Its number.
        id: u32,
        /// Its name.
        name: OsString,
    },
}

impl fmt::Display for Overlap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, grant, first, last, with } = self;
        write!(f, "{}:{}: {first}..={last} of {} ", file.display(), grant.line, grant.owner.to_string_lossy())?;
        match with {
            OverlapWith::Grant(other) => {
                write!(f, "are also {}'s by line {}", other.owner.to_string_lossy(), other.line)
            }
            OverlapWith::Account { id, name } => write!(f, "include {}, the id of {}", id, name.to_string_lossy()),
        }
    }
}

/// The source that `nsswitch.conf` names for subordinate ids, when it is not the files.
fn nss_source(text: &[u8]) -> Option<String> {
    const KEY: &[u8] = b"subid:";
    let line = text.split(|&b| b == b'\n').find(|line| {
        line.get(..KEY.len()).is_some_and(|key| key.eq_ignore_ascii_case(KEY))
            && !line[KEY.len()..].trim_ascii().is_empty()
    })?;
    let source =
        String::from_utf8_lossy(line[KEY.len()..].trim_ascii().split(u8::is_ascii_whitespace).next()?).into_owned();
    (source != "files").then_some(source)
}

/// The lines of `getsubids`: `INDEX: OWNER START COUNT`.
pub(crate) fn parse_listing(text: &[u8]) -> Option<Vec<Grant>> {
    let line = |line: &[u8]| {
        let mut fields = line.rsplitn(3, |&b| b == b' ');
        let (count, start, owner) = (fields.next()?, fields.next()?, fields.next()?);
        let at = owner.windows(2).position(|two| two == b": ")?;
        let owner = OsStr::from_bytes(&owner[at + 2..]).to_owned();
        Some(Grant { owner, start: number(start)?, count: number(count)?, line: 0 })
    };
    text.split(|&b| b == b'\n').filter(|text| !text.is_empty()).map(line).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(text: &[u8]) -> SubidFile {
        SubidFile::parse(Path::new("/etc/subuid"), text).unwrap()
    }

    fn ids(subuid: &str, passwd: &str) -> SubordinateIds {
        let empty = SubidFile::parse(Path::new("/etc/subgid"), b"").unwrap();
        SubordinateIds::new(file(subuid.as_bytes()), empty, Accounts::parse(passwd.as_bytes(), b""))
    }

    #[test]
    fn numbers_are_those_of_strtoul() {
        for (text, value) in [
            ("0", Some(0)),
            ("010", Some(8)),
            ("08", None),
            ("0x", None),
            ("0xG", None),
            ("0Xff", Some(255)),
            (" \t\n\x0b\x0c\r7", Some(7)),
            ("7 ", None),
            ("7\r", None),
            ("+5", Some(5)),
            ("-1", Some(u64::MAX)),
            ("-18446744073709551616", None),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("+-1", None),
            ("", None),
            (" ", None),
            ("-", None),
            ("1_000", None),
        ] {
            assert_eq!(number(text.as_bytes()), value, "{text:?}");
        }
    }

    #[test]
    fn a_nul_byte_joins_lines_and_in_the_last_line_ends_all() {
        let joined = file(b"alice:1\0xx\n00:10\nbob:5:6\n");
        let found: Vec<_> =
            joined.grants().iter().map(|g| (g.owner.to_str().unwrap(), g.start, g.count, g.line)).collect();
        assert_eq!(found, [("alice", 100, 10, 1), ("bob", 5, 6, 3)]);
        let error = SubidFile::parse(Path::new("/etc/subuid"), b"alice:1:2\nbob:3:4\0\n").unwrap_err();
        assert_eq!(
            error.to_string(),
            "/etc/subuid:2: expected no NUL byte in the last line, for which shadow refuses the whole file, found \"\""
        );
        // Without a newline after it, the end of the file is met in the same read, and all is well.
        assert_eq!(file(b"bob:3:4\0garbage").grants().len(), 1);
    }

    #[test]
    fn a_fourth_field_is_ignored_and_reported() {
        let file = file(b"alice:100000:10:x\n");
        assert_eq!(file.grants().len(), 1);
        assert!(!file.problems()[0].ignored);
        let error = file.strict().unwrap_err().to_string();
        assert_eq!(
            error,
            "/etc/subuid:1: expected three fields (newer versions ignore the line), found \"alice:100000:10:x\""
        );
    }

    #[test]
    fn case_83_every_bad_line_is_reported_with_its_number() {
        let text = "ok:1:1\n\n+nis:1:1\nshort:1\n:1:1\na:x:1\na:1:y\nzero:1:0\nroot:0:5\n#c:1:1\nhex:0x10:1\nbig:4294967295:1\n";
        let file = file(text.as_bytes());
        let found: Vec<_> = file.problems().iter().map(|p| (p.line, p.ignored)).collect();
        let ignored = [(3, true), (4, true), (5, true), (6, true), (7, true)];
        let odd = [(8, false), (9, false), (10, false), (11, false), (12, false)];
        assert_eq!(found, [ignored, odd].concat());
    }

    #[test]
    fn nothing_of_a_gap_or_of_a_count_of_zero_is_allowed() {
        let ids = ids("alice:100:10\nalice:111:10\nalice:0:0\n", "alice:x:1000:\n");
        assert!(ids.allows_uids("alice".as_ref(), 100, 10).unwrap());
        assert!(!ids.allows_uids("alice".as_ref(), 100, 12).unwrap());
        assert!(!ids.allows_uids("alice".as_ref(), 0, 1).unwrap());
        assert!(!ids.allows_uids("alice".as_ref(), 100, 0).unwrap());
        assert!(!ids.allows_uids("ali".as_ref(), 100, 1).unwrap(), "a part of a name is another name");
    }

    #[test]
    fn overlaps_name_both_lines_and_accounts() {
        let text = "alice:100000:65536\n1000:120000:10\nbob:165535:1\ncarol:300000:10\n";
        let ids = ids(text, "alice:x:1000:\nbob:x:1001:\nlate:x:300009:\n");
        let found: Vec<_> = ids.overlaps().iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            [
                "/etc/subuid:3: 165535..=165535 of bob are also alice's by line 1",
                "/etc/subuid:4: 300009..=300009 of carol include 300009, the id of late",
            ]
        );
    }

    #[test]
    fn an_overlap_hidden_behind_the_owners_own_longer_line_is_found() {
        let ids = ids("a:0:100\nb:10:10\nb:12:50\na:15:2\n", "");
        let lines: Vec<_> = ids.overlaps().iter().map(|o| o.grant.line).collect();
        assert_eq!(lines, [2, 3, 4]);
    }

    #[test]
    fn what_a_user_may_lend_includes_the_grants_of_its_other_names() {
        let ids =
            ids("two:300:10\n1000:100:10\none:105:20\nthree:125:10\n", "one:x:1000:\ntwo:x:1000:\nthree:x:1001:\n");
        let found: Vec<_> = ids.ranges_of(Kind::Uid, "one".as_ref()).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(found, ["100..=124", "300..=309"]);
    }

    #[test]
    fn another_source_in_nsswitch_is_seen() {
        assert_eq!(nss_source(b"passwd: files\nsubid: sss\n"), Some("sss".into()));
        assert_eq!(nss_source(b"SUBID:\tfiles\n"), None);
        assert_eq!(nss_source(b"#subid: sss\nsubid:\n"), None);
    }

    #[test]
    fn the_listing_of_getsubids_is_read() {
        let grants = parse_listing(b"0: alice 100000 65536\n1: a b 5 6\n").unwrap();
        assert_eq!((grants[1].owner.to_str(), grants[1].start, grants[1].count), (Some("a b"), 5, 6));
        assert!(parse_listing(b"what?\n").is_none());
    }

    /// Nanoseconds that this thread has run: a busy machine does not make the parser slower.
    fn ran() -> u64 {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        text.split(' ').next().unwrap().parse().unwrap()
    }

    #[test]
    fn case_83_a_million_lines_take_less_than_a_second() {
        // Without optimization a tenth of them.
        let lines: u32 = if cfg!(debug_assertions) { 100_000 } else { 1_000_000 };
        let text: String = (0..lines).map(|n| format!("user{}:{}:65536\n", n % 1000, 100_000 + n)).collect();
        let before = ran();
        let ids = ids(&text, "user1:x:1:\n");
        let took = ran() - before;
        assert_eq!(ids.uids().grants().len(), text.lines().count());
        println!("{lines} lines in {} ms", took / 1_000_000);
        assert!(took < 1_000_000_000, "{took} ns");
        assert!(!ids.overlaps().is_empty());
        let one_line = [b"alice:".repeat(1 << 18), b"\n".to_vec()].concat();
        assert_eq!(file(&one_line).grants().len(), 0);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_file_or_an_error(
            text in prop::collection::vec(prop::sample::select(&b"ab:0179x+-# \t\r\n\0\xff"[..]), 0..200),
            any in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            for text in [text, any] {
                if let Ok(file) = SubidFile::parse(Path::new("x"), &text) {
                    let ids = SubordinateIds::new(file.clone(), file, Accounts::default());
                    let _ = (ids.overlaps(), ids.ranges_of(Kind::Uid, "a".as_ref()), ids.allows_uids("a".as_ref(), 7, 9));
                }
            }
        }

        #[test]
        fn decimal_lines_are_read_as_written(owner in "[a-z_][a-z0-9_-]{0,30}", start in 1..u32::MAX, count in 1..1000_u32) {
            let file = file(format!("{owner}:{start}:{count}\n").as_bytes());
            let grant = &file.grants()[0];
            prop_assert_eq!((grant.owner.to_str(), grant.start, grant.count), (Some(&*owner), start.into(), count.into()));
        }
    }
}
