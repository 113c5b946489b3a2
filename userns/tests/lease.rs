//! Leases: unique across threads, processes, crashes, and whatever may happen to the state directory.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::{Held, again, guest, part, require, root};
use rustix::fs::{FlockOperation, flock};
use rustix::io::{FdFlags, dup3, fcntl_setfd};
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use userns::{Error, Lease, OwnerState, Pool, PoolConfig, Range, Setgroups, owner_of, write_maps};

/// The first id of a test's own pool: far from everything else, and from the other tests, whose processes it would see.
const fn base(test: u32) -> u32 {
    3_000_000_000 + test * (1 << 20)
}

fn config(base: u32, slots: u32) -> PoolConfig {
    PoolConfig::new(Range::new(base, slots * 1024).unwrap(), 1024).conflicts_from(Path::new("/nonexistent"))
}

fn pool(dir: &Path, base: u32, slots: u32) -> Pool {
    Pool::open(&dir.join("sandbox"), &config(base, slots)).unwrap()
}

/// The directory of the only pool.
fn pool_directory(dir: &Path) -> PathBuf {
    let pools = fs::read_dir(dir.join("sandbox/ids")).unwrap().map(|entry| entry.unwrap().path());
    pools.into_iter().find(|path| path.is_dir()).unwrap()
}

/// One test at a time: while one starts a process, that has copies of the locks of all others until it executes.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn kill(child: &Child) {
    let pid = rustix::process::Pid::from_child(child);
    pidfd_send_signal(pidfd_open(pid, PidfdFlags::empty()).unwrap(), Signal::KILL).unwrap();
}

#[test]
fn leases_differ_and_a_released_slot_comes_back() {
    const BASE: u32 = base(0);
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(dir.path(), BASE, 2);
    let first = pool.lease("first").unwrap();
    let second = pool.lease("second").unwrap();
    assert!(!first.range().overlaps(second.range()));
    let full = pool.lease("third").unwrap_err();
    assert!(matches!(full, Error::Exhausted { held: 2, .. }), "{full}");
    let range = first.range();
    first.release().unwrap();
    assert_eq!(pool.lease("third").unwrap().range(), range);
}

#[test]
fn a_small_slot_has_ids_for_init_and_nobody() {
    const BASE: u32 = base(1);
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let lease = pool(dir.path(), BASE, 1).lease("x").unwrap();
    let map = lease.uid_map();
    assert_eq!(map.to_outside(0), Some(BASE));
    assert_eq!(map.to_outside(userns::INIT_ID), Some(BASE + 1022));
    assert_eq!(map.to_outside(65534), Some(BASE + 1023));
    assert_eq!(map.to_outside(1022), None);
}

#[test]
fn threads_never_share_a_slot() {
    const BASE: u32 = base(2);
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(dir.path(), BASE, 16);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..if guest() { 10 } else { 100 } {
                    let two = [pool.lease("a").unwrap(), pool.lease("b").unwrap()];
                    for lease in two {
                        witness(dir.path(), &lease).unwrap();
                        lease.release().unwrap();
                    }
                }
            });
        }
    });
}

/// A second lock for the same ids: whoever cannot have it shares them with somebody.
fn witness(dir: &Path, lease: &Lease) -> Result<OwnedFd, String> {
    let path = dir.join(format!("witness-{}", lease.range().base()));
    let file = fs::OpenOptions::new().create(true).append(true).open(&path).unwrap();
    flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(file.into())
}

