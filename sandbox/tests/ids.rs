//! Who a program is: nobody on the host, without privilege, and with no way to any.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::CommandExt;

use common::{Scratch, act, ask, field, said, sh, sleeper, text};
use sandbox::{ErrorKind, User};

#[test]
fn payload() {
    common::acts::run(&[]);
}

fn host_ids(pid: u32) -> (BTreeSet<u32>, BTreeSet<u32>) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let numbers = |key| field(&status, key).split_whitespace().map(|id| id.parse().unwrap()).collect();
    (numbers("Uid"), numbers("Gid"))
}

#[test]
fn root_inside_is_nobody_outside() {
    let sandbox = common::sandbox(|_| {});
    assert_eq!(text(&sh(&sandbox, "id -u; id -g")), "0\n0");
    let child = sleeper(&sandbox);
    let (uids, gids) = host_ids(child.id().unwrap());
    assert_eq!((uids.len(), gids.len()), (1, 1));
    assert!(!uids.contains(&0) && !gids.contains(&0), "{uids:?} {gids:?}");
    if common::has_lease(&sandbox) {
        assert!(!uids.contains(&rustix::process::geteuid().as_raw()), "{uids:?}");
    }
}

#[test]
fn two_sandboxes_have_different_ids() {
    let sandbox = common::sandbox(|_| {});
    require!("two_sandboxes_have_different_ids", common::has_lease(&sandbox), "leased ids", "one id");
    let children: Vec<_> = (0..4).map(|_| sleeper(&sandbox)).collect();
    let ids: BTreeSet<_> = children.iter().map(|child| host_ids(child.id().unwrap()).0.pop_first()).collect();
    assert_eq!(ids.len(), children.len(), "{ids:?}");
}

#[test]
fn the_user_is_chosen_apart_from_the_map() {
    let sandbox = common::sandbox(|b| _ = b.user(1001).group(567));
    assert_eq!(text(&sh(&sandbox, "id -u; id -g")), "1001\n567");
    let outside = common::sandbox(|b| _ = b.user(u32::MAX - 1));
    if common::has_lease(&outside) {
        let error = outside.command("/bin/true").status().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    }
}

#[test]
fn case_94_a_user_that_is_not_there_is_an_error_and_never_another_user() {
    for name in ["no-such-user-here", "", "1000x", "-1", "0x0"] {
        let error = common::build(|b| _ = b.user(name)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{name:?}: {error}");
    }
    let daemon = common::build(|b| _ = b.user(User::Name("daemon".into()))).unwrap();
    assert_eq!(text(&sh(&daemon, "id -un")), "daemon");
}

#[test]
fn no_capability_and_no_way_to_one() {
    let sandbox = common::sandbox(|_| {});
    let output = act(&sandbox, "ids").output().unwrap();
    for key in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(said(&output.stdout, key), "0000000000000000", "{key}");
    }
    assert_eq!((said(&output.stdout, "NoNewPrivs"), said(&output.stdout, "Seccomp")), ("1".into(), "2".into()));
}

#[test]
fn case_28_no_group_of_the_caller() {
    let sandbox = common::sandbox(|_| {});
    let groups = text(&sh(&sandbox, "grep ^Groups: /proc/self/status | cut -f2; exit 0"));
    if common::has_lease(&sandbox) {
        assert_eq!(groups.trim(), "");
    } else {
        // They cannot be dropped with a single id, but none has a name inside.
        assert!(groups.split_whitespace().all(|id| id == "65534" || id == "0"), "{groups}");
    }
}

#[test]
fn case_86_setgroups_is_as_the_map_says() {
    let sandbox = common::sandbox(|_| {});
    let expected = if common::has_lease(&sandbox) { "allow" } else { "deny" };
    assert_eq!(text(&sh(&sandbox, "cat /proc/self/setgroups")), expected);
}

