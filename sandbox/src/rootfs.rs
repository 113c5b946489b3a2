//! What a program sees of the file system, as steps.
//!
//! Four lists come out of a plan: `base` makes the root with all that every start shares, `enter` shows a root directory
//! under the ids of the start, `private` adds what each start has for itself (`/proc`, memory file systems and what lies
//! below them), and `copies` takes the trees of private binds while the host's mounts are still in sight.

use std::ffi::CString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ns::mount::Attributes;

use crate::Error;
use crate::builder::{Access, MountKind, MountOption};
use crate::host::Privilege;
use crate::overlay::Overlay;
use crate::plan::Plan;
use crate::step::{BINDS_MAX, Bind, NewFilesystem, PLAIN, Source, Step};

/// The host's program directories, shown where no root directory is named.
const HOST_DIRECTORIES: [&str; 7] = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"];
/// What programs need of `/etc` to find users, hosts, libraries and certificates. Never `shadow`.
const HOST_ETC: [&str; 11] = [
    "passwd",
    "group",
    "nsswitch.conf",
    "hosts",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "ld.so.preload",
    "alternatives",
    "localtime",
    "ssl",
];
/// Device files that can harm nobody.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
const DEVICE_LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("pts/ptmx", "/dev/ptmx"),
];
const TMP_SIZE: u64 = 64 << 20;
const READ_ONLY: Attributes = PLAIN.union(Attributes::READ_ONLY);

/// Whose the files of the host are inside.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mapping {
    /// Whether owners must be mapped at all, or are the program's user anyway.
    pub(crate) owners: bool,
    /// Whether the root directory is shown under the ids of the start.
    pub(crate) root: bool,
    /// Whether the program's host id may be somebody's, whose keys `/proc` would list.
    pub(crate) hide_keys: bool,
}

/// Whether the root directory of the plan can be shown so that its files belong inside to the numbers that they belong to
/// on disk. Where not, the plan says why.
pub(crate) fn map_root(plan: &mut Plan, privilege: Privilege) -> Result<bool, Error> {
    let Some(directory) = &plan.rootfs else { return Ok(false) };
    let of = |error| Error::setup_at("use as root directory", directory, error);
    let why = if privilege == Privilege::User {
        Some("only host root can map owners".to_owned())
    } else if is_host_root(directory).map_err(of)? {
        Some("what is root's alone on this host would be the program's".to_owned())
    } else if plan.rootfs_writable && !is_out_of_reach(&directory.canonicalize().map_err(of)?) {
        Some(
            "programs could leave set-user-ID files of root for others, unless it is below a directory of the caller's \
             with mode 0700"
                .to_owned(),
        )
    } else {
        try_to_map(directory).err().map(|error| error.to_string())
    };
    let Some(why) = why else { return Ok(true) };
    let warning = format!("the owners of files in {} are nobody inside: {why}", directory.display());
    plan.warnings.push(warning);
    Ok(false)
}

/// Whether a directory is the root directory of the host.
pub(crate) fn is_host_root(directory: &Path) -> io::Result<bool> {
    let identity = |path: &Path| path.metadata().map(|metadata| (metadata.dev(), metadata.ino()));
    Ok(identity(directory)? == identity(Path::new("/"))?)
}

/// Maps a copy of the mount that nobody sees.
fn try_to_map(directory: &Path) -> Result<(), Error> {
    let any = userns::IdMap::single(0, 65534)?;
    let user_namespace = crate::spawn::user_namespace(&any, &any, userns::Setgroups::Deny)?;
    let failed = |error: io::Error| Error::setup_at("map the owners of", directory, error);
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let place = rustix::fs::open(directory, flags, rustix::fs::Mode::empty()).map_err(|e| failed(e.into()))?;
    let copy = ns::mount::clone_tree(place.as_fd(), c"", false).map_err(|e| failed(e.into()))?;
    ns::mount::set_idmap(copy.as_fd(), user_namespace.as_fd(), false).map_err(|e| failed(e.into()))
}

/// Whether nobody but the caller reaches `path`, which has no symbolic link in it: a directory *above* it is the caller's
/// and closed to all others. `path` itself does not count, for a program that owns it inside could open it.
fn is_out_of_reach(path: &Path) -> bool {
    let own = rustix::process::geteuid().as_raw();
    path.ancestors().skip(1).any(|above| {
        above.symlink_metadata().is_ok_and(|found| found.uid() == own && found.is_dir() && found.mode() & 0o077 == 0)
    })
}

