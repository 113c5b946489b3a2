//! The kernels that guests boot: which there are, and how they come into the cache.

use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{FlockOperation, flock};

use crate::cargo;
use crate::error::{Context, Error, Result};
use crate::guest::DiskKind;
use crate::guest::apt::Suite;
use crate::packages::{self, Need};

/// What runs the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Engine {
    /// The kernel as a process of the host: boots fast, one CPU, few drivers.
    Uml,
    /// Debian's own kernel, emulated.
    Qemu,
}

/// A kernel by its name on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Kernel {
    pub(crate) engine: Engine,
    pub(crate) version: Version,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    V5_10,
    V6_1,
    V6_12,
    /// The newest that Debian has: it moves.
    New,
}

/// Where a kernel lies in the cache.
#[derive(Debug)]
pub(crate) struct Installed {
    pub(crate) directory: PathBuf,
    pub(crate) release: String,
}

/// Raised when what [`Kernel::install`] makes changes, so that caches of older checkouts are made anew.
const FORMAT: &str = "1";

pub(crate) const ALL: [Kernel; 8] = {
    const fn kernel(engine: Engine, version: Version) -> Kernel {
        Kernel { engine, version }
    }
    [
        kernel(Engine::Uml, Version::V5_10),
        kernel(Engine::Uml, Version::V6_1),
        kernel(Engine::Uml, Version::V6_12),
        kernel(Engine::Uml, Version::New),
        kernel(Engine::Qemu, Version::V5_10),
        kernel(Engine::Qemu, Version::V6_1),
        kernel(Engine::Qemu, Version::V6_12),
        kernel(Engine::Qemu, Version::New),
    ]
};

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let engine = match self.engine {
            Engine::Uml => "uml",
            Engine::Qemu => "qemu",
        };
        let version = match self.version {
            Version::V5_10 => "5.10",
            Version::V6_1 => "6.1",
            Version::V6_12 => "6.12",
            Version::New => "new",
        };
        f.pad(&format!("{engine}-{version}"))
    }
}

impl std::str::FromStr for Kernel {
    type Err = String;
    fn from_str(name: &str) -> std::result::Result<Self, String> {
        let names = || ALL.map(|kernel| kernel.to_string()).join(" ");
        ALL.into_iter().find(|kernel| kernel.to_string() == name).ok_or_else(|| format!("one of: {}", names()))
    }
}

/// Where kernels, disk templates and indexes are kept: `SANDBOX_GUEST_CACHE`, or `guest` in cargo's target directory.
pub(crate) fn cache() -> PathBuf {
    std::env::var_os("SANDBOX_GUEST_CACHE")
        .map_or_else(|| cargo::target_dir().join("guest"), |dir| cargo::root().join(dir))
}

