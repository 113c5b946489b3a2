//! Which hierarchies this machine has, where they are mounted, and where in them the caller is.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use crate::dir::Dir;
use crate::{Error, Result};

/// A version of the kernel's cgroup interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Version {
    /// One hierarchy per controller, each with its own tree.
    V1,
    /// One tree for all controllers.
    V2,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1 => "cgroup v1",
            Self::V2 => "cgroup v2",
        })
    }
}

macro_rules! controllers {
    ($($(#[$doc:meta])* $variant:ident $v1:literal $v2:literal)*) => {
        /// A part of the kernel that counts or limits something per group.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Controller { $($(#[$doc])* $variant),* }

        impl Controller {
            /// Every controller that this crate knows.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The kernel's name for it in one version.
            #[must_use]
            pub const fn name(self, version: Version) -> &'static str {
                match (self, version) { $((Self::$variant, Version::V1) => $v1, (Self::$variant, Version::V2) => $v2),* }
            }
        }
    };
}

controllers! {
    /// Memory and swap.
    Memory "memory" "memory"
    /// Processes and threads.
    Pids "pids" "pids"
    /// CPU time: quota and weight.
    Cpu "cpu" "cpu"
    /// CPU time used (v1 only; v2 counts it in every group, without a controller).
    Cpuacct "cpuacct" "cpuacct"
    /// Which CPUs and memory nodes.
    Cpuset "cpuset" "cpuset"
    /// Block devices (`blkio` on v1).
    Io "blkio" "io"
    /// Huge pages.
    Hugetlb "hugetlb" "hugetlb"
    /// Which device nodes may be opened (v1 only; v2 does it with a BPF program, without a controller).
    Devices "devices" "devices"
    /// Stopping a whole group (v1 only; v2 can do it in every group, without a controller).
    Freezer "freezer" "freezer"
    /// Scalar resources such as SEV address space ids.
    Misc "misc" "misc"
    /// RDMA handles and objects.
    Rdma "rdma" "rdma"
    /// Device memory.
    Dmem "dmem" "dmem"
    /// Performance events per group.
    PerfEvent "perf_event" "perf_event"
    /// Class ids of network packets (v1 only).
    NetCls "net_cls" "net_cls"
    /// Priorities of network packets (v1 only).
    NetPrio "net_prio" "net_prio"
}

/// A set of [`Controller`]s.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Controllers(u32);

impl Controllers {
    /// No controller.
    pub const NONE: Self = Self(0);

    /// The set with `controller` in it too.
    #[must_use]
    pub const fn with(self, controller: Controller) -> Self {
        Self(self.0 | 1 << controller as u32)
    }

    /// Whether `controller` is in the set.
    #[must_use]
    pub const fn contains(self, controller: Controller) -> bool {
        self.0 & 1 << controller as u32 != 0
    }

    /// Whether the set is empty.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those in both sets.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Those in this set but not in `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The controllers, one after another.
    pub fn iter(self) -> impl Iterator<Item = Controller> {
        Controller::ALL.iter().copied().filter(move |&one| self.contains(one))
    }

    /// From the kernel's words; those that this crate does not know are left out.
    pub(crate) fn from_words<'a>(words: impl Iterator<Item = &'a str>, version: Version) -> Self {
        words
            .filter_map(|word| Controller::ALL.iter().copied().find(|c| c.name(version) == word))
            .fold(Self::NONE, Self::with)
    }

    pub(crate) fn words(self, version: Version) -> String {
        self.iter().map(|c| c.name(version)).collect::<Vec<_>>().join(", ")
    }
}

impl fmt::Debug for Controllers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

impl FromIterator<Controller> for Controllers {
    fn from_iter<I: IntoIterator<Item = Controller>>(controllers: I) -> Self {
        controllers.into_iter().fold(Self::NONE, Self::with)
    }
}

impl<const N: usize> From<[Controller; N]> for Controllers {
    fn from(controllers: [Controller; N]) -> Self {
        controllers.into_iter().collect()
    }
}

/// One tree of groups that the caller can reach.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hierarchy {
    /// Which interface it speaks.
    pub version: Version,
    /// The controllers that live in it. For v2: those that its topmost visible group has.
    pub controllers: Controllers,
    /// For messages: `cgroup2`, `memory`, `cpu,cpuacct`, `name=systemd`.
    pub label: String,
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// The caller's own group, below [`mount_point`](Self::mount_point); empty when it is that.
    pub own: PathBuf,
}

