//! One prompt from its first chunk to its last token: what to read next, what a chosen token means, when it ends.
//! Pure: runs no model, asks no clock.

use std::sync::Arc;
use std::time::Instant;

use llguidance::Matcher;

use super::detokenizer::Detokenizer;
use super::sampler::Sampler;
use super::stop::StopStrings;
use super::tokenizer::Tokenizer;
use crate::request::{Code, Event, Finish, FinishReason, Refusal, Timings, Usage};

/// What a prompt is generated from.
pub(super) struct Plan {
    /// The prompt's tokens.
    pub(super) prompt: Vec<u32>,
    pub(super) max_tokens: u32,
    pub(super) stop: StopStrings,
    pub(super) sampler: Sampler,
    pub(super) seed: u64,
    pub(super) matcher: Option<Box<Matcher>>,
    /// Ends the answer.
    pub(super) eos: Arc<[u32]>,
    pub(super) tokenizer: Arc<Tokenizer>,
}

/// A prompt that is being answered.
pub(super) struct Generation {
    plan: Plan,
    text: Detokenizer,
    /// Tokens in front of those still to be chosen: the prompt and what was delivered before.
    given: Vec<u32>,
    /// How many of `given` are in the cache.
    read: usize,
    /// Tokens of the answer.
    answer: Vec<u32>,
    /// Whether the end of sequence was chosen; it is counted, but is no text.
    ended_by_eos: bool,
    began: Option<Instant>,
    first_token: Option<Instant>,
    end: Option<FinishReason>,
}

impl Generation {
    /// Begins; `resume` are tokens of the answer that were delivered before, taken as chosen.
    pub(super) fn new(plan: Plan, resume: &[u32]) -> Result<Self, Refusal> {
        let text = Detokenizer::after(plan.tokenizer.pieces(), &plan.prompt);
        let given = plan.prompt.iter().chain(resume).copied().collect();
        let end = (plan.max_tokens == 0).then_some(FinishReason::Length);
        let mut generation = Generation {
            plan,
            text,
            given,
            read: 0,
            answer: Vec::new(),
            ended_by_eos: false,
            began: None,
            first_token: None,
            end,
        };
        for token in resume {
            if generation.end.is_none() {
                generation.take(*token)?;
            }
        }
        Ok(generation)
    }

    /// The next part of the prompt to read, at most `chunk` tokens; empty when all is read.
    pub(super) fn unread(&self, chunk: usize) -> &[u32] {
        let rest = self.given.get(self.read..).unwrap_or_default();
        rest.get(..chunk.min(rest.len())).unwrap_or_default()
    }

    /// Tokens of this prompt in the cache.
    pub(super) fn cached(&self) -> usize {
        self.read
    }

    /// The token that was chosen last and is not in the cache yet.
    pub(super) fn last_token(&self) -> [u32; 1] {
        [self.given.get(self.read).copied().unwrap_or_default()]
    }

    /// Work on the prompt begins now.
    pub(super) fn begin(&mut self, now: Instant) {
        self.began.get_or_insert(now);
    }

    /// `tokens` more of the prompt are in the cache.
    pub(super) fn read(&mut self, tokens: usize) -> Event {
        self.read += tokens;
        Event::Prefill { done: count(self.read), total: count(self.given.len()) }
    }

    /// Whether the whole prompt is in the cache.
    pub(super) fn is_read(&self) -> bool {
        self.read >= self.given.len()
    }

    /// Whether the answer is whole.
    pub(super) fn is_over(&self) -> bool {
        self.end.is_some()
    }

    /// Chooses the next token from the logits behind the last one.
    pub(super) fn choose(&mut self, logits: &[f32], now: Instant) -> Result<Event, Refusal> {
        let mask = match &mut self.plan.matcher {
            Some(matcher) => {
                Some(matcher.compute_mask().map_err(|error| constraint_failed(&error))?)
            }
            None => None,
        };
        let allowed = |id: u32| {
            mask.as_ref().is_none_or(|mask| {
                usize::try_from(id).is_ok_and(|at| at < mask.len()) && mask.is_allowed(id)
            })
        };
        let token = self.plan.sampler.choose(logits, self.answer.len() as u64, allowed);
        let no_token = || {
            Refusal::new(
                Code::Internal,
                "the model gave no token a probability; its weights or this step are damaged",
            )
        };
        let token = token.ok_or_else(no_token)?;
        self.first_token.get_or_insert(now);
        let text = self.take(token)?;
        let tokens = if self.ended_by_eos { Vec::new() } else { vec![token] };
        if self.end.is_none() {
            self.given.push(token);
        }
        Ok(Event::Delta { text, tokens })
    }

    /// The last event of a whole answer.
    pub(super) fn finished(&self, now: Instant) -> Event {
        let began = self.began.unwrap_or(now);
        let first = self.first_token.unwrap_or(now);
        let completion = count(self.answer.len()) + u32::from(self.ended_by_eos);
        Event::Finished(Finish {
            reason: self.end.unwrap_or(FinishReason::Stop),
            usage: Usage { prompt: count(self.plan.prompt.len()), cached: 0, completion },
            timings: Timings {
                prefill: first.saturating_duration_since(began),
                decode: now.saturating_duration_since(first),
                ..Timings::default()
            },
            seed: self.plan.seed,
        })
    }

