//! Vectors that stand for texts: from the engine, and over HTTP from a running promptd.

use promptd::inference::{Config, Loaded};
use promptd::request::{
    Code, Embed, EmbedText, Event, FinishReason, Input, PromptId, Refusal, Request,
};
use serde_json::{Value, json};

use crate::support::door::{Door, Kind, finished};
use crate::support::hidden::{WIDTH, edit, pool_by, with_hidden_states, without_logits};
use crate::support::http;
use crate::support::model::{
    Answer, completion, config, library, open, request, run, run_all, start,
};
use crate::support::raw_http;
use crate::support::service::{Plan, Service};

fn embed(texts: Vec<EmbedText>) -> Request {
    request(Input::Embed(Embed { texts, dimensions: None }), 1)
}

fn words(texts: &[&str]) -> Request {
    embed(texts.iter().map(|text| EmbedText::Text((*text).to_owned())).collect())
}

fn vectors(answer: &Answer) -> Vec<Vec<f32>> {
    let of = |(at, (index, values)): (usize, &(u32, Vec<f32>))| {
        assert_eq!(u32::try_from(at).unwrap(), *index);
        values.clone()
    };
    answer.vectors.iter().enumerate().map(of).collect()
}

fn cosine(one: &[f32], other: &[f32]) -> f64 {
    one.iter().zip(other).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

fn refused(loaded: &Loaded, request: &Request) -> Refusal {
    loaded.preparer.prepare(request).unwrap_err()
}

/// More tokens than one step reads.
fn long() -> String {
    "Turn on the kitchen light. ".repeat(20)
}

#[test]
fn texts_become_vectors_of_length_1_whatever_is_done_beside_them() {
    let folder = with_hidden_states();
    let mut loaded = open(&config(&library(), folder.path(), 2)).unwrap();
    assert_eq!((loaded.facts.text, loaded.facts.embedding), (true, Some(128)));
    let long = long();
    let texts = ["Turn on the kitchen light.", &long, "x", "Turn on the kitchen light."];
    let answer = run(&mut loaded, &words(&texts));
    let all = vectors(&answer);
    assert_eq!(all.len(), 4);
    for vector in &all {
        assert_eq!(vector.len(), WIDTH);
        assert!((cosine(vector, vector) - 1.0).abs() < 1e-6);
    }
    assert_eq!(all[0], all[3]);
    assert!(cosine(&all[0], &all[2]) < 0.99, "different texts point elsewhere");
    let finish = answer.finish();
    let total = finish.usage.prompt;
    assert_eq!((finish.reason, finish.usage.completion), (FinishReason::Stop, 0));
    assert_eq!(answer.prefill.last(), Some(&(total, total)));
    assert!(answer.prefill.windows(2).all(|pair| pair[0].0 < pair[1].0), "{:?}", answer.prefill);
    assert!(answer.prefill.len() > 5, "the long text is read in several steps");

    // Alone, after others, and beside an answer they are the same to the last bit, and so is the answer.
    assert_eq!(vectors(&run(&mut loaded, &words(&[&long]))), all[1..2]);
    let ask = completion(&json!({"prompt": "Turn on"}), 40);
    let alone = run(&mut loaded, &ask).tokens;
    let prepare = |request: &Request| loaded.preparer.prepare(request).unwrap();
    let both = vec![(prepare(&ask), 0, vec![]), (prepare(&words(&texts)), 0, vec![])];
    let both = run_all(&mut loaded, both);
    assert_eq!(both[0].tokens, alone);
    assert_eq!(vectors(&both[1]), all);

    // Larger steps round otherwise, and not more than that.
    let whole = Config { prefill_chunk: 512, ..config(&library(), folder.path(), 1) };
    let mut whole = open(&whole).unwrap();
    let again = vectors(&run(&mut whole, &words(&texts)));
    assert!(again.iter().zip(&all).all(|(one, other)| cosine(one, other) > 0.9999));
}

#[test]
fn a_prompt_of_texts_is_cancelled_in_the_middle_and_leaves_the_slot_free() {
    let folder = with_hidden_states();
    let mut loaded = open(&config(&library(), folder.path(), 1)).unwrap();
    let long = long();
    let expected = vectors(&run(&mut loaded, &words(&["x"])));
    let prepared = loaded.preparer.prepare(&words(&["x", &long, &long])).unwrap();
    loaded.runner.start(start(1, prepared, 0)).unwrap();
    assert_eq!(loaded.runner.free_slots(), 0);
    let mut seen = Vec::new();
    while seen.len() < 4 {
        loaded.runner.step(&mut |id, event| seen.push((id, event))).unwrap();
    }
    assert!(seen.iter().any(|(_, event)| matches!(event, Event::Vector { index: 0, .. })));
    loaded.runner.cancel(PromptId(1));
    assert!(loaded.runner.is_idle() && loaded.runner.free_slots() == 1);
    loaded.runner.step(&mut |_, event| panic!("{event:?}")).unwrap();
    assert_eq!(vectors(&run(&mut loaded, &words(&["x"]))), expected);
}

#[test]
fn a_graph_without_logits_gives_the_same_vectors_and_writes_nothing() {
    let (full, only) = (with_hidden_states(), without_logits());
    for mode in ["mean_tokens", "cls_token", "lasttoken"] {
        pool_by(full.path(), mode);
        pool_by(only.path(), mode);
        let mut full = open(&config(&library(), full.path(), 2)).unwrap();
        let mut only = open(&config(&library(), only.path(), 2)).unwrap();
        assert_eq!((only.facts.text, only.facts.embedding), (false, Some(128)));
        let texts = words(&["Turn on the kitchen light.", &long()]);
        let vectors_of = |loaded: &mut Loaded| vectors(&run(loaded, &texts));
        assert_eq!(vectors_of(&mut full), vectors_of(&mut only), "{mode}");
        let refusal = refused(&only, &completion(&json!({"prompt": "x"}), 5));
        assert!(refusal.code == Code::Unsupported && refusal.message.contains("writes no text"));
        // A first token says nothing of those behind it, a last one of those in front of it does.
        let [one, other] = &vectors(&run(&mut full, &words(&["Turn on", "Turn off"])))[..] else {
            panic!()
        };
        assert_eq!(one == other, mode == "cls_token", "{mode}");
    }
    pool_by(only.path(), "max_tokens");
    let error = open(&config(&library(), only.path(), 1)).unwrap_err().to_string();
    assert!(error.contains("pooling_mode_max_tokens is true"), "{error}");
    // A name of logits that is stated must be one of the graph.
    edit(full.path(), |config| config["model"]["decoder"]["outputs"]["logits"] = "scores".into());
    let error = open(&config(&library(), full.path(), 1)).unwrap_err().to_string();
    assert!(error.contains("logits is `scores`, but model.onnx has no such tensor"), "{error}");
}

#[test]
fn what_cannot_become_vectors_is_refused_before_it_waits() {
    let folder = with_hidden_states();
    let loaded = open(&config(&library(), folder.path(), 1)).unwrap();
    let of_size = |dimensions| {
        let texts = vec![EmbedText::Text("x".to_owned())];
        request(Input::Embed(Embed { texts, dimensions: Some(dimensions) }), 1)
    };
    assert!(loaded.preparer.prepare(&of_size(128)).is_ok());
    let refusal = refused(&loaded, &of_size(64));
    assert_eq!((refusal.code, refusal.param.as_deref()), (Code::Unsupported, Some("dimensions")));
    assert_eq!((refusal.limit, refusal.have), (Some(128), Some(64)));
    let context = usize::try_from(loaded.facts.context).unwrap();
    let tokens = |count| EmbedText::Tokens(vec![5; count]);
    let prepared = loaded.preparer.prepare(&embed(vec![tokens(context)])).unwrap();
    assert_eq!(prepared.prompt_tokens(), loaded.facts.context);
    let refusal = refused(&loaded, &embed(vec![tokens(1), tokens(context + 1)]));
    assert_eq!(
        (refusal.code, refusal.param.as_deref()),
        (Code::ContextLengthExceeded, Some("input[1]"))
    );
    assert_eq!((refusal.limit, refusal.have), (Some(512), Some(513)));
    let unknown = EmbedText::Tokens(vec![1, loaded.facts.vocab_size]);
    let refusal = refused(&loaded, &embed(vec![unknown]));
    assert_eq!((refusal.code, refusal.param.as_deref()), (Code::BadRequest, Some("input")));
    let refusal = refused(&loaded, &embed(vec![tokens(500); 601]));
    assert_eq!((refusal.code, refusal.limit), (Code::BadRequest, Some(300_000)));
    // Without an output of hidden states nothing is embedded.
    let demo = open(&config(&library(), &crate::support::demo_model(), 1)).unwrap();
    assert_eq!((demo.facts.text, demo.facts.embedding), (true, None));
    let refusal = refused(&demo, &words(&["x"]));
    assert!(refusal.code == Code::Unsupported && refusal.message.contains("hidden states"));
}

/// A text of the whole context has as many rows as the cache.
#[test]
fn a_text_may_fill_the_whole_context() {
    let folder = with_hidden_states();
    let mut loaded = open(&config(&library(), folder.path(), 2)).unwrap();
    let full = EmbedText::Tokens((0..512).map(|at| at % 900 + 10).collect());
    let one = vectors(&run(&mut loaded, &embed(vec![full.clone()])));
    let again = vectors(&run(&mut loaded, &embed(vec![full.clone(), full])));
    assert_eq!(again, [one[0].clone(), one[0].clone()]);
}

fn post(service: &Service, body: &Value) -> http::Answer {
    http::post(&service.socket(), "/v1/embeddings", body)
}

/// The numbers of a vector that came as base64.
fn decoded(text: &str) -> Vec<f32> {
    let letter = |byte: u8| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let (mut bytes, mut bits, mut held) = (Vec::new(), 0_u32, 0);
    for byte in text.trim_end_matches('=').bytes() {
        bits = bits << 6 | u32::from(letter(byte));
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push(u8::try_from(bits >> held & 255).unwrap());
        }
    }
    bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
}

