//! What a broker sends, from bytes that arrive in any pieces.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};

use super::{
    CONNACK, CONTENT_TYPE, CORRELATION_DATA, Connack, DISCONNECT, MAX_USER_PROPERTIES,
    MAXIMUM_PACKET_SIZE, MAXIMUM_QOS, MESSAGE_EXPIRY, PINGRESP, PUBACK, PUBLISH, Packet,
    Properties, REASON_STRING, RECEIVE_MAXIMUM, RESPONSE_TOPIC, RETAIN_AVAILABLE, Received,
    SERVER_KEEP_ALIVE, SUBACK, TOPIC_ALIAS, UNSUBACK, USER_PROPERTY, Version,
};

/// What of a message is kept where the whole is larger than promptd takes: its topic and packet number.
const HEAD: usize = 2 + 65_535 + 2;

/// The bytes are no MQTT, or none that may come to us: nothing after them can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::mqtt) struct Broken(pub(in crate::mqtt) &'static str);

/// Cuts a stream of bytes into packets.
#[derive(Debug)]
pub(in crate::mqtt) struct Decoder {
    version: Version,
    /// A longer packet is passed over. A broker of MQTT 5 is told this number and sends none.
    most: usize,
    /// The first byte of the packet that is being read, and how many bytes of it are still to come.
    open: Option<(u8, usize)>,
    /// Of a packet that is too long: its beginning.
    long: Option<BytesMut>,
}

impl Decoder {
    /// A decoder for one connection.
    pub(in crate::mqtt) fn new(version: Version, most: usize) -> Decoder {
        Decoder { version, most, open: None, long: None }
    }

    /// Takes the next packet out of `bytes`; `None` where it is not all there yet.
    pub(in crate::mqtt) fn next(&mut self, bytes: &mut BytesMut) -> Result<Option<Packet>, Broken> {
        loop {
            let (kind, left) = match self.open {
                Some(open) => open,
                None => match header(bytes)? {
                    Some(header) => header,
                    None => return Ok(None),
                },
            };
            self.open = Some((kind, left));
            if left > self.most || self.long.is_some() {
                match self.pass_over(kind, left, bytes)? {
                    None => return Ok(None),
                    Some(packet) => return Ok(Some(packet)),
                }
            }
            if bytes.len() < left {
                // Room for the rest, and for no more: the length is the sender's claim.
                bytes.reserve((left - bytes.len()).min(64 << 10));
                return Ok(None);
            }
            let body = bytes.split_to(left).freeze();
            self.open = None;
            if let Some(packet) = packet(kind, body, self.version)? {
                return Ok(Some(packet));
            }
        }
    }

    /// Drops a packet that is too long, but for its head.
    fn pass_over(
        &mut self,
        kind: u8,
        left: usize,
        bytes: &mut BytesMut,
    ) -> Result<Option<Packet>, Broken> {
        let long = self.long.get_or_insert_default();
        let here = bytes.split_to(left.min(bytes.len()));
        let room = HEAD.saturating_sub(long.len()).min(here.len());
        long.extend_from_slice(here.get(..room).unwrap_or_default());
        let left = left - here.len();
        self.open = Some((kind, left));
        if left > 0 {
            return Ok(None);
        }
        self.open = None;
        let head = self.long.take().unwrap_or_default().freeze();
        if kind & 0xf0 != PUBLISH {
            return Err(Broken("a packet is longer than the largest that may come"));
        }
        let (_, packet, _) = publish_head(kind, head)?;
        Ok(Some(Packet::Unreadable { packet, why: "it is larger than promptd takes" }))
    }
}

