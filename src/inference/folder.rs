//! Finds out what a model folder holds and checks every file before anything else opens it. Loads nothing.
//!
//! Three layouts are told apart, in this order: onnxruntime-genai (`genai_config.json`), transformers.js
//! (`config.json` and `onnx/*.onnx`), Optimum (`config.json` and `model.onnx`).

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::embedding::Vectors;
use super::error::LoadError;
use super::files::{inside, plain_file, read, read_json, read_text};
use super::hashes::Hashes;
use super::interface::Interface;
use super::manifest;
use super::mapped::Mapped;
use super::model_config::{self, ModelConfig};
use super::onnx_file::{self, OnnxFile};
use super::pooling::Pooling;

/// A git-lfs pointer begins with this; its specification allows at most 1,024 bytes.
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";
/// What graphs are called in the transformers.js and Optimum layouts, the preferred first.
const GRAPH_STEMS: &[&str] = &["model", "decoder_model_merged", "decoder_with_past_model"];
/// transformers.js' names for precisions, the preferred first. A board reads all weights from memory for each token, so
/// four bits are the quickest; half precision is the slowest on a CPU, which computes it in single precision.
const PRECISIONS: &[&str] =
    &["_q4", "_quantized", "_int8", "_uint8", "", "_q4f16", "_fp16", "_bnb4"];

/// Names of graphs in folders without `genai_config.json`, the preferred first.
pub fn preferred_graphs() -> impl Iterator<Item = String> {
    GRAPH_STEMS
        .iter()
        .flat_map(|stem| PRECISIONS.iter().map(move |precision| format!("{stem}{precision}.onnx")))
}

/// A model folder whose files are all there and fit each other as far as files can tell.
#[derive(Debug)]
pub(super) struct Folder {
    pub(super) root: PathBuf,
    /// The folder's own name.
    pub(super) name: String,
    pub(super) config: ModelConfig,
    /// The graph's file.
    pub(super) graph: PathBuf,
    /// Graphs that lie beside it and could be named instead of the folder.
    pub(super) variants: Vec<PathBuf>,
    /// What is in the graph's file.
    pub(super) contents: OnnxFile,
    /// How the graph is fed and read.
    pub(super) interface: Interface,
    /// How hidden states become vectors, where the graph gives them.
    pub(super) vectors: Option<Vectors>,
    /// The graph's file and those it takes weights from, with their sizes.
    pub(super) files: Vec<(PathBuf, u64)>,
    /// tokenizer.json, read.
    pub(super) tokenizer: Vec<u8>,
    /// `tokenizer_config.json`; `null` where there is none.
    pub(super) tokenizer_config: Value,
    /// The chat template and the file it is in.
    pub(super) template: Option<(PathBuf, String)>,
}

/// Looks at the folder. `path` names it, or one of its graphs.
pub(super) fn open(path: &Path, hashes: &mut Hashes) -> Result<Folder, LoadError> {
    let refuse = |reason: &str| LoadError::Folder { path: path.into(), reason: reason.into() };
    let (root, named) = match std::fs::canonicalize(path) {
        Ok(root) if root.is_dir() => (root, None),
        Ok(graph) if graph.extension().is_some_and(|extension| extension == "onnx") => {
            (root_of(&graph), Some(graph))
        }
        Ok(_) => return Err(refuse("is neither a folder nor a graph (a file `….onnx`)")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(refuse("does not exist"));
        }
        Err(source) => return Err(LoadError::Read { path: path.into(), source }),
    };
    manifest::check(&root, hashes)?;
    let (mut config, graph, variants) = layout(&root, named)?;
    let (contents, files) = check_graph(&root, &graph)?;
    let interface = Interface::check(&contents, &config, &graph)?;
    check_context(&mut config, &interface, &graph)?;
    let vectors = match &interface.hidden {
        None => None,
        Some(hidden) => {
            let width = hidden.width;
            Some(Vectors { width, pooling: Pooling::of(&root, width)? })
        }
    };
    let tokenizer = read(&root.join("tokenizer.json"))?;
    let (tokenizer_config, template) = tokenizer_files(&root)?;
    let name =
        root.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned());
    Ok(Folder {
        root,
        name,
        config,
        graph,
        variants,
        contents,
        interface,
        vectors,
        files,
        tokenizer,
        tokenizer_config,
        template,
    })
}

/// The folder a graph belongs to: its own, or the one above `onnx/`.
pub(super) fn root_of(graph: &Path) -> PathBuf {
    let own = graph.parent().unwrap_or(Path::new("/"));
    let is_onnx = own.file_name().is_some_and(|name| name == "onnx");
    let above = own.parent().filter(|above| is_onnx && exists(&above.join("config.json")));
    above.unwrap_or(own).to_owned()
}

