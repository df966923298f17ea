//! What makes tokens less or more probable before one is drawn: repetition, presence and frequency penalties, and the
//! client's own biases.
//!
//! * `repetition_penalty`: as in CTRL (<https://arxiv.org/abs/1909.05858>, section 4.1), Hugging Face's
//!   `RepetitionPenaltyLogitsProcessor` and llama.cpp's `repeat_penalty`: the logit of every token that stands in the
//!   prompt or in the answer is divided by it where it is above 0, else multiplied.
//! * `presence_penalty` and `frequency_penalty`: as `OpenAI`'s API documents them: `logit -= count * frequency +
//!   (count > 0) * presence`, where `count` is how often the answer holds the token. The prompt does not count: these
//!   look at what was generated.
//! * `logit_bias`: added last, so that -100 and 100 ban and demand a token whatever the penalties say.

use std::collections::HashMap;

use crate::request::Sampling;

/// The tokens that came so far, and what that does to their logits.
#[derive(Clone, Debug)]
pub(super) struct Penalties {
    repetition: f32,
    presence: f32,
    frequency: f32,
    bias: Vec<(u32, f32)>,
    /// How often the answer holds each token; 0 for those that only the prompt has.
    counts: HashMap<u32, u32>,
}

impl Penalties {
    /// `None` where nothing is asked for, so that nobody else pays for it.
    pub(super) fn new(sampling: &Sampling, prompt: &[u32]) -> Option<Self> {
        let Sampling {
            repetition_penalty: repetition, presence_penalty, frequency_penalty, ..
        } = *sampling;
        let changes = |value: f32, neutral: f32| (value - neutral).abs() > 0.0;
        let repeats = changes(repetition, 1.0);
        let counts = changes(presence_penalty, 0.0) || changes(frequency_penalty, 0.0);
        if !repeats && !counts && sampling.logit_bias.is_empty() {
            return None;
        }
        let prompt = if repeats { prompt } else { &[] };
        Some(Penalties {
            repetition,
            presence: presence_penalty,
            frequency: frequency_penalty,
            bias: sampling.logit_bias.clone(),
            counts: prompt.iter().map(|id| (*id, 0)).collect(),
        })
    }

    /// The answer holds one token more.
    pub(super) fn note(&mut self, token: u32) {
        let count = self.counts.entry(token).or_insert(0);
        *count = count.saturating_add(1);
    }

    /// Changes the logits, one for each token of the vocabulary.
    pub(super) fn apply(&self, logits: &mut [f32]) {
        let mut change = |id: u32, f: &dyn Fn(f32) -> f32| {
            if let Some(logit) = usize::try_from(id).ok().and_then(|id| logits.get_mut(id)) {
                *logit = f(*logit);
            }
        };
        for (id, count) in &self.counts {
            change(*id, &|logit| {
                let logit =
                    if logit > 0.0 { logit / self.repetition } else { logit * self.repetition };
                if *count == 0 {
                    logit
                } else {
                    logit - self.presence - times(*count, self.frequency)
                }
            });
        }
        for (id, bias) in &self.bias {
            change(*id, &|logit| logit + bias);
        }
    }
}

/// A count is far below what a float cannot hold: it is bounded by the context.
#[expect(clippy::cast_precision_loss, reason = "no context has 16 million tokens")]
fn times(count: u32, factor: f32) -> f32 {
    count as f32 * factor
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng, SeedableRng};

    use super::*;

    /// From -4 to 4, in steps that floats hold exactly.
    fn small(random: &mut ChaCha8Rng) -> f32 {
        f32::from(u8::try_from(random.next_u32() % 65).unwrap()) / 8.0 - 4.0
    }

    /// Each logit by its definition, by counting through all that came.
    fn naive(logits: &[f32], sampling: &Sampling, prompt: &[u32], answer: &[u32]) -> Vec<f32> {
        let one = |(id, &logit): (u32, &f32)| {
            let count = answer.iter().filter(|token| **token == id).count();
            let mut logit = logit;
            if count > 0 || prompt.contains(&id) {
                logit = if logit > 0.0 {
                    logit / sampling.repetition_penalty
                } else {
                    logit * sampling.repetition_penalty
                };
            }
            logit -= f32::from(u16::try_from(count).unwrap()) * sampling.frequency_penalty;
            logit -= if count > 0 { sampling.presence_penalty } else { 0.0 };
            logit +=
                sampling.logit_bias.iter().find(|(token, _)| *token == id).map_or(0.0, |b| b.1);
            logit
        };
        (0..).zip(logits).map(one).collect()
    }

    #[test]
    fn penalties_equal_their_definitions() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        for case in 0..500_u32 {
            let size = 1 + random.next_u32() % 12;
            let token = |random: &mut ChaCha8Rng| random.next_u32() % size;
            let logits: Vec<f32> = (0..size).map(|_| small(&mut random)).collect();
            let prompt: Vec<u32> = (0..case % 5).map(|_| token(&mut random)).collect();
            let answer: Vec<u32> = (0..case % 7).map(|_| token(&mut random)).collect();
            let bias = token(&mut random);
            let sampling = Sampling {
                repetition_penalty: if case % 3 == 0 {
                    1.0
                } else {
                    small(&mut random).abs() + 0.5
                },
                presence_penalty: if case % 4 == 0 { 0.0 } else { small(&mut random) / 2.0 },
                frequency_penalty: if case % 5 == 0 { 0.0 } else { small(&mut random) / 2.0 },
                logit_bias: if case % 2 == 0 {
                    vec![]
                } else {
                    vec![(bias, small(&mut random) * 25.0)]
                },
                ..Sampling::default()
            };
            let expected = naive(&logits, &sampling, &prompt, &answer);
            let mut ours = logits.clone();
            if let Some(mut penalties) = Penalties::new(&sampling, &prompt) {
                for token in &answer {
                    penalties.note(*token);
                }
                penalties.apply(&mut ours);
            }
            for (ours, expected) in ours.iter().zip(&expected) {
                assert!((ours - expected).abs() < 1e-4, "{case}: {ours} {expected} {sampling:?}");
            }
        }
    }

    #[test]
    fn what_changes_nothing_costs_nothing() {
        assert!(Penalties::new(&Sampling::default(), &[1, 2]).is_none());
        let bias = Sampling { logit_bias: vec![(7, 1.0)], ..Sampling::default() };
        // A token outside of the vocabulary is nobody's.
        let mut logits = [1.0, 2.0];
        Penalties::new(&bias, &[]).unwrap().apply(&mut logits);
        assert!((logits[0] - 1.0).abs() + (logits[1] - 2.0).abs() < f32::EPSILON);
    }
}
