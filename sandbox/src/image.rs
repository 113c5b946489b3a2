//! A file system of an instance's own on an image file: a disk limit where no file system of the host limits projects.
//!
//! When a sandbox is built, mkfs(8) makes one image, whose size is fitted until an empty one has room for what was asked
//! for. Each start copies what mkfs wrote, some 100 KiB, into a file of its own and mounts that by a loop device. The file
//! has no name, the device goes with its last user and the mount has no place on the host: with the instance all of it is
//! gone, whoever dies first.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;

use ns::mount::Filesystem;
use rustix::fs::{AtFlags, Mode as Bits, OFlags, SeekFrom};
use rustix::io::Errno;

use crate::builder::DiskImage;
use crate::disk::{DiskUsage, FEATURES};
use crate::error::{Refusal, cause_and_hint};
use crate::host::{self, Privilege};
use crate::plan::Plan;
use crate::step::PLAIN;
use crate::{Enforcement, Error, rootfs, sys};

/// Of the file systems and of their devices: then every disk can do direct transfers.
const BLOCK: u32 = 4096;
/// What directories and the maps of a few large files may take of what was asked for.
const MARGIN: u64 = 64 << 10;
/// How much more than asked for is no other limit: ext4 drops a last group that is too small to be of use.
const EXCESS: u64 = 32;
/// A few passes fit any size; each takes some 10 ms.
const PASSES: u32 = 8;
/// mkfs.xfs makes no smaller one.
const XFS_SMALLEST: u64 = 300 << 20;
/// ext4 keeps so many files to itself, beside the directory `lost+found`, which is removed.
const EXT4_RESERVED: u64 = 10;
/// Of the free devices that the kernel tells somebody else may be faster to take each.
const ATTEMPTS: u32 = 100;
/// Where mkfs is, whatever the caller's `PATH`.
const PROGRAM_DIRECTORIES: [&str; 6] =
    ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin", "/bin", "/run/current-system/sw/bin"];

impl DiskImage {
    const fn name(self) -> &'static CStr {
        match self {
            Self::Ext4 => c"ext4",
            Self::Xfs => c"xfs",
        }
    }

    /// mkfs and its arguments but the file's name.
    fn mkfs(self, inodes: Option<u64>) -> (&'static str, Vec<String>) {
        match self {
            Self::Ext4 => {
                // An image ends with its instance, so nothing is ever recovered by a journal or grown. A file for each
                // block, so that blocks run out first.
                let features = "none,filetype,sparse_super,large_file,huge_file,extent,flex_bg,dir_index,dir_nlink,\
                                extra_isize,metadata_csum";
                let mut arguments = ["-q", "-F", "-b", "4096", "-I", "256", "-m", "0", "-O", features].to_vec();
                let count = inodes.map(|inodes| inodes.saturating_add(EXT4_RESERVED).to_string());
                arguments.extend(match &count {
                    Some(count) => ["-N", count],
                    None => ["-i", "4096"],
                });
                ("mkfs.ext4", arguments.into_iter().map(str::to_owned).collect())
            }
            Self::Xfs => ("mkfs.xfs", ["-q", "-f", "-s", "size=4096", "-m", "reflink=0"].map(str::to_owned).into()),
        }
    }

    const fn smallest(self) -> u64 {
        match self {
            Self::Ext4 => 0,
            Self::Xfs => XFS_SMALLEST,
        }
    }
}

/// The images of one sandbox: all alike.
#[derive(Debug)]
pub(crate) struct Images {
    filesystem: DiskImage,
    place: Place,
    size: u64,
    /// As mkfs left it.
    template: OwnedFd,
}

/// Where they lie: opened once, so that who exchanges the directory later changes nothing.
#[derive(Debug)]
struct Place {
    directory: OwnedFd,
    path: PathBuf,
}

/// One of them, mounted, for one instance.
#[derive(Debug)]
pub(crate) struct Image {
    tree: OwnedFd,
    empty: Filling,
}

/// How full one is.
#[derive(Clone, Copy, Debug)]
struct Filling {
    used_bytes: u64,
    used_files: u64,
    /// What programs can still store. The kernel may keep more to itself.
    room: u64,
    free_files: u64,
}

impl Filling {
    fn of(tree: &OwnedFd) -> Result<Self, Error> {
        let failed = |error| Error::setup("read what is used of a disk image", error);
        let has = rustix::fs::fstatvfs(tree).map_err(failed)?;
        Ok(Self {
            used_bytes: has.f_blocks.saturating_sub(has.f_bfree) * has.f_frsize,
            used_files: has.f_files.saturating_sub(has.f_ffree),
            room: has.f_bavail * has.f_frsize,
            free_files: has.f_ffree,
        })
    }
}

