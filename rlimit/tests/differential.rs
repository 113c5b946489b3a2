//! Generated configurations, asked of the real `pam_limits` of this host and of the resolver.
//!
//! The test runs itself again in mount and pid namespaces of its own, where `/etc/security`, `/etc/pam.d`, passwd and
//! group are its own, and opens sessions with `pamtester`. The service asks for a password after the session is open, so
//! the process waits there while its limits are read from outside.
#![allow(clippy::unwrap_used, clippy::panic)] // Helpers of a test panic as the test does.

mod common;

use std::fmt::Write as _;
use std::fs;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rlimit::limits_conf::{Denial, Flavor, Login, Resolved, Resolver};

use rustix::process::{Pid, getpriority_process};
use rustix::thread::CapabilitySet;

const NAME: &str = "differential_with_the_real_pam_limits";
const CONFIGURATIONS: u64 = 600;
/// A guest without KVM is a hundred times slower: there the first fifty and so many seconds must do.
const FEWEST: u64 = 50;
const LONGEST: Duration = Duration::from_secs(30);
const INSIDE: &str = "SANDBOX_RLIMIT_INSIDE";

#[test]
fn differential_with_the_real_pam_limits() {
    if let Some(dir) = std::env::var_os(INSIDE) {
        return inside(Path::new(&dir));
    }
    require!(NAME, rustix::process::geteuid().is_root(), "root", "another user");
    require!(NAME, Flavor::detect(Path::new("/")).unwrap() == Flavor::Debian12 && bookworm(), "Debian 12", release());
    for program in ["pamtester", "unshare"] {
        let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        require!(NAME, found.is_ok(), "pamtester (Debian package) and unshare", format!("no {program}"));
    }
    let dir = tempfile::tempdir().unwrap();
    // The shell is process 1 there: its limits are what Debian's module starts from, and differ from ours.
    let script = "ulimit -Sn 3000; ulimit -Sc 4096; ulimit -Hc 8192; ulimit -Ss 4096; ulimit -i 5000; \
                  \"$0\" --exact \"$1\" --nocapture <&- & wait $!";
    let output = Command::new("unshare")
        .args(["--mount", "--pid", "--fork", "--mount-proc", "--propagation", "private", "sh", "-c", script])
        .arg(std::env::current_exe().unwrap())
        .arg(NAME)
        .env(INSIDE, dir.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    let refused = error.contains("unshare: ");
    require!(NAME, !refused, "mount and pid namespaces", error);
    assert!(output.status.success(), "{text}{error}");
    // With one CPU libtest puts the name of the test before it, on the same line.
    println!("{}", text[text.find("differential: ").unwrap()..].lines().next().unwrap());
}

fn release() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    text.lines().find(|line| line.starts_with("PRETTY_NAME=")).unwrap_or("no os-release").to_owned()
}

fn bookworm() -> bool {
    fs::read_to_string("/etc/os-release").unwrap_or_default().contains("VERSION_ID=\"12\"")
}

