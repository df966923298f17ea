//! The MQTT door when the broker, the network or the door itself fails.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

use promptd::mqtt::{BrokerUrl, Config};
use promptd::wire::Limits;
use rumqttc::v5::MqttOptions;
use rumqttc::v5::mqttbytes::QoS;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::broker::{Board, Broker, Client, Relay, answer, config, json, program, topic};

/// Long enough to see that nothing comes.
const A_WHILE: Duration = Duration::from_millis(300);
/// A broker that is back is found again within this.
const BACK: Duration = Duration::from_secs(6);
/// The broker writes every change to disk at once.
const PERSISTENT: &str = "persistence true\nautosave_on_changes true\nautosave_interval 1";

async fn online(port: u16) {
    let mut watcher = Client::connect(port, "watcher", &["promptd/n/availability"], false).await;
    watcher.until("promptd/n/availability", "online").await;
}

#[tokio::test]
async fn a_broker_that_comes_late() {
    let Some(mut broker) = Broker::prepare("") else { return };
    let mut board = Board::open(broker.port);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!board.door.is_finished());
    broker.run();
    let began = Instant::now();
    online(broker.port).await;
    assert!(began.elapsed() < BACK, "{:?}", began.elapsed());
    let me = Client::connect(broker.port, "me", &[], false).await;
    me.ask("promptd/n/ask", "hi").await;
    board.answer(&["x"]).await;
}

#[tokio::test]
async fn a_broker_that_forgets_everything() {
    let Some(mut broker) = Broker::start("") else { return };
    let mut board = Board::open(broker.port);
    online(broker.port).await;
    for _ in 0..2 {
        broker.kill();
        tokio::time::sleep(Duration::from_millis(500)).await;
        broker.run();
        let began = Instant::now();
        online(broker.port).await;
        assert!(began.elapsed() < BACK, "{:?}", began.elapsed());
        // It forgot the subscription too.
        let mut me = Client::connect(broker.port, "me", &["promptd/n/answer/#"], false).await;
        me.ask("promptd/n/ask", "hi").await;
        board.answer(&["x"]).await;
        assert_eq!(json(&me.next().await)["text"], json!("x"));
    }
}

