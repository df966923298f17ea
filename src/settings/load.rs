//! From files and variables to [`Settings`]: every mistake is told with its file, line and the nearest key that exists.

use std::collections::HashMap;
use std::path::Path;

use serde_path_to_error::Segment;

use super::Settings;
use super::layers::{Layers, Part};
use super::mistakes::{Mistake, SettingsError, explain};

/// The environment as it was when the program began.
pub type Environment = HashMap<String, String>;

/// Mistakes that are told at once: a file that is wrong in more places is no configuration at all.
const MISTAKES: usize = 50;

/// Reads the file, lays those of `conf.d` beside it and the variables over it, and checks the whole.
///
/// # Errors
/// [`SettingsError`], with file, line and column where they are known.
pub fn load(path: &Path, environment: &Environment) -> Result<Settings, SettingsError> {
    let layers = Layers::read(path, environment)?;
    settings(&layers, layers.merged()?)
}

/// The settings that a merged table says.
pub(super) fn settings(layers: &Layers, mut table: toml::Table) -> Result<Settings, SettingsError> {
    let mut mistakes = Vec::new();
    while mistakes.len() < MISTAKES {
        let value = toml::Value::Table(table.clone());
        let (error, path) = match serde_path_to_error::deserialize::<_, Settings>(value) {
            Ok(settings) if mistakes.is_empty() => {
                let wrong = settings.check();
                if wrong.is_empty() {
                    return Ok(settings);
                }
                mistakes = wrong.into_iter().map(|wrong| out_of_range(layers, wrong)).collect();
                break;
            }
            Ok(_) => break,
            Err(error) => (error.inner().message().to_owned(), keys(error.path())),
        };
        if typed_variable(layers, &mut table, &path) {
            continue;
        }
        let (mistake, wrong) = located(layers, &error, path);
        mistakes.push(mistake);
        // Without it there may be more to tell.
        if !remove(&mut table, &wrong) {
            break;
        }
    }
    Err(SettingsError::Invalid(mistakes))
}

/// A place in the tree as the keys that lead to it; an array counts as one value.
fn keys(path: &serde_path_to_error::Path) -> Vec<String> {
    path.iter()
        .map_while(|segment| match segment {
            Segment::Map { key } => Some(key.clone()),
            Segment::Enum { .. } | Segment::Seq { .. } | Segment::Unknown => None,
        })
        .collect()
}

/// A variable has no type: it is a text, unless something else is wanted. `true` where it could be something else.
fn typed_variable(layers: &Layers, table: &mut toml::Table, path: &[String]) -> bool {
    let of_variable = layers.origin(path, Part::Value).is_some_and(|of| of.variable.is_some());
    let Some(toml::Value::String(text)) = of_variable.then(|| value_at(table, path)).flatten()
    else {
        return false;
    };
    let typed = text
        .parse()
        .map(toml::Value::Boolean)
        .or_else(|_| text.parse().map(toml::Value::Integer))
        .or_else(|_| text.parse().map(toml::Value::Float));
    let Ok(typed) = typed else { return false };
    if let Some(value) = value_at(table, path) {
        *value = typed;
    }
    true
}

fn value_at<'a>(table: &'a mut toml::Table, path: &[String]) -> Option<&'a mut toml::Value> {
    let (last, tables) = path.split_last()?;
    let mut at = table;
    for key in tables {
        at = at.get_mut(key)?.as_table_mut()?;
    }
    at.get_mut(last)
}

/// An error of serde with its place, and the keys of what is wrong.
fn located(layers: &Layers, error: &str, mut path: Vec<String>) -> (Mistake, Vec<String>) {
    let quoted = |prefix: &str| error.strip_prefix(prefix)?.split('`').next().map(str::to_owned);
    let mut message = explain(error);
    let mut part = Part::Value;
    if let Some(unknown) = quoted("unknown field `") {
        // The path leads to the key itself.
        if path.last() != Some(&unknown) {
            path.push(unknown);
        }
        part = Part::Key;
    } else if let Some(missing) = quoted("missing field `") {
        let key: Vec<&str> = path.iter().map(String::as_str).chain([missing.as_str()]).collect();
        message = format!("missing field `{missing}`: set `{}`", key.join("."));
        part = Part::Key;
    }
    let origin = layers.origin(&path, part).unwrap_or_else(|| layers.main_file());
    (Mistake { origin, message }, path)
}

/// A rule that a value breaks, with the place of the value. `key` is dotted.
fn out_of_range(layers: &Layers, (key, message): (String, String)) -> Mistake {
    let path: Vec<String> = key.split('.').map(str::to_owned).collect();
    let origin = layers.origin(&path, Part::Value).unwrap_or_default();
    Mistake { origin, message }
}

/// Takes a value out of the tree; `false` where it is not there.
fn remove(table: &mut toml::Table, path: &[String]) -> bool {
    let Some((last, tables)) = path.split_last() else { return false };
    if tables.is_empty() {
        return table.remove(last).is_some();
    }
    value_at(table, tables)
        .and_then(toml::Value::as_table_mut)
        .is_some_and(|table| table.remove(last).is_some())
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
