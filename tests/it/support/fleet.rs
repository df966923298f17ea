//! Boards of a fleet with schedulers of their own and engines that need a fixed time for each prompt, who watches them, and
//! who asks them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::time::Duration;

use promptd::engine::frames::{CheckedPrompt, FromEngine, ToEngine};
use promptd::mqtt::{Config, Facts, FleetConfig, serve};
use promptd::record::{Keeper, Pace, Record};
use promptd::request::{Event, Finish, FinishReason, PromptId, Timings, Usage};
use promptd::scheduler::{Config as Queue, Scheduler};
use promptd::wire::{self, Limits, Policies, Profiles};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use super::broker::{Client, config, json, topic};
use super::door::{delta, soon};
use super::engine::ScriptedEngine;
use super::words::model;

/// A board of the group `g` at the broker on this port.
pub(crate) fn member(port: u16, node: &str) -> Config {
    let group = FleetConfig { group: "g".to_owned(), high_water: 0 };
    Config { node: node.to_owned(), fleet: Some(group), ..config(port) }
}

/// A watcher of how the boards stand.
pub(crate) struct Watcher {
    client: Client,
    pub(crate) status: BTreeMap<String, Value>,
}

impl Watcher {
    pub(crate) async fn new(port: u16) -> Watcher {
        let client = Client::connect(port, "watcher", &["promptd/+/status"], false).await;
        Watcher { client, status: BTreeMap::new() }
    }

    /// Waits until this holds of a board's status.
    pub(crate) async fn until(&mut self, node: &str, is: impl Fn(&Value) -> bool) {
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
    pub(crate) async fn together(&mut self, nodes: &[&str], idle: usize) {
        for node in nodes {
            let peers = nodes.len() - 1;
            let sees = |status: &Value| {
                status["fleet"]["peers"] == json!(peers) && status["fleet"]["idle"] == json!(idle)
            };
            self.until(node, sees).await;
        }
    }
}

/// A board with a scheduler of its own, and an engine that needs a fixed time for each prompt.
pub(crate) struct Worker {
    stop: watch::Sender<bool>,
    scheduler: Option<Scheduler>,
    tasks: Vec<JoinHandle<()>>,
    keeper: Option<Keeper>,
    /// When the engine began with a prompt, and what was asked.
    pub(crate) begun: mpsc::Receiver<(Instant, String)>,
}

impl Worker {
    pub(crate) fn start(config: Config, service: Duration, dir: Option<&Path>) -> Worker {
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
            versions: watch::channel(None).1,
        };
        let (stop, stopped) = watch::channel(false);
        let handle = scheduler.clone();
        let door =
            tokio::spawn(async move { serve(config, handle, facts, stopped).await.unwrap() });
        Worker { stop, scheduler: Some(scheduler), tasks: vec![door, actor, engine], keeper, begun }
    }

    /// How many prompts it has accepted and not answered.
    pub(crate) fn in_work(&self) -> usize {
        let status = self.scheduler.as_ref().map(Scheduler::status);
        status.map_or(0, |status| status.borrow().running + status.borrow().waiting)
    }

    /// When the engine began with each prompt since the last time.
    pub(crate) fn starts(&mut self) -> Vec<Instant> {
        std::iter::from_fn(|| self.begun.try_recv().ok()).map(|(at, _)| at).collect()
    }

    /// As `kill -9` does it: nobody says goodbye.
    pub(crate) async fn kill(mut self) {
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
    pub(crate) async fn stop(mut self) {
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
pub(crate) async fn ask(me: &Client, ids: std::ops::Range<u32>) {
    for id in ids {
        me.ask("promptd/any/ask", format!(r#"{{"id":"{id}","prompt":"p{id}"}}"#)).await;
    }
}

/// Collects answers until these ids have one; how many there were.
pub(crate) async fn answers(me: &mut Client, ids: std::ops::Range<u32>) -> usize {
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

/// How three boards shared their work.
#[derive(Debug)]
struct Share {
    /// What they did while prompts waited, of what they could have done.
    of_the_sum: f64,
    /// The longest that one of them was idle meanwhile.
    longest_idle: Duration,
}

/// Three boards, the first twice as quick as the second and that twice as quick as the third, and more prompts at once than they
/// can take: all of them are at work as long as any prompt waits.
///
/// Times are measured, and a machine that does something else for a second spoils them. So what holds is to be seen once in three
/// times: what the boards do wrong, they do each time. `make fleet` sets the quickest board's service time and looks once.
pub(crate) async fn three_boards_share(configs: [Config; 3], port: u16) {
    // So long that what a busy machine adds to each prompt is little beside it.
    const QUICKEST: Duration = Duration::from_secs(1);
    let told = std::env::var("PROMPTD_FLEET_MS").ok().and_then(|ms| ms.parse().ok());
    let quickest = told.map_or(QUICKEST, Duration::from_millis);
    let services = [quickest, quickest * 2, quickest * 4];
    let mut watcher = Watcher::new(port).await;
    let names = configs.each_ref().map(|config| config.node.clone());
    let mut boards: Vec<Worker> = (configs.into_iter().zip(services))
        .map(|(config, service)| Worker::start(config, service, None))
        .collect();
    watcher.together(&names.each_ref().map(String::as_str), 1).await;
    let mut me = Client::connect(port, "me", &["promptd/+/answer/#"], false).await;
    let is_good = |share: &Share| share.longest_idle <= quickest && share.of_the_sum >= 0.9;
    let mut seen = Vec::new();
    for round in 0..if told.is_some() { 1 } else { 3 } {
        seen.push(share_out(&mut me, round, &mut boards, services).await);
        if seen.last().is_some_and(is_good) {
            break;
        }
        watcher.together(&names.each_ref().map(String::as_str), 1).await;
    }
    assert!(seen.iter().any(is_good), "a board was idle while prompts waited: {seen:?}");
    for board in boards {
        board.kill().await;
    }
}

/// Asks for more than three boards can do at once, and tells how they shared it.
async fn share_out(
    me: &mut Client,
    round: u32,
    boards: &mut [Worker],
    services: [Duration; 3],
) -> Share {
    const PROMPTS: u32 = 32;
    let ids = round * PROMPTS..(round + 1) * PROMPTS;
    let asked = Instant::now();
    ask(me, ids.clone()).await;
    assert_eq!(answers(me, ids).await, usize::try_from(PROMPTS).unwrap(), "each once");
    let starts: Vec<_> = boards.iter_mut().map(Worker::starts).collect();
    // Until the last prompt has begun somewhere, there is work for everybody.
    let last = starts.iter().flatten().max().copied().unwrap();
    let (mut done, mut possible, mut longest_idle) = (0.0, 0.0, Duration::ZERO);
    for (began, service) in starts.iter().zip(services) {
        let mut free = asked;
        for at in began.iter().chain([&last]) {
            longest_idle = longest_idle.max(at.saturating_duration_since(free));
            free = *at + service;
        }
        // What it did until then, in prompts.
        let busy: Duration =
            began.iter().map(|at| (*at + service).min(last).saturating_duration_since(*at)).sum();
        done += busy.as_secs_f64() / service.as_secs_f64();
        possible += last.duration_since(asked).as_secs_f64() / service.as_secs_f64();
    }
    let of_the_sum = done / possible;
    println!(
        "answers of {services:?}: {:?} prompts each, {of_the_sum:.3} of the sum of the boards' throughput in {:?}; the longest \
         that a board idled while prompts waited: {longest_idle:?}",
        starts.iter().map(Vec::len).collect::<Vec<_>>(),
        last.duration_since(asked)
    );
    Share { of_the_sum, longest_idle }
}
