use std::ffi::{CStr, OsStr};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, fstat, open, openat2, statat};
use rustix::io::Errno;

use crate::sys::{self, FS_XFLAG_PROJINHERIT};
use crate::{Error, Project};

/// The project that a file or directory bears.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tag {
    /// Its project; 0 is none.
    pub project: u32,
    /// Whether what is made inside inherits it (directories only).
    pub inherit: bool,
}

/// A directory, held by a descriptor, that bears a project or shall.
///
/// A directory with an inherited project is the root of a limited tree: all that is made in it, at any depth and by
/// anybody, belongs to the project; `df` on a directory in it shows the limit as the size; and nothing can be renamed
/// or linked *into* it from outside (`EXDEV`; `mv` then copies). What is renamed *out* of it stays charged to it.
///
/// Whoever owns a file may change its project, and so leave the limit, unless it runs in a user namespace or a seccomp
/// filter denies `FS_IOC_FSSETXATTR` and file_setattr(2). The limit of a tree is a boundary only then.
pub struct Directory {
    fd: OwnedFd,
    path: PathBuf,
}

/// What [`Directory::assign_existing`] and [`Directory::clear`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Retagged {
    /// How many files and directories bear the new project now.
    pub done: u64,
    /// What still bears its old one, and why: the limit does not count it.
    pub left: Vec<Left>,
    /// Files that have further hard links, possibly outside of the tree: they are counted all the same.
    pub shared: Vec<PathBuf>,
}

/// Something whose project could not be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Left {
    /// Its path below the directory.
    pub path: PathBuf,
    /// Why it was left.
    pub why: String,
    /// Whether it is a link or special file, which takes an inode and hardly any space, as opposed to a file or
    /// directory, or a whole tree.
    pub special: bool,
}

