//! What is parsed and planned before anything starts: `cargo bench -p sandbox-benches --bench parsers`.

use std::fmt::Write as _;
use std::hint::black_box;
use std::path::Path;
use std::time::Duration;

use cgroup::{CpuList, Layout};
use criterion::Criterion;
use rlimit::limits_conf::{Flavor, Resolver, User};
use rlimit::{Limit, Resource, Table};
use sandbox::Sandbox;
use sandbox_benches::resident::Failure;
use userns::SubidFile;

fn parsers(criterion: &mut Criterion) {
    let mut rows = criterion.benchmark_group("parsers");
    let mut subid = String::new();
    for user in 0..10_000u32 {
        let _ = writeln!(subid, "user{user}:{}:65536", 100_000 + user * 65_536 % 4_000_000_000);
    }
    rows.bench_function("subuid, 10000 lines", |bencher| {
        bencher.iter(|| SubidFile::parse(Path::new("/etc/subuid"), black_box(subid.as_bytes())));
    });
    rows.bench_function("list of CPUs", |bencher| bencher.iter(|| black_box("0-63,128-191,255").parse::<CpuList>()));
    rows.bench_function("cgroup layout of this machine", |bencher| bencher.iter(Layout::detect));
    rows.finish();
}

/// Files that did not change are asked for their times, not read; the rules are gone through each time.
fn limits_conf(criterion: &mut Criterion) {
    if let Err(error) = limits_conf_rows(criterion) {
        eprintln!("SKIP limits_conf: {error}");
    }
}

fn limits_conf_rows(criterion: &mut Criterion) -> Result<(), Failure> {
    let root = tempfile::tempdir()?;
    let directory = root.path().join("etc/security/limits.d");
    std::fs::create_dir_all(&directory)?;
    let mut conf = String::new();
    for user in 0..1_000 {
        let _ = writeln!(conf, "user{user} soft nofile {}\n@group{user} hard nproc {user}", 1024 + user);
    }
    let main = root.path().join("etc/security/limits.conf");
    std::fs::write(&main, &conf)?;
    for file in 0..10 {
        std::fs::write(directory.join(format!("{file}.conf")), "* - core 0\nuser7 - memlock 64\n")?;
    }
    let user = User::new("user7", 1007, 1007).group("group7", 1007);
    let resolver = || -> Result<Resolver, Failure> {
        Ok(Resolver::new(Flavor::LinuxPam17).inherited(Table::own()).nr_open(1 << 20).root(root.path())?)
    };
    let warm = resolver()?;
    let mut rows = criterion.benchmark_group("limits_conf");
    rows.bench_function("2000 lines, 10 more files, first time", |bencher| {
        bencher.iter(|| Ok::<_, Failure>(resolver()?.resolve(&user)?));
    });
    rows.bench_function("the same, nothing changed", |bencher| bencher.iter(|| warm.resolve(&user)));
    rows.finish();
    Ok(())
}

/// A builder's data, checked. The machine is not looked at.
fn plan(criterion: &mut Criterion) {
    let mut usual = Sandbox::builder();
    usual
        .memory_max(256 << 20)
        .pids_max(64)
        .cpu_max(Duration::from_millis(50), Duration::from_millis(100))
        .wall_time_max(Duration::from_secs(10))
        .rlimit(Resource::Nofile, Limit::Value(64), Limit::Value(64))
        .bind_read_only("/opt", "/opt");
    for directory in 0..20 {
        usual.tmpfs(format!("/scratch/{directory}"), Some(1 << 20));
    }
    let mut rows = criterion.benchmark_group("plan");
    rows.bench_function("defaults", |bencher| bencher.iter(|| Sandbox::builder().plan()));
    rows.bench_function("limits and 21 mounts", |bencher| bencher.iter(|| black_box(&usual).plan()));
    rows.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    parsers(&mut criterion);
    limits_conf(&mut criterion);
    plan(&mut criterion);
    criterion.final_summary();
}
