//! Which line wins: the module's rules, step by step, keeping the losers and the reasons.

use std::path::{Path, PathBuf};

use super::files::Config;
use super::line::Item as Name;
use super::line::{Domain, Kind, Range, Statement, signed, unsigned};
use super::resolved::{
    Count, Decided, DecidedBy, Denial, Half, Ignored, IgnoredWhy, Item, Line, MaxLogins, Overridden, OverriddenWhy,
    Refusal, Resolved,
};
use super::{Flavor, Level, User};
use crate::{Limit, Limits, Resource, Table};

/// What the answer depends on beside the files and the user.
#[derive(Debug)]
pub(super) struct Surroundings {
    pub(super) flavor: Flavor,
    pub(super) inherited: Table,
    /// The limits of process 1, where they count and could be read.
    pub(super) init: Option<Table>,
    pub(super) nr_open: Limit,
    pub(super) privileged: bool,
}

/// One half of one resource, while lines are being read.
#[derive(Clone, Debug)]
struct Slot {
    limit: Limit,
    level: Level,
    by: DecidedBy,
}

#[derive(Debug)]
struct Row {
    resource: Resource,
    inherited: Limits,
    soft: Slot,
    hard: Slot,
    overridden: Vec<Overridden>,
}

/// The module's state after some lines.
#[derive(Debug)]
struct State<'a> {
    user: &'a User,
    around: &'a Surroundings,
    rows: [Row; 16],
    logins: Option<(Decided<i32>, Level)>,
    logins_lost: Vec<Overridden>,
    count_host: bool,
    login_group: Option<String>,
    priority: Option<Decided<i32>>,
    no_new_privs: Option<Decided<bool>>,
    chroot: Option<Decided<PathBuf>>,
    ignored: Vec<Ignored>,
}

pub(super) fn choose(config: &Config, user: &User, around: &Surroundings, is_dir: impl Fn(&Path) -> bool) -> Resolved {
    let mut state = State {
        user,
        around,
        rows: Resource::ALL.map(|resource| start(resource, around)),
        logins: None,
        logins_lost: Vec::new(),
        count_host: false,
        login_group: None,
        priority: None,
        no_new_privs: None,
        chroot: None,
        ignored: Vec::new(),
    };
    let mut no_limits = None;
    for (line, statement) in config.files.iter().flat_map(|file| &file.lines) {
        if no_limits.is_some() {
            state.ignore(line, IgnoredWhy::NotReached);
        } else if state.read(line, statement) {
            no_limits = Some(line.clone());
        }
    }
    state.finish(config.missing.clone(), no_limits, is_dir)
}

/// What holds before the first line.
fn start(resource: Resource, around: &Surroundings) -> Row {
    let inherited = around.inherited.get(resource).unwrap_or(Limits::UNLIMITED);
    let slots = |limits: Limits, level: Level, by: DecidedBy| {
        [limits.soft, limits.hard].map(|limit| Slot { limit, level, by: by.clone() })
    };
    let debian = around.flavor.starts_from_init();
    let init = around.init.and_then(|init| init.get(resource));
    let [soft, hard] = match (init, built_in(resource)) {
        (Some(mut limits), _) => {
            if debian && resource == Resource::Nofile {
                limits.soft = limits.soft.min(Limit::Value(1024));
            }
            slots(limits, Level::Init, DecidedBy::Init)
        }
        (None, Some(limits)) if debian => slots(limits, Level::Default, DecidedBy::BuiltIn),
        _ => slots(inherited, Level::None, DecidedBy::Inherited),
    };
    Row { resource, inherited, soft, hard, overridden: Vec::new() }
}

/// Debian's defaults for a host whose process 1 cannot be looked at.
fn built_in(resource: Resource) -> Option<Limits> {
    let both = |value| Some(Limits::both(Limit::Value(value)));
    let soft = |value| Some(Limits { soft: Limit::Value(value), hard: Limit::Unlimited });
    match resource {
        Resource::Cpu
        | Resource::Fsize
        | Resource::Data
        | Resource::Rss
        | Resource::Nproc
        | Resource::As
        | Resource::Locks => Some(Limits::UNLIMITED),
        Resource::Memlock => both(64 << 10),
        Resource::Sigpending => both(16382),
        Resource::Msgqueue => both(819_200),
        Resource::Nofile => both(1024),
        Resource::Core => soft(0),
        Resource::Stack => soft(8 << 20),
        Resource::Nice | Resource::Rtprio | Resource::Rttime => None,
    }
}

