//! Loads a model, fills a context with tokens that nobody asked for, and reads from the system what that took. So that a
//! plan can be held against the truth.

use std::sync::Arc;
use std::time::Instant;

use super::memory::field;
use super::{Config, DEFAULT_PREFILL_CHUNK, LoadError, Start, load, mapped};
use crate::request::{
    CacheKey, Constraint, ContextOverflow, Input, PromptId, Request, Reuse, Sampling,
};

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

/// Measures. Prompts come into all slots and are answered together until each has `tokens` of context, as far as there is
/// so much.
///
/// # Errors
/// As for [`load`].
pub fn measure(config: &Config, tokens: u32) -> Result<Measured, LoadError> {
    let mut loaded = load(config, Arc::new(Instant::now), &mut |_| {})?;
    let tokens = tokens.clamp(2, loaded.facts.context);
    let bias = loaded.runner.eos.iter().map(|eos| (*eos, -100.0)).collect();
    let request = Request {
        input: Input::Completion(String::new()),
        // The end of the sequence is never chosen.
        sampling: Sampling { logit_bias: bias, ..Sampling::default() },
        max_tokens: None,
        stop: Vec::new(),
        stop_token_ids: Vec::new(),
        context_overflow: ContextOverflow::default(),
        tools: None,
        constraint: Constraint::None,
        logprobs: None,
    };
    let refused = |refusal: crate::request::Refusal| {
        LoadError::file(&config.model, format!("cannot be measured: {refusal}"))
    };
    // While the prompts of the other slots are read, an answer gets a token with each chunk: the first one still has room
    // when the last one joins it.
    let (slots, chunk) = (u64::from(loaded.facts.slots), u64::from(DEFAULT_PREFILL_CHUNK));
    let length = u64::from(tokens) * chunk / (chunk + slots);
    let length = usize::try_from(length).unwrap_or(1).max(1);
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
    // What was freed is no need of the model's; how much of it the allocator keeps for later differs from run to run.
    mapped::give_back();
    let status = std::fs::read_to_string("/proc/self/status")
        .map_err(|source| LoadError::Read { path: "/proc/self/status".into(), source })?;
    let of = |name: &str| field(&status, name).unwrap_or(0);
    Ok(Measured { anonymous: of("RssAnon:"), resident_peak: of("VmHWM:"), tokens })
}
