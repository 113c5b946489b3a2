//! `docs/kernels.md`: what each kernel gives, as the `doctor` example says it in the guests, and which tests skip where.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

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

/// The heading of the lists of skips, which end the page.
const SKIPS: &str = "## Tests that skip";

/// Boots every kernel in every section's way and writes the page.
pub(crate) fn write() -> Result<()> {
    let mut found: BTreeMap<(Layout, User), BTreeMap<Kernel, Vec<Feature>>> = BTreeMap::new();
    let doctor = doctor()?;
    for (cgroup, user, _) in SECTIONS {
        let flags = [format!("--cgroup={cgroup}"), format!("--user={user}"), "--disk=xfs".into()];
        matrix::command(&flags, &[doctor.clone(), "--json".into()])?;
        let heard = kernel::ALL.into_iter().filter_map(|kernel| {
            let log = matrix::log_file(&guest::place(kernel, cgroup, user));
            Some((kernel, features(&fs::read_to_string(log).ok()?)?))
        });
        found.insert((cgroup, user), heard.collect());
    }
    save(&(features_part(&found) + &skips_part(&SkipList::read(&skips::file("guests"))?)))
}

/// Writes the lists of skips anew, and leaves the features as they are: no guest is booted.
pub(crate) fn write_skips() -> Result<()> {
    let text = fs::read_to_string(file()).context(|| format!("cannot read {}", file().display()))?;
    let features = text.find(SKIPS).map_or(&*text, |at| &text[..at]);
    save(&(features.to_owned() + &skips_part(&SkipList::read(&skips::file("guests"))?)))
}

fn file() -> PathBuf {
    cargo::root().join("docs/kernels.md")
}

fn save(text: &str) -> Result<()> {
    fs::write(file(), text).context(|| format!("cannot write {}", file().display()))?;
    println!("written: {}", file().display());
    Ok(())
}

/// The built example.
fn doctor() -> Result<String> {
    let built = cargo::build(&["build", "--quiet", "--package", "sandbox-examples", "--example", "doctor"])?;
    let path = built.into_iter().filter_map(|artifact| artifact.executable).next_back();
    path.map(|path| path.display().to_string()).ok_or_else(|| Error::new("cargo built no doctor"))
}

/// The doctor's answer out of a log that has its complaints too.
fn features(log: &str) -> Option<Vec<Feature>> {
    let start = log.find('[')?;
    serde_json::Deserializer::from_str(&log[start..]).into_iter().next()?.ok()
}

fn features_part(found: &BTreeMap<(Layout, User), BTreeMap<Kernel, Vec<Feature>>>) -> String {
    let mut page = String::from(
        "# Kernels\n\n\
         Written by `cargo xtask kernels`, not by hand: what `doctor --json` said in a guest of each kernel, and which tests\n\
         skip where. `uml-*` is User-Mode Linux, `qemu-*` is Debian's kernel for real machines; `*-new` is the newest that\n\
         Debian has. The files of a guest are this machine's, below an overlay in memory: what lacks there of overlays need\n\
         not lack on a disk. Of the guests: `cargo xtask guest --list`.\n",
    );
    for (cgroup, user, title) in SECTIONS {
        if let Some(kernels) = found.get(&(cgroup, user)).filter(|kernels| !kernels.is_empty()) {
            let _ = write!(page, "\n## {}{}\n\n", &title[..1].to_uppercase(), &title[1..]);
            section(&mut page, kernels);
        }
    }
    page.push('\n');
    page
}

/// By what they need, since one lack makes many tests skip, and then by where they skip.
fn skips_part(list: &SkipList) -> String {
    let mut page = format!(
        "{SKIPS}\n\n\
         A test that needs what a guest lacks says so and skips there, and runs elsewhere. A guest is written\n\
         KERNEL.CGROUP.USER, with `*` for every one that there is.\n\n"
    );
    let mut skips: Vec<_> = list.iter().map(|(skip, places)| (skips::parts(skip), places)).collect();
    skips.sort_by_key(|((program, _, need), places)| (*need, *places, *program));
    for alike in skips.chunk_by(|((_, _, a), _), ((_, _, b), _)| a == b) {
        let _ = writeln!(page, "- **{}**", alike[0].0.2);
        for here in alike.chunk_by(|((a, ..), at), ((b, ..), there)| (a, at) == (b, there)) {
            let ((program, ..), places) = here[0];
            let tests: Vec<_> = here.iter().map(|((_, test, _), _)| *test).collect();
            let _ = writeln!(page, "  - {}: {program} {}", short(places), tests.join(", "));
        }
    }
    page
}

