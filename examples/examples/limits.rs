//! Resource limits: what limits.conf makes of a user's and why, those of any process, and changing them while it runs.
//!
//! ```text
//! limits explain alice                 which line decides, which lost, and why
//! limits explain alice --item nproc --json
//! limits explain alice --root /srv/image --flavor debian-12
//! limits of 1
//! limits set 4711 nofile=64:128
//! ```

use std::fmt::Display;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{ContentArrangement, Table};
use rlimit::limits_conf::{
    Decided, DecidedBy, Flavor, IgnoredWhy, Item, Line, Login, Overridden, OverriddenWhy, Resolved, Resolver,
};
use rlimit::{Error, Limit, Limits, Resource, Setting, Unit};
use serde_json::{Value, json};

/// What limits.conf makes of a user's limits and why; limits of any process.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    action: Action,
    /// Print one JSON document.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Action {
    /// What a session of USER gets from limits.conf and limits.d: the deciding lines, the losing ones, and why.
    Explain {
        /// Login name, or uid.
        user: String,
        /// Only this item: a resource, or maxlogins, priority, nonewprivs, chroot.
        #[arg(long)]
        item: Option<String>,
        /// Read all files below this directory.
        #[arg(long, default_value = "/")]
        root: PathBuf,
        /// linux-pam-1.7, linux-pam-1.5.2 or debian-12 (default: by the os-release file below the root).
        #[arg(long)]
        flavor: Option<Flavor>,
    },
    /// The limits of a process, and what it uses of them.
    Of {
        /// Process id.
        pid: u32,
    },
    /// Change limits of a running process.
    Set {
        /// Process id.
        pid: u32,
        /// NAME=SOFT[:HARD], such as nofile=64:128 or memlock=unlimited, in the kernel's units.
        #[arg(required = true)]
        settings: Vec<Setting>,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match &arguments.action {
        Action::Explain { user, item, root, flavor } => explain(user, item.as_deref(), root, *flavor, arguments.json),
        Action::Of { pid } => of(*pid, arguments.json),
        Action::Set { pid, settings } => set(*pid, settings, arguments.json),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("limits: {error}");
            ExitCode::FAILURE
        }
    }
}

