//! JSON Schema of each payload, made of the types that the payloads are written with. It lies in docs/ as a file that a test
//! keeps current.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{PROTOCOL, payload};

/// A request as JSON Schema tells it. What reads requests is `ask.rs`; a test holds the two together.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Request {
    /// The version of this protocol.
    #[schemars(extend("enum" = [1, null]))]
    v: Option<u64>,
    /// The asker's own name for the request, echoed: visible characters without `+ # /`.
    #[schemars(length(min = 1, max = 128))]
    id: Option<String>,
    /// What is asked; this or `messages`.
    prompt: Option<String>,
    /// A conversation; this or `prompt`.
    messages: Option<Vec<Message>>,
    /// The system message in front of `prompt`, instead of the profile's.
    system: Option<String>,
    /// A profile of the configuration.
    profile: Option<String>,
    /// Continues the asker's conversation of this name.
    session: Option<String>,
    /// The served model's name, `default` or `promptd`.
    model: Option<String>,
    /// The most tokens of the answer.
    #[schemars(range(min = 1))]
    max_tokens: Option<u32>,
    /// The same, as newer clients of OpenAI's name it.
    #[schemars(range(min = 1))]
    max_completion_tokens: Option<u32>,
    /// 0, the default, always takes the most probable token.
    #[schemars(range(min = 0, max = 2))]
    temperature: Option<f64>,
    /// Tokens are chosen from the most probable ones that have this probability together.
    #[schemars(range(min = 0, max = 1))]
    top_p: Option<f64>,
    /// Tokens are chosen from this many.
    #[schemars(range(min = 0))]
    top_k: Option<u32>,
    /// Tokens are chosen from those at least this probable, against the most probable one.
    #[schemars(range(min = 0, max = 1))]
    min_p: Option<f64>,
    /// Above 1, tokens of the prompt and the answer come less often.
    #[schemars(range(min = 0.1, max = 10))]
    repetition_penalty: Option<f64>,
    /// Taken off tokens that the answer holds already.
    #[schemars(range(min = -2, max = 2))]
    presence_penalty: Option<f64>,
    /// The same for each time.
    #[schemars(range(min = -2, max = 2))]
    frequency_penalty: Option<f64>,
    /// Added to the logits of tokens, by token id.
    logit_bias: Option<std::collections::BTreeMap<String, f64>>,
    /// Whether it is told how probable each token was.
    logprobs: Option<bool>,
    /// How many others are told.
    #[schemars(range(min = 0, max = 20))]
    top_logprobs: Option<u8>,
    /// The same seed gives the same answer.
    seed: Option<i64>,
    /// The answer ends before the first of these.
    stop: Option<Stop>,
    /// The answer ends with the first of these tokens.
    #[schemars(length(max = 16))]
    stop_token_ids: Option<Vec<u32>>,
    /// Whether an answer ends with the context, or goes on while the model forgets the older half of it.
    context_overflow: Option<ContextOverflow>,
    /// OpenAI's way of a form: `json_object`, or `json_schema` with a schema.
    response_format: Option<Map<String, Value>>,
    /// The answer matches this regular expression.
    regex: Option<String>,
    /// The answer is one of these.
    choices: Option<Vec<String>>,
    /// The answer follows this Lark grammar.
    grammar: Option<String>,
    /// Whether pieces are published while it is written.
    stream: Option<bool>,
    /// OpenAI's options of streams.
    stream_options: Option<Map<String, Value>>,
    /// Who goes first.
    priority: Option<Priority>,
    /// The answer is worthless after this.
    #[schemars(range(min = 1))]
    timeout_ms: Option<u64>,
    /// The answer object, or only the text.
    format: Option<Format>,
    /// The largest message the client can read; longer answers come in numbered parts.
    #[schemars(range(min = 64))]
    max_bytes: Option<u64>,
    /// Where the answer goes, where there is no Response Topic.
    reply_to: Option<String>,
}

/// A message of a conversation.
#[derive(Debug, Serialize, JsonSchema)]
struct Message {
    /// Who says it.
    #[schemars(extend("enum" = ["system", "developer", "user", "assistant", "tool"]))]
    role: String,
    /// What is said: text, or parts of it.
    content: Content,
}

/// Text, or parts of it.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its form is told")]
enum Content {
    Text(String),
    Parts(Vec<Map<String, Value>>),
}

