//! Maps of real namespaces: who may write which, and what the program in it then is.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Held, again, guest, part, require, root};
use userns::{Error, Extent, HelperFailure, IdMap, Pool, PoolConfig, Range, Setgroups, SubordinateIds, write_maps};

fn map(extents: &[(u32, u32, u32)]) -> IdMap {
    IdMap::new(extents.iter().map(|&(inside, outside, count)| Extent { inside, outside, count }).collect()).unwrap()
}

fn user_namespaces() -> bool {
    Held::start("true").map(Held::finish).is_some()
}

/// Writes the same map for users and groups, and gives what `script` prints in the namespace.
fn write_and_run(map: &IdMap, setgroups: Setgroups, script: &str) -> Result<String, Error> {
    let held = Held::start_with(&["--keep-caps"], script).unwrap();
    let written = write_maps(held.pid(), map, map, setgroups);
    let printed = held.finish();
    written.map(|()| printed)
}

/// This test again, through other programs, which set the scene first.
fn again_through(through: &[&str], name: &str, part: &str) {
    let inner = again(name, part);
    let (program, arguments) = through.split_first().unwrap();
    let mut outer = Command::new(program);
    outer.args(arguments).arg(inner.get_program()).args(inner.get_args());
    outer.envs(inner.get_envs().filter_map(|(key, value)| Some((key, value?))));
    let output = outer.stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    // Skipped, or not run at all, is not passed.
    assert!(output.status.success() && text.contains("1 passed") && !text.contains("SKIP"), "{part}: {text}");
}

#[test]
fn a_map_is_written_once_and_read_back() {
    require!("a_map_is_written_once_and_read_back", root() => "root", user_namespaces() => "user namespaces");
    let wanted = map(&[(10, 3_900_000_010, 10), (0, 3_900_000_000, 10), (65534, 3_900_000_100, 1)]);
    let held = Held::start("cat /proc/self/uid_map /proc/self/gid_map").unwrap();
    write_maps(held.pid(), &wanted, &wanted, Setgroups::Allow).unwrap();
    let error = write_maps(held.pid(), &wanted, &wanted, Setgroups::Allow).unwrap_err().to_string();
    assert!(error.ends_with("the map is set already; the kernel takes one only once"), "{error}");
    let error = write_maps(held.pid(), &wanted, &wanted, Setgroups::Deny).unwrap_err().to_string();
    assert!(error.contains("`setgroups` can only be denied before gid_map is written"), "{error}");
    let printed = held.finish();
    let lines: Vec<_> = printed.lines().collect();
    assert_eq!(IdMap::parse(&lines[..3].join("\n")).unwrap(), wanted);
    assert_eq!(IdMap::parse(&lines[3..].join("\n")).unwrap(), wanted);
}

#[test]
fn a_process_that_has_ended_is_an_error() {
    let mut child = Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    let one = map(&[(0, 1000, 1)]);
    let error = write_maps(child.id(), &one, &one, Setgroups::Deny).unwrap_err();
    assert_eq!(error.errno(), Some(2), "{error}");
    assert_eq!(error.hint(), Some("the process has ended"));
}

