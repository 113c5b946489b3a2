//! Makes this kernel look older or stricter than it is: named system calls answer an error instead of running.
//!
//! The filter is inherited by all that the command starts, also by `cargo test`.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use seccompiler::{BpfProgram, TargetArch};
use serde_json::json;

use crate::error::{Context, Error, Result};
use crate::sys;

/// Names that people write; any number is taken too.
const ERRORS: [(&str, i32); 6] = [
    ("ENOSYS", libc::ENOSYS),
    ("EPERM", libc::EPERM),
    ("EACCES", libc::EACCES),
    ("EINVAL", libc::EINVAL),
    ("EOPNOTSUPP", libc::EOPNOTSUPP),
    ("E2BIG", libc::E2BIG),
];

/// Runs `command` in place of this process with the filter that `calls` asks for. Returns only on failure.
pub(crate) fn run(calls: &str, command: &[String]) -> Error {
    let filtered = parse(calls)
        .and_then(|calls| calls.into_iter().map(|(error, names)| compile(error, &names)).collect::<Result<Vec<_>>>());
    let filters = match filtered {
        Ok(filters) => filters,
        Err(error) => return error,
    };
    let [program, arguments @ ..] = command else { return Error::new("no command") };
    // Without the right to install filters one must promise to gain no privileges; with it, set-user-id programs
    // (newuidmap) work as they do without us.
    for filter in &filters {
        let installed = sys::install_filter(filter).or_else(|_| {
            rustix::thread::set_no_new_privs(true)?;
            sys::install_filter(filter)
        });
        if let Err(error) = installed {
            return Error::new(format!("cannot install the filter: {error}"));
        }
    }
    Error::new(format!("cannot run {program}: {}", Command::new(program).args(arguments).exec()))
}

/// `clone3,openat2=EPERM`: names by the error that they are to answer, ENOSYS when none is said.
fn parse(calls: &str) -> Result<BTreeMap<i32, Vec<String>>> {
    let mut by_error: BTreeMap<i32, Vec<String>> = BTreeMap::new();
    for call in calls.split(',') {
        let (name, error) = call.split_once('=').unwrap_or((call, "ENOSYS"));
        let known = ERRORS.iter().find(|(name, _)| *name == error).map(|(_, number)| *number);
        let number = known.or_else(|| error.parse().ok().filter(|number| (1..4096).contains(number)));
        let number = number.ok_or_else(|| {
            let names = ERRORS.map(|(name, _)| name).join(" ");
            Error::new(format!("unknown error {error:?}: one of {names}, or a number"))
        })?;
        by_error.entry(number).or_default().push(name.to_owned());
    }
    Ok(by_error)
}

/// One filter: a filter has one answer for all that it matches, so each error has its own.
fn compile(error: i32, names: &[String]) -> Result<BpfProgram> {
    let rules: Vec<_> = names.iter().map(|name| json!({ "syscall": name })).collect();
    let text = json!({ "calls": { "mismatch_action": "allow", "match_action": { "errno": error }, "filter": rules } })
        .to_string();
    let arch = TargetArch::try_from(std::env::consts::ARCH).context(|| "this architecture".into())?;
    let doing = || format!("cannot make a filter for {}", names.join(","));
    let mut filters = seccompiler::compile_from_json(text.as_bytes(), arch).context(doing)?;
    filters.remove("calls").ok_or_else(|| Error::new(doing()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_sorted_by_their_answer() {
        let calls = parse("clone3,openat2=EPERM,close_range=ENOSYS,statx=95").unwrap();
        assert_eq!(calls[&libc::ENOSYS], ["clone3", "close_range"]);
        assert_eq!(calls[&libc::EPERM], ["openat2"]);
        assert_eq!(calls[&95], ["statx"]);
    }

    #[test]
    fn unknown_names_are_refused() {
        assert!(parse("clone3=EWRONG").unwrap_err().to_string().contains("EWRONG"));
        assert!(parse("clone3=4096").is_err());
        assert!(compile(38, &["clone4".into()]).unwrap_err().to_string().contains("clone4"));
        assert!(compile(38, &[String::new()]).is_err());
    }
}
