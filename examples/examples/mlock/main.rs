//! A secret that is never written to swap: locked memory, its limit, and what happens at it.
//!
//! No arguments. Prints what it does and what the kernel answers, and ends with `ok`.

mod sys;

use std::error::Error;
use std::fs;
use std::io;
use std::process::ExitCode;

use rlimit::{Limit, Resource};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use sys::Region;

const KIB: usize = 1024;

fn main() -> ExitCode {
    match run() {
        Ok(()) => {
            println!("ok");
            ExitCode::SUCCESS
        }
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
    // Who has this capability may lock without limit.
    let mut sets = capabilities(None)?;
    if sets.effective.contains(CapabilitySet::IPC_LOCK) {
        sets.effective.remove(CapabilitySet::IPC_LOCK);
        set_capabilities(None, sets)?;
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
        if paged == 0 || kept != 0 {
            return Err("the locked pages should stay, the others go".into());
        }
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

/// How many KiB lie in swap of the mapping that the region is in; the kernel may have joined it with its neighbours.
fn swapped(region: &Region) -> Result<u64, Box<dyn Error>> {
    let maps = fs::read_to_string("/proc/self/smaps")?;
    let number = |text: &str| usize::from_str_radix(text, 16).ok();
    let holds = |line: &str| {
        let (start, end) = line.split(' ').next()?.split_once('-')?;
        Some((number(start)?..number(end)?).contains(&region.address()))
    };
    let mut lines = maps.lines().skip_while(|line| holds(line) != Some(true));
    let line = lines.find(|line| line.starts_with("Swap:")).ok_or("the region is not in /proc/self/smaps")?;
    Ok(line.split_ascii_whitespace().nth(1).unwrap_or_default().parse()?)
}
