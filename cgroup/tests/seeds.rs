//! The twenty things that a sandbox's groups must get right, by number, as far as this crate alone decides them.
//! The same tests run on v1, v2 and hybrid machines, and skip, saying why, what a kernel lacks.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking, their helpers too")]

mod common;

use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cgroup::{Cgroup, Controller, CpuMax, Error, Layout, Limit, Limits, Needs, Reason, Version};
use common::{Group, Helper, SOON, eventually, group, is_root, name, slack};

#[test]
fn helper() {
    common::act();
}

const MIB: u64 = 1 << 20;

fn pids_max(group: &Cgroup, n: u64) {
    let mut limits = Limits::default();
    limits.pids_max = Some(Limit::Value(n));
    group.set(&limits).unwrap();
    assert_eq!(group.limits().unwrap().pids_max, Some(Limit::Value(n)), "read back");
}

fn memory_max(group: &Cgroup, bytes: u64) {
    let mut limits = Limits::default();
    limits.memory_max = Some(Limit::Value(bytes));
    limits.memory_swap_max = Some(Limit::Value(0));
    group.set(&limits).unwrap();
    assert_eq!(group.limits().unwrap().memory_max, Some(Limit::Value(bytes)), "read back");
}

#[test]
fn seed_01_a_moved_process_leaves_its_memory_behind() {
    let (old, new) = (group("old", [Controller::Memory]), group("new", [Controller::Memory]));
    require!(old.is_ok() && new.is_ok(), "memory", old.err().unwrap_or_default());
    let (old, new) = (old.unwrap(), new.unwrap());
    let mut helper = Helper::in_group(&old, "memory 128");
    helper.go();
    helper.says("touched");
    let before = old.usage().unwrap().memory_current.unwrap();
    assert!(before >= 128 * MIB, "{before}");
    new.attach(helper.pid()).unwrap();
    let (left, arrived) = (old.usage().unwrap(), new.usage().unwrap());
    assert!(left.memory_current.unwrap().abs_diff(before) < slack(), "{before} → {left:?}");
    assert!(arrived.memory_current.unwrap() < slack(), "{arrived:?}");
    assert!(arrived.memory_peak.is_none_or(|peak| peak < slack()), "{arrived:?}");
    old.attach(helper.pid()).unwrap();
    assert!(old.usage().unwrap().memory_current.unwrap().abs_diff(before) < slack());
}

#[test]
fn seed_02_too_much_memory_is_seen_as_an_out_of_memory_kill_and_a_little_less_is_not() {
    let group = group("oom", [Controller::Memory]);
    require!(group.is_ok(), "memory", group.err().unwrap());
    let group = group.unwrap();
    memory_max(&group, 48 * MIB);
    let mut below = Helper::in_group(&group, "memory 32");
    below.go();
    below.says("touched");
    assert_eq!(group.usage().unwrap().oom_kills, Some(0));
    group.kill(SOON).unwrap();

    let mut above = Helper::in_group(&group, "memory 96");
    above.go();
    let status = above.child.wait().unwrap();
    assert_eq!(status.signal(), Some(9), "{status:?}");
    let (usage, events) = (group.usage().unwrap(), group.events().unwrap());
    assert_eq!((usage.oom_kills, events.oom_kill), (Some(1), Some(1)), "{usage:?} {events:?}");
    let counted_here = group.version_of(Controller::Memory) == Some(Version::V2);
    assert!(usage.memory_max_events.is_some_and(|hits| hits > 0) || !counted_here, "{usage:?}");
    // Old kernels charge a page too much now and then.
    assert!(usage.memory_peak.is_none_or(|peak| peak <= 49 * MIB), "{usage:?}");
}

