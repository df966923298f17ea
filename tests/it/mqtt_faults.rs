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
use tokio::io::AsyncWriteExt as _;

use crate::support::PATIENCE;
use crate::support::broker::{Board, Broker, Client, Relay, answer, config, json, program, topic};
use crate::support::scripted_broker::{packet, prompt, published, welcome};

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

#[tokio::test]
async fn a_broker_that_knows_no_limit_is_refused_on_the_connection_it_has() {
    // More than the outbox has places for and than sockets hold, from a broker that knows no receive maximum, reads nothing
    // for a while, and acknowledges nothing before it has read all.
    const FLOOD: u16 = 20_000;
    // Of those who may wait to be acknowledged, what one asker may hold.
    const TAKEN: usize = 24;
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let settings = config(listener.local_addr().unwrap().port());
    let settings = Config { keep_alive: Duration::from_secs(60), ..settings };
    let board = Board::with(settings, Limits::default());
    let (reader, mut writer) = welcome(&listener).await.into_split();
    let mut reader = tokio::io::BufReader::new(reader);
    let flood = tokio::spawn(async move {
        for number in 1..=FLOOD {
            writer.write_all(&prompt(number, &number.to_string(), false)).await.unwrap();
        }
        writer
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (mut refused, mut acknowledged) = (BTreeSet::<u16>::new(), BTreeSet::<u16>::new());
    let mut open = Vec::new();
    let most = usize::from(FLOOD) - TAKEN;
    let mut flood = Some(flood);
    let mut writer = None;
    while refused.len() < most || acknowledged.len() < most {
        let next = tokio::time::timeout(PATIENCE, packet(&mut reader)).await;
        let (kind, body) = next
            .unwrap_or_else(|_| {
                panic!("{} refused, {} acknowledged", refused.len(), acknowledged.len())
            })
            .expect("the connection stays");
        if kind == 0x40 {
            let number = u16::from_be_bytes([body[0], body[1]]);
            assert!(acknowledged.insert(number), "{number} twice");
            assert!(refused.contains(&number), "{number} is acknowledged behind its refusal");
        } else if kind & 0xf0 == 0x30 {
            let length = usize::from(body[0]) << 8 | usize::from(body[1]);
            let topic = String::from_utf8_lossy(&body[2..2 + length]).into_owned();
            if let Some(number) = topic.strip_prefix("promptd/n/answer/") {
                assert!(String::from_utf8_lossy(&body).contains(r#""code":"busy""#));
                assert!(refused.insert(number.parse().unwrap()), "{number} twice");
            }
            if kind & 0x06 == 0x02 {
                open.push([0x40, 2, body[2 + length], body[3 + length]]);
            }
        }
        // All that need no acknowledgement have come: now those are acknowledged that do.
        if flood.as_ref().is_some_and(tokio::task::JoinHandle::is_finished) {
            writer = Some(flood.take().unwrap().await.unwrap());
        }
        if let Some(writer) = &mut writer {
            for ack in open.drain(..) {
                writer.write_all(&ack).await.unwrap();
            }
        }
    }
    let again = tokio::time::timeout(A_WHILE, listener.accept()).await;
    assert!(again.is_err(), "no other connection is made");
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
async fn a_message_that_cannot_be_read_is_passed_over() {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let mut board = Board::open(listener.local_addr().unwrap().port());
    let mut stream = welcome(&listener).await;
    // PUBLISH to `a` with a user property that is no UTF-8, and a good prompt behind it.
    stream.write_all(b"\x32\x0d\x00\x01a\x00\x07\x07\x26\x00\x01\xff\x00\x01b").await.unwrap();
    stream.write_all(&prompt(8, "a", false)).await.unwrap();
    board.answer(&["x"]).await;
    // Acknowledged, so that the broker does not send it for ever; and the connection holds.
    while packet(&mut stream).await.unwrap() != (0x40, vec![0, 7]) {}
    published(&mut stream, "promptd/n/answer/a").await;
}

#[tokio::test]
async fn a_broker_whose_bytes_are_no_mqtt_is_asked_to_forget_them() {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let _board = Board::open(listener.local_addr().unwrap().port());
    let mut clean = Vec::new();
    let began = Instant::now();
    while !clean.contains(&true) {
        let (mut stream, _) = listener.accept().await.unwrap();
        let (kind, connect) = packet(&mut stream).await.unwrap();
        assert_eq!((kind, &connect[..7]), (0x10, b"\x00\x04MQTT\x05".as_slice()));
        clean.push(connect[7] & 0x02 != 0);
        // CONNACK with a session, and a packet that no client gets.
        stream.write_all(b"\x20\x03\x01\x00\x00\x10\x00").await.unwrap();
        while packet(&mut stream).await.is_some() {}
    }
    assert_eq!(clean, [false, false, false, true], "after three in a row the session is given up");
    assert!(began.elapsed() < Duration::from_secs(20));
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
        Board::with(
            Config { brokers: vec![url(password)], ..config(broker.port) },
            Limits::default(),
        )
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
    // Nothing is kept on disk here, so each of them waits at the broker; one asker gets half of those places.
    const TAKEN: usize = 24;
    let Some(broker) = Broker::start("") else { return };
    let mut board = Board::open(broker.port);
    online(broker.port).await;
    let mut me = Client::connect(broker.port, "me", &["promptd/n/answer/#"], false).await;
    for n in 0..100 {
        me.ask("promptd/n/ask", json!({"id": n.to_string(), "prompt": "hi"}).to_string()).await;
    }
    let mut running = Vec::new();
    for _ in 0..TAKEN {
        running.push(board.accepted().await);
    }
    for _ in TAKEN..100 {
        let object = json(&me.next().await);
        assert_eq!((&object["code"], &object["retry_after_ms"]), (&json!("busy"), &json!(2000)));
    }
    // Another asker has a place beside the flood.
    me.ask("promptd/n/ask", r#"{"id":"other:1","prompt":"hi"}"#).await;
    board.answer(&["o"]).await;
    assert_eq!(json(&me.next().await)["id"], json!("other:1"));
    // With all places taken a cancel still comes through.
    me.ask("promptd/n/cancel", r#"{"id":"0"}"#).await;
    assert_eq!(json(&me.next().await)["code"], json!("cancelled"));
    for events in running.iter().skip(1) {
        answer(events, &["x"]);
    }
    for _ in 1..TAKEN {
        assert_eq!(json(&me.next().await)["text"], json!("x"));
    }
}

#[tokio::test]
async fn of_a_flood_every_prompt_is_answered_or_refused() {
    // More than the outbox has places for, over a broker that keeps them all and sends them without a limit.
    const FLOOD: usize = 3000;
    const TAKEN: usize = 24;
    let unlimited = "max_queued_messages 0\nmax_inflight_messages 0";
    let Some(broker) = Broker::start(unlimited) else { return };
    let mut relay = Relay::to(broker.port).await;
    let mut board = Board::open(relay.port);
    online(broker.port).await;
    relay.accepted.recv().await.unwrap();
    let mut me = Client::connect(broker.port, "me", &["promptd/n/answer/#"], false).await;
    let sender = me.sender.clone();
    let flood = tokio::spawn(async move {
        for n in 0..FLOOD {
            let payload = json!({"id": n.to_string(), "prompt": "hi"}).to_string();
            sender.publish("promptd/n/ask", QoS::AtLeastOnce, false, payload).await.unwrap();
        }
    });
    let mut running = Vec::new();
    for _ in 0..TAKEN {
        running.push(board.accepted().await);
    }
    let mut refused = BTreeSet::new();
    while refused.len() < FLOOD - TAKEN {
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
    assert!(relay.accepted.try_recv().is_err(), "all of it on one connection");
}
