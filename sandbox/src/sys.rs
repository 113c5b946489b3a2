//! Kernel calls that rustix does not have or has marked unsafe, one per function, each with its reason.
//!
//! # Safety
//! The functions of the first half run in the clone child, which shares the caller's memory: none allocates, locks or
//! panics. `errno` is not a concern there: the calling thread sleeps until the child has gone and does not look at it.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io::{self, IoSlice};
use std::mem::{ManuallyDrop, MaybeUninit};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

use ns::Errno;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::thread::{CapabilitySet, LinkNameSpaceType};

use crate::init::protocol;
use crate::step::{Raise, errno};

/// What init is born with.
#[derive(Debug)]
pub(crate) struct InitFds<'a> {
    /// The sealed memfd with init's code.
    pub(crate) program: BorrowedFd<'a>,
    /// `/dev/null`, for 0, 1 and 2.
    pub(crate) null: BorrowedFd<'a>,
    pub(crate) socket: BorrowedFd<'a>,
    pub(crate) host: BorrowedFd<'a>,
    pub(crate) lease: Option<BorrowedFd<'a>>,
}

/// keyctl(`KEYCTL_JOIN_SESSION_KEYRING`, anonymous).
pub(crate) fn join_new_session_keyring() -> Result<(), Errno> {
    // SAFETY: numbers and a null name.
    let answer = unsafe { libc::syscall(libc::SYS_keyctl, 1, ptr::null::<libc::c_char>()) };
    result(answer)
}

/// Sets the calling process's `oom_score_adj` to 0. The kernel spares the parent of a vfork-like child, whose memory it
/// shares.
pub(crate) fn reset_oom_score() -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(CWD, c"/proc/self/oom_score_adj", flags, Mode::empty()).map_err(errno)?;
    rustix::io::write(&file, b"0").map_err(errno)?;
    Ok(())
}

/// Sends a descriptor of the calling process's mount namespace over `channel`.
pub(crate) fn send_mount_namespace(channel: BorrowedFd<'_>) -> Result<(), Errno> {
    let namespace = rustix::fs::openat(CWD, c"/proc/self/ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(errno)?;
    send_fd(channel, namespace.as_fd())
}

/// Sends a descriptor over `channel`.
pub(crate) fn send_fd(channel: BorrowedFd<'_>, fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let fds = [fd];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(Errno::from_raw(libc::EINVAL));
    }
    rustix::net::sendmsg(channel, &[IoSlice::new(b"f")], &mut control, SendFlags::NOSIGNAL).map_err(errno)?;
    Ok(())
}

/// setns(2) into a mount namespace. Its root becomes the root and current directory.
pub(crate) fn enter_mount_namespace(namespace: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::thread::move_into_link_name_space(namespace, Some(LinkNameSpaceType::Mount)).map_err(errno)
}

/// setns(2) into a network namespace.
pub(crate) fn enter_network_namespace(namespace: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::thread::move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network)).map_err(errno)
}

/// setns(2) into a user namespace, with all capabilities over it.
pub(crate) fn enter_user_namespace(namespace: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::thread::move_into_link_name_space(namespace, Some(LinkNameSpaceType::User)).map_err(errno)
}

pub(crate) fn open_directory(path: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(errno)
}

/// Raises the hard limit of a resource to at least `raise.hard`; the soft limit stays.
pub(crate) fn raise_hard_limit(raise: Raise) -> Result<(), Errno> {
    let mut has = [0u64; 2];
    // SAFETY: pid 0 is ourselves; `has` is a whole struct rlimit64.
    let answer = unsafe { libc::syscall(libc::SYS_prlimit64, 0, raise.resource, ptr::null::<u64>(), has.as_mut_ptr()) };
    result(answer)?;
    if has[1] >= raise.hard {
        return Ok(());
    }
    let new = [has[0], raise.hard];
    // SAFETY: as above; the new limit is only read.
    let answer = unsafe { libc::syscall(libc::SYS_prlimit64, 0, raise.resource, new.as_ptr(), ptr::null::<u64>()) };
    result(answer)
}

