//! Handing a prompt on to another board: what is published for it, and what becomes of the prompt here. It stays this board's
//! until the other says that it is safe there: a broker that dies may lose what it has acknowledged. Boards that speak 3.1.1,
//! where a message has no room for such a word, go by the broker's acknowledgement.

use std::time::{Duration, Instant};

use tracing::{debug, warn};

use crate::mqtt::door::{Door, Wanted};
use crate::mqtt::message::{Delivery, Message, Publication, Word};
use crate::mqtt::outbox::Owner;
use crate::mqtt::packet::Version;
use crate::mqtt::topic::{self, Inbound};
use crate::request::Submission;

/// The most bytes of a word, and of the name of the board that it is for.
const WORD_BYTES: usize = 64;
/// How long the word that a prompt is safe is worth delivering: by then whoever waits for it waits no more.
const WORD_WANTED: Duration = Duration::from_mins(5);
/// A board that is handed a prompt has this many keep-alive intervals to say that it is safe: a board that died has been noticed
/// by then, and what it had has been taken over.
const KEEP_ALIVES: u32 = 3;
/// And never less than this.
const PATIENCE: Duration = Duration::from_secs(15);

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
    /// What the other board says when it is safe there; `None`: it says nothing.
    word: Option<String>,
    /// When that is overdue, once the broker has the prompt.
    until: Option<Instant>,
    wanted: Wanted,
    passable: Passable,
}

impl super::Fleet {
    /// Something that another board handed on came: what it is told when that is safe here.
    pub(super) fn owe(&mut self, message: &Message) {
        let Some(Word::Hop(hop)) = message.word.as_deref() else { return };
        let node_and_word = hop.split_once('/');
        let known = node_and_word.filter(|(node, word)| {
            topic::is_level(node, WORD_BYTES) && topic::is_level(word, WORD_BYTES)
        });
        if let (Some((node, word)), Some(delivery)) = (known, message.delivery) {
            self.words.insert(delivery, (node.to_owned(), word.to_owned()));
        }
    }

    /// A connection is gone: what came on it and is not acknowledged comes again.
    pub(in crate::mqtt) fn forget_words(&mut self, epoch: u64) {
        self.words.retain(|delivery, _| delivery.epoch != epoch);
    }

    /// How long another board may take to say that what was handed to it is safe.
    fn patience(&self) -> Duration {
        self.options.keep_alive.saturating_mul(KEEP_ALIVES).max(PATIENCE)
    }

    /// When the next of them is overdue.
    pub(super) fn overdue(&self) -> Option<Instant> {
        self.handing.values().filter_map(|handing| handing.until).min()
    }

    /// This board could not be told anything for a while: others have their time from now on.
    pub(super) fn be_patient(&mut self, now: Instant) {
        let until = now + self.patience();
        self.handing
            .values_mut()
            .filter_map(|handing| handing.until.as_mut())
            .for_each(|late| *late = until);
    }
}

impl Door {
    /// Takes a prompt that waits out of the queue; when it is out, [`Door::hand`] sends it on.
    pub(super) fn withdraw(&mut self, number: u64, node: String) {
        if let Some(prompt) = self.prompts.get_mut(&number) {
            prompt.handing = Some(node);
            prompt.stop = None;
        }
    }

    /// Whether prompts are on their way to other boards.
    pub(in crate::mqtt) fn hands_on(&self) -> bool {
        self.fleet.as_ref().is_some_and(|fleet| !fleet.handing.is_empty())
    }

    /// Sends a prompt to another board.
    pub(in crate::mqtt) fn hand(
        &mut self,
        number: u64,
        node: String,
        wanted: Wanted,
        passable: Passable,
    ) {
        let speaks = self.connection.as_ref().map(|connection| connection.version);
        let confirms = self.fleet.as_ref().is_some_and(|fleet| fleet.peers.confirms(&node));
        // Where the system has no randomness to give, the broker's word has to do.
        let word = getrandom::u64().ok().filter(|_| confirms && speaks == Some(Version::V5));
        let word = word.map(|word| format!("{word:016x}"));
        let publication = self.copy_for(&node, word.as_deref(), &passable);
        let until = wanted.until;
        let Some(fleet) = &mut self.fleet else { return };
        debug!(node, "a prompt is handed on");
        let handing = Handing { node, word, until: None, wanted, passable };
        fleet.handing.insert(number, handing);
        self.outbox.push(Owner::Handed(number), publication, until);
    }

