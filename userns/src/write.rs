//! Writing the maps of a user namespace.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, PROC_SUPER_MAGIC, fstatfs, openat, statat};
use rustix::io::{Errno, pread, write};
use rustix::process::{getegid, geteuid};
use rustix::thread::{CapabilitySet, capabilities};

use crate::{Error, IdMap, helper};

/// Whether programs of the namespace may call setgroups(2), and so drop a group that *denies* them something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums)] // The kernel's file knows these two words.
pub enum Setgroups {
    /// setgroups(2) answers `EPERM`, for ever. Required of writers without privilege before they write `gid_map`.
    Deny,
    /// setgroups(2) works for who has CAP_SETGID in the namespace, once `gid_map` is written.
    Allow,
}

impl Setgroups {
    const fn word(self) -> &'static str {
        match self {
            Self::Deny => "deny",
            Self::Allow => "allow",
        }
    }
}

/// Gives the user namespace of process `pid` its maps, and reads them back.
///
/// `pid` is a process *in* the new namespace, usually the child that was cloned with `CLONE_NEWUSER` and now waits; its
/// number counts in the PID namespace of `/proc`. The caller is in the parent namespace, and the outside ids are those
/// that the caller sees. A map can be written only once. Extents that cross a border of the caller's own map are cut there.
///
/// - With CAP_SETUID and CAP_SETGID, or for exactly the caller's own uid and gid (then `setgroups` must be
///   [`Setgroups::Deny`]), the files `/proc/PID/{setgroups,uid_map,gid_map}` are written directly.
/// - Otherwise by the set-user-id programs `newuidmap` and `newgidmap` of shadow, which give a caller what `/etc/subuid`
///   and `/etc/subgid` grant it.
///
/// Nothing is undone on failure: the uid map may be set and the gid map not. End the child then.
///
/// # Errors
/// [`Error::Invalid`] names the rule of the kernel that the maps would break; [`Error::File`] is what the kernel refused
/// all the same; [`Error::Helper`] has each way in which the programs of shadow can fail, with its fix;
/// [`Error::Unsupported`] when `/proc` is not procfs or a capability is missing.
///
/// Kernel: Linux 3.8, user_namespaces(7).
pub fn write_maps(pid: u32, uids: &IdMap, gids: &IdMap, setgroups: Setgroups) -> Result<(), Error> {
    let process = Process::open(pid)?;
    match OwnMaps::cached().and_then(|own| process.write_maps(&own, uids, gids, setgroups)) {
        Ok(()) => Ok(()),
        // What was known of our own namespace may be old: a process of one thread can change it.
        Err(error) => match OwnMaps::renewed()? {
            Some(own) => process.write_maps(&own, uids, gids, setgroups),
            None => Err(error),
        },
    }
}

/// Users or groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Uid,
    Gid,
}

impl Kind {
    const fn map_file(self) -> &'static str {
        match self {
            Self::Uid => "uid_map",
            Self::Gid => "gid_map",
        }
    }
}

/// Who may write the maps.
enum Route {
    /// This process.
    Direct,
    /// The set-user-id programs of shadow.
    Helpers,
}

impl Route {
    fn choose(uids: &IdMap, gids: &IdMap, setgroups: Setgroups) -> Result<Self, Error> {
        let effective = capabilities(None)
            .map_err(|e| Error::Syscall { call: "capget", detail: "self".into(), error: e.into() })?
            .effective;
        if effective.contains(CapabilitySet::SETUID | CapabilitySet::SETGID) {
            return Ok(Self::Direct);
        }
        let own = |map: &IdMap, id: u32| matches!(map.extents(), [e] if e.count == 1 && e.outside == id);
        if own(uids, geteuid().as_raw()) && own(gids, getegid().as_raw()) && setgroups == Setgroups::Deny {
            return Ok(Self::Direct);
        }
        Ok(Self::Helpers)
    }
}

/// The maps of the namespace that this process is in: its ids to those of its parent.
#[derive(Debug)]
pub(crate) struct OwnMaps {
    /// Device and inode of the namespace.
    namespace: (u64, u64),
    /// `None` while the namespace has no map.
    pub(crate) uids: Option<IdMap>,
    pub(crate) gids: Option<IdMap>,
}

