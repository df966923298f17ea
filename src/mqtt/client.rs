//! The seam to the MQTT library: its options, packets and errors in our words. With `link.rs` the only file that
//! names rumqttc, so that the library can be exchanged.

use std::sync::Arc;
use std::time::Duration;

use rumqttc::v5::mqttbytes::v5::{
    ConnAck, ConnectProperties, ConnectReturnCode, DisconnectReasonCode, Filter, LastWill, PubAck,
    PubAckReason, Publish, PublishProperties, RetainForwardRule, SubAck, SubscribeReasonCode,
};
use rumqttc::v5::mqttbytes::{self, QoS};
use rumqttc::v5::{AsyncClient, ConnectionError, EventLoop, MqttOptions, StateError};
use tokio::sync::Notify;

use super::backoff::Kind;
use super::message::{Delivery, Message, Publication};

/// The most messages the broker may leave unacknowledged with us.
pub(crate) const RECEIVE_MAXIMUM: u16 = 64;
/// The most messages we leave unacknowledged with the broker. The library reserves memory for each: its default of
/// 65,535 takes 13 MiB.
const INFLIGHT: u16 = 64;
/// Requests on their way into the library: all unacknowledged messages of both directions, and pieces of streams.
const QUEUE: usize = 256;
/// How long a broker may take to let us in, name look-up included.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the broker keeps what comes for us while we are away.
const SESSION_EXPIRY_SECONDS: u32 = 3600;
/// Topic and properties of a message, beside its payload: the broker is told to send us somewhat more than we accept,
/// so that we can answer `payload_too_large`; a broker drops what is over its limit without a word.
const HEADROOM: usize = 64 << 10;
/// The largest packet MQTT has.
const MAX_PACKET: usize = 268_435_455;

/// What a connection is made with.
#[derive(Clone)]
pub(crate) struct Options {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) login: Option<(String, String)>,
    pub(crate) client_id: String,
    pub(crate) keep_alive: Duration,
    /// The most bytes of a payload that promptd reads.
    pub(crate) payload_bytes: usize,
    /// Where the broker says `offline` when we vanish.
    pub(crate) will_topic: String,
}

/// What is said when we vanish, and when we leave.
pub(crate) const OFFLINE: &str = "offline";

impl Options {
    pub(super) fn event_loop(&self, clean_start: bool) -> (AsyncClient, EventLoop) {
        let mut options = MqttOptions::new(self.client_id.as_str(), self.host.as_str(), self.port);
        options.set_keep_alive(self.keep_alive).set_clean_start(clean_start).set_manual_acks(true);
        options
            .set_connection_timeout(CONNECT_TIMEOUT.as_secs())
            .set_outgoing_inflight_upper_limit(INFLIGHT);
        options.set_last_will(LastWill::new(
            self.will_topic.as_str(),
            OFFLINE,
            QoS::AtLeastOnce,
            true,
            None,
        ));
        let mut properties = ConnectProperties::new();
        properties.session_expiry_interval = Some(SESSION_EXPIRY_SECONDS);
        properties.receive_maximum = Some(RECEIVE_MAXIMUM);
        let packet = self.payload_bytes.saturating_add(HEADROOM).min(MAX_PACKET);
        properties.max_packet_size = u32::try_from(packet).ok();
        // The library gives a message with an unknown alias an empty topic.
        properties.topic_alias_max = Some(0);
        options.set_connect_properties(properties);
        if let Some((user, password)) = &self.login {
            options.set_credentials(user.as_str(), password.as_str());
        }
        AsyncClient::new(options, QUEUE)
    }
}

/// The sending half of one connection. Nothing here waits.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    inner: AsyncClient,
    drop: Arc<Notify>,
}

/// The connection takes nothing more at the moment.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

impl Client {
    pub(super) fn new(inner: AsyncClient, drop: Arc<Notify>) -> Client {
        Client { inner, drop }
    }

    /// Sends a message that the broker acknowledges (`QoS` 1).
    pub(crate) fn publish(
        &self,
        publication: &Publication,
        expiry: Option<Duration>,
    ) -> Result<(), Full> {
        self.send(publication, QoS::AtLeastOnce, expiry)
    }

    /// Sends a message that may be lost (`QoS` 0).
    pub(crate) fn tell(&self, publication: &Publication) -> Result<(), Full> {
        self.send(publication, QoS::AtMostOnce, None)
    }

    fn send(
        &self,
        publication: &Publication,
        qos: QoS,
        expiry: Option<Duration>,
    ) -> Result<(), Full> {
        let Publication { topic, payload, retain, correlation, content_type, properties } =
            publication;
        let properties = PublishProperties {
            payload_format_indicator: content_type.map(|_| 1),
            // Whole seconds; 0 would mean that it is over already.
            message_expiry_interval: expiry
                .map(|e| u32::try_from(e.as_secs().max(1)).unwrap_or(u32::MAX)),
            correlation_data: correlation.clone(),
            content_type: content_type.map(str::to_owned),
            user_properties: properties
                .iter()
                .map(|(name, value)| ((*name).to_owned(), value.clone()))
                .collect(),
            ..PublishProperties::default()
        };
        let sent = self.inner.try_publish_with_properties(
            topic.as_str(),
            qos,
            *retain,
            payload.clone(),
            properties,
        );
        sent.map_err(|_| Full)
    }

