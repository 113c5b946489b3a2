//! One command, or the family's own kernel tests, in every fitting combination of kernel, cgroup layout and user.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Instant;

use clap::Parser as _;
use rustix::fs::{FlockOperation, flock};
use serde::Serialize;

use crate::cargo;
use crate::error::{Context, Error, Result};
use crate::guest::job::{Layout, Program};
use crate::guest::kernel::{self, Engine, Kernel, Version};
use crate::guest::{self, DiskKind, Options, User};
use crate::libtest::Report;
use crate::skips::{self, Seen, SkipList};

/// Seconds for one test binary in a guest: up to a hundred times slower than the host.
const PROGRAM_LIMIT: u64 = 300;
const SWAP: u64 = 64 << 20;
/// Tests that a guest's kernel does not survive, by a fault of the kernel that no user of the crates meets (User-Mode
/// Linux, one CPU). They are left out there, and count and list as skipped.
const FATAL: [(Engine, Version, &str, &str); 1] = [(
    Engine::Uml,
    Version::V5_10,
    "memory_below_what_is_used_is_a_typed_answer_on_v1_and_a_kill_on_v2",
    "needs a kernel that lets a victim die while memory.max is written",
)];

/// Makes a test fail where it would skip.
const REQUIRE_ALL: &str = "SANDBOX_TEST_REQUIRE_ALL";
/// The exit status by which a program says that it cannot run here.
const SKIP_STATUS: u8 = 77;

#[derive(Clone, Debug, clap::Parser)]
pub(crate) struct Arguments {
    /// Only a choice that covers: every layout, both users, quota on XFS and ext4, swap or none, oldest and newest kernel.
    #[arg(long)]
    quick: bool,
    /// Only these kernels.
    #[arg(long, value_delimiter = ',')]
    kernel: Vec<Kernel>,
    /// Only these layouts.
    #[arg(long, value_delimiter = ',', value_enum)]
    cgroup: Vec<Layout>,
    /// Only these users.
    #[arg(long, value_delimiter = ',', value_enum)]
    user: Vec<User>,
    /// Only the test binaries whose names begin so, e.g. `cgroup/,ns/tests/mount`.
    #[arg(long, value_delimiter = ',', value_name = "PREFIX")]
    tests: Vec<String>,
    /// This disk everywhere, instead of a different one from guest to guest.
    #[arg(long, value_enum)]
    disk: Option<DiskKind>,
    /// Guests at a time.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// CPUs of each: two guests of one CPU do more than one guest of two.
    #[arg(long, default_value_t = 1)]
    smp: u32,
    /// Seconds until a guest is ended.
    #[arg(long, default_value_t = 1200)]
    timeout: u64,
    /// Write what these guests skip into the list, instead of comparing with it.
    #[arg(long)]
    bless: bool,
    /// Run this, instead of the family's kernel tests. Exit status 77 counts as skipped.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl Arguments {
    /// The guests to boot.
    fn cells(&self) -> Vec<Cell> {
        fn wanted<T: PartialEq>(list: &[T], value: &T) -> bool {
            list.is_empty() || list.contains(value)
        }
        let mut cells = if self.quick { quick() } else { all() };
        cells.retain(|cell| {
            wanted(&self.kernel, &cell.kernel) && wanted(&self.cgroup, &cell.cgroup) && wanted(&self.user, &cell.user)
        });
        for cell in &mut cells {
            cell.disk = self.disk.unwrap_or(cell.disk);
        }
        cells
    }
}

/// One guest of the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cell {
    kernel: Kernel,
    cgroup: Layout,
    user: User,
    disk: DiskKind,
    swap: bool,
    tests: Tests,
}

/// Beginnings of the names of test binaries.
type Tests = &'static [&'static str];

const EVERYTHING: Tests = &[""];
/// All but those of which every test skips: only root sets quota.
const ORDINARY: Tests = &["cgroup/", "examples/", "ns/", "rlimit/", "sandbox/", "userns/"];
/// Every limit of a sandbox, crossed and just not crossed, and what a caller may do to it.
const LIMITS: Tests = &["sandbox/tests/lifecycle", "sandbox/tests/memory", "sandbox/tests/pids", "sandbox/tests/time"];

