//! The engine is killed while it answers: the stream goes on in a new engine, and nobody can tell from the text.

use serde_json::{Value, json};

use crate::support::service::{Plan, Service, signal};
use crate::support::{http, wait_for};

/// Beginnings that one model or another goes on about.
const BEGINNINGS: [&str; 6] = [
    "kitchen light: on\ngarage door: open\n",
    "garage",
    "The ",
    "a",
    "温室温度：",
    "cellar humidity: 4",
];

/// A prompt whose answer is long enough to be interrupted, and the answer undisturbed.
pub(crate) fn long_request(service: &Service, sampling: &Value) -> (Value, Value) {
    // Which prompt a model has much to say about is its own affair: the first one that will do is taken.
    for (seed, beginning) in (0..20).flat_map(|seed| BEGINNINGS.map(|beginning| (seed, beginning)))
    {
        let mut body = json!({"prompt": beginning, "max_tokens": 300, "seed": seed});
        body.as_object_mut().unwrap().extend(sampling.as_object().unwrap().clone());
        let answer = http::post(&service.socket(), "/v1/completions", &body);
        assert_eq!(answer.status, 200, "{}", answer.body);
        let answer = answer.json();
        if answer["usage"]["completion_tokens"].as_u64().unwrap() > 60 {
            body["stream"] = json!(true);
            return (body, answer["choices"][0].clone());
        }
    }
    panic!("the model has nothing long to say");
}

fn killed_in_mid_stream(sampling: &Value) {
    let service = Service::start(&Plan::demo()).ready();
    let (body, undisturbed) = long_request(&service, sampling);
    let first_engine = service.engine_pid().expect("an engine");

    let mut events = http::stream(&service.socket(), "/v1/completions", &body);
    let mut text = String::new();
    for event in events.by_ref().take(10) {
        text.push_str(event["choices"][0]["text"].as_str().unwrap_or(""));
    }
    signal(first_engine, "KILL");
    let (rest, finish) = http::collect(events);
    assert_eq!(text + &rest, undisturbed["text"].as_str().unwrap());
    assert_eq!(finish.as_deref(), undisturbed["finish_reason"].as_str());

    let second_engine = wait_for("the second engine", || service.engine_pid());
    assert_ne!(first_engine, second_engine);
    let metrics = http::get(&service.socket(), "/metrics").body;
    assert!(metrics.contains("promptd_engine_restarts_total 1"), "{metrics}");
}

#[test]
fn a_greedy_stream_survives_kill_9() {
    killed_in_mid_stream(&json!({"temperature": 0}));
}

#[test]
fn a_sampled_stream_survives_kill_9() {
    killed_in_mid_stream(&json!({"temperature": 1.0, "top_p": 0.95}));
}

/// What was delivered counts for the penalties, though another engine chose it.
#[test]
fn a_penalised_stream_survives_kill_9() {
    let penalties = json!({"temperature": 0.8, "repetition_penalty": 1.1, "presence_penalty": 0.3,
        "frequency_penalty": 0.2, "logit_bias": {"2": -100}});
    killed_in_mid_stream(&penalties);
}

#[test]
fn an_answer_in_a_form_survives_kill_9() {
    let schema = json!({"type": "array", "minItems": 9, "items": {"type": "object",
        "properties": {"device_in_the_house": {"type": "string", "maxLength": 12}, "on": {"type": "boolean"}},
        "required": ["device_in_the_house", "on"], "additionalProperties": false}});
    let format = json!({"type": "json_schema", "json_schema": {"schema": schema}});
    killed_in_mid_stream(
        &json!({"temperature": 0.7, "max_tokens": 450, "response_format": format}),
    );
}

#[test]
fn a_prompt_that_was_there_when_two_engines_died_is_given_up() {
    let service = Service::start(&Plan::demo()).ready();
    let (body, _) = long_request(&service, &json!({"temperature": 0}));
    let mut engines = Vec::new();
    let mut events = http::stream(&service.socket(), "/v1/completions", &body);
    for _ in 0..2 {
        // A piece of the answer would not tell: it may be one that an earlier engine wrote.
        let engine = wait_for("an engine that runs the prompt", || {
            let health = service.health()?;
            let runs = health["state"] == "ready" && health["slots"]["running"] == 1;
            service.engine_pid().filter(|pid| runs && !engines.contains(pid))
        });
        signal(engine, "KILL");
        engines.push(engine);
    }
    let error = events.find(|event| event.get("error").is_some()).expect("an error in the stream");
    assert_eq!(error["error"]["code"], "model_failed", "{error}");
    // The service goes on with a third engine.
    wait_for("promptd to be ready again", || (service.health()?["state"] == "ready").then_some(()));
    let answer =
        http::post(&service.socket(), "/v1/completions", &json!({"prompt": "a", "max_tokens": 2}));
    assert_eq!(answer.status, 200, "{}", answer.body);
}

#[test]
fn an_idle_engine_that_dies_is_replaced() {
    let service = Service::start(&Plan::demo()).ready();
    let engine = service.engine_pid().unwrap();
    signal(engine, "KILL");
    let next = wait_for("another engine", || service.engine_pid().filter(|pid| *pid != engine));
    wait_for("promptd to be ready again", || (service.health()?["state"] == "ready").then_some(()));
    assert_ne!(engine, next);
}

#[test]
fn sigterm_lets_running_answers_end() {
    let service = Service::start(&Plan::demo()).ready();
    let (body, undisturbed) = long_request(&service, &json!({"temperature": 0}));
    let mut events = http::stream(&service.socket(), "/v1/completions", &body);
    let mut text = events.next().unwrap()["choices"][0]["text"].as_str().unwrap_or("").to_owned();
    signal(service.pid(), "TERM");
    text.push_str(&http::collect(events).0);
    assert_eq!(text, undisturbed["text"].as_str().unwrap());
    let engine = service.engine_pid();
    let socket = service.socket();
    let mut service = service;
    let status = service.wait();
    assert_eq!(status.code(), Some(0), "{}", service.log());
    assert!(!socket.exists(), "the socket is left behind");
    if let Some(engine) = engine {
        wait_for("the engine's end", || {
            (!std::path::Path::new(&format!("/proc/{engine}")).exists()).then_some(())
        });
    }
}