    /// Acknowledges a message of this connection.
    pub(crate) fn acknowledge(&self, packet: u16) -> Result<(), Full> {
        let message = Publish { pkid: packet, qos: QoS::AtLeastOnce, ..Publish::default() };
        self.inner.try_ack(&message).map_err(|_| Full)
    }

    /// Asks for the messages on these topics.
    pub(crate) fn subscribe(&self, topics: &[String]) -> Result<(), Full> {
        let filters = topics.iter().map(|topic| Filter {
            // A prompt that the broker kept is not for us; it is sent once, so that its owner can be told in the log.
            retain_forward_rule: RetainForwardRule::OnNewSubscribe,
            ..Filter::new(topic.as_str(), QoS::AtLeastOnce)
        });
        self.inner.try_subscribe_many(filters).map_err(|_| Full)
    }

    /// Listens to topics whose newest values are wanted: what the broker keeps comes at once, and a lost one is followed by
    /// the next.
    pub(crate) fn follow(&self, topics: &[String]) -> Result<(), Full> {
        let filters = topics.iter().map(|topic| Filter::new(topic.as_str(), QoS::AtMostOnce));
        self.inner.try_subscribe_many(filters).map_err(|_| Full)
    }

    /// Says goodbye; the connection ends after what was sent before.
    pub(crate) fn disconnect(&self) -> Result<(), Full> {
        self.inner.try_disconnect().map_err(|_| Full)
    }

    /// Drops the connection, so that the next one begins.
    pub(crate) fn abandon(&self) {
        self.drop.notify_one();
    }
}

/// What the broker said when it let us in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Welcome {
    /// Whether it kept our session.
    pub(crate) session: bool,
    /// The most messages we may leave unacknowledged.
    pub(crate) window: usize,
    /// The largest packet it takes.
    pub(crate) max_packet: usize,
}

impl Welcome {
    pub(super) fn new(connack: &ConnAck) -> Welcome {
        let properties = connack.properties.as_ref();
        Welcome::of(
            connack.session_present,
            properties.and_then(|p| p.receive_max),
            properties.and_then(|p| p.max_packet_size),
        )
    }

    fn of(session: bool, receive: Option<u16>, packet: Option<u32>) -> Welcome {
        // With its window full the library sends no acknowledgements either: one place stays free.
        let window =
            usize::from(receive.unwrap_or(u16::MAX).min(INFLIGHT)).saturating_sub(1).max(1);
        let packet = packet.and_then(|size| usize::try_from(size).ok()).unwrap_or(MAX_PACKET);
        Welcome { session, window, max_packet: packet.min(MAX_PACKET) }
    }
}

/// A message in our words; `None` where its topic is no text.
pub(super) fn message(publish: Publish, epoch: u64) -> Option<Message> {
    let properties = publish.properties.unwrap_or_default();
    let topic = String::from_utf8(publish.topic.to_vec()).ok().filter(|topic| !topic.is_empty())?;
    Some(Message {
        topic,
        payload: publish.payload,
        retained: publish.retain,
        again: publish.dup,
        delivery: delivery(publish.qos, publish.pkid, epoch),
        response_topic: properties.response_topic,
        correlation: properties.correlation_data,
        content_type: properties.content_type,
        expiry: properties
            .message_expiry_interval
            .map(|seconds| Duration::from_secs(seconds.into())),
        client: properties
            .user_properties
            .into_iter()
            .find(|(name, _)| name == "client")
            .map(|(_, client)| client),
    })
}

fn delivery(qos: QoS, packet: u16, epoch: u64) -> Option<Delivery> {
    (qos != QoS::AtMostOnce).then_some(Delivery { epoch, packet })
}

/// Why the broker did not take a message, where it did not.
pub(super) fn refusal_of(ack: &PubAck) -> Option<String> {
    let taken = matches!(ack.reason, PubAckReason::Success | PubAckReason::NoMatchingSubscribers);
    (!taken).then(|| format!("{:?}", ack.reason))
}

/// Why the broker lets us not subscribe, where it does not.
pub(super) fn subscribed(ack: &SubAck) -> Result<(), String> {
    match ack.return_codes.iter().find(|code| !matches!(code, SubscribeReasonCode::Success(_))) {
        None => Ok(()),
        Some(code) => Err(format!("{code:?}")),
    }
}

/// Why a connection ended or did not come about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    /// How soon it is worth trying again.
    pub(crate) kind: Kind,
    /// In words, for the log.
    pub(crate) reason: String,
    /// Whether the broker sent bytes that are no MQTT: a message it keeps for us may be the cause.
    pub(crate) undecodable: bool,
}

impl Trouble {
    pub(super) fn away(reason: impl Into<String>) -> Trouble {
        Trouble { kind: Kind::Away, reason: reason.into(), undecodable: false }
    }

