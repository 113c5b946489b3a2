//! Which device nodes a group may open or make: v1 by lists, v2 by a small BPF program.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::OFlags;

use crate::group::{Cgroup, Part};
use crate::hierarchy::{Controller, Version};
use crate::sys::{self, Instruction};
use crate::{Error, Result};

/// The devices of a group; see [`Cgroup::set_devices`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Devices {
    /// Everything that the groups above allow.
    All,
    /// What one of the rules allows, and nothing else.
    Only(Vec<DeviceRule>),
}

/// Character or block devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeviceKind {
    /// Character devices.
    Char,
    /// Block devices.
    Block,
}

/// What is allowed on some devices.
///
/// ```
/// use cgroup::{DeviceKind, DeviceRule};
/// // Reading and writing /dev/null, and nothing with mknod.
/// let null = DeviceRule::new(DeviceKind::Char).major(1).minor(3).access(true, true, false);
/// assert_eq!(null.to_string(), "c 1:3 rw");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct DeviceRule {
    /// Which kind of devices.
    pub kind: DeviceKind,
    /// Their major number; any.
    pub major: Option<u32>,
    /// Their minor number; any.
    pub minor: Option<u32>,
    /// Whether they may be opened for reading.
    pub read: bool,
    /// Whether they may be opened for writing.
    pub write: bool,
    /// Whether nodes for them may be made.
    pub mknod: bool,
}

impl DeviceRule {
    /// Everything on all devices of a kind.
    #[must_use]
    pub const fn new(kind: DeviceKind) -> Self {
        Self { kind, major: None, minor: None, read: true, write: true, mknod: true }
    }

    /// Only devices of this major number.
    #[must_use]
    pub const fn major(mut self, major: u32) -> Self {
        self.major = Some(major);
        self
    }

    /// Only devices of this minor number.
    #[must_use]
    pub const fn minor(mut self, minor: u32) -> Self {
        self.minor = Some(minor);
        self
    }

    /// Only these kinds of access.
    #[must_use]
    pub const fn access(mut self, read: bool, write: bool, mknod: bool) -> Self {
        (self.read, self.write, self.mknod) = (read, write, mknod);
        self
    }

    /// The devices that programs expect everywhere: null, zero, full, random, urandom, tty, and pseudo terminals.
    #[must_use]
    pub fn usual() -> Vec<Self> {
        let char = |major, minor| Self::new(DeviceKind::Char).major(major).minor(minor).access(true, true, false);
        let ptys = Self::new(DeviceKind::Char).major(136).access(true, true, false);
        vec![char(1, 3), char(1, 5), char(1, 7), char(1, 8), char(1, 9), char(5, 0), char(5, 2), ptys]
    }

    fn check(self) -> Result<Self> {
        let refuse = |why: &str| Err(Error::invalid("device rule", format!("{self}: {why}")));
        // Linux has 12 bits for major and 20 for minor numbers.
        if self.major.is_some_and(|n| n >= 1 << 12) || self.minor.is_some_and(|n| n >= 1 << 20) {
            return refuse("no device has such a number");
        }
        if !(self.read || self.write || self.mknod) {
            return refuse("allows nothing");
        }
        Ok(self)
    }
}

/// As v1 writes it: `c 1:3 rw`.
impl fmt::Display for DeviceRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |n: Option<u32>| n.map_or_else(|| "*".to_owned(), |n| n.to_string());
        let kind = match self.kind {
            DeviceKind::Char => 'c',
            DeviceKind::Block => 'b',
        };
        write!(f, "{kind} {}:{} ", number(self.major), number(self.minor))?;
        for (allowed, letter) in [(self.read, "r"), (self.write, "w"), (self.mknod, "m")] {
            if allowed {
                f.write_str(letter)?;
            }
        }
        Ok(())
    }
}

