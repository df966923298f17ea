//! What promptd logs and where: one tracing subscriber on standard error, made for the journal or for a terminal.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::settings::{Log, LogFormat};

/// Starts logging for this process. Standard output stays free for answers.
///
/// # Errors
/// The level or directive that tracing does not know, with the words it does.
pub fn start(log: &Log, environment_journal: bool) -> Result<(), String> {
    let filter = EnvFilter::try_new(&log.level).map_err(|error| {
        format!("`log.level` is `{}`: {error}; use error, warn, info, debug or trace", log.level)
    })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let ansi = std::io::stderr().is_terminal();
    // A second start in one process (tests) keeps the first subscriber: there is nobody to tell.
    let _ = match log.format {
        LogFormat::Json => builder.json().with_ansi(false).try_init(),
        // The journal writes the time itself.
        LogFormat::Text if environment_journal => {
            builder.without_time().with_target(false).with_ansi(false).try_init()
        }
        LogFormat::Text => builder.with_target(false).with_ansi(ansi).try_init(),
    };
    Ok(())
}
