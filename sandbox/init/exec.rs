//! One request: receive it, start its program in a vfork-like child, answer.

use crate::arch::{self, nr, syscall};
use crate::protocol::{self, Descriptor, FAILED, FDS_MAX, Reply, Request, Rlimit, SOCKET_FD, STARTED, step};
use crate::reap::{Iovec, Msghdr, answer};
use crate::{Init, OneThread, check, exit, prctl, set_capabilities};

const CLONE_VM: usize = 0x100;
const CLONE_PIDFD: usize = 0x1000;
const CLONE_VFORK: usize = 0x4000;
const SIGCHLD: usize = 17;
const CLOSE_RANGE_CLOEXEC: usize = 4;
const F_DUPFD_CLOEXEC: usize = 1030;
const MSG_CTRUNC: i32 = 8;
const MSG_CMSG_CLOEXEC: usize = 0x4000_0000;
const MAP_FIXED_PRIVATE: usize = 0x12;
const MAP_ANONYMOUS: usize = 0x20;
const PROT_READ: usize = 1;
const PROT_WRITE: usize = 2;
const O_PATH: usize = 0x20_0000;
const O_DIRECTORY: usize = 0x1_0000;
const AT_FDCWD: usize = -100isize as usize;
const PR_CAP_AMBIENT: usize = 47;
const PR_CAP_AMBIENT_RAISE: usize = 2;
const ENOENT: i32 = 2;
const EAGAIN: i32 = 11;
const EACCES: i32 = 13;
const ENOTDIR: i32 = 20;
const EISDIR: i32 = 21;
const EMFILE: i32 = 24;

/// The stack of the child between clone and execve.
#[repr(C, align(16))]
pub(crate) struct Stack([u8; 14 << 10]);

impl Stack {
    pub(crate) const fn new() -> Self {
        Self([0; 14 << 10])
    }
}

/// Control data of a request: the header of `SCM_RIGHTS`, then the descriptors.
#[repr(C, align(8))]
struct Control {
    length: usize,
    level: i32,
    kind: i32,
    fds: [i32; FDS_MAX + 1],
}

/// What the child is told, and where it says what failed. It shares our memory and we sleep until it is gone.
struct Start<'a> {
    request: &'a Request,
    fds: &'a [i32],
    drop_capabilities: bool,
    failure: Option<(u32, i32, u32)>,
}

/// Serves one message; false at the end of file.
#[inline(never)] // its kilobytes are not to be part of main's frame, which is there at rest
pub(crate) fn serve(init: &mut Init) -> bool {
    let mut control = Control { length: 0, level: 0, kind: 0, fds: [-1; FDS_MAX + 1] };
    let Some(count) = receive(&mut control) else { return false };
    let fds = control.fds.get(..count).unwrap_or_default();
    // SAFETY: `receive` filled at least a whole header; it is plain data.
    let head = unsafe { *(protocol::REQUEST_BASE as *const Request) };
    if head.flags & protocol::KILL != 0 {
        kill(init, head);
        return true;
    }
    let reply = Reply { kind: FAILED, serial: head.serial, ..Reply::default() };
    if let Err((step, errno, detail)) = start(init, head, fds) {
        answer(&Reply { step, errno, detail, ..reply }, None);
    }
    fds.iter().for_each(|&fd| close(fd));
    if head.flags & protocol::IN_MEMFD != 0 && map_inline().is_err() {
        return false;
    }
    true
}