impl Kernel {
    /// The Debian suite that has it.
    fn suite(self) -> &'static str {
        match self.version {
            Version::V5_10 => "bullseye",
            Version::V6_1 => "bookworm",
            Version::V6_12 => "trixie",
            Version::New => "sid",
        }
    }

    /// Whether it knows the disk's file system. Debian leaves the old format of XFS out since Linux 7.
    pub(crate) fn mounts(self, disk: DiskKind) -> bool {
        disk != DiskKind::XfsV4 || (self.engine, self.version) != (Engine::Qemu, Version::New)
    }

    fn needs(self) -> &'static [Need] {
        match self.engine {
            Engine::Uml => &[Need::Guest],
            Engine::Qemu => &[Need::Guest, Need::Qemu],
        }
    }

    /// The kernel in the cache, if it is there and whole.
    pub(crate) fn installed(self) -> Option<Installed> {
        let directory = cache().join("kernels").join(self.to_string());
        let format = fs::read_to_string(directory.join("format")).ok()?;
        let release = fs::read_to_string(directory.join("release")).ok()?;
        (format == FORMAT).then_some(Installed { directory, release })
    }

    /// Brings the kernel and the programs that guests need onto this machine, unless they are here.
    ///
    /// Only one process at a time downloads; the kernel appears whole or not at all.
    ///
    /// # Errors
    /// Says why no guest with this kernel can run here; the caller skips.
    pub(crate) fn install(self) -> Result<Installed> {
        if !rustix::process::geteuid().is_root() {
            return Err(Error::new("guests are confined by mount and pid namespaces, which needs root"));
        }
        packages::ensure(self.needs())?;
        if let Some(installed) = self.installed() {
            return Ok(installed);
        }
        if !packages::can_install() {
            return Err(Error::new(format!("{self} is not in the cache, and only root on Debian can download it")));
        }
        let kernels = cache().join("kernels");
        fs::create_dir_all(&kernels).context(|| format!("cannot make {}", kernels.display()))?;
        let lock = kernels.join("lock");
        let lock = File::create(&lock).context(|| format!("cannot make {}", lock.display()))?;
        flock(&lock, FlockOperation::LockExclusive).context(|| "cannot lock the cache".into())?;
        if let Some(installed) = self.installed() {
            return Ok(installed);
        }
        eprintln!("xtask: downloading {self}");
        let unfinished = kernels.join(format!(".{self}"));
        let finished = kernels.join(self.to_string());
        for directory in [&unfinished, &finished] {
            let _ = fs::remove_dir_all(directory);
        }
        let suite = Suite::open(&cache(), self.suite())?;
        fs::create_dir(&unfinished).context(|| format!("cannot make {}", unfinished.display()))?;
        let made = match self.engine {
            Engine::Uml => unpack_uml(&suite, &unfinished),
            Engine::Qemu => unpack_debian(&suite, &unfinished),
        };
        suite.clean();
        if let Err(error) = made.and_then(|()| finish(self, &unfinished)) {
            let _ = fs::remove_dir_all(&unfinished);
            return Err(error);
        }
        fs::rename(&unfinished, &finished).context(|| format!("cannot rename {}", unfinished.display()))?;
        self.installed().ok_or_else(|| Error::new(format!("{self} is not whole after its installation")))
    }
}

/// The user-mode kernel with the C library that it was built for, so that it runs on a host with an older one.
fn unpack_uml(suite: &Suite, directory: &Path) -> Result<()> {
    let raw = directory.join("raw");
    unpack(&suite.download("user-mode-linux")?, &raw)?;
    let library = raw.join("libc");
    unpack(&suite.download("libc6")?, &library)?;
    let own = directory.join("libc");
    fs::create_dir(&own).context(|| format!("cannot make {}", own.display()))?;
    for file in files(&library)? {
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let wanted = (name.starts_with("ld-") || name.starts_with("lib")) && name.contains(".so");
        let optional = file.components().any(|part| ["gconv", "audit"].iter().any(|dir| part.as_os_str() == *dir));
        // An absolute link leads to the host's library.
        let foreign = fs::read_link(&file).is_ok_and(|target| target.is_absolute());
        if wanted && !optional && !foreign && file.is_file() {
            fs::copy(&file, own.join(name)).context(|| format!("cannot copy {}", file.display()))?;
        }
    }
    // Started as `ld-linux… linux` it dies ("Too few physical memory!": the heap no longer follows the program). So
    // the loader's path in the binary becomes a shorter one, relative to the kernel's directory.
    let binary = raw.join("usr/bin/linux.uml");
    let mut image = fs::read(&binary).context(|| format!("cannot read {}", binary.display()))?;
    let (old, new) = (b"/lib64/ld-linux-x86-64.so.2\0", b"libc/ld-linux-x86-64.so.2\0");
    let at = image.windows(old.len()).position(|bytes| bytes == old);
    let at = at.ok_or_else(|| Error::new(format!("no loader's path in {}", binary.display())))?;
    image[at..at + new.len()].copy_from_slice(new);
    write_program(&directory.join("linux"), &image)?;
    move_modules(&raw.join("usr/lib/uml/modules"), directory)
}

