//! Counters of what has happened in a group.

use rustix::io::Errno;

use crate::group::Cgroup;
use crate::hierarchy::{Controller, Version};
use crate::{Result, stat};

/// What has happened in a group so far. `None`: this kernel or version does not count it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Events {
    /// Reclaimed from in spite of `memory_low`. v2.
    pub memory_low: Option<u64>,
    /// Slowed down at `memory_high`. v2.
    pub memory_high: Option<u64>,
    /// Reached `memory_max`. On v1 the failed charges.
    pub memory_max: Option<u64>,
    /// Ran out of memory at the limit of this group or one below: counted where the *limit* is, also when nobody was
    /// killed. Never a count of kills. v2.
    pub oom: Option<u64>,
    /// Processes killed for lack of memory: counted where the *victim* is, and on v2 in all groups above.
    pub oom_kill: Option<u64>,
    /// How often the group was killed as a whole. v2, Linux 5.17.
    pub oom_group_kill: Option<u64>,
    /// Refused forks and clones; see [`Usage::pids_max_events`](crate::Usage::pids_max_events).
    pub pids_max: Option<u64>,
    /// Whether a living process is in the group or below. v2 part.
    pub populated: Option<bool>,
    /// Whether the group is frozen, by itself or from above. v2 part, or the v1 freezer.
    pub frozen: Option<bool>,
}

impl Cgroup {
    /// Reads the counters, with those of the groups below where the kernel adds them up.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) when one that exists cannot be read.
    pub fn events(&self) -> Result<Events> {
        let mut events = Events::default();
        if let Some(part) = self.part(Controller::Memory) {
            match part.version {
                Version::V2 => {
                    let text = part.dir.read_optional("memory.events")?.unwrap_or_default();
                    for (key, value) in stat::flat(text.as_bytes()) {
                        let field = match key {
                            b"low" => &mut events.memory_low,
                            b"high" => &mut events.memory_high,
                            b"max" => &mut events.memory_max,
                            b"oom" => &mut events.oom,
                            b"oom_kill" => &mut events.oom_kill,
                            b"oom_group_kill" => &mut events.oom_group_kill,
                            _ => continue,
                        };
                        *field = stat::number(value);
                    }
                }
                Version::V1 => {
                    let text = part.dir.read_optional("memory.oom_control")?.unwrap_or_default();
                    events.oom_kill = stat::value(text.as_bytes(), b"oom_kill");
                    events.memory_max =
                        part.dir.read_optional("memory.failcnt")?.and_then(|t| stat::number(t.as_bytes()));
                }
            }
        }
        if let Some(part) = self.part(Controller::Pids) {
            let text = part.dir.read_optional("pids.events")?.unwrap_or_default();
            events.pids_max = stat::value(text.as_bytes(), b"max");
        }
        if let Some(part) = self.v2() {
            let text = match part.dir.read("cgroup.events") {
                // The root of the tree has none.
                Err(error) if error.is(Errno::NOENT) => String::new(),
                other => other?,
            };
            events.populated = stat::value(text.as_bytes(), b"populated").map(|n| n == 1);
            events.frozen = stat::value(text.as_bytes(), b"frozen").map(|n| n == 1);
        }
        if events.frozen.is_none() {
            if let Some(part) = self.part(Controller::Freezer).filter(|part| part.version == Version::V1) {
                events.frozen = part.dir.read_optional("freezer.state")?.map(|state| state.trim() == "FROZEN");
            }
        }
        Ok(events)
    }
}
