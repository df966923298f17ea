//! What the door publishes about promptd itself, for whoever subscribes at any time: `status`, `info`, `availability`.

use std::time::{Duration, Instant};

use super::client::OFFLINE;
use super::door::Door;
use super::home_assistant::Device;
use super::message::Publication;
use super::outbox::Owner;
use crate::scheduler::Status;
use crate::wire::payload::{Info, InfoLimits};
use crate::wire::{PROTOCOL, status_object};

/// The status is published at most this often.
pub(super) const STATUS_EVERY: Duration = Duration::from_millis(500);

impl Door {
    /// Publishes the status, and the info where it changed, unless that was done a moment ago.
    pub(super) fn publish_status(&mut self, now: Instant) {
        if self.status_last.as_ref().is_some_and(|(last, _)| now < *last + self.status_every()) {
            return;
        }
        self.status_dirty = false;
        let status = self.status.borrow_and_update().clone();
        let info = self.info(&status);
        if self.info_last.as_ref() != Some(&info) {
            self.info_last = Some(info.clone());
            self.publish_state(self.topics.info(), info, Some("application/json"));
        }
        self.publish_discovery(&status);
        let mut object = status_object(&status);
        if let (Some(fleet), Some(object)) = (self.fleet_object(), object.as_object_mut()) {
            object.insert("fleet".to_owned(), fleet);
        }
        let text = object.to_string();
        if self.status_last.as_ref().is_some_and(|(_, last)| *last == text) {
            return;
        }
        self.status_last = Some((now, text.clone()));
        self.publish_state(self.topics.status(), text, Some("application/json"));
    }

    /// Tells Home Assistant of this board, where that is wanted and there is news.
    fn publish_discovery(&mut self, status: &Status) {
        let Some(prefix) = &self.discovery.prefix else { return };
        let device = Device {
            topics: &self.topics,
            node: &self.node,
            version: &self.facts.version,
            model: status.model.as_ref().map(|model| model.name.as_str()),
            admin: self.facts.control.is_some(),
            updates: self.facts.versions.borrow().is_some(),
        };
        let (topic, text) = (device.topic(prefix), device.message().to_string());
        if self.discovery.last.as_ref() != Some(&text) {
            self.discovery.last = Some(text.clone());
            self.publish_state(topic, text, Some("application/json"));
        }
    }

    /// Where Home Assistant says that it has just started: it forgets what it was told before.
    pub(super) fn birth(&self) -> Option<String> {
        self.discovery.prefix.as_ref().map(|prefix| format!("{prefix}/status"))
    }

    /// Home Assistant has just started.
    pub(super) fn born(&mut self) {
        self.discovery.last = None;
        // The status is the same; what stands beside it is told again.
        self.status_dirty = true;
    }

    fn info(&self, status: &Status) -> String {
        let limits = &self.facts.limits;
        let model = status.model.as_ref();
        let mqtt =
            self.connection.as_ref().map(|connection| connection.version).unwrap_or_default();
        let policy = self.facts.policies.current();
        let info = Info {
            version: &self.facts.version,
            protocol: PROTOCOL,
            node: &self.node,
            mqtt: mqtt.as_str(),
            model: model.map(|model| model.name.as_str()),
            model_update: self.facts.versions.borrow().clone(),
            profiles: policy.profiles.names().collect(),
            limits: InfoLimits {
                payload_bytes: limits.payload_bytes,
                messages: limits.messages,
                stop: limits.stop_strings,
                context: model.map(|model| model.context),
                slots: model.map(|model| model.slots.into()),
                queue: status.queue_limit,
            },
            endpoints: self.topics.endpoints(self.fleet.is_some(), self.facts.control.is_some()),
        };
        serde_json::to_string(&info).unwrap_or_default()
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

    /// Publishes all of it again, also what has not changed: the broker may take it now.
    pub(super) fn tell_states_anew(&mut self, now: Instant) {
        self.info_last = None;
        self.discovery.last = None;
        self.status_last = None;
        self.publish_status(now);
        self.publish_state(self.topics.availability(), "online".to_owned(), None);
    }

    /// Publishes `offline`, as the broker would if promptd vanished.
    pub(super) fn publish_offline(&mut self) {
        self.publish_state(self.topics.availability(), OFFLINE.to_owned(), None);
    }
}
