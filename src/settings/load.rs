//! From files and variables to [`Settings`]: every mistake is told with its file, line and the nearest key that exists.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use config::{Config, FileFormat};

use super::Settings;

/// The environment as it was when the program began.
pub type Environment = HashMap<String, String>;

/// What stands in front of every variable that promptd reads as a setting.
const PREFIX: &str = "PROMPTD__";

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("cannot read the configuration `{}`; name another with `--config FILE`", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// Something in the file is wrong.
    #[error("{}:{line}:{column}: {message}", path.display())]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// What is wrong and what would be right.
        message: String,
    },
    /// A variable, or several keys together, are wrong.
    #[error("configuration: {0}")]
    Merged(String),
}

/// Reads the file, lays the variables over it and checks the whole.
///
/// # Errors
/// [`SettingsError`], with file, line and column where they are known.
pub fn load(path: &Path, environment: &Environment) -> Result<Settings, SettingsError> {
    let unreadable = |source| SettingsError::Unreadable { path: path.to_owned(), source };
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    let overrides = overrides(environment);
    let table: toml::Table = toml::from_str(&text).map_err(|error| located(path, &text, &error))?;
    check_keys(path, &text, &overrides, &table)?;

    let variables = config::Environment::with_prefix("PROMPTD")
        .prefix_separator("__")
        .separator("__")
        .try_parsing(true)
        .ignore_empty(true)
        .source(Some(overrides.clone()));
    let merged = Config::builder()
        .add_source(config::File::from_str(&text, FileFormat::Toml))
        .add_source(variables)
        .build()
        .and_then(Config::try_deserialize::<Settings>);
    let settings = merged.map_err(|error| SettingsError::Merged(explain(&error.to_string())))?;
    settings.check().map_err(SettingsError::Merged)?;
    Ok(settings)
}

/// The variables that are settings.
fn overrides(environment: &Environment) -> HashMap<String, String> {
    environment
        .iter()
        .filter(|(name, _)| name.starts_with(PREFIX))
        .map(|(n, v)| (n.clone(), v.clone()))
        .collect()
}

/// Reads the file alone, for its mistakes have a line. A required key may be missing here if a variable brings it.
fn check_keys(
    path: &Path,
    text: &str,
    overrides: &HashMap<String, String>,
    table: &toml::Table,
) -> Result<(), SettingsError> {
    let Err(error) = toml::from_str::<Settings>(text) else { return Ok(()) };
    if !error.message().starts_with("missing field") {
        return Err(located(path, text, &error));
    }
    // `missing field` hides nothing only if the rest is right: fill the keys in that have no default and look again.
    let mut filled = table.clone();
    for (section, key) in [("model", "path"), ("mqtt", "url")] {
        let variable = format!("{PREFIX}{}__{}", section.to_uppercase(), key.to_uppercase());
        if overrides.contains_key(&variable) {
            let entry = filled.entry(section).or_insert_with(|| toml::Table::new().into());
            if let Some(section) = entry.as_table_mut() {
                section.entry(key).or_insert_with(|| "given by a variable".into());
            }
        }
    }
    match filled.try_into::<Settings>() {
        Ok(_) => Ok(()),
        // The line numbers belong to the text as it is, so its own error is the one to show.
        Err(_) => Err(located(path, text, &error)),
    }
}

/// A TOML error with its place, and the nearest known key where one was unknown.
fn located(path: &Path, text: &str, error: &toml::de::Error) -> SettingsError {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or("");
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
    SettingsError::Invalid {
        path: path.to_owned(),
        line,
        column,
        message: explain(error.message()),
    }
}

