//! What a model folder's JSON states of its model: `genai_config.json` (onnxruntime-genai), or `config.json` and
//! `generation_config.json` (transformers.js, Optimum). Parsing and plausibility only; whether the graph agrees is
//! checked in [`super::interface`].

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::error::LoadError;
use super::families;

/// Longer contexts than any published model has; more is a typing error that would be paid for in memory.
const MAX_CONTEXT: u64 = 4 << 20;
/// More layers, heads or ids than any published model has.
const MAX_COUNT: u64 = 16 << 20;

/// The model as its configuration states it.
#[derive(Clone, Debug)]
pub(super) struct ModelConfig {
    /// The file the facts come from, named in errors.
    pub(super) source: PathBuf,
    /// `model.type` or `model_type`.
    pub(super) architecture: String,
    /// The graph's file name, relative to the folder the configuration is in; `None` where it does not say.
    pub(super) graph: Option<String>,
    /// Tokens of context.
    pub(super) context: u32,
    /// Tokens the model knows.
    pub(super) vocab: u32,
    pub(super) layers: u32,
    pub(super) kv_heads: u32,
    /// Absent where neither the configuration nor a division says it.
    pub(super) head_size: Option<u32>,
    /// Numbers of a token's hidden state, where it says so.
    pub(super) hidden_size: Option<u32>,
    /// Ends an answer.
    pub(super) eos: Vec<u32>,
    pub(super) bos: Option<u32>,
    pub(super) names: Names,
    /// Things that were odd but not wrong.
    pub(super) warnings: Vec<String>,
}

/// What the graph's inputs and outputs are called; `%d` stands for the layer.
#[derive(Clone, Debug)]
pub(super) struct Names {
    pub(super) input_ids: String,
    pub(super) attention_mask: String,
    pub(super) position_ids: String,
    pub(super) past_key: String,
    pub(super) past_value: String,
    /// `None`: `logits`, where there is such an output.
    pub(super) logits: Option<String>,
    /// `None`: one of the usual names, where there is one.
    pub(super) hidden_states: Option<String>,
    pub(super) present_key: String,
    pub(super) present_value: String,
}

impl Default for Names {
    fn default() -> Self {
        Names {
            input_ids: "input_ids".into(),
            attention_mask: "attention_mask".into(),
            position_ids: "position_ids".into(),
            past_key: "past_key_values.%d.key".into(),
            past_value: "past_key_values.%d.value".into(),
            logits: None,
            hidden_states: None,
            present_key: "present.%d.key".into(),
            present_value: "present.%d.value".into(),
        }
    }
}

/// A JSON object with the file and the path it came from, so that each wrong value can be named.
#[derive(Clone, Copy)]
struct Object<'a> {
    file: &'a Path,
    at: &'a str,
    value: &'a Value,
}

/// Reads `genai_config.json`.
pub(super) fn genai(file: &Path, json: &Value) -> Result<ModelConfig, LoadError> {
    let root = Object { file, at: "", value: json };
    let model = root.object("model")?;
    let architecture = model.string("type")?.ok_or_else(|| model.missing("type"))?;
    check_architecture(file, "model.type", &architecture)?;
    for part in ["encoder", "embedding", "vision", "speech", "joiner", "vad"] {
        if model.get(part).is_some_and(Value::is_object) {
            let reason = format!(
                "model.{part} makes this a model of several graphs; promptd runs decoder-only text models"
            );
            return Err(LoadError::file(file, reason));
        }
    }
    let decoder = model.object("decoder")?;
    if decoder.get("pipeline").is_some() {
        return Err(LoadError::file(
            file,
            "model.decoder.pipeline splits the model into several graphs, which promptd does not run",
        ));
    }
    let mut warnings = Vec::new();
    if let Some(options) = decoder.get("session_options") {
        session_options(file, options, &mut warnings)?;
    }
    let vocab = model.count("vocab_size")?.ok_or_else(|| model.missing("vocab_size"))?;
    let eos = match model.ids("eos_token_id", vocab)? {
        ids if ids.is_empty() => model.ids("pad_token_id", vocab)?,
        ids => ids,
    };
    Ok(ModelConfig {
        source: file.into(),
        architecture,
        graph: Some(decoder.string("filename")?.ok_or_else(|| decoder.missing("filename"))?),
        context: model.context("context_length")?,
        vocab,
        layers: decoder
            .count("num_hidden_layers")?
            .ok_or_else(|| decoder.missing("num_hidden_layers"))?,
        kv_heads: decoder
            .count("num_key_value_heads")?
            .ok_or_else(|| decoder.missing("num_key_value_heads"))?,
        head_size: decoder.count("head_size")?,
        hidden_size: decoder.count("hidden_size")?,
        eos,
        bos: model.ids("bos_token_id", vocab)?.first().copied(),
        names: names(&decoder)?,
        warnings,
    })
}

