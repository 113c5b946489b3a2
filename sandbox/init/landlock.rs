//! Landlock (landlock(7)): rules out of the configuration, and the restriction of init and all that it starts.

use crate::arch::{nr, syscall};
use crate::protocol::{LandlockHead, LandlockPath, step};
use crate::{Broken, check};

const RULE_PATH_BENEATH: usize = 1;
const RULE_NET_PORT: usize = 2;
/// `struct landlock_net_port_attr`: the right and the port.
const PORT_SIZE: usize = 16;
/// What can be allowed on a file that is no directory: execute, write_file, read_file, truncate, ioctl_dev.
const ON_FILES: u64 = 1 | 1 << 1 | 1 << 2 | 1 << 14 | 1 << 15;
const AT_FDCWD: usize = -100isize as usize;
const O_PATH_CLOEXEC: usize = 0x20_0000 | 0x8_0000;
const EINVAL: i32 = 22;

/// `struct landlock_path_beneath_attr`, which is packed.
#[repr(C, packed)]
struct PathBeneath {
    access: u64,
    fd: i32,
}

/// Makes the rules that lie at `at`. Before init gives up its privilege, as it opens directories of others.
pub(crate) fn rules(at: usize) -> Result<i32, Broken> {
    // SAFETY: the library wrote a whole head there, followed by as many ports and paths as it says, all 8-aligned.
    let head = unsafe { &*(at as *const LandlockHead) };
    let attributes = &raw const head.handled as usize;
    // SAFETY: three words; an older kernel knows fewer, and the rest is 0 then.
    let ruleset = unsafe { syscall(nr::LANDLOCK_CREATE_RULESET, [attributes, size_of_val(&head.handled), 0, 0, 0, 0]) };
    check(ruleset).map_err(|errno| (step::LANDLOCK, errno))?;
    let mut at = at + size_of::<LandlockHead>();
    for _ in 0..head.ports {
        add(ruleset, RULE_NET_PORT, at).map_err(|errno| (step::LANDLOCK, errno))?;
        at += PORT_SIZE;
    }
    for number in 0..head.paths {
        // SAFETY: as above.
        let path = unsafe { &*(at as *const LandlockPath) };
        allow(ruleset, path, at + size_of::<LandlockPath>()).map_err(|errno| Broken {
            step: step::LANDLOCK_PATH,
            errno,
            detail: number as u32,
        })?;
        at += size_of::<LandlockPath>() + path.length as usize;
    }
    Ok(ruleset as i32)
}

fn allow(ruleset: isize, path: &LandlockPath, name: usize) -> Result<(), i32> {
    // SAFETY: the name ends with a NUL.
    let fd = unsafe { syscall(nr::OPENAT, [AT_FDCWD, name, O_PATH_CLOEXEC, 0, 0, 0]) };
    check(fd)?;
    let rule = |access| {
        let beneath = PathBeneath { access, fd: fd as i32 };
        add(ruleset, RULE_PATH_BENEATH, &raw const beneath as usize)
    };
    // What only makes sense for a directory is refused for anything else.
    let added = match rule(path.access) {
        Err(EINVAL) => rule(path.access & ON_FILES),
        added => added,
    };
    // SAFETY: ours, and not used any more.
    unsafe { syscall(nr::CLOSE, [fd as usize, 0, 0, 0, 0, 0]) };
    added
}

fn add(ruleset: isize, kind: usize, attributes: usize) -> Result<(), i32> {
    // SAFETY: the attributes are of that kind.
    check(unsafe { syscall(nr::LANDLOCK_ADD_RULE, [ruleset as usize, kind, attributes, 0, 0, 0]) })
}

/// Restricts init for good.
pub(crate) fn restrict(ruleset: i32) -> Result<(), i32> {
    // SAFETY: numbers only.
    check(unsafe { syscall(nr::LANDLOCK_RESTRICT_SELF, [ruleset as usize, 0, 0, 0, 0, 0]) })?;
    // SAFETY: ours, and not used any more.
    check(unsafe { syscall(nr::CLOSE, [ruleset as usize, 0, 0, 0, 0, 0]) })
}