    /// The library made a mistake; the next connection begins with a new state of it.
    pub(super) fn panicked() -> Trouble {
        Trouble::refused("the MQTT library panicked")
    }

    fn refused(reason: impl Into<String>) -> Trouble {
        Trouble { kind: Kind::Refused, reason: reason.into(), undecodable: false }
    }

    pub(super) fn new(error: ConnectionError) -> Trouble {
        match error {
            ConnectionError::Io(error) => Trouble::away(error.to_string()),
            ConnectionError::Timeout(_) => Trouble::away(format!(
                "it did not let us in within {} s",
                CONNECT_TIMEOUT.as_secs()
            )),
            ConnectionError::ConnectionRefused(code) => refused_by(code),
            ConnectionError::NotConnAck(_) => {
                Trouble::refused("it answered with something that is not MQTT 5")
            }
            ConnectionError::MqttState(state) => broken(state),
            ConnectionError::RequestsDone => Trouble::away("the MQTT library gave up"),
        }
    }
}

fn refused_by(code: ConnectReturnCode) -> Trouble {
    use ConnectReturnCode as Is;
    match code {
        Is::BadUserNamePassword | Is::NotAuthorized | Is::Banned => Trouble::refused(format!(
            "it refuses the login ({code:?}); check mqtt.username and the password"
        )),
        Is::RefusedProtocolVersion | Is::UnsupportedProtocolVersion => {
            Trouble::refused("it does not speak MQTT 5, which promptd needs")
        }
        Is::BadClientId | Is::ClientIdentifierNotValid => {
            Trouble::refused("it does not accept the client id; set mqtt.client_id")
        }
        Is::ServiceUnavailable
        | Is::ServerUnavailable
        | Is::ServerBusy
        | Is::ConnectionRateExceeded => {
            Trouble::away(format!("it is there but lets nobody in ({code:?})"))
        }
        Is::RetainNotSupported | Is::QoSNotSupported => Trouble::refused(format!(
            "promptd needs QoS 1 and retained messages, which it does not offer ({code:?})"
        )),
        _ => Trouble::refused(format!("it refuses the connection ({code:?})")),
    }
}

fn broken(error: StateError) -> Trouble {
    match error {
        StateError::Io(error) | StateError::Deserialization(mqttbytes::Error::Io(error)) => {
            Trouble::away(error.to_string())
        }
        StateError::ConnectionAborted => Trouble::away("it closed the connection"),
        StateError::AwaitPingResp => Trouble::away("it answered no ping"),
        StateError::ServerDisconnect {
            reason_code: DisconnectReasonCode::SessionTakenOver,
            ..
        } => Trouble::refused(
            "another client connected with the same client id; each board needs its own mqtt.node or mqtt.client_id",
        ),
        StateError::ServerDisconnect { reason_code, reason_string } => {
            use DisconnectReasonCode as Is;
            let text =
                reason_string.map(|text| format!(": {}", text.escape_debug())).unwrap_or_default();
            let reason = format!("it said goodbye ({reason_code:?}{text})");
            match reason_code {
                Is::NormalDisconnection
                | Is::ServerShuttingDown
                | Is::ServerBusy
                | Is::KeepAliveTimeout
                | Is::MaximumConnectTime
                | Is::ServerMoved => Trouble::away(reason),
                // It objects to what promptd did, and promptd will do it again.
                _ => Trouble::refused(reason),
            }
        }
        StateError::Deserialization(error) => Trouble {
            kind: Kind::Refused,
            reason: format!("it sent what is no MQTT 5 ({error})"),
            undecodable: true,
        },
        other => Trouble::away(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_of_the_connection_is_no_bad_packet() {
        let reset = || std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        for error in
            [StateError::Io(reset()), StateError::Deserialization(mqttbytes::Error::Io(reset()))]
        {
            let trouble = Trouble::new(ConnectionError::MqttState(error));
            assert_eq!(
                (trouble.kind, trouble.undecodable),
                (Kind::Away, false),
                "{}",
                trouble.reason
            );
        }
        let bad = Trouble::new(ConnectionError::MqttState(StateError::Deserialization(
            mqttbytes::Error::TopicNotUtf8,
        )));
        assert_eq!((bad.kind, bad.undecodable), (Kind::Refused, true));
        let login =
            Trouble::new(ConnectionError::ConnectionRefused(ConnectReturnCode::NotAuthorized));
        assert_eq!(login.kind, Kind::Refused);
        assert!(login.reason.contains("mqtt.username"));
    }

    #[test]
    fn a_message_without_a_topic_is_none() {
        let publish = |topic: &'static [u8]| Publish {
            topic: bytes::Bytes::from_static(topic),
            ..Publish::default()
        };
        assert!(message(publish(b"a"), 1).is_some());
        assert!(message(publish(b""), 1).is_none());
        assert!(message(publish(b"\xff"), 1).is_none());
    }

    #[test]
    fn the_window_leaves_room_for_acknowledgements() {
        for (receive, window) in [(None, 63), (Some(20), 19), (Some(1), 1), (Some(1000), 63)] {
            assert_eq!(Welcome::of(false, receive, None).window, window, "{receive:?}");
        }
    }
}
