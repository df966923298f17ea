//! Token ids to text, as they come: whole characters only, so that no piece ever shows half of one.

use super::tokenizer::Pieces;

/// The longest UTF-8 character has four bytes; more that do not make one are no beginning of one.
const MAX_CHARACTER_BYTES: usize = 4;

/// The state of one answer's text.
#[derive(Clone, Debug)]
pub(super) struct Detokenizer {
    /// Bytes of a character that is not complete.
    pending: Vec<u8>,
    /// No text came yet, of the prompt or the answer, so a first space is the tokenizer's own.
    at_start: bool,
}

impl Detokenizer {
    /// Text that follows the prompt.
    pub(super) fn after(pieces: &Pieces, prompt: &[u32]) -> Self {
        let at_start = prompt.iter().all(|id| pieces.bytes(*id).is_empty());
        Detokenizer { pending: Vec::new(), at_start }
    }

    /// The characters that this token completes.
    pub(super) fn push(&mut self, pieces: &Pieces, id: u32) -> String {
        let mut bytes = pieces.bytes(id);
        if bytes.is_empty() {
            return String::new();
        }
        if std::mem::take(&mut self.at_start) && pieces.rules.strips_first_space {
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
        }
        self.pending.extend_from_slice(bytes);
        self.take(pieces, false)
    }

    /// What is left when no token comes any more: incomplete characters become replacement characters.
    pub(super) fn finish(&mut self, pieces: &Pieces) -> String {
        self.take(pieces, true)
    }

    fn take(&mut self, pieces: &Pieces, last: bool) -> String {
        let (mut text, mut at) = (String::new(), 0);
        while let Some(rest) = self.pending.get(at..).filter(|rest| !rest.is_empty()) {
            let (valid, broken) = match std::str::from_utf8(rest) {
                Ok(valid) => (valid, None),
                Err(error) => {
                    let valid = rest
                        .get(..error.valid_up_to())
                        .and_then(|valid| std::str::from_utf8(valid).ok());
                    (valid.unwrap_or_default(), Some(error.error_len()))
                }
            };
            text.push_str(valid);
            at += valid.len();
            match broken {
                None => break,
                // The beginning of a character: wait for the rest of it.
                Some(None) if !last && self.pending.len() - at < MAX_CHARACTER_BYTES => break,
                Some(length) => {
                    let length = length.unwrap_or(self.pending.len() - at);
                    let marks = if pieces.rules.one_replacement_per_byte { length } else { 1 };
                    text.extend(std::iter::repeat_n(char::REPLACEMENT_CHARACTER, marks));
                    at += length;
                }
            }
        }
        self.pending.drain(..at);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::test_material;
    use crate::inference::tokenizer::Tokenizer;
    use crate::inference::tokenizer::tests::tiny;
    use std::path::Path;

    fn bytes(text: &[u8]) -> Vec<u32> {
        text.iter().map(|byte| u32::from(*byte) + 3).collect()
    }

    fn stream(pieces: &Pieces, prompt: &[u32], ids: &[u32]) -> Vec<String> {
        let mut state = Detokenizer::after(pieces, prompt);
        let mut deltas: Vec<String> = ids.iter().map(|id| state.push(pieces, *id)).collect();
        deltas.push(state.finish(pieces));
        deltas
    }

    #[test]
    fn characters_come_whole() {
        let tokenizer = tiny();
        let check = |text: &[u8], expected: &[&str]| {
            assert_eq!(stream(tokenizer.pieces(), &[300], &bytes(text)), expected, "{text:?}");
        };
        check("é!".as_bytes(), &["", "é", "!", ""]);
        check("😀".as_bytes(), &["", "", "", "😀", ""]);
        check(&[0xf0, 0x9f], &["", "", "\u{fffd}\u{fffd}"]);
        check(&[0xff, b'a'], &["\u{fffd}", "a", ""]);
        check(&[0xe4, b'a'], &["", "\u{fffd}a", ""]);
        check(&[0xf0, 0x9f, 0x98, 0x80, 0xf0], &["", "", "", "😀", "", "\u{fffd}"]);
    }

    #[test]
    fn a_leading_space_is_kept_behind_text_and_dropped_at_the_start() {
        let tokenizer = tiny();
        let (space, a) = (259, 260);
        assert_eq!(stream(tokenizer.pieces(), &[1, a], &[space, a]).concat(), " a");
        assert_eq!(stream(tokenizer.pieces(), &[1], &[space, a]).concat(), "a");
        assert_eq!(stream(tokenizer.pieces(), &[1], &[space, space, a]).concat(), " a");
        assert_eq!(stream(tokenizer.pieces(), &[], &[1, 2]).concat(), "");
    }

    /// Streams by independent implementations, where they are at hand.
    #[test]
    fn streams_equal_the_reference() {
        let Some(root) = test_material::root() else { return };
        for line in test_material::lines("tokenizers/streaming-detok.vectors.jsonl").unwrap() {
            let name = line["tokenizer"].as_str().unwrap();
            let file = match name {
                "stories260k-512" => root.join("models/stories260k-genai-int4/tokenizer.json"),
                name => root.join(format!("tokenizers/{name}.tokenizer.json")),
            };
            let json = std::fs::read(&file).unwrap();
            let tokenizer =
                Tokenizer::read(Path::new(name), &json, &serde_json::Value::Null, None).unwrap();
            let ids: Vec<u32> = serde_json::from_value(line["ids"].clone()).unwrap();
            let deltas = stream(tokenizer.pieces(), &[], &ids);
            assert_eq!(deltas.concat(), line["final_text"].as_str().unwrap(), "{line}");
            assert!(deltas[..ids.len()].iter().all(|delta| !delta.contains('\u{fffd}')), "{line}");
        }
    }
}
