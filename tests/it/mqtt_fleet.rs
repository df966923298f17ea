//! Boards that share `any/ask` on one mosquitto: who takes what, and what becomes of the prompts of a board that is gone.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::time::Duration;

use promptd::engine::frames::{CheckedPrompt, FromEngine, ToEngine};
use promptd::mqtt::{Config, Facts, FleetConfig, serve};
use promptd::record::{Keeper, Pace, Record};
use promptd::request::{Constraint, Event, Finish, FinishReason, PromptId, Timings, Usage};
use promptd::scheduler::scripted::Call;
use promptd::scheduler::{Config as Queue, Scheduler, State};
use promptd::wire::{self, Limits, Policies, Profiles};
use rumqttc::v5::mqttbytes::QoS;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::support::broker::{Board, Broker, Client, answer, config, json, topic};
use crate::support::door::{delta, soon};
use crate::support::engine::ScriptedEngine;
use crate::support::words::model;

/// Long enough to see that nothing comes.
const A_WHILE: Duration = Duration::from_millis(500);

fn fleet(broker: &Broker, node: &str) -> Config {
    let group = FleetConfig { group: "g".to_owned(), high_water: 0 };
    Config { node: node.to_owned(), fleet: Some(group), ..config(broker.port) }
}

/// A watcher of how the boards stand.
struct Watcher {
    client: Client,
    status: BTreeMap<String, Value>,
}

impl Watcher {
    async fn new(broker: &Broker) -> Watcher {
        let client = Client::connect(broker.port, "watcher", &["promptd/+/status"], false).await;
        Watcher { client, status: BTreeMap::new() }
    }

    /// Waits until this holds of a board's status.
    async fn until(&mut self, node: &str, is: impl Fn(&Value) -> bool) {
        let wait = async {
            while !self.status.get(node).is_some_and(&is) {
                let message = self.client.next().await;
                let node = topic(&message).split('/').nth(1).unwrap().to_owned();
                self.status.insert(node, json(&message));
            }
        };
        let waited = timeout(Duration::from_secs(30), wait).await;
        assert!(waited.is_ok(), "{node}: {:?}", self.status.get(node));
    }

    /// Waits until each of these boards sees all others, and has so many idle slots.
    async fn together(&mut self, nodes: &[&str], idle: usize) {
        for node in nodes {
            let peers = nodes.len() - 1;
            let sees = |status: &Value| {
                status["fleet"]["peers"] == json!(peers) && status["fleet"]["idle"] == json!(idle)
            };
            self.until(node, sees).await;
        }
    }
}

/// Makes the board of a script look as busy as this.
fn busy(board: &Board, running: usize, waiting: usize) {
    board.script.set_status(|status| {
        if let Some(model) = &mut status.model {
            model.slots = 1;
        }
        (status.running, status.waiting) = (running, waiting);
    });
}

/// All that came to this board was taken from it again.
async fn withdrawn(board: &mut Board) {
    while let Ok(Some(Call::Submit(_, mut verdict))) = timeout(A_WHILE, board.script.next()).await {
        soon(verdict.abandoned()).await;
    }
}

#[tokio::test]
async fn a_busy_board_hands_on_with_everything_that_belongs_to_the_prompt() {
    let Some(broker) = Broker::start("") else { return };
    let mut watcher = Watcher::new(&broker).await;
    let mut a = Board::with(fleet(&broker, "a"), Limits::default());
    let mut b = Board::with(fleet(&broker, "b"), Limits::default());
    busy(&a, 1, 0);
    busy(&b, 0, 0);
    for (node, idle) in [("a", 0), ("b", 1)] {
        let is = |status: &Value| {
            status["fleet"]["peers"] == json!(1) && status["fleet"]["idle"] == json!(idle)
        };
        watcher.until(node, is).await;
    }
    // The broker deals them out in turn; all come to `b`, one after the other, whether they came there first or not.
    let mut me = Client::connect(broker.port, "me", &["me/r"], false).await;
    for data in [b"1", b"2", b"3", b"4"] {
        me.ask_back(
            "promptd/any/ask/lights",
            r#"{"prompt":"hi","timeout_ms":60000}"#,
            "me/r",
            data,
        )
        .await;
        let (submission, verdict) = b.submitted().await;
        assert_eq!(submission.identity.0, "mqtt:me");
        assert!(submission.timeout.is_some_and(|left| left <= Duration::from_secs(60)));
        assert_ne!(submission.request.constraint, Constraint::None, "the profile goes with it");
        answer(&verdict.accept(7), &["on"]);
        let message = me.next().await;
        assert_eq!(
            message.properties.as_ref().unwrap().correlation_data.as_deref(),
            Some(&data[..])
        );
        assert_eq!(json(&message)["node"], json!("b"));
        watcher.until("b", |status| status["fleet"]["idle"] == json!(1)).await;
    }
    withdrawn(&mut a).await;
    watcher.until("a", |status| status["fleet"]["handed"].as_u64() > Some(0)).await;
    // What was handed on stays, even where another board is free by then.
    busy(&a, 0, 0);
    busy(&b, 1, 0);
    watcher.until("a", |status| status["fleet"]["idle"] == json!(1)).await;
    watcher.until("b", |status| status["fleet"]["idle"] == json!(0)).await;
    me.ask("promptd/b/hop", "stay").await;
    b.answer(&["x"]).await;
    // And what was asked of one board is asked of no other.
    me.ask("promptd/b/ask", "stay").await;
    b.answer(&["x"]).await;
    assert!(a.idle(A_WHILE).await);
}

