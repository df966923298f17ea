//! Tokens in, tokens out: the model folder, ONNX Runtime, KV cache, tokenizer, template, sampler and grammar behind one
//! door. No network, no tokio; the clock is passed in.

mod binding;
mod conversation;
mod cores;
mod date;
mod detokenizer;
mod elf;
mod error;
mod families;
mod files;
mod folder;
mod form;
mod generation;
mod grammar;
mod graph;
pub mod inspect;
mod interface;
mod interrupt;
mod kv_cache;
mod kv_groups;
mod lark;
mod logprobs;
mod manifest;
mod mapped;
pub mod measure;
pub mod memory;
mod model_config;
mod onnx_file;
mod penalties;
mod pins;
mod prefix;
mod preparer;
mod protobuf;
mod runner;
mod runtime;
mod sampler;
mod schema;
#[cfg(test)]
mod schema_suite;
mod stop;
mod template;
#[cfg(test)]
mod test_material;
mod tokenizer;
mod tools;
pub mod trial;
mod warm_up;
mod watch;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

pub use error::{LoadError, StepError};
pub use preparer::{Prepared, Preparer};
pub use runner::{Runner, Start};

use folder::Folder;
use graph::{Graph, Settings};
use preparer::Parts;
use template::Template;
use tokenizer::Tokenizer;

/// Where the time comes from.
pub type Clock = Arc<dyn Fn() -> Instant + Send + Sync>;

/// Tokens of a prompt read in one step unless something else is asked for. A cancel waits for one chunk at most, and
/// larger ones are hardly faster.
pub const DEFAULT_PREFILL_CHUNK: u32 = 128;

/// What to load and how to run it.
#[derive(Clone, Debug)]
pub struct Config {
    /// The model folder.
    pub model: PathBuf,
    /// libonnxruntime.
    pub library: PathBuf,
    /// Threads of one step; 0 takes one for each physical core.
    pub threads: u16,
    /// Prompts that run at once; at least 1.
    pub slots: u16,
    /// Tokens of context for each slot; 0 takes the model's own limit, which is also the most there can be.
    pub context: u32,
    /// Tokens of a prompt read in one step; 0 takes [`DEFAULT_PREFILL_CHUNK`].
    pub prefill_chunk: u32,
}

/// The stages of loading, each told before it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// libonnxruntime is being opened. A damaged library can kill the process here.
    Runtime,
    /// The model folder is being checked.
    Folder,
    /// ONNX Runtime reads the graph and the weights.
    Weights,
    /// The first steps of the model, on tokens that nobody asked for.
    Warmup,
}

/// A model that answers.
#[derive(Debug)]
pub struct Loaded {
    /// What there is to know about it.
    pub facts: Facts,
    /// Checks prompts.
    pub preparer: Preparer,
    /// Runs them.
    pub runner: Runner,
}

/// What there is to know about a loaded model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The folder's name.
    pub name: String,
    /// The architecture its configuration states.
    pub architecture: String,
    /// Tokens of context each slot has.
    pub context: u32,
    /// Prompts that run at once.
    pub slots: u16,
    /// Tokens the model knows.
    pub vocab_size: u32,
    /// Whether it has a chat template.
    pub chat: bool,
    /// Threads of one step.
    pub threads: u16,
    /// ONNX Runtime's own version.
    pub runtime_version: String,
    /// The execution provider that runs the graph.
    pub provider: String,
    /// Things in the folder that were odd but not wrong.
    pub warnings: Vec<String>,
}

/// Loads a model. `progress` is told each stage before it begins, so that a process that dies can be told by where.
///
/// # Errors
/// Names the file and what is wrong with it; see [`LoadError`].
pub fn load(
    config: &Config,
    clock: Clock,
    progress: &mut dyn FnMut(Stage),
) -> Result<Loaded, LoadError> {
    progress(Stage::Runtime);
    let runtime = runtime::open(&config.library)?;
    progress(Stage::Folder);
    let folder = folder::open(&config.model)?;
    let words = Words::read(&folder)?;
    let slots = config.slots.max(1);
    let threads = if config.threads == 0 {
        u16::try_from(cores::physical()).unwrap_or(u16::MAX)
    } else {
        config.threads
    };
    let own_context = folder.config.context;
    let context = if config.context == 0 { own_context } else { config.context.min(own_context) };
    let mut warnings = folder.config.warnings.clone();
    warnings.extend(words.warnings.iter().cloned());
    warnings.extend((config.context > own_context).then(|| {
        let asked = config.context;
        format!("a context of {asked} tokens was asked for, the model has {own_context}")
    }));

    check_memory(&folder, slots, context)?;

    progress(Stage::Weights);
    let size = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
    let settings = Settings {
        threads: usize::from(threads),
        slots: usize::from(slots),
        context: size(context),
    };
    let mut graph = Graph::load(&runtime, &folder, settings)?;
    let vocab = graph.vocab();
    progress(Stage::Warmup);
    graph.warm_up(&some_tokens(vocab, size(context)), usize::from(slots))?;
    if slots > 1 && !graph.batches {
        warnings.push(
            "the graph cannot take prompts of different lengths in one step: they take turns, token by token".into(),
        );
    }

    let facts = Facts {
        name: folder.name.clone(),
        architecture: folder.config.architecture.clone(),
        context,
        slots,
        vocab_size: u32::try_from(vocab).unwrap_or(u32::MAX),
        chat: words.template.is_some(),
        threads,
        runtime_version: runtime.version,
        provider: "CPU".into(),
        warnings,
    };
    let (tokenizer, eos): (_, Arc<[u32]>) = (Arc::new(words.tokenizer), words.eos.into());
    let grammars = grammar::Grammars::new(Arc::clone(&tokenizer), Arc::clone(&eos), vocab);
    let parts = Parts {
        tokenizer: Arc::clone(&tokenizer),
        template: words.template,
        grammars,
        context,
        vocab,
    };
    let chunk =
        if config.prefill_chunk == 0 { DEFAULT_PREFILL_CHUNK } else { config.prefill_chunk };
    // Where several tokens are right only without a past, a prompt is read at once.
    let chunk = if folder.interface.single_steps { context } else { chunk };
    let runner = Runner {
        graph,
        tokenizer,
        eos,
        clock,
        watch: watch::Watch::new(&folder.files)?,
        chunk: size(chunk),
        slots: usize::from(slots),
        waiting: VecDeque::new(),
        reading: None,
        answering: Vec::new(),
        context: size(context),
        kept: prefix::Slots::new(usize::from(slots)),
        pins: pins::Pins::default(),
    };
    Ok(Loaded { facts, preparer: Preparer { parts: Arc::new(parts) }, runner })
}

