//! Which files are read, in which order, below which root; and the cache that makes asking again cheap.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::line::{self, Statement};
use super::{Flavor, Line};
use crate::Error;

const CONF: &str = "/etc/security/limits.conf";
const DIR: &str = "/etc/security/limits.d";
/// Beyond these no configuration is honest, and memory is ours.
const FILE_BYTES: u64 = 1 << 20;
const ALL_BYTES: u64 = 4 << 20;
const ALL_LINES: usize = 50_000;
const FILES: usize = 1_000;

/// The directory below which all paths are taken.
#[derive(Debug)]
pub(super) struct Root {
    path: PathBuf,
    fd: Option<OwnedFd>,
}

/// Where a symbolic link cannot lead out of a given root, and no FIFO or device is opened.
impl Root {
    /// `/`, as this process sees it.
    pub(super) fn system() -> Self {
        Self { path: PathBuf::from("/"), fd: None }
    }

    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        if path == Path::new("/") {
            return Ok(Self::system());
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(fd) => Ok(Self { path: path.to_owned(), fd: Some(fd) }),
            Err(errno) => Err(failed("open", path, errno.into())),
        }
    }

    pub(super) fn is_system(&self) -> bool {
        self.fd.is_none()
    }

    /// The path for people: with the root before it.
    pub(super) fn shown(&self, path: &Path) -> PathBuf {
        self.path.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The stamp of what is there; `None` when nothing is.
    fn stamp(&self, path: &Path) -> Result<Option<Stamp>, Error> {
        let stat = match &self.fd {
            None => rustix::fs::stat(path),
            Some(root) => beneath(root.as_fd(), path, OFlags::PATH).and_then(rustix::fs::fstat),
        };
        match stat {
            Ok(stat) => Ok(Some(Stamp::of(&stat))),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(failed("open", &self.shown(path), errno.into())),
        }
    }

    pub(super) fn is_dir(&self, path: &Path) -> bool {
        self.stamp(path).is_ok_and(|stamp| stamp.is_some_and(|stamp| stamp.kind == FileType::Directory))
    }

    fn descriptor(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        match &self.fd {
            None => rustix::fs::openat(CWD, path, flags | OFlags::CLOEXEC, Mode::empty()),
            Some(root) => beneath(root.as_fd(), path, flags),
        }
    }

    /// The file's bytes, at most so many; a directory counts as empty, as `fopen` and reading makes it.
    pub(super) fn read(&self, path: impl AsRef<Path>, most: u64) -> Result<Vec<u8>, Error> {
        let path = path.as_ref();
        let fail = |error: io::Error| failed("read", &self.shown(path), error);
        // Looked at before it is opened: opening some devices already does something.
        let look =
            self.descriptor(path, OFlags::PATH).and_then(rustix::fs::fstat).map_err(|errno| fail(errno.into()))?;
        match FileType::from_raw_mode(look.st_mode) {
            FileType::RegularFile => {}
            FileType::Directory => return Ok(Vec::new()),
            _ => return Err(self.refused(path, "it is neither a file nor a directory")),
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = self.descriptor(path, flags).map_err(|errno| fail(errno.into()))?;
        let stat = rustix::fs::fstat(&file).map_err(|errno| fail(errno.into()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(self.refused(path, "it was exchanged while being read"));
        }
        let mut bytes = Vec::new();
        File::from(file).take(most + 1).read_to_end(&mut bytes).map_err(fail)?;
        if u64::try_from(bytes.len()).is_ok_and(|length| length > most) {
            return Err(self.refused(path, &format!("it has more than {most} bytes")));
        }
        Ok(bytes)
    }

    /// The names in a directory that `*.conf` stands for; none when there is no directory.
    fn list(&self, path: &Path) -> Result<Vec<OsString>, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let dir = match self.descriptor(path, flags).and_then(Dir::new) {
            Ok(dir) => dir,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Vec::new()),
            Err(errno) => return Err(failed("list", &self.shown(path), errno.into())),
        };
        let mut names = Vec::new();
        for entry in dir {
            let entry = entry.map_err(|errno| failed("list", &self.shown(path), errno.into()))?;
            let name = entry.file_name().to_bytes();
            if name.ends_with(b".conf") && !name.starts_with(b".") {
                names.push(OsStr::from_bytes(name).to_owned());
            }
            if names.len() > FILES {
                return Err(self.refused(path, &format!("it has more than {FILES} files")));
            }
        }
        Ok(names)
    }

    fn refused(&self, path: &Path, why: &str) -> Error {
        Error::Invalid { what: format!("cannot read {}", self.shown(path).display()), why: why.to_owned() }
    }
}

fn failed(op: &'static str, path: &Path, error: io::Error) -> Error {
    Error::File { op, path: path.to_owned(), error }
}

