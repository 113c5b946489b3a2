//! Disk limits for directories: whether there can be any, setting them, what is used, and taking them away.
//!
//! ```text
//! quota check /srv/boxes               exit 1, the reason and the fix when it cannot be limited
//! quota check /srv/boxes --overlay     the same for an overlay's upper and work directories
//! quota set /srv/boxes/7 50M --inodes 10000
//! quota report /srv/boxes              all projects of the file system
//! quota clear /srv/boxes/7
//! ```
//!
//! `set` makes a project for the directory, unless it has one, and keeps it until `clear`, across reboots. Exit status:
//! 0, or 1 with the cause and the fix on stderr.

use std::fmt::Display;
use std::io::IsTerminal;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use quota::{
    Allocator, Check, Directory, Error, Filesystem, KernelCheck, Limit, Limits, Names, Problem, Purpose, Released,
    Report, Retagged, State,
};
use serde_json::{Value, json};

/// Ids of directories that were limited by hand; those of sandboxes are others.
const IDS: RangeInclusive<u32> = 2_001_000_000..=2_001_999_999;

/// Disk limits for directories.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    action: Action,
    /// Print one JSON document.
    #[arg(long, global = true)]
    json: bool,
    /// Where the lent project ids are remembered.
    #[arg(long, global = true, default_value = "/var/lib/sandbox-quota", value_name = "DIR")]
    state: PathBuf,
}

