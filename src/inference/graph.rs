//! The graph in ONNX Runtime: builds the session, holds it against the configuration, and runs steps over the KV cache.

use std::ffi::CString;
use std::path::{Path, PathBuf};

use ort::session::Session;
use ort::value::Outlet;
use ort::value::TensorElementType;

use super::binding::Step;
use super::error::LoadError;
use super::folder::Folder;
use super::kv_cache::{Cache, KvCache, Shape, TensorName, Window};
use super::model_config::ModelConfig;
use super::runtime::Runtime;

/// How the graph is run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    pub(super) threads: usize,
    pub(super) slots: usize,
    pub(super) context: usize,
}

/// A loaded graph with its cache.
pub(super) struct Graph {
    session: Session,
    cache: KvCache,
    names: InputNames,
    vocab: usize,
    /// The graph computes logits for the last token of a step only.
    pruned: bool,
    half_logits: bool,
    /// Logits of the last step, one row for each of its slots.
    logits: Vec<f32>,
    file: PathBuf,
}

/// The names the graph's own inputs and outputs have, ready for the C interface.
struct InputNames {
    input_ids: CString,
    attention_mask: CString,
    position_ids: Option<CString>,
    logits: CString,
}

/// One slot's part in a step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row<'a> {
    pub(super) slot: usize,
    /// Tokens of this prompt that are already in the cache.
    pub(super) past: usize,
    /// Tokens to read.
    pub(super) tokens: &'a [u32],
}

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Graph")
            .field("file", &self.file)
            .field("vocab", &self.vocab)
            .field("pruned", &self.pruned)
            .finish_non_exhaustive()
    }
}

impl Graph {
    /// Lets ONNX Runtime load the graph, which maps its weights from the file.
    pub(super) fn load(
        runtime: &Runtime,
        folder: &Folder,
        settings: Settings,
    ) -> Result<Self, LoadError> {
        let file = &folder.graph;
        let session = session(runtime, file, settings.threads).map_err(|source| {
            LoadError::Runtime { path: file.clone(), doing: "cannot load the graph", source }
        })?;
        let found = Found::check(&session, folder)?;
        let shape = Shape { context: settings.context, slots: settings.slots, ..found.shape };
        let shared = folder.config.shares_buffer == Some(true);
        let cache = match (found.half_cache, shared) {
            (false, true) => KvCache::F32(Cache::shared(shape, found.cache_names)),
            (false, false) => KvCache::F32(Cache::grown(shape, found.cache_names)),
            (true, true) => KvCache::F16(Cache::shared(shape, found.cache_names)),
            (true, false) => KvCache::F16(Cache::grown(shape, found.cache_names)),
        };
        let (vocab, pruned, half_logits) = (found.vocab, found.pruned, found.half_logits);
        Ok(Graph {
            session,
            cache,
            names: found.names,
            vocab,
            pruned,
            half_logits,
            logits: Vec::new(),
            file: file.clone(),
        })
    }

    /// Logits for each token of the vocabulary.
    pub(super) fn vocab(&self) -> usize {
        self.vocab
    }

    /// Runs one step of every kind on tokens that nobody asked for, so that faults show before the first prompt.
    pub(super) fn warm_up(&mut self, token: u32, slots: usize) -> Result<(), LoadError> {
        let fail =
            |path: &Path, doing, source| LoadError::Runtime { path: path.into(), doing, source };
        let pair = [token; 2];
        let row = |slot, past, tokens| Row { slot, past, tokens };
        let mut first = self.forward(&[row(0, 0, &pair)]);
        if first.is_err() && !self.pruned {
            // A graph whose logits are pruned without its output type saying so.
            self.pruned = true;
            let again = self.forward(&[row(0, 0, &pair)]);
            if again.is_ok() {
                first = again;
            }
        }
        first.map_err(|source| fail(&self.file, "failed in the first step", source))?;
        if !self.logits.iter().all(|logit| logit.is_finite()) {
            let reason = "the first step gives logits that are no numbers; the weights are damaged";
            return Err(LoadError::file(&self.file, reason));
        }
        let rows: Vec<Row<'_>> = (0..slots.min(2))
            .map(|slot| row(slot, 2 * usize::from(slot == 0), &pair[..1]))
            .collect();
        self.forward(&rows)
            .map_err(|source| fail(&self.file, "failed in the first decode step", source))
    }

