//! `GET /openapi.json`: the HTTP API described in the words of `OpenAPI` 3.1, made of the types in `asked.rs` and `told.rs`.

#![expect(
    dead_code,
    reason = "the types describe what others write and what JSON macros write; nobody makes one"
)]

mod asked;
mod asked_ollama;
mod asked_responses;
mod told;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

/// The kinds of error: who gets them reads one of two shapes.
#[derive(Clone, Copy, PartialEq)]
enum Style {
    OpenAi,
    Ollama,
}

/// The whole document.
pub(super) fn document() -> Value {
    // Bodies of requests are what may be sent, those of answers what will come; no type is both.
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut all = Paths { generator: settings.into_generator(), paths: Map::new() };
    all.openai();
    all.of_promptd();
    all.ollama();
    let Paths { mut generator, paths } = all;
    let schemas = generator.take_definitions(true);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "promptd",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "OpenAI's and Ollama's APIs on a Unix socket, and over TCP where the operator allows it. docs/protocol.md says more.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{}, {"key": []}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {
                "type": "http", "scheme": "bearer",
                "description": "A key of `[clients]`. Needed over TCP; on the Unix socket the kernel says who asks.",
            }},
        },
    })
}

struct Paths {
    generator: SchemaGenerator,
    paths: Map<String, Value>,
}

impl Paths {
    fn openai(&mut self) {
        const STREAM: &str = "text/event-stream";
        let chat = self.body::<asked::ChatRequest>();
        let told = self.json::<told::ChatCompletion>();
        let told = also(told, STREAM);
        self.add(("post", "/v1/chat/completions"), "Answers a conversation.", Some(chat), &told);
        let completion = self.body::<asked::CompletionRequest>();
        let told = self.json::<told::Completion>();
        let told = also(told, STREAM);
        self.add(("post", "/v1/completions"), "Goes on with a text.", Some(completion), &told);
        let response = self.body::<asked_responses::ResponseRequest>();
        let told = self.json::<told::Response>();
        let told = also(told, STREAM);
        let summary = "Answers a conversation, in OpenAI's newer words. Nothing is kept.";
        self.add(("post", "/v1/responses"), summary, Some(response), &told);
        let embeddings = self.body::<asked::EmbeddingsRequest>();
        let told = self.json::<told::EmbeddingList>();
        let summary =
            "A vector for each text, where the model's graph gives hidden states; else 501.";
        self.add(("post", "/v1/embeddings"), summary, Some(embeddings), &told);
        let told = self.json::<told::ModelList>();
        self.add(("get", "/v1/models"), "The model.", None, &told);
        let told = self.json::<told::Model>();
        self.add(("get", "/v1/models/{id}"), "The model, by its name.", None, &told);
    }

    fn of_promptd(&mut self) {
        let told = self.json::<told::Live>();
        self.add(("get", "/health/live"), "Whether the service runs.", None, &told);
        let told = self.json::<told::StatusBody>();
        self.add(("get", "/health/ready"), "Whether prompts are taken; else 503.", None, &told);
        // Also where prompts are not taken the body is the status.
        let status = self.json::<told::StatusBody>();
        if let Some(answers) = self.answers_of("/health/ready", "get") {
            answers.insert("503".into(), answer("Prompts are not taken.", &status));
        }
        let told = self.json::<told::VersionBody>();
        self.add(("get", "/version"), "Version and protocol.", None, &told);
        let told =
            json!({"text/plain; version=0.0.4; charset=utf-8": {"schema": {"type": "string"}}});
        self.add(("get", "/metrics"), "For Prometheus.", None, &told);
        let told = json!({"application/json": {"schema": {"type": "object"}}});
        self.add(("get", "/openapi.json"), "This document.", None, &told);
        let told = self.json::<told::QueueBody>();
        self.add(("get", "/v1/queue"), "Who waits, in order.", None, &told);
        let told = self.json::<told::CancelBody>();
        let summary = "Cancels a running request of one's own.";
        self.add(("delete", "/v1/requests/{id}"), summary, None, &told);
        let told = self.json::<told::SessionBody>();
        let summary = "Forgets a conversation of one's own.";
        self.add(("delete", "/v1/sessions/{name}"), summary, None, &told);
        for (operation, summary) in [
            ("load", "Loads the model."),
            ("unload", "Takes the model out of memory."),
            ("reload", "Reads the configuration again."),
            ("drain", "Takes no new prompts from now on; only another start ends it."),
        ] {
            let told = self.json::<told::Operated>();
            self.add(("post", &format!("/admin/{operation}")), summary, None, &told);
        }
        let level = self.body::<asked::LogLevel>();
        let told = self.json::<told::Operated>();
        self.add(("post", "/admin/loglevel"), "Changes what is logged.", Some(level), &told);
    }

    fn ollama(&mut self) {
        const STREAM: &str = "application/x-ndjson";
        let chat = self.body::<asked_ollama::OllamaChat>();
        let told = self.json::<told::OllamaAnswer>();
        let told = also(told, STREAM);
        self.add(("post", "/api/chat"), "Answers a conversation.", Some(chat), &told);
        let generate = self.body::<asked_ollama::OllamaGenerate>();
        let told = self.json::<told::OllamaAnswer>();
        let told = also(told, STREAM);
        self.add(("post", "/api/generate"), "Answers a prompt.", Some(generate), &told);
        let show = self.body::<asked_ollama::OllamaShow>();
        let told = self.json::<told::OllamaShown>();
        self.add(("post", "/api/show"), "What is known of the model.", Some(show), &told);
        let told = self.json::<told::OllamaVersion>();
        self.add(("get", "/api/version"), "The release whose API this is a part of.", None, &told);
        let told = self.json::<told::OllamaModels>();
        self.add(("get", "/api/tags"), "The model.", None, &told);
        let told = self.json::<told::OllamaModels>();
        self.add(("get", "/api/ps"), "The model, where it is in memory.", None, &told);
    }

