//! Reads `POST /v1/embeddings`: texts, or what the asker's own tokenizer made of them, whose vectors are wanted.

use std::time::Duration;

use serde_json::Value;

use super::ask::{check_size, object};
use super::fields::{Fields, wrong};
use super::generation::priority;
use super::known::refuse_unknown;
use super::{Context, check_model};
use crate::request::{
    Constraint, ContextOverflow, Embed, EmbedText, Input, Origin, Refusal, Request, Sampling,
    Submission,
};

/// Texts in one request, and tokens of one that is written as tokens: OpenAI's numbers. The engine counts the tokens of texts,
/// and of all together.
const MOST: usize = 2048;

/// The fields of the request. `user` changes nothing.
const FIELDS: &[&str] =
    &["input", "model", "encoding_format", "dimensions", "user", "priority", "timeout_ms"];

/// A request for vectors as it was read.
#[derive(Clone, Debug)]
pub struct EmbeddingsAsked {
    /// What goes to the scheduler.
    pub submission: Submission,
    /// How many vectors are wanted.
    pub texts: usize,
    /// Whether each vector is wanted as the bytes of its numbers.
    pub base64: bool,
    model: Option<String>,
}

impl EmbeddingsAsked {
    /// Whether the model that is served is the one that was asked for.
    ///
    /// # Errors
    /// `not_found`, naming both.
    pub fn check_model(&self, served: Option<&str>) -> Result<(), Refusal> {
        check_model(self.model.as_deref(), served)
    }
}

/// Reads the body of `POST /v1/embeddings`.
///
/// # Errors
/// `bad_request` with the field that is wrong, `forbidden` for a priority that the asker may not have, `payload_too_large`.
pub fn parse_embeddings(body: &[u8], context: &Context<'_>) -> Result<EmbeddingsAsked, Refusal> {
    check_size(body, context)?;
    let map = object(body)?;
    let fields = Fields::root(&map);
    refuse_unknown(&fields, FIELDS)?;
    context.grant.check_allowed()?;
    let texts = texts(&fields)?;
    let base64 = match fields.string("encoding_format")? {
        None | Some("float") => false,
        Some("base64") => true,
        Some(other) => {
            let other = Value::from(other);
            return Err(fields.wrong("encoding_format", "\"float\" or \"base64\"", &other));
        }
    };
    let dimensions = fields.integer("dimensions", &(1..=u64::from(u32::MAX)))?;
    let dimensions = dimensions.and_then(|dimensions| u32::try_from(dimensions).ok());
    let most_ms = u64::try_from(context.limits.timeout.as_millis()).unwrap_or(u64::MAX);
    let timeout = fields.integer("timeout_ms", &(1..=most_ms))?.map(Duration::from_millis);
    let priority = match priority(&fields)? {
        Some(priority) => context.grant.check_priority(priority).map(|()| priority)?,
        None => context.grant.priority.min(crate::request::Priority::default()),
    };
    let model = fields.string("model")?.map(str::to_owned);
    let count = texts.len();
    let request = Request {
        input: Input::Embed(Embed { texts, dimensions }),
        sampling: Sampling::default(),
        max_tokens: None,
        stop: Vec::new(),
        stop_token_ids: Vec::new(),
        context_overflow: ContextOverflow::default(),
        constraint: Constraint::None,
        logprobs: None,
        tools: None,
    };
    let submission = Submission {
        request,
        identity: context.grant.identity.clone(),
        priority,
        timeout,
        quota: context.grant.quota,
        session: None,
        profile: None,
        recorded: None,
        again: None,
        origin: Origin::new(context.door),
    };
    Ok(EmbeddingsAsked { submission, texts: count, base64, model })
}

/// A string, several, the tokens of one, or those of several.
fn texts(fields: &Fields<'_>) -> Result<Vec<EmbedText>, Refusal> {
    const EXPECTED: &str =
        "a string, an array of strings, an array of token ids, or an array of such arrays";
    match fields.get("input") {
        None => Err(fields.missing("input", "the text, or an array of texts")),
        Some(Value::String(text)) => Ok(vec![text_of(text, "input")?]),
        Some(Value::Array(list)) => {
            check_count(list.len(), "input", "texts or token ids")?;
            match list.first() {
                Some(Value::Number(_)) => Ok(vec![tokens_of(list, "input")?]),
                Some(Value::String(_)) => each(list, |value, path| match value {
                    Value::String(text) => text_of(text, path),
                    other => Err(wrong(path, "a string, as the first one is", other)),
                }),
                Some(Value::Array(_)) => each(list, |value, path| match value {
                    Value::Array(tokens) => {
                        check_count(tokens.len(), path, "token ids")?;
                        tokens_of(tokens, path)
                    }
                    other => Err(wrong(path, "an array of token ids, as the first one is", other)),
                }),
                Some(other) => {
                    Err(wrong("input[0]", "a string, a token id, or an array of those", other))
                }
                None => Err(fields.wrong("input", EXPECTED, &Value::Array(Vec::new()))),
            }
        }
        Some(other) => Err(fields.wrong("input", EXPECTED, other)),
    }
}

