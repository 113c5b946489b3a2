//! The child's half, as data: each action between clone and exec of init is one [`Step`].
//!
//! The child says only which step failed and with which errno; the parent owns the words ([`Step::describe`]). So
//! [`Step::run`] neither allocates nor locks nor panics: it is a list of system calls on strings and descriptors that were
//! made before.

use std::ffi::{CStr, CString, OsStr};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use ns::mount::{self, Attributes, Overlay, Tmpfs};
use ns::path::{Open, create_dir_in_root, create_file_in_root, open_in_root};
use ns::{Errno, Namespaces};
use rustix::fs::AtFlags;

use crate::sys;

/// Most binds of one step list: each has a place in a root of 4096 inodes, and a descriptor in the child.
pub(crate) const BINDS_MAX: usize = 1024;

/// The attributes of everything that is shown to a program.
pub(crate) const PLAIN: Attributes = Attributes::NO_SUID.union(Attributes::NO_DEV);

/// Where changes lie in the upper layer of an overlay, and what the kernel needs beside it.
pub(crate) const UPPER: &CStr = c"upper";
pub(crate) const WORK: &CStr = c"work";

/// One action of the child.
#[derive(Debug)]
pub(crate) enum Step {
    /// Takes back the protection from the OOM killer that the host program gave itself.
    ResetOomScore,
    /// Writes `0` to the `tasks` of each v1 group. First: all that follows is charged there.
    JoinCgroups,
    /// `unshare(CLONE_NEWCGROUP)`, now that the cgroup is the right one.
    UnshareCgroup {
        required: bool,
    },
    /// A session keyring that holds nothing of the caller's.
    NewKeyring {
        required: bool,
    },
    Hostname(CString),
    /// Moves into the network namespace that was made before, or sets the loopback device of a new one up.
    Network,
    /// The root is an empty tmpfs.
    TmpfsRoot,
    /// The root is a directory of the host; mount points are made in it.
    DirectoryRoot(Source),
    /// Copies what is mounted at that directory.
    CopyRoot,
    /// Shows that copy under the ids of [`Handed::user_namespace`], what is mounted below its top excepted.
    MapRoot,
    /// The directory of the host that an overlay shows, with its owners mapped to the instance's ids where that can be.
    LowerLayer {
        source: Source,
        map: bool,
    },
    /// The layer for changes is a new memory file system.
    UpperInMemory {
        size: u64,
        inodes: Option<u64>,
        mode: u32,
    },
    /// The layer for changes is the instance's image.
    UpperOnImage {
        mode: u32,
    },
    /// The layer for changes lies in a directory of the host.
    UpperOnDisk {
        source: Source,
        map: bool,
    },
    /// The root is an overlay of both layers.
    OverlayRoot {
        user_xattr: bool,
    },
    /// Makes a directory of the root, where it is missing.
    MakeDirectory {
        path: CString,
        mode: u32,
    },
    /// Makes an empty file of the root, where it is missing.
    MakeFile(CString),
    MakeLink {
        target: CString,
        directory: CString,
        name: CString,
    },
    /// Covers the old root with the new one.
    AttachRoot,
    /// Sets the attributes of the attached root and of what is mounted below it.
    RestrictRoot {
        attributes: Attributes,
        submounts: Vec<CString>,
    },
    /// Copies what is mounted at a bind's source; number in the step list's [`Bind`]s.
    CopyBind(usize),
    /// Attaches the copy inside the root.
    AttachBind(usize),
    /// Mounts a new file system inside the root.
    Mount {
        filesystem: NewFilesystem,
        path: CString,
    },
    /// Covers a directory with a copy of it that cannot be written.
    CoverReadOnly(CString),
    /// Takes write permission from a mount.
    MakeReadOnly(CString),
    /// Makes the new root the only one.
    Pivot,
    /// Leaves the mount namespace with the parent.
    SendMountNamespace,
    /// Moves into a copy of the template's mount namespace.
    EnterTemplate,
    /// Raises hard limits, while host privilege is still there.
    RaiseLimits(Vec<Raise>),
    EnterUserNamespace,
    /// Lets init have capabilities in its user namespace although its id is not root there.
    KeepCapabilities {
        programs: u64,
    },
    /// Puts init's descriptors in their places and executes it.
    ExecuteInit,
}

