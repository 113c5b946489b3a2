//! An overlay whose upper and work directories lie in a project: what counts, what `df` shows, and what a full one
//! refuses.
#![allow(clippy::unwrap_used, reason = "tests fail by panic")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::sys::{PROJINHERIT, set_project};
use common::{Place, disk, errno, fill, in_thread, project_of, root, run, sys};
use quota::{Directory, Limits, Project};
use rustix::fs::statvfs;
use rustix::thread::CapabilitySet;

const LIMIT: u64 = 4 << 20;

/// A lower directory of 2 MiB and an overlay on it, mounted in this thread's namespace.
struct Overlay {
    merged: PathBuf,
}

impl Overlay {
    fn mount(place: &Place, upper: &Path, work: &Path) -> Self {
        let lower = place.path.join("lower");
        if !lower.exists() {
            fs::create_dir(&lower).unwrap();
            fs::write(lower.join("image"), vec![1; 2 << 20]).unwrap();
            for n in 0..300 {
                fs::write(lower.join(format!("small{n}")), "x").unwrap();
            }
        }
        let merged = place.directory("merged");
        let options = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
        run(Command::new("mount").args(["-t", "overlay", "-o", &options, "overlay"]).arg(&merged)).unwrap();
        Self { merged }
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg(&self.merged));
    }
}

fn in_project(place: &mut Place, limits: &Limits) -> (Overlay, Project, PathBuf) {
    let (layer, project) = place.limited("layer", limits);
    for name in ["upper", "work"] {
        fs::create_dir(layer.join(name)).unwrap();
    }
    (Overlay::mount(place, &layer.join("upper"), &layer.join("work")), project, layer)
}

fn alone(run: impl FnOnce(Place) + Send) {
    in_thread(|| {
        sys::private_mounts().unwrap();
        run(Place::new());
    });
}

#[test]
fn golden_overlay_the_image_is_not_counted_and_the_limit_holds() {
    require!(root(), disk());
    alone(|mut place| {
        let (overlay, project, _) = in_project(&mut place, &Limits::unlimited().bytes(LIMIT));
        assert_eq!(fs::read(overlay.merged.join("image")).unwrap().len(), 2 << 20);
        assert!(project.usage().unwrap().bytes < 64 << 10, "the lower layer is free");
        let (written, error) = fill(&overlay.merged.join("f"), 2 * LIMIT);
        // Through an overlay even full root is limited on every file system.
        assert_eq!(error, place.full());
        assert!((LIMIT - (64 << 10)..=LIMIT).contains(&written), "{written}");
        assert!(project.report().unwrap().bytes_exhausted());
    });
}

#[test]
fn golden_overlay_df_shows_the_limit_everywhere() {
    require!(root(), disk());
    alone(|mut place| {
        let (overlay, ..) = in_project(&mut place, &Limits::unlimited().bytes(LIMIT).inodes(500));
        for path in [overlay.merged.clone(), overlay.merged.join("image"), overlay.merged.join("small1")] {
            let stat = statvfs(&path).unwrap();
            assert_eq!((stat.f_blocks * stat.f_frsize, stat.f_files), (LIMIT, 500), "{}", path.display());
        }
    });
}

#[test]
fn golden_overlay_a_full_project_refuses_deletions_of_the_lower_layer() {
    require!(root(), disk());
    alone(|mut place| {
        let (overlay, project, _) = in_project(&mut place, &Limits::unlimited().inodes(40));
        let full = place.full();
        let made = (0..100).map(|n| errno(fs::write(overlay.merged.join(format!("n{n}")), ""))).collect::<Vec<_>>();
        assert!(made.contains(&full), "{made:?}");
        assert!(project.report().unwrap().inodes_exhausted());
        // A whiteout takes an inode; older kernels make one each, later ones share one.
        let removed =
            (0..300).map(|n| errno(fs::remove_file(overlay.merged.join(format!("small{n}"))))).collect::<Vec<_>>();
        assert_eq!(removed[0], full, "{removed:?}");
        assert_eq!(errno(fs::create_dir(overlay.merged.join("dir"))), full);
        let copy_up = fs::OpenOptions::new().append(true).open(overlay.merged.join("image"));
        assert_eq!(errno(copy_up), full);
        // What is in the upper layer can be removed; then there is room again.
        for n in 0..20 {
            let _ = fs::remove_file(overlay.merged.join(format!("n{n}")));
        }
        common::eventually("room", || fs::remove_file(overlay.merged.join("small0")).is_ok());
        assert!(!overlay.merged.join("small0").exists());
    });
}

#[test]
fn golden_overlay_work_outside_of_the_project_is_half_broken() {
    require!(root(), disk());
    alone(|mut place| {
        let (upper, _) = place.limited("upper", &Limits::unlimited().bytes(LIMIT));
        let work = place.directory("work");
        let overlay = Overlay::mount(&place, &upper, &work);
        fs::write(overlay.merged.join("new"), "x").unwrap();
        let copy_up = fs::OpenOptions::new().append(true).open(overlay.merged.join("image"));
        assert_eq!(errno(copy_up), libc::EXDEV);
    });
}

#[test]
fn an_id_set_after_upper_and_work_were_made_counts_nothing() {
    require!(root(), disk());
    alone(|mut place| {
        let project = place.project();
        project.set_limits(&Limits::unlimited().bytes(4096)).unwrap();
        let layer = place.directory("layer");
        for name in ["upper", "work"] {
            fs::create_dir(layer.join(name)).unwrap();
        }
        set_project(&layer, project.id(), |flags| flags | PROJINHERIT).unwrap();
        let overlay = Overlay::mount(&place, &layer.join("upper"), &layer.join("work"));
        assert_eq!(fill(&overlay.merged.join("f"), 1 << 20), (1 << 20, 0), "not limited at all");
        // Ours refuses to begin like that.
        assert!(Directory::open(&layer).unwrap().assign(&project).is_err());
    });
}

#[test]
fn golden_permission_container_root_leaves_through_the_overlay() {
    require!(root(), disk());
    alone(|mut place| {
        let (overlay, ..) = in_project(&mut place, &Limits::unlimited().bytes(LIMIT));
        let out = overlay.merged.join("out");
        fs::create_dir(&out).unwrap();
        let few = CapabilitySet::SYS_ADMIN | CapabilitySet::SYS_RESOURCE | CapabilitySet::NET_ADMIN;
        let changed = common::without(few, || errno(set_project(&out, 0, |flags| flags & !PROJINHERIT)));
        if changed == libc::ENOTTY {
            return; // Overlays before 5.13 or so pass no such call on.
        }
        assert_eq!(changed, 0);
        assert_eq!(fill(&out.join("f"), 2 * LIMIT), (2 * LIMIT, 0), "unprotected, the limit is no boundary");
    });
}

#[test]
fn whiteouts_and_copies_are_counted() {
    require!(root(), disk());
    alone(|mut place| {
        let (overlay, project, layer) = in_project(&mut place, &Limits::unlimited().bytes(LIMIT));
        let before = project.usage().unwrap().inodes;
        fs::OpenOptions::new().append(true).open(overlay.merged.join("image")).unwrap();
        assert!(project.usage().unwrap().bytes >= 2 << 20, "a copied-up file counts whole");
        assert_eq!(project_of(&layer.join("upper/image")), project.id());
        fs::remove_file(overlay.merged.join("small1")).unwrap();
        assert!(project.usage().unwrap().inodes > before);
    });
}
