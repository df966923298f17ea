//! What Home Assistant is told of this board: one device with its entities, in the discovery message of its MQTT integration.
//! Pure.
//!
//! Format: Home Assistant's documentation of MQTT device discovery, and `DEVICE_DISCOVERY_SCHEMA` of its source, which
//! `make test-homeassistant` holds this to.

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::topic::Topics;

/// The id that prompts from Home Assistant have; their answers come on `answer/home-assistant`.
const ID: &str = "home-assistant";
/// The most characters of a state, and of a text that is typed in.
const STATE_CHARS: u32 = 255;

/// What the message is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Device<'a> {
    pub(crate) topics: &'a Topics,
    pub(crate) node: &'a str,
    pub(crate) version: &'a str,
    /// The model's name, once it is known.
    pub(crate) model: Option<&'a str>,
    /// Whether operators may ask over MQTT.
    pub(crate) admin: bool,
    /// Whether the model is one of those that the board keeps, with versions.
    pub(crate) updates: bool,
}

impl Device<'_> {
    /// Where the message goes, under Home Assistant's discovery prefix.
    pub(crate) fn topic(&self, prefix: &str) -> String {
        format!("{prefix}/device/{}/config", self.object_id())
    }

    /// A name of letters, digits, `-` and `_`, which is all that Home Assistant takes. Where that changes the node's name, a
    /// digest keeps two boards apart.
    fn object_id(&self) -> String {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if self.node.chars().all(plain) {
            return format!("promptd-{}", self.node);
        }
        let digest = Sha256::digest(self.node.as_bytes());
        let digits = digest.iter().take(4).fold(0_u32, |all, byte| all << 8 | u32::from(*byte));
        let name: String = self.node.chars().map(|c| if plain(c) { c } else { '_' }).collect();
        format!("promptd-{name}-{digits:08x}")
    }

    /// The message.
    pub(crate) fn message(&self) -> Value {
        let object_id = self.object_id();
        let mut components = Map::new();
        for (name, entity) in self.sensors().into_iter().chain(self.controls()) {
            let unique = json!({"unique_id": format!("{object_id}-{name}")});
            components.insert(name.to_owned(), with(entity, unique));
        }
        let mut device = json!({
            "identifiers": [object_id], "name": format!("promptd {}", self.node), "manufacturer": "promptd",
            "sw_version": self.version,
        });
        if let Some(model) = self.model {
            device = with(device, json!({"model": model}));
        }
        json!({
            "device": device,
            "origin": {"name": "promptd", "sw_version": self.version},
            "availability_topic": self.topics.availability(),
            "components": components,
        })
    }

    /// What is seen of the board.
    fn sensors(&self) -> Vec<(&'static str, Value)> {
        let (status, health) = (self.topics.status(), self.topics.health());
        let sensor = |topic: &str, name: &str, template: &str, more: Value| {
            let sensor = json!({
                "platform": "sensor", "name": name, "state_topic": topic, "entity_category": "diagnostic",
                "value_template": format!("{{{{ value_json.{template} }}}}"),
            });
            with(sensor, more)
        };
        let count = |icon: &str, unit: &str| json!({"icon": icon, "state_class": "measurement", "unit_of_measurement": unit});
        let states = json!({
            "icon": "mdi:brain", "device_class": "enum",
            "options": ["loading", "ready", "unloaded", "degraded", "model_failed", "draining"],
        });
        let celsius = json!({
            "device_class": "temperature", "state_class": "measurement", "unit_of_measurement": "°C",
            "suggested_display_precision": 0,
        });
        let mut sensors = vec![
            ("state", sensor(&status, "State", "state", states)),
            ("queue", sensor(&status, "Queue", "queue.waiting", count("mdi:tray-full", "prompts"))),
            (
                "running",
                sensor(&status, "Running", "slots.running", count("mdi:cog-play", "prompts")),
            ),
            (
                "model",
                sensor(
                    &status,
                    "Model",
                    "model.name | default('none')",
                    json!({"icon": "mdi:chip"}),
                ),
            ),
            (
                "speed",
                sensor(
                    &health,
                    "Speed",
                    "model.tokens_per_second",
                    count("mdi:speedometer", "tokens/s"),
                ),
            ),
            ("temperature", sensor(&health, "Temperature", "board.temperature", celsius)),
        ];
        if self.updates {
            // No operation over MQTT changes the model (`promptd model use` does, after a trial), so nothing is installed here.
            let update = json!({
                "platform": "update", "name": "Model update", "icon": "mdi:chip", "entity_category": "diagnostic",
                "state_topic": self.topics.info(), "value_template": "{{ value_json.model_update | to_json }}",
            });
            sensors.push(("model_update", update));
        }
        sensors
    }

    /// What is done with it: ways to ask, the last answer, buttons.
    fn controls(&self) -> Vec<(&'static str, Value)> {
        let (ask, answer) = (self.topics.ask(), self.topics.answer(Some(ID)));
        let prompt = format!("{{{{ {{'id': '{ID}', 'prompt': value}} | to_json }}}}");
        let asks = |platform: &str, name: &str, icon: &str, more: Value| {
            let entity = json!({
                "platform": platform, "name": name, "icon": icon, "command_topic": ask, "command_template": prompt, "qos": 1,
            });
            with(entity, more)
        };
        let button = |name: &str, icon: &str, topic: String, payload: &str| {
            json!({
                "platform": "button", "name": name, "icon": icon, "command_topic": topic, "payload_press": payload, "qos": 1,
            })
        };
        let said = format!(
            "{{{{ (value_json.text if value_json.status == 'ok' else value_json.message)[:{STATE_CHARS}] }}}}"
        );
        let mut controls = vec![
            ("ask", asks("text", "Ask", "mdi:chat-question", json!({"max": STATE_CHARS}))),
            // A text has 255 characters at most; a message of `notify.send_message` as many as are wanted.
            ("prompt", asks("notify", "Prompt", "mdi:message-question", json!({}))),
            (
                "answer",
                json!({
                    "platform": "sensor", "name": "Answer", "icon": "mdi:chat-processing", "state_topic": answer,
                    "value_template": said, "json_attributes_topic": answer,
                }),
            ),
            (
                "cancel",
                button("Cancel all", "mdi:stop-circle", self.topics.cancel(), "{\"all\":true}"),
            ),
        ];
        if self.admin {
            let topic = self.topics.request("unload");
            let unload = button("Unload model", "mdi:memory", topic, "{}");
            controls.push(("unload", with(unload, json!({"entity_category": "config"}))));
        }
        controls
    }
}

