//! Whose prompt lies in which slot of the cache, so that a prompt which begins like a kept one starts behind that
//! beginning. Decides only; the rows are moved by the runner. Pure.
//!
//! Only whole chunks of prompts are used again. Prompts are read in chunks that begin at multiples of their length, so a
//! prompt that starts behind kept chunks goes on with the very steps that it would have taken without them: its logits are
//! the same to the last bit. Rows of a shorter chunk, or of a decode step, went through kernels for another shape, which
//! round otherwise.

use crate::request::{CacheKey, Reuse};

/// The slots and what is pinned.
#[derive(Debug)]
pub(super) struct Slots {
    kept: Vec<Option<Kept>>,
    pins: Vec<Pin>,
    /// Tokens of a chunk: rows are used again in multiples of it.
    chunk: usize,
    uses: u64,
}

/// The prompt whose rows are at the beginning of a slot, be it in work or ended, or the beginning of a profile's prompts that is
/// being read; it belongs to whoever asked, or to all who ask for the profile.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Kept {
    owner: CacheKey,
    tokens: Vec<u32>,
    used: u64,
}

/// The beginning of all prompts of a profile.
#[derive(Debug)]
struct Pin {
    key: CacheKey,
    tokens: Vec<u32>,
    /// The cache's number for its rows.
    saved: usize,
}

/// What has to be done with the rows of the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Move {
    Exchange { one: usize, other: usize, rows: usize },
    Copy { from: usize, to: usize, rows: usize },
    Restore { saved: usize, to: usize, rows: usize },
}

#[derive(Clone, Copy, Debug)]
enum Source {
    Slot(usize),
    Pin(usize),
}

impl Slots {
    /// Empty slots for prompts that are read in chunks of `chunk` tokens.
    pub(super) fn new(slots: usize, chunk: usize) -> Self {
        Slots { kept: vec![None; slots], pins: Vec::new(), chunk: chunk.max(1), uses: 0 }
    }

    /// Makes slot `target` ready for a prompt: the slots from there on are free. Returns how many of its tokens are in the
    /// cache then, and what to do for it, in order.
    pub(super) fn begin(
        &mut self,
        target: usize,
        tokens: &[u32],
        reuse: Reuse,
    ) -> (usize, Vec<Move>) {
        self.uses += 1;
        let (mut source, rows) = self.find(tokens, reuse);
        // A prompt that goes on with a kept one takes its slot; one that only begins like it leaves it alone.
        let goes_on = |slot: usize| slot >= target && rows * 2 >= self.length(slot);
        let place = match source {
            Some(Source::Slot(slot)) if goes_on(slot) => slot,
            _ => self.oldest(target),
        };
        let mut moves = Vec::new();
        if place != target {
            moves.push(self.exchange(place, target, 0));
            source = match source {
                Some(Source::Slot(slot)) if slot == place => Some(Source::Slot(target)),
                Some(Source::Slot(slot)) if slot == target => Some(Source::Slot(place)),
                other => other,
            };
        }
        match source {
            Some(Source::Slot(from)) if from != target => {
                moves.push(Move::Copy { from, to: target, rows });
            }
            Some(Source::Pin(index)) => {
                let saved = self.pins.get(index).map(|pin| pin.saved);
                moves.extend(saved.map(|saved| Move::Restore { saved, to: target, rows }));
            }
            Some(Source::Slot(_)) | None => {}
        }
        self.hold(target, reuse.own, tokens.get(..rows).unwrap_or_default());
        (rows, moves)
    }

    /// A slot holds these tokens of a prompt from now on.
    pub(super) fn hold(&mut self, slot: usize, owner: CacheKey, tokens: &[u32]) {
        let used = self.uses;
        if let Some(kept) = self.kept.get_mut(slot) {
            *kept = Some(Kept { owner, tokens: tokens.to_vec(), used });
        }
    }

    /// Nothing of what is in a slot counts any more.
    pub(super) fn clear(&mut self, slot: usize) {
        if let Some(kept) = self.kept.get_mut(slot) {
            *kept = None;
        }
    }

    /// Two slots change places; `rows` are in use beyond what is kept.
    pub(super) fn exchange(&mut self, one: usize, other: usize, rows: usize) -> Move {
        let rows = rows.max(self.length(one)).max(self.length(other));
        self.kept.swap(one, other);
        Move::Exchange { one, other, rows }
    }

    /// The tokens that are pinned and their owners, in order.
    pub(super) fn pinned(&self) -> impl Iterator<Item = (CacheKey, &[u32])> {
        self.pins.iter().map(|pin| (pin.key, pin.tokens.as_slice()))
    }

    /// The cache keeps these tokens for all prompts of a profile.
    pub(super) fn pin(&mut self, key: CacheKey, tokens: Vec<u32>, saved: usize) {
        self.pins.push(Pin { key, tokens, saved });
    }

    /// Nothing is pinned any more.
    pub(super) fn unpin(&mut self) {
        self.pins.clear();
    }

    /// Where the longest usable beginning of a prompt is, and how many tokens that are.
    fn find(&self, tokens: &[u32], reuse: Reuse) -> (Option<Source>, usize) {
        let usable = |kept: &[u32]| {
            let common = kept.iter().zip(tokens).take_while(|(a, b)| a == b).count();
            // The last token is always read: what follows is chosen from the logits behind it.
            let most = common.min(tokens.len().saturating_sub(1));
            most - most % self.chunk
        };
        let slots = self.kept.iter().enumerate().filter_map(|(slot, kept)| {
            let mine = |kept: &&Kept| kept.owner == reuse.own || Some(kept.owner) == reuse.profile;
            let kept = kept.as_ref().filter(mine)?;
            Some((Source::Slot(slot), usable(&kept.tokens)))
        });
        let pins = self.pins.iter().enumerate().filter(|(_, pin)| reuse.profile == Some(pin.key));
        let pins = pins.map(|(index, pin)| (Source::Pin(index), usable(&pin.tokens)));
        match slots.chain(pins).max_by_key(|(_, rows)| *rows) {
            Some((source, rows)) if rows > 0 => (Some(source), rows),
            _ => (None, 0),
        }
    }

