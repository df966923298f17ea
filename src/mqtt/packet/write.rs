//! What promptd sends, given to the library in its words.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rumqttc_v4::mqttbytes::v4;
use rumqttc_v5::mqttbytes::v5::{self, RetainForwardRule};

use super::{QoS, Version};

/// How promptd introduces itself.
#[derive(Clone, Debug)]
pub(in crate::mqtt) struct Connect<'a> {
    pub(in crate::mqtt) version: Version,
    pub(in crate::mqtt) client_id: &'a str,
    pub(in crate::mqtt) keep_alive: Duration,
    /// Whether the broker forgets what it kept for us.
    pub(in crate::mqtt) clean_start: bool,
    /// How long it keeps it after the connection; of 3.1.1 there is only "for ever".
    pub(in crate::mqtt) session_expiry: u32,
    pub(in crate::mqtt) receive_maximum: u16,
    pub(in crate::mqtt) maximum_packet: u32,
    pub(in crate::mqtt) login: Option<(&'a str, &'a [u8])>,
    /// What the broker says when we vanish.
    pub(in crate::mqtt) will: Option<Will<'a>>,
}

/// The last will.
#[derive(Clone, Debug)]
pub(in crate::mqtt) struct Will<'a> {
    pub(in crate::mqtt) topic: &'a str,
    pub(in crate::mqtt) text: &'static str,
    pub(in crate::mqtt) retain: bool,
    /// Whether it is of `QoS` 1.
    pub(in crate::mqtt) acknowledged: bool,
}

/// A message on its way out.
#[derive(Clone, Debug)]
pub(in crate::mqtt) struct Publish<'a> {
    pub(in crate::mqtt) topic: &'a str,
    pub(in crate::mqtt) payload: Bytes,
    pub(in crate::mqtt) retain: bool,
    /// The packet number; none for `QoS` 0.
    pub(in crate::mqtt) packet: Option<u16>,
    pub(in crate::mqtt) content_type: Option<&'a str>,
    /// Whether the payload is UTF-8.
    pub(in crate::mqtt) text: bool,
    pub(in crate::mqtt) correlation: Option<Bytes>,
    pub(in crate::mqtt) response_topic: Option<String>,
    pub(in crate::mqtt) expiry: Option<Duration>,
    pub(in crate::mqtt) user: &'a [(&'static str, String)],
}

/// A topic that is asked for.
#[derive(Clone, Debug)]
pub(in crate::mqtt) struct Subscription<'a> {
    pub(in crate::mqtt) filter: &'a str,
    /// Whether the broker repeats until it is acknowledged (`QoS` 1).
    pub(in crate::mqtt) acknowledged: bool,
    /// Whether what the broker keeps comes only where the subscription is new (3.8.3.1, MQTT 5).
    pub(in crate::mqtt) retained_once: bool,
}

/// The library does not write this: it is no MQTT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::mqtt) struct Unwritable(pub(in crate::mqtt) String);

/// CONNECT (3.1), the first bytes of a connection.
pub(in crate::mqtt) fn connect(what: &Connect<'_>) -> Result<BytesMut, Unwritable> {
    let keep_alive = u16::try_from(what.keep_alive.as_secs()).unwrap_or(u16::MAX);
    let mut to = BytesMut::new();
    match what.version {
        Version::V5 => {
            let mut properties = v5::ConnectProperties::new();
            properties.session_expiry_interval = Some(what.session_expiry);
            properties.receive_maximum = Some(what.receive_maximum);
            properties.max_packet_size = Some(what.maximum_packet);
            let connect = v5::Connect {
                keep_alive,
                client_id: what.client_id.to_owned(),
                clean_start: what.clean_start,
                properties: Some(properties),
            };
            let auth = what.login.map_or(v5::ConnectAuth::None, |(username, password)| {
                v5::ConnectAuth::UsernamePassword {
                    username: username.to_owned(),
                    password: Bytes::copy_from_slice(password),
                }
            });
            let will = what.will.as_ref().map(|will| {
                let (qos, retain) = (qos(will.acknowledged), will.retain);
                v5::LastWill::new(will.topic, will.text, qos, retain, None)
            });
            write5(&mut to, &v5::Packet::Connect(connect, will, auth))
        }
        Version::V311 => {
            let mut connect = v4::Connect::new(what.client_id);
            connect.keep_alive = keep_alive;
            connect.clean_session = what.clean_start;
            connect.last_will = what.will.as_ref().map(|will| {
                let (qos, retain) = (qos(will.acknowledged), will.retain);
                v4::LastWill::new(will.topic, will.text, qos, retain)
            });
            if let Some((user, password)) = what.login {
                connect.set_credentials(user, Bytes::copy_from_slice(password));
            }
            write4(&mut to, &v4::Packet::Connect(connect))
        }
    }
    .map(|()| to)
}

