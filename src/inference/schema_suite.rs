//! The JSON-Schema test suite (drafts 2020-12 and 7): each schema is enforced rightly, or refused with the keyword named.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use llguidance::Matcher;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde_json::{Map, Value, json};

use super::form::{Admission, is_allowed};
use super::grammar::{Demand, Grammars};
use super::test_material;
use super::tokenizer::Tokenizer;
use super::tokenizer::tests::tiny;
use crate::request::{Code, Constraint};

fn grammars() -> Grammars {
    let tokenizer = tiny();
    let vocab = tokenizer.vocab_size();
    Grammars::new(Arc::new(tokenizer), Arc::new([2]), vocab)
}

/// Texts of a value: its properties in all orders, because a form fixes the order that the schema names them in.
fn texts(value: &Value) -> Vec<String> {
    const MOST: usize = 720;
    match value {
        Value::Array(items) => {
            let mut all = vec![String::new()];
            for item in items {
                let ends = texts(item);
                all = all
                    .iter()
                    .flat_map(|start| ends.iter().map(move |end| format!("{start},{end}")))
                    .take(MOST)
                    .collect();
            }
            all.iter().map(|text| format!("[{}]", text.strip_prefix(',').unwrap_or(text))).collect()
        }
        Value::Object(map) if map.is_empty() => vec!["{}".to_owned()],
        Value::Object(map) => orders(map)
            .into_iter()
            .map(|text| format!("{{{}}}", text.strip_prefix(',').unwrap_or(&text)))
            .take(MOST)
            .collect(),
        other => vec![other.to_string()],
    }
}

fn orders(map: &Map<String, Value>) -> Vec<String> {
    if map.is_empty() {
        return vec![String::new()];
    }
    let mut all = Vec::new();
    for (key, value) in map {
        let rest: Map<String, Value> = map
            .iter()
            .filter(|(other, _)| *other != key)
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        for (start, end) in texts(value)
            .iter()
            .flat_map(|start| orders(&rest).into_iter().map(move |end| (start.clone(), end)))
        {
            all.push(format!(",{}:{start}{end}", Value::from(key.as_str())));
        }
    }
    all
}

/// Whether a form takes a text whole. `tiny` has a token for each byte.
fn takes(matcher: &Matcher, text: &str) -> bool {
    let mut matcher = matcher.clone();
    let tokens: Vec<u32> = text.bytes().map(|byte| u32::from(byte) + 3).collect();
    matches!(matcher.try_consume_tokens(&tokens), Ok(taken) if taken == tokens.len())
        && (matcher.is_stopped() || matcher.is_accepting().unwrap_or(false))
}

/// Why a valid instance is not one that a form writes: forms write each value in one way, and some values not at all.
fn left_out(file: &str, instance: &Value) -> Option<&'static str> {
    fn any(value: &Value, wanted: &dyn Fn(&Value) -> bool) -> bool {
        wanted(value)
            || match value {
                Value::Array(items) => items.iter().any(|item| any(item, wanted)),
                Value::Object(fields) => fields.values().any(|item| any(item, wanted)),
                _ => false,
            }
    }
    let text = instance.as_str().unwrap_or_default();
    let whole = |value: &Value| value.is_f64() && value.as_f64().is_some_and(|n| n.fract() == 0.0);
    match file {
        _ if any(instance, &whole) => Some("a whole number is written without a decimal point"),
        _ if text.chars().any(char::is_control) => Some("control characters are not written"),
        "format" => Some("formats are enforced, though draft 2020-12 takes them for annotations"),
        "time" | "date-time" if text.contains(":60") => Some("leap seconds are not written"),
        "hostname" if text.contains("--") => Some("host names have no two hyphens together"),
        "email" if text.starts_with('"') || text.contains('[') => {
            Some("e-mail addresses are plain")
        }
        "ipv6" if text.contains('.') => Some("IPv6 addresses are written in groups only"),
        _ => None,
    }
}

/// All groups of tests of a draft: the file's name, and the group with its dialect in the schema.
fn groups(draft: &str) -> Option<Vec<(String, Value)>> {
    let root = test_material::root()?.join("json-schema/JSON-Schema-Test-Suite/tests").join(draft);
    let mut found = Vec::new();
    for folder in ["", "optional", "optional/format"] {
        let entries = std::fs::read_dir(root.join(folder)).unwrap().flatten();
        for file in entries.map(|entry| entry.path()).filter(|file| file.is_file()) {
            let name = file.file_stem().unwrap().to_string_lossy().into_owned();
            let groups: Vec<Value> =
                serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
            for mut group in groups {
                if draft == "draft7"
                    && let Some(schema) = group["schema"].as_object_mut()
                {
                    let dialect = "http://json-schema.org/draft-07/schema#";
                    schema.entry("$schema").or_insert_with(|| dialect.into());
                }
                found.push((name.clone(), group));
            }
        }
    }
    Some(found)
}

