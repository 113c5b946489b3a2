//! The documents that the examples print, in the words of the API.

use std::error::Error;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use sandbox::{Enforcement, Outcome, Support};
use serde_json::{Map, Value, json};

/// The outcome of a run.
pub fn outcome(outcome: &Outcome) -> Value {
    let usage = &outcome.usage;
    let status = match (outcome.status.code(), outcome.status.signal()) {
        (Some(code), _) => json!({ "exited": code }),
        (None, signal) => json!({ "signaled": signal }),
    };
    let counts: Map<_, _> =
        outcome.limits_hit.iter().map(|hit| (hit.limit.name().to_owned(), hit.count.into())).collect();
    json!({
        "status": status,
        "end": outcome.end.name(),
        "limits_hit": outcome.limits_hit.iter().map(|hit| hit.limit.name()).collect::<Vec<_>>(),
        "counts": counts,
        "usage": {
            "wall_ns": nanoseconds(usage.wall),
            "cpu_user_ns": nanoseconds(usage.cpu_user),
            "cpu_system_ns": nanoseconds(usage.cpu_system),
            "memory_peak": usage.memory_peak,
            "pids_peak": usage.pids_peak,
            "oom_kills": usage.oom_kills,
            "disk_bytes": usage.disk_bytes,
            "inodes": usage.inodes,
        },
        "enforcement": outcome.enforcement.iter().map(enforcement).collect::<Vec<_>>(),
        "leftovers": outcome.leftovers.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}

/// One line of the report of what was enforced.
pub fn enforcement(entry: &Enforcement) -> Value {
    json!({
        "feature": entry.feature.to_string(),
        "mode": entry.mode.name(),
        "requested": entry.requested,
        "enforced": entry.enforced,
        "by": entry.by,
        "why_not": entry.why_not,
        "fix": entry.fix,
    })
}

/// Why nothing ran.
pub fn error(error: &(dyn Error + 'static)) -> Value {
    let document = match error.downcast_ref::<sandbox::Error>() {
        Some(error) => json!({
            "kind": error.kind().name(),
            "step": error.step(),
            "path": error.path().map(|path| path.display().to_string()),
            "errno": error.errno(),
            "hint": error.hint(),
            "message": error.to_string(),
        }),
        None => json!({
            "kind": "invalid", "step": null, "path": null, "errno": null, "hint": null, "message": error.to_string(),
        }),
    };
    json!({ "error": document })
}

/// What a host supports.
pub fn support(support: &Support) -> Value {
    let findings = support.findings.iter().map(|finding| {
        json!({
            "feature": finding.feature.to_string(),
            "state": finding.state.name(),
            "detail": finding.detail,
            "fix": finding.fix,
        })
    });
    findings.collect()
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
