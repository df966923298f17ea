//! What the door does with what an earlier start has left in the record: prompts are run again, answers are published
//! again, answers that were delivered are kept for those who ask again.

use std::time::{Duration, Instant};

use tracing::{error, info};

use super::door::{Door, REFUSAL_WANTED};
use super::ledger::{KEEP, Key};
use super::outbox::Owner;
use super::outcome::ANSWER_WANTED;
use super::reply;
use super::shelf::{StoredAnswer, StoredPrompt};
use crate::record::{Item, Stage, unix_ms};
use crate::request::{Code, Refusal};

impl Door {
    /// Takes up what is left, in the order in which it came.
    pub(super) fn restore(&mut self, items: Vec<Item>, now: Instant) {
        let (mut again, mut answers) = (0, 0);
        for item in items {
            let (wall, recorded) = (unix_ms(), item.number);
            let done = match item.stage {
                Stage::Accepted => self.run_again(item, wall, now).map(|()| again += 1),
                Stage::Answered => self.publish_again(item, wall, now).map(|()| answers += 1),
                Stage::Delivered => self.keep_on(item, wall, now),
            };
            if let Err(Unusable(reason)) = done {
                if let Some(reason) = reason {
                    error!(number = recorded, reason, "a row of the record cannot be used");
                }
                self.shelf.drop_row(recorded);
            }
        }
        if again + answers > 0 {
            info!(
                again,
                answers, "the record has prompts that are run and answers that are published again"
            );
        }
    }

    fn run_again(&mut self, mut item: Item, wall: u64, now: Instant) -> Result<(), Unusable> {
        let stored: StoredPrompt = read(&item)?;
        item.attempts = item.attempts.saturating_add(1);
        let left = item.left(wall);
        let (wanted, submission, named) = stored.restore(&item, left, now);
        let key = self.unknown_key(&item, named)?;
        let number = self.ledger.open(key, None, wanted.id.clone());
        self.ledger.safe(number);
        self.shelf.restored(number, item, named);
        self.shelf.count_replay();
        if left == Some(Duration::ZERO) {
            let refusal =
                Refusal::new(Code::Timeout, "the deadline passed while promptd was not running");
            let message = reply::refusal(&wanted.to, wanted.form, wanted.id.as_deref(), &refusal);
            self.answer(number, vec![message], false, now + ANSWER_WANTED);
        } else {
            self.spawn(number, wanted, submission, (true, None));
        }
        Ok(())
    }

    fn publish_again(&mut self, item: Item, wall: u64, now: Instant) -> Result<(), Unusable> {
        let stored: StoredAnswer = read(&item)?;
        let key = self.unknown_key(&item, stored.named)?;
        let number = self.ledger.open(key, None, None);
        self.ledger.safe(number);
        let until = now + item.left(wall).unwrap_or(REFUSAL_WANTED);
        let messages = stored.messages();
        self.shelf.restored(number, item, stored.named);
        self.ledger.answering(number, messages.clone(), stored.ok);
        for message in messages {
            self.outbox.push(Owner::Answer(number), message, Some(until));
        }
        Ok(())
    }

    fn keep_on(&mut self, item: Item, wall: u64, now: Instant) -> Result<(), Unusable> {
        let left = item.left(wall).unwrap_or_default();
        if left.is_zero() {
            return Err(Unusable(None));
        }
        let stored: StoredAnswer = read(&item)?;
        let key = self.unknown_key(&item, stored.named)?;
        let at = now.checked_sub(KEEP.saturating_sub(left)).unwrap_or(now);
        let number = self.ledger.keep_on(key, stored.messages(), stored.ok, at);
        self.shelf.restored(number, item, stored.named);
        Ok(())
    }

    /// The key of a row, unless the same prompt has come meanwhile.
    fn unknown_key(&self, item: &Item, named: bool) -> Result<Key, Unusable> {
        let key = Key::known(item.key, named);
        if named && self.ledger.has(&key) { Err(Unusable(None)) } else { Ok(key) }
    }
}

/// A row that is dropped, and why, where that is news.
struct Unusable(Option<String>);

fn read<T: serde::de::DeserializeOwned>(item: &Item) -> Result<T, Unusable> {
    serde_json::from_slice(&item.data).map_err(|error| Unusable(Some(error.to_string())))
}
