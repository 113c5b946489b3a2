//! One test per promise that is not among the seeds: events, pressure, devices, threads, placement, kills in odd waits.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking, their helpers too")]

mod common;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cgroup::{
    Cgroup, Controller, CpuMax, Device, DeviceKind, DeviceRule, Devices, Error, HugetlbMax, IoMax, Knob, Layout, Limit,
    Limits, Needs, Reason, Resource, Share, SwapControl, Value, Version,
};
use common::{Group, Helper, SOON, USUAL, eventually, group, is_root, name};

#[test]
fn helper() {
    common::act();
}

const MIB: u64 = 1 << 20;

#[test]
fn a_watch_wakes_for_out_of_memory_and_tells_how_many() {
    let group = group("watch-oom", [Controller::Memory]);
    require!(group.is_ok(), "memory", group.err().unwrap());
    let group = group.unwrap();
    let mut limits = Limits::default();
    limits.memory_max = Some(Limit::Value(32 * MIB));
    limits.memory_swap_max = Some(Limit::Value(0));
    group.set(&limits).unwrap();
    let mut watch = group.watch().unwrap();
    assert_eq!(watch.wait(Duration::from_millis(50)).unwrap(), None, "nothing has happened");
    let mut hog = Helper::in_group(&group, "memory 64");
    hog.go();
    let until = Instant::now() + SOON;
    loop {
        let events = watch.wait(until - Instant::now()).unwrap().expect("an event before the time is over");
        if events.oom_kill == Some(1) {
            break;
        }
    }
    let _ = hog.child.wait();
}

#[test]
fn a_watch_wakes_for_a_refused_fork() {
    let group = group("watch-pids", [Controller::Pids]);
    require!(group.is_ok(), "pids", group.err().unwrap());
    let group = group.unwrap();
    let mut limits = Limits::default();
    limits.pids_max = Some(Limit::Value(1));
    group.set(&limits).unwrap();
    let mut helper = Helper::in_group(&group, "fork 1");
    let mut watch = group.watch().unwrap();
    let before = watch.read().unwrap().pids_max.unwrap();
    helper.go();
    eventually("the refusal is announced", || {
        watch.wait(SOON).unwrap().is_some_and(|events| events.pids_max > Some(before))
    });
}

#[test]
fn a_watch_wakes_when_the_last_process_has_gone() {
    let group = group("watch-empty", []);
    require!(group.as_ref().is_ok_and(|g| g.unified().is_some()), "a v2 tree", "none");
    let group = group.unwrap();
    let helper = Helper::in_group(&group, "sleep");
    let mut watch = group.watch().unwrap();
    assert_eq!(watch.read().unwrap().populated, Some(true));
    group.kill_now().unwrap();
    let begin = Instant::now();
    eventually("it is announced", || watch.wait(SOON).unwrap().is_some_and(|events| events.populated == Some(false)));
    assert!(begin.elapsed() < SOON / 2, "woken by the kernel, not by the end of the wait: {:?}", begin.elapsed());
    drop(helper);
    // As a descriptor for a loop of one's own it falls quiet when what has happened was read.
    eventually("it is quiet", || {
        watch.read().unwrap();
        let mut fds = [rustix::event::PollFd::new(&watch, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut fds, Some(&rustix::event::Timespec::default())).unwrap() == 0
    });
}

#[test]
fn a_removed_group_ends_a_watch_and_a_meter_with_an_error() {
    let group = group("watch-gone", [Controller::Pids]);
    require!(group.is_ok(), "pids", group.err().unwrap());
    let group = group.unwrap();
    let (mut watch, mut meter) = (group.watch().unwrap(), group.meter().unwrap());
    group.remove(SOON).unwrap();
    assert_eq!(watch.wait(SOON).unwrap_err().errno(), Some(19), "ENODEV");
    assert_eq!(meter.read().unwrap_err().errno(), Some(19), "ENODEV");
}

#[test]
fn pressure_is_read_and_triggers_fire() {
    let group = group("pressure", [Controller::Cpu]);
    let pressure = group.as_ref().ok().and_then(|group| group.pressure(Resource::Cpu).unwrap());
    require!(pressure.is_some(), "cgroup v2 with pressure information", "none");
    let group = group.unwrap();
    let ask = |window: u64| {
        group.pressure_trigger(Resource::Cpu, Share::Some, Duration::from_millis(50), Duration::from_millis(window))
    };
    // Without the capability only long windows are taken.
    let trigger = ask(500).or_else(|_| ask(2000));
    for (stall, window) in [(0, 1_000), (2_000, 1_000), (100, 499), (100, 10_001)] {
        let (stall, window) = (Duration::from_millis(stall), Duration::from_millis(window));
        let odd = group.pressure_trigger(Resource::Cpu, Share::Some, stall, window);
        assert!(matches!(odd, Err(Error::Invalid { .. })), "{stall:?} {window:?}");
    }
    require!(trigger.is_ok(), "the right to set a trigger", trigger.unwrap_err());
    let trigger = trigger.unwrap();
    // Two that want all of the time and may have a tenth of it.
    let mut limits = Limits::default();
    limits.cpu_max = Some(CpuMax::from_millicpus(100));
    group.set(&limits).unwrap();
    let mut spinners: Vec<Helper> = (0..2).map(|_| Helper::in_group(&group, "spin 60000")).collect();
    spinners.iter_mut().for_each(Helper::go);
    assert!(trigger.wait(SOON).unwrap());
    assert!(group.pressure(Resource::Cpu).unwrap().unwrap().some.unwrap().total > Duration::from_millis(50));
}

#[test]
fn a_vfork_parent_is_in_uninterruptible_sleep_and_dies_all_the_same() {
    let group = group("vfork", []);
    require!(group.is_ok(), "a group", group.err().unwrap());
    let group = group.unwrap();
    let mut helper = Helper::in_group(&group, "vfork");
    helper.go();
    let said = helper.says("now");
    let pid = helper.pid();
    eventually("the parent waits for its child's exec", || {
        // Which of the helper's threads it is, is up to the test harness in it.
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let stats = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("stat")).ok());
        stats.into_iter().any(|stat| stat.contains(") D "))
    });
    let killed = group.kill(SOON).unwrap();
    assert!(killed.all_gone() && killed.died.contains(&pid), "{killed:?}");
    std::fs::remove_file(said.trim_start_matches("now ")).unwrap();
    let wait = killed.killable_wait.iter().find(|one| one.pid == pid).unwrap();
    assert_eq!((wait.state, wait.reason), ('D', Reason::Killable), "{killed:?}");
}