/// A file or directory of the host, and which one it was when the sandbox was built.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) path: CString,
    pub(crate) device: u64,
    pub(crate) inode: u64,
    /// Mount points below it, for kernels without `mount_setattr` (before 5.12).
    pub(crate) submounts: Vec<CString>,
}

/// One bind mount.
#[derive(Debug)]
pub(crate) struct Bind {
    pub(crate) source: Source,
    pub(crate) target: CString,
    pub(crate) directory: bool,
    pub(crate) attributes: Attributes,
    /// Shown under the ids of this number of [`Handed::owners`].
    pub(crate) owner: Option<usize>,
}

#[derive(Debug)]
pub(crate) enum NewFilesystem {
    Proc,
    /// `counted`: the parent gets a descriptor of it, to read what is used.
    Tmpfs {
        size: Option<u64>,
        inodes: Option<u64>,
        mode: u32,
        attributes: Attributes,
        counted: bool,
    },
    /// The instance's image, which the parent has mounted.
    Image,
    Devpts,
}

/// A hard limit to be raised to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Raise {
    pub(crate) resource: u32,
    pub(crate) hard: u64,
}

/// Descriptors of the parent's that the steps use.
#[derive(Debug, Default)]
pub(crate) struct Handed<'a> {
    /// User namespaces that map the owners of binds to the program's ids.
    pub(crate) owners: Vec<BorrowedFd<'a>>,
    /// `tasks` of each v1 group.
    pub(crate) join: Vec<BorrowedFd<'a>>,
    pub(crate) template: Option<BorrowedFd<'a>>,
    /// A network namespace that was made before, with its loopback device up.
    pub(crate) network: Option<BorrowedFd<'a>>,
    pub(crate) user_namespace: Option<BorrowedFd<'a>>,
    /// Where descriptors for the parent are sent to.
    pub(crate) channel: Option<BorrowedFd<'a>>,
    /// Shows the owners of the upper layer on disk as the instance's ids.
    pub(crate) upper_ids: Option<BorrowedFd<'a>>,
    /// The instance's image, mounted.
    pub(crate) image: Option<BorrowedFd<'a>>,
    pub(crate) init: Option<sys::InitFds<'a>>,
}

impl<'a> Handed<'a> {
    pub(crate) fn count(&self) -> usize {
        let single = [self.template, self.network, self.user_namespace, self.channel, self.upper_ids, self.image];
        let of_init = self.init.as_ref().map_or(0, |init| 4 + usize::from(init.lease.is_some()));
        self.owners.len() + self.join.len() + single.into_iter().flatten().count() + of_init
    }

    /// The same by the numbers that `number` gives.
    pub(crate) fn by<'b, E>(
        &self,
        mut number: impl FnMut(BorrowedFd<'a>) -> Result<BorrowedFd<'b>, E>,
    ) -> Result<Handed<'b>, E> {
        Ok(Handed {
            owners: self.owners.iter().map(|fd| number(*fd)).collect::<Result<_, _>>()?,
            join: self.join.iter().map(|fd| number(*fd)).collect::<Result<_, _>>()?,
            template: self.template.map(&mut number).transpose()?,
            network: self.network.map(&mut number).transpose()?,
            user_namespace: self.user_namespace.map(&mut number).transpose()?,
            channel: self.channel.map(&mut number).transpose()?,
            upper_ids: self.upper_ids.map(&mut number).transpose()?,
            image: self.image.map(&mut number).transpose()?,
            init: match &self.init {
                None => None,
                Some(init) => Some(sys::InitFds {
                    program: number(init.program)?,
                    null: number(init.null)?,
                    socket: number(init.socket)?,
                    host: number(init.host)?,
                    lease: init.lease.map(&mut number).transpose()?,
                }),
            },
        })
    }
}

/// What the steps work on: prepared by the parent, used by the child.
#[derive(Debug)]
pub(crate) struct Context<'a> {
    pub(crate) binds: &'a [Bind],
    pub(crate) fds: Handed<'a>,
    /// Who is to own the top of the upper layer, in ids of the child.
    pub(crate) upper_owner: Option<(u32, u32)>,
    /// The root being made.
    root: Option<ChildFd>,
    /// The overlay's layers.
    lower: Option<ChildFd>,
    upper: Option<ChildFd>,
    /// One place for each bind: the child cannot grow a list.
    trees: Box<[Option<Tree>]>,
    /// Preferred steps that the kernel refused, and why: the keyring, the cgroup namespace.
    pub(crate) refused_keyring: Option<Errno>,
    pub(crate) refused_cgroup_namespace: Option<Errno>,
}

