//! Prompts with a name: asked twice, they are generated once. First the scheduler with a scripted engine on paused time,
//! then the real service over its sockets, also through `kill -9`.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use promptd::request::{Code, Event};
use promptd::scheduler::{Config, Name, Scheduler, State, Ticket};
use serde_json::{Value, json};

use crate::support::engine::{ScriptedEngine, Started};
use crate::support::service::{Plan, Service, signal};
use crate::support::words::{delta, finished, model, submission, words};
use crate::support::{PATIENCE, http, wait_for};

struct Bench {
    scheduler: Scheduler,
    engine: ScriptedEngine,
}

impl Bench {
    async fn ready() -> Bench {
        let (mut engine, port) = ScriptedEngine::new();
        let (scheduler, _task) = Scheduler::start(Config::default(), port);
        engine.start(model(1)).await;
        let mut status = scheduler.status();
        status.wait_for(|status| status.state == State::Ready).await.unwrap();
        Bench { scheduler, engine }
    }

    async fn accept(&mut self, name: &Name) -> (Ticket, Started) {
        let asked = self.scheduler.submit_named(submission("a", "x"), name);
        let (ticket, started) = tokio::join!(asked, async {
            self.engine.approve().await;
            self.engine.started().await
        });
        (ticket.expect("it is accepted"), started)
    }

    async fn again(&self, name: &Name) -> Ticket {
        self.scheduler.submit_named(submission("a", "x"), name).await.expect("it is known")
    }
}

fn one(key: &str, body: &str) -> Name {
    Name::of_one(key, &[body.as_bytes()])
}

