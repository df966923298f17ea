//! Models for tests: where libonnxruntime and the reference's folders are, and how prompts are run to their end.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use promptd::inference::{Config, Execution, LoadError, Loaded, Prepared, Start, load};
use promptd::request::{
    CacheKey, Constraint, ContextOverflow, Event, Finish, Input, PromptId, Refusal, Request, Reuse,
    Sampling, TokenLogprob,
};
use serde_json::Value;

pub(crate) use super::{library, material};

pub(crate) fn config(library: &Path, model: &Path, slots: u16) -> Config {
    Config {
        model: model.into(),
        library: library.into(),
        execution: Execution { threads: 1, ..Execution::default() },
        store: None,
        hashes: None,
        slots,
        context: 0,
        beside: None,
        prefill_chunk: 0,
    }
}

pub(crate) fn open(config: &Config) -> Result<Loaded, LoadError> {
    load(config, Arc::new(Instant::now), &mut |_| {})
}

/// A model of the material; `None` where it cannot be had.
pub(crate) fn model(name: &str, slots: u16) -> Option<Loaded> {
    let (library, material) = (library(), material()?);
    Some(open(&config(&library, &material.join("models").join(name), slots)).unwrap())
}

pub(crate) fn lines(file: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(material().unwrap().join("golden").join(file)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

pub(crate) fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

pub(crate) fn request(input: Input, max_tokens: u32) -> Request {
    Request {
        input,
        sampling: Sampling::default(),
        max_tokens: Some(max_tokens),
        stop: vec![],
        stop_token_ids: vec![],
        context_overflow: ContextOverflow::default(),
        constraint: Constraint::None,
        logprobs: None,
        tools: None,
    }
}

pub(crate) fn completion(line: &Value, max_tokens: u32) -> Request {
    request(Input::Completion(line["prompt"].as_str().unwrap().into()), max_tokens)
}

/// What came of one prompt.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) deltas: Vec<String>,
    pub(crate) tokens: Vec<u32>,
    /// Tokens of each delta.
    pub(crate) sizes: Vec<usize>,
    pub(crate) logprobs: Vec<TokenLogprob>,
    pub(crate) prefill: Vec<(u32, u32)>,
    pub(crate) vectors: Vec<(u32, Vec<f32>)>,
    pub(crate) end: Option<Result<Finish, Refusal>>,
}

impl Answer {
    pub(crate) fn take(&mut self, event: Event) {
        assert!(self.end.is_none(), "an event after the last: {event:?}");
        match event {
            Event::Queued { .. } | Event::Started { .. } => panic!("the engine has no queue"),
            Event::Prefill { done, total } => self.prefill.push((done, total)),
            Event::Vector { index, values } => self.vectors.push((index, values)),
            Event::Delta { text, tokens, logprobs } => {
                self.deltas.push(text);
                self.sizes.push(tokens.len());
                self.tokens.extend(tokens);
                self.logprobs.extend(logprobs);
            }
            Event::Finished(finish) => self.end = Some(Ok(finish)),
            Event::Failed(refusal) => self.end = Some(Err(refusal)),
        }
    }

    pub(crate) fn text(&self) -> String {
        self.deltas.concat()
    }

    pub(crate) fn finish(&self) -> &Finish {
        self.end.as_ref().unwrap().as_ref().unwrap()
    }
}

/// A prompt of somebody who asks nothing else, so that it starts behind no other's rows.
pub(crate) fn start(id: u64, prepared: Prepared, seed: u64) -> Start<'static> {
    let reuse = Reuse { own: CacheKey(u64::MAX - id), profile: None };
    Start { id: PromptId(id), prepared, seed, resume: &[], reuse }
}

/// Runs prompts together until all are answered.
pub(crate) fn run_all(loaded: &mut Loaded, prompts: Vec<(Prepared, u64, Vec<u32>)>) -> Vec<Answer> {
    let mut answers: Vec<Answer> = prompts.iter().map(|_| Answer::default()).collect();
    let mut waiting = (0_u64..).zip(prompts).collect::<VecDeque<_>>();
    while !waiting.is_empty() || !loaded.runner.is_idle() {
        while loaded.runner.free_slots() > 0
            && let Some((id, (prepared, seed, resume))) = waiting.pop_front()
        {
            let start = Start { resume: &resume, ..start(id, prepared, seed) };
            loaded.runner.start(start).unwrap();
        }
        let mut take = |id: PromptId, event| answers[usize::try_from(id.0).unwrap()].take(event);
        loaded.runner.step(&mut take).unwrap();
    }
    answers
}

pub(crate) fn run(loaded: &mut Loaded, request: &Request) -> Answer {
    let prepared = loaded.preparer.prepare(request).unwrap();
    run_all(loaded, vec![(prepared, 0, vec![])]).remove(0)
}

/// A copy of a model of the material that may be changed.
pub(crate) fn copy(name: &str) -> Option<tempfile::TempDir> {
    let from = material()?.join("models").join(name);
    let to = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::write(to.path().join(entry.file_name()), std::fs::read(entry.path()).unwrap())
            .unwrap();
    }
    Some(to)
}
