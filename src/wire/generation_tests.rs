//! How sampling, log probabilities and forms are asked for, in each kind of request.

use std::time::Instant;

use serde_json::{Value, json};

use super::super::{AskError, Asked, Context, Profiles, parse_ask, parse_chat, parse_completion};
use super::*;
use crate::identity::Grant;
use crate::request::Identity;
use crate::wire::Readings;

fn with<T>(read: impl FnOnce(&Context<'_>) -> T) -> T {
    let (profiles, limits) = (Profiles::default(), Limits::default());
    read(&Context {
        profiles: &profiles,
        limits: &limits,
        readings: &Readings::default(),
        grant: Grant::all(Identity("u".to_owned())),
        now: Instant::now(),
        door: crate::request::Door::Lines,
    })
}

fn chat(fields: &Value) -> Result<Asked, AskError> {
    let mut body = json!({"messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    with(|context| parse_chat(body.to_string().as_bytes(), context))
}

fn completion(fields: &Value) -> Result<Asked, AskError> {
    let mut body = json!({"prompt": "once"});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    with(|context| parse_completion(body.to_string().as_bytes(), context))
}

fn ask(fields: &Value) -> Result<Asked, AskError> {
    let mut body = json!({"prompt": "once"});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    with(|context| parse_ask(body.to_string().as_bytes(), None, context))
}

fn refused(asked: Result<Asked, AskError>) -> (&'static str, String) {
    let refusal = asked.unwrap_err().refusal;
    (refusal.code.as_str(), refusal.param.unwrap())
}

#[test]
fn penalties_and_biases() {
    let fields = json!({"repetition_penalty": 1.5, "presence_penalty": -2, "frequency_penalty": 0.25,
        "logit_bias": {"7": -100, "0": 1.5, "9": null}});
    for asked in [chat(&fields), completion(&fields), ask(&fields)] {
        let sampling = asked.unwrap().submission.request.sampling;
        let penalties =
            [sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty];
        assert_eq!(format!("{penalties:?}"), "[1.5, -2.0, 0.25]");
        assert_eq!(format!("{:?}", sampling.logit_bias), "[(7, -100.0), (0, 1.5)]");
    }
    let many: serde_json::Map<String, Value> =
        (0..1025).map(|id| (id.to_string(), json!(1))).collect();
    for (fields, param) in [
        (json!({"repetition_penalty": 0}), "repetition_penalty"),
        (json!({"presence_penalty": 2.01}), "presence_penalty"),
        (json!({"frequency_penalty": "high"}), "frequency_penalty"),
        (json!({"logit_bias": {"1": 101}}), "logit_bias.1"),
        (json!({"logit_bias": {"one": 1}}), "logit_bias"),
        (json!({"logit_bias": {"01": 1}}), "logit_bias"),
        (json!({"logit_bias": {"-1": 1}}), "logit_bias"),
        (json!({"logit_bias": {"4294967296": 1}}), "logit_bias"),
        (json!({"logit_bias": [1]}), "logit_bias"),
        (json!({"logit_bias": many}), "logit_bias"),
    ] {
        assert_eq!(refused(chat(&fields)), ("bad_request", param.to_owned()), "{fields}");
    }
}

#[test]
fn log_probabilities_are_asked_for_as_each_api_does() {
    let wants = |asked: Result<Asked, AskError>| asked.unwrap().submission.request.logprobs;
    for (fields, expected) in [
        (json!({}), None),
        (json!({"logprobs": false}), None),
        (json!({"logprobs": true}), Some(0)),
        (json!({"logprobs": true, "top_logprobs": 20}), Some(20)),
    ] {
        assert_eq!((wants(chat(&fields)), wants(ask(&fields))), (expected, expected), "{fields}");
    }
    for (fields, expected) in [
        (json!({"logprobs": false}), None),
        (json!({"logprobs": 0}), Some(0)),
        (json!({"logprobs": 5, "top_logprobs": 0}), Some(5)),
    ] {
        assert_eq!(wants(completion(&fields)), expected, "{fields}");
    }
    for (asked, param) in [
        (chat(&json!({"logprobs": 1})), "logprobs"),
        (chat(&json!({"top_logprobs": 1})), "top_logprobs"),
        (chat(&json!({"logprobs": true, "top_logprobs": 21})), "top_logprobs"),
        (completion(&json!({"logprobs": true})), "logprobs"),
        (completion(&json!({"logprobs": 6})), "logprobs"),
        (completion(&json!({"logprobs": 1, "top_logprobs": 1})), "top_logprobs"),
    ] {
        assert_eq!(refused(asked), ("bad_request", param.to_owned()));
    }
    // Where there is no place for them.
    for fields in
        [json!({"logprobs": true, "format": "text"}), json!({"logprobs": true, "max_bytes": 500})]
    {
        assert_eq!(refused(ask(&fields)), ("unsupported", "logprobs".to_owned()), "{fields}");
    }
}

#[test]
fn the_prompt_is_repeated_where_that_is_asked_for() {
    assert_eq!(completion(&json!({"echo": true})).unwrap().echo.as_deref(), Some("once"));
    assert_eq!(completion(&json!({"echo": false})).unwrap().echo, None);
    assert_eq!(
        refused(completion(&json!({"echo": true, "logprobs": 0}))),
        ("unsupported", "echo".to_owned())
    );
    assert_eq!(refused(completion(&json!({"echo": 1}))), ("bad_request", "echo".to_owned()));
    assert_eq!(refused(chat(&json!({"echo": true}))), ("bad_request", "echo".to_owned()));
}

#[test]
fn grammars_are_one_form_among_the_others() {
    let asked = ask(&json!({"grammar": "start: \"a\""})).unwrap();
    assert_eq!(asked.submission.request.constraint, Constraint::Lark("start: \"a\"".to_owned()));
    assert!(!asked.is_json());
    for fields in [
        json!({"grammar": ""}),
        json!({"grammar": 1}),
        json!({"grammar": "start: \"a\"", "regex": "a"}),
        json!({"grammar": "x".repeat(65_537)}),
    ] {
        assert_eq!(refused(ask(&fields)).0, "bad_request", "{fields}");
    }
}

#[test]
fn ends_by_token_and_contexts_that_slide() {
    let request = |fields: &Value| ask(fields).unwrap().submission.request;
    let plain = request(&json!({}));
    assert_eq!(plain.stop_token_ids, [0_u32; 0]);
    assert_eq!(plain.context_overflow, ContextOverflow::Stop);
    let fields = json!({"stop_token_ids": [2, 7], "context_overflow": "slide"});
    for asked in [ask(&fields), chat(&fields), completion(&fields)] {
        let request = asked.unwrap().submission.request;
        assert_eq!(request.stop_token_ids, [2, 7]);
        assert_eq!(request.context_overflow, ContextOverflow::Slide);
    }
    for (fields, param) in [
        (json!({"stop_token_ids": 2}), "stop_token_ids"),
        (json!({"stop_token_ids": [-1]}), "stop_token_ids[0]"),
        (json!({"stop_token_ids": vec![1; 17]}), "stop_token_ids"),
        (json!({"context_overflow": "cut"}), "context_overflow"),
        (json!({"context_overflow": true}), "context_overflow"),
    ] {
        assert_eq!(refused(ask(&fields)), ("bad_request", param.to_owned()), "{fields}");
    }
}
