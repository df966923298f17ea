//! What a graph takes and gives, read from its file and held against the configuration: names, shapes, element types. So
//! a folder whose parts do not fit each other is refused before ONNX Runtime sees it. Loads nothing.

use std::ffi::CString;
use std::path::Path;

use super::error::LoadError;
use super::model_config::ModelConfig;
use super::onnx_file::{Node, OnnxFile, Port, element};

/// How the graph is fed and read.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts of a graph")]
pub(super) struct Interface {
    pub(super) names: InputNames,
    /// Keys and values of each layer, in order.
    pub(super) cache_names: Vec<TensorName>,
    pub(super) layers: usize,
    pub(super) kv_heads: usize,
    /// Elements of one head's key (or value) of one token. Half the head's size where two share a byte.
    pub(super) head_size: usize,
    pub(super) cache: CacheElement,
    pub(super) vocab: usize,
    /// The graph computes logits for the last token of a step only.
    pub(super) pruned: bool,
    pub(super) half_logits: bool,
    /// What the graph gives of each token before it makes logits of it, where it does.
    pub(super) hidden: Option<Hidden>,
    /// Past and present may be the same memory: each goes through `GroupQueryAttention`, which is made for it.
    pub(super) shares_buffer: bool,
    /// The batch dimension is not fixed to one.
    pub(super) batches: bool,
    /// Behind a past, the graph is right for one token at a time only: it was traced so, without a causal mask.
    pub(super) single_steps: bool,
    /// What the graph's tables of rotary embeddings allow: the most tokens of context.
    pub(super) most_context: Option<u64>,
    /// There are further tables for longer contexts.
    pub(super) has_long_tables: bool,
}

/// What keys and values are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CacheElement {
    F32,
    F16,
    I8,
    /// Two values of four bits.
    U8,
}

impl CacheElement {
    /// Bytes of one element.
    pub(super) fn bytes(self) -> u64 {
        match self {
            CacheElement::F32 => 4,
            CacheElement::F16 => 2,
            CacheElement::I8 | CacheElement::U8 => 1,
        }
    }

    /// For people.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            CacheElement::F32 => "float32",
            CacheElement::F16 => "float16",
            CacheElement::I8 => "int8",
            CacheElement::U8 => "int4",
        }
    }
}

/// Hidden states as an output of the graph: a vector for each token of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hidden {
    pub(super) name: CString,
    /// Numbers of each vector.
    pub(super) width: usize,
    /// In half precision.
    pub(super) half: bool,
}

/// The names the graph's own inputs and outputs have, ready for the C interface.
#[derive(Clone, Debug)]
pub(super) struct InputNames {
    pub(super) input_ids: CString,
    pub(super) attention_mask: CString,
    pub(super) position_ids: Option<CString>,
    /// Whether there is a past (Optimum's merged graphs).
    pub(super) use_cache_branch: Option<CString>,
    /// Of how many tokens logits are wanted, and whether it is a scalar.
    pub(super) logits_to_keep: Option<(CString, bool)>,
    /// `None`: the graph has no such output, and gives hidden states only.
    pub(super) logits: Option<CString>,
}

/// Names of one layer's key (or value): past and present.
#[derive(Clone, Debug)]
pub(super) struct TensorName {
    pub(super) past: CString,
    pub(super) present: CString,
}

