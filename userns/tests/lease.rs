//! Leases on a real file system.

#![allow(clippy::unwrap_used)]

mod common;

use std::time::Instant;

use common::{Held, require, root};
use userns::{Pool, PoolConfig, Range, Setgroups, write_maps};

/// Far from everything else, and from the default pool.
fn config(slots: u32) -> PoolConfig {
    PoolConfig::new(Range::new(3_000_000_000, slots * 1024).unwrap(), 1024)
}

#[test]
fn leases_differ_and_a_released_slot_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let pool = Pool::open(&dir.path().join("sandbox"), &config(2)).unwrap();
    let first = pool.lease("first").unwrap();
    let second = pool.lease("second").unwrap();
    assert!(!first.range().overlaps(second.range()));
    let full = pool.lease("third").unwrap_err();
    assert!(matches!(full, userns::Error::Exhausted { held: 2, .. }), "{full}");
    let range = first.range();
    first.release().unwrap();
    assert_eq!(pool.lease("third").unwrap().range(), range);
}

#[test]
fn a_lease_becomes_the_map_of_a_child() {
    require!("a_lease_becomes_the_map_of_a_child", root() => "root");
    let dir = tempfile::tempdir().unwrap();
    let pool = Pool::open(&dir.path().join("sandbox"), &config(2)).unwrap();
    let lease = pool.lease("child").unwrap();
    let Some(held) = Held::start("cat /proc/self/uid_map; id -u") else {
        common::skip("a_lease_becomes_the_map_of_a_child", "user namespaces");
        return;
    };
    let clock = Instant::now();
    write_maps(held.pid(), &lease.uid_map(), &lease.gid_map(), Setgroups::Allow).unwrap();
    println!("write_maps {:?}", clock.elapsed());
    println!("{}", held.finish());
}

#[test]
fn a_lease_is_cheap() {
    let dir = tempfile::tempdir().unwrap();
    let pool = Pool::open(&dir.path().join("sandbox"), &config(200)).unwrap();
    let mut times: Vec<_> = (0..2000)
        .map(|_| {
            let clock = Instant::now();
            pool.lease("x").unwrap().release().unwrap();
            clock.elapsed()
        })
        .collect();
    times.sort();
    println!("lease+release: median {:?}, 99 % {:?}", times[1000], times[1980]);
}