/// A descriptor of the child's table. The parent sees this memory, too, and must not close its own of that number; the
/// child's go with the child.
type ChildFd = ManuallyDrop<OwnedFd>;

/// A detached copy, and whether its attributes still have to be set once it is attached.
#[derive(Debug)]
struct Tree {
    fd: ChildFd,
    bare: bool,
}

impl<'a> Context<'a> {
    pub(crate) fn new(binds: &'a [Bind], fds: Handed<'a>) -> Self {
        Self {
            binds,
            fds,
            upper_owner: None,
            root: None,
            lower: None,
            upper: None,
            trees: binds.iter().map(|_| None).collect(),
            refused_keyring: None,
            refused_cgroup_namespace: None,
        }
    }

    fn root(&self) -> Result<BorrowedFd<'_>, Errno> {
        self.root.as_ref().map(|root| root.as_fd()).ok_or(Errno::from_raw(libc::EBADF))
    }

    fn set_root(&mut self, root: OwnedFd) {
        self.root = Some(ManuallyDrop::new(root));
    }
}

fn needed<T>(value: Option<T>) -> Result<T, Errno> {
    value.ok_or(Errno::from_raw(libc::EBADF))
}

impl Step {
    /// Does it. In the child: no allocation, no lock, no panic.
    pub(crate) fn run(&self, context: &mut Context<'_>) -> Result<(), Errno> {
        match self {
            Self::ResetOomScore => sys::reset_oom_score(),
            Self::JoinCgroups => {
                for procs in &context.fds.join {
                    rustix::io::write(procs, b"0").map_err(errno)?;
                }
                Ok(())
            }
            Self::UnshareCgroup { required } => {
                let result = ns::unshare(Namespaces::CGROUP);
                context.refused_cgroup_namespace = result.err();
                if *required { result } else { Ok(()) }
            }
            Self::NewKeyring { required } => {
                let result = sys::join_new_session_keyring();
                context.refused_keyring = result.err();
                if *required { result } else { Ok(()) }
            }
            Self::Hostname(name) => rustix::system::sethostname(name.to_bytes()).map_err(errno),
            Self::Network => match context.fds.network {
                Some(made) => sys::enter_network_namespace(made),
                None => ns::net::loopback_up(),
            },
            Self::TmpfsRoot => {
                let options = Tmpfs { size: Some(1 << 20), inodes: Some(4096), mode: Some(0o755), owner: None };
                context.set_root(mount::tmpfs(&options, PLAIN)?);
                Ok(())
            }
            Self::DirectoryRoot(source) => {
                context.set_root(source.open()?);
                Ok(())
            }
            Self::CopyRoot => {
                context.set_root(mount::clone_tree(context.root()?, c"", true)?);
                Ok(())
            }
            Self::MapRoot => mount::set_idmap(context.root()?, needed(context.fds.user_namespace)?, false),
            Self::LowerLayer { source, map } => {
                // What is attached from here on must not show on the host.
                mount::make_private()?;
                let place = source.open()?;
                let user_namespace = map.then(|| needed(context.fds.user_namespace)).transpose()?;
                context.lower = Some(ManuallyDrop::new(layer(place, user_namespace)?));
                Ok(())
            }
            Self::UpperInMemory { size, inodes, mode } => {
                let inodes = inodes.or(Some(files_in(*size)));
                let options = Tmpfs { size: Some(*size), inodes, mode: Some(0o700), owner: None };
                let tree = mount::tmpfs(&options, PLAIN)?;
                sys::send_fd(needed(context.fds.channel)?, tree.as_fd())?;
                new_layer(context, tree, *mode)
            }
            Self::UpperOnImage { mode } => {
                let tree = NewFilesystem::Image.mount(context)?;
                new_layer(context, tree, *mode)
            }
            Self::UpperOnDisk { source, map } => {
                let place = source.open()?;
                let user_namespace = map.then(|| needed(context.fds.upper_ids)).transpose()?;
                context.upper = Some(ManuallyDrop::new(layer(place, user_namespace)?));
                own_upper(context)
            }
            Self::OverlayRoot { user_xattr } => {
                let (lower, upper) = (needed(context.lower.as_ref())?, needed(context.upper.as_ref())?);
                let [upper, work] = [UPPER, WORK].map(|name| open_in_root(upper.as_fd(), name, PLACE));
                let (upper, work) = (upper?, work?);
                let upper_and_work = Some((upper.as_fd(), work.as_fd()));
                let options = Overlay { upper_and_work, user_xattr: *user_xattr, volatile: false };
                let root = mount::overlay(&[lower.as_fd()], &options, PLAIN)?;
                // Where the kernel cannot make its own directory, for want of room say, it mounts read-only instead.
                let flags = rustix::fs::fstatvfs(&root).map_err(errno)?.f_flag;
                if flags.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
                    return Err(Errno::from_raw(libc::EROFS));
                }
                context.set_root(root);
                Ok(())
            }
            Self::RestrictRoot { attributes, submounts } => restrict(context.root()?, *attributes, submounts),
            Self::MakeDirectory { path, mode } => create_dir_in_root(context.root()?, path, *mode).map(drop),
            Self::MakeFile(path) => create_file_in_root(context.root()?, path, 0o644).map(drop),
            Self::MakeLink { target, directory, name } => {
                let directory = open_in_root(context.root()?, directory, PLACE)?;
                rustix::fs::symlinkat(target.as_c_str(), directory, name.as_c_str()).map_err(errno)
            }
            Self::AttachRoot => mount::attach_root(context.root()?),
            Self::CopyBind(number) => copy_bind(context, *number),
            Self::AttachBind(number) => attach_bind(context, *number),
            Self::Mount { filesystem, path } => {
                let tree = filesystem.mount(context)?;
                let target = match open_in_root(context.root()?, path, PLACE) {
                    Err(missing) if missing.raw() == libc::ENOENT => create_dir_in_root(context.root()?, path, 0o755)?,
                    opened => opened?,
                };
                mount::attach_new(tree.as_fd(), target.as_fd())?;
                match filesystem {
                    NewFilesystem::Tmpfs { counted: true, .. } => {
                        sys::send_fd(needed(context.fds.channel)?, tree.as_fd())
                    }
                    _ => Ok(()),
                }
            }
            Self::CoverReadOnly(path) => {
                let place = open_in_root(context.root()?, path, PLACE)?;
                let copy = mount::clone_tree(place.as_fd(), c"", false)?;
                let bare = set_or_defer(copy.as_fd(), Attributes::READ_ONLY)?;
                mount::attach(copy.as_fd(), place.as_fd())?;
                if bare { restrict(copy.as_fd(), Attributes::READ_ONLY, &[]) } else { Ok(()) }
            }
            Self::MakeReadOnly(path) => {
                let tree = open_in_root(context.root()?, path, PLACE)?;
                mount::set_attributes(tree.as_fd(), Attributes::READ_ONLY, Attributes::empty(), false)
            }
            Self::Pivot => mount::pivot(context.root()?),
            Self::SendMountNamespace => sys::send_mount_namespace(needed(context.fds.channel)?),
            Self::EnterTemplate => {
                sys::enter_mount_namespace(needed(context.fds.template)?)?;
                ns::unshare(Namespaces::MOUNT)?;
                context.set_root(sys::open_directory(c"/")?);
                Ok(())
            }
            Self::RaiseLimits(raises) => raises.iter().try_for_each(|raise| sys::raise_hard_limit(*raise)),
            Self::EnterUserNamespace => sys::enter_user_namespace(needed(context.fds.user_namespace)?),
            Self::KeepCapabilities { programs } => sys::keep_capabilities(*programs),
            Self::ExecuteInit => sys::execute_init(needed(context.fds.init.as_ref())?),
        }
    }

    /// Whether it hands a descriptor of a memory file system to the parent.
    pub(crate) fn sends_memory(&self) -> bool {
        let counted = |filesystem: &NewFilesystem| matches!(filesystem, NewFilesystem::Tmpfs { counted: true, .. });
        match self {
            Self::UpperInMemory { .. } => true,
            Self::Mount { filesystem, .. } => counted(filesystem),
            _ => false,
        }
    }

    /// The words that follow "cannot", and what they are about.
    pub(crate) fn describe(&self, binds: &[Bind]) -> (&'static str, Option<PathBuf>) {
        let bind = |number: &usize| binds.get(*number);
        match self {
            Self::ResetOomScore => ("reset", Some("/proc/self/oom_score_adj".into())),
            Self::JoinCgroups => ("join the sandbox's cgroup", None),
            Self::UnshareCgroup { .. } => ("make a cgroup namespace", None),
            Self::NewKeyring { .. } => ("join a new session keyring", None),
            Self::Hostname(_) => ("set the host name", None),
            Self::Network => ("bring the loopback interface up", None),
            Self::TmpfsRoot => ("make the root file system", None),
            Self::DirectoryRoot(source) => ("use as root directory", Some(source.path())),
            Self::CopyRoot => ("copy the mounts of the root directory", None),
            Self::MapRoot => ("map the owners of the root file system", None),
            Self::LowerLayer { source, .. } => ("use as lower layer", Some(source.path())),
            Self::UpperInMemory { .. } => ("make the upper layer in memory", None),
            Self::UpperOnImage { .. } => ("make the upper layer on the disk image", None),
            Self::UpperOnDisk { source, .. } => ("use as upper layer", Some(source.path())),
            Self::OverlayRoot { .. } => ("mount the overlay", None),
            Self::RestrictRoot { .. } => ("restrict the root file system", None),
            Self::MakeDirectory { path, .. } => ("make the directory", Some(path_of(path))),
            Self::MakeFile(path) => ("make the mount point", Some(path_of(path))),
            Self::MakeLink { directory, name, .. } => {
                ("make the symbolic link", Some(path_of(directory).join(path_of(name))))
            }
            Self::AttachRoot => ("attach the root file system", None),
            Self::CopyBind(number) => {
                let owned = bind(number).is_some_and(|bind| bind.owner.is_some());
                (if owned { "bind and map the owner of" } else { "bind" }, bind(number).map(|bind| bind.source.path()))
            }
            Self::AttachBind(number) => ("attach at", bind(number).map(|bind| path_of(&bind.target))),
            Self::Mount { filesystem: NewFilesystem::Proc, path } => ("mount the program's /proc", Some(path_of(path))),
            Self::Mount { path, .. } => ("mount a file system at", Some(path_of(path))),
            Self::CoverReadOnly(path) => ("make a read-only copy of", Some(path_of(path))),
            Self::MakeReadOnly(path) => ("make read-only", Some(path_of(path))),
            Self::Pivot => ("leave the old root directory", None),
            Self::SendMountNamespace => ("hand over the mount namespace", None),
            Self::EnterTemplate => ("enter the prepared mount namespace", None),
            Self::RaiseLimits(_) => ("raise a hard resource limit", None),
            Self::EnterUserNamespace => ("enter the user namespace", None),
            Self::KeepCapabilities { .. } => ("keep init's capabilities", None),
            Self::ExecuteInit => ("execute init", None),
        }
    }
}

