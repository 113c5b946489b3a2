//! `/etc/security/limits.conf` and `limits.d`, decided as `pam_limits` decides them, and explained.
//!
//! ```
//! use rlimit::limits_conf::{Flavor, Resolver, User};
//! # let root = tempfile::tempdir()?;
//! # std::fs::create_dir_all(root.path().join("etc/security/limits.d"))?;
//! # std::fs::write(root.path().join("etc/security/limits.conf"), "* soft nproc 8192\n")?;
//! # std::fs::write(root.path().join("etc/security/limits.d/90-nproc.conf"), "* soft nproc 4096\n")?;
//! let resolver = Resolver::new(Flavor::LinuxPam17).root(root.path())?;
//! let resolved = resolver.resolve(&User::new("alice", 1000, 1000))?;
//! let nproc = resolved.item(rlimit::Resource::Nproc);
//!
//! assert!(nproc.soft.to_string().ends_with("limits.d/90-nproc.conf:1"));
//! let lost = &nproc.overridden[0];
//! assert!(lost.line.to_string().ends_with("limits.conf:1"));
//! assert!(lost.why.to_string().contains("last line wins"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # How the module decides
//! 1. limits.conf is read first, then the files of `limits.d` whose names end in `.conf`, in bytewise order of the
//!    names: `10.conf` comes before `9.conf`. So a line in `90-nproc.conf` beats an equal one in limits.conf, however
//!    limits.conf is edited, and a line in `91-nproc.conf` beats both.
//! 2. A line has a [`Level`] by its domain: a user's name or a uid range beats a group, which beats `*`. For each item
//!    soft and hard are decided apart. A stronger level wins wherever it stands; of equal levels the last line wins.
//! 3. What no line decides keeps the inherited value, or that of process 1 (with `set_all`, and always on Debian).
//! 4. Soft above hard is lowered to hard, silently.
//! 5. A line `alice -` switches everything off for that user, whatever stood before it.
//!
//! The units are the file's own: KiB for sizes, minutes for `cpu`. Numbers are read as C does: `10k` is 10, `0x100` is
//! 0, and `-5` is nearly 2^64. [`Resolved`] names each line that was overridden or ignored, and why.
//!
//! # Does not
//! Count login sessions: [`Resolved::login`] is the answer for a user's first session, and
//! [`Resolved::login_with`] takes the number of those that exist. (How they are counted, from utmp or by logind, is a
//! choice made when the module is built; built with logind it also refuses `maxlogins 1`.)

mod accounts;
mod choose;
mod files;
mod line;
mod resolved;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use crate::{Error, Limit, Table, process};

pub use accounts::{Group, User};
pub use line::Level;
pub use resolved::{
    Count, Decided, DecidedBy, Denial, Half, Ignored, IgnoredWhy, Item, Line, Login, MaxLogins, Overridden,
    OverriddenWhy, Refusal, Resolved,
};

/// Which build of `pam_limits` is followed. They differ in more than one would think.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Flavor {
    /// Linux-PAM 1.7 as published. The value is the rest of the line, lines may have any length, `rttime` is known, a
    /// missing limits.conf is no error, and there may be a vendor directory.
    LinuxPam17,
    /// Linux-PAM 1.5.2 as published. The value is the fourth word, lines are split after 1023 bytes (the tail of a long
    /// comment becomes a line), `rttime` is unknown, and a missing limits.conf refuses the session.
    LinuxPam152,
    /// Debian 12 (1.5.2 with Debian's patches; Ubuntu has the same patches). `*`, `@group` and `%` do not apply to
    /// accounts with uid 0; limits that no line decides come from process 1, the soft `nofile` of it capped at 1024; a
    /// limit that the kernel refuses is skipped without a word; and there is an item `chroot`.
    Debian12,
}

impl Flavor {
    /// All flavors.
    pub const ALL: [Self; 3] = [Self::LinuxPam17, Self::LinuxPam152, Self::Debian12];