/// Debian's kernel for real machines.
fn unpack_debian(suite: &Suite, directory: &Path) -> Result<()> {
    let raw = directory.join("raw");
    let meta = suite.depends("linux-image-amd64")?;
    let image = meta.iter().find(|name| name.starts_with("linux-image-"));
    let image = image.ok_or_else(|| Error::new("linux-image-amd64 depends on no kernel"))?;
    // From Linux 7 on that package is empty itself.
    let parts = suite
        .depends(image)?
        .into_iter()
        .filter(|name| name.starts_with("linux-binary-") || name.starts_with("linux-modules-"));
    let mut parts: Vec<_> = parts.collect();
    if parts.is_empty() {
        parts.push(image.clone());
    }
    for part in parts {
        unpack(&suite.download(&part)?, &raw)?;
    }
    let boot = files(&raw)?
        .into_iter()
        .find(|file| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz")));
    let boot = boot.ok_or_else(|| Error::new(format!("no vmlinuz in {image}")))?;
    write_program(&directory.join("vmlinux"), &elf_kernel(&boot)?)?;
    let modules = ["lib/modules", "usr/lib/modules"].map(|path| raw.join(path)).into_iter().find(|path| path.is_dir());
    move_modules(&modules.ok_or_else(|| Error::new(format!("no modules in {image}")))?, directory)
}

/// The ELF kernel out of a `bzImage`: QEMU starts it directly, which saves the guest a second of unpacking.
fn elf_kernel(path: &Path) -> Result<Vec<u8>> {
    let image = fs::read(path).context(|| format!("cannot read {}", path.display()))?;
    // Documentation/arch/x86/boot.rst: setup_sects, payload_offset, payload_length (with four bytes of size behind).
    let number = |at: usize| Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?));
    let payload = || {
        let setup = (usize::from(*image.get(0x1f1)?) + 1) * 512;
        let start = setup + usize::try_from(number(0x248)?).ok()?;
        image.get(start..start + usize::try_from(number(0x24c)?).ok()? - 4)
    };
    let payload = payload().ok_or_else(|| Error::new(format!("{} is no bzImage", path.display())))?;
    let packed = path.with_extension("payload");
    fs::write(&packed, payload).context(|| format!("cannot write {}", packed.display()))?;
    match payload {
        [0xfd, b'7', b'z', b'X', ..] => output_of("xz", &["--decompress", "--stdout"], &packed),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => output_of("zstd", &["--decompress", "--stdout"], &packed),
        _ => Err(Error::new(format!("{}: unknown compression", path.display()))),
    }
}

