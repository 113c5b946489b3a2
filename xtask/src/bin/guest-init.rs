//! The first process of a guest, a static program in the initramfs.
//!
//! It covers the host's tree with an overlay in memory, makes cgroups, disk and swap as the job says, runs the programs,
//! notes how each ended, and switches the guest off. What goes wrong is said on the console, which the host shows.

#[path = "../guest/job.rs"]
mod job;

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use job::{BOOT_MODULES, JOB, Job, Layout, Output, Program, ProgramResult, RESULTS};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Uid, makedev, mknodat};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change, mount_move};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal};
use rustix::system::{RebootCommand, init_module, reboot, sethostname, uname};
use rustix::termios::{OptionalActions, tcdrain, tcgetattr, tcsetattr};

type Result<T> = std::result::Result<T, String>;

/// The host's tree, under the overlay.
const LOWER: &str = "/lower";
/// The overlay.
const TREE: &str = "/tree";
/// The tree with the guest's own mounts; becomes `/`.
const ROOT: &str = "/root";
const CGROUPS: &str = "/sys/fs/cgroup";
const RUN: &str = "/run/guest";
const USER: &str = "guest";
const USER_ID: u32 = 1000;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let result = match arguments.as_slice() {
        [verb, uid, program @ ..] if verb == "run" => become_program(uid, program),
        _ => init(),
    };
    let Err(error) = result;
    // For init: the console. For a program that did not start: its own output.
    println!("guest-init: {error}");
    if std::process::id() == 1 {
        rustix::fs::sync();
        let _ = reboot(RebootCommand::PowerOff);
    }
    ExitCode::from(127)
}

enum Never {}

fn init() -> Result<Never> {
    for (kind, target) in [("proc", "/proc"), ("sysfs", "/sys")] {
        mount_new(kind, kind, target, "")?;
    }
    load_boot_modules()?;
    let job: Job = serde_json::from_str(&read(Path::new("/").join(JOB))?).map_err(|error| format!("{JOB}: {error}"))?;
    build_tree(&job)?;
    enter_tree()?;
    configure(&job)?;
    mount_cgroups(&job)?;
    mount_disk(&job)?;
    // Late, so that everything above is visible in the shared mounts too, as on a machine run by systemd.
    mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC)
        .map_err(|e| format!("share mounts: {e}"))?;

    let mut output = open_output(&job.output)?;
    let results = Path::new(RUN).join(RESULTS);
    let mut results = File::create(&results).map_err(|error| format!("create {}: {error}", results.display()))?;
    for program in &job.programs {
        if job.programs.len() > 1 {
            writeln!(output, "{}", job::heading(&program.name)).map_err(|error| format!("write a heading: {error}"))?;
        }
        let result = run_program(program, job.uid, &mut output)?;
        let line = serde_json::to_string(&result).map_err(|error| error.to_string())?;
        writeln!(results, "{line}").map_err(|error| format!("note a result: {error}"))?;
    }
    if matches!(job.output, Output::Serial(_)) {
        let _ = tcdrain(&output);
    }
    drop((output, results));
    rustix::fs::sync();
    reboot(RebootCommand::PowerOff).map_err(|error| format!("power off: {error}"))?;
    Err("power off returned".into())
}

fn load_boot_modules() -> Result<()> {
    let directory = Path::new("/").join(BOOT_MODULES);
    let mut files: Vec<_> = entries(&directory)?;
    files.sort();
    for file in files {
        let image = fs::read(&file).map_err(|error| format!("read {}: {error}", file.display()))?;
        init_module(&image, c"").map_err(|error| format!("load {}: {error}", file.display()))?;
    }
    Ok(())
}

