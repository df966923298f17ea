//! What the engine has said and the service has not read yet. Bounded however slowly the service reads: progress replaces
//! progress and text is added to text, so that each prompt has at most one of each in here.
//!
//! As long as the service keeps up, whoever speaks writes by itself: another thread that is woken for it costs more time than the
//! writing. What the socket does not take at once is the writer's, and nobody else waits for the service.

use std::collections::VecDeque;
use std::os::unix::net::UnixStream;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::net::{SendFlags, send};

use super::frames::{self, FromEngine};
use crate::request::{Event, PromptId};

/// Frames that wait to be written. Prompts and checks under way have a few each; a service that keeps to the slots and
/// its queue limit never comes near. Beyond it the model waits for the service.
const LIMIT: usize = 1024;

/// The frames between the threads that speak and the thread that writes.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    state: Mutex<State>,
    changed: Condvar,
    /// The way to the service; without one everything is the writer's.
    socket: Option<UnixStream>,
}

/// What the writer has to write next.
#[derive(Debug, PartialEq)]
pub(super) enum Next {
    /// The rest of what the socket took a part of.
    Rest(Vec<u8>),
    /// A frame.
    Frame(FromEngine),
}

#[derive(Debug, Default)]
struct State {
    frames: VecDeque<FromEngine>,
    /// What comes before them, because its beginning is with the service.
    rest: Vec<u8>,
    /// The writer has taken a frame and is not back for the next.
    writing: bool,
    /// Nothing more is taken; what is there is still written.
    closed: bool,
}

impl Outbox {
    /// One whose frames go to this socket.
    pub(super) fn to(socket: UnixStream) -> Self {
        Outbox { socket: Some(socket), ..Outbox::default() }
    }

    /// Puts a frame in line. Waits only while the line is at its limit. After [`Outbox::close`] it is dropped.
    pub(super) fn push(&self, frame: FromEngine) {
        let mut state = self.lock();
        while state.frames.len() >= LIMIT && !state.closed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.closed {
            return;
        }
        let taken = match &self.socket {
            Some(socket) if state.is_written() => state.write(socket, &frame),
            _ => false,
        };
        if !taken {
            state.put(frame);
        }
        if !state.is_written() {
            self.changed.notify_all();
        }
    }

