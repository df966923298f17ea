//! The MQTT door against a real broker: what clients send and what they get.

use std::process::Stdio;
use std::time::Duration;

use promptd::engine::frames::LoadStage;
use promptd::mqtt::Config;
use promptd::request::{Code, Event, Identity, Input, Refusal};
use promptd::scheduler::State;
use promptd::wire::Limits;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::PublishProperties;
use serde_json::json;

use crate::support::broker::{Board, Broker, Client, answer, config, json, program, topic};
use crate::support::door::{delta, finished, soon};

/// Long enough to see that nothing comes.
const A_WHILE: Duration = Duration::from_millis(300);

/// A broker and a door that listens on it.
async fn open() -> Option<(Broker, Board)> {
    let broker = Broker::start("")?;
    let board = Board::open(broker.port);
    online(broker.port).await;
    Some((broker, board))
}

/// Waits until the door listens.
async fn online(port: u16) {
    let mut watcher = Client::connect(port, "watcher", &["promptd/n/availability"], false).await;
    watcher.until("promptd/n/availability", "online").await;
}

#[tokio::test]
async fn plain_text_with_mosquitto_rr() {
    let Some((broker, mut board)) = open().await else { return };
    let Some(program) = program("mosquitto_rr") else {
        return println!("SKIPPED: mosquitto_rr is not installed");
    };
    let mut command = tokio::process::Command::new(program);
    command.args([
        "-V",
        "5",
        "-p",
        &broker.port.to_string(),
        "-t",
        "promptd/n/ask",
        "-e",
        "me/r",
        "-m",
        "hi there",
    ]);
    let rr =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let submission = board.answer(&["Hel", "lo"]).await;
    assert_eq!(submission.request.input, Input::Ask { system: None, text: "hi there".into() });
    assert_eq!(submission.identity, Identity("mqtt:me".into()));
    let output = soon(rr.wait_with_output()).await.unwrap();
    let object: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&object["text"], &object["status"], &object["node"]),
        (&json!("Hello"), &json!("ok"), &json!("n"))
    );
}

#[tokio::test]
async fn json_from_a_client_of_mqtt_3() {
    let Some((broker, mut board)) = open().await else { return };
    let mut watcher = Client::connect(broker.port, "me", &["promptd/n/answer/#"], false).await;
    let mut options = rumqttc::MqttOptions::new("old", "127.0.0.1", broker.port);
    options.set_keep_alive(Duration::from_secs(5));
    let (old, mut events) = rumqttc::AsyncClient::new(options, 10);
    let poller = tokio::spawn(async move { while events.poll().await.is_ok() {} });
    let payload = r#"{"v":1,"id":"esp32-7:42","prompt":"hi","max_tokens":9}"#;
    old.publish("promptd/n/ask", rumqttc::QoS::AtLeastOnce, false, payload).await.unwrap();
    let submission = board.answer(&["Hello"]).await;
    assert_eq!(
        (submission.request.max_tokens, submission.identity.0.as_str()),
        (Some(9), "mqtt:esp32-7")
    );
    let message = watcher.next().await;
    assert_eq!(topic(&message), "promptd/n/answer/esp32-7:42");
    let object = json(&message);
    assert_eq!(
        (&object["id"], &object["text"], &object["model"]),
        (&json!("esp32-7:42"), &json!("Hello"), &json!("tiny model"))
    );
    assert_eq!(object["usage"], json!({"prompt": 5, "cached": 2, "completion": 4}));
    poller.abort();
}

