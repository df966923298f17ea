//! What the door publishes about promptd itself, for whoever subscribes at any time: `status`, `info`, `availability`.

use std::time::{Duration, Instant};

use super::client::OFFLINE;
use super::door::Door;
use super::message::Publication;
use super::outbox::Owner;
use crate::scheduler::Status;
use crate::wire::{PROTOCOL, status_object};

/// The status is published at most this often.
pub(super) const STATUS_EVERY: Duration = Duration::from_millis(500);

impl Door {
    /// Publishes the status, and the info where it changed, unless that was done a moment ago.
    pub(super) fn publish_status(&mut self, now: Instant) {
        if self.status_last.as_ref().is_some_and(|(last, _)| now < *last + STATUS_EVERY) {
            return;
        }
        self.status_dirty = false;
        let status = self.status.borrow_and_update().clone();
        let info = self.info(&status);
        if self.info_last.as_ref() != Some(&info) {
            self.info_last = Some(info.clone());
            self.publish_state(self.topics.info(), info, Some("application/json"));
        }
        let text = status_object(&status).to_string();
        if self.status_last.as_ref().is_some_and(|(_, last)| *last == text) {
            return;
        }
        self.status_last = Some((now, text.clone()));
        self.publish_state(self.topics.status(), text, Some("application/json"));
    }

    fn info(&self, status: &Status) -> String {
        let limits = &self.facts.limits;
        let model = status.model.as_ref();
        let mqtt =
            self.connection.as_ref().map(|connection| connection.version).unwrap_or_default();
        serde_json::json!({
            "version": self.facts.version, "protocol": PROTOCOL, "node": self.node, "mqtt": mqtt.as_str(),
            "model": model.map(|model| &model.name),
            "profiles": self.facts.policies.current().profiles.names().collect::<Vec<_>>(),
            "limits": {
                "payload_bytes": limits.payload_bytes, "messages": limits.messages, "stop": limits.stop_strings,
                "context": model.map(|model| model.context), "slots": model.map(|model| model.slots),
                "queue": status.queue_limit,
            },
        })
        .to_string()
    }

    /// Publishes a text that stays.
    pub(super) fn publish_state(
        &mut self,
        topic: String,
        text: String,
        content_type: Option<&'static str>,
    ) {
        let publication = Publication {
            topic,
            payload: text.into(),
            retain: true,
            content_type,
            ..Publication::default()
        };
        self.outbox.push(Owner::State, publication, None);
    }

    /// Publishes `offline`, as the broker would if promptd vanished.
    pub(super) fn publish_offline(&mut self) {
        self.publish_state(self.topics.availability(), OFFLINE.to_owned(), None);
    }
}
