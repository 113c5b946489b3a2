//! `peers`: what a fresh sandbox costs, beside `posix_spawn` and beside what else there is.
//!
//! All rows are resident programs (see the library). Each round runs every row once, in a new random order, so that the
//! drift of a shared machine hits all alike; the figure that counts is the **median of the ratios to `posix_spawn` of the
//! same round**. Two targets: `/bin/true`, whose own start hides much, and a static file of one page, behind which
//! nothing hides. Afterwards each row runs back to back for its sustained rate.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use plotters::prelude::*;
use sandbox_benches::command_lines::{commands, installed, on_v1_alone};
use sandbox_benches::random::Random;
use sandbox_benches::report::{self, Machine};
use sandbox_benches::resident::{Failure, Resident};
use sandbox_benches::stats::{median, median_ratio, quantile};
use sandbox_benches::tiny::Tiny;
use serde::Serialize;

const BASE: &str = "posix_spawn";
/// No run takes longer, unless it hangs.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Measure our sandboxes and their peers in one interleaved run.
#[derive(Parser)]
struct Options {
    /// Fewer rounds: a first look.
    #[arg(long)]
    quick: bool,
    /// Print the JSON document instead of the table.
    #[arg(long)]
    json: bool,
    /// Quiet time before each run, in milliseconds.
    #[arg(long, default_value_t = 0, value_name = "MS")]
    gap: u64,
    /// MiB that every resident program touches first: host programs are seldom small.
    #[arg(long, default_value_t = 0, value_name = "MB")]
    ballast: u64,
    /// Rounds (default: 100, with --quick 20).
    #[arg(long)]
    rounds: Option<usize>,
    /// Only these rows, and posix_spawn.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// One more row: NAME=COMMAND, a resident program whose argument `{}` is the target.
    #[arg(long, value_name = "NAME=COMMAND")]
    row: Vec<String>,
    /// Use this file as the tiny target instead of making one.
    #[arg(long, value_name = "FILE")]
    tiny: Option<PathBuf>,
    /// Where the JSON document and the charts go (default: the workspace's docs/).
    #[arg(long, value_name = "DIR")]
    docs: Option<PathBuf>,
}

fn main() -> ExitCode {
    match measure(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peers: {error}");
            ExitCode::FAILURE
        }
    }
}

/// One thing to measure: its name, and the resident program for a target.
struct Row {
    name: String,
    command: Vec<OsString>,
}

/// A row of the result. Times are in microseconds.
#[derive(Serialize)]
struct Figures {
    name: String,
    rounds: usize,
    median_us: Option<f64>,
    p10_us: Option<f64>,
    p90_us: Option<f64>,
    p99_us: Option<f64>,
    /// Median of the ratios to `posix_spawn` of the same round.
    ratio: Option<f64>,
    /// Runs per second, back to back.
    rate: Option<f64>,
    /// Why figures are missing.
    failure: Option<String>,
}

#[derive(Serialize)]
struct Target {
    name: String,
    rows: Vec<Figures>,
}

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    machine: Machine,
    rounds: usize,
    gap_ms: u64,
    ballast_mb: u64,
    missing: Vec<String>,
    targets: Vec<Target>,
}

fn measure(options: &Options) -> Result<(), Failure> {
    let rounds = options.rounds.unwrap_or(if options.quick { 20 } else { 100 });
    let machine = Machine::before();
    let made;
    let tiny = match &options.tiny {
        Some(file) => file.clone(),
        None => {
            made = Tiny::write(own_directory()?.as_path())?;
            made.path().to_owned()
        }
    };
    let scratch = tempfile::Builder::new().prefix("sandbox-benches-").tempdir()?;
    let mut missing = Vec::new();
    let mut targets = Vec::new();
    for (name, path) in [("/bin/true", Path::new("/bin/true")), ("tiny", &tiny)] {
        missing.clear();
        let rows = rows(options, path, &scratch.path().join(name.trim_start_matches("/bin/")), &mut missing)?;
        targets.push(Target { name: name.to_owned(), rows: measure_target(options, name, rows, rounds)? });
    }
    let report = Report {
        machine: machine.after()?,
        rounds,
        gap_ms: options.gap,
        ballast_mb: options.ballast,
        missing,
        targets,
    };
    keep(options, &report)?;
    let mut out = std::io::stdout().lock();
    if options.json {
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    } else {
        print(&mut out, &report)?;
    }
    Ok(())
}

/// Where the benchmark programs lie.
fn own_directory() -> Result<PathBuf, Failure> {
    let own = std::env::current_exe()?;
    Ok(own.parent().ok_or("a program without a directory")?.to_owned())
}

