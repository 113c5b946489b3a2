//! What a test binary's output says: the counts of libtest, and the `SKIP` lines of our own tests.

use std::collections::BTreeSet;

/// Counts of one or more runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    /// Tests that said `SKIP` and tests marked `#[ignore]`.
    pub(crate) skipped: usize,
    /// Left out by name on the command line.
    pub(crate) filtered: usize,
    /// `TEST: needs …` of each `SKIP` line. What was found instead is left out: it differs between machines.
    pub(crate) skips: BTreeSet<String>,
}

impl Report {
    /// Reads the whole output of a test binary. `None` without a closing line of libtest: it did not get that far.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut report = Self::default();
        let mut closed = false;
        for line in text.lines() {
            if let Some(skip) = skip_line(line) {
                report.skips.insert(skip);
            } else if let Some(counts) = line.strip_prefix("test result: ") {
                closed = true;
                report.passed += count(counts, "passed");
                report.failed += count(counts, "failed");
                report.skipped += count(counts, "ignored");
                report.filtered += count(counts, "filtered out");
            }
        }
        // libtest counts a test that skipped as passed.
        let skips = report.skips.len().min(report.passed);
        report.passed -= skips;
        report.skipped += skips;
        closed.then_some(report)
    }

    /// Adds the counts of `other`; its skips belong to a binary and are kept by the caller.
    pub(crate) fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// `SKIP name: needs …; found …`, perhaps behind a line that libtest has not ended yet: it writes `test name ... `, the
/// verdict and the end of the line one after the other, while other tests go on.
fn skip_line(line: &str) -> Option<String> {
    const UNFINISHED: [&str; 4] = ["... ", "... ok", "... FAILED", "... ignored"];
    let at = line.find("SKIP ")?;
    if at != 0 && !UNFINISHED.iter().any(|end| line[..at].ends_with(end)) {
        return None;
    }
    let (name, reason) = line[at + "SKIP ".len()..].split_once(": ")?;
    let needs = reason.split_once("; found").map_or(reason, |(needs, _)| needs);
    Some(format!("{name}: {}", needs.trim_end()))
}

/// The number before `word` in `ok. 3 passed; 0 failed; …`.
fn count(counts: &str, word: &str) -> usize {
    let number = |part: &str| part.trim().strip_suffix(word)?.trim_end().rsplit(' ').next()?.parse().ok();
    counts.split(';').find_map(number).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_skips() {
        let text = "running 3 tests\n\
                    SKIP hog: needs controller memory; found cpu pids\n\
                    test hog ... ok\n\
                    test swap ... SKIP swap: needs swap\n\
                    ok\n\
                    test late ... okSKIP quota: needs a disk; found none\n\
                    \n\
                    test quota ... ok\n\
                    test fork ... FAILED\n\
                    test result: FAILED. 4 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.10s\n";
        let report = Report::parse(text).unwrap();
        assert_eq!((report.passed, report.failed, report.skipped), (1, 1, 4));
        let skips = ["hog: needs controller memory", "quota: needs a disk", "swap: needs swap"];
        assert_eq!(Vec::from_iter(report.skips), skips);
    }

    #[test]
    fn no_closing_line_is_no_report() {
        assert_eq!(Report::parse("running 3 tests\ntest a ... ok\n"), None);
        assert_eq!(Report::parse(""), None);
    }

    #[test]
    fn a_program_that_prints_skip_in_a_sentence_is_not_one() {
        assert_eq!(skip_line("nothing to SKIP here: really"), None);
    }

    #[test]
    fn several_closing_lines_add_up() {
        let line = "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n";
        assert_eq!(Report::parse(&line.repeat(2)).unwrap().passed, 4);
    }
}
