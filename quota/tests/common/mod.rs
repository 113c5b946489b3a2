//! What the kernel tests share: needs by name, the disk under test, threads with other credentials, and roles, which
//! are this test binary run again as another process.

#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panic")]

pub(crate) mod sys;

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use quota::{Check, Directory, Filesystem, Kernel, Kind, Limits, Project};
use rustix::process::{Gid, Uid, geteuid};
use rustix::thread::{
    CapabilitySet, capabilities, set_capabilities, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

/// A need that is not met: what is needed, and what was found.
pub(crate) type Need = Result<(), (String, String)>;

/// Ends the test with a line `SKIP name: needs …; found …` when something that it needs is missing, or fails it when
/// `SANDBOX_TEST_REQUIRE_ALL=1`.
#[macro_export]
macro_rules! require {
    ($($need:expr),+ $(,)?) => {
        $(if let Err((needs, found)) = $need {
            $crate::common::skip(&needs, &found);
            return;
        })+
    };
}

/// To the handle: libtest captures only what the print macros write.
pub(crate) fn skip(needs: &str, found: &str) {
    let name = thread::current().name().unwrap_or("test").to_owned();
    assert!(env::var_os("SANDBOX_TEST_REQUIRE_ALL").is_none_or(|v| v != "1"), "{name}: needs {needs}; found {found}");
    // One write: lines of other threads must not come in between.
    let _ = std::io::stderr().write_all(format!("SKIP {name}: needs {needs}; found {found}\n").as_bytes());
}

fn need(met: bool, needs: &str, found: impl FnOnce() -> String) -> Need {
    if met { Ok(()) } else { Err((needs.to_owned(), found())) }
}

pub(crate) fn root() -> Need {
    let uid = geteuid();
    let admin = capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN));
    need(uid.is_root() && admin, "root with CAP_SYS_ADMIN", || format!("uid {}", uid.as_raw()))
}

pub(crate) fn kernel(major: u32, minor: u32) -> Need {
    let running = Kernel::running();
    let met = running.is_some_and(|running| running >= Kernel { major, minor });
    need(met, &format!("Linux {major}.{minor}"), || running.map(|k| k.to_string()).unwrap_or_default())
}

/// A program somewhere in PATH or in the directories of system programs.
pub(crate) fn tool(name: &str) -> Need {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).any(|dir| dir.join(name).exists());
    need(found, &format!("the program {name}"), || "none in PATH".to_owned())
}

pub(crate) fn loop_devices() -> Need {
    need(Path::new("/dev/loop-control").exists(), "loop devices", || "no /dev/loop-control".to_owned())
}

/// Whether this kernel can mount the file system at all.
pub(crate) fn filesystem_type(name: &str) -> Need {
    let _ = Command::new("modprobe").arg(name).output();
    let list = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    need(list.split_whitespace().any(|word| word == name), &format!("a kernel with {name}"), || "none".to_owned())
}

/// Project quota in the kernel: the host that builds this may have none.
pub(crate) fn project_quota_kernel() -> Need {
    let xfs_without = Path::new("/proc/fs/xfs/stat").exists() && !Path::new("/proc/fs/xfs/xqmstat").exists();
    need(!xfs_without, "a kernel with CONFIG_XFS_QUOTA", || "one without".to_owned())
}

fn disk_path() -> PathBuf {
    env::var_os("SANDBOX_TEST_DISK").map_or_else(|| PathBuf::from("/mnt/quota"), PathBuf::from)
}

/// A disk with project quota enforced, at `SANDBOX_TEST_DISK` or /mnt/quota, and the right to use it.
pub(crate) fn disk() -> Need {
    let needs = "project quota at /mnt/quota";
    let found = |error: quota::Error| (needs.to_owned(), error.to_string());
    Filesystem::open(disk_path()).and_then(|disk| disk.require(&Check::default())).map(drop).map_err(found)
}

pub(crate) fn disk_kind(kind: Kind) -> Need {
    let found = Filesystem::open(disk_path()).map(|disk| disk.kind().clone());
    let met = found.as_ref().is_ok_and(|found| *found == kind);
    need(met, &format!("{kind} at /mnt/quota"), || found.map(|kind| kind.to_string()).unwrap_or_default())
}

/// A directory of its own on the disk under test, removed at the end, and projects whose limits are removed, too.
pub(crate) struct Place {
    pub(crate) filesystem: Filesystem,
    pub(crate) path: PathBuf,
    projects: Vec<Project>,
}

