//! Runs prompts: one chunk of one prompt that is being read, and one token for each that is being answered, in each
//! step. Owned by one thread; what happens between steps (cancelling, starting) takes effect at the next one.

use std::collections::VecDeque;
use std::sync::Arc;

use super::Clock;
use super::embedding::{Embedding, Vectors};
use super::error::{StepError, chain};
use super::generation::{Generation, Plan};
use super::graph::{Graph, Row};
use super::interrupt::Interrupt;
use super::pins::Pins;
use super::prefix::{Move, Slots};
use super::preparer::Prepared;
use super::sampler::Sampler;
use super::stop::StopStrings;
use super::tokenizer::Tokenizer;
use super::watch::Watch;
use crate::request::{Code, Event, PromptId, Refusal, Reuse};

/// The model at work.
pub struct Runner {
    pub(super) graph: Graph,
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) eos: Arc<[u32]>,
    pub(super) clock: Clock,
    /// Notices when the model's files change.
    pub(super) watch: Watch,
    pub(super) chunk: usize,
    pub(super) slots: usize,
    /// Tokens of one slot.
    pub(super) context: usize,
    /// Started and not yet being read.
    pub(super) waiting: VecDeque<(PromptId, Job)>,
    /// The one that is being read, and the slot it is read into: behind all that are being answered.
    pub(super) reading: Option<(usize, PromptId, Generation)>,
    /// The one of whose texts one is being read, and the slot; never beside one that is being read.
    pub(super) embedding: Option<(usize, PromptId, Embedding)>,
    /// How the model gives vectors, where it does.
    pub(super) vectors: Option<Vectors>,
    /// Those being answered; the index is the slot, so that a step covers the slots 0, 1, 2, … without holes.
    pub(super) answering: Vec<(PromptId, Generation)>,
    /// What lies in the slots, of prompts in work and of those that ended.
    pub(super) kept: Slots,
    /// Beginnings that are to be pinned.
    pub(super) pins: Pins,
}

/// What is done for a prompt.
pub(super) enum Job {
    /// It is answered.
    Answer(Box<Generation>),
    /// Its texts become vectors.
    Embed(Embedding),
}

/// A prompt to run.
#[derive(Debug)]
pub struct Start<'a> {
    /// Its number.
    pub id: PromptId,
    /// What was prepared.
    pub prepared: Prepared,
    /// The seed of its choices.
    pub seed: u64,
    /// Tokens of its answer that were delivered before: they are taken as chosen, no event repeats them.
    pub resume: &'a [u32],
    /// Whose rows of the cache it may start behind.
    pub reuse: Reuse,
}

impl std::fmt::Debug for Runner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runner")
            .field("graph", &self.graph)
            .field("free_slots", &self.free_slots())
            .finish_non_exhaustive()
    }
}

impl Runner {
    /// Starts a prompt.
    ///
    /// # Errors
    /// `busy` where no slot is free, `bad_request` where `resume` breaks the form of the answer or does not fit.
    pub fn start(&mut self, start: Start<'_>) -> Result<(), Refusal> {
        let Start { id, prepared, seed, resume, reuse } = start;
        if self.free_slots() == 0 {
            return Err(Refusal::new(Code::Busy, format!("all {} slots are taken", self.slots)));
        }
        if !prepared.texts.is_empty() {
            let unable =
                || Refusal::new(Code::Unsupported, "the served model gives no hidden states");
            let vectors = self.vectors.ok_or_else(unable)?;
            let embedding = Embedding::new(prepared.texts, vectors, seed);
            self.waiting.push_back((id, Job::Embed(embedding)));
            return Ok(());
        }
        if resume.len() as u64 > u64::from(prepared.max_tokens) {
            let message = format!(
                "{} tokens were delivered, the answer can have {}",
                resume.len(),
                prepared.max_tokens
            );
            return Err(Refusal::bad_request(message));
        }
        let sampler = Sampler::new(prepared.sampling, seed, &prepared.tokens);
        let eos = match prepared.stop_ids.as_slice() {
            [] => Arc::clone(&self.eos),
            more => [&*self.eos, more].concat().into(),
        };
        let plan = Plan {
            prompt: prepared.tokens,
            max_tokens: prepared.max_tokens,
            stop: StopStrings::new(&prepared.stop),
            sampler,
            seed,
            form: prepared.form,
            mark: prepared.mark,
            logprobs: prepared.logprobs,
            reuse,
            slides: prepared.slides.then_some(self.context),
            eos,
            tokenizer: Arc::clone(&self.tokenizer),
        };
        let generation = Box::new(Generation::new(plan, resume)?);
        self.waiting.push_back((id, Job::Answer(generation)));
        Ok(())
    }

