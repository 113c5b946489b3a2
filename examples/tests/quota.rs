//! The example `quota`: what it says of directories that cannot be limited, and what it does to one that can. With it those
//! two that limit a sandbox's disk: `disk_overlay`, and `run --disk`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

/// Cargo builds the examples beside the tests.
fn example(name: &str) -> PathBuf {
    let deps = std::env::current_exe().unwrap();
    deps.parent().unwrap().parent().unwrap().join("examples").join(name)
}

/// A need that is not met: what is needed, and what was found.
type Need = Result<(), (&'static str, String)>;

macro_rules! require {
    ($($need:expr),+ $(,)?) => {
        $(if let Err((needs, found)) = $need {
            return skip(needs, &found);
        })+
    };
}

fn skip(needs: &str, found: &str) {
    let line = format!(
        "SKIP {}: needs {needs}; found {}\n",
        std::thread::current().name().unwrap(),
        found.lines().next().unwrap_or_default()
    );
    assert!(std::env::var("SANDBOX_TEST_REQUIRE_ALL").as_deref() != Ok("1"), "{line}");
    let _ = std::io::stderr().write_all(line.as_bytes());
}

fn need(met: bool, needs: &'static str, found: &str) -> Need {
    if met { Ok(()) } else { Err((needs, found.to_owned())) }
}

fn root() -> Need {
    need(rustix::process::geteuid().is_root(), "root", "another user")
}

fn loop_devices() -> Need {
    need(Path::new("/dev/loop-control").exists(), "loop devices", "no /dev/loop-control")
}

fn tool(program: &'static str) -> Need {
    let found = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].iter().any(|place| Path::new(place).join(program).exists());
    need(found, program, "none")
}

fn kernel_with(filesystem: &'static str) -> Need {
    let _ = Command::new("modprobe").arg(filesystem).output();
    let list = fs::read_to_string("/proc/filesystems").unwrap();
    need(list.split_whitespace().any(|word| word == filesystem), "a kernel with that file system", "one without")
}

/// The kernel shows statistics of XFS once it has it, and those of its quota if it was built with that.
fn xfs_quota() -> Need {
    let without = Path::new("/proc/fs/xfs/stat").exists() && !Path::new("/proc/fs/xfs/xqmstat").exists();
    need(!without, "a kernel with CONFIG_XFS_QUOTA", "one without")
}

fn disk() -> PathBuf {
    std::env::var_os("SANDBOX_TEST_DISK").map_or_else(|| PathBuf::from("/mnt/quota"), PathBuf::from)
}

/// A disk that limits projects, and the right to use it.
fn fit_disk() -> Need {
    let output = Command::new(example("quota")).arg("check").arg(disk()).output().unwrap();
    need(output.status.success(), "project quota at /mnt/quota", &text(&output))
}

/// A directory of its own, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn below(directory: &Path) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = directory.join(format!("sandbox-quota-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// `quota check WORDS` as a person runs it, and for a program: exit status 1, the reason and the fix. `setup` comes before,
/// in a mount namespace that goes with the process; `wrapper` is a command line before the program.
fn assert_unfit(setup: &str, wrapper: &[&str], words: &[&str], reason: &str, fix: &str) {
    const SCRIPT: &str =
        "set -e; eval \"$SETUP\"; set +e; \"$@\" >&2; human=$?; \"$@\" --json; exit $(($? == human ? human : 99))";
    let own_mounts: &[&str] = &["unshare", "--mount", "--propagation", "private"];
    let before = if setup.is_empty() { &[] } else { own_mounts };
    let quota = example("quota");
    let line = [before, &["/bin/sh", "-c", SCRIPT, "sh"], wrapper, &[quota.to_str().unwrap(), "check"], words].concat();
    let mut command = Command::new(line[0]);
    command.args(&line[1..]).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("SETUP", setup);
    let output = command.output().unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{setup} {words:?}: {said}");
    let human = String::from_utf8_lossy(&output.stderr);
    assert!(
        human.contains(reason) && human.contains(fix),
        "{setup} {words:?}: expected {reason:?}, {fix:?} in {human}"
    );

    let document: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"));
    let (problem, way) = match document["problems"].as_array() {
        Some(problems) => (&problems[0]["problem"], &problems[0]["fix"]),
        None => (&document["error"], &document["fix"]),
    };
    assert_ne!(document["fit"], json!(true));
    assert!(problem.as_str().unwrap().contains(reason) && way.as_str().unwrap().contains(fix), "{document}");
}

#[test]
fn what_is_no_directory_is_unfit() {
    assert_unfit("", &[], &["/no/such/directory"], "No such file or directory", "make the directory first");
    assert_unfit("", &[], &["/proc/self/status"], "Not a directory", "give a directory");
}

