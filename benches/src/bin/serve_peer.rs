//! `serve_peer posix_spawn|hakoniwa TARGET` and `serve_peer command PROGRAM [ARG…]`: the resident programs of the peers,
//! with the protocol of `serve`.
//!
//! `posix_spawn` is the yardstick: the target without any sandbox. `hakoniwa` is that library, used once for each run as
//! its documentation shows, with the same namespaces, mounts and identity as ours, and without what it would need other
//! features for (limits, seccomp). `command` runs a command line, for peers that are programs.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use sandbox_benches::resident::{self, Failure};
use sandbox_benches::sys::Spawner;
use sandbox_benches::tiny::directory_to_show;

const USAGE: &str = "usage: serve_peer posix_spawn|hakoniwa TARGET | serve_peer command PROGRAM [ARG...]";

fn main() -> ExitCode {
    match serve(&std::env::args_os().skip(1).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("serve_peer: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(args: &[OsString]) -> Result<(), Failure> {
    match args {
        [kind, target] if kind == "posix_spawn" => command(std::slice::from_ref(target)),
        [kind, target] if kind == "hakoniwa" => hakoniwa(target),
        [kind, line @ ..] if kind == "command" && !line.is_empty() => command(line),
        _ => Err(USAGE.into()),
    }
}

fn command(line: &[OsString]) -> Result<(), Failure> {
    let args: Vec<CString> = line.iter().map(|arg| CString::new(arg.as_bytes())).collect::<Result<_, _>>()?;
    let program = find(line.first().map_or(Path::new(""), Path::new))?;
    let spawner = Spawner::new(CString::new(program.as_os_str().as_bytes())?, args)?;
    resident::serve(|| {
        let status = spawner.run()?;
        if status.success() { Ok(()) } else { Err(format!("{} ended with {status}", program.display()).into()) }
    })
}

/// The path of a program, looked up once: posix_spawn, unlike posix_spawnp, takes paths only.
fn find(program: &Path) -> io::Result<PathBuf> {
    if program.as_os_str().as_bytes().contains(&b'/') {
        return Ok(program.to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no program {}", program.display())))
}

fn hakoniwa(target: &OsString) -> Result<(), Failure> {
    use hakoniwa::{Command, Container, Namespace};
    let text = target.to_str().ok_or("hakoniwa takes text only")?;
    let mut container = Container::new();
    container.rootfs("/")?.tmpfsmount("/tmp").devfsmount("/dev").hostname("sandbox");
    for namespace in [Namespace::Ipc, Namespace::Uts, Namespace::Network, Namespace::Cgroup] {
        container.unshare(namespace);
    }
    if let Some(directory) = directory_to_show(Path::new(target)).and_then(Path::to_str) {
        container.bindmount_ro(directory, directory);
    }
    let null = File::options().read(true).write(true).open("/dev/null")?;
    resident::serve(|| {
        let mut command = container.command(text);
        for stream in [Command::stdin::<File>, Command::stdout::<File>, Command::stderr::<File>] {
            stream(&mut command, null.try_clone()?);
        }
        let status = command.status()?;
        if status.code == 0 { Ok(()) } else { Err(format!("hakoniwa: {} {}", status.code, status.reason).into()) }
    })
}
