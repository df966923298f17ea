//! Requests of every kind, and calls in answers, damaged at random: nothing panics, and every refusal says something. A
//! short run here; `make fuzz` sets `PROMPTD_FUZZ_RUNS`. Other rooms have `fuzz_tests` of their own.

use std::time::Instant;

use super::{
    AskError, CallReader, Context, Limits, Part, Profiles, Readings, parse_ask, parse_chat,
    parse_completion, parse_embeddings, parse_ollama_chat, parse_ollama_generate, parse_response,
    split_calls,
};
use crate::identity::Grant;
use crate::random::{Random, runs, told};
use crate::request::{CallStyle, Door, Identity};

const WORDS: &[&str] = &[
    "\"messages\":",
    "\"role\":",
    "\"content\":",
    "\"tools\":",
    "\"tool_choice\":",
    "\"stop\":",
    "\"seed\":",
    "\"n\":",
    "\"input\":",
    "\"type\":",
    "\"function\":",
    "\"options\":",
    "\"format\":",
    "\"prompt\":",
    "\"profile\":",
    "\"logit_bias\":",
];
const SEEDS: &[&str] = &[
    r#"{"messages":[{"role":"system","content":"s"},{"role":"user","content":[{"type":"text","text":"a"}]}],"max_tokens":5,"stop":["x"],"logit_bias":{"1":2},"stream":true,"stream_options":{"include_usage":true}}"#,
    r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{}"}}]},{"role":"tool","tool_call_id":"1","content":"b"}],"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}],"tool_choice":{"type":"function","function":{"name":"f"}}}"#,
    r#"{"prompt":"a","response_format":{"type":"json_schema","json_schema":{"schema":{"a":1}}},"temperature":0.5,"timeout_ms":8}"#,
    r#"{"v":1,"id":"a:1","prompt":"a","profile":"lights","session":"s","priority":"low","format":"text","max_bytes":99,"reply_to":"a/b"}"#,
    r#"{"input":[{"role":"user","content":[{"type":"input_text","text":"a"}]},{"type":"function_call","call_id":"1","name":"f","arguments":"{}"},{"type":"function_call_output","call_id":"1","output":"b"}],"instructions":"i","text":{"format":{"type":"text"}}}"#,
    r#"{"model":"m:latest","messages":[{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":{"a":1}}}]},{"role":"tool","tool_name":"f","content":"b"}],"options":{"num_predict":4,"seed":-1},"format":"json","think":false}"#,
    r#"{"model":"m","input":["a",""],"encoding_format":"base64","dimensions":8,"user":"u"}"#,
    r#"{"input":[[1,2],[4294967295]],"priority":"low","timeout_ms":9}"#,
    "Is the light on?",
];

#[test]
fn fuzz_requests() {
    let profiles: Profiles =
        toml::from_str("[lights]\nsystem = \"s\"\nchoices = [\"a\", \"b\"]\n").unwrap();
    let (limits, readings) = (Limits::default(), Readings::default());
    let context = Context {
        profiles: &profiles,
        limits: &limits,
        readings: &readings,
        grant: Grant::all(Identity("fuzz".to_owned())),
        now: Instant::now(),
        door: Door::Lines,
    };
    let mut random = Random::of_target(0x9e37_79b9_7f4a_7c15);
    let (mut read, mut refused) = (0_u64, 0_u64);
    let (began, all) = (Instant::now(), runs(1));
    for _ in 0..all {
        let mut bytes = random.pick(SEEDS).as_bytes().to_vec();
        random.damage(&mut bytes, WORDS);
        let results: [Result<(), AskError>; 7] = [
            parse_ask(&bytes, None, &context).map(drop),
            parse_chat(&bytes, &context).map(drop),
            parse_completion(&bytes, &context).map(drop),
            parse_response(&bytes, &context).map(drop),
            parse_ollama_chat(&bytes, &context).map(drop),
            parse_ollama_generate(&bytes, &context).map(drop),
            parse_embeddings(&bytes, &context).map(drop).map_err(AskError::from),
        ];
        for result in results {
            match result {
                Ok(()) => read += 1,
                Err(error) => {
                    refused += 1;
                    let refusal = &error.refusal;
                    let status = refusal.code.http_status();
                    assert!((400..500).contains(&status) || status == 501, "{refusal}");
                    assert!(
                        !refusal.message.is_empty() && refusal.message.len() < 2000,
                        "{refusal}"
                    );
                    assert!(!refusal.message.contains('\n'), "{refusal}");
                }
            }
        }
    }
    // A fuzzer whose every request is refused, or none, tries nothing.
    let what = format!("{read} read, {refused} refused");
    assert!(read > 0 && refused > 0, "{what}");
    told("requests", began, all, &what);
}

#[test]
fn fuzz_calls_in_answers() {
    const PIECES: &[&str] = &[
        "<tool_call>",
        "\n",
        "{\"name\": \"",
        "f",
        "\", \"arguments\": ",
        "\", \"parameters\": ",
        "{}",
        "{\"a\": \"}\\\"\"}",
        "}",
        "\n</tool_call>",
        "[TOOL_CALLS]",
        "[",
        "]",
        ", ",
        "<tool",
        " ",
        "é你",
        "\\",
        "\"",
    ];
    let mut random = Random::of_target(0x2545_f491_4f6c_dd1d);
    let (began, all) = (Instant::now(), runs(1));
    for _ in 0..all {
        let pieces: Vec<&str> = (0..random.below(14)).map(|_| random.pick(PIECES)).collect();
        let text = pieces.concat();
        assert_eq!(split_calls(None, &text).unwrap().0, text);
        for style in [CallStyle::Hermes, CallStyle::Llama, CallStyle::Mistral] {
            let whole = split_calls(Some(style), &text);
            let mut reader = CallReader::new(Some(style));
            let (mut words, mut calls) = (String::new(), 0);
            let mut parts: Vec<Part> = pieces.iter().flat_map(|piece| reader.push(piece)).collect();
            let end = reader.finish();
            assert_eq!(end.is_err(), whole.is_err(), "{style:?} {text}");
            let (Ok(rest), Ok(whole)) = (end, whole) else { continue };
            parts.extend(rest);
            for part in parts {
                match part {
                    Part::Text(text) => words.push_str(&text),
                    Part::Call { .. } => calls += 1,
                    Part::Arguments(_) => {}
                }
            }
            assert_eq!((words, calls), (whole.0, whole.1.len()), "{style:?} {text}");
        }
    }
    told("calls", began, all, "");
}