#[test]
fn what_is_no_disk_is_unfit() {
    assert_unfit("", &[], &["/proc"], "proc has no project quota", "XFS, ext4 or f2fs");
    assert_unfit("", &[], &["/dev/shm"], "tmpfs has no project quota", "size=BYTES,nr_inodes=N");
}

/// The file `$I`, formatted by `mkfs`, is mounted at `$M` by `mount`.
fn assert_unfit_mount(mkfs: &str, mount: &str, words: &[&str], reason: &str, fix: &str) {
    let scratch = Scratch::below(Path::new("/tmp"));
    let (image, point) = (scratch.join("image"), scratch.join("mount"));
    fs::create_dir(&point).unwrap();
    fs::File::create(&image).unwrap().set_len(512 << 20).unwrap();
    let (image, point) = (image.to_str().unwrap(), point.to_str().unwrap());
    let setup = format!("{mkfs} $I >&2; {mount}").replace("$I", image).replace("$M", point);
    let words: Vec<_> = words.iter().map(|word| word.replace("$M", point)).collect();
    assert_unfit(&setup, &[], &words.iter().map(String::as_str).collect::<Vec<_>>(), reason, fix);
}

#[test]
fn an_overlay_is_unfit_and_the_directory_behind_it_is_named() {
    require!(root(), kernel_with("overlay"));
    let mount = "mount -t tmpfs tmpfs $M; mkdir $M/l $M/u $M/w $M/o; \
        mount -t overlay -o lowerdir=$M/l,upperdir=$M/u,workdir=$M/w overlay $M/o";
    assert_unfit_mount("true", mount, &["$M/o"], "an overlay has no quota of its own", "the directory behind it: ");
}

#[test]
fn an_xfs_that_does_not_limit_is_unfit() {
    require!(root(), loop_devices(), tool("mkfs.xfs"), kernel_with("xfs"), xfs_quota());
    let unfit = |mount: &str, reason, fix| assert_unfit_mount("mkfs.xfs -q", mount, &["$M"], reason, fix);
    let without = "was mounted without project quota";
    unfit("mount -o loop $I $M", without, "mount -o prjquota /dev/loop");
    unfit("mount -o loop,uquota $I $M", "(only user or group quota is on)", "mount -o prjquota /dev/loop");
    unfit("mount -o loop $I $M; mount -o remount,pquota $M", without, "a remount cannot add it");
    unfit("mount -o loop,pqnoenforce $I $M", "accounted but not enforced", "enable -p");
    unfit("mount -o loop,prjquota $I $M; mount -o remount,ro $M", "mounted read-only", "remount,rw");
}

#[test]
fn an_xfs_of_the_old_format_with_group_quota_or_without_file_types_is_unfit() {
    require!(root(), loop_devices(), tool("mkfs.xfs"), kernel_with("xfs"), xfs_quota());
    // Support of it is an option of the kernel.
    let mount = "unshare --mount sh -c 'truncate -s 512M $I && mkfs.xfs -q -m crc=0 $I && mount -o loop $I $M'";
    let scratch = Scratch::below(Path::new("/tmp"));
    let output = Command::new("/bin/sh").args(["-c", mount]).env("I", scratch.join("i")).env("M", &scratch.0).output();
    let output = output.unwrap();
    require!(need(output.status.success(), "a kernel that mounts XFS V4", &text(&output)));
    let group = "excludes project quota";
    assert_unfit_mount("mkfs.xfs -q -m crc=0", "mount -o loop,gquota $I $M", &["$M"], group, "uquota,prjquota");
    let (old, mount) = ("mkfs.xfs -q -m crc=0 -n ftype=0", "mount -o loop,prjquota $I $M");
    assert_unfit_mount(old, mount, &["--overlay", "$M"], "no file type (ftype=0)", "mkfs.xfs -n ftype=1");
}

#[test]
fn an_ext4_that_does_not_limit_is_unfit() {
    require!(root(), loop_devices(), tool("mkfs.ext4"), kernel_with("ext4"), xfs_quota());
    let tune = "tune2fs -O project,quota -Q prjquota /dev/loop";
    let unfit = |mkfs: &str, mount: &str, reason, fix| assert_unfit_mount(mkfs, mount, &["$M"], reason, fix);
    unfit("mkfs.ext4 -q -F", "mount -o loop $I $M", "lacks the feature project", tune);
    unfit("mkfs.ext4 -q -F -O project,^quota", "mount -o loop,prjquota $I $M", "lacks the feature quota", tune);
    let fit = "mkfs.ext4 -q -F -O quota,project -E quotatype=usrquota:grpquota:prjquota";
    unfit(fit, "mount -o loop $I $M", "accounted but not enforced", "quotaon -P");
    unfit("mkfs.ext2 -q -F", "mount -t ext2 -o loop $I $M", "ext2 has no project quota", "XFS, ext4 or f2fs");
}

