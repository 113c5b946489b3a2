//! `scale`: what a sandbox costs as the work grows, beside `posix_spawn`.
//!
//! One series for each thing that can grow: binds, the depth of the caller's cgroup, sandboxes that are alive already, the
//! depth of the pool, threads that start at once. Further the tail under two threads, without a break and in bursts, a hundred starts at the same moment,
//! and what an idle instance holds. The target is a static file of one page that only exits, so nothing hides behind it.
//! Everything runs in this process; the points of a series are interleaved in random order where they can exist at the same
//! time, and what counts is the median of the ratios to `posix_spawn` of the same round.

mod chart;
mod growth;
mod load;
mod memory;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use sandbox::rlimit::{self, Limits, Resource};
use sandbox::{Builder, Command, Sandbox, Stdio};
use sandbox_benches::report::{self, Machine};
use sandbox_benches::resident::Failure;
use sandbox_benches::stats::{median, quantile};
use sandbox_benches::sys::Spawner;
use sandbox_benches::tiny::{Tiny, directory_to_show};
use serde::Serialize;

/// Measure how the cost of a sandbox grows.
#[derive(Parser)]
struct Options {
    /// Fewer rounds and smaller sizes: a first look.
    #[arg(long)]
    quick: bool,
    /// Print the JSON document instead of the tables.
    #[arg(long)]
    json: bool,
    /// Only these series (binds, cgroup-depth, live, pool-depth, threads, burst, tail, bursts, idle).
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Use this file as the target instead of making one.
    #[arg(long, value_name = "FILE")]
    tiny: Option<PathBuf>,
    /// Where the JSON document and the charts go (default: the workspace's docs/spawn-latency).
    #[arg(long, value_name = "DIR")]
    docs: Option<PathBuf>,
}

/// One point of a line. Times are in microseconds.
#[derive(Debug, Default, Serialize)]
struct Point {
    x: u64,
    count: usize,
    median_us: Option<f64>,
    p10_us: Option<f64>,
    p90_us: Option<f64>,
    p99_us: Option<f64>,
    max_us: Option<f64>,
    /// Median of the ratios to `posix_spawn` of the same round.
    ratio: Option<f64>,
    /// Runs per second.
    rate: Option<f64>,
}

impl Point {
    fn of(x: u64, times: &[f64]) -> Self {
        let q = |q| quantile(times, q);
        Self {
            x,
            count: times.len(),
            median_us: median(times),
            p10_us: q(0.1),
            p90_us: q(0.9),
            p99_us: q(0.99),
            max_us: q(1.0),
            ..Self::default()
        }
    }
}

#[derive(Debug, Serialize)]
struct Line {
    name: String,
    points: Vec<Point>,
}

/// What is drawn upwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Shown {
    Ratio,
    Rate,
    P99,
    Max,
}

#[derive(Debug, Serialize)]
struct Series {
    name: &'static str,
    title: &'static str,
    x: &'static str,
    shown: Shown,
    lines: Vec<Line>,
}

#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    machine: Machine,
    quick: bool,
    series: Vec<Series>,
    idle: Option<memory::Idle>,
}

/// What all series need.
struct Bench {
    quick: bool,
    target: PathBuf,
    scratch: tempfile::TempDir,
}

impl Bench {
    /// A builder whose sandboxes show the target.
    fn builder(&self) -> Builder {
        let mut builder = Sandbox::builder();
        if let Some(directory) = directory_to_show(&self.target) {
            builder.bind_read_only(directory, directory);
        }
        builder
    }

    fn spawner(&self) -> Result<Spawner, Failure> {
        use std::os::unix::ffi::OsStrExt;
        let path = std::ffi::CString::new(self.target.as_os_str().as_bytes())?;
        Ok(Spawner::new(path.clone(), vec![path])?)
    }

    /// `full`, or a part of it with `--quick`.
    const fn rounds(&self, full: usize) -> usize {
        if self.quick { full.div_ceil(10) } else { full }
    }

    fn run(&self, sandbox: &Sandbox) -> Result<(), Failure> {
        finish(sandbox.command(&self.target))
    }
}

fn finish(mut command: Command) -> Result<(), Failure> {
    let outcome = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    if outcome.success() { Ok(()) } else { Err(format!("the target ended with {outcome:?}").into()) }
}

