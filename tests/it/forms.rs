//! Forms of answers, penalties and log probabilities on real models: forced tokens, endings in time, resumes.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use promptd::inference::Loaded;
use promptd::request::{Code, Constraint, FinishReason, Request, Sampling};
use serde_json::Value;

use crate::support::model::{Answer, completion, ids, lines, model, run, run_all, start};

const FP32: &str = "stories260k-genai-fp32";
const PLAIN: &str = "stories260k-plain-fp32";
const CONSTRAINED: &str = "stories260k-constrained.jsonl";

fn constraint(line: &Value) -> Constraint {
    match line["kind"].as_str().unwrap() {
        "json_schema" => Constraint::JsonSchema(line["grammar"].to_string()),
        _ => Constraint::Regex(line["grammar"].as_str().unwrap().into()),
    }
}

fn schema(source: &str, max_tokens: u32) -> Request {
    let line = serde_json::json!({"prompt": "Once upon a time"});
    Request { constraint: Constraint::JsonSchema(source.into()), ..completion(&line, max_tokens) }
}

/// The answer, and how many steps of the model it took behind the prompt.
fn run_counted(loaded: &mut Loaded, request: &Request) -> (Answer, usize) {
    let prepared = loaded.preparer.prepare(request).unwrap();
    loaded.runner.start(start(0, prepared, 0)).unwrap();
    let (mut answer, mut steps) = (Answer::default(), 0);
    while !loaded.runner.is_idle() {
        loaded.runner.step(&mut |_, event| answer.take(event)).unwrap();
        steps += 1;
    }
    (answer, steps - 1)
}

/// Asking for log probabilities has every token chosen from logits of its own, forced or not.
#[test]
fn forced_tokens_are_those_that_would_have_been_chosen_and_take_fewer_steps() {
    for name in [FP32, PLAIN] {
        let Some(mut loaded) = model(name, 1) else { return };
        let (mut saved, mut tokens) = (0, 0);
        for line in lines(CONSTRAINED) {
            let request = Request { constraint: constraint(&line), ..completion(&line, 150) };
            let (fast, steps) = run_counted(&mut loaded, &request);
            let (slow, all) =
                run_counted(&mut loaded, &Request { logprobs: Some(0), ..request.clone() });
            assert_eq!((&fast.tokens, fast.text()), (&slow.tokens, slow.text()), "{}", line["id"]);
            assert_eq!(fast.finish().usage, slow.finish().usage);
            assert_eq!(fast.finish().reason, slow.finish().reason);
            assert_eq!(slow.logprobs.len(), slow.tokens.len());
            assert!(steps <= all, "{}", line["id"]);
            saved += all - steps;
            tokens += fast.tokens.len();
        }
        println!("{name}: {tokens} tokens, {saved} steps saved");
        assert!(saved * 4 > tokens, "{saved} of {tokens}");
    }
}

