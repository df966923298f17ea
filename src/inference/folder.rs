//! Finds out what a model folder holds and checks every file before anything else opens it. Loads nothing.
//!
//! Three layouts are told apart, in this order: onnxruntime-genai (`genai_config.json`), transformers.js
//! (`config.json` and `onnx/*.onnx`), Optimum (`config.json` and `model.onnx`).

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::error::LoadError;
use super::files::{inside, plain_file, read, read_json, read_text};
use super::mapped::Mapped;
use super::model_config::{self, ModelConfig};
use super::{manifest, onnx_file};

/// A git-lfs pointer begins with this; its specification allows at most 1,024 bytes.
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";
/// Graph names of the transformers.js and Optimum layouts, the preferred first: full precision before quantised.
const GRAPH_NAMES: &[&str] = &[
    "model.onnx",
    "decoder_model_merged.onnx",
    "decoder_with_past_model.onnx",
    "model_q4.onnx",
    "model_quantized.onnx",
    "model_fp16.onnx",
];

/// A model folder whose files are all there and fit each other as far as files can tell.
#[derive(Debug)]
pub(super) struct Folder {
    pub(super) root: PathBuf,
    /// The folder's own name.
    pub(super) name: String,
    pub(super) config: ModelConfig,
    /// The graph's file.
    pub(super) graph: PathBuf,
    /// tokenizer.json, read.
    pub(super) tokenizer: Vec<u8>,
    /// `tokenizer_config.json`; `null` where there is none.
    pub(super) tokenizer_config: Value,
    /// The chat template and the file it is in.
    pub(super) template: Option<(PathBuf, String)>,
}

/// Looks at the folder.
pub(super) fn open(path: &Path) -> Result<Folder, LoadError> {
    let refuse = |reason: &str| LoadError::Folder { path: path.into(), reason: reason.into() };
    let root = match std::fs::canonicalize(path) {
        Ok(root) if root.is_dir() => root,
        Ok(_) => return Err(refuse("is no folder")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(refuse("does not exist"));
        }
        Err(source) => return Err(LoadError::Read { path: path.into(), source }),
    };
    manifest::check(&root)?;
    let (config, graph) = layout(&root)?;
    check_graph(&root, &graph, &config)?;
    let tokenizer = read(&root.join("tokenizer.json"))?;
    let (tokenizer_config, template) = tokenizer_files(&root)?;
    let name =
        root.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned());
    Ok(Folder { root, name, config, graph, tokenizer, tokenizer_config, template })
}

fn layout(root: &Path) -> Result<(ModelConfig, PathBuf), LoadError> {
    let genai = root.join("genai_config.json");
    if exists(&genai) {
        let config = model_config::genai(&genai, &read_json(&genai)?)?;
        let name = config.graph.clone().unwrap_or_default();
        let graph = inside(root, &genai, "model.decoder.filename", &name)?;
        return Ok((config, graph));
    }
    let file = root.join("config.json");
    if !exists(&file) {
        let mut reason = String::from(
            "holds neither genai_config.json nor config.json, so it is no model folder that promptd knows",
        );
        if let Some(below) = find_below(root, VARIANT_DEPTH) {
            reason =
                format!("is no model folder itself, but {} is: name that one", below.display());
        }
        return Err(LoadError::Folder { path: root.into(), reason });
    }
    let generation = root.join("generation_config.json");
    let stated = if exists(&generation) { Some(read_json(&generation)?) } else { None };
    let stated = stated.as_ref().map(|value| (generation.as_path(), value));
    let config = model_config::hugging_face(&file, &read_json(&file)?, stated)?;
    let onnx = root.join("onnx");
    if onnx.is_symlink() {
        return Err(LoadError::file(
            onnx,
            "is a symbolic link; model folders hold plain files only",
        ));
    }
    let candidates = [onnx.as_path(), root].into_iter();
    let candidates =
        candidates.flat_map(|folder| GRAPH_NAMES.iter().map(move |name| folder.join(name)));
    match { candidates }.find(|path| exists(path)) {
        Some(graph) => Ok((config, graph)),
        None => Err(LoadError::file(
            root.join("model.onnx"),
            "is missing, and there is no other graph in the folder",
        )),
    }
}

