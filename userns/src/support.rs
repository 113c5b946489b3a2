//! What forbids user namespaces on this host, by name.

use std::fs;
use std::path::PathBuf;

use rustix::io::Errno;
use rustix::process::{getegid, geteuid};
use rustix::thread::{CapabilitySet, capabilities};

use crate::{Error, IdMap};

/// One thing that keeps this process from making a user namespace, or from doing anything with it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Obstacle {
    /// Its name: a sysctl, a kernel option, a state of this process.
    pub name: &'static str,
    /// What was found.
    pub found: String,
    /// How to get rid of it.
    pub fix: &'static str,
    /// Whether it forbids them for sure; otherwise it is a usual suspect when the kernel says no.
    pub certain: bool,
}

impl std::fmt::Display for Obstacle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} (fix: {})", self.name, self.found, self.fix)
    }
}

/// Looks for everything that is known to forbid user namespaces to this process. Empty means that nothing was found, not
/// that it works: only trying shows that. And trying means *using* the namespace: under AppArmor's restriction the clone
/// succeeds and the first map or mount fails.
///
/// Nothing is changed, and no process is started.
#[must_use]
pub fn obstacles() -> Vec<Obstacle> {
    let has_sys_admin = capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN));
    let facts = Facts { root: "/".into(), has_sys_admin, ids: (geteuid().as_raw(), getegid().as_raw()) };
    facts.obstacles()
}

/// The error for a clone(2) or unshare(2) with `CLONE_NEWUSER` that failed with `errno`: with the causes that were found.
#[must_use]
pub fn refused(errno: i32) -> Error {
    refused_with(errno, &obstacles())
}

fn refused_with(errno: i32, found: &[Obstacle]) -> Error {
    let error = std::io::Error::from_raw_os_error(errno);
    let known = match Errno::from_raw_os_error(errno) {
        // The limit of this or of an outer namespace, or 32 levels below the first one (ENOSPC since Linux 4.9).
        Errno::NOSPC | Errno::USERS => {
            "user.max_user_namespaces of this or an outer namespace is reached, or 32 are nested"
        }
        Errno::PERM => "a security policy forbids it: seccomp filter (container), LSM, sysctl, or chroot",
        Errno::INVAL => "the kernel was built without CONFIG_USER_NS, or the caller has several threads (unshare)",
        Errno::NOMEM => "the kernel is out of memory",
        _ => "the cause is not known",
    };
    let certain: Vec<String> = found.iter().filter(|obstacle| obstacle.certain).map(ToString::to_string).collect();
    let likely: Vec<String> = found.iter().map(ToString::to_string).collect();
    let causes = match (certain.is_empty(), likely.is_empty()) {
        (false, _) => certain.join("; "),
        (true, false) => format!("perhaps {}", likely.join("; ")),
        (true, true) => known.to_owned(),
    };
    Error::Unsupported { feature: "a user namespace", needs: format!("{error}: {causes}") }
}

/// Where to look, and what is known of the caller: so that tests can look elsewhere.
struct Facts {
    root: PathBuf,
    has_sys_admin: bool,
    ids: (u32, u32),
}

impl Facts {
    fn read(&self, path: &str) -> Option<String> {
        let text = fs::read_to_string(self.root.join(path)).ok()?;
        Some(text.trim_end().to_owned())
    }

