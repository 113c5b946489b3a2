//! Subordinate ids: who has which, a range for a sandbox, whose an id is, and overlaps that nobody else looks for.
//!
//! ```text
//! subid list [USER] [--root DIR]       grants of /etc/subuid and /etc/subgid, and lines that are wrong
//! subid lease                          prints `base count` of a free range and holds it until end of input
//! subid who 2013265953                 which sandbox has this uid, and who it is inside
//! subid overlaps [--root DIR]          ids granted twice, or granted and an account's
//! ```

use std::error::Error;
use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use serde_json::{Value, json};
use userns::{Grant, OverlapWith, OwnerState, Pool, PoolConfig, Range, SubidFile, SubordinateIds};

/// Subordinate ids and leases of them.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    action: Action,
    /// Print one JSON document.
    #[arg(long, global = true)]
    json: bool,
    /// Where leases are kept (default: /run/sandbox, or below XDG_RUNTIME_DIR when not root).
    #[arg(long, global = true, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Action {
    /// Grants of a user, as getsubids lists them; of all without USER, with the lines that are wrong.
    List {
        /// Login name, or uid.
        user: Option<OsString>,
        /// Read the files below this directory.
        #[arg(long, default_value = "/")]
        root: PathBuf,
    },
    /// Take a range that nobody else has, print `base count`, and hold it until end of input.
    Lease {
        /// Name of the holder, for `who`.
        #[arg(long, default_value = "subid lease")]
        name: String,
    },
    /// Which sandbox a host uid belongs to. Exit status 1 when none has it.
    Who {
        /// The uid outside.
        uid: u32,
    },
    /// Grants that share ids with another user's grant, or with an account.
    Overlaps {
        /// Read the files below this directory.
        #[arg(long, default_value = "/")]
        root: PathBuf,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match &arguments.action {
        Action::List { user, root } => list(user.as_ref(), root, arguments.json),
        Action::Lease { name } => lease(arguments.state_dir.as_deref(), name, arguments.json),
        Action::Who { uid } => who(arguments.state_dir.as_deref(), *uid, arguments.json),
        Action::Overlaps { root } => overlaps(root, arguments.json),
    };
    result.unwrap_or_else(|error| {
        eprintln!("subid: {error}");
        ExitCode::FAILURE
    })
}

fn read(root: &Path) -> Result<SubordinateIds, userns::Error> {
    if root == Path::new("/") { SubordinateIds::read() } else { SubordinateIds::read_root(root) }
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED).set_header(header);
    table
}