#[test]
fn an_f2fs_that_does_not_limit_is_unfit() {
    require!(root(), loop_devices(), tool("mkfs.f2fs"), kernel_with("f2fs"));
    let fix = "mkfs.f2fs -O extra_attr,project_quota,quota";
    assert_unfit_mount("mkfs.f2fs -q", "mount -o loop $I $M", &["$M"], "lacks the feature project_quota", fix);
}

#[test]
fn a_kernel_that_was_built_without_is_unfit() {
    require!(root(), loop_devices(), tool("mkfs.xfs"), kernel_with("xfs"));
    require!(need(xfs_quota().is_err(), "a kernel without CONFIG_XFS_QUOTA", "one with"));
    let (reason, fix) = ("built without CONFIG_XFS_QUOTA", "a kernel built with CONFIG_XFS_QUOTA=y");
    assert_unfit_mount("mkfs.xfs -q", "mount -o loop $I $M", &["$M"], reason, fix);
}

#[test]
fn a_caller_that_may_not_is_told_so() {
    require!(root(), fit_disk());
    let directory = disk();
    let directory = directory.to_str().unwrap();
    let unfit = |wrapper: &[&str], reason, fix| assert_unfit("", wrapper, &[directory], reason, fix);
    let inside = ["unshare", "--user", "--map-root-user"];
    unfit(&inside, "in a user namespace", "from the initial user namespace");
    let without = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"];
    unfit(&without, "lacks CAP_SYS_ADMIN", "run as root");
    let other = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "--inh-caps=-all"];
    unfit(&other, "lacks CAP_SYS_ADMIN", "run as root");
}