/// What needs a distribution's kernel: cpusets, pressure, huge pages, rates of disks, Landlock.
const DISTRIBUTION: Tests = &["cgroup/tests/features", "sandbox/tests/cpus_and_disks", "sandbox/tests/landlock"];
/// What User-Mode Linux 6.12 survives: it can panic when a process is killed that is just forking.
const TAME: Tests = &[
    "examples/tests/quota",
    "ns/",
    "quota/",
    "rlimit/",
    "sandbox/tests/disk.rs",
    "sandbox/tests/lifecycle",
    "sandbox/tests/memory",
    "sandbox/tests/pids",
    "sandbox/tests/time",
    "userns/",
];

fn begins(name: &str, with: &[impl AsRef<str>]) -> bool {
    with.iter().any(|start| name.starts_with(start.as_ref()))
}

impl Cell {
    /// Disk and swap vary with layout and user, so that each kernel meets most of them.
    fn new(kernel: Kernel, cgroup: Layout, user: User, tests: Tests) -> Self {
        let (disk, swap) = match (cgroup, user) {
            (Layout::V1, User::Root) => (DiskKind::Ext4, true),
            (Layout::V1, User::Ordinary) => (DiskKind::XfsV4, false),
            (Layout::Hybrid, User::Root) => (DiskKind::F2fs, false),
            (Layout::Hybrid, User::Ordinary) => (DiskKind::Ext4Noquota, true),
            (Layout::V2, User::Root) => (DiskKind::Xfs, true),
            (Layout::V2, User::Ordinary) => (DiskKind::XfsNoenforce, false),
        };
        let disk = if kernel.mounts(disk) { disk } else { DiskKind::Xfs };
        Self { kernel, cgroup, user, disk, swap, tests }
    }

    fn options(&self, arguments: &Arguments) -> Options {
        Options {
            cgroup: self.cgroup,
            user: self.user,
            disk: self.disk,
            swap: self.swap.then_some(SWAP),
            smp: arguments.smp,
            mem: guest::MEMORY,
            timeout: arguments.timeout,
        }
    }

    fn place(&self) -> String {
        guest::place(self.kernel, self.cgroup, self.user)
    }
}

/// What each guest runs of the kernel tests with `--quick`: every test binary once on each layout, and what is about
/// users and kernels elsewhere too. Slow ones first, so that both places stay busy to the end.
///
/// User-Mode Linux 6.12, which is not stable, and most of QEMU, which is many times slower, are left to `--full`.
const QUICK: [(Engine, Version, Layout, User, Tests); 8] = [
    (Engine::Uml, Version::V5_10, Layout::V1, User::Root, EVERYTHING),
    (Engine::Uml, Version::V6_1, Layout::Hybrid, User::Root, EVERYTHING),
    (Engine::Uml, Version::New, Layout::V2, User::Root, EVERYTHING),
    (Engine::Uml, Version::New, Layout::V2, User::Ordinary, ORDINARY),
    (Engine::Qemu, Version::V6_12, Layout::V2, User::Root, DISTRIBUTION),
    (Engine::Uml, Version::V5_10, Layout::V2, User::Ordinary, LIMITS),
    (Engine::Uml, Version::V6_1, Layout::V1, User::Ordinary, LIMITS),
    (Engine::Uml, Version::New, Layout::Hybrid, User::Ordinary, LIMITS),
];

fn quick() -> Vec<Cell> {
    let cell = |(engine, version, cgroup, user, tests)| Cell::new(Kernel { engine, version }, cgroup, user, tests);
    QUICK.map(cell).into()
}

