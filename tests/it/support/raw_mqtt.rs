//! A small client of MQTT that waits for nothing: for floods, for times in which no library is to have a part, and for packets that
//! no library would send.

use std::io::{BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

/// The half that sends.
pub(crate) struct Sender(TcpStream);

/// The half that receives.
pub(crate) struct Receiver {
    reader: BufReader<TcpStream>,
    writer: TcpStream,
}

/// Connects with a clean session: in MQTT 5, or in 3.1.1.
pub(crate) fn connect(port: u16, name: &str, five: bool) -> (Sender, Receiver) {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut hello = b"\x00\x04MQTT".to_vec();
    hello.extend(if five { &b"\x05\x02\x00\x00\x00"[..] } else { &b"\x04\x02\x00\x00"[..] });
    hello.extend(text(name));
    let mut sender = Sender(stream.try_clone().unwrap());
    sender.send(0x10, &hello);
    let writer = stream.try_clone().unwrap();
    let mut receiver = Receiver { reader: BufReader::new(stream), writer };
    let (kind, body) = receiver.packet().unwrap();
    assert_eq!((kind, body[1]), (0x20, 0), "the broker lets us in");
    (sender, receiver)
}

/// A text as MQTT writes it.
pub(crate) fn text(text: &str) -> Vec<u8> {
    let mut bytes = u16::try_from(text.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

/// A packet with its length in front.
pub(crate) fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    let (mut bytes, mut left) = (vec![kind], body.len());
    loop {
        let part = u8::try_from(left & 0x7f).unwrap();
        left >>= 7;
        bytes.push(if left > 0 { part | 0x80 } else { part });
        if left == 0 {
            break;
        }
    }
    bytes.extend(body);
    bytes
}

impl Sender {
    pub(crate) fn send(&mut self, kind: u8, body: &[u8]) {
        self.0.write_all(&frame(kind, body)).unwrap();
    }

    /// Publishes with `QoS` 1 in MQTT 3.1.1.
    pub(crate) fn publish(&mut self, topic: &str, number: u16, payload: &str) {
        let mut body = text(topic);
        body.extend(number.max(1).to_be_bytes());
        body.extend(payload.as_bytes());
        self.send(0x32, &body);
    }

    /// Subscribes with `QoS` 1 in MQTT 3.1.1; what comes says whether it was allowed.
    pub(crate) fn subscribe(&mut self, topic: &str) {
        let mut body = vec![0, 1];
        body.extend(text(topic));
        body.push(1);
        self.send(0x82, &body);
    }
}

impl Receiver {
    /// The next packet: its first byte and what follows the length.
    pub(crate) fn packet(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut byte = [0];
        self.reader.read_exact(&mut byte).ok()?;
        let (kind, mut length, mut shift) = (byte[0], 0, 0);
        loop {
            self.reader.read_exact(&mut byte).ok()?;
            length |= usize::from(byte[0] & 0x7f) << shift;
            shift += 7;
            if byte[0] < 0x80 {
                break;
            }
        }
        let mut body = vec![0; length];
        self.reader.read_exact(&mut body).ok()?;
        Some((kind, body))
    }

    /// The next message in MQTT 3.1.1, which is acknowledged: topic and payload.
    pub(crate) fn message(&mut self) -> Option<(String, Vec<u8>)> {
        loop {
            let (kind, body) = self.packet()?;
            if kind & 0xf0 != 0x30 {
                continue;
            }
            let length = usize::from(body[0]) << 8 | usize::from(body[1]);
            let topic = String::from_utf8(body[2..2 + length].to_vec()).unwrap();
            let mut rest = 2 + length;
            if kind & 0x06 != 0 {
                let number = [body[rest], body[rest + 1]];
                self.writer.write_all(&[0x40, 2, number[0], number[1]]).ok()?;
                rest += 2;
            }
            return Some((topic, body[rest..].to_vec()));
        }
    }
}
