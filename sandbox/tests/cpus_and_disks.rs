//! Which CPUs programs run on, and how fast they may read from a disk.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{SOON, text};
use sandbox::{ErrorKind, Feature, Instance, IoRates, LiveLimits, Mode};

#[test]
fn payload() {
    common::acts::run(&[]);
}

/// The CPUs that a later program of the instance may run on, and whether it may choose CPU 0 and CPU 1.
fn cpus(instance: &Instance) -> String {
    let script = "grep Cpus_allowed_list /proc/self/status | cut -f 2; \
                  for cpu in 0 1; do taskset -cp $cpu $$ >/dev/null 2>&1; echo $?; done";
    text(&instance.command("/bin/sh").args(["-c", script]).output().unwrap()).replace('\n', " ")
}

fn cpu_count() -> usize {
    rustix::thread::sched_getaffinity(None).map_or(1, |set| set.count() as usize)
}

#[test]
fn programs_stay_on_their_cpus() {
    let sandbox = sandbox_or_skip!("programs_stay_on_their_cpus", "cpuset", |b| {
        b.cpuset([0]).cpuset_mems([0]);
    });
    let entry = sandbox.plan().feature(Feature::Cpuset).unwrap().clone();
    assert_eq!((entry.mode, entry.requested, entry.enforced), (Mode::Require, Some(1), Some(1)));
    let by = entry.by.unwrap();
    assert!(by.contains("cpuset.cpus 0, ") && by.ends_with("cpuset.mems 0"), "{by}");
    let instance = sandbox.start().unwrap();
    for _ in 0..2 {
        assert_eq!(cpus(&instance), "0 0 1", "CPU 0 alone, which may be chosen; CPU 1 may not");
    }
}

#[test]
fn cpus_change_while_programs_run() {
    let sandbox = sandbox_or_skip!("cpus_change_while_programs_run", "cpuset", |b| {
        b.cpuset([0]);
    });
    require!("cpus_change_while_programs_run", cpu_count() > 1, "two CPUs", "one");
    let instance = sandbox.start().unwrap();
    let wider = LiveLimits { cpuset: Some(vec![0, 1]), ..Default::default() };
    let entries = instance.set_limits(&wider).unwrap();
    assert_eq!((entries[0].feature, entries[0].enforced), (Feature::Cpuset, Some(2)));
    assert_eq!(cpus(&instance), "0-1 0 0");
}

#[test]
fn cpus_that_are_not_there_are_refused_or_reported() {
    let name = "cpus_that_are_not_there_are_refused_or_reported";
    if let Err(error) = common::build(|b| {
        b.cpuset([0]);
    }) {
        return common::skip(name, "cpuset", &error.to_string());
    }
    let error = common::build(|b| {
        b.cpuset([0, 4000]);
    })
    .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    let sandbox = common::sandbox(|b| {
        b.cpuset([4000]).prefer(Feature::Cpuset);
    });
    let entry = sandbox.plan().feature(Feature::Cpuset).unwrap();
    assert!(entry.enforced.is_none() && entry.why_not.is_some(), "{entry}");
    let outcome = sandbox.command("/bin/true").status().unwrap();
    assert!(outcome.success());
    let entry = outcome.enforcement.iter().find(|entry| entry.feature == Feature::Cpuset).unwrap();
    assert_eq!(entry.enforced, None);
}

#[test]
fn what_is_no_whole_disk_is_refused() {
    let rates = IoRates { read_bytes: Some(1 << 20), ..Default::default() };
    let refused = |device: &str| {
        common::build(|b| {
            b.io_max(device, rates);
        })
        .unwrap_err()
    };
    require!("what_is_no_whole_disk_is_refused", io_rates().is_ok(), "rates of disks", io_rates().unwrap_err());
    assert_eq!(refused("/dev/null").errno(), Some(libc::ENOTBLK));
    let error = refused("/nowhere");
    assert_eq!((error.errno(), error.path()), (Some(libc::ENOENT), Some(Path::new("/nowhere"))));
    assert_eq!(refused("4000:1").kind(), ErrorKind::Unsupported, "no such device");
    let partition =
        fs::read_dir("/sys/dev/block").into_iter().flatten().flatten().find_map(|entry| {
            entry.path().join("partition").exists().then(|| entry.file_name().into_string().unwrap())
        });
    if let Some(partition) = partition {
        let error = refused(&partition);
        assert!(error.to_string().contains("name /dev/"), "{error}");
    }
}

