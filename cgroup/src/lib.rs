//! Groups of processes that are limited, counted, frozen and killed together: cgroup v1, v2 and hybrid behind one set of
//! words.
//!
//! ```no_run
//! use std::time::Duration;
//! use cgroup::{Controller, CpuMax, Layout, Limit, Limits, Needs};
//!
//! let layout = Layout::detect()?;
//! // Once: where can the caller make groups with these controllers?
//! let parent = layout.parent(&Needs::new([Controller::Memory, Controller::Pids]).prefer([Controller::Cpu]))?;
//! // For each job: one directory per hierarchy.
//! let group = parent.create("worker-1")?;
//!
//! let mut limits = Limits::default();
//! limits.memory_max = Some(Limit::Value(64 << 20));
//! limits.memory_swap_max = Some(Limit::Value(0));
//! limits.pids_max = Some(Limit::Value(32));
//! limits.cpu_max = Some(CpuMax::from_millicpus(500));
//! let applied = group.set(&limits)?; // all or nothing, read back
//! for setting in &applied.settings {
//!     println!("{:?} holds by {}", setting.enforced, setting.by);
//! }
//!
//! let mut child = std::process::Command::new("/bin/true").spawn()?;
//! group.attach(child.id())?; // better: born there, by `group.unified()` and `group.join_fds()`
//! child.wait()?;
//! println!("{:?}", group.usage()?);
//! group.remove(Duration::from_secs(1))?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Terminology
//!
//! A *group* (cgroup) is a set of processes; groups form trees. A *controller* counts or limits one thing per group. A
//! *hierarchy* is one tree with its controllers. On **v1** each controller has a hierarchy of its own, and a process is in
//! one group of each. On **v2** there is one tree for all. A **hybrid** machine has its controllers on v1 and a v2 tree
//! beside them, which has few or none, and is of use all the same: processes can be born in its groups, killed by one
//! write, frozen, and their CPU time, pressure and end are known, all without controllers. A [`Cgroup`] of this crate is
//! the same name in every hierarchy that is needed; what holds where, [`Layout`] finds out.
//!
//! # What it does, and does not
//!
//! It **does**
//! - find the hierarchies from mountinfo, whatever they are called and however they are mounted, and say which cannot be
//!   reached and why ([`Layout`]);
//! - find the place for new groups: the nearest above the caller where that works without moving anybody ([`Parent`]);
//! - check limits before writing, write them as one change that is taken back when a part fails, and read back what the
//!   kernel has kept ([`Cgroup::set`]);
//! - read counters at one `pread` per file ([`Meter`]), and wait for events ([`Watch`]);
//! - kill by `cgroup.kill` or by pidfd, never by number, never the caller, and say who is stuck where ([`Cgroup::kill`]).
//!
//! It **does not**
//! - start processes: give [`Cgroup::unified`] to `clone3` with `CLONE_INTO_CGROUP`, and write `0` to
//!   [`Cgroup::join_fds`] in the child before its exec;
//! - move the caller, unless told to ([`Cgroup::attach_self`]); nor mount, nor change options of mounts;
//! - talk to a service manager. On a systemd machine run below `Delegate=yes`: see [below](#ordinary-users-and-systemd).
//!
//! # The knobs
//!
//! Fields of [`Limits`]. "v1 –" means that v1 has no such thing, and setting it there is [`Error::Unsupported`].
//!
//! | knob | v2 file (since Linux) | v1 file | at the limit |
//! |---|---|---|---|
//! | `memory_max` | `memory.max` (4.5) | `memory.limit_in_bytes` | reclaim, swap, then a process is killed. Lowering below the usage: v1 `EBUSY`, v2 kills |
//! | `memory_swap_max` | `memory.swap.max` (4.5) | `memory.memsw.limit_in_bytes`, the sum with memory | nothing more is swapped out |
//! | `memory_high` | `memory.high` (4.5) | – | slowed down and reclaimed from; nobody is killed |
//! | `memory_low` | `memory.low` (4.5) | `memory.soft_limit_in_bytes`, weaker | below it: reclaimed last |
//! | `memory_min` | `memory.min` (4.18) | – | below it: never reclaimed |
//! | `memory_oom_group` | `memory.oom.group` (4.19) | – | out of memory kills all of the group |
//! | `pids_max` | `pids.max` (4.5) | `pids.max` | fork and clone fail with `EAGAIN`; moving in never fails |
//! | `cpu_max` | `cpu.max` (4.15) | `cpu.cfs_quota_us`, `cpu.cfs_period_us` | waits for the next period. v1: not above the parent's share, `EINVAL` |
//! | `cpu_burst` | `cpu.max.burst` (5.14) | `cpu.cfs_burst_us` | as `cpu_max` |
//! | `cpu_weight` | `cpu.weight` (4.15) | `cpu.shares`, converted | no limit, a share when CPUs are busy |
//! | `cpu_idle` | `cpu.idle` (5.15) | `cpu.idle` (5.15) | runs when nobody else wants to |
//! | `cpuset_cpus` | `cpuset.cpus` (5.0) | `cpuset.cpus` | runs on no other CPU; affinities are reset |
//! | `cpuset_mems` | `cpuset.mems` (5.0) | `cpuset.mems` | allocates on no other node |
//! | `io_max` | `io.max` (4.5) | `blkio.throttle.{read,write}_{bps,iops}_device` | slowed down; v1 not for buffered writes |
//! | `io_weight` | `io.weight`, `io.bfq.weight` (4.5) | `blkio.bfq.weight`, `blkio.weight` | no limit, a share; acts with bfq or io.cost only |
//! | `hugetlb_max.used` | `hugetlb.SIZE.max` (5.6) | `hugetlb.SIZE.limit_in_bytes` | the touch ends in `SIGBUS` |
//! | `hugetlb_max.reserved` | `hugetlb.SIZE.rsvd.max` (5.7) | `hugetlb.SIZE.rsvd.limit_in_bytes` (5.7) | `mmap` fails with `ENOMEM` |
//! | `misc_max` | `misc.max` (5.13) | `misc.max` (5.13) | the resource is refused |
//! | `descendants_max` | `cgroup.max.descendants` (4.15) | – | `mkdir` fails with `EAGAIN` |
//! | `depth_max` | `cgroup.max.depth` (4.15) | – | `mkdir` fails with `EAGAIN` |
//! | [`set_devices`](Cgroup::set_devices) | BPF program (4.15; replacing 5.6) | `devices.allow`, `devices.deny` | open and mknod fail with `EPERM` |
//! | [`freeze`](Cgroup::freeze) | `cgroup.freeze` (5.2) | `freezer.state` | v1: the frozen cannot be killed before they are thawed |
//! | [`kill`](Cgroup::kill) | `cgroup.kill` (5.14), else by pidfd | by pidfd | |
//! | [`raw`](Cgroup::raw) | any | any | |
//!
//! Versions are the oldest known to have a feature; what counts is whether the file is there, and that is what is looked
//! at. No limit is [`Limit::Max`], and what a kernel does not tell is `None`.
//!
//! Values that kernels take differently are refused or mean the same on all of them: `-1`, suffixes and signs are no
//! numbers; less than a page of memory, and more than the kernel can count, are [`Error::Invalid`]; other bytes are
//! rounded down to pages, and the result is told.
//!
//! # Counting, and moving
//!
//! Memory is charged to the group of the process that touched it first, and stays there. A process with 1 GiB that is moved
//! into a group brings nothing along: neither usage nor peak of the group counts it, only what the process takes from then
//! on; and when it moves out it takes nothing away. So a process is to be *born* in its group, and the limits are to be
//! there before. Page cache, files in a tmpfs, and the kernel's memory for the group count as well, and do not keep
//! a group from being removed.
//!
//! Tasks are counted by number, threads and zombies included, in all groups above as well. Moving in is never refused.
//!
//! `memory.events`' `oom` counts where the *limit* is and says nothing of kills; `oom_kill` counts where the *victim* is,
//! and on v2 in the groups above, on v1 not. [`Cgroup::events`] adds up what the kernel does not.
//!
//! # Ordinary users, and systemd
//!
//! A user may make groups where the directory and its `cgroup.procs` belong to it, and be born there when that is so for
//! the nearest common ancestor with its present group too. Where that is not so, [`Layout::parent`] answers
//! [`Error::NotDelegated`] with three ways out ([`DELEGATION_FIXES`]). With systemd the first of them is
//!
//! ```text
//! systemd-run --user --scope -p Delegate=yes PROGRAM            # for an afternoon
//!
//! [Service]                                                     # for a service, also of the system with User=
//! Delegate=yes
//! DelegateSubgroup=main                                         # systemd 254; before: attach_self() to a child
//! ```
//!
//! A delegated group holds the program itself, and v2 groups with processes cannot offer `memory` or `io` to groups below.
//! So the program has to go to a leaf first, which `DelegateSubgroup=` does for it, or [`Cgroup::child`] and
//! [`Cgroup::attach_self`] at its start. Which controllers a user is given is the distribution's choice: ask for what must
//! be there by [`Needs::new`], and for the rest by [`Needs::prefer`].
//!
//! # Caveats
//!
//! - Dropping a [`Cgroup`] leaves the group on the machine; [`Cgroup::remove`] ends it.
//! - After a quiet spell a *move* waits some 10 ms for the kernel (an RCU grace period), on both versions. Being born in a
//!   group of the v2 tree does not.
//! - On v2 before Linux 6.11, and on v1, a fork that a limit further up refuses is counted in the group of the caller.
//! - [`Layout::parent`] may make a v2 group above the caller offer controllers that it did not offer before. It takes
//!   nothing away and moves nobody.

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