/// The first byte and the length (2.1), taken out of `bytes` when both are there.
fn header(bytes: &mut BytesMut) -> Result<Option<(u8, usize)>, Broken> {
    let Some(&kind) = bytes.first() else { return Ok(None) };
    // What is no MQTT at all, such as HTTP or TLS, is seen at its first byte and not waited for.
    let known = [CONNACK, PUBACK, SUBACK, UNSUBACK, PINGRESP, DISCONNECT];
    if !known.contains(&kind) && kind & 0xf0 != PUBLISH {
        return Err(Broken("it sent a packet that no client gets"));
    }
    let mut value = 0_usize;
    for at in 0..4 {
        let Some(&byte) = bytes.get(1 + at) else { return Ok(None) };
        value |= usize::from(byte & 0x7f) << (7 * at);
        if byte < 0x80 {
            bytes.advance(2 + at);
            return Ok(Some((kind, value)));
        }
    }
    Err(Broken("the length of a packet has more than four bytes"))
}

/// A whole packet; `None` where it says nothing to us.
fn packet(kind: u8, body: Bytes, version: Version) -> Result<Option<Packet>, Broken> {
    let mut body = Reader(body);
    Ok(Some(match kind {
        CONNACK => Packet::Connack(connack(&mut body)?),
        PUBACK => Packet::Puback { packet: body.number()?, code: body.byte().unwrap_or_default() },
        SUBACK => {
            let packet = body.number()?;
            if version == Version::V5 {
                body.properties(|_, _| Ok(()))?;
            }
            Packet::Suback { packet, codes: body.0.to_vec() }
        }
        UNSUBACK => Packet::Unsuback { packet: body.number()? },
        PINGRESP => Packet::Pong,
        DISCONNECT if version == Version::V5 => {
            let code = body.byte().unwrap_or_default();
            let mut reason = None;
            if !body.0.is_empty() {
                body.properties(|id, value| {
                    if id == REASON_STRING {
                        reason = Some(value.text()?);
                    }
                    Ok(())
                })?;
            }
            Packet::Disconnect { code, reason }
        }
        _ if kind & 0xf0 == PUBLISH => publish(kind, body.0, version)?,
        _ => return Err(Broken("it said goodbye as MQTT 3.1.1 cannot")),
    }))
}

/// CONNACK (3.2). A broker that does not speak MQTT 5 answers with the two bytes of 3.1.1.
fn connack(body: &mut Reader) -> Result<Connack, Broken> {
    let flags = body.byte()?;
    let mut connack = Connack { session: flags & 1 != 0, code: body.byte()?, ..Connack::default() };
    if body.0.is_empty() {
        connack.version = Version::V311;
        return Ok(connack);
    }
    body.properties(|id, value| {
        match id {
            RECEIVE_MAXIMUM => connack.receive_maximum = Some(value.number()?),
            MAXIMUM_QOS => connack.maximum_qos = Some(value.byte()?),
            RETAIN_AVAILABLE => connack.retain_unavailable = value.byte()? == 0,
            MAXIMUM_PACKET_SIZE => connack.maximum_packet = Some(value.long()?),
            SERVER_KEEP_ALIVE => connack.keep_alive = Some(value.number()?),
            REASON_STRING => connack.reason = Some(value.text()?),
            _ => {}
        }
        Ok(())
    })?;
    Ok(connack)
}

/// Topic, packet number and what is behind them.
fn publish_head(kind: u8, body: Bytes) -> Result<(Bytes, Option<u16>, Reader), Broken> {
    let mut body = Reader(body);
    let topic = body.binary()?;
    let packet = match kind & 0x06 {
        0x00 => None,
        0x02 => Some(body.number()?),
        // Exactly-once is granted to nobody who asked for less.
        _ => return Err(Broken("it sent a message with a QoS that was not asked for")),
    };
    Ok((topic, packet, body))
}

