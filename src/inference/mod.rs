//! Tokens in, tokens out: the model folder, ONNX Runtime, KV cache, tokenizer, template, sampler and grammar behind one
//! door. No network, no tokio; the clock is passed in.

pub mod bench;
mod binding;
mod conversation;
mod cores;
mod cuda;
mod date;
mod detokenizer;
mod elf;
mod error;
mod families;
mod files;
mod folder;
mod form;
#[cfg(test)]
mod fuzz_tests;
mod generation;
mod grammar;
mod graph;
mod hashes;
pub mod inspect;
mod interface;
mod interrupt;
mod kv_cache;
mod kv_gpu;
mod kv_groups;
mod lark;
mod logprobs;
pub mod manifest;
mod mapped;
mod markup;
pub mod measure;
pub mod memory;
mod model_config;
mod onnx_file;
mod penalties;
mod pins;
mod placement;
mod prefix;
pub mod prepare;
mod prepared;
mod preparer;
mod protobuf;
mod provider;
mod runner;
mod runtime;
mod sampler;
mod schema;
#[cfg(test)]
mod schema_suite;
mod session;
pub mod signature;
mod stop;
mod template;
#[cfg(test)]
mod test_material;
mod tokenizer;
mod tools;
pub mod trial;
pub mod tune;
mod warm_up;
mod watch;

use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

pub use error::{LoadError, StepError};
pub use folder::preferred_graphs;
pub use hashes::{hex, memory as remembered_hashes};
pub use preparer::{Prepared, Preparer};
pub use provider::{Placement, Provider};

/// What is wrong with a file that is to be libonnxruntime, as far as its headers show it: missing, cut short, for another
/// processor.
pub fn library_fault(path: &std::path::Path) -> Option<String> {
    elf::fault(path)
}

pub use runner::{Runner, Start};
pub use session::Execution;

use folder::Folder;
use graph::{Graph, Settings};
use hashes::Hashes;
use preparer::Parts;
use provider::Refused;
use session::Opened;
use template::Template;
use tokenizer::Tokenizer;

/// Where the time comes from.
pub type Clock = Arc<dyn Fn() -> Instant + Send + Sync>;

/// Tokens of a prompt read in one step unless something else is asked for. Streams wait for one chunk at most, and rows of
/// the cache are used again by whole chunks; larger ones are no faster on a CPU (of 512 tokens through four layers of a
/// `LLaMA` of 1.1 billion parameters in four bits: 1.19 s in chunks of 128 and of 64, 1.24 s in chunks of 32, 1.33 s in chunks of 16).
pub const DEFAULT_PREFILL_CHUNK: u32 = 64;

/// What to load and how to run it.
#[derive(Clone, Debug)]
pub struct Config {
    /// The model folder.
    pub model: PathBuf,
    /// libonnxruntime.
    pub library: PathBuf,
    /// Where prepared copies lie; `None`: nowhere.
    pub store: Option<PathBuf>,
    /// Where checksums of model files are remembered ([`remembered_hashes`]); `None`: nowhere.
    pub hashes: Option<Arc<File>>,
    /// How its steps are executed.
    pub execution: Execution,
    /// Prompts that run at once; at least 1.
    pub slots: u16,
    /// Tokens of context for each slot; 0 takes the model's own limit, which is also the most there can be.
    pub context: u32,
    /// Another model answers meanwhile: this many bytes have to stay free beside all of this one, pages of its files included.
    pub beside: Option<u64>,
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
    /// Where the graph runs.
    pub placement: Placement,
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
    let mut hashes = Hashes::open(config.hashes.clone());
    let folder = folder::open(&config.model, &mut hashes)?;
    let words = Words::read(&folder)?;
    let (copy, stale) = copy(config, &folder, &runtime, &mut hashes)?;
    hashes.save();
    let slots = config.slots.max(1);
    let own_context = folder.config.context;
    let context = if config.context == 0 { own_context } else { config.context.min(own_context) };
    let mut warnings = folder.config.warnings.clone();
    warnings.extend(words.warnings.iter().cloned());
    let asked = config.context;
    warnings.extend((asked > own_context).then(|| {
        format!("a context of {asked} tokens was asked for, the model has {own_context}")
    }));

    warnings.extend(stale);
    check_memory(&folder, (slots, context), copy.is_some(), config.beside)?;

