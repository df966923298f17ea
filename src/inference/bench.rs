//! Measures a loaded model as prompts meet it: how quickly it reads and writes, alone and beside others, how long the first
//! token takes, what memory it takes. Prompts go the same way that the engine's go.
//!
//! Every figure is measured once in each round, so that what disturbs the machine for a while disturbs all of them alike;
//! what is told is the median of the rounds.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::memory::field;
use super::{Clock, Config, Facts, LoadError, Loaded, Start, load};
use crate::request::{
    Constraint, ContextOverflow, Event, Finish, Input, PromptId, Request, Reuse, Sampling,
};

/// Tokens of the prompts of [`Options::streams`].
const STREAM_PROMPT: u32 = 64;
/// Tokens behind the beginning that two prompts share.
const TAIL: u32 = 16;

/// What is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Lengths of prompts whose reading is timed.
    pub prompts: Vec<u32>,
    /// Tokens in the context when the writing that is timed begins.
    pub depths: Vec<u32>,
    /// Numbers of answers that are written at once.
    pub streams: Vec<u16>,
    /// Tokens that two prompts begin with; 0 measures nothing.
    pub shared: u32,
    /// Tokens that are written in each measurement, by each answer.
    pub tokens: u32,
    /// Rounds that count; one more goes before them.
    pub rounds: u32,
}

impl Options {
    /// Tokens of context that all of this needs.
    pub fn context(&self) -> u32 {
        let prompts = self.prompts.iter().map(|length| length.saturating_add(1));
        let depths = self.depths.iter().map(|depth| self.depth_needs(*depth));
        let streams = (!self.streams.is_empty()).then(|| self.streams_need());
        let shared = (self.shared > 0).then(|| self.shared.saturating_add(TAIL + 1));
        prompts.chain(depths).chain(streams).chain(shared).max().unwrap_or(1)
    }

    /// The most prompts at once.
    pub fn slots(&self) -> u16 {
        self.streams.iter().copied().max().unwrap_or(1).max(1)
    }

    /// The first token is chosen before the clock starts, and the last one needs room, too.
    fn depth_needs(&self, depth: u32) -> u32 {
        depth.max(1).saturating_add(self.tokens).saturating_add(2)
    }

    /// Those that begin first write while the others are read.
    fn streams_need(&self) -> u32 {
        self.depth_needs(STREAM_PROMPT).saturating_add(self.slots().into())
    }

    /// Leaves out what does not fit into a context, and tells what that was.
    fn cut(&mut self, context: u32) -> Vec<String> {
        let mut left_out = Vec::new();
        let whole = self.clone();
        let mut say = |what: String| {
            left_out.push(format!("{what}: the context has {context} tokens"));
        };
        self.prompts.retain(|length| *length < context);
        self.depths.retain(|depth| whole.depth_needs(*depth) <= context);
        for length in whole.prompts.iter().filter(|length| !self.prompts.contains(length)) {
            say(format!("a prompt of {length} tokens"));
        }
        for depth in whole.depths.iter().filter(|depth| !self.depths.contains(depth)) {
            say(format!("writing {} tokens at {depth}", self.tokens));
        }
        if !self.streams.is_empty() && self.streams_need() > context {
            self.streams.clear();
            say("several answers at once".to_owned());
        }
        if self.shared > 0 && self.shared.saturating_add(TAIL) >= context {
            self.shared = 0;
            say(format!("prompts that share {} tokens", whole.shared));
        }
        left_out
    }
}

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
    /// Memory.
    pub memory: Memory,
    /// Rounds that counted.
    pub rounds: u32,
    /// Tokens written in each measurement.
    pub tokens: u32,
    /// What was asked for and does not fit the model.
    pub left_out: Vec<String>,
}