/// In the namespaces: everything under `/etc` that counts is ours.
fn inside(dir: &Path) {
    let passwd = "root:x:0:0::/:/bin/sh\ntoor:x:0:7::/:/bin/sh\nalice:x:1000:1000::/:/bin/sh\nbob:x:1001:2000::/:/bin/sh\n\
                  carol:x:1500:2001::/:/bin/sh\n1000:x:60000:60000::/:/bin/sh\n";
    let group = "root:x:0:\nwheel:x:10:root,toor,alice\nalias:x:10:\nalice:x:1000:\nstudent:x:2000:alice,carol\n\
                 staff:x:2001:\nstudent:x:3000:1000\nGroup:x:4000:bob\n";
    for (name, text) in [
        ("pam.d/judge", "session required pam_limits.so\nauth required pam_ftp.so\n"),
        ("pam.d/look", "session optional pam_limits.so\nsession required pam_permit.so\nauth required pam_ftp.so\n"),
        ("passwd", passwd),
        ("group", group),
        ("nsswitch.conf", "passwd: files\ngroup: files\n"),
        ("security/limits.conf", ""),
        ("security/limits.d/none", ""),
    ] {
        fs::create_dir_all(dir.join(name).parent().unwrap()).unwrap();
        fs::write(dir.join(name), text).unwrap();
    }
    for name in ["pam.d", "security", "passwd", "group", "nsswitch.conf"] {
        let source = dir.join(name);
        rustix::mount::mount_bind(&source, Path::new("/etc").join(name)).unwrap();
    }

    // Some of the processes are killed and dump core.
    std::env::set_current_dir(dir).unwrap();
    let capable = rustix::thread::capabilities(None).unwrap().effective.contains(CapabilitySet::SYS_RESOURCE);
    let resolver = Resolver::new(Flavor::Debian12).privileged(capable);
    let mut denied = 0;
    let mut wrong = String::new();
    let start = Instant::now();
    let mut asked = 0;
    for seed in 0..CONFIGURATIONS {
        if seed >= FEWEST && start.elapsed() > LONGEST {
            break;
        }
        asked += 1;
        let mut random = Random(seed);
        let user = *random.of(&["root", "toor", "alice", "alice", "bob", "bob", "carol", "1000"]);
        let files = configuration(&mut random);
        let security = dir.join("security");
        fs::remove_dir_all(security.join("limits.d")).unwrap();
        let _ = fs::remove_file(security.join("limits.conf"));
        fs::create_dir(security.join("limits.d")).unwrap();
        for (name, bytes) in &files {
            fs::write(security.join(name), bytes).unwrap();
        }
        let resolved = resolver.resolve_name(user).unwrap();
        denied += u64::from(resolved.login() != Login::Allowed);
        if let Some(difference) = compare(user, &resolved) {
            let _ = writeln!(wrong, "seed {seed}, user {user}: {difference}");
            for (name, bytes) in &files {
                let _ = writeln!(wrong, "--- {name}\n{}", bytes.escape_ascii().to_string().replace("\\n", "\n"));
            }
        }
    }
    let found = wrong.matches("seed ").count();
    assert!(wrong.is_empty(), "{found} of {asked} differ\n{wrong}");
    println!("differential: {asked} configurations agree, {denied} of them refuse the session");
}

/// A session that is open, its process waiting for a password; or how it failed.
enum Session {
    Open(Child),
    Refused(String),
    Killed,
}