/// The configuration, the graph, and the graphs beside it.
fn layout(
    root: &Path,
    named: Option<PathBuf>,
) -> Result<(ModelConfig, PathBuf, Vec<PathBuf>), LoadError> {
    let genai = root.join("genai_config.json");
    if exists(&genai) {
        let config = model_config::genai(&genai, &read_json(&genai)?)?;
        let name = config.graph.clone().unwrap_or_default();
        let graph = inside(root, &genai, "model.decoder.filename", &name)?;
        return Ok((config, named.unwrap_or(graph), Vec::new()));
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
    let mut there: Vec<PathBuf> = preferred_graphs()
        .flat_map(|name| [onnx.join(&name), root.join(&name)])
        .filter(|path| exists(path))
        .collect();
    if let Some(graph) = named {
        there.retain(|path| *path != graph);
        return Ok((config, graph, there));
    }
    if there.is_empty() {
        return Err(LoadError::file(
            root.join("model.onnx"),
            other_parts(&[root, &onnx]).unwrap_or_else(|| {
                "is missing, and there is no other graph in the folder".to_owned()
            }),
        ));
    }
    let graph = there.remove(0);
    Ok((config, graph, there))
}

/// Files that show what the folder holds instead of a graph that writes text.
fn other_parts(folders: &[&Path]) -> Option<String> {
    const PARTS: &[(&str, &str)] = &[
        (
            "encoder_model.onnx",
            "belongs to an encoder-decoder model; promptd runs decoder-only models",
        ),
        ("vision_encoder.onnx", "belongs to a model of images; promptd runs text models"),
        (
            "decoder_model.onnx",
            "cannot take a past; export the model again with a cache (`--task text-generation-with-past`)",
        ),
    ];
    let found = PARTS.iter().find(|(name, _)| folders.iter().any(|f| exists(&f.join(name))));
    found.map(|(name, what)| format!("is missing; {name}, which is there, {what}"))
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

/// The graph's file and every file it needs: there, plain, inside the folder, long enough. Gives their sizes, too.
fn check_graph(root: &Path, graph: &Path) -> Result<(OnnxFile, Vec<(PathBuf, u64)>), LoadError> {
    let mut files = vec![(graph.to_owned(), plain_file(graph)?)];
    let map = Mapped::open(graph)?;
    if map.bytes().starts_with(LFS_POINTER) {
        return Err(LoadError::file(
            graph,
            "is a git-lfs pointer, not the model; run `git lfs pull` where it was cloned",
        ));
    }
    let contents =
        onnx_file::read(map.bytes()).map_err(|fault| LoadError::file(graph, fault.to_string()))?;
    let base = graph.parent().unwrap_or(root);
    for (name, needed) in &contents.files {
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
        files.push((file, size));
    }
    Ok((contents, files))
}

/// The context the configuration states, against the tables of rotary embeddings that the graph carries.
fn check_context(
    config: &mut ModelConfig,
    interface: &Interface,
    graph: &Path,
) -> Result<(), LoadError> {
    let Some(rows) = interface.most_context.filter(|rows| u64::from(config.context) > *rows) else {
        return Ok(());
    };
    if interface.has_long_tables {
        config.warnings.push(format!(
            "{} has other rotary embeddings for contexts of more than {rows} tokens, and changes to them in the middle \
             of a conversation; the context is {rows} tokens here instead of {}",
            graph.display(),
            config.context
        ));
        config.context = u32::try_from(rows).unwrap_or(config.context);
        return Ok(());
    }
    let reason = format!(
        "states a context of {} tokens, but {} has rotary embeddings for {rows} positions",
        config.context,
        graph.display()
    );
    Err(LoadError::file(&config.source, reason))
}

/// `tokenizer_config.json` and the chat template: a file of its own, or a value in there (a string, or a list in which
/// one is named `default`).
pub(super) fn tokenizer_files(
    root: &Path,
) -> Result<(Value, Option<(PathBuf, String)>), LoadError> {
    let file = root.join("tokenizer_config.json");
    let json = if exists(&file) { read_json(&file)? } else { Value::Null };
    let own = root.join("chat_template.jinja");
    if exists(&own) {
        let text = read_text(&own)?;
        return Ok((json, Some((own, text))));
    }
    // transformers' processors keep it in a file of this name.
    let other = root.join("chat_template.json");
    let (file, value) = if exists(&other) && json.get("chat_template").is_none() {
        let value = read_json(&other)?;
        (other, value)
    } else {
        (file, json.clone())
    };
    let template = match value.get("chat_template") {
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
        let text = |path: &Path| open(path, &mut Hashes::default()).unwrap_err().to_string();
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
