//! The part of a request that says how the answer is made: sampling, stops, the answer's form, urgency. The same in all
//! three kinds of request; a profile's values stand in where the request says nothing.

use std::ops::RangeInclusive;
use std::time::Duration;

use serde_json::Value;

use super::fields::Fields;
use super::known::{Kind, refuse_unknown};
use super::limits::Limits;
use super::names::shown;
use super::profile::{Profile, priority_by_name};
use crate::request::{Code, Constraint, ContextOverflow, Priority, Refusal, Sampling};

/// How the answer is made.
#[derive(Clone, Debug)]
pub(super) struct Generation {
    pub(super) sampling: Sampling,
    pub(super) max_tokens: Option<u32>,
    pub(super) stop: Vec<String>,
    pub(super) stop_token_ids: Vec<u32>,
    pub(super) context_overflow: ContextOverflow,
    pub(super) constraint: Constraint,
    pub(super) logprobs: Option<u8>,
    pub(super) priority: Priority,
    pub(super) timeout: Option<Duration>,
}

/// Reads how the answer is made.
pub(super) fn read(
    fields: &Fields<'_>,
    kind: Kind,
    profile: Option<(&str, &Profile)>,
    limits: &Limits,
) -> Result<Generation, Refusal> {
    let defaults = Profile::default();
    let given = profile.map_or(&defaults, |(_, profile)| profile);
    let most_ms = u64::try_from(limits.timeout.as_millis()).unwrap_or(u64::MAX);
    let timeout = fields.integer("timeout_ms", &(1..=most_ms))?.map(Duration::from_millis);
    Ok(Generation {
        sampling: sampling(fields, given, limits)?,
        max_tokens: max_tokens(fields)?.or(given.max_tokens),
        stop: stop(fields, limits)?.unwrap_or_else(|| given.stop.clone()),
        stop_token_ids: stop_token_ids(fields, limits)?,
        context_overflow: context_overflow(fields)?,
        constraint: held(constraint(fields, limits)?, profile)?,
        logprobs: logprobs(fields, kind)?,
        priority: priority(fields)?.or(given.priority).unwrap_or_default(),
        timeout: timeout.or(given.timeout),
    })
}

fn sampling(fields: &Fields<'_>, given: &Profile, limits: &Limits) -> Result<Sampling, Refusal> {
    // Dividing logits by less than this cannot be told from taking the best token, but it overflows.
    const GREEDY_BELOW: f32 = 1e-4;
    let base = Sampling::default();
    let temperature = fields.number("temperature", &(0.0..=2.0))?.or(given.temperature);
    let temperature = temperature.map_or(base.temperature, to_f32);
    let top_k = fields
        .integer("top_k", &(0..=u64::from(u32::MAX)))?
        .and_then(|top_k| u32::try_from(top_k).ok());
    Ok(Sampling {
        temperature: if temperature < GREEDY_BELOW { 0.0 } else { temperature },
        top_k: top_k.or(given.top_k).unwrap_or(base.top_k),
        top_p: fields.number("top_p", &(0.0..=1.0))?.or(given.top_p).map_or(base.top_p, to_f32),
        min_p: fields.number("min_p", &(0.0..=1.0))?.or(given.min_p).map_or(base.min_p, to_f32),
        repetition_penalty: fields
            .number("repetition_penalty", &REPETITION)?
            .or(given.repetition_penalty)
            .map_or(base.repetition_penalty, to_f32),
        presence_penalty: fields
            .number("presence_penalty", &PENALTY)?
            .or(given.presence_penalty)
            .map_or(base.presence_penalty, to_f32),
        frequency_penalty: fields
            .number("frequency_penalty", &PENALTY)?
            .or(given.frequency_penalty)
            .map_or(base.frequency_penalty, to_f32),
        logit_bias: logit_bias(fields, limits)?,
        seed: fields.seed("seed")?,
    })
}

/// Presence and frequency penalties, as `OpenAI` bounds them.
pub(super) const PENALTY: RangeInclusive<f64> = -2.0..=2.0;

/// Repetition penalties: beyond these a single occurrence decides everything, and 0 would divide by nothing.
pub(super) const REPETITION: RangeInclusive<f64> = 0.1..=10.0;

/// Token ids, each with what is added to its logit.
fn logit_bias(fields: &Fields<'_>, limits: &Limits) -> Result<Vec<(u32, f32)>, Refusal> {
    let Some(biases) = fields.object("logit_bias")? else { return Ok(Vec::new()) };
    let have = biases.names().count();
    if have > limits.logit_biases {
        let message =
            format!("`logit_bias` has {have} tokens; {} are possible", limits.logit_biases);
        let number = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let refusal = Refusal::bad_request(message).with_param("logit_bias");
        return Err(refusal.with_limit(number(limits.logit_biases), number(have)));
    }
    let mut read = Vec::with_capacity(have);
    for name in biases.names() {
        // `+1` and `007` are other ways to write an id that is there already.
        let id = name.parse::<u32>().ok().filter(|id| id.to_string() == name);
        let Some(id) = id else {
            let message = format!(
                "the names in `logit_bias` must be token ids, but one is {}; `promptd model tokenize` shows them",
                shown(name)
            );
            return Err(Refusal::bad_request(message).with_param("logit_bias"));
        };
        if let Some(bias) = biases.number(name, &(-100.0..=100.0))? {
            read.push((id, to_f32(bias)));
        }
    }
    Ok(read)
}