/// Whether a refusal names a keyword of the schema, or says that nothing can satisfy it.
fn names_its_reason(message: &str, schema: &Value) -> bool {
    let source = schema.to_string();
    let mut quoted = message.split('`').skip(1).step_by(2);
    let tail = message.split("cannot be used: ").nth(1).unwrap_or_default();
    // The compiler quotes otherwise.
    let mut other = tail.split('\'').skip(1).step_by(2);
    // A meta-schema that is referred to has keywords of its own, which were not sent along.
    let meta = schema["$ref"].as_str().is_some_and(|of| of.contains("//json-schema.org/"));
    tail.starts_with("no text can satisfy")
        || quoted.any(|name| name == "$ref" || meta || source.contains(&format!("\"{name}\"")))
        || other.any(|name| source.contains(&format!("\"{name}\"")))
}

#[test]
fn every_schema_of_the_suite_is_enforced_or_refused_by_name() {
    let grammars = grammars();
    for (draft, least) in [("draft2020-12", 1000), ("draft7", 700)] {
        let Some(groups) = groups(draft) else { return };
        let (mut enforced, mut refused, mut right) = (0, 0, 0);
        let (mut left, mut wrong): (BTreeMap<&str, usize>, Vec<String>) =
            (BTreeMap::new(), Vec::new());
        for (file, group) in groups {
            let schema = &group["schema"];
            let matcher =
                match grammars.compile_matcher(&Constraint::JsonSchema(schema.to_string())) {
                    Ok(matcher) => matcher,
                    Err(refusal) => {
                        refused += 1;
                        if !names_its_reason(&refusal.message, schema) {
                            wrong.push(format!("{file}: {schema} is refused: {}", refusal.message));
                        }
                        continue;
                    }
                };
            enforced += 1;
            for test in group["tests"].as_array().unwrap() {
                let taken = texts(&test["data"]).iter().any(|text| takes(&matcher, text));
                match (test["valid"] == true, taken) {
                    (true, true) | (false, false) => right += 1,
                    (true, false) => match left_out(&file, &test["data"]) {
                        Some(why) => *left.entry(why).or_default() += 1,
                        None => {
                            wrong.push(format!("{file}: {schema} does not take {}", test["data"]));
                        }
                    },
                    (false, true) => wrong.push(format!("{file}: {schema} takes {}", test["data"])),
                }
            }
        }
        println!(
            "{draft}: {enforced} schemas enforced, {refused} refused by name; {right} instances right; valid but not written: {left:?}"
        );
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        assert!(right > least, "{right}");
    }
}