/// Every kernel, layout and user. Slow ones first here too.
fn all() -> Vec<Cell> {
    let mut cells = Vec::new();
    for kernel in kernel::ALL {
        let tame = (kernel.engine, kernel.version) == (Engine::Uml, Version::V6_12);
        for cgroup in [Layout::V1, Layout::Hybrid, Layout::V2] {
            for user in [User::Root, User::Ordinary] {
                cells.push(Cell::new(kernel, cgroup, user, if tame { TAME } else { EVERYTHING }));
            }
        }
    }
    cells.sort_by_key(|cell| std::cmp::Reverse(cell.kernel.engine));
    cells
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Passed,
    Failed,
    Skipped,
}

/// What is known of a guest when it has ended; the machine-readable result is a list of these.
#[derive(Debug, Serialize)]
pub(crate) struct Finding {
    kernel: String,
    release: Option<String>,
    cgroup: String,
    user: String,
    disk: String,
    swap: bool,
    state: State,
    /// Why it failed or was skipped.
    reason: Option<String>,
    seconds: f64,
    /// The sums over `programs`.
    tests_passed: usize,
    tests_failed: usize,
    tests_skipped: usize,
    programs: Vec<ProgramFinding>,
}

#[derive(Debug, Serialize)]
struct ProgramFinding {
    name: String,
    status: Option<u8>,
    seconds: Option<f64>,
    passed: usize,
    failed: usize,
    skipped: usize,
    skips: BTreeSet<String>,
}

/// Runs a command in the guests that `flags` choose; its output lies in [`log_file`] of each.
pub(crate) fn command(flags: &[String], command: &[String]) -> Result<Vec<Finding>> {
    let words = ["matrix"].into_iter().chain(flags.iter().map(String::as_str)).chain(["--"]);
    let words = words.chain(command.iter().map(String::as_str));
    run(&Arguments::try_parse_from(words).context(|| "matrix".into())?)
}

/// Where the output of a guest's programs lies until the next run.
pub(crate) fn log_file(place: &str) -> PathBuf {
    logs().join(format!("{place}.log"))
}

fn logs() -> PathBuf {
    kernel::cache().join("logs")
}

/// The part of `cargo xtask test` that runs in guests: the sums of their tests.
pub(crate) fn tests(full: bool, bless: bool) -> Result<Report> {
    let words = ["matrix"].into_iter().chain((!full).then_some("--quick")).chain(bless.then_some("--bless"));
    let arguments = Arguments::try_parse_from(words).context(|| "matrix".into())?;
    let findings = run(&arguments)?;
    let mut tests = Report::default();
    for finding in &findings {
        tests.passed += finding.tests_passed;
        // A guest can fail without a failed test: it did not boot, or a test skipped that should not.
        tests.failed += finding.tests_failed.max(usize::from(finding.state == State::Failed));
        tests.skipped += finding.tests_skipped + usize::from(finding.state == State::Skipped);
    }
    Ok(tests)
}

/// True when nothing failed and something passed.
pub(crate) fn passed(findings: &[Finding]) -> bool {
    let some = |state| findings.iter().any(|finding| finding.state == state);
    some(State::Passed) && !some(State::Failed)
}

pub(crate) fn print_closing(findings: &[Finding]) {
    let count = |state| findings.iter().filter(|finding| finding.state == state).count();
    println!("{} passed, {} failed, {} skipped", count(State::Passed), count(State::Failed), count(State::Skipped));
}

