//! What outlasts the service: prompts over MQTT through `kill -9` and restarts, answered once each and as before.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::broker::{Broker, Client};
use crate::support::service::{Plan, Service, signal};

const ANSWERS: &str = "promptd/n/answer/#";
/// Long enough to see that nothing more comes.
const A_WHILE: Duration = Duration::from_millis(500);

/// A long answer drawn by chance: it takes a while, and only the same seed gives it again. The end of the sequence (the
/// token 2) is never chosen.
fn prompt(id: &str) -> String {
    let prompt = format!("Tell me about {id}.");
    json!({"id": id, "prompt": prompt, "max_tokens": 300, "temperature": 1.0, "logit_bias": {"2": -100}}).to_string()
}

/// So many prompts in work and answers stand in the record, and all of it is on the disk.
async fn recorded(service: &Service, prompts: u64, answers: u64) {
    let is_so = |health: &Value| {
        let record = &health["record"];
        record["prompts"] == prompts && record["answers"] == answers && record["waiting"] == 0
    };
    service.until("the record", is_so).await;
}

/// The next answers, by id.
async fn answers(client: &mut Client, count: usize) -> BTreeMap<String, Value> {
    let mut answers = BTreeMap::new();
    while answers.len() < count {
        let message = client.live().await;
        let object: Value = serde_json::from_slice(&message.payload).unwrap();
        let id = object["id"].as_str().unwrap().to_owned();
        assert!(answers.insert(id, object).is_none(), "an answer came twice");
    }
    answers
}

#[tokio::test]
async fn what_was_accepted_outlasts_kill_9_of_service_and_broker() {
    let Some(mut broker) = Broker::start("") else { return };
    // One slot: beside others the model rounds otherwise, and a draw may fall on the other side of a border.
    let plan = Plan { slots: Some(1), ..Plan::demo().at_broker(broker.port) };
    let service = Service::start(&plan).ready();
    // More than there are slots: some run, some wait. The engine stops while they do, so that none is answered; where it was
    // quicker than its being stopped, others are asked.
    let (mut answered, engine) = (0, service.engine_pid().unwrap());
    let ids = loop {
        let client = Client::connect(broker.port, "asker", &[], false).await;
        let ids: Vec<String> = (answered..answered + 6).map(|n| format!("q{n}")).collect();
        for id in &ids {
            client.ask("promptd/n/ask", prompt(id)).await;
        }
        let all = |health: &Value| health["counters"]["accepted"] == answered + 6;
        service.until("six prompts", all).await;
        signal(engine, "STOP");
        let written = |health: &Value| health["record"]["waiting"] == 0;
        if service.until("the record", written).await["record"]["prompts"] == 6 {
            break ids;
        }
        signal(engine, "CONT");
        answered += 6;
        recorded(&service, 0, answered).await;
        assert!(answered < 60, "the engine is always quicker");
    };
    let folder = service.kill();
    // A broker that keeps nothing: only the record has them now.
    broker.kill();
    broker.run();
    let mut client = Client::connect(broker.port, "asker", &[ANSWERS], false).await;
    let service = Service::start_in(folder, &plan).ready();
    let first = answers(&mut client, 6).await;
    assert!(client.silent(A_WHILE).await, "each is answered once");
    for (id, answer) in &first {
        assert_eq!((&answer["status"], &answer["attempt"]), (&json!("ok"), &json!(2)), "{answer}");
        assert!(ids.contains(id));
    }
    assert_eq!(service.health().unwrap()["record"]["replayed"], 6);
    // The same seed outside gives the same text: what was run again is what would have been answered.
    for (id, answer) in first.iter().take(2) {
        let mut again: Value = serde_json::from_str(&prompt(id)).unwrap();
        again["seed"] = answer["seed"].clone();
        again["id"] = json!(format!("{id}-again"));
        client.ask("promptd/n/ask", again.to_string()).await;
        let again = answers(&mut client, 1).await;
        assert_eq!(again.values().next().unwrap()["text"], answer["text"]);
    }
    recorded(&service, 0, answered + 8).await;
    // Asked again within the window each is answered from the record, also after a further start.
    let folder = service.kill();
    let service = Service::start_in(folder, &plan).ready();
    service.until("the doors", |health| health["state"] == "ready").await;
    for id in &ids {
        client.ask("promptd/n/ask", prompt(id)).await;
    }
    assert_eq!(answers(&mut client, 6).await, first);
    let health = service.health().unwrap();
    assert_eq!(health["counters"]["accepted"], 0, "{health}");
}