/// Names that are written in another way, and names that come twice, are no way around a schema.
#[test]
fn no_spelling_leads_around_a_schema() {
    let open = r#"{"type":"object","properties":{"a":{"type":"integer"}}}"#;
    let matcher = grammars().compile_matcher(&Constraint::JsonSchema(open.into())).unwrap();
    assert!(takes(&matcher, r#"{"a":1,"b":"x"}"#));
    for text in [r#"{"a":"x"}"#, "{\"\\u0061\":\"x\"}", r#"{"a":1,"a":"x"}"#, r#"{"b":1,"a":"x"}"#]
    {
        assert!(!takes(&matcher, text), "{text}");
    }
}

/// Each of these once took seconds to hours.
#[test]
fn what_would_take_for_ever_is_refused_at_once() {
    let together = |count: usize| {
        let all: Vec<String> = (0..count).map(|i| format!("/.*x{i}.*/")).collect();
        Constraint::Lark(format!("start: A\nA: {}\n", all.join(" & ")))
    };
    let divisors = |all: &[u64]| {
        let all: Vec<Value> =
            all.iter().map(|of| json!({"type": "number", "multipleOf": of})).collect();
        Constraint::JsonSchema(json!({"allOf": all}).to_string())
    };
    let (grammars, begun) = (grammars(), Instant::now());
    for refused in [together(20), together(2000), divisors(&[101, 103, 105]), divisors(&[999_983])]
    {
        let refusal = grammars.compile_matcher(&refused).err().unwrap();
        assert_eq!(refusal.code, Code::BadRequest, "{refusal}");
    }
    for fine in [together(7), divisors(&[9973])] {
        assert!(grammars.compile_matcher(&fine).is_ok());
    }
    println!("{:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(30));
}

/// The form, however long a busy machine takes to look through the vocabulary first.
fn compiled(grammars: &Grammars, constraint: &Constraint) -> super::form::Form {
    let patience = Instant::now() + Duration::from_mins(3);
    loop {
        match grammars.compile(&Demand::new(constraint, None)) {
            Ok(form) => return form.unwrap(),
            Err(refusal) => assert!(Instant::now() < patience, "{refusal}"),
        }
        std::thread::yield_now();
    }
}

/// What a form costs beside a step of a model with a vocabulary of this size, which takes tens to hundreds of milliseconds.
#[test]
fn forms_cost_little_beside_a_step() {
    let Some(root) = test_material::root() else { return };
    let schema = r#"{"type":"object","properties":{"description_of_the_device":{"type":"string"},"measured_temperature":{"type":"number"},
        "switched_on":{"type":"boolean"},"readings_of_the_last_hours":{"type":"array","items":{"type":"integer","minimum":0,"maximum":99},"maxItems":24}},
        "required":["description_of_the_device","measured_temperature","switched_on","readings_of_the_last_hours"],"additionalProperties":false}"#;
    for (name, eos) in [("llama-32000", 2), ("llama3", 128_001)] {
        let file = root.join(format!("tokenizers/{name}.tokenizer.json"));
        let json = std::fs::read(&file).unwrap();
        let tokenizer = Tokenizer::read(&file, &json, &Value::Null, None).unwrap();
        let vocab = tokenizer.vocab_size();
        let grammars = Grammars::new(Arc::new(tokenizer), Arc::new([eos]), vocab);
        let constraint = Constraint::JsonSchema(schema.into());
        let mut form = compiled(&grammars, &constraint);
        let begun = Instant::now();
        let mut random = ChaCha8Rng::seed_from_u64(5);
        let (mut masks, mut most, mut admissions, mut taken, mut chosen) =
            (Duration::ZERO, Duration::ZERO, Duration::ZERO, 0_u32, 0_u32);
        while !form.is_over() && taken < 400 {
            for token in form.forced() {
                form.take(token).unwrap();
                taken += 1;
            }
            let at = Instant::now();
            let mask = form.mask().unwrap();
            masks += at.elapsed();
            most = most.max(at.elapsed());
            let allowed: Vec<u32> =
                (0..).take(vocab).filter(|id| *id != eos && is_allowed(&mask, *id)).collect();
            if allowed.is_empty() {
                break;
            }
            let token = allowed[random.next_u32() as usize % allowed.len()];
            let at = Instant::now();
            let admission = form.admit(token, taken, 400 - taken - 1).unwrap();
            admissions += at.elapsed();
            (taken, chosen) = (taken + 1, chosen + 1);
            if matches!(admission, Admission::End(_)) {
                break;
            }
        }
        println!(
            "{name}: {chosen} choices; a mask takes {:?} on average and {most:?} at most, taking a token {:?}; all in {:?}",
            masks / chosen,
            admissions / chosen,
            begun.elapsed()
        );
        // One hundredth of a step of 50 ms, the fastest there is for a model of 1 B parameters on a board; five times
        // that, because other tests run at the same time.
        assert!(masks / chosen < Duration::from_micros(2500), "{:?}", masks / chosen);
        assert!(admissions / chosen < Duration::from_micros(2500), "{:?}", admissions / chosen);
    }
}

/// A form that nobody knows how to end does not make each token as dear as all that were tried.
#[test]
fn a_form_without_a_short_ending_costs_no_more() {
    let grammars = grammars();
    let form = Constraint::Regex("[ab]{3000}c".into());
    let mut form = grammars.compile(&Demand::new(&form, None)).unwrap().unwrap();
    let (a, begun) = (u32::from(b'a') + 3, Instant::now());
    for taken in 0..2000 {
        assert_eq!(form.admit(a, taken, 4000 - taken - 1).unwrap(), Admission::Taken);
    }
    println!("{:?}", begun.elapsed() / 2000);
    assert!(begun.elapsed() < Duration::from_secs(10));
}

/// Whatever a model wants and however few tokens it has: what comes is JSON, or not called complete.
#[test]
fn answers_by_chance_are_json() {
    let (tokenizer, grammars) = (tiny(), grammars());
    let vocab = tokenizer.vocab_size();
    let mut random = ChaCha8Rng::seed_from_u64(9);
    let (mut complete, mut incomplete) = (0, 0);
    for (file, group) in groups("draft2020-12").unwrap_or_default() {
        let constraint = Constraint::JsonSchema(group["schema"].to_string());
        for walk in 0..3 {
            let Ok(Some(mut form)) = grammars.compile(&Demand::new(&constraint, None)) else {
                break;
            };
            let (mut text, mut taken, most) = (Vec::new(), 0, 12 + walk * 20);
            while !form.is_over() && taken < most {
                let mask = form.mask().unwrap();
                let allowed: Vec<u32> =
                    (0..).take(vocab).filter(|id| is_allowed(&mask, *id)).collect();
                let token = allowed[random.next_u32() as usize % allowed.len()];
                // The end of the sequence.
                if token == 2 {
                    break;
                }
                let mut took = vec![token];
                if let Admission::End(ending) = form.admit(token, taken, most - taken - 1).unwrap()
                {
                    for token in &ending {
                        form.take(*token).unwrap();
                    }
                    (took, taken) = (ending, most);
                }
                taken += 1;
                text.extend(took.iter().flat_map(|token| tokenizer.pieces().bytes(*token)));
            }
            if !form.is_complete() {
                incomplete += 1;
                continue;
            }
            complete += 1;
            let text = String::from_utf8(text).unwrap();
            let parsed = serde_json::from_str::<Value>(&text);
            let wrong = parsed.err().filter(|error| !error.to_string().contains("out of range"));
            assert!(wrong.is_none(), "{file} {}: {wrong:?}: {text}", group["schema"]);
        }
    }
    println!("{complete} answers are JSON, {incomplete} had too few tokens for any");
    // Few schemas of the suite ask for much.
    assert!(incomplete * 20 <= complete, "{incomplete} {complete}");
}