/// Runs the matrix, prints the table and the reasons of failures, and writes the result file.
pub(crate) fn run(arguments: &Arguments) -> Result<Vec<Finding>> {
    let start = Instant::now();
    let own_tests = arguments.command.is_empty();
    let programs =
        if own_tests { kernel_tests(&arguments.tests)? } else { vec![guest::program(arguments.command.clone())?] };
    let cells = arguments.cells();
    if cells.is_empty() {
        return Err(Error::new("no combination of these kernels, layouts and users"));
    }
    // One matrix at a time: a second would take the first one's logs, and its processors.
    let lock = kernel::cache().join("matrix.lock");
    fs::create_dir_all(kernel::cache()).context(|| format!("cannot make {}", kernel::cache().display()))?;
    let lock = File::create(&lock).context(|| format!("cannot make {}", lock.display()))?;
    flock(&lock, FlockOperation::LockExclusive).context(|| "cannot lock the matrix".into())?;
    let logs = logs();
    let _ = fs::remove_dir_all(&logs);
    fs::create_dir_all(&logs).context(|| format!("cannot make {}", logs.display()))?;

    // Downloads first, one after the other: two at a time are not faster, and a table that waits tells nothing.
    let mut missing = BTreeMap::new();
    for cell in &cells {
        missing.entry(cell.kernel).or_insert_with(|| cell.kernel.install().err().map(|error| error.to_string()));
    }
    let path = skips::file("guests");
    let mut list = SkipList::read(&path)?;
    let expected = (own_tests && !arguments.bless).then(|| list.clone());
    let table = Mutex::new(Table::new(&cells));
    let queue = Mutex::new(cells.iter().enumerate());
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().map(|mut queue| queue.next());
                    let Ok(Some((index, cell))) = next else { return };
                    let finding = match missing.get(&cell.kernel).and_then(Option::as_ref) {
                        Some(reason) => cell.skipped(reason),
                        None => {
                            if let Ok(mut table) = table.lock() {
                                table.begin(index);
                            }
                            cell.visit(arguments, &programs, own_tests, expected.as_ref())
                        }
                    };
                    if let Ok(mut table) = table.lock() {
                        table.end(index, finding);
                    }
                }
            });
        }
    });
    let findings = table.into_inner().map_err(|_| Error::new("a guest's thread panicked"))?.finish();
    if arguments.bless && own_tests {
        for (cell, finding) in cells.iter().zip(&findings).filter(|(_, finding)| finding.state != State::Skipped) {
            list.bless(&cell.place(), &finding.seen());
        }
        list.write(&path)?;
    }
    let result = result_file();
    let text = serde_json::to_string_pretty(&findings).context(|| "cannot write the result".into())?;
    fs::write(&result, text).context(|| format!("cannot write {}", result.display()))?;
    println!("result: {}, logs: {}, {:.0} s", result.display(), logs.display(), start.elapsed().as_secs_f64());
    Ok(findings)
}

/// Integration tests by these names do without the kernel, wherever they are: once, on the host, is enough.
const WITHOUT_KERNEL: [&str; 4] = ["differential.rs", "explained.rs", "golden.rs", "properties.rs"];

/// The family's integration tests that meet the kernel. (Ours boot guests themselves.)
fn kernel_tests(prefixes: &[String]) -> Result<Vec<Program>> {
    let without = |name: &str| WITHOUT_KERNEL.iter().any(|file| name.ends_with(&format!("/{file}")));
    let binaries = cargo::test_binaries()?.into_iter();
    let binaries =
        binaries.filter(|binary| binary.integration && !binary.name.starts_with("xtask/") && !without(&binary.name));
    let binaries = binaries.filter(|binary| prefixes.is_empty() || begins(&binary.name, prefixes));
    let program = |binary: cargo::TestBinary| {
        let mut environment = guest::environment();
        // Whether skipping is allowed is said for each guest; a backtrace costs an emulated kernel seconds.
        environment.retain(|(name, _)| ![REQUIRE_ALL, "RUST_BACKTRACE"].contains(&&**name));
        environment.push(("CARGO_MANIFEST_DIR".into(), binary.directory.display().to_string()));
        Program {
            name: binary.name,
            arguments: vec![binary.executable.display().to_string()],
            environment,
            directory: binary.directory,
            limit: PROGRAM_LIMIT,
        }
    };
    Ok(binaries.map(program).collect())
}

impl Cell {
    fn finding(&self, state: State, reason: Option<String>) -> Finding {
        Finding {
            kernel: self.kernel.to_string(),
            release: self.kernel.installed().map(|installed| installed.release),
            cgroup: self.cgroup.to_string(),
            user: self.user.to_string(),
            disk: self.disk.to_string(),
            swap: self.swap,
            state,
            reason,
            seconds: 0.0,
            tests_passed: 0,
            tests_failed: 0,
            tests_skipped: 0,
            programs: Vec::new(),
        }
    }

