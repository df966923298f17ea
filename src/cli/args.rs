//! The command line as it was typed. Reads no file and no environment.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// Answers prompts over MQTT and a Unix socket with a LLaMA-class model on the board itself.
#[derive(Clone, Debug, Parser)]
#[command(name = "promptd", version, arg_required_else_help = true)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Run the service.
    Serve(Serve),
    /// Run the model for a service that started this process.
    #[command(hide = true)]
    Engine(Engine),
    /// Try a form of an answer for an engine that started this process.
    #[command(hide = true)]
    Form,
    /// Ask the running service a question.
    Ask(Ask),
    /// Show how the running service is.
    Status(Status),
    /// Check, show and describe the configuration.
    Config(Config),
}

/// `promptd serve`
#[derive(Clone, Debug, clap::Args)]
pub struct Serve {
    /// The configuration file.
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// `promptd config`
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0 all is well, 1 failed, 2 wrong usage, 78 the configuration is wrong."
)]
pub struct Config {
    /// What about it.
    #[command(subcommand)]
    pub command: ConfigCommand,
}

/// What about the configuration.
#[derive(Clone, Debug, Subcommand)]
pub enum ConfigCommand {
    /// Tell every mistake with file, line, column and the nearest key that exists.
    Check(ConfigFile),
    /// Print every value that holds and who wrote it; secrets are masked.
    Show(ConfigFile),
    /// Print the JSON Schema of promptd.toml.
    Schema,
    /// Print a configuration with every key in it, commented.
    Init(ConfigInit),
}

/// Which configuration.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ConfigFile {
    /// The configuration file; `conf.d/*.toml` beside it are laid over it.
    #[arg(long, short, value_name = "FILE", default_value = super::serve::DEFAULT_CONFIG)]
    pub config: PathBuf,
    /// Print it as JSON.
    #[arg(long)]
    pub json: bool,
}

/// `promptd config init`
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ConfigInit {
    /// Write it to this file, which must not be there yet, instead of standard output.
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// `promptd engine`; the service passes on how it logs.
#[derive(Clone, Debug, clap::Args)]
pub struct Engine {
    /// What is logged, as in `log.level`.
    #[arg(long, default_value = "info")]
    pub log_level: String,
    /// One JSON object a line.
    #[arg(long)]
    pub log_json: bool,
}

/// `promptd ask`
#[derive(Clone, Debug, Default, clap::Args)]
#[command(
    after_help = "Exit codes: 0 answered, 1 failed, 2 wrong usage, 69 no service there, 75 busy or loading."
)]
pub struct Ask {
    /// The prompt; its words are joined by spaces. Without one, or with `-`, it is read from standard input.
    #[arg(value_name = "PROMPT")]
    pub prompt: Vec<String>,
    /// The service's socket [default: `PROMPTD__SOCKET__PATH` in the environment, else /run/promptd/promptd.sock].
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// The system message in front of the prompt.
    #[arg(long, short, value_name = "TEXT")]
    pub system: Option<String>,
    /// The profile whose defaults hold.
    #[arg(long, short, value_name = "NAME")]
    pub profile: Option<String>,
    /// A file with the JSON Schema the answer must be valid against.
    #[arg(long, value_name = "FILE")]
    pub schema: Option<PathBuf>,
    /// The most tokens the answer may have.
    #[arg(long, short = 'n', value_name = "N")]
    pub max_tokens: Option<u32>,
    /// Sampling temperature; 0 always takes the most probable token.
    #[arg(long, short, value_name = "T")]
    pub temperature: Option<f64>,
    /// The same seed gives the same answer.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub seed: Option<i64>,
    /// Print the whole answer object instead of its text.
    #[arg(long)]
    pub json: bool,
    /// Print the answer as it comes, also where standard output is no terminal.
    #[arg(long, conflicts_with = "json")]
    pub stream: bool,
}

/// `promptd status`
#[derive(Clone, Debug, Default, clap::Args)]
#[command(
    after_help = "Exit codes: 0 ready, 1 the model failed, 2 wrong usage, 69 no service there, 75 loading or stopping."
)]
pub struct Status {
    /// The service's socket [default: `PROMPTD__SOCKET__PATH` in the environment, else /run/promptd/promptd.sock].
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Print it as JSON.
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn typed() {
        let read = |line: &str| Args::try_parse_from(line.split(' '));
        let Command::Ask(ask) =
            read("promptd ask -s Short --temperature 0.5 --seed -1 is it on").unwrap().command
        else {
            panic!("no ask");
        };
        assert_eq!(ask.prompt, ["is", "it", "on"]);
        assert_eq!((ask.system.as_deref(), ask.seed), (Some("Short"), Some(-1)));
        for wrong in [
            "promptd",
            "promptd askk",
            "promptd ask --max-tokens -1",
            "promptd ask --json --stream x",
        ] {
            assert_eq!(read(wrong).unwrap_err().exit_code(), 2, "{wrong}");
        }
        assert_eq!(read("promptd --version").unwrap_err().exit_code(), 0);
    }
}
