//! What a broker sends, from bytes that arrive in any pieces: cut into packets here, read by the library.
//!
//! The library reads a stream and gives up on it at the first packet it cannot read. Here each packet is cut out first, so
//! that one which is too long or broken costs itself and not the connection.

use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use rumqttc_v4::mqttbytes::v4;
use rumqttc_v5::mqttbytes::v5::{self, ConnectReturnCode, SubscribeReasonCode};
use rumqttc_v5::mqttbytes::{Error, check};

use super::{Connack, MAX_USER_PROPERTIES, Packet, Properties, QoS, Received, Version};

/// What of a message is kept where the whole is larger than promptd takes: its topic and packet number.
const HEAD: usize = 5 + 2 + 65_535 + 2;

/// First bytes of what a client gets (2.1.2). Those of PUBLISH have flags.
const KINDS: [u8; 6] = [0x20, 0x40, 0x90, 0xb0, 0xd0, 0xe0];
const PUBLISH: u8 = 0x30;

/// The bytes are no MQTT, or none that may come to us: nothing after them can be trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::mqtt) struct Broken(pub(in crate::mqtt) String);

/// Cuts a stream of bytes into packets.
#[derive(Debug)]
pub(in crate::mqtt) struct Decoder {
    version: Version,
    /// A longer packet is passed over. A broker of MQTT 5 is told this number and sends none.
    most: u32,
    /// Of a packet that is too long: its beginning, and how many bytes are still to come.
    long: Option<(BytesMut, usize)>,
}

impl Decoder {
    /// A decoder for one connection.
    pub(in crate::mqtt) fn new(version: Version, most: usize) -> Decoder {
        Decoder { version, most: u32::try_from(most).unwrap_or(u32::MAX), long: None }
    }

    /// Takes the next packet out of `bytes`; `None` where it is not all there yet.
    pub(in crate::mqtt) fn next(&mut self, bytes: &mut BytesMut) -> Result<Option<Packet>, Broken> {
        if self.long.is_some() {
            return self.pass_over(bytes);
        }
        let Some(&kind) = bytes.first() else { return Ok(None) };
        // What is no MQTT at all, such as HTTP or TLS, is seen at its first byte and not waited for.
        if !KINDS.contains(&kind) && kind & 0xf0 != PUBLISH {
            return Err(broken(&"it sent a packet that no client gets"));
        }
        let length = match check(bytes.iter(), Some(self.most)) {
            Ok(header) => header.frame_length(),
            Err(Error::InsufficientBytes(more)) => {
                // Room for the rest, and for no more at once: the length is the sender's claim.
                bytes.reserve(more.min(64 << 10));
                return Ok(None);
            }
            Err(Error::PayloadSizeLimitExceeded { pkt_size, .. }) => {
                self.long = Some((BytesMut::new(), pkt_size));
                return self.pass_over(bytes);
            }
            Err(error) => return Err(broken(&error)),
        };
        let frame = bytes.split_to(length);
        if kind & 0xf0 == PUBLISH {
            let (packet, whole) = (head(&frame)?, frame);
            let read = match self.version {
                Version::V5 => received5(whole),
                Version::V311 => received4(whole),
            };
            return Ok(Some(match read {
                Ok(received) => Packet::Publish(Box::new(received)),
                Err(Broken(why)) => Packet::Unreadable { packet, why },
            }));
        }
        match self.version {
            Version::V5 => packet5(frame),
            Version::V311 => packet4(frame),
        }
        .map(Some)
    }

    /// Drops a packet that is too long, but for its head.
    fn pass_over(&mut self, bytes: &mut BytesMut) -> Result<Option<Packet>, Broken> {
        let Some((kept, left)) = &mut self.long else { return Ok(None) };
        let here = bytes.split_to((*left).min(bytes.len()));
        let room = HEAD.saturating_sub(kept.len()).min(here.len());
        kept.extend_from_slice(here.get(..room).unwrap_or_default());
        *left -= here.len();
        if *left > 0 {
            return Ok(None);
        }
        let kept = self.long.take().unwrap_or_default().0;
        if kept.first().is_none_or(|kind| kind & 0xf0 != PUBLISH) {
            return Err(broken(&"a packet is longer than the largest that may come"));
        }
        let packet = head(&kept)?;
        Ok(Some(Packet::Unreadable { packet, why: "it is larger than promptd takes".to_owned() }))
    }
}

