//! Chooses the next token from the logits. The same seed and position always choose alike: randomness is a function of
//! both, so that an answer can be taken up again at any token without its history.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::penalties::Penalties;
use crate::request::Sampling;

/// How one prompt's tokens are chosen.
#[derive(Clone, Debug)]
pub(super) struct Sampler {
    sampling: Sampling,
    seed: u64,
    penalties: Option<Penalties>,
    /// Logits behind the penalties; kept so that a step needs no memory of its own.
    changed: Vec<f32>,
}

impl Sampler {
    /// `prompt` are the tokens that the answer follows.
    pub(super) fn new(sampling: Sampling, seed: u64, prompt: &[u32]) -> Self {
        let penalties = Penalties::new(&sampling, prompt);
        Sampler { sampling, seed, penalties, changed: Vec::new() }
    }

    /// The answer holds one token more, whoever chose it.
    pub(super) fn note(&mut self, token: u32) {
        if let Some(penalties) = &mut self.penalties {
            penalties.note(token);
        }
    }

    /// The token at `position` of the answer; `None` where no allowed token has a finite logit.
    pub(super) fn choose(
        &mut self,
        logits: &[f32],
        position: u64,
        allowed: impl Fn(u32) -> bool,
    ) -> Option<u32> {
        let logits = match &self.penalties {
            None => logits,
            Some(penalties) => {
                self.changed.clear();
                self.changed.extend_from_slice(logits);
                penalties.apply(&mut self.changed);
                &self.changed
            }
        };
        if self.sampling.temperature <= 0.0 {
            return greedy(logits, allowed);
        }
        let kept = distribution(logits, &self.sampling, allowed);
        let mut left = uniform(self.seed, position);
        let last = kept.last().map(|(id, _)| *id);
        for (id, probability) in kept {
            left -= probability;
            if left < 0.0 {
                return Some(id);
            }
        }
        // Rounding can leave the sum a hair below 1.
        last
    }
}

/// The most probable token; of equals the one with the lowest id.
fn greedy(logits: &[f32], allowed: impl Fn(u32) -> bool) -> Option<u32> {
    let mut best: Option<(u32, f32)> = None;
    for (id, &logit) in (0..).zip(logits) {
        if logit > best.map_or(f32::NEG_INFINITY, |(_, logit)| logit) && allowed(id) {
            best = Some((id, logit));
        }
    }
    best.map(|(id, _)| id)
}

