//! An engine that moves only when the test says so: the other ends of the scheduler's port.

use promptd::engine::client::{EngineEvent, EnginePort, Wanted};
use promptd::engine::frames::{CheckedPrompt, FromEngine, ModelInfo, ToEngine};
use promptd::engine::{Death, DeathReport, Phase};
use promptd::request::{Event, PromptId, Request};
use std::collections::VecDeque;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

use super::words;

/// The engine and its supervisor, in the test's hands.
pub(crate) struct ScriptedEngine {
    events: mpsc::Sender<EngineEvent>,
    orders: Option<mpsc::Receiver<ToEngine>>,
    /// Checks that were not answered yet.
    asked: Vec<u64>,
    /// Starts that wait for their check, and orders that waited for nothing more.
    claims: Vec<(u64, ToEngine)>,
    next: VecDeque<ToEngine>,
    pid: u32,
    /// What the scheduler wants of the supervisor.
    pub(crate) wanted: watch::Receiver<Wanted>,
}

/// A prompt that the scheduler started.
#[derive(Debug, PartialEq)]
pub(crate) struct Started {
    pub(crate) id: PromptId,
    pub(crate) request: Request,
    pub(crate) seed: u64,
    pub(crate) resume: Vec<u32>,
}

impl ScriptedEngine {
    /// No engine runs yet.
    pub(crate) fn new() -> (ScriptedEngine, EnginePort) {
        let (events, received) = mpsc::channel(1);
        let (port, wanted) = EnginePort::new(received, words::load());
        let (asked, claims, next) = (Vec::new(), Vec::new(), VecDeque::new());
        (ScriptedEngine { events, orders: None, asked, claims, next, pid: 100, wanted }, port)
    }

    /// An engine starts, and its model is ready at once.
    pub(crate) async fn start(&mut self, info: ModelInfo) {
        // No more room than the real one has at least: the scheduler must not depend on room.
        let (to, orders) = mpsc::channel(1);
        self.pid += 1;
        self.orders = Some(orders);
        self.asked.clear();
        self.claims.clear();
        self.next.clear();
        self.emit(EngineEvent::Started { pid: self.pid, to }).await;
        self.say(FromEngine::Ready(info)).await;
    }

    /// The engine dies of a signal while it serves.
    pub(crate) async fn die(&mut self) {
        self.orders = None;
        let report = DeathReport::new(Death::Killed(9), Phase::Ready, &words::load());
        self.emit(EngineEvent::Died { report, restart_in: Some(Duration::from_millis(100)) }).await;
    }

    /// The engine ends because the scheduler wants that.
    pub(crate) async fn end(&mut self) {
        self.orders = None;
        self.emit(EngineEvent::Ended).await;
    }

    /// Sends a frame.
    pub(crate) async fn say(&mut self, frame: FromEngine) {
        if let FromEngine::Checked { check, result } = &frame {
            self.asked.retain(|other| other != check);
            let its = self.claims.extract_if(.., |(of, _)| of == check).map(|(_, start)| start);
            let its: Vec<ToEngine> = its.collect();
            self.next.extend(its.into_iter().filter(|_| result.is_ok()));
        }
        self.emit(EngineEvent::Frame(frame)).await;
    }

    /// Sends an event of a prompt.
    pub(crate) async fn event(&mut self, id: PromptId, event: Event) {
        self.say(FromEngine::Event { id, event }).await;
    }

    /// The next order.
    pub(crate) async fn order(&mut self) -> ToEngine {
        assert!(self.orders.is_some(), "an engine runs");
        let wait = tokio::time::timeout(Duration::from_secs(3600), self.try_order());
        wait.await.expect("an order comes").expect("the scheduler is there")
    }

    /// The next order; `None` when the scheduler is gone. As with the real one, a start that comes with its check is none before
    /// the check is answered, and none at all where it is refused.
    pub(crate) async fn try_order(&mut self) -> Option<ToEngine> {
        loop {
            if let Some(order) = self.next.pop_front() {
                return Some(order);
            }
            let order = self.orders.as_mut()?.recv().await?;
            match &order {
                ToEngine::Check { check, .. } => self.asked.push(*check),
                ToEngine::Start { check: Some(check), .. } if self.asked.contains(check) => {
                    self.claims.push((*check, order));
                    continue;
                }
                ToEngine::Cancel { id: cancelled } => {
                    let is_its = |claim: &mut (u64, ToEngine)| matches!(&claim.1, ToEngine::Start { id, .. } if id == cancelled);
                    if self.claims.extract_if(.., is_its).count() > 0 {
                        continue;
                    }
                }
                _ => {}
            }
            return Some(order);
        }
    }

    /// Whether no order waits, after everybody else had time to act.
    pub(crate) async fn is_left_alone(&mut self) -> bool {
        assert!(self.orders.is_some(), "an engine runs");
        tokio::time::timeout(Duration::from_millis(1), self.try_order()).await.is_err()
    }

    /// Takes a check and finds the prompt good.
    pub(crate) async fn approve(&mut self) {
        match self.order().await {
            ToEngine::Check { check, .. } => {
                let result = Ok(CheckedPrompt { prompt_tokens: 4, max_tokens: 100, calls: None });
                self.say(FromEngine::Checked { check, result }).await;
            }
            other => panic!("not a check: {other:?}"),
        }
    }

    /// Takes a start.
    pub(crate) async fn started(&mut self) -> Started {
        match self.order().await {
            ToEngine::Start { id, request, seed, resume, .. } => {
                Started { id, request, seed, resume }
            }
            other => panic!("not a start: {other:?}"),
        }
    }

    /// Takes a cancel.
    pub(crate) async fn cancelled(&mut self) -> PromptId {
        match self.order().await {
            ToEngine::Cancel { id } => id,
            other => panic!("not a cancel: {other:?}"),
        }
    }

    /// Waits until the scheduler has closed the port.
    pub(crate) async fn dismissed(&mut self) {
        self.events.closed().await;
    }

    async fn emit(&mut self, event: EngineEvent) {
        self.events.send(event).await.expect("the scheduler is there");
    }
}