/// The steps that make the file system of one sandbox.
#[derive(Debug, Default)]
pub(crate) struct Rootfs {
    pub(crate) base: Vec<Step>,
    pub(crate) copies: Vec<Step>,
    pub(crate) enter: Vec<Step>,
    pub(crate) private: Vec<Step>,
    pub(crate) binds: Vec<Bind>,
    /// Owners of mapped binds: user and group on the host.
    pub(crate) owners: Vec<(u32, u32)>,
    /// Directories in which programs leave files of their own host ids.
    pub(crate) kept: Vec<PathBuf>,
    how: Mapping,
    private_targets: Vec<PathBuf>,
    /// What a root directory of the caller's is restricted by.
    restrict: Option<Step>,
    /// Mount points that must be there before the root becomes read-only.
    points: Vec<Step>,
}

impl Rootfs {
    /// Looks at the host's files and lays the steps out.
    pub(crate) fn new(
        plan: &Plan,
        overlay: Option<&Overlay>,
        submounts: &[PathBuf],
        how: Mapping,
    ) -> Result<Self, Error> {
        let mut this = Self { how, ..Self::default() };
        let mut attached = Vec::new();
        match (overlay, &plan.rootfs) {
            (Some(overlay), _) => {
                this.base.extend(overlay.steps(plan.tmp_size, plan.tmp_inodes)?);
                this.kept.extend(overlay.kept());
            }
            (None, Some(directory)) => this.directory_root(plan, directory, submounts)?,
            (None, None) => this.host_root(plan, submounts, &mut attached)?,
        }
        if plan.dev {
            this.devices(submounts, &mut attached)?;
        }
        if plan.proc {
            this.mount_private(Path::new("/proc"), NewFilesystem::Proc)?;
            // Some settings are open to root of the namespace that they are of, even without a capability.
            this.private.push(Step::CoverReadOnly(c"/proc/sys".into()));
            // Before Linux 5.13 everybody reads the names of all processes of the machine here.
            let old_kernel = Path::new("/proc/sched_debug").exists();
            for (mask, file) in [(how.hide_keys, "/proc/keys"), (old_kernel, "/proc/sched_debug")] {
                if mask {
                    this.bind(Path::new("/dev/null"), Path::new(file), READ_ONLY, submounts, &mut attached)?;
                }
            }
        }
        // Nested targets come after what they lie in.
        let mut mounts: Vec<&MountOption> = plan.mounts.iter().collect();
        mounts.sort_by_key(|mount| mount.target.components().count());
        for mount in mounts {
            this.add(mount, plan, submounts, &mut attached)?;
        }
        if this.binds.len() > BINDS_MAX {
            return Err(Error::invalid("bind", format!("more than {BINDS_MAX} binds, the default ones included")));
        }
        this.base.append(&mut this.points);
        match this.restrict.take() {
            Some(restrict) => this.base.extend([Step::CopyRoot, Step::AttachRoot, restrict]),
            None => this.base.push(Step::AttachRoot),
        }
        this.base.append(&mut attached);
        if overlay.is_none() && plan.rootfs.is_none() {
            this.base.push(Step::MakeReadOnly(c"/".into()));
        }
        Ok(this)
    }

    fn host_root(&mut self, plan: &Plan, submounts: &[PathBuf], attached: &mut Vec<Step>) -> Result<(), Error> {
        self.base.push(Step::TmpfsRoot);
        for directory in HOST_DIRECTORIES {
            self.show(Path::new(directory), submounts, attached)?;
        }
        self.point(Path::new("/etc"), true)?;
        for name in HOST_ETC {
            self.show(&Path::new("/etc").join(name), submounts, attached)?;
        }
        self.tmp(plan)
    }

    /// The usual `/tmp`, or one that a disk limit is made of.
    fn tmp(&mut self, plan: &Plan) -> Result<(), Error> {
        self.tmpfs_private(Path::new("/tmp"), plan.tmp_size.or(Some(TMP_SIZE)), plan.tmp_inodes, plan.tmp_limited())
    }

