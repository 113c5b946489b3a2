//! Packages of other Debian suites, through a private configuration derived from the machine's own sources.
//!
//! The machine's lists, caches and package state are neither read nor changed; where packages come from and whom to
//! trust is what its own sources say, with another suite's name in them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use crate::error::{Context, Error, Result};

/// For how long a suite's index is good. Suites that are released change rarely.
const INDEX_AGE: Duration = Duration::from_secs(12 * 3600);

/// One suite, with its index read.
#[derive(Debug)]
pub(crate) struct Suite {
    directory: PathBuf,
}

impl Suite {
    /// Reads the index of `suite` (`sid`, `trixie`, …) below `cache`, unless it is there and recent.
    pub(crate) fn open(cache: &Path, suite: &str) -> Result<Self> {
        let directory = cache.join("apt").join(suite);
        let this = Self { directory };
        let stamp = this.directory.join("updated");
        let age = fs::metadata(&stamp)
            .and_then(|file| file.modified())
            .ok()
            .and_then(|time| SystemTime::now().duration_since(time).ok());
        if age.is_some_and(|age| age < INDEX_AGE) {
            return Ok(this);
        }
        for part in ["lists/partial", "archives/partial"] {
            let path = this.directory.join(part);
            fs::create_dir_all(&path).context(|| format!("cannot make {}", path.display()))?;
        }
        let sources = sources_for(suite)?;
        for (name, text) in [("status", ""), ("suite.sources", &sources)] {
            let path = this.directory.join(name);
            fs::write(&path, text).context(|| format!("cannot write {}", path.display()))?;
        }
        this.run("apt-get", &["update", "-qq"])?;
        fs::write(&stamp, "").context(|| format!("cannot write {}", stamp.display()))?;
        Ok(this)
    }

    /// The packages that `package` depends on, alternatives left out.
    pub(crate) fn depends(&self, package: &str) -> Result<Vec<String>> {
        let text = self.run("apt-cache", &["show", "--no-all-versions", package])?;
        let line = text.lines().find_map(|line| line.strip_prefix("Depends: ")).unwrap_or_default();
        Ok(line.split(',').filter_map(|entry| entry.split_whitespace().next()).map(str::to_owned).collect())
    }

    /// Downloads `package`; apt checks it against the signed index. The file lies in an empty directory of its own.
    pub(crate) fn download(&self, package: &str) -> Result<PathBuf> {
        let directory = self.directory.join("deb").join(package);
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory).context(|| format!("cannot make {}", directory.display()))?;
        self.run_in(&directory, "apt-get", &["download", "-qq", package])?;
        let mut files = fs::read_dir(&directory).context(|| format!("cannot list {}", directory.display()))?;
        let file = files.find_map(|entry| Some(entry.ok()?.path()));
        file.ok_or_else(|| Error::new(format!("apt-get download {package} left no file")))
    }

    /// Removes what was downloaded.
    pub(crate) fn clean(&self) {
        let _ = fs::remove_dir_all(self.directory.join("deb"));
    }

    fn run(&self, tool: &str, args: &[&str]) -> Result<String> {
        self.run_in(&self.directory, tool, args)
    }

    fn run_in(&self, current: &Path, tool: &str, args: &[&str]) -> Result<String> {
        let directory = self.directory.display();
        let mut command = Command::new(tool);
        for option in [
            &format!("Dir::State={directory}"),
            &format!("Dir::State::status={directory}/status"),
            &format!("Dir::Cache={directory}"),
            "Dir::Etc::sourceparts=/dev/null",
            &format!("Dir::Etc::sourcelist={directory}/suite.sources"),
            "APT::Sandbox::User=root",
            "APT::Architecture=amd64",
            "Acquire::Languages=none",
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
            "Acquire::Retries=3",
            // Else an update that reached nobody succeeds, with a warning.
            "APT::Update::Error-Mode=any",
        ] {
            command.args(["-o", option]);
        }
        let output = command
            .args(args)
            .current_dir(current)
            .stdin(Stdio::null())
            .output()
            .context(|| format!("cannot run {tool}"))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let text = String::from_utf8_lossy(&output.stderr);
        let error = text.lines().rev().find(|line| line.starts_with("E:")).unwrap_or("no message");
        Err(Error::new(format!("{tool} {}: {error}", args.join(" "))))
    }
}

/// The machine's Debian sources with `suite` in place of the machine's own, in the newer of apt's two formats.
fn sources_for(suite: &str) -> Result<String> {
    let release = fs::read_to_string("/etc/os-release").context(|| "cannot read /etc/os-release".into())?;
    let field =
        |name: &str| release.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim_matches('"'));
    if field("ID=") != Some("debian") {
        return Err(Error::new("this is not Debian: no sources to derive other suites from"));
    }
    let own = field("VERSION_CODENAME=").unwrap_or("sid");
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    files.extend(fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten().map(|entry| entry.path()));
    let mut stanzas = Vec::new();
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("sources") => {
                stanzas.extend(text.split("\n\n").filter_map(|stanza| convert_stanza(stanza, own, suite)))
            }
            Some("list") => stanzas.extend(text.lines().filter_map(|line| convert_line(line, own, suite))),
            _ => {}
        }
    }
    if stanzas.is_empty() {
        return Err(Error::new(format!("no source of {own} in /etc/apt to derive {suite} from")));
    }
    Ok(stanzas.join("\n"))
}

