//! The answer: what each item becomes, which line decided it, which lines lost and why.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Level;
use crate::{Limit, Limits, Resource, Table};

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Line {
    /// The file, the root before it where one was given.
    pub file: Arc<Path>,
    /// The number of the line, counted from 1.
    pub number: usize,
    /// Its text without surrounding blanks, cut after 200 characters, unprintable bytes replaced.
    pub text: Arc<str>,
}

impl Line {
    pub(super) fn new(file: Arc<Path>, number: usize, text: &[u8]) -> Self {
        let text = String::from_utf8_lossy(text.get(..800).unwrap_or(text));
        let printable = |c: char| if c.is_control() && c != '\t' { char::REPLACEMENT_CHARACTER } else { c };
        Self { file, number, text: text.trim().chars().take(200).map(printable).collect::<String>().into() }
    }
}

impl fmt::Display for Line {
    /// `file:number`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.number)
    }
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DecidedBy {
    /// A line.
    Line(Line),
    /// No line: the session keeps what it inherits.
    Inherited,
    /// No line: process 1 has it so.
    Init,
    /// No line, and process 1 could not be read: the module's own default (Debian).
    BuiltIn,
}

impl DecidedBy {
    /// The line, when it is one.
    pub fn line(&self) -> Option<&Line> {
        match self {
            Self::Line(line) => Some(line),
            Self::Inherited | Self::Init | Self::BuiltIn => None,
        }
    }
}

impl fmt::Display for DecidedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(line) => line.fmt(f),
            Self::Inherited => f.pad("inherited"),
            Self::Init => f.pad("process 1"),
            Self::BuiltIn => f.pad("built-in default"),
        }
    }
}

/// Which of the two limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Half {
    /// The soft limit.
    Soft,
    /// The hard limit.
    Hard,
    /// Both, or an item that has no two halves.
    Both,
}

impl fmt::Display for Half {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Soft => "soft",
            Self::Hard => "hard",
            Self::Both => "both",
        })
    }
}

/// A line that is about the user and the item, but does not decide.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Overridden {
    /// The line.
    pub line: Line,
    /// Which half of it lost; the other may decide.
    pub half: Half,
    /// Why.
    pub why: OverriddenWhy,
}

/// Why a line does not decide.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OverriddenWhy {
    /// A later line of the same level.
    Later {
        /// The later line.
        by: Line,
        /// The level of both.
        level: Level,
    },
    /// A line of a stronger level, before it or after.
    Stronger {
        /// The stronger line.
        by: Line,
        /// Its level.
        level: Level,
        /// The level of the line that lost.
        than: Level,
    },
    /// The soft half of a line of type `-` is decided by a stronger line, and the module does not look at the hard half
    /// of it then, although no stronger line decides that.
    DashStops {
        /// The stronger line for soft.
        by: Line,
    },
    /// The soft limit is above the hard limit and was lowered to it.
    AboveHard {
        /// The hard limit.
        hard: Limit,
        /// Where that comes from.
        by: DecidedBy,
    },
    /// The item has no levels: a later line that is about the user wins.
    Last {
        /// The next such line; it may have lost itself to one still later.
        by: Line,
    },
    /// A line `NAME -` switches all limits off for the user.
    NoLimits {
        /// That line.
        by: Line,
    },
    /// The kernel refuses the limits, and the inherited ones stay.
    Refused(Refusal),
    /// The module fails before it sets anything.
    Failed,
}

impl fmt::Display for OverriddenWhy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Later { by, level } => write!(f, "{by} is also a `{level}` line and comes later: the last line wins"),
            Self::Stronger { by, level, than } => {
                write!(f, "{by} is a `{level}` line, which beats `{than}` wherever it stands")
            }
            Self::DashStops { by } => {
                write!(f, "{by} decides soft, and a `-` line that loses soft is not asked for hard")
            }
            Self::AboveHard { hard, by } => write!(f, "soft is lowered to the hard limit {hard} ({by})"),
            Self::Last { by } => write!(f, "{by} comes later, and this item knows no levels: the last line wins"),
            Self::NoLimits { by } => write!(f, "{by} switches all limits off for this user"),
            Self::Refused(refusal) => write!(f, "the kernel refuses it: {refusal}"),
            Self::Failed => f.write_str("the module gives up on a file that it cannot open, before it sets anything"),
        }
    }
}

