//! Requests, submissions and model facts for tests that do not care about their contents.

use promptd::engine::frames::{Execution, LoadRequest, ModelInfo, Placement, VERSION};
use promptd::request::{
    Constraint, ContextOverflow, Event, Finish, FinishReason, Identity, Input, Priority, Quota,
    Request, Sampling, Submission, Timings, Usage,
};

/// A greedy completion of a text.
pub(crate) fn request(text: &str) -> Request {
    Request {
        input: Input::Completion(text.to_owned()),
        sampling: Sampling::default(),
        max_tokens: None,
        stop: Vec::new(),
        stop_token_ids: vec![],
        context_overflow: ContextOverflow::default(),
        constraint: Constraint::None,
        logprobs: None,
        tools: None,
    }
}

/// The same text from somebody of that name.
pub(crate) fn submission(who: &str, text: &str) -> Submission {
    let identity = Identity(who.to_owned());
    Submission {
        request: request(text),
        identity,
        priority: Priority::Normal,
        timeout: None,
        quota: Quota::default(),
        session: None,
        profile: None,
        recorded: None,
        again: None,
        origin: promptd::request::Origin::new(promptd::request::Door::Lines),
    }
}

/// A model with that many slots.
pub(crate) fn model(slots: u16) -> ModelInfo {
    ModelInfo {
        name: "tiny".to_owned(),
        architecture: "llama".to_owned(),
        context: 512,
        slots,
        vocab_size: 512,
        chat: false,
        text: true,
        embedding: None,
        threads: 1,
        runtime_version: "1.0".to_owned(),
        placement: Box::new(Placement { provider: "CPU".to_owned(), ..Placement::default() }),
        load_ms: 2000,
    }
}

/// What to load.
pub(crate) fn load() -> LoadRequest {
    LoadRequest {
        version: VERSION,
        model: "/models/tiny".into(),
        library: "/lib/libonnxruntime.so".into(),
        execution: Execution::default(),
        store: None,
        trusted: Vec::new(),
        slots: 2,
        context: 0,
        beside: None,
    }
}

/// One token and its text.
pub(crate) fn delta(token: u32) -> Event {
    Event::Delta { text: format!("<{token}>"), tokens: vec![token], logprobs: vec![] }
}

/// The texts of [`delta`]s in a row.
pub(crate) fn words(tokens: &[u32]) -> String {
    tokens.iter().fold(String::new(), |text, token| text + &format!("<{token}>"))
}

/// A good end after that many tokens.
pub(crate) fn finished(completion: u32) -> Event {
    let usage = Usage { prompt: 4, cached: 0, completion, forgotten: 0 };
    Event::Finished(Finish {
        reason: FinishReason::Stop,
        usage,
        timings: Timings::default(),
        seed: 0,
    })
}
