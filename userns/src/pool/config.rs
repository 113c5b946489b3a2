//! Which ids a pool has.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::record;
use crate::write::{Kind, OwnMaps};
use crate::{Error, Range, SubordinateIds};

/// The ids of root's pool when nothing is configured: 2013265920 to 2147352575, room for 2046 sandboxes of 65536 ids.
///
/// They lie above what the usual tools hand out (`useradd`'s subordinate ids end at 600100000, systemd-nspawn's containers
/// at 1879048191, SSSD's and FreeIPA's domain accounts at 2000200000) and below what they keep for other ends (systemd's
/// foreign ids from 2147352576, Podman's customary `containers` user from 2147483647, and all numbers with the sign bit).
pub const DEFAULT_RANGE: (u32, u32) = (2_013_265_920, 134_086_656);

/// The user whose subordinate ids root's pool lends when it has some: one line for it in `/etc/subuid` and in
/// `/etc/subgid` configures the machine's default pool, and tells `useradd` to leave these ids alone.
pub const DEDICATED_USER: &str = "sandbox";

/// The size of a slot of root's pool: every id that programs expect to exist, 65534 included.
pub const ROOT_SLOT: u32 = 65536;

/// The size of a slot of a user's own pool: the usual 65536 subordinate ids make 64 of them.
pub const USER_SLOT: u32 = 1024;

/// The smallest slot: root, init and nobody.
const MIN_SLOT: u32 = 3;

/// The most slots of a pool.
const MAX_SLOTS: usize = 1 << 16;

/// Uids and gids of one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) uids: Range,
    pub(super) gids: Range,
}

/// Which ids a pool has, in pieces of which size it lends them, and where it remembers the registered ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolConfig {
    uids: Vec<Range>,
    gids: Vec<Range>,
    slot: u32,
    pub(super) owners: Vec<OsString>,
    pub(super) registry: Option<PathBuf>,
    pub(super) root: PathBuf,
    pub(super) share_live_maps: bool,
}

impl PoolConfig {
    /// A pool of the uids and gids of `range`, lent `slot` at a time. What is left over at the end is not used.
    ///
    /// [`Pool::open`](crate::Pool::open) checks it.
    #[must_use]
    pub fn new(range: Range, slot: u32) -> Self {
        Self::with_ranges(vec![range], vec![range], slot)
    }

    /// A pool of several ranges, uids and gids apart: as many slots as both have room for.
    #[must_use]
    pub fn with_ranges(uids: Vec<Range>, gids: Vec<Range>, slot: u32) -> Self {
        let root = PathBuf::from("/");
        Self { uids, gids, slot, owners: Vec::new(), registry: None, root, share_live_maps: false }
    }

    /// A pool of the subordinate ids of a user.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the user has no room for one slot; what reading the grants says.
    pub fn of_user(ids: &SubordinateIds, user: &OsStr, slot: u32) -> Result<Self, Error> {
        let config = Self::with_ranges(ids.ranges_of(Kind::Uid, user)?, ids.ranges_of(Kind::Gid, user)?, slot);
        match config.slots() {
            Ok(_) => Ok(config.owner(user)),
            Err(_) => Err(Error::Unsupported {
                feature: "a pool of subordinate ids",
                needs: format!(
                    "lines for {} with {slot} ids or more in {} and {} (as root: `usermod --add-subuids FIRST-LAST \
                     --add-subgids FIRST-LAST USER`)",
                    user.to_string_lossy(),
                    ids.uids().path().display(),
                    ids.gids().path().display()
                ),
            }),
        }
    }

    /// The pool of a caller that says nothing. Root, in this order: the subordinate ids of [`DEDICATED_USER`],
    /// [`DEFAULT_RANGE`], and where that is not mapped (root of a container) what is mapped above 65535, or the ids from
    /// 16384 to 61183. Others: their own subordinate ids in slots of [`USER_SLOT`].
    ///
    /// # Errors
    /// [`Error::Unsupported`] when there are no ids to lend; what reading the grants says.
    pub fn default_for_caller() -> Result<Self, Error> {
        let ids = SubordinateIds::read()?;
        let caller = rustix::process::geteuid();
        if !caller.is_root() {
            let uid = caller.as_raw();
            // A uid without a name may still have a line by its number.
            let name = ids.accounts().user_name(uid).unwrap_or_else(|| uid.to_string().into());
            return Self::of_user(&ids, &name, USER_SLOT);
        }
        let candidates = [
            Self::of_user(&ids, OsStr::new(DEDICATED_USER), ROOT_SLOT).ok(),
            Some(Self::new(Range::new(DEFAULT_RANGE.0, DEFAULT_RANGE.1)?, ROOT_SLOT)),
            Self::of_own_map(65536, u32::MAX - 1, ROOT_SLOT)?,
            Self::of_own_map(65536, u32::MAX - 1, USER_SLOT)?,
            Self::of_own_map(16384, 61183, USER_SLOT)?,
        ];
        let usable = candidates.into_iter().flatten().find(|config| config.mapped().is_ok() && config.slots().is_ok());
        match usable {
            Some(config) => Ok(config),
            None => Err(Error::Unsupported {
                feature: "a pool of ids",
                needs: format!("{USER_SLOT} ids besides root's that are mapped in this user namespace"),
            }),
        }
    }

