//! `promptd serve`: reads the configuration, starts logging and hands over to the daemon; says in one line why it could not.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use super::args::Serve;
use super::exit;
use crate::settings::Environment;
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
    // systemd sets JOURNAL_STREAM where standard error goes to the journal.
    if let Err(message) =
        telemetry::start(&settings.log, environment.contains_key("JOURNAL_STREAM"))
    {
        return complain(&format!("configuration: {message}"), exit::CONFIGURATION);
    }
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return fail(&error, exit::FAILURE),
    };
    let surroundings = daemon::Surroundings { program, environment: std::env::vars_os().collect() };
    match daemon::run(&settings, surroundings) {
        Ok(()) => ExitCode::from(exit::OK),
        Err(error) if error.is_configuration() => fail(&error, exit::CONFIGURATION),
        Err(error) => fail(&error, exit::FAILURE),
    }
}

/// An error and its causes, on one line.
fn fail(error: &dyn Error, code: u8) -> ExitCode {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    complain(&line, code)
}

#[expect(
    clippy::print_stderr,
    reason = "logging may not have started, and the last word of a service goes there"
)]
fn complain(line: &str, code: u8) -> ExitCode {
    eprintln!("promptd: {line}");
    ExitCode::from(code)
}
