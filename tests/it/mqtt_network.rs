//! The MQTT door over a network that is slow and loses packets, beside a broker that hangs for a minute, in a flood of prompts, and with
//! messages whose properties mean harm.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::support::broker::{Board, Broker, Client, answer, json as object, topic};
use crate::support::raw_mqtt::{self, text};
use crate::support::service::{Plan, Service};

/// A network to this port with 300 ms one way, which loses each fifth packet. TCP hides a loss: what was lost comes after another wait
/// for its acknowledgement, and everything behind it waits for it. Tells of each connection.
async fn bad_network(target: u16) -> (u16, mpsc::Receiver<Instant>) {
    const LATENCY: Duration = Duration::from_millis(300);
    const AGAIN: Duration = Duration::from_millis(700);
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (tell, accepted) = mpsc::channel(100);
    tokio::spawn(async move {
        let mut seed = 7_u64;
        loop {
            let (near, _) = listener.accept().await.unwrap();
            tell.send(Instant::now()).await.unwrap();
            let far = TcpStream::connect(("127.0.0.1", target)).await.unwrap();
            let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
            for (mut from, mut to) in [(near_in, far_out), (far_in, near_out)] {
                seed += 1;
                let mut chance = seed;
                let (send, mut under_way) = mpsc::channel::<(Instant, Vec<u8>)>(1000);
                tokio::spawn(async move {
                    let mut bytes = vec![0; 1400];
                    while let Ok(read @ 1..) = from.read(&mut bytes).await {
                        // Numerical Recipes' generator: one in five, and one in five of those again.
                        let mut due = Instant::now() + LATENCY;
                        loop {
                            chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                            if !(chance >> 33).is_multiple_of(5) {
                                break;
                            }
                            due += AGAIN;
                        }
                        if send.send((due, bytes[..read].to_vec())).await.is_err() {
                            return;
                        }
                    }
                });
                tokio::spawn(async move {
                    while let Some((due, bytes)) = under_way.recv().await {
                        tokio::time::sleep_until(due.into()).await;
                        if to.write_all(&bytes).await.is_err() {
                            return;
                        }
                    }
                });
            }
        }
    });
    (port, accepted)
}

#[tokio::test]
async fn a_slow_network_that_loses_packets_costs_time_and_nothing_else() {
    const PROMPTS: usize = 20;
    let Some(broker) = Broker::start("") else { return };
    let (port, mut connections) = bad_network(broker.port).await;
    let mut board = Board::open(port);
    connections.recv().await.unwrap();
    let topics = ["promptd/n/answer/#", "promptd/n/availability"];
    let mut me = Client::connect(broker.port, "me", &topics, false).await;
    me.until("promptd/n/availability", "online").await;
    let mut open = BTreeSet::new();
    for number in 0..PROMPTS {
        let id = number.to_string();
        me.ask("promptd/n/ask", json!({"id": id, "prompt": "hi"}).to_string()).await;
        open.insert(id);
    }
    for _ in 0..PROMPTS {
        board.answer(&["x"]).await;
    }
    while !open.is_empty() {
        let answer = object(&me.next().await);
        assert_eq!(answer["text"], json!("x"));
        assert!(open.remove(answer["id"].as_str().unwrap()), "each once: {answer}");
    }
    assert!(board.idle(Duration::from_millis(300)).await, "none is generated twice");
    // Waiting on, pings pass as well: there was one connection all the time.
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(connections.try_recv().is_err(), "no second connection");
}