impl Images {
    /// Makes the image that the plan has, if it has one, and mounts it on trial. Where it is only preferred and cannot be
    /// had, the plan has a memory file system instead.
    pub(crate) fn new(plan: &mut Plan, privilege: Privilege) -> Result<Option<Self>, Error> {
        let Some(filesystem) = plan.disk_image() else { return Ok(None) };
        let wanted = FEATURES.map(|feature| plan.requested(feature));
        let directory = host::state_directory(plan.state_dir.as_deref()).join("images");
        let by = format!("an {filesystem} image on a loop device, in {}", directory.display());
        let entry = |plan: &Plan, feature| {
            let requested = plan.requested(feature);
            requested.map(|_| Enforcement::wanted(feature, plan.mode(feature), requested))
        };
        match Self::fitted(filesystem, directory, wanted, privilege) {
            Ok((images, room)) => {
                for (feature, enforced) in FEATURES.into_iter().zip(room) {
                    if let Some(entry) = entry(plan, feature) {
                        plan.set(entry.by(enforced, by.clone()));
                    }
                }
                plan.warnings.extend(images.shortage());
                Ok(Some(images))
            }
            Err((why, fix)) => {
                for feature in FEATURES {
                    if let Some(entry) = entry(plan, feature) {
                        let entry = entry.not(why.clone(), fix.clone()).check()?;
                        let requested = entry.requested.unwrap_or_default();
                        plan.set(entry.by(requested, "the size of a tmpfs"));
                    }
                }
                plan.replace_image_by_memory();
                Ok(None)
            }
        }
    }

    /// Whether the host has less room than a full image takes.
    fn shortage(&self) -> Option<String> {
        let has = rustix::fs::fstatvfs(&self.place.directory).ok()?;
        let (has, place) = (has.f_bavail * has.f_frsize, self.place.path.display());
        (has < self.size).then(|| format!("a full disk image takes {} bytes, and {place} has {has} left", self.size))
    }

    /// The images, and how many bytes and files an empty one has room for.
    fn fitted(
        filesystem: DiskImage,
        directory: PathBuf,
        [bytes, inodes]: [Option<u64>; 2],
        privilege: Privilege,
    ) -> Result<(Self, [u64; 2]), Refusal> {
        if privilege == Privilege::User {
            let fix = "run as root; or a layer or a tmpfs in memory, or a directory with project quota";
            return Err(("only host root can mount an image".to_owned(), fix.to_owned()));
        }
        let bytes = bytes.unwrap_or_default();
        let place = Place::open(directory)?;
        let size = (bytes + MARGIN).max(filesystem.smallest()).next_multiple_of(BLOCK.into());
        let template = place.mkfs(filesystem, size, inodes).map_err(|error| place.explain(&error))?;
        let mut images = Self { filesystem, place, size, template };
        let explain = |error| images.place.explain(&error);
        for _ in 0..PASSES {
            let empty = images.make().map_err(explain)?.empty;
            let room = empty.room;
            let missing = (bytes + MARGIN).saturating_sub(room);
            if missing > 0 {
                images.size = (images.size + missing + missing / 8).next_multiple_of(BLOCK.into());
                images.template = images.place.mkfs(filesystem, images.size, inodes).map_err(explain)?;
                continue;
            }
            if room > bytes + bytes / EXCESS + 2 * MARGIN {
                let why = format!("the smallest image of this file system has room for {room} bytes");
                return Err((why, "a disk_max of so many at least, or an ext4 image".to_owned()));
            }
            if let Some(inodes) = inodes.filter(|inodes| empty.free_files > inodes.saturating_add(inodes / EXCESS + 16))
            {
                let files = empty.free_files;
                let why = format!("an ext4 file system of this size has room for {files} files at least, not {inodes}");
                return Err((why, "an inodes_max of so many at least, or a smaller disk_max".to_owned()));
            }
            return Ok((images, [room, empty.free_files]));
        }
        Err((format!("no image could be fitted to {bytes} bytes"), "another disk_max".to_owned()))
    }