    /// The message as it came, for another board. What is left of its time goes with it as the message's expiry.
    fn copy_for(&self, node: &str, word: Option<&str>, passable: &Passable) -> Publication {
        let message = &passable.message;
        let kind = message.content_type.as_deref().unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let known = ["application/cbor", "text/plain", "application/json"];
        let client = message.client.as_ref().map(|client| ("client", client.to_string()));
        let hop = word.map_or_else(|| "1".to_owned(), |word| format!("{}/{word}", self.node));
        Publication {
            topic: self.topics.hop(node, passable.profile.as_deref()),
            payload: message.payload.clone(),
            retain: false,
            correlation: message.correlation.clone(),
            response_topic: message.response_topic.clone(),
            content_type: known.into_iter().find(|known| *known == kind),
            properties: client.into_iter().chain([("hop", hop)]).collect(),
        }
    }

    /// The broker has it for the other board, or it is not with that board (`why_not`).
    pub(in crate::mqtt) fn handed(&mut self, number: u64, why_not: Option<&str>, now: Instant) {
        let Some(fleet) = &mut self.fleet else { return };
        let patience = fleet.patience();
        let Some(handing) = fleet.handing.get_mut(&number) else { return };
        let Some(reason) = why_not else {
            if handing.word.is_some() {
                handing.until = Some(now + patience);
            } else {
                self.is_there(number);
            }
            return;
        };
        let Some(Handing { node, wanted, passable, .. }) = fleet.handing.remove(&number) else {
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
        submission.timeout = wanted.until.map(|until| until.saturating_duration_since(now));
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

    /// A prompt is with another board; here it is forgotten.
    fn is_there(&mut self, number: u64) {
        let Some(fleet) = &mut self.fleet else { return };
        fleet.handing.remove(&number);
        fleet.handed += 1;
        self.status_dirty = true;
        let deliveries = self.ledger.hand_on(number);
        self.acks(deliveries);
        self.shelf.forget(number);
    }

    /// Another board says that it has what was handed to it. Returns whether the message was that.
    pub(in crate::mqtt) fn took(&mut self, message: &Message, now: Instant) -> bool {
        let handed = matches!(self.topics.parse(&message.topic), Some(Inbound::Handed(_)));
        let (true, Some(Word::Took(word)), Some(fleet)) =
            (handed, message.word.as_deref(), &self.fleet)
        else {
            return false;
        };
        let mut waiting = fleet.handing.iter();
        let known = waiting.find(|(_, handing)| handing.word.as_ref() == Some(word));
        if let Some(number) = known.map(|(number, _)| *number) {
            // It may be there before the broker has said so; it is not sent again then.
            self.outbox.unwanted(&Owner::Handed(number), now);
            self.is_there(number);
        }
        true
    }

    /// What another board had time enough to take is taken back.
    pub(super) fn take_back(&mut self, now: Instant) {
        let Some(fleet) = self.fleet.as_ref().filter(|fleet| fleet.hears()) else { return };
        let late = |handing: &&Handing| handing.until.is_some_and(|until| until <= now);
        let late: Vec<u64> = fleet
            .handing
            .iter()
            .filter(|(_, handing)| late(handing))
            .map(|(number, _)| *number)
            .collect();
        for number in late {
            self.handed(number, Some("it does not say that the prompt is safe there"), now);
        }
    }

    /// A message was acknowledged. If another board had handed it on, that board is told; returns whether it is.
    pub(in crate::mqtt) fn say_safe(&mut self, delivery: Delivery, now: Instant) -> bool {
        let fleet = self.fleet.as_mut();
        let Some((node, word)) = fleet.and_then(|fleet| fleet.words.remove(&delivery)) else {
            return false;
        };
        let publication = Publication {
            topic: self.topics.hop(&node, None),
            properties: vec![("took", word)],
            ..Publication::default()
        };
        self.outbox.push(Owner::Word, publication, Some(now + WORD_WANTED));
        true
    }
}
