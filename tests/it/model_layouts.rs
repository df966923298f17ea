//! The same small model in every layout: the answers have to be those of the original. `make test-models` writes the folders.

use std::path::PathBuf;

use promptd::inference::inspect;
use promptd::request::{Embed, EmbedText, Input};
use serde_json::Value;

use crate::support::model::{
    completion, config, copy, ids, library, lines, open, request, run, run_all,
};

/// The folder of layouts, where one was written.
fn layouts() -> Option<PathBuf> {
    let named = std::env::var_os("PROMPTD_TEST_LAYOUTS").map(PathBuf::from);
    if named.is_none() {
        println!("skipped: PROMPTD_TEST_LAYOUTS names no folder; `make test-models` writes one");
    }
    named
}

fn answers(folder: &std::path::Path, golden: &str) -> usize {
    let mut loaded = open(&config(&library(), folder, 2)).unwrap();
    let lines: Vec<Value> =
        lines(golden).into_iter().filter(|line| line["prompt"].is_string()).collect();
    for line in &lines {
        let answer = run(&mut loaded, &completion(line, 64));
        assert_eq!(
            answer.tokens,
            ids(&line["greedy_ids"]),
            "{} {}: {:?}",
            folder.display(),
            line["id"],
            answer.text()
        );
    }
    // Two at once, of different lengths.
    let pair = lines
        .iter()
        .take(2)
        .map(|line| (loaded.preparer.prepare(&completion(line, 20)).unwrap(), 0, vec![]));
    let pair = pair.collect();
    for (answer, line) in run_all(&mut loaded, pair).iter().zip(&lines) {
        let expected: Vec<u32> = ids(&line["greedy_ids"]).into_iter().take(20).collect();
        assert_eq!(answer.tokens, expected, "{} together", folder.display());
    }
    lines.len()
}

#[test]
fn every_layout_answers_alike() {
    let Some(root) = layouts() else { return };
    for (name, golden) in [
        ("genai-renamed", "stories260k-genai-fp32.jsonl"),
        ("genai-not-shared", "stories260k-genai-fp32.jsonl"),
        ("genai-pruned", "stories260k-genai-fp32.jsonl"),
        ("transformers-js", "stories260k-plain-fp32.jsonl"),
        ("logits-to-keep", "stories260k-plain-fp32.jsonl"),
        ("optimum-merged", "stories260k-plain-fp32.jsonl"),
        ("optimum-with-past", "stories260k-plain-fp32.jsonl"),
        ("int4-zero-points", "stories260k-genai-int4.jsonl"),
    ] {
        println!("{name}: {} answers", answers(&root.join(name), golden));
    }
}

#[test]
fn vectors_are_those_of_a_plain_loop() {
    let Some(root) = layouts() else { return };
    let told: Vec<Value> =
        serde_json::from_slice(&std::fs::read(root.join("vectors.json")).unwrap()).unwrap();
    for (name, writes) in
        [("hidden-states", true), ("hidden-states-alone", false), ("hidden-states-half", true)]
    {
        let mut loaded = open(&config(&library(), &root.join(name), 2)).unwrap();
        assert_eq!((loaded.facts.text, loaded.facts.embedding), (writes, Some(64)), "{name}");
        let of: Vec<&Value> = told.iter().filter(|told| told["folder"] == name).collect();
        let texts = of.iter().map(|told| EmbedText::Tokens(ids(&told["ids"]))).collect();
        let asked = request(Input::Embed(Embed { texts, dimensions: Some(64) }), 1);
        let answer = run(&mut loaded, &asked);
        assert_eq!((answer.vectors.len(), of.len()), (3, 3));
        let mut farthest = 0.0_f64;
        for ((_, vector), told) in answer.vectors.iter().zip(of) {
            let right: Vec<f64> = serde_json::from_value(told["vector"].clone()).unwrap();
            assert_eq!(vector.len(), right.len());
            let far = vector.iter().zip(right).map(|(is, right)| (f64::from(*is) - right).abs());
            farthest = far.fold(farthest, f64::max);
        }
        // Half precision has three digits.
        let most = if name.ends_with("half") { 2e-3 } else { 2e-5 };
        assert!(farthest < most, "{name}: {farthest}");
        println!("{name}: at most {farthest:.1e} from the reference");
        // What the tokenizer puts in front of a text stands in front of it here as well.
        let golden = lines("stories260k-genai-fp32.jsonl");
        for line in golden.iter().filter(|line| line["prompt"].is_string()) {
            let text = EmbedText::Text(line["prompt"].as_str().unwrap().to_owned());
            let texts = vec![text, EmbedText::Tokens(ids(&line["prompt_ids"]))];
            let asked = request(Input::Embed(Embed { texts, dimensions: None }), 1);
            let answer = run(&mut loaded, &asked);
            assert_eq!(answer.vectors[0].1, answer.vectors[1].1, "{name}: {}", line["id"]);
        }
        if writes {
            let folder = root.join(name);
            let golden = if name.ends_with("half") { "plain" } else { "genai" };
            answers(&folder, &format!("stories260k-{golden}-fp32.jsonl"));
        }
    }
}

#[test]
fn the_variant_is_chosen_and_can_be_named() {
    let Some(root) = layouts() else { return };
    let folder = root.join("transformers-js");
    let checked = inspect::check(&folder).unwrap();
    assert!(checked.graph.ends_with("onnx/model_q4.onnx"), "{:?}", checked.graph);
    assert_eq!(checked.variants.len(), 2);
    let named = folder.join("onnx/model.onnx");
    let checked = inspect::check(&named).unwrap();
    assert_eq!(checked.name, "transformers-js");
    assert!(checked.graph.ends_with("onnx/model.onnx"));
    answers(&named, "stories260k-plain-fp32.jsonl");
}

#[test]
fn graphs_of_other_kinds_are_refused_by_name() {
    let Some(root) = layouts() else { return };
    for (name, words) in [
        ("encoder-decoder", "encoder-decoder model"),
        ("vision", "a model of images"),
        ("paged", "a paged graph"),
        ("mixture-of-experts", "a mixture of experts"),
        ("custom-operator", "no code from model folders"),
    ] {
        let error = inspect::check(&root.join("foreign").join(name)).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("model.onnx"), "{error}");
    }
}

#[test]
fn a_file_that_changes_under_the_model_ends_its_prompts_with_an_error() {
    let Some(folder) = copy("stories260k-genai-int4") else { return };
    let mut loaded = open(&config(&library(), folder.path(), 1)).unwrap();
    let request = completion(&serde_json::json!({"prompt": "Once upon"}), 50);
    let prepared = loaded.preparer.prepare(&request).unwrap();
    loaded.runner.start(crate::support::model::start(1, prepared, 0)).unwrap();
    loaded.runner.step(&mut |_, _| {}).unwrap();
    let data = folder.path().join("model.onnx.data");
    let file = std::fs::File::options().write(true).open(&data).unwrap();
    std::os::unix::fs::FileExt::write_at(&file, b"garbage", 1000).unwrap();
    let mut events = Vec::new();
    let error = loaded.runner.step(&mut |_, event| events.push(event)).unwrap_err();
    assert!(error.to_string().contains("model.onnx.data"), "{error}");
    assert!(matches!(&events[..], [promptd::request::Event::Failed(_)]), "{events:?}");
}
