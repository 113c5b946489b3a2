//! A secret that is never written to swap: locked memory, its limit, and what happens at it.
//!
//! No arguments. Prints what it does and what the kernel answers, and ends with `ok`.

mod sys;

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use cgroup::{Cgroup, Controller, Layout, Limits, Needs};
use rlimit::{Limit, Resource};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use sys::Region;

const KIB: usize = 1024;

/// Memory of the group in which there is too little of it, and what is touched in it.
const ROOM: usize = 16 << 20;
const TOUCHED: usize = 40 << 20;

const CROWDED: &str = "--crowded";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => run().map(|()| println!("ok")),
        [CROWDED] => crowded(),
        _ => Err("mlock takes no arguments".into()),
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
    let before = rlimit::get(Resource::Memlock);
    println!("RLIMIT_MEMLOCK is {before} bytes; {}", Resource::Memlock.at_limit());
    if before.hard < Limit::Value(64 << 10) {
        return Err(format!("SKIP needs a hard limit of 64 KiB; found {}", before.hard).into());
    }
    if give_up_capability()? {
        println!("CAP_IPC_LOCK lifts the limit: given up");
    }
    rlimit::set_soft(Resource::Memlock, Limit::Value(64 << 10))?;
    println!("soft limit set to 64 KiB\n");

    println!("over the limit:");
    let big = Region::new(128 * KIB)?;
    expect("mlock of 128 KiB", Some(Errno::NOMEM), answer(big.lock()))?;
    expect(
        "mapping 128 KiB while every new mapping is locked",
        Some(Errno::AGAIN),
        answer(sys::map_locked(128 * KIB)),
    )?;
    rlimit::set_soft(Resource::Memlock, Limit::Value(0))?;
    expect("mlock of 128 KiB with a limit of 0", Some(Errno::PERM), answer(big.lock()))?;
    rlimit::set_soft(Resource::Memlock, Limit::Value(64 << 10))?;
    expect("VmLck after all that", Some(0), locked()?)?;

    println!("\na secret in locked memory:");
    let mut secret = Region::new(16 * KIB)?;
    secret.lock()?;
    // Written only once it is locked: before, it could have been swapped out.
    let word = b"correct horse battery staple";
    secret.bytes_mut()[..word.len()].copy_from_slice(word);
    expect("VmLck with 16 KiB locked", Some(16 << 10), locked()?)?;

    println!("\nand swap:");
    expect("paging out the secret on purpose", Some(Errno::INVAL), answer(secret.page_out()))?;
    if fs::read_to_string("/proc/swaps")?.lines().count() > 1 {
        let mut plain = Region::new(1024 * KIB)?;
        plain.bytes_mut().fill(1);
        plain.page_out()?;
        let (paged, kept) = (swapped(&plain)?, swapped(&secret)?);
        println!("  of 1 MiB that is not locked, {paged} KiB went to swap; of the secret {kept} KiB");
        locked_stays(paged, kept)?;
        under_pressure()?;
    } else {
        println!("  this host has no swap to show it with");
    }

    if &secret.bytes_mut()[..word.len()] != word {
        return Err("the secret is gone".into());
    }
    println!("\ndone with it:");
    drop(secret);
    expect("VmLck after it was wiped and unlocked", Some(0), locked()?)?;
    Ok(())
}

/// `VmLck` of this process.
fn locked() -> Result<Option<u64>, rlimit::Error> {
    Ok(rlimit::usage_of(std::process::id())?.locked)
}

/// The error number of a call; `None` when it succeeds.
fn answer<T>(result: io::Result<T>) -> Option<Errno> {
    result.err().and_then(|error| Errno::from_io_error(&error))
}

/// Prints what the kernel answered, in words, and insists on it.
fn expect<T: PartialEq + Words>(what: &str, expected: T, found: T) -> Result<(), Box<dyn Error>> {
    println!("  {what}: {}", found.words());
    if expected == found { Ok(()) } else { Err(format!("  expected: {}", expected.words()).into()) }
}

trait Words {
    fn words(&self) -> String;
}

impl Words for Option<u64> {
    fn words(&self) -> String {
        self.map_or_else(|| "unknown".to_owned(), |bytes| format!("{} KiB", bytes / 1024))
    }
}

