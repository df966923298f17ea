//! `promptd model …` as a program: what it prints, and with which exit code.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::support::{demo_model, material};

fn promptd(args: &[&str], folder: &Path, input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_promptd"))
        .arg("model")
        .args(args)
        .arg(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Answers may come before all lines are written.
    let mut pipe = child.stdin.take().unwrap();
    let input = input.to_owned();
    let writer = std::thread::Builder::new()
        .name("input".into())
        .spawn(move || pipe.write_all(input.as_bytes()))
        .unwrap();
    let output = child.wait_with_output().unwrap();
    // Who refuses a folder does not read.
    let _ = writer.join().unwrap();
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn the_demo_model_is_checked_and_planned() {
    let done = promptd(&["check", "--json"], &demo_model(), "");
    let checked: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!((done.status.code(), &checked["ok"]), (Some(0), &json!(true)), "{done:?}");
    let done = promptd(&["check"], &demo_model(), "");
    assert!(text(&done.stdout).contains("with a chat template"), "{done:?}");
    let done = promptd(&["check", "--json", "--load"], &demo_model(), "");
    let checked: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(checked["loaded"]["provider"], "CPU", "{done:?}");
    assert!(checked["loaded"]["nodes"]["CPU"].as_u64() > Some(20), "{done:?}");
    let done = promptd(&["check", "--load", "--provider", "cuda"], &demo_model(), "");
    assert_eq!(done.status.code(), Some(1), "{done:?}");
    assert!(text(&done.stderr).contains("without CUDA"), "{done:?}");
    let done = promptd(&["plan", "--json", "--slots", "2"], &demo_model(), "");
    let plan: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!((done.status.code(), &plan["slots"]), (Some(0), &json!(2)));
    assert!(plan["peak_bytes"].as_u64() > plan["kv_bytes"].as_u64());
}

#[test]
fn what_is_wrong_is_said_and_ends_with_one() {
    let empty = tempfile::tempdir().unwrap();
    let done = promptd(&["check"], empty.path(), "");
    assert_eq!(done.status.code(), Some(1));
    assert!(text(&done.stderr).contains("neither genai_config.json nor config.json"), "{done:?}");
    let done = promptd(&["check", "--json"], empty.path(), "");
    let said: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!((done.status.code(), &said["ok"]), (Some(1), &json!(false)));
    for (args, input, words) in [
        (&["tokenize", "--decode"][..], "[1, \"x\"]", "no array of token ids"),
        (&["tokenize", "--lines"], "not json\n", "no JSON string"),
        (&["render"], "{}", "no `messages`"),
    ] {
        let done = promptd(args, &demo_model(), input);
        assert_eq!(done.status.code(), Some(1), "{done:?}");
        assert!(text(&done.stderr).contains(words), "{done:?}");
    }
}

#[test]
fn texts_become_tokens_and_texts_again() {
    let done = promptd(&["tokenize"], &demo_model(), "the lamp is on");
    let ids: Vec<u32> = serde_json::from_slice(&done.stdout).unwrap();
    let done = promptd(&["tokenize", "--decode"], &demo_model(), &json!(ids).to_string());
    assert_eq!(text(&done.stdout), "the lamp is on");
    let conversation = json!({"messages": [{"role": "user", "content": "Hello there"}], "add_generation_prompt": true});
    let done = promptd(&["render"], &demo_model(), &conversation.to_string());
    assert!(text(&done.stdout).contains("Hello there"), "{done:?}");
}

/// Every vector through the program, where the vectors are at hand.
#[test]
fn tokens_equal_the_reference_through_the_program() {
    let Some(material) = material() else { return };
    for name in ["llama-32000", "llama3", "gpt2", "phi3-v"] {
        let folder = tempfile::tempdir().unwrap();
        let file = material.join(format!("tokenizers/{name}.tokenizer.json"));
        std::fs::copy(file, folder.path().join("tokenizer.json")).unwrap();
        let vectors = material.join(format!("tokenizers/{name}.vectors.jsonl"));
        let vectors: Vec<Value> = std::fs::read_to_string(vectors)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let of = |key: &str| -> String {
            let lines: Vec<String> = vectors.iter().map(|vector| vector[key].to_string()).collect();
            lines.join("\n") + "\n"
        };
        for (args, from, to) in [
            (&["tokenize", "--lines", "--special"][..], "text", "ids"),
            (&["tokenize", "--lines", "--decode"], "ids", "decoded"),
        ] {
            let done = promptd(args, folder.path(), &of(from));
            assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
            let lines: Vec<Value> = text(&done.stdout)
                .lines()
                .map(|line| serde_json::from_str(line).unwrap())
                .collect();
            assert_eq!(lines.len(), vectors.len(), "{name}");
            for (line, vector) in lines.iter().zip(&vectors) {
                assert_eq!(*line, vector[to], "{name}: {}", vector["text"]);
            }
        }
    }
}

/// Every folder of `PROMPTD_TEST_BROKEN` (`make test-models` makes them) is refused before ONNX Runtime could see it.
#[test]
fn damaged_folders_are_refused_each_with_its_own_reason() {
    let Some(root) = std::env::var_os("PROMPTD_TEST_BROKEN") else {
        println!("skipped: PROMPTD_TEST_BROKEN names no folder of damaged model folders");
        return;
    };
    let mut reasons = std::collections::BTreeMap::new();
    for entry in std::fs::read_dir(root).unwrap() {
        let folder = entry.unwrap().path();
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let done = promptd(&["check"], &folder, "");
        let said = text(&done.stderr).replace(&*folder.to_string_lossy(), "…");
        println!("{name}: {said}");
        match name.as_str() {
            "config-provider-unknown" => {
                assert_eq!(done.status.code(), Some(0), "{said}");
                assert!(said.contains("warning") && said.contains("cuda"), "{said}");
            }
            // Whoever may read everything can read this, too.
            "unreadable-data" => {}
            _ => {
                assert_eq!(done.status.code(), Some(1), "{name} is not refused");
                let twin = reasons.insert(said.clone(), name.clone());
                assert_eq!(twin, None, "{name} is refused as another: {said}");
            }
        }
    }
}