fn each(
    list: &[Value],
    read: impl Fn(&Value, &str) -> Result<EmbedText, Refusal>,
) -> Result<Vec<EmbedText>, Refusal> {
    list.iter().enumerate().map(|(at, value)| read(value, &format!("input[{at}]"))).collect()
}

fn text_of(text: &str, path: &str) -> Result<EmbedText, Refusal> {
    if text.is_empty() {
        return Err(Refusal::bad_request(format!("`{path}` is empty")).with_param(path));
    }
    Ok(EmbedText::Text(text.to_owned()))
}

fn tokens_of(list: &[Value], path: &str) -> Result<EmbedText, Refusal> {
    let read = |(at, value): (usize, &Value)| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| wrong(&format!("{path}[{at}]"), "a token id", value))
    };
    list.iter().enumerate().map(read).collect::<Result<_, _>>().map(EmbedText::Tokens)
}

fn check_count(have: usize, path: &str, what: &str) -> Result<(), Refusal> {
    if (1..=MOST).contains(&have) {
        return Ok(());
    }
    let message = format!("`{path}` has {have} {what}; 1 to {MOST} are possible");
    let refusal = Refusal::bad_request(message).with_param(path);
    Err(if have == 0 { refusal } else { refusal.with_limit(MOST as u64, have as u64) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Grant;
    use crate::request::{Code, Door, Identity, Priority};
    use crate::wire::{Limits, Profiles, Readings};
    use serde_json::json;

    fn parse(grant: Grant, body: &Value) -> Result<EmbeddingsAsked, Refusal> {
        let (profiles, readings) = (Profiles::default(), Readings::default());
        let (limits, now) = (Limits::default(), std::time::Instant::now());
        let context = Context {
            profiles: &profiles,
            readings: &readings,
            limits: &limits,
            grant,
            now,
            door: Door::Http,
        };
        parse_embeddings(body.to_string().as_bytes(), &context)
    }

    fn somebody() -> Grant {
        Grant::all(Identity("somebody".to_owned()))
    }

    fn text(text: &str) -> EmbedText {
        EmbedText::Text(text.to_owned())
    }

    #[test]
    fn every_form_of_input() {
        let tokens = |ids: &[u32]| EmbedText::Tokens(ids.to_vec());
        for (input, expected) in [
            (json!("a"), vec![text("a")]),
            (json!(["a", "b"]), vec![text("a"), text("b")]),
            (json!([1, 2]), vec![tokens(&[1, 2])]),
            (json!([[1], [2, 3]]), vec![tokens(&[1]), tokens(&[2, 3])]),
            (json!(vec!["x"; 2048]), vec![text("x"); 2048]),
        ] {
            let asked = parse(somebody(), &json!({"input": input, "model": "m"})).unwrap();
            assert_eq!(asked.texts, expected.len());
            assert_eq!(
                asked.submission.request.input,
                Input::Embed(Embed { texts: expected, dimensions: None })
            );
        }
        let asked = json!({"input": "a", "encoding_format": "base64", "dimensions": 64, "user": "me",
            "priority": "high", "timeout_ms": 5, "model": "default"});
        let asked = parse(somebody(), &asked).unwrap();
        let Input::Embed(embed) = &asked.submission.request.input else { panic!() };
        assert_eq!((asked.base64, embed.dimensions), (true, Some(64)));
        let submission = &asked.submission;
        assert_eq!(
            (submission.priority, submission.timeout),
            (Priority::High, Some(Duration::from_millis(5)))
        );
        assert_eq!(asked.check_model(Some("tiny")), Ok(()));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (body, param) in [
            (json!({}), "input"),
            (json!({"input": ""}), "input"),
            (json!({"input": []}), "input"),
            (json!({"input": {}}), "input"),
            (json!({"input": ["a", ""]}), "input[1]"),
            (json!({"input": ["a", 1]}), "input[1]"),
            (json!({"input": [null]}), "input[0]"),
            (json!({"input": [1, "a"]}), "input[1]"),
            (json!({"input": [1, -1]}), "input[1]"),
            (json!({"input": [[1], []]}), "input[1]"),
            (json!({"input": [[1], [1.5]]}), "input[1][0]"),
            (json!({"input": [[1], "a"]}), "input[1]"),
            (json!({"input": vec!["x"; 2049]}), "input"),
            (json!({"input": "a", "encoding_format": "int8"}), "encoding_format"),
            (json!({"input": "a", "dimensions": 0}), "dimensions"),
            (json!({"input": "a", "dimension": 8}), "dimension"),
            (json!({"input": "a", "stream": true}), "stream"),
        ] {
            let refusal = parse(somebody(), &body).unwrap_err();
            assert_eq!(refusal.code, Code::BadRequest, "{body}: {refusal}");
            assert_eq!(refusal.param.as_deref(), Some(param), "{refusal}");
        }
        let low = Grant { priority: Priority::Low, ..somebody() };
        let asked = parse(low.clone(), &json!({"input": "a"})).unwrap();
        assert_eq!(asked.submission.priority, Priority::Low);
        let refusal = parse(low, &json!({"input": "a", "priority": "high"})).unwrap_err();
        assert_eq!(refusal.code, Code::Forbidden);
    }
}