impl Words for Option<Errno> {
    /// The three refusals of RLIMIT_MEMLOCK, told apart.
    fn words(&self) -> String {
        let Some(errno) = *self else { return "it succeeds".to_owned() };
        match errno {
            Errno::NOMEM => "ENOMEM, more than RLIMIT_MEMLOCK would be locked".to_owned(),
            Errno::PERM => "EPERM, RLIMIT_MEMLOCK is 0 and there is no CAP_IPC_LOCK".to_owned(),
            Errno::AGAIN => "EAGAIN, a new mapping would be locked at once and exceed RLIMIT_MEMLOCK".to_owned(),
            Errno::INVAL => "EINVAL, locked memory cannot be paged out".to_owned(),
            other => other.to_string(),
        }
    }
}

/// Who has this capability may lock without limit; whether we had it.
fn give_up_capability() -> Result<bool, Box<dyn Error>> {
    let mut sets = capabilities(None)?;
    if !sets.effective.contains(CapabilitySet::IPC_LOCK) {
        return Ok(false);
    }
    sets.effective.remove(CapabilitySet::IPC_LOCK);
    set_capabilities(None, sets)?;
    Ok(true)
}

fn locked_stays(paged: u64, kept: u64) -> Result<(), Box<dyn Error>> {
    if paged == 0 || kept != 0 {
        return Err("the locked pages should stay, the others go".into());
    }
    Ok(())
}

/// The same where nobody asks for it: a group touches more memory than it may have.
fn under_pressure() -> Result<(), Box<dyn Error>> {
    let name = format!("sandbox-mlock-{}", std::process::id());
    let group = match Layout::detect()?.create(&name, &Needs::new([Controller::Memory])) {
        Ok(group) => group,
        Err(error) => {
            println!("  not shown under pressure: {error}");
            return Ok(());
        }
    };
    let said = crowd(&group);
    group.remove(Duration::from_secs(5))?;
    let said = said?;
    let (paged, kept) = said.trim_end().split_once(' ').ok_or("two numbers were expected")?;
    println!("  with {} MiB for {} MiB that are touched:", ROOM >> 20, TOUCHED >> 20);
    println!("  of 64 KiB that are not locked, {paged} KiB went to swap; of 64 KiB that are, {kept} KiB");
    locked_stays(paged.parse()?, kept.parse()?)
}

/// Runs [`crowded`] in the group: KiB in swap of its two regions.
fn crowd(group: &Cgroup) -> Result<String, Box<dyn Error>> {
    let mut limits = Limits::default();
    limits.memory_max = Some(cgroup::Limit::Value(ROOM as u64));
    drop(group.set(&limits)?);
    let mut command = Command::new("/proc/self/exe");
    let mut child = command.arg(CROWDED).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    // It waits for its word, so that all that it touches is the group's; without it, it ends.
    let attached = group.attach(child.id());
    let mut word = child.stdin.take().ok_or("no input")?;
    if attached.is_ok() {
        word.write_all(b"!")?;
    }
    drop(word);
    let output = child.wait_with_output()?;
    attached?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() { Ok(said) } else { Err(format!("{}: {said}", output.status).into()) }
}

/// Two regions alike but for the lock, and then more memory than there is room for.
fn crowded() -> Result<(), Box<dyn Error>> {
    if io::stdin().read(&mut [0])? == 0 {
        return Err("nobody said the word".into());
    }
    give_up_capability()?;
    rlimit::set_soft(Resource::Memlock, Limit::Value(64 << 10))?;
    let (mut plain, mut secret) = (Region::new(64 * KIB)?, Region::new(64 * KIB)?);
    secret.lock()?;
    for region in [&mut plain, &mut secret] {
        region.bytes_mut().fill(1);
    }
    let mut rest = Region::new(TOUCHED)?;
    for turn in 1..=2 {
        rest.bytes_mut().fill(turn);
    }
    println!("{} {}", swapped(&plain)?, swapped(&secret)?);
    Ok(())
}

/// How many KiB of the region lie in swap: a bit of each page in `/proc/self/pagemap` tells.
fn swapped(region: &Region) -> Result<u64, Box<dyn Error>> {
    const IN_SWAP: u64 = 1 << 62;
    let page = rustix::param::page_size();
    let mut entries = vec![0; region.length() / page * 8];
    File::open("/proc/self/pagemap")?.read_exact_at(&mut entries, (region.address() / page * 8) as u64)?;
    let entries = entries.chunks_exact(8).filter_map(|entry| entry.try_into().ok().map(u64::from_ne_bytes));
    let pages = entries.filter(|entry| entry & IN_SWAP != 0).count();
    Ok((pages * page / KIB) as u64)
}
