//! Which prompts are in work, which were answered lately, and which deliveries the broker still waits to have
//! acknowledged. Pure: answers a prompt once however often it is delivered.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::message::{Delivery, Publication};
use crate::defect::Defect;
use crate::request::PromptId;

/// The most prompts in work at once whose delivery waits to be acknowledged. The broker is told to have at most 64 messages
/// unacknowledged ([`super::client::RECEIVE_MAXIMUM`]); the places beyond these are for refusals and for `cancel`.
const MAX_HELD: usize = 48;
/// The most prompts in work at once; those that are safe keep no place at the broker. The scheduler bounds their bytes and
/// their time.
pub(super) const MAX_OPEN: usize = 128;
/// How long an answer is kept for prompts that are delivered again. Azure's RPC over MQTT uses five minutes as well.
pub(crate) const KEEP: Duration = Duration::from_mins(5);
/// The most answers kept: redeliveries come in the first seconds, and the broker has at most 64 of them.
const MAX_KEPT: usize = 256;
/// The most bytes of answers kept; a usual answer has some hundred.
const MAX_KEPT_BYTES: usize = 4 << 20;

/// What makes two deliveries the same prompt: where the answer goes, the correlation data or the id, and what was asked.
/// The last is part of it because small devices use one id for all their prompts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    digest: [u8; 32],
    /// Whether the asker gave correlation data or an id. Without either, two equal prompts are two prompts, unless the
    /// broker says that it sends this one again.
    named: bool,
}

impl Key {
    /// The key that a record has kept.
    pub(crate) fn known(digest: [u8; 32], named: bool) -> Key {
        Key { digest, named }
    }

    /// Its parts, for a record.
    pub(crate) fn parts(&self) -> ([u8; 32], bool) {
        (self.digest, self.named)
    }

    /// The key of a prompt.
    pub(crate) fn new(
        reply: &str,
        correlation: Option<&Bytes>,
        id: Option<&str>,
        topic: &str,
        payload: &[u8],
    ) -> Key {
        let mut hash = Sha256::new();
        let mut part = |kind: u8, bytes: &[u8]| {
            hash.update([kind]);
            hash.update(bytes.len().to_le_bytes());
            hash.update(bytes);
        };
        part(0, if Defect::MixClients.is_here() { b"" } else { reply.as_bytes() });
        match (correlation, id) {
            (Some(data), _) => part(1, data),
            (None, Some(id)) => part(2, id.as_bytes()),
            (None, None) => {}
        }
        part(3, topic.as_bytes());
        part(4, payload);
        Key { digest: hash.finalize().into(), named: correlation.is_some() || id.is_some() }
    }
}

/// What the ledger knows about a delivery that came in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// Nothing: it is new.
    New,
    /// The same prompt is in work and safe: this delivery can be acknowledged now.
    Safe,
    /// The same prompt is in work, or its answer is on its way; this delivery is acknowledged with it.
    InWork,
    /// It was answered; here is the answer again.
    Answered {
        /// Its messages.
        answer: Vec<Publication>,
        /// Whether it is an answer, not a refusal.
        ok: bool,
    },
}

#[derive(Debug)]
struct Open {
    key: Key,
    deliveries: Vec<Delivery>,
    id: Option<String>,
    prompt: Option<PromptId>,
    /// The messages of the answer, once there is one, and how many of them the broker has not acknowledged.
    answer: Option<(Vec<Publication>, usize)>,
    ok: bool,
    /// It outlasts the service: its deliveries need not wait for the answer.
    safe: bool,
}

impl Open {
    /// Whether the broker waits for it.
    fn is_held(&self) -> bool {
        !self.deliveries.is_empty()
    }
}

#[derive(Debug)]
struct Kept {
    number: u64,
    key: Key,
    at: Instant,
    answer: Vec<Publication>,
    weight: usize,
    ok: bool,
}

/// The prompts in work and the answers of late.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    open: BTreeMap<u64, Open>,
    kept: VecDeque<Kept>,
    kept_bytes: usize,
    /// Numbers of answers that are not kept any more.
    forgotten: Vec<u64>,
    last: u64,
}

impl Ledger {
    /// Looks a delivery up, and joins it to the prompt it belongs to. `again` is the broker's mark of a redelivery.
    pub(crate) fn lookup(&mut self, key: &Key, delivery: Option<Delivery>, again: bool) -> Known {
        if Defect::GenerateTwice.is_here() {
            return Known::New;
        }
        let same = |other: &Key| other.digest == key.digest && (key.named || again);
        let open = self.open.values_mut().filter(|open| same(&open.key));
        // Of several equal prompts, each redelivery belongs to one that lost its delivery with the last connection.
        let fresh = |open: &Open| {
            open.deliveries.iter().any(|d| delivery.is_some_and(|new| d.epoch == new.epoch))
        };
        if let Some(open) = open.min_by_key(|open| fresh(open)) {
            if open.safe {
                return Known::Safe;
            }
            if let Some(delivery) = delivery {
                open.deliveries.retain(|known| known.epoch == delivery.epoch);
                open.deliveries.push(delivery);
            }
            return Known::InWork;
        }
        // A prompt that failed is tried again when its asker asks again, but not when only the broker repeats itself.
        match self.kept.iter().find(|kept| same(&kept.key) && (kept.ok || again)) {
            Some(kept) => Known::Answered { answer: kept.answer.clone(), ok: kept.ok },
            None => Known::New,
        }
    }

