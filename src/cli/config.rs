//! `promptd config`: whether the configuration is right, what holds and who wrote it, and what could be written.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::json;

use super::args::{Config, ConfigCommand, ConfigFile, ConfigInit};
use super::http::Trouble;
use super::{World, exit, with_causes};
use crate::settings::{self, Environment, Mistake, SettingsError};
use crate::{daemon, telemetry};

/// The configuration that packages install: every key, with its default and what it is for.
pub const COMMENTED: &str = include_str!("../../systemd/promptd.toml");

/// Why a command about the configuration failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("the configuration is wrong")]
    Wrong,
    #[error("cannot write `{}`; `promptd config init` never replaces a file", path.display())]
    Write { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Output(Trouble),
}

/// Does it.
pub async fn run(args: Config) -> ExitCode {
    World::real(async |world| {
        let environment = super::environment();
        ExitCode::from(run_in(&args.command, &environment, world))
    })
    .await
}

/// The same in a given world; returns the exit code.
pub fn run_in(command: &ConfigCommand, environment: &Environment, world: &mut World<'_>) -> u8 {
    let done = match command {
        ConfigCommand::Check(args) => check(args, environment, world),
        ConfigCommand::Show(args) => show(args, environment, world),
        ConfigCommand::Schema => print(&format!("{:#}\n", settings::schema()), world),
        ConfigCommand::Init(args) => init(args, world),
    };
    match done {
        Ok(()) => exit::OK,
        // Each mistake has been told.
        Err(Failure::Wrong) => exit::CONFIGURATION,
        Err(failure) => {
            world.complain(&failure);
            exit::FAILURE
        }
    }
}

fn check(
    args: &ConfigFile,
    environment: &Environment,
    world: &mut World<'_>,
) -> Result<(), Failure> {
    let mistakes = mistakes(&args.config, environment);
    let ok = mistakes.is_empty();
    let text = if args.json {
        format!("{}\n", json!({"ok": ok, "mistakes": mistakes}))
    } else if ok {
        format!("{}: right\n", args.config.display())
    } else {
        let lines: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        lines.join("\n") + "\n"
    };
    print(&text, world)?;
    if ok { Ok(()) } else { Err(Failure::Wrong) }
}

/// Everything that `promptd serve` would stumble over.
fn mistakes(config: &Path, environment: &Environment) -> Vec<Mistake> {
    let whole = |message: String| {
        let file = Some(config.to_owned());
        vec![Mistake { origin: settings::Origin { file, ..Default::default() }, message }]
    };
    let settings = match settings::load(config, environment) {
        Ok(settings) => settings,
        Err(SettingsError::Invalid(mistakes)) => return mistakes,
        Err(error) => return whole(with_causes(&error)),
    };
    if let Err(message) = telemetry::check(&settings.log) {
        return whole(message);
    }
    let surroundings = daemon::Surroundings {
        program: std::env::current_exe().unwrap_or_default(),
        environment: std::env::vars_os().collect(),
    };
    daemon::check(&settings, surroundings)
        .map_or_else(|error| whole(with_causes(&error)), |()| Vec::new())
}

fn show(
    args: &ConfigFile,
    environment: &Environment,
    world: &mut World<'_>,
) -> Result<(), Failure> {
    let values = match settings::effective(&args.config, environment) {
        Ok(values) => values,
        Err(error) => {
            world.complain(&error);
            return Err(Failure::Wrong);
        }
    };
    let text =
        if args.json { format!("{:#}\n", json!(values)) } else { settings::as_toml(&values) };
    print(&text, world)
}

fn init(args: &ConfigInit, world: &mut World<'_>) -> Result<(), Failure> {
    let Some(path) = &args.output else { return print(COMMENTED, world) };
    let failed = |source| Failure::Write { path: path.clone(), source };
    let mut file = std::fs::File::create_new(path).map_err(failed)?;
    file.write_all(COMMENTED.as_bytes()).map_err(failed)
}

fn print(text: &str, world: &mut World<'_>) -> Result<(), Failure> {
    world.print(text).map_err(Failure::Output)
}