/// 12 processes × 200 leases (20 in a guest), and four more that are killed over and over in the middle of it.
#[test]
fn case_90_processes_never_share_a_slot_even_when_killed() {
    const BASE: u32 = base(4);
    const NAME: &str = "case_90_processes_never_share_a_slot_even_when_killed";
    const SLOTS: u32 = 48;
    let _alone = alone();
    if let Some(part) = part() {
        let (dir, times) = part.split_once(' ').unwrap();
        return worker(&pool(Path::new(dir), BASE, SLOTS), Path::new(dir), times.parse().unwrap());
    }
    let dir = tempfile::tempdir().unwrap();
    drop(pool(dir.path(), BASE, SLOTS));
    let start = |times: u32| {
        let part = format!("{} {times}", dir.path().display());
        again(NAME, &part).stdout(Stdio::piped()).spawn().unwrap()
    };
    // Not done before they are killed, and not there for ever if nobody does it.
    let victim = || start(50 * leases());
    let steady: Vec<Child> = (0..12).map(|_| start(leases())).collect();
    let mut killed = 0;
    let mut victims: Vec<Child> = (0..4).map(|_| victim()).collect();
    let mut steady_left = steady;
    let clock = Instant::now();
    while !steady_left.is_empty() && clock.elapsed() < Duration::from_secs(120) {
        for one in &mut victims {
            std::thread::sleep(Duration::from_millis(15));
            if one.try_wait().unwrap().is_none() {
                kill(one);
                killed += 1;
            }
            one.wait().unwrap();
            *one = victim();
        }
        let finished = |child: &mut Child| child.try_wait().unwrap().is_none();
        for child in steady_left.extract(finished) {
            let output = child.wait_with_output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success() && text.contains(&format!("leases {}", leases())), "{text}");
        }
    }
    assert!(steady_left.is_empty(), "the workers are stuck");
    for mut victim in victims {
        kill(&victim);
        let _ = victim.wait();
    }
    assert!(killed > 0);
    // No leak: every slot can be had again, those of the killed included.
    let pool = pool(dir.path(), BASE, SLOTS);
    let all: Vec<Lease> = (0..SLOTS).map(|n| pool.lease(&format!("last {n}")).unwrap()).collect();
    let mut bases: Vec<u32> = all.iter().map(|lease| lease.range().base()).collect();
    bases.sort_unstable();
    bases.dedup();
    assert_eq!(bases.len(), all.len());
    println!("killed {killed} owners");
}

/// Removes those that do not pass, and gives them.
trait Extract<T> {
    fn extract(&mut self, keep: impl FnMut(&mut T) -> bool) -> Vec<T>;
}

impl<T> Extract<T> for Vec<T> {
    fn extract(&mut self, mut keep: impl FnMut(&mut T) -> bool) -> Vec<T> {
        let mut out = Vec::new();
        let mut at = 0;
        while at < self.len() {
            if keep(&mut self[at]) {
                at += 1;
            } else {
                out.push(self.remove(at));
            }
        }
        out
    }
}

fn leases() -> u32 {
    if guest() { 20 } else { 200 }
}

fn worker(pool: &Pool, dir: &Path, times: u32) {
    // A process that is killed closes its descriptors in order: the witness must go before the lease does.
    let mut low: OwnedFd = fs::File::open("/dev/null").unwrap().into();
    for n in 0..times {
        let lease = pool.lease("worker").unwrap();
        let second = witness(dir, &lease).unwrap();
        dup3(&second, &mut low, rustix::io::DupFlags::CLOEXEC).unwrap();
        drop(second);
        if n % 7 == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        low = fs::File::open("/dev/null").unwrap().into();
        if n % 25 == 0 { drop(lease) } else { lease.release().unwrap() }
    }
    println!("leases {times}");
}