    /// Enters a new prompt and gives it a number.
    pub(crate) fn open(&mut self, key: Key, delivery: Option<Delivery>, id: Option<String>) -> u64 {
        self.last += 1;
        let deliveries = delivery.into_iter().collect();
        let (prompt, answer) = (None, None);
        self.open.insert(
            self.last,
            Open { key, deliveries, id, prompt, answer, ok: false, safe: false },
        );
        self.last
    }

    /// A prompt in work outlasts the service from now on: what can be acknowledged.
    pub(crate) fn safe(&mut self, number: u64) -> Vec<Delivery> {
        let Some(open) = self.open.get_mut(&number) else { return Vec::new() };
        open.safe = true;
        std::mem::take(&mut open.deliveries)
    }

    /// What makes a prompt in work this one.
    pub(crate) fn key(&self, number: u64) -> Option<&Key> {
        self.open.get(&number).map(|open| &open.key)
    }

    /// Whether a prompt is in work, or its answer on its way.
    pub(crate) fn is_open(&self, number: u64) -> bool {
        self.open.contains_key(&number)
    }

    /// Whether the same prompt is in work or its answer kept.
    pub(crate) fn has(&self, key: &Key) -> bool {
        let mut open = self.open.values().map(|open| &open.key);
        open.any(|other| other == key) || self.kept.iter().any(|kept| kept.key == *key)
    }

    /// An answer of an earlier start is kept on, as if it had been delivered at `at`.
    pub(crate) fn keep_on(
        &mut self,
        key: Key,
        answer: Vec<Publication>,
        ok: bool,
        at: Instant,
    ) -> u64 {
        self.last += 1;
        self.keep(Kept { number: self.last, key, at, weight: 0, answer, ok });
        self.last
    }

