//! What happens when several start at once.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Barrier, Mutex};
use std::time::{Duration, Instant};

use sandbox::{Network, Sandbox};
use sandbox_benches::command_lines::{commands, installed};
use sandbox_benches::random::Random;
use sandbox_benches::resident::Failure;
use sandbox_benches::stats::median;
use sandbox_benches::sys::Spawner;

use crate::{Bench, Line, Point, Series, Shown, finish, timed, wait_full};

/// Errors of threads, as text.
type Told = Result<(), String>;

/// What one thread calls again and again.
type Caller<'a> = Box<dyn FnMut() -> Result<(), Failure> + 'a>;

/// A way to run the target, from any thread.
struct Way<'a> {
    name: String,
    caller: Box<dyn Fn() -> Result<Caller<'a>, Failure> + Sync + 'a>,
}

impl<'a> Way<'a> {
    fn spawner(name: &str, spawner: impl Fn() -> Result<Spawner, Failure> + Sync + 'a) -> Self {
        let caller = move || -> Result<Caller<'a>, Failure> {
            let spawner = spawner()?;
            Ok(Box::new(move || {
                let status = spawner.run()?;
                if status.success() { Ok(()) } else { Err(format!("it ended with {status}").into()) }
            }))
        };
        Self { name: name.to_owned(), caller: Box::new(caller) }
    }

    fn sandbox(name: &str, bench: &'a Bench, sandbox: &'a Sandbox) -> Self {
        Self { name: name.to_owned(), caller: Box::new(move || Ok(Box::new(move || bench.run(sandbox)))) }
    }
}

/// Runs `work` on so many threads at the same time.
fn at_once(threads: usize, work: impl Fn(&Barrier) -> Result<(), Failure> + Sync) -> Result<(), Failure> {
    let barrier = Barrier::new(threads);
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads)
            .map(|_| scope.spawn(|| -> Told { work(&barrier).map_err(|error| error.to_string()) }))
            .collect();
        all.into_iter().try_for_each(|one| one.join().map_err(|_| "a thread panicked")?.map_err(Failure::from))
    })
}

fn push<T>(to: &Mutex<Vec<T>>, more: impl IntoIterator<Item = T>) {
    to.lock().unwrap_or_else(std::sync::PoisonError::into_inner).extend(more);
}