#[test]
fn an_answer_without_a_choice_needs_no_step() {
    let Some(mut loaded) = model(FP32, 1) else { return };
    let only = r#"{"const":{"a":[1,null]}}"#;
    let (answer, steps) = run_counted(&mut loaded, &schema(only, 64));
    assert_eq!((answer.text().as_str(), steps), (r#"{"a":[1,null]}"#, 0));
    assert_eq!(answer.finish().reason, FinishReason::Stop);
    // The tokens that are forced count: there must be room for them.
    let prepared = loaded.preparer.prepare(&schema(only, 3)).unwrap();
    let refused = loaded.runner.start(start(0, prepared, 0)).unwrap_err();
    assert_eq!(refused.param.as_deref(), Some("max_tokens"));
    assert!(loaded.runner.is_idle());
}

/// Long forced stretches, long enough that they are read in a step of their own beside three others.
#[test]
fn forms_beside_others_are_those_alone() {
    let key = "a_rather_long_name_that_the_form_forces_upon_the_answer";
    let long = format!(
        r#"{{"type":"object","properties":{{"{key}":{{"type":"boolean"}},"{key}_again":{{"enum":["red","green"]}}}},
            "required":["{key}","{key}_again"],"additionalProperties":false}}"#
    );
    for name in [FP32, PLAIN] {
        let Some(mut loaded) = model(name, 4) else { return };
        let mut requests: Vec<Request> = lines(CONSTRAINED)
            .iter()
            .filter(|line| line["finish_reason"] == "stop")
            .map(|line| Request { constraint: constraint(line), ..completion(line, 150) })
            .collect();
        requests.insert(1, schema(&long, 300));
        requests.insert(5, schema(&long, 300));
        requests.push(Request { stop: vec!["again".into()], ..schema(&long, 300) });
        let alone: Vec<Answer> = requests.iter().map(|request| run(&mut loaded, request)).collect();
        assert!(alone.last().unwrap().text().ends_with('_'), "{}", alone.last().unwrap().text());
        let prepared =
            requests.iter().map(|r| (loaded.preparer.prepare(r).unwrap(), 0, vec![])).collect();
        for (together, alone) in run_all(&mut loaded, prepared).iter().zip(&alone) {
            assert_eq!((together.text(), &together.tokens), (alone.text(), &alone.tokens));
            assert_eq!(together.finish().usage, alone.finish().usage);
        }
    }
}

/// However few tokens there are, an answer is JSON of the schema, or an error that says what was missing.
#[test]
fn an_answer_is_ended_in_its_form_before_its_tokens_run_out() {
    let Some(mut loaded) = model(FP32, 1) else { return };
    let schemas = [
        r#"{"type":"number"}"#,
        r#"{"type":"string"}"#,
        r#"{"type":"string","minLength":10}"#,
        r#"{"type":"array","items":{"type":"string"}}"#,
        r#"{"type":"array","items":{"type":"array","items":{"type":"number"}},"minItems":2}"#,
        r#"{"type":"object"}"#,
        r#"{"type":"object","properties":{"name":{"type":"string"},"size":{"type":"number"}},"required":["name","size"],"additionalProperties":false}"#,
        r##"{"$defs":{"n":{"type":"object","properties":{"v":{"type":"string"},"next":{"anyOf":[{"$ref":"#/$defs/n"},{"type":"null"}]}},"required":["v","next"],"additionalProperties":false}},"$ref":"#/$defs/n"}"##,
        r#"{"type":"string","pattern":"^[a-z ]+\\.$"}"#,
        "{}",
    ];
    let (mut ended, mut failed) = (0, 0);
    for source in schemas {
        let mut fits = false;
        for (most, temperature) in
            (1..48).chain([90, 200]).flat_map(|most| [(most, 0.0), (most, 1.4)])
        {
            let sampling = Sampling { temperature, ..Sampling::default() };
            let request = Request { sampling, ..schema(source, most) };
            let prepared = loaded.preparer.prepare(&request).unwrap();
            let mut answer = Answer::default();
            // What is forced in front of the first choice may be too much already.
            match loaded.runner.start(start(0, prepared, u64::from(most))) {
                Err(refusal) => answer.end = Some(Err(refusal)),
                Ok(()) => {
                    while !loaded.runner.is_idle() {
                        loaded.runner.step(&mut |_, event| answer.take(event)).unwrap();
                    }
                }
            }
            match answer.end.as_ref().unwrap() {
                Ok(finish) => {
                    let text = answer.text();
                    // A number may be larger than any that a program holds, and JSON all the same.
                    let parsed = serde_json::from_str::<Value>(&text);
                    let wrong =
                        parsed.err().filter(|error| !error.to_string().contains("out of range"));
                    assert!(wrong.is_none(), "{source} {most}: {wrong:?}: {text}");
                    assert!(finish.usage.completion <= most);
                    ended += usize::from(finish.reason == FinishReason::Length);
                    fits = true;
                }
                Err(refusal) => {
                    assert_eq!(
                        refusal.param.as_deref(),
                        Some("max_tokens"),
                        "{source} {most}: {refusal}"
                    );
                    assert!(!fits || most < 24, "{source} {most}: an ending fitted into fewer");
                    failed += 1;
                }
            }
        }
        assert!(fits, "{source}");
    }
    println!("{ended} answers were ended in time, {failed} had too few tokens for any");
    assert!(ended > 100 && failed > 0);
}

