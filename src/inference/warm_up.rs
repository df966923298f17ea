//! The first steps of a loaded graph, on tokens that nobody asked for: faults show before the first prompt, and how rows
//! of different lengths go into one step is tried, not believed.

use std::path::Path;

use super::error::LoadError;
use super::graph::{Graph, Row};
use super::kv_cache::Padding;

/// Rows of one step may differ from the same rows alone by this part of the range of the logits: other kernels round
/// otherwise (0.1 % was seen), while a row that reads another's past differs by tens of percents.
const TOLERANCE: f32 = 0.02;

impl Graph {
    /// Runs one step of every kind. `tokens` are some that the model knows, and that differ.
    pub(super) fn warm_up(&mut self, tokens: &[u32], slots: usize) -> Result<(), LoadError> {
        let fail =
            |path: &Path, doing, source| LoadError::Runtime { path: path.into(), doing, source };
        let pair = tokens.get(..2).unwrap_or(tokens);
        if !self.writes() {
            return self.try_hidden(tokens);
        }
        let mut first = self.forward(&[row(0, 0, pair)]);
        if first.is_err() && !self.pruned {
            // A graph whose logits are pruned without its output type saying so.
            self.pruned = true;
            let again = self.forward(&[row(0, 0, pair)]);
            if again.is_ok() {
                first = again;
            }
        }
        first.map_err(|source| fail(&self.file, "failed in the first step", source))?;
        if !self.logits(0).iter().all(|logit| logit.is_finite()) {
            let reason = "the first step gives logits that are no numbers; the weights are damaged";
            return Err(LoadError::file(&self.file, reason));
        }
        self.try_hidden(tokens)?;
        let next = tokens.get(..1).unwrap_or_default();
        self.forward(&[row(0, pair.len(), next)])
            .map_err(|source| fail(&self.file, "failed in the first decode step", source))?;
        if slots < 2 || !self.may_batch {
            return Ok(());
        }
        if self.cache.is_copied() {
            self.batches = self.try_batches(tokens);
        } else {
            // One buffer for past and present is `GroupQueryAttention`, which takes rows of any length.
            self.batches = true;
            self.forward(&[row(0, pair.len(), next), row(1, 0, next)])
                .map_err(|source| fail(&self.file, "failed in the first step of two", source))?;
        }
        Ok(())
    }

    /// Two steps with the hidden states, where the graph gives them: a text is read so.
    fn try_hidden(&mut self, tokens: &[u32]) -> Result<(), LoadError> {
        if !self.gives_hidden() {
            return Ok(());
        }
        let file = self.file.clone();
        let (first, second) = tokens.split_at(tokens.len().min(2));
        for step in [row(0, 0, first), row(0, first.len(), second)] {
            if step.tokens.is_empty() {
                continue;
            }
            let doing = "failed in the first steps with hidden states";
            let fail = |source| LoadError::Runtime { path: file.clone(), doing, source };
            let hidden = self.hidden_states(&step).map_err(fail)?;
            if !hidden.iter().all(|number| number.is_finite()) {
                let reason = "the first steps give hidden states that are no numbers; the weights are damaged";
                return Err(LoadError::file(&file, reason));
            }
        }
        Ok(())
    }

    /// Whether prompts of different lengths go into one step, with the padding that this graph needs.
    fn try_batches(&mut self, tokens: &[u32]) -> bool {
        let Some(alone) = self.two_steps(tokens, false) else { return false };
        for padding in [Padding::Left, Padding::Right] {
            self.cache.pad(padding);
            if self.two_steps(tokens, true).is_some_and(|together| are_alike(&alone, &together)) {
                return true;
            }
        }
        self.batches = false;
        false
    }

    /// The logits of two prompts of different lengths for two tokens each, one prompt after the other or both in one step.
    fn two_steps(&mut self, tokens: &[u32], together: bool) -> Option<Vec<Vec<f32>>> {
        let (long, short) = (tokens, tokens.get(1..2)?);
        self.batches = together;
        self.forward(&[row(0, 0, long)]).ok()?;
        self.forward(&[row(1, 0, short)]).ok()?;
        let mut logits = Vec::new();
        for at in 0..2 {
            let next = tokens.get(at..=at)?;
            self.forward(&[row(0, long.len() + at, next), row(1, short.len() + at, next)]).ok()?;
            logits.extend([self.logits(0).to_vec(), self.logits(1).to_vec()]);
        }
        Some(logits)
    }
}

fn row(slot: usize, past: usize, tokens: &[u32]) -> Row<'_> {
    Row { slot, past, tokens }
}

fn are_alike(one: &[Vec<f32>], other: &[Vec<f32>]) -> bool {
    one.iter().zip(other).all(|(one, other)| {
        let (low, high) =
            one.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(l, h), x| (l.min(*x), h.max(*x)));
        let most = (high - low) * TOLERANCE;
        one.len() == other.len() && one.iter().zip(other).all(|(a, b)| (a - b).abs() <= most)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logits_of_another_past_are_told_from_rounding() {
        let alone = vec![vec![0.0, 1.0, -1.0]];
        assert!(are_alike(&alone, &[vec![0.01, 1.0, -1.02]]));
        assert!(!are_alike(&alone, &[vec![0.01, 1.0, -0.9]]));
        assert!(!are_alike(&alone, &[vec![f32::NAN, 1.0, -1.0]]));
    }
}