fn take<T>(from: Mutex<Vec<T>>) -> Vec<T> {
    from.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Sustained rates, without any pause.
pub(crate) fn threads(bench: &Bench) -> Result<Series, Failure> {
    let (one_shot, no_net) = (bench.builder().build()?, bench.builder().network(Network::Host).build()?);
    let prepared = bench.builder().prepared(16).build()?;
    let instance = bench.builder().build()?.start()?;
    let ways = [
        Way::spawner("posix_spawn", || bench.spawner()),
        Way { name: "warm".to_owned(), caller: Box::new(|| Ok(Box::new(|| finish(instance.command(&bench.target))))) },
        Way::sandbox("prepared", bench, &prepared),
        Way::sandbox("one-shot", bench, &one_shot),
        Way::sandbox("no-net", bench, &no_net),
    ];
    let sizes = [1usize, 2, 4];
    let (slices, slice) = (if bench.quick { 1 } else { 6 }, Duration::from_millis(400));
    let mut order: Vec<usize> = (0..ways.len() * sizes.len()).collect();
    let mut random = Random::default();
    let mut all: Vec<(Vec<f64>, f64)> = vec![(Vec::new(), 0.0); order.len()];
    for _ in 0..slices {
        random.shuffle(&mut order);
        for &index in &order {
            let (Some(way), Some(&threads)) = (ways.get(index / sizes.len()), sizes.get(index % sizes.len())) else {
                continue;
            };
            let times = Mutex::new(Vec::new());
            let start = Instant::now();
            at_once(threads, |barrier| {
                let (mut caller, mut own) = ((way.caller)()?, Vec::new());
                barrier.wait();
                while start.elapsed() < slice {
                    own.push(timed(&mut caller)?);
                }
                push(&times, own);
                Ok(())
            })?;
            let elapsed = start.elapsed().as_secs_f64();
            if let Some((found, whole)) = all.get_mut(index) {
                found.extend(take(times));
                *whole += elapsed;
            }
        }
    }
    let mut lines: Vec<Line> = ways.iter().map(|way| Line { name: way.name.clone(), points: Vec::new() }).collect();
    for (index, (times, whole)) in all.iter().enumerate() {
        let (Some(line), Some(&threads)) = (lines.get_mut(index / sizes.len()), sizes.get(index % sizes.len())) else {
            continue;
        };
        let rate = Some(times.len() as f64 / whole);
        line.points.push(Point { rate, ..Point::of(threads as u64, times) });
    }
    Ok(Series {
        name: "threads",
        title: "Sustained runs per second, by threads that run one after another",
        x: "threads",
        shown: Shown::Rate,
        lines,
    })
}

/// Many starts at the same moment; `max` is the median of the last ones.
pub(crate) fn burst(bench: &Bench) -> Result<Series, Failure> {
    let one_shot = bench.builder().build()?;
    let prepared = bench.builder().prepared(100).build()?;
    let mut ways = vec![
        Way::spawner("posix_spawn", || bench.spawner()),
        Way::sandbox("prepared", bench, &prepared),
        Way::sandbox("one-shot", bench, &one_shot),
    ];
    // The others in the table want a name for each container.
    for (name, line) in commands(&bench.target, &bench.scratch.path().join("burst"))? {
        if ["bwrap", "nsjail"].contains(&name) && installed(name) {
            let path = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
                .map(|directory| directory.join(name))
                .find(|file| file.is_file())
                .ok_or("it was there")?;
            let program = CString::new(path.as_os_str().as_bytes())?;
            let args: Vec<CString> = line.iter().map(|arg| CString::new(arg.as_bytes())).collect::<Result<_, _>>()?;
            ways.push(Way::spawner(name, move || Ok(Spawner::new(program.clone(), args.clone())?)));
        }
    }
    let sizes: &[usize] = if bench.quick { &[1, 20] } else { &[1, 10, 100] };
    let mut lines: Vec<Line> = Vec::new();
    for way in &ways {
        let mut points = Vec::new();
        for &size in sizes {
            let (mut all, mut last) = (Vec::new(), Vec::new());
            for _ in 0..bench.rounds(20) {
                wait_full(&prepared)?;
                std::thread::sleep(Duration::from_millis(20));
                let times = Mutex::new(Vec::new());
                at_once(size, |barrier| {
                    let caller = (way.caller)()?;
                    barrier.wait();
                    push(&times, [timed(caller)?]);
                    Ok(())
                })?;
                let times = take(times);
                last.push(times.iter().copied().fold(0.0, f64::max));
                all.extend(times);
            }
            points.push(Point { max_us: median(&last), ..Point::of(size as u64, &all) });
        }
        lines.push(Line { name: way.name.clone(), points });
    }
    Ok(Series {
        name: "burst",
        title: "Starts at the same moment: until the last has ended",
        x: "starts",
        shown: Shown::Max,
        lines,
    })
}

/// Two threads that take from a pool only while it is not empty, on and on.
pub(crate) fn tail(bench: &Bench) -> Result<Series, Failure> {
    let lines = by_two_threads(bench, 1, bench.rounds(500))?;
    let title = "Two threads, never an empty pool: the 99th percentile by the pause between two runs";
    Ok(Series { name: "tail", title, x: "ms pause", shown: Shown::P99, lines })
}

/// Two threads that take ten each out of 32, and then leave the pool alone until it is full.
pub(crate) fn bursts(bench: &Bench) -> Result<Series, Failure> {
    let lines = by_two_threads(bench, bench.rounds(50), 10)?;
    let title = "Two threads, bursts out of a full pool: the 99th percentile by the pause between two runs";
    Ok(Series { name: "bursts", title, x: "ms pause", shown: Shown::P99, lines })
}

fn by_two_threads(bench: &Bench, bursts: usize, runs: usize) -> Result<Vec<Line>, Failure> {
    let prepared = bench.builder().prepared(32).build()?;
    let instance = bench.builder().build()?.start()?;
    let ways = [
        Way::spawner("posix_spawn", || bench.spawner()),
        Way { name: "warm".to_owned(), caller: Box::new(|| Ok(Box::new(|| finish(instance.command(&bench.target))))) },
        Way::sandbox("prepared", bench, &prepared),
    ];
    let mut lines = Vec::new();
    for way in &ways {
        let mut points = Vec::new();
        for pause in [0u64, 2, 5, 10] {
            let times = Mutex::new(Vec::new());
            let before = prepared.pool_stats();
            for _ in 0..bursts {
                wait_full(&prepared)?;
                std::thread::sleep(Duration::from_millis(30));
                at_once(2, |barrier| {
                    let (mut caller, mut own) = ((way.caller)()?, Vec::new());
                    barrier.wait();
                    for _ in 0..runs {
                        std::thread::sleep(Duration::from_millis(pause));
                        // One for each of us.
                        while prepared.pool_stats().ready < 2 {
                            std::thread::sleep(Duration::from_micros(500));
                        }
                        own.push(timed(&mut caller)?);
                    }
                    push(&times, own);
                    Ok(())
                })?;
            }
            if prepared.pool_stats().misses > before.misses {
                return Err("the pool was empty".into());
            }
            points.push(Point::of(pause, &take(times)));
        }
        lines.push(Line { name: way.name.clone(), points });
    }
    Ok(lines)
}
