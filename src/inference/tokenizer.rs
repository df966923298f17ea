//! Text to token ids and the bytes behind each id. Control tokens are recognised only where they are meant: in what
//! the chat template wrote, never in what a client wrote.

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::error::LoadError;

/// The tokenizer of a model.
pub(super) struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Texts of the control tokens.
    specials: Vec<String>,
    /// What they begin with: most characters of a text begin none.
    special_starts: Vec<char>,
    pieces: Pieces,
    /// Put in front of every prompt, once.
    bos: Option<u32>,
}

/// Put into the middle of what looks like a control token and is not meant as one, and taken out again as a token: a
/// private-use character, which vocabularies have no word for and merge with nothing.
const BREAK: char = '\u{E0FE}';

/// The bytes of every token: what generated ids mean as text.
#[derive(Debug)]
pub(super) struct Pieces {
    bytes: Vec<u8>,
    /// Where each token's bytes lie; empty for control tokens.
    ranges: Vec<Range<usize>>,
    /// The most bytes any token is written with, control tokens included.
    longest: usize,
    pub(super) rules: DecodeRules,
}

/// How bytes become text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DecodeRules {
    /// The first space of a whole text is the tokenizer's own and is dropped (`SentencePiece`).
    pub(super) strips_first_space: bool,
    /// Bytes that are no UTF-8 give one replacement character each (byte fallback), not one for each broken sequence.
    pub(super) one_replacement_per_byte: bool,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("tokens", &self.pieces.ranges.len())
            .field("bos", &self.bos)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads tokenizer.json; `config` is `tokenizer_config.json`, `model_bos` what the model's configuration says.
    pub(super) fn read(
        file: &Path,
        json: &[u8],
        config: &Value,
        model_bos: Option<u32>,
    ) -> Result<Self, LoadError> {
        let wrong = |reason: String| LoadError::File { path: PathBuf::from(file), reason };
        let value: Value =
            serde_json::from_slice(json).map_err(|error| wrong(format!("is not JSON: {error}")))?;
        let vocab = value.pointer("/model/vocab");
        if vocab.is_some_and(|vocab| vocab.as_object().is_some_and(serde_json::Map::is_empty)) {
            return Err(wrong("has an empty vocabulary".into()));
        }
        let inner = tokenizers::Tokenizer::from_bytes(json)
            .map_err(|error| wrong(format!("is no tokenizer: {error}")))?;
        let added = inner.get_added_tokens_decoder();
        let specials = added.into_values().filter(|token| token.special).map(|token| token.content);
        let specials: Vec<String> = specials.filter(|text| !text.is_empty()).collect();
        let mut special_starts: Vec<char> =
            specials.iter().filter_map(|text| text.chars().next()).collect();
        special_starts.sort_unstable();
        special_starts.dedup();
        let pieces = Pieces::read(&inner, &value).map_err(wrong)?;
        let mut tokenizer = Tokenizer { inner, specials, special_starts, pieces, bos: None };
        tokenizer.bos = tokenizer.find_bos(config, model_bos);
        Ok(tokenizer)
    }

    /// `add_bos_token` decides where it is stated; else whether the tokenizer's own post-processor adds one.
    fn find_bos(&self, config: &Value, model_bos: Option<u32>) -> Option<u32> {
        let named = self.named_id(config, "bos_token").or(model_bos);
        match config.get("add_bos_token").and_then(Value::as_bool) {
            Some(true) => named,
            Some(false) => None,
            None => {
                let encoding = self.inner.encode("", true).ok()?;
                let first = encoding.get_ids().first().copied()?;
                (named.is_none() || named == Some(first)).then_some(first)
            }
        }
    }

    /// The id of a token that `tokenizer_config.json` names by its text (`bos_token`, `eos_token`).
    pub(super) fn named_id(&self, config: &Value, key: &str) -> Option<u32> {
        self.inner.token_to_id(&named_token(config, key)?)
    }

    /// One more than the highest id.
    pub(super) fn vocab_size(&self) -> usize {
        self.pieces.ranges.len()
    }

    /// The tokenizer underneath, for those who need its vocabulary.
    pub(super) fn inner(&self) -> tokenizers::Tokenizer {
        self.inner.clone()
    }

    /// The name of a token in the vocabulary.
    pub(super) fn name(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The control token of this name: one that stands for no text.
    pub(super) fn control(&self, name: &str) -> Option<u32> {
        self.inner.token_to_id(name).filter(|id| self.pieces.bytes(*id).is_empty())
    }

    /// The bytes behind the ids.
    pub(super) fn pieces(&self) -> &Pieces {
        &self.pieces
    }

    /// A text alone, without a beginning. `special`: control tokens are meant.
    pub(super) fn encode_plain(&self, text: &str, special: bool) -> Result<Vec<u32>, String> {
        let all = 0..text.len();
        let client = if special { &[] } else { std::slice::from_ref(&all) };
        self.encode_protected(text, client)
    }

    /// What stands in front of every text and behind it where its vector is wanted: what the tokenizer's post-processor
    /// puts there, unless `add_bos_token` and `add_eos_token` say otherwise.
    pub(super) fn around(&self, config: &Value) -> (Vec<u32>, Vec<u32>) {
        let ids = |special| {
            let encoding = self.inner.encode("a", special).ok();
            encoding.map(|encoding| encoding.get_ids().to_vec()).unwrap_or_default()
        };
        let (plain, whole) = (ids(false), ids(true));
        let place = (0..=whole.len().saturating_sub(plain.len()))
            .find(|at| whole.get(*at..at + plain.len()) == Some(plain.as_slice()));
        let (front, behind) = match place {
            Some(at) => (whole.get(..at), whole.get(at + plain.len()..)),
            None => (None, None),
        };
        let stated = |key: &str, token: &str, found: Option<&[u32]>| {
            let found = found.unwrap_or_default().to_vec();
            match config.get(key).and_then(Value::as_bool) {
                Some(true) => self.named_id(config, token).map_or(found, |id| vec![id]),
                Some(false) => Vec::new(),
                None => found,
            }
        };
        (stated("add_bos_token", "bos_token", front), stated("add_eos_token", "eos_token", behind))
    }

    /// The token every prompt begins with.
    pub(super) fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// A client's text to be continued: BOS where the model wants one, no control tokens.
    pub(super) fn encode_text(&self, text: &str) -> Result<Vec<u32>, String> {
        let ids = self.encode_protected(text, std::slice::from_ref(&(0..text.len())))?;
        Ok(self.bos.into_iter().chain(ids).collect())
    }

    /// Text in which control tokens are meant: BOS in front unless the text brings it.
    pub(super) fn encode_speaking(&self, text: &str) -> Result<Vec<u32>, String> {
        self.encode_conversation(text, &[])
    }

    /// What a chat template wrote, with the ranges that came from clients: control tokens only outside of those.
    pub(super) fn encode_conversation(
        &self,
        text: &str,
        client: &[Range<usize>],
    ) -> Result<Vec<u32>, String> {
        let mut ids = self.encode_protected(text, client)?;
        if let Some(bos) = self.bos
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// Encodes the text as a whole, so that ordinary text gets the ids it always gets; only what looks like a control
    /// token and touches a client's range is broken up first.
    fn encode_protected(&self, text: &str, client: &[Range<usize>]) -> Result<Vec<u32>, String> {
        let (protected, breaks) = self.protect(text, client);
        if protected.is_empty() {
            return Ok(Vec::new());
        }
        let encoding = self.inner.encode(protected, false).map_err(|error| error.to_string())?;
        let mut ids = encoding.get_ids().to_vec();
        if breaks.is_empty() {
            return Ok(ids);
        }
        let of_break = |&(start, end): &(usize, usize)| {
            // Ranges are in order and do not touch.
            let next = breaks.partition_point(|range| range.end <= start);
            breaks
                .get(next)
                .filter(|range| range.start < end)
                .map(|range| range.start <= start && end <= range.end)
        };
        let kinds: Vec<Option<bool>> = encoding.get_offsets().iter().map(of_break).collect();
        if kinds.contains(&Some(false)) {
            return Err(
                "it holds the text of a control token, which this tokenizer cannot take as text"
                    .into(),
            );
        }
        let mut kinds = kinds.into_iter();
        ids.retain(|_| kinds.next().flatten().is_none());
        Ok(ids)
    }

    /// The text with a break in each control token that touches a client's range, and where the breaks are.
    fn protect(&self, text: &str, client: &[Range<usize>]) -> (String, Vec<Range<usize>>) {
        let (mut protected, mut breaks) = (String::with_capacity(text.len()), Vec::new());
        for (start, character) in text.char_indices() {
            protected.push(character);
            if !self.special_starts.contains(&character) {
                continue;
            }
            let rest = text.get(start..).unwrap_or_default();
            let touches =
                |end: usize| client.iter().any(|range| range.start < end && start < range.end);
            if self
                .specials
                .iter()
                .any(|special| rest.starts_with(special) && touches(start + special.len()))
            {
                breaks.push(protected.len()..protected.len() + BREAK.len_utf8());
                protected.push(BREAK);
            }
        }
        (protected, breaks)
    }

    /// Whether the text of a control token stands anywhere in `text`.
    pub(super) fn has_special(&self, text: &str) -> bool {
        self.specials.iter().any(|special| text.contains(special))
    }
}

/// The text of a token that `tokenizer_config.json` names: a string, or an object with `content`.
pub(super) fn named_token(config: &Value, key: &str) -> Option<String> {
    let value = config.get(key)?;
    value.as_str().or_else(|| value.get("content").and_then(Value::as_str)).map(str::to_owned)
}

impl Pieces {
    fn read(tokenizer: &tokenizers::Tokenizer, json: &Value) -> Result<Self, String> {
        let decoder = json.get("decoder").unwrap_or(&Value::Null);
        let (byte_level, byte_fallback) =
            (has_type(decoder, "ByteLevel"), has_type(decoder, "ByteFallback"));
        let metaspace = has_type(decoder, "Metaspace");
        if !byte_level && !byte_fallback && !metaspace {
            return Err("has a decoder that promptd does not know (it knows ByteLevel, ByteFallback and Metaspace)".into());
        }
        let added = tokenizer.get_added_tokens_decoder();
        let map = byte_characters();
        let highest = tokenizer.get_vocab(true).into_values().max().map_or(0, |id| id as usize);
        if highest > MAX_TOKENS {
            return Err(format!(
                "has the token id {highest}; {MAX_TOKENS} is the highest that promptd takes"
            ));
        }
        let (mut bytes, mut ranges) = (Vec::new(), Vec::with_capacity(highest + 1));
        let mut longest = added.values().map(|token| token.content.len()).max().unwrap_or(0);
        for id in 0..=u32::try_from(highest).unwrap_or(u32::MAX) {
            let start = bytes.len();
            match (added.get(&id), tokenizer.id_to_token(id)) {
                (Some(token), _) if token.special => {}
                (Some(token), _) => bytes.extend_from_slice(token.content.as_bytes()),
                (None, Some(text)) if byte_level => {
                    bytes.extend(text.chars().flat_map(|c| byte_of(&map, c)));
                }
                (None, Some(text)) => match hex_byte(&text).filter(|_| byte_fallback) {
                    Some(byte) => bytes.push(byte),
                    // The lower one eighth block stands for a space in SentencePiece's vocabularies.
                    None => bytes.extend_from_slice(text.replace('\u{2581}', " ").as_bytes()),
                },
                (None, None) => {}
            }
            longest = longest.max(bytes.len() - start);
            ranges.push(start..bytes.len());
        }
        let rules = DecodeRules {
            strips_first_space: metaspace || has_type(decoder, "Strip"),
            one_replacement_per_byte: byte_fallback,
        };
        Ok(Pieces { bytes, ranges, longest, rules })
    }

    /// The most bytes a token is written with.
    pub(super) fn longest(&self) -> usize {
        self.longest
    }

    /// The bytes of a token; none for control tokens and unknown ids.
    pub(super) fn bytes(&self, id: u32) -> &[u8] {
        let range = usize::try_from(id).ok().and_then(|id| self.ranges.get(id)).cloned();
        range.and_then(|range| self.bytes.get(range)).unwrap_or_default()
    }
}

/// Ids above this would make tables of absurd size from a damaged tokenizer; the largest vocabularies have some 260,000.
const MAX_TOKENS: usize = 2 << 20;

fn has_type(decoder: &Value, name: &str) -> bool {
    decoder.get("type").and_then(Value::as_str) == Some(name)
        || decoder
            .get("decoders")
            .and_then(Value::as_array)
            .is_some_and(|list| list.iter().any(|part| has_type(part, name)))
}

/// `<0x0A>` stands for the byte 10.
fn hex_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// GPT-2's way of writing bytes as printable characters: those that are printable stand for themselves, the others
/// take the code points from 256 on, in order.
fn byte_characters() -> Vec<(char, u8)> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 256;
    let mut map: Vec<(char, u8)> = (0..=255)
        .map(|byte| {
            if printable(byte) {
                return (char::from(byte), byte);
            }
            next += 1;
            (char::from_u32(next - 1).unwrap_or('\u{fffd}'), byte)
        })
        .collect();
    map.sort_unstable();
    map
}

