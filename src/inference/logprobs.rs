//! The logarithms of probabilities as the model gave them: of the logits as they come, before penalties, biases,
//! temperature, filters and the answer's form.

use super::tokenizer::Tokenizer;
use crate::request::{Candidate, TokenLogprob};

/// What stands for the logarithm of 0, which JSON cannot write; `OpenAI`'s API uses the same number.
const IMPOSSIBLE: f32 = -9999.0;

/// What the model thought of `chosen` and of the `top` most probable tokens. `offset` characters stand in front of it.
pub(super) fn of_token(
    tokenizer: &Tokenizer,
    logits: &[f32],
    chosen: u32,
    top: u8,
    offset: u32,
) -> TokenLogprob {
    let total = log_sum_exp(logits);
    let candidate = |id: u32| {
        let logit = usize::try_from(id).ok().and_then(|id| logits.get(id)).copied();
        let bytes = tokenizer.pieces().bytes(id);
        let text = if bytes.is_empty() {
            tokenizer.name(id).unwrap_or_default()
        } else {
            String::from_utf8_lossy(bytes).into_owned()
        };
        let logprob = logprob(logit.unwrap_or(f32::NEG_INFINITY), total);
        Candidate { text, bytes: bytes.to_vec(), logprob }
    };
    let top = most_probable(logits, usize::from(top)).into_iter().map(candidate).collect();
    TokenLogprob { chosen: candidate(chosen), top, offset }
}

/// The ids of the `count` highest logits, highest first; of equals the lower id first.
fn most_probable(logits: &[f32], count: usize) -> Vec<u32> {
    let mut ids: Vec<(u32, f32)> =
        (0..).zip(logits.iter().copied()).filter(|(_, logit)| !logit.is_nan()).collect();
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if count == 0 {
        return Vec::new();
    }
    if count < ids.len() {
        ids.select_nth_unstable_by(count - 1, order);
        ids.truncate(count);
    }
    ids.sort_unstable_by(order);
    ids.into_iter().map(|(id, _)| id).collect()
}

/// The logarithm of what all probabilities are divided by.
fn log_sum_exp(logits: &[f32]) -> f64 {
    let logits = || logits.iter().filter(|logit| !logit.is_nan()).map(|logit| f64::from(*logit));
    let highest = logits().fold(f64::NEG_INFINITY, f64::max);
    if !highest.is_finite() {
        return highest;
    }
    highest + logits().map(|logit| (logit - highest).exp()).sum::<f64>().ln()
}

#[expect(clippy::cast_possible_truncation, reason = "only digits behind the seventh are lost")]
fn logprob(logit: f32, total: f64) -> f32 {
    let logprob = (f64::from(logit) - total) as f32;
    // Rounding can put a certain token a hair above 0.
    if logprob.is_finite() { logprob.clamp(IMPOSSIBLE, 0.0) } else { IMPOSSIBLE }
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng, SeedableRng};

    use super::*;
    use crate::inference::tokenizer::tests::tiny;

    #[test]
    fn probabilities_equal_their_definition() {
        let (mut random, tokenizer) = (ChaCha8Rng::seed_from_u64(2), tiny());
        for _ in 0..200 {
            let size = 1 + random.next_u32() % 30;
            let logits: Vec<f32> = (0..size)
                .map(|_| f32::from(u8::try_from(random.next_u32() % 200).unwrap()) / 8.0)
                .collect();
            let sum: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
            let naive = |id: usize| (f64::from(logits[id]).exp() / sum).ln();
            let chosen = random.next_u32() % size;
            let top = u8::try_from(random.next_u32() % 6).unwrap();
            let ours = of_token(&tokenizer, &logits, chosen, top, 3);
            assert!((f64::from(ours.chosen.logprob) - naive(chosen as usize)).abs() < 1e-5);
            let mut order: Vec<usize> = (0..logits.len()).collect();
            order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
            assert_eq!(ours.top.len(), usize::from(top).min(logits.len()));
            for (ours, id) in ours.top.iter().zip(order) {
                assert!((f64::from(ours.logprob) - naive(id)).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn texts_bytes_and_the_impossible() {
        let tokenizer = tiny();
        let mut logits = vec![0.0; 300];
        logits[260] = f32::NEG_INFINITY;
        logits[2] = 50.0;
        let found = of_token(&tokenizer, &logits, 260, 1, 0);
        assert_eq!((found.chosen.text.as_str(), found.chosen.bytes.as_slice()), ("a", &b"a"[..]));
        assert!((found.chosen.logprob - IMPOSSIBLE).abs() < f32::EPSILON);
        assert_eq!((found.top[0].text.as_str(), found.top[0].bytes.len()), ("</s>", 0));
        assert!(found.top[0].logprob <= 0.0);
        // Half a character has its bytes.
        let half = of_token(&tokenizer, &logits, 0xc3 + 3, 0, 0).chosen;
        assert_eq!((half.text.as_str(), half.bytes.as_slice()), ("\u{fffd}", &[0xc3][..]));
    }

    /// The first step's log probabilities of an independent implementation, where they are at hand.
    #[test]
    fn log_probabilities_equal_the_reference() {
        let Some(lines) =
            crate::inference::test_material::lines("golden/stories260k-sampling.jsonl")
        else {
            return;
        };
        let tokenizer = tiny();
        for line in lines {
            let logits: Vec<f32> = serde_json::from_value(line["full_logits"].clone()).unwrap();
            let reference = line["next_token_distribution"]["T1"].as_object().unwrap();
            for (id, probability) in reference {
                let found = of_token(&tokenizer, &logits, id.parse().unwrap(), 0, 0);
                let ours = f64::from(found.chosen.logprob).exp();
                // The reference leaves out what is below 1e-4 and rounds to six places.
                assert!((ours - probability.as_f64().unwrap()).abs() < 2e-4, "{} {id}", line["id"]);
            }
        }
    }
}