/// The places, those of a kernel, or of a kernel and a user, in one word where they are all there.
fn short(places: &BTreeSet<String>) -> String {
    let mut words = Vec::new();
    for kernel in kernel::ALL {
        let of = |user: User| {
            let all = [Layout::V1, Layout::Hybrid, Layout::V2].map(|layout| guest::place(kernel, layout, user));
            if all.iter().all(|place| places.contains(place)) {
                return vec![format!("{kernel}.*.{user}")];
            }
            all.into_iter().filter(|place| places.contains(place)).collect()
        };
        words.extend([User::Root, User::Ordinary].into_iter().flat_map(of));
    }
    words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(" ")
}

/// A table of the features on which kernels differ, then what lacks and why, then what all have.
fn section(page: &mut String, kernels: &BTreeMap<Kernel, Vec<Feature>>) {
    let found = |kernel: &Kernel, name: &str| kernels[kernel].iter().find(|feature| feature.feature == name);
    let state = |kernel: &Kernel, name: &str| found(kernel, name).map_or("?", |feature| &*feature.state);
    let mut names: Vec<&str> = Vec::new();
    for feature in kernels.values().flatten() {
        if !names.contains(&&*feature.feature) {
            names.push(&feature.feature);
        }
    }
    let states = |name: &str| kernels.keys().map(|kernel| state(kernel, name)).collect::<BTreeSet<_>>();
    let (everywhere, lacking): (Vec<_>, Vec<_>) =
        names.into_iter().partition(|name| states(name).iter().eq(&["available"]));
    let mut different = lacking.iter().filter(|name| states(name).len() > 1).peekable();
    if different.peek().is_some() {
        let heads: Vec<_> = kernels.keys().map(ToString::to_string).collect();
        let _ = writeln!(page, "| feature | {} |\n|---|{}", heads.join(" | "), "---|".repeat(heads.len()));
        for name in different {
            let cells: Vec<_> = kernels.keys().map(|kernel| mark(state(kernel, name))).collect();
            let _ = writeln!(page, "| {name} | {} |", cells.join(" | "));
        }
        page.push('\n');
    }
    // What lacks for one cause on the same kernels is one line.
    let mut causes: BTreeMap<(Vec<Kernel>, &str), Vec<&str>> = BTreeMap::new();
    for name in &lacking {
        let mut reasons: BTreeMap<&str, Vec<Kernel>> = BTreeMap::new();
        for kernel in kernels.keys() {
            if let Some(feature) = found(kernel, name).filter(|feature| feature.state != "available") {
                reasons.entry(feature.detail.as_deref().unwrap_or_default()).or_default().push(*kernel);
            }
        }
        for (reason, on) in reasons {
            causes.entry((on, reason)).or_default().push(name);
        }
    }
    for ((on, reason), names) in &causes {
        let on = if on.len() == kernels.len() {
            "all".into()
        } else {
            on.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        };
        let _ = writeln!(page, "- {} on {on}: {reason}", names.join(", "));
    }
    if !everywhere.is_empty() {
        let _ = writeln!(page, "- Available on all: {}.", everywhere.join(", "));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::kernel::{Engine, Version};
    use crate::skips::Seen;

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
        let rest = "| landlock | – | yes |\n\n- landlock on uml-5.10: ENOSYS\n- Available on all: seccomp.\n";
        assert!(page.ends_with(rest), "{page}");
    }

    #[test]
    fn what_lacks_everywhere_is_no_table() {
        let kernels =
            BTreeMap::from([(kernel::ALL[0], features(LOG).unwrap()), (kernel::ALL[1], features(LOG).unwrap())]);
        let mut page = String::new();
        section(&mut page, &kernels);
        assert_eq!(page, "- landlock on all: ENOSYS\n- Available on all: seccomp.\n");
    }

    #[test]
    fn skips_are_grouped_by_what_they_need() {
        let mut list = SkipList::default();
        let skips = BTreeSet::from(["a.rs swap: needs swap".to_owned()]);
        list.bless("uml-new.v1.root", &Seen { skips, ..Seen::default() });
        let page = skips_part(&list);
        assert!(page.contains("- **needs swap**\n  - `uml-new.v1.root`: a.rs swap\n"), "{page}");
    }

    #[test]
    fn places_that_are_all_there_are_one_word() {
        let places =
            ["uml-6.1.v1.root", "uml-new.hybrid.1000", "uml-new.v1.1000", "uml-new.v2.1000", "uml-new.v2.root"];
        let places = places.map(str::to_owned).into();
        assert_eq!(short(&places), "`uml-6.1.v1.root` `uml-new.v2.root` `uml-new.*.1000`");
    }
}
