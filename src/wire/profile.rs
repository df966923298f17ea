//! Profiles: named sets of defaults that the operator writes and askers choose by name.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer};

use super::generation::{PENALTY, REPETITION};
use super::limits::Limits;
use super::names;
use super::readings::{self, ContextTopic, ReadingAge, Readings};
use crate::request::{Code, Constraint, Identity, Priority, Refusal};

/// Defaults for the prompts that name this profile. A request may override each of them, unless the profile is `fixed`,
/// and never the constraint: what a profile says of the answer's form always holds, so that whatever listens on the other
/// side can rely on it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Profile {
    /// The system message in front of the question.
    pub system: Option<String>,
    /// The JSON Schema that answers are valid against, as its source text.
    pub schema: Option<String>,
    /// The regular expression that answers match whole.
    pub regex: Option<String>,
    /// The strings of which an answer is one.
    pub choices: Vec<String>,
    /// The grammar that answers follow, in llguidance's variant of Lark.
    pub grammar: Option<String>,
    /// The most tokens of an answer.
    pub max_tokens: Option<u32>,
    /// Sampling temperature, 0 to 2.
    pub temperature: Option<f64>,
    /// Nucleus sampling, 0 to 1.
    pub top_p: Option<f64>,
    /// Tokens to choose from; 0 takes all.
    pub top_k: Option<u32>,
    /// Least probability relative to the best token, 0 to 1.
    pub min_p: Option<f64>,
    /// Penalty on all tokens that came, 0.1 to 10; 1 is none.
    pub repetition_penalty: Option<f64>,
    /// Penalty on tokens that the answer holds, -2 to 2.
    pub presence_penalty: Option<f64>,
    /// The same for each time that it holds them, -2 to 2.
    pub frequency_penalty: Option<f64>,
    /// Strings that end an answer.
    pub stop: Vec<String>,
    /// After how long an answer is worthless; `timeout_ms` in the file.
    #[serde(rename = "timeout_ms", deserialize_with = "milliseconds")]
    #[schemars(with = "Option<u64>")]
    pub timeout: Option<Duration>,
    /// How urgent the prompts are: `low`, `normal` or `high`.
    #[serde(deserialize_with = "priority")]
    #[schemars(with = "Option<crate::identity::PriorityName>")]
    pub priority: Option<Priority>,
    /// Whether a request may override nothing: it brings the question alone.
    pub fixed: bool,
    /// Who may use it: names of `[clients]`, or `uid:1000` and `mqtt:NAME` for those who have no entry. Empty: everybody.
    pub clients: Vec<String>,
    /// MQTT topics whose newest values stand behind the system message.
    pub context_topics: Vec<ContextTopic>,
    /// How a value is written: `{name}`, `{value}` with its unit, `{age}`, `{topic}`.
    pub context_line: Option<String>,
    /// After how many seconds a value is no longer true: an older one has no line. Absent: never.
    #[schemars(range(min = 1))]
    pub context_max_age_seconds: Option<u32>,
}

impl Profile {
    /// Checks every value's range, with the same rules and words as a request's.
    ///
    /// # Errors
    /// `bad_request` with the key as `param`.
    pub fn check(&self, limits: &Limits) -> Result<(), Refusal> {
        let bad = |key: &str, message: String| Err(Refusal::bad_request(message).with_param(key));
        for (key, value, range) in [
            ("temperature", self.temperature, 0.0..=2.0),
            ("top_p", self.top_p, 0.0..=1.0),
            ("min_p", self.min_p, 0.0..=1.0),
            ("repetition_penalty", self.repetition_penalty, REPETITION),
            ("presence_penalty", self.presence_penalty, PENALTY),
            ("frequency_penalty", self.frequency_penalty, PENALTY),
        ] {
            if let Some(value) = value.filter(|value| !range.contains(value)) {
                let (low, high) = (range.start(), range.end());
                return bad(
                    key,
                    format!("`{key}` must be a number from {low} to {high}, but is {value}"),
                );
            }
        }
        if self.max_tokens == Some(0) {
            return bad("max_tokens", "`max_tokens` must be at least 1".to_owned());
        }
        if let Some(timeout) =
            self.timeout.filter(|timeout| timeout.is_zero() || *timeout > limits.timeout)
        {
            let (most, is) = (limits.timeout.as_millis(), timeout.as_millis());
            return bad(
                "timeout_ms",
                format!("`timeout_ms` must be from 1 to {most}, but is {is}"),
            );
        }
        if self.stop.len() > limits.stop_strings {
            let (most, are) = (limits.stop_strings, self.stop.len());
            return bad("stop", format!("`stop` may have {most} strings, but has {are}"));
        }
        if self.stop.iter().any(|stop| stop.is_empty() || stop.len() > limits.stop_bytes) {
            return bad(
                "stop",
                format!("each string of `stop` must have 1 to {} bytes", limits.stop_bytes),
            );
        }
        readings::check(&self.context_topics, self.context_line.as_deref(), limits)?;
        if self.context_max_age_seconds == Some(0) {
            let message = "`context_max_age_seconds` must be at least 1; without it a value is used however old it is";
            return bad("context_max_age_seconds", message.to_owned());
        }
        self.check_constraint(limits)
    }