    /// The name: `linux-pam-1.7`, `linux-pam-1.5.2`, `debian-12`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::LinuxPam17 => "linux-pam-1.7",
            Self::LinuxPam152 => "linux-pam-1.5.2",
            Self::Debian12 => "debian-12",
        }
    }

    /// The flavor that fits best the system below `root` (`/` for this one), by the `ID` and `ID_LIKE` of its
    /// os-release file: [`Debian12`](Self::Debian12) for Debian and its children, else [`LinuxPam17`](Self::LinuxPam17).
    ///
    /// A guess: of a release newer or older than the three flavors, some detail may differ.
    ///
    /// # Errors
    /// [`Error::File`] when `root` cannot be opened. A missing or unreadable os-release file is none.
    pub fn detect(root: &Path) -> Result<Self, Error> {
        let root = files::Root::open(root)?;
        let text =
            ["/etc/os-release", "/usr/lib/os-release"].into_iter().find_map(|path| root.read(path, 1 << 16).ok());
        let text = String::from_utf8_lossy(text.as_deref().unwrap_or_default()).into_owned();
        let debian = text.lines().filter_map(|line| line.split_once('=')).any(|(key, value)| {
            matches!(key, "ID" | "ID_LIKE")
                && value.trim_matches(['"', '\'']).split(' ').any(|word| matches!(word, "debian" | "ubuntu"))
        });
        Ok(if debian { Self::Debian12 } else { Self::LinuxPam17 })
    }

    /// A missing limits.conf, or a file of limits.d that vanished, refuses the session.
    const fn needs_conf(self) -> bool {
        !matches!(self, Self::LinuxPam17)
    }

    /// Uid 0 is exempt from everything but lines with its name or a uid range.
    const fn exempts_root(self) -> bool {
        matches!(self, Self::Debian12)
    }

    /// Limits of process 1 come before all lines.
    const fn starts_from_init(self) -> bool {
        matches!(self, Self::Debian12)
    }

    /// A `setrlimit` answered by EPERM is skipped.
    const fn tolerates_refusal(self) -> bool {
        matches!(self, Self::Debian12)
    }
}

impl fmt::Display for Flavor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Flavor {
    type Err = Error;

    /// Reads the names of [`as_str`](Self::as_str).
    ///
    /// # Errors
    /// [`Error::Invalid`] for any other.
    fn from_str(text: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|flavor| flavor.as_str() == text).ok_or_else(|| Error::Invalid {
            what: format!("flavor `{text}`"),
            why: format!("it is none of {}", Self::ALL.map(Self::as_str).join(", ")),
        })
    }
}

/// Decides what limits.conf and limits.d make of a user's limits; made once, asked at each start.
///
/// What was read is kept, and read again only when a file's stamp (device, inode, size, times) changed: asking again
/// costs a `stat` per file and directory, and one read each of `/proc/1/limits` (only where it counts) and
/// `/proc/sys/fs/nr_open`. A file changed less than two seconds before it was read is read again next time, so that no
/// edit is missed by clocks that tick slowly. `Send` and `Sync`.
#[derive(Debug)]
pub struct Resolver {
    flavor: Flavor,
    root: files::Root,
    vendor: Option<PathBuf>,
    conf: Option<PathBuf>,
    set_all: bool,
    privileged: bool,
    inherited: Option<Table>,
    init: Option<Table>,
    nr_open: Option<u64>,
    cache: Mutex<(files::Cache, accounts::Cache)>,
}

impl Resolver {
    /// A resolver for this system's files: `/etc/security/limits.conf` and `/etc/security/limits.d/*.conf`.
    pub fn new(flavor: Flavor) -> Self {
        Self {
            flavor,
            root: files::Root::system(),
            vendor: None,
            conf: None,
            set_all: false,
            privileged: true,
            inherited: None,
            init: None,
            nr_open: None,
            cache: Mutex::default(),
        }
    }

    /// Reads all files below `root` instead, passwd and group too; the system's name service is not asked then.
    ///
    /// Nothing there is trusted: symbolic links cannot lead out of `root`, only regular files are opened (a device or
    /// FIFO is an error, a directory counts as an empty file), and sizes and numbers are bounded.
    ///
    /// # Errors
    /// [`Error::File`] when `root` cannot be opened as a directory.
    pub fn root(mut self, root: impl AsRef<Path>) -> Result<Self, Error> {
        self.root = files::Root::open(root.as_ref())?;
        self.cache = Mutex::default();
        Ok(self)
    }