#[test]
fn a_nested_namespace_gets_only_what_its_parent_has() {
    const NAME: &str = "a_nested_namespace_gets_only_what_its_parent_has";
    if part().is_some() {
        // Root of a namespace with the ids 0 and 1..=65535, as in a container.
        let missing = map(&[(0, 70_000, 1)]);
        let error = write_and_run(&missing, Setgroups::Allow, "true").unwrap_err().to_string();
        let rule = "the id 70000 of the extent `0 70000 1` is not mapped in the parent namespace";
        assert_eq!(error, format!("id map: {rule}"));
        let partly = write_and_run(&map(&[(0, 65530, 10)]), Setgroups::Allow, "true").unwrap_err().to_string();
        assert!(partly.contains("the id 65536 of the extent `6 65536 4`"), "{partly}");
        // Across the parent's extents: the kernel wants two lines of one.
        let printed = write_and_run(&map(&[(0, 0, 11)]), Setgroups::Allow, "cat /proc/self/uid_map").unwrap();
        let seen = IdMap::parse(&printed).unwrap();
        assert_eq!(seen, map(&[(0, 0, 1), (1, 1, 10)]));
        // Without any configuration there are ids to lend, and they are mapped here.
        let dir = tempfile::tempdir().unwrap();
        let config = PoolConfig::default_for_caller().unwrap();
        let lease = Pool::open(&dir.path().join("sandbox"), &config).unwrap().lease("nested").unwrap();
        assert!((16384..=61183).contains(&lease.range().base()) && lease.range().count() == 1024, "{}", lease.range());
        write_and_run(&lease.uid_map(), Setgroups::Allow, "true").unwrap();
        println!("nested ok");
        return;
    }
    require!("a_nested_namespace_gets_only_what_its_parent_has", root() => "root", user_namespaces() => "user namespaces");
    let inner = again(NAME, "nested");
    let arguments: Vec<_> = inner.get_args().map(|argument| argument.to_str().unwrap()).collect();
    let variables =
        inner.get_envs().map(|(key, value)| format!("{}={}", key.to_str().unwrap(), value.unwrap().to_str().unwrap()));
    let variables: Vec<_> = variables.collect();
    let program = inner.get_program().to_str().unwrap();
    let held = Held::start(&format!("{} exec {program} {} 2>&1", variables.join(" "), arguments.join(" "))).unwrap();
    let ids = map(&[(0, 0, 1), (1, 3_900_100_000, 65535)]);
    write_maps(held.pid(), &ids, &ids, Setgroups::Allow).unwrap();
    let printed = held.finish();
    assert!(printed.contains("nested ok"), "{printed}");
}

#[test]
fn a_grandparent_may_not_write() {
    require!("a_grandparent_may_not_write", root() => "root", user_namespaces() => "user namespaces");
    // The child of the held one makes another namespace, whose parent is not ours. It lives until our end of the input
    // is closed: that input under another number, since a shell gives what it starts with `&` an empty one.
    let held = Held::start("exec 3<&0; unshare --user sh -c 'echo $PPID $$; read _ <&3' & wait").unwrap();
    let ids = map(&[(0, 0, 1), (1, 3_900_002_000, 10)]);
    write_maps(held.pid(), &ids, &ids, Setgroups::Allow).unwrap();
    let mut child = held.child;
    child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    let mut text = Vec::new();
    let out = child.stdout.as_mut().unwrap();
    let mut byte = [0];
    while out.read(&mut byte).unwrap() == 1 && byte != *b"\n" {
        text.push(byte[0]);
    }
    let text = String::from_utf8(text).unwrap();
    let grandchild: u32 = text.split(' ').nth(1).unwrap().parse().unwrap();
    let error = write_maps(grandchild, &map(&[(0, 3_900_002_005, 1)]), &ids, Setgroups::Allow).unwrap_err();
    assert_eq!(error.errno(), Some(1), "{error}");
    assert!(error.hint().unwrap().contains("or its parent"), "{error}");
    drop(child.stdin.take());
    child.wait().unwrap();
}

#[test]
fn case_86_setgroups_is_denied_and_read_back() {
    require!("case_86_setgroups_is_denied_and_read_back", root() => "root", user_namespaces() => "user namespaces");
    let ids = map(&[(0, 3_900_003_000, 10)]);
    let script = "cat /proc/self/setgroups; setpriv --reuid 0 --regid 0 --groups 1 true 2>/dev/null && echo changed || echo refused";
    assert_eq!(write_and_run(&ids, Setgroups::Deny, script).unwrap(), "deny\nrefused\n");
    assert_eq!(write_and_run(&ids, Setgroups::Allow, script).unwrap(), "allow\nchanged\n");
}

