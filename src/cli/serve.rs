//! `promptd serve` and the `promptd engine` it starts: configuration, logging, then the rooms that do the work. Says in one
//! line why it could not.

use std::error::Error;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use super::args::{Engine, Serve, TrySandbox};
use super::{exit, with_causes};
use crate::engine::adapter;
use crate::engine::client::supervise;
use crate::engine::escape::{Attempt, Outcome};
use crate::settings::{Environment, Log, LogFormat};
use crate::{daemon, settings, telemetry};

/// Where the configuration is if nobody says otherwise.
pub const DEFAULT_CONFIG: &str = "/etc/promptd/promptd.toml";

/// Runs the service until it is told to stop. Exit codes: 0 stopped, 1 could not start, 78 the configuration is wrong.
pub fn run(args: Serve, environment: &Environment) -> ExitCode {
    let config = args.config.unwrap_or_else(|| PathBuf::from(DEFAULT_CONFIG));
    let settings = match settings::load(&config, environment) {
        Ok(settings) => settings,
        Err(error) => return fail(&error, exit::CONFIGURATION),
    };
    let level = match telemetry::start(&settings.log, is_journal(environment)) {
        Ok(level) => level,
        Err(message) => {
            return complain(&format!("configuration: {message}"), exit::CONFIGURATION);
        }
    };
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return fail(&error, exit::FAILURE),
    };
    let surroundings = daemon::Surroundings { program, environment: std::env::vars_os().collect() };
    let environment = environment.clone();
    let reread = move || settings::load(&config, &environment).map_err(|error| with_causes(&error));
    match daemon::run(&settings, surroundings, supervise, Box::new(reread), level) {
        Ok(()) => ExitCode::from(exit::OK),
        Err(error) if error.is_configuration() => fail(&error, exit::CONFIGURATION),
        Err(error) => fail(&error, exit::FAILURE),
    }
}

/// Runs the model for the service at the other end of standard input. Exit codes: [`adapter::run`]'s.
pub fn engine(args: Engine, environment: &Environment) -> ExitCode {
    let format = if args.log_json { LogFormat::Json } else { LogFormat::Text };
    let log = Log { level: args.log_level, format, journal: args.log_journal, ..Log::default() };
    match telemetry::start(&log, is_journal(environment)) {
        Ok(_) => adapter::run(!args.no_sandbox),
        Err(message) => complain(&message, exit::USAGE),
    }
}

/// `promptd try-sandbox`: one JSON object a line. Exit codes: 0 all refused, 1 something was possible.
pub fn try_sandbox(args: &TrySandbox) -> ExitCode {
    let log = Log::default();
    if let Err(message) = telemetry::start(&log, false) {
        return complain(&message, exit::USAGE);
    }
    let tried = adapter::try_to_escape(&args.model, &args.library, &args.secrets);
    let escaped = |attempt: &Attempt| attempt.outcome == Outcome::Possible;
    let safe = tried.as_ref().is_some_and(|tried| !tried.iter().any(escaped));
    for attempt in tried.into_iter().flatten() {
        if writeln!(std::io::stdout(), "{}", serde_json::json!(attempt)).is_err() {
            return ExitCode::from(exit::FAILURE);
        }
    }
    ExitCode::from(if safe { exit::OK } else { exit::FAILURE })
}

/// Whether standard error goes to the journal.
fn is_journal(environment: &Environment) -> bool {
    telemetry::is_journal(environment.get("JOURNAL_STREAM").map(String::as_str))
}

fn fail(error: &dyn Error, code: u8) -> ExitCode {
    complain(&with_causes(error), code)
}

/// The last word of a service: logging may not have started. Where nobody reads it, the exit code still says it.
fn complain(line: &str, code: u8) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "promptd: {line}");
    ExitCode::from(code)
}
