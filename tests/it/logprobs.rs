//! Log probabilities and the repeated prompt, as clients of each door see them.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;

use promptd::request::{Candidate, Event, TokenLogprob};
use serde_json::{Value, json};

use crate::support::broker::{self, Board, Broker, Client};
use crate::support::door::finished;
use crate::support::service::{Plan, Service};
use crate::support::{PATIENCE, http};

fn body(more: &Value) -> Value {
    let mut body = json!({"max_tokens": 12, "temperature": 0});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// The choices of a stream, in order.
fn choices(service: &Service, target: &str, body: &Value) -> Vec<Value> {
    let mut body = body.clone();
    body["stream"] = json!(true);
    http::stream(&service.socket(), target, &body)
        .map(|chunk| chunk["choices"][0].clone())
        .collect()
}

fn text_of(tokens: &[Value]) -> String {
    let bytes = tokens.iter().flat_map(|token| token["bytes"].as_array().unwrap());
    String::from_utf8(bytes.map(|byte| u8::try_from(byte.as_u64().unwrap()).unwrap()).collect())
        .unwrap()
}

#[test]
fn a_chat_tells_what_the_model_thought_of_each_token() {
    let service = Service::start(&Plan::demo()).ready();
    let messages = json!([{"role": "user", "content": "What is on?"}]);
    let asked = body(&json!({"messages": messages, "logprobs": true, "top_logprobs": 2}));
    let target = "/v1/chat/completions";
    let whole = http::post(&service.socket(), target, &asked).json();
    let choice = &whole["choices"][0];
    let tokens = choice["logprobs"]["content"].as_array().unwrap();
    assert_eq!(choice["logprobs"]["refusal"], Value::Null);
    let said = choice["message"]["content"].as_str().unwrap();
    assert_eq!(text_of(tokens).trim_start(), said.trim_start());
    for token in tokens {
        assert!(token["logprob"].as_f64().unwrap() <= 0.0, "{token}");
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!((top.len(), &top[0]["token"]), (2, &token["token"]));
        assert!(top[0]["logprob"].as_f64() >= top[1]["logprob"].as_f64(), "{token}");
    }
    let streamed: Vec<Value> = choices(&service, target, &asked)
        .iter()
        .flat_map(|choice| choice["logprobs"]["content"].as_array().cloned().unwrap_or_default())
        .collect();
    assert_eq!(&streamed, tokens);
    // Nobody gets them unasked.
    let plain = http::post(&service.socket(), target, &body(&json!({"messages": messages}))).json();
    assert_eq!(plain["choices"][0]["logprobs"], Value::Null);
    assert_eq!(plain["choices"][0]["message"], choice["message"]);
}

#[test]
fn a_completion_tells_it_in_its_own_form_and_repeats_the_prompt() {
    let service = Service::start(&Plan::demo()).ready();
    let target = "/v1/completions";
    let asked = body(&json!({"prompt": "The lamp is", "logprobs": 2}));
    let whole = http::post(&service.socket(), target, &asked).json();
    let choice = &whole["choices"][0];
    let (told, text) = (&choice["logprobs"], choice["text"].as_str().unwrap());
    let tokens = told["tokens"].as_array().unwrap();
    let joined: String = tokens.iter().map(|token| token.as_str().unwrap()).collect();
    assert_eq!(joined, text);
    for name in ["token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(told[name].as_array().unwrap().len(), tokens.len(), "{name}");
    }
    let mut before = 0;
    for (token, offset) in tokens.iter().zip(told["text_offset"].as_array().unwrap()) {
        assert_eq!(offset, before);
        before += token.as_str().unwrap().chars().count();
    }
    assert!(told["top_logprobs"][0].as_object().unwrap().contains_key(tokens[0].as_str().unwrap()));

    let asked = body(&json!({"prompt": "The lamp is", "echo": true}));
    let echoed = http::post(&service.socket(), target, &asked).json();
    assert_eq!(echoed["choices"][0]["text"], format!("The lamp is{text}"));
    let pieces = choices(&service, target, &asked);
    assert_eq!(pieces[0]["text"], "The lamp is");
    let streamed: String = pieces.iter().map(|choice| choice["text"].as_str().unwrap()).collect();
    assert_eq!(streamed, format!("The lamp is{text}"));
    assert_eq!(echoed["usage"]["completion_tokens"], whole["usage"]["completion_tokens"]);
}

#[test]
fn a_line_tells_it_too() {
    let service = Service::start(&Plan::demo()).ready();
    let mut stream = UnixStream::connect(service.lines()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let asked = body(&json!({"prompt": "What is on?", "logprobs": true, "stream": true}));
    writeln!(stream, "{asked}").unwrap();
    let mut pieces = Vec::new();
    for line in BufReader::new(stream).lines() {
        let line: Value = serde_json::from_str(&line.unwrap()).unwrap();
        if line.get("status").is_none() {
            pieces.extend(line["logprobs"].as_array().unwrap().clone());
            continue;
        }
        assert_eq!(line["status"], "ok", "{line}");
        assert_eq!(line["logprobs"], json!(pieces));
        assert_eq!(text_of(&pieces).trim_start(), line["text"].as_str().unwrap().trim_start());
        return;
    }
    panic!("no answer came");
}

#[tokio::test]
async fn an_answer_over_mqtt_tells_it_too() {
    let Some(broker) = Broker::start("") else { return };
    let mut board = Board::open(broker.port);
    let topics = ["promptd/n/availability", "promptd/n/stream/a", "promptd/n/answer/a"];
    let mut me = Client::connect(broker.port, "me", &topics, false).await;
    me.until("promptd/n/availability", "online").await;
    let asked = r#"{"id":"a","prompt":"hi","stream":true,"logprobs":true,"top_logprobs":1}"#;
    me.ask("promptd/n/ask", asked).await;
    let (submission, verdict) = board.submitted().await;
    assert_eq!(submission.request.logprobs, Some(1));
    let events = verdict.accept(7);
    let yes = Candidate { text: "Yes".to_owned(), bytes: b"Yes".to_vec(), logprob: -0.5 };
    let token = TokenLogprob { chosen: yes.clone(), top: vec![yes], offset: 0 };
    events.send(Event::Delta { text: "Yes".into(), tokens: vec![9], logprobs: vec![token] });
    events.send(finished());
    let told = json!([{"token": "Yes", "logprob": -0.5, "bytes": [89, 101, 115],
        "top_logprobs": [{"token": "Yes", "logprob": -0.5, "bytes": [89, 101, 115]}]}]);
    let piece = broker::json(&me.next().await);
    assert_eq!(piece, json!({"seq": 0, "d": "Yes", "logprobs": told}));
    let answer = loop {
        let message = me.next().await;
        if broker::topic(&message) == "promptd/n/answer/a" {
            break broker::json(&message);
        }
    };
    assert_eq!((&answer["text"], &answer["logprobs"]), (&json!("Yes"), &told));
}
