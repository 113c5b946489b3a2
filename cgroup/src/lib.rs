//! cgroup v1, v2 and hybrid behind one set of words.

mod convert;
mod deadline;
mod detail;
mod devices;
mod dir;
mod error;
mod events;
mod group;
mod hierarchy;
mod kill;
mod knob;
mod limit;
mod limits;
mod name;
mod parent;
mod pressure;
mod stat;
mod sys;
mod threads;
mod usage;

pub use detail::{Descendants, HugetlbUsage, MemoryStat, PeakMeter};
pub use devices::{DeviceKind, DeviceRule, Devices};
pub use error::{DELEGATION_FIXES, Error, Result};
pub use events::{Events, Watch};
pub use group::Cgroup;
pub use hierarchy::{Controller, Controllers, Hierarchy, Layout, Unreachable, Version};
pub use kill::{Killed, Reason, Stuck};
pub use knob::Knob;
pub use limit::{CpuList, CpuMax, Device, Limit, ParseCpuListError, ParseDeviceError, ParseLimitError};
pub use limits::{Applied, HugetlbMax, IoMax, Limits, Setting, SwapControl, Value, host_has_swap};
pub use parent::{Needs, Parent};
pub use pressure::{Pressure, PressureTrigger, Resource, Share, Stall};
pub use threads::Raw;
pub use usage::{CpuUsage, IoUsage, Meter, Throttled, Usage};
