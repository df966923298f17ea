//! What is written is read as the standard says, in any pieces, and what is broken costs one packet.

use bytes::BytesMut;
// An older reading of the standard.
use rumqttc::v5::mqttbytes::v5::Packet as Theirs;

use super::*;

fn all(version: Version, most: usize, bytes: &[u8], piece: usize) -> Vec<Packet> {
    let mut decoder = Decoder::new(version, most);
    let (mut inbox, mut packets) = (BytesMut::new(), Vec::new());
    for piece in bytes.chunks(piece) {
        inbox.extend_from_slice(piece);
        while let Some(packet) = decoder.next(&mut inbox).unwrap() {
            packets.push(packet);
        }
    }
    assert!(inbox.is_empty());
    packets
}

/// PUBLISH with the properties given as bytes.
fn message(flags: u8, number: Option<u16>, properties: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut body = vec![0, 1, b'a'];
    body.extend(number.iter().flat_map(|number| number.to_be_bytes()));
    body.push(u8::try_from(properties.len()).unwrap());
    body.extend(properties);
    body.extend(payload);
    let mut bytes = vec![0x30 | flags, u8::try_from(body.len()).unwrap()];
    bytes.extend(body);
    bytes
}

#[test]
fn packets_of_a_broker_in_any_pieces() {
    let mut bytes =
        b"\x20\x0f\x01\x00\x0c\x21\x00\x05\x24\x01\x25\x00\x2a\x00\x13\x00\x09".to_vec();
    let properties = b"\x08\x00\x03r/t\x09\x00\x02\x00\xff\x03\x00\x01c\x02\x00\x00\x00\x07\x26\x00\x01k\x00\x01v\x0b\x80\x01\x01\x01";
    bytes.extend(message(0x0b, Some(7), properties, b"hi"));
    bytes.extend(b"\x40\x02\x00\x09\x40\x04\x00\x0a\x87\x00\x90\x05\x00\x0b\x00\x01\x87\xb0\x04\x00\x0c\x00\x00\xd0\x00");
    bytes.extend(b"\xe0\x07\x8e\x05\x1f\x00\x02no");
    let connack = Connack {
        session: true,
        receive_maximum: Some(5),
        maximum_qos: Some(1),
        retain_unavailable: true,
        keep_alive: Some(9),
        ..Connack::default()
    };
    let received = Received {
        topic: "a".into(),
        payload: Bytes::from_static(b"hi"),
        again: true,
        retained: true,
        packet: Some(7),
        properties: Properties {
            response_topic: Some("r/t".into()),
            correlation: Some(Bytes::from_static(b"\0\xff")),
            content_type: Some("c".into()),
            expiry: Some(Duration::from_secs(7)),
            user: vec![("k".into(), "v".into())],
        },
    };
    let want = vec![
        Packet::Connack(connack),
        Packet::Publish(Box::new(received)),
        Packet::Puback { packet: 9, code: 0 },
        Packet::Puback { packet: 10, code: 0x87 },
        Packet::Suback { packet: 11, codes: vec![1, 0x87] },
        Packet::Unsuback { packet: 12 },
        Packet::Pong,
        Packet::Disconnect { code: 0x8e, reason: Some("no".into()) },
    ];
    for piece in [1, 2, 3, 7, bytes.len()] {
        assert_eq!(all(Version::V5, 1000, &bytes, piece), want, "{piece}");
    }
}

#[test]
fn packets_of_a_broker_of_3_1_1() {
    let bytes = b"\x20\x02\x00\x05\x32\x07\x00\x01a\x00\x07hi\x90\x03\x00\x0b\x80\xd0\x00";
    let packets = all(Version::V311, 1000, bytes, 1);
    assert_eq!(
        packets[0],
        Packet::Connack(Connack { code: 5, version: Version::V311, ..Connack::default() })
    );
    let Packet::Publish(received) = &packets[1] else { panic!("{packets:?}") };
    assert_eq!((received.packet, &received.payload[..]), (Some(7), &b"hi"[..]));
    assert_eq!(packets[2], Packet::Suback { packet: 11, codes: vec![0x80] });
}

#[test]
fn a_message_that_cannot_be_read_costs_only_itself() {
    let good = message(0x02, Some(2), b"", b"x");
    for bad in [
        &b"\x26\x00\x01\xff\x00\x01b"[..],
        b"\x08\x00\x01\xff",
        b"\x23\x00\x01",
        b"\x77",
        b"\x26\x00\x09k",
        b"\x02\x00",
    ] {
        let mut bytes = message(0x02, Some(1), bad, b"");
        bytes.extend(&good);
        let packets = all(Version::V5, 1000, &bytes, 5);
        assert!(matches!(packets[0], Packet::Unreadable { packet: Some(1), .. }), "{bad:?}");
        assert!(matches!(packets[1], Packet::Publish(_)), "{bad:?}");
    }
}