fn start(init: &mut Init, head: Request, fds: &[i32]) -> Result<(), (u32, i32, u32)> {
    let mut passed = fds.len();
    if head.flags & protocol::IN_MEMFD != 0 {
        let Some((&memfd, rest)) = fds.split_last() else { return Err((step::PASS_FDS, EMFILE, 0)) };
        passed = rest.len();
        map(head.length as usize, MAP_FIXED_PRIVATE, memfd).map_err(|errno| (step::MAP_REQUEST, errno, 0))?;
    }
    // SAFETY: a whole request lies at the base, by message or by mapping; the host program wrote it for this address.
    let request = unsafe { &*(protocol::REQUEST_BASE as *const Request) };
    if request.fd_count as usize != passed {
        return Err((step::PASS_FDS, EMFILE, 0));
    }
    if init.programs.is_full() {
        return Err((step::TOO_MANY, EAGAIN, 0));
    }
    let mut start = Start {
        request,
        fds: fds.get(..passed).unwrap_or_default(),
        drop_capabilities: init.config.flags & protocol::DROP_CAPABILITIES != 0,
        failure: None,
    };
    let top = init.stack.get() as usize + size_of::<Stack>();
    let mut pidfd = -1;
    let notify = head.flags & protocol::NOTIFY_STARTED != 0;
    let flags = CLONE_VM | CLONE_VFORK | SIGCHLD | if notify { CLONE_PIDFD } else { 0 };
    // SAFETY: vfork-like, on a stack of its own that outlives the child's use of it; `child` never returns.
    let pid = unsafe { arch::clone(flags, top, &raw mut pidfd, child, &raw mut start as usize) };
    if pid < 0 {
        return Err((step::CLONE, -(pid as i32), 0));
    }
    // SAFETY: the child wrote it through the pointer that the compiler does not see used.
    if let Some(failure) = unsafe { (&raw const start.failure).read_volatile() } {
        // SAFETY: no status is asked for.
        unsafe { syscall(nr::WAIT4, [pid as usize, 0, 0x4000_0000, 0, 0, 0]) };
        close(pidfd);
        return Err(failure);
    }
    init.programs.add(pid as i32, head.serial);
    if notify {
        let reply = Reply { kind: STARTED, serial: head.serial, detail: pid as u32, ..Reply::default() };
        answer(&reply, Some(pidfd));
        close(pidfd);
    }
    Ok(())
}

/// Kills the program of the request with this serial number, if it still runs.
///
/// Init has no capability for that, so it takes the program's user id as its real one meanwhile. Whoever traces init or
/// changes its limits would need all three ids of it.
fn kill(init: &Init, head: Request) {
    const SIGKILL: usize = 9;
    const SAME: usize = usize::MAX;
    let Some(pid) = init.programs.pid_of(head.serial) else { return };
    // SAFETY: takes nothing.
    let own = unsafe { syscall(nr::GETUID, [0; 6]) };
    // SAFETY: numbers only.
    unsafe { syscall(nr::SETRESUID, [head.uid as usize, SAME, SAME, 0, 0, 0]) };
    // SAFETY: numbers only. The number is that of a child that we have not reaped, so of no other process.
    unsafe { syscall(nr::KILL, [pid as usize, SIGKILL, 0, 0, 0, 0]) };
    // SAFETY: numbers only.
    unsafe { syscall(nr::SETRESUID, [own as usize, SAME, SAME, 0, 0, 0]) };
}

/// Receives one message at the request's address; how many descriptors came along, or nothing at the end of file.
fn receive(control: &mut Control) -> Option<usize> {
    let iov = Iovec { base: protocol::REQUEST_BASE as usize, length: protocol::INLINE_MAX };
    let (iov_at, control_at) = (&raw const iov as usize, &raw mut *control as usize);
    let control_length = size_of::<Control>();
    let mut message =
        Msghdr { name: 0, name_length: 0, iov: iov_at, iov_length: 1, control: control_at, control_length, flags: 0 };
    let args = [SOCKET_FD as usize, &raw mut message as usize, MSG_CMSG_CLOEXEC, 0, 0, 0];
    // SAFETY: the base is mapped for INLINE_MAX bytes, the control buffer is ours.
    let read = unsafe { syscall(nr::RECVMSG, args) };
    if read < size_of::<Request>() as isize {
        return None;
    }
    let received = if message.control_length < 16 { 0 } else { (control.length - 16) / 4 };
    if message.flags & MSG_CTRUNC == 0 {
        return Some(received);
    }
    // Some did not fit into our table, and which is the last one is not known: none is used, so the request is refused.
    control.fds.iter().take(received).for_each(|&fd| close(fd));
    Some(0)
}

