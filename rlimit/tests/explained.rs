//! What the explanation says, and that files are looked at anew.
#![allow(clippy::unwrap_used)] // Helpers of a test panic as the test does.

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use rlimit::limits_conf::{
    Count, Denial, Flavor, IgnoredWhy, Item, Login, OverriddenWhy, Refusal, Resolved, Resolver, User,
};
use rlimit::{Error, Limit, Limits, Resource, Table};
use tempfile::TempDir;

const CONF: &str = "limits.conf";

fn root(files: &[(&str, &str)]) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("etc/security/limits.d")).unwrap();
    for (name, text) in files {
        fs::write(root.path().join("etc/security").join(name), text).unwrap();
    }
    root
}

fn baseline() -> Table {
    let mut table = Table::default();
    for resource in Resource::ALL {
        table.set(resource, Limits::UNLIMITED);
    }
    table.set(Resource::Nofile, Limits { soft: Limit::Value(1024), hard: Limit::Value(4096) });
    table
}

fn resolver(flavor: Flavor, root: &Path) -> Resolver {
    Resolver::new(flavor).root(root).unwrap().inherited(baseline()).init_limits(baseline()).nr_open(1 << 20)
}

fn alice() -> User {
    User::new("alice", 1000, 1000).group("alice", 1000).group("wheel", 10)
}

fn resolve(flavor: Flavor, files: &[(&str, &str)]) -> (TempDir, Resolved) {
    let root = root(files);
    let resolved = resolver(flavor, root.path()).resolve(&alice()).unwrap();
    (root, resolved)
}

fn told(item: &Item) -> Vec<String> {
    item.overridden
        .iter()
        .map(|lost| {
            let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
            format!("{}:{} {}", name(&lost.line.file), lost.line.number, lost.half)
        })
        .collect()
}

#[test]
fn the_production_problem_and_its_fix() {
    let ninety = ("limits.d/90-nproc.conf", "# RHEL-like default\n* soft nproc 4096\n");
    let edit = (CONF, "* soft nproc 65535\n");
    let (_root, resolved) = resolve(Flavor::LinuxPam17, &[edit, ninety]);
    let nproc = resolved.item(Resource::Nproc);
    assert_eq!(nproc.limits.soft, Limit::Value(4096));
    assert!(nproc.soft.to_string().ends_with("/etc/security/limits.d/90-nproc.conf:2"), "{}", nproc.soft);
    assert_eq!(told(nproc), ["limits.conf:1 soft"]);
    let why = nproc.overridden[0].why.to_string();
    assert!(why.contains("90-nproc.conf:2 is also a `*` line and comes later: the last line wins"), "{why}");
    let fix = nproc.winning_file().unwrap();
    assert!(fix.ends_with("etc/security/limits.d/91-nproc.conf"), "{}", fix.display());

    // And it does win.
    let (_root, resolved) = resolve(Flavor::LinuxPam17, &[edit, ninety, ("limits.d/91-nproc.conf", edit.1)]);
    assert_eq!(resolved.item(Resource::Nproc).limits.soft, Limit::Value(65535));
}

#[test]
fn the_winning_file_sorts_after_any_name() {
    for name in ["10.conf", "9.conf", "99-x.conf", "a.conf", "zz.conf", "007-x.conf", "\u{e4}.conf"] {
        let file = format!("limits.d/{name}");
        let (_root, resolved) = resolve(Flavor::Debian12, &[(CONF, "* hard core 1\n"), (&file, "* hard core 2\n")]);
        let fix = resolved.item(Resource::Core).winning_file().unwrap();
        let fix = fix.file_name().unwrap().to_str().unwrap();
        assert!(fix > name && fix.ends_with(".conf"), "{fix} against {name}");
    }
}

