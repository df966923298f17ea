//! docs/protocol.md and the documents beside it hold: what promptd sends is what its schemas tell, and every line to copy works.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use promptd::mqtt::Config;
use promptd::wire::{self, Limits, Policies, Profiles, cbor_to_json, json_to_cbor};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::PublishProperties;
use serde_json::{Value, json};

use crate::support::broker::{Board, Broker, Client, config, topic};
use crate::support::document;
use crate::support::service::{Plan, Service, output};

fn docs(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name)
}

#[test]
fn the_documents_are_current() {
    for (name, told, command) in [
        ("payloads.schema.json", wire::payload_schemas(), "schema"),
        ("asyncapi.json", wire::asyncapi(env!("CARGO_PKG_VERSION")), "asyncapi"),
    ] {
        let text = std::fs::read_to_string(docs(name)).unwrap_or_default();
        assert!(
            text == format!("{told:#}\n"),
            "docs/{name} is old: cargo run -- protocol {command} > docs/{name}"
        );
    }
}

/// What is wrong with a value by a schema of the kinds that our types make. A field that the schema does not name is wrong too.
fn wrong(schema: &Value, value: &Value, root: &Value, at: &str) -> Option<String> {
    let Value::Object(map) = schema else { return None };
    if let Some(reference) = schema["$ref"].as_str() {
        let target = root.pointer(reference.strip_prefix('#').unwrap()).unwrap();
        return wrong(target, value, root, at);
    }
    for word in ["anyOf", "oneOf"] {
        if let Some(choices) = map.get(word).and_then(Value::as_array) {
            let whole = |choice: &Value| {
                // What stands beside the choices holds for each of them.
                let mut whole = map.clone();
                whole.remove(word);
                let mut properties = schema["properties"].as_object().cloned().unwrap_or_default();
                properties.extend(choice["properties"].as_object().cloned().unwrap_or_default());
                whole.extend(choice.as_object().cloned().unwrap_or_default());
                if !properties.is_empty() {
                    whole.insert("properties".into(), properties.into());
                }
                Value::Object(whole)
            };
            let all: Vec<Option<String>> =
                choices.iter().map(|choice| wrong(&whole(choice), value, root, at)).collect();
            return if all.contains(&None) { None } else { Some(format!("{at}: {all:?}")) };
        }
    }
    if let Some(constant) = map.get("const").filter(|constant| *constant != value) {
        return Some(format!("{at} is {value} and not {constant}"));
    }
    if let Some(values) =
        map.get("enum").and_then(Value::as_array).filter(|all| !all.contains(value))
    {
        return Some(format!("{at} is {value} and none of {values:?}"));
    }
    let kinds: Vec<&str> = match &schema["type"] {
        Value::String(kind) => vec![kind],
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let is = |kind: &&str| match *kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        _ => value.is_null(),
    };
    if !kinds.is_empty() && !kinds.iter().any(is) {
        return Some(format!("{at} is {value} and no {kinds:?}"));
    }
    if let (Value::Array(values), Some(items)) = (value, map.get("items")) {
        return values.iter().find_map(|value| wrong(items, value, root, &format!("{at}[]")));
    }
    let Value::Object(fields) = value else { return None };
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    if let Some(missing) =
        required.iter().filter_map(Value::as_str).find(|name| !fields.contains_key(*name))
    {
        return Some(format!("{at} has no {missing}"));
    }
    let known = schema["properties"].as_object()?;
    fields.iter().find_map(|(name, value)| match known.get(name) {
        None => Some(format!("{at}.{name} is not told")),
        Some(schema) => wrong(schema, value, root, &format!("{at}.{name}")),
    })
}

fn check(name: &str, value: &Value) {
    let root = wire::payload_schemas();
    let schema = &root["$defs"][name];
    assert!(schema.is_object(), "{name}");
    assert_eq!(wrong(schema, value, &root, name), None, "{value}");
}

