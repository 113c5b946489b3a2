//! System calls that widen what a program can reach in the kernel.

use std::collections::BTreeMap;

use libc::{EACCES, EAFNOSUPPORT, ENOENT, ENOSYS, EPERM, EROFS};
use sandbox::End;

use crate::common::acts::{answer, say};
use crate::common::{act, ask, ask_unprotected, is_guest, is_root, said, sh, text, unprotected};

const NEW: [(&str, i32); 7] = [
    ("user", libc::CLONE_NEWUSER),
    ("mount", libc::CLONE_NEWNS),
    ("net", libc::CLONE_NEWNET),
    ("pid", libc::CLONE_NEWPID),
    ("ipc", libc::CLONE_NEWIPC),
    ("uts", libc::CLONE_NEWUTS),
    ("cgroup", libc::CLONE_NEWCGROUP),
];

/// Name, what it must be answered with, number, and arguments with which it does nothing should it get through.
const CALLS: &[(&str, i32, [i64; 7])] = &[
    // 36, 37
    ("clone3", ENOSYS, [libc::SYS_clone3, 0, 0, 0, 0, 0, 0]),
    ("setns", EPERM, [libc::SYS_setns, -1, 0, 0, 0, 0, 0]),
    // 38
    ("mount", EPERM, [libc::SYS_mount, 0, 0, 0, 0, 0, 0]),
    ("umount2", EPERM, [libc::SYS_umount2, 0, 0, 0, 0, 0, 0]),
    ("pivot_root", EPERM, [libc::SYS_pivot_root, 0, 0, 0, 0, 0, 0]),
    ("chroot", EPERM, [libc::SYS_chroot, 0, 0, 0, 0, 0, 0]),
    ("fsopen", ENOSYS, [libc::SYS_fsopen, 0, 0, 0, 0, 0, 0]),
    ("fsconfig", ENOSYS, [libc::SYS_fsconfig, -1, 0, 0, 0, 0, 0]),
    ("fsmount", ENOSYS, [libc::SYS_fsmount, -1, 0, 0, 0, 0, 0]),
    ("fspick", ENOSYS, [libc::SYS_fspick, -1, 0, 0, 0, 0, 0]),
    ("open_tree", ENOSYS, [libc::SYS_open_tree, -1, 0, 0, 0, 0, 0]),
    ("move_mount", ENOSYS, [libc::SYS_move_mount, -1, 0, -1, 0, 0, 0]),
    ("mount_setattr", ENOSYS, [libc::SYS_mount_setattr, -1, 0, 0, 0, 0, 0]),
    // 43, 44
    ("io_uring_setup", ENOSYS, [libc::SYS_io_uring_setup, 1, 0, 0, 0, 0, 0]),
    ("io_uring_enter", ENOSYS, [libc::SYS_io_uring_enter, -1, 0, 0, 0, 0, 0]),
    ("vsock", EAFNOSUPPORT, [libc::SYS_socket, 40, 1, 0, 0, 0, 0]),
    ("packet", EAFNOSUPPORT, [libc::SYS_socket, 17, 3, 0, 0, 0, 0]),
    ("alg", EAFNOSUPPORT, [libc::SYS_socket, 38, 5, 0, 0, 0, 0]),
    ("netlink_audit", EAFNOSUPPORT, [libc::SYS_socket, 16, 3, 9, 0, 0, 0]),
    ("netlink_netfilter", EAFNOSUPPORT, [libc::SYS_socket, 16, 3, 12, 0, 0, 0]),
    ("sctp", EAFNOSUPPORT, [libc::SYS_socket, 2, 1, 132, 0, 0, 0]),
    // 47
    ("keyctl", ENOSYS, [libc::SYS_keyctl, 0, -3, 0, 0, 0, 0]),
    ("add_key", ENOSYS, [libc::SYS_add_key, 0, 0, 0, 0, 0, 0]),
    ("request_key", ENOSYS, [libc::SYS_request_key, 0, 0, 0, 0, 0, 0]),
    ("bpf", EPERM, [libc::SYS_bpf, 0, 0, 0, 0, 0, 0]),
    ("perf_event_open", EPERM, [libc::SYS_perf_event_open, 0, 0, 0, 0, 0, 0]),
    ("userfaultfd", EPERM, [libc::SYS_userfaultfd, 0, 0, 0, 0, 0, 0]),
    ("ptrace_init", EPERM, [libc::SYS_ptrace, 16, 1, 0, 0, 0, 0]),
    ("ptrace_me", EPERM, [libc::SYS_ptrace, 0, 0, 0, 0, 0, 0]),
    ("kexec_load", EPERM, [libc::SYS_kexec_load, 0, 0, 0, -1, 0, 0]),
    ("init_module", EPERM, [libc::SYS_init_module, 0, 0, 0, 0, 0, 0]),
    ("finit_module", EPERM, [libc::SYS_finit_module, -1, 0, 0, 0, 0, 0]),
    ("delete_module", EPERM, [libc::SYS_delete_module, 0, 0, 0, 0, 0, 0]),
    ("quotactl", EPERM, [libc::SYS_quotactl, 0, 0, 0, 0, 0, 0]),
    ("open_by_handle_at", EPERM, [libc::SYS_open_by_handle_at, -1, 0, 0, 0, 0, 0]),
    ("syslog", EPERM, [libc::SYS_syslog, 9, 0, 0, 0, 0, 0]),
    ("reboot", EPERM, [libc::SYS_reboot, 0, 0, 0, 0, 0, 0]),
    ("swapon", EPERM, [libc::SYS_swapon, 0, 0, 0, 0, 0, 0]),
    ("acct", EPERM, [libc::SYS_acct, 1, 0, 0, 0, 0, 0]),
    ("sethostname", EPERM, [libc::SYS_sethostname, 0, -1, 0, 0, 0, 0]),
    ("process_vm_readv", ENOSYS, [libc::SYS_process_vm_readv, 1, 0, 0, 0, 0, 0]),
    ("fanotify_init", EPERM, [libc::SYS_fanotify_init, 0, 0, 0, 0, 0, 0]),
    ("iopl", EPERM, [libc::SYS_iopl, 3, 0, 0, 0, 0, 0]),
    ("modify_ldt", EPERM, [libc::SYS_modify_ldt, 99, 0, 0, 0, 0, 0]),
    ("personality", EPERM, [libc::SYS_personality, 0x0008, 0, 0, 0, 0, 0]),
    ("clock_settime", EPERM, [libc::SYS_clock_settime, 0, 0, 0, 0, 0, 0]),
    // 48
    ("fssetxattr", EPERM, [libc::SYS_ioctl, 1, 0x401c_5820, 0, 0, 0, 0]),
    ("fssetxattr_high", EPERM, [libc::SYS_ioctl, 1, 0x401c_5820 | 1 << 32, 0, 0, 0, 0]),
    ("file_setattr", ENOSYS, [469, -1, 0, 0, 0, 0, 0]),
    // 53
    ("sched_fifo", EPERM, [libc::SYS_sched_setscheduler, 0, 1, 0, 0, 0, 0]),
    ("prlimit_init", EPERM, [libc::SYS_prlimit64, 1, 7, 0, 0, 0, 0]),
    ("newer_than_known", ENOSYS, [900, 0, 0, 0, 0, 0, 0]),
];

