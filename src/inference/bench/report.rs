//! The figures of a measured model, and how those of several rounds become one.

use serde::{Deserialize, Serialize};

use super::Options;

/// What several rounds gave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// In the middle.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Figure {
    /// The same in another unit.
    #[must_use]
    pub fn map(self, to: impl Fn(f64) -> f64) -> Self {
        Figure { median: to(self.median), min: to(self.min), max: to(self.max) }
    }

    /// Of numbers that are all finite; zeros where there are none.
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(0.0);
        let half = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            at(half)
        } else {
            f64::midpoint(at(half.max(1) - 1), at(half))
        };
        Figure { median, min: at(0), max: at(values.len().saturating_sub(1)) }
    }
}

/// Reading prompts of one length.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prefill {
    /// Tokens of the prompt.
    pub tokens: u32,
    /// Tokens read in a second, the choice of the first token included.
    pub tokens_per_second: Figure,
    /// Seconds until the first token of the answer.
    pub first_token_seconds: Figure,
}

/// Writing one answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decode {
    /// Tokens in the context when the clock starts.
    pub depth: u32,
    /// Tokens written in a second.
    pub tokens_per_second: Figure,
    /// Processor time of one token, of all threads together, in milliseconds. Where others use the machine too, this is
    /// what can be compared; threads that spin spend more.
    pub processor_ms_per_token: Figure,
}

/// Writing several answers at once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Streams {
    /// How many.
    pub streams: u16,
    /// Tokens written in a second, of all together.
    pub tokens_per_second: Figure,
}

/// Two prompts of one client with the same beginning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Shared {
    /// Tokens they have in common.
    pub tokens: u32,
    /// Tokens of the second one that were in the cache.
    pub cached: u32,
    /// Seconds until the first token of the first one.
    pub first_seconds: Figure,
    /// Seconds until the first token of the second one.
    pub second_seconds: Figure,
}

/// Writing an answer that is held to a schema with long keys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Held {
    /// Keys of the schema.
    pub keys: u16,
    /// Tokens of the answer, on average; the model says what stands behind the keys.
    pub tokens: f64,
    /// Tokens of the answer in a second, from the start of a prompt of one token.
    pub tokens_per_second: Figure,
    /// The same of answers of as many tokens that are held to nothing.
    pub free_tokens_per_second: Figure,
    /// Seconds to find the tokens that may come next in a string of plain text, where nearly all may.
    pub mask_seconds: Figure,
}

/// Memory of this process at the end, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// What cannot be given back.
    pub anonymous: u64,
    /// Pages of files, the model's above all.
    pub file: u64,
    /// The most of both at once.
    pub peak: u64,
}

/// Everything that was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Seconds until the model was loaded.
    pub load_seconds: f64,
    /// Seconds from the beginning of loading until the first token of a prompt of eight.
    pub load_and_first_token_seconds: f64,
    /// Reading.
    pub prefill: Vec<Prefill>,
    /// Writing alone.
    pub decode: Vec<Decode>,
    /// Writing beside others.
    pub streams: Vec<Streams>,
    /// Beginning like another.
    pub shared: Option<Shared>,
    /// Writing in a form.
    pub held: Option<Held>,
    /// Memory.
    pub memory: Memory,
    /// Rounds that counted.
    pub rounds: u32,
    /// Tokens written in each measurement.
    pub tokens: u32,
    /// What was asked for and does not fit the model.
    pub left_out: Vec<String>,
}

/// What one round gave, in the order of the options.
#[derive(Debug, Default)]
pub(super) struct Round {
    /// Seconds.
    pub(super) prefill: Vec<f64>,
    /// Seconds and processor seconds for each token.
    pub(super) decode: Vec<(f64, f64)>,
    /// Tokens a second.
    pub(super) streams: Vec<f64>,
    /// Seconds, seconds, and cached tokens.
    pub(super) shared: Option<(f64, f64, u32)>,
    pub(super) held: Option<HeldOnce>,
}

/// What one round gave of answers in a form.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeldOnce {
    /// Tokens of the answer.
    pub(super) tokens: u32,
    /// Seconds of it, and of one that is free.
    pub(super) seconds: f64,
    pub(super) free_seconds: f64,
    pub(super) mask_seconds: f64,
}

