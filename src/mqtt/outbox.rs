//! Messages that must reach the broker: kept until it acknowledged them, sent again on the next connection. Pure.
//!
//! A client library forgets what it was handed when the broker forgets the session, without an error; so nothing that
//! was promised is left to it.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use super::message::Publication;
use crate::defect::Defect;

/// The most answers that wait at once. A thousand is what mosquitto keeps for a client by default, and it can come at once:
/// mosquitto 2.0 goes beyond the receive maximum when the oldest message is not acknowledged first.
const MAX_ANSWERS: usize = 1024;
/// Refusals find no place beyond these: in a flood they are many, and each of them would wait for the broker.
const MAX_REFUSALS: usize = 256;
/// New prompts are refused while the answers that wait have more bytes than this. A board that cannot reach its broker
/// has better uses for its memory.
const MAX_BYTES: usize = 8 << 20;
/// Whose message it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// An answer, or a part of one; the number is the ledger's.
    Answer(u64),
    /// A prompt that is handed on to another board; the number is the ledger's.
    Handed(u64),
    /// The word to another board that what it handed on is safe here.
    Word,
    /// A retained state: only the newest of a topic matters.
    State,
}

/// What became of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Done {
    /// Whose message it was.
    pub(crate) owner: Owner,
    /// Its topic.
    pub(crate) topic: String,
}

/// The next message to hand to the connection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next<'a> {
    /// This one, wanted until then; [`Outbox::handed`] says that it was taken.
    Send(&'a Publication, Option<Instant>),
    /// This one is larger than the broker takes, and has been removed.
    TooLarge(Owner, Publication),
}

#[derive(Debug)]
struct Slot {
    token: u64,
    owner: Owner,
    publication: Publication,
    until: Option<Instant>,
    waiting: bool,
}

/// The messages, in the order in which they go.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    slots: VecDeque<Slot>,
    bytes: usize,
    next_token: u64,
    /// Handed to the connection; the packet number is not known yet.
    handed: VecDeque<u64>,
    by_packet: HashMap<u16, u64>,
    /// What was handed out since the oldest message that is not acknowledged, in order; `true` is acknowledged.
    flight: VecDeque<(u64, bool)>,
    window: usize,
    max_packet: usize,
}

impl Outbox {
    /// Whether the answer of one more prompt has room, `promised` others being in work.
    pub(crate) fn has_room(&self, promised: usize) -> bool {
        self.slots.len() + promised < MAX_ANSWERS && self.bytes < MAX_BYTES
    }

    /// Whether the messages of an answer have room beside the `promised` answers.
    pub(crate) fn has_room_for(&self, messages: &[Publication], promised: usize) -> bool {
        let bytes: usize = messages.iter().map(Publication::weight).sum();
        self.slots.len() + messages.len() + promised <= MAX_ANSWERS
            && self.bytes + bytes < MAX_BYTES
    }

    /// Whether refusals may wait here: most places are for answers.
    pub(crate) fn takes_refusals(&self) -> bool {
        self.slots.len() < MAX_REFUSALS && self.bytes < MAX_BYTES / 4
    }

    /// Keeps a message until the broker has it, or until `until`. A state replaces the one that waits on its topic.
    pub(crate) fn push(&mut self, owner: Owner, publication: Publication, until: Option<Instant>) {
        if owner == Owner::State {
            let same = |slot: &&mut Slot| {
                slot.waiting && slot.owner == owner && slot.publication.topic == publication.topic
            };
            if let Some(slot) = self.slots.iter_mut().find(same) {
                self.bytes = self.bytes - slot.publication.weight() + publication.weight();
                slot.publication = publication;
                return;
            }
        }
        self.bytes += publication.weight();
        self.next_token += 1;
        self.slots.push_back(Slot {
            token: self.next_token,
            owner,
            publication,
            until,
            waiting: true,
        });
    }

    /// A connection is up: at most `window` messages may be unacknowledged on it, none larger than `max_packet`.
    pub(crate) fn connected(&mut self, window: usize, max_packet: usize) {
        self.disconnected();
        self.window = window.max(1);
        self.max_packet = max_packet;
    }

    /// The connection is gone: what it had is sent again on the next, except states, which the next begins with anyway.
    pub(crate) fn disconnected(&mut self) {
        self.handed.clear();
        self.by_packet.clear();
        self.flight.clear();
        self.window = 0;
        self.slots.retain(|slot| slot.owner != Owner::State && !Defect::LoseOutbox.is_here());
        self.slots.iter_mut().for_each(|slot| slot.waiting = true);
        self.bytes = self.slots.iter().map(|slot| slot.publication.weight()).sum();
    }

