//! `/openapi.json` against what promptd really sends and takes, and both against OpenAI's own description where that is there.

use jsonschema::Validator;
use serde_json::{Value, json};

use crate::support::hidden::{WIDTH, with_hidden_states};
use crate::support::http;
use crate::support::service::{Plan, Service};

/// A document and what it says about bodies.
struct Book {
    document: Value,
}

impl Book {
    fn schema(&self, name: &str) -> Validator {
        let root = json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$ref": format!("#/components/schemas/{name}"),
            "components": self.document["components"],
        });
        jsonschema::validator_for(&root).unwrap()
    }

    /// Whether the schema of this name lets a body pass.
    fn allows(&self, schema: &str, body: &Value) -> bool {
        self.schema(schema).is_valid(body)
    }

    /// Holds a body against the schema of this name.
    fn check(&self, schema: &str, body: &Value) {
        let validator = self.schema(schema);
        let wrong: Vec<String> = validator
            .iter_errors(body)
            .map(|error| format!("{} at {}", error, error.instance_path))
            .collect();
        assert!(wrong.is_empty(), "{schema}: {}\n{body}", wrong.join("\n"));
    }

    /// The schema of the body that comes with this status.
    fn of(&self, method: &str, path: &str, status: u16) -> String {
        let answers = &self.document["paths"][path][method]["responses"];
        let answer = answers.get(status.to_string()).unwrap_or(&answers["default"]);
        let reference = &answer["content"]["application/json"]["schema"]["$ref"];
        let name = reference.as_str().unwrap_or_else(|| panic!("{method} {path}: {answer}"));
        name.rsplit('/').next().unwrap().to_owned()
    }

    /// The schema of the body that is sent.
    fn asked(&self, path: &str) -> String {
        let content = &self.document["paths"][path]["post"]["requestBody"]["content"];
        let reference = content["application/json"]["schema"]["$ref"].as_str().unwrap();
        reference.rsplit('/').next().unwrap().to_owned()
    }
}

/// Every kind of answer that a running promptd can be made to give.
fn asks() -> Vec<(&'static str, Value)> {
    let messages = json!([{"role": "user", "content": "Turn on the kitchen light."}]);
    let tools = json!([{"type": "function", "function": {"name": "lamp", "description": "Switch it.", "strict": true,
        "parameters": {"type": "object", "additionalProperties": false, "required": ["on"],
            "properties": {"on": {"type": "boolean"}}}}}]);
    let called = json!([
        {"role": "user", "content": [{"type": "text", "text": "On!"}]},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "lamp", "arguments": "{\"on\":true}"}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "done"},
    ]);
    let form = json!({"type": "json_schema", "json_schema": {"name": "on", "strict": true, "schema": {
        "type": "object", "additionalProperties": false, "required": ["on"], "properties": {"on": {"type": "boolean"}}}}});
    vec![
        (
            "/v1/chat/completions",
            json!({"model": "default", "messages": messages, "max_tokens": 20, "logprobs": true,
            "top_logprobs": 2, "stop": ["\n"], "seed": 1, "user": "me", "temperature": 0.5}),
        ),
        (
            "/v1/chat/completions",
            json!({"model": "default", "messages": messages, "tools": tools, "tool_choice": "required", "parallel_tool_calls": false}),
        ),
        (
            "/v1/chat/completions",
            json!({"model": "default", "messages": messages, "tools": tools,
            "tool_choice": {"type": "function", "function": {"name": "lamp"}}}),
        ),
        ("/v1/chat/completions", json!({"model": "default", "messages": called, "max_tokens": 3})),
        (
            "/v1/chat/completions",
            json!({"model": "default", "messages": messages, "response_format": form}),
        ),
        ("/v1/chat/completions", json!({"model": "other", "messages": messages})),
        (
            "/v1/completions",
            json!({"model": "default", "prompt": "Once", "max_tokens": 4, "logprobs": 2, "logit_bias": {"17": -100}}),
        ),
        (
            "/v1/completions",
            json!({"model": "default", "prompt": ["Once"], "max_tokens": 4, "echo": true}),
        ),
        (
            "/v1/responses",
            json!({"model": "default", "input": "Who are you?", "instructions": "Be short.", "store": false}),
        ),
        (
            "/v1/responses",
            json!({"input": [{"role": "user", "content": [{"type": "input_text", "text": "On!"}]}], "max_output_tokens": 2}),
        ),
        (
            "/v1/responses",
            json!({"input": "On!", "tool_choice": "required", "tools": [
            {"type": "function", "name": "lamp", "parameters": {"type": "object"}}]}),
        ),
        ("/v1/embeddings", json!({"input": "x"})),
        (
            "/api/chat",
            json!({"model": "demo:latest", "messages": messages, "stream": false, "options": {"num_predict": 5}}),
        ),
        ("/api/generate", json!({"model": "demo", "prompt": "Who are you?", "stream": false})),
        ("/api/generate", json!({"model": "demo"})),
        ("/api/generate", json!({"model": "other", "prompt": "x"})),
        ("/api/show", json!({"model": "demo"})),
        ("/admin/loglevel", json!({"level": "info"})),
        ("/admin/reload", json!({})),
        ("/admin/unload", json!({})),
        ("/admin/load", json!({})),
    ]
}

