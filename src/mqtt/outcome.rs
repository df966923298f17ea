//! What the door does with what happens to a prompt: pieces, progress, the answer.

use std::time::{Duration, Instant};

use tracing::{debug, error};

use super::door::{Door, Prompt, REFUSAL_WANTED};
use super::message::Publication;
use super::outbox::Owner;
use super::prompt::{Report, Text};
use super::reply;
use crate::defect::Defect;
use crate::request::{Code, Event, Finish, Refusal};
use crate::scheduler::State;
use crate::wire::{Answer, progress_object, stream_end, stream_piece};

/// How long an answer is worth delivering whose asker set no deadline, and an error of a prompt that was accepted: as long as the
/// broker keeps a session.
pub(super) const ANSWER_WANTED: Duration = Duration::from_hours(1);

/// An answer that waits until its prompt is safe.
#[derive(Debug)]
pub(super) struct Unsaid {
    number: u64,
    messages: Vec<Publication>,
    until: Instant,
}

impl Door {
    /// Something happened to a prompt.
    pub(super) fn report(&mut self, number: u64, report: Report, now: Instant) {
        match report {
            Report::Accepted { id, seed, session } => {
                self.ledger.accepted(number, id);
                self.shelf.accepted(number, seed);
                let Some(prompt) = self.prompts.get_mut(&number) else { return };
                prompt.session = session;
                prompt.level.get_or_insert_with(|| id.to_string());
                // Without an id of its own the answer names promptd's, which the stream's topic has.
                if prompt.wanted.stream && prompt.wanted.id.is_none() {
                    prompt.wanted.id = Some(id.to_string());
                }
                self.progress(number, None);
            }
            Report::Started { deaths } => {
                self.shelf.started(number, deaths);
                let prompt = self.prompts.get_mut(&number);
                // It stays here now. One that began in the moment when it was taken out for another board is cancelled already.
                if let Some(prompt) = prompt.filter(|prompt| prompt.handing.is_none()) {
                    prompt.shared = None;
                }
            }
            Report::Progress(event) => self.progress(number, Some(&event)),
            Report::Piece(piece) => {
                self.stream(number, |seq| stream_piece(None, seq, &piece.text, &piece.logprobs));
            }
            Report::Ended(result) => self.ended(number, result, now),
            Report::Operated(result) => self.operated(number, &result, now),
        }
    }

    fn progress(&self, number: u64, event: Option<&Event>) {
        let Some(prompt) = self.prompts.get(&number).filter(|prompt| prompt.wanted.stream) else {
            return;
        };
        if let (Some(level), Some(object)) = (&prompt.level, progress_object(None, event)) {
            let publication = Publication::json(self.topics.progress(level), &object);
            self.tell(&if prompt.wanted.form.cbor { publication.in_cbor() } else { publication });
        }
    }

    fn stream(&mut self, number: u64, object: impl FnOnce(u64) -> serde_json::Value) {
        let Some(prompt) = self.prompts.get_mut(&number).filter(|prompt| prompt.wanted.stream)
        else {
            return;
        };
        let Some(level) = prompt.level.clone() else { return };
        let object = object(prompt.seq);
        prompt.seq += 1;
        let cbor = prompt.wanted.form.cbor;
        let publication = Publication::json(self.topics.stream(&level), &object);
        self.tell(&if cbor { publication.in_cbor() } else { publication });
    }

    /// Publishes what may be lost; the numbers in it show that it was.
    pub(super) fn tell(&self, publication: &Publication) {
        if let Some(connection) = &self.connection
            && publication.weight() <= connection.max_packet
            && connection.client.tell(publication).is_err()
        {
            debug!(
                topic = publication.topic,
                "a piece of a stream was left out: the broker is too slow"
            );
        }
    }

    fn ended(&mut self, number: u64, result: Result<(Text, Finish), Refusal>, now: Instant) {
        if let Some(result) = self.handed_on(number, result) {
            self.stream(number, |seq| stream_end(None, seq, result.as_ref().err()));
            self.ended_here(number, result, now);
        }
    }

    /// A prompt that was taken out of the queue for another board goes there; of every other the result is given back.
    fn handed_on(
        &mut self,
        number: u64,
        result: Result<(Text, Finish), Refusal>,
    ) -> Option<Result<(Text, Finish), Refusal>> {
        let cancelled = result.as_ref().is_err_and(|refusal| refusal.code == Code::Cancelled);
        let handing = |prompt: &&mut Prompt| prompt.handing.is_some() && cancelled;
        let prompt = self.prompts.get_mut(&number).filter(handing);
        let Some((node, shared)) =
            prompt.and_then(|prompt| prompt.handing.take().zip(prompt.shared.take()))
        else {
            return Some(result);
        };
        if let Some(prompt) = self.prompts.remove(&number) {
            self.hand(number, node, prompt.wanted, *shared);
        }
        None
    }

