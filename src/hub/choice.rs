//! Which files of a repository are a model for a board: weights of other programs and other precisions stay where they are.

use super::{HubError, RemoteFile};
use crate::inference::{POOLING_FOLDER, preferred_graphs};

/// What belongs to other programs, or is no part of a model.
const OTHERS: [&str; 16] = [
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".h5",
    ".msgpack",
    ".gguf",
    ".ot",
    ".tflite",
    ".zip",
    ".tar",
    ".gz",
    ".png",
    ".jpg",
    ".mp4",
    ".ipynb",
];

/// A file that is to be fetched, and what it is called here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) file: RemoteFile,
    /// Its name in the model folder.
    pub(super) name: String,
}

/// Chooses. `folder`: the variant's folder in the repository. `graph`: which graph, where there are several.
pub(super) fn choose(
    files: &[RemoteFile],
    folder: Option<&str>,
    graph: Option<&str>,
) -> Result<Vec<Wanted>, HubError> {
    let prefix = folder.map(|folder| format!("{}/", folder.trim_matches('/'))).unwrap_or_default();
    let below: Vec<Wanted> = (files.iter())
        .filter_map(|file| {
            let name = file.name.strip_prefix(&prefix)?.to_owned();
            Some(Wanted { file: file.clone(), name })
        })
        .collect();
    let is = |name: &str| below.iter().any(|wanted| wanted.name == name);
    if !is("genai_config.json") && !is("config.json") {
        return Err(HubError::Usage(elsewhere(files, folder)));
    }
    // Graphs lie in `onnx/` where there is no genai_config.json, one for each precision.
    let chosen = match graph {
        Some(graph) if is(graph) => Some(graph.to_owned()),
        Some(graph) => {
            let graphs: Vec<&str> = (below.iter().map(|wanted| wanted.name.as_str()))
                .filter(|name| is_graph(name))
                .collect();
            return Err(HubError::Usage(format!(
                "there is no graph `{graph}`; there are: {}",
                graphs.join(", ")
            )));
        }
        None if is("genai_config.json") => None,
        None => {
            preferred_graphs().flat_map(|name| [format!("onnx/{name}"), name]).find(|name| is(name))
        }
    };
    // How an embedding model's vectors are made.
    let pooling = format!("{POOLING_FOLDER}/config.json");
    let wanted = |name: &str| {
        let is_hidden = name.starts_with('.') || name.contains("/.");
        let is_top = !name.contains('/') || name == pooling;
        let is_of_graph = |graph: &str| {
            name == graph
                || name
                    .strip_prefix(graph)
                    .is_some_and(|rest| rest.starts_with("_data") || rest.starts_with(".data"))
        };
        let is_graphs = name.contains(".onnx");
        match &chosen {
            _ if is_hidden || OTHERS.iter().any(|end| name.ends_with(end)) => false,
            Some(graph) if is_graphs => is_of_graph(graph),
            _ => is_top,
        }
    };
    let all: Vec<Wanted> = below.into_iter().filter(|file| wanted(&file.name)).collect();
    if !all.iter().any(|wanted| is_graph(&wanted.name)) {
        return Err(HubError::Usage("the repository has no ONNX graph there; models for promptd are ONNX (models/README.md makes them)".to_owned()));
    }
    Ok(all)
}

fn is_graph(name: &str) -> bool {
    std::path::Path::new(name).extension().is_some_and(|extension| extension == "onnx")
}

/// Where there are models, if not here.
fn elsewhere(files: &[RemoteFile], folder: Option<&str>) -> String {
    let folders: Vec<&str> = files
        .iter()
        .filter_map(|file| file.name.strip_suffix("/genai_config.json"))
        .take(20)
        .collect();
    let here =
        folder.map_or_else(|| "the repository itself".to_owned(), |folder| format!("`{folder}`"));
    if folders.is_empty() {
        return format!("{here} is no model: it has neither genai_config.json nor config.json");
    }
    format!("{here} is no model; name one of its folders with --folder: {}", folders.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(names: &[&str]) -> Vec<RemoteFile> {
        names
            .iter()
            .map(|name| RemoteFile { name: (*name).to_owned(), ..RemoteFile::default() })
            .collect()
    }

    fn chosen(
        names: &[&str],
        folder: Option<&str>,
        graph: Option<&str>,
    ) -> Result<Vec<String>, String> {
        let all = choose(&files(names), folder, graph).map_err(|error| error.to_string())?;
        Ok(all.into_iter().map(|wanted| wanted.name).collect())
    }

    #[test]
    fn a_model_and_no_more() {
        let genai = [
            "README.md",
            ".gitattributes",
            "genai_config.json",
            "model.onnx",
            "model.onnx.data",
            "tokenizer.json",
            "model.safetensors",
        ];
        assert_eq!(
            chosen(&genai, None, None).unwrap(),
            ["README.md", "genai_config.json", "model.onnx", "model.onnx.data", "tokenizer.json"]
        );
        let variants = [
            "README.md",
            "cpu/int4/genai_config.json",
            "cpu/int4/m.onnx",
            "cuda/genai_config.json",
            "cuda/m.onnx",
        ];
        let error = chosen(&variants, None, None).unwrap_err();
        assert!(error.contains("--folder: cpu/int4, cuda"), "{error}");
        assert_eq!(
            chosen(&variants, Some("cpu/int4"), None).unwrap(),
            ["genai_config.json", "m.onnx"]
        );
        let js = [
            "config.json",
            "tokenizer.json",
            "onnx/model.onnx",
            "onnx/model.onnx_data",
            "onnx/model_q4.onnx",
            "onnx/model_q4.onnx_data",
            "onnx/model_q4f16.onnx",
        ];
        assert_eq!(
            chosen(&js, None, None).unwrap(),
            ["config.json", "tokenizer.json", "onnx/model_q4.onnx", "onnx/model_q4.onnx_data"]
        );
        assert_eq!(
            chosen(&js, None, Some("onnx/model.onnx")).unwrap(),
            ["config.json", "tokenizer.json", "onnx/model.onnx", "onnx/model.onnx_data"]
        );
        assert_eq!(
            chosen(
                &["config.json", "1_Pooling/config.json", "2_Dense/config.json", "model.onnx"],
                None,
                None
            ),
            Ok(["config.json", "1_Pooling/config.json", "model.onnx"].map(str::to_owned).to_vec())
        );
        assert!(
            chosen(&js, None, Some("x.onnx")).unwrap_err().contains("there are: onnx/model.onnx")
        );
        assert!(
            chosen(&["config.json", "model.safetensors"], None, None)
                .unwrap_err()
                .contains("no ONNX graph")
        );
    }
}