/// Makes the future root: the host's files, covered by memory where the guest writes.
fn build_tree(job: &Job) -> Result<()> {
    mount_share(&job.host, LOWER, MountFlags::RDONLY)?;
    mount_new("tmpfs", "tmpfs", "/memory", "mode=755,size=80%")?;
    for directory in ["/memory/upper", "/memory/work"] {
        create(directory)?;
    }
    mount_new("overlay", "overlay", TREE, &format!("lowerdir={LOWER},upperdir=/memory/upper,workdir=/memory/work"))?;
    let mut covered = vec!["run", "tmp"];
    // Linux 5.10: nothing on hostfs opens through an overlay (ENOENT). There the root stays read-only.
    if first_byte(&Path::new(TREE).join("bin/sh")).is_err() {
        rustix::mount::unmount(TREE, rustix::mount::UnmountFlags::empty())
            .map_err(|e| format!("unmount {TREE}: {e}"))?;
        mount_bind(LOWER, TREE).map_err(|error| format!("bind the host's tree: {error}"))?;
        covered.extend(["etc", "home", "mnt"]);
    }
    create(ROOT)?;
    mount_bind(TREE, ROOT).map_err(|error| format!("bind the tree: {error}"))?;
    for name in &covered {
        let mode = if *name == "tmp" { "mode=1777" } else { "mode=755" };
        mount_new("tmpfs", "tmpfs", &format!("{ROOT}/{name}"), mode)?;
    }
    if covered.contains(&"etc") {
        copy_tree(&Path::new(TREE).join("etc"), &Path::new(ROOT).join("etc"))?;
    }
    for directory in &job.visible {
        show(directory, &covered)?;
        // The guest's user may walk there even below a directory of mode 0700.
        for ancestor in directory.ancestors() {
            let path = in_root(ancestor);
            if let Ok(metadata) = fs::metadata(&path) {
                let mode = metadata.permissions().mode();
                if mode & 0o5 != 0o5 {
                    let _ = fs::set_permissions(&path, PermissionsExt::from_mode(mode | 0o55));
                }
            }
        }
    }
    let run = in_root(Path::new(RUN));
    create(&run)?;
    mount_share(&job.run, &run.to_string_lossy(), MountFlags::NODEV | MountFlags::NOSUID)?;
    for name in ["proc", "sys"] {
        mount_move(format!("/{name}"), format!("{ROOT}/{name}")).map_err(|error| format!("move /{name}: {error}"))?;
    }
    mount_new("devtmpfs", "devtmpfs", &format!("{ROOT}/dev"), "mode=755")
}

/// Binds `directory` of the tree above the mount that covers it.
fn show(directory: &Path, covered: &[&str]) -> Result<()> {
    let hidden = covered.iter().any(|name| directory.starts_with(Path::new("/").join(name)));
    if !hidden {
        return Ok(());
    }
    let (source, target) = (Path::new(TREE).join(relative(directory)), in_root(directory));
    create(&target)?;
    mount_bind(&source, &target).map_err(|error| format!("bind {}: {error}", directory.display()))
}

fn enter_tree() -> Result<()> {
    let doing = |what: &'static str| move |error| format!("{what}: {error}");
    std::env::set_current_dir(ROOT).map_err(|error| format!("enter {ROOT}: {error}"))?;
    mount_move(".", "/").map_err(doing("move the tree to /"))?;
    rustix::process::chroot(".").map_err(doing("change root"))?;
    std::env::set_current_dir("/").map_err(|error| format!("enter /: {error}"))
}