/// All of an answer. On the paused clock the hour is over as soon as nobody has anything to do.
async fn text(ticket: &mut Ticket) -> (String, Event) {
    let mut all = String::new();
    loop {
        let next = tokio::time::timeout(Duration::from_secs(3600), ticket.next()).await;
        match next.expect("the prompt stands still").expect("a final event comes") {
            Event::Delta { text, .. } => all.push_str(&text),
            last if last.is_final() => return (all, last),
            _ => {}
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_asks_again_joins_what_runs_and_gets_what_was_answered() {
    let mut bench = Bench::ready().await;
    let name = one("k", "x");
    let (mut first, started) = bench.accept(&name).await;
    bench.engine.event(started.id, delta(1)).await;
    while !matches!(first.next().await, Some(Event::Delta { .. })) {}
    let mut second = bench.again(&name).await;
    assert_eq!((second.id(), second.seed()), (first.id(), first.seed()));
    bench.engine.event(started.id, delta(2)).await;
    bench.engine.event(started.id, finished(2)).await;
    assert_eq!(text(&mut first).await.0, words(&[2]));
    let (all, last) = text(&mut second).await;
    assert_eq!(all, words(&[1, 2]));
    // Answered: the same again, and the engine hears nothing of it.
    let mut third = bench.again(&name).await;
    assert_eq!((third.is_repeated(), third.seed()), (true, first.seed()));
    assert_eq!(third.lasting_number(), first.lasting_number());
    assert_eq!(text(&mut third).await, (all, last));
    assert!(bench.engine.is_left_alone().await);
    // Another body, another asker, another kind of name, and the same five minutes later.
    let refusal = bench.scheduler.submit_named(submission("a", "y"), &one("k", "y")).await;
    assert_eq!(refusal.unwrap_err().code, Code::IdempotencyKeyReused);
    for who in ["b", "a"] {
        let shared = Name::shared("k", &[b"x"]);
        let (ticket, ()) = tokio::join!(
            bench.scheduler.submit_named(submission(who, "x"), &shared),
            bench.engine.approve()
        );
        bench.engine.started().await;
        drop(ticket);
        bench.engine.cancelled().await;
    }
    tokio::time::sleep(Duration::from_mins(5)).await;
    let (ticket, _) = bench.accept(&name).await;
    assert!(!ticket.is_repeated());
}

#[tokio::test(start_paused = true)]
async fn several_that_ask_at_once_share_one_check() {
    let mut bench = Bench::ready().await;
    let name = one("k", "x");
    let ask = || bench.scheduler.submit_named(submission("a", "x"), &name);
    let (one, two, three, ()) = tokio::join!(ask(), ask(), ask(), bench.engine.approve());
    let ids = [one, two, three].map(|ticket| ticket.unwrap().id());
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    bench.engine.started().await;
    assert!(bench.engine.is_left_alone().await);
}

#[tokio::test(start_paused = true)]
async fn a_promised_one_outlives_its_asker_and_a_shared_one_its_last() {
    let mut bench = Bench::ready().await;
    let name = one("k", "x");
    let (ticket, started) = bench.accept(&name).await;
    drop(ticket);
    assert!(bench.engine.is_left_alone().await, "it goes on");
    bench.engine.event(started.id, delta(1)).await;
    bench.engine.event(started.id, finished(1)).await;
    let mut status = bench.scheduler.status();
    status.wait_for(|status| status.counters.finished == 1).await.unwrap();
    assert_eq!(text(&mut bench.again(&name).await).await.0, words(&[1]));

    let name = Name::shared("k", &[b"x"]);
    let (first, started) = bench.accept(&name).await;
    let second = bench.again(&name).await;
    drop(first);
    assert!(bench.engine.is_left_alone().await, "one still listens");
    drop(second);
    assert_eq!(bench.engine.cancelled().await, started.id);
    // It is new when it comes again.
    let (_ticket, again) = bench.accept(&name).await;
    assert_ne!(again.id, started.id);
}

#[tokio::test(start_paused = true)]
async fn a_shared_one_whose_asker_goes_while_it_is_checked_is_cancelled() {
    let mut bench = Bench::ready().await;
    let name = Name::shared("k", &[b"x"]);
    {
        let asked = bench.scheduler.submit_named(submission("a", "x"), &name);
        let check = tokio::time::timeout(Duration::from_millis(1), asked).await;
        assert!(check.is_err(), "the engine has not answered");
    }
    tokio::time::sleep(Duration::from_millis(1)).await;
    bench.engine.approve().await;
    let abandoned = bench.engine.started().await;
    assert_eq!(bench.engine.cancelled().await, abandoned.id);
    let (ticket, started) = bench.accept(&name).await;
    assert_ne!(started.id, abandoned.id);
    assert!(!ticket.is_repeated());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_and_a_failure_are_not_kept() {
    let mut bench = Bench::ready().await;
    let name = one("k", "x");
    let (mut ticket, started) = bench.accept(&name).await;
    bench.scheduler.cancel(started.id).await;
    assert!(
        matches!(text(&mut ticket).await.1, Event::Failed(refusal) if refusal.code == Code::Cancelled)
    );
    assert_eq!(bench.engine.cancelled().await, started.id);
    bench.accept(&name).await;
}

fn chat(text: &str) -> Value {
    json!({"messages": [{"role": "user", "content": text}], "temperature": 1.0, "max_tokens": 40})
}

/// A long answer, so that there is time to stop in the middle of it.
fn long() -> Value {
    json!({"prompt": "Write.", "regex": "[a-z ]{400}", "max_tokens": 450, "temperature": 1.0})
}

fn post(socket: &Path, target: &str, body: &Value, key: &str) -> Option<http::Answer> {
    http::try_post(socket, target, body, &[("Idempotency-Key", key)])
}

fn accepted(service: &Service) -> u64 {
    service.health().unwrap()["counters"]["accepted"].as_u64().unwrap()
}

fn line(service: &Service, line: &Value) -> Value {
    let mut stream = UnixStream::connect(service.lines()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    writeln!(stream, "{line}").unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    serde_json::from_str(&answer).unwrap()
}

#[test]
fn over_the_sockets_what_is_asked_twice_is_answered_once_also_after_kill_9() {
    const CHAT: &str = "/v1/chat/completions";
    let plan = Plan::demo();
    let service = Service::start(&plan).ready();
    let first = post(&service.socket(), CHAT, &chat("a"), "k1").unwrap();
    assert_eq!((first.status, first.header("idempotent-replayed")), (200, None), "{first:?}");
    let same = |service: &Service, context: &str| {
        let again = post(&service.socket(), CHAT, &chat("a"), "k1").unwrap();
        assert_eq!(again.header("idempotent-replayed"), Some("true"), "{context}: {again:?}");
        let (first, again) = (first.json(), again.json());
        for field in ["id", "choices", "usage"] {
            assert_eq!(first[field], again[field], "{context}");
        }
        assert_eq!(first["promptd"]["seed"], again["promptd"]["seed"], "{context}");
    };
    same(&service, "within one service");
    let other = post(&service.socket(), CHAT, &chat("b"), "k1").unwrap();
    assert_eq!(
        (other.status, &other.json()["error"]["code"]),
        (422, &json!("idempotency_key_reused"))
    );
    let empty = post(&service.socket(), CHAT, &chat("b"), "").unwrap();
    assert_eq!((empty.status, &empty.json()["error"]["param"]), (400, &json!("Idempotency-Key")));
    // Lines: the id is the name, and another prompt under it is another prompt.
    let hot = |text: &str| json!({"id": "d", "prompt": text, "temperature": 1.0, "max_tokens": 20});
    let answer = line(&service, &hot("one"));
    assert_eq!(line(&service, &hot("one")), answer);
    assert_eq!(line(&service, &hot("two"))["status"], "ok");
    assert_eq!(accepted(&service), 3);

    // One runs when the service dies: its asker comes again and joins it, whichever service answers.
    let socket = service.socket();
    let asker = std::thread::Builder::new()
        .spawn(move || post(&socket, "/v1/completions", &long(), "k2"))
        .unwrap();
    wait_for("the prompt to run, and to be written", || {
        let health = service.health()?;
        (health["slots"]["running"] == 1 && health["record"]["prompts"] == 1).then_some(())
    });
    let engine = service.engine_pid().unwrap();
    signal(engine, "STOP");
    wait_for("all to be written", || (service.health()?["record"]["waiting"] == 0).then_some(()));
    let folder = service.kill();
    signal(engine, "KILL");
    assert!(asker.join().unwrap().is_none(), "the connection went with the service");
    let service = Service::start_in(folder, &plan).ready();
    let answer = post(&service.socket(), "/v1/completions", &long(), "k2").unwrap().json();
    assert_eq!(answer["promptd"]["attempt"], 2, "{answer}");
    let again = post(&service.socket(), "/v1/completions", &long(), "k2").unwrap().json();
    assert_eq!((&again["id"], &again["choices"]), (&answer["id"], &answer["choices"]));
    same(&service, "after kill -9");
    assert_eq!(line(&service, &hot("one"))["text"], line(&service, &hot("one"))["text"]);
    assert_eq!(accepted(&service), 1, "only what had no answer was run");
    // The seed that was fixed at acceptance gives the same text.
    let mut outside = long();
    outside["seed"] = answer["promptd"]["seed"].clone();
    let outside = http::post(&service.socket(), "/v1/completions", &outside).json();
    assert_eq!(outside["choices"][0]["text"], answer["choices"][0]["text"]);
}
