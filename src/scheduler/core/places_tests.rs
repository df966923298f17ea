//! Tests of what bounds the queue (time, places, bytes) and of what those who wait are told.

use super::places::QUEUE_BYTES;
use super::tests::{Bench, SECOND, finish, submission};
use super::*;
use crate::request::Input;

/// A board on which every prompt takes ten seconds: two to read, eight to write.
fn slow(queue_limit: usize, slots: u16) -> Bench {
    let mut bench = Bench::ready(queue_limit, slots);
    for _ in 0..10 {
        let id = bench.accept(submission("a"));
        bench.event(id, finish(2 * SECOND, 8 * SECOND, 5));
    }
    bench.core.take_actions();
    bench
}

/// How many prompts of somebody are taken until the first is refused, and that refusal.
fn fill(bench: &mut Bench, who: &str) -> (usize, Refusal) {
    for taken in 0.. {
        let accepted = bench.core.counters.accepted;
        let check = bench.core.submit(submission(who), bench.now);
        if bench.core.checks.contains_key(&check) {
            bench.check(check);
        }
        if bench.core.counters.accepted == accepted {
            let refusal = bench.core.take_actions().into_iter().find_map(|action| match action {
                Action::Refuse { check: refused, refusal } if refused == check => Some(refusal),
                _ => None,
            });
            return (taken, refusal.expect("what is not taken is refused"));
        }
    }
    unreachable!()
}

fn places(bench: &mut Bench) -> Vec<(PromptId, u32, u64)> {
    let place = |action| match action {
        Action::Deliver { id, event: Event::Queued { position, eta } } => {
            Some((id, position, eta.as_secs()))
        }
        _ => None,
    };
    bench.core.take_actions().into_iter().filter_map(place).collect()
}

#[test]
fn the_queue_is_as_long_as_the_longest_wait_allows() {
    // One runs; the one after it waits 10 s, the next 20 s, … and the 13th 120 s. Two slots are twice as fast.
    for (slots, taken) in [(1, 13), (2, 26)] {
        let mut bench = slow(1000, slots);
        let (got, refusal) = fill(&mut bench, "a");
        assert_eq!(got, taken, "{slots} slots");
        assert_eq!(refusal.code, Code::Busy);
        assert_eq!((refusal.limit, refusal.have.map(|ms| ms / 1000)), (Some(120_000), Some(130)));
        // Ten seconds too many: then it is worth asking again.
        assert_eq!(refusal.retry_after, Some(10 * SECOND), "{slots} slots");
    }
}

#[test]
fn a_board_that_slows_down_takes_fewer() {
    let mut bench = slow(1000, 1);
    for _ in 0..20 {
        let id = bench.accept(submission("a"));
        bench.event(id, finish(8 * SECOND, 32 * SECOND, 5));
    }
    let (taken, _) = fill(&mut bench, "a");
    assert_eq!(taken, 4, "one runs, and those behind it wait 40, 80 and 120 s");
}

#[test]
fn a_flood_takes_neither_the_time_nor_the_places_of_another() {
    let mut bench = slow(1000, 1);
    fill(&mut bench, "flood");
    let other = bench.accept(submission("other"));
    assert_eq!(
        places(&mut bench).pop(),
        Some((other, 1, 10)),
        "behind what runs, before the flood"
    );
    // Quick answers: places are what is short.
    let mut bench = Bench::ready(8, 1);
    let (taken, refusal) = fill(&mut bench, "flood");
    assert_eq!((taken, refusal.code), (1 + 4, Code::Busy), "one runs, half of the places");
    assert!(refusal.message.contains("of yours"), "{refusal}");
    let shares: Vec<usize> = ["b", "c", "d"].map(|who| fill(&mut bench, who).0).into();
    assert_eq!(shares, [2, 1, 1]);
    assert_eq!(
        fill(&mut bench, "e").1.message,
        "the queue is full: 8 prompts wait, and no more than 8 may"
    );
}

#[test]
fn large_prompts_take_fewer_places() {
    let mut bench = Bench::ready(1000, 1);
    let large = |who: &str| {
        let mut large = submission(who);
        large.request.input = Input::Completion("x".repeat(QUEUE_BYTES / 4));
        large
    };
    for who in ["a", "b", "c"] {
        bench.accept(large(who));
    }
    // One runs, two quarters wait: another quarter would be more for b than is left for everybody.
    assert!(bench.refused(large("b")).message.contains("bytes"));
    bench.accept(large("d"));
}

#[test]
fn those_who_wait_are_told_their_place_and_its_changes() {
    let mut bench = slow(100, 1);
    let first = bench.accept(submission("a"));
    let second = bench.accept(submission("a"));
    assert_eq!(places(&mut bench), [(second, 1, 10)], "who does not wait is told nothing");
    let other = bench.accept(submission("b"));
    assert_eq!(places(&mut bench), [(other, 1, 10)]);
    // The change is told with the next half second; four seconds of the first are over then.
    bench.pass(4 * SECOND);
    assert_eq!(places(&mut bench), [(second, 2, 16)]);
    let status = bench.core.status();
    let told: Vec<_> = status.places.iter().map(|p| (p.id, p.begins_in.as_secs())).collect();
    assert_eq!(told, [(other, 6), (second, 16)]);
    assert_eq!(status.next_begins.as_secs(), 26);
    assert!(bench.core.next_deadline().is_some_and(|at| at <= bench.now + SECOND / 2));
    bench.event(first, finish(2 * SECOND, 8 * SECOND, 5));
    bench.event(other, finish(2 * SECOND, 8 * SECOND, 5));
    bench.core.take_actions();
    bench.pass(SECOND);
    assert!(bench.core.status().places.is_empty());
    bench.event(second, finish(2 * SECOND, 8 * SECOND, 5));
    bench.pass(SECOND);
    bench.pass(SECOND);
    assert_eq!(bench.core.next_deadline(), None, "an idle scheduler sleeps");
}

#[test]
fn who_leaves_the_queue_is_not_waited_for() {
    let mut bench = slow(100, 1);
    bench.accept(submission("a"));
    let hasty = bench.accept(Submission { timeout: Some(SECOND * 30), ..submission("b") });
    let patient = bench.accept(submission("c"));
    assert_eq!(places(&mut bench), [(hasty, 1, 10), (patient, 2, 20)]);
    bench.core.cancel(hasty, bench.now);
    bench.pass(SECOND);
    assert_eq!(places(&mut bench), [(patient, 1, 9)]);
}