/// What a machine has besides cgroups and disks: devices, modules, a name, a user, the loopback interface.
fn configure(job: &Job) -> Result<()> {
    for (directory, kind, options) in [
        ("/dev/pts", "devpts", "gid=5,mode=620,ptmxmode=666"),
        ("/dev/shm", "tmpfs", "mode=1777"),
        ("/dev/mqueue", "mqueue", ""),
    ] {
        create(directory)?;
        mount_new(kind, kind, directory, options)?;
    }
    let _ = mount_new("securityfs", "securityfs", "/sys/kernel/security", ""); // absent without security modules
    for (name, target) in [("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")] {
        let link = Path::new("/dev").join(name);
        let _ = fs::remove_file(&link);
        symlink(format!("/proc/self/fd{target}"), &link)
            .map_err(|error| format!("link {}: {error}", link.display()))?;
    }
    // Opening one of these loads its module.
    create("/dev/net")?;
    for (name, minor) in [("fuse", 229), ("loop-control", 237), ("net/tun", 200)] {
        let node = Path::new("/dev").join(name);
        if !node.exists() {
            mknodat(CWD, &node, FileType::CharacterDevice, Mode::from_raw_mode(0o600), makedev(10, minor))
                .map_err(|error| format!("make {}: {error}", node.display()))?;
        }
    }
    for name in ["null", "zero", "full", "random", "urandom", "tty", "ptmx", "fuse", "net/tun"] {
        let _ = fs::set_permissions(Path::new("/dev").join(name), PermissionsExt::from_mode(0o666));
    }

    // Modules, where the kernel's own modprobe looks and, if the tree cannot be written, where ours does.
    let release = uname().release().to_string_lossy().into_owned();
    let standard = Path::new("/lib/modules").join(&release);
    if create(&standard).is_ok() {
        let _ = mount_bind(job.modules.join("lib/modules").join(&release), &standard);
    }
    let modprobe = format!("#!/bin/sh\nexec /sbin/modprobe -d '{}' \"$@\"\n", job.modules.display());
    write("/run/modprobe", &modprobe)?;
    fs::set_permissions("/run/modprobe", PermissionsExt::from_mode(0o755))
        .map_err(|error| format!("modprobe: {error}"))?;
    write("/proc/sys/kernel/modprobe", "/run/modprobe")?;

    sethostname(job.hostname.as_bytes()).map_err(|error| format!("set the host name: {error}"))?;
    // The tools' own file systems are the host's: nothing of them is needed before this line.
    let _ = Command::new("/sbin/ip").args(["link", "set", "lo", "up"]).status();
    add_user()
}

/// uid 1000, by the same name whatever the host calls it, with the usual range of subordinate ids.
fn add_user() -> Result<()> {
    let home = format!("/home/{USER}");
    let id = USER_ID.to_string();
    for (file, line) in
        [("/etc/passwd", format!("{USER}:x:{id}:{id}::{home}:/bin/sh\n")), ("/etc/group", format!("{USER}:x:{id}:\n"))]
    {
        let text = read(file)?;
        let others = text.lines().filter(|line| line.split(':').nth(2) != Some(&id)).map(|line| format!("{line}\n"));
        write(file, &others.chain([line]).collect::<String>())?;
    }
    for file in ["/etc/subuid", "/etc/subgid"] {
        write(file, &format!("{USER}:100000:65536\n"))?;
    }
    for directory in [Path::new(&home), Path::new("/run/user/1000")] {
        create(directory)?;
        own(directory, USER_ID)?;
    }
    Ok(())
}

fn mount_cgroups(job: &Job) -> Result<()> {
    let mut hierarchies = Vec::new();
    if job.cgroup != Layout::V2 {
        mount_new("tmpfs", "tmpfs", CGROUPS, "mode=755")?;
        hierarchies = mount_v1()?;
    }
    let unified = match job.cgroup {
        Layout::V1 => None,
        Layout::Hybrid => Some(Path::new(CGROUPS).join("unified")),
        Layout::V2 => Some(PathBuf::from(CGROUPS)),
    };
    if let Some(root) = unified {
        create(&root)?;
        let target = root.to_string_lossy();
        mount_new("cgroup2", "cgroup2", &target, "nsdelegate,memory_recursiveprot")
            .or_else(|_| mount_new("cgroup2", "cgroup2", &target, "nsdelegate"))?;
        hierarchies.push(root);
    }
    hierarchies.iter().try_for_each(|root| delegate(root, job.uid))
}