    /// The free slot that was not used for the longest time; an empty one first.
    fn oldest(&self, first: usize) -> usize {
        let free = self.kept.iter().enumerate().skip(first);
        let oldest = free.min_by_key(|(_, kept)| kept.as_ref().map(|kept| kept.used));
        oldest.map_or(first, |(slot, _)| slot)
    }

    fn length(&self, slot: usize) -> usize {
        self.kept.get(slot).and_then(Option::as_ref).map_or(0, |kept| kept.tokens.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANN: CacheKey = CacheKey(1);
    const BOB: CacheKey = CacheKey(2);
    const HOUSE: CacheKey = CacheKey(3);

    #[test]
    fn a_profiles_beginning_is_used_as_far_as_it_is_read() {
        let mut slots = Slots::new(1, 16);
        slots.hold(0, HOUSE, &tokens(32));
        let asks = |own, profile| Reuse { own, profile };
        assert_eq!(slots.find(&tokens(60), asks(ANN, Some(HOUSE))).1, 32);
        assert_eq!(slots.find(&tokens(60), asks(BOB, None)).1, 0);
        assert_eq!(slots.begin(0, &tokens(60), asks(ANN, Some(HOUSE))), (32, vec![]));
        // From then on they are Ann's.
        slots.hold(0, ANN, &tokens(60));
        assert_eq!(slots.find(&tokens(60), asks(BOB, Some(HOUSE))).1, 0);
    }

    fn of(own: CacheKey) -> Reuse {
        Reuse { own, profile: None }
    }

    fn tokens(count: u32) -> Vec<u32> {
        (100..100 + count).collect()
    }

    #[test]
    fn a_prompt_starts_behind_what_it_shares_with_a_kept_one() {
        let mut slots = Slots::new(2, 16);
        assert_eq!(slots.begin(0, &tokens(40), of(ANN)), (0, vec![]));
        slots.hold(0, ANN, &tokens(40));
        // The same again: whole chunks are used, and one token is read at least.
        assert_eq!(slots.begin(0, &tokens(40), of(ANN)), (32, vec![]));
        slots.hold(0, ANN, &tokens(40));
        assert_eq!(slots.begin(0, &tokens(33), of(ANN)).0, 32);
        slots.hold(0, ANN, &tokens(40));
        assert_eq!(slots.begin(0, &tokens(32), of(ANN)).0, 16);
        slots.hold(0, ANN, &tokens(40));
        // While that one is being answered, another begins like it.
        slots.clear(1);
        let copy = Move::Copy { from: 0, to: 1, rows: 32 };
        assert_eq!(slots.begin(1, &tokens(90), of(ANN)), (32, vec![copy]));
    }

    #[test]
    fn nobody_starts_behind_what_another_left() {
        let mut slots = Slots::new(2, 16);
        slots.hold(0, ANN, &tokens(64));
        let (rows, moves) = slots.begin(0, &tokens(64), of(BOB));
        assert_eq!(rows, 0);
        // And what Ann left is still there.
        assert_eq!(moves, [Move::Exchange { one: 1, other: 0, rows: 64 }]);
        assert_eq!(slots.begin(1, &tokens(64), of(ANN)).0, 48);
    }

    #[test]
    fn who_only_begins_alike_takes_the_oldest_slot() {
        let mut slots = Slots::new(3, 16);
        for (slot, owner) in [(0, ANN), (1, BOB), (2, BOB)] {
            slots.uses += 1;
            slots.hold(slot, owner, &tokens(100));
        }
        // Ann's hundred tokens stay: the new prompt shares 16 with them.
        let mut other = tokens(20);
        other.extend([1; 80]);
        let (rows, moves) = slots.begin(0, &other, of(ANN));
        assert_eq!(rows, 16);
        assert!(moves.is_empty(), "{moves:?}: the oldest is Ann's own, and first");
        slots.uses += 1;
        slots.hold(0, ANN, &tokens(100));
        let (rows, moves) = slots.begin(0, &other, of(ANN));
        let expected = [
            Move::Exchange { one: 1, other: 0, rows: 100 },
            Move::Copy { from: 1, to: 0, rows: 16 },
        ];
        assert_eq!((rows, moves.as_slice()), (16, expected.as_slice()));
    }

    #[test]
    fn pinned_beginnings_are_for_prompts_of_their_profile() {
        let mut slots = Slots::new(1, 16);
        slots.pin(HOUSE, tokens(50), 7);
        assert_eq!(slots.begin(0, &tokens(60), of(ANN)).0, 0);
        let with = Reuse { own: ANN, profile: Some(HOUSE) };
        let restore = Move::Restore { saved: 7, to: 0, rows: 48 };
        assert_eq!(slots.begin(0, &tokens(60), with), (48, vec![restore]));
        slots.clear(0);
        slots.unpin();
        assert_eq!(slots.begin(0, &tokens(60), with).0, 0);
    }

    #[test]
    fn slots_change_places_with_what_is_in_them() {
        let mut slots = Slots::new(2, 16);
        slots.hold(1, ANN, &tokens(40));
        assert_eq!(slots.exchange(0, 1, 44), Move::Exchange { one: 0, other: 1, rows: 44 });
        assert_eq!(slots.begin(0, &tokens(60), of(ANN)), (32, vec![]));
    }
}