static OWN: Mutex<Option<Arc<OwnMaps>>> = Mutex::new(None);

impl OwnMaps {
    /// As they were when they were read last: looking whether the namespace is still the same costs as much as writing a
    /// map, and what is old here can only lead to a refusal.
    fn cached() -> Result<Arc<Self>, Error> {
        let known = OWN.lock().unwrap_or_else(PoisonError::into_inner).clone();
        known.map_or_else(Self::read, Ok)
    }

    /// As they are now, if the namespace is another one than when they were read last, or had no map then.
    fn renewed() -> Result<Option<Arc<Self>>, Error> {
        let known = Self::cached()?;
        if known.namespace == Self::namespace()? && known.uids.is_some() && known.gids.is_some() {
            return Ok(None);
        }
        Self::read().map(Some)
    }

    fn namespace() -> Result<(u64, u64), Error> {
        const PATH: &str = "/proc/self/ns/user";
        let stat = statat(CWD, PATH, AtFlags::empty()).map_err(|e| Error::file("open", PATH, e))?;
        Ok((stat.st_dev, stat.st_ino))
    }

    /// As they are now.
    pub(crate) fn read() -> Result<Arc<Self>, Error> {
        let read = |file: &str| {
            let path = format!("/proc/self/{file}");
            let text = std::fs::read_to_string(&path).map_err(|e| Error::file("read", path, e))?;
            if text.is_empty() { Ok(None) } else { IdMap::parse(&text).map(Some) }
        };
        let maps = Self { namespace: Self::namespace()?, uids: read("uid_map")?, gids: read("gid_map")? };
        let maps = Arc::new(maps);
        *OWN.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&maps));
        Ok(maps)
    }

    /// The map as the kernel wants it: each extent within one of ours.
    fn cut(&self, kind: Kind, map: &IdMap) -> Result<IdMap, Error> {
        let own = match kind {
            Kind::Uid => &self.uids,
            Kind::Gid => &self.gids,
        };
        match own {
            Some(own) => map.split_at(own),
            None => Err(Error::invalid("id map", "the namespace of the caller has no map itself yet")),
        }
    }
}

/// `/proc/PID`, held open, so that all files are those of one process.
struct Process {
    pid: u32,
    directory: OwnedFd,
}

impl Process {
    fn open(pid: u32) -> Result<Self, Error> {
        let path = format!("/proc/{pid}");
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory =
            openat(CWD, path.as_str(), flags, Mode::empty()).map_err(|e| Error::file("open map", path.as_str(), e))?;
        let system = fstatfs(&directory).map_err(|e| Error::file("open map", path.as_str(), e))?;
        if system.f_type != PROC_SUPER_MAGIC {
            return Err(Error::Unsupported { feature: "writing id maps", needs: "procfs at /proc".into() });
        }
        Ok(Self { pid, directory })
    }

    fn write_maps(&self, own: &OwnMaps, uids: &IdMap, gids: &IdMap, setgroups: Setgroups) -> Result<(), Error> {
        let (uids, gids) = (own.cut(Kind::Uid, uids)?, own.cut(Kind::Gid, gids)?);
        let route = Route::choose(&uids, &gids, setgroups)?;
        if setgroups == Setgroups::Deny {
            self.deny_setgroups()?;
        }
        match route {
            Route::Direct => {
                self.write(Kind::Uid, &uids)?;
                self.write(Kind::Gid, &gids)
            }
            Route::Helpers => {
                for (kind, map) in [(Kind::Uid, &uids), (Kind::Gid, &gids)] {
                    helper::write_map(kind, self.pid, map)?;
                    self.check(kind, map)?;
                }
                self.check_setgroups(setgroups)
            }
        }
    }

    fn path(&self, file: &str) -> PathBuf {
        format!("/proc/{}/{file}", self.pid).into()
    }

    fn open_file(&self, file: &str) -> Result<OwnedFd, Error> {
        openat(&self.directory, file, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| Error::file("open map", self.path(file), e))
    }

