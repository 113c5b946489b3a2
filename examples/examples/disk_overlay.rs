//! A limit as Docker's `--storage-opt size=`: the image below is not counted, what is written above it is.
//!
//! ```text
//! disk_overlay [DIRECTORY]             on a file system with project quota; default: $SANDBOX_TEST_DISK or /mnt/quota
//! ```
//!
//! An image directory of 20 MB becomes the lower layer of an overlay whose upper and work directories lie in a project
//! of 10 MB. The overlay is mounted nowhere: it is used by a descriptor, and is gone with it.
//!
//! Ends with `ok`, or says what differs (exit 1), or `SKIP reason` (exit 77).

use std::error::Error;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use quota::{Allocator, Check, Directory, Filesystem, Kind, Lease, Limits, Released};
use rustix::fs::{AtFlags, Mode, OFlags, fstatvfs, mkdirat, openat, unlinkat};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen};

const IMAGE: usize = 20 << 20;
const LIMIT: u64 = 10 << 20;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// How it ended: well, or not at all.
enum Ended {
    Ok,
    Skipped(String),
}

fn main() -> ExitCode {
    let directory = std::env::args_os().nth(1).or_else(|| std::env::var_os("SANDBOX_TEST_DISK"));
    let directory = directory.map_or_else(|| PathBuf::from("/mnt/quota"), PathBuf::from);
    match run(&directory) {
        Ok(Ended::Ok) => {
            println!("ok");
            ExitCode::SUCCESS
        }
        Ok(Ended::Skipped(reason)) => {
            println!("SKIP {reason}");
            ExitCode::from(77)
        }
        Err(error) => {
            eprintln!("disk_overlay: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(directory: &Path) -> Result<Ended> {
    let filesystem = match Filesystem::open(directory).and_then(|disk| disk.require(&Check::overlay()).map(|_| disk)) {
        Ok(filesystem) => filesystem,
        Err(error) => return Ok(Ended::Skipped(error.to_string())),
    };
    println!(
        "{} lies on {}; project quota is {}",
        directory.display(),
        filesystem.kind(),
        filesystem.states()?.project
    );

    // Everything is below one directory, which goes at the end whatever happens.
    let home = Home(directory.canonicalize()?.join(format!("sandbox-disk-overlay-{}", std::process::id())));
    fs::create_dir(&home.0)?;
    let lower = home.0.join("image");
    fs::create_dir(&lower)?;
    fs::write(lower.join("big"), vec![1; IMAGE])?;
    fs::write(lower.join("motd"), "from the image\n")?;

    // The limit first, then the project on the empty directory, then upper and work inside it.
    let allocator = Allocator::open(&filesystem, &home.0.join("state"), Allocator::IDS)?;
    let lease = allocator.lease("disk_overlay", &Limits::unlimited().bytes(LIMIT))?;
    // Dropped before the lease, which can be released only then.
    let layer = Home(home.0.join("layer"));
    fs::create_dir(&layer.0)?;
    lease.assign(&Directory::open(&layer.0)?)?;
    fs::create_dir(layer.0.join("upper"))?;
    fs::create_dir(layer.0.join("work"))?;
    println!("project {} is limited to {LIMIT} bytes and bears upper and work", lease.id());

    demonstrate(&filesystem, &lease, &overlay(&home.0)?)?;

    drop(layer);
    let id = lease.id();
    expect("what becomes of the project", &lease.release()?, &Released::Freed)?;
    println!("the layer is removed, project {id} is free again");
    Ok(Ended::Ok)
}

fn demonstrate(filesystem: &Filesystem, lease: &Lease, root: &OwnedFd) -> Result<()> {
    let image = File::from(openat(root, "big", OFlags::RDONLY, Mode::empty())?);
    expect("the size of the image's file through the overlay", &image.metadata()?.len(), &(IMAGE as u64))?;
    let used = lease.project().usage()?.bytes;
    at_most("used by an overlay on a 20 MB image", used, 64 << 10)?;

    let df = fstatvfs(root)?;
    expect("the size that df shows inside", &(df.f_blocks * df.f_frsize), &LIMIT)?;

    // 10 MB and no more. The errno depends on the file system; the counters say that it was the project.
    let mut file = File::from(openat(root, "f", OFlags::WRONLY | OFlags::CREATE, Mode::RUSR | Mode::WUSR)?);
    let mut block = [7; 65536].as_slice();
    let mut written = 0;
    let error = loop {
        match file.write(block) {
            Ok(count) => written += count as u64,
            // f2fs refuses a write whole that fits in part.
            Err(_) if block.len() > 4096 => block = &block[..4096],
            Err(error) => break error,
        }
        at_most("written", written, LIMIT)?;
    };
    println!("wrote {written} bytes, then: {error}");
    let errno = if *filesystem.kind() == Kind::Xfs { Errno::NOSPC } else { Errno::DQUOT };
    expect("the errno at the limit", &error.raw_os_error(), &Some(errno.raw_os_error()))?;
    at_most("what is missing of 10 MB", LIMIT - written, 64 << 10)?;
    let report = lease.project().report()?;
    expect("limit reached by the counters: disk", &report.bytes_exhausted(), &true)?;
    expect("limit reached by the counters: inodes", &report.inodes_exhausted(), &false)?;

    // A file of the image is removed by a whiteout, made in the full layer: that may fail. Room is made above.
    match mkdirat(root, "dir", Mode::RWXU).and_then(|()| unlinkat(root, "motd", AtFlags::empty())) {
        Ok(()) => println!("the layer has room for a directory and a whiteout still"),
        Err(error) => println!("a new directory, or removing a file of the image, while full: {error}"),
    }
    file.set_len(0)?;
    drop(file);
    unlinkat(root, "f", AtFlags::empty())?;
    let start = std::time::Instant::now();
    // XFS counts down in the background since Linux 5.14.
    while let Err(error) = fs_remove(root, "motd") {
        if start.elapsed().as_secs() > 5 {
            return Err(error.into());
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    println!("after removing what was written, the image's file is removed, too");
    expect("the removed file", &openat(root, "motd", OFlags::RDONLY, Mode::empty()).err(), &Some(Errno::NOENT))?;
    Ok(())
}

/// Removed now, or before.
fn fs_remove(root: &OwnedFd, name: &str) -> rustix::io::Result<()> {
    match unlinkat(root, name, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        result => result,
    }
}

/// An overlay of HOME/image, HOME/layer/upper and HOME/layer/work that is attached nowhere. What the upper layer might
/// carry of redirections and foreign metadata is not followed.
fn overlay(home: &Path) -> Result<OwnedFd> {
    let base = Directory::open(home)?;
    let base = format!("/proc/self/fd/{}", base.as_fd().as_raw_fd());
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in [
        ("lowerdir", format!("{base}/image")),
        ("upperdir", format!("{base}/layer/upper")),
        ("workdir", format!("{base}/layer/work")),
        ("redirect_dir", "nofollow".to_owned()),
        ("metacopy", "off".to_owned()),
    ] {
        fsconfig_set_string(context.as_fd(), key, value)?;
    }
    fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    Ok(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

fn expect<T: PartialEq + std::fmt::Debug>(what: &str, found: &T, expected: &T) -> Result<()> {
    if found == expected {
        println!("{what}: {found:?}");
        return Ok(());
    }
    Err(format!("{what}: expected {expected:?}, found {found:?}").into())
}

fn at_most(what: &str, found: u64, most: u64) -> Result<()> {
    if found > most {
        return Err(format!("{what}: expected at most {most}, found {found}").into());
    }
    Ok(())
}

/// A directory that is removed in the end.
struct Home(PathBuf);

impl Drop for Home {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn main_works() {
        assert!(matches!(run(Path::new("/proc")), Ok(Ended::Skipped(reason)) if reason.contains("no project quota")));
        run(Path::new("/mnt/quota")).expect("ok, or skipped");
    }
}
