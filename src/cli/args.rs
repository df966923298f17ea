//! The command line as it was typed. Reads no file and no environment.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

pub use super::asking::{Ask, Cancel, Chat, Place, Status, Top};
use super::models::args::{Export, Import, List, Pull, Remove, Rollback, Use, Verify};

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
    /// Confine this process like an engine, try to escape, and say what was refused.
    #[command(hide = true)]
    TrySandbox(TrySandbox),
    /// Ask the running service a question.
    Ask(Ask),
    /// Show how the running service is.
    Status(Status),
    /// Check, show and describe the configuration.
    Config(Config),
    /// Look for what could keep promptd from working well here, with a way out for each finding.
    Doctor(Doctor),
    /// Print what clients speak, for programs.
    Protocol(Protocol),
    /// Look at a model folder (check, plan, tokenize, render), and keep the models of this board (import, list, verify, …).
    Model(Model),
    /// Measure how quick a model is on this machine, and find out how it is quickest.
    Bench(Bench),
    /// Talk with the running service.
    Chat(Chat),
    /// Watch what the running service does.
    Top(Top),
    /// End a request that waits or runs.
    Cancel(Cancel),
}

/// `promptd protocol`
#[derive(Clone, Debug, clap::Args)]
pub struct Protocol {
    /// What to print.
    #[command(subcommand)]
    pub command: ProtocolCommand,
}

/// What to print about the protocol.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum ProtocolCommand {
    /// JSON Schema (2020-12) of each payload, under `$defs`.
    Schema,
    /// The `AsyncAPI` 3 document of the MQTT topics.
    Asyncapi,
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
    /// Make a copy for this machine, whose weights the system can take out of memory and read again.
    Prepare(Prepare),
    /// Fetch a model from a hub with Hugging Face's layout.
    Pull(Pull),
    /// Bring in a model from a folder or an archive.
    Import(Import),
    /// Write a model that is kept here as an archive, for another board.
    Export(Export),
    /// List the models that are kept here.
    List(List),
    /// Hold the files of models that are kept here against their manifests.
    Verify(Verify),
    /// Try a model that is kept here, and make it the service's.
    Use(Use),
    /// Make the model before the service's again.
    Rollback(Rollback),
    /// Remove a model that is kept here.
    Rm(Remove),
}

/// `promptd bench`
#[derive(Clone, Debug, Default, clap::Args)]
#[command(
    after_help = "Loads the model itself: stop the service first, or the two of them share the machine. Exit codes: 0 measured, 1 failed, 2 wrong usage."
)]
#[expect(clippy::struct_excessive_bools, reason = "switches of a command line")]
pub struct Bench {
    /// The model folder, or one of its graphs.
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
    /// Lengths of prompts whose reading is timed; 0: none.
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "128,512")]
    pub prompts: Vec<u32>,
    /// Tokens in the context when the writing that is timed begins.
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "0,512")]
    pub depths: Vec<u32>,
    /// Answers that are written at once; 0: none.
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1,2,4,8", value_parser = clap::value_parser!(u16).range(..=64))]
    pub streams: Vec<u16>,
    /// Tokens that two prompts begin with, of which the second one's first token is timed; 0: none.
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub shared: u32,
    // 64 of them may take 4,096 tokens, the context of LLaMA 2.
    /// Long keys of the schema that an answer is held to; 0: none.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(0..=64))]
    pub keys: u16,
    /// Tokens that are written in each measurement.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub tokens: u32,
    /// Rounds; what is printed is their median.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// Threads of one step, as in `runtime.threads`.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: u16,
    /// Processors that they keep to, as in `runtime.cores`.
    #[arg(long, value_name = "N,…", value_delimiter = ',')]
    pub cores: Vec<u16>,
    /// They wait for each other without sleeping, as with `runtime.spinning`.
    #[arg(long)]
    pub spinning: bool,
    /// Time by the processor time of all threads together: what can be compared where the machine does other things, too. With
    /// one thread, for threads that wait may work.
    #[arg(long, conflicts_with = "tune")]
    pub processor_time: bool,
    /// Where the model runs, as in `runtime.provider`.
    #[arg(long, value_name = "NAME", default_value = "auto")]
    pub provider: Provider,
    /// libonnxruntime.so.
    #[arg(long, value_name = "FILE")]
    pub library: Option<PathBuf>,
    /// Where prepared copies lie (`models` in the service's `state.dir`); without it none is used.
    #[arg(long, value_name = "DIR")]
    pub store: Option<PathBuf>,
    /// Print it as JSON.
    #[arg(long, conflicts_with = "tune")]
    pub json: bool,
    /// Try numbers of threads, spinning and cores, and print the lines of `[runtime]` that were quickest.
    #[arg(long, conflicts_with_all = ["threads", "cores", "spinning", "prompts", "depths", "streams", "shared", "keys", "tokens"])]
    pub tune: bool,
    /// Write these lines to a file (`/etc/promptd/conf.d/50-tuned.toml`) instead.
    #[arg(long, short, value_name = "FILE", requires = "tune")]
    pub output: Option<PathBuf>,
}

