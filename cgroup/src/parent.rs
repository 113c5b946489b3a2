//! Where new groups go: the nearest place above the caller in which a group with the needed controllers can be made
//! without moving anybody.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;

use crate::dir::Dir;
use crate::group::{Cgroup, Part};
use crate::hierarchy::{Controller, Controllers, Hierarchy, Layout, Version};
use crate::{Error, Result, name};

/// What a new group must be able to do.
///
/// ```
/// use cgroup::{Controller, Needs};
/// let needs = Needs::new([Controller::Memory, Controller::Pids]).prefer([Controller::Cpu]);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Needs {
    required: Controllers,
    preferred: Controllers,
    core: bool,
}

impl Needs {
    /// The controllers that must be there, and the core features where the machine has them: being born into the group,
    /// killing, freezing, emptiness and CPU time. They come from the v2 tree (also on a hybrid machine, where it has no
    /// controllers), and on a pure v1 machine from the hierarchies of `freezer` and `cpuacct`.
    #[must_use]
    pub fn new(required: impl Into<Controllers>) -> Self {
        Self { required: required.into(), preferred: Controllers::NONE, core: true }
    }

    /// Controllers that are taken where the hierarchy can be reached and written, and done without elsewhere.
    #[must_use]
    pub fn prefer(mut self, controllers: impl Into<Controllers>) -> Self {
        self.preferred = controllers.into();
        self
    }

    /// Without the core features: a directory in the hierarchies of the required controllers only.
    #[must_use]
    pub fn controllers_only(mut self) -> Self {
        self.core = false;
        self
    }
}

/// A place for new groups: one held directory per hierarchy.
///
/// Found once by [`Layout::parent`], after which [`create`](Self::create) costs one `mkdirat` and one `openat` per
/// hierarchy. Cheap to clone; may be used from several threads at once.
#[derive(Debug, Clone)]
pub struct Parent(Arc<[Place]>);

#[derive(Debug)]
struct Place {
    version: Version,
    controllers: Controllers,
    dir: Arc<Dir>,
    /// v1 cpuset: what a new group must be given before anything can join it.
    cpuset: Option<(String, String)>,
    /// v1 memory before Linux 5.11: groups below a new group count in it only when it is told so before.
    flat_memory: bool,
}

impl Place {
    fn new(version: Version, controllers: Controllers, dir: Arc<Dir>) -> Result<Self> {
        let holds = |controller| version == Version::V1 && controllers.contains(controller);
        let read = |file: &str| Ok::<_, Error>(dir.read(file)?.trim().to_owned());
        let cpuset = match holds(Controller::Cpuset) {
            true => Some((read("cpuset.cpus")?, read("cpuset.mems")?)),
            false => None,
        };
        let flat_memory =
            holds(Controller::Memory) && dir.read_optional(HIERARCHICAL)?.is_some_and(|text| text.trim() == "0");
        Ok(Self { version, controllers, dir, cpuset, flat_memory })
    }
}

const HIERARCHICAL: &str = "memory.use_hierarchy";

