//! What must hold for any input: no panic, nothing unbounded, and no line lost in the explanation.
#![allow(clippy::unwrap_used)] // Helpers of a test panic as the test does.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use rlimit::limits_conf::{Decided, Flavor, Line, Resolved, Resolver, User};
use rlimit::{Limit, Limits, Setting, Table, Usage};

fn write(root: &Path, name: &str, bytes: &[u8]) {
    let path = root.join("etc").join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

fn resolver(flavor: Flavor, root: &Path) -> Resolver {
    let table = Table::own();
    Resolver::new(flavor).root(root).unwrap().inherited(table).init_limits(table).nr_open(1 << 20)
}

/// Every line that the explanation names.
fn named(resolved: &Resolved) -> Vec<&Line> {
    fn single<T>(decided: Option<&Decided<T>>) -> impl Iterator<Item = &Line> {
        decided
            .into_iter()
            .flat_map(|decided| std::iter::once(&decided.by).chain(decided.overridden.iter().map(|lost| &lost.line)))
    }
    let items = resolved.items.iter().flat_map(|item| {
        let deciding = [item.soft.line(), item.hard.line()].into_iter().flatten();
        deciding.chain(item.overridden.iter().map(|lost| &lost.line))
    });
    items
        .chain(resolved.ignored.iter().map(|ignored| &ignored.line))
        .chain(&resolved.no_limits)
        .chain(single(resolved.max_logins.as_ref()))
        .chain(single(resolved.priority.as_ref()))
        .chain(single(resolved.no_new_privs.as_ref()))
        .chain(single(resolved.chroot.as_ref()))
        .collect()
}

fn flavors() -> impl Strategy<Value = Flavor> {
    prop::sample::select(Flavor::ALL.to_vec())
}

/// Lines that mostly mean something.
fn lines() -> impl Strategy<Value = Vec<String>> {
    let domain =
        prop::sample::select(vec!["alice", "bob", "*", "@wheel", "@", "%", "%wheel", "1000:", ":1000", "a:", "@5:9"]);
    let kind = prop::sample::select(vec!["soft", "hard", "-", "HARD", "x"]);
    let item = prop::sample::select(vec![
        "nofile",
        "nproc",
        "core",
        "nice",
        "cpu",
        "maxlogins",
        "maxsyslogins",
        "priority",
        "nonewprivs",
        "chroot",
        "y",
    ]);
    let value =
        prop::sample::select(vec!["0", "1", "17", "unlimited", "-1", "-", "-5", "z", "99999999999999999999", ""]);
    let line = (domain, kind, item, value).prop_map(|(d, k, i, v)| format!("{d} {k} {i} {v}"));
    prop::collection::vec(prop_oneof![20 => line, 1 => Just("alice -".to_owned()), 1 => Just("# c".to_owned())], 0..24)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_read_without_panic(
        conf in prop::collection::vec(any::<u8>(), 0..3000),
        more in "\\PC{0,200}|[ \t\r\n#@%:*a-z0-9-]{0,400}",
        passwd in prop::collection::vec(any::<u8>(), 0..200),
        group in prop::collection::vec(any::<u8>(), 0..200),
        flavor in flavors(),
    ) {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "security/limits.conf", &conf);
        write(root.path(), "security/limits.d/50.conf", more.as_bytes());
        let account = b"alice:x:1000:1000::/:\n";
        write(root.path(), "passwd", &[account.as_slice(), &passwd].concat());
        write(root.path(), "group", &group);
        let resolved = resolver(flavor, root.path()).resolve_name("alice").unwrap();
        for item in &resolved.items {
            prop_assert!(item.limits.soft <= item.limits.hard, "{:?}", item);
        }
    }

    #[test]
    fn no_line_is_lost(first in lines(), second in lines(), flavor in flavors(), root_user: bool) {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "security/limits.conf", first.join("\n").as_bytes());
        write(root.path(), "security/limits.d/50.conf", second.join("\n").as_bytes());
        let uid = if root_user { 0 } else { 1000 };
        let resolved = resolver(flavor, root.path()).resolve(&User::new("alice", uid, 7).group("wheel", 10)).unwrap();
        let named = named(&resolved);
        for (file, lines) in [("limits.conf", &first), ("50.conf", &second)] {
            for (index, text) in lines.iter().enumerate().filter(|(_, text)| !text.starts_with('#')) {
                let found = named.iter().any(|line| line.number == index + 1 && line.file.ends_with(file));
                prop_assert!(found || resolved.no_limits.is_some(), "{}:{} `{}` in {:#?}", file, index + 1, text, resolved);
            }
        }
        // Asked again, the answer is the same.
        let again = resolver(flavor, root.path()).resolve(&User::new("alice", uid, 7).group("wheel", 10)).unwrap();
        prop_assert_eq!(resolved, again);
    }

    #[test]
    fn texts_of_the_kernel_and_of_people(text in "\\PC{0,200}|[A-Za-z: \t\n0-9=-]{0,200}") {
        let _ = Table::parse(&text);
        let _ = Table::parse(&format!("Max open files {text}"));
        let _ = Usage::parse(&text);
        let _ = text.parse::<Setting>();
        let _ = text.parse::<Flavor>();
    }

    #[test]
    fn settings_survive_printing(resource in prop::sample::select(rlimit::Resource::ALL.to_vec()), a: u64, b: u64) {
        let limits = Limits { soft: Limit::from_raw(a.min(b)), hard: Limit::from_raw(a.max(b)) };
        let setting = Setting { resource, limits };
        prop_assert_eq!(setting.to_string().parse::<Setting>().unwrap(), setting);
    }
}

#[test]
fn the_largest_allowed_files_are_quick() {
    let root = tempfile::tempdir().unwrap();
    for line in ["* - nofile 9\n", "* - priority 1\n", "alice soft core 1\n* - core 2\n", "* - maxlogins 5\n"] {
        let text = line.repeat(50_000 / line.lines().count());
        write(root.path(), "security/limits.conf", text.as_bytes());
        let start = Instant::now();
        let resolved = resolver(Flavor::LinuxPam17, root.path()).resolve(&User::new("alice", 1000, 1000)).unwrap();
        assert!(resolved.items.iter().map(|item| item.overridden.len()).sum::<usize>() <= 100_000);
        assert!(start.elapsed() < Duration::from_secs(5), "{line}: {:?}", start.elapsed());
    }
}
