//! Prompts that continue a conversation: its turns go in front, what no longer fits is dropped, the answer is kept.

use std::time::Instant;

use super::{Core, Pending};
use crate::engine::frames::CheckedPrompt;
use crate::request::{Code, Identity, Input, Refusal, Submission};
use crate::scheduler::ticket::InSession;
use crate::session::{Key, Overflow, Turn, continued, to_drop};

/// Tokens that an answer in a conversation should have room for, where it did not ask for fewer: a long conversation must
/// not leave room for half a sentence.
const ROOM: u32 = 64;

/// The conversation of a prompt.
#[derive(Debug)]
pub(super) struct Talk {
    name: String,
    /// What was asked, without the turns before.
    input: Input,
    question: String,
    /// The turns that the model reads.
    turns: Vec<Turn>,
    dropped: usize,
    /// Turns that are kept when this one is answered.
    most: usize,
    /// The record's number of the prompt.
    prompt: Option<u64>,
    /// The answer so far.
    pub(super) answer: String,
}

impl Talk {
    /// What the asker is told of it.
    pub(super) fn in_session(&self) -> InSession {
        // Its own turn takes the place of the oldest where there is none left.
        let too_many = (self.turns.len() + 1).saturating_sub(self.most);
        let dropped = self.dropped + too_many;
        InSession { name: self.name.clone(), turns: self.turns.len(), dropped }
    }
}

impl Core {
    /// Puts the turns of its conversation into a submission that names one.
    pub(super) fn talk(
        &mut self,
        submission: &mut Submission,
        now: Instant,
    ) -> Result<Option<Talk>, Refusal> {
        let Some(name) = submission.session.clone() else { return Ok(None) };
        let same = |identity: &Identity, talk: Option<&Talk>| {
            *identity == submission.identity && talk.is_some_and(|talk| talk.name == name)
        };
        let checked = self.checks.values().any(|p| same(&p.submission.identity, p.talk.as_ref()));
        if checked || self.prompts.values().any(|p| same(&p.identity, p.talk.as_ref())) {
            let message =
                "the session's last prompt is still in work; the next one continues its answer";
            return Err(Refusal::new(Code::Busy, message)
                .with_param("session")
                .with_retry_after(self.rates.retry_after(self.slots())));
        }
        let key = Key::new(&submission.identity, &name);
        let mut turns = self.sessions.turns(&key, &self.config.sessions, now);
        let prompt = submission.recorded;
        // Its answer may have been kept in the moment before the crash for which it is run again.
        if prompt.is_some() && turns.last().is_some_and(|turn| turn.prompt == prompt) {
            turns.pop();
        }
        let Some((input, question)) = continued(&submission.request.input, &turns) else {
            let message = "with `session` promptd keeps the conversation: send the new question alone, as `prompt` or as \
                           one user message, with a system message in front if there is one";
            return Err(Refusal::bad_request(message).with_param("session"));
        };
        let limits = &self.config.sessions;
        let most = limits.turns.max(1);
        // What was accepted once is not refused for want of room.
        if turns.len() >= most && limits.overflow == Overflow::Refuse && submission.again.is_none()
        {
            let message = format!(
                "the conversation of the session has {} turns, and no more than {most} are kept; begin another session",
                turns.len()
            );
            let number = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
            return Err(Refusal::new(Code::ContextLengthExceeded, message)
                .with_param("session")
                .with_limit(number(most), number(turns.len() + 1)));
        }
        let plain = std::mem::replace(&mut submission.request.input, input);
        Ok(Some(Talk {
            name,
            input: plain,
            question,
            turns,
            dropped: 0,
            most,
            prompt,
            answer: String::new(),
        }))
    }

    /// Drops the oldest turns of a conversation that has become too long, or refuses it. `None`: it is shorter now, and
    /// has to be checked again.
    pub(super) fn shorten(
        &self,
        pending: &mut Pending,
        result: Result<CheckedPrompt, Refusal>,
    ) -> Option<Result<CheckedPrompt, Refusal>> {
        let limits = &self.config.sessions;
        let Some(talk) = pending.talk.as_mut().filter(|talk| !talk.turns.is_empty()) else {
            return Some(result);
        };
        let request = &mut pending.submission.request;
        let (have, limit) = match &result {
            Ok(checked) if limits.tokens > 0 && checked.prompt_tokens > limits.tokens => {
                (checked.prompt_tokens.into(), limits.tokens.into())
            }
            Ok(checked) => {
                let room = request.max_tokens.unwrap_or(ROOM).min(ROOM);
                let missing = room.saturating_sub(checked.max_tokens);
                if missing == 0 {
                    return Some(result);
                }
                let have = u64::from(checked.prompt_tokens);
                (have, have.saturating_sub(missing.into()))
            }
            Err(refusal) if refusal.code == Code::ContextLengthExceeded => {
                (refusal.have.unwrap_or(2), refusal.limit.unwrap_or(1))
            }
            Err(_) => return Some(result),
        };
        if limits.overflow == Overflow::Refuse {
            let message = format!(
                "the conversation of the session has {have} tokens, and {limit} fit; begin another session"
            );
            return Some(Err(Refusal::new(Code::ContextLengthExceeded, message)
                .with_param("session")
                .with_limit(limit, have)));
        }
        let dropped = to_drop(&talk.turns, have, limit);
        talk.turns.drain(..dropped);
        talk.dropped += dropped;
        if let Some((input, _)) = continued(&talk.input, &talk.turns) {
            request.input = input;
        }
        None
    }

    /// Keeps the answer of a conversation.
    pub(super) fn keep_talk(&mut self, client: &Identity, talk: Talk, now: Instant) {
        let mut turns = talk.turns;
        turns.push(Turn { question: talk.question, answer: talk.answer, prompt: talk.prompt });
        self.sessions.keep(Key::new(client, &talk.name), turns, &self.config.sessions, now);
    }

    /// Forgets a conversation. Says whether there was one.
    pub(in crate::scheduler) fn end_session(&mut self, client: &Identity, name: &str) -> bool {
        self.sessions.end(&Key::new(client, name))
    }
}