/// A hierarchy that the kernel has and the caller cannot reach.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unreachable {
    /// Its controllers.
    pub controllers: Controllers,
    /// For messages, as [`Hierarchy::label`].
    pub label: String,
    /// The caller's group in it, as `/proc/self/cgroup` says.
    pub group: PathBuf,
    /// What hides it.
    pub why: String,
}

/// The cgroup hierarchies of this machine as the calling process sees them.
///
/// Found once, from `/proc/self/mountinfo` and `/proc/self/cgroup`; cheap to clone. It does not follow later mounts, nor
/// the caller's own moves. Nothing is assumed about paths, and `/proc/cgroups` is not asked: recent kernels do not list
/// there what lives in v2 only.
#[derive(Debug, Clone)]
pub struct Layout(pub(crate) Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) hierarchies: Vec<Hierarchy>,
    pub(crate) unreachable: Vec<Unreachable>,
}

impl Layout {
    /// Looks at this machine.
    ///
    /// # Errors
    /// [`Error::File`] when `/proc` is not mounted; [`Error::Unsupported`] when no cgroup file system can be reached at
    /// all. A single hierarchy that cannot be reached is no error here: see [`unreachable`](Self::unreachable).
    ///
    /// Kernel: 4.5 for v2. cgroups(7), proc_pid_mountinfo(5).
    pub fn detect() -> Result<Self> {
        let read = |path: &str| std::fs::read(path).map_err(|error| Error::file("read", path.into(), error));
        Self::from_proc(&read("/proc/self/cgroup")?, &read("/proc/self/mountinfo")?)
    }

    fn from_proc(cgroup: &[u8], mountinfo: &[u8]) -> Result<Self> {
        let mounts = mounts(mountinfo);
        let (mut hierarchies, mut unreachable) = (Vec::new(), Vec::new());
        for member in memberships(cgroup)? {
            match reach(&member, &mounts) {
                Ok(hierarchy) => hierarchies.push(hierarchy),
                Err(why) => unreachable.push(Unreachable {
                    controllers: member.controllers(),
                    label: member.label(),
                    group: member.group,
                    why,
                }),
            }
        }
        if hierarchies.is_empty() {
            let why =
                unreachable.iter().map(|one| format!("{}: {}", one.label, one.why)).collect::<Vec<_>>().join("; ");
            return Err(Error::unsupported("any cgroup", format!("a mounted cgroup file system ({why})")));
        }
        // v2 first: it is the one that processes are born into, killed by and counted in.
        hierarchies.sort_by_key(|one| (one.version == Version::V1, one.label.clone()));
        Ok(Self(Arc::new(Inner { hierarchies, unreachable })))
    }

    /// The hierarchies that can be reached, v2 first.
    #[must_use]
    pub fn hierarchies(&self) -> &[Hierarchy] {
        &self.0.hierarchies
    }

    /// Those that exist and cannot be reached, each with the reason.
    #[must_use]
    pub fn unreachable(&self) -> &[Unreachable] {
        &self.0.unreachable
    }

    /// Which version of the interface holds `controller`; `None` when no reachable hierarchy has it.
    ///
    /// [`Controller::Freezer`], [`Controller::Cpuacct`] and [`Controller::Devices`] are core features of v2 and are
    /// answered with [`Version::V2`] where there is a v2 tree and no v1 hierarchy with that controller.
    #[must_use]
    pub fn version_of(&self, controller: Controller) -> Option<Version> {
        if let Some(found) = self.holder(controller) {
            return Some(found.version);
        }
        let core = matches!(controller, Controller::Freezer | Controller::Cpuacct | Controller::Devices);
        (core && self.unified().is_some()).then_some(Version::V2)
    }

    /// The hierarchy that holds `controller`.
    pub(crate) fn holder(&self, controller: Controller) -> Option<&Hierarchy> {
        self.0.hierarchies.iter().find(|one| one.controllers.contains(controller))
    }

    /// The v2 tree, if there is one: the only one on a v2 machine, and on a hybrid machine beside the v1 ones.
    #[must_use]
    pub fn unified(&self) -> Option<&Hierarchy> {
        self.0.hierarchies.iter().find(|one| one.version == Version::V2)
    }

