//! The one task that owns the door's state: connection, outbox, ledger and prompts. It never waits for anything but
//! the next thing that happens.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tracing::{debug, error, warn};

use super::admin::Operated;
use super::client::{CONNECT_TIMEOUT, Client, Options, Purpose, SESSION_EXPIRY_SECONDS, Welcome};
use super::denied::Denials;
use super::fleet::{Fleet, LOAD_EVERY, Passable};
use super::health::Pulse;
use super::ledger::Ledger;
use super::link::{self, Event};
use super::message::{Delivery, Publication};
use super::outbox::{Next, Outbox, Owner};
use super::outcome::Unsaid;
use super::packet::Version;
use super::prompt::Numbered;
use super::reply::{self, Address, Allowed, Form};
use super::seldom::Seldom;
use super::shelf::{News, Shelf};
use super::states::STATUS_EVERY;
use super::topic::Topics;
use super::{Config, ConfigError, Facts};
use crate::defect::Defect;
use crate::request::{Code, Identity, Refusal};
use crate::scheduler::{InSession, Scheduler, Status};

/// Events between the connection and the door. Few, because a message may have a megabyte.
const EVENTS: usize = 16;
/// Reports between the prompts and the door; a prompt waits when it is full.
const REPORTS: usize = 64;
/// How long a refusal is worth delivering, and an answer that is given a second time.
pub(super) const REFUSAL_WANTED: Duration = Duration::from_mins(1);
/// When a message is sent that had waited for too long and then found no room on the connection.
const SAID_AGAIN: Duration = Duration::from_secs(1);
/// How often old answers are forgotten while nothing else happens.
const TIDY_EVERY: Duration = Duration::from_mins(1);

/// Runs the door; returns after the goodbye.
pub(crate) async fn run(
    config: &Config,
    scheduler: Scheduler,
    facts: Facts,
    mut shutdown: watch::Receiver<bool>,
) -> Result<(), ConfigError> {
    let mut door = Door::new(config, scheduler, facts)?;
    let options = Options {
        brokers: config.brokers.clone(),
        credentials: config.credentials(),
        renewals: config.renewals.clone(),
        state: door.facts.broker.clone(),
        client_id: config.client_id(),
        keep_alive: config.keep_alive,
        payload_bytes: door.facts.limits.payload_bytes,
        will_topic: Some(door.topics.availability()),
        session_seconds: SESSION_EXPIRY_SECONDS,
        first_epoch: 1,
    };
    door.fleet = config
        .fleet
        .clone()
        .map(|fleet| Fleet::new(fleet, &config.base_topic, &config.node, options.clone()));
    let mut policies = door.facts.policies.clone();
    // Before the broker can send them again.
    let left = door.shelf.take();
    door.restore(left, Instant::now());
    let (sender, mut events) = mpsc::channel(EVENTS);
    let link = tokio::spawn(link::run(options, sender, chance));
    loop {
        let wake = tokio::time::Instant::from_std(door.wake());
        // What comes may have to be refused at once. A broker that takes nothing is not listened to either.
        let crowded = door.crowded();
        tokio::select! {
            // An error means that the sender is gone: whoever started the door is gone too.
            _ = shutdown.wait_for(|stop| *stop) => break,
            () = room(crowded.as_ref()), if crowded.is_some() => {}
            Some(event) = events.recv(), if crowded.is_none() => door.event(event, Instant::now()),
            Some((line, event)) = Fleet::next(&mut door.fleet), if crowded.is_none() => door.fleet_event(line, event, Instant::now()),
            Some((number, report)) = door.reports.1.recv() => door.report(number, report, Instant::now()),
            Some(ended) = door.tasks.join_next_with_id(), if !door.tasks.is_empty() => door.task_ended(ended, Instant::now()),
            Ok(()) = door.status.changed() => door.status_dirty = true,
            Ok(()) = door.facts.versions.changed() => door.status_dirty = true,
            () = policies.changed() => door.policy_changed(),
            news = door.shelf.news() => door.recorded(news, Instant::now()),
            () = tokio::time::sleep_until(wake) => {}
        }
        door.upkeep(Instant::now());
    }
    door.goodbye(&mut events).await;
    end(link, events).await;
    Ok(())
}

