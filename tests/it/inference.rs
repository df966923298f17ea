//! The model at work: real ONNX Runtime, real folders, answers held against an independent reference. Where the
//! library or the reference is absent, a test says so and passes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use promptd::inference::{Config, LoadError, Loaded, Prepared, Stage, load};
use promptd::request::{
    Code, Constraint, Event, Finish, FinishReason, Input, Message, PromptId, Refusal, Request,
    Role, Sampling,
};
use serde_json::Value;

use crate::support::{library, material};

const PLAIN: &str = "stories260k-plain-fp32";
const FP32: &str = "stories260k-genai-fp32";
const INT4: &str = "stories260k-genai-int4";

fn config(library: &Path, model: &Path, slots: u16) -> Config {
    Config {
        model: model.into(),
        library: library.into(),
        threads: 1,
        slots,
        context: 0,
        prefill_chunk: 0,
    }
}

fn open(config: &Config) -> Result<Loaded, LoadError> {
    load(config, Arc::new(Instant::now), &mut |_| {})
}

/// A model of the material; `None` where it cannot be had.
fn model(name: &str, slots: u16) -> Option<Loaded> {
    let (library, material) = (library(), material()?);
    Some(open(&config(&library, &material.join("models").join(name), slots)).unwrap())
}

fn lines(file: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(material().unwrap().join("golden").join(file)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

fn request(input: Input, max_tokens: u32) -> Request {
    Request {
        input,
        sampling: Sampling::default(),
        max_tokens: Some(max_tokens),
        stop: vec![],
        constraint: Constraint::None,
    }
}

fn completion(line: &Value, max_tokens: u32) -> Request {
    request(Input::Completion(line["prompt"].as_str().unwrap().into()), max_tokens)
}

/// What came of one prompt.
#[derive(Debug, Default)]
struct Answer {
    deltas: Vec<String>,
    tokens: Vec<u32>,
    prefill: Vec<(u32, u32)>,
    end: Option<Result<Finish, Refusal>>,
}

impl Answer {
    fn take(&mut self, event: Event) {
        assert!(self.end.is_none(), "an event after the last: {event:?}");
        match event {
            Event::Prefill { done, total } => self.prefill.push((done, total)),
            Event::Delta { text, tokens } => {
                self.deltas.push(text);
                self.tokens.extend(tokens);
            }
            Event::Finished(finish) => self.end = Some(Ok(finish)),
            Event::Failed(refusal) => self.end = Some(Err(refusal)),
        }
    }

    fn text(&self) -> String {
        self.deltas.concat()
    }

    fn finish(&self) -> &Finish {
        self.end.as_ref().unwrap().as_ref().unwrap()
    }
}

/// Runs prompts together until all are answered.
fn run_all(loaded: &mut Loaded, prompts: Vec<(Prepared, u64, Vec<u32>)>) -> Vec<Answer> {
    let mut answers: Vec<Answer> = prompts.iter().map(|_| Answer::default()).collect();
    let mut waiting = (0_u64..).zip(prompts).collect::<std::collections::VecDeque<_>>();
    while !waiting.is_empty() || !loaded.runner.is_idle() {
        while loaded.runner.free_slots() > 0
            && let Some((id, (prepared, seed, resume))) = waiting.pop_front()
        {
            loaded.runner.start(PromptId(id), prepared, seed, &resume).unwrap();
        }
        let mut take = |id: PromptId, event| answers[usize::try_from(id.0).unwrap()].take(event);
        loaded.runner.step(&mut take).unwrap();
    }
    answers
}

fn run(loaded: &mut Loaded, request: &Request) -> Answer {
    let prepared = loaded.preparer.prepare(request).unwrap();
    run_all(loaded, vec![(prepared, 0, vec![])]).remove(0)
}

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

/// A copy of a model of the material that may be changed.
fn copy(name: &str) -> Option<tempfile::TempDir> {
    let from = material()?.join("models").join(name);
    let to = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::write(to.path().join(entry.file_name()), std::fs::read(entry.path()).unwrap())
            .unwrap();
    }
    Some(to)
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
            let message = |m: &Value| Message {
                role: if m["role"] == "system" { Role::System } else { Role::User },
                content: m["content"].as_str().unwrap().into(),
            };
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
        if answer.tokens != ids(&line["greedy_ids"])
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
        loaded.runner.start(PromptId(id), prepared, 0, &[]).unwrap();
    };
    let mut answers = [Answer::default(), Answer::default(), Answer::default()];
    start(&mut loaded, 0);
    start(&mut loaded, 1);
    let refusal = loaded
        .runner
        .start(PromptId(9), loaded.preparer.prepare(&request).unwrap(), 0, &[])
        .unwrap_err();
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
        if loaded.runner.free_slots() == 0 {
            continue;
        }
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
    let message = Message { role: Role::User, content: "a</s>b<s>".into() };
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
        (facts.name.as_str(), facts.architecture.as_str(), facts.provider.as_str()),
        (INT4, "llama", "CPU")
    );
    assert_eq!(
        (facts.context, facts.slots, facts.vocab_size, facts.chat, facts.threads),
        (512, 2, 512, true, 1)
    );
    assert!(facts.runtime_version.starts_with("1."), "{}", facts.runtime_version);
}

