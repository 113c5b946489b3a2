//! What one start costs when something has grown.

use std::ffi::{OsStr, OsString};
use std::time::{Duration, Instant};

use sandbox::cgroup::{Cgroup, Controller, Layout, Needs};
use sandbox::{Child, Stdio};
use sandbox_benches::random::Random;
use sandbox_benches::resident::{Failure, Resident};
use sandbox_benches::stats::median_ratio;

use crate::{Bench, Line, Point, Series, Shown, timed, wait_full};

const BASE: &str = "posix_spawn";
/// Quiet before each run, so that what is made ahead has been made: what is measured here is the latency of one start.
const GAP: Duration = Duration::from_millis(20);
const RESIDENT_TIMEOUT: Duration = Duration::from_secs(20);

/// A thing to run again and again.
struct Case<'a> {
    line: &'static str,
    x: u64,
    run: Box<dyn FnMut() -> Result<f64, Failure> + 'a>,
    times: Vec<Option<f64>>,
}

impl<'a> Case<'a> {
    fn new(line: &'static str, x: u64, run: impl FnMut() -> Result<f64, Failure> + 'a) -> Self {
        Self { line, x, run: Box::new(run), times: Vec::new() }
    }
}

/// Runs all cases once in each round, in a new random order; the first is what the others are compared with.
fn interleaved(cases: &mut [Case<'_>], rounds: usize) -> Result<(), Failure> {
    let warm_up = 3;
    let mut random = Random::default();
    let mut order: Vec<usize> = (0..cases.len()).collect();
    for round in 0..warm_up + rounds {
        random.shuffle(&mut order);
        for &index in &order {
            let Some(case) = cases.get_mut(index) else { continue };
            std::thread::sleep(GAP);
            let time = (case.run)()?;
            if round >= warm_up {
                case.times.push(Some(time));
            }
        }
    }
    Ok(())
}

/// Adds the points of finished cases to their lines.
fn collect(lines: &mut Vec<Line>, cases: &[Case<'_>]) {
    let base = cases.iter().find(|case| case.line == BASE).map(|case| case.times.clone()).unwrap_or_default();
    for case in cases {
        let times: Vec<f64> = case.times.iter().copied().flatten().collect();
        let point = Point { ratio: median_ratio(&case.times, &base), ..Point::of(case.x, &times) };
        match lines.iter_mut().find(|line| line.name == case.line) {
            Some(line) => line.points.push(point),
            None => lines.push(Line { name: case.line.to_owned(), points: vec![point] }),
        }
    }
}

fn base<'a>(bench: &Bench, x: u64) -> Result<Case<'a>, Failure> {
    let spawner = bench.spawner()?;
    Ok(Case::new(BASE, x, move || timed(|| spawner.run().map(|_| ()).map_err(Failure::from))))
}

pub(crate) fn binds(bench: &Bench) -> Result<Series, Failure> {
    let sizes: &[u64] = if bench.quick { &[0, 10, 100] } else { &[0, 10, 100, 1000] };
    let source = bench.scratch.path().join("bound");
    std::fs::create_dir(&source)?;
    let most = sizes.last().copied().unwrap_or(0);
    for number in 0..most {
        std::fs::create_dir(source.join(number.to_string()))?;
    }
    let mut cases = vec![base(bench, 0)?];
    for &size in sizes {
        let mut builder = bench.builder();
        for number in 0..size {
            builder.bind_read_only(source.join(number.to_string()), format!("/mnt/{number}"));
        }
        let one_shot = builder.build()?;
        let prepared = builder.prepared(8).build()?;
        cases.push(Case::new("one-shot", size, move || timed(|| bench.run(&one_shot))));
        cases.push(Case::new("prepared", size, move || {
            wait_full(&prepared)?;
            timed(|| bench.run(&prepared))
        }));
    }
    interleaved(&mut cases, bench.rounds(100))?;
    let mut lines = Vec::new();
    collect(&mut lines, &cases);
    Ok(Series { name: "binds", title: "A start beside its binds", x: "binds", shown: Shown::Ratio, lines })
}

/// The callers are resident programs that were started that deep: sandboxes live below their callers' groups.
pub(crate) fn cgroup_depth(bench: &Bench) -> Result<Series, Failure> {
    let depths: &[u64] = if bench.quick { &[0, 4] } else { &[0, 4, 16, 32] };
    let own = std::env::current_exe()?;
    let serve = own.parent().ok_or("a program without a directory")?.join("serve");
    let mut all = Vec::new();
    let mut cases = vec![base(bench, 0)?];
    for &depth in depths {
        let groups = nested(depth)?;
        for mode in ["one-shot", "prepared"] {
            let words = [serve.as_os_str(), bench.target.as_os_str(), mode.as_ref(), "limits".as_ref()];
            let mut resident = Resident::start(&inside(groups.last(), &words), 0)?;
            cases.push(Case::new(mode, depth, move || Ok(resident.run(RESIDENT_TIMEOUT)?.as_secs_f64() * 1e6)));
        }
        all.push(groups);
    }
    let measured = interleaved(&mut cases, bench.rounds(100));
    let mut lines = Vec::new();
    collect(&mut lines, &cases);
    drop(cases);
    for top in all.iter().filter_map(|groups| groups.first()) {
        top.remove(RESIDENT_TIMEOUT)?;
    }
    measured?;
    Ok(Series {
        name: "cgroup-depth",
        title: "A start with limits, by the depth of the caller's cgroup",
        x: "levels",
        shown: Shown::Ratio,
        lines,
    })
}

/// Groups in each other, the outermost first.
fn nested(depth: u64) -> Result<Vec<Cgroup>, Failure> {
    let controllers = [Controller::Memory, Controller::Pids, Controller::Cpu];
    let mut groups: Vec<Cgroup> = Vec::new();
    for level in 0..depth {
        let group = match groups.last() {
            Some(outer) => outer.child(&format!("level-{level}"), controllers)?,
            None => {
                let name = format!("sandbox-benches-{}-{depth}", std::process::id());
                Layout::detect()?.create(&name, &Needs::new(controllers))?
            }
        };
        groups.push(group);
    }
    Ok(groups)
}

/// A command line that goes into a group first.
fn inside(group: Option<&Cgroup>, words: &[&OsStr]) -> Vec<OsString> {
    let Some(group) = group else { return words.iter().map(OsString::from).collect() };
    let mut script = String::new();
    for path in group.paths() {
        script.push_str(&format!("echo $$ > {}/cgroup.procs && ", path.display()));
    }
    script.push_str("exec \"$@\"");
    let shell = ["sh", "-c", &script, "sh"].map(OsString::from);
    shell.into_iter().chain(words.iter().map(OsString::from)).collect()
}

pub(crate) fn live(bench: &Bench) -> Result<Series, Failure> {
    let sizes: &[u64] = if bench.quick { &[0, 50] } else { &[0, 10, 100, 1000] };
    let others = bench.builder().build()?;
    let one_shot = bench.builder().build()?;
    let prepared = bench.builder().prepared(8).build()?;
    let mut held: Vec<Child> = Vec::new();
    let mut lines = Vec::new();
    for &size in sizes {
        while (held.len() as u64) < size {
            let mut sleeper = others.command("/bin/sleep");
            sleeper.arg("1000").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            held.push(sleeper.spawn()?);
        }
        let mut cases = vec![
            base(bench, size)?,
            Case::new("one-shot", size, || timed(|| bench.run(&one_shot))),
            Case::new("prepared", size, || {
                wait_full(&prepared)?;
                timed(|| bench.run(&prepared))
            }),
        ];
        interleaved(&mut cases, bench.rounds(100))?;
        collect(&mut lines, &cases);
    }
    drop(held);
    Ok(Series {
        name: "live",
        title: "A start beside sandboxes of the same process that are alive",
        x: "alive",
        shown: Shown::Ratio,
        lines,
    })
}

/// One caller, without any pause: what the depth is good for is over after so many runs.
pub(crate) fn pool_depth(bench: &Bench) -> Result<Series, Failure> {
    let depths: &[u64] = if bench.quick { &[1, 16] } else { &[1, 4, 16, 64] };
    let runs = 32;
    let mut lines = Vec::new();
    for limits in [false, true] {
        let mut points = Vec::new();
        for &depth in depths {
            let mut builder = bench.builder();
            if limits {
                let period = Duration::from_millis(100);
                builder.memory_max(256 << 20).pids_max(64).cpu_max(period / 2, period);
            }
            let sandbox = builder.prepared(usize::try_from(depth)?).build()?;
            let (mut times, mut whole) = (Vec::new(), Duration::ZERO);
            for _ in 0..bench.rounds(30) {
                wait_full(&sandbox)?;
                std::thread::sleep(GAP);
                let start = Instant::now();
                for _ in 0..runs {
                    times.push(timed(|| bench.run(&sandbox))?);
                }
                whole += start.elapsed();
            }
            let rate = times.len() as f64 / whole.as_secs_f64();
            points.push(Point { rate: Some(rate), ..Point::of(depth, &times) });
        }
        lines.push(Line { name: if limits { "prepared limits" } else { "prepared" }.to_owned(), points });
    }
    Ok(Series {
        name: "pool-depth",
        title: "32 runs back to back from a full pool",
        x: "instances",
        shown: Shown::Rate,
        lines,
    })
}
