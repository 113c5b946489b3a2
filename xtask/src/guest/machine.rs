//! How User-Mode Linux and QEMU are started, and what their guests see of the host: the differences of the two.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Options;
use super::job::{Disk, Job, Output, Share};
use super::kernel::{Engine, Installed, Kernel};

/// The run directory on the host's side, in the keeper's mount namespace.
pub(super) const RUN: &str = "/dev/guest";
/// Memory of User-Mode Linux is a file there.
pub(super) const MEMORY: &str = "/dev/shm";

/// What to start; the rest is known only to the keeper.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Machine {
    uml: bool,
    /// The kernel's directory; also the working directory.
    pub(super) directory: PathBuf,
    memory: u32,
    cpus: u32,
}

impl Machine {
    pub(super) fn new(kernel: Kernel, installed: &Installed, options: &Options) -> Self {
        let uml = kernel.engine == Engine::Uml;
        Self { uml, directory: installed.directory.clone(), memory: options.mem, cpus: options.smp }
    }

    /// The argument vector. `output` is a descriptor that the programs' output goes to, `disks` are those of images.
    pub(super) fn command(&self, initrd: &Path, output: i32, disks: &[i32]) -> Vec<String> {
        if self.uml { self.uml(initrd, output, disks) } else { self.qemu(initrd, output, disks) }
    }

    fn uml(&self, initrd: &Path, output: i32, disks: &[i32]) -> Vec<String> {
        let library = self.directory.join("libc");
        let mut argv = vec![
            // Set for this program alone: the host's own would not start with it.
            "env".into(),
            format!("LD_LIBRARY_PATH={}", library.display()),
            format!("TMPDIR={MEMORY}"),
            "./linux".into(),
            format!("mem={}M", self.memory),
            format!("initrd={}", initrd.display()),
            "rdinit=/init".into(),
            format!("uml_dir={MEMORY}/"), // else it panics where $HOME cannot be written
            "con=null".into(),
            "con0=null,fd:1".into(),
            "ssl=null".into(),
            format!("ssl0=null,fd:{output}"),
            "quiet".into(),
            "panic=-1".into(),
        ];
        argv.extend(disks.iter().enumerate().map(|(index, fd)| format!("ubd{index}=/proc/self/fd/{fd}")));
        argv
    }

    fn qemu(&self, initrd: &Path, output: i32, disks: &[i32]) -> Vec<String> {
        // The first virtio device of each kind is found by name or number in the guest, so the order counts.
        let fixed = format!(
            "qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp {} -m {} -nodefaults -no-user-config -no-reboot \
             -display none -serial stdio -kernel vmlinux -initrd {} \
             -virtfs local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap \
             -virtfs local,path={RUN},mount_tag=run,security_model=none,multidevs=remap \
             -device virtio-rng-pci -device virtio-serial-pci \
             -chardev file,id=out,path=/proc/self/fd/{output} -device virtserialport,chardev=out,name=out",
            self.cpus,
            self.memory,
            initrd.display(),
        );
        let mut argv: Vec<_> = fixed.split_whitespace().map(str::to_owned).collect();
        argv.push("-append".into());
        argv.push("console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable random.trust_cpu=on".into());
        for fd in disks {
            argv.push("-drive".into());
            argv.push(format!("file=/proc/self/fd/{fd},if=virtio,format=raw,cache=unsafe"));
        }
        argv
    }
}

/// The parts of the job that depend on the engine.
pub(super) fn job_defaults(kernel: Kernel, options: &Options) -> Job {
    let share = |source: &str, kind: &str, options: &str| Share {
        source: source.into(),
        kind: kind.into(),
        options: options.into(),
    };
    let (host, run, output, device) = match kernel.engine {
        Engine::Uml => (
            share("none", "hostfs", "/"),
            share("none", "hostfs", RUN),
            Output::Serial("/dev/ttyS0".into()),
            "/dev/ubd",
        ),
        Engine::Qemu => {
            const NINE: &str = "trans=virtio,version=9p2000.L,msize=512000";
            (
                share("host", "9p", &format!("{NINE},cache=loose")),
                share("run", "9p", &format!("{NINE},cache=none,access=any")),
                Output::VirtioPort,
                "/dev/vd",
            )
        }
    };
    // In the order in which the keeper hands the images over.
    let mut devices = ["a", "b"].map(|letter| format!("{device}{letter}")).into_iter();
    let disk = options
        .disk
        .mount()
        .and_then(|(kind, options)| Some(Disk { device: devices.next()?, kind: kind.into(), options: options.into() }));
    Job {
        host,
        run,
        output,
        disk,
        swap: options.swap.and_then(|_| devices.next()),
        hostname: String::new(),
        modules: PathBuf::new(),
        cgroup: options.cgroup,
        uid: options.user.uid(),
        visible: Vec::new(),
        programs: Vec::new(),
    }
}
