//! What is wrong with a configuration: each mistake with its place, and the nearest key that exists.

use std::path::PathBuf;

use serde::Serialize;

use super::layers::Origin;

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mistake {
    /// Where it was written.
    #[serde(flatten)]
    pub origin: Origin,
    /// What is wrong and what would be right.
    pub message: String,
}

impl std::fmt::Display for Mistake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.origin, self.message)
    }
}

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A file cannot be read.
    #[error("cannot read the configuration `{}`; name another with `--config FILE`", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// Something that was written is wrong. There is one mistake at least.
    #[error("{}", first(.0))]
    Invalid(Vec<Mistake>),
}

/// The first mistake and how many more there are.
fn first(mistakes: &[Mistake]) -> String {
    let first = mistakes.first().map(ToString::to_string).unwrap_or_default();
    match mistakes.len() {
        0 | 1 => first,
        n => format!("{first} (and {} more: `promptd config check` tells them all)", n - 1),
    }
}

/// serde's "unknown field `a`, expected one of `b`, `c`" in words that help.
pub(super) fn explain(message: &str) -> String {
    let message = message.trim();
    let Some(rest) = message.strip_prefix("unknown field `") else { return message.to_owned() };
    let mut quoted = rest.split('`').step_by(2);
    let unknown = quoted.next().unwrap_or_default();
    let known: Vec<&str> = quoted.filter(|key| !key.is_empty()).collect();
    let nearest = known
        .iter()
        .map(|key| (strsim::damerau_levenshtein(unknown, key), *key))
        .min()
        // Further than half the word is no slip of the finger.
        .filter(|(distance, key)| *distance <= key.len().max(unknown.len()) / 2);
    match nearest {
        Some((_, key)) => format!("unknown key `{unknown}`; did you mean `{key}`?"),
        None => format!("unknown key `{unknown}`; known here: {}", known.join(", ")),
    }
}
