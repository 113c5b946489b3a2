//! Which names a group may have.

use crate::{Error, Result};

/// The longest name: the file systems' limit for one component.
const LONGEST: usize = 255;

/// First words of the kernel's own file names. A group named `memory.max` would be accepted by the kernel wherever the
/// file does not exist yet, and collide with it on the next kernel.
const KERNEL_FILES: [&str; 20] = [
    "cgroup",
    "memory",
    "pids",
    "cpu",
    "cpuacct",
    "cpuset",
    "io",
    "blkio",
    "hugetlb",
    "devices",
    "freezer",
    "misc",
    "rdma",
    "perf_event",
    "net_cls",
    "net_prio",
    "debug",
    "dmem",
    "irq",
    "zswap",
];

/// Refuses what is not a plain, single name.
///
/// Allowed are 1 to 255 of `A-Z a-z 0-9 _ . + -`, not beginning with a dot, and nothing that looks like a file of the
/// kernel (`tasks`, `memory.max`, `cgroup.anything`).
pub(crate) fn check(name: &str) -> Result<()> {
    let refuse = |why: &str| Err(Error::invalid("cgroup name", format!("{name:?} {why}")));
    if name.is_empty() {
        return refuse("is empty");
    }
    if name.len() > LONGEST {
        return refuse("is longer than 255 bytes");
    }
    if name.starts_with('.') {
        return refuse("begins with a dot");
    }
    if let Some(bad) = name.chars().find(|c| !c.is_ascii_alphanumeric() && !"_.+-".contains(*c)) {
        return refuse(&format!("holds {bad:?}; allowed are letters, digits and _ . + -"));
    }
    let kernels = matches!(name, "tasks" | "notify_on_release" | "release_agent")
        || name.split_once('.').is_some_and(|(first, _)| KERNEL_FILES.contains(&first));
    if kernels {
        return refuse("looks like a file of the kernel");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn plain_names_pass() {
        for name in ["a", "sandbox-1.2_3+x", "session-4.scope", "memory", "cgroup-x", &"n".repeat(255)] {
            assert!(check(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for name in [
            "",
            ".",
            "..",
            ".hidden",
            "a/b",
            "/",
            "a\nb",
            "a b",
            "a\0b",
            "ä",
            "tasks",
            "memory.max",
            "cgroup.foo",
            "hugetlb.2MB.max",
            "release_agent",
            &"n".repeat(256),
        ] {
            assert!(check(name).is_err(), "{name:?}");
        }
    }
}
