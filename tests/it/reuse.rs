//! Rows of the KV cache that are used again, and prompts of different lengths in one step: the answers stay the same, on
//! every kind of graph, and nobody gets what another left.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use promptd::inference::{Config, DEFAULT_PREFILL_CHUNK, Loaded, Prepared, Start};
use promptd::request::{CacheKey, Event, Input, Pinned, PromptId, Request, Reuse, Sampling};

use serde_json::{Value, json};

use crate::support::model::{Answer, config, library, material, open, request, start};
use crate::support::service::{Plan, Service};
use crate::support::{TrueAtTheEnd, http, wait_for};

/// Shared buffer in single precision and in four bits, grown past in single and in half precision.
const GRAPHS: [&str; 5] = [
    "stories260k-genai-fp32",
    "stories260k-genai-int4",
    "aidreams230k-genai-int4-acc4",
    "stories260k-plain-fp32",
    "aidreams230k-plain-fp16",
];

/// Further ones that `make test-models` writes.
const WRITTEN: [&str; 3] = ["int8-cache", "genai-pruned", "logits-to-keep"];

/// Those of them that there are.
fn graphs() -> Vec<PathBuf> {
    let of = |root: Option<PathBuf>, names: &[&str]| {
        root.map(|root| names.iter().map(|name| root.join(name)).collect()).unwrap_or_default()
    };
    let written = std::env::var_os("PROMPTD_TEST_LAYOUTS").map(PathBuf::from);
    let mut graphs: Vec<PathBuf> = of(material().map(|root| root.join("models")), &GRAPHS);
    graphs.extend(of(written, &WRITTEN));
    graphs
}

fn load(folder: &Path, slots: u16) -> (String, Loaded) {
    let name = folder.file_name().unwrap().to_string_lossy().into_owned();
    let config = Config { prefill_chunk: CHUNK, ..config(&library(), folder, slots) };
    (name, open(&config).unwrap())
}

/// The first of them.
fn any(slots: u16) -> Option<Loaded> {
    Some(load(graphs().first()?, slots).1)
}

/// Tokens of a chunk: what is used again comes in multiples of it. Small, because the contexts are.
const CHUNK: u32 = 32;

fn tokens(count: u32, seed: u32) -> Vec<u32> {
    (0..count).map(|n| 3 + (n * 37 + n * n * 11 + seed * 101) % 180).collect()
}

/// Answers of `max_tokens` with what the model thought of as many tokens as it can tell, so that rounding shows.
fn prepare(loaded: &Loaded, tokens: &[u32], max_tokens: u32) -> Prepared {
    let told = Request {
        logprobs: Some(u8::MAX),
        ..request(Input::Completion(String::new()), max_tokens)
    };
    loaded.preparer.prepare_tokens(tokens.to_vec(), &told).unwrap()
}

fn ask(loaded: &mut Loaded, tokens: &[u32], reuse: Reuse) -> Answer {
    let prepared = prepare(loaded, tokens, 6);
    loaded.runner.start(Start { reuse, ..start(1, prepared, 0) }).unwrap();
    let mut answer = Answer::default();
    while !loaded.runner.is_idle() {
        loaded.runner.step(&mut |_, event| answer.take(event)).unwrap();
    }
    answer
}

fn of(own: u64) -> Reuse {
    Reuse { own: CacheKey(own), profile: None }
}

/// What a prompt's answer is where nothing can be used again.
fn alone(loaded: &mut Loaded, tokens: &[u32]) -> Answer {
    static ASKED: AtomicU64 = AtomicU64::new(1 << 60);
    ask(loaded, tokens, of(ASKED.fetch_add(1, Ordering::Relaxed)))
}

/// The same to the last bit.
fn same(one: &Answer, other: &Answer, what: &str) {
    assert_eq!(one.tokens, other.tokens, "{what}");
    let (one, other) = (bits(one), bits(other));
    assert!(one.len() > 255 && one == other, "{what}: {} differ", differing(&one, &other));
}

/// All that the model thought, to the last bit.
fn bits(answer: &Answer) -> Vec<u32> {
    let tops = answer.logprobs.iter().flat_map(|token| &token.top);
    tops.map(|candidate| candidate.logprob.to_bits()).collect()
}

fn differing(one: &[u32], other: &[u32]) -> usize {
    one.iter().zip(other).filter(|(a, b)| a != b).count()
}