/// Why the kernel refuses limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// `nofile` above the sysctl `fs.nr_open`.
    AboveNrOpen(Limit),
    /// A hard limit above the inherited one, without CAP_SYS_RESOURCE.
    RaiseHard(Limit),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AboveNrOpen(most) => write!(f, "nofile may not exceed fs.nr_open, {most}"),
            Self::RaiseHard(hard) => {
                write!(f, "raising the hard limit above {hard} needs CAP_SYS_RESOURCE in the initial user namespace")
            }
        }
    }
}

/// A line that decides nothing for this user.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ignored {
    /// The line.
    pub line: Line,
    /// Why.
    pub why: IgnoredWhy,
}

/// Why a line decides nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum IgnoredWhy {
    /// It is about others. Nothing is wrong with it.
    OtherUsers,
    /// Neither four fields nor `NAME -`.
    NotFourFields,
    /// The domain has a colon, but no numbers fit it.
    BadRange,
    /// No such item in this flavor.
    UnknownItem,
    /// The type is none of `soft`, `hard`, `-`.
    UnknownType,
    /// The value is no number, or a word that this item does not take.
    BadValue,
    /// `%` and `%group` count only for `maxlogins`.
    OnlyMaxLogins,
    /// A range of gids after `%` is not supported.
    PercentRange,
    /// Debian: `*`, `@group` and `%` do not apply to uid 0.
    RootExempt,
    /// `* -` and `%group -` switch nothing off.
    NoLimitsNeedsName,
    /// It comes after a line that switches all limits off, which is the last that is read.
    NotReached,
}

impl fmt::Display for IgnoredWhy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::OtherUsers => "is about other users",
            Self::NotFourFields => "has not four fields: DOMAIN TYPE ITEM VALUE",
            Self::BadRange => "the domain is no range of ids",
            Self::UnknownItem => "there is no such item in this flavor",
            Self::UnknownType => "the type is none of soft, hard and -",
            Self::BadValue => "the value is not one that this item takes",
            Self::OnlyMaxLogins => "% counts for maxlogins alone",
            Self::PercentRange => "a range after % is not supported",
            Self::RootExempt => "on Debian *, @group and % do not apply to uid 0: name the user",
            Self::NoLimitsNeedsName => "only a user, @group or range can have its limits switched off",
            Self::NotReached => "comes after the line that switches all limits off",
        })
    }
}

/// A resource's limits after the module ran.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Item {
    /// The resource.
    pub resource: Resource,
    /// What the session gets, in the kernel's unit.
    pub limits: Limits,
    /// Where the soft limit comes from; when it was lowered to the hard limit, where that comes from.
    pub soft: DecidedBy,
    /// Where the hard limit comes from.
    pub hard: DecidedBy,
    /// The limits that the module asks the kernel for; `None` when it does not touch the resource. They differ from
    /// [`limits`](Self::limits) when the kernel refuses them.
    pub asked: Option<Limits>,
    /// Why the kernel refuses them.
    pub refused: Option<Refusal>,
    /// The lines that lost, in the order in which they did.
    pub overridden: Vec<Overridden>,
}

impl Item {
    fn decides(&self, line: &Line) -> bool {
        [&self.soft, &self.hard].into_iter().any(|by| by.line() == Some(line))
    }

    /// The name of a file of limits.d in which a line would win over the one that decides, when one of another file lost
    /// because that came later. Editing the line that lost changes nothing.
    ///
    /// `91-nproc.conf` when `90-nproc.conf` decides.
    pub fn winning_file(&self) -> Option<PathBuf> {
        let by = self.overridden.iter().rev().find_map(|lost| match &lost.why {
            OverriddenWhy::Later { by, .. } => Some(by).filter(|by| by.file != lost.line.file && self.decides(by)),
            _ => None,
        })?;
        let dir = by.file.parent()?;
        let name = by.file.file_name()?.to_str()?;
        let digits = name.bytes().take_while(u8::is_ascii_digit).count();
        let (number, rest) = name.split_at(digits);
        let next =
            number.parse::<u64>().ok().map(|n| format!("{:0digits$}", n + 1)).filter(|next| next.len() == digits);
        match next {
            Some(next) => Some(dir.join(format!("{next}{rest}"))),
            // `_` sorts after the dot.
            None => Some(dir.join(format!("{}_last.conf", name.strip_suffix(".conf")?))),
        }
    }
}

/// The value of an item without soft and hard.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Decided<T> {
    /// The value.
    pub value: T,
    /// The line.
    pub by: Line,
    /// The lines that lost.
    pub overridden: Vec<Overridden>,
}

