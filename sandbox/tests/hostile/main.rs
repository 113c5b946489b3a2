//! What a hostile program tries, by the numbers of the threat model's cases. Each attack is shown to work, or at least to
//! be heard by the kernel, without a sandbox where that harms nobody: files are opened, and nothing is written.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]
#![allow(unsafe_code, reason = "one instruction that no library makes")]

#[path = "../common/mod.rs"]
mod common;
mod kernel;
mod reach;
mod resources;

use common::acts::Act;

const ACTS: &[Act] = &[
    ("table", |words| kernel::table(words)),
    ("sysctls", |_| kernel::sysctls()),
    ("int80", |_| kernel::int80()),
    ("spawns", |_| kernel::spawns()),
    ("connect", |words| reach::connect(words)),
    ("descriptors", |_| reach::descriptors()),
    ("locked", |words| resources::locked(words)),
    ("files", |_| resources::files()),
];

#[test]
fn payload() {
    common::acts::run(ACTS);
}