#[test]
fn an_answer_behind_kept_rows_is_the_same() {
    for folder in graphs() {
        let ((name, mut fresh), (_, mut loaded)) = (load(&folder, 1), load(&folder, 2));
        let (mut hits, mut asked) = (0, 0);
        let room = loaded.facts.context - 8;
        // Lengths around blocks and chunks, each behind a longer, a shorter and another prompt with the same beginning.
        let lengths = [18, 33, 64, 65, 100, 128, 129, 130, 144, 193, 200, 257, 290].into_iter();
        for length in lengths.filter(|length| *length <= room) {
            let prompt = tokens(length, 1);
            let expected = alone(&mut fresh, &prompt);
            assert_eq!(expected.finish().usage.cached, 0);
            let mut other = prompt.clone();
            other.truncate(prompt.len() / 2 + 9);
            other.extend(tokens(20, 2));
            for before in
                [tokens(room.min(length + 40), 1), tokens(length - 1, 1), other, prompt.clone()]
            {
                asked += 1;
                let own = 1000 + u64::from(asked);
                ask(&mut loaded, &before, of(own));
                let answer = ask(&mut loaded, &prompt, of(own));
                let usage = answer.finish().usage;
                same(&answer, &expected, &format!("{name}: {length} tokens behind {usage:?}"));
                assert!(usage.cached <= usage.prompt && usage.prompt == length);
                hits += u32::from(usage.cached > 0);
            }
        }
        assert!(hits * 2 > asked, "{name}: only {hits} of {asked} prompts used anything again");
    }
}

#[test]
fn what_one_left_is_not_used_for_another() {
    let Some(mut loaded) = any(2) else { return };
    let prompt = tokens(100, 1);
    let cached = |loaded: &mut Loaded, reuse| ask(loaded, &prompt, reuse).finish().usage.cached;
    assert_eq!(cached(&mut loaded, of(1)), 0);
    assert_eq!(cached(&mut loaded, of(1)), 96);
    assert_eq!(cached(&mut loaded, of(2)), 0, "another's prompt, letter for letter");
    // Not in the time either: all of it is read.
    let read = ask(&mut loaded, &prompt, of(3)).prefill;
    assert_eq!(read, [(32, 100), (64, 100), (96, 100), (100, 100)]);
    assert_eq!(cached(&mut loaded, of(3)), 96);
}

#[test]
fn a_cancelled_prompt_leaves_what_was_read_of_it() {
    for folder in graphs() {
        let (name, mut loaded) = load(&folder, 1);
        let prompt = tokens(loaded.facts.context - 20, 4);
        let expected = alone(&mut loaded, &prompt);
        let prepared = prepare(&loaded, &prompt, 4);
        loaded.runner.start(Start { reuse: of(5), ..start(7, prepared, 0) }).unwrap();
        loaded.runner.step(&mut |_, _| {}).unwrap();
        loaded.runner.cancel(PromptId(7));
        assert!(loaded.runner.is_idle());
        let answer = ask(&mut loaded, &prompt, of(5));
        assert_eq!(answer.finish().usage.cached, CHUNK, "{name}");
        same(&answer, &expected, &name);
    }
}

#[test]
fn beginnings_of_profiles_are_pinned_for_their_prompts() {
    for folder in graphs() {
        let (name, mut loaded) = load(&folder, 1);
        let system = "Once upon a time there was a little girl who had a big red ball. ".repeat(2);
        let pinned = Pinned { key: CacheKey(9), system: system.clone(), goes_on: false };
        let beginning = loaded.preparer.beginning(&pinned);
        let input = Input::Ask { system: Some(system), text: "The dog".into() };
        let told = Request { logprobs: Some(u8::MAX), ..request(input, 8) };
        let prompt = loaded.preparer.prepare(&told).unwrap().tokens().to_vec();
        let common = prompt.iter().zip(&beginning).take_while(|(a, b)| a == b).count();
        // Where a word joins with what stands before it, the last token can be another.
        assert!(common + 2 > beginning.len() && common > CHUNK as usize, "{name}: {beginning:?}");
        let expected = alone(&mut loaded, &prompt);

        loaded.runner.pin(vec![(CacheKey(9), beginning.clone())]);
        while !loaded.runner.is_idle() {
            loaded.runner.step(&mut |_, event| panic!("nobody asked: {event:?}")).unwrap();
        }
        let with = |own| Reuse { own: CacheKey(own), profile: Some(CacheKey(9)) };
        for own in 20..23 {
            // Something else in between, so that the rows are not simply still there.
            ask(&mut loaded, &tokens(90, 8), of(own + 50));
            let answer = ask(&mut loaded, &prompt, with(own));
            let chunks = u32::try_from(common).unwrap() / CHUNK * CHUNK;
            assert_eq!(answer.finish().usage.cached, chunks, "{name}");
            same(&answer, &expected, &name);
        }
        // Who does not name the profile does not learn what stands in it.
        assert_eq!(ask(&mut loaded, &prompt, of(30)).finish().usage.cached, 0, "{name}");
        // What is pinned no more is gone.
        loaded.runner.pin(Vec::new());
        assert_eq!(ask(&mut loaded, &prompt, with(31)).finish().usage.cached, 0, "{name}");
    }
}