    /// Takes a token as chosen and returns the text it makes certain.
    fn take(&mut self, token: u32) -> Result<String, Refusal> {
        if self.plan.eos.contains(&token) {
            self.ended_by_eos = true;
            return Ok(self.close(String::new(), FinishReason::Stop));
        }
        self.answer.push(token);
        let characters = self.text.push(self.plan.tokenizer.pieces(), token);
        let (text, stopped) = self.plan.stop.push(&characters);
        if stopped {
            self.end = Some(FinishReason::Stop);
            return Ok(text);
        }
        if let Some(matcher) = &mut self.plan.matcher {
            matcher.consume_token(token).map_err(|error| constraint_failed(&error))?;
            if matcher.is_stopped() {
                return Ok(self.close(text, FinishReason::Stop));
            }
        }
        if count(self.answer.len()) >= self.plan.max_tokens {
            return Ok(self.close(text, FinishReason::Length));
        }
        Ok(text)
    }

    /// Lets out what was held back.
    fn close(&mut self, mut text: String, reason: FinishReason) -> String {
        let rest = self.text.finish(self.plan.tokenizer.pieces());
        let (more, stopped) = self.plan.stop.push(&rest);
        text.push_str(&more);
        if !stopped {
            text.push_str(&self.plan.stop.finish());
        }
        self.end = Some(if stopped { FinishReason::Stop } else { reason });
        text
    }
}

fn constraint_failed(error: &dyn std::fmt::Display) -> Refusal {
    Refusal::bad_request(format!("the form of the answer cannot be enforced any further: {error}"))
        .with_param("response_format")
}

/// Token counts are bounded by the context, which fits.
fn count(tokens: usize) -> u32 {
    u32::try_from(tokens).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::tokenizer::tests::tiny;
    use crate::request::Sampling;

    const A: u32 = 260;

    fn plan(max_tokens: u32, stop: &[&str]) -> Plan {
        let stop: Vec<String> = stop.iter().map(|s| (*s).to_owned()).collect();
        Plan {
            prompt: vec![1, A, A],
            max_tokens,
            stop: StopStrings::new(&stop),
            sampler: Sampler::new(Sampling::default(), 5),
            seed: 5,
            matcher: None,
            eos: vec![2].into(),
            tokenizer: Arc::new(tiny()),
        }
    }

    /// Lets the model want `tokens`, one after the other; returns the text and the final event.
    fn run(mut generation: Generation, tokens: &[u32]) -> (String, Finish) {
        let now = Instant::now();
        generation.begin(now);
        while !generation.is_read() {
            let chunk = generation.unread(2).len();
            generation.read(chunk);
        }
        let mut text = String::new();
        for token in tokens {
            if generation.is_over() {
                break;
            }
            let mut logits = vec![0.0; 300];
            logits[usize::try_from(*token).unwrap()] = 1.0;
            let Event::Delta { text: more, .. } = generation.choose(&logits, now).unwrap() else {
                panic!("no delta")
            };
            text.push_str(&more);
        }
        assert!(generation.is_over());
        let Event::Finished(finish) = generation.finished(now) else { panic!("not finished") };
        (text, finish)
    }

    #[test]
    fn answers_end_for_each_reason() {
        let start = |max, stop: &[&str]| Generation::new(plan(max, stop), &[]).unwrap();
        let (text, finish) = run(start(9, &[]), &[A, A + 1, 2]);
        assert_eq!(
            (text.as_str(), finish.reason, finish.usage),
            ("ab", FinishReason::Stop, Usage { prompt: 3, cached: 0, completion: 3 })
        );
        let (text, finish) = run(start(2, &[]), &[A, A + 1, 2]);
        assert_eq!(
            (text.as_str(), finish.reason, finish.usage.completion),
            ("ab", FinishReason::Length, 2)
        );
        let (text, finish) = run(start(9, &["bc"]), &[A, A + 1, A + 2, A]);
        assert_eq!(
            (text.as_str(), finish.reason, finish.usage.completion),
            ("a", FinishReason::Stop, 3)
        );
        let (text, finish) = run(start(9, &["bcd"]), &[A, A + 1, 2]);
        assert_eq!((text.as_str(), finish.reason), ("ab", FinishReason::Stop));
        assert_eq!(run(start(0, &[]), &[]).1.reason, FinishReason::Length);
    }

    #[test]
    fn a_resumed_answer_goes_on_where_it_was() {
        let tokens = [A, A + 1, A + 2, A + 3, 2];
        let whole = run(Generation::new(plan(9, &["cx"]), &[]).unwrap(), &tokens);
        for cut in 0..4 {
            let resumed = Generation::new(plan(9, &["cx"]), &tokens[..cut]).unwrap();
            let (text, finish) = run(resumed, &tokens[cut..]);
            assert!(whole.0.ends_with(&text) && finish.usage == whole.1.usage, "{cut}: {text}");
        }
        let ended = Generation::new(plan(2, &[]), &tokens[..2]).unwrap();
        assert!(ended.is_over());
    }
}