/// Waits until a connection takes something.
async fn room(crowded: Option<&Client>) {
    if let Some(client) = crowded {
        client.room().await;
    }
}

/// Lets the connection end by itself, but not for long.
async fn end(link: JoinHandle<()>, events: mpsc::Receiver<Event>) {
    let abort = link.abort_handle();
    let mut events = events;
    let drained = async {
        while events.recv().await.is_some() {}
        let _ = link.await;
    };
    if tokio::time::timeout(Duration::from_secs(1), drained).await.is_err() {
        abort.abort();
    }
}

/// A number from 0 to 1. Where the system has no randomness to give, the wait is the longest one.
pub(super) fn chance() -> f64 {
    getrandom::u32().map_or(1.0, |number| f64::from(number) / f64::from(u32::MAX))
}

/// A connection that is up.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) epoch: u64,
    pub(super) client: Client,
    pub(super) version: Version,
    pub(super) max_packet: usize,
    pub(super) subscribed: bool,
    subscribe_again: Option<Instant>,
}

/// What an asker wants besides the answer's text.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) to: Address,
    pub(super) form: Form,
    pub(super) id: Option<String>,
    pub(super) is_json: bool,
    /// Whether the answer tells what the model thought of its tokens.
    pub(super) logprobs: bool,
    pub(super) stream: bool,
    /// After this nobody wants the answer.
    pub(super) until: Option<Instant>,
    /// How many services have taken it up.
    pub(super) attempt: u32,
}

/// What the door knows of a prompt in work.
#[derive(Debug)]
pub(super) struct Prompt {
    pub(super) wanted: Wanted,
    /// Whose it is.
    pub(super) identity: Identity,
    /// The conversation that it continues.
    pub(super) session: Option<InSession>,
    /// The level in the topics of its stream: the asker's id, or promptd's number once there is one.
    pub(super) level: Option<String>,
    pub(super) seq: u64,
    pub(super) task: AbortHandle,
    /// Dropping it cancels the prompt.
    pub(super) stop: Option<oneshot::Sender<()>>,
    /// What another board needs of it; gone when it has begun.
    pub(super) shared: Option<Box<Passable>>,
    /// The board that it goes to as soon as it is out of the queue.
    pub(super) handing: Option<String>,
}

/// What Home Assistant is told.
#[derive(Debug)]
pub(super) struct Discovery {
    /// Where it looks for devices, if it is told at all.
    pub(super) prefix: Option<String>,
    /// What it was told last on this connection.
    pub(super) last: Option<String>,
}

pub(super) struct Door {
    pub(super) topics: Topics,
    pub(super) node: String,
    pub(super) allowed: Allowed,
    pub(super) facts: Facts,
    pub(super) scheduler: Scheduler,
    pub(super) status: watch::Receiver<Status>,
    pub(super) ledger: Ledger,
    pub(super) outbox: Outbox,
    pub(super) shelf: Shelf,
    /// Bounded by the prompts in work.
    pub(super) unsaid: Vec<Unsaid>,
    pub(super) connection: Option<Connection>,
    pub(super) prompts: BTreeMap<u64, Prompt>,
    pub(super) tasks: JoinSet<()>,
    /// Operators' requests in work.
    pub(super) operations: BTreeMap<u64, Operated>,
    /// Topics that the broker was asked for on this connection because profiles name them.
    pub(super) followed: BTreeSet<String>,
    pub(super) reports: (mpsc::Sender<Numbered>, mpsc::Receiver<Numbered>),
    pub(super) leaving: bool,
    pub(super) said_retained: Seldom,
    pub(super) denials: Denials,
    said_large: Seldom,
    pub(super) acks: VecDeque<Delivery>,
    pub(super) status_dirty: bool,
    pub(super) status_last: Option<(Instant, String)>,
    pub(super) info_last: Option<String>,
    pub(super) discovery: Discovery,
    pub(super) fleet: Option<Fleet>,
    pub(super) pulse: Pulse,
    tidied: Instant,
}

