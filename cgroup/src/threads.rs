//! Single threads in groups, and files that this crate has no word for.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::OFlags;

use crate::dir::Dir;
use crate::group::{Cgroup, collect};
use crate::hierarchy::{Controller, Version};
use crate::{Error, Result};

impl Cgroup {
    /// Moves a single thread, by its thread id, and leaves the rest of its process where it is.
    ///
    /// On v1 any thread may go to any group of a hierarchy; children that it clones are born there. On v2 only within a
    /// threaded subtree: see [`make_threaded`](Self::make_threaded).
    ///
    /// # Errors
    /// [`Error::Invalid`] for 0; [`Error::File`]: on v2 `EOPNOTSUPP` when this group or the thread's present one is no
    /// part of a common threaded subtree.
    pub fn attach_thread(&self, tid: u32) -> Result<()> {
        if tid == 0 || i32::try_from(tid).is_err() {
            return Err(Error::invalid("tid", format!("{tid} is no thread id")));
        }
        for part in self.parts() {
            let file = match part.version {
                Version::V1 => "tasks",
                Version::V2 => "cgroup.threads",
            };
            part.dir.write(file, &tid.to_string())?;
        }
        Ok(())
    }

    /// The ids of the threads in this group and below, each once. As with [`pids`](Self::pids) they may be old already.
    ///
    /// # Errors
    /// [`Error::File`] when a list cannot be read.
    pub fn threads(&self) -> Result<Vec<u32>> {
        let mut tids = Vec::new();
        if let Some(part) = self.v2() {
            collect(&part.dir, "cgroup.threads", &mut tids)?;
        } else if let Some(part) = self.parts().first() {
            collect(&part.dir, "tasks", &mut tids)?;
        }
        tids.sort_unstable();
        tids.dedup();
        Ok(tids)
    }

    /// Makes the v2 part of the group threaded, for good: it then takes single threads of processes that are in the
    /// domain above it, and has no memory or io controller of its own. On v1 every group takes threads, and nothing is
    /// done.
    ///
    /// # Errors
    /// [`Error::File`] with `EOPNOTSUPP` when the group or its parent has controllers that cannot be threaded.
    ///
    /// Kernel: 4.14; cgroup-v2.rst, "Threads".
    pub fn make_threaded(&self) -> Result<()> {
        match self.v2() {
            Some(part) => part.dir.write("cgroup.type", "threaded"),
            None => Ok(()),
        }
    }

    /// The group's directory in the hierarchy of `controller`, or with `None` in the v2 tree: for files that this crate
    /// has no word for. The only place where names of files of one version are used.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the group has no such directory.
    pub fn raw(&self, controller: impl Into<Option<Controller>>) -> Result<Raw<'_>> {
        let controller = controller.into();
        let part = match controller {
            Some(controller) => self.part(controller),
            None => self.v2(),
        };
        part.map(|part| Raw { dir: &part.dir, version: part.version }).ok_or_else(|| {
            let name = controller.map_or("the v2 tree", |controller| controller.name(Version::V2));
            Error::unsupported(format!("the directory of {name}"), "a group that was made with it")
        })
    }
}

/// A group's directory in one hierarchy, with its files by name; see [`Cgroup::raw`].
#[derive(Debug, Clone, Copy)]
pub struct Raw<'a> {
    dir: &'a Dir,
    version: Version,
}

impl Raw<'_> {
    /// Which version's files these are.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// Where it was when it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Whether there is such a file.
    ///
    /// # Errors
    /// [`Error::Invalid`] when `file` is no plain name.
    pub fn has(&self, file: &str) -> Result<bool> {
        plain(file).map(|()| self.dir.has(file))
    }

    /// Reads a file whole.
    ///
    /// # Errors
    /// [`Error::Invalid`] when `file` is no plain name; [`Error::File`].
    pub fn read(&self, file: &str) -> Result<String> {
        plain(file)?;
        self.dir.read(file)
    }

    /// Writes a value in one write, and does not read it back.
    ///
    /// # Errors
    /// [`Error::Invalid`] when `file` is no plain name; [`Error::File`].
    pub fn write(&self, file: &str, value: &str) -> Result<()> {
        plain(file)?;
        self.dir.write(file, value)
    }

    /// Opens a file for reading and, when `write`, for writing too.
    ///
    /// # Errors
    /// [`Error::Invalid`] when `file` is no plain name; [`Error::File`].
    pub fn open(&self, file: &str, write: bool) -> Result<OwnedFd> {
        plain(file)?;
        self.dir.open_file(file, if write { OFlags::RDWR } else { OFlags::RDONLY })
    }
}

fn plain(file: &str) -> Result<()> {
    if file.is_empty() || file == ".." || file.contains(['/', '\0']) {
        return Err(Error::invalid("file", format!("{file:?} is no plain name of a file")));
    }
    Ok(())
}