/// Says the answer to each call of the table.
pub(crate) fn table(words: &[&str]) {
    for (name, _, numbers) in CALLS.iter().filter(|(name, ..)| words.is_empty() || words.contains(name)) {
        say(name, answer(*numbers));
    }
}

#[test]
fn case_36_37_38_43_44_47_48_53_refused_calls_are_answered_as_listed() {
    let sandbox = crate::common::sandbox(|_| {});
    let output = act(&sandbox, "table").output().unwrap();
    assert!(output.outcome.success(), "{output:?}");
    let differs = |(name, errno, _): &(&'static str, i32, [i64; 7])| {
        let found = said(&output.stdout, name);
        let as_listed = found == (-errno).to_string();
        // A null parameter pointer is looked at first.
        let unheard = *name == "sched_fifo" && found == (-libc::EINVAL).to_string();
        (!as_listed && !unheard).then_some((*name, (found, -errno)))
    };
    let wrong: BTreeMap<_, _> = CALLS.iter().filter_map(differs).collect();
    assert!(wrong.is_empty(), "found and expected: {wrong:?}");
}

#[test]
fn the_same_calls_are_heard_without_a_sandbox() {
    let refused = [-ENOSYS, -EPERM, -EAFNOSUPPORT].map(|errno| errno.to_string());
    for name in ["clone3", "personality", "keyctl", "process_vm_readv"] {
        let found = ask_unprotected(&format!("table {name}"), name);
        assert!(!refused.contains(&found) || is_guest(), "{name}: {found}");
    }
}