#[test]
fn a_message_that_is_too_long_is_passed_over() {
    let mut bytes = b"\x32\xd0\x0f\x00\x01a\x00\x07".to_vec();
    bytes.resize(2000 + 3, b'x');
    bytes.extend(message(0x02, Some(2), b"", b"x"));
    for piece in [1, 100, 5000] {
        let packets = all(Version::V311, 1000, &bytes, piece);
        assert!(matches!(packets[0], Packet::Unreadable { packet: Some(7), .. }), "{packets:?}");
        assert!(matches!(&packets[1], Packet::Publish(received) if received.packet == Some(2)));
    }
}

#[test]
fn bytes_that_are_no_mqtt() {
    for bytes in [
        &b"\x20\xff\xff\xff\xff\x01"[..],
        b"\x10\x00",
        b"\x00\x00",
        b"\x20\x01\x00",
        b"\x36\x05\x00\x01a\x00\x01",
        b"\x30\x01\x00",
        b"\x40\x01\x00",
        b"HTTP/1.1 400 Bad Request",
        b"\x15\x03\x03\x00\x02\x02\x46",
    ] {
        let mut decoder = Decoder::new(Version::V5, 1000);
        assert!(decoder.next(&mut BytesMut::from(bytes)).is_err(), "{bytes:?}");
    }
}

#[test]
fn hostile_bytes_never_panic_and_never_grow_the_memory() {
    // Every prefix and every single changed byte of a conversation.
    let mut bytes = b"\x20\x06\x01\x00\x03\x21\x00\x05".to_vec();
    bytes.extend(message(
        0x0b,
        Some(7),
        b"\x08\x00\x03r/t\x26\x00\x01k\x00\x01v\x0b\x80\x01",
        b"hi",
    ));
    bytes.extend(b"\x90\x05\x00\x0b\x00\x01\x87\xe0\x07\x8e\x05\x1f\x00\x02no");
    for at in 0..bytes.len() {
        for value in 0..=255 {
            let mut hostile = bytes.clone();
            hostile[at] = value;
            for version in [Version::V5, Version::V311] {
                let mut decoder = Decoder::new(version, 1000);
                let mut inbox = BytesMut::from(&hostile[..]);
                while let Ok(Some(_)) = decoder.next(&mut inbox) {}
                assert!(inbox.capacity() < 100_000);
            }
        }
    }
}

#[test]
fn what_we_write_is_what_others_read() {
    let mut bytes = connect(&Connect {
        version: Version::V5,
        client_id: "promptd-n",
        keep_alive: Duration::from_secs(30),
        clean_start: false,
        session_expiry: 3600,
        receive_maximum: 64,
        maximum_packet: 70_000,
        login: Some(("me", b"secret")),
        will: Some(Will {
            topic: "promptd/n/availability",
            text: "offline",
            retain: true,
            acknowledged: true,
        }),
    })
    .unwrap();
    let user = [("status", "ok".to_owned())];
    let sent = Publish {
        topic: "me/r",
        payload: vec![b'x'; 300].into(),
        retain: true,
        packet: Some(9),
        content_type: Some("application/json"),
        text: true,
        correlation: Some(Bytes::from_static(b"\0\xff")),
        response_topic: None,
        expiry: Some(Duration::from_millis(300)),
        user: &user,
    };
    publish(&mut bytes, Version::V5, sent).unwrap();
    puback(&mut bytes, Version::V5, 7).unwrap();
    let wanted =
        Subscription { filter: "promptd/n/ask/#", acknowledged: true, retained_once: true };
    subscribe(&mut bytes, Version::V5, 3, &[wanted]).unwrap();
    ping(&mut bytes).unwrap();
    let mut next = || Theirs::read(&mut bytes, Some(10_000)).unwrap();
    let Theirs::Connect(connect, will, login) = next() else { panic!() };
    let properties = connect.properties.unwrap();
    assert_eq!(
        (connect.keep_alive, connect.clean_start, connect.client_id.as_str()),
        (30, false, "promptd-n")
    );
    assert_eq!(
        (
            properties.session_expiry_interval,
            properties.receive_maximum,
            properties.max_packet_size
        ),
        (Some(3600), Some(64), Some(70_000))
    );
    let will = will.unwrap();
    assert_eq!(
        (&will.topic[..], &will.message[..], will.retain),
        (&b"promptd/n/availability"[..], &b"offline"[..], true)
    );
    assert_eq!(
        login.map(|login| (login.username, login.password)),
        Some(("me".into(), "secret".into()))
    );
    let Theirs::Publish(message) = next() else { panic!() };
    let properties = message.properties.unwrap();
    assert_eq!((message.pkid, message.retain, message.payload.len()), (9, true, 300));
    assert_eq!(
        (properties.message_expiry_interval, properties.payload_format_indicator),
        (Some(1), Some(1))
    );
    assert_eq!(properties.correlation_data.as_deref(), Some(&b"\0\xff"[..]));
    assert_eq!(properties.content_type.as_deref(), Some("application/json"));
    assert_eq!(properties.user_properties, [("status".to_owned(), "ok".to_owned())]);
    let Theirs::PubAck(ack) = next() else { panic!() };
    assert_eq!(ack.pkid, 7);
    let Theirs::Subscribe(subscription) = next() else { panic!() };
    assert_eq!((subscription.pkid, subscription.filters[0].path.as_str()), (3, "promptd/n/ask/#"));
    assert!(matches!(next(), Theirs::PingReq(_)));
}
