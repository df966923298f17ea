//! Prepared copies of models and remembered checksums: what they give is what the model gives, and what is stale, damaged or
//! interrupted is never used.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use promptd::inference::{Config, Loaded, remembered_hashes};
use promptd::request::Input;
use serde_json::Value;

use crate::support::demo_model;
use crate::support::http;
use crate::support::model::{config, library, open, request, run};
use crate::support::service::{Plan, Service};

fn prepare(model: &Path, store: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_promptd"))
        .args(["model", "prepare", "--json"])
        .arg(model)
        .arg("--store")
        .arg(store)
        .arg("--library")
        .arg(library())
        .output()
        .unwrap()
}

fn prepared(model: &Path, store: &Path) -> Value {
    let done = prepare(model, store);
    assert!(done.status.success(), "{done:?}");
    serde_json::from_slice(&done.stdout).unwrap()
}

fn load(model: &Path, store: &Path) -> Loaded {
    let usual = config(&library(), model, 1);
    let hashes = remembered_hashes(store);
    open(&Config { store: Some(store.to_owned()), hashes, ..usual }).unwrap()
}

fn answer(loaded: &mut Loaded) -> Vec<u32> {
    run(loaded, &request(Input::Completion("Turn on the kitchen light".into()), 12)).tokens
}

/// The demo model in a folder that may be changed.
fn copy_of_demo(folder: &Path) -> PathBuf {
    let model = folder.join("demo");
    std::fs::create_dir(&model).unwrap();
    for entry in std::fs::read_dir(demo_model()).unwrap().flatten() {
        if entry.path().is_file() {
            std::fs::copy(entry.path(), model.join(entry.file_name())).unwrap();
        }
    }
    model
}

#[test]
fn a_prepared_copy_answers_as_the_model_does() {
    let store = tempfile::tempdir().unwrap();
    let mut plain = load(&demo_model(), store.path());
    assert!(!plain.facts.placement.prepared);
    // What an interrupted attempt leaves is swept up.
    let left = store.path().join("prepared/00.partial");
    std::fs::create_dir_all(&left).unwrap();
    std::fs::write(left.join("model.onnx.data"), b"half").unwrap();
    let first = prepared(&demo_model(), store.path());
    assert_eq!(first["made"], true);
    assert!(first["bytes"].as_u64() > Some(1 << 20), "{first}");
    assert!(!left.exists());
    assert_eq!(prepared(&demo_model(), store.path())["made"], false);
    let mut copy = load(&demo_model(), store.path());
    assert!(copy.facts.placement.prepared, "{:?}", copy.facts.warnings);
    let (one, other) = (answer(&mut plain), answer(&mut copy));
    assert!(!one.is_empty());
    assert_eq!(one, other);
}

#[test]
fn what_is_damaged_or_stale_is_not_used_and_said() {
    let folder = tempfile::tempdir().unwrap();
    let (model, store) = (copy_of_demo(folder.path()), folder.path().join("store"));
    let copy = prepared(&model, &store);
    let data = Path::new(copy["path"].as_str().unwrap()).join("model.onnx.data");
    let file = std::fs::File::options().write(true).open(data).unwrap();
    std::os::unix::fs::FileExt::write_at(&file, b"garbage", 5000).unwrap();
    let mut loaded = load(&model, &store);
    assert!(!loaded.facts.placement.prepared);
    let said = loaded.facts.warnings.join("\n");
    assert!(said.contains("is not what was written"), "{said}");
    assert!(!answer(&mut loaded).is_empty());
    // Another attempt replaces it.
    assert_eq!(prepared(&model, &store)["made"], true);
    assert!(load(&model, &store).facts.placement.prepared);

    // The model is another one now: weights at the end of the file that nothing uses.
    std::fs::remove_file(model.join("manifest.toml")).unwrap();
    let mut weights = std::fs::read(model.join("model.onnx.data")).unwrap();
    weights.extend([0; 64]);
    std::fs::write(model.join("new"), weights).unwrap();
    std::fs::rename(model.join("new"), model.join("model.onnx.data")).unwrap();
    let loaded = load(&model, &store);
    let said = loaded.facts.warnings.join("\n");
    assert!(!loaded.facts.placement.prepared && said.contains("files have changed"), "{said}");
    // A new copy takes the old one's place.
    assert_eq!(prepared(&model, &store)["made"], true);
    assert_eq!(std::fs::read_dir(store.join("prepared")).unwrap().count(), 1);
    assert!(load(&model, &store).facts.placement.prepared);
}

#[test]
fn a_store_that_cannot_be_written_to_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let done = prepare(&demo_model(), &file.join("store"));
    assert_eq!(done.status.code(), Some(1));
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(said.contains("cannot write to") && said.contains("file/store"), "{said}");
}

/// The service's engine may open no file for writing, and remembers checksums all the same.
#[test]
fn the_service_uses_the_copy_and_remembers_checksums() {
    let folder = tempfile::Builder::new().prefix("promptd-it-").tempdir_in("/tmp").unwrap();
    let store = folder.path().join("state/models");
    prepared(&demo_model(), &store);
    std::fs::remove_file(store.join("hashes.json")).unwrap();
    let service = Service::start_in(folder, &Plan::demo()).ready();
    let status = http::get(&service.socket(), "/health/ready").json();
    assert_eq!(status["model"]["prepared"], true, "{status}\n{}", service.log());
    let remembered = std::fs::read_to_string(store.join("hashes.json")).unwrap();
    let remembered: Value = serde_json::from_str(&remembered).unwrap();
    assert!(
        remembered.as_object().unwrap().keys().any(|name| name.ends_with("demo/model.onnx.data")),
        "{remembered}"
    );
}