    /// The machine's set-up in a few words: `cgroup v2`, `cgroup v1`, or `cgroup v1 hybrid`.
    #[must_use]
    pub fn describe(&self) -> String {
        let v1_controllers =
            self.0.hierarchies.iter().any(|one| one.version == Version::V1 && !one.controllers.is_empty());
        match (self.unified(), v1_controllers) {
            (Some(_), false) => "cgroup v2".to_owned(),
            (None, _) => "cgroup v1".to_owned(),
            (Some(unified), true) if unified.controllers.is_empty() => "cgroup v1 hybrid".to_owned(),
            (Some(unified), true) => format!("cgroup v1 hybrid, {} on v2", unified.controllers.words(Version::V2)),
        }
    }
}

/// A line of `/proc/self/cgroup`.
#[derive(Debug, PartialEq, Eq)]
struct Membership {
    /// Controllers and `name=…`; empty for v2.
    words: Vec<String>,
    group: PathBuf,
}

impl Membership {
    fn version(&self) -> Version {
        if self.words.is_empty() { Version::V2 } else { Version::V1 }
    }

    fn controllers(&self) -> Controllers {
        Controllers::from_words(self.words.iter().map(String::as_str), Version::V1)
    }

    fn label(&self) -> String {
        if self.words.is_empty() { "cgroup2".to_owned() } else { self.words.join(",") }
    }
}

fn memberships(text: &[u8]) -> Result<Vec<Membership>> {
    let mut out = Vec::new();
    for (number, line) in text.split(|&b| b == b'\n').enumerate().filter(|(_, line)| !line.is_empty()) {
        // The group may hold colons of its own.
        let mut fields = line.splitn(3, |&b| b == b':');
        let (Some(_), Some(words), Some(group)) = (fields.next(), fields.next(), fields.next()) else {
            return Err(Error::Parse {
                path: "/proc/self/cgroup".into(),
                line: number + 1,
                expected: "ID:CONTROLLERS:GROUP",
                found: String::from_utf8_lossy(line).into_owned(),
            });
        };
        out.push(Membership {
            words: String::from_utf8_lossy(words).split(',').filter(|w| !w.is_empty()).map(str::to_owned).collect(),
            group: Path::new(OsStr::from_bytes(group)).to_owned(),
        });
    }
    Ok(out)
}

/// A mounted cgroup file system: the fields of a line of mountinfo that matter here.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    device: (u32, u32),
    root: PathBuf,
    point: PathBuf,
    version: Version,
    read_only: bool,
    options: Vec<String>,
}

/// The cgroup mounts. A host may have a hundred thousand others, and any of them may hold bytes that are no text: they are
/// looked at no further than their type, and lines that do not parse are skipped.
fn mounts(text: &[u8]) -> Vec<Mount> {
    text.split(|&b| b == b'\n').filter_map(mount).collect()
}

fn mount(line: &[u8]) -> Option<Mount> {
    // ID PARENT DEVICE ROOT POINT FLAGS [TAG…] - TYPE SOURCE OPTIONS; spaces within a field are escaped.
    let mut fields = line.split(|&b| b == b' ').skip(2);
    let (device, root, point, flags) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    fields.find(|&field| field == b"-")?;
    let version = match fields.next()? {
        b"cgroup" => Version::V1,
        b"cgroup2" => Version::V2,
        _ => return None,
    };
    let options = String::from_utf8_lossy(fields.nth(1).unwrap_or_default()).into_owned();
    let (major, minor) = std::str::from_utf8(device).ok()?.split_once(':')?;
    Some(Mount {
        device: (major.parse().ok()?, minor.parse().ok()?),
        root: unescape(root),
        point: unescape(point),
        version,
        read_only: flags.split(|&b| b == b',').any(|flag| flag == b"ro"),
        options: options.split(',').map(str::to_owned).collect(),
    })
}

/// Undoes the kernel's `\ooo` for space, tab, newline and backslash.
fn unescape(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, after @ ..] = rest {
        match after {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..] if *first == b'\\' => {
                out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = tail;
            }
            _ => {
                out.push(*first);
                rest = after;
            }
        }
    }
    Path::new(OsStr::from_bytes(&out)).to_owned()
}

