//! The MQTT door and brokers of all kinds: old ones, poor ones, several, over TLS, behind a bad network.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use promptd::mqtt::{BrokerUrl, Config, TlsFiles};
use promptd::wire::Limits;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::support::broker::{Board, Broker, Client, config, json, topic};
use crate::support::door::soon;
use crate::support::scripted_broker::{packet, prompt, published, welcome};

async fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// The next connection and its CONNECT.
async fn greeted(listener: &TcpListener) -> (TcpStream, Vec<u8>) {
    let (mut stream, _) = soon(listener.accept()).await.unwrap();
    let (kind, body) = soon(packet(&mut stream)).await.unwrap();
    assert_eq!(kind, 0x10);
    (stream, body)
}

/// What a session in MQTT 3.1.1 looks like from the broker.
async fn serve_3_1_1(mut stream: TcpStream, connect: &[u8], board: &mut Board) {
    assert_eq!(connect[..7], *b"\x00\x04MQTT\x04", "the greeting of 3.1.1");
    stream.write_all(b"\x20\x02\x00\x00").await.unwrap();
    let (kind, subscribe) = soon(packet(&mut stream)).await.unwrap();
    assert_eq!(kind, 0x82);
    // Number, then topic and QoS; no properties, no options.
    assert_eq!(subscribe[2..], *b"\x00\x0fpromptd/n/ask/#\x01\x00\x10promptd/n/cancel\x01");
    stream.write_all(&[0x90, 4, subscribe[0], subscribe[1], 1, 1]).await.unwrap();
    let payload = br#"{"id":"a","prompt":"hi"}"#;
    let mut ask = vec![0x32, u8::try_from(2 + 13 + 2 + payload.len()).unwrap(), 0, 13];
    ask.extend(b"promptd/n/ask\x00\x07");
    ask.extend(payload);
    stream.write_all(&ask).await.unwrap();
    board.answer(&["x"]).await;
    let (number, text) = soon(published(&mut stream, "promptd/n/answer/a")).await;
    assert_eq!(text[0], b'{', "no properties stand in front of the payload");
    stream.write_all(&[0x40, 2, number[0], number[1]]).await.unwrap();
    while soon(packet(&mut stream)).await.unwrap() != (0x40, vec![0, 7]) {}
    assert_eq!(board.broker.borrow().connected, Some("3.1.1"));
}

#[tokio::test]
async fn a_broker_that_refuses_mqtt_5_is_spoken_to_in_3_1_1() {
    for refusal in [&b"\x20\x02\x00\x01"[..], b"\x20\x03\x00\x84\x00"] {
        let (listener, port) = listen().await;
        let mut board = Board::open(port);
        let (mut stream, connect) = greeted(&listener).await;
        assert_eq!(connect[..7], *b"\x00\x04MQTT\x05");
        stream.write_all(refusal).await.unwrap();
        drop(stream);
        let (stream, connect) = greeted(&listener).await;
        serve_3_1_1(stream, &connect, &mut board).await;
        // The next connection begins with what worked.
        let (_, connect) = greeted(&listener).await;
        assert_eq!(connect[6], 4);
    }
}

#[tokio::test]
async fn a_broker_that_hangs_up_on_mqtt_5_is_spoken_to_in_3_1_1() {
    let (listener, port) = listen().await;
    let mut board = Board::open(port);
    for _ in 0..2 {
        assert_eq!(greeted(&listener).await.1[6], 5);
    }
    let (stream, connect) = greeted(&listener).await;
    serve_3_1_1(stream, &connect, &mut board).await;
}

