//! The newest values of MQTT topics, and how a profile puts them into a prompt: "greenhouse/temperature = 21.5 °C, 12 s ago".

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::limits::Limits;
use crate::request::Refusal;

/// A message larger than this is no reading. Devices publish their whole state as JSON; that has some hundred bytes.
const MAX_PAYLOAD_BYTES: usize = 16 << 10;

/// A value longer than this is no reading either; the model is told so.
const MAX_VALUE_CHARS: usize = 200;

/// Topics of one profile: each is a line that the model reads for every prompt.
const MAX_TOPICS: usize = 64;

/// The line of a value, where the profile has no other.
const LINE: &str = "{name} = {value}, {age} ago";

/// A topic whose newest value goes into the prompts of a profile. In the file a topic alone, or a table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(from = "Written")]
#[schemars(with = "Written")]
pub struct ContextTopic {
    /// The topic, without wildcards.
    pub topic: String,
    /// What the model reads as its name. Absent: the topic.
    pub name: Option<String>,
    /// What stands behind the value: `°C`.
    pub unit: Option<String>,
    /// Where in a JSON payload the value is, as a JSON pointer (RFC 6901): `/temperature`. Absent: the payload is the value.
    pub pointer: Option<String>,
    /// After how many seconds a value is no longer true. Absent: the profile's `context_max_age_seconds`.
    pub max_age_seconds: Option<u32>,
}

impl ContextTopic {
    /// How old its value may be, where the profile says this of all.
    fn most(&self, profile: Option<u32>) -> Option<Duration> {
        self.max_age_seconds.or(profile).map(|seconds| Duration::from_secs(seconds.into()))
    }
}

/// How old a topic's value is, for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadingAge {
    /// The topic.
    pub topic: String,
    /// `None`: none came yet, or it was deleted.
    pub age: Option<Duration>,
    /// Whether it is too old for at least one profile that names it.
    pub stale: bool,
}

/// `[{"topic":"greenhouse/temperature","age_s":12,"stale":false}]`
pub fn context_object(ages: &[ReadingAge]) -> Value {
    let one = |reading: &ReadingAge| {
        let age = reading.age.map(|age| age.as_secs());
        serde_json::json!({"topic": reading.topic, "age_s": age, "stale": reading.stale})
    };
    ages.iter().map(one).collect()
}

/// A topic, or a table that says more of it.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "ContextTopic")]
enum Written {
    Topic(String),
    Table(Table),
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "ContextTopicTable")]
struct Table {
    /// The topic, without wildcards.
    topic: String,
    /// What the model reads as its name.
    name: Option<String>,
    /// What stands behind the value.
    unit: Option<String>,
    /// Where in a JSON payload the value is, as a JSON pointer.
    pointer: Option<String>,
    /// After how many seconds a value is no longer true.
    #[schemars(range(min = 1))]
    max_age_seconds: Option<u32>,
}

impl From<Written> for ContextTopic {
    fn from(written: Written) -> Self {
        match written {
            Written::Topic(topic) => ContextTopic { topic, ..ContextTopic::default() },
            Written::Table(Table { topic, name, unit, pointer, max_age_seconds }) => {
                ContextTopic { topic, name, unit, pointer, max_age_seconds }
            }
        }
    }
}

/// Checks the topics of a profile.
///
/// # Errors
/// `bad_request` with the key as `param`.
pub(super) fn check(
    topics: &[ContextTopic],
    line: Option<&str>,
    limits: &Limits,
) -> Result<(), Refusal> {
    let bad = |key: &str, message: String| Err(Refusal::bad_request(message).with_param(key));
    if topics.len() > MAX_TOPICS {
        return bad("context_topics", format!("`context_topics` may have {MAX_TOPICS} topics"));
    }
    if topics.iter().any(|topic| topic.max_age_seconds == Some(0)) {
        let message =
            "`max_age_seconds` must be at least 1; without it a value is used however old it is";
        return bad("context_topics", message.to_owned());
    }
    for ContextTopic { topic, pointer, .. } in topics {
        let shown = topic.escape_debug();
        if topic.is_empty()
            || topic.len() > limits.topic_bytes
            || topic.contains(['+', '#'])
            || topic.chars().any(char::is_control)
        {
            let message = format!(
                "`{shown}` must be one topic of 1 to {} bytes, without `+`, `#` and control characters",
                limits.topic_bytes
            );
            return bad("context_topics", message);
        }
        if let Some(pointer) = pointer.as_ref().filter(|pointer| !pointer.starts_with('/')) {
            let message = format!(
                "the pointer `{}` of `{shown}` must begin with `/`",
                pointer.escape_debug()
            );
            return bad("context_topics", message);
        }
    }
    match line {
        Some(line) if !line.contains("{value}") || line.contains('\n') => {
            bad("context_line", "`context_line` must be one line with `{value}` in it".to_owned())
        }
        Some(_) if topics.is_empty() => bad(
            "context_line",
            "`context_line` says how values are written, but there are no `context_topics`"
                .to_owned(),
        ),
        _ => Ok(()),
    }
}