    fn skipped(&self, reason: &str) -> Finding {
        self.finding(State::Skipped, Some(reason.to_owned()))
    }

    /// Tests to leave out, with the reason.
    fn fatal(&self) -> Vec<Fatal> {
        let here =
            |entry: &&(Engine, Version, &str, &str)| (entry.0, entry.1) == (self.kernel.engine, self.kernel.version);
        FATAL.iter().filter(here).map(|(_, _, test, why)| (*test, *why)).collect()
    }

    /// The test binaries for this guest, without what is fatal here, and told to fail instead of skipping where `list`
    /// knows of no skip.
    fn tests(&self, binaries: &[Program], list: Option<&SkipList>) -> Vec<Program> {
        let mut programs: Vec<_> = binaries.iter().filter(|binary| begins(&binary.name, self.tests)).cloned().collect();
        for program in &mut programs {
            for (test, _) in self.fatal() {
                program.arguments.extend(["--skip".into(), test.into()]);
            }
            if list.is_some_and(|list| !list.knows(&self.place(), &program.name)) {
                program.environment.push((REQUIRE_ALL.into(), "1".into()));
            }
        }
        programs
    }

    /// Boots the guest and reads what came of it: `tests` of ours, or one command.
    fn visit(&self, arguments: &Arguments, programs: &[Program], tests: bool, list: Option<&SkipList>) -> Finding {
        let start = Instant::now();
        let log = log_file(&self.place());
        let programs = if tests { self.tests(programs, list) } else { programs.to_vec() };
        let outcome = File::create(&log)
            .context(|| format!("cannot make {}", log.display()))
            .and_then(|file| guest::run(self.kernel, &self.options(arguments), programs.clone(), file));
        let mut finding = match outcome {
            Err(error) => self.finding(State::Failed, Some(error.to_string())),
            Ok(outcome) => {
                let text = fs::read(&log).unwrap_or_default();
                let judged = judge(&String::from_utf8_lossy(&text), &programs, &outcome, tests, &self.fatal());
                let mut finding = self.finding(State::Passed, None);
                finding.programs = judged.programs;
                finding.tests_passed = finding.programs.iter().map(|program| program.passed).sum();
                finding.tests_failed = finding.programs.iter().map(|program| program.failed).sum();
                finding.tests_skipped = finding.programs.iter().map(|program| program.skipped).sum();
                (finding.state, finding.reason) = (judged.state, judged.reason);
                if finding.state == State::Failed && outcome.results.len() < programs.len() {
                    let console = format!("\n== console\n{}\n", outcome.console);
                    let _ =
                        File::options().append(true).open(&log).and_then(|mut file| file.write_all(console.as_bytes()));
                }
                if let Some(list) = list {
                    finding.compare(list, &self.place());
                }
                finding
            }
        };
        finding.seconds = start.elapsed().as_secs_f64();
        finding
    }
}

impl Finding {
    fn seen(&self) -> Seen {
        let skips = |program: &ProgramFinding| {
            program.skips.iter().map(|skip| format!("{} {skip}", program.name)).collect::<Vec<_>>()
        };
        Seen {
            programs: self.programs.iter().map(|program| program.name.clone()).collect(),
            skips: self.programs.iter().flat_map(skips).collect(),
        }
    }

    /// A guest's kernel, layout, user and disk are given: a test that skips in it must be in the list.
    fn compare(&mut self, list: &SkipList, place: &str) {
        if self.state != State::Passed {
            return;
        }
        let difference = list.compare(place, &self.seen());
        if !difference.new.is_empty() {
            self.state = State::Failed;
            self.reason =
                Some(format!("skips what xtask/skips/guests.txt does not list: {}", difference.new.join(" | ")));
        } else if !difference.gone.is_empty() {
            // No failure: the newest kernel moves, and gains features.
            self.reason = Some(format!("listed, but did not skip: {}", difference.gone.join(" | ")));
        }
    }
}

