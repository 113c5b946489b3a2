//! What a program sees of the file system, and what of it it can change.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use common::{Scratch, sh, text};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use sandbox::Sandbox;

#[test]
fn payload() {
    common::acts::run(&[]);
}

/// A root directory with the host's programs bound into it.
fn with_root(root: &std::path::Path, change: impl FnOnce(&mut sandbox::Builder)) -> Result<Sandbox, sandbox::Error> {
    common::build(|b| {
        b.rootfs(root);
        for directory in ["/usr", "/bin", "/lib", "/lib64"] {
            if fs::exists(directory).unwrap() {
                b.bind_read_only(directory, directory);
            }
        }
        change(b);
    })
}

#[test]
fn the_default_root_has_programs_and_no_secrets() {
    let sandbox = common::sandbox(|_| {});
    let output = sh(
        &sandbox,
        "ls /etc/passwd /usr/bin/env && cat /etc/shadow /root/.profile /etc/hostname; ls -d /sys /root /home /run /var",
    );
    assert_eq!(text(&output), "/etc/passwd\n/usr/bin/env", "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_default_root_is_read_only_but_for_its_memory() {
    let sandbox = common::sandbox(|_| {});
    let script = "for d in / /usr /etc /dev /proc /bin; do { > $d/new; } 2>/dev/null && echo written $d; done; \
                  for d in /tmp /dev/shm; do echo ok > $d/new && cat $d/new; done";
    assert_eq!(text(&sh(&sandbox, script)), "ok\nok");
    assert_eq!(text(&sh(&sandbox, "ls -A /tmp /dev/shm")), "/dev/shm:\n\n/tmp:", "fresh for each start");
}

#[test]
fn the_devices_are_few() {
    let sandbox = common::sandbox(|_| {});
    assert_eq!(
        text(&sh(&sandbox, "ls /dev | tr '\\n' ' '")),
        "fd full null ptmx pts random shm stderr stdin stdout tty urandom zero"
    );
    assert_eq!(
        text(&sh(&sandbox, "echo lost > /dev/null; head -c 3 /dev/zero | wc -c; head -c 5 /dev/urandom | wc -c")),
        "3\n5"
    );
}

#[test]
fn case_15_the_old_root_is_out_of_reach() {
    let sandbox = common::sandbox(|_| {});
    let output = sh(
        &sandbox,
        "cd /; cd ../../../..; pwd; ls -i -d / /.. /proc/self/root/.. | cut -d/ -f1 | sort -u | wc -l; cat /proc/self/mountinfo",
    );
    let said = text(&output);
    let mut lines = said.lines();
    assert_eq!((lines.next(), lines.next()), (Some("/"), Some("1")), "{said}");
    let places: Vec<&str> = lines.filter_map(|line| line.split(' ').nth(4)).collect();
    assert!(places.len() >= 10, "{said}");
    for place in places {
        let ours = ["/usr", "/bin", "/sbin", "/lib", "/etc", "/dev", "/proc", "/tmp", "/payload"];
        assert!(place == "/" || ours.iter().any(|top| place.starts_with(top)), "{place} in\n{said}");
    }
}

#[test]
fn binds_are_as_writable_as_they_were_named() {
    let scratch = Scratch::new("binds");
    let (open, closed) = (scratch.dir("open", 0o777), scratch.dir("closed", 0o777));
    scratch.file("closed/old", "old", 0o666);
    let sandbox = common::sandbox(|b| _ = b.bind(&open, "/open").bind_read_only(&closed, "/closed"));
    let output = sh(
        &sandbox,
        "echo new > /open/new; cat /closed/old; echo x > /closed/new; echo x >> /closed/old; rm -f /closed/old; exit 0",
    );
    assert_eq!(text(&output), "old");
    assert_eq!(fs::read_to_string(open.join("new")).unwrap(), "new\n");
    assert_eq!(fs::read_to_string(closed.join("old")).unwrap(), "old");
    assert!(!closed.join("new").exists());
    let owner = open.join("new").metadata().unwrap().uid();
    assert!(owner != 0, "the file of an inside root is owned by {owner} outside");
}

#[test]
fn case_13_a_mount_below_a_read_only_bind_is_read_only_too() {
    let sandbox = common::sandbox(|b| _ = b.bind_read_only("/dev", "/host-dev"));
    let output = sh(
        &sandbox,
        "{ > /host-dev/shm/sandbox-test; } 2>&1; grep -c ' /host-dev' /proc/self/mountinfo; grep ' /host-dev' /proc/self/mountinfo | grep -v ' ro,'; exit 0",
    );
    let said = text(&output);
    assert!(said.contains("Read-only file system"), "{said}");
    assert!(!said.contains(" rw,"), "{said}");
    assert!(!fs::exists("/dev/shm/sandbox-test").unwrap());
}

#[test]
fn files_and_nested_places_are_bound() {
    let scratch = Scratch::new("nested");
    let file = scratch.file("word", "word", 0o644);
    let sandbox = common::sandbox(|b| {
        b.bind_read_only(&file, "/deep/er/word")
            .bind_read_only("/usr/bin", "/tmp/a/b/bin")
            .bind_read_only(&file, "/tmp/word");
    });
    assert_eq!(text(&sh(&sandbox, "cat /deep/er/word; /tmp/a/b/bin/env cat /tmp/word")), "wordword");
}

#[test]
fn hundreds_of_binds_are_bound_and_too_many_are_refused() {
    let scratch = Scratch::new("many");
    let file = scratch.file("word", "word", 0o644);
    let bound = |number: usize| {
        common::build(|b| {
            b.prepared(0);
            (0..number).for_each(|each| _ = b.bind_read_only(&file, format!("/many/{each}")));
        })
    };
    let output = sh(&bound(300).unwrap(), "ls /many | wc -l; cat /many/0 /many/299");
    assert_eq!(text(&output), "300\nwordword", "{output:?}");
    let refused = bound(1100).unwrap_err().to_string();
    assert!(refused.contains("more than 1024 binds"), "{refused}");
}

#[test]
fn a_memory_file_system_is_full_at_its_size() {
    let sandbox = common::sandbox(|b| _ = b.tmpfs("/small", Some(1 << 20)));
    assert!(sh(&sandbox, "head -c 900K /dev/zero > /small/below").outcome.success());
    let output = sh(&sandbox, "head -c 2M /dev/zero > /small/over; wc -c < /small/over");
    assert!(String::from_utf8_lossy(&output.stderr).contains("No space left"), "{output:?}");
    assert_eq!(text(&output), (1 << 20).to_string());
}

#[test]
fn a_memory_file_system_bounds_empty_files_too() {
    let sandbox = common::sandbox(|b| {
        b.tmpfs("/small", Some(8 << 20));
    });
    let script = "cd /small && i=0; while [ $i -lt 4000 ] && true > $i; do i=$((i+1)); done; echo $i";
    let count: u32 = text(&sh(&sandbox, script)).parse().unwrap();
    assert!((2000..2048).contains(&count), "{count} files");
}

#[test]
fn a_root_directory_is_read_only_unless_said() {
    let scratch = Scratch::new("root");
    let root = scratch.dir("root", 0o777);
    scratch.file("root/word", "word", 0o644);
    let sandbox = with_root(&root, |_| {}).unwrap();
    let output = sh(&sandbox, "cat /word; { > /new; } 2>/dev/null || echo refused; ls /etc 2>&1 | wc -l");
    assert_eq!(text(&output), "wordrefused\n1", "{output:?}");
    let writable = with_root(&root, |b| _ = b.rootfs_writable(true)).unwrap();
    assert!(sh(&writable, "echo new > /new").outcome.success());
    assert_eq!(fs::read_to_string(root.join("new")).unwrap(), "new\n");
}

/// Whether the owners of a root directory's files are those of its numbers; if not, the plan says why.
fn is_mapped(sandbox: &Sandbox) -> bool {
    !sandbox.plan().warnings().iter().any(|text| text.contains("nobody inside"))
}

fn owned(path: &std::path::Path, uid: u32) {
    std::os::unix::fs::chown(path, Some(uid), Some(uid)).unwrap();
}

#[test]
fn files_of_a_root_directory_belong_to_whom_they_belong_to_on_disk() {
    require!(
        "files_of_a_root_directory_belong_to_whom_they_belong_to_on_disk",
        common::is_root(),
        "root",
        "an ordinary user"
    );
    let scratch = Scratch::new("owners");
    let root = scratch.dir("root", 0o755);
    scratch.file("root/roots", "secret", 0o600);
    owned(&scratch.file("root/daemons", "daemon's", 0o600), 999);
    let script = "stat -c %u:%g / /roots /daemons | tr '\\n' ' '; cat /roots /daemons 2>/dev/null; exit 0";
    let run = |user: u32| {
        let sandbox = with_root(&root, |b| _ = b.user(user).group(user)).unwrap();
        (is_mapped(&sandbox), text(&sh(&sandbox, script)))
    };
    match run(0) {
        (true, said) => {
            assert_eq!(said, "0:0 0:0 999:999 secret");
            assert_eq!(run(999).1, "0:0 0:0 999:999 daemon's");
        }
        (false, said) => assert_eq!(said, "65534:65534 65534:65534 65534:65534"),
    }
}

#[test]
fn the_root_directory_of_the_host_keeps_its_secrets() {
    let sandbox = Sandbox::builder().rootfs("/").build().unwrap();
    assert!(!is_mapped(&sandbox), "{}", sandbox.plan());
    let output = sh(&sandbox, "test -e /etc/passwd && echo there; cat /etc/shadow 2>&1; exit 0");
    let said = text(&output);
    assert!(said.starts_with("there\n") && said.ends_with("Permission denied"), "{said}");
}

/// What a program with the uid 0 of a mapped directory can do to the host, and where it is let.
#[test]
fn a_set_user_id_file_of_root_is_left_only_where_nobody_else_comes() {
    require!(
        "a_set_user_id_file_of_root_is_left_only_where_nobody_else_comes",
        common::is_root(),
        "root",
        "an ordinary user"
    );
    let scratch = Scratch::new("vault");
    let (open, vault) = (scratch.dir("open", 0o755), scratch.dir("vault", 0o700));
    let (inner, root) = (scratch.dir("vault/inner", 0o755), scratch.dir("vault/root", 0o755));
    let leave = "cp /payload /data/suid && chmod 4755 /data/suid && stat -c %u /data/suid";
    let run_by_nobody = |program: &std::path::Path| {
        use std::os::unix::process::CommandExt;
        let mut command = std::process::Command::new(program);
        command.args(common::ARGS).env("SANDBOX_PAYLOAD", "ids").uid(65534).gid(65534).current_dir("/");
        command.output().map(|output| common::said(&output.stdout, "ids"))
    };

    // Below a directory that nobody else enters. On kernels that cannot map it is an error.
    let sandbox = common::sandbox(|b| _ = b.bind_owned(&inner, "/data"));
    let started = sandbox.command("/bin/sh").args(["-c", leave]).output();
    let output = match started {
        Ok(output) => output,
        Err(error) => {
            assert!(error.to_string().contains("map the owner of"), "{error}");
            return;
        }
    };
    assert_eq!(text(&output), "0", "{}", String::from_utf8_lossy(&output.stderr));
    let left = inner.join("suid");
    let (uid, mode) = (left.metadata().unwrap().uid(), left.metadata().unwrap().mode());
    assert_eq!((uid, mode & 0o7777), (0, 0o4755));
    assert_eq!(run_by_nobody(&left).unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
    // Without that directory everybody on the host is root.
    common::mode(&vault, 0o755);
    assert_eq!(run_by_nobody(&left).unwrap(), "65534 0 65534 65534", "is {} mounted nosuid?", scratch.0.display());
    common::mode(&vault, 0o700);
    fs::remove_file(&left).unwrap();

    // So it is refused elsewhere. The program owns what it is shown, and could open that to all: it does not count.
    for place in [&open, &vault] {
        let error = common::build(|b| _ = b.bind_owned(place, "/data")).unwrap_err();
        assert!(error.kind() == sandbox::ErrorKind::Invalid && error.to_string().contains("set-user-ID"), "{error}");
    }

    // A root directory is mapped there, and elsewhere it is not.
    let writable = |root: &std::path::Path| with_root(root, |b| _ = b.rootfs_writable(true)).unwrap();
    let sandbox = writable(&root);
    assert!(is_mapped(&sandbox), "{}", sandbox.plan());
    assert_eq!(text(&sh(&sandbox, "echo x > /made && stat -c %u:%g /made")), "0:0");
    assert_eq!(root.join("made").metadata().unwrap().uid(), 0);
    common::mode(&open, 0o777);
    let sandbox = writable(&open);
    assert!(!is_mapped(&sandbox) && sandbox.plan().to_string().contains("set-user-ID"), "{}", sandbox.plan());
    assert!(sh(&sandbox, "cp /payload /suid && chmod 6755 /suid").outcome.success());
    let left = open.join("suid").metadata().unwrap();
    assert!(left.uid() != 0 && left.gid() != 0, "{left:?}");
}

#[test]
fn a_link_in_the_root_directory_leads_inside_it() {
    let scratch = Scratch::new("links");
    let root = scratch.dir("root", 0o755);
    scratch.dir("root/run", 0o755);
    scratch.file("root/run/resolv.conf", "inside", 0o644);
    scratch.dir("root/etc", 0o755);
    symlink("/run/resolv.conf", root.join("etc/resolv.conf")).unwrap();
    let word = scratch.file("word", "bound", 0o644);
    let sandbox = with_root(&root, |b| _ = b.bind_read_only(&word, "/etc/resolv.conf")).unwrap();
    assert_eq!(text(&sh(&sandbox, "cat /etc/resolv.conf /run/resolv.conf")), "boundbound");
}

/// Roots in which `place` leads to a directory of the host, by a link of its own or of its parent.
#[test]
fn case_1_2_3_a_link_to_the_host_is_not_followed_out() {
    let scratch = Scratch::new("canary");
    let canary = scratch.dir("canary", 0o777);
    let up = format!("../../../../../../../..{}", canary.display());
    for (number, (link, target)) in
        [("dev", canary.to_str().unwrap()), ("proc", &up), ("a", &up), ("dev", "."), ("proc", "."), ("a", "loop")]
            .iter()
            .enumerate()
    {
        let root = scratch.dir(&format!("root{number}"), 0o777);
        if *target == "loop" {
            symlink("a", root.join("a")).unwrap();
        } else {
            symlink(target, root.join(link)).unwrap();
        }
        let word = scratch.file("word", "bound", 0o644);
        let run = with_root(&root, |b| _ = b.bind_read_only(&word, "/a/b/c"))
            .and_then(|sandbox| sandbox.command("/bin/sh").args(["-c", "cat /a/b/c; echo; ls /dev /proc"]).output());
        if let Err(error) = &run {
            assert!(error.errno().is_some() && error.path().is_some(), "{error}");
        }
        let left: Vec<_> = fs::read_dir(&canary).unwrap().collect();
        assert!(left.is_empty(), "{link} -> {target}: {left:?}, {run:?}");
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains("sandbox-test"), "{mounts}");
}

#[test]
fn case_4_a_root_directory_that_changes_meanwhile_leads_nowhere() {
    let scratch = Scratch::new("race");
    let (root, canary) = (scratch.dir("root", 0o755), scratch.dir("canary", 0o755));
    let (dev, link) = (scratch.dir("root/dev", 0o755), root.join("link"));
    symlink(&canary, &link).unwrap();
    std::thread::scope(|scope| {
        let racer = scope.spawn(|| {
            let exchange = || renameat_with(CWD, &dev, CWD, &link, RenameFlags::EXCHANGE).unwrap();
            while fs::read_dir(&root).unwrap().all(|entry| entry.unwrap().file_name() != "stop") {
                (0..100).for_each(|_| exchange());
            }
        });
        for _ in 0..200 {
            let _ = Sandbox::builder().rootfs(&root).build();
        }
        fs::write(root.join("stop"), "").unwrap();
        racer.join().unwrap();
    });
    assert_eq!(fs::read_dir(&canary).unwrap().count(), 0, "made outside the root directory");
}

#[test]
fn the_host_sees_no_mount() {
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let scratch = Scratch::new("mounts");
    let open = scratch.dir("open", 0o777);
    let sandbox = common::sandbox(|b| _ = b.bind(&open, "/open").tmpfs("/open/t", None));
    let child = common::sleeper(&sandbox);
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
    drop(child);
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
}

#[test]
fn without_proc_and_dev_there_are_none() {
    let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
    let uml =
        read("/proc/cpuinfo").contains("User Mode Linux") && read("/proc/sys/kernel/osrelease").starts_with("5.10");
    require!(
        "without_proc_and_dev_there_are_none",
        !uml,
        "a kernel that executes by descriptor without /proc and /dev",
        "User-Mode Linux 5.10, which answers ENOENT"
    );
    let sandbox = common::sandbox(|b| _ = b.proc(false).dev(false));
    assert_eq!(text(&sh(&sandbox, "ls /proc /dev 2>&1 | grep -c -v -e : -e '^$'")), "0");
}
