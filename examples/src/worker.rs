//! A process of this same program that does one small thing at a time, when told, and says what came of it.

use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Set in a worker's environment.
const MARK: &str = "SANDBOX_EXAMPLE_WORKER";

/// A worker process; killed and reaped when dropped.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Worker {
    /// Starts this program again as a worker, which waits for its first order.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start() -> io::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        // Below `cargo test` the program is the test harness, which must run nothing but the entry below.
        command.args(["worker_entry", "--nocapture", "--test-threads=1"]);
        let mut child = command.env(MARK, "1").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let missing = || io::Error::other("no pipe to the worker");
        let orders = child.stdin.take().ok_or_else(missing)?;
        let answers = BufReader::new(child.stdout.take().ok_or_else(missing)?);
        Ok(Self { child, orders, answers })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Gives an order and waits for the answer.
    ///
    /// # Errors
    /// When the worker has ended.
    pub fn order(&mut self, order: &str) -> io::Result<String> {
        self.tell(order)?;
        loop {
            let mut line = String::new();
            if self.answers.read_line(&mut line)? == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("the worker ended at {order:?}")));
            }
            if let Some(answer) = line.strip_prefix("answer: ") {
                return Ok(answer.trim_end().to_owned());
            }
        }
    }

    /// Gives an order and does not wait.
    ///
    /// # Errors
    /// When the worker has ended.
    pub fn tell(&mut self, order: &str) -> io::Result<()> {
        writeln!(self.orders, "{order}")
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// As [`Child::wait`].
    pub fn wait(&mut self) -> io::Result<std::process::ExitStatus> {
        self.child.wait()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// In a worker: carries out orders until there are no more, and never returns. Elsewhere: does nothing. To be called first
/// in `main`, and in a test named `worker_entry`.
pub fn serve(mut carry_out: impl FnMut(&str) -> String) {
    if std::env::var_os(MARK).is_none() {
        return;
    }
    for order in io::stdin().lines() {
        let Ok(order) = order else { break };
        let answer = carry_out(&order);
        let mut out = io::stdout();
        let _ = writeln!(out, "\nanswer: {answer}");
        let _ = out.flush();
    }
    std::process::exit(0);
}