/// One row of the explanation: a resource, or an item without soft and hard.
struct Row<'a> {
    name: &'static str,
    soft: Value,
    hard: Value,
    unit: &'static str,
    by: [Option<&'a DecidedBy>; 2],
    lines: [Option<&'a Line>; 2],
    overridden: &'a [Overridden],
    item: Option<&'a Item>,
}

fn explain(
    user: &str,
    only: Option<&str>,
    root: &std::path::Path,
    flavor: Option<Flavor>,
    as_json: bool,
) -> Result<(), Error> {
    let flavor = flavor.map_or_else(|| Flavor::detect(root), Ok)?;
    let resolved = Resolver::new(flavor).root(root)?.resolve_name(user)?;
    if let Some(name) = only.filter(|name| !["maxlogins", "priority", "nonewprivs", "chroot"].contains(name)) {
        name.parse::<Resource>()?;
    }
    let rows: Vec<_> = rows(&resolved).into_iter().filter(|row| only.is_none_or(|only| only == row.name)).collect();
    if as_json {
        print(&explanation(&resolved, &rows));
        return Ok(());
    }

    println!("{user}, as pam_limits of {flavor} reads it");
    let mut table = table(["item", "soft", "hard", "soft decided by", "hard decided by"]);
    let (told, silent): (Vec<_>, Vec<_>) = rows
        .iter()
        .partition(|row| only.is_some() || !row.overridden.is_empty() || row.lines.iter().any(Option::is_some));
    for row in &told {
        let by = |index: usize| match (row.by[index], row.lines[index]) {
            (_, Some(line)) => line.to_string(),
            (Some(by), None) => by.to_string(),
            (None, None) => String::new(),
        };
        let [soft, hard] = [&row.soft, &row.hard].map(|value| human(value, row.unit));
        table.add_row([row.name.to_owned(), soft, hard, by(0), by(1)]);
    }
    if !told.is_empty() {
        println!("{table}");
    }
    if !silent.is_empty() {
        let names: Vec<_> = silent.iter().map(|row| row.name).collect();
        println!("no line is about: {}", names.join(", "));
    }
    for row in told.iter().filter(|row| !row.overridden.is_empty()) {
        println!("\n{}: overridden", row.name);
        for lost in row.overridden {
            println!("  {}  {}  [{}]", lost.line, struck(&lost.line.text), lost.half);
            println!("      {}", lost.why);
        }
        if let Some(advice) = advice(row, user) {
            println!("  => {advice}");
        }
    }
    let ignored: Vec<_> = resolved.ignored.iter().filter(|ignored| ignored.why != IgnoredWhy::OtherUsers).collect();
    if !ignored.is_empty() {
        println!("\nignored");
        for ignored in &ignored {
            println!("  {}  {}\n      {}", ignored.line, struck(&ignored.line.text), ignored.why);
        }
    }
    let others = resolved.ignored.len() - ignored.len();
    if others > 0 {
        println!("\n{others} more about other users");
    }
    println!("\nlogin: {}", resolved.login());
    Ok(())
}

/// How to make a line that lost win.
fn advice(row: &Row<'_>, user: &str) -> Option<String> {
    if let Some(file) = row.item.and_then(Item::winning_file) {
        let lost = row.overridden.iter().rev().find(|lost| matches!(&lost.why, OverriddenWhy::Later { .. }))?;
        return Some(format!(
            "files are read in this order: limits.conf, then limits.d by name. Editing {} changes nothing; put the line \
             into {}",
            lost.line.file.display(),
            file.display()
        ));
    }
    row.overridden.iter().rev().find_map(|lost| match &lost.why {
        OverriddenWhy::Stronger { by, .. } => Some(format!("change {by}, or add a line for `{user}` in a later file")),
        OverriddenWhy::DashStops { .. } => Some("write `soft` and `hard` on lines of their own".to_owned()),
        OverriddenWhy::AboveHard { .. } => Some("raise the hard limit too".to_owned()),
        _ => None,
    })
}

fn rows(resolved: &Resolved) -> Vec<Row<'_>> {
    let mut rows: Vec<_> = resolved
        .items
        .iter()
        .map(|item| Row {
            name: item.resource.as_str(),
            soft: value(item.limits.soft),
            hard: value(item.limits.hard),
            unit: item.resource.unit().as_str(),
            by: [Some(&item.soft), Some(&item.hard)],
            lines: [item.soft.line(), item.hard.line()],
            overridden: &item.overridden,
            item: Some(item),
        })
        .collect();
    let logins = resolved.max_logins.as_ref();
    rows.extend(logins.map(|logins| single("maxlogins", json!(logins.value.most), logins)));
    rows.extend(resolved.priority.as_ref().map(|priority| single("priority", json!(priority.value), priority)));
    rows.extend(resolved.no_new_privs.as_ref().map(|on| single("nonewprivs", json!(u8::from(on.value)), on)));
    rows.extend(resolved.chroot.as_ref().map(|dir| single("chroot", json!(dir.value), dir)));
    rows
}

fn single<'a, T>(name: &'static str, value: Value, decided: &'a Decided<T>) -> Row<'a> {
    let value = if value.is_null() { json!("unlimited") } else { value };
    Row {
        name,
        soft: value.clone(),
        hard: value,
        unit: "",
        by: [None, None],
        lines: [Some(&decided.by), Some(&decided.by)],
        overridden: &decided.overridden,
        item: None,
    }
}