fn list(user: Option<&OsString>, root: &Path, json: bool) -> Result<ExitCode, Box<dyn Error>> {
    let ids = read(root)?;
    // A number is the user with that uid, as long as no login name is that number.
    let name = user.map(|user| {
        let by_number = || ids.accounts().user_name(user.to_str()?.parse().ok()?);
        if ids.accounts().uid_of(user).is_some() { user.clone() } else { by_number().unwrap_or_else(|| user.clone()) }
    });
    let (uids, gids) = match &name {
        Some(name) => (ids.uids_of(name)?, ids.gids_of(name)?),
        None => (ids.uids().grants().to_vec(), ids.gids().grants().to_vec()),
    };
    let files: &[&SubidFile] = if user.is_some() { &[] } else { &[ids.uids(), ids.gids()] };
    let problems = || files.iter().flat_map(|file| file.problems().iter().map(|problem| (file.path(), problem)));
    if json {
        let problems: Vec<Value> = problems()
            .map(|(file, problem)| {
                json!({
                    "file": file.display().to_string(), "line": problem.line, "text": problem.text,
                    "expected": problem.expected, "ignored": problem.ignored,
                })
            })
            .collect();
        let grants = |grants: &[Grant]| grants.iter().map(grant).collect::<Vec<_>>();
        println!("{}", json!({ "uids": grants(&uids), "gids": grants(&gids), "problems": problems }));
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = table(&["of", "owner", "first", "count", "line"]);
    for (kind, grants) in [("uids", &uids), ("gids", &gids)] {
        for grant in grants {
            let owner = grant.owner.to_string_lossy().into_owned();
            rows.add_row([
                kind.into(),
                owner,
                grant.start.to_string(),
                grant.count.to_string(),
                grant.line.to_string(),
            ]);
        }
    }
    println!("{rows}");
    for (file, problem) in problems() {
        let effect = if problem.ignored { "ignored" } else { "odd" };
        println!(
            "{}:{}: {effect}: expected {}, found {:?}",
            file.display(),
            problem.line,
            problem.expected,
            problem.text
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn grant(grant: &Grant) -> Value {
    json!({
        "owner": grant.owner.to_string_lossy(), "start": grant.start, "count": grant.count, "line": grant.line,
    })
}

fn lease(state_dir: Option<&Path>, name: &str, json: bool) -> Result<ExitCode, Box<dyn Error>> {
    let pool = match state_dir {
        Some(directory) => Pool::open(directory, &PoolConfig::default_for_caller()?)?,
        None => Pool::default_for_caller()?,
    };
    let lease = pool.lease(name)?;
    let (uids, gids) = (lease.range(), lease.gid_range());
    if json {
        println!("{}", json!({ "uids": range(uids), "gids": range(gids), "name": name }));
    } else {
        println!("{} {}", uids.base(), uids.count());
    }
    std::io::stdout().flush()?;
    // Killed here, the range is free as well: the kernel drops the lock.
    std::io::stdin().read_to_end(&mut Vec::new())?;
    lease.release()?;
    Ok(ExitCode::SUCCESS)
}

fn range(range: Range) -> Value {
    json!({ "base": range.base(), "count": range.count() })
}

fn who(state_dir: Option<&Path>, uid: u32, json: bool) -> Result<ExitCode, Box<dyn Error>> {
    let directory = state_dir.map_or_else(userns::default_state_dir, |directory| Ok(directory.to_owned()))?;
    let owner = userns::owner_of(&directory, uid)?;
    let state = |state| match state {
        OwnerState::Living => "living",
        OwnerState::Ended => "ended",
        OwnerState::Registered => "registered",
        _ => "unknown",
    };
    if json {
        let owner = owner.as_ref().map(|owner| {
            json!({
                "name": owner.name, "pid": owner.pid, "uids": range(owner.uids), "gids": range(owner.gids),
                "inside": owner.inside, "state": state(owner.state),
            })
        });
        println!("{}", json!({ "uid": uid, "owner": owner }));
    } else {
        match &owner {
            Some(owner) => {
                let inside = owner.inside.map_or_else(|| "nobody there".into(), |id| format!("uid {id}"));
                let (name, state, pid) = (&owner.name, state(owner.state), owner.pid);
                println!("{uid} is {inside} inside {name:?} ({state}, leased by process {pid}, ids {})", owner.uids);
            }
            None => println!("{uid} is no sandbox's"),
        }
    }
    Ok(if owner.is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn overlaps(root: &Path, json: bool) -> Result<ExitCode, Box<dyn Error>> {
    let overlaps = read(root)?.overlaps();
    if json {
        let all = overlaps.iter().map(|overlap| {
            let with = match &overlap.with {
                OverlapWith::Grant(other) => json!({ "grant": grant(other) }),
                OverlapWith::Account { id, name, .. } => json!({ "account": name.to_string_lossy(), "id": id }),
                _ => Value::Null,
            };
            json!({
                "file": overlap.file.display().to_string(), "grant": grant(&overlap.grant),
                "first": overlap.first, "last": overlap.last, "with": with,
            })
        });
        println!("{}", all.collect::<Value>());
    } else if overlaps.is_empty() {
        println!("no overlaps");
    } else {
        overlaps.iter().for_each(|overlap| println!("{overlap}"));
    }
    Ok(ExitCode::SUCCESS)
}