#[test]
fn every_reason_is_told() {
    let text = "alice soft nofile 100\n\
                * - nofile 200\n\
                @wheel hard core 5\n\
                * hard core 6\n\
                alice soft stack 20\n\
                alice hard stack 10\n\
                alice - nice 1\n\
                alice - nice 2\n\
                alice - priority 3\n\
                * - priority 4\n\
                alice hard nofile 2000000\n";
    let (_root, resolved) = resolve(Flavor::LinuxPam17, &[(CONF, text)]);
    let why = |resource, index: usize| resolved.item(resource).overridden[index].why.clone();
    assert!(matches!(why(Resource::Nofile, 0), OverriddenWhy::Stronger { .. }));
    assert!(matches!(why(Resource::Nofile, 1), OverriddenWhy::DashStops { .. }));
    assert!(matches!(why(Resource::Nofile, 2), OverriddenWhy::Refused(Refusal::AboveNrOpen(_))));
    assert_eq!(
        told(resolved.item(Resource::Nofile)),
        ["limits.conf:2 soft", "limits.conf:2 hard", "limits.conf:1 soft", "limits.conf:11 hard"]
    );
    assert!(matches!(why(Resource::Core, 0), OverriddenWhy::Stronger { .. }));
    assert!(matches!(why(Resource::Stack, 0), OverriddenWhy::AboveHard { hard: Limit::Value(10240), .. }));
    assert!(resolved.item(Resource::Stack).soft.to_string().ends_with(":6"));
    assert_eq!(told(resolved.item(Resource::Nice)), ["limits.conf:7 both"]);
    let priority = resolved.priority.as_ref().unwrap();
    assert_eq!((priority.value, priority.by.number, priority.overridden[0].line.number), (4, 10, 9));
    // The refusal of nofile.
    let Login::Denied(Denial::Refused { resource: Resource::Nofile, .. }) = resolved.login() else {
        panic!("{:?}", resolved.login())
    };
    assert_eq!(resolved.item(Resource::Nofile).limits, baseline().get(Resource::Nofile).unwrap());
}

#[test]
fn ignored_lines_are_told() {
    let text = "alice soft\n1000:x - core 1\nalice - cores 1\nalice both core 1\nalice - core max\n%wheel - core 1\n\
                %1:2 - maxlogins 1\nbob - core 1\n* -\n";
    let (_root, resolved) = resolve(Flavor::LinuxPam17, &[(CONF, text)]);
    let found: Vec<_> = resolved.ignored.iter().map(|ignored| (ignored.line.number, ignored.why)).collect();
    let expected = [
        IgnoredWhy::NotFourFields,
        IgnoredWhy::BadRange,
        IgnoredWhy::UnknownItem,
        IgnoredWhy::UnknownType,
        IgnoredWhy::BadValue,
        IgnoredWhy::OnlyMaxLogins,
        IgnoredWhy::PercentRange,
        IgnoredWhy::OtherUsers,
        IgnoredWhy::NoLimitsNeedsName,
    ];
    assert_eq!(found, (1..).zip(expected).collect::<Vec<_>>());
    let root = root(&[(CONF, "* - core 1\n@wheel - core 1\n% - maxlogins 1\nroot - core 2\n")]);
    let user = User::new("root", 0, 0).group("wheel", 10);
    let resolved = resolver(Flavor::Debian12, root.path()).resolve(&user).unwrap();
    assert!(resolved.ignored.iter().all(|ignored| ignored.why == IgnoredWhy::RootExempt));
    assert_eq!(resolved.ignored.len(), 3);
    assert_eq!(resolved.item(Resource::Core).limits.hard, Limit::Value(2048));
}

#[test]
fn logins_are_counted_by_whom_they_are_counted_for() {
    for (line, counted) in [
        ("alice - maxlogins 2", Count::User),
        ("@wheel - maxlogins 2", Count::User),
        ("%wheel - maxlogins 2", Count::Group("wheel".to_owned())),
        ("%:10 - maxlogins 2", Count::Group("wheel".to_owned())),
        ("% - maxlogins 2", Count::Host),
        ("* - maxsyslogins 2", Count::Host),
    ] {
        let (_root, resolved) = resolve(Flavor::LinuxPam152, &[(CONF, line)]);
        let logins = resolved.max_logins.as_ref().unwrap();
        assert_eq!((logins.value.most, &logins.value.counted), (Some(2), &counted), "{line}");
        assert_eq!(resolved.login(), Login::Allowed);
        assert_eq!(resolved.login_with(1), Login::Allowed);
        assert!(matches!(resolved.login_with(2), Login::Denied(Denial::TooManyLogins { most: 2, .. })));
    }
}