/// All rows for one target, but what is not installed.
fn rows(options: &Options, target: &Path, scratch: &Path, missing: &mut Vec<String>) -> Result<Vec<Row>, Failure> {
    let here = own_directory()?;
    let (serve, serve_peer) = (here.join("serve"), here.join("serve_peer"));
    for program in [&serve, &serve_peer] {
        if !program.is_file() {
            let name = program.display();
            return Err(format!("no {name}: build all programs with `cargo build --release -p sandbox-benches`").into());
        }
    }
    let mut rows = vec![Row { name: BASE.to_owned(), command: line(&serve_peer, [BASE.as_ref(), target.as_os_str()]) }];
    for mode in ["prepared", "warm", "one-shot", "no-net"] {
        for limits in [false, true] {
            let mut command = line(&serve, [target.as_os_str(), mode.as_ref()]);
            command.extend(limits.then(|| "limits".into()));
            rows.push(Row { name: if limits { format!("{mode} limits") } else { mode.to_owned() }, command });
        }
    }
    rows.push(Row {
        name: "hakoniwa".to_owned(),
        command: line(&serve_peer, ["hakoniwa".as_ref(), target.as_os_str()]),
    });
    for (name, command) in commands(target, scratch)? {
        if installed(name) {
            let mut line = line(&serve_peer, ["command".as_ref()]);
            line.extend(command);
            let command = if name == "crun" { on_v1_alone(line) } else { line };
            rows.push(Row { name: name.to_owned(), command });
        } else {
            missing.push(name.to_owned());
        }
    }
    for row in &options.row {
        let (name, command) = row.split_once('=').ok_or("--row wants NAME=COMMAND")?;
        let words = command.split_whitespace();
        let command = words.map(|word| if word == "{}" { target.into() } else { word.into() }).collect();
        rows.push(Row { name: name.to_owned(), command });
    }
    if !options.only.is_empty() {
        rows.retain(|row| row.name == BASE || options.only.contains(&row.name));
    }
    Ok(rows)
}

fn line<'a>(program: &Path, args: impl IntoIterator<Item = &'a std::ffi::OsStr>) -> Vec<OsString> {
    std::iter::once(program.into()).chain(args.into_iter().map(OsString::from)).collect()
}

/// What one row has measured so far.
struct Measured {
    row: Row,
    resident: Option<Resident>,
    /// Microseconds, by round.
    times: Vec<Option<f64>>,
    rate: Option<f64>,
    failure: Option<String>,
}

impl Measured {
    fn run(&mut self) -> Option<f64> {
        let resident = self.resident.as_mut()?;
        match resident.run(TIMEOUT) {
            Ok(time) => Some(time.as_secs_f64() * 1e6),
            Err(error) => {
                self.failure = Some(error.to_string());
                self.resident = None;
                None
            }
        }
    }
}