    /// One step: several tokens of one slot, or one token of each of the slots 0, 1, 2, … in order.
    pub(super) fn forward(&mut self, rows: &[Row<'_>]) -> ort::Result<()> {
        self.logits.clear();
        if self.cache.batches() {
            return self.run(rows);
        }
        rows.iter().try_for_each(|row| self.run(std::slice::from_ref(row)))
    }

    /// The logits behind the last token of the step's row `index`.
    pub(super) fn logits(&self, index: usize) -> &[f32] {
        self.logits.get(index * self.vocab..(index + 1) * self.vocab).unwrap_or_default()
    }

    /// See [`KvCache::move_slot`].
    pub(super) fn move_slot(&mut self, from: usize, to: usize, tokens: usize) {
        self.cache.move_slot(from, to, tokens);
    }

    fn run(&mut self, rows: &[Row<'_>]) -> ort::Result<()> {
        let Some(first) = rows.first() else { return Ok(()) };
        let (count, tokens) = (rows.len(), first.tokens.len());
        let window = Window { first: first.slot, count, past: first.past, tokens };
        let total = rows.iter().map(|row| row.past + tokens).max().unwrap_or(0);
        let ids: Vec<i64> =
            rows.iter().flat_map(|row| row.tokens).map(|id| i64::from(*id)).collect();
        // Shorter rows are padded on the right: the count of ones is where a row's new token goes.
        let mask: Vec<i64> = rows
            .iter()
            .flat_map(|row| (0..total).map(|at| i64::from(at < row.past + tokens)))
            .collect();
        let positions: Vec<i64> =
            rows.iter().flat_map(|row| row.past..row.past + tokens).map(dim).collect();
        let logit_rows = if self.pruned { 1 } else { tokens };
        let elements = count * logit_rows * self.vocab;
        let (mut single, mut half) = if self.half_logits {
            (Vec::new(), vec![0_u16; elements])
        } else {
            (vec![0.0; elements], Vec::new())
        };

        let mut step = Step::new(&self.session)?;
        self.cache.bind(&mut step, window)?;
        step.input(&self.names.input_ids, &ids, &[dim(count), dim(tokens)])?;
        step.input(&self.names.attention_mask, &mask, &[dim(count), dim(total)])?;
        if let Some(name) = &self.names.position_ids {
            step.input(name, &positions, &[dim(count), dim(tokens)])?;
        }
        let shape = [count, logit_rows, self.vocab].map(dim);
        if self.half_logits {
            step.output(&self.names.logits, &mut half, &shape)?;
        } else {
            step.output(&self.names.logits, &mut single, &shape)?;
        }
        step.run(&mut self.session)?;
        self.cache.stepped(window);

        for row in 0..count {
            let start = (row * logit_rows + logit_rows - 1) * self.vocab;
            let range = start..start + self.vocab;
            if self.half_logits {
                let bits = half.get(range).unwrap_or_default();
                self.logits.extend(bits.iter().map(|bits| half::f16::from_bits(*bits).to_f32()));
            } else {
                self.logits.extend_from_slice(single.get(range).unwrap_or_default());
            }
        }
        Ok(())
    }
}

fn session(runtime: &Runtime, file: &Path, threads: usize) -> ort::Result<Session> {
    // The builder rides in its errors for those who want to go on without the option; nobody does here.
    #[expect(clippy::needless_pass_by_value, reason = "has the form that map_err takes")]
    fn plain<T>(error: ort::Error<T>) -> ort::Error {
        ort::Error::new_with_code(error.code(), error.message())
    }
    Session::builder(&runtime.environment)?
        .with_log_level(ort::logging::LogLevel::Error)
        .map_err(plain)?
        .with_intra_threads(threads)
        .map_err(plain)?
        .with_inter_threads(1)
        .map_err(plain)?
        // Threads that spin take a core from everybody else on the device, and are slower when anything else runs.
        .with_intra_op_spinning(false)
        .map_err(plain)?
        .with_config_entry("session.force_spinning_stop", "1")
        .map_err(plain)?
        // Every step has another shape; a memory pattern for each of them would only be kept, never used.
        .with_memory_pattern(false)
        .map_err(plain)?
        .commit_from_file(file)
}

/// What the graph itself says, found to agree with the configuration.
struct Found {
    shape: Shape,
    names: InputNames,
    cache_names: Vec<TensorName>,
    vocab: usize,
    pruned: bool,
    half_cache: bool,
    half_logits: bool,
}

impl Found {
    fn check(session: &Session, folder: &Folder) -> Result<Self, LoadError> {
        let view = View { session, config: &folder.config, graph: &folder.graph };
        let config = view.config;
        let names = &config.names;
        view.tensor(session.inputs(), "input_ids", &names.input_ids)?;
        view.tensor(session.inputs(), "attention_mask", &names.attention_mask)?;
        let has_positions = session.inputs().iter().any(|input| input.name() == names.position_ids);
        let layers = usize::try_from(config.layers).unwrap_or(usize::MAX);
        view.check_layers()?;
        view.check_others()?;

        let first = |pattern: &str| pattern.replace("%d", "0");
        let (cache_type, cache_dims) =
            view.tensor(session.inputs(), "past_key_names", &first(&names.past_key))?;
        let half_cache = view.float(&first(&names.past_key), cache_type)?;
        let [_, kv_heads, _, head_size] = cache_dims[..] else {
            let reason = format!(
                "{} has {} dimensions, expected [batch, heads, tokens, head size]",
                first(&names.past_key),
                cache_dims.len()
            );
            return Err(LoadError::file(view.graph, reason));
        };
        let kv_heads = view.agree("num_key_value_heads", Some(config.kv_heads), kv_heads)?;
        // Heads may be padded in the graph; only onnxruntime-genai's configuration states the padded size.
        let stated = config.head_size.filter(|_| config.graph.is_some() || head_size < 1);
        let head_size = view.agree("head_size", stated, head_size)?;

        let (logits_type, dims) = view.tensor(session.outputs(), "logits", &names.logits)?;
        let half_logits = view.float(&names.logits, logits_type)?;
        let vocab =
            view.agree("vocab_size", Some(config.vocab), dims.last().copied().unwrap_or(-1))?;
        let names = InputNames {
            input_ids: cstring(&names.input_ids),
            attention_mask: cstring(&names.attention_mask),
            position_ids: has_positions.then(|| cstring(&names.position_ids)),
            logits: cstring(&names.logits),
        };
        Ok(Found {
            shape: Shape { layers, kv_heads, head_size, context: 0, slots: 0 },
            names,
            cache_names: view.cache_names(),
            vocab,
            pruned: dims.get(1) == Some(&1),
            half_cache,
            half_logits,
        })
    }
}

/// The session beside the configuration it must agree with.
struct View<'a> {
    session: &'a Session,
    config: &'a ModelConfig,
    graph: &'a Path,
}

impl View<'_> {
    fn disagree(&self, reason: String) -> LoadError {
        LoadError::file(&self.config.source, reason)
    }