fn names(decoder: &Object<'_>) -> Result<Names, LoadError> {
    let mut names = Names::default();
    let inputs: [(&str, &mut String); 5] = [
        ("input_ids", &mut names.input_ids),
        ("attention_mask", &mut names.attention_mask),
        ("position_ids", &mut names.position_ids),
        ("past_key_names", &mut names.past_key),
        ("past_value_names", &mut names.past_value),
    ];
    for (part, fields) in [
        ("inputs", inputs.into_iter().collect::<Vec<_>>()),
        (
            "outputs",
            vec![
                ("present_key_names", &mut names.present_key),
                ("present_value_names", &mut names.present_value),
            ],
        ),
    ] {
        if decoder.get(part).is_none() {
            continue;
        }
        let at = format!("model.decoder.{part}");
        let object = Object { file: decoder.file, at: &at, value: decoder.object(part)?.value };
        for (key, name) in fields {
            if let Some(stated) = object.string(key)? {
                *name = stated;
            }
        }
        if part == "outputs" {
            names.logits = object.string("logits")?;
            names.hidden_states = object.string("hidden_states")?;
        }
    }
    Ok(names)
}

fn session_options(
    file: &Path,
    options: &Value,
    warnings: &mut Vec<String>,
) -> Result<(), LoadError> {
    if options.get("custom_ops_library").is_some() {
        let reason = "model.decoder.session_options.custom_ops_library asks for code from the model folder to be run, which promptd never does";
        return Err(LoadError::file(file, reason));
    }
    let providers = options.get("provider_options").and_then(Value::as_array);
    for name in
        providers.into_iter().flatten().filter_map(Value::as_object).flat_map(serde_json::Map::keys)
    {
        if !name.eq_ignore_ascii_case("cpu") {
            warnings.push(format!(
                "{} was made for the execution provider {name}; where it runs here is `runtime.provider`'s to say",
                file.display()
            ));
        }
    }
    Ok(())
}

/// Reads `config.json`, and `generation_config.json` where there is one.
pub(super) fn hugging_face(
    file: &Path,
    json: &Value,
    generation: Option<(&Path, &Value)>,
) -> Result<ModelConfig, LoadError> {
    let root = Object { file, at: "", value: json };
    let architecture = root.string("model_type")?.ok_or_else(|| root.missing("model_type"))?;
    check_architecture(file, "model_type", &architecture)?;
    if json.get("is_encoder_decoder").and_then(Value::as_bool) == Some(true) {
        return Err(LoadError::file(
            file,
            "is_encoder_decoder: promptd runs decoder-only text models",
        ));
    }
    let vocab = root.count("vocab_size")?.ok_or_else(|| root.missing("vocab_size"))?;
    let heads =
        root.count("num_attention_heads")?.ok_or_else(|| root.missing("num_attention_heads"))?;
    let hidden = root.count("hidden_size")?;
    let head_size = match root.count("head_dim")? {
        Some(size) => Some(size),
        None => hidden.and_then(|hidden| hidden.checked_div(heads)),
    };
    let stated = generation.map(|(file, value)| Object { file, at: "", value });
    let ids = |key: &str| -> Result<Vec<u32>, LoadError> {
        let stated = stated.map_or(Ok(Vec::new()), |object| object.ids(key, vocab))?;
        if stated.is_empty() { root.ids(key, vocab) } else { Ok(stated) }
    };
    Ok(ModelConfig {
        source: file.into(),
        architecture,
        graph: None,
        context: root.context("max_position_embeddings")?,
        vocab,
        layers: root
            .count("num_hidden_layers")?
            .ok_or_else(|| root.missing("num_hidden_layers"))?,
        kv_heads: root.count("num_key_value_heads")?.unwrap_or(heads),
        head_size,
        hidden_size: hidden,
        eos: ids("eos_token_id")?,
        bos: ids("bos_token_id")?.first().copied(),
        names: Names::default(),
        warnings: Vec::new(),
    })
}

fn check_architecture(file: &Path, key: &str, name: &str) -> Result<(), LoadError> {
    match families::refusal(name) {
        None => Ok(()),
        Some(reason) => Err(LoadError::file(file, format!("{key} is `{name}`, {reason}"))),
    }
}