fn publish(kind: u8, body: Bytes, version: Version) -> Result<Packet, Broken> {
    let (topic, packet, mut body) = publish_head(kind, body)?;
    let unreadable = |why| Ok(Packet::Unreadable { packet, why });
    let topic = match String::from_utf8(topic.into()) {
        Ok(topic) if !topic.is_empty() && !topic.contains('\0') => topic,
        _ => return unreadable("its topic is no text"),
    };
    let mut properties = Properties::default();
    if version == Version::V5 {
        let read = body.properties(|id, value| {
            match id {
                RESPONSE_TOPIC => properties.response_topic = Some(value.text()?),
                CORRELATION_DATA => properties.correlation = Some(value.binary()?),
                CONTENT_TYPE => properties.content_type = Some(value.text()?),
                MESSAGE_EXPIRY => {
                    properties.expiry = Some(Duration::from_secs(value.long()?.into()));
                }
                USER_PROPERTY => {
                    let pair = (value.text()?, value.text()?);
                    if properties.user.len() < MAX_USER_PROPERTIES {
                        properties.user.push(pair);
                    }
                }
                TOPIC_ALIAS => {
                    return Err(Broken("it has a topic alias, which promptd does not use"));
                }
                _ => {}
            }
            Ok(())
        });
        if let Err(Broken(why)) = read {
            return unreadable(why);
        }
    }
    Ok(Packet::Publish(Box::new(Received {
        topic,
        payload: body.0,
        again: kind & 0x08 != 0,
        retained: kind & 0x01 != 0,
        packet,
        properties,
    })))
}

/// Reads values from the front of some bytes.
struct Reader(Bytes);

/// The bytes end too early, or have a length that is not theirs.
const SHORT: Broken = Broken("a packet ends in the middle of a value");

impl Reader {
    fn byte(&mut self) -> Result<u8, Broken> {
        self.0.try_get_u8().map_err(|_| SHORT)
    }

    fn number(&mut self) -> Result<u16, Broken> {
        self.0.try_get_u16().map_err(|_| SHORT)
    }

    fn long(&mut self) -> Result<u32, Broken> {
        self.0.try_get_u32().map_err(|_| SHORT)
    }

    fn binary(&mut self) -> Result<Bytes, Broken> {
        let length = usize::from(self.number()?);
        self.take(length)
    }

    fn take(&mut self, length: usize) -> Result<Bytes, Broken> {
        if self.0.len() < length { Err(SHORT) } else { Ok(self.0.split_to(length)) }
    }

    fn text(&mut self) -> Result<String, Broken> {
        String::from_utf8(self.binary()?.into()).map_err(|_| Broken("a text in it is not UTF-8"))
    }

    fn length(&mut self) -> Result<usize, Broken> {
        let mut value = 0;
        for at in 0..4 {
            let byte = self.byte()?;
            value |= usize::from(byte & 0x7f) << (7 * at);
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Broken("a length has more than four bytes"))
    }

    /// Reads properties (2.2.2) one by one. `each` gets the identifier and the value alone, so that it cannot read past it.
    fn properties(
        &mut self,
        mut each: impl FnMut(u8, &mut Reader) -> Result<(), Broken>,
    ) -> Result<(), Broken> {
        let length = self.length()?;
        let mut all = Reader(self.take(length)?);
        while !all.0.is_empty() {
            let id = all.byte()?;
            // The types of 2.2.2.2: the value's bytes are counted first.
            let two = |bytes: &Bytes, at: usize| {
                let head = bytes.get(at..at + 2).ok_or(SHORT)?;
                Ok(2 + head.iter().fold(0, |all, byte| all << 8 | usize::from(*byte)))
            };
            let size = match id {
                0x01 | 0x17 | 0x19 | 0x24 | 0x25 | 0x28 | 0x29 | 0x2a => 1,
                0x13 | 0x21 | 0x22 | 0x23 => 2,
                0x02 | 0x11 | 0x18 | 0x27 => 4,
                0x03 | 0x08 | 0x09 | 0x12 | 0x15 | 0x16 | 0x1a | 0x1c | 0x1f => two(&all.0, 0)?,
                0x26 => {
                    let name = two(&all.0, 0)?;
                    name + two(&all.0, name)?
                }
                0x0b => {
                    let more = all.0.iter().take(3).take_while(|byte| **byte >= 0x80).count();
                    more + 1
                }
                _ => return Err(Broken("it has a property that MQTT 5 does not know")),
            };
            let mut value = Reader(all.take(size)?);
            each(id, &mut value)?;
        }
        Ok(())
    }
}