    /// Shows a file, directory or symbolic link of the host in its place, if the host has it.
    fn show(&mut self, path: &Path, submounts: &[PathBuf], attached: &mut Vec<Step>) -> Result<(), Error> {
        match path.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::setup_at("look at", path, error)),
            Ok(metadata) if metadata.is_symlink() => {
                let target = path.read_link().map_err(|error| Error::setup_at("read the link", path, error))?;
                self.points.push(link(&target, path)?);
                Ok(())
            }
            Ok(_) => self.bind(path, path, READ_ONLY, submounts, attached),
        }
    }

    fn directory_root(&mut self, plan: &Plan, directory: &Path, submounts: &[PathBuf]) -> Result<(), Error> {
        let (source, is_directory) = source(directory, submounts)?;
        if !is_directory {
            let error = io::Error::from_raw_os_error(libc::ENOTDIR);
            return Err(Error::setup_at("use as root directory", directory, error));
        }
        let attributes = if plan.rootfs_writable { PLAIN } else { READ_ONLY };
        self.restrict = Some(Step::RestrictRoot { attributes, submounts: source.submounts.clone() });
        if self.how.root {
            self.enter = vec![Step::CopyRoot, Step::MapRoot, Step::AttachRoot, Step::Pivot];
        } else if plan.rootfs_writable {
            self.keep(&source);
        }
        self.base.push(Step::DirectoryRoot(source));
        // A read-only root without a place to write to would stop most programs.
        let has_tmp = directory.join("tmp").symlink_metadata().is_ok_and(|metadata| metadata.is_dir());
        let taken = plan.mounts.iter().any(|mount| mount.target == Path::new("/tmp"));
        if has_tmp && !plan.rootfs_writable && !taken {
            self.tmp(plan)?;
        }
        Ok(())
    }

    fn devices(&mut self, submounts: &[PathBuf], attached: &mut Vec<Step>) -> Result<(), Error> {
        self.point(Path::new("/dev"), true)?;
        let attributes = Attributes::NO_SUID | Attributes::NO_EXEC;
        let filesystem =
            NewFilesystem::Tmpfs { size: Some(64 << 10), inodes: None, mode: 0o755, attributes, counted: false };
        attached.push(Step::Mount { filesystem, path: c"/dev".into() });
        for name in DEVICES {
            let path = Path::new("/dev").join(name);
            self.bind(&path, &path, attributes | Attributes::READ_ONLY, submounts, attached)?;
        }
        for (target, path) in DEVICE_LINKS {
            attached.push(link(Path::new(target), Path::new(path))?);
        }
        for directory in [c"/dev/pts", c"/dev/shm"] {
            attached.push(Step::MakeDirectory { path: directory.into(), mode: 0o755 });
        }
        attached.push(Step::MakeReadOnly(c"/dev".into()));
        self.private_targets.push("/dev/shm".into());
        self.private.push(Step::Mount { filesystem: NewFilesystem::Devpts, path: c"/dev/pts".into() });
        let attributes = PLAIN | Attributes::NO_EXEC;
        let filesystem =
            NewFilesystem::Tmpfs { size: Some(TMP_SIZE), inodes: None, mode: 0o1777, attributes, counted: false };
        self.private.push(Step::Mount { filesystem, path: c"/dev/shm".into() });
        Ok(())
    }

    fn add(
        &mut self,
        mount: &MountOption,
        plan: &Plan,
        submounts: &[PathBuf],
        attached: &mut Vec<Step>,
    ) -> Result<(), Error> {
        let target = mount.target.as_path();
        if !matches!(mount.kind, MountKind::Bind { .. }) {
            let covered = |step: &Step| matches!(step, Step::Mount { path, .. } if path_of(path) == target);
            self.private.retain(|step| !covered(step));
        }
        match &mount.kind {
            MountKind::Tmpfs { size } => {
                // A limit that `/tmp` has to keep holds for the caller's, too.
                let counted = target == Path::new("/tmp") && plan.tmp_limited();
                let (size, inodes) = match counted {
                    true => ([*size, plan.tmp_size].into_iter().flatten().min(), plan.tmp_inodes),
                    false => (*size, None),
                };
                self.tmpfs_private(target, size, inodes, counted)
            }
            MountKind::Image(_) => self.mount_private(target, NewFilesystem::Image),
            MountKind::Memory { size, inodes } => self.tmpfs_private(target, Some(*size), *inodes, true),
            MountKind::Bind { source, access } => {
                let attributes = if *access == Access::ReadOnly { READ_ONLY } else { PLAIN };
                let owned = *access == Access::Owned && self.how.owners;
                self.bind_as(source, &mount.target, attributes, owned, submounts, attached)
            }
        }
    }

    fn bind(
        &mut self,
        from: &Path,
        target: &Path,
        attributes: Attributes,
        submounts: &[PathBuf],
        attached: &mut Vec<Step>,
    ) -> Result<(), Error> {
        self.bind_as(from, target, attributes, false, submounts, attached)
    }

    fn bind_as(
        &mut self,
        from: &Path,
        target: &Path,
        attributes: Attributes,
        owned: bool,
        submounts: &[PathBuf],
        attached: &mut Vec<Step>,
    ) -> Result<(), Error> {
        let (source, directory) = source(from, submounts)?;
        let number = self.binds.len();
        let owner = if owned { Some(self.owner(from)?) } else { None };
        if directory && !owned && !attributes.contains(Attributes::READ_ONLY) {
            self.keep(&source);
        }
        self.binds.push(Bind { source, target: c_string(target)?, directory, attributes, owner });
        // The ids of a mapped bind are those of the start, so it cannot be shared by all.
        if owned && !self.is_private(target) {
            self.point(target, directory)?;
            self.private_targets.push(target.to_owned());
        }
        if self.is_private(target) {
            self.copies.push(Step::CopyBind(number));
            self.private.push(Step::AttachBind(number));
        } else {
            let nested = self.binds.iter().rev().skip(1).any(|bind| is_below(target, &bind.target));
            if !nested && !target.starts_with("/dev") {
                self.point(target, directory)?;
            }
            attached.push(Step::CopyBind(number));
            attached.push(Step::AttachBind(number));
        }
        Ok(())
    }

    fn keep(&mut self, source: &Source) {
        self.kept.push(PathBuf::from(std::ffi::OsStr::from_bytes(source.path.to_bytes())));
    }

    /// The number of the owner of a mapped bind.
    fn owner(&mut self, path: &Path) -> Result<usize, Error> {
        let real = path.canonicalize().map_err(|error| Error::setup_at("bind", path, error))?;
        let metadata = real.metadata().map_err(|error| Error::setup_at("bind", path, error))?;
        let owner = (metadata.uid(), metadata.gid());
        if (owner.0 == 0 || owner.1 == 0) && !is_out_of_reach(&real) {
            let why = format!(
                "{} belongs to user {} and group {}; neither may be 0, for a program could leave a set-user-ID file of \
                 root for others, unless it is below a directory of the caller's with mode 0700",
                path.display(),
                owner.0,
                owner.1
            );
            return Err(Error::invalid("bind_owned", why));
        }
        if let Some(known) = self.owners.iter().position(|known| *known == owner) {
            return Ok(known);
        }
        self.owners.push(owner);
        Ok(self.owners.len() - 1)
    }

    fn tmpfs_private(
        &mut self,
        target: &Path,
        size: Option<u64>,
        inodes: Option<u64>,
        counted: bool,
    ) -> Result<(), Error> {
        self.mount_private(target, NewFilesystem::Tmpfs { size, inodes, mode: 0o1777, attributes: PLAIN, counted })
    }

    fn mount_private(&mut self, path: &Path, filesystem: NewFilesystem) -> Result<(), Error> {
        if !self.is_private(path) && !self.binds.iter().any(|bind| is_below(path, &bind.target)) {
            self.point(path, true)?;
        }
        self.private_targets.push(path.to_owned());
        self.private.push(Step::Mount { filesystem, path: c_string(path)? });
        Ok(())
    }

    fn is_private(&self, target: &Path) -> bool {
        self.private_targets.iter().any(|private| target.starts_with(private))
    }

    fn point(&mut self, path: &Path, directory: bool) -> Result<(), Error> {
        let step = match directory {
            true => Step::MakeDirectory { path: c_string(path)?, mode: 0o755 },
            false => Step::MakeFile(c_string(path)?),
        };
        self.points.push(step);
        Ok(())
    }
}

