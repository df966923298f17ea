//! Tests of the core, rule by rule. All rules together on random histories: `ledger_tests.rs`.

use std::path::PathBuf;

use super::*;
use crate::engine::client::EngineEvent;
use crate::engine::frames::{FromEngine, Placement};
use crate::engine::{Death, DeathReport, Phase as EnginePhase};
use crate::request::{Again, Finish};
use crate::request::{
    Constraint, ContextOverflow, Door, FinishReason, Input, Origin, Sampling, Timings, Usage,
};

pub(super) const SECOND: Duration = Duration::from_secs(1);

pub(super) fn submission(who: &str) -> Submission {
    let input = Input::Completion(who.to_owned());
    Submission {
        request: Request {
            input,
            sampling: Sampling::default(),
            max_tokens: None,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            context_overflow: ContextOverflow::default(),
            constraint: Constraint::None,
            logprobs: None,
            tools: None,
        },
        identity: Identity(who.to_owned()),
        priority: Priority::Normal,
        timeout: None,
        quota: Quota::default(),
        session: None,
        profile: None,
        recorded: None,
        again: None,
        origin: Origin::new(Door::Lines),
    }
}

pub(super) fn model(slots: u16) -> ModelInfo {
    ModelInfo {
        name: "m".to_owned(),
        architecture: "llama".to_owned(),
        context: 100,
        slots,
        vocab_size: 10,
        chat: false,
        text: true,
        embedding: None,
        threads: 1,
        runtime_version: "1".to_owned(),
        placement: Box::new(Placement { provider: "CPU".to_owned(), ..Placement::default() }),
        load_ms: 3000,
    }
}

pub(super) fn started(pid: u32) -> EngineEvent {
    EngineEvent::Started { pid, to: tokio::sync::mpsc::channel(1).0 }
}

pub(super) fn died(restart_in: Option<Duration>) -> EngineEvent {
    let (library, model) = (PathBuf::from("/lib/ort.so"), PathBuf::from("/m"));
    let report = DeathReport { how: Death::Killed(11), phase: EnginePhase::Ready, library, model };
    EngineEvent::Died { report, restart_in }
}

pub(super) fn delta(token: u32) -> Event {
    Event::Delta { text: format!("<{token}>"), tokens: vec![token], logprobs: vec![] }
}

pub(super) fn finish(prefill: Duration, decode: Duration, completion: u32) -> Event {
    let timings = Timings { queue: Duration::ZERO, prefill, decode };
    let usage = Usage { prompt: 10, cached: 4, completion, forgotten: 0 };
    Event::Finished(Finish { reason: FinishReason::Stop, usage, timings, seed: 0 })
}

/// A core, a clock that only the test moves, and what the core did since the test last looked.
pub(super) struct Bench {
    pub(super) core: Core,
    pub(super) now: Instant,
}

impl Bench {
    pub(super) fn new(queue_limit: usize) -> Self {
        let mut seed = 1000;
        let draw = move || {
            seed += 1;
            seed
        };
        let sessions = Sessions::new(Box::new(crate::session::InMemory), Instant::now());
        Bench {
            core: Core::new(
                Config { queue_limit, ..Config::default() },
                (sessions, Quotas::default()),
                Box::new(draw),
            ),
            now: Instant::now(),
        }
    }

    pub(super) fn ready(queue_limit: usize, slots: u16) -> Self {
        let mut bench = Bench::new(queue_limit);
        bench.engine(started(1));
        bench.frame(FromEngine::Ready(model(slots)));
        bench
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now += time;
        self.core.tick(self.now);
    }

    pub(super) fn engine(&mut self, event: EngineEvent) {
        self.core.engine(event, self.now);
    }

    pub(super) fn frame(&mut self, frame: FromEngine) {
        self.engine(EngineEvent::Frame(frame));
    }

    pub(super) fn event(&mut self, id: PromptId, event: Event) {
        self.frame(FromEngine::Event { id, event });
    }

