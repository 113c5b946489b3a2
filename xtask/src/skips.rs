//! The checked-in lists of tests that skip, so that none begins or ceases to skip unseen.
//!
//! A list is a text file: `BINARY TEST: needs …` on a line, and below it, indented, the guests in which it skips
//! (none in the host's list). Lines that begin with `#` are comments; the first ones are kept.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::cargo;
use crate::error::{Context, Result};

/// The place of the host's own list.
pub(crate) const HOST: &str = "";

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SkipList {
    head: String,
    places: BTreeMap<String, BTreeSet<String>>,
}

/// What a run in one place saw: its programs, and `PROGRAM TEST: needs …` of what they skipped.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) programs: BTreeSet<String>,
    pub(crate) skips: BTreeSet<String>,
}

/// What differs between a run and the list.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Difference {
    /// Skipped now, not in the list: something lost its test.
    pub(crate) new: Vec<String>,
    /// In the list, but not skipped now: the test runs, or it is gone.
    pub(crate) gone: Vec<String>,
}

/// `xtask/skips/NAME.txt`.
pub(crate) fn file(name: &str) -> PathBuf {
    cargo::root().join("xtask/skips").join(name).with_extension("txt")
}

impl SkipList {
    /// An absent file is an empty list.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        match fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            text => Ok(Self::parse(&text.context(|| format!("cannot read {}", path.display()))?)),
        }
    }

    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        fs::write(path, self.to_string()).context(|| format!("cannot write {}", path.display()))
    }

    fn parse(text: &str) -> Self {
        let mut list = Self::default();
        let mut last = None;
        for line in text.lines() {
            if line.starts_with('#') {
                if last.is_none() {
                    let _ = writeln!(list.head, "{line}");
                }
            } else if let Some(places) = line.strip_prefix(' ') {
                let places = places.split_whitespace().map(str::to_owned);
                last.iter().for_each(|key: &String| {
                    list.places.entry(key.clone()).or_default().extend(places.clone());
                });
            } else if !line.trim().is_empty() {
                list.places.entry(line.to_owned()).or_default();
                last = Some(line.to_owned());
            }
        }
        list
    }

    /// What is listed for `place`.
    fn skips_at<'a>(&'a self, place: &'a str) -> impl Iterator<Item = &'a String> {
        let here = move |places: &BTreeSet<String>| places.contains(place) || (place == HOST && places.is_empty());
        self.places.iter().filter(move |(_, places)| here(places)).map(|(skip, _)| skip)
    }

    /// Whether a test of `program` is listed for `place`.
    pub(crate) fn knows(&self, place: &str, program: &str) -> bool {
        self.skips_at(place).any(|skip| parts(skip).0 == program)
    }

    /// What the list says of programs that did not run is no difference.
    pub(crate) fn compare(&self, place: &str, seen: &Seen) -> Difference {
        let listed = self.skips_at(place).filter(|skip| seen.programs.contains(parts(skip).0));
        let listed: BTreeSet<_> = listed.cloned().collect();
        Difference {
            new: seen.skips.difference(&listed).cloned().collect(),
            gone: listed.difference(&seen.skips).cloned().collect(),
        }
    }

    /// Replaces what the list says of these programs in `place`.
    pub(crate) fn bless(&mut self, place: &str, seen: &Seen) {
        for skip in self.compare(place, seen).gone {
            if let Some(places) = self.places.get_mut(&skip) {
                places.remove(place);
                if places.is_empty() {
                    self.places.remove(&skip);
                }
            }
        }
        for skip in &seen.skips {
            let places = self.places.entry(skip.clone()).or_default();
            if place != HOST {
                places.insert(place.to_owned());
            }
        }
    }

    /// Each skip with the guests in which it skips, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&String, &BTreeSet<String>)> {
        self.places.iter()
    }
}

/// Program, test and need of a line of the list.
pub(crate) fn parts(skip: &str) -> (&str, &str, &str) {
    let (program, rest) = skip.split_once(' ').unwrap_or((skip, ""));
    let (test, need) = rest.split_once(": ").unwrap_or((rest, ""));
    (program, test, need)
}

impl std::fmt::Display for SkipList {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.head)?;
        for (skip, places) in &self.places {
            writeln!(f, "{skip}")?;
            let mut width = usize::MAX;
            for (index, place) in places.iter().enumerate() {
                if width.saturating_add(place.len() + 1) > 120 {
                    f.write_str(if index == 0 { "   " } else { "\n   " })?;
                    width = 3;
                }
                write!(f, " {place}")?;
                width += place.len() + 1;
            }
            if !places.is_empty() {
                writeln!(f)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUESTS: &str =
        "# head\na hog: needs memory\n    uml-6.12.v1.root uml-new.v1.root\nb swap: needs swap\n    uml-new.v1.root\n";

    /// A run of the programs `a`, `b` and `c`.
    fn seen(skips: &[&str]) -> Seen {
        let set = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        Seen { programs: set(&["a", "b", "c"]), skips: set(skips) }
    }

    #[test]
    fn a_list_is_written_as_it_was_read() {
        assert_eq!(SkipList::parse(GUESTS).to_string(), GUESTS);
        let host = "a hog: needs memory\nb swap: needs swap\n";
        assert_eq!(SkipList::parse(host).to_string(), host);
    }

    #[test]
    fn what_is_new_and_what_is_gone() {
        let list = SkipList::parse(GUESTS);
        let difference = list.compare("uml-new.v1.root", &seen(&["a hog: needs memory", "c io: needs io"]));
        assert_eq!(
            difference,
            Difference { new: vec!["c io: needs io".into()], gone: vec!["b swap: needs swap".into()] }
        );
        assert_eq!(list.compare("uml-6.12.v1.root", &seen(&["a hog: needs memory"])), Difference::default());
    }

    #[test]
    fn what_did_not_run_is_neither_gone_nor_blessed_away() {
        let mut list = SkipList::parse(GUESTS);
        let a = Seen { programs: BTreeSet::from(["a".to_owned()]), skips: BTreeSet::new() };
        assert_eq!(list.compare("uml-new.v1.root", &a).gone, ["a hog: needs memory"]);
        list.bless("uml-new.v1.root", &a);
        assert!(list.knows("uml-new.v1.root", "b") && !list.knows("uml-new.v1.root", "a"));
    }

    #[test]
    fn every_listed_program_exists() {
        for name in ["host", "guests"] {
            let list = SkipList::read(&file(name)).unwrap();
            let missing = list.iter().map(|(skip, _)| parts(skip).0).filter(|it| !cargo::root().join(it).exists());
            assert_eq!(missing.collect::<Vec<_>>(), [""; 0], "bless, or remove the lines from {name}.txt");
        }
    }

    #[test]
    fn blessing_one_place_leaves_the_others() {
        let mut list = SkipList::parse(GUESTS);
        list.bless("uml-new.v1.root", &seen(&["c io: needs io"]));
        assert_eq!(
            list.to_string(),
            "# head\na hog: needs memory\n    uml-6.12.v1.root\nc io: needs io\n    uml-new.v1.root\n"
        );
    }

    #[test]
    fn blessing_the_host() {
        let mut list = SkipList::parse("a hog: needs memory\n");
        list.bless(HOST, &seen(&["b swap: needs swap"]));
        assert_eq!(list.to_string(), "b swap: needs swap\n");
        assert_eq!(list.compare(HOST, &seen(&["b swap: needs swap"])), Difference::default());
    }
}