/// `make test-frozen` lets it hang for a minute, as reliability asks; here for as long as it takes to notice it.
#[tokio::test]
async fn a_broker_that_hangs_for_long_is_back_within_seconds() {
    let seconds =
        std::env::var("PROMPTD_TEST_FROZEN_SECONDS").ok().and_then(|text| text.parse().ok());
    let frozen = Duration::from_secs(seconds.unwrap_or(9));
    let Some(broker) = Broker::start("") else { return };
    let mut board = Board::open(broker.port);
    let mut me = Client::connect(broker.port, "me", &["promptd/n/answer/#"], true).await;
    let mut watcher = Client::connect(broker.port, "w", &["promptd/n/availability"], false).await;
    watcher.until("promptd/n/availability", "online").await;
    me.ask("promptd/n/ask", r#"{"id":"a","prompt":"hi"}"#).await;
    let running = board.accepted().await;
    broker.freeze();
    answer(&running, &["meanwhile"]);
    board.troubled("silent").await;
    tokio::time::sleep(frozen.saturating_sub(Duration::from_secs(8))).await;
    broker.thaw();
    let thawed = Instant::now();
    let up = |told: &promptd::wire::Broker| told.connected.is_some();
    tokio::time::timeout(Duration::from_secs(20), board.broker.wait_for(up))
        .await
        .unwrap()
        .unwrap();
    let back = thawed.elapsed();
    assert!(back < Duration::from_secs(6), "{back:?}");
    println!("frozen for {frozen:?}, back after {back:?}");
    let answer = object(&me.next().await);
    assert_eq!((&answer["id"], &answer["text"]), (&json!("a"), &json!("meanwhile")));
    me.ask("promptd/n/ask", r#"{"id":"b","prompt":"hi"}"#).await;
    board.answer(&["x"]).await;
    while object(&me.next().await)["id"] != json!("b") {}
}

/// A PUBLISH of MQTT 5 with these properties.
fn hostile(number: u16, properties: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut body = text("promptd/n/ask");
    body.extend(number.to_be_bytes());
    // Properties have their length in front, written as a packet's.
    body.extend(&raw_mqtt::frame(0, properties)[1..]);
    body.extend(payload);
    body
}

#[tokio::test]
async fn properties_that_mean_harm() {
    let Some(broker) = Broker::start("") else { return };
    let mut board = Board::open(broker.port);
    let topics = ["me/#", "promptd/n/answer/#", "promptd/n/availability"];
    let mut me = Client::connect(broker.port, "me", &topics, false).await;
    me.until("promptd/n/availability", "online").await;
    let user = |name: &str, value: &str| [vec![0x26], text(name), text(value)].concat();
    let back = |topic: &str| [vec![0x08], text(topic)].concat();
    let data = |data: &str| [vec![0x09], text(data)].concat();
    let kind = |kind: &str| [vec![0x03], text(kind)].concat();
    let long = "x".repeat(60_000);
    // Whatever else they say, they are prompts; the answer goes where it may, with the correlation data as it was.
    let prompts: Vec<(Vec<u8>, &str, Option<String>)> = vec![
        (
            [back("me/1"), (0..500).flat_map(|_| user("client", "x")).collect()].concat(),
            "me/1",
            None,
        ),
        ([back("me/2"), user(&long, "y")].concat(), "me/2", None),
        ([back("me/3"), user("client", &long)].concat(), "me/3", None),
        ([back("me/4"), user("", "")].concat(), "me/4", None),
        ([back("me/5"), kind("\u{1f600}/;;;=\"")].concat(), "me/5", None),
        ([back("me/6"), data(&long)].concat(), "me/6", Some(long.clone())),
        ([back("me/7"), user("hop", "nobody/1"), user("took", "n/1")].concat(), "me/7", None),
        ([back("me/8"), data("same")].concat(), "me/8", Some("same".to_owned())),
        ([back("me/9"), data("same")].concat(), "me/9", Some("same".to_owned())),
    ];
    let (mut sender, _receiver) = raw_mqtt::connect(broker.port, "harm", true);
    for (number, (properties, place, correlation)) in (1_u16..).zip(&prompts) {
        let text = format!("prompt {number}");
        sender.send(0x32, &hostile(number, properties, text.as_bytes()));
        board.answer(&["x"]).await;
        let answer = me.next().await;
        assert_eq!(topic(&answer), *place, "{number}");
        let properties = answer.properties.clone().unwrap_or_default();
        let echoed =
            properties.correlation_data.map(|data| String::from_utf8(data.to_vec()).unwrap());
        assert_eq!(&echoed, correlation, "{number}");
    }
    // Where it must not go, the asker is told on the topic that nobody chooses; nothing is generated.
    for (number, place) in
        (100_u16..).zip(["promptd/n/ask", "promptd/n/cancel", "promptd/n/status", "$SYS/x"])
    {
        sender.send(0x32, &hostile(number, &back(place), format!("prompt {number}").as_bytes()));
        let answer = me.next().await;
        assert_eq!(object(&answer)["code"], json!("bad_request"), "{place}");
        assert!(topic(&answer).starts_with("promptd/n/answer"), "{place}");
    }
    assert!(board.idle(Duration::from_millis(200)).await);
    // The door is as it was.
    me.ask("promptd/n/ask", "hi").await;
    board.answer(&["x"]).await;
}

#[test]
fn of_ten_thousand_prompts_at_once_each_has_an_end_and_memory_is_bounded() {
    const PROMPTS: usize = 10_000;
    // What the outbox and the places of prompts may take, and what the allocator keeps of it.
    const MORE: u64 = 32 << 20;
    let Some(broker) = Broker::start("max_queued_messages 0\nmax_inflight_messages 0") else {
        return;
    };
    let service = Service::start(&Plan::demo().at_broker(broker.port)).ready();
    let (mut listener, mut answers) = raw_mqtt::connect(broker.port, "listener", false);
    listener.subscribe("promptd/n/availability");
    assert_eq!(answers.message().unwrap().1, b"online");
    listener.subscribe("promptd/n/answer/#");
    while answers.packet().unwrap().0 != 0x90 {}
    let before = resident(&service, "VmRSS:");
    let (mut sender, mut acknowledgements) = raw_mqtt::connect(broker.port, "flood", false);
    let swallow = std::thread::Builder::new()
        .spawn(move || (0..PROMPTS).all(|_| acknowledgements.packet().is_some()))
        .unwrap();
    let began = Instant::now();
    for number in 0..PROMPTS {
        let payload =
            json!({"id": format!("f{number}"), "prompt": "Who are you?", "max_tokens": 4});
        sender.publish("promptd/n/ask", u16::try_from(number + 1).unwrap(), &payload.to_string());
    }
    let sent = began.elapsed();
    let (mut open, mut busy) =
        ((0..PROMPTS).map(|number| format!("f{number}")).collect::<BTreeSet<_>>(), 0);
    while !open.is_empty() {
        let (_, payload) = answers.message().expect("each of them has an end");
        let answer: Value = serde_json::from_slice(&payload).unwrap();
        if answer["status"] == "error" {
            assert_eq!(answer["code"], "busy", "{answer}");
            busy += 1;
        }
        assert!(open.remove(answer["id"].as_str().unwrap()), "twice: {answer}");
    }
    assert!(swallow.join().unwrap());
    let most = resident(&service, "VmHWM:");
    println!(
        "{PROMPTS} prompts in {sent:?}: {busy} busy, {} answered, all within {:?}; the service's memory {} KiB before, at most {} KiB",
        PROMPTS - busy,
        began.elapsed(),
        before >> 10,
        most >> 10
    );
    assert!(busy < PROMPTS, "some are answered");
    assert!(most < before + MORE, "{most} bytes after {before}");
    let (status, log) = service.stop();
    assert!(status.success(), "{log}");
}

/// A line of the service's `/proc/PID/status`, in bytes.
fn resident(service: &Service, line: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", service.pid())).unwrap();
    let value = text.lines().find_map(|text| text.strip_prefix(line)).unwrap();
    value.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
}