const PLACE: Open = Open::PATH.union(Open::NO_SYMLINKS);

fn path_of(path: &CStr) -> PathBuf {
    Path::new(OsStr::from_bytes(path.to_bytes())).to_owned()
}

pub(crate) fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_raw(error.raw_os_error())
}

impl Source {
    fn path(&self) -> PathBuf {
        path_of(&self.path)
    }

    /// Opens it as a place, and refuses another file than the one that was there when the sandbox was built.
    fn open(&self) -> Result<OwnedFd, Errno> {
        use rustix::fs::{CWD, Mode, OFlags};
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, self.path.as_c_str(), flags, Mode::empty()).map_err(errno)?;
        let found = rustix::fs::fstat(&fd).map_err(errno)?;
        if (found.st_dev, found.st_ino) == (self.device, self.inode) {
            Ok(fd)
        } else {
            Err(Errno::from_raw(libc::ESTALE))
        }
    }
}

/// How many files a memory file system of this size may have. Empty ones cost no page but a kilobyte of the kernel's memory,
/// and extended attributes (Linux 6.6) the same kilobytes, so they are bounded with the size.
fn files_in(size: u64) -> u64 {
    (size / 4096).max(1024)
}

impl NewFilesystem {
    fn mount(&self, context: &Context<'_>) -> Result<OwnedFd, Errno> {
        match *self {
            Self::Proc => mount::proc(mount::Proc { hide_others: true, only_processes: false }, Attributes::empty()),
            Self::Tmpfs { size, inodes, mode, attributes, .. } => {
                let inodes = inodes.or(size.map(files_in));
                mount::tmpfs(&Tmpfs { size, inodes, mode: Some(mode), owner: None }, attributes)
            }
            Self::Image => {
                // A descriptor of the child's own, as for all others.
                rustix::io::fcntl_dupfd_cloexec(needed(context.fds.image)?, 0).map_err(errno)
            }
            Self::Devpts => mount::devpts(256, Attributes::empty()),
        }
    }
}