fn json_of(words: &[&str]) -> Value {
    let output = Command::new(example("quota")).arg("--json").args(words).output().unwrap();
    assert!(output.status.success(), "{words:?}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Writes through an overlay or not, but without CAP_SYS_RESOURCE, which passes the limits of ext4 and f2fs.
fn store(file: &Path, bytes: u32) -> bool {
    let script = format!("head -c {bytes} /dev/zero >> {}", file.display());
    let words = ["--bounding-set=-sys_resource", "--inh-caps=-sys_resource", "/bin/sh", "-c", &script];
    Command::new("setpriv").args(words).stderr(Stdio::null()).status().unwrap().success()
}

#[test]
fn a_directory_is_limited_reported_and_free_again() {
    require!(root(), fit_disk(), tool("setpriv"));
    let scratch = Scratch::below(&disk());
    let state = Scratch::below(Path::new("/tmp"));
    let state = ["--state", state.0.to_str().unwrap()];
    let (new, old) = (scratch.join("new"), scratch.join("old"));
    for directory in [&new, &old] {
        fs::create_dir(directory).unwrap();
    }
    fs::write(old.join("file"), vec![1; 512 << 10]).unwrap();
    std::os::unix::fs::symlink("file", old.join("link")).unwrap();
    let ids = [&new, &old].map(|directory| {
        let set = json_of(&[&state[..], &["set", directory.to_str().unwrap(), "1M", "--inodes", "9"]].concat());
        assert_eq!((&set["hard_bytes"], &set["hard_inodes"]), (&json!(1 << 20), &json!(9)), "{set}");
        // Of what was there, a link may be out of reach of the kernel: then it is named.
        let left: Vec<_> = set["not_counted"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        assert!(left.is_empty() || (left == ["link"] && *directory == old), "{set}");
        set["project"].as_u64().unwrap()
    });
    assert_ne!(ids[0], ids[1]);
    assert!(store(&new.join("file"), 900 << 10) && !store(&new.join("file"), 900 << 10), "1M and no more");
    assert!(store(&old.join("more"), 400 << 10) && !store(&old.join("more"), 400 << 10), "what was there counts");

    let report = json_of(&["report", scratch.0.to_str().unwrap()]);
    let rows: Vec<_> = ids.map(|id| report.as_array().unwrap().iter().find(|row| row["project"] == id).unwrap()).into();
    for row in rows {
        let keys = ["project", "used_bytes", "soft_bytes", "hard_bytes", "used_inodes", "hard_inodes"];
        assert!(keys.iter().all(|key| row.get(key).is_some()), "{row}");
        assert!((800 << 10..=1 << 20).contains(&row["used_bytes"].as_u64().unwrap()), "{row}");
        assert_eq!((&row["soft_bytes"], &row["hard_bytes"]), (&json!(1 << 20), &json!(1 << 20)));
    }

    let cleared = json_of(&[&state[..], &["clear", new.to_str().unwrap()]].concat());
    assert_eq!(cleared, json!({ "project": ids[0], "released": true }));
    assert!(store(&new.join("file"), 4 << 20), "free again");
    // A link that could be made the project's can be freed from it, too.
    let cleared = json_of(&[&state[..], &["clear", old.to_str().unwrap()]].concat());
    assert_eq!(cleared["released"], json!(true));
    let report = json_of(&["report", scratch.0.to_str().unwrap()]);
    let limited = |id: &u64| {
        report.as_array().unwrap().iter().any(|row| row["project"] == *id && row["hard_bytes"] != Value::Null)
    };
    assert!(!ids.iter().any(limited), "{report}");
}

#[test]
fn a_layer_on_a_disk_is_limited_and_the_image_is_not_counted() {
    let output = Command::new(example("disk_overlay")).output().unwrap();
    let said = text(&output);
    require!(need(output.status.code() != Some(77), "project quota at /mnt/quota", &said));
    assert_eq!((output.status.code(), said.lines().last()), (Some(0), Some("ok")), "{said}");
}

fn run(flags: &[&str], script: &str) -> Output {
    Command::new(example("run")).args(flags).args(["--", "/bin/sh", "-c", script]).output().unwrap()
}

/// `--disk` without a disk that limits is an error with the cause and the ways out, and with memory allowed it is memory.
#[test]
fn a_limit_that_cannot_be_had_on_disk_is_an_error_unless_memory_will_do() {
    let output = run(&["--disk", "50M"], "true");
    let said = text(&output);
    assert_eq!(output.status.code(), Some(125), "{said}");
    for word in ["disk_max", "nothing that a program may write to lies on a disk", "prjquota", "`prefer`", "overlay"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    let scratch = Scratch::below(Path::new("/dev/shm"));
    let bind = format!("{}:/place", scratch.0.display());
    let output = run(&["--disk", "50M", "--bind", &bind], "true");
    let said = text(&output);
    assert_eq!(output.status.code(), Some(125), "{said}");
    assert!(said.contains("tmpfs has no project quota") && said.contains("prjquota"), "{said}");

    let document = scratch.join("outcome");
    let flags = ["--disk", "5M", "--prefer", "disk_max", "--outcome", document.to_str().unwrap()];
    let output = run(&flags, "head -c 9M /dev/zero > /tmp/f; stat -c %s /tmp/f");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), (5 << 20).to_string(), "{output:?}");
    let document: Value = serde_json::from_slice(&fs::read(document).unwrap()).unwrap();
    assert_eq!(document["limits_hit"], json!(["disk"]));
    let entry =
        document["enforcement"].as_array().unwrap().iter().find(|entry| entry["feature"] == "disk_max").unwrap();
    assert_eq!((&entry["mode"], &entry["enforced"]), (&json!("prefer"), &json!(5 << 20)));
    assert_eq!(entry["by"], "the size of the tmpfs at /tmp");
    assert!(entry["why_not"].is_string() && entry["fix"].is_string(), "{entry}");
}

#[test]
fn a_limit_on_disk_is_met_and_told() {
    require!(root(), fit_disk());
    let scratch = Scratch::below(&disk());
    let place = scratch.join("place");
    fs::create_dir(&place).unwrap();
    fs::set_permissions(&place, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let document = scratch.join("outcome");
    let bind = format!("{}:/place", place.display());
    let flags = ["--disk", "5M", "--bind", &bind, "--outcome", document.to_str().unwrap()];
    // The usual place of the registry may be read-only in a guest.
    let own_state = ["--mount", "/bin/sh", "-c", "mount -t tmpfs tmpfs /var/lib && exec \"$@\"", "sh"];
    let mut command = Command::new("unshare");
    command.args(own_state).arg(example("run")).args(flags);
    let output = command.args(["--", "/bin/sh", "-c", "head -c 9M /dev/zero > /place/f"]).output().unwrap();
    assert!(document.exists(), "{}", text(&output));
    let document: Value = serde_json::from_slice(&fs::read(document).unwrap()).unwrap();
    assert_eq!(document["limits_hit"], json!(["disk"]), "{document}");
    let used = document["usage"]["disk_bytes"].as_u64().unwrap();
    assert!(((5 << 20) - (64 << 10)..=5 << 20).contains(&used), "{used}");
    assert_eq!(document["leftovers"], json!([]));
    fs::write(place.join("g"), vec![1; 6 << 20]).unwrap();
}
