//! Disks for `/mnt/quota`, and swap: sparse images without a name, gone with their last user.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{CWD, Mode, OFlags, SeekFrom, openat, seek};

use crate::error::{Context, Error, Result};

/// mkfs.xfs refuses less than 300 MB.
const SIZE: u64 = 512 << 20;

/// What lies on the disk and how it is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub(crate) enum DiskKind {
    /// XFS with project quota, accounted and enforced.
    Xfs,
    /// XFS without quota.
    XfsNoquota,
    /// XFS with project quota accounted, not enforced.
    XfsNoenforce,
    /// XFS of the old format (no checksums), with project quota.
    XfsV4,
    /// ext4 with project quota.
    Ext4,
    /// ext4 without quota.
    Ext4Noquota,
    /// f2fs with project quota.
    F2fs,
    /// No disk.
    None,
}

struct Recipe {
    /// The name of the template; kinds that differ only in mounting share it.
    template: &'static str,
    make: &'static [&'static str],
    kind: &'static str,
    options: &'static str,
}

impl DiskKind {
    fn recipe(self) -> Option<Recipe> {
        const EXT4: &[&str] = &["mkfs.ext4", "-q", "-O", "project,quota", "-E", "quotatype=usrquota:grpquota:prjquota"];
        const F2FS: &[&str] = &["mkfs.f2fs", "-q", "-O", "extra_attr,quota,project_quota"];
        let (template, make, kind, options) = match self {
            Self::Xfs => ("xfs", &["mkfs.xfs", "-q"][..], "xfs", "prjquota"),
            Self::XfsNoquota => ("xfs", &["mkfs.xfs", "-q"][..], "xfs", ""),
            Self::XfsNoenforce => ("xfs", &["mkfs.xfs", "-q"][..], "xfs", "pqnoenforce"),
            Self::XfsV4 => ("xfs-v4", &["mkfs.xfs", "-q", "-m", "crc=0"][..], "xfs", "prjquota"),
            Self::Ext4 => ("ext4", EXT4, "ext4", "prjquota"),
            Self::Ext4Noquota => ("ext4-noquota", &["mkfs.ext4", "-q"][..], "ext4", ""),
            Self::F2fs => ("f2fs", F2FS, "f2fs", "prjquota"),
            Self::None => return None,
        };
        Some(Recipe { template, make, kind, options })
    }

    /// File system and mount options; `None` without a disk.
    pub(crate) fn mount(self) -> Option<(&'static str, &'static str)> {
        self.recipe().map(|recipe| (recipe.kind, recipe.options))
    }

    /// Makes the template image below `cache` unless it is there. Returns its path.
    pub(crate) fn template(self, cache: &Path) -> Result<Option<PathBuf>> {
        let Some(recipe) = self.recipe() else { return Ok(None) };
        template(cache, recipe.template, SIZE, recipe.make).map(Some)
    }
}

/// The template of a swap area of `size` bytes.
pub(crate) fn swap_template(cache: &Path, size: u64) -> Result<PathBuf> {
    template(cache, &format!("swap-{size}"), size, &["mkswap", "--quiet"])
}

fn template(cache: &Path, name: &str, size: u64, make: &[&str]) -> Result<PathBuf> {
    let directory = cache.join("disks");
    let path = directory.join(name);
    if path.exists() {
        return Ok(path);
    }
    fs::create_dir_all(&directory).context(|| format!("cannot make {}", directory.display()))?;
    // Two may make it at once: each its own file, and the last rename wins.
    let unfinished = directory.join(format!(".{name}.{}.{:?}", std::process::id(), std::thread::current().id()));
    let file = File::create(&unfinished).context(|| format!("cannot make {}", unfinished.display()))?;
    file.set_len(size).context(|| format!("cannot size {}", unfinished.display()))?;
    let program =
        crate::packages::find(make[0]).ok_or_else(|| Error::new(format!("no {} on this machine", make[0])))?;
    let output = Command::new(program)
        .args(&make[1..])
        .arg(&unfinished)
        .stdin(Stdio::null())
        .output()
        .context(|| format!("cannot run {}", make[0]))?;
    if !output.status.success() {
        let _ = fs::remove_file(&unfinished);
        return Err(Error::new(format!("{}: {}", make.join(" "), String::from_utf8_lossy(&output.stderr).trim())));
    }
    fs::rename(&unfinished, &path).context(|| format!("cannot rename {}", unfinished.display()))?;
    Ok(path)
}

/// A copy of `template` that has no name: it is gone when its last descriptor is closed, whatever happens to us.
pub(crate) fn copy(template: &Path) -> Result<OwnedFd> {
    let directory = template.parent().unwrap_or(template);
    let copied = || -> io::Result<OwnedFd> {
        let source = File::open(template)?;
        let copy = openat(CWD, directory, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR)?;
        copy_data(&source, File::from(copy.try_clone()?), source.metadata()?.len())?;
        Ok(copy)
    };
    copied().context(|| format!("cannot copy {}", template.display()))
}

/// Copies what is not a hole.
fn copy_data(source: &File, target: File, size: u64) -> io::Result<()> {
    target.set_len(size)?;
    let mut at = 0;
    loop {
        let start = match seek(source.as_fd(), SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        at = seek(source.as_fd(), SeekFrom::Hole(start))?;
        let (mut from, mut to) = (start, start);
        while from < at {
            let length = usize::try_from(at - from).unwrap_or(1 << 30);
            if rustix::fs::copy_file_range(source, Some(&mut from), &target, Some(&mut to), length)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn a_copy_is_whole_sparse_and_nameless() {
        let directory = std::env::temp_dir().join(format!("sandbox-disk-test-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let template = directory.join("template");
        let mut file = File::create(&template).unwrap();
        file.write_all(b"head").unwrap();
        file.write_all_at(b"tail", 8 << 20).unwrap();
        file.set_len(16 << 20).unwrap();

        let mut copy = File::from(copy(&template).unwrap());
        let metadata = copy.metadata().unwrap();
        assert_eq!((metadata.len(), metadata.nlink()), (16 << 20, 0));
        assert!(metadata.blocks() < 2048, "{} blocks", metadata.blocks());
        let mut start = [0; 4];
        copy.rewind().unwrap();
        copy.read_exact(&mut start).unwrap();
        assert_eq!(&start, b"head");
        copy.read_exact_at(&mut start, 8 << 20).unwrap();
        assert_eq!(&start, b"tail");
        fs::remove_dir_all(&directory).unwrap();
    }
}