/// The object with more fields.
fn with(mut object: Value, more: Value) -> Value {
    if let (Some(object), Value::Object(more)) = (object.as_object_mut(), more) {
        object.extend(more);
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_device_with_its_entities() {
        let topics = Topics::new("promptd", "kitchen").unwrap();
        let device = Device {
            topics: &topics,
            node: "kitchen",
            version: "1.2.3",
            model: Some("m"),
            admin: false,
            updates: false,
        };
        assert_eq!(device.topic("homeassistant"), "homeassistant/device/promptd-kitchen/config");
        let message = device.message();
        assert_eq!(message["availability_topic"], "promptd/kitchen/availability");
        assert_eq!(message["components"]["queue"]["state_topic"], "promptd/kitchen/status");
        assert_eq!(message["components"]["unload"], Value::Null, "only where operators may ask");
        let operated = Device { admin: true, ..device }.message();
        assert_eq!(
            operated["components"]["unload"]["command_topic"],
            "promptd/kitchen/request/unload"
        );
        assert_eq!(
            message["components"]["model_update"],
            Value::Null,
            "only of models with versions"
        );
        let kept = Device { updates: true, ..device }.message();
        assert_eq!(kept["components"]["model_update"]["state_topic"], "promptd/kitchen/info");
        for (name, entity) in message["components"].as_object().unwrap() {
            assert_eq!(entity["unique_id"], format!("promptd-kitchen-{name}"));
        }
    }

    #[test]
    fn names_that_home_assistant_does_not_take() {
        let topics = Topics::new("promptd", "küche").unwrap();
        let of = |node| {
            let device = Device {
                topics: &topics,
                node,
                version: "1",
                model: None,
                admin: false,
                updates: false,
            };
            device.object_id()
        };
        assert!(of("küche").starts_with("promptd-k_che-"));
        assert_ne!(of("küche"), of("köche"));
    }
}