/// Loads a model and measures it. `config`'s slots and context are set as the options need them. `say` is told what is
/// being done.
///
/// # Errors
/// As for [`load`], and where a step fails.
pub fn bench(
    config: &Config,
    options: &Options,
    clock: Clock,
    say: &mut dyn FnMut(&str),
) -> Result<(Facts, Report), LoadError> {
    let config = Config { slots: options.slots(), context: options.context(), ..config.clone() };
    let begun = clock();
    say("loading");
    let loaded = load(&config, Arc::clone(&clock), &mut |_| {})?;
    let load_seconds = seconds(&clock, begun);
    let facts = loaded.facts.clone();
    let mut options = options.clone();
    let left_out = options.cut(facts.context);
    let bias: Vec<(u32, f32)> = loaded.runner.eos.iter().map(|id| (*id, f32::MIN)).collect();
    let mut bench = Bench { loaded, clock, bias, next: 1, model: config.model.clone() };
    bench.prefill(8.min(facts.context - 1))?;
    let load_and_first_token_seconds = seconds(&bench.clock, begun);

    let mut rounds = Vec::new();
    for round in 0..=options.rounds {
        say(&format!("round {round} of {}", options.rounds));
        let measured = bench.round(&options)?;
        // The first one finds caches cold and memory untouched.
        if round > 0 {
            rounds.push(measured);
        }
    }
    let mut report = sum_up(&options, &rounds);
    report.load_seconds = load_seconds;
    report.load_and_first_token_seconds = load_and_first_token_seconds;
    report.left_out = left_out;
    report.memory =
        memory().map_err(|source| LoadError::Read { path: "/proc/self/status".into(), source })?;
    Ok((facts, report))
}

/// What one round gave, in the order of the options.
#[derive(Debug, Default)]
struct Round {
    /// Seconds.
    prefill: Vec<f64>,
    /// Seconds and processor seconds for each token.
    decode: Vec<(f64, f64)>,
    /// Tokens a second.
    streams: Vec<f64>,
    /// Seconds, seconds, and cached tokens.
    shared: Option<(f64, f64, u32)>,
}

fn sum_up(options: &Options, rounds: &[Round]) -> Report {
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
    Report {
        load_seconds: 0.0,
        load_and_first_token_seconds: 0.0,
        prefill: prefill.collect(),
        decode: decode.collect(),
        streams: streams.collect(),
        shared,
        memory: Memory { anonymous: 0, file: 0, peak: 0 },
        rounds: options.rounds,
        tokens: options.tokens,
        left_out: Vec::new(),
    }
}

/// A model that is being measured.
struct Bench {
    loaded: Loaded,
    clock: Clock,
    /// Keeps answers from ending before their time.
    bias: Vec<(u32, f32)>,
    /// The next prompt's number.
    next: u64,
    model: std::path::PathBuf,
}

/// What a step told.
#[derive(Debug, Default)]
struct Told {
    tokens: u32,
    wrote: Vec<PromptId>,
    finished: Option<Finish>,
}

impl Bench {
    fn round(&mut self, options: &Options) -> Result<Round, LoadError> {
        let mut round = Round::default();
        for length in &options.prompts {
            round.prefill.push(self.prefill(*length)?);
        }
        for depth in &options.depths {
            round.decode.push(self.decode(*depth, options.tokens)?);
        }
        for streams in &options.streams {
            round.streams.push(self.streams(*streams, options.tokens)?);
        }
        if options.shared > 0 {
            round.shared = Some(self.shared(options.shared)?);
        }
        Ok(round)
    }

    /// Seconds from the start of a prompt until its first token.
    fn prefill(&mut self, length: u32) -> Result<f64, LoadError> {
        let prompt = self.prompt(length);
        Ok(self.first_token(prompt)?.0)
    }