/// For whom a domain stands.
enum Match {
    At(Level),
    Not(IgnoredWhy),
}

impl State<'_> {
    /// Takes one line in; `true` when it switches all limits off.
    fn read(&mut self, line: &Line, statement: &Statement) -> bool {
        match statement {
            Statement::Broken(why) => self.ignore(line, *why),
            Statement::NoLimits { domain } => match self.switched_off(domain) {
                Ok(()) => return true,
                Err(why) => self.ignore(line, why),
            },
            Statement::Entry { domain, kind, item, value } => match self.level(domain) {
                Match::At(level) => {
                    if let Err(why) = self.entry(line, level, *kind, *item, value) {
                        self.ignore(line, why);
                    }
                }
                Match::Not(why) => self.ignore(line, why),
            },
        }
        false
    }

    fn ignore(&mut self, line: &Line, why: IgnoredWhy) {
        self.ignored.push(Ignored { line: line.clone(), why });
    }

    /// The level at which the domain is about the user.
    fn level(&mut self, domain: &Domain) -> Match {
        let user = self.user;
        let at = |yes: bool, level: Level| if yes { Match::At(level) } else { Match::Not(IgnoredWhy::OtherUsers) };
        if *domain.text == *user.name.as_bytes() {
            return Match::At(Level::User);
        }
        let exempt = self.exempt();
        match (domain.text.first(), domain.range) {
            (Some(b'@'), range) if !exempt => match range {
                Range::Name => at(user.is_in(domain.text.get(1..).unwrap_or_default()), Level::Group),
                Range::One(gid) => at(user.is_in_gid(gid), Level::Group),
                Range::From(least) => at(user.gid >= least, Level::Group),
                Range::Between(least, most) => at((least..=most).contains(&user.gid), Level::Group),
            },
            (Some(b'%'), range) if !exempt => {
                let group = match range {
                    Range::Name if *domain.text == *b"%" => return Match::At(Level::All),
                    Range::Name => user.groups.iter().find(|group| Some(group.name.as_bytes()) == domain.text.get(1..)),
                    Range::One(gid) => user.groups.iter().find(|group| group.gid == gid),
                    Range::From(_) | Range::Between(..) => return Match::Not(IgnoredWhy::PercentRange),
                };
                // Kept even when the line turns out to be none: the last group named is the one that is counted.
                self.login_group = group.map(|group| group.name.clone()).or(self.login_group.take());
                at(group.is_some(), Level::AllGroup)
            }
            (first, Range::Name) => {
                let star = *domain.text == *b"*";
                match (exempt, star, first) {
                    (true, true, _) | (true, _, Some(b'@' | b'%')) => Match::Not(IgnoredWhy::RootExempt),
                    (false, true, _) => Match::At(Level::Default),
                    _ => Match::Not(IgnoredWhy::OtherUsers),
                }
            }
            // A range of uids; where uid 0 is exempt from groups, one of gids is taken for one of uids.
            (_, range) => at(in_range(user.uid, range), Level::User),
        }
    }

    /// Whether uid 0 is exempt from all but its name and ranges.
    fn exempt(&self) -> bool {
        self.around.flavor.exempts_root() && self.user.uid == 0
    }

    /// Whether `domain -` is about the user. Uid 0 is not exempt here.
    fn switched_off(&self, domain: &Domain) -> Result<(), IgnoredWhy> {
        let user = self.user;
        if *domain.text == *user.name.as_bytes() {
            return Ok(());
        }
        let yes = match (domain.text.first(), domain.range) {
            (Some(b'@'), Range::Name) => user.is_in(domain.text.get(1..).unwrap_or_default()),
            (Some(b'@'), Range::One(gid)) => user.is_in_gid(gid),
            (Some(b'@'), range) => in_range(user.gid, range),
            (Some(b'*' | b'%'), Range::Name) => return Err(IgnoredWhy::NoLimitsNeedsName),
            (_, Range::Name) => false,
            // `%:1000 -` too: here the numbers after % are uids.
            (_, range) => in_range(user.uid, range),
        };
        yes.then_some(()).ok_or(IgnoredWhy::OtherUsers)
    }

    /// A line of four fields that is about the user.
    fn entry(&mut self, line: &Line, level: Level, kind: Kind, item: Name, value: &[u8]) -> Result<(), IgnoredWhy> {
        match item {
            Name::MaxLogins => self.count_host = false,
            Name::MaxSysLogins => self.count_host = true,
            Name::Unknown => return Err(IgnoredWhy::UnknownItem),
            _ => {}
        }
        let minds_type = !matches!(item, Name::MaxLogins | Name::MaxSysLogins | Name::NoNewPrivs);
        if kind == Kind::Other && minds_type {
            return Err(IgnoredWhy::UnknownType);
        }
        let percent = matches!(level, Level::All | Level::AllGroup) && item != Name::MaxLogins;
        let allowed = || if percent { Err(IgnoredWhy::OnlyMaxLogins) } else { Ok(()) };
        let infinite = matches!(value, b"-1" | b"-" | b"unlimited" | b"infinity");
        match item {
            Name::Unknown => {}
            Name::Resource(Resource::Nice) => {
                let nice = signed(value).ok_or(IgnoredWhy::BadValue)?;
                allowed()?;
                let limit = u64::try_from(20 - nice.clamp(-20, 19)).unwrap_or_default();
                self.limit(line, level, kind, Resource::Nice, Limit::Value(limit));
            }
            Name::Resource(resource) => {
                let number = if infinite { u64::MAX } else { unsigned(value).ok_or(IgnoredWhy::BadValue)?.value };
                allowed()?;
                self.limit(line, level, kind, resource, in_kernel_unit(resource, number, self.around.nr_open));
            }
            Name::MaxLogins | Name::MaxSysLogins => {
                let most = if infinite { -1 } else { signed(value).ok_or(IgnoredWhy::BadValue)? };
                allowed()?;
                self.max_logins(line, level, most);
            }
            Name::Priority => {
                let priority = signed(value).ok_or(IgnoredWhy::BadValue)?;
                allowed()?;
                // As the kernel does.
                last(&mut self.priority, line, priority.clamp(-20, 19));
            }
            Name::NoNewPrivs => {
                allowed()?;
                // A value that is neither 0 nor 1 counts as 0.
                last(&mut self.no_new_privs, line, value == b"1");
            }
            Name::Chroot => {
                allowed()?;
                let path: PathBuf = std::ffi::OsString::from(String::from_utf8_lossy(value).into_owned()).into();
                last(&mut self.chroot, line, path);
            }
        }
        Ok(())
    }

    fn limit(&mut self, line: &Line, level: Level, kind: Kind, resource: Resource, limit: Limit) {
        let Some(row) = self.rows.iter_mut().find(|row| row.resource == resource) else { return };
        let new = Slot { limit, level, by: DecidedBy::Line(line.clone()) };
        if matches!(kind, Kind::Soft | Kind::Both) {
            if let Some(stronger) = replace(&mut row.soft, new.clone(), Half::Soft, &mut row.overridden) {
                // Here the module returns: the hard half of a `-` line is not looked at.
                if kind == Kind::Both {
                    let why = if row.hard.level < level {
                        lost_to(&row.hard, level)
                    } else {
                        OverriddenWhy::DashStops { by: stronger }
                    };
                    row.overridden.push(Overridden { line: line.clone(), half: Half::Hard, why });
                }
                return;
            }
        }
        if matches!(kind, Kind::Hard | Kind::Both) {
            replace(&mut row.hard, new, Half::Hard, &mut row.overridden);
        }
    }

    fn max_logins(&mut self, line: &Line, level: Level, most: i32) {
        match &mut self.logins {
            Some((old, stronger)) if *stronger < level => {
                let why = OverriddenWhy::Stronger { by: old.by.clone(), level: *stronger, than: level };
                self.logins_lost.push(Overridden { line: line.clone(), half: Half::Both, why });
            }
            slot => {
                if let Some((old, than)) = slot.take() {
                    let by = line.clone();
                    let why = if than == level {
                        OverriddenWhy::Later { by, level }
                    } else {
                        OverriddenWhy::Stronger { by, level, than }
                    };
                    self.logins_lost.push(Overridden { line: old.by, half: Half::Both, why });
                }
                *slot = Some((Decided { value: most, by: line.clone(), overridden: Vec::new() }, level));
            }
        }
    }

    /// After the last line: lower soft to hard, ask the kernel, answer the login.
    fn finish(self, missing: Option<PathBuf>, no_limits: Option<Line>, is_dir: impl Fn(&Path) -> bool) -> Resolved {
        // Nothing is set when a line says so, or a file is missing.
        let nothing = match (&no_limits, &missing) {
            (Some(by), _) => Some(OverriddenWhy::NoLimits { by: by.clone() }),
            (None, Some(_)) => Some(OverriddenWhy::Failed),
            (None, None) => None,
        };
        let around = self.around;
        let items = self.rows.map(|row| match &nothing {
            Some(why) => row.untouched(why),
            None => row.set(around),
        });
        let mut denial = missing.filter(|_| no_limits.is_none()).map(Denial::MissingFile);
        let mut resolved = Resolved {
            items,
            max_logins: None,
            priority: None,
            no_new_privs: None,
            chroot: None,
            no_limits,
            ignored: self.ignored,
            denial: None,
            exempt_from_logins: self.user.uid == 0,
        };
        if nothing.is_none() {
            let count = |level: Level| match (self.count_host, level) {
                (true, _) | (false, Level::All) => Count::Host,
                (false, Level::AllGroup) => self.login_group.clone().map_or(Count::Host, Count::Group),
                (false, _) => Count::User,
            };
            resolved.max_logins = self.logins.map(|(logins, level)| {
                let value = MaxLogins { most: u32::try_from(logins.value).ok(), counted: count(level) };
                Decided { value, by: logins.by, overridden: self.logins_lost }
            });
            resolved.priority = self.priority;
            resolved.no_new_privs = self.no_new_privs;
            resolved.chroot = self.chroot;
            denial = denial.or_else(|| refused(&resolved.items, around)).or_else(|| {
                let chroot = resolved.chroot.as_ref().filter(|chroot| !is_dir(&chroot.value))?;
                Some(Denial::Chroot(chroot.value.clone()))
            });
        }
        resolved.denial = denial;
        resolved
    }
}

