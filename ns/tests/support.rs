//! What the host gives, asked twice: by probing and by really making each kind.

mod common;

use common::{in_child, uid};
use ns::support::{State, Support};
use ns::{Clone, Errno, Kind, Namespaces};

#[test]
fn probing_agrees_with_making() {
    let support = Support::probe().unwrap();
    assert_eq!(support, Support::probe().unwrap());
    for (kind, state) in support.iter() {
        // A time namespace and shared memory do not go together on every kernel.
        if kind == Kind::Time {
            continue;
        }
        let alone = in_child(&Clone::new(kind.flag()), || {});
        let with_user = in_child(&Clone::new(kind.flag() | Namespaces::USER), || {});
        match state {
            State::Available => assert_eq!(alone, Ok(()), "{kind}"),
            State::WithUser => assert!(alone.is_err() && with_user.is_ok(), "{kind}: {alone:?} {with_user:?}"),
            State::Missing(errno) => {
                assert!(alone.is_err() && with_user.is_err() && errno != Errno::from_raw(0), "{kind}: {errno}")
            }
            other => panic!("{other}"),
        }
    }
}

#[test]
fn root_gets_what_the_kernel_has() {
    require!("root_gets_what_the_kernel_has", uid() == 0, "root", uid());
    let support = Support::probe().unwrap();
    for (kind, state) in support.iter() {
        let built = std::path::Path::new("/proc/self/ns").join(kind.file_name()).exists();
        assert_eq!(state == State::Available, built, "{kind}: {state}");
    }
}

#[test]
fn a_filter_that_forbids_is_seen() {
    common::without(&[libc::SYS_unshare], libc::EPERM, || {
        for (kind, state) in Support::probe().unwrap().iter() {
            assert_eq!(state, State::Missing(Errno::from_raw(libc::EPERM)), "{kind}");
            assert_eq!(state.to_string(), "missing: operation not permitted (os error 1)");
        }
    });
}
