//! Tests of prompts that are started together with their check.

use super::tests::{Bench, SECOND, died, finish, model, started, submission};
use super::*;
use crate::engine::client::EngineEvent;
use crate::engine::frames::FromEngine;
use crate::request::Again;

const START: &str = "start p0 seed 1001 resume []";

#[test]
fn the_free_slot_is_kept_for_the_first_and_nobody_else() {
    let mut bench = Bench::ready(4, 1);
    let first = bench.core.submit(submission("a"), bench.now);
    let second = bench.core.submit(submission("b"), bench.now);
    assert_eq!(bench.did(), ["check 0", START, "check 1"]);
    // However the answers come: the slot is the first one's.
    bench.check(second);
    assert_eq!(bench.did(), ["accept p1"]);
    bench.check(first);
    assert_eq!(bench.did(), ["accept p0"]);
    assert_eq!((bench.core.status().running, bench.core.status().waiting), (1, 1));
    bench.event(PromptId(0), finish(SECOND, SECOND, 1));
    assert_eq!(bench.did(), ["p0 finished", "start p1 seed 1002 resume []"]);
}

#[test]
fn a_slot_that_was_kept_in_vain_goes_to_the_next() {
    let mut bench = Bench::ready(4, 1);
    let first = bench.core.submit(submission("a"), bench.now);
    let second = bench.core.submit(submission("b"), bench.now);
    bench.check(second);
    bench.did();
    let refusal = Refusal::new(Code::BadRequest, "x");
    bench.frame(FromEngine::Checked { check: first, result: Err(refusal) });
    let expected = ["cancel p0", "refuse 0 bad_request", "start p1 seed 1002 resume []"];
    assert_eq!(bench.did(), expected);
}

#[test]
fn nobody_is_started_unchecked_where_somebody_waits_or_runs_alone() {
    // One that may have to run alone.
    let mut bench = Bench::ready(4, 2);
    let again = Some(Again { deaths: 1, ends: 0 });
    let check = bench.core.submit(Submission { again, ..submission("a") }, bench.now);
    assert_eq!(bench.did(), ["check 0"]);
    // Beside it nobody.
    bench.check(check);
    bench.did();
    bench.core.submit(submission("b"), bench.now);
    assert_eq!(bench.did(), ["check 1"]);
    // No slot is free.
    let mut bench = Bench::ready(4, 1);
    bench.accept(submission("a"));
    bench.did();
    bench.core.submit(submission("b"), bench.now);
    assert_eq!(bench.did(), ["check 1"]);
}

#[test]
fn what_is_given_up_while_it_is_checked_is_called_back() {
    type Happens = fn(&mut Bench);
    let cases: [(Happens, &[&str]); 4] = [
        (|bench| bench.pass(3 * SECOND), &["cancel p0", "refuse 0 timeout"]),
        (|bench| bench.core.drain(), &["cancel p0", "refuse 0 busy"]),
        (|bench| bench.core.cancel_all(bench.now), &["cancel p0", "refuse 0 cancelled"]),
        // A dead engine needs no word.
        (|bench| bench.engine(died(Some(SECOND))), &["refuse 0 model_loading"]),
    ];
    for (happens, did) in cases {
        let mut bench = Bench::ready(4, 1);
        let timeout = Some(2 * SECOND);
        bench.core.submit(Submission { timeout, ..submission("a") }, bench.now);
        bench.did();
        happens(&mut bench);
        assert_eq!(bench.did(), did);
        // The engine's answer comes too late.
        bench.check(0);
        assert_eq!(bench.did(), [""; 0]);
        assert!(bench.core.is_idle() && bench.core.status().running == 0);
    }
}

#[test]
fn another_engine_is_asked_and_told_anew() {
    let mut bench = Bench::ready(4, 1);
    let check = bench.core.submit(submission("a"), bench.now);
    bench.did();
    let config = bench.core.config.clone();
    bench.core.take_over(config, bench.now);
    assert_eq!(bench.did(), ["TakeOver"]);
    bench.engine(EngineEvent::Ended);
    bench.engine(started(2));
    bench.frame(FromEngine::Ready(model(1)));
    assert_eq!(bench.did(), ["check 0", "start p1 seed 1002 resume []"]);
    bench.check(check);
    assert_eq!(bench.did(), ["accept p1"]);
}
