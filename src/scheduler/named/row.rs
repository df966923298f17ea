//! What stands in the record of a named prompt: the prompt until it is answered, then the answer.

use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

use super::kept::{Answer, KEEP};
use super::{Facts, Key};
use crate::engine::frames::CheckedPrompt;
use crate::record::{Door, Health, Item, Record, Stage, unix_ms};
use crate::request::{
    Again, Finish, Identity, Origin, Priority, PromptId, Quota, Request, Submission, TokenLogprob,
};
use crate::scheduler::InSession;

/// A prompt without an answer. Names may be added, none may change its meaning.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct StoredPrompt {
    pub(super) body: [u8; 32],
    identity: String,
    priority: Priority,
    session: Option<String>,
    /// The profile it names; records of older versions do not say.
    #[serde(default)]
    profile: Option<String>,
    request: Request,
}

/// An answer.
#[derive(Debug, Serialize, Deserialize)]
struct StoredAnswer {
    body: [u8; 32],
    checked: CheckedPrompt,
    session: Option<InSession>,
    text: String,
    tokens: Vec<u32>,
    logprobs: Vec<TokenLogprob>,
    finish: Finish,
}

/// A prompt's row. Nothing of it stands in the record until it is accepted.
#[derive(Debug)]
pub(super) struct Row {
    record: Record,
    item: Item,
    written: bool,
    /// An engine of this service began with it.
    begun: bool,
}

impl Row {
    /// Of a new prompt, for when it is accepted.
    pub(super) fn draft(
        record: &Record,
        (number, key, body): (u64, Key, [u8; 32]),
        submission: &Submission,
    ) -> Option<Row> {
        let stored = StoredPrompt {
            body,
            identity: submission.identity.0.clone(),
            priority: submission.priority,
            session: submission.session.clone(),
            profile: submission.profile.clone(),
            request: submission.request.clone(),
        };
        let begun = unix_ms();
        let until = submission.timeout.map_or(0, |timeout| begun.saturating_add(ms(timeout)));
        let item = Item {
            number,
            door: Door::Socket,
            stage: Stage::Accepted,
            key,
            seed: 0,
            starts: 0,
            deaths: 0,
            attempts: 1,
            begun,
            until,
            // Plain data always is JSON; if it were not, the prompt would last as long as the service.
            data: serde_json::to_vec(&stored).ok()?.into(),
        };
        Some(Row { record: record.clone(), item, written: false, begun: false })
    }

    /// Of a prompt that an earlier start accepted.
    pub(super) fn restored(record: &Record, mut item: Item) -> Row {
        item.attempts = item.attempts.saturating_add(1);
        Row { record: record.clone(), item, written: true, begun: false }
    }

    pub(super) fn attempt(&self) -> u32 {
        self.item.attempts.max(1)
    }

    /// The scheduler took it. Gives what waits until it is safe; `None` where it is already, or cannot be.
    pub(super) fn accepted(&mut self, seed: u64) -> Option<Promise> {
        self.item.seed = seed;
        let is_new = !self.written;
        let mark = self.record.put(self.item.clone(), is_new);
        self.written |= mark.is_some();
        mark.filter(|_| is_new).map(|mark| Promise { mark, health: self.record.health() })
    }

    /// An engine begins with it, and so many died while they ran it.
    pub(super) fn started(&mut self, deaths: u32) {
        let first = !std::mem::replace(&mut self.begun, true);
        self.change(|item| item.begins(first, deaths));
    }

    /// It is left to the next start; nobody died of it.
    pub(super) fn hand_back(&mut self) {
        let began = u32::from(self.begun);
        self.change(|item| item.starts = item.starts.saturating_sub(began));
    }

    /// It has its answer, which is kept.
    pub(super) fn answered(&mut self, answer: &Answer) {
        let Answer { facts, body, text, tokens, logprobs, finish } = answer;
        let stored = StoredAnswer {
            body: *body,
            checked: facts.checked,
            session: facts.session.clone(),
            text: text.clone(),
            tokens: tokens.clone(),
            logprobs: logprobs.clone(),
            finish: finish.clone(),
        };
        let Ok(data) = serde_json::to_vec(&stored) else { return };
        self.change(|item| {
            item.stage = Stage::Delivered;
            item.begun = unix_ms();
            item.until = item.begun.saturating_add(ms(KEEP));
            item.data = data.into();
        });
    }

    /// Nobody needs it any more.
    pub(super) fn forget(self) {
        if self.written {
            self.record.remove(self.item.number);
        }
    }

    fn change(&mut self, change: impl FnOnce(&mut Item)) {
        if self.written {
            change(&mut self.item);
            // Where too much waits for the disk, the older state stays there: at worst the prompt is run once more.
            let _ = self.record.put(self.item.clone(), false);
        }
    }
}

/// What has to become safe before it is promised.
#[derive(Debug)]
pub(super) struct Promise {
    mark: u64,
    health: watch::Receiver<Health>,
}

impl Promise {
    /// Waits until it is safe, or until nothing can be made safe: then the service goes on without.
    pub(super) async fn kept(&mut self) {
        let is_decided = |health: &Health| health.safe >= self.mark || health.trouble.is_some();
        // A record that is gone makes nothing safe any more.
        let _ = self.health.wait_for(is_decided).await;
    }
}

/// The prompt of a row, as the scheduler had it. `None` where it cannot be read.
pub(super) fn prompt_of(item: &Item, left: Option<Duration>) -> Option<(StoredPrompt, Submission)> {
    let mut stored: StoredPrompt = serde_json::from_slice(&item.data).ok()?;
    stored.request.sampling.seed = Some(item.seed);
    let submission = Submission {
        request: stored.request.clone(),
        identity: Identity(stored.identity.clone()),
        priority: stored.priority,
        timeout: left,
        quota: Quota::default(),
        session: stored.session.clone(),
        profile: stored.profile.clone(),
        recorded: Some(item.number),
        again: Some(Again { deaths: item.deaths, ends: item.starts }),
        // A row does not say which of the sockets it came by; nearly all that name their prompts speak HTTP.
        origin: Origin::new(crate::request::Door::Http),
    };
    Some((stored, submission))
}

/// The answer of a row, and when it was whole. `None` where it cannot be read or its time is over.
pub(super) fn answer_of(item: &Item, now: Instant) -> Option<(Answer, Instant)> {
    let left = item.left(unix_ms()).filter(|left| !left.is_zero())?;
    let stored: StoredAnswer = serde_json::from_slice(&item.data).ok()?;
    let facts = Facts {
        // No number of a prompt of this service.
        id: PromptId(item.number),
        number: item.number,
        attempt: item.attempts.max(1),
        seed: item.seed,
        checked: stored.checked,
        session: stored.session,
    };
    let StoredAnswer { body, text, tokens, logprobs, finish, .. } = stored;
    let at = now.checked_sub(KEEP.saturating_sub(left)).unwrap_or(now);
    Some((Answer { facts, body, text, tokens, logprobs, finish }, at))
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
