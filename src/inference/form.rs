//! The form of one answer while it is written: which tokens may come, which must come, and how the answer is brought to an
//! end in its form before its tokens run out.
//!
//! Without the last, a number or a string that the model never ends would run until `max_tokens` cuts the answer off in
//! the middle, and a client that asked for a schema would get what is no JSON. So it is looked from time to time what
//! tokens would end the answer from where it is, and when those that are left are just enough, these are taken.

use std::sync::Arc;

use llguidance::Matcher;
use llguidance::api::StopReason;
use toktrie::SimpleVob;

use super::tokenizer::Pieces;
use crate::request::Refusal;

/// The longest ending that is looked for. Each of its tokens costs a mask (tens of microseconds), and an answer whose
/// shortest ending is longer than this is no honest one.
const MAX_ENDING: u32 = 1024;

/// An answer's form and how far the answer has come in it.
pub(super) struct Form {
    matcher: Matcher,
    endings: Arc<Endings>,
    inside: Inside,
    /// How many tokens the answer has when it is looked again how it could end.
    next_look: u32,
}

/// What becomes of a token that the model chose.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// It was taken.
    Taken,
    /// It was not, because behind it the answer could not be ended any more with the tokens that are left: these end it.
    End(Vec<u32>),
}

impl std::fmt::Debug for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Form").field("inside", &self.inside).finish_non_exhaustive()
    }
}

impl Form {
    /// The form at the beginning of an answer.
    pub(super) fn new(matcher: Matcher, endings: Arc<Endings>) -> Self {
        Form { matcher, endings, inside: Inside::default(), next_look: 0 }
    }

    /// The tokens that may come next.
    pub(super) fn mask(&mut self) -> Result<SimpleVob, Refusal> {
        self.matcher.compute_mask().map_err(|error| failed(&error))
    }

    /// The tokens that must come next, whatever the model says, in the tokenizer's own way of writing them; none where it
    /// has a choice.
    pub(super) fn forced(&mut self) -> Vec<u32> {
        self.matcher.compute_ff_tokens()
    }

    /// Takes a token.
    pub(super) fn take(&mut self, token: u32) -> Result<(), Refusal> {
        self.matcher.consume_token(token).map_err(|error| failed(&error))?;
        self.inside.pass(self.endings.bytes(token));
        Ok(())
    }

    /// Takes a token the model chose, if the answer can still be ended behind it. The answer has `taken` tokens, this one
    /// not counted, and `left` may come behind it.
    pub(super) fn admit(
        &mut self,
        token: u32,
        taken: u32,
        left: u32,
    ) -> Result<Admission, Refusal> {
        let before = self.inside;
        self.take(token)?;
        if taken < self.next_look {
            return Ok(Admission::Taken);
        }
        let most = left.min(MAX_ENDING);
        if let Some(ending) = self.ending(most) {
            // One token rarely makes the ending much longer, so the room is used up by a quarter before the next look,
            // and at every token when there is none.
            let room = left.saturating_sub(count(ending.len()));
            self.next_look = taken.saturating_add(1 + room / 4);
            return Ok(Admission::Taken);
        }
        // None that could be found: looking again at each token would cost more than the model does.
        self.next_look = taken.saturating_add(1 + left / 4);
        if left > most {
            return Ok(Admission::Taken);
        }
        // Back to where the ending was known to fit, or is looked for the first time.
        self.matcher.rollback(1).map_err(|error| failed(&error))?;
        let after = std::mem::replace(&mut self.inside, before);
        if let Some(ending) = self.ending(most.saturating_add(1)) {
            return Ok(Admission::End(ending));
        }
        // Not even from there: then the answer may still end by itself, or fails in the end.
        self.matcher.consume_token(token).map_err(|error| failed(&error))?;
        self.inside = after;
        Ok(Admission::Taken)
    }

    /// Whether nothing can follow any more.
    pub(super) fn is_over(&self) -> bool {
        self.matcher.is_stopped()
    }

    /// Whether the answer has its form as it is.
    pub(super) fn is_complete(&mut self) -> bool {
        is_complete(&mut self.matcher)
    }