    pub(super) fn check(&mut self, check: u64) {
        self.frame(FromEngine::Checked {
            check,
            result: Ok(CheckedPrompt { prompt_tokens: 10, max_tokens: 90, calls: None }),
        });
    }

    /// Hands in and checks; returns the prompt's number.
    pub(super) fn accept(&mut self, submission: Submission) -> PromptId {
        let check = self.core.submit(submission, self.now);
        self.check(check);
        let id = self.core.prompts.keys().max().copied();
        id.expect("the prompt is accepted")
    }

    pub(super) fn refused(&mut self, submission: Submission) -> Refusal {
        self.core.take_actions();
        self.core.submit(submission, self.now);
        match self.core.take_actions().pop() {
            Some(Action::Refuse { refusal, .. }) => refusal,
            other => panic!("not refused: {other:?}"),
        }
    }

    /// What was done since the last look, in short words.
    pub(super) fn did(&mut self) -> Vec<String> {
        let say = |action: Action| match action {
            Action::Send(ToEngine::Check { check, .. }) => format!("check {check}"),
            Action::Send(ToEngine::Pin(pinned)) => format!("pin {}", pinned.len()),
            Action::Send(ToEngine::Start { id, seed, resume, .. }) => {
                format!("start {id} seed {seed} resume {resume:?}")
            }
            Action::Send(ToEngine::Cancel { id }) => format!("cancel {id}"),
            Action::Send(ToEngine::Load(_)) => "load".to_owned(),
            Action::Engine(order) => format!("{order:?}"),
            Action::Accept { id, .. } => format!("accept {id}"),
            Action::Refuse { check, refusal } => {
                format!("refuse {check} {}", refusal.code.as_str())
            }
            Action::Deliver { id, event } => match event {
                Event::Queued { position, .. } => format!("{id} queued {position}"),
                Event::Started { deaths } => format!("{id} started {deaths}"),
                Event::Prefill { done, total } => format!("{id} prefill {done}/{total}"),
                Event::Vector { index, .. } => format!("{id} vector {index}"),
                Event::Delta { text, .. } => format!("{id} {text}"),
                Event::Finished(_) => format!("{id} finished"),
                Event::Failed(refusal) => format!("{id} {}", refusal.code.as_str()),
            },
        };
        self.core.take_actions().into_iter().filter(|a| !is_told(a)).map(say).collect()
    }
}

/// Places have a test of their own, and a start is told in the same breath as it is sent.
fn is_told(action: &Action) -> bool {
    let Action::Deliver { event, .. } = action else { return false };
    matches!(event, Event::Queued { .. } | Event::Started { .. })
}

#[test]
fn a_prompt_is_checked_accepted_started_and_ends() {
    let mut bench = Bench::ready(4, 1);
    let id = bench.accept(submission("a"));
    bench.event(id, Event::Prefill { done: 10, total: 10 });
    bench.event(id, delta(5));
    bench.event(id, finish(SECOND, SECOND, 1));
    let expected = [
        "check 0",
        "start p0 seed 1001 resume []",
        "accept p0",
        "p0 prefill 10/10",
        "p0 <5>",
        "p0 finished",
    ];
    assert_eq!(bench.did(), expected);
    assert!(bench.core.is_idle());
    let counters = bench.core.status().counters;
    assert_eq!(
        (counters.accepted, counters.finished, counters.prompt_tokens, counters.cached_tokens),
        (1, 1, 10, 4)
    );
}

#[test]
fn a_given_seed_is_kept() {
    let mut bench = Bench::ready(4, 1);
    let mut given = submission("a");
    given.request.sampling.seed = Some(7);
    bench.accept(given);
    assert_eq!(bench.did(), ["check 0", "start p0 seed 7 resume []", "accept p0"]);
}

