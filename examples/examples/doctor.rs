//! Tells what this host can do, feature by feature, and what would help where it cannot.
//!
//! `cargo run --release --example doctor -- [--json]`; exit status 0 when a sandbox with every default runs here.

use std::process::ExitCode;

use comfy_table::{ContentArrangement, Table};
use sandbox::Sandbox;
use sandbox_examples::json;

/// Columns of the table.
const WIDTH: u16 = 120;

fn main() -> ExitCode {
    let support = Sandbox::probe();
    match std::env::args().nth(1).as_deref() {
        Some("--json") => println!("{}", json::support(&support)),
        None => {
            let mut table = Table::new();
            table
                .load_preset(comfy_table::presets::NOTHING)
                .set_content_arrangement(ContentArrangement::Dynamic)
                .set_width(WIDTH)
                .set_header(["feature", "state", "detail", "fix"]);
            for finding in &support.findings {
                table.add_row([&finding.feature.to_string(), finding.state.name(), &finding.detail, &finding.fix]);
            }
            println!("{table}");
        }
        Some(other) => {
            eprintln!("doctor: unknown argument {other}; usage: doctor [--json]");
            return ExitCode::from(2);
        }
    }
    match support.runs {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("doctor: a default sandbox does not run here: {why}");
            ExitCode::FAILURE
        }
    }
}
