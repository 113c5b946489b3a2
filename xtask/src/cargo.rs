//! The workspace and its test binaries, as cargo tells of them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;

use crate::error::{Context, Error, Result};

/// A built test binary.
#[derive(Clone, Debug)]
pub(crate) struct TestBinary {
    /// Its source relative to the workspace, e.g. `cgroup/tests/memory.rs`.
    pub(crate) name: String,
    pub(crate) executable: PathBuf,
    /// Where cargo would run it.
    pub(crate) directory: PathBuf,
    /// An integration test: those meet the kernel.
    pub(crate) integration: bool,
}

impl TestBinary {
    /// The command as cargo would run it, with the variables that tests read at run time.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.executable);
        command.current_dir(&self.directory).env("CARGO_MANIFEST_DIR", &self.directory);
        command
    }
}

/// The workspace's directory.
pub(crate) fn root() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package)
}

/// `cargo SUBCOMMAND…` in the workspace.
pub(crate) fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(root());
    command
}

/// Where cargo puts what it builds.
pub(crate) fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// Builds the tests of the default members, compiler messages to stderr, and lists their binaries by name.
pub(crate) fn test_binaries() -> Result<Vec<TestBinary>> {
    let mut binaries: Vec<_> = build(&["test", "--no-run"])?.iter().filter_map(Artifact::test_binary).collect();
    binaries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(binaries)
}

/// Builds a program of this package without shared libraries, small, and returns its path.
pub(crate) fn build_static_bin(name: &str) -> Result<PathBuf> {
    // With a target named, flags for it do not reach build scripts and macros, which cannot be static.
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let profile = ["inherits='release'", "opt-level='s'", "panic='abort'", "strip=true"];
    let settings = profile.map(|setting| format!("profile.guest-init.{setting}"));
    let mut args =
        vec!["build", "--quiet", "--package", "xtask", "--bin", name, "--target", &target, "--profile", "guest-init"];
    for setting in &settings {
        args.extend(["--config", setting]);
    }
    let flags = format!("target.{target}.rustflags=['-Ctarget-feature=+crt-static']");
    args.extend(["--config", &flags]);
    let mut executables = build(&args)?.into_iter().filter_map(|artifact| artifact.executable);
    executables.next_back().ok_or_else(|| Error::new(format!("cargo built no {name}")))
}

/// Runs a building subcommand of cargo and returns the artifacts that it reports.
pub(crate) fn build(args: &[&str]) -> Result<Vec<Artifact>> {
    let output = cargo(args)
        .arg("--message-format=json-render-diagnostics")
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context(|| "cannot run cargo".into())?;
    if !output.status.success() {
        return Err(Error::new(format!("cargo {} failed", args.join(" "))));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// A `compiler-artifact` message; the other kinds lack these fields.
#[derive(Debug, Deserialize)]
pub(crate) struct Artifact {
    manifest_path: PathBuf,
    target: Target,
    profile: Profile,
    pub(crate) executable: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
struct Target {
    kind: Vec<String>,
    src_path: PathBuf,
}

#[derive(Debug, Deserialize)]
struct Profile {
    test: bool,
}

impl Artifact {
    fn test_binary(&self) -> Option<TestBinary> {
        let executable = self.executable.as_ref().filter(|_| self.profile.test)?;
        let source = &self.target.src_path;
        Some(TestBinary {
            name: source.strip_prefix(root()).unwrap_or(source).display().to_string(),
            executable: executable.clone(),
            directory: self.manifest_path.parent()?.to_path_buf(),
            integration: self.target.kind.iter().any(|kind| kind == "test"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_artifact_message_is_understood() {
        let root = root().display();
        let line = format!(
            r#"{{"reason":"compiler-artifact","package_id":"x","manifest_path":"{root}/cgroup/Cargo.toml",
                "target":{{"kind":["test"],"crate_types":["bin"],"name":"memory","src_path":"{root}/cgroup/tests/memory.rs"}},
                "profile":{{"opt_level":"0","test":true}},"executable":"/target/debug/deps/memory-1","fresh":true}}"#
        );
        let binary = serde_json::from_str::<Artifact>(&line).unwrap().test_binary().unwrap();
        assert_eq!(binary.name, "cgroup/tests/memory.rs");
        assert!(binary.integration);
        assert!(binary.directory.ends_with("cgroup"));
    }

    #[test]
    fn other_messages_are_not_artifacts() {
        assert!(serde_json::from_str::<Artifact>(r#"{"reason":"build-finished","success":true}"#).is_err());
    }
}
