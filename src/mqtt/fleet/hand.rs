//! Handing a prompt on to another board: what is published for it, and what becomes of the prompt here. It stays this board's
//! until the broker has it for the other.

use std::time::Instant;

use tracing::{debug, warn};

use crate::mqtt::door::{Door, Wanted};
use crate::mqtt::message::{Message, Publication};
use crate::mqtt::outbox::Owner;
use crate::request::Submission;

/// How a prompt came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::mqtt) enum Via {
    /// It was asked of this board.
    Own,
    /// It was asked of whichever board is free.
    Shared,
    /// Another board handed it on; it stays here.
    Handed,
}

/// What a prompt that may still be handed on is made of.
#[derive(Clone, Debug)]
pub(in crate::mqtt) struct Passable {
    /// As it came.
    pub(in crate::mqtt) message: Message,
    pub(in crate::mqtt) profile: Option<String>,
    /// As it goes to the scheduler.
    pub(in crate::mqtt) submission: Submission,
    /// When it came.
    pub(in crate::mqtt) came: Instant,
}

/// A prompt on its way to another board.
pub(super) struct Handing {
    node: String,
    wanted: Wanted,
    passable: Passable,
}

impl Door {
    /// Takes a prompt that waits out of the queue; when it is out, [`Door::hand`] sends it on.
    pub(super) fn withdraw(&mut self, number: u64, node: String) {
        if let Some(prompt) = self.prompts.get_mut(&number) {
            prompt.handing = Some(node);
            prompt.stop = None;
        }
    }

    /// Sends a prompt to another board.
    pub(in crate::mqtt) fn hand(
        &mut self,
        number: u64,
        node: String,
        wanted: Wanted,
        passable: Passable,
    ) {
        let publication = self.copy_for(&node, &passable);
        let until = wanted.until;
        let Some(fleet) = &mut self.fleet else { return };
        debug!(node, "a prompt is handed on");
        fleet.handing.insert(number, Handing { node, wanted, passable });
        self.outbox.push(Owner::Handed(number), publication, until);
    }

    /// The message as it came, for another board. What is left of its time goes with it as the message's expiry.
    fn copy_for(&self, node: &str, passable: &Passable) -> Publication {
        let message = &passable.message;
        let kind = message.content_type.as_deref().unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let known = ["application/cbor", "text/plain", "application/json"];
        let client = message.client.clone().map(|client| ("client", client));
        Publication {
            topic: self.topics.hop(node, passable.profile.as_deref()),
            payload: message.payload.clone(),
            retain: false,
            correlation: message.correlation.clone(),
            response_topic: message.response_topic.clone(),
            content_type: known.into_iter().find(|known| *known == kind),
            properties: client.into_iter().chain([("hop", "1".to_owned())]).collect(),
        }
    }

    /// The broker has it for the other board, or does not (`why`).
    pub(in crate::mqtt) fn handed(&mut self, number: u64, why_not: Option<&str>, now: Instant) {
        let Some(fleet) = &mut self.fleet else { return };
        let Some(Handing { node, wanted, passable }) = fleet.handing.remove(&number) else {
            return;
        };
        let Some(reason) = why_not else {
            fleet.handed += 1;
            self.status_dirty = true;
            let deliveries = self.ledger.hand_on(number);
            self.acks(deliveries);
            self.shelf.forget(number);
            return;
        };
        fleet.peers.deaf(&node);
        if let Some(others) = fleet.said_full.now(now) {
            warn!(
                others,
                node, reason, "a prompt could not be handed on to this board; it stays here"
            );
        }
        let Passable { message, mut submission, .. } = passable;
        // A prompt of the broker's that was never taken in here is not in the record yet.
        let patient = message.delivery.is_some();
        if let Some(key) = self.ledger.key(number).cloned()
            && patient
            && submission.recorded.is_none()
        {
            submission.recorded = self.shelf.draft(number, &key, &wanted, &submission);
        }
        self.spawn(number, wanted, submission, (patient, None));
    }
}