/// The suites in `suites` that matter, under their names in the other release.
fn convert_suites<'a>(suites: impl Iterator<Item = &'a str>, own: &str, suite: &str) -> Option<String> {
    let renamed: Vec<_> = suites
        .filter_map(|name| match name.strip_prefix(own)? {
            "" => Some(suite.to_owned()),
            "-security" if suite != "sid" => Some(format!("{suite}-security")),
            _ => None,
        })
        .collect();
    (!renamed.is_empty()).then(|| renamed.join(" "))
}

/// A stanza of a `.sources` file, or `None` when it is not one of Debian's own for the machine's release.
fn convert_stanza(stanza: &str, own: &str, suite: &str) -> Option<String> {
    let mut result = String::new();
    let (mut suites, mut main) = (None, false);
    for line in stanza.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.split_once(':').unwrap_or_default();
        let mut line = line.to_owned();
        match &*name.to_ascii_lowercase() {
            "enabled" if value.trim().eq_ignore_ascii_case("no") => return None,
            "types" if !value.split_whitespace().any(|kind| kind == "deb") => return None,
            "types" => line = "Types: deb".into(),
            "suites" => {
                suites = convert_suites(value.split_whitespace(), own, suite);
                line = format!("Suites: {}", suites.as_deref()?);
            }
            "components" => {
                main = value.split_whitespace().any(|component| component == "main");
                line = "Components: main".into();
            }
            _ => {}
        }
        result.push_str(&line);
        result.push('\n');
    }
    (suites.is_some() && main).then_some(result)
}

/// A line of a `.list` file: `deb [option=value …] URI SUITE COMPONENT…`.
fn convert_line(line: &str, own: &str, suite: &str) -> Option<String> {
    let rest = line.trim().strip_prefix("deb")?;
    let rest = rest.strip_prefix(char::is_whitespace)?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace();
    let (uri, suites) = (words.next()?, words.next()?);
    let suites = convert_suites([suites].into_iter(), own, suite)?;
    words.any(|component| component == "main").then_some(())?;
    let mut stanza = format!("Types: deb\nURIs: {uri}\nSuites: {suites}\nComponents: main\n");
    for option in options.split_whitespace() {
        match option.split_once('=')? {
            ("signed-by", keys) => stanza.push_str(&format!("Signed-By: {}\n", keys.replace(',', " "))),
            ("trusted", value) => stanza.push_str(&format!("Trusted: {value}\n")),
            _ => {}
        }
    }
    Some(stanza)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stanza_keeps_its_place_and_keys() {
        let stanza = "Types: deb deb-src\n# a remark\nURIs: http://mirror.example/debian\n\
                      Suites: bookworm bookworm-updates\nComponents: main contrib\nSigned-By: /usr/share/keyrings/debian.gpg";
        assert_eq!(
            convert_stanza(stanza, "bookworm", "trixie").unwrap(),
            "Types: deb\nURIs: http://mirror.example/debian\nSuites: trixie\nComponents: main\n\
             Signed-By: /usr/share/keyrings/debian.gpg\n"
        );
    }

    #[test]
    fn security_has_no_sid() {
        let stanza = "Types: deb\nURIs: http://mirror.example/security\nSuites: bookworm-security\nComponents: main";
        assert!(convert_stanza(stanza, "bookworm", "bullseye").unwrap().contains("Suites: bullseye-security\n"));
        assert_eq!(convert_stanza(stanza, "bookworm", "sid"), None);
    }

    #[test]
    fn other_repositories_are_left_out() {
        for stanza in [
            "Types: deb\nURIs: http://other.example/apt\nSuites: stable\nComponents: main",
            "Types: deb\nURIs: http://other.example/apt\nSuites: bookworm\nComponents: stable",
            "Types: deb-src\nURIs: http://mirror.example/debian\nSuites: bookworm\nComponents: main",
            "Enabled: no\nTypes: deb\nURIs: http://mirror.example/debian\nSuites: bookworm\nComponents: main",
            "",
        ] {
            assert_eq!(convert_stanza(stanza, "bookworm", "sid"), None, "{stanza}");
        }
    }

    #[test]
    fn a_line_becomes_a_stanza() {
        let line =
            "deb [arch=amd64 signed-by=/usr/share/keyrings/a.gpg] http://mirror.example/debian bookworm main contrib";
        assert_eq!(
            convert_line(line, "bookworm", "sid").unwrap(),
            "Types: deb\nURIs: http://mirror.example/debian\nSuites: sid\nComponents: main\nSigned-By: /usr/share/keyrings/a.gpg\n"
        );
        for line in [
            "# deb http://mirror.example/debian bookworm main",
            "deb-src http://mirror.example/debian bookworm main",
            "deb http://mirror.example/debian bookworm-backports main",
            "deb",
            "deb [broken http://x y main",
            "",
        ] {
            assert_eq!(convert_line(line, "bookworm", "sid"), None, "{line}");
        }
    }
}