#[test]
fn what_the_engine_does_not_like_is_refused_with_its_words() {
    let mut bench = Bench::ready(4, 1);
    let check = bench.core.submit(submission("a"), bench.now);
    bench.core.take_actions();
    let refusal = Refusal::new(Code::ContextLengthExceeded, "too long").with_limit(100, 200);
    bench.frame(FromEngine::Checked { check, result: Err(refusal.clone()) });
    let took_back = Action::Send(ToEngine::Cancel { id: PromptId(0) });
    assert_eq!(bench.core.take_actions(), [took_back, Action::Refuse { check, refusal }]);
    assert_eq!(bench.core.status().counters.refused["context_length_exceeded"], 1);
}

#[test]
fn nothing_is_taken_before_the_model_is_ready() {
    let mut bench = Bench::new(4);
    assert_eq!(bench.refused(submission("a")).code, Code::ModelLoading);
    bench.engine(started(1));
    bench.frame(FromEngine::Loading(LoadStage::Weights));
    let refusal = bench.refused(submission("a"));
    assert_eq!(refusal.code, Code::ModelLoading);
    assert!(refusal.message.contains("loading the weights"), "{refusal}");
    assert!(refusal.retry_after.is_some());
    assert_eq!(bench.core.status().state, State::Loading(LoadStage::Weights));
}

#[test]
fn the_queue_has_a_limit_and_a_free_slot_is_no_waiting() {
    for (limit, slots, taken) in [(0, 1, 1), (2, 1, 3), (2, 3, 5)] {
        let mut bench = Bench::ready(limit, slots);
        // Half of them still being checked: those count as well.
        for n in 0..taken {
            let check = bench.core.submit(submission(&n.to_string()), bench.now);
            if n % 2 == 0 {
                bench.check(check);
            }
        }
        let refusal = bench.refused(submission("b"));
        assert_eq!(refusal.code, Code::Busy, "limit {limit}, {slots} slots");
        assert!(refusal.retry_after.is_some());
    }
}

#[test]
fn retry_after_follows_the_measured_time() {
    let mut bench = Bench::ready(0, 1);
    for _ in 0..20 {
        let id = bench.accept(submission("a"));
        bench.event(id, finish(4 * SECOND, 16 * SECOND, 5));
    }
    bench.accept(submission("a"));
    let after = bench.refused(submission("a")).retry_after.unwrap();
    assert!(after > 19 * SECOND && after < 21 * SECOND, "{after:?}");
}

#[test]
fn a_flood_delays_another_by_what_runs_already() {
    let mut bench = Bench::ready(64, 1);
    let flood: Vec<PromptId> = (0..10).map(|_| bench.accept(submission("flood"))).collect();
    let other = bench.accept(submission("other"));
    let urgent = bench.accept(Submission { priority: Priority::High, ..submission("flood") });
    bench.core.take_actions();
    for id in [flood[0], urgent, other] {
        bench.event(id, finish(SECOND, SECOND, 1));
    }
    let starts: Vec<String> =
        bench.did().into_iter().filter(|did| did.starts_with("start")).collect();
    let order: Vec<&str> = starts.iter().map(|start| start.split(' ').nth(1).unwrap()).collect();
    assert_eq!(order, [urgent.to_string(), other.to_string(), flood[1].to_string()]);
}

#[test]
fn a_deadline_ends_what_is_checked_waits_or_runs() {
    let mut bench = Bench::ready(4, 1);
    let hasty = || Submission { timeout: Some(SECOND), ..submission("a") };
    let running = bench.accept(hasty());
    let waiting = bench.accept(hasty());
    let check = bench.core.submit(hasty(), bench.now);
    bench.core.take_actions();
    bench.pass(SECOND / 2);
    assert_eq!(bench.did(), [""; 0]);
    assert_eq!(bench.core.next_deadline(), Some(bench.now + SECOND / 2));
    bench.pass(SECOND / 2);
    let expected = [
        format!("refuse {check} timeout"),
        format!("cancel {running}"),
        format!("{running} timeout"),
        format!("{waiting} timeout"),
    ];
    assert_eq!(bench.did(), expected);
    assert!(bench.core.is_idle());
    // Late answers are nobody's.
    bench.check(check);
    bench.event(running, delta(1));
    assert_eq!(bench.did(), [""; 0]);
}

