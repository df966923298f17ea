//! The engine's process loop over a real socket, with a model that moves only when the test lets it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use promptd::engine::frames::{
    self, CheckedPrompt, FromEngine, LoadRequest, LoadStage, ToEngine, VERSION,
};
use promptd::engine::process::{self, Checker, Ended, Farewell, Interrupter, Loaded, Model, Start};
use promptd::request::{CacheKey, Code, Event, Input, Pinned, PromptId, Refusal, Request, Reuse};

use crate::support::PATIENCE;
use crate::support::words::{delta, finished, load, model, request};

/// A step of the scripted model: what the test lets happen in it.
enum Step {
    Emit(PromptId, Event),
    Fail,
    Panic,
}

/// Runs as many prompts as it is given; each step is the test's.
struct Scripted {
    running: Vec<PromptId>,
    steps: Receiver<Step>,
    /// What the model was told, for the test.
    told: SyncSender<String>,
}

#[derive(Debug, thiserror::Error)]
#[error("the scripted model fails")]
struct Failure;

/// Finds every text good but `bad` and `panic`.
struct Reader;

impl Checker for Reader {
    type Prepared = String;

    fn prepare(&self, request: &Request) -> Result<(String, CheckedPrompt), Refusal> {
        let Input::Completion(text) = &request.input else {
            panic!("only completions are used here")
        };
        match text.as_str() {
            "bad" => Err(Refusal::bad_request("a bad prompt")),
            "panic" => panic!("a fault in the checker"),
            text => Ok((
                text.to_owned(),
                CheckedPrompt { prompt_tokens: 1, max_tokens: 9, calls: None },
            )),
        }
    }

    fn beginning(&self, pinned: &Pinned) -> Vec<u32> {
        assert_ne!(pinned.system, "panic", "a fault in the checker");
        pinned.system.bytes().map(u32::from).collect()
    }
}

impl Model for Scripted {
    type Checker = Reader;
    type Error = Failure;

    fn start(&mut self, start: Start<'_, String>) -> Result<(), Refusal> {
        let Start { id, prepared, seed, resume, .. } = start;
        self.told.send(format!("start {id} {prepared} seed {seed} resume {resume:?}")).unwrap();
        if prepared == "late" {
            return Err(Refusal::new(Code::Internal, "the model does not want it"));
        }
        self.running.push(id);
        Ok(())
    }

    fn pin(&mut self, beginnings: Vec<(CacheKey, Vec<u32>)>) {
        self.told.send(format!("pin {beginnings:?}")).unwrap();
    }

    fn interrupter(&self) -> Interrupter {
        let told = self.told.clone();
        // The test may have ended; then nobody listens.
        Box::new(move |id| drop(told.send(format!("interrupt {id}"))))
    }

    fn cancel(&mut self, id: PromptId) {
        self.told.send(format!("cancel {id}")).unwrap();
        self.running.retain(|other| *other != id);
    }

    fn is_idle(&self) -> bool {
        self.running.is_empty()
    }

    fn step(&mut self, emit: &mut dyn FnMut(PromptId, Event)) -> Result<(), Failure> {
        match self.steps.recv() {
            Ok(Step::Emit(id, event)) => {
                if event.is_final() {
                    self.running.retain(|other| *other != id);
                }
                emit(id, event);
                Ok(())
            }
            Ok(Step::Panic) => panic!("a fault in the model"),
            // The test is over.
            Ok(Step::Fail) | Err(_) => Err(Failure),
        }
    }
}

/// The service's end of the socket, the model's strings, and the engine in a thread.
struct Bench {
    socket: UnixStream,
    steps: SyncSender<Step>,
    told: Receiver<String>,
    engine: JoinHandle<Farewell>,
}

impl Bench {
    /// An engine that has been told nothing yet. `refuse`: loading fails in its second stage.
    fn new(refuse: bool) -> Bench {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        let (steps, stepped) = sync_channel(64);
        let (tell, told) = sync_channel(64);
        let loader = move |_: &LoadRequest, progress: &mut dyn FnMut(LoadStage)| {
            progress(LoadStage::Runtime);
            progress(LoadStage::Folder);
            if refuse {
                return Err(Refusal::new(Code::ModelFailed, "model.onnx is missing"));
            }
            let scripted = Scripted { running: Vec::new(), steps: stepped, told: tell };
            Ok(Loaded { info: model(2), checker: Reader, model: scripted })
        };
        let body = move || process::run(&theirs, |_| {}, loader, Instant::now).unwrap();
        let engine = std::thread::Builder::new().name("engine".to_owned()).spawn(body).unwrap();
        Bench { socket: ours, steps, told, engine }
    }

