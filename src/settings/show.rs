//! The settings as they hold, with the origin of each value and without secrets: what `promptd config show` prints.

use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;
use toml::Value;

use super::layers::{Layers, Origin, Part};
use super::load::{Environment, settings};
use super::mistakes::SettingsError;

/// What stands where a secret was.
const MASK: &str = "***";

/// One value that holds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Shown {
    /// Its key, dotted.
    pub key: String,
    /// The value; a secret is masked.
    pub value: Value,
    /// Who wrote it; `None`: it is the default.
    pub origin: Option<Origin>,
    #[serde(skip)]
    path: Vec<String>,
}

/// All values that hold, those that are defaults included, in the order of their keys.
///
/// # Errors
/// [`SettingsError`]: a configuration that is wrong shows nothing.
pub fn effective(path: &Path, environment: &Environment) -> Result<Vec<Shown>, SettingsError> {
    let layers = Layers::read(path, environment)?;
    let merged = layers.merged()?;
    let settings = settings(&layers, merged.clone())?;
    // What has defaults is written out; the rest is as it was written.
    let mut whole = toml::Table::try_from(&settings).unwrap_or_default();
    lay_over(&mut whole, merged);
    let mut shown = Vec::new();
    collect(&layers, &whole, &mut Vec::new(), &mut shown);
    Ok(shown)
}

/// The values as a TOML file with a comment behind each.
pub fn as_toml(values: &[Shown]) -> String {
    let mut text = String::new();
    let mut section: &[String] = &[];
    for value in values {
        let Some((key, of)) = value.path.split_last() else { continue };
        if of != section {
            let names: Vec<String> = of.iter().map(|name| bare(name)).collect();
            let gap = if text.is_empty() { "" } else { "\n" };
            // Writing into a String cannot fail.
            let _ = writeln!(text, "{gap}[{}]", names.join("."));
            section = of;
        }
        let origin = value.origin.as_ref().map_or_else(|| "default".to_owned(), Origin::to_string);
        let _ = writeln!(text, "{} = {}  # {origin}", bare(key), value.value);
    }
    text
}

/// Puts the values of `over` into `under`, table by table.
fn lay_over(under: &mut toml::Table, over: toml::Table) {
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => lay_over(below, above),
            // A value with a type of its own is written as the settings have it.
            (Some(_), _) => {}
            (None, value) => {
                under.insert(key, value);
            }
        }
    }
}

/// Values before tables, as TOML wants them.
fn collect(layers: &Layers, table: &toml::Table, path: &mut Vec<String>, all: &mut Vec<Shown>) {
    for tables in [false, true] {
        for (name, value) in table.iter().filter(|(_, value)| value.is_table() == tables) {
            path.push(name.clone());
            if let Value::Table(inner) = value {
                collect(layers, inner, path, all);
            } else {
                let origin = layers.origin(path, Part::Key);
                let value = masked(name, value);
                all.push(Shown { key: path.join("."), value, origin, path: path.clone() });
            }
            path.pop();
        }
    }
}

/// The value, or a mask where it is or holds a secret.
fn masked(name: &str, value: &Value) -> Value {
    const SECRETS: [&str; 3] = ["password", "token", "secret"];
    let Value::String(text) = value else { return value.clone() };
    if SECRETS.iter().any(|secret| name.ends_with(secret)) {
        return MASK.into();
    }
    without_password(text).unwrap_or_else(|| text.clone()).into()
}

/// `scheme://user:***@host` for `scheme://user:password@host`.
fn without_password(text: &str) -> Option<String> {
    let (scheme, rest) = text.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let (user, _) = authority.rsplit_once('@')?;
    let (name, _) = user.split_once(':')?;
    let host = rest.get(user.len()..)?;
    Some(format!("{scheme}://{name}:{MASK}{host}"))
}

/// A key as TOML writes it: quoted where it needs that.
fn bare(key: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if !key.is_empty() && key.chars().all(plain) {
        return key.to_owned();
    }
    Value::String(key.to_owned()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_masked() {
        for (name, value, shown) in [
            ("url", "mqtt://me:pw@host:1", "mqtt://me:***@host:1"),
            ("url", "mqtts://me:p@w:x@host/a:b@c", "mqtts://me:***@host/a:b@c"),
            ("url", "mqtt://host:1", "mqtt://host:1"),
            ("url", "mqtt://me@host", "mqtt://me@host"),
            ("password", "x", "***"),
            ("hub_token", "x", "***"),
            ("password_file", "/etc/p", "/etc/p"),
        ] {
            assert_eq!(masked(name, &Value::from(value)), Value::from(shown), "{name} {value}");
        }
    }

    #[test]
    fn what_is_shown_is_a_configuration_again() {
        let folder = tempfile::tempdir().unwrap();
        let main = folder.path().join("promptd.toml");
        std::fs::write(&main, "[model]\npath = \"/m\"\n[socket]\npath = \"/s\"\n[profiles.\"a b\"]\n[profiles.x]\nstop = [\"\\n\"]\n")
            .unwrap();
        std::fs::create_dir(folder.path().join("conf.d")).unwrap();
        let drop_in = folder.path().join("conf.d/10-board.toml");
        std::fs::write(&drop_in, "[model]\nslots = 2\n[profiles.x]\ntemperature = 0.5\n").unwrap();
        let environment = Environment::from([("PROMPTD__QUEUE__LIMIT".into(), "7".into())]);
        let values = effective(&main, &environment).unwrap();
        let of = |key: &str| values.iter().find(|value| value.key == key).unwrap();
        let file = |key: &str| of(key).origin.as_ref().unwrap().to_string();
        assert_eq!(file("model.path"), format!("{}:2:1", main.display()));
        assert_eq!(file("model.slots"), format!("{}:2:1", drop_in.display()));
        assert_eq!(file("profiles.x.temperature"), format!("{}:4:1", drop_in.display()));
        assert_eq!(file("queue.limit"), "PROMPTD__QUEUE__LIMIT");
        assert_eq!(of("queue.limit").value, Value::from(7));
        assert_eq!(
            (of("model.context").origin.as_ref(), &of("model.context").value),
            (None, &Value::from(0))
        );
        let text = as_toml(&values);
        let again = folder.path().join("again/promptd.toml");
        std::fs::create_dir(folder.path().join("again")).unwrap();
        std::fs::write(&again, &text).unwrap();
        let settings = super::super::load(&again, &Environment::new()).unwrap();
        assert_eq!((settings.model.slots, settings.queue.limit), (2, 7), "{text}");
        assert_eq!(settings.profiles["x"].stop, ["\n"]);
    }
}
