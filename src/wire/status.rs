//! Writes the service's state as JSON: the same object on MQTT's `status` topic, on the socket and in `promptd status`.

use serde_json::{Map, Value, json};

use super::answer::numbers;
use crate::record::Health;
use crate::scheduler::{BoardState, State, Status};

/// The state, the model, the queue and the counters.
pub fn status_object(status: &Status) -> Value {
    let mut object = Map::new();
    object.insert("state".into(), status.state_name().into());
    match &status.state {
        State::Loading(stage) => {
            object.insert("stage".into(), stage.as_str().into());
        }
        State::ModelFailed(refusal) => {
            object.insert("code".into(), refusal.code.as_str().into());
            object.insert("message".into(), refusal.message.as_str().into());
            object.extend(numbers(refusal));
        }
        State::Ready | State::Unloaded | State::Draining => {}
    }
    if let Some(model) = &status.model {
        let placement = &model.placement;
        let nodes: Map<String, Value> = (placement.nodes.iter())
            .map(|(provider, count)| (provider.clone(), (*count).into()))
            .collect();
        object.insert(
            "model".into(),
            json!({
                "name": model.name, "architecture": model.architecture, "context": model.context,
                "vocab_size": model.vocab_size, "chat": model.chat, "text": model.text, "embedding": model.embedding, "provider": placement.provider,
                "provider_reason": placement.why, "nodes": nodes, "prepared": placement.prepared, "runtime_version": model.runtime_version, "threads": model.threads, "load_ms": model.load_ms,
            }),
        );
    }
    let ms = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    object.insert(
        "queue".into(),
        json!({
            "waiting": status.waiting, "limit": status.queue_limit, "max_wait_ms": ms(status.max_wait),
            // In whole seconds: the status is published when it changes.
            "eta_ms": whole_seconds(status.next_begins),
        }),
    );
    let slots = status.model.as_ref().map(|model| model.slots);
    object.insert("slots".into(), json!({"running": status.running, "total": slots}));
    object.insert("engine_pid".into(), status.engine_pid.into());
    if let Some(error) = &status.configuration_error {
        object.insert("configuration_error".into(), error.as_str().into());
    }
    if let Some(why) = &status.went_back {
        object.insert("went_back".into(), why.as_str().into());
    }
    if let Some(next) = &status.next_model {
        object.insert("next_model".into(), next.as_str().into());
    }
    if let Some(record) = &status.record {
        object.insert("record".into(), record_object(record));
    }
    object.insert("board".into(), board_object(&status.board));
    let counters = &status.counters;
    object.insert(
        "counters".into(),
        json!({
            "accepted": counters.accepted, "finished": counters.finished, "refused": counters.refused,
            "prompt_tokens": counters.prompt_tokens, "cached_tokens": counters.cached_tokens,
            "completion_tokens": counters.completion_tokens, "engine_restarts": counters.engine_restarts,
        }),
    );
    Value::Object(object)
}

/// How the MQTT door stands with its broker. The door knows it, and the socket tells it: over MQTT nobody could be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Broker {
    /// The broker's address, without user name and password.
    pub url: String,
    /// Which MQTT is spoken, while there is a connection.
    pub connected: Option<&'static str>,
    /// Why there is none, or why the last one ended.
    pub trouble: Option<String>,
    /// What its access rules refuse. Bounded by the door.
    pub denied: Vec<Denied>,
}

/// A topic that the broker does not let promptd have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    /// `subscribe` or `publish`.
    pub action: &'static str,
    /// Which topic.
    pub topic: String,
    /// In the words of the standard: `not authorized`.
    pub reason: String,
}

/// `{"url":"mqtt://…","connected":false,"mqtt":"5","trouble":"…","denied":[{"action":"publish","topic":"…","reason":"…"}]}`
pub fn broker_object(broker: &Broker) -> Value {
    let mut object = Map::new();
    object.insert("url".into(), broker.url.as_str().into());
    object.insert("connected".into(), broker.connected.is_some().into());
    object.extend(broker.connected.map(|mqtt| ("mqtt".to_owned(), Value::from(mqtt))));
    let trouble = broker.trouble.as_deref();
    object.extend(trouble.map(|trouble| ("trouble".to_owned(), Value::from(trouble))));
    if !broker.denied.is_empty() {
        let denied = broker.denied.iter().map(|Denied { action, topic, reason }| {
            json!({"action": action, "topic": topic, "reason": reason})
        });
        object.insert("denied".into(), denied.collect());
    }
    Value::Object(object)
}

/// What the board says; only what there is to say.
fn board_object(board: &BoardState) -> Value {
    let mut object = Map::new();
    object.extend(board.celsius.map(|celsius| ("celsius".to_owned(), celsius.into())));
    object.insert("throttled".into(), board.throttled.clone().into());
    let short = board.short_of_memory.as_deref();
    object.extend(short.map(|why| ("short_of_memory".to_owned(), why.into())));
    Value::Object(object)
}

/// How things are with what outlasts the service.
fn record_object(record: &Health) -> Value {
    let mut object = Map::new();
    let state = if record.trouble.is_some() { "degraded" } else { "ok" };
    object.insert("state".into(), state.into());
    object.extend(record.trouble.as_ref().map(|why| ("reason".to_owned(), why.as_str().into())));
    object.insert("prompts".into(), record.prompts.into());
    object.insert("undelivered".into(), record.undelivered.into());
    object.insert("answers".into(), record.answers.into());
    object.insert("waiting".into(), record.waiting.into());
    object.insert("replayed".into(), record.replayed.into());
    object.insert("lost".into(), record.lost.into());
    Value::Object(object)
}

/// A time in milliseconds, rounded up to whole seconds.
fn whole_seconds(time: std::time::Duration) -> u64 {
    (time.as_secs() + u64::from(time.subsec_nanos() > 0)).saturating_mul(1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Code, Refusal};

    #[test]
    fn states() {
        let loading = status_object(&Status::default());
        assert_eq!(
            (&loading["state"], &loading["stage"]),
            (&json!("loading"), &json!("opening libonnxruntime"))
        );
        let refusal = Refusal::new(Code::ModelFailed, "no such folder");
        let failed =
            status_object(&Status { state: State::ModelFailed(refusal), ..Status::default() });
        assert_eq!(
            (&failed["code"], &failed["message"]),
            (&json!("model_failed"), &json!("no such folder"))
        );
        let trouble = Some("the disk is full".to_owned());
        let record = Some(Health { trouble, waiting: 3, ..Health::default() });
        let degraded = status_object(&Status { state: State::Ready, record, ..Status::default() });
        assert_eq!(degraded["state"], "degraded");
        assert_eq!(
            degraded["record"],
            json!({"state": "degraded", "reason": "the disk is full", "prompts": 0, "undelivered": 0, "answers": 0, "waiting": 3, "replayed": 0, "lost": 0})
        );
        let ready = status_object(&Status { state: State::Ready, waiting: 2, ..Status::default() });
        assert_eq!((&ready["state"], &ready["queue"]["waiting"]), (&json!("ready"), &json!(2)));
    }
}