    /// One more, empty.
    pub(crate) fn make(&self) -> Result<Image, Error> {
        let file = self.place.new_file(self.size)?;
        copy(&self.template, &file)
            .map_err(|error| Error::setup_at("copy a disk image in", &self.place.path, error))?;
        let (device, path) = attach(file.as_fd())?;
        let failed = |error: io::Error| Error::setup("mount a disk image", error);
        let mount = || {
            let filesystem = Filesystem::open(self.filesystem.name())?;
            filesystem.string(c"source", &path)?;
            match self.filesystem {
                DiskImage::Ext4 => {
                    // Nobody waits for the disk to have it, and what mkfs left out is zero in a new file.
                    filesystem.flag(c"nobarrier")?;
                    filesystem.flag(c"noinit_itable")?;
                    filesystem.string(c"errors", c"remount-ro")?;
                }
                // All images of a sandbox are one file system to XFS.
                DiskImage::Xfs => filesystem.flag(c"nouuid")?,
            }
            filesystem.mount(PLAIN)
        };
        let tree = mount().map_err(|errno: ns::Errno| failed(errno.into()))?;
        // From here on the mount holds it.
        drop(device);
        match rustix::fs::unlinkat(&tree, c"lost+found", AtFlags::REMOVEDIR) {
            Err(Errno::NOENT) => {}
            removed => removed.map_err(|error| failed(error.into()))?,
        }
        let mode = Bits::from_raw_mode(0o1777);
        rustix::fs::chmodat(&tree, c".", mode, AtFlags::empty()).map_err(|error| failed(error.into()))?;
        let empty = Filling::of(&tree)?;
        Ok(Image { tree, empty })
    }
}

impl Image {
    /// What is stored beyond what an empty one holds.
    ///
    /// The kernel refuses a large write before the last block is taken, at most as much as it holds in one piece of its
    /// cache: so nearly full is full.
    pub(crate) fn usage(&self) -> Result<DiskUsage, Error> {
        let now = Filling::of(&self.tree)?;
        Ok(DiskUsage {
            bytes: now.used_bytes.saturating_sub(self.empty.used_bytes),
            inodes: now.used_files.saturating_sub(self.empty.used_files),
            bytes_exhausted: now.room < nearly(self.empty.room),
            inodes_exhausted: now.free_files == 0,
        })
    }
}

impl AsFd for Image {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tree.as_fd()
    }
}

/// With less than this left it is full.
const fn nearly(room: u64) -> u64 {
    let (part, most) = (room / 64, 4 << 20);
    if part < most { part } else { most }
}

fn explain(error: &Error, directory: &Path) -> Refusal {
    let hint = error.hint();
    let (cause, hint) = cause_and_hint(error.to_string(), hint.as_deref());
    (cause, hint.unwrap_or_else(|| format!("see the error; images lie in {}", directory.display())))
}

impl Place {
    /// Opens the directory, and makes it if it is missing. Whoever else could write there could have the kernel mount a file
    /// system of their own making.
    fn open(path: PathBuf) -> Result<Self, Refusal> {
        let opened = host::make_state_directory(&path).and_then(|()| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let directory = rustix::fs::open(&path, flags, Bits::empty())?;
            let found = rustix::fs::fstat(&directory)?;
            Ok((directory, found))
        });
        let (directory, found) = opened.map_err(|error| explain(&Error::setup_at("make", &path, error), &path))?;
        let (owner, mode) = (found.st_uid, found.st_mode & 0o777);
        if owner != rustix::process::geteuid().as_raw() || mode & 0o022 != 0 {
            let why = format!("{} is of user {owner} and has mode {mode:o}, so others may write there", path.display());
            return Err((why, "chown it to root and chmod it to 0700, or name another state_dir".to_owned()));
        }
        Ok(Self { directory, path })
    }

    fn explain(&self, error: &Error) -> Refusal {
        explain(error, &self.path)
    }

    /// A file without a name, all of it a hole.
    fn new_file(&self, size: u64) -> Result<OwnedFd, Error> {
        let failed = |error: Errno| Error::setup_at("make a disk image in", &self.path, error);
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.directory, c".", flags, Bits::RUSR | Bits::WUSR).map_err(failed)?;
        rustix::fs::ftruncate(&file, size).map_err(failed)?;
        Ok(file)
    }

    /// A file system as mkfs makes it.
    fn mkfs(&self, filesystem: DiskImage, size: u64, inodes: Option<u64>) -> Result<OwnedFd, Error> {
        let file = self.new_file(size)?;
        let (name, arguments) = filesystem.mkfs(inodes);
        let refused = |error: io::Error| Error::setup_at("make a file system by", name, error);
        let mut programs = PROGRAM_DIRECTORIES.iter().map(|directory| Path::new(directory).join(name));
        let program = programs.find(|program| program.is_file()).ok_or_else(|| refused(Errno::NOENT.into()))?;
        let failed = |error: io::Error| Error::setup_at("run", name, error);
        let (said, words) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
        // A path to a program and no closure, so that std does not fork. mkfs opens the file anew by the name of a descriptor.
        let mut child = Command::new(program)
            .args(arguments)
            .arg("/proc/self/fd/0")
            .env_clear()
            .env("LC_ALL", "C")
            .current_dir("/")
            .stdin(file.try_clone().map_err(failed)?)
            .stdout(words.try_clone().map_err(failed)?)
            .stderr(words)
            .spawn()
            .map_err(failed)?;
        let mut text = String::new();
        File::from(said).read_to_string(&mut text).map_err(failed)?;
        match child.wait() {
            Ok(status) if !status.success() => Err(refused(io::Error::other(first_line(&text, status)))),
            // A host program that ignores SIGCHLD loses the status: then the trial tells.
            Err(error) if error.raw_os_error() != Some(libc::ECHILD) => Err(failed(error)),
            _ => Ok(file),
        }
    }
}