    fn ended_here(&mut self, number: u64, result: Result<(Text, Finish), Refusal>, now: Instant) {
        let Some(mut prompt) = self.prompts.remove(&number) else { return };
        if let Some(other) =
            self.prompts.values().next().filter(|_| Defect::WrongReplyTopic.is_here())
        {
            prompt.wanted.to = other.wanted.to.clone();
        }
        if Defect::LoseCorrelation.is_here() {
            prompt.wanted.to.correlation = None;
        }
        let wanted = &prompt.wanted;
        let (messages, ok, until) = match result {
            Ok((text, finish)) => {
                let model = self
                    .status
                    .borrow()
                    .model
                    .as_ref()
                    .map(|model| model.name.clone())
                    .unwrap_or_default();
                let answer = Answer {
                    id: wanted.id.as_deref(),
                    text: &text.text,
                    is_json: wanted.is_json,
                    logprobs: wanted.logprobs.then_some(&text.logprobs),
                    finish: &finish,
                    model: &model,
                    node: Some(&self.node),
                    session: prompt.session.as_ref(),
                    attempt: wanted.attempt,
                };
                let until = wanted.until.unwrap_or(now + ANSWER_WANTED);
                (reply::answer(&wanted.to, wanted.form, &answer), true, until)
            }
            // The next start gets it again and answers it; unless its asker cancelled it.
            Err(refusal)
                if (self.leaving || self.status.borrow().state == State::Draining)
                    && is_of_leaving(refusal.code)
                    && prompt.stop.is_some()
                    && self.ledger.can_come_again(number) =>
            {
                return self.hand_back(number);
            }
            Err(refusal) => {
                let message =
                    reply::refusal(&wanted.to, wanted.form, wanted.id.as_deref(), &refusal);
                let accepted = self.ledger.is_accepted(number);
                if !accepted && self.refused_at_once(number, &message) {
                    return;
                }
                // What was accepted has an end that its asker hears of, even when the broker is away for longer than a minute.
                let wanted = if accepted { ANSWER_WANTED } else { REFUSAL_WANTED };
                (vec![message], false, now + wanted)
            }
        };
        self.answer(number, messages, ok, until);
    }

    /// Sends the refusal of a prompt that was never accepted without keeping it, where the outbox has no place for such and
    /// the connection has room; see [`Door::refuse`].
    fn refused_at_once(&mut self, number: u64, message: &Publication) -> bool {
        if self.outbox.takes_refusals() {
            return false;
        }
        let Some(connection) = &self.connection else { return false };
        if message.weight() > connection.max_packet
            || connection.client.refuse(message, None).is_err()
        {
            return false;
        }
        self.shelf.hand_back(number);
        // They go behind it on the same connection.
        self.acks.extend(self.ledger.refused(number));
        true
    }

    /// Publishes the final messages of a prompt.
    pub(super) fn answer(
        &mut self,
        number: u64,
        messages: Vec<Publication>,
        ok: bool,
        until: Instant,
    ) {
        self.ledger.answering(number, messages.clone(), ok);
        self.shelf.answering(number, &messages, ok, until);
        let again = if Defect::AnswerTwice.is_here() { messages.clone() } else { Vec::new() };
        let messages = messages.into_iter().chain(again).collect();
        self.unsaid.push(Unsaid { number, messages, until });
        self.say();
    }

    /// Publishes the answers whose prompts are safe.
    pub(super) fn say(&mut self) {
        for answer in std::mem::take(&mut self.unsaid) {
            // Whoever stops in order closes the record afterwards.
            if !self.leaving && self.shelf.is_on_its_way(answer.number) {
                self.unsaid.push(answer);
                continue;
            }
            for message in answer.messages {
                self.outbox.push(Owner::Answer(answer.number), message, Some(answer.until));
            }
        }
    }

    /// Leaves a prompt to the next start.
    pub(super) fn hand_back(&mut self, number: u64) {
        self.ledger.hand_back(number);
        self.shelf.hand_back(number);
    }

    /// A prompt's task is over; if it panicked, its prompt still needs an end.
    pub(super) fn task_ended(
        &mut self,
        ended: Result<(tokio::task::Id, ()), tokio::task::JoinError>,
        now: Instant,
    ) {
        let Err(failed) = ended else { return };
        if failed.is_cancelled() {
            return;
        }
        error!("a prompt's task panicked; this is a bug");
        let number = self
            .prompts
            .iter()
            .find(|(_, prompt)| prompt.task.id() == failed.id())
            .map(|(number, _)| *number);
        if let Some(number) = number {
            let refusal = Refusal::new(
                Code::Internal,
                "promptd made a mistake with this prompt; its log has more",
            );
            self.ended(number, Err(refusal), now);
        }
    }
}

/// The codes that a prompt may end with because promptd stops.
fn is_of_leaving(code: Code) -> bool {
    matches!(code, Code::Internal | Code::Cancelled | Code::Busy)
}