impl Cgroup {
    /// Sets which devices the group's processes may open and make nodes for. What is refused fails with `EPERM`;
    /// descriptors that are open already go on working. Groups above must allow it as well.
    ///
    /// On v1 (a group with [`Controller::Devices`]) the list of the group is written anew; while that goes on, for some
    /// microseconds, less is allowed. On v2, and on a hybrid machine without that controller, a BPF program is attached to
    /// the group, replacing the one that this `Cgroup` attached before; it stays when the `Cgroup` is dropped.
    ///
    /// Returns the mechanism, for reports.
    ///
    /// # Errors
    /// [`Error::Invalid`] for impossible rules; [`Error::Unsupported`] where the group has neither, the kernel lacks BPF
    /// for groups, or the caller may not load programs (`CAP_SYS_ADMIN` in the first user namespace; there is no way for
    /// ordinary users, whose user namespaces cannot make device nodes anyway); [`Error::File`].
    ///
    /// Kernel: v2 4.15, replacing 5.6; cgroup-v1/devices.rst, cgroup-v2.rst "Device controller".
    pub fn set_devices(&self, devices: &Devices) -> Result<&'static str> {
        if let Devices::Only(rules) = devices {
            for rule in rules {
                rule.check()?;
            }
        }
        match (self.part(Controller::Devices), self.v2()) {
            (Some(part), _) if part.version == Version::V1 => {
                write_lists(part, devices)?;
                Ok("cgroup v1 devices.allow")
            }
            (_, Some(part)) => {
                self.attach_program(part, devices)?;
                Ok("cgroup v2 BPF device program")
            }
            _ => Err(Error::unsupported(
                "device rules",
                "cgroup v2, or a group that was made with the v1 devices controller",
            )),
        }
    }

    fn attach_program(&self, part: &Part, devices: &Devices) -> Result<()> {
        let failed = |error: std::io::Error| match error.raw_os_error() {
            Some(libc::EPERM | libc::ENOSYS | libc::EINVAL) => Error::unsupported(
                format!("a device program ({error})"),
                "CAP_SYS_ADMIN in the first user namespace, and a kernel with CONFIG_CGROUP_BPF",
            ),
            _ => Error::syscall("bpf", part.dir.path().display().to_string(), error),
        };
        let group: OwnedFd = part.dir.open_file(".", OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut held = self.device_program();
        match devices {
            Devices::All => {
                if let Some(old) = held.take() {
                    sys::detach_device_program(group.as_fd(), old.as_fd()).map_err(failed)?;
                }
            }
            Devices::Only(rules) => {
                let program = sys::load_device_program(&compile(rules)).map_err(failed)?;
                let old = held.as_ref().map(AsFd::as_fd);
                sys::attach_device_program(group.as_fd(), program.as_fd(), old).map_err(failed)?;
                *held = Some(program);
            }
        }
        Ok(())
    }
}

fn write_lists(part: &Part, devices: &Devices) -> Result<()> {
    let old = part.dir.read("devices.list")?;
    let allow = |lines: Vec<String>| lines.iter().try_for_each(|line| part.dir.write("devices.allow", line));
    let rules = match devices {
        Devices::All => return part.dir.write("devices.allow", "a"),
        Devices::Only(rules) => rules,
    };
    part.dir.write("devices.deny", "a")?;
    allow(rules.iter().map(ToString::to_string).collect()).map_err(|cause| {
        let back = if old.starts_with("a ") {
            part.dir.write("devices.allow", "a")
        } else {
            part.dir.write("devices.deny", "a").and_then(|()| allow(old.lines().map(str::to_owned).collect()))
        };
        match back {
            Ok(()) => cause,
            Err(error) => Error::RollBack { cause: Box::new(cause), failed: vec![error] },
        }
    })
}

const fn instruction(code: u8, to: u8, from: u8, jump: u16, constant: u32) -> Instruction {
    code as u64 | (to as u64) << 8 | (from as u64) << 12 | (jump as u64) << 16 | (constant as u64) << 32
}

