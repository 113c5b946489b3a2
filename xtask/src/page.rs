//! `docs/kernels.md`: what each kernel gives, as the `doctor` example says it in the guests, and which tests skip where.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;

use serde::Deserialize;

use crate::cargo;
use crate::error::{Context, Error, Result};
use crate::guest::job::Layout;
use crate::guest::kernel::{self, Kernel};
use crate::guest::{self, User};
use crate::matrix;
use crate::skips::{self, SkipList};

/// One feature in one guest; the doctor's output is a list of these.
#[derive(Clone, Debug, Deserialize)]
struct Feature {
    feature: String,
    state: String,
    detail: Option<String>,
}

/// A section of the page: the guests of one kind.
const SECTIONS: [(Layout, User, &str); 4] = [
    (Layout::V2, User::Root, "cgroup v2, root"),
    (Layout::V2, User::Ordinary, "cgroup v2, an ordinary user with subordinate ids and a delegated cgroup"),
    (Layout::Hybrid, User::Root, "cgroup v1 with v2 beside it (hybrid), root"),
    (Layout::V1, User::Root, "cgroup v1, root"),
];

/// Boots every kernel in every section's way and writes the page.
pub(crate) fn write() -> Result<()> {
    let mut found: BTreeMap<(Layout, User), BTreeMap<Kernel, Vec<Feature>>> = BTreeMap::new();
    match doctor()? {
        None => eprintln!("xtask: no example `doctor` yet: the page has the lists of skips only"),
        Some(doctor) => {
            for (cgroup, user, _) in SECTIONS {
                let flags = [format!("--cgroup={cgroup}"), format!("--user={user}"), "--disk=xfs".into()];
                matrix::command(&flags, &[doctor.clone(), "--json".into()])?;
                let heard = kernel::ALL.into_iter().filter_map(|kernel| {
                    let log = matrix::log_file(&guest::place(kernel, cgroup, user));
                    Some((kernel, features(&fs::read_to_string(log).ok()?)?))
                });
                found.insert((cgroup, user), heard.collect());
            }
        }
    }
    let path = cargo::root().join("docs/kernels.md");
    let text = page(&found, &SkipList::read(&skips::file("guests"))?);
    fs::write(&path, text).context(|| format!("cannot write {}", path.display()))?;
    println!("written: {}", path.display());
    Ok(())
}

/// The built example, unless there is none.
fn doctor() -> Result<Option<String>> {
    if !cargo::root().join("examples/examples/doctor.rs").exists() {
        return Ok(None);
    }
    let built = cargo::build(&["build", "--quiet", "--package", "sandbox-examples", "--example", "doctor"])?;
    let path = built.into_iter().filter_map(|artifact| artifact.executable).next_back();
    path.map(|path| Some(path.display().to_string())).ok_or_else(|| Error::new("cargo built no doctor"))
}

/// The doctor's answer out of a log that has its complaints too.
fn features(log: &str) -> Option<Vec<Feature>> {
    let start = log.find('[')?;
    serde_json::Deserializer::from_str(&log[start..]).into_iter().next()?.ok()
}

fn page(found: &BTreeMap<(Layout, User), BTreeMap<Kernel, Vec<Feature>>>, skips: &SkipList) -> String {
    let mut page = String::from(
        "# Kernels\n\n\
         Written by `cargo xtask kernels`, not by hand: what `doctor --json` said in a guest of each kernel, and which tests\n\
         skip where. `uml-*` is User-Mode Linux, `qemu-*` is Debian's kernel for real machines; `*-new` is the newest that\n\
         Debian has. Of the guests: `cargo xtask guest --list`.\n",
    );
    for (cgroup, user, title) in SECTIONS {
        if let Some(kernels) = found.get(&(cgroup, user)).filter(|kernels| !kernels.is_empty()) {
            let _ = write!(page, "\n## {}{}\n\n", &title[..1].to_uppercase(), &title[1..]);
            section(&mut page, kernels);
        }
    }
    page.push_str(
        "\n## Tests that skip\n\nA test that needs what a guest lacks says so and skips; elsewhere it runs.\n\n",
    );
    let mut none = true;
    for (skip, places) in skips.iter() {
        none = false;
        let _ = writeln!(page, "- {skip} — {}", summarise(places));
    }
    if none {
        page.push_str("None is listed.\n");
    }
    page
}