impl Door {
    fn new(config: &Config, scheduler: Scheduler, facts: Facts) -> Result<Door, ConfigError> {
        Ok(Door {
            topics: Topics::new(&config.base_topic, &config.node)?,
            node: config.node.clone(),
            allowed: Allowed {
                prefixes: config.reply_prefixes.clone(),
                restrict_response_topics: config.restrict_response_topics,
            },
            status: scheduler.status(),
            scheduler,
            ledger: Ledger::default(),
            outbox: Outbox::default(),
            shelf: Shelf::new(facts.record.clone()),
            unsaid: Vec::new(),
            facts,
            connection: None,
            prompts: BTreeMap::new(),
            tasks: JoinSet::new(),
            operations: BTreeMap::new(),
            followed: BTreeSet::new(),
            reports: mpsc::channel(REPORTS),
            leaving: false,
            said_retained: Seldom::default(),
            denials: Denials::default(),
            said_large: Seldom::default(),
            acks: VecDeque::new(),
            status_dirty: false,
            status_last: None,
            info_last: None,
            discovery: Discovery { prefix: config.discovery_prefix.clone(), last: None },
            fleet: None,
            pulse: Pulse::new(Instant::now()),
            tidied: Instant::now(),
        })
    }

    /// The connection, where it takes nothing at the moment.
    fn crowded(&self) -> Option<Client> {
        let client = self.connection.as_ref().map(|connection| &connection.client);
        client.filter(|client| !client.has_room()).cloned()
    }

    /// When something has to be done that nothing else brings about.
    fn wake(&self) -> Instant {
        let status = self.status_last.as_ref().filter(|_| self.status_dirty && self.is_listening());
        let status = status.map(|(last, _)| *last + self.status_every());
        let again = self.connection.as_ref().and_then(|connection| connection.subscribe_again);
        // A full queue of the library empties by itself; nothing tells when.
        let retry = (!self.acks.is_empty()).then(|| Instant::now() + Duration::from_millis(100));
        let tidy = Some(self.tidied + TIDY_EVERY);
        let health = self.pulse.due().filter(|_| self.is_listening());
        let fleet = self.fleet.as_ref().and_then(Fleet::wake);
        let denied = self.denials.due().filter(|_| self.is_listening());
        [fleet, health, status, again, denied, retry, tidy, self.outbox.next_expiry()]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(self.tidied)
    }

    /// What is done after everything that happened.
    pub(super) fn upkeep(&mut self, now: Instant) {
        self.expire(now);
        if self.tidied + TIDY_EVERY <= now {
            self.tidied = now;
            self.ledger.forget(now);
            self.forget();
        }
        if let Some(connection) = &mut self.connection
            && connection.subscribe_again.is_some_and(|at| at <= now)
        {
            connection.subscribe_again = None;
            connection.client.abandon();
        }
        self.fleet_upkeep(now);
        self.try_denied_again(now);
        if self.is_listening() {
            if self.status_dirty {
                self.publish_status(now);
            }
            self.publish_health(now);
        }
        self.send_waiting(now);
        if self.acknowledge_waiting(now) {
            self.send_waiting(now);
        }
    }

    /// Gives up what has waited for the broker for too long.
    fn expire(&mut self, now: Instant) {
        for (owner, message) in self.outbox.expire(now) {
            if self.said_once(&owner, &message, now) {
                continue;
            }
            debug!(
                topic = message.topic,
                "an answer waited for the broker until nobody wanted it any more"
            );
            self.done(&owner, now);
        }
    }

    /// Sends a message whose prompt is not accepted without waiting for the broker's word (`QoS` 0), so that no prompt is
    /// acknowledged whose asker was told nothing; a broker that is slow to acknowledge may still read. Whether that was done, or
    /// is tried again because the connection takes nothing now.
    fn said_once(&mut self, owner: &Owner, message: &Publication, now: Instant) -> bool {
        let (Owner::Answer(number), Some(connection)) = (owner, &self.connection) else {
            return false;
        };
        if self.ledger.is_accepted(*number) || message.weight() > connection.max_packet {
            return false;
        }
        if connection.client.tell(message).is_err() {
            self.outbox.push(owner.clone(), message.clone(), Some(now + SAID_AGAIN));
            return true;
        }
        // The acknowledgement of the prompt goes behind it on the same connection.
        self.done(owner, now);
        true
    }

