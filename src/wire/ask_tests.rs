//! Tables of requests, and what is read from them or said about them.

use std::time::Instant;

use serde_json::json;

use super::*;
use crate::identity::Grant;
use crate::request::{Constraint, Identity, Priority};
use crate::wire::{Limits, Profiles, Readings};

fn with<T>(run: impl FnOnce(&Context<'_>) -> T) -> T {
    let profiles: Profiles = toml::from_str(
        "[lights]\nsystem = \"You switch lights.\"\nschema = '{\"type\":\"object\"}'\nmax_tokens = 64\nstop = [\"\\n\"]\n\
         timeout_ms = 8000\npriority = \"high\"\ntemperature = 0.5\n[plain]\ntop_k = 3\n",
    )
    .unwrap();
    run(&Context {
        profiles: &profiles,
        limits: &Limits::default(),
        readings: &Readings::default(),
        grant: Grant::all(Identity("test".to_owned())),
        now: Instant::now(),
        door: crate::request::Door::Lines,
    })
}

pub(super) fn ask(payload: &str) -> Result<Asked, AskError> {
    with(|context| parse_ask(payload.as_bytes(), None, context))
}

pub(super) fn chat(fields: &Value) -> Result<Asked, AskError> {
    let mut body = json!({"messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    with(|context| parse_chat(body.to_string().as_bytes(), context))
}

fn completion(fields: &Value) -> Result<Asked, AskError> {
    let mut body = json!({"prompt": "hi"});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    with(|context| parse_completion(body.to_string().as_bytes(), context))
}

fn text_of(asked: Result<Asked, AskError>) -> String {
    match asked.unwrap().submission.request.input {
        Input::Ask { system: None, text } => text,
        other => panic!("{other:?}"),
    }
}

pub(super) fn refused(asked: Result<Asked, AskError>) -> (&'static str, Option<String>) {
    let refusal = asked.unwrap_err().refusal;
    (refusal.code.as_str(), refusal.param)
}

#[test]
fn plain_text_is_the_prompt() {
    for (payload, text) in [
        ("hi", "hi"),
        ("hi\n", "hi"),
        ("hi\r\n", "hi"),
        (" hi \n\n", " hi \n"),
        ("\u{feff}hi", "hi"),
        ("[1]", "[1]"),
        ("\"x\"", "\"x\""),
        ("你好", "你好"),
    ] {
        assert_eq!(text_of(ask(payload)), text, "{payload:?}");
    }
    assert_eq!(text_of(ask(" \n {\"prompt\":\"hi\"} ")), "hi");
    for payload in ["", " ", "\n", "\u{feff}"] {
        assert_eq!(refused(ask(payload)), ("bad_request", None), "{payload:?}");
    }
    with(|context| {
        assert_eq!(refused(parse_ask(b"\xff\xfe", None, context)), ("bad_request", None));
    });
}

#[test]
fn json_that_is_cut_off_is_never_text() {
    let whole = r#"{"v":1,"id":"a","prompt":"h\u00e9\ud83d\ude00","stop":["x",null],"seed":-1.5e3,"stream":true}"#;
    for end in 1..whole.len() {
        assert_eq!(refused(ask(whole.get(..end).unwrap())), ("bad_request", None), "{end}");
    }
    for bad in [
        "{}x",
        "{\"prompt\":\"\\ud800\"}",
        "{'prompt':'x'}",
        "{\"prompt\":NaN}",
        "{\"seed\":1e999,\"prompt\":\"x\"}",
    ] {
        assert_eq!(refused(ask(bad)), ("bad_request", None), "{bad}");
    }
    let deep =
        format!("{{\"metadata\":{}{},\"prompt\":\"x\"}}", "[".repeat(10_000), "]".repeat(10_000));
    assert_eq!(refused(ask(&deep)), ("bad_request", None));
}

#[test]
fn a_full_ask() {
    let asked = ask(
        r#"{"v":1,"id":"esp32-7:42","prompt":"on","system":"S","max_tokens":64,"temperature":0.5,"top_p":0.9,"top_k":40,
            "min_p":0.1,"seed":1,"stop":"\n","regex":"on|off","stream":true,"priority":"low","timeout_ms":8000,
            "max_bytes":200,"format":"text","reply_to":"esp32-7/llm","model":"m","session":null}"#,
    )
    .unwrap();
    let Submission { request, identity, priority, timeout, .. } = asked.submission;
    assert_eq!(request.input, Input::Ask { system: Some("S".to_owned()), text: "on".to_owned() });
    assert_eq!((request.max_tokens, request.stop), (Some(64), vec!["\n".to_owned()]));
    assert_eq!(request.constraint, Constraint::Regex("on|off".to_owned()));
    assert_eq!((request.sampling.top_k, request.sampling.seed), (40, Some(1)));
    assert_eq!(identity, Identity("test".to_owned()));
    assert_eq!((priority, timeout), (Priority::Low, Some(std::time::Duration::from_secs(8))));
    assert_eq!(
        (asked.id.as_deref(), asked.reply_to.as_deref()),
        (Some("esp32-7:42"), Some("esp32-7/llm"))
    );
    assert_eq!(
        (asked.stream, asked.format, asked.max_bytes),
        (true, AnswerFormat::Text, Some(200))
    );
    assert_eq!(asked.echo_model.as_deref(), Some("m"));
}

#[test]
fn a_profile_gives_defaults_and_its_schema_holds() {
    let schema = Constraint::JsonSchema("{\"type\":\"object\"}".to_owned());
    let from_topic = with(|context| parse_ask(b"on", Some("lights"), context)).unwrap();
    assert_eq!(from_topic.profile.as_deref(), Some("lights"));
    let request = from_topic.submission.request;
    assert_eq!(
        request.input,
        Input::Ask { system: Some("You switch lights.".to_owned()), text: "on".to_owned() }
    );
    assert_eq!((request.constraint, request.max_tokens), (schema.clone(), Some(64)));
    assert_eq!(from_topic.submission.priority, Priority::High);

    let over = ask(r#"{"prompt":"x","profile":"lights","max_tokens":3,"stop":[],"system":"T","temperature":0}"#).unwrap();
    let request = over.submission.request;
    assert_eq!(
        (request.max_tokens, request.stop.len(), request.sampling.temperature.to_bits()),
        (Some(3), 0, 0)
    );
    assert_eq!(request.input, Input::Ask { system: Some("T".to_owned()), text: "x".to_owned() });

    let messages = chat(&json!({"profile": "lights"})).unwrap().submission.request.input;
    let Input::Chat(messages) = messages else { panic!("{messages:?}") };
    assert_eq!((messages.len(), messages[0].content.as_str()), (2, "You switch lights."));

    for (body, expected) in [
        (r#"{"prompt":"x","profile":"lights","regex":"a"}"#, ("bad_request", "regex")),
        (
            r#"{"prompt":"x","profile":"lights","response_format":{"type":"json_object"}}"#,
            ("bad_request", "response_format"),
        ),
        (r#"{"prompt":"x","profile":"light"}"#, ("not_found", "profile")),
        (r#"{"prompt":"x","profile":1}"#, ("bad_request", "profile")),
    ] {
        assert_eq!(refused(ask(body)), (expected.0, Some(expected.1.to_owned())), "{body}");
    }
    let both =
        with(|context| parse_ask(br#"{"prompt":"x","profile":"plain"}"#, Some("lights"), context));
    assert_eq!(refused(both), ("bad_request", Some("profile".to_owned())));
    assert_eq!(
        refused(completion(&json!({"profile": "lights"}))),
        ("bad_request", Some("profile".to_owned()))
    );
    assert_eq!(
        completion(&json!({"profile": "plain"})).unwrap().submission.request.sampling.top_k,
        3
    );
}

#[test]
fn the_id_comes_back_with_a_refusal() {
    let error = ask(r#"{"id":"a","reply_to":"b/c","max_tokens":0,"prompt":"x"}"#).unwrap_err();
    assert_eq!((error.id.as_deref(), error.reply_to.as_deref()), (Some("a"), Some("b/c")));
    let error = ask(r#"{"id":"a/b","reply_to":"$SYS/x","prompt":"x"}"#).unwrap_err();
    assert_eq!(
        (error.id, error.reply_to, error.refusal.param.as_deref()),
        (None, None, Some("id"))
    );
}

#[test]
fn a_refusal_knows_the_form_that_the_asker_reads() {
    let form = |fields: &str| {
        let error = ask(&format!(r#"{{"prompt":"x","profile":"nope",{fields}}}"#)).unwrap_err();
        (error.format, error.max_bytes)
    };
    assert_eq!(form(r#""format":"text","max_bytes":64"#), (AnswerFormat::Text, Some(64)));
    assert_eq!(form(r#""format":"xml","max_bytes":128"#), (AnswerFormat::Json, Some(128)));
    assert_eq!(form(r#""format":"text","max_bytes":1"#), (AnswerFormat::Text, None));
}

#[test]
fn wrong_types_and_ranges_name_the_field() {
    let big = || json!(9_223_372_036_854_775_808_u64);
    let odd = || vec![json!("1"), json!([1]), json!({}), json!(true), json!(1e308), json!(-1)];
    let mut table: Vec<(&str, Value)> = Vec::new();
    for field in ["max_tokens", "max_completion_tokens", "timeout_ms"] {
        table.extend(
            odd().into_iter().chain([json!(0), json!(1.5), big()]).map(|value| (field, value)),
        );
    }
    for field in ["temperature", "top_p", "min_p"] {
        table.extend(odd().into_iter().chain([json!(2.01), big()]).map(|value| (field, value)));
    }
    table.extend(odd().into_iter().chain([json!(0.5), big()]).map(|value| ("top_k", value)));
    table.extend([json!("1"), json!(1.5), json!(1e308), json!([])].map(|value| ("seed", value)));
    table.extend([json!("true"), json!(1), json!({})].map(|value| ("stream", value)));
    table.extend(
        [json!(1), json!({}), json!(""), json!("x".repeat(257))].map(|value| ("stop", value)),
    );
    table.extend([json!(vec!["x"; 17])].map(|value| ("stop", value)));
    table.extend([json!("urgent"), json!(1)].map(|value| ("priority", value)));
    table.extend([json!(""), json!(1), json!("x".repeat(4097))].map(|value| ("regex", value)));
    table.extend([json!([]), json!("on"), json!(vec!["x"; 257])].map(|value| ("choices", value)));
    table.extend([json!(1), json!([])].map(|value| ("model", value)));
    table.extend(
        [json!("json_object"), json!(1), json!([])].map(|value| ("response_format", value)),
    );
    table.extend([json!(1), json!("x"), json!({})].map(|value| ("messages", value)));
    table.extend([json!([])].map(|value| ("messages", value)));
    table.extend([json!(true), json!([])].map(|value| ("stream_options", value)));
    for (field, value) in table {
        let expected = ("bad_request", Some(field.to_owned()));
        assert_eq!(refused(chat(&json!({ field: value }))), expected, "{field}: {value}");
    }
    for (field, value) in [
        ("max_bytes", json!(0)),
        ("max_bytes", json!("200")),
        ("format", json!("xml")),
        ("reply_to", json!("a/#")),
        ("reply_to", json!("$SYS/a")),
        ("reply_to", json!("")),
        ("id", json!(42)),
        ("id", json!("a/b")),
        ("v", json!(2)),
        ("v", json!("1")),
        ("prompt", json!("")),
        ("prompt", json!(1)),
        ("prompt", json!(["x"])),
        ("system", json!(1)),
    ] {
        let mut body = json!({"prompt": "x"});
        body[field] = value.clone();
        assert_eq!(
            refused(ask(&body.to_string())),
            ("bad_request", Some(field.to_owned())),
            "{field}: {value}"
        );
    }
}

#[test]
fn good_values() {
    for fields in [
        json!({"max_tokens": 1, "max_completion_tokens": 1}),
        json!({"max_tokens": 64.0}),
        json!({"temperature": 0, "top_p": 0, "min_p": 1}),
        json!({"temperature": 2, "top_p": 1.0}),
        json!({"n": 1, "logprobs": false, "top_logprobs": 0, "tools": [], "tool_choice": "auto", "logit_bias": {}}),
        json!({"frequency_penalty": 0, "presence_penalty": 0.0, "user": "u", "metadata": {"a": "b"}, "store": false}),
        json!({"parallel_tool_calls": true, "service_tier": "auto", "modalities": ["text"], "functions": []}),
        json!({"audio": null, "tools": null, "max_tokens": null, "stop": null, "n": null}),
        json!({"response_format": {"type": "text"}, "stream_options": {"include_usage": true}}),
        json!({"model": "anything"}),
    ] {
        chat(&fields).unwrap();
    }
    for (seed, expected) in [
        (json!(-1), u64::MAX),
        (json!(u64::MAX), u64::MAX),
        (json!(i64::MIN), 1 << 63),
        (json!(0), 0),
    ] {
        assert_eq!(
            chat(&json!({"seed": seed})).unwrap().submission.request.sampling.seed,
            Some(expected)
        );
    }
    for tiny in [0.0, 1e-300, 1e-40, 1e-5] {
        let sampling = chat(&json!({"temperature": tiny})).unwrap().submission.request.sampling;
        assert_eq!(sampling.temperature.to_bits(), 0, "{tiny}");
    }
    assert!(
        chat(&json!({"stream": true, "stream_options": {"include_usage": true}}))
            .unwrap()
            .include_usage
    );
    // The last of two keys counts.
    assert_eq!(text_of(ask(r#"{"prompt":"a","prompt":"b"}"#)), "b");
}

#[test]
fn unknown_and_misplaced_fields() {
    for (body, param, hint) in [
        (json!({"max_token": 5}), "max_token", "did you mean `max_tokens`?"),
        (json!({"maxTokens": 5}), "maxTokens", "did you mean `max_tokens`?"),
        (json!({"qqqq": null}), "qqqq", "there is no field \"qqqq\""),
        (json!({"prompt": "x"}), "prompt", "it belongs to a completion request"),
        (json!({"reply_to": "x"}), "reply_to", "it belongs to a request"),
        (
            json!({"stream_options": {"include_usages": true}}),
            "stream_options.include_usages",
            "`include_usage`",
        ),
        (
            json!({"response_format": {"type": "text", "schema": {}}}),
            "response_format.schema",
            "no field",
        ),
        (json!({"response_format": {}}), "response_format.type", "is missing"),
        (json!({"response_format": {"type": "yaml"}}), "response_format.type", "must be"),
        (
            json!({"response_format": {"type": "json_schema"}}),
            "response_format.json_schema",
            "is missing",
        ),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {}}}),
            "response_format.json_schema.schema",
            "is missing",
        ),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"schema": 1}}}),
            "response_format.json_schema.schema",
            "must be",
        ),
        (json!({"response_format": {"type": "json_object"}, "regex": "a"}), "regex", "only one of"),
        (
            json!({"max_tokens": 1, "max_completion_tokens": 2}),
            "max_completion_tokens",
            "mean the same",
        ),
    ] {
        let refusal = chat(&body).unwrap_err().refusal;
        assert_eq!(
            (refusal.code, refusal.param.as_deref()),
            (Code::BadRequest, Some(param)),
            "{body}"
        );
        assert!(refusal.message.contains(hint), "{body}: {}", refusal.message);
    }
    assert_eq!(
        refused(completion(&json!({"messages": []}))),
        ("bad_request", Some("messages".to_owned()))
    );
}

#[test]
fn known_but_not_done() {
    for (field, value) in [
        ("n", json!(2)),
        ("n", json!("1")),
        ("audio", json!({})),
        ("modalities", json!(["text", "audio"])),
        ("reasoning_effort", json!("high")),
        ("store", json!(true)),
    ] {
        assert_eq!(
            refused(chat(&json!({ field: value }))),
            ("unsupported", Some(field.to_owned())),
            "{field}: {value}"
        );
    }
    for (field, value) in [
        ("suffix", json!("x")),
        ("best_of", json!(2)),
        ("prompt", json!(["a", "b"])),
        ("prompt", json!([1, 2])),
        ("prompt", json!([[1]])),
    ] {
        assert_eq!(
            refused(completion(&json!({ field: value }))),
            ("unsupported", Some(field.to_owned())),
            "{field}: {value}"
        );
    }
}

#[test]
fn sessions_have_names() {
    let asked = ask(r#"{"prompt":"x","session":"kitchen"}"#).unwrap();
    assert_eq!(asked.submission.session.as_deref(), Some("kitchen"));
    let named = |session: Value| refused(chat(&json!({"session": session})));
    for wrong in [json!(""), json!("a/b"), json!("a b"), json!(1), json!("x".repeat(129))] {
        assert_eq!(named(wrong), ("bad_request", Some("session".to_owned())));
    }
    // A text to continue is no conversation.
    assert_eq!(
        refused(completion(&json!({"session": "kitchen"}))),
        ("bad_request", Some("session".to_owned()))
    );
}

#[test]
fn messages_and_their_content() {
    let read = |message: Value| chat(&json!({"messages": [message]}));
    for (message, expected) in [
        (json!({"role": "user", "content": "a"}), (Role::User, "a")),
        (json!({"role": "developer", "content": ""}), (Role::System, "")),
        (
            json!({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}),
            (Role::User, "a\nb"),
        ),
        (
            json!({"role": "assistant", "content": "a", "tool_calls": null, "refusal": null, "annotations": []}),
            (Role::Assistant, "a"),
        ),
        (json!({"role": "tool", "content": "a", "tool_call_id": "1"}), (Role::Tool, "a")),
    ] {
        let Input::Chat(list) = read(message.clone()).unwrap().submission.request.input else {
            panic!("{message}")
        };
        assert_eq!((list[0].role, list[0].content.as_str()), expected, "{message}");
    }
    for (message, expected) in [
        (json!(1), ("bad_request", "messages[0]")),
        (json!({"content": "a"}), ("bad_request", "messages[0].role")),
        (json!({"role": "robot", "content": "a"}), ("bad_request", "messages[0].role")),
        (json!({"role": "user"}), ("bad_request", "messages[0].content")),
        (json!({"role": "user", "content": null}), ("bad_request", "messages[0].content")),
        (json!({"role": "user", "content": 1}), ("bad_request", "messages[0].content")),
        (json!({"role": "user", "content": []}), ("bad_request", "messages[0].content")),
        (json!({"role": "user", "content": ["a"]}), ("bad_request", "messages[0].content[0]")),
        (
            json!({"role": "user", "content": [{"text": "a"}]}),
            ("bad_request", "messages[0].content[0].type"),
        ),
        (
            json!({"role": "user", "content": [{"type": "text"}]}),
            ("bad_request", "messages[0].content[0].text"),
        ),
        (
            json!({"role": "user", "content": [{"type": "image_url"}]}),
            ("unsupported", "messages[0].content[0].type"),
        ),
        (
            json!({"role": "assistant", "content": "", "tool_calls": [{}]}),
            ("bad_request", "messages[0].tool_calls[0].type"),
        ),
        (
            json!({"role": "user", "content": "", "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}),
            ("bad_request", "messages[0].tool_calls"),
        ),
        (
            json!({"role": "user", "content": "a", "contant": "b"}),
            ("bad_request", "messages[0].contant"),
        ),
    ] {
        assert_eq!(
            refused(read(message.clone())),
            (expected.0, Some(expected.1.to_owned())),
            "{message}"
        );
    }
    let twice = ask(r#"{"messages":[{"role":"system","content":"a"}],"system":"b"}"#);
    assert_eq!(refused(twice), ("bad_request", Some("system".to_owned())));
    assert_eq!(refused(ask("{}")), ("bad_request", Some("prompt".to_owned())));
}

#[test]
fn completion_prompts() {
    for (prompt, text) in [(json!("a"), "a"), (json!(["a"]), "a"), (json!(""), "")] {
        let input = completion(&json!({ "prompt": prompt })).unwrap().submission.request.input;
        assert_eq!(input, Input::Completion(text.to_owned()));
    }
    for prompt in [json!(null), json!(1), json!([]), json!({}), json!([null])] {
        assert_eq!(
            refused(completion(&json!({ "prompt": prompt }))),
            ("bad_request", Some("prompt".to_owned())),
            "{prompt}"
        );
    }
}

#[test]
fn a_schema_keeps_its_key_order() {
    let body = r#"{"messages":[{"role":"user","content":"x"}],"response_format":{"type":"json_schema","json_schema":
        {"name":"n","strict":true,"schema":{"type":"object","properties":{"z":{},"a":{}},"required":["z","a"]}}}}"#;
    let asked = with(|context| parse_chat(body.as_bytes(), context)).unwrap();
    let schema = r#"{"type":"object","properties":{"z":{},"a":{}},"required":["z","a"]}"#;
    assert_eq!(asked.submission.request.constraint, Constraint::JsonSchema(schema.to_owned()));
    assert!(asked.is_json());
}

#[test]
fn payloads_over_the_limit() {
    let limits = Limits { payload_bytes: 10, ..Limits::default() };
    let context = Context {
        profiles: &Profiles::default(),
        limits: &limits,
        readings: &Readings::default(),
        grant: Grant::all(Identity(String::new())),
        now: Instant::now(),
        door: crate::request::Door::Lines,
    };
    let refusal = parse_ask(b"12345678901", None, &context).unwrap_err().refusal;
    assert_eq!(
        (refusal.code, refusal.limit, refusal.have),
        (Code::PayloadTooLarge, Some(10), Some(11))
    );
    parse_ask(b"1234567890", None, &context).unwrap();
}

#[test]
fn models_by_name() {
    for (asked, served, good) in [
        (None, Some("m"), true),
        (Some("m"), Some("m"), true),
        (Some("default"), Some("m"), true),
        (Some("promptd"), Some("m"), true),
        (Some("gpt-4"), Some("m"), false),
        (Some("gpt-4"), None, true),
        (Some(""), Some("m"), false),
    ] {
        let checked = chat(&json!({ "model": asked })).unwrap().check_model(served);
        assert_eq!(checked.is_ok(), good, "{asked:?} {served:?}");
    }
}

type Parse = fn(&[u8], &Context<'_>) -> Result<Asked, AskError>;

/// Whatever stands in a field: the request is read, or the refusal names the field and the code is one of three.
#[test]
fn no_value_of_any_field_is_a_surprise() {
    let values = [
        json!(null),
        json!(true),
        json!(false),
        json!(0),
        json!(1),
        json!(-1),
        json!(0.5),
        json!(1e308),
        json!(-1e308),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(""),
        json!("1"),
        json!("\0"),
        json!("x".repeat(100_000)),
        json!([]),
        json!([null]),
        json!([[]]),
        json!([{}]),
        json!(["a", 1]),
        json!(vec!["a"; 2000]),
        json!({}),
        json!({"type": null}),
        json!({"type": "json_schema", "json_schema": []}),
        json!({"": {"": []}}),
    ];
    let kinds: [(Parse, Value); 4] = [
        (|body, context| parse_ask(body, None, context), json!({"prompt": "x"})),
        (
            |body, context| parse_ask(body, None, context),
            json!({"messages": [{"role": "user", "content": "x"}]}),
        ),
        (parse_chat, json!({"messages": [{"role": "user", "content": "x"}]})),
        (parse_completion, json!({"prompt": "x"})),
    ];
    let mut read = 0;
    for (parse, base) in &kinds {
        for field in super::super::known::names() {
            for value in &values {
                let mut body = base.clone();
                body[field] = value.clone();
                let Err(error) = with(|context| parse(body.to_string().as_bytes(), context)) else {
                    read += 1;
                    continue;
                };
                let (code, param) =
                    (error.refusal.code.as_str(), error.refusal.param.unwrap_or_default());
                assert!(
                    ["bad_request", "unsupported", "not_found"].contains(&code),
                    "{field}: {value}"
                );
                // `prompt` and `messages` exclude each other; either may be the one that is named.
                let named =
                    param.starts_with(field) || ["prompt", "messages"].contains(&param.as_str());
                assert!(named, "{field}: {value}: {param}");
            }
        }
    }
    assert!(read > 500, "{read}");
}