    progress(Stage::Weights);
    let size = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
    let settings = Settings { slots: usize::from(slots), context: size(context) };
    let Opened { session, placement, fault } = session(&runtime, &folder, copy.as_ref(), config)?;
    warnings.extend(fault.as_deref().map(unloadable));
    let mut files = folder.files.clone();
    files.extend(copy.into_iter().flat_map(|copy| copy.files));
    let mut graph = Graph::new(session, &folder, settings)?;
    let vocab = graph.vocab();
    progress(Stage::Warmup);
    graph.warm_up(&some_tokens(vocab, size(context)), usize::from(slots))?;
    if placement.provider == provider::CUDA && !graph.on_gpu {
        warnings.push(ON_CPU.into());
    }
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
        threads: config.execution.threads(),
        runtime_version: runtime.version,
        placement,
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
    drop(folder);
    let runner = Runner {
        graph,
        tokenizer,
        eos,
        clock,
        watch: watch::Watch::new(&files)?,
        chunk: size(chunk),
        slots: usize::from(slots),
        waiting: VecDeque::new(),
        reading: None,
        answering: Vec::new(),
        context: size(context),
        kept: prefix::Slots::new(usize::from(slots), size(chunk)),
        pins: pins::Pins::default(),
    };
    mapped::give_back();
    Ok(Loaded { facts, preparer: Preparer { parts: Arc::new(parts) }, runner })
}

/// The prepared copy of a model, or why the one that is there is not used.
fn copy(
    config: &Config,
    folder: &Folder,
    runtime: &runtime::Runtime,
    hashes: &mut Hashes,
) -> Result<(Option<prepared::Copy>, Option<String>), LoadError> {
    let store = config.store.as_deref().filter(|store| prepared::any(store));
    // Kernels of a GPU have no use for it.
    let Some(store) = store.filter(|_| config.execution.provider != Provider::Cuda) else {
        return Ok((None, None));
    };
    let key = prepared::Key::of(folder, &runtime.version, hashes)?;
    Ok(match prepared::find(store, folder, &key, hashes) {
        Ok(copy) => (Some(copy), None),
        Err(stale) => (None, stale),
    })
}

/// What is said of a graph on a GPU whose attention is not, or makes its keys and values anew at each step.
const ON_CPU: &str = "keys and values lie in the processor's memory and cross to the GPU and back at each step, which is slow: \
     an export for CUDA (`-e cuda` of onnxruntime-genai's builder: half precision, GroupQueryAttention) keeps them on the GPU";

/// What is said where a copy is there and ONNX Runtime refuses it.
fn unloadable(fault: &str) -> String {
    format!("the prepared copy cannot be loaded ({fault}); `promptd model prepare` makes another")
}

/// Eight tokens from all over the vocabulary, or as many as a very short context leaves room for.
fn some_tokens(vocab: usize, context: usize) -> Vec<u32> {
    let at = |n: usize| u32::try_from((n * 7 + 3) * vocab.saturating_sub(1) / 64).unwrap_or(0);
    (0..8.min(context / 2)).map(at).collect()
}

/// The graph in ONNX Runtime, and where it runs.
fn session(
    runtime: &runtime::Runtime,
    folder: &Folder,
    copy: Option<&prepared::Copy>,
    config: &Config,
) -> Result<Opened, LoadError> {
    cores::bind(&config.execution.cores).map_err(LoadError::Cores)?;
    let copy = copy.map(|copy| copy.graph.as_path());
    session::open(runtime, &folder.graph, copy, &config.execution).map_err(
        |refused| match refused {
            Refused::Provider(reason) => {
                LoadError::Provider { library: config.library.clone(), reason }
            }
            Refused::Graph(source) => LoadError::Runtime {
                path: folder.graph.clone(),
                doing: "cannot load the graph",
                source,
            },
        },
    )
}

/// Refuses what does not fit, before the kernel ends somebody for it.
fn check_memory(
    folder: &Folder,
    (slots, context): (u16, u32),
    prepared: bool,
    beside: Option<u64>,
) -> Result<(), LoadError> {
    let plan = inspect::plan_of(folder, slots, context, prepared);
    if let (Some(spare), Some(have)) = (beside, plan.available) {
        // Pages of files could be given back, and read again at each token: two models would be slower than one after the other.
        let need = plan.peak.saturating_add(plan.mapped).saturating_add(spare);
        let path = folder.root.clone();
        return if need <= have {
            Ok(())
        } else {
            Err(LoadError::NoRoomBeside { path, need, have, spare })
        };
    }
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
