//! Requests as an operator sees them: each is counted once and logged once, when it ends, whatever door it came by. Decides
//! nothing. What was asked and answered is logged only where the operator says so.

mod histogram;
mod tally;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

pub use histogram::Histogram;
use tally::Tally;

use crate::request::{
    Code, Door, Event, Finish, Identity, Input, Origin, PromptId, Refusal, Submission,
};

/// Profiles that are counted by name. An operator writes a dozen; what a configuration that is read again and again brings
/// beyond this is counted together, so that the page of metrics stays small.
const PROFILES: usize = 64;

/// The name under which the profiles beyond [`PROFILES`] are counted.
const OTHERS: &str = "(others)";

/// Bytes of a prompt or an answer in the log, where they are logged at all: a line of the log is no archive.
const CONTENT_BYTES: usize = 8 << 10;

/// Counts and logs; clones mean the same one.
#[derive(Clone, Debug, Default)]
pub struct Traffic(Arc<Mutex<Books>>);

#[derive(Debug, Default)]
struct Books {
    log_content: bool,
    counts: Counts,
    /// Refusals that are summed up in the log.
    tally: Tally,
}

/// What was counted since the service began.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Requests that ended, by door, profile (empty: none) and outcome (`ok`, or the code of the refusal).
    pub requests: BTreeMap<(Door, String, &'static str), u64>,
    /// Seconds from acceptance to the first token of the answer.
    pub first_token: Histogram,
    /// Seconds for one token of an answer, the first left out; one observation an answer.
    pub token: Histogram,
    /// Seconds that prompts waited for their turn.
    pub wait: Histogram,
    /// Seconds between the wait that was foretold and the wait there was, of prompts that had to wait.
    pub eta_error: Histogram,
    /// Seconds of waiting that were foretold, and that there were: their ratio tells on which side the forecast errs.
    pub foretold: f64,
    /// See [`Counts::foretold`].
    pub waited: f64,
    /// Answers of which a part of the prompt was in the KV cache already.
    pub cache_hits: u64,
    /// What is at present.
    pub gauges: Gauges,
}

/// What is at present, as the scheduler knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Gauges {
    /// Tokens of running prompts and their answers in the KV cache.
    pub cache_tokens: u64,
    /// Tokens a second that prompts are read with, as a running mean; 0 where nothing was measured.
    pub read_per_second: f64,
    /// Tokens a second that one answer is written with, as a running mean.
    pub written_per_second: f64,
}

impl Traffic {
    fn books(&self) -> MutexGuard<'_, Books> {
        // Numbers are changed one at a time: a panic elsewhere leaves none half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether prompts and answers are logged.
    pub fn log_content(&self, wanted: bool) {
        self.books().log_content = wanted;
    }

    /// Takes over what is at present.
    pub fn present(&self, gauges: Gauges) {
        self.books().counts.gauges = gauges;
    }

    /// Sums up in the log what was refused lately and not written; to be called again and again.
    pub fn sum_up(&self, now: Instant) {
        let sum = self.books().tally.sum(now);
        if let Some((requests, codes)) = sum {
            tracing::info!(requests, codes, "more requests were refused in the last minute");
        }
    }

    /// What was counted so far.
    pub fn counts(&self) -> Counts {
        self.books().counts.clone()
    }

    /// A prompt is handed in.
    pub fn begin(&self, submission: &Submission) -> Passage {
        let content = self.books().log_content.then(|| Content {
            asked: short(&asked(&submission.request.input)),
            answered: String::new(),
        });
        Passage {
            traffic: self.clone(),
            origin: submission.origin.clone(),
            client: submission.identity.clone(),
            prompt: None,
            foretold: None,
            content,
        }
    }

    /// A request was refused before it was a prompt.
    pub fn turned_away(&self, origin: &Origin, client: Option<&Identity>, refusal: &Refusal) {
        self.count(origin, refusal.code.as_str());
        self.log_refusal(&About { origin, client, prompt: None, content: None }, refusal);
    }

    /// What was not accepted can come a thousand times a second: the first of each code is written, the others are summed up.
    fn log_refusal(&self, about: &About<'_>, refusal: &Refusal) {
        let first = self.books().tally.note(refusal.code.as_str());
        log_failure(about, refusal, first);
    }

    fn count(&self, origin: &Origin, outcome: &'static str) {
        let requests = &mut self.books().counts.requests;
        let profile = origin.profile.as_deref().unwrap_or_default();
        let known = profile.is_empty() || requests.keys().any(|(_, name, _)| name == profile);
        let names = || {
            let mut names: Vec<&str> = requests.keys().map(|(_, name, _)| name.as_str()).collect();
            names.sort_unstable();
            names.dedup();
            names.len()
        };
        let profile = if known || names() < PROFILES { profile } else { OTHERS };
        *requests.entry((origin.door, profile.to_owned(), outcome)).or_default() += 1;
    }
}

/// One prompt, from the door to its end.
#[derive(Debug)]
pub struct Passage {
    traffic: Traffic,
    origin: Origin,
    client: Identity,
    prompt: Option<PromptId>,
    /// The wait that its asker was told when it was accepted, in seconds.
    foretold: Option<f64>,
    content: Option<Content>,
}

#[derive(Debug)]
struct Content {
    asked: String,
    answered: String,
}

impl Passage {
    /// It was accepted.
    pub fn accepted(&mut self, id: PromptId) {
        self.prompt = Some(id);
    }