#[test]
fn a_process_frozen_by_a_foreign_v1_freezer_is_named_and_dies_when_thawed() {
    let layout = Layout::detect().unwrap();
    let v1 = layout.version_of(Controller::Freezer) == Some(Version::V1) && layout.unified().is_some();
    require!(v1, "a hybrid machine with a v1 freezer", layout.describe());
    let foreign = Group(layout.create(&name("ice"), &Needs::new([Controller::Freezer]).controllers_only()).unwrap());
    let group = group("stuck-v1", []).unwrap();
    let helper = Helper::in_group(&group, "sleep");
    foreign.attach(helper.pid()).unwrap();
    foreign.freeze(SOON).unwrap();
    let killed = group.kill(Duration::from_millis(300)).unwrap();
    assert_eq!(killed.stuck.len(), 1, "{killed:?}");
    assert_eq!((killed.stuck[0].pid, killed.stuck[0].reason), (helper.pid(), Reason::Frozen), "{killed:?}");
    assert!(killed.died.is_empty());
    foreign.thaw().unwrap();
    assert!(group.kill(SOON).unwrap().all_gone());
}

#[test]
fn a_thread_of_the_caller_in_a_v1_group_is_never_signalled() {
    let layout = Layout::detect().unwrap();
    let v1 = layout.version_of(Controller::Pids) == Some(Version::V1);
    require!(v1, "pids on cgroup v1", layout.describe());
    let parked = Group(layout.create(&name("parked"), &Needs::new([Controller::Pids]).controllers_only()).unwrap());
    let (ready, wait) = (std::sync::Barrier::new(2), std::sync::Barrier::new(2));
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let tid = std::fs::read_link("/proc/thread-self").unwrap();
            parked.attach_thread(tid.file_name().unwrap().to_str().unwrap().parse().unwrap()).unwrap();
            ready.wait();
            wait.wait();
        });
        ready.wait();
        // A child of the parked thread's group beside it: that one does die.
        let helper = Helper::in_group(&parked, "sleep");
        let killed = parked.kill(Duration::from_secs(2)).unwrap();
        assert_eq!(killed.died, [helper.pid()], "{killed:?}");
        assert_eq!(killed.stuck.len(), 1);
        assert_eq!((killed.stuck[0].pid, killed.stuck[0].reason), (std::process::id(), Reason::OwnTask));
        wait.wait();
        thread.join().unwrap();
    });
}