    /// The ids from `first` to `last` that both our maps have.
    fn of_own_map(first: u32, last: u32, slot: u32) -> Result<Option<Self>, Error> {
        let maps = OwnMaps::read()?;
        let (Some(uids), Some(gids)) = (&maps.uids, &maps.gids) else { return Ok(None) };
        let clip = |map: &crate::IdMap| -> Vec<Range> {
            let clipped = map.extents().iter().filter_map(|extent| {
                let from = extent.inside.max(first);
                let to = (extent.inside + (extent.count - 1)).min(last);
                Range::new(from, to.checked_sub(from)?.checked_add(1)?).ok()
            });
            clipped.collect()
        };
        Ok(Some(Self::with_ranges(clip(uids), clip(gids), slot)))
    }

    /// Names a user whose lines in `/etc/subuid` and `/etc/subgid` may cover the pool's ids: such a line of anybody else is
    /// a conflict.
    #[must_use]
    pub fn owner(mut self, user: impl Into<OsString>) -> Self {
        self.owners.push(user.into());
        self
    }

    /// Where registered ranges are remembered beyond a reboot: a directory below which `ids` is made (default:
    /// `/var/lib/sandbox` for root, `.local/state/sandbox` in the account's home for others; nothing is made before
    /// the first [`Lease::register`](crate::Lease::register)). All who open the pool must name the same.
    #[must_use]
    pub fn registered_in(mut self, directory: impl Into<PathBuf>) -> Self {
        self.registry = Some(directory.into());
        self
    }

    /// The directory of the registered ranges, where there is one.
    pub(super) fn registry(&self) -> Option<PathBuf> {
        self.registry.clone().or_else(default_registry)
    }

    /// Where the accounts and subordinate ids of others are read from: `etc/passwd` and the like below this directory
    /// (default: `/`).
    #[must_use]
    pub fn conflicts_from(mut self, root: &Path) -> Self {
        root.clone_into(&mut self.root);
        self
    }

    /// Lends ids that a living namespace of somebody else maps, as long as no process runs with them (default: off).
    ///
    /// For a user whose rootless Podman maps all of the user's subordinate ids: without this there is nothing to lend while
    /// any container of it runs, with it nothing keeps such a container from using an id that a sandbox has.
    #[must_use]
    pub fn share_live_maps(mut self, share: bool) -> Self {
        self.share_live_maps = share;
        self
    }

    /// The uids, of which slots are cut.
    #[must_use]
    pub fn uids(&self) -> &[Range] {
        &self.uids
    }

    /// The gids, of which slots are cut.
    #[must_use]
    pub fn gids(&self) -> &[Range] {
        &self.gids
    }

    /// The slots, in order.
    pub(super) fn slots(&self) -> Result<Vec<Slot>, Error> {
        let size = self.slot;
        let what = || format!("a pool of slots of {size} ids");
        if size < MIN_SLOT {
            return Err(Error::invalid(what(), format!("a slot has at least {MIN_SLOT} ids: root, init and nobody")));
        }
        for ranges in [&self.uids, &self.gids] {
            for (n, range) in ranges.iter().enumerate() {
                if let Some(other) = ranges[..n].iter().find(|other| other.overlaps(*range)) {
                    return Err(Error::invalid(what(), format!("its ranges {other} and {range} overlap")));
                }
                if range.contains(0) {
                    return Err(Error::invalid(what(), format!("its range {range} contains root's id")));
                }
            }
        }
        let cut = |ranges: &[Range]| -> Vec<Range> {
            let whole = ranges.iter().flat_map(|range| {
                (0..range.count() / size).filter_map(|n| Range::new(range.base() + n * size, size).ok())
            });
            whole.take(MAX_SLOTS + 1).collect()
        };
        let pairs = cut(&self.uids).into_iter().zip(cut(&self.gids));
        let slots: Vec<_> = pairs.map(|(uids, gids)| Slot { uids, gids }).collect();
        match slots.len() {
            0 => Err(Error::invalid(what(), "its uids or gids have no room for one")),
            n if n > MAX_SLOTS => Err(Error::invalid(what(), format!("it has more than {MAX_SLOTS}"))),
            _ => Ok(slots),
        }
    }

