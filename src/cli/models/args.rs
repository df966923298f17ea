//! The commands for models that a board keeps, as they were typed.

use std::path::PathBuf;

use super::super::serve::DEFAULT_CONFIG;

/// Where models are kept.
#[derive(Clone, Debug, clap::Args)]
pub struct Place {
    /// The folder of models [default: `models` in the configuration's `state.dir`, where the service looks].
    #[arg(long, value_name = "DIR")]
    pub models: Option<PathBuf>,
    /// The configuration file that names the `state.dir`.
    #[arg(long, short, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    pub config: PathBuf,
    /// Print what was done as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Where models are kept, and the service that takes them.
#[derive(Clone, Debug, clap::Args)]
pub struct Served {
    /// The service's socket [default: the configuration's].
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Where models are kept.
    #[command(flatten)]
    pub place: Place,
}

/// What a model is called that comes in.
#[derive(Clone, Debug, clap::Args)]
pub struct Called {
    /// What it is called here [default: as its manifest, its folder or its archive is].
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
}

/// `promptd model pull`
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Of a repository with genai_config.json, the files beside it are fetched; of one with config.json and onnx/, those and one \
                  graph. What a branch or tag means now is pinned: the model is called name@commit. What was cut off is gone on with \
                  by the same command. Exit codes: 0 it is kept, 1 failed, 2 wrong usage, 75 another command works with the models."
)]
pub struct Pull {
    /// The repository, `owner/name`.
    #[arg(value_name = "REPO")]
    pub repository: String,
    /// A branch, a tag or a commit.
    #[arg(long, value_name = "REVISION", default_value = "main")]
    pub revision: String,
    /// The folder of the repository that is the model, where it holds several.
    #[arg(long, value_name = "DIR")]
    pub folder: Option<String>,
    /// The graph, where there are several (`onnx/model_q4.onnx`).
    #[arg(long, value_name = "FILE")]
    pub graph: Option<String>,
    /// What it is called here.
    #[command(flatten)]
    pub called: Called,
    /// The most bytes a second.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit_rate: Option<u64>,
    /// A file whose first line is the hub's token, for models that not everybody may have.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// The hub's address (default: `HF_ENDPOINT` in the environment, else <https://huggingface.co>).
    #[arg(long, value_name = "URL")]
    pub hub: Option<String>,
    /// Authorities to trust (PEM) instead of the system's, for a hub of one's own.
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// Milliseconds before the first further attempt.
    #[arg(long, value_name = "MS", default_value_t = 1000, hide = true)]
    pub pause_ms: u64,
    /// Where models are kept.
    #[command(flatten)]
    pub place: Place,
}

/// `promptd model import`
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "With a manifest.toml, the files it lists are taken and held against it; without one, one is written. \
                  Exit codes: 0 it is kept, 1 failed, 2 wrong usage, 75 another command works with the models."
)]
pub struct Import {
    /// A model folder, or a tar archive of one; `-` reads an archive from standard input.
    #[arg(value_name = "DIR|FILE")]
    pub from: PathBuf,
    /// What it is called here.
    #[command(flatten)]
    pub called: Called,
    /// Which of the models of this name it is [default: as its manifest says, or made of its files' checksums].
    #[arg(long, value_name = "REVISION")]
    pub revision: Option<String>,
    /// Where models are kept.
    #[command(flatten)]
    pub place: Place,
}

/// `promptd model export`
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0 written, 1 failed, 2 wrong usage, 75 another command works with the models."
)]
pub struct Export {
    /// Which: `name`, `name@revision` or how it begins, `current`, `previous`.
    #[arg(value_name = "MODEL")]
    pub model: String,
    /// The archive, which must not be there yet; `-` writes to standard output (default: name@revision.tar).
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Where models are kept.
    #[command(flatten)]
    pub place: Place,
}

/// `promptd model list`
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Exit codes: 0 listed, 1 failed, 2 wrong usage.")]
pub struct List {
    /// Where models are kept.
    #[command(flatten)]
    pub place: Place,
}

/// `promptd model verify`
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Exit codes: 0 all are whole, 1 at least one is not, 2 wrong usage.")]
pub struct Verify {
    /// Which: `name`, `name@revision` or how it begins, `current`, `previous`; none: all.
    #[arg(value_name = "MODEL")]
    pub which: Vec<String>,
    /// Where models are kept.
    #[command(flatten)]
    pub place: Place,
}

/// `promptd model use`
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "The model is held against its manifest, loaded by an engine of its own, asked the manifest's golden prompts and timed. \
                  Then `current` becomes it at once, and a running service takes it over; where it does not come up, the one before \
                  is put back. Exit codes: 0 it is in use, 1 it is not and the one before stays, 2 wrong usage, 75 another command \
                  works with the models."
)]
pub struct Use {
    /// Which: `name`, `name@revision` or how it begins.
    #[arg(value_name = "MODEL")]
    pub model: String,
    /// Have the service give its model's memory back for the trial, on a board without room for two; prompts wait meanwhile.
    #[arg(long, conflicts_with = "no_trial")]
    pub unload: bool,
    /// Switch without a trial.
    #[arg(long)]
    pub no_trial: bool,
    /// Where models are kept, and the service.
    #[command(flatten)]
    pub served: Served,
}

/// `promptd model rollback`
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Once more goes forward again. Exit codes: 0 it is in use, 1 it is not, 2 wrong usage, 75 another command works with the models."
)]
pub struct Rollback {
    /// Where models are kept, and the service.
    #[command(flatten)]
    pub served: Served,
}

/// `promptd model rm`
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0 removed, 1 failed, 2 wrong usage, 75 another command works with the models."
)]
pub struct Remove {
    /// Which: `name`, `name@revision` or how it begins, `previous`. The current one stays.
    #[arg(value_name = "MODEL")]
    pub model: String,
    /// Where models are kept.
    #[command(flatten)]
    pub place: Place,
}
