//! A broker that a test plays byte by byte, for what no real one can be brought to do.

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Reads one packet and gives its first byte and what follows the length.
pub(crate) async fn packet(stream: &mut (impl AsyncRead + Unpin)) -> Option<(u8, Vec<u8>)> {
    let kind = stream.read_u8().await.ok()?;
    let (mut length, mut shift) = (0, 0);
    loop {
        let byte = stream.read_u8().await.ok()?;
        length |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte < 0x80 {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some((kind, body))
}

/// Plays a broker that has no session up to the confirmed subscription.
pub(crate) async fn welcome(listener: &tokio::net::TcpListener) -> TcpStream {
    let (mut stream, _) = listener.accept().await.unwrap();
    assert_eq!(packet(&mut stream).await.unwrap().0, 0x10);
    stream.write_all(b"\x20\x03\x00\x00\x00").await.unwrap();
    let (kind, subscribe) = packet(&mut stream).await.unwrap();
    assert_eq!(kind, 0x82, "the subscription comes first");
    let number = [subscribe[0], subscribe[1]];
    stream.write_all(&[0x90, 5, number[0], number[1], 0, 1, 1]).await.unwrap();
    stream
}

/// The next `QoS` 1 message on this topic: packet number and the rest.
pub(crate) async fn published(stream: &mut TcpStream, topic: &str) -> ([u8; 2], Vec<u8>) {
    loop {
        let (kind, body) = packet(stream).await.unwrap();
        let length = usize::from(body[0]) << 8 | usize::from(body[1]);
        if kind & 0xf6 == 0x32 && &body[2..2 + length] == topic.as_bytes() {
            return ([body[2 + length], body[3 + length]], body[4 + length..].to_vec());
        }
    }
}

/// A `QoS` 1 prompt with this packet number and id, and whether it was sent before.
pub(crate) fn prompt(number: u16, id: &str, again: bool) -> Vec<u8> {
    let payload = format!(r#"{{"id":"{id}","prompt":"hi"}}"#);
    let length = u8::try_from(2 + 13 + 2 + 1 + payload.len()).unwrap();
    let mut bytes = vec![if again { 0x3a } else { 0x32 }, length, 0, 13];
    bytes.extend(b"promptd/n/ask");
    bytes.extend(number.to_be_bytes());
    bytes.push(0);
    bytes.extend(payload.as_bytes());
    bytes
}
