//! A batch as a judge runs it: each program of a directory on its inputs, in prepared sandboxes, with a verdict each.
//!
//! `cargo run --release --example judge -- DIR [--jobs N] [--time 1s] [--memory 64M] [--json]`. A program is an executable
//! file; its inputs are `PROGRAM.in` and `PROGRAM.*.in`, or all `.in` files where it has none of its own; the expected
//! output of `X.in` is `X.out`, compared without trailing white space.

use std::error::Error;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use clap::Parser;
use comfy_table::Table;
use indicatif::{ProgressBar, ProgressStyle};
use sandbox::{End, LimitKind, Output, Sandbox};
use sandbox_examples::parse;
use serde::Serialize;

/// Where the programs lie inside.
const INSIDE: &str = "/judge";
const OUTPUT_MAX: u64 = 64 << 20;
/// Wall time allowed for each second of CPU time, and on top of it: for machines that are busy.
const WALL_FACTOR: u32 = 3;
const WALL_EXTRA: Duration = Duration::from_secs(1);

/// Runs each program of DIR on its inputs and judges the output.
#[derive(Parser)]
#[command(name = "judge")]
struct Arguments {
    /// Programs, `.in` and `.out` files
    directory: PathBuf,
    /// Runs at the same time (default: the number of CPUs)
    #[arg(long)]
    jobs: Option<usize>,
    /// CPU time of each run
    #[arg(long, default_value = "1s", value_parser = parse::time)]
    time: Duration,
    /// Memory of each run
    #[arg(long, default_value = "64M", value_parser = parse::bytes)]
    memory: u64,
    /// One JSON document instead of a table
    #[arg(long)]
    json: bool,
}

/// One program on one input.
#[derive(Debug)]
struct Case {
    program: String,
    input: PathBuf,
}

#[derive(Debug, Serialize)]
struct Judgement {
    program: String,
    input: String,
    verdict: &'static str,
    time_ns: u64,
    memory_peak: Option<u64>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match judge(&arguments) {
        Ok(judgements) if arguments.json => match serde_json::to_string(&judgements) {
            Ok(document) => {
                println!("{document}");
                ExitCode::SUCCESS
            }
            Err(error) => fail(&error),
        },
        Ok(judgements) => {
            println!("{}", table(&judgements));
            ExitCode::SUCCESS
        }
        Err(error) => fail(error.as_ref()),
    }
}

fn fail(error: &dyn Error) -> ExitCode {
    eprintln!("judge: {error}");
    ExitCode::FAILURE
}

fn judge(arguments: &Arguments) -> Result<Vec<Judgement>, Box<dyn Error>> {
    let directory =
        arguments.directory.canonicalize().map_err(|e| format!("{}: {e}", arguments.directory.display()))?;
    let cases = cases(&directory)?;
    let jobs =
        arguments.jobs.or_else(|| std::thread::available_parallelism().ok().map(usize::from)).unwrap_or(1).max(1);
    let sandbox = Sandbox::builder()
        .bind_read_only(&directory, INSIDE)
        .memory_max(arguments.memory)
        .pids_max(64)
        .cpu_time_max(arguments.time)
        .wall_time_max(arguments.time * WALL_FACTOR + WALL_EXTRA)
        .output_max(OUTPUT_MAX)
        .prepared((jobs * 2).min(cases.len()))
        .build()?;
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {msg}")?;
    let bar =
        if arguments.json { ProgressBar::hidden() } else { ProgressBar::new(cases.len() as u64) }.with_style(style);
    let (next, judged) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    bar.set_message(case.program.clone());
                    let result = run(&sandbox, case);
                    judged.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(result);
                    bar.inc(1);
                }
            });
        }
    });
    bar.finish_and_clear();
    for leftover in sandbox.close() {
        eprintln!("judge: left behind: {leftover}");
    }
    let results = judged.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut judgements = results.into_iter().collect::<Result<Vec<_>, _>>()?;
    judgements.sort_by(|a, b| (&a.program, &a.input).cmp(&(&b.program, &b.input)));
    Ok(judgements)
}

/// Each program with each of its inputs.
fn cases(directory: &Path) -> Result<Vec<Case>, Box<dyn Error>> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    files.sort();
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let has_extension = |path: &Path, wanted: &str| path.extension().is_some_and(|found| found == wanted);
    let inputs: Vec<&PathBuf> = files.iter().filter(|path| has_extension(path, "in")).collect();
    let programs = files.iter().filter(|path| {
        let executable = path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0);
        executable && !has_extension(path, "in") && !has_extension(path, "out")
    });
    let mut cases = Vec::new();
    for program in programs.map(|path| name(path)) {
        let own = |input: &PathBuf| name(input).starts_with(&format!("{program}."));
        let any_own = inputs.iter().any(|input| own(input));
        let chosen = inputs.iter().filter(|input| own(input) || !any_own);
        cases.extend(chosen.map(|input| Case { program: program.clone(), input: (*input).clone() }));
    }
    if cases.is_empty() {
        return Err(format!("{} has no program with an input", directory.display()).into());
    }
    Ok(cases)
}

fn run(sandbox: &Sandbox, case: &Case) -> Result<Judgement, sandbox::Error> {
    let mut command = sandbox.command(format!("{INSIDE}/{}", case.program));
    if let Ok(input) = File::open(&case.input) {
        command.stdin(input);
    }
    let output = command.output()?;
    let usage = &output.outcome.usage;
    Ok(Judgement {
        program: case.program.clone(),
        input: case.input.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
        verdict: verdict(&output, &case.input.with_extension("out")),
        time_ns: u64::try_from((usage.cpu_user + usage.cpu_system).as_nanos()).unwrap_or(u64::MAX),
        memory_peak: usage.memory_peak,
    })
}

fn verdict(output: &Output, expected: &Path) -> &'static str {
    match output.outcome.end {
        End::WallTime | End::CpuTime => "TLE",
        End::Memory => "MLE",
        End::Output => "OLE",
        // A language runtime that survives the death of its child, or gives up by itself, says so by its exit status.
        _ if !output.outcome.success() && output.outcome.hit(LimitKind::Memory).is_some() => "MLE",
        _ if !output.outcome.success() => "RE",
        _ => match fs::read(expected) {
            Ok(expected) if lines(&expected) != lines(&output.stdout) => "WA",
            _ => "OK",
        },
    }
}

/// The lines of an output without white space at their ends and without empty lines at its end.
fn lines(text: &[u8]) -> Vec<&[u8]> {
    let mut lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end).collect();
    while lines.last().is_some_and(|line| line.is_empty()) {
        lines.pop();
    }
    lines
}

fn table(judgements: &[Judgement]) -> Table {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::NOTHING).set_header([
        "program",
        "input",
        "verdict",
        "CPU ms",
        "memory MiB",
    ]);
    for judgement in judgements {
        let memory = judgement
            .memory_peak
            .map_or_else(|| "unknown".to_owned(), |bytes| format!("{:.1}", bytes as f64 / 1048576.0));
        let time = format!("{:.1}", judgement.time_ns as f64 / 1e6);
        table.add_row([&judgement.program, &judgement.input, judgement.verdict, &time, &memory]);
    }
    table
}

#[test]
fn main_works() {
    assert_eq!(lines(b"a \nb\n\n"), lines(b"a\nb"));
    assert_ne!(lines(b"a\n\nb"), lines(b"a\nb"));
}