/// Every controller that the kernel has for v1, some mounted together and linked by name, as systemd does it.
fn mount_v1() -> Result<Vec<PathBuf>> {
    const TOGETHER: [&[&str]; 2] = [&["cpu", "cpuacct"], &["net_cls", "net_prio"]];
    let table = read("/proc/cgroups")?;
    let lines =
        table.lines().filter(|line| !line.starts_with('#')).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let enabled: Vec<_> = lines.filter(|fields| fields.get(3) == Some(&"1")).map(|fields| fields[0]).collect();
    let mut sets: Vec<Vec<&str>> = Vec::new();
    for controller in &enabled {
        let alone = [*controller];
        let set = TOGETHER.into_iter().find(|set| set.contains(controller)).unwrap_or(&alone);
        let set: Vec<_> = set.iter().copied().filter(|name| enabled.contains(name)).collect();
        if !sets.contains(&set) {
            sets.push(set);
        }
    }
    let mut hierarchies = Vec::new();
    for set in sets {
        let root = Path::new(CGROUPS).join(set.join(","));
        create(&root)?;
        // Newer kernels list controllers that are left to v2.
        if mount_new("cgroup", "cgroup", &root.to_string_lossy(), &set.join(",")).is_err() {
            fs::remove_dir(&root).map_err(|error| format!("remove {}: {error}", root.display()))?;
            continue;
        }
        if set.len() > 1 {
            for name in &set {
                let link = Path::new(CGROUPS).join(name);
                symlink(set.join(","), &link).map_err(|error| format!("link {}: {error}", link.display()))?;
            }
        }
        hierarchies.push(root);
    }
    let systemd = Path::new(CGROUPS).join("systemd");
    create(&systemd)?;
    mount_new("cgroup", "cgroup", &systemd.to_string_lossy(), "none,name=systemd")?;
    hierarchies.push(systemd);
    Ok(hierarchies)
}

/// Programs run in `guest/run` of each hierarchy; `guest` belongs to their user, as a delegated subtree does.
fn delegate(root: &Path, uid: u32) -> Result<()> {
    let guest = root.join("guest");
    let run = guest.join("run");
    create(&guest)?;
    for directory in [root, &guest] {
        // On v2 a child has the controllers that its parent passes on. One may be busy in v1 or refuse; the rest counts.
        for controller in
            fs::read_to_string(directory.join("cgroup.controllers")).unwrap_or_default().split_whitespace()
        {
            let _ = fs::write(directory.join("cgroup.subtree_control"), format!("+{controller}"));
        }
    }
    create(&run)?;
    for directory in [&guest, &run] {
        // A cpuset of v1 begins empty and takes no process.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if directory.join("tasks").exists() {
                if let Ok(value) = fs::read_to_string(root.join(file)) {
                    write(directory.join(file), value.trim())?;
                }
            }
        }
        own(directory, uid)?;
        for file in ["cgroup.procs", "cgroup.threads", "cgroup.subtree_control", "tasks"] {
            let file = directory.join(file);
            if file.exists() {
                own(&file, uid)?;
            }
        }
    }
    Ok(())
}

fn mount_disk(job: &Job) -> Result<()> {
    create("/mnt/quota")?;
    if let Some(disk) = &job.disk {
        mount_new(&disk.device, &disk.kind, "/mnt/quota", &disk.options)?;
        fs::set_permissions("/mnt/quota", PermissionsExt::from_mode(0o1777))
            .map_err(|error| format!("/mnt/quota: {error}"))?;
    }
    if let Some(device) = &job.swap {
        let status =
            Command::new("/sbin/swapon").arg(device).status().map_err(|error| format!("run swapon: {error}"))?;
        if !status.success() {
            return Err(format!("swapon {device}: {status}"));
        }
    }
    Ok(())
}