/// The path of `group` below a mount that shows the tree from `root` on; `None` when it is not below it.
///
/// Both are relative to the reader's cgroup namespace. A `..` in one means that it lies outside, where names are not told:
/// then only equality says something.
fn below(root: &Path, group: &Path) -> Option<PathBuf> {
    if root == group {
        return Some(PathBuf::new());
    }
    let outside = |path: &Path| path.components().any(|part| part == Component::ParentDir);
    if outside(root) || outside(group) {
        return None;
    }
    group.strip_prefix(root).ok().map(Path::to_owned)
}

/// The mounts through which a group can be seen and its path below each, the best first; the reason when there is none.
fn candidates<'a>(member: &Membership, mounts: &'a [Mount]) -> Result<Vec<(&'a Mount, PathBuf)>, String> {
    let version = member.version();
    let mut why = "it is not mounted in this mount namespace".to_owned();
    let mut found: Vec<(&Mount, PathBuf)> = Vec::new();
    for mount in mounts {
        let is_of_this_hierarchy = mount.version == version
            && member.words.iter().all(|word| mount.options.iter().any(|option| option == word));
        if !is_of_this_hierarchy {
            continue;
        }
        match below(&mount.root, &member.group) {
            Some(own) => found.push((mount, own)),
            None => why = format!("{} shows the tree from {} on", mount.point.display(), mount.root.display()),
        }
    }
    // Writable before read-only, the widest view first, and of equals the later mount: it may cover the earlier.
    found.reverse();
    found.sort_by_key(|(mount, _)| (mount.read_only, mount.root.components().count()));
    if found.is_empty() { Err(why) } else { Ok(found) }
}

fn reach(member: &Membership, mounts: &[Mount]) -> Result<Hierarchy, String> {
    let mut why = String::new();
    for (mount, own) in candidates(member, mounts)? {
        match Dir::open(mount.point.clone()) {
            // Another file system mounted over this one answers with its own device number.
            Ok(dir) if dir.device() == Some(mount.device) => {
                let version = member.version();
                let controllers = match version {
                    Version::V1 => member.controllers(),
                    Version::V2 => {
                        let text = dir.read_optional("cgroup.controllers").ok().flatten().unwrap_or_default();
                        Controllers::from_words(text.split_whitespace(), Version::V2)
                    }
                };
                let mount_point = mount.point.clone();
                return Ok(Hierarchy { version, controllers, label: member.label(), mount_point, own });
            }
            Ok(_) => why = format!("another file system is mounted over {}", mount.point.display()),
            Err(error) => why = error.to_string(),
        }
    }
    Err(why)
}