    /// An engine whose model is loaded.
    fn ready() -> Bench {
        let mut bench = Bench::new(false);
        bench.order(&ToEngine::Load(load()));
        assert_eq!(bench.frame(), FromEngine::Loading(LoadStage::Runtime));
        assert_eq!(bench.frame(), FromEngine::Loading(LoadStage::Folder));
        assert_eq!(bench.frame(), FromEngine::Ready(model(2)));
        bench
    }

    fn order(&mut self, order: &ToEngine) {
        self.socket.write_all(&frames::encode(order).unwrap()).unwrap();
    }

    fn check(&mut self, check: u64, text: &str) {
        self.order(&ToEngine::Check { check, request: request(text) });
    }

    fn start(&mut self, id: u64, text: &str, resume: &[u32]) {
        self.start_checked(id, None, text, resume);
    }

    fn start_checked(&mut self, id: u64, check: Option<u64>, text: &str, resume: &[u32]) {
        let (id, request) = (PromptId(id), request(text));
        let (resume, reuse) = (resume.to_vec(), Reuse::default());
        self.order(&ToEngine::Start { id, check, request, seed: 7, resume, reuse });
    }

    fn step(&self, id: u64, event: Event) {
        self.steps.send(Step::Emit(PromptId(id), event)).unwrap();
    }

    /// The next frame that is no heartbeat.
    fn frame(&mut self) -> FromEngine {
        loop {
            let frame = self.any_frame().expect("a frame comes");
            if frame != FromEngine::Heartbeat {
                return frame;
            }
        }
    }

    fn any_frame(&mut self) -> Option<FromEngine> {
        let mut prefix = [0; 4];
        self.socket.read_exact(&mut prefix).ok()?;
        let mut body = vec![0; frames::body_length(prefix).unwrap()];
        self.socket.read_exact(&mut body).unwrap();
        Some(frames::decode(&body).unwrap())
    }

    fn told(&self) -> String {
        self.told.recv_timeout(PATIENCE).expect("the model is told something")
    }

    /// Closes the service's end and sees the engine out.
    fn end(self) -> Farewell {
        let Bench { socket, steps, told, engine } = self;
        drop((socket, steps));
        let farewell = engine.join().unwrap();
        drop(told);
        farewell
    }
}

fn event(id: u64, event: Event) -> FromEngine {
    FromEngine::Event { id: PromptId(id), event }
}

#[test]
fn a_prompt_is_checked_and_answered() {
    let mut bench = Bench::ready();
    bench.check(5, "once");
    let checked = CheckedPrompt { prompt_tokens: 1, max_tokens: 9, calls: None };
    assert_eq!(bench.frame(), FromEngine::Checked { check: 5, result: Ok(checked) });
    bench.start(1, "once", &[3, 4]);
    assert_eq!(bench.told(), "start p1 once seed 7 resume [3, 4]");
    for step in [Event::Prefill { done: 1, total: 1 }, delta(9), finished(1)] {
        bench.step(1, step.clone());
        assert_eq!(bench.frame(), event(1, step));
    }
    let farewell = bench.end();
    assert_eq!((farewell.ended, farewell.busy), (Ended::Unwanted, false));
}

#[test]
fn a_checked_prompt_is_not_prepared_again() {
    let mut bench = Bench::ready();
    bench.check(5, "once");
    assert!(matches!(bench.frame(), FromEngine::Checked { check: 5, result: Ok(_) }));
    // The text of the start would show that it was looked at again.
    bench.start_checked(1, Some(5), "twice", &[]);
    assert_eq!(bench.told(), "start p1 once seed 7 resume []");
    // Each check serves one start, and a check that nobody made serves none.
    bench.start_checked(2, Some(5), "twice", &[]);
    bench.step(1, finished(1));
    assert_eq!(bench.told(), "start p2 twice seed 7 resume []");
    assert_eq!(bench.frame(), event(1, finished(1)));
    bench.start_checked(3, Some(6), "bad", &[]);
    assert_eq!(bench.frame(), event(3, Event::Failed(Refusal::bad_request("a bad prompt"))));
}