/// Maps fresh memory for requests that come inside their message.
pub(crate) fn map_inline() -> Result<(), i32> {
    map(protocol::INLINE_MAX, MAP_FIXED_PRIVATE | MAP_ANONYMOUS, -1)
}

fn map(length: usize, flags: usize, fd: i32) -> Result<(), i32> {
    let args = [protocol::REQUEST_BASE as usize, length, PROT_READ | PROT_WRITE, flags, fd as usize, 0];
    // SAFETY: the address range is used for requests only, and none is being looked at.
    check(unsafe { syscall(nr::MMAP, args) })
}

/// The child's half: from clone to execve, in our memory, on its own stack. It never returns.
unsafe extern "C" fn child(start: usize) -> ! {
    // SAFETY: the parent passed a pointer to its `Start` and sleeps until we are gone.
    let start = unsafe { &mut *(start as *mut Start) };
    let failure = become_program(start);
    start.failure = Some(failure);
    exit(127)
}

fn become_program(start: &Start) -> (u32, i32, u32) {
    match prepare(start) {
        Ok(()) => execute(start.request),
        Err(failure) => failure,
    }
}

fn prepare(start: &Start) -> Result<(), (u32, i32, u32)> {
    let request = start.request;
    place_fds(start)?;
    for limit in array::<Rlimit>(request.rlimits, request.rlimit_count) {
        let args = [0, limit.resource as usize, &raw const limit.soft as usize, 0, 0, 0];
        // SAFETY: soft and hard are the two words of a struct rlimit64.
        check(unsafe { syscall(nr::PRLIMIT64, args) }).map_err(|errno| (step::SET_LIMIT, errno, limit.resource))?;
    }
    // The process group is its own, so that a signal to it reaches no other program.
    // SAFETY: numbers only; a fresh child in the session of its parent may.
    unsafe { syscall(nr::SETPGID, [0; 6]) };
    take_uid(request)?;
    if start.drop_capabilities {
        set_capabilities(request.capabilities, request.capabilities)
            .and_then(|()| raise_ambient(request.capabilities))
            .map_err(|errno| (step::SET_CAPABILITIES, errno, 0))?;
    }
    if request.directory != 0 {
        // SAFETY: a NUL-terminated string of the request.
        check(unsafe { syscall(nr::CHDIR, [request.directory as usize, 0, 0, 0, 0, 0]) })
            .map_err(|errno| (step::DIRECTORY, errno, 0))?;
    }
    let mask = 0u64;
    // SAFETY: 8 bytes of a signal set; 2 is SIG_SETMASK.
    unsafe { syscall(nr::RT_SIGPROCMASK, [2, &raw const mask as usize, 0, 8, 0, 0]) };
    Ok(())
}

/// Gives the passed descriptors the numbers that were asked for; every other one closes at execve.
fn place_fds(start: &Start) -> Result<(), (u32, i32, u32)> {
    let places = array::<Descriptor>(start.request.places, start.request.place_count);
    let above = places.last().map_or(0, |last| last.number + 1);
    // A copy: the parent closes its own descriptors by the numbers that it has.
    let mut fds = [-1; FDS_MAX];
    for (fd, &received) in fds.iter_mut().zip(start.fds) {
        *fd = received;
        if *fd < above {
            // SAFETY: numbers only.
            let moved = unsafe { syscall(nr::FCNTL, [*fd as usize, F_DUPFD_CLOEXEC, above as usize, 0, 0, 0]) };
            check(moved).map_err(|errno| (step::PLACE_FD, errno, received as u32))?;
            *fd = moved as i32;
        }
    }
    // SAFETY: numbers only.
    let marked = unsafe { syscall(nr::CLOSE_RANGE, [0, u32::MAX as usize, CLOSE_RANGE_CLOEXEC, 0, 0, 0]) } == 0;
    for &Descriptor { number, passed } in places {
        let fd = fds.get(passed as usize).copied().unwrap_or(-1);
        // SAFETY: numbers only.
        check(unsafe { syscall(nr::DUP3, [fd as usize, number as usize, 0, 0, 0, 0]) })
            .map_err(|errno| (step::PLACE_FD, errno, number as u32))?;
    }
    if !marked {
        // Before 5.11: close what lies between and above the wanted numbers.
        let mut from = 0;
        for &Descriptor { number, .. } in places {
            if from < number {
                close_range(from, number - 1).map_err(|errno| (step::PLACE_FD, errno, number as u32))?;
            }
            from = number + 1;
        }
        close_range(from, -1).map_err(|errno| (step::PLACE_FD, errno, from as u32))?;
    }
    Ok(())
}

