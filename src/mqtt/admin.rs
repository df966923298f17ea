//! What an operator asks over MQTT: `request/` and `load`, `unload`, `reload`, `drain` or `loglevel`. Switched off unless the
//! configuration allows it, because MQTT does not tell who publishes: the broker's access rules have to.

use std::time::{Duration, Instant};

use serde_json::Value;
use tracing::info;

use super::door::Door;
use super::ledger::Key;
use super::message::{Message, Publication};
use super::prompt::Report;
use super::reply::{self, Address, Form, Wishes};
use crate::control::Operation;
use crate::request::{Code, Refusal};
use crate::wire::payload::Operated as Reply;
use crate::wire::{PROTOCOL, status_object};

/// Requests in work at once: each waits for the one model.
const AT_ONCE: usize = 8;
/// What is asked beside the operations: it needs more than its name.
const LOG_LEVEL: &str = "loglevel";
/// How long a response is worth delivering.
const WANTED: Duration = Duration::from_mins(5);

/// A request in work.
#[derive(Debug)]
pub(super) struct Operated {
    to: Address,
    id: Option<String>,
    operation: Operation,
}

impl Door {
    /// An operator asks.
    pub(super) fn request(&mut self, message: &Message, name: &str, now: Instant) {
        self.acknowledge(message.delivery);
        let Some(control) = self.facts.control.clone() else { return };
        let id = text(&message.payload, "id");
        let correlation = message.correlation.as_ref();
        let wishes = Wishes {
            response_topic: message.response_topic.as_deref(),
            correlation,
            reply_to: None,
            id: None,
        };
        let asked_topic = message.response_topic.is_some();
        let to = match reply::address(&self.topics, &self.allowed, &wishes) {
            (to, None) if asked_topic => to,
            (to, _) => Address { topic: self.topics.response(name), ..to },
        };
        let key = Key::new(&to.topic, correlation, id.as_deref(), &message.topic, &message.payload);
        let number = self.ledger.open(key, None, None);
        if name == LOG_LEVEL {
            let result =
                control.set_log_level(&text(&message.payload, "level").unwrap_or_default());
            info!(ok = result.is_ok(), "asked over MQTT for another level of the log");
            let reply = self.outcome(to, id.as_deref(), LOG_LEVEL, &result);
            return self.answer(number, vec![reply], result.is_ok(), now + WANTED);
        }
        let operation = match Operation::by_name(name) {
            Ok(_) if self.operations.len() >= AT_ONCE => Err(Refusal::new(
                Code::Busy,
                "more requests wait for the model than can be done at once",
            )
            .with_retry_after(Duration::from_secs(5))),
            known => known,
        };
        match operation {
            Err(refusal) => {
                let message = reply::refusal(&to, Form::default(), id.as_deref(), &refusal);
                self.answer(number, vec![message], false, now + WANTED);
            }
            Ok(operation) => {
                info!(operation = name, "asked for over MQTT");
                self.operations.insert(number, Operated { to, id, operation });
                let reports = self.reports.0.clone();
                self.tasks.spawn(async move {
                    let result = control.run(operation).await;
                    // A door that is gone has nobody to tell.
                    let _ = reports.send((number, Report::Operated(result))).await;
                });
            }
        }
    }

    /// A request is done.
    pub(super) fn operated(&mut self, number: u64, result: &Result<(), Refusal>, now: Instant) {
        let Some(Operated { to, id, operation }) = self.operations.remove(&number) else { return };
        let message = self.outcome(to, id.as_deref(), operation.name(), result);
        self.answer(number, vec![message], result.is_ok(), now + WANTED);
    }

    fn outcome(
        &self,
        to: Address,
        id: Option<&str>,
        operation: &'static str,
        result: &Result<(), Refusal>,
    ) -> Publication {
        if let Err(refusal) = result {
            return reply::refusal(&to, Form::default(), id, refusal);
        }
        let status = self.status.borrow();
        let object = Reply {
            v: PROTOCOL,
            id,
            status: "ok",
            operation,
            state: status.state.as_str(),
            promptd: status_object(&status),
        };
        let object = serde_json::to_value(object).unwrap_or_default();
        Publication { correlation: to.correlation, ..Publication::json(to.topic, &object) }
    }
}

/// A text of the payload, where it is an object that has one of this name.
fn text(payload: &[u8], name: &str) -> Option<String> {
    // What an operator sends is an id and a level at most.
    let small = payload.len() <= 4096;
    let object: Value = serde_json::from_slice(payload).ok().filter(|_| small)?;
    object.get(name)?.as_str().map(str::to_owned)
}