#[tokio::test]
async fn what_waits_goes_as_soon_as_another_board_is_free() {
    let Some(broker) = Broker::start("") else { return };
    let mut watcher = Watcher::new(&broker).await;
    let mut a = Board::with(fleet(&broker, "a"), Limits::default());
    let mut b = Board::with(fleet(&broker, "b"), Limits::default());
    busy(&a, 1, 0);
    busy(&b, 1, 0);
    watcher.together(&["a", "b"], 0).await;
    let mut me = Client::connect(broker.port, "me", &["promptd/+/answer/#"], false).await;
    // Nobody is free: each waits where it came.
    for id in ["1", "2"] {
        me.ask("promptd/any/ask", format!(r#"{{"id":"{id}","prompt":"hi"}}"#)).await;
    }
    let (first, second) = (a.accepted().await, b.accepted().await);
    assert!(!first.is_closed() && !second.is_closed());
    // One becomes free: the other's goes there.
    busy(&b, 0, 0);
    answer(&second, &["here"]);
    assert_eq!(json(&me.next().await)["node"], json!("b"));
    soon(first.closed()).await;
    b.answer(&["moved"]).await;
    let moved = me.next().await;
    assert_eq!(
        (json(&moved)["text"].clone(), json(&moved)["node"].clone()),
        (json!("moved"), json!("b"))
    );
    // One that has begun stays where it is.
    busy(&a, 1, 0);
    busy(&b, 1, 0);
    watcher.together(&["a", "b"], 0).await;
    for id in ["3", "4"] {
        me.ask("promptd/any/ask", format!(r#"{{"id":"{id}","prompt":"hi"}}"#)).await;
    }
    let (first, second) = (a.accepted().await, b.accepted().await);
    first.send(Event::Started { deaths: 0 });
    sleep(A_WHILE).await;
    busy(&b, 0, 0);
    answer(&second, &["x"]);
    assert_eq!(json(&me.next().await)["node"], json!("b"));
    assert!(b.idle(A_WHILE).await && !first.is_closed());
    // A cancel finds it wherever it is.
    me.ask("promptd/any/cancel", r#"{"all":true}"#).await;
    soon(first.closed()).await;
    assert_eq!(json(&me.next().await)["code"], json!("cancelled"));
}

#[tokio::test]
async fn a_board_that_drains_leaves_its_share_to_the_others() {
    let Some(broker) = Broker::start("") else { return };
    let mut watcher = Watcher::new(&broker).await;
    let mut a = Board::with(fleet(&broker, "a"), Limits::default());
    let mut b = Board::with(fleet(&broker, "b"), Limits::default());
    busy(&a, 0, 0);
    busy(&b, 0, 0);
    watcher.together(&["a", "b"], 1).await;
    a.script.set_status(|status| status.state = State::Draining);
    watcher.until("a", |status| status["state"] == json!("draining")).await;
    let me = Client::connect(broker.port, "me", &[], false).await;
    for _ in 0..4 {
        me.ask("promptd/any/ask", "hi").await;
        b.answer(&["x"]).await;
    }
    assert!(a.idle(A_WHILE).await);
}

#[tokio::test]
async fn a_board_that_hears_nothing_of_what_is_handed_on_is_not_relied_on() {
    // It says that it is free, but nobody is there.
    let Some(broker) = Broker::start("") else { return };
    let mut watcher = Watcher::new(&broker).await;
    let mut a = Board::with(fleet(&broker, "a"), Limits::default());
    busy(&a, 1, 0);
    let me = Client::connect(broker.port, "me", &[], false).await;
    let told =
        json!({"state": "ready", "fleet": {"group": "g", "idle": 1, "room": 1, "places": 5}});
    for (place, text) in [("status", told.to_string()), ("availability", "online".to_owned())] {
        let topic = format!("promptd/ghost/{place}");
        me.sender.publish(topic, QoS::AtLeastOnce, true, text).await.unwrap();
    }
    watcher.until("a", |status| status["fleet"]["peers"] == json!(1)).await;
    me.ask("promptd/any/ask", "hi").await;
    // mosquitto says that nobody listens there, and the prompt is taken in here.
    let (_, mut verdict) = a.submitted().await;
    soon(verdict.abandoned()).await;
    a.answer(&["x"]).await;
}

/// A board with a scheduler of its own, and an engine that needs a fixed time for each prompt.
struct Worker {
    stop: watch::Sender<bool>,
    scheduler: Option<Scheduler>,
    tasks: Vec<JoinHandle<()>>,
    keeper: Option<Keeper>,
    /// When the engine began with a prompt, and what was asked.
    begun: mpsc::Receiver<(Instant, String)>,
}

impl Worker {
    fn start(broker: &Broker, node: &str, service: Duration, dir: Option<&Path>) -> Worker {
        let (engine, port) = ScriptedEngine::new();
        let opened = dir.map(|dir| Record::open(dir, Pace::default()).unwrap());
        let (record, keeper) = opened.unzip();
        let queue = Queue { max_wait: Duration::from_secs(600), ..Queue::default() };
        let (scheduler, actor) = Scheduler::with_record(queue, port, record.as_ref());
        let (tell, begun) = mpsc::channel(1000);
        let engine = tokio::spawn(work(engine, service, tell));
        let facts = Facts {
            version: "1.2.3".to_owned(),
            policies: Policies::fixed(Profiles::default()),
            control: None,
            limits: Limits::default(),
            broker: watch::channel(wire::Broker::default()).0,
            record,
            board: promptd::board::Board::default(),
        };
        let (stop, stopped) = watch::channel(false);
        let (config, handle) = (fleet(broker, node), scheduler.clone());
        let door =
            tokio::spawn(async move { serve(config, handle, facts, stopped).await.unwrap() });
        Worker { stop, scheduler: Some(scheduler), tasks: vec![door, actor, engine], keeper, begun }
    }

    /// As `kill -9` does it: nobody says goodbye.
    async fn kill(mut self) {
        for task in &self.tasks {
            task.abort();
        }
        drop(self.scheduler.take());
        for task in self.tasks {
            let _ = task.await;
        }
        if let Some(keeper) = self.keeper {
            // Another record could not open what this one still holds.
            assert!(keeper.close(Duration::from_secs(10)).await);
        }
    }

    /// As SIGTERM does it.
    async fn stop(mut self) {
        let scheduler = self.scheduler.take().unwrap();
        scheduler.drain().await;
        let mut status = scheduler.status();
        soon(status.wait_for(promptd::scheduler::Status::is_idle)).await.unwrap();
        self.stop.send(true).unwrap();
        soon(&mut self.tasks[0]).await.unwrap();
    }
}

/// An engine of one slot that answers with the prompt's name after `service`.
async fn work(
    mut engine: ScriptedEngine,
    service: Duration,
    tell: mpsc::Sender<(Instant, String)>,
) {
    engine.start(model(1)).await;
    let mut running: VecDeque<(PromptId, Instant, String)> = VecDeque::new();
    loop {
        let due = running.front().map(|(_, due, _)| *due);
        let order = tokio::select! {
            order = engine.try_order() => match order {
                Some(order) => order,
                None => return,
            },
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                let Some((id, _, text)) = running.pop_front() else { continue };
                let timings = Timings { queue: Duration::ZERO, prefill: service / 5, decode: service * 4 / 5 };
                let usage = Usage { prompt: 4, cached: 0, completion: 5, forgotten: 0 };
                engine.event(id, delta(&text)).await;
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
            ToEngine::Start { id, request, .. } => {
                let text = format!("{:?}", request.input);
                tell.try_send((Instant::now(), text.clone())).unwrap();
                running.push_back((id, Instant::now() + service, text));
            }
            ToEngine::Cancel { id } => running.retain(|(other, ..)| *other != id),
            ToEngine::Load(_) | ToEngine::Pin(_) => {}
        }
    }
}

/// Asks so many prompts of whichever board is free, with ids from `first` on.
async fn ask(me: &Client, ids: std::ops::Range<u32>) {
    for id in ids {
        me.ask("promptd/any/ask", format!(r#"{{"id":"{id}","prompt":"p{id}"}}"#)).await;
    }
}

/// Collects answers until these ids have one; how many there were.
async fn answers(me: &mut Client, ids: std::ops::Range<u32>) -> usize {
    let mut open: BTreeSet<String> = ids.map(|id| id.to_string()).collect();
    let mut count = 0;
    let all = async {
        while !open.is_empty() {
            let message = me.next().await;
            let object = json(&message);
            assert_eq!(object["status"], json!("ok"), "{object}");
            let id = object["id"].as_str().unwrap();
            assert!(object["text"].as_str().unwrap().contains(&format!("p{id}\"")), "{object}");
            assert!(topic(&message).ends_with(&format!("/answer/{id}")));
            open.remove(id);
            count += 1;
        }
    };
    let done = timeout(Duration::from_secs(60), all).await;
    assert!(done.is_ok(), "no answer: {open:?}");
    count
}

#[tokio::test]
async fn three_boards_of_different_speed_are_all_at_work() {
    const SERVICES: [u64; 3] = [400, 800, 1600];
    const PROMPTS: u32 = 40;
    let Some(broker) = Broker::start("") else { return };
    let mut watcher = Watcher::new(&broker).await;
    let names = ["a", "b", "c"];
    let mut boards: Vec<Worker> = (names.iter().zip(SERVICES))
        .map(|(node, ms)| Worker::start(&broker, node, Duration::from_millis(ms), None))
        .collect();
    watcher.together(&names, 1).await;
    let mut me = Client::connect(broker.port, "me", &["promptd/+/answer/#"], false).await;
    let asked = Instant::now();
    ask(&me, 0..PROMPTS).await;
    assert_eq!(answers(&mut me, 0..PROMPTS).await, usize::try_from(PROMPTS).unwrap(), "each once");
    let mut starts: Vec<Vec<Instant>> = Vec::new();
    for board in &mut boards {
        let mut began = Vec::new();
        while let Ok((at, _)) = board.begun.try_recv() {
            began.push(at);
        }
        starts.push(began);
    }
    // Until the last prompt has begun somewhere, there is work for everybody.
    let last = starts.iter().flatten().max().copied().unwrap();
    let (mut done, mut possible) = (0.0, 0.0);
    for (began, ms) in starts.iter().zip(SERVICES) {
        let service = Duration::from_millis(ms);
        let mut free = asked;
        for at in began {
            let idle = at.saturating_duration_since(free);
            assert!(
                idle <= Duration::from_millis(1600),
                "a board was idle for {idle:?} while prompts waited"
            );
            free = *at + service;
        }
        let idle = last.saturating_duration_since(free);
        assert!(idle <= Duration::from_millis(1600), "a board was idle for {idle:?} at the end");
        // What it did until then, in prompts.
        let busy: Duration =
            began.iter().map(|at| (*at + service).min(last).saturating_duration_since(*at)).sum();
        done += busy.as_secs_f64() / service.as_secs_f64();
        possible += last.duration_since(asked).as_secs_f64() / service.as_secs_f64();
    }
    let share = done / possible;
    eprintln!(
        "{:?} prompts each, {:.2} of the sum of the boards' throughput in {:?}",
        starts.iter().map(Vec::len).collect::<Vec<_>>(),
        share,
        last.duration_since(asked)
    );
    // A machine that does other things is slower than a board that does nothing else.
    assert!(share >= 0.8, "{share}");
    for board in boards {
        board.kill().await;
    }
}

#[tokio::test]
async fn a_board_that_is_killed_loses_nothing() {
    let Some(broker) = Broker::start("") else { return };
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let mut watcher = Watcher::new(&broker).await;
    let names = ["a", "b", "c"];
    let service = Duration::from_millis(200);
    // `c` writes nothing down: what it has in work is the broker's until it is answered.
    let mut boards: Vec<Worker> = (0..3)
        .map(|at| Worker::start(&broker, names[at], service, (at < 2).then(|| dirs[at].path())))
        .collect();
    watcher.together(&names, 1).await;
    let mut me = Client::connect(broker.port, "me", &["promptd/+/answer/#"], false).await;
    ask(&me, 0..24).await;
    for board in &mut boards {
        soon(board.begun.recv()).await.unwrap();
    }
    // None of them has the last word; the others go on.
    boards.pop().unwrap().kill().await;
    ask(&me, 24..30).await;
    answers(&mut me, 0..30).await;
    // What a board had written down it answers when it is back; everything else is answered without it.
    ask(&me, 30..50).await;
    let mut killed = boards.pop().unwrap();
    while killed.begun.try_recv().is_ok() {}
    soon(killed.begun.recv()).await.unwrap();
    killed.kill().await;
    sleep(Duration::from_secs(2)).await;
    let again = Worker::start(&broker, "b", service, Some(dirs[1].path()));
    answers(&mut me, 30..50).await;
    // One that is stopped finishes what it has.
    watcher.together(&["a", "b"], 1).await;
    ask(&me, 50..60).await;
    again.stop().await;
    answers(&mut me, 50..60).await;
    for board in boards {
        board.kill().await;
    }
}
