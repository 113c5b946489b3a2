//! Programs that the commands call and the Debian packages that bring them: the one table.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::error::{Context, Error, Result};

/// What a program is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Host tests.
    Host,
    /// Any guest.
    Guest,
    /// Guests under QEMU.
    Qemu,
}

struct Tool {
    program: &'static str,
    package: &'static str,
    need: Need,
}

const TOOLS: &[Tool] = &[
    Tool { program: "newuidmap", package: "uidmap", need: Need::Host },
    Tool { program: "pamtester", package: "pamtester", need: Need::Host },
    Tool { program: "strace", package: "strace", need: Need::Host },
    Tool { program: "depmod", package: "kmod", need: Need::Guest },
    Tool { program: "ip", package: "iproute2", need: Need::Guest },
    Tool { program: "mkfs.ext4", package: "e2fsprogs", need: Need::Guest },
    Tool { program: "mkfs.f2fs", package: "f2fs-tools", need: Need::Guest },
    Tool { program: "mkfs.xfs", package: "xfsprogs", need: Need::Guest },
    Tool { program: "mkswap", package: "util-linux", need: Need::Guest },
    Tool { program: "newuidmap", package: "uidmap", need: Need::Guest },
    Tool { program: "pamtester", package: "pamtester", need: Need::Guest },
    Tool { program: "repquota", package: "quota", need: Need::Guest },
    Tool { program: "tar", package: "tar", need: Need::Guest },
    Tool { program: "xz", package: "xz-utils", need: Need::Guest },
    Tool { program: "zstd", package: "zstd", need: Need::Guest },
    Tool { program: "qemu-system-x86_64", package: "qemu-system-x86", need: Need::Qemu },
];

/// Installs what is missing for `needs` when we are root on Debian, else says in the error what to install.
pub(crate) fn ensure(needs: &[Need]) -> Result<()> {
    let missing = || {
        let mut packages: Vec<_> = TOOLS
            .iter()
            .filter(|tool| needs.contains(&tool.need) && find(tool.program).is_none())
            .map(|tool| tool.package)
            .collect();
        packages.dedup();
        packages
    };
    let packages = missing();
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    if !can_install() {
        return Err(Error::new(format!("missing packages: {list} (installed without asking only as root on Debian)")));
    }
    eprintln!("xtask: installing {list}");
    apt_get(&["update", "-qq"])?;
    apt_get(
        &[&["install", "-qq", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300"], packages.as_slice()]
            .concat(),
    )?;
    match missing().as_slice() {
        [] => Ok(()),
        left => Err(Error::new(format!("still missing after installation: {}", left.join(" ")))),
    }
}

/// Whether we may and can install packages.
pub(crate) fn can_install() -> bool {
    rustix::process::geteuid().is_root() && find("apt-get").is_some() && find("dpkg-deb").is_some()
}

/// Where `program` is: the usual `PATH` and the directories of system programs, which a user's `PATH` may lack.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|dir| dir.join(program)).find(|file| file.is_file())
}

fn apt_get(args: &[&str]) -> Result<()> {
    let output = Command::new("apt-get")
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .output()
        .context(|| "cannot run apt-get".into())?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(Error::new(format!("apt-get {} failed: {}", args.join(" "), text.trim().lines().last().unwrap_or_default())))
}
