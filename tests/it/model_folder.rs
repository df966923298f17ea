//! Model folders and libraries that cannot be used: each is refused with the file and the reason, before ONNX Runtime
//! could trip over it.

use std::path::{Path, PathBuf};

use promptd::request::{Code, Refusal};
use serde_json::Value;

use crate::support::model::{config, copy, library, material, open};

const INT4: &str = "stories260k-genai-int4";

type Damage = fn(&Path);
fn edit(folder: &Path, file: &str, change: fn(&mut Value)) {
    let path = folder.join(file);
    let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut json);
    std::fs::write(path, json.to_string()).unwrap();
}
fn cut(folder: &Path, file: &str) {
    let bytes = std::fs::read(folder.join(file)).unwrap();
    std::fs::write(folder.join(file), &bytes[..bytes.len() / 2]).unwrap();
}
/// What is changed, and words that the error must have.
const CASES: &[(&str, Damage)] = &[
    ("model.onnx: is missing", |f| std::fs::remove_file(f.join("model.onnx")).unwrap()),
    ("model.onnx.data: is missing", |f| std::fs::remove_file(f.join("model.onnx.data")).unwrap()),
    ("neither genai_config.json nor config.json", |f| {
        std::fs::remove_file(f.join("genai_config.json")).unwrap();
    }),
    ("tokenizer.json: is missing", |f| std::fs::remove_file(f.join("tokenizer.json")).unwrap()),
    ("model.onnx.data: has 185568 bytes, model.onnx needs 371136", |f| cut(f, "model.onnx.data")),
    ("model.onnx.data: is empty", |f| std::fs::write(f.join("model.onnx.data"), "").unwrap()),
    ("model.onnx: is cut short", |f| cut(f, "model.onnx")),
    ("model.onnx: is no ONNX model", |f| {
        std::fs::write(f.join("model.onnx"), [0, 255].repeat(500)).unwrap();
    }),
    ("model.onnx: is a git-lfs pointer", |f| {
        std::fs::write(
            f.join("model.onnx"),
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        )
        .unwrap();
    }),
    ("head_size is 12, but model.onnx has 16", |f| {
        edit(f, "genai_config.json", |j| j["model"]["decoder"]["head_size"] = 12.into());
    }),
    ("num_hidden_layers is 99, but model.onnx has 5", |f| {
        edit(f, "genai_config.json", |j| j["model"]["decoder"]["num_hidden_layers"] = 99.into());
    }),
    ("num_hidden_layers is 1, but model.onnx has 5", |f| {
        edit(f, "genai_config.json", |j| j["model"]["decoder"]["num_hidden_layers"] = 1.into());
    }),
    ("num_key_value_heads is 3, but model.onnx has 4", |f| {
        edit(f, "genai_config.json", |j| j["model"]["decoder"]["num_key_value_heads"] = 3.into());
    }),
    ("vocab_size is 100000, but model.onnx has 512", |f| {
        edit(f, "genai_config.json", |j| j["model"]["vocab_size"] = 100_000.into());
    }),
    ("rotary embeddings for 512 positions", |f| {
        edit(f, "genai_config.json", |j| j["model"]["context_length"] = (1 << 20).into());
    }),
    ("input_ids is `tokens`, but model.onnx has no such tensor", |f| {
        edit(f, "genai_config.json", |j| {
            j["model"]["decoder"]["inputs"]["input_ids"] = "tokens".into();
        });
    }),
    ("outside the model folder", |f| {
        edit(f, "genai_config.json", |j| {
            j["model"]["decoder"]["filename"] = "../../etc/hostname".into();
        });
    }),
    ("empty vocabulary", |f| {
        edit(f, "tokenizer.json", |j| j["model"]["vocab"] = serde_json::json!({}));
    }),
    ("tokenizer.json: has the token id 999999", |f| {
        edit(f, "tokenizer.json", |j| j["model"]["vocab"]["zz-extra"] = 999_999.into());
    }),
    ("tokenizer_config.json: the chat template cannot be compiled", |f| {
        edit(f, "tokenizer_config.json", |j| {
            j["chat_template"] = "{% for m in messages %}{{ m.content }".into();
        });
    }),
    ("model.onnx: is a folder", |f| {
        std::fs::remove_file(f.join("model.onnx")).unwrap();
        std::fs::create_dir(f.join("model.onnx")).unwrap();
    }),
    ("model.onnx.data: is a symbolic link", |f| {
        std::fs::rename(f.join("model.onnx.data"), f.join("elsewhere")).unwrap();
        std::os::unix::fs::symlink("elsewhere", f.join("model.onnx.data")).unwrap();
    }),
];

/// Folders that are damaged in one place each.
#[test]
fn damaged_folders_are_refused_with_file_and_reason() {
    let (library, Some(_)) = (library(), material()) else { return };
    for (words, damage) in CASES {
        let folder = copy(INT4).unwrap();
        damage(folder.path());
        let error = open(&config(&library, folder.path(), 1)).unwrap_err();
        assert!(error.to_string().contains(words), "{error}\nshould have: {words}");
        assert_eq!(Refusal::from(error).code, Code::ModelFailed);
    }
}

/// Every folder of `PROMPTD_TEST_BROKEN`, for looking at by eye; a folder that loads must answer.
#[test]
fn folders_broken_elsewhere_are_refused() {
    let (library, Some(root)) = (library(), std::env::var_os("PROMPTD_TEST_BROKEN")) else {
        println!("skipped: PROMPTD_TEST_BROKEN names no folder of damaged model folders");
        return;
    };
    let mut folders: Vec<PathBuf> =
        std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    for folder in folders {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        match open(&config(&library, &folder, 1)) {
            Ok(loaded) => println!("{name}: LOADED {:?}", loaded.facts.warnings),
            Err(error) => println!(
                "{name}: {}",
                Refusal::from(error).message.replace(&*folder.to_string_lossy(), "…")
            ),
        }
    }
}

#[test]
fn libraries_that_cannot_be_used_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("libonnxruntime.so");
    let refuse = || open(&config(&path, dir.path(), 1)).unwrap_err().to_string();
    let missing = refuse();
    assert!(missing.contains("no such file"), "{missing}");
    std::fs::write(&path, "junk").unwrap();
    let junk = refuse();
    assert!(junk.contains("make build"), "{junk}");
    let bytes = std::fs::read(library()).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() * 9 / 10]).unwrap();
    let truncated = refuse();
    assert!(truncated.contains("cut short"), "{truncated}");
}