#[test]
fn root_without_a_capability_is_told_which() {
    const NAME: &str = "root_without_a_capability_is_told_which";
    let zero = map(&[(0, 0, 1)]);
    let ten = map(&[(0, 3_900_004_000, 10)]);
    match part().as_deref() {
        // Debian's newuidmap may be there or not, and grants root nothing either way.
        Some("setuid") => {
            let error = write_and_run(&ten, Setgroups::Allow, "true").unwrap_err();
            return assert!(matches!(error, Error::Helper { program: "newuidmap", .. }), "{error}");
        }
        Some("setfcap") => {
            match write_and_run(&zero, Setgroups::Allow, "true") {
                Err(error) => {
                    let text = error.to_string();
                    assert!(text.starts_with("mapping the outside uid 0 is not available: CAP_SETFCAP"), "{text}");
                }
                // Before Linux 5.12, where this was not a rule.
                Ok(_) => println!("taken without CAP_SETFCAP"),
            }
            write_and_run(&ten, Setgroups::Allow, "true").unwrap();
            return;
        }
        _ => {}
    }
    require!("root_without_a_capability_is_told_which", root() => "root", user_namespaces() => "user namespaces");
    for capability in ["setuid", "setfcap"] {
        let bounding = format!("--bounding-set=-{capability}");
        again_through(&["setpriv", &bounding, "--inh-caps=-all"], NAME, capability);
    }
}

#[test]
fn a_user_maps_its_own_ids_and_no_others() {
    const NAME: &str = "a_user_maps_its_own_ids_and_no_others";
    if root() {
        require!("a_user_maps_its_own_ids_and_no_others", user_namespaces() => "user namespaces");
        return again_through(&["setpriv", "--reuid=65500", "--regid=65501", "--clear-groups"], NAME, "user");
    }
    require!("a_user_maps_its_own_ids_and_no_others", user_namespaces() => "user namespaces");
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let (uids, gids) = (IdMap::single(0, uid).unwrap(), IdMap::single(0, gid).unwrap());
    let held = Held::start("id -u; id -g; cat /proc/self/setgroups").unwrap();
    write_maps(held.pid(), &uids, &gids, Setgroups::Deny).unwrap();
    assert_eq!(held.finish(), "0\n0\ndeny\n");
    let held = Held::start("true").unwrap();
    let error = write_maps(held.pid(), &IdMap::single(0, uid + 1).unwrap(), &gids, Setgroups::Deny).unwrap_err();
    assert!(matches!(error, Error::Helper { .. }), "{error}");
    assert!(error.hint().is_some(), "{error}");
    held.finish();
}

/// `/etc` with a user of ours, in a mount namespace of our own.
const SCENE: &str = r#"
set -e
scene=$1; shift
echo 'user:x:1000:1000::/:/bin/sh' >"$scene/passwd"
echo 'user:100000:65536' >"$scene/subuid"
cp "$scene/subuid" "$scene/subgid"
for file in passwd subuid subgid; do
    [ -e "/etc/$file" ] || { echo "no /etc/$file"; exit 1; }
    mount --bind "$scene/$file" "/etc/$file"
done
case $PART in
    nosuid) mount --bind /usr/bin /usr/bin; mount -o remount,bind,nosuid /usr/bin ;;
    plain) cp /usr/bin/newuidmap "$scene/plain"; chmod 755 "$scene/plain"; mount --bind "$scene/plain" /usr/bin/newuidmap ;;
    missing) mount --bind /dev/null /usr/bin/newuidmap ;;
    account) set -- setpriv --reuid=1234 --regid=1000 --clear-groups "$@" ;;
    listing) echo 'subid: nosuchsource' >"$scene/nsswitch.conf"; mount --bind "$scene/nsswitch.conf" /etc/nsswitch.conf ;;
    privileges) set -- setpriv --no-new-privs "$@" ;;
esac
[ "$PART" = account ] || set -- setpriv --reuid=1000 --regid=1000 --clear-groups "$@"
exec "$@"
"#;

