//! Do processes that are cloned later, without `CLONE_NEWUSER`, follow a map? Inside yes, from outside no.
//!
//! No arguments. The map belongs to the namespace. A first process gets a namespace and a map; it clones others in
//! all kinds of namespaces; and so does this program, from outside.

use std::error::Error;
use std::io::Read as _;
use std::os::fd::AsRawFd as _;
use std::process::{Command, ExitCode, Stdio};

use ns::{Clone, Namespaces, Program};
use sandbox_examples::held::{self, Identity};
use serde_json::{Value, json};
use userns::{IdMap, Pool, Setgroups};

const INSIDE: &str = "--inside";
const REPORT: &str = "--report";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => run(),
        [INSIDE] => inside(),
        [REPORT, label] => report(label, "-"),
        [REPORT, label, place] => report(label, place),
        _ => Err("inherit_map takes no arguments".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error}");
            ExitCode::from(if error.to_string().starts_with("SKIP") { 77 } else { 1 })
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let root = rustix::process::geteuid().is_root();
    let lease = if root { Some(Pool::default_for_caller()?.lease("inherit_map")?) } else { None };
    let (uids, gids, setgroups) = match &lease {
        Some(lease) => (lease.uid_map(), lease.gid_map(), Setgroups::Allow),
        None => {
            let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
            (IdMap::single(0, uid)?, IdMap::single(0, gid)?, Setgroups::Deny)
        }
    };
    let map = one_line(&uids.to_string());
    let identity = Identity { uids, gids, setgroups, inside: Some((0, 0)) };
    let mut command = Command::new("/proc/self/exe");
    command.arg(INSIDE).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut first = held::spawn(command, &identity).map_err(|error| format!("SKIP no user namespace here: {error}"))?;
    let mut text = String::new();
    first.stdout.take().ok_or("no output")?.read_to_string(&mut text)?;
    let status = first.wait()?;
    if !status.success() {
        return Err(format!("the first process ended with {status}: {text}").into());
    }

    println!("the map of the first process: {map}\n");
    let reports: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let first = reports.first().ok_or("no report")?;
    let mut nested = 0;
    for report in &reports {
        show(report);
        if report["label"] == "clone with CLONE_NEWUSER" {
            nested += 1;
            expect("another namespace", report["namespace"] != first["namespace"])?;
            expect("an empty map", report["map"] == "" && report["uid"] == 65534)?;
        } else {
            expect("the same namespace", report["namespace"] == first["namespace"])?;
            expect("the same map", report["map"] == map.as_str() && report["uid"] == 0)?;
            expect(
                "what it makes belongs to that namespace",
                report["owner"] == first["namespace"] || report["own_uts"] == false,
            )?;
        }
    }
    expect("one with a namespace of its own, and some without", nested == 1 && reports.len() > 4)?;

    println!("from outside, after the first:");
    let kinds = if root { Namespaces::MOUNT | Namespaces::UTS } else { Namespaces::empty() };
    let sibling = Command::new("/proc/self/exe").args([REPORT, "here"]).output()?;
    let here: Value = serde_json::from_slice(&sibling.stdout)?;
    let sibling = from_outside(kinds)?;
    show(&sibling);
    expect("the namespace of this program", sibling["namespace"] == here["namespace"])?;
    expect("the map of this program", sibling["map"] == here["map"] && sibling["namespace"] != first["namespace"])?;
    if let Some(lease) = lease {
        lease.release()?;
    }
    println!("ok");
    Ok(())
}

/// The first process: speaks for itself, then for clones of its own.
fn inside() -> Result<(), Box<dyn Error>> {
    report("the first process", "-")?;
    let kinds = [
        ("clone, no new namespace", Namespaces::empty()),
        ("clone with CLONE_NEWUTS", Namespaces::UTS),
        ("clone with CLONE_NEWNS and CLONE_NEWIPC", Namespaces::MOUNT | Namespaces::IPC),
        ("clone with CLONE_NEWPID and CLONE_NEWUTS", Namespaces::PID | Namespaces::UTS),
        ("clone with CLONE_NEWUSER", Namespaces::USER),
    ];
    for (label, kinds) in kinds {
        let program = Program::new("/proc/self/exe")?.arg(REPORT)?.arg(label)?;
        let born = program.spawn(&Clone::new(kinds))?;
        born.pidfd.wait(None)?;
        let status = born.pidfd.reap()?.ok_or("no status")?;
        if !status.success() {
            return Err(format!("{label}: ended with {status}").into());
        }
    }
    Ok(())
}

/// The report of a clone of ours, in these namespaces, without a user namespace.
fn from_outside(kinds: Namespaces) -> Result<Value, Box<dyn Error>> {
    // Not close-on-exec: the program inherits our standard output, so it gets another place to write to.
    let (read, write) = rustix::pipe::pipe()?;
    let place = format!("/proc/self/fd/{}", write.as_raw_fd());
    let program = Program::new("/proc/self/exe")?.arg(REPORT)?.arg("clone from outside")?.arg(place)?;
    let born = program.spawn(&Clone::new(kinds))?;
    drop(write);
    let mut text = String::new();
    std::fs::File::from(read).read_to_string(&mut text)?;
    born.pidfd.wait(None)?;
    born.pidfd.reap()?;
    Ok(serde_json::from_str(&text)?)
}

/// What the kernel says of this process, as one line.
fn report(label: &str, place: &str) -> Result<(), Box<dyn Error>> {
    use std::os::unix::fs::MetadataExt as _;
    let uts = std::fs::File::open("/proc/self/ns/uts")?;
    // NS_GET_USERNS: the namespace that owns this one. EPERM when it is an ancestor of ours.
    // SAFETY: the request takes no argument and returns a new descriptor or an error.
    let owner = unsafe { libc::ioctl(uts.as_raw_fd(), 0xb701) };
    let owner = if owner < 0 { None } else { Some(std::fs::metadata(format!("/proc/self/fd/{owner}"))?.ino()) };
    let line = json!({
        "label": label,
        "namespace": std::fs::metadata("/proc/self/ns/user")?.ino(),
        "map": one_line(&std::fs::read_to_string("/proc/self/uid_map")?),
        "uid": rustix::process::getuid().as_raw(),
        "owner": owner,
        "own_uts": label.contains("NEWUTS"),
    });
    // Opening a pipe anew like this works for its owner only; standard output is simply ours.
    match place {
        "-" => println!("{line}"),
        place => std::fs::write(place, format!("{line}\n"))?,
    }
    Ok(())
}

fn show(report: &Value) {
    let text = |key: &str| report[key].as_str().map_or_else(|| report[key].to_string(), ToOwned::to_owned);
    let map = if report["map"] == "" { "none".into() } else { text("map") };
    println!("{}: user namespace {}, map {map}, uid {}", text("label"), text("namespace"), text("uid"));
}

fn one_line(map: &str) -> String {
    let lines = map.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>().join(" "));
    lines.collect::<Vec<_>>().join(", ")
}

fn expect(what: &str, holds: bool) -> Result<(), Box<dyn Error>> {
    if holds {
        println!("  {what}");
        return Ok(());
    }
    Err(format!("differs: expected {what}").into())
}
