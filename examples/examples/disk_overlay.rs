//! A limit as Docker's `--storage-opt size=`: the image below is not counted, what is written above it is.
//!
//! ```text
//! disk_overlay [DIRECTORY]             on a file system with project quota; default: $SANDBOX_TEST_DISK or /mnt/quota
//! ```
//!
//! An image directory of 20 MB becomes the lower layer of a sandbox's root directory, whose upper and work directories lie
//! in a project of 10 MB.
//!
//! Ends with `ok`, or says what differs (exit 1), or `SKIP reason` (exit 77).

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use quota::{Check, Filesystem};
use sandbox::{LimitKind, Output, Sandbox, Upper};

const IMAGE: usize = 20 << 20;
const LIMIT: u64 = 10 << 20;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// How it ended: well, or not at all.
enum Ended {
    Ok,
    Skipped(String),
}

fn main() -> ExitCode {
    let directory = std::env::args_os().nth(1).or_else(|| std::env::var_os("SANDBOX_TEST_DISK"));
    let directory = directory.map_or_else(|| PathBuf::from("/mnt/quota"), PathBuf::from);
    match run(&directory) {
        Ok(Ended::Ok) => {
            println!("ok");
            ExitCode::SUCCESS
        }
        Ok(Ended::Skipped(reason)) => {
            println!("SKIP {reason}");
            ExitCode::from(77)
        }
        Err(error) => {
            eprintln!("disk_overlay: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(directory: &Path) -> Result<Ended> {
    let filesystem = match Filesystem::open(directory).and_then(|disk| disk.require(&Check::overlay()).map(|_| disk)) {
        Ok(filesystem) => filesystem,
        Err(error) => return Ok(Ended::Skipped(error.to_string())),
    };
    println!(
        "{} lies on {}; project quota is {}",
        directory.display(),
        filesystem.kind(),
        filesystem.states()?.project
    );

    // Everything is below one directory, which goes at the end whatever happens.
    let home = Home(directory.canonicalize()?.join(format!("sandbox-disk-overlay-{}", std::process::id())));
    fs::create_dir(&home.0)?;
    let image = home.0.join("image");
    fs::create_dir(&image)?;
    fs::write(image.join("big"), vec![1; IMAGE])?;
    fs::write(image.join("motd"), "from the image\n")?;

    let layer = home.0.join("layer");
    let state = home.0.join("state");
    fs::create_dir(&state)?;
    let mut builder = Sandbox::builder();
    builder.overlay(&image, Upper::Dir(layer.clone())).disk_max(LIMIT).state_dir(&state);
    for programs in ["/usr", "/bin", "/lib", "/lib64"].into_iter().filter(|path| Path::new(path).exists()) {
        builder.bind_read_only(programs, programs);
    }
    let sandbox = builder.build()?;
    print!("{}", sandbox.plan());
    demonstrate(&sandbox)?;

    expect("what is left behind", &sandbox.close().len(), &0)?;
    fs::remove_dir_all(&layer)?;
    let freed = sandbox::recover(Some(&state))?.projects;
    expect("projects that are free again without the layer", &freed.len(), &1)?;
    Ok(Ended::Ok)
}

fn demonstrate(sandbox: &Sandbox) -> Result<()> {
    let read = sh(sandbox, "stat -c %s /big; df -B1 --output=size / | tail -1")?;
    let text = String::from_utf8_lossy(&read.stdout);
    let mut numbers = text.split_whitespace().map(str::parse);
    expect("the size of the image's file inside", &numbers.next().transpose()?, &Some(IMAGE as u64))?;
    expect("the size that df shows inside", &numbers.next().transpose()?, &Some(LIMIT))?;
    at_most("used by an overlay on a 20 MB image", read.outcome.usage.disk_bytes, 256 << 10)?;
    expect("limits that were met", &read.outcome.limits_hit.len(), &0)?;

    // 10 MB and no more. The errno depends on the file system; the counters say that it was the project.
    let full = sh(sandbox, "head -c 20M /dev/zero > /f; rm /motd; ls /motd")?;
    print!("{}", String::from_utf8_lossy(&full.stderr));
    expect("the limit disk was met", &full.outcome.hit(LimitKind::Disk), &Some(1))?;
    expect("the limit inodes was met", &full.outcome.hit(LimitKind::Inodes), &None)?;
    at_most("used", full.outcome.usage.disk_bytes, LIMIT)?;
    at_most("what is missing of 10 MB", full.outcome.usage.disk_bytes.map(|used| LIMIT - used), 64 << 10)?;

    // A file of the image is removed by a whiteout, made in the layer: that may fail while it is full. Room is made above.
    let again =
        sh(sandbox, "rm /f; for i in 1 2 3 4 5; do rm -f /motd && break; sleep 1; done; ls -A / | grep -c motd")?;
    print!("{}", String::from_utf8_lossy(&again.stderr));
    expect("files of the name motd, once there is room", &String::from_utf8_lossy(&again.stdout).trim(), &"0")
}

fn sh(sandbox: &Sandbox, script: &str) -> Result<Output> {
    Ok(sandbox.command("/bin/sh").args(["-c", script]).output()?)
}

fn expect<T: PartialEq + std::fmt::Debug>(what: &str, found: &T, expected: &T) -> Result<()> {
    if found == expected {
        println!("{what}: {found:?}");
        return Ok(());
    }
    Err(format!("{what}: expected {expected:?}, found {found:?}").into())
}

fn at_most(what: &str, found: Option<u64>, most: u64) -> Result<()> {
    match found {
        Some(found) if found <= most => println!("{what}: {found}"),
        _ => return Err(format!("{what}: expected at most {most}, found {found:?}").into()),
    }
    Ok(())
}

/// A directory that is removed in the end.
struct Home(PathBuf);

impl Drop for Home {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn main_works() {
        assert!(matches!(run(Path::new("/proc")), Ok(Ended::Skipped(reason)) if reason.contains("no project quota")));
        run(Path::new("/mnt/quota")).expect("ok, or skipped");
    }
}
