//! The MQTT door when the broker, the network or the door itself fails.

use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

use promptd::mqtt::{BrokerUrl, Config};
use promptd::wire::Limits;
use serde_json::json;

use crate::support::broker::{Board, Broker, Client, answer, config, json, program, topic};

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
    // An equal prompt without a name is a prompt of its own, and each is redelivered.
    me.ask("promptd/n/ask", "twin").await;
    let twins = [board.accepted().await, {
        me.ask("promptd/n/ask", "twin").await;
        board.accepted().await
    }];
    tokio::time::sleep(Duration::from_millis(500)).await;
    broker.kill();
    answer(&running, &["while it was away"]).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    broker.run();
    let began = Instant::now();
    let message = me.next().await;
    assert!(began.elapsed() < BACK, "{:?}", began.elapsed());
    assert_eq!(
        (topic(&message), &json(&message)["text"]),
        ("promptd/n/answer/a", &json!("while it was away"))
    );
    for twin in &twins {
        answer(twin, &["t"]).await;
        assert_eq!(json(&me.next().await)["text"], json!("t"));
    }
    // The broker delivered the unacknowledged prompts again: none was generated twice, none answered twice.
    assert!(board.idle(A_WHILE).await);
    assert!(me.silent(A_WHILE).await);
    board.leave().await;
    // And each was acknowledged: the next start gets nothing.
    let mut board = Board::open(broker.port);
    assert!(board.idle(Duration::from_secs(1)).await);
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
    // The broker's place is taken by a relay, whose connections show when the door gives up.
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (tell, mut accepted) = tokio::sync::mpsc::channel(100);
    let target = broker.port;
    let relay = tokio::spawn(async move {
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            tell.send(Instant::now()).await.unwrap();
            let mut far = tokio::net::TcpStream::connect(("127.0.0.1", target)).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut near, &mut far).await });
        }
    });
    let mut board = Board::open(port);
    online(broker.port).await;
    accepted.recv().await.unwrap();
    broker.freeze();
    let frozen = Instant::now();
    let again =
        tokio::time::timeout(Duration::from_secs(12), accepted.recv()).await.unwrap().unwrap();
    // 1.5 times the keep-alive of 5 s after the last sign of life, and the first wait of at most 0.5 s.
    let noticed = again - frozen;
    assert!(noticed <= Duration::from_millis(8500), "{noticed:?}");
    broker.thaw();
    online(broker.port).await;
    let me = Client::connect(broker.port, "me", &[], false).await;
    me.ask("promptd/n/ask", "hi").await;
    tokio::time::timeout(Duration::from_secs(15), board.answer(&["x"])).await.unwrap();
    relay.abort();
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
async fn a_wrong_password_is_retried_and_a_right_one_lets_in() {
    let Some(mut broker) = Broker::prepare("allow_anonymous false\npassword_file PASSWORDS") else {
        return;
    };
    let Some(passwd) = program("mosquitto_passwd") else {
        return println!("SKIPPED: mosquitto_passwd is not installed");
    };
    let file = broker.dir().join("passwords");
    let made =
        Command::new(passwd).arg("-b").arg("-c").arg(&file).args(["me", "right"]).status().unwrap();
    assert!(made.success());
    let settings = broker.dir().join("m.conf");
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
    let wrong = with("wrong");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!wrong.door.is_finished(), "it may be put right at the broker");
    wrong.leave().await;
    let right = with("right");
    // A door that leaves cleanly was in.
    tokio::time::sleep(Duration::from_secs(1)).await;
    right.leave().await;
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
        answer(events, &["x"]).await;
    }
    for _ in 1..48 {
        assert_eq!(json(&me.next().await)["text"], json!("x"));
    }
}
