//! The socket to one init: requests out, replies in, whoever reads them.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage};
use rustix::net::{SendFlags, recvmsg, sendmsg};

use super::protocol::{self, Reply};
use crate::Error;

/// A reply, and the descriptor that came along.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) reply: Reply,
    pub(crate) fd: Option<OwnedFd>,
}

/// Our end of the socket.
///
/// Several threads may wait for replies to their own requests: one of them reads, and puts what is not its own where
/// the others find it.
#[derive(Debug)]
pub(crate) struct Handle {
    socket: OwnedFd,
    inbox: Mutex<Inbox>,
    arrived: Condvar,
}

#[derive(Debug, Default)]
struct Inbox {
    answers: Vec<Answer>,
    /// Requests whose ends nobody waits for.
    abandoned: Vec<u32>,
    /// Some thread is reading the socket.
    reading: bool,
    /// Threads that sleep until it has read something.
    sleeping: usize,
    /// Init is gone.
    ended: bool,
}

impl Inbox {
    fn take_in(&mut self, answer: Answer) {
        match self.abandoned.iter().position(|serial| *serial == answer.reply.serial) {
            // An exit is the last that is heard of a request.
            Some(at) if answer.reply.kind == protocol::EXITED => drop(self.abandoned.swap_remove(at)),
            Some(_) => {}
            None => self.answers.push(answer),
        }
    }
}

/// What a wait for a reply came to.
#[derive(Debug)]
pub(crate) enum Waited {
    Answer(Answer),
    TimedOut,
    /// Init is gone, and no reply will come.
    Ended,
}

impl Handle {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self { socket, inbox: Mutex::new(Inbox::default()), arrived: Condvar::new() }
    }

    /// Readable when a reply, or the end, is there.
    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Nobody will ask for the replies to `serial` any more.
    pub(crate) fn abandon(&self, serial: u32) {
        let mut inbox = self.lock();
        let ended = |answer: &Answer| answer.reply.serial == serial && answer.reply.kind == protocol::EXITED;
        if !inbox.answers.iter().any(ended) {
            inbox.abandoned.push(serial);
        }
        inbox.answers.retain(|answer| answer.reply.serial != serial);
    }

    /// Sends a message with descriptors.
    pub(crate) fn send(&self, message: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        send(self.socket.as_fd(), message, fds).map_err(|error| match error {
            Errno::PIPE | Errno::CONNRESET => Error::Ended { during: "a program was to be started" },
            error => Error::setup("send a request to init", error),
        })
    }

    /// Waits for a reply to the request `serial`, or one that concerns init itself (serial 0), until `deadline`.
    pub(crate) fn wait(&self, serial: u32, deadline: Option<Instant>) -> Result<Waited, Error> {
        let mut inbox = self.lock();
        loop {
            let wanted = |answer: &Answer| answer.reply.serial == serial || answer.reply.kind == protocol::BROKEN;
            if let Some(found) = inbox.answers.iter().position(wanted) {
                return Ok(Waited::Answer(inbox.answers.remove(found)));
            }
            if inbox.ended {
                return Ok(Waited::Ended);
            }
            if inbox.reading {
                let Some(left) = left(deadline) else { return Ok(Waited::TimedOut) };
                inbox.sleeping += 1;
                inbox = match left {
                    None => self.arrived.wait(inbox).unwrap_or_else(PoisonError::into_inner),
                    Some(left) => self.arrived.wait_timeout(inbox, left).unwrap_or_else(PoisonError::into_inner).0,
                };
                inbox.sleeping -= 1;
                continue;
            }
            inbox.reading = true;
            drop(inbox);
            let received = receive_until(self.socket.as_fd(), deadline);
            inbox = self.lock();
            inbox.reading = false;
            if inbox.sleeping > 0 {
                // They look once we have let go of the inbox, and one of them reads on.
                self.arrived.notify_all();
            }
            match received? {
                Received::Answer(answer) => inbox.take_in(answer),
                Received::End => inbox.ended = true,
                Received::TimedOut => return Ok(Waited::TimedOut),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `None` when the deadline has passed, `Some(None)` when there is none.
#[allow(clippy::option_option, reason = "no deadline and none left are two things")]
fn left(deadline: Option<Instant>) -> Option<Option<std::time::Duration>> {
    match deadline {
        None => Some(None),
        Some(deadline) => deadline.checked_duration_since(Instant::now()).map(Some),
    }
}

pub(crate) fn send(socket: BorrowedFd<'_>, message: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(protocol::FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::TOOBIG);
    }
    loop {
        match sendmsg(socket, &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            result => return result.map(drop),
        }
    }
}

enum Received {
    Answer(Answer),
    End,
    TimedOut,
}

fn receive_until(socket: BorrowedFd<'_>, deadline: Option<Instant>) -> Result<Received, Error> {
    let step = |error| Error::setup("hear from init", error);
    if let Some(deadline) = deadline {
        loop {
            // When the deadline has passed, what is there already is still taken.
            let timeout = Timespec::try_from(deadline.saturating_duration_since(Instant::now())).ok();
            match rustix::event::poll(&mut [PollFd::from_borrowed_fd(socket, PollFlags::IN)], timeout.as_ref()) {
                Ok(0) => return Ok(Received::TimedOut),
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(step(error)),
            }
        }
    }
    let mut bytes = [0; size_of::<Reply>()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            // A reset, told once: init ended without reading all. What it said before is still there.
            Err(Errno::INTR | Errno::CONNRESET) => {}
            result => break result.map_err(step)?,
        }
    };
    if received.bytes < bytes.len() {
        return Ok(Received::End);
    }
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok(Received::Answer(Answer { reply: crate::sys::reply_from_bytes(&bytes), fd }))
}