/// Optimum's name of the input that chooses the branch of a merged graph.
const USE_CACHE_BRANCH: &str = "use_cache_branch";
/// Names that exports use for the number of tokens whose logits are wanted.
const LOGITS_TO_KEEP: [&str; 2] = ["num_logits_to_keep", "logits_to_keep"];
/// What exports call logits.
const LOGITS: &str = "logits";
/// What exports call hidden states: onnxruntime-genai's builder with `include_hidden_states` or `exclude_lm_head`, and Optimum
/// for `feature-extraction`.
const HIDDEN_STATES: [&str; 2] = ["hidden_states", "last_hidden_state"];
/// The half of Optimum's oldest exports that takes a past; it was traced with one token.
const WITH_PAST: &str = "decoder_with_past_model";
/// Inputs that only other kinds of models have, and what such a model is.
const FOREIGN_INPUTS: &[(&str, &str)] = &[
    (
        "encoder_hidden_states",
        "it is the decoder of an encoder-decoder model; promptd runs decoder-only models",
    ),
    (
        "encoder_attention_mask",
        "it is the decoder of an encoder-decoder model; promptd runs decoder-only models",
    ),
    ("pixel_values", "it is a model of images; promptd runs text models"),
    ("image_embeds", "it is a model of images; promptd runs text models"),
    ("input_features", "it is a model of sound; promptd runs text models"),
    (
        "inputs_embeds",
        "it takes embeddings instead of tokens, as the middle part of a model of several media does",
    ),
    (
        "block_table",
        "it is a paged graph, whose cache is laid out for a server's GPU; export it without paged attention",
    ),
    (
        "cumulative_sequence_lengths",
        "it is a paged graph, whose cache is laid out for a server's GPU; export it without paged attention",
    ),
    (
        "past_conv",
        "it has convolution states; promptd runs models whose only state is a key/value cache",
    ),
    (
        "past_ssm",
        "it has state-space states; promptd runs models whose only state is a key/value cache",
    ),
];
/// Domains of operators that libonnxruntime brings along.
const DOMAINS: &[&str] =
    &["", "ai.onnx", "com.microsoft", "ai.onnx.ml", "com.microsoft.nchwc", "ai.onnx.preview"];

impl Interface {
    /// Holds a graph against its configuration.
    pub(super) fn check(
        file: &OnnxFile,
        config: &ModelConfig,
        graph: &Path,
    ) -> Result<Self, LoadError> {
        check_operators(file, graph)?;
        let view = View { file, config, graph };
        view.check_foreign()?;
        let names = &config.names;
        view.integers(&names.input_ids, "input_ids")?;
        view.integers(&names.attention_mask, "attention_mask")?;
        let has = |name: &str| file.inputs.iter().any(|input| input.name == name);
        view.check_layers()?;
        let branch = has(USE_CACHE_BRANCH).then(|| cstring(USE_CACHE_BRANCH));
        let keep = file.inputs.iter().find(|input| LOGITS_TO_KEEP.contains(&input.name.as_str()));
        view.check_others()?;

        let first = names.past_key.replace("%d", "0");
        let past = view.tensor(&file.inputs, "past_key_names", &first)?;
        let cache = view.cache_element(past)?;
        let [batch, kv_heads, tokens, head_size] = past.dims[..] else {
            let reason = format!(
                "{first} has {} dimensions, expected [batch, heads, tokens, head size]",
                past.dims.len()
            );
            return Err(LoadError::file(graph, reason));
        };
        if let Some(fixed) = tokens.filter(|fixed| *fixed > 0) {
            let reason = format!(
                "{first} is fixed to {fixed} tokens; promptd runs graphs whose cache may have any length"
            );
            return Err(LoadError::file(graph, reason));
        }
        let kv_heads = view.agree("num_key_value_heads", Some(config.kv_heads), kv_heads)?;
        // Heads may be padded in the graph; only onnxruntime-genai's configuration states the padded size. Where two
        // values share a byte, the graph has half of it.
        let stated = config.head_size.filter(|_| config.graph.is_some() || head_size.is_none());
        let stated = stated.map(|size| if cache == CacheElement::U8 { size / 2 } else { size });
        let head_size = view.agree("head_size", stated, head_size)?;

        let hidden = view.hidden()?;
        let name = names.logits.as_deref().unwrap_or(LOGITS);
        // Without logits it is a model that gives hidden states and writes nothing.
        let nothing = names.logits.is_none() && !file.outputs.iter().any(|port| port.name == name);
        let logits = match &hidden {
            Some(_) if nothing => None,
            _ => Some(view.tensor(&file.outputs, "logits", name)?),
        };
        let half_logits = logits.map_or(Ok(false), |logits| view.is_half(logits))?;
        let vocab = logits.and_then(|logits| logits.dims.last().copied().flatten());
        let vocab = view.agree("vocab_size", Some(config.vocab), vocab)?;
        let cache_names = view.cache_names();
        let (most_context, has_long_tables) = rotary_positions(file);
        let stem = graph.file_stem().unwrap_or_default().to_string_lossy();
        Ok(Interface {
            names: InputNames {
                input_ids: cstring(&names.input_ids),
                attention_mask: cstring(&names.attention_mask),
                position_ids: has(&names.position_ids).then(|| cstring(&names.position_ids)),
                use_cache_branch: branch.clone(),
                logits_to_keep: keep.map(|input| (cstring(&input.name), input.dims.is_empty())),
                logits: logits.map(|_| cstring(name)),
            },
            hidden,
            shares_buffer: cache_names.iter().all(|name| view.goes_through_gqa(name)),
            cache_names,
            layers: usize::try_from(config.layers).unwrap_or(usize::MAX),
            kv_heads,
            head_size,
            cache,
            vocab,
            pruned: keep.is_some()
                || logits.is_some_and(|logits| logits.dims.get(1) == Some(&Some(1))),
            half_logits,
            batches: batch != Some(1),
            single_steps: branch.is_some() || stem.starts_with(WITH_PAST),
            most_context,
            has_long_tables,
        })
    }