#[test]
fn a_check_that_is_never_answered_ends() {
    let mut bench = Bench::ready(4, 1);
    bench.core.submit(submission("a"), bench.now);
    bench.core.take_actions();
    bench.pass(CHECK_LIMIT);
    assert_eq!(bench.did(), ["cancel p0", "refuse 0 busy"]);
}

#[test]
fn a_hopeless_deadline_is_refused_once_enough_is_measured() {
    let mut bench = Bench::ready(64, 1);
    let hasty = || Submission { timeout: Some(5 * SECOND), ..submission("hasty") };
    let ten_seconds = || finish(2 * SECOND, 8 * SECOND, 5);
    let running = bench.accept(submission("a"));
    // Not yet measured: everybody gets a chance.
    let hopeful = bench.accept(hasty());
    bench.core.cancel(hopeful, bench.now);
    bench.event(running, ten_seconds());
    for _ in 0..10 {
        let id = bench.accept(submission("a"));
        bench.event(id, ten_seconds());
    }
    // An idle engine begins to answer in 4 s: 10 tokens at 2 s for 6.
    let fits = bench.accept(hasty());
    bench.event(fits, ten_seconds());
    let first = bench.accept(submission("a"));
    bench.core.take_actions();
    let check = bench.core.submit(hasty(), bench.now);
    bench.check(check);
    assert_eq!(
        bench.did(),
        [format!("check {check}"), format!("refuse {check} would_miss_deadline")]
    );
    // With more time it is taken.
    bench.accept(Submission { timeout: Some(20 * SECOND), ..submission("patient") });
    bench.event(first, ten_seconds());
}

#[test]
fn cancel_ends_what_waits_and_what_runs_and_frees_the_slot() {
    let mut bench = Bench::ready(4, 1);
    let (first, second, third) = (
        bench.accept(submission("a")),
        bench.accept(submission("a")),
        bench.accept(submission("a")),
    );
    bench.core.take_actions();
    bench.core.cancel(second, bench.now);
    bench.core.cancel(first, bench.now);
    bench.core.cancel(PromptId(99), bench.now);
    let expected = [
        format!("{second} cancelled"),
        format!("cancel {first}"),
        format!("{first} cancelled"),
        format!("start {third} seed 1003 resume []"),
    ];
    assert_eq!(bench.did(), expected);
    bench.event(first, delta(1));
    bench.event(first, finish(SECOND, SECOND, 1));
    assert_eq!(bench.did(), [""; 0]);
    bench.core.cancel_all(bench.now);
    assert_eq!(bench.did(), [format!("cancel {third}"), format!("{third} cancelled")]);
    assert!(bench.core.is_idle());
}

#[test]
fn draining_lets_the_accepted_end_and_takes_no_more() {
    let mut bench = Bench::ready(4, 1);
    let (running, waiting) = (bench.accept(submission("a")), bench.accept(submission("a")));
    let check = bench.core.submit(submission("a"), bench.now);
    bench.core.take_actions();
    bench.core.drain();
    assert_eq!(bench.did(), [format!("refuse {check} busy")]);
    assert_eq!(bench.refused(submission("b")).code, Code::Busy);
    assert_eq!(bench.core.status().state, State::Draining);
    bench.event(running, finish(SECOND, SECOND, 1));
    assert_eq!(
        bench.did(),
        [format!("{running} finished"), format!("start {waiting} seed 1002 resume []")]
    );
    bench.event(waiting, finish(SECOND, SECOND, 1));
    assert!(bench.core.is_idle());
}

