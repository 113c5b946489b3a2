//! What real builds of `pam_limits` did, vector by vector. `SANDBOX_GOLDEN_DIR` holds other vectors in the same form.
#![allow(clippy::unwrap_used, clippy::panic)] // Helpers of a test panic as the test does.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use rlimit::limits_conf::{Denial, Flavor, Login, Resolved, Resolver, User};
use rlimit::{Limit, Limits, Resource, Table};
use serde_json::Value;

#[test]
fn golden_limits() {
    let dir = std::env::var_os("SANDBOX_GOLDEN_DIR").map_or_else(|| PathBuf::from("testdata"), PathBuf::from);
    let path = dir.join("limits.json");
    let Ok(text) = fs::read_to_string(&path) else {
        println!("golden {}: absent", path.display());
        return;
    };
    let golden: Value = serde_json::from_str(&text).unwrap();
    let vectors = golden["vectors"].as_array().unwrap();
    let mut wrong = String::new();
    for vector in vectors {
        let root = tempfile::tempdir().unwrap();
        for dir in ["tmp", "var", "usr", "home", "srv"] {
            fs::create_dir(root.path().join(dir)).unwrap();
        }
        write(&root.path().join("etc/security"), &vector["files"]);
        write(&root.path().join("run/vendor/security"), &vector["vendor_files"]);
        for (user, expected) in vector["expect"].as_object().unwrap() {
            for (implementation, expected) in expected.as_object().unwrap() {
                let Some(resolver) = resolver(implementation, &golden, vector, root.path()) else { continue };
                let resolved = resolver.resolve(&account(&golden["users"], user)).unwrap();
                let found = differences(&golden, expected, &resolved);
                if !found.is_empty() {
                    let _ = writeln!(wrong, "{} {user} {implementation}:{found}", vector["name"]);
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    println!("golden limits.json: {} vectors", vectors.len());
}

fn resolver(implementation: &str, golden: &Value, vector: &Value, root: &Path) -> Option<Resolver> {
    let (flavor, vendor) = match implementation {
        "linux-pam-1.7.2" => (Flavor::LinuxPam17, false),
        "linux-pam-1.7.2+vendordir" => (Flavor::LinuxPam17, true),
        "linux-pam-1.5.2" => (Flavor::LinuxPam152, false),
        "debian-1.5.2-6" => (Flavor::Debian12, false),
        "implementations_agree" => return None,
        other => panic!("which flavor is {other}?"),
    };
    let inherited = table(&golden["inherited_baseline"], Table::default());
    let mut resolver = Resolver::new(flavor)
        .root(root)
        .unwrap()
        .inherited(inherited)
        .init_limits(table(&vector["pid1_limits"], inherited))
        .nr_open(golden["nr_open"].as_u64().unwrap());
    if vendor {
        resolver = resolver.vendor_dir("/run/vendor/security");
    }
    for argument in vector["module_args"].as_str().unwrap_or_default().split_whitespace() {
        resolver = match argument.split_once('=') {
            Some(("conf", file)) => resolver.conf(file),
            None if argument == "set_all" => resolver.set_all(true),
            // How much is logged, and when utmp is written, changes no limit.
            None if ["debug", "noaudit", "utmp_early"].contains(&argument) => resolver,
            _ => panic!("what is the module's argument {argument}?"),
        };
    }
    Some(resolver)
}

fn differences(golden: &Value, expected: &Value, resolved: &Resolved) -> String {
    let mut wrong = String::new();
    let mut check = |what: &str, expected: String, found: String| {
        if expected != found {
            let _ = write!(wrong, "\n  {what}: expected {expected}, found {found}");
        }
    };
    if !expected["killed_by_signal"].is_null() {
        // SIGXCPU at the soft limit or SIGKILL at the hard one.
        let killed = resolved.login() == Login::Denied(Denial::NoCpu);
        check("killed", "true".to_owned(), killed.to_string());
        return wrong;
    }
    let result = match resolved.login() {
        Login::Allowed => "PAM_SUCCESS",
        Login::Denied(Denial::MissingFile(_)) => "PAM_SERVICE_ERR",
        Login::Denied(_) => "PAM_PERM_DENIED",
        _ => "?",
    };
    check("result", expected["result"].as_str().unwrap().to_owned(), result.to_owned());
    let baseline = table(&golden["inherited_baseline"], Table::default());
    let changes = &expected["effective_changes"];
    for item in &resolved.items {
        let name = item.resource.as_str();
        let before = baseline.get(item.resource).unwrap();
        let after = pair(&changes[name]).unwrap_or(before);
        check(&format!("{name} in effect"), after.to_string(), item.limits.to_string());
        if expected["resolved"].is_object() {
            check(&format!("{name} asked"), show(pair(&expected["resolved"][name])), show(item.asked));
        }
    }
    let priority = resolved.priority.as_ref().map_or(0, |decided| decided.value);
    check("priority", expected["priority"].as_i64().unwrap_or(0).to_string(), priority.to_string());
    let no_new_privs = resolved.no_new_privs.as_ref().is_some_and(|decided| decided.value);
    check("nonewprivs", expected["nonewprivs"].as_u64().unwrap_or(0).to_string(), u64::from(no_new_privs).to_string());
    wrong
}

fn show(limits: Option<Limits>) -> String {
    limits.map_or_else(|| "untouched".to_owned(), |limits| limits.to_string())
}

fn account(users: &Value, name: &str) -> User {
    let record = &users[name];
    let number = |value: &Value| u32::try_from(value.as_u64().unwrap()).unwrap();
    let gid = number(&record["gid"]);
    let mut user = User::new(name, number(&record["uid"]), gid).group(record["primary_group"].as_str().unwrap(), gid);
    for group in record["groups"].as_array().unwrap() {
        user = user.group(group["name"].as_str().unwrap(), number(&group["gid"]));
    }
    user
}

fn table(values: &Value, mut table: Table) -> Table {
    for resource in Resource::ALL {
        if let Some(limits) = pair(&values[resource.as_str()]) {
            table.set(resource, limits);
        }
    }
    table
}

fn pair(value: &Value) -> Option<Limits> {
    let limit = |value: &Value| match value.as_u64() {
        Some(number) => Limit::from_raw(number),
        None => value.as_str().unwrap().parse().unwrap(),
    };
    let [soft, hard] = value.as_array()?.as_slice() else { panic!("{value}") };
    Some(Limits { soft: limit(soft), hard: limit(hard) })
}

fn write(dir: &Path, files: &Value) {
    for (name, text) in files.as_object().into_iter().flatten() {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text.as_str().unwrap()).unwrap();
    }
}