#[derive(Subcommand)]
enum Action {
    /// Whether the directory can be limited; what is missing, and the fix.
    Check {
        /// The directory.
        directory: PathBuf,
        /// It shall hold the upper and work directories of an overlay.
        #[arg(long)]
        overlay: bool,
        /// What a kernel before 5.10 means.
        #[arg(long, value_enum, default_value_t = Policy::Error)]
        kernel_check: Policy,
    },
    /// Limit the directory and everything in it, now and later.
    Set {
        /// The directory.
        directory: PathBuf,
        /// Bytes, or with K, M, G or T (of 1024).
        #[arg(value_parser = size)]
        size: u64,
        /// Files, directories and links, the directory itself included.
        #[arg(long)]
        inodes: Option<u64>,
    },
    /// Usage and limits of all projects on the directory's file system.
    Report {
        /// The directory.
        directory: PathBuf,
    },
    /// Take the limit away, and the project of everything in the directory.
    Clear {
        /// The directory.
        directory: PathBuf,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Policy {
    Error,
    Warn,
    Off,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (state, as_json) = (&arguments.state, arguments.json);
    let result = match &arguments.action {
        Action::Check { directory, overlay, kernel_check } => check(directory, *overlay, *kernel_check, as_json),
        Action::Set { directory, size, inodes } => set(directory, *size, *inodes, state, as_json),
        Action::Report { directory } => report(directory, as_json),
        Action::Clear { directory } => clear(directory, state, as_json),
    };
    result.unwrap_or_else(|error| {
        if as_json {
            print(&json!({ "error": error.to_string(), "errno": error.errno(), "fix": error.hint() }));
        }
        eprintln!("quota: {error}");
        ExitCode::FAILURE
    })
}

fn check(directory: &Path, overlay: bool, kernel: Policy, as_json: bool) -> Result<ExitCode, Error> {
    let filesystem = Filesystem::open(directory)?;
    let kernel = match kernel {
        Policy::Error => KernelCheck::Refuse,
        Policy::Warn => KernelCheck::Warn,
        Policy::Off => KernelCheck::Off,
    };
    let purpose = if overlay { Purpose::Overlay } else { Purpose::Directory };
    let problems = filesystem.check(&Check { purpose, kernel, ..Check::default() })?;
    let states = filesystem.states()?;
    let fit = !problems.iter().any(Problem::is_fatal);
    let status = if fit { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if as_json {
        let state = |state: State| json!({ "accounting": state.accounting, "enforcement": state.enforcement });
        let problems: Vec<_> = problems
            .iter()
            .map(|problem| json!({ "problem": problem.to_string(), "fix": problem.fix(), "fatal": problem.is_fatal() }))
            .collect();
        print(&json!({
            "directory": directory.display().to_string(),
            "filesystem": filesystem.kind().to_string(),
            "mount_point": filesystem.mount_point().map(|path| path.display().to_string()),
            "source": filesystem.source().map(|path| path.display().to_string()),
            "states": { "user": state(states.user), "group": state(states.group), "project": state(states.project) },
            "fit": fit,
            "problems": problems,
        }));
        return Ok(status);
    }
    let mounted = filesystem.mount_point().map(|point| format!(" mounted on {}", point.display())).unwrap_or_default();
    println!("{}: {}{mounted}", directory.display(), filesystem.kind());
    println!("quota: user {}; group {}; project {}", states.user, states.group, states.project);
    for problem in &problems {
        let kind = if problem.is_fatal() { "cannot be limited" } else { "note" };
        println!("{kind}: {problem}\n  fix: {}", problem.fix());
    }
    if fit {
        println!("can be limited");
    }
    Ok(status)
}

fn set(directory: &Path, size: u64, inodes: Option<u64>, state: &Path, as_json: bool) -> Result<ExitCode, Error> {
    let with_limits = |mut limits: Limits| {
        limits = limits.bytes(size);
        inodes.map_or(limits, |inodes| limits.inodes(inodes))
    };
    let (directory, filesystem) = open(directory)?;
    filesystem.require(&Check::default())?;
    let mut retagged = Retagged::default();
    let own = directory.tag()?;
    let id = if own.project != 0 && own.inherit {
        // An inode limit of before stays.
        let project = filesystem.project(own.project)?;
        project.set_limits(&with_limits(project.limits()?))?;
        own.project
    } else {
        let limits = with_limits(Limits::unlimited());
        let lease = Allocator::open(&filesystem, state, IDS)?
            .lease(&format!("quota set {}", directory.path().display()), &limits)?;
        if directory.is_empty()? {
            lease.assign(&directory)?;
        } else {
            lease.remember(&directory)?;
            retagged = directory.assign_existing(lease.project())?;
        }
        lease.keep()?
    };
    let report = filesystem.project(id)?.report()?;
    if as_json {
        let left: Vec<_> = retagged.left.iter().map(|left| left.path.display().to_string()).collect();
        let mut document = row(&report);
        document["not_counted"] = json!(left);
        print(&document);
    } else {
        println!("project {id}: {}, used {} bytes, {} inodes", report.limits, report.usage.bytes, report.usage.inodes);
    }
    Ok(tell_left(&retagged, "is not counted"))
}

fn report(directory: &Path, as_json: bool) -> Result<ExitCode, Error> {
    let filesystem = Filesystem::open(directory)?;
    filesystem.require(&Check { kernel: KernelCheck::Off, ..Check::default() })?;
    let reports = filesystem.report()?;
    if as_json {
        print(&Value::Array(reports.iter().map(row).collect()));
        return Ok(ExitCode::SUCCESS);
    }
    let names = Names::system()?;
    let mut table = table(["project", "used", "soft", "hard", "used inodes", "soft", "hard"]);
    for report in &reports {
        let project = names.name(report.project).map_or_else(|| report.project.to_string(), str::to_owned);
        let (usage, limits) = (&report.usage, &report.limits);
        table.add_row([
            project,
            usage.bytes.to_string(),
            limits.bytes_soft.to_string(),
            limits.bytes_hard.to_string(),
            usage.inodes.to_string(),
            limits.inodes_soft.to_string(),
            limits.inodes_hard.to_string(),
        ]);
    }
    println!("{table}");
    Ok(ExitCode::SUCCESS)
}

fn clear(directory: &Path, state: &Path, as_json: bool) -> Result<ExitCode, Error> {
    let (directory, filesystem) = open(directory)?;
    filesystem.require(&Check { kernel: KernelCheck::Off, ..Check::default() })?;
    let own = directory.tag()?;
    if own.project == 0 {
        if as_json {
            print(&json!({ "project": null, "released": false }));
        } else {
            println!("{} has no project", directory.path().display());
        }
        return Ok(ExitCode::SUCCESS);
    }
    let retagged = directory.clear()?;
    let released = match Allocator::open(&filesystem, state, IDS)?.take(own.project)? {
        Some(lease) => lease.release()? == Released::Freed,
        // Not lent by us: somebody gave it this id, whose limits are taken away with the last file.
        None => {
            let project = filesystem.project(own.project)?;
            let unused = project.usage()?.inodes == 0;
            if unused {
                project.clear()?;
            }
            unused
        }
    };
    if as_json {
        print(&json!({ "project": own.project, "released": released }));
    } else if released {
        println!("project {} is free again", own.project);
    } else {
        println!("project {} is still used elsewhere; its limits stay", own.project);
    }
    if released {
        return Ok(ExitCode::SUCCESS); // Nothing bears it any more.
    }
    Ok(tell_left(&retagged, "may keep its project"))
}

/// The absolute path: the registry remembers it.
fn open(directory: &Path) -> Result<(Directory, Filesystem), Error> {
    let path = std::fs::canonicalize(directory).unwrap_or_else(|_| directory.to_owned());
    Ok((Directory::open(&path)?, Filesystem::open(&path)?))
}

fn tell_left(retagged: &Retagged, what: &str) -> ExitCode {
    for left in &retagged.left {
        eprintln!("quota: {} {what}: {}", left.path.display(), left.why);
    }
    // A link or FIFO takes an inode and no space worth a limit.
    if retagged.left.iter().all(|left| left.special) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn row(report: &Report) -> Value {
    let limit = Limit::value;
    json!({
        "project": report.project,
        "used_bytes": report.usage.bytes,
        "soft_bytes": limit(report.limits.bytes_soft),
        "hard_bytes": limit(report.limits.bytes_hard),
        "used_inodes": report.usage.inodes,
        "soft_inodes": limit(report.limits.inodes_soft),
        "hard_inodes": limit(report.limits.inodes_hard),
    })
}

fn size(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.char_indices().next_back() {
        Some((at, 'K' | 'k')) => (&text[..at], 10),
        Some((at, 'M' | 'm')) => (&text[..at], 20),
        Some((at, 'G' | 'g')) => (&text[..at], 30),
        Some((at, 'T' | 't')) => (&text[..at], 40),
        _ => (text, 0),
    };
    let number: u64 = digits.parse().map_err(|_| "expected a number, alone or with K, M, G or T".to_owned())?;
    number.checked_mul(1 << unit).ok_or_else(|| "too large".to_owned())
}

fn table<const N: usize>(head: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED).set_header(head);
    if std::io::stdout().is_terminal() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    }
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn print(document: &dyn Display) {
    println!("{document}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("50M"), Ok(50 << 20));
        assert_eq!(size("1T"), Ok(1 << 40));
        assert!(size("M").is_err() && size("").is_err() && size("-1").is_err() && size("99999999T").is_err());
    }

    #[test]
    fn main_works() {
        // Whatever the kernel, /proc is unfit.
        let status = check(Path::new("/proc"), false, Policy::Error, false).expect("an answer");
        assert_eq!(format!("{status:?}"), format!("{:?}", ExitCode::FAILURE));
        assert!(check(Path::new("/no/such/directory"), false, Policy::Warn, false).is_err());
    }
}
