//! A program starts in a user namespace in two steps, so that not one of its instructions runs with a wrong identity.
//!
//! No arguments. The program is twenty instructions that ask the kernel for their ids before anything else. Started as soon
//! as the namespace is there, it finds itself a nobody; started after its maps are written, it is who it should be.

mod recorder;

use std::error::Error;
use std::io::Read as _;
use std::process::{Command, ExitCode, Stdio};

use sandbox_examples::held::{self, Identity};
use userns::{IdMap, Pool, Setgroups, support};

/// The kernel's "nobody": what an id looks like that is not mapped.
const UNMAPPED: u32 = 65534;

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
    if !cfg!(target_arch = "x86_64") {
        return Err("SKIP the recording program is x86-64 code".into());
    }
    let program = recorder::program()?;

    println!("one step: the program starts as soon as its namespace is there");
    let mut one_step = Command::new("unshare");
    let early = one_step.args(["--user", "--"]).arg(program.path()).stdout(Stdio::piped()).spawn();
    match early {
        Ok(child) => {
            let ids = record(child).map_err(|error| format!("SKIP {}: {error}", refusal()))?;
            println!("  its first instructions ran as {}", words(ids));
            expect("an identity that nobody gave it", ids == [UNMAPPED; 6])?;
        }
        Err(error) => println!("  not shown: cannot run unshare: {error}"),
    }

    println!("\ntwo steps: held in our code until its maps are written and read back");
    let root = rustix::process::geteuid().is_root();
    let pool = if root { Some(Pool::default_for_caller()?) } else { None };
    let lease = pool.as_ref().map(|pool| pool.lease("two_steps")).transpose()?;
    let wanted: &[(u32, u32)] = if root { &[(0, 0), (33, 34), (4242, 4343)] } else { &[(0, 0)] };
    for &(uid, gid) in wanted {
        let (uids, gids, setgroups) = match &lease {
            Some(lease) => (lease.uid_map(), lease.gid_map(), Setgroups::Allow),
            None => {
                let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
                (IdMap::single(0, uid)?, IdMap::single(0, gid)?, Setgroups::Deny)
            }
        };
        let identity = Identity { uids, gids, setgroups, inside: Some((uid, gid)) };
        let mut command = Command::new(program.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let ids = record(held::spawn(command, &identity)?)?;
        let outside = identity.uids.to_outside(uid).ok_or("the uid is not mapped")?;
        println!("  its first instructions ran as {}; the uid is {outside} outside", words(ids));
        expect("the identity that was chosen", ids == [uid, uid, uid, gid, gid, gid])?;
    }
    if let Some(lease) = lease {
        lease.release()?;
    }
    Ok(())
}

/// Real, effective and saved uid, then the same of gids, as the program found them at its first instruction.
fn record(mut child: std::process::Child) -> Result<[u32; 6], Box<dyn Error>> {
    let mut bytes = Vec::new();
    child.stdout.take().ok_or("no output")?.read_to_end(&mut bytes)?;
    let status = child.wait()?;
    let ids: Vec<u32> =
        bytes.chunks_exact(4).map(|four| four.iter().rev().fold(0, |id, &byte| id << 8 | u32::from(byte))).collect();
    ids.try_into().map_err(|_| format!("the program recorded {} bytes and ended with {status}", bytes.len()).into())
}

fn words(ids: [u32; 6]) -> String {
    format!("uid {} {} {} (real, effective, saved), gid {} {} {}", ids[0], ids[1], ids[2], ids[3], ids[4], ids[5])
}

fn refusal() -> String {
    let found: Vec<_> = support::obstacles().iter().map(ToString::to_string).collect();
    if found.is_empty() { "no user namespace can be made here".into() } else { found.join("; ") }
}

fn expect(what: &str, holds: bool) -> Result<(), Box<dyn Error>> {
    if holds {
        println!("  as expected: {what}");
        return Ok(());
    }
    Err(format!("differs: expected {what}").into())
}
