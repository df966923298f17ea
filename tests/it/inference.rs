//! The model at work: real ONNX Runtime, real folders, answers held against an independent reference. Where the
//! library or the reference is absent, a test says so and passes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use promptd::inference::{Config, Execution, LoadError, Loaded, Provider, Stage, load};
use promptd::request::{
    Code, Constraint, ContextOverflow, FinishReason, Input, Message, PromptId, Request, Role,
    Sampling,
};
use serde_json::Value;

use crate::support::demo_model;
use crate::support::model::{
    Answer, completion, config, copy, ids, library, lines, material, model, open, request, run,
    run_all, start as begin,
};

const PLAIN: &str = "stories260k-plain-fp32";
const FP32: &str = "stories260k-genai-fp32";
const INT4: &str = "stories260k-genai-int4";

fn check_golden(loaded: &mut Loaded, file: &str) {
    let (mut right, mut wrong) = (0, Vec::new());
    let lines = lines(file);
    for line in &lines {
        let request = completion(line, 64);
        let prepared = loaded.preparer.prepare(&request).unwrap();
        assert_eq!(prepared.tokens(), ids(&line["prompt_ids"]), "{}", line["id"]);
        let answer = run(loaded, &request);
        let expected =
            if line["ort_ids"].is_array() { &line["ort_ids"] } else { &line["greedy_ids"] };
        let same_text =
            line["ort_ids"].is_array() || answer.text() == line["text"].as_str().unwrap();
        if answer.tokens == ids(expected)
            && same_text
            && answer.finish().reason.as_str() == line["finish_reason"]
        {
            right += 1;
        } else {
            wrong.push(format!("{}: {:?} {:?}", line["id"], answer.text(), answer.end));
        }
    }
    println!("{file}: {right} of {}", lines.len());
    assert!(wrong.is_empty(), "{file}: {right} of {} equal\n{}", lines.len(), wrong.join("\n"));
}

#[test]
fn greedy_answers_equal_the_reference() {
    for name in [FP32, INT4, PLAIN, "aidreams230k-plain-fp16", "aidreams230k-genai-int4-acc4"] {
        let Some(mut loaded) = model(name, 1) else { return };
        check_golden(&mut loaded, &format!("{name}.jsonl"));
    }
}

#[test]
fn a_folder_without_genai_config_answers_alike() {
    let (library, Some(folder)) = (library(), copy(PLAIN)) else { return };
    std::fs::remove_file(folder.path().join("genai_config.json")).unwrap();
    let mut loaded = open(&config(&library, folder.path(), 1)).unwrap();
    check_golden(&mut loaded, &format!("{PLAIN}.jsonl"));
}

#[test]
fn conversations_equal_the_reference() {
    for name in [FP32, PLAIN] {
        let Some(mut loaded) = model(name, 1) else { return };
        for line in lines("stories260k-chat.jsonl") {
            let messages = line["messages"].as_array().unwrap().iter().map(message).collect();
            let request = request(Input::Chat(messages), 64);
            assert_eq!(
                loaded.preparer.prepare(&request).unwrap().tokens(),
                ids(&line["prompt_ids"]),
                "{}",
                line["id"]
            );
            let answer = run(&mut loaded, &request);
            assert_eq!(answer.tokens, ids(&line["greedy_ids"]), "{}", line["id"]);
            assert_eq!(answer.text(), line["text"].as_str().unwrap());
        }
    }
}

/// The model that ships, against vectors made by its own reference.
#[test]
fn the_demo_model_answers_as_its_reference() {
    let named = std::env::var_os("PROMPTD_TEST_DEMO").map(PathBuf::from);
    let folder = named.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo"));
    let golden = std::fs::read_to_string(folder.join("golden.jsonl")).unwrap();
    let mut loaded = open(&config(&library(), &folder, 4)).unwrap();
    let (mut prompts, mut expected) = (Vec::new(), Vec::new());
    for line in golden.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let most = u32::try_from(line["max_tokens"].as_u64().unwrap()).unwrap();
        let request = match line["messages"].as_array() {
            Some(messages) => request(Input::Chat(messages.iter().map(message).collect()), most),
            None => completion(&line, most),
        };
        let prepared = loaded.preparer.prepare(&request).unwrap();
        assert_eq!(prepared.tokens(), ids(&line["prompt_ids"]), "{}", line["id"]);
        let answer = run(&mut loaded, &request);
        assert_eq!(answer.tokens, ids(&line["greedy_ids"]), "{}", line["id"]);
        assert_eq!(answer.text(), line["text"].as_str().unwrap(), "{}", line["id"]);
        assert_eq!(answer.finish().reason.as_str(), line["finish_reason"], "{}", line["id"]);
        prompts.push((prepared, 0, vec![]));
        expected.push(answer.tokens);
    }
    let together = run_all(&mut loaded, prompts);
    let same =
        together.iter().zip(&expected).filter(|(answer, tokens)| answer.tokens == **tokens).count();
    println!("demo: {} alone, {same} together", expected.len());
    assert_eq!(same, expected.len());
}

