//! What the door does with a message: a prompt is answered, refused, or found to be known; a cancel stops prompts.

use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::oneshot;
use tracing::{debug, warn};

use super::door::{Door, Prompt, REFUSAL_WANTED, Wanted};
use super::fleet::{Passable, Via};
use super::ledger::{Key, Known};
use super::message::{Delivery, Message, Publication};
use super::prompt::{self, Manner};
use super::reply::{self, Address, Form, Wishes};
use super::topic::{self, Inbound};
use crate::defect::Defect;
use crate::identity::{Grant, Who};
use crate::request::{Code, Door as Way, Origin, Refusal, Submission};
use crate::scheduler::State;
use crate::wire::{AskError, Asked, Context, cbor_to_json, parse_ask};

/// When it is worth asking again if the door itself is full.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// The most bytes of a cancel: an id, and some room.
const MAX_CANCEL_BYTES: usize = 4096;

/// Requests in CBOR are told by MQTT 5's content type; bytes alone do not tell.
const CBOR: &str = "application/cbor";

/// What is known of a request before it is a prompt.
struct Arrival<'a> {
    message: &'a Message,
    to: Address,
    id: Option<&'a str>,
    key: Key,
}

impl Door {
    /// A message came.
    pub(super) fn message(&mut self, message: &Message, now: Instant) {
        if message.payload == "online" && self.birth().as_ref() == Some(&message.topic) {
            self.born();
        }
        if self.facts.policies.readings().note(&message.topic, &message.payload, now) {
            return self.acknowledge(message.delivery);
        }
        if self.peer(message, now) || self.took(message, now) {
            return self.acknowledge(message.delivery);
        }
        let topics = self.topics.clone();
        let (profile, via) = match topics.parse(&message.topic) {
            Some(Inbound::Ask(profile)) => (profile, Via::Own),
            Some(Inbound::Shared(profile)) if self.fleet.is_some() => (profile, Via::Shared),
            Some(Inbound::Handed(profile)) if self.fleet.is_some() => (profile, Via::Handed),
            _ => return self.no_prompt(message, now),
        };
        if message.retained {
            return self.retained(message, now);
        }
        // An empty one is how a retained message is deleted. One that was over before it came was asked by somebody who does
        // not listen any more.
        let empty = message.payload.is_empty() && message.response_topic.is_none();
        if empty || message.expiry == Some(Duration::ZERO) {
            return self.acknowledge(message.delivery);
        }
        self.ask(message, profile, via, now);
    }

    fn retained(&mut self, message: &Message, now: Instant) {
        if let Some(others) = self.said_retained.now(now) {
            warn!(
                others,
                topic = message.topic.escape_debug().to_string(),
                "a retained message is no prompt: publish without the retain flag, and delete the retained one"
            );
        }
        self.acknowledge(message.delivery);
    }

    /// A message that is no prompt came.
    fn no_prompt(&mut self, message: &Message, now: Instant) {
        let topics = self.topics.clone();
        match topics.parse(&message.topic) {
            Some(Inbound::Cancel) if !message.retained => {
                self.cancel(message);
                self.acknowledge(message.delivery);
            }
            Some(Inbound::Request(operation)) if !message.retained => {
                self.request(message, operation, now);
            }
            Some(Inbound::Cancel | Inbound::Request(_)) => self.retained(message, now),
            _ => self.acknowledge(message.delivery),
        }
    }

    fn ask(&mut self, message: &Message, profile: Option<&str>, via: Via, now: Instant) {
        let read = self.read(message, profile, now);
        let (id, reply_to) = match &read {
            Ok(asked) => (asked.id.as_deref(), asked.reply_to.as_deref()),
            Err(error) => (error.id.as_deref(), error.reply_to.as_deref()),
        };
        let (response_topic, correlation) =
            (message.response_topic.as_deref(), message.correlation.as_ref());
        let (to, unusable) = reply::address(
            &self.topics,
            &self.allowed,
            &Wishes { response_topic, correlation, reply_to, id },
        );
        let key = Key::new(&to.topic, correlation, id, &message.topic, &message.payload);
        let arrival = Arrival { message, to, id, key };
        match self.ledger.lookup(&arrival.key, message.delivery, message.again) {
            Known::InWork => return debug!("a prompt in work was delivered again"),
            Known::Safe => return self.acknowledge(message.delivery),
            Known::Answered { answer, ok } => return self.answer_again(&arrival, answer, ok, now),
            Known::New => {}
        }
        let (format, max_bytes) = match &read {
            Ok(asked) => (asked.format, asked.max_bytes),
            Err(error) => (error.format, error.max_bytes),
        };
        let form = Form { format, max_bytes, cbor: content_type(message) == CBOR };
        let asked = match (unusable, &read) {
            (Some(refusal), _) => return self.refuse(&arrival, form, &refusal, now),
            (None, Err(error)) => return self.refuse(&arrival, form, &error.refusal, now),
            (None, Ok(asked)) => asked,
        };
        if via == Via::Shared
            && let Some(node) = self.elsewhere(now)
            && self.outbox.has_room(self.ledger.working())
        {
            return self.start(&arrival, (form, asked.clone()), (profile, via, Some(node)), now);
        }
        // While promptd stops, the broker keeps what it can send again.
        let stopping = self.leaving || self.status.borrow().state == State::Draining;
        if stopping && message.delivery.is_some() {
            return;
        }
        if self.leaving {
            let refusal =
                Refusal::new(Code::Busy, "promptd is stopping").with_retry_after(RETRY_AFTER);
            return self.refuse(&arrival, form, &refusal, now);
        }
        if let Err(refusal) = self.admit(asked) {
            return self.refuse(&arrival, form, &refusal, now);
        }
        self.start(&arrival, (form, asked.clone()), (profile, via, None), now);
    }

