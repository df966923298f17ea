//! `promptd bench` as a program: what it measures of the demo model, and what `--tune` writes for the service.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::support::{demo_model, library};

fn bench(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_promptd"))
        .arg("bench")
        .arg(demo_model())
        .arg("--library")
        .arg(library())
        .args(args)
        .output()
        .unwrap()
}

#[test]
fn the_demo_model_is_measured() {
    let args = "--json --prompts 16,4096 --depths 0,64 --streams 1,2 --shared 128 --keys 2 --tokens 4 --rounds 1";
    let done = bench(&args.split(' ').collect::<Vec<_>>());
    assert!(done.status.success(), "{done:?}");
    let report: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(report["runtime"]["provider"], "CPU");
    assert!(report["runtime"]["nodes"]["CPU"].as_u64() > Some(20), "{report}");
    let results = &report["results"];
    // What does not fit is left out and said, never shortened.
    assert_eq!(results["prefill"].as_array().unwrap().len(), 1, "{report}");
    assert!(results["left_out"][0].as_str().unwrap().contains("4096"), "{report}");
    for path in [
        "/load_seconds",
        "/load_and_first_token_seconds",
        "/prefill/0/tokens_per_second/median",
        "/decode/1/tokens_per_second/median",
        "/decode/1/processor_ms_per_token/median",
        "/streams/1/tokens_per_second/median",
        "/shared/first_seconds/median",
        "/shared/second_seconds/median",
        "/held/tokens_per_second/median",
        "/held/free_tokens_per_second/median",
        "/held/mask_seconds/median",
    ] {
        let figure = results.pointer(path).and_then(Value::as_f64);
        assert!(figure > Some(0.0), "{path}: {report}");
    }
    assert_eq!(results["decode"][1]["depth"], 64);
    // Two keys of 32 characters and their numbers.
    assert!(results["held"]["tokens"].as_f64() > Some(20.0), "{report}");
    assert!(results["memory"]["anonymous"].as_u64() > Some(1 << 20), "{report}");

    let done = bench(&["--prompts", "8", "--depths", "0", "--streams", "0", "--rounds", "1"]);
    let table = String::from_utf8(done.stdout).unwrap();
    assert!(table.contains("read 8 tokens") && table.contains("write behind 0 tokens"), "{table}");
}

#[test]
fn what_tuning_found_is_a_configuration_that_holds() {
    let folder = tempfile::tempdir().unwrap();
    let drop_ins = folder.path().join("conf.d");
    std::fs::create_dir(&drop_ins).unwrap();
    let config = folder.path().join("promptd.toml");
    std::fs::write(
        &config,
        "[model]\npath = \"/m\"\n[socket]\npath = \"/s\"\n[runtime]\nthreads = 99\n",
    )
    .unwrap();
    let tuned = drop_ins.join("50-tuned.toml");
    let done = bench(&["--tune", "--rounds", "1", "--output", tuned.to_str().unwrap()]);
    assert!(done.status.success(), "{done:?}");
    let shown = show(&config);
    let value = |key: &str| shown.iter().find(|value| value["key"] == key).cloned().unwrap();
    let threads = value("runtime.threads");
    assert!((1..99).contains(&threads["value"].as_u64().unwrap()), "{threads}");
    assert!(threads["origin"]["file"].as_str().unwrap().ends_with("50-tuned.toml"), "{threads}");
    assert!(value("runtime.spinning")["value"].is_boolean());

    let refused = bench(&["--prompts", "8", "--cores", "60000"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("60000"), "{refused:?}");
}

fn show(config: &Path) -> Vec<Value> {
    let done = Command::new(env!("CARGO_BIN_EXE_promptd"))
        .args(["config", "show", "--json", "--config"])
        .arg(config)
        .output()
        .unwrap();
    serde_json::from_slice(&done.stdout).unwrap()
}