fn is_below(path: &Path, above: &CString) -> bool {
    path.starts_with(path_of(above))
}

fn path_of(path: &CString) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(path.to_bytes()))
}

/// What a bind shows, and whether it is a directory.
pub(crate) fn source(path: &Path, submounts: &[PathBuf]) -> Result<(Source, bool), Error> {
    let real = path.canonicalize().map_err(|error| Error::setup_at("bind", path, error))?;
    let metadata = real.metadata().map_err(|error| Error::setup_at("bind", path, error))?;
    let below = submounts
        .iter()
        .filter_map(|mount| mount.strip_prefix(&real).ok())
        .filter(|below| !below.as_os_str().is_empty())
        .map(c_string)
        .collect::<Result<_, _>>()?;
    let (device, inode) = (metadata.dev(), metadata.ino());
    Ok((Source { path: c_string(&real)?, device, inode, submounts: below }, metadata.is_dir()))
}

/// Whether an id that has no more rights than everybody may write there.
pub(crate) fn is_writable_for_all(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.permissions().mode() & 0o002 != 0)
}

pub(crate) fn c_string(path: impl AsRef<Path>) -> Result<CString, Error> {
    let path = path.as_ref();
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Error::invalid("path", "it holds a NUL byte"))
}

fn link(target: &Path, path: &Path) -> Result<Step, Error> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let name = Path::new(path.file_name().unwrap_or_default());
    Ok(Step::MakeLink { target: c_string(target)?, directory: c_string(directory)?, name: c_string(name)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Builder;

    const MAP: Mapping = Mapping { owners: true, root: true, hide_keys: false };

    fn rootfs(change: impl FnOnce(&mut Builder)) -> Rootfs {
        let mut builder = Builder::new();
        change(&mut builder);
        Rootfs::new(&Plan::new(&builder.options).unwrap(), None, &[], MAP).unwrap()
    }

    fn position(steps: &[Step], wanted: impl Fn(&Step) -> bool) -> usize {
        steps.iter().position(wanted).unwrap()
    }

    #[test]
    fn the_root_is_sealed_last() {
        let rootfs = rootfs(|_| {});
        assert!(matches!(rootfs.base.first(), Some(Step::TmpfsRoot)));
        assert!(matches!(rootfs.base.last(), Some(Step::MakeReadOnly(path)) if path.as_c_str() == c"/"));
        let attach = position(&rootfs.base, |step| matches!(step, Step::AttachRoot));
        assert!(rootfs.base[..attach].iter().all(|step| !matches!(step, Step::AttachBind(_))));
    }

    #[test]
    fn binds_below_a_private_mount_are_private() {
        let rootfs = rootfs(|b| {
            b.bind("/usr", "/tmp/deep/usr").bind_read_only("/usr", "/data");
        });
        let private = rootfs.binds.iter().position(|bind| bind.target.as_c_str() == c"/tmp/deep/usr").unwrap();
        let shared = rootfs.binds.iter().position(|bind| bind.target.as_c_str() == c"/data").unwrap();
        assert!(matches!(rootfs.copies[..], [Step::CopyBind(number)] if number == private));
        let tmp =
            position(&rootfs.private, |step| matches!(step, Step::Mount { path, .. } if path.as_c_str() == c"/tmp"));
        let bind = position(&rootfs.private, |step| matches!(step, Step::AttachBind(number) if *number == private));
        assert!(tmp < bind);
        position(&rootfs.base, |step| matches!(step, Step::AttachBind(number) if *number == shared));
        assert!(rootfs.binds[shared].attributes.contains(Attributes::READ_ONLY));
        assert!(!rootfs.binds[private].attributes.contains(Attributes::READ_ONLY));
    }

    #[test]
    fn owners_are_never_root() {
        let mut builder = Builder::new();
        builder.bind_owned("/usr", "/data");
        let error = Rootfs::new(&Plan::new(&builder.options).unwrap(), None, &[], MAP).unwrap_err();
        assert!(error.to_string().contains("neither may be 0"), "{error}");
    }

    #[test]
    fn directories_that_keep_files_are_known() {
        let rootfs = rootfs(|b| {
            b.bind("/usr", "/a").bind_read_only("/usr", "/b").bind("/dev/null", "/c").bind("/usr/lib", "/tmp/d");
        });
        assert_eq!(rootfs.kept, [Path::new("/usr"), Path::new("/usr/lib")]);
    }

    #[test]
    fn a_missing_source_is_named() {
        let mut builder = Builder::new();
        builder.bind("/no/such/place", "/x");
        let error = Rootfs::new(&Plan::new(&builder.options).unwrap(), None, &[], MAP).unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENOENT));
        assert!(error.to_string().contains("/no/such/place"), "{error}");
    }
}
