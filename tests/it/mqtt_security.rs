//! Who may what at the broker that ships with promptd, secrets that never show, and logs that peers cannot write into.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use promptd::mqtt::{BrokerUrl, Config};
use promptd::request::Input;
use promptd::wire::Limits;
use rumqttc::v5::MqttOptions;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;

use crate::operator::rewrite;
use crate::support::broker::{Board, Client, config, json, topic};
use crate::support::door::soon;
use crate::support::mosquitto::{Broker, program};
use crate::support::scripted_broker::packet;
use crate::support::service::{Plan, Service, signal};
use crate::support::wait_for;

/// Long enough to see that nothing comes.
const A_WHILE: Duration = Duration::from_millis(500);
/// A secret that is looked for everywhere.
const CANARY: &str = "canary-hunter2-8f14e45f";

fn shipped(name: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/mosquitto").join(name);
    std::fs::read_to_string(file).unwrap()
}

/// A mosquitto with the configuration and the access rules that ship, and these users; the password of each is its name.
fn guarded(users: &[(&str, &str)]) -> Option<(Broker, tempfile::TempDir)> {
    let Some(passwd) = program("mosquitto_passwd") else {
        println!("SKIPPED: mosquitto_passwd is not installed");
        return None;
    };
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| -> PathBuf { folder.path().join(name) };
    for (number, (user, password)) in users.iter().enumerate() {
        let mut command = Command::new(&passwd);
        command.arg("-b").args((number == 0).then_some("-c")).arg(at("passwords"));
        assert!(command.args([user, password]).status().unwrap().success());
    }
    std::fs::write(at("promptd.acl"), shipped("promptd.acl")).unwrap();
    // The listener is the test's own; everything else holds as it ships.
    let settings = shipped("promptd.conf")
        .replace("listener 1883\n", "")
        .replace("allow_anonymous false\n", "")
        .replace("/etc/mosquitto/passwords", at("passwords").to_str().unwrap())
        .replace("/etc/mosquitto/promptd.acl", at("promptd.acl").to_str().unwrap())
        .replace("persistence_location /var/lib/mosquitto/\n", "");
    let broker = Broker::start(&format!("allow_anonymous false\n{settings}"))?;
    Some((broker, folder))
}

/// A client with this login, on a connection of its own.
async fn user(broker: &Broker, name: &str, topics: &[&str]) -> Client {
    static CONNECTIONS: AtomicUsize = AtomicUsize::new(0);
    let id = format!("{name}-{}", CONNECTIONS.fetch_add(1, Ordering::Relaxed));
    let mut options = MqttOptions::new(id, "127.0.0.1", broker.port);
    options.set_credentials(name, name).set_keep_alive(Duration::from_secs(5));
    Client::with(options, topics, false).await
}

fn board_config(broker: &Broker, password: &str) -> Config {
    Config {
        username: Some("promptd".to_owned()),
        password: Some(password.to_owned()),
        reply_prefixes: vec!["answers".to_owned()],
        ..config(broker.port)
    }
}