impl Layout {
    /// Finds where groups with `needs` can be made: in each hierarchy the caller's own group or the nearest one above it
    /// in which a child with the controllers works *without moving anybody*.
    ///
    /// - v1: the nearest directory that the caller may write, beginning with its own group.
    /// - v2: a group that offers the controllers to its children (`cgroup.subtree_control`) and holds no processes
    ///   itself, or the root. Where the group has a controller but does not offer it yet, it is made to offer it; nothing
    ///   else is changed. The caller's own group holds the caller, so there it is usually the one above.
    ///
    /// The new groups are bound by the limits of their ancestors too.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when no hierarchy has a required controller, [`Error::NotReachable`] when one has it but no
    /// mount shows it, [`Error::NotDelegated`] when the caller may write nowhere up to the root.
    pub fn parent(&self, needs: &Needs) -> Result<Parent> {
        let mut places: Vec<Place> = Vec::new();
        for hierarchy in self.hierarchies() {
            let required = hierarchy.controllers.and(needs.required);
            let core = needs.core && self.is_core(hierarchy);
            let preferred = hierarchy.controllers.and(needs.preferred).without(required);
            if required.is_empty() && preferred.is_empty() && !core {
                continue;
            }
            let all = preferred.iter().fold(required, Controllers::with);
            let found = match find(hierarchy, all) {
                Err(_) if !preferred.is_empty() => find_most(hierarchy, required, preferred),
                found => found,
            };
            match found {
                Ok(place) => places.push(place),
                // Groups on v1 do without the v2 tree, and the other way round, when nothing required is in it.
                Err(_) if required.is_empty() => {}
                Err(error) => return Err(error),
            }
        }
        for controller in needs.required.iter() {
            let found = places.iter().any(|place| place.controllers.contains(controller));
            // On v2 these are no controllers: every group has them.
            let core = matches!(controller, Controller::Freezer | Controller::Cpuacct | Controller::Devices)
                && places.iter().any(|place| place.version == Version::V2);
            if !found && !core {
                return Err(self.lacks(controller));
            }
        }
        if places.is_empty() {
            let own = self.hierarchies().first();
            let path = own.map_or_else(PathBuf::new, |one| one.mount_point.join(&one.own));
            return Err(Error::NotDelegated { path, wanted: "anything".to_owned(), error: Errno::ACCESS.into() });
        }
        Ok(Parent(places.into()))
    }

    /// [`parent`](Self::parent) and [`Parent::create`] in one.
    ///
    /// # Errors
    /// Those of both.
    pub fn create(&self, name: &str, needs: &Needs) -> Result<Cgroup> {
        self.parent(needs)?.create(name)
    }

    /// Opens the group at `path`, the same in every hierarchy that `needs` names, counted from where each is mounted.
    ///
    /// # Errors
    /// [`Error::File`] (`ENOENT`) when there is none, [`Error::Unsupported`] when no hierarchy has a required controller,
    /// [`Error::Invalid`] when `path` has a component that is no plain name.
    pub fn open(&self, path: impl AsRef<Path>, needs: &Needs) -> Result<Cgroup> {
        let path = path.as_ref();
        for part in path.components() {
            match part {
                std::path::Component::RootDir | std::path::Component::CurDir | std::path::Component::Normal(_) => {}
                _ => return Err(Error::invalid("path", format!("{} climbs out of its tree", path.display()))),
            }
        }
        let below = path.strip_prefix("/").unwrap_or(path);
        self.open_at(needs, |hierarchy| hierarchy.mount_point.join(below))
    }

    /// Opens the caller's own group: to read its usage and events, or to make groups below it with
    /// [`Cgroup::child`]. It is never frozen, killed or removed through this.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn own(&self, needs: &Needs) -> Result<Cgroup> {
        self.open_at(needs, |hierarchy| hierarchy.mount_point.join(&hierarchy.own))
    }

    fn open_at(&self, needs: &Needs, path: impl Fn(&Hierarchy) -> PathBuf) -> Result<Cgroup> {
        let mut parts = Vec::new();
        for hierarchy in self.hierarchies() {
            let required = hierarchy.controllers.and(needs.required);
            let preferred = hierarchy.controllers.and(needs.preferred);
            let core = needs.core && self.is_core(hierarchy);
            if required.is_empty() && preferred.is_empty() && !core {
                continue;
            }
            match Dir::open(path(hierarchy)) {
                Ok(dir) => parts.push(Part::open(hierarchy.version, hierarchy.controllers, dir)?),
                Err(error) if error.is(Errno::NOENT) && required.is_empty() => {}
                Err(error) => return Err(error),
            }
        }
        if let Some(missing) = needs.required.iter().find(|&c| self.version_of(c).is_none()) {
            return Err(self.lacks(missing));
        }
        if parts.is_empty() {
            let first = self.hierarchies().first().map(path).unwrap_or_default();
            return Err(Error::file("open", first, Errno::NOENT));
        }
        Ok(Cgroup::from_parts(parts))
    }

    /// Whether the core features come from this hierarchy.
    fn is_core(&self, hierarchy: &Hierarchy) -> bool {
        match hierarchy.version {
            Version::V2 => true,
            Version::V1 => {
                self.unified().is_none()
                    && [Controller::Freezer, Controller::Cpuacct].iter().any(|&c| hierarchy.controllers.contains(c))
            }
        }
    }

    fn lacks(&self, controller: Controller) -> Error {
        let name = controller.name(if self.unified().is_some() { Version::V2 } else { Version::V1 });
        if let Some(hidden) = self.unreachable().iter().find(|one| one.controllers.contains(controller)) {
            return Error::NotReachable {
                hierarchy: hidden.label.clone(),
                group: hidden.group.display().to_string(),
                why: hidden.why.clone(),
            };
        }
        Error::unsupported(
            format!("the {name} controller"),
            format!("a kernel with it, and a mount that shows it (this machine: {})", self.describe()),
        )
    }
}

