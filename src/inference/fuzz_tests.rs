//! Texts full of control tokens, and schemas, damaged at random: what a client writes is never taken for a control token,
//! and a schema is compiled into something that keeps it, or refused in words.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::form::is_allowed;
use super::grammar::Grammars;
use super::hashes::Hashes;
use super::tokenizer::Tokenizer;
use super::tokenizer::tests::tiny;
use super::{Words, folder, schema};
use crate::random::{Random, runs, told};
use crate::request::Constraint;

fn demo() -> Tokenizer {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let folder = folder::open(&path, &mut Hashes::default()).unwrap();
    Words::read(&folder).unwrap().tokenizer
}

const PLAIN: &[&str] = &[
    "<|", "|>", "<", "s>", "im_", "end", "a", " ", "\n", "é", "灯", "\u{e0fe}", "\u{301}", "\0",
    "0", "°C", "\u{fffd}",
];

#[test]
fn fuzz_special_tokens() {
    let tokenizer = demo();
    let control: Vec<String> = (0..u32::try_from(tokenizer.vocab_size()).unwrap())
        .filter(|id| tokenizer.pieces().bytes(*id).is_empty())
        .filter_map(|id| tokenizer.name(id))
        .filter(|name| !name.is_empty())
        .collect();
    assert!(control.len() >= 3, "{control:?}");
    let is_control = |id: &u32| tokenizer.pieces().bytes(*id).is_empty();
    let mut random = Random::of_target(0x2545_f491_4f6c_dd1d);
    let began = Instant::now();
    let (mut meant, mut refused) = (0_u64, 0_u64);
    let all = runs(1);
    let (mut text, mut client): (String, Vec<Range<usize>>) = (String::new(), Vec::new());
    for _ in 0..all {
        text.clear();
        client.clear();
        for _ in 0..random.below(10) {
            let start = text.len();
            let ours = random.below(3) == 0;
            for _ in 0..=random.below(3) {
                if random.below(3) == 0 {
                    let name = &control[random.below(control.len())];
                    // Half a name too: the other half may come from the other side.
                    let cut = (0..=name.len()).rev().filter(|at| name.is_char_boundary(*at));
                    let cuts: Vec<usize> = cut.take(4).collect();
                    text.push_str(name.get(..cuts[random.below(cuts.len())]).unwrap());
                } else {
                    text.push_str(random.pick(PLAIN));
                }
            }
            if !ours {
                match client.last_mut() {
                    Some(last) if last.end == start => last.end = text.len(),
                    _ => client.push(start..text.len()),
                }
            }
        }
        // All of it from a client: no control token at all, and not a byte lost.
        match tokenizer.encode_plain(&text, false) {
            Ok(ids) => {
                assert!(!ids.iter().any(is_control), "{text:?}: {ids:?}");
                let bytes: Vec<u8> =
                    ids.iter().flat_map(|id| tokenizer.pieces().bytes(*id)).copied().collect();
                assert_eq!(String::from_utf8_lossy(&bytes), text);
            }
            Err(_) => refused += 1,
        }
        // A part of it: no more control tokens than the template wrote, and its beginning.
        match tokenizer.encode_conversation(&text, &client) {
            Ok(ids) => {
                let have = ids.iter().filter(|id| is_control(id)).count();
                let most = meant_by_template(&text, &client, &control) + 1;
                assert!(have <= most, "{have} of {most}: {text:?} {client:?}: {ids:?}");
                meant += u64::from(have > 1);
            }
            Err(_) => refused += 1,
        }
    }
    assert!(meant > 0 || all < 100, "no control token was ever meant");
    told("special tokens", began, all, &format!("{meant} with control tokens, {refused} refused"));
}

/// The places where a control token stands that no client has a part in.
fn meant_by_template(text: &str, client: &[Range<usize>], control: &[String]) -> usize {
    let free = |place: &Range<usize>| {
        client.iter().all(|range| range.end <= place.start || place.end <= range.start)
    };
    let places = control.iter().flat_map(|name| {
        text.match_indices(name.as_str()).map(|(start, _)| start..start + name.len())
    });
    places.filter(free).count()
}

const SCHEMAS: &[&str] = &[
    r#"{"type":"object","additionalProperties":false,"required":["on"],"properties":{"on":{"type":"boolean"},"n":{"type":"integer","minimum":0,"maximum":9}}}"#,
    r#"{"type":"array","items":{"enum":["a","é",null,1.5]},"minItems":1,"maxItems":3}"#,
    r##"{"anyOf":[{"type":"string","pattern":"^[a-z]{1,4}$"},{"const":{"a":[true]}},{"$ref":"#/$defs/x"}],"$defs":{"x":{"type":"null"}}}"##,
    r#"{"allOf":[{"type":"object","properties":{"a":{"type":"string","maxLength":3}}},{"required":["a"]}],"additionalProperties":{"type":"number","multipleOf":0.5}}"#,
    r#"{"type":"object","patternProperties":{"^x":{"type":"string","format":"date"}},"maxProperties":2,"additionalProperties":false}"#,
    r#"{"type":["string","integer"],"minLength":2,"maxLength":5,"exclusiveMinimum":-3}"#,
];
const KEYWORDS: &[&str] = &[
    "\"type\":",
    "\"properties\":",
    "\"required\":",
    "\"enum\":",
    "\"minItems\":",
    "\"maxLength\":",
    "\"pattern\":",
    "\"$ref\":\"#\"",
    "\"oneOf\":",
    "\"not\":",
    "\"multipleOf\":",
    "\"additionalProperties\":",
    "\"format\":",
    "\"string\"",
    "\"object\"",
    "(a*)*",
    "99999",
];