#[test]
fn the_callers_own_group_cannot_be_killed_frozen_or_removed() {
    let layout = Layout::detect().unwrap();
    let own = layout.own(&Needs::new([])).unwrap();
    require!(own.unified().is_some(), "a v2 tree", layout.describe());
    assert!(matches!(own.kill_now(), Err(Error::Invalid { .. })));
    assert!(matches!(own.freeze(SOON), Err(Error::Invalid { .. })));
    assert!(matches!(own.remove(SOON), Err(Error::Invalid { .. })));
}

/// Reads and writes of /dev/null and /dev/zero by a shell in the group.
fn opens(group: &Cgroup) -> String {
    let script = "read go; for d in null zero; do (: </dev/$d) 2>/dev/null && echo -n r || echo -n -; done; echo";
    let mut shell = Command::new("/bin/sh")
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    group.attach(shell.id()).unwrap();
    std::io::Write::write_all(shell.stdin.as_mut().unwrap(), b"go\n").unwrap();
    String::from_utf8(shell.wait_with_output().unwrap().stdout).unwrap().trim().to_owned()
}

#[test]
fn only_the_allowed_devices_can_be_opened() {
    let zero = DeviceRule::new(DeviceKind::Char).major(1).minor(5).access(true, false, false);
    let null = DeviceRule::new(DeviceKind::Char).major(1).minor(3).access(true, true, false);
    // By v1 lists where there are any, and by a program where there is a v2 tree.
    for needs in [Needs::new([Controller::Devices]).controllers_only(), Needs::new([])] {
        let group = match Layout::detect().unwrap().create(&name("devices"), &needs) {
            Ok(group) => Group(group),
            Err(error) => {
                common::skip("devices", &error.to_string());
                continue;
            }
        };
        assert_eq!(opens(&group), "rr");
        match group.set_devices(&Devices::Only(vec![zero, null])) {
            Err(error @ Error::Unsupported { .. }) => {
                common::skip("device rules", &error.to_string());
                continue;
            }
            Err(error) if !is_root() => {
                common::skip("root", &error.to_string());
                continue;
            }
            other => assert!(!other.unwrap().is_empty()),
        }
        assert_eq!(opens(&group), "rr");
        // The shell itself needs /dev/null for its errors only.
        group.set_devices(&Devices::Only(vec![null])).unwrap();
        assert_eq!(opens(&group), "r-");
        group.set_devices(&Devices::All).unwrap();
        assert_eq!(opens(&group), "rr");
        assert!(group.set_devices(&Devices::Only(vec![null.minor(1 << 20)])).is_err());
    }
}

#[test]
fn single_threads_go_into_threaded_groups() {
    let group = group("domain", []);
    require!(group.is_ok(), "a group", group.err().unwrap());
    let group = group.unwrap();
    let inner = group.child("threads", []).unwrap();
    inner.make_threaded().unwrap();
    let mut helper = Helper::in_group(&group, "threads 2");
    helper.go();
    helper.says("started 2");
    let tids = group.threads().unwrap();
    assert!(tids.len() >= 3, "{tids:?}");
    let moved = *tids.iter().find(|&&tid| tid != helper.pid()).unwrap();
    inner.attach_thread(moved).unwrap();
    assert_eq!(inner.threads().unwrap(), [moved]);
    assert!(!inner.is_empty().unwrap());
    // A threaded group has no switch of its own: its threads die with their process.
    assert!(group.kill(SOON).unwrap().all_gone());
}

#[test]
fn a_child_is_born_in_the_group() {
    let group = group("born", [Controller::Pids]);
    require!(group.is_ok(), "pids", group.err().unwrap());
    let group = group.unwrap();
    let (pid, gate) = match common::born::in_group(&group) {
        Ok(born) => born,
        Err(error) => return common::skip("clone3 with CLONE_INTO_CGROUP", &error.to_string()),
    };
    let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let pids = group.pids().unwrap();
    let usage = group.usage().unwrap();
    drop(gate);
    common::born::reap(pid);
    assert_eq!(pids, [pid], "{cgroup}");
    assert_eq!(usage.pids_current, Some(1), "{cgroup}");
}