/// The place in one hierarchy.
fn find(hierarchy: &Hierarchy, wanted: Controllers) -> Result<Place> {
    let mut refusal = None;
    for own in hierarchy.own.ancestors() {
        let path = hierarchy.mount_point.join(own);
        let tried = Dir::open(path).and_then(|dir| match hierarchy.version {
            Version::V1 => dir.may_write(".").map(|()| dir),
            Version::V2 => fits(&dir, wanted).map(|()| dir),
        });
        match tried {
            Ok(dir) => {
                let controllers = match hierarchy.version {
                    Version::V1 => hierarchy.controllers,
                    Version::V2 => offered(&dir)?,
                };
                return Place::new(hierarchy.version, controllers, Arc::new(dir));
            }
            Err(error) => {
                refusal.get_or_insert(error);
            }
        }
    }
    let path = hierarchy.mount_point.join(&hierarchy.own);
    let wanted = match wanted.words(hierarchy.version) {
        words if words.is_empty() => hierarchy.label.clone(),
        words => words,
    };
    Err(match refusal {
        Some(error) if matches!(error.errno(), Some(errno) if [Errno::ACCESS, Errno::PERM, Errno::ROFS, Errno::NOENT].iter().any(|e| e.raw_os_error() == errno)) => {
            Error::NotDelegated {
                path,
                wanted,
                error: error.errno().map_or(Errno::ACCESS.into(), std::io::Error::from_raw_os_error),
            }
        }
        Some(error) => error,
        None => Error::NotDelegated { path, wanted, error: Errno::ACCESS.into() },
    })
}

/// The place with all of `required`, and as many of `preferred` as there is one for.
fn find_most(hierarchy: &Hierarchy, required: Controllers, preferred: Controllers) -> Result<Place> {
    let (mut found, mut wanted) = (find(hierarchy, required), required);
    for controller in preferred.iter() {
        if let Ok(place) = find(hierarchy, wanted.with(controller)) {
            (found, wanted) = (Ok(place), wanted.with(controller));
        }
    }
    found
}

fn offered(dir: &Dir) -> Result<Controllers> {
    let text = dir.read_optional("cgroup.subtree_control")?.unwrap_or_default();
    Ok(Controllers::from_words(text.split_whitespace(), Version::V2))
}

/// Whether children of this v2 group can hold processes and have the controllers; makes it offer them if need be.
fn fits(dir: &Dir, wanted: Controllers) -> Result<()> {
    dir.may_write(".")?;
    // Being born there needs the common ancestor's cgroup.procs, which this is.
    dir.may_write("cgroup.procs")?;
    let busy = |why: &str| Error::unsupported(format!("a group below {}", dir.path().display()), why);
    let kind = dir.read_optional("cgroup.type")?;
    let root = kind.is_none();
    if kind.is_some_and(|kind| kind.trim() != "domain") {
        return Err(busy("a parent that is neither threaded nor the domain of threaded groups"));
    }
    let offered = offered(dir)?;
    // A group with processes of its own that offers controllers makes its children invalid or the domain of threads.
    let populated = !root && !dir.read("cgroup.procs")?.is_empty();
    let missing = wanted.without(offered);
    if populated && !(offered.is_empty() && missing.is_empty()) {
        return Err(Error::file("write", dir.path().join("cgroup.subtree_control"), Errno::BUSY));
    }
    if missing.is_empty() {
        return Ok(());
    }
    enable(dir, missing)
}

