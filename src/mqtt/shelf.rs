//! What the door keeps in the record of its prompts: which row belongs to which prompt, and what stands in it.

use std::collections::BTreeMap;
use std::time::Instant;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

use super::door::Wanted;
use super::ledger::{KEEP, Key};
use super::message::Publication;
use super::reply::{Address, Form};
use crate::defect::Defect;
use crate::record::{Door as Through, Health, Item, Record, Stage, unix_ms};
use crate::request::{Again, Door, Identity, Origin, Priority, Request, Submission};
use crate::wire::AnswerFormat;

/// What happened to the record.
#[derive(Debug)]
pub(super) enum News {
    /// It may have made something safe.
    Safe,
    /// It could be read at last, and had this.
    Found(Vec<Item>),
}

/// The rows of the prompts that the door knows.
pub(super) struct Shelf {
    record: Option<Opened>,
    /// By the ledger's number.
    rows: BTreeMap<u64, Shelved>,
    /// Prompts that are not safe yet, by the mark at which they are.
    unsafe_yet: BTreeMap<u64, u64>,
}

struct Opened {
    record: Record,
    health: watch::Receiver<Health>,
    found: mpsc::Receiver<Vec<Item>>,
}

struct Shelved {
    item: Item,
    /// It stands in the record.
    written: bool,
    /// An engine of this service began with it.
    begun: bool,
    named: bool,
}

/// A prompt without an answer, as it lies in the record. Names may be added, none may change its meaning.
#[derive(Debug, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is a word of the request")]
pub(super) struct StoredPrompt {
    named: bool,
    topic: String,
    correlation: Option<Hex>,
    text: bool,
    max_bytes: Option<usize>,
    id: Option<String>,
    is_json: bool,
    stream: bool,
    #[serde(default)]
    cbor: bool,
    identity: String,
    priority: Priority,
    session: Option<String>,
    /// The profile it names; records of older versions do not say.
    #[serde(default)]
    profile: Option<String>,
    request: Request,
}

/// An answer, as it lies in the record.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct StoredAnswer {
    pub(super) named: bool,
    pub(super) ok: bool,
    messages: Vec<StoredMessage>,
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredMessage {
    topic: String,
    /// A text; where it is none (CBOR), `bytes` has it.
    payload: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bytes: Option<Hex>,
    correlation: Option<Hex>,
    content_type: Option<String>,
    properties: Vec<(String, String)>,
}

/// Bytes as two digits each.
#[derive(Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct Hex(Bytes);

impl Clone for Hex {
    fn clone(&self) -> Self {
        Hex(self.0.clone())
    }
}

impl From<Hex> for String {
    fn from(Hex(bytes): Hex) -> String {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let digit =
            |nibble: u8| DIGITS.get(usize::from(nibble)).map_or('0', |digit| char::from(*digit));
        bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
    }
}

impl TryFrom<String> for Hex {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Hex, Self::Error> {
        let digits: Option<Vec<u8>> = text
            .chars()
            .map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
            .collect();
        let digits = digits.filter(|digits| digits.len() % 2 == 0).ok_or("no hexadecimal bytes")?;
        let byte = |pair: &[u8]| pair.iter().fold(0, |byte, digit| byte << 4 | digit);
        Ok(Hex(digits.chunks(2).map(byte).collect()))
    }
}

impl Shelf {
    pub(super) fn new(record: Option<Record>) -> Self {
        let record = record.map(|record| Opened {
            health: record.health(),
            found: record.found_later(Through::Mqtt),
            record,
        });
        Shelf { record, rows: BTreeMap::new(), unsafe_yet: BTreeMap::new() }
    }

    /// What an earlier start has left.
    pub(super) fn take(&self) -> Vec<Item> {
        if Defect::ForgetRecord.is_here() {
            return Vec::new();
        }
        self.record.as_ref().map_or_else(Vec::new, |opened| opened.record.take(Through::Mqtt))
    }