    /// Bytes of keys and values of one token.
    pub(super) fn cache_bytes_per_token(&self) -> u64 {
        let each = (self.kv_heads as u64).saturating_mul(self.head_size as u64);
        each.saturating_mul(self.cache.bytes()).saturating_mul(self.cache_names.len() as u64)
    }
}

/// Positions for which the graph has rotary embeddings, where it carries them as tables: `[positions, …]`. A longer
/// context reads behind a table's end. Where there are two, for short and for long contexts (`LongRoPE`), the shorter one
/// counts: behind its end the graph would turn to other angles than those its cache was written with.
fn rotary_positions(file: &OnnxFile) -> (Option<u64>, bool) {
    let tables = file.tensors.iter().filter(|tensor| tensor.name.contains("cos_cache"));
    let rows: Vec<u64> = tables.filter_map(|table| table.dims.first().copied()).collect();
    let least = rows.iter().copied().min();
    (least, rows.iter().any(|rows| Some(*rows) != least))
}

/// Only operators that libonnxruntime brings along, and none that make another kind of model.
fn check_operators(file: &OnnxFile, graph: &Path) -> Result<(), LoadError> {
    for node in &file.nodes {
        let Node { operator, domain, .. } = node;
        let own = file.functions.contains(&(domain.clone(), operator.clone()));
        if !own && !DOMAINS.contains(&domain.as_str()) {
            let reason = format!(
                "needs the operator {operator} of {domain}, which is not ONNX Runtime's own: it would take a library of \
                 custom operators, and promptd runs no code from model folders"
            );
            return Err(LoadError::file(graph, reason));
        }
        let other = match operator.as_str() {
            "MoE" | "QMoE" => "it is a mixture of experts; promptd runs dense models",
            "PagedAttention" => {
                "it is a paged graph, whose cache is laid out for a server's GPU; export it without paged attention"
            }
            _ => continue,
        };
        return Err(LoadError::file(graph, format!("has the operator {operator}: {other}")));
    }
    Ok(())
}