#[test]
fn case_35_no_namespace_can_be_made() {
    let sandbox = crate::common::sandbox(|_| {});
    for (name, flag) in NEW {
        let unshare = ask(&sandbox, &format!("call answer {} {flag}", libc::SYS_unshare), "answer");
        assert_eq!(unshare, (-EPERM).to_string(), "unshare {name}");
        let clone = ask(&sandbox, &format!("call answer {} {}", libc::SYS_clone, flag | libc::SIGCHLD), "answer");
        assert_eq!(clone, (-EPERM).to_string(), "clone {name}");
    }
    let high = ask(&sandbox, &format!("call answer {} 0x{:x}", libc::SYS_unshare, 0x1_1000_0000_u64), "answer");
    assert_eq!(high, (-EPERM).to_string());
    let free = std::process::Command::new("unshare").args(["-U", "/bin/true"]).status();
    assert!(free.is_ok_and(|status| status.success()), "without a sandbox it works");
}

#[test]
fn case_36_threads_and_children_are_made_all_the_same() {
    let sandbox = crate::common::sandbox(|_| {});
    assert_eq!(ask(&sandbox, "threads 50", "threads"), "50 0");
    assert_eq!(ask(&sandbox, "spawns", "spawns"), "20");
}

/// Children by posix_spawn(3), as the standard library makes them.
pub(crate) fn spawns() {
    let good =
        (0..20).filter(|_| std::process::Command::new("/bin/true").status().is_ok_and(|status| status.success()));
    say("spawns", good.count());
}

#[test]
fn case_39_proc_sys_is_not_writable() {
    let files = [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/kernel/hostname",
        "/proc/sys/kernel/ns_last_pid",
        "/proc/sys/vm/drop_caches",
        "/proc/sys/net/ipv4/ip_forward",
        "/proc/sys/user/max_user_namespaces",
        "/proc/sys/fs/mqueue/queues_max",
        "/proc/sysrq-trigger",
        "/proc/sys/fs/binfmt_misc/register",
        "/sys/kernel/uevent_helper",
        "/proc/1/oom_score_adj",
        "/proc/irq/0/smp_affinity",
        "/proc/acpi/wakeup",
        "/dev/kmsg",
        "/dev/mem",
        "/dev/fuse",
        "/dev/kvm",
    ];
    let sandbox = crate::common::sandbox(|_| {});
    let output = act(&sandbox, &format!("open {}", files.join(" "))).output().unwrap();
    for file in files {
        let found = said(&output.stdout, file);
        let refused = [EROFS, EACCES, ENOENT, EPERM].iter().any(|errno| found == errno.to_string());
        assert!(refused, "{file}: {found}");
    }
    if is_root() {
        let free = ask_unprotected(&format!("open {}", files[0]), files[0]);
        assert_eq!(free, "opened", "root without a sandbox");
    }
}

/// The whole of `/proc/sys`: what can be opened for writing.
pub(crate) fn sysctls() {
    let mut directories = vec![std::path::PathBuf::from("/proc/sys")];
    let mut opened = Vec::new();
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                directories.push(entry.path());
            } else if std::fs::OpenOptions::new().write(true).open(entry.path()).is_ok() {
                opened.push(entry.path().display().to_string());
            }
        }
    }
    opened.sort();
    say("sysctls", opened.join(" "));
}