    /// Waits until something happens to the record. Dropping the future loses nothing.
    pub(super) async fn news(&mut self) -> News {
        let Some(Opened { health, found, .. }) = &mut self.record else {
            return std::future::pending().await;
        };
        let mut gone = false;
        loop {
            tokio::select! {
                changed = health.changed(), if !gone => match changed {
                    Ok(()) => return News::Safe,
                    Err(_) => gone = true,
                },
                Some(items) = found.recv() => return News::Found(items),
                else => return std::future::pending().await,
            }
        }
    }

    /// Writes down what a prompt is, for when it is accepted. Gives its number in the record, if there is one.
    pub(super) fn draft(
        &mut self,
        number: u64,
        key: &Key,
        wanted: &Wanted,
        submission: &Submission,
    ) -> Option<u64> {
        let opened = self.record.as_ref()?;
        let (digest, named) = key.parts();
        let stored = StoredPrompt {
            named,
            topic: wanted.to.topic.clone(),
            correlation: wanted.to.correlation.clone().map(Hex),
            text: wanted.form.format == AnswerFormat::Text,
            max_bytes: wanted.form.max_bytes,
            cbor: wanted.form.cbor,
            id: wanted.id.clone(),
            is_json: wanted.is_json,
            stream: wanted.stream,
            identity: submission.identity.0.clone(),
            priority: submission.priority,
            session: submission.session.clone(),
            profile: submission.profile.clone(),
            request: submission.request.clone(),
        };
        let item = Item {
            number: opened.record.number(),
            door: Through::Mqtt,
            stage: Stage::Accepted,
            key: digest,
            seed: 0,
            starts: 0,
            deaths: 0,
            attempts: wanted.attempt,
            begun: unix_ms(),
            until: wanted.until.map_or(0, |until| wall(until, Instant::now())),
            data: encoded(&stored)?,
        };
        let recorded = item.number;
        self.rows.insert(number, Shelved { item, written: false, begun: false, named });
        Some(recorded)
    }

    /// A row that an earlier start has left belongs to this prompt.
    pub(super) fn restored(&mut self, number: u64, item: Item, named: bool) {
        self.rows.insert(number, Shelved { item, written: true, begun: false, named });
    }

    /// The scheduler took a prompt: what was promised with it is written, and is safe when [`Shelf::take_safe`] says so.
    pub(super) fn accepted(&mut self, number: u64, seed: u64) {
        let (Some(opened), Some(row)) = (&self.record, self.rows.get_mut(&number)) else { return };
        row.item.seed = seed;
        // One of an earlier start stands there already.
        let urgent = !row.written;
        let mark = opened.record.put(row.item.clone(), urgent);
        row.written |= mark.is_some();
        if let Some(mark) = mark.filter(|_| urgent) {
            self.unsafe_yet.insert(mark, number);
        }
    }

    /// An engine begins with a prompt, and so many died while they ran it.
    pub(super) fn started(&mut self, number: u64, deaths: u32) {
        let Some(row) = self.rows.get_mut(&number) else { return };
        let first = !std::mem::replace(&mut row.begun, true);
        self.change(number, false, |item| item.begins(first, deaths));
    }

    /// A prompt is left to the next start; nobody died of it.
    pub(super) fn hand_back(&mut self, number: u64) {
        if self.rows.get(&number).is_some_and(|row| row.begun) {
            self.change(number, false, |item| item.starts = item.starts.saturating_sub(1));
        }
        self.rows.remove(&number);
    }

    /// A prompt has an answer, which is published in these messages.
    pub(super) fn answering(
        &mut self,
        number: u64,
        messages: &[Publication],
        ok: bool,
        until: Instant,
    ) {
        // What was refused before it was accepted stands nowhere.
        if self.rows.get(&number).is_some_and(|row| !row.written) {
            self.rows.remove(&number);
            return;
        }
        let Some(named) = self.rows.get(&number).map(|row| row.named) else { return };
        let messages = messages.iter().map(StoredMessage::from).collect();
        let Some(data) = encoded(&StoredAnswer { named, ok, messages }) else { return };
        self.change(number, false, |item| {
            item.stage = Stage::Answered;
            item.begun = unix_ms();
            item.until = wall(until, Instant::now());
            item.data = data;
        });
    }