    /// Puts a frame in line and waits until it is written: for what must be known of a process that may die at once.
    pub(super) fn say(&self, frame: FromEngine) {
        self.push(frame);
        let mut state = self.lock();
        while !state.is_written() && !state.closed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The next thing to write. Waits for one; `None` when there is none and no more will come.
    pub(super) fn next(&self) -> Option<Next> {
        let mut state = self.lock();
        state.writing = false;
        self.changed.notify_all();
        loop {
            let rest = std::mem::take(&mut state.rest);
            let next = if rest.is_empty() {
                state.frames.pop_front().map(Next::Frame)
            } else {
                Some(Next::Rest(rest))
            };
            if next.is_some() {
                state.writing = true;
                return next;
            }
            if state.closed {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes no more frames; the writer ends behind the last.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Waits until the writer has written everything, but not longer than this.
    pub(super) fn wait_written(&self, patience: Duration) {
        let unwritten = |state: &mut State| !state.is_written();
        drop(self.changed.wait_timeout_while(self.lock(), patience, unwritten));
    }

    /// Forgets everything: nobody reads any more.
    pub(super) fn abandon(&self) {
        let mut state = self.lock();
        state.frames.clear();
        state.rest.clear();
        state.writing = false;
        state.closed = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether the socket has everything.
    fn is_written(&self) -> bool {
        !self.writing && self.rest.is_empty() && self.frames.is_empty()
    }

    /// Gives the socket what it takes of this frame at once; the rest is the writer's. `false`: it takes nothing, or there is
    /// something wrong, which the writer will find as well.
    fn write(&mut self, socket: &UnixStream, frame: &FromEngine) -> bool {
        let Ok(mut bytes) = frames::encode(frame) else { return false };
        match send(socket, &bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(written) => {
                self.rest = bytes.split_off(written.min(bytes.len()));
                true
            }
            Err(_) => false,
        }
    }

    fn put(&mut self, frame: FromEngine) {
        let frame = match frame {
            FromEngine::Event { id, event } => match self.last_of(id) {
                Some(last) => match merge(last, event) {
                    Some(event) => FromEngine::Event { id, event },
                    None => return,
                },
                None => FromEngine::Event { id, event },
            },
            FromEngine::Heartbeat if self.frames.contains(&FromEngine::Heartbeat) => return,
            other => other,
        };
        self.frames.push_back(frame);
    }

    /// The last event of a prompt that is still here.
    fn last_of(&mut self, id: PromptId) -> Option<&mut Event> {
        self.frames.iter_mut().rev().find_map(|frame| match frame {
            FromEngine::Event { id: other, event } if *other == id => Some(event),
            _ => None,
        })
    }
}

/// Makes one event of two where that loses nothing; otherwise gives the second back.
fn merge(last: &mut Event, next: Event) -> Option<Event> {
    match (last, next) {
        (Event::Prefill { done, total }, Event::Prefill { done: now, total: of }) => {
            (*done, *total) = (now, of);
            None
        }
        (
            Event::Delta { text, tokens, logprobs },
            Event::Delta { text: more, tokens: others, logprobs: further },
        ) => {
            text.push_str(&more);
            tokens.extend(others);
            logprobs.extend(further);
            None
        }
        (_, next) => Some(next),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delta(id: u64, text: &str, token: u32) -> FromEngine {
        FromEngine::Event {
            id: PromptId(id),
            event: Event::Delta { text: text.to_owned(), tokens: vec![token], logprobs: vec![] },
        }
    }

    fn prefill(id: u64, done: u32) -> FromEngine {
        FromEngine::Event { id: PromptId(id), event: Event::Prefill { done, total: 9 } }
    }

    #[test]
    fn what_is_not_read_yet_is_merged_for_each_prompt() {
        let outbox = Outbox::default();
        let said = [
            prefill(1, 4),
            prefill(1, 9),
            prefill(2, 3),
            delta(1, "a", 10),
            FromEngine::Heartbeat,
            delta(2, "x", 20),
            delta(1, "b", 11),
            FromEngine::Heartbeat,
            delta(1, "c", 12),
        ];
        for frame in said {
            outbox.push(frame);
        }
        outbox.close();
        let merged =
            Event::Delta { text: "abc".to_owned(), tokens: vec![10, 11, 12], logprobs: vec![] };
        let expected = [
            prefill(1, 9),
            prefill(2, 3),
            FromEngine::Event { id: PromptId(1), event: merged },
            FromEngine::Heartbeat,
            delta(2, "x", 20),
        ]
        .map(Next::Frame);
        let read: Vec<_> = std::iter::from_fn(|| outbox.next()).collect();
        assert_eq!(read, expected);
    }

    #[test]
    fn a_frame_that_is_being_written_is_never_changed() {
        let outbox = Outbox::default();
        outbox.push(delta(1, "a", 10));
        assert_eq!(outbox.next(), Some(Next::Frame(delta(1, "a", 10))));
        outbox.push(delta(1, "b", 11));
        assert_eq!(outbox.next(), Some(Next::Frame(delta(1, "b", 11))));
    }

    #[test]
    fn what_the_socket_does_not_take_at_once_comes_behind_it_and_whole() {
        use std::io::Read as _;

        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let outbox = Outbox::to(ours);
        let piece = "some text ".repeat(1000);
        let (mut said, mut expected) = (0, Vec::new());
        // Nobody reads, and each is of a prompt of its own, so that none is merged.
        while outbox.lock().frames.len() < 3 {
            let frame = delta(said, &piece, 1);
            expected.extend(frames::encode(&frame).unwrap());
            outbox.push(frame);
            said += 1;
        }
        outbox.close();
        let reader = std::thread::Builder::new().spawn(move || {
            let mut read = Vec::new();
            theirs.read_to_end(&mut read).unwrap();
            read
        });
        while let Some(next) = outbox.next() {
            let bytes = match next {
                Next::Rest(bytes) => bytes,
                Next::Frame(frame) => frames::encode(&frame).unwrap(),
            };
            std::io::Write::write_all(&mut outbox.socket.as_ref().unwrap(), &bytes).unwrap();
        }
        assert!(outbox.lock().is_written());
        drop(outbox);
        assert!(reader.unwrap().join().unwrap() == expected, "all bytes, in order");
    }

    #[test]
    fn after_the_end_nothing_waits() {
        let outbox = Outbox::default();
        (0..LIMIT).for_each(|check| {
            let result = Err(crate::request::Refusal::bad_request("no"));
            outbox.push(FromEngine::Checked { check: u64::try_from(check).unwrap(), result });
        });
        outbox.abandon();
        outbox.say(delta(1, "a", 1));
        assert_eq!(outbox.next(), None);
    }
}