/// The directory of a process's group in the hierarchy of a v1 controller, for looking only.
pub(crate) fn group_of(pid: u32, controller: Controller) -> Option<Dir> {
    let word = controller.name(Version::V1);
    let own = memberships(&std::fs::read(format!("/proc/{pid}/cgroup")).ok()?).ok()?;
    let member = own.into_iter().find(|member| member.words.iter().any(|w| w == word))?;
    let mounts = mounts(&std::fs::read("/proc/self/mountinfo").ok()?);
    let hierarchy = reach(&member, &mounts).ok()?;
    Dir::open(hierarchy.mount_point.join(hierarchy.own)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(cgroup: &str, mountinfo: &str) -> Vec<(String, Result<String, String>)> {
        let mounts = mounts(mountinfo.as_bytes());
        let best = |member: &Membership| {
            let (mount, own) = candidates(member, &mounts)?.swap_remove(0);
            Ok(mount.point.join(own).display().to_string())
        };
        memberships(cgroup.as_bytes()).unwrap().iter().map(|member| (member.label(), best(member))).collect()
    }

    fn path<'a>(seen: &'a [(String, Result<String, String>)], label: &str) -> Result<&'a str, &'a str> {
        let found = &seen.iter().find(|(l, _)| l == label).unwrap().1;
        found.as_deref().map_err(String::as_str)
    }

    #[test]
    fn hybrid_gives_each_controller_its_own_place() {
        let seen =
            seen(include_str!("../testdata/hybrid-6.18.cgroup"), include_str!("../testdata/hybrid-6.18.mountinfo"));
        assert_eq!(seen.len(), 10);
        assert_eq!(path(&seen, "memory"), Ok("/sys/fs/cgroup/memory/service/worker"));
        assert_eq!(path(&seen, "pids"), Ok("/sys/fs/cgroup/pids/"));
        assert_eq!(path(&seen, "cgroup2"), Ok("/sys/fs/cgroup/unified/"));
        assert_eq!(path(&seen, "name=systemd"), Ok("/sys/fs/cgroup/systemd/"));
    }

    #[test]
    fn v2_is_one_tree() {
        let seen = seen(include_str!("../testdata/v2-6.12.cgroup"), include_str!("../testdata/v2-6.12.mountinfo"));
        assert_eq!(path(&seen, "cgroup2"), Ok("/sys/fs/cgroup/user.slice/user-1000.slice/session-2.scope"));
    }

    #[test]
    fn v1_knows_mounts_that_share_controllers_escapes_and_read_only() {
        let seen = seen(include_str!("../testdata/v1-6.1.cgroup"), include_str!("../testdata/v1-6.1.mountinfo"));
        assert_eq!(path(&seen, "cpu,cpuacct"), Ok("/sys/fs/cgroup/cpu,cpuacct/box/run"));
        assert_eq!(path(&seen, "pids"), Ok("/mnt/box of mine/run"), "the writable bind before the read-only whole");
        assert_eq!(path(&seen, "name=systemd"), Ok("/sys/fs/cgroup/systemd/box/run"));
    }

    #[test]
    fn a_group_outside_of_what_is_mounted_is_said_to_be_so() {
        let line = |root: &str| format!("36 19 0:29 {root} /cg rw - cgroup2 cgroup2 rw\n");
        for (group, root, expected) in [
            ("/a/b", "/a", Ok("/cg/b")),
            ("/a", "/a", Ok("/cg/")),
            ("/a", "/ab", Err("/cg shows the tree from /ab on")),
            ("/", "/../..", Err("/cg shows the tree from /../.. on")),
            ("/../x", "/", Err("/cg shows the tree from / on")),
            ("/..", "/..", Ok("/cg/")),
        ] {
            let seen = seen(&format!("0::{group}\n"), &line(root));
            assert_eq!(path(&seen, "cgroup2"), expected, "{group} {root}");
        }
        assert_eq!(path(&seen("0::/\n", ""), "cgroup2"), Err("it is not mounted in this mount namespace"));
    }

    #[test]
    fn a_group_may_hold_colons_and_bytes_that_are_no_text() {
        let all = memberships(b"0::/a:b\n1:cpu:/\xff\n").unwrap();
        assert_eq!(all[0].group, Path::new("/a:b"));
        assert_eq!(all[1].group.as_os_str().as_bytes(), b"/\xff");
        assert!(matches!(memberships(b"0::/\nodd\n"), Err(Error::Parse { line: 2, .. })));
        assert_eq!(unescape(br"/a\040b\134c\011\08\4"), Path::new("/a b\\c\t\\08\\4"));
    }

    #[test]
    fn a_hundred_thousand_mounts_take_less_than_a_second() {
        let mut text = Vec::new();
        for n in 0..100_000 {
            let line = format!(
                "{n} 25 0:{n} / /run/containers/{n}/merged\\040x rw,relatime shared:{n} - overlay overlay rw,lowerdir=/a:/b\n"
            );
            text.extend_from_slice(line.as_bytes());
        }
        text.extend_from_slice(include_bytes!("../testdata/hybrid-6.18.mountinfo"));
        // CPU time, as the machine may be busy; nothing is asserted where the kernel does not tell it.
        let cpu_time = || {
            let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
            text.split(' ').next().and_then(|nanos| nanos.parse().ok()).map(std::time::Duration::from_nanos)
        };
        let begin = cpu_time();
        assert_eq!(mounts(&text).len(), 10);
        if let (Some(begin), Some(end)) = (begin, cpu_time()) {
            assert!(end - begin < std::time::Duration::from_secs(1), "{:?}", end - begin);
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes(text: Vec<u8>, tail: Vec<u8>) {
            let _ = memberships(&text);
            let mut line = b"36 19 0:29 / /cg rw".to_vec();
            line.extend_from_slice(&text);
            line.extend_from_slice(b" - cgroup2 x ");
            line.extend_from_slice(&tail);
            let _ = (mounts(&text), mounts(&line), unescape(&text));
        }
    }
}
