//! What `promptd model plan` predicts against what the model then takes, contexts full: with its weights in memory of its own
//! and with those of a prepared copy.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::demo_model;
use crate::support::model::{library, material};

/// The plan with what was measured.
fn plan(folder: &Path, slots: u16, store: Option<&Path>) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_promptd"));
    command.args(["model", "plan", "--json", "--measure", "--slots", &slots.to_string()]);
    command.arg("--library").arg(library()).arg(folder);
    store.map(|store| command.arg("--store").arg(store));
    let done = command.output().unwrap();
    assert!(done.status.success(), "{done:?}");
    serde_json::from_slice(&done.stdout).unwrap()
}

/// Within a tenth of what was measured.
fn check(folder: &Path, slots: u16, store: Option<&Path>) -> Value {
    let plan = plan(folder, slots, store);
    let predicted = plan["peak_bytes"].as_f64().unwrap();
    let measured = plan["measured"]["anonymous_bytes"].as_f64().unwrap();
    println!(
        "{}, {slots} slots, {}: {:.1} MiB predicted, {:.1} measured",
        folder.display(),
        if store.is_some() { "prepared" } else { "as it is" },
        predicted / 1_048_576.0,
        measured / 1_048_576.0
    );
    assert!((predicted / measured - 1.0).abs() < 0.1, "{plan}");
    plan
}

#[test]
fn plans_are_within_a_tenth_of_the_truth() {
    let mut models: Vec<PathBuf> = vec![demo_model()];
    let others =
        ["genai-fp32", "genai-int4", "plain-fp32"].map(|kind| format!("stories260k-{kind}"));
    let others = others.into_iter().chain(["aidreams230k-plain-fp16".to_owned()]);
    models.extend(
        material().into_iter().flat_map(|material| {
            others.clone().map(move |name| material.join("models").join(name))
        }),
    );
    for model in models {
        for slots in [1, 4] {
            check(&model, slots, None);
        }
    }
}

#[test]
fn a_prepared_copy_is_planned_for() {
    let store = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_promptd"));
    command.args(["model", "prepare"]).arg(demo_model()).arg("--store").arg(store.path());
    let done = command.arg("--library").arg(library()).output().unwrap();
    assert!(done.status.success(), "{done:?}");
    for slots in [1, 4] {
        let plan = check(&demo_model(), slots, Some(store.path()));
        assert_eq!(plan["packed_bytes"], 0, "{plan}");
    }
}