impl Row {
    /// The module sets nothing: all lines lost.
    fn untouched(mut self, why: &OverriddenWhy) -> Item {
        for (slot, half) in [(&self.soft, Half::Soft), (&self.hard, Half::Hard)] {
            if let DecidedBy::Line(line) = &slot.by {
                self.overridden.push(Overridden { line: line.clone(), half, why: why.clone() });
            }
        }
        Item {
            resource: self.resource,
            limits: self.inherited,
            soft: DecidedBy::Inherited,
            hard: DecidedBy::Inherited,
            asked: None,
            refused: None,
            overridden: tidy(self.overridden),
        }
    }

    /// The module asks the kernel for what the lines say.
    fn set(mut self, around: &Surroundings) -> Item {
        if self.soft.level == Level::None && self.hard.level == Level::None {
            return self.untouched(&OverriddenWhy::Failed);
        }
        if self.soft.limit > self.hard.limit {
            if let DecidedBy::Line(line) = &self.soft.by {
                let why = OverriddenWhy::AboveHard { hard: self.hard.limit, by: self.hard.by.clone() };
                self.overridden.push(Overridden { line: line.clone(), half: Half::Soft, why });
            }
            self.soft = self.hard.clone();
        }
        let asked = Limits { soft: self.soft.limit, hard: self.hard.limit };
        let refused = if self.resource == Resource::Nofile && asked.hard > around.nr_open {
            Some(Refusal::AboveNrOpen(around.nr_open))
        } else if asked.hard > self.inherited.hard && !around.privileged {
            Some(Refusal::RaiseHard(self.inherited.hard))
        } else {
            None
        };
        let item = match refused {
            Some(refusal) => self.untouched(&OverriddenWhy::Refused(refusal)),
            None => Item {
                resource: self.resource,
                limits: asked,
                soft: self.soft.by,
                hard: self.hard.by,
                asked: None,
                refused: None,
                overridden: tidy(self.overridden),
            },
        };
        Item { asked: Some(asked), refused, ..item }
    }
}