fn message(value: &Value) -> Message {
    let role = match value["role"].as_str().unwrap() {
        "system" => Role::System,
        "assistant" => Role::Assistant,
        _ => Role::User,
    };
    Message::new(role, value["content"].as_str().unwrap())
}

#[test]
fn stop_strings_equal_the_reference() {
    let Some(mut loaded) = model(FP32, 1) else { return };
    for line in lines("stories260k-stop.jsonl") {
        let stop = serde_json::from_value(line["stop"].clone()).unwrap();
        let answer = run(&mut loaded, &Request { stop, ..completion(&line, 64) });
        assert_eq!(answer.text(), line["text"].as_str().unwrap(), "{}", line["id"]);
        assert_eq!(answer.finish().reason.as_str(), line["finish_reason"]);
    }
}

#[test]
fn constrained_answers_equal_the_reference() {
    let Some(mut loaded) = model(FP32, 1) else { return };
    let mut wrong = Vec::new();
    for line in lines("stories260k-constrained.jsonl") {
        let constraint = match line["kind"].as_str().unwrap() {
            "json_schema" => Constraint::JsonSchema(line["grammar"].to_string()),
            _ => Constraint::Regex(line["grammar"].as_str().unwrap().into()),
        };
        let most = u32::try_from(line["allowed_counts"].as_array().unwrap().len()).unwrap();
        let most = if line["finish_reason"] == "length" { most } else { 150 };
        let answer = run(&mut loaded, &Request { constraint, ..completion(&line, most) });
        if line["finish_reason"] == "length" {
            // The reference lets a number run until it is cut off; here the answer is ended in its form.
            let same =
                answer.tokens.iter().zip(ids(&line["greedy_ids"])).take_while(|(a, b)| *a == b);
            let (same, text) = (same.count(), answer.text());
            if same < 100 || serde_json::from_str::<Value>(&text).is_err() {
                wrong.push(format!("{}: {text:?}", line["id"]));
            }
        } else if answer.tokens != ids(&line["greedy_ids"])
            || answer.finish().reason.as_str() != line["finish_reason"]
        {
            wrong.push(format!("{}: {:?}", line["id"], answer.text()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn prompts_answered_together_get_the_answers_they_get_alone() {
    for name in [FP32, INT4, PLAIN] {
        let Some(mut loaded) = model(name, 4) else { return };
        let lines = lines(&format!("{name}.jsonl"));
        // Different lengths of answers, so that slots are freed and taken again in the middle.
        let requests: Vec<Request> =
            (0_u32..).zip(&lines).map(|(n, line)| completion(line, 5 + (n * 17) % 60)).collect();
        let prepared =
            requests.iter().map(|r| (loaded.preparer.prepare(r).unwrap(), 0, vec![])).collect();
        let together = run_all(&mut loaded, prepared);
        let mut different = 0;
        for ((answer, line), request) in together.iter().zip(&lines).zip(&requests) {
            let expected: Vec<u32> = ids(&line["greedy_ids"])
                .into_iter()
                .take(request.max_tokens.unwrap() as usize)
                .collect();
            // Steps of several rows round differently; where two tokens are nearly tied that may show.
            if answer.tokens != expected {
                assert!(
                    line["min_margin"].as_f64().unwrap() < 0.01,
                    "{}: {:?}",
                    line["id"],
                    answer.text()
                );
                different += 1;
            }
        }
        println!("{name}: {different} of {} differ at near-ties", lines.len());
    }
}

#[test]
fn a_resumed_answer_goes_on_where_it_was_cut() {
    for (name, temperature) in [(FP32, 0.0), (PLAIN, 0.9)] {
        let Some(mut loaded) = model(name, 2) else { return };
        let sampling = Sampling { temperature, top_p: 0.95, ..Sampling::default() };
        let line = serde_json::json!({"prompt": "Once upon a time"});
        let request = Request {
            sampling,
            stop: vec!["zzz".into(), "the sun".into()],
            ..completion(&line, 40)
        };
        let prepare = |loaded: &Loaded| loaded.preparer.prepare(&request).unwrap();
        let first = prepare(&loaded);
        let whole = run_all(&mut loaded, vec![(first, 11, vec![])]).remove(0);
        for cut in [0, 1, 7, whole.tokens.len() - 1, whole.tokens.len()] {
            let prepared = prepare(&loaded);
            let rest =
                run_all(&mut loaded, vec![(prepared, 11, whole.tokens[..cut].to_vec())]).remove(0);
            assert_eq!(rest.tokens, whole.tokens[cut..], "{name} {cut}");
            assert_eq!(rest.deltas, whole.deltas[cut..], "{name} {cut}");
            assert_eq!(rest.finish().usage, whole.finish().usage);
        }
    }
}

#[test]
fn long_prompts_are_read_in_chunks_and_can_be_cancelled_between_them() {
    let (library, Some(material)) = (library(), material()) else { return };
    let folder = material.join("models").join(FP32);
    let text = "Once upon a time there was a little dog. ".repeat(15);
    let request = request(Input::Completion(text), 8);
    let whole = {
        let mut loaded = open(&config(&library, &folder, 1)).unwrap();
        run(&mut loaded, &request)
    };
    let mut loaded = open(&Config { prefill_chunk: 16, ..config(&library, &folder, 2) }).unwrap();
    let chunked = run(&mut loaded, &request);
    assert_eq!(chunked.tokens, whole.tokens);
    assert!(chunked.prefill.len() > 5);
    assert!(chunked.prefill.windows(2).all(|pair| pair[0].0 < pair[1].0));
    assert_eq!(chunked.prefill.last().unwrap().0, chunked.prefill[0].1);

    // The first is cancelled while it is being read, the second while it is being answered; the third is not disturbed.
    let start = |loaded: &mut Loaded, id| {
        let prepared = loaded.preparer.prepare(&request).unwrap();
        loaded.runner.start(begin(id, prepared, 0)).unwrap();
    };
    let mut answers = [Answer::default(), Answer::default(), Answer::default()];
    start(&mut loaded, 0);
    start(&mut loaded, 1);
    let refusal =
        loaded.runner.start(begin(9, loaded.preparer.prepare(&request).unwrap(), 0)).unwrap_err();
    assert_eq!(refusal.code, Code::Busy);
    let mut step = |loaded: &mut Loaded| {
        loaded
            .runner
            .step(&mut |id, event| answers[usize::try_from(id.0).unwrap()].take(event))
            .unwrap();
    };
    step(&mut loaded);
    loaded.runner.cancel(PromptId(0));
    start(&mut loaded, 2);
    while loaded.runner.free_slots() == 0 {
        step(&mut loaded);
    }
    loaded.runner.cancel(PromptId(1));
    loaded.runner.cancel(PromptId(77));
    while !loaded.runner.is_idle() {
        step(&mut loaded);
    }
    assert!(answers[0].end.is_none() && answers[0].prefill.len() == 1);
    assert_eq!(answers[2].tokens, whole.tokens);
}

#[test]
fn a_seed_gives_the_same_answer_whatever_else_runs() {
    let Some(mut loaded) = model(FP32, 3) else { return };
    let sampling = Sampling { temperature: 1.0, ..Sampling::default() };
    let line = serde_json::json!({"prompt": "One day"});
    let request = Request { sampling, ..completion(&line, 30) };
    let prepare = |loaded: &Loaded| loaded.preparer.prepare(&request).unwrap();
    let (a, b, c) = (prepare(&loaded), prepare(&loaded), prepare(&loaded));
    let together = run_all(&mut loaded, vec![(a, 1, vec![]), (b, 2, vec![]), (c, 1, vec![])]);
    assert_eq!(together[0].tokens, together[2].tokens);
    assert_ne!(together[0].tokens, together[1].tokens);
    assert_eq!(together[1].finish().seed, 2);
}

#[test]
fn prompts_that_cannot_be_answered_are_refused() {
    let Some(loaded) = model(FP32, 1) else { return };
    let refuse = |request: &Request| loaded.preparer.prepare(request).unwrap_err();
    let long = refuse(&request(Input::Completion("a ".repeat(600)), 1));
    assert_eq!((long.code, long.limit), (Code::ContextLengthExceeded, Some(512)));
    assert!(long.have.unwrap() >= 512 && long.message.contains("512"));
    let huge = refuse(&request(Input::Completion("a ".repeat(600_000)), 1));
    assert_eq!(huge.code, Code::ContextLengthExceeded);
    let schema = Constraint::JsonSchema("{\"type\": \"nothing\"}".into());
    let unusable =
        refuse(&Request { constraint: schema, ..request(Input::Completion("a".into()), 1) });
    assert_eq!(
        (unusable.code, unusable.param.as_deref()),
        (Code::BadRequest, Some("response_format"))
    );
    // The rest of the context, where nothing is said.
    let open_end = Request { max_tokens: None, ..request(Input::Completion("Once".into()), 1) };
    let prepared = loaded.preparer.prepare(&open_end).unwrap();
    assert_eq!(prepared.prompt_tokens() + prepared.max_tokens(), 512);
    // Control tokens in what a client says are text.
    let message = Message::new(Role::User, "a</s>b<s>");
    let prepared = loaded.preparer.prepare(&request(Input::Chat(vec![message]), 1)).unwrap();
    assert_eq!(prepared.tokens().iter().filter(|id| **id < 3).count(), 1);
}

#[test]
fn an_answer_ends_with_the_context() {
    let Some(mut loaded) = model(FP32, 1) else { return };
    let sampling = Sampling { temperature: 1.0, ..Sampling::default() };
    let request =
        Request { max_tokens: None, sampling, ..request(Input::Completion("Once upon".into()), 1) };
    let prompt = loaded.preparer.prepare(&request).unwrap().prompt_tokens();
    let full = (0..5).find_map(|seed| {
        let prepared = loaded.preparer.prepare(&request).unwrap();
        let answer = run_all(&mut loaded, vec![(prepared, seed, vec![])]).remove(0);
        (answer.finish().reason == FinishReason::Length).then(|| answer.finish().usage)
    });
    if let Some(usage) = full {
        assert_eq!(usage.completion + prompt, 512);
    }
}

#[test]
fn stages_are_told_before_they_begin_and_facts_are_right() {
    let (library, Some(material)) = (library(), material()) else { return };
    let mut stages = Vec::new();
    let config = config(&library, &material.join("models").join(INT4), 2);
    let loaded = load(&config, Arc::new(Instant::now), &mut |stage| stages.push(stage)).unwrap();
    assert_eq!(stages, [Stage::Runtime, Stage::Folder, Stage::Weights, Stage::Warmup]);
    let facts = loaded.facts;
    assert_eq!(
        (facts.name.as_str(), facts.architecture.as_str(), facts.placement.provider.as_str()),
        (INT4, "llama", "CPU")
    );
    assert_eq!(
        (facts.context, facts.slots, facts.vocab_size, facts.chat, facts.threads),
        (512, 2, 512, true, 1)
    );
    assert!(facts.runtime_version.starts_with("1."), "{}", facts.runtime_version);
}

#[test]
fn where_the_nodes_run_is_counted_and_a_provider_that_is_not_there_is_refused() {
    let asked = |provider| {
        let execution = Execution { provider, threads: 1, ..Execution::default() };
        open(&Config { execution, ..config(&library(), &demo_model(), 1) })
    };
    let placement = asked(Provider::Cpu).unwrap().facts.placement;
    assert_eq!((placement.provider.as_str(), &placement.why), ("CPU", &None));
    assert!(
        matches!(&placement.nodes[..], [(name, count)] if name == "CPU" && *count > 20),
        "{placement:?}"
    );
    // The library that `make build` fetches has no CUDA.
    let placement = asked(Provider::Auto).unwrap().facts.placement;
    assert_eq!(placement.provider, "CPU");
    assert!(placement.why.unwrap().contains("without CUDA"));
    let refused = asked(Provider::Cuda).unwrap_err();
    let said = refused.to_string();
    assert!(matches!(refused, LoadError::Provider { .. }), "{said}");
    assert!(said.contains("without CUDA") && said.contains("runtime.library"), "{said}");
}

#[test]
fn a_processor_that_is_not_there_is_refused() {
    let execution = Execution { cores: vec![60_000], ..Execution::default() };
    let refused = open(&Config { execution, ..config(&library(), &demo_model(), 1) }).unwrap_err();
    assert!(refused.to_string().contains("`runtime.cores` names the processor 60000"), "{refused}");
}

/// The engine gives the two halves of a model to different threads.
#[test]
fn the_halves_of_a_model_can_be_moved_to_threads() {
    fn send<T: Send>() {}
    fn share<T: Clone + Send + Sync>() {}
    send::<promptd::inference::Runner>();
    send::<promptd::inference::Prepared>();
    share::<promptd::inference::Preparer>();
}

/// Behind each slide the answer goes on as one behind the prompt and what is left of the answer would, alone and beside
/// another.
#[test]
fn an_answer_slides_on_over_the_context() {
    let Some(mut loaded) = small_context() else { return };
    let lines = lines("stories260k-genai-fp32.jsonl");
    let prompt = ids(&lines[0]["prompt_ids"]);
    let room = 64 - prompt.len();
    let slide = |most| Request {
        context_overflow: ContextOverflow::Slide,
        // The end of the sequence is never chosen.
        sampling: Sampling { logit_bias: vec![(1, -100.0), (2, -100.0)], ..Sampling::default() },
        ..request(Input::Completion(String::new()), most)
    };
    let prepare = |loaded: &Loaded, tokens: &[u32], most| {
        loaded.preparer.prepare_tokens(tokens.to_vec(), &slide(most))
    };
    let prepared = prepare(&loaded, &prompt, 150).unwrap();
    assert_eq!(prepared.max_tokens(), 150);
    let long = run_all(&mut loaded, vec![(prepared, 0, vec![])]).remove(0);
    let usage = long.finish().usage;
    assert_eq!(
        (long.tokens.len(), usage.completion, long.finish().reason),
        (150, 150, FinishReason::Length)
    );
    // What is behind the prompt is halved each time it fills the context.
    let (mut kept, mut forgotten) = (0, 0);
    for at in 0..150 {
        if kept == room {
            forgotten += room.div_ceil(2);
            kept = room - room.div_ceil(2);
            let seen = [prompt.as_slice(), &long.tokens[forgotten..at]].concat();
            let prepared = prepare(&loaded, &seen, 4).unwrap();
            let alike = run_all(&mut loaded, vec![(prepared, 0, vec![])]).remove(0);
            let known = (150 - at).min(4);
            assert_eq!(alike.tokens[..known], long.tokens[at..at + known], "at {at}");
        }
        kept += 1;
    }
    assert!(forgotten > 60, "{forgotten}");
    assert_eq!(usage.forgotten, u32::try_from(forgotten).unwrap());
    // Beside another one, the part that is read again takes its turn.
    let other = ids(&lines[1]["prompt_ids"]);
    let both = [&prompt, &other].map(|tokens| (prepare(&loaded, tokens, 150).unwrap(), 0, vec![]));
    let both = run_all(&mut loaded, both.into());
    assert_eq!(both[0].tokens, long.tokens);
    assert_eq!(both[1].tokens.len(), 150);
    // Taken up again after the death of an engine, in the middle of what is left.
    let prepared = prepare(&loaded, &prompt, 150).unwrap();
    let told = long.tokens[..100].to_vec();
    let resumed = run_all(&mut loaded, vec![(prepared, 0, told)]).remove(0);
    assert_eq!(resumed.tokens, long.tokens[100..]);
    assert_eq!(resumed.finish().usage.forgotten, usage.forgotten);

    let refused = |tokens: &[u32], request: &Request| {
        loaded.preparer.prepare_tokens(tokens.to_vec(), request).unwrap_err()
    };
    let endless = Request { max_tokens: None, ..slide(1) };
    assert_eq!(refused(&prompt, &endless).param.as_deref(), Some("max_tokens"));
    let huge = refused(&prompt, &slide(100_000));
    assert_eq!((huge.limit, huge.have), (Some(65_536), Some(100_000)));
    let full = refused(&[5; 50], &slide(100));
    assert_eq!(
        (full.code, full.limit, full.have),
        (Code::ContextLengthExceeded, Some(64), Some(50))
    );
    // An answer that fits has no need to.
    assert_eq!(prepare(&loaded, &[5; 50], 8).unwrap().max_tokens(), 8);
}

fn small_context() -> Option<Loaded> {
    let model = material()?.join("models/stories260k-genai-fp32");
    let config = Config { context: 64, ..config(&library(), &model, 2) };
    Some(open(&config).unwrap())
}

#[test]
fn an_answer_ends_with_a_token_that_the_request_names() {
    let Some(mut loaded) = small_context() else { return };
    let line = &lines("stories260k-genai-fp32.jsonl")[0];
    let whole = run(&mut loaded, &completion(line, 20));
    let at = 9;
    let first = whole.tokens.iter().position(|token| *token == whole.tokens[at]).unwrap();
    let stop_token_ids = vec![whole.tokens[at]];
    let ended = run(&mut loaded, &Request { stop_token_ids, ..completion(line, 20) });
    assert_eq!(ended.tokens, whole.tokens[..first]);
    assert_eq!(ended.finish().reason, FinishReason::Stop);
    assert_eq!(ended.finish().usage.completion, u32::try_from(first + 1).unwrap());
    let unknown = Request { stop_token_ids: vec![512], ..completion(line, 20) };
    let refusal = loaded.preparer.prepare(&unknown).unwrap_err();
    assert_eq!(
        (refusal.code, refusal.param.as_deref()),
        (Code::BadRequest, Some("stop_token_ids"))
    );
}