/// PUBLISH (3.3).
pub(in crate::mqtt) fn publish(
    to: &mut BytesMut,
    version: Version,
    what: Publish<'_>,
) -> Result<(), Unwritable> {
    let (qos, pkid) = (qos(what.packet.is_some()), what.packet.unwrap_or_default());
    let (topic, payload) = (Bytes::copy_from_slice(what.topic.as_bytes()), what.payload);
    let (dup, retain) = (false, what.retain);
    if version == Version::V311 {
        let publish = v4::Publish { dup, qos, retain, topic, pkid, payload };
        return write4(to, &v4::Packet::Publish(publish));
    }
    let user = what.user.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
    let properties = v5::PublishProperties {
        payload_format_indicator: what.text.then_some(1),
        // Whole seconds; 0 would mean that it is over already.
        message_expiry_interval: what
            .expiry
            .map(|expiry| u32::try_from(expiry.as_secs().max(1)).unwrap_or(u32::MAX)),
        correlation_data: what.correlation,
        response_topic: what.response_topic,
        content_type: what.content_type.map(str::to_owned),
        user_properties: user.collect(),
        ..v5::PublishProperties::default()
    };
    let properties = Some(properties);
    write5(
        to,
        &v5::Packet::Publish(v5::Publish { dup, qos, retain, topic, pkid, payload, properties }),
    )
}

/// PUBACK (3.4): the message is ours now.
pub(in crate::mqtt) fn puback(
    to: &mut BytesMut,
    version: Version,
    number: u16,
) -> Result<(), Unwritable> {
    match version {
        Version::V5 => write5(to, &v5::Packet::PubAck(v5::PubAck::new(number, None))),
        Version::V311 => write4(to, &v4::Packet::PubAck(v4::PubAck::new(number))),
    }
}

/// SUBSCRIBE (3.8).
pub(in crate::mqtt) fn subscribe(
    to: &mut BytesMut,
    version: Version,
    number: u16,
    topics: &[Subscription<'_>],
) -> Result<(), Unwritable> {
    match version {
        Version::V5 => {
            let filters = topics.iter().map(|topic| v5::SubscribeFilter {
                retain_forward_rule: if topic.retained_once {
                    RetainForwardRule::OnNewSubscribe
                } else {
                    RetainForwardRule::OnEverySubscribe
                },
                ..v5::SubscribeFilter::new(topic.filter, qos(topic.acknowledged))
            });
            let mut subscribe = v5::Subscribe::new_many(filters, None);
            subscribe.pkid = number;
            write5(to, &v5::Packet::Subscribe(subscribe))
        }
        Version::V311 => {
            let filters = topics.iter().map(|topic| v4::SubscribeFilter {
                path: topic.filter.to_owned(),
                qos: qos(topic.acknowledged),
            });
            let subscribe = v4::Subscribe { pkid: number, filters: filters.collect() };
            write4(to, &v4::Packet::Subscribe(subscribe))
        }
    }
}

/// UNSUBSCRIBE (3.10).
pub(in crate::mqtt) fn unsubscribe(
    to: &mut BytesMut,
    version: Version,
    number: u16,
    filter: &str,
) -> Result<(), Unwritable> {
    match version {
        Version::V5 => {
            let mut unsubscribe = v5::Unsubscribe::new(filter, None);
            unsubscribe.pkid = number;
            write5(to, &v5::Packet::Unsubscribe(unsubscribe))
        }
        Version::V311 => {
            let mut unsubscribe = v4::Unsubscribe::new(filter);
            unsubscribe.pkid = number;
            write4(to, &v4::Packet::Unsubscribe(unsubscribe))
        }
    }
}

/// PINGREQ (3.12).
pub(in crate::mqtt) fn ping(to: &mut BytesMut) -> Result<(), Unwritable> {
    write4(to, &v4::Packet::PingReq)
}

/// DISCONNECT (3.14): goodbye, and the broker says nothing for us. In MQTT 5 the same two bytes are the normal one.
pub(in crate::mqtt) fn disconnect(to: &mut BytesMut) -> Result<(), Unwritable> {
    write4(to, &v4::Packet::Disconnect)
}

fn qos(acknowledged: bool) -> QoS {
    if acknowledged { QoS::AtLeastOnce } else { QoS::AtMostOnce }
}

// The library may have written half a packet when it finds what is wrong with it: nothing of that may leave.

fn write5(to: &mut BytesMut, packet: &v5::Packet) -> Result<(), Unwritable> {
    let before = to.len();
    packet.write(to, None).map(|_| ()).map_err(|error| {
        to.truncate(before);
        Unwritable(error.to_string())
    })
}

fn write4(to: &mut BytesMut, packet: &v4::Packet) -> Result<(), Unwritable> {
    let before = to.len();
    packet.write(to, usize::MAX).map(|_| ()).map_err(|error| {
        to.truncate(before);
        Unwritable(error.to_string())
    })
}
