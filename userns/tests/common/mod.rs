//! What kernel tests share.
#![allow(dead_code, unused_macros, clippy::unwrap_used)]

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};

/// Skips the test, visibly, when the host lacks something; with `SANDBOX_TEST_REQUIRE_ALL=1` it fails instead.
macro_rules! require {
    ($name:literal, $($need:expr => $needs:expr),+ $(,)?) => {
        $(if !$need && $crate::common::skip($name, &$needs.to_string()) { return; })+
    };
}
pub(crate) use require;

/// Says on the real stderr (libtest captures `eprintln!`) that a test is skipped.
pub(crate) fn skip(name: &str, needs: &str) -> bool {
    assert!(std::env::var_os("SANDBOX_TEST_REQUIRE_ALL").is_none(), "{name} needs {needs}");
    // One write: lines of other threads must not come in between.
    let line = format!("SKIP {name}: needs {needs}; found uid {}\n", rustix::process::geteuid().as_raw());
    let _ = std::io::stderr().write_all(line.as_bytes());
    true
}

/// Whether this is a guest, up to a hundred times slower than a host: nobody measures there, and few turns must do.
pub(crate) fn guest() -> bool {
    std::env::var_os("SANDBOX_GUEST").is_some()
}

pub(crate) fn root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs one test of this very binary in another process, with an environment variable that tells it its part.
pub(crate) fn again(test: &str, part: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(PART, part);
    command
}

/// The part that this process plays in a test that runs itself again.
pub(crate) fn part() -> Option<String> {
    std::env::var(PART).ok()
}

const PART: &str = "SANDBOX_USERNS_TEST_PART";

/// A process in a new user namespace without maps, which waits for a line and then runs `script`.
pub(crate) struct Held {
    pub(crate) child: Child,
}

impl Held {
    /// `None` when the host allows no user namespaces.
    pub(crate) fn start(script: &str) -> Option<Self> {
        Self::start_with(&[], script)
    }

    /// The same with more options for unshare(1): `--keep-caps` lets the script change to any mapped id.
    pub(crate) fn start_with(options: &[&str], script: &str) -> Option<Self> {
        let script = format!("echo ready; read _; {script}");
        let mut child = Command::new("unshare")
            .arg("--user")
            .args(options)
            .args(["sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .ok()?;
        let mut line = String::new();
        // Byte by byte, so that nothing of what follows is swallowed.
        let out = child.stdout.as_mut()?;
        BufReader::with_capacity(1, out).read_line(&mut line).ok()?;
        if line == "ready\n" {
            Some(Self { child })
        } else {
            let _ = child.wait();
            None
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lets it go on, and gives all that it printed.
    pub(crate) fn finish(mut self) -> String {
        drop(self.child.stdin.take().map(|mut input| input.write_all(b"\n")));
        let output = self.child.wait_with_output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}