fn first_line(said: &str, status: std::process::ExitStatus) -> String {
    let line = said.lines().map(str::trim).find(|line| !line.is_empty());
    line.map_or_else(|| status.to_string(), str::to_owned)
}

/// Copies all but the holes. Nobody relies on the position of either file, so that several threads may copy one.
fn copy(from: &OwnedFd, to: &OwnedFd) -> rustix::io::Result<()> {
    let mut at = 0;
    loop {
        at = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => return Ok(()),
            data => data?,
        };
        let end = rustix::fs::seek(from, SeekFrom::Hole(at))?;
        let (mut read, mut written) = (at, at);
        while read < end {
            let length = usize::try_from(end - read).unwrap_or(usize::MAX);
            if rustix::fs::copy_file_range(from, Some(&mut read), to, Some(&mut written), length)? == 0 {
                return Err(Errno::IO);
            }
        }
        at = end;
    }
}

/// A loop device of the file and its name, which is free again when the last descriptor of it and the last mount are gone.
fn attach(file: BorrowedFd<'_>) -> Result<(OwnedFd, CString), Error> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let control = rustix::fs::open("/dev/loop-control", flags, Bits::empty())
        .map_err(|error| Error::setup_at("open the loop device", "/dev/loop-control", error))?;
    for _ in 0..ATTEMPTS {
        let number = sys::free_loop_device(control.as_fd())
            .map_err(|error| Error::setup_at("find a free loop device by", "/dev/loop-control", error))?;
        let path = format!("/dev/loop{number}");
        let device = rustix::fs::open(path.as_str(), flags, Bits::empty())
            .map_err(|error| Error::setup_at("open the loop device", path.as_str(), error))?;
        match sys::configure_loop_device(device.as_fd(), file, BLOCK) {
            Ok(()) => return Ok((device, rootfs::c_string(path)?)),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(Error::setup_at("set up the loop device", path, error)),
        }
    }
    Err(Error::setup("find a free loop device", Errno::BUSY))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        let path = std::env::temp_dir();
        let directory = rustix::fs::open(&path, OFlags::DIRECTORY | OFlags::CLOEXEC, Bits::empty()).unwrap();
        Place { directory, path }
    }

    #[test]
    fn nearly_full_is_a_64th_and_at_most_4_mib() {
        assert_eq!(nearly(64 << 20), 1 << 20);
        assert_eq!(nearly(1 << 40), 4 << 20);
    }

    #[test]
    fn only_data_is_copied() {
        let [from, to] = [(); 2].map(|()| place().new_file(8 << 20).unwrap());
        for at in [0, 5 << 20, (8 << 20) - 4096] {
            rustix::io::pwrite(&from, &[7; 4096], at).unwrap();
        }
        copy(&from, &to).unwrap();
        for at in [0, 5 << 20, (8 << 20) - 4096] {
            let mut found = [0; 4096];
            rustix::io::pread(&to, &mut found, at).unwrap();
            assert_eq!(found, [7; 4096], "{at}");
        }
        assert!(rustix::fs::fstat(&to).unwrap().st_blocks < 256, "the holes are holes");
    }

    #[test]
    fn what_mkfs_says_is_told() {
        let Err(error) = place().mkfs(DiskImage::Ext4, 4096, None) else { panic!("4 KiB hold no file system") };
        let words = error.to_string();
        assert!(words.contains("mkfs.ext4") && !words.contains("exit status"), "{words}");
    }
}