/// Why a session is denied by what the kernel makes of the limits.
fn refused(items: &[Item; 16], around: &Surroundings) -> Option<Denial> {
    let cpu = items.iter().find(|item| item.resource == Resource::Cpu)?;
    let none_left = |limits: Limits| limits.soft == Limit::Value(0) || limits.hard == Limit::Value(0);
    if cpu.asked.is_some() && cpu.refused.is_none() && none_left(cpu.limits) {
        return Some(Denial::NoCpu);
    }
    let item = items.iter().find(|item| item.refused.is_some() && !around.flavor.tolerates_refusal())?;
    Some(Denial::Refused { resource: item.resource, refusal: item.refused? })
}

/// Puts the new value in unless the old one is stronger; the loser is noted. The stronger line, when there is one.
fn replace(slot: &mut Slot, new: Slot, half: Half, overridden: &mut Vec<Overridden>) -> Option<Line> {
    let (DecidedBy::Line(line), level) = (&new.by, new.level) else { return None };
    if slot.level < level {
        overridden.push(Overridden { line: line.clone(), half, why: lost_to(slot, level) });
        return slot.by.line().cloned();
    }
    if let DecidedBy::Line(old) = &slot.by {
        let by = line.clone();
        let why = if slot.level == level {
            OverriddenWhy::Later { by, level }
        } else {
            OverriddenWhy::Stronger { by, level, than: slot.level }
        };
        overridden.push(Overridden { line: old.clone(), half, why });
    }
    *slot = new;
    None
}