    /// Stops a prompt; no further event of it comes. Unknown numbers are ignored.
    pub fn cancel(&mut self, id: PromptId) {
        self.waiting.retain(|(other, _)| *other != id);
        self.embedding.take_if(|(_, other, _)| *other == id);
        if let Some((slot, _, generation)) = self.reading.take_if(|(_, other, _)| *other == id) {
            self.kept.hold(slot, generation.reuse().own, generation.kept());
        }
        if let Some(slot) = self.answering.iter().position(|(other, _)| *other == id) {
            self.release(slot);
        }
    }

    /// What ends the step that reads a chunk of a prompt, from another thread: it is cancelled, and need not be waited for.
    pub fn interrupter(&self) -> impl Fn(PromptId) + Send + Sync + 'static {
        let interrupt: Arc<Interrupt> = Arc::clone(self.graph.interrupt());
        move |id| interrupt.cancel(id)
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.free_slots() == self.slots && self.pins.is_done()
    }

    /// Prompts that could be started now.
    pub fn free_slots(&self) -> usize {
        let read = usize::from(self.reading.is_some()) + usize::from(self.embedding.is_some());
        let taken = self.waiting.len() + read + self.answering.len();
        self.slots.saturating_sub(taken)
    }

    /// One step: one chunk of the prompt that is being read, if any, and one token for each that is being answered.
    ///
    /// # Errors
    /// Where ONNX Runtime fails on a step of several prompts. What fails for one prompt only is its `Failed` event.
    pub fn step(&mut self, emit: &mut dyn FnMut(PromptId, Event)) -> Result<(), StepError> {
        if let Err(reason) = self.watch.look() {
            return Err(self.abandon(reason, emit));
        }
        self.read_chunk(emit);
        self.decode(emit)
    }

    /// Ends all prompts: what the model would say from now on would be worth nothing.
    fn abandon(&mut self, reason: String, emit: &mut dyn FnMut(PromptId, Event)) -> StepError {
        let waiting = self.waiting.drain(..).map(|(id, _)| id);
        let reading = self.reading.take().map(|(_, id, _)| id);
        let embedding = self.embedding.take().map(|(_, id, _)| id);
        let answering = self.answering.drain(..).map(|(id, _)| id);
        for id in waiting.chain(reading).chain(embedding).chain(answering) {
            emit(id, Event::Failed(Refusal::new(Code::ModelFailed, reason.clone())));
        }
        StepError::Changed(reason)
    }

    fn read_chunk(&mut self, emit: &mut dyn FnMut(PromptId, Event)) {
        if self.embedding.is_some() {
            return self.read_text(emit);
        }
        if self.reading.is_none() {
            let (id, mut generation) = match self.waiting.pop_front() {
                None => return self.read_pin(),
                Some((id, Job::Answer(generation))) => (id, *generation),
                Some((id, Job::Embed(embedding))) => {
                    self.begin_text(id, embedding);
                    return self.read_text(emit);
                }
            };
            generation.begin((self.clock)());
            if generation.is_over() {
                if let Some(event) = generation.untold() {
                    emit(id, event);
                }
                emit(id, generation.finished((self.clock)()));
                return;
            }
            self.pins.give_way();
            let slot = self.answering.len();
            let (rows, moves) = if self.graph.reuses() {
                self.kept.begin(slot, generation.given(), generation.reuse())
            } else {
                (0, Vec::new())
            };
            for done in moves {
                self.apply(done);
            }
            generation.start_behind(rows);
            self.reading = Some((slot, id, generation));
        }
        let Some((slot, id, mut generation)) = self.reading.take() else { return };
        let length = chunk_length(generation.cached(), generation.given().len(), self.chunk);
        let row = Row { slot, past: generation.cached(), tokens: generation.unread(length) };
        self.graph.interrupt().enter(id);
        let result = self.graph.forward(&[row]);
        let interrupted = self.graph.interrupt().leave();
        match result {
            Ok(()) => emit(id, generation.read(length)),
            // Its cancel is on the way. What the step wrote lies behind what counts.
            Err(_) if interrupted => {
                self.reading = Some((slot, id, generation));
                return;
            }
            Err(error) => {
                let message = format!("ONNX Runtime failed on this prompt: {}", chain(&error));
                emit(id, Event::Failed(Refusal::new(Code::Internal, message)));
                return;
            }
        }
        if !generation.is_read() {
            self.reading = Some((slot, id, generation));
            return;
        }
        self.kept.hold(slot, generation.reuse().own, generation.kept());
        // Others may have ended while this one was being read: close the gap.
        let place = self.answering.len();
        self.exchange(slot, place, generation.cached());
        if self.advance(0, id, &mut generation, emit) {
            self.answering.push((id, generation));
        }
    }

    fn decode(&mut self, emit: &mut dyn FnMut(PromptId, Event)) -> Result<(), StepError> {
        if self.answering.is_empty() {
            return Ok(());
        }
        self.catch_up()?;
        // One alone reads all it has in the step; beside others it is a token for each.
        let most = if self.answering.len() == 1 { self.chunk } else { 1 };
        let rows: Vec<Row<'_>> = (self.answering.iter().enumerate())
            .map(|(slot, (_, generation))| {
                let (past, tokens) = (generation.cached(), generation.unread(most));
                Row { slot, past, tokens }
            })
            .collect();
        let lengths: Vec<usize> = rows.iter().map(|row| row.tokens.len()).collect();
        self.graph.forward(&rows).map_err(StepError::Runtime)?;
        let mut over = Vec::new();
        let mut answering = std::mem::take(&mut self.answering);
        for ((slot, (id, generation)), read) in answering.iter_mut().enumerate().zip(lengths) {
            // The event of reading is the prompt's business only.
            let _ = generation.read(read);
            // Behind a token that the form forced, the next one is known already.
            if generation.is_read() && !self.advance(slot, *id, generation, emit) {
                over.push(slot);
            }
        }
        self.answering = answering;
        // From the back, so that the slots still to be released keep their places.
        for slot in over.into_iter().rev() {
            self.release(slot);
        }
        Ok(())
    }

    /// Reads tokens that the form of an answer forced, all but the last, in one step of their own, where that takes fewer
    /// steps from the others than it saves this one; else they ride along, one in each step.
    fn catch_up(&mut self) -> Result<(), StepError> {
        let others = self.answering.len().saturating_sub(1);
        for (slot, (_, generation)) in self.answering.iter_mut().enumerate() {
            let unread = generation.unread(self.chunk);
            let ahead = unread.len().saturating_sub(1);
            if others == 0 || ahead <= others {
                continue;
            }
            let tokens = unread.get(..ahead).unwrap_or_default();
            let row = Row { slot, past: generation.cached(), tokens };
            self.graph.forward(&[row]).map_err(StepError::Runtime)?;
            let _ = generation.read(ahead);
        }
        Ok(())
    }

    /// Chooses a token from row `row` of the last step. Whether the prompt goes on.
    fn advance(
        &self,
        row: usize,
        id: PromptId,
        generation: &mut Generation,
        emit: &mut dyn FnMut(PromptId, Event),
    ) -> bool {
        let now = (self.clock)();
        match generation.choose(self.graph.logits(row), now) {
            Ok(Event::Delta { text, tokens, .. }) if text.is_empty() && tokens.is_empty() => {}
            Ok(event) => emit(id, event),
            Err(refusal) => {
                emit(id, Event::Failed(refusal));
                return false;
            }
        }
        if generation.is_over() {
            emit(id, generation.finished(now));
        }
        !generation.is_over()
    }

    /// Frees a slot: the last one takes its place, and what is kept of the one that ended goes where that was.
    fn release(&mut self, slot: usize) {
        let last = self.answering.len() - 1;
        let tokens = self.answering.get(last).map_or(0, |(_, generation)| generation.cached());
        self.exchange(slot, last, tokens);
        self.answering.swap_remove(slot);
    }

    /// Two slots change places, of which `rows` rows and what is kept are in use.
    fn exchange(&mut self, one: usize, other: usize, rows: usize) {
        if one != other {
            let done = self.kept.exchange(one, other, rows);
            self.apply(done);
        }
    }

    pub(super) fn apply(&mut self, done: Move) {
        match done {
            Move::Exchange { one, other, rows } => self.graph.cache.exchange(one, other, rows),
            Move::Copy { from, to, rows } => self.graph.cache.copy(from, to, rows),
            Move::Restore { saved, to, rows } => self.graph.cache.restore(saved, to, rows),
        }
    }
}

/// How many tokens the next step reads of a prompt of `length` of which `past` are in the cache: up to the next multiple
/// of the chunk, so that the steps of a prompt do not depend on where it starts (`prefix.rs`).
pub(super) fn chunk_length(past: usize, length: usize, chunk: usize) -> usize {
    (chunk - past % chunk).min(length.saturating_sub(past))
}