fn byte_of(map: &[(char, u8)], c: char) -> Vec<u8> {
    match map.binary_search_by_key(&c, |(c, _)| *c) {
        Ok(index) => vec![map[index].1],
        // A token that was not written this way (added by hand): its own bytes.
        Err(_) => c.to_string().into_bytes(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::inference::detokenizer::Detokenizer;
    use crate::inference::test_material;
    use serde_json::json;

    /// A tiny SentencePiece-like tokenizer: bytes, a few letters, `<s>`, `</s>`.
    pub(in crate::inference) fn tiny() -> Tokenizer {
        let mut vocab = serde_json::Map::new();
        for (id, token) in ["<unk>", "<s>", "</s>"].into_iter().enumerate() {
            vocab.insert(token.into(), id.into());
        }
        for byte in 0..=255_u32 {
            vocab.insert(format!("<0x{byte:02X}>"), (byte + 3).into());
        }
        for (index, letter) in "\u{2581}abcdefghijklmnopqrstuvwxyz<>/".chars().enumerate() {
            vocab.insert(letter.to_string(), (259 + index).into());
        }
        let special = |id: u32, text: &str| json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
        let json = json!({"version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
            "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u{2581}"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}]},
            "pre_tokenizer": null, "post_processor": null,
            "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                "vocab": vocab, "merges": []}});
        let config = json!({"add_bos_token": true, "bos_token": "<s>"});
        Tokenizer::read(Path::new("tokenizer.json"), json.to_string().as_bytes(), &config, None)
            .unwrap()
    }

    #[test]
    fn control_tokens_only_where_the_template_wrote_them() {
        let tokenizer = tiny();
        // One range a client wrote.
        let client = |start, end| vec![Range { start, end }];
        let text = "<s>a</s>b</s>";
        let all = tokenizer.encode_speaking(text).unwrap();
        assert_eq!(all.iter().filter(|id| **id == 2).count(), 2);
        // The client wrote `a</s>b`.
        let safe = tokenizer.encode_conversation(text, &client(3, 9)).unwrap();
        assert_eq!(safe.iter().filter(|id| **id == 2).count(), 1);
        assert_eq!(safe.first(), Some(&1));
        assert_eq!(safe.last(), Some(&2));
        // Half of it by the template, half by the client: still text.
        let split = tokenizer.encode_conversation("<s>a</s>", &client(3, 6)).unwrap();
        assert!(!split.contains(&2));
        // Without such text it is the joint encoding.
        assert_eq!(
            tokenizer.encode_conversation("<s>ab</s>", &client(3, 5)).unwrap(),
            tokenizer.encode_speaking("<s>ab</s>").unwrap()
        );
        assert!(!tokenizer.encode_text("</s>").unwrap().contains(&2));
    }

    #[test]
    fn one_beginning() {
        let tokenizer = tiny();
        assert_eq!(tokenizer.encode_text("").unwrap(), [1]);
        assert_eq!(tokenizer.encode_speaking("<s>").unwrap(), [1]);
        assert_eq!(tokenizer.encode_speaking("").unwrap(), [1]);
    }

    #[test]
    fn damage_is_named() {
        let read = |json: &str| {
            Tokenizer::read(Path::new("t.json"), json.as_bytes(), &Value::Null, None)
                .unwrap_err()
                .to_string()
        };
        assert!(read("[1,2").contains("not JSON"));
        assert!(read("{}").contains("no tokenizer"));
    }

    /// Control tokens of real vocabularies in a client's text: never a control token, and the text stays what it was.
    #[test]
    fn no_text_of_a_client_becomes_a_control_token() {
        let Some(root) = test_material::root() else { return };
        for name in ["llama-32000", "llama3", "gpt2", "phi3-v"] {
            let file = root.join(format!("tokenizers/{name}.tokenizer.json"));
            let json = std::fs::read(&file).unwrap();
            let tokenizer =
                Tokenizer::read(&file, &json, &json!({"add_bos_token": false}), None).unwrap();
            for special in &tokenizer.specials {
                let text = format!("x {special}{special} é{special}");
                let ids = tokenizer.encode_text(&text).unwrap();
                let bytes: Vec<u8> =
                    ids.iter().flat_map(|id| tokenizer.pieces.bytes(*id)).copied().collect();
                assert!(
                    ids.iter().all(|id| !tokenizer.pieces.bytes(*id).is_empty()),
                    "{name} {special}"
                );
                assert_eq!(
                    String::from_utf8(bytes).unwrap().trim_start(),
                    text,
                    "{name} {special}"
                );
            }
        }
    }

    /// Ids by independent implementations, where they are at hand.
    #[test]
    fn ids_equal_the_reference() {
        let Some(root) = test_material::root() else { return };
        let folder = root.join("models/stories260k-genai-int4/tokenizer.json");
        for (name, file) in [
            ("stories260k-512", folder),
            ("llama-32000", root.join("tokenizers/llama-32000.tokenizer.json")),
            ("llama3", root.join("tokenizers/llama3.tokenizer.json")),
            ("gpt2", root.join("tokenizers/gpt2.tokenizer.json")),
            ("phi3-v", root.join("tokenizers/phi3-v.tokenizer.json")),
        ] {
            let json = std::fs::read(&file).unwrap();
            let tokenizer =
                Tokenizer::read(&file, &json, &json!({"add_bos_token": false}), None).unwrap();
            let lines = test_material::lines(&format!("tokenizers/{name}.vectors.jsonl")).unwrap();
            let (mut right, total) = (0, lines.len());
            let mut wrong = Vec::new();
            for line in lines {
                let text = line["text"].as_str().unwrap();
                let expected: Vec<u32> = serde_json::from_value(line["ids"].clone()).unwrap();
                let got = tokenizer.encode_plain(text, true).unwrap();
                let mut state = Detokenizer::after(tokenizer.pieces(), &[]);
                let pieces = tokenizer.pieces();
                let mut decoded: String =
                    expected.iter().map(|id| state.push(pieces, *id)).collect();
                decoded.push_str(&state.finish(pieces));
                if decoded != line["decoded"].as_str().unwrap() {
                    wrong.push(format!(
                        "{text:?}: decoded {decoded:?}, expected {}",
                        line["decoded"]
                    ));
                } else if got == expected {
                    right += 1;
                } else {
                    wrong.push(format!("{text:?}: {got:?}, expected {expected:?}"));
                }
            }
            println!("{name}: {right}/{total} {:?}", wrong.first());
            assert!(wrong.is_empty(), "{name}: {right} of {total} equal; {}", wrong.join("\n"));
        }
    }
}