    /// Reads a request. Who asks may stand in the request itself, and decides what it may say: then it is read again.
    fn read(
        &self,
        message: &Message,
        profile: Option<&str>,
        now: Instant,
    ) -> Result<Asked, AskError> {
        let policy = self.facts.policies.current();
        let own_answer = self.topics.answer(None);
        let grant = |reply_to: Option<&str>, id: Option<&str>| {
            let name = name(&own_answer, message, reply_to, id);
            policy.access.grant(Who { mqtt: Some(name), ..Who::default() })
        };
        let read = |grant: Grant| {
            let context = Context {
                profiles: &policy.profiles,
                readings: self.facts.policies.readings(),
                limits: &self.facts.limits,
                grant,
                now,
                door: Way::Mqtt,
            };
            self.read_as(message, profile, &context)
        };
        let first = grant(None, None);
        let asked = read(first.clone());
        let (reply_to, id) = match &asked {
            Ok(asked) => (asked.reply_to.as_deref(), asked.id.as_deref()),
            Err(error) => (error.reply_to.as_deref(), error.id.as_deref()),
        };
        let second = grant(reply_to, id);
        if second == first { asked } else { read(second) }
    }

    /// Reads a request of somebody. The content type decides where it is given; otherwise the first character does.
    fn read_as(
        &self,
        message: &Message,
        profile: Option<&str>,
        context: &Context<'_>,
    ) -> Result<Asked, AskError> {
        match content_type(message).as_str() {
            CBOR => {
                if message.payload.len() > self.facts.limits.payload_bytes {
                    // Says so.
                    return parse_ask(&message.payload, profile, context);
                }
                let object = cbor_to_json(&message.payload)?.to_string();
                self.parse_ours(&object, profile, context)
            }
            // Text that begins with `{` is text all the same.
            "text/plain" if message.payload.trim_ascii_start().first() == Some(&b'{') => {
                match std::str::from_utf8(&message.payload) {
                    Ok(text) if text.len() <= self.facts.limits.payload_bytes => {
                        let object = serde_json::json!({ "prompt": text }).to_string();
                        self.parse_ours(&object, profile, context)
                    }
                    _ => parse_ask(&message.payload, profile, context),
                }
            }
            _ => parse_ask(&message.payload, profile, context),
        }
    }

    /// Reads JSON that was made here from what came. Its quotes and escapes are ours; they do not count against the asker.
    fn parse_ours(
        &self,
        object: &str,
        profile: Option<&str>,
        context: &Context<'_>,
    ) -> Result<Asked, AskError> {
        let mut limits = self.facts.limits.clone();
        limits.payload_bytes = limits.payload_bytes.max(object.len());
        parse_ask(object.as_bytes(), profile, &Context { limits: &limits, ..context.clone() })
    }

    fn admit(&self, asked: &Asked) -> Result<(), Refusal> {
        {
            let status = self.status.borrow();
            asked.check_model(status.model.as_ref().map(|model| model.name.as_str()))?;
        }
        let identity = &asked.submission.identity;
        let own = self.prompts.iter().filter(|(_, prompt)| prompt.identity == *identity);
        if self.ledger.has_room(own.map(|(number, _)| *number))
            && self.outbox.has_room(self.ledger.working())
        {
            return Ok(());
        }
        let message =
            "as many prompts of yours wait as this board takes over MQTT beside those of others";
        Err(Refusal::new(Code::Busy, message).with_retry_after(RETRY_AFTER))
    }