fn open(service: &str, user: &str) -> Session {
    let mut child = Command::new("pamtester")
        .args([service, user, "open_session", "authenticate"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut text = Vec::new();
    let mut stderr = child.stderr.take().unwrap();
    loop {
        let mut byte = [0];
        if stderr.read(&mut byte).unwrap() == 0 {
            break;
        }
        text.push(byte[0]);
        if text.ends_with(b"Password required for ") {
            return Session::Open(child);
        }
    }
    let status = child.wait().unwrap();
    match status.signal() {
        Some(_) => Session::Killed,
        None => Session::Refused(String::from_utf8_lossy(&text).into_owned()),
    }
}

/// What differs between the module and the resolver.
fn compare(user: &str, resolved: &Resolved) -> Option<String> {
    let login = resolved.login();
    let mut session = open("judge", user);
    let expected = match (&session, &login) {
        (Session::Open(_), Login::Allowed)
        // Whether the clock ticks before it waits is chance.
        | (Session::Open(_) | Session::Killed, Login::Denied(Denial::NoCpu)) => true,
        (Session::Refused(text), Login::Denied(Denial::MissingFile(_))) => text.contains("Error in service module"),
        (Session::Refused(text), Login::Denied(_)) => text.contains("Permission denied"),
        _ => false,
    };
    if !expected {
        let found = match &session {
            Session::Open(_) => "allowed",
            Session::Refused(text) => text,
            Session::Killed => "killed",
        };
        let found = format!("the module: {found}; the resolver: {login}");
        end(session);
        return Some(found);
    }
    if let Session::Refused(_) = session {
        session = open("look", user);
    }
    let Session::Open(child) = &session else {
        end(session);
        return (login != Login::Denied(Denial::NoCpu)).then(|| "the session is not open".to_owned());
    };
    let difference = differences(child.id(), resolved);
    end(session);
    difference
}

fn differences(pid: u32, resolved: &Resolved) -> Option<String> {
    let mut text = String::new();
    let mut check = |what: &str, module: String, resolver: String| {
        if module != resolver {
            let _ = write!(text, "\n  {what}: the module {module}, the resolver {resolver}");
        }
    };
    let table = rlimit::of(pid).unwrap();
    for item in &resolved.items {
        check(item.resource.as_str(), table.get(item.resource).unwrap().to_string(), item.limits.to_string());
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let no_new_privs = status.lines().any(|line| line == "NoNewPrivs:\t1");
    check("nonewprivs", no_new_privs.to_string(), resolved.no_new_privs.as_ref().is_some_and(|d| d.value).to_string());
    let nice = getpriority_process(Pid::from_raw(i32::try_from(pid).unwrap())).unwrap();
    check("priority", nice.to_string(), resolved.priority.as_ref().map_or(0, |d| d.value).to_string());
    let root = fs::read_link(format!("/proc/{pid}/root")).unwrap();
    // Not done in a session that is refused.
    let login = resolved.login();
    let chroot = resolved.chroot.as_ref().filter(|_| matches!(login, Login::Allowed | Login::Denied(Denial::NoCpu)));
    check(
        "chroot",
        root.display().to_string(),
        chroot.map_or_else(|| "/".to_owned(), |d| fs::canonicalize(&d.value).unwrap().display().to_string()),
    );
    (!text.is_empty()).then_some(text)
}

fn end(session: Session) {
    if let Session::Open(mut child) = session {
        // Closing its standard input ends the question.
        drop(child.stdin.take());
        child.wait().unwrap();
    }
}

/// splitmix64: the same configurations on every host.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn of<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        let index = self.below(u64::try_from(choices.len()).unwrap());
        &choices[usize::try_from(index).unwrap()]
    }
}

fn configuration(random: &mut Random) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    if !random.one_in(40) {
        files.push(("limits.conf".to_owned(), file(random)));
    }
    for name in ["10.conf", "9.conf", "90-nproc.conf", "91-nproc.conf", "Z.conf", "a.conf", ".h.conf", "x.conf~", "y"] {
        if random.one_in(4) {
            files.push((format!("limits.d/{name}"), file(random)));
        }
    }
    files
}

fn file(random: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::new();
    // One item is in the focus of a file, so that lines meet.
    let focus = *random.of(&ITEMS);
    for _ in 0..random.below(9) {
        match random.below(40) {
            0 => bytes.extend(b"\n"),
            1 => bytes.extend(b"# comment\n"),
            2 => {
                bytes.extend(vec![b'#'; usize::try_from(1000 + random.below(60)).unwrap()]);
                bytes.extend(line(random, focus));
            }
            3 => bytes.extend(format!("{} -\n", random.of(&DOMAINS)).bytes()),
            4 => bytes.extend(format!("{} -{}\n", random.of(&DOMAINS), random.of(&["x", "soft", "-"])).bytes()),
            5 => bytes.extend(format!("{} {} {focus}\n", random.of(&DOMAINS), random.of(&TYPES)).bytes()),
            6 => bytes.extend(b"\0 alice - core 5\n"),
            _ => bytes.extend(line(random, focus)),
        }
    }
    if random.one_in(6) {
        bytes.pop();
    }
    // A byte order mark belongs to the first word.
    if random.one_in(30) {
        bytes.splice(..0, *b"\xef\xbb\xbf");
    }
    bytes
}

