//! The loop of a resident program, and the other end of it.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// A failure, in words for whoever started the benchmark.
pub type Failure = Box<dyn std::error::Error>;

/// Serves until the end of standard input: `run` once for each byte, answered by the nanoseconds that it took.
///
/// `BALLAST_MB` in the environment makes the process that many MiB larger first, as real host programs are.
///
/// # Errors
/// The first failure of `run`, or of standard input or output.
pub fn serve(mut run: impl FnMut() -> Result<(), Failure>) -> Result<(), Failure> {
    let ballast = ballast()?;
    let mut input = io::stdin().lock();
    // Unbuffered: the lines of std's would cut an answer in two behind each byte that happens to be a newline.
    let mut output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let mut byte = [0];
    while input.read(&mut byte)? == 1 {
        let start = Instant::now();
        run()?;
        let elapsed = u64::try_from(start.elapsed().as_nanos())?;
        output.write_all(&elapsed.to_ne_bytes())?;
    }
    drop(ballast);
    Ok(())
}

/// Memory that is touched, so that it has pages and page tables.
fn ballast() -> Result<Vec<u8>, Failure> {
    let mebibytes: usize = match std::env::var("BALLAST_MB") {
        Ok(text) => text.parse().map_err(|_| format!("BALLAST_MB={text} is no number"))?,
        Err(_) => 0,
    };
    let mut ballast = Vec::new();
    ballast.resize(mebibytes << 20, 1u8);
    Ok(ballast)
}

/// A resident program that runs.
#[derive(Debug)]
pub struct Resident {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
}

impl Resident {
    /// Starts `command`. Its standard error is ours.
    ///
    /// # Errors
    /// When it cannot be executed.
    pub fn start(command: &[OsString], ballast: u64) -> Result<Self, Failure> {
        let (program, args) = command.split_first().ok_or("an empty command")?;
        let mut command = Command::new(program);
        if ballast > 0 {
            command.env("BALLAST_MB", ballast.to_string());
        }
        let mut child = command
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("cannot execute {}: {error}", Path::new(program).display()))?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take().ok_or("no pipe")?);
        Ok(Self { child, stdin, stdout })
    }

    /// Has the target run once; how long that took.
    ///
    /// # Errors
    /// When the program has ended, or does not answer within `timeout`.
    pub fn run(&mut self, timeout: Duration) -> Result<Duration, Failure> {
        self.stdin.as_mut().ok_or("closed")?.write_all(b".")?;
        if !crate::sys::readable(self.stdout.as_fd(), timeout)? {
            return Err(format!("no answer within {timeout:?}").into());
        }
        let mut answer = [0; 8];
        self.stdout.read_exact(&mut answer).map_err(|_| "it has ended")?;
        Ok(Duration::from_nanos(u64::from_ne_bytes(answer)))
    }
}

impl Drop for Resident {
    fn drop(&mut self) {
        drop(self.stdin.take()); // the end of its input ends it
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if matches!(self.child.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