#[test]
fn cpus_are_limited_to_a_list_and_back() {
    let group = group("cpuset", [Controller::Cpuset]);
    require!(group.is_ok(), "cpuset", group.err().unwrap());
    let group = group.unwrap();
    let mut limits = Limits::default();
    limits.cpuset_cpus = Some([0].into_iter().collect());
    group.set(&limits).unwrap();
    // Also on v1, where a group with empty lists would refuse it.
    let helper = Helper::in_group(&group, "sleep");
    let status = std::fs::read_to_string(format!("/proc/{}/status", helper.pid())).unwrap();
    assert!(status.contains("Cpus_allowed_list:\t0\n"), "{status}");
    limits.cpuset_cpus = Some([4000].into_iter().collect());
    let error = group.set(&limits).unwrap_err();
    assert!(error.errno().is_some(), "{error}");
    assert_eq!(group.limits().unwrap().cpuset_cpus, Some([0].into_iter().collect()));
}

#[test]
fn rates_of_a_disk_are_set_changed_and_lifted() {
    let group = group("io", [Controller::Io]);
    require!(group.is_ok(), "io", group.err().unwrap());
    let group = group.unwrap();
    let disk = std::fs::read_dir("/sys/block").into_iter().flatten().flatten().find_map(|entry| {
        let text = std::fs::read_to_string(entry.path().join("dev")).ok()?;
        text.trim().parse::<Device>().ok()
    });
    require!(disk.is_some(), "a block device", "none");
    let mut io = IoMax::new(disk.unwrap());
    io.read_bytes = Some(Limit::Value(10 * MIB));
    io.write_ops = Some(Limit::Value(500));
    let mut limits = Limits::default();
    limits.io_max = vec![io];
    match group.set(&limits) {
        Err(error) if error.errno() == Some(2) || matches!(error, Error::Unsupported { .. }) => {
            return common::skip("a kernel with throttling", &error.to_string());
        }
        other => other.unwrap(),
    };
    let read = group.limits().unwrap().io_max;
    assert_eq!(read.len(), 1);
    assert_eq!((read[0].read_bytes, read[0].write_ops), (io.read_bytes, io.write_ops));
    assert_eq!(read[0].write_bytes, Some(Limit::Max));
    // One rate is changed, the others stay; a bad second device takes all of it back.
    let mut change = IoMax::new(io.device);
    change.read_bytes = Some(Limit::Value(MIB));
    let mut nowhere = IoMax::new(Device { major: 4000, minor: 1 });
    nowhere.read_bytes = Some(Limit::Value(MIB));
    limits.io_max = vec![change, nowhere];
    group.set(&limits).unwrap_err();
    assert_eq!(group.limits().unwrap().io_max, read);
    io.read_bytes = Some(Limit::Max);
    io.write_ops = Some(Limit::Max);
    limits.io_max = vec![io];
    group.set(&limits).unwrap();
    assert!(group.limits().unwrap().io_max.iter().all(|io| io.read_bytes == Some(Limit::Max)));
}

#[test]
fn huge_pages_are_limited_by_size() {
    // On a hybrid machine the root of the v2 tree would have to be told to offer it: not on a machine that others use.
    let layout = Layout::detect().unwrap();
    let at_root = !common::in_guest() && layout.unified().is_some_and(|v2| v2.own.as_os_str().is_empty());
    require!(!at_root, "a v2 root that may be changed, as in a guest", layout.describe());
    let group = group("huge", [Controller::Hugetlb]);
    require!(group.is_ok(), "hugetlb", group.err().unwrap());
    let group = group.unwrap();
    let sizes = group.limits().unwrap().hugetlb_max;
    assert!(!sizes.is_empty() && sizes.iter().all(|size| size.used == Some(Limit::Max)), "{sizes:?}");
    let mut huge = HugetlbMax::new(sizes[0].page_size);
    huge.used = Some(Limit::Value(huge.page_size * 3 + 1));
    huge.reserved = Some(Limit::Value(0));
    let mut limits = Limits::default();
    limits.hugetlb_max = vec![huge];
    let applied = group.set(&limits).unwrap();
    let enforced = Value::Hugetlb { page_size: huge.page_size, limit: Limit::Value(huge.page_size * 3) };
    assert_eq!(applied.get(Knob::HugetlbMax).unwrap().enforced, enforced);
    assert_eq!(group.hugetlb_usage().unwrap()[0].used, 0);
}

