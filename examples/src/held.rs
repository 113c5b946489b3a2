//! The two steps in which a program starts in a user namespace: a child of ours waits in it, its maps are written, and
//! only then does it take its ids and become the program.

use std::error::Error;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Gid, Uid, getpid};
use rustix::thread::{UnshareFlags, set_thread_groups, set_thread_res_gid, set_thread_res_uid, unshare_unsafe};
use userns::{IdMap, Setgroups, write_maps};

/// Who the program is, inside and outside.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The map of users.
    pub uids: IdMap,
    /// The map of groups.
    pub gids: IdMap,
    /// Whether the program's groups are dropped, or cannot be changed at all.
    pub setgroups: Setgroups,
    /// The inside uid and gid that it runs with; `None` leaves them as they are.
    pub inside: Option<(u32, u32)>,
}

/// Starts `command` in a user namespace of its own, with this identity from its first instruction on.
///
/// Nothing of this needs the `sandbox` crate, which does the same without a fork.
pub fn spawn(mut command: Command, identity: &Identity) -> Result<Child, Box<dyn Error>> {
    let (said, tell) = pipe_with(PipeFlags::CLOEXEC)?;
    let (wait, gate) = pipe_with(PipeFlags::CLOEXEC)?;
    let wake = tell.try_clone()?;
    let Identity { setgroups, inside, .. } = *identity;
    let child = move || step_one(&tell, &wait, setgroups, inside);
    // SAFETY: the child calls only functions that are raw system calls, and allocates nothing.
    unsafe { command.pre_exec(child) };
    std::thread::scope(|scope| {
        // This returns when the program runs, so step two is another thread's.
        let starting = scope.spawn(move || {
            let started = command.spawn();
            // After a failure there may be no child to speak: 0 is nobody's number.
            let _ = rustix::io::write(&wake, &[0; 4]);
            started
        });
        let written = step_two(&said, gate, identity);
        let started = starting.join().map_err(|_| "the starting thread panicked")?;
        match (written, started) {
            (Ok(()), Ok(child)) => Ok(child),
            (Err(why), Ok(mut child)) => {
                child.kill()?;
                child.wait()?;
                Err(why)
            }
            (Ok(()), Err(why)) => Err(why.into()),
            // Without the maps the child gives up by itself, and the reason is ours. Unless it never came so far.
            (Err(why), Err(started)) => Err(if why.is::<NoChild>() { started.into() } else { why }),
        }
    })
}

/// In the child: into the namespace, then nothing until the maps are there, then the ids.
fn step_one(tell: &OwnedFd, wait: &OwnedFd, setgroups: Setgroups, inside: Option<(u32, u32)>) -> io::Result<()> {
    // SAFETY: the child has one thread, and no descriptor is shared with the parent.
    unsafe { unshare_unsafe(UnshareFlags::NEWUSER) }?;
    rustix::io::write(tell, &getpid().as_raw_nonzero().get().to_ne_bytes())?;
    let mut go = [0];
    if rustix::io::read(wait, &mut go)? != 1 {
        return Err(Errno::CANCELED.into());
    }
    let Some((uid, gid)) = inside else { return Ok(()) };
    if setgroups == Setgroups::Allow {
        set_thread_groups(&[])?;
    }
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)?;
    Ok(())
}

/// In the parent: the maps, and then the word that lets the child go on.
fn step_two(said: &OwnedFd, gate: OwnedFd, identity: &Identity) -> Result<(), Box<dyn Error>> {
    let mut pid = [0; 4];
    rustix::io::read(said, &mut pid)?;
    let pid = u32::from_ne_bytes(pid);
    if pid == 0 {
        return Err(NoChild.into());
    }
    write_maps(pid, &identity.uids, &identity.gids, identity.setgroups)?;
    rustix::io::write(&gate, b"!")?;
    Ok(())
}

#[derive(Debug)]
struct NoChild;

impl std::fmt::Display for NoChild {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("there is no child")
    }
}

impl Error for NoChild {}
