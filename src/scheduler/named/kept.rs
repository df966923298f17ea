//! Answers that are kept for those who ask again: bounded in time, number and bytes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Facts, Key};
use crate::request::{Event, Finish, TokenLogprob};
use crate::scheduler::ticket::{Returns, Ticket};

/// How long an answer is kept: as long as over MQTT.
pub(super) const KEEP: Duration = Duration::from_mins(5);
/// The most answers kept, and the most bytes of them: a usual answer has some hundred bytes, and who asks again does so
/// within seconds.
const MAX_KEPT: usize = 256;
const MAX_KEPT_BYTES: usize = 4 << 20;

/// A whole answer.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) facts: Facts,
    pub(super) body: [u8; 32],
    pub(super) text: String,
    pub(super) tokens: Vec<u32>,
    pub(super) logprobs: Vec<TokenLogprob>,
    pub(super) finish: Finish,
}

impl Answer {
    /// A ticket that has the answer in it.
    pub(super) fn ticket(&self) -> Ticket {
        let (outlet, ticket) = self.facts.ticket(&Arc::new(Returns::default()), true);
        let (text, tokens, logprobs) =
            (self.text.clone(), self.tokens.clone(), self.logprobs.clone());
        outlet.deliver(Event::Delta { text, tokens, logprobs });
        outlet.deliver(Event::Finished(self.finish.clone()));
        ticket
    }

    fn weight(&self) -> usize {
        let logprobs: usize = self
            .logprobs
            .iter()
            // Of each candidate its text and its bytes, a few characters, stand somewhere else.
            .map(|token| size_of_val(token) + token.top.len() * (size_of_val(&token.chosen) + 32))
            .sum();
        size_of::<Answer>() + self.text.len() + 4 * self.tokens.len() + logprobs
    }
}

#[derive(Debug)]
struct One {
    key: Key,
    at: Instant,
    weight: usize,
    answer: Answer,
}

/// The answers, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Kept {
    answers: VecDeque<One>,
    bytes: usize,
}

impl Kept {
    pub(super) fn find(&self, key: &Key) -> Option<&Answer> {
        self.answers.iter().find(|one| one.key == *key).map(|one| &one.answer)
    }

    /// Keeps an answer that was whole at `at`. Gives the numbers of those that had to give way.
    pub(super) fn keep(&mut self, key: Key, answer: Answer, at: Instant) -> Vec<u64> {
        let weight = answer.weight();
        self.bytes += weight;
        // What an earlier start has left comes in the order of its acceptance, which need not be that of its end.
        let place = self.answers.partition_point(|one| one.at <= at);
        self.answers.insert(place, One { key, at, weight, answer });
        let mut forgotten = Vec::new();
        while self.answers.len() > MAX_KEPT || self.bytes > MAX_KEPT_BYTES {
            forgotten.extend(self.forget_oldest());
        }
        forgotten
    }

    /// Forgets what is older than the window: the numbers.
    pub(super) fn forget(&mut self, now: Instant) -> Vec<u64> {
        let mut forgotten = Vec::new();
        while self.next_end().is_some_and(|end| end <= now) {
            forgotten.extend(self.forget_oldest());
        }
        forgotten
    }

    /// When the oldest is to be forgotten.
    pub(super) fn next_end(&self) -> Option<Instant> {
        self.answers.front().map(|one| one.at + KEEP)
    }

    fn forget_oldest(&mut self) -> Option<u64> {
        let one = self.answers.pop_front()?;
        self.bytes -= one.weight;
        Some(one.answer.facts.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::frames::CheckedPrompt;
    use crate::request::{FinishReason, PromptId, Timings, Usage};

    fn answer(number: u64, text: String) -> Answer {
        let checked = CheckedPrompt { prompt_tokens: 1, max_tokens: 1, calls: None };
        let id = PromptId(number);
        let facts = Facts { id, number, attempt: 1, seed: 0, checked, session: None };
        let finish = Finish {
            reason: FinishReason::Stop,
            usage: Usage::default(),
            timings: Timings::default(),
            seed: 0,
        };
        let (tokens, logprobs) = (Vec::new(), Vec::new());
        Answer { facts, body: [0; 32], text, tokens, logprobs, finish }
    }

    fn key(number: u64) -> Key {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&number.to_le_bytes());
        key
    }

    #[tokio::test(start_paused = true)]
    async fn the_window_is_bounded_in_time_number_and_bytes() {
        let (mut kept, now) = (Kept::default(), Instant::now());
        for number in 0..300 {
            let gone = kept.keep(key(number), answer(number, "x".into()), now);
            assert!(gone.len() <= 1 && kept.answers.len() <= MAX_KEPT);
        }
        assert!(kept.find(&key(43)).is_none() && kept.find(&key(44)).is_some());
        let big = answer(1000, "x".repeat(MAX_KEPT_BYTES - size_of::<Answer>()));
        kept.keep(key(1000), big, now);
        assert!(kept.bytes <= MAX_KEPT_BYTES);
        assert!(kept.find(&key(1000)).is_some() && kept.find(&key(299)).is_none());
        assert_eq!(kept.keep(key(1), answer(1, "y".into()), now), [1000]);
        assert!(kept.keep(key(2), answer(2, "y".into()), now + KEEP / 2).is_empty());
        assert_eq!(kept.forget(now + KEEP), [1]);
        assert!(kept.forget(now + KEEP).is_empty());
        assert_eq!(kept.forget(now + 2 * KEEP), [2]);
        assert_eq!((kept.bytes, kept.next_end()), (0, None));
    }
}