    /// Seconds, and processor seconds, for each token of an answer behind `depth` tokens.
    fn decode(&mut self, depth: u32, tokens: u32) -> Result<(f64, f64), LoadError> {
        let prompt = self.prompt(depth.max(1));
        let id = self.start(prompt, tokens.saturating_add(2))?;
        while self.step()?.tokens == 0 {}
        let (begun, processor) = ((self.clock)(), processor_time());
        let mut written = 0;
        while written < tokens.max(1) {
            written += self.step()?.tokens;
        }
        let (took, worked) =
            (seconds(&self.clock, begun), processor_time().saturating_sub(processor));
        self.loaded.runner.cancel(id);
        Ok((took / f64::from(written), worked.as_secs_f64() / f64::from(written)))
    }

    /// Tokens in a second of so many answers at once.
    fn streams(&mut self, streams: u16, tokens: u32) -> Result<f64, LoadError> {
        let mut ids = Vec::new();
        for _ in 0..streams {
            let prompt = self.prompt(STREAM_PROMPT);
            let most = tokens.saturating_add(2).saturating_add(u32::from(streams));
            ids.push(self.start(prompt, most)?);
        }
        let mut begun = BTreeSet::new();
        while begun.len() < ids.len() {
            begun.extend(self.step()?.wrote);
        }
        let (from, mut written) = ((self.clock)(), 0);
        let steps = tokens.max(1);
        for _ in 0..steps {
            written += self.step()?.tokens;
        }
        let took = seconds(&self.clock, from);
        for id in ids {
            self.loaded.runner.cancel(id);
        }
        Ok(f64::from(written) / took)
    }

    /// Seconds until the first token of a prompt and of another one that begins like it, and tokens of that which were in
    /// the cache.
    fn shared(&mut self, length: u32) -> Result<(f64, f64, u32), LoadError> {
        let beginning = self.prompt(length);
        let with = |tail: Vec<u32>| [beginning.clone(), tail].concat();
        let tail = self.prompt(TAIL);
        let (first, _) = self.first_token(with(tail))?;
        let tail = self.prompt(TAIL);
        let (second, finish) = self.first_token(with(tail))?;
        Ok((first, second, finish.usage.cached))
    }

    /// Seconds until the first token of a prompt.
    fn first_token(&mut self, prompt: Vec<u32>) -> Result<(f64, Finish), LoadError> {
        let begun = (self.clock)();
        self.start(prompt, 1)?;
        loop {
            if let Some(finish) = self.step()?.finished {
                return Ok((seconds(&self.clock, begun), finish));
            }
        }
    }

    /// Tokens from all over the vocabulary, other ones each time.
    fn prompt(&self, length: u32) -> Vec<u32> {
        let vocab = u64::from(self.loaded.facts.vocab_size).max(4);
        let token = |index: u64| {
            // A linear congruential generator's step (Knuth's MMIX) mixes well enough for tokens that mean nothing.
            let mixed = (self.next << 32 | index).wrapping_mul(6_364_136_223_846_793_005);
            // Control tokens are the first ones in nearly all models.
            u32::try_from((mixed >> 33) % (vocab - 2) + 2).unwrap_or(2)
        };
        (0..u64::from(length)).map(token).collect()
    }

    fn start(&mut self, prompt: Vec<u32>, max_tokens: u32) -> Result<PromptId, LoadError> {
        let request = Request {
            input: Input::Completion(String::new()),
            sampling: Sampling { logit_bias: self.bias.clone(), ..Sampling::default() },
            max_tokens: Some(max_tokens),
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            context_overflow: ContextOverflow::default(),
            tools: None,
            constraint: Constraint::None,
            logprobs: None,
        };
        let id = PromptId(self.next);
        self.next += 1;
        let refused = |refusal| self.failed(&refusal);
        let prepared = self.loaded.preparer.prepare_tokens(prompt, &request).map_err(refused)?;
        // All are of one asker, so that a prompt may start behind the beginning of another.
        let start = Start { id, prepared, seed: 0, resume: &[], reuse: Reuse::default() };
        let started = self.loaded.runner.start(start);
        started.map_err(|refusal| self.failed(&refusal))?;
        Ok(id)
    }