/// The newest message of each topic that a profile names. Bounded by those topics.
#[derive(Debug, Default)]
pub struct Readings {
    // A std lock: held for one map operation, never across an await.
    newest: Mutex<BTreeMap<String, Option<Reading>>>,
}

#[derive(Clone, Debug)]
struct Reading {
    text: String,
    at: Instant,
}

impl Readings {
    /// Keeps the values of these topics from now on, and forgets all others.
    pub fn follow(&self, topics: &BTreeSet<String>) {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        newest.retain(|topic, _| topics.contains(topic));
        for topic in topics {
            newest.entry(topic.clone()).or_default();
        }
    }

    /// A message came. Says whether its topic is one that is followed. What is no text or too large is forgotten, and
    /// an empty message, as it deletes a retained one, is no value any more.
    pub fn note(&self, topic: &str, payload: &[u8], now: Instant) -> bool {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(reading) = newest.get_mut(topic) else { return false };
        let text = std::str::from_utf8(payload).ok();
        let text = text.filter(|text| text.len() <= MAX_PAYLOAD_BYTES && !text.trim().is_empty());
        *reading = text.map(|text| Reading { text: text.to_owned(), at: now });
        true
    }

    /// The lines for a prompt: one for each topic that has a value which is young enough, in the order of the profile.
    pub(super) fn lines(
        &self,
        topics: &[ContextTopic],
        line: Option<&str>,
        most: Option<u32>,
        now: Instant,
    ) -> Option<String> {
        let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let written = topics.iter().filter_map(|topic| {
            let reading = newest.get(&topic.topic)?.as_ref()?;
            let value = value(&reading.text, topic.pointer.as_deref())?;
            let old = now.saturating_duration_since(reading.at);
            if topic.most(most).is_some_and(|most| old > most) {
                return None;
            }
            Some(fill(line.unwrap_or(LINE), topic, &value, &age(old)))
        });
        let lines: Vec<String> = written.collect();
        (!lines.is_empty()).then(|| lines.join("\n"))
    }

    /// How old the values are of what profiles name, each topic once. `topics` come with what their profile says of all.
    pub(super) fn ages<'a>(
        &self,
        topics: impl Iterator<Item = (&'a ContextTopic, Option<u32>)>,
        now: Instant,
    ) -> Vec<ReadingAge> {
        let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ages = BTreeMap::<&str, ReadingAge>::new();
        for (topic, most) in topics {
            let reading = newest.get(&topic.topic).and_then(Option::as_ref);
            let old = reading.map(|reading| now.saturating_duration_since(reading.at));
            let none = || ReadingAge { topic: topic.topic.clone(), age: old, stale: false };
            let entry = ages.entry(&topic.topic).or_insert_with(none);
            entry.stale |= old.zip(topic.most(most)).is_some_and(|(old, most)| old > most);
        }
        ages.into_values().collect()
    }
}

/// The value in a payload; `None` where the pointer leads nowhere.
fn value(text: &str, pointer: Option<&str>) -> Option<String> {
    let text = match pointer {
        None => text.trim().to_owned(),
        Some(pointer) => match serde_json::from_str::<Value>(text).ok()?.pointer(pointer)? {
            Value::Null => return None,
            Value::String(text) => text.clone(),
            other => other.to_string(),
        },
    };
    if text.chars().nth(MAX_VALUE_CHARS).is_some() {
        return Some("(too long)".to_owned());
    }
    // A value stays on its line, so that no device can pretend to be another one.
    let is_break = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}');
    let line: String = text.chars().map(|c| if is_break(c) { ' ' } else { c }).collect();
    Some(line.trim_end().to_owned())
}

/// Puts the parts into the line in one pass, so that braces in a value mean nothing.
fn fill(line: &str, topic: &ContextTopic, value: &str, age: &str) -> String {
    let name = topic.name.as_deref().unwrap_or(&topic.topic);
    let unit = topic.unit.as_deref().map(|unit| format!(" {unit}")).unwrap_or_default();
    let mut filled = String::new();
    let mut rest = line;
    while let Some(at) = rest.find('{') {
        let (before, from) = rest.split_at(at);
        filled.push_str(before);
        let parts =
            [("{name}", name), ("{value}", value), ("{age}", age), ("{topic}", &topic.topic)];
        rest = if let Some((mark, part)) = parts.iter().find(|(mark, _)| from.starts_with(mark)) {
            filled.push_str(part);
            if *mark == "{value}" {
                filled.push_str(&unit);
            }
            from.get(mark.len()..).unwrap_or_default()
        } else {
            filled.push('{');
            from.get(1..).unwrap_or_default()
        };
    }
    filled + rest
}

