//! Where a program's standard streams lead.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::pipe::PipeFlags;

use crate::Error;

/// What one of a program's standard streams is connected to; the names are those of [`std::process::Stdio`].
#[derive(Debug)]
pub struct Stdio(pub(crate) Kind);

#[derive(Debug)]
pub(crate) enum Kind {
    Null,
    Inherit,
    Piped,
    Fd(OwnedFd),
}

impl Stdio {
    /// `/dev/null`.
    pub fn null() -> Self {
        Self(Kind::Null)
    }

    /// The caller's own stream of that number. A program that inherits a terminal can read and write it.
    pub fn inherit() -> Self {
        Self(Kind::Inherit)
    }

    /// A pipe to the caller, whose end is in [`Child`](crate::Child).
    pub fn piped() -> Self {
        Self(Kind::Piped)
    }
}

impl From<OwnedFd> for Stdio {
    fn from(fd: OwnedFd) -> Self {
        Self(Kind::Fd(fd))
    }
}

impl From<File> for Stdio {
    fn from(file: File) -> Self {
        Self(Kind::Fd(file.into()))
    }
}

/// The two ends of one stream: the program's, and the caller's if it is a pipe.
#[derive(Debug)]
pub(crate) struct Ends<'a> {
    pub(crate) program: ProgramEnd<'a>,
    pub(crate) caller: Option<OwnedFd>,
}

#[derive(Debug)]
pub(crate) enum ProgramEnd<'a> {
    Borrowed(BorrowedFd<'a>),
    Owned(OwnedFd),
}

impl AsFd for ProgramEnd<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Borrowed(fd) => fd.as_fd(),
            Self::Owned(fd) => fd.as_fd(),
        }
    }
}

/// A pipe, read end first.
pub(crate) fn pipe() -> Result<(OwnedFd, OwnedFd), Error> {
    rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|error| Error::setup("make a pipe", error))
}

impl Kind {
    /// Opens stream `number` (0, 1 or 2).
    pub(crate) fn open<'a>(&'a self, number: i32, null: BorrowedFd<'a>) -> Result<Ends<'a>, Error> {
        Ok(match self {
            Self::Null => Ends { program: ProgramEnd::Borrowed(null), caller: None },
            Self::Fd(fd) => Ends { program: ProgramEnd::Borrowed(fd.as_fd()), caller: None },
            Self::Inherit => Ends { program: inherited(number, null)?, caller: None },
            Self::Piped => {
                let (read, write) = pipe()?;
                let (program, caller) = if number == 0 { (read, write) } else { (write, read) };
                Ends { program: ProgramEnd::Owned(program), caller: Some(caller) }
            }
        })
    }
}

/// A copy of the caller's own stream; `/dev/null` where it has closed it.
fn inherited(number: i32, null: BorrowedFd<'_>) -> Result<ProgramEnd<'_>, Error> {
    let copied = match number {
        0 => io::stdin().as_fd().try_clone_to_owned(),
        1 => io::stdout().as_fd().try_clone_to_owned(),
        _ => io::stderr().as_fd().try_clone_to_owned(),
    };
    match copied {
        Ok(fd) => Ok(ProgramEnd::Owned(fd)),
        Err(error) if error.raw_os_error() == Some(libc::EBADF) => Ok(ProgramEnd::Borrowed(null)),
        Err(error) => Err(Error::setup("inherit a standard stream", error)),
    }
}