#[tokio::test]
async fn clients_ask_and_read_only_their_own_answers() {
    let users = ["promptd", "alice", "mallory", "operator"].map(|name| (name, name));
    let Some((broker, _files)) = guarded(&users) else { return };
    let mut board = Board::with(board_config(&broker, "promptd"), Limits::default());
    let mut alice = user(
        &broker,
        "alice",
        &["answers/alice/#", "promptd/n/answer/alice", "promptd/n/availability"],
    )
    .await;
    alice.until("promptd/n/availability", "online").await;
    // She may ask for everything; what she must not read does not come.
    let mut mallory =
        user(&broker, "mallory", &["promptd/n/answer/#", "promptd/n/ask/#", "answers/#"]).await;
    let mut operator = user(&broker, "operator", &["promptd/n/status"]).await;
    // By Response Topic, by `reply_to`, and by the id that is her name.
    alice.ask_back("promptd/n/ask", "hi", "answers/alice/1", b"c").await;
    board.answer(&["one"]).await;
    alice.ask("promptd/n/ask", r#"{"prompt":"hi","reply_to":"answers/alice/2"}"#).await;
    board.answer(&["two"]).await;
    alice.ask("promptd/n/ask", r#"{"prompt":"hi","id":"alice"}"#).await;
    board.answer(&["three"]).await;
    for (place, text) in [
        ("answers/alice/1", "one"),
        ("answers/alice/2", "two"),
        ("promptd/n/answer/alice", "three"),
    ] {
        let message = alice.next().await;
        assert_eq!((topic(&message), &json(&message)["text"]), (place, &json!(text)));
    }
    // Only promptd answers, and only operators stop what others asked. What is refused ends this client's connection, so
    // that it has one for each try, and the one that listens stays.
    alice.ask("promptd/n/ask", r#"{"prompt":"hi again","id":"alice"}"#).await;
    let running = board.accepted().await;
    let mut tries = Vec::new();
    for (place, text) in [
        ("answers/alice/1", r#"{"v":1,"status":"ok","text":"lies"}"#),
        ("promptd/n/answer/alice", r#"{"v":1,"status":"ok","text":"lies"}"#),
        ("promptd/n/availability", "offline"),
        ("promptd/n/cancel", r#"{"all":true}"#),
    ] {
        let attempt = user(&broker, "mallory", &[]).await;
        attempt.ask(place, text).await;
        tries.push(attempt);
    }
    assert!(alice.silent(A_WHILE).await && mallory.silent(A_WHILE).await);
    operator.ask("promptd/n/cancel", r#"{"all":true}"#).await;
    assert_eq!(json(&alice.next().await)["code"], json!("cancelled"));
    drop(running);
    assert_eq!(topic(&operator.next().await), "promptd/n/status");
}

#[tokio::test]
async fn the_broker_that_ships_forgets_nothing_when_it_is_killed() {
    let Some((mut broker, _files)) = guarded(&[("promptd", "promptd"), ("alice", "alice")]) else {
        return;
    };
    let board = Board::with(board_config(&broker, "promptd"), Limits::default());
    let mut alice = user(&broker, "alice", &["promptd/n/availability"]).await;
    alice.until("promptd/n/availability", "online").await;
    board.leave().await;
    alice.until("promptd/n/availability", "offline").await;
    // Nobody is there to take it; the broker has acknowledged it when the next thing happens.
    alice.ask("promptd/n/ask", r#"{"prompt":"hi","id":"kept"}"#).await;
    let mut seen = user(&broker, "alice", &["promptd/n/availability"]).await;
    seen.until("promptd/n/availability", "offline").await;
    let database = broker.dir.path().join("mosquitto.db");
    let written = async {
        loop {
            let bytes = std::fs::read(&database).unwrap_or_default();
            if bytes.windows(6).any(|part| part == b"\"kept\"") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon(written).await;
    broker.kill();
    broker.run();
    let mut board = Board::with(board_config(&broker, "promptd"), Limits::default());
    let submission = board.answer(&["x"]).await;
    assert_eq!(submission.request.input, Input::Ask { system: None, text: "hi".into() });
}

#[tokio::test]
async fn secrets_never_show() {
    let Some((broker, _files)) = guarded(&[("promptd", CANARY)]) else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    for (written, connects) in [(CANARY, true), (&*format!("{CANARY}-wrong"), false)] {
        std::fs::write(&file, format!("{written}\n")).unwrap();
        let plan = Plan::demo().with(&format!(
            "[mqtt]\nurl = \"mqtt://127.0.0.1:{}\"\nnode = \"n\"\nusername = \"promptd\"\npassword_file = {file:?}\n\
             [log]\nlevel = \"debug\"\n",
            broker.port
        ));
        let service = Service::start(&plan).ready();
        let mut status = serde_json::Value::Null;
        wait_for("the broker's word", || {
            status = service.health()?;
            let broker = status.get("broker")?;
            let decided =
                if connects { broker["connected"] == true } else { broker["trouble"].is_string() };
            decided.then_some(())
        });
        let mut told = vec![("status", status.to_string()), ("log", service.log())];
        for pid in [Some(service.pid()), service.engine_pid()].into_iter().flatten() {
            for place in ["cmdline", "environ"] {
                let bytes = std::fs::read(format!("/proc/{pid}/{place}")).unwrap_or_default();
                told.push((place, String::from_utf8_lossy(&bytes).into_owned()));
            }
        }
        for (place, text) in told {
            assert!(!text.contains(CANARY), "{place}: {text}");
        }
        let (_, log) = service.stop();
        assert!(!log.contains(CANARY), "{log}");
        assert!(connects || log.contains("mqtt.username"), "{log}");
    }
    // An address with a password in it, in what is complained about and what is shown.
    let url =
        BrokerUrl::parse(&format!("mqtt://promptd:{CANARY}@127.0.0.1:{}", broker.port)).unwrap();
    let shown = format!("{url} {url:?} {:?}", Config::new(url.clone(), "n"));
    assert!(!shown.contains(CANARY), "{shown}");
}

/// Who promptd is to its broker changes with a reload: nothing is started again, and what cannot be read changes nothing.
#[tokio::test]
async fn another_login_holds_from_a_reload_on() {
    let Some((broker, _files)) = guarded(&[("promptd", CANARY)]) else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, format!("{CANARY}\n")).unwrap();
    let plan = Plan::demo().with(&format!(
        "[mqtt]\nurl = \"mqtt://127.0.0.1:{}\"\nnode = \"n\"\nusername = \"nobody\"\npassword_file = {file:?}\n",
        broker.port
    ));
    let service = Service::start(&plan).ready();
    let of_broker = |key: &str| Some(service.health()?["broker"][key].clone());
    wait_for("the refusal", || of_broker("trouble")?.is_string().then_some(()));
    let engine = service.engine_pid();
    rewrite(&service, |old| old.replace("\"nobody\"", "\"promptd\""));
    signal(service.pid(), "HUP");
    wait_for("the connection", || (of_broker("connected")? == true).then_some(()));
    assert!(!service.log().contains("wait for a restart"), "{}", service.log());
    assert_eq!(service.engine_pid(), engine, "the model had no part in it");

    std::fs::remove_file(&file).unwrap();
    signal(service.pid(), "HUP");
    let error = wait_for("the complaint", || {
        Some(service.health()?["configuration_error"].as_str()?.to_owned())
    });
    assert!(error.contains("mqtt.password_file"), "{error}");
    assert_eq!(of_broker("connected").unwrap(), true, "what held still holds");
    // Another node has other topics, and takes a restart.
    std::fs::write(&file, format!("{CANARY}\n")).unwrap();
    rewrite(&service, |old| old.replace("node = \"n\"", "node = \"m\""));
    signal(service.pid(), "HUP");
    wait_for("what waits", || service.log().contains("wait for a restart").then_some(()));
}

#[tokio::test]
async fn peers_cannot_write_into_the_log() {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let plan = Plan::demo().with(&format!(
        "[mqtt]\nurl = \"mqtt://127.0.0.1:{}\"\nnode = \"n\"\n",
        listener.local_addr().unwrap().port()
    ));
    let service = Service::start(&plan);
    let hostile = format!("\n2026-01-01 ERROR forged\r\x1b[31m{}", "x".repeat(5000));
    let mut connections = 0;
    while connections < 3 {
        let (mut stream, _) = listener.accept().await.unwrap();
        packet(&mut stream).await.unwrap();
        connections += 1;
        // CONNACK, then goodbye with a reason string of five kilobytes: quota exceeded.
        let text = u16::try_from(hostile.len()).unwrap().to_be_bytes();
        let property = 3 + hostile.len();
        let length = |value: usize| {
            [u8::try_from(value & 0x7f).unwrap() | 0x80, u8::try_from(value >> 7).unwrap()]
        };
        let mut bytes = b"\x20\x03\x00\x00\x00\xe0".to_vec();
        bytes.extend(length(1 + 2 + property));
        bytes.push(0x97);
        bytes.extend(length(property));
        bytes.extend([0x1f, text[0], text[1]]);
        bytes.extend(hostile.as_bytes());
        stream.write_all(&bytes).await.unwrap();
        while packet(&mut stream).await.is_some() {}
    }
    wait_for("the log", || service.log().contains("quota exceeded").then_some(()));
    let log = service.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("forged")).collect();
    assert!(!lines.is_empty());
    for line in &lines {
        assert!(
            line.contains("quota exceeded") && line.len() < 1024 && !line.contains('\x1b'),
            "{line}"
        );
    }
    // The same trouble is told once for each connection that was up.
    assert!(lines.len() <= connections, "{log}");
}