    /// Whether our own namespace has these ids.
    pub(super) fn mapped(&self) -> Result<(), Error> {
        let own = OwnMaps::read()?;
        for (ranges, map) in [(&self.uids, &own.uids), (&self.gids, &own.gids)] {
            for range in ranges {
                match map {
                    Some(map) => drop(crate::IdMap::of_range(*range).split_at(map)?),
                    None => return Err(Error::invalid("id pool", "the namespace of the caller has no map itself yet")),
                }
            }
        }
        Ok(())
    }

    /// The pool's file: what all who share the pool must agree on.
    pub(super) fn text(&self) -> String {
        let mut text = format!("slot {}\n", self.slot);
        for (key, ranges) in [("uids", &self.uids), ("gids", &self.gids)] {
            for range in ranges {
                let _ = writeln!(text, "{key} {} {}", range.base(), range.count());
            }
        }
        if let Some(registry) = &self.registry {
            let _ = writeln!(text, "registry {}", registry.display());
        }
        text.push_str("end\n");
        text
    }

    /// A directory of registered ranges that the pool's file can name.
    pub(super) fn check_registry(&self) -> Result<(), Error> {
        match self.registry.as_deref().map(|path| (path.is_absolute(), path.to_str())) {
            None => Ok(()),
            Some((true, Some(path))) if !path.contains('\n') => Ok(()),
            Some(_) => Err(Error::invalid(
                "the directory of registered ranges",
                "it must be an absolute path in UTF-8 without a line break",
            )),
        }
    }

    /// Reads that file; `None` when it is cut or garbage.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut config = Self::with_ranges(Vec::new(), Vec::new(), 0);
        for line in text.strip_suffix("end\n")?.lines() {
            match line.split_once(' ')? {
                ("slot", slot) => config.slot = slot.parse().ok()?,
                ("uids", range) => config.uids.push(record::range(range)?),
                ("gids", range) => config.gids.push(record::range(range)?),
                ("registry", path) => config.registry = Some(path.into()),
                _ => return None,
            }
        }
        Some(config)
    }

    /// Whether the pools lend the same pieces, and remember the registered ones in the same place.
    pub(super) fn same_ids(&self, other: &Self) -> bool {
        let Self { uids, gids, slot, registry, .. } = self;
        (uids, gids, slot, registry) == (&other.uids, &other.gids, &other.slot, &other.registry)
    }

    /// A range that both pools have.
    pub(super) fn common(&self, other: &Self) -> Option<Range> {
        let meet = |a: &[Range], b: &[Range]| a.iter().copied().find(|a| b.iter().any(|b| a.overlaps(*b)));
        meet(&self.uids, &other.uids).or_else(|| meet(&self.gids, &other.gids))
    }
}

/// The state directory of a caller that names none: `/run/sandbox` for root, `$XDG_RUNTIME_DIR/sandbox` for others (or
/// `/run/user/UID/sandbox` when the variable is not set).
///
/// # Errors
/// [`Error::Unsupported`] when the caller is not root and has neither.
pub fn default_state_dir() -> Result<PathBuf, Error> {
    let caller = rustix::process::geteuid();
    if caller.is_root() {
        return Ok("/run/sandbox".into());
    }
    let named = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    let usual = PathBuf::from(format!("/run/user/{}", caller.as_raw()));
    match named.or_else(|| usual.is_dir().then_some(usual)) {
        Some(directory) => Ok(directory.join("sandbox")),
        None => Err(Error::Unsupported {
            feature: "a default state directory",
            needs: "XDG_RUNTIME_DIR in the environment, or a state directory named by the caller".into(),
        }),
    }
}

/// Where registered ranges are remembered by default.
fn default_registry() -> Option<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Some("/var/lib/sandbox".into());
    }
    // Not by HOME or XDG_STATE_HOME: all processes of the user must find the same place, whatever their environment.
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok()??;
    user.dir.is_absolute().then(|| user.dir.join(".local/state/sandbox"))
}