    /// One operation: what is sent, and what comes back when all is well.
    fn add(
        &mut self,
        (method, path): (&str, &str),
        summary: &str,
        body: Option<Value>,
        told: &Value,
    ) {
        let style = if path.starts_with("/api/") { Style::Ollama } else { Style::OpenAi };
        let error = match style {
            Style::OpenAi => self.json::<told::ErrorBody>(),
            Style::Ollama => self.json::<told::OllamaError>(),
        };
        let mut answers = Map::new();
        answers.insert("200".into(), answer("It is done.", told));
        answers.insert("default".into(), answer("It is not; `error` says why.", &error));
        let mut operation = Map::new();
        operation.insert("summary".into(), summary.into());
        operation.insert("operationId".into(), name_of(method, path).into());
        let named = path.split_once('{').and_then(|(_, rest)| rest.split_once('}'));
        let in_path = named.map(|(name, _)| {
            json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}})
        });
        let headers = PROMPTS.contains(&path).then(headers).into_iter().flatten();
        let parameters: Vec<Value> = in_path.into_iter().chain(headers).collect();
        if !parameters.is_empty() {
            operation.insert("parameters".into(), parameters.into());
        }
        if let Some(body) = body {
            let content = json!({"application/json": {"schema": body}});
            operation.insert("requestBody".into(), json!({"required": true, "content": content}));
        }
        operation.insert("responses".into(), answers.into());
        let entry = self.paths.entry(path).or_insert_with(|| Map::new().into());
        if let Some(entry) = entry.as_object_mut() {
            entry.insert(method.to_owned(), operation.into());
        }
    }

    fn answers_of(&mut self, path: &str, method: &str) -> Option<&mut Map<String, Value>> {
        self.paths.get_mut(path)?.get_mut(method)?.get_mut("responses")?.as_object_mut()
    }

    fn body<T: JsonSchema>(&mut self) -> Value {
        self.generator.subschema_for::<T>().to_value()
    }

    fn json<T: JsonSchema>(&mut self) -> Value {
        let schema = self.body::<T>();
        json!({"application/json": {"schema": schema}})
    }
}

/// What takes prompts.
const PROMPTS: &[&str] =
    &["/v1/chat/completions", "/v1/completions", "/v1/responses", "/api/chat", "/api/generate"];

/// The headers that a request with a prompt may have.
fn headers() -> [Value; 3] {
    let header = |name: &str, description: &str, schema: Value| json!({"name": name, "in": "header", "required": false, "description": description, "schema": schema});
    let most = crate::socket::prompts::LONGEST_KEY;
    [
        header(
            "Idempotency-Key",
            "The same key, path and body within five minutes are answered once; another body is refused with `idempotency_key_reused`.",
            json!({"type": "string", "minLength": 1, "maxLength": most, "pattern": "^[!-~]+$"}),
        ),
        header(
            "Prefer",
            "`wait=10` (RFC 7240): a whole answer is worthless after so many seconds.",
            json!({"type": "string"}),
        ),
        header(
            "X-Stainless-Timeout",
            "The same in seconds, as OpenAI's clients send it.",
            json!({"type": "string"}),
        ),
    ]
}

/// The same answer, which can come as a stream too. Of a stream nothing more is said: `OpenAPI` 3.1 has no words for its events, and
/// tools read a schema there in different ways.
fn also(mut content: Value, kind: &str) -> Value {
    if let Some(content) = content.as_object_mut() {
        content.insert(kind.to_owned(), json!({}));
    }
    content
}

fn answer(description: &str, content: &Value) -> Value {
    json!({"description": description, "content": content})
}

/// `post_v1_chat_completions`
fn name_of(method: &str, path: &str) -> String {
    let words = path.split(['/', '.', '{', '}']).filter(|word| !word.is_empty());
    std::iter::once(method).chain(words).collect::<Vec<_>>().join("_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_those_that_are_read() {
        let document = document();
        // What is refused whatever it says is not offered.
        let never = ["audio", "prediction", "web_search_options", "moderation", "system"];
        for (schema, kind) in [("ChatRequest", "chat"), ("CompletionRequest", "completion")] {
            let schema = &document["components"]["schemas"][schema];
            let mut told: Vec<&str> =
                schema["properties"].as_object().unwrap().keys().map(String::as_str).collect();
            let mut read = crate::wire::field_names(kind);
            read.retain(|name| !never.contains(name));
            told.sort_unstable();
            read.sort_unstable();
            assert_eq!(told, read, "{kind}");
            assert_eq!(schema["additionalProperties"], false);
        }
    }

    #[test]
    fn the_document_is_whole() {
        let document = document();
        let text = document.to_string();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        for reference in text.split("\"$ref\":\"").skip(1) {
            let name = reference.split('"').next().unwrap();
            let name = name.strip_prefix("#/components/schemas/").expect(name);
            assert!(schemas.contains_key(name), "{name} is named, but is not there");
        }
        for (path, operations) in document["paths"].as_object().unwrap() {
            for (method, operation) in operations.as_object().unwrap() {
                let name = operation["operationId"].as_str().unwrap();
                assert!(operation["responses"]["200"].is_object(), "{method} {path} {name}");
            }
        }
    }
}