fn timed(run: impl FnOnce() -> Result<(), Failure>) -> Result<f64, Failure> {
    let start = Instant::now();
    run()?;
    Ok(start.elapsed().as_secs_f64() * 1e6)
}

/// Waits until the pool of a sandbox is full.
fn wait_full(sandbox: &Sandbox) -> Result<(), Failure> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let stats = sandbox.pool_stats();
        if stats.ready >= stats.target {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(format!("the pool does not fill: {stats:?}").into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn main() -> ExitCode {
    match measure(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("scale: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(options: &Options) -> Result<(), Failure> {
    // A thousand sandboxes and a thousand binds are more descriptors than the usual soft limit.
    let nofile = rlimit::get(Resource::Nofile);
    rlimit::set(Resource::Nofile, Limits { soft: nofile.hard, hard: nofile.hard })?;
    let made;
    let target = match &options.tiny {
        Some(file) => file.clone(),
        None => {
            let own = std::env::current_exe()?;
            made = Tiny::write(own.parent().ok_or("a program without a directory")?)?;
            made.path().to_owned()
        }
    };
    let scratch = tempfile::Builder::new().prefix("sandbox-benches-").tempdir()?;
    let bench = Bench { quick: options.quick, target, scratch };
    let machine = Machine::before();
    let wanted = |name: &str| options.only.is_empty() || options.only.iter().any(|only| only == name);
    type Measure = fn(&Bench) -> Result<Series, Failure>;
    let all: [(&str, Measure); 8] = [
        ("binds", growth::binds),
        ("cgroup-depth", growth::cgroup_depth),
        ("live", growth::live),
        ("pool-depth", growth::pool_depth),
        ("threads", load::threads),
        ("burst", load::burst),
        ("tail", load::tail),
        ("bursts", load::bursts),
    ];
    let mut series = Vec::new();
    let note = |name: &str, since: Instant| eprintln!("{name}: {:.1} s", since.elapsed().as_secs_f64());
    // First, while nothing else has left anything in the kernel's caches.
    let since = Instant::now();
    let idle = wanted("idle").then(|| memory::idle(&bench)).transpose()?;
    idle.iter().for_each(|_| note("idle", since));
    for (name, measure) in all.into_iter().filter(|(name, _)| wanted(name)) {
        let since = Instant::now();
        series.push(measure(&bench)?);
        note(name, since);
    }
    let report = Report { machine: machine.after()?, quick: options.quick, series, idle };
    keep(&report, options.docs.as_deref())?;
    let mut out = std::io::stdout().lock();
    if options.json {
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    } else {
        print(&mut out, &report)?;
    }
    Ok(())
}

/// Writes the JSON document and one chart for each series.
fn keep(report: &Report, docs: Option<&Path>) -> Result<(), Failure> {
    let stem = if report.quick { "quick-scale" } else { "scale" };
    let directory = report::keep(report, docs, stem)?;
    for series in &report.series {
        chart::draw(series, &directory.join(format!("{stem}-{}.svg", series.name)))?;
    }
    Ok(())
}

fn print(out: &mut impl Write, report: &Report) -> Result<(), Failure> {
    writeln!(out, "{}", report.machine)?;
    for series in &report.series {
        writeln!(out, "\n{}\n", series.title)?;
        let head =
            ["median us", "p10", "p90", "p99", "max", "x P", "runs/s"].map(|word| format!("{word:>11}")).concat();
        writeln!(out, "{:<18}{:>13}{head}", "", series.x)?;
        for (line, point) in series.lines.iter().flat_map(|line| line.points.iter().map(move |point| (line, point))) {
            let times = [point.median_us, point.p10_us, point.p90_us, point.p99_us, point.max_us];
            let times = times.map(|time| word(time, 1)).concat();
            let (ratio, rate) = (word(point.ratio, 2), word(point.rate, 0));
            writeln!(out, "{:<18}{:>13}{times}{ratio}{rate}", line.name, point.x)?;
        }
    }
    if let Some(idle) = &report.idle {
        writeln!(out, "\n{idle}")?;
    }
    Ok(())
}

fn word(value: Option<f64>, places: usize) -> String {
    value.map_or_else(|| format!("{:>11}", "-"), |value| format!("{value:>11.places$}"))
}
