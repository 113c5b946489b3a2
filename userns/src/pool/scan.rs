//! Who uses which ids now: the maps of all namespaces and the ids of all processes, as `/proc` shows them.

use std::fs;
use std::path::Path;

use crate::write::Kind;
use crate::{Error, IdMap, Range};

/// A namespace that maps this many ids, or a process without a map, sees the whole id space (as the host does) rather
/// than having ids of its own.
const WHOLE: u64 = 1 << 31;

/// What was running at one moment.
#[derive(Debug)]
pub(super) struct Snapshot {
    uses: Vec<Use>,
}

#[derive(Debug)]
struct Use {
    kind: Kind,
    range: Range,
    pid: u32,
    how: How,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// A process runs with this id.
    Runs,
    /// A process lives in a namespace that maps these ids.
    Maps,
}

impl Snapshot {
    /// Looks at every process that this one can see.
    pub(super) fn take() -> Result<Self, Error> {
        Self::take_from(Path::new("/proc"))
    }

    fn take_from(proc: &Path) -> Result<Self, Error> {
        let own =
            ["uid_map", "gid_map"].map(|file| fs::read_to_string(proc.join("self").join(file)).unwrap_or_default());
        let own_namespace = fs::read_link(proc.join("self/ns/user")).ok();
        let mut uses = Vec::new();
        for entry in fs::read_dir(proc).map_err(|e| Error::file("read", proc, e))? {
            let entry = entry.map_err(|e| Error::file("read", proc, e))?;
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let process = entry.path();
            // A process that ends meanwhile uses nothing any more.
            let Ok(status) = fs::read_to_string(process.join("status")) else { continue };
            for (kind, field) in [(Kind::Uid, "Uid:"), (Kind::Gid, "Gid:"), (Kind::Gid, "Groups:")] {
                let mut ids: Vec<u32> = status
                    .lines()
                    .find_map(|line| line.strip_prefix(field))
                    .map(|rest| rest.split_ascii_whitespace().filter_map(|id| id.parse().ok()).collect())
                    .unwrap_or_default();
                ids.sort_unstable();
                ids.dedup();
                uses.extend(
                    ids.into_iter()
                        .filter_map(|id| Some(Use { kind, range: Range::new(id, 1).ok()?, pid, how: How::Runs })),
                );
            }
            for ((kind, file), own) in [(Kind::Uid, "uid_map"), (Kind::Gid, "gid_map")].into_iter().zip(&own) {
                let Ok(text) = fs::read_to_string(process.join(file)) else { continue };
                // Our own namespace shows its parent's ids, which mean nothing here.
                if text == *own
                    && fs::read_link(process.join("ns/user")).ok().is_none_or(|ns| Some(ns) == own_namespace)
                {
                    continue;
                }
                uses.extend(outside(&text).into_iter().map(|range| Use { kind, range, pid, how: How::Maps }));
            }
        }
        Ok(Self { uses })
    }

    /// Who uses an id of these ranges, in words.
    pub(super) fn user_of(&self, uids: Range, gids: Range, maps: bool) -> Option<String> {
        let found = self.uses.iter().find(|used| {
            let range = match used.kind {
                Kind::Uid => uids,
                Kind::Gid => gids,
            };
            (maps || used.how == How::Runs) && used.range.overlaps(range)
        })?;
        let Use { pid, range, .. } = found;
        let program = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let (program, ids) = (
            program.trim_end(),
            match found.kind {
                Kind::Uid => "uid",
                Kind::Gid => "gid",
            },
        );
        Some(match found.how {
            How::Runs => format!("process {pid} ({program}) runs with {ids} {}", range.base()),
            How::Maps => format!("the user namespace of process {pid} ({program}) maps the {ids}s {range}"),
        })
    }
}

/// The outside ids of a map; of none that maps half of all ids.
fn outside(text: &str) -> Vec<Range> {
    let Ok(map) = IdMap::parse(text) else { return Vec::new() };
    if map.extents().iter().map(|extent| u64::from(extent.count)).sum::<u64>() >= WHOLE {
        return Vec::new();
    }
    map.extents().iter().filter_map(|extent| Range::new(extent.outside, extent.count).ok()).collect()
}