#[test]
fn case_92_a_sandbox_keeps_its_ids_when_its_owner_is_killed() {
    const BASE: u32 = base(5);
    const NAME: &str = "case_92_a_sandbox_keeps_its_ids_when_its_owner_is_killed";
    let _alone = alone();
    if let Some(dir) = part() {
        // The owner: leases, starts a "sandbox" that inherits the lock and lives as long as its input, and hangs.
        let lease = pool(Path::new(&dir), BASE, 1).lease("survivor").unwrap();
        fcntl_setfd(lease.lock_fd(), FdFlags::empty()).unwrap();
        #[allow(clippy::zombie_processes)] // It outlives us, on purpose.
        let sandbox = Command::new("cat").stdin(Stdio::inherit()).stdout(Stdio::null()).spawn().unwrap();
        println!("\nsandbox {}", sandbox.id());
        std::io::stdout().flush().unwrap();
        loop {
            std::thread::park();
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(dir.path(), BASE, 1);
    let mut owner =
        again(NAME, dir.path().to_str().unwrap()).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let out = BufReader::new(owner.stdout.take().unwrap());
    assert!(out.lines().any(|line| line.unwrap().starts_with("sandbox ")));
    let state = dir.path().join("sandbox");
    let known = owner_of(&state, BASE + 5).unwrap().unwrap();
    assert_eq!((known.name.as_str(), known.pid, known.inside), ("survivor", owner.id(), Some(5)));
    assert_eq!(known.state, OwnerState::Living);

    kill(&owner);
    let input = owner.stdin.take().unwrap();
    owner.wait().unwrap();
    assert!(matches!(pool.lease("other").unwrap_err(), Error::Exhausted { held: 1, .. }));
    assert_eq!(owner_of(&state, BASE).unwrap().unwrap().state, OwnerState::Living);
    assert!(pool.recover().unwrap().freed.is_empty(), "the living are not touched");

    drop(input);
    let clock = Instant::now();
    let freed = loop {
        let recovered = pool.recover().unwrap();
        if !recovered.freed.is_empty() || clock.elapsed() > Duration::from_secs(10) {
            break recovered.freed;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert_eq!(freed, [Range::new(BASE, 1024).unwrap()]);
    assert_eq!(owner_of(&state, BASE).unwrap(), None);
    assert_eq!(pool.lease("other").unwrap().range().base(), BASE);
}

/// Whoever leases while others ask and clean up is never told that the pool is full.
#[test]
fn looking_does_not_take() {
    const BASE: u32 = base(7);
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(dir.path(), BASE, 1);
    let state = dir.path().join("sandbox");
    pool.lease("first").unwrap().release().unwrap();
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            for _ in 0..if guest() { 30 } else { 300 } {
                owner_of(&state, BASE).unwrap();
                let _ = pool.recover().unwrap();
            }
        });
        while !looking.is_finished() {
            pool.lease("busy").unwrap().release().unwrap();
        }
    });
}

#[test]
fn case_91_a_removed_lock_file_is_noticed_by_its_holder_and_by_the_next() {
    const BASE: u32 = base(8);
    let _alone = alone();
    require!("case_91_a_removed_lock_file_is_noticed_by_its_holder_and_by_the_next", root() => "root");
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(dir.path(), BASE, 1);
    let lease = pool.lease("first").unwrap();
    lease.verify().unwrap();
    let Some(held) = Held::start("true") else {
        common::skip("case_91_a_removed_lock_file_is_noticed_by_its_holder_and_by_the_next", "user namespaces");
        return;
    };
    write_maps(held.pid(), &lease.uid_map(), &lease.gid_map(), Setgroups::Allow).unwrap();
    fs::remove_file(pool_directory(dir.path()).join(BASE.to_string())).unwrap();
    let error = lease.verify().unwrap_err().to_string();
    assert!(error.contains("removed or replaced"), "{error}");
    // The lock is free, but the namespace lives.
    let error = pool.lease("second").unwrap_err().to_string();
    assert!(error.contains(&format!("the user namespace of process {}", held.pid())), "{error}");
    held.finish();
    assert_eq!(pool.lease("second").unwrap().range(), lease.range());
}