/// Whether rates can be set here at all.
fn io_rates() -> Result<(), String> {
    let disks = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let numbers = disks.filter_map(|disk| fs::read_to_string(disk.path().join("dev")).ok()).next();
    let numbers = numbers.ok_or("no block device")?;
    let rates = IoRates { read_bytes: Some(1 << 30), ..Default::default() };
    common::build(|b| {
        b.io_max(numbers.trim(), rates);
    })
    .map(drop)
    .map_err(|error| error.to_string())
}

/// Says to a copy of this test that it has a mount namespace of its own.
const OWN_MOUNTS: &str = "SANDBOX_TEST_OWN_MOUNTS";

#[test]
fn reads_of_a_disk_wait_for_their_rate() {
    let name = "reads_of_a_disk_wait_for_their_rate";
    require!("reads_of_a_disk_wait_for_their_rate", common::is_root(), "root, to mount a loop device", "another user");
    if std::env::var_os(OWN_MOUNTS).is_some() {
        return on_a_loop_device(name);
    }
    let mut copy = Command::new("unshare");
    copy.args(["--mount", "--propagation", "private"]).arg(std::env::current_exe().unwrap());
    let copy = copy.args(["--exact", name, "--nocapture"]).env(OWN_MOUNTS, "1").stdin(Stdio::null());
    let output = copy.stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

const MIB: u64 = 1 << 20;

fn on_a_loop_device(name: &str) {
    let directory = tempdir();
    let (image, at) = (directory.0.join("image"), directory.0.join("at"));
    fs::create_dir(&at).unwrap();
    let script = format!(
        "truncate -s 32M {image} && mkfs.ext4 -q {image} && mount -o loop {image} {at} && \
         dd if=/dev/zero of={at}/file bs=1M count=4 conv=fsync && chmod 755 {at} && chmod 644 {at}/file",
        image = image.display(),
        at = at.display()
    );
    let made = Command::new("/bin/sh").args(["-c", &script]).output().unwrap();
    if !made.status.success() {
        return common::skip(name, "ext4 on a loop device", &String::from_utf8_lossy(&made.stderr));
    }
    let device = fs::metadata(&at).unwrap().dev();
    let disk = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let built = common::build(|b| {
        b.bind_read_only(&at, "/disk").io_max(&disk, IoRates { read_bytes: Some(MIB), ..Default::default() });
    });
    let sandbox = match built {
        Err(error @ sandbox::Error::Unsupported { .. }) => {
            return common::skip(name, "rates of disks", &error.to_string());
        }
        built => built.unwrap(),
    };
    let entry = sandbox.plan().feature(Feature::IoMax).unwrap();
    assert_eq!((entry.requested, entry.enforced), (Some(1), Some(1)), "{entry}");
    assert!(entry.by.as_ref().unwrap().ends_with(&format!(" {disk} read 1048576/s")), "{entry}");

    let instance = sandbox.start().unwrap();
    let slow = time_of_reading(&instance, 3);
    assert!(slow > Duration::from_secs(2), "3 MiB at 1 MiB in a second: {slow:?}");
    // A rate that the disk does not reach.
    let high = IoRates { read_bytes: Some(1 << 40), ..Default::default() };
    let raised = LiveLimits { io_max: vec![(PathBuf::from(&disk), high)], ..Default::default() };
    instance.set_limits(&raised).unwrap();
    let fast = time_of_reading(&instance, 3);
    assert!(fast < slow / 2, "{fast:?} with a cap that is not reached, {slow:?} with one that is");
    assert!(instance.kill(SOON).unwrap().stuck.is_empty());
    let _ = sandbox.close();
}

/// Reads past the page cache.
fn time_of_reading(instance: &Instance, mebibytes: u64) -> Duration {
    let begin = Instant::now();
    let mut dd = instance.command("dd");
    dd.args(["if=/disk/file", "of=/dev/null", "bs=256K", "iflag=direct"]).arg(format!("count={}", mebibytes * 4));
    let output = dd.output().unwrap();
    assert!(output.outcome.success(), "{}", String::from_utf8_lossy(&output.stderr));
    begin.elapsed()
}

struct TempDir(PathBuf);

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.join("at")).output();
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn tempdir() -> TempDir {
    let path = std::env::temp_dir().join(format!("sandbox-test-disk-{}", std::process::id()));
    fs::create_dir(&path).unwrap();
    TempDir(path)
}