/// Repositories of models hold variants in folders such as `cpu_and_mobile/cpu-int4-rtn-block-32/`.
const VARIANT_DEPTH: u32 = 3;
/// More entries than any repository of models has at one level.
const MAX_ENTRIES: usize = 256;

/// A folder below that holds a model: the first by name.
fn find_below(folder: &Path, depth: u32) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?.take(MAX_ENTRIES).filter_map(Result::ok);
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let mut folders: Vec<PathBuf> = folders.map(|entry| entry.path()).collect();
    folders.sort();
    let here = folders.iter().find(|folder| exists(&folder.join("genai_config.json"))).cloned();
    here.or_else(|| {
        folders.iter().filter(|_| depth > 1).find_map(|folder| find_below(folder, depth - 1))
    })
}

/// The graph's file and every file it needs: there, plain, inside the folder, long enough.
fn check_graph(root: &Path, graph: &Path, config: &ModelConfig) -> Result<(), LoadError> {
    plain_file(graph)?;
    let map = Mapped::open(graph)?;
    if map.bytes().starts_with(LFS_POINTER) {
        return Err(LoadError::file(
            graph,
            "is a git-lfs pointer, not the model; run `git lfs pull` where it was cloned",
        ));
    }
    let needs =
        onnx_file::needs(map.bytes()).map_err(|fault| LoadError::file(graph, fault.to_string()))?;
    let base = graph.parent().unwrap_or(root);
    for (name, needed) in &needs.files {
        let file = inside(base, graph, "external_data.location", name)?;
        let size = plain_file(&file)?;
        if size < *needed {
            let graph = graph.file_name().unwrap_or_default().to_string_lossy();
            return Err(LoadError::file(
                file,
                format!("has {size} bytes, {graph} needs {needed}; fetch it again"),
            ));
        }
        Mapped::open(&file)?.warm();
    }
    match needs.rotary_positions {
        Some(rows) if u64::from(config.context) > rows => {
            let reason = format!(
                "states a context of {} tokens, but {} has rotary embeddings for {rows} positions",
                config.context,
                graph.display()
            );
            Err(LoadError::file(&config.source, reason))
        }
        _ => Ok(()),
    }
}

/// `tokenizer_config.json` and the chat template: a file of its own, or a value in there (a string, or a list in which
/// one is named `default`).
fn tokenizer_files(root: &Path) -> Result<(Value, Option<(PathBuf, String)>), LoadError> {
    let file = root.join("tokenizer_config.json");
    let json = if exists(&file) { read_json(&file)? } else { Value::Null };
    let own = root.join("chat_template.jinja");
    if exists(&own) {
        let text = read_text(&own)?;
        return Ok((json, Some((own, text))));
    }
    let template = match json.get("chat_template") {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Array(list)) => {
            let named = list
                .iter()
                .find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"));
            named.and_then(|entry| entry.get("template")).and_then(Value::as_str).map(str::to_owned)
        }
        Some(_) => {
            return Err(LoadError::file(file, "chat_template is neither a string nor a list"));
        }
    };
    Ok((json, template.map(|text| (file, text))))
}

/// Whether there is anything under this name, a dangling link included.
fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_without_a_model_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let text = |path: &Path| open(path).unwrap_err().to_string();
        assert!(text(&dir.path().join("none")).contains("does not exist"));
        assert!(text(dir.path()).contains("neither genai_config.json nor config.json"));
        let variant = dir.path().join("cpu_and_mobile/cpu-int4");
        std::fs::create_dir_all(&variant).unwrap();
        std::fs::write(variant.join("genai_config.json"), "{}").unwrap();
        assert!(
            text(dir.path()).contains("cpu_and_mobile/cpu-int4 is: name that one"),
            "{}",
            text(dir.path())
        );
        std::fs::write(dir.path().join("genai_config.json"), "{ \"model\": ").unwrap();
        assert!(text(dir.path()).contains("genai_config.json: is not JSON"));
    }
}