fn measure_target(options: &Options, target: &str, rows: Vec<Row>, rounds: usize) -> Result<Vec<Figures>, Failure> {
    let mut measured: Vec<Measured> = rows
        .into_iter()
        .map(|row| {
            let started = Resident::start(&row.command, options.ballast);
            let failure = started.as_ref().err().map(ToString::to_string);
            Measured { row, resident: started.ok(), times: Vec::new(), rate: None, failure }
        })
        .collect();
    let warm_up = 3;
    let slices = if options.quick { 2 } else { 5 };
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}")?;
    let bar = ProgressBar::new((warm_up + rounds + slices) as u64).with_style(style).with_message(target.to_owned());
    let mut random = Random::default();
    let mut order: Vec<usize> = (0..measured.len()).collect();
    for round in 0..warm_up + rounds {
        random.shuffle(&mut order);
        for &index in &order {
            let Some(row) = measured.get_mut(index) else { continue };
            std::thread::sleep(Duration::from_millis(options.gap));
            let time = row.run();
            if round >= warm_up {
                row.times.push(time);
            }
        }
        bar.inc(1);
    }
    // Back to back, in slices, so that a busy moment does not hit one row alone.
    let slice = Duration::from_millis(if options.quick { 200 } else { 400 });
    let mut runs = vec![(0u32, Duration::ZERO); measured.len()];
    for _ in 0..slices {
        random.shuffle(&mut order);
        for &index in &order {
            let (Some(row), Some(runs)) = (measured.get_mut(index), runs.get_mut(index)) else { continue };
            let start = Instant::now();
            while start.elapsed() < slice && row.run().is_some() {
                runs.0 += 1;
            }
            runs.1 += start.elapsed();
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    for (row, (count, time)) in measured.iter_mut().zip(runs) {
        row.rate = (count > 0 && row.resident.is_some()).then(|| f64::from(count) / time.as_secs_f64());
    }
    Ok(figures(&measured))
}

fn figures(measured: &[Measured]) -> Vec<Figures> {
    let base: &[Option<f64>] = measured.iter().find(|row| row.row.name == BASE).map_or(&[], |row| &row.times);
    measured
        .iter()
        .map(|row| {
            let times: Vec<f64> = row.times.iter().copied().flatten().collect();
            Figures {
                name: row.row.name.clone(),
                rounds: times.len(),
                median_us: median(&times),
                p10_us: quantile(&times, 0.1),
                p90_us: quantile(&times, 0.9),
                p99_us: quantile(&times, 0.99),
                ratio: median_ratio(&row.times, base),
                rate: row.rate,
                failure: row.failure.clone(),
            }
        })
        .collect()
}

fn print(out: &mut impl Write, report: &Report) -> Result<(), Failure> {
    let Report { machine, rounds, gap_ms, ballast_mb, .. } = report;
    writeln!(out, "{machine}")?;
    writeln!(out, "{rounds} rounds, {gap_ms} ms quiet before each run, {ballast_mb} MiB touched by each caller")?;
    for target in &report.targets {
        writeln!(out)?;
        let head = ["x P", "median us", "p10", "p90", "p99", "runs/s"].map(|word| format!("{word:>10}")).concat();
        writeln!(out, "{:<20}{head}", target.name)?;
        for row in &target.rows {
            let word = |value: Option<f64>, places: usize| {
                value.map_or_else(|| format!("{:>10}", "-"), |value| format!("{value:>10.places$}"))
            };
            let times = [row.median_us, row.p10_us, row.p90_us, row.p99_us].map(|time| word(time, 1)).concat();
            let failure = row.failure.as_deref().map(|why| format!("  {why}")).unwrap_or_default();
            writeln!(out, "{:<20}{}{times}{}{failure}", row.name, word(row.ratio, 2), word(row.rate, 0))?;
        }
    }
    if !report.missing.is_empty() {
        writeln!(out, "\nnot installed: {}", report.missing.join(", "))?;
    }
    Ok(())
}

/// Writes the JSON document and one chart for each target.
fn keep(options: &Options, report: &Report) -> Result<(), Failure> {
    let mut stem = if options.quick { "quick".to_owned() } else { "peers".to_owned() };
    for (word, value) in [("gap", options.gap), ("ballast", options.ballast)] {
        if value > 0 {
            stem.push_str(&format!("-{word}{value}"));
        }
    }
    let directory = report::keep(report, options.docs.as_deref(), &stem)?;
    for target in &report.targets {
        let name = target.name.trim_start_matches("/bin/");
        chart(target, &directory.join(format!("{stem}-{name}.svg")))?;
    }
    Ok(())
}

/// Bars of the ratios to posix_spawn.
fn chart(target: &Target, path: &Path) -> Result<(), Failure> {
    let bars: Vec<(&str, f64)> = target.rows.iter().filter_map(|row| Some((row.name.as_str(), row.ratio?))).collect();
    let most = bars.iter().map(|(_, ratio)| *ratio).fold(1.0, f64::max);
    let (width, line, left) = (760, 26, 150);
    let height = 60 + line * u32::try_from(bars.len())?;
    let root = SVGBackend::new(path, (width, height)).into_drawing_area();
    root.fill(&WHITE)?;
    let title = format!("{} in a fresh sandbox, times posix_spawn", target.name);
    root.draw(&Text::new(title, (10, 12), ("sans-serif", 18)))?;
    let mut top = 45;
    let room = f64::from(width) - f64::from(left) - 70.0;
    for (name, ratio) in bars {
        let length = pixels(ratio / most * room);
        let color = if name == BASE {
            RGBColor(120, 120, 120)
        } else if name.split(' ').next().is_some_and(|word| ["prepared", "warm", "one-shot", "no-net"].contains(&word))
        {
            RGBColor(38, 110, 190)
        } else {
            RGBColor(200, 130, 50)
        };
        root.draw(&Text::new(name.to_owned(), (10, top + 3), ("sans-serif", 14)))?;
        root.draw(&Rectangle::new([(left, top), (left + length, top + 18)], color.filled()))?;
        root.draw(&Text::new(format!("{ratio:.2}"), (left + length + 6, top + 3), ("sans-serif", 14)))?;
        top += i32::try_from(line)?;
    }
    root.present()?;
    Ok(())
}

#[allow(clippy::cast_possible_truncation, reason = "a length on a small drawing")]
fn pixels(length: f64) -> i32 {
    length.clamp(1.0, 10_000.0) as i32
}