/// What both engines need beside the kernel: an index of the modules, and those to load first, in order.
fn finish(kernel: Kernel, directory: &Path) -> Result<()> {
    let raw = directory.join("raw");
    fs::remove_dir_all(&raw).context(|| format!("cannot remove {}", raw.display()))?;
    let modules = directory.join("lib/modules");
    let release = fs::read_dir(&modules).context(|| format!("cannot list {}", modules.display()))?.flatten().next();
    let release = release.and_then(|entry| entry.file_name().into_string().ok());
    let release = release.ok_or_else(|| Error::new(format!("no release in {}", modules.display())))?;
    let base = directory.display().to_string();
    output_of("depmod", &["--basedir", &base, &release], Path::new(""))?;

    let boot = directory.join(super::job::BOOT_MODULES);
    fs::create_dir(&boot).context(|| format!("cannot make {}", boot.display()))?;
    let wanted: &[&str] = match kernel.engine {
        Engine::Uml => &["overlay"],
        Engine::Qemu => &["overlay", "9p", "9pnet_virtio", "virtio_pci", "virtio_blk", "virtio_console", "virtio_rng"],
    };
    let mut seen = Vec::new();
    for module in wanted {
        let args = ["--dirname", &base, "--set-version", &release, "--show-depends", module];
        // A module that is built in is not found, and needs no loading. A missing one shows at the first boot.
        let Ok(steps) = output_of("modprobe", &args, Path::new("")) else { continue };
        for step in String::from_utf8_lossy(&steps).lines() {
            let Some(file) = step.strip_prefix("insmod ").and_then(|rest| rest.split_whitespace().next()) else {
                continue;
            };
            if seen.iter().any(|name| name == file) {
                continue;
            }
            let target = boot.join(format!(
                "{:02}-{}",
                seen.len(),
                Path::new(file).file_stem().unwrap_or_default().to_string_lossy()
            ));
            let image = if file.ends_with(".xz") {
                output_of("xz", &["--decompress", "--stdout"], Path::new(file))?
            } else {
                fs::read(file).context(|| format!("cannot read {file}"))?
            };
            fs::write(&target, image).context(|| format!("cannot write {}", target.display()))?;
            seen.push(file.to_owned());
        }
    }
    for (name, text) in [("release", &*release), ("format", FORMAT)] {
        let path = directory.join(name);
        fs::write(&path, text).context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Unpacks a package without the drivers that no guest has: they are two thirds of a kernel.
fn unpack(package: &Path, directory: &Path) -> Result<()> {
    const UNWANTED: [&str; 13] = [
        "drivers/gpu",
        "drivers/hwmon",
        "drivers/iio",
        "drivers/infiniband",
        "drivers/media",
        "drivers/net/ethernet",
        "drivers/net/wireless",
        "drivers/scsi",
        "drivers/staging",
        "drivers/usb",
        "drivers/input",
        "drivers/platform",
        "sound",
    ];
    fs::create_dir_all(directory).context(|| format!("cannot make {}", directory.display()))?;
    let doing = || format!("cannot unpack {}", package.display());
    let mut reader =
        Command::new("dpkg-deb").arg("--fsys-tarfile").arg(package).stdout(Stdio::piped()).spawn().context(doing)?;
    let Some(stream) = reader.stdout.take() else { return Err(Error::new(doing())) };
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--exclude=./usr/share", "--directory"]).arg(directory);
    tar.args(UNWANTED.map(|path| format!("--exclude=*/kernel/{path}")));
    let written = tar.stdin(stream).output().context(doing)?;
    let read = reader.wait().context(doing)?;
    if read.success() && written.status.success() {
        return Ok(());
    }
    Err(Error::new(format!("{}: {}", doing(), String::from_utf8_lossy(&written.stderr).trim())))
}

fn move_modules(from: &Path, directory: &Path) -> Result<()> {
    let library = directory.join("lib");
    fs::create_dir(&library).context(|| format!("cannot make {}", library.display()))?;
    fs::rename(from, library.join("modules")).context(|| format!("cannot move {}", from.display()))
}

fn write_program(path: &Path, image: &[u8]) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let written = fs::write(path, image).and_then(|()| fs::set_permissions(path, PermissionsExt::from_mode(0o755)));
    written.context(|| format!("cannot write {}", path.display()))
}

/// The standard output of `program ARGS FILE`.
fn output_of(program: &str, args: &[&str], file: &Path) -> Result<Vec<u8>> {
    let path = packages::find(program).ok_or_else(|| Error::new(format!("no {program} on this machine")))?;
    let mut command = Command::new(path);
    command.args(args).stdin(Stdio::null());
    if !file.as_os_str().is_empty() {
        command.arg(file);
    }
    let output = command.output().context(|| format!("cannot run {program}"))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(Error::new(format!("{program} {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim())))
}

/// Every file below `directory`.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut directories = vec![directory.to_path_buf()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).context(|| format!("cannot list {}", directory.display()))? {
            let entry = entry.context(|| format!("cannot list {}", directory.display()))?;
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                directories.push(path);
            } else {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for kernel in ALL {
            assert_eq!(kernel.to_string().parse::<Kernel>().unwrap(), kernel);
        }
        assert!("uml-6.13".parse::<Kernel>().unwrap_err().contains("uml-6.12"));
    }
}