fn line(random: &mut Random, focus: &str) -> Vec<u8> {
    let item = if random.one_in(3) { *random.of(&ITEMS) } else { focus };
    let value = match item {
        // The process must stay able to ask for its password; without descriptors libpam fails in its audit messages.
        "as" | "data" | "stack" => {
            *random.of(&["65536", "131072", "262144x", "unlimited", "-1", "bad", "-7", "+200000"])
        }
        "cpu" => {
            *random.of(&["1", "5", "60", "unlimited", "0", "-1", "307445734561825860", "307445734561825861", "max"])
        }
        "nofile" => {
            *random.of(&["16", "64", "100", "1024", "4096", "20000", "unlimited", "-1", "1048576", "1073741817", "-5"])
        }
        "nice" | "priority" => {
            *random.of(&["0", "5", "-5", "19", "25", "-20", "-30", "-1", "unlimited", "-", "3x", "0x5"])
        }
        "nonewprivs" => *random.of(&["0", "1", "1", "yes", "01", "-1"]),
        "maxlogins" | "maxsyslogins" => {
            *random.of(&["0", "1", "4", "-1", "unlimited", "x", "0x4", "-5", "99999999999"])
        }
        "chroot" => *random.of(&["/", "/tmp", "/proc", "/TMP", "/nonexistent", "-1", "tmp", "/etc/passwd"]),
        _ => *random.of(&[
            "0",
            "1",
            "7",
            "100",
            "4096",
            "20",
            "unlimited",
            "infinity",
            "-1",
            "-",
            "UNLIMITED",
            "Infinity",
            "none",
            "max",
            "10k",
            "1.5",
            "0x100",
            "+7",
            "010",
            "-5",
            "18446744073709551615",
            "18446744073709551616",
            "18014398509481983",
            "18014398509481984",
            "99999999999999999999",
            "9223372036854775808",
            "k10",
            "1000#5",
            "--5",
            "- 5",
        ]),
    };
    let mut bytes = Vec::new();
    let blank = |random: &mut Random| *random.of(&[" ", " ", "\t", "  ", " \t ", "\x0b", "\x0c ", " \r "]);
    if random.one_in(8) {
        bytes.extend(blank(random).bytes());
    }
    for word in [*random.of(&DOMAINS), *random.of(&TYPES), item, value] {
        let word = if random.one_in(12) { word.to_ascii_uppercase() } else { word.to_owned() };
        bytes.extend(word.bytes());
        bytes.extend(blank(random).bytes());
    }
    bytes.extend(random.of(&["", "", "", "junk", "# end", "\r", "unlimited", "\0more", "\u{e4}"]).bytes());
    bytes.push(b'\n');
    bytes
}

const TYPES: [&str; 10] = ["soft", "soft", "hard", "hard", "-", "-", "-", "both", "Soft", "--"];

const ITEMS: [&str; 26] = [
    "core",
    "data",
    "fsize",
    "memlock",
    "nofile",
    "rss",
    "stack",
    "cpu",
    "nproc",
    "as",
    "locks",
    "sigpending",
    "msgqueue",
    "nice",
    "rtprio",
    "rttime",
    "maxlogins",
    "maxsyslogins",
    "priority",
    "nonewprivs",
    "chroot",
    "bogus",
    "nproc",
    "nofile",
    "core",
    "memlock",
];

const DOMAINS: [&str; 44] = [
    "*",
    "*",
    "*",
    "*",
    "alice",
    "alice",
    "bob",
    "root",
    "toor",
    "carol",
    "1000",
    "Alice",
    "@student",
    "@student",
    "@wheel",
    "@alias",
    "@staff",
    "@Group",
    "@group",
    "@nosuch",
    "@",
    "@:2000",
    "@:10",
    "@:9999",
    "@2000:",
    "@0:",
    "@:0",
    "@2000:2001",
    "1000:",
    ":1000",
    "1000:1001",
    "0:",
    ":0",
    "1500:1000",
    ":4294968296",
    "-1:2000",
    "%",
    "%student",
    "%:2000",
    "%1:2",
    "abc:",
    "0x3e8:",
    "%:1001",
    "\"alice\"",
];
