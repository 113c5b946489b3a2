//! Who a program is: nobody on the host, without privilege, and with no way to any.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::CommandExt;

use common::{Scratch, act, ask, field, said, sh, sleeper, text};
use sandbox::userns::{Extent, IdMap, PoolConfig, Range};
use sandbox::{Error, ErrorKind, Feature, IdPool, Sandbox, User};

#[test]
fn payload() {
    common::acts::run(&[("odd_group", |_| odd_group())]);
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
fn the_same_user_of_two_sandboxes_is_two_users() {
    let [one, other] = [0, 0].map(|_| common::sandbox(|b| _ = b.user(999).group(999)));
    require!("the_same_user_of_two_sandboxes_is_two_users", common::has_lease(&one), "leased ids", "one id");
    let (one, other) = (sleeper(&one), sleeper(&other));
    let [one, other] = [&one, &other].map(|child| host_ids(child.id().unwrap()));
    assert!(one.0.is_disjoint(&other.0) && one.1.is_disjoint(&other.1), "{one:?} {other:?}");
    for uid in [one.0, other.0].into_iter().flatten() {
        assert_eq!(sandbox::owner_of(uid).unwrap().unwrap().inside, Some(999));
    }
}

#[test]
fn a_user_without_an_account_owns_what_it_makes_by_an_id_of_the_range() {
    use std::os::unix::fs::MetadataExt;
    // Among the ids of the smallest range, and in nobody's passwd(5).
    const USER: (u32, u32) = (987, 986);
    let scratch = Scratch::new("account");
    let open = scratch.dir("open", 0o777);
    let sandbox = common::sandbox(|b| _ = b.user(USER.0).group(USER.1).bind(&open, "/open"));
    // Of an instance that stays, since its range is nobody's when it has gone.
    let instance = sandbox.start().unwrap();
    let script = "id -u; id -g; getent passwd 987; true > /open/made; stat -c %u:%g /open/made";
    let output = instance.command("/bin/sh").args(["-c", script]).output().unwrap();
    assert_eq!(text(&output), "987\n986\n987:986");
    let made = open.join("made").metadata().unwrap();
    if common::has_lease(&sandbox) {
        let owner = sandbox::owner_of(made.uid()).unwrap().unwrap();
        assert_eq!(owner.inside, Some(USER.0));
        assert!(owner.uids.contains(made.uid()) && owner.gids.contains(made.gid()), "{owner:?} {made:?}");
    } else {
        assert_eq!(made.uid(), rustix::process::geteuid().as_raw());
    }
}

/// A pool of ids that nothing else has, all of whose records are in `scratch`.
fn own_pool(scratch: &Scratch, base: u32, slots: u32) -> PoolConfig {
    let config = PoolConfig::new(Range::new(base, slots * 1024).unwrap(), 1024);
    config.registered_in(scratch.0.join("registry")).conflicts_from(std::path::Path::new("/nonexistent"))
}

#[test]
fn ids_that_are_anothers_are_refused_with_the_line_that_says_so() {
    let scratch = Scratch::new("claimed");
    scratch.dir("root/etc", 0o755);
    scratch.file("root/etc/passwd", "mallory:x:1000:1000::/:/bin/sh\n", 0o644);
    scratch.file("root/etc/subgid", "", 0o644);
    scratch.file("root/etc/subuid", "# nothing\nalice:100000:65536\nmallory:3200066000:5\n", 0o644);
    let config = own_pool(&scratch, 3_200_000_000, 128).conflicts_from(&scratch.0.join("root"));
    let error = common::build(|b| _ = b.state_dir(scratch.dir("state", 0o700)).subordinate_ids(config)).unwrap_err();
    let said = error.to_string();
    assert!(said.contains("root/etc/subuid:3") && said.contains("mallory"), "{said}");
}

#[test]
fn ids_of_a_user_that_has_none_are_an_error_with_the_fix() {
    let error = common::build(|b| _ = b.subordinate_ids(IdPool::OfUser("daemon".into()))).unwrap_err();
    assert!(error.to_string().contains("daemon") && error.to_string().contains("usermod"), "{error}");
}

#[test]
fn nobody_inherits_the_files_of_another() {
    use std::os::unix::fs::MetadataExt;
    require!("nobody_inherits_the_files_of_another", common::is_root(), "root", "an ordinary user");
    let scratch = Scratch::new("heirs");
    let state = scratch.dir("state", 0o700);
    let trees = ["a", "b"].map(|name| scratch.dir(name, 0o777));
    let config = own_pool(&scratch, 3_300_000_000, 3);
    let over = |tree: Option<&std::path::PathBuf>| {
        common::sandbox(|b| {
            // Three ranges are counted out, and those that wait in a pool have some.
            b.state_dir(&state).subordinate_ids(config.clone()).prepared(0);
            tree.map(|tree| b.bind(tree, "/data"));
        })
    };
    let ids = |sandbox: &Sandbox| host_ids(sleeper(sandbox).id().unwrap()).0.pop_first().unwrap();
    let make = "umask 077; echo mine >> /data/file && wc -l < /data/file";
    let owner = |tree: &std::path::PathBuf| tree.join("file").metadata().unwrap().uid();

    // One after another over the same tree: the same ids, and what the first made is the second's.
    let first = over(Some(&trees[0]));
    assert_eq!(text(&sh(&first, make)), "1");
    drop(first);
    let mine = owner(&trees[0]);
    let second = over(Some(&trees[0]));
    assert_eq!((text(&sh(&second, make)), owner(&trees[0])), ("2".to_owned(), mine));

    // Over another, or over none: other ids, for as long as the tree is there.
    let other = over(Some(&trees[1]));
    assert_eq!(text(&sh(&other, make)), "1");
    assert_ne!(owner(&trees[1]), mine);
    for _ in 0..4 {
        // Dropping waits until what was leased is given back.
        let uid = ids(&over(None));
        assert!(uid != mine && uid != owner(&trees[1]), "{uid}");
    }
    let none = over(None);
    let only = none.start().unwrap();
    assert!(none.start().unwrap_err().to_string().contains("registered"), "two of three ranges are kept");
    drop((only, none));

    // Until the caller says that it is gone.
    drop((second, other));
    let pool = IdPool::from(config.clone()).open(Some(&state)).unwrap();
    assert!(pool.forget_tree(&trees[0]).unwrap_err().to_string().contains("still exists"));
    fs::remove_dir_all(&trees[0]).unwrap();
    assert_eq!(pool.forget_tree(&trees[0]).unwrap().len(), 1);
    let none = over(None);
    let pair = [sleeper(&none), sleeper(&none)];
    let now: BTreeSet<_> = pair.iter().filter_map(|child| host_ids(child.id().unwrap()).0.pop_first()).collect();
    assert!(now.contains(&mine), "{now:?}, and {mine} is free");
}

#[test]
fn ids_that_cannot_be_kept_are_an_error_or_a_warning() {
    require!("ids_that_cannot_be_kept_are_an_error_or_a_warning", common::is_root(), "root", "an ordinary user");
    let scratch = Scratch::new("unkept");
    let open = scratch.dir("open", 0o777);
    let config = own_pool(&scratch, 3_400_000_000, 2).registered_in("/proc/nowhere");
    let change = |b: &mut sandbox::Builder| {
        // Instances in waiting would hold both of its ranges.
        b.prepared(0).state_dir(scratch.dir("state", 0o700)).subordinate_ids(config.clone()).bind(&open, "/open");
    };
    let error = common::build(change).unwrap_err();
    assert!(error.to_string().contains("/proc/nowhere"), "{error}");
    let sandbox = common::sandbox(|b| {
        change(b);
        b.prefer(Feature::IdLease);
    });
    let warnings = sandbox.plan().warnings().join("\n");
    assert!(warnings.contains("a later sandbox can get") && warnings.contains("unkept/open"), "{warnings}");
    assert!(sh(&sandbox, "true > /open/made").outcome.success());
}

#[test]
fn a_tree_is_forgotten_when_it_is_gone() {
    let scratch = Scratch::new("forgotten");
    let open = scratch.dir("open", 0o777);
    // As many ranges are kept as there were instances at the same time.
    let sandbox = common::sandbox(|b| _ = b.bind(&open, "/open").prepared(0));
    assert!(sh(&sandbox, "true > /open/made").outcome.success());
    let kept =
        common::has_lease(&sandbox) && !sandbox.plan().warnings().iter().any(|text| text.contains("later sandbox"));
    if kept {
        fs::remove_file(open.join("made")).unwrap();
        let error = sandbox::forget_tree(&scratch.0, None).unwrap_err();
        assert!(error.to_string().contains("still exists"), "{error}");
        drop(sandbox);
        fs::remove_dir(&open).unwrap();
        assert_eq!(sandbox::forget_tree(&open, None).unwrap(), 1);
        assert_eq!(sandbox::forget_tree(&open, None).unwrap(), 0);
    }
}

#[test]
fn maps_are_as_they_were_given() {
    use std::os::unix::fs::MetadataExt;
    let scratch = Scratch::new("maps");
    let open = scratch.dir("open", 0o777);
    let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let map = |outside: u32, own: u32| match common::is_root() {
        // Init's id, and two pieces for programs.
        true => IdMap::new(vec![
            Extent { inside: 0, outside, count: 10 },
            Extent { inside: 1000, outside: outside + 5000, count: 2 },
            Extent { inside: 65533, outside: outside + 9000, count: 1 },
        ]),
        false => IdMap::single(1001, own),
    };
    let (uids, gids) = (map(3_500_000_000, own.0).unwrap(), map(3_500_100_000, own.1).unwrap());
    let build = |user: u32| {
        common::build(|b| _ = b.id_maps(uids.clone(), gids.clone()).user(user).group(user).bind(&open, "/open"))
    };
    let sandbox = build(1001).unwrap();
    let read = text(&sh(&sandbox, "true > /open/made; cat /proc/self/uid_map"));
    let inside: Vec<u32> = read.split_whitespace().step_by(3).map(|id| id.parse().unwrap()).collect();
    assert_eq!(inside, uids.extents().iter().map(|extent| extent.inside).collect::<Vec<_>>(), "{read}");
    let made = open.join("made").metadata().unwrap();
    assert_eq!((Some(made.uid()), Some(made.gid())), (uids.to_outside(1001), gids.to_outside(1001)));
    assert!(sandbox.plan().warnings().iter().any(|text| text.contains("id_maps")), "{}", sandbox.plan());
    assert_eq!(sandbox.plan().feature(Feature::IdLease).and_then(|entry| entry.enforced), None);
    // An id that is not mapped.
    let error = build(500).unwrap_err();
    assert!(error.kind() == ErrorKind::Invalid && error.to_string().contains("500"), "{error}");
}

/// As an existing user of the host, whose one id init then has, too.
#[test]
fn one_id_of_a_given_map_is_shared_with_init_behind_the_filter() {
    let id = if common::is_root() { 65_000 } else { rustix::process::geteuid().as_raw() };
    let gid = if common::is_root() { 65_000 } else { rustix::process::getegid().as_raw() };
    let change =
        |b: &mut sandbox::Builder| _ = b.id_maps(IdMap::single(0, id).unwrap(), IdMap::single(0, gid).unwrap());
    let sandbox = common::sandbox(change);
    let child = sleeper(&sandbox);
    assert_eq!(host_ids(child.id().unwrap()), ([id].into(), [gid].into()));
    assert_eq!(
        text(&sh(&sandbox, "id -u; cat /proc/keys 2>/dev/null | wc -l; kill -9 1; grep CapEff /proc/self/status")),
        "0\n0\nCapEff:\t0000000000000000"
    );
    let error = common::build(|b| {
        change(b);
        b.off(Feature::Seccomp);
    });
    assert!(matches!(&error, Err(Error::Invalid { .. })), "{error:?}");
}

/// Becomes an ordinary user whose real group is another than the effective one, as in a set-group-ID program.
fn odd_group() {
    common::acts::become_user(65_000, 7);
    let sandbox = common::sandbox(|b| _ = b.off(Feature::IdLease));
    let groups = text(&sh(&sandbox, "grep ^Gid: /proc/self/status"));
    assert_eq!(groups.split_whitespace().skip(1).collect::<Vec<_>>(), ["0"; 4]);
}

#[test]
fn no_group_of_the_caller_is_kept_not_even_the_real_one() {
    require!(
        "no_group_of_the_caller_is_kept_not_even_the_real_one",
        common::is_root(),
        "root, who can have any group",
        "an ordinary user"
    );
    let output = common::unprotected("odd_group").output().unwrap();
    assert!(output.status.success(), "{output:?}");
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
fn init_is_another_user_of_the_same_group_and_can_change_its_user_alone() {
    let sandbox = common::sandbox(|b| _ = b.user(5).group(6));
    require!(
        "init_is_another_user_of_the_same_group_and_can_change_its_user_alone",
        common::has_lease(&sandbox),
        "leased ids",
        "one id"
    );
    let child = sleeper(&sandbox);
    let status = |pid| fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let pid = child.id().unwrap();
    let init_pid = field(&status(pid), "PPid").parse().unwrap();
    let (program, init) = (host_ids(pid), host_ids(init_pid));
    assert!(program.0.is_disjoint(&init.0) && program.1 == init.1 && init.1.len() == 1, "{program:?} {init:?}");
    let init = status(init_pid);
    assert_eq!(["CapEff", "CapPrm"].map(|key| field(&init, key)), ["0000000000000080"; 2]);
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
