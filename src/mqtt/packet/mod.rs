//! MQTT on the wire, as far as promptd speaks it, in our words: the seam to rumqttc, whose packets and codec these are.
//! With its two files the only place that names the library. Pure.
//!
//! Section numbers in the comments are those of OASIS MQTT 5.0. promptd publishes with `QoS` 0 and 1, subscribes with 1 at
//! most, and uses no topic aliases; the rest of the protocol never comes to it.
//!
//! Every packet tells its length first, so one that cannot be understood is passed over alone: a broker that hands on
//! somebody's message with a broken property keeps its connection, and the next message is read as if nothing had been.

mod read;
mod write;

use std::time::Duration;

use bytes::Bytes;
use rumqttc_v5::mqttbytes::QoS;

pub(super) use self::read::{Broken, Decoder};
pub(super) use self::write::{
    Connect, Publish, Subscription, Unwritable, Will, connect, disconnect, ping, puback, publish,
    subscribe, unsubscribe,
};

/// Which MQTT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Version {
    /// MQTT 3.1.1, protocol level 4.
    V311,
    /// MQTT 5, protocol level 5.
    #[default]
    V5,
}

impl Version {
    /// As people write it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Version::V311 => "3.1.1",
            Version::V5 => "5",
        }
    }
}

/// What a broker sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Packet {
    /// It lets us in, or says why not.
    Connack(Connack),
    /// Somebody's message.
    Publish(Box<Received>),
    /// Somebody's message that cannot be understood. The number is there where it has to be acknowledged.
    Unreadable {
        /// Its packet number.
        packet: Option<u16>,
        /// What is wrong with it.
        why: String,
    },
    /// It has our message, or says why not (3.4.2.1).
    Puback {
        /// Which.
        packet: u16,
        /// The reason code; 0 in 3.1.1.
        code: u8,
    },
    /// It answers a subscription, a code for each topic (3.9.3).
    Suback {
        /// Which.
        packet: u16,
        /// The granted `QoS`, or why not.
        codes: Vec<u8>,
    },
    /// It answers an end of a subscription.
    Unsuback {
        /// Which.
        packet: u16,
    },
    /// It is alive.
    Pong,
    /// It ends the connection (3.14.2.1).
    Disconnect {
        /// The reason code.
        code: u8,
        /// In words, where it gives any.
        reason: Option<String>,
    },
}

/// What the broker says when it lets us in. Absent limits are the standard's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Connack {
    /// Whether it kept our session.
    pub(super) session: bool,
    /// 0, or the reason why not (3.2.2.2); of 3.1.1 the return code.
    pub(super) code: u8,
    /// Whether the packet was one of MQTT 5.
    pub(super) version: Version,
    /// In words, where it gives any.
    pub(super) reason: Option<String>,
    /// The most messages we may leave unacknowledged.
    pub(super) receive_maximum: Option<u16>,
    /// The largest packet it takes.
    pub(super) maximum_packet: Option<u32>,
    /// The highest `QoS` it takes, where that is below 2.
    pub(super) maximum_qos: Option<u8>,
    /// Whether it keeps messages for whoever subscribes later.
    pub(super) retain_unavailable: bool,
    /// The keep-alive it wants, in seconds.
    pub(super) keep_alive: Option<u16>,
}

/// A message as it came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Received {
    /// The topic; never empty.
    pub(super) topic: String,
    /// What was published.
    pub(super) payload: Bytes,
    /// The broker's mark of a repetition.
    pub(super) again: bool,
    /// The broker had kept it.
    pub(super) retained: bool,
    /// The packet number of a `QoS` 1 message.
    pub(super) packet: Option<u16>,
    /// The properties.
    pub(super) properties: Properties,
}

/// The properties of a message that promptd uses (3.3.2.3). The others are read and dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Properties {
    /// Where the asker wants the answer.
    pub(super) response_topic: Option<String>,
    /// What it wants to find in the answer.
    pub(super) correlation: Option<Bytes>,
    /// What the payload is.
    pub(super) content_type: Option<String>,
    /// After this it is worthless.
    pub(super) expiry: Option<Duration>,
    /// Names and values, the first [`MAX_USER_PROPERTIES`] of them.
    pub(super) user: Vec<(String, String)>,
}

/// The user properties that are kept of a message. A client sets one or two; a thousand would be an attempt on memory.
pub(super) const MAX_USER_PROPERTIES: usize = 32;

/// The largest packet that MQTT has (2.1.4).
pub(super) const MAX_PACKET: usize = 268_435_455 + 5;

#[cfg(test)]
mod tests;