/// A prompt whose answer takes as long as the context is.
fn long(id: &str) -> String {
    json!({"id": id, "prompt": "Write.", "regex": "[a-z ]{400}", "max_tokens": 450}).to_string()
}

/// Asks, and stops the engine in the middle of the answer, which stands in the record as begun.
async fn stopped_in_the_middle(service: &Service, client: &Client, prompt: String) -> u32 {
    client.ask("promptd/n/ask", prompt).await;
    stop_when_running(service).await
}

async fn stop_when_running(service: &Service) -> u32 {
    service.until("a prompt that runs", |health| health["slots"]["running"] == 1).await;
    let engine = service.engine_pid().unwrap();
    signal(engine, "STOP");
    recorded(service, 1, 0).await;
    engine
}

#[tokio::test]
async fn a_prompt_that_five_services_died_of_is_not_run_again() {
    let Some(broker) = Broker::start("") else { return };
    let plan = Plan::demo().at_broker(broker.port);
    let mut client = Client::connect(broker.port, "asker", &[ANSWERS], false).await;
    let mut service = Service::start(&plan).ready();
    stopped_in_the_middle(&service, &client, long("fatal")).await;
    for _ in 1..5 {
        service = Service::start_in(service.kill(), &plan);
        stop_when_running(&service).await;
    }
    assert!(client.silent(A_WHILE).await, "it is run as long as it may be chance");
    let service = Service::start_in(service.kill(), &plan);
    let answer = answers(&mut client, 1).await;
    assert_eq!(answer["fatal"]["code"], "model_failed", "{answer:?}");
    assert!(client.silent(A_WHILE).await);
    let service = service.ready();
    client.ask("promptd/n/ask", prompt("next")).await;
    assert_eq!(answers(&mut client, 1).await["next"]["status"], "ok");
    drop(service);
}

#[tokio::test]
async fn an_answer_the_broker_did_not_take_is_published_by_the_next_start() {
    let Some(broker) = Broker::start("") else { return };
    let plan = Plan::demo().at_broker(broker.port);
    let mut client = Client::connect(broker.port, "asker", &[ANSWERS], false).await;
    let service = Service::start(&plan).ready();
    let engine = stopped_in_the_middle(&service, &client, long("a")).await;
    broker.freeze();
    signal(engine, "CONT");
    service
        .until("an answer", |health| {
            health["record"]["undelivered"] == 1 && health["record"]["waiting"] == 0
        })
        .await;
    let folder = service.kill();
    broker.thaw();
    let service = Service::start_in(folder, &plan);
    let answer = answers(&mut client, 1).await.remove("a").unwrap();
    assert_eq!((&answer["status"], answer.get("attempt")), (&json!("ok"), None), "{answer}");
    // What the dead service had written to its connection, the broker may have read after all.
    if let Ok(again) = tokio::time::timeout(A_WHILE, client.live()).await {
        assert_eq!(serde_json::from_slice::<Value>(&again.payload).unwrap(), answer);
        assert!(client.silent(A_WHILE).await, "one crash repeats it once");
    }
    let health = service.until("health", |health| health["record"]["answers"] == 1).await;
    assert_eq!(health["record"]["replayed"], 0, "it was not run again: {health}");
}