impl Directory {
    /// Opens a directory; a symbolic link as the last part of the path is not followed.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = open(path, flags, Mode::empty()).map_err(Error::file("open", path))?;
        Ok(Self { fd, path: path.to_owned() })
    }

    /// The same by a descriptor, which must be open for reading (not `O_PATH`). `path` is for messages and for the
    /// record of an [`Allocator`](crate::Allocator).
    #[must_use]
    pub fn from_fd(fd: OwnedFd, path: impl Into<PathBuf>) -> Self {
        Self { fd, path: path.into() }
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The project that it bears. Needs no privilege.
    ///
    /// # Errors
    /// [`Error::File`]; `ENOTTY` or `EOPNOTSUPP` where the file system knows no projects. Kernel: 4.5
    /// (ioctl_xfs_fsgetxattr(2)).
    pub fn tag(&self) -> Result<Tag, Error> {
        let attributes = sys::get_xattr(self.fd.as_fd()).map_err(Error::io("read the project of", &self.path))?;
        Ok(Tag { project: attributes.projid, inherit: attributes.xflags & FS_XFLAG_PROJINHERIT != 0 })
    }

    /// Whether there is nothing in it.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn is_empty(&self) -> Result<bool, Error> {
        self.entries().map(|entries| entries.is_empty()).map_err(Error::file("list", &self.path))
    }

    /// Makes the **empty** directory the root of the project's tree. Set the limits first, so that nothing is written
    /// without them. Read back.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is not empty (what is in it would not be counted: see
    /// [`assign_existing`](Self::assign_existing)), lies on another file system, or bears another project;
    /// [`Error::File`]: `EPERM` for who is not the owner, `EINVAL` in a user namespace, `EOPNOTSUPP` where the file
    /// system knows no projects, `EROFS`, and `ENOSPC` or `EDQUOT` in a project that is full.
    pub fn assign(&self, project: &Project) -> Result<(), Error> {
        self.belongs_to(project)?;
        let refuse_content = || {
            let what = format!("{} as the root of project {}", self.path.display(), project.id());
            Err(Error::Invalid { what, why: "it is not empty, and what is in it would not be counted" })
        };
        if !self.is_empty()? {
            return refuse_content();
        }
        retag(self.fd.as_fd(), project.id(), true).map_err(Error::io("tag", &self.path))?;
        let tag = self.tag()?;
        if tag != (Tag { project: project.id(), inherit: true }) {
            let what = format!("project {} of {}", tag.project, self.path.display());
            return Err(Error::Invalid { what, why: "the kernel took another one without an error" });
        }
        // Something made between the look and the change bears the old project.
        if self.is_empty()? { Ok(()) } else { refuse_content() }
    }

    /// Makes the directory, whatever is in it, the root of the project's tree: changes the project of everything in it,
    /// directory before content. Nobody else should write to it meanwhile.
    ///
    /// Not changed, and named in [`Retagged::left`]: what belongs to another project, other file systems mounted
    /// inside, immutable files, and symbolic links, FIFOs, devices and sockets (but on XFS since Linux 6.17). A limit
    /// holds for what it counts only, so look at it. What was left cannot be renamed or linked within the tree, not even
    /// within its own directory (`EXDEV`); removing it works.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it lies on another file system or bears another project; [`Error::File`] as
    /// [`assign`](Self::assign), for the directory itself.
    pub fn assign_existing(&self, project: &Project) -> Result<Retagged, Error> {
        self.belongs_to(project)?;
        retag(self.fd.as_fd(), project.id(), true).map_err(Error::io("tag", &self.path))?;
        self.retag_content(project.id(), |old| old == 0)
    }

    /// Takes the project away from everything in the directory that bears the same one as it, and at last from itself:
    /// what a killed caller left undone, the next call does. Limits stay.
    ///
    /// Not changed, and named in [`Retagged::left`]: what [`assign_existing`](Self::assign_existing) does not change either.
    ///
    /// # Errors
    /// [`Error::File`], for the directory itself.
    pub fn clear(&self) -> Result<Retagged, Error> {
        let own = self.tag()?.project;
        // From here on nothing new inherits it.
        retag(self.fd.as_fd(), own, false).map_err(Error::io("tag", &self.path))?;
        let retagged = self.retag_content(0, |old| old == own)?;
        self.untag()?;
        Ok(retagged)
    }

    pub(crate) fn identity(&self) -> Result<(u64, u64), Error> {
        let stat = fstat(&self.fd).map_err(Error::file("stat", &self.path))?;
        Ok((stat.st_dev, stat.st_ino))
    }

    /// Takes the project away from the directory alone.
    pub(crate) fn untag(&self) -> Result<(), Error> {
        retag(self.fd.as_fd(), 0, false).map_err(Error::io("tag", &self.path))
    }

    fn belongs_to(&self, project: &Project) -> Result<(), Error> {
        let stat = fstat(&self.fd).map_err(Error::file("stat", &self.path))?;
        let invalid = |why| {
            let what = format!("{} for project {}", self.path.display(), project.id());
            Err(Error::Invalid { what, why })
        };
        if (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev)) != project.filesystem().device() {
            return invalid("it lies on another file system");
        }
        match self.tag()? {
            Tag { project: other, inherit: true } if other != 0 && other != project.id() => {
                invalid("it is the root of another project")
            }
            _ => Ok(()),
        }
    }

    fn entries(&self) -> Result<Vec<Box<CStr>>, Errno> {
        entries(self.fd.as_fd())
    }

    /// Breadth first, one open directory at a time, each opened anew below this one: links, mounts and `..` that
    /// somebody plants meanwhile lead nowhere.
    fn retag_content(&self, project: u32, may_change: impl Fn(u32) -> bool) -> Result<Retagged, Error> {
        let mut result = Retagged { done: 1, ..Retagged::default() };
        let mut directories = vec![PathBuf::from(".")];
        while let Some(path) = directories.pop() {
            let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let listed = openat2(&self.fd, &path, flags, Mode::empty(), RESOLVE)
                .and_then(|fd| entries(fd.as_fd()).map(|names| (fd, names)));
            let (fd, names) = match listed {
                Ok(listed) => listed,
                Err(errno) => {
                    result.leave(path, errno, false);
                    continue;
                }
            };
            for name in names {
                let path = below(&path, &name);
                match retag_entry(fd.as_fd(), &name, project, &may_change) {
                    Ok(Entry { kind, links }) => {
                        result.done += 1;
                        if kind.is_dir() {
                            directories.push(path);
                        } else if links > 1 {
                            result.shared.push(path);
                        }
                    }
                    Err(Refusal::Gone) => {}
                    Err(Refusal::Belongs(other)) => {
                        let why = format!("it belongs to project {other}");
                        result.left.push(Left { path, why, special: false });
                    }
                    Err(Refusal::File(errno)) => result.leave(path, errno, false),
                    Err(Refusal::Special(errno)) => result.leave(path, errno, true),
                }
            }
        }
        Ok(result)
    }
}

