//! The main job through the real program: a real broker, the real sockets and the demo model, every door at once.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::broker::{Broker, Client};
use crate::support::service::{Plan, Service, command, output, signal};
use crate::support::{PATIENCE, http, wait_for};

const SYSTEM: &str = "greenhouse temperature: 21.5 °C\ngarage door: open\nkitchen light: off";
const QUESTION: &str = "How warm is it in the greenhouse?";
const ANSWER: &str = "The greenhouse is at 21.5 °C.";

/// promptd at a broker, with the demo's two profiles.
fn plan(port: u16) -> Plan {
    let schema =
        std::fs::read_to_string(crate::support::demo_model().join("command.schema.json")).unwrap();
    Plan::demo().with(&format!(
        "[mqtt]\nurl = \"mqtt://127.0.0.1:{port}\"\nnode = \"n\"\n\
         [profiles.house]\nsystem = {SYSTEM:?}\n[profiles.commands]\nschema = '''\n{schema}'''\n",
    ))
}

async fn connected(port: u16, topics: &[&str]) -> Client {
    let mut topics = topics.to_vec();
    topics.push("promptd/n/availability");
    let mut client = Client::connect(port, "tester", &topics, false).await;
    client.until("promptd/n/availability", "online").await;
    client
}

fn json_of(payload: &[u8]) -> Value {
    serde_json::from_slice(payload)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(payload)))
}

#[tokio::test]
async fn a_question_over_mqtt_is_answered_by_the_model() {
    let Some(broker) = Broker::start("") else { return };
    let service = Service::start(&plan(broker.port)).ready();
    let mut client = connected(broker.port, &["me/r", "promptd/n/answer/#"]).await;

    client.ask_back("promptd/n/ask/house", QUESTION, "me/r", b"correlated").await;
    let answer = client.live().await;
    assert_eq!(answer.topic, "me/r");
    assert_eq!(answer.properties.unwrap().correlation_data.unwrap(), "correlated");
    let object = json_of(&answer.payload);
    assert_eq!((&object["text"], &object["status"]), (&json!(ANSWER), &json!("ok")));
    assert_eq!(
        (&object["model"], &object["node"], &object["finish"]),
        (&json!("demo"), &json!("n"), &json!("stop"))
    );
    assert!(
        object["usage"]["prompt"].as_u64().unwrap() > 20 && object["tps"].is_number(),
        "{object}"
    );

    client
        .ask(
            "promptd/n/ask",
            r#"{"id":"x-1","prompt":"Turn on the kitchen light.","profile":"commands"}"#,
        )
        .await;
    let answer = client.live().await;
    assert_eq!(answer.topic, "promptd/n/answer/x-1");
    assert_eq!(
        json_of(&answer.payload)["json"],
        json!({"device": "kitchen light", "action": "on"})
    );
    drop(service);
}

#[tokio::test]
async fn a_stream_over_mqtt_is_the_answer_in_order() {
    let Some(broker) = Broker::start("") else { return };
    let service = Service::start(&plan(broker.port)).ready();
    let mut client = connected(broker.port, &["promptd/n/stream/s", "promptd/n/answer/s"]).await;
    client
        .ask(
            "promptd/n/ask/house",
            json!({"id": "s", "prompt": QUESTION, "stream": true}).to_string(),
        )
        .await;
    let (mut text, mut next, mut whole, mut ended) = (String::new(), 0, None, false);
    while whole.is_none() || !ended {
        let message = client.live().await;
        let object = json_of(&message.payload);
        if message.topic == "promptd/n/answer/s" {
            whole = Some(object["text"].as_str().unwrap().to_owned());
            continue;
        }
        assert_eq!(object["seq"], next, "{object}");
        next += 1;
        text.push_str(object["d"].as_str().unwrap_or(""));
        ended = object["end"] == json!(true);
    }
    assert_eq!((text.as_str(), whole.as_deref()), (ANSWER, Some(ANSWER)));
    drop(service);
}

/// promptd whose engine was stopped before it had loaded anything: there is all the time in the world to look.
fn start_with_a_stopped_engine(plan: &Plan) -> (Service, u32, http::Answer) {
    // A machine may be quicker than the test; not ten times in a row.
    for _ in 0..10 {
        let service = Service::start(plan);
        let engine = wait_for("the engine", || service.engine_pid());
        signal(engine, "STOP");
        wait_for("the door", || http::try_get(&service.socket(), "/health/live"));
        let ready = http::get(&service.socket(), "/health/ready");
        if ready.status != 200 {
            return (service, engine, ready);
        }
        signal(engine, "CONT");
    }
    panic!("the engine was never caught while it loaded");
}

