//! Families of models in their true shapes, two layers deep with random weights: the answers have to be those of a plain
//! ONNX Runtime loop. `make test-families` writes them, one after the other.

use std::path::PathBuf;

use promptd::request::Input;
use serde_json::Value;

use crate::support::model::{config, ids, library, open, request, run_all};

#[test]
fn a_family_answers_as_the_plain_loop_does() {
    let Some(folder) = std::env::var_os("PROMPTD_TEST_FAMILIES").map(PathBuf::from) else {
        println!("skipped: PROMPTD_TEST_FAMILIES names no folder; `make test-families` writes one");
        return;
    };
    let expected = std::fs::read_to_string(folder.join("expected.json")).unwrap();
    let expected: Vec<Value> = serde_json::from_str(&expected).unwrap();
    let mut loaded = open(&config(&library(), &folder, 1)).unwrap();
    for line in &expected {
        let asked = request(Input::Completion(String::new()), 16);
        let prepared = loaded.preparer.prepare_tokens(ids(&line["prompt"]), &asked).unwrap();
        let answer = run_all(&mut loaded, vec![(prepared, 0, vec![])]).remove(0);
        let name = folder.display();
        assert_eq!(answer.tokens, ids(&line["ids"]), "{name}: {:?}", answer.end);
    }
    println!("{}: {} answers are equal", loaded.facts.architecture, expected.len());
}