impl Retagged {
    fn leave(&mut self, path: PathBuf, errno: Errno, special: bool) {
        let why = match errno {
            Errno::XDEV => "something is mounted there".to_owned(),
            Errno::NOSYS => {
                "only file_setattr(2) changes the project of links and special files (Linux 6.17)".to_owned()
            }
            Errno::OPNOTSUPP | Errno::NOTTY if special => {
                "this file system does not change the project of links and special files".to_owned()
            }
            errno => std::io::Error::from(errno).to_string(),
        };
        self.left.push(Left { path, why, special });
    }
}

/// Nothing leads out of the tree: no link, no mount, no `..`.
const RESOLVE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

struct Entry {
    kind: FileType,
    links: u64,
}

enum Refusal {
    Gone,
    Belongs(u32),
    File(Errno),
    Special(Errno),
}

fn retag_entry(
    dir: BorrowedFd<'_>,
    name: &CStr,
    project: u32,
    may_change: impl Fn(u32) -> bool,
) -> Result<Entry, Refusal> {
    let check = |old: u32| if old == project || may_change(old) { Ok(()) } else { Err(Refusal::Belongs(old)) };
    let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(file)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    let links = stat.st_nlink;
    if kind.is_dir() || kind.is_file() {
        // NONBLOCK: should it have become a FIFO meanwhile, this does not wait for a writer.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        // XDEV: something is mounted over it, perhaps a directory of the same file system that is not ours to change.
        let fd = openat2(dir, name, flags, Mode::empty(), RESOLVE).map_err(file)?;
        check(sys::get_xattr(fd.as_fd()).map_err(|error| file(number(&error)))?.projid)?;
        retag(fd.as_fd(), project, project != 0 && kind.is_dir()).map_err(|error| file(number(&error)))?;
    } else {
        let special = |error: std::io::Error| match number(&error) {
            Errno::NOENT => Refusal::Gone,
            errno => Refusal::Special(errno),
        };
        let mut attributes = sys::get_attr_at(dir, name).map_err(special)?;
        check(attributes.projid)?;
        attributes.projid = project;
        sys::set_attr_at(dir, name, &attributes).map_err(special)?;
    }
    Ok(Entry { kind, links: links as u64 })
}

fn file(errno: Errno) -> Refusal {
    if errno == Errno::NOENT { Refusal::Gone } else { Refusal::File(errno) }
}

fn number(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

fn retag(fd: BorrowedFd<'_>, project: u32, inherit: bool) -> std::io::Result<()> {
    let mut attributes = sys::get_xattr(fd)?;
    let old = attributes;
    attributes.projid = project;
    // On anything but a directory the flag means nothing, and ext4 refuses it.
    if inherit {
        attributes.xflags |= FS_XFLAG_PROJINHERIT;
    } else {
        attributes.xflags &= !FS_XFLAG_PROJINHERIT;
    }
    if attributes == old { Ok(()) } else { sys::set_xattr(fd, &attributes) }
}

fn entries(fd: BorrowedFd<'_>) -> Result<Vec<Box<CStr>>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(fd)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().into());
        }
    }
    Ok(names)
}

fn below(path: &Path, name: &CStr) -> PathBuf {
    let name = OsStr::from_bytes(name.to_bytes());
    if path == Path::new(".") { PathBuf::from(name) } else { path.join(name) }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Directory").field("path", &self.path).finish_non_exhaustive()
    }
}