fn damaged(random: &mut Random) -> String {
    let mut bytes = random.pick(SCHEMAS).as_bytes().to_vec();
    random.damage(&mut bytes, KEYWORDS);
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn fuzz_schemas_as_they_are_read() {
    let mut random = Random::of_target(0x9e37_79b9_7f4a_7c15);
    let began = Instant::now();
    let (mut read, mut refused) = (0_u64, 0_u64);
    let all = runs(1);
    for _ in 0..all {
        let text = damaged(&mut random);
        match schema::read(&text) {
            Ok(value) => {
                read += 1;
                assert!(value.is_object(), "{text}");
            }
            Err(refusal) => {
                refused += 1;
                let message = &refusal.message;
                assert!(!message.is_empty() && message.len() < 2000, "{text}: {message}");
            }
        }
    }
    assert!(read > 0 && refused > 0);
    told("schemas read", began, all, &format!("{read} read, {refused} refused"));
}

/// What became of schemas.
#[derive(Default)]
struct Seen {
    compiled: u64,
    refused: u64,
    /// Answers that were written, and valid.
    written: u64,
}

/// Compiling takes a thousand times as long as reading: few runs in a test, and every core where many are asked for.
#[test]
fn fuzz_schemas_to_grammars() {
    let (began, all) = (Instant::now(), runs(50));
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let shares = if all < 1000 { 1 } else { u64::try_from(cores).unwrap() };
    let seen: Vec<Seen> = std::thread::scope(|scope| {
        let work: Vec<_> = (0..shares)
            .map(|share| {
                let random = Random::of_target(
                    0xda94_2042_e4dd_58b5_u64.rotate_left(u32::try_from(share % 64).unwrap()),
                );
                std::thread::Builder::new()
                    .spawn_scoped(scope, move || to_grammars(all.div_ceil(shares), random))
                    .unwrap()
            })
            .collect();
        work.into_iter().map(|work| work.join().unwrap()).collect()
    });
    let sum = |part: fn(&Seen) -> u64| -> u64 { seen.iter().map(part).sum() };
    let (compiled, refused, written) =
        (sum(|seen| seen.compiled), sum(|seen| seen.refused), sum(|seen| seen.written));
    assert!(compiled > 0 && refused > 0);
    told(
        "schemas to grammars",
        began,
        all,
        &format!("{compiled} compiled, {written} answers written and valid, {refused} refused"),
    );
}

fn to_grammars(runs: u64, mut random: Random) -> Seen {
    let tokenizer = Arc::new(tiny());
    let vocab = tokenizer.vocab_size();
    let grammars = Grammars::new(Arc::clone(&tokenizer), Arc::new([2]), vocab);
    let mut seen = Seen::default();
    for _ in 0..runs {
        let text = damaged(&mut random);
        let mut matcher = match grammars.compile_matcher(&Constraint::JsonSchema(text.clone())) {
            Ok(matcher) => matcher,
            Err(refusal) => {
                seen.refused += 1;
                let message = &refusal.message;
                assert!(!message.is_empty() && message.len() < 2000, "{text}: {message}");
                continue;
            }
        };
        seen.compiled += 1;
        // Whatever a model would choose: what comes out whole is valid.
        let mut ids = Vec::new();
        while ids.len() < 120 && !matcher.is_stopped() {
            let mask = matcher.compute_mask().unwrap();
            let allowed: Vec<u32> =
                (0..u32::try_from(vocab).unwrap()).filter(|id| is_allowed(&mask, *id)).collect();
            assert!(!allowed.is_empty(), "{text}: nothing can follow {ids:?}");
            let id = allowed[random.below(allowed.len())];
            if id == 2 {
                break;
            }
            matcher.consume_token(id).unwrap();
            ids.push(id);
        }
        if !matcher.is_accepting().unwrap_or(false) {
            continue;
        }
        let bytes: Vec<u8> =
            ids.iter().flat_map(|id| tokenizer.pieces().bytes(*id)).copied().collect();
        let value: serde_json::Value = match serde_json::from_slice(&bytes) {
            Ok(value) => value,
            // JSON's grammar has larger numbers than readers have room for (docs/protocol.md).
            Err(error) if error.to_string().contains("number out of range") => continue,
            Err(error) => panic!("{text}: {error}: {}", String::from_utf8_lossy(&bytes)),
        };
        seen.written += 1;
        let schema = serde_json::from_str(&text).unwrap();
        if let Ok(validator) = jsonschema::validator_for(&schema) {
            assert!(validator.is_valid(&value), "{text}: {value}");
        }
    }
    seen
}