fn explanation(resolved: &Resolved, rows: &[Row<'_>]) -> Value {
    let place = |line: &Line| json!({"file": line.file.display().to_string(), "line": line.number});
    let told = |line: &Line, why: &dyn Display| {
        json!({
            "file": line.file.display().to_string(),
            "line": line.number,
            "text": *line.text,
            "why": why.to_string(),
        })
    };
    let items: Vec<_> = rows
        .iter()
        .map(|row| {
            let by = |index: usize| {
                row.by[index].map_or_else(
                    || "line".to_owned(),
                    |by| match by {
                        DecidedBy::Line(_) => "line".to_owned(),
                        other => other.to_string(),
                    },
                )
            };
            json!({
                "item": row.name,
                "soft": row.soft,
                "hard": row.hard,
                "unit": row.unit,
                "decided_by": {"soft": row.lines[0].map(place), "hard": row.lines[1].map(place)},
                "from": {"soft": by(0), "hard": by(1)},
                "overridden": row.overridden.iter().map(|lost| {
                    let mut told = told(&lost.line, &lost.why);
                    told["half"] = json!(lost.half.to_string());
                    told
                }).collect::<Vec<_>>(),
                "refused": row.item.and_then(|item| item.refused).map(|refusal| refusal.to_string()),
                "winning_file": row.item.and_then(Item::winning_file),
            })
        })
        .collect();
    let (login, why) = match resolved.login() {
        Login::Allowed => ("allowed", None),
        Login::Denied(denial) => ("denied", Some(denial.to_string())),
        other => ("denied", Some(other.to_string())),
    };
    json!({
        "items": items,
        "ignored": resolved.ignored.iter().map(|ignored| told(&ignored.line, &ignored.why)).collect::<Vec<_>>(),
        "no_limits": resolved.no_limits.as_ref().map(place),
        "login": login,
        "login_why": why,
    })
}

fn of(pid: u32, as_json: bool) -> Result<(), Error> {
    let limits = rlimit::of(pid)?;
    let usage = rlimit::usage_of(pid)?;
    if as_json {
        let rows = limits.iter().map(|Setting { resource, limits }| {
            json!({
                "resource": resource.as_str(),
                "soft": value(limits.soft),
                "hard": value(limits.hard),
                "unit": resource.unit().as_str(),
                "used": usage.of(resource),
            })
        });
        print(&rows.collect());
        return Ok(());
    }
    let mut table = table(["resource", "soft", "hard", "used", "at the limit"]);
    for Setting { resource, limits } in limits.iter() {
        let unit = resource.unit().as_str();
        let [soft, hard] = [limits.soft, limits.hard].map(|limit| human(&value(limit), unit));
        let used = match (resource, usage.of(resource), usage.threads) {
            (_, Some(used), _) => human(&json!(used), unit),
            (Resource::Nproc, None, Some(threads)) => format!("{threads} of this process; counted per uid"),
            _ => String::new(),
        };
        table.add_row([resource.to_string(), soft, hard, used, resource.at_limit().to_owned()]);
    }
    println!("{table}");
    Ok(())
}

fn set(pid: u32, settings: &[Setting], as_json: bool) -> Result<(), Error> {
    let mut rows = Vec::new();
    for Setting { resource, limits } in settings {
        let before = rlimit::set_of(pid, *resource, *limits)?;
        // What the kernel says now, not what was asked for.
        let after = rlimit::of(pid)?.get(*resource).unwrap_or(*limits);
        rows.push((*resource, before, after));
    }
    if as_json {
        let pair = |limits: Limits| json!({"soft": value(limits.soft), "hard": value(limits.hard)});
        let row = |(resource, before, after): &(Resource, Limits, Limits)| json!({"resource": resource.as_str(), "before": pair(*before), "after": pair(*after)});
        print(&rows.iter().map(row).collect());
        return Ok(());
    }
    let mut table = table(["resource", "before (soft:hard)", "now (soft:hard)", "unit"]);
    for (resource, before, after) in rows {
        table.add_row([resource.to_string(), before.to_string(), after.to_string(), resource.unit().to_string()]);
    }
    println!("{table}");
    Ok(())
}

/// A number, or `unlimited`.
fn value(limit: Limit) -> Value {
    limit.value().map_or_else(|| json!("unlimited"), |value| json!(value))
}

fn human(value: &Value, unit: &str) -> String {
    let Some(number) = value.as_u64() else {
        return value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    };
    if unit != Unit::Bytes.as_str() || number == 0 {
        return format!("{number} {unit}").trim_end().to_owned();
    }
    let (mut scaled, mut prefix) = (number, "");
    for next in ["Ki", "Mi", "Gi", "Ti"] {
        if scaled % 1024 == 0 {
            (scaled, prefix) = (scaled / 1024, next);
        } else {
            break;
        }
    }
    if prefix.is_empty() { format!("{number} B") } else { format!("{scaled} {prefix}B") }
}

fn struck(text: &str) -> String {
    if std::io::stdout().is_terminal() { format!("\x1b[9m{text}\x1b[0m") } else { format!("`{text}`") }
}

fn table<const N: usize>(head: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic).set_header(head);
    table
}

fn print(document: &Value) {
    println!("{document:#}");
}
