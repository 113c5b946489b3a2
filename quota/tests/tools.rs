//! The same figures as the standard tools, both ways.
#![allow(clippy::unwrap_used, reason = "tests fail by panic")]

mod common;

use std::path::Path;
use std::process::Command;

use common::{Place, disk, disk_kind, ordinary, run, search_path, tool};
use quota::{Kind, Limit, Limits};

fn output(command: &mut Command) -> String {
    let output = command.env("PATH", search_path()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The mount point: the tools know no other directory.
fn mount_point(place: &Place) -> &Path {
    place.filesystem.mount_point().unwrap()
}

/// `#ID used soft hard …`, in KiB or inodes.
fn xfs_report(place: &Place, what: &str, id: u32) -> Option<Vec<u64>> {
    let text =
        output(Command::new("xfs_quota").args(["-x", "-c", &format!("report -p -n {what}")]).arg(mount_point(place)));
    text.lines().find_map(|line| {
        let rest = line.strip_prefix(&format!("#{id} "))?;
        Some(rest.split_whitespace().take(3).map(|word| word.parse().unwrap()).collect())
    })
}

#[test]
fn xfs_quota_shows_our_limits_and_we_its() {
    require!(disk(), disk_kind(Kind::Xfs), tool("xfs_quota"));
    let mut place = Place::new();
    let limits = Limits::unlimited().bytes(8 << 20).soft_bytes(6 << 20).inodes(70).soft_inodes(60);
    let (dir, project) = place.limited("box", &limits);
    common::fill(&dir.join("f"), 3 << 20);
    std::fs::File::open(dir.join("f")).unwrap().sync_all().unwrap();
    let report = project.report().unwrap();
    let bytes = xfs_report(&place, "-b", project.id()).unwrap();
    assert_eq!(bytes, [report.usage.bytes / 1024, 6 << 10, 8 << 10]);
    assert_eq!(xfs_report(&place, "-i", project.id()).unwrap(), [2, 60, 70]);
    // And the other way.
    let set = format!("limit -p bsoft=1m bhard=2m isoft=10 ihard=20 {}", project.id());
    run(Command::new("xfs_quota").args(["-x", "-c", &set]).arg(mount_point(&place))).unwrap();
    let ours = Limits::unlimited().bytes(2 << 20).soft_bytes(1 << 20).inodes(20).soft_inodes(10);
    assert_eq!(project.limits().unwrap(), ours);
    let row = place.filesystem.report().unwrap().into_iter().find(|row| row.project == project.id()).unwrap();
    assert_eq!(row.limits, ours);
}

#[test]
fn xfs_quota_lists_the_same_projects() {
    require!(disk(), disk_kind(Kind::Xfs), tool("xfs_quota"));
    let mut place = Place::new();
    let mut ours = Vec::new();
    for _ in 0..5 {
        let project = place.project();
        project.set_limits(&Limits::unlimited().bytes(1 << 20)).unwrap();
        ours.push(project.id());
    }
    let text = output(Command::new("xfs_quota").args(["-x", "-c", "report -p -n -b"]).arg(mount_point(&place)));
    let theirs: Vec<u32> =
        text.lines().filter_map(|line| line.strip_prefix('#')?.split(' ').next()?.parse().ok()).collect();
    let rows: Vec<u32> = place.filesystem.report().unwrap().iter().map(|row| row.project).collect();
    for id in ours {
        assert!(theirs.contains(&id) && rows.contains(&id), "{id}: {text}");
    }
}

#[test]
fn xfs_quota_sees_the_project_of_a_directory() {
    require!(disk(), disk_kind(Kind::Xfs), tool("xfs_io"));
    let mut place = Place::new();
    let (dir, project) = place.limited("box", &Limits::unlimited());
    let text = output(Command::new("xfs_io").args(["-r", "-c", "lsproj"]).arg(&dir));
    assert_eq!(text.trim(), format!("projid = {}", project.id()));
    let text = output(Command::new("lsattr").args(["-pd"]).arg(&dir));
    assert!(text.trim_start().starts_with(&project.id().to_string()), "{text}");
}

/// `#ID -- used soft hard [grace] used soft hard`, in KiB and inodes.
fn repquota(place: &Place, id: u32) -> Option<Vec<u64>> {
    let text = output(Command::new("repquota").args(["-P", "-n"]).arg(mount_point(place)));
    text.lines().find_map(|line| {
        let rest = line.strip_prefix(&format!("#{id} "))?;
        Some(rest.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect())
    })
}

#[test]
fn repquota_shows_our_limits_and_we_those_of_setquota() {
    require!(disk(), disk_kind(Kind::Ext4), tool("repquota"), tool("setquota"));
    let mut place = Place::new();
    let limits = Limits::unlimited().bytes(8 << 20).soft_bytes(6 << 20).inodes(70).soft_inodes(60);
    let (dir, project) = place.limited("box", &limits);
    ordinary(|| common::fill(&dir.join("f"), 3 << 20));
    std::fs::File::open(dir.join("f")).unwrap().sync_all().unwrap();
    let used = project.report().unwrap().usage.bytes / 1024;
    assert_eq!(repquota(&place, project.id()).unwrap(), [used, 6 << 10, 8 << 10, 2, 60, 70]);
    let id = project.id().to_string();
    run(Command::new("setquota").args(["-P", &id, "1024", "2048", "10", "20"]).arg(mount_point(&place))).unwrap();
    let ours = Limits::unlimited().bytes(2 << 20).soft_bytes(1 << 20).inodes(20).soft_inodes(10);
    assert_eq!(project.limits().unwrap(), ours);
    assert_eq!(project.limits().unwrap().bytes_hard, Limit::Value(2 << 20));
}
