//! Mounts made and entered in clone children. Each test does all of it in mount namespaces of its own.

#![allow(clippy::unwrap_used, reason = "tests may panic: that is how they fail")]

mod common;

use std::fs;
use std::os::fd::AsFd;

use common::{in_child, uid};
use ns::mount::{self, Attributes, Proc, Tmpfs};
use ns::path::{self, Open};
use ns::{Clone, Namespaces};

const MIB: u64 = 1 << 20;

fn mounts() -> Clone<'static> {
    Clone::new(Namespaces::MOUNT | Namespaces::PID | Namespaces::IPC)
}

fn tmpfs() -> std::os::fd::OwnedFd {
    mount::tmpfs(&Tmpfs { size: Some(MIB), mode: Some(0o755), ..Tmpfs::default() }, Attributes::NO_SUID).unwrap()
}

#[test]
fn enter_root_leaves_nothing_of_the_old_one() {
    require!("enter_root_leaves_nothing_of_the_old_one", uid() == 0, "root", uid());
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
    in_child(&mounts(), || {
        let root = tmpfs();
        let usr = mount::clone_tree(rustix::fs::CWD, c"/usr", true).unwrap();
        let ro = Attributes::READ_ONLY | Attributes::NO_SUID | Attributes::NO_DEV;
        mount::attach_root(root.as_fd()).unwrap();
        for (place, tree) in [(c"usr", usr), (c"proc", mount::proc(Proc::default(), Attributes::empty()).unwrap())] {
            let target = path::create_dir_in_root(root.as_fd(), place, 0o755).unwrap();
            mount::attach(tree.as_fd(), target.as_fd()).unwrap();
            if place == c"usr" {
                mount::set_attributes(tree.as_fd(), ro, Attributes::empty(), false).unwrap();
            }
        }
        mount::pivot(root.as_fd()).unwrap();
        assert_eq!(std::env::current_dir().unwrap(), std::path::Path::new("/"));
        let mut names: Vec<_> = fs::read_dir("/").unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["proc", "usr"]);
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points: Vec<_> = mountinfo.lines().map(|line| line.split(' ').nth(4).unwrap()).collect();
        assert!(points.contains(&"/") && points.contains(&"/proc") && points.contains(&"/usr"), "{mountinfo}");
        assert!(
            points.iter().all(|point| *point == "/" || point.starts_with("/usr") || *point == "/proc"),
            "{mountinfo}"
        );
        assert_eq!(fs::write("/usr/x", "").unwrap_err().raw_os_error(), Some(libc::EROFS));
        assert_eq!(fs::read_link("/proc/self").unwrap(), std::path::Path::new("1"));
        assert!(path::open_in_root(root.as_fd(), c"../../../usr/bin", Open::PATH).is_ok());
    })
    .unwrap();
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
}