/// Offers controllers to the children of a v2 group.
pub(crate) fn enable(dir: &Dir, controllers: Controllers) -> Result<()> {
    let text = controllers.iter().map(|c| format!("+{}", c.name(Version::V2))).collect::<Vec<_>>().join(" ");
    dir.write("cgroup.subtree_control", &text)
}

impl Parent {
    /// Makes the group `name` in each hierarchy: all of them or none.
    ///
    /// Nobody is in it yet and nothing is limited. On v1 `cpuset` the parent's CPUs and memory nodes are written into it,
    /// as nothing could join it otherwise.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a name that is not 1 to 255 of `A-Z a-z 0-9 _ . + -`, begins with a dot, or looks like a
    /// file of the kernel; [`Error::File`] with `EEXIST` when there is such a group, `EAGAIN` when an ancestor's
    /// `cgroup.max.depth` or `cgroup.max.descendants` is reached.
    pub fn create(&self, name: &str) -> Result<Cgroup> {
        name::check(name)?;
        let mut parts: Vec<Part> = Vec::with_capacity(self.0.len());
        for place in self.0.iter() {
            let made = place.dir.make(name).and_then(|()| {
                let part = place.dir.child(name).and_then(|dir| Part::made(place, dir, name)).inspect_err(|_| {
                    let _ = place.dir.remove(name);
                })?;
                parts.push(part);
                Ok(())
            });
            if let Err(error) = made {
                for part in &parts {
                    let _ = part.remove_now();
                }
                return Err(error);
            }
        }
        Ok(Cgroup::from_parts(parts))
    }

    /// Opens the group `name` that somebody made here.
    ///
    /// # Errors
    /// [`Error::File`] with `ENOENT` when it is missing in every hierarchy. Those where it is missing are left out
    /// otherwise, so that the remains of a group can be removed.
    pub fn open(&self, name: &str) -> Result<Cgroup> {
        name::check(name)?;
        let (mut parts, mut missing) = (Vec::new(), None);
        for place in self.0.iter() {
            match place.dir.child(name) {
                Ok(dir) => {
                    parts.push(Part::below(place.version, place.controllers, dir, Arc::clone(&place.dir), name)?)
                }
                Err(error) if error.is(Errno::NOENT) => missing = Some(error),
                Err(error) => return Err(error),
            }
        }
        match missing {
            Some(error) if parts.is_empty() => Err(error),
            _ => Ok(Cgroup::from_parts(parts)),
        }
    }

    /// The names of the groups that are here, in any hierarchy, sorted.
    ///
    /// # Errors
    /// [`Error::File`] when a directory cannot be listed.
    pub fn names(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for place in self.0.iter() {
            names.extend(place.dir.children()?);
        }
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    /// The directories, one per hierarchy, for messages.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().map(|place| place.dir.path())
    }

    pub(crate) fn from_group(parts: &[Part], needs: Controllers) -> Result<Self> {
        let mut places = Vec::with_capacity(parts.len());
        for part in parts {
            let controllers = match part.version {
                Version::V1 => part.controllers,
                Version::V2 => {
                    let missing = part.controllers.and(needs).without(offered(&part.dir)?);
                    if !missing.is_empty() {
                        enable(&part.dir, missing)?;
                    }
                    offered(&part.dir)?
                }
            };
            places.push(Place::new(part.version, controllers, Arc::clone(&part.dir))?);
        }
        Ok(Self(places.into()))
    }
}

impl Part {
    fn made(place: &Place, dir: Dir, name: &str) -> Result<Self> {
        if let Some((cpus, mems)) = &place.cpuset {
            dir.write("cpuset.cpus", cpus)?;
            dir.write("cpuset.mems", mems)?;
        }
        if place.flat_memory {
            dir.write(HIERARCHICAL, "1")?;
        }
        Self::below(place.version, place.controllers, dir, Arc::clone(&place.dir), name)
    }
}