#[test]
fn after_a_death_the_answer_goes_on_where_it_was() {
    let mut bench = Bench::ready(4, 2);
    let (first, second, third) = (
        bench.accept(submission("a")),
        bench.accept(submission("b")),
        bench.accept(submission("c")),
    );
    let urgent = bench.accept(Submission { priority: Priority::High, ..submission("d") });
    bench.event(first, delta(5));
    bench.event(first, delta(6));
    bench.core.take_actions();
    bench.pass(SECOND);
    bench.engine(died(Some(SECOND / 10)));
    assert_eq!(bench.did(), [""; 0], "the askers see nothing");
    let status = bench.core.status();
    assert_eq!((status.running, status.waiting, status.engine_pid), (0, 4, None));
    let refusal = bench.refused(submission("e"));
    assert_eq!(refusal.code, Code::ModelLoading);
    // A tenth of a second until the start, then as long as the last load.
    assert_eq!(refusal.retry_after, Some(Duration::from_millis(3100)));
    bench.engine(started(2));
    bench.pass(SECOND);
    bench.frame(FromEngine::Ready(model(2)));
    // One of the two may have killed it: each runs alone now.
    assert_eq!(bench.did(), [format!("start {first} seed 1001 resume [5, 6]")]);
    // It is read again, which its asker need not know; then it goes on.
    bench.event(first, Event::Prefill { done: 12, total: 12 });
    bench.event(first, delta(7));
    assert_eq!(bench.did(), [format!("{first} <7>")]);
    bench.pass(SECOND);
    bench.event(first, finish(SECOND, SECOND, 3));
    let mut actions = bench.core.take_actions();
    actions.retain(|action| !is_told(action));
    let Some(Action::Deliver { event: Event::Finished(whole), .. }) = actions.first() else {
        panic!("{actions:?}")
    };
    // One second of decoding by the dead engine; one second of waiting for the next.
    assert_eq!(whole.timings, Timings { queue: SECOND, prefill: SECOND, decode: 2 * SECOND });
    assert_eq!(whole.seed, 1001);
    assert_eq!(bench.core.status().counters.engine_restarts, 1);
    assert!(matches!(&actions[1], Action::Send(ToEngine::Start { id, .. }) if *id == second));
    // Those who had not run wait as before, and run side by side.
    bench.event(second, finish(SECOND, SECOND, 3));
    let starts = [
        format!("{second} finished"),
        format!("start {urgent} seed 1004 resume []"),
        format!("start {third} seed 1003 resume []"),
    ];
    assert_eq!(bench.did(), starts);
}

#[test]
fn of_those_who_ran_together_only_the_guilty_one_fails() {
    let mut bench = Bench::ready(8, 4);
    let ids: Vec<PromptId> =
        ["a", "b", "poison", "d", "e"].map(|who| bench.accept(submission(who))).into();
    let poison = ids[2];
    let mut running: Vec<PromptId> = ids[..4].to_vec();
    let mut ended = Vec::new();
    for turn in 0..20 {
        bench.core.take_actions();
        if running.contains(&poison) {
            bench.engine(died(Some(SECOND)));
            bench.engine(started(turn));
            bench.frame(FromEngine::Ready(model(4)));
        } else if let Some(id) = running.first() {
            bench.event(*id, finish(SECOND, SECOND, 1));
        }
        for did in bench.did() {
            if let Some((id, how)) = did.split_once(' ').filter(|(id, _)| id.starts_with('p')) {
                ended.push(format!("{id} {how}"));
            }
        }
        running.clone_from(&bench.core.running);
    }
    let expected = ["p0 finished", "p1 finished", "p2 model_failed", "p3 finished", "p4 finished"];
    assert_eq!(ended, expected);
}

#[test]
fn a_prompt_that_sees_two_engines_die_is_not_run_again() {
    let mut bench = Bench::ready(4, 1);
    let (poison, innocent) = (bench.accept(submission("a")), bench.accept(submission("b")));
    for pid in [2, 3] {
        bench.engine(died(Some(SECOND)));
        bench.core.take_actions();
        bench.engine(started(pid));
        if pid == 2 {
            bench.frame(FromEngine::Ready(model(1)));
            assert_eq!(bench.did(), [format!("start {poison} seed 1001 resume []")]);
        }
    }
    bench.frame(FromEngine::Ready(model(1)));
    assert_eq!(bench.did(), [format!("start {innocent} seed 1002 resume []")]);
    assert_eq!(bench.core.status().counters.refused["model_failed"], 1);
    assert!(!bench.core.prompts.contains_key(&poison));
}