#[tokio::test]
async fn an_answer_that_finds_no_broker_waits_for_it() {
    let Some(mut broker) = Broker::start(PERSISTENT) else { return };
    let mut board = Board::open(broker.port);
    online(broker.port).await;
    let mut me = Client::connect(broker.port, "me", &["promptd/n/answer/#"], true).await;
    me.ask("promptd/n/ask", r#"{"id":"a","prompt":"hi"}"#).await;
    let running = board.accepted().await;
    // The broker writes what changed between two messages.
    tokio::time::sleep(Duration::from_millis(500)).await;
    broker.kill();
    answer(&running, &["while it was away"]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    broker.run();
    let began = Instant::now();
    let message = me.next().await;
    assert!(began.elapsed() < BACK, "{:?}", began.elapsed());
    assert_eq!(
        (topic(&message), &json(&message)["text"]),
        ("promptd/n/answer/a", &json!("while it was away"))
    );
}

#[tokio::test]
async fn prompts_delivered_again_are_not_generated_again() {
    let Some(broker) = Broker::start("") else { return };
    let relay = Relay::to(broker.port).await;
    let mut board = Board::open(relay.port);
    online(broker.port).await;
    let mut me = Client::connect(broker.port, "me", &["promptd/n/answer/#"], false).await;
    me.ask("promptd/n/ask", r#"{"id":"a","prompt":"hi"}"#).await;
    let named = board.accepted().await;
    // Equal prompts without a name are prompts of their own, and each is delivered again.
    let mut twins = Vec::new();
    for _ in 0..2 {
        me.ask("promptd/n/ask", "twin").await;
        twins.push(board.accepted().await);
    }
    relay.cut();
    answer(&named, &["while it was away"]);
    tokio::time::sleep(Duration::from_millis(200)).await;
    relay.mend();
    assert_eq!(json(&me.next().await)["text"], json!("while it was away"));
    assert!(board.idle(A_WHILE).await, "none is generated twice");
    for twin in &twins {
        answer(twin, &["t"]);
        assert_eq!(json(&me.next().await)["text"], json!("t"));
    }
    assert!(me.silent(A_WHILE).await, "none is answered twice");
    assert!(board.idle(A_WHILE).await);
    board.leave().await;
    // And each was acknowledged on the connection it came on last: the next start gets nothing.
    let mut board = Board::open(broker.port);
    online(broker.port).await;
    assert!(board.idle(A_WHILE).await);
}

#[tokio::test]
async fn a_door_that_dies_gets_its_prompts_again() {
    let Some(broker) = Broker::start("") else { return };
    let mut board = Board::open(broker.port);
    online(broker.port).await;
    let topics = ["promptd/n/answer/#", "promptd/n/availability"];
    let mut me = Client::connect(broker.port, "me", &topics, false).await;
    me.until("promptd/n/availability", "online").await;
    me.ask("promptd/n/ask", r#"{"id":"a","prompt":"hi"}"#).await;
    let running = board.accepted().await;
    board.door.abort();
    me.until("promptd/n/availability", "offline").await;
    drop(running);
    let mut board = Board::open(broker.port);
    me.until("promptd/n/availability", "online").await;
    board.answer(&["the second time"]).await;
    assert_eq!(json(&me.next().await)["text"], json!("the second time"));
}

#[tokio::test]
async fn a_broker_that_stops_reading_is_noticed() {
    let Some(broker) = Broker::start("") else { return };
    // The relay's connections show when the door gives up.
    let mut relay = Relay::to(broker.port).await;
    let mut board = Board::open(relay.port);
    online(broker.port).await;
    relay.accepted.recv().await.unwrap();
    broker.freeze();
    let frozen = Instant::now();
    let again = tokio::time::timeout(Duration::from_secs(12), relay.accepted.recv())
        .await
        .unwrap()
        .unwrap();
    // 1.5 times the keep-alive of 5 s after the last sign of life, and the first wait of at most 0.5 s.
    let noticed = again - frozen;
    assert!(noticed <= Duration::from_millis(8500), "{noticed:?}");
    broker.thaw();
    online(broker.port).await;
    let me = Client::connect(broker.port, "me", &[], false).await;
    me.ask("promptd/n/ask", "hi").await;
    tokio::time::timeout(Duration::from_secs(15), board.answer(&["x"])).await.unwrap();
}

#[tokio::test]
async fn whoever_hangs_up_at_once_is_not_stormed() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let board = Board::open(listener.local_addr().unwrap().port());
    let began = Instant::now();
    let mut connections = 0;
    while let Ok(accepted) = tokio::time::timeout(
        Duration::from_secs(8).saturating_sub(began.elapsed()),
        listener.accept(),
    )
    .await
    {
        drop(accepted.unwrap());
        connections += 1;
    }
    assert!((2..=12).contains(&connections), "{connections} connections in 8 s");
    assert!(!board.door.is_finished());
}

/// Reads one packet and gives its first byte and what follows the length.
async fn packet(stream: &mut TcpStream) -> Option<(u8, Vec<u8>)> {
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
async fn welcome(listener: &tokio::net::TcpListener) -> TcpStream {
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
async fn published(stream: &mut TcpStream, topic: &str) -> ([u8; 2], Vec<u8>) {
    loop {
        let (kind, body) = packet(stream).await.unwrap();
        let length = usize::from(body[0]) << 8 | usize::from(body[1]);
        if kind & 0xf6 == 0x32 && &body[2..2 + length] == topic.as_bytes() {
            return ([body[2 + length], body[3 + length]], body[4 + length..].to_vec());
        }
    }
}

/// A `QoS` 1 prompt with this packet number and id, and whether it was sent before.
fn prompt(number: u16, id: &str, again: bool) -> Vec<u8> {
    let payload = format!(r#"{{"id":"{id}","prompt":"hi"}}"#);
    let length = u8::try_from(2 + 13 + 2 + 1 + payload.len()).unwrap();
    let mut bytes = vec![if again { 0x3a } else { 0x32 }, length, 0, 13];
    bytes.extend(b"promptd/n/ask");
    bytes.extend(number.to_be_bytes());
    bytes.push(0);
    bytes.extend(payload.as_bytes());
    bytes
}

#[tokio::test]
async fn what_can_be_neither_taken_nor_refused_is_asked_for_again() {
    // More than the outbox has places for, from a broker that knows no receive maximum and is slow to acknowledge.
    const FLOOD: u16 = 1300;
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let board = Board::open(listener.local_addr().unwrap().port());
    let mut pending: BTreeSet<u16> = (1..=FLOOD).collect();
    let (mut refused, mut connections) = (BTreeSet::new(), 0);
    while refused.len() < usize::from(FLOOD) - 48 {
        let mut stream = welcome(&listener).await;
        connections += 1;
        for number in &pending {
            let bytes = prompt(*number, &number.to_string(), connections > 1);
            stream.write_all(&bytes).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        while let Some((kind, body)) = packet(&mut stream).await {
            assert_ne!(kind, 0xc0, "only a ping comes: the rest is not asked for again");
            if kind == 0x40 {
                pending.remove(&u16::from_be_bytes([body[0], body[1]]));
                continue;
            }
            let topic = usize::from(body[0]) << 8 | usize::from(body[1]);
            if kind == 0x32 {
                let text = String::from_utf8_lossy(&body[2..2 + topic]).into_owned();
                refused.extend(text.strip_prefix("promptd/n/answer/").map(str::to_owned));
            }
            if kind & 0xf6 == 0x32 {
                let ack = [0x40, 2, body[2 + topic], body[3 + topic]];
                if stream.write_all(&ack).await.is_err() {
                    break;
                }
            }
            if refused.len() == usize::from(FLOOD) - 48 {
                break;
            }
        }
    }
    assert!((2..=4).contains(&connections), "{connections}");
    drop(board);
}

#[tokio::test]
async fn answers_that_were_never_acknowledged_are_published_again() {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let mut board = Board::open(listener.local_addr().unwrap().port());
    let mut stream = welcome(&listener).await;
    for (number, id) in [(7, "a"), (8, "b")] {
        stream.write_all(&prompt(number, id, false)).await.unwrap();
        board.answer(&["x"]).await;
    }
    published(&mut stream, "promptd/n/answer/a").await;
    let (second, _) = published(&mut stream, "promptd/n/answer/b").await;
    // Out of order, and only one of them.
    stream.write_all(&[0x40, 2, second[0], second[1]]).await.unwrap();
    while packet(&mut stream).await.unwrap() != (0x40, vec![0, 8]) {}
    drop(stream);
    let mut stream = welcome(&listener).await;
    let (first, rest) = published(&mut stream, "promptd/n/answer/a").await;
    assert!(String::from_utf8_lossy(&rest).contains(r#""id":"a""#));
    stream.write_all(&[0x40, 2, first[0], first[1]]).await.unwrap();
    // Only that one, and the prompt is not acknowledged: its number means nothing on this connection.
    let more = async {
        loop {
            let (kind, body) = packet(&mut stream).await.unwrap();
            assert_ne!(kind, 0x40);
            assert!(!String::from_utf8_lossy(&body).contains("/answer/"));
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(1), more).await.is_err());
    board.stop.send(true).unwrap();
}

#[tokio::test]
async fn a_message_that_cannot_be_read_is_got_rid_of() {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let _board = Board::open(listener.local_addr().unwrap().port());
    let mut clean = Vec::new();
    let began = Instant::now();
    while !clean.contains(&true) {
        let (mut stream, _) = listener.accept().await.unwrap();
        let (kind, connect) = packet(&mut stream).await.unwrap();
        assert_eq!((kind, &connect[..7]), (0x10, b"\x00\x04MQTT\x05".as_slice()));
        clean.push(connect[7] & 0x02 != 0);
        // CONNACK with a session; PUBLISH to `a` with a user property that is no UTF-8.
        let bad = b"\x20\x03\x01\x00\x00\x30\x0b\x00\x01a\x07\x26\x00\x01\xff\x00\x01b";
        stream.write_all(bad).await.unwrap();
        while packet(&mut stream).await.is_some() {}
    }
    assert_eq!(clean, [false, false, false, true], "after three in a row the session is given up");
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_broker_that_wants_no_pings_is_not_flooded_with_them() {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let _board = Board::open(listener.local_addr().unwrap().port());
    let (mut stream, _) = listener.accept().await.unwrap();
    packet(&mut stream).await.unwrap();
    // CONNACK with Server Keep Alive 0.
    stream.write_all(b"\x20\x06\x00\x00\x03\x13\x00\x00").await.unwrap();
    let mut pings = 0;
    let listen = async {
        while let Some((kind, _)) = packet(&mut stream).await {
            if kind == 0xc0 {
                pings += 1;
                stream.write_all(b"\xd0\x00").await.unwrap();
            }
        }
    };
    assert!(
        tokio::time::timeout(Duration::from_secs(2), listen).await.is_err(),
        "the connection holds"
    );
    assert!(pings <= 1, "{pings} pings");
}

#[tokio::test]
async fn an_answer_that_is_larger_than_the_broker_takes() {
    let Some(broker) = Broker::start("max_packet_size 3000") else { return };
    let mut board = Board::open(broker.port);
    online(broker.port).await;
    let mut me = Client::connect(broker.port, "me", &["promptd/n/answer/#"], false).await;
    let long = "x".repeat(4000);
    for (payload, parts) in [
        (r#"{"id":"a","prompt":"hi"}"#, false),
        (r#"{"id":"a","prompt":"hi","max_bytes":1000}"#, true),
    ] {
        me.ask("promptd/n/ask", payload).await;
        board.answer(&[&long]).await;
        let object = json(&me.next().await);
        assert_eq!(object["id"], json!("a"));
        if parts {
            assert_eq!(object["part"], json!(1));
        } else {
            assert_eq!(
                (&object["code"], &object["limit"]),
                (&json!("payload_too_large"), &json!(3000))
            );
        }
    }
}

#[tokio::test]
async fn a_wrong_password_is_retried_and_a_right_one_lets_in() {
    let Some(mut broker) = Broker::prepare("allow_anonymous false\npassword_file PASSWORDS") else {
        return;
    };
    let Some(passwd) = program("mosquitto_passwd") else {
        return println!("SKIPPED: mosquitto_passwd is not installed");
    };
    let file = broker.dir.path().join("passwords");
    let made =
        Command::new(passwd).arg("-b").arg("-c").arg(&file).args(["me", "right"]).status().unwrap();
    assert!(made.success());
    let settings = broker.dir.path().join("m.conf");
    let text =
        std::fs::read_to_string(&settings).unwrap().replace("PASSWORDS", file.to_str().unwrap());
    std::fs::write(&settings, text).unwrap();
    broker.run();
    let url = |password: &str| {
        BrokerUrl::parse(&format!("mqtt://me:{password}@127.0.0.1:{}", broker.port)).unwrap()
    };
    let with = |password: &str| {
        Board::with(Config { broker: url(password), ..config(broker.port) }, Limits::default())
    };
    let mut options = MqttOptions::new("watcher", "127.0.0.1", broker.port);
    options.set_credentials("me", "right");
    let mut me = Client::with(options, &["promptd/n/availability"], false).await;
    let wrong = with("wrong");
    assert!(me.silent(Duration::from_secs(1)).await);
    assert!(!wrong.door.is_finished(), "it may be put right at the broker");
    wrong.leave().await;
    let right = with("right");
    me.until("promptd/n/availability", "online").await;
    right.leave().await;
    me.until("promptd/n/availability", "offline").await;
}

#[tokio::test]
async fn leaving_without_a_broker_takes_no_time() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let board = Board::open(port);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let began = Instant::now();
    board.leave().await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[tokio::test]
async fn more_prompts_than_places_are_refused_and_not_lost() {
    let Some(broker) = Broker::start("") else { return };
    let mut board = Board::open(broker.port);
    online(broker.port).await;
    let mut me = Client::connect(broker.port, "me", &["promptd/n/answer/#"], false).await;
    for n in 0..100 {
        me.ask("promptd/n/ask", json!({"id": n.to_string(), "prompt": "hi"}).to_string()).await;
    }
    let mut running = Vec::new();
    for _ in 0..48 {
        running.push(board.accepted().await);
    }
    for _ in 48..100 {
        let object = json(&me.next().await);
        assert_eq!((&object["code"], &object["retry_after_ms"]), (&json!("busy"), &json!(2000)));
    }
    // With all places taken a cancel still comes through.
    me.ask("promptd/n/cancel", r#"{"id":"0"}"#).await;
    assert_eq!(json(&me.next().await)["code"], json!("cancelled"));
    for events in running.iter().skip(1) {
        answer(events, &["x"]);
    }
    for _ in 1..48 {
        assert_eq!(json(&me.next().await)["text"], json!("x"));
    }
}

#[tokio::test]
async fn of_a_flood_every_prompt_is_answered_or_refused() {
    // More than the outbox has places for, over a broker that keeps them all.
    const FLOOD: usize = 3000;
    let Some(broker) = Broker::start("max_queued_messages 0") else { return };
    let mut board = Board::open(broker.port);
    online(broker.port).await;
    let mut me = Client::connect(broker.port, "me", &["promptd/n/answer/#"], false).await;
    let sender = me.sender.clone();
    let flood = tokio::spawn(async move {
        for n in 0..FLOOD {
            let payload = json!({"id": n.to_string(), "prompt": "hi"}).to_string();
            sender.publish("promptd/n/ask", QoS::AtLeastOnce, false, payload).await.unwrap();
        }
    });
    let mut running = Vec::new();
    for _ in 0..48 {
        running.push(board.accepted().await);
    }
    let mut refused = BTreeSet::new();
    while refused.len() < FLOOD - 48 {
        let object = json(&me.next().await);
        assert_eq!(object["code"], json!("busy"));
        refused.insert(object["id"].as_str().unwrap().to_owned());
    }
    flood.await.unwrap();
    for events in &running {
        answer(events, &["x"]);
        let object = json(&me.next().await);
        assert_eq!(object["text"], json!("x"));
        assert!(!refused.contains(object["id"].as_str().unwrap()));
    }
    assert!(board.idle(A_WHILE).await);
}