/// A table of the features on which kernels differ, then why, then those that all have.
fn section(page: &mut String, kernels: &BTreeMap<Kernel, Vec<Feature>>) {
    let state = |kernel: &Kernel, name: &str| kernels[kernel].iter().find(|feature| feature.feature == name);
    let mut names: Vec<&str> = Vec::new();
    for feature in kernels.values().flatten() {
        if !names.contains(&&*feature.feature) {
            names.push(&feature.feature);
        }
    }
    let everywhere =
        |name: &&str| kernels.keys().all(|kernel| state(kernel, name).is_some_and(|found| found.state == "available"));
    let (same, different): (Vec<_>, Vec<_>) = names.into_iter().partition(everywhere);
    if !different.is_empty() {
        let _ =
            writeln!(page, "| feature | {} |", kernels.keys().map(ToString::to_string).collect::<Vec<_>>().join(" | "));
        let _ = writeln!(page, "|---|{}", "---|".repeat(kernels.len()));
        for name in &different {
            let cells = kernels.keys().map(|kernel| state(kernel, name).map_or("?", |found| mark(&found.state)));
            let _ = writeln!(page, "| {name} | {} |", cells.collect::<Vec<_>>().join(" | "));
        }
        page.push('\n');
        // What lacks for one cause on the same kernels is one line.
        let mut causes: BTreeMap<(Vec<Kernel>, String), Vec<&str>> = BTreeMap::new();
        for name in &different {
            let mut reasons: BTreeMap<String, Vec<Kernel>> = BTreeMap::new();
            for kernel in kernels.keys() {
                if let Some(found) = state(kernel, name).filter(|found| found.state != "available") {
                    reasons.entry(found.detail.clone().unwrap_or_default()).or_default().push(*kernel);
                }
            }
            for (reason, kernels) in reasons {
                causes.entry((kernels, reason)).or_default().push(name);
            }
        }
        for ((on, reason), names) in causes {
            let on = if on.len() == kernels.len() {
                "all".into()
            } else {
                on.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
            };
            let _ = writeln!(page, "- {} on {on}: {reason}", names.join(", "));
        }
        page.push('\n');
    }
    if !same.is_empty() {
        let _ = writeln!(page, "On all: {}.", same.join(", "));
    }
}

fn mark(state: &str) -> &str {
    match state {
        "available" => "yes",
        "degraded" => "partly",
        "missing" => "–",
        other => other,
    }
}

/// The guests of a skip in words as short as can be: `every guest`, `every guest of user 1000`, or all by name.
fn summarise(places: &BTreeSet<String>) -> String {
    let all = |wanted: &dyn Fn(Layout, User) -> bool| {
        let layouts = [Layout::V1, Layout::Hybrid, Layout::V2];
        let users = [User::Root, User::Ordinary];
        let kinds = layouts.iter().flat_map(|layout| users.iter().map(|user| (*layout, *user)));
        let kinds: Vec<_> = kinds.filter(|(layout, user)| wanted(*layout, *user)).collect();
        let named = |kernel: Kernel| {
            kinds.iter().map(move |(layout, user)| guest::place(kernel, *layout, *user)).collect::<Vec<_>>()
        };
        kernel::ALL.into_iter().flat_map(named).collect::<BTreeSet<_>>()
    };
    if *places == all(&|_, _| true) {
        return "every guest".into();
    }
    for user in [User::Root, User::Ordinary] {
        if *places == all(&|_, other| other == user) {
            return format!("every guest of user {user}");
        }
    }
    places.iter().map(|place| format!("`{place}`")).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::kernel::{Engine, Version};

    const LOG: &str = "noise\n[{\"feature\":\"landlock\",\"state\":\"missing\",\"detail\":\"ENOSYS\",\"fix\":null},\
                       {\"feature\":\"seccomp\",\"state\":\"available\",\"detail\":\"\",\"fix\":\"\"}]\ndoctor: no\n";

    #[test]
    fn the_doctors_answer_is_found_among_other_lines() {
        let features = features(LOG).unwrap();
        assert_eq!((features.len(), &*features[0].state), (2, "missing"));
        assert!(super::features("no document").is_none());
        assert!(super::features("[broken").is_none());
    }

    #[test]
    fn what_differs_is_a_table_and_what_all_have_a_line() {
        let kernel = |version| Kernel { engine: Engine::Uml, version };
        let mut other = features(LOG).unwrap();
        other[0].state = "available".into();
        let kernels = BTreeMap::from([(kernel(Version::V5_10), features(LOG).unwrap()), (kernel(Version::New), other)]);
        let mut page = String::new();
        section(&mut page, &kernels);
        assert!(page.contains("| feature | uml-5.10 | uml-new |\n"), "{page}");
        assert!(
            page.contains("| landlock | – | yes |\n- ")
                || page.contains("| landlock | – | yes |\n\n- landlock on uml-5.10: ENOSYS\n"),
            "{page}"
        );
        assert!(page.contains("On all: seccomp.\n"), "{page}");
    }

    #[test]
    fn without_a_doctor_the_skips_remain() {
        let mut list = SkipList::default();
        list.bless("uml-new.v1.root", &BTreeSet::from(["a.rs swap: needs swap".to_owned()]));
        let page = page(&BTreeMap::new(), &list);
        assert!(page.contains("- a.rs swap: needs swap — `uml-new.v1.root`\n"), "{page}");
    }
}
