//! The demo model with its hidden states as an output, as onnxruntime-genai's builder writes it with `include_hidden_states`
//! or, without logits, with `exclude_lm_head`.

use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

/// What goes into the model's last layer, and how many numbers it has.
const HIDDEN: &str = "/norm/output";
pub(crate) const WIDTH: usize = 128;

/// The demo model with logits and hidden states.
pub(crate) fn with_hidden_states() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let demo = super::demo_model();
    for name in ["model.onnx.data", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(demo.join(name), folder.path().join(name)).unwrap();
    }
    let mut graph = std::fs::read(demo.join("model.onnx")).unwrap();
    // Where a message stands twice in protobuf, both are put together: ModelProto.graph is 7, GraphProto.output 12.
    graph.extend(field(7, &field(12, &output())));
    std::fs::write(folder.path().join("model.onnx"), graph).unwrap();
    let config = std::fs::read(demo.join("genai_config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    config["model"]["decoder"]["outputs"]["hidden_states"] = HIDDEN.into();
    std::fs::write(folder.path().join("genai_config.json"), config.to_string()).unwrap();
    folder
}

/// The same without logits: they have a name that nobody knows.
pub(crate) fn without_logits() -> TempDir {
    let folder = with_hidden_states();
    let path = folder.path().join("model.onnx");
    let mut graph = std::fs::read(&path).unwrap();
    for at in 0..graph.len() - 6 {
        if graph[at..].starts_with(b"logits") {
            graph[at..at + 6].copy_from_slice(b"others");
        }
    }
    std::fs::write(&path, graph).unwrap();
    edit(folder.path(), |config| {
        config["model"]["decoder"]["outputs"].as_object_mut().unwrap().remove("logits");
    });
    folder
}

/// How the vectors are made, in sentence-transformers' words.
pub(crate) fn pool_by(folder: &Path, mode: &str) {
    let place = folder.join("1_Pooling");
    std::fs::create_dir_all(&place).unwrap();
    let config = json!({"word_embedding_dimension": WIDTH, format!("pooling_mode_{mode}"): true});
    std::fs::write(place.join("config.json"), config.to_string()).unwrap();
}

/// Changes `genai_config.json`.
pub(crate) fn edit(folder: &Path, change: impl FnOnce(&mut Value)) {
    let path = folder.join("genai_config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut config);
    std::fs::write(path, config.to_string()).unwrap();
}

/// `ValueInfoProto` of the hidden states: `[batch, tokens, WIDTH]` of float32.
fn output() -> Vec<u8> {
    let open = |name: &str| field(1, &field(2, name.as_bytes()));
    let fixed = field(1, &[8, 128, 1]);
    assert_eq!(WIDTH, 128, "as the two bytes say");
    let shape = [open("batch_size"), open("sequence_length"), fixed].concat();
    let tensor = [vec![8, 1], field(2, &shape)].concat();
    [field(1, HIDDEN.as_bytes()), field(2, &field(1, &tensor))].concat()
}

/// A field of protobuf that is as long as it says; all are shorter than 128 bytes, or than 16,384.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let length = bytes.len();
    let (low, high) = (u8::try_from(length & 127).unwrap(), u8::try_from(length >> 7).unwrap());
    let mut field = vec![number << 3 | 2];
    field.extend(if high == 0 { vec![low] } else { vec![low | 128, high] });
    field.extend(bytes);
    field
}