/// Only lines are stronger than a line.
fn lost_to(slot: &Slot, than: Level) -> OverriddenWhy {
    match &slot.by {
        DecidedBy::Line(by) => OverriddenWhy::Stronger { by: by.clone(), level: slot.level, than },
        _ => OverriddenWhy::Failed,
    }
}

/// The last line wins.
fn last<T>(slot: &mut Option<Decided<T>>, line: &Line, value: T) {
    let mut overridden = Vec::new();
    if let Some(old) = slot.take() {
        overridden = old.overridden;
        let why = OverriddenWhy::Last { by: line.clone() };
        overridden.push(Overridden { line: old.by, half: Half::Both, why });
    }
    *slot = Some(Decided { value, by: line.clone(), overridden });
}

/// Two halves that a line lost for one reason, noted one after the other, are one loss.
fn tidy(overridden: Vec<Overridden>) -> Vec<Overridden> {
    let mut tidy: Vec<Overridden> = Vec::new();
    for lost in overridden {
        match tidy.last_mut() {
            Some(seen) if seen.line == lost.line && seen.why == lost.why => seen.half = Half::Both,
            _ => tidy.push(lost),
        }
    }
    tidy
}

fn in_range(id: u32, range: Range) -> bool {
    match range {
        Range::Name => false,
        Range::One(one) => id == one,
        Range::From(least) => id >= least,
        Range::Between(least, most) => (least..=most).contains(&id),
    }
}

/// KiB and minutes to bytes and seconds; what does not fit is no limit, and `nofile` without one is `fs.nr_open`.
fn in_kernel_unit(resource: Resource, number: u64, nr_open: Limit) -> Limit {
    let scaled =
        |factor: u64| if number >= u64::MAX / factor { Limit::Unlimited } else { Limit::Value(number * factor) };
    match resource {
        Resource::Cpu => scaled(60),
        Resource::Fsize
        | Resource::Data
        | Resource::Stack
        | Resource::Core
        | Resource::Rss
        | Resource::Memlock
        | Resource::As => scaled(1024),
        Resource::Nofile if number == u64::MAX => nr_open,
        _ => Limit::from_raw(number),
    }
}