#[test]
fn seed_03_exit_137_a_kill_and_out_of_memory_are_three_things() {
    let group = group("ends", [Controller::Memory]);
    require!(group.is_ok(), "memory", group.err().unwrap());
    let group = group.unwrap();
    memory_max(&group, 48 * MIB);
    let kills = || group.usage().unwrap().oom_kills.unwrap();

    let mut exits = Helper::in_group(&group, "exit 137");
    exits.go();
    let status = exits.child.wait().unwrap();
    assert_eq!((status.code(), status.signal(), kills()), (Some(137), None, 0));

    let mut killed = Helper::in_group(&group, "sleep");
    group.kill(SOON).unwrap();
    let status = killed.child.wait().unwrap();
    assert_eq!((status.code(), status.signal(), kills()), (None, Some(9), 0));

    let mut hog = Helper::in_group(&group, "memory 96");
    hog.go();
    let status = hog.child.wait().unwrap();
    assert_eq!((status.code(), status.signal(), kills()), (None, Some(9), 1));
}

#[test]
fn seed_04_threads_and_zombies_count_and_reaped_children_do_not() {
    let group = group("pids", [Controller::Pids]);
    require!(group.is_ok(), "pids", group.err().unwrap());
    let group = group.unwrap();
    for (act, counted) in [("threads 9", true), ("zombies 9", true), ("sequence 20", false)] {
        let mut helper = Helper::in_group(&group, act);
        let own = group.usage().unwrap().pids_current.unwrap();
        pids_max(&group, own + 3);
        helper.go();
        if counted {
            let said = helper.says("ed ");
            assert!(said.ends_with(" 3 11"), "{act}: three more and then EAGAIN, not {said:?}");
            let usage = group.usage().unwrap();
            assert_eq!(usage.pids_current, Some(own + 3), "{act}");
            assert!(usage.pids_peak.is_none_or(|peak| peak >= own + 3));
            assert!(usage.pids_max_events.unwrap() > 0);
        } else {
            helper.says("all done");
        }
        assert!(group.kill(SOON).unwrap().all_gone());
        drop(helper);
        eventually("the zombies are reaped by init", || group.usage().unwrap().pids_current == Some(0));
    }
}

#[test]
fn seed_05_moving_in_is_never_refused_and_forking_inside_is() {
    let group = group("crowd", [Controller::Pids]);
    require!(group.is_ok(), "pids", group.err().unwrap());
    let group = group.unwrap();
    pids_max(&group, 2);
    let mut crowd: Vec<Helper> = (0..6).map(|_| Helper::in_group(&group, "fork 1")).collect();
    let usage = group.usage().unwrap();
    assert!(usage.pids_current.unwrap() >= 6, "{usage:?}");
    let before = group.events().unwrap().pids_max.unwrap();
    crowd[0].go();
    let said = crowd[0].says("forked");
    assert!(said.ends_with("0 11"), "EAGAIN, not {said:?}");
    assert!(group.events().unwrap().pids_max.unwrap() > before);
    // Lowering below what is there is taken too, and "no limit" is a word.
    pids_max(&group, 0);
    let mut limits = Limits::default();
    limits.pids_max = Some(Limit::Max);
    group.set(&limits).unwrap();
    assert_eq!(group.raw(Controller::Pids).unwrap().read("pids.max").unwrap(), "max\n");
}

