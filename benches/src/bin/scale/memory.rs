//! What an instance holds that waits in a pool.

use std::fmt;

use sandbox_benches::resident::Failure;
use sandbox_benches::stats::median;
use serde::Serialize;

use crate::{Bench, wait_full};

/// For one idle instance, in KiB.
#[derive(Debug, Serialize)]
pub(crate) struct Idle {
    instances: usize,
    /// Of init: its share of all memory that it sees.
    pss_kib: Option<f64>,
    /// Of init.
    page_tables_kib: Option<f64>,
    /// What the machine's slabs, kernel stacks, page tables and memory for each CPU grew by.
    kernel_kib: f64,
    slab_kib: f64,
    descriptors: f64,
}

impl fmt::Display for Idle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.0}"));
        write!(
            f,
            "An idle instance (of {}): init {} KiB PSS and {} KiB of page tables; of the kernel's memory {:.0} KiB, of which \
             {:.0} KiB slab; {:.1} descriptors of the caller",
            self.instances,
            known(self.pss_kib),
            known(self.page_tables_kib),
            self.kernel_kib,
            self.slab_kib,
            self.descriptors
        )
    }
}

pub(crate) fn idle(bench: &Bench) -> Result<Idle, Failure> {
    let instances = if bench.quick { 50 } else { 256 };
    // What the first of all costs is not each one's.
    drop(bench.builder().prepared(4).build().map(|first| wait_full(&first))?);
    std::thread::sleep(std::time::Duration::from_millis(500));
    let others = children()?;
    let before = (meminfo(KERNEL)?, meminfo(&["Slab"])?, descriptors()?);
    let sandbox = bench.builder().prepared(instances).build()?;
    wait_full(&sandbox)?;
    let after = (meminfo(KERNEL)?, meminfo(&["Slab"])?, descriptors()?);
    let inits: Vec<u32> = children()?.into_iter().filter(|pid| !others.contains(pid)).collect();
    let of_each = |file: &str, key: &str| {
        let found: Vec<f64> = inits.iter().filter_map(|pid| kib(&format!("/proc/{pid}/{file}"), key)).collect();
        median(&found)
    };
    let each = |before: f64, after: f64| (after - before) / instances as f64;
    Ok(Idle {
        instances,
        pss_kib: of_each("smaps_rollup", "Pss:"),
        page_tables_kib: of_each("status", "VmPTE:"),
        kernel_kib: each(before.0, after.0),
        slab_kib: each(before.1, after.1),
        descriptors: each(before.2, after.2),
    })
}

const KERNEL: &[&str] = &["Slab", "KernelStack", "PageTables", "Percpu"];

fn meminfo(keys: &[&str]) -> Result<f64, Failure> {
    let each = keys.iter().map(|key| kib("/proc/meminfo", &format!("{key}:")).ok_or(format!("no {key} in meminfo")));
    Ok(each.sum::<Result<f64, String>>()?)
}

/// A line of a file, in kB.
fn kib(path: &str, key: &str) -> Option<f64> {
    let text = std::fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key))?.trim().trim_end_matches(" kB").parse().ok()
}

fn descriptors() -> Result<f64, Failure> {
    Ok(std::fs::read_dir("/proc/self/fd")?.count() as f64)
}

fn children() -> Result<Vec<u32>, Failure> {
    let mut found = Vec::new();
    for thread in std::fs::read_dir("/proc/self/task")? {
        let text = std::fs::read_to_string(thread?.path().join("children"))?;
        found.extend(text.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    }
    Ok(found)
}
