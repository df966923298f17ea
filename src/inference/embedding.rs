//! Vectors that stand for texts: the texts of a prompt are read one after the other, each from its first token on, because
//! the hidden states of rows that are in the cache already are gone. Between two texts others get their turn to be read.

use std::time::Instant;

use super::error::chain;
use super::graph::Row;
use super::pooling::{Pool, Pooling};
use super::runner::{Job, Runner, chunk_length};
use crate::request::{Code, Event, Finish, FinishReason, PromptId, Refusal, Reuse, Timings, Usage};

/// How a model gives vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Vectors {
    /// Numbers of each.
    pub(super) width: usize,
    /// Which tokens they are made of.
    pub(super) pooling: Pooling,
}

/// A prompt whose texts become vectors.
#[derive(Debug)]
pub(super) struct Embedding {
    texts: Vec<Vec<u32>>,
    /// The text that is read, or the next.
    at: usize,
    /// Its tokens in the cache.
    read: usize,
    /// Tokens of the texts before it.
    before: usize,
    vectors: Vectors,
    pool: Pool,
    seed: u64,
    began: Option<Instant>,
}

impl Embedding {
    /// Nothing is read yet.
    pub(super) fn new(texts: Vec<Vec<u32>>, vectors: Vectors, seed: u64) -> Self {
        let pool = Pool::new(vectors.pooling, vectors.width);
        Embedding { texts, at: 0, read: 0, before: 0, vectors, pool, seed, began: None }
    }

    fn text(&self) -> &[u32] {
        self.texts.get(self.at).map(Vec::as_slice).unwrap_or_default()
    }

    fn total(&self) -> usize {
        self.texts.iter().map(Vec::len).sum()
    }

    fn progress(&self) -> Event {
        Event::Prefill { done: count(self.before + self.read), total: count(self.total()) }
    }

    /// The text is read: gives its vector and turns to the next one.
    fn next(&mut self) -> Result<Event, Refusal> {
        let values = self.pool.vector().ok_or_else(|| {
            let message = format!(
                "the hidden states of the text {} make no vector; the model's weights or this step are damaged",
                self.at
            );
            Refusal::new(Code::Internal, message)
        })?;
        let index = count(self.at);
        self.before += self.text().len();
        self.at += 1;
        self.read = 0;
        self.pool = Pool::new(self.vectors.pooling, self.vectors.width);
        Ok(Event::Vector { index, values })
    }

    fn is_over(&self) -> bool {
        self.at >= self.texts.len()
    }

    fn finished(&self, now: Instant) -> Event {
        let prefill = now.saturating_duration_since(self.began.unwrap_or(now));
        Event::Finished(Finish {
            reason: FinishReason::Stop,
            usage: Usage { prompt: count(self.total()), ..Usage::default() },
            timings: Timings { prefill, ..Timings::default() },
            seed: self.seed,
        })
    }
}

impl Runner {
    /// Begins to read a text, into the first slot behind those that are being answered. Nothing that lies there is used.
    pub(super) fn begin_text(&mut self, id: PromptId, mut embedding: Embedding) {
        embedding.began.get_or_insert_with(|| (self.clock)());
        self.pins.give_way();
        let slot = self.answering.len();
        let (_, moves) = self.kept.begin(slot, &[], Reuse::default());
        for done in moves {
            self.apply(done);
        }
        self.kept.clear(slot);
        self.embedding = Some((slot, id, embedding));
    }

    /// Reads a chunk of the text that is being read.
    pub(super) fn read_text(&mut self, emit: &mut dyn FnMut(PromptId, Event)) {
        let Some((slot, id, mut embedding)) = self.embedding.take() else { return };
        let (past, text) = (embedding.read, embedding.text());
        let length = chunk_length(past, text.len(), self.chunk);
        let row = Row { slot, past, tokens: text.get(past..past + length).unwrap_or_default() };
        self.graph.interrupt().enter(id);
        let result = self.graph.hidden_states(&row).map(|hidden| embedding.pool.push(hidden));
        let interrupted = self.graph.interrupt().leave();
        match result {
            Ok(()) => embedding.read += length,
            // Its cancel is on the way.
            Err(_) if interrupted => {
                self.embedding = Some((slot, id, embedding));
                return;
            }
            Err(error) => {
                let message = format!("ONNX Runtime failed on this prompt: {}", chain(&error));
                emit(id, Event::Failed(Refusal::new(Code::Internal, message)));
                return;
            }
        }
        emit(id, embedding.progress());
        if embedding.read < embedding.text().len() {
            self.embedding = Some((slot, id, embedding));
            return;
        }
        match embedding.next() {
            Ok(event) => emit(id, event),
            Err(refusal) => return emit(id, Event::Failed(refusal)),
        }
        if embedding.is_over() {
            emit(id, embedding.finished((self.clock)()));
        } else {
            self.waiting.push_back((id, Job::Embed(embedding)));
        }
    }
}

/// Tokens and texts of one prompt are bounded, far below this.
fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
