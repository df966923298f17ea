//! How probable the model found the tokens of an answer, for those who ask.

use serde::{Deserialize, Serialize};

/// One token of an answer with what the model thought at its place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// The token that was taken.
    pub chosen: Candidate,
    /// The most probable tokens at its place, best first; as many as were asked for.
    pub top: Vec<Candidate>,
    /// Characters of the answer in front of it.
    pub offset: u32,
}

/// A token that could stand at some place, and the logarithm of its probability there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// Its text; a replacement character stands for bytes that are no character on their own. The name of a token that
    /// has no text, such as `</s>`.
    pub text: String,
    /// Its bytes; empty for a token that has no text.
    pub bytes: Vec<u8>,
    /// Natural logarithm of the probability that the model gave it: 0 or less, and never infinite.
    pub logprob: f32,
}
