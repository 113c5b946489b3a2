//! The developer commands: `cargo xtask --help`.
//!
//! They check the workspace on this machine (`host`), and on other kernels, booted in guests.

mod cargo;
mod enosys;
mod error;
mod guest;
mod host;
mod libtest;
mod matrix;
mod packages;
mod page;
mod run;
mod skips;
mod sys;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::error::{Context, Error, Result};
use crate::guest::kernel::Kernel;

#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask", about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Checks everything: format, lints, documentation, tests on this machine and in guests.
    Test {
        /// Leave the guests out.
        #[arg(long, conflicts_with = "full")]
        host: bool,
        /// Every guest instead of a choice.
        #[arg(long)]
        full: bool,
        /// Write the lists of skipped tests anew instead of comparing with them.
        #[arg(long)]
        bless: bool,
    },
    /// Runs a command on another kernel, on a read-only view of this machine.
    ///
    /// Same directory, same files; own writes go to memory. The exit status is the command's; 124 when the time is
    /// over, 125 when the guest failed (its console is shown), 77 when the kernel cannot be had here.
    Guest {
        /// List the kernels and whether they can run here.
        #[arg(long, exclusive = true)]
        list: bool,
        #[arg(required_unless_present = "list")]
        kernel: Option<Kernel>,
        #[command(flatten)]
        options: guest::Options,
        #[arg(last = true, required_unless_present = "list", value_name = "COMMAND")]
        command: Vec<String>,
    },
    /// Runs the kernel tests, or a command, in every combination of kernel, cgroup layout and user.
    Matrix(matrix::Arguments),
    /// Writes docs/kernels.md from what the `doctor` example says in a guest of each kernel.
    Kernels {
        /// Only its lists of tests that skip, which needs no guest.
        #[arg(long)]
        skips: bool,
    },
    /// Runs a command for which named system calls answer ENOSYS, or another error.
    Enosys {
        /// E.g. `clone3,close_range=EPERM`.
        calls: String,
        #[arg(last = true, required = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
    #[command(hide = true)]
    KeepGuest,
    #[command(hide = true)]
    FirstProcess {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        argv: Vec<String>,
    },
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Test { host, full, bless } => test(host, full, bless),
        Command::Matrix(arguments) => matrix::run(&arguments).map(|findings| {
            matrix::print_closing(&findings);
            exit(matrix::passed(&findings))
        }),
        Command::Guest { list: true, .. } => {
            guest::list(&mut std::io::stdout()).map(|()| ExitCode::SUCCESS).context(|| "cannot write the list".into())
        }
        Command::Guest { kernel: Some(kernel), options, command, .. } => guest(kernel, &options, command),
        Command::Guest { kernel: None, .. } => Err(Error::new("no kernel")),
        Command::Kernels { skips: true } => page::write_skips().map(|()| ExitCode::SUCCESS),
        Command::Kernels { skips: false } => page::write().map(|()| ExitCode::SUCCESS),
        Command::Enosys { calls, command } => Err(enosys::run(&calls, &command)),
        Command::KeepGuest => return guest::keep(),
        Command::FirstProcess { argv } => return guest::first_process(&argv),
    };
    result.unwrap_or_else(|error| {
        eprintln!("xtask: {error}");
        ExitCode::FAILURE
    })
}

fn test(host: bool, full: bool, bless: bool) -> Result<ExitCode> {
    let mut total = host::run(bless)?;
    if !host {
        total.add(&matrix::tests(full, bless)?);
    }
    println!("{} passed, {} failed, {} skipped", total.passed, total.failed, total.skipped);
    Ok(exit(total.failed == 0))
}

fn exit(good: bool) -> ExitCode {
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn guest(kernel: Kernel, options: &guest::Options, command: Vec<String>) -> Result<ExitCode> {
    if let Err(error) = kernel.install() {
        eprintln!("SKIP {kernel}: {error}");
        eprintln!("0 passed, 0 failed, 1 skipped");
        return Ok(ExitCode::from(77));
    }
    let program = guest::program(command)?;
    let outcome = guest::run(kernel, options, vec![program], std::io::stdout())?;
    if let [result] = outcome.results.as_slice() {
        return Ok(ExitCode::from(result.status));
    }
    let (status, what) =
        if outcome.timed_out { (124, "its time was over") } else { (125, "it ended before the command") };
    eprintln!("xtask: guest {kernel}: {what}; the end of its console:\n{}", outcome.console);
    Ok(ExitCode::from(status))
}