/// A directory of the host as a layer of an overlay: mapped by a user namespace, or as it is.
fn layer(place: OwnedFd, user_namespace: Option<BorrowedFd<'_>>) -> Result<OwnedFd, Errno> {
    let Some(user_namespace) = user_namespace else { return Ok(place) };
    let tree = mount::clone_tree(place.as_fd(), c"", false)?;
    mount::set_idmap(tree.as_fd(), user_namespace, false)?;
    // As above: attached, where it goes with the old root.
    mount::attach(tree.as_fd(), place.as_fd())?;
    Ok(tree)
}

/// A new file system as the upper layer of an overlay.
fn new_layer(context: &mut Context<'_>, tree: OwnedFd, mode: u32) -> Result<(), Errno> {
    // An overlay takes attached layers only (before Linux 6.15), and this place goes with the old root.
    mount::attach(tree.as_fd(), needed(context.lower.as_ref())?.as_fd())?;
    for (name, mode) in [(UPPER, mode), (WORK, 0o700)] {
        rustix::fs::mkdirat(&tree, name, mode.into()).map_err(errno)?;
    }
    context.upper = Some(ManuallyDrop::new(tree));
    own_upper(context)
}

/// The root of the overlay has the owner of the upper layer's top.
fn own_upper(context: &Context<'_>) -> Result<(), Errno> {
    let Some((user, group)) = context.upper_owner else { return Ok(()) };
    let upper = needed(context.upper.as_ref())?;
    let (user, group) = (rustix::fs::Uid::from_raw(user), rustix::fs::Gid::from_raw(group));
    rustix::fs::chownat(upper.as_fd(), UPPER, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW).map_err(errno)
}

