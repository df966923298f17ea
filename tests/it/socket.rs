//! HTTP on the Unix socket, as bytes: what clients send, and what they read.

use std::time::Duration;

use promptd::request::{Code, Constraint, Event, Input, Refusal};
use promptd::scheduler::scripted::Call;
use promptd::scheduler::{State, Status};
use promptd::socket::Patience;
use promptd::wire::Limits;
use serde_json::json;

use crate::support::door::{Door, Kind, delta, finished, prefill, soon};
use crate::support::raw_http::{Answer, answered, ask, chat, request};

#[tokio::test]
async fn a_whole_chat() {
    let mut door = Door::open(Kind::Http);
    let mut client = door.connect().await;
    client.send(chat(&json!({"max_tokens": 9, "user": "me"}))).await;
    let submission = door.answer(&["Hel", "lo 你", "好"]).await;
    let uid = rustix::process::geteuid().as_raw();
    assert_eq!(submission.identity.0, format!("uid:{uid}"));
    assert_eq!(submission.request.max_tokens, Some(9));
    let answer = Answer::read(&client.rest().await);
    assert_eq!(answer.status, 200);
    assert!(answer.head.contains("content-type: application/json"), "{}", answer.head);
    let mut body = answer.json();
    let id = body["id"].take();
    assert!(id.as_str().unwrap().starts_with("chatcmpl-"), "{id}");
    assert!(body["created"].take().as_u64().unwrap() > 1_600_000_000);
    assert_eq!(
        body,
        json!({
            "id": null, "object": "chat.completion", "created": null, "model": "tiny model",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello 你好", "refusal": null},
                "logprobs": null, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9,
                "prompt_tokens_details": {"cached_tokens": 2}},
            "promptd": {"seed": 7, "ms": {"queue": 1, "prefill": 20, "decode": 300}, "tps": 10.0, "cached": 2},
        })
    );
}