#[tokio::test]
async fn both_doors_say_loading_until_the_model_answers() {
    let Some(broker) = Broker::start("") else { return };
    let (service, engine, ready) = start_with_a_stopped_engine(&plan(broker.port));
    assert_eq!(
        (ready.status, ready.json()["state"].as_str()),
        (503, Some("loading")),
        "{}",
        ready.body
    );
    let answer = http::post(&service.socket(), "/v1/completions", &json!({"prompt": "a"}));
    assert_eq!(
        (answer.status, answer.json()["error"]["code"].as_str()),
        (503, Some("model_loading"))
    );
    assert!(answer.header("retry-after").is_some(), "{:?}", answer.headers);

    let mut client = connected(broker.port, &["promptd/n/answer/later"]).await;
    // A client of its own: the status is retained, and comes before or after `online`.
    let mut watcher = Client::connect(broker.port, "watcher", &["promptd/n/status"], false).await;
    assert_eq!(json_of(&watcher.next().await.payload)["state"], "loading");
    client.ask("promptd/n/ask/house", json!({"id": "later", "prompt": QUESTION}).to_string()).await;
    signal(engine, "CONT");
    // A prompt that the broker keeps for us waits for the model.
    let answer = loop {
        let message = client.next().await;
        if message.topic == "promptd/n/answer/later" {
            break json_of(&message.payload);
        }
    };
    assert_eq!(answer["text"], ANSWER);
    drop(service);
}

#[test]
fn a_question_over_the_line_socket_is_answered_by_the_model() {
    let service = Service::start(&Plan::demo()).ready();
    let mut stream = UnixStream::connect(service.lines()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    writeln!(stream, "{}", json!({"id": "l", "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]}))
        .unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    let object = json_of(line.as_bytes());
    assert_eq!((&object["id"], &object["text"]), (&json!("l"), &json!(ANSWER)));
}

#[test]
fn promptd_ask_and_status_speak_to_the_service() {
    let service = Service::start(&Plan::demo()).ready();
    let socket = service.socket();
    let run = |args: &[&str]| {
        let mut program = command(args);
        program.env("PROMPTD__SOCKET__PATH", &socket);
        output(program)
    };
    let (status, text, _) = run(&["ask", "--system", SYSTEM, QUESTION]);
    assert_eq!((status, text.trim_end()), (0, ANSWER));
    let (status, text, _) = run(&["status", "--json"]);
    assert_eq!((status, json_of(text.as_bytes())["state"].as_str()), (0, Some("ready")));
    let (status, text, _) = run(&["--version"]);
    assert_eq!((status, text.trim_end()), (0, concat!("promptd ", env!("CARGO_PKG_VERSION"))));
    let (status, log) = service.stop();
    assert_eq!(status.code(), Some(0), "{log}");
    let (status, _, errors) = run(&["ask", "anybody there?"]);
    assert_eq!(status, 69, "{errors}");
}

#[tokio::test]
async fn a_clean_end_says_offline_and_answers_first() {
    let Some(broker) = Broker::start("") else { return };
    let service = Service::start(&plan(broker.port)).ready();
    let mut client = connected(broker.port, &["promptd/n/answer/last"]).await;
    client.ask("promptd/n/ask/house", json!({"id": "last", "prompt": QUESTION}).to_string()).await;
    // Taken when it runs or is answered already; a prompt that was not taken yet stays with the broker.
    let taken = || {
        http::get(&service.socket(), "/metrics").body.contains("promptd_prompts_accepted_total 1")
    };
    let deadline = Instant::now() + PATIENCE;
    while !taken() {
        assert!(Instant::now() < deadline, "the prompt was not taken");
        // The client's own task needs the thread to send it.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    signal(service.pid(), "TERM");
    let (mut answered, mut offline) = (false, false);
    while !(answered && offline) {
        let message = client.live().await;
        match message.topic.as_ref() {
            b"promptd/n/answer/last" => {
                assert!(!offline, "the answer came after the goodbye");
                assert_eq!(json_of(&message.payload)["text"], ANSWER);
                answered = true;
            }
            _ => offline = message.payload == "offline",
        }
    }
    let mut service = service;
    let status = service.wait();
    assert_eq!(status.code(), Some(0), "{}", service.log());
}

#[tokio::test]
async fn an_absent_broker_disturbs_nothing_else() {
    let Some(mut broker) = Broker::prepare("") else { return };
    let service = Service::start(&plan(broker.port)).ready();
    let body = json!({"messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]});
    let ask = || http::post(&service.socket(), "/v1/chat/completions", &body).json();
    assert_eq!(ask()["choices"][0]["message"]["content"], ANSWER);
    broker.run();
    // `connected` waits for `online`, which promptd can only say after it came back by itself.
    let client =
        tokio::time::timeout(Duration::from_secs(20), connected(broker.port, &[])).await.unwrap();
    drop(client);
    broker.kill();
    assert_eq!(ask()["choices"][0]["message"]["content"], ANSWER);
    let (status, log) = service.stop();
    assert_eq!(status.code(), Some(0), "{log}");
    let complaints =
        log.lines().filter(|line| line.contains("WARN") || line.contains("ERROR")).count();
    assert!(complaints <= 6, "an absent broker is a line or two, not a flood:\n{log}");
}
