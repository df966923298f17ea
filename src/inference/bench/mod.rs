//! Measures a loaded model as prompts meet it: how quickly it reads and writes, alone and beside others, how long the first
//! token takes, what memory it takes. Prompts go the same way that the engine's go.
//!
//! Every figure is measured once in each round, so that what disturbs the machine for a while disturbs all of them alike;
//! what is told is the median of the rounds.

mod held;
mod report;

pub use report::{Decode, Figure, Held, Memory, Prefill, Report, Shared, Streams};

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use super::memory::field;
use super::{Clock, Config, Facts, LoadError, Loaded, Prepared, Start, load};
use crate::request::{
    Constraint, ContextOverflow, Event, Finish, Input, PromptId, Request, Reuse, Sampling,
};
use report::{Round, sum_up};

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
    /// Long keys of the schema that an answer is held to; 0 measures nothing.
    pub keys: u16,
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
        let held = (self.keys > 0).then(|| self.held_needs());
        prompts.chain(depths).chain(streams).chain(shared).chain(held).max().unwrap_or(1)
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

    /// One token is the prompt.
    fn held_needs(&self) -> u32 {
        held::most_tokens(self.keys).saturating_add(2)
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
        if self.keys > 0 && self.held_needs() > context {
            self.keys = 0;
            say(format!("an answer with {} long keys", whole.keys));
        }
        left_out
    }
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
        if options.keys > 0 {
            round.held = Some(self.held(options.keys)?);
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
        let prepared = self.prepare(prompt, max_tokens, Constraint::None)?;
        self.start_prepared(prepared)
    }

    fn prepare(
        &self,
        prompt: Vec<u32>,
        max_tokens: u32,
        constraint: Constraint,
    ) -> Result<Prepared, LoadError> {
        let request = Request {
            input: Input::Completion(String::new()),
            sampling: Sampling { logit_bias: self.bias.clone(), ..Sampling::default() },
            max_tokens: Some(max_tokens),
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            context_overflow: ContextOverflow::default(),
            tools: None,
            constraint,
            logprobs: None,
        };
        let prepared = self.loaded.preparer.prepare_tokens(prompt, &request);
        prepared.map_err(|refusal| self.failed(&refusal))
    }

    fn start_prepared(&mut self, prepared: Prepared) -> Result<PromptId, LoadError> {
        let id = PromptId(self.next);
        self.next += 1;
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

    pub(super) fn options() -> Options {
        Options {
            prompts: vec![128, 512],
            depths: vec![0, 512],
            streams: vec![1, 4],
            shared: 512,
            keys: 4,
            tokens: 32,
            rounds: 3,
        }
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
        assert_eq!(none.cut(64).len(), 6);
        assert!(none.streams.is_empty());
    }
}
