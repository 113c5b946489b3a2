//! The examples `limits` and `mlock`, run as people run them.
#![allow(clippy::unwrap_used)] // Helpers of a test panic as the test does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn example(name: &str) -> Command {
    // Cargo builds the examples beside the tests.
    let deps = std::env::current_exe().unwrap();
    Command::new(deps.parent().unwrap().parent().unwrap().join("examples").join(name))
}

fn run(arguments: &[&str]) -> Output {
    example("limits").args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn json(arguments: &[&str]) -> Value {
    let output = run(arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The file system of a host where a default overrides what was edited; removed when dropped. Its numbers are below the
/// hard limit that any kernel gives its first process, which would lower them.
struct Root(PathBuf);

impl Root {
    fn new(name: &str) -> Self {
        let root = std::env::temp_dir().join(format!("sandbox-limits-{name}-{}", std::process::id()));
        fs::create_dir_all(root.join("etc/security/limits.d")).unwrap();
        for (path, text) in [
            ("passwd", "root:x:0:0::/:/bin/sh\nalice:x:1000:1000::/:/bin/sh\n"),
            ("group", "alice:x:1000:\n"),
            ("security/limits.conf", "# edited in vain\n* soft nproc 200\n* soft core x\nalice - maxlogins 0\n"),
            ("security/limits.d/90-nproc.conf", "* soft nproc 100\n"),
        ] {
            fs::write(root.join("etc").join(path), text).unwrap();
        }
        Self(root)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn explain_tells_people_why_and_what_to_do() {
    let root = Root::new("people");
    let output = run(&["explain", "alice", "--root", root.path(), "--flavor", "linux-pam-1.7"]);
    let text = text(&output.stdout);
    assert!(output.status.success());
    for words in [
        "nproc: overridden",
        "limits.conf:2  `* soft nproc 200`",
        "90-nproc.conf:1 is also a `*` line and comes later: the last line wins",
        "put the line into",
        "limits.d/91-nproc.conf",
        "limits.conf:3  `* soft core x`",
        "login: denied: no logins at all",
    ] {
        assert!(text.contains(words), "{words} in:\n{text}");
    }
}

#[test]
fn explain_as_json_has_the_promised_form() {
    let root = Root::new("json");
    let base = ["explain", "alice", "--root", root.path(), "--flavor", "linux-pam-1.5.2", "--json"];
    let all = json(&base);
    assert!(all["items"].as_array().unwrap().len() >= 16);
    assert_eq!(all["login"], "denied");
    let ignored = &all["ignored"][0];
    assert_eq!((&ignored["line"], &ignored["text"]), (&Value::from(3), &Value::from("* soft core x")));

    let one = json(&[&base[..], &["--item", "nproc"]].concat());
    let [nproc] = one["items"].as_array().unwrap().as_slice() else { unreachable!("{one}") };
    assert_eq!((&nproc["item"], &nproc["soft"]), (&Value::from("nproc"), &Value::from(100)));
    let by = &nproc["decided_by"];
    let file = Path::new(by["soft"]["file"].as_str().unwrap());
    assert!(file.ends_with("etc/security/limits.d/90-nproc.conf"));
    assert_eq!((&by["soft"]["line"], &by["hard"]), (&Value::from(1), &Value::Null));
    let lost = &nproc["overridden"][0];
    assert!(lost["file"].as_str().unwrap().ends_with("limits.conf") && lost["line"] == 2);
    assert!(lost["why"].as_str().unwrap().contains("last line wins"));
}

#[test]
fn a_running_process_is_shown_and_changed() {
    let mut other = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let pid = other.id().to_string();
    let set = json(&["set", &pid, "core=0", "nofile=64:128", "--json"]);
    assert_eq!(set[1]["after"]["soft"], 64);
    let of = json(&["of", &pid, "--json"]);
    let rows = of.as_array().unwrap();
    assert_eq!(rows.len(), 16);
    let nofile = rows.iter().find(|row| row["resource"] == "nofile").unwrap();
    assert_eq!((&nofile["soft"], &nofile["hard"], &nofile["unit"]), (&64.into(), &128.into(), &"files".into()));
    drop(other.stdin.take());
    other.wait().unwrap();

    let gone = run(&["set", &pid, "core=0"]);
    assert_eq!(gone.status.code(), Some(1));
    assert!(text(&gone.stderr).contains("there is no process with that id"), "{}", text(&gone.stderr));
    assert_eq!(run(&["set", &pid, "nofile=128:64"]).status.code(), Some(2));
}

#[test]
fn mlock_ends_with_ok() {
    let output = example("mlock").output().unwrap();
    let text = text(&output.stdout);
    assert!(output.status.code() == Some(77) || output.status.success() && text.ends_with("ok\n"), "{text}");
}