/// The graph beside the configuration it must agree with.
struct View<'a> {
    file: &'a OnnxFile,
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

    fn tensor<'p>(&self, ports: &'p [Port], key: &str, name: &str) -> Result<&'p Port, LoadError> {
        let Some(port) = ports.iter().find(|port| port.name == name) else {
            let have = ports.iter().map(|port| port.name.as_str());
            let have: Vec<&str> =
                have.filter(|name| !name.contains("key") && !name.contains("value")).collect();
            let reason = format!(
                "{key} is `{name}`, but {} has no such tensor (it has {})",
                self.graph_name(),
                have.join(", ")
            );
            return Err(self.disagree(reason));
        };
        if port.element == 0 {
            return Err(LoadError::file(self.graph, format!("{name} is no tensor")));
        }
        Ok(port)
    }

    /// Hidden states of all tokens, where the graph gives them under the name that is stated or a usual one.
    fn hidden(&self) -> Result<Option<Hidden>, LoadError> {
        let outputs = &self.file.outputs;
        let port = match &self.config.names.hidden_states {
            Some(name) => Some(self.tensor(outputs, "hidden_states", name)?),
            None => outputs.iter().find(|port| HIDDEN_STATES.contains(&port.name.as_str())),
        };
        let Some(port) = port else { return Ok(None) };
        let [_, tokens, width] = port.dims[..] else {
            let reason = format!(
                "{} has {} dimensions, expected [batch, tokens, numbers]",
                port.name,
                port.dims.len()
            );
            return Err(LoadError::file(self.graph, reason));
        };
        // Those of the last token only are an export for another purpose.
        if tokens == Some(1) {
            return Ok(None);
        }
        let width = self.agree("hidden_size", self.config.hidden_size, width)?;
        let half = self.is_half(port)?;
        Ok(Some(Hidden { name: cstring(&port.name), width, half }))
    }

    /// An input of whole numbers.
    fn integers(&self, name: &str, key: &str) -> Result<(), LoadError> {
        let port = self.tensor(&self.file.inputs, key, name)?;
        if port.element == element::INT64 {
            return Ok(());
        }
        let reason = format!("{name} takes {}, promptd gives int64", element::name(port.element));
        Err(LoadError::file(self.graph, reason))
    }

    /// Whether a tensor of floats has 16 bits.
    fn is_half(&self, port: &Port) -> Result<bool, LoadError> {
        match port.element {
            element::FLOAT32 => Ok(false),
            element::FLOAT16 => Ok(true),
            other => {
                let reason = format!(
                    "{} holds {}; promptd runs models that give float32 or float16",
                    port.name,
                    element::name(other)
                );
                Err(LoadError::file(self.graph, reason))
            }
        }
    }

    fn cache_element(&self, port: &Port) -> Result<CacheElement, LoadError> {
        match port.element {
            element::FLOAT32 => Ok(CacheElement::F32),
            element::FLOAT16 => Ok(CacheElement::F16),
            element::INT8 => Ok(CacheElement::I8),
            element::UINT8 => Ok(CacheElement::U8),
            other => {
                let reason = format!(
                    "{} holds {}; promptd runs models whose cache is float32, float16, int8 or int4",
                    port.name,
                    element::name(other)
                );
                Err(LoadError::file(self.graph, reason))
            }
        }
    }

    /// The size both say; either may be silent, not both.
    fn agree(
        &self,
        key: &str,
        stated: Option<u32>,
        found: Option<u64>,
    ) -> Result<usize, LoadError> {
        let found = found.and_then(|found| usize::try_from(found).ok()).filter(|found| *found > 0);
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

    /// `GroupQueryAttention`: the third and fourth inputs are past key and value, the second and third outputs present
    /// ones (ONNX Runtime's `docs/ContribOperators.md`).
    fn goes_through_gqa(&self, name: &TensorName) -> bool {
        let (past, present) = (name.past.to_string_lossy(), name.present.to_string_lossy());
        let is = |names: &[String], at: usize, name: &str| names.get(at).is_some_and(|n| n == name);
        self.file.nodes.iter().filter(|node| node.operator == "GroupQueryAttention").any(|node| {
            (is(&node.inputs, 3, &past) && is(&node.outputs, 1, &present))
                || (is(&node.inputs, 4, &past) && is(&node.outputs, 2, &present))
        })
    }

    /// Every layer of the configuration is in the graph, and no layer more.
    fn check_layers(&self) -> Result<(), LoadError> {
        let has = |ports: &[Port], name: &str| ports.iter().any(|port| port.name == name);
        let names = &self.config.names;
        // A pattern without `%d` would match for ever.
        let in_graph = (0..self.file.inputs.len())
            .take_while(|layer| {
                has(&self.file.inputs, &names.past_key.replace("%d", &layer.to_string()))
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
            if !has(&self.file.inputs, &past) {
                return Err(LoadError::file(self.graph, format!("has no input {past}")));
            }
            if !has(&self.file.outputs, &present) {
                return Err(LoadError::file(self.graph, format!("has no output {present}")));
            }
        }
        Ok(())
    }

    /// Inputs that show another kind of model, before anything else is found missing.
    fn check_foreign(&self) -> Result<(), LoadError> {
        for input in &self.file.inputs {
            let foreign = FOREIGN_INPUTS.iter().find(|(name, _)| input.name.starts_with(name));
            if let Some((_, what)) = foreign {
                let reason = format!("has the input {}: {what}", input.name);
                return Err(LoadError::file(self.graph, reason));
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
                || name == USE_CACHE_BRANCH
                || LOGITS_TO_KEEP.contains(&name)
                || cache.iter().any(|tensor| tensor.past.to_bytes() == name.as_bytes())
        };
        match self.file.inputs.iter().find(|input| !known(&input.name)) {
            None => Ok(()),
            Some(input) => {
                let reason = format!(
                    "has the input {}, which promptd does not know; export it again without it",
                    input.name
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
