//! Resource limits of each program: the plan's, and those that limits.conf gives a user.

use std::path::Path;
use std::sync::Arc;

use rlimit::limits_conf::{Flavor, Login, Resolver};
use rlimit::{Limit, Limits, Resource};
use rustix::thread::CapabilitySet;

use crate::init::protocol::Rlimit;
use crate::plan::Plan;
use crate::resources::with_entries;
use crate::step::Raise;
use crate::{Enforcement, Error, Feature, Mode};

const FIX: &str = "raise the caller's hard limit, or give it CAP_SYS_RESOURCE";

/// The limits of a sandbox's programs.
#[derive(Debug)]
pub(crate) struct ProcessLimits {
    /// Those that the builder names, and the defaults.
    fixed: Vec<Rlimit>,
    conf: Option<Conf>,
    /// Hard limits that must be raised while host privilege is still there.
    pub(crate) raises: Vec<Raise>,
}

/// limits.conf for one user. It is looked at again for each program, as a login looks at it.
#[derive(Debug)]
struct Conf {
    resolver: Resolver,
    user: String,
    /// The caller's own hard limits bound what can be given.
    may_raise: bool,
}

impl ProcessLimits {
    pub(crate) fn new(plan: &mut Plan) -> Result<Self, Error> {
        let may_raise =
            rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_RESOURCE));
        let mut this = Self { fixed: Vec::new(), conf: None, raises: Vec::new() };
        let mut entries = Vec::new();
        for (&resource, &limits) in &plan.rlimits {
            let mode = plan.mode(Feature::Rlimit(resource));
            let entry = Enforcement::wanted(Feature::Rlimit(resource), mode, limits.soft.value());
            if let Some(entry) = this.add(resource, limits, entry, may_raise)? {
                entries.push(entry);
            }
        }
        entries.into_iter().for_each(|entry| plan.set(entry));
        if let Some(user) = plan.limits_conf.clone() {
            let resolver = Resolver::new(Flavor::detect(Path::new("/"))?).privileged(may_raise);
            this.conf = Some(Conf { resolver, user, may_raise });
            if may_raise {
                // What the files will say at a later start is not known yet: init may give anything.
                this.raises = Resource::ALL.iter().map(|resource| raise_to_the_top(*resource)).collect();
            }
            let report = plan.features.as_slice().into();
            let (_, report) = this.current(plan, &report)?;
            plan.features = report.to_vec();
        }
        Ok(this)
    }

    /// Adds one fixed limit; its entry, unless it is required and cannot be.
    fn add(
        &mut self,
        resource: Resource,
        limits: Limits,
        mut entry: Enforcement,
        may_raise: bool,
    ) -> Result<Option<Enforcement>, Error> {
        let own = rlimit::get(resource).hard.to_raw();
        let (mut soft, mut hard) = (limits.soft.to_raw(), limits.hard.to_raw());
        if hard > own && may_raise {
            self.raises.push(Raise { resource: resource.number(), hard });
        } else if hard > own {
            entry = entry.not(format!("the caller's own hard limit is {}", Limit::from_raw(own)), FIX);
            if entry.mode == Mode::Require {
                entry.check()?;
                return Ok(None);
            }
            (soft, hard) = (soft.min(own), own);
        }
        self.fixed.push(Rlimit { resource: resource.number(), reserved: 0, soft, hard });
        Ok(Some(entry.by(soft, "setrlimit(2), inherited")))
    }

    /// The limits for a program that starts now, and the report with them in it.
    pub(crate) fn current(
        &self,
        plan: &Plan,
        report: &Arc<[Enforcement]>,
    ) -> Result<(Vec<Rlimit>, Arc<[Enforcement]>), Error> {
        let Some(conf) = &self.conf else { return Ok((self.fixed.clone(), Arc::clone(report))) };
        let resolved = conf.resolver.resolve_name(&conf.user)?;
        if let Login::Denied(why) = resolved.login() {
            let why = format!("limits.conf denies {} a session: {why}", conf.user);
            return Err(Error::unsupported("limits_conf", why, "allow the user a session, or name limits yourself"));
        }
        let mut limits = self.fixed.clone();
        let mut entries = Vec::new();
        for item in &resolved.items {
            let decided = item.soft.line().is_some() || item.hard.line().is_some();
            // What the builder names stands above limits.conf; a default of ours does not.
            let named = plan.mode(Feature::Rlimit(item.resource)) == Mode::Require && !conf_entry(plan, item.resource);
            if named || !decided {
                continue;
            }
            let number = item.resource.number();
            let (soft, hard) = (item.limits.soft.to_raw(), item.limits.hard.to_raw());
            let own = rlimit::get(item.resource).hard.to_raw();
            let entry = Enforcement::wanted(Feature::Rlimit(item.resource), Mode::Require, item.limits.soft.value());
            if hard > own && !conf.may_raise {
                entry.not(format!("the caller's own hard limit is {}", Limit::from_raw(own)), FIX).check()?;
                continue;
            }
            limits.retain(|limit| limit.resource != number);
            limits.push(Rlimit { resource: number, reserved: 0, soft, hard });
            entries.push(entry.by(soft, format!("limits.conf: {}", item.soft)));
        }
        if conf.may_raise {
            // Init may give anything then: what nobody names is the caller's own, not init's.
            for resource in Resource::ALL {
                let number = resource.number();
                if !limits.iter().any(|limit| limit.resource == number) {
                    let own = rlimit::get(resource);
                    limits.push(Rlimit {
                        resource: number,
                        reserved: 0,
                        soft: own.soft.to_raw(),
                        hard: own.hard.to_raw(),
                    });
                }
            }
        }
        Ok((limits, with_entries(report, entries.into_iter())))
    }
}

/// Whether the plan's entry is itself one of limits.conf.
fn conf_entry(plan: &Plan, resource: Resource) -> bool {
    let by = plan.feature(Feature::Rlimit(resource)).and_then(|entry| entry.by.as_deref());
    by.is_some_and(|by| by.starts_with("limits.conf"))
}

fn raise_to_the_top(resource: Resource) -> Raise {
    // The kernel takes no more open files than fs.nr_open.
    let nr_open = || std::fs::read_to_string("/proc/sys/fs/nr_open").ok()?.trim().parse().ok();
    let hard = match resource {
        Resource::Nofile => nr_open().unwrap_or(1 << 20),
        _ => Limit::Unlimited.to_raw(),
    };
    Raise { resource: resource.number(), hard }
}
