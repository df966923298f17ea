//! Calls of tools over HTTP: what clients send and read, and that arguments are valid whatever the model wants.

use promptd::request::{CallStyle, ToolChoice};
use serde_json::{Value, json};

use crate::support::door::{Door, Kind, delta, finished};
use crate::support::http;
use crate::support::raw_http::{Answer, chat};
use crate::support::service::{Plan, Service};

const CALL: [&str; 4] = [
    "Wait.\n<tool",
    "_call>\n{\"name\": \"lamp\", \"argum",
    "ents\": {\"on\": tr",
    "ue}}\n</tool_call>",
];

fn lamp() -> Value {
    json!([{"type": "function", "function": {"name": "lamp", "description": "Switch the lamp.", "strict": true,
        "parameters": {"type": "object", "additionalProperties": false, "required": ["on", "level"], "properties": {
            "on": {"type": "boolean"}, "level": {"type": "integer", "minimum": 0, "maximum": 9}}}}}])
}

#[tokio::test]
async fn calls_whole_and_streamed() {
    let mut door = Door::open(Kind::Http);
    for stream in [false, true] {
        let mut client = door.connect().await;
        client.send(chat(&json!({"tools": lamp(), "stream": stream}))).await;
        let (submission, verdict) = door.submitted().await;
        assert_eq!(submission.request.tools.unwrap().choice, ToolChoice::Auto);
        let events = verdict.accept_with(7, Some(CallStyle::Hermes));
        for piece in CALL {
            events.send(delta(piece));
        }
        events.send(finished());
        let answer = Answer::read(&client.rest().await);
        let (said, calls, reason) = if stream {
            joined(&answer.events())
        } else {
            let choice = answer.json()["choices"][0].take();
            let message = &choice["message"];
            (
                message["content"].clone(),
                message["tool_calls"].clone(),
                choice["finish_reason"].clone(),
            )
        };
        assert_eq!((said, reason), (json!("Wait."), json!("tool_calls")), "{answer:?}");
        assert_eq!(calls[0]["function"], json!({"name": "lamp", "arguments": "{\"on\": true}"}));
        assert_eq!(
            (&calls[0]["type"], calls[0]["id"].as_str().map(str::len)),
            (&json!("function"), Some(9))
        );
    }
}

#[tokio::test]
async fn a_conversation_with_calls_comes_back() {
    let mut door = Door::open(Kind::Http);
    let call =
        json!({"id": "c1", "type": "function", "function": {"name": "lamp", "arguments": "{}"}});
    let messages = json!([
        {"role": "user", "content": "On!"},
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "done"},
    ]);
    let mut client = door.connect().await;
    client.send(chat(&json!({"messages": messages, "tools": lamp()}))).await;
    let promptd::request::Input::Chat(read) = door.answer(&["It is on."]).await.request.input
    else {
        panic!("no chat");
    };
    assert_eq!((read[1].content.as_str(), read[1].calls[0].name.as_str()), ("", "lamp"));
    assert_eq!(read[2].call_id.as_deref(), Some("c1"));
    let answer = Answer::read(&client.rest().await).json();
    assert_eq!(answer["choices"][0]["message"]["content"], "It is on.");
    assert_eq!(answer["choices"][0]["message"].get("tool_calls"), None);
}

#[tokio::test]
async fn a_call_that_is_cut_off_is_an_error() {
    let mut door = Door::open(Kind::Http);
    for stream in [false, true] {
        let mut client = door.connect().await;
        client.send(chat(&json!({"tools": lamp(), "stream": stream}))).await;
        let events = door.submitted().await.1.accept_with(7, Some(CallStyle::Hermes));
        for piece in &CALL[..3] {
            events.send(delta(piece));
        }
        events.send(finished());
        let answer = Answer::read(&client.rest().await);
        let error = if stream { answer.events().pop().unwrap() } else { answer.json() };
        assert_eq!(error["error"]["code"], "bad_request", "{answer:?}");
    }
}