fn open_output(output: &Output) -> Result<File> {
    let path = match output {
        Output::Serial(path) => path.clone(),
        Output::VirtioPort => entries(Path::new("/dev"))?
            .into_iter()
            .find(|path| path.file_name().is_some_and(|name| name.as_bytes().starts_with(b"vport")))
            .ok_or("no virtio port in /dev")?,
    };
    let file =
        OpenOptions::new().write(true).open(&path).map_err(|error| format!("open {}: {error}", path.display()))?;
    if matches!(output, Output::Serial(_)) {
        let mut settings = tcgetattr(&file).map_err(|error| format!("settings of {}: {error}", path.display()))?;
        settings.make_raw();
        tcsetattr(&file, OptionalActions::Now, &settings)
            .map_err(|error| format!("set {} raw: {error}", path.display()))?;
    }
    Ok(file)
}

/// Runs one program to its end, and then ends what it left.
fn run_program(program: &Program, uid: u32, output: &mut File) -> Result<ProgramResult> {
    let start = Instant::now();
    // A pipe in between: programs open /dev/stdout anew, and the port can be opened once only.
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| format!("pipe: {error}"))?;
    // Root may open what belongs to others, a user may not open root's pipe by its name.
    rustix::fs::fchown(&writer, Some(Uid::from_raw(uid)), None).map_err(|error| format!("pipe owner: {error}"))?;
    let mut command = Command::new("/proc/self/exe");
    command.arg("run").arg(uid.to_string()).args(&program.arguments).current_dir(&program.directory);
    command.env_clear().envs(program.environment.iter().cloned());
    if uid != 0 {
        let home = format!("/home/{USER}");
        command.envs([("HOME", &*home), ("USER", USER), ("LOGNAME", USER), ("XDG_RUNTIME_DIR", "/run/user/1000")]);
    }
    let errors = writer.try_clone().map_err(|error| format!("pipe: {error}"))?;
    command.stdin(Stdio::null()).stdout(writer).stderr(errors);
    let child = command.spawn().map_err(|error| format!("start {}: {error}", program.name))?;
    drop(command); // and our ends of the pipe
    let child = Pid::from_child(&child);

    let (finished, timer) = mpsc::channel::<()>();
    let (copied, copier) = mpsc::channel::<()>();
    let limit = Duration::from_secs(program.limit);
    let mut copy = output.try_clone().map_err(|error| format!("output: {error}"))?;
    std::thread::spawn(move || {
        pass_on(&mut File::from(reader), &mut copy);
        let _ = copied.send(());
    });
    let watchdog = std::thread::spawn(move || {
        let late = timer.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout);
        if late {
            kill_all();
        }
        late
    });
    // As the first process we reap orphans too.
    let status = loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == child => break status,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(format!("wait for {}: {error}", program.name)),
        }
    };
    let seconds = start.elapsed().as_secs_f64();
    drop(finished);
    let late = watchdog.join().unwrap_or(false);
    kill_all();
    let _ = copier.recv_timeout(Duration::from_secs(5));
    while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}

    let code = status.exit_status().or(status.terminating_signal().map(|signal| 128 + signal));
    let status = if late { 124 } else { code.and_then(|code| u8::try_from(code).ok()).unwrap_or(255) };
    Ok(ProgramResult { status, seconds })
}

/// Not `io::copy`: that splices, which QEMU's port does not bear.
fn pass_on(from: &mut File, to: &mut File) {
    let mut buffer = [0; 64 << 10];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        if let Err(error) = to.write_all(&buffer[..n]) {
            return println!("guest-init: cannot pass output on: {error}");
        }
    }
}

/// Ends every process of the guest but this one. (Kernel threads take no notice.)
fn kill_all() {
    // Twice: what a process started between our look and its end.
    for _ in 0..2 {
        let processes = entries(Path::new("/proc")).unwrap_or_default();
        let pids = processes.iter().filter_map(|path| path.file_name()?.to_str()?.parse().ok()).filter(|pid| *pid != 1);
        for pid in pids.filter_map(Pid::from_raw) {
            if let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) {
                let _ = pidfd_send_signal(&pidfd, Signal::KILL);
            }
        }
    }
}

