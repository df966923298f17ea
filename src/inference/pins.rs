//! Reads the beginnings of profiles' prompts into the cache while there is nothing else to read, and pins them there.

use std::collections::VecDeque;

use super::graph::Row;
use super::runner::{Runner, chunk_length};
use crate::request::CacheKey;

/// The beginnings that are to be pinned, and how far the first one is read.
#[derive(Debug, Default)]
pub(super) struct Pins {
    todo: VecDeque<(CacheKey, Vec<u32>)>,
    /// Tokens of the first one in its slot, and the slot.
    read: Option<(usize, usize)>,
}

impl Pins {
    /// Whether all are read.
    pub(super) fn is_done(&self) -> bool {
        self.todo.is_empty()
    }

    /// Somebody needs the slot; the beginning is read again later.
    pub(super) fn give_way(&mut self) {
        self.read = None;
    }
}

impl Runner {
    /// Pins these beginnings, and nothing else, as soon as there is time. All together they may have as many tokens as one
    /// slot: pinned rows are a second copy, and no board shall need memory for more than a slot because of them.
    pub fn pin(&mut self, mut beginnings: Vec<(CacheKey, Vec<u32>)>) {
        // Only whole chunks are used again.
        for (_, tokens) in &mut beginnings {
            tokens.truncate(tokens.len() - tokens.len() % self.chunk);
        }
        beginnings.retain(|(_, tokens)| !tokens.is_empty());
        let same = beginnings.len() == self.kept.pinned().count()
            && self.kept.pinned().zip(&beginnings).all(|(is, wanted)| is == (wanted.0, &wanted.1));
        if (same && self.pins.is_done()) || !self.graph.reuses() {
            return;
        }
        self.kept.unpin();
        self.graph.cache.forget();
        self.pins = Pins::default();
        let mut room = self.context;
        for (key, tokens) in beginnings {
            if let Some(left) = room.checked_sub(tokens.len()) {
                room = left;
                self.pins.todo.push_back((key, tokens));
            } else {
                tracing::warn!(
                    tokens = tokens.len(),
                    room,
                    "a profile's system message is not kept in the KV cache: all of them together may have as many tokens \
                     as the context"
                );
            }
        }
    }

    /// Reads a chunk of the next beginning into the first free slot.
    pub(super) fn read_pin(&mut self) {
        let Some((key, tokens)) = self.pins.todo.front() else { return };
        let slot = self.answering.len();
        if slot >= self.slots {
            return;
        }
        // Where others began or ended meanwhile, the free slot is another, and so is what lies in it.
        let past = self.pins.read.filter(|(_, at)| *at == slot).map_or(0, |(read, _)| read);
        let length = chunk_length(past, tokens.len(), self.chunk);
        let row = Row { slot, past, tokens: tokens.get(past..past + length).unwrap_or_default() };
        self.kept.clear(slot);
        if let Err(error) = self.graph.forward(&[row]) {
            tracing::warn!(%error, "a profile's system message cannot be kept in the KV cache");
            self.pins.todo.pop_front();
            self.pins.read = None;
            return;
        }
        // A prompt of this profile that comes before all is read starts behind what is.
        self.kept.hold(slot, *key, tokens.get(..past + length).unwrap_or_default());
        self.pins.read = Some((past + length, slot));
        if past + length == tokens.len()
            && let Some((key, tokens)) = self.pins.todo.pop_front()
        {
            let saved = self.graph.cache.save(slot, tokens.len());
            self.kept.pin(key, tokens, saved);
            self.pins.read = None;
        }
    }
}