#[tokio::test]
async fn a_deadline_that_passes_while_nobody_runs_is_told() {
    let Some(broker) = Broker::start("") else { return };
    let plan = Plan::demo().at_broker(broker.port);
    let mut client = Client::connect(broker.port, "asker", &[ANSWERS], false).await;
    let service = Service::start(&plan).ready();
    let mut hasty: Value = serde_json::from_str(&long("hasty")).unwrap();
    hasty["timeout_ms"] = json!(10_000);
    let began = Instant::now();
    stopped_in_the_middle(&service, &client, hasty.to_string()).await;
    let folder = service.kill();
    tokio::time::sleep_until((began + Duration::from_millis(10_100)).into()).await;
    let service = Service::start_in(folder, &plan);
    let answer = answers(&mut client, 1).await;
    assert_eq!(answer["hasty"]["code"], "timeout", "{answer:?}");
    assert!(client.silent(A_WHILE).await);
    drop(service);
}

#[tokio::test]
async fn a_stop_in_the_middle_leaves_the_prompt_to_the_next_start() {
    let Some(broker) = Broker::start("") else { return };
    let plan = Plan::demo().at_broker(broker.port).with("[shutdown]\ngrace_seconds = 0\n");
    let mut client = Client::connect(broker.port, "asker", &[ANSWERS], false).await;
    // Twice: a stop is nobody's fault and is not counted.
    let mut service = Service::start(&plan).ready();
    client.ask("promptd/n/ask", long("patient")).await;
    for _ in 0..3 {
        let engine = stop_when_running(&service).await;
        signal(service.pid(), "TERM");
        // A stopped engine would be killed after a while; it may go sooner.
        signal(engine, "CONT");
        assert_eq!(service.wait().code(), Some(0), "{}", service.log());
        service = Service::start_in(service.kill(), &plan);
    }
    let answer = answers(&mut client, 1).await;
    assert_eq!(answer["patient"]["status"], "ok", "{answer:?}");
    assert!(client.silent(A_WHILE).await);
}

#[tokio::test]
async fn without_durability_the_broker_keeps_what_is_not_answered() {
    let Some(broker) = Broker::start("") else { return };
    let plan = Plan::demo().at_broker(broker.port).with("");
    let plan = Plan { durability: Some("memory"), ..plan };
    let mut client = Client::connect(broker.port, "asker", &[ANSWERS], false).await;
    let service = Service::start(&plan).ready();
    client.ask("promptd/n/ask", long("a")).await;
    service.until("a prompt that runs", |health| health["slots"]["running"] == 1).await;
    assert!(service.health().unwrap().get("record").is_none());
    let folder = service.kill();
    assert!(!folder.path().join("state/record.db").exists());
    let service = Service::start_in(folder, &plan);
    let answer = answers(&mut client, 1).await.remove("a").unwrap();
    assert_eq!((&answer["status"], answer.get("attempt")), (&json!("ok"), None), "{answer}");
    drop(service);
}

#[test]
fn a_newer_record_is_not_touched() {
    let folder = tempfile::Builder::new().prefix("promptd-it-").tempdir_in("/tmp").unwrap();
    let state = folder.path().join("state");
    std::fs::create_dir(&state).unwrap();
    // The header of a file of SQLite: `user_version` at 60, `application_id` at 68.
    let mut header = vec![0_u8; 4096];
    header[..16].copy_from_slice(b"SQLite format 3\0");
    header[16..24].copy_from_slice(&[0x10, 0, 1, 1, 0, 64, 32, 32]);
    header[28..32].copy_from_slice(&1_u32.to_be_bytes());
    header[44..48].copy_from_slice(&4_u32.to_be_bytes());
    header[56..60].copy_from_slice(&1_u32.to_be_bytes());
    header[60..64].copy_from_slice(&99_u32.to_be_bytes());
    header[68..72].copy_from_slice(&0x7072_6d64_u32.to_be_bytes());
    header[100] = 13;
    header[105..107].copy_from_slice(&4096_u16.to_be_bytes());
    std::fs::write(state.join("record.db"), &header).unwrap();
    let mut service = Service::start_in(folder, &Plan::demo());
    let status = service.wait();
    let log = service.log();
    assert!(!status.success() && log.contains("newer promptd"), "{status} {log}");
    assert_eq!(std::fs::read(state.join("record.db")).unwrap(), header);
}
