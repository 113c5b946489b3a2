//! What the kernel tests share: saying what a test needs, sandboxes to run things in, and programs to run.
//!
//! A program is either a shell script, or this test binary again: it is bound at `/payload`, and an act ([`acts::Act`]) named in
//! its environment is all it does then. The same acts run without a sandbox, to show that an attack works there.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

pub mod acts;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use sandbox::{Builder, Child, Error, Feature, Output, Sandbox, Stdio, Upper};

/// Returns from the test with a line on stderr when a need is not met; fails when `SANDBOX_TEST_REQUIRE_ALL=1`.
#[macro_export]
macro_rules! require {
    ($name:literal, $met:expr, $needs:expr, $found:expr) => {
        if !$met {
            $crate::common::skip($name, &$needs.to_string(), &$found.to_string());
            return;
        }
    };
}

/// A sandbox, or a skipped test where this host cannot enforce what it asks for.
#[macro_export]
macro_rules! sandbox_or_skip {
    ($name:literal, $needs:literal, $change:expr) => {
        match $crate::common::build($change) {
            Err(error @ sandbox::Error::Unsupported { .. }) => {
                $crate::common::skip($name, $needs, &error.to_string());
                return;
            }
            built => built.unwrap(),
        }
    };
}

/// Past libtest's capture, which takes only what the print macros write.
pub fn skip(name: &str, needs: &str, found: &str) {
    let line = format!("SKIP {name}: needs {needs}; found {found}\n");
    assert!(std::env::var("SANDBOX_TEST_REQUIRE_ALL").as_deref() != Ok("1"), "{line}");
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Long enough for the slowest guest.
pub const SOON: Duration = Duration::from_secs(60);
/// The name of the test that acts, in each binary.
const ACTOR: &str = "payload";
const ACT: &str = "SANDBOX_PAYLOAD";
pub const ARGS: [&str; 4] = ["--exact", ACTOR, "--nocapture", "--test-threads=1"];

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether this is a guest kernel, on which nobody measures how long something takes.
pub fn is_guest() -> bool {
    std::env::var_os("SANDBOX_GUEST").is_some()
}

/// Whether fork(2) may be refused without bringing the kernel down: User-Mode Linux 6.12 panics in mmput then.
pub fn survives_refused_forks() -> bool {
    let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
    !(read("/proc/cpuinfo").contains("User Mode Linux") && read("/proc/sys/kernel/osrelease").starts_with("6.12"))
}

/// Where this test binary lies, for a bind.
pub fn payload() -> PathBuf {
    std::env::current_exe().unwrap()
}

/// How many instances every sandbox of these tests is to keep ready: `SANDBOX_TEST_PREPARED=2` runs the same tests with
/// pools.
pub fn prepared() -> usize {
    std::env::var("SANDBOX_TEST_PREPARED").map_or(0, |number| number.parse().unwrap())
}

/// The defaults, this binary at `/payload`, and what `change` says.
pub fn build(change: impl FnOnce(&mut Builder)) -> Result<Sandbox, Error> {
    let mut builder = Sandbox::builder();
    builder.bind_read_only(payload(), "/payload").prepared(prepared());
    change(&mut builder);
    builder.build()
}

pub fn sandbox(change: impl FnOnce(&mut Builder)) -> Sandbox {
    build(change).unwrap()
}

/// An overlay with the host's programs bound into it. Others than root have their own id alone, so that their files are the
/// program's.
pub fn build_overlay(lower: &Path, upper: Upper, change: impl FnOnce(&mut Builder)) -> Result<Sandbox, Error> {
    build(|b| {
        // One instance at a time uses a directory, so none can wait with it.
        if matches!(upper, Upper::Dir(_)) {
            b.prepared(0);
        }
        b.overlay(lower, upper);
        for directory in ["/usr", "/bin", "/lib", "/lib64"] {
            if fs::exists(directory).unwrap() {
                b.bind_read_only(directory, directory);
            }
        }
        if !is_root() {
            b.off(Feature::IdLease);
        }
        change(b);
    })
}

/// A shell script in a fresh instance.
pub fn sh(sandbox: &Sandbox, script: &str) -> Output {
    sandbox.command("/bin/sh").args(["-c", script]).output().unwrap()
}

/// An act, ready to be started.
pub fn act(sandbox: &Sandbox, act: &str) -> sandbox::Command {
    acting(sandbox.command("/payload"), act)
}

pub fn acting(mut command: sandbox::Command, act: &str) -> sandbox::Command {
    command.args(ARGS).env(ACT, act);
    command
}

/// How a shell inside runs an act.
pub fn act_by_shell(act: &str) -> String {
    format!("{ACT}='{act}' /payload {}", ARGS.join(" "))
}

/// An act as an ordinary program of this host.
pub fn unprotected(act: &str) -> Command {
    let mut command = Command::new(payload());
    command.args(ARGS).env(ACT, act);
    command
}

/// What an act says: `KEY VALUE` on a line.
pub fn said(stdout: &[u8], key: &str) -> String {
    let text = String::from_utf8_lossy(stdout);
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    lines.next().map_or_else(|| panic!("no `{key}` in what was said:\n{text}"), str::to_owned)
}

/// What an act says by the act's own key, run in a sandbox. The act must have succeeded.
pub fn ask(sandbox: &Sandbox, what: &str, key: &str) -> String {
    let output = act(sandbox, what).output().unwrap();
    assert!(output.outcome.success(), "{what}: {output:?} {}", String::from_utf8_lossy(&output.stderr));
    said(&output.stdout, key)
}

/// The same without a sandbox.
pub fn ask_unprotected(what: &str, key: &str) -> String {
    let output = unprotected(what).output().unwrap();
    assert!(output.status.success(), "{what}: {output:?}");
    said(&output.stdout, key)
}

pub fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

/// A line `Key:  value` of a status file of `/proc`.
pub fn field(status: &str, key: &str) -> String {
    let mut lines = status.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    lines.next().map_or_else(|| panic!("no {key} in:\n{status}"), |value| value.trim().to_owned())
}

/// A line of `/proc/self/limits`.
pub fn field_of_limits(name: &str) -> String {
    let limits = fs::read_to_string("/proc/self/limits").unwrap();
    let mut lines = limits.lines().filter_map(|line| line.strip_prefix(name));
    lines.next().map_or_else(|| panic!("no {name} in:\n{limits}"), |line| line.trim().to_owned())
}

/// A program that sleeps, in a fresh instance.
pub fn sleeper(sandbox: &Sandbox) -> Child {
    let mut command = sandbox.command("/bin/sleep");
    command.arg("1000").stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

/// Tries until it holds or the time is over.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < until, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a process with this number is there and not a zombie.
pub fn lives(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    !status.is_empty() && !field(&status, "State").starts_with(['Z', 'X'])
}

/// Cgroups of sandboxes that process `pid` has made.
pub fn cgroups_of(pid: u32) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mut found = Vec::new();
    for mount in mounts.lines() {
        let mut words = mount.split(' ').skip(1);
        let (Some(place), Some(kind)) = (words.next(), words.next()) else { continue };
        if kind.starts_with("cgroup") {
            find_cgroups(Path::new(place), &format!("-{pid}-"), &mut found);
        }
    }
    found
}

fn find_cgroups(directory: &Path, of: &str, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(sandbox::CGROUP_PREFIX) && name.contains(of) {
            found.push(entry.path());
        } else {
            find_cgroups(&entry.path(), of, found);
        }
    }
}