#[tokio::test]
async fn a_streamed_chat_comes_piece_by_piece() {
    let mut door = Door::open(Kind::Http);
    let mut client = door.connect().await;
    client.send(chat(&json!({"stream": true, "stream_options": {"include_usage": true}}))).await;
    let events = door.accepted().await;
    // The role is there before any token is.
    let mut text = client.until("\"role\":\"assistant\"").await;
    assert!(text.contains("content-type: text/event-stream"), "{text}");
    events.send(prefill());
    for piece in ["Hel", "lo", "\n\n", "你好"] {
        events.send(delta(piece));
        // Each piece is read before the next one is made: nothing is held back.
        text += &client.until(&serde_json::to_string(piece).unwrap()).await;
    }
    events.send(delta(""));
    events.send(finished());
    text += &client.rest().await;
    let events = Answer::read(&text).events();
    let content: String = events
        .iter()
        .filter_map(|event| event["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(content, "Hello\n\n你好");
    let (usage, chunks) = events.split_last().unwrap();
    assert!(
        chunks
            .iter()
            .all(|chunk| chunk["object"] == "chat.completion.chunk" && chunk["usage"].is_null())
    );
    assert_eq!(
        chunks.last().unwrap()["choices"][0],
        json!({"index": 0, "delta": {}, "logprobs": null, "finish_reason": "stop"})
    );
    assert_eq!(
        (&usage["choices"], &usage["usage"]["total_tokens"], &usage["promptd"]["seed"]),
        (&json!([]), &json!(9), &json!(7))
    );
    assert_eq!(events.len(), 1 + 4 + 1 + 1);
}

#[tokio::test]
async fn completions_whole_and_streamed() {
    let mut door = Door::open(Kind::Http);
    let whole = request("POST", "/v1/completions", r#"{"prompt":["Once"],"max_tokens":4}"#);
    let answer = answered(&mut door, &whole, &[" upon", " a"]).await.json();
    assert_eq!(
        (&answer["object"], &answer["choices"][0]["text"]),
        (&json!("text_completion"), &json!(" upon a"))
    );
    assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"));
    let mut client = door.connect().await;
    client.send(request("POST", "/v1/completions", r#"{"prompt":"Once","stream":true}"#)).await;
    let submission = door.answer(&[" upon", " a"]).await;
    assert_eq!(submission.request.input, Input::Completion("Once".to_owned()));
    let events = Answer::read(&client.rest().await).events();
    let text: String =
        events.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect();
    assert_eq!(text, " upon a");
    assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "stop");
    assert!(events.iter().all(|event| event.get("usage").is_none()));
}

#[tokio::test]
async fn a_profile_by_name() {
    let mut door = Door::open(Kind::Http);
    let mut client = door.connect().await;
    client.send(chat(&json!({"profile": "lights"}))).await;
    let submission = door.answer(&["{}"]).await;
    assert_eq!(
        submission.request.constraint,
        Constraint::JsonSchema("{\"type\":\"object\"}".to_owned())
    );
    assert_eq!(Answer::read(&client.rest().await).status, 200);
}

#[tokio::test]
async fn two_requests_on_one_connection() {
    let mut door = Door::open(Kind::Http);
    let mut client = door.connect().await;
    for text in ["one", "two"] {
        client.send(chat(&json!({})).replace("Connection: close\r\n", "")).await;
        door.answer(&[text]).await;
        let answer = client.until("}}\n").await;
        assert!(answer.contains(&format!("\"content\":\"{text}\"")), "{answer}");
    }
}

#[tokio::test]
async fn a_silent_stream_says_that_it_is_alive() {
    let mut door = Door::with(
        Kind::Http,
        Patience { ping: Duration::from_millis(20), ..Patience::default() },
        Limits::default(),
    );
    let mut client = door.connect().await;
    client.send(chat(&json!({"stream": true}))).await;
    let events = door.accepted().await;
    let mut text = client.until(": ping\n\n").await;
    text += &client.until(": ping\n\n").await;
    events.send(delta("a"));
    events.send(finished());
    text += &client.rest().await;
    let answer = Answer::read(&text);
    let content: String = answer
        .events()
        .iter()
        .filter_map(|event| event["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(content, "a");
}

#[tokio::test]
async fn refusals_keep_their_numbers() {
    let mut door = Door::open(Kind::Http);
    for (refusal, status, kind, more) in [
        (
            Refusal::new(Code::Busy, "full").with_retry_after(Duration::from_millis(4100)),
            503,
            "server_error",
            json!({"retry_after_ms": 4100}),
        ),
        (
            Refusal::new(Code::ContextLengthExceeded, "long")
                .with_limit(512, 600)
                .with_param("messages"),
            400,
            "invalid_request_error",
            json!({"limit": 512, "have": 600, "param": "messages"}),
        ),
        (Refusal::new(Code::ModelLoading, "soon"), 503, "server_error", json!({})),
        (Refusal::new(Code::RateLimited, "often"), 429, "rate_limit_error", json!({})),
        (Refusal::new(Code::Unsupported, "never"), 501, "invalid_request_error", json!({})),
    ] {
        let mut client = door.connect().await;
        client.send(chat(&json!({"stream": true}))).await;
        let mut expected = json!({"message": refusal.message, "type": kind, "param": null, "code": refusal.code.as_str()});
        expected.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let waits = refusal.retry_after.is_some();
        door.submitted().await.1.refuse(refusal);
        let answer = Answer::read(&client.rest().await);
        assert_eq!((answer.status, answer.json()), (status, json!({ "error": expected })));
        assert_eq!(answer.head.contains("retry-after: 5"), waits, "{}", answer.head);
    }
}

#[tokio::test]
async fn failures_after_acceptance() {
    let mut door = Door::open(Kind::Http);
    let mut client = door.connect().await;
    client.send(chat(&json!({}))).await;
    let events = door.accepted().await;
    events.send(Event::Failed(Refusal::new(Code::Timeout, "late")));
    let answer = Answer::read(&client.rest().await);
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (504, &json!("timeout")));

    for lost in [false, true] {
        let mut client = door.connect().await;
        client.send(chat(&json!({"stream": true}))).await;
        let events = door.accepted().await;
        events.send(delta("a"));
        if !lost {
            events.send(Event::Failed(Refusal::new(Code::Cancelled, "gone")));
        }
        drop(events);
        let events = Answer::read(&client.rest().await).events();
        let code = if lost { "internal" } else { "cancelled" };
        assert_eq!(events.last().unwrap()["error"]["code"], code);
        assert_eq!(events[events.len() - 2]["choices"][0]["delta"]["content"], "a");
    }
}

#[tokio::test]
async fn bad_requests_name_the_field() {
    let door = Door::open(Kind::Http);
    for (fields, status, code, param) in [
        (json!({"max_tokens": 0}), 400, "bad_request", json!("max_tokens")),
        (json!({"temperature": "hot"}), 400, "bad_request", json!("temperature")),
        (json!({"messages": [{"role": "user"}]}), 400, "bad_request", json!("messages[0].content")),
        (json!({"max_token": 1}), 400, "bad_request", json!("max_token")),
        (json!({"tools": [{}]}), 400, "bad_request", json!("tools[0].type")),
        (json!({"tools": [{"type": "custom"}]}), 501, "unsupported", json!("tools[0].type")),
        (json!({"tool_choice": "required"}), 400, "bad_request", json!("tool_choice")),
        (json!({"profile": "nobody"}), 404, "not_found", json!("profile")),
        (json!({"model": "gpt-4"}), 404, "not_found", json!("model")),
    ] {
        let answer = ask(&door, chat(&fields)).await;
        let error = &answer.json()["error"];
        assert_eq!(
            (answer.status, &error["code"], &error["param"]),
            (status, &json!(code), &param),
            "{fields}"
        );
    }
}

#[tokio::test]
async fn other_paths_and_methods() {
    let door = Door::open(Kind::Http);
    for (method, path, status, part) in [
        ("GET", "/v1/models", 200, "\"id\":\"tiny model\""),
        ("GET", "/v1/models/tiny%20model", 200, "\"object\":\"model\""),
        ("GET", "/v1/models/default", 200, "\"context_length\":512"),
        ("GET", "/v1/models/gpt-4", 404, "`tiny model`"),
        ("GET", "/health/live", 200, "live"),
        ("GET", "/health/ready?verbose=1", 200, "\"state\":\"ready\""),
        ("GET", "/metrics", 200, "\npromptd_state{state=\"ready\"} 1\n"),
        ("GET", "/version", 200, env!("CARGO_PKG_VERSION")),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("POST", "/health/live", 405, "method_not_allowed"),
        ("BREW", "/v1/models", 405, "BREW"),
        ("GET", "/", 404, "not_found"),
        ("POST", "/v1/chat", 404, "not_found"),
        ("DELETE", "/v1/requests/chatcmpl-0-1", 404, "not_found"),
        ("GET", "/v1/requests/x", 405, "DELETE"),
    ] {
        let answer = ask(&door, request(method, path, "")).await;
        assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
        assert!(answer.body.contains(part), "{method} {path}: {answer:?}");
        assert_eq!(answer.head.contains("\r\nallow: "), status == 405, "{answer:?}");
    }
    let head = ask(&door, request("HEAD", "/health/live", "")).await;
    assert_eq!((head.status, head.body.as_str()), (200, ""));

    door.script.set_status(|status| *status = Status::default());
    let answer = ask(&door, request("GET", "/health/ready", "")).await;
    assert_eq!((answer.status, &answer.json()["state"]), (503, &json!("loading")));
    assert_eq!(ask(&door, request("GET", "/v1/models", "")).await.json()["data"], json!([]));
    door.script.set_status(|status| {
        status.state = State::ModelFailed(Refusal::new(Code::ModelFailed, "no file"));
    });
    let answer = ask(&door, request("GET", "/health/ready", "")).await;
    assert_eq!((answer.status, &answer.json()["message"]), (503, &json!("no file")));
}

#[tokio::test]
async fn cancelled_by_id() {
    let mut door = Door::open(Kind::Http);
    let mut client = door.connect().await;
    client.send(chat(&json!({"stream": true}))).await;
    let (_, verdict) = door.submitted().await;
    let id = verdict.id();
    let events = verdict.accept(1);
    let text = client.until("\"object\"").await;
    let public = text.split("\"id\":\"").nth(1).unwrap().split('"').next().unwrap().to_owned();

    let mut other = door.connect().await;
    other.send(request("DELETE", &format!("/v1/requests/{public}"), "")).await;
    match soon(door.script.next()).await {
        Some(Call::Cancel(cancelled)) => assert_eq!(cancelled, id),
        other => panic!("{other:?}"),
    }
    assert_eq!(
        Answer::read(&other.rest().await).json(),
        json!({"id": public, "object": "request", "cancelled": true})
    );
    events.send(Event::Failed(Refusal::new(Code::Cancelled, "cancelled")));
    assert!(client.rest().await.contains("\"code\":\"cancelled\""));
    // It has ended, so nobody knows it any more.
    assert_eq!(
        ask(&door, request("DELETE", &format!("/v1/requests/{public}"), "")).await.status,
        404
    );
}

#[tokio::test]
async fn stopping_finishes_what_runs() {
    let mut door = Door::open(Kind::Http);
    let (mut idle, mut half) = (door.connect().await, door.connect().await);
    half.send("POST /v1/chat/comp").await;
    let (mut streaming, mut whole) = (door.connect().await, door.connect().await);
    streaming.send(chat(&json!({"stream": true}))).await;
    let first = door.accepted().await;
    whole.send(chat(&json!({}))).await;
    let second = door.accepted().await;
    streaming.until("assistant").await;
    door.stop();
    assert_eq!(idle.rest().await, "");
    // Half a request holds nobody up for long.
    assert_eq!(half.rest().await, "");
    for events in [first, second] {
        events.send(delta("to the end"));
        events.send(finished());
    }
    for client in [&mut streaming, &mut whole] {
        let text = client.rest().await;
        assert!(text.contains("to the end"), "{text}");
    }
    let path = door.path.clone();
    let _dir = door.stopped().await;
    assert!(!path.exists());
}