/// Content, calls and reason of a stream, as clients put them together.
fn joined(events: &[Value]) -> (Value, Value, Value) {
    let (mut said, mut calls, mut reason) = (String::new(), Vec::<Value>::new(), Value::Null);
    for choice in events.iter().filter_map(|event| event["choices"].get(0)) {
        said.push_str(choice["delta"]["content"].as_str().unwrap_or_default());
        for piece in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
            if piece.get("id").is_some() {
                assert_eq!(piece["index"], calls.len());
                calls.push(piece.clone());
            } else {
                let function = &mut calls.last_mut().unwrap()["function"];
                let more = piece["function"]["arguments"].as_str().unwrap();
                function["arguments"] =
                    format!("{}{more}", function["arguments"].as_str().unwrap()).into();
            }
        }
        if !choice["finish_reason"].is_null() {
            reason = choice["finish_reason"].clone();
        }
    }
    (said.into(), calls.into(), reason)
}

/// The real engine and the demo model, whose template knows no tools.
#[test]
fn real_calls_are_valid() {
    let service = Service::start(&Plan::demo()).ready();
    let socket = service.socket();
    let ask = |more: Value| {
        let mut body = json!({"messages": [{"role": "user", "content": "Turn on the kitchen light."}], "tools": lamp()});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let named = json!({"type": "function", "function": {"name": "lamp"}});
    for choice in [json!("required"), named] {
        for seed in 0..4 {
            let hot =
                json!({"tool_choice": choice, "temperature": 1.5, "seed": seed, "max_tokens": 200});
            let answer = http::post(&socket, "/v1/chat/completions", &ask(hot.clone()));
            assert_eq!(answer.status, 200, "{}", answer.body);
            let choice = &answer.json()["choices"][0];
            let calls = choice["message"]["tool_calls"].as_array().unwrap();
            for call in calls {
                let arguments: Value =
                    serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
                assert!(arguments["on"].is_boolean(), "{arguments}");
                assert!((0..10).contains(&arguments["level"].as_i64().unwrap()), "{arguments}");
                assert_eq!(arguments.as_object().unwrap().len(), 2);
            }
            let mut streamed = hot;
            streamed["stream"] = true.into();
            let events: Vec<Value> =
                http::stream(&socket, "/v1/chat/completions", &ask(streamed)).collect();
            let (_, again, _) = joined(&events);
            let function = |calls: &Value| -> Vec<Value> {
                calls.as_array().unwrap().iter().map(|call| call["function"].clone()).collect()
            };
            assert_eq!(function(&again), function(&choice["message"]["tool_calls"]));
        }
    }
    // No call can end within three tokens; words can.
    let answer = http::post(
        &socket,
        "/v1/chat/completions",
        &ask(json!({"tool_choice": "required", "max_tokens": 3})),
    );
    assert_eq!((answer.status, &answer.json()["error"]["param"]), (400, &json!("max_tokens")));
    let answer = http::post(&socket, "/v1/chat/completions", &ask(json!({"tool_choice": "none"})));
    let message = answer.json()["choices"][0]["message"].take();
    assert!(answer.status == 200 && message.get("tool_calls").is_none(), "{}", answer.body);
}

/// What Home Assistant's llama.cpp integration sends when it is set up: a tool and three tokens.
#[test]
fn home_assistants_probe() {
    let service = Service::start(&Plan::demo()).ready();
    let socket = service.socket();
    let models = http::get(&socket, "/v1/models").json();
    for stream in [false, true] {
        let body = json!({
            "model": models["data"][0]["id"],
            "messages": [{"role": "system", "content": "You are a helpful assistant."},
                {"role": "user", "content": "What is the capital of France?"}],
            "tools": [{"type": "function", "function": {"name": "test_function", "description": "Test function.",
                "parameters": {"type": "object", "properties": {}}}}],
            "max_tokens": 3, "stream": stream,
        });
        if stream {
            let events: Vec<Value> = http::stream(&socket, "/v1/chat/completions", &body).collect();
            let (_, _, reason) = joined(&events);
            assert!(reason == "length" || reason == "stop", "{reason}");
        } else {
            let answer = http::post(&socket, "/v1/chat/completions", &body);
            assert_eq!(answer.status, 200, "{}", answer.body);
            let reason = answer.json()["choices"][0]["finish_reason"].take();
            assert!(reason == "length" || reason == "stop", "{reason}");
        }
    }
}