    /// The next message to hand out, if the window has room. The window slides: it counts from the oldest message
    /// that is not acknowledged, so that a broker that acknowledges out of order never meets a packet number twice.
    pub(crate) fn next(&mut self) -> Option<Next<'_>> {
        if self.flight.len() >= self.window {
            return None;
        }
        let at = self.slots.iter().position(|slot| slot.waiting)?;
        let weight = self.slots.get(at)?.publication.weight();
        if weight > self.max_packet {
            let slot = self.slots.remove(at)?;
            self.bytes -= weight;
            return Some(Next::TooLarge(slot.owner, slot.publication));
        }
        self.slots.get(at).map(|slot| Next::Send(&slot.publication, slot.until))
    }

    /// The connection took the message that [`Outbox::next`] gave.
    pub(crate) fn handed(&mut self) {
        if let Some(slot) = self.slots.iter_mut().find(|slot| slot.waiting) {
            slot.waiting = false;
            self.handed.push_back(slot.token);
            self.flight.push_back((slot.token, false));
        }
    }

    /// The connection gave the oldest message that was handed to it this packet number.
    pub(crate) fn sent(&mut self, packet: u16) {
        if let Some(token) = self.handed.pop_front() {
            self.by_packet.insert(packet, token);
        }
    }

    /// The broker acknowledged this packet.
    pub(crate) fn acknowledged(&mut self, packet: u16) -> Option<Done> {
        let token = self.by_packet.remove(&packet)?;
        if let Some(entry) = self.flight.iter_mut().find(|(flying, _)| *flying == token) {
            entry.1 = true;
        }
        while self.flight.front().is_some_and(|(_, done)| *done) {
            self.flight.pop_front();
        }
        let at = self.slots.iter().position(|slot| slot.token == token)?;
        let slot = self.slots.remove(at)?;
        self.bytes -= slot.publication.weight();
        Some(Done { owner: slot.owner, topic: slot.publication.topic })
    }

    /// Removes what waits and is wanted no more at `now`, and gives it back.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<(Owner, Publication)> {
        let is_over = |slot: &Slot| slot.waiting && slot.until.is_some_and(|until| until <= now);
        // Asked after everything that happens, and nearly always in vain.
        if !self.slots.iter().any(is_over) {
            return Vec::new();
        }
        let slots = std::mem::take(&mut self.slots);
        let (over, kept): (Vec<Slot>, Vec<Slot>) = slots.into_iter().partition(is_over);
        self.slots = kept.into();
        self.bytes = self.slots.iter().map(|slot| slot.publication.weight()).sum();
        over.into_iter().map(|slot| (slot.owner, slot.publication)).collect()
    }

    /// Nobody wants this message any more: it goes with the next [`Outbox::expire`], or when the broker has it.
    pub(crate) fn unwanted(&mut self, owner: &Owner, now: Instant) {
        let own = self.slots.iter_mut().filter(|slot| slot.owner == *owner);
        own.for_each(|slot| slot.until = Some(now));
    }

    /// When [`Outbox::expire`] has something to do.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.slots.iter().filter(|slot| slot.waiting).filter_map(|slot| slot.until).min()
    }

    /// How many messages wait for the broker.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether nothing waits and nothing is unacknowledged.
    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const BIG: usize = 1 << 20;

    fn publication(topic: &str, bytes: usize) -> Publication {
        Publication {
            topic: topic.to_owned(),
            payload: vec![b'x'; bytes].into(),
            ..Publication::default()
        }
    }

    /// Hands out all that may go; the topics.
    fn pump(outbox: &mut Outbox) -> Vec<String> {
        let mut topics = Vec::new();
        while let Some(Next::Send(publication, _)) = outbox.next() {
            topics.push(publication.topic.clone());
            outbox.handed();
        }
        topics
    }

    #[test]
    fn nothing_goes_without_a_connection_and_all_goes_again_on_the_next() {
        let mut outbox = Outbox::default();
        outbox.push(Owner::Answer(1), publication("a", 1), None);
        outbox.push(Owner::Answer(2), publication("b", 1), None);
        assert!(outbox.next().is_none());
        outbox.connected(8, BIG);
        assert_eq!(pump(&mut outbox), ["a", "b"]);
        outbox.sent(1);
        outbox.sent(2);
        assert_eq!(
            outbox.acknowledged(2),
            Some(Done { owner: Owner::Answer(2), topic: "b".into() })
        );
        outbox.disconnected();
        assert!(outbox.next().is_none());
        outbox.connected(8, BIG);
        assert_eq!(pump(&mut outbox), ["a"]);
        outbox.sent(1);
        assert_eq!(outbox.acknowledged(2), None);
        assert!(outbox.acknowledged(1).is_some());
        assert!(outbox.is_empty());
        assert_eq!(outbox.bytes, 0);
    }

    #[test]
    fn the_window_slides_over_the_oldest() {
        let mut outbox = Outbox::default();
        for n in 0..6 {
            outbox.push(Owner::Answer(n), publication(&n.to_string(), 1), None);
        }
        outbox.connected(3, BIG);
        assert_eq!(pump(&mut outbox), ["0", "1", "2"]);
        (1..=3).for_each(|packet| outbox.sent(packet));
        // Out of order: 1 is still open, so packet number 1 must not come round again.
        outbox.acknowledged(2);
        outbox.acknowledged(3);
        assert!(pump(&mut outbox).is_empty());
        outbox.acknowledged(1);
        assert_eq!(pump(&mut outbox), ["3", "4", "5"]);
    }

    #[test]
    fn a_state_replaces_the_one_that_waits_and_none_that_is_on_its_way() {
        let mut outbox = Outbox::default();
        outbox.connected(8, BIG);
        outbox.push(Owner::State, publication("s", 1), None);
        outbox.push(Owner::State, publication("s", 2), None);
        assert_eq!(pump(&mut outbox), ["s"]);
        outbox.push(Owner::State, publication("s", 3), None);
        outbox.push(Owner::State, publication("t", 4), None);
        assert_eq!(pump(&mut outbox), ["s", "t"]);
        outbox.disconnected();
        assert!(outbox.is_empty());
    }

    #[test]
    fn what_the_broker_would_throw_promptd_out_for_is_not_sent() {
        let mut outbox = Outbox::default();
        outbox.connected(8, 200);
        outbox.push(Owner::Answer(1), publication("a", 500), None);
        outbox.push(Owner::Answer(2), publication("b", 1), None);
        assert!(matches!(outbox.next(), Some(Next::TooLarge(Owner::Answer(1), _))));
        assert_eq!(pump(&mut outbox), ["b"]);
    }

    #[test]
    fn limits() {
        let mut outbox = Outbox::default();
        for n in 0..MAX_ANSWERS - 2 {
            assert!(outbox.has_room(1));
            outbox.push(Owner::Answer(n as u64), publication("a", 1), None);
        }
        assert!(outbox.has_room(1) && !outbox.has_room(2));
        let mut outbox = Outbox::default();
        assert!(outbox.takes_refusals());
        outbox.push(Owner::Answer(1), publication("a", MAX_BYTES / 2), None);
        assert!(!outbox.takes_refusals() && outbox.has_room(0));
        assert!(outbox.has_room_for(&[publication("a", MAX_BYTES / 4)], 0));
        assert!(!outbox.has_room_for(&[publication("a", MAX_BYTES / 2)], 0));
        outbox.push(Owner::Answer(1), publication("a", MAX_BYTES / 2), None);
        assert!(!outbox.has_room(0));
    }

    #[test]
    fn what_nobody_wants_any_more_goes() {
        let (mut outbox, now) = (Outbox::default(), Instant::now());
        let later = now + Duration::from_secs(9);
        outbox.push(Owner::Answer(1), publication("a", 1), Some(now));
        outbox.push(Owner::Answer(2), publication("b", 1), Some(later));
        assert_eq!(outbox.next_expiry(), Some(now));
        assert_eq!(outbox.expire(now), [(Owner::Answer(1), publication("a", 1))]);
        assert_eq!(outbox.next_expiry(), Some(later));
        outbox.connected(1, BIG);
        pump(&mut outbox);
        assert!(outbox.expire(later).is_empty(), "what is on its way cannot be called back");
        outbox.push(Owner::Handed(3), publication("c", 1), None);
        outbox.unwanted(&Owner::Handed(3), later);
        assert_eq!(outbox.expire(later), [(Owner::Handed(3), publication("c", 1))]);
    }
}
