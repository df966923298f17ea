//! What promptd sends, as bytes.

use std::time::Duration;

use bytes::{BufMut, BytesMut};

use super::{
    CONNECT, CONTENT_TYPE, CORRELATION_DATA, DISCONNECT, MAXIMUM_PACKET_SIZE, MESSAGE_EXPIRY,
    PAYLOAD_FORMAT, PINGREQ, PUBACK, PUBLISH, RECEIVE_MAXIMUM, SESSION_EXPIRY, SUBSCRIBE,
    USER_PROPERTY, Version,
};

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
    /// What the broker says when we vanish: topic, text, retained, `QoS` 1.
    pub(in crate::mqtt) will: Option<(&'a str, &'a str, bool, bool)>,
}

/// A message on its way out.
#[derive(Clone, Debug)]
pub(in crate::mqtt) struct Publish<'a> {
    pub(in crate::mqtt) topic: &'a str,
    pub(in crate::mqtt) payload: &'a [u8],
    pub(in crate::mqtt) retain: bool,
    /// The packet number; none for `QoS` 0.
    pub(in crate::mqtt) packet: Option<u16>,
    pub(in crate::mqtt) content_type: Option<&'a str>,
    /// Whether the payload is UTF-8.
    pub(in crate::mqtt) text: bool,
    pub(in crate::mqtt) correlation: Option<&'a [u8]>,
    pub(in crate::mqtt) expiry: Option<Duration>,
    pub(in crate::mqtt) user: &'a [(&'static str, String)],
}

/// A topic that is asked for.
#[derive(Clone, Debug)]
pub(in crate::mqtt) struct Subscription<'a> {
    pub(in crate::mqtt) filter: &'a str,
    pub(in crate::mqtt) qos: u8,
    /// Whether what the broker keeps comes only where the subscription is new (3.8.3.1, MQTT 5).
    pub(in crate::mqtt) retained_once: bool,
}

/// CONNECT (3.1).
pub(in crate::mqtt) fn connect(to: &mut BytesMut, what: &Connect<'_>) {
    packet(to, CONNECT, |to| {
        text(to, "MQTT");
        to.put_u8(if what.version == Version::V5 { 5 } else { 4 });
        let mut flags = u8::from(what.clean_start) << 1;
        if let Some((_, _, retain, acknowledged)) = what.will {
            flags |= 0x04 | u8::from(acknowledged) << 3 | u8::from(retain) << 5;
        }
        if what.login.is_some() {
            flags |= 0xc0;
        }
        to.put_u8(flags);
        to.put_u16(u16::try_from(what.keep_alive.as_secs()).unwrap_or(u16::MAX));
        if what.version == Version::V5 {
            properties(to, |to| {
                to.put_u8(SESSION_EXPIRY);
                to.put_u32(what.session_expiry);
                to.put_u8(RECEIVE_MAXIMUM);
                to.put_u16(what.receive_maximum);
                to.put_u8(MAXIMUM_PACKET_SIZE);
                to.put_u32(what.maximum_packet);
            });
        }
        text(to, what.client_id);
        if let Some((topic, message, _, _)) = what.will {
            if what.version == Version::V5 {
                to.put_u8(0);
            }
            text(to, topic);
            text(to, message);
        }
        if let Some((user, password)) = what.login {
            text(to, user);
            binary(to, password);
        }
    });
}

/// PUBLISH (3.3).
pub(in crate::mqtt) fn publish(to: &mut BytesMut, version: Version, what: &Publish<'_>) {
    let flags = u8::from(what.packet.is_some()) << 1 | u8::from(what.retain);
    packet(to, PUBLISH | flags, |to| {
        text(to, what.topic);
        if let Some(number) = what.packet {
            to.put_u16(number);
        }
        if version == Version::V5 {
            properties(to, |to| {
                if what.text {
                    to.put_slice(&[PAYLOAD_FORMAT, 1]);
                }
                if let Some(expiry) = what.expiry {
                    to.put_u8(MESSAGE_EXPIRY);
                    // Whole seconds; 0 would mean that it is over already.
                    to.put_u32(u32::try_from(expiry.as_secs().max(1)).unwrap_or(u32::MAX));
                }
                if let Some(content_type) = what.content_type {
                    to.put_u8(CONTENT_TYPE);
                    text(to, content_type);
                }
                if let Some(data) = what.correlation {
                    to.put_u8(CORRELATION_DATA);
                    binary(to, data);
                }
                for (name, value) in what.user {
                    to.put_u8(USER_PROPERTY);
                    text(to, name);
                    text(to, value);
                }
            });
        }
        to.put_slice(what.payload);
    });
}

/// PUBACK (3.4). `code` is told to a broker of MQTT 5 only.
pub(in crate::mqtt) fn puback(to: &mut BytesMut, version: Version, number: u16, code: u8) {
    packet(to, PUBACK, |to| {
        to.put_u16(number);
        if version == Version::V5 && code != 0 {
            to.put_u8(code);
        }
    });
}

/// SUBSCRIBE (3.8).
pub(in crate::mqtt) fn subscribe(
    to: &mut BytesMut,
    version: Version,
    number: u16,
    topics: &[Subscription<'_>],
) {
    packet(to, SUBSCRIBE, |to| {
        to.put_u16(number);
        if version == Version::V5 {
            to.put_u8(0);
        }
        for topic in topics {
            text(to, topic.filter);
            let once = u8::from(topic.retained_once && version == Version::V5);
            to.put_u8(topic.qos | once << 4);
        }
    });
}

/// PINGREQ (3.12).
pub(in crate::mqtt) fn ping(to: &mut BytesMut) {
    to.put_slice(&[PINGREQ, 0]);
}

/// DISCONNECT (3.14): goodbye, and the broker says nothing for us.
pub(in crate::mqtt) fn disconnect(to: &mut BytesMut) {
    to.put_slice(&[DISCONNECT, 0]);
}

/// A packet with its length in front of its body.
fn packet(to: &mut BytesMut, kind: u8, body: impl FnOnce(&mut BytesMut)) {
    let mut bytes = BytesMut::new();
    body(&mut bytes);
    to.put_u8(kind);
    length(to, bytes.len());
    to.put_slice(&bytes);
}

/// Properties with their length in front.
fn properties(to: &mut BytesMut, body: impl FnOnce(&mut BytesMut)) {
    let mut bytes = BytesMut::new();
    body(&mut bytes);
    length(to, bytes.len());
    to.put_slice(&bytes);
}

/// A variable byte integer (1.5.5).
fn length(to: &mut BytesMut, mut value: usize) {
    loop {
        let low = u8::try_from(value & 0x7f).unwrap_or_default();
        value >>= 7;
        to.put_u8(low | u8::from(value > 0) << 7);
        if value == 0 {
            return;
        }
    }
}

/// A text with its length in front (1.5.4). Topics, ids and properties are far shorter than the 65,535 bytes that fit; what
/// is not, is cut at a character rather than sent with a wrong length.
fn text(to: &mut BytesMut, text: &str) {
    let end = text.floor_char_boundary(usize::from(u16::MAX));
    binary(to, text.as_bytes().get(..end).unwrap_or_default());
}

fn binary(to: &mut BytesMut, data: &[u8]) {
    let data = data.get(..usize::from(u16::MAX)).unwrap_or(data);
    to.put_u16(u16::try_from(data.len()).unwrap_or(u16::MAX));
    to.put_slice(data);
}