    /// Takes a prompt in, or hands it to the board that is named.
    fn start(
        &mut self,
        arrival: &Arrival<'_>,
        (form, asked): (Form, Asked),
        (profile, via, elsewhere): (Option<&str>, Via, Option<String>),
        now: Instant,
    ) {
        let is_json = asked.is_json();
        let logprobs = asked.submission.request.logprobs.is_some();
        let mut submission = asked.submission;
        submission.timeout =
            [submission.timeout, arrival.message.expiry].into_iter().flatten().min();
        submission.origin.topic = Some(arrival.to.topic.clone());
        let until = submission.timeout.map(|timeout| now + timeout);
        let number =
            self.ledger.open(arrival.key.clone(), arrival.message.delivery, asked.id.clone());
        if Defect::AcknowledgeAtOnce.is_here() {
            self.acknowledge(arrival.message.delivery);
        }
        let wanted = Wanted {
            to: arrival.to.clone(),
            form,
            id: asked.id,
            is_json,
            logprobs,
            stream: asked.stream,
            until,
            attempt: 1,
        };
        let passable = |submission: &Submission| Passable {
            message: arrival.message.clone(),
            profile: profile.map(str::to_owned),
            submission: submission.clone(),
            came: now,
        };
        if let Some(node) = elsewhere {
            self.expect(&node, now);
            return self.hand(number, node, wanted, passable(&submission));
        }
        let patient = arrival.message.delivery.is_some();
        // Without a delivery (QoS 0) nothing was promised, and nothing is recorded.
        if patient {
            submission.recorded = self.shelf.draft(number, &arrival.key, &wanted, &submission);
        }
        let shared = (via == Via::Shared).then(|| Box::new(passable(&submission)));
        self.spawn(number, wanted, submission, (patient, shared));
    }

    /// Lets a prompt begin its way.
    pub(super) fn spawn(
        &mut self,
        number: u64,
        wanted: Wanted,
        submission: Submission,
        (patient, shared): (bool, Option<Box<Passable>>),
    ) {
        let (stop, stopped) = oneshot::channel();
        let identity = submission.identity.clone();
        let manner = Manner { stream: wanted.stream, patient };
        let ends = (self.reports.0.clone(), stopped);
        let work = prompt::run(number, self.scheduler.clone(), submission, manner, ends);
        let task = self.tasks.spawn(work);
        let level = wanted.id.clone().filter(|id| topic::is_id(id));
        let stop = Some(stop);
        let prompt = Prompt {
            wanted,
            identity,
            session: None,
            level,
            seq: 0,
            task,
            stop,
            shared,
            handing: None,
        };
        self.prompts.insert(number, prompt);
    }

    fn refuse(&mut self, arrival: &Arrival<'_>, form: Form, refusal: &Refusal, now: Instant) {
        let origin = Origin {
            id: arrival.id.map(str::to_owned),
            topic: Some(arrival.to.topic.clone()),
            ..Origin::new(Way::Mqtt)
        };
        self.scheduler.traffic().turned_away(&origin, None, refusal);
        let message = reply::refusal(&arrival.to, form, arrival.id, refusal);
        if self.outbox.takes_refusals() {
            self.finish_now(arrival, vec![message], false, now);
        } else {
            self.refuse_at_once(&message, arrival.message.delivery);
        }
    }

    /// Refuses without keeping anything of it: the refusal is sent once (`QoS` 0), in front of the acknowledgement. The broker
    /// has both or neither, then it sends the prompt again; but a subscriber who is away gets none.
    fn refuse_at_once(&mut self, message: &Publication, delivery: Option<Delivery>) {
        let Some(connection) = &self.connection else { return };
        let packet = delivery.filter(|delivery| delivery.epoch == connection.epoch);
        let packet = packet.map(|delivery| delivery.packet);
        if message.weight() > connection.max_packet {
            return self.acknowledge(delivery);
        }
        // Nothing is read while there is no room for this.
        if connection.client.refuse(message, packet).is_err() {
            debug!("a refusal found no room; the broker keeps its prompt");
        }
    }

    /// Gives an answer again.
    fn answer_again(
        &mut self,
        arrival: &Arrival<'_>,
        messages: Vec<Publication>,
        ok: bool,
        now: Instant,
    ) {
        if self.outbox.has_room_for(&messages, self.ledger.working()) {
            return self.finish_now(arrival, messages, ok, now);
        }
        let message = "too many answers wait for the broker for this one to be given again now";
        let refusal = Refusal::new(Code::Busy, message).with_retry_after(RETRY_AFTER);
        self.refuse(arrival, Form::default(), &refusal, now);
    }

    /// Publishes an answer that needs no work.
    fn finish_now(
        &mut self,
        arrival: &Arrival<'_>,
        messages: Vec<Publication>,
        ok: bool,
        now: Instant,
    ) {
        let id = arrival.id.map(str::to_owned);
        let number = self.ledger.open(arrival.key.clone(), arrival.message.delivery, id);
        self.answer(number, messages, ok, now + REFUSAL_WANTED);
    }

