//! Answers against an independent reference: golden vectors made with double precision, played over the socket.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::service::{Plan, Service};
use crate::support::{http, material};

/// What one case asks: the path and the body without `stream`.
fn request(case: &Value) -> (&'static str, Value) {
    let mut body = json!({"model": "default", "temperature": 0, "max_tokens": case["max_tokens"].as_u64().unwrap_or(64)});
    if case["stop"].is_array() {
        body["stop"] = case["stop"].clone();
    }
    if case["messages"].is_array() {
        body["messages"] = case["messages"].clone();
        return ("/v1/chat/completions", body);
    }
    if let Some(grammar) = case.get("grammar") {
        body["max_tokens"] = json!(150);
        match case["kind"].as_str() {
            Some("regex") => body["regex"] = grammar.clone(),
            _ => {
                body["response_format"] =
                    json!({"type": "json_schema", "json_schema": {"name": "x", "schema": grammar}});
            }
        }
    }
    body["prompt"] = case["prompt"].clone();
    ("/v1/completions", body)
}

/// Plays a file and returns how many cases it had.
fn play(service: &Service, file: &Path) -> usize {
    let text =
        std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let mut played = 0;
    for line in text.lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        let is_text = case["prompt"].is_string() || case["messages"].is_array();
        // Cases given as bare token ids are not what OpenAI's API can ask.
        if !is_text {
            continue;
        }
        let (target, mut body) = request(&case);
        let wanted = (case["text"].as_str().unwrap(), case["finish_reason"].as_str().unwrap());
        // Where the reference was cut off in the middle of a form, ours ends in it.
        let cut = case.get("grammar").is_some() && wanted.1 == "length";
        let same = |text: &str, finish: &str| {
            if !cut {
                return (text, finish) == wanted;
            }
            let common = text.chars().zip(wanted.0.chars()).take_while(|(a, b)| a == b).count();
            let is_json = serde_json::from_str::<Value>(text).is_ok();
            common > wanted.0.len() / 2 && is_json && finish == wanted.1
        };

        let answer = http::post(&service.socket(), target, &body);
        assert_eq!(answer.status, 200, "{} {}: {}", file.display(), case["id"], answer.body);
        let answer = answer.json();
        let choice = &answer["choices"][0];
        let text = choice["message"]["content"].as_str().or(choice["text"].as_str()).unwrap();
        let finish = choice["finish_reason"].as_str().unwrap();
        assert!(
            same(text, finish),
            "{} {}: {text} {finish} {wanted:?}",
            file.display(),
            case["id"]
        );
        if let Some(ids) = case["prompt_ids"].as_array() {
            assert_eq!(
                answer["usage"]["prompt_tokens"],
                ids.len(),
                "{} {}",
                file.display(),
                case["id"]
            );
        }

        body["stream"] = json!(true);
        let (text, finish) = http::collect(http::stream(&service.socket(), target, &body));
        let finish = finish.unwrap();
        assert!(same(&text, &finish), "{} {} streamed: {text}", file.display(), case["id"]);
        played += 1;
    }
    played
}

fn play_material(model: &str, files: &[&str]) {
    let Some(material) = material() else { return };
    let service = Service::start(&Plan::of_model(&material.join("models").join(model))).ready();
    for file in files {
        let played = play(&service, &material.join("golden").join(file));
        println!("{model}: {played} cases of {file}, whole and streamed");
        assert!(played > 3, "{file} has hardly a case");
    }
}

#[test]
fn the_demo_model_answers_as_its_reference() {
    let service = Service::start(&Plan::demo()).ready();
    let played = play(&service, &crate::support::demo_model().join("golden.jsonl"));
    assert!(played >= 30, "only {played} cases");
}

#[test]
fn stories_in_single_precision() {
    let files = [
        "stories260k-genai-fp32.jsonl",
        "stories260k-chat.jsonl",
        "stories260k-stop.jsonl",
        "stories260k-constrained.jsonl",
    ];
    play_material("stories260k-genai-fp32", &files);
}

#[test]
fn stories_in_four_bits() {
    play_material("stories260k-genai-int4", &["stories260k-genai-int4.jsonl"]);
}

#[test]
fn stories_without_contrib_operators() {
    let files =
        ["stories260k-plain-fp32.jsonl", "stories260k-chat.jsonl", "stories260k-stop.jsonl"];
    play_material("stories260k-plain-fp32", &files);
}

#[test]
fn several_prompts_at_once_do_not_mix() {
    let service = Service::start(&Plan::demo()).ready();
    let text = std::fs::read_to_string(crate::support::demo_model().join("golden.jsonl")).unwrap();
    let cases: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    std::thread::scope(|scope| {
        for worker in 0..8 {
            let (service, cases) = (&service, &cases);
            // Each worker begins elsewhere, so that different prompts meet in the same batch.
            let mine = cases.iter().cycle().skip(worker * 5).take(cases.len());
            std::thread::Builder::new()
                .spawn_scoped(scope, move || {
                    for case in mine {
                        let (target, body) = request(case);
                        let answer = http::post(&service.socket(), target, &body).json();
                        let choice = &answer["choices"][0];
                        let text =
                            choice["message"]["content"].as_str().or(choice["text"].as_str());
                        assert_eq!(
                            text,
                            case["text"].as_str(),
                            "{} beside others: {answer}",
                            case["id"]
                        );
                    }
                })
                .unwrap();
        }
    });
}
