//! Tests of loading on demand, unloading and replacing the model.

use super::tests::{Bench, SECOND, delta, died, finish, model, started, submission};
use super::*;
use crate::engine::client::EngineEvent;
use crate::engine::frames::{Execution, FromEngine};

fn keeping(seconds: u32) -> Bench {
    let mut bench = Bench::ready(4, 1);
    let config = Config { keep_loaded: Some(SECOND * seconds), ..bench.core.config.clone() };
    bench.core.configure(config, None, false, bench.now);
    bench.core.take_actions();
    bench
}

fn other_model() -> LoadRequest {
    let (model, library) = ("/other".into(), "/lib/ort.so".into());
    LoadRequest {
        version: 0,
        model,
        library,
        execution: Execution::default(),
        store: None,
        trusted: Vec::new(),
        slots: 1,
        context: 0,
        beside: None,
    }
}

/// The engine that is there ends, the next one starts and is ready.
fn next_engine(bench: &mut Bench, pid: u32) {
    bench.engine(EngineEvent::Ended);
    bench.engine(started(pid));
    bench.frame(FromEngine::Ready(model(1)));
}

#[test]
fn a_model_that_nobody_needs_is_unloaded_and_the_next_prompt_loads_it() {
    let mut bench = keeping(60);
    bench.pass(59 * SECOND);
    let id = bench.accept(submission("a"));
    bench.pass(300 * SECOND);
    assert_eq!(bench.core.status().state, State::Ready, "a long answer is work");
    bench.event(id, finish(SECOND, SECOND, 1));
    bench.did();
    assert_eq!(bench.core.next_deadline().map(|at| at <= bench.now + 60 * SECOND), Some(true));
    bench.pass(59 * SECOND);
    assert_eq!(bench.did(), [""; 0]);
    bench.pass(SECOND);
    assert_eq!(bench.did(), ["Unload"]);
    assert_eq!(bench.core.status().state, State::Unloaded);
    bench.engine(EngineEvent::Ended);
    assert_eq!((bench.core.status().engine_pid, bench.core.next_deadline()), (None, None));

    // Two come; the load is asked for once, and both wait for it however long it takes.
    let first = bench.core.submit(submission("a"), bench.now);
    let second = bench.core.submit(submission("b"), bench.now);
    assert_eq!(bench.did(), ["Load"]);
    assert!(matches!(bench.core.status().state, State::Loading(_)));
    bench.engine(started(2));
    bench.pass(CHECK_LIMIT * 3);
    assert_eq!(bench.did(), [""; 0]);
    bench.frame(FromEngine::Ready(model(1)));
    assert_eq!(bench.did(), [format!("check {first}"), format!("check {second}")]);
    bench.check(first);
    assert_eq!(bench.did(), ["accept p1", "start p1 seed 1002 resume []"]);
}

#[test]
fn what_waits_for_a_load_has_its_deadline() {
    let mut bench = keeping(60);
    bench.core.unload(bench.now).unwrap();
    bench.engine(EngineEvent::Ended);
    // The last load took three seconds.
    let hasty = |timeout| Submission { timeout: Some(timeout), ..submission("a") };
    let refusal = bench.refused(hasty(SECOND));
    assert_eq!((refusal.code, refusal.retry_after), (Code::WouldMissDeadline, Some(3 * SECOND)));
    assert_eq!(bench.core.status().state, State::Unloaded, "nothing is loaded for a refusal");
    let check = bench.core.submit(hasty(3 * SECOND), bench.now);
    bench.did();
    bench.pass(3 * SECOND);
    assert_eq!(bench.did(), [format!("refuse {check} timeout")]);
}

#[test]
fn a_load_on_demand_that_fails_says_so_to_all_who_wait() {
    let mut bench = keeping(60);
    bench.core.unload(bench.now).unwrap();
    bench.engine(EngineEvent::Ended);
    let check = bench.core.submit(submission("a"), bench.now);
    bench.engine(started(2));
    bench.core.take_actions();
    bench.engine(died(Some(SECOND)));
    bench.engine(started(3));
    assert_eq!(bench.did(), [""; 0], "one death is a pause");
    bench.frame(FromEngine::LoadFailed(Refusal::new(Code::ModelFailed, "no such file")));
    assert_eq!(bench.did(), [format!("refuse {check} model_failed")]);
    assert_eq!(bench.refused(submission("a")).message, "no such file");
}