#[test]
fn ends_of_services_make_a_prompt_run_alone_and_only_many_end_it() {
    let again =
        |deaths, ends| Submission { again: Some(Again { deaths, ends }), ..submission("a") };
    let mut bench = Bench::ready(9, 3);
    assert_eq!(bench.refused(again(0, 5)).code, Code::ModelFailed);
    assert_eq!(bench.refused(again(2, 0)).code, Code::ModelFailed);
    let once = bench.accept(again(0, 1));
    let fresh = bench.accept(submission("b"));
    assert_eq!(bench.core.running, [once, fresh], "one end is everybody's");
    let often = bench.accept(again(0, 4));
    bench.event(once, finish(SECOND, SECOND, 1));
    assert_eq!(bench.core.running, [fresh], "it waits until it can run alone");
    let later = bench.accept(submission("b"));
    bench.event(fresh, finish(SECOND, SECOND, 1));
    assert_eq!(bench.core.running, [often]);
    bench.core.take_actions();
    bench.engine(died(Some(SECOND)));
    bench.engine(started(2));
    bench.frame(FromEngine::Ready(model(3)));
    assert_eq!(bench.core.running, [often], "one death of an engine is not two");
    let told: Vec<Action> = bench.core.take_actions();
    assert!(told.contains(&Action::Deliver { id: often, event: Event::Started { deaths: 1 } }));
    bench.event(often, finish(SECOND, SECOND, 1));
    assert_eq!(bench.core.running, [later]);
}

#[test]
fn deaths_while_loading_count_for_no_prompt_until_the_model_is_given_up() {
    let mut bench = Bench::ready(4, 1);
    let id = bench.accept(submission("a"));
    bench.engine(died(Some(SECOND)));
    for pid in 2..=3 {
        bench.engine(started(pid));
        bench.engine(died(Some(SECOND)));
    }
    bench.core.take_actions();
    bench.engine(started(4));
    assert_eq!(bench.core.status().state, State::Loading(LoadStage::Runtime));
    bench.engine(died(Some(30 * SECOND)));
    assert_eq!(bench.did(), [format!("{id} model_failed")]);
    let State::ModelFailed(refusal) = bench.core.status().state else {
        panic!("{:?}", bench.core.status().state)
    };
    assert!(refusal.message.contains("SIGSEGV"), "{refusal}");
    let refusal = bench.refused(submission("b"));
    assert_eq!(refusal.code, Code::ModelFailed);
    assert!(refusal.retry_after.unwrap() >= 30 * SECOND);
    // It is tried again all the same, and until it works the state stands.
    bench.engine(started(5));
    bench.frame(FromEngine::Loading(LoadStage::Weights));
    assert_eq!(bench.core.status().state.as_str(), "model_failed");
    bench.frame(FromEngine::Ready(model(1)));
    assert_eq!(bench.core.status().state, State::Ready);
}

#[test]
fn a_model_that_cannot_be_loaded_ends_those_who_wait_for_it() {
    let mut bench = Bench::ready(4, 1);
    let id = bench.accept(submission("a"));
    bench.engine(died(Some(SECOND)));
    bench.engine(started(2));
    bench.core.take_actions();
    bench.frame(FromEngine::LoadFailed(Refusal::new(Code::ModelFailed, "model.onnx is missing")));
    bench.engine(died(Some(30 * SECOND)));
    assert_eq!(bench.did(), [format!("{id} model_failed")]);
    assert!(bench.refused(submission("b")).message.contains("model.onnx is missing"));
}

#[test]
fn an_engine_that_nobody_restarts_ends_everything() {
    let mut bench = Bench::ready(4, 1);
    let id = bench.accept(submission("a"));
    bench.core.take_actions();
    bench.core.engine_gone(bench.now);
    assert_eq!(bench.did(), [format!("{id} model_failed")]);
    assert_eq!(bench.refused(submission("b")).code, Code::ModelFailed);
}
