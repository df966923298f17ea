//! What promptd logs and where: one tracing subscriber, which writes fields to the journal, lines for people, or JSON. What
//! comes from elsewhere is escaped, and no line of one kind fills the log.

mod journal;
mod lines;
mod rate;
#[cfg(test)]
mod tests;

use std::io::{IsTerminal, Write as _};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry};

use self::journal::Journal;
use self::lines::Lines;
use self::rate::{Limited, Rate};
use crate::settings::{Log, LogFormat};

/// Where the journal listens, if nobody says otherwise.
const JOURNAL: &str = "/run/systemd/journal/socket";

/// Changes what is logged while the process runs.
#[derive(Clone, Debug)]
pub struct Level(reload::Handle<EnvFilter, Registry>);

impl Level {
    /// Logs by the configuration's level from now on.
    ///
    /// # Errors
    /// What tracing does not know of it; it stays as it was then.
    pub fn set(&self, log: &Log) -> Result<(), String> {
        self.name(&log.level)
    }

    /// Logs by this level or these directives from now on.
    ///
    /// # Errors
    /// As [`Level::set`].
    pub fn name(&self, level: &str) -> Result<(), String> {
        let filter = filter(level)?;
        // It fails only where another subscriber was first (tests).
        let _ = self.0.reload(filter);
        Ok(())
    }
}

/// Whether the level is one that tracing knows.
///
/// # Errors
/// The level or directive that it does not know, with the words it does.
pub fn check(log: &Log) -> Result<(), String> {
    filter(&log.level).map(|_| ())
}

fn filter(level: &str) -> Result<EnvFilter, String> {
    // tracing takes any word for the name of a module, and logs nothing but that: a typing error would be silence.
    let known = |word: &str| {
        word.contains(['=', ':', '['])
            || word == "promptd"
            || word.parse::<tracing::metadata::LevelFilter>().is_ok()
    };
    if let Some(word) = level.split(',').map(str::trim).find(|word| !known(word)) {
        return Err(format!(
            "`log.level` is `{level}`: {word:?} is no level; use error, warn, info, debug or trace"
        ));
    }
    EnvFilter::try_new(level).map_err(|error| {
        format!("`log.level` is `{level}`: {error}; use error, warn, info, debug or trace")
    })
}

/// Whether standard error goes to the journal: systemd names the device and the inode of what it connected, and a redirection
/// has others (`sd_journal_stream_fd(3)`). `variable` is `JOURNAL_STREAM`.
pub fn is_journal(variable: Option<&str>) -> bool {
    let Some((device, inode)) = variable.and_then(|text| text.split_once(':')) else {
        return false;
    };
    let Ok(stat) = rustix::fs::fstat(std::io::stderr().as_fd()) else { return false };
    device.parse() == Ok(stat.st_dev) && inode.parse() == Ok(stat.st_ino)
}

/// Starts logging for this process. Standard output stays free for answers. `to_journal`: [`is_journal`].
///
/// # Errors
/// The level or directive that tracing does not know, with the words it does.
pub fn start(log: &Log, to_journal: bool) -> Result<Level, String> {
    let (filter, level) = reload::Layer::new(filter(&log.level)?);
    let rate = Arc::new(Rate::new(Instant::now));
    let colours = std::io::stderr().is_terminal();
    let json = log.format == LogFormat::Json;
    let to = |bytes: &[u8]| std::io::stderr().write_all(bytes);
    let lines = Lines { rate: Arc::clone(&rate), json, colours, to };
    let lines = tracing_subscriber::fmt::layer().with_writer(lines);
    let socket = log.journal.as_deref().unwrap_or(Path::new(JOURNAL));
    let layer = match log.format {
        LogFormat::Json => lines.json().with_ansi(false).boxed(),
        LogFormat::Text if to_journal => match Journal::connect(socket, Arc::clone(&rate)) {
            Ok(journal) => journal.boxed(),
            // The journal reads standard error too, and writes the time itself.
            Err(_) => lines.without_time().with_target(false).with_ansi(false).boxed(),
        },
        LogFormat::Text => lines.with_target(false).with_ansi(colours).boxed(),
    };
    let layer = Limited { rate, layer }.with_filter(filter);
    // A second start in one process (tests) keeps the first subscriber: there is nobody to tell.
    let _ = tracing_subscriber::registry().with(layer).try_init();
    Ok(Level(level))
}

/// Text without control characters: each is written as what it is.
fn escaped(text: &str) -> String {
    if !text.contains(char::is_control) {
        return text.to_owned();
    }
    let mut clean = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if c.is_control() && c != '\t' {
            clean.extend(c.escape_default());
        } else {
            clean.push(c);
        }
    }
    clean
}

/// The text, or its beginning and how much more there is.
fn short(text: &str, most: usize) -> std::borrow::Cow<'_, str> {
    if text.len() <= most {
        return text.into();
    }
    let (start, rest) = text.split_at(text.floor_char_boundary(most));
    format!("{start}… ({} bytes more)", rest.len()).into()
}