struct Judged {
    state: State,
    reason: Option<String>,
    programs: Vec<ProgramFinding>,
}

/// A test to leave out, and what it needs of a kernel.
type Fatal = (&'static str, &'static str);

/// What the log and the statuses say. `tests`: the programs are test binaries, else one command.
fn judge(log: &str, programs: &[Program], outcome: &guest::Outcome, tests: bool, fatal: &[Fatal]) -> Judged {
    let sections = sections(log, programs);
    let mut failures = Vec::new();
    let mut skipped = false;
    let mut found = Vec::new();
    for (index, program) in programs.iter().enumerate() {
        let result = outcome.results.get(index);
        let status = result.map(|result| result.status);
        let mut report = sections.get(index).and_then(|text| Report::parse(text)).filter(|_| tests).unwrap_or_default();
        let closed = sections.get(index).is_some_and(|text| Report::parse(text).is_some());
        match status {
            Some(0) if closed || !tests => {}
            Some(SKIP_STATUS) if !tests => skipped = true,
            Some(status) => {
                report.failed = report.failed.max(usize::from(tests));
                failures.push(format!("{}: {}", program.name, status_words(status, report.failed)));
            }
            None => {
                report.failed = report.failed.max(usize::from(tests));
                let why = if outcome.timed_out { "the guest's time was over" } else { "the guest ended" };
                let last = outcome.console.lines().last().unwrap_or("nothing");
                failures.push(format!("{}: {why}, its console's last line: {last}", program.name));
            }
        }
        if report.filtered > 0 {
            report.skips.extend(fatal.iter().map(|(test, why)| format!("{test}: {why}")));
            report.skipped += report.filtered;
        }
        found.push(ProgramFinding {
            name: program.name.clone(),
            status,
            seconds: result.map(|result| result.seconds),
            passed: report.passed,
            failed: report.failed,
            skipped: report.skipped,
            skips: report.skips,
        });
        if status.is_none() {
            break; // nothing is known of the rest
        }
    }
    let state = match (failures.is_empty(), skipped) {
        (false, _) => State::Failed,
        (true, true) => State::Skipped,
        (true, false) => State::Passed,
    };
    let reason =
        (!failures.is_empty()).then(|| failures.join(" | ")).or_else(|| skipped.then(|| "the command said so".into()));
    Judged { state, reason, programs: found }
}

fn status_words(status: u8, failed: usize) -> String {
    match status {
        0 => "no closing line of its tests".into(),
        101 if failed > 0 => format!("{failed} failed"),
        124 => "its time was over".into(),
        129.. => format!("killed by signal {}", status - 128),
        status => format!("exit status {status}"),
    }
}

/// The log cut at the lines by which the guest announces its programs; whole when there is one only.
fn sections(log: &str, programs: &[Program]) -> Vec<String> {
    if programs.len() == 1 {
        return vec![log.to_owned()];
    }
    let mut sections: Vec<String> = Vec::new();
    for line in log.split_inclusive('\n') {
        let next = programs.get(sections.len());
        if next.is_some_and(|program| line.trim_end() == guest::job::heading(&program.name)) {
            sections.push(String::new());
        } else if let Some(section) = sections.last_mut() {
            section.push_str(line);
        }
    }
    sections
}

/// The table that fills as guests end; redrawn in place on a terminal, else a line for each guest and the table at last.
struct Table {
    cells: Vec<(Cell, Progress)>,
    live: bool,
    drawn: usize,
}

enum Progress {
    Waiting,
    Running,
    Done(Box<Finding>),
}

impl Table {
    fn new(cells: &[Cell]) -> Self {
        let live = io::stdout().is_terminal();
        let cells = cells.iter().map(|cell| (*cell, Progress::Waiting)).collect();
        Self { cells, live, drawn: 0 }
    }

    fn begin(&mut self, index: usize) {
        self.cells[index].1 = Progress::Running;
        self.draw();
    }

    fn end(&mut self, index: usize, finding: Finding) {
        if !self.live {
            println!("{} {}{}", self.cells[index].0.place(), finding.words(), finding.reason_words());
        }
        self.cells[index].1 = Progress::Done(Box::new(finding));
        self.draw();
    }