    fn step(&mut self) -> Result<Told, LoadError> {
        let (mut told, mut failure) = (Told::default(), None);
        let stepped = self.loaded.runner.step(&mut |id, event| match event {
            Event::Delta { tokens, .. } => {
                told.tokens += u32::try_from(tokens.len()).unwrap_or(u32::MAX);
                told.wrote.push(id);
            }
            Event::Finished(finish) => told.finished = Some(finish),
            Event::Failed(refusal) => failure = Some(refusal),
            _ => {}
        });
        stepped.map_err(|error| self.failed(&error))?;
        failure.map_or(Ok(told), |refusal| Err(self.failed(&refusal)))
    }

    fn failed(&self, error: &dyn std::fmt::Display) -> LoadError {
        LoadError::file(&self.model, format!("cannot be measured: {error}"))
    }
}

fn seconds(clock: &Clock, since: Instant) -> f64 {
    clock().saturating_duration_since(since).as_secs_f64()
}

/// A clock that goes on only while this process works, and as many times as fast as threads do.
pub fn processor_clock() -> Clock {
    let (begun, worked) = (Instant::now(), processor_time());
    Arc::new(move || begun + processor_time().saturating_sub(worked))
}

/// What this process and all its threads have worked so far.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let (seconds, nanoseconds) = (u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec));
    Duration::new(seconds.unwrap_or(0), nanoseconds.unwrap_or(0))
}

fn memory() -> std::io::Result<Memory> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let of = |name: &str| field(&status, name).unwrap_or(0);
    Ok(Memory { anonymous: of("RssAnon:"), file: of("RssFile:"), peak: of("VmHWM:") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Options {
        Options {
            prompts: vec![128, 512],
            depths: vec![0, 512],
            streams: vec![1, 4],
            shared: 512,
            tokens: 32,
            rounds: 3,
        }
    }

    #[test]
    fn a_median_is_in_the_middle() {
        assert_eq!(Figure::of(vec![3.0, 1.0, 2.0]), Figure { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(Figure::of(vec![4.0, 1.0]), Figure { median: 2.5, min: 1.0, max: 4.0 });
        assert_eq!(Figure::of(Vec::new()), Figure::default());
    }

    #[test]
    fn what_does_not_fit_is_left_out_and_said() {
        assert_eq!((options().context(), options().slots()), (546, 4));
        let mut all = options();
        assert_eq!(all.cut(546), [""; 0]);
        assert_eq!(all, options());
        let mut some = options();
        let left_out = some.cut(512);
        assert_eq!(left_out.len(), 3, "{left_out:?}");
        assert!(left_out[1].contains("writing 32 tokens at 512"), "{left_out:?}");
        assert_eq!((some.prompts, some.depths, some.shared), (vec![128], vec![0], 0));
        let mut none = options();
        assert_eq!(none.cut(64).len(), 5);
        assert!(none.streams.is_empty());
    }

    #[test]
    fn rounds_are_summed_up() {
        let round = |seconds: f64| Round {
            prefill: vec![seconds, 4.0],
            decode: vec![(seconds, 0.2), (0.5, 0.6)],
            streams: vec![10.0, seconds],
            shared: Some((seconds, 0.1, 512)),
        };
        let report = sum_up(&options(), &[round(1.0), round(2.0), round(4.0)]);
        assert!((report.prefill[0].tokens_per_second.median - 64.0).abs() < 1e-9);
        assert!((report.decode[0].tokens_per_second.max - 1.0).abs() < 1e-9);
        assert!((report.decode[1].processor_ms_per_token.median - 600.0).abs() < 1e-9);
        assert_eq!(report.streams[1].streams, 4);
        let shared = report.shared.unwrap();
        assert_eq!((shared.cached, shared.first_seconds.max), (512, 4.0));
    }
}