/// What may be chosen and how probable it is; sums to 1. Temperature first, then `top_k`, `top_p`, `min_p`.
/// Ordered by probability where a filter needs an order, else by id.
fn distribution(
    logits: &[f32],
    sampling: &Sampling,
    allowed: impl Fn(u32) -> bool,
) -> Vec<(u32, f64)> {
    let finite = (0..).zip(logits).filter(|(id, logit)| logit.is_finite() && allowed(*id));
    let mut kept: Vec<(u32, f64)> = finite.map(|(id, &logit)| (id, f64::from(logit))).collect();
    let by_probability = |a: &(u32, f64), b: &(u32, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    let top_k = usize::try_from(sampling.top_k).unwrap_or(usize::MAX);
    if top_k > 0 && top_k < kept.len() {
        kept.select_nth_unstable_by(top_k - 1, by_probability);
        kept.truncate(top_k);
    }
    if top_k > 0 || sampling.top_p < 1.0 {
        kept.sort_unstable_by(by_probability);
    }
    let highest = kept.iter().fold(f64::NEG_INFINITY, |highest, (_, logit)| highest.max(*logit));
    for (_, weight) in &mut kept {
        *weight = ((*weight - highest) / f64::from(sampling.temperature)).exp();
    }
    normalise(&mut kept);
    if sampling.top_p < 1.0 {
        let mut sum = 0.0;
        let enough = kept.iter().position(|(_, probability)| {
            sum += probability;
            sum >= f64::from(sampling.top_p)
        });
        kept.truncate(enough.map_or(kept.len(), |last| last + 1));
        normalise(&mut kept);
    }
    if sampling.min_p > 0.0 {
        let highest =
            kept.iter().fold(0.0_f64, |highest, (_, probability)| highest.max(*probability));
        kept.retain(|(_, probability)| *probability >= highest * f64::from(sampling.min_p));
        normalise(&mut kept);
    }
    kept
}

fn normalise(kept: &mut [(u32, f64)]) {
    let sum: f64 = kept.iter().map(|(_, weight)| weight).sum();
    for (_, weight) in kept {
        *weight /= sum;
    }
}

/// A number from 0 up to but not including 1. The position picks a stream of its own, so no draw depends on another.
fn uniform(seed: u64, position: u64) -> f64 {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(position);
    // A double holds 53 bits exactly.
    let bits = random.next_u64() >> 11;
    let (high, low) =
        (u32::try_from(bits >> 32).unwrap_or(0), u32::try_from(bits & 0xffff_ffff).unwrap_or(0));
    (f64::from(high) * 4_294_967_296.0 + f64::from(low)) / 9_007_199_254_740_992.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampling(temperature: f32, top_k: u32, top_p: f32, min_p: f32) -> Sampling {
        Sampling { temperature, top_k, top_p, min_p, ..Sampling::default() }
    }

    /// What may be chosen, by the definitions, one after the other, each over a sorted list of all tokens.
    fn naive(logits: &[f32], sampling: &Sampling) -> Vec<(u32, f64)> {
        let mut all: Vec<(u32, f64)> = (0..)
            .zip(logits.iter().map(|logit| f64::from(*logit / sampling.temperature).exp()))
            .collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let again = |all: &mut Vec<(u32, f64)>| {
            let sum: f64 = all.iter().map(|(_, weight)| weight).sum();
            for (_, weight) in all {
                *weight /= sum;
            }
        };
        if sampling.top_k > 0 {
            all.truncate(sampling.top_k as usize);
        }
        again(&mut all);
        // The smallest set that reaches `top_p`: a token is in if those in front of it do not.
        let before = |at: usize| all[..at].iter().map(|(_, weight)| weight).sum::<f64>();
        let most = (0..all.len()).take_while(|at| before(*at) < f64::from(sampling.top_p)).count();
        if sampling.top_p < 1.0 {
            all.truncate(most.max(1));
        }
        again(&mut all);
        let best = all[0].1;
        all.retain(|(_, weight)| *weight >= best * f64::from(sampling.min_p));
        again(&mut all);
        all
    }

    #[test]
    fn distributions_equal_their_definitions() {
        let mut random = ChaCha8Rng::seed_from_u64(3);
        for case in 0..1000 {
            let size = 1 + random.next_u32() % 40;
            let tenth = |random: &mut ChaCha8Rng, of: u32| {
                f32::from(u8::try_from(random.next_u32() % of).unwrap()) / 10.0
            };
            let logits: Vec<f32> = (0..size).map(|_| tenth(&mut random, 100)).collect();
            let sampling = Sampling {
                temperature: 0.1 + tenth(&mut random, 19),
                top_k: if case % 2 == 0 { 0 } else { random.next_u32() % 50 },
                // Not on a boundary that rounding could decide either way.
                top_p: if case % 3 == 0 { 1.0 } else { tenth(&mut random, 10) + 0.037 },
                min_p: if case % 5 == 0 { 0.0 } else { tenth(&mut random, 10) + 0.013 },
                ..Sampling::default()
            };
            let mut ours = distribution(&logits, &sampling, |_| true);
            ours.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            let theirs = naive(&logits, &sampling);
            assert_eq!(ours.len(), theirs.len(), "{case} {sampling:?} {logits:?}");
            for ((id, ours), (expected, theirs)) in ours.iter().zip(&theirs) {
                assert!(id == expected && (ours - theirs).abs() < 1e-5, "{case} {sampling:?}");
            }
        }
    }

    /// A token that was written is drawn again only as far as the penalty lets it.
    #[test]
    fn penalties_and_biases_reach_the_choice() {
        let with = |sampling| Sampler::new(sampling, 1, &[0]);
        let logits = [2.0, 1.5, 1.0];
        let mut plain = with(Sampling::default());
        assert_eq!(plain.choose(&logits, 0, |_| true), Some(0));
        // The prompt's token counts for the repetition penalty only.
        let mut repeats = with(Sampling { repetition_penalty: 2.0, ..Sampling::default() });
        assert_eq!(repeats.choose(&logits, 0, |_| true), Some(1));
        let mut present = with(Sampling { presence_penalty: 0.75, ..Sampling::default() });
        assert_eq!(present.choose(&logits, 0, |_| true), Some(0));
        present.note(0);
        assert_eq!(present.choose(&logits, 1, |_| true), Some(1));
        let bias = vec![(2, 100.0), (0, -100.0)];
        let mut biased = with(Sampling { logit_bias: bias, ..Sampling::default() });
        assert_eq!(biased.choose(&logits, 0, |_| true), Some(2));
        assert_eq!(biased.choose(&logits, 0, |id| id != 2), Some(1));
    }

    #[test]
    fn greedy_takes_the_first_of_equals_and_never_a_hole() {
        assert_eq!(greedy(&[1.0, 3.0, 3.0], |_| true), Some(1));
        assert_eq!(greedy(&[1.0, 3.0, 3.0], |id| id != 1), Some(2));
        assert_eq!(greedy(&[f32::NAN, 0.0, f32::NAN], |_| true), Some(1));
        assert_eq!(greedy(&[f32::NAN], |_| true), None);
        assert_eq!(greedy(&[1.0], |_| false), None);
    }

    #[test]
    fn filters_keep_what_they_say() {
        let logits: Vec<f32> = [0.5_f32, 0.3, 0.15, 0.05].iter().map(|p| p.ln()).collect();
        let ids = |s| {
            distribution(&logits, &s, |_| true).into_iter().map(|(id, _)| id).collect::<Vec<_>>()
        };
        assert_eq!(ids(sampling(1.0, 0, 1.0, 0.0)), [0, 1, 2, 3]);
        assert_eq!(ids(sampling(1.0, 2, 1.0, 0.0)), [0, 1]);
        assert_eq!(ids(sampling(1.0, 0, 0.7, 0.0)), [0, 1]);
        assert_eq!(ids(sampling(1.0, 0, 0.2, 0.0)), [0]);
        assert_eq!(ids(sampling(1.0, 0, 1.0, 0.2)), [0, 1, 2]);
        let sum: f64 = distribution(&logits, &sampling(0.7, 3, 0.9, 0.01), |_| true)
            .iter()
            .map(|(_, p)| p)
            .sum();
        assert!((sum - 1.0).abs() < 1e-12);
    }

    #[test]
    fn draws_follow_the_distribution_and_the_seed() {
        let logits = [0.2_f32.ln(), 0.8_f32.ln()];
        let mut sampler = Sampler::new(sampling(1.0, 0, 1.0, 0.0), 7, &[]);
        let ones = (0..10_000).filter(|p| sampler.choose(&logits, *p, |_| true) == Some(1)).count();
        assert!((7_800..8_200).contains(&ones), "{ones}");
        let mut again = Sampler::new(sampling(1.0, 0, 1.0, 0.0), 7, &[]);
        let mut other = Sampler::new(sampling(1.0, 0, 1.0, 0.0), 8, &[]);
        let run =
            |s: &mut Sampler| (0..64).map(|p| s.choose(&logits, p, |_| true)).collect::<Vec<_>>();
        assert_eq!(run(&mut sampler), run(&mut again));
        assert_ne!(run(&mut sampler), run(&mut other));
    }

    /// First-step distributions of an independent implementation, where they are at hand.
    #[test]
    fn distributions_equal_the_reference() {
        let Some(lines) =
            crate::inference::test_material::lines("golden/stories260k-sampling.jsonl")
        else {
            return;
        };
        for line in lines {
            let logits: Vec<f32> = serde_json::from_value(line["full_logits"].clone()).unwrap();
            let cases = [
                ("T1", sampling(1.0, 0, 1.0, 0.0)),
                ("T0.7", sampling(0.7, 0, 1.0, 0.0)),
                ("T1_top_k5", sampling(1.0, 5, 1.0, 0.0)),
                ("T0.8_top_p0.9", sampling(0.8, 0, 0.9, 0.0)),
                ("T1_top_p0.5", sampling(1.0, 0, 0.5, 0.0)),
            ];
            for (name, sampling) in cases {
                let ours = distribution(&logits, &sampling, |_| true);
                let theirs = line["next_token_distribution"][name].as_object().unwrap();
                for (id, probability) in &ours {
                    let expected = theirs
                        .get(&id.to_string())
                        .and_then(serde_json::Value::as_f64)
                        .unwrap_or(0.0);
                    // The reference leaves out what is below 1e-4 and rounds to six places.
                    assert!((probability - expected).abs() < 2e-4, "{} {name} {id}", line["id"]);
                }
                assert!(theirs.keys().all(|id| ours.iter().any(|(own, _)| own.to_string() == *id)));
            }
        }
    }
}
