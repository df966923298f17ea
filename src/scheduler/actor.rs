//! The scheduler's task: moves commands, engine events and time into the [`Core`] and its actions out. Decides nothing.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::core::{Action, Core, Order};
use super::ticket::{self, Outlet, Returns};
use super::{Command, Status, Successor, Ticket};
use crate::engine::client::{EngineEvent, EnginePort};
use crate::engine::frames::{FromEngine, ToEngine};
use crate::record::Health;
use crate::request::{Event, PromptId, Refusal};
use crate::traffic::{Passage, Traffic};

/// How long the engine has to end after the last prompt. The supervisor kills it after two seconds, so this only
/// guards against a supervisor that is stuck itself.
const ENGINE_END: Duration = Duration::from_secs(5);

/// The task's state between two events.
#[derive(Debug)]
pub(super) struct Actor {
    core: Core,
    commands: mpsc::Receiver<Command>,
    port: EnginePort,
    /// Whether somebody behind the port starts engines.
    supervised: bool,
    /// The engine that takes the place of the one that is there as soon as nothing runs.
    successor: Option<Box<Successor>>,
    status: watch::Sender<Status>,
    returns: Arc<Returns>,
    /// How things are with the record, where there is one.
    record: Option<watch::Receiver<Health>>,
    /// Who waits for the outcome of a check, by its number. Bounded by the core: one for each check it remembers.
    askers: HashMap<u64, (Passage, oneshot::Sender<Result<Ticket, Refusal>>)>,
    /// Where events go, by prompt. One for each prompt the core remembers.
    outlets: HashMap<PromptId, (Passage, Outlet)>,
    traffic: Traffic,
    /// The way to the engine that is there.
    engine: Option<mpsc::Sender<ToEngine>>,
    /// What the engine has no room for yet. Waiting for room here would make everybody wait for the engine.
    /// Bounded, because the engine reads in order: all the prompts that stand in it have their checks in front,
    /// and the core has no more checks and prompts under way than the queue's limit and the slots allow.
    outbox: VecDeque<ToEngine>,
}

/// The task's ends of the channels to others.
#[derive(Debug)]
pub(super) struct Ends {
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) port: EnginePort,
    pub(super) status: watch::Sender<Status>,
}

/// What woke the task.
enum Woken {
    Command(Option<Command>),
    Engine(Option<EngineEvent>),
    Returned(Vec<PromptId>),
    Sent,
    Recorded,
    Deadline,
}

impl Actor {
    pub(super) fn new(
        core: Core,
        ends: Ends,
        record: Option<watch::Receiver<Health>>,
        traffic: Traffic,
    ) -> Self {
        let Ends { commands, port, status } = ends;
        Actor {
            core,
            commands,
            port,
            supervised: true,
            successor: None,
            status,
            returns: Arc::default(),
            record,
            askers: HashMap::new(),
            outlets: HashMap::new(),
            traffic,
            engine: None,
            outbox: VecDeque::new(),
        }
    }

    /// Runs until all handles are dropped and the accepted prompts have ended; then ends the engine.
    pub(super) async fn run(mut self) {
        let mut commanded = true;
        self.look_at_record();
        while commanded || !self.core.is_idle() {
            let woken = self.wait(commanded).await;
            let now = Instant::now().into_std();
            match woken {
                Woken::Command(Some(command)) => self.command(command, now),
                Woken::Command(None) => {
                    commanded = false;
                    self.core.drain();
                }
                Woken::Engine(Some(event)) => {
                    match &event {
                        EngineEvent::Started { to, .. } => self.engine = Some(to.clone()),
                        // What was meant for the dead engine must not reach the next one.
                        EngineEvent::Died { .. } | EngineEvent::Ended => self.forget_engine(),
                        EngineEvent::Frame(_) => {}
                    }
                    self.core.engine(event, now);
                }
                Woken::Engine(None) => {
                    self.supervised = false;
                    self.forget_engine();
                    self.core.engine_gone(now);
                }
                Woken::Returned(ids) => ids.into_iter().for_each(|id| self.core.cancel(id, now)),
                Woken::Sent => {}
                Woken::Recorded => self.look_at_record(),
                Woken::Deadline => self.core.tick(now),
            }
            self.act();
            self.traffic.sum_up(now);
        }
        self.end_engine().await;
    }

    async fn wait(&mut self, commanded: bool) -> Woken {
        let deadline = self.core.next_deadline().map(Instant::from_std);
        let sending = self.engine.as_ref().filter(|_| !self.outbox.is_empty());
        tokio::select! {
            // The engine first: a slot that is free must not stay so behind a thousand refusals. Commands last: there may be
            // more of them than can be done, which is not so of anything else.
            biased;
            event = self.port.events.recv(), if self.supervised => Woken::Engine(event),
            ids = self.returns.taken() => Woken::Returned(ids),
            room = reserve(sending), if sending.is_some() => {
                match (room, self.outbox.pop_front()) {
                    (Some(room), Some(message)) => room.send(message),
                    // The engine is dead, as its supervisor is about to say.
                    _ => self.outbox.clear(),
                }
                Woken::Sent
            }
            true = changed(self.record.as_mut()), if self.record.is_some() => Woken::Recorded,
            () = sleep_until(deadline), if deadline.is_some() => Woken::Deadline,
            command = self.commands.recv(), if commanded => Woken::Command(command),
        }
    }

    fn look_at_record(&mut self) {
        if let Some(record) = &mut self.record {
            // How far the disk is concerns those who wait for it; in the status it would be news all the time.
            let health = Health { safe: 0, ..record.borrow_and_update().clone() };
            self.core.record(health);
        }
    }