/// The child's half: into the cgroups, away from root, and on.
fn become_program(uid: &str, program: &[String]) -> Result<Never> {
    let uid: u32 = uid.parse().map_err(|error| format!("uid {uid}: {error}"))?;
    let [program, arguments @ ..] = program else { return Err("no program".into()) };
    for line in read("/proc/self/mounts")?.lines() {
        let fields: Vec<_> = line.split(' ').collect();
        if let [_, root, "cgroup" | "cgroup2", ..] = fields.as_slice() {
            write(format!("{root}/guest/run/cgroup.procs"), "0")?;
        }
    }
    rustix::process::setsid().map_err(|error| format!("new session: {error}"))?;
    let mut command = Command::new(program);
    command.args(arguments);
    if uid != 0 {
        command.uid(uid).gid(uid); // std drops the supplementary groups too
    }
    Err(format!("cannot run {program}: {}", command.exec()))
}

fn mount_new(source: &str, kind: &str, target: &str, options: &str) -> Result<()> {
    mount_with(source, kind, target, options, MountFlags::empty())
}

fn mount_share(share: &job::Share, target: &str, flags: MountFlags) -> Result<()> {
    mount_with(&share.source, &share.kind, target, &share.options, flags)
}

fn mount_with(source: &str, kind: &str, target: &str, options: &str, flags: MountFlags) -> Result<()> {
    let failed = |error: &dyn std::fmt::Display| format!("mount {kind} {source} at {target} with {options:?}: {error}");
    if !Path::new(target).is_dir() {
        create(target)?;
    }
    let data = CString::new(options).map_err(|error| failed(&error))?;
    mount(source, target, kind, flags, data.as_c_str()).map_err(|error| failed(&error))
}

/// Directories, links and plain files with their modes and owners.
fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    for source in entries(from)? {
        let Some(name) = source.file_name() else { continue };
        let target = to.join(name);
        let copy = || -> io::Result<bool> {
            let metadata = fs::symlink_metadata(&source)?;
            if metadata.is_symlink() {
                symlink(fs::read_link(&source)?, &target)?;
                return Ok(false);
            }
            if metadata.is_dir() {
                fs::create_dir(&target)?;
            } else if metadata.is_file() {
                fs::copy(&source, &target)?;
            } else {
                return Ok(false);
            }
            let (uid, gid) =
                (std::os::unix::fs::MetadataExt::uid(&metadata), std::os::unix::fs::MetadataExt::gid(&metadata));
            rustix::fs::chownat(
                CWD,
                &target,
                Some(Uid::from_raw(uid)),
                Some(Gid::from_raw(gid)),
                AtFlags::SYMLINK_NOFOLLOW,
            )?;
            fs::set_permissions(&target, metadata.permissions())?;
            Ok(metadata.is_dir())
        };
        if copy().map_err(|error| format!("copy {}: {error}", source.display()))? {
            copy_tree(&source, &target)?;
        }
    }
    Ok(())
}

fn in_root(path: &Path) -> PathBuf {
    Path::new(ROOT).join(relative(path))
}

fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

fn first_byte(path: &Path) -> io::Result<()> {
    File::open(path)?.read_exact(&mut [0])
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let failed = |error: io::Error| format!("list {}: {error}", directory.display());
    fs::read_dir(directory).map_err(failed)?.map(|entry| Ok(entry.map_err(failed)?.path())).collect()
}

fn create(directory: impl AsRef<Path>) -> Result<()> {
    let directory = directory.as_ref();
    fs::create_dir_all(directory).map_err(|error| format!("make {}: {error}", directory.display()))
}

fn own(path: &Path, uid: u32) -> Result<()> {
    chown(path, Some(uid), Some(uid)).map_err(|error| format!("change the owner of {}: {error}", path.display()))
}

fn read(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    fs::read_to_string(path).map_err(|error| format!("read {}: {error}", path.display()))
}

fn write(path: impl AsRef<Path>, text: &str) -> Result<()> {
    let path = path.as_ref();
    fs::write(path, text).map_err(|error| format!("write {text:?} to {}: {error}", path.display()))
}
