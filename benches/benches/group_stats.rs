//! One reading of a group's counters: with a [`cgroup::Meter`], which holds its files open; with cgroups-rs, which opens,
//! reads and closes them each time; and the five files read by hand in the same way.
//!
//! `cargo bench -p sandbox-benches --bench group_stats`. It needs a place for a group with memory, pids and cpu; without
//! one it says so and measures nothing. Compare figures of one run only.

use std::path::{Path, PathBuf};
use std::time::Duration;

use cgroup::{Cgroup, Controller, Layout, Meter, Needs, Version};
use cgroups_rs::fs::{cpu::CpuController, memory::MemController, pid::PidController};
use criterion::Criterion;
use sandbox_benches::resident::Failure;

/// What each row yields: memory now, its peak, processes killed for want of it, processes now, and the file `cpu.stat`.
struct Reading {
    memory: [Option<u64>; 3],
    pids: Option<u64>,
    cpu: Cpu,
}

/// Parsed only by us.
enum Cpu {
    Time(Option<Duration>),
    Text(String),
}

fn group_stats(criterion: &mut Criterion) {
    if let Err(error) = in_a_group(criterion) {
        eprintln!("SKIP group_stats: {error}");
    }
}

fn in_a_group(criterion: &mut Criterion) -> Result<(), Failure> {
    let needs = Needs::new([Controller::Memory, Controller::Pids, Controller::Cpu]);
    let group = Layout::detect()?.create(&format!("sandbox-bench-{}", std::process::id()), &needs)?;
    let measured = rows(criterion, &group);
    group.remove(Duration::from_secs(5))?;
    measured
}

fn rows(criterion: &mut Criterion, group: &Cgroup) -> Result<(), Failure> {
    let mut meter = group.meter()?;
    let (peer, hand) = (Peer::new(group)?, Hand::new(group)?);
    // A row that reads nothing would be the fastest.
    for reading in [ours(&mut meter)?, peer.read()?, hand.read()?] {
        let cpu = match &reading.cpu {
            Cpu::Time(time) => time.is_some(),
            Cpu::Text(text) => !text.is_empty(),
        };
        if !cpu || reading.memory[0].is_none() || reading.pids.is_none() {
            return Err("a row found no counters".into());
        }
    }
    let mut rows = criterion.benchmark_group("group_stats");
    rows.bench_function("Meter", |bencher| bencher.iter(|| ours(&mut meter)));
    rows.bench_function("cgroups-rs", |bencher| bencher.iter(|| peer.read()));
    rows.bench_function("by hand", |bencher| bencher.iter(|| hand.read()));
    rows.finish();
    Ok(())
}

/// All that a [`cgroup::Usage`] holds, which is more than is asked for here.
fn ours(meter: &mut Meter) -> Result<Reading, cgroup::Error> {
    let usage = meter.read()?;
    Ok(Reading {
        memory: [usage.memory_current, usage.memory_peak, usage.oom_kills],
        pids: usage.pids_current,
        cpu: Cpu::Time(usage.cpu.map(|cpu| cpu.total)),
    })
}

/// cgroups-rs, on the directories of the same group. Its reading of memory cannot be had in parts, and on v2 it has no
/// kills.
struct Peer {
    memory: MemController,
    pids: PidController,
    cpu: CpuController,
}

impl Peer {
    fn new(group: &Cgroup) -> Result<Self, Failure> {
        let place = |controller| -> Result<(PathBuf, PathBuf, bool), Failure> {
            let raw = group.raw(controller)?;
            Ok((raw.path().to_owned(), raw.path().to_owned(), raw.version() == Version::V2))
        };
        let (memory, pids, cpu) = (place(Controller::Memory)?, place(Controller::Pids)?, place(Controller::Cpu)?);
        Ok(Self {
            memory: MemController::new(memory.0, memory.1, memory.2),
            pids: PidController::new(pids.0, pids.1, pids.2),
            cpu: CpuController::new(cpu.0, cpu.1, cpu.2),
        })
    }

    fn read(&self) -> Result<Reading, Failure> {
        let memory = self.memory.memory_stat();
        Ok(Reading {
            memory: [Some(memory.usage_in_bytes), Some(memory.max_usage_in_bytes), Some(memory.oom_control.oom_kill)],
            pids: Some(self.pids.get_pid_current()?),
            cpu: Cpu::Text(self.cpu.cpu().stat),
        })
    }
}

/// Five files, each opened, read and closed: what is written without a library.
struct Hand {
    current: PathBuf,
    peak: PathBuf,
    events: PathBuf,
    pids: PathBuf,
    cpu: PathBuf,
}

impl Hand {
    fn new(group: &Cgroup) -> Result<Self, Failure> {
        let (memory, pids, cpu) =
            (group.raw(Controller::Memory)?, group.raw(Controller::Pids)?, group.raw(Controller::Cpu)?);
        let [current, peak, events] = match memory.version() {
            Version::V1 => ["memory.usage_in_bytes", "memory.max_usage_in_bytes", "memory.oom_control"],
            Version::V2 => ["memory.current", "memory.peak", "memory.events"],
        };
        Ok(Self {
            current: memory.path().join(current),
            peak: memory.path().join(peak),
            events: memory.path().join(events),
            pids: pids.path().join("pids.current"),
            cpu: cpu.path().join("cpu.stat"),
        })
    }

    fn read(&self) -> Result<Reading, std::io::Error> {
        let text = |path: &Path| std::fs::read_to_string(path);
        let number = |path: &Path| Ok::<_, std::io::Error>(text(path)?.trim_end().parse().ok());
        let events = text(&self.events)?;
        let kills = events.lines().find_map(|line| line.strip_prefix("oom_kill ")).and_then(|kills| kills.parse().ok());
        Ok(Reading {
            memory: [number(&self.current)?, number(&self.peak)?, kills],
            pids: number(&self.pids)?,
            cpu: Cpu::Text(text(&self.cpu)?),
        })
    }
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    group_stats(&mut criterion);
    criterion.final_summary();
}