/// Children of this process, ended ones included, the test threads' own helpers excluded.
pub fn children() -> Vec<String> {
    let own = std::process::id().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((head, tail)) = stat.rsplit_once(')') else { continue };
        if tail.split_whitespace().nth(1) == Some(&own) {
            found.push(format!("{head}){tail}"));
        }
    }
    found
}

/// Says what process `pid` has left on this machine, now or after a while.
pub fn nothing_is_left_of(pid: u32) {
    eventually(&format!("no cgroup of process {pid}: {:?}", cgroups_of(pid)), || cgroups_of(pid).is_empty());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains("/run/sandbox"), "{mounts}");
}

/// Where a disk with project quota is, in guests that have one.
pub fn test_disk() -> PathBuf {
    std::env::var_os("SANDBOX_TEST_DISK").map_or_else(|| PathBuf::from("/mnt/quota"), PathBuf::from)
}

/// A directory that vanishes with the test.
pub struct Scratch(pub PathBuf);

impl Scratch {
    /// Below `/tmp`, where every user may search.
    pub fn new(name: &str) -> Self {
        Self::on(&std::env::temp_dir(), name)
    }

    pub fn on(parent: &Path, name: &str) -> Self {
        let path = parent.join(format!("sandbox-test-{}-{name}", std::process::id()));
        fs::create_dir(&path).unwrap();
        mode(&path, 0o755);
        Self(path)
    }

    pub fn dir(&self, name: &str, bits: u32) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(&path).unwrap();
        mode(&path, bits);
        path
    }

    pub fn file(&self, name: &str, content: &str, bits: u32) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, content).unwrap();
        mode(&path, bits);
        path
    }

    /// A file to be executed. Another process writes it: a child that one of our threads makes meanwhile would hold a
    /// descriptor of ours for writing, and until it has executed something else, the file is busy.
    pub fn program(&self, name: &str, content: &[u8], bits: u32) -> PathBuf {
        let (written, path) = (self.0.join("written"), self.0.join(name));
        fs::write(&written, content).unwrap();
        copy(&written, &path, bits);
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
        // The host ids that were kept for what was bound of it.
        let _ = sandbox::forget_tree(&self.0, None);
    }
}

/// Copies by another process, for the reason that [`Scratch::program`] gives.
pub fn copy(from: &Path, to: &Path, bits: u32) {
    assert!(Command::new("cp").args([from, to]).status().unwrap().success());
    mode(to, bits);
}

pub fn mode(path: &Path, bits: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(bits)).unwrap();
}

/// Whether ids come from a range of the sandbox's own.
pub fn has_lease(sandbox: &Sandbox) -> bool {
    sandbox.plan().feature(Feature::IdLease).is_some_and(|entry| entry.enforced.is_some())
}
