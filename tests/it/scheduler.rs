//! The scheduler's task with a scripted engine, on paused time: what an asker sees, and what the engine is told.
//! The rules themselves are tested one by one beside `scheduler::core`.

use std::time::Duration;

use promptd::engine::frames::{CheckedPrompt, FromEngine, ToEngine};
use promptd::request::{Code, Event, Priority, PromptId, Refusal, Submission};
use promptd::scheduler::{Config, Scheduler, State, Status, Ticket};
use tokio::task::JoinHandle;

use crate::support::engine::ScriptedEngine;
use crate::support::words::{delta, finished, model, submission, words};

const SECOND: Duration = Duration::from_secs(1);

struct Bench {
    scheduler: Scheduler,
    engine: ScriptedEngine,
    task: JoinHandle<()>,
}

impl Bench {
    async fn ready(queue_limit: usize, slots: u16) -> Bench {
        let (mut engine, port) = ScriptedEngine::new();
        let (scheduler, task) = Scheduler::start(Config { queue_limit, ..Config::default() }, port);
        engine.start(model(slots)).await;
        let bench = Bench { scheduler, engine, task };
        bench.until(|status| status.state == State::Ready).await;
        bench
    }

    /// Hands a prompt in and lets the engine find it good.
    async fn accept(&mut self, submission: Submission) -> Ticket {
        let (ticket, ()) = tokio::join!(self.scheduler.submit(submission), self.engine.approve());
        ticket.expect("the prompt is accepted")
    }

    async fn until(&self, wanted: impl FnMut(&Status) -> bool) -> Status {
        self.scheduler.status().wait_for(wanted).await.expect("the scheduler is there").clone()
    }
}

/// All events of a ticket until its end: the text, the tokens, and how it ended.
async fn rest(ticket: &mut Ticket) -> (String, Vec<u32>, Event) {
    let (mut all, mut every) = (String::new(), Vec::new());
    loop {
        match ticket.next().await.expect("a final event comes") {
            Event::Queued { .. } | Event::Started { .. } | Event::Prefill { .. } => {}
            Event::Delta { text, tokens, .. } => {
                all.push_str(&text);
                every.extend(tokens);
            }
            last => {
                assert_eq!(ticket.next().await, None, "nothing comes after the end");
                return (all, every, last);
            }
        }
    }
}

