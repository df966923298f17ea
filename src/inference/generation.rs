//! One prompt from its first chunk to its last token: what to read next, what a chosen token means, when it ends.
//! Pure: runs no model, asks no clock.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::detokenizer::Detokenizer;
use super::form::{Admission, Form, is_allowed};
use super::logprobs;
use super::sampler::Sampler;
use super::stop::StopStrings;
use super::tokenizer::Tokenizer;
use crate::request::{
    Code, Event, Finish, FinishReason, Refusal, Reuse, Timings, TokenLogprob, Usage,
};

/// What a prompt is generated from.
pub(super) struct Plan {
    /// The prompt's tokens.
    pub(super) prompt: Vec<u32>,
    pub(super) max_tokens: u32,
    pub(super) stop: StopStrings,
    pub(super) sampler: Sampler,
    pub(super) seed: u64,
    pub(super) form: Option<Form>,
    /// The control token in front of calls of tools, and the text that stands for it in the answer.
    pub(super) mark: Option<(u32, &'static str)>,
    /// How many alternatives are told of each token; `None` where nothing is.
    pub(super) logprobs: Option<u8>,
    /// Whose rows of the cache it may start behind.
    pub(super) reuse: Reuse,
    /// Tokens of context behind which the answer slides on, where it does.
    pub(super) slides: Option<usize>,
    /// Ends the answer: the model's own ends and the request's.
    pub(super) eos: Arc<[u32]>,
    pub(super) tokenizer: Arc<Tokenizer>,
}

/// A prompt that is being answered.
pub(super) struct Generation {
    plan: Plan,
    text: Detokenizer,
    /// The prompt and the answer as far as it is known: what has to be in the cache before the next choice.
    given: Vec<u32>,
    /// How many of `given` are in the cache.
    read: usize,
    /// How many tokens of the prompt were in the cache before it was read.
    reused: usize,
    /// Tokens of the answer.
    answer: Vec<u32>,
    /// How many of them, from the front, the context slid over: they are in `given` no more.
    forgotten: usize,
    /// Characters of the answer, those that are held back included.
    characters: u32,
    /// What the form of the answer forced before the first choice: told with that.
    untold: Piece,
    /// Tokens that end the answer in its form, once it has come to that.
    ending: Option<VecDeque<u32>>,
    /// Whether the end of sequence was chosen; it is counted, but is no text.
    ended_by_eos: bool,
    began: Option<Instant>,
    first_token: Option<Instant>,
    end: Option<FinishReason>,
}

/// What becomes a `Delta`.
#[derive(Debug, Default)]
struct Piece {
    text: String,
    tokens: Vec<u32>,
    logprobs: Vec<TokenLogprob>,
}

impl From<Piece> for Event {
    fn from(piece: Piece) -> Self {
        Event::Delta { text: piece.text, tokens: piece.tokens, logprobs: piece.logprobs }
    }
}

impl Generation {
    /// Begins; `resume` are tokens of the answer that were delivered before, taken as chosen.
    pub(super) fn new(plan: Plan, resume: &[u32]) -> Result<Self, Refusal> {
        let text = Detokenizer::after(plan.tokenizer.pieces(), &plan.prompt);
        let given = plan.prompt.clone();
        let end = (plan.max_tokens == 0).then_some(FinishReason::Length);
        let mut generation = Generation {
            plan,
            text,
            given,
            read: 0,
            reused: 0,
            answer: Vec::new(),
            forgotten: 0,
            characters: 0,
            untold: Piece::default(),
            ending: None,
            ended_by_eos: false,
            began: None,
            first_token: None,
            end,
        };
        let mut told = Piece::default();
        for token in resume {
            if generation.end.is_none() {
                generation.take_in_form(*token, &mut told)?;
            }
        }
        let mut untold = Piece::default();
        generation.take_forced(&mut untold)?;
        generation.untold = untold;
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

    /// All that has to be in the cache before the next choice.
    pub(super) fn given(&self) -> &[u32] {
        &self.given
    }

    /// As much of the prompt as is in the cache, without the answer: what others may start behind.
    pub(super) fn kept(&self) -> &[u32] {
        let prompt = self.read.min(self.plan.prompt.len());
        self.given.get(..prompt).unwrap_or_default()
    }

    /// Whose rows of the cache it may start behind.
    pub(super) fn reuse(&self) -> Reuse {
        self.plan.reuse
    }

    /// Its first `rows` tokens are in the cache already.
    pub(super) fn start_behind(&mut self, rows: usize) {
        self.read = rows;
        self.reused = rows.min(self.plan.prompt.len());
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

    /// What is known of the answer before the model has said anything; `None` where that is nothing.
    pub(super) fn untold(&mut self) -> Option<Event> {
        let piece = std::mem::take(&mut self.untold);
        (!piece.tokens.is_empty()).then(|| piece.into())
    }

    /// Chooses the next token from the logits behind the last one, and takes those that the form forces behind it.
    pub(super) fn choose(&mut self, logits: &[f32], now: Instant) -> Result<Event, Refusal> {
        if self.ending.is_some() {
            let mut piece = Piece::default();
            self.take_ending(logits, &mut piece)?;
            return Ok(piece.into());
        }
        let mask = self.plan.form.as_mut().map(Form::mask).transpose()?;
        let allowed = |id: u32| mask.as_ref().is_none_or(|mask| is_allowed(mask, id));
        let token = self.plan.sampler.choose(logits, self.answer.len() as u64, allowed);
        let no_token = || {
            Refusal::new(
                Code::Internal,
                "the model gave no token a probability; its weights or this step are damaged",
            )
        };
        let token = token.ok_or_else(no_token)?;
        self.first_token.get_or_insert(now);
        let mut piece = std::mem::take(&mut self.untold);
        if self.plan.eos.contains(&token) {
            self.ended_by_eos = true;
            self.close(FinishReason::Stop, &mut piece);
            return Ok(piece.into());
        }
        let taken = count(self.answer.len());
        let left = self.plan.max_tokens.saturating_sub(taken.saturating_add(1));
        let admission = match &mut self.plan.form {
            Some(form) => form.admit(token, taken, left)?,
            None => Admission::Taken,
        };
        match admission {
            Admission::Taken => {
                self.tell(logits, token, &mut piece);
                self.take(token, &mut piece)?;
                self.take_forced(&mut piece)?;
            }
            Admission::End(tokens) => {
                self.ending = Some(tokens.into());
                self.take_ending(logits, &mut piece)?;
            }
        }
        Ok(piece.into())
    }

    /// The last event of a whole answer.
    pub(super) fn finished(&self, now: Instant) -> Event {
        let began = self.began.unwrap_or(now);
        let first = self.first_token.unwrap_or(now);
        let completion = count(self.answer.len()) + u32::from(self.ended_by_eos);
        Event::Finished(Finish {
            reason: self.end.unwrap_or(FinishReason::Stop),
            usage: Usage {
                prompt: count(self.plan.prompt.len()),
                cached: count(self.reused),
                completion,
                forgotten: count(self.forgotten),
            },
            timings: Timings {
                prefill: first.saturating_duration_since(began),
                decode: now.saturating_duration_since(first),
                ..Timings::default()
            },
            seed: self.plan.seed,
        })
    }

    /// Notes what the model thought of a token, where that is asked for.
    fn tell(&self, logits: &[f32], token: u32, piece: &mut Piece) {
        if let Some(top) = self.plan.logprobs {
            let (tokenizer, at) = (&self.plan.tokenizer, self.characters);
            piece.logprobs.push(logprobs::of_token(tokenizer, logits, token, top, at));
        }
    }

    /// Takes what the form leaves no choice about. Where log probabilities are wanted nothing is taken ahead: each token
    /// needs logits of its own.
    fn take_forced(&mut self, piece: &mut Piece) -> Result<(), Refusal> {
        while self.end.is_none() && self.plan.logprobs.is_none() {
            let forced = self.plan.form.as_mut().map(Form::forced).unwrap_or_default();
            if forced.is_empty() {
                break;
            }
            for token in forced {
                // The end of the sequence is chosen like any token: it is no text.
                if self.end.is_some() || self.plan.eos.contains(&token) {
                    return Ok(());
                }
                self.take_in_form(token, piece)?;
            }
        }
        Ok(())
    }

    /// Takes what ends the answer: at once, or where log probabilities are wanted the first token of it, behind these
    /// logits.
    fn take_ending(&mut self, logits: &[f32], piece: &mut Piece) -> Result<(), Refusal> {
        while self.end.is_none() {
            let Some(token) = self.ending.as_mut().and_then(VecDeque::pop_front) else {
                self.close(FinishReason::Length, piece);
                break;
            };
            self.tell(logits, token, piece);
            self.take_in_form(token, piece)?;
            let is_last = self.ending.as_ref().is_none_or(VecDeque::is_empty);
            if self.plan.logprobs.is_some() && !is_last {
                break;
            }
        }
        Ok(())
    }

    /// Takes a token that the form has not seen yet.
    fn take_in_form(&mut self, token: u32, piece: &mut Piece) -> Result<(), Refusal> {
        if let Some(form) = &mut self.plan.form {
            form.take(token)?;
        }
        self.take(token, piece)
    }

    /// Takes a token as chosen, with the text it makes certain.
    fn take(&mut self, token: u32, piece: &mut Piece) -> Result<(), Refusal> {
        self.answer.push(token);
        self.plan.sampler.note(token);
        piece.tokens.push(token);
        let mark =
            self.plan.mark.filter(|(mark, _)| *mark == token).map(|(_, text)| text.to_owned());
        let characters =
            mark.unwrap_or_else(|| self.text.push(self.plan.tokenizer.pieces(), token));
        self.characters = self.characters.saturating_add(count(characters.chars().count()));
        let (text, stopped) = self.plan.stop.push(&characters);
        piece.text.push_str(&text);
        if stopped {
            self.end = Some(FinishReason::Stop);
        } else if self.plan.form.as_ref().is_some_and(Form::is_over) {
            let cut = self.ending.is_some();
            self.close(if cut { FinishReason::Length } else { FinishReason::Stop }, piece);
        } else if count(self.answer.len()) >= self.plan.max_tokens {
            if self.plan.form.as_mut().is_some_and(|form| !form.is_complete()) {
                return Err(unfinished(self.plan.max_tokens));
            }
            self.close(FinishReason::Length, piece);
        } else {
            self.given.push(token);
            self.slide();
        }
        Ok(())
    }

    /// Where the context is full and the answer may go on: leaves out the older half of what is known of it. The prompt
    /// stays, and with it its rows of the cache; what comes behind it moves to other places and is read again.
    fn slide(&mut self) {
        let prompt = self.plan.prompt.len();
        if self.plan.slides.is_none_or(|context| self.given.len() < context) {
            return;
        }
        let behind = self.given.len().saturating_sub(prompt);
        let out = behind.div_ceil(2);
        self.given.drain(prompt..prompt + out);
        self.read = self.read.min(prompt);
        self.forgotten += out;
    }

    /// Lets out what was held back.
    fn close(&mut self, reason: FinishReason, piece: &mut Piece) {
        let rest = self.text.finish(self.plan.tokenizer.pieces());
        let (more, stopped) = self.plan.stop.push(&rest);
        piece.text.push_str(&more);
        if !stopped {
            piece.text.push_str(&self.plan.stop.finish());
        }
        self.end = Some(if stopped { FinishReason::Stop } else { reason });
    }
}

/// An answer that has a form and could not be ended in it.
fn unfinished(max_tokens: u32) -> Refusal {
    let message = format!(
        "the answer does not have the form that was asked for after {max_tokens} tokens, the most it can have; raise \
         `max_tokens`, shorten the prompt if the context is full, or allow a shorter form"
    );
    Refusal::bad_request(message).with_param("max_tokens")
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
            sampler: Sampler::new(Sampling::default(), 5, &[]),
            seed: 5,
            form: None,
            mark: None,
            logprobs: None,
            reuse: Reuse::default(),
            slides: None,
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
    fn a_full_context_slides_over_the_older_half_of_the_answer() {
        // Three tokens of prompt and room for five behind them.
        let slides = Some(8);
        let mut generation = Generation::new(Plan { slides, ..plan(12, &[]) }, &[]).unwrap();
        generation.begin(Instant::now());
        generation.read(3);
        let (mut seen, mut forgotten) = (Vec::new(), Vec::new());
        for token in A..A + 12 {
            let unread = generation.unread(64).len();
            generation.read(unread);
            let mut logits = vec![0.0; 300];
            logits[usize::try_from(token).unwrap()] = 1.0;
            generation.choose(&logits, Instant::now()).unwrap();
            assert!(generation.given().len() < 8 && generation.given().starts_with(&[1, A, A]));
            seen.push(generation.given().len());
            forgotten.push(generation.forgotten);
        }
        assert_eq!(seen, [4, 5, 6, 7, 5, 6, 7, 5, 6, 7, 5, 5]);
        assert_eq!(forgotten, [0, 0, 0, 0, 3, 3, 3, 6, 6, 6, 9, 9]);
        let Event::Finished(finish) = generation.finished(Instant::now()) else { panic!() };
        assert_eq!((finish.reason, finish.usage.completion), (FinishReason::Length, 12));
        assert_eq!((finish.usage.forgotten, finish.usage.prompt), (9, 3));
        // A resumed answer slides at the same places.
        let told: Vec<u32> = (A..A + 9).collect();
        let resumed = Generation::new(Plan { slides, ..plan(12, &[]) }, &told).unwrap();
        assert_eq!((resumed.given().len(), resumed.forgotten), (seen[8], forgotten[8]));
        assert_eq!(resumed.given()[3..], [A + 6, A + 7, A + 8]);
    }

    #[test]
    fn answers_end_for_each_reason() {
        let start = |max, stop: &[&str]| Generation::new(plan(max, stop), &[]).unwrap();
        let (text, finish) = run(start(9, &[]), &[A, A + 1, 2]);
        assert_eq!(
            (text.as_str(), finish.reason, finish.usage),
            ("ab", FinishReason::Stop, Usage { prompt: 3, completion: 3, ..Usage::default() })
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