impl<'a> Object<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.value.get(key).filter(|value| !value.is_null())
    }

    fn path(&self, key: &str) -> String {
        if self.at.is_empty() { key.to_owned() } else { format!("{}.{key}", self.at) }
    }

    fn missing(&self, key: &str) -> LoadError {
        LoadError::file(self.file, format!("has no {}", self.path(key)))
    }

    fn wrong(&self, key: &str, value: &Value, expected: &str) -> LoadError {
        let mut text = value.to_string();
        if text.chars().count() > 60 {
            text = text.chars().take(57).chain("...".chars()).collect();
        }
        LoadError::file(self.file, format!("{} is {text}, expected {expected}", self.path(key)))
    }

    fn object(&self, key: &'static str) -> Result<Object<'a>, LoadError> {
        let value = self.get(key).ok_or_else(|| self.missing(key))?;
        let at = if self.at.is_empty() {
            key
        } else if key == "decoder" {
            "model.decoder"
        } else {
            key
        };
        if value.is_object() {
            Ok(Object { file: self.file, at, value })
        } else {
            Err(self.wrong(key, value, "an object"))
        }
    }

    fn string(&self, key: &str) -> Result<Option<String>, LoadError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => Err(self.wrong(key, other, "a string")),
        }
    }

    fn count(&self, key: &str) -> Result<Option<u32>, LoadError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_u64().filter(|number| (1..=MAX_COUNT).contains(number));
        let number = number.and_then(|number| u32::try_from(number).ok());
        number
            .map(Some)
            .ok_or_else(|| self.wrong(key, value, &format!("a whole number from 1 to {MAX_COUNT}")))
    }

    fn context(&self, key: &str) -> Result<u32, LoadError> {
        let value = self.get(key).ok_or_else(|| self.missing(key))?;
        let number = value.as_u64().filter(|number| (2..=MAX_CONTEXT).contains(number));
        let number = number.and_then(|number| u32::try_from(number).ok());
        number.ok_or_else(|| {
            self.wrong(key, value, &format!("a whole number from 2 to {MAX_CONTEXT}"))
        })
    }

    /// Token ids: a number or a list of them, all within the vocabulary.
    fn ids(&self, key: &str, vocab: u32) -> Result<Vec<u32>, LoadError> {
        let one = |value: &Value| {
            let id = value.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|id| *id < vocab);
            id.ok_or_else(|| {
                self.wrong(key, value, &format!("a token id below vocab_size, which is {vocab}"))
            })
        };
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(ids)) => ids.iter().map(one).collect(),
            Some(id) => Ok(vec![one(id)?]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn whole() -> Value {
        json!({"model": {"type": "llama", "context_length": 512, "vocab_size": 512, "eos_token_id": [1, 2],
            "bos_token_id": 1, "decoder": {"filename": "model.onnx", "head_size": 16, "num_hidden_layers": 5,
            "num_key_value_heads": 4, "inputs": {"input_ids": "tokens"}}},
            "search": {"past_present_share_buffer": true}})
    }

    #[test]
    fn genai_is_read() {
        let config = genai(Path::new("g.json"), &whole()).unwrap();
        assert_eq!(
            (config.context, config.vocab, config.eos, config.bos),
            (512, 512, vec![1, 2], Some(1))
        );
        assert_eq!((config.names.input_ids.as_str(), config.names.logits), ("tokens", None));
    }

    #[test]
    fn wrong_values_are_named() {
        let cases = [
            ("/model/type", json!("whisper"), "model.type is `whisper`"),
            ("/model/context_length", json!(0), "model.context_length is 0"),
            ("/model/context_length", json!(1_u64 << 40), "model.context_length is 1099511627776"),
            (
                "/model/eos_token_id",
                json!([1_000_000_000]),
                "model.eos_token_id is 1000000000, expected a token id",
            ),
            (
                "/model/decoder/num_hidden_layers",
                json!("5"),
                "model.decoder.num_hidden_layers is \"5\"",
            ),
            (
                "/model/decoder/num_key_value_heads",
                Value::Null,
                "has no model.decoder.num_key_value_heads",
            ),
            ("/model/decoder/inputs/input_ids", json!(3), "model.decoder.inputs.input_ids is 3"),
            ("/model/decoder", json!([]), "model.decoder is [], expected an object"),
            ("/model/vocab_size", json!(-1), "model.vocab_size is -1"),
        ];
        for (pointer, value, words) in cases {
            let mut json = whole();
            *json.pointer_mut(pointer).unwrap() = value;
            let error = genai(Path::new("g.json"), &json).unwrap_err().to_string();
            assert!(error.contains(words), "{error} / {words}");
        }
        let mut json = whole();
        json["model"]["decoder"]["session_options"] = json!({"custom_ops_library": "x.so"});
        assert!(
            genai(Path::new("g.json"), &json)
                .unwrap_err()
                .to_string()
                .contains("custom_ops_library")
        );
        json["model"]["decoder"]["session_options"] = json!({"provider_options": [{"cuda": {}}]});
        assert!(genai(Path::new("g.json"), &json).unwrap().warnings[0].contains("cuda"));
    }
}