    /// Tokens that end the answer from here, at most `most`. Not the fewest there are, but few: what is open is closed,
    /// and what must still come is kept as short as can be seen.
    fn ending(&self, most: u32) -> Option<Vec<u32>> {
        let (mut matcher, mut inside) = (self.matcher.clone(), self.inside);
        let mut tokens = Vec::new();
        while !is_complete(&mut matcher) {
            let mut next = matcher.compute_ff_tokens();
            if next.is_empty() {
                let mask = matcher.compute_mask().ok()?;
                next.push(self.endings.choose(&mask, inside)?);
            }
            if count(tokens.len() + next.len()) > most {
                return None;
            }
            matcher.consume_tokens(&next).ok()?;
            for token in &next {
                inside.pass(self.endings.bytes(*token));
            }
            tokens.append(&mut next);
        }
        Some(tokens)
    }
}

fn is_complete(matcher: &mut Matcher) -> bool {
    match matcher.stop_reason() {
        StopReason::NotStopped => matcher.is_accepting().unwrap_or(false),
        StopReason::NoExtension | StopReason::EndOfSentence => true,
        _ => false,
    }
}

fn failed(error: &dyn std::fmt::Display) -> Refusal {
    Refusal::bad_request(format!("the form of the answer cannot be enforced any further: {error}"))
        .with_param("response_format")
}

fn count(tokens: usize) -> u32 {
    u32::try_from(tokens).unwrap_or(u32::MAX)
}

/// Whether the text stands inside a JSON string. In a form that is no JSON it says nothing of use and does no harm: it only
/// decides what is tried first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Inside {
    #[default]
    Nothing,
    String,
    Escape,
}

impl Inside {
    fn pass(&mut self, bytes: &[u8]) {
        for byte in bytes {
            *self = match (*self, byte) {
                (Inside::Nothing, b'"') | (Inside::Escape, _) => Inside::String,
                (Inside::String, b'\\') => Inside::Escape,
                (Inside::String, b'"') => Inside::Nothing,
                (same, _) => same,
            };
        }
    }
}

/// What a tokenizer has for ending things: the token for each single byte, and how long all tokens are.
#[derive(Debug)]
pub(super) struct Endings {
    /// The token that is just this byte.
    single: Vec<Option<u32>>,
    tokens: Vec<Box<[u8]>>,
}

/// Bytes that lead towards the end, best first: closing what is open, then what stands between things, then the shortest
/// values, and last what opens something. All others come in the order of their numbers before the last.
const CLOSERS: &[u8] = b"}])>";
const LATER: &[u8] = b".,:;!?0123456789";
const OPENERS: &[u8] = b"-<([{\\";

impl Endings {
    /// Looks through the vocabulary.
    pub(super) fn new(pieces: &Pieces, vocab: usize) -> Self {
        let mut single = vec![None; 256];
        let ids = 0..count(vocab);
        let tokens: Vec<Box<[u8]>> = ids.clone().map(|id| pieces.bytes(id).into()).collect();
        for (id, bytes) in ids.zip(&tokens) {
            // Of two that mean the same byte, the later is the one that the tokenizer writes.
            if let [byte] = **bytes
                && let Some(place) = single.get_mut(usize::from(byte))
            {
                *place = Some(id);
            }
        }
        Endings { single, tokens }
    }

    fn bytes(&self, token: u32) -> &[u8] {
        usize::try_from(token).ok().and_then(|id| self.tokens.get(id)).map_or(&[], |bytes| bytes)
    }

    /// Of the tokens that may come, the one that leads nearest to the end as far as can be seen.
    fn choose(&self, mask: &SimpleVob, inside: Inside) -> Option<u32> {
        let quote: &[u8] = b"\"";
        let (first, second) =
            if inside == Inside::Nothing { (CLOSERS, quote) } else { (quote, CLOSERS) };
        let others = (b' '..=b'~').filter(|byte| !OPENERS.contains(byte));
        let order = first.iter().chain(second).chain(LATER).copied().chain(others);
        let order = order.chain(OPENERS.iter().copied());
        let single = |byte: u8| self.single.get(usize::from(byte)).copied().flatten();
        let best = order.filter_map(single).find(|id| is_allowed(mask, *id));
        best.or_else(|| {
            // Half a character, or the beginning of a token that must come: the shortest that will do.
            let mut shortest: Option<u32> = None;
            mask.iter_set_entries(|id| {
                let (id, length) = (count(id), |id| self.bytes(id).len());
                if length(id) > 0 && shortest.is_none_or(|best| length(id) < length(best)) {
                    shortest = Some(id);
                }
            });
            shortest
        })
    }
}

/// Whether a mask holds a token; a mask may be shorter than the logits are.
pub(super) fn is_allowed(mask: &SimpleVob, id: u32) -> bool {
    usize::try_from(id).is_ok_and(|at| at < mask.len()) && mask.is_allowed(id)
}