#[test]
fn a_start_that_comes_with_its_check_follows_the_answer() {
    // Short ones are checked where they are read, long ones by the checker.
    for filler in ["", &"x".repeat(5000)] {
        let mut bench = Bench::ready();
        let good = format!("good{filler}");
        bench.check(5, &good);
        bench.start_checked(1, Some(5), "not looked at", &[]);
        bench.step(1, delta(1));
        assert!(matches!(bench.frame(), FromEngine::Checked { check: 5, result: Ok(_) }));
        assert_eq!(bench.told(), format!("start p1 {good} seed 7 resume []"));
        assert_eq!(bench.frame(), event(1, delta(1)));
        bench.step(1, finished(1));
        assert_eq!(bench.frame(), event(1, finished(1)));
        // What is refused is not started.
        let mut bad = request("bad");
        bad.stop = vec![filler.to_owned()];
        bench.order(&ToEngine::Check { check: 6, request: bad });
        bench.start_checked(2, Some(6), "not looked at", &[]);
        assert!(matches!(bench.frame(), FromEngine::Checked { check: 6, result: Err(_) }));
        bench.start(3, "next", &[]);
        assert_eq!(bench.told(), "start p3 next seed 7 resume []");
    }
}

#[test]
fn checks_are_answered_while_the_model_computes() {
    let mut bench = Bench::ready();
    bench.start(1, "long", &[]);
    assert_eq!(bench.told(), "start p1 long seed 7 resume []");
    // The model is inside a step and does not come out of it.
    for check in 0..200 {
        bench.check(check, if check % 2 == 0 { "good" } else { "bad" });
    }
    for check in 0..200 {
        let FromEngine::Checked { check: answered, result } = bench.frame() else {
            panic!("no answer")
        };
        assert_eq!((answered, result.is_ok()), (check, check % 2 == 0));
    }
    bench.step(1, finished(1));
    assert_eq!(bench.frame(), event(1, finished(1)));
}

#[test]
fn a_start_that_cannot_be_prepared_or_is_not_wanted_fails_alone() {
    let mut bench = Bench::ready();
    bench.start(1, "bad", &[]);
    assert_eq!(bench.frame(), event(1, Event::Failed(Refusal::bad_request("a bad prompt"))));
    bench.start(2, "late", &[]);
    let refusal = Refusal::new(Code::Internal, "the model does not want it");
    assert_eq!(bench.frame(), event(2, Event::Failed(refusal)));
    assert_eq!(bench.told(), "start p2 late seed 7 resume []");
}

#[test]
fn a_panic_over_one_prompt_is_that_prompts_end() {
    let mut bench = Bench::ready();
    bench.check(1, "panic");
    let FromEngine::Checked { result: Err(refusal), .. } = bench.frame() else {
        panic!("not refused")
    };
    assert_eq!(refusal.code, Code::Internal);
    assert!(refusal.message.contains("a fault in the checker"), "{refusal}");
    bench.check(2, "good");
    assert!(matches!(bench.frame(), FromEngine::Checked { check: 2, result: Ok(_) }));
}

#[test]
fn beginnings_are_prepared_and_pinned_also_where_nothing_runs() {
    let mut bench = Bench::ready();
    let pinned =
        |key, system: &str| Pinned { key: CacheKey(key), system: system.into(), goes_on: false };
    bench.order(&ToEngine::Pin(vec![pinned(1, "AB"), pinned(2, "panic")]));
    assert_eq!(bench.told(), "pin [(CacheKey(1), [65, 66]), (CacheKey(2), [])]");
    bench.check(1, "good");
    assert!(matches!(bench.frame(), FromEngine::Checked { check: 1, result: Ok(_) }));
}