    /// Whether this one may use the profile of this name.
    ///
    /// # Errors
    /// `forbidden` for `profile`.
    pub(super) fn check_client(&self, name: &str, identity: &Identity) -> Result<(), Refusal> {
        if self.clients.is_empty() || self.clients.contains(&identity.0) {
            return Ok(());
        }
        let message = format!("`{}` may not use the profile {}", identity.0, names::shown(name));
        Err(Refusal::new(Code::Forbidden, message).with_param("profile"))
    }

    /// Refuses what a request sets although the profile is fixed.
    ///
    /// # Errors
    /// `forbidden`, with the field as `param`.
    pub(super) fn check_fixed<'a>(
        &self,
        name: &str,
        mut set: impl Iterator<Item = &'a str>,
    ) -> Result<(), Refusal> {
        let Some(field) = set.find(|field| self.fixed && !QUESTION.contains(field)) else {
            return Ok(());
        };
        let message = format!("the profile {} is fixed; leave `{field}` out", names::shown(name));
        Err(Refusal::new(Code::Forbidden, message).with_param(field))
    }

    /// The system message with the newest values behind it.
    pub(super) fn system_with_context(
        &self,
        system: Option<&str>,
        readings: &Readings,
        now: Instant,
    ) -> Option<String> {
        let lines = readings.lines(
            &self.context_topics,
            self.context_line.as_deref(),
            self.context_max_age_seconds,
            now,
        );
        match (system, lines) {
            (Some(system), Some(lines)) => {
                Some(format!("{}\n{lines}", system.trim_end_matches('\n')))
            }
            (system, lines) => lines.or_else(|| system.map(str::to_owned)),
        }
    }

    fn check_constraint(&self, limits: &Limits) -> Result<(), Refusal> {
        let bad = |key: &str, message: String| Err(Refusal::bad_request(message).with_param(key));
        let given = [
            self.schema.is_some(),
            self.regex.is_some(),
            !self.choices.is_empty(),
            self.grammar.is_some(),
        ];
        if given.into_iter().filter(|given| *given).count() > 1 {
            return bad(
                "schema",
                "only one of `schema`, `regex`, `choices` and `grammar` can hold at a time"
                    .to_owned(),
            );
        }
        if let Some(schema) = &self.schema {
            match serde_json::from_str::<serde_json::Value>(schema) {
                Ok(value) if value.is_object() || value.is_boolean() => {}
                Ok(_) => return bad("schema", "`schema` must be a JSON object".to_owned()),
                Err(error) => return bad("schema", format!("`schema` is no valid JSON: {error}")),
            }
        }
        if self
            .regex
            .as_ref()
            .is_some_and(|regex| regex.is_empty() || regex.len() > limits.regex_bytes)
        {
            return bad("regex", format!("`regex` must have 1 to {} bytes", limits.regex_bytes));
        }
        if self
            .grammar
            .as_ref()
            .is_some_and(|grammar| grammar.is_empty() || grammar.len() > limits.grammar_bytes)
        {
            return bad(
                "grammar",
                format!("`grammar` must have 1 to {} bytes", limits.grammar_bytes),
            );
        }
        if self.choices.len() > limits.choices {
            return bad("choices", format!("`choices` may have {} strings", limits.choices));
        }
        if self.choices.iter().any(|choice| choice.is_empty() || choice.len() > limits.choice_bytes)
        {
            return bad(
                "choices",
                format!("each string of `choices` must have 1 to {} bytes", limits.choice_bytes),
            );
        }
        Ok(())
    }

    /// The form of the answer that this profile demands.
    pub fn constraint(&self) -> Constraint {
        if let Some(schema) = &self.schema {
            Constraint::JsonSchema(schema.clone())
        } else if let Some(regex) = &self.regex {
            Constraint::Regex(regex.clone())
        } else if let Some(grammar) = &self.grammar {
            Constraint::Lark(grammar.clone())
        } else if self.choices.is_empty() {
            Constraint::None
        } else {
            Constraint::Choices(self.choices.clone())
        }
    }
}

/// The fields that a request to a fixed profile may have: the question, and what becomes of the answer on its way.
const QUESTION: &[&str] = &[
    "v",
    "id",
    "profile",
    "model",
    "prompt",
    "messages",
    "session",
    "stream",
    "stream_options",
    "format",
    "max_bytes",
    "reply_to",
    "user",
    "metadata",
    "safety_identifier",
    "prompt_cache_key",
];

/// All profiles, by name.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(transparent)]
pub struct Profiles(pub BTreeMap<String, Profile>);