    /// The broker has the answer of a prompt, or never will have it. That is made safe at once: what a power cut takes back is said a
    /// second time, and a client may act on it twice.
    pub(super) fn delivered(&mut self, number: u64) {
        self.change(number, true, |item| {
            item.stage = Stage::Delivered;
            item.begun = unix_ms();
            item.until = item.begun + u64::try_from(KEEP.as_millis()).unwrap_or(u64::MAX);
        });
        // The ledger keeps the answer; here its row is enough.
        if let Some(row) = self.rows.get_mut(&number) {
            row.item.data = Bytes::new();
        }
    }

    /// Nobody needs a prompt any more.
    pub(super) fn forget(&mut self, number: u64) {
        let Some(row) = self.rows.remove(&number).filter(|row| row.written) else { return };
        self.drop_row(row.item.number);
    }

    /// Removes a row that belongs to no prompt.
    pub(super) fn drop_row(&self, recorded: u64) {
        if let Some(opened) = &self.record {
            opened.record.remove(recorded);
        }
    }

    /// An accepted prompt of an earlier start is run again.
    pub(super) fn count_replay(&self) {
        if let Some(opened) = &self.record {
            opened.record.replayed();
        }
    }

    /// Whether a prompt is on its way to the disk. Its answer is not said before: a crash in between would make the broker send
    /// the prompt again, to be answered with another seed. A disk that fails is not waited for.
    pub(super) fn is_on_its_way(&self, number: u64) -> bool {
        let Some(opened) = &self.record else { return false };
        let health = opened.health.borrow();
        health.trouble.is_none()
            && self.unsafe_yet.iter().any(|(mark, other)| *other == number && *mark > health.safe)
    }

    /// Prompts that have become safe.
    pub(super) fn take_safe(&mut self) -> Vec<u64> {
        let Some(opened) = &self.record else { return Vec::new() };
        let safe = opened.health.borrow().safe;
        let later = self.unsafe_yet.split_off(&(safe + 1));
        std::mem::replace(&mut self.unsafe_yet, later).into_values().collect()
    }

    fn change(&mut self, number: u64, urgent: bool, change: impl FnOnce(&mut Item)) {
        let (Some(opened), Some(row)) = (&self.record, self.rows.get_mut(&number)) else { return };
        if !row.written {
            return;
        }
        change(&mut row.item);
        // Where too much waits for the disk, the older state stays there: at worst the prompt is run once more.
        let _ = opened.record.put(row.item.clone(), urgent);
    }
}

impl StoredPrompt {
    /// The prompt as the door and the scheduler had it.
    pub(super) fn restore(
        self,
        item: &Item,
        left: Option<std::time::Duration>,
        now: Instant,
    ) -> (Wanted, Submission, bool) {
        let form = Form {
            format: if self.text { AnswerFormat::Text } else { AnswerFormat::Json },
            max_bytes: self.max_bytes,
            cbor: self.cbor,
        };
        let wanted = Wanted {
            to: Address {
                topic: self.topic,
                correlation: self.correlation.map(|Hex(bytes)| bytes),
            },
            form,
            id: self.id,
            is_json: self.is_json,
            logprobs: self.request.logprobs.is_some(),
            stream: self.stream,
            until: left.and_then(|left| now.checked_add(left)),
            attempt: item.attempts,
        };
        let blame = if Defect::BlameForEnds.is_here() { item.starts * 2 } else { 0 };
        let origin = Origin {
            id: wanted.id.clone(),
            topic: Some(wanted.to.topic.clone()),
            ..Origin::new(Door::Mqtt)
        };
        let mut request = self.request;
        request.sampling.seed = Some(item.seed);
        let submission = Submission {
            request,
            identity: Identity(self.identity),
            priority: self.priority,
            timeout: left,
            quota: crate::request::Quota::default(),
            session: self.session,
            profile: self.profile,
            recorded: Some(item.number),
            again: Some(Again { deaths: item.deaths + blame, ends: item.starts }),
            origin,
        };
        (wanted, submission, self.named)
    }
}

