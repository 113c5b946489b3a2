//! Peers that are programs: their command lines.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::resident::Failure;
use crate::tiny::directory_to_show;

/// Whether a program of this name is in `PATH`.
#[must_use]
pub fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// Peers that are programs, told to do as nearly the same as they can: all namespaces new, the host's programs read-only,
/// `/proc`, a `/tmp` of its own, no capabilities. Each has a name and a command line.
///
/// # Errors
/// When what some of them want in `scratch` cannot be written.
pub fn commands(target: &Path, scratch: &Path) -> Result<Vec<(&'static str, Vec<OsString>)>, Failure> {
    let mut shown = vec![PathBuf::from("/usr")];
    shown.extend(directory_to_show(target).map(Path::to_owned));
    let links: Vec<(PathBuf, PathBuf)> = ["/bin", "/sbin", "/lib", "/lib64"]
        .iter()
        .filter_map(|link| Some((std::fs::read_link(link).ok()?, PathBuf::from(link))))
        .collect();
    let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();

    let mut bwrap = words(&["bwrap", "--unshare-all", "--die-with-parent", "--proc", "/proc", "--dev", "/dev"]);
    bwrap.extend(words(&["--tmpfs", "/tmp", "--cap-drop", "ALL", "--hostname", "sandbox"]));
    for directory in &shown {
        bwrap.extend(["--ro-bind".into(), directory.into(), directory.into()]);
    }
    for (to, link) in &links {
        bwrap.extend(["--symlink".into(), to.into(), link.into()]);
    }
    bwrap.push(target.into());

    let mut nsjail = words(&["nsjail", "-Mo", "-Q", "--user", "0:100000:1", "--group", "0:100000:1", "-T", "/tmp"]);
    for directory in &shown {
        nsjail.extend(["-R".into(), directory.into()]);
    }
    for (to, link) in &links {
        nsjail.extend(["-s".into(), [to.as_os_str(), link.as_os_str()].join(":".as_ref())]);
    }
    nsjail.extend(["--".into(), target.into()]);

    let bundle = bundle(target, &shown, &links, scratch)?;
    let name = format!("sandbox-benches-{}", std::process::id());
    let oci = |options: &[&str]| {
        let mut line = words(options);
        line.extend(["run".into(), "--bundle".into(), bundle.clone().into(), name.clone().into()]);
        line
    };
    let crun = oci(&["crun", "--cgroup-manager", "disabled"]);
    let mut firejail = words(&["firejail", "--quiet", "--noprofile", "--private-tmp", "--private-dev", "--net=none"]);
    firejail.extend(words(&["--caps.drop=all", "--nonewprivs", "--hostname=sandbox"]));
    firejail.push(target.into());
    Ok(vec![("bwrap", bwrap), ("nsjail", nsjail), ("firejail", firejail), ("crun", crun), ("runc", oci(&["runc"]))])
}

/// A resident program that starts where the v2 tree of a hybrid machine is out of sight: crun refuses what it calls mixed.
#[must_use]
pub fn on_v1_alone(line: Vec<OsString>) -> Vec<OsString> {
    let unified = "/sys/fs/cgroup/unified";
    if !Path::new(unified).exists() {
        return line;
    }
    let script = format!("umount -l {unified} && exec \"$@\"");
    let before = ["unshare", "--mount", "sh", "-c", &script, "sh"];
    before.into_iter().map(OsString::from).chain(line).collect()
}

/// What OCI runtimes want: a directory with a root directory and `config.json`. Without a user namespace, which they need
/// more than this for.
fn bundle(
    target: &Path,
    shown: &[PathBuf],
    links: &[(PathBuf, PathBuf)],
    directory: &Path,
) -> Result<PathBuf, Failure> {
    let root = directory.join("rootfs");
    // crun wants the last one to be there.
    std::fs::create_dir_all(root.join("dev"))?;
    for (to, link) in links {
        std::os::unix::fs::symlink(to, root.join(link.strip_prefix("/")?))?;
    }
    let mut mounts = vec![
        serde_json::json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "nodev", "noexec"]}),
        serde_json::json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev"]}),
    ];
    mounts.extend(shown.iter().map(|directory| {
        serde_json::json!({"destination": directory, "type": "bind", "source": directory,
            "options": ["rbind", "ro", "nosuid", "nodev"]})
    }));
    let namespaces = ["pid", "mount", "ipc", "uts", "network", "cgroup"].map(|kind| serde_json::json!({"type": kind}));
    let config = serde_json::json!({
        "ociVersion": "1.0.2",
        "process": {"user": {"uid": 0, "gid": 0}, "args": [target], "env": ["PATH=/usr/bin:/bin"], "cwd": "/",
            "capabilities": {}, "noNewPrivileges": true},
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "sandbox",
        "mounts": mounts,
        "linux": {"namespaces": namespaces},
    });
    std::fs::write(directory.join("config.json"), serde_json::to_vec_pretty(&config)?)?;
    Ok(directory.to_owned())
}