static NEXT_ID: AtomicU32 = AtomicU32::new(0);

impl Place {
    pub(crate) fn new() -> Self {
        Self::on(&disk_path())
    }

    pub(crate) fn on(disk: &Path) -> Self {
        let number = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let path = disk.join(format!("sandbox-test-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        sys::open_to_all(&path);
        Self { filesystem: Filesystem::open(&path).unwrap(), path, projects: Vec::new() }
    }

    pub(crate) fn is_xfs(&self) -> bool {
        *self.filesystem.kind() == Kind::Xfs
    }

    /// The errno at a limit.
    pub(crate) fn full(&self) -> i32 {
        if self.is_xfs() { libc::ENOSPC } else { libc::EDQUOT }
    }

    /// A project that nobody else uses.
    pub(crate) fn project(&mut self) -> Project {
        let id = 1_100_000_000 + std::process::id() * 1000 + NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let project = self.filesystem.project(id).unwrap();
        self.projects.push(project.clone());
        project
    }

    /// A fresh directory `name`, root of a fresh project with these limits; everybody may write to it.
    pub(crate) fn limited(&mut self, name: &str, limits: &Limits) -> (PathBuf, Project) {
        let project = self.project();
        if *limits != Limits::unlimited() {
            project.set_limits(limits).unwrap();
        }
        let path = self.directory(name);
        Directory::open(&path).unwrap().assign(&project).unwrap();
        (path, project)
    }

    /// A fresh directory without a project.
    pub(crate) fn directory(&self, name: &str) -> PathBuf {
        let path = self.path.join(name);
        fs::create_dir(&path).unwrap();
        sys::open_to_all(&path);
        path
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
        for project in &self.projects {
            let _ = project.clear();
        }
    }
}

/// Waits until the condition holds: XFS counts down in the background.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(30), "{what}: not within 30 s");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Runs in a thread without CAP_SYS_RESOURCE, which would pass the limits of ext4 and f2fs.
pub(crate) fn ordinary<T: Send>(run: impl FnOnce() -> T + Send) -> T {
    without(CapabilitySet::SYS_RESOURCE, run)
}

/// Runs in a thread without these capabilities. Credentials are a thread's own in the kernel.
pub(crate) fn without<T: Send>(dropped: CapabilitySet, run: impl FnOnce() -> T + Send) -> T {
    in_thread(|| {
        let mut sets = capabilities(None).unwrap();
        sets.effective.remove(dropped);
        sets.permitted.remove(dropped);
        sets.inheritable.remove(dropped);
        set_capabilities(None, sets).unwrap();
        run()
    })
}

/// Runs in a thread as an ordinary user.
pub(crate) fn as_user<T: Send>(uid: u32, run: impl FnOnce() -> T + Send) -> T {
    in_thread(|| {
        let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
        set_thread_groups(&[]).unwrap();
        set_thread_res_gid(group, group, group).unwrap();
        set_thread_res_uid(user, user, user).unwrap();
        run()
    })
}

pub(crate) fn in_thread<T: Send>(run: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| match scope.spawn(run).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// The errno of a result; 0 for success.
pub(crate) fn errno<T>(result: std::io::Result<T>) -> i32 {
    result.map_or_else(|error| error.raw_os_error().unwrap_or(-1), |_| 0)
}

/// Appends to a file until `most` bytes more or an error: bytes written, and the errno or 0. By 64 KiB, and when that
/// fails by 4 KiB: f2fs refuses a write whole that fits in part.
pub(crate) fn fill(file: &Path, most: u64) -> (u64, i32) {
    let mut file = match fs::OpenOptions::new().create(true).append(true).open(file) {
        Ok(file) => file,
        Err(error) => return (0, error.raw_os_error().unwrap_or(-1)),
    };
    let mut block = [0x5a; 65536].as_slice();
    let mut written = 0;
    while written < most {
        match file.write(block) {
            Ok(n) => written += n as u64,
            Err(_) if block.len() > 4096 => block = &block[..4096],
            Err(error) => return (written, error.raw_os_error().unwrap_or(-1)),
        }
    }
    (written, 0)
}

pub(crate) fn project_of(path: &Path) -> u32 {
    sys::get_project(path).unwrap().0
}

/// This binary again, as the role of that name: `#[test] fn role()` in the caller must call [`played`].
/// `wrapper` is a command line put before it, such as `unshare --user`.
pub(crate) fn act(wrapper: &[&str], name: &str, arguments: &[&OsStr]) -> Command {
    let binary = env::current_exe().unwrap();
    let mut command = match wrapper {
        [] => Command::new(binary),
        [program, rest @ ..] => {
            let mut command = Command::new(program);
            command.args(rest).arg(binary);
            command
        }
    };
    command.args(["role", "--exact", "--nocapture", "--test-threads=1"]).env("QUOTA_TEST_ROLE", name);
    command.env("QUOTA_TEST_ARGUMENTS", arguments.len().to_string());
    for (index, argument) in arguments.iter().enumerate() {
        command.env(format!("QUOTA_TEST_ARGUMENT_{index}"), argument);
    }
    command
}

/// A child that does not outlive the test, however that ends.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What [`act`] is called with, if this process is one.
pub(crate) fn played() -> Option<(String, Vec<PathBuf>)> {
    let name = env::var("QUOTA_TEST_ROLE").ok()?;
    let count: usize = env::var("QUOTA_TEST_ARGUMENTS").ok()?.parse().ok()?;
    let argument = |index| env::var_os(format!("QUOTA_TEST_ARGUMENT_{index}")).map(PathBuf::from);
    Some((name, (0..count).filter_map(argument).collect()))
}

/// Tells the role's result to [`answer`].
pub(crate) fn tell(answer: impl std::fmt::Display) {
    let _ = writeln!(std::io::stdout(), "\n=> {answer}");
}

/// The lines that a role told.
pub(crate) fn answers(output: &Output) -> Vec<String> {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().filter_map(|line| line.strip_prefix("=> ")).map(str::to_owned).collect()
}

pub(crate) fn answer(output: &Output) -> String {
    let mut lines = answers(output);
    assert_eq!(lines.len(), 1, "{output:?}");
    lines.remove(0)
}

/// An image file with a file system, mounted over a loop device in this thread's own mount namespace.
pub(crate) struct Image {
    directory: tempfile::TempDir,
}

impl Image {
    /// `mkfs` is a command line to which the file is added.
    pub(crate) fn new(mkfs: &str) -> Self {
        // Not below the target directory: in a guest that is a read-only or slow share.
        let directory = tempfile::Builder::new().prefix("sandbox-test-").tempdir_in("/tmp").unwrap();
        let image = Self { directory };
        fs::File::create(image.file()).unwrap().set_len(512 << 20).unwrap();
        let mut words = mkfs.split_whitespace();
        let mut command = Command::new(words.next().unwrap());
        let output = command.args(words).arg(image.file()).env("PATH", search_path()).output().unwrap();
        assert!(output.status.success(), "{mkfs}: {output:?}");
        fs::create_dir(image.point()).unwrap();
        image
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.directory.path().join("image")
    }

    pub(crate) fn point(&self) -> PathBuf {
        self.directory.path().join("mnt")
    }

    pub(crate) fn mount(&self, kind: &str, options: &str) -> std::io::Result<()> {
        let options = if options.is_empty() { "loop".to_owned() } else { format!("loop,{options}") };
        let mut command = Command::new("mount");
        command.args(["-t", kind, "-o", &options]).arg(self.file()).arg(self.point());
        run(&mut command)
    }

    pub(crate) fn remount(&self, options: &str) -> std::io::Result<()> {
        run(Command::new("mount").args(["-o", &format!("remount,{options}")]).arg(self.point()))
    }

    pub(crate) fn unmount(&self) {
        // A descriptor that another thread just closed may linger.
        eventually("umount", || run(Command::new("umount").arg(self.point())).is_ok());
    }

    pub(crate) fn open(&self) -> Filesystem {
        Filesystem::open(self.point()).unwrap()
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
        while mounts.contains(&self.point().display().to_string()) {
            if run(Command::new("umount").arg("-l").arg(self.point())).is_err() {
                break;
            }
        }
    }
}

pub(crate) fn search_path() -> String {
    format!("{}:/usr/sbin:/sbin:/usr/bin:/bin", env::var("PATH").unwrap_or_default())
}

pub(crate) fn run(command: &mut Command) -> std::io::Result<()> {
    let output = command.env("PATH", search_path()).output()?;
    if output.status.success() { Ok(()) } else { Err(std::io::Error::other(format!("{command:?}: {output:?}"))) }
}

/// The bytes allocated to a file.
pub(crate) fn allocated(path: &Path) -> u64 {
    fs::metadata(path).map(|m| m.blocks() * 512).unwrap_or(0)
}