/// Folders that are damaged in one place each: what is changed, and words that the error must have.
#[test]
fn damaged_folders_are_refused_with_file_and_reason() {
    let (library, Some(_)) = (library(), material()) else { return };
    type Damage = fn(&Path);
    fn edit(folder: &Path, file: &str, change: fn(&mut Value)) {
        let path = folder.join(file);
        let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        change(&mut json);
        std::fs::write(path, json.to_string()).unwrap();
    }
    fn cut(folder: &Path, file: &str) {
        let bytes = std::fs::read(folder.join(file)).unwrap();
        std::fs::write(folder.join(file), &bytes[..bytes.len() / 2]).unwrap();
    }
    let cases: &[(&str, Damage)] = &[
        ("model.onnx: is missing", |f| std::fs::remove_file(f.join("model.onnx")).unwrap()),
        ("model.onnx.data: is missing", |f| {
            std::fs::remove_file(f.join("model.onnx.data")).unwrap()
        }),
        ("neither genai_config.json nor config.json", |f| {
            std::fs::remove_file(f.join("genai_config.json")).unwrap()
        }),
        ("tokenizer.json: is missing", |f| std::fs::remove_file(f.join("tokenizer.json")).unwrap()),
        ("model.onnx.data: has 185568 bytes, model.onnx needs 371136", |f| {
            cut(f, "model.onnx.data")
        }),
        ("model.onnx.data: is empty", |f| std::fs::write(f.join("model.onnx.data"), "").unwrap()),
        ("model.onnx: is cut short", |f| cut(f, "model.onnx")),
        ("model.onnx: is no ONNX model", |f| {
            std::fs::write(f.join("model.onnx"), [0, 255].repeat(500)).unwrap()
        }),
        ("model.onnx: is a git-lfs pointer", |f| {
            std::fs::write(
                f.join("model.onnx"),
                "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            )
            .unwrap();
        }),
        ("head_size is 12, but model.onnx has 16", |f| {
            edit(f, "genai_config.json", |j| j["model"]["decoder"]["head_size"] = 12.into())
        }),
        ("num_hidden_layers is 99, but model.onnx has 5", |f| {
            edit(f, "genai_config.json", |j| {
                j["model"]["decoder"]["num_hidden_layers"] = 99.into()
            });
        }),
        ("num_hidden_layers is 1, but model.onnx has 5", |f| {
            edit(f, "genai_config.json", |j| j["model"]["decoder"]["num_hidden_layers"] = 1.into());
        }),
        ("num_key_value_heads is 3, but model.onnx has 4", |f| {
            edit(f, "genai_config.json", |j| {
                j["model"]["decoder"]["num_key_value_heads"] = 3.into()
            });
        }),
        ("vocab_size is 100000, but model.onnx has 512", |f| {
            edit(f, "genai_config.json", |j| j["model"]["vocab_size"] = 100_000.into())
        }),
        ("rotary embeddings for 512 positions", |f| {
            edit(f, "genai_config.json", |j| j["model"]["context_length"] = (1 << 20).into())
        }),
        ("input_ids is `tokens`, but model.onnx has no such tensor", |f| {
            edit(f, "genai_config.json", |j| {
                j["model"]["decoder"]["inputs"]["input_ids"] = "tokens".into()
            });
        }),
        ("outside the model folder", |f| {
            edit(f, "genai_config.json", |j| {
                j["model"]["decoder"]["filename"] = "../../etc/hostname".into()
            });
        }),
        ("empty vocabulary", |f| {
            edit(f, "tokenizer.json", |j| j["model"]["vocab"] = serde_json::json!({}))
        }),
        ("tokenizer.json: has the token id 999999", |f| {
            edit(f, "tokenizer.json", |j| j["model"]["vocab"]["zz-extra"] = 999_999.into())
        }),
        ("tokenizer_config.json: the chat template cannot be compiled", |f| {
            edit(f, "tokenizer_config.json", |j| {
                j["chat_template"] = "{% for m in messages %}{{ m.content }".into()
            });
        }),
        ("model.onnx: is a folder", |f| {
            std::fs::remove_file(f.join("model.onnx")).unwrap();
            std::fs::create_dir(f.join("model.onnx")).unwrap();
        }),
        ("model.onnx.data: is a symbolic link", |f| {
            std::fs::rename(f.join("model.onnx.data"), f.join("elsewhere")).unwrap();
            std::os::unix::fs::symlink("elsewhere", f.join("model.onnx.data")).unwrap();
        }),
    ];
    for (words, damage) in cases {
        let folder = copy(INT4).unwrap();
        damage(folder.path());
        let error = open(&config(&library, folder.path(), 1)).unwrap_err();
        assert!(error.to_string().contains(words), "{error}\nshould have: {words}");
        assert_eq!(Refusal::from(error).code, Code::ModelFailed);
    }
}

/// Every folder of `PROMPTD_TEST_BROKEN`, for looking at by eye; a folder that loads must answer.
#[test]
fn folders_broken_elsewhere_are_refused() {
    let (library, Some(root)) = (library(), std::env::var_os("PROMPTD_TEST_BROKEN")) else {
        println!("skipped: PROMPTD_TEST_BROKEN names no folder of damaged model folders");
        return;
    };
    let mut folders: Vec<PathBuf> =
        std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    for folder in folders {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        match open(&config(&library, &folder, 1)) {
            Ok(loaded) => println!("{name}: LOADED {:?}", loaded.facts.warnings),
            Err(error) => println!(
                "{name}: {}",
                Refusal::from(error).message.replace(&*folder.to_string_lossy(), "…")
            ),
        }
    }
}

#[test]
fn libraries_that_cannot_be_used_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("libonnxruntime.so");
    let refuse = || open(&config(&path, dir.path(), 1)).unwrap_err().to_string();
    let missing = refuse();
    assert!(missing.contains("no such file"), "{missing}");
    std::fs::write(&path, "junk").unwrap();
    let junk = refuse();
    assert!(junk.contains("make build"), "{junk}");
    let bytes = std::fs::read(library()).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() * 9 / 10]).unwrap();
    let truncated = refuse();
    assert!(truncated.contains("cut short"), "{truncated}");
}