#[test]
fn seed_06_a_fork_bomb_is_gone_at_once() {
    let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
    let panics =
        read("/proc/cpuinfo").contains("User Mode Linux") && read("/proc/sys/kernel/osrelease").starts_with("6.12");
    require!(!panics, "a kernel that survives failing forks", "User-Mode Linux 6.12, which panics in mmput");
    let group = group("bomb", [Controller::Pids, Controller::Cpu]);
    require!(group.is_ok(), "pids and cpu", group.err().unwrap());
    let perl = Command::new("perl").arg("-v").stdout(Stdio::null()).status();
    require!(perl.is_ok(), "perl", "none");
    let group = group.unwrap();
    let mut limits = Limits::default();
    limits.pids_max = Some(Limit::Value(60));
    limits.cpu_max = Some(CpuMax::from_millicpus(1000));
    group.set(&limits).unwrap();
    assert_eq!(group.limits().unwrap().pids_max, Some(Limit::Value(60)), "read back before anything starts");
    // Waits for the word, then forks for ever; a second brake ends it after a while whatever happens here.
    let mut bomb = Command::new("timeout")
        .args(["-s", "KILL", "60", "perl", "-e", "<STDIN>; while (1) { fork; select undef, undef, undef, 0.001 }"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    group.attach(bomb.id()).unwrap();
    for pid in std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", bomb.id()))
        .unwrap_or_default()
        .split_whitespace()
    {
        group.attach(pid.parse().unwrap()).unwrap();
    }
    eventually("both are in", || group.pids().unwrap().len() == 2 || bomb_grows(&group, &bomb));
    drop(bomb.stdin.take());
    eventually("the bomb has filled the group", || group.usage().unwrap().pids_current >= Some(50));
    let begin = Instant::now();
    let killed = group.kill(SOON).unwrap();
    let took = begin.elapsed();
    assert!(killed.all_gone() && group.is_empty().unwrap(), "{killed:?}");
    // Emulated machines are slow; a real one takes some milliseconds.
    let most = if common::in_guest() { 10 } else { 1 };
    assert!(took < Duration::from_secs(most), "{took:?}");
    let _ = bomb.wait();
}

/// `timeout` may have started its program after it was looked for.
fn bomb_grows(group: &Group, bomb: &std::process::Child) -> bool {
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", bomb.id())).unwrap_or_default();
    children.split_whitespace().any(|pid| group.attach(pid.parse().unwrap()).is_ok())
}

#[test]
fn seed_07_frozen_processes_can_be_killed_on_both_versions() {
    let layout = Layout::detect().unwrap();
    // On a hybrid machine both ways can be tried: the v2 tree, and the v1 freezer alone.
    for needs in [Needs::new([]), Needs::new([Controller::Freezer]).controllers_only()] {
        let group = match layout.create(&name("frozen"), &needs) {
            Ok(group) => Group(group),
            Err(error) => {
                common::skip("a freezer", &error.to_string());
                continue;
            }
        };
        let mut helper = Helper::in_group(&group, "sleep");
        helper.go();
        helper.says("sleeping");
        group.freeze(SOON).unwrap();
        assert_eq!(group.events().unwrap().frozen, Some(true));
        let killed = group.kill(SOON).unwrap();
        assert!(killed.all_gone(), "{killed:?}");
        assert_eq!(killed.died, [helper.pid()]);
        assert_eq!(helper.child.wait().unwrap().signal(), Some(9));
    }
}

#[test]
fn seed_08_zombies_do_not_hold_up_a_kill_or_a_removal() {
    let group = group("zombie", [Controller::Pids]);
    require!(group.is_ok(), "pids", group.err().unwrap());
    let group = group.unwrap();
    let mut zombie = Helper::in_group(&group, "exit 0");
    let mut running = Helper::in_group(&group, "sleep");
    zombie.go();
    running.go();
    running.says("sleeping");
    eventually("it is a zombie", || group.pids().unwrap() == [running.pid()]);
    let killed = group.kill(SOON).unwrap();
    assert_eq!((killed.died.as_slice(), killed.all_gone()), (&[running.pid()][..], true));
    // Neither has been waited for.
    group.remove(SOON).unwrap();
}

#[test]
fn seed_09_the_thread_that_started_a_process_may_be_gone() {
    let group = group("orphaned", [Controller::Pids]);
    require!(group.is_ok(), "pids", group.err().unwrap());
    let group = group.unwrap();
    let helper = std::thread::scope(|scope| scope.spawn(|| Helper::in_group(&group, "sleep")).join().unwrap());
    assert_eq!(group.pids().unwrap(), [helper.pid()]);
    assert_eq!(group.kill(SOON).unwrap().died, [helper.pid()]);
}

/// A mounted file system of one's own, in a mount namespace of its own, that can be frozen and thawed.
struct Frozen {
    shell: std::process::Child,
}

impl Frozen {
    /// Freezes an ext4 on a loop device and has a process of the group write to it.
    fn with_writer_in(group: &Cgroup, directory: &std::path::Path) -> Result<Self, String> {
        use std::io::{BufRead as _, BufReader};
        let image = directory.join("image");
        let at = directory.join("at");
        std::fs::create_dir_all(&at).map_err(|error| error.to_string())?;
        let script = format!(
            "truncate -s 16M {image} && mkfs.ext4 -q {image} && mount -o loop {image} {at} && fsfreeze -f {at} || exit 1
             sh -c 'read go; echo x >{at}/file' <{directory}/go & echo $!
             read word; fsfreeze -u {at}; wait; umount {at}; echo thawed",
            image = image.display(),
            at = at.display(),
            directory = directory.display(),
        );
        let made = Command::new("mkfifo").arg(directory.join("go")).status().map_err(|error| error.to_string())?;
        assert!(made.success());
        let mut shell = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| error.to_string())?;
        // Opened for both, so that neither side waits for the other.
        let mut go = std::fs::OpenOptions::new().read(true).write(true).open(directory.join("go")).unwrap();
        let mut line = String::new();
        BufReader::new(shell.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let Ok(writer) = line.trim().parse::<u32>() else {
            let mut why = String::new();
            let _ = std::io::Read::read_to_string(shell.stderr.as_mut().unwrap(), &mut why);
            let _ = shell.wait();
            return Err(format!("no ext4 on a loop device in a mount namespace: {}", why.trim()));
        };
        group.attach(writer).map_err(|error| error.to_string())?;
        std::io::Write::write_all(&mut go, b"go\n").unwrap();
        // Any file access may sleep so for a moment; this one stays.
        let mut times = 0;
        eventually("the writer sleeps", || {
            let stat = std::fs::read_to_string(format!("/proc/{writer}/stat")).unwrap_or_default();
            times = if stat.contains(") D ") { times + 1 } else { 0 };
            times > 20
        });
        Ok(Self { shell })
    }

    fn thaw(mut self) {
        drop(self.shell.stdin.take());
        assert!(self.shell.wait().unwrap().success());
    }
}

#[test]
fn seed_10_and_11_a_process_stuck_on_a_frozen_file_system_is_reported_and_holds_up_nobody() {
    require!(is_root(), "root", "another user");
    let group = group("stuck", [Controller::Pids]);
    require!(group.is_ok(), "pids", group.err().unwrap());
    let group = group.unwrap();
    let directory = std::env::temp_dir().join(name("fs"));
    std::fs::create_dir_all(&directory).unwrap();
    let frozen = Frozen::with_writer_in(&group, &directory);
    let Ok(frozen) = frozen else {
        let _ = std::fs::remove_dir_all(&directory);
        common::skip("a loop device and ext4", &frozen.err().unwrap());
        return;
    };
    let writer = group.pids().unwrap()[0];

    let begin = Instant::now();
    let killed = group.kill(Duration::from_millis(500)).unwrap();
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert_eq!(killed.stuck.len(), 1, "{killed:?}");
    let stuck = &killed.stuck[0];
    assert_eq!((stuck.pid, stuck.state, stuck.reason), (writer, 'D', Reason::Uninterruptible), "{stuck:?}");
    assert!(stuck.location.is_some(), "{stuck:?}");
    let error = group.remove(Duration::from_millis(200)).unwrap_err();
    assert!(matches!(&error, Error::StillPopulated { stuck, .. } if stuck[0].pid == writer), "{error}");

    // 11: a handle that goes away waits for nothing.
    let other = Layout::detect().unwrap().parent(&Needs::new([Controller::Pids])).unwrap();
    let other = other.open(group.paths().next().unwrap().file_name().unwrap().to_str().unwrap()).unwrap();
    let begin = Instant::now();
    drop(other);
    assert!(begin.elapsed() < Duration::from_millis(100));

    frozen.thaw();
    eventually("the retry finds nobody", || group.kill(SOON).unwrap().all_gone() && group.is_empty().unwrap());
    group.remove(SOON).unwrap();
    std::fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn seed_10_a_client_of_a_file_system_that_does_not_answer_is_reported_and_dies_with_it() {
    require!(is_root(), "root", "another user");
    // With the daemon elsewhere nothing can end the client; with both in one group they end together.
    for together in [false, true] {
        let group = group("fuse-client", []);
        require!(group.is_ok(), "a group", group.err().unwrap());
        let group = group.unwrap();
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private"]).arg(std::env::current_exe().unwrap());
        let mut daemon = Helper::by(command, "fuse");
        daemon.go();
        let said = daemon.says("client");
        let mut words = said.split(' ').skip(1);
        let client: u32 = words.next().unwrap().parse().unwrap();
        require!(client != 0, "a FUSE file system in a mount namespace", said);
        if together {
            group.attach(daemon.pid()).unwrap();
        }
        group.attach(client).unwrap();
        daemon.says("asked");
        let killed = group.kill(if together { SOON } else { Duration::from_millis(500) }).unwrap();
        if !together {
            assert_eq!(killed.stuck.len(), 1, "{killed:?}");
            assert_eq!(killed.stuck[0].pid, client);
            assert!(matches!(killed.stuck[0].reason, Reason::Uninterruptible | Reason::Exiting), "{killed:?}");
        }
        drop(daemon);
        assert!(group.kill(SOON).unwrap().all_gone());
        group.remove(SOON).unwrap();
        std::fs::remove_dir(words.next().unwrap()).unwrap();
        assert!(!together || killed.all_gone(), "{killed:?}");
    }
}

#[test]
fn seed_12_the_memory_of_a_big_caller_is_not_the_sandboxs() {
    let group = group("embedded", [Controller::Memory]);
    require!(group.is_ok(), "memory", group.err().unwrap());
    let group = group.unwrap();
    let big = common::touch(300);
    let mut helper = Helper::in_group(&group, "sleep");
    helper.go();
    helper.says("sleeping");
    let usage = group.usage().unwrap();
    assert!(usage.memory_peak.or(usage.memory_current).unwrap() < 50 * MIB, "{usage:?}");
    drop(big);
}

#[test]
fn seed_13_cpu_time_holds_that_of_orphans_and_of_the_killed() {
    let group = group("cpu", [Controller::Cpuacct]);
    require!(group.is_ok(), "CPU time of a group", group.err().unwrap());
    let group = group.unwrap();
    let total = || group.usage().unwrap().cpu.unwrap().total;
    let mut helper = Helper::in_group(&group, "orphan 60000");
    let begin = total();
    helper.go();
    helper.says("left");
    eventually("the orphan has burnt its time", || total() - begin >= Duration::from_millis(360));
    let before = total();
    assert!(group.kill(SOON).unwrap().all_gone());
    drop(helper);
    assert!(total() >= before, "what the killed have used stays counted");
    let cpu = group.usage().unwrap().cpu.unwrap();
    if let (Some(user), Some(system)) = (cpu.user, cpu.system) {
        // v1 samples these in ticks.
        let sum = user + system;
        let off = sum.abs_diff(cpu.total);
        assert!(off <= cpu.total / 10 + Duration::from_millis(50), "{cpu:?}");
    }
}

#[test]
fn seed_14_a_group_of_threads_is_removed_without_a_busy() {
    let group = group("busy", [Controller::Pids]);
    require!(group.is_ok(), "pids", group.err().unwrap());
    drop(group);
    let parent = Layout::detect().unwrap().parent(&Needs::new([Controller::Pids])).unwrap();
    for _ in 0..if common::in_guest() { 5 } else { 30 } {
        let group = Group(parent.create(&name("busy")).unwrap());
        let mut helper = Helper::in_group(&group, "threads 8");
        helper.go();
        helper.says("started 8");
        group.remove(SOON).unwrap();
    }
}

#[test]
fn seed_15_odd_numbers_get_the_same_answer_on_both_versions() {
    // What cannot be said in numbers is refused as text already.
    for text in ["-1", "", " 5", "4K", "0x10", "99999999999999999999", "unlimited"] {
        assert!(text.parse::<Limit>().is_err(), "{text:?}");
    }
    let group = group("odd", [Controller::Memory, Controller::Pids]);
    require!(group.is_ok(), "memory and pids", group.err().unwrap());
    let group = group.unwrap();
    let memory = |limit: &str| {
        let mut limits = Limits::default();
        limits.memory_max = Some(limit.parse().unwrap());
        group.set(&limits).map(|applied| format!("{:?}", applied.settings[0].enforced))
    };
    let pids = |limit: &str| {
        let mut limits = Limits::default();
        limits.pids_max = Some(limit.parse().unwrap());
        group.set(&limits).map(|applied| format!("{:?}", applied.settings[0].enforced))
    };
    for (limit, expected) in
        [("1000000", "Limit(Value(999424))"), ("max", "Limit(Max)"), ("16777216", "Limit(Value(16777216))")]
    {
        assert_eq!(memory(limit).unwrap(), expected, "{limit}");
    }
    for limit in ["0", "4095", "9223372036854775807", "18446744073709551615"] {
        assert!(matches!(memory(limit), Err(Error::Invalid { .. })), "{limit}");
    }
    assert_eq!(group.limits().unwrap().memory_max, Some(Limit::Value(16_777_216)), "refused ones change nothing");
    for (limit, expected) in [("0", "Limit(Value(0))"), ("4194304", "Limit(Value(4194304))"), ("max", "Limit(Max)")] {
        assert_eq!(pids(limit).unwrap(), expected, "{limit}");
    }
    assert!(matches!(pids("4194305"), Err(Error::Invalid { .. })));
}

#[test]
fn seed_16_bad_names_are_refused_before_anything_is_made() {
    let parent = Layout::detect().and_then(|layout| layout.parent(&Needs::new([])));
    require!(parent.is_ok(), "a place for groups", parent.err().unwrap());
    let parent = parent.unwrap();
    let before = parent.names().unwrap();
    for bad in ["", ".", "..", "a/b", "../a", ".hidden", "a\nb", "a b", "cgroup.foo", "memory.max", "tasks"] {
        assert!(matches!(parent.create(bad), Err(Error::Invalid { .. })), "{bad:?}");
        assert!(matches!(parent.open(bad), Err(Error::Invalid { .. })), "{bad:?}");
    }
    let ours = |names: Vec<String>| names.into_iter().filter(|name| !name.starts_with("sandbox-")).collect::<Vec<_>>();
    assert_eq!(ours(parent.names().unwrap()), ours(before));
}

/// This test binary where every user can run it.
fn for_all_users() -> (std::path::PathBuf, std::path::PathBuf) {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = std::env::temp_dir().join(name("bin"));
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755)).unwrap();
    let binary = directory.join("test");
    std::fs::copy(std::env::current_exe().unwrap(), &binary).unwrap();
    std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755)).unwrap();
    (directory, binary)
}

