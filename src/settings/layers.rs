//! The files and variables the settings are laid over one another from, and where each value came from.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use config::{Config, FileFormat};
use serde::Serialize;
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::load::Environment;
use super::mistakes::{Mistake, SettingsError, explain};

/// What stands in front of every variable that promptd reads as a setting.
const PREFIX: &str = "PROMPTD__";

/// The directory beside the file whose `*.toml` are laid over it, in the order of their names.
const DROP_INS: &str = "conf.d";

/// Where a value was written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Origin {
    /// Which file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Line, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
    /// Column in characters, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<usize>,
    /// Which environment variable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variable: Option<String>,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(variable) = &self.variable {
            return write!(f, "{variable}");
        }
        let Some(file) = &self.file else { return write!(f, "configuration") };
        write!(f, "{}", file.display())?;
        for number in [self.line, self.column].into_iter().flatten() {
            write!(f, ":{number}")?;
        }
        Ok(())
    }
}

/// Everything that was read, the lowest first.
#[derive(Debug)]
pub(super) struct Layers {
    files: Vec<Layer>,
    variables: HashMap<String, String>,
}

#[derive(Debug)]
struct Layer {
    path: PathBuf,
    text: String,
}

/// Whether the place of a key or that of its value is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Key,
    Value,
}

impl Layers {
    /// Reads the file, those in `conf.d` beside it, and the variables that are settings.
    pub(super) fn read(path: &Path, environment: &Environment) -> Result<Self, SettingsError> {
        let mut paths = vec![path.to_owned()];
        paths.extend(drop_ins(&path.with_file_name(DROP_INS))?);
        let mut files = Vec::new();
        let mut mistakes = Vec::new();
        for path in paths {
            let text = std::fs::read_to_string(&path)
                .map_err(|source| SettingsError::Unreadable { path: path.clone(), source })?;
            match DeTable::parse(&text) {
                Ok(_) => files.push(Layer { path, text }),
                Err(error) => {
                    let at = error.span().map_or(0, |span| span.start);
                    let origin = place(&path, &text, at);
                    mistakes.push(Mistake { origin, message: explain(error.message()) });
                }
            }
        }
        if !mistakes.is_empty() {
            return Err(SettingsError::Invalid(mistakes));
        }
        let settings = environment.iter().filter(|(name, _)| name.starts_with(PREFIX));
        let variables = settings.map(|(name, value)| (name.clone(), value.clone())).collect();
        Ok(Layers { files, variables })
    }

    /// All of it as one table.
    pub(super) fn merged(&self) -> Result<toml::Table, SettingsError> {
        let variables = config::Environment::with_prefix("PROMPTD")
            .prefix_separator("__")
            .separator("__")
            .ignore_empty(true)
            .source(Some(self.variables.clone()));
        let mut builder = Config::builder();
        for layer in &self.files {
            builder = builder.add_source(config::File::from_str(&layer.text, FileFormat::Toml));
        }
        let merged =
            builder.add_source(variables).build().and_then(Config::try_deserialize::<toml::Table>);
        merged.map_err(|error| {
            let message = explain(&error.to_string());
            SettingsError::Invalid(vec![Mistake { origin: Origin::default(), message }])
        })
    }

    /// Who wrote the value at this path last; `None`: nobody.
    pub(super) fn origin(&self, path: &[String], part: Part) -> Option<Origin> {
        let variable = format!("{PREFIX}{}", path.join("__").to_uppercase());
        if self.variables.get(&variable).is_some_and(|value| !value.is_empty()) {
            return Some(Origin { variable: Some(variable), ..Origin::default() });
        }
        self.files.iter().rev().find_map(|layer| {
            // It could be parsed when it was read.
            let tree = DeTable::parse(&layer.text).ok()?;
            let at = find(tree.get_ref(), path, part)?;
            Some(place(&layer.path, &layer.text, at))
        })
    }

    /// The first file, for what stands nowhere.
    pub(super) fn main_file(&self) -> Origin {
        let file = self.files.first().map(|layer| layer.path.clone());
        Origin { file, ..Origin::default() }
    }
}

/// The files laid over the first one.
fn drop_ins(directory: &Path) -> Result<Vec<PathBuf>, SettingsError> {
    let unreadable = |source| SettingsError::Unreadable { path: directory.to_owned(), source };
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(Vec::new());
        }
        Err(error) => return Err(unreadable(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(unreadable)?.path();
        // Editors leave copies with other endings, or with a dot in front.
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|ending| ending == "toml") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// The byte at which a key or its value begins.
fn find(tree: &DeTable<'_>, path: &[String], part: Part) -> Option<usize> {
    let (last, tables) = path.split_last()?;
    let mut table = tree;
    for (depth, name) in tables.iter().enumerate() {
        match entry(table, name)?.1.get_ref() {
            DeValue::Table(next) => table = next,
            // Within an array the array's own place has to do.
            _ => return find(tree, path.get(..=depth)?, part),
        }
    }
    let (key, value) = entry(table, last)?;
    Some(match part {
        Part::Key => key.span().start,
        Part::Value => value.span().start,
    })
}

type Entry<'a, 'i> = (&'a Spanned<DeString<'i>>, &'a Spanned<DeValue<'i>>);

fn entry<'a, 'i>(table: &'a DeTable<'i>, name: &str) -> Option<Entry<'a, 'i>> {
    table.iter().find(|(key, _)| key.get_ref().as_ref() == name)
}

/// A byte of a file as line and column.
fn place(path: &Path, text: &str, at: usize) -> Origin {
    let before = text.get(..at).unwrap_or(text);
    Origin {
        file: Some(path.to_owned()),
        line: Some(before.matches('\n').count() + 1),
        column: Some(before.rsplit('\n').next().unwrap_or("").chars().count() + 1),
        variable: None,
    }
}