#[test]
fn what_is_pinned_fits_into_one_slot_and_gives_way_to_prompts() {
    let Some(mut loaded) = any(1) else { return };
    let context = loaded.facts.context;
    loaded.runner.pin(vec![
        (CacheKey(1), tokens(300, 1)),
        (CacheKey(2), tokens(context, 2)),
        (CacheKey(3), tokens(100, 3)),
    ]);
    loaded.runner.step(&mut |_, _| {}).unwrap();
    // In the middle of the first one.
    let answer = ask(&mut loaded, &tokens(50, 5), of(9));
    assert!(answer.finish().usage.completion > 0);
    let with = |profile| Reuse { own: CacheKey(profile + 10), profile: Some(CacheKey(profile)) };
    let cached = [(1, 300), (2, 300), (3, 100)].map(|(profile, length)| {
        let prompt = [tokens(length, profile), vec![7; 20]].concat();
        ask(&mut loaded, &prompt, with(profile.into())).finish().usage.cached
    });
    assert_eq!(cached, [288, 0, 96], "the second has no room beside the first");
}

/// Prompts of different lengths that come and go: each answer is the one it has alone.
#[test]
fn prompts_of_different_lengths_share_steps_on_every_graph() {
    for folder in graphs() {
        let ((name, mut one), (_, mut four)) = (load(&folder, 1), load(&folder, 4));
        assert!(four.facts.warnings.is_empty(), "{name}: {:?}", four.facts.warnings);
        let most = one.facts.context - 30;
        let prompts: Vec<(Vec<u32>, u32)> = (0..)
            .zip([5, 17, 140, 33, 64, 9, 48, 201, 21, 100, 3, 80])
            .map(|(n, length): (u32, u32)| (tokens(length.min(most), n), 4 + n * 5 % 23))
            .collect();
        let expected: Vec<Answer> = prompts
            .iter()
            .map(|(prompt, most)| {
                let prepared = prepare(&one, prompt, *most);
                one.runner.start(start(1, prepared, 0)).unwrap();
                let mut answer = Answer::default();
                while !one.runner.is_idle() {
                    one.runner.step(&mut |_, event| answer.take(event)).unwrap();
                }
                answer
            })
            .collect();
        let mut answers: Vec<Answer> = prompts.iter().map(|_| Answer::default()).collect();
        let (mut next, mut most_at_once) = (0, 0);
        while next < prompts.len() || !four.runner.is_idle() {
            // One more with every step.
            if next < prompts.len() && four.runner.free_slots() > 0 {
                let prepared = prepare(&four, &prompts[next].0, prompts[next].1);
                four.runner.start(start(next as u64, prepared, 0)).unwrap();
                next += 1;
            }
            let mut told = 0;
            four.runner
                .step(&mut |id, event| {
                    told += usize::from(matches!(event, Event::Delta { .. }));
                    answers[usize::try_from(id.0).unwrap()].take(event);
                })
                .unwrap();
            most_at_once = most_at_once.max(told);
        }
        assert!(most_at_once >= 4, "{name}: at most {most_at_once} tokens in a step");
        for (n, (answer, expected)) in answers.iter().zip(&expected).enumerate() {
            assert_eq!(answer.tokens, expected.tokens, "{name}: prompt {n}");
        }
        let pairs = answers.iter().zip(&expected).map(|(one, other)| (bits(one), bits(other)));
        let (mut all, mut other) = (0, 0);
        for (one, alone) in pairs {
            (all, other) = (all + one.len(), other + differing(&one, &alone));
        }
        println!("{name}: {other} of {all} log probabilities are rounded otherwise than alone");
    }
}

