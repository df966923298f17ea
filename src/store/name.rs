//! What a kept model is called: a name, an `@`, and which of them it is. It is the name of a folder, so little may stand in it.

use std::fmt;
use std::str::FromStr;

/// The most characters of a name or a revision: both together stay below the 255 bytes of a file's name.
const MOST: usize = 96;

/// `name@revision`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModelName {
    name: String,
    revision: String,
}

/// Why a text is no name of a model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no name of a kept model: letters, digits, `.`, `_` and `-`, beginning with a letter or digit, in both parts of `name@revision`"
)]
pub struct BadName(String);

impl ModelName {
    /// Puts the two parts together.
    ///
    /// # Errors
    /// One of them has characters that folders shall not have.
    pub fn new(name: &str, revision: &str) -> Result<Self, BadName> {
        if is_plain(name) && is_plain(revision) {
            return Ok(ModelName { name: name.to_owned(), revision: revision.to_owned() });
        }
        Err(BadName(shown(&format!("{name}@{revision}"))))
    }

    /// The first part.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The second part.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// Whether somebody who typed this means it: the whole of it, its name, or its name and how its revision begins.
    pub fn answers_to(&self, typed: &str) -> bool {
        match typed.split_once('@') {
            None => self.name == typed,
            Some((name, revision)) => {
                self.name == name && !revision.is_empty() && self.revision.starts_with(revision)
            }
        }
    }
}

impl FromStr for ModelName {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        let (name, revision) = text.split_once('@').ok_or_else(|| BadName(shown(text)))?;
        ModelName::new(name, revision)
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.revision)
    }
}

/// A name made of any text: what may not stand in one becomes a `-`.
pub fn plain(text: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let text: String = text.chars().map(|c| if allowed(c) { c } else { '-' }).collect();
    let text = text.trim_start_matches(['.', '_', '-']);
    let text: String = text.chars().take(MOST).collect();
    if text.is_empty() { "model".to_owned() } else { text }
}

fn is_plain(text: &str) -> bool {
    text.len() <= MOST && plain(text) == text
}

/// As much of a text as an error shows.
fn shown(text: &str) -> String {
    text.escape_debug().take(2 * MOST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_folders_and_nothing_else() {
        let name: ModelName = "Llama-3.2-1B@4f1c".parse().unwrap();
        assert_eq!((name.name(), name.revision()), ("Llama-3.2-1B", "4f1c"));
        assert_eq!(name.to_string(), "Llama-3.2-1B@4f1c");
        for wrong in
            ["", "@", "a", "a@", "@b", "../a@b", "a@..", "a/b@c", "a@b@c", ".a@b", "a@b c", "a\0@b"]
        {
            assert!(wrong.parse::<ModelName>().is_err(), "{wrong}");
        }
        assert!(format!("a@{}", "b".repeat(97)).parse::<ModelName>().is_err());
    }

    #[test]
    fn what_is_typed_may_be_short() {
        let name: ModelName = "demo@4f1c22".parse().unwrap();
        for typed in ["demo", "demo@4f", "demo@4f1c22"] {
            assert!(name.answers_to(typed), "{typed}");
        }
        for typed in ["dem", "demo@", "demo@5", "Demo", "demo@4f1c223"] {
            assert!(!name.answers_to(typed), "{typed}");
        }
    }

    #[test]
    fn any_text_gives_a_name() {
        assert_eq!(plain("my model (q4)"), "my-model--q4-");
        assert_eq!(plain("../.."), "model");
        assert!(ModelName::new(&plain("现在/x"), &plain("")).is_ok());
    }
}
