//! Tests of what the operator decides about requests: who may what, fixed profiles, values in prompts.

use std::time::Instant;

use serde_json::json;

use super::*;
use crate::identity::Grant;
use crate::request::{Identity, Priority};
use crate::wire::{Limits, Profiles, Readings};

fn refused(asked: Result<Asked, AskError>) -> (&'static str, Option<String>) {
    let refusal = asked.unwrap_err().refusal;
    (refusal.code.as_str(), refusal.param)
}

/// Reads as somebody, with profiles and values of its own.
fn as_somebody(profiles: &str, grant: Grant, payload: &Value) -> Result<Asked, AskError> {
    let profiles: Profiles = toml::from_str(profiles).unwrap();
    profiles.check(&Limits::default()).map_err(|(_, refusal)| refusal.message).unwrap();
    let (readings, now) = (Readings::default(), Instant::now());
    readings.follow(&profiles.context_topics());
    readings.note("attic/temperature", b"21.5", now);
    let context = Context {
        profiles: &profiles,
        readings: &readings,
        limits: &Limits::default(),
        grant,
        now,
        door: crate::request::Door::Lines,
    };
    parse_ask(payload.to_string().as_bytes(), None, &context)
}

fn somebody() -> Grant {
    Grant::all(Identity("somebody".to_owned()))
}

#[test]
fn values_stand_behind_the_system_message() {
    let profiles = "[a]\nsystem = \"You know a house.\\n\"\ncontext_topics = [\"attic/temperature\", \"silent\"]\n\
         [b]\ncontext_topics = [\"silent\"]\n";
    let line = "attic/temperature = 21.5, 0 s ago";
    let read =
        |payload| as_somebody(profiles, somebody(), &payload).unwrap().submission.request.input;
    let system = |input| match input {
        Input::Ask { system, .. } => system,
        Input::Chat(messages) => Some(messages[0].content.clone()),
        Input::Completion(_) | Input::Embed(_) => panic!("no conversation"),
    };
    for (payload, expected) in [
        (json!({"prompt": "x", "profile": "a"}), format!("You know a house.\n{line}")),
        (json!({"prompt": "x", "profile": "a", "system": "Mine."}), format!("Mine.\n{line}")),
        (
            json!({"profile": "a", "messages": [{"role": "user", "content": "x"}]}),
            format!("You know a house.\n{line}"),
        ),
        (
            json!({"profile": "a", "messages": [{"role": "system", "content": "Own."}, {"role": "user", "content": "x"}]}),
            format!("Own.\n{line}"),
        ),
    ] {
        assert_eq!(system(read(payload.clone())).as_deref(), Some(expected.as_str()), "{payload}");
    }
    assert_eq!(system(read(json!({"prompt": "x", "profile": "b"}))), None, "nothing is known");
}

#[test]
fn a_fixed_profile_leaves_the_question() {
    let profiles = "[a]\nfixed = true\nmax_tokens = 9\npriority = \"high\"\n[b]\nmax_tokens = 9\n";
    let read = |payload: Value| as_somebody(profiles, somebody(), &payload);
    let asked = read(json!({"prompt": "x", "profile": "a", "id": "1", "stream": true})).unwrap();
    assert_eq!(
        (asked.submission.request.max_tokens, asked.submission.priority),
        (Some(9), Priority::High)
    );
    for (field, value) in [
        ("max_tokens", json!(5)),
        ("temperature", json!(0)),
        ("system", json!("no")),
        ("timeout_ms", json!(5)),
        ("priority", json!("low")),
        ("regex", json!("x")),
    ] {
        let payload = json!({"prompt": "x", "profile": "a", field: value});
        assert_eq!(refused(read(payload)), ("forbidden", Some(field.to_owned())));
        let payload = json!({"prompt": "x", "profile": "b", field: value});
        assert!(read(payload).is_ok(), "{field}");
    }
    let payload = json!({"profile": "a", "messages": [{"role": "system", "content": "no"}, {"role": "user", "content": "x"}]});
    assert_eq!(refused(read(payload)), ("forbidden", Some("system".to_owned())));
    assert!(read(json!({"prompt": "x", "profile": "a", "max_tokens": null})).is_ok());
}

#[test]
fn rights_to_profiles_and_priorities() {
    let profiles = "[a]\nclients = [\"kitchen\", \"uid:7\"]\npriority = \"high\"\n";
    let read = |name: &str, priority, payload: Value| {
        let grant = Grant { priority, ..Grant::all(Identity(name.to_owned())) };
        as_somebody(profiles, grant, &payload)
    };
    let with_profile = json!({"prompt": "x", "profile": "a"});
    for name in ["kitchen", "uid:7"] {
        // The profile's own priority is the operator's word.
        let asked = read(name, Priority::Low, with_profile.clone()).unwrap();
        assert_eq!(asked.submission.priority, Priority::High);
    }
    assert_eq!(
        refused(read("uid:8", Priority::High, with_profile)),
        ("forbidden", Some("profile".to_owned()))
    );
    let urgent = json!({"prompt": "x", "priority": "high"});
    assert!(read("uid:8", Priority::High, urgent.clone()).is_ok());
    assert_eq!(
        refused(read("uid:8", Priority::Normal, urgent)),
        ("forbidden", Some("priority".to_owned()))
    );
    let asked = read("uid:8", Priority::Low, json!({"prompt": "x", "priority": "low"})).unwrap();
    assert_eq!(asked.submission.identity.0, "uid:8");
    // Who says nothing gets what it may have.
    let asked = read("uid:8", Priority::Low, json!({"prompt": "x"})).unwrap();
    assert_eq!(asked.submission.priority, Priority::Low);
}