#[tokio::test]
async fn a_broker_with_nothing_to_spare() {
    let (listener, port) = listen().await;
    let mut board = Board::open(port);
    // Will retain, then will QoS refused: asked for without.
    let (mut stream, connect) = greeted(&listener).await;
    assert_eq!(connect[7] & 0x3c, 0x2c);
    stream.write_all(b"\x20\x03\x00\x9a\x00").await.unwrap();
    let (mut stream, connect) = greeted(&listener).await;
    assert_eq!(connect[7] & 0x3c, 0x0c);
    stream.write_all(b"\x20\x03\x00\x9b\x00").await.unwrap();
    let (mut stream, connect) = greeted(&listener).await;
    assert_eq!(connect[7] & 0x3c, 0x04);
    // Receive Maximum 1, Maximum QoS 0, no retained messages, 512 bytes a packet, no shared subscriptions.
    stream
        .write_all(b"\x20\x11\x00\x00\x0e\x21\x00\x01\x24\x00\x25\x00\x27\x00\x00\x02\x00\x2a\x00")
        .await
        .unwrap();
    let (_, subscribe) = soon(packet(&mut stream)).await.unwrap();
    stream.write_all(&[0x90, 5, subscribe[0], subscribe[1], 0, 0, 0]).await.unwrap();
    let long = "x".repeat(600);
    let mut ask = prompt(7, "a", false);
    ask.splice(17..19, []);
    (ask[0], ask[1]) = (0x30, ask[1] - 2);
    stream.write_all(&ask).await.unwrap();
    board.answer(&[&long]).await;
    let (mut states, answer) = (0, "promptd/n/answer/a");
    loop {
        let (kind, body) = soon(packet(&mut stream)).await.unwrap();
        assert_eq!(kind & 0x0f, 0, "QoS 0 and not retained");
        assert!(body.len() <= 512);
        let text = String::from_utf8_lossy(&body).into_owned();
        if text.contains(answer) {
            // An answer that does not fit says so; the connection goes on.
            assert!(text.contains("payload_too_large"), "{text}");
            break;
        }
        states += usize::from(text.contains("availability"));
    }
    assert_eq!(states, 1);
}

#[tokio::test]
async fn a_broker_that_takes_no_answer_gets_it_once() {
    let (listener, port) = listen().await;
    let mut board = Board::open(port);
    let mut stream = welcome(&listener).await;
    stream.write_all(&prompt(7, "a", false)).await.unwrap();
    board.answer(&["x"]).await;
    let (number, _) = soon(published(&mut stream, "promptd/n/answer/a")).await;
    // Acknowledgements of nothing, out of order and twice, disturb nobody.
    stream.write_all(&[0x40, 2, 0x77, 0x77, 0x40, 2, 0x77, 0x77]).await.unwrap();
    // Quota exceeded.
    for _ in 0..2 {
        stream.write_all(&[0x40, 3, number[0], number[1], 0x97]).await.unwrap();
    }
    let more = async {
        loop {
            let (_, body) = packet(&mut stream).await.unwrap();
            assert!(!String::from_utf8_lossy(&body).contains("/answer/"));
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(1), more).await.is_err());
}

#[tokio::test]
async fn a_broker_that_never_acknowledges_is_connected_to_anew() {
    let (listener, port) = listen().await;
    let settings = Config { keep_alive: Duration::from_secs(1), ..config(port) };
    let mut board = Board::with(settings, Limits::default());
    let mut stream = welcome(&listener).await;
    stream.write_all(&prompt(7, "a", false)).await.unwrap();
    board.answer(&["x"]).await;
    let pongs = async {
        while let Some((kind, _)) = packet(&mut stream).await {
            if kind == 0xc0 && stream.write_all(b"\xd0\x00").await.is_err() {
                return;
            }
        }
    };
    soon(pongs).await;
    board.troubled("does not acknowledge").await;
    let mut stream = welcome(&listener).await;
    soon(published(&mut stream, "promptd/n/answer/a")).await;
}

