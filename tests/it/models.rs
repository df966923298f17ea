//! `promptd model import`, `list`, `verify`, `export` and `rm` as an operator uses them.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::demo_model;
use crate::support::service::{command, output};

/// A folder of models and what is typed about it.
struct Board {
    folder: tempfile::TempDir,
}

impl Board {
    fn new() -> Self {
        Board { folder: tempfile::Builder::new().prefix("promptd-it-").tempdir_in("/tmp").unwrap() }
    }

    fn models(&self) -> PathBuf {
        self.folder.path().join("models")
    }

    /// `promptd model ARGS --models …`: exit code, standard output, standard error.
    fn run(&self, args: &[&str]) -> (i32, String, String) {
        let mut typed = command(&["model"]);
        typed.args(args).arg("--models").arg(self.models()).current_dir(self.folder.path());
        output(typed)
    }

    /// The same with `--json`, which works.
    fn json(&self, args: &[&str]) -> Value {
        let (code, text, errors) = self.run(&[args, &["--json"]].concat());
        assert_eq!(code, 0, "{text}{errors}");
        serde_json::from_str(&text).unwrap()
    }

    /// Brings in the demo model.
    fn import(&self, revision: &str) -> Value {
        let demo = demo_model();
        self.json(&["import", demo.to_str().unwrap(), "--revision", revision])
    }
}

#[test]
fn a_model_goes_from_board_to_board_as_an_archive() {
    let (one, other) = (Board::new(), Board::new());
    let kept = one.import("1");
    assert_eq!((kept["model"].as_str(), kept["current"].as_bool()), (Some("demo@1"), Some(false)));
    assert_eq!(one.json(&["list"])[0]["model"], "demo@1");
    let written = one.json(&["export", "demo"]);
    assert_eq!(written["path"], "demo@1.tar");
    let archive = one.folder.path().join("demo@1.tar");
    // It is there already: nothing is written over.
    assert_eq!(one.run(&["export", "demo"]).0, 1);

    assert_eq!(other.json(&["import", archive.to_str().unwrap()])["model"], "demo@1");
    let (code, text, _) = other.run(&["verify"]);
    assert_eq!((code, text.as_str()), (0, "demo@1: all files are as its manifest says\n"));
    // What tar makes of it is the same to promptd; a pipe will do.
    let piped = std::process::Command::new("sh")
        .args([
            "-c",
            "tar -C \"$1\" -c demo@1 | \"$2\" model import - --name piped --models \"$3\"",
            "sh",
        ])
        .arg(one.models())
        .arg(env!("CARGO_BIN_EXE_promptd"))
        .arg(other.models())
        .output()
        .unwrap();
    assert!(piped.status.success(), "{piped:?}");
    let names: Vec<Value> =
        other.json(&["list"]).as_array().unwrap().iter().map(|m| m["model"].clone()).collect();
    assert_eq!(names, ["demo@1", "piped@1"]);
}

#[test]
fn a_damaged_model_is_told_and_removed() {
    let board = Board::new();
    board.import("1");
    board.import("2");
    let weights = board.models().join("demo@2/model.onnx.data");
    let mut bytes = std::fs::read(&weights).unwrap();
    bytes[5000] ^= 4;
    std::fs::write(&weights, bytes).unwrap();
    let (code, text, _) = board.run(&["verify"]);
    assert_eq!(code, 1);
    assert!(text.starts_with("demo@1: all files are as its manifest says\ndemo@2: "), "{text}");
    assert!(text.contains("model.onnx.data: has the sha256"), "{text}");
    let (code, _, errors) = board.run(&["rm", "demo"]);
    assert_eq!(code, 1);
    assert!(errors.contains("may be demo@1, demo@2; name one of them"), "{errors}");
    assert_eq!(board.run(&["rm", "demo@2"]).0, 0);
    assert_eq!(board.run(&["verify"]).0, 0);
    assert!(!board.models().join("demo@2").exists());
}

#[test]
fn what_cannot_be_done_is_said_with_a_way_out() {
    let board = Board::new();
    for (args, code, words) in [
        (&["import", "/nonexistent"][..], 1, "cannot read /nonexistent"),
        (&["import", env!("CARGO_MANIFEST_DIR")], 1, "models/demo is: name that one"),
        (&["rm", "llama"], 1, "no model is called `llama`; there is none in"),
        (&["import", "x", "--name"], 2, "a value is required"),
    ] {
        let (status, _, errors) = board.run(args);
        assert_eq!(status, code, "{args:?}: {errors}");
        assert!(errors.contains(words), "{errors}");
    }
    let (code, text, errors) = board.run(&["list"]);
    assert_eq!((code, text.as_str()), (0, ""));
    assert!(errors.contains("brings one in"), "{errors}");
    // Somebody else is at work.
    let file = std::fs::File::create(board.models().join("lock")).unwrap();
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let demo = demo_model();
    let (code, _, errors) = board.run(&["import", demo.to_str().unwrap()]);
    assert_eq!(code, 75, "{errors}");
    assert!(errors.contains("try again when it has ended"), "{errors}");
    // Without a place and without a configuration.
    let mut typed = command(&["model", "list", "--config"]);
    typed.arg(Path::new("/nonexistent/promptd.toml"));
    let (code, _, errors) = output(typed);
    assert_eq!(code, 1);
    assert!(errors.contains("name it with --models"), "{errors}");
}
