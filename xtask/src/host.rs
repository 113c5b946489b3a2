//! The checks that need no guest: format, lints, documentation, and the tests on this machine's own kernel.

use std::io::{self, Write as _};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::cargo::{self, cargo};
use crate::error::{Error, Result};
use crate::libtest::Report;
use crate::packages::{self, Need};
use crate::run::{Ended, tee};
use crate::skips::{self, HOST, Seen, SkipList};

/// For a compilation of everything on a slow machine.
const BUILD_LIMIT: Duration = Duration::from_secs(20 * 60);
/// For one test binary.
const TEST_LIMIT: Duration = Duration::from_secs(5 * 60);

/// Makes the facade's tests use pools of so many prepared instances.
const PREPARED: &str = "SANDBOX_TEST_PREPARED";

/// Runs all of it, also after a failure, so that one run shows everything. With `bless` the list of skips is written anew.
pub(crate) fn run(bless: bool) -> Result<Report> {
    if let Err(error) = packages::ensure(&[Need::Host]) {
        eprintln!("xtask: {error}; tests that need them will skip");
    }
    let mut total = Report::default();
    step(&mut total, "format", || checked(cargo(&["fmt", "--all", "--check"])));
    step(&mut total, "lints", || checked(cargo(&["clippy", "--quiet", "--all-targets", "--", "--deny", "warnings"])));
    step(&mut total, "documentation", || {
        let mut doc = cargo(&["doc", "--quiet", "--no-deps", "--document-private-items"]);
        doc.env("RUSTDOCFLAGS", "--deny warnings --allow rustdoc::private_intra_doc_links");
        checked(doc)
    });
    let mut seen = Seen::default();
    let mut binaries = Vec::new();
    step(&mut total, "build of the tests", || {
        binaries = cargo::test_binaries()?;
        Ok(())
    });
    for binary in &binaries {
        let report = tests(&binary.name, binary.command());
        seen.skips.extend(report.skips.iter().map(|skip| format!("{} {skip}", binary.name)));
        seen.programs.insert(binary.name.clone());
        total.add(&report);
    }
    for binary in binaries.iter().filter(|binary| binary.name.starts_with("sandbox/tests/")) {
        let mut command = binary.command();
        command.env(PREPARED, "2");
        let mut report = tests(&format!("{} with pools", binary.name), command);
        let before = seen.skips.len();
        seen.skips.extend(report.skips.iter().map(|skip| format!("{} {skip}", binary.name)));
        // They are the same tests: what skips has been counted.
        report.skipped = seen.skips.len() - before;
        total.add(&report);
    }
    total.add(&tests("documentation examples", cargo(&["test", "--quiet", "--doc"])));
    compare_skips(&seen, bless, &mut total)?;
    Ok(total)
}

/// One named check, counted as a test.
fn step(total: &mut Report, name: &str, check: impl FnOnce() -> Result<()>) {
    eprintln!("== {name}");
    let start = Instant::now();
    let result = check();
    match &result {
        Ok(()) => total.passed += 1,
        Err(_) => total.failed += 1,
    }
    let words = result.map_or_else(|error| format!("FAILED: {error}"), |()| "ok".into());
    eprintln!("== {name}: {words}, {:.1} s", start.elapsed().as_secs_f64());
}

fn checked(command: Command) -> Result<()> {
    let words: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy().into_owned()).collect();
    match tee(command, BUILD_LIMIT, show)? {
        ended if ended.success() => Ok(()),
        Ended::Exited(status) => Err(Error::new(format!("cargo {}: {status}", words.join(" ")))),
        Ended::TimedOut => {
            Err(Error::new(format!("cargo {}: no end after {} s", words.join(" "), BUILD_LIMIT.as_secs())))
        }
    }
}

/// Runs one test binary and reports on it. One that dies, hangs or cannot start is one failure more.
fn tests(name: &str, command: Command) -> Report {
    eprintln!("== {name}");
    let mut text = Vec::new();
    let ended = tee(command, TEST_LIMIT, |bytes| {
        show(bytes);
        text.extend_from_slice(bytes);
    });
    let (mut report, closed) = match Report::parse(&String::from_utf8_lossy(&text)) {
        Some(report) => (report, true),
        None => (Report::default(), false),
    };
    let wrong = match ended {
        Ok(ended) if ended.success() && closed => return report,
        Ok(Ended::Exited(status)) if closed && report.failed > 0 => format!("{} failed, {status}", report.failed),
        Ok(Ended::Exited(status)) => {
            report.failed += 1;
            format!("died: {status}")
        }
        Ok(Ended::TimedOut) => {
            report.failed += 1;
            format!("no end after {} s", TEST_LIMIT.as_secs())
        }
        Err(error) => {
            report.failed += 1;
            error.to_string()
        }
    };
    eprintln!("== {name}: FAILED: {wrong}");
    report
}

/// A test that skips here but not in the list fails the run; one that skips no more is only told of, since another
/// machine may give what the listed one lacks.
fn compare_skips(seen: &Seen, bless: bool, total: &mut Report) -> Result<()> {
    let path = skips::file("host");
    let mut list = SkipList::read(&path)?;
    if bless {
        list.bless(HOST, seen);
        return list.write(&path);
    }
    let difference = list.compare(HOST, seen);
    for skip in &difference.new {
        eprintln!(
            "xtask: skips, but {} does not list it (bless with `cargo xtask test --host --bless`): {skip}",
            path.display()
        );
    }
    for skip in &difference.gone {
        eprintln!("xtask: listed in {}, but did not skip: {skip}", path.display());
    }
    total.failed += difference.new.len();
    eprintln!(
        "== {} SKIPs on this host, {} new, {} of the list gone",
        seen.skips.len(),
        difference.new.len(),
        difference.gone.len()
    );
    Ok(())
}

fn show(bytes: &[u8]) {
    // Nobody left to read it is no reason to stop testing.
    let _ = io::stderr().write_all(bytes);
}