#[test]
fn a_resumed_answer_keeps_its_form_and_its_penalties() {
    let object = r#"{"type":"object","properties":{"name":{"type":"string","maxLength":20},"animal":{"enum":["dog","cat"]},"on":{"type":"boolean"}},"required":["name","animal","on"],"additionalProperties":false}"#;
    let sampling = Sampling {
        temperature: 0.9,
        repetition_penalty: 1.3,
        presence_penalty: 0.4,
        frequency_penalty: 0.7,
        logit_bias: vec![(300, 2.0)],
        ..Sampling::default()
    };
    for name in [FP32, PLAIN] {
        let Some(mut loaded) = model(name, 1) else { return };
        let plain = completion(&serde_json::json!({"prompt": "Once upon a time"}), 40);
        for (request, logprobs) in [
            (plain.clone(), None),
            (plain, Some(3)),
            (schema(object, 60), None),
            (schema(object, 45), Some(1)),
        ] {
            let request = Request { sampling: sampling.clone(), logprobs, ..request };
            let prepare = |loaded: &Loaded| loaded.preparer.prepare(&request).unwrap();
            let first = prepare(&loaded);
            let whole = run_all(&mut loaded, vec![(first, 11, vec![])]).remove(0);
            // Engines die between deltas, not within one.
            let mut cut = 0;
            for (at, count) in whole.sizes.iter().enumerate() {
                let prepared = prepare(&loaded);
                let told = whole.tokens[..cut].to_vec();
                let rest = run_all(&mut loaded, vec![(prepared, 11, told)]).remove(0);
                assert_eq!(rest.tokens, whole.tokens[cut..], "{name} {cut}");
                assert_eq!(rest.text(), whole.deltas[at..].concat(), "{name} {cut}");
                let offsets = |answer: &Answer, from: usize| {
                    answer.logprobs[from..].iter().map(|token| token.offset).collect::<Vec<_>>()
                };
                if logprobs.is_some() {
                    assert_eq!(offsets(&rest, 0), offsets(&whole, cut), "{name} {cut}");
                }
                assert_eq!(rest.finish().usage, whole.finish().usage);
                cut += count;
            }
        }
    }
}

#[test]
fn penalties_change_what_is_written() {
    let Some(mut loaded) = model(FP32, 1) else { return };
    let line = serde_json::json!({"prompt": "Once upon a time"});
    let longest_run = |sampling: Sampling, loaded: &mut Loaded| {
        let answer = run(loaded, &Request { sampling, ..completion(&line, 120) });
        let mut counts = std::collections::BTreeMap::new();
        for token in answer.tokens {
            *counts.entry(token).or_insert(0) += 1;
        }
        counts.values().copied().max().unwrap()
    };
    let plain = longest_run(Sampling::default(), &mut loaded);
    let less = Sampling { frequency_penalty: 2.0, ..Sampling::default() };
    let less = longest_run(less, &mut loaded);
    assert!(less < plain, "{less} {plain}");
    // What is banned does not come, and a token nobody has is refused.
    let first = run(&mut loaded, &completion(&line, 1)).tokens[0];
    let banned = Sampling { logit_bias: vec![(first, -100.0)], ..Sampling::default() };
    let other = run(&mut loaded, &Request { sampling: banned, ..completion(&line, 20) });
    assert!(!other.tokens.contains(&first));
    let unknown = Sampling { logit_bias: vec![(512, 1.0)], ..Sampling::default() };
    let refusal = loaded
        .preparer
        .prepare(&Request { sampling: unknown, ..completion(&line, 1) })
        .unwrap_err();
    assert_eq!(refusal.param.as_deref(), Some("logit_bias.512"));
    assert!(refusal.message.contains("0 to 511"), "{}", refusal.message);
}