/// Whether log probabilities are wanted, and of how many alternatives. The two APIs ask in different ways: a chat with
/// `logprobs: true` and `top_logprobs`, a completion with one number. promptd's own request is like a chat.
fn logprobs(fields: &Fields<'_>, kind: Kind) -> Result<Option<u8>, Refusal> {
    let small = |number: u64| u8::try_from(number).unwrap_or(u8::MAX);
    let top = fields.integer("top_logprobs", &(0..=20))?.filter(|top| *top > 0);
    if kind == Kind::Completion {
        if top.is_some() {
            let message = "`top_logprobs` is no field of a completion request; `logprobs` takes the number there";
            return Err(Refusal::bad_request(message).with_param("top_logprobs"));
        }
        // `false` is what the chat API's default would be.
        if fields.get("logprobs") == Some(&Value::Bool(false)) {
            return Ok(None);
        }
        return Ok(fields.integer("logprobs", &(0..=5))?.map(small));
    }
    match (fields.boolean("logprobs")?.unwrap_or(false), top) {
        (true, top) => Ok(Some(small(top.unwrap_or(0)))),
        (false, None) => Ok(None),
        (false, Some(_)) => {
            let message = "`top_logprobs` needs `logprobs` to be true";
            Err(Refusal::bad_request(message).with_param("top_logprobs"))
        }
    }
}

/// `max_tokens`, or `max_completion_tokens` as OpenAI calls it now.
fn max_tokens(fields: &Fields<'_>) -> Result<Option<u32>, Refusal> {
    let range = 1..=u64::from(u32::MAX);
    let (old, new) =
        (fields.integer("max_tokens", &range)?, fields.integer("max_completion_tokens", &range)?);
    if let (Some(old), Some(new)) = (old, new)
        && old != new
    {
        let message = format!(
            "`max_tokens` is {old}, but `max_completion_tokens` is {new}; they mean the same"
        );
        return Err(Refusal::bad_request(message).with_param("max_completion_tokens"));
    }
    Ok(new.or(old).and_then(|tokens| u32::try_from(tokens).ok()))
}

fn stop(fields: &Fields<'_>, limits: &Limits) -> Result<Option<Vec<String>>, Refusal> {
    match fields.get("stop") {
        None => Ok(None),
        Some(Value::String(stop)) => Ok(Some(vec![bounded(stop, "stop", limits.stop_bytes)?])),
        Some(Value::Array(stops)) => {
            strings(stops, "stop", limits.stop_strings, limits.stop_bytes).map(Some)
        }
        Some(other) => Err(fields.wrong("stop", "a string or an array of strings", other)),
    }
}

/// Token ids that end the answer, under the name that vLLM gives the field.
fn stop_token_ids(fields: &Fields<'_>, limits: &Limits) -> Result<Vec<u32>, Refusal> {
    const NAME: &str = "stop_token_ids";
    let list = fields.array(NAME)?.unwrap_or_default();
    if list.len() > limits.stop_strings {
        let (most, have) = (limits.stop_strings, list.len());
        let message = format!("`{NAME}` has {have} token ids; {most} are possible");
        let number = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let refusal = Refusal::bad_request(message).with_param(NAME);
        return Err(refusal.with_limit(number(most), number(have)));
    }
    let read = |(i, value): (usize, &Value)| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| super::fields::wrong(&format!("{NAME}[{i}]"), "a token id", value))
    };
    list.iter().enumerate().map(read).collect()
}

fn context_overflow(fields: &Fields<'_>) -> Result<ContextOverflow, Refusal> {
    match fields.string("context_overflow")? {
        None | Some("stop") => Ok(ContextOverflow::Stop),
        Some("slide") => Ok(ContextOverflow::Slide),
        Some(other) => {
            Err(fields.wrong("context_overflow", "\"stop\" or \"slide\"", &Value::from(other)))
        }
    }
}

pub(super) fn priority(fields: &Fields<'_>) -> Result<Option<Priority>, Refusal> {
    let Some(name) = fields.string("priority")? else { return Ok(None) };
    let unknown =
        || fields.wrong("priority", "\"low\", \"normal\" or \"high\"", &Value::from(name));
    priority_by_name(name).map(Some).ok_or_else(unknown)
}