    fn draw(&mut self) {
        if self.live {
            let text = self.to_string();
            // Up over what was drawn before; each line clears what is right of it.
            let up = if self.drawn == 0 { String::new() } else { format!("\x1b[{}A", self.drawn) };
            print!("{up}{}", text.replace('\n', "\x1b[K\n"));
            let _ = io::stdout().flush();
            self.drawn = text.lines().count();
        }
    }

    fn finish(self) -> Vec<Finding> {
        if !self.live {
            print!("{self}");
        }
        let findings = self.cells.into_iter().filter_map(|(cell, progress)| match progress {
            Progress::Done(finding) => Some((cell, finding)),
            Progress::Waiting | Progress::Running => None,
        });
        let findings: Vec<_> = findings.collect();
        for (cell, finding) in findings.iter().filter(|(_, finding)| self.live && finding.reason.is_some()) {
            println!("{} {}{}", cell.place(), finding.words(), finding.reason_words());
        }
        findings.into_iter().map(|(_, finding)| *finding).collect()
    }
}

impl Finding {
    fn words(&self) -> String {
        let state = match self.state {
            State::Passed => "ok",
            State::Failed => "FAIL",
            State::Skipped => "skip",
        };
        let mut words = format!("{state} {:.0}s", self.seconds);
        if !self.programs.is_empty() && self.tests_passed + self.tests_failed + self.tests_skipped > 0 {
            let _ = write!(words, " {}/{}/{}", self.tests_passed, self.tests_failed, self.tests_skipped);
        }
        words
    }

