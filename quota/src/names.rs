use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::Error;

/// The administrator's tables of projects: `/etc/projid` gives ids names, `/etc/projects` gives them directories.
///
/// Read as xfs_quota(8) reads them: a line that begins with `#` is a comment, one without a colon is ignored. So is a
/// line whose id is not a number in range, which that tool would take as some other id: see [`ignored`](Self::ignored).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    names: Vec<(String, u32)>,
    directories: Vec<(u32, PathBuf)>,
    ignored: Vec<Ignored>,
}

/// A line that does not count.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ignored {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: usize,
    /// Its text.
    pub text: String,
}

impl Names {
    /// Reads `/etc/projid` and `/etc/projects`; a missing file is an empty one.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn system() -> Result<Self, Error> {
        Self::read("/etc/projid".as_ref(), "/etc/projects".as_ref())
    }

    /// The same from other files.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn read(projid: &Path, projects: &Path) -> Result<Self, Error> {
        let text = |path: &Path| match fs::read(path) {
            Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            Err(error) => Err(Error::io("read", path)(error)),
        };
        let mut result = Self::default();
        result.names = result.parse(projid, &text(projid)?, |name, id| Some((name.to_owned(), number(id)?)));
        result.directories =
            result.parse(projects, &text(projects)?, |id, path| Some((number(id)?, PathBuf::from(path))));
        Ok(result)
    }

    fn parse<T>(&mut self, file: &Path, text: &str, entry: impl Fn(&str, &str) -> Option<T>) -> Vec<T> {
        let mut entries = Vec::new();
        for (index, line) in text.lines().enumerate() {
            match line.split_once(':') {
                Some((left, right)) if !line.starts_with('#') => match entry(left, right) {
                    Some(entry) => entries.push(entry),
                    None => {
                        self.ignored.push(Ignored { file: file.to_owned(), line: index + 1, text: line.to_owned() });
                    }
                },
                _ => {}
            }
        }
        entries
    }

    /// The first name of a project.
    #[must_use]
    pub fn name(&self, id: u32) -> Option<&str> {
        self.names.iter().find(|(_, other)| *other == id).map(|(name, _)| name.as_str())
    }

    /// The id of the first project with this name.
    #[must_use]
    pub fn id(&self, name: &str) -> Option<u32> {
        self.names.iter().find(|(other, _)| other == name).map(|(_, id)| *id)
    }

    /// The directories of a project, in the order of the file.
    pub fn directories(&self, id: u32) -> impl Iterator<Item = &Path> {
        self.directories.iter().filter(move |(other, _)| *other == id).map(|(_, path)| path.as_path())
    }

    /// Every id that either file mentions. An [`Allocator`](crate::Allocator) keeps away from them.
    pub fn ids(&self) -> impl Iterator<Item = u32> {
        self.names.iter().map(|(_, id)| *id).chain(self.directories.iter().map(|(id, _)| *id))
    }

    /// Lines with a colon whose id is not a number from 0 to 4294967295.
    #[must_use]
    pub fn ignored(&self) -> &[Ignored] {
        &self.ignored
    }
}

fn number(text: &str) -> Option<u32> {
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_as_xfs_quota_reads_them() {
        let names = Names::read("testdata/projid".as_ref(), "testdata/projects".as_ref()).unwrap();
        assert_eq!(names.name(42), Some("web"));
        assert_eq!(names.id("logs"), Some(43));
        assert_eq!(names.id("web-again"), Some(42));
        assert_eq!(names.id("#old"), None);
        assert_eq!(names.directories(42).collect::<Vec<_>>(), [Path::new("/srv/web"), Path::new("/srv/a:b")]);
        assert_eq!(names.ids().collect::<Vec<_>>(), [42, 43, 42, 42, 42, 4_294_967_294]);
        let ignored: Vec<_> = names.ignored().iter().map(|i| (i.line, i.text.as_str())).collect();
        assert_eq!(ignored, [(5, "word:x"), (6, "huge:4294967296"), (4, "-1:/srv")]);
    }

    #[test]
    fn missing_files_are_empty() {
        assert_eq!(Names::read("/nowhere/a".as_ref(), "/nowhere/b".as_ref()).unwrap(), Names::default());
    }
}