fn copy_bind(context: &mut Context<'_>, number: usize) -> Result<(), Errno> {
    let bind = needed(context.binds.get(number))?;
    let place = bind.source.open()?;
    let fd = mount::clone_tree(place.as_fd(), c"", true)?;
    let bare = set_or_defer(fd.as_fd(), bind.attributes)?;
    if let Some(owner) = bind.owner {
        let ids = needed(context.fds.owners.get(owner))?;
        mount::set_idmap(fd.as_fd(), ids.as_fd(), false)?;
    }
    *needed(context.trees.get_mut(number))? = Some(Tree { fd: ManuallyDrop::new(fd), bare });
    Ok(())
}

fn attach_bind(context: &mut Context<'_>, number: usize) -> Result<(), Errno> {
    let bind = needed(context.binds.get(number))?;
    let tree = needed(context.trees.get_mut(number).and_then(Option::take))?;
    let root = context.root()?;
    let target = match open_in_root(root, &bind.target, Open::PATH) {
        Err(missing) if missing.raw() == libc::ENOENT && bind.directory => {
            create_dir_in_root(root, &bind.target, 0o755)?
        }
        Err(missing) if missing.raw() == libc::ENOENT => create_file_in_root(root, &bind.target, 0o644)?,
        opened => opened?,
    };
    mount::attach(tree.fd.as_fd(), target.as_fd())?;
    if tree.bare { restrict(tree.fd.as_fd(), bind.attributes, &bind.source.submounts) } else { Ok(()) }
}

/// Sets the attributes of a detached tree; true when that must wait until it is attached, as before Linux 5.12.
fn set_or_defer(tree: BorrowedFd<'_>, attributes: Attributes) -> Result<bool, Errno> {
    match mount::set_attributes(tree, attributes, Attributes::empty(), true) {
        Ok(()) => Ok(false),
        Err(errno) if matches!(errno.raw(), libc::ENOSYS | libc::EINVAL) => Ok(true),
        Err(errno) => Err(errno),
    }
}

/// Sets the attributes of an attached tree, all mounts below its top included.
fn restrict(tree: BorrowedFd<'_>, attributes: Attributes, submounts: &[CString]) -> Result<(), Errno> {
    match mount::set_attributes(tree, attributes, Attributes::empty(), true) {
        // Before 5.12 mounts are changed one at a time.
        Err(errno) if errno.raw() == libc::ENOSYS => {}
        result => return result,
    }
    mount::set_attributes(tree, attributes, Attributes::empty(), false)?;
    for submount in submounts {
        let fd = open_in_root(tree, submount, PLACE)?;
        mount::set_attributes(fd.as_fd(), attributes, Attributes::empty(), false)?;
    }
    Ok(())
}