    fn reason_words(&self) -> String {
        self.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"))
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut columns: Vec<_> = self.cells.iter().map(|(cell, _)| (cell.cgroup, cell.user)).collect();
        columns.sort();
        columns.dedup();
        let mut kernels: Vec<_> = self.cells.iter().map(|(cell, _)| cell.kernel).collect();
        kernels.sort();
        kernels.dedup();
        write!(f, "{:<10}", "kernel")?;
        for (cgroup, user) in &columns {
            write!(f, " {:<18}", format!("{cgroup}/{user}"))?;
        }
        writeln!(f)?;
        for kernel in kernels {
            write!(f, "{kernel:<10}")?;
            for (cgroup, user) in &columns {
                let here = |cell: &Cell| (cell.kernel, cell.cgroup, cell.user) == (kernel, *cgroup, *user);
                let word = match self.cells.iter().find(|(cell, _)| here(cell)) {
                    None => "-".into(),
                    Some((_, Progress::Waiting)) => "…".into(),
                    Some((_, Progress::Running)) => "running".into(),
                    Some((_, Progress::Done(finding))) => finding.words(),
                };
                write!(f, " {word:<18}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// Where the result of the last run lies.
fn result_file() -> PathBuf {
    kernel::cache().join("matrix.json")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::job::ProgramResult;

    fn programs(names: &[&str]) -> Vec<Program> {
        let program = |name: &&str| Program {
            name: (*name).into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            directory: PathBuf::new(),
            limit: 1,
        };
        names.iter().map(program).collect()
    }

    fn outcome(statuses: &[u8]) -> guest::Outcome {
        let results = statuses.iter().map(|status| ProgramResult { status: *status, seconds: 1.0 }).collect();
        guest::Outcome { results, timed_out: false, console: String::new() }
    }

    const LOG: &str = "== a\ntest result: ok. 2 passed; 0 failed; 0 ignored\n== b\nSKIP x: needs y; found z\n\
                       test result: ok. 1 passed; 0 failed; 0 ignored\n";

    #[test]
    fn a_guest_in_which_all_is_well_passes() {
        let judged = judge(LOG, &programs(&["a", "b"]), &outcome(&[0, 0]), true, &[]);
        assert_eq!(judged.state, State::Passed);
        assert_eq!((judged.programs[0].passed, judged.programs[1].passed, judged.programs[1].skipped), (2, 0, 1));
        assert!(judged.programs[1].skips.contains("x: needs y"));
    }

    #[test]
    fn what_is_not_seen_to_pass_fails() {
        let names = ["a", "b"];
        for (log, statuses) in [
            (LOG, &[0, 101][..]),          // a failed test
            (LOG, &[0, 139][..]),          // killed
            (LOG, &[0, 124][..]),          // over its limit
            (LOG, &[0, 77][..]),           // not a test binary's way to skip
            (LOG, &[0][..]),               // the guest ended between
            (LOG, &[][..]),                // the guest did not get so far
            ("== a\n== b\n", &[0, 0][..]), // status 0, but no test was run
            ("", &[0, 0][..]),             // output lost
        ] {
            let judged = judge(log, &programs(&names), &outcome(statuses), true, &[]);
            assert_eq!(judged.state, State::Failed, "{statuses:?} {log}");
            assert!(judged.programs.iter().map(|program| program.failed).sum::<usize>() > 0);
        }
    }

    #[test]
    fn a_test_left_out_counts_and_lists_as_skipped() {
        let log = "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 1 filtered out; finished in 0.1s\n";
        let judged = judge(log, &programs(&["a"]), &outcome(&[0]), true, &[("bomb", "needs a kernel")]);
        assert_eq!((judged.programs[0].passed, judged.programs[0].skipped), (2, 1));
        assert!(judged.programs[0].skips.contains("bomb: needs a kernel"));
    }

    #[test]
    fn a_command_passes_fails_or_skips_by_its_status() {
        for (status, state) in [(0, State::Passed), (1, State::Failed), (77, State::Skipped)] {
            assert_eq!(judge("text", &programs(&["true"]), &outcome(&[status]), false, &[]).state, state);
        }
    }

    #[test]
    fn a_skip_that_the_list_lacks_fails() {
        let cell = quick()[0];
        let finding = || {
            let mut finding = cell.finding(State::Passed, None);
            finding.programs = judge(LOG, &programs(&["a", "b"]), &outcome(&[0, 0]), true, &[]).programs;
            finding
        };
        let mut list = SkipList::default();
        let mut unlisted = finding();
        unlisted.compare(&list, &cell.place());
        assert_eq!(unlisted.state, State::Failed);
        list.bless(&cell.place(), &finding().seen());
        let mut listed = finding();
        listed.compare(&list, &cell.place());
        assert_eq!(listed.state, State::Passed);
    }

    #[test]
    fn the_quick_choice_covers() {
        let cells = quick();
        for layout in [Layout::V1, Layout::Hybrid, Layout::V2] {
            let here = || cells.iter().filter(|cell| cell.cgroup == layout);
            assert!(here().any(|cell| cell.user == User::Root && cell.tests == EVERYTHING), "{layout} with every test");
            let limits = |cell: &&Cell| begins("sandbox/tests/memory.rs", cell.tests);
            assert!(here().filter(limits).any(|cell| cell.swap), "memory on {layout} with swap");
            assert!(here().filter(limits).any(|cell| !cell.swap), "memory on {layout} without swap");
            assert!(here().filter(limits).any(|cell| cell.user == User::Ordinary), "an ordinary user on {layout}");
        }
        for disk in [DiskKind::Xfs, DiskKind::Ext4] {
            let fit = |cell: &Cell| cell.disk == disk && cell.user == User::Root && cell.tests == EVERYTHING;
            assert!(cells.iter().any(fit), "quota on {disk}");
        }
        for version in [Version::V5_10, Version::New] {
            for user in [User::Root, User::Ordinary] {
                assert!(cells.iter().any(|cell| (cell.kernel.version, cell.user) == (version, user)), "{user}");
            }
        }
    }

    #[test]
    fn the_table_shows_each_guest_once() {
        let cells = quick();
        let table =
            Table { cells: cells.iter().map(|cell| (*cell, Progress::Waiting)).collect(), live: false, drawn: 0 };
        assert_eq!(table.to_string().matches('…').count(), cells.len());
    }
}