    /// Stops prompts. There is no answer to a cancel: the prompts it stops end with `cancelled`.
    fn cancel(&mut self, message: &Message) {
        if Defect::ForgetCancel.is_here() {
            return;
        }
        let json = (content_type(message) == CBOR && message.payload.len() <= MAX_CANCEL_BYTES)
            .then(|| cbor_to_json(&message.payload).map(|object| object.to_string()));
        let payload = match &json {
            Some(Ok(json)) => json.as_bytes(),
            _ => &message.payload,
        };
        let numbers = match cancelled(payload) {
            Err(why) => return debug!(why, "a cancel that cannot be read"),
            // Those that came over MQTT: what somebody asked at the socket is not a device's to stop.
            Ok(Cancelled::All) => self.prompts.keys().copied().collect(),
            Ok(Cancelled::Id(id)) => self.ledger.named(&id),
        };
        for number in numbers {
            if let Some(prompt) = self.prompts.get_mut(&number) {
                prompt.stop = None;
                prompt.handing = None;
            }
        }
    }
}

/// What the payload is said to be, without parameters; empty where nothing is said.
fn content_type(message: &Message) -> String {
    let kind = message.content_type.as_deref().unwrap_or_default();
    kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

#[derive(Debug, PartialEq, Eq)]
enum Cancelled {
    All,
    Id(String),
}

fn cancelled(payload: &[u8]) -> Result<Cancelled, &'static str> {
    if payload.len() > MAX_CANCEL_BYTES {
        return Err("it is longer than 4096 bytes");
    }
    let Ok(Value::Object(object)) = serde_json::from_slice(payload) else {
        return Err("it is no JSON object; write {\"id\":\"…\"} or {\"all\":true}");
    };
    match (object.get("id"), object.get("all")) {
        (Some(Value::String(id)), None | Some(Value::Bool(false))) => Ok(Cancelled::Id(id.clone())),
        (None, Some(Value::Bool(true))) => Ok(Cancelled::All),
        _ => Err("it has neither \"id\" nor \"all\":true"),
    }
}

/// Who asks. MQTT does not tell; but clients may say it (the user property `client`), have a level of their own in the
/// topics they are answered on, or begin their ids with their name.
fn name<'a>(
    own_answer: &str,
    message: &'a Message,
    reply_to: Option<&'a str>,
    id: Option<&'a str>,
) -> &'a str {
    let topic = message.response_topic.as_deref().or(reply_to);
    let foreign = topic.filter(|topic| !topic::is_under(topic, own_answer));
    let level = foreign.and_then(|topic| topic.trim_start_matches('/').split('/').next());
    let prefix = || id.and_then(|id| id.split_once([':', '.'])).map(|(name, _)| name);
    message.client.as_deref().or(level).or_else(prefix).filter(|name| is_name(name)).unwrap_or("")
}

/// Whether a name is short enough to be kept for every prompt, and can be written into a log.
fn is_name(name: &str) -> bool {
    name.len() <= 128 && !name.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cancels() {
        assert_eq!(cancelled(br#"{"id":"a"}"#), Ok(Cancelled::Id("a".into())));
        assert_eq!(cancelled(br#"{"all":true}"#), Ok(Cancelled::All));
        for bad in [
            "",
            "a",
            "[]",
            "{}",
            r#"{"all":false}"#,
            r#"{"id":1}"#,
            r#"{"id":"a","all":true}"#,
            r#"{"all":1}"#,
        ] {
            assert!(cancelled(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(cancelled(&[b' '; MAX_CANCEL_BYTES + 1]).is_err());
    }

    #[test]
    fn names() {
        let table = [
            (Some("esp32-7/llm"), None, None, "esp32-7"),
            (Some("/esp32-7/llm"), None, Some("x"), "esp32-7"),
            (Some("promptd/n/answer/esp32-7:42"), None, Some("esp32-7:42"), "esp32-7"),
            (None, Some("lamp/llm"), Some("esp32-7:42"), "lamp"),
            (None, None, Some("esp32-7:42"), "esp32-7"),
            (None, None, Some("42"), ""),
            (None, None, None, ""),
        ];
        for (response, reply_to, id, want) in table {
            let response_topic = response.map(str::to_owned);
            let message = Message { response_topic, ..Message::default() };
            assert_eq!(name("promptd/n/answer", &message, reply_to, id), want, "{id:?}");
            let said = Message { client: Some("phone".into()), ..message.clone() };
            assert_eq!(name("promptd/n/answer", &said, reply_to, id), "phone");
            let said = Message { client: Some("a\nb".into()), ..message };
            assert_eq!(name("promptd/n/answer", &said, reply_to, id), "");
        }
    }
}