/// `promptd model check`
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Exit codes: 0 it can be run, 1 it cannot, 2 wrong usage.")]
pub struct Check {
    /// The model folder, or one of its graphs (a file `….onnx`).
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
    /// Load it as well, run its first step, and say which execution provider has how many nodes of the graph.
    #[arg(long)]
    pub load: bool,
    /// Where to load it, as `runtime.provider`: auto, cpu or cuda.
    #[arg(long, value_name = "NAME", default_value = "auto", requires = "load")]
    pub provider: Provider,
    /// libonnxruntime.so, for `--load`.
    #[arg(long, value_name = "FILE", requires = "load")]
    pub library: Option<PathBuf>,
    /// Print it as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Where a model runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Provider {
    /// On a GPU where there is one that can be used, else on the CPU.
    #[default]
    Auto,
    /// On the CPU.
    Cpu,
    /// On an NVIDIA GPU, or not at all.
    Cuda,
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
    /// The folder of prepared copies (`promptd model prepare`): weights come from there where it has this model's.
    #[arg(long, value_name = "DIR")]
    pub store: Option<PathBuf>,
    /// Load the model, fill its context and say what that took.
    #[arg(long)]
    pub measure: bool,
    /// libonnxruntime.so, for `--measure` and `--store`.
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

/// `promptd model prepare`
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Exit codes: 0 it is there, 1 it could not be made, 2 wrong usage.")]
pub struct Prepare {
    /// The model folder, or one of its graphs.
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
    /// The folder of copies [default: `models` in the configuration's `state.dir`, where the service looks].
    #[arg(long, value_name = "DIR")]
    pub store: Option<PathBuf>,
    /// The configuration file that names the `state.dir` and the library.
    #[arg(long, short, value_name = "FILE", default_value = super::serve::DEFAULT_CONFIG)]
    pub config: PathBuf,
    /// libonnxruntime.so.
    #[arg(long, value_name = "FILE")]
    pub library: Option<PathBuf>,
    /// Print it as JSON.
    #[arg(long)]
    pub json: bool,
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
    /// The journal's socket, as in `log.journal`.
    #[arg(long)]
    pub log_journal: Option<PathBuf>,
    /// Leave the process all rights it was started with, as with `runtime.sandbox = false`.
    #[arg(long)]
    pub no_sandbox: bool,
}

/// `promptd doctor`
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Exit codes: 0 no problem was found, 1 at least one, 2 wrong usage.")]
pub struct Doctor {
    /// The configuration file.
    #[arg(long, short, value_name = "FILE", default_value = super::serve::DEFAULT_CONFIG)]
    pub config: PathBuf,
    /// Where the service is.
    #[command(flatten)]
    pub place: Place,
    /// Print it as JSON.
    #[arg(long)]
    pub json: bool,
    /// Where /proc, /sys, /dev and /lib of the board are.
    #[arg(long, value_name = "DIR", default_value = "/", hide = true)]
    pub root: PathBuf,
}

/// `promptd try-sandbox`
#[derive(Clone, Debug, clap::Args)]
pub struct TrySandbox {
    /// The model folder that the engine would read.
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// The libonnxruntime that the engine would open.
    #[arg(long, value_name = "FILE")]
    pub library: PathBuf,
    /// Files of others, which must not be readable.
    #[arg(value_name = "FILE")]
    pub secrets: Vec<PathBuf>,
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
