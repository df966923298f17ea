//! What the engine has said and the service has not read yet. Bounded however slowly the service reads: progress replaces
//! progress and text is added to text, so that each prompt has at most one of each in here.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::frames::FromEngine;
use crate::request::{Event, PromptId};

/// Frames that wait to be written. Prompts and checks under way have a few each; a service that keeps to the slots and
/// its queue limit never comes near. Beyond it the model waits for the service.
const LIMIT: usize = 1024;

/// The frames between the threads that speak and the thread that writes.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    frames: VecDeque<FromEngine>,
    /// The writer has taken a frame and is not back for the next.
    writing: bool,
    /// Nothing more is taken; what is there is still written.
    closed: bool,
}

impl Outbox {
    /// Puts a frame in line. Waits only while the line is at its limit. After [`Outbox::close`] it is dropped.
    pub(super) fn push(&self, frame: FromEngine) {
        let mut state = self.lock();
        while state.frames.len() >= LIMIT && !state.closed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if !state.closed {
            state.put(frame);
            self.changed.notify_all();
        }
    }

    /// Puts a frame in line and waits until it is written: for what must be known of a process that may die at once.
    pub(super) fn say(&self, frame: FromEngine) {
        self.push(frame);
        let mut state = self.lock();
        while (state.writing || !state.frames.is_empty()) && !state.closed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The next frame to write. Waits for one; `None` when there is none and no more will come.
    pub(super) fn next(&self) -> Option<FromEngine> {
        let mut state = self.lock();
        state.writing = false;
        self.changed.notify_all();
        loop {
            if let Some(frame) = state.frames.pop_front() {
                state.writing = true;
                return Some(frame);
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
        let unwritten = |state: &mut State| state.writing || !state.frames.is_empty();
        drop(self.changed.wait_timeout_while(self.lock(), patience, unwritten));
    }

    /// Forgets everything: nobody reads any more.
    pub(super) fn abandon(&self) {
        let mut state = self.lock();
        state.frames.clear();
        state.writing = false;
        state.closed = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
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
        ];
        let read: Vec<_> = std::iter::from_fn(|| outbox.next()).collect();
        assert_eq!(read, expected);
    }

    #[test]
    fn a_frame_that_is_being_written_is_never_changed() {
        let outbox = Outbox::default();
        outbox.push(delta(1, "a", 10));
        assert_eq!(outbox.next(), Some(delta(1, "a", 10)));
        outbox.push(delta(1, "b", 11));
        assert_eq!(outbox.next(), Some(delta(1, "b", 11)));
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
