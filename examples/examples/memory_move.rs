//! What moving a process between groups does to the memory that is counted there: nothing.
//!
//! A worker takes 1 GiB in one group and is moved into another. Neither the usage nor the peak of the new group counts
//! that memory, only what the worker takes from then on; when it moves out again, nothing gets less. So processes are
//! *born* in their group where their memory is to be counted.
//!
//! Ends with `ok`, or says what differs (exit 1), or `SKIP reason` (exit 77).

use std::error::Error;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use cgroup::{Cgroup, Controller, Layout, Needs};
use comfy_table::{Table, presets};
use sandbox_examples::worker::{Worker, serve};

const MIB: u64 = 1 << 20;
const MOVED: u64 = 1024 * MIB;
const MORE: u64 = 64 * MIB;
const PATIENCE: Duration = Duration::from_secs(30);

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// How it ended: well, or not at all.
enum Ended {
    Ok,
    Skipped(String),
}

fn main() -> ExitCode {
    serve(worker());
    match run() {
        Ok(Ended::Ok) => {
            println!("ok");
            ExitCode::SUCCESS
        }
        Ok(Ended::Skipped(reason)) => {
            println!("SKIP {reason}");
            ExitCode::from(77)
        }
        Err(error) => {
            eprintln!("memory_move: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Takes and gives back memory: `take BYTES`, `free`.
fn worker() -> impl FnMut(&str) -> String {
    let mut held: Vec<Vec<u8>> = Vec::new();
    move |order| match order.strip_prefix("take ").and_then(|bytes| bytes.parse::<usize>().ok()) {
        Some(bytes) => {
            let mut block = vec![0u8; bytes];
            block.chunks_mut(4096).for_each(|page| page[0] = 1);
            held.push(block);
            "taken".to_owned()
        }
        None => {
            held.clear();
            "freed".to_owned()
        }
    }
}

/// A group that goes with the value.
struct Group(Cgroup);

impl Drop for Group {
    fn drop(&mut self) {
        if let Err(error) = self.0.remove(PATIENCE) {
            eprintln!("memory_move: {error}");
        }
    }
}

fn run() -> Result<Ended> {
    let layout = match Layout::detect() {
        Ok(layout) => layout,
        Err(error) => return Ok(Ended::Skipped(error.to_string())),
    };
    let make = |which: &str| {
        let name = format!("sandbox-memory-move-{}-{which}", std::process::id());
        layout.create(&name, &Needs::new([Controller::Memory])).map(Group)
    };
    let (from, to) = match (make("from"), make("to")) {
        (Ok(from), Ok(to)) => (from, to),
        (Err(error), _) | (_, Err(error)) => return Ok(Ended::Skipped(error.to_string())),
    };
    let Some(version) = from.0.version_of(Controller::Memory) else {
        return Ok(Ended::Skipped("no memory controller".to_owned()));
    };
    let moved = affordable(&layout)?;
    println!("{}; memory is counted by {version}", layout.describe());
    if moved < MOVED {
        println!("this machine can spare {} MiB only, so that is what is moved instead of 1024", moved / MIB);
    }

    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED);
    table.set_header(["MiB as the kernel counts", "from: now", "peak", "to: now", "peak"]);
    let mut read = |what: &str| -> Result<[u64; 3]> {
        let (a, b) = (from.0.usage()?, to.0.usage()?);
        let mib = |bytes: Option<u64>| bytes.map_or("not told".to_owned(), |n| format!("{:.1}", n as f64 / MIB as f64));
        table.add_row([
            what.to_owned(),
            mib(a.memory_current),
            mib(a.memory_peak),
            mib(b.memory_current),
            mib(b.memory_peak),
        ]);
        let unknown = "the kernel does not tell what a group uses";
        let (a, b_now) = (a.memory_current.ok_or(unknown)?, b.memory_current.ok_or(unknown)?);
        // Before 5.19 there is no peak on v2.
        Ok([a, b_now, b.memory_peak.unwrap_or(b_now)])
    };

    let mut worker = Worker::start()?;
    from.0.attach(worker.id())?;
    worker.order(&format!("take {moved}"))?;
    let taken = read("a process takes it in `from`")?;
    to.0.attach(worker.id())?;
    let arrived = read("it is moved to `to`")?;
    worker.order(&format!("take {MORE}"))?;
    let more = read("it takes 64 MiB more")?;
    from.0.attach(worker.id())?;
    let back = read("it is moved back to `from`")?;
    worker.order("free")?;
    let begin = Instant::now();
    while from.0.usage()?.memory_current > Some(moved / 2) && begin.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(20));
    }
    let freed = read("it frees everything")?;
    println!("{table}");

    // Counters are kept in batches per CPU.
    let slack = MIB * std::thread::available_parallelism()?.get() as u64;
    let [a, b, peak] = [0, 1, 2];
    for (what, holds) in [
        ("`from` counts what was taken there", taken[a] >= moved),
        ("moving changes nothing in `from`", arrived[a].abs_diff(taken[a]) < slack),
        ("`to` does not count what the process brought", arrived[b] < slack),
        ("nor does its peak", arrived[peak] < slack),
        ("`to` counts what is taken from then on", (MORE..MORE + 2 * slack).contains(&more[b])),
        ("`from` does not", more[a].abs_diff(taken[a]) < slack),
        ("moving out lowers nothing in `to`", back[b].abs_diff(more[b]) < slack),
        ("freeing lowers the group that paid", freed[a] < moved / 2 && freed[b] < MORE / 2),
    ] {
        println!("{} {what}", if holds { "yes:" } else { "NO: " });
        if !holds {
            return Err(format!("not so: {what}").into());
        }
    }
    Ok(Ended::Ok)
}

/// 1 GiB, or half of what the machine and the caller's own group can spare.
fn affordable(layout: &Layout) -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib: u64 = line.and_then(|line| line.split_whitespace().next()?.parse().ok()).ok_or("no MemAvailable")?;
    let own = layout.own(&Needs::new([Controller::Memory])).ok();
    let limit = own.as_ref().and_then(|own| own.limits().ok()?.memory_max?.value());
    let used = own.as_ref().and_then(|own| own.usage().ok()?.memory_current).unwrap_or(0);
    let spare = (kib * 1024).min(limit.unwrap_or(u64::MAX).saturating_sub(used));
    Ok(MOVED.min(spare / 2 / MIB * MIB))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worker_entry() {
        serve(worker());
    }

    #[test]
    fn main_works() {
        if let Err(error) = run() {
            panic!("{error}");
        }
    }
}