/// What the life of a group is like for another user in the given group.
fn life_of_user(uid: u32, group: Option<&Cgroup>, act: &str) -> String {
    use std::os::unix::process::CommandExt as _;
    let (directory, binary) = for_all_users();
    let mut command = Command::new(&binary);
    command.uid(uid).gid(uid);
    let mut helper = Helper::by(command, act);
    if let Some(group) = group {
        group.attach(helper.pid()).unwrap();
    }
    helper.go();
    let answer = helper.says("answer");
    drop(helper);
    std::fs::remove_dir_all(directory).unwrap();
    answer
}

#[test]
fn seed_17_without_delegation_the_answer_is_typed_and_with_it_everything_works() {
    require!(is_root(), "root, to become somebody else", "another user");
    let answer = life_of_user(65_534, None, "life");
    assert!(answer.contains("NotDelegated"), "{answer}");

    // As a service manager delegates: the directory, and the files that place processes.
    let outer = group("outer", [Controller::Pids]);
    require!(outer.is_ok(), "pids", outer.err().unwrap());
    let outer = outer.unwrap();
    // With this controller alone on v2.
    let delegated = outer.child("delegated", [Controller::Pids]).unwrap();
    let inner = delegated.child("inner", [Controller::Pids]).unwrap();
    let owned = |path: &std::path::Path| {
        let _ = std::os::unix::fs::chown(path, Some(65_534), Some(65_534));
    };
    for directory in delegated.paths().chain(inner.paths()) {
        owned(directory);
        for file in ["cgroup.procs", "cgroup.threads", "cgroup.subtree_control", "tasks"] {
            owned(&directory.join(file));
        }
    }
    for act in ["life", "life 1"] {
        assert_eq!(life_of_user(65_534, Some(&inner), act), "answer lived 1");
    }
    assert!(inner.paths().all(|path| std::fs::read_dir(path).unwrap().all(|entry| !entry.unwrap().path().is_dir())));
}

