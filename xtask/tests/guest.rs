//! Guests as their users meet them: what comes out, and what never stays behind.
//!
//! They boot User-Mode Linux, the kernel that takes two seconds, and download it where that is possible.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking, their helpers too")]

use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

const KERNEL: &str = "uml-6.12";

/// True when guests can run here; says `SKIP` when not.
fn can_boot(test: &str) -> bool {
    let output = guest(&[], "true").output().unwrap();
    if output.status.code() != Some(77) {
        return true;
    }
    assert!(std::env::var_os("SANDBOX_TEST_REQUIRE_ALL").is_none(), "{test}: no guest can run");
    let found = String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or_default().to_owned();
    // To the handle: libtest captures only the macros' output.
    std::io::stderr().write_all(format!("SKIP {test}: needs the kernel {KERNEL}; found {found}\n").as_bytes()).unwrap();
    false
}

fn guest(options: &[&str], script: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.arg("guest").arg(KERNEL).args(options).args(["--", "sh", "-c", script]).stdin(Stdio::null());
    command
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn output_is_exact_and_the_status_is_the_commands() {
    if !can_boot("output_is_exact_and_the_status_is_the_commands") {
        return;
    }
    let output = guest(&[], "seq 200000; uname -n; echo err >&2; exit 7").output().unwrap();
    let numbers: String = (1..=200_000).map(|n| format!("{n}\n")).collect();
    assert!(stdout(&output) == format!("{numbers}guest-{KERNEL}\nerr\n"), "{}", output.stdout.len());
    assert_eq!(output.status.code(), Some(7));

    let killed = guest(&[], "kill -9 $$").output().unwrap();
    assert_eq!(killed.status.code(), Some(137));
    let unknown =
        Command::new(env!("CARGO_BIN_EXE_xtask")).args(["guest", KERNEL, "--", "/no/such/program"]).output().unwrap();
    assert_eq!(unknown.status.code(), Some(127));
    assert!(stdout(&unknown).contains("/no/such/program"));
}

#[test]
fn layouts_users_disks_and_swap_are_as_asked() {
    if !can_boot("layouts_users_disks_and_swap_are_as_asked") {
        return;
    }
    let script = "id -u; cat /proc/self/cgroup; grep -c /mnt/quota /proc/mounts; tail -n +2 /proc/swaps | wc -l; \
                  mkdir /sys/fs/cgroup/guest/a && echo delegated";
    let output = guest(&["--user", "1000", "--disk", "ext4", "--swap", "16M"], script).output().unwrap();
    assert_eq!(stdout(&output), "1000\n0::/guest/run\n1\n1\ndelegated\n");
    let output =
        guest(&["--cgroup", "v1"], "id -u; cat /proc/self/cgroup | grep -v :/guest/run; cat /proc/swaps | wc -l")
            .output()
            .unwrap();
    assert_eq!(stdout(&output), "0\n1\n");
}

#[test]
fn a_guest_over_its_time_ends_with_124() {
    if !can_boot("a_guest_over_its_time_ends_with_124") {
        return;
    }
    let start = Instant::now();
    let output = guest(&["--timeout", "8"], "echo before; sleep 600").output().unwrap();
    assert_eq!((stdout(&output).as_str(), output.status.code()), ("before\n", Some(124)));
    assert!(start.elapsed() < Duration::from_secs(60));
}

/// hostfs can be mounted again, writable and whole. What lies behind must be closed all the same.
#[test]
fn the_guests_root_cannot_write_to_the_host() {
    if !can_boot("the_guests_root_cannot_write_to_the_host") {
        return;
    }
    let scratch = std::env::temp_dir().join(format!("sandbox-guest-test-{}", std::process::id()));
    fs::create_dir(&scratch).unwrap();
    let script = format!(
        "mkdir /run/h && mount -t hostfs -o / none /run/h && test -d /run/h{0} && echo mounted
         touch /run/h{0}/file && echo WROTE A FILE
         chmod 777 /run/h{0} && echo CHANGED A MODE
         (exec 3>/run/h/proc/sys/kernel/hostname) && echo OPENED A SYSCTL
         mknod /run/h/dev/guest/disk b 254 0 && echo MADE A DEVICE
         ls -A /run/h/sys; ls /run/h/dev | tr '\\n' ' '",
        scratch.display()
    );
    let output = guest(&[], &script).output().unwrap();
    let text = stdout(&output);
    let said: Vec<_> = text.lines().filter(|line| !line.contains(": ")).collect(); // leaving the tools' errors out
    let empty = fs::read_dir(&scratch).unwrap().next().is_none();
    fs::remove_dir_all(&scratch).unwrap();
    assert_eq!(said, ["mounted", "fd full guest null random shm urandom zero "], "{text}");
    assert!(empty);
}

#[test]
fn killing_the_command_leaves_nothing() {
    if can_boot("killing_the_command_leaves_nothing") {
        leaves_nothing(|family| family[0].1.try_clone().unwrap());
    }
}

#[test]
fn killing_the_keeper_leaves_nothing() {
    if can_boot("killing_the_keeper_leaves_nothing") {
        leaves_nothing(|family| {
            let keeper = family.iter().find(|(pid, _)| command_line(*pid).contains("keep-guest"));
            keeper.expect("a keeper among the processes").1.try_clone().unwrap()
        });
    }
}

/// Starts a guest, kills one of its processes, and waits for all others to end; no image has a name meanwhile or after.
fn leaves_nothing(victim: impl Fn(&[(u32, OwnedFd)]) -> OwnedFd) {
    let mut command = guest(&["--disk", "xfs", "--swap", "16M"], "echo up; sleep 600");
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut up = [0; 3];
    child.stdout.take().unwrap().read_exact(&mut up).unwrap();
    assert_eq!(&up, b"up\n");

    let family = family(&child);
    assert!(family.len() >= 4, "command, keeper, first process and a kernel: {family:?}");
    let images: Vec<_> = family.iter().flat_map(|(pid, _)| open_images(*pid)).collect();
    assert!(
        !images.is_empty() && images.iter().all(|path| path.to_string_lossy().ends_with(" (deleted)")),
        "{images:?}"
    );

    pidfd_send_signal(victim(&family), Signal::KILL).unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    for (pid, pidfd) in &family[1..] {
        assert!(ends(pidfd, deadline), "process {pid} is still there: {}", command_line(*pid));
    }
    child.wait().unwrap();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains("/dev/guest"), "{mounts}");
}

/// The process and all below it, each held by its pidfd: their numbers may be used again later.
fn family(child: &Child) -> Vec<(u32, OwnedFd)> {
    let parents: Vec<(u32, u32)> = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| {
            let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()?;
            Some((pid, parent))
        })
        .collect();
    let mut pids = vec![child.id()];
    let mut index = 0;
    while let Some(pid) = pids.get(index).copied() {
        pids.extend(parents.iter().filter(|(_, parent)| *parent == pid).map(|(child, _)| child));
        index += 1;
    }
    let open = |pid: u32| pidfd_open(Pid::from_raw(pid.try_into().ok()?)?, PidfdFlags::empty()).ok();
    pids.into_iter().filter_map(|pid| Some((pid, open(pid)?))).collect()
}

fn open_images(pid: u32) -> Vec<PathBuf> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .filter(|path| path.to_string_lossy().contains("/disks/"))
        .collect()
}

fn command_line(pid: u32) -> String {
    let bytes = fs::read(Path::new("/proc").join(pid.to_string()).join("cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}

fn ends(pidfd: &OwnedFd, deadline: Instant) -> bool {
    let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now())).unwrap();
    poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&left)).unwrap() == 1
}