/// The form of the answer as the request asks for it.
fn constraint(fields: &Fields<'_>, limits: &Limits) -> Result<Constraint, Refusal> {
    let format = response_format(fields)?;
    let regex = fields
        .string("regex")?
        .map(|regex| bounded(regex, "regex", limits.regex_bytes))
        .transpose()?;
    let choices = fields.array("choices")?;
    let choices = choices
        .map(|list| strings(list, "choices", limits.choices, limits.choice_bytes))
        .transpose()?;
    let grammar = fields
        .string("grammar")?
        .map(|grammar| bounded(grammar, "grammar", limits.grammar_bytes))
        .transpose()?;
    let mut wanted: Vec<Constraint> = Vec::new();
    wanted.extend(Some(format).filter(|format| *format != Constraint::None));
    wanted.extend(regex.map(Constraint::Regex));
    if let Some(choices) = choices {
        if choices.is_empty() {
            return Err(Refusal::bad_request("`choices` has no string to choose from")
                .with_param("choices"));
        }
        wanted.push(Constraint::Choices(choices));
    }
    wanted.extend(grammar.map(Constraint::Lark));
    match (wanted.pop(), wanted.is_empty()) {
        (None, _) => Ok(Constraint::None),
        (Some(one), true) => Ok(one),
        (Some(one), false) => {
            let message = "only one of `response_format`, `regex`, `choices` and `grammar` can hold at a time";
            Err(Refusal::bad_request(message).with_param(param_of(&one)))
        }
    }
}

fn response_format(fields: &Fields<'_>) -> Result<Constraint, Refusal> {
    let Some(format) = fields.object("response_format")? else { return Ok(Constraint::None) };
    let Some(kind) = format.string("type")? else {
        return Err(format.missing("type", "\"text\", \"json_object\" or \"json_schema\""));
    };
    let known: &[&str] = if kind == "json_schema" { &["type", "json_schema"] } else { &["type"] };
    refuse_unknown(&format, known)?;
    match kind {
        "text" => Ok(Constraint::None),
        "json_object" => Ok(Constraint::JsonObject),
        "json_schema" => {
            let what = "an object with the schema in `schema`";
            let holder =
                format.object("json_schema")?.ok_or_else(|| format.missing("json_schema", what))?;
            refuse_unknown(&holder, &["name", "description", "schema", "strict"])?;
            // A name, a description and `strict` change nothing here: every schema is kept strictly.
            holder.string("name")?;
            holder.string("description")?;
            holder.boolean("strict")?;
            let schema =
                holder.get("schema").ok_or_else(|| holder.missing("schema", "a JSON Schema"))?;
            if !schema.is_object() && !schema.is_boolean() {
                return Err(holder.wrong("schema", "a JSON Schema", schema));
            }
            Ok(Constraint::JsonSchema(schema.to_string()))
        }
        "grammar" | "regex" | "structural_tag" => {
            let message = format!(
                "`response_format` of type `{kind}` is not supported; there are the fields `regex`, `choices` and `grammar`"
            );
            Err(Refusal::new(Code::Unsupported, message).with_param("response_format.type"))
        }
        _ => Err(format.wrong(
            "type",
            "\"text\", \"json_object\" or \"json_schema\"",
            &Value::from(kind),
        )),
    }
}

/// The field that asks for a form.
fn param_of(constraint: &Constraint) -> &'static str {
    match constraint {
        Constraint::Regex(_) => "regex",
        Constraint::Choices(_) => "choices",
        Constraint::Lark(_) => "grammar",
        Constraint::None | Constraint::JsonObject | Constraint::JsonSchema(_) => "response_format",
    }
}

/// A profile's form of the answer always holds, and a request cannot bring another one along.
fn held(asked: Constraint, profile: Option<(&str, &Profile)>) -> Result<Constraint, Refusal> {
    let Some((name, profile)) = profile else { return Ok(asked) };
    match (profile.constraint(), asked) {
        (Constraint::None, asked) => Ok(asked),
        (held, Constraint::None) => Ok(held),
        (held, asked) if held == asked => Ok(held),
        (_, asked) => {
            let param = param_of(&asked);
            let message = format!(
                "the profile {} already says what form its answers have; leave `{param}` out",
                shown(name)
            );
            Err(Refusal::bad_request(message).with_param(param))
        }
    }
}

fn strings(list: &[Value], name: &str, most: usize, bytes: usize) -> Result<Vec<String>, Refusal> {
    if list.len() > most {
        let message = format!("`{name}` has {} strings; {most} are possible", list.len());
        let (limit, have) = (
            u64::try_from(most).unwrap_or(u64::MAX),
            u64::try_from(list.len()).unwrap_or(u64::MAX),
        );
        return Err(Refusal::bad_request(message).with_param(name).with_limit(limit, have));
    }
    let read = |(i, value): (usize, &Value)| {
        let path = format!("{name}[{i}]");
        let text = value.as_str().ok_or_else(|| super::fields::wrong(&path, "a string", value))?;
        bounded(text, &path, bytes)
    };
    list.iter().enumerate().map(read).collect()
}

fn bounded(text: &str, path: &str, bytes: usize) -> Result<String, Refusal> {
    if text.is_empty() || text.len() > bytes {
        let message = format!("`{path}` has {} bytes; 1 to {bytes} are possible", text.len());
        return Err(Refusal::bad_request(message).with_param(path));
    }
    Ok(text.to_owned())
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the range was checked, only digits behind the seventh are lost"
)]
fn to_f32(number: f64) -> f32 {
    number as f32
}

#[cfg(test)]
#[path = "generation_tests.rs"]
mod tests;