#[tokio::test]
async fn what_is_sent_is_what_is_told() {
    let Some(broker) = Broker::start("") else { return };
    let mut me = Client::connect(broker.port, "me", &["promptd/n/#"], false).await;
    let mut board = Board::open(broker.port);
    me.until("promptd/n/availability", "online").await;
    for (topic, name) in [("promptd/n/info", "Info"), ("promptd/n/health", "Health")] {
        let mut later = Client::connect(broker.port, name, &[topic], false).await;
        check(name, &serde_json::from_slice(&later.next().await.payload).unwrap());
    }
    for (payload, pieces) in [
        (r#"{"id":"a","prompt":"hi","stream":true}"#, &["Hel", "lo"][..]),
        (r#"{"id":"b","prompt":"hi","max_bytes":80}"#, &["some more words than there is room for"]),
        (r#"{"id":"c","prompt":"hi","response_format":{"type":"json_object"}}"#, &["{\"a\":1}"]),
    ] {
        check("Request", &serde_json::from_str(payload).unwrap());
        me.ask("promptd/n/ask", payload).await;
        board.answer(pieces).await;
    }
    me.ask("promptd/n/ask", r#"{"id":"d","promt":"hi"}"#).await;
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    while !seen.contains_key("Error") {
        let message = me.next().await;
        let Ok(value) = serde_json::from_slice::<Value>(&message.payload) else { continue };
        let name = match topic(&message).split('/').nth(2).unwrap() {
            "stream" if value.get("end").is_some() => "StreamEnd",
            "stream" => "StreamPiece",
            "progress" => "Progress",
            "status" => "Status",
            "info" => "Info",
            "health" => "Health",
            "answer" if value.get("part").is_some() => "Part",
            "answer" if value["status"] == "error" => "Error",
            "answer" => "Answer",
            _ => continue,
        };
        // The status is told in its main fields; it has more.
        if name == "Status" {
            assert!(value["state"].is_string() && value["queue"]["waiting"].is_u64());
        } else {
            check(name, &value);
        }
        *seen.entry(name).or_default() += 1;
    }
    for name in ["Answer", "Part", "StreamPiece", "StreamEnd", "Progress"] {
        assert!(seen.contains_key(name), "{name} was never sent: {seen:?}");
    }
}

#[tokio::test]
async fn home_assistant_is_told_of_the_board_and_again_when_it_starts() {
    const CONFIG: &str = "homeassistant/device/promptd-n/config";
    let Some(broker) = Broker::start("") else { return };
    let prefix = Some("homeassistant".to_owned());
    let settings = Config { discovery_prefix: prefix, ..config(broker.port) };
    let board = Board::with(settings, Limits::default());
    let topics = [CONFIG, "promptd/n/availability"];
    let mut me = Client::connect(broker.port, "me", &topics, false).await;
    me.until("promptd/n/availability", "online").await;
    // Kept for a Home Assistant that comes later.
    let mut later = Client::connect(broker.port, "later", &[CONFIG], false).await;
    let told = later.next().await;
    assert!(told.retain);
    let device: Value = serde_json::from_slice(&told.payload).unwrap();
    assert_eq!(device["availability_topic"], "promptd/n/availability");
    assert_eq!(device["components"]["model_update"], Value::Null, "a model without versions");
    // As soon as it has versions there is an entity for them, and what it reads.
    board.tell_versions.send_replace(Some(wire::ModelVersions {
        title: "m".to_owned(),
        installed_version: "m@1".to_owned(),
        latest_version: "m@2".to_owned(),
    }));
    let told = later.next().await;
    let device: Value = serde_json::from_slice(&told.payload).unwrap();
    let update = &device["components"]["model_update"];
    assert_eq!((&update["platform"], &update["command_topic"]), (&json!("update"), &Value::Null));
    let mut reader =
        Client::connect(broker.port, "reader", &[update["state_topic"].as_str().unwrap()], false)
            .await;
    let info = reader.next().await.payload;
    let update = serde_json::from_slice::<Value>(&info).unwrap()["model_update"].take();
    assert_eq!(update, json!({"title": "m", "installed_version": "m@1", "latest_version": "m@2"}));
    // `make test-homeassistant` holds them to Home Assistant's own schemas.
    if let Some(file) = std::env::var_os("PROMPTD_TEST_DISCOVERY") {
        std::fs::write(&file, &told.payload).unwrap();
        std::fs::write(PathBuf::from(file).with_extension("info.json"), &info).unwrap();
    }
    let status = later.sender.publish("homeassistant/status", QoS::AtLeastOnce, false, "online");
    status.await.unwrap();
    assert_eq!(later.next().await.payload, told.payload);
    drop(board);
}

#[tokio::test]
async fn prompts_and_answers_in_cbor() {
    let Some(broker) = Broker::start("") else { return };
    let topics = ["promptd/n/answer/#", "promptd/n/stream/#", "promptd/n/availability"];
    let mut me = Client::connect(broker.port, "me", &topics, false).await;
    let mut board = Board::open(broker.port);
    me.until("promptd/n/availability", "online").await;
    let kind = Some("application/cbor".to_owned());
    let send = async |payload: Vec<u8>| {
        let properties =
            PublishProperties { content_type: kind.clone(), ..PublishProperties::default() };
        let sent = me.sender.publish_with_properties(
            "promptd/n/ask",
            QoS::AtLeastOnce,
            false,
            payload,
            properties,
        );
        sent.await.unwrap();
    };
    let long = "ä\n\"".repeat(60);
    send(json_to_cbor(&json!({"id": "a", "prompt": "hi", "stream": true}))).await;
    board.answer(&[&long]).await;
    send(json_to_cbor(&json!({"id": "b", "prompt": "hi", "max_bytes": 100}))).await;
    board.answer(&[&long]).await;
    send(b"\xa1\x61a".to_vec()).await;
    let (mut stream, mut parts, mut whole) = (0, String::new(), None);
    loop {
        let message = me.next().await;
        let properties = message.properties.clone().unwrap();
        assert_eq!(properties.content_type, kind, "{message:?}");
        assert_eq!(properties.payload_format_indicator, None, "it is no text");
        let value = cbor_to_json(&message.payload).unwrap();
        match topic(&message) {
            "promptd/n/stream/a" => stream += 1,
            "promptd/n/answer/a" => whole = Some(value),
            "promptd/n/answer/b" => {
                assert!(message.payload.len() <= 100);
                parts.push_str(value["text"].as_str().unwrap());
            }
            // What cannot be read has no id either.
            "promptd/n/answer" => {
                assert_eq!(value["code"], "bad_request");
                break;
            }
            other => panic!("{other}"),
        }
    }
    check("Answer", whole.as_ref().unwrap());
    assert_eq!((stream, &whole.unwrap()["text"], parts), (2, &json!(long), long.clone()));
}

#[test]
fn schemas_refuse_what_promptd_refuses() {
    let root = wire::payload_schemas();
    let schema = &root["$defs"]["Request"];
    let profiles = Profiles::default();
    let policies = Policies::fixed(profiles);
    let limits = Limits::default();
    for (request, right) in [
        (json!({"prompt": "hi"}), true),
        (json!({"prompt": "hi", "temperature": "warm"}), false),
        (json!({"prompt": "hi", "priority": "urgent"}), false),
        (json!({"prompt": "hi", "promt": "x"}), false),
        (json!({"prompt": "hi", "stop": ["a", "b"], "seed": -1, "v": 1}), true),
        (json!({"prompt": 7}), false),
    ] {
        assert_eq!(wrong(schema, &request, &root, "").is_none(), right, "{request}");
        let policy = policies.current();
        let context = wire::Context {
            profiles: &policy.profiles,
            readings: policies.readings(),
            limits: &limits,
            grant: policy.access.grant(promptd::identity::Who::default()),
            now: std::time::Instant::now(),
            door: promptd::request::Door::Mqtt,
        };
        let read = wire::parse_ask(request.to_string().as_bytes(), None, &context);
        assert_eq!(read.is_ok(), right, "{request}");
    }
}

#[test]
fn every_line_of_the_document_works() {
    if !document::has_tools() {
        return;
    }
    let Some(broker) = Broker::start("") else { return };
    let home = document::home(&broker);
    let plan = Plan::demo().with(&format!(
        "[mqtt]\nurl = \"mqtt://127.0.0.1:{}\"\nnode = \"n\"\nadmin = true\ndiscovery_prefix = \"homeassistant\"\n\
         [mqtt.fleet]\ngroup = \"promptd\"\n\
         [profiles.house]\nsystem = \"greenhouse temperature: 21.5 °C\"\n\
         [profiles.commands]\nregex = \"on|off\"\n",
        broker.port
    ));
    let service = Service::start(&plan).ready();
    let seen = document::shell(
        "mosquitto_sub -t promptd/n/availability -C 1 -W 60",
        home.path(),
        &service,
    );
    assert_eq!(output(seen).1, "online\n");
    let text = std::fs::read_to_string(docs("protocol.md")).unwrap();
    // A board that drains takes no more prompts, so that line is the last one.
    let (before, rest) = text.split_once("`drain` lets accepted prompts end").unwrap();
    let (_, rest) = rest.split_once("```console\n").unwrap();
    let (drain, after) = rest.split_once("```\n").unwrap();
    let count = document::run_lines(&[before, after].concat(), home.path(), &service);
    assert!(count >= 30, "the document has {count} lines to copy");
    let drain = format!("```console\n{drain}```\n");
    assert_eq!(document::run_lines(&drain, home.path(), &service), 1);
    let (status, log) = service.stop();
    assert!(status.success(), "{log}");
}