fn broken(why: &dyn std::fmt::Display) -> Broken {
    Broken(why.to_string())
}

/// The packet number of a PUBLISH whose rest may be unreadable (3.3.2.2): it stands behind the topic, and the broker wants it
/// back.
fn head(frame: &[u8]) -> Result<Option<u16>, Broken> {
    let short = |_| broken(&"a message ends before its packet number");
    let mut rest = frame;
    let flags = rest.try_get_u8().map_err(short)?;
    while rest.try_get_u8().map_err(short)? >= 0x80 {}
    let topic = usize::from(rest.try_get_u16().map_err(short)?);
    let mut rest = rest.get(topic..).ok_or_else(|| broken(&"a message ends inside its topic"))?;
    match flags & 0x06 {
        0x00 => Ok(None),
        0x02 => rest.try_get_u16().map(Some).map_err(short),
        // Exactly-once is granted to nobody who asked for less.
        _ => Err(broken(&"it sent a message with a QoS that was not asked for")),
    }
}

fn topic(topic: &Bytes) -> Result<String, Broken> {
    match std::str::from_utf8(topic) {
        Ok(text) if !text.is_empty() => Ok(text.to_owned()),
        _ => Err(broken(&"its topic is no text")),
    }
}

fn received5(mut frame: BytesMut) -> Result<Received, Broken> {
    let packet = v5::Packet::read(&mut frame, None).map_err(|error| broken(&error))?;
    let v5::Packet::Publish(publish) = packet else { return Err(broken(&"it is no message")) };
    let theirs = publish.properties.unwrap_or_default();
    if theirs.topic_alias.is_some() {
        return Err(broken(&"it has a topic alias, which promptd does not use"));
    }
    let mut user = theirs.user_properties;
    user.truncate(MAX_USER_PROPERTIES);
    Ok(Received {
        topic: topic(&publish.topic)?,
        payload: publish.payload,
        again: publish.dup,
        retained: publish.retain,
        packet: (publish.qos == QoS::AtLeastOnce).then_some(publish.pkid),
        properties: Properties {
            response_topic: theirs.response_topic,
            correlation: theirs.correlation_data,
            content_type: theirs.content_type,
            expiry: theirs
                .message_expiry_interval
                .map(|seconds| Duration::from_secs(seconds.into())),
            user,
        },
    })
}

fn received4(mut frame: BytesMut) -> Result<Received, Broken> {
    let packet = v4::Packet::read(&mut frame, usize::MAX).map_err(|error| broken(&error))?;
    let v4::Packet::Publish(publish) = packet else { return Err(broken(&"it is no message")) };
    Ok(Received {
        topic: topic(&publish.topic)?,
        payload: publish.payload,
        again: publish.dup,
        retained: publish.retain,
        packet: (publish.qos == QoS::AtLeastOnce).then_some(publish.pkid),
        properties: Properties::default(),
    })
}

/// Every packet but PUBLISH.
fn packet5(mut frame: BytesMut) -> Result<Packet, Broken> {
    // A broker that does not speak MQTT 5 answers with the four bytes of 3.1.1.
    if frame.first() == Some(&0x20) && frame.len() == 4 {
        return packet4(frame);
    }
    Ok(match v5::Packet::read(&mut frame, None) {
        Ok(v5::Packet::ConnAck(connack)) => {
            let mut ours = Connack {
                session: connack.session_present,
                code: code(connack.code),
                ..Connack::default()
            };
            if let Some(theirs) = connack.properties {
                ours.reason = theirs.reason_string;
                ours.receive_maximum = theirs.receive_max;
                ours.maximum_packet = theirs.max_packet_size;
                ours.maximum_qos = theirs.max_qos;
                ours.retain_unavailable = theirs.retain_available == Some(0);
                ours.keep_alive = theirs.server_keep_alive;
            }
            Packet::Connack(ours)
        }
        // Codes may be added to the standard; what they all have in common is that promptd is not let in.
        Err(Error::InvalidConnectReturnCode(code)) => {
            Packet::Connack(Connack { code, ..Connack::default() })
        }
        Ok(v5::Packet::PubAck(ack)) => Packet::Puback { packet: ack.pkid, code: ack.reason as u8 },
        Ok(v5::Packet::SubAck(ack)) => Packet::Suback {
            packet: ack.pkid,
            codes: ack.return_codes.into_iter().map(granted).collect(),
        },
        Ok(v5::Packet::UnsubAck(ack)) => Packet::Unsuback { packet: ack.pkid },
        Ok(v5::Packet::PingResp) => Packet::Pong,
        Ok(v5::Packet::Disconnect(goodbye)) => Packet::Disconnect {
            code: goodbye.reason_code as u8,
            reason: goodbye.properties.and_then(|properties| properties.reason_string),
        },
        Ok(_) => return Err(broken(&"it sent a packet that no client gets")),
        Err(error) => return Err(broken(&error)),
    })
}