fn code(event: &Event) -> Code {
    match event {
        Event::Failed(refusal) => refusal.code,
        other => panic!("not failed: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_prompt_goes_in_and_its_answer_comes_out() {
    let mut bench = Bench::ready(4, 1).await;
    let mut ticket = bench.accept(submission("a", "once")).await;
    let started = bench.engine.started().await;
    assert_eq!((started.id, started.seed), (ticket.id(), ticket.seed()));
    assert!(ticket.seed() < 1 << 53, "every JSON reader keeps it");
    assert_eq!(ticket.checked().prompt_tokens, 4);
    assert_eq!(ticket.next().await, Some(Event::Started { deaths: 0 }));
    bench.engine.event(ticket.id(), Event::Prefill { done: 4, total: 4 }).await;
    assert_eq!(ticket.next().await, Some(Event::Prefill { done: 4, total: 4 }));
    bench.engine.event(ticket.id(), delta(1)).await;
    assert_eq!(ticket.next().await, Some(delta(1)));
    bench.engine.event(ticket.id(), delta(2)).await;
    bench.engine.event(ticket.id(), finished(2)).await;
    let (text, tokens, end) = rest(&mut ticket).await;
    assert_eq!((text.as_str(), tokens), ("<2>", vec![2]));
    let Event::Finished(finish) = end else { panic!("{end:?}") };
    assert_eq!(finish.seed, ticket.seed());
    let status = bench.until(Status::is_idle).await;
    assert_eq!((status.counters.accepted, status.counters.finished), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn seeds_differ_from_prompt_to_prompt() {
    let mut bench = Bench::ready(4, 1).await;
    let first = bench.accept(submission("a", "x")).await;
    bench.engine.started().await;
    let second = bench.accept(submission("a", "x")).await;
    assert_ne!(first.seed(), second.seed());
}

#[tokio::test(start_paused = true)]
async fn time_in_the_queue_is_reported() {
    let mut bench = Bench::ready(4, 1).await;
    let first = bench.accept(submission("a", "x")).await;
    bench.engine.started().await;
    let mut second = bench.accept(submission("a", "y")).await;
    tokio::time::advance(3 * SECOND).await;
    bench.engine.event(first.id(), finished(1)).await;
    bench.engine.started().await;
    bench.engine.event(second.id(), finished(1)).await;
    let (_, _, end) = rest(&mut second).await;
    let Event::Finished(finish) = end else { panic!("{end:?}") };
    assert!(
        finish.timings.queue >= 3 * SECOND && finish.timings.queue < 4 * SECOND,
        "{:?}",
        finish.timings
    );
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_refuses_at_once_though_the_engine_sleeps() {
    let mut bench = Bench::ready(2, 1).await;
    let mut tickets = Vec::new();
    for who in ["a", "b", "c"] {
        tickets.push(bench.accept(submission(who, "x")).await);
        if tickets.len() == 1 {
            bench.engine.started().await;
        }
    }
    // From here on the engine reads nothing.
    for _ in 0..1000 {
        let refusal =
            bench.scheduler.submit(submission("d", "x")).await.expect_err("the queue is full");
        assert_eq!(refusal.code, Code::Busy);
    }
    assert_eq!(bench.scheduler.status().borrow().counters.refused["busy"], 1000);
}

#[tokio::test(start_paused = true)]
async fn orders_wait_for_an_engine_that_is_slow_to_read() {
    let mut bench = Bench::ready(8, 1).await;
    // Eight checks, and room for one on the way.
    let submits: Vec<_> = (0..8)
        .map(|n| {
            let scheduler = bench.scheduler.clone();
            tokio::spawn(
                async move { scheduler.submit(submission(&format!("asker {n}"), "x")).await },
            )
        })
        .collect();
    tokio::time::sleep(SECOND).await;
    let mut starts = 0;
    let mut checks = 0;
    while checks < 8 || starts < 1 {
        match bench.engine.order().await {
            ToEngine::Check { check, .. } => {
                checks += 1;
                let result = Ok(CheckedPrompt { prompt_tokens: 1, max_tokens: 1, calls: None });
                bench.engine.say(FromEngine::Checked { check, result }).await;
            }
            ToEngine::Start { .. } => starts += 1,
            other => panic!("{other:?}"),
        }
    }
    let mut tickets = Vec::new();
    for submit in submits {
        tickets.push(submit.await.unwrap().expect("accepted"));
    }
    let status = bench.until(|status| status.waiting == 7).await;
    assert_eq!(status.running, 1);
}

#[tokio::test(start_paused = true)]
async fn priorities_and_turns_decide_who_is_next() {
    let mut bench = Bench::ready(8, 1).await;
    let running = bench.accept(submission("flood", "0")).await;
    bench.engine.started().await;
    let mut tickets = vec![running];
    for (who, text, priority) in [
        ("flood", "1", Priority::Normal),
        ("flood", "2", Priority::Normal),
        ("other", "3", Priority::Normal),
        ("other", "4", Priority::Low),
        ("flood", "5", Priority::High),
    ] {
        tickets.push(bench.accept(Submission { priority, ..submission(who, text) }).await);
    }
    let mut next = tickets[0].id();
    let mut order = Vec::new();
    for _ in 0..5 {
        bench.engine.event(next, finished(1)).await;
        next = bench.engine.started().await.id;
        order.push(tickets.iter().position(|ticket| ticket.id() == next).unwrap());
    }
    assert_eq!(order, [5, 3, 1, 2, 4]);
}

#[tokio::test(start_paused = true)]
async fn deadlines_end_prompts_that_wait_and_that_run() {
    let mut bench = Bench::ready(8, 1).await;
    let timeout = Some(2 * SECOND);
    let mut running = bench.accept(Submission { timeout, ..submission("a", "x") }).await;
    bench.engine.started().await;
    let mut waiting = bench.accept(Submission { timeout, ..submission("a", "y") }).await;
    bench.engine.event(running.id(), delta(1)).await;
    let begun = tokio::time::Instant::now();
    let (text, _, end) = rest(&mut running).await;
    assert_eq!((text.as_str(), code(&end)), ("<1>", Code::Timeout));
    assert_eq!(code(&rest(&mut waiting).await.2), Code::Timeout);
    assert!(begun.elapsed() <= 2 * SECOND + Duration::from_millis(10));
    assert_eq!(bench.engine.cancelled().await, running.id());
    assert!(bench.engine.is_left_alone().await);
}

#[tokio::test(start_paused = true)]
async fn cancel_tells_the_asker_and_the_engine() {
    let mut bench = Bench::ready(8, 1).await;
    let mut running = bench.accept(submission("a", "x")).await;
    bench.engine.started().await;
    let mut waiting = bench.accept(submission("a", "y")).await;
    bench.scheduler.cancel(waiting.id()).await;
    bench.scheduler.cancel(running.id()).await;
    assert_eq!(code(&rest(&mut running).await.2), Code::Cancelled);
    assert_eq!(code(&rest(&mut waiting).await.2), Code::Cancelled);
    assert_eq!(bench.engine.cancelled().await, running.id());
    // The engine did not know yet.
    bench.engine.event(running.id(), delta(1)).await;
    bench.engine.event(running.id(), finished(1)).await;
    let mut next = bench.accept(submission("a", "z")).await;
    assert_eq!(bench.engine.started().await.id, next.id());
    bench.scheduler.cancel_all().await;
    assert_eq!(code(&rest(&mut next).await.2), Code::Cancelled);
}

#[tokio::test(start_paused = true)]
async fn a_model_is_unloaded_and_a_prompt_that_comes_then_waits_for_it() {
    let mut bench = Bench::ready(8, 1).await;
    let (unloaded, ()) = tokio::join!(bench.scheduler.unload(), bench.engine.end());
    unloaded.unwrap();
    let status = bench.scheduler.status().borrow().clone();
    assert_eq!((status.state, status.engine_pid), (State::Unloaded, None));
    assert!(!bench.engine.wanted.borrow().loaded);
    let scheduler = bench.scheduler.clone();
    let asker = tokio::spawn(async move { scheduler.submit(submission("a", "x")).await });
    bench.engine.wanted.wait_for(|wanted| wanted.loaded).await.unwrap();
    tokio::time::sleep(100 * SECOND).await;
    bench.engine.start(model(1)).await;
    bench.engine.approve().await;
    let mut ticket = asker.await.unwrap().expect("it was worth the wait");
    assert_eq!(bench.engine.started().await.id, ticket.id());
    assert_eq!(bench.scheduler.unload().await.unwrap_err().code, Code::Busy);
    bench.engine.event(ticket.id(), finished(1)).await;
    assert!(matches!(rest(&mut ticket).await.2, Event::Finished(_)));
    // Loading what is loaded is no work.
    bench.scheduler.load().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_idle_model_leaves_the_memory() {
    let mut bench = Bench::ready(8, 1).await;
    let config = Config { keep_loaded: Some(60 * SECOND), ..Config::default() };
    bench.scheduler.configure(config, None, false).await;
    let begun = tokio::time::Instant::now();
    bench.engine.wanted.wait_for(|wanted| !wanted.loaded).await.unwrap();
    let took = begun.elapsed();
    assert!(took >= 60 * SECOND && took < 61 * SECOND, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_dropped_ticket_cancels_its_prompt_and_no_other() {
    let mut bench = Bench::ready(8, 1).await;
    let running = bench.accept(submission("a", "x")).await;
    bench.engine.started().await;
    let waiting = bench.accept(submission("b", "y")).await;
    let mut stays = bench.accept(submission("c", "z")).await;
    drop(waiting);
    bench.until(|status| status.waiting == 1).await;
    let id = running.id();
    drop(running);
    assert_eq!(bench.engine.cancelled().await, id);
    assert_eq!(bench.engine.started().await.id, stays.id());
    bench.engine.event(stays.id(), finished(1)).await;
    assert!(matches!(rest(&mut stays).await.2, Event::Finished(_)));
}

#[tokio::test(start_paused = true)]
async fn an_asker_that_leaves_during_the_check_leaves_nothing_behind() {
    let mut bench = Bench::ready(8, 1).await;
    let scheduler = bench.scheduler.clone();
    let asker = tokio::spawn(async move { scheduler.submit(submission("a", "x")).await });
    let ToEngine::Check { check, .. } = bench.engine.order().await else { panic!("no check") };
    asker.abort();
    assert!(asker.await.is_err());
    let result = Ok(CheckedPrompt { prompt_tokens: 1, max_tokens: 1, calls: None });
    bench.engine.say(FromEngine::Checked { check, result }).await;
    let id = bench.engine.started().await.id;
    assert_eq!(bench.engine.cancelled().await, id);
    bench.until(|status| status.counters.accepted == 1 && status.is_idle()).await;
}

#[tokio::test(start_paused = true)]
async fn an_asker_that_does_not_read_holds_up_nobody_and_misses_nothing() {
    let mut bench = Bench::ready(8, 2).await;
    let mut lazy = bench.accept(submission("a", "x")).await;
    bench.engine.started().await;
    let mut quick = bench.accept(submission("b", "y")).await;
    bench.engine.started().await;
    let tokens: Vec<u32> = (0..5000).collect();
    for token in &tokens {
        bench.engine.event(lazy.id(), delta(*token)).await;
    }
    bench.engine.event(quick.id(), finished(1)).await;
    assert!(matches!(rest(&mut quick).await.2, Event::Finished(_)));
    bench.engine.event(lazy.id(), finished(5000)).await;
    bench.until(Status::is_idle).await;
    // Everything is there, in one piece.
    assert_eq!(lazy.next().await, Some(Event::Started { deaths: 0 }));
    let Some(Event::Delta { text, tokens: got, .. }) = lazy.next().await else { panic!("no text") };
    assert_eq!(got, tokens);
    assert_eq!(text, words(&tokens));
    assert!(matches!(lazy.next().await, Some(Event::Finished(_))));
    assert_eq!(lazy.next().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_dead_engine_is_a_pause_and_the_text_goes_on() {
    let mut bench = Bench::ready(8, 1).await;
    let mut ticket = bench.accept(submission("a", "x")).await;
    let first = bench.engine.started().await;
    let mut waiting = bench.accept(submission("a", "y")).await;
    for token in [1, 2, 3] {
        bench.engine.event(ticket.id(), delta(token)).await;
    }
    assert_eq!(ticket.next().await, Some(Event::Started { deaths: 0 }));
    // One piece is read before the death, the rest after it: no difference.
    let Some(Event::Delta { text: mut before, tokens: mut seen, .. }) = ticket.next().await else {
        panic!("no text")
    };
    bench.engine.die().await;
    let status = bench.until(|status| status.engine_pid.is_none()).await;
    assert_eq!((status.running, status.waiting, status.state.as_str()), (0, 2, "loading"));
    assert!(status.model.is_some(), "the model stays known");
    let refusal = bench.scheduler.submit(submission("b", "z")).await.expect_err("no engine");
    assert_eq!(refusal.code, Code::ModelLoading);
    assert!(refusal.retry_after.is_some());

    bench.engine.start(model(1)).await;
    let again = bench.engine.started().await;
    assert_eq!((again.id, again.seed, &again.request), (first.id, first.seed, &first.request));
    assert_eq!(again.resume, [1, 2, 3]);
    bench.engine.event(ticket.id(), Event::Prefill { done: 7, total: 7 }).await;
    bench.engine.event(ticket.id(), delta(4)).await;
    bench.engine.event(ticket.id(), finished(4)).await;
    let (text, tokens, end) = rest(&mut ticket).await;
    before.push_str(&text);
    seen.extend(tokens);
    assert_eq!((before.as_str(), seen), ("<1><2><3><4>", vec![1, 2, 3, 4]));
    assert!(matches!(end, Event::Finished(_)));
    assert_eq!(bench.engine.started().await.id, waiting.id());
    bench.engine.event(waiting.id(), finished(1)).await;
    rest(&mut waiting).await;
    assert_eq!(bench.scheduler.status().borrow().counters.engine_restarts, 1);
}

#[tokio::test(start_paused = true)]
async fn a_prompt_that_kills_twice_is_given_up_and_others_go_on() {
    let mut bench = Bench::ready(8, 1).await;
    let mut poison = bench.accept(submission("a", "x")).await;
    assert_eq!(bench.engine.started().await.id, poison.id());
    let mut innocent = bench.accept(submission("b", "y")).await;
    bench.engine.die().await;
    bench.engine.start(model(1)).await;
    assert_eq!(bench.engine.started().await.id, poison.id());
    bench.engine.die().await;
    bench.engine.start(model(1)).await;
    let end = rest(&mut poison).await.2;
    assert_eq!(code(&end), Code::ModelFailed);
    let Event::Failed(refusal) = end else { unreachable!() };
    assert!(refusal.message.contains("SIGKILL"), "{refusal}");
    assert_eq!(bench.engine.started().await.id, innocent.id());
    bench.engine.event(innocent.id(), finished(1)).await;
    assert!(matches!(rest(&mut innocent).await.2, Event::Finished(_)));
}

#[tokio::test(start_paused = true)]
async fn a_prompt_cancelled_during_the_restart_is_not_started_again() {
    let mut bench = Bench::ready(8, 1).await;
    let mut ticket = bench.accept(submission("a", "x")).await;
    bench.engine.started().await;
    bench.engine.die().await;
    bench.scheduler.cancel(ticket.id()).await;
    assert_eq!(code(&rest(&mut ticket).await.2), Code::Cancelled);
    bench.engine.start(model(1)).await;
    assert!(bench.engine.is_left_alone().await);
}

#[tokio::test(start_paused = true)]
async fn a_model_that_cannot_be_loaded_is_told_to_everybody() {
    let (mut engine, port) = ScriptedEngine::new();
    let (scheduler, _task) = Scheduler::start(Config::default(), port);
    let why = Refusal::new(Code::ModelFailed, "model.onnx is missing");
    engine.say(FromEngine::LoadFailed(why.clone())).await;
    let mut status = scheduler.status();
    status.wait_for(|status| status.state == State::ModelFailed(why.clone())).await.unwrap();
    let refusal = scheduler.submit(submission("a", "x")).await.expect_err("no model");
    assert_eq!(
        (refusal.code, refusal.message.as_str()),
        (Code::ModelFailed, "model.onnx is missing")
    );
    // Mended: the next engine loads it.
    engine.start(model(1)).await;
    status.wait_for(|status| status.state == State::Ready).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn draining_ends_in_an_idle_scheduler_and_an_ended_engine() {
    let mut bench = Bench::ready(8, 1).await;
    let mut running = bench.accept(submission("a", "x")).await;
    bench.engine.started().await;
    let mut waiting = bench.accept(submission("a", "y")).await;
    bench.scheduler.drain().await;
    let refusal = bench.scheduler.submit(submission("a", "z")).await.expect_err("draining");
    assert_eq!(refusal.code, Code::Busy);
    bench.engine.event(running.id(), finished(1)).await;
    assert_eq!(bench.engine.started().await.id, waiting.id());
    bench.engine.event(waiting.id(), finished(1)).await;
    bench.until(Status::is_idle).await;
    rest(&mut running).await;
    rest(&mut waiting).await;
    let Bench { scheduler, mut engine, task } = bench;
    drop(scheduler);
    engine.dismissed().await;
    drop(engine);
    task.await.expect("the scheduler ends");
}

#[tokio::test(start_paused = true)]
async fn dropping_the_handles_lets_accepted_prompts_end() {
    let mut bench = Bench::ready(8, 1).await;
    let mut ticket = bench.accept(submission("a", "x")).await;
    bench.engine.started().await;
    let Bench { scheduler, mut engine, task } = bench;
    drop(scheduler);
    engine.event(ticket.id(), delta(1)).await;
    engine.event(ticket.id(), finished(1)).await;
    assert_eq!(rest(&mut ticket).await.0, "<1>");
    engine.dismissed().await;
    drop(engine);
    task.await.expect("the scheduler ends");
}

#[tokio::test(start_paused = true)]
async fn a_scheduler_that_is_aborted_still_gives_final_events() {
    let mut bench = Bench::ready(8, 1).await;
    let mut ticket = bench.accept(submission("a", "x")).await;
    bench.task.abort();
    assert_eq!(code(&rest(&mut ticket).await.2), Code::Internal);
    let refusal = bench.scheduler.submit(submission("a", "y")).await.expect_err("nobody is there");
    assert_eq!(refusal.code, Code::Internal);
}

#[tokio::test(start_paused = true)]
async fn the_status_changes_only_when_something_changes() {
    let mut bench = Bench::ready(8, 1).await;
    let ticket = bench.accept(submission("a", "x")).await;
    bench.engine.started().await;
    let mut status = bench.scheduler.status();
    status.mark_unchanged();
    for token in 0..10 {
        bench.engine.event(ticket.id(), delta(token)).await;
    }
    bench.scheduler.cancel(PromptId(99)).await;
    tokio::time::sleep(SECOND).await;
    assert!(!status.has_changed().unwrap());
    bench.engine.event(ticket.id(), finished(10)).await;
    status.changed().await.unwrap();
    assert_eq!(status.borrow().counters.finished, 1);
}