#[test]
fn over_http_in_openais_words() {
    let folder = without_logits();
    pool_by(folder.path(), "lasttoken");
    let service = Service::start(&Plan::of_model(folder.path())).ready();
    let body = json!({"model": "default", "input": ["Turn on", "the light"]});
    let answer = post(&service, &body);
    assert_eq!(answer.status, 200, "{}", answer.body);
    let list = answer.json();
    assert_eq!((&list["object"], list["data"].as_array().unwrap().len()), (&json!("list"), 2));
    let floats =
        |entry: &Value| -> Vec<f32> { serde_json::from_value(entry["embedding"].clone()).unwrap() };
    for (at, entry) in list["data"].as_array().unwrap().iter().enumerate() {
        assert_eq!((&entry["object"], &entry["index"]), (&json!("embedding"), &json!(at)));
        assert_eq!(floats(entry).len(), WIDTH);
    }
    let tokens = &list["usage"]["prompt_tokens"];
    assert!(tokens.as_u64() > Some(2) && *tokens == list["usage"]["total_tokens"], "{list}");
    let mut packed = body.clone();
    packed["encoding_format"] = "base64".into();
    packed["dimensions"] = WIDTH.into();
    let packed = post(&service, &packed).json();
    assert_eq!(decoded(packed["data"][1]["embedding"].as_str().unwrap()), floats(&list["data"][1]));
    // The same text as the tokens that the model's own tokenizer makes of it.
    let one = post(&service, &json!({"input": [5, 6, 7]})).json();
    let several = post(&service, &json!({"input": [[9], [5, 6, 7]]})).json();
    assert_eq!(floats(&one["data"][0]), floats(&several["data"][1]));
    assert_eq!(one["usage"], json!({"prompt_tokens": 3, "total_tokens": 3}));

    for (body, status, param) in [
        (json!({"input": "x", "dimensions": 3}), 501, "dimensions"),
        (json!({"input": "x", "model": "other"}), 404, "model"),
        (json!({"input": vec![5; 600]}), 400, "input"),
        (json!({"input": ["x", "the light ".repeat(800)]}), 400, "input[1]"),
    ] {
        let answer = post(&service, &body);
        let error = &answer.json()["error"];
        assert_eq!((answer.status, &error["param"]), (status, &json!(param)), "{error}");
    }
    // What it cannot do it says, and the status says what it is.
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let answer =
        http::post(&service.socket(), "/v1/chat/completions", &json!({"messages": messages}));
    assert_eq!(answer.status, 501, "{}", answer.body);
    let status = http::get(&service.socket(), "/health/ready").json();
    assert_eq!(
        (&status["model"]["text"], &status["model"]["embedding"]),
        (&json!(false), &json!(128))
    );
    assert_eq!(status["counters"]["completion_tokens"], 0);
}