#[test]
fn seed_18_a_realtime_process_without_a_share_is_a_typed_error() {
    let group = group("realtime", [Controller::Cpu]);
    require!(group.is_ok(), "cpu", group.err().unwrap());
    let group = group.unwrap();
    let share = group.raw(Controller::Cpu).unwrap().read("cpu.rt_runtime_us");
    require!(share.is_ok(), "a kernel with realtime group scheduling, v1", share.unwrap_err());
    let mut child = match Command::new("chrt").args(["-r", "1", "sleep", "1000"]).spawn() {
        Ok(child) => child,
        Err(error) => return common::skip("chrt", &error.to_string()),
    };
    // Until chrt has changed the policy: field 41 of stat, 2 is SCHED_RR.
    let policy = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(38)).map(str::to_owned)
    };
    let mut realtime = false;
    for _ in 0..200 {
        realtime = policy(child.id()).as_deref() == Some("2");
        if realtime || child.try_wait().unwrap().is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let answer = group.attach(child.id());
    let _ = child.kill();
    let _ = child.wait();
    require!(realtime, "permission to make a process realtime", "none");
    assert!(matches!(answer, Err(Error::Unsupported { .. })), "{answer:?}");
}

#[test]
fn seed_19_the_callers_namespaces_are_what_they_were() {
    let namespaces = || {
        ["pid", "pid_for_children", "cgroup", "mnt", "user", "net", "ipc", "uts"]
            .map(|one| std::fs::read_link(format!("/proc/thread-self/ns/{one}")).ok())
    };
    let before = namespaces();
    let group = group("same", [Controller::Pids]);
    require!(group.is_ok(), "pids", group.err().unwrap());
    let group = group.unwrap();
    let helper = Helper::in_group(&group, "sleep");
    group.freeze(SOON).unwrap();
    group.kill(SOON).unwrap();
    drop(helper);
    group.remove(SOON).unwrap();
    assert_eq!(namespaces(), before);
}

#[test]
fn seed_20_no_number_that_is_no_process_is_ever_signalled_or_moved() {
    let group = group("nobody", [Controller::Pids]);
    require!(group.is_ok(), "pids", group.err().unwrap());
    let group = group.unwrap();
    // -1 and 0 as a careless caller would pass them on.
    for pid in [0, u32::MAX, u32::MAX - 1, 1 << 31] {
        assert!(matches!(group.attach(pid), Err(Error::Invalid { .. })), "{pid}");
        assert!(matches!(group.attach_thread(pid), Err(Error::Invalid { .. })), "{pid}");
    }
    let mut bystander = Helper::new("sleep");
    bystander.go();
    bystander.says("sleeping");
    let killed = group.kill(SOON).unwrap();
    assert_eq!((killed.died.len(), killed.all_gone()), (0, true));
    group.kill_now().unwrap();
    assert!(bystander.child.try_wait().unwrap().is_none());
}
