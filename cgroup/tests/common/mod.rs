//! What the kernel tests share: saying what a test needs, groups that vanish with the test, and helper processes.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking, their helpers too")]

pub mod born;

use std::io::{Read as _, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use cgroup::{Cgroup, Controller, Layout, Needs};

/// Returns from the test with a line on stderr when a need is not met; fails when `SANDBOX_TEST_REQUIRE_ALL=1`.
///
/// `require!(met, "what is needed", what is found instead)`.
#[macro_export]
macro_rules! require {
    ($met:expr, $needs:expr, $found:expr) => {
        if !$met {
            $crate::common::skip(&$needs.to_string(), &$found.to_string());
            return;
        }
    };
}

/// Past libtest's capture, which takes only what the print macros write.
pub fn skip(needs: &str, found: &str) {
    // libtest names its threads after the tests.
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("test");
    let line = format!("SKIP {name}: needs {needs}; found {found}\n");
    assert!(std::env::var("SANDBOX_TEST_REQUIRE_ALL").as_deref() != Ok("1"), "{line}");
    let _ = std::io::stderr().write_all(line.as_bytes());
}

pub const SOON: Duration = Duration::from_secs(20);

/// A group that is removed when the test ends, however it ends.
pub struct Group(pub Cgroup);

impl std::ops::Deref for Group {
    type Target = Cgroup;
    fn deref(&self) -> &Cgroup {
        &self.0
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Err(error) = self.0.remove(SOON) {
            let _ = writeln!(std::io::stderr(), "left behind: {error}");
        }
    }
}

pub fn name(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("sandbox-test-{}-{}-{what}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

pub const USUAL: [Controller; 3] = [Controller::Memory, Controller::Pids, Controller::Cpu];

/// A group with these controllers, or the reason why this host gives none.
pub fn group<const N: usize>(what: &str, controllers: [Controller; N]) -> Result<Group, String> {
    let layout = Layout::detect().map_err(|error| error.to_string())?;
    layout.create(&name(what), &Needs::new(controllers)).map(Group).map_err(|error| error.to_string())
}

/// A process that does what it is told: this test binary, run again with the test `helper` alone.
pub struct Helper {
    pub child: Child,
    go: Option<ChildStdin>,
}

impl Helper {
    /// Starts a helper that waits for [`go`](Self::go) before it acts.
    pub fn new(act: &str) -> Self {
        Self::by(Command::new(std::env::current_exe().unwrap()), act)
    }

    /// The same with a command of one's own for this binary.
    pub fn by(mut command: Command, act: &str) -> Self {
        command.args(["--exact", "helper", "--nocapture", "--test-threads=1"]).env("SANDBOX_HELPER", act);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let go = child.stdin.take();
        let mut helper = Self { child, go };
        helper.says("ready");
        helper
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Born outside, moved in, not running yet.
    pub fn in_group(group: &Cgroup, act: &str) -> Self {
        let helper = Self::new(act);
        group.attach(helper.pid()).unwrap();
        helper
    }

    pub fn go(&mut self) {
        self.go.take().unwrap().write_all(b"g").unwrap();
    }

    /// Waits for a line that contains `word` and returns it.
    pub fn says(&mut self, word: &str) -> String {
        let out = self.child.stdout.as_mut().unwrap();
        let (mut line, mut byte) = (Vec::new(), [0]);
        loop {
            assert_eq!(out.read(&mut byte).unwrap(), 1, "the helper ended before it said {word:?}");
            if byte[0] != b'\n' {
                line.push(byte[0]);
                continue;
            }
            let text = String::from_utf8_lossy(&line).into_owned();
            if text.contains(word) {
                return text;
            }
            line.clear();
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The calling user's id, from the owner of its own process.
pub fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}

/// How far memory counters may be off: they are batched per CPU.
pub fn slack() -> u64 {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    cpus as u64 * (1 << 20)
}

/// Tries until it holds or the time is over.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < until, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What a helper process does. Call it from a test named `helper`.
pub fn act() {
    let Ok(act) = std::env::var("SANDBOX_HELPER") else { return };
    let say = |text: &str| {
        let mut out = std::io::stdout();
        let _ = writeln!(out, "\n{text}");
        let _ = out.flush();
    };
    say("ready");
    let mut byte = [0];
    // Without a word there is nobody who wants anything.
    if std::io::stdin().read(&mut byte).unwrap_or(0) == 0 {
        return;
    }
    let (verb, number) = act.split_once(' ').unwrap_or((&act, "0"));
    let number: usize = number.parse().unwrap();
    let forever = || loop {
        std::thread::sleep(Duration::from_secs(3600));
    };
    match verb {
        "sleep" => {
            say("sleeping");
            forever();
        }
        // Touches so many MiB, says so, and stays.
        "memory" => {
            let _block = touch(number);
            say("touched");
            forever();
        }
        // Burns CPU for so many milliseconds.
        "spin" => {
            say("spinning");
            let until = Instant::now() + Duration::from_millis(number as u64);
            let mut x = 0u64;
            while Instant::now() < until {
                x = std::hint::black_box(x.wrapping_mul(31).wrapping_add(7));
            }
            say("spun");
            forever();
        }
        // Starts so many children that stay, and says how many the kernel allowed and its answer to the next.
        "fork" => {
            let mut children = Vec::new();
            let mut answer = 0;
            for _ in 0..number {
                match Command::new("/bin/sleep").arg("1000").spawn() {
                    Ok(child) => children.push(child),
                    Err(error) => {
                        answer = error.raw_os_error().unwrap_or(-1);
                        break;
                    }
                }
            }
            say(&format!("forked {} {answer}", children.len()));
            forever();
        }
        // So many threads.
        "threads" => {
            let mut started = 0;
            let mut answer = 0;
            for _ in 0..number {
                match std::thread::Builder::new().spawn(|| {
                    loop {
                        std::thread::sleep(Duration::from_secs(3600));
                    }
                }) {
                    Ok(_) => started += 1,
                    Err(error) => {
                        answer = error.raw_os_error().unwrap_or(-1);
                        break;
                    }
                }
            }
            say(&format!("started {started} {answer}"));
            forever();
        }
        "exit" => std::process::exit(i32::try_from(number).unwrap()),
        // Children that have ended and that nobody waits for.
        "zombies" => {
            let mut children = Vec::new();
            let mut answer = 0;
            for _ in 0..number {
                match Command::new("/bin/true").spawn() {
                    Ok(child) => children.push(child),
                    Err(error) => {
                        answer = error.raw_os_error().unwrap_or(-1);
                        break;
                    }
                }
            }
            say(&format!("forked {} {answer}", children.len()));
            forever();
        }
        // Stands in vfork for ever: the child cannot exec before it has opened a pipe that nobody writes to.
        "vfork" => {
            let fifo = std::env::temp_dir().join(name("fifo"));
            assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
            let mut actions = nix::spawn::PosixSpawnFileActions::init().unwrap();
            actions.add_open(9, &fifo, nix::fcntl::OFlag::O_RDONLY, nix::sys::stat::Mode::empty()).unwrap();
            let attributes = nix::spawn::PosixSpawnAttr::init().unwrap();
            say(&format!("now {}", fifo.display()));
            let _ = nix::spawn::posix_spawn(c"/bin/true", &actions, &attributes, &[c"true"], &[c""]);
        }
        // A file system that reads a request and never answers, and a client that asks once it is in a group of that name.
        "fuse" => {
            let at = std::env::temp_dir().join(name("fuse"));
            std::fs::create_dir_all(&at).unwrap();
            let mut device = match std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse") {
                Ok(device) => device,
                Err(error) => return say(&format!("client 0 {error}")),
            };
            let fd = std::os::fd::AsRawFd::as_raw_fd(&device);
            let options = format!("fd={fd},rootmode=40000,user_id=0,group_id=0");
            let options = std::ffi::CString::new(options).unwrap();
            let flags = rustix::mount::MountFlags::empty();
            if let Err(error) = rustix::mount::mount("test", &at, "fuse", flags, options.as_c_str()) {
                return say(&format!("client 0 {error}"));
            }
            // struct fuse_in_header: length, operation, and a number that the answer repeats.
            let mut request = vec![0u8; 1 << 17];
            assert!(device.read(&mut request).unwrap() >= 40);
            let mut answer = Vec::new();
            for word in [80u32, 0] {
                answer.extend_from_slice(&word.to_ne_bytes());
            }
            answer.extend_from_slice(&request[8..16]);
            // struct fuse_init_out: version 7.31, the rest as small as allowed.
            for word in [7u32, 31, 0, 0, 1 << 16 | 1, 4096, 1] {
                answer.extend_from_slice(&word.to_ne_bytes());
            }
            answer.resize(80, 0);
            assert_eq!(device.write(&answer).unwrap(), 80);
            let script =
                format!("until grep -q fuse-client /proc/$$/cgroup; do sleep 0.05; done; exec ls {}", at.display());
            let mut client = Command::new("/bin/sh").args(["-c", &script]).stderr(Stdio::null()).spawn().unwrap();
            say(&format!("client {} {}", client.id(), at.display()));
            assert!(device.read(&mut request).unwrap() >= 40);
            say("asked");
            // Ends with this file system, so not by itself.
            let _ = client.wait();
        }
        // One short child after another, each waited for.
        "sequence" => {
            for _ in 0..number {
                Command::new("/bin/true").status().unwrap();
            }
            say("all done");
            forever();
        }
        // A grandchild that burns CPU time and has lost its parent.
        "orphan" => {
            let own = std::env::current_exe().unwrap().display().to_string();
            let script = format!("echo g | {own} --exact helper --nocapture --test-threads=1 & exit 0");
            Command::new("/bin/sh")
                .args(["-c", &script])
                .env("SANDBOX_HELPER", format!("spin {number}"))
                .status()
                .unwrap();
            say("left");
            forever();
        }
        // The whole life of a group as whoever this is.
        "life" => {
            // Asked for, or only wished for together with what may not be there.
            let needs = match number {
                0 => Needs::new([Controller::Pids]),
                _ => Needs::new([]).prefer([Controller::Memory, Controller::Pids, Controller::Cpu]),
            };
            let answer = Layout::detect().and_then(|layout| layout.create(&name("life"), &needs));
            match answer {
                Err(error) => say(&format!("answer {error:?}")),
                Ok(group) => {
                    let mut limits = cgroup::Limits::default();
                    limits.pids_max = Some(cgroup::Limit::Value(3));
                    group.set(&limits).unwrap();
                    let mut child = Command::new("/bin/sleep").arg("1000").spawn().unwrap();
                    group.attach(child.id()).unwrap();
                    let killed = group.kill(SOON).unwrap();
                    let _ = child.wait();
                    group.remove(SOON).unwrap();
                    say(&format!("answer lived {}", killed.died.len()));
                }
            }
        }
        other => panic!("no such act: {other}"),
    }
}

pub fn touch(mib: usize) -> Vec<u8> {
    let mut block = vec![0u8; mib << 20];
    for page in block.chunks_mut(4096) {
        page[0] = 1;
    }
    std::hint::black_box(block)
}

/// Whether this is an emulated machine, where nothing is quick: its kernel messages go to a console of that kind.
pub fn in_guest() -> bool {
    std::fs::read_to_string("/proc/cmdline").is_ok_and(|line| line.contains("panic=-1"))
}