/// How many sessions there may be at once.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MaxLogins {
    /// So many, this one included; 0 is none at all. `None` when the line lifts the limit (a value below 0).
    pub most: Option<u32>,
    /// Which are counted.
    pub counted: Count,
}

/// Which sessions `maxlogins` counts.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Count {
    /// Those of the user (a line by name, `@group` or `*`).
    User,
    /// Those of all members of the group together (`%group`).
    Group(String),
    /// All of the host (`maxsyslogins`, or `%`).
    Host,
}

/// What a login with these limits answers.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Login {
    /// The session is opened.
    Allowed,
    /// The session is refused, or killed while it is opened.
    Denied(Denial),
}

impl fmt::Display for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allowed => f.pad("allowed"),
            Self::Denied(denial) => write!(f, "denied: {denial}"),
        }
    }
}

/// Why a login is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Denial {
    /// A file is missing that this flavor insists on; nothing was set. (`PAM_SERVICE_ERR`)
    MissingFile(PathBuf),
    /// `maxlogins` or `maxsyslogins`. (`PAM_PERM_DENIED`)
    TooManyLogins {
        /// The most that may be.
        most: u32,
        /// The line.
        by: Line,
    },
    /// The kernel refused a limit; the others were set. (`PAM_PERM_DENIED`)
    Refused {
        /// The resource.
        resource: Resource,
        /// Why.
        refusal: Refusal,
    },
    /// Debian: the directory to chroot to is none. (`PAM_PERM_DENIED`)
    Chroot(PathBuf),
    /// `cpu` is 0: the program that opens the session is killed at its next tick of the clock.
    NoCpu,
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MissingFile(path) => write!(f, "{} is missing", path.display()),
            Self::TooManyLogins { most: 0, by } => write!(f, "no logins at all ({by})"),
            Self::TooManyLogins { most, by } => write!(f, "more than {most} logins ({by})"),
            Self::Refused { resource, refusal } => write!(f, "{resource} cannot be set: {refusal}"),
            Self::Chroot(path) => write!(f, "there is no directory {} to chroot to", path.display()),
            Self::NoCpu => f.write_str("no CPU time is left for opening the session (cpu 0)"),
        }
    }
}

/// What a session of a user gets, and why; from [`Resolver`](super::Resolver).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Resolved {
    /// All resources, in the order of [`Resource::ALL`].
    pub items: [Item; 16],
    /// `maxlogins` and `maxsyslogins`, which are one and the same slot. Never binds uid 0.
    pub max_logins: Option<Decided<MaxLogins>>,
    /// `priority`: the nice value of the session.
    pub priority: Option<Decided<i32>>,
    /// `nonewprivs`: whether the session gets no_new_privs.
    pub no_new_privs: Option<Decided<bool>>,
    /// `chroot` (Debian): the directory, lower-cased as by the module; entered only when nothing else denies the session.
    pub chroot: Option<Decided<PathBuf>>,
    /// The line that switches all limits off, when there is one: then nothing is set.
    pub no_limits: Option<Line>,
    /// The lines that decide nothing, in the order of the files.
    pub ignored: Vec<Ignored>,
    pub(super) denial: Option<Denial>,
    pub(super) exempt_from_logins: bool,
}

impl Resolved {
    /// One resource.
    pub fn item(&self, resource: Resource) -> &Item {
        let [first, ..] = &self.items;
        self.items.iter().find(|item| item.resource == resource).unwrap_or(first)
    }

    /// The limits of the session, as one table.
    pub fn table(&self) -> Table {
        let mut table = Table::default();
        for item in &self.items {
            table.set(item.resource, item.limits);
        }
        table
    }

    /// What a login answers when it is the first of those that `maxlogins` counts.
    pub fn login(&self) -> Login {
        self.login_with(0)
    }

    /// What a login answers when so many of those sessions exist that `maxlogins` counts.
    pub fn login_with(&self, sessions: u32) -> Login {
        if let Some(denial) = &self.denial {
            return Login::Denied(denial.clone());
        }
        let Some(logins) = self.max_logins.as_ref().filter(|_| !self.exempt_from_logins) else { return Login::Allowed };
        match logins.value.most {
            Some(most) if sessions >= most => Login::Denied(Denial::TooManyLogins { most, by: logins.by.clone() }),
            _ => Login::Allowed,
        }
    }
}
