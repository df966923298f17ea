//! A message as it came and a message as it goes, without any client library's types.

use std::time::Duration;

use bytes::Bytes;

use crate::wire::json_to_cbor;

/// A message from the broker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Message {
    /// The topic it was published to.
    pub(crate) topic: String,
    /// What was published.
    pub(crate) payload: Bytes,
    /// Whether the broker kept it for whoever subscribes later.
    pub(crate) retained: bool,
    /// Whether the broker had sent it before and got no acknowledgement.
    pub(crate) again: bool,
    /// What to acknowledge; nothing for `QoS` 0.
    pub(crate) delivery: Option<Delivery>,
    /// Where the asker wants the answer.
    pub(crate) response_topic: Option<String>,
    /// What the asker wants to find in the answer, unchanged.
    pub(crate) correlation: Option<Bytes>,
    /// What the payload is.
    pub(crate) content_type: Option<String>,
    /// After this time nobody wants the message any more.
    pub(crate) expiry: Option<Duration>,
    /// The name the publisher goes by: the user property `client`.
    pub(crate) client: Option<Box<str>>,
    /// What one board of a fleet says to another with it.
    pub(crate) word: Option<Box<Word>>,
}

/// What one board of a fleet says to another, as a user property.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// `hop`: who hands this on, and its word for it: `<node>/<word>`.
    Hop(String),
    /// `took`: the board that publishes this has what was handed on with this word.
    Took(String),
}

/// A message that the broker waits to have acknowledged. Packet numbers mean something only on the connection they
/// came on: the next connection uses them anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Delivery {
    /// Which connection, counted from 1.
    pub(crate) epoch: u64,
    /// Which message.
    pub(crate) packet: u16,
}

/// A message to the broker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Publication {
    /// Where it goes.
    pub(crate) topic: String,
    /// What is said.
    pub(crate) payload: Bytes,
    /// Whether the broker keeps it for whoever subscribes later.
    pub(crate) retain: bool,
    /// What the asker wanted to find in the answer.
    pub(crate) correlation: Option<Bytes>,
    /// Where the answer to this message is wanted: of prompts that are handed on.
    pub(crate) response_topic: Option<String>,
    /// `application/json`, `application/cbor` or `text/plain`.
    pub(crate) content_type: Option<&'static str>,
    /// Names and values for clients that read MQTT 5's user properties.
    pub(crate) properties: Vec<(&'static str, String)>,
}

impl Publication {
    /// A JSON text.
    pub(crate) fn json(topic: String, object: &serde_json::Value) -> Publication {
        let payload = Bytes::from(object.to_string());
        Publication {
            topic,
            payload,
            content_type: Some("application/json"),
            ..Publication::default()
        }
    }

    /// The same object in CBOR; a text stays as it is. CBOR is never the longer one, so what fitted before fits.
    pub(crate) fn in_cbor(mut self) -> Publication {
        if self.content_type == Some("application/json")
            && let Ok(object) = serde_json::from_slice(&self.payload)
        {
            self.payload = json_to_cbor(&object).into();
            self.content_type = Some("application/cbor");
        }
        self
    }

    /// The bytes it takes in memory and, but for a few dozen, on the wire.
    pub(crate) fn weight(&self) -> usize {
        let properties: usize =
            self.properties.iter().map(|(name, value)| name.len() + value.len() + 5).sum();
        let correlation = self.correlation.as_ref().map_or(0, |data| data.len() + 3)
            + self.response_topic.as_ref().map_or(0, |topic| topic.len() + 3);
        // Fixed header, packet number, lengths, content type, format and expiry stay below 64 bytes.
        64 + self.topic.len() + self.payload.len() + properties + correlation
    }
}