#[test]
fn what_is_switched_off_and_what_fails_says_so() {
    let (_root, resolved) = resolve(Flavor::LinuxPam17, &[(CONF, "* - core 1\nalice -\n* - core 2\n")]);
    assert!(resolved.no_limits.is_some());
    assert!(matches!(resolved.item(Resource::Core).overridden[0].why, OverriddenWhy::NoLimits { .. }));
    assert_eq!(resolved.ignored[0].why, IgnoredWhy::NotReached);
    assert_eq!(resolved.login(), Login::Allowed);

    let (_root, resolved) = resolve(Flavor::LinuxPam152, &[("limits.d/a.conf", "* - core 1\n")]);
    assert!(matches!(resolved.login(), Login::Denied(Denial::MissingFile(_))));
    assert_eq!(resolved.item(Resource::Core).asked, None);

    let root = root(&[(CONF, "alice hard nofile 9999\n")]);
    let poor = resolver(Flavor::LinuxPam17, root.path()).privileged(false).resolve(&alice()).unwrap();
    let refusal = Refusal::RaiseHard(Limit::Value(4096));
    assert_eq!(poor.item(Resource::Nofile).refused, Some(refusal));
    assert_eq!(poor.login(), Login::Denied(Denial::Refused { resource: Resource::Nofile, refusal }));
    let debian = resolver(Flavor::Debian12, root.path()).privileged(false).resolve(&alice()).unwrap();
    assert_eq!(debian.login(), Login::Allowed);
}

#[test]
fn an_edit_acts_on_the_next_question() {
    let root = root(&[(CONF, "* soft core 1\n")]);
    let resolver = resolver(Flavor::Debian12, root.path());
    let core = || resolver.resolve(&alice()).unwrap().item(Resource::Core).limits.soft;
    let conf = root.path().join("etc/security/limits.conf");
    let extra = root.path().join("etc/security/limits.d/50.conf");
    assert_eq!(core(), Limit::Value(1024));
    // The same length, at once: the clock of the file system may not have ticked.
    for digit in 2..9 {
        fs::write(&conf, format!("* soft core {digit}\n")).unwrap();
        assert_eq!(core(), Limit::Value(1024 * digit));
    }
    fs::write(&extra, "* soft core 50\n").unwrap();
    assert_eq!(core(), Limit::Value(51200));
    fs::rename(&extra, root.path().join("etc/security/limits.d/50.off")).unwrap();
    assert_eq!(core(), Limit::Value(8192));
    fs::remove_file(&conf).unwrap();
    assert!(matches!(resolver.resolve(&alice()).unwrap().login(), Login::Denied(Denial::MissingFile(_))));
}

/// Files that have not changed are not read again.
#[test]
fn unchanged_files_are_not_read_again() {
    use rustix::fs::inotify::{CreateFlags, ReadFlags as Got, Reader, WatchFlags, add_watch, init};
    let root = root(&[(CONF, "* soft core 1\n"), ("limits.d/a.conf", "* soft rss 1\n")]);
    fs::write(root.path().join("etc/passwd"), "alice:x:1000:1000::/:\n").unwrap();
    let resolver = resolver(Flavor::LinuxPam17, root.path());
    // A stamp counts when it is older than the clock of any file system is coarse.
    std::thread::sleep(Duration::from_millis(3100));
    resolver.resolve_name("alice").unwrap();

    let watch = init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).unwrap();
    for path in ["etc/passwd", "etc/security/limits.conf", "etc/security/limits.d", "etc/security/limits.d/a.conf"] {
        add_watch(&watch, root.path().join(path), WatchFlags::ACCESS).unwrap();
    }
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    let mut events = Reader::new(&watch, &mut buffer);
    let start = std::time::Instant::now();
    for _ in 0..1000 {
        resolver.resolve_name("alice").unwrap();
    }
    println!("asking again takes {:?}", start.elapsed() / 1000);
    assert_eq!(events.next().err(), Some(rustix::io::Errno::AGAIN), "something was read");
    // The watch does see what is read.
    fs::read(root.path().join("etc/security/limits.conf")).unwrap();
    assert!(events.next().unwrap().events().contains(Got::ACCESS));
}