#[test]
fn what_is_in_use_is_not_unloaded() {
    let mut bench = Bench::ready(4, 1);
    let id = bench.accept(submission("a"));
    let refusal = bench.core.unload(bench.now).unwrap_err();
    assert_eq!(refusal.code, Code::Busy);
    assert!(refusal.message.starts_with("1 prompts are in work"), "{refusal}");
    bench.event(id, finish(SECOND, SECOND, 1));
    bench.did();
    bench.core.unload(bench.now).unwrap();
    assert_eq!(bench.did(), ["Unload"]);
    bench.core.load(bench.now);
    bench.core.load(bench.now);
    assert_eq!(bench.did(), ["Load"], "once is enough");
}

#[test]
fn another_model_waits_for_the_answers_of_the_old_one() {
    let mut bench = Bench::ready(4, 1);
    let (running, waiting) = (bench.accept(submission("a")), bench.accept(submission("b")));
    let asked = bench.core.submit(submission("c"), bench.now);
    bench.did();
    let config = bench.core.config.clone();
    bench.core.configure(config, Some(Box::new(other_model())), true, bench.now);
    assert_eq!(bench.did(), [""; 0]);
    let held = bench.core.submit(submission("d"), bench.now);
    bench.event(running, finish(SECOND, SECOND, 1));
    let did = bench.did();
    assert_eq!(did[0], format!("{running} finished"));
    assert!(did.len() == 2 && did[1].starts_with("Replace(Some("), "{did:?}");
    next_engine(&mut bench, 2);
    let expected = [
        format!("check {asked}"),
        format!("check {held}"),
        format!("start {waiting} seed 1002 resume []"),
    ];
    assert_eq!(bench.did(), expected);
}

#[test]
fn an_engine_that_was_loaded_beside_takes_over_when_nothing_runs() {
    let mut bench = Bench::ready(4, 1);
    let running = bench.accept(submission("a"));
    bench.core.loads_beside(Some("other".to_owned()), None);
    let waiting = bench.accept(submission("b"));
    assert_eq!(bench.core.status().next_model.as_deref(), Some("other"));
    bench.event(running, delta(5));
    bench.did();
    let config = bench.core.config.clone();
    bench.core.take_over(config, bench.now);
    let came_later = bench.core.submit(submission("c"), bench.now);
    assert_eq!(bench.did(), [""; 0], "what runs is not disturbed, and the others wait");
    assert_eq!((bench.core.status().next_model, bench.core.status().state), (None, State::Ready));

    // The old engine dies over it: its next one ends what it has begun, and nothing else.
    bench.engine(died(Some(SECOND)));
    bench.engine(started(2));
    bench.frame(FromEngine::Ready(model(1)));
    let did = bench.did();
    assert!(did.contains(&format!("start {running} seed 1001 resume [5]")), "{did:?}");
    assert!(!did.iter().any(|did| did.starts_with(&format!("start {waiting}"))), "{did:?}");
    bench.event(running, finish(SECOND, SECOND, 2));
    assert_eq!(bench.did(), [format!("{running} finished"), "TakeOver".to_owned()]);
    next_engine(&mut bench, 3);
    let did = bench.did();
    assert!(did.contains(&format!("check {came_later}")), "{did:?}");
    assert!(did.contains(&format!("start {waiting} seed 1002 resume []")), "{did:?}");
}

