//! The loopback device of a new network namespace.

#![allow(clippy::unwrap_used, reason = "tests may panic: that is how they fail")]

mod common;

use std::net::TcpStream;

use common::in_child;
use ns::support::{State, Support};
use ns::{Clone, Kind, Namespaces};

#[test]
fn loopback_answers_after_it_is_up() {
    let state = Support::probe().unwrap().of(Kind::Network);
    require!("loopback_answers_after_it_is_up", !matches!(state, State::Missing(_)), "network namespaces", state);
    let user = if state == State::WithUser { Namespaces::USER } else { Namespaces::empty() };
    in_child(&Clone::new(Namespaces::NETWORK | user), || {
        let connect = || TcpStream::connect("127.0.0.1:9").unwrap_err().raw_os_error();
        assert_eq!(connect(), Some(libc::ENETUNREACH));
        assert_eq!(ns::net::loopback_up(), Ok(()));
        assert_eq!(connect(), Some(libc::ECONNREFUSED));
        assert_eq!(ns::net::loopback_up(), Ok(()), "again");
        let outside = TcpStream::connect("192.0.2.1:9").unwrap_err().raw_os_error();
        assert_eq!(outside, Some(libc::ENETUNREACH));
    })
    .unwrap();
}