/// A time as people say it.
fn age(age: Duration) -> String {
    match age.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topics(text: &str) -> Vec<ContextTopic> {
        #[derive(Deserialize)]
        struct File {
            t: Vec<ContextTopic>,
        }
        toml::from_str::<File>(text).unwrap().t
    }

    fn following(topics: &[ContextTopic]) -> Readings {
        let readings = Readings::default();
        readings.follow(&topics.iter().map(|topic| topic.topic.clone()).collect());
        readings
    }

    #[test]
    fn values_with_unit_and_age() {
        let topics = topics(
            "t = [{topic = \"greenhouse/temperature\", unit = \"°C\"}, \"garage/door\", \"never/seen\", \
             {topic = \"zigbee2mqtt/attic\", name = \"attic humidity\", unit = \"%\", pointer = \"/humidity\"}]",
        );
        let (readings, now) = (following(&topics), Instant::now());
        let later = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(readings.lines(&topics, None, None, now), None);
        assert!(readings.note("greenhouse/temperature", b"20", now));
        assert!(readings.note("greenhouse/temperature", b" 21.5\n", later(1)));
        assert!(readings.note("garage/door", b"open", now));
        assert!(readings.note("zigbee2mqtt/attic", br#"{"humidity":48,"battery":90}"#, later(13)));
        assert!(!readings.note("other", b"1", now));
        assert_eq!(
            readings.lines(&topics, None, None, later(13)).unwrap(),
            "greenhouse/temperature = 21.5 °C, 12 s ago\ngarage/door = open, 13 s ago\n\
             attic humidity = 48 %, 0 s ago"
        );
        assert_eq!(
            readings
                .lines(
                    &topics[..1],
                    Some("{{name}}: {value} ({topic}, {age}) {x"),
                    None,
                    later(601)
                )
                .unwrap(),
            "{greenhouse/temperature}: 21.5 °C (greenhouse/temperature, 10 min) {x"
        );
        // Deleted, no text, and no JSON where JSON should be.
        readings.note("greenhouse/temperature", b"", now);
        readings.note("garage/door", b"\xff", now);
        readings.note("zigbee2mqtt/attic", b"offline", now);
        assert_eq!(readings.lines(&topics, None, None, now), None);
    }

    #[test]
    fn a_value_cannot_pretend_to_be_another_line() {
        let topics = topics("t = [\"a\"]");
        let (readings, now) = (following(&topics), Instant::now());
        readings.note("a", "1\nb = {age}\u{2028}".as_bytes(), now);
        assert_eq!(
            readings.lines(&topics, Some("{name} = {value}"), None, now).unwrap(),
            "a = 1 b = {age}"
        );
        readings.note("a", "x".repeat(201).as_bytes(), now);
        assert_eq!(readings.lines(&topics, Some("{value}"), None, now).unwrap(), "(too long)");
    }

    #[test]
    fn what_is_too_old_is_not_used_and_told() {
        let topics = topics("t = [\"a\", {topic = \"b\", max_age_seconds = 60}, \"never\"]");
        let (readings, now) = (following(&topics), Instant::now());
        let later = |seconds| now + Duration::from_secs(seconds);
        readings.note("a", b"1", now);
        readings.note("b", b"2", now);
        let lines = |most, at| readings.lines(&topics, Some("{name} {value}"), most, later(at));
        assert_eq!(lines(None, 60).as_deref(), Some("a 1\nb 2"));
        assert_eq!(lines(None, 61).as_deref(), Some("a 1"), "its own bound");
        assert_eq!(lines(Some(10), 11).as_deref(), Some("b 2"), "goes before the profile's");
        assert_eq!(lines(Some(10), 61), None);
        let told = readings.ages(topics.iter().map(|topic| (topic, Some(100))), later(61));
        let short: Vec<_> = told
            .iter()
            .map(|one| (&*one.topic, one.age.map(|age| age.as_secs()), one.stale))
            .collect();
        let expected = [("a", Some(61), false), ("b", Some(61), true), ("never", None, false)];
        assert_eq!(short, expected);
        // The next value counts again.
        readings.note("b", b"3", later(61));
        assert_eq!(lines(Some(10), 62).as_deref(), Some("b 3"));
    }

    #[test]
    fn what_no_profile_names_is_forgotten() {
        let topics = topics("t = [\"a\", \"b\"]");
        let (readings, now) = (following(&topics), Instant::now());
        readings.note("a", b"1", now);
        readings.note("b", b"2", now);
        readings.follow(&BTreeSet::from(["b".to_owned()]));
        readings.follow(&BTreeSet::from(["a".to_owned(), "b".to_owned()]));
        assert_eq!(readings.lines(&topics, Some("{value}"), None, now).unwrap(), "2");
    }

    #[test]
    fn wrong_topics() {
        let limits = Limits::default();
        for (text, line, key) in [
            ("t = [\"a/#\"]", None, "context_topics"),
            ("t = [\"\"]", None, "context_topics"),
            ("t = [{topic = \"a\", pointer = \"x\"}]", None, "context_topics"),
            ("t = [\"a\"]", Some("no value"), "context_line"),
            ("t = []", Some("{value}"), "context_line"),
            ("t = [{topic = \"a\", max_age_seconds = 0}]", None, "context_topics"),
        ] {
            let refusal = check(&topics(text), line, &limits).unwrap_err();
            assert_eq!(refusal.param.as_deref(), Some(key), "{text}");
        }
        check(&topics("t = [\"a\"]"), Some("{value}!"), &limits).unwrap();
    }
}