/// Eight tokens from all over the vocabulary, or as many as a very short context leaves room for.
fn some_tokens(vocab: usize, context: usize) -> Vec<u32> {
    let at = |n: usize| u32::try_from((n * 7 + 3) * vocab.saturating_sub(1) / 64).unwrap_or(0);
    (0..8.min(context / 2)).map(at).collect()
}

/// Refuses what does not fit, before the kernel ends somebody for it.
fn check_memory(folder: &Folder, slots: u16, context: u32) -> Result<(), LoadError> {
    let plan = inspect::plan_of(folder, slots, context);
    let Some(have) = plan.available.filter(|_| !plan.fits()) else { return Ok(()) };
    let advice = if plan.largest_context >= LEAST_CONTEXT {
        format!("with a context of {} tokens it fits (`model.context`)", plan.largest_context)
    } else {
        "take fewer slots (`model.slots`) or a smaller model".to_owned()
    };
    let path = folder.root.clone();
    Err(LoadError::Memory { path, need: plan.peak, have, slots, context, advice })
}

/// A shorter context than this is of no use to anybody.
const LEAST_CONTEXT: u32 = 64;

/// Everything about a model that has to do with text.
struct Words {
    tokenizer: Tokenizer,
    template: Option<Template>,
    eos: Vec<u32>,
    /// Things that were odd but not wrong.
    warnings: Vec<String>,
}

impl Words {
    fn read(folder: &Folder) -> Result<Self, LoadError> {
        let file = folder.root.join("tokenizer.json");
        let config = &folder.tokenizer_config;
        let tokenizer = Tokenizer::read(&file, &folder.tokenizer, config, folder.config.bos)?;
        let warnings = check_tokenizer(&tokenizer, folder, &file)?;
        let mut eos = folder.config.eos.clone();
        if eos.is_empty() {
            eos.extend(tokenizer.named_id(config, "eos_token"));
        }
        if eos.is_empty() {
            let reason = "states no eos_token_id, and tokenizer_config.json no eos_token: answers would never end";
            return Err(LoadError::file(&folder.config.source, reason));
        }
        let named = |key| tokenizer::named_token(config, key);
        let template = match &folder.template {
            None => None,
            Some((file, source)) => {
                Some(Template::compile(file, source, named("bos_token"), named("eos_token"))?)
            }
        };
        Ok(Words { tokenizer, template, eos, warnings })
    }
}

/// Whether this can be the model's tokenizer. Models may know more tokens than there are, to make their number round.
fn check_tokenizer(
    tokenizer: &Tokenizer,
    folder: &Folder,
    file: &Path,
) -> Result<Vec<String>, LoadError> {
    let (have, vocab) = (tokenizer.vocab_size(), folder.interface.vocab);
    if have > vocab {
        let reason =
            format!("has the token id {}, the model has a vocabulary of {vocab}", have - 1);
        return Err(LoadError::file(file, reason));
    }
    let mut warnings = Vec::new();
    // Roundings add less than a twentieth.
    if have < vocab - vocab / 20 {
        warnings.push(format!(
            "{} has {have} tokens, the model {vocab}: is it this model's tokenizer?",
            file.display()
        ));
    }
    let named = tokenizer.named_id(&folder.tokenizer_config, "bos_token");
    if let (Some(named), Some(stated)) = (named, folder.config.bos)
        && named != stated
    {
        warnings.push(format!(
            "tokenizer_config.json's bos_token is the token {named}, {} says {stated}: is it this model's tokenizer?",
            folder.config.source.display()
        ));
    }
    Ok(warnings)
}
