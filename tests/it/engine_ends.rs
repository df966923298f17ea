//! Ends of the real engine that no `kill -9` stands for: signals of its own faults, a model file that is cut short under its
//! memory map, an engine that stands still, and the orderly end of one that nobody needs.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::engine_death::long_request;
use crate::operator::{line, resident, rewrite};
use crate::support::service::{Plan, Service, signal};
use crate::support::{PATIENCE, http, wait_for};

/// Asks for a stream, lets something befall the engine in its middle, and gives the whole text and how it ended.
fn befallen(service: &Service, body: &Value, what: impl FnOnce(u32)) -> (String, Option<String>) {
    // Where the answer before was quicker than its engine's end, the next engine is only just begun.
    let engine = wait_for("an engine", || service.engine_pid());
    let mut events = http::stream(&service.socket(), "/v1/completions", body);
    let mut text = String::new();
    // As many steps as the supervisor wants to see before it believes its measure of the speed.
    for event in events.by_ref().take(20) {
        text.push_str(event["choices"][0]["text"].as_str().unwrap_or(""));
    }
    what(engine);
    let (rest, finish) = http::collect(events);
    (text + &rest, finish)
}

/// Sends a signal until it has ended the process: the first of some is caught.
fn end_by(pid: u32, name: &str) {
    let deadline = Instant::now() + PATIENCE;
    while Path::new(&format!("/proc/{pid}")).exists() {
        let mut kill = Command::new("kill");
        let _ = kill.args([format!("-{name}"), pid.to_string()]).stderr(Stdio::null()).status();
        assert!(Instant::now() < deadline, "{pid} does not end by SIG{name}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_stream_survives_the_signals_of_an_engines_own_faults() {
    let service = Service::start(&Plan::demo()).ready();
    let (body, undisturbed) = long_request(&service, &json!({"temperature": 0}));
    for name in ["SEGV", "BUS", "ABRT"] {
        let (text, finish) = befallen(&service, &body, |engine| end_by(engine, name));
        assert_eq!(text, undisturbed["text"].as_str().unwrap(), "SIG{name}");
        assert_eq!(finish.as_deref(), undisturbed["finish_reason"].as_str(), "SIG{name}");
        let told = format!("the engine was killed by SIG{name}");
        assert!(service.log().contains(&told), "no `{told}` in\n{}", service.log());
    }
}

#[test]
fn an_engine_that_stands_still_is_replaced_by_its_measured_speed() {
    let service = Service::start(&Plan::demo()).ready();
    let (body, undisturbed) = long_request(&service, &json!({"temperature": 0}));
    let mut stopped = Instant::now();
    let (text, _) = befallen(&service, &body, |engine| {
        signal(engine, "STOP");
        stopped = Instant::now();
    });
    let took = stopped.elapsed();
    assert_eq!(text, undisturbed["text"].as_str().unwrap());
    let log = service.log();
    assert!(log.contains("the engine was silent for"), "{log}");
    // Before anything is measured it may be silent for a minute.
    assert!(took < Duration::from_secs(50), "{took:?}");
    println!("an engine that was stopped was noticed, and the stream whole, after {took:?}");
}

/// A folder with the demo model, whose files may be damaged.
fn copy_of_the_model() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(crate::support::demo_model()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    folder
}

#[test]
fn a_model_file_that_is_cut_short_under_its_map_takes_nothing_else_down() {
    let model = copy_of_the_model();
    let weights = model.path().join("model.onnx.data");
    let service = Service::start(&Plan::of_model(model.path())).ready();
    let (body, undisturbed) = long_request(&service, &json!({"temperature": 0}));

    let mut events = http::stream(&service.socket(), "/v1/completions", &body);
    events.by_ref().take(20).for_each(drop);
    std::fs::OpenOptions::new().write(true).open(&weights).unwrap().set_len(4096).unwrap();
    let error = events.find(|event| event.get("error").is_some());
    let error = error.expect("no engine can end this answer");
    assert_eq!(error["error"]["code"], "model_failed", "{error}");
    let health = wait_for("the reason", || {
        service.health().filter(|health| health["state"] == "model_failed")
    });
    assert!(health["message"].as_str().unwrap().contains("model.onnx.data"), "{health}");
    // Whichever comes first: the next page of the map, or the next look at the file.
    let log = service.log();
    let told = ["the engine was killed by SIGBUS", "while the model was in use"];
    assert!(told.iter().any(|told| log.contains(told)), "{log}");
    let refused = http::post(&service.socket(), "/v1/completions", &json!({"prompt": "a"}));
    assert_eq!(refused.json()["error"]["code"], "model_failed", "{}", refused.body);
    let refused = line(&service, r#"{"prompt":"a"}"#);
    assert_eq!(refused["code"], "model_failed", "{refused}");

    // As models are installed: written beside it, then renamed.
    let new = model.path().join("new");
    std::fs::copy(crate::support::demo_model().join("model.onnx.data"), &new).unwrap();
    std::fs::rename(&new, &weights).unwrap();
    signal(service.pid(), "HUP");
    wait_for("the mended model", || (service.health()?["state"] == "ready").then_some(()));
    let (text, _) = befallen(&service, &body, |_| {});
    assert_eq!(text, undisturbed["text"].as_str().unwrap());
}

#[test]
fn a_model_that_nobody_needs_leaves_the_memory_and_comes_back_when_asked() {
    let service = Service::start(&Plan::demo());
    wait_for("the doors", || service.health());
    let before = resident(service.pid());
    rewrite(&service, |old| old.replace("[runtime]", "keep_loaded_seconds = 5\n[runtime]"));
    let service = service.ready();
    signal(service.pid(), "HUP");
    for _ in 0..3 {
        let body = json!({"prompt": "The ", "max_tokens": 20});
        assert_eq!(http::post(&service.socket(), "/v1/completions", &body).status, 200);
        assert_eq!(line(&service, r#"{"prompt":"The ","max_tokens":20}"#)["status"], "ok");
    }
    let engine = service.engine_pid().expect("an engine");
    let loaded = resident(service.pid()) + resident(engine);
    wait_for("the unload", || (service.health()?["state"] == "unloaded").then_some(()));
    // With the process its memory is the system's again.
    let is_gone = || !Path::new(&format!("/proc/{engine}")).exists();
    wait_for("the engine's end", || is_gone().then_some(()));
    let after = resident(service.pid());
    // The doors have allocated their first buffers meanwhile.
    assert!(after < before + 6144, "{before} KiB before, {loaded} KiB loaded, {after} KiB after");
    println!("{before} KiB before loading, {loaded} KiB loaded, {after} KiB after the unload");

    let answer = line(&service, r#"{"prompt":"The ","max_tokens":4}"#);
    assert_eq!(answer["status"], "ok", "{answer}");
    assert_eq!(service.health().unwrap()["state"], "ready");
}
