//! What the two processes and the socket cost: the demo model asked over the HTTP socket, beside the same model called in this
//! process; and the processor time that eight quick streams take to carry.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use promptd::inference::{Config, Execution, Loaded, Start, load};
use promptd::request::{
    CacheKey, Constraint, ContextOverflow, Event, Input, Message, PromptId, Request, Reuse, Role,
    Sampling,
};
use serde_json::{Value, json};

use crate::figures::{quantile, spread};
use crate::service::{Plan, Service, Where, ticks};

/// Tokens of an answer of the demo model.
const TOKENS: u32 = 48;
/// A prompt that it goes on about for so long; under 64 tokens, so that nothing of it is found in the KV cache.
const QUESTION: &str = "Who are you?";

/// The longest that streams are carried: what the engine's context has room for.
const LONGEST: Duration = Duration::from_secs(15);

/// Streams at once, and the time between two tokens of one: 200 a second.
const STREAMS: u32 = 8;
const STEP: Duration = Duration::from_millis(5);

/// The limits: added to the time to the first text, added to each token, and the share of one core that all streams take.
const FIRST: Duration = Duration::from_micros(300);
const EACH: Duration = Duration::from_micros(50);
const SHARE: f64 = 0.1;

/// Measures for so many seconds, with the limits; without a number only for a moment, and what depends on the machine's speed
/// is printed and not judged.
pub(crate) fn play(seconds: Option<u64>) -> ExitCode {
    let lasts = Duration::from_secs(seconds.unwrap_or(1));
    let one = compare(lasts);
    let (service, engine) = carry(lasts.min(LONGEST));
    println!(
        "{STREAMS} streams of {} tokens/s: {:.1} % of a core in the service, {:.1} % in the engine's loop",
        1000 / STEP.as_millis(),
        service * 100.0,
        engine * 100.0,
    );
    let mut misses = Vec::new();
    if seconds.is_some() {
        let (first, each) = (quantile(&one.first, 0.5), quantile(&one.each, 0.5));
        for (holds, what) in [
            (first <= FIRST, format!("the first text comes {FIRST:?} later at most: {first:?}")),
            (each <= EACH, format!("a token takes {EACH:?} more at most: {each:?}")),
            (service <= SHARE, format!("the streams take {SHARE} of a core at most")),
        ] {
            misses.extend((!holds).then_some(what));
        }
    }
    for miss in &misses {
        println!("MISSED: {miss}");
    }
    if misses.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// When the first text of an answer was there, and how long each further token took.
struct Times {
    first: Duration,
    each: Duration,
}

/// What is added; nothing where it was quicker.
#[derive(Default)]
struct Added {
    first: Vec<Duration>,
    each: Vec<Duration>,
}

/// Asks in turns, so that what disturbs the machine for a while disturbs both ways.
fn compare(lasts: Duration) -> Added {
    let plan = demo();
    let service = Service::start(&plan);
    let mut own = open(&plan.model);
    let mut stream = BufReader::new(UnixStream::connect(service.socket()).unwrap());
    let (mut inside, mut outside) = (Vec::new(), Vec::new());
    let begun = Instant::now();
    for round in 0_u64.. {
        if round > 3 && begun.elapsed() >= lasts {
            break;
        }
        let times = (called(&mut own, round), asked(&mut stream));
        // The first one warms both up.
        if round > 0 {
            inside.push(times.0);
            outside.push(times.1);
        }
    }
    let mut added = Added::default();
    for (inside, outside) in inside.iter().zip(&outside) {
        added.first.push(outside.first.saturating_sub(inside.first));
        added.each.push(outside.each.saturating_sub(inside.each));
    }
    let of = |times: &[Times], part: fn(&Times) -> Duration| -> Vec<Duration> {
        times.iter().map(part).collect()
    };
    println!("{} answers of {TOKENS} tokens each way, one after the other", inside.len());
    for (what, part, added) in [
        ("first text", (|times| times.first) as fn(&Times) -> Duration, &added.first),
        ("each further token", |times| times.each, &added.each),
    ] {
        println!(
            "{what}: {} in this process, {} over the socket; {} more",
            spread(&of(&inside, part)),
            spread(&of(&outside, part)),
            spread(added),
        );
    }
    added
}

/// The program as it is shipped, with the demo model.
pub(crate) fn demo() -> Plan {
    Plan {
        program: env!("CARGO_BIN_EXE_promptd").into(),
        model: Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo"),
        library: library(),
        slots: 1,
        more: String::new(),
        engine: Where::Outside,
    }
}

fn library() -> PathBuf {
    let named = std::env::var("ORT_DYLIB_PATH").ok();
    let program = Path::new(env!("CARGO_BIN_EXE_promptd"));
    promptd::settings::find_library(None, named.as_deref(), program)
        .unwrap_or_else(|message| panic!("{message} (`make test` fetches it)"))
        .path
}

fn open(model: &Path) -> Loaded {
    let config = Config {
        model: model.into(),
        library: library(),
        execution: Execution { threads: 1, ..Execution::default() },
        store: None,
        hashes: None,
        slots: 1,
        context: 0,
        beside: None,
        prefill_chunk: 0,
    };
    load(&config, Arc::new(Instant::now), &mut |_| {}).unwrap()
}

/// One answer of the model in this process.
fn called(own: &mut Loaded, number: u64) -> Times {
    let request = Request {
        input: Input::Chat(vec![Message::new(Role::User, QUESTION)]),
        sampling: Sampling::default(),
        max_tokens: Some(TOKENS),
        stop: Vec::new(),
        stop_token_ids: Vec::new(),
        context_overflow: ContextOverflow::default(),
        constraint: Constraint::None,
        logprobs: None,
        tools: None,
    };
    let mut clock = Clock::begin();
    let prepared = own.preparer.prepare(&request).unwrap();
    let reuse = Reuse { own: CacheKey(number), profile: None };
    let start = Start { id: PromptId(number), prepared, seed: 0, resume: &[], reuse };
    own.runner.start(start).unwrap();
    while !own.runner.is_idle() {
        let take = &mut |_, event| match event {
            Event::Delta { text, .. } if !text.is_empty() => clock.text(),
            Event::Failed(refusal) => panic!("{refusal}"),
            Event::Finished(finish) => clock.tokens = finish.usage.completion,
            _ => {}
        };
        own.runner.step(take).unwrap();
    }
    clock.times()
}

/// One streamed answer over a connection that is kept.
fn asked(stream: &mut BufReader<UnixStream>) -> Times {
    let body = json!({"stream": true, "stream_options": {"include_usage": true}, "max_tokens": TOKENS,
        "temperature": 0, "seed": 0, "messages": [{"role": "user", "content": QUESTION}]});
    let mut clock = Clock::begin();
    begin(stream, &body);
    let mut line = String::new();
    loop {
        line.clear();
        assert!(stream.read_line(&mut line).unwrap() > 0, "promptd has hung up");
        let Some(data) = line.strip_prefix("data: ") else { continue };
        let now = Instant::now();
        if data.trim_end() == "[DONE]" {
            break;
        }
        let event: Value = serde_json::from_str(data).unwrap();
        assert_eq!(event["error"], Value::Null, "{event}");
        if event["choices"][0]["delta"]["content"].as_str().is_some_and(|text| !text.is_empty()) {
            clock.text_at(now);
        }
        if let Some(tokens) = event["usage"]["completion_tokens"].as_u64() {
            clock.tokens = u32::try_from(tokens).unwrap();
        }
    }
    // The empty chunk behind the body.
    while line != "0\r\n" {
        line.clear();
        stream.read_line(&mut line).unwrap();
    }
    stream.read_line(&mut line).unwrap();
    clock.times()
}

fn begin(stream: &mut BufReader<UnixStream>, body: &Value) {
    let body = body.to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: l\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.get_mut().write_all(format!("{head}{body}").as_bytes()).unwrap();
}

struct Clock {
    begun: Instant,
    first: Option<Instant>,
    last: Option<Instant>,
    tokens: u32,
}

impl Clock {
    fn begin() -> Clock {
        Clock { begun: Instant::now(), first: None, last: None, tokens: 0 }
    }

    fn text(&mut self) {
        self.text_at(Instant::now());
    }

    fn text_at(&mut self, now: Instant) {
        self.first.get_or_insert(now);
        self.last = Some(now);
    }

    fn times(&self) -> Times {
        let (first, last) = (self.first.expect("a text"), self.last.expect("a text"));
        assert!(self.tokens > 8, "{} tokens are too few to measure", self.tokens);
        Times { first: first - self.begun, each: (last - first) / (self.tokens - 1) }
    }
}

/// Shares of one core that service and engine take while all streams run.
fn carry(lasts: Duration) -> (f64, f64) {
    let service = Service::start(&Plan { slots: STREAMS, ..Plan::paced(STEP) });
    let tokens = (lasts.as_millis() + 500) / STEP.as_millis();
    let body = json!({"stream": true, "max_tokens": u32::try_from(tokens).unwrap(),
        "messages": [{"role": "user", "content": QUESTION}]});
    let reader = |_| {
        let mut stream = BufReader::new(UnixStream::connect(service.socket()).unwrap());
        begin(&mut stream, &body);
        std::thread::Builder::new().spawn(move || read(stream)).unwrap()
    };
    let readers: Vec<_> = (0..STREAMS).map(reader).collect();
    // What it takes to begin is no part of it.
    std::thread::sleep(Duration::from_millis(250));
    let engine = service.health().unwrap()["engine_pid"].as_u64();
    let engine = u32::try_from(engine.expect("the engine's process")).unwrap();
    let (begun, before) = (Instant::now(), (ticks(service.pid()), ticks(engine)));
    std::thread::sleep(lasts);
    let (passed, after) = (begun.elapsed(), (ticks(service.pid()), ticks(engine)));
    for reader in readers {
        assert_eq!(u128::from(reader.join().unwrap()), tokens, "every token comes");
    }
    let share = |before: u32, after: u32| f64::from(after - before) / 100.0 / passed.as_secs_f64();
    (share(before.0, after.0), share(before.1, after.1))
}

/// Reads a stream to its end; the texts that came, which are as many words as there are tokens.
fn read(stream: BufReader<UnixStream>) -> u32 {
    let mut words = 0;
    for line in stream.lines() {
        let line = line.unwrap();
        let Some(data) = line.strip_prefix("data: ") else { continue };
        if data == "[DONE]" {
            break;
        }
        let event: Value = serde_json::from_str(data).unwrap();
        let text = event["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
        words += u32::try_from(text.split_whitespace().count()).unwrap();
    }
    words
}