/// A long prompt that comes while an answer is written holds it up by one chunk at a time.
#[test]
fn a_long_prompt_delays_an_answer_by_one_chunk() {
    for folder in graphs() {
        let (name, mut loaded) = load(&folder, 2);
        // The end of the sequence is never wanted, so that the answer goes on.
        let long = Request {
            sampling: Sampling {
                logit_bias: vec![(1, -100.0), (2, -100.0)],
                ..Sampling::default()
            },
            ..request(Input::Completion(String::new()), 60)
        };
        let prepared = loaded.preparer.prepare_tokens(tokens(10, 1), &long).unwrap();
        loaded.runner.start(start(0, prepared, 0)).unwrap();
        loaded.runner.step(&mut |_, _| {}).unwrap();
        let length = loaded.facts.context - 100.min(loaded.facts.context / 4);
        let prepared = prepare(&loaded, &tokens(length, 2), 3);
        loaded.runner.start(start(1, prepared, 0)).unwrap();
        let mut read = 0;
        while read < length {
            let (mut wrote, before) = (false, read);
            loaded
                .runner
                .step(&mut |id, event| match event {
                    Event::Prefill { done, .. } => read = done,
                    Event::Delta { .. } => wrote |= id == PromptId(0),
                    _ => {}
                })
                .unwrap();
            assert!(wrote && read - before <= CHUNK, "{name}: {before} to {read}");
        }
    }
}

/// The step that reads a chunk of a cancelled prompt ends at once, and the next prompt is not touched by it.
#[test]
fn a_cancel_ends_the_step_it_meets() {
    let Some(mut loaded) = any(1) else { return };
    let expected = alone(&mut loaded, &tokens(60, 6));
    let interrupt = loaded.runner.interrupter();
    let stop = AtomicBool::new(false);
    let (mut cut, long) = (0, tokens(500, 3));
    std::thread::scope(|scope| {
        let stop = &stop;
        let _stop = TrueAtTheEnd(stop);
        std::thread::Builder::new()
            .spawn_scoped(scope, move || {
                while !stop.load(Ordering::Relaxed) {
                    interrupt(PromptId(1));
                }
            })
            .unwrap();
        // A run can end before it is told to; in so many one is met.
        for _ in 0..200 {
            let prepared = prepare(&loaded, &long, 1);
            loaded.runner.start(start(1, prepared, 0)).unwrap();
            let mut told = 0;
            loaded.runner.step(&mut |_, _| told += 1).unwrap();
            cut += usize::from(told == 0);
            loaded.runner.cancel(PromptId(1));
            if cut > 3 {
                break;
            }
        }
    });
    assert!(cut > 0, "no step was ended");
    same(&alone(&mut loaded, &tokens(60, 6)), &expected, "after steps that were ended");
}

/// Through the real program: the profile's message is pinned, a session goes on where it was, and all doors say so.
#[test]
fn the_service_tells_what_was_in_the_cache() {
    let system = "greenhouse temperature: 21.5 °C\\ngarage door: open\\nkitchen light: off\\nbedroom humidity: 48 %\\n".repeat(3);
    let least = u64::from(DEFAULT_PREFILL_CHUNK);
    let plan = Plan::demo().with(&format!("[profiles.house]\nsystem = \"{system}\"\n"));
    let service = Service::start(&plan).ready();
    let ask = |question: &str| {
        let message = json!([{"role": "user", "content": question}]);
        let body = json!({"model": "default", "profile": "house", "messages": message});
        http::post(&service.socket(), "/v1/chat/completions", &body).json()
    };
    let cached = |answer: &Value| {
        let cached = &answer["usage"]["prompt_tokens_details"]["cached_tokens"];
        cached.as_u64().unwrap_or_else(|| panic!("{answer}"))
    };
    // Asking what nobody asked before, until the message is read.
    let mut number = 0;
    wait_for("the profile's message to be pinned", || {
        number += 1;
        (cached(&ask(&format!("{number} times?"))) >= least).then_some(())
    });
    let question = "Is the garage door open?";
    let (first, again) = (ask(question), ask(question));
    assert_eq!(first["choices"][0]["message"], again["choices"][0]["message"]);
    assert!(cached(&again) >= cached(&first) && cached(&first) >= least, "{first} {again}");

    let say = |text: &str| {
        let body = json!({"model": "default", "session": "s", "messages": [{"role": "user", "content": text}]});
        cached(&http::post(&service.socket(), "/v1/chat/completions", &body).json())
    };
    say(
        &"Turn on the light in the kitchen and the fan in the bedroom, and then close the garage door. ".repeat(4),
    );
    assert!(say("And now?") >= least, "a session starts behind its last turn");

    let page = http::get(&service.socket(), "/metrics").body;
    let counted = page.lines().find_map(|line| line.strip_prefix("promptd_cached_tokens_total "));
    assert!(counted.unwrap().parse::<u64>().unwrap() >= 3 * least, "{page}");
}
