//! The topics of docs/protocol.md as an `AsyncAPI` 3 document, with the payloads of `describe.rs`. It lies in docs/ as a file that
//! a test keeps current.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::describe::definitions;

/// What stands on a topic.
struct Channel {
    name: &'static str,
    /// Behind `promptd/{node}/`.
    address: &'static str,
    what: &'static str,
    /// Names of messages.
    messages: &'static [&'static str],
    /// Whether promptd receives; else it sends.
    receives: bool,
    qos: u8,
    retain: bool,
    /// Whether it is answered.
    answered: bool,
}

const fn comes(
    name: &'static str,
    address: &'static str,
    messages: &'static [&'static str],
    what: &'static str,
) -> Channel {
    Channel {
        name,
        address,
        what,
        messages,
        receives: true,
        qos: 1,
        retain: false,
        answered: false,
    }
}

const fn goes(
    name: &'static str,
    address: &'static str,
    messages: &'static [&'static str],
    what: &'static str,
) -> Channel {
    Channel { receives: false, ..comes(name, address, messages, what) }
}

const ANSWERS: &[&str] = &["Answer", "Part", "AnswerText", "Error", "ErrorText"];
const PROMPTS: &[&str] = &["Request", "Prompt"];

/// The topics of docs/protocol.md.
static CHANNELS: &[Channel] = &[
    Channel { answered: true, ..comes("ask", "ask", PROMPTS, "A prompt.") },
    Channel {
        answered: true,
        ..comes("askProfile", "ask/{profile}", PROMPTS, "A prompt for a profile.")
    },
    comes("cancel", "cancel", &["Cancel"], "Stops prompts."),
    goes("answer", "answer/{id}", ANSWERS, "The answer, where the request has no Response Topic."),
    goes("answerWithoutId", "answer", ANSWERS, "The same, where the request has no id either."),
    Channel {
        qos: 0,
        ..goes("stream", "stream/{id}", &["StreamPiece", "StreamEnd"], "The answer piece by piece.")
    },
    Channel { qos: 0, ..goes("progress", "progress/{id}", &["Progress"], "Where a prompt is.") },
    Channel {
        retain: true,
        ..goes("availability", "availability", &["Availability"], "Whether promptd is there.")
    },
    Channel { retain: true, ..goes("status", "status", &["Status"], "How it stands.") },
    Channel {
        qos: 0,
        retain: true,
        ..goes("health", "health", &["Health"], "How it is, every minute.")
    },
    Channel { retain: true, ..goes("info", "info", &["Info"], "Version, profiles, limits.") },
    Channel {
        answered: true,
        ..comes(
            "request",
            "request/{operation}",
            &["OperationRequest"],
            "An operator asks (`mqtt.admin`).",
        )
    },
    goes("response", "response/{operation}", &["Operated", "Error"], "What came of it."),
];

/// Messages that are objects; their schemas have the same names.
const OBJECTS: [&str; 13] = [
    "Request",
    "Answer",
    "Error",
    "Part",
    "StreamPiece",
    "StreamEnd",
    "Progress",
    "Cancel",
    "OperationRequest",
    "Operated",
    "Status",
    "Info",
    "Health",
];

/// Messages that are plain text: name, schema, what it is.
const TEXTS: [(&str, &str, &str); 4] = [
    ("Prompt", "Text", "The prompt itself, less one line break at its end."),
    ("AnswerText", "Text", "Only the text, for `\"format\":\"text\"`."),
    ("ErrorText", "Text", "`!` and the code, for `\"format\":\"text\"`."),
    ("Availability", "Availability", "Plain text; also the last will."),
];

/// The `AsyncAPI` 3 document.
pub fn asyncapi(version: &str) -> Value {
    let mut schemas = definitions(SchemaSettings::draft07(), "/components/schemas");
    schemas.insert("Availability".into(), json!({"type": "string", "enum": ["online", "offline"]}));
    schemas.insert("Text".into(), json!({"type": "string"}));
    let mut channels: Map<String, Value> =
        CHANNELS.iter().map(|channel| (channel.name.to_owned(), channel.object())).collect();
    channels.insert(
        "responseTopic".into(),
        json!({
            "address": null, "description": "The topic that the asker names: exactly one answer, or its parts.",
            "messages": references(&[ANSWERS, &["Operated"]].concat()),
        }),
    );
    let operations: Map<String, Value> =
        CHANNELS.iter().map(|channel| (channel.name.to_owned(), channel.operation())).collect();
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "promptd over MQTT", "version": version,
            "description": "Prompts go in, answers come out. `promptd` is the base topic (`mqtt.base_topic`), `node` the board (`mqtt.node`).",
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {"broker": {"host": "localhost:1883", "protocol": "mqtt", "protocolVersion": "5.0"}},
        "channels": channels,
        "operations": operations,
        "components": {
            "schemas": schemas,
            "messages": messages(),
            "parameters": {
                "node": {"description": "The board's name (`mqtt.node`, or the host name); `any` for `ask` and `cancel` of a fleet."},
                "profile": {"description": "A profile of the configuration."},
                "id": {"description": "The request's `id`, or promptd's own number for it."},
                "operation": {"description": "What to do.", "enum": ["load", "unload", "reload", "drain", "loglevel"]},
            },
        },
    })
}

impl Channel {
    fn object(&self) -> Value {
        let address = format!("promptd/{{node}}/{}", self.address);
        let names = address.split(['{', '}']).skip(1).step_by(2);
        let parameters: Map<String, Value> = names
            .map(|name| {
                (name.to_owned(), json!({"$ref": format!("#/components/parameters/{name}")}))
            })
            .collect();
        let messages = references(self.messages);
        json!({"address": address, "description": self.what, "parameters": parameters, "messages": messages})
    }

    fn operation(&self) -> Value {
        let channel = format!("#/channels/{}", self.name);
        let message = |name| json!({"$ref": format!("{channel}/messages/{name}")});
        let messages: Vec<Value> = self.messages.iter().map(message).collect();
        let mut operation = json!({
            "action": if self.receives { "receive" } else { "send" },
            "channel": {"$ref": channel}, "summary": self.what, "messages": messages,
            "bindings": {"mqtt": {"qos": self.qos, "retain": self.retain, "bindingVersion": "0.2.0"}},
        });
        if let Some(object) = operation.as_object_mut().filter(|_| self.answered) {
            let address = json!({
                "description": "MQTT 5's Response Topic; docs/protocol.md says what holds without one.",
                "location": "$message.header#/responseTopic",
            });
            let channel = json!({"$ref": "#/channels/responseTopic"});
            object.insert("reply".into(), json!({"address": address, "channel": channel}));
        }
        operation
    }
}

/// Messages of a channel.
fn references(names: &[&str]) -> Map<String, Value> {
    let one = |name: &&str| {
        ((*name).to_owned(), json!({"$ref": format!("#/components/messages/{name}")}))
    };
    names.iter().map(one).collect()
}

fn messages() -> Map<String, Value> {
    let payload = |schema: &str| json!({"$ref": format!("#/components/schemas/{schema}")});
    let object = |name: &str| {
        let message =
            json!({"name": name, "contentType": "application/json", "payload": payload(name)});
        (name.to_owned(), message)
    };
    let text = |(name, schema, what): (&str, &str, &str)| {
        let message = json!({"name": name, "summary": what, "contentType": "text/plain", "payload": payload(schema)});
        (name.to_owned(), message)
    };
    OBJECTS.into_iter().map(object).chain(TEXTS.into_iter().map(text)).collect()
}