#[test]
fn real_answers_are_as_the_document_says() {
    let service = Service::start(&Plan::demo()).ready();
    let socket = service.socket();
    let answer = http::get(&socket, "/openapi.json");
    let book = Book { document: answer.json() };
    assert_eq!((answer.status, &book.document["openapi"]), (200, &json!("3.1.0")));
    for path in [
        "/health/live",
        "/health/ready",
        "/version",
        "/v1/models",
        "/v1/queue",
        "/api/version",
        "/api/tags",
        "/api/ps",
    ] {
        let answer = http::get(&socket, path);
        book.check(&book.of("get", path, answer.status), &answer.json());
    }
    for id in ["demo", "other"] {
        let answer = http::get(&socket, &format!("/v1/models/{id}"));
        book.check(&book.of("get", "/v1/models/{id}", answer.status), &answer.json());
    }
    let answer = http::delete(&socket, "/v1/requests/chatcmpl-0-1");
    book.check(&book.of("delete", "/v1/requests/{id}", answer.status), &answer.json());
    let mut good = 0;
    for (path, body) in asks() {
        if book.document["paths"][path]["post"].get("requestBody").is_some() {
            book.check(&book.asked(path), &body);
        }
        let answer = http::post(&socket, path, &body);
        book.check(&book.of("post", path, answer.status), &answer.json());
        good += u32::from(answer.status == 200);
    }
    assert_eq!(good, 18, "as many as are meant to be answered");
}

#[test]
fn vectors_are_as_the_document_says() {
    let folder = with_hidden_states();
    let service = Service::start(&Plan::of_model(folder.path())).ready();
    let socket = service.socket();
    let book = Book { document: http::get(&socket, "/openapi.json").json() };
    let path = "/v1/embeddings";
    for (body, status) in [
        (json!({"model": "default", "input": "Turn on the light.", "user": "me"}), 200),
        (json!({"input": ["Turn on", "the light"], "encoding_format": "base64"}), 200),
        (json!({"input": [[5, 6, 7], [9]], "encoding_format": "float", "dimensions": WIDTH}), 200),
        (json!({"input": [5, 6, 7], "priority": "low", "timeout_ms": 60_000}), 200),
        (json!({"input": "x", "dimensions": 3}), 501),
        (json!({"input": "x", "model": "other"}), 404),
        (json!({"input": ["x", "the light ".repeat(800)]}), 400),
    ] {
        book.check(&book.asked(path), &body);
        let answer = http::post(&socket, path, &body);
        assert_eq!(answer.status, status, "{}", answer.body);
        book.check(&book.of("post", path, status), &answer.json());
    }
    // What the document does not allow is refused too, and the other way round.
    let asked = book.asked(path);
    for wrong in [json!({"input": {}}), json!({"input": "x", "encoding_format": "hex"}), json!({})]
    {
        assert!(!book.allows(&asked, &wrong), "{wrong}");
        assert_eq!(http::post(&socket, path, &wrong).status, 400, "{wrong}");
    }
}

/// OpenAI's published description, cut to what promptd has of it.
fn openai() -> Option<Book> {
    let path = crate::support::material()?.join("openai/openapi-chat-completions-models.json");
    let Ok(text) = std::fs::read_to_string(&path) else {
        println!("skipped: there is no {}", path.display());
        return None;
    };
    let mut document = serde_json::from_str(&text).unwrap();
    take_null(&mut document);
    Some(Book { document })
}

/// The description says where null may stand in the words of an older `OpenAPI`, which JSON Schema does not know.
fn take_null(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.values_mut().for_each(take_null);
            if map.remove("nullable") == Some(Value::Bool(true)) {
                let schema = std::mem::take(map);
                map.insert("anyOf".to_owned(), json!([schema, {"type": "null"}]));
            }
        }
        Value::Array(list) => list.iter_mut().for_each(take_null),
        _ => {}
    }
}

#[test]
fn requests_and_answers_are_valid_by_openais_own_description() {
    let Some(book) = openai() else { return };
    let service = Service::start(&Plan::demo()).ready();
    let socket = service.socket();
    let mut checked = 0;
    for (path, body) in asks() {
        // The pieces of a streamed completion have no description; OpenAI's own are not valid by that of the whole.
        let (asked, whole, chunk) = match path {
            "/v1/chat/completions" => (
                "CreateChatCompletionRequest",
                "CreateChatCompletionResponse",
                Some("CreateChatCompletionStreamResponse"),
            ),
            "/v1/completions" => ("CreateCompletionRequest", "CreateCompletionResponse", None),
            _ => continue,
        };
        if body["model"] == "other" {
            continue;
        }
        book.check(asked, &body);
        let answer = http::post(&socket, path, &body);
        assert_eq!(answer.status, 200, "{}", answer.body);
        book.check(whole, &answer.json());
        let (Some(chunk), mut body) = (chunk, body) else { continue };
        body["stream"] = true.into();
        for usage in [true, false] {
            body["stream_options"] = json!({"include_usage": usage});
            for piece in http::stream(&socket, path, &body) {
                book.check(chunk, &piece);
                checked += 1;
            }
        }
    }
    assert!(checked > 20, "{checked}");
    book.check("ListModelsResponse", &http::get(&socket, "/v1/models").json());
    book.check("Model", &http::get(&socket, "/v1/models/demo").json());
}