    fn command(&mut self, command: Command, now: std::time::Instant) {
        match command {
            Command::Submit { submission, reply } => {
                let passage = self.traffic.begin(&submission);
                let check = self.core.submit(*submission, now);
                self.askers.insert(check, (passage, reply));
            }
            Command::Cancel { id } => self.core.cancel(id, now),
            Command::Pulse { reply } => {
                let _ = reply.send(self.port.overdue(Instant::from_std(now)));
            }
            Command::CancelAll => self.core.cancel_all(now),
            Command::Drain => self.core.drain(),
            Command::EndSession { client, name, reply } => {
                let _ = reply.send(self.core.end_session(&client, &name));
            }
            Command::Load { reply } => {
                self.core.load(now);
                self.act();
                let _ = reply.send(());
            }
            Command::Unload { reply } => {
                // The order goes out before the answer, so that whoever has the answer sees its effect.
                let unloaded = self.core.unload(now);
                self.act();
                let _ = reply.send(unloaded);
            }
            Command::Sense(reading) => self.core.sense(&reading, now),
            Command::ConfigurationIsWrong { message } => self.core.configuration_is_wrong(message),
            Command::Configure { config, load, retry } => {
                self.core.configure(config, load, retry, now);
            }
            Command::LoadsBeside { next, failed } => self.core.loads_beside(next, failed),
            Command::TakeOver { config, successor } => {
                self.successor = Some(successor);
                self.core.take_over(config, now);
            }
        }
    }

    fn act(&mut self) {
        let mut actions = VecDeque::from(self.core.take_actions());
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Send(message) => {
                    self.send(message);
                }
                Action::Engine(order) => {
                    self.order(order);
                    actions.extend(self.core.take_actions());
                }
                Action::Accept { check, id, seed, checked, session } => {
                    let (outlet, ticket) = ticket::accept(id, seed, checked, &self.returns);
                    let ticket = ticket.in_session(session);
                    // The core decides about each check once, so the asker is there.
                    let Some((mut passage, asker)) = self.askers.remove(&check) else { continue };
                    passage.accepted(id);
                    self.outlets.insert(id, (passage, outlet));
                    // Where the asker has gone, the ticket is dropped here, and its drop cancels the prompt.
                    let _ = asker.send(Ok(ticket));
                }
                Action::Refuse { check, refusal } => {
                    let Some((passage, asker)) = self.askers.remove(&check) else { continue };
                    passage.refused(&refusal);
                    let _ = asker.send(Err(refusal));
                }
                Action::Deliver { id, event } => self.deliver(id, event),
            }
        }
        self.traffic.present(self.core.gauges());
        let status = self.core.status();
        self.status.send_if_modified(|old| {
            let changed = *old != status;
            *old = status;
            changed
        });
    }

    fn order(&mut self, order: Order) {
        // One that waits for its turn is no longer wanted, whatever else is.
        let successor = self.successor.take();
        match order {
            Order::Load => self.port.load(),
            Order::Unload => self.port.unload(),
            Order::Replace(load) => self.port.replace(load.map(|load| *load)),
            Order::TakeOver => {
                if let Some(successor) = successor {
                    self.succeed(*successor);
                }
            }
        }
    }

    /// Puts an engine in the place of the other, which has nothing to do and ends.
    fn succeed(&mut self, successor: Successor) {
        let Successor { port, pid, to, model } = successor;
        tracing::info!(pid, model = model.name, "the engine that was loaded beside takes over");
        let old = std::mem::replace(&mut self.port, port);
        tokio::spawn(old.end());
        self.supervised = true;
        self.forget_engine();
        self.engine = Some(to.clone());
        let now = Instant::now().into_std();
        for event in [
            EngineEvent::Ended,
            EngineEvent::Started { pid, to },
            EngineEvent::Frame(FromEngine::Ready(model)),
        ] {
            self.core.engine(event, now);
        }
    }

    fn deliver(&mut self, id: PromptId, event: Event) {
        if event.is_final() {
            if let Some((passage, outlet)) = self.outlets.remove(&id) {
                passage.end(&event);
                outlet.deliver(event);
            }
        } else if let Some((passage, outlet)) = self.outlets.get_mut(&id) {
            passage.event(&event);
            outlet.deliver(event);
        }
    }

    fn send(&mut self, message: ToEngine) {
        // In order: nothing overtakes what waits already. Without an engine the core sends nothing.
        let Some(engine) = &self.engine else { return };
        if !self.outbox.is_empty() {
            return self.outbox.push_back(message);
        }
        if let Err(mpsc::error::TrySendError::Full(message)) = engine.try_send(message) {
            self.outbox.push_back(message);
        }
    }

    fn forget_engine(&mut self) {
        self.engine = None;
        self.outbox.clear();
    }

    async fn end_engine(self) {
        if tokio::time::timeout(ENGINE_END, self.port.end()).await.is_err() {
            tracing::warn!("the engine's supervisor did not end within {} s", ENGINE_END.as_secs());
        }
    }
}

/// Waits for a change; `false` when there will be none any more.
async fn changed(health: Option<&mut watch::Receiver<Health>>) -> bool {
    match health {
        Some(health) => health.changed().await.is_ok(),
        None => false,
    }
}

async fn reserve(engine: Option<&mpsc::Sender<ToEngine>>) -> Option<mpsc::Permit<'_, ToEngine>> {
    engine?.reserve().await.ok()
}

async fn sleep_until(deadline: Option<Instant>) {
    if let Some(deadline) = deadline {
        tokio::time::sleep_until(deadline).await;
    }
}