#[tokio::test]
async fn of_several_addresses_the_one_that_answers_is_taken() {
    let Some(broker) = Broker::start("") else { return };
    let (nobody, dead) = listen().await;
    drop(nobody);
    let url = |port| BrokerUrl::parse(&format!("mqtt://127.0.0.1:{port}")).unwrap();
    let brokers = vec![url(dead), url(dead), url(broker.port)];
    let mut board = Board::with(Config { brokers, ..config(dead) }, Limits::default());
    let mut me = Client::connect(broker.port, "me", &["promptd/n/#"], false).await;
    me.until("promptd/n/availability", "online").await;
    me.ask("promptd/n/ask", "hi").await;
    board.answer(&["x"]).await;
    assert_eq!(board.broker.borrow().url, format!("mqtt://127.0.0.1:{}", broker.port));
}

/// Certificates for `localhost`, made for this test: `ca.pem`, `other.pem`, `server.pem`, `client.pem` and their keys.
fn certificates(dir: &Path) -> bool {
    let run = |line: &str| {
        let mut command = Command::new("openssl");
        command.args(line.split(' ')).current_dir(dir).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    std::fs::write(dir.join("san"), "subjectAltName=DNS:localhost\n").unwrap();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    let sign = "-CA ca.pem -CAkey ca.key -CAcreateserial -days 2";
    let made = run(&format!("req -x509 {key} -keyout ca.key -out ca.pem -days 2 -subj /CN=ca"))
        && run(&format!(
            "req -x509 {key} -keyout other.key -out other.pem -days 2 -subj /CN=other"
        ))
        && ["server", "client"].iter().all(|name| {
            run(&format!("req {key} -keyout {name}.key -out {name}.csr -subj /CN={name}"))
                && run(&format!("x509 -req -in {name}.csr {sign} -extfile san -out {name}.pem"))
        });
    if !made {
        println!("SKIPPED: openssl is not installed (Debian: apt-get install openssl)");
    }
    made
}

#[tokio::test]
async fn over_tls_with_certificates_on_both_sides() {
    let dir = tempfile::tempdir().unwrap();
    let (probe, secure) = listen().await;
    drop(probe);
    let at = dir.path();
    if !certificates(at) {
        return;
    }
    let place = at.display();
    let settings = format!(
        "listener {secure} 127.0.0.1\ncafile {place}/ca.pem\ncertfile {place}/server.pem\nkeyfile {place}/server.key\nrequire_certificate true"
    );
    let Some(broker) = Broker::start(&settings) else { return };
    let files = |ca: &str, own: Option<&str>| TlsFiles {
        ca: Some(at.join(ca)),
        certificate: own.map(|own| at.join(format!("{own}.pem"))),
        key: own.map(|own| at.join(format!("{own}.key"))),
        alpn: vec!["mqtt".to_owned()],
        ..TlsFiles::default()
    };
    let open = |host: &str, tls| {
        let url = BrokerUrl::parse(&format!("mqtts://{host}:{secure}")).unwrap();
        Board::with(Config { brokers: vec![url], tls, ..config(secure) }, Limits::default())
    };
    open("localhost", files("other.pem", Some("client"))).troubled("mqtt.tls.ca_file").await;
    open("127.0.0.1", files("ca.pem", Some("client"))).troubled("another name").await;
    open("localhost", files("ca.pem", None)).troubled("certificate_file").await;
    open("localhost", files("ca.pem", Some("other"))).troubled("certificate").await;
    let url = BrokerUrl::parse(&format!("mqtts://localhost:{}", broker.port)).unwrap();
    let tls = files("ca.pem", Some("client"));
    let plain = Config { brokers: vec![url], tls, ..config(secure) };
    Board::with(plain, Limits::default()).troubled("").await;
    let mut board = open("localhost", files("ca.pem", Some("client")));
    let mut me = Client::connect(broker.port, "me", &["promptd/n/#"], false).await;
    me.until("promptd/n/availability", "online").await;
    // More than a TLS record and more than a socket's buffer, in both directions.
    let long = "x".repeat(300_000);
    me.ask("promptd/n/ask", json!({"id": "a", "prompt": long}).to_string()).await;
    board.answer(&[&long]).await;
    loop {
        let message = me.live().await;
        if topic(&message) == "promptd/n/answer/a" {
            assert_eq!(json(&message)["text"], json!(long));
            break;
        }
    }
    board.leave().await;
    me.until("promptd/n/availability", "offline").await;
}

/// Lets `bytes` through in both directions together, `piece` at a time, and then resets the first connection. Later ones
/// pass whole.
async fn bad_network(target: u16, bytes: usize, piece: usize) -> u16 {
    let (listener, port) = listen().await;
    tokio::spawn(async move {
        let mut left = Some(bytes);
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut far = TcpStream::connect(("127.0.0.1", target)).await.unwrap();
            let Some(mut left) = left.take() else {
                tokio::spawn(
                    async move { tokio::io::copy_bidirectional(&mut near, &mut far).await },
                );
                continue;
            };
            let (mut up, mut down) = (vec![0; piece], vec![0; piece]);
            while left > 0 {
                let (from, to) = (piece.min(left), piece.min(left));
                let passed = tokio::select! {
                    read = near.read(&mut up[..from]) => {
                        let read = read.unwrap_or(0);
                        far.write_all(&up[..read]).await.map(|()| read)
                    }
                    read = far.read(&mut down[..to]) => {
                        let read = read.unwrap_or(0);
                        near.write_all(&down[..read]).await.map(|()| read)
                    }
                };
                match passed {
                    Ok(read @ 1..) => left -= read,
                    _ => break,
                }
            }
            // A reset, not a farewell.
            let _ = near.set_zero_linger();
        }
    });
    port
}