/// serde's "unknown field `a`, expected one of `b`, `c`" in words that help.
fn explain(message: &str) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn load_text(text: &str, variables: &[(&str, &str)]) -> Result<Settings, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let environment =
            variables.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        load(file.path(), &environment).map_err(|error| {
            let text = error.to_string();
            text.rsplit_once(&*file.path().file_name().unwrap().to_string_lossy())
                .map_or(text.clone(), |(_, rest)| rest.trim_start_matches(':').to_owned())
        })
    }

    const SMALL: &str = "[model]\npath = \"/m\"\n[socket]\npath = \"/s\"\n";

    #[test]
    fn a_small_file_has_sensible_defaults() {
        let settings = load_text(SMALL, &[]).unwrap();
        assert_eq!(settings.model.path, Path::new("/m"));
        assert_eq!(
            (settings.model.slots, settings.queue.limit, settings.limits.payload_bytes),
            (4, 256, 1 << 20)
        );
        assert!(settings.mqtt.is_none());
    }

    #[test]
    fn variables_override_the_file() {
        let variables = [
            ("PROMPTD__MODEL__PATH", "/other"),
            ("PROMPTD__RUNTIME__THREADS", "3"),
            ("PROMPTD__MQTT__URL", "mqtt://localhost:1"),
            ("PROMPTD__MQTT__NODE", "7"),
            ("HOME", "/root"),
        ];
        let settings = load_text(SMALL, &variables).unwrap();
        assert_eq!(settings.model.path, Path::new("/other"));
        assert_eq!(settings.runtime.threads, 3);
        let mqtt = settings.mqtt.unwrap();
        assert_eq!(
            (mqtt.url.as_deref(), mqtt.node.as_deref()),
            (Some("mqtt://localhost:1"), Some("7"))
        );
    }

    #[test]
    fn a_required_key_may_come_from_a_variable_alone() {
        let settings =
            load_text("[socket]\npath = \"/s\"\n", &[("PROMPTD__MODEL__PATH", "/m")]).unwrap();
        assert_eq!(settings.model.path, Path::new("/m"));
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        let table = [
            (
                "[model]\npath = \"/m\"\nslotz = 2\n[socket]\npath=\"/s\"",
                "3:1: unknown key `slotz`; did you mean `slots`?",
            ),
            ("[modle]\npath = \"/m\"\n", "1:2: unknown key `modle`; did you mean `model`?"),
            ("[model]\npath = \"/m\"\n[qqqqqqq]\n", "3:2: unknown key `qqqqqqq`; known here: "),
            (
                "[model]\npath = \"/m\"\nslots = \"many\"\n",
                "3:9: invalid type: string \"many\", expected u16",
            ),
            ("[model\n", "1:7: "),
            ("[model]\npath = \"/m\"\nslots = 70000\n", "3:9: "),
            ("[socket]\npath = \"/s\"\n", "missing field `model`"),
            ("[model]\npath = \"/m\"\n", "no door is open"),
            (
                "[model]\npath = \"/m\"\nslots = 0\n[socket]\npath = \"/s\"\n",
                "`model.slots` is 0; it must be between 1 and 64",
            ),
            (
                "[model]\npath = \"/m\"\n[socket]\npath = \"/s\"\n[state]\ndurability = \"disk\"\n",
                "there is no `state.dir`",
            ),
            (
                "[model]\npath = \"/m\"\n[state]\ndurability = \"spool\"\n",
                "4:14: unknown variant `spool`",
            ),
            ("[model]\npath = \"/m\"\n[log]\nformat = \"xml\"\n", "4:10: unknown variant `xml`"),
        ];
        for (text, wanted) in table {
            let got = load_text(text, &[]).unwrap_err();
            assert!(got.contains(wanted), "{text}\ngave {got}\nnot  {wanted}");
        }
    }

    #[test]
    fn an_unknown_variable_is_refused_too() {
        let got = load_text(SMALL, &[("PROMPTD__QUEUE__LIMITT", "3")]).unwrap_err();
        assert!(got.contains("limitt") && got.contains("did you mean `limit`"), "{got}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let got = load(Path::new("/nowhere.toml"), &HashMap::new()).unwrap_err();
        assert!(got.to_string().contains("/nowhere.toml") && got.to_string().contains("--config"));
    }
}