fn two_texts() -> String {
    raw_http::request("POST", "/v1/embeddings", &json!({"input": ["a", "b"]}).to_string())
}

#[tokio::test]
async fn vectors_that_come_again_from_a_second_engine_stand_once() {
    let mut door = Door::open(Kind::Http);
    let mut client = door.connect().await;
    client.send(two_texts()).await;
    let (submission, verdict) = door.submitted().await;
    assert!(matches!(submission.request.input, Input::Embed(_)));
    let events = verdict.accept(7);
    for (index, number) in [(0, 1.0), (1, 0.25), (0, 1.0), (1, 0.5)] {
        events.send(Event::Vector { index, values: vec![number, 0.0] });
    }
    events.send(finished());
    let answer = raw_http::Answer::read(&client.rest().await);
    let data = &answer.json()["data"];
    assert_eq!((answer.status, data.as_array().unwrap().len()), (200, 2));
    assert_eq!(
        (&data[0]["embedding"], &data[1]["embedding"]),
        (&json!([1.0, 0.0]), &json!([0.5, 0.0]))
    );
    // An engine that forgets one is at fault, and nobody gets a list with a hole.
    let mut client = door.connect().await;
    client.send(two_texts()).await;
    let events = door.accepted().await;
    events.send(Event::Vector { index: 1, values: vec![1.0] });
    events.send(finished());
    let answer = raw_http::Answer::read(&client.rest().await);
    assert_eq!(answer.status, 500);
}