impl StoredAnswer {
    /// The messages as they were published.
    pub(super) fn messages(&self) -> Vec<Publication> {
        self.messages.iter().map(Publication::from).collect()
    }
}

impl From<&Publication> for StoredMessage {
    fn from(message: &Publication) -> Self {
        let property = |(name, value): &(&'static str, String)| ((*name).to_owned(), value.clone());
        let text = std::str::from_utf8(&message.payload);
        StoredMessage {
            topic: message.topic.clone(),
            payload: text.unwrap_or_default().to_owned(),
            bytes: text.is_err().then(|| Hex(message.payload.clone())),
            correlation: message.correlation.clone().map(Hex),
            content_type: message.content_type.map(str::to_owned),
            properties: message.properties.iter().map(property).collect(),
        }
    }
}

impl From<&StoredMessage> for Publication {
    fn from(stored: &StoredMessage) -> Self {
        let known =
            |names: &[&'static str], name: &str| names.iter().copied().find(|known| *known == name);
        let property = |(name, value): &(String, String)| {
            let names = ["status", "finish", "error", "part", "parts", "message"];
            known(&names, name).map(|name| (name, value.clone()))
        };
        let types = ["application/json", "application/cbor", "text/plain"];
        Publication {
            topic: stored.topic.clone(),
            payload: match &stored.bytes {
                Some(Hex(bytes)) => bytes.clone(),
                None => Bytes::from(stored.payload.clone()),
            },
            retain: false,
            correlation: stored.correlation.clone().map(|Hex(bytes)| bytes),
            response_topic: None,
            content_type: stored.content_type.as_deref().and_then(|name| known(&types, name)),
            properties: stored.properties.iter().filter_map(property).collect(),
        }
    }
}

fn encoded(stored: &impl Serialize) -> Option<Bytes> {
    // Plain data always is JSON; if it were not, the prompt would be acknowledged after its answer.
    serde_json::to_vec(stored).ok().map(Bytes::from)
}

/// The wall clock at that moment.
fn wall(at: Instant, now: Instant) -> u64 {
    let left = at.saturating_duration_since(now).as_millis();
    unix_ms().saturating_add(u64::try_from(left).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_survive_as_digits() {
        for bytes in [&b""[..], b"\x00\xff\x10", b"corr"] {
            let text = String::from(Hex(Bytes::copy_from_slice(bytes)));
            assert_eq!(Hex::try_from(text).unwrap().0, bytes);
        }
        assert!(
            Hex::try_from("abc".to_owned()).is_err() && Hex::try_from("zz".to_owned()).is_err()
        );
    }

    #[test]
    fn an_answer_survives() {
        for (payload, kind) in
            [("ü".as_bytes(), "application/json"), (b"\xa1\x61a\xf9\x3e\xff", "application/cbor")]
        {
            let message = Publication {
                topic: "me/r".into(),
                payload: Bytes::copy_from_slice(payload),
                retain: false,
                correlation: Some(Bytes::from_static(b"\x01\x02")),
                response_topic: None,
                content_type: Some(kind),
                properties: vec![("status", "ok".into()), ("finish", "stop".into())],
            };
            let stored = StoredMessage::from(&message);
            let text = serde_json::to_string(&stored).unwrap();
            let back: StoredMessage = serde_json::from_str(&text).unwrap();
            assert_eq!(Publication::from(&back), message);
        }
    }
}