/// The program: load kind, access and numbers, and go through the rules until one allows *all* that is asked.
///
/// ```text
/// r2 = kind   r3 = access   r4 = major   r5 = minor          (struct bpf_cgroup_dev_ctx)
/// for each rule:  kind, access, major, minor differ? → next rule;  return 1
/// return 0
/// ```
fn compile(rules: &[DeviceRule]) -> Vec<Instruction> {
    const LOAD_WORD: u8 = 0x61;
    const MOVE: u8 = 0xbf;
    const MOVE_CONSTANT: u8 = 0xb7;
    const SHIFT_RIGHT: u8 = 0x77;
    const AND: u8 = 0x57;
    const JUMP_IF_NOT: u8 = 0x55;
    const EXIT: u8 = 0x95;
    const ALL: u32 = 7;
    let load = |to, offset| instruction(LOAD_WORD, to, 1, offset, 0);
    let answer = |allowed| [instruction(MOVE_CONSTANT, 0, 0, 0, allowed), instruction(EXIT, 0, 0, 0, 0)];
    let mut program = vec![
        load(2, 0),
        instruction(MOVE, 3, 2, 0, 0),
        instruction(SHIFT_RIGHT, 3, 0, 0, 16),
        instruction(AND, 2, 0, 0, 0xffff),
        load(4, 4),
        load(5, 8),
    ];
    for rule in rules {
        let kind = match rule.kind {
            DeviceKind::Block => 1,
            DeviceKind::Char => 2,
        };
        let access = u32::from(rule.mknod) | u32::from(rule.read) << 1 | u32::from(rule.write) << 2;
        // Each test jumps over what is left of the rule, so it is made from the end.
        let mut reversed: Vec<Instruction> = answer(1).into_iter().rev().collect();
        let mut unless = |register, constant| {
            let over = u16::try_from(reversed.len()).unwrap_or(u16::MAX);
            reversed.push(instruction(JUMP_IF_NOT, register, 0, over, constant));
        };
        if let Some(minor) = rule.minor {
            unless(5, minor);
        }
        if let Some(major) = rule.major {
            unless(4, major);
        }
        if access != ALL {
            unless(1, 0);
            reversed.push(instruction(AND, 1, 0, 0, ALL & !access));
            reversed.push(instruction(MOVE, 1, 3, 0, 0));
        }
        let over = u16::try_from(reversed.len()).unwrap_or(u16::MAX);
        reversed.push(instruction(JUMP_IF_NOT, 2, 0, over, kind));
        program.extend(reversed.into_iter().rev());
    }
    program.extend(answer(0));
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would do with the few instructions that `compile` uses.
    fn run(program: &[Instruction], kind: u64, access: u64, major: u64, minor: u64) -> u64 {
        let mut r = [0u64; 6];
        let mut at = 0;
        loop {
            let word = program[at];
            let (code, to, from) = (word & 0xff, (word >> 8 & 15) as usize, (word >> 12 & 15) as usize);
            let (jump, constant) = ((word >> 16 & 0xffff) as usize, word >> 32);
            at += 1;
            match code {
                0x61 => r[to] = [access << 16 | kind, major, minor][jump / 4],
                0xbf => r[to] = r[from],
                0xb7 => r[to] = constant,
                0x77 => r[to] >>= constant,
                0x57 => r[to] &= constant,
                0x55 if r[to] != constant => at += jump,
                0x55 => {}
                0x95 => return r[0],
                other => panic!("{other:x}"),
            }
        }
    }

    #[test]
    fn the_program_decides_as_the_rules_say() {
        const MKNOD: u64 = 1;
        const READ: u64 = 2;
        const WRITE: u64 = 4;
        let rules = [
            DeviceRule::new(DeviceKind::Char).major(1).minor(3).access(true, true, false),
            DeviceRule::new(DeviceKind::Char).major(136),
            DeviceRule::new(DeviceKind::Block).access(false, false, true),
        ];
        let program = compile(&rules);
        for (kind, access, major, minor, allowed) in [
            (2, READ, 1, 3, 1),
            (2, READ | WRITE, 1, 3, 1),
            (2, READ | MKNOD, 1, 3, 0),
            (2, READ, 1, 5, 0),
            (1, READ, 1, 3, 0),
            (2, READ | WRITE | MKNOD, 136, 7, 1),
            (1, MKNOD, 8, 0, 1),
            (1, READ, 8, 0, 0),
        ] {
            assert_eq!(run(&program, kind, access, major, minor), allowed, "{kind} {access} {major}:{minor}");
        }
        assert_eq!(run(&compile(&[]), 2, READ, 1, 3), 0);
    }

    #[test]
    fn rules_that_cannot_work_are_refused() {
        let rule = DeviceRule::new(DeviceKind::Char);
        assert!(rule.major(4096).check().is_err() && rule.minor(1 << 20).check().is_err());
        assert!(rule.access(false, false, false).check().is_err());
        assert!(DeviceRule::usual().into_iter().all(|rule| rule.check().is_ok()));
    }
}
