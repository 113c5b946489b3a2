//! The developer commands: `cargo xtask --help`.
//!
//! They check the workspace on this machine (`host`), and on other kernels, booted in guests.

#![expect(dead_code, reason = "the guest commands use the rest")]

mod cargo;
mod error;
mod host;
mod libtest;
mod packages;
mod run;
mod skips;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::error::Result;

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
        #[arg(long)]
        host: bool,
        /// Write the list of skipped tests anew instead of comparing with it.
        #[arg(long)]
        bless: bool,
    },
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Test { host: _, bless } => test(bless),
    };
    result.unwrap_or_else(|error| {
        eprintln!("xtask: {error}");
        ExitCode::FAILURE
    })
}

fn test(bless: bool) -> Result<ExitCode> {
    let total = host::run(bless)?;
    println!("{} passed, {} failed, {} skipped", total.passed, total.failed, total.skipped);
    Ok(if total.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