    /// The vendor directory (such as `/usr/etc/security`): its limits.conf is used when the one in `/etc` is missing,
    /// and its limits.d is merged, a file in `/etc` hiding one of the same name. Default: none.
    ///
    /// Only [`Flavor::LinuxPam17`] knows it; the others ignore it, as the module does.
    pub fn vendor_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.vendor = Some(dir.into());
        self
    }

    /// The module's argument `conf=FILE`: this file alone, no limits.d; it must exist. Default: none.
    pub fn conf(mut self, file: impl Into<PathBuf>) -> Self {
        self.conf = Some(file.into());
        self
    }

    /// The module's argument `set_all`: what no line decides is taken from process 1. Default: off; without effect on
    /// Debian, where that is always so.
    pub fn set_all(mut self, on: bool) -> Self {
        self.set_all = on;
        self
    }

    /// Whether the module runs with CAP_SYS_RESOURCE in the initial user namespace, as login programs do. Default: yes.
    ///
    /// If not, raising a hard limit is refused: that item keeps its inherited limits, and the login is denied (except on
    /// Debian).
    pub fn privileged(mut self, yes: bool) -> Self {
        self.privileged = yes;
        self
    }

    /// The limits that the session starts with. Default: those of the calling process at each question.
    pub fn inherited(mut self, limits: Table) -> Self {
        self.inherited = Some(limits);
        self
    }

    /// The limits of process 1. Default: `/proc/1/limits` at each question, where it counts.
    pub fn init_limits(mut self, limits: Table) -> Self {
        self.init = Some(limits);
        self
    }

    /// The sysctl `fs.nr_open`: what `nofile unlimited` becomes, and the most that `nofile` may be. Default: the
    /// kernel's at each question.
    pub fn nr_open(mut self, files: u64) -> Self {
        self.nr_open = Some(files);
        self
    }

    /// The flavor that is followed.
    pub fn flavor(&self) -> Flavor {
        self.flavor
    }

    /// Looks up the account: by login name, else, when it is all digits, by uid.
    ///
    /// Asks the system's name service, or below [`root`](Self::root) its passwd and group. The answer is kept until
    /// passwd, group or nsswitch.conf change, at most for a minute.
    ///
    /// # Errors
    /// [`Error::Invalid`] when there is no such account; [`Error::File`] or [`Error::Syscall`] when it cannot be read.
    pub fn user(&self, name: &str) -> Result<User, Error> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, accounts) = &mut *cache;
        accounts.user(&self.root, name)
    }

    /// What a session of that user gets, read anew where a file changed: [`user`](Self::user) and
    /// [`resolve`](Self::resolve) in one, with group names that exist twice for one gid matched too.
    ///
    /// # Errors
    /// Those of the two.
    pub fn resolve_name(&self, name: &str) -> Result<Resolved, Error> {
        let user = self.user(name)?;
        self.resolve_for(&user, true)
    }

    /// What a session of that user gets, read anew where a file changed.
    ///
    /// A configuration that the module would refuse is no error here but a denied [`login`](Resolved::login).
    ///
    /// # Errors
    /// [`Error::File`] when a file exists but cannot be read by this process, or `/proc` cannot; [`Error::Invalid`] when
    /// a file is no regular one or larger than any honest one (1 MiB each, 4 MiB and 50,000 lines together, 1,000 files).
    pub fn resolve(&self, user: &User) -> Result<Resolved, Error> {
        self.resolve_for(user, false)
    }

    fn resolve_for(&self, user: &User, aliases: bool) -> Result<Resolved, Error> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let (files, accounts) = &mut *cache;
        let vendor = self.vendor.as_deref().filter(|_| self.flavor == Flavor::LinuxPam17);
        let config = files.read(&self.root, self.flavor, vendor, self.conf.as_deref())?;
        let known;
        let user = if aliases {
            known = accounts.with_groups(&self.root, user, config.group_names())?;
            &known
        } else {
            user
        };
        let from_init = self.set_all || self.flavor.starts_from_init();
        let init = match self.init {
            Some(init) => Some(init),
            // The module goes on without it too.
            None if from_init => process::of(1).ok(),
            None => None,
        };
        let surroundings = choose::Surroundings {
            flavor: self.flavor,
            inherited: self.inherited.unwrap_or_else(Table::own),
            init: init.filter(|_| from_init),
            nr_open: self.nr_open.or_else(process::nr_open).map_or(Limit::Unlimited, Limit::from_raw),
            privileged: self.privileged,
        };
        Ok(choose::choose(&config, user, &surroundings, |dir| self.root.is_dir(dir)))
    }
}
