//! Writes log probabilities as `OpenAI`'s two APIs do. promptd's own answers use the chat's form.

use serde_json::{Map, Value, json};

use crate::request::{Candidate, TokenLogprob};

/// The list under `logprobs.content` of a chat, and under `logprobs` of promptd's own answers.
pub(crate) fn chat(tokens: &[TokenLogprob]) -> Value {
    let one = |token: &TokenLogprob| {
        let mut object = candidate(&token.chosen);
        let top: Vec<Value> = token.top.iter().map(|top| Value::Object(candidate(top))).collect();
        object.insert("top_logprobs".into(), top.into());
        Value::Object(object)
    };
    tokens.iter().map(one).collect()
}

/// The object under `logprobs` of a completion.
pub(crate) fn completion(tokens: &[TokenLogprob]) -> Value {
    let names: Vec<String> = tokens.iter().map(|token| name(&token.chosen)).collect();
    let logprobs: Vec<f64> = tokens.iter().map(|token| rounded(token.chosen.logprob)).collect();
    let offsets: Vec<u32> = tokens.iter().map(|token| token.offset).collect();
    let top = |token: &TokenLogprob| {
        let pairs = token.top.iter().map(|top| (name(top), Value::from(rounded(top.logprob))));
        pairs.collect::<Map<String, Value>>()
    };
    // Nobody asked for alternatives where no token has any.
    let top: Option<Vec<Map<String, Value>>> =
        tokens.iter().any(|token| !token.top.is_empty()).then(|| tokens.iter().map(top).collect());
    json!({"tokens": names, "token_logprobs": logprobs, "top_logprobs": top, "text_offset": offsets})
}

fn candidate(candidate: &Candidate) -> Map<String, Value> {
    let bytes = (!candidate.bytes.is_empty()).then(|| candidate.bytes.clone());
    let mut object = Map::new();
    object.insert("token".into(), candidate.text.as_str().into());
    object.insert("logprob".into(), rounded(candidate.logprob).into());
    object.insert("bytes".into(), bytes.into());
    object
}

/// A completion names tokens by their text alone, so bytes that are no text are written out, as `OpenAI` does.
fn name(candidate: &Candidate) -> String {
    if candidate.bytes.is_empty() || std::str::from_utf8(&candidate.bytes).is_ok() {
        return candidate.text.clone();
    }
    let hex = candidate.bytes.iter().map(|byte| format!("\\x{byte:02x}"));
    std::iter::once("bytes:".to_owned()).chain(hex).collect()
}

/// Six digits behind the point: single precision has no more to say.
fn rounded(logprob: f32) -> f64 {
    (f64::from(logprob) * 1e6).round() / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(text: &str, bytes: &[u8], logprob: f32) -> Candidate {
        Candidate { text: text.to_owned(), bytes: bytes.to_vec(), logprob }
    }

    #[test]
    fn the_two_forms() {
        let end = candidate("</s>", b"", -9999.0);
        let first = TokenLogprob {
            chosen: candidate("Hi", b"Hi", -0.1),
            top: vec![candidate("Hi", b"Hi", -0.1), end],
            offset: 0,
        };
        let half =
            TokenLogprob { chosen: candidate("\u{fffd}", &[0xc3], -1.25), top: vec![], offset: 2 };
        assert_eq!(
            chat(&[first.clone(), half.clone()]),
            json!([
                {"token": "Hi", "logprob": -0.1, "bytes": [72, 105], "top_logprobs": [
                    {"token": "Hi", "logprob": -0.1, "bytes": [72, 105]},
                    {"token": "</s>", "logprob": -9999.0, "bytes": null},
                ]},
                {"token": "\u{fffd}", "logprob": -1.25, "bytes": [195], "top_logprobs": []},
            ])
        );
        assert_eq!(
            completion(&[first, half.clone()]),
            json!({"tokens": ["Hi", "bytes:\\xc3"], "token_logprobs": [-0.1, -1.25],
                "top_logprobs": [{"Hi": -0.1, "</s>": -9999.0}, {}], "text_offset": [0, 2]})
        );
        assert_eq!(completion(&[half])["top_logprobs"], Value::Null);
    }
}