#[test]
fn case_85_newuidmap_writes_what_is_granted_and_each_failure_has_its_name() {
    const NAME: &str = "case_85_newuidmap_writes_what_is_granted_and_each_failure_has_its_name";
    let mixed = map(&[(0, 1000, 1), (1, 100_000, 65535)]);
    let Some(part) = part() else {
        let tools = Path::new("/usr/bin/newuidmap").exists();
        require!(
            "case_85_newuidmap_writes_what_is_granted_and_each_failure_has_its_name",
            root() => "root",
            user_namespaces() => "user namespaces",
            tools => "newuidmap in /usr/bin",
            Path::new("/etc/nsswitch.conf").exists() => "/etc/nsswitch.conf",
            Path::new("/etc/subuid").exists() && Path::new("/etc/subgid").exists() => "/etc/subuid and /etc/subgid",
        );
        for part in ["granted", "beyond", "nosuid", "plain", "missing", "account", "privileges", "listing", "pool"] {
            let scene = tempfile::tempdir().unwrap();
            let script = format!("PART={part}\n{SCENE}");
            let directory = scene.path().to_str().unwrap();
            again_through(&["unshare", "--mount", "sh", "-c", &script, "sh", directory], NAME, part);
        }
        return;
    };
    let failure = |map: &IdMap| match write_and_run(map, Setgroups::Allow, "true") {
        Err(Error::Helper { failure, .. }) => failure,
        other => panic!("{other:?}"),
    };
    match part.as_str() {
        "granted" => {
            let script = "setpriv --reuid 33 --regid 34 --clear-groups sh -c 'id -u; id -g'; cat /proc/self/uid_map";
            let printed = write_and_run(&mixed, Setgroups::Allow, script).unwrap();
            let (ids, seen) = printed.split_at(6);
            assert_eq!((ids, IdMap::parse(seen).unwrap()), ("33\n34\n", mixed));
        }
        // Another source than the files: the program is asked. This one is missing, so that it falls back on the files.
        "listing" => {
            let ids = SubordinateIds::read().unwrap();
            for grants in [ids.uids_of("user".as_ref()).unwrap(), ids.gids_of("user".as_ref()).unwrap()] {
                let found: Vec<_> = grants.iter().map(|grant| (grant.start, grant.count, grant.line)).collect();
                assert_eq!(found, [(100_000, 65536, 0)]);
            }
            assert!(ids.uids_of("nobody".as_ref()).unwrap().is_empty());
            assert!(ids.allows_uids("user".as_ref(), 100_000, 65536).unwrap());
        }
        "pool" => lend_own(),
        "beyond" => {
            let failure = failure(&map(&[(0, 100_000, 65537)]));
            assert!(matches!(failure, HelperFailure::NoRange { .. }), "{failure}");
            assert_eq!(failure.to_string(), "/etc/subuid gives user no 100000..=165536");
        }
        "nosuid" => assert!(matches!(failure(&mixed), HelperFailure::NoSuid { .. })),
        "plain" => assert!(matches!(failure(&mixed), HelperFailure::NotPrivileged { .. })),
        "missing" => assert!(matches!(failure(&mixed), HelperFailure::Missing { .. })),
        "account" => assert!(matches!(failure(&mixed), HelperFailure::NoAccount { uid: 1234, .. })),
        "privileges" => assert!(matches!(failure(&mixed), HelperFailure::NoNewPrivileges)),
        other => panic!("{other}"),
    }
}

/// A user's pool, and a namespace with a range of it, by `newuidmap`.
fn lend_own() {
    let dir = tempfile::tempdir().unwrap();
    let config = PoolConfig::default_for_caller().unwrap();
    let lease = Pool::open(&dir.path().join("sandbox"), &config).unwrap().lease("own").unwrap();
    assert_eq!(lease.range().count(), userns::USER_SLOT);
    assert!(config.uids().iter().any(|granted| granted.covers(lease.range())));
    let held =
        Held::start_with(&["--keep-caps"], "setpriv --reuid 33 --regid 65534 --clear-groups sh -c 'id -u; id -g'")
            .unwrap();
    write_maps(held.pid(), &lease.uid_map(), &lease.gid_map(), Setgroups::Allow).unwrap();
    assert_eq!(held.finish(), "33\n65534\n");
}

#[test]
fn a_user_lends_its_own_subordinate_ids() {
    require!(
        "a_user_lends_its_own_subordinate_ids",
        !root() => "a user with subordinate ids (root does it in the test of newuidmap)",
        user_namespaces() => "user namespaces",
        Path::new("/usr/bin/newuidmap").exists() => "newuidmap in /usr/bin",
        PoolConfig::default_for_caller().is_ok() => "subordinate ids of its own",
    );
    lend_own();
}

