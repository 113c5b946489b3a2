//! Ended children: programs are reported, orphans of the namespace are just reaped.

use crate::arch::{nr, syscall};
use crate::protocol::{EXITED, PROGRAMS_MAX, Reply, SOCKET_FD};

const WNOHANG: usize = 1;
const WALL: usize = 0x4000_0000;
const ECHILD: isize = -10;
const MSG_NOSIGNAL: usize = 0x4000;
/// Ended programs that are reported together, so that the last one can say whether anything is left.
const BATCH: usize = 16;

/// The programs that run: their process ids inside, and the requests that started them.
#[repr(C)]
pub(crate) struct Programs {
    count: usize,
    /// Microseconds of CPU of all that has been reaped.
    all: (u64, u64),
    running: [Program; PROGRAMS_MAX],
}

#[derive(Clone, Copy)]
struct Program {
    pid: i32,
    serial: u32,
}

/// The head of `struct rusage`; the rest is not looked at.
#[repr(C)]
#[derive(Clone, Copy)]
struct Rusage {
    times: [u64; 4], // user seconds and microseconds, system likewise
    rest: [u64; 14],
}

impl Programs {
    pub(crate) const fn new() -> Self {
        Self { count: 0, all: (0, 0), running: [Program { pid: 0, serial: 0 }; PROGRAMS_MAX] }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.count == PROGRAMS_MAX
    }

    pub(crate) fn add(&mut self, pid: i32, serial: u32) {
        if let Some(slot) = self.running.get_mut(self.count) {
            *slot = Program { pid, serial };
            self.count += 1;
        }
    }

    /// The process that the request with this serial number started, while it is not reaped.
    pub(crate) fn pid_of(&self, serial: u32) -> Option<i32> {
        let running = self.running.get(..self.count)?;
        running.iter().find(|program| program.serial == serial).map(|program| program.pid)
    }

    fn take(&mut self, pid: i32) -> Option<u32> {
        let running = self.running.get_mut(..self.count)?;
        let last = running.last().copied()?;
        let slot = running.iter_mut().find(|program| program.pid == pid)?;
        let serial = slot.serial;
        *slot = last;
        self.count -= 1;
        Some(serial)
    }

    /// Reaps all that has ended and reports the programs among it.
    #[inline(never)] // as `exec::serve`
    pub(crate) fn reap(&mut self) {
        let mut ended = [Reply::default(); BATCH];
        let mut count = 0;
        let alone = loop {
            let mut status = 0i32;
            let mut usage = Rusage { times: [0; 4], rest: [0; 14] };
            let args = [usize::MAX, &raw mut status as usize, WNOHANG | WALL, &raw mut usage as usize, 0, 0];
            // SAFETY: both pointers are to whole objects that outlive the call.
            let pid = unsafe { syscall(nr::WAIT4, args) };
            if pid <= 0 {
                break pid == ECHILD;
            }
            let (user, system) = usage.microseconds();
            self.all = (self.all.0 + user, self.all.1 + system);
            let Some(serial) = self.take(pid as i32) else { continue };
            if count == BATCH {
                self.report(&ended, false);
                count = 0;
            }
            ended[count] = Reply { kind: EXITED, serial, status, user, system, ..Reply::default() };
            count += 1;
        };
        self.report(ended.get(..count).unwrap_or_default(), alone);
    }

    /// `alone`: after the last of them nothing is left.
    fn report(&self, ended: &[Reply], alone: bool) {
        let (all_user, all_system) = self.all;
        for (index, reply) in ended.iter().enumerate() {
            let alone = u32::from(alone && index + 1 == ended.len());
            answer(&Reply { alone, all_user, all_system, ..*reply }, None);
        }
    }
}

impl Rusage {
    fn microseconds(&self) -> (u64, u64) {
        let [user, user_micros, system, system_micros] = self.times;
        (user * 1_000_000 + user_micros, system * 1_000_000 + system_micros)
    }
}

/// An `SCM_RIGHTS` control message of one descriptor, as the kernel lays it out.
#[repr(C)]
struct OneFd {
    length: usize,
    level: i32,
    kind: i32,
    fd: i32,
    padding: i32,
}

#[repr(C)]
pub(crate) struct Iovec {
    pub(crate) base: usize,
    pub(crate) length: usize,
}

#[repr(C)]
pub(crate) struct Msghdr {
    pub(crate) name: usize,
    pub(crate) name_length: usize,
    pub(crate) iov: usize,
    pub(crate) iov_length: usize,
    pub(crate) control: usize,
    pub(crate) control_length: usize,
    pub(crate) flags: i32,
}

/// Sends one reply. Nobody listening is not an error: the end of file comes next.
pub(crate) fn answer(reply: &Reply, fd: Option<i32>) {
    let iov = Iovec { base: &raw const *reply as usize, length: size_of::<Reply>() };
    let control = OneFd { length: 20, level: 1, kind: 1, fd: fd.unwrap_or(-1), padding: 0 };
    let (at, length) = if fd.is_some() { (&raw const control as usize, 24) } else { (0, 0) };
    let iov_at = &raw const iov as usize;
    let message =
        Msghdr { name: 0, name_length: 0, iov: iov_at, iov_length: 1, control: at, control_length: length, flags: 0 };
    // SAFETY: the message points to objects that live across the call.
    unsafe { syscall(nr::SENDMSG, [SOCKET_FD as usize, &raw const message as usize, MSG_NOSIGNAL, 0, 0, 0]) };
}
