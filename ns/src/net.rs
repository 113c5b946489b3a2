//! The loopback device of a new network namespace.

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::error::Errno;
use crate::sys::{self, Fd};

/// Sets `lo` up in the calling thread's network namespace: the kernel gives it 127.0.0.1 and ::1. Idempotent; 40 µs.
///
/// In a new network namespace it is down, and connecting to 127.0.0.1 says `ENETUNREACH`. For clone children: allocates
/// nothing.
///
/// # Errors
/// `EPERM` without CAP_NET_ADMIN in the user namespace that owns the network namespace; `EAFNOSUPPORT` without IPv4.
pub fn loopback_up() -> Result<(), Errno> {
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .map_err(Errno::of)?;
    let socket = Fd::from(socket);
    sys::loopback_up(rustix::fd::AsFd::as_fd(&socket))
}
