//! What outlasts the service: prompts over MQTT through `kill -9` and restarts, answered once each and as before.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::PATIENCE;
use crate::support::broker::{Broker, Client};
use crate::support::service::{Plan, Service};

const ANSWERS: &str = "promptd/n/answer/#";
/// Long enough to see that nothing more comes.
const A_WHILE: Duration = Duration::from_millis(500);

fn plan(port: u16) -> Plan {
    Plan::demo().with(&format!("[mqtt]\nurl = \"mqtt://127.0.0.1:{port}\"\nnode = \"n\"\n"))
}

/// A long answer drawn by chance: it takes a while, and only the same seed gives it again.
fn prompt(id: &str) -> String {
    json!({"id": id, "prompt": format!("Tell me about {id}."), "max_tokens": 60, "temperature": 1.0}).to_string()
}

/// Waits until the service says so, while the clients of this thread go on.
async fn until(service: &Service, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(health) = service.health().filter(&is_so) {
            return health;
        }
        let health = service.health();
        assert!(Instant::now() < deadline, "{what}: {health:?}\n{}", service.log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// So many prompts in work and answers stand in the record, and all of it is on the disk.
async fn recorded(service: &Service, prompts: u64, answers: u64) {
    let is_so = |health: &Value| {
        let record = &health["record"];
        record["prompts"] == prompts && record["answers"] == answers && record["waiting"] == 0
    };
    until(service, "the record", is_so).await;
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
    let plan = plan(broker.port);
    let service = Service::start(&plan).ready();
    let ids: Vec<String> = (0..6).map(|n| format!("q{n}")).collect();
    {
        let client = Client::connect(broker.port, "asker", &[], false).await;
        for id in &ids {
            client.ask("promptd/n/ask", prompt(id)).await;
        }
        // More than there are slots: some run, some wait.
        recorded(&service, 6, 0).await;
    }
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
    recorded(&service, 0, 8).await;
    // Asked again within the window each is answered from the record, also after a further start.
    let folder = service.kill();
    let service = Service::start_in(folder, &plan).ready();
    until(&service, "the doors", |health| health["state"] == "ready").await;
    for id in &ids {
        client.ask("promptd/n/ask", prompt(id)).await;
    }
    assert_eq!(answers(&mut client, 6).await, first);
    let health = service.health().unwrap();
    assert_eq!(health["counters"]["accepted"], 0, "{health}");
}