#[test]
fn case_39_no_file_of_proc_sys_at_all() {
    for uid in [0, 1000] {
        let sandbox = crate::common::sandbox(|b| _ = b.user(uid));
        let opened = ask(&sandbox, "sysctls", "sysctls");
        assert!(opened.is_empty(), "{uid}: {opened}");
    }
}

#[test]
fn case_40_no_cgroup_file_system_is_in_reach() {
    let sandbox = crate::common::sandbox(|_| {});
    assert_eq!(text(&sh(&sandbox, "ls -d /sys 2>/dev/null; grep -c cgroup /proc/self/mounts")), "0");
    let output = sh(
        &sandbox,
        "mkdir /tmp/c; for c in memory cpu pids devices rdma; do mount -t cgroup -o $c cgroup /tmp/c && echo mounted; done; ls /tmp/c",
    );
    assert_eq!(text(&output), "");
    // Its own cgroup looks like the root.
    let own = text(&sh(&sandbox, "cut -d: -f3 /proc/self/cgroup | sort -u"));
    assert!(!own.contains("sandbox-"), "{own}");
}

#[test]
fn case_41_device_nodes_are_neither_made_nor_opened() {
    let sandbox = crate::common::sandbox(|_| {});
    let output = sh(&sandbox, "mknod /tmp/b b 7 0; mknod /tmp/c c 1 3; ls -A /tmp");
    assert_eq!(text(&output), "", "{output:?}");
    if !is_root() {
        return;
    }
    let scratch = crate::common::Scratch::new("node");
    let node = scratch.0.join("null");
    let made =
        std::process::Command::new("mknod").args([node.as_os_str(), "c".as_ref(), "1".as_ref(), "3".as_ref()]).status();
    assert!(made.unwrap().success());
    crate::common::mode(&node, 0o666);
    assert_eq!(ask_unprotected(&format!("open {}", node.display()), node.to_str().unwrap()), "opened");
    let sandbox = crate::common::sandbox(|b| _ = b.bind(&scratch.0, "/node"));
    assert_eq!(ask(&sandbox, "open /node/null", "/node/null"), EACCES.to_string());
}

#[test]
fn case_42_other_calling_conventions_are_deadly() {
    let sandbox = crate::common::sandbox(|_| {});
    let x32 = 0x4000_0000 | libc::SYS_getpid;
    let outcome = act(&sandbox, &format!("call answer {x32}")).output().unwrap().outcome;
    assert_eq!(outcome.end, End::Seccomp, "{outcome:#?}");
    assert!(unprotected(&format!("call answer {x32}")).output().unwrap().status.success());
    if !is_guest() {
        assert!(unprotected("int80").output().unwrap().status.success(), "this kernel knows int 0x80");
        let outcome = act(&sandbox, "int80").output().unwrap().outcome;
        assert_eq!(outcome.end, End::Seccomp, "{outcome:#?}");
    }
}

/// getpid by the 32-bit gate.
pub(crate) fn int80() {
    #[cfg(target_arch = "x86_64")]
    {
        let answer: i64;
        // SAFETY: system call 20 of i386 takes no arguments; r8 to r11 may be overwritten.
        unsafe {
            std::arch::asm!("int 0x80", inlateout("rax") 20i64 => answer, out("r8") _, out("r9") _, out("r10") _, out("r11") _);
        }
        say("int80", answer);
    }
}

#[test]
fn case_38_nothing_about_a_mount_can_be_changed() {
    let sandbox = crate::common::sandbox(|_| {});
    let output = sh(
        &sandbox,
        "cat /proc/self/mountinfo > /tmp/before; mount -o remount,rw /usr; mount -o remount,bind,rw /usr; umount /proc; \
         umount -l /dev; mount --bind /tmp /usr; mount -t tmpfs none /usr; chroot / /bin/true && echo rooted; \
         unshare -Ur /bin/true && echo unshared; cat /proc/self/mountinfo | cmp - /tmp/before && echo same",
    );
    assert_eq!(text(&output), "same", "{output:?}");
}