    fn obstacles(&self) -> Vec<Obstacle> {
        [
            self.not_built(),
            self.no_more(),
            self.debian(),
            self.apparmor(),
            self.chroot(),
            self.unmapped(),
            self.seccomp(),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    fn not_built(&self) -> Option<Obstacle> {
        let built = self.root.join("proc/self/ns/user").symlink_metadata().is_ok();
        (!built).then(|| Obstacle {
            name: "CONFIG_USER_NS",
            found: "no /proc/self/ns/user: not in this kernel, or no procfs".into(),
            fix: "boot a kernel with CONFIG_USER_NS=y; mount procfs at /proc",
            certain: true,
        })
    }

    fn no_more(&self) -> Option<Obstacle> {
        let most = self.read("proc/sys/user/max_user_namespaces")?;
        (most == "0").then(|| Obstacle {
            name: "user.max_user_namespaces",
            found: "0".into(),
            fix: "as root: `sysctl user.max_user_namespaces=15000`",
            certain: true,
        })
    }

    /// A patch of Debian and old Ubuntu.
    fn debian(&self) -> Option<Obstacle> {
        let allowed = self.read("proc/sys/kernel/unprivileged_userns_clone")?;
        (allowed == "0" && !self.has_sys_admin).then(|| Obstacle {
            name: "kernel.unprivileged_userns_clone",
            found: "0".into(),
            fix: "as root: `sysctl kernel.unprivileged_userns_clone=1`",
            certain: true,
        })
    }

    /// Ubuntu since 23.10: the namespace is made, but the process has no capability in it.
    fn apparmor(&self) -> Option<Obstacle> {
        let restricted = self.read("proc/sys/kernel/apparmor_restrict_unprivileged_userns")?;
        let profile = self
            .read("proc/self/attr/apparmor/current")
            .or_else(|| self.read("proc/self/attr/current"))
            .unwrap_or_else(|| "unknown".into());
        // A profile of its own may allow it.
        let confined = !profile.starts_with("unconfined");
        (restricted == "1" && !self.has_sys_admin).then(|| Obstacle {
            name: "kernel.apparmor_restrict_unprivileged_userns",
            found: format!("1, this process runs under the profile {profile}"),
            fix: "an AppArmor profile with `userns,` for this program, or as root: \
                  `sysctl kernel.apparmor_restrict_unprivileged_userns=0`",
            certain: !confined,
        })
    }

    /// In a chroot no user namespace can be made: mountinfo, which shows what is below our root, then shows no root.
    fn chroot(&self) -> Option<Obstacle> {
        let mounts = self.read("proc/self/mountinfo")?;
        let rooted = mounts.lines().any(|line| line.split(' ').nth(4) == Some("/"));
        (!rooted).then(|| Obstacle {
            name: "chroot",
            found: "the root directory of this process is not the root of a mount".into(),
            fix: "enter the directory by pivot_root, or bind-mount it on itself before chroot",
            certain: false,
        })
    }

    fn unmapped(&self) -> Option<Obstacle> {
        let (uid, gid) = self.ids;
        let has = |file: &str, id| match self.read(file) {
            Some(text) => IdMap::parse(&text).is_ok_and(|map| map.to_outside(id).is_some()),
            None => true,
        };
        let (uid_known, gid_known) = (has("proc/self/uid_map", uid), has("proc/self/gid_map", gid));
        (!(uid_known && gid_known)).then(|| Obstacle {
            name: "unmapped ids",
            found: format!("uid {uid} or gid {gid} of this process is not mapped in its own user namespace"),
            fix: "change to mapped ids first, both of them",
            certain: true,
        })
    }

    fn seccomp(&self) -> Option<Obstacle> {
        let status = self.read("proc/self/status")?;
        let filtered = status.lines().any(|line| line.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() == "2"));
        (filtered && !self.has_sys_admin).then(|| Obstacle {
            name: "seccomp",
            found:
                "a filter is installed; those of containers refuse new user namespaces to callers without CAP_SYS_ADMIN"
                    .into(),
            fix: "a container profile that allows clone and unshare with CLONE_NEWUSER",
            certain: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A false root with a healthy process in it, and these files besides.
    fn names(files: &[(&str, &str)], has_sys_admin: bool) -> Vec<&'static str> {
        let root = tempfile::tempdir().unwrap();
        let healthy = [
            ("proc/self/ns/user", ""),
            ("proc/self/mountinfo", "1 0 0:1 / / rw - ext4 /dev/x rw\n"),
            ("proc/self/uid_map", "0 0 4294967295\n"),
            ("proc/self/gid_map", "0 0 4294967295\n"),
            ("proc/self/status", "Name:\tx\nSeccomp:\t0\n"),
            ("proc/sys/user/max_user_namespaces", "95000\n"),
        ];
        for (path, text) in healthy.iter().chain(files) {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            if *text == "-" { fs::remove_file(path).unwrap() } else { fs::write(path, text).unwrap() }
        }
        let facts = Facts { root: root.path().into(), has_sys_admin, ids: (1000, 1000) };
        facts.obstacles().iter().map(|obstacle| obstacle.name).collect()
    }

    #[test]
    fn each_obstacle_has_its_name() {
        assert!(names(&[], false).is_empty());
        for (path, text, name) in [
            ("proc/self/ns/user", "-", "CONFIG_USER_NS"),
            ("proc/sys/user/max_user_namespaces", "0\n", "user.max_user_namespaces"),
            ("proc/sys/kernel/unprivileged_userns_clone", "0\n", "kernel.unprivileged_userns_clone"),
            (
                "proc/sys/kernel/apparmor_restrict_unprivileged_userns",
                "1\n",
                "kernel.apparmor_restrict_unprivileged_userns",
            ),
            ("proc/self/mountinfo", "1 0 0:1 / /proc rw - proc proc rw\n", "chroot"),
            ("proc/self/gid_map", "0 0 1\n", "unmapped ids"),
            ("proc/self/uid_map", "", "unmapped ids"),
            ("proc/self/status", "Seccomp:\t2\n", "seccomp"),
        ] {
            assert_eq!(names(&[(path, text)], false), [name], "{path}");
        }
    }

    #[test]
    fn privilege_lifts_what_is_for_others_only() {
        let files = [
            ("proc/sys/kernel/unprivileged_userns_clone", "0\n"),
            ("proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1\n"),
            ("proc/self/status", "Seccomp:\t2\n"),
        ];
        assert!(names(&files, true).is_empty());
    }

    #[test]
    fn a_refusal_names_what_was_found_or_what_it_means() {
        let text = refused_with(28, &[]).to_string();
        let wanted = "a user namespace is not available: No space left on device (os error 28): user.max_user_namespaces of \
                      this or an outer namespace is reached, or 32 are nested";
        assert_eq!(text, wanted);
        let zero = Obstacle { name: "x", found: "0".into(), fix: "y", certain: true };
        let guess = Obstacle { certain: false, name: "z", ..zero.clone() };
        assert!(refused_with(1, &[guess.clone(), zero]).to_string().ends_with("(os error 1): x: 0 (fix: y)"));
        assert!(refused_with(1, &[guess]).to_string().ends_with("(os error 1): perhaps z: 0 (fix: y)"));
    }
}