impl Profiles {
    /// Checks every name and profile.
    ///
    /// # Errors
    /// The first profile that is wrong, and what is wrong with it.
    pub fn check(&self, limits: &Limits) -> Result<(), (String, Box<Refusal>)> {
        for (name, profile) in &self.0 {
            names::check_id(name, limits.id_chars)
                .map_err(|mut refusal| {
                    refusal.message = refusal
                        .message
                        .replace("`id`", "the profile's name")
                        .replace("an id", "a name");
                    refusal
                })
                .and_then(|()| profile.check(limits))
                .map_err(|refusal| (name.clone(), Box::new(refusal)))?;
        }
        Ok(())
    }

    /// All topics whose values some profile puts into prompts.
    pub fn context_topics(&self) -> BTreeSet<String> {
        let topics = self.0.values().flat_map(|profile| &profile.context_topics);
        topics.map(|topic| topic.topic.clone()).collect()
    }

    /// How old the values are that profiles put into prompts.
    pub fn context_ages(&self, readings: &Readings, now: Instant) -> Vec<ReadingAge> {
        let of = |profile: &'_ Profile| profile.context_max_age_seconds;
        let topics = self.0.values().flat_map(|profile| {
            profile.context_topics.iter().map(move |topic| (topic, of(profile)))
        });
        readings.ages(topics, now)
    }

    /// The names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// A profile by name.
    ///
    /// # Errors
    /// `not_found`, with the names there are.
    pub fn find(&self, name: &str) -> Result<&Profile, Refusal> {
        self.0.get(name).ok_or_else(|| {
            let shown = names::shown(name);
            let message = if self.0.is_empty() {
                format!("there is no profile {shown}; none is configured")
            } else {
                let known: Vec<&str> = self.names().collect();
                format!("there is no profile {shown}; there are: {}", known.join(", "))
            };
            Refusal::new(Code::NotFound, message).with_param("profile")
        })
    }
}

/// The urgency by the name JSON and the configuration use.
pub(super) fn priority_by_name(name: &str) -> Option<Priority> {
    match name {
        "low" => Some(Priority::Low),
        "normal" => Some(Priority::Normal),
        "high" => Some(Priority::High),
        _ => None,
    }
}

fn milliseconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    Ok(Option::<u64>::deserialize(deserializer)?.map(Duration::from_millis))
}

fn priority<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Priority>, D::Error> {
    let Some(name) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    let unknown = || serde::de::Error::unknown_variant(&name, &["low", "normal", "high"]);
    priority_by_name(&name).map(Some).ok_or_else(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Profiles, toml::de::Error> {
        toml::from_str(text)
    }

    #[test]
    fn a_profile_from_toml() {
        let profiles = read(
            "[lights]\nsystem = \"You switch lights.\"\nschema = '{\"type\":\"object\"}'\nmax_tokens = 64\n\
             temperature = 0\nstop = [\"\\n\"]\ntimeout_ms = 8000\npriority = \"high\"\n[chat]\n",
        )
        .unwrap();
        profiles.check(&Limits::default()).unwrap();
        let lights = profiles.find("lights").unwrap();
        assert_eq!(lights.timeout, Some(Duration::from_secs(8)));
        assert_eq!(lights.priority, Some(Priority::High));
        assert_eq!(lights.temperature, Some(0.0));
        assert_eq!(lights.constraint(), Constraint::JsonSchema("{\"type\":\"object\"}".to_owned()));
        assert_eq!(profiles.find("chat").unwrap(), &Profile::default());
        let refusal = profiles.find("light").unwrap_err();
        assert_eq!(refusal.code, Code::NotFound);
        assert!(refusal.message.ends_with("there are: chat, lights"), "{}", refusal.message);
    }

    #[test]
    fn wrong_profiles() {
        for (text, expected) in [
            ("[a]\ncolour = 1", "unknown field `colour`"),
            ("[a]\npriority = \"urgent\"", "unknown variant `urgent`"),
            ("[a]\nmax_tokens = -1", "invalid value"),
        ] {
            assert!(read(text).unwrap_err().to_string().contains(expected), "{text}");
        }
        for (text, key) in [
            ("[a]\ntemperature = 2.5", "temperature"),
            ("[a]\ntop_p = nan", "top_p"),
            ("[a]\nmin_p = -0.1", "min_p"),
            ("[a]\nrepetition_penalty = 0", "repetition_penalty"),
            ("[a]\npresence_penalty = 2.1", "presence_penalty"),
            ("[a]\nfrequency_penalty = -3", "frequency_penalty"),
            ("[a]\ngrammar = \"\"", "grammar"),
            ("[a]\nmax_tokens = 0", "max_tokens"),
            ("[a]\ntimeout_ms = 0", "timeout_ms"),
            ("[a]\nstop = [\"\"]", "stop"),
            ("[a]\nschema = \"{\"", "schema"),
            ("[a]\nschema = \"1\"", "schema"),
            ("[a]\nregex = \"a\"\nchoices = [\"a\"]", "schema"),
            ("[a]\nregex = \"\"", "regex"),
            ("[a]\nchoices = [\"\"]", "choices"),
            ("[\"a/b\"]", "id"),
        ] {
            let (_, refusal) = read(text).unwrap().check(&Limits::default()).unwrap_err();
            assert_eq!(refusal.param.as_deref(), Some(key), "{text}");
        }
    }
}