/// The figures of all rounds; what is measured once is left at zero.
pub(super) fn sum_up(options: &Options, rounds: &[Round]) -> Report {
    let figure = |of: &dyn Fn(&Round) -> Option<f64>| {
        Figure::of(rounds.iter().filter_map(of).filter(|value| value.is_finite()).collect())
    };
    let prefill = options.prompts.iter().enumerate().map(|(index, tokens)| Prefill {
        tokens: *tokens,
        tokens_per_second: figure(&|round| Some(f64::from(*tokens) / round.prefill.get(index)?)),
        first_token_seconds: figure(&|round| round.prefill.get(index).copied()),
    });
    let decode = options.depths.iter().enumerate().map(|(index, depth)| Decode {
        depth: *depth,
        tokens_per_second: figure(&|round| Some(round.decode.get(index)?.0.recip())),
        processor_ms_per_token: figure(&|round| Some(round.decode.get(index)?.1 * 1000.0)),
    });
    let streams = options.streams.iter().enumerate().map(|(index, streams)| Streams {
        streams: *streams,
        tokens_per_second: figure(&|round| round.streams.get(index).copied()),
    });
    let shared = (options.shared > 0).then(|| Shared {
        tokens: options.shared,
        cached: rounds.iter().filter_map(|round| Some(round.shared?.2)).min().unwrap_or(0),
        first_seconds: figure(&|round| Some(round.shared?.0)),
        second_seconds: figure(&|round| Some(round.shared?.1)),
    });
    let mean = |of: &dyn Fn(&HeldOnce) -> f64| {
        let all: Vec<f64> =
            rounds.iter().filter_map(|round| Some(of(round.held.as_ref()?))).collect();
        all.iter().sum::<f64>() / f64::from(u32::try_from(all.len().max(1)).unwrap_or(u32::MAX))
    };
    let held = (options.keys > 0).then(|| Held {
        keys: options.keys,
        tokens: mean(&|held| f64::from(held.tokens)),
        tokens_per_second: figure(&|round| {
            Some(f64::from(round.held?.tokens) / round.held?.seconds)
        }),
        free_tokens_per_second: figure(&|round| {
            Some(f64::from(round.held?.tokens) / round.held?.free_seconds)
        }),
        mask_seconds: figure(&|round| Some(round.held?.mask_seconds)),
    });
    Report {
        load_seconds: 0.0,
        load_and_first_token_seconds: 0.0,
        prefill: prefill.collect(),
        decode: decode.collect(),
        streams: streams.collect(),
        shared,
        held,
        memory: Memory { anonymous: 0, file: 0, peak: 0 },
        rounds: options.rounds,
        tokens: options.tokens,
        left_out: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_in_the_middle() {
        assert_eq!(Figure::of(vec![3.0, 1.0, 2.0]), Figure { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(Figure::of(vec![4.0, 1.0]), Figure { median: 2.5, min: 1.0, max: 4.0 });
        assert_eq!(Figure::of(Vec::new()), Figure::default());
    }

    #[test]
    fn rounds_are_summed_up() {
        let round = |seconds: f64| Round {
            prefill: vec![seconds, 4.0],
            decode: vec![(seconds, 0.2), (0.5, 0.6)],
            streams: vec![10.0, seconds],
            shared: Some((seconds, 0.1, 512)),
            held: Some(HeldOnce { tokens: 96, seconds, free_seconds: 4.0, mask_seconds: 1e-5 }),
        };
        let report = sum_up(&super::super::tests::options(), &[round(1.0), round(2.0), round(4.0)]);
        assert!((report.prefill[0].tokens_per_second.median - 64.0).abs() < 1e-9);
        assert!((report.decode[0].tokens_per_second.max - 1.0).abs() < 1e-9);
        assert!((report.decode[1].processor_ms_per_token.median - 600.0).abs() < 1e-9);
        assert_eq!(report.streams[1].streams, 4);
        let shared = report.shared.unwrap();
        assert_eq!((shared.cached, shared.first_seconds.max), (512, 4.0));
        let held = report.held.unwrap();
        assert!((held.tokens - 96.0).abs() < 1e-9 && (held.mask_seconds.min - 1e-5).abs() < 1e-9);
        let (in_form, free) = (held.tokens_per_second.median, held.free_tokens_per_second.median);
        assert!((in_form - 48.0).abs() < 1e-9 && (free - 24.0).abs() < 1e-9);
    }
}
