//! OpenAI's `/v1/responses` and Ollama's API: what their clients send, and what they read.

use promptd::request::{CallStyle, Code, Constraint, Event, Input, Refusal, Role};
use serde_json::{Value, json};

use crate::support::door::{Door, Kind, delta, finished};
use crate::support::raw_http::{Answer, ask, request};

const CALL: [&str; 3] =
    ["Wait.<tool_call>\n{\"name\": \"lamp\", \"argum", "ents\": {\"on\": tr", "ue}}\n</tool_call>"];

fn post(path: &str, body: &Value) -> String {
    request("POST", path, &body.to_string())
}

/// Sends a request whose answer consists of these pieces.
async fn answered(door: &mut Door, path: &str, body: &Value, pieces: &[&str]) -> Answer {
    let mut client = door.connect().await;
    client.send(post(path, body)).await;
    let events = door.submitted().await.1.accept_with(7, Some(CallStyle::Hermes));
    for piece in pieces {
        events.send(delta(piece));
    }
    events.send(finished());
    Answer::read(&client.rest().await)
}

#[tokio::test]
async fn a_whole_response() {
    let mut door = Door::open(Kind::Http);
    let body = json!({"model": "default", "input": "Hi", "instructions": "Be short.", "metadata": {"a": "b"}});
    let mut client = door.connect().await;
    client.send(post("/v1/responses", &body)).await;
    let submission = door.answer(&["Hel", "lo"]).await;
    let Input::Chat(messages) = submission.request.input else { panic!("no chat") };
    assert_eq!((messages[0].role, messages[1].content.as_str()), (Role::System, "Hi"));
    let answer = Answer::read(&client.rest().await).json();
    assert!(answer["id"].as_str().unwrap().starts_with("resp-"), "{answer}");
    for (path, value) in [
        ("/object", json!("response")),
        ("/status", json!("completed")),
        ("/output/0/content/0/text", json!("Hello")),
        ("/output/0/role", json!("assistant")),
        ("/instructions", json!("Be short.")),
        ("/metadata", json!({"a": "b"})),
        ("/usage/total_tokens", json!(9)),
        ("/error", Value::Null),
    ] {
        assert_eq!(answer.pointer(path), Some(&value), "{path}: {answer}");
    }
    let tools = json!([{"type": "function", "name": "lamp", "parameters": {"type": "object"}}]);
    let body = json!({"input": "On!", "tools": tools});
    let answer = answered(&mut door, "/v1/responses", &body, &CALL).await.json();
    assert_eq!(answer["output"][0]["content"][0]["text"], "Wait.");
    let call = &answer["output"][1];
    assert_eq!(
        (&call["type"], &call["name"], &call["arguments"]),
        (&json!("function_call"), &json!("lamp"), &json!("{\"on\": true}"))
    );
}

#[tokio::test]
async fn a_streamed_response() {
    let mut door = Door::open(Kind::Http);
    let tools = json!([{"type": "function", "name": "lamp"}]);
    let body =
        json!({"input": [{"role": "user", "content": "On!"}], "tools": tools, "stream": true});
    let answer = answered(&mut door, "/v1/responses", &body, &CALL).await;
    let events: Vec<Value> = answer
        .body
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .map(|data| serde_json::from_str(data).unwrap())
        .collect();
    let mut kinds: Vec<&str> = events
        .iter()
        .map(|event| event["type"].as_str().unwrap().strip_prefix("response.").unwrap())
        .collect();
    // Pieces that came while nobody read are one.
    kinds.dedup();
    assert_eq!(
        kinds,
        [
            "created",
            "in_progress",
            "output_item.added",
            "content_part.added",
            "output_text.delta",
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "output_item.added",
            "function_call_arguments.delta",
            "function_call_arguments.done",
            "output_item.done",
            "completed",
        ]
    );
    for (at, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], at);
    }
    let output = &events.last().unwrap()["response"]["output"];
    assert_eq!(
        (&output[0]["content"][0]["text"], &output[1]["arguments"]),
        (&json!("Wait."), &json!("{\"on\": true}"))
    );
    let mut client = door.connect().await;
    client.send(post("/v1/responses", &json!({"input": "x", "stream": true}))).await;
    door.accepted().await.send(Event::Failed(Refusal::new(Code::Timeout, "late")));
    let text = client.rest().await;
    assert!(
        text.contains("event: response.failed") && text.contains("\"code\":\"timeout\""),
        "{text}"
    );
}

#[tokio::test]
async fn what_a_response_cannot_be_asked_is_named() {
    let door = Door::open(Kind::Http);
    for (body, status, param) in [
        (json!({"input": []}), 400, "input"),
        (json!({"input": [{"role": "king", "content": "x"}]}), 400, "input[0].role"),
        (json!({"input": "x", "max_output_tokens": 0}), 400, "max_output_tokens"),
        (json!({"input": "x", "previous_response_id": "r"}), 501, "previous_response_id"),
        (json!({"input": "x", "tools": [{"type": "web_search"}]}), 501, "tools[0].type"),
    ] {
        let answer = ask(&door, post("/v1/responses", &body)).await;
        assert_eq!(
            (answer.status, &answer.json()["error"]["param"]),
            (status, &json!(param)),
            "{body}"
        );
    }
    let answer = ask(&door, post("/v1/embeddings", &json!({"input": []}))).await;
    assert_eq!((answer.status, &answer.json()["error"]["param"]), (400, &json!("input")));
}