/// A copy of this program with the set-user-ID bit, and one with a capability of the file.
#[test]
fn case_34_a_set_user_id_program_gives_nothing() {
    require!("case_34_a_set_user_id_program_gives_nothing", common::is_root(), "root", "an ordinary user");
    let scratch = Scratch::new("setuid");
    let (set_user_id, with_capability) = (scratch.0.join("suid"), scratch.0.join("caps"));
    common::copy(&common::payload(), &set_user_id, 0o6755);
    common::copy(&common::payload(), &with_capability, 0o755);
    // struct vfs_cap_data, version 2, effective: CAP_NET_RAW permitted.
    let capability: Vec<u8> = [0x0200_0001u32, 1 << 13, 0, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
    let flags = rustix::fs::XattrFlags::empty();
    let stored = rustix::fs::setxattr(&with_capability, "security.capability", &capability, flags);
    // It works outside, on a file system that lets it.
    let outside = |path: &std::path::Path| {
        let mut command = std::process::Command::new(path);
        command.args(common::ARGS).env("SANDBOX_PAYLOAD", "ids").uid(65534).gid(65534).current_dir("/");
        command.output().unwrap().stdout
    };
    assert_eq!(said(&outside(&set_user_id), "ids"), "65534 0 65534 0", "is {} mounted nosuid?", scratch.0.display());
    assert_eq!(said(&outside(&with_capability), "CapEff") != "0000000000000000", stored.is_ok());

    for uid in [0, 1000] {
        let sandbox = common::sandbox(|b| _ = b.bind_read_only(&scratch.0, "/suid").user(uid).group(uid));
        for program in ["/suid/suid", "/suid/caps"] {
            let output = common::acting(sandbox.command(program), "ids").output().unwrap();
            assert_eq!(said(&output.stdout, "ids"), format!("{uid} {uid} {uid} {uid}"), "{program}");
            for key in ["CapPrm", "CapEff", "CapBnd"] {
                assert_eq!(said(&output.stdout, key), "0000000000000000", "{program}");
            }
        }
    }
}

#[test]
fn a_set_user_id_file_made_inside_is_owned_by_nobody_outside() {
    use std::os::unix::fs::MetadataExt;
    let scratch = Scratch::new("made");
    let open = scratch.dir("open", 0o777);
    let sandbox = common::sandbox(|b| _ = b.bind(&open, "/open"));
    assert!(sh(&sandbox, "cp /bin/true /open/true && chmod 6755 /open/true").outcome.success());
    let made = open.join("true").metadata().unwrap();
    assert!(made.uid() != 0 && made.gid() != 0, "{made:?}");
}

#[test]
fn the_environment_and_its_kin_are_clean() {
    let sandbox = common::sandbox(|_| {});
    let script = "env -u PWD -u SHLVL -u _ -u OLDPWD | sort; umask; pwd; hostname; cat /proc/self/sessionid >/dev/null; ulimit -n; ulimit -c; ulimit -l";
    assert_eq!(
        text(&sh(&sandbox, script)),
        format!("HOME=/\nLANG=C.UTF-8\nPATH={}\n0022\n/\nsandbox\n1024\n0\n64", sandbox::DEFAULT_PATH)
    );
}

#[test]
fn an_environment_of_its_own() {
    let sandbox = common::sandbox(|b| _ = b.env_clear().env("A", "1").env("B", "2"));
    let output = sandbox.command("/usr/bin/env").env("B", "3").env("C", "4").output().unwrap();
    assert_eq!(text(&output), "A=1\nB=3\nC=4");
    let output = sandbox.command("/usr/bin/env").env_clear().env("D", "5").output().unwrap();
    assert_eq!(text(&output), "D=5");
}

#[test]
fn no_program_has_the_id_of_init() {
    let sandbox = common::sandbox(|_| {});
    require!("no_program_has_the_id_of_init", common::has_lease(&sandbox), "leased ids", "one id");
    let init = text(&sh(&sandbox, "stat -c %u /proc/1 2>/dev/null || echo hidden"));
    assert!(init != "0", "{init}");
    let uid = ask(&sandbox, "ids", "ids");
    assert!(uid.starts_with("0 0"), "{uid}");
}