    /// Denies setgroups(2) and reads that back.
    fn deny_setgroups(&self) -> Result<(), Error> {
        const FILE: &str = "setgroups";
        let fd = self.open_file(FILE)?;
        let word = Setgroups::Deny.word();
        write(&fd, word.as_bytes()).map_err(|e| Error::file("write setgroups", self.path(FILE), e))?;
        let found = read_all(&fd).map_err(|e| Error::file("read", self.path(FILE), e))?;
        if found.trim_end() == word { Ok(()) } else { Err(self.differs(FILE, word, &found)) }
    }

    /// One write(2), as the kernel wants it, then the same descriptor is read.
    fn write(&self, kind: Kind, map: &IdMap) -> Result<(), Error> {
        let file = kind.map_file();
        let text = map.to_string();
        let fd = self.open_file(file)?;
        write(&fd, text.as_bytes()).map_err(|e| self.refused(kind, map, &fd, e))?;
        let found = read_all(&fd).map_err(|e| Error::file("read", self.path(file), e))?;
        match IdMap::parse(&found) {
            Ok(read) if read.same_as(map) => Ok(()),
            _ => Err(self.differs(file, &text, &found)),
        }
    }

    /// Reads back what a helper wrote.
    fn check(&self, kind: Kind, map: &IdMap) -> Result<(), Error> {
        let file = kind.map_file();
        let found = self.read(file)?;
        match IdMap::parse(&found) {
            Ok(read) if read.same_as(map) => Ok(()),
            _ => Err(self.differs(file, &map.to_string(), &found)),
        }
    }

    /// `newgidmap` denies it by itself to a caller without subordinate gids.
    fn check_setgroups(&self, wanted: Setgroups) -> Result<(), Error> {
        const FILE: &str = "setgroups";
        let found = self.read(FILE)?;
        if found.trim_end() == wanted.word() { Ok(()) } else { Err(self.differs(FILE, wanted.word(), &found)) }
    }

    fn read(&self, file: &str) -> Result<String, Error> {
        let fd = openat(&self.directory, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| Error::file("open map", self.path(file), e))?;
        read_all(&fd).map_err(|e| Error::file("read", self.path(file), e))
    }

    fn differs(&self, file: &str, written: &str, found: &str) -> Error {
        let one_line = |text: &str| text.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
        let why = format!("`{}` was wanted, `{}` is read back", one_line(written), one_line(found));
        Error::invalid(self.path(file).display().to_string(), why)
    }

    /// The kernel says only EPERM: which of its rules was it?
    fn refused(&self, kind: Kind, map: &IdMap, fd: &OwnedFd, error: Errno) -> Error {
        let path = self.path(kind.map_file());
        if error == Errno::PERM {
            if read_all(fd).is_ok_and(|text| !text.is_empty()) {
                return Error::invalid(
                    path.display().to_string(),
                    "the map is set already; the kernel takes one only once",
                );
            }
            let has = |wanted| capabilities(None).is_ok_and(|sets| sets.effective.contains(wanted));
            if kind == Kind::Uid && map.to_inside(0).is_some() && !has(CapabilitySet::SETFCAP) {
                let needs = "CAP_SETFCAP in the caller's namespace (since Linux 5.12 and its backports)";
                return Error::Unsupported { feature: "mapping the outside uid 0", needs: needs.into() };
            }
        }
        Error::file("write map", path, error)
    }
}

/// The whole of a small file of procfs, from its beginning.
fn read_all(fd: &OwnedFd) -> Result<String, Errno> {
    let mut bytes = vec![0; 256];
    let mut filled = 0;
    loop {
        let room = bytes.len() - filled;
        let read = pread(fd, &mut bytes[filled..], filled as u64)?;
        filled += read;
        // Within its first page such a file gives all that there is room for.
        if read == 0 || (read < room && bytes.len() <= 4096) {
            break;
        }
        if filled == bytes.len() {
            bytes.resize(filled * 4, 0);
        }
    }
    bytes.truncate(filled);
    String::from_utf8(bytes).map_err(|_| Errno::ILSEQ)
}