#[tokio::test]
async fn ollamas_chat() {
    let mut door = Door::open(Kind::Http);
    let body = json!({
        "model": "tiny model:latest", "messages": [{"role": "user", "content": "Hi"}],
        "format": {"type": "object"}, "keep_alive": "5m", "options": {"num_predict": 9, "num_ctx": 2048},
    });
    // Without a word about it the answer is streamed.
    let mut client = door.connect().await;
    client.send(post("/api/chat", &body)).await;
    let submission = door.answer(&["{", "}"]).await;
    assert_eq!(submission.request.max_tokens, Some(9));
    assert_eq!(
        submission.request.constraint,
        Constraint::JsonSchema("{\"type\":\"object\"}".to_owned())
    );
    let answer = Answer::read(&client.rest().await);
    assert!(answer.head.contains("application/x-ndjson"), "{}", answer.head);
    let lines: Vec<Value> =
        answer.body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let said: String =
        lines.iter().map(|line| line["message"]["content"].as_str().unwrap()).collect();
    assert_eq!(said, "{}");
    let last = lines.last().unwrap();
    assert_eq!(
        (&last["done"], &last["done_reason"], &last["eval_count"], &last["prompt_eval_count"]),
        (&json!(true), &json!("stop"), &json!(4), &json!(5))
    );
    assert!(lines[..lines.len() - 1].iter().all(|line| line["done"] == false));

    let tools = json!([{"type": "function", "function": {"name": "lamp", "parameters": {"type": "object"}}}]);
    for stream in [true, false] {
        let body = json!({"model": "default", "messages": [{"role": "user", "content": "On!"}], "tools": tools, "stream": stream});
        let answer = answered(&mut door, "/api/chat", &body, &CALL).await;
        let lines: Vec<Value> =
            answer.body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), if stream { 3 } else { 1 });
        let call = lines.iter().find_map(|line| line["message"]["tool_calls"].get(0)).unwrap();
        assert_eq!(call["function"], json!({"name": "lamp", "arguments": {"on": true}}));
    }
}

#[tokio::test]
async fn ollamas_other_paths() {
    let mut door = Door::open(Kind::Http);
    let body = json!({"model": "default", "prompt": "Hi", "system": "Be short.", "stream": false});
    let answer = answered(&mut door, "/api/generate", &body, &["Hello"]).await.json();
    assert_eq!((&answer["response"], &answer["done"]), (&json!("Hello"), &json!(true)));
    for (method, path, body, part) in [
        ("GET", "/api/version", "", "\"version\":\"0."),
        ("GET", "/api/tags", "", "\"name\":\"tiny model\""),
        ("GET", "/api/ps", "", "\"context_length\":512"),
        ("POST", "/api/show", "{\"model\":\"tiny model\"}", "\"llama.context_length\":512"),
        (
            "POST",
            "/api/show",
            "{\"model\":\"other\"}",
            "{\"error\":\"there is no model \\\"other\\\"",
        ),
        ("POST", "/api/chat", "{\"model\":1}", "{\"error\":\"`model` must be a string"),
        ("GET", "/api/chat", "", "{\"error\":\"the method GET"),
        ("POST", "/api/pull", "{}", "{\"error\":\"there is nothing at"),
    ] {
        let answer = ask(&door, request(method, path, body)).await;
        assert!(answer.body.contains(part), "{method} {path}: {answer:?}");
    }
    // Nothing asked: the model is loaded.
    let mut client = door.connect().await;
    client.send(post("/api/generate", &json!({"model": "tiny model"}))).await;
    match crate::support::door::soon(door.script.next()).await {
        Some(promptd::scheduler::scripted::Call::Load(begun)) => begun.send(()).unwrap(),
        other => panic!("{other:?}"),
    }
    assert_eq!(Answer::read(&client.rest().await).json()["done_reason"], "load");
}

/// Thousands of half requests keep nobody out: the oldest of them give way.
#[tokio::test]
async fn half_requests_give_way() {
    let mut door = Door::open(Kind::Http);
    let mut streaming = door.connect().await;
    streaming.send(post("/v1/completions", &json!({"prompt": "x", "stream": true}))).await;
    let events = door.accepted().await;
    streaming.until("text/event-stream").await;
    let mut half = Vec::new();
    for i in 0..300 {
        let mut client = door.connect().await;
        // A part of a head, or a head and a part of a body.
        let body = if i % 2 == 0 {
            "POST /v1/comp"
        } else {
            "POST /v1/completions HTTP/1.1\r\nContent-Length: 9\r\n\r\n{"
        };
        client.send(body).await;
        half.push(client);
    }
    let answer = ask(&door, request("GET", "/health/live", "")).await;
    assert_eq!(answer.status, 200);
    assert_eq!(half[0].rest().await, "");
    // What is at work stays.
    events.send(delta("still here"));
    events.send(finished());
    assert!(streaming.rest().await.contains("still here"));
}
