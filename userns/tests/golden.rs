//! The vectors of `testdata/`, or of `SANDBOX_GOLDEN_DIR`: what shadow's tools and the kernel answered.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use common::Held;
use serde_json::Value;
use userns::{Accounts, Extent, IdMap, SubidFile, SubordinateIds};

/// The vectors of one file; none when another directory of vectors has no such file.
fn vectors(name: &str) -> Option<Value> {
    let other = std::env::var_os("SANDBOX_GOLDEN_DIR").map(PathBuf::from);
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let path = other.as_ref().unwrap_or(&own).join(name);
    match std::fs::read(&path) {
        Ok(bytes) => Some(serde_json::from_slice(&bytes).unwrap()),
        Err(e) if other.is_some() && e.kind() == std::io::ErrorKind::NotFound => None,
        Err(e) => panic!("{}: {e}", path.display()),
    }
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// strtoul(3) with base 0, as the tools read their arguments.
fn argument(value: &Value) -> Option<u64> {
    if let Some(n) = value.as_i64() {
        return Some(u64::from_ne_bytes(n.to_ne_bytes()));
    }
    let text = value.as_str()?;
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None if text.len() > 1 && text.starts_with('0') => u64::from_str_radix(text, 8).ok(),
        None => text.parse().ok(),
    }
}

/// What `newuidmap` does with these arguments: the map, or `None` when it refuses.
fn newuidmap(ids: &SubordinateIds, uid: u32, arguments: &[Value]) -> Option<Vec<String>> {
    let user = ids.accounts().user_name(uid)?;
    let numbers: Vec<u64> = arguments.iter().map(argument).collect::<Option<_>>()?;
    if numbers.is_empty() || numbers.len() % 3 != 0 {
        return None;
    }
    let mut extents = Vec::new();
    for three in numbers.chunks(3) {
        let [inside, outside, count] = [0, 1, 2].map(|n| u32::try_from(three[n]).ok());
        let (inside, outside, count) = (inside?, outside?, count?);
        let own = count == 1 && outside == uid;
        if !own && !ids.allows_uids(&user, outside, count).unwrap() {
            return None;
        }
        extents.push(Extent { inside, outside, count });
    }
    let map = IdMap::new(extents).ok()?;
    Some(map.extents().iter().map(ToString::to_string).collect())
}

#[test]
fn golden_subid() {
    let Some(file) = vectors("subid.json") else { return };
    let accounts = Accounts::parse(text(&file, "passwd").as_bytes(), text(&file, "group").as_bytes());
    let empty = SubidFile::parse(Path::new("/etc/subgid"), b"").unwrap();
    let list = file["vectors"].as_array().unwrap();
    let (mut checks, mut failures) = (0, Vec::new());
    for vector in list {
        let name = text(vector, "name");
        // A file that shadow refuses as a whole grants nothing.
        let parsed = SubidFile::parse(Path::new("/etc/subuid"), text(vector, "subuid").as_bytes());
        let ids = SubordinateIds::new(parsed.unwrap_or_else(|_| empty.clone()), empty.clone(), accounts.clone());
        for (user, wanted) in vector["getsubids"].as_object().into_iter().flatten() {
            checks += 1;
            let found: Vec<_> = ids.uids_of(OsStr::new(user)).unwrap().iter().map(|g| (g.start, g.count)).collect();
            let ranges: Vec<(u64, u64)> = serde_json::from_value(wanted["ranges"].clone()).unwrap();
            if found != ranges {
                failures.push(format!("{name}: getsubids {user:?}: {found:?}, not {ranges:?}"));
            }
        }
        for case in vector["newuidmap"].as_array().into_iter().flatten() {
            checks += 1;
            let uid = u32::try_from(case["caller_uid"].as_u64().unwrap()).unwrap();
            let found = newuidmap(&ids, uid, case["args"].as_array().unwrap());
            let map: Vec<String> = serde_json::from_value(case["map"].clone()).unwrap();
            let wanted = (case["rc"] == 0).then_some(map);
            if found != wanted {
                failures.push(format!("{name}: newuidmap {}: {found:?}, not {wanted:?}", case["args"]));
            }
        }
    }
    println!("golden subid.json: {} vectors ({checks} checks)", list.len());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// The one text that we refuse on purpose although the kernel takes it: it would cut the number off.
fn beyond_32_bits(data: &str) -> bool {
    data.split_ascii_whitespace().any(|field| field.parse::<u64>().is_ok_and(|n| u32::try_from(n).is_err()))
}

#[test]
fn golden_maps() {
    let Some(file) = vectors("maps.json") else { return };
    let list = file["vectors"].as_array().unwrap();
    let mut failures = Vec::new();
    for vector in list {
        let (name, data) = (text(vector, "name"), text(vector, "data"));
        let map = IdMap::parse(data);
        // Who writes decides what is EPERM; the text decides what is EINVAL.
        let taken = text(vector, "result") != "EINVAL" && !beyond_32_bits(data);
        if map.is_ok() != taken {
            failures.push(format!("{name}: {map:?}, the kernel says {}", vector["result"]));
        }
        let read: Vec<(u32, u32, u32)> = serde_json::from_value(vector["readback"].clone()).unwrap();
        if let (Ok(map), true, false) = (map, taken, read.is_empty()) {
            let found: Vec<_> = map.extents().iter().map(|e| (e.inside, e.outside, e.count)).collect();
            if found != read {
                failures.push(format!("{name}: {found:?}, the kernel has {read:?}"));
            }
        }
    }
    println!("golden maps.json: {} vectors", list.len());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// The same vectors, given to the kernel at hand: what the parser says is what it does.
#[test]
fn golden_maps_on_this_kernel() {
    common::require!("golden_maps_on_this_kernel", common::root() => "root");
    let Some(file) = vectors("maps.json") else { return };
    let list = file["vectors"].as_array().unwrap();
    let mut failures = Vec::new();
    let of_parent = list.iter().filter(|vector| vector["writer"] == "parent");
    for vector in of_parent {
        let Some(held) = Held::start("true") else {
            common::skip("golden_maps_on_this_kernel", "user namespaces");
            return;
        };
        let path = format!("/proc/{}/{}", held.pid(), text(vector, "file"));
        let mut file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        let found = match std::io::Write::write(&mut file, text(vector, "data").as_bytes()) {
            // The kernel is not even asked.
            _ if text(vector, "data").is_empty() => "EINVAL",
            Ok(_) => "OK",
            Err(e) if e.raw_os_error() == Some(22) => "EINVAL",
            Err(e) if e.raw_os_error() == Some(1) => "EPERM",
            Err(e) => panic!("{e}"),
        };
        if found != text(vector, "result") {
            failures.push(format!("{}: {found}, not {}", text(vector, "name"), vector["result"]));
        }
        held.finish();
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