#[test]
fn a_cancel_stops_a_running_prompt_and_no_other() {
    let mut bench = Bench::ready();
    bench.start(1, "one", &[]);
    bench.told();
    bench.start(2, "two", &[]);
    bench.step(1, delta(1));
    assert_eq!(bench.frame(), event(1, delta(1)));
    bench.order(&ToEngine::Cancel { id: PromptId(1) });
    bench.order(&ToEngine::Cancel { id: PromptId(99) });
    // Orders are taken between steps. The reader takes these in its own time, so steps go on until the model knows.
    let mut told = Vec::new();
    let mut token = 10;
    while told.len() < 5 {
        bench.step(2, delta(token));
        while let Ok(words) = bench.told.recv_timeout(Duration::from_millis(20)) {
            told.push(words);
        }
        token += 1;
        assert!(token < 1000, "{told:?}");
    }
    // A cancel overtakes the preparing of another prompt.
    told.sort_unstable();
    let expected = [
        "cancel p1",
        "cancel p99",
        "interrupt p1",
        "interrupt p99",
        "start p2 two seed 7 resume []",
    ];
    assert_eq!(told, expected);
    bench.step(2, finished(1));
    loop {
        match bench.frame() {
            FromEngine::Event { id: PromptId(2), event: Event::Finished(_) } => break,
            FromEngine::Event { id: PromptId(2), .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_silent_service_gets_merged_events_and_all_of_the_text() {
    let mut bench = Bench::ready();
    bench.start(1, "long", &[]);
    bench.told();
    // Far more than a socket holds: one frame a token would be some megabytes.
    let count = 200_000;
    for token in 0..count {
        bench.step(
            1,
            Event::Delta { text: "some text ".repeat(4), tokens: vec![token], logprobs: vec![] },
        );
    }
    bench.step(1, finished(count));
    let (mut frames, mut bytes, mut tokens) = (0, 0, Vec::new());
    loop {
        match bench.frame() {
            FromEngine::Event { event: Event::Delta { text, tokens: more, .. }, .. } => {
                frames += 1;
                bytes += text.len();
                tokens.extend(more);
            }
            FromEngine::Event { event: Event::Finished(_), .. } => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(tokens, (0..count).collect::<Vec<_>>());
    assert_eq!(bytes, 40 * tokens.len());
    assert!(frames < tokens.len() / 2, "{frames} frames for {} tokens", tokens.len());
}

#[test]
fn the_heart_beats_while_prompts_run_and_not_faster_than_ten_times_a_second() {
    let mut bench = Bench::ready();
    bench.start(1, "long", &[]);
    bench.told();
    let begun = Instant::now();
    let mut beats = 0;
    let mut token = 0;
    while beats < 3 {
        bench.step(1, delta(token));
        token += 1;
        while bench.any_frame().expect("a frame comes") == FromEngine::Heartbeat {
            beats += 1;
        }
    }
    // The first comes a tenth of a second after the model was ready, which was before `begun`.
    assert!(begun.elapsed() >= Duration::from_millis(200), "{:?}", begun.elapsed());
}

#[test]
fn an_engine_of_another_version_says_so_and_ends() {
    let mut bench = Bench::new(false);
    bench.order(&ToEngine::Load(LoadRequest { version: VERSION + 1, ..load() }));
    let FromEngine::LoadFailed(refusal) = bench.frame() else { panic!("not refused") };
    assert_eq!(refusal.code, Code::ModelFailed);
    assert!(refusal.message.contains("restart promptd"), "{refusal}");
    assert_eq!(bench.any_frame(), None);
    assert_eq!(bench.end().ended, Ended::LoadFailed);
}

#[test]
fn a_model_that_cannot_be_loaded_is_said_before_the_end() {
    let mut bench = Bench::new(true);
    bench.order(&ToEngine::Load(load()));
    assert_eq!(bench.frame(), FromEngine::Loading(LoadStage::Runtime));
    assert_eq!(bench.frame(), FromEngine::Loading(LoadStage::Folder));
    let refusal = Refusal::new(Code::ModelFailed, "model.onnx is missing");
    assert_eq!(bench.frame(), FromEngine::LoadFailed(refusal));
    assert_eq!(bench.any_frame(), None);
    let farewell = bench.end();
    assert_eq!((farewell.ended, farewell.busy), (Ended::LoadFailed, false));
}

#[test]
fn a_service_that_goes_takes_the_engine_with_it() {
    // Before it said anything; in the middle of a frame; with a model that never comes out of its step.
    assert_eq!(Bench::new(false).end().ended, Ended::Unwanted);
    let mut bench = Bench::ready();
    bench.socket.write_all(&[9, 0, 0, 0, 1]).unwrap();
    assert_eq!(bench.end().ended, Ended::Unwanted);
    let mut bench = Bench::ready();
    bench.start(1, "long", &[]);
    bench.told();
    let Bench { socket, steps, told: _told, engine } = bench;
    drop(socket);
    let farewell = engine.join().unwrap();
    assert_eq!((farewell.ended, farewell.busy), (Ended::Unwanted, true));
    drop(steps);
}

#[test]
fn what_is_no_order_ends_the_engine() {
    for (bytes, word) in [
        (vec![255, 255, 255, 255], "over the limit"),
        (vec![1, 0, 0, 0, 200], "cannot be decoded"),
        (
            frames::encode(&ToEngine::Cancel { id: PromptId(1) }).unwrap(),
            "before it said what to load",
        ),
    ] {
        let mut bench = Bench::new(false);
        bench.socket.write_all(&bytes).unwrap();
        let Ended::Broken(why) = bench.end().ended else { panic!("{bytes:?}") };
        assert!(why.contains(word), "{why}");
    }
}

#[test]
fn a_model_that_fails_or_panics_ends_the_engine() {
    for (step, word) in
        [(Step::Fail, "the scripted model fails"), (Step::Panic, "a fault in the model")]
    {
        let mut bench = Bench::ready();
        bench.start(1, "long", &[]);
        bench.told();
        bench.steps.send(step).unwrap();
        assert_eq!(bench.any_frame(), None, "the service sees the end at once");
        let Ended::Broken(why) = bench.end().ended else { panic!("not broken") };
        assert!(why.contains(word), "{why}");
    }
}