    /// It was refused.
    pub fn refused(self, refusal: &Refusal) {
        self.end(&Event::Failed(refusal.clone()));
    }

    /// Something happened to it that is not its end.
    pub fn event(&mut self, event: &Event) {
        match event {
            Event::Queued { eta, .. } => {
                self.foretold.get_or_insert(eta.as_secs_f64());
            }
            Event::Delta { text, .. } => {
                if let Some(content) = &mut self.content {
                    // A little more than is shown, so that it can be seen that there was more.
                    let room = (CONTENT_BYTES + 64).saturating_sub(content.answered.len());
                    content.answered.extend(text.chars().take(room));
                }
            }
            Event::Started { .. }
            | Event::Prefill { .. }
            | Event::Vector { .. }
            | Event::Finished(_)
            | Event::Failed(_) => {}
        }
    }

    /// It ended with this event.
    pub fn end(mut self, event: &Event) {
        let content = self
            .content
            .take()
            .map(|content| Content { answered: short(&content.answered), ..content });
        match event {
            Event::Finished(finish) => {
                self.traffic.count(&self.origin, "ok");
                self.measure(finish);
                self.log_answer(finish, content.as_ref());
            }
            Event::Failed(refusal) => {
                self.traffic.count(&self.origin, refusal.code.as_str());
                let (origin, client) = (&self.origin, Some(&self.client));
                let about =
                    About { origin, client, prompt: self.prompt, content: content.as_ref() };
                if self.prompt.is_some() {
                    log_failure(&about, refusal, true);
                } else {
                    self.traffic.log_refusal(&about, refusal);
                }
            }
            Event::Queued { .. }
            | Event::Started { .. }
            | Event::Prefill { .. }
            | Event::Vector { .. }
            | Event::Delta { .. } => {}
        }
    }

    fn measure(&self, finish: &Finish) {
        let counts = &mut self.traffic.books().counts;
        let (timings, usage) = (&finish.timings, &finish.usage);
        let wait = timings.queue.as_secs_f64();
        counts.wait.observe(wait);
        // Where vectors were asked for, there is no token.
        if usage.completion > 0 {
            counts.first_token.observe((timings.queue + timings.prefill).as_secs_f64());
        }
        let steps = usage.completion.saturating_sub(1);
        if steps > 0 {
            counts.token.observe(timings.decode.as_secs_f64() / f64::from(steps));
        }
        counts.cache_hits += u64::from(usage.cached > 0);
        if let Some(foretold) = self.foretold {
            counts.eta_error.observe((wait - foretold).abs());
            counts.foretold += foretold;
            counts.waited += wait;
        }
    }

    fn log_answer(&self, finish: &Finish, content: Option<&Content>) {
        let Finish { usage, timings, reason, .. } = finish;
        tracing::info!(
            request = self.origin.id,
            prompt = self.prompt.map(tracing::field::display),
            door = self.origin.door.as_str(),
            client = self.client.0,
            profile = self.origin.profile,
            topic = self.origin.topic,
            finish = reason.as_str(),
            prompt_tokens = usage.prompt,
            cached_tokens = usage.cached,
            completion_tokens = usage.completion,
            queue_ms = ms(timings.queue),
            prefill_ms = ms(timings.prefill),
            decode_ms = ms(timings.decode),
            asked = content.map(|content| content.asked.as_str()),
            answer = content.map(|content| content.answered.as_str()),
            "answered"
        );
    }
}

/// Whose request it was.
struct About<'a> {
    origin: &'a Origin,
    client: Option<&'a Identity>,
    /// Its number, where it was accepted.
    prompt: Option<PromptId>,
    content: Option<&'a Content>,
}

/// Refusals that are promptd's own trouble are warnings; the others are their askers' business. What is not `wanted` is
/// written for those who look for faults.
fn log_failure(about: &About<'_>, refusal: &Refusal, wanted: bool) {
    macro_rules! line {
        ($level:expr) => {
            tracing::event!(
                $level,
                request = about.origin.id,
                prompt = about.prompt.map(tracing::field::display),
                door = about.origin.door.as_str(),
                client = about.client.map(|client| client.0.as_str()),
                profile = about.origin.profile,
                topic = about.origin.topic,
                code = refusal.code.as_str(),
                reason = short(&refusal.message),
                asked = about.content.map(|content| content.asked.as_str()),
                answer = about.content.map(|content| content.answered.as_str()),
                "not answered"
            )
        };
    }
    match refusal.code {
        _ if !wanted => line!(tracing::Level::DEBUG),
        Code::Internal | Code::ModelFailed => line!(tracing::Level::WARN),
        _ => line!(tracing::Level::INFO),
    }
}

/// A prompt in words.
fn asked(input: &Input) -> String {
    match input {
        Input::Completion(text) => text.clone(),
        Input::Ask { system, text } => {
            system.iter().map(String::as_str).chain([text.as_str()]).collect::<Vec<_>>().join("\n")
        }
        Input::Chat(messages) => {
            let line = |message: &crate::request::Message| {
                format!("{}: {}", message.role.as_str(), message.content)
            };
            messages.iter().map(line).collect::<Vec<_>>().join("\n")
        }
        Input::Embed(embed) => embed.in_words().collect::<Vec<_>>().join("\n"),
    }
}

/// The text, or its beginning and how much more there is.
fn short(text: &str) -> String {
    if text.len() <= CONTENT_BYTES {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(CONTENT_BYTES);
    let (start, rest) = text.split_at(end);
    format!("{start}… ({} bytes more)", rest.len())
}

fn ms(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