#[test]
fn log_probabilities_equal_the_reference() {
    let Some(mut loaded) = model(FP32, 1) else { return };
    let mut checked = 0;
    for line in lines(&format!("{FP32}.jsonl")) {
        let Some(top) = line["top5_first"].as_array() else { continue };
        let request = Request { logprobs: Some(5), ..completion(&line, 64) };
        let answer = run(&mut loaded, &request);
        assert_eq!(answer.tokens, ids(&line["greedy_ids"]), "{}", line["id"]);
        let first = &answer.logprobs[0];
        assert_eq!(first.top.len(), 5);
        for (ours, theirs) in first.top.iter().zip(top) {
            let theirs = theirs[2].as_f64().unwrap();
            assert!(
                (f64::from(ours.logprob) - theirs).abs() < 2e-3,
                "{} {ours:?} {theirs}",
                line["id"]
            );
        }
        // Greedy takes the most probable, and the texts of the tokens are the text of the answer.
        for token in &answer.logprobs {
            assert_eq!(token.chosen.text, token.top[0].text);
        }
        let bytes: Vec<u8> =
            answer.logprobs.iter().flat_map(|token| token.chosen.bytes.clone()).collect();
        // The tokenizer's own space in front of the first word is no text.
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(text.trim_start(), answer.text().trim_start(), "{}", line["id"]);
        checked += 1;
    }
    assert!(checked > 10, "{checked}");
}

#[test]
fn a_grammar_holds() {
    let Some(mut loaded) = model(FP32, 1) else { return };
    let line = serde_json::json!({"prompt": "Once upon a time"});
    let grammar = "start: \"the \" animal \" is \" NUMBER \" years\"\nanimal: \"dog\" | \"cat\"\nNUMBER: /[1-9][0-9]?/\n";
    let request = Request { constraint: Constraint::Lark(grammar.into()), ..completion(&line, 60) };
    let answer = run(&mut loaded, &request);
    let text = answer.text();
    let number = text.strip_prefix("the dog is ").or(text.strip_prefix("the cat is ")).unwrap();
    let number: u32 = number.strip_suffix(" years").unwrap().parse().unwrap();
    assert!((1..100).contains(&number), "{text}");
    assert_eq!(answer.finish().reason, FinishReason::Stop);
}

/// Forms are tried in a process of their own, which can be ended; a compilation can not.
#[test]
fn forms_are_tried_elsewhere_first() {
    let Some(loaded) = model(FP32, 1) else { return };
    let refused = |request: &Request| loaded.preparer.prepare(request).unwrap_err();
    let wrong = schema(r#"{"type":"string","pattern":"("}"#, 5);
    let here = refused(&wrong);
    loaded.preparer.try_forms_with(env!("CARGO_BIN_EXE_promptd").into());
    assert_eq!(refused(&wrong), here);
    for line in lines(CONSTRAINED) {
        let request = Request { constraint: constraint(&line), ..completion(&line, 150) };
        loaded.preparer.prepare(&request).unwrap();
    }
}

#[test]
fn a_trial_that_never_ends_is_ended() {
    let Some(loaded) = model(FP32, 1) else { return };
    let folder = tempfile::tempdir().unwrap();
    let (program, pid) = (folder.path().join("program"), folder.path().join("pid"));
    let script = format!("#!/bin/sh\necho $$ > {}\nexec sleep 600\n", pid.display());
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    loaded.preparer.try_forms_with(program);
    let refusal = loaded.preparer.prepare(&schema("{}", 5)).unwrap_err();
    assert_eq!(
        (refusal.code, refusal.param.as_deref()),
        (Code::BadRequest, Some("response_format"))
    );
    assert!(refusal.message.contains("more than 5 s"), "{refusal}");
    let pid = std::fs::read_to_string(pid).unwrap();
    assert!(!Path::new("/proc").join(pid.trim()).exists(), "{pid} still runs");
    // What needs no form is not held up.
    let plain = completion(&serde_json::json!({"prompt": "Once"}), 5);
    loaded.preparer.prepare(&plain).unwrap();
}