/// Makes the capabilities that init needs, and those of `programs`, survive its execve: inheritable, then ambient
/// (capabilities(7)).
pub(crate) fn keep_capabilities(programs: u64) -> Result<(), Errno> {
    let mut sets = rustix::thread::capabilities(None).map_err(errno)?;
    sets.inheritable = sets.permitted;
    rustix::thread::set_capabilities(None, sets).map_err(errno)?;
    let of_init = CapabilitySet::SETUID | CapabilitySet::SETGID | CapabilitySet::SETPCAP;
    for capability in of_init.union(CapabilitySet::from_bits_retain(programs)).iter() {
        rustix::thread::configure_capability_in_ambient_set(capability, true).map_err(errno)?;
    }
    Ok(())
}

/// Puts init's descriptors in their places, marks all others close-on-exec, and executes init. Returns only on failure.
pub(crate) fn execute_init(fds: &InitFds<'_>) -> Result<(), Errno> {
    // Out of the way of the places first.
    // Never dropped: whether this fails or not, the child is about to end.
    let high = |fd: BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(fd, 16).map(ManuallyDrop::new).map_err(errno);
    let program = high(fds.program)?;
    let null = high(fds.null)?;
    let socket = high(fds.socket)?;
    let host = high(fds.host)?;
    let lease = high(fds.lease.unwrap_or(fds.null))?;
    for (fd, place) in [
        (&null, 0),
        (&null, 1),
        (&null, 2),
        (&socket, protocol::SOCKET_FD),
        (&host, protocol::HOST_FD),
        (&lease, protocol::LEASE_FD),
    ] {
        place_fd(fd.as_fd(), place)?;
    }
    close_others_at_exec(program.as_raw_fd())?;
    let argv = [c"sandbox-init".as_ptr(), ptr::null()];
    let envp = [ptr::null::<libc::c_char>()];
    let (path, flags) = (c"".as_ptr(), libc::AT_EMPTY_PATH);
    // SAFETY: NUL-terminated strings and NULL-terminated arrays that live across the call.
    let answer =
        unsafe { libc::syscall(libc::SYS_execveat, program.as_raw_fd(), path, argv.as_ptr(), envp.as_ptr(), flags) };
    result(answer)
}

/// dup3 to a number of our own choice, not close-on-exec.
fn place_fd(fd: BorrowedFd<'_>, place: i32) -> Result<(), Errno> {
    // SAFETY: the child's descriptor table is its own; what it has at `place` is not used after this.
    let answer = unsafe { libc::syscall(libc::SYS_dup3, fd.as_raw_fd(), place, 0) };
    result(answer)
}

/// Lets every descriptor above init's go at execve. `program` goes then too, as it is close-on-exec.
fn close_others_at_exec(program: i32) -> Result<(), Errno> {
    const CLOEXEC: u32 = 4;
    let first = protocol::FIRST_FREE_FD.unsigned_abs();
    // SAFETY: numbers only.
    let answer = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, CLOEXEC) };
    match result(answer) {
        // Before 5.11 there is no such flag: close all but `program` at once.
        Err(error) if error.raw() == libc::EINVAL => {
            let program = program.unsigned_abs();
            // SAFETY: numbers only; nothing of what is closed is used after this.
            let below = unsafe { libc::syscall(libc::SYS_close_range, first, program - 1, 0) };
            result(below)?;
            // SAFETY: as above.
            let above = unsafe { libc::syscall(libc::SYS_close_range, program + 1, u32::MAX, 0) };
            result(above)
        }
        answered => answered,
    }
}

/// The number of a loop device that nobody uses at this moment; made if there is none.
pub(crate) fn free_loop_device(control: BorrowedFd<'_>) -> io::Result<u32> {
    const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;
    // SAFETY: the command takes no argument and answers by a number.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
    u32::try_from(number).map_err(|_| io::Error::last_os_error())
}