#[test]
fn a_quota_throttles_and_both_halves_of_it_can_change_in_any_order() {
    let group = group("quota", [Controller::Cpu]);
    require!(group.is_ok(), "cpu", group.err().unwrap());
    let group = group.unwrap();
    let inner = group.child("inner", [Controller::Cpu]).unwrap();
    let set = |group: &Cgroup, max: CpuMax| {
        let mut limits = Limits::default();
        limits.cpu_max = Some(max);
        group.set(&limits)
    };
    let ms = Duration::from_millis;
    set(&group, CpuMax::from_millicpus(500)).unwrap();
    // On v1 no step on the way may exceed the parent's half.
    for (quota, period) in [(500_000, 1000), (5_000, 10), (40_000, 100), (400_000, 1000), (20_000, 50)] {
        let max = CpuMax::new(Limit::Value(quota)).with_period(ms(period));
        set(&inner, max).unwrap();
        assert_eq!(inner.limits().unwrap().cpu_max, Some(max));
    }
    set(&inner, CpuMax::from_millicpus(100)).unwrap();
    let mut helper = Helper::in_group(&inner, "spin 60000");
    helper.go();
    helper.says("spinning");
    eventually("it is throttled", || {
        inner.usage().unwrap().throttled.is_some_and(|t| t.throttled > 3 && !t.time.is_zero())
    });
}

#[test]
fn weights_and_idleness() {
    let group = group("weight", [Controller::Cpu]);
    require!(group.is_ok(), "cpu", group.err().unwrap());
    let group = group.unwrap();
    let weight = |weight: u32| {
        let mut limits = Limits::default();
        limits.cpu_weight = Some(weight);
        group.set(&limits)
    };
    assert_eq!(group.limits().unwrap().cpu_weight, Some(100), "the default is the same on both versions");
    for good in [1, 50, 100, 1000, 10_000] {
        weight(good).unwrap();
        assert!(group.limits().unwrap().cpu_weight.unwrap().abs_diff(good) <= 1, "{good}");
    }
    for bad in [0, 10_001] {
        assert!(matches!(weight(bad), Err(Error::Invalid { .. })));
    }
    let mut idle = Limits::default();
    idle.cpu_idle = Some(true);
    match group.set(&idle) {
        Err(Error::Unsupported { .. }) => assert_eq!(group.limits().unwrap().cpu_idle, None),
        other => {
            other.unwrap();
            assert_eq!(group.limits().unwrap().cpu_idle, Some(true));
        }
    }
}

#[test]
fn memory_limits_move_up_and_down_with_their_swap() {
    let group = group("swap", [Controller::Memory]);
    require!(group.is_ok(), "memory", group.err().unwrap());
    let group = group.unwrap();
    let control = group.swap_control().unwrap().unwrap();
    let set = |memory: Limit, swap: Option<Limit>| {
        let mut limits = Limits::default();
        (limits.memory_max, limits.memory_swap_max) = (Some(memory), swap);
        group.set(&limits).unwrap();
        let read = group.limits().unwrap();
        assert_eq!(read.memory_max, Some(memory));
        if control == SwapControl::Accounted {
            if let Some(swap) = swap {
                assert_eq!(read.memory_swap_max, Some(swap));
            }
        }
        read.memory_swap_max
    };
    let mib = |n: u64| Limit::Value(n * MIB);
    if control == SwapControl::Unaccounted {
        return common::skip("swap accounting, or no swap", "neither");
    }
    set(mib(64), Some(mib(0)));
    set(mib(256), Some(mib(0)));
    if control == SwapControl::Accounted {
        set(mib(32), Some(mib(16)));
        // Memory alone: what was said of swap stays.
        assert_eq!(set(mib(128), None), Some(mib(16)));
        assert_eq!(set(mib(16), None), Some(mib(16)));
        set(mib(16), Some(Limit::Max));
    }
    set(Limit::Max, Some(Limit::Max));
}

#[test]
fn memory_below_what_is_used_is_a_typed_answer_on_v1_and_a_kill_on_v2() {
    // The writer loops in the kernel until the victim has gone, which on one CPU without preemption never gets to run.
    let old = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().starts_with("5.");
    let loops = old && std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default().contains("User Mode Linux");
    require!(!loops, "a kernel that lets the victim run", "User-Mode Linux 5.10 on one CPU");
    let group = group("shrink", [Controller::Memory]);
    require!(group.is_ok(), "memory", group.err().unwrap());
    let group = group.unwrap();
    let mut limits = Limits::default();
    (limits.memory_max, limits.memory_swap_max) = (Some(Limit::Value(128 * MIB)), Some(Limit::Value(0)));
    group.set(&limits).unwrap();
    let mut helper = Helper::in_group(&group, "memory 64");
    helper.go();
    helper.says("touched");
    limits.memory_max = Some(Limit::Value(16 * MIB));
    let answer = group.set(&limits);
    if group.version_of(Controller::Memory) == Some(Version::V1) {
        let error = answer.unwrap_err();
        assert_eq!(error.errno(), Some(16), "EBUSY: {error}");
        assert!(error.hint().is_some());
        assert_eq!(group.limits().unwrap().memory_max, Some(Limit::Value(128 * MIB)), "put back whole");
    } else {
        answer.unwrap();
        eventually("it was killed", || group.usage().unwrap().oom_kills > Some(0));
    }
}