#[test]
fn what_nobody_can_end_does_not_keep_another_model_away() {
    let mut bench = Bench::ready(4, 1);
    let (running, waiting) = (bench.accept(submission("a")), bench.accept(submission("b")));
    bench.event(running, delta(5));
    let config = bench.core.config.clone();
    bench.core.take_over(config, bench.now);
    bench.did();
    bench.engine(died(Some(SECOND)));
    bench.engine(started(2));
    bench.frame(FromEngine::LoadFailed(Refusal::new(Code::ModelFailed, "the files are gone")));
    let did = bench.did();
    assert_eq!(did, [format!("{running} model_failed"), "TakeOver".to_owned()]);
    next_engine(&mut bench, 3);
    assert_eq!(bench.did(), [format!("start {waiting} seed 1002 resume []")]);
    // The same model with other settings goes on with what was begun.
    bench.event(waiting, delta(7));
    bench.engine(died(Some(SECOND)));
    let same = LoadRequest { model: "/m".into(), ..other_model() };
    let config = bench.core.config.clone();
    bench.core.configure(config, Some(Box::new(same)), true, bench.now);
    bench.did();
    next_engine(&mut bench, 4);
    assert_eq!(bench.did(), [format!("start {waiting} seed 1002 resume [7]")]);
}

#[test]
fn a_mended_model_is_loaded_on_request_and_on_reload() {
    for by_reload in [false, true] {
        let mut bench = Bench::new(4);
        for pid in 1..=3 {
            bench.engine(started(pid));
            bench.engine(died(Some(30 * SECOND)));
        }
        assert!(matches!(bench.core.status().state, State::ModelFailed(_)));
        bench.did();
        if by_reload {
            let config = bench.core.config.clone();
            bench.core.configure(config, None, true, bench.now);
            assert_eq!(bench.did(), ["Replace(None)"]);
        } else {
            bench.core.load(bench.now);
            assert_eq!(bench.did(), ["Load"]);
        }
        assert!(matches!(bench.core.status().state, State::Loading(_)));
        // It has as many attempts as the first time.
        bench.engine(started(4));
        bench.engine(died(Some(SECOND)));
        assert!(matches!(bench.core.status().state, State::Loading(_)));
        bench.engine(started(5));
        bench.frame(FromEngine::Ready(model(1)));
        assert_eq!(bench.core.status().state, State::Ready);
    }
}

#[test]
fn the_fallback_is_loaded_once_and_nobody_who_waits_is_sent_away() {
    let mut bench = Bench::ready(4, 1);
    bench.did();
    // Another model is configured, and somebody comes while it loads.
    let fallback = Some(Box::new(other_model()));
    let config = Config { fallback, ..bench.core.config.clone() };
    bench.core.configure(config, Some(Box::new(other_model())), true, bench.now);
    let check = bench.core.submit(submission("a"), bench.now);
    bench.did();
    bench.engine(EngineEvent::Ended);
    bench.engine(started(2));
    bench.frame(FromEngine::LoadFailed(Refusal::new(Code::ModelFailed, "no such file")));
    let did = bench.did();
    assert!(did.len() == 1 && did[0].starts_with("Replace(Some("), "{did:?}");
    assert_eq!(bench.core.status().went_back.as_deref(), Some("no such file"));
    next_engine(&mut bench, 3);
    let asked = [format!("check {check}"), "start p0 seed 1001 resume []".to_owned()];
    assert_eq!(bench.did(), asked);
    assert_eq!(bench.core.status().state, State::Ready);
    // A model that fails later has nothing left to fall back to.
    bench.frame(FromEngine::LoadFailed(Refusal::new(Code::ModelFailed, "nor this")));
    assert!(matches!(bench.core.status().state, State::ModelFailed(_)));
    // Another model that is configured is another story.
    let config = bench.core.config.clone();
    bench.core.configure(config, Some(Box::new(other_model())), true, bench.now);
    assert_eq!(bench.core.status().went_back, None);
}

#[test]
fn a_reload_that_changes_nothing_disturbs_nobody() {
    let mut bench = Bench::ready(4, 1);
    let id = bench.accept(submission("a"));
    bench.did();
    let config = Config { queue_limit: 9, ..bench.core.config.clone() };
    bench.core.configure(config, None, true, bench.now);
    assert_eq!(bench.did(), [""; 0]);
    assert_eq!((bench.core.status().queue_limit, bench.core.running.as_slice()), (9, &[id][..]));
}
