//! A hundred times more prompts than a board can answer, from a flood and from one polite client, on a scripted engine
//! and paused time: what is refused is refused at once, what is accepted is answered as fast as ever.

use std::collections::VecDeque;
use std::time::Duration;

use promptd::engine::frames::{CheckedPrompt, FromEngine, ToEngine};
use promptd::request::{Code, Event, Finish, FinishReason, PromptId, Timings, Usage};
use promptd::scheduler::{Config, Scheduler, State, Status};
use tokio::time::{Instant, sleep, sleep_until};

use crate::support::engine::ScriptedEngine;
use crate::support::words::{model, submission};

/// One prompt at a time, this long each.
const SERVICE: Duration = Duration::from_millis(50);
/// How long the load lasts: 1,200 prompts can be answered.
const LOAD: Duration = Duration::from_mins(1);
/// Between two prompts of the flood: 2,000 a second where 20 can be answered.
const EVERY: Duration = Duration::from_micros(500);

/// An engine that finds every prompt good and answers one after the other.
async fn work(mut engine: ScriptedEngine) {
    engine.start(model(1)).await;
    let mut running: VecDeque<(PromptId, Instant)> = VecDeque::new();
    loop {
        let due = running.front().map(|(_, due)| *due);
        let order = tokio::select! {
            order = engine.try_order() => match order {
                Some(order) => order,
                None => return,
            },
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                let Some((id, _)) = running.pop_front() else { continue };
                let timings = Timings { queue: Duration::ZERO, prefill: SERVICE / 5, decode: SERVICE * 4 / 5 };
                let usage = Usage { prompt: 4, cached: 0, completion: 5, forgotten: 0 };
                let finish = Finish { reason: FinishReason::Stop, usage, timings, seed: 0 };
                engine.event(id, Event::Finished(finish)).await;
                continue;
            }
        };
        match order {
            ToEngine::Check { check, .. } => {
                let result = Ok(CheckedPrompt { prompt_tokens: 4, max_tokens: 100, calls: None });
                engine.say(FromEngine::Checked { check, result }).await;
            }
            ToEngine::Start { id, .. } => running.push_back((id, Instant::now() + SERVICE)),
            ToEngine::Cancel { id } => running.retain(|(other, _)| *other != id),
            ToEngine::Load(_) | ToEngine::Pin(_) => {}
        }
    }
}

/// Asks one prompt after the other; how long each took from the question to the answer.
async fn polite(scheduler: Scheduler, until: Instant) -> Vec<Duration> {
    let mut took = Vec::new();
    while Instant::now() < until {
        sleep(Duration::from_millis(230)).await;
        let asked = Instant::now();
        let mut ticket = scheduler
            .submit(submission("polite", "x"))
            .await
            .expect("there is room for the polite");
        while let Some(event) = ticket.next().await {
            assert!(!matches!(event, Event::Failed(_)), "{event:?}");
        }
        took.push(asked.elapsed());
    }
    took
}

#[tokio::test(start_paused = true)]
async fn a_hundred_times_the_capacity_is_refused_at_once_and_disturbs_nobody() {
    let (engine, port) = ScriptedEngine::new();
    let config = Config { max_wait: Duration::from_secs(2), ..Config::default() };
    let (scheduler, _task) = Scheduler::start(config, port);
    tokio::spawn(work(engine));
    let mut status = scheduler.status();
    status.wait_for(|status| status.state == State::Ready).await.unwrap();
    let begun = Instant::now();
    let end = begun + LOAD;
    let other = tokio::spawn(polite(scheduler.clone(), end));

    let (mut answers, mut refused, mut most_waiting) = (tokio::task::JoinSet::new(), Vec::new(), 0);
    let mut next = begun;
    while next < end {
        sleep_until(next).await;
        next += EVERY;
        // The clock of the test stands still meanwhile; this is the machine's own.
        let asked = std::time::Instant::now();
        match scheduler.submit(submission("flood", "x")).await {
            Ok(mut ticket) => {
                answers.spawn(async move { while ticket.next().await.is_some() {} });
            }
            Err(refusal) => {
                refused.push(asked.elapsed());
                assert_eq!(refusal.code, Code::Busy);
                assert!(refusal.retry_after.is_some());
            }
        }
        most_waiting = most_waiting.max(status.borrow().waiting);
        while answers.try_join_next().is_some() {}
    }
    let finished = status.borrow().counters.finished;
    let took = other.await.unwrap();
    while answers.join_next().await.is_some() {}
    status.wait_for(Status::is_idle).await.unwrap();

    let capacity = LOAD.as_millis() / SERVICE.as_millis();
    assert!(u128::from(finished) * 100 >= capacity * 95, "{finished} of {capacity} were answered");
    assert!(refused.len() > 100_000, "{} were refused", refused.len());
    refused.sort_unstable();
    let p99 = refused[refused.len() * 99 / 100];
    assert!(p99 <= Duration::from_millis(50), "p99 of a refusal is {p99:?}");
    // Two seconds of waiting are 40 prompts; one is on its way.
    assert!(most_waiting <= 42, "{most_waiting} waited");
    // The polite one waits for what runs, and for no other: one service time more than alone.
    let worst = took.iter().max().expect("the polite one asked");
    assert!(
        took.len() > 150 && *worst <= 2 * SERVICE + Duration::from_millis(5),
        "{} asked, the worst took {worst:?}",
        took.len()
    );
    eprintln!(
        "{finished} answered of {capacity} possible, {} refused: p50 {:?}, p99 {p99:?}; polite worst {worst:?}",
        refused.len(),
        refused[refused.len() / 2],
    );
}
