//! What promptd logs and where: one tracing subscriber on standard error, made for the journal or for a terminal.

use std::io::IsTerminal;

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry};

use crate::settings::{Log, LogFormat};

/// Changes what is logged while the process runs.
#[derive(Clone, Debug)]
pub struct Level(reload::Handle<EnvFilter, Registry>);

impl Level {
    /// Logs by this level or these directives from now on.
    ///
    /// # Errors
    /// What tracing does not know of it; it stays as it was then.
    pub fn set(&self, log: &Log) -> Result<(), String> {
        let filter = filter(log)?;
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
    filter(log).map(|_| ())
}

fn filter(log: &Log) -> Result<EnvFilter, String> {
    EnvFilter::try_new(&log.level).map_err(|error| {
        format!("`log.level` is `{}`: {error}; use error, warn, info, debug or trace", log.level)
    })
}

/// Starts logging for this process. Standard output stays free for answers.
///
/// # Errors
/// The level or directive that tracing does not know, with the words it does.
pub fn start(log: &Log, environment_journal: bool) -> Result<Level, String> {
    let (filter, level) = reload::Layer::new(filter(log)?);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let ansi = std::io::stderr().is_terminal();
    let lines = match log.format {
        LogFormat::Json => lines.json().with_ansi(false).boxed(),
        // The journal writes the time itself.
        LogFormat::Text if environment_journal => {
            lines.without_time().with_target(false).with_ansi(false).boxed()
        }
        LogFormat::Text => lines.with_target(false).with_ansi(ansi).boxed(),
    };
    // A second start in one process (tests) keeps the first subscriber: there is nobody to tell.
    let _ = tracing_subscriber::registry().with(lines.with_filter(filter)).try_init();
    Ok(Level(level))
}