#[test]
fn the_peak_can_be_set_back_where_the_kernel_can() {
    let group = group("peak", [Controller::Memory]);
    require!(group.is_ok(), "memory", group.err().unwrap());
    let group = group.unwrap();
    let peak = group.memory_peak_meter();
    require!(peak.is_ok(), "Linux 5.19 on v2", peak.unwrap_err());
    let peak = peak.unwrap();
    let mut helper = Helper::in_group(&group, "memory 64");
    helper.go();
    helper.says("touched");
    drop(helper);
    assert!(peak.read().unwrap() >= Some(64 * MIB));
    eventually("the memory is given back", || group.usage().unwrap().memory_current < Some(8 * MIB));
    match peak.reset() {
        Err(error @ Error::Unsupported { .. }) => common::skip("Linux 6.12 on v2", &error.to_string()),
        other => {
            other.unwrap();
            assert!(peak.read().unwrap() < Some(32 * MIB));
            if group.version_of(Controller::Memory) == Some(Version::V2) {
                assert!(group.usage().unwrap().memory_peak >= Some(64 * MIB), "other readers keep theirs");
            }
        }
    }
}

#[test]
fn statistics_tell_what_the_memory_is() {
    let group = group("stat", [Controller::Memory]);
    require!(group.is_ok(), "memory", group.err().unwrap());
    let group = group.unwrap();
    let mut helper = Helper::in_group(&group, "memory 32");
    helper.go();
    helper.says("touched");
    let mut anon = None;
    // The kernel sums them up every two seconds.
    eventually("the memory shows as anonymous", || {
        anon = group.memory_stat().unwrap().unwrap().anon;
        anon >= Some(30 * MIB)
    });
    assert!(group.knobs().any(|(knob, by)| knob == Knob::MemoryMax && by.starts_with("cgroup v")));
    if group.unified().is_some() {
        assert_eq!(group.descendants().unwrap().unwrap().visible, 0);
    }
}

#[test]
fn what_is_used_below_a_group_counts_in_it() {
    let group = group("above", [Controller::Memory]);
    require!(group.is_ok(), "memory", group.err().unwrap());
    let group = group.unwrap();
    // Before Linux 5.11 v1 had to be told to.
    let inner = group.child("inner", [Controller::Memory]).unwrap();
    let mut helper = Helper::in_group(&inner, "memory 32");
    helper.go();
    helper.says("touched");
    for group in [&group.0, &inner] {
        assert!(group.usage().unwrap().memory_current >= Some(30 * MIB), "{:?}", group.usage());
    }
}

#[test]
fn what_a_group_was_made_without_is_a_typed_error() {
    let group = group("without", [Controller::Pids]);
    require!(group.is_ok(), "pids", group.err().unwrap());
    let group = Layout::detect().unwrap().create(&name("without"), &Needs::new([Controller::Pids]).controllers_only());
    let group = Group(group.unwrap());
    if group.version_of(Controller::Hugetlb).is_none() {
        let mut limits = Limits::default();
        limits.hugetlb_max = vec![HugetlbMax::new(2 * MIB)];
        limits.hugetlb_max[0].used = Some(Limit::Value(0));
        assert!(matches!(group.set(&limits), Err(Error::Unsupported { .. })));
        assert!(matches!(group.raw(Controller::Hugetlb), Err(Error::Unsupported { .. })));
    }
    for bad in ["", "..", "a/b", "/etc/passwd"] {
        assert!(matches!(group.raw(Controller::Pids).unwrap().read(bad), Err(Error::Invalid { .. })));
    }
    // On v2 a group has what its parent offers, asked for or not.
    let counted = group.version_of(Controller::Memory).is_some();
    assert_eq!(group.usage().unwrap().memory_current.is_some(), counted, "unknown is not 0");
    assert!(Layout::detect().unwrap().open("/../..", &Needs::new([])).is_err());
    assert_eq!(Layout::detect().unwrap().open("/sandbox-not-there", &Needs::new([])).unwrap_err().errno(), Some(2));
    let _ = USUAL;
}