/// A text, or up to 16.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its form is told")]
enum Stop {
    One(String),
    Several(Vec<String>),
}

/// What becomes of an answer at the end of the context.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(dead_code, reason = "only its form is told")]
enum ContextOverflow {
    Stop,
    Slide,
}

/// Who goes first.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(dead_code, reason = "only its form is told")]
enum Priority {
    Low,
    Normal,
    High,
}

/// The answer object, or only the text.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(dead_code, reason = "only its form is told")]
enum Format {
    Json,
    Text,
}

/// The payloads by name, in the order in which they are told.
fn payloads(generator: &mut SchemaGenerator) -> Vec<(&'static str, Value)> {
    let mut list = Vec::new();
    let mut add = |name, schema: schemars::Schema| list.push((name, schema.to_value()));
    add("Request", generator.root_part::<Request>());
    add("Answer", generator.root_part::<payload::Answer<'_>>());
    add("Error", generator.root_part::<payload::Error<'_>>());
    add("Part", generator.root_part::<payload::Numbered<'_>>());
    add("StreamPiece", generator.root_part::<payload::StreamPiece<'_>>());
    add("StreamEnd", generator.root_part::<payload::StreamEnd<'_>>());
    add("Progress", generator.root_part::<payload::Progress<'_>>());
    add("Cancel", generator.root_part::<payload::Cancel>());
    add("OperationRequest", generator.root_part::<payload::OperationRequest>());
    add("Operated", generator.root_part::<payload::Operated<'_>>());
    add("Status", generator.root_part::<payload::StatusPayload>());
    add("Info", generator.root_part::<payload::Info<'_>>());
    add("Health", generator.root_part::<payload::Health>());
    list
}

/// One payload's schema, without the definitions that it shares with others.
trait RootPart {
    fn root_part<T: JsonSchema>(&mut self) -> schemars::Schema;
}

impl RootPart for SchemaGenerator {
    fn root_part<T: JsonSchema>(&mut self) -> schemars::Schema {
        T::json_schema(self)
    }
}

/// Payloads and what they share, with references that begin with `path`.
pub(super) fn definitions(mut settings: SchemaSettings, path: &'static str) -> Map<String, Value> {
    settings.definitions_path = path.into();
    let mut generator = settings.into_generator();
    let mut all: Map<String, Value> = payloads(&mut generator)
        .into_iter()
        .map(|(name, schema)| (name.to_owned(), schema))
        .collect();
    for (name, schema) in generator.take_definitions(true) {
        all.entry(name).or_insert(schema);
    }
    all
}

/// JSON Schema 2020-12 of each payload, under `$defs`; a document that is any of them is valid.
pub fn payload_schemas() -> Value {
    let all = definitions(SchemaSettings::draft2020_12(), "/$defs");
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "promptd's payloads",
        "description": format!("Protocol version {PROTOCOL}. docs/protocol.md tells what they mean."),
        "$defs": all,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_request_has_the_fields_that_are_read() {
        let told = payload_schemas()["$defs"]["Request"]["properties"].clone();
        let told: BTreeSet<String> = told.as_object().unwrap().keys().cloned().collect();
        let read: BTreeSet<String> = crate::wire::known::done_in_ask().map(str::to_owned).collect();
        // What changes nothing is not told.
        let idle = [
            "user",
            "metadata",
            "safety_identifier",
            "prompt_cache_key",
            "prompt_cache_retention",
            "prompt_cache_options",
        ];
        let read: BTreeSet<String> =
            read.into_iter().filter(|name| !idle.contains(&name.as_str())).collect();
        assert_eq!(told, read);
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn references(value: &Value, found: &mut Vec<String>) {
            match value {
                Value::Object(map) => {
                    found.extend(map.get("$ref").and_then(Value::as_str).map(str::to_owned));
                    map.values().for_each(|value| references(value, found));
                }
                Value::Array(list) => list.iter().for_each(|value| references(value, found)),
                _ => {}
            }
        }
        for document in [payload_schemas(), crate::wire::asyncapi("1")] {
            let mut found = Vec::new();
            references(&document, &mut found);
            assert!(!found.is_empty());
            for reference in found {
                let pointer = reference.strip_prefix('#').unwrap();
                assert!(document.pointer(pointer).is_some(), "{reference}");
            }
        }
    }
}