fn close_range(first: i32, last: i32) -> Result<(), i32> {
    // SAFETY: numbers only.
    check(unsafe { syscall(nr::CLOSE_RANGE, [first as usize, last as u32 as usize, 0, 0, 0, 0]) })
}

/// The groups are init's already: the program's own, and no supplementary ones but where it may not drop the caller's.
fn take_uid(request: &Request) -> Result<(), (u32, i32, u32)> {
    let uid = request.uid as usize;
    // SAFETY: numbers only.
    check(unsafe { syscall(nr::SETRESUID, [uid, uid, uid, 0, 0, 0]) }).map_err(|errno| (step::SET_UID, errno, 0))
}

fn raise_ambient(capabilities: u64) -> Result<(), i32> {
    for capability in 0..64 {
        if capabilities & (1 << capability) != 0 {
            prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability)?;
        }
    }
    Ok(())
}

/// Tries the paths in their order, as execvp(3) does. Returns only on failure.
fn execute(request: &Request) -> (u32, i32, u32) {
    let mut denied = None;
    let mut last = (step::EXECUTE, ENOENT, 0);
    for (index, path) in addresses(request.paths).enumerate() {
        let args = [path as usize, request.argv as usize, request.envp as usize, 0, 0, 0];
        // SAFETY: strings and NULL-terminated arrays of the request.
        let errno = -(unsafe { syscall(nr::EXECVE, args) } as i32);
        // The index counts from 1; 0 says that no path was there at all.
        let detail = index as u32 + 1;
        last = match errno {
            // The file is there, so what is missing is its interpreter.
            ENOENT if exists(path, 0) => return (step::EXECUTE, errno, detail | protocol::INTERPRETER_MISSING),
            ENOENT | ENOTDIR => (step::EXECUTE, errno, last.2),
            EACCES if exists(path, O_DIRECTORY) => {
                denied = denied.or(Some((step::EXECUTE, EISDIR, detail)));
                continue;
            }
            EACCES => {
                denied = denied.or(Some((step::EXECUTE, errno, detail)));
                continue;
            }
            _ => return (step::EXECUTE, errno, detail),
        };
    }
    denied.unwrap_or(last)
}

fn exists(path: u64, flags: usize) -> bool {
    // SAFETY: a NUL-terminated string of the request.
    let fd = unsafe { syscall(nr::OPENAT, [AT_FDCWD, path as usize, O_PATH | flags, 0, 0, 0]) };
    if fd >= 0 {
        close(fd as i32);
    }
    fd >= 0
}

fn close(fd: i32) {
    if fd >= 0 {
        // SAFETY: a descriptor of ours that nothing uses any more.
        unsafe { syscall(nr::CLOSE, [fd as usize, 0, 0, 0, 0, 0]) };
    }
}

/// The `count` values of an array of the request.
fn array<T>(address: u64, count: u32) -> &'static [T] {
    if count == 0 {
        return &[];
    }
    // SAFETY: the host program laid `count` aligned values out at this address of the request.
    unsafe { core::slice::from_raw_parts(address as *const T, count as usize) }
}

/// The addresses of an array of the request that ends with 0.
fn addresses(array: u64) -> impl Iterator<Item = u64> {
    let mut next = array as *const u64;
    core::iter::from_fn(move || {
        // SAFETY: the array ends with 0, and nothing is read behind it.
        let address = unsafe { next.read() };
        // SAFETY: not past the end, since 0 was not reached.
        next = unsafe { next.add(1) };
        (address != 0).then_some(address)
    })
}