/// `struct loop_config` of linux/loop.h with its `struct loop_info64`.
#[repr(C)]
struct LoopConfig {
    file: u32,
    block_size: u32,
    /// `lo_device` to `lo_sizelimit`.
    numbers: [u64; 5],
    /// `lo_number`, `lo_encrypt_type` and `lo_encrypt_key_size`.
    unused: [u32; 3],
    flags: u32,
    /// Both names, the key and `lo_init`.
    names: [u8; 64 + 64 + 32 + 16],
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopConfig>() == 304);
const _: () = assert!(std::mem::offset_of!(LoopConfig, flags) == 8 + 52);

/// Makes a loop device of a file, until it has no user any more. It passes the page cache by, where the file's file system
/// can. Linux 5.8; man page: loop(4).
pub(crate) fn configure_loop_device(device: BorrowedFd<'_>, file: BorrowedFd<'_>, block_size: u32) -> io::Result<()> {
    const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
    const LO_FLAGS_AUTOCLEAR: u32 = 4;
    const LO_FLAGS_DIRECT_IO: u32 = 16;
    let config = LoopConfig {
        file: file.as_raw_fd().unsigned_abs(),
        block_size,
        numbers: [0; 5],
        unused: [0; 3],
        flags: LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO,
        names: [0; 176],
        reserved: [0; 8],
    };
    // SAFETY: both descriptors are open; the command only reads one `loop_config`, and `config` is a whole one.
    let answer = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, ptr::from_ref(&config)) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether the kernel has mount_setattr(2) and lets us call it.
pub(crate) fn has_mount_setattr() -> bool {
    // SAFETY: the bad descriptor makes it fail before it reads anything.
    let answer = unsafe { libc::syscall(libc::SYS_mount_setattr, -1, c"".as_ptr(), 0, ptr::null::<u8>(), 0) };
    result(answer).is_err_and(|error| error.raw() != libc::ENOSYS)
}

/// The version of the kernel's Landlock interface; `None` where it is not built in or was not switched on at boot.
pub(crate) fn landlock_abi() -> Option<u32> {
    const VERSION: u32 = 1;
    // SAFETY: with this flag nothing is read, and a number comes back.
    let answer = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, ptr::null::<u8>(), 0, VERSION) };
    u32::try_from(answer).ok().filter(|abi| *abi > 0)
}

fn result(answer: libc::c_long) -> Result<(), Errno> {
    if answer >= 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
    Err(Errno::from_raw(error))
}

/// The bytes of a request's head: plain integers without padding.
pub(crate) fn bytes_of_request(head: &protocol::Request) -> &[u8] {
    let size = size_of::<protocol::Request>();
    // SAFETY: `repr(C)`, integers only, and its size is the sum of theirs (checked below), so every byte is initialised.
    unsafe { std::slice::from_raw_parts(ptr::from_ref(head).cast(), size) }
}

/// The bytes of a configuration's head, likewise.
pub(crate) fn bytes_of_config(config: &protocol::Config) -> &[u8] {
    let size = size_of::<protocol::Config>();
    // SAFETY: as in `bytes_of_request`.
    unsafe { std::slice::from_raw_parts(ptr::from_ref(config).cast(), size) }
}

/// A reply out of the bytes of a message.
pub(crate) fn reply_from_bytes(bytes: &[u8; size_of::<protocol::Reply>()]) -> protocol::Reply {
    // SAFETY: integers only: every bit pattern is a value, and the read needs no alignment.
    unsafe { ptr::read_unaligned(bytes.as_ptr().cast()) }
}

const _: () = assert!(size_of::<protocol::Request>() == 8 * 8 + 6 * 4);
const _: () = assert!(size_of::<protocol::Config>() == 8 + 6 * 4);

/// The descriptor of the message that waits at `socket`.
pub(crate) fn receive_fd(socket: BorrowedFd<'_>) -> Result<OwnedFd, crate::Error> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(socket, &mut [io::IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT)
        .map_err(|error| crate::Error::setup("receive a descriptor", error))?;
    control
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        })
        .ok_or(crate::Error::Ended { during: "a descriptor was to be handed over" })
}