#[test]
fn a_slot_with_a_process_left_over_is_not_lent() {
    const BASE: u32 = base(9);
    let _alone = alone();
    require!("a_slot_with_a_process_left_over_is_not_lent", root() => "root");
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(dir.path(), BASE, 1);
    drop(pool.lease("killed").unwrap());
    let mut left = Command::new("setpriv")
        .args([&format!("--reuid={}", BASE + 7), "--clear-groups", "sh", "-c", "echo ready; read _"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0; 6];
    left.stdout.take().unwrap().read_exact(&mut ready).unwrap();
    let error = pool.lease("next").unwrap_err().to_string();
    assert!(error.contains(&format!("process {} (sh) runs with uid {}", left.id(), BASE + 7)), "{error}");
    let recovered = pool.recover().unwrap();
    assert_eq!((recovered.freed.len(), recovered.left.len()), (0, 1));
    drop(left.stdin.take());
    left.wait().unwrap();
    assert_eq!(pool.recover().unwrap().freed.len(), 1);
    pool.lease("next").unwrap().release().unwrap();
}

#[test]
fn case_91_damaged_lock_files_cost_their_slot_or_nothing() {
    const BASE: u32 = base(10);
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(dir.path(), BASE, 4);
    drop(pool.lease("make them").unwrap());
    let directory = pool_directory(dir.path());
    let file = |n: u32| directory.join((BASE + n * 1024).to_string());
    // A link to a file of somebody else's: never followed, never written.
    let precious = dir.path().join("precious");
    fs::write(&precious, "precious").unwrap();
    fs::remove_file(file(0)).unwrap();
    symlink(&precious, file(0)).unwrap();
    // Garbage, and a record that was cut.
    fs::write(file(1), vec![0xff; 4096]).unwrap();
    fs::write(file(2), "sandbox lease 1\nstate rel").unwrap();
    // Writable by others: they could hold its lock, or write into it.
    fs::set_permissions(file(3), fs::Permissions::from_mode(0o666)).unwrap();

    let leases = [pool.lease("a").unwrap(), pool.lease("b").unwrap()];
    let mut bases = leases.each_ref().map(|lease| lease.range().base());
    bases.sort_unstable();
    assert_eq!(bases, [BASE + 1024, BASE + 2048]);
    let error = pool.lease("c").unwrap_err();
    assert!(matches!(error, Error::Exhausted { held: 2, unusable: 2, .. }), "{error}");
    assert_eq!(fs::read_to_string(precious).unwrap(), "precious");
}

#[test]
fn a_state_directory_of_another_kind_is_refused() {
    const BASE: u32 = base(11);
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let refused = |state: &Path| Pool::open(state, &config(BASE, 1)).unwrap_err().to_string();
    let open = dir.path().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(refused(&open).contains("others may write to it (mode 0777)"), "{}", refused(&open));
    assert!(refused(&open.join("below")).contains("others could replace"), "{}", refused(&open.join("below")));
    let link = dir.path().join("link");
    symlink(dir.path(), &link).unwrap();
    assert!(refused(&link).contains("cannot open"), "{}", refused(&link));
    assert!(refused(&dir.path().join("missing/below")).contains("No such file"));

    let newer = dir.path().join("newer");
    drop(Pool::open(&newer, &config(BASE, 1)).unwrap());
    fs::write(newer.join("ids/version"), "sandbox ids 2\n").unwrap();
    assert!(refused(&newer).contains("to say \"sandbox ids 1\""), "{}", refused(&newer));
}

#[test]
fn case_91_a_state_directory_of_another_user_is_refused() {
    const BASE: u32 = base(12);
    let _alone = alone();
    require!("case_91_a_state_directory_of_another_user_is_refused", root() => "root");
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("sandbox");
    drop(Pool::open(&state, &config(BASE, 1)).unwrap());
    std::os::unix::fs::chown(&state, Some(65534), None).unwrap();
    let error = Pool::open(&state, &config(BASE, 1)).unwrap_err().to_string();
    assert!(error.ends_with("it belongs to uid 65534, not to 0"), "{error}");
    std::os::unix::fs::chown(&state, Some(0), None).unwrap();
    std::os::unix::fs::chown(pool_directory(dir.path()).join(BASE.to_string()), Some(65534), None).ok();
    let pool = pool(dir.path(), BASE, 1);
    let made = pool.lease("x").map(|lease| lease.range());
    let file = pool_directory(dir.path()).join(BASE.to_string());
    std::os::unix::fs::chown(&file, Some(65534), None).unwrap();
    assert!(made.is_ok());
    let error = pool.lease("y").unwrap_err().to_string();
    assert!(error.contains("it belongs to uid 65534"), "{error}");
}

#[test]
fn a_state_directory_that_goes_away_is_an_error() {
    const BASE: u32 = base(13);
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let first = pool(dir.path(), BASE, 2);
    let lease = first.lease("a").unwrap();
    fs::rename(dir.path().join("sandbox"), dir.path().join("elsewhere")).unwrap();
    let error = first.lease("b").unwrap_err().to_string();
    assert!(error.contains("open the pool again"), "{error}");
    assert!(lease.verify().unwrap_err().to_string().contains("moved or removed"));
}

/// On a file system of our own: full, then read-only.
#[test]
fn case_91_a_full_or_read_only_state_directory_leases_nothing() {
    const BASE: u32 = base(15);
    const NAME: &str = "case_91_a_full_or_read_only_state_directory_leases_nothing";
    let _alone = alone();
    if let Some(dir) = part() {
        // In a mount namespace of its own, on a tmpfs with room for the directories and no file's content.
        let dir = Path::new(&dir);
        let pool = pool(dir, BASE, 2);
        fs::write(dir.join("fill"), vec![0; 1 << 20]).unwrap_err();
        let error = pool.lease("x").unwrap_err();
        assert_eq!(error.errno(), Some(28), "{error}");
        assert!(error.hint().unwrap().contains("is full"), "{error}");
        fs::remove_file(dir.join("fill")).unwrap();
        pool.lease("x").unwrap().release().unwrap();
        // Registered ranges are on it, too; leases elsewhere go on when it is read-only, without these.
        let elsewhere = tempfile::tempdir_in("/tmp").unwrap();
        let config = config(BASE + 4096, 2).registered_in(dir.join("registry"));
        let others = Pool::open(&elsewhere.path().join("sandbox"), &config).unwrap();
        let kept = others.lease_for_trees(&["/nonexistent/tree".into()], "x").unwrap();
        assert!(Command::new("mount").args(["-o", "remount,ro"]).arg(dir).status().unwrap().success());
        let others = Pool::open(&elsewhere.path().join("sandbox"), &config).unwrap();
        assert_eq!(others.check_registry().unwrap_err().errno(), Some(30));
        let other = others.lease("y").unwrap();
        assert_ne!(other.range(), kept.range());
        kept.release().unwrap();
        assert!(others.lease("z").unwrap_err().to_string().contains("registered"));
        let error = pool.lease("x").unwrap_err();
        assert_eq!(error.errno(), Some(30), "{error}");
        assert!(error.hint().unwrap().contains("read-only"), "{error}");
        return;
    }
    require!("case_91_a_full_or_read_only_state_directory_leases_nothing", root() => "root");
    let dir = tempfile::tempdir().unwrap();
    let inner = again(NAME, dir.path().to_str().unwrap());
    let script = "mount -t tmpfs -o size=64k,mode=755 tmpfs \"$0\" && exec \"$@\"";
    let mut outer = Command::new("unshare");
    outer.args(["--mount", "sh", "-c", script]).arg(dir.path()).arg(inner.get_program()).args(inner.get_args());
    outer.envs(inner.get_envs().filter_map(|(key, value)| Some((key, value?))));
    let output = outer.output().unwrap();
    assert!(
        output.status.success() && String::from_utf8_lossy(&output.stdout).contains("1 passed"),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn case_84_grants_and_accounts_of_others_are_not_lent() {
    const BASE: u32 = base(16);
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let etc = dir.path().join("etc");
    fs::create_dir(&etc).unwrap();
    fs::write(etc.join("passwd"), format!("box:x:990:\nother:x:991:\nlate:x:{}:\n", BASE + 1024 + 9)).unwrap();
    fs::write(etc.join("subuid"), format!("# ours\nbox:{BASE}:2048\n990:{BASE}:5\n")).unwrap();
    let config = config(BASE, 2).conflicts_from(dir.path());
    let state = dir.path().join("sandbox");
    let error = Pool::open(&state, &config).unwrap_err().to_string();
    let line = format!("{}:2 grants {BASE}..={} to box", etc.join("subuid").display(), BASE + 2047);
    assert_eq!(error, format!("ids {BASE}..={} are taken: {line}", BASE + 2047));

    let pool = Pool::open(&state, &config.owner("box")).unwrap();
    let lease = pool.lease("first").unwrap();
    assert_eq!(lease.range().base(), BASE, "the second slot has an account's id");
    let error = pool.lease("second").unwrap_err().to_string();
    assert!(error.contains(&format!("the user late has the id {}", BASE + 1024 + 9)), "{error}");
}

#[test]
fn pools_that_cut_the_same_ids_differently_are_refused() {
    const BASE: u32 = base(17);
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("sandbox");
    let first = pool(dir.path(), BASE, 4);
    let other = PoolConfig::new(Range::new(BASE + 1024, 4096).unwrap(), 2048).conflicts_from(Path::new("/nonexistent"));
    let error = Pool::open(&state, &other).unwrap_err();
    assert!(matches!(error, Error::Conflict { .. }), "{error}");
    let apart = PoolConfig::new(Range::new(BASE + 8192, 4096).unwrap(), 2048).conflicts_from(Path::new("/nonexistent"));
    let second = Pool::open(&state, &apart).unwrap();
    let (a, b) = (first.lease("a").unwrap(), second.lease("b").unwrap());
    assert_eq!(owner_of(&state, a.range().base()).unwrap().unwrap().name, "a");
    assert_eq!(owner_of(&state, b.range().last()).unwrap().unwrap().name, "b");
    assert_eq!(owner_of(&state, 1).unwrap(), None);
}

#[test]
fn a_registered_range_outlives_its_lease_and_the_state_directory() {
    const BASE: u32 = base(18);
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("sandbox");
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    let config = config(BASE, 2).registered_in(dir.path().join("state/registry"));
    let pool = Pool::open(&state, &config).unwrap();
    let mut lease = pool.lease("writer").unwrap();
    lease.register(std::slice::from_ref(&tree)).unwrap();
    let range = lease.range();
    lease.release().unwrap();
    let other = pool.lease("other").unwrap();
    assert_ne!(other.range(), range);
    let full = pool.lease("third").unwrap_err();
    assert!(matches!(full, Error::Exhausted { held: 1, registered: 1, .. }), "{full}");
    assert_eq!(owner_of(&state, range.base()).unwrap().unwrap().state, OwnerState::Registered);
    other.release().unwrap();

    // As after a reboot.
    fs::remove_dir_all(&state).unwrap();
    let pool = Pool::open(&state, &config).unwrap();
    assert_ne!(pool.lease("other").unwrap().range(), range);
    assert_eq!(pool.registered().unwrap()[0].trees, std::slice::from_ref(&tree));

    // Again for the same tree, and in use by nobody else meanwhile.
    let again = pool.lease_registered(range, "writer").unwrap();
    assert!(pool.forget(range).is_err());
    again.release().unwrap();
    assert!(pool.forget(range).unwrap_err().to_string().contains("still exists"));
    fs::remove_dir(&tree).unwrap();
    pool.forget(range).unwrap();
    assert!(pool.registered().unwrap().is_empty());
    let both = [pool.lease("a").unwrap(), pool.lease("b").unwrap()];
    assert!(both.iter().any(|lease| lease.range() == range));
}

#[test]
fn the_same_trees_have_the_same_ranges_and_others_never() {
    const BASE: u32 = base(41);
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
    for tree in [&a, &b] {
        fs::create_dir(tree).unwrap();
    }
    symlink(&a, dir.path().join("link")).unwrap();
    let config = config(BASE, 4).registered_in(dir.path().join("registry"));
    let pool = Pool::open(&dir.path().join("sandbox"), &config).unwrap();
    let lease = |trees: &[&PathBuf]| pool.lease_for_trees(&trees.iter().copied().cloned().collect::<Vec<_>>(), "x");

    // One after another: the same. At the same time: another, which stays, too.
    let first = lease(&[&a]).unwrap();
    let range = first.range();
    first.release().unwrap();
    let first = lease(&[&dir.path().join("link")]).unwrap();
    assert_eq!(first.range(), range);
    let second = lease(&[&a]).unwrap();
    assert_ne!(second.range(), range);
    let another = second.range();
    first.release().unwrap();
    // Killed, or dropped: the next one looks at all processes first.
    drop(second);
    let both = [lease(&[&a]).unwrap(), lease(&[&a]).unwrap()];
    let mut ranges = [range, another];
    ranges.sort();
    assert_eq!(both.each_ref().map(Lease::range), ranges);
    for lease in both {
        lease.release().unwrap();
    }

    // Whoever has another tree, or one more, has other ids: in no order and however often it is named.
    let pair = lease(&[&a, &b]).unwrap();
    assert!(![range, another].contains(&pair.range()));
    let both = pair.range();
    pair.release().unwrap();
    let pair = lease(&[&b, &a, &b]).unwrap();
    assert_eq!(pair.range(), both);
    pair.release().unwrap();
    let plain = pool.lease("plain").unwrap();
    assert!(![range, another, both].contains(&plain.range()));
    let full = lease(&[&b]).unwrap_err();
    assert!(matches!(full, Error::Exhausted { held: 1, registered: 3, .. }), "{full}");

    // Gone: what was of it alone is anybody's again, what was of another tree, too, is not.
    assert!(pool.forget_tree(&a).unwrap_err().to_string().contains("still exists"));
    fs::remove_dir(&a).unwrap();
    assert_eq!(pool.forget_tree(&a).unwrap(), ranges);
    assert!(pool.forget_tree(&a).unwrap().is_empty());
    assert_eq!(pool.registered().unwrap().len(), 1);
    assert!(pool.lease_registered(range, "x").unwrap_err().to_string().contains("no such range is registered"));
    fs::remove_dir(&b).unwrap();
    assert_eq!(pool.forget_tree(dir.path()).unwrap(), [both]);
    plain.release().unwrap();
}

#[test]
fn what_cannot_be_remembered_is_not_registered() {
    const BASE: u32 = base(42);
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let nowhere = config(BASE + 1024, 1).registered_in("/proc/nowhere");
    let nowhere = Pool::open(&dir.path().join("sandbox"), &nowhere).unwrap();
    assert!(nowhere.check_registry().is_err());
    let error = nowhere.lease_for_trees(&["/srv".into()], "x").unwrap_err();
    assert!(matches!(error, Error::File { .. }), "{error}");
    nowhere.lease("y").unwrap().release().unwrap();
    let elsewhere = Pool::open(&dir.path().join("sandbox"), &config(BASE + 1024, 1)).unwrap_err();
    assert!(matches!(elsewhere, Error::Conflict { .. }), "{elsewhere}");
    for wrong in ["relative", "/a\nb"] {
        let config = config(BASE, 1).registered_in(wrong);
        assert!(Pool::open(&dir.path().join("sandbox"), &config).is_err(), "{wrong}");
    }
    let config = config(BASE, 1).registered_in(dir.path().join("registry"));
    let pool = Pool::open(&dir.path().join("sandbox"), &config).unwrap();
    pool.check_registry().unwrap();
    let long: Vec<PathBuf> = (0..40).map(|n| format!("/{n}{}", "x".repeat(2000)).into()).collect();
    for (trees, why) in [(&["relative".into()][..], "absolute"), (&[], "none"), (&long, "too long")] {
        let error = pool.lease_for_trees(trees, "x").unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    assert!(pool.registered().unwrap().is_empty());
    pool.lease("y").unwrap().release().unwrap();
}

/// Killed between the two files that say so, whichever came first.
#[test]
fn case_92_a_half_registered_range_is_kept_and_a_half_forgotten_one_is_freed() {
    const BASE: u32 = base(40);
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let registry = dir.path().join("registry");
    let config = config(BASE, 1).registered_in(&registry);
    let pool = Pool::open(&dir.path().join("sandbox"), &config).unwrap();
    let slot = pool_directory(dir.path()).join(BASE.to_string());
    let mut lease = pool.lease("x").unwrap();
    let held = fs::read(&slot).unwrap();
    lease.register(&["/nonexistent/tree".into()]).unwrap();
    drop(lease);
    let registered = fs::read(&slot).unwrap();

    fs::write(&slot, held).unwrap();
    let error = pool.lease("y").unwrap_err();
    assert!(matches!(error, Error::Exhausted { registered: 1, .. }), "{error}");
    assert!(pool.recover().unwrap().freed.is_empty());

    fs::write(&slot, registered).unwrap();
    fs::remove_file(registry.join(format!("ids/{BASE}-1024"))).unwrap();
    assert_eq!(pool.recover().unwrap().freed.len(), 1);
    pool.lease("y").unwrap().release().unwrap();
}

#[test]
fn a_lease_is_cheap() {
    const BASE: u32 = base(19);
    let _alone = alone();
    let dir = tempfile::tempdir_in(if Path::new("/dev/shm").is_dir() { "/dev/shm" } else { "/tmp" }).unwrap();
    let pool = pool(dir.path(), BASE, 200);
    let turns = if guest() { 20 } else { 2000 };
    let mut times: Vec<_> = (0..turns)
        .map(|_| {
            let clock = Instant::now();
            pool.lease("x").unwrap().release().unwrap();
            clock.elapsed()
        })
        .collect();
    let first = times[0];
    times.sort();
    let (median, most) = (times[turns / 2], times[turns * 99 / 100]);
    println!("lease+release: first {first:?}, median {median:?}, 99 % {most:?}");
    // Not a measurement: a busy machine, too, is far below it.
    assert!(guest() || median < Duration::from_millis(20), "{median:?}");
    let lease = pool.lease("x").unwrap();
    assert!(lease.lock_fd().as_fd().try_clone_to_owned().is_ok());
}
