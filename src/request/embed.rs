//! What an embedding is asked of: texts, each of which becomes a vector.

use serde::{Deserialize, Serialize};

/// Texts whose vectors are wanted, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Embed {
    /// The texts; at least one.
    pub texts: Vec<EmbedText>,
    /// How many numbers each vector shall have. `None`: as many as the model gives, which is the only number it can be.
    pub dimensions: Option<u32>,
}

/// A text that becomes a vector.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EmbedText {
    /// As it is written. The model's tokenizer puts around it what it puts around every text.
    Text(String),
    /// As tokens, which are taken as they are.
    Tokens(Vec<u32>),
}

impl Embed {
    /// The texts in words, as far as they are words.
    pub fn in_words(&self) -> impl Iterator<Item = &str> {
        self.texts.iter().map(|text| match text {
            EmbedText::Text(text) => text.as_str(),
            EmbedText::Tokens(_) => "(tokens)",
        })
    }

    /// Bytes that it keeps in memory.
    pub fn bytes(&self) -> usize {
        let of = |text: &EmbedText| match text {
            EmbedText::Text(text) => text.len(),
            EmbedText::Tokens(tokens) => size_of_val(tokens.as_slice()),
        };
        self.texts.iter().map(|text| size_of_val(text) + of(text)).sum()
    }
}