    fn graph_name(&self) -> String {
        self.graph.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    fn tensor(
        &self,
        outlets: &[Outlet],
        key: &str,
        name: &str,
    ) -> Result<(TensorElementType, Vec<i64>), LoadError> {
        let Some(outlet) = outlets.iter().find(|outlet| outlet.name() == name) else {
            let have: Vec<&str> = outlets
                .iter()
                .map(Outlet::name)
                .filter(|name| !name.contains("key") && !name.contains("value"))
                .collect();
            let reason = format!(
                "{key} is `{name}`, but {} has no such tensor (it has {})",
                self.graph_name(),
                have.join(", ")
            );
            return Err(self.disagree(reason));
        };
        match (outlet.dtype().tensor_type(), outlet.dtype().tensor_shape()) {
            (Some(ty), Some(shape)) => Ok((ty, shape.to_vec())),
            _ => Err(LoadError::file(self.graph, format!("{name} is no tensor"))),
        }
    }

    /// Whether a tensor of floats has 16 bits.
    fn float(&self, name: &str, ty: TensorElementType) -> Result<bool, LoadError> {
        match ty {
            TensorElementType::Float32 => Ok(false),
            TensorElementType::Float16 => Ok(true),
            other => {
                let reason = format!(
                    "{name} holds {other}; promptd runs models whose cache and logits are float32 or float16"
                );
                Err(LoadError::file(self.graph, reason))
            }
        }
    }

    /// The size both say; either may be silent, not both.
    fn agree(&self, key: &str, stated: Option<u32>, found: i64) -> Result<usize, LoadError> {
        let found = usize::try_from(found).ok().filter(|found| *found > 0);
        let stated = stated.and_then(|stated| usize::try_from(stated).ok());
        match (stated, found) {
            (Some(stated), Some(found)) if stated != found => {
                Err(self
                    .disagree(format!("{key} is {stated}, but {} has {found}", self.graph_name())))
            }
            (_, Some(found)) => Ok(found),
            (Some(stated), None) => Ok(stated),
            (None, None) => {
                Err(self
                    .disagree(format!("states no {key}, and {} leaves it open", self.graph_name())))
            }
        }
    }

    fn cache_names(&self) -> Vec<TensorName> {
        let names = &self.config.names;
        let of = |past: &str, present: &str, layer: u32| {
            let at = |pattern: &str| cstring(&pattern.replace("%d", &layer.to_string()));
            TensorName { past: at(past), present: at(present) }
        };
        let pair = |layer| {
            [
                of(&names.past_key, &names.present_key, layer),
                of(&names.past_value, &names.present_value, layer),
            ]
        };
        (0..self.config.layers).flat_map(pair).collect()
    }

    /// Every layer of the configuration is in the graph, and no layer more.
    fn check_layers(&self) -> Result<(), LoadError> {
        let has =
            |outlets: &[Outlet], name: &str| outlets.iter().any(|outlet| outlet.name() == name);
        let names = &self.config.names;
        // A pattern without `%d` would match for ever.
        let in_graph = (0..self.session.inputs().len())
            .take_while(|layer| {
                has(self.session.inputs(), &names.past_key.replace("%d", &layer.to_string()))
            })
            .count();
        if in_graph == 0 {
            let reason = format!(
                "past_key_names is `{}`, but {} has no such input",
                names.past_key,
                self.graph_name()
            );
            return Err(self.disagree(reason));
        }
        if usize::try_from(self.config.layers) != Ok(in_graph) {
            let reason = format!(
                "num_hidden_layers is {}, but {} has {in_graph}",
                self.config.layers,
                self.graph_name()
            );
            return Err(self.disagree(reason));
        }
        for name in self.cache_names() {
            let (past, present) = (name.past.to_string_lossy(), name.present.to_string_lossy());
            if !has(self.session.inputs(), &past) {
                return Err(LoadError::file(self.graph, format!("has no input {past}")));
            }
            if !has(self.session.outputs(), &present) {
                return Err(LoadError::file(self.graph, format!("has no output {present}")));
            }
        }
        Ok(())
    }

    /// Inputs that promptd would not feed make a graph of another kind.
    fn check_others(&self) -> Result<(), LoadError> {
        let names = &self.config.names;
        let cache = self.cache_names();
        let known = |name: &str| {
            [&names.input_ids, &names.attention_mask, &names.position_ids]
                .iter()
                .any(|known| *known == name)
                || cache.iter().any(|tensor| tensor.past.to_bytes() == name.as_bytes())
        };
        match self.session.inputs().iter().find(|input| !known(input.name())) {
            None => Ok(()),
            Some(input) => {
                let reason = format!(
                    "has the input {}, which promptd does not know; export it again without it",
                    input.name()
                );
                Err(LoadError::file(self.graph, reason))
            }
        }
    }
}

/// Names come from JSON or ONNX and were compared with the graph's; one with a zero byte in it matches none there.
fn cstring(name: &str) -> CString {
    CString::new(name.replace('\0', "")).unwrap_or_default()
}

fn dim(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}
