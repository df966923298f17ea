//! Loads a model, fills a context with tokens that nobody asked for, and reads from the system what that took. So that a
//! plan can be held against the truth.

use std::sync::Arc;
use std::time::Instant;

use super::memory::field;
use super::{Config, LoadError, Start, load};
use crate::request::{CacheKey, Constraint, Input, PromptId, Request, Reuse, Sampling};

/// What a loaded model took, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    /// Memory that cannot be given back, after the last step.
    pub anonymous: u64,
    /// All memory at its peak, pages of the model's files included.
    pub resident_peak: u64,
    /// Tokens of context that were filled, in every slot.
    pub tokens: u32,
}

/// Measures. `tokens` of context are filled in every slot, as far as there is so much.
///
/// # Errors
/// As for [`load`].
pub fn measure(config: &Config, tokens: u32) -> Result<Measured, LoadError> {
    let mut loaded = load(config, Arc::new(Instant::now), &mut |_| {})?;
    let tokens = tokens.clamp(2, loaded.facts.context);
    let request = Request {
        input: Input::Completion(String::new()),
        sampling: Sampling::default(),
        max_tokens: Some(1),
        stop: Vec::new(),
        tools: None,
        constraint: Constraint::None,
        logprobs: None,
    };
    let refused = |refusal: crate::request::Refusal| {
        LoadError::file(&config.model, format!("cannot be measured: {refusal}"))
    };
    let length = usize::try_from(tokens - 1).unwrap_or(1);
    for slot in 0..u64::from(loaded.facts.slots) {
        // Different beginnings, so that nothing is shared.
        let id = u32::try_from(slot).unwrap_or(0) + 3;
        let prompt = vec![id.min(loaded.facts.vocab_size - 1); length];
        let prepared = loaded.preparer.prepare_tokens(prompt, &request).map_err(refused)?;
        let reuse = Reuse { own: CacheKey(slot), profile: None };
        let start = Start { id: PromptId(slot), prepared, seed: 0, resume: &[], reuse };
        loaded.runner.start(start).map_err(refused)?;
    }
    while !loaded.runner.is_idle() {
        let step = loaded.runner.step(&mut |_, _| {});
        step.map_err(|error| LoadError::file(&config.model, format!("failed in a step: {error}")))?;
    }
    let status = std::fs::read_to_string("/proc/self/status")
        .map_err(|source| LoadError::Read { path: "/proc/self/status".into(), source })?;
    let of = |name: &str| field(&status, name).unwrap_or(0);
    Ok(Measured { anonymous: of("RssAnon:"), resident_peak: of("VmHWM:"), tokens })
}