#[tokio::test]
async fn the_way_back_of_mqtt_5() {
    let Some((broker, mut board)) = open().await else { return };
    let mut me = Client::connect(broker.port, "me", &["me/#", "promptd/n/answer/#"], false).await;
    me.ask_back("promptd/n/ask", r#"{"id":"a","prompt":"hi"}"#, "me/r", b"\x00\xff any bytes")
        .await;
    board.answer(&["x"]).await;
    let message = me.next().await;
    assert_eq!(topic(&message), "me/r");
    assert!(!message.retain);
    let properties = message.properties.clone().unwrap();
    assert_eq!(properties.correlation_data.as_deref(), Some(b"\x00\xff any bytes".as_slice()));
    assert_eq!(properties.content_type.as_deref(), Some("application/json"));
    assert_eq!(properties.payload_format_indicator, Some(1));
    assert!(
        properties.message_expiry_interval.is_some_and(|seconds| (3590..=3600).contains(&seconds))
    );
    assert!(properties.user_properties.contains(&("status".into(), "ok".into())));
    assert!(me.silent(A_WHILE).await, "exactly one message");
}

#[tokio::test]
async fn only_the_text_and_in_parts() {
    let Some((broker, mut board)) = open().await else { return };
    let mut me = Client::connect(broker.port, "me", &["promptd/n/answer/#"], false).await;
    me.ask("promptd/n/ask/lights", r#"{"id":"a","prompt":"hi","format":"text"}"#).await;
    board.answer(&["on"]).await;
    let message = me.next().await;
    assert_eq!(message.payload, "on");
    let properties = message.properties.unwrap();
    assert_eq!(properties.content_type.as_deref(), Some("text/plain"));
    assert!(properties.user_properties.contains(&("status".into(), "ok".into())));
    me.ask("promptd/n/ask", r#"{"id":"b","prompt":"hi","max_bytes":100}"#).await;
    let text = "Grüße aus der Küche. ".repeat(5);
    board.answer(&[&text]).await;
    let mut joined = String::new();
    for part in 1.. {
        let message = me.next().await;
        assert!(message.payload.len() <= 100);
        let object = json(&message);
        assert_eq!((&object["id"], &object["part"]), (&json!("b"), &json!(part)));
        joined.push_str(object["text"].as_str().unwrap());
        if object["part"] == object["parts"] {
            break;
        }
    }
    assert_eq!(joined, text);
}

#[tokio::test]
async fn a_stream_comes_in_order_and_ends() {
    let Some((broker, mut board)) = open().await else { return };
    let topics = ["promptd/n/stream/#", "promptd/n/progress/#", "promptd/n/answer/#"];
    let mut me = Client::connect(broker.port, "me", &topics, false).await;
    for (payload, id) in [
        (r#"{"id":"s1","prompt":"hi","stream":true}"#, "s1"),
        (r#"{"prompt":"hi","stream":true}"#, "p2"),
    ] {
        me.ask("promptd/n/ask", payload).await;
        let (_, verdict) = board.submitted().await;
        let events = verdict.accept(7);
        let pieces = ["Hel", "lo", " wor", "ld", "!"];
        answer(&events, &pieces);
        let (mut text, mut next, mut states) = (String::new(), 0, Vec::new());
        let last = loop {
            let (message, object) = {
                let m = me.next().await;
                let o = json(&m);
                (m, o)
            };
            match topic(&message).split('/').nth(2).unwrap() {
                "progress" => states.push(object["state"].as_str().unwrap().to_owned()),
                "stream" => {
                    assert_eq!(topic(&message), format!("promptd/n/stream/{id}"));
                    assert_eq!(object["seq"], json!(next));
                    next += 1;
                    if object["end"] == json!(true) {
                        assert_eq!(object["n"], json!(next));
                    } else {
                        text.push_str(object["d"].as_str().unwrap());
                    }
                }
                _ => break object,
            }
        };
        assert_eq!(
            (text.as_str(), &last["text"], &last["id"]),
            ("Hello world!", &json!("Hello world!"), &json!(id))
        );
        assert!(
            (2..=6).contains(&next),
            "quick pieces go together, but the end is one of its own: {next}"
        );
        assert_eq!(states, ["queued", "prefill", "decoding"]);
    }
    me.ask("promptd/n/ask", r#"{"id":"quiet","prompt":"hi"}"#).await;
    board.answer(&["x"]).await;
    assert_eq!(topic(&me.next().await), "promptd/n/answer/quiet", "no stream without being asked");
}

#[tokio::test]
async fn cancel_stops_what_it_names() {
    let Some((broker, mut board)) = open().await else { return };
    let mut me = Client::connect(broker.port, "me", &["promptd/n/answer/#"], false).await;
    let mut running = Vec::new();
    for id in ["a", "b", "c"] {
        me.ask("promptd/n/ask", format!(r#"{{"id":"{id}","prompt":"hi"}}"#)).await;
        running.push(board.accepted().await);
    }
    me.ask("promptd/n/cancel", "nonsense").await;
    me.ask("promptd/n/cancel", r#"{"id":"b"}"#).await;
    let object = json(&me.next().await);
    assert_eq!((&object["id"], &object["code"]), (&json!("b"), &json!("cancelled")));
    soon(running[1].closed()).await;
    assert!(!running[0].is_closed() && !running[2].is_closed());
    me.ask("promptd/n/cancel", r#"{"id":"p1"}"#).await;
    assert_eq!(json(&me.next().await)["id"], json!("a"));
    me.ask("promptd/n/cancel", r#"{"all":true}"#).await;
    assert_eq!(json(&me.next().await)["id"], json!("c"));
    soon(running[2].closed()).await;
}

#[tokio::test]
async fn refusals_find_their_way_back() {
    let Some(broker) = Broker::start("") else { return };
    let limits = Limits { payload_bytes: 2000, ..Limits::default() };
    let mut board = Board::with(config(broker.port), limits);
    online(broker.port).await;
    let mut me = Client::connect(broker.port, "me", &["me/#", "promptd/n/answer/#"], false).await;
    let long = "x".repeat(2001);
    for (ask, payload, code, param) in [
        ("promptd/n/ask", "{\"prompt\":", "bad_request", None),
        ("promptd/n/ask", r#"{"prompt":"hi","colour":1}"#, "bad_request", Some("colour")),
        ("promptd/n/ask/lamps", "hi", "not_found", Some("profile")),
        ("promptd/n/ask", r#"{"prompt":"hi","model":"gpt"}"#, "not_found", Some("model")),
        ("promptd/n/ask", long.as_str(), "payload_too_large", None),
    ] {
        me.ask_back(ask, payload, "me/r", b"c").await;
        let message = me.next().await;
        let object = json(&message);
        assert_eq!((topic(&message), object["code"].as_str()), ("me/r", Some(code)), "{payload}");
        assert_eq!(object["param"].as_str(), param, "{payload}");
        assert_eq!(message.properties.unwrap().correlation_data.as_deref(), Some(b"c".as_slice()));
    }
    // Larger than the broker is told to deliver at most would be dropped by it; this much has to arrive.
    me.ask_back("promptd/n/ask", "x".repeat(2000 + 60_000), "me/r", b"c").await;
    assert_eq!(json(&me.next().await)["code"], json!("payload_too_large"));
    // The id of a request that is wrong otherwise is used.
    me.ask("promptd/n/ask", r#"{"id":"i","prompt":"hi","temperature":9}"#).await;
    let message = me.next().await;
    assert_eq!((topic(&message), &json(&message)["id"]), ("promptd/n/answer/i", &json!("i")));
    // In the form that the asker reads, although the request could not be read.
    me.ask("promptd/n/ask", r#"{"id":"i","prompt":"hi","temperature":9,"format":"text"}"#).await;
    assert_eq!(me.next().await.payload, "!bad_request");
    // The scheduler's refusals as well.
    me.ask("promptd/n/ask", r#"{"id":"j","prompt":"hi","format":"text"}"#).await;
    let busy = Refusal::new(Code::Busy, "full").with_retry_after(Duration::from_secs(4));
    board.submitted().await.1.refuse(busy);
    let message = me.next().await;
    assert_eq!(message.payload, "!busy 4000");
    assert!(message.properties.unwrap().user_properties.contains(&("error".into(), "busy".into())));
    assert!(board.idle(A_WHILE).await, "no refused prompt reaches the scheduler");
}

#[tokio::test]
async fn nobody_makes_promptd_write_where_it_must_not() {
    let Some(broker) = Broker::start("") else { return };
    let settings = Config { reply_prefixes: vec!["esp32-7".into()], ..config(broker.port) };
    let mut board = Board::with(settings, Limits::default());
    online(broker.port).await;
    let mut all = Client::connect(broker.port, "me", &["#"], false).await;
    for back in [
        "promptd/n/ask",
        "promptd/n/cancel",
        "promptd/m/ask/x",
        "a/#",
        "a/+",
        "$SYS/x",
        "promptd/n/availability",
    ] {
        all.ask_back("promptd/n/ask/nobody-reads-this", r#"{"id":"h","prompt":"hi"}"#, back, b"c")
            .await;
        loop {
            let message = all.live().await;
            if topic(&message) == "promptd/n/ask/nobody-reads-this" {
                continue;
            }
            assert_eq!(topic(&message), "promptd/n/answer/h", "{back}");
            assert_eq!(
                (&json(&message)["code"], &json(&message)["param"]),
                (&json!("bad_request"), &json!("response_topic"))
            );
            break;
        }
    }
    for (to, code) in [
        ("zigbee2mqtt/lamp/set", "forbidden"),
        ("esp32-77/llm", "forbidden"),
        ("promptd/n/ask", "bad_request"),
    ] {
        all.ask("promptd/n/ask", json!({"id": "i", "prompt": "hi", "reply_to": to}).to_string())
            .await;
        let asked = all.live().await;
        assert_eq!(topic(&asked), "promptd/n/ask");
        let message = all.live().await;
        assert_eq!(
            (topic(&message), json(&message)["code"].as_str()),
            ("promptd/n/answer/i", Some(code)),
            "{to}"
        );
    }
    all.ask("promptd/n/ask", r#"{"prompt":"hi","reply_to":"esp32-7/llm"}"#).await;
    board.answer(&["x"]).await;
    all.live().await;
    assert_eq!(topic(&all.live().await), "esp32-7/llm");
    assert!(board.idle(A_WHILE).await);
}

#[tokio::test]
async fn a_retained_prompt_is_no_prompt() {
    let Some(broker) = Broker::start("") else { return };
    let mut me = Client::connect(broker.port, "me", &["promptd/n/answer/#"], false).await;
    me.sender.publish("promptd/n/ask", QoS::AtLeastOnce, true, "old").await.unwrap();
    me.sender.publish("promptd/n/ask/lights", QoS::AtLeastOnce, true, "old").await.unwrap();
    // The broker handles one client's messages in order: what follows shows that they were there before the door.
    me.ask("promptd/n/answer", "order").await;
    me.until("promptd/n/answer", "order").await;
    let mut board = Board::open(broker.port);
    online(broker.port).await;
    assert!(board.idle(A_WHILE).await);
    // Deleting it is no prompt either.
    me.sender.publish("promptd/n/ask", QoS::AtLeastOnce, true, "").await.unwrap();
    me.ask("promptd/n/ask", "new").await;
    let submission = board.answer(&["x"]).await;
    assert_eq!(submission.request.input, Input::Ask { system: None, text: "new".into() });
    assert_eq!(json(&me.next().await)["text"], json!("x"));
}

#[tokio::test]
async fn deadlines_and_content_types() {
    let Some((broker, mut board)) = open().await else { return };
    let mut me = Client::connect(broker.port, "me", &["me/#"], false).await;
    let ask = |payload: &'static str, expiry, content_type: Option<&str>| {
        let properties = PublishProperties {
            response_topic: Some("me/r".into()),
            message_expiry_interval: expiry,
            content_type: content_type.map(str::to_owned),
            ..PublishProperties::default()
        };
        me.sender.publish_with_properties(
            "promptd/n/ask",
            QoS::AtLeastOnce,
            false,
            payload,
            properties,
        )
    };
    for (payload, expiry, timeout) in [
        (r#"{"prompt":"a"}"#, None, None),
        (r#"{"prompt":"a","timeout_ms":8000}"#, None, Some(8)),
        (r#"{"prompt":"a"}"#, Some(20), Some(20)),
        (r#"{"prompt":"a","timeout_ms":8000}"#, Some(20), Some(8)),
        (r#"{"prompt":"a","timeout_ms":30000}"#, Some(20), Some(20)),
    ] {
        ask(payload, expiry, None).await.unwrap();
        let (submission, verdict) = board.submitted().await;
        assert_eq!(submission.timeout, timeout.map(Duration::from_secs), "{payload} {expiry:?}");
        let failed = Refusal::new(Code::Timeout, "too late");
        verdict.accept(1).send(Event::Failed(failed));
    }
    ask("{not json", None, Some("text/plain; charset=utf-8")).await.unwrap();
    let submission = board.answer(&["x"]).await;
    assert_eq!(submission.request.input, Input::Ask { system: None, text: "{not json".into() });
    ask("\u{1}", None, Some("application/cbor")).await.unwrap();
    for _ in 0..5 {
        assert_eq!(json(&me.next().await)["code"], json!("timeout"));
    }
    assert_eq!(json(&me.next().await)["text"], json!("x"));
    // What is no CBOR is refused in CBOR.
    let refusal = promptd::wire::cbor_to_json(&me.next().await.payload).unwrap();
    assert_eq!(refusal["code"], json!("bad_request"));
}

#[tokio::test]
async fn the_same_prompt_twice_is_one_generation() {
    let Some((broker, mut board)) = open().await else { return };
    let mut me = Client::connect(broker.port, "me", &["me/#", "promptd/n/answer/#"], false).await;
    let prompt = r#"{"id":"a","prompt":"hi"}"#;
    me.ask("promptd/n/ask", prompt).await;
    let events = board.accepted().await;
    me.ask("promptd/n/ask", prompt).await;
    assert!(board.idle(A_WHILE).await, "it joins the one in work");
    answer(&events, &["x"]);
    assert_eq!(json(&me.next().await)["text"], json!("x"));
    assert!(me.silent(A_WHILE).await);
    me.ask("promptd/n/ask", prompt).await;
    assert_eq!(json(&me.next().await)["text"], json!("x"), "the stored answer");
    // Another address, other words, or no name at all: another prompt.
    me.ask_back("promptd/n/ask", prompt, "me/r", b"1").await;
    board.answer(&["y"]).await;
    assert_eq!(topic(&me.next().await), "me/r");
    for _ in 0..2 {
        me.ask("promptd/n/ask", "no name").await;
        board.answer(&["z"]).await;
        assert_eq!(json(&me.next().await)["text"], json!("z"));
    }
    assert!(board.idle(A_WHILE).await);
}

#[tokio::test]
async fn what_the_board_tells_about_itself() {
    let Some(broker) = Broker::start("") else { return };
    let board = Board::open(broker.port);
    board.script.set_status(|status| status.state = State::Loading(LoadStage::Weights));
    online(broker.port).await;
    let late = Client::connect(
        broker.port,
        "late",
        &["promptd/n/status", "promptd/n/info", "promptd/n/availability"],
        false,
    );
    let mut late = late.await;
    let (mut status, mut info, mut availability) = (json!(null), json!(null), String::new());
    for _ in 0..3 {
        let message = late.next().await;
        assert!(message.retain);
        match topic(&message) {
            "promptd/n/status" => status = json(&message),
            "promptd/n/info" => info = json(&message),
            _ => availability = String::from_utf8(message.payload.to_vec()).unwrap(),
        }
    }
    assert_eq!(
        (availability.as_str(), &status["state"], &status["stage"]),
        ("online", &json!("loading"), &json!("loading the weights"))
    );
    assert_eq!(
        (&info["version"], &info["protocol"], &info["profiles"]),
        (&json!("1.2.3"), &json!(1), &json!(["lights"]))
    );
    // Changes come soon, and quick ones only as the last of them.
    for waiting in 0..100 {
        board.script.set_status(|status| {
            status.state = State::Ready;
            status.waiting = waiting;
        });
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut seen = 0;
    loop {
        let status = json(&late.next().await);
        seen += 1;
        assert_eq!(status["state"], json!("ready"));
        if status["queue"]["waiting"] == json!(99) {
            break;
        }
    }
    assert!(seen <= 5, "one second has room for three states at most twice a second: {seen}");
    board.leave().await;
    late.until("promptd/n/availability", "offline").await;
}

#[tokio::test]
async fn leaving_delivers_what_is_done_and_leaves_the_rest_to_the_broker() {
    let Some((broker, mut board)) = open().await else { return };
    let mut me = Client::connect(broker.port, "me", &["promptd/n/answer/#"], false).await;
    me.ask("promptd/n/ask", r#"{"id":"done","prompt":"hi"}"#).await;
    let done = board.accepted().await;
    me.ask("promptd/n/ask", r#"{"id":"open","prompt":"hi"}"#).await;
    let open = board.accepted().await;
    done.send(delta("x"));
    board.stop.send(true).unwrap();
    tokio::time::sleep(A_WHILE).await;
    done.send(finished());
    assert_eq!(json(&me.next().await)["id"], json!("done"));
    soon(board.door).await.unwrap().unwrap();
    assert!(open.is_closed(), "its ticket is gone");
    assert!(me.silent(A_WHILE).await, "no error for the prompt that is handed back");
    // The next start gets it again, and only it.
    let mut board = Board::open(broker.port);
    board.answer(&["y"]).await;
    assert_eq!(json(&me.next().await)["id"], json!("open"));
    assert!(board.idle(A_WHILE).await);
}

#[tokio::test]
async fn prompts_that_come_while_the_model_is_loaded_wait_for_it() {
    let Some((broker, mut board)) = open().await else { return };
    let mut me = Client::connect(broker.port, "me", &["promptd/n/answer/#"], false).await;
    board.script.set_status(|status| status.state = State::Loading(LoadStage::Weights));
    me.ask("promptd/n/ask", r#"{"id":"hurry","prompt":"hi","timeout_ms":300}"#).await;
    me.ask("promptd/n/ask", r#"{"id":"stop","prompt":"hi"}"#).await;
    me.ask("promptd/n/ask", r#"{"id":"wait","prompt":"hi","timeout_ms":60000}"#).await;
    me.ask("promptd/n/cancel", r#"{"id":"stop"}"#).await;
    let object = json(&me.next().await);
    assert_eq!((&object["id"], &object["code"]), (&json!("stop"), &json!("cancelled")));
    let object = json(&me.next().await);
    assert_eq!((&object["id"], &object["code"]), (&json!("hurry"), &json!("timeout")));
    assert!(board.idle(A_WHILE).await);
    board.script.set_status(|status| status.state = State::Ready);
    let submission = board.answer(&["x"]).await;
    let left = submission.timeout.unwrap();
    assert!(left < Duration::from_secs(60) && left > Duration::from_secs(50), "{left:?}");
    assert_eq!(json(&me.next().await)["id"], json!("wait"));
    // One that nobody would send again is refused at once.
    board.script.set_status(|status| status.state = State::Loading(LoadStage::Weights));
    me.sender.publish("promptd/n/ask", QoS::AtMostOnce, false, "hi").await.unwrap();
    let loading = Refusal::new(Code::ModelLoading, "a moment");
    board.submitted().await.1.refuse(loading);
    assert_eq!(json(&me.next().await)["code"], json!("model_loading"));
}

#[tokio::test]
async fn while_draining_nothing_is_refused_that_comes_again() {
    let Some((broker, mut board)) = open().await else { return };
    let mut me = Client::connect(broker.port, "me", &["promptd/n/answer/#"], false).await;
    board.script.set_status(|status| status.state = State::Loading(LoadStage::Weights));
    me.ask("promptd/n/ask", r#"{"id":"held","prompt":"hi"}"#).await;
    assert!(board.idle(A_WHILE).await);
    board.script.set_status(|status| status.state = State::Draining);
    board.submitted().await.1.refuse(Refusal::new(Code::Busy, "promptd is stopping"));
    me.ask("promptd/n/ask", r#"{"id":"late","prompt":"hi"}"#).await;
    assert!(board.idle(A_WHILE).await);
    assert!(me.silent(A_WHILE).await);
    board.leave().await;
    let mut board = Board::open(broker.port);
    for id in ["held", "late"] {
        board.answer(&["x"]).await;
        assert_eq!(json(&me.next().await)["id"], json!(id));
    }
}