/// Opens below a root: links are followed, but their `/` and `..` end at the root.
///
/// openat2(2), Linux 5.6. Where an outer filter hides that call (ENOSYS, EPERM), no link is followed at all.
fn beneath(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let relative = path.strip_prefix("/").unwrap_or(path);
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    // EAGAIN: something was renamed meanwhile, so that the kernel cannot be sure.
    for _ in 0..16 {
        match rustix::fs::openat2(root, relative, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => {}
            Err(Errno::NOSYS | Errno::PERM) => return without_links(root, relative, flags),
            result => return result,
        }
    }
    Err(Errno::AGAIN)
}

fn without_links(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let step = |dir: BorrowedFd<'_>, name: &OsStr, flags: OFlags| {
        let name = CString::new(name.as_bytes()).map_err(|_| Errno::INVAL)?;
        let fd = rustix::fs::openat(dir, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        match FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) {
            FileType::Symlink => Err(Errno::LOOP),
            _ => Ok(fd),
        }
    };
    let mut names = path.components().filter(|part| !matches!(part, Component::CurDir)).peekable();
    let mut dir = rustix::fs::openat(root, ".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    while let Some(part) = names.next() {
        let Component::Normal(name) = part else { return Err(Errno::XDEV) };
        let last = names.peek().is_none();
        dir = step(dir.as_fd(), name, if last { flags } else { OFlags::PATH })?;
    }
    Ok(dir)
}

/// What must be the same for a file to be taken for unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    kind: FileType,
    device: u64,
    inode: u64,
    size: i64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    // The types of `stat` differ by architecture: where a cast is none here, it is elsewhere. All that counts is equality.
    #[allow(clippy::unnecessary_cast, clippy::cast_possible_wrap, clippy::cast_lossless)]
    fn of(stat: &Stat) -> Self {
        Self {
            kind: FileType::from_raw_mode(stat.st_mode),
            device: stat.st_dev as u64,
            inode: stat.st_ino as u64,
            size: stat.st_size as i64,
            modified: (stat.st_mtime as i64, stat.st_mtime_nsec as i64),
            changed: (stat.st_ctime as i64, stat.st_ctime_nsec as i64),
        }
    }

    /// Whether an edit from now on must show in the stamp. Clocks of file systems tick in up to two seconds.
    fn settled(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok().and_then(|now| i64::try_from(now.as_secs()).ok());
        now.is_some_and(|now| self.changed.0 < now - 2 && self.modified.0 < now - 2)
    }
}

/// Something read from a path, with the stamp it had before it was read.
#[derive(Debug)]
pub(super) struct Kept<T> {
    stamp: Option<Stamp>,
    settled: bool,
    pub(super) value: T,
}

impl<T> Kept<T> {
    /// Reads anew unless the path's stamp is that of what is kept.
    pub(super) fn refresh<'a>(
        slot: &'a mut Option<Self>,
        root: &Root,
        path: &Path,
        read: impl FnOnce(Option<Stamp>) -> Result<T, Error>,
    ) -> Result<&'a T, Error> {
        let stamp = root.stamp(path)?;
        let kept = match slot.take() {
            Some(kept) if kept.settled && kept.stamp == stamp => kept,
            _ => {
                // Absent is settled: appearing always shows.
                let settled = stamp.is_none_or(|stamp| stamp.settled());
                Self { stamp, settled, value: read(stamp)? }
            }
        };
        Ok(&slot.insert(kept).value)
    }
}

/// A file's lines that say something.
#[derive(Debug)]
pub(super) struct Parsed {
    bytes: u64,
    pub(super) lines: Vec<(Line, Statement)>,
}

/// The whole configuration: the files in the order in which they count.
#[derive(Debug, Default)]
pub(super) struct Config {
    pub(super) files: Vec<Arc<Parsed>>,
    /// The first file that the module would fail to open; it reads no further.
    pub(super) missing: Option<PathBuf>,
}

impl Config {
    /// All names after `@` and `%`.
    pub(super) fn group_names(&self) -> impl Iterator<Item = &str> {
        let statements = self.files.iter().flat_map(|file| &file.lines).map(|(_, statement)| statement);
        statements.filter_map(|statement| match statement {
            Statement::Entry { domain, .. } | Statement::NoLimits { domain } if domain.range == line::Range::Name => {
                let (first, name) = domain.text.split_first()?;
                matches!(first, b'@' | b'%').then_some(std::str::from_utf8(name).ok()?)
            }
            _ => None,
        })
    }
}

#[derive(Debug, Default)]
pub(super) struct Cache {
    files: HashMap<PathBuf, Option<Kept<Option<Arc<Parsed>>>>>,
    dirs: HashMap<PathBuf, Option<Kept<Vec<OsString>>>>,
}