    /// Answers that are not kept any more, since the last time.
    pub(crate) fn take_forgotten(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.forgotten)
    }

    /// The scheduler accepted it under this number.
    pub(crate) fn accepted(&mut self, number: u64, prompt: PromptId) {
        if let Some(open) = self.open.get_mut(&number) {
            open.prompt = Some(prompt);
        }
    }

    /// Its answer exists and is being published in these messages.
    pub(crate) fn answering(&mut self, number: u64, answer: Vec<Publication>, ok: bool) {
        if let Some(open) = self.open.get_mut(&number) {
            let parts = answer.len();
            open.answer = Some((answer, parts));
            open.ok = ok;
        }
    }

    /// One message of the answer is with the broker, or never will be. When it was the last, the prompt is done: these
    /// deliveries can be acknowledged.
    pub(crate) fn delivered(&mut self, number: u64, now: Instant) -> Vec<Delivery> {
        let Some(Open { answer: Some((_, left)), .. }) = self.open.get_mut(&number) else {
            return Vec::new();
        };
        *left = left.saturating_sub(1);
        if *left > 0 {
            return Vec::new();
        }
        let Some(open) = self.open.remove(&number) else { return Vec::new() };
        // What was refused at once is refused at once again; a flood of it must not push answers out.
        if open.ok || open.prompt.is_some() {
            let answer = open.answer.map(|(answer, _)| answer).unwrap_or_default();
            self.keep(Kept { number, key: open.key, at: now, weight: 0, answer, ok: open.ok });
        } else {
            self.forgotten.push(number);
        }
        open.deliveries
    }

    /// Forgets a prompt that another board has now: its deliveries can be acknowledged.
    pub(crate) fn hand_on(&mut self, number: u64) -> Vec<Delivery> {
        self.open.remove(&number).map(|open| open.deliveries).unwrap_or_default()
    }

    /// Forgets a prompt without an answer: its deliveries stay unacknowledged, so that the broker sends them again.
    pub(crate) fn hand_back(&mut self, number: u64) {
        self.open.remove(&number);
    }

    fn keep(&mut self, mut kept: Kept) {
        let same = self.kept.iter().position(|other| other.key == kept.key);
        if let Some(other) = same.and_then(|at| self.kept.remove(at)) {
            self.kept_bytes -= other.weight;
            self.forgotten.push(other.number);
        }
        kept.weight = kept.answer.iter().map(Publication::weight).sum();
        self.kept_bytes += kept.weight;
        let at = kept.at;
        self.kept.push_back(kept);
        while self.kept.len() > MAX_KEPT || self.kept_bytes > MAX_KEPT_BYTES {
            self.forget_oldest();
        }
        self.forget(at);
    }

    /// Forgets answers that are older than the window.
    pub(crate) fn forget(&mut self, now: Instant) {
        while self.kept.front().is_some_and(|kept| now.saturating_duration_since(kept.at) >= KEEP) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some(kept) = self.kept.pop_front() {
            self.kept_bytes -= kept.weight;
            self.forgotten.push(kept.number);
        }
    }

    /// Prompts in work whose answer does not exist yet.
    pub(crate) fn working(&self) -> usize {
        self.open.values().filter(|open| open.answer.is_none()).count()
    }

    /// Whether one more prompt may be taken in of an asker who has these in work. An asker may hold as many as it leaves
    /// free, so that a flood of one never takes the last place from another.
    pub(crate) fn has_room(&self, own: impl Iterator<Item = u64>) -> bool {
        let working = self.open.values().filter(|open| open.answer.is_none());
        let (mut all, mut held) = (0, 0);
        for open in working {
            all += 1;
            held += usize::from(open.is_held());
        }
        let (mut own_all, mut own_held) = (0, 0);
        for open in own.filter_map(|number| self.open.get(&number)) {
            own_all += 1;
            own_held += usize::from(open.is_held());
        }
        let fair = |own: usize, all: usize, most: usize| {
            let free = most.saturating_sub(all);
            free > 0 && (own == 0 || own < free)
        };
        fair(own_all, all, MAX_OPEN) && fair(own_held, held, MAX_HELD)
    }

    /// Whether the scheduler accepted it, now or at an earlier start.
    pub(crate) fn is_accepted(&self, number: u64) -> bool {
        self.open.get(&number).is_some_and(|open| open.safe || open.prompt.is_some())
    }

    /// Forgets a prompt that was refused: what can be acknowledged.
    pub(crate) fn refused(&mut self, number: u64) -> Vec<Delivery> {
        self.open.remove(&number).map(|open| open.deliveries).unwrap_or_default()
    }

    /// The asker's id of a prompt in work.
    pub(crate) fn id(&self, number: u64) -> Option<&str> {
        self.open.get(&number)?.id.as_deref()
    }

    /// Whether the next start has this prompt: from the record, or from the broker, which waits for it to be acknowledged.
    pub(crate) fn can_come_again(&self, number: u64) -> bool {
        self.open.get(&number).is_some_and(|open| open.safe || !open.deliveries.is_empty())
    }

    /// The prompts in work that an asker means by `id`: its own id, or promptd's number for it.
    pub(crate) fn named(&self, id: &str) -> Vec<u64> {
        let means = |open: &Open| {
            open.id.as_deref() == Some(id)
                || open.prompt.is_some_and(|prompt| prompt.to_string() == id)
        };
        self.open
            .iter()
            .filter(|(_, open)| open.answer.is_none() && means(open))
            .map(|(number, _)| *number)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(correlation: Option<&'static str>, id: Option<&str>, payload: &str) -> Key {
        let correlation = correlation.map(|data| Bytes::from_static(data.as_bytes()));
        Key::new("me/r", correlation.as_ref(), id, "promptd/n/ask", payload.as_bytes())
    }

    #[expect(clippy::unnecessary_wraps, reason = "as messages have it")]
    fn delivery(epoch: u64, packet: u16) -> Option<Delivery> {
        Some(Delivery { epoch, packet })
    }

    fn answer(text: &'static str) -> Vec<Publication> {
        vec![Publication {
            topic: "me/r".into(),
            payload: Bytes::from_static(text.as_bytes()),
            ..Publication::default()
        }]
    }

    #[test]
    fn a_redelivery_joins_the_prompt_in_work_and_is_acknowledged_with_it() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        for (correlation, id) in [(Some("c"), None), (None, Some("i")), (None, None)] {
            let key = key(correlation, id, "hi");
            assert_eq!(ledger.lookup(&key, delivery(1, 5), false), Known::New);
            let number = ledger.open(key.clone(), delivery(1, 5), id.map(str::to_owned));
            assert_eq!(ledger.lookup(&key, delivery(2, 1), true), Known::InWork);
            ledger.answering(number, answer("hello"), true);
            assert_eq!(ledger.lookup(&key, delivery(3, 9), true), Known::InWork);
            assert_eq!(ledger.delivered(number, now), [Delivery { epoch: 3, packet: 9 }]);
            assert_eq!(
                ledger.lookup(&key, delivery(3, 9), true),
                Known::Answered { answer: answer("hello"), ok: true }
            );
        }
    }

    #[test]
    fn equal_prompts_without_a_name_are_two_and_each_gets_its_own_redelivery() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        let key = key(None, None, "hi");
        let first = ledger.open(key.clone(), delivery(1, 1), None);
        assert_eq!(ledger.lookup(&key, delivery(1, 2), false), Known::New);
        let second = ledger.open(key.clone(), delivery(1, 2), None);
        assert_eq!(ledger.lookup(&key, delivery(2, 1), true), Known::InWork);
        assert_eq!(ledger.lookup(&key, delivery(2, 2), true), Known::InWork);
        let mut acknowledged = Vec::new();
        for number in [first, second] {
            ledger.answering(number, answer("x"), true);
            acknowledged.extend(ledger.delivered(number, now));
        }
        assert_eq!(
            acknowledged.iter().map(|d| (d.epoch, d.packet)).collect::<Vec<_>>(),
            [(2, 1), (2, 2)]
        );
        assert_eq!(ledger.lookup(&key, delivery(2, 3), false), Known::New);
    }

    #[test]
    fn one_id_for_different_prompts_is_not_one_prompt() {
        let mut ledger = Ledger::default();
        ledger.open(key(None, Some("lamp"), "on"), None, Some("lamp".into()));
        assert_eq!(ledger.lookup(&key(None, Some("lamp"), "off"), None, false), Known::New);
        assert_eq!(ledger.lookup(&key(None, Some("lamp"), "on"), None, false), Known::InWork);
        assert_ne!(key(Some("lamp"), None, "on"), key(None, Some("lamp"), "on"));
    }

    #[test]
    fn a_failure_is_repeated_to_the_broker_but_tried_again_for_the_asker() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        let key = key(None, Some("i"), "hi");
        let number = ledger.open(key.clone(), delivery(1, 1), None);
        ledger.accepted(number, PromptId(1));
        ledger.answering(number, answer("timeout"), false);
        ledger.delivered(number, now);
        assert_eq!(ledger.lookup(&key, delivery(1, 2), false), Known::New);
        assert_eq!(
            ledger.lookup(&key, delivery(2, 2), true),
            Known::Answered { answer: answer("timeout"), ok: false }
        );
    }

    #[test]
    fn a_refusal_is_not_kept() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        let key = key(None, Some("i"), "hi");
        let number = ledger.open(key.clone(), delivery(1, 1), None);
        ledger.answering(number, answer("busy"), false);
        assert_eq!(ledger.delivered(number, now), [Delivery { epoch: 1, packet: 1 }]);
        assert_eq!(ledger.lookup(&key, delivery(2, 2), true), Known::New);
    }

    #[test]
    fn an_answer_in_parts_is_done_with_the_last_part() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        let number = ledger.open(key(None, Some("i"), "hi"), delivery(1, 1), None);
        ledger.answering(number, [answer("a"), answer("b")].concat(), true);
        assert_eq!(ledger.delivered(number, now), []);
        assert_eq!(ledger.delivered(number, now).len(), 1);
        assert_eq!(ledger.delivered(number, now), []);
    }

    #[test]
    fn the_window_is_bounded_in_time_number_and_bytes() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        let mut done = |id: String, answer: Vec<Publication>, now: Instant| {
            let key = Key::new("r", None, Some(&id), "t", b"");
            let number = ledger.open(key.clone(), None, None);
            ledger.answering(number, answer, true);
            ledger.delivered(number, now);
            assert!(ledger.kept.len() <= MAX_KEPT && ledger.kept_bytes <= MAX_KEPT_BYTES);
            (key, ledger.kept.len())
        };
        for n in 0..MAX_KEPT + 10 {
            done(n.to_string(), answer("x"), now);
        }
        let big =
            Publication { payload: vec![0; MAX_KEPT_BYTES - 100].into(), ..Publication::default() };
        let (key, kept) = done("big".into(), vec![big], now);
        assert_eq!(kept, 1);
        let (_, kept) = done("late".into(), answer("x"), now + KEEP);
        assert_eq!(kept, 1);
        assert_eq!(ledger.lookup(&key, None, false), Known::New);
    }

    #[test]
    fn found_by_id_or_by_promptds_number() {
        let mut ledger = Ledger::default();
        let one = ledger.open(key(None, Some("a"), "1"), None, Some("a".into()));
        let two = ledger.open(key(None, Some("a"), "2"), None, Some("a".into()));
        ledger.accepted(two, PromptId(7));
        assert_eq!(ledger.named("a"), [one, two]);
        assert_eq!(ledger.named("p7"), [two]);
        ledger.answering(two, answer("x"), true);
        assert_eq!((ledger.named("p7"), ledger.working()), (vec![], 1));
        ledger.hand_back(one);
        assert_eq!(ledger.named("a"), Vec::<u64>::new());
    }
}