fn pool(dir: &Path) -> Pool {
    let config = PoolConfig::new(Range::new(3_910_000_000, 4 * 65536).unwrap(), 65536);
    Pool::open(&dir.join("sandbox"), &config.conflicts_from(Path::new("/nonexistent"))).unwrap()
}

#[test]
fn root_inside_is_an_ordinary_user_outside() {
    require!("root_inside_is_an_ordinary_user_outside", root() => "root", user_namespaces() => "user namespaces");
    let dir = tempfile::tempdir().unwrap();
    let lease = pool(dir.path()).lease("x").unwrap();
    let place = dir.path().join("place");
    fs::create_dir(&place).unwrap();
    std::os::unix::fs::chown(&place, Some(lease.range().base()), Some(lease.gid_range().base())).unwrap();
    fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let file = place.join("file");
    let script = format!(
        "setpriv --reuid 0 --regid 0 --clear-groups sh -c 'id -u; touch {0}; touch /etc/x 2>/dev/null || echo refused'",
        file.display()
    );
    let held = Held::start_with(&["--keep-caps"], &script).unwrap();
    write_maps(held.pid(), &lease.uid_map(), &lease.gid_map(), Setgroups::Allow).unwrap();
    assert_eq!(held.finish(), "0\nrefused\n");
    let made = fs::metadata(&file).unwrap();
    assert_eq!((made.uid(), made.gid()), (lease.range().base(), lease.gid_range().base()));
}

/// Two sandboxes whose image says 999 for "mysql", and 4242, of which nobody has heard.
#[test]
fn the_same_uid_inside_is_another_one_outside() {
    require!("the_same_uid_inside_is_another_one_outside", root() => "root", user_namespaces() => "user namespaces");
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(dir.path());
    for inside in [999, 4242] {
        let start = |name: &str| {
            let lease = pool.lease(name).unwrap();
            let script = format!("exec setpriv --reuid {inside} --regid {inside} --clear-groups sh -c 'id -u; read _'");
            let held = Held::start_with(&["--keep-caps"], &script).unwrap();
            write_maps(held.pid(), &lease.uid_map(), &lease.gid_map(), Setgroups::Allow).unwrap();
            let mut child = held.child;
            child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
            let mut printed = vec![0; inside.to_string().len() + 1];
            child.stdout.as_mut().unwrap().read_exact(&mut printed).unwrap();
            assert_eq!(printed, format!("{inside}\n").into_bytes());
            let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
            let line = status.lines().find(|line| line.starts_with("Uid:")).unwrap();
            let host: u32 = line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap();
            assert_eq!(lease.uid_map().to_inside(host), Some(inside));
            let owner = userns::owner_of(&dir.path().join("sandbox"), host).unwrap().unwrap();
            assert_eq!((owner.name.as_str(), owner.inside), (name, Some(inside)));
            (lease, child, host)
        };
        let (a, mut first, one) = start("one");
        let (b, mut second, two) = start("two");
        assert_ne!(one, two);
        for child in [&mut first, &mut second] {
            drop(child.stdin.take());
            child.wait().unwrap();
        }
        a.release().unwrap();
        b.release().unwrap();
    }
}

#[test]
fn writing_is_cheap() {
    require!("writing_is_cheap", root() => "root", user_namespaces() => "user namespaces");
    let ids = map(&[(0, 3_900_005_000, 65536)]);
    let turns = if guest() { 3 } else { 30 };
    let mut times: Vec<_> = (0..turns)
        .map(|_| {
            let held = Held::start("true").unwrap();
            let clock = std::time::Instant::now();
            write_maps(held.pid(), &ids, &ids, Setgroups::Allow).unwrap();
            let elapsed = clock.elapsed();
            held.finish();
            elapsed
        })
        .collect();
    times.sort();
    println!("write_maps: median {:?}, least {:?}", times[turns / 2], times[0]);
}