impl Cache {
    pub(super) fn read(
        &mut self,
        root: &Root,
        flavor: Flavor,
        vendor: Option<&Path>,
        conf: Option<&Path>,
    ) -> Result<Config, Error> {
        let mut config = Config::default();
        let (mut bytes, mut lines) = (0, 0);
        let mut add = |config: &mut Config, cache: &mut Self, path: &Path, must: bool| {
            let Some(parsed) = cache.file(root, flavor, path)? else {
                if must {
                    config.missing.get_or_insert(root.shown(path));
                }
                return Ok(!must);
            };
            bytes += parsed.bytes;
            lines += parsed.lines.len();
            if bytes > ALL_BYTES || lines > ALL_LINES {
                let most = format!("the files have more than {ALL_BYTES} bytes or {ALL_LINES} lines together");
                return Err(root.refused(path, &most));
            }
            config.files.push(parsed);
            Ok::<bool, Error>(true)
        };
        if let Some(conf) = conf {
            add(&mut config, self, conf, true)?;
            return Ok(config);
        }
        let first = match vendor {
            Some(vendor) if root.stamp(Path::new(CONF))?.is_none() => vendor.join("limits.conf"),
            _ => PathBuf::from(CONF),
        };
        if !add(&mut config, self, &first, flavor.needs_conf())? {
            return Ok(config);
        }
        // By name, bytewise; a file in /etc takes the place of the vendor's.
        let mut paths = BTreeMap::new();
        for dir in vendor.map(|vendor| vendor.join("limits.d")).into_iter().chain([PathBuf::from(DIR)]) {
            for name in self.names(root, &dir)? {
                paths.insert(name.as_bytes().to_owned(), dir.join(name));
            }
        }
        for path in paths.values() {
            if !add(&mut config, self, path, flavor.needs_conf())? {
                break;
            }
        }
        self.files.retain(|kept, _| *kept == first || paths.values().any(|path| path == kept));
        Ok(config)
    }

    fn names(&mut self, root: &Root, dir: &Path) -> Result<&Vec<OsString>, Error> {
        let slot = self.dirs.entry(dir.to_owned()).or_default();
        Kept::refresh(slot, root, dir, |stamp| if stamp.is_some() { root.list(dir) } else { Ok(Vec::new()) })
    }

    fn file(&mut self, root: &Root, flavor: Flavor, path: &Path) -> Result<Option<Arc<Parsed>>, Error> {
        let slot = self.files.entry(path.to_owned()).or_default();
        let parsed = Kept::refresh(slot, root, path, |stamp| {
            if stamp.is_none() {
                return Ok(None);
            }
            let bytes = root.read(path, FILE_BYTES)?;
            Ok(Some(Arc::new(parse(&bytes, flavor, root.shown(path).into()))))
        })?;
        Ok(parsed.clone())
    }
}

fn parse(bytes: &[u8], flavor: Flavor, file: Arc<Path>) -> Parsed {
    let lines = line::pieces(bytes, flavor)
        .filter_map(|(number, piece)| {
            let statement = line::parse(piece, flavor)?;
            Some((Line::new(Arc::clone(&file), number, piece), statement))
        })
        // One more is enough to be refused.
        .take(ALL_LINES + 1)
        .collect();
    Parsed { bytes: u64::try_from(bytes.len()).unwrap_or(u64::MAX), lines }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// The way taken where an outer filter hides openat2: no link at all, and nothing above the root.
    #[test]
    fn without_openat2_no_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("etc/security")).unwrap();
        std::fs::write(dir.path().join("etc/security/limits.conf"), "x").unwrap();
        symlink("etc", dir.path().join("link")).unwrap();
        symlink("limits.conf", dir.path().join("etc/security/last")).unwrap();
        let root = std::fs::File::open(dir.path()).unwrap();
        let open = |path: &str| without_links(root.as_fd(), Path::new(path), OFlags::RDONLY);
        let mut text = String::new();
        File::from(open("etc/./security/limits.conf").unwrap()).read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
        assert!(without_links(root.as_fd(), Path::new("etc"), OFlags::PATH).is_ok());
        for (path, errno) in [
            ("link/security/limits.conf", Errno::LOOP),
            ("etc/security/last", Errno::LOOP),
            ("etc/../etc/security/limits.conf", Errno::XDEV),
            ("../etc", Errno::XDEV),
            ("etc/none", Errno::NOENT),
            ("none/none", Errno::NOENT),
            ("etc/security/limits.conf/x", Errno::NOTDIR),
        ] {
            assert_eq!(open(path).unwrap_err(), errno, "{path}");
        }
    }
}