    /// The status is published at most this often.
    pub(super) fn status_every(&self) -> Duration {
        if self.load_changed() { LOAD_EVERY } else { STATUS_EVERY }
    }

    pub(super) fn is_listening(&self) -> bool {
        self.connection.as_ref().is_some_and(|connection| connection.subscribed)
    }

    /// Something happened on the connection.
    pub(super) fn event(&mut self, event: Event, now: Instant) {
        match event {
            Event::Up { epoch, client, welcome } => self.up(epoch, client, &welcome),
            Event::Subscribed(answer) => {
                self.heard_of(&answer, now);
                match answer.purpose {
                    Purpose::Prompts => self.subscribed(&answer.result(), now),
                    Purpose::Besides => {}
                    Purpose::Fleet | Purpose::Hops => self.hears_fleet(answer.result().is_ok()),
                }
            }
            Event::Message(message) => self.message(&message, now),
            Event::Useless { packet } => {
                let epoch = self.connection.as_ref().map(|connection| connection.epoch);
                if let Some(epoch) = epoch.filter(|_| packet > 0) {
                    self.acks.push_back(Delivery { epoch, packet });
                }
            }
            Event::Sent { packet } => self.outbox.sent(packet),
            Event::Acknowledged { packet, refused, unheard } => {
                let Some(done) = self.outbox.acknowledged(packet) else { return };
                if let Owner::Handed(number) = done.owner {
                    let why_not = refused.or(unheard.then(|| "nobody listens there".to_owned()));
                    return self.handed(number, why_not.as_deref(), now);
                }
                self.heard_back(&done.topic, refused, now);
                self.done(&done.owner, now);
            }
            Event::Down => {
                // The broker sends what was not acknowledged again, under new numbers.
                if let Some(connection) = self.connection.take() {
                    self.forget_acks(connection.epoch);
                }
                self.outbox.disconnected();
                self.fleet_down();
            }
        }
    }

    fn up(&mut self, epoch: u64, client: Client, welcome: &Welcome) {
        // The queue of a new connection is empty, so the subscription has room.
        let deaf = Defect::StayDeaf.is_here() && epoch > 1;
        if !deaf && client.subscribe(&self.topics.subscriptions(), Purpose::Prompts).is_err() {
            error!("a new connection took no subscription; this is a bug");
        }
        self.outbox.connected(welcome.window, welcome.max_packet);
        self.pulse.connected(welcome.session);
        let (max_packet, version) = (welcome.max_packet, welcome.version);
        // A broker that never answers the subscription is as deaf as one that refuses it.
        let subscribe_again = Some(Instant::now() + CONNECT_TIMEOUT);
        self.connection = Some(Connection {
            epoch,
            client,
            version,
            max_packet,
            subscribed: false,
            subscribe_again,
        });
    }

    fn subscribed(&mut self, result: &Result<(), String>, now: Instant) {
        let Some(connection) = &mut self.connection else { return };
        match result {
            Ok(()) => {
                connection.subscribed = true;
                connection.subscribe_again = None;
                // In this order: whoever sees `online` finds the rest.
                self.tell_states_anew(now);
                self.listen_besides();
                self.listen_to_fleet();
            }
            // Without prompts there is nothing to do here: a new connection asks for them again.
            Err(_) => connection.subscribe_again = Some(now + self.denials.next_wait()),
        }
    }

    /// A message of the outbox is with the broker, or never will be.
    pub(super) fn done(&mut self, owner: &Owner, now: Instant) {
        if let Owner::Handed(number) = owner {
            self.handed(*number, Some("the broker was away for too long"), now);
        }
        if let Owner::Answer(number) = owner {
            let deliveries = self.ledger.delivered(*number, now);
            self.acks.extend(deliveries);
            if !self.ledger.is_open(*number) {
                self.shelf.delivered(*number);
            }
            self.forget();
        }
    }