#[tokio::test]
async fn a_reset_anywhere_in_a_session_loses_nothing() {
    // One board for each place: in the greeting, in the subscription, in the states, in the answer.
    const STEP: usize = 23;
    // `make test-resets` goes on until every byte was the last one once.
    let all = std::env::var_os("PROMPTD_TEST_EVERY_BYTE").is_some();
    for first in 1..=if all { STEP } else { 1 } {
        resets(&std::array::from_fn(|n| first + n * STEP)).await;
    }
}

/// Boards whose first connection is reset after so many bytes.
async fn resets(places: &[usize; 60]) {
    let Some(broker) = Broker::start("") else { return };
    let mut me = Client::connect(broker.port, "me", &["promptd/+/answer/#"], false).await;
    let mut boards = Vec::new();
    for (n, bytes) in places.iter().enumerate() {
        let port = bad_network(broker.port, *bytes, 7).await;
        let settings = Config { node: format!("n{n}"), ..config(port) };
        boards.push(Board::with(settings, Limits::default()));
    }
    let mut waiting = std::collections::BTreeSet::new();
    for (n, board) in boards.iter_mut().enumerate() {
        let name = format!("watcher{n}");
        let online = format!("promptd/n{n}/availability");
        let mut watcher = Client::connect(broker.port, &name, &[&online], false).await;
        watcher.until(&online, "online").await;
        me.ask(&format!("promptd/n{n}/ask"), json!({"id": "a", "prompt": "hi"}).to_string()).await;
        board.answer(&["x"]).await;
        waiting.insert(format!("promptd/n{n}/answer/a"));
    }
    while !waiting.is_empty() {
        let message = me.next().await;
        assert_eq!(json(&message)["text"], json!("x"));
        // What was on its way when the connection broke may come a second time.
        waiting.remove(topic(&message));
    }
    for board in boards {
        board.leave().await;
    }
}

#[tokio::test]
async fn bytes_that_come_one_by_one() {
    let Some(broker) = Broker::start("") else { return };
    let port = bad_network(broker.port, usize::MAX, 1).await;
    let mut board = Board::open(port);
    let mut me = Client::connect(broker.port, "me", &["promptd/n/#"], false).await;
    me.until("promptd/n/availability", "online").await;
    me.ask("promptd/n/ask", r#"{"id":"a","prompt":"hi"}"#).await;
    board.answer(&["x"]).await;
    while topic(&me.live().await) != "promptd/n/answer/a" {}
}
