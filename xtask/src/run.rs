//! Runs a program with its output passed on as it comes, and a time limit.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::error::{Context, Result};

/// How a program ended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ended {
    Exited(ExitStatus),
    /// Killed by us at the limit.
    TimedOut,
}

impl Ended {
    pub(crate) fn success(self) -> bool {
        matches!(self, Self::Exited(status) if status.success())
    }
}

/// Runs `command`, both outputs in one stream into `sink`, at most for `limit`.
///
/// Returns when the program itself has ended: what it left running may hold the pipe for longer.
pub(crate) fn tee(mut command: Command, limit: Duration, mut sink: impl FnMut(&[u8])) -> Result<Ended> {
    let name = command.get_program().to_string_lossy().into_owned();
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).context(|| "cannot make a pipe".into())?;
    fcntl_setfl(&reader, OFlags::NONBLOCK).context(|| "cannot make a pipe non-blocking".into())?;
    let both = writer.try_clone().context(|| "cannot duplicate a pipe".into())?;
    command.stdin(Stdio::null()).stdout(writer).stderr(both);
    let mut child = command.spawn().context(|| format!("cannot run {name}"))?;
    drop(command); // and with it our ends of the pipe
    let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).context(|| format!("cannot watch {name}"))?;

    let deadline = Instant::now() + limit;
    let mut open = true;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            pidfd_send_signal(&pidfd, Signal::KILL).context(|| format!("cannot kill {name}"))?;
            child.wait().context(|| format!("cannot wait for {name}"))?;
            drain(&reader, &mut sink);
            return Ok(Ended::TimedOut);
        }
        let ended = wait_for(&pidfd, open.then_some(&reader), left).context(|| format!("cannot wait for {name}"))?;
        open = open && drain(&reader, &mut sink);
        if ended {
            let status = child.wait().context(|| format!("cannot wait for {name}"))?;
            drain(&reader, &mut sink);
            return Ok(Ended::Exited(status));
        }
    }
}

/// True when the process has ended; false when there is output or the time is over.
fn wait_for(pidfd: &OwnedFd, output: Option<&OwnedFd>, limit: Duration) -> io::Result<bool> {
    let mut fds = vec![PollFd::new(pidfd, PollFlags::IN)];
    fds.extend(output.map(|fd| PollFd::new(fd, PollFlags::IN)));
    let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
    match poll(&mut fds, Some(&limit)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(!fds[0].revents().is_empty()),
        Err(error) => Err(error.into()),
    }
}

/// Reads what is there; false at the end of the stream.
fn drain(reader: &OwnedFd, sink: &mut impl FnMut(&[u8])) -> bool {
    let mut buffer = [0; 16 << 10];
    loop {
        match rustix::io::read(reader, &mut buffer) {
            Ok(0) => return false,
            Ok(n) => sink(&buffer[..n]),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return error == rustix::io::Errno::AGAIN,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> (Ended, String) {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let mut text = Vec::new();
        let ended = tee(command, limit, |bytes| text.extend_from_slice(bytes)).unwrap();
        (ended, String::from_utf8(text).unwrap())
    }

    #[test]
    fn both_outputs_come_in_order() {
        let (ended, text) = shell("echo out; echo err >&2; exit 3", Duration::from_secs(60));
        assert_eq!(text, "out\nerr\n");
        assert!(matches!(ended, Ended::Exited(status) if status.code() == Some(3)));
    }

    #[test]
    fn the_limit_kills() {
        let (ended, text) = shell("echo early; exec sleep 600", Duration::from_millis(300));
        assert_eq!(text, "early\n");
        assert!(matches!(ended, Ended::TimedOut));
    }

    #[test]
    fn a_daemon_that_holds_the_output_is_not_waited_for() {
        let (ended, _) = shell("sleep 5 & exit 0", Duration::from_secs(60));
        assert!(ended.success());
    }
}