fn packet4(mut frame: BytesMut) -> Result<Packet, Broken> {
    let packet = v4::Packet::read(&mut frame, usize::MAX).map_err(|error| broken(&error))?;
    Ok(match packet {
        v4::Packet::ConnAck(connack) => Packet::Connack(Connack {
            session: connack.session_present,
            code: connack.code as u8,
            version: Version::V311,
            ..Connack::default()
        }),
        v4::Packet::PubAck(ack) => Packet::Puback { packet: ack.pkid, code: 0 },
        v4::Packet::SubAck(ack) => Packet::Suback {
            packet: ack.pkid,
            codes: ack.return_codes.into_iter().map(granted4).collect(),
        },
        v4::Packet::UnsubAck(ack) => Packet::Unsuback { packet: ack.pkid },
        v4::Packet::PingResp => Packet::Pong,
        _ => return Err(broken(&"it sent a packet that no client gets")),
    })
}

/// The number of a reason (3.2.2.2).
fn code(reason: ConnectReturnCode) -> u8 {
    use ConnectReturnCode as Is;
    match reason {
        Is::Success => 0x00,
        Is::RefusedProtocolVersion => 0x01,
        Is::BadClientId => 0x02,
        Is::ServiceUnavailable => 0x03,
        Is::UnspecifiedError => 0x80,
        Is::MalformedPacket => 0x81,
        Is::ProtocolError => 0x82,
        Is::ImplementationSpecificError => 0x83,
        Is::UnsupportedProtocolVersion => 0x84,
        Is::ClientIdentifierNotValid => 0x85,
        Is::BadUserNamePassword => 0x86,
        Is::NotAuthorized => 0x87,
        Is::ServerUnavailable => 0x88,
        Is::ServerBusy => 0x89,
        Is::Banned => 0x8a,
        Is::BadAuthenticationMethod => 0x8c,
        Is::TopicNameInvalid => 0x90,
        Is::PacketTooLarge => 0x95,
        Is::QuotaExceeded => 0x97,
        Is::PayloadFormatInvalid => 0x99,
        Is::RetainNotSupported => 0x9a,
        Is::QoSNotSupported => 0x9b,
        Is::UseAnotherServer => 0x9c,
        Is::ServerMoved => 0x9d,
        Is::ConnectionRateExceeded => 0x9f,
    }
}

/// The number of a reason (3.9.3).
fn granted(reason: SubscribeReasonCode) -> u8 {
    use SubscribeReasonCode as Is;
    match reason {
        Is::Success(qos) => qos as u8,
        Is::Failure | Is::Unspecified => 0x80,
        Is::ImplementationSpecific => 0x83,
        Is::NotAuthorized => 0x87,
        Is::TopicFilterInvalid => 0x8f,
        Is::PkidInUse => 0x91,
        Is::QuotaExceeded => 0x97,
        Is::SharedSubscriptionsNotSupported => 0x9e,
        Is::SubscriptionIdNotSupported => 0xa1,
        Is::WildcardSubscriptionsNotSupported => 0xa2,
    }
}

fn granted4(reason: v4::SubscribeReasonCode) -> u8 {
    match reason {
        v4::SubscribeReasonCode::Success(qos) => qos as u8,
        v4::SubscribeReasonCode::Failure => 0x80,
    }
}