    /// Acknowledges a message that needs no answer.
    pub(super) fn acknowledge(&mut self, delivery: Option<Delivery>) {
        self.acks.extend(delivery);
    }

    /// Acknowledges messages that are done with.
    pub(super) fn acks(&mut self, deliveries: Vec<Delivery>) {
        self.acks.extend(deliveries);
    }

    /// A connection is gone, and with it what its numbers mean.
    pub(super) fn forget_acks(&mut self, epoch: u64) {
        self.acks.retain(|ack| ack.epoch != epoch);
        self.fleet.iter_mut().for_each(|fleet| fleet.forget_words(epoch));
    }

    /// What is not kept any more is not recorded any more.
    fn forget(&mut self) {
        for number in self.ledger.take_forgotten() {
            self.shelf.forget(number);
        }
    }

    /// Something happened to the record.
    fn recorded(&mut self, news: News, now: Instant) {
        match news {
            News::Safe => {
                for number in self.shelf.take_safe() {
                    let deliveries = self.ledger.safe(number);
                    self.acks.extend(deliveries);
                }
                self.say();
            }
            News::Found(items) => self.restore(items, now),
        }
    }

    /// Acknowledges what is done with. Returns whether another board is to be told of it.
    fn acknowledge_waiting(&mut self, now: Instant) -> bool {
        let mut says = false;
        while let Some(ack) = self.acks.front().copied() {
            let own = self.connection.as_ref().filter(|own| own.epoch == ack.epoch);
            let fleet = self.fleet.as_ref().and_then(|fleet| fleet.client(ack.epoch));
            // What came on a connection that is gone comes again.
            let client = own.map(|own| &own.client).or(fleet);
            if client.is_some_and(|client| client.acknowledge(ack.packet).is_err()) {
                break;
            }
            let is_up = client.is_some();
            self.acks.pop_front();
            self.fleet.iter_mut().for_each(|fleet| fleet.acknowledged(ack));
            says |= is_up && self.say_safe(ack, now);
        }
        says
    }

    fn send_waiting(&mut self, now: Instant) {
        let Some(client) = self.connection.as_ref().map(|connection| connection.client.clone())
        else {
            return;
        };
        while let Some(next) = self.outbox.next() {
            match next {
                Next::Send(publication, until) => {
                    let expiry = until.map(|until| until.saturating_duration_since(now));
                    if client.publish(publication, expiry).is_err() {
                        return;
                    }
                    self.outbox.handed();
                }
                Next::TooLarge(owner, publication) => self.too_large(&owner, publication, now),
            }
        }
    }

    /// Publishing it would end the connection, and again on the next one: the asker is told instead.
    fn too_large(&mut self, owner: &Owner, publication: Publication, now: Instant) {
        let (have, most) =
            (publication.weight(), self.connection.as_ref().map_or(0, |c| c.max_packet));
        if let Some(others) = self.said_large.now(now) {
            warn!(
                others,
                topic = publication.topic,
                bytes = have,
                limit = most,
                "a message is larger than the broker takes"
            );
        }
        if let Owner::Handed(number) = owner {
            return self.handed(*number, Some("it is larger than the broker takes"), now);
        }
        let Owner::Answer(number) = owner else { return };
        let message =
            "the answer is larger than the broker takes; ask for it in parts with `max_bytes`";
        let number_of = |bytes| u64::try_from(bytes).unwrap_or(u64::MAX);
        let refusal = Refusal::new(Code::PayloadTooLarge, message)
            .with_limit(number_of(most), number_of(have));
        let to = Address { topic: publication.topic, correlation: publication.correlation };
        let error = reply::refusal(&to, Form::default(), self.ledger.id(*number), &refusal);
        if error.weight() > most {
            self.done(owner, now);
        } else {
            self.outbox.push(owner.clone(), error, Some(now + REFUSAL_WANTED));
        }
    }
}

#[cfg(test)]
#[path = "door_tests.rs"]
mod tests;