#[test]
fn a_hostile_root_leads_nowhere() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "* soft core 77\n").unwrap();
    let root = root(&[]);
    let conf = root.path().join("etc/security/limits.conf");
    let read = || resolver(Flavor::LinuxPam17, root.path()).resolve(&alice());

    // Links end at the root.
    symlink(outside.path().join("secret"), &conf).unwrap();
    assert_eq!(read().unwrap().item(Resource::Core).limits.soft, Limit::Unlimited);
    fs::remove_file(&conf).unwrap();
    symlink("../../../../../../../etc/passwd-not-here", &conf).unwrap();
    assert!(read().unwrap().ignored.is_empty());
    fs::remove_file(&conf).unwrap();
    // Inside they work.
    fs::write(root.path().join("etc/real"), "* soft core 5\n").unwrap();
    symlink("/etc/real", &conf).unwrap();
    assert_eq!(read().unwrap().item(Resource::Core).limits.soft, Limit::Value(5120));
    fs::remove_file(&conf).unwrap();
    // In a circle.
    symlink("limits.conf", &conf).unwrap();
    let error = read().unwrap_err();
    assert!(error.hint().unwrap().contains("symbolic link"), "{error}");
    fs::remove_file(&conf).unwrap();

    // A FIFO would hang the reader.
    rustix::fs::mknodat(rustix::fs::CWD, &conf, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    assert!(matches!(read(), Err(Error::Invalid { .. })));
    fs::remove_file(&conf).unwrap();
    // A directory counts as an empty file, as with `fopen`.
    fs::create_dir(&conf).unwrap();
    assert_eq!(read().unwrap().login(), Login::Allowed);
    fs::remove_dir(&conf).unwrap();

    // Too much is refused, not read.
    let file = fs::File::create(&conf).unwrap();
    file.set_len(1 << 40).unwrap();
    assert!(read().unwrap_err().to_string().contains("more than 1048576 bytes"));
    file.set_len(0).unwrap();
    fs::write(&conf, "a\n".repeat(50_001)).unwrap();
    assert!(read().unwrap_err().to_string().contains("50000 lines"));
    fs::write(&conf, "").unwrap();
    for number in 0..1001 {
        fs::write(root.path().join(format!("etc/security/limits.d/{number}.conf")), "").unwrap();
    }
    assert!(read().unwrap_err().to_string().contains("1000 files"));
    // passwd too.
    let passwd = fs::File::create(root.path().join("etc/passwd")).unwrap();
    passwd.set_len(1 << 40).unwrap();
    assert!(resolver(Flavor::LinuxPam17, root.path()).user("alice").is_err());
}

#[test]
fn devices_below_a_root_are_not_opened() {
    let root = root(&[]);
    let conf = root.path().join("etc/security/limits.conf");
    let made = rustix::fs::mknodat(
        rustix::fs::CWD,
        &conf,
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::RUSR,
        rustix::fs::makedev(1, 5),
    );
    require!("devices_below_a_root_are_not_opened", made.is_ok(), "mknod", "a refusal");
    let error = resolver(Flavor::LinuxPam17, root.path()).resolve(&alice()).unwrap_err();
    assert!(error.to_string().contains("neither a file nor a directory"), "{error}");
}

#[test]
fn accounts_of_this_system_are_found() {
    let resolver = Resolver::new(Flavor::Debian12);
    let root = resolver.user("root").unwrap();
    assert_eq!((root.uid, root.name.as_str()), (0, "root"));
    assert_eq!(resolver.user("0").unwrap(), root);
    assert!(root.groups.iter().any(|group| group.gid == 0));
    let error = resolver.user("no such user").unwrap_err().to_string();
    assert_eq!(error, "user `no such user`: there is none in the system's user database");
    resolver.resolve_name("root").unwrap();
}
