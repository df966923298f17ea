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
    /// Look at a model folder: check it, plan its memory, tokenize, render.
    Model(Model),
    /// Talk with the running service.
    Chat(Chat),
    /// Watch what the running service does.
    Top(Top),
    /// End a request that waits or runs.
    Cancel(Cancel),
}

/// `promptd model`
#[derive(Clone, Debug, clap::Args)]
pub struct Model {
    /// What to do with it.
    #[command(subcommand)]
    pub command: ModelCommand,
}

/// What to do with a model folder.
#[derive(Clone, Debug, Subcommand)]
pub enum ModelCommand {
    /// Say whether promptd can run it, and if not, which file is wrong and how.
    Check(Check),
    /// Say how much memory it will take, and the largest context that fits this board.
    Plan(Plan),
    /// Turn the text on standard input into token ids (a JSON array), or back.
    Tokenize(Tokenize),
    /// Render the conversation on standard input with its chat template.
    Render(Render),
}

/// `promptd model check`
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Exit codes: 0 it can be run, 1 it cannot, 2 wrong usage.")]
pub struct Check {
    /// The model folder, or one of its graphs (a file `….onnx`).
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
    /// Print it as JSON.
    #[arg(long)]
    pub json: bool,
}

/// `promptd model plan`
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Exit codes: 0 it fits, 1 it does not or cannot be run, 2 wrong usage.")]
pub struct Plan {
    /// The model folder, or one of its graphs.
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
    /// Prompts that run at once, as in `model.slots`.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    pub slots: u16,
    /// Tokens of context of each, as in `model.context`; 0: what the model was made for.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub context: u32,
    /// Load the model, fill its context and say what that took.
    #[arg(long)]
    pub measure: bool,
    /// libonnxruntime.so, for `--measure`.
    #[arg(long, value_name = "FILE")]
    pub library: Option<PathBuf>,
    /// Print it as JSON, in bytes.
    #[arg(long)]
    pub json: bool,
}

/// `promptd model tokenize`
#[derive(Clone, Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "switches of a command line")]
pub struct Tokenize {
    /// A folder with a tokenizer.json; nothing else needs to be in there.
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
    /// One JSON string in and one array out a line (with --decode the other way).
    #[arg(long)]
    pub lines: bool,
    /// Token ids in, text out.
    #[arg(long)]
    pub decode: bool,
    /// The texts of control tokens are control tokens; without it they are text, as in what clients write.
    #[arg(long, conflicts_with = "decode")]
    pub special: bool,
    /// Begin with the token that prompts begin with, where the model has one.
    #[arg(long, conflicts_with = "decode")]
    pub bos: bool,
}

/// `promptd model render`
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Standard input: {\"messages\":[…],\"tools\":[…],\"add_generation_prompt\":true}; every key is a variable of the template."
)]
pub struct Render {
    /// The model folder; its `tokenizer_config.json` names the tokens that begin and end.
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
    /// Another template than the folder's.
    #[arg(long, value_name = "FILE")]
    pub template: Option<PathBuf>,
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

/// `promptd chat`
#[derive(Clone, Debug, Default, clap::Args)]
#[command(
    after_help = "Exit codes: 0 left, 1 failed, 2 wrong usage, 69 no service there, 75 busy or loading. NO_COLOR is honoured."
)]
pub struct Chat {
    /// The service's socket [default: `PROMPTD__SOCKET__PATH` in the environment, else /run/promptd/promptd.sock].
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// What the model is told first.
    #[arg(long, short, value_name = "TEXT")]
    pub system: Option<String>,
    /// The profile whose defaults hold.
    #[arg(long, short, value_name = "NAME")]
    pub profile: Option<String>,
    /// The most tokens an answer may have.
    #[arg(long, short = 'n', value_name = "N")]
    pub max_tokens: Option<u32>,
    /// Sampling temperature; 0 always takes the most probable token.
    #[arg(long, short, value_name = "T")]
    pub temperature: Option<f64>,
}

/// `promptd top`
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Exit codes: 0 left, 1 failed, 2 wrong usage, 69 no service there.")]
pub struct Top {
    /// The service's socket [default: `PROMPTD__SOCKET__PATH` in the environment, else /run/promptd/promptd.sock].
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Seconds between two looks.
    #[arg(long, short, value_name = "SECONDS", default_value_t = 1)]
    pub interval: u16,
    /// Look once.
    #[arg(long)]
    pub once: bool,
    /// Print each look as a line of JSON.
    #[arg(long)]
    pub json: bool,
}

/// `promptd cancel`
#[derive(Clone, Debug, Default, clap::Args)]
#[command(
    after_help = "Exit codes: 0 cancelled, 1 there is no such request or it is another's, 2 wrong usage, 69 no service there."
)]
pub struct Cancel {
    /// The request's id, as its answer and `promptd top` show it.
    #[arg(value_name = "ID")]
    pub id: String,
    /// The service's socket [default: `PROMPTD__SOCKET__PATH` in the environment, else /run/promptd/promptd.sock].
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Print the answer as JSON.
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
